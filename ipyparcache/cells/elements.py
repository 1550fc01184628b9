"""The elements of a loop: drawn when they are wanted, as many at once as their measured time allows."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from itertools import islice
from typing import Any

from ipyparcache.cells.plans import LoopOptions

TARGET = 0.1  # seconds that a chunk should take at first: long against sending it and merging what it did
PART = 1.0  # of the time that the loop has run: later chunks may take so long
LONGEST = 0.2  # but no longer: an interrupt, and a worker that dies, find the end of a chunk near
PARTS = 1.5  # of what is left, divided by the workers: no chunk is longer, so that all end together
SHORTEST = 0.002  # seconds of a chunk towards the end: one takes a tenth of that to send and to merge
LARGEST = 4096  # iterations of a chunk
GROWTH = 4  # times the iterations sent so far, divided by the workers: the first may be shorter than the rest
MOST_BYTES = 1 << 18  # of elements and results of a chunk, about


class Source:
    """The iterator of a loop, and what user code prints while it is drawn from.

    Attributes
    ----------
    runs_user_code
        Whether drawing an element may run code of the notebook.
    said
        By number of an element: what was printed while it was drawn.
    said_last
        What was printed behind the last element.
    """

    def __init__(self, iterator: Iterator[Any]) -> None:
        self.iterator = iterator
        self.runs_user_code = False
        self.said: dict[int, str] = {}
        self.said_last = ""
        self._held: list[Any] = []

    @property
    def is_generator(self) -> bool:
        """Whether others may see how far it was read."""
        return hasattr(self.iterator, "send")

    @property
    def holds_one(self) -> bool:
        """Whether an element was drawn that waits for the next call of `draw`."""
        return bool(self._held)

    def draw(self, items: list[Any], size: int, first: int) -> bool:
        """Draw up to `size` elements, from number `first` on, into `items`; whether there are no more.

        What user code prints while an element is drawn comes before what its iteration prints: such an
        element begins a chunk. What was drawn before the iterable raises stays in the list.
        """
        if not self.runs_user_code:
            items.extend(islice(self.iterator, size))
            return len(items) < size
        if self._held:
            items.append(self._held.pop())
        while len(items) < size:
            heard = io.StringIO()
            try:
                with redirect_stdout(heard):
                    item = next(self.iterator)
            except StopIteration:
                self.said_last = heard.getvalue()
                return True
            except BaseException:
                self.said_last = heard.getvalue()
                raise
            if heard.getvalue():
                self.said[first + len(items)] = heard.getvalue()
                if items:
                    self._held.append(item)
                    return False
            items.append(item)
        return False


class Sizes:
    """How many iterations are sent together; made when the loop begins."""

    def __init__(
        self,
        options: LoopOptions,
        jobs: int,
        *,
        is_cached: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        apart = options.timeout is not None or options.retries or options.on_error == "collect"
        self._fixed = 1 if apart or is_cached or options.order == "free" else options.chunk
        self._jobs = jobs
        self._clock = clock
        self._begun_at = clock()
        self._mean: float | None = None
        self._bytes = 0.0

    def measured(self, ran: int, seconds: float, size: int) -> None:
        """Take note of a chunk: its iterations, the time that they took, bytes of what they left."""
        mean = seconds / ran
        self._mean = mean if self._mean is None else 0.7 * self._mean + 0.3 * mean
        self._bytes = max(size / ran, 0.7 * self._bytes)

    def following(self, sent: int, expected: int | None) -> int:
        """How many iterations the next chunk has, after so many of those that are expected."""
        if self._fixed is not None:
            return self._fixed
        if self._mean is None:
            return 1
        target = min(max(TARGET, PART * (self._clock() - self._begun_at)), LONGEST)
        size = max(1, min(int(target / max(self._mean, 1e-7)), LARGEST, GROWTH * sent // self._jobs))
        if self._bytes:
            size = max(1, min(size, int(MOST_BYTES / self._bytes)))
        if expected is not None:
            even = math.ceil((expected - sent) / (PARTS * self._jobs))
            size = max(1, min(size, max(even, int(SHORTEST / max(self._mean, 1e-7)))))
        return size
