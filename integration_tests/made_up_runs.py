"""Events of flows that nobody ran: as many calls as wanted, with all that may happen to calls.

``python -m integration_tests.made_up_runs 100000 run.jsonl`` writes some to a file.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Final, NamedTuple

from turnout import events

__all__ = ["made_up_run", "write"]

BEGIN: Final = 1_767_225_600.0
FLOW: Final = "6a3f1a5e-0000-4000-8000-000000000001"
INNER: Final = "6a3f1a5e-0000-4000-8000-000000000002"
RUNNER: Final = "ProcessPoolTaskRunner(max_workers=8)"
TRACEBACK: Final = """Traceback (most recent call last):
  File "stations.py", line 31, in parse
    return float(field)
ValueError: could not convert string to float: '--'
"""

# Seconds of a body, on average.
_SECONDS: Final = {"load": 0.02, "parse": 0.05, "clean": 0.004, "merge": 0.08, "store": 0.03, "draw": 0.6}


class _Slot(NamedTuple):
    free: float
    worker: str
    number: int


def made_up_run(calls: int = 500, *, workers: int = 4, slots: int = 2, seed: int = 1) -> list[events.Event]:
    """Return the events of a run, in the order in which a process may have learnt of them.

    Files are loaded, parsed and merged by eights; a parse may clean what it read, as a function and in its own slot; a
    merge submits a store and waits for it; a picture is drawn in a subflow at the end. Some attempts fail and are made
    again, some calls fail for good, and what needs them with them; some are cached.

    Parameters
    ----------
    calls
        How many there are, about.
    workers
        How many processes there are.
    slots
        How many calls each of them runs at once.
    seed
        Leads to another run.
    """
    return _Simulation(calls, workers, slots, random.Random(seed)).run()


class _Simulation:
    def __init__(self, calls: int, workers: int, slots: int, dice: random.Random) -> None:
        self._files = max(1, calls * 8 // 20)
        # Of the parses, which come behind the loads, this one fails for sure.
        self._doomed = self._files + min(self._files - 1, 9)
        self._dice = dice
        self._now = BEGIN
        self._events: list[events.Event] = [
            events.StreamStarted(BEGIN - 0.01, events.VERSION, "0.1.0", "node0", 100),
            events.FlowStarted(BEGIN, FLOW, "weather-7", "weather", RUNNER, workers * slots),
        ]
        self._free = [_Slot(BEGIN + 0.05, f"node{w % 2}:{200 + w}", n) for w in range(workers) for n in range(slots)]
        for slot in self._free[::slots]:
            host, pid = slot.worker.split(":")
            self._events.append(events.WorkerUp(slot.free, slot.worker, host, int(pid), "process"))
        self._tasks: list[str] = []
        self._needs: list[tuple[int, ...]] = []
        self._open: list[int] = []
        self._dependents: defaultdict[int, list[int]] = defaultdict(list)
        self._states: dict[int, str] = {}
        self._ready: list[tuple[float, int, int]] = []
        self._of_subflow: set[int] = set()

    def run(self) -> list[events.Event]:
        loads = [self._submit("load") for _ in range(self._files)]
        parses = [self._submit("parse", load) for load in loads]
        merges = [self._submit("merge", *parses[index : index + 8]) for index in range(0, len(parses), 8)]
        self._work()
        self._now = max(event.time for event in self._events) + 0.2
        begin = self._now
        self._events.append(events.FlowStarted(begin, INNER, "pictures-1", "pictures", RUNNER, None, FLOW))
        self._of_subflow.add(len(self._tasks))
        self._submit("draw", *merges[:1])
        self._work()
        end = max(event.time for event in self._events)
        self._events.append(events.FlowFinished(end, INNER, "Completed", end - begin))
        self._events += [events.WorkerDown(end + 0.01, worker, "stopped") for worker in {s.worker for s in self._free}]
        failed = [call for call, state in self._states.items() if state == "Failed"]
        message = f"ExceptionGroup: {len(failed)} calls failed"
        self._events.append(events.FlowFinished(end + 0.02, FLOW, "Failed", end + 0.02 - BEGIN, message))
        return sorted(self._events, key=lambda event: event.time)

    def _submit(self, task: str, *needs: int, parent: int | None = None, time: float | None = None) -> int:
        call = len(self._tasks)
        self._now += 0.00002
        time = self._now if time is None else time
        flow = INNER if call in self._of_subflow else FLOW
        self._tasks.append(task)
        self._needs.append(needs)
        runner = "here" if task == "clean" else "process"
        around = None if parent is None else parent + 1
        self._events.append(
            events.CallCreated(
                time, call + 1, flow, task, f"{task}-{call}", runner, around, tuple(n + 1 for n in needs)
            )
        )
        open_needs = [need for need in needs if need not in self._states]
        self._open.append(len(open_needs))
        for need in open_needs:
            self._dependents[need].append(call)
        if not open_needs and parent is None:
            self._now_ready(call, time)
        return call

    def _now_ready(self, call: int, time: float) -> None:
        if any(self._states[need] not in ("Completed", "Cached") for need in self._needs[call]):
            self._finish(call, time, "UpstreamFailed", 0, 0.0, message="a call that it needs failed")
            return
        self._events.append(events.CallReady(time, call + 1, f"{self._tasks[call]}-{call}"))
        if self._tasks[call] == "load" and self._dice.random() < 0.03:
            self._finish(call, time, "Cached", 0, 0.0)
        else:
            heapq.heappush(self._ready, (time, call, 1))

    def _work(self) -> None:
        heapq.heapify(self._free)
        while self._ready:
            time, call, attempt = heapq.heappop(self._ready)
            slot = heapq.heappop(self._free)
            sent = max(time, slot.free) + 0.0002
            end = self._attempt(call, attempt, sent, slot)
            heapq.heappush(self._free, slot._replace(free=end))

    def _attempt(self, call: int, attempt: int, sent: float, slot: _Slot) -> float:
        task = self._tasks[call]
        start = sent + self._dice.uniform(0.0003, 0.002)
        seconds = _SECONDS[task] * self._dice.lognormvariate(-0.125, 0.5)
        self._events.append(events.CallSent(sent, call + 1, attempt, call // 4, 800))
        self._events.append(events.CallStarted(start, call + 1, attempt, slot.worker, slot.number))
        if task == "parse" and call != self._doomed and self._dice.random() < 0.06:
            end = start + seconds / 3
            if attempt < 3:
                delay = 0.5 * attempt
                self._events.append(
                    events.CallRetrying(end, call + 1, attempt, "Failed", delay, "ValueError: no number")
                )
                heapq.heappush(self._ready, (end + delay, call, attempt + 1))
                return end
            self._finish(call, end, "Failed", attempt, end - start, slot, message="ValueError: '--'")
            return end
        if task == "parse" and (call == self._doomed or self._dice.random() < 0.002):
            self._finish(call, start + seconds, "Failed", attempt, seconds, slot, message="ValueError: '--'")
            return start + seconds
        end = start + seconds
        if task == "parse" and self._dice.random() < 0.2:
            end = self._called(call, start + seconds / 4, slot) + seconds / 2
        elif task == "merge":
            end = max(end, self._submitted(call, start + seconds / 2) + 0.001)
        self._finish(call, end, "Completed", attempt, end - start, slot)
        if task == "merge" or self._dice.random() < 0.01:
            level = "WARNING" if self._dice.random() < 0.1 else "INFO"
            message = f"{task} {call}: {self._dice.randrange(10_000)} rows"
            self._events.append(events.LogRecord(end, level, "turnout.task_runs", message, FLOW, call + 1, slot.worker))
        return end

    def _called(self, parent: int, time: float, slot: _Slot) -> float:
        """Have a call made as a function, in the slot of the one around it."""
        call = self._submit("clean", parent=parent, time=time)
        seconds = _SECONDS["clean"] * self._dice.uniform(0.5, 1.5)
        self._events.append(events.CallReady(time, call + 1, f"clean-{call}"))
        self._events.append(events.CallStarted(time, call + 1, 1, slot.worker, slot.number))
        self._finish(call, time + seconds, "Completed", 1, seconds, slot)
        return time + seconds

    def _submitted(self, parent: int, time: float) -> float:
        """Have a call run in another slot, for which the one around it waits."""
        call = self._submit("store", parent=parent, time=time)
        slot = heapq.heappop(self._free) if self._free else _Slot(time, "node0:200", 0)
        self._events.append(events.CallReady(time, call + 1, f"store-{call}"))
        end = self._attempt(call, 1, max(time, slot.free), slot)
        heapq.heappush(self._free, slot._replace(free=end))
        return end

    def _finish(
        self,
        call: int,
        time: float,
        state: str,
        attempt: int,
        seconds: float,
        slot: _Slot | None = None,
        message: str = "",
    ) -> None:
        worker, number = ("", 0) if slot is None else (slot.worker, slot.number)
        host, _, pid = worker.partition(":")
        task, flow = self._tasks[call], INNER if call in self._of_subflow else FLOW
        self._events.append(
            events.CallFinished(
                time,
                call + 1,
                flow,
                task,
                f"{task}-{call}",
                state,
                attempt,
                seconds,
                worker,
                host,
                int(pid or 0),
                number,
                call // 4 if attempt else None,
                800 if attempt else 0,
                2000 if state == "Completed" else 0,
                message,
                TRACEBACK if state == "Failed" else "",
            )
        )
        self._states[call] = state
        for dependent in self._dependents.pop(call, ()):
            self._open[dependent] -= 1
            if not self._open[dependent]:
                self._now_ready(dependent, time)


def write(path: Path, stream: list[events.Event]) -> Path:
    """Write events to a file, as a run would, and return its path."""
    path.write_text("".join(f"{events.as_json(event)}\n" for event in stream), encoding="utf-8")
    return path


if __name__ == "__main__":
    write(Path(sys.argv[2]), made_up_run(int(sys.argv[1]), workers=8, slots=4))
