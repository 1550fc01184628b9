"""Automatic mode: later cells are treated as if they began with `%%cached`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class _Mode:
    """Whether automatic mode is on, from how many seconds on a cell is worth storing, and who has paused
    it."""

    on: bool = False
    min_seconds: float = 1.0
    paused: int = 0


_mode = _Mode()

DEFAULT_MIN_SECONDS = 1.0


def switch(*, on: bool, min_seconds: float = DEFAULT_MIN_SECONDS) -> None:
    """Switch automatic mode; cells that ran shorter than `min_seconds` are not stored, 0 stores all."""
    _mode.on, _mode.min_seconds = on, min_seconds


def is_on() -> bool:
    """Whether automatic mode is on."""
    return _mode.on


def min_seconds() -> float:
    """From how many seconds on a cell is stored in automatic mode."""
    return _mode.min_seconds


@contextmanager
def paused() -> Iterator[None]:
    """Leave source alone that is transformed inside the block: it belongs to a cell that runs already."""
    _mode.paused += 1
    try:
        yield
    finally:
        _mode.paused -= 1


def rewrite_cell(lines: list[str]) -> list[str]:
    """Put `%%cached --auto` above a cell, unless it is empty or uses magics of its own."""
    if not _mode.on or _mode.paused:
        return lines
    texts = [line.strip() for line in lines]
    if not any(texts) or any(text.startswith(("%", "!", "?")) or text.endswith("?") for text in texts):
        return lines
    return ["%%cached --auto\n", *lines]
