"""Those who look on while a flow runs that no other one called; they are told in its own thread."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ._flow_run import FlowRun

__all__ = ["Onlooker", "beginning", "onlookers", "wanted"]

# Takes the run of a flow, before its body runs, and whether the thread or coroutine is its own: that of a generator is
# its caller's between two items. Returns a context that is left when the run is over.
Onlooker = Callable[["FlowRun", bool], contextlib.AbstractContextManager[object]]

onlookers: Final[list[Onlooker]] = []
"""Who wants to know."""

# What a user may ask for by the environment, with the module that is to be asked then whether it is.
_NO: Final = ("0", "false", "no", "off")
_MODULES: Final = {"TURNOUT_PROGRESS": "turnout.progress", "TURNOUT_OTEL": "turnout.otel"}


def wanted(variable: str) -> bool | None:
    """Return whether the user asks for something by a variable of the environment; None if nothing is said."""
    text = os.environ.get(variable, "").strip().lower()
    return text not in _NO if text else None


@contextlib.contextmanager
def beginning(run: FlowRun, *, is_own: bool) -> Iterator[None]:
    """Have those look on who want to, while the block runs.

    Parameters
    ----------
    run
        The run of the flow.
    is_own
        Whether the context is its own.
    """
    for variable, module in _MODULES.items():
        if os.environ.get(variable):
            importlib.import_module(module).begin_by_environment()
    if not onlookers:
        yield
        return
    with contextlib.ExitStack() as stack:
        for onlooker in [*onlookers]:
            stack.enter_context(onlooker(run, is_own))
        yield
