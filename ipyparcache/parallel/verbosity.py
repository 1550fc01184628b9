"""What `Parallel(verbose=...)` prints, and when, as joblib's users know it."""

from __future__ import annotations

import math
import sys
import warnings

from ipyparcache.logger import short_format_time


def print_line(owner: object, verbose: int, text: str) -> None:
    """Print a line of a call: to stdout from verbosity 50 on, else to stderr."""
    stream = sys.stdout if verbose >= 50 else sys.stderr
    stream.write(f"[{owner!r}]: {text}\n")


def is_time_to_tell(verbose: int, batches: int, done: int, total: int | None, last_told: int) -> bool:
    """Whether the end of a batch is worth a line.

    Before the end of the input is known, lines come ever more rarely, by the square root of the batches, the
    sooner the more verbose; afterwards at equal steps of the total.
    """
    if verbose > 10:
        return True
    if total is None:
        if batches == 0:
            return False
        step = 0.5 * (11 - verbose) ** 2
        return int(math.sqrt(batches / step)) != int(math.sqrt((batches + 1) / step))
    step = max(total // (verbose + 1), 1)
    return done < total and done - last_told >= step


def progress_line(done: int, total: int | None, elapsed: float, known_length: int | None) -> str:
    """How far a call is."""
    if total is None:
        if known_length is not None:
            width = len(str(known_length))
            return f"Done {done:{width}d} out of {known_length} | elapsed: {short_format_time(elapsed)}"
        return f"Done {done:3d} tasks      | elapsed: {short_format_time(elapsed)}"
    remaining = elapsed / max(done, 1) * (total - done)
    width = len(str(total))
    return (
        f"Done {done:{width}d} out of {total:{width}d} | elapsed: {short_format_time(elapsed)} "
        f"remaining: {short_format_time(remaining)}"
    )


def last_line(total: int, elapsed: float, known_length: int | None) -> str:
    """A call has ended."""
    width = len(str(known_length)) if known_length else 3
    return f"Done {total:{width}d} out of {total:{width}d} | elapsed: {short_format_time(elapsed)} finished"


def warn_of_waste(unused: int, cancelled: int) -> None:
    """Warn of what a generator that is dropped half-way leaves."""
    parts = [f"{unused} tasks had been computed and are not used"] if unused > 0 else []
    if cancelled > 0:
        parts.append(f"{cancelled} tasks were under way and have been cancelled")
    if parts:
        warnings.warn(
            f"A generator of Parallel was dropped before its end: {'; '.join(parts)}. "
            "Give it fewer tasks, or a smaller pre_dispatch.",
            UserWarning,
            stacklevel=4,
        )
