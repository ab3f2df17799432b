"""The one-way imports of the design, and other rules on the source that a reader can rely on."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fewstep"
FILES = sorted(SOURCE.rglob("*.py"))
MOST_LINES = 350

LIBRARY = (  # the rooms below runs
    "artifacts",
    "data",
    "diagnostics",
    "diffusion",
    "distributed",
    "evaluation",
    "inference",
    "methods",
    "networks",
    "reports",
    "system",
    "teachers",
    "tracking",
    "training",
)

# What each room of fewstep may import of fewstep, itself aside: imports go one way.
MAY_IMPORT = {
    "diffusion": set(),
    "system": set(),
    "distributed.collectives": {"system"},
    "networks": {"diffusion", "data.facts", "system"},
    "data": {"diffusion", "distributed.collectives", "networks", "system"},
    "methods": {"data", "diffusion", "distributed.collectives", "networks", "system"},
    "artifacts": {"data.facts", "diffusion", "networks", "system", "distributed.collectives"},
    "evaluation": {"artifacts", "data", "diffusion", "distributed.collectives", "networks", "system"},
    "tracking": {"artifacts", "data.facts", "diffusion", "distributed.collectives", "system"},
    "teachers": {"artifacts", "data.facts", "diffusion", "networks", "system"},
    "inference": {"artifacts", "data", "diffusion", "networks", "system"},
    "training": {
        "artifacts",
        "data",
        "diffusion",
        "distributed",
        "evaluation",
        "methods",
        "networks",
        "system",
        "tracking",
    },
    "diagnostics": {"data", "diffusion", "distributed", "methods", "system", "tracking", "training"},
    "reports": {"artifacts", "data.facts", "diagnostics", "system", "tracking"},
    "control": {*LIBRARY, "runs"},
    "estimate": {*LIBRARY, "runs"},
    "python": {*LIBRARY, "runs"},
    "runs": {*LIBRARY},
}
OUTSIDE_OF_DIFFUSION = {"torch", "jaxtyping"}
ONLY_IN = {  # package from outside -> the only places that know it
    "hydra": {"runs/", "sweeps/", "../../train.py"},
    "omegaconf": {"runs/", "sweeps/", "../../train.py"},
    "wandb": {"tracking/"},
    "wandb_workspaces": {"tracking/"},
    "gradio": {"commands/play.py"},
    "diffusers": {"export/", "networks/", "evaluation/baselines.py"},
}
COMPUTED_NAMES = {"__init__.py"}  # imports its public names when they are used, from the places that PLACES lists
FREE_KEYWORDS = {
    ("tracking/metrics_file.py", "log_hyperparams"),  # Lightning's hook
    ("training/module.py", "optimizer_step"),  # Lightning's hook
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


def room(name: str) -> str:
    """The longest name in MAY_IMPORT of which the file is a part, else its folder."""
    module = name.removesuffix(".py").replace("/", ".")
    return max((r for r in MAY_IMPORT if within(module, {r})), key=len, default=module.partition(".")[0])


def offences(name: str, source: str) -> list[str]:
    """What the file `name` (relative to src/fewstep) imports and should not."""
    package = room(name)
    found = []
    for module, line in imports(ast.parse(source)):
        outer, _, inner = module.partition(".")
        allowed = MAY_IMPORT.get(package)
        if module.startswith("an import") and name in COMPUTED_NAMES:
            continue
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
        ("diffusion/hop.py", "from fewstep.networks import Denoiser"),
        ("diffusion/hop.py", "from fewstep import networks"),
        ("diffusion/hop.py", "import numpy"),
        ("diffusion/hop.py", "from . import schedule"),
        ("networks/backbones/mlp.py", "from fewstep.data.batches import Data"),
        ("data/digits.py", "import fewstep.methods.base"),
        ("methods/base.py", "from fewstep.tracking.names import LOSS"),
        ("methods/base.py", "def f():\n    import wandb"),
        ("methods/base.py", "from importlib import import_module\nimport_module('wandb')"),
        ("evaluation/grid.py", "from fewstep.methods import Method"),
        ("reports/report.py", "from fewstep.evaluation.grid import EvaluationPlan"),
        ("training/loop.py", "from omegaconf import DictConfig"),
        ("training/loop.py", "import wandb.sdk"),
        ("training/loop.py", "import_module(name)"),
        ("methods/base.py", "import diffusers"),
    ],
)
def test_the_check_finds_a_bad_import(name: str, line: str) -> None:
    assert len(offences(name, line)) == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("diffusion/hop.py", "import torch.nn\nfrom math import pi\nfrom fewstep.diffusion.schedule import alpha"),
        ("methods/base.py", "from fewstep.data.batch import Batch\nimport torch"),
        ("evaluation/grid.py", "from fewstep.data.facts import DataFacts"),
        ("runs/train.py", "import hydra\nfrom fewstep.methods import Method"),
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


def module_of(file: Path) -> str:
    parts = [*file.relative_to(SOURCE.parent).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_at_start(source: str, known: set[str]) -> set[str]:
    """The modules of fewstep that a file imports when it is imported itself."""
    tree = ast.parse(source)
    names = (
        module for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) for module, _ in imports(node)
    )
    return {
        module if module in known else module.rpartition(".")[0] for module in names if module.startswith("fewstep")
    }


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Nodes of a cycle, in its order; empty where there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        found = next((cycle for each in graph.get(node, ()) if (cycle := visit(each, [*path, node]))), [])
        done.add(node)
        return found

    return next((cycle for node in graph if (cycle := visit(node, []))), [])


def test_no_imports_are_circular() -> None:
    known = {module_of(file) for file in FILES}
    graph = {module_of(file): imported_at_start(file.read_text(), known) - {module_of(file)} for file in FILES}
    assert cycle_in(graph) == []
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


MAX_FUNCTION_LINES = 60


def long_functions(source: str) -> list[str]:
    functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno + 1 >= MAX_FUNCTION_LINES]


def test_no_function_is_long() -> None:
    assert {
        relative(file): long_functions(file.read_text()) for file in FILES if long_functions(file.read_text())
    } == {}
    assert long_functions("def f():\n" + "    pass\n" * MAX_FUNCTION_LINES) == ["f"]


def test_methods_know_neither_lightning_nor_hydra() -> None:
    found = (
        "import sys, fewstep.methods; print([name for name in ('lightning', 'hydra', 'wandb') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
