"""The parts of the doctor that need no runner: addresses, versions, and a process that is looked after."""

from __future__ import annotations

import io
import json
import logging
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from turnout.cli import _examination, _supervised
from turnout.cli._doctor import _limits
from turnout.cli._examination import _Examination
from turnout.cli._findings import Finding
from turnout.cli._reach import reached
from turnout.cli._report import Report, _LogNotes
from turnout.runner import Batch, Host, Plan, TaskRunner


class Local(TaskRunner):
    def __init__(self, address: str | None = None) -> None:
        self.address = address

    def start(self, host: Host) -> None:
        pass

    def slots(self) -> int:
        return 1

    def submit(self, batch: Batch) -> object:
        return None

    def stop(self) -> None:
        pass


def test_a_runner_need_not_tell_its_plan() -> None:
    assert Local().plan() == Plan(slots=None, worker_memory=None)


# Addresses


def test_an_address_where_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"tcp://127.0.0.1:{port}", f"127.0.0.1:{port}", f"tls://me:sesame@127.0.0.1:{port}/x?y=z"):
            found = reached(address)
            assert found is not None
            assert (found.level, found.check) == ("ok", "address")
            assert found.text.startswith(f"127.0.0.1:{port} takes connections, in ")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionRefusedError(), "Nothing listens at [::1]:8786. Start the cluster there, or check the port."),
        (TimeoutError(), "[::1]:8786 does not answer. Check the host, and whether a firewall or a VPN is between."),
        (socket.gaierror(-2, "unknown"), "No host is known as '::1'. Check the name, or give the host's number."),
        (
            OSError(101, "Network is unreachable"),
            "[::1]:8786 can't be reached (Network is unreachable). Check the address and the network.",
        ),
    ],
)
def test_why_nobody_is_reached(monkeypatch: pytest.MonkeyPatch, error: OSError, text: str) -> None:
    def refuse(place: tuple[str, int], timeout: float) -> None:
        assert place == ("::1", 8786)
        raise error

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert reached("tcp://[::1]:8786") == Finding("problem", "address", text)


@pytest.mark.parametrize("address", ["auto", "head", "inproc://10.0.0.7/1/2", "head:port", "tcp://head", ""])
def test_addresses_that_are_no_host_and_port(address: str) -> None:
    assert reached(address) is None


# Versions


HERE = {"python": "3.11.7", "turnout": "0.1.0", "cloudpickle": "3.1.0", "trams": "1.0"}


def examination(there: dict[str, Any], address: str | None = None) -> tuple[_Examination, io.StringIO]:
    """Return an examination whose driver and worker have versions, and where its report goes."""
    stream = io.StringIO()
    made = _Examination(Local(address), ["trams"], Report(stream, 5))
    made._driver = {"host": "here", "pid": 1, "versions": HERE}
    made._worker = {"host": "there", "pid": 1, "versions": there}
    return made, stream


def findings(stream: io.StringIO) -> list[Any]:
    return [message["finding"] for line in stream.getvalue().splitlines() if (message := json.loads(line))]


def test_equal_versions_are_told() -> None:
    made, stream = examination(HERE)
    made._compare_versions()
    assert findings(stream) == [
        ["ok", "", "python 3.11.7, turnout 0.1.0, cloudpickle 3.1.0, trams 1.0, for driver and worker"]
    ]


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        ({"trams": "2.0"}, "trams 1.0 and 2.0"),
        ({"trams": None}, "trams 1.0 and none"),
        ({"python": "3.11.9", "cloudpickle": "2.0"}, "python 3.11.7 and 3.11.9, cloudpickle 3.1.0 and 2.0"),
    ],
)
def test_versions_that_may_not_fit_are_a_note(other: dict[str, str | None], shown: str) -> None:
    made, stream = examination({**HERE, **other})
    made._compare_versions()
    ((level, _, text),) = findings(stream)
    assert level == "note"
    assert text.startswith(f"Driver and worker have {shown}. ")


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"python": "3.12.1"}, "RunnerStartError: The driver has Python 3.11.7, and the worker has Python 3.12.1. "),
        ({"turnout": "0.2.0"}, "RunnerStartError: The driver has Turnout 0.1.0, and the worker has Turnout 0.2.0. "),
    ],
)
def test_versions_that_do_not_fit_are_a_problem(
    monkeypatch: pytest.MonkeyPatch, other: dict[str, str], text: str
) -> None:
    made, stream = examination({})
    monkeypatch.setattr(made, "_call", lambda: made.__setattr__("_worker", {"versions": {**HERE, **other}}))
    made._try_out()
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert told[0] == {"step": "call"}
    assert told[1] == {"step": "versions"}
    level, step, said = told[2]["finding"]
    assert (level, step) == ("problem", "versions")
    assert said.startswith(text.removeprefix("RunnerStartError: "))
    assert len(told) == 3, "nothing is measured on a worker that does not understand us"


# Sockets


