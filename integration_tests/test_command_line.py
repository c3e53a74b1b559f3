"""The ``turnout`` command as a user types it: exit status, the one line of an error, and which stream gets what."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import pytest

import turnout
from integration_tests.commands import Ended, turnout_command
from turnout import events
from turnout.cli import main

WORDS: Final = ("sequential", "thread", "process", "executor")
CLUSTERS: Final = [pytest.param(word, marks=pytest.mark.cluster) for word in ("dask?n_workers=2", "ray?num_cpus=2")]

STATIONS: Final = '''
"""Stations along a line."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from turnout import flow, get_run_logger, task


@dataclass
class Station:
    name: str
    stop: int


@task
def build(name: str, stop: int) -> Station:
    # In one piece: print writes the end of a line apart, and another thread's text may come between.
    print(f"building {name}\\n", end="")
    get_run_logger().info("at %s", name)
    return Station(name, stop)


@task
def derail(speed: int) -> None:
    raise ValueError(f"too fast: {speed}")


@flow
def line(names: list[str], first: int = 1, title: str = "line", log: Path | None = None) -> list[Station]:
    futures = build.map(names, range(first, first + len(names)))
    print(f"title {title}\\n", end="")
    if log:
        log.write_text(title)
    return [future.result() for future in futures]


@flow
def count(upto: int = 3, factor=1):
    return {"total": sum(range(upto)) * factor, "kind": type(factor).__name__}


@flow(name="Crash")
def crash(speed: int = 90):
    return derail.submit(speed).result()


@flow
def quiet():
    pass


@flow
def greeting(name: str = "you", excited: bool = False) -> str:
    return f"hello {name}" + "!" * excited


@flow
async def later(number: int) -> int:
    return number + 1


@flow
def steps(upto: int):
    yield from range(upto)


