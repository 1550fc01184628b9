"""What happened to the cells of this kernel: one record a run, and the line that says it to the user."""

from __future__ import annotations

import html
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ipyparcache.errors import ParcacheError

Status = Literal["hit", "miss", "not stored", "refused", "parallel"]

KEPT = 200  # runs remembered for `%parcache why`


@dataclass(frozen=True)
class InputChange:
    """One input that differs from an earlier run of the same cell."""

    name: str
    before: str
    after: str
    detail: tuple[str, ...] = ()  # lines of a diff, names of columns
    what: str = ""  # what of it differs, where that says more than what it was and is

    def __str__(self) -> str:
        return f"{self.name} changed ({self.what or f'{self.before} → {self.after}'})"


@dataclass(frozen=True)
class Run:
    """One run of a cell under one of our magics.

    Attributes
    ----------
    status : str
        "hit", "miss" (it ran and was stored), "not stored", "refused", or "parallel" (a loop that ran).
    reason : str
        Why it was that, in one line.
    seconds : float
        Wall time of the whole cell, our own work included.
    body_seconds : float
        Time of the cell's own statements; of the stored run, for a hit.
    digest_seconds : float
        Time spent on digesting inputs.
    bytes : int
        Size of the entry that was written or read.
    inputs : mapping of str to str
        Digest of every input, by name.
    """

    status: Status
    reason: str
    seconds: float = 0.0
    body_seconds: float = 0.0
    digest_seconds: float = 0.0
    bytes: int = 0
    inputs: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    changes: tuple[InputChange, ...] = ()
    execution_count: int = 0
    identity: str = ""
    key: str = ""
    trace: str = ""
    cell: str = ""
    started: float = 0.0

    @property
    def hit(self) -> bool:
        """Whether the cell's effects came from the store."""
        return self.status == "hit"


class NoRun(ParcacheError):
    """Asked about a run of which nothing is known."""

    def __init__(self, wanted: str):
        super().__init__(wanted)
        self.wanted = wanted

    def __str__(self) -> str:
        return f"no cell {self.wanted} has run under %%cached or %%parallel in this kernel"


_lock = threading.Lock()
_runs: deque[Run] = deque(maxlen=KEPT)


def note_run(run: Run) -> Run:
    """Remember a run; it is the last one now."""
    with _lock:
        _runs.append(run)
    return run


def last_run() -> Run:
    """The last run of a cell under `%%cached` or `%%parallel` in this kernel.

    Raises
    ------
    NoRun
        If there was none.
    """
    with _lock:
        if not _runs:
            raise NoRun("yet")
        return _runs[-1]


def run_of(which: str) -> Run:
    """The run that a user names: `-1` the last, `-2` the one before, `7` the last of In[7].

    Raises
    ------
    NoRun
        If there is no such run.
    ValueError
        If it is no whole number.
    """
    number = int(which)
    with _lock:
        runs = list(_runs)
    if number < 0:
        if -number > len(runs):
            raise NoRun(which)
        return runs[number]
    found = [run for run in runs if run.execution_count == number]
    if not found:
        raise NoRun(which)
    return found[-1]


def runs() -> list[Run]:
    """All remembered runs, oldest first."""
    with _lock:
        return list(_runs)


def duration(seconds: float) -> str:
    """A length of time as people say it: `40 ms`, `3.2 s`, `3 min 12 s`, `2 h 5 min`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.00095 else "0 ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def size(count: float) -> str:
    """A number of bytes as people say it: `812 B`, `3.4 MB`, `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def joined(names: tuple[str, ...], limit: int = 4) -> str:
    """Names for a sentence, the first few."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def status_line(run: Run) -> str:
    """What is said below a cell, in one line."""
    if run.status == "hit":
        what = f"restored {joined(run.names)}" if run.names else "replayed"
        saved = max(0.0, run.body_seconds - run.seconds)
        return f"cached · {what} · {size(run.bytes)} in {duration(run.seconds)} · saved {duration(saved)}"
    ran = f"ran {duration(run.body_seconds)}"
    if run.status == "miss":
        because = f" · because {run.reason}" if run.reason else ""
        return f"{ran} · stored {size(run.bytes)}{because}"
    if run.status == "not stored":
        return f"{ran} · not stored: {run.reason}"
    return f"{ran} · {run.reason}"


def status_html(run: Run) -> str:
    """The same, small and collapsible, readable without any style or script."""
    line = html.escape(status_line(run))
    style = "font-size:85%;opacity:0.75"
    rows = [f"<li>{html.escape(str(change))}</li>" for change in run.changes]
    if run.digest_seconds:
        rows.append(f"<li>inputs digested in {duration(run.digest_seconds)}</li>")
    if not rows:
        return f'<div style="{style}">{line}</div>'
    return f'<details style="{style}"><summary>{line}</summary><ul>{"".join(rows)}</ul></details>'


def warning_html(text: str) -> str:
    """A warning of ours below the cell."""
    return f'<div style="font-size:85%"><b>ipyparcache:</b> {html.escape(text)}</div>'
