"""What is special to Dask, on clusters: sockets, names, values, options, code, clients, growth, and lost schedulers."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import distributed
import numpy as np
import pytest
from dask.delayed import delayed

from integration_tests.dask_clusters import Cluster
from turnout import flow, get_run_logger, task
from turnout._sockets import listening
from turnout.errors import CrashedRun, RunnerStartError, TurnoutError
from turnout.testing import Signals, run_script
from turnout.testing._batches import batched
from turnout.testing._bodies import gate, identity, note
from turnout.testing._kit import eventually, run_on
from turnout_runners.dask import DaskTaskRunner, _link, get_dask_client
from turnout_runners.dask._link import Link
from turnout_runners.dask._placement import Placement
from turnout_runners.dask._wire import News, Stays

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("dask: special")]

ARRAY_BYTES = 16 << 20


@pytest.fixture(scope="module", autouse=True)
def _by_value(request: pytest.FixtureRequest) -> None:
    cloudpickle.register_pickle_by_value(request.module)


@pytest.fixture(scope="module")
def own() -> Iterator[DaskTaskRunner]:
    """A cluster of our own, with two workers, one of which could have a licence."""
    with DaskTaskRunner(n_workers=2, cluster_kwargs={"resources": {"licence": 1}}) as runner:
        yield runner


@pytest.fixture
def elsewhere() -> Iterator[Cluster]:
    """A cluster of somebody else's, with two workers."""
    cluster = Cluster(2)
    try:
        yield cluster
    finally:
        cluster.stop()


@task
def double(x: Any) -> Any:
    return 2 * x


@task
def make_array(seed: int) -> Any:
    return np.full(ARRAY_BYTES // 8, float(seed))


@task
def add_one(array: Any) -> Any:
    # In place: the argument is this call's own.
    array += 1
    return array


@task
def first_of(array: Any) -> float:
    return float(array[0])


@task
def fail_like_this() -> None:
    raise LookupError("no such row")


def on_scheduler(runner: DaskTaskRunner, function: Any) -> Any:
    """Return what a function of the scheduler says."""
    assert runner._connection is not None
    return runner._connection.client.run_on_scheduler(function)


# Safety


def test_it_listens_on_loopback_only() -> None:
    before = listening()
    with DaskTaskRunner(n_workers=2):
        double.submit(1).result()
        opened = listening() - before
        assert len(opened) >= 3
        assert [socket for socket in opened if not socket.is_local] == []


def test_its_workers_share_what_may_be_used_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "2048")
    for given, limit in ((None, 2**30), ("500MB", 500_000_000)):
        with DaskTaskRunner(n_workers=2, memory_limit=given) as runner:
            assert runner._link is not None
            assert [worker.memory for worker in runner._link.workers.values()] == [limit, limit]


def test_the_users_own_dask_does_not_go_this_way(own: DaskTaskRunner) -> None:
    import distributed

    with own:
        assert double.submit(1).result() == 2
        with pytest.raises(ValueError, match="No client"):
            distributed.default_client()  # type: ignore[no-untyped-call]


def test_settings_of_dask_are_as_before(own: DaskTaskRunner) -> None:
    import multiprocessing.spawn

    import dask.config

    assert dask.config.get("distributed.worker.daemon") is True
    assert dask.config.get("distributed.scheduler.allowed-failures") == 3
    assert multiprocessing.spawn.get_preparation_data.__module__ == "multiprocessing.spawn"


def test_settings_of_dask_are_as_before_though_several_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import dask.config

    from turnout_runners.dask import _own

    before = dask.config.get("distributed.worker.daemon"), dask.config.get("temporary-directory")
    begun, end = threading.Event(), threading.Event()

    def restart() -> None:
        with _own._settings(), _own._starting_workers():
            begun.set()
            end.wait()

    restarting = threading.Thread(target=restart)
    restarting.start()
    begun.wait()

    def make(**settings: Any) -> None:
        # A worker of another cluster, which was being started, is up.
        end.set()
        restarting.join()
        assert dask.config.get("distributed.worker.daemon") is False

    monkeypatch.setattr(_own, "_Cluster", make)
    cluster = _own.OwnCluster(1, 1, None, {})
    shutil.rmtree(cluster.directory)
    assert (dask.config.get("distributed.worker.daemon"), dask.config.get("temporary-directory")) == before


