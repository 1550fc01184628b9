"""How programs follow a call of `Parallel`: its counts, and what they override or replace to hear of them."""

from __future__ import annotations

import sys
import time

from ipyparcache.logger import Logger
from ipyparcache.parallel.verbosity import is_time_to_tell, last_line, print_line, progress_line

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ipyparcache.parallel.tasks import Triple


class Followed(Logger):
    """The counts of a call, and the methods by which a subclass is told that they have changed."""

    # What no call has changed yet: here, as most objects serve one call.
    n_completed_tasks = 0
    n_dispatched_tasks = 0
    n_dispatched_batches = 0
    n_tasks: int | None = None
    """How many tasks there are, if the iterable knows or has ended."""

    verbose: Any = 0
    _start_time = 0.0
    _original_iterator: Iterable[Triple] | None = None
    """What tasks are drawn from, as long as it has not ended."""

    _aborting = False  # whether the last call has ended before its end

    _began = 0.0
    _told = 0
    _length: int | None = None

    def print_progress(self) -> None:
        """Tell how far the call is; called at the end of each batch."""
        if not self.verbose:
            return
        elapsed = time.monotonic() - self._began
        total = self.n_tasks if self._original_iterator is None else None
        if total is not None and self.n_completed_tasks >= total - 1:  # the last line says it
            return
        if is_time_to_tell(
            self.verbose, self.n_dispatched_batches, self.n_completed_tasks, total, self._told
        ):
            self._told = self.n_completed_tasks
            self._print(progress_line(self.n_completed_tasks, total, elapsed, self._length))

    def _print(self, msg: str) -> None:
        """Print one line of a call."""
        if self.verbose:
            print_line(self, self.verbose, msg)

    def dispatch_one_batch(self, iterator: Iterable[Triple]) -> bool:
        """Called before tasks are drawn, for subclasses to override; whether there are more."""
        return self._original_iterator is not None

    def dispatch_next(self) -> None:
        """Tasks follow by themselves: kept for programs that ask for the next ones when some have ended."""

    def _begin_counting(self, iterable: Iterable[Triple]) -> None:
        self.n_completed_tasks = self.n_dispatched_tasks = self.n_dispatched_batches = self._told = 0
        self._began = time.monotonic()
        self._start_time = time.time()
        self._aborting = False
        self._length = self.n_tasks = len(iterable) if hasattr(iterable, "__len__") else None  # type: ignore[arg-type]
        self._original_iterator = iterable
        if type(self).dispatch_one_batch is not Followed.dispatch_one_batch:
            self.dispatch_one_batch(iterable)

    def _note_drawn_all(self, count: int) -> None:
        self._original_iterator = None
        self.n_tasks = count

    def _count_done(self, count: int, seconds: float) -> None:
        """So many more tasks have ended, after so many seconds; whoever follows is told."""
        done = self.n_completed_tasks + count
        callback = replaced_callback()
        if callback is not None:
            callback(time.time() - seconds, count, self)(None)
        self.n_completed_tasks = done
        if self.verbose or self._has_own_progress():
            self.print_progress()

    def _has_own_progress(self) -> bool:
        return type(self).print_progress is not _print_progress or "print_progress" in vars(self)

    def _is_followed(self) -> bool:
        """Whether a program shows the progress of this call itself."""
        return self._has_own_progress() or replaced_callback() is not None

    def _end_counting(self, whole: bool) -> None:
        self._original_iterator = None
        self._aborting = not whole
        if whole:
            self.n_tasks = self.n_completed_tasks
            if self.verbose and self.n_tasks:
                self._print(last_line(self.n_tasks, time.monotonic() - self._began, self._length))


class BatchCompletionCallBack:
    """Made and called when a batch of tasks has ended.

    Programs show progress by putting a subclass in its place, `ipyparcache.parallel.BatchCompletionCallBack`,
    or by replacing its `__call__`; a bar of our own is then not shown.

    Parameters
    ----------
    dispatch_timestamp : float
        When the batch began, as `time.time()` tells it.
    batch_size : int
        How many tasks.
    parallel : Parallel
        Whose.
    """

    def __init__(self, dispatch_timestamp: float, batch_size: int, parallel: Followed):
        self.dispatch_timestamp = dispatch_timestamp
        self.batch_size = batch_size
        self.parallel = parallel

    def __call__(self, out: object = None) -> None:
        """Count the tasks."""
        self.parallel.n_completed_tasks += self.batch_size


# As they are here, to tell what a program has put in their place.
_print_progress = Followed.print_progress
_call = BatchCompletionCallBack.__call__
_init = BatchCompletionCallBack.__init__


def replaced_callback() -> Any:
    """The class to be told of ends of batches, if a program has replaced or changed ours; else None."""
    shown = vars(sys.modules["ipyparcache.parallel"]).get("BatchCompletionCallBack", BatchCompletionCallBack)
    if shown is BatchCompletionCallBack and shown.__call__ is _call and shown.__init__ is _init:
        return None
    return shown
