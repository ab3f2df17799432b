"""Both pages in a real browser: a slider is dragged, and a run goes on while it is looked at."""

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO

import made_up
import pytest
import torch
from PIL import Image
from running import make_chain

from fewstep.artifacts.model_file import load_model, save_model
from fewstep.pages.drawing import Asked, Chain
from fewstep.tracking.metrics_file import MetricsFile
from fewstep.tracking.names import IMAGES, LOSS

pytest_plugins = ("running",)
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("as_users_run"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no browser: apt-get install chromium"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'fewstep[dev]'")
LOCAL = ("http://localhost:", "ws://localhost:", "data:", "blob:")


@contextmanager
def served(*arguments: object) -> Iterator[str]:
    """`fewstep ARGUMENTS --port 0` in a process of its own; gives the address it says."""
    command = [
        sys.executable,
        "-c",
        "from fewstep.commands.main import main; main()",
        *map(str, arguments),
        "--port",
        "0",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://localhost:\d+/", process.stdout.readline())
            assert found is not None, "it said no address"
            yield found[0]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium) -> Iterator[Callable]:
    """Open a page; at the end nothing outside this machine was asked for, and no script has failed."""
    outside, errors, pages = [], [], []

    def open_page(address: str):
        page = chromium.new_page(viewport={"width": 1440, "height": 1000})
        page.on("request", lambda request: request.url.startswith(LOCAL) or outside.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        pages.append(page)
        page.goto(address)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert (outside, errors) == ([], [])


def picture_of(page, side: str) -> str:
    return page.locator(f".{side} img").get_attribute("src", timeout=20_000)


def test_play_redraws_while_the_slider_moves(visit, tmp_path):
    models = make_chain(tmp_path)
    denoiser, card = load_model(models["2"])
    torch.manual_seed(0)
    for parameter in denoiser.parameters():  # a second's training has not made it listen to w
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_model(models["2"], denoiser, card)
    with served("play", models["2"]) as address:
        page = visit(address)
        playwright.expect(page.locator(".student .note")).to_contain_text("as fast as the teacher", timeout=60_000)
        assert "2 steps, 2 evaluations an image, w = 1 (scale 2)" in page.locator(".student .how").inner_text()
        assert "64 steps, 128 evaluations" in page.locator(".teacher .how").inner_text()
        before = picture_of(page, "teacher")

        box = page.locator(".noUi-handle").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        seen = [picture_of(page, "student")]
        for step in range(1, 13):
            page.mouse.move(x + 9 * step, y)
            page.wait_for_timeout(200)
            seen.append(picture_of(page, "student"))
        while_it_moved = len(set(seen))
        page.mouse.up()
        assert while_it_moved >= 5, f"{while_it_moved} pictures during 12 moves"

        playwright.expect(page.locator(".teacher.faded")).to_have_count(0, timeout=60_000)
        how = page.locator(".student .how").inner_text()
        w = float(re.search(r"w = ([\d.]+)", how)[1])
        assert w > 1.5
        assert f"w = {w:g} " in page.locator(".teacher .how").inner_text()
        assert picture_of(page, "teacher") != before

        drawn = Chain(models["2"]).draw_student(Asked(w=w, steps=2, seed=0, wanted=None, num=60)).picture
        shown = Image.open(BytesIO(base64.b64decode(picture_of(page, "student").partition(",")[2])))
        assert shown.tobytes() == drawn.tobytes(), "what is seen is what the model makes"

        all_classes = picture_of(page, "student")
        page.get_by_role("button", name="7", exact=True).click()
        playwright.expect(page.locator(".student img")).not_to_have_attribute("src", all_classes, timeout=20_000)

        steps = page.locator(".noUi-handle").nth(1)
        steps.focus()
        page.keyboard.press("ArrowLeft")
        playwright.expect(page.locator(".student .how")).to_contain_text("1 step, 1 evaluation", timeout=20_000)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        playwright.expect(page.locator(".student .note")).to_contain_text("made for 2 steps, not 4", timeout=20_000)


def test_the_dashboard_is_live(visit, tmp_path):
    made_up.sweep(tmp_path)
    made_up.experiment(tmp_path, "before")
    running = tmp_path / "digits" / "guidance" / "now"
    made_up.train(running, "guidance", share=0.5)
    with served("dashboard", "--local", "--outputs", tmp_path) as address:
        page = visit(address)
        playwright.expect(page.locator("td .running")).to_have_text("running", timeout=60_000)
        assert "50 %" in page.locator("tr", has=page.locator(".running")).inner_text()
        assert page.locator("h2:visible").all_inner_texts()[0] == "Is it training?"
        assert page.locator("canvas:visible").count() >= 2

        MetricsFile(running).log_metrics({IMAGES: 7500, LOSS: 0.01})
        playwright.expect(page.locator("tr", has=page.locator(".running"))).to_contain_text("75 %", timeout=15_000)

        page.get_by_label("Show").select_option("digits, before")
        playwright.expect(page.locator("h2:visible", has_text="Which steps?")).to_have_count(1, timeout=15_000)
        page.get_by_label("Show").select_option("sweep guidance_range-12345678")
        playwright.expect(page.locator("h2:visible", has_text="Which setting?")).to_have_count(1, timeout=15_000)
        playwright.expect(page.locator("tr.best")).to_contain_text("20", timeout=15_000)
        assert "not judged yet" in page.locator("table").first.inner_text()
