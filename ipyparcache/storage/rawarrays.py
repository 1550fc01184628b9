"""Raw bytes of arrays: read them from any file object, and change their byte order."""

from __future__ import annotations

from typing import Any


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


def in_native_order(array: Any) -> Any:
    """The array with the byte order of this machine, the same values."""
    native = array.dtype.newbyteorder("=")
    if native == array.dtype or array.dtype.hasobject:
        return array
    return array.byteswap().view(native)
