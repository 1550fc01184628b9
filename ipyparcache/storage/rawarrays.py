"""Raw bytes of arrays: read them from any file object, and change their byte order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

_PIECE = 32 << 20
"""Bytes that one thread reads at a time: page faults of fresh memory cost more than the reading."""

_THREADS = 4


def fill(file: Any, array: Any) -> None:
    """Fill a one-dimensional array of bytes from the file.

    Raises
    ------
    EOFError
        If the file ends before.
    """
    memory = memoryview(array)
    done = 0
    # Some file objects take no more than 2 GiB at once.
    while done < len(memory):
        count = file.readinto(memory[done : done + (1 << 30)])
        if not count:
            raise EOFError(f"{len(memory) - done} bytes are missing")
        done += count


def fill_from_places(handle: int, arrays: Sequence[tuple[Any, int]]) -> None:
    """Fill arrays of bytes from their places in a file, by several threads if it is much.

    Raises
    ------
    EOFError
        If the file ends before.
    """
    pieces = [
        (memory[at : at + _PIECE], place + at)
        for array, place in arrays
        for memory in [memoryview(array)]
        for at in range(0, len(memory), _PIECE)
    ]
    if len(pieces) < 3:
        for memory, place in pieces:
            _fill_at(handle, memory, place)
        return
    from concurrent.futures import ThreadPoolExecutor  # 3 ms, and few files are so large

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        for done in [threads.submit(_fill_at, handle, memory, place) for memory, place in pieces]:
            done.result()


def _fill_at(handle: int, memory: memoryview, place: int) -> None:
    done = 0
    while done < len(memory):
        count = os.preadv(handle, [memory[done:]], place + done)
        if not count:
            raise EOFError(f"{len(memory) - done} bytes are missing")
        done += count


def in_native_order(array: Any) -> Any:
    """The array with the byte order of this machine, the same values."""
    native = array.dtype.newbyteorder("=")
    if native == array.dtype or array.dtype.hasobject:
        return array
    return array.byteswap().view(native)
