"""What notebooks and prompts show: small, escaped, and without waiting, unpacking or looking at failures."""

from __future__ import annotations

import asyncio
import datetime as dt
import html
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from turnout import FutureList, State, StateType, TaskFuture, flow, task
from turnout._html import card, short
from turnout._serialization import dumps
from turnout.runner import Batch, Capabilities, Host, Stored, TaskRunner

MARKUP = "<script>alert('x')</script>&"


class Rack(TaskRunner):
    """Keeps calls until the test runs them."""

    capabilities = Capabilities(in_process=True, keeps_order=True, cancel="cooperative", streams=True)

    def __init__(self, shelves: int = 3, password: str | None = None) -> None:
        self.shelves = shelves
        self.password = password

    def start(self, host: Host) -> None:
        self.host = host
        self.batches: list[Batch] = []

    def slots(self) -> int:
        return 4

    def submit(self, batch: Batch) -> None:
        self.batches.append(batch)

    def stop(self) -> None:
        pass

    def run(self) -> None:
        ready = [self.batches.pop(0)]
        while ready:
            ready.extend(self.host.execute(ready.pop()))

    def run_all(self) -> None:
        while self.batches:
            self.run()


@pytest.fixture
def rack() -> Iterator[Rack]:
    with Rack() as rack:
        yield rack
        rack.run_all()


@task
def echo(value: Any = None) -> Any:
    return value


@task
def fail(text: str = "no") -> None:
    raise ValueError(text)


