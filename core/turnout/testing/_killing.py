"""Deaths of workers that are real: what a call takes along that kills the process in which it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .._serialization import Parcel, dumps
from .._shipment import Job, JobRow, Shipment, pack_shipment

__all__ = ["with_deaths"]


def with_deaths(body: Parcel, delays: Mapping[int, float]) -> Parcel:
    """Return the body of a batch, some of whose calls kill their worker.

    Parameters
    ----------
    body
        The packed calls.
    delays
        By the index of a call, after how many seconds of it its worker dies: with 0 it never begins, else that may be
        during the call, while its result leaves, in another call, or when there is nothing to do.
    """
    shipment: Shipment = body.load()
    rows = [
        _with_death(row, delays[index], shipment.origin) if index in delays else row
        for index, row in enumerate(shipment.jobs)
    ]
    return pack_shipment(shipment._replace(jobs=tuple(rows)))


def _with_death(row: JobRow, delay: float, origin: tuple[int, str]) -> JobRow:
    job = Job._make(row)
    # Context variables are the last thing to be unpacked before the arguments, in the call's own process.
    return tuple(job._replace(variables=dumps(_Death(job.variables, delay, origin))))  # type: ignore[return-value]


class _Death:
    """Context variables that kill the process in which they are unpacked."""

    def __init__(self, variables: Parcel | None, delay: float, origin: tuple[int, str]) -> None:
        self.variables = variables
        self.delay = delay
        self.origin = origin

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _killer(), (self.variables, self.delay, self.origin)


def _killer() -> Callable[..., Any]:
    # Inside of a function, so that it travels by value: workers need not have what the tests are run with.
    def kill(variables: Parcel | None, delay: float, origin: tuple[int, str]) -> Any:
        import os
        import signal
        import threading

        from turnout.worker import this_process

        # Some backends have workers in the driver's process.
        if this_process() != origin:
            if not delay:
                os.kill(os.getpid(), signal.SIGKILL)
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        return {} if variables is None else variables.load()

    return kill