def test_a_crash_is_not_explained_by_an_earlier_worker_with_the_same_address() -> None:
    @task(crash_retries=0)
    def end() -> None:
        os._exit(3)

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def workers(dask_scheduler: Any) -> list[str]:
        return [worker.server_id for worker in dask_scheduler.workers.values()]

    with DaskTaskRunner(n_workers=1, cluster_kwargs={"worker_port": port}) as runner:
        pid = task(os.getpid).submit().result()
        before = on_scheduler(runner, workers)
        # It does nothing, so that nobody asks of what it dies.
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: on_scheduler(runner, workers) not in (before, []))
        assert f":{port} ended with exit code 3" in str(end.submit().exception())


def test_a_worker_without_descriptors_is_replaced_and_says_why_others_crashed(tmp_path: Path) -> None:
    signals = Signals(str(tmp_path))

    @task
    def use_up() -> str:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return "none is left"

    with DaskTaskRunner(n_workers=1, threads_per_worker=2):
        other = gate.with_options(crash_retries=0).submit(signals, "other")
        signals.wait("begun")
        assert use_up.submit().result() == "none is left"
        assert "had no file descriptors left, and was ended" in str(other.exception(timeout=30))
        assert double.submit(1).result() == 2


def test_tasks_may_use_multiprocessing(own: DaskTaskRunner) -> None:
    @task
    def with_children() -> list[int]:
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1, -2])

    with own:
        assert with_children.submit().result() == [1, 2]


# What the dashboard shows


def test_names_and_failures_are_shown(own: DaskTaskRunner) -> None:
    with own:
        double.map(range(4)).wait()
        assert isinstance(fail_like_this.submit().exception(), LookupError)

        def prefixes(dask_scheduler: Any) -> Any:
            return {name: dict(prefix.state_counts) for name, prefix in dask_scheduler.task_prefixes.items()}

        # The news of a call is a little faster than Dask's own word of its end.
        eventually(lambda: on_scheduler(own, prefixes)["double"]["memory"] >= 4, "Dask knows of the ends", 10)
        assert on_scheduler(own, prefixes)["fail_like_this"]["erred"] == 1


def test_nothing_stays_on_the_scheduler(own: DaskTaskRunner) -> None:
    def held(dask_scheduler: Any) -> tuple[int, int]:
        topics = dask_scheduler._broker._topics
        return len(dask_scheduler.tasks), max(len(topics[name].events) for name in topics if name.startswith("turnout"))

    with own:
        assert sum(double.map(range(1000)).result()) == 999_000
        eventually(lambda: on_scheduler(own, held) == (0, 0), "the scheduler holds nothing", 10)


@task
def submit_one() -> Any:
    return double.submit(1).result()


def test_nothing_stays_on_the_scheduler_of_tasks_that_submit(own: DaskTaskRunner) -> None:
    def topics(dask_scheduler: Any) -> int:
        return sum(name.startswith("turnout") for name in dask_scheduler._broker._topics)

    with own:
        before = on_scheduler(own, topics)
        for _ in range(3):
            assert submit_one.submit().result() == 2
        eventually(lambda: on_scheduler(own, topics) <= before, "their topics are gone", 10)


@pytest.mark.timeout(240)
def test_a_report_is_written(tmp_path: Path) -> None:
    # Not among the tools of all tests: with what it needs it is larger than all of them, for this one file.
    place, path = tmp_path / "bokeh", tmp_path / "report.html"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(place)]
    subprocess.run([*pip, "bokeh"], check=True, timeout=180)
    script = f"""
from turnout import task
from turnout_runners.dask import DaskTaskRunner, get_dask_client

@task
def double(x):
    return 2 * x

def be_late():
    # Dask hears of the end of a batch long after its news.
    import asyncio
    from turnout_runners.dask._remote import Work
    result = Work.result
    async def late(work):
        kept = await result(work)
        await asyncio.sleep(0.5)
        return kept
    Work.result = late

with DaskTaskRunner(n_workers=1, performance_report_path={str(path)!r}):
    get_dask_client().run(be_late)
    assert double.submit(1).result() == 2
"""
    done = run_script(script, tmp_path, environment={"PYTHONPATH": str(place)})
    assert done.returncode == 0, done.stderr
    text = path.read_text()
    assert "</html>" in text
    assert "double" in text


