"""Pictures of what this kernel did, as SVG that needs no style sheet and no script."""

from __future__ import annotations

import ast
import html
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from ipyparcache.analysis.changing import changed_roots
from ipyparcache.analysis.flow import Flow
from ipyparcache.cells.runs import Run, duration
from ipyparcache.errors import ParcacheError

SHOWN = 26  # characters of a cell's first line
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 190, 44, 60, 26
COLOURS = {
    "hit": "#7fb3d5",
    "miss": "#f5c26b",
    "not stored": "#d0d0d0",
    "parallel": "#a3d3a2",
    "refused": "#e59f9f",
}


@dataclass(frozen=True)
class Picture:
    """A drawing and the same facts as text."""

    svg: str
    text: str


@dataclass(frozen=True)
class Edge:
    """One cell reads what another has bound."""

    source: int
    target: int
    names: tuple[str, ...]


def edges_of(latest: Sequence[Run]) -> list[Edge]:
    """Which of these cells feeds which: a name goes from the last cell above that bound it to the one that
    reads it."""
    writers: dict[str, int] = {}
    found: list[Edge] = []
    for position, run in enumerate(latest):
        by_source: dict[int, list[str]] = {}
        reads, binds = names_of(run)
        for name in reads:
            if name in writers:
                by_source.setdefault(writers[name], []).append(name)
        found += [Edge(source, position, tuple(sorted(names))) for source, names in sorted(by_source.items())]
        writers.update(dict.fromkeys(binds, position))
    return found


def names_of(run: Run) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that a cell reads and binds: as recorded, or, of a parallel cell, as its text tells."""
    if run.status != "parallel":
        return tuple(run.inputs), run.names
    try:
        tree = ast.parse(run.cell)
    except SyntaxError:
        return (), ()
    flow = Flow()
    flow.run(tree.body, ())
    changed = {root for node in ast.walk(tree) for root, _ in changed_roots(node)}
    return tuple(name for name in flow.reads if flow.early(name)), tuple({*flow.bound, *changed})


def levels_of(count: int, edges: Sequence[Edge]) -> list[int]:
    """The column of each cell: one to the right of the last cell that feeds it."""
    levels = [0] * count
    for edge in sorted(edges, key=lambda edge: edge.target):
        levels[edge.target] = max(levels[edge.target], levels[edge.source] + 1)
    return levels


def graph(all_runs: Sequence[Run]) -> Picture:
    """Draw the latest run of each cell and what flows between them."""
    by_cell: dict[str, Run] = {}
    for run in all_runs:
        key = run.identity or run.cell
        by_cell.pop(key, None)
        by_cell[key] = run
    latest = list(by_cell.values())
    if not latest:
        return Picture("", "no cell has run under %%cached in this kernel")
    edges = edges_of(latest)
    levels = levels_of(len(latest), edges)
    rows: dict[int, int] = {}
    places: list[tuple[int, int]] = []
    for level in levels:
        row = rows.get(level, 0)
        rows[level] = row + 1
        places.append((20 + level * (BOX_WIDTH + GAP_X), 20 + row * (BOX_HEIGHT + GAP_Y)))
    width = 40 + (max(levels) + 1) * (BOX_WIDTH + GAP_X) - GAP_X
    height = 40 + max(rows.values()) * (BOX_HEIGHT + GAP_Y) - GAP_Y
    parts = [_arrow(places[edge.source], places[edge.target], ", ".join(edge.names)) for edge in edges]
    parts += [_box(place, run) for place, run in zip(places, latest, strict=True)]
    svg = sheet(width, height, "which cell feeds which", parts)
    text = [
        f"{_number(latest[edge.source])} → {_number(latest[edge.target])}: {', '.join(edge.names)}"
        for edge in edges
    ]
    return Picture(svg, "\n".join(text) or "no cell reads what another has bound")


def _number(run: Run) -> str:
    return f"[{run.execution_count}]"


def _box(place: tuple[int, int], run: Run) -> str:
    x, y = place
    first = next((line for line in run.cell.splitlines() if line.strip()), "")
    first = first if len(first) <= SHOWN else first[: SHOWN - 1] + "…"
    colour = COLOURS.get(run.status, "#ffffff")
    return (
        f'<g><title>{html.escape(run.cell[:500])}</title><rect x="{x}" y="{y}" width="{BOX_WIDTH}" '
        f'height="{BOX_HEIGHT}" rx="5" fill="{colour}" stroke="#555555"/>'
        f'<text x="{x + 8}" y="{y + 17}" fill="#111111">{_number(run)} {html.escape(first)}</text>'
        f'<text x="{x + 8}" y="{y + 34}" fill="#333333">{run.status} · {duration(run.body_seconds)}</text>'
        "</g>"
    )


def _arrow(source: tuple[int, int], target: tuple[int, int], label: str) -> str:
    x1, y1 = source[0] + BOX_WIDTH, source[1] + BOX_HEIGHT // 2
    x2, y2 = target[0], target[1] + BOX_HEIGHT // 2
    middle = (x1 + x2) // 2
    return (
        f'<g><path d="M{x1},{y1} C{middle},{y1} {middle},{y2} {x2},{y2}" fill="none" stroke="#888888" '
        f'stroke-width="1.5"/><circle cx="{x2}" cy="{y2}" r="3" fill="#888888"/>'
        f'<text x="{middle}" y="{(y1 + y2) // 2 - 3}" text-anchor="middle" fill="#666666" '
        f'stroke="white" stroke-width="3" paint-order="stroke">'
        f"{html.escape(label[:24])}</text></g>"
    )


class CannotDraw(ParcacheError):
    """A picture cannot be written in the format that was asked for."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} cannot be drawn: {self.reason}"


