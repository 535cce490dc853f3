"""Which room may import which, read from the source; and what a process loads, asked of one."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import adept_tune

PACKAGE = Path(adept_tune.__file__).parent

# Room -> the rooms it may import, besides itself.
ARROWS = {
    "tuning": {"engine", "methods", "backbones", "tasks", "tracking"},
    "engine": {"methods", "backbones", "tasks"},
    "methods": set(),
    "backbones": set(),
    "tasks": set(),
    "tracking": set(),
}
# Library -> the only room that may import it.
OWNERS = {"ray": "tuning", "mlflow": "tracking"}
# Modules at the top that every room may import, and that import no room themselves. The others at the top are command
# lines, and what they and the search share; they may import any room.
COMMONS = {"errors", "cli", "hub"}
SHARED_BY_COMMANDS = {"adapter", "console"}
# served_adapter is executed by MLflow in a process of its own, where it is a command in all but name.
EXCEPTIONS = {("tracking.served_adapter", "adapter")}


def imports_of(source: str, module: str) -> Iterator[str]:
    """Full names of all that a module imports, wherever in it and however written.

    `from a import b` counts as a.b, since b may be a module. `module` is the module's own name, for relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def own_name(imported: str) -> str:
    """The part of one of our names that matters: `load_adapter` of the package is `adapter`."""
    name = imported.removeprefix("adept_tune").removeprefix(".")
    return "adapter" if name == "load_adapter" else name


def faults_of(sources: Mapping[str, str]) -> list[str]:
    """Imports that go against an arrow, `importer -> imported`.

    Args:
        sources: Module name without the package ("tuning.trial") -> source text.
    """
    faults = []
    for module, source in sources.items():
        room = module.split(".")[0]
        for imported in imports_of(source, f"adept_tune.{module}"):
            library = imported.split(".")[0]
            if library == "adept_tune":
                allowed = _may_import(module, room, own_name(imported))
            else:
                allowed = OWNERS.get(library, room) == room
            if not allowed:
                faults.append(f"{module} -> {imported}")
    return faults


def _may_import(module: str, room: str, imported: str) -> bool:
    """Whether a module of ours may import another of ours."""
    target = imported.split(".")[0]
    is_room = target in ARROWS
    if room not in ARROWS:  # at the top
        return not is_room or room not in COMMONS
    if is_room:
        return target == room or target in ARROWS[room]
    if target in SHARED_BY_COMMANDS:
        return room == "tuning" or (module, target) in EXCEPTIONS
    return target in COMMONS or target in ("", "__version__")


def package_sources() -> dict[str, str]:
    """All modules of the package; a package's `__init__` goes by the name `room.__init__`."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text()
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def test_every_room_is_known() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ARROWS)


def test_no_import_goes_against_an_arrow() -> None:
    sources = {name: source for name, source in package_sources().items() if name != "__init__"}
    assert len(sources) > 30
    assert faults_of(sources) == []


def test_every_arrow_is_used() -> None:
    """Else the reading of imports could be blind, and the test above would pass on anything."""
    used = {
        (name.split(".")[0], own_name(imported).split(".")[0])
        for name, source in package_sources().items()
        for imported in imports_of(source, f"adept_tune.{name}")
        if imported.startswith("adept_tune")
    }
    assert {(room, other) for room in ARROWS for other in ARROWS[room]} <= used
    libraries = {
        (name.split(".")[0], imported.split(".")[0])
        for name, source in package_sources().items()
        for imported in imports_of(source, f"adept_tune.{name}")
    }
    assert {(room, library) for library, room in OWNERS.items()} <= libraries


@pytest.mark.parametrize(
    ("module", "source", "imported"),
    [
        ("engine.engine", "import ray", "ray"),
        ("search", "import ray", "ray"),
        ("search", "def f():\n    from ray import tune", "ray.tune"),
        ("engine.engine", "from ray.tune import report", "ray.tune.report"),
        ("tracking.writer", "import ray.util.queue as q", "ray.util.queue"),
        ("tuning.search", "import mlflow", "mlflow"),
        ("adapter", "from mlflow import pyfunc", "mlflow.pyfunc"),
        ("tuning.search", "import importlib\nimportlib.import_module('mlflow.entities')", "mlflow.entities"),
        ("methods.adept", "from adept_tune.engine.config import TrialConfig", "adept_tune.engine.config.TrialConfig"),
        ("methods.adept", "from adept_tune import engine", "adept_tune.engine"),
        ("methods.adept", "from ..engine import config", "adept_tune.engine.config"),
        ("methods.adept", "from .. import engine", "adept_tune.engine"),
        ("methods.__init__", "from ..backbones import Backbone", "adept_tune.backbones.Backbone"),
        (
            "backbones.load",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from adept_tune.tasks import Task",
            "adept_tune.tasks.Task",
        ),
        ("tasks.rows", "import adept_tune.tracking.base", "adept_tune.tracking.base"),
        ("engine.engine", "from adept_tune.tuning import host", "adept_tune.tuning.host"),
        ("engine.engine", "from adept_tune import adapter", "adept_tune.adapter"),
        ("tracking.writer", "from adept_tune.engine import state", "adept_tune.engine.state"),
        ("tracking.writer", "from adept_tune.adapter import load_adapter", "adept_tune.adapter.load_adapter"),
        ("tracking.served_adapter", "from adept_tune.console import Console", "adept_tune.console.Console"),
        ("errors", "from adept_tune.tasks import Task", "adept_tune.tasks.Task"),
        ("tuning.search", "from adept_tune.search import main", "adept_tune.search.main"),
    ],
)
def test_an_import_against_an_arrow_is_found(module: str, source: str, imported: str) -> None:
    assert faults_of({module: source}) == [f"{module} -> {imported}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tuning.host", "import ray\nfrom adept_tune.engine.engine import Engine\nfrom adept_tune import tracking"),
        ("tracking.served_adapter", "import mlflow\nfrom adept_tune import load_adapter"),
        ("search", "from adept_tune.tuning.search import run_search"),
        ("methods.adept", "import torch, raypack\nfrom adept_tune.methods.base import Method\nfrom . import base"),
        ("backbones.load", "from adept_tune import hub\nfrom adept_tune.errors import BackboneError"),
    ],
)
def test_an_import_along_an_arrow_is_not_found(module: str, source: str) -> None:
    assert faults_of({module: source}) == []


def loaded_by(statement: str) -> set[str]:
    """Modules at the top level that a fresh process holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"torch", "ray", "mlflow", "transformers", "datasets", "optuna", "numpy", "pydantic"}
    loaded = loaded_by("import adept_tune, adept_tune.search, adept_tune.retrain, adept_tune.predict, adept_tune.tasks")
    assert "adept_tune" in loaded
    assert not loaded & heavy


def test_a_trial_process_loads_ray_and_no_torch() -> None:
    loaded = loaded_by("import adept_tune.tuning.trial")
    assert "ray" in loaded
    assert not loaded & {"torch", "transformers", "mlflow", "datasets"}


def test_asking_for_load_adapter_does_not_load_torch_yet() -> None:
    loaded = loaded_by("from adept_tune import load_adapter")
    assert not loaded & {"torch", "ray"}