class _Checked(HTMLParser):
    """Notes what HTML is made of, and that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data}|"


def shown(thing: Any) -> str:
    """Return the text that a notebook shows, after a look at the HTML around it."""
    source = thing._repr_html_()
    checked = _Checked(source)
    assert checked.elements <= {"div", "span", "b", "table", "tr", "td"}
    assert checked.attributes == {"style"}
    assert not re.search(r"url\(|[^-]color:(#000|#fff|black|white)|background:(?!none)", source)
    assert len(source) < 5000
    return re.sub(r"\|+ ?\|*", "|", checked.text)


# What is shown


def test_a_task() -> None:
    @task(retries=2, timeout_seconds=1.5, tags=["b", "a"], task_runner="process", resources={"memory": "1GiB"})
    def load(path: str, limit: int = 3) -> None:
        """Load a file.

        And more.
        """

    assert shown(load) == (
        "Task|load|description|Load a file.|parameters|(path: 'str', limit: 'int' = 3) -> 'None'|"
        "retries|2|timeout|1.5 s|runs on|process|tags|a, b|needs|memory=1 GiB|"
    )
    assert repr(load) == "<Task load>"


def test_a_flow() -> None:
    @flow(task_runner=Rack, retries=1)
    def main() -> None:
        pass

    assert shown(main) == "Flow|main|parameters|() -> 'None'|retries|1|runs on|Rack()|"
    assert shown(main.with_options(task_runner="tcp://me:open@host")).endswith("runs on|tcp://***@host|")
    assert repr(main) == "<Flow main>"


def test_what_was_not_said_is_not_shown() -> None:
    assert shown(task(len)) == ("Task|len|description|Return the number of items in a container.|parameters|(obj, /)|")


def test_futures(rack: Rack) -> None:
    value, failure = echo.submit([1, 2]), fail.submit()
    after = echo.submit(failure)
    assert shown(value) == "●|TaskFuture|echo-0|state|Pending|"
    assert repr(value) == "<TaskFuture echo-0 pending>"
    rack.run_all()
    assert shown(value) == "●|TaskFuture|echo-0|state|Completed|result|[1, 2]|"
    assert shown(failure) == "●|TaskFuture|fail-0|state|Failed|error|ValueError: no|"
    assert shown(after) == (
        "●|TaskFuture|echo-1|state|UpstreamFailed|"
        "error|echo-1 did not run, because fail-0 has no result: ValueError: no|"
    )
    assert repr(failure) == "<TaskFuture fail-0 failed>"
    failure.exception()


def test_a_list_of_futures_is_a_table_of_states(rack: Rack) -> None:
    futures = FutureList([*echo.map(range(10_000)), *fail.map(["one", "two"])])
    assert shown(futures) == "FutureList|10,002 calls|●|Pending|10,002|"
    for _ in range(5000):
        rack.run()
    assert shown(futures) == "FutureList|10,002 calls|●|Pending|5,002|●|Completed|5,000|"
    rack.run_all()
    assert shown(futures) == ("FutureList|10,002 calls|●|Completed|10,000|●|Failed|2, first fail-0: ValueError: one|")
    assert repr(futures) == "<FutureList of 10002: 10000 completed, 2 failed>"
    for future in futures[-2:]:
        future.exception()


def test_a_list_of_futures_may_hold_anything() -> None:
    odd: FutureList[Any] = FutureList([3])  # type: ignore[list-item]
    assert (shown(odd), repr(odd)) == ("FutureList|1 call|", "<FutureList of 1>")


def test_short_lists() -> None:
    empty: FutureList[Any] = FutureList()
    assert (shown(empty), repr(empty)) == ("FutureList|0 calls|", "<FutureList of 0>")
    with Rack() as rack:
        one = FutureList([echo.submit()])
        rack.run_all()
        assert (shown(one), repr(one)) == ("FutureList|1 call|●|Completed|1|", "<FutureList of 1: 1 completed>")


@pytest.mark.parametrize("type_", StateType)
def test_states(type_: StateType) -> None:
    moment = dt.datetime(2024, 2, 29, 12).astimezone()
    state = State(type_, "all\nis well", moment.timestamp(), "a result")
    result = "result|'a result'|" if state.is_completed() else ""
    since = moment.isoformat(" ", "seconds")
    assert shown(state) == f"●|State|{state.name}|message|all|{result}since|{since}|"
    assert shown(State(type_)) == f"●|State|{state.name}|" + "result|None|" * state.is_completed()


def test_a_runner() -> None:
    assert shown(Rack(shelves=5, password="open sesame")) == (
        "TaskRunner|Rack|shelves|5|password|'***'|arguments and results|are shared|"
        "a running call that is cancelled|is asked to stop|"
    )
    assert repr(Rack(5)) == "Rack(shelves=5)"


def test_no_part_of_a_long_secret_is_shown() -> None:
    assert "open" not in shown(Rack(password="open" * 100))


def test_long_texts_are_cut() -> None:
    shown_ = shown(State(StateType.FAILED, "x" * 1000))
    assert shown_ == f"●|State|Failed|message|{'x' * 117}...|"


# Markup and odd values


def test_markup_is_escaped(rack: Rack) -> None:
    odd = echo.with_options(name=MARKUP, description=MARKUP, tags=[MARKUP], task_runner=MARKUP)
    future = echo.with_options(name=MARKUP).submit(MARKUP)
    failure = fail.submit(MARKUP)
    rack.run_all()
    failures = FutureList([failure])
    things: list[Any] = [odd, flow(odd.fn, name=MARKUP), future, failure, failures]
    things += [State(StateType.FAILED, MARKUP), Rack(MARKUP)]  # type: ignore[arg-type]
    for thing in things:
        assert MARKUP in html.unescape(thing._repr_html_())
        assert "script" not in _Checked(thing._repr_html_()).elements
    failure.exception()


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Loud:
    def __repr__(self) -> str:
        return "loud\n" * 1000


@pytest.mark.parametrize(
    "value",
    [Rude(), [Rude()], Loud(), list(range(10**6)), "x" * 10**6, 10**5000],
    ids=["rude", "rude inside", "loud", "list", "text", "number"],
)
def test_a_value_is_shown_in_one_short_line(value: Any) -> None:
    assert len(short(value)) <= 120
    assert "\n" not in short(value)
    assert short(Loud()).startswith("loud loud ")
    assert short(value) in html.unescape(State(StateType.COMPLETED, data=value)._repr_html_())


def test_an_error_that_can_t_be_told_is_no_error(rack: Rack) -> None:
    class RudeError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    @task
    def raise_rudely() -> None:
        raise RudeError

    future = raise_rudely.submit()
    rack.run_all()
    assert shown(future).endswith("|Failed|error|RudeError|")
    with pytest.raises(RudeError):
        future.result()


# What showing must not do


Look = Callable[[FutureList[Any]], object]


@pytest.mark.parametrize(
    "look",
    [
        repr,
        str,
        lambda futures: futures._repr_html_(),
        lambda futures: repr(futures[0]),
        lambda futures: futures[0]._repr_html_(),
        lambda futures: repr(futures[0]["key"]),
        lambda futures: futures[1]._repr_html_(),
    ],
)
def test_showing_a_failure_is_no_look_at_it(look: Look) -> None:
    def submit_and_show() -> None:
        with Rack() as rack:
            failure = fail.submit()
            futures = FutureList([failure, echo.submit(failure)])
            rack.run_all()
            look(futures)

    with pytest.raises(ExceptionGroup, match="nobody looked"):
        submit_and_show()


def test_showing_fetches_and_unpacks_nothing(rack: Rack) -> None:
    class Depot(Rack):
        def fetch(self, stored: Stored) -> Any:
            raise AssertionError("a result was fetched to be shown")

    futures = FutureList([echo.submit(), echo.submit()])
    rack.run_all()
    stored, packed = Stored(Depot(), None, 10**9), dumps([1, 2])
    futures[0]._data, futures[1]._data = stored, packed
    for future in futures:
        assert shown(future).endswith("|Completed|result|not unpacked yet|")
    shown(futures)
    assert futures[0]._data is stored
    assert futures[1]._data is packed
    assert futures[1].result() == [1, 2]
    assert shown(futures[1]).endswith("|Completed|result|[1, 2]|")
    futures[0]._data = None


def test_all_is_shown_while_an_event_loop_runs(rack: Rack) -> None:
    async def show() -> None:
        futures: FutureList[Any] = FutureList([echo.submit(), fail.submit()])
        things: list[Any] = [echo, flow(lambda: None, name="main"), rack, futures, *futures, State(StateType.RUNNING)]
        before = [shown(thing) for thing in things]
        rack.run_all()
        assert [shown(thing) for thing in things] != before
        assert await futures[0] is None
        assert futures[1].exception() is not None

    asyncio.run(show())


def test_showing_does_not_wait_for_a_call_that_never_ends(rack: Rack) -> None:
    future: TaskFuture[Any] = echo.submit()
    assert "Pending" in shown(future)
    assert not future.done()


def test_a_card_without_rows() -> None:
    assert "<table" not in card("Task", "a")
