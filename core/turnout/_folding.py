"""From the records of calls, of which there may be many, to a graph that can be looked at: alike calls are one node.

A node stands for the calls of one task that one place of the code submits and that depend on the same nodes. So a map
is one node, a loop of independent calls too, and a tree of calls has a node for each level. Where that leaves more than
`LIMIT` nodes, as a long chain does, calls are alike that depend on the same tasks, whichever calls of these; and if
there are too many still, all calls of a task by one place are. Subflows are one box if one place calls them, and a flow
in itself is one.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ._graph_records import CallRecord, FlowRecord, Need
from ._units import shown_seconds

__all__ = ["LIMIT", "Box", "Drawing", "Edge", "Node", "around", "folded", "lines_of"]

LIMIT: Final = 40
"""How many nodes there may be before calls are told apart by less."""

# How many parts of a result stand at an edge, and how many characters of a name in a node.
_PARTS_SHOWN: Final = 3
_LONGEST: Final = 80


@dataclass(slots=True)
class Node:
    """Calls that are alike, or runs of a flow that submits nothing."""

    box: int | None
    """The box that it is in."""
    name: str
    runner: str | None
    is_flow: bool = False
    count: int | None = 0
    """How many calls it stands for; None if that is not known."""
    seconds: list[float] = field(default_factory=list)
    """How long each of their bodies ran, where that is known."""
    failures: int = 0
    """How many of them have failed."""


@dataclass(slots=True)
class Box:
    """Runs of a flow that are alike, around their calls."""

    parent: int | None
    name: str
    runner: str | None
    count: int | None = 0
    """How many runs it stands for; None if that is not known."""
    is_empty: bool = False
    """Nothing is in it, and a node stands for it."""


@dataclass(slots=True)
class Edge:
    """That calls need others."""

    source: int
    """The number of a node."""
    target: int
    """The number of a node, or of a box."""
    to_box: bool
    waits_only: bool
    may_fail: bool
    submits: bool
    """The calls are not needed, but have submitted the others."""
    parts: dict[str, None] = field(default_factory=dict)
    is_whole: bool = False

    @property
    def label(self) -> str:
        """What stands at the edge."""
        parts = [] if self.is_whole else list(self.parts)
        shown = [*map(_line, parts[:_PARTS_SHOWN]), *["..."] * (len(parts) > _PARTS_SHOWN)]
        return ", ".join([*shown, *["may fail"] * self.may_fail, *["submits"] * self.submits])


class Drawing(NamedTuple):
    """What is drawn."""

    boxes: list[Box]
    """A box stands behind the one that it is in."""
    nodes: list[Node]
    edges: list[Edge]


def folded(flows: Sequence[FlowRecord], calls: Sequence[CallRecord]) -> Drawing:
    """Return the graph of these flow runs and calls.

    Examples
    --------
    >>> calls = [CallRecord("load", 0)] * 3 + [CallRecord("add", 0, (Need(0), Need(1), Need(2)))]
    >>> drawing = folded([FlowRecord("sums", None)], calls)
    >>> [(node.name, node.count) for node in drawing.nodes]
    [('load', 3), ('add', 1)]
    >>> [(edge.source, edge.target) for edge in drawing.edges]
    [(0, 1)]
    """
    boxes, box_of = _boxes(flows)
    node_of = _alike(calls, box_of)
    drawing = Drawing(boxes, _nodes(calls, node_of, box_of), _edges(calls, node_of))
    empty = _empty_as_nodes(boxes, drawing.nodes)
    needs = (
        (number, need._replace(call=node_of[need.call]))
        for flow, number in zip(flows, box_of, strict=True)
        for need in flow.needs
    )
    drawing.edges.extend(_entries(drawing, needs, empty))
    return drawing


def lines_of(named: Node | Box) -> list[str]:
    """Return what stands in a node, or above a box.

    Examples
    --------
    >>> lines_of(Node(0, "load", "process", count=1000)), lines_of(Box(None, "main", None, count=1))
    (['load x 1,000', 'on process'], ['main'])
    >>> lines_of(Node(0, "load", None, count=3, seconds=[0.5, 1.5], failures=1))
    ['load x 3', '2 s, median 1 s', '1 failed']
    """
    count = "" if named.count == 1 else f" x {'?' if named.count is None else f'{named.count:,}'}"
    where = [] if named.runner is None else [f"on {_line(named.runner)}"]
    return [_line(named.name) + count, *where, *(_times_of(named) if isinstance(named, Node) else [])]


def _times_of(node: Node) -> Iterator[str]:
    """Yield what is known of the calls of a node that have run."""
    if len(node.seconds) == 1:
        yield shown_seconds(node.seconds[0])
    elif node.seconds:
        yield f"{shown_seconds(sum(node.seconds))}, median {shown_seconds(statistics.median(node.seconds))}"
    if node.failures:
        yield f"{node.failures:,} failed"


def _line(text: str) -> str:
    """Return a user's text in one line that is not too long, of characters that can be seen."""
    seen = " ".join("".join(char if char.isprintable() else " " for char in text).split()) or "?"
    return seen if len(seen) <= _LONGEST else f"{seen[: _LONGEST - 3]}..."


# Boxes


