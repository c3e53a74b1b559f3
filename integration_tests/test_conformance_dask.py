"""Every guarantee on Dask: on a cluster of our own, and on clusters that others started, over TCP and over TLS."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import abc
import functools
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration_tests.dask_clusters import Cluster, certificates
from integration_tests.shipping import ship_a_module
from turnout import TaskRunner, get_run_logger, task
from turnout.errors import CrashedRun, RunnerStartError
from turnout.testing import (
    FaultyWorkerConformance,
    InterruptedScriptConformance,
    RunnerConformance,
    Signals,
    run_script,
    runner_expression,
)
from turnout.testing._interrupts import _LIMIT, _THREAD, _scripted, interrupted
from turnout.testing._kit import Declare, run_on
from turnout.testing._leftovers import _FAILING, _LEFT_UP
from turnout.testing._records import RecordConformance
from turnout_runners.dask import DaskTaskRunner

pytestmark = pytest.mark.cluster

_clusters: dict[tuple[int, Path | None], Cluster] = {}


@pytest.fixture(autouse=True, scope="module")
def _no_cluster_stays_behind() -> Iterator[None]:
    yield
    while _clusters:
        _clusters.popitem()[1].stop()
    if certificates_folder.cache_info().currsize:
        shutil.rmtree(certificates_folder())
        certificates_folder.cache_clear()


@functools.cache
def certificates_folder() -> Path:
    """Return where the certificates of this module's clusters are."""
    return certificates(Path(tempfile.mkdtemp(prefix="turnout-test-certificates-")))


def cluster_of(workers: int, folder: Path | None = None) -> Cluster:
    """Return a cluster that stays up for all tests of this module."""
    key = (workers, folder)
    if key not in _clusters:
        _clusters[key] = Cluster(workers, folder)
    return _clusters[key]


@pytest.mark.xdist_group("dask: own")
class TestDaskOwn(RunnerConformance, InterruptedScriptConformance):
    """On a cluster that the runner starts on this machine."""

    def make_runner(self, slots: int) -> TaskRunner:
        return DaskTaskRunner(n_workers=slots)

    def test_F10_flow_in_another_thread(self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path) -> None:
        """A flow in another thread is ended when Ctrl-C has ended the main one. Its folder of temporary files may stay.

        The program may be over before the cluster is: the interpreter waits for none of Dask's threads.
        """
        ended = interrupted(
            [_scripted(fresh_runner, signals, _THREAD)], tmp_path, signals, [("waiting", signal.SIGINT)]
        )
        assert ended.status in (-signal.SIGINT, 1), ended
        assert ended.seconds < _LIMIT
        assert not ended.processes, ended


@pytest.mark.xdist_group("dask: faults")
class TestDaskFaults(FaultyWorkerConformance):
    """On a cluster of our own, whose workers have more to bear than most."""

    def make_runner(self, slots: int) -> TaskRunner:
        return DaskTaskRunner(n_workers=slots)


class ElsewhereConformance(RecordConformance):
    """What sounds a little different where the workers are somebody else's. Each is still tested, as it is true."""

    def test_C1_records_before_a_crash(
        self, runner: TaskRunner, caplog: pytest.LogCaptureFixture, declared: Declare
    ) -> None:
        """What a call logged arrives if its worker lives on for some milliseconds: no journal is read elsewhere."""
        declared("no journal: what a worker says in its last milliseconds goes with it")
        caplog.set_level(logging.INFO, "turnout")

        @task(crash_retries=0)
        def body() -> None:
            get_run_logger().info("last words")
            time.sleep(0.1)
            os._exit(1)

        with runner:
            assert isinstance(body.submit().exception(), CrashedRun)
        assert "last words" in caplog.text


class OnSomebodysDask(ElsewhereConformance, RunnerConformance):
    """On a scheduler and workers that are processes of their own."""

    @abc.abstractmethod
    def arguments(self, slots: int) -> dict[str, Any]:
        """Return what the runner has to be told."""

    def make_runner(self, slots: int) -> TaskRunner:
        return DaskTaskRunner(**self.arguments(slots))

    def test_L4_module_beside_the_script(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """A module that lies beside the script can be imported by tasks, if it is shipped."""
        ship_a_module(tmp_path, "dask", "DaskTaskRunner", self.arguments(2))

    def test_L4_arguments_and_directory(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """Tasks run where their workers do, which are not in the driver's directory."""
        assert run_on(fresh_runner, task(os.getcwd).submit) != str(Path.cwd())

    def test_L3_failed_script_leaves_no_worker(
        self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path
    ) -> None:
        """A script that an exception ends prints it once, and has exit status 1; the workers are not its own."""
        done = run_script(_FAILING.format(runner=runner_expression(fresh_runner), signals=signals), tmp_path)
        assert done.returncode == 1
        assert done.stderr.count("Traceback (most recent call last)") == 1
        assert signals.count("pid") == 4

    def test_L3_script_may_end_with_a_runner_up(
        self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path
    ) -> None:
        """A script that never leaves its `with runner:` ends all the same, in good order."""
        done = run_script(_LEFT_UP.format(runner=runner_expression(fresh_runner), signals=signals), tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "last line\n", "")
        assert run_on(fresh_runner, task(abs).submit, -1) == 1


@pytest.mark.xdist_group("dask: remote")
class TestDaskRemote(OnSomebodysDask):
    """Over TCP."""

    def arguments(self, slots: int) -> dict[str, Any]:
        # Another cluster would be another runner; so is another limit.
        return {"address": cluster_of(min(slots, 2)).address, "connect_timeout": 8.0 + slots}


@pytest.mark.xdist_group("dask: remote")
class TestDaskTls(OnSomebodysDask):
    """Over TLS."""

    def arguments(self, slots: int) -> dict[str, Any]:
        folder = certificates_folder()
        security = {
            "tls_ca_file": str(folder / "cert.pem"),
            "tls_client_cert": str(folder / "cert.pem"),
            "tls_client_key": str(folder / "key.pem"),
        }
        address = cluster_of(min(slots, 2), folder).address
        return {"address": address, "security": security, "connect_timeout": 8.0 + slots}


@pytest.mark.xdist_group("dask: remote")
def test_certificates_of_others_are_refused(tmp_path: Path) -> None:
    """A driver with certificates of another authority gets an error that says what to look at; the cluster lives on."""
    address = cluster_of(1, certificates_folder()).address

    def runner(folder: Path) -> DaskTaskRunner:
        names = {"tls_ca_file": "cert.pem", "tls_client_cert": "cert.pem", "tls_client_key": "key.pem"}
        security = {name: str(folder / file) for name, file in names.items()}
        return DaskTaskRunner(address=address, security=security, connect_timeout=3.0)

    with pytest.raises(RunnerStartError, match=r"No connection to tls://.* both tls:// with the same certificates"):
        run_on(runner(certificates(tmp_path)), task(abs).submit, -1)
    assert run_on(runner(certificates_folder()), task(abs).submit, -1) == 1
