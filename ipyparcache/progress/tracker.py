"""Counts of a run in, and what there is to say about them out: numbers, one line of text, static HTML.

A tracker is told of every task and must cost next to nothing, so telling it appends to a list, which is
atomic; the sums are made when somebody looks, ten times a second at most.
"""

from __future__ import annotations

import html
import threading
import time
from dataclasses import dataclass, replace
from typing import Literal

Status = Literal["running", "done", "failed", "cancelled", "interrupted"]

# What the list of news may grow to when nobody looks.
_LOOK_EVERY = 8192

_MARKS: dict[Status, str] = {
    "running": "▸",
    "done": "✓",
    "failed": "✗",
    "cancelled": "■",
    "interrupted": "■",
}


@dataclass(frozen=True)
class Lane:
    """One worker's share of a run."""

    worker: int
    done: int = 0
    busy: float = 0.0  # seconds spent in tasks that ended
    current: str | None = None  # what it runs now, if it was told

    def busy_share(self, elapsed: float) -> float:
        """Share of the run's time that the worker spent in tasks, 0 to 1."""
        return min(1.0, self.busy / elapsed) if elapsed > 0 else 0.0


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one moment."""

    label: str
    total: int | None  # None: not known, as of an iterator
    done: int  # ended without an error, those from the cache included
    failed: int
    from_cache: int
    elapsed: float  # seconds
    expected: float | None  # seconds that the whole run took the last time, if that is known
    status: Status
    lanes: tuple[Lane, ...]

    @property
    def ended(self) -> int:
        """Tasks that need no more work."""
        return self.done + self.failed

    @property
    def rate(self) -> float | None:
        """Tasks run a second, those from the cache left out; None before the first has ended."""
        run = self.ended - self.from_cache
        return run / self.elapsed if run and self.elapsed > 0 else None

    @property
    def fraction(self) -> float | None:
        """Share of the run that is over, 0 to 1; None where that cannot be told."""
        if self.total is not None:
            return self.ended / self.total if self.total else 1.0
        if self.expected:
            # What took 3 s the last time is not over after 3 s.
            return 1.0 if self.status == "done" else min(0.99, self.elapsed / self.expected)
        return None

    @property
    def seconds_left(self) -> float | None:
        """About how long the run still takes; None where that cannot be told."""
        if self.total is not None:
            return None if self.rate is None else max(0, self.total - self.ended) / self.rate
        if self.expected:
            return max(0.0, self.expected - self.elapsed)
        return None


def duration_text(seconds: float) -> str:
    """A duration as people write it: `40 ms`, `3.2 s`, `3 min 12 s`, `2 h 05 min`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count_text(snapshot: Snapshot) -> str:
    """How many of how many, as `12/20`; empty where nothing is counted."""
    if snapshot.total is not None:
        return f"{snapshot.ended}/{snapshot.total}"
    return f"{snapshot.ended}" if snapshot.ended else ""


def rate_text(snapshot: Snapshot) -> str:
    """Tasks a second, or a minute where they are slow; empty before the first has ended."""
    rate = snapshot.rate
    if rate is None:
        return ""
    if rate < 0.5:
        return f"{rate * 60:.1f}/min"
    return f"{rate:.1f}/s" if rate < 100 else f"{rate:,.0f}/s".replace(",", " ")


def summary_facts(snapshot: Snapshot) -> list[str]:
    """What is worth knowing of a run, most important first."""
    status = "" if snapshot.status in ("done", "running") else snapshot.status
    facts = [status, count_text(snapshot), duration_text(snapshot.elapsed)]
    facts.append(rate_text(snapshot) if snapshot.total != 1 else "")
    if snapshot.from_cache:
        facts.append(f"{snapshot.from_cache} from cache")
    if snapshot.failed:
        facts.append(f"{snapshot.failed} failed")
    if snapshot.lanes:
        busy = sum(lane.busy_share(snapshot.elapsed) for lane in snapshot.lanes) / len(snapshot.lanes)
        workers = "1 worker" if len(snapshot.lanes) == 1 else f"{len(snapshot.lanes)} workers"
        facts.append(f"{workers}, {100 * busy:.0f} % busy")
    return [fact for fact in facts if fact]


def summary_text(snapshot: Snapshot) -> str:
    """The run in one line of plain text."""
    return f"{_MARKS[snapshot.status]} {snapshot.label} · " + " · ".join(summary_facts(snapshot))


