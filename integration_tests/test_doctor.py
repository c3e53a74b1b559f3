"""``turnout doctor`` as a user types it: here, on each runner, and on runners that do what they should not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

import turnout
from integration_tests.commands import Ended, turnout_command
from integration_tests.dask_clusters import Cluster
from integration_tests.ray_clusters import free_port
from turnout.registry import resolve
from turnout.runner import usable_memory, usable_processors

STEPS: Final = ["start", "call", "versions", "latency", "bandwidth", "cost", "network", "stop"]
FACTS: Final = ["versions", "executable", "platform", "processors", "memory", "runners", "runner", "findings"]
MEASURED: Final = [
    "word",
    "runner",
    "start_seconds",
    "slots",
    "first_call_seconds",
    "driver",
    "worker",
    "latency_seconds",
    "bandwidth",
    "cost_seconds",
    "sockets",
]

STRANGE: Final = '''
"""Runners that do what they should not."""

import os
import resource
import signal
import socket
import sys
import time
import warnings
from pathlib import Path

from turnout.errors import RunnerStartError
from turnout.runner import Capabilities, Plan
from turnout_runners.thread import ThreadPoolTaskRunner


class Refusing(ThreadPoolTaskRunner):
    def start(self, host):
        raise RunnerStartError("There are no trains today.\\nTake the bus.")


class Failing(ThreadPoolTaskRunner):
    def start(self, host):
        raise OSError("no wires")


class Hanging(ThreadPoolTaskRunner):
    def start(self, host):
        Path("pid").write_text(f"{os.getpid()}\\n")
        while True:
            time.sleep(1)


class Dying(ThreadPoolTaskRunner):
    def start(self, host):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        print("out of steam, token=open-sesame", file=sys.stderr, flush=True)
        os.abort()


class Idle(ThreadPoolTaskRunner):
    """A cluster without workers: it takes batches, and can give them back."""

    def submit(self, batch):
        pass


class Tidy(Idle):
    def submit(self, batch):
        Path("pid").write_text(f"{os.getpid()}\\n")

    def stop(self):
        super().stop()
        Path("stopped").touch()


class Late(ThreadPoolTaskRunner):
    def stop(self):
        Path("pid").write_text(f"{os.getpid()}\\n")
        while True:
            time.sleep(1)


class Open(ThreadPoolTaskRunner):
    def __init__(self, host="0.0.0.0", address=None):
        super().__init__()
        self.host = host

    def start(self, host):
        super().start(host)
        self.server = socket.create_server((self.host, 0))

    def stop(self):
        super().stop()
        self.server.close()


class Warning_(ThreadPoolTaskRunner):
    def start(self, host):
        super().start(host)
        print("{a line that nobody asked for")
        warnings.warn("The rails are wet.", RuntimeWarning)


class Crowd(ThreadPoolTaskRunner):
    capabilities = Capabilities()

    def plan(self):
        return Plan(slots=1000, worker_memory=2**30)


class Secretive(ThreadPoolTaskRunner):
    def plan(self):
        raise LookupError("no plan")


class Demanding(ThreadPoolTaskRunner):
    def __init__(self, place):
        super().__init__()
'''


def installed(folder: Path, words: Mapping[str, str]) -> dict[str, str]:
    """Install words in a folder, as pip would have written them, and return the variables that make them known."""
    info = folder / "strange_trams-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-trams\nVersion: 1.0\n")
    lines = [f"{word} = {target}" for word, target in words.items()]
    (info / "entry_points.txt").write_text("\n".join(["[turnout.runners]", *lines]) + "\n")
    return on_path(folder)


def on_path(folder: Path) -> dict[str, str]:
    (folder / "strange.py").write_text(STRANGE)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def findings(record: Mapping[str, Any], level: str) -> dict[str, str]:
    """Return the findings of a level, by what was looked at."""
    return {one["check"]: one["text"] for one in record["findings"] if one["level"] == level}


def examined(*arguments: str, status: int, **options: Any) -> Any:
    """Return what the doctor tells in JSON."""
    ended = turnout_command("doctor", *arguments, "--json", **options)
    assert ended.status == status, ended
    assert ended.err == ""
    assert ended.out.count("\n") == 1
    record = json.loads(ended.out)
    assert list(record) == FACTS
    return record


def strange(name: str, folder: Path, *options: str, status: int) -> Any:
    """Return what the doctor tells of one of the strange runners."""
    return examined(f"strange:{name}", *options, status=status, cwd=folder, environment=on_path(folder))


def wait_for_end(pid: int) -> bool:
    """Return whether a process ends within half a minute."""
    deadline = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_alive(pid)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# What is here


@pytest.fixture(scope="module")
def here() -> Any:
    """What the doctor tells without a word."""
    return examined(status=0)


def test_what_is_here(here: Any) -> None:
    assert here["versions"]["turnout"] == turnout.__version__
    assert here["executable"] == sys.executable
    assert list(here["processors"]) == ["machine", "affinity", "cgroup", "slurm", "usable"]
    assert list(here["memory"]) == ["machine", "cgroup", "slurm", "address_space", "usable"]
    assert here["processors"]["usable"] == usable_processors()
    assert here["memory"]["usable"] == usable_memory()
    assert here["runner"] is None


def test_what_each_runner_would_do(here: Any) -> None:
    runners = {runner["word"]: runner for runner in here["runners"]}
    plans = {word: (runner["slots"], runner["worker_memory"]) for word, runner in runners.items()}
    usable, memory = usable_processors(), usable_memory()
    assert plans["sequential"] == (1, None)
    assert plans["thread"] == plans["concurrent"] == (min(32, usable + 4), None)
    assert plans["process"] == plans["ray"] == (usable, None)
    assert plans["dask"] == (usable, memory and memory // usable)
    assert plans["tcp://"] == plans["tls://"] == plans["ray://"] == (None, None)
    assert {"class", "distribution", "version", "libraries", "installed", "install"} <= runners["thread"].keys()
    assert not {"thread", "executor"} & findings(here, "note").keys(), "threads may be more than processors"


@pytest.mark.parametrize(
    "word",
    [
        "sequential",
        "thread",
        "thread?max_workers=3",
        "process",
        "process:2",
        "executor",
        "executor?max_workers=3",
        "executor:concurrent.futures:ThreadPoolExecutor",
        pytest.param("dask", marks=pytest.mark.cluster),
        pytest.param("dask?threads_per_worker=2&n_workers=1", marks=pytest.mark.cluster),
        pytest.param("dask:3", marks=pytest.mark.cluster),
        pytest.param("ray", marks=pytest.mark.cluster),
        pytest.param("ray?num_cpus=3", marks=pytest.mark.cluster),
    ],
)
def test_a_plan_is_what_becomes_of_it(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    # Less than there is on any machine that has more than one.
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    runner = resolve(word)
    planned = runner.plan().slots
    assert planned is not None
    with runner:
        assert runner.slots() == planned


def test_it_is_shown_in_tables() -> None:
    ended = turnout_command("doctor")
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert ["turnout", turnout.__version__] in [line.split() for line in lines]
    (row,) = [line.split() for line in lines if line.startswith("thread ")]
    assert row == ["thread", "turnout", turnout.__version__, str(min(32, usable_processors() + 4)), "yes"]
    assert lines[-1] == "No problems."


def test_limits_of_slurm_are_kept_and_told() -> None:
    if usable_processors() == 1:
        pytest.skip("one processor can't be limited to one")
    record = examined(status=0, environment={"SLURM_CPUS_PER_TASK": "1", "SLURM_MEM_PER_NODE": "1024"})
    runners = {runner["word"]: runner for runner in record["runners"]}
    assert record["processors"]["slurm"] == record["processors"]["usable"] == 1
    assert record["memory"]["usable"] == 2**30
    slots = {word: runners[word]["slots"] for word in ("thread", "process", "dask", "ray")}
    assert slots == {"thread": 5, "process": 1, "dask": 1, "ray": 1}
    assert runners["dask"]["worker_memory"] == 2**30
    assert "It gives this task 1 of the" in findings(record, "note")["SLURM"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_is_kept() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        record = examined(status=0)
    finally:
        os.sched_setaffinity(0, before)
    slots = {runner["word"]: runner["slots"] for runner in record["runners"]}
    assert (record["processors"]["affinity"], slots["process"], slots["dask"], slots["ray"]) == (1, 1, 1, 1)


def test_what_is_not_installed_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "far_trams.py").write_text("import certainly_missing_library\n")
    words = {"far": "far_trams:Tram", "gone": "no_such_trams:Tram", "asking": "strange:Demanding"}
    record = examined(status=0, environment=installed(tmp_path, words))
    notes = findings(record, "note")
    assert notes["gone"].startswith("It is not installed. Install it: pip install --force-reinstall ")
    assert "Runner 'far' needs certainly_missing_library, which is not installed." in notes["far"]
    assert "missing 1 required positional argument: 'place'" in notes["asking"]


def test_a_runner_that_passes_over_limits_is_a_note(tmp_path: Path) -> None:
    record = examined(status=0, environment=installed(tmp_path, {"crowd": "strange:Crowd"}))
    assert findings(record, "note")["crowd"].startswith("It would run 1000 calls at once, and this process may use ")
    (crowd,) = [runner for runner in record["runners"] if runner["word"] == "crowd"]
    assert (crowd["slots"], crowd["worker_memory"]) == (1000, 2**30)


def test_what_can_not_be_loaded_is_a_problem(tmp_path: Path) -> None:
    words = {"none": "strange:NoSuchClass", "secret": "strange:Secretive"}
    record = examined(status=1, environment=installed(tmp_path, words))
    problems = findings(record, "problem")
    assert "can't be loaded from strange:NoSuchClass" in problems["none"]
    assert problems["secret"] == "Its plan can't be had: LookupError: no plan. Tell those who wrote it."


@pytest.mark.parametrize(
    ("word", "status", "level", "text"),
    [
        ("process:3", 0, "ok", "Flows run on ProcessPoolTaskRunner(max_workers=3), save where they are told otherwise"),
        ("proces", 1, "problem", "No runner answers to 'proces'. Known: "),
    ],
)
def test_the_runner_of_the_environment(word: str, status: int, level: str, text: str) -> None:
    record = examined(status=status, environment={"TURNOUT_TASK_RUNNER": word})
    assert findings(record, level)["TURNOUT_TASK_RUNNER"].startswith(text)


# How a runner does


@pytest.mark.parametrize(
    "word",
    [
        "sequential",
        "thread",
        "process",
        "executor",
        "executor:concurrent.futures:ProcessPoolExecutor",
        pytest.param("dask?n_workers=2", marks=pytest.mark.cluster),
        pytest.param("ray?num_cpus=2", marks=pytest.mark.cluster),
    ],
)
def test_a_runner_that_is_well(word: str) -> None:
    record = examined(word, status=0)
    assert [(one["level"], one["check"]) for one in record["findings"]] == [("ok", step) for step in STEPS]
    assert record["runners"] is None
    runner = record["runner"]
    assert list(runner) == MEASURED
    assert runner["word"] == word
    assert runner["slots"] >= 1
    seconds = [runner[name] for name in MEASURED if name.endswith("_seconds")]
    assert len(seconds) == 4
    assert all(0 < one < 50 for one in seconds)
    assert runner["driver"]["versions"] == runner["worker"]["versions"]
    assert runner["driver"]["versions"]["turnout"] == turnout.__version__
    assert runner["driver"]["host"] == runner["worker"]["host"]
    is_shared = runner["driver"]["pid"] == runner["worker"]["pid"]
    assert is_shared is (word in ("sequential", "thread", "executor"))
    assert (runner["bandwidth"] is None) is is_shared
    assert is_shared or runner["bandwidth"].keys() == {"bytes", "up_bytes_per_second", "down_bytes_per_second"}
    assert [one for one in runner["sockets"] if one["reachable"]] == []
    is_cluster = word.startswith(("dask", "ray"))
    assert bool(runner["sockets"]) is is_cluster
    assert word.partition("?")[0] in runner["driver"]["versions"] or not is_cluster


def test_findings_are_shown_in_a_table() -> None:
    ended = turnout_command("doctor", "thread:2")
    assert (ended.status, ended.err) == (0, "")
    head, rule, *rows, last = ended.out.splitlines()
    assert head.split() == ["check", "finding"]
    assert set(rule) <= {"─", " "}
    assert [row.split()[:2] for row in rows] == [["ok", step] for step in STEPS]
    assert "for 2 calls at once" in rows[0]
    assert last == "No problems."


@pytest.mark.cluster
def test_a_cluster_of_others_and_one_without_workers() -> None:
    cluster = Cluster(1)
    try:
        record = examined(cluster.address, status=0)
        assert [one["check"] for one in record["findings"]] == ["address", *STEPS]
        assert "dask" in record["runner"]["worker"]["versions"]
        cluster.kill(cluster.workers[0])
        record = examined(cluster.address, "--timeout", "5", status=1)
    finally:
        cluster.stop()
    assert findings(record, "problem").keys() == {"call"}
    assert findings(record, "problem")["call"].startswith("No worker has run the call within 5 s. See whether ")
    assert findings(record, "ok").keys() == {"address", "start", "network", "stop"}


@pytest.mark.cluster
def test_a_cluster_with_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import turnout._version\nturnout._version.__version__ = '0.0.1'\n")
    cluster = Cluster(0)
    try:
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", str(tmp_path))
            cluster.add_worker("other")
        # The worker comes when it comes; before, there is none.
        deadline = time.monotonic() + 40
        while not findings(record := examined(cluster.address, "--timeout", "3", status=1), "problem").get("start"):
            assert time.monotonic() < deadline, record
    finally:
        cluster.stop()
    text = findings(record, "problem")["start"]
    assert text.startswith(f"The driver has Turnout {turnout.__version__}, and the worker tcp://127.0.0.1:")
    assert text.endswith(
        "has Turnout 0.0.1. They may not understand each other: install the same version on both sides."
    )


# What goes wrong


@pytest.mark.parametrize("word", ["tcp://127.0.0.1:{port}", "ray://127.0.0.1:{port}", "ray?address=127.0.0.1:{port}"])
def test_nobody_listens_at_an_address(word: str) -> None:
    port = free_port()
    ended = turnout_command("doctor", word.format(port=port))
    assert (ended.status, ended.err) == (1, "")
    *_, row, last = ended.out.splitlines()
    text = f"Nothing listens at 127.0.0.1:{port}. Start the cluster there, or check the port."
    assert row.split(maxsplit=2) == ["problem", "address", text]
    assert last == "1 problem."


def test_somebody_else_listens_at_an_address() -> None:
    """What is there takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        record = examined(address, "--timeout", "3", status=1)
    assert findings(record, "ok").keys() == {"address"}
    assert findings(record, "problem")["start"].startswith("The runner did not come up within 3 s, and its process was")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("proces", "No runner answers to 'proces'. Known: "),
        ("tpc://127.0.0.1:8786", "No runner answers to 'tpc://127.0.0.1:8786'. Known: "),
        ("thread?workers=3", "Runner 'thread' has no option 'workers'. "),
        ("strange:NoSuchClass", "Runner 'strange:NoSuchClass' can't be loaded from "),
        ("", "No runner answers to ''. Known: "),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_wrong_word_is_one_line(tmp_path: Path, word: str, line: str, more: list[str]) -> None:
    ended = turnout_command("doctor", word, *more, environment=on_path(tmp_path))
    assert (ended.status, ended.out) == (2, "")
    assert ended.line.startswith(f"turnout: error: {line}")