not_a_flow = 3
'''


def run(*arguments: str | Path, cwd: Path) -> Ended:
    return turnout_command("run", *arguments, cwd=cwd)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stations.py").write_text(STATIONS)
    return tmp_path


class Here(Protocol):
    def __call__(self, *arguments: str) -> Ended: ...


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    """Run the command in this process, which is ten times as fast, and undo what it did to it."""
    root, ours = logging.getLogger(), logging.getLogger("turnout")
    level = ours.level
    monkeypatch.chdir(folder)
    monkeypatch.delenv("TURNOUT_TASK_RUNNER", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(root, "handlers", [])

    def command(*arguments: str) -> Ended:
        status = main(arguments)
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    yield command
    ours.setLevel(level)
    for name in ("stations", *(Path(file).stem for file in BROKEN)):
        sys.modules.pop(name, None)


# What a flow gives


@pytest.mark.parametrize("word", WORDS)
def test_a_flow_runs_on_each_runner(folder: Path, word: str) -> None:
    ended = run("stations.py:line", "--runner", word, "-p", 'names=["Aa", "Bb"]', cwd=folder)
    assert ended.status == 0, ended.err
    assert ended.out.splitlines()[-1] == "[Station(name='Aa', stop=1), Station(name='Bb', stop=2)]"
    assert sorted(ended.out.splitlines()[:-1]) == ["building Aa", "building Bb", "title line"]
    lines = [line for line in ended.err.splitlines() if "build-" in line]
    pattern = re.compile(r"\d\d:\d\d:\d\d\.\d{3} \| INFO \| Task run 'build-[01]' - (at \w\w|Finished in state .*)")
    assert [line for line in lines if not pattern.fullmatch(line)] == []
    assert sum("- at " in line for line in lines) == 2
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("word", WORDS)
def test_json_is_all_that_standard_output_holds(folder: Path, word: str) -> None:
    ended = run("stations.py:line", "--runner", f"{word}", "-p", 'names=["Aa"]', "--json", cwd=folder)
    assert ended.status == 0, ended.err
    record = json.loads(ended.out)
    assert ended.out.count("\n") == 1
    assert record["flow"] == "line"
    assert record["state"] == "Completed"
    assert record["error"] is None
    assert record["result"] == "[Station(name='Aa', stop=1)]"
    assert 0 < record["seconds"] < 50
    assert "building Aa" in ended.err
    assert "title line" in ended.err


@pytest.mark.parametrize("word", WORDS)
def test_a_failed_flow_shows_the_task_and_none_of_us(folder: Path, word: str) -> None:
    ended = run("stations.py:crash", "--runner", word, "--log-level", "critical", cwd=folder)
    assert ended.status == 1
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    error, note, last = lines[-3:]
    assert error == "ValueError: too fast: 90"
    worker = r", on \S+:\d+" if word == "process" else ""
    assert re.fullmatch(rf"In task run 'derail-0': derail\(speed=90\), attempt 1{worker}\.", note)
    assert last == "turnout: flow 'Crash' ended Failed: ValueError: too fast: 90"
    assert '    raise ValueError(f"too fast: {speed}")' in lines
    assert "in derail" in ended.err
    files = set(re.findall(r'File "([^"]+)"', ended.err))
    assert files == {str(folder / "stations.py")}


def test_events_are_written_of_a_flow_that_fails(folder: Path) -> None:
    ended = run("stations.py:crash", "--runner", "process", "--events", "events.jsonl", cwd=folder)
    assert ended.status == 1
    told = list(events.read(folder / "events.jsonl"))
    (finished,) = (event for event in told if isinstance(event, events.FlowFinished))
    assert (finished.state, finished.message) == ("Failed", "ValueError: too fast: 90")
    (call,) = (event for event in told if isinstance(event, events.CallFinished))
    assert (call.name, call.state) == ("derail-0", "Failed")


def test_events_that_cant_be_written_are_a_wrong_command(folder: Path) -> None:
    ended = run("stations.py:quiet", "--events", "nowhere/events.jsonl", cwd=folder)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("turnout: error: Events can't be written to 'nowhere/events.jsonl': No such file")


@pytest.mark.parametrize("word", WORDS)
def test_a_failed_flow_in_json(folder: Path, word: str) -> None:
    ended = run("stations.py:crash", "--runner", word, "--json", "-p", "speed=5", cwd=folder)
    assert ended.status == 1
    record = json.loads(ended.out)
    assert record["state"] == "Failed"
    assert record["result"] is None
    assert record["error"]["type"] == "ValueError"
    assert record["error"]["message"] == "too fast: 5"
    assert "in derail" in record["error"]["traceback"]


def test_json_tells_run_and_runner(folder: Path) -> None:
    first, second = (
        json.loads(run("stations.py:quiet", "--json", "--runner", word, cwd=folder).out)
        for word in ("thread:3", "sequential")
    )
    assert first["flow_run_id"]
    assert first["runner"] == "ThreadPoolTaskRunner(max_workers=3)"
    assert second["runner"] == "SequentialTaskRunner()"
    assert first["flow_run_id"] != second["flow_run_id"]
    assert (first["result"], first["error"]) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        (["stations.py:quiet"], ""),
        (["stations.py:greeting"], "hello you\n"),
        (["stations.py:greeting", "-p", "name=12", "-p", "excited=yes"], "hello 12!\n"),
        (["stations.py:count"], "{'total': 3, 'kind': 'int'}\n"),
        (["stations.py:count", "-p", "upto=2", "-p", "factor=2.5"], "{'total': 2.5, 'kind': 'float'}\n"),
        (["stations.py:count", "-p", "upto=2", "-p", "factor=ab"], "{'total': 'ab', 'kind': 'str'}\n"),
        (["stations.py:later", "-p", "number=2"], "3\n"),
        (["stations.py:steps", "-p", "upto=3"], "[0, 1, 2]\n"),
        (["stations:greeting"], "hello you\n"),
        (["./stations.py:greeting"], "hello you\n"),
    ],
)
def test_a_value_is_printed_and_parameters_are_read(here: Here, arguments: list[str], out: str) -> None:
    ended = here("run", *arguments, "--runner", "sequential")
    assert (ended.status, ended.out) == (0, out), ended.err


def test_the_log_level_is_the_least_that_is_shown(folder: Path) -> None:
    assert run("stations.py:greeting", "--log-level", "WARNING", cwd=folder).err == ""


@pytest.mark.parametrize("runner", ["process", *CLUSTERS])
def test_a_file_in_another_folder_finds_its_neighbours(folder: Path, runner: str) -> None:
    deep = folder / "deep"
    deep.mkdir()
    (deep / "tools.py").write_text("SPEED = 7\n")
    (deep / "go.py").write_text(
        "import tools\nfrom turnout import flow, task\n@task\ndef speed():\n    return tools.SPEED, __name__\n"
        "@flow\ndef go():\n    return speed.submit()\n"
    )
    ended = run("deep/go.py", "--runner", runner, cwd=folder)
    assert (ended.status, ended.out) == (0, "(7, 'go')\n"), ended.err


@pytest.mark.parametrize("name", ["queue.py", "my-flow.py", "click.py"])
@pytest.mark.parametrize("word", ["process", "thread"])
def test_a_file_whose_name_is_taken_or_none_still_travels(folder: Path, name: str, word: str) -> None:
    """A script called like a module of the standard library must not take its place."""
    # Not in the current folder, for `python -m turnout` puts that first on the path before we are asked.
    (folder / "scripts").mkdir()
    (folder / "scripts" / name).write_text(
        "from turnout import flow, task\nclass Part:\n    size = 2\n@task\ndef half(part):\n    return part.size / 2\n"
        "@flow\ndef go():\n    import queue\n    return half.submit(Part()).result(), hasattr(queue, 'Queue')\n"
    )
    ended = run(f"scripts/{name}:go", "--runner", word, cwd=folder)
    assert (ended.status, ended.out) == (0, "(1.0, True)\n"), ended.err


@pytest.mark.parametrize("how", ["option", "environment"])
def test_which_word_wins(folder: Path, how: str) -> None:
    (folder / "who.py").write_text(
        "import threading\nfrom turnout import flow, task\n"
        "@task\ndef where():\n    return threading.current_thread() is threading.main_thread()\n"
        "@flow(task_runner='thread')\ndef who():\n    return where.submit().result()\n"
    )
    environment = {"TURNOUT_TASK_RUNNER": "sequential" if how == "environment" else "process"}
    options = ["--runner", "sequential"] if how == "option" else []
    ended = turnout_command("run", "who.py", *options, cwd=folder, environment=environment)
    assert (ended.status, ended.out) == (0, "True\n"), ended.err


def test_logging_that_a_file_sets_up_is_left_alone(folder: Path) -> None:
    (folder / "own.py").write_text(
        "import logging\nfrom turnout import flow\nlogging.basicConfig(format='OWN %(message)s')\n"
        "@flow\ndef go():\n    pass\n"
    )
    ended = run("own.py", cwd=folder)
    assert ended.status == 0
    assert ended.err.splitlines()
    assert all(line.startswith("OWN ") for line in ended.err.splitlines())


# What can't be carried out


BROKEN: Final = {
    "syntax.py": "x = 1\ndef f(:\n",
    "missing.py": "import math\n\nimport no_such\n",
    "raising.py": "def f():\n    raise ValueError('two\\nlines')\nf()\n",
    "leaving.py": "import sys\nsys.exit(3)\n",
    "relative.py": "from . import tools\n",
    "empty.py": "",
    "one.py": "from turnout import flow\n@flow(task_runner='thred')\ndef go():\n    return 1\n",
}


FLOWS: Final = "The flows in stations.py: line, count, crash, quiet, greeting, later, steps"
RELATIVE: Final = "ImportError: attempted relative import with no known parent package ({folder}/relative.py, line 1)"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere.py"], "nowhere.py: no such file"),
        (["nowhere.py:line"], "nowhere.py: no such file"),
        (["station.py:line"], "station.py: no such file; did you mean stations.py?"),
        (["."], "'.' is a folder; give the file in it, as in FILE.py:flow"),
        (["deep/nowhere.py"], "deep/nowhere.py: no such file"),
        (["nowhere:line"], "no module named 'nowhere'"),
        (["nowhere.deep:line"], "no module named 'nowhere'"),
        (["syntax.py:f"], "{folder}/syntax.py, line 2: invalid syntax: def f(:"),
        (
            ["missing.py:f"],
            "missing.py can't be loaded: ModuleNotFoundError: No module named 'no_such' ({folder}/missing.py, line 3)",
        ),
        (["raising.py:f"], "raising.py can't be loaded: ValueError: two lines ({folder}/raising.py, line 2)"),
        (["leaving.py:f"], "leaving.py can't be loaded: SystemExit: 3 ({folder}/leaving.py, line 2)"),
        (
            ["relative.py:f"],
            "relative.py can't be loaded: {relative}; a file of a package is named as package.module:flow",
        ),
        (["empty.py"], "There is no flow in empty.py: decorate a function with @flow"),
        (["empty.py:go"], "empty.py has no 'go'. There is no flow in empty.py: decorate a function with @flow"),
        (
            ["stations.py"],
            "{flows}. Name one: stations.py:line",
        ),
        (
            ["stations.py:quite"],
            "stations.py has no 'quite'. {flows}. Did you mean stations.py:quiet?",
        ),
        (
            ["stations.py:not_a_flow"],
            "'not_a_flow' in stations.py is of type int, which is no flow. {flows}",
        ),
        (["stations.py:build"], "'build' in stations.py is of type Task, which is no flow. {flows}"),
        (
            ["stations.py:count", "-p", "up=3"],
            "flow 'count': no parameter 'up' (did you mean 'upto'?). It takes upto: int = 3, factor=1",
        ),
        (
            ["stations.py:count", "-p", "upto=many"],
            "flow 'count': parameter 'upto' is to be int, which 'many' is not. It takes upto: int = 3, factor=1",
        ),
        (["stations.py:line"], "flow 'line': give it -p names=.... It takes names: list[str], first: int = 1, "),
        (["stations.py:count", "-p", "upto"], "flow 'count': -p takes name=value, not 'upto'. It takes upto: "),
        (["stations.py:count", "--runner", "thred"], "No runner answers to 'thred'. Known: "),
        (["stations.py:count", "--runner", "thread:workers=3"], "Runner 'thread' has no option 'workers'. "),
        (["stations.py:count", "--runner", "thread:max_workers=0"], "Runner 'thread' can't be made: "),
        (["one.py"], "No runner answers to 'thred'. Known: "),
        (["stations.py:count", "--log-level", "loud"], "Invalid value for '--log-level': 'loud' is not one of"),
        ([], "Missing argument 'FILE.py:FLOW'. Try: turnout run --help"),
        (["stations.py:count", "--jsn"], "No such option '--jsn'. Did you mean '--json'? Try: turnout run "),
    ],
)
def test_a_wrong_command_is_one_line(here: Here, folder: Path, arguments: list[str], line: str) -> None:
    for name, text in BROKEN.items():
        (folder / name).write_text(text)
    ended = here("run", *arguments)
    assert (ended.status, ended.out) == (2, ""), ended.err
    expected = line.format(folder=folder, flows=FLOWS, relative=RELATIVE.format(folder=folder))
    assert ended.line.startswith(f"turnout: error: {expected}"), ended.line


def test_a_word_whose_library_is_missing_names_the_command(folder: Path) -> None:
    info = folder / "far_trams-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far-trams\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[turnout.runners]\nfar = far_trams:Tram [wires]\n")
    (folder / "far_trams.py").write_text("import certainly_missing_library\n")
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}
    ended = turnout_command("run", "stations.py:quiet", "--runner", "far", cwd=folder, environment=environment)
    assert (ended.status, ended.out) == (2, "")
    assert ended.line == (
        "turnout: error: Runner 'far' needs certainly_missing_library, which is not installed. "
        "Install it with: pip install 'far-trams[wires]'"
    )


@pytest.mark.parametrize("how", ["option", "variable"])
@pytest.mark.parametrize(
    "word",
    [
        "tls://user:open-sesame@127.0.0.1:9",
        "tram://open-sesame@head",
        "thread?token=open-sesame",
        "nothing?api_key=open-sesame",
    ],
)
def test_no_secret_of_a_word_is_shown(folder: Path, word: str, how: str) -> None:
    """Neither by the line that says what is wrong, nor by logs, tracebacks and JSON, wherever the word came from."""
    if how == "option":
        ended = run("stations.py:crash", "--runner", word, "--json", cwd=folder)
    else:
        variables = {"TURNOUT_TASK_RUNNER": word}
        ended = turnout_command("run", "stations.py:crash", "--json", cwd=folder, environment=variables)
    assert ended.status in (1, 2)
    assert "open-sesame" not in ended.out + ended.err
    assert ended.err


def test_a_wrong_command_in_json_leaves_standard_output_empty(folder: Path) -> None:
    ended = run("stations.py:nothing", "--json", cwd=folder)
    assert (ended.status, ended.out) == (2, "")
    assert ended.line.startswith("turnout: error: stations.py has no 'nothing'.")


# Graphs


# Its body prints something, if it runs.
LOUD: Final = ["stations.py:line", "-p", 'names=["Aa"]']
LINE: Final = """flowchart TD
    subgraph f0["line"]
        direction TD
        n0("build x 2")
    end
"""


def test_a_graph_is_all_that_standard_output_holds(folder: Path) -> None:
    ended = turnout_command("graph", "stations.py:line", "-p", 'names=["Aa", "Bb"]', cwd=folder)
    assert ended == Ended(0, LINE, "title line\n")


def test_a_graph_is_saved(here: Here, folder: Path) -> None:
    ended = here("graph", "stations.py:line", "-p", 'names=["Aa", "Bb"]', "-o", "line.mmd")
    assert ended == Ended(0, "title line\n", "")
    assert (folder / "line.mmd").read_text() == LINE


@pytest.mark.parametrize("arguments", [["stations.py:later", "-p", "number=2"], ["stations.py:steps", "-p", "upto=3"]])
def test_flows_of_all_kinds_have_a_graph(folder: Path, arguments: list[str]) -> None:
    name = arguments[0].partition(":")[2]
    assert turnout_command("graph", *arguments, cwd=folder) == Ended(0, f'flowchart TD\n    n0[["{name}"]]\n', "")


def test_a_body_that_looks_into_a_result_is_told_with_its_line(folder: Path) -> None:
    (folder / "looking.py").write_text(
        "from turnout import flow, task\n@task\ndef count():\n    return 3\n"
        "@flow\ndef go():\n    for number in range(count.submit().result()):\n        pass\n"
    )
    ended = turnout_command("graph", "looking.py", cwd=folder)
    assert (ended.status, ended.out) == (1, "")
    lines = ended.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "line 7, in go" in lines[1]
    assert set(re.findall(r'File "([^"]+)"', ended.err)) == {str(folder / "looking.py")}
    assert lines[-1].startswith(
        "turnout: flow 'go' can't be drawn: VisualizationError: The flow's body computes with the result of 'count-0'"
    )
    assert "@task(viz_return_value=...) on 'count'" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere.py", "-o", "graph.dot"], "nowhere.py: no such file"),
        (["stations.py:line", "-o", "graph.dot"], "flow 'line': give it -p names=.... It takes names: list[str], "),
        ([*LOUD, "-o", "graph.png"], "A graph can't be saved as 'graph.png': end the name with .mmd, "),
        (["stations.py:quiet", "-o", "no/graph.dot"], "[Errno 2] No such file or directory: 'no/graph.dot'"),
        ([*LOUD, "-o", "graph.svg"], "Pictures are drawn by Graphviz, whose program `dot` is not on "),
    ],
)
def test_a_wrong_graph_command_is_one_line(
    here: Here, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    monkeypatch.setenv("PATH", "")
    ended = here("graph", *arguments)
    assert (ended.status, ended.out) == (2, ""), ended.err
    assert ended.line.startswith(f"turnout: error: {line}"), ended.line


# Leaving early


WAITING: Final = """
import sys, time
from turnout import flow, task

@task
def forever():
    print("waiting", flush=True)
    while True:
        time.sleep(0.01)

@flow
def go():
    forever.submit().result()
"""


ASYNC_WAITING: Final = """
import asyncio
from turnout import flow

@flow
async def go():
    print("waiting", flush=True)
    await asyncio.sleep(3600)
"""

STUBBORN: Final = """
import time
from turnout import flow

@flow
def go():
    said = "waiting"
    while True:
        try:
            print(said, flush=True)
            time.sleep(3600)
        except KeyboardInterrupt:
            said = "never mind"
"""

FORGIVING: Final = """
import time
from turnout import flow

@flow
def go():
    try:
        print("waiting", flush=True)
        time.sleep(3600)
    except KeyboardInterrupt:
        return "had enough"
"""


def interrupted(folder: Path, source: str, orders: dict[str, signal.Signals], word: str = "sequential") -> Ended:
    """Run a flow and send it each signal as soon as it has printed the line before it."""
    (folder / "waiting.py").write_text(source)
    command = [sys.executable, "-m", "turnout", "run", "waiting.py:go", "--runner", word]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout
            for line, number in orders.items():
                assert process.stdout.readline() == f"{line}\n"
                process.send_signal(number)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    return Ended(process.returncode, out, err)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("word", ["sequential", "thread", "process"])
def test_an_order_to_end_has_a_status_and_no_traceback(
    folder: Path, word: str, number: signal.Signals, status: int
) -> None:
    ended = interrupted(folder, WAITING, {"waiting": number}, word)
    assert ended.status == status, ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_async_flow_ends_by_order(folder: Path, number: signal.Signals, status: int) -> None:
    ended = interrupted(folder, ASYNC_WAITING, {"waiting": number})
    assert (ended.status, ended.out) == (status, ""), ended.err
    assert "Traceback" not in ended.err


def test_a_second_ctrl_c_ends_at_once(folder: Path) -> None:
    ended = interrupted(folder, STUBBORN, {"waiting": signal.SIGINT, "never mind": signal.SIGINT})
    assert ended.status == -signal.SIGINT


def test_a_flow_that_takes_ctrl_c_as_its_cue_has_completed(folder: Path) -> None:
    ended = interrupted(folder, FORGIVING, {"waiting": signal.SIGINT})
    assert (ended.status, ended.out) == (0, "had enough\n"), ended.err


def test_a_reader_that_leaves_gets_no_complaint(folder: Path) -> None:
    command = f"{sys.executable} -m turnout run stations.py:greeting --log-level ERROR | true"
    ended = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=50, check=False)
    assert ended.stderr == ""


# The other commands


def test_version() -> None:
    assert turnout_command("--version") == Ended(0, f"turnout {turnout.__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_the_commands(arguments: Sequence[str]) -> None:
    ended = turnout_command(*arguments)
    assert (ended.status, ended.err) == (0, "")
    commands = ["compare", "conform", "doctor", "graph", "report", "run", "runners", "trace"]
    assert re.findall(r"^  (\w+)  ", ended.out, re.MULTILINE) == commands


def test_the_script_and_the_module_are_the_same() -> None:
    script = Path(sys.executable).with_name("turnout")
    ended = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=50, check=True)
    assert ended.stdout == f"turnout {turnout.__version__}\n"


def test_an_unknown_command_is_one_line() -> None:
    ended = turnout_command("rnu")
    assert (ended.status, ended.out) == (2, "")
    assert ended.line == "turnout: error: No such command 'rnu'. Did you mean 'run'? Try: turnout --help"


def test_the_version_needs_no_rich() -> None:
    program = "import sys; from turnout.cli import main; main(['--version']); print('rich' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
    assert ended.stdout.splitlines()[-1] == "False"


def records(*arguments: str) -> Any:
    ended = turnout_command(*arguments)
    assert ended.status == 0, ended.err
    return json.loads(ended.out)


def test_runners_in_json() -> None:
    found = {record["word"]: record for record in records("runners", "--json")}
    assert found.keys() >= {*WORDS, "concurrent"}
    assert found["thread"] == {
        "word": "thread",
        "class": "turnout_runners.thread:ThreadPoolTaskRunner",
        "distribution": "turnout",
        "version": turnout.__version__,
        "libraries": [],
        "installed": True,
        "install": None,
    }
    assert all(record["installed"] != bool(record["install"]) for record in found.values())


def test_runners_as_a_table() -> None:
    ended = turnout_command("runners")
    assert (ended.status, ended.err) == (0, "")
    head, rule, *rows = ended.out.splitlines()
    assert head.split() == ["word", "class", "version", "installed"]
    assert set(rule) <= {"─", " "}
    thread = next(row for row in rows if row.startswith("thread "))
    assert thread.split() == [
        "thread",
        "turnout_runners.thread:ThreadPoolTaskRunner",
        "turnout",
        turnout.__version__,
        "yes",
    ]


def test_conform_refuses_an_unknown_word() -> None:
    ended = turnout_command("conform", "thred")
    assert (ended.status, ended.out) == (2, "")
    assert ended.line.startswith("turnout: error: No runner answers to 'thred'. Known: ")


def test_conform_without_pytest_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "pytest.py").write_text("raise ModuleNotFoundError(\"No module named 'pytest'\", name='pytest')\n")
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))}
    ended = turnout_command("conform", "sequential", environment=environment)
    assert (ended.status, ended.out) == (2, "")
    assert ended.line == "turnout: error: turnout conform needs pytest: pip install 'turnout[testing]'"