def test_a_report_needs_bokeh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    runner = DaskTaskRunner(n_workers=1, performance_report_path=tmp_path / "report.html")
    with pytest.raises(RunnerStartError, match="pip install bokeh"), runner:
        pass


# Values


def test_values_travel_from_worker_to_worker(own: DaskTaskRunner) -> None:
    @flow(task_runner=own)
    def through_ten() -> float:
        array = make_array.submit(1)
        for _ in range(10):
            array = add_one.submit(array)
        return first_of.submit(array).result()

    with own:
        through_ten()
        before = _read_bytes()
        assert through_ten() == 11.0
        # The scheduler is in this process too: nothing went through either.
        assert _read_bytes() - before < 1_000_000


def test_arguments_are_private(own: DaskTaskRunner) -> None:
    with own:
        array = make_array.submit(5)
        changed = [add_one.submit(array) for _ in range(4)]
        assert [first_of.submit(one).result() for one in changed] == [6.0] * 4
        assert first_of.submit(array).result() == 5.0
        assert array.result()[0] == 5.0


def test_a_dependent_waits_in_dask_for_what_it_needs(own: DaskTaskRunner, tmp_path: Path) -> None:
    signals = Signals(str(tmp_path))

    @task
    def wait_for_it() -> int:
        signals.wait("go")
        return 4

    def states(dask_scheduler: Any) -> list[str]:
        return [t.state for key, t in dask_scheduler.tasks.items() if str(key).startswith("double")]

    # Only calls that go alone anyhow, and are known to, are sent ahead.
    with own, batched("one"):
        assert double.submit(1).result() == 2
        first = wait_for_it.submit()
        second = double.submit(first)
        third = double.submit(second)
        eventually(lambda: on_scheduler(own, states) == ["waiting", "waiting"], "both are there", 10)
        assert not second.done()
        signals.set("go")
        assert (second.result(), third.result()) == (8, 16)


def test_dropped_values_are_let_go(own: DaskTaskRunner) -> None:
    def arrays(dask_scheduler: Any) -> int:
        return sum(str(key).startswith("make_array") for key in dask_scheduler.tasks)

    with own:
        array = make_array.submit(5)
        array.wait()
        assert on_scheduler(own, arrays) == 1
        del array
        eventually(lambda: on_scheduler(own, arrays) == 0, "it is gone", 10)


def test_values_that_passed_on_go_at_once(own: DaskTaskRunner) -> None:
    @task(read_only=True)
    def raised(array: Any) -> Any:
        import gc
        import weakref

        # Nothing may wait for the collector: it looks at numbers of objects, and not at how large they are.
        gc.disable()
        result = array + 1
        known = sys.__dict__.setdefault("turnout_test_arrays", [])
        known.append(weakref.ref(result))
        most = max(sys.__dict__.get("turnout_test_most", 0), sum(ref() is not None for ref in known))
        sys.__dict__["turnout_test_most"] = most
        return result

    @task(read_only=True)
    def most_at_once(array: Any) -> int:
        import gc

        gc.enable()
        return sys.__dict__["turnout_test_most"]  # type: ignore[no-any-return]

    with own:
        array = make_array.submit(1)
        for _ in range(20):
            array = raised.submit(array)
        # What it takes, what it returns, and one or two of which the word is on its way.
        assert most_at_once.submit(array).result() <= 5


def test_large_functions_travel_once(own: DaskTaskRunner) -> None:
    table = os.urandom(300_000)

    @task
    def look_up(index: int) -> int:
        return table[index]

    with own:
        before = _read_bytes()
        assert look_up.map(range(50)).result() == list(table[:50])
        # To the scheduler and to one worker; from there to the other.
        assert _read_bytes() - before < 4_000_000


