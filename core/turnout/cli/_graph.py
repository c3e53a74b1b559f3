"""``turnout graph``: what a flow would submit, without running any task, or what one has submitted, from its events."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from .._dot import program
from .._graph import Graph, writer_for
from ..errors import VisualizationError
from ..history._graphs import graph_of
from ._after import read_history
from ._failure import text_of
from ._loading import load_flow
from ._output import claim_standard_output
from ._parameters import bind
from ._problem import UsageProblem, one_line

__all__ = ["draw_flow"]


def draw_flow(target: str, parameters: Sequence[str], output: str | None) -> int:
    """Print the graph of the flow that ``target`` names, or save it, and return the exit status.

    Raises
    ------
    UsageProblem
        If the flow or a parameter can't be had as it was typed, or the graph not be saved so.
    """
    if output is not None:
        _check(output)
    if Path(target).suffix == ".jsonl":
        return _show(_graph_of_events(target, parameters), output, sys.stdout)
    # What the flow's body prints is no part of the graph.
    own = claim_standard_output() if output is None else None
    flow = load_flow(target)
    arguments = bind(flow, parameters)
    try:
        graph = flow.visualize(*arguments.args, **arguments.kwargs)
    except Exception as error:
        print(text_of(error), end="", file=sys.stderr)
        told = one_line(f"{type(error).__qualname__}: {error}")
        print(f"turnout: flow {flow.name!r} can't be drawn: {told}", file=sys.stderr)
        return 1
    return _show(graph, output, own)


def _graph_of_events(path: str, parameters: Sequence[str]) -> Graph:
    if parameters:
        raise UsageProblem(f"{path} tells of a run that had its parameters: leave out -p {parameters[0]}")
    return graph_of(read_history(path))


def _show(graph: Graph, output: str | None, stream: TextIO | None) -> int:
    if output is None:
        print(graph, file=stream, flush=True)
        return 0
    try:
        graph.save(output)
    except (OSError, VisualizationError) as error:
        raise UsageProblem(str(error)) from error
    return 0


def _check(output: str) -> None:
    """Refuse a name that can't be written, before the flow's body runs."""
    try:
        writer_for(output)
        if Path(output).suffix.lower() == ".svg":
            program()
    except (ValueError, VisualizationError) as error:
        raise UsageProblem(str(error)) from None
