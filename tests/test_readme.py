"""The README's commands run as typed, in order, in one folder; the make targets are checked without running."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = "trainer=debug model.network.width=32 model.network.num_blocks=1"
SMALL_GRID = "[64]"
SMALL_SWEEP = "stage.guidance.w_max=2"
SERVES = "fewstep dashboard --local"


def blocks(language: str) -> list[str]:
    """The README's code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def made_small(command: str) -> str:
    """The command with a budget of seconds, the same otherwise."""
    if command == SERVES:  # until Ctrl-C, which is what it gets
        return f"timeout --preserve-status --signal=INT 20 {command} --port 0 || test $? = 130"
    if not command.startswith("python train.py") or "--help" in command or "--cfg" in command:
        return command
    if "trainer=debug" in command:
        return f"{command} logger=csv"
    if "trainer=" in command:
        return f"{command} logger=csv trainer.max_images=1024 trainer.snapshots=0"
    pipeline = "stage=" not in command or "stage=pipeline" in command
    grid = "stage.evaluate" if pipeline else "stage"
    steps = f"{grid}.teacher_steps={SMALL_GRID} {grid}.guided_steps={SMALL_GRID}"
    sweep = SMALL_SWEEP if "sweeps=" in command else ""
    return f"{command} {SMALL} {sweep} {steps if pipeline or 'stage=evaluate' in command else ''}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout and leaves the real outputs/ alone."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("train.py", "conf"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    binaries = folder / "bin"
    binaries.mkdir(exist_ok=True)
    python = binaries / "python"
    if not python.exists():
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
        (binaries / "fewstep").write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "from fewstep.commands.main import main; main()" "$@"\n'
        )
        (binaries / "fewstep").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=540, check=False
    )


@pytest.mark.slow
def test_shell_commands_run_as_typed(workplace: Path) -> None:
    """Every train.py and fewstep line, top to bottom: later ones use what earlier ones made."""
    scripts = [block for block in blocks("bash") if not block.startswith("make ")]
    text = "".join(scripts)
    assert text.count("python train.py") >= 6
    assert text.count("fewstep ") >= 4
    for script in scripts:
        lines = [made_small(line.partition("  #")[0].strip()) for line in script.splitlines()]
        done = run("\n".join(["set -ex", *lines]), workplace)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_python_example_runs(workplace: Path) -> None:
    """The Python block, on a model that the commands above made (it names the file by a pattern)."""
    assert blocks("python")
    if not list(workplace.glob("outputs/digits/progressive/*/model-4.safetensors")):
        assert run(made_small("python train.py logger=csv"), workplace).returncode == 0
    (workplace / "example.py").write_text("\n".join(blocks("python")))
    done = run("python example.py", workplace)
    assert done.returncode == 0, done.stderr


def test_make_targets_exist_and_set_themselves_up() -> None:
    """`make demo` and `make test` each depend on the set-up, which installs the lock file."""
    assert [line.split("  ")[0] for line in blocks("bash")[0].splitlines()] == ["make demo", "make test"]
    for target, runs in (("demo", "train.py"), ("test", "pytest")):
        plan = subprocess.run(
            ["make", "--dry-run", "--always-make", "--no-print-directory", target],
            cwd=ROOT,
            env={
                name: value for name, value in os.environ.items() if not name.startswith("MAKE")
            },  # `make test` runs this
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "requirements.lock" in plan
        assert runs in plan.splitlines()[-1]


def test_readme_is_short_and_its_links_exist() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
