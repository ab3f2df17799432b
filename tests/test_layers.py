"""The one-way imports of the design, and other rules on the source that a reader can rely on."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fewstep"
FILES = sorted(SOURCE.rglob("*.py"))
MOST_LINES = 350

# What each package of fewstep may import of fewstep, itself aside.
MAY_IMPORT = {
    "diffusion": set(),
    "networks": {"diffusion", "data.facts", "files"},
    "data": {"diffusion", "files", "networks", "processes", "seeds"},
    "stages": {"data", "diffusion", "networks", "processes", "seeds"},
    "quality": {
        "diffusion",
        "data.facts",
        "data.digits",
        "data.patches",
        "files",
        "networks.companions",
        "processes",
        "seeds",
    },
    "tracking": {"data.facts", "diffusion", "files", "machine", "processes"},
    "teachers": {"checkpoint", "data.facts", "diffusion", "files", "networks"},
    "diagnostics": {"data.batches", "data.facts", "diffusion", "processes", "seeds", "stages", "tracking"},
    "processes": set(),
    "seeds": set(),
    "files": set(),
}
OUTSIDE_OF_DIFFUSION = {"torch", "jaxtyping"}
ONLY_IN = {  # package from outside -> the only places that know it
    "hydra": {"run.py", "compose.py", "sweeps/", "../../train.py"},
    "omegaconf": {"run.py", "compose.py", "planning/", "sweeps/", "../../train.py"},
    "wandb": {"tracking/"},
    "wandb_workspaces": {"tracking/"},
    "panel": {"pages/"},
    "bokeh": {"pages/"},
    "diffusers": {"export/", "networks/", "quality/baselines.py"},
}
FREE_KEYWORDS = {
    ("tracking/metrics_file.py", "log_hyperparams"),  # Lightning's hook
    ("stages/base.py", "optimizer_step"),  # Lightning's hook
    ("compose.py", "stage"),  # the composition root: what a kind of stage needs goes to hydra's instantiate as it is
}


class Import(NamedTuple):
    module: str
    line: int


def imports(tree: ast.AST) -> Iterator[Import]:
    """Every module that is imported anywhere in the file, and each name from it, which may be a module too."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (Import(name.name, node.lineno) for name in names)
            case ast.ImportFrom(module=module, names=names, level=0) if module:
                yield from (Import(f"{module}.{name.name}", node.lineno) for name in names)
            case ast.ImportFrom():
                yield Import("a relative import", node.lineno)
            case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"), args=[argument, *_]):
                known = isinstance(argument, ast.Constant)
                yield Import(str(argument.value) if known else "an import by a computed name", node.lineno)


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def offences(name: str, source: str) -> list[str]:
    """What the file `name` (relative to src/fewstep) imports and should not."""
    package = name.split("/")[0].removesuffix(".py")
    found = []
    for module, line in imports(ast.parse(source)):
        outer, _, inner = module.partition(".")
        allowed = MAY_IMPORT.get(package)
        if module.startswith(("a relative", "an import")):
            found.append(f"{name}:{line} has {module}")
        elif outer == "fewstep" and allowed is not None and not within(inner, allowed | {package}):
            found.append(f"{name}:{line} imports {module}, {package} may import {sorted(allowed)}")
        elif package == "diffusion" and outer not in {*OUTSIDE_OF_DIFFUSION, *sys.stdlib_module_names, "fewstep"}:
            found.append(f"{name}:{line} imports {module}, diffusion may import torch only")
        elif not any(name.startswith(place) for place in ONLY_IN.get(outer, {name})):
            found.append(f"{name}:{line} imports {module}, only {sorted(ONLY_IN[outer])} may")
    return found


@pytest.mark.parametrize("file", [*FILES, ROOT / "train.py"], ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file: Path) -> None:
    assert offences(relative(file), file.read_text()) == []


