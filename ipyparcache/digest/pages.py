"""Arrays that came from an entry are not read again as long as they are as they came.

Large buffers of an entry are private mappings of its file, which is never changed in place. A page of such a
mapping that was written is no longer a page of the file, and the page table says so (bit 61 of
`/proc/self/pagemap`, readable without privileges): 0.4 ms for 64 MB. As long as no page was written, the
content is what it was when the entry was made, and its digest can be taken from there. Where the page table
cannot be read, arrays are digested again.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any
from weakref import ReferenceType, WeakSet, ref

import numpy as np

Array = np.ndarray[Any, Any]

_PAGE = mmap.PAGESIZE
_WRITTEN_SHIFT = 61  # set: a page of the file, or shared
_PRESENT_SHIFT = 63
_SWAPPED_SHIFT = 62
_FEWEST_BYTES = 1 << 16

_maps: WeakSet[mmap.mmap] = WeakSet()
_known: dict[tuple[int, int, str], tuple[ReferenceType[mmap.mmap], bytes]] = {}


def note_contents(buffers: Sequence[Any], contents: Sequence[Sequence[Any] | None]) -> None:
    """Take the digests of buffers that were just mapped from an entry.

    Parameters
    ----------
    buffers : sequence of memoryview
        As the entry gave them; those that are no mappings are passed over.
    contents : sequence
        What `contents_of` said of each when the entry was made, after a way through JSON; may be shorter.
    """
    for place, buffer in enumerate(buffers):
        owner = _map_under(buffer)
        if owner is None:
            continue
        _maps.add(owner)
        content = contents[place] if place < len(contents) else None
        if content is None:
            continue
        dtype, whole, rows = content
        memory = np.frombuffer(buffer, np.uint8)
        start, size = _address(memory), memory.nbytes
        _known[start, size, dtype] = ref(owner), bytes.fromhex(whole)
        for number, row in enumerate(rows):
            part = size // len(rows)
            _known[start + number * part, part, dtype] = ref(owner), bytes.fromhex(row)


def known_content(array: Array) -> bytes | None:
    """Digest of a contiguous array that lies in an entry's mapping and was not written since."""
    if not _maps or array.nbytes < _FEWEST_BYTES:
        return None
    key = (_address(array), array.nbytes, array.dtype.str)
    found = _known.get(key)
    if found is None:
        return None
    if found[0]() is None or found[0]() is not _map_under(array):
        del _known[key]  # the mapping is gone, something else lies there now
        return None
    return found[1] if is_unwritten(array) else None


def note_content(array: Array, digest: bytes) -> None:
    """Keep the digest of a contiguous array, if it lies in an entry's mapping and is unwritten."""
    if not _maps or array.nbytes < _FEWEST_BYTES:
        return
    owner = _map_under(array)
    if owner is not None and owner in _maps and is_unwritten(array):
        _known[_address(array), array.nbytes, array.dtype.str] = ref(owner), digest


def is_unwritten(array: Array) -> bool:
    """Whether no page under an array of a private mapping was written; False if that cannot be told."""
    first = _address(array) // _PAGE
    last = (_address(array) + array.nbytes + _PAGE - 1) // _PAGE
    try:
        with open("/proc/self/pagemap", "rb") as table:
            table.seek(first * 8)
            entries = np.frombuffer(table.read((last - first) * 8), np.uint64)
    except OSError:
        return False
    if len(entries) < last - first:
        return False
    there = (entries >> np.uint64(_PRESENT_SHIFT)) | (entries >> np.uint64(_SWAPPED_SHIFT))
    written = there & ~(entries >> np.uint64(_WRITTEN_SHIFT)) & np.uint64(1)
    return not written.any()


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _map_under(obj: Any) -> mmap.mmap | None:
    """The mapping that an array or memoryview lies in, through all views between."""
    for _ in range(16):
        if isinstance(obj, mmap.mmap):
            return obj
        if isinstance(obj, memoryview):
            obj = obj.obj
        elif isinstance(obj, np.ndarray):
            obj = obj.base
        else:
            return None
    return None
