"""Drawings as SVG in the colours of the page: the architecture from the imports, and the way of a batch."""

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pyengm

PACKAGE = Path(pyengm.__file__).parent
WIDTH, BOX, HEIGHT, GAP = 760, 92, 30, 52  # of the drawing, of a box, and between rows
SKIPPED = {"__main__", "errors", "utils"}  # which every other part may import
BATCH = (
    ("Loader", "images, labels, key", "data/loader.py"),
    ("method", "attack, then losses (n,)", "methods/base.py"),
    ("backward", "norms, weights, gradient", "optim/base.py"),
    ("step", "new weights", "optim/engm.py"),
)


@cache
def imports() -> dict[str, set[str]]:
    """The parts that each part of the package imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyengm"):
                names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
                found.setdefault(part, set()).update(names)
    parts = {path.name for path in PACKAGE.iterdir() if path.is_dir()} & (found.keys() | {"kernels", "ops"}) - SKIPPED
    return {part: (found.get(part, set()) & parts) - {part} for part in parts}


def reduced(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The graph without imports that follow from others."""

    def reach(part: str) -> set[str]:
        return graph[part].union(*map(reach, graph[part]))

    return {part: below - set().union(*map(reach, below)) for part, below in graph.items()}


def rows(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The parts by the longest chain of imports below them, the lowest row last; neighbours near each other."""
    depth: dict[str, int] = {}
    for part in TopologicalSorter(graph).static_order():
        depth[part] = 1 + max((depth[below] for below in graph[part]), default=-1)
    layers = [sorted(part for part in graph if depth[part] == level) for level in range(max(depth.values()) + 1)]
    place = {part: _spread(i, len(layer)) for layer in layers for i, part in enumerate(layer)}
    for layer in layers[1:]:
        layer.sort(key=lambda part: sum(place[one] for one in graph[part]) / max(len(graph[part]), 1))
        place |= {part: _spread(i, len(layer)) for i, part in enumerate(layer)}
    return layers[::-1]


def _spread(i: int, n: int) -> float:
    return WIDTH * (i + 1) / (n + 1)


def architecture() -> str:
    """The parts of the package; a line leads down to a part that is imported."""
    graph = reduced(imports())
    layers = rows(graph)
    places = {
        part: (_spread(i, len(layer)), 20 + level * (HEIGHT + GAP))
        for level, layer in enumerate(layers)
        for i, part in enumerate(layer)
    }
    shapes = [
        _line(places[part][0], places[part][1] + HEIGHT, *places[below])
        for part, ones in sorted(graph.items())
        for below in sorted(ones)
    ]
    shapes += [_box(x, y, BOX, HEIGHT, [part]) for part, (x, y) in places.items()]
    return _svg(shapes, 40 + len(layers) * (HEIGHT + GAP) - GAP, "the parts of pyengm and their imports")


def batch() -> str:
    """The way of a batch through a step."""
    missing = [file for *_, file in BATCH if not (PACKAGE / file).is_file()]
    if missing:
        raise FileNotFoundError(f"the drawing of a batch names {missing}, which are gone")
    width, height = 158, 66
    shapes = []
    for i, (name, text, file) in enumerate(BATCH):
        x = 95 + i * 190
        shapes.append(_box(x, 12, width, height, [name, text, file]))
        if i:
            shapes.append(_line(x - 190 + width / 2, 45, x - width / 2 - 4, 45, ' marker-end="url(#tip)"'))
    return _svg(shapes, height + 24, "a batch: loader, method, backward, step")


def _line(x: float, y: float, to_x: float, to_y: float, more: str = "") -> str:
    return f'<path d="M{x:.0f},{y:.0f} L{to_x:.0f},{to_y:.0f}"{more}/>'


def _box(x: float, y: float, width: int, height: int, lines: Sequence[str]) -> str:
    shapes = [f'<rect x="{x - width / 2:.0f}" y="{y:.0f}" width="{width}" height="{height}" rx="5"/>']
    for i, line in enumerate(lines):
        size, at = (13 if i == 0 else 11), y + height * (i + 1) / (len(lines) + 1) + 4
        shapes.append(f'<text x="{x:.0f}" y="{at:.0f}" text-anchor="middle" font-size="{size}">{line}</text>')
    return "".join(shapes)


def _svg(shapes: Sequence[str], height: float, title: str) -> str:
    size = 'markerWidth="8" markerHeight="8" refX="5" refY="3" orient="auto"'
    tip = f'<marker id="tip" {size}><path d="M0,0 L6,3 L0,6 z"/></marker>'
    body = "".join(shapes)
    return (
        f'<div class="drawing"><svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img" '
        f'aria-label="{title}"><title>{title}</title><defs>{tip}</defs>{body}</svg></div>\n'
    )