def test_a_wrong_time_is_one_line() -> None:
    ended = turnout_command("doctor", "thread", "--timeout", "0")
    assert (ended.status, ended.out) == (2, "")
    assert ended.line.startswith("turnout: error: Invalid value for '--timeout': 0")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("no_such_trams:Tram", "What it needs is not installed. Install it: pip install --force-reinstall "),
        (
            "far_trams:Tram",
            "Runner 'strange' needs certainly_missing_library, which is not installed. Install it with: ",
        ),
    ],
)
def test_a_missing_library_is_a_problem_with_the_command(tmp_path: Path, target: str, text: str) -> None:
    (tmp_path / "far_trams.py").write_text("import certainly_missing_library\n")
    record = examined("strange", status=1, environment=installed(tmp_path, {"strange": target}))
    assert list(findings(record, "problem")) == ["installed"]
    assert findings(record, "problem")["installed"].startswith(text)
    assert record["runner"] == {**dict.fromkeys(MEASURED), "word": "strange"}


def test_a_start_that_fails(tmp_path: Path) -> None:
    refused = strange("Refusing", tmp_path, status=1)
    assert refused["findings"] == [
        {"level": "problem", "check": "start", "text": "There are no trains today. Take the bus."}
    ]
    assert refused["runner"]["runner"] == "Refusing()"
    failed = strange("Failing", tmp_path, status=1)
    assert findings(failed, "problem")["start"].startswith("Failing() did not start: OSError: no wires. Check ")