def summary_html(snapshot: Snapshot) -> str:
    """The run as static HTML that reads well where styles are stripped, as on GitHub.

    Inline styles only, and no text colour, so that it follows the page's theme; escaped throughout.
    """
    line = html.escape(f"{_MARKS[snapshot.status]} ") + f"<b>{html.escape(snapshot.label)}</b> · "
    line += html.escape(" · ".join(summary_facts(snapshot)))
    if len(snapshot.lanes) < 2:
        return f'<div role="status" style="font-size:90%;opacity:.85">{line}</div>'
    rows = "".join(
        f"<tr><td>worker {number}</td><td>{lane.done} done</td>"
        f"<td>{html.escape(duration_text(lane.busy))} busy</td>"
        f"<td>{100 * lane.busy_share(snapshot.elapsed):.0f} %</td></tr>"
        for number, lane in enumerate(snapshot.lanes, 1)
    )
    return (
        f'<details role="status" style="font-size:90%;opacity:.85"><summary>{line}</summary>'
        f'<table style="margin:2px 0 2px 1.5em">{rows}</table></details>'
    )


class Tracker:
    """What a run tells of its progress; may be told and looked at from any thread.

    Parameters
    ----------
    total
        Number of tasks, None if it is not known.
    label
        What runs, as the user would call it: `%%parallel`, `Parallel(n_jobs=2)`.
    expected
        Seconds that the same run took the last time, for runs whose progress only the clock tells.
    """

    def __init__(self, total: int | None, label: str, expected: float | None = None):
        self._news: list[tuple[int, float, int | None]] = []  # tasks ended, their seconds together, worker
        self._lock = threading.Lock()
        self._began = time.perf_counter()
        self._ended: float | None = None
        self._current: dict[int, str] = {}
        self._state = Snapshot(label, total, 0, 0, 0, 0.0, expected, "running", ())

    def start(self, total: int | None = None) -> None:
        """Let the clock run from now; a total that has become known replaces the earlier one."""
        with self._lock:
            self._began = time.perf_counter()
            if total is not None:
                self._state = replace(self._state, total=total)

    def begin(self, what: str, worker: int) -> None:
        """Note what a worker runs now, in a few words such as `iteration 17`."""
        self._current[worker] = what

    def done(self, index: int, seconds: float = 0.0, worker: int | None = None) -> None:
        """Count a task that ended without an error."""
        self.done_batch(1, seconds, worker)

    def done_batch(self, count: int, seconds: float = 0.0, worker: int | None = None) -> None:
        """Count the tasks of a batch; `seconds` is the time they took together."""
        self._news.append((count, seconds, worker))
        if len(self._news) >= _LOOK_EVERY:
            self.snapshot()

    def failed(self, index: int, seconds: float = 0.0, worker: int | None = None) -> None:
        """Count a task that ended with an error."""
        with self._lock:
            self._state = replace(self._state, failed=self._state.failed + 1)
        if seconds or worker is not None:
            self.done_batch(0, seconds, worker)

    def from_cache(self, count: int = 1) -> None:
        """Count tasks that needed no run, as their results were stored."""
        with self._lock:
            state = self._state
            self._state = replace(state, done=state.done + count, from_cache=state.from_cache + count)

    def finish(self, status: Status = "done") -> None:
        """Stop the clock; the first word counts, later ones change nothing."""
        with self._lock:
            if self._ended is None:
                self._ended = time.perf_counter()
                self._state = replace(self._state, status=status)

    def snapshot(self) -> Snapshot:
        """The state now."""
        with self._lock:
            self._take_news()
            now = time.perf_counter() if self._ended is None else self._ended
            return replace(self._state, elapsed=now - self._began)

    def summary_text(self) -> str:
        """The run in one line of plain text."""
        return summary_text(self.snapshot())

    def summary_html(self) -> str:
        """The run as static HTML."""
        return summary_html(self.snapshot())

    def _take_news(self) -> None:
        """Add up what was told since the last look; the caller holds the lock."""
        news = self._news
        count = len(news)  # what is appended from now on stays for the next look
        taken = news[:count]
        del news[:count]
        sums = {lane.worker: (lane.done, lane.busy) for lane in self._state.lanes}
        done = self._state.done
        for tasks, seconds, worker in taken:
            done += tasks
            if worker is not None:
                ended, busy = sums.get(worker, (0, 0.0))
                sums[worker] = ended + tasks, busy + seconds
        current = dict(self._current)
        self._state = replace(
            self._state,
            done=done,
            lanes=tuple(
                Lane(worker, *sums.get(worker, (0, 0.0)), current.get(worker))
                for worker in sorted(sums.keys() | current.keys())
            ),
        )
