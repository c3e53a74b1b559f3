"""The parts of the Dask runner that need no cluster: settings, placement, blame, journals, addresses."""

from __future__ import annotations

import asyncio
import functools
import logging
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.config
import pytest
from distributed.batched import BatchedSend
from tornado.ioloop import IOLoop

from turnout import flow, task
from turnout.errors import RunnerOptionError, RunnerStartError
from turnout.registry import resolve
from turnout.runner import Batch, Outcome, OutcomeKind, Plan
from turnout_runners.dask import DaskTaskRunner, get_dask_client
from turnout_runners.dask._addresses import is_beyond_this_machine
from turnout_runners.dask._asking import Asking
from turnout_runners.dask._clusters import check_cluster_versions
from turnout_runners.dask._journal import Journal, entries, journal_path
from turnout_runners.dask._placement import Worker, checked_options, place, why_nowhere
from turnout_runners.dask._quiet import only_warnings
from turnout_runners.dask._remote import What
from turnout_runners.dask._sent import Sent, verdicts
from turnout_runners.dask._threads import Permits, run_in_thread
from turnout_runners.dask._watch import wake_overslept
from turnout_runners.dask._wire import News, Stays, key_of, number_of


class OneCall:
    """Stands for a call as far as runners look at it."""

    class task:  # noqa: N801
        name = "solve"

    class future:  # noqa: N801
        name = "solve-0"


class PlainBatch(Batch):
    """A batch with nothing in it."""

    def __init__(
        self, calls: int = 1, resources: Mapping[str, float] | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self.calls = [OneCall()] * calls  # type: ignore[list-item]
        self.resources = resources or {}
        self.options = {"dask": options or {}}
        self.may_stay = True
        self.is_async = False
        self.upstream = ()


# Settings


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"address": "tcp://a:1", "cluster_class": "x.Y"}, "name two clusters"),
        ({"address": "tcp://a:1", "n_workers": 2}, "n_workers= is for a cluster of the runner's own"),
        ({"cluster_class": "x.Y", "memory_limit": "1GiB"}, "cluster_kwargs"),
        ({"address": "a:8786"}, "'tcp://a:8786'"),
        ({"address": "tcp://a:1", "adapt_kwargs": {}}, "adapt_kwargs= is for a cluster that the runner starts"),
        ({"n_workers": 0}, "n_workers=0"),
        ({"n_workers": "2"}, "n_workers='2': give a whole number"),
        ({"n_workers": "http://a:1"}, "If it is an address: address='http://a:1'"),
        ({"threads_per_worker": True}, "threads_per_worker=True"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(RunnerOptionError, match=text):
        DaskTaskRunner(**settings)


def test_words_and_urls() -> None:
    assert resolve("dask") == DaskTaskRunner()
    assert resolve("dask?n_workers=2") == DaskTaskRunner(n_workers=2)
    assert resolve("tcp://head:8786") == DaskTaskRunner(address="tcp://head:8786")
    assert resolve("tls://head:8786") == DaskTaskRunner(address="tls://head:8786")


def test_capabilities_are_those_of_the_cluster() -> None:
    assert DaskTaskRunner().capabilities.isolates_crashes
    assert DaskTaskRunner().capabilities.ends_with_driver
    assert not DaskTaskRunner(threads_per_worker=2).capabilities.isolates_crashes
    assert not DaskTaskRunner(address="tcp://a:1").capabilities.ends_with_driver


@pytest.mark.parametrize(
    ("settings", "plan"),
    [
        ({}, Plan(1, 2**31)),
        ({"n_workers": 2}, Plan(2, 2**30)),
        ({"n_workers": 2, "threads_per_worker": 3}, Plan(6, 2**30)),
        ({"n_workers": 2, "memory_limit": 10**9}, Plan(2, 10**9)),
        ({"n_workers": 2, "memory_limit": "1GB"}, Plan(2, None)),
        ({"n_workers": 2, "memory_limit": 0}, Plan(2, None)),
        ({"n_workers": 2, "cluster_kwargs": {"memory_limit": 10**9, "n_workers": 4}}, Plan(4, 10**9)),
        ({"cluster_kwargs": {"n_workers": 4}}, Plan(4, 2**29)),
        ({"adapt_kwargs": {"maximum": 4}}, Plan()),
        ({"address": "tcp://127.0.0.1:1"}, Plan()),
        ({"cluster_class": "dask_jobqueue.SLURMCluster"}, Plan()),
    ],
)
def test_what_a_cluster_of_its_own_would_be(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], plan: Plan
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "2048")
    assert DaskTaskRunner(**settings).plan() == plan


