"""Flows on several hosts for real: network namespaces with addresses of their own, one of which is cut off.

``ci/test-hosts`` runs this as root. Each host is a network namespace behind a common bridge. A scheduler (or Ray's
head) and two workers run on three of them, the driver on a fourth.

First the flow of docs/moving-to-a-cluster.md runs there as the page says, by its word alone. Then the census: when the
driver has seen some hundred calls end, one worker's cable is pulled, and the flow must end with the bytes of CSV that
``sequential`` gives.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
BIN: Final = Path(sys.executable).parent
HEALTH_CHECK: Final = {"period_ms": "1000", "timeout_ms": "3000", "failure_threshold": "3"}
PAGE: Final = ROOT / "docs" / "moving-to-a-cluster.md"
ENDS_BEFORE_THE_CUT: Final = 300
SECONDS: Final = 400

DRIVER: Final = """
    import itertools, logging, sys, time
    from pathlib import Path

    sys.path.insert(0, {root!r})
    from {module} import {name}
    import examples
    from examples.census import census, parse

    logging.basicConfig(level=logging.WARNING)
    folder = Path({folder!r})
    ends = itertools.count(1)

    @parse.on_completion
    def pause(task, run, state):
        if next(ends) == {ends}:
            (folder / "pull").touch()
            while not (folder / "pulled").exists():
                time.sleep(0.01)

    # The workers have Turnout, but not its examples.
    runner = {name}(address={address!r}, ship=[examples], **{options!r})
    print(census.with_options(task_runner=runner)(output=str(folder)))
