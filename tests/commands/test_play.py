"""What `fewstep play` draws, and its page in a real browser."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from PIL import Image
from running import Commands, make_chain

import fewstep
from fewstep.artifacts.model_file import load_model, save_model
from fewstep.artifacts.pictures import picture
from fewstep.commands.play import caption, free_port
from fewstep.commands.player import Player, Request
from fewstep.evaluation.images import evaluation_tensor

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")
REQUEST = Request(w=2.0, steps=2, seed=3, num=20, wanted=7)
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


def test_student_and_teacher_are_drawn_as_sample_would(models):
    student, teacher = Player(models["2"]).draw(REQUEST)
    assert student.picture.tobytes() == expected(models["2"], [7] * 20, steps=2, w=2.0, seed=3)
    assert (student.steps, student.evaluations, student.num) == (2, 2, 20)
    assert teacher is not None
    assert teacher.picture.tobytes() == expected(models["teacher"], [7] * 20, steps=64, w=2.0, seed=3)
    assert (teacher.steps, teacher.evaluations) == (64, 128)
    assert min(student.seconds, teacher.seconds) > 0
    assert caption(student, REQUEST).startswith("2 steps, 2 evaluations an image, w = 2<br>**")
    assert caption(student, REQUEST).endswith("** for 20 images")


def test_all_classes_are_drawn_in_turn(models):
    drawn = Player(models["2"]).draw_model(replace(REQUEST, wanted=None))
    assert drawn.picture.tobytes() == expected(models["2"], [*range(10)] * 2, steps=2, w=2.0, seed=3)


def test_each_number_of_steps_has_its_own_model(models):
    player = Player(models["2"])
    assert player.by_steps == {1: models["1"], 2: models["2"]}
    one = player.draw_model(replace(REQUEST, steps=1))
    assert one.picture.tobytes() == expected(models["1"], [7] * 20, steps=1, w=2.0, seed=3)
    assert Player(models["guided"]).by_steps == {}
    assert Player(models["guided"]).draw_model(replace(REQUEST, steps=5)).evaluations == 5


def test_another_teacher_can_be_named(models):
    player = Player(models["2"], models["guided"])
    assert player.draw(REQUEST)[1].picture.tobytes() == expected(models["guided"], [7] * 20, steps=64, w=2.0, seed=3)


def test_a_teacher_plays_alone(models):
    player = Player(models["teacher"])
    assert "teacher itself" in player.why_alone
    drawn, teacher = player.draw(replace(REQUEST, steps=4))
    assert (drawn.evaluations, teacher) == (8, None)


def test_a_student_whose_teacher_is_gone_plays_alone(models, tmp_path):
    denoiser, card = load_model(models["2"])
    save_model(tmp_path / "model-2.safetensors", denoiser, card)
    player = Player(tmp_path / "model-2.safetensors")
    assert "which is gone" in player.why_alone
    assert player.draw(REQUEST)[1] is None


def test_mistakes_are_one_line(models, tmp_path, commands: Commands):
    denoiser, card = load_model(models["2"])
    path = tmp_path / "encoder.safetensors"
    save_model(path, denoiser, replace(card, sampling=replace(card.sampling, direction="encode")))
    commands.fewstep("play", path).is_one_error("encoder", "student")
    port = free_port(0)
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        commands.fewstep("play", models["2"], "--port", str(port)).is_one_error(f"--port {port}", "in use")


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
        assert "2 steps, 2 evaluations an image, w = 1" in page.inner_text("body")
        assert "64 steps, 128 evaluations an image, w = 1" in page.inner_text("body")
        student = page.locator("img").first
        before = student.get_attribute("src")

        page.get_by_label("1", exact=True).check()
        playwright.expect(page.get_by_text("1 step, 1 evaluation an image")).to_be_visible(timeout=20_000)
        playwright.expect(student).not_to_have_attribute("src", before, timeout=20_000)
        with urlopen(student.get_attribute("src")) as answer:
            shown = Image.open(BytesIO(answer.read()))
        drawn = Player(models["2"]).draw_model(Request(w=1.0, steps=1, seed=0, num=40, wanted=None)).picture
        assert shown.convert(drawn.mode).tobytes() == drawn.tobytes(), "what is seen is what the model makes"
        browser.close()
    assert (outside, errors) == ([], [])
