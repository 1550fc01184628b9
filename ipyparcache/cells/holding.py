"""Large temporaries stay on the worker that made them, as only the last of each name is ever asked for."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LARGE = 1 << 20  # bytes from which a temporary is held back
KEPT = 3  # iterations whose temporaries a worker holds: those that may not be merged yet
RUNS = 2  # runs whose temporaries a worker holds
WAIT = 0.02  # seconds that a worker without the value leaves the next question to others


@dataclass(frozen=True)
class Held:
    """Where a temporary lies that was not sent home."""

    worker: int
    iteration: int
    kind: str


_held: dict[str, dict[str, deque[tuple[int, object]]]] = {}


def begin(token: str) -> None:
    """A new run on this worker: what older runs left is dropped."""
    _held.setdefault(token, {})
    for old in list(_held)[:-RUNS]:
        del _held[old]


def hold(token: str, name: str, iteration: int, value: object) -> Held:
    """Keep a temporary of an iteration here."""
    _held[token].setdefault(name, deque(maxlen=KEPT)).append((iteration, value))
    return Held(os.getpid(), iteration, type(value).__name__)


def is_large(value: object) -> bool:
    """Whether a value is an array or a frame of plain columns, so large that sending it would cost time."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    if type(value) is numpy.ndarray:
        found: Any = value
        return bool(found.nbytes >= LARGE and not found.dtype.hasobject)
    if type(value).__module__.startswith("pandas.") and type(value).__name__ == "DataFrame":
        frame: Any = value
        if any(dtype.kind == "O" for dtype in frame.dtypes):
            return False
        return bool(frame.memory_usage(deep=False).sum() >= LARGE)
    return False


def owners_of(value: object) -> Iterator[object]:
    """A value and the arrays whose memory it is a view of."""
    while value is not None:
        yield value
        value = getattr(value, "base", None)


def stand_alone(large: Mapping[str, object], reached: Container[int]) -> bool:
    """Whether large values share nothing with what is sent (ids `reached`), nor with each other."""
    seen: set[int] = set()
    for value in large.values():
        for part in owners_of(value):
            if id(part) in reached or id(part) in seen:
                return False
            seen.add(id(part))
    return True


@dataclass(frozen=True)
class Fetch:
    """The task that asks a worker for the values that it holds."""

    token: str
    wanted: tuple[tuple[str, Held], ...]

    def __call__(self) -> dict[str, object]:
        """Those of the values that lie here."""
        mine = {name: held for name, held in self.wanted if held.worker == os.getpid()}
        found: dict[str, object] = {}
        for name, held in mine.items():
            for iteration, value in _held.get(self.token, {}).get(name, ()):
                if iteration == held.iteration:
                    found[name] = value
        # Nobody asks twice: what the run left here can go.
        _held.pop(self.token, None)
        if not mine:
            time.sleep(WAIT)
        return found
