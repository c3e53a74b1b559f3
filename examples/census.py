"""A census of the Python standard library: how big, how branched and how entangled are its modules?

    turnout run examples/census.py:census --runner process
    turnout run examples/census.py:census --runner thread -p output=some-directory -p limit=200
    turnout graph examples/census.py:census -p output=some-directory

Every file of the running Python's standard library is parsed by a task of its own. The records are merged by pairs, in
a tree of tasks, as they come. The flow then writes ``census.csv`` and ``census.png`` and prints the top of the table.
The runner changes nothing but the time it takes: the bytes of the table are the same on all of them.

How it counts:

functions, classes
    Definitions, nested ones and methods too; a lambda counts as part of the function around it.
imports, imported_by
    Distinct modules that a module names in its import statements, and distinct modules that name it. ``from a import
    b`` names ``a.b`` if that is a module, and ``a`` if not.
complexity
    McCabe's cyclomatic complexity: ``edges - nodes + 2 * parts`` of the control flow graph (T. J. McCabe, "A Complexity
    Measure", IEEE Transactions on Software Engineering SE-2(4), 1976, pages 308-320). He shows that this is the number
    of decisions plus the number of parts. The parts of a module are its functions and its top level. Decisions are
    ``if`` and ``elif``, ``while`` and ``for`` (in comprehensions too, with their conditions), ``except``, ``assert``,
    the conditional expression, each ``case`` that may not match, and each ``and`` and ``or``.

Some files under ``test`` and ``lib2to3`` are broken on purpose. They are listed, with the reason, and counted apart.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import io
import math
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnout import TaskFuture, flow, task, unmapped, wait

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Nodes = defaultdict[type[ast.AST], list[Any]]

BRANCHES = (
    *(ast.If, ast.IfExp, ast.While, ast.For, ast.AsyncFor, ast.comprehension),
    *(ast.ExceptHandler, ast.Assert, ast.match_case),
)
COLUMNS = ("module", "lines", "functions", "classes", "imports", "imported_by", "complexity", "problem")


@dataclass(frozen=True, slots=True)
class Module:
    """What one file holds; ``problem`` says why it could not be parsed."""

    name: str
    lines: int
    functions: int = 0
    classes: int = 0
    complexity: int = 0
    imports: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Census:
    """What is known of some modules, in order, and how many of them import each module they name."""

    modules: tuple[Module, ...]
    importers: Counter[str]


# The flow and its tasks


@task
def parse(path: Path, root: Path) -> Census:
    """Take the census of one file."""
    module = measure(path, root)
    return Census((module,), Counter(module.imports))


# The values stand for results in the graph of the flow, whose body looks into them.
@task(viz_return_value=Census((), Counter()))
def merge(left: Census, right: Census) -> Census:
    """Join two neighbours. Their order stays, so the merged table needs no sorting."""
    return Census(left.modules + right.modules, left.importers + right.importers)


@task(viz_return_value=b"")
def draw(result: Census) -> bytes:
    """Return the picture as a PNG file."""
    return picture(result)


@flow
def census(output: str = "census-output", limit: int | None = None) -> dict[str, int]:
    """Count the standard library, or the first ``limit`` files of it, and return the totals.

    Files are written here and not in a task: a task may run on a machine that doesn't share our disk.
    """
    root = Path(sysconfig.get_path("stdlib"))
    parsed = parse.map(find_files(root)[:limit], root=unmapped(root))
    result = merge_by_pairs(parsed)
    pictures = [draw.submit(result)] if importlib.util.find_spec("matplotlib") else []
    wait([result, *pictures])

    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "census.csv").write_bytes(as_csv(result.result()))
    for image in pictures:
        (folder / "census.png").write_bytes(image.result())
    print_summary(result.result())
    print(f"\nTable:   {folder / 'census.csv'}")
    print(f"Picture: {folder / 'census.png' if pictures else 'none. To get one: pip install matplotlib'}")
    return totals(result.result())


def merge_by_pairs(parts: Sequence[TaskFuture[Census]]) -> TaskFuture[Census]:
    """Submit the tree of merges over these parts; no merge waits for more than the two parts that it joins."""
    while len(parts) > 1:
        merged = [merge.submit(left, right) for left, right in zip(parts[::2], parts[1::2], strict=False)]
        parts = [*merged, *parts[2 * len(merged) :]]
    return parts[0]


def find_files(root: Path) -> list[Path]:
    """List the library's files in the order of their modules' names, without what was installed beside them."""
    files = [path for path in root.rglob("*.py") if not {"site-packages", "dist-packages"} & set(path.parts)]
    return sorted(files, key=lambda path: module_name(path, root))


# One module


def measure(path: Path, root: Path) -> Module:
    """Parse a file and count what it holds."""
    name, source = module_name(path, root), path.read_bytes()
    lines = len(source.splitlines())
    try:
        tree = ast.parse(source, filename=str(path))
    except (SyntaxError, ValueError) as error:
        return Module(name, lines, problem=f"{type(error).__name__}: {getattr(error, 'msg', error)}")
    nodes = by_kind(tree)
    functions = len(nodes[ast.FunctionDef]) + len(nodes[ast.AsyncFunctionDef])
    return Module(
        name,
        lines,
        functions,
        classes=len(nodes[ast.ClassDef]),
        complexity=decisions(nodes) + functions + 1,
        imports=imported_modules(nodes, name if path.name == "__init__.py" else name.rpartition(".")[0], root),
    )


def module_name(path: Path, root: Path) -> str:
    """Return the dotted name under which a file is imported."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def by_kind(tree: ast.AST) -> Nodes:
    """Sort the nodes of a syntax tree by their types."""
    nodes: Nodes = defaultdict(list)
    for node in ast.walk(tree):
        nodes[type(node)].append(node)
    return nodes


