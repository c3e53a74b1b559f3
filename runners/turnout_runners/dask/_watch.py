"""What runs on Dask's scheduler: a plugin that tells of workers that come and go, and lets no call begin twice unasked.

It travels by value, so that the scheduler needs no Turnout; so nothing of Turnout's is imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
from distributed.diagnostics.plugin import SchedulerPlugin

__all__ = ["ShippedWatch", "Watch", "wake_overslept"]

_BEYOND_SUSPICION = -1_000_000
# How often to look whether workers are idle that count as such, and which topics are in use, in seconds.
_LOOK_SECONDS = 0.25
# Streams wait for milliseconds between two messages. One that waits for longer goes by a clock that was set.
_LONGEST_WAIT = 1.0


def wake_overslept(stream: Any) -> None:
    """Wake a stream of Dask's that waits for a time of day which is long from now, or long ago. Called in its loop.

    A :class:`distributed.batched.BatchedSend` sends at most one message in an interval, by the wall clock: if that is
    set back by an hour just then, the next message goes an hour later, even if the clock is put right meanwhile.
    """
    deadline = getattr(stream, "next_deadline", None)
    if deadline is not None and abs(deadline - time.time()) > _LONGEST_WAIT:
        stream.next_deadline = None
        stream.waker.set()


class Watch(SchedulerPlugin):
    """Watches the tasks of one run on the scheduler.

    Parameters
    ----------
    base
        The topic of the run, which is also what tasks of it are annotated with.
    client
        The client of the driver: when it is gone, so is this.
    farewell
        A message for the workers then.
    """

    def __init__(self, base: str, client: str, farewell: Mapping[str, Any]) -> None:
        self.name = base
        self.base = base
        self.client = client
        self.farewell = farewell
        self.scheduler: Any = None
        # Keys of tasks that were taken from a worker, by the topic of those who sent them.
        self.lost: dict[str, list[str]] = defaultdict(list)
        # The process ids of workers by their addresses, under which others may come back.
        self.pids: dict[str, int] = {}
        self.looks: asyncio.Future[None] | None = None

    async def start(self, scheduler: Any) -> None:
        """Begin with what workers there are."""
        self.scheduler = scheduler
        self.tell_workers()
        # It is not among the plugins yet that are told of it.
        self.log_event(self.base, None)
        self.looks = asyncio.ensure_future(self._look())

    async def close(self) -> None:
        """End with the scheduler."""
        self._look_no_more()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.see_who_is_busy()
            self.forget_topics()
            for stream in [*self.scheduler.stream_comms.values(), *self.scheduler.client_comms.values()]:
                wake_overslept(stream)

    def _look_no_more(self) -> None:
        if self.looks is not None:
            self.looks.cancel()

    def see_who_is_busy(self) -> None:
        """Have Dask see that a worker is not idle whose task takes longer than others of its name.

        Dask takes a worker for idle whose tasks should be over in no time, and looks again when one of them is. If all
        count as idle it moves no task: one that waits behind a task which is suddenly long would wait to its end.
        """
        for worker in list(self.scheduler.idle.values()):
            if len(worker.processing) > worker.nthreads:
                self.scheduler.check_idle_saturated(worker)

    def forget_topics(self) -> None:
        """Have the scheduler forget topics of the run to which nobody listens any more: each task that submits has one.

        What comes for them too late makes them anew, until the next look.
        """
        with contextlib.suppress(AttributeError):
            topics = self.scheduler._broker._topics
            for name in [name for name in topics if name.startswith(self.base) and name != self.base]:
                if not topics[name].subscribers:
                    del topics[name]

    def update_graph(self, scheduler: Any, *, annotations: Mapping[str, Mapping[Any, Any]], **_: Any) -> None:
        """Make the first death of a worker final for our tasks, whatever the scheduler's ``allowed-failures``."""
        for key, base in annotations.get("turnout", {}).items():
            if base == self.base:
                scheduler.tasks[key].suspicious = max(scheduler.tasks[key].suspicious, scheduler.allowed_failures)

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Note what a worker lost."""
        if finish not in ("erred", "released") or start not in ("processing", "memory"):
            return
        task: Any = self.scheduler.tasks.get(key)
        mark = getattr(task, "annotations", None) or {}
        if mark.get("turnout") != self.base:
            return
        if finish == "erred":
            # Dask reports errors of bodies only while the worker is there.
            if kwargs.get("worker") not in self.scheduler.workers:
                self._lost(key, mark)
        elif start == "memory" and not mark.get("turnout_once"):
            # A result went with its worker, and is made again. It was made before: no death is its fault.
            task.suspicious = _BEYOND_SUSPICION
        elif task.who_wants and task.suspicious >= 0:
            # Dask would run it again on another worker. It may have begun: that is for the engine to decide.
            task.run_spec = _never_again(key)
            if start == "processing":
                self._lost(key, mark)

    def _lost(self, key: Any, mark: Mapping[str, Any]) -> None:
        self.lost[mark["turnout_topic"]].append(key)
        # If no worker was removed, but gave it back.
        self.scheduler.loop.add_callback(self.tell_lost, "")

    def tell_lost(self, worker: str) -> None:
        """Tell which tasks went with a worker."""
        lost, self.lost = self.lost, defaultdict(list)
        for topic, keys in lost.items():
            pid = self.pids.get(worker, 0)
            self.scheduler.log_event(topic, {"op": "lost", "from": worker, "pid": pid, "keys": keys})

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Tell of a new worker."""
        self.tell_workers()

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Tell of a worker that went, and of what it took with it."""
        self.tell_lost(worker)
        self.pids.pop(worker, None)
        self.tell_workers()

    def tell_workers(self) -> None:
        """Tell which workers there are, and what they have."""
        self.pids.update((address, state.pid) for address, state in self.scheduler.workers.items())
        workers = {
            address: {
                "nthreads": state.nthreads,
                "memory_limit": state.memory_limit or 0,
                "resources": dict(state.resources),
                "name": str(state.name),
            }
            for address, state in self.scheduler.workers.items()
        }
        self.scheduler.log_event(self.base, {"op": "workers", "workers": workers})

    def log_event(self, topic: Any, msg: Any) -> None:
        """Keep nothing of what has been passed on: the scheduler would keep the last 100,000 events of each topic."""
        if isinstance(topic, str) and topic.startswith(self.base):
            with contextlib.suppress(AttributeError):
                self.scheduler._broker.truncate(topic)

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Go with the driver, and have the bodies stop that run for nobody."""
        if client != self.client:
            return
        scheduler.plugins.pop(self.name, None)
        self._look_no_more()
        with contextlib.suppress(AttributeError):
            for topic in [topic for topic in scheduler._broker._topics if topic.startswith(self.base)]:
                del scheduler._broker._topics[topic]
        if scheduler.workers:
            self.task = asyncio.ensure_future(self._say_farewell())

    async def _say_farewell(self) -> None:
        with contextlib.suppress(Exception):
            await self.scheduler.broadcast(msg=dict(self.farewell), on_error="ignore")
        with contextlib.suppress(Exception):
            # The code that was shipped, if the driver had no time to take it away.
            await self.scheduler.unregister_worker_plugin(comm=None, name=self.name)


def _never_again(key: Any) -> Any:
    """Return what Dask may run instead of a batch that has to be sent anew."""
    from dask._task_spec import Task

    return Task(key, _refuse)


def _refuse() -> None:
    raise RuntimeError("Its worker went away; it is not begun again unasked.")


class ShippedWatch(SchedulerPlugin):
    """A :class:`Watch` on its way to the scheduler, code and all.

    Parameters
    ----------
    watch
        What arrives there.
    """

    def __init__(self, watch: Watch) -> None:
        self.name = watch.name
        self._watch = watch

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        import sys

        module = sys.modules[__name__]
        cloudpickle.register_pickle_by_value(module)
        try:
            return cloudpickle.loads, (cloudpickle.dumps(self._watch),)
        finally:
            cloudpickle.unregister_pickle_by_value(module)
