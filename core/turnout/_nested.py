"""The engine of a call that runs on a worker and submits calls of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._backends import Backends
from ._engine import Engine
from ._scopes import FlowScope

if TYPE_CHECKING:
    from ._shipment import FlowInfo
    from .runner import TaskRunner

__all__ = ["nested_engine"]


def nested_engine(flow: FlowInfo, runner: TaskRunner | None) -> Engine:
    """Return an engine for the calls that one call of a flow submits on a worker.

    Parameters
    ----------
    flow
        The flow of the call.
    runner
        Where the nested calls run; None runs them in place, in order.
    """
    backends = Backends()
    engine = Engine(backends, runner, backends.here if runner is None else None, in_worker=True)
    engine.flow_run = FlowScope(
        engine, id=flow.id, name=flow.name, flow_name=flow.flow_name, log_prints=flow.log_prints
    )
    engine.run_id = flow.run_id
    return engine