def test_a_large_argument_travels_once(own: DaskTaskRunner, tmp_path: Path) -> None:
    array = np.ones(ARRAY_BYTES // 8)
    signals = Signals(str(tmp_path))

    @task
    def hold(array: Any) -> None:
        signals.wait("go")

    @task
    def total(array: Any, number: int) -> float:
        return float(array.sum()) + number

    def arguments(dask_scheduler: Any) -> int:
        return sum(state.nbytes > ARRAY_BYTES for state in dask_scheduler.tasks.values())

    with own:
        before = _read_bytes()
        # As long as this one is open, nobody may change it.
        held = hold.submit(array)
        futures = [total.submit(array, number) for number in range(50)]
        assert [future.result() for future in futures] == [array.size + number for number in range(50)]
        signals.set("go")
        held.result()
        # To one worker, if by way of the scheduler, which is in this process; and from there to the other.
        assert _read_bytes() - before < 3 * ARRAY_BYTES
        eventually(lambda: on_scheduler(own, arguments) == 0, "it is let go", 10)


def test_a_large_argument_that_is_lost_with_its_worker_is_sent_again(own: DaskTaskRunner, tmp_path: Path) -> None:
    array = np.ones(ARRAY_BYTES // 8)
    signals = Signals(str(tmp_path))

    @task
    def total(array: Any, number: int) -> float:
        if number < 2:
            # Both workers die, each for the first time that it has the array.
            signals.note("begun", str(number))
            if signals.notes("begun").count(str(number)) == 1:
                os.kill(os.getpid(), 9)
        return float(array.sum())

    with own:
        assert total.map([array] * 12, range(12)).result() == [float(array.size)] * 12


def test_the_scheduler_never_unpickles_user_code(own: DaskTaskRunner) -> None:
    with own:
        main = os.getpid()

        class Marked:
            def __reduce__(self) -> Any:
                return _refuse_in, (main,)

        assert double.with_options(name="marked").submit(3).result() == 6
        assert task(lambda marked: marked).submit(Marked()).result() == "unpacked elsewhere"


def _refuse_in(pid: int) -> str:
    if os.getpid() == pid:
        raise AssertionError("unpacked in the process of driver and scheduler")
    return "unpacked elsewhere"


def _read_bytes() -> int:
    """Return how much this process has read, from sockets too."""
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    return int(line.split()[1])


def test_large_arguments_do_not_stay_on_the_scheduler(own: DaskTaskRunner, tmp_path: Path) -> None:
    signals = Signals(str(tmp_path))
    array = np.ones(ARRAY_BYTES // 8)

    def largest(dask_scheduler: Any) -> int:
        return max((len(pickle.dumps(t.run_spec)) for t in dask_scheduler.tasks.values() if t.run_spec), default=0)

    with own:
        futures = [first_in_time.submit(array, signals) for _ in range(3)]
        eventually(lambda: on_scheduler(own, largest) > 0, "a call is on the scheduler", 10)
        assert on_scheduler(own, largest) < 1_000_000
        signals.set("go")
        assert [future.result() for future in futures] == [1.0] * 3


@task
def first_in_time(array: Any, signals: Signals) -> float:
    signals.wait("go")
    return float(array[0])


SCRIPT = """
import functools
from turnout import flow, task

@functools.cache
def square(x):
    return x * x

@task
def total(numbers):
    print("on a worker")
    return sum(map(square, numbers))

@flow
def totals():
    # First where the script can be imported.
    return total.with_options(task_runner="process").submit([1, 2]), total.submit([3, 4])
"""


def test_a_file_given_to_turnout_run_travels(elsewhere: Cluster, tmp_path: Path) -> None:
    (tmp_path / "a_script_of_mine.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "turnout", "run", "a_script_of_mine.py", "--runner", elsewhere.address]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["on a worker", "on a worker", "(5, 25)"]


# Options and needs


def test_options_of_dask(own: DaskTaskRunner) -> None:
    @task(dask_options={"workers": ["1"], "priority": 5})
    def where() -> str:
        import distributed

        return str(distributed.get_worker().name)

    with own:
        assert {where.submit().result() for _ in range(6)} == {"1"}


def test_resources_are_counted(own: DaskTaskRunner, tmp_path: Path) -> None:
    signals = Signals(str(tmp_path))

    @task(resources={"licence": 1, "cpu": 1})
    def licensed() -> int:
        signals.note("licensed")
        return 1

    with own:
        assert sum(future.result() for future in [licensed.submit() for _ in range(4)]) == 4


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dask_options": {"colour": "red"}}, "dask_options of task 'double' has no 'colour'"),
        ({"dask_options": {"workers": "nobody"}}, "is to run on nobody, and the cluster has 2 workers"),
        ({"resources": {"gpu": 1}}, "needs a worker with gpu=1"),
    ],
)
def test_what_nobody_has_is_an_error_within_seconds(own: DaskTaskRunner, options: dict[str, Any], text: str) -> None:
    with own:
        begin = time.monotonic()
        with pytest.raises(TurnoutError, match=text):
            double.with_options(**options).submit(1).result()
        assert time.monotonic() - begin < 5


# Clients


def test_the_client_in_a_flow_and_in_a_task(own: DaskTaskRunner) -> None:
    @task
    def squares() -> int:
        # On a cluster of one thread per worker, all of which may wait here.
        client: Any = get_dask_client()
        return int(sum(client.gather(client.map(pow, [1, 2, 3], [2, 2, 2]))))

    @flow(task_runner=own)
    def main() -> tuple[int, list[int]]:
        there = get_dask_client().submit(pow, 2, 5).result()
        return there, [future.result() for future in [squares.submit() for _ in range(4)]]

    assert main() == (32, [14] * 4)


def test_a_client_may_be_used_in_a_block_and_is_not_closed(own: DaskTaskRunner) -> None:
    @task
    def total(count: int) -> int:
        with get_dask_client() as client:
            assert distributed.get_client() is client
            return int(delayed(sum)(list(range(count))).compute())

    @flow(task_runner=own)
    def main() -> list[int]:
        with get_dask_client() as client, get_dask_client():
            there = client.submit(pow, 2, 5).result()
            # Without the block, this runs in threads of this process.
            pid = delayed(os.getpid)().compute()
        client.close()
        assert pid != os.getpid()
        return [there, *total.map([3, 4, 5]).result()]

    assert main() == [32, 3, 6, 10]
    assert main() == [32, 3, 6, 10]


def test_a_client_that_is_lent_lives_in_async_blocks(own: DaskTaskRunner) -> None:
    @task
    def double(number: int) -> int:
        return 2 * number

    @flow(task_runner=own)
    async def main() -> int:
        async with get_dask_client() as client:
            there = client.submit(pow, 2, 5).result()
        return int(there + await double.submit(1))

    assert asyncio.run(main()) == 34


def test_dask_knows_the_worker_in_a_body(own: DaskTaskRunner) -> None:
    @task
    def address() -> str:
        import distributed

        return str(distributed.get_worker().address)

    with own:
        assert address.submit().result().startswith("tcp://127.0.0.1:")


# Words on the way


def _ends_of_rests(dask_worker: Any) -> list[list[str]]:
    """Return what a worker sent along with the ends of calls of `rest`."""
    return [
        [message["op"] for message in payload]
        for payload in dask_worker.batched_stream.recent_message_log
        if any(message["op"] == "task-finished" and "rest" in str(message["key"]) for message in payload)
    ]


def test_the_end_of_a_batch_and_its_news_go_together(own: DaskTaskRunner) -> None:
    """What goes alone keeps the next from going for some milliseconds, and with it the next call."""

    @task(batch=False)
    def rest() -> None:
        # Until nothing is on its way.
        time.sleep(0.05)

    @flow(task_runner=own)
    def main() -> list[list[str]]:
        for _ in range(5):
            rest.submit().result()
        client: Any = get_dask_client()
        return [end for ends in client.run(_ends_of_rests).values() for end in ends]

    ends = main()
    assert ends
    # On a busy machine, Dask may have sent the news before the word of the end was there.
    assert any("log-event" in end for end in ends)


def test_streams_send_each_millisecond(own: DaskTaskRunner) -> None:
    def intervals(dask_scheduler: Any) -> list[float]:
        return [stream.interval for stream in dask_scheduler.stream_comms.values()]

    with own:
        client: Any = get_dask_client()
        assert set(client.run_on_scheduler(intervals)) == {client.scheduler_comm.interval} == {0.001}


# Code


def test_shipped_code_is_there_and_goes_again(
    elsewhere: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shipped_words.py").write_text("def shout(text):\n    return text.upper()\n")
    monkeypatch.syspath_prepend(tmp_path)

    @task
    def shout(text: str) -> str:
        import shipped_words  # type: ignore[import-not-found]

        return str(shipped_words.shout(text))

    with DaskTaskRunner(address=elsewhere.address, ship=[str(tmp_path / "shipped_words.py")]):
        assert shout.map(["a", "b", "c"]).result() == ["A", "B", "C"]
    with DaskTaskRunner(address=elsewhere.address):
        assert isinstance(shout.submit("a").exception(), ModuleNotFoundError)


# Clusters


def test_a_cluster_handed_in_stays_up() -> None:
    from distributed import LocalCluster

    make: Any = LocalCluster
    with make(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        protocol="tcp://",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        runner = DaskTaskRunner(cluster=cluster)
        for _ in range(2):
            with runner:
                assert runner.slots() == 2
                assert double.map(range(5)).result() == [0, 2, 4, 6, 8]
        assert len(cluster.scheduler_info["workers"]) == 1


def test_a_class_of_clusters() -> None:
    runner = DaskTaskRunner(
        cluster_class="distributed.LocalCluster",
        cluster_kwargs={
            "n_workers": 1,
            "threads_per_worker": 1,
            "processes": False,
            "protocol": "tcp://",
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
        },
    )
    with runner:
        assert double.submit(4).result() == 8


def test_it_grows_from_nothing(tmp_path: Path) -> None:
    signals = Signals(str(tmp_path))
    runner = DaskTaskRunner(
        cluster_kwargs={"n_workers": 0}, adapt_kwargs={"minimum": 0, "maximum": 2, "interval": "100ms"}
    )
    with runner:
        assert runner.slots() > 2

        @task
        def meet() -> int:
            signals.note("begun")
            signals.wait_count("begun", 2, timeout=50)
            return os.getpid()

        pids = {future.result() for future in [meet.submit() for _ in range(20)]}
        assert len(pids) == 2


def test_a_worker_that_comes_late_gets_work(elsewhere: Cluster, tmp_path: Path) -> None:
    signals = Signals(str(tmp_path))

    @task
    def together(name: str) -> str:
        signals.note(name)
        signals.wait("go")
        return name

    runner = DaskTaskRunner(address=elsewhere.address)
    with runner:
        futures = [together.submit("begun") for _ in range(3)]
        signals.wait_count("begun", 2)
        elsewhere.add_worker("late")
        signals.wait_count("begun", 3)
        signals.set("go")
        assert [future.result() for future in futures] == ["begun"] * 3
        assert runner.slots() == 3


def test_a_worker_that_comes_while_a_batch_is_put_aside(own: DaskTaskRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look for a worker and the note that there is none, one may come: the batch must not wait for more."""
    looks = iter([None])
    monkeypatch.setattr(_link, "place", lambda batch, workers: next(looks, Placement({}, frozenset())))
    assert own._link is not None
    # A cluster that lost one may get it back.
    monkeypatch.setattr(own._link, "_most_workers", 3)
    assert run_on(own, task(abs).submit, -1) == 1
    assert own._link._unplaced.all() == []


def test_a_worker_that_goes_while_a_batch_is_sent_to_it(own: DaskTaskRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask would wait for it to come back: the batch goes elsewhere."""
    looks = iter([Placement({"workers": ["tcp://127.0.0.1:1"]}, frozenset({"tcp://127.0.0.1:1"}))])
    monkeypatch.setattr(_link, "place", lambda batch, workers: next(looks, Placement({}, frozenset())))
    assert run_on(own, task(abs).submit, -1) == 1


def test_what_waits_behind_a_task_that_is_suddenly_long_goes_elsewhere(own: DaskTaskRunner, tmp_path: Path) -> None:
    """Dask puts it there because that should be over in no time, and would forget it there."""
    signals = Signals(str(tmp_path))

    @task
    def double(number: int) -> int:
        return 2 * number

    @task(dask_options={"workers": ["0"]})
    def quick_at_first(name: str) -> None:
        signals.set(f"{name} begun")
        signals.wait(name)

    @task(dask_options={"workers": ["1"]})
    def always_slow(name: str) -> None:
        signals.set(f"{name} begun")
        time.sleep(0.1)

    @flow(task_runner=own)
    def main() -> list[int]:
        signals.set("quick")
        for _ in range(3):
            quick_at_first.submit("quick").wait()
            always_slow.submit("known").wait()
            double.submit(1).wait()
        results = []
        for number in range(3):
            # While both workers are busy, that of the quick one is the better place.
            always_slow.submit(f"slow {number}")
            signals.wait(f"slow {number} begun")
            long = quick_at_first.submit(f"long {number}")
            signals.wait(f"long {number} begun")
            results.append(double.submit(number).result(timeout=10))
            signals.set(f"long {number}")
            long.wait()
        return results

    assert main() == [0, 2, 4]


def test_a_nested_call_whose_worker_died_does_not_wait_for_those_that_wait_for_it(
    own: DaskTaskRunner, tmp_path: Path
) -> None:
    """What may have killed a worker runs again when nothing else does; those above it, on one worker, only wait."""
    signals = Signals(str(tmp_path))

    @task(dask_options={"workers": ["1"]})
    def bottom() -> str:
        signals.note("bottom")
        if signals.count("bottom") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return "bottom"

    @task(dask_options={"workers": ["0"]})
    def middle() -> str:
        return bottom.submit().result()

    @task(dask_options={"workers": ["0"]})
    def top() -> str:
        return middle.submit().result()

    assert run_on(own, top.submit) == "bottom"
    assert signals.count("bottom") == 2


def test_a_call_that_runs_alone_may_wait_for_calls_of_its_own(own: DaskTaskRunner, tmp_path: Path) -> None:
    """It may have killed a worker, and so has the cluster for itself; but what it submits goes the same way."""
    signals = Signals(str(tmp_path))

    @task
    def suspect() -> str:
        signals.note("suspect", str(os.getpid()))
        if signals.count("suspect") == 1:
            signals.set("dying")
            os.kill(os.getpid(), signal.SIGKILL)
        return task(str).submit("nested").result()

    @task(dask_options={"workers": ["0"]})
    def top() -> int:
        future = suspect.submit()
        # Until then the slot is not given away: the suspect runs on the other worker, and then, alone, on this one.
        signals.wait("dying")
        assert future.result() == "nested"
        return os.getpid()

    assert str(run_on(own, top.submit)) == signals.notes("suspect")[1]


def test_a_recall_that_overtakes_the_news_of_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers answer by another way than that of the news: that a batch is not there any more must not mean "never"."""
    take_event, signals = Link._take_event, Signals(str(tmp_path))
    held: list[Any] = []
    go = threading.Event()

    def take_late(link: Link, event: Any) -> None:
        message = event[1]
        sent = link._open.get(News.unpacked(message).number) if isinstance(message, bytes) else None
        if sent is not None and sent.is_several and not go.is_set():
            held.append(event)
        else:
            take_event(link, event)

    monkeypatch.setattr(Link, "_take_event", take_late)
    with batched("most"), DaskTaskRunner(n_workers=1) as runner:
        first = gate.submit(signals)
        futures = note.map([signals] * 20, "ran", range(20), wait_for=[first])
        signals.set("go")
        link = runner._link
        assert link is not None
        eventually(lambda: any(sent.is_several for sent in link._open.values()), "a batch is sent")
        sent = next(sent for sent in link._open.values() if sent.is_several)
        signals.wait_count("ran", len(sent.batch.calls))
        # As long as it waits for an answer from the cluster.
        assert futures[0].cancel()
        go.set()
        for event in held:
            take_event(link, event)
        for future in futures:
            future.wait()
    assert sorted(map(int, signals.notes("ran"))) == list(range(20))


@pytest.mark.parametrize("moment", ["_take_news", "_collect"])
def test_a_batch_that_is_cancelled_when_its_large_value_is_made(
    own: DaskTaskRunner, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Dask does not keep the value then, and tells no more of it: the batch is over all the same."""
    went_on = getattr(Link, moment)
    cancelled: list[Any] = []

    def cancel_first(link: Link, told: Any) -> None:
        sent = link._open.get(told.number)
        is_made = moment == "_collect" or any(isinstance(outcome.data, Stays) for outcome in told.outcomes)
        if sent is not None and is_made and not cancelled:
            cancelled.append(sent)
            link.cancel(sent.batch)
        went_on(link, told)

    monkeypatch.setattr(Link, moment, cancel_first)
    with own:
        # Nobody but us has cancelled it: it is run again.
        assert identity.submit(bytes(ARRAY_BYTES)).result(30) == bytes(ARRAY_BYTES)
    assert cancelled


def test_nothing_runs_again_when_a_script_ends_with_a_runner_up(tmp_path: Path) -> None:
    """Dask closes one worker after the other then, and makes anew on the rest what somebody still wants."""
    script = f"""
        import asyncio
        from turnout.testing import Signals
        from turnout.testing._leftovers import note_pid
        from turnout_runners.dask import DaskTaskRunner
        from turnout_runners.dask._ended import Ended
        from turnout_runners.dask._own import _Nanny

        # Dask has not told yet that anything is over; and one worker ends late.
        Ended.let_go = lambda self: None
        close = _Nanny.close

        async def close_late(self, *args, **kwargs):
            if self.name:
                await asyncio.sleep(1)
            return await close(self, *args, **kwargs)

        _Nanny.close = close_late
        runner = DaskTaskRunner(n_workers=2)
        runner.__enter__()
        for future in note_pid.map([Signals({str(tmp_path)!r})] * 4, range(4)):
            future.result()
    """
    done = run_script(textwrap.dedent(script), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert Signals(str(tmp_path)).count("pid") == 4


def test_a_lost_scheduler_ends_the_flow(elsewhere: Cluster, tmp_path: Path) -> None:
    signals = Signals(str(tmp_path))

    @task
    def stay() -> None:
        signals.note("begun")
        time.sleep(100)

    with DaskTaskRunner(address=elsewhere.address):
        futures = [stay.submit() for _ in range(6)]
        signals.wait_count("begun", 2)
        begin = time.monotonic()
        elsewhere.kill(elsewhere.scheduler)
        errors = [future.exception() for future in futures]
        assert time.monotonic() - begin < 30
        assert all(isinstance(error, CrashedRun) for error in errors)
        assert "connection to the scheduler is lost" in str(errors[0])
        assert "can't be reached" in str(double.submit(1).exception())


def test_a_driver_that_is_killed_leaves_nothing_running(elsewhere: Cluster, tmp_path: Path) -> None:
    from turnout.testing import run_script

    signals = Signals(str(tmp_path))
    script = f"""
import os, signal, time
from turnout import flow, task
from turnout.testing import Signals
from turnout_runners.dask import DaskTaskRunner

signals = {signals!r}

@task
def stay():
    signals.note("begun")
    try:
        while True:
            time.sleep(0.01)
    finally:
        signals.set("ended")

@flow(task_runner=DaskTaskRunner(address="{elsewhere.address}"))
def main():
    stay.submit()
    signals.wait_count("begun", 1)
    os.kill(os.getpid(), signal.SIGKILL)

main()
"""
    assert run_script(script, tmp_path).returncode == -signal.SIGKILL
    signals.wait("ended", 10)
    with DaskTaskRunner(address=elsewhere.address) as runner:
        assert double.submit(2).result() == 4
        names = on_scheduler(runner, lambda dask_scheduler: [n for n in dask_scheduler.plugins if "turnout" in n])
        assert len(names) == 1


def test_logs_of_a_long_task_arrive_while_it_runs(
    elsewhere: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signals = Signals(str(tmp_path))
    caplog.set_level(logging.INFO, "turnout")

    @task
    def long() -> None:
        get_run_logger().info("half way")
        signals.wait("go")

    with DaskTaskRunner(address=elsewhere.address):
        future = long.submit()
        eventually(lambda: "half way" in caplog.text, "the log record arrives", 20)
        assert not future.done()
        signals.set("go")
        future.result()


@pytest.mark.timeout(120)
def test_ten_thousand_calls_one_by_one(own: DaskTaskRunner) -> None:
    def keys(dask_scheduler: Any) -> set[str]:
        return set(dask_scheduler.tasks)

    with own:
        # A large function stays for as long as the runner is up.
        before = on_scheduler(own, keys)
        assert sum(double.with_options(batch=False).map(range(10_000)).result()) == 99_990_000
        assert threading.active_count() < 100
        eventually(lambda: on_scheduler(own, keys) <= before, "the scheduler holds no more than before", 10)