def decisions(nodes: Nodes) -> int:
    """Count the branches in the control flow."""
    branches = sum(len(nodes[kind]) for kind in BRANCHES)
    conditions = sum(len(node.ifs) for node in nodes[ast.comprehension])
    operators = sum(len(node.values) - 1 for node in nodes[ast.BoolOp])
    return branches + conditions + operators - sum(map(always_matches, nodes[ast.match_case]))


def always_matches(case: ast.match_case) -> bool:
    return isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None and case.guard is None


def imported_modules(nodes: Nodes, package: str, root: Path) -> tuple[str, ...]:
    """Return the modules that a module of this package imports, sorted, each once."""
    names = {alias.name for node in nodes[ast.Import] for alias in node.names}
    names |= {f"{origin(node, package)}.{alias.name}" for node in nodes[ast.ImportFrom] for alias in node.names}
    return tuple(sorted({nearest_module(name.lstrip("."), root) for name in names}))


def origin(node: ast.ImportFrom, package: str) -> str:
    """Return the absolute name of the module from which a statement imports; "" above the top of the library."""
    parents = package.split(".")
    above = parents[: max(len(parents) - node.level + 1, 0)] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def nearest_module(name: str, root: Path) -> str:
    """Return the longest beginning of a dotted name that is a file of the library, else its first part.

    The latter are modules written in C, and what is not part of the library.
    """
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = root.joinpath(*parts[:length])
        if path.with_name(f"{path.name}.py").is_file() or (path / "__init__.py").is_file():
            return ".".join(parts[:length])
    return parts[0]


# The table


def as_csv(result: Census) -> bytes:
    """Return the table as a CSV file, one row a module."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for module in result.modules:
        counts = (module.lines, module.functions, module.classes, len(module.imports))
        rows.writerow((module.name, *counts, result.importers[module.name], module.complexity, module.problem))
    return text.getvalue().encode()


def totals(result: Census) -> dict[str, int]:
    """Add up the columns."""
    modules = result.modules
    return {
        "modules": len(modules),
        "not_parsed": sum(bool(module.problem) for module in modules),
        "lines": sum(module.lines for module in modules),
        "functions": sum(module.functions for module in modules),
        "classes": sum(module.classes for module in modules),
        "complexity": sum(module.complexity for module in modules),
    }


def print_summary(result: Census, rows: int = 12) -> None:
    """Print the totals and the modules with the most branches."""
    print("  ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in totals(result).items()))
    print(f"\n{'most complex modules':<36}" + "".join(f"{column:>12}" for column in COLUMNS[1:-1]))
    for module in sorted(result.modules, key=lambda module: -module.complexity)[:rows]:
        counts = (module.lines, module.functions, module.classes, len(module.imports), result.importers[module.name])
        print(f"{module.name:<36}" + "".join(f"{count:>12,}" for count in (*counts, module.complexity)))
    hubs = ", ".join(f"{name} ({count})" for name, count in top_hubs(result, rows))
    print(f"\nmost imported: {hubs}")


def top_hubs(result: Census, count: int) -> list[tuple[str, int]]:
    """Return the modules that most others import, with how many do; equals in the order of their names."""
    return sorted(result.importers.items(), key=lambda item: (-item[1], item[0]))[:count]


# The picture

INK, QUIET, PAPER = "#1d2b36", "#6f7b84", "#fbfaf6"
LIBRARY, TESTS = "#17708c", "#e3a04f"
DENSEST = 28  # Decisions in 100 lines from which on the shade stays the same.
HUBS = 26


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of the map of modules."""

    x: float
    y: float
    width: float
    height: float

    def cut(self, share: float) -> tuple[Box, Box]:
        """Cut the longer side so that the first part, left or on top, has this share of the area."""
        if self.width >= self.height:
            width = self.width * share
            return Box(self.x, self.y, width, self.height), Box(self.x + width, self.y, self.width - width, self.height)
        rest = self.height * (1 - share)
        return Box(self.x, self.y + rest, self.width, self.height - rest), Box(self.x, self.y, self.width, rest)


