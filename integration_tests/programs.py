"""Random programs: the language, what each call of one may come to, and how one is run."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from hypothesis import strategies as st

from turnout import Task, TaskFuture, TaskRunner, allow_failure, flow, task, unmapped, wait
from turnout.errors import CancelledRun, CrashedRun, TaskRunTimeoutError, UpstreamFailed
from turnout.testing import ChaosTaskRunner
from turnout.testing._batches import batched

__all__ = [
    "KINDS",
    "PEACEFUL",
    "REPEATABLE",
    "Ran",
    "Random",
    "Step",
    "check",
    "check_with_chaos",
    "compose",
    "programs",
]

Outcome = int | str
"""What became of a call: its value, or the name of its error."""

KINDS: Final = (
    *("value",) * 16,
    "alone",
    "async",
    "elsewhere",
    "slow",
    "timely",
    "stuck",
    "fails",
    "fails once",
    "nests",
    "nests widely",
    "looks below",
    "fails below",
    "dies once",
    "dies",
)
PEACEFUL: Final = tuple(kind for kind in KINDS if "dies" not in kind)
REPEATABLE: Final = tuple(kind for kind in PEACEFUL if kind != "fails once")
"""Chaos has calls run again that could not know that they ran: what counts their runs can't tell the outcome."""

ERRORS: Final = {
    "fails": "ValueError",
    "fails below": "ValueError",
    "stuck": "TaskRunTimeoutError",
    "dies": "CrashedRun",
}
STATES: Final = {
    "ValueError": "Failed",
    "TaskRunTimeoutError": "TimedOut",
    "CrashedRun": "Crashed",
    "UpstreamFailed": "UpstreamFailed",
    "CancelledRun": "Cancelled",
}
RUNS: Final = {"fails once": 2, "dies once": 2, "dies": 3}
FORMS: Final = ("submit", "submit", "submit", "submit", "map", "subflow")
NEEDING: Final = ("needs", "part", "inside", "waits")
ALLOWING: Final = ("allows", "allows part", "waits for allowed")
ROLES: Final = ("needs", "needs", "needs", "part", "inside", "waits", "allows", "allows part", "waits for allowed")
LOST: Final = 1000
"""What counts for a dependency that may fail, and did."""
LARGE: Final = 100_000
SHORT: Final = 0.05
"""After how many seconds a call is out of time that would never end."""


@dataclass(frozen=True)
class Use:
    """One dependency: on which earlier call, and in which way."""

    role: str
    call: int


@dataclass(frozen=True)
class Step:
    """One statement of a program: calls of one kind, what they need, and which earlier ones are cancelled then."""

    form: str
    kind: str
    first: int
    width: int
    uses: tuple[Use, ...]
    cancels: tuple[int, ...]

    @property
    def numbers(self) -> range:
        """The numbers of its calls."""
        return range(self.first, self.first + self.width)


class Choices(Protocol):
    """Where the choices come from of which a program is made."""

    def number(self, low: int, high: int) -> int:
        """Return a number, both ends included."""
        ...

    def one_of(self, those: Sequence[str]) -> str:
        """Return one of several words."""
        ...


def compose(choices: Choices, kinds: Sequence[str]) -> list[Step]:
    """Make a program of up to forty statements."""
    steps: list[Step] = []
    first = 0
    for _ in range(choices.number(3, 40)):
        form = choices.one_of(FORMS)
        count = choices.number(0, 3) if first else 0
        others = dict.fromkeys(choices.number(max(0, first - 12), first - 1) for _ in range(count))
        uses = tuple(Use(choices.one_of(ROLES), other) for other in others)
        cancels = () if choices.number(0, 9) or not first else (choices.number(0, first - 1),)
        width = 1 if form == "submit" else choices.number(1, 4)
        steps.append(Step(form, choices.one_of(kinds), first, width, uses, cancels))
        first += width
    return steps


class Drawn(NamedTuple):
    """Choices of hypothesis, which finds the shortest program that is wrong."""

    draw: st.DrawFn

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def one_of(self, those: Sequence[str]) -> str:
        return self.draw(st.sampled_from(those))


class Random(NamedTuple):
    """Choices by a seed."""

    source: random.Random

    def number(self, low: int, high: int) -> int:
        return self.source.randint(low, high)

    def one_of(self, those: Sequence[str]) -> str:
        return self.source.choice(those)


def programs(kinds: Sequence[str] = KINDS) -> st.SearchStrategy[list[Step]]:
    """Return the strategy that draws programs."""
    return st.composite(lambda draw: compose(Drawn(draw), kinds))()


