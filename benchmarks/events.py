"""What events cost: ``python -m benchmarks.events --help``.

Each round runs a shape three times: with nobody who listens (off), with somebody who does nothing about what is told
(on), and with a file to which all is written (written). Costs are differences within a round, in microseconds a call.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from turnout import Flow, events, flow, task
from turnout.registry import resolve

from . import functions

__all__ = ["main"]

_same: Final = task(functions.same)
_increment: Final = task(functions.increment)


@flow
def _fan(n: int) -> Any:
    return [_same.submit(number) for number in range(n)]


@flow
def _map(n: int) -> Any:
    return _same.map(range(n))


@flow
def _chain(n: int) -> Any:
    future = _increment.submit(0)
    for _ in range(n - 1):
        future = _increment.submit(future)
    return future


SHAPES: Final[dict[str, Flow[[int], Any]]] = {"fan": _fan, "map": _map, "chain": _chain}


@contextlib.contextmanager
def _written() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TURNOUT_EVENTS"] = str(Path(folder) / "events.jsonl")
        try:
            yield
        finally:
            del os.environ["TURNOUT_EVENTS"]
            # The next flow closes the file, which is gone then.
            _fan(1)


MODES: Final[dict[str, Callable[[], contextlib.AbstractContextManager[object]]]] = {
    "off": contextlib.nullcontext,
    "on": lambda: events.subscribe(lambda _: None),
    "written": _written,
}


def rounds(runner: str, shape: str, n: int, count: int, clock: int) -> dict[str, list[float]]:
    """Return the microseconds that a call took, by mode, in each round: by the wall (0), or of this process (1)."""
    run = SHAPES[shape]
    taken: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(count + 1):
        for mode, listening in MODES.items():
            with listening(), resolve(runner) as started:
                body = run.with_options(task_runner=started)
                # Workers come up, and functions are measured.
                body(n // 10)
                gc.collect()
                began = time.perf_counter(), time.process_time()
                body(n)
                ended = time.perf_counter(), time.process_time()
            # The first round warms up.
            if number:
                taken[mode].append((ended[clock] - began[clock]) / n * 1e6)
    return taken


def line(runner: str, shape: str, taken: dict[str, list[float]]) -> str:
    """Return what is shown of the rounds of one shape: medians, with quartiles of what is added."""
    shown = [f"{runner:<10} {shape:<6} off {statistics.median(taken['off']):6.2f} us"]
    for mode in list(MODES)[1:]:
        added = [on - off for on, off in zip(taken[mode], taken["off"], strict=True)]
        low, middle, high = statistics.quantiles(added, n=4)
        shown.append(f"{mode} {middle:+6.2f} us ({low:+.2f} to {high:+.2f})")
    return "   ".join(shown)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a line for each runner and shape."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description="What events cost.")
    parser.add_argument("--runners", default="thread:2,process:2", help="default %(default)s")
    parser.add_argument("--shapes", default=",".join(SHAPES), help=f"of: {', '.join(SHAPES)}")
    parser.add_argument("--n", type=int, default=20_000, help="calls in a flow (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="default %(default)s")
    parser.add_argument("--cpu", action="store_true", help="processor time of the driver, if others are at work")
    options = parser.parse_args(arguments)
    for runner in options.runners.split(","):
        for shape in options.shapes.split(","):
            print(line(runner, shape, rounds(runner, shape, options.n, options.rounds, int(options.cpu))), flush=True)


if __name__ == "__main__":
    main()
