"""Who may import whom, read from the source; and what an import of Turnout costs."""

from __future__ import annotations

import ast
import collections
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
CORE: Final = ROOT / "core"
RUNNERS: Final = ROOT / "runners"

# The ground is at the top of this list: a module may import those above it, never those below.
FLOORS: Final = (
    # What all others stand on.
    "_version",
    "errors",
    "_secrets",
    "_html",
    "_state",
    "_locks",
    "_forks",
    "_alarms",
    "_timers",
    "_stop",
    "_wakeups",
    "_signals",
    "_event_stream",
    "_places",
    "events",
    "_event_rows",
    "_onlookers",
    "_tally",
    "progress",
    "_spans",
    "_resources",
    "_machine",
    "_sockets",
    # What travels.
    "_copies",
    "_scripts",
    "_parts",
    "_serialization",
    "_exceptions",
    "_tracebacks",
    "_failures",
    # The contract, and how a word leads to who keeps it.
    "_cluster",
    "runner",
    "_options",
    "_installed",
    "registry",
    # What a call is, and what waits for it.
    "_context",
    "otel",
    "_prints",
    "_forwarding",
    "_waiting",
    "_future",
    "_collections",
    "_arguments",
    "_call",
    "_telling",
    "_map",
    # Where a call runs.
    "_streams",
    "_shipment",
    "_reused",
    "_together",
    "_bodies",
    "_remote_scope",
    "worker",
    # What becomes of it.
    "_ending",
    "_stopping",
    "_scopes",
    "_circles",
    "_joining",
    "_winding_up",
    "_decorated",
    "_call_notes",
    "_engine",
    "_attempts",
    # How it gets to its runner.
    "_loops",
    "_trips",
    "_shared",
    "_packed_arguments",
    "_packing",
    "_dispatch",
    "_early",
    "_queue",
    "_batching",
    "_portion",
    "_prepared",
    "_inline",
    "_flight",
    "_window",
    "_backends",
    # What is drawn.
    "_units",
    "_graph_records",
    "_folding",
    "_mermaid",
    "_dot",
    "_graph",
    # What users write.
    "_choice",
    "_nested",
    "_unknown",
    "_recording",
    "_recorder",
    "_log_events",
    "_event_file",
    "_session",
    "_flow_story",
    "_flow_run",
    "_dry_run",
    "_task",
    "_flow",
    "__init__",
    # What stands beside it.
    "history",
    "testing",
    "cli",
    "__main__",
)

# What has to climb, and does so when it is called, not when it is loaded: a runner's `with` block opens an engine, and
# so does a task that submits others where no engine is, in a worker.
STAIRS: Final = {("runner", "_session"), ("_remote_scope", "_nested")}

# What an area may import beside the standard library: always, or only within functions.
CORE_LIBRARIES: Final = {
    "": {"cloudpickle"},
    "cli": {"click", "cloudpickle", "rich"},
    "progress": {"rich"},
    "testing": {"cloudpickle", "pytest"},
}
CORE_OPTIONAL: Final = {
    "": {"opentelemetry", "pydantic"},
    "history": {"bokeh", "jinja2", "networkx", "numpy"},
    "progress": {"IPython"},
    "testing": {"numpy"},
}
RUNNER_LIBRARIES: Final = {"dask": {"cloudpickle", "dask", "distributed"}, "ray": {"ray"}}

# Those with workers of their own pack values and failures by themselves.
INTIMATE: Final = {
    "dask": {
        "turnout._cluster",
        "turnout._copies",
        "turnout._context",
        "turnout._failures",
        "turnout._resources",
        "turnout._scripts",
        "turnout._secrets",
        "turnout._serialization",
        "turnout._stop",
        "turnout._streams",
        "turnout._version",
    },
    "ray": {
        "turnout._cluster",
        "turnout._copies",
        "turnout._failures",
        "turnout._resources",
        "turnout._scripts",
        "turnout._secrets",
        "turnout._serialization",
        "turnout._stop",
        "turnout._streams",
        "turnout._timers",
        "turnout._version",
    },
    "process": {"turnout._failures", "turnout._serialization", "turnout._streams", "turnout._version"},
    # Looks at its workers from time to time.
    "executor": {"turnout._timers"},
    "thread": {"turnout._locks"},
}


class Import(NamedTuple):
    """One module that one line imports."""

    path: Path
    line: int
    module: str
    when: Literal["always", "late", "typing"]

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module} ({self.when})"


def sources(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def imports(path: Path, root: Path) -> Iterator[Import]:
    """Yield what a module imports: as it is loaded, within functions, or for type checkers only."""
    package = path.relative_to(root).parent.parts
    return _walk(ast.parse(path.read_text()), path, package, "always")


def _walk(
    node: ast.AST, path: Path, package: tuple[str, ...], when: Literal["always", "late", "typing"]
) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(path, node.lineno, alias.name, when) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (Import(path, node.lineno, module, when) for module in _origins(node, package))
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        when = "typing"
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and when == "always":
        when = "late"
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, path, package, when)


def _origins(node: ast.ImportFrom, package: tuple[str, ...]) -> Iterator[str]:
    above = package[: len(package) - node.level + 1] if node.level else ()
    origin = ".".join((*above, *filter(None, [node.module])))
    for alias in node.names:
        # `from turnout import _call` imports a module, `from turnout import flow` a name.
        inner = f"{origin}.{alias.name}"
        yield inner if _is_module(inner) else origin