def tiles(areas: Sequence[float], box: Box) -> list[Box]:
    """Divide a box in these proportions: halve the list where the sums are most alike, cut, go on in both parts."""
    if len(areas) < 2:
        return [box] * len(areas)
    sums = list(accumulate(areas))
    half = min(range(1, len(areas)), key=lambda index: abs(sums[index - 1] - sums[-1] / 2))
    first, second = box.cut(sums[half - 1] / sums[-1])
    return tiles(areas[:half], first) + tiles(areas[half:], second)


def picture(result: Census) -> bytes:
    """Draw the sizes of the modules and the hubs of the import graph, and return a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(19.2, 10.8), dpi=150, facecolor=PAPER)
    sums = totals(result)
    about = ", ".join(f"{sums[name]:,} {name}" for name in ("modules", "lines", "functions", "classes"))
    title = f"The standard library of Python {sysconfig.get_python_version()}"
    figure.text(0.02, 0.945, title, size=25, color=INK)
    figure.text(0.02, 0.915, about, size=13, color=QUIET)
    figure.text(0.02, 0.04, "Area: lines.  Shade: decisions in 100 lines, from 0", size=12, color=QUIET)
    draw_shades(figure.add_axes((0.243, 0.038, 0.1, 0.016)))
    figure.text(0.35, 0.04, f"to {DENSEST} and more", size=12, color=QUIET)
    draw_sizes(figure.add_axes((0.02, 0.07, 0.52, 0.82)), result)
    draw_hubs(figure.add_axes((0.55, 0.05, 0.445, 0.93)), result)
    figure.text(0.57, 0.04, f"The {HUBS} most imported modules, and how many others import them:", size=12, color=QUIET)
    figure.text(0.875, 0.04, "the library", size=12, color=LIBRARY, weight="bold")
    figure.text(0.935, 0.04, "its tests", size=12, color=TESTS, weight="bold")
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def draw_shades(axes: Axes) -> None:
    """Draw the key to the shades of the map."""
    axes.imshow([[shade(step * DENSEST / 99) for step in range(100)]], aspect="auto", extent=(0, DENSEST, 0, 1))
    axes.axis("off")


def shade(density: float) -> tuple[float, float, float, float]:
    """Return the colour for so many decisions in 100 lines."""
    from matplotlib import colormaps

    return colormaps["GnBu"](0.08 + 0.92 * min(density / DENSEST, 1))


def is_dark(color: tuple[float, float, float, float]) -> bool:
    red, green, blue, _ = color
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.58


def draw_sizes(axes: Axes, result: Census) -> None:
    """Draw a map of the packages and their modules, the largest first."""
    packages: dict[str, list[Module]] = defaultdict(list)
    for module in sorted(result.modules, key=lambda module: -module.lines):
        packages[module.name.partition(".")[0]].append(module)
    ordered = sorted(packages.values(), key=lambda modules: -area(modules))
    axes.set(xlim=(0, 104), ylim=(0, 90))
    axes.axis("off")
    for modules, box in zip(ordered, tiles([area(modules) for modules in ordered], Box(0, 0, 104, 90)), strict=True):
        draw_package(axes, modules, box)


def area(modules: Sequence[Module]) -> int:
    """Return how much room modules get. An empty one gets a little, too."""
    return sum(module.lines + 1 for module in modules)


def draw_package(axes: Axes, modules: Sequence[Module], box: Box) -> None:
    """Draw the modules of a package, under its name if there is room for it."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    package = modules[0].name.partition(".")[0]
    if len(modules) > 1 and box.height > 9 and box.width > 4 + len(package):
        axes.text(box.x + 0.5, box.y + box.height - 0.4, package, size=11, weight="bold", va="top", color=INK)
        box = Box(box.x, box.y, box.width, box.height - 2.6)
    boxes = tiles([area([module]) for module in modules], box)
    patches = [Rectangle((tile.x, tile.y), tile.width, tile.height) for tile in boxes]
    colors = [shade(100 * module.complexity / (module.lines + 1)) for module in modules]
    axes.add_collection(PatchCollection(patches, facecolors=colors, edgecolors=PAPER, linewidths=0.4))
    axes.add_patch(Rectangle((box.x, box.y), box.width, box.height, fill=False, edgecolor=PAPER, linewidth=2.5))
    for module, tile, color in zip(modules, boxes, colors, strict=True):
        write_in_tile(axes, module.name.rpartition(".")[2], tile, "white" if is_dark(color) else INK)


