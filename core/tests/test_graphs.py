"""From records to graphs that can be read: what is folded, what is escaped, and what is saved."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import stat
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from turnout import Graph, TaskFuture, VisualizationError, flow, task
from turnout._folding import LIMIT, folded
from turnout._graph_records import CallRecord, FlowRecord, Need
from turnout._mermaid import mermaid

MAIN = [FlowRecord("main", None)]


@task
def leaf(*args: Any) -> Any:
    raise AssertionError


@task
def join(*args: Any) -> Any:
    raise AssertionError


@task
def step(*args: Any) -> Any:
    raise AssertionError


def nodes_and_edges(body: Callable[[], Any]) -> tuple[list[str], list[str]]:
    """Return what stands in the nodes, and the edges, of a flow."""
    text = flow(name="main")(body).visualize().mermaid()
    names = dict(re.findall(r'(n\d+)(?:\(|\[\[)"(.*)"', text))
    edges = re.findall(r"^    (n\d+) -.*> (n\d+)$", text, re.MULTILINE)
    return list(names.values()), [f"{names[source]} > {names[target]}" for source, target in edges]


# Folding


def test_calls_by_different_places_are_different_nodes() -> None:
    def body() -> None:
        left = leaf.submit("left")
        right = leaf.submit("right")
        step.submit(left)
        join.submit(right)

    assert nodes_and_edges(body) == (["leaf", "leaf", "step", "join"], ["leaf > step", "leaf > join"])


def test_places_on_one_line_are_different() -> None:
    assert nodes_and_edges(lambda: [leaf.submit(1), leaf.submit(2)])[0] == ["leaf", "leaf"]


def test_a_helper_that_is_used_twice_is_two_places() -> None:
    def chain(x: Any) -> TaskFuture[Any]:
        return step.submit(leaf.submit(x))

    def body() -> None:
        one = chain(1)
        join.submit(one)
        chain(2)

    assert nodes_and_edges(body) == (
        ["leaf", "step", "join", "leaf", "step"],
        ["leaf > step", "step > join", "leaf > step"],
    )


def test_a_body_may_be_wrapped() -> None:
    def helper(x: Any) -> Any:
        return leaf.submit(x)

    def body() -> None:
        helper(1)
        helper(2)

    @functools.wraps(body)
    def wrapped() -> None:
        body()

    assert nodes_and_edges(wrapped)[0] == ["leaf", "leaf"]


def test_places_in_a_helper_are_different() -> None:
    def pair() -> list[TaskFuture[Any]]:
        return [leaf.submit(1), leaf.submit(2)]

    def body() -> None:
        step.submit(pair()[0])

    assert nodes_and_edges(body) == (["leaf", "leaf", "step"], ["leaf > step"])


def test_a_place_stays_the_same_when_the_interpreter_has_warmed_up() -> None:
    """It replaces instructions that run often, and a frame that has come through one is elsewhere by some bytes."""

    def numbers() -> Iterator[Any]:
        for number in range(1000):
            step.submit()
            yield number

    def helper(number: int) -> Any:
        return leaf.submit(number)

    def body() -> None:
        for number in numbers():
            helper(number)

    assert nodes_and_edges(body)[0] == ["step x 1,000", "leaf x 1,000"]


def test_runners_are_different_nodes() -> None:
    def body() -> None:
        for word in ["process", "thread", "process"]:
            leaf.with_options(task_runner=word).submit()

    assert nodes_and_edges(body)[0] == ["leaf x 2<br/>on process", "leaf<br/>on thread"]


def test_a_loop_is_one_node() -> None:
    def body() -> None:
        for number in range(10_000):
            step.submit(leaf.submit(number))

    assert nodes_and_edges(body) == (["leaf x 10,000", "step x 10,000"], ["leaf x 10,000 > step x 10,000"])


def test_one_place_that_waits_for_different_things_is_several_nodes() -> None:
    def body() -> None:
        first, second = leaf.submit(1), leaf.submit(2)
        for number in range(10):
            step.submit(first if number % 2 else second)

    assert nodes_and_edges(body)[0] == ["leaf", "leaf", "step x 5", "step x 5"]


def test_a_tree_has_a_node_for_each_level() -> None:
    def body() -> None:
        parts = [leaf.submit(number) for number in range(1024)]
        while len(parts) > 1:
            parts = [join.submit(*parts[index : index + 2]) for index in range(0, len(parts), 2)]

    nodes, edges = nodes_and_edges(body)
    assert nodes == ["leaf x 1,024", *(f"join x {2**level}" for level in range(9, 0, -1)), "join"]
    assert edges == [f"{left} > {right}" for left, right in itertools.pairwise(nodes)]


def test_a_tree_by_recursion_has_so_too() -> None:
    def tree(depth: int) -> TaskFuture[Any]:
        return join.submit(tree(depth - 1), tree(depth - 1)) if depth else leaf.submit()

    assert nodes_and_edges(lambda: tree(3))[0] == ["leaf x 8", "join x 4", "join x 2", "join"]


def test_a_short_chain_is_drawn_out() -> None:
    def body() -> None:
        last = leaf.submit()
        for _ in range(4):
            last = step.submit(last)

    assert nodes_and_edges(body) == (["leaf", *["step"] * 4], ["leaf > step", *["step > step"] * 3])


def test_a_long_chain_is_a_node_that_leads_to_itself() -> None:
    def body() -> None:
        last = leaf.submit()
        for _ in range(10_000):
            last = step.submit(last)

    assert nodes_and_edges(body) == (
        ["leaf", "step", "step x 9,999"],
        ["leaf > step", "step > step x 9,999", "step x 9,999 > step x 9,999"],
    )


def test_a_long_stencil_is_two_nodes() -> None:
    def body() -> None:
        row = [leaf.submit(number) for number in range(100)]
        for _ in range(100):
            row = [step.submit(*row[max(0, index - 1) : index + 2]) for index in range(100)]
        join.submit(row)

    assert nodes_and_edges(body) == (
        ["leaf x 100", "step x 100", "step x 9,900", "join"],
        [
            "leaf x 100 > step x 100",
            "step x 100 > step x 9,900",
            "step x 9,900 > step x 9,900",
            "step x 9,900 > join",
        ],
    )


def test_a_large_program_by_hand_is_drawn_whole() -> None:
    """Folding is for what repeats: calls by places of their own stay apart, however many there are."""
    calls = [CallRecord("load", 0, place=place) for place in range(LIMIT + 10)]
    assert len(folded(MAIN, calls).nodes) == LIMIT + 10


def test_what_depends_on_too_many_tasks_is_folded_all_the_same() -> None:
    count = LIMIT - 5
    calls = [CallRecord(f"leaf {number}", 0) for number in range(count)]
    assert len(folded(MAIN, calls).nodes) == count
    calls += [CallRecord("step", 0, (Need(number),)) for number in range(count)]
    nodes, edges = folded(MAIN, calls)[1:]
    assert [(node.name, node.count) for node in nodes[count:]] == [("step", count)]
    assert len(edges) == count


def test_a_part_says_nothing_where_others_use_the_whole() -> None:
    calls = [CallRecord("leaf", 0)] + [CallRecord("step", 0, (Need(0, parts=parts),)) for parts in (("a",), (), ("b",))]
    assert [edge.label for edge in folded(MAIN, calls).edges] == [""]


def test_a_subflow_that_follows_itself_has_no_arrow_to_itself() -> None:
    flows = [*MAIN, *(FlowRecord("inner", 0, (Need(number - 1),) if number else ()) for number in range(3))]
    calls = [CallRecord("leaf", number + 1) for number in range(3)]
    assert folded(flows, calls).edges == []


def test_edges_of_two_kinds_are_two() -> None:
    calls = [CallRecord("leaf", 0), CallRecord("step", 0, (Need(0),)), CallRecord("step", 0, (Need(0, True),))]
    edges = folded(MAIN, calls).edges
    assert [(edge.source, edge.target, edge.waits_only) for edge in edges] == [(0, 1, False), (0, 2, True)]


def test_runs_of_a_subflow_by_one_place_are_one_box() -> None:
    @flow
    def inner(x: Any) -> Any:
        return step.submit(leaf.submit(x))

    def body() -> None:
        for number in range(1000):
            inner(number)
        join.submit(inner(1))

    text = flow(name="main")(body).visualize().mermaid()
    assert re.findall(r'subgraph f\d+\["(.*)"\]', text) == ["main", "inner x 1,000", "inner"]
    assert re.findall(r'n\d+\("(.*)"\)', text) == ["join", "leaf x 1,000", "step x 1,000", "leaf", "step"]


def test_a_flow_that_calls_itself_is_one_box() -> None:
    @flow
    def inner(depth: int) -> Any:
        return [leaf.submit(depth), inner(depth - 1) if depth else None, inner(depth - 1) if depth else None]

    text = inner.visualize(5).mermaid()
    assert re.findall(r'subgraph f\d+\["(.*)"\]', text) == ["inner x 63"]
    assert re.findall(r'n\d+\("(.*)"\)', text) == ["leaf x 63"]


def test_a_flow_in_itself_that_runs_elsewhere_is_another_box() -> None:
    flows = [*MAIN, FlowRecord("main", 0, runner="process"), FlowRecord("main", 1), FlowRecord("main", 2, runner="ray")]
    boxes = folded(flows, [CallRecord("leaf", number) for number in range(4)]).boxes
    assert [(box.parent, box.runner, box.count) for box in boxes] == [(None, None, 1), (0, "process", 2), (1, "ray", 1)]


def test_records_may_come_from_anywhere() -> None:
    """As those of a run would, which knows nothing of places."""
    calls = [CallRecord("load", 0), CallRecord("load", 0), CallRecord("add", 1, (Need(0), Need(1)))]
    graph = Graph([FlowRecord("main", None), FlowRecord("inner", 0)], calls)
    assert repr(graph) == "<Graph of main: 3 calls>"
    assert graph.mermaid().splitlines()[2:] == [
        "        direction TD",
        '        n0("load x 2")',
        '        subgraph f1["inner"]',
        "            direction TD",
        '            n1("add")',
        "        end",
        "    end",
        "    n0 --> n1",
    ]


def test_boxes_in_boxes_wait_for_what_they_are_given() -> None:
    flows = [FlowRecord("main", None), FlowRecord("outer", 0, (Need(0),)), FlowRecord("inner", 1, (Need(0),))]
    calls = [CallRecord("leaf", 0), CallRecord("step", 2, (Need(0),))]
    assert [(edge.target, edge.to_box) for edge in folded(flows, calls).edges] == [(1, False)]
    calls = [CallRecord("leaf", 0), CallRecord("step", 2)]
    assert [(edge.target, edge.to_box) for edge in folded(flows, calls).edges] == [(1, True), (2, True)]


# Text


NASTY = 'a "b" <i>c</i>\n\t&amp; `d` *e* #35; \\n \x00 [x](y) $$z$$ __f__'


def nasty() -> Graph:
    return Graph(
        [FlowRecord(NASTY, None)], [CallRecord(NASTY, 0), CallRecord("x" * 1000, 0, (Need(0, parts=(NASTY,)),))]
    )


def test_names_in_mermaid_are_escaped() -> None:
    lines = nasty().mermaid().splitlines()
    assert len(lines) == 7
    labels = re.findall(r'"([^"]*)"', "\n".join(lines))
    assert len(labels) == 4
    for label in labels:
        # Nothing but words, and entities by their numbers.
        assert re.fullmatch(r"(?:[\w ,./()=?-]|#\d+;)*", label), label
        assert not re.search(r"\b_|_\b", label)
    unescaped = re.sub(r"#(\d+);", lambda match: chr(int(match[1])), labels[0])
    assert unescaped == 'a "b" <i>c</i> &amp; `d` *e* #35; \\n [x](y) $$z$$ __f__'
    assert labels[2] == "x" * 77 + "..."


@pytest.mark.parametrize("name", ["1. first", "- item", "1) first", "-", "_x_"])
def test_nothing_in_mermaid_looks_like_a_list(name: str) -> None:
    text = mermaid(folded(MAIN, [CallRecord(name, 0)]))
    assert re.search(r'n0\("#\d+;', text)


@pytest.mark.parametrize("name", ["load_file", "größe", "読む", "load.all(x, y=1)", "a-b"])
def test_plain_names_in_mermaid_stay_as_they_are(name: str) -> None:
    assert f'n0("{name}")' in mermaid(folded(MAIN, [CallRecord(name, 0)]))


def test_names_for_graphviz_are_escaped() -> None:
    text = nasty().dot()
    labels = re.findall(r'label="((?:[^"\\]|\\.)*)"', text)
    assert labels[0] == 'a \\"b\\" <i>c</i> &amp;amp; `d` *e* #35; \\\\n [x](y) $$z$$ __f__'
    assert len(text.splitlines()) == len(nasty().dot().split("\n"))


# Pictures


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that is on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(folder: Path, script: str) -> None:
    file = folder / "dot"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_without_graphviz_a_picture_names_the_command(path: Path) -> None:
    graph = nasty()
    with pytest.raises(VisualizationError, match="`apt-get install graphviz`"):
        graph.svg()
    with pytest.raises(VisualizationError, match="not on the PATH"):
        graph.save(path / "graph.svg")
    assert not (path / "graph.svg").exists()


def test_a_picture_is_what_graphviz_prints(path: Path) -> None:
    program(path, '[ "$1" = -Tsvg ] || exit 9\nread -r first\necho "<svg>é $first</svg>"')
    graph = nasty()
    assert graph.svg() == "<svg>é digraph {</svg>\n"
    graph.save(path / "graph.SVG")
    assert (path / "graph.SVG").read_text(encoding="utf-8") == "<svg>é digraph {</svg>\n"


def test_what_graphviz_complains_of_is_told(path: Path) -> None:
    program(path, 'while read -r line; do :; done\necho "syntax error in line 3" >&2\nexit 1')
    with pytest.raises(VisualizationError, match=r"/dot could not draw the graph: syntax error in line 3$"):
        nasty().svg()


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_takes_every_name() -> None:
    names = [NASTY, "]]>", "<!--", "{a|b}", "%s\\", "\\", '"', "&lt;", "\ud800", ""]
    flows = [
        FlowRecord("main", None),
        FlowRecord('in "ner"', 0, (Need(0, True),)),
        FlowRecord("<empty>", 0, (Need(0),)),
    ]
    calls = [CallRecord(name, index % 2, runner=name, place=index) for index, name in enumerate(names)]
    picture = ET.fromstring(Graph(flows, calls).svg())
    texts = ["".join(element.itertext()) for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"on ]]>", "on {a|b}", "on %s\\", "on \\", 'on "', "on &lt;", 'in "ner"', "<empty>"} <= set(texts)


@pytest.mark.parametrize("end", [".mmd", ".dot"])
def test_the_end_of_a_name_says_what_is_saved(tmp_path: Path, end: str) -> None:
    graph = nasty()
    text = graph.mermaid() if end == ".mmd" else graph.dot()
    graph.save(os.fspath(tmp_path / f"graph{end}"))
    assert (tmp_path / f"graph{end}").read_text(encoding="utf-8") == f"{text}\n"


@pytest.mark.parametrize("name", ["graph", "graph.png", ".svg"])
def test_other_ends_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"end the name with \.mmd, \.dot or \.svg\.$"):
        nasty().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_notebooks_get_a_picture_or_else_mermaid(path: Path) -> None:
    graph = nasty()
    assert graph._repr_mimebundle_() == {"text/vnd.mermaid": graph.mermaid(), "text/plain": graph.mermaid()}
    program(path, "echo '<svg/>'")
    assert graph._repr_mimebundle_(include=None, exclude=None) == {
        "image/svg+xml": "<svg/>\n",
        "text/plain": repr(graph),
    }
    assert str(graph) == graph.mermaid()
