"""The commands of README and docs/using.md run as typed, in order; the make targets are checked without running."""

import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest
from running import ROOT, Commands

pytest_plugins = ("running",)
SMALL = "trainer=debug trainer.max_images=256 model.network.width=32 model.network.num_blocks=1"
SMALL_GRID = "[8]"
README, USING = "README.md", "docs/using.md"
FIGURE = r"[\d.,]+( ± [\d.]+)?"


def blocks(language: str, page: str = README) -> list[str]:
    """A page's code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def made_small(command: str) -> str:
    """The command with a budget of seconds, the same otherwise."""
    if not command.startswith("python train.py") or "--help" in command or "--cfg" in command:
        return command
    pipeline = "stage=" not in command or "stage=pipeline" in command
    grid = "stage.evaluate" if pipeline else "stage"
    steps = f"{grid}.teacher_steps={SMALL_GRID} {grid}.guided_steps={SMALL_GRID} {grid}.baselines=[unipc]"
    return f"{command} {SMALL} {steps if pipeline or 'stage=evaluate' in command else ''}"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a checkout, the current one, which leaves the real outputs/ alone."""
    for name in ("train.py", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


def words_of(line: str) -> list[str]:
    """A line's words as the shell hands them to a program: quotes, patterns, $(...), comments."""
    shell = ["bash", "-ec", f"printf '%s\\0' {line}"]
    return subprocess.run(shell, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


def run(line: str, commands: Commands) -> None:
    """A line of a page in the folder that is current, without the seconds that a new process takes to import."""
    program, *arguments = words_of(line)
    if program == "fewstep":
        result = commands.fewstep(*arguments)
    else:
        assert (program, arguments[0]) == ("python", "train.py")
        result = commands.train(*arguments[1:])
    assert result.status == 0, (line, result)


def run_blocks(page: str, commands: Commands) -> None:
    """Every train.py and fewstep line of a page, top to bottom: later ones use what earlier ones made."""
    for script in [block for block in blocks("bash", page) if not block.startswith("make ")]:
        for line in script.splitlines():
            run(made_small(line.partition("  #")[0].strip()), commands)


def run_example(page: str) -> None:
    """The Python block of a page, on a model that its commands made (it names the file by a pattern)."""
    assert blocks("python", page)
    Path("example.py").write_text("\n".join(blocks("python", page)))
    runpy.run_path("example.py")


@pytest.mark.slow
def test_commands_of_readme_run_as_typed(workplace: Path, commands: Commands) -> None:
    text = "".join(block for block in blocks("bash") + blocks("sh") if not block.startswith("make "))
    assert text.count("python train.py") >= 6
    assert text.count("fewstep ") >= 4
    run_blocks(README, commands)
    run_example(README)


@pytest.mark.slow
def test_commands_on_models_run_as_typed(workplace: Path, commands: Commands) -> None:
    assert "".join(blocks("bash", USING)).count("fewstep ") >= 8
    run(made_small("python train.py logger=csv"), commands)
    run_blocks(USING, commands)
    run_example(USING)


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


def test_readme_is_short() -> None:
    assert len((ROOT / README).read_text().splitlines()) <= 110


def test_a_cell_of_its_results_holds_one_figure() -> None:
    rows = [line.strip("| ").split(" | ") for line in (ROOT / README).read_text().splitlines() if line.startswith("|")]
    results = [row for row in rows if row[1:] and row[1].isdigit()]
    methods = {path.stem for path in (ROOT / "conf/stage").glob("*.yaml")}
    assert {row[0] for row in results} <= methods
    assert len(results) > 3
    assert all(re.fullmatch(FIGURE, cell) for row in results for cell in row[1:])


@pytest.mark.parametrize(
    "page", [README, *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md")), "sweeps/README.md"]
)
def test_links_exist(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text()) if "://" not in link]
    assert links
    assert not [link for link in links if not ((ROOT / page).parent / link).exists()]
