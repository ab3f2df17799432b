"""What `fewstep play` draws, and its page in a real browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from PIL import Image
from running import Commands, make_chain

import fewstep
from fewstep.artifacts.model_file import load_model, save_model
from fewstep.artifacts.pictures import picture
from fewstep.commands.player import Player, draw
from fewstep.evaluation.images import evaluation_tensor

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")
REQUEST: dict[str, Any] = {"w": 2.0, "seed": 3, "num": 20, "wanted": 7}
CHROMIUM = shutil.which("chromium")
LOCAL = ("http://127.0.0.1:", "data:", "blob:")


@pytest.fixture(scope="module")
def models(as_users_run, tmp_path_factory) -> dict[str, Path]:
    return make_chain(tmp_path_factory.mktemp("chain"))


def expected(path: Path, labels: list[int], **sampled: float) -> bytes:
    """The pixels of what `fewstep sample` would make."""
    model = fewstep.load(path)
    x = model.sample(labels, **sampled)  # pyright: ignore[reportArgumentType]
    return picture(evaluation_tensor(x, model.card.data), torch.tensor(labels), model.card.data, 10).tobytes()


def player_of(path: Path, teacher: Path | None = None) -> Player:
    return Player(path, teacher, None, None)


def test_student_and_teacher_are_drawn_as_sample_would(models):
    player = player_of(models["2"])
    student = draw(player.student(2), steps=2, **REQUEST)
    assert student.picture.tobytes() == expected(models["2"], [7] * 20, steps=2, w=2.0, seed=3)
    assert player.teacher is not None
    teacher = draw(player.teacher, steps=64, **REQUEST)
    assert teacher.picture.tobytes() == expected(models["teacher"], [7] * 20, steps=64, w=2.0, seed=3)
    assert min(student.seconds, teacher.seconds) > 0
    assert student.caption.startswith("steps: 2, evaluations an image: 2, w = 2<br>images: 20, **")
    assert teacher.caption.startswith("steps: 64, evaluations an image: 128, w = 2<br>images: 20, **")


def test_the_teacher_is_guided_at_the_times_that_the_student_was_made_for(models, tmp_path):
    denoiser, card = load_model(models["2"])
    save_model(tmp_path / "model-2.safetensors", denoiser, replace(card, guidance_interval=(0.2, 0.6)))
    player = player_of(tmp_path / "model-2.safetensors", models["teacher"])
    assert player.teacher is not None
    low, high = card.schedule.log_snr(torch.tensor([0.6, 0.2], dtype=torch.float64)).tolist()
    assert player.teacher.denoise.interval == (low, high)  # pyright: ignore[reportFunctionMemberAccess]


def test_all_classes_are_drawn_in_turn(models):
    drawn = draw(player_of(models["2"]).student(2), steps=2, **(REQUEST | {"wanted": None}))
    assert drawn.picture.tobytes() == expected(models["2"], [*range(10)] * 2, steps=2, w=2.0, seed=3)


def test_each_number_of_steps_has_its_own_model(models):
    player = player_of(models["2"])
    assert player.by_steps == {1: models["1"], 2: models["2"]}
    one = draw(player.student(1), steps=1, **REQUEST)
    assert one.picture.tobytes() == expected(models["1"], [7] * 20, steps=1, w=2.0, seed=3)
    guided = player_of(models["guided"])
    assert guided.by_steps == {}
    assert "evaluations an image: 5," in draw(guided.student(5), steps=5, **REQUEST).caption


def test_another_teacher_can_be_named(models):
    teacher = player_of(models["2"], models["guided"]).teacher
    assert teacher is not None
    drawn = draw(teacher, steps=64, **REQUEST)
    assert drawn.picture.tobytes() == expected(models["guided"], [7] * 20, steps=64, w=2.0, seed=3)


def test_a_teacher_plays_alone(models):
    player = player_of(models["teacher"])
    assert "teacher itself" in player.why_alone
    assert player.teacher is None
    assert "evaluations an image: 8," in draw(player.student(4), steps=4, **REQUEST).caption


def test_a_student_whose_teacher_is_gone_plays_alone(models, tmp_path):
    denoiser, card = load_model(models["2"])
    save_model(tmp_path / "model-2.safetensors", denoiser, card)
    player = player_of(tmp_path / "model-2.safetensors")
    assert "which is gone" in player.why_alone
    assert player.teacher is None


def test_mistakes_are_one_line(models, tmp_path, commands: Commands):
    denoiser, card = load_model(models["2"])
    path = tmp_path / "encoder.safetensors"
    save_model(path, denoiser, replace(card, sampling=replace(card.sampling, direction="encode")))
    commands.fewstep("play", path).is_one_error("encoder", "student")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        commands.fewstep("play", models["2"], "--port", port).is_one_error(f"--port {port}", "in use")


@contextmanager
def served(path: Path) -> Iterator[str]:
    """`fewstep play PATH --port 0` in a process of its own; gives the address it prints."""
    command = [sys.executable, "-c", "from fewstep.commands.main import main; main()", "play", str(path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as run:
        try:
            assert run.stdout is not None
            found = re.search(r"http://127.0.0.1:\d+/", run.stdout.readline())
            assert found is not None, "it printed no address"
            yield found[0]
        finally:
            run.terminate()


@pytest.mark.integration
@pytest.mark.skipif(CHROMIUM is None, reason="there is no browser: apt-get install chromium")
def test_the_page_redraws_when_a_control_moves_and_asks_nothing_of_other_machines(models):
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'fewstep[dev]'")
    outside, errors = [], []
    with served(models["2"]) as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.on("request", lambda request: request.url.startswith(LOCAL) or outside.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        playwright.expect(page.get_by_text("as fast as the teacher")).to_be_visible(timeout=60_000)
        assert "steps: 2, evaluations an image: 2, w = 1" in page.inner_text("body")
        assert "steps: 64, evaluations an image: 128, w = 1" in page.inner_text("body")
        student = page.locator("img").first
        before = student.get_attribute("src")

        page.get_by_label("1", exact=True).check()
        playwright.expect(page.get_by_text("steps: 1, evaluations an image: 1")).to_be_visible(timeout=20_000)
        playwright.expect(student).not_to_have_attribute("src", before, timeout=20_000)
        with urlopen(student.get_attribute("src")) as answer:
            shown = Image.open(BytesIO(answer.read()))
        drawn = draw(player_of(models["2"]).student(1), w=1.0, steps=1, seed=0, num=40, wanted=None).picture
        assert shown.convert(drawn.mode).tobytes() == drawn.tobytes(), "what is seen is what the model makes"
        browser.close()
    assert (outside, errors) == ([], [])