"""


class Host(NamedTuple):
    """A network namespace with an address."""

    name: str
    address: str


class Network:
    """Hosts on one bridge, and the processes that run on them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._prefix = f"turnout-{os.getpid()}"
        self.hosts = {name: Host(f"{self._prefix}-{name}", f"10.77.0.{number}") for number, name in enumerate(names, 1)}
        self._switch = f"{self._prefix}-switch"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Network:
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for name in [*(host.name for host in self.hosts.values()), self._switch]:
            # What left its group, as Ray's daemons do, is still in the namespace.
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in found.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)

    def _connect(self) -> None:
        ip("netns", "add", self._switch)
        ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._switch, "link", "set", "bridge", "up")
        for number, host in enumerate(self.hosts.values()):
            ip("netns", "add", host.name)
            ip("-n", host.name, "link", "set", "lo", "up")
            cable = f"port{number}"
            ip("-n", self._switch, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            ip("-n", self._switch, "link", "set", cable, "master", "bridge", "up")
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", host.name, "link", "set", "eth0", "up")

    def start(self, name: str, command: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command on a host, and return it at once."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.hosts[name].name, *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def run(self, name: str, command: Sequence[str], log: Path, **environment: str) -> None:
        """Run a command on a host to its end."""
        if self.start(name, command, log, **environment).wait(SECONDS):
            raise SystemExit(f"{' '.join(command)} failed on {name}:\n{log.read_text()[-4000:]}")

    def pull_cable(self, name: str) -> None:
        """Cut a host off from the others."""
        ip("-n", self.hosts[name].name, "link", "set", "eth0", "down")


def ip(*arguments: str) -> None:
    """Run the command of that name."""
    subprocess.run(["ip", *arguments], check=True)


def words_from_the_page(network: Network, folder: Path, url: str, **environment: str) -> None:
    """Run the flow of the page from the host "driver", with one word changed, and look for its logs there."""
    found = re.search(r"```python\n(# words\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, f"{PAGE} has no words.py"
    (folder / "words.py").write_text(found[1])
    log = folder / "words.log"
    network.run("driver", [str(BIN / "turnout"), "run", str(folder / "words.py"), "--runner", url], log, **environment)
    text = log.read_text()
    missing = [wanted for wanted in ("12 letters", "5 letters", "Completed()", "\n6\n") if wanted not in f"\n{text}"]
    if missing:
        raise SystemExit(f"the words on {url} lack {missing}:\n{text[-4000:]}")
    print(f"ci/test-hosts: turnout run words.py --runner {url}: its logs are on the driver's screen", flush=True)


def census_with_a_cut(
    network: Network, folder: Path, runner: str, address: str, options: Mapping[str, object], **environment: str
) -> None:
    """Run the census from the host "driver", and pull the cable of host "two" when some hundred calls have ended."""
    module, _, name = runner.partition(":")
    script = folder / "driver.py"
    script.write_text(
        textwrap.dedent(DRIVER).format(
            root=str(ROOT),
            folder=str(folder),
            module=module,
            name=name,
            address=address,
            options=dict(options),
            ends=ENDS_BEFORE_THE_CUT,
        )
    )
    log = folder / "driver.log"
    driver = network.start("driver", [sys.executable, str(script)], log, **environment)
    deadline = time.monotonic() + SECONDS
    while not (folder / "pull").exists():
        if driver.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the driver did not get far enough:\n{log.read_text()[-4000:]}")
        time.sleep(0.05)
    network.pull_cable("two")
    (folder / "pulled").touch()
    begin = time.monotonic()
    if driver.wait(SECONDS):
        raise SystemExit(f"the flow failed:\n{log.read_text()[-4000:]}")
    print(f"ci/test-hosts: one host was cut off, and the flow ended {time.monotonic() - begin:.1f} s later", flush=True)


@contextlib.contextmanager
def dask_cluster(network: Network, folder: Path) -> Iterator[dict[str, object]]:
    """Start a scheduler and two workers that talk TLS; give the options for a driver."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=turnout"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *files], check=True, stderr=subprocess.DEVNULL)
    tls = ["--tls-ca-file", str(certificate), "--tls-cert", str(certificate), "--tls-key", str(key)]
    head = network.hosts["head"].address
    dask = str(BIN / "dask")
    network.start(
        "head",
        [dask, "scheduler", "--protocol", "tls", "--host", head, "--port", "8786", "--no-dashboard", *tls],
        folder / "scheduler.log",
    )
    for name in ("one", "two"):
        options = ["--host", network.hosts[name].address, "--nthreads", "1", "--no-dashboard"]
        local = ["--local-directory", str(folder / name)]
        network.start(name, [dask, "worker", f"tls://{head}:8786", *options, *local, *tls], folder / f"{name}.log")
    security = {"tls_ca_file": str(certificate), "tls_client_cert": str(certificate), "tls_client_key": str(key)}
    yield {"security": security}


def on_dask(network: Network, folder: Path) -> None:
    """Run the census over Dask with TLS."""
    with dask_cluster(network, folder) as options:
        address = f"tls://{network.hosts['head'].address}:8786"
        certificate, key = str(folder / "certificate.pem"), str(folder / "key.pem")
        environment = {
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": certificate,
            "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": certificate,
            "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": key,
        }
        words_from_the_page(network, folder, address, **environment)
        census_with_a_cut(network, folder, "turnout_runners.dask:DaskTaskRunner", address, options)


def on_ray(network: Network, folder: Path) -> None:
    """Run the census over Ray, from a driver outside of the cluster."""
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "GRPC_ENABLE_FORK_SUPPORT": "0"}
    ray = str(BIN / "ray")
    head = network.hosts["head"].address
    common = ["--num-cpus", "1", "--object-store-memory", "200000000", "--disable-usage-stats"]
    command = [ray, "start", "--head", "--node-ip-address", head, "--port", "6379", "--include-dashboard", "false"]
    command += ["--ray-client-server-port", "10001", "--temp-dir", str(folder / "r"), *common]
    # As docs/ray.md says, so that a host which is cut off is missed within half a minute.
    missed_soon = {f"RAY_health_check_{name}": value for name, value in HEALTH_CHECK.items()}
    network.run("head", command, folder / "head.log", **environment, **missed_soon)
    for name in ("one", "two"):
        command = [ray, "start", "--address", f"{head}:6379", "--node-ip-address", network.hosts[name].address]
        network.run(name, [*command, *common], folder / f"{name}.log", **environment)
    address = f"ray://{head}:10001"
    words_from_the_page(network, folder, address, **environment)
    census_with_a_cut(network, folder, "turnout_runners.ray:RayTaskRunner", address, {}, **environment)


BACKENDS: Final = {"dask": on_dask, "ray": on_ray}


def expected() -> bytes:
    """Return the table that the census gives on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(BIN / "turnout"), "run", "examples/census.py:census", "--runner", "sequential"]
        subprocess.run([*command, "-p", f"output={folder}"], cwd=ROOT, check=True, capture_output=True)
        return (Path(folder) / "census.csv").read_bytes()


def main() -> int:
    """Run the census on each backend that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backends", nargs="*", choices=[*BACKENDS, []], default=[])
    wanted = parser.parse_args().backends or list(BACKENDS)
    table = expected()
    for backend in wanted:
        # Short: paths of sockets have a limit of 107 bytes.
        folder = Path(tempfile.mkdtemp(prefix="th-"))
        with Network(["driver", "head", "one", "two"]) as network:
            BACKENDS[backend](network, folder)
        if (folder / "census.csv").read_bytes() != table:
            raise SystemExit(f"ci/test-hosts: the table that {backend} gave differs; see {folder}")
        print(f"ci/test-hosts: {backend}: one host of three cut off: the same table as sequential", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