def test_a_start_that_hangs_is_given_up(tmp_path: Path) -> None:
    record = strange("Hanging", tmp_path, "--timeout", "1", status=1)
    assert findings(record, "problem")["start"].startswith("The runner did not come up within 1 s, and its process was")
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_stop_that_hangs_is_given_up(tmp_path: Path) -> None:
    record = strange("Late", tmp_path, "--timeout", "2", status=1)
    assert findings(record, "problem")["stop"].startswith("The runner did not stop within 2 s, and its process was")
    assert findings(record, "ok").keys() == set(STEPS) - {"stop"}
    assert record["runner"]["cost_seconds"] > 0, "what was measured before is told"
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_backend_that_takes_its_process_along(tmp_path: Path) -> None:
    record = strange("Dying", tmp_path, status=1)
    text = findings(record, "problem")["start"]
    assert text == (
        "The process that tried it was ended by SIGABRT. It said last: 'out of steam, token=***'. A flow shows more: "
        "turnout run FILE.py:FLOW --runner strange:Dying"
    )


def test_a_backend_without_workers(tmp_path: Path) -> None:
    record = strange("Idle", tmp_path, "--timeout", "1", status=1)
    assert findings(record, "problem").keys() == {"call"}
    assert findings(record, "problem")["call"].startswith("No worker has run the call within 1 s. See whether there ")


