"""Those who have to know in its own thread that a flow begins, before anything is told of it as an event."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["Onlooker", "beginning", "onlookers"]

# Takes the id and the name of a flow, before its body runs, and returns a context for what its body does.
Onlooker = Callable[[str, str], contextlib.AbstractContextManager[object]]

onlookers: Final[list[Onlooker]] = []
"""Who wants to know."""

# What a user may ask for by the environment, with the module that is to be asked then whether it is.
_MODULES: Final = {"TURNOUT_PROGRESS": "turnout.progress", "TURNOUT_OTEL": "turnout.otel"}


@contextlib.contextmanager
def beginning(id: str, flow_name: str) -> Iterator[None]:
    """Tell those who want to know that a flow begins which no other one called.

    Parameters
    ----------
    id
        The id of the run.
    flow_name
        The name of the flow.
    """
    for variable, module in _MODULES.items():
        if os.environ.get(variable):
            importlib.import_module(module).begin_by_environment()
    if not onlookers:
        yield
        return
    with contextlib.ExitStack() as stack:
        for onlooker in [*onlookers]:
            stack.enter_context(onlooker(id, flow_name))
        yield
