"""The examples do what they say, on every runner."""

from __future__ import annotations

import ast
import csv
import importlib.util
import io
import json
import logging
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from turnout import flow

TOP = Path(__file__).parents[1]
RUNNERS = ("sequential", "thread", "process", "executor")
CLUSTERS = [pytest.param(word, marks=pytest.mark.cluster) for word in ("dask?n_workers=2", "ray?num_cpus=2")]
LIMIT = 24


def load(name: str) -> ModuleType:
    """Import an example under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", TOP / "examples" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def turnout(*arguments: object, hidden: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does; a hidden package looks as if it were not installed."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({hidden.split()!r}))"
    command = [sys.executable, "-c", f"{hide}; from turnout.cli import main; sys.exit(main())", *map(str, arguments)]
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=50, check=False)


def run_census(folder: Path, *arguments: str, hidden: str = "") -> subprocess.CompletedProcess[str]:
    """Count the first modules of the library."""
    ended = turnout(
        *("run", "examples/census.py:census", "-p", f"output={folder}", "-p", f"limit={LIMIT}"),
        *arguments,
        hidden=hidden,
    )
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.fixture(scope="module")
def census() -> ModuleType:
    return load("census")


@pytest.fixture
def tutorial() -> ModuleType:
    return load("tutorial")


@pytest.fixture(scope="module")
def expected(census: ModuleType) -> bytes:
    """The table of the first modules, made without a runner."""
    root = Path(census.sysconfig.get_path("stdlib"))
    modules = tuple(census.measure(path, root) for path in census.find_files(root)[:LIMIT])
    importers = census.Counter(name for module in modules for name in module.imports)
    table: bytes = census.as_csv(census.Census(modules, importers))
    return table


# The census


@pytest.mark.parametrize("runner", [*RUNNERS, *CLUSTERS])
def test_census_writes_the_same_bytes_on_every_runner(runner: str, expected: bytes, tmp_path: Path) -> None:
    ended = run_census(tmp_path, "--runner", runner)
    assert (tmp_path / "census.csv").read_bytes() == expected
    assert (tmp_path / "census.png").read_bytes().startswith(b"\x89PNG")
    assert "most complex modules" in ended.stdout
    assert f"modules {LIMIT}" in ended.stdout


def test_census_without_matplotlib_still_writes_the_table(expected: bytes, tmp_path: Path) -> None:
    ended = run_census(tmp_path, "--runner", "thread", hidden="matplotlib")
    assert (tmp_path / "census.csv").read_bytes() == expected
    assert not (tmp_path / "census.png").exists()
    assert "pip install matplotlib" in ended.stdout


@pytest.mark.parametrize("runner", [*RUNNERS, *CLUSTERS])
def test_the_spans_of_a_census_are_written_to_a_file(runner: str, expected: bytes, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    path = tmp_path / "spans.jsonl"
    command = [sys.executable, str(TOP / "examples" / "spans.py"), runner, str(path), str(LIMIT)]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=50, check=True)
    spans = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    flows = [span for span in spans if span["parent_id"] is None]
    assert [span["name"] for span in flows] == ["census"]
    calls = Counter(span["name"] for span in spans if span["parent_id"] == flows[0]["context"]["span_id"])
    assert calls == {"parse": LIMIT, "merge": LIMIT - 1, "draw": 1}
    assert (tmp_path / "spans.census" / "census.csv").read_bytes() == expected


def test_census_draws_the_same_picture_twice(census: ModuleType) -> None:
    pytest.importorskip("matplotlib")
    module = census.Module("package.module", 100, 3, 2, 17, ("os", "package.module"))
    result = census.Census((module, census.Module("os", 900)), census.Counter(module.imports))
    assert census.picture(result) == census.picture(result)


def test_census_knows_the_whole_library(census: ModuleType) -> None:
    root = Path(census.sysconfig.get_path("stdlib"))
    names = [census.module_name(path, root) for path in census.find_files(root)]
    assert names == sorted(set(names))
    assert {"abc", "asyncio", "asyncio.events", "concurrent.futures.thread"} <= set(names)
    assert not {"site-packages", "pip", "pytest"} & {name.partition(".")[0] for name in names}


SOURCE = """
import os.path, sys
from . import sibling, constant
from ..top import thing
from xml.dom import minidom

class One:
    def method(self, values):
        if values and sys or os:                        # 3
            return [v for v in values if v if not v]    # 3
        assert values                                   # 1
        for value in values:                            # 1
            while value:                                # 1
                value -= 1
        return 1 if values else 2                       # 1

async def two(value):
    try:
        async for one in value: pass                    # 1
    except ValueError:                                  # 1
        pass
    else:
        pass
    match value:
        case 1: pass                                    # 1
        case str() if value: pass                       # 1
        case other: pass
