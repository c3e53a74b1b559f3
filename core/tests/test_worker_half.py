"""The worker half, given the batches that an engine packs: an outcome for every call, whatever the call does."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import pickle
import threading
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from turnout import (
    SerializationError,
    Task,
    TaskFuture,
    allow_failure,
    get_run_context,
    get_run_logger,
    register_context_variable,
    task,
)
from turnout import _context as context_module
from turnout._event_stream import STREAM
from turnout._failures import decode
from turnout._packing import PackedBatch, pack
from turnout._serialization import Parcel, dumps, load_function
from turnout.runner import Batch, Capabilities, Host, Outcome, OutcomeKind, TaskRunner
from turnout.worker import run_batch, run_batch_async

VALUE, FAILURE, STARTED, RECORD = OutcomeKind.VALUE, OutcomeKind.FAILURE, OutcomeKind.STARTED, OutcomeKind.RECORD


class Hall(TaskRunner):
    """Collects batches, and runs them when the test says so."""

    capabilities = Capabilities(streams=True, async_aside=True)
    max_batch_seconds = 0

    def start(self, host: Host) -> None:
        self.host = host
        self.batches: list[Batch] = []
        self.told: dict[Batch, list[Outcome]] = {}

    def slots(self) -> int:
        return 1000

    def submit(self, batch: Batch) -> None:
        self.batches.append(batch)

    def stop(self) -> None:
        pass

    def run(self, batch: Batch | None = None) -> list[Outcome]:
        """Run a batch, the last one if none is named, tell the engine, and return its outcomes."""
        batch = self.batches[-1] if batch is None else batch
        outcomes: list[Outcome] = []
        run_batch(batch.body, batch.functions, batch.upstream, outcomes.extend)
        self.tell(batch, outcomes)
        return outcomes

    def tell(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        self.told[batch] = list(outcomes)
        self.host.report(batch, outcomes)

    def run_rest(self) -> None:
        for batch in self.batches:
            if batch not in self.told:
                self.run(batch)

    def together(self) -> PackedBatch:
        """Return all calls that were sent as one batch."""
        batch = pack([call for sent in self.batches for call in sent.calls], refused)
        assert batch is not None
        return batch


def refused(call: object, error: Exception) -> None:
    raise error


@pytest.fixture(autouse=True)
def _this_stays_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has run another one's calls writes no file of events, as long as it lives."""
    monkeypatch.setattr(STREAM, "is_elsewhere", False)


@pytest.fixture
def hall() -> Iterator[Hall]:
    with Hall() as hall:
        yield hall
        for future in [call.future for batch in hall.batches for call in batch.calls]:
            future.add_done_callback(lambda over: over.exception())
        hall.run_rest()


