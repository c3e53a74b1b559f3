"""A graph as text for Graphviz, and as the picture that Graphviz makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ._folding import Box, Drawing, Edge, around, lines_of
from .errors import VisualizationError

__all__ = ["dot", "program", "svg"]

_INDENT: Final = "    "
# Lines and titles are of a grey that can be seen on white and on black; nodes bring their own ground.
_HEAD: Final = """digraph {
    graph [compound=true, bgcolor=transparent, fontname="Helvetica,Arial,sans-serif", fontsize=12, fontcolor="#808893",
        color="#a0a7b0", style=rounded, labeljust=l, nodesep=0.35, ranksep=0.45]
    node [shape=box, style="rounded,filled", fillcolor="#dfe9f5", color="#6f8fb5", fontcolor="#17222e",
        fontname="Helvetica,Arial,sans-serif", fontsize=12, height=0.4, margin="0.16,0.06"]
    edge [color="#808893", fontcolor="#808893", fontname="Helvetica,Arial,sans-serif", fontsize=10, arrowsize=0.7]"""


def dot(drawing: Drawing) -> str:
    r"""Return the text of a graph for Graphviz.

    Examples
    --------
    >>> from turnout._folding import folded
    >>> from turnout._graph_records import CallRecord, FlowRecord
    >>> text = dot(folded([FlowRecord("sums", None)], [CallRecord('load "all"', 0)]))
    >>> print(text[text.index("subgraph"):])
    subgraph cluster_f0 {
            graph [label="sums", margin=14]
            n0 [label="load \"all\""]
        }
    }
    """
    arrows = (_arrow(drawing, edge) for edge in drawing.edges)
    return "\n".join([_HEAD, *_inside(drawing, None, _INDENT), *arrows, "}"])


def _inside(drawing: Drawing, parent: int | None, indent: str) -> Iterator[str]:
    """Yield the lines for what is in a box, or for all."""
    for number, node in enumerate(drawing.nodes):
        if node.box == parent:
            sides = ", peripheries=2" if node.is_flow else ""
            yield f"{indent}n{number} [label={_label(lines_of(node))}{sides}]"
    for number, box in enumerate(drawing.boxes):
        if box.parent == parent and not box.is_empty:
            yield f"{indent}subgraph cluster_f{number} {{"
            yield f"{indent}{_INDENT}graph [label={_label([' '.join(lines_of(box))])}, margin=14]"
            yield from _inside(drawing, number, indent + _INDENT)
            yield f"{indent}}}"


def _arrow(drawing: Drawing, edge: Edge) -> str:
    target = edge.target
    options = []
    if edge.to_box:
        # Graphviz knows arrows between nodes only, and cuts this one off at the border of the box.
        target = _first_in(drawing, edge.target)
        options.append(f"lhead=cluster_f{edge.target}")
    if edge.waits_only:
        options.append("style=dashed")
    if edge.submits:
        options.append("style=dotted")
    if edge.label:
        options.append(f"label={_label([f' {edge.label} '])}")
    return f"{_INDENT}n{edge.source} -> n{target}" + (f" [{', '.join(options)}]" if options else "")


def _first_in(drawing: Drawing, box: int) -> int:
    boxes: list[Box] = drawing.boxes
    return next(number for number, node in enumerate(drawing.nodes) if box in around(boxes, node.box))


def _label(lines: list[str]) -> str:
    # An ampersand would begin an entity.
    escaped = (line.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'


def svg(text: str) -> str:
    """Return the picture that Graphviz makes of a text of its own.

    Raises
    ------
    VisualizationError
        If its program ``dot`` is not installed, or fails.
    """
    import subprocess

    command = [program(), "-Tsvg"]
    ended = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if ended.returncode:
        told = ended.stderr.strip() or f"exit status {ended.returncode}"
        raise VisualizationError(f"{command[0]} could not draw the graph: {told}")
    return ended.stdout


def program() -> str:
    """Return where the program ``dot`` of Graphviz is.

    Raises
    ------
    VisualizationError
        If it is not installed.
    """
    import shutil

    found = shutil.which("dot")
    if found is None:
        raise VisualizationError(
            "Pictures are drawn by Graphviz, whose program `dot` is not on the PATH. Graphs as text need no program. "
            "Install Graphviz with `apt-get install graphviz`, `brew install graphviz` or `conda install graphviz`."
        )
    return found