def sheet(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """A picture, to scale wherever it is shown smaller, on white paper.

    Its colours are made for that, also where the page is dark.
    """
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{label}" font-family="sans-serif" '
        f'font-size="11"><rect x="0" y="0" width="{width}" height="{height}" fill="white"/>'
        f"{''.join(parts)}</svg>"
    )


def scrolled(picture: Picture) -> str:
    """HTML that shows a picture in its full size, however narrow the page."""
    whole = picture.svg.replace("<svg ", '<svg style="max-width:none" ', 1)
    return f'<div style="overflow-x:auto">{whole}</div>' if picture.svg else ""


def save(picture: Picture, path: str) -> None:
    """Write a picture as SVG or, through matplotlib, as PNG.

    Raises
    ------
    CannotDraw
        If the file's ending names neither.
    """
    if path.endswith(".svg"):
        with open(path, "w", encoding="utf-8") as file:
            file.write(picture.svg)
    elif path.endswith(".png"):
        _rasterise(picture.svg, path)
    else:
        raise CannotDraw(path, "its name ends neither in .svg nor in .png")


def _rasterise(svg: str, path: str) -> None:
    """Draw the rectangles, lines and texts of one of our own pictures with matplotlib."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError:
        raise CannotDraw(path, "PNG needs matplotlib: pip install matplotlib, or save as .svg") from None
    root = ElementTree.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    figure = Figure(figsize=(width / 100, height / 100), dpi=200)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    for place, part in enumerate(root.iter()):  # what comes later lies above, as in SVG
        kind, facts = part.tag.rpartition("}")[2], part.attrib
        if kind == "rect":
            corner = float(facts["x"]), float(facts["y"])
            size = float(facts["width"]), float(facts["height"])
            axes.add_patch(
                Rectangle(
                    corner, *size, facecolor=facts["fill"], edgecolor="white", linewidth=0.3, zorder=place
                )
            )
        elif kind == "line":
            xs = [float(facts["x1"]), float(facts["x2"])]
            axes.plot(
                xs,
                [float(facts["y1"]), float(facts["y2"])],
                color=facts["stroke"],
                linewidth=0.6,
                zorder=place,
            )
        elif kind == "text":
            anchor = {"end": "right", "middle": "center"}.get(facts.get("text-anchor", ""), "left")
            axes.text(
                float(facts["x"]),
                float(facts["y"]),
                part.text or "",
                fontsize=7.5,
                ha=anchor,
                color=facts["fill"],
            )
    figure.savefig(path)
