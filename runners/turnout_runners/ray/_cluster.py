"""What a cluster has: how many processors, and whether any node can do what a call asks for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from turnout._resources import described
from turnout.errors import RunnerOptionError

__all__ = ["Cluster"]

# What Ray calls a node's resources, by the words for them that are the same on all runners.
_NAMES: Final = {"cpu": "CPU", "gpu": "GPU"}


class Cluster:
    """The nodes of the Ray to which this process is connected."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[str, dict[str, float]] = {}
        self.lost_at = float("-inf")
        """When a node was last found to be gone, by :func:`time.monotonic`."""
        self._seen = float("-inf")
        self.end_worker: Callable[[int], object] = _leave_alone
        """Kills the worker with a process id, if it is one that a runner of this process has started."""

    def processors(self, max_age: float = float("inf")) -> int:
        """Return how many processors all nodes have together, at least 1; asks Ray if that is not known so lately."""
        self.look(max_age)
        return max(1, int(sum(node.get("CPU", 0) for node in self._nodes.values())))

    def look(self, max_age: float = 0) -> None:
        """Ask Ray for its nodes, unless it was asked less than ``max_age`` seconds ago, or is being asked."""
        if time.monotonic() - self._seen < max_age or not self._lock.acquire(blocking=False):
            return
        try:
            from ._library import ray

            known: list[dict[str, Any]] = ray.nodes()
            nodes = {node["NodeID"]: node["Resources"] for node in known if node["Alive"]}
            self._seen = time.monotonic()
            if self._nodes.keys() - nodes.keys():
                self.lost_at = self._seen
            self._nodes = nodes
        finally:
            self._lock.release()

    def check(self, wanted: Mapping[str, float], task: str) -> None:
        """Refuse what no node has, now that it is asked for: Ray would wait for such a node for ever.

        Parameters
        ----------
        wanted
            Amounts by the words of ``resources``.
        task
            The name of the task that asks.

        Raises
        ------
        RunnerOptionError
            With what the nodes have.
        """
        if self._fits(wanted):
            return
        self.look(max_age=0.5)
        if not self._fits(wanted):
            raise RunnerOptionError(
                f"Task {task!r} needs {described(wanted)}, which no node of the Ray cluster has. It has "
                f"{self._described()}. Ask for less, or add a node that has it: ray start --address=... "
                "--resources='{\"name\": 1}'."
            )

    def _fits(self, wanted: Mapping[str, float]) -> bool:
        return any(
            all(node.get(_NAMES.get(name, name), 0) >= amount for name, amount in wanted.items())
            for node in self._nodes.values()
        )

    def _described(self) -> str:
        nodes = [described(_ours(node)) for node in self._nodes.values()]
        return "; ".join(f"a node with {node}" for node in nodes) or "no nodes"


def _ours(node: Mapping[str, float]) -> dict[str, float]:
    """Return the resources of a node under the words that users write, without those that only Ray uses."""
    words = {name: word for word, name in _NAMES.items()}
    return {
        words.get(name, name): amount
        for name, amount in sorted(node.items())
        if not name.startswith(("node:", "accelerator_type:")) and name != "object_store_memory"
    }


def _leave_alone(_: int) -> None:
    """Leave a worker to whoever has started it."""
