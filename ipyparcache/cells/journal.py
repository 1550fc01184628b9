"""What the iterations of a chunk have left so far, in memory that outlives the worker that runs them."""

from __future__ import annotations

import functools
import marshal
import pickle
import struct
import sys
from collections.abc import Mapping
from typing import Any

from ipyparcache.cells.arrivals import Key
from ipyparcache.cells.messages import Left, Plain
from ipyparcache.cells.travel import ATOMS

#: Before a record of plain iterations: a marshalled list of (entries, bindings in the order of the names, or
#: as a dict where not all are bound, elements if the loop has them); pickled, of iterations that left more
#: than atoms.
PLAIN = b"plain"
HEAD = 64  # bytes in front of the iterations
MARK, AT, FIRST, LENGTH = range(4)  # words there
MARKED = 0x6A6F75726E616C21
LEAST = 1 << 16
MOST_PARTS = 1000  # of what an iteration leaves, to be looked at one by one
MOST_BYTES = 8 << 10  # of it, pickled: large temporaries may be held on their worker instead
#: The format of marshal that has no references, so that what was written apart can be read as one list.
PLAIN_FORMAT = 2


class Journal:
    """Plain iterations that were not sent yet, one after the other, and the number of the one that runs.

    Each is in place before the next one begins. One word says how far they reach, so that whoever reads this
    after the death of the worker finds whole iterations only.

    Parameters
    ----------
    memory
        Shared with the kernel; None where nobody could read it.
    """

    def __init__(self, memory: memoryview | None) -> None:
        self._memory = memory if memory is not None else memoryview(bytearray(LEAST))
        self.words = self._memory[:HEAD].cast("Q")
        self._room = len(self._memory)
        self.words[LENGTH] = 0
        self.words[MARK] = MARKED
        self._end = HEAD
        self._count = 0

    def add(self, number: int, left: tuple[Any, ...] | bytes) -> bool:
        """Note what an iteration left; False if there is no room for it."""
        item = marshal.dumps(left, PLAIN_FORMAT)
        end = self._end + len(item)
        if end > self._room:
            return False
        self._memory[self._end : end] = item
        if not self._count:
            self.words[FIRST] = number
        self._count += 1
        self._end = end
        self.words[LENGTH] = end - HEAD
        return True

    def take(self) -> tuple[int, bytes] | None:
        """The record of all iterations noted, with the number of the first; they are forgotten here."""
        if not self._count:
            return None
        record = _as_list(self._count, bytes(self._memory[HEAD : self._end]))
        self.words[LENGTH] = 0
        self._end = HEAD
        self._count = 0
        return self.words[FIRST], record

    def close(self) -> None:
        """Let the memory go; nothing is to be read there any more."""
        self.words[MARK] = 0
        self.words.release()
        self._memory.release()


def told_plainly(left: Left, known: Mapping[int, Key]) -> Plain | bytes | None:
    """What a journal notes of an iteration; None if it is large, or refers to anything."""
    log, bindings, _, _, value, _ = left
    plain: Plain = (tuple(log), bindings, value) if value is not None else (tuple(log), bindings)
    if _is_plain(left):
        return plain
    if not stands_alone(plain, known):
        return None
    data = pickle.dumps(plain, 5)
    return data if len(data) <= MOST_BYTES else None


def stands_alone(left: Any, known: Mapping[int, Key]) -> bool:
    """Whether something has only atoms and new containers of them in it, so that a plain pickle tells all.

    `known` are the objects that stand for objects of the kernel, by identity.
    """
    scalars = _numpy_scalars() if "numpy" in sys.modules else ATOMS
    waiting: list[Any] = [left]
    seen: set[int] = set()
    while waiting:
        obj = waiting.pop()
        kind = type(obj)
        if kind in ATOMS:
            continue
        number = id(obj)
        if number in known:
            return False
        if kind in scalars or number in seen:
            continue
        if kind is tuple or kind is list or kind is set or kind is frozenset:
            waiting.extend(obj)
        elif kind is dict:
            waiting.extend(obj)
            waiting.extend(obj.values())
        else:
            return False
        seen.add(number)
        if len(waiting) > MOST_PARTS:
            return False
    return True


@functools.cache
def _numpy_scalars() -> frozenset[type]:
    """The classes of numpy's numbers, texts and times."""
    import numpy as np

    return frozenset(np.sctypeDict.values()) - {np.object_, np.void}


def _is_plain(left: Left) -> bool:
    """Whether nothing in it could be shared with anything: atoms only."""
    entries, bindings, _, _, value, _ = left
    for entry in entries:
        for part in entry:
            if type(part) not in ATOMS:
                return False
    for part in bindings.values():
        if type(part) not in ATOMS:
            return False
    return value is None or (type(value) is list and all(type(part) in ATOMS for part in value))


def record_of(left: tuple[Any, ...] | bytes) -> bytes:
    """The record of one iteration that is too large for a journal."""
    return _as_list(1, marshal.dumps(left, PLAIN_FORMAT))


def read_journal(data: bytes) -> tuple[int, tuple[int, bytes] | None] | None:
    """The iteration that ran when a worker died, and the record of those before it that were not sent.

    None where the memory holds no journal.
    """
    if len(data) < HEAD:
        return None
    mark, at, first, length = struct.unpack_from("=4Q", data)
    if mark != MARKED or HEAD + length > len(data):
        return None
    count, items = 0, memoryview(data)[HEAD : HEAD + length]
    for _ in _items_of(items):
        count += 1
    if not count:
        return at, None
    return max(at, first + count), (first, _as_list(count, bytes(items)))


def _items_of(data: memoryview) -> Any:
    import io

    file = io.BytesIO(data)
    while file.tell() < len(data):
        yield marshal.load(file)


def _as_list(count: int, items: bytes) -> bytes:
    return PLAIN + b"[" + struct.pack("<i", count) + items
