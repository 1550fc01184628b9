"""Maps of memory files that `mmap` of the standard library cannot make: several side by side, in large pages.

Filling a new memory file page by page costs four times what copying costs. Linux 6.1 and later make large
pages for a part of a file on request (MADV_COLLAPSE), whatever the system's settings; where that is refused
or takes long, the rest is written plainly.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from pickle import PickleBuffer
from typing import Any

HUGE = 2 << 20  # bytes of a large page
STEP = 8 << 20  # bytes for which large pages are asked at once
CHUNK = 1 << 20  # bytes that are copied and looked at while they are in the cache
_QUICK = 1 << 30  # bytes a second: slower than this, large pages do not pay
_MADV_COLLAPSE = 25
_MAP_FIXED = 0x10
_PROT_NONE = 0
_READ_AND_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong
    ]  # fmt: skip
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _map(address: int | None, size: int, protection: int, flags: int, fd: int) -> int:
    found = _libc().mmap(address, size, protection, flags, fd, 0)
    if found == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "cannot map shared memory")
    return int(found)


def _reserve(size: int) -> tuple[int, int, int]:
    """Take a range of addresses: where it begins, its length, and the first place in it for a large page."""
    length = size + HUGE
    start = _map(None, length, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    return start, length, start + -start % HUGE


def side_by_side(files: Sequence[int], sizes: Sequence[int]) -> memoryview:
    """A private, writable map of several files at neighbouring addresses, unmapped when nobody has it."""
    total = sum(sizes)
    start, length, first = _reserve(total)
    try:
        at = first
        for fd, size in zip(files, sizes, strict=True):
            _map(at, size, _READ_AND_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED, fd)
            at += size
    except BaseException:
        _libc().munmap(start, length)
        raise
    memory = (ctypes.c_char * total).from_address(first)
    weakref.finalize(memory, _libc().munmap, start, length).atexit = False
    return PickleBuffer(memory).raw()  # `memoryview.cast` refuses the format that ctypes gives


def _address_of(raw: memoryview) -> int | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "frombuffer"):  # not loaded, or just being loaded
        return None
    return int(numpy.frombuffer(raw, numpy.uint8).__array_interface__["data"][0])


def fill(fd: int, raw: memoryview, see: Callable[[memoryview], object]) -> int:
    """Copy the beginning of a buffer to an empty memory file of its size, in large pages.

    `see` is given each part that was copied. Returns how many bytes were; what is left, perhaps all of it, is
    to be written.
    """
    whole = len(raw) - len(raw) % HUGE
    source = _address_of(raw) if whole else None
    if source is None:
        return 0
    libc = _libc()
    start, length, first = _reserve(whole)
    try:
        _map(first, whole, _READ_AND_WRITE, mmap.MAP_SHARED | _MAP_FIXED, fd)
        # One page first: where the host of a virtual machine must find each of them, it takes milliseconds.
        begin, end = 0, HUGE
        before = time.thread_time()
        while begin < whole:
            for at in range(begin, end, HUGE):
                os.pwrite(fd, b"\0", at)  # a range without any page gets no large one
            if libc.madvise(first + begin, end - begin, _MADV_COLLAPSE):
                return begin
            for at in range(begin, end, CHUNK):
                ctypes.memmove(first + at, source + at, CHUNK)
                see(raw[at : at + CHUNK])
            if end < _QUICK * (time.thread_time() - before):
                return end
            begin, end = end, min(end + STEP, whole)
        return whole
    finally:
        libc.munmap(start, length)
