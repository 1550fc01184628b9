"""What the loops of the last `%%parallel` cell have to tell: errors, leftovers, who ran what when."""

from __future__ import annotations

import html
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from ipyparcache.cells.drawing import Picture, sheet
from ipyparcache.cells.leftovers import Leftover
from ipyparcache.cells.loops import LoopReport, RunReport
from ipyparcache.cells.runs import duration

WIDTH, LANE, LEFT, TOP = 720, 22, 90, 24
TICK_ROOM = 45  # pixels that the last label needs for itself
BARS = 2000  # more bars than this are joined, or the picture would be all border
COLOURS = ("#5b8fb9", "#86b6d9")

_lock = threading.Lock()
_last: list[RunReport] = []


@dataclass(frozen=True)
class Bar:
    """Some iterations that one worker ran without a break; times in seconds from the loop's start."""

    worker: int
    begin: float
    end: float
    first: int
    count: int


def note_report(report: RunReport) -> None:
    """Remember the report of a cell; it is the last one now."""
    with _lock:
        _last[:] = [report]


def _loops() -> Sequence[LoopReport]:
    with _lock:
        return _last[0].loops if _last else ()


NOTHING = "no %%parallel cell has run in this kernel"


def errors_text() -> str:
    """The errors that `--on-error collect` gathered, or the one that ended the cell."""
    loops = _loops()
    if not loops:
        return NOTHING
    lines = [f"line {loop.line}: {error}" for loop in loops for error in loop.errors]
    with _lock:
        ended = _last[0].error
    if ended is not None:
        lines.append(f"the cell ended with {type(ended).__name__}: {ended}")
    return "\n".join(lines) or "no iteration failed"


def partial_text() -> str:
    """What iterations behind an error or an interrupt had left; it was not merged into the namespace."""
    loops = _loops()
    if not loops:
        return NOTHING
    lines = [str(left) for loop in loops for _, left in sorted(loop.partial.items())]
    return "\n".join(lines) or "nothing was left over: every iteration that finished was merged"


def partial_results() -> list[dict[int, Leftover]]:
    """The same as objects, by the number of the iteration: for each loop of the cell."""
    return [loop.partial for loop in _loops()]


def bars_of(loop: LoopReport) -> list[Bar]:
    """The loop's rows from its own start on, neighbours joined when there are too many to draw."""
    if not loop.rows:
        return []
    start = min(row[1] for row in loop.rows)
    bars = [
        Bar(worker, begin - start, end - start, first, count)
        for worker, begin, end, first, count in loop.rows
    ]
    bars.sort(key=lambda bar: (bar.worker, bar.begin))
    if len(bars) <= BARS:
        return bars
    gap = max(bar.end for bar in bars) / WIDTH
    joined: list[Bar] = []
    for bar in bars:
        before = joined[-1] if joined else None
        if before is not None and before.worker == bar.worker and bar.begin - before.end < gap:
            joined[-1] = Bar(bar.worker, before.begin, bar.end, before.first, before.count + bar.count)
        else:
            joined.append(bar)
    return joined


def busy_share(bars: Sequence[Bar]) -> float:
    """Share of the workers' time in which an iteration ran; 0 for none."""
    total = max((bar.end for bar in bars), default=0.0) * len({bar.worker for bar in bars})
    return sum(bar.end - bar.begin for bar in bars) / total if total else 0.0


def timeline() -> Picture:
    """A Gantt picture of the last parallel cell: a lane a worker, a bar a batch of iterations, idle time
    white."""
    loops = [loop for loop in _loops() if loop.rows]
    if not loops:
        return Picture("", NOTHING)
    parts, texts, top = [], [], TOP
    for loop in loops:
        bars = bars_of(loop)
        workers = sorted({bar.worker for bar in bars})
        longest = max(bar.end for bar in bars) or 1e-9
        scale = (WIDTH - LEFT - 10) / longest
        said = (
            f"{loop.title or f'line {loop.line}'}: {loop.iterations} iterations in {duration(longest)} "
            f"on {len(workers)} workers, busy {busy_share(bars):.0%}"
        )
        texts.append(said)
        right = WIDTH - 10
        parts.append(_text(4, top - 8, said, "#444444"))
        for tick in ticks_of(longest):
            x = round(LEFT + tick * scale)
            bottom = top + len(workers) * LANE
            parts.append(f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom}" stroke="#e8e8e8"/>')
            if (longest - tick) * scale > TICK_ROOM:
                parts.append(_text(x, bottom + 12, duration(tick), "#777777", anchor="middle"))
        for lane, worker in enumerate(workers):
            y = top + lane * LANE
            floor = y + LANE - 2
            parts.append(_text(4, y + 14, f"worker {lane + 1}", "#444444"))
            parts.append(f'<line x1="{LEFT}" y1="{floor}" x2="{right}" y2="{floor}" stroke="#dddddd"/>')
            mine = [bar for bar in bars if bar.worker == worker]
            parts += [_drawn(bar, y, scale, COLOURS[number % 2]) for number, bar in enumerate(mine)]
        top += len(workers) * LANE + 16
        parts.append(_text(LEFT, top - 4, "0", "#777777"))
        parts.append(_text(right, top - 4, duration(longest), "#777777", anchor="end"))
        top += TOP
    return Picture(sheet(WIDTH, top, "which worker ran what when", parts), "\n".join(texts))


def ticks_of(longest: float) -> list[float]:
    """Round times within a duration, three to seven of them."""
    step = 10.0 ** math.floor(math.log10(longest))
    step *= next(part for part in (0.2, 0.5, 1.0, 2.0) if longest / (step * part) < 8)
    return [step * n for n in range(1, math.ceil(longest / step - 1e-9))]


def _text(x: int, y: int, text: str, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'


def _drawn(bar: Bar, y: int, scale: float, colour: str) -> str:
    last = bar.first + bar.count - 1
    name = f"iteration {bar.first}" if bar.count == 1 else f"iterations {bar.first} to {last}"
    title = f"{name}: {duration(bar.end - bar.begin)}"
    width = max(0.5, (bar.end - bar.begin) * scale)
    return (
        f'<rect x="{LEFT + bar.begin * scale:.1f}" y="{y + 2}" width="{width:.1f}" height="{LANE - 6}" '
        f'fill="{colour}" stroke="white" stroke-width="0.4"><title>{title}</title></rect>'
    )
