"""A training that gets a signal saves and stops; the same command then ends as an undisturbed run."""

import multiprocessing
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from lightning import Callback
from running import Commands, config_of
from safetensors.torch import load_file
from torch import distributed as dist

from fewstep.runs.config import Settings
from fewstep.runs.pipeline import run
from fewstep.system.signals import SIGNALS, Stopped, stop_signals
from fewstep.training.checkpointing import SaveCheckpoint, read_checkpoint
from fewstep.training.preemption import MAX_STEPS_BETWEEN_CHECKS, StopOnSignal

pytest_plugins = ("running",)

BATCH, STEPS = 50, 12
SETTINGS = [
    "stage=guidance",
    "dataset=mixture",
    "teacher=exact",
    "trainer=debug",
    "logger=csv",
    "stage.training.warmup_images=0",
    f"stage.training.batch_size={BATCH}",
    f"trainer.max_images={BATCH * STEPS}",
    "name=run",
]


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, *numbers: int) -> None:
    """Send this process the signals at the end of that step, before a checkpoint."""
    save = SaveCheckpoint.on_train_batch_end

    def send(self, trainer, *others):
        if trainer.global_step == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        save(self, trainer, *others)

    monkeypatch.setattr(SaveCheckpoint, "on_train_batch_end", send)


@pytest.fixture(scope="module")
def undisturbed(as_users_run, tmp_path_factory) -> dict[str, torch.Tensor]:
    outputs = tmp_path_factory.mktemp("undisturbed")
    run(Settings.read(config_of(*SETTINGS, f"outputs={outputs}")))
    return load_file(outputs / "mixture" / "guidance" / "run" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "step"),
    [*((number, 7) for number in SIGNALS), (signal.SIGTERM, 1), (signal.SIGTERM, STEPS)],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else str(value),
)
def test_a_stopped_run_resumes(tmp_path: Path, monkeypatch, commands: Commands, undisturbed, number: int, step: int):
    command = [*SETTINGS, f"outputs={tmp_path}"]
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patched:
        signal_at(patched, step, number)
        result = commands.train(*command)
    assert result.status == 128 + number
    (line,) = [line for line in result.err.splitlines() if "stopped" in line]
    assert f"stopped by {signal.Signals(number).name} at step {step}" in line
    assert "the same command resumes the run" in line
    assert [signal.getsignal(each) for each in SIGNALS] == before

    folder = tmp_path / "mixture" / "guidance" / "run"
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == step
    assert not (folder / "model.safetensors").exists()
    assert commands.train(*command).status == 0
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, undisturbed[name]), name


@pytest.mark.parametrize("numbers", [(signal.SIGUSR2, signal.SIGTERM), (signal.SIGTERM, signal.SIGTERM)])
def test_a_repeated_signal_changes_nothing(tmp_path: Path, monkeypatch, commands: Commands, numbers: tuple[int, int]):
    signal_at(monkeypatch, 7, *numbers)
    result = commands.train(*SETTINGS, f"outputs={tmp_path}")
    assert result.status - 128 in numbers
    assert read_checkpoint(tmp_path / "mixture" / "guidance" / "run" / "last.ckpt")["global_step"] == 7


def test_a_second_ctrl_c_stops_without_a_checkpoint(tmp_path: Path, monkeypatch, commands: Commands):
    signal_at(monkeypatch, 7, signal.SIGINT)
    save = SaveCheckpoint.on_train_batch_end
    monkeypatch.setattr(
        SaveCheckpoint,
        "on_train_batch_end",
        lambda self, trainer, *a: (save(self, trainer, *a), trainer.global_step == 7 and os.kill(os.getpid(), 2))[0],
    )
    result = commands.train(*SETTINGS, f"outputs={tmp_path}")
    assert (result.status, "stopped by SIGINT; the same command" in result.err) == (130, True)
    assert not (tmp_path / "mixture" / "guidance" / "run" / "last.ckpt").exists()


def signal_twice() -> None:
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        pytest.fail("it went on")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # while it is stopping


def test_outside_training_a_signal_stops_at_once():
    before = signal.getsignal(signal.SIGUSR1)
    with (
        pytest.raises(Stopped, match=r"^stopped by SIGUSR1; the same command resumes the run") as stopped,
        stop_signals(),
    ):
        signal_twice()
    assert stopped.value.status == 138
    assert signal.getsignal(signal.SIGUSR1) == before


class Loop:
    epoch_loop = type("Epoch", (), {})()


class Trained:
    """The attributes of a trainer that the callback reads."""

    global_step, max_steps, accumulate_grad_batches, fit_loop = 0, 10**6, 1, Loop()


def run_rank(number: int, port: int, signalled: int, answers: multiprocessing.Queue) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    trainer, saved = Trained(), []
    stopping: Callback = StopOnSignal(lambda trainer: saved.append(trainer.global_step))
    stopping.on_train_start(trainer, None)  # type: ignore[arg-type]
    try:
        for trainer.global_step in range(1, 10 * MAX_STEPS_BETWEEN_CHECKS):
            if number == signalled and trainer.global_step == MAX_STEPS_BETWEEN_CHECKS + 3:
                os.kill(os.getpid(), signal.SIGUSR1)
            stopping.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    except Stopped as stopped:
        answers.put((saved, stopped.number))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_all_ranks_stop_at_the_same_step_after_a_signal_to_one(free_port: int):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fewstep.runs.pipeline", "hydra", "pytest"])
    answers = processes.Queue()
    all_of_them = [processes.Process(target=run_rank, args=(n, free_port, 1, answers)) for n in range(2)]
    for process in all_of_them:
        process.start()
    given = [answers.get(timeout=60) for _ in all_of_them]
    for process in all_of_them:
        process.join(60)
    (saved, number), *others = given
    assert others == [(saved, number)]
    assert number == signal.SIGUSR1
    assert MAX_STEPS_BETWEEN_CHECKS < saved[0] <= 3 * MAX_STEPS_BETWEEN_CHECKS
    assert len(saved) == 1


@pytest.fixture
def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
