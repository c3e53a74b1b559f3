"""Random programs with faults, on one runner after the other: a line each minute, and an end if anything grows.

``ci/soak`` runs this. What a program is, and what its calls may come to, is in ``integration_tests/programs.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import logging
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from integration_tests.programs import REPEATABLE, Ran, Random, check_with_chaos, compose
from integration_tests.usage import Usage
from turnout.runner import TaskRunner
from turnout.testing import ChaosTaskRunner
from turnout_runners.executor import ExecutorTaskRunner

RUNNERS: Final = ("sequential", "thread", "process", "executor", "dask", "ray")
CLUSTERS: Final = ("dask", "ray")
PATIENCE: Final = 300
"""Seconds that one program may take before it counts as hanging."""
MEGABYTE: Final = 1 << 20


class Grown(Exception):
    """Something that should stay as it was has not."""


def make(word: str, seed: int) -> ChaosTaskRunner:
    """Return a runner with two slots and many faults."""
    inner: TaskRunner | str = {
        "thread": "thread?max_workers=2",
        "process": "process?max_workers=2",
        "dask": "dask?n_workers=2",
        "ray": "ray?num_cpus=2",
    }.get(word, word)
    if word == "executor":
        inner = ExecutorTaskRunner(ProcessPoolExecutor, max_workers=2)
    return ChaosTaskRunner(inner, seed, crashes=0.1, kills=0.01, losses=0.1)


class Soak:
    """The turn of one runner.

    Parameters
    ----------
    word
        Which runner.
    chance
        Where programs and seeds come from.
    """

    def __init__(self, word: str, chance: random.Random) -> None:
        self.word = word
        self.chance = chance
        self.ran = Ran()
        self.runner = make(word, chance.randrange(1 << 32))
        # After the first part, which makes what is made once and kept.
        self.baseline: Usage | None = None
        self.programs_then = 0

    def run(self, seconds: float, parts: int) -> None:
        """Run programs for so long, and look after each part of it at what has grown.

        Raises
        ------
        Grown
            If something has.
        AssertionError
            If a program came to what it may not come to.
        """
        # A cluster stays up: each new connection may keep files of its own in this process.
        with self.runner if self.word in CLUSTERS else contextlib.nullcontext():
            for part in range(1, parts + 1):
                with self.runner if self.word not in CLUSTERS else contextlib.nullcontext():
                    self.run_part(seconds / parts)
                self.look(part)

    def run_part(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            program = compose(Random(self.chance), REPEATABLE)
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            try:
                check_with_chaos(self.runner, program, self.chance.choice(("measured", "most", "random")), self.ran)
            except BaseException:
                print(f"soak: on {self.word} this program went wrong: {program}", flush=True)
                raise
            finally:
                faulthandler.cancel_dump_traceback_later()

    def look(self, part: int) -> None:
        usage = self.settled()
        print(f"{time.strftime('%H:%M:%S')} {self.word} {part}: {usage}; {self.ran}", flush=True)
        if self.baseline is None:
            self.baseline, self.programs_then = usage, self.ran.programs
        elif grown := list(self.grown(usage)):
            raise Grown(f"on {self.word}, after {self.ran.programs} programs: {', '.join(grown)}")

    def settled(self) -> Usage:
        """Measure when what the last program left behind has gone, or does not go."""
        usage = Usage.now()
        deadline = time.monotonic() + 10
        while self.baseline is not None and any(self.grown(usage)) and time.monotonic() < deadline:
            time.sleep(0.2)
            usage = Usage.now()
        return usage

    def grown(self, usage: Usage) -> Iterator[str]:
        """Yield what has grown since the baseline by more than chance."""
        before = self.baseline
        assert before is not None, "measured after the first part"
        programs = self.ran.programs - self.programs_then
        # A cluster's library starts and ends threads, connections and idle workers as it sees fit. One of Ray's workers
        # has some fifty descriptors and 100 MB.
        few = 10 if self.word in CLUSTERS else 0
        # Dask's scheduler keeps a little of each flow and of each worker that died, some 250 blocks a program, and its
        # logs of messages and transitions are full only after a hundred programs.
        blocks = 50_000 + 500 * programs if few else 2000 + programs
        limits = {
            "threads": (usage.threads, before.threads + few),
            "processes": (usage.processes, before.processes + few),
            "descriptors": (usage.descriptors, before.descriptors + 3 * few),
            "descriptors of workers": (usage.worker_descriptors, before.worker_descriptors + 60 * few),
            "blocks of memory": (usage.blocks, before.blocks + blocks),
            "bytes of the heap": (usage.heap, before.heap + (30 if few else 3) * MEGABYTE),
            "bytes of memory": (usage.memory, before.memory + 100 * MEGABYTE),
            "bytes of the workers' memory": (usage.worker_memory, before.worker_memory + 100 * few * MEGABYTE),
        }
        yield from (f"{name} from at most {most:,} to {now:,}" for name, (now, most) in limits.items() if now > most)


def main(arguments: Sequence[str]) -> str | None:
    """Run the programs, and return what went wrong."""
    parser = argparse.ArgumentParser(prog="ci/soak", description=__doc__)
    parser.add_argument("minutes", nargs="?", type=float, default=60.0, help="for how long, over all runners")
    parser.add_argument("runners", nargs="*", default=RUNNERS, help=f"which of {', '.join(RUNNERS)}")
    parser.add_argument("--seed", type=int, default=None, help="have the programs of another run again")
    options = parser.parse_args(arguments)
    if unknown := set(options.runners) - set(RUNNERS):
        parser.error(f"no such runner: {', '.join(sorted(unknown))}. There are {', '.join(RUNNERS)}.")
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    seconds = 60 * options.minutes / len(options.runners)
    print(f"soak: {options.minutes:g} minutes on {', '.join(options.runners)}, --seed {seed}", flush=True)
    logging.disable()
    chance = random.Random(seed)
    for word in options.runners:
        try:
            Soak(word, chance).run(seconds, max(3, round(seconds / 60)))
        except Grown as error:
            return f"soak: something grows {error}"
    print("soak: every result is right, and nothing grew")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
