"""A graph as the text of a mermaid flowchart, which GitHub, GitLab and many notebooks draw."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from ._folding import Drawing, Edge, lines_of

__all__ = ["mermaid"]

_INDENT: Final = "    "
# Mermaid takes labels for Markdown, with HTML and names of icons in it. What may mean something there is written as an
# entity: all but what names of functions are made of, and of that underscores around a word, and what begins a list.
_SPECIAL: Final = re.compile(r"[^\w \-.,/()=?]|\b_+|_+\b|^\d+(?=[.)](?:\s|$))|^-")


def mermaid(drawing: Drawing) -> str:
    """Return the text of a flowchart.

    Examples
    --------
    >>> from turnout._folding import folded
    >>> from turnout._graph_records import CallRecord, FlowRecord, Need
    >>> print(mermaid(folded([FlowRecord("sums", None)], [CallRecord("load", 0), CallRecord("add", 0, (Need(0),))])))
    flowchart TD
        subgraph f0["sums"]
            direction TD
            n0("load")
            n1("add")
        end
        n0 --> n1
    """
    return "\n".join(["flowchart TD", *_inside(drawing, None, _INDENT), *map(_arrow, drawing.edges)])


def _inside(drawing: Drawing, parent: int | None, indent: str) -> Iterator[str]:
    """Yield the lines for what is in a box, or for all."""
    for number, node in enumerate(drawing.nodes):
        if node.box == parent:
            opening, closing = ("[[", "]]") if node.is_flow else ("(", ")")
            yield f"{indent}n{number}{opening}{_label(lines_of(node))}{closing}"
    for number, box in enumerate(drawing.boxes):
        if box.parent == parent and not box.is_empty:
            yield f"{indent}subgraph f{number}[{_label([' '.join(lines_of(box))])}]"
            # Boxes that no arrow leads into or out of would be turned by a right angle.
            yield f"{indent}{_INDENT}direction TD"
            yield from _inside(drawing, number, indent + _INDENT)
            yield f"{indent}end"


def _arrow(edge: Edge) -> str:
    arrow = "-.->" if edge.waits_only else "-->"
    label = f"|{_label([edge.label])}|" if edge.label else ""
    return f"{_INDENT}n{edge.source} {arrow}{label} {'f' if edge.to_box else 'n'}{edge.target}"


def _label(lines: list[str]) -> str:
    return f'"{"<br/>".join(map(_escaped, lines))}"'


def _escaped(text: str) -> str:
    """Return a text as mermaid shows it.

    Examples
    --------
    >>> print(_escaped('load_all("a") <b>'), _escaped("1. __main__"))
    load_all(#34;a#34;) #60;b#62; #49;. #95;#95;main#95;#95;
    """
    return _SPECIAL.sub(lambda match: "".join(f"#{ord(char)};" for char in match.group()), text)