def test_a_recipe_loads_no_dask() -> None:
    script = "import sys, turnout_runners.dask as d; d.DaskTaskRunner(); assert 'distributed' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


def test_no_client_without_a_runner() -> None:
    with pytest.raises(Exception, match="found no Dask runner that is up"):
        get_dask_client()


# Addresses


@pytest.mark.parametrize(
    ("address", "is_beyond"),
    [
        ("tcp://127.0.0.1:8786", False),
        ("tcp://[::1]:8786", False),
        ("tcp://localhost:8786", False),
        ("tcp://10.0.0.7:8786", True),
        ("tcp://head:8786", True),
        ("tls://10.0.0.7:8786", False),
    ],
)
def test_addresses_that_lead_over_a_network(address: str, is_beyond: bool) -> None:
    assert is_beyond_this_machine(address) is is_beyond


def test_plain_tcp_over_a_network_warns_and_an_unreachable_address_says_so() -> None:
    # TEST-NET-1: nobody answers there.
    runner = DaskTaskRunner(address="tcp://192.0.2.1:8786", connect_timeout=0.3)
    with (
        pytest.warns(RuntimeWarning, match="without encryption"),
        pytest.raises(RunnerStartError, match=r"tcp://192.0.2.1:8786 within 0.3 s.*dask scheduler"),
    ):
        runner.start(None)  # type: ignore[arg-type]
    runner.stop()


def test_a_port_that_says_nothing_is_not_waited_for_longer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        runner = DaskTaskRunner(address=f"tcp://127.0.0.1:{mute.getsockname()[1]}", connect_timeout=0.3)
        with pytest.raises(RunnerStartError, match=r"within 0.3 s.*says nothing.*dask scheduler"):
            runner.start(None)  # type: ignore[arg-type]


def test_tls_without_certificates_says_what_is_missing() -> None:
    runner = DaskTaskRunner(address="tls://127.0.0.1:9", connect_timeout=0.3)
    with pytest.raises(RunnerStartError, match="security=dict"):
        runner.start(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("security", "text"),
    [
        ({"ca": "x"}, "has no 'ca'"),
        ({"tls_ca_file": "/no/such.pem"}, "no file /no/such.pem"),
        ({"tls_ca_file": __file__}, "needs tls_ca_file, tls_client_cert"),
        ({"tls_ca_file": __file__, "tls_client_cert": __file__}, "no certificates and key that fit"),
    ],
)
def test_wrong_paths_of_certificates(security: dict[str, str], text: str) -> None:
    runner = DaskTaskRunner(address="tls://127.0.0.1:9", security=security)
    with pytest.raises(RunnerOptionError, match=text):
        runner.start(None)  # type: ignore[arg-type]


def test_a_class_that_is_not_there() -> None:
    runner = DaskTaskRunner(cluster_class="no_such_package.Cluster")
    with pytest.raises(RunnerStartError, match=r"no_such_package.*Install"):
        runner.start(None)  # type: ignore[arg-type]


# Versions


class Answering:
    """A client whose workers answer what a test wants."""

    def __init__(self, **different: Any) -> None:
        from turnout._cluster import versions

        self.answer = {**versions(), **different}

    def run(self, function: Any, on_error: str) -> dict[str, Any]:
        return {"tcp://10.0.0.7:4711": self.answer}


@pytest.mark.parametrize(
    ("different", "text"),
    [
        ({"python": "3.1.9"}, r"driver has Python 3\.\d+.*worker tcp://10.0.0.7:4711 has Python 3.1.9"),
        ({"turnout": "99.0.0"}, "worker tcp://10.0.0.7:4711 has Turnout 99.0.0"),
        ({"turnout": None}, "Turnout is not installed"),
    ],
)
def test_versions_that_do_not_fit(different: dict[str, Any], text: str) -> None:
    with pytest.raises(RunnerStartError, match=text):
        check_cluster_versions(Answering(**different))