# The oracle


def allowed(number: int, step: Step, known: Sequence[Outcome], *, cancelled: bool) -> set[Outcome]:
    """Return what may become of a call, given what became of those before it."""
    if cancelled:
        return {"CancelledRun"}
    needed = [known[use.call] for use in step.uses if use.role in NEEDING]
    lost = {outcome for outcome in needed if isinstance(outcome, str)}
    lost |= {"CancelledRun" for use in step.uses if use.role in ALLOWING and known[use.call] == "CancelledRun"}
    if lost:
        # Whichever ended first.
        return {"CancelledRun" if outcome == "CancelledRun" else "UpstreamFailed" for outcome in lost}
    if step.kind in ERRORS:
        return {ERRORS[step.kind]}
    values = [known[use.call] for use in step.uses if "waits" not in use.role]
    return {number + below_of(step.kind) + sum(value if isinstance(value, int) else LOST for value in values)}


def below_of(kind: str) -> int:
    """Return how many calls a call of this kind counts below it."""
    return {"nests": 3, "nests widely": 6, "looks below": 3 + 4 * LOST}.get(kind, 0)


# What calls do


def work(folder: str, number: int, kind: str, values: Sequence[Any]) -> dict[str, Any]:
    """Do what a call of this kind does, and return its value, in the middle of other things."""
    runs = note_run(folder, number)
    if kind == "dies" or (kind == "dies once" and runs == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "fails" or (kind == "fails once" and runs == 1):
        raise ValueError(number)
    if kind == "slow":
        time.sleep(0.03)
    if kind == "stuck":
        stay(folder, str(number))
    total = number + sum(map(value_of, values)) + nested(folder, number, kind)
    # Some results are too large to come along, some are no plain values.
    return {"value": total, "weight": bytes(LARGE if number % 11 == 5 else 2000 if number % 5 == 2 else 0)}


def note_run(folder: str, number: int) -> int:
    """Note that a call runs, and return how often it has."""
    for run in itertools.count(1):
        # One step, and no descriptor: a body that is stopped before it closes one leaves it open.
        with contextlib.suppress(FileExistsError):
            Path(folder, f"{number} {run}").mkdir()
            return run
    raise AssertionError("a count has no end")


def value_of(argument: Any) -> int:
    """Return the number in what became of a future."""
    while isinstance(argument, list):
        (argument,) = argument
    if isinstance(argument, BaseException):
        return LOST
    return int(argument["value"] if isinstance(argument, dict) else argument)


def stay(folder: str, name: str) -> None:
    """Wait for ever, in Python code, or until somebody says that it is over, or all is."""
    # A body that can't be stopped is left behind, and may not look while the folder is there.
    while Path(folder).exists() and not Path(folder, f"{name}.over").exists():
        time.sleep(0.002)


def say_over(folder: str, name: str, _: TaskFuture[Any]) -> None:
    Path(folder, f"{name}.over").touch()


def nested(folder: str, number: int, kind: str) -> int:
    if kind == "nests widely":
        return sum(below.map(["nests"] * 3, unmapped(folder), str(number), 2).result())
    if kind in ("nests", "looks below", "fails below"):
        return below.submit(kind, folder, f"{number}", 3).result()
    return 0


@task(crash_retries=50)
def below(kind: str, folder: str, name: str, depth: int) -> int:
    """Submit one call after the other, down to a depth, and return how many there were."""
    if depth > 1:
        return 1 + below.submit(kind, folder, name, depth - 1).result()
    if kind == "fails below":
        raise ValueError(name)
    return 1 + (losses(folder, name) if kind == "looks below" else 0)


def losses(folder: str, name: str) -> int:
    """Submit calls that fail, run out of time, have no argument, and are cancelled; return what they count."""
    failing = below.submit("fails below", folder, name, 1)
    stuck = stuck_below.submit(folder, f"{name} below {os.urandom(4).hex()}")
    dependent = below.submit("nests", folder, name, depth=failing)
    unwanted = below.submit("nests", folder, name, 1, wait_for=[allow_failure(stuck)])
    took = unwanted.cancel()
    errors = [type(future.exception()) for future in (failing, stuck, dependent)]
    assert errors == [ValueError, TaskRunTimeoutError, UpstreamFailed], errors
    assert isinstance(unwanted.exception(), CancelledRun) == took
    return 4 * LOST


@task(crash_retries=50, timeout_seconds=SHORT)
def stuck_below(folder: str, name: str) -> None:
    # Where a body is only left, it would go on for ever.
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(0.002)


@task(crash_retries=2, name="step")
def ordinary(folder: str, number: int, kind: str, *values: Any) -> dict[str, Any]:
    return work(folder, number, kind, values)


@task(crash_retries=2, name="step")
async def asynchronous(folder: str, number: int, kind: str, *values: Any) -> dict[str, Any]:
    return work(folder, number, kind, values)


def task_of(kind: str, options: Mapping[str, Any]) -> Task[..., Any]:
    its: Mapping[str, dict[str, Any]] = {
        "alone": {"batch": False},
        "elsewhere": {"task_runner": "thread?max_workers=1"},
        "fails once": {"retries": 1},
        "stuck": {"timeout_seconds": SHORT},
        "timely": {"timeout_seconds": 100},
    }
    chosen: Task[..., Any] = asynchronous if kind == "async" else ordinary
    return chosen.with_options(**its.get(kind, {}), **options)


# Running one


class Run:
    """One run of a program: the futures of its calls so far."""

    def __init__(self, folder: str, options: Mapping[str, Any]) -> None:
        self.folder = folder
        self.options = options
        self.futures: list[TaskFuture[Any]] = []
        self.cancelled: set[int] = set()

    def step(self, step: Step) -> None:
        self.futures += self.in_subflow(step) if step.form == "subflow" else self.submit(step, self.arguments(step))
        self.cancelled.update(other for other in step.cancels if self.futures[other].cancel())

    def arguments(self, step: Step) -> list[Any]:
        return [self.argument(use) for use in step.uses if "waits" not in use.role]

    def argument(self, use: Use) -> Any:
        future = self.futures[use.call]
        if use.role == "part":
            return future["value"]
        if use.role == "inside":
            return [[future]]
        if use.role == "allows":
            return allow_failure(future)
        if use.role == "allows part":
            return [allow_failure(future["value"])]
        return future

    def waits(self, step: Step) -> list[Any]:
        futures = [self.futures[use.call] for use in step.uses if use.role == "waits"]
        maybe = [allow_failure(self.futures[use.call]) for use in step.uses if use.role == "waits for allowed"]
        return [*futures, *maybe]

    def submit(self, step: Step, arguments: Sequence[Any]) -> list[TaskFuture[Any]]:
        futures = self.submitted(step, arguments)
        for number, future in zip(step.numbers, futures, strict=True):
            # At once: where a body can't be stopped, others may wait for its slot.
            future.add_done_callback(functools.partial(say_over, self.folder, str(number)))
        return futures

    def submitted(self, step: Step, arguments: Sequence[Any]) -> list[TaskFuture[Any]]:
        its, waits = task_of(step.kind, self.options), self.waits(step)
        if step.form == "map":
            # What a map walks over, and what it hands to every call as it is.
            whole = [
                [argument] * step.width if place % 2 else unmapped(argument) for place, argument in enumerate(arguments)
            ]
            return list(its.map(self.folder, step.numbers, step.kind, *whole, wait_for=waits))
        return [its.submit(self.folder, number, step.kind, *arguments, wait_for=waits) for number in step.numbers]

    def in_subflow(self, step: Step) -> list[TaskFuture[Any]]:
        """Have a subflow submit the calls, which gets what they need as its own arguments."""
        made: list[TaskFuture[Any]] = []

        @flow
        def inside(*values: Any) -> None:
            made.extend(self.submit(step, values))
            for future in made:
                future.exception()

        error = raised_by(inside, *self.arguments(step))
        if error is not None:
            # What it needs has no result, so its body never ran. What it was to submit has the same fate.
            assert not made, "the subflow began, and failed with what its arguments are"
            lost = [told(self.futures[use.call]) for use in step.uses if "waits" not in use.role]
            assert type(error).__name__ in lost, f"{error!r}, but its arguments are {lost}"
            made.extend(self.submit(step, self.arguments(step)))
        return made


def raised_by(function: Callable[..., object], *arguments: Any) -> Exception | None:
    try:
        function(*arguments)
    except Exception as error:
        return error
    return None


def told(future: TaskFuture[Any]) -> Outcome:
    """Return what became of a call, waiting for its end."""
    error = future.exception()
    if error is None:
        assert future.state.name == "Completed"
        return int(future.result()["value"])
    kinds = (UpstreamFailed, CrashedRun, CancelledRun)
    name = next((cls.__name__ for cls in kinds if isinstance(error, cls)), type(error).__name__)
    assert future.state.name == STATES.get(name), f"{future.state!r} with {error!r}"
    return name


@dataclass
class Ran:
    """What ran so far."""

    programs: int = 0
    calls: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Tell it in a line."""
        parts = [f"{self.programs:,} programs, {self.calls:,} calls"]
        parts += [", ".join(f"{count:,} {name}" for name, count in sorted(self.endings.items()))]
        if self.faults:
            parts += ["faults: " + ", ".join(f"{count:,} {name}" for name, count in sorted(self.faults.items()))]
        return "; ".join(parts)

    def add(self, known: Sequence[Outcome], faults: Mapping[str, int]) -> None:
        """Count one program."""
        self.programs += 1
        self.calls += len(known)
        self.endings.update("Completed" if isinstance(outcome, int) else STATES[outcome] for outcome in known)
        self.faults.update(faults)


def run(
    runner: TaskRunner, program: Sequence[Step], folder: str, options: Mapping[str, Any]
) -> tuple[list[Outcome], set[int]]:
    """Run a program as a flow; return what became of each call, and which were cancelled."""

    @flow(task_runner=runner)
    def main() -> tuple[list[Outcome], set[int]]:
        its = Run(folder, options)
        for step in program:
            its.step(step)
        wait(its.futures)
        return [told(future) for future in its.futures], its.cancelled

    # Not as a subflow of a session that a fixture keeps open: what a subflow starts stays up until that ends.
    return contextvars.Context().run(main)


def _folder(runner: TaskRunner) -> tempfile.TemporaryDirectory[str]:
    # Where a body is asked to stop, and not killed, a flow does not wait for one in a worker, nor for one that is out
    # of time: it may make its file while this is removed.
    is_asked = runner.capabilities.cancel == "cooperative"
    return tempfile.TemporaryDirectory(ignore_cleanup_errors=is_asked)


def check(runner: TaskRunner, program: Sequence[Step], how: str, ran: Ran, *, innocents_run_once: bool) -> None:
    """Run a program, and look at what became of its calls, and how often each body ran."""
    with _folder(runner) as folder, batched(how):
        known, cancelled = run(runner, program, folder, {})
        check_endings(known, program, cancelled)
        check_runs(known, program, folder, innocents_run_once=innocents_run_once)
        ran.add(known, {})


def check_with_chaos(runner: ChaosTaskRunner, program: Sequence[Step], how: str, ran: Ran) -> None:
    """Run a program: what becomes of each call is what may become of it without chaos."""
    before = Counter(runner.report().injected)
    with _folder(runner) as folder, batched(how):
        known, cancelled = run(runner, program, folder, {"crash_retries": 50})
        check_endings(known, program, cancelled)
        ran.add(known, Counter(runner.report().injected) - before)


def calls(program: Sequence[Step]) -> Iterator[tuple[int, Step]]:
    return ((number, step) for step in program for number in step.numbers)


def check_endings(known: Sequence[Outcome], program: Sequence[Step], cancelled: set[int]) -> None:
    for number, step in calls(program):
        may_be = allowed(number, step, known, cancelled=number in cancelled)
        assert known[number] in may_be, f"call {number} is {known[number]}, not {may_be}"


def check_runs(known: Sequence[Outcome], program: Sequence[Step], folder: str, *, innocents_run_once: bool) -> None:
    # A worker that dies may take others of its batch along: each of those runs once more for each death at most.
    ran = {number: len(list(Path(folder).glob(f"{number} *"))) for number, _ in calls(program)}
    deaths = sum({"dies once": 1, "dies": 3}.get(step.kind, 0) for _, step in calls(program))
    # One that dies each time may do so once more for each other that may have been to blame.
    seen = sum({"dies once": 1, "dies": ran[number]}.get(step.kind, 0) for number, step in calls(program))
    for number, step in calls(program):
        runs, outcome = ran[number], known[number]
        spare = 0 if innocents_run_once else deaths if step.kind == "dies" else max(deaths, seen)
        most = RUNS.get(step.kind, 1)
        if outcome == "CancelledRun":
            # It may have begun before, or just when what it needs was cancelled that had ended on its worker.
            assert runs <= most + spare, f"call {number} ran {runs} times"
            continue
        least = 0 if outcome == "UpstreamFailed" else most
        assert runs <= least + (spare if least else 0), f"call {number} ran {runs} times"
        # Executors don't tell when a body begins: the time of one that is to end late may be up before.
        is_uncertain = step.kind.startswith(("dies", "fails once", "stuck"))
        assert runs >= least or is_uncertain, f"call {number} ran {runs} times"
