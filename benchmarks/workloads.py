"""The shapes of work. Each checks its results, so that nobody is fast by being wrong."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import functions, granularity, growth, usage

if TYPE_CHECKING:
    from .systems.base import System

STENCIL_WIDTH = 16
ARRAY_LENGTH = 8_000_000  # 64 MB of doubles.
PAYLOAD_STEPS = 10
# Memory that no process had before can take ten times as long to touch: once is not enough to tell systems apart.
PAYLOAD_ROUNDS = 10
NESTED_DEPTH, NESTED_WIDTH = 3, 3
UNEVEN_MEAN, UNEVEN_SIGMA, UNEVEN_SEED = 0.01, 1.0, 1
# A row of a stencil of longer tasks takes too long for there to be many rows.
STENCIL_LENGTHS = [length for length in granularity.LENGTHS if length <= 0.02]


@dataclass(frozen=True)
class Done:
    """How many tasks ran, and what else was seen."""

    tasks: int
    seen: dict[str, float] = field(default_factory=dict)
    curve: list[granularity.Point] = field(default_factory=list)


@dataclass(frozen=True)
class Workload:
    """A shape of work, and how much of it to do: by default, and in a hurry."""

    about: str
    body: Callable[[System, int], Done]
    n: int
    quick: int


def fan(system: System, n: int) -> Done:
    results = system.fan(functions.same, range(n))
    assert results == list(range(n))
    return Done(n)


def map_(system: System, n: int) -> Done:
    results = system.map(functions.same, range(n))
    assert results == list(range(n))
    return Done(n)


def chain(system: System, n: int) -> Done:
    handle = system.submit(functions.increment, 0)
    for _ in range(n - 1):
        handle = system.submit(functions.increment, handle)
    assert system.gather([handle]) == [n]
    return Done(n)


def tree(system: System, n: int) -> Done:
    level, tasks = [system.submit(functions.same, leaf) for leaf in range(n)], n
    while len(level) > 1:
        odd = level[len(level) - len(level) % 2 :]
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [system.submit(functions.add, left, right) for left, right in pairs]
        tasks += len(level)
        level += odd
    assert system.gather(level) == [n * (n - 1) // 2]
    return Done(tasks)


def stencil(system: System, n: int) -> Done:
    return Done(rows_of_steps(system, n, lambda *around: system.submit(functions.step, *around)))


def rows_of_steps(system: System, n: int, step: Callable[..., Any]) -> int:
    """Submit rows of steps, each of which takes three of the row before, and return how many steps there were."""
    width, rows = STENCIL_WIDTH, max(1, n // STENCIL_WIDTH)
    row = [0] * width
    for _ in range(rows):
        row = [step(row[i - 1], row[i], row[(i + 1) % width]) for i in range(width)]
    assert system.gather(row) == [rows] * width
    return width * rows


def sleep(seconds: float) -> Callable[[System, int], Done]:
    def body(system: System, n: int) -> Done:
        assert system.fan(functions.sleep, [seconds] * n) == [seconds] * n
        return Done(n, {"ideal_s": seconds * n / system.workers})

    return body


def imbalance(system: System, n: int) -> Done:
    """Sleep for uneven times; the ideal is that of workers that are busy to the end, or of the longest call."""
    seconds = uneven(n)
    assert system.fan(functions.sleep, seconds) == seconds
    return Done(n, {"ideal_s": max(sum(seconds) / system.workers, *seconds)})


def uneven(n: int) -> list[float]:
    """Return log-normal durations in seconds, always the same ones, with a mean of 10 ms."""
    dice = random.Random(UNEVEN_SEED)
    drawn = [dice.lognormvariate(0, UNEVEN_SIGMA) for _ in range(n)]
    return [one * UNEVEN_MEAN * n / sum(drawn) for one in drawn]


def metg_fan(system: System, n: int) -> Done:
    def run(length: float, tasks: int) -> int:
        assert system.fan(functions.spin, [length] * tasks) == [length] * tasks
        return tasks

    return swept(system, n, granularity.LENGTHS, run)


def metg_stencil(system: System, n: int) -> Done:
    def run(length: float, tasks: int) -> int:
        return rows_of_steps(system, tasks, lambda *around: system.submit(functions.spin_step, length, *around))

    return swept(system, n, STENCIL_LENGTHS, run)


def swept(system: System, n: int, lengths: Sequence[float], run: Callable[[float, int], int]) -> Done:
    """Return the curve over tasks of these lengths, each for so many milliseconds of ideal time."""
    tasks, curve = granularity.sweep(lengths, system.workers, n / 1000, run)
    return Done(tasks, curve=curve)


def growth_to(size: int) -> Callable[[System, int], Done]:
    def body(system: System, _: int) -> Done:
        return fan(system, size)

    return body


def payload(step: Callable[[functions.Array], functions.Array]) -> Callable[[System, int], Done]:
    def body(system: System, _: int) -> Done:
        for _ in range(PAYLOAD_ROUNDS):
            handle = system.submit(functions.fill, ARRAY_LENGTH)
            for _ in range(PAYLOAD_STEPS):
                handle = system.submit(step, handle)
            assert system.gather([system.submit(functions.total, handle)]) == [ARRAY_LENGTH * (PAYLOAD_STEPS + 1)]
        return Done(PAYLOAD_ROUNDS * (PAYLOAD_STEPS + 2))

    return body


def queued(system: System, n: int) -> Done:
    """Fill the queue behind blocked slots twice: what the second round adds to the first was not released."""
    before, blocks = usage.memory(), sys.getallocatedblocks()
    first = _fill(system, n)
    after, left = usage.memory(), sys.getallocatedblocks()
    second = _fill(system, n)
    seen = {
        "bytes_per_waiting_call": (first - before) / n,
        "bytes_per_waiting_call_again": (second - before) / n,
        "bytes_kept_per_call": (after - before) / n,
        "blocks_kept_per_call": (left - blocks) / n,
    }
    return Done(2 * n, seen)


def _fill(system: System, n: int) -> int:
    """Return how many bytes the process holds while so many calls wait."""
    gate = threading.Event()
    blocking = [system.submit(functions.hold, gate) for _ in range(system.workers)]
    handles = [system.submit(functions.same, None) for _ in range(n)]
    held = usage.memory()
    gate.set()
    assert system.gather(handles) == [None] * n
    system.gather(blocking)
    del handles, blocking
    gc.collect()
    return held


def nested(system: System, n: int) -> Done:
    each = sum(NESTED_WIDTH**level for level in range(NESTED_DEPTH))
    counts = system.gather([system.nest(NESTED_DEPTH, NESTED_WIDTH) for _ in range(n)])
    assert counts == [each] * n
    return Done(each * n)


def cold(system: System, _: int) -> Done:
    """Import and get one result in a fresh interpreter."""
    imported, first = usage.time_script(*(part.format(workers=system.workers) for part in system.cold))
    return Done(1, {"import_s": imported, "first_s": first})


WORKLOADS = {
    "fan": Workload("independent no-ops, submitted one by one", fan, 20_000, 5_000),
    "map": Workload("independent no-ops, in one map", map_, 20_000, 5_000),
    "chain": Workload("each takes the result of the one before", chain, 5_000, 2_000),
    "tree": Workload("binary reduction over so many leaves", tree, 10_000, 2_500),
    "stencil": Workload("16 wide, each takes 3 of the step before", stencil, 20_000, 5_000),
    "sleep-1ms": Workload("independent, 1 ms each", sleep(0.001), 1_000, 200),
    "sleep-10ms": Workload("independent, 10 ms each", sleep(0.01), 200, 20),
    "sleep-100ms": Workload("independent, 100 ms each", sleep(0.1), 20, 4),
    "imbalance": Workload("independent, log-normal, 10 ms on average", imbalance, 200, 50),
    "metg-fan": Workload("busy loops, the shortest at half speed", metg_fan, 500, 50),
    "metg-stencil": Workload("a stencil of them, 16 wide", metg_stencil, 500, 50),
    "payload": Workload("64 MB through 10 read-only steps, 10 times", payload(functions.raise_all), 1, 1),
    "payload-own": Workload("the same, an array for each", payload(functions.raise_own), 1, 1),
    "queued": Workload("no-ops behind blocked slots", queued, 100_000, 20_000),
    "cold": Workload("import and first result, fresh interpreter", cold, 1, 1),
    "nested": Workload("calls that start calls, three levels", nested, 300, 30),
    **{
        name: Workload("as fan, and what memory it needs", growth_to(size), 1, 1) for name, size in growth.NAMES.items()
    },
}
GROUPS = {
    "sleep": ["sleep-1ms", "sleep-10ms", "sleep-100ms"],
    "metg": ["metg-fan", "metg-stencil"],
    "growth": list(growth.NAMES),
}
# A million tasks on each of many systems take an hour; so they are measured when they are asked for.
USUAL = [name for name in WORKLOADS if name not in growth.NAMES]
