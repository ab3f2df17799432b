"""The pages without a browser: what their controls and charts hold."""

import importlib.util
import socket
from pathlib import Path

import made_up
import pytest
from running import Commands, make_chain

from fewstep.pages.charts import Chart
from fewstep.pages.dashboard import DashboardPage
from fewstep.pages.drawing import Chain
from fewstep.pages.play import PlayPage
from fewstep.pages.questions import Line
from fewstep.pages.runs import Outputs
from fewstep.pages.tables import table
from fewstep.system.durations import duration

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")


@pytest.fixture(scope="module")
def models(as_users_run, tmp_path_factory) -> dict[str, Path]:
    return make_chain(tmp_path_factory.mktemp("chain"))


def test_a_chart_keeps_its_figure_while_numbers_come_in():
    chart = Chart("images", "loss", log_y=True)
    chart.show([Line("a", [1, 2], [3.0, 2.0])])
    drawn = chart.pane.object
    chart.show([Line("a", [1, 2, 3], [3.0, 2.0, 1.0])])
    assert chart.pane.object is drawn, "the reader's zoom is kept"
    assert drawn.renderers[0].data_source.data["y"] == [3.0, 2.0, 1.0]
    chart.show([Line("a", [1, 2], [3.0, 2.0]), Line("b", [1], [1.0])])
    assert chart.pane.object is not drawn
    assert type(chart.pane.object.y_scale).__name__ == "LogScale"
    chart.show([Line("a", [1, 2], [3.0, 0.0])])
    assert type(chart.pane.object.y_scale).__name__ == "LinearScale", "a logarithm has no 0"
    chart.show([])
    assert not chart.pane.visible


def test_a_long_line_is_thinned_and_keeps_its_end():
    chart = Chart("images", "loss")
    chart.show([Line("a", list(range(10_001)), [float(n) for n in range(10_001)])])
    data = chart.pane.object.renderers[0].data_source.data
    assert len(data["x"]) <= 600
    assert data["x"][-1] == 10_000


def test_the_dashboard_of_an_experiment_and_of_a_sweep(tmp_path):
    made_up.experiment(tmp_path)
    made_up.sweep(tmp_path)
    page = DashboardPage(Outputs(tmp_path))
    assert page.choice.value.startswith("sweep")  # written last
    assert "0badcafe" in page.runs.object
    assert page.which_setting.view.visible
    assert "not judged yet" in page.settings.object
    assert page.steps.value == 4
    page.choice.value = "digits, 2026-01-02_03-04-05"
    assert not page.which_setting.view.visible
    assert page.over_w.pane.visible
    assert page.errors.pane.visible
    assert "finished" in page.runs.object
    assert page.w.value == 1.0
    page.figure.value = "inception_score"
    assert page.over_w.pane.object.yaxis[0].axis_label == "inception score"
    page.column.value = "gradient norm"
    assert page.over_images["teacher"].pane.object.yaxis[0].axis_label == "gradient norm"


def test_the_dashboard_shows_alarms_and_what_comes_in(tmp_path):
    page = DashboardPage(Outputs(tmp_path))
    assert "no run yet" in page.header.object
    folder = tmp_path / "digits" / "guidance" / "now"
    made_up.train(folder, "guidance", share=0.5)
    page.refresh()
    assert page.choice.value == "digits, now"
    assert "running" in page.runs.object
    assert page.alarms.object == ""
    with (folder / "diagnostics.jsonl").open("a") as file:
        import json

        file.write(json.dumps(made_up.look("guidance", None, 9000, 1.0, ["all samples <look> alike"])) + "\n")
    page.refresh()
    assert "all samples &lt;look&gt; alike" in page.alarms.object


def test_what_files_say_is_text_and_no_html():
    made = str(table(("<b>",), [("<script>alert(1)</script>",)]))
    assert "<script>" not in made
    assert "<b>" not in made


def test_the_play_page_has_the_controls_of_its_model(models):
    page = PlayPage(Chain(models["2"]))
    page.close()
    assert (page.w.start, page.w.end, page.w.value) == (0.0, 4.0, 1.0)
    assert page.steps.value == 2
    assert list(page.wanted.options.values()) == ["all", *range(10)]
    assert len(page.view().objects) == 2


@pytest.mark.parametrize(("seconds", "text"), [(0.00031, "0.31 ms"), (0.0124, "12.4 ms"), (1.25, "1.25 s")])
def test_times_are_short(seconds, text):
    assert duration(seconds) == text


def test_a_port_in_use_is_one_line(commands: Commands, models, tmp_path):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        commands.fewstep("play", models["1"], "--port", port).is_one_error(f"--port {port} is in use", "another")
        commands.fewstep("dashboard", "--local", "--outputs", tmp_path, "--port", port).is_one_error(port, "in use")


def test_mistakes_are_one_line(commands: Commands, models, tmp_path):
    commands.fewstep("play", models["1"], "--port", "70000").is_one_error("--port", "65535")
    commands.fewstep("play", tmp_path / "none.safetensors").is_one_error("none.safetensors")
    commands.fewstep("dashboard", "--local", "--outputs", tmp_path / "none").is_one_error("none", "python train.py")


def test_a_missing_package_is_one_line(commands: Commands, models, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "panel" else real(name, *rest))
    commands.fewstep("play", models["1"]).is_one_error("fewstep[pages]")
    commands.fewstep("dashboard", "--local").is_one_error("fewstep[pages]")
