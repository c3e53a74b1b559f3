"""Ray clusters for tests: nodes as processes of their own, as ``ray start`` makes them, all of them on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["Nodes", "bodies_of", "free_port"]

# Ray otherwise replaces a loopback address by one of a network, or else starts no second node.
_ON_LOOPBACK: Final = """
from ray._private import ray_constants, services
ray_constants.ENABLE_RAY_CLUSTER = True
services.resolve_ip_for_localhost = lambda host: host
services.get_node_ip_address = lambda address=None: "127.0.0.1"
"""
_START: Final = f"""{_ON_LOOPBACK}
from ray.scripts.scripts import main
main()
"""
# Two nodes that one process starts, as programs do that test what they made for Ray.
_TOGETHER: Final = f"""{_ON_LOOPBACK}
import signal, sys
from ray._private import utils
# It would note its address for all programs of this machine.
utils.write_ray_address = lambda *_: None
from ray.cluster_utils import Cluster
port, folder, store = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
head = dict(gcs_server_port=port, temp_dir=folder, include_dashboard=False)
cluster = Cluster(initialize_head=True, head_node_args=dict(head, num_cpus=1, object_store_memory=store))
cluster.add_node(num_cpus=1, object_store_memory=store)
print("Ray runtime started")
sys.stdout.flush()
signal.pause()
"""
_STORE: Final = 200 * 2**20
_NO_BODY: Final = ("ray::IDLE", "ray::Mailbox", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


def free_port() -> int:
    """Return a port of this machine on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


# Starts a process that is nobody's child: tests look at what is below them.
_DETACH: Final = """
import subprocess, sys
log = open(sys.argv[1], "wb")
words = [sys.executable, "-c", *sys.argv[2:]]
print(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True).pid)
"""


@dataclass
class Nodes:
    """A head node, and others, each of one processor."""

    port: int = field(default_factory=free_port)
    client_port: int = field(default_factory=free_port)
    pids: list[int] = field(default_factory=list)
    folder: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="nodes-"))
    environment: dict[str, str] = field(default_factory=dict)
    """Variables for all nodes."""

    @property
    def address(self) -> str:
        """Where drivers on a node connect."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where other drivers connect."""
        return f"ray://127.0.0.1:{self.client_port}"

    def start_head(self, **options: Any) -> None:
        """Start the head node."""
        own = {"port": self.port, "ray_client_server_port": self.client_port, "include_dashboard": False}
        self._start("--head", f"--temp-dir={self.folder}", **own, **options)

    def start_node(self, **options: Any) -> int:
        """Start another node, and return its number."""
        self._start(f"--address={self.address}", **options)
        return len(self.pids) - 1

    def start_together(self) -> None:
        """Start the head node and another one as a ``ray.cluster_utils.Cluster``."""
        self._detach(_TOGETHER, self.port, self.folder, _STORE)

    def kill(self, number: int) -> None:
        """Have a node be gone at once, with all that runs on it."""
        self._signal(number, signal.SIGKILL)

    def freeze(self, number: int) -> None:
        """Have a node answer nothing any more, as if its host were cut off."""
        self._signal(number, signal.SIGSTOP)

    def head_memory(self) -> int:
        """Return how many bytes the head node's own two processes hold."""
        return sum(
            _resident(pid) for pid in self._session(0) if _command(pid).endswith(("/gcs_server", "/raylet/raylet"))
        )

    def bodies(self) -> list[str]:
        """Return what the workers run, as Ray names their processes."""
        return bodies_of(pid for number in range(len(self.pids)) for pid in self._session(number))

    def _session(self, number: int) -> list[int]:
        return [pid for pid, fields in _table() if fields[3] == str(self.pids[number])]

    def _signal(self, number: int, what: int) -> None:
        for pid in self._session(number):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)

    def stop(self) -> None:
        """Stop all nodes."""
        for number in reversed(range(len(self.pids))):
            self.kill(number)
        deadline = time.monotonic() + 10
        while any(fields[3] in map(str, self.pids) and fields[0] != "Z" for _, fields in _table()):
            if time.monotonic() > deadline:
                raise RuntimeError("Nodes of a Ray cluster did not end.")
            time.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *words: str, **options: Any) -> None:
        options = {"num_cpus": 1, "object_store_memory": _STORE, "node_ip_address": "127.0.0.1", **options}
        written = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        self._detach(_START, "start", *words, *written, "--block", "--disable-usage-stats")

    def _detach(self, code: str, *words: object) -> None:
        """Run code in a process that is nobody's child, and wait until Ray runs there."""
        log = Path(self.folder, f"start-{len(self.pids)}.log")
        detached = subprocess.run(
            [sys.executable, "-c", _DETACH, log, code, *map(str, words)],
            capture_output=True,
            check=True,
            cwd="/",
            # Of these nodes only this machine knows. Else it would depend on a file of the user's whether they
            # understand each other.
            env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
            # As docs/ray.md says of head nodes, and of nodes on which tasks wait for tasks.
            | {"GRPC_ENABLE_FORK_SUPPORT": "0", "RAY_idle_worker_killing_time_threshold_ms": "60000"}
            | self.environment,
        )
        self.pids.append(int(detached.stdout))
        self._wait_until_up(log)

    def _wait_until_up(self, log: Path) -> None:
        deadline = time.monotonic() + 60
        while b"Ray runtime started" not in log.read_bytes():
            if not Path(f"/proc/{self.pids[-1]}").exists() or time.monotonic() > deadline:
                raise RuntimeError(f"The node did not start:\n{log.read_text()}")
            time.sleep(0.1)


def bodies_of(pids: Iterable[int]) -> list[str]:
    """Return what Ray's workers among some processes run, as Ray names them."""
    titles = map(_command, pids)
    return [title for title in titles if title.startswith("ray::") and not title.startswith(_NO_BODY)]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]
    return ""


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _table() -> list[tuple[int, list[str]]]:
    """Return every process with its state, parent, group, session, and more."""
    table = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            table.append((int(path.parent.name), path.read_text().rpartition(")")[2].split()))
    return table
