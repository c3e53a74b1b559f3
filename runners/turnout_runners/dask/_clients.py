"""Dask's clients of the runners that are up, for whoever wants to use the same cluster for work of their own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from turnout._context import current_scope
from turnout.errors import MissingContextError

from ._remote import current_work

if TYPE_CHECKING:
    from distributed import Client

    from turnout.runner import TaskRunner

__all__ = ["forget_client", "get_dask_client", "remember_client"]

_clients: Final[list[tuple[TaskRunner, Any]]] = []
_lock: Final = threading.Lock()


def get_dask_client() -> Client:
    """Return Dask's client for the cluster that the flow or task runs on: for arrays, dataframes and futures of Dask.

    In a task, the task gives its slot to others from then on, because it is going to wait for them: on a cluster with
    one slot it would otherwise wait for ever.

    In ``with get_dask_client() as client:`` Dask's collections compute on that cluster, too. The client stays open
    after it, as the runner needs it.

    Raises
    ------
    MissingContextError
        If no flow, and no ``with runner:``, uses a Dask runner here.

    Examples
    --------
    >>> from turnout import flow
    >>> from turnout_runners.dask import get_dask_client
    >>> @flow(task_runner="dask")
    ... def total():
    ...     import dask.array
    ...     return get_dask_client().compute(dask.array.ones(1000).sum()).result()
    """
    work = current_work()
    if work is not None:
        work.give_slot_away()
        return _lent(work.site.worker.client)
    scope = current_scope.get()
    engine = None if scope is None else scope.engine
    runner = None if engine is None else engine.runner
    if engine is not None and runner is not None:
        # A flow that has submitted nothing yet has not started it.
        engine.backends.dispatcher_for(runner)
    with _lock:
        for known, client in reversed(_clients):
            if runner is None or known is runner or known == runner:
                return _lent(client)
    raise MissingContextError(
        "get_dask_client() found no Dask runner that is up. Call it in a flow with task_runner='dask', in one of its "
        "tasks, or inside of `with DaskTaskRunner():`."
    )


def _lent(client: Client) -> Client:
    from ._lent import LentClient

    return LentClient(client)


def remember_client(runner: TaskRunner, client: Any) -> None:
    """Let a client be found while its runner is up."""
    with _lock:
        _clients.append((runner, client))


def forget_client(client: Any) -> None:
    """Note that the client of a runner is closed."""
    with _lock:
        _clients[:] = [(runner, known) for runner, known in _clients if known is not client]