def test_versions_that_may_not_fit() -> None:
    with pytest.warns(RuntimeWarning, match="cloudpickle"):
        check_cluster_versions(Answering(cloudpickle="1.0"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_cluster_versions(Answering())


# Placement

WORKERS = {
    "tcp://10.0.0.1:1": Worker("tcp://10.0.0.1:1", "one", 4, 8.0 * 2**30, {"GPU": 2, "licence": 1}),
    "tcp://10.0.0.2:1": Worker("tcp://10.0.0.2:1", "two", 8, 0, {}),
}


def placed(needs: Mapping[str, float] | None = None, **options: Any) -> tuple[Mapping[str, Any], set[str]] | None:
    placement = place(PlainBatch(resources=needs, options=options), WORKERS)
    return None if placement is None else (placement.keywords, {address[10] for address in placement.only_on})


def test_no_needs_are_no_limits() -> None:
    assert placed() == ({}, set())
    assert placed(priority=3) == ({"priority": 3}, set())


def test_what_is_declared_is_counted_by_dask() -> None:
    assert placed({"gpu": 1}) == ({"resources": {"GPU": 1}}, set())
    assert placed({"licence": 1}) == ({"resources": {"licence": 1}}, set())
    assert placed(resources={"licence": 1}) == placed({"licence": 1})


def test_what_workers_have_without_declaring_it_limits_where() -> None:
    placement = placed({"cpu": 6})
    assert placement is not None
    assert placement[0] == {"workers": ["tcp://10.0.0.2:1"]}
    assert placed({"memory": 16.0 * 2**30}) == placement


@pytest.mark.parametrize("name", ["two", "tcp://10.0.0.2:1", "10.0.0.2:1", "10.0.0.2"])
def test_workers_by_name_address_or_host(name: str) -> None:
    for given in (name, [name]):
        placement = placed(workers=given)
        assert placement is not None
        assert placement[0] == {"workers": ["tcp://10.0.0.2:1"]}


@pytest.mark.parametrize(
    ("resources", "options"),
    [({"cpu": 9}, {}), ({"gpu": 3}, {}), ({"magic": 1}, {}), ({}, {"workers": "three"}), ({}, {"resources": {"x": 1}})],
)
def test_needs_that_nobody_meets_are_explained(resources: dict[str, float], options: dict[str, Any]) -> None:
    assert placed(resources, **options) is None
    why = why_nowhere(PlainBatch(resources=resources, options=options), WORKERS)
    assert "solve-0" in why
    assert "one (cpu=4, memory=8 GiB, GPU=2, licence=1)" in why
    assert str(next(iter({**resources, **options}))) in why or "three" in why or "x=1" in why


def test_unknown_options_are_named() -> None:
    with pytest.raises(RunnerOptionError, match=r"'solve' has no 'retries'. There are priority, workers and resources"):
        checked_options(PlainBatch(options={"retries": 3}))


# Blame


def sent(number: int, *outcomes: Outcome, calls: int = 1, unpacked: bool = True) -> Sent:
    made = Sent(number, PlainBatch(calls))
    if unpacked:
        made.take(News("topic", number, 1, False, outcomes))
    return made


def judged(held: Sequence[Sent], told_all: bool = True) -> list[list[str]]:
    return [[outcome.kind.name for outcome in outcomes] for _, outcomes in verdicts(held, "x", told_all=told_all)]


def started(index: int = 0) -> Outcome:
    return Outcome(index, OutcomeKind.STARTED)


def test_the_one_that_ran_is_guilty_and_others_go_free() -> None:
    assert judged([sent(1, started()), sent(2), sent(3, unpacked=False)]) == [["CRASHED"], ["RETURNED"], ["RETURNED"]]


def test_of_several_that_ran_nobody_knows() -> None:
    assert judged([sent(1, started()), sent(2, started()), sent(3, unpacked=False)]) == [
        ["LOST"],
        ["LOST"],
        ["RETURNED"],
    ]


def test_unpacking_may_kill_too() -> None:
    assert judged([sent(1), sent(2, unpacked=False)]) == [["CRASHED"], ["RETURNED"]]


def test_an_idle_worker_that_died_is_nobodys_fault() -> None:
    assert judged([sent(1, unpacked=False), sent(2, unpacked=False)]) == [["RETURNED"], ["RETURNED"]]


def test_without_last_words_those_behind_may_have_run() -> None:
    assert judged([sent(1), sent(2, unpacked=False)], told_all=False) == [["CRASHED"], ["RETURNED"]]


def test_of_several_calls_each_may_be_the_guilty_one() -> None:
    done = Outcome(0, OutcomeKind.VALUE, 1)
    assert judged([sent(1, started(), done, started(1), calls=3)]) == [["LOST", "LOST"]]
    assert judged([sent(1, started(), done, calls=2)]) == [["CRASHED"]], "there is but one left"
    assert judged([sent(1, calls=2, unpacked=False), sent(2, started())]) == [["RETURNED", "RETURNED"], ["CRASHED"]]
    assert judged([sent(1, calls=2), sent(2, started())]) == [["LOST", "LOST"], ["LOST"]]


def test_a_result_that_went_with_its_worker_is_a_crash_of_nobody_elses() -> None:
    staying = sent(1, started(), Outcome(0, OutcomeKind.VALUE, Stays(10**6)))
    assert judged([staying, sent(2, started())]) == [["CRASHED"], ["CRASHED"]]


def test_news_that_come_twice_are_taken_once() -> None:
    made = Sent(1, PlainBatch())
    news = News("topic", 1, 1, False, [started()])
    assert made.take(news) == [started()]
    assert made.take(news) == []
    assert News.unpacked(news.packed()) == news


# Journals


def test_a_journal_outlives_its_writer(tmp_path: Path) -> None:
    path = journal_path(str(tmp_path), "tcp://127.0.0.1:4711")
    assert path.name == "4711"
    script = (
        "import os, signal, sys; from pathlib import Path; from turnout_runners.dask._journal import Journal\n"
        "journal = Journal(Path(sys.argv[1])); journal.write(b'one'); journal.write(b'two' * 1000)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=30)
    assert list(entries(path)) == [b"one", b"two" * 1000]
    path.write_bytes(path.read_bytes()[:-1])
    assert list(entries(path)) == [b"one"]
    assert list(entries(tmp_path / "none")) == []


def test_a_journal_forgets_what_was_sent_when_it_is_long(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.write(b"x" * 1000)
    journal.restart([])
    assert len(list(entries(tmp_path / "journal"))) == 1
    journal.write(b"x" * 300_000)
    journal.restart([b"unsent"])
    assert list(entries(tmp_path / "journal")) == [b"unsent"]


# Threads


def test_those_that_return_come_first() -> None:
    permits = Permits(1)
    permits.acquire()
    order: list[str] = []

    def take(name: str, returning: bool) -> None:
        permits.acquire(returning=returning)
        order.append(name)
        permits.release()

    first = threading.Thread(target=take, args=("new", False))
    first.start()
    while not permits._waiting:
        pass
    second = threading.Thread(target=take, args=("returning", True))
    second.start()
    while not permits._returning:
        pass
    permits.release()
    first.join(10)
    second.join(10)
    assert order == ["returning", "new"]


def test_threads_are_used_again() -> None:
    threads: list[int] = []
    for _ in range(3):
        done = threading.Event()

        def note(done: threading.Event = done) -> None:
            threads.append(threading.get_ident())
            done.set()

        run_in_thread(note)
        done.wait(10)
        while threading.active_count() > 1 and not _is_idle():
            pass
    assert len(set(threads)) == 1


def _is_idle() -> bool:
    from turnout_runners.dask import _threads

    return bool(_threads._idle)


def test_tls_without_certificates_is_refused_at_once() -> None:
    runner = DaskTaskRunner(address="tls://127.0.0.1:1")
    with pytest.raises(RunnerStartError, match=r"needs certificates.*DASK_DISTRIBUTED__COMM__TLS__CA_FILE"), runner:
        pass


def test_a_recipe_with_certificates_pickles() -> None:
    runner = DaskTaskRunner(address="tls://a:1", security={"tls_ca_file": "ca.pem"})
    assert pickle.loads(pickle.dumps(runner)) == runner


def test_notices_of_dask_are_left_out_while_a_runner_is_up() -> None:
    notices = logging.getLogger("distributed")
    assert notices.level == logging.INFO
    with only_warnings(), only_warnings():
        assert notices.level == logging.WARNING
    assert notices.level == logging.INFO


@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
def test_levels_that_the_user_chose_stay(level: int) -> None:
    notices = logging.getLogger("distributed")
    notices.setLevel(level)
    try:
        with only_warnings():
            assert notices.level == level
        assert notices.level == level
    finally:
        notices.setLevel(logging.INFO)


def test_levels_in_the_configuration_of_dask_stay() -> None:
    with dask.config.set({"logging": {"distributed": "info"}}), only_warnings():
        assert logging.getLogger("distributed").level == logging.INFO


# Keys


@pytest.mark.parametrize("name", ["half \udcff", "two\nlines", "nul \x00", 10_000 * "x"], ids=ascii)
def test_keys_can_be_sent_whatever_the_name(name: str) -> None:
    key = key_of(name, "0123456789abcdef", 10)
    assert len(key.encode()) < 300
    assert key.isprintable()
    assert number_of(key) == 10


# Secrets


def test_repr_hides_secrets() -> None:
    runner = DaskTaskRunner(address="tls://user:open-sesame@head:8786", client_kwargs={"token": "hunter2", "name": "x"})
    assert repr(runner) == (
        "DaskTaskRunner(address='tls://***@head:8786', client_kwargs={'token': '***', 'name': 'x'})"
    )


def test_errors_about_addresses_hide_secrets() -> None:
    with pytest.raises(RunnerOptionError, match=r"address='\*\*\*@head:8786'"):
        DaskTaskRunner(address="user:open-sesame@head:8786")


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_a_cluster_that_is_not_reached_hides_secrets(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    """In warnings, errors, what Python prints of their causes, and log records."""

    @flow(task_runner=DaskTaskRunner(address=f"{scheme}://user:open-sesame@192.0.2.1:8786", connect_timeout=0.3))
    def main() -> None:
        task(abs).submit(-1)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(RunnerStartError) as caught:
            main()
    shown = "".join(traceback.format_exception(caught.value)) + "".join(str(one.message) for one in warned)
    assert "***@192.0.2.1" in shown
    assert "open-sesame" not in shown
    assert "open-sesame" not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("turnout"))


# What workers are asked


class Asked:
    """A client whose only worker has batch 1, and answers when it is told to."""

    def __init__(self) -> None:
        self.loop = self
        self.messages: list[list[tuple[int, str]]] = []
        self.answers: list[asyncio.Future[None]] = []

    def add_callback(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.ensure_future(function())
        task.add_done_callback(lambda _: None)

    async def run(
        self, function: object, topic: str, wishes: list[tuple[int, str]], *, on_error: str
    ) -> dict[str, list[bool]]:
        self.messages.append(wishes)
        self.answers.append(asyncio.get_running_loop().create_future())
        await self.answers[-1]
        return {"tcp://one": [number == 1 for number, _ in wishes]}


async def rounds_of_loop() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_workers_are_asked_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow the machine is, the first answer is waited for.
    monkeypatch.setattr("turnout_runners.dask._asking._PATIENCE", 60.0)

    async def main() -> None:
        client = Asked()
        answers: dict[int, frozenset[str]] = {}

        def take(number: int, have_it: frozenset[str], is_answer: bool) -> None:
            assert is_answer
            answers[number] = have_it

        asking = Asking(client, "topic")
        whats: list[tuple[int, What]] = [(3, "refuse"), (2, "recall"), (1, "stop")]
        for number, what in whats:
            asking.ask(number, what, functools.partial(take, number))
            await rounds_of_loop()
        assert client.messages == [whats[:1]]
        client.answers[0].set_result(None)
        await rounds_of_loop()
        assert client.messages == [whats[:1], whats[1:]]
        client.answers[1].set_result(None)
        await rounds_of_loop()
        assert answers == {3: frozenset(), 2: frozenset(), 1: frozenset({"tcp://one"})}

    asyncio.run(main())


def test_a_worker_that_stands_still_does_not_keep_others_from_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnout_runners.dask._asking._PATIENCE", 0.0)

    async def main() -> None:
        client = Asked()
        asking = Asking(client, "topic")
        for number in (2, 1):
            asking.ask(number, "stop", lambda have_it, is_answer: None)
        while len(client.messages) < 2:
            await rounds_of_loop()
            asking.ask(3, "stop", lambda have_it, is_answer: None)
        assert client.messages[0] == [(2, "stop"), (1, "stop")]
        for answer in client.answers:
            answer.cancel()

    asyncio.run(main())


class Wire:
    """Takes what a stream of Dask's writes."""

    def __init__(self) -> None:
        self.written = asyncio.Event()

    def closed(self) -> bool:
        return False

    async def write(self, *_: Any, **__: Any) -> int:
        self.written.set()
        return 0


@pytest.mark.parametrize("hours", [1, -1])
def test_a_stream_that_waits_for_a_time_far_away_is_woken(hours: int) -> None:
    """Which is past if the clock was set back, and then put right."""

    async def main() -> None:
        make: Any = BatchedSend
        stream, wire = make(interval="1ms", loop=IOLoop.current()), Wire()
        stream.start(wire)
        stream.next_deadline = time.time() + 3600
        stream.send("words")
        # Now it waits for the deadline.
        await asyncio.sleep(0)
        stream.next_deadline = time.time() + hours * 3600
        wake_overslept(stream)
        await asyncio.wait_for(wire.written.wait(), 10)

    asyncio.run(main())


def test_a_stream_that_waits_as_it_should_is_left_alone() -> None:
    async def main() -> None:
        make: Any = BatchedSend
        stream = make(interval="1ms", loop=IOLoop.current())
        stream.next_deadline = deadline = time.time() + 0.9
        wake_overslept(stream)
        assert stream.next_deadline == deadline

    asyncio.run(main())
