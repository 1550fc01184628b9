"""A tracker as a text bar on a terminal, drawn by tqdm."""

from __future__ import annotations

import sys

from tqdm import tqdm

from ipyparcache.progress.tracker import Snapshot, summary_text


class _Line(tqdm):  # type: ignore[misc] # tqdm has no types
    """A tqdm that is drawn when it is told to, so that it needs none of tqdm's own watching thread."""

    monitor_interval = 0


class TextBar:
    """A bar on standard error that stays, with its last state, when the run has ended."""

    def __init__(self, keep_summary: bool):
        self._keep_summary = keep_summary
        self._line: _Line | None = None

    def update(self, snapshot: Snapshot) -> None:
        """Draw the state; the first call makes the bar appear."""
        if self._line is None:
            counted = snapshot.total is not None or snapshot.expected is None
            self._line = _Line(
                total=snapshot.total if counted else 100,
                desc=snapshot.label,
                file=sys.stderr,
                dynamic_ncols=True,
                leave=True,
                bar_format=None if counted else "{l_bar}{bar}| {elapsed}{postfix}",
            )
        fraction = snapshot.fraction
        self._line.n = snapshot.ended if snapshot.total is not None or fraction is None else 100 * fraction
        if snapshot.from_cache or snapshot.failed:
            self._line.set_postfix_str(
                ", ".join(
                    f"{count} {what}"
                    for count, what in ((snapshot.from_cache, "from cache"), (snapshot.failed, "failed"))
                    if count
                ),
                refresh=False,
            )
        self._line.refresh()

    def close(self, snapshot: Snapshot) -> None:
        """Leave the last state on the terminal; of a run too short for a bar, its summary if that is kept."""
        if self._line is not None:
            self.update(snapshot)
            self._line.close()
        elif self._keep_summary:
            print(summary_text(snapshot), file=sys.stderr)