"""


def library(root: Path) -> Path:
    """Write a small library, and return its most telling file."""
    package = root / "top" / "package"
    package.mkdir(parents=True)
    for path in (root / "os.py", package.parent / "__init__.py", package / "__init__.py", package / "sibling.py"):
        path.write_text("constant = 1\n")
    (package / "module.py").write_text(SOURCE)
    return package / "module.py"


def test_census_counts_as_it_says(census: ModuleType, tmp_path: Path) -> None:
    module = census.measure(library(tmp_path), tmp_path)
    assert module.name == "top.package.module"
    assert module.lines == len(SOURCE.splitlines())
    assert (module.functions, module.classes, module.problem) == (2, 1, "")
    assert module.complexity == 14 + 2 + 1
    assert module.imports == ("os", "sys", "top", "top.package", "top.package.sibling", "xml")


def test_census_resolves_imports_inside_of_a_package_file(census: ModuleType, tmp_path: Path) -> None:
    file = library(tmp_path).with_name("__init__.py")
    file.write_text("from .sibling import *\nfrom ..... import nothing\n")
    module = census.measure(file, tmp_path)
    assert module.name == "top.package"
    assert module.imports == ("nothing", "top.package.sibling")


def test_census_lists_what_does_not_parse(census: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_bytes(b"# coding: uft-8\nprint 1\n")
    parts = census.parse.fn(tmp_path / "broken.py", tmp_path)
    assert parts.modules == (census.Module("broken", 2, problem="SyntaxError: unknown encoding: uft-8"),)
    assert census.totals(parts)["not_parsed"] == 1
    (row,) = csv.DictReader(io.StringIO(census.as_csv(parts).decode()))
    assert row["problem"] == "SyntaxError: unknown encoding: uft-8"


# The tutorial


class Facts(BaseHTTPRequestHandler):
    """Answers with a fact, after so many failures as the server has left."""

    def do_GET(self) -> None:
        assert isinstance(self.server, FactServer)
        self.server.asked += 1
        self.send_response(503 if self.server.asked <= self.server.failures else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"fact": "Cats sleep.", "length": 11}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


class FactServer(ThreadingHTTPServer):
    asked = 0
    failures = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/fact"


@pytest.fixture
def facts() -> Iterator[FactServer]:
    with FactServer(("127.0.0.1", 0), Facts) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield server
        server.shutdown()
        serving.join()


def test_tutorial_changes_imports_only() -> None:
    tree = ast.parse((TOP / "examples" / "tutorial.py").read_text())
    ours = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("turnout")
        for alias in node.names
    }
    assert ours == {"flow": "turnout", "task": "turnout", "SequentialTaskRunner": "turnout_runners.sequential"}


def test_tutorial_fetches_json(
    tutorial: ModuleType,
    facts: FactServer,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.INFO):
        assert tutorial.api_flow(facts.url) == "Cats sleep."
    assert capsys.readouterr().out == "200\nCats sleep.\n"
    assert "Task run 'My Example Task-0' - Finished in state Completed()" in caplog.messages
    assert "Task run 'parse_fact-0' - Finished in state Completed()" in caplog.messages
    assert caplog.messages[-1].endswith("Finished in state Completed()")


def test_tutorial_describes_its_flow_and_task(tutorial: ModuleType) -> None:
    assert (tutorial.api_flow.name, tutorial.api_flow.description) == (
        "My Example Flow",
        "An example flow for a tutorial.",
    )
    assert (tutorial.call_api.name, tutorial.call_api.description) == (
        "My Example Task",
        "An example task for a tutorial.",
    )


def test_tutorial_task_is_tried_again(tutorial: ModuleType, facts: FactServer) -> None:
    facts.failures = 5
    impatient = tutorial.call_api.with_options(retry_delay_seconds=0)
    fetch = flow(lambda: impatient.submit(facts.url).result()["fact"])
    assert fetch() == "Cats sleep."
    assert facts.asked == 6


def test_tutorial_tasks_print_at_the_same_time(tutorial: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    # A pause ends when both tasks are in one, for as long as the shorter of them still has values.
    together = threading.Barrier(2, timeout=30)
    seen = threading.local()

    def pause(_: float) -> None:
        seen.pauses = getattr(seen, "pauses", 0) + 1
        if seen.pauses <= 10:
            together.wait()

    tutorial.time = SimpleNamespace(sleep=pause)  # type: ignore[attr-defined]
    tutorial.my_flow()
    printed = capsys.readouterr().out
    assert (printed.count("AAAA"), printed.count("BBBB")) == (15, 10)
    assert printed.index("BBBB") < printed.rindex("AAAA")


def test_tutorial_sequential_flow_prints_in_order(
    tutorial: ModuleType, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = set()
    tutorial.time = SimpleNamespace(sleep=lambda _: threads.add(threading.get_ident()))  # type: ignore[attr-defined]
    with caplog.at_level(logging.INFO):
        tutorial.my_sequential_flow()
    assert threads == {threading.get_ident()}
    assert capsys.readouterr().out == "AAAA\r" * 15 + "BBBB\r" * 10
    finished = [message for message in caplog.messages if message.startswith("Task run")]
    assert finished == [f"Task run 'Sequential Task-{index}' - Finished in state Completed()" for index in range(2)]


@pytest.mark.parametrize("runner", [*RUNNERS, *CLUSTERS])
def test_tutorial_runs_from_the_command_line(runner: str, facts: FactServer) -> None:
    ended = turnout("run", "examples/tutorial.py:api_flow", "--runner", runner, "-p", f"url={facts.url}")
    assert ended.returncode == 0, ended.stderr
    assert "Cats sleep." in ended.stdout
    assert "Finished in state Completed()" in ended.stderr
