"""Dask clusters as others start them: a scheduler and workers, each a process of its own, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

__all__ = ["Cluster", "certificates"]

_BIN: Final = Path(sys.executable).parent
_PATIENCE: Final = 30.0
# If a test process is killed, what it started ends by itself.
_SCHEDULER: Final = "--host 127.0.0.1 --port 0 --dashboard-address 127.0.0.1:0 --idle-timeout 300s"
_WORKER: Final = "--host 127.0.0.1 --no-dashboard --nthreads 1 --death-timeout 10"


class Cluster:
    """A scheduler and a number of workers, up until it is stopped.

    Parameters
    ----------
    workers
        How many workers with one thread each.
    folder
        Of the certificates of :func:`certificates`, for a cluster that speaks TLS.
    arguments
        More words for ``dask worker``.
    """

    def __init__(self, workers: int, folder: Path | None = None, arguments: str = "") -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="turnout-test-dask-"))
        self._pids: list[int] = []
        tls = ""
        if folder is not None:
            files = {"ca-file": "cert.pem", "cert": "cert.pem", "key": "key.pem"}
            tls = " ".join(["--protocol tls", *(f"--tls-{name} {folder}/{file}" for name, file in files.items())])
        file = self._folder / "scheduler.json"
        try:
            self.scheduler = self._start(f"scheduler {_SCHEDULER} --scheduler-file {file} {tls}", "scheduler")
            self.address = self._address(file)
            self.workers = [self.add_worker(f"worker-{number}", f"{tls} {arguments}") for number in range(workers)]
        except BaseException:
            self.stop()
            raise

    def add_worker(self, name: str, arguments: str = "") -> int:
        """Start a worker, and return the number of its nanny's process."""
        scratch = f"--local-directory {self._folder}"
        return self._start(f"worker {self.address} {_WORKER} {scratch} --name {name} {arguments}", name)

    def kill(self, pid: int) -> None:
        """Kill a process of this cluster, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        while _is_alive(pid):
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill all of them, and remove what they wrote."""
        for pid in reversed(self._pids):
            self.kill(pid)
        shutil.rmtree(self._folder, ignore_errors=True)

    def log(self) -> str:
        """Return what all of them wrote."""
        return "\n".join(path.read_text() for path in self._folder.glob("*.log"))

    def _start(self, command: str, name: str) -> int:
        # By a shell that ends at once: they shall not be children of the tests, which look for those.
        log = self._folder / f"{name}.log"
        line = f"setsid {shlex.quote(str(_BIN / 'dask'))} {command} >{log} 2>&1 </dev/null & echo $!"
        done = subprocess.run(
            ["sh", "-c", line], capture_output=True, text=True, check=True, timeout=20, cwd=self._folder
        )
        self._pids.append(int(done.stdout))
        return self._pids[-1]

    def _address(self, file: Path) -> str:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                return str(json.loads(file.read_text())["address"])
            time.sleep(0.05)
        raise TimeoutError(f"no scheduler after {_PATIENCE:g} s: {self.log()}")


def certificates(folder: Path) -> Path:
    """Write a certificate and its key to a folder, and return the folder."""
    from distributed import Security

    temporary = Security.temporary()  # type: ignore[no-untyped-call]
    (folder / "cert.pem").write_text(temporary.tls_ca_file)
    key = folder / "key.pem"
    key.touch(mode=0o600)
    key.write_text(temporary.tls_client_key)
    return folder


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
