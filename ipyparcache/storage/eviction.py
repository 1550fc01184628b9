"""Which entries go: pure functions of what is known about them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

HALF_LIFE = 14 * 86400.0
"""Seconds without a use after which an entry counts half."""


class EntryInfo(NamedTuple):
    """What is known about an entry without opening it. Times in seconds since the epoch."""

    name: str
    size: int
    created: float
    last_use: float
    seconds: float
    """Run time that one hit saves."""


def usefulness(entry: EntryInfo, now: float) -> float:
    """Seconds that a hit saves per byte kept, halved for every `HALF_LIFE` since the last use.

    GreedyDual-Size (Cao and Irani, USENIX Internet Technologies 1997) with a half-life in place of its ageing
    term, which presumes one process that sees every request.
    """
    # An entry whose cost is unknown counts as a millisecond, so that size and age still decide.
    worth = max(entry.seconds, 1e-3) / max(entry.size, 1)
    return float(worth * 0.5 ** (max(now - entry.last_use, 0.0) / HALF_LIFE))


def names_to_evict(entries: Iterable[EntryInfo], budget: int, now: float) -> list[str]:
    """Entries to delete so that what is kept fits in `budget` bytes, least useful first.

    Raises
    ------
    ValueError
        If `budget` is negative.
    """
    if budget < 0:
        raise ValueError(f"a budget of {budget} bytes cannot be kept")
    known = list(entries)
    total = sum(entry.size for entry in known)
    if total <= budget:
        return []
    gone = []
    for entry in sorted(known, key=lambda entry: (usefulness(entry, now), entry.last_use, entry.name)):
        if total <= budget:
            break
        gone.append(entry.name)
        total -= entry.size
    return gone


def names_beyond(
    uses: Iterable[tuple[float, str, int]],
    now: float,
    *,
    most_bytes: int | None = None,
    most_items: int | None = None,
    oldest: float | None = None,
) -> list[str]:
    """Entries to delete so that all given limits hold, least recently used first.

    `uses` are the last use, name and size of each entry, `oldest` is in seconds since use.
    """
    known = sorted(uses)
    total = sum([size for _, _, size in known])
    items = len(known)
    gone = []
    for last_use, name, size in known:
        too_big = most_bytes is not None and total > most_bytes
        too_many = most_items is not None and items > most_items
        too_old = oldest is not None and now - last_use > oldest
        if not (too_big or too_many or too_old):
            break
        gone.append(name)
        total -= size
        items -= 1
    return gone