def last(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the one outcome after which the one call is over."""
    (outcome,) = [outcome for outcome in outcomes if outcome.kind >= VALUE]
    return outcome


def error_of(outcomes: Sequence[Outcome]) -> BaseException:
    outcome = last(outcomes)
    assert outcome.kind is FAILURE
    return decode(outcome.data)


@task
def echo(value: Any = None) -> Any:
    return value


# Values


def test_a_call_tells_that_it_begins_and_what_it_returned(hall: Hall) -> None:
    echo.submit(5)
    begun, over = hall.run()
    assert begun == Outcome(0, STARTED)
    assert (over.index, over.kind, over.data, over.size, over.unlooked) == (0, VALUE, 5, 0, ())
    assert over.seconds > 0


@pytest.mark.parametrize("value", [None, True, 2.5, 3 + 4j, "text", b"bytes", 10**30])
def test_small_plain_values_travel_as_they_are(hall: Hall, value: Any) -> None:
    echo.submit(value)
    over = last(hall.run())
    assert over.data == value
    assert type(over.data) is type(value)


@pytest.mark.parametrize("value", [[1], {"a": (1,)}, "x" * 10_000, bytearray(b"y" * 100_000)])
def test_other_values_are_packed_and_measured(hall: Hall, value: Any) -> None:
    future = echo.submit(value)
    over = last(hall.run())
    assert isinstance(over.data, Parcel)
    assert over.data.load() == value
    assert over.size == over.data.nbytes > 0
    assert future.result() == value


def test_calls_of_a_batch_run_in_order_each_with_its_index(hall: Hall) -> None:
    for number in range(4):
        echo.submit(number)
    batch = hall.together()
    outcomes: list[Outcome] = []
    run_batch(batch.body, batch.functions, batch.upstream, outcomes.extend)
    assert [(outcome.index, outcome.kind, outcome.data) for outcome in outcomes] == [
        (index, VALUE, index) for index in range(4)
    ]


def test_batches_and_outcomes_pickle(hall: Hall) -> None:
    echo.submit([1, 2])
    batch = hall.batches[0]
    body, functions, upstream = pickle.loads(pickle.dumps((batch.body, batch.functions, batch.upstream), protocol=5))
    outcomes: list[Outcome] = []
    run_batch(body, functions, upstream, outcomes.extend)
    copies = pickle.loads(pickle.dumps(outcomes, protocol=5))
    assert [outcome[:2] for outcome in copies] == [(0, STARTED), (0, VALUE)]
    assert copies[1].data.load() == [1, 2]


def test_items_of_a_generator_are_a_list(hall: Hall) -> None:
    @task
    def count(limit: int) -> Iterator[int]:
        yield from range(limit)

    count.submit(3)
    assert last(hall.run()).data.load() == [0, 1, 2]


def test_a_function_that_was_sent_once_may_be_missing_later(hall: Hall) -> None:
    echo.submit(1)
    hall.run()
    echo.submit(2)
    batch = hall.batches[-1]
    outcomes: list[Outcome] = []
    run_batch(batch.body, {}, batch.upstream, outcomes.extend)
    assert last(outcomes).data == 2


def test_a_function_that_was_never_sent_is_a_failure(hall: Hall) -> None:
    echo.submit()
    batch = hall.batches[0]
    shipment = batch.body.load()
    lost = shipment._replace(kinds=tuple(kind._replace(function=b"never seen") for kind in shipment.kinds))
    outcomes: list[Outcome] = []
    run_batch(dumps(lost), {}, (), outcomes.extend)
    error = error_of(outcomes)
    assert isinstance(error, SerializationError)
    assert "The function of task 'echo-0'" in str(error)


# Whatever a body raises


class Outrage(BaseException):
    pass


ERRORS = [
    ValueError("x"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    Outrage("y"),
    BaseExceptionGroup("both", [ValueError(), SystemExit()]),
    MemoryError(),
    RecursionError(),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("error", [*ERRORS, StopIteration(1)], ids=lambda error: type(error).__name__)
def test_whatever_a_body_raises_is_its_outcome(hall: Hall, error: BaseException) -> None:
    @task
    def explode() -> None:
        raise error

    explode.submit()
    caught = error_of(hall.run())
    assert (type(caught), str(caught)) == (type(error), str(error))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_an_async_body_raises_is_its_outcome(hall: Hall, error: BaseException) -> None:
    @task
    async def explode() -> None:
        await asyncio.sleep(0)
        raise error

    explode.submit()
    caught = error_of(hall.run())
    assert (type(caught), str(caught)) == (type(error), str(error))


def test_calls_after_one_that_raises_run_too(hall: Hall) -> None:
    @task
    def leave(code: int) -> None:
        raise SystemExit(code)

    leave.submit(1)
    echo.submit(2)
    leave.submit(3)
    batch = hall.together()
    outcomes: list[Outcome] = []
    run_batch(batch.body, batch.functions, batch.upstream, outcomes.extend)
    over = [outcome for outcome in outcomes if outcome.kind >= VALUE]
    assert [(outcome.index, outcome.kind) for outcome in over] == [(0, FAILURE), (1, VALUE), (2, FAILURE)]


def test_a_generator_that_raises_late_is_a_failure(hall: Hall) -> None:
    @task
    def count() -> Iterator[int]:
        yield 1
        raise LookupError("two")

    count.submit()
    assert repr(error_of(hall.run())) == "LookupError('two')"


def test_the_traceback_begins_in_the_body(hall: Hall) -> None:
    @task
    def explode() -> None:
        raise ValueError

    explode.submit()
    error = error_of(hall.run())
    assert error.__traceback__ is not None
    assert error.__traceback__.tb_frame.f_code.co_name == "explode"


# What can't be packed or unpacked


class Sealed:
    def __reduce__(self) -> Any:
        raise TypeError("sealed")


def test_a_result_that_does_not_pickle_is_a_failure_that_says_so(hall: Hall) -> None:
    @task
    def seal() -> dict[str, Any]:
        return {"a": [Sealed()]}

    seal.submit()
    error = error_of(hall.run())
    assert isinstance(error, SerializationError)
    assert "The result of task 'seal-0'" in str(error)
    assert "['a'][0]" in str(error)


def test_an_exception_that_does_not_pickle_arrives_as_an_explanation(hall: Hall) -> None:
    @task
    def explode() -> None:
        raise ValueError(Sealed())

    explode.submit()
    assert isinstance(error_of(hall.run()), SerializationError)


class Leaving:
    def __reduce__(self) -> Any:
        raise SystemExit(4)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit(4)


@task
def return_leaving() -> Leaving:
    return Leaving()


@task
def raise_leaving() -> None:
    raise ValueError(Leaving())


@task
def raise_unspeakable() -> None:
    raise Unspeakable


@pytest.mark.parametrize("call", [return_leaving, raise_leaving, raise_unspeakable], ids=lambda call: call.name)
def test_an_outcome_that_exits_as_it_is_packed_is_a_failure(hall: Hall, call: Task[[], Any]) -> None:
    call.submit()
    assert [outcome.kind for outcome in hall.run()] == [STARTED, FAILURE]


class OpensBadly:
    def __reduce__(self) -> Any:
        return explode_on_opening, ()


def explode_on_opening() -> None:
    raise LookupError("spilt")


def test_an_argument_that_cannot_be_unpacked_is_a_failure(hall: Hall) -> None:
    echo.submit([OpensBadly()])
    error = error_of(hall.run())
    assert isinstance(error, SerializationError)
    assert "An argument of task 'echo-0'" in str(error)
    assert repr(error.__cause__) == "LookupError('spilt')"


# Arguments that come beside


def test_results_of_others_come_beside_the_arguments(hall: Hall) -> None:
    large = echo.submit({"deep": ["x" * 100_000]})
    hall.run()
    pair = echo.submit([large, large, large["deep"][0]])
    assert len(hall.batches[-1].upstream) == 1
    hall.run()
    one, two, part = pair.result()
    assert one is two, "one object, as in the driver"
    assert part is one["deep"][0]


def test_failures_of_others_come_as_exceptions(hall: Hall) -> None:
    @task
    def fail() -> None:
        raise ValueError("beside")

    failed = fail.submit()
    hall.run()
    told = echo.submit([allow_failure(failed)])
    hall.run()
    assert repr(told.result()) == "[ValueError('beside')]"


def test_calls_of_one_batch_do_not_share_what_comes_beside(hall: Hall) -> None:
    @task
    def grow(items: list[int]) -> list[int]:
        items.append(0)
        return items

    root = echo.submit([1])
    hall.run()
    grow.submit(root)
    grow.submit(root)
    batch = pack([call for sent in hall.batches[1:] for call in sent.calls], refused)
    assert batch is not None
    outcomes: list[Outcome] = []
    run_batch(batch.body, batch.functions, batch.upstream, outcomes.extend)
    assert [outcome.data.load() for outcome in outcomes if outcome.kind is VALUE] == [[1, 0], [1, 0]]


# Context


def test_a_body_knows_which_run_it_is(hall: Hall) -> None:
    @task(tags=["t"])
    def describe() -> Any:
        return get_run_context()

    future = describe.submit()
    context = last(hall.run()).data.load()
    assert (context.task_run_name, context.task_name, context.attempt) == ("describe-0", "describe", 1)
    assert context.task_run_id == future.task_run_id
    assert context.tags == {"t"}


SCRATCH: contextvars.ContextVar[str] = contextvars.ContextVar("turnout_tests_scratch_of_workers", default="clean")


@task
def scribble() -> str:
    seen = SCRATCH.get()
    SCRATCH.set("dirty")
    return seen


def test_what_a_body_sets_does_not_reach_the_next(hall: Hall) -> None:
    scribble.submit()
    scribble.submit()
    assert [last(hall.run(batch)).data for batch in hall.batches] == ["clean", "clean"]


def test_registered_variables_are_set(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_module, "_registered", {})
    city: contextvars.ContextVar[str] = contextvars.ContextVar("turnout_tests_worker_city", default="nowhere")
    register_context_variable(city)

    @task
    def where() -> str:
        seen = city.get()
        city.set("changed")
        return seen

    city.set("Bern")
    where.submit()
    where.submit()
    city.set("Genoa")
    assert [last(hall.run(batch)).data for batch in hall.batches] == ["Bern", "Bern"]
    assert city.get() == "Genoa"


# Calls within calls


def test_nested_calls_run_in_place(hall: Hall) -> None:
    @task
    def outer() -> list[Any]:
        inner = [echo.submit(number) for number in range(3)]
        return [threading.get_ident(), inner, [future.result() for future in inner]]

    future = outer.submit()
    assert last(hall.run()).unlooked == ()
    assert future.result() == [threading.get_ident(), [0, 1, 2], [0, 1, 2]]


def test_unlooked_failures_of_nested_calls_are_told(hall: Hall) -> None:
    @task
    def inner() -> None:
        raise ValueError("nobody looked")

    @task
    def outer() -> str:
        inner.submit()
        return "fine"

    outer.submit()
    outcomes: list[Outcome] = []
    batch = hall.batches[0]
    run_batch(batch.body, batch.functions, batch.upstream, outcomes.extend)
    over = last(outcomes)
    hall.tell(batch, [over._replace(unlooked=())])
    assert over.data == "fine"
    assert [repr(decode(failure)) for failure in over.unlooked] == ["ValueError('nobody looked')"]


def test_nested_calls_that_nobody_waits_for_are_over_with_the_call(hall: Hall) -> None:
    @task
    async def slow() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    @task
    async def outer() -> None:
        futures.append(slow.submit())

    futures: list[TaskFuture[Any]] = []
    outer.submit()
    batch = hall.batches[0]
    shipment = batch.body.load()
    digest = shipment.kinds[0].function
    function = load_function(digest, batch.functions[digest])
    hall.run()
    (future,) = inspect.getclosurevars(function).nonlocals["futures"]
    assert future.state.is_completed()


# Async calls


def test_async_calls_run_side_by_side(hall: Hall) -> None:
    @task
    async def meet(number: int) -> int:
        met.append(number)
        if len(met) == 3:
            all_met.set()
        await all_met.wait()
        return number

    met: list[int] = []
    all_met = asyncio.Event()
    for number in range(3):
        meet.submit(number)
    batch = hall.together()
    outcomes: list[Outcome] = []
    run_batch(batch.body, batch.functions, batch.upstream, outcomes.extend)
    assert [outcome[:2] for outcome in outcomes[:3]] == [(index, STARTED) for index in range(3)]
    assert sorted(outcome.data for outcome in outcomes[3:]) == [0, 1, 2]


def test_async_calls_and_others_keep_their_places(hall: Hall) -> None:
    @task
    async def ask(number: int) -> int:
        await asyncio.sleep(0)
        return number

    for index, number in enumerate((10, 11, 12, 13, 14)):
        (ask if index in (1, 2, 4) else echo).submit(number)
    batch = hall.together()
    outcomes: list[Outcome] = []
    run_batch(batch.body, batch.functions, batch.upstream, outcomes.extend)
    over = [(outcome.index, outcome.data) for outcome in outcomes if outcome.kind is VALUE]
    assert sorted(over) == [(index, 10 + index) for index in range(5)]
    assert over[0] == (0, 10)
    assert over[3:] == [(3, 13), (4, 14)]


def test_items_of_an_async_generator_are_a_list(hall: Hall) -> None:
    @task
    async def count(limit: int) -> AsyncIterator[int]:
        for number in range(limit):
            await asyncio.sleep(0)
            yield number

    count.submit(3)
    assert last(hall.run()).data.load() == [0, 1, 2]


def test_batches_share_a_running_loop(hall: Hall) -> None:
    @task
    async def swap(mine: str, others: str) -> str:
        came[mine].set()
        await came[others].wait()
        return mine

    came = {"a": asyncio.Event(), "b": asyncio.Event()}
    swap.submit("a", "b")
    swap.submit("b", "a")
    outcomes: list[list[Outcome]] = [[], []]

    async def main() -> None:
        both = zip(hall.batches, outcomes, strict=True)
        await asyncio.gather(
            *[run_batch_async(batch.body, batch.functions, batch.upstream, told.extend) for batch, told in both]
        )

    asyncio.run(main())
    assert [last(told).data for told in outcomes] == ["a", "b"]


def test_cancelling_a_batch_ends_its_bodies_with_outcomes(hall: Hall) -> None:
    @task
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    forever.submit()
    forever.submit()
    batch = hall.together()
    outcomes: list[Outcome] = []

    async def main() -> None:
        begun = asyncio.Event()

        def emit(news: Sequence[Outcome]) -> None:
            outcomes.extend(news)
            begun.set()

        running = asyncio.create_task(run_batch_async(batch.body, batch.functions, batch.upstream, emit))
        await begun.wait()
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(main())
    for sent in hall.batches:
        hall.tell(sent, [Outcome(0, VALUE)])
    over = [outcome for outcome in outcomes if outcome.kind >= VALUE]
    assert sorted(outcome.index for outcome in over) == [0, 1]
    assert {type(decode(outcome.data)) for outcome in over} == {asyncio.CancelledError}


def test_cancelling_a_batch_tells_no_outcome_twice(hall: Hall) -> None:
    @task
    async def quick() -> int:
        return 1

    @task
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    quick.submit()
    forever.submit()
    batch = hall.together()
    outcomes: list[Outcome] = []

    async def main() -> None:
        first_over = asyncio.Event()

        def emit(news: Sequence[Outcome]) -> None:
            outcomes.extend(news)
            if any(outcome.kind >= VALUE for outcome in news):
                first_over.set()

        running = asyncio.create_task(run_batch_async(batch.body, batch.functions, batch.upstream, emit))
        await first_over.wait()
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(main())
    for sent in hall.batches:
        hall.tell(sent, [Outcome(0, VALUE)])
    assert sorted(outcome.index for outcome in outcomes if outcome.kind >= VALUE) == [0, 1]


# What a worker says besides


def from_elsewhere(batch: Batch) -> Parcel:
    """Return a batch's body as if another process had sent it."""
    return dumps(batch.body.load()._replace(origin=(0, "elsewhere")))


def test_records_warnings_and_prints_are_told_in_order(hall: Hall) -> None:
    @task(log_prints=True)
    def speak() -> None:
        get_run_logger().warning("first %d", 1)
        print("second")
        warnings.warn("third", DeprecationWarning, stacklevel=1)
        logging.getLogger("somebody.elses").error("fourth", exc_info=ValueError("why"))

    speak.submit()
    batch = hall.batches[0]
    handlers = logging.getLogger().handlers[:]
    outcomes: list[Outcome] = []
    shipment = batch.body.load()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        told = dumps(shipment._replace(origin=(0, "elsewhere"), levels=(logging.INFO, 0, 0, 0)))
        run_batch(told, batch.functions, batch.upstream, outcomes.extend)
    assert [outcome.kind for outcome in outcomes] == [STARTED, *[RECORD] * 4, VALUE]
    first, second, third, fourth = [outcome.data for outcome in outcomes[1:-1]]
    assert (first[1]["msg"], first[1]["task_run_name"]) == ("first 1", "speak-0")
    assert second[1]["msg"] == "second"
    assert third[:2] == ("warning", "third")
    assert "ValueError: why" in fourth[1]["exc_text"]
    assert logging.getLogger().handlers == handlers


def test_a_batch_in_its_own_process_leaves_logging_alone(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    @task
    def speak() -> None:
        get_run_logger().warning("at home")

    speak.submit()
    assert [outcome.kind for outcome in hall.run()] == [STARTED, VALUE]
    assert "at home" in caplog.messages


def test_records_from_threads_of_a_body_belong_to_its_call(hall: Hall) -> None:
    @task
    def start_thread() -> None:
        thread = threading.Thread(target=logging.getLogger("thread").error, args=("from a thread",))
        thread.start()
        thread.join()

    echo.submit()
    start_thread.submit()
    batch = hall.together()
    outcomes: list[Outcome] = []
    run_batch(from_elsewhere(batch), batch.functions, batch.upstream, outcomes.extend)
    assert [(outcome.index, outcome.data[1]["msg"]) for outcome in outcomes if outcome.kind is RECORD] == [
        (1, "from a thread")
    ]
