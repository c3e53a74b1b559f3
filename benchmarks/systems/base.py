"""What a system has to offer to be measured."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class System(abc.ABC):
    """One way to run tasks. A subclass of a few lines, and a line in ``systems/__init__.py``, add one."""

    # The system to whose time this one's is compared.
    baseline: ClassVar[str]
    # What to install for it; the versions are noted with each measurement.
    distributions: ClassVar[tuple[str, ...]] = ()
    # Workloads that it can't run, and why.
    lacks: ClassVar[Mapping[str, str]] = {}
    # A script in two parts, the imports and the first result, for a fresh interpreter. May name {workers}.
    cold: ClassVar[tuple[str, str]]

    def __init__(self, workers: int) -> None:
        self.workers = workers

    @abc.abstractmethod
    def run(self, body: Callable[[], T]) -> T:
        """Start the backend, run the measured code, and stop the backend and its processes."""

    @abc.abstractmethod
    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Start a call and return a handle to its result; arguments may be handles."""

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Wait for the results."""
        return [handle.result() for handle in handles]

    def fan(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Submit a call for each item, one by one, and wait for the results."""
        return self.gather([self.submit(function, item) for item in items])

    @abc.abstractmethod
    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Call a function with each item by whatever the system offers for that, and wait for the results."""

    def nest(self, depth: int, width: int) -> Any:
        """Start a call that starts ``width`` calls and waits for them, ``depth`` deep; the result is their number."""
        raise NotImplementedError
