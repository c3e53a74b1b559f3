"""What Turnout offers by name: all of it is there, nothing else is, and each thing says what it is for."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

import turnout
import turnout.errors

PUBLIC_MODULES = ["turnout", "turnout.errors", "turnout.registry", "turnout.runner", "turnout.worker"]

PROMISED = [
    "Flow",
    "State",
    "StateType",
    "Task",
    "TaskFuture",
    "TaskRunner",
    "__version__",
    "allow_failure",
    "as_completed",
    "cancelled",
    "exponential_backoff",
    "flow",
    "get_run_context",
    "get_run_logger",
    "quote",
    "register_context_variable",
    "tags",
    "task",
    "unmapped",
    "use_runner",
    "wait",
]


def public_names(module: ModuleType) -> list[str]:
    names: list[str] = module.__all__
    return names


@pytest.mark.parametrize("name", [*PROMISED, *turnout.errors.__all__])
def test_promised_name_is_offered(name: str) -> None:
    assert hasattr(turnout, name)
    assert name in public_names(turnout)


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_all_is_true(name: str) -> None:
    module = importlib.import_module(name)
    names = public_names(module)
    assert [missing for missing in names if not hasattr(module, missing)] == []
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_star_import_gives_all(name: str) -> None:
    namespace: dict[str, object] = {}
    exec(f"from {name} import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(public_names(importlib.import_module(name)))


def test_the_front_offers_nothing_that_it_does_not_list() -> None:
    unlisted = [
        name
        for name, value in vars(turnout).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name not in public_names(turnout)
    ]
    # What the imports for annotations leave.
    assert [name for name in unlisted if name not in {"annotations", "TYPE_CHECKING"}] == []


def test_what_few_programs_use_is_loaded_when_they_use_it() -> None:
    # It took a fifth of the time of the import.
    slow = {"asyncio", "json", "pathlib", "statistics", "importlib.metadata", "turnout.events", "turnout._folding"}
    program = f"import sys, turnout; print(sorted({slow} & sys.modules.keys())); print(turnout.events.VERSION)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["[]", str(turnout.events.VERSION)]


def test_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert turnout.__version__ == version("turnout")


def public_things() -> Iterator[tuple[str, object]]:
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        for name in public_names(module):
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isroutine(thing):
                yield f"{module_name}.{name}", thing


def methods(cls: type) -> Iterator[tuple[str, object]]:
    for name, member in vars(cls).items():
        if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
            yield name, member


THINGS = dict(public_things())


@pytest.mark.parametrize("name", THINGS)
def test_public_thing_says_what_it_is_for(name: str) -> None:
    thing = THINGS[name]
    bare = [] if inspect.getdoc(thing) else [name]
    if isinstance(thing, type):
        bare += [f"{name}.{member}" for member, value in methods(thing) if not inspect.getdoc(value)]
    assert bare == []


@pytest.mark.parametrize("name", [name for name, thing in THINGS.items() if inspect.isfunction(thing)])
def test_public_function_is_typed(name: str) -> None:
    signature = inspect.signature(THINGS[name])  # type: ignore[arg-type]
    assert signature.return_annotation is not inspect.Signature.empty
    untyped = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
    assert untyped == []


def test_errors_form_one_tree() -> None:
    for name in turnout.errors.__all__:
        error = getattr(turnout.errors, name)
        assert issubclass(error, turnout.errors.TurnoutError)
        assert name in str(turnout.errors.__doc__), "draw it in the tree at the top of turnout.errors"
