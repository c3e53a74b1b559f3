"""What a flow submits and what waits for what, as text and as a picture.

What draws it takes a while to load, and most programs draw nothing: so it is imported where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from .errors import VisualizationError

if TYPE_CHECKING:
    from ._graph_records import CallRecord, FlowRecord

__all__ = ["Graph", "writer_for"]


class Graph:
    """What a flow submits, and what waits for what. Made by :meth:`turnout.Flow.visualize`.

    A notebook shows the picture, if Graphviz is installed. ``print`` shows the mermaid text.

    Examples
    --------
    >>> from turnout import flow, task
    >>> @task
    ... def load(name):
    ...     return open(name).read()
    >>> @task
    ... def count(texts):
    ...     return sum(map(len, texts))
    >>> @flow
    ... def characters(names):
    ...     return count.submit(load.map(names))
    >>> graph = characters.visualize(["one.txt", "two.txt", "three.txt"])
    >>> graph
    <Graph of characters: 4 calls>
    >>> print(graph)
    flowchart TD
        subgraph f0["characters"]
            direction TD
            n0("load x 3")
            n1("count")
        end
        n0 --> n1
    """

    __slots__ = ("_calls", "_flows")

    def __init__(self, flows: Sequence[FlowRecord], calls: Sequence[CallRecord]) -> None:
        self._flows = flows
        self._calls = calls

    def mermaid(self) -> str:
        """Return the text of a mermaid flowchart."""
        from ._folding import folded
        from ._mermaid import mermaid

        return mermaid(folded(self._flows, self._calls))

    def dot(self) -> str:
        """Return the text of a graph for Graphviz."""
        from ._dot import dot
        from ._folding import folded

        return dot(folded(self._flows, self._calls))

    def svg(self) -> str:
        """Return a picture, as SVG.

        Raises
        ------
        VisualizationError
            If the program ``dot`` of Graphviz is not installed, or fails.
        """
        from ._dot import svg

        return svg(self.dot())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph to a file, in the form that the end of its name asks for.

        Parameters
        ----------
        path
            A name that ends with ``.mmd``, ``.dot`` or ``.svg``.

        Raises
        ------
        ValueError
            If it ends with something else.
        VisualizationError
            If it ends with ``.svg``, and the program ``dot`` of Graphviz is not installed, or fails.
        OSError
            If the file can't be written.

        Examples
        --------
        >>> from turnout import flow
        >>> @flow
        ... def nothing():
        ...     pass
        >>> nothing.visualize().save("nothing.png")
        Traceback (most recent call last):
            ...
        ValueError: A graph can't be saved as 'nothing.png': end the name with .mmd, .dot or .svg.
        """
        from pathlib import Path

        write = writer_for(path)
        Path(path).write_text(f"{write(self).rstrip()}\n", encoding="utf-8")

    def __str__(self) -> str:
        return self.mermaid()

    def __repr__(self) -> str:
        count = "any number of" if any(call.is_many for call in self._calls) else f"{len(self._calls):,}"
        return f"<Graph of {self._flows[0].flow}: {count} call{'s' * (count != '1')}>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """Return what notebooks show: the picture where it can be drawn, else what those draw that know mermaid."""
        try:
            return {"image/svg+xml": self.svg(), "text/plain": repr(self)}
        except VisualizationError:
            return {"text/vnd.mermaid": self.mermaid(), "text/plain": self.mermaid()}


_WRITERS: Final[dict[str, Callable[[Graph], str]]] = {".mmd": Graph.mermaid, ".dot": Graph.dot, ".svg": Graph.svg}


def writer_for(path: str | os.PathLike[str]) -> Callable[[Graph], str]:
    """Return what makes of a graph what a file of this name shall hold.

    Raises
    ------
    ValueError
        If the end of the name says nothing.
    """
    from pathlib import Path

    write = _WRITERS.get(Path(path).suffix.lower())
    if write is None:
        raise ValueError(f"A graph can't be saved as {os.fspath(path)!r}: end the name with .mmd, .dot or .svg.")
    return write