def write_in_tile(axes: Axes, text: str, tile: Box, color: str) -> None:
    """Write in the middle of a tile, as large as fits; leave out what could not be read."""
    size = min(11, 9.4 * tile.width / len(text), 4.5 * tile.height)
    if size >= 5:
        middle = (tile.x + tile.width / 2, tile.y + tile.height / 2)
        axes.text(*middle, text, size=size, color=color, ha="center", va="center")


def draw_hubs(axes: Axes, result: Census) -> None:
    """Draw the most imported modules in a ring: who imports whom inside, how many import each of them outside."""
    hubs = [name for name, _ in top_hubs(result, HUBS)]
    angles = {name: math.pi / 2 - 2 * math.pi * index / len(hubs) for index, name in enumerate(hubs)}
    by_tests = Counter(name for module in result.modules if is_test(module.name) for name in module.imports)
    axes.set(xlim=(-1.95, 2.25), ylim=(-2.3, 2.2), aspect="equal")
    axes.axis("off")
    for module in result.modules:
        for name in module.imports:
            if name in angles and module.name in angles and name != module.name:
                draw_import(axes, angles[module.name], angles[name], TESTS if is_test(module.name) else LIBRARY)
    scale = 0.55 / max(result.importers.values(), default=1)
    for name, angle in angles.items():
        tests = by_tests[name] * scale
        total = result.importers[name] * scale
        draw_bar(axes, angle, 1.02, total - tests, LIBRARY)
        draw_bar(axes, angle, 1.02 + total - tests, tests, TESTS)
        write_outside(axes, angle, 1.05 + total, name, str(result.importers[name]))


def is_test(name: str) -> bool:
    return any(part.startswith(("test", "idle_test")) for part in name.split("."))


def on_ring(angle: float, radius: float) -> tuple[float, float]:
    return radius * math.cos(angle), radius * math.sin(angle)


def draw_import(axes: Axes, importer: float, imported: float, color: str) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    points = [on_ring(importer, 0.99), (0.0, 0.0), on_ring(imported, 0.99)]
    curve = Curve(points, [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3])
    axes.add_patch(PathPatch(curve, fill=False, edgecolor=color, alpha=0.4, linewidth=1.1))


def draw_bar(axes: Axes, angle: float, start: float, length: float, color: str) -> None:
    ends = zip(on_ring(angle, start), on_ring(angle, start + length), strict=True)
    axes.plot(*ends, color=color, linewidth=13, solid_capstyle="butt")


def write_outside(axes: Axes, angle: float, radius: float, name: str, count: str) -> None:
    """Write along a ray of the ring, never upside down."""
    left = math.cos(angle) < -1e-9
    turn, side = (180, "right") if left else (0, "left")
    text = f"{count}  {name}" if left else f"{name}  {count}"
    label = axes.text(*on_ring(angle, radius), text, size=11, color=INK, ha=side, va="center")
    label.set(rotation=math.degrees(angle) + turn, rotation_mode="anchor")