def relative(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix() if file.is_relative_to(SOURCE) else f"../../{file.name}"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("diffusion/target.py", "from fewstep.networks import Denoiser"),
        ("diffusion/target.py", "from fewstep import networks"),
        ("diffusion/target.py", "import numpy"),
        ("diffusion/target.py", "from . import schedule"),
        ("networks/mlp.py", "from fewstep.data.batches import Data"),
        ("data/digits.py", "import fewstep.methods.base"),
        ("stages/base.py", "from fewstep.tracking.names import LOSS"),
        ("stages/base.py", "def f():\n    import wandb"),
        ("stages/base.py", "from importlib import import_module\nimport_module('wandb')"),
        ("quality/grid.py", "from fewstep.methods import Stage"),
        ("quality/grid.py", "from fewstep.data.batches import Data"),
        ("tracking/report.py", "from fewstep.evaluation.grid import Plan"),
        ("evaluation.py", "from omegaconf import DictConfig"),
        ("fit.py", "import wandb.sdk"),
        ("fit.py", "import_module(name)"),
        ("stages/base.py", "import diffusers"),
    ],
)
def test_the_check_finds_a_bad_import(name: str, line: str) -> None:
    assert len(offences(name, line)) == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("diffusion/target.py", "import torch.nn\nfrom math import pi\nfrom fewstep.diffusion.schedule import alpha"),
        ("stages/base.py", "from fewstep.data.batches import Batch\nimport lightning"),
        ("quality/grid.py", "from fewstep.data.facts import DataFacts"),
        ("run.py", "import hydra\nfrom fewstep.methods import Stage"),
        ("../../train.py", "import hydra"),
        ("tracking/wandb_run.py", "import wandb"),
    ],
)
def test_the_check_lets_good_imports_pass(name: str, line: str) -> None:
    assert offences(name, line) == []


def test_no_file_is_a_drawer_or_too_long() -> None:
    assert FILES
    assert not [file for file in FILES if file.stem in {"utils", "util", "helpers", "misc", "common"}]
    lengths = {relative(file): len(file.read_text().splitlines()) for file in FILES}
    assert {name: count for name, count in lengths.items() if count > MOST_LINES} == {}


def passed_through(source: str) -> list[str]:
    """Names of the functions that take keywords of any name and keep them (**_ and **__ drop what a hook is given)."""
    functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return [node.name for node in functions if node.args.kwarg and node.args.kwarg.arg.strip("_")]


def test_no_keywords_are_passed_through() -> None:
    free = {(relative(file), name) for file in FILES for name in passed_through(file.read_text())}
    assert free <= FREE_KEYWORDS
    assert passed_through("def f(**options):\n    return g(**options)\ndef h(a, **_): ...") == ["f"]


# CIFAR-10's python version is published as pickles and as nothing else; this file's unpickler knows arrays and plain
# values alone, and tests/data/test_cifar10.py shows that it runs nothing.
RESTRICTED = {"data/unpickle.py": {"pickle", "pickle.Unpickler", "pickle.UnpicklingError"}}
UNPICKLERS = {"pickle", "dill", "joblib", "shelve", "marshal"}
LOADERS = {"torch.load", "np.load", "numpy.load"}


def test_nothing_is_unpickled() -> None:
    """torch.load says weights_only=True wherever it is used, and nothing else that unpickles is used at all."""
    for file in FILES:
        tree = ast.parse(file.read_text())
        used = {module for module, _ in imports(tree) if within(module, UNPICKLERS)}
        assert used <= RESTRICTED.get(relative(file), {"pickle.UnpicklingError"}), relative(file)
        if relative(file) in RESTRICTED:
            named = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            assert {name for name in named if name.startswith("pickle.")} <= RESTRICTED[relative(file)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in LOADERS:
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                safe = said.get("weights_only") == "True" or said.get("allow_pickle") == "False"
                assert safe, f"{relative(file)}:{node.lineno}"