def _boxes(flows: Sequence[FlowRecord]) -> tuple[list[Box], list[int]]:
    """Return the boxes, and which of them each flow run is in."""
    boxes: list[Box] = []
    box_of: list[int] = []
    known: dict[Hashable, int] = {}
    for flow in flows:
        parent = None if flow.parent is None else box_of[flow.parent]
        number = _same_around(boxes, parent, flow)
        if number is None:
            number = known.setdefault((parent, flow.flow, flow.runner, flow.place), len(boxes))
        if number == len(boxes):
            boxes.append(Box(parent, flow.flow, flow.runner))
        boxes[number].count = _sum(boxes[number].count, flow.is_many)
        box_of.append(number)
    return boxes, box_of


def _same_around(boxes: Sequence[Box], parent: int | None, flow: FlowRecord) -> int | None:
    """Return the box around a flow run that holds runs of the same flow on the same runner, if it calls itself."""
    runner = flow.runner or _runner(boxes, parent)
    for number in around(boxes, parent):
        if boxes[number].name == flow.flow and _runner(boxes, number) == runner:
            return number
    return None


def _runner(boxes: Sequence[Box], number: int | None) -> str | None:
    """Return where the calls in a box run, as far as somebody said so."""
    return next((boxes[outer].runner for outer in around(boxes, number) if boxes[outer].runner), None)


def around(boxes: Sequence[Box], number: int | None) -> Iterator[int]:
    """Yield a box and those that it is in, from the innermost out."""
    while number is not None:
        yield number
        number = boxes[number].parent


def _sum(count: int | None, is_many: bool) -> int | None:
    return None if count is None or is_many else count + 1


# Nodes


def _alike(calls: Sequence[CallRecord], box_of: Sequence[int]) -> list[int]:
    """Return the number of each call's node."""
    kinds = _numbered((box_of[call.flow], call.task, call.runner, call.place) for call in calls)
    return _by_nodes(calls, kinds) or _by_tasks(calls, kinds) or kinds


def _numbered(keys: Iterator[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _by_nodes(calls: Sequence[CallRecord], kinds: Sequence[int]) -> list[int] | None:
    """Tell calls apart by the nodes that they depend on, unless that makes too many."""
    numbers: dict[Hashable, int] = {}
    node_of: list[int] = []
    for call, kind in zip(calls, kinds, strict=True):
        needed = frozenset((node_of[need.call], *_how(need)) for need in call.needs)
        node_of.append(numbers.setdefault((kind, needed), len(numbers)))
        if len(numbers) > LIMIT:
            return None
    return node_of


def _by_tasks(calls: Sequence[CallRecord], kinds: Sequence[int]) -> list[int] | None:
    """Tell calls apart by the tasks that they depend on, unless that makes too many."""
    node_of = _numbered(
        (kind, frozenset((kinds[need.call], *_how(need)) for need in call.needs))
        for call, kind in zip(calls, kinds, strict=True)
    )
    return node_of if max(node_of, default=0) < LIMIT else None


def _how(need: Need) -> tuple[bool, bool, bool]:
    return need.waits_only, need.may_fail, need.submits


def _nodes(calls: Sequence[CallRecord], node_of: Sequence[int], box_of: Sequence[int]) -> list[Node]:
    nodes: list[Node] = []
    for call, number in zip(calls, node_of, strict=True):
        if number == len(nodes):
            nodes.append(Node(box_of[call.flow], call.task, call.runner))
        node = nodes[number]
        node.count = _sum(node.count, call.is_many)
        node.failures += call.has_failed
        if call.seconds is not None:
            node.seconds.append(call.seconds)
    return nodes


# Edges


def _edges(calls: Sequence[CallRecord], node_of: Sequence[int]) -> list[Edge]:
    edges: dict[Hashable, Edge] = {}
    for call, number in zip(calls, node_of, strict=True):
        for need in call.needs:
            _add(edges, need, node_of[need.call], number)
    return list(edges.values())


def _add(edges: dict[Hashable, Edge], need: Need, source: int, target: int, *, to_box: bool = False) -> None:
    key = (source, target, to_box, *_how(need))
    edge = edges.get(key)
    if edge is None:
        edge = edges[key] = Edge(*key)
    edge.parts |= dict.fromkeys(need.parts)
    edge.is_whole |= not need.parts


def _empty_as_nodes(boxes: Sequence[Box], nodes: list[Node]) -> dict[int, int]:
    """Add a node for each box that holds nothing; return the numbers of these nodes by those of the boxes."""
    full = {number for node in nodes for number in around(boxes, node.box)} | {box.parent for box in boxes}
    numbers: dict[int, int] = {}
    for number, box in enumerate(boxes):
        if number not in full:
            box.is_empty = True
            numbers[number] = len(nodes)
            nodes.append(Node(box.parent, box.name, box.runner, is_flow=True, count=box.count))
    return numbers


def _entries(drawing: Drawing, needs: Iterator[tuple[int, Need]], empty: Mapping[int, int]) -> list[Edge]:
    """Return the edges to subflows that wait for calls, where no edge into them says so already.

    Parameters
    ----------
    drawing
        What is drawn so far.
    needs
        What flow runs need, with the box that each is in. The call is the number of its node.
    empty
        The nodes that stand for empty boxes.
    """
    boxes, nodes, edges = drawing
    reached = {(edge.source, number) for edge in edges for number in around(boxes, nodes[edge.target].box)}
    entries: dict[Hashable, Edge] = {}
    for number, need in needs:
        if number in empty:
            _add(entries, need, need.call, empty[number])
        elif (need.call, number) not in reached and number not in around(boxes, nodes[need.call].box):
            _add(entries, need, need.call, number, to_box=True)
    return list(entries.values())