@pytest.mark.parametrize(
    ("host", "address", "worker", "level"),
    [
        ("127.0.0.1", None, "here", "ok"),
        ("0.0.0.0", None, "here", "problem"),
        ("0.0.0.0", None, "there", "note"),
        ("0.0.0.0", "auto", "here", "note"),
    ],
)
def test_what_other_machines_can_reach(host: str, address: str | None, worker: str, level: str) -> None:
    made, stream = examination({}, address)
    made._worker["host"] = worker
    with socket.create_server((host, 0)) as server:
        port = server.getsockname()[1]
        made._look_at_sockets()
    measured, found = (json.loads(line) for line in stream.getvalue().splitlines())
    own = {"kind": "tcp", "address": host, "port": port, "reachable": host == "0.0.0.0"}
    assert own in measured["measured"]["sockets"]
    assert found["finding"][0] == level
    assert level == "ok" or f"tcp {host}:{port}" in found["finding"][2]


def test_a_system_that_tells_of_no_sockets_is_not_said_to_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_examination, "can_be_listed", lambda: False)
    made, stream = examination({})
    made._look_at_sockets()
    ((level, _, text),) = findings(stream)
    assert level == "note"
    assert "does not tell" in text


# The report, and the process that it comes from


def test_warnings_and_errors_of_the_log_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    logger = logging.getLogger("test_doctor_parts")
    monkeypatch.setattr(logger, "handlers", [_LogNotes(Report(stream, 5))])
    monkeypatch.setattr(logger, "propagate", False)
    logger.info("leaving")
    logger.warning("%d calls\ngo on", 2)
    logger.error("not stopped", exc_info=OSError("no wires"))
    assert findings(stream) == [["note", "", "2 calls go on"], ["problem", "", "not stopped (OSError: no wires)"]]


TELL_PIDS: Final = "print(json.dumps({'step': 'stop', 'measured': {'pids': [os.getpid()]}}), flush=True)"


def wait_for_end(pids: Sequence[int]) -> bool:
    """Return whether processes end within ten seconds."""
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(is_alive, pids))


def is_alive(pid: int) -> bool:
    try:
        # One that nobody has taken note of yet is over all the same.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def told(monkeypatch: pytest.MonkeyPatch, program: str, seconds: float) -> _supervised.Examined:
    """Return what comes of a program in the place of the examination."""
    monkeypatch.setattr(_supervised, "_MARGIN", 0)
    monkeypatch.setattr(_supervised, "_MAIN", f"import json, os, sys, time\n{program}")
    return _supervised.examined("word", [], seconds)


def test_what_a_process_tells_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
print("good morning", flush=True)
told = json.loads(sys.stdin.readline())
for message in ({"step": "one"}, {"measured": {"told": told}}, {"finding": ["ok", "one", "fine"]}, {"step": "end"}):
    print(json.dumps(message), flush=True)
"""
    found = told(monkeypatch, program, 20)
    assert found.findings == [Finding("ok", "one", "fine")]
    assert found.measured == {"told": {"word": "word", "libraries": [], "seconds": 20, "path": sys.path}}


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("sys.exit(3)", "ended with exit status 3."),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL."),
        ("print('no wires', file=sys.stderr); sys.exit(3)", "ended with exit status 3. It said last: 'no wires'."),
        ("raise OSError('no\\nwires')", "ended with exit status 1. It said last: 'wires'."),
    ],
)
def test_a_process_that_dies_is_a_problem(monkeypatch: pytest.MonkeyPatch, end: str, how: str) -> None:
    program = f"print(json.dumps({{'step': 'call'}}), flush=True)\n{end}"
    found = told(monkeypatch, program, 20)
    remedy = "A flow shows more: turnout run FILE.py:FLOW --runner word"
    assert found.findings == [Finding("problem", "call", f"The process that tried it {how} {remedy}")]


def test_a_process_that_hangs_is_told_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    program = f"""
import pathlib, signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path({str(mark)!r}).touch()))
{TELL_PIDS}
time.sleep(600)
"""
    found = told(monkeypatch, program, 5)
    assert mark.exists()
    (finding,) = found.findings
    assert (finding.level, finding.check) == ("problem", "stop")
    assert finding.text.startswith("The runner did not stop within 5 s, and its process was ended. ")
    assert wait_for_end(found.measured["pids"])


def test_a_process_that_does_not_end_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_supervised, "PATIENCE", 0.5)
    stubborn = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nchild = os.fork()"
    program = f"{stubborn}\nif child:\n    {TELL_PIDS}\ntime.sleep(600)".replace("os.getpid()", "os.getpid(), child")
    found = told(monkeypatch, program, 5)
    assert [finding.level for finding in found.findings] == ["problem"]
    assert len(found.measured["pids"]) == 2
    assert wait_for_end(found.measured["pids"])


def test_limits_are_shown_with_who_says_so() -> None:
    assert _limits({"machine": "8", "cgroup": "1.5", "usable": "2"}) == "2 (machine 8, cgroup 1.5)"
    assert _limits({"machine": "1 GiB", "address_space": "2 GiB"}) == "? (machine 1 GiB, address space 2 GiB)"
