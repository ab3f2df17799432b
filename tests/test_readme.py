"""The commands of README and docs/using.md run as typed, in order; the make targets are checked without running."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = "trainer=debug trainer.max_images=256 model.network.width=32 model.network.num_blocks=1"
SMALL_GRID = "[8]"
README, USING = "README.md", "docs/using.md"
NUMBER = r"[\d.,]+|TBD"


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


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout and leaves the real outputs/ alone."""
    return link_checkout(tmp_path_factory.mktemp("checkout"))


def link_checkout(folder: Path) -> Path:
    """Make `folder` look like a checkout."""
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


def run_blocks(page: str, workplace: Path) -> None:
    """Every train.py and fewstep line of a page, top to bottom: later ones use what earlier ones made."""
    for script in [block for block in blocks("bash", page) if not block.startswith("make ")]:
        lines = [made_small(line.partition("  #")[0].strip()) for line in script.splitlines()]
        done = run("\n".join(["set -ex", *lines]), workplace)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def run_example(page: str, workplace: Path) -> None:
    """The Python block of a page, on a model that its commands made (it names the file by a pattern)."""
    assert blocks("python", page)
    if not list(workplace.glob("outputs/digits/progressive/*/model-4.safetensors")):
        assert run(made_small("python train.py logger=csv"), workplace).returncode == 0
    (workplace / "example.py").write_text("\n".join(blocks("python", page)))
    done = run("python example.py", workplace)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_shell_commands_run_as_typed(workplace: Path) -> None:
    text = "".join(block for block in blocks("bash") + blocks("sh") if not block.startswith("make "))
    assert text.count("python train.py") >= 6
    assert text.count("fewstep ") >= 4
    run_blocks(README, workplace)


@pytest.mark.slow
def test_python_example_runs(workplace: Path) -> None:
    run_example(README, workplace)


@pytest.mark.slow
def test_commands_on_models_run_as_typed(tmp_path: Path) -> None:
    assert "".join(blocks("bash", USING)).count("fewstep ") >= 8
    link_checkout(tmp_path)
    assert run(made_small("python train.py logger=csv"), tmp_path).returncode == 0
    run_blocks(USING, tmp_path)
    run_example(USING, tmp_path)


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


def test_a_cell_of_its_results_holds_one_number() -> None:
    rows = [line.strip("| ").split(" | ") for line in (ROOT / README).read_text().splitlines() if line.startswith("|")]
    results = [row for row in rows if row[1:] and row[1].isdigit()]
    methods = {path.stem for path in (ROOT / "conf/stage").glob("*.yaml")}
    named = {row[0] for row in results if not row[0].startswith("guided ")}
    assert len(named) > 3
    assert named <= methods
    assert all(re.fullmatch(NUMBER, cell) for row in results for cell in row[1:])


@pytest.mark.parametrize(
    "page", [README, *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md")), "sweeps/README.md"]
)
def test_links_exist(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text()) if "://" not in link]
    assert links
    assert not [link for link in links if not ((ROOT / page).parent / link).exists()]