def _is_module(name: str) -> bool:
    path = name.replace(".", "/")
    places = [root / f"{path}{ending}" for root in (CORE, RUNNERS) for ending in (".py", "/__init__.py")]
    return any(place.exists() for place in places)


def core_imports() -> list[Import]:
    return [found for path in sources(CORE / "turnout") for found in imports(path, CORE)]


def runner_imports() -> list[Import]:
    return [found for path in sources(RUNNERS / "turnout_runners") for found in imports(path, RUNNERS)]


def area(found: Import, package: Path) -> str:
    """Return the subpackage that imports, or nothing for the package itself."""
    parts = found.path.relative_to(package).parts
    return parts[0] if len(parts) > 1 else ""


def floor(name: str) -> int:
    """Return on which floor a module of core is: `cli` for all of `turnout.cli`."""
    parts = name.split(".")
    return FLOORS.index(parts[1] if len(parts) > 1 else "__init__")


def own_name(path: Path) -> str:
    """Return the name of the module of core that a file holds."""
    parts = path.relative_to(CORE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def listed(violations: list[Import]) -> str:
    return "\n".join(map(str, violations))


def test_there_is_source_to_look_at() -> None:
    assert len(core_imports()) > 50
    assert len(runner_imports()) > 10


def is_allowed(found: Import) -> bool:
    here = area(found, CORE / "turnout")
    optional = CORE_OPTIONAL.get(here, set()) if found.when != "always" else set()
    return found.top in {"turnout", *sys.stdlib_module_names, *CORE_LIBRARIES.get(here, ()), *optional}


def test_core_imports_the_standard_library_and_cloudpickle_only() -> None:
    violations = [found for found in core_imports() if not is_allowed(found)]
    assert not violations, listed(violations)


def test_runners_import_turnout_and_their_own_library_only() -> None:
    violations = [
        found
        for found in runner_imports()
        if found.top not in sys.stdlib_module_names | {"turnout", "turnout_runners"}
        if found.top not in RUNNER_LIBRARIES.get(area(found, RUNNERS / "turnout_runners"), set())
    ]
    assert not violations, listed(violations)


def test_no_runner_imports_another_save_the_base_in_executor() -> None:
    violations = []
    for found in runner_imports():
        other = found.module.split(".")[1:2]
        own = area(found, RUNNERS / "turnout_runners")
        if found.top == "turnout_runners" and other not in ([own], ["executor"]):
            violations.append(found)
    assert not violations, listed(violations)


def test_runners_use_what_a_stranger_may_use() -> None:
    violations = []
    for found in runner_imports():
        intimate = INTIMATE.get(area(found, RUNNERS / "turnout_runners"), set())
        if found.module.startswith("turnout._") and found.module not in intimate:
            violations.append(found)
    assert not violations, listed(violations)


def test_every_module_of_core_has_its_floor() -> None:
    modules = {path.relative_to(CORE / "turnout").parts[0].removesuffix(".py") for path in sources(CORE / "turnout")}
    assert modules == set(FLOORS), "give each module of core its place in FLOORS"


def climbs() -> Iterator[tuple[Import, tuple[str, str]]]:
    for found in core_imports():
        here, there = floor(own_name(found.path)), floor(found.module) if found.top == "turnout" else -1
        if there > here and found.when != "typing":
            yield found, (FLOORS[here], FLOORS[there])


def test_imports_of_core_run_one_way() -> None:
    violations = [found for found, step in climbs() if found.when == "always" or step not in STAIRS]
    assert not violations, listed(violations)


def test_every_stair_is_needed() -> None:
    assert {step for _, step in climbs()} >= STAIRS


@pytest.mark.parametrize(
    "statement",
    [
        "import turnout",
        "import turnout.registry; turnout.registry.known()",
        "import turnout.otel, turnout.progress; turnout.progress.can_be_live()",
        "from turnout_runners.thread import ThreadPoolTaskRunner",
        "from turnout_runners.process import ProcessPoolTaskRunner",
    ],
)
def test_import_is_light(statement: str) -> None:
    heavy = {
        "bokeh",
        "click",
        "networkx",
        "rich",
        "IPython",
        "opentelemetry",
        "pytest",
        "pydantic",
        "numpy",
        "dask",
        "distributed",
        "ray",
        "loky",
    }
    script = f"import sys; {statement}; print(*sorted({heavy!r} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert ended.stdout.split() == []


def test_names_of_test_files_are_unique() -> None:
    """One run of mypy looks at all of them, and knows them by their file's name."""
    folders = (CORE / "tests", RUNNERS / "tests", ROOT / "integration_tests")
    names = collections.Counter(path.name for folder in folders for path in folder.glob("*.py"))
    assert [name for name, count in names.items() if count > 1] == []
    assert [path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/conftest.py") if ".venv" not in str(path)] == [
        "integration_tests"
    ]


@pytest.mark.timeout(600)
def test_core_passes_with_only_core_on_the_path() -> None:
    # Without `site` no .pth file is read, so an editable install does not bring the runners in. Its metadata is still
    # found: the words are registered and what they name is not there, which must hurt no test of core.
    libraries = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(CORE), *libraries])}
    absent = "import importlib.util, sys; sys.exit(importlib.util.find_spec('turnout_runners') is not None)"
    subprocess.run([sys.executable, "-S", "-c", absent], env=environment, cwd=ROOT, check=True, timeout=30)
    command = [
        sys.executable,
        "-S",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        str(CORE / "tests"),
    ]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