def test_what_is_open_to_the_network(tmp_path: Path) -> None:
    record = strange("Open", tmp_path, status=1)
    (opened,) = record["runner"]["sockets"]
    assert opened == {"kind": "tcp", "address": "0.0.0.0", "port": opened["port"], "reachable": True}
    text = findings(record, "problem")["network"]
    assert text.startswith(f"Other machines can reach 1 socket: tcp 0.0.0.0:{opened['port']}, though all of it runs ")
    elsewhere = strange("Open?address=auto", tmp_path, status=0)
    assert findings(elsewhere, "note")["network"].startswith("Other machines can reach 1 socket: tcp 0.0.0.0:")
    closed = strange("Open?host=127.0.0.1", tmp_path, status=0)
    assert findings(closed, "ok")["network"] == "1 socket on loopback, closed to other machines"


def test_what_a_module_prints_does_not_get_into_the_json(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("from strange import Refusing\nprint('{Here I am')\n")
    ended = turnout_command("doctor", "loud:Refusing", "--json", environment=on_path(tmp_path))
    assert (ended.status, ended.err) == (1, "{Here I am\n")
    assert json.loads(ended.out)["runner"]["runner"] == "Refusing()"


def test_warnings_are_notes_and_prints_are_left_out(tmp_path: Path) -> None:
    record = strange("Warning_", tmp_path, status=0)
    assert findings(record, "note") == {"start": "The rails are wet."}


@pytest.mark.parametrize(
    "word", ["tls://user:open-sesame@127.0.0.1:9", "strange:Refusing?thread_name_prefix=token=open-sesame"]
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_no_secret_of_a_word_is_shown(tmp_path: Path, word: str, more: list[str]) -> None:
    ended = turnout_command("doctor", word, *more, environment=on_path(tmp_path))
    assert ended.status == 1
    assert "open-sesame" not in ended.out + ended.err
    assert ended.out


# Leaving early


@contextlib.contextmanager
def doctor_at(word: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The doctor, once a runner has written into a folder in which process it is, and that process."""
    pid = folder / "pid"
    with subprocess.Popen(
        [sys.executable, "-m", "turnout", "doctor", word],
        cwd=folder, env=os.environ | on_path(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            while not pid.exists() or not pid.read_text().endswith("\n"):
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            yield process, int(pid.read_text())
        finally:
            process.kill()


def test_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    with doctor_at("strange:Hanging", tmp_path) as (process, examining):
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err.strip()) == (130, "", "")
    assert not is_alive(examining)


def test_ctrl_c_has_the_runner_stopped(tmp_path: Path) -> None:
    """It reaches the process with the runner once: the second time, a flow's process ends as it is."""
    with doctor_at("strange:Tidy", tmp_path) as (process, examining):
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert (tmp_path / "stopped").exists()
    assert not is_alive(examining)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_doctor_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    with doctor_at("strange:Hanging", tmp_path) as (process, examining):
        process.send_signal(number)
        process.wait(30)
        try:
            assert wait_for_end(examining), "it is still there after 30 s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(examining, signal.SIGKILL)


def test_help_tells_of_it() -> None:
    ended = turnout_command("doctor", "--help")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("Usage: turnout doctor [OPTIONS] [WORD]")


def test_the_command_runs_as_a_script_too(tmp_path: Path) -> None:
    """Where there is no current folder on the path, and the one with the script is."""
    (tmp_path / "json.py").write_text("raise ImportError('not this one')\n")
    script = Path(sys.executable).with_name("turnout")
    ended = subprocess.run(
        [script, "doctor", "process", "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert Ended(ended.returncode, "", ended.stderr) == Ended(0, "", "")
    assert json.loads(ended.stdout)["runner"]["slots"] == usable_processors()
