"""Locks between processes and threads, by name, that die with their holder.

On Linux a lock is one byte range of one lock file, held through an open file description: no file is made or
removed per lock, two system calls a lock, and the kernel frees it when the holder dies. Elsewhere it is
`flock` on a file per name, or a byte of that file on Windows.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import blake3

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid
_HAS_RANGES = sys.platform == "linux" and sys.maxsize > 2**32 and hasattr(fcntl, "F_OFD_SETLK")


class Locks:
    """Locks below one folder. Reentrant in the thread that holds them."""

    def __init__(self, folder: Path, *, ranges: bool | None = None):
        self.folder = folder
        self._ranges = _HAS_RANGES if ranges is None else ranges
        self._condition = threading.Condition()
        self._holders: dict[str, int] = {}  # name -> thread that holds it here
        self._file: int | None = None  # the lock file, open since the first lock; Linux only
        self._owner = os.getpid()

    @contextlib.contextmanager
    def hold(self, name: str, timeout: float | None = None) -> Iterator[bool]:
        """Hold the lock `name`; see `Store.lock`."""
        if self._owner != os.getpid():
            self._forget()
        if self._holders.get(name) == threading.get_ident():
            yield True
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._enter(name, deadline):
            yield False
            return
        handle = None
        try:
            # A read-only folder, or a file system without locks: the caller goes on without.
            with contextlib.suppress(OSError):
                handle = self._take(name, deadline)
            yield handle is not None
        finally:
            try:
                if handle is not None:
                    self._release(name, handle)
            finally:
                with self._condition:
                    del self._holders[name]
                    self._condition.notify_all()

    def _enter(self, name: str, deadline: float | None) -> bool:
        """Become the one thread of this process that may hold `name`; False at the deadline."""
        with self._condition:
            while name in self._holders:
                left = 1.0 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return False
                # A bounded wait, since one without a limit cannot be interrupted on Windows.
                self._condition.wait(min(left, 1.0))
            self._holders[name] = threading.get_ident()
            return True

    def close(self) -> None:
        """Close the lock file; locks still held are let go."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def __del__(self) -> None:
        self.close()

    def _forget(self) -> None:
        """After a fork: what the parent holds is not held here."""
        self.close()
        self._condition = threading.Condition()
        self._holders = {}
        self._owner = os.getpid()

    def _take(self, name: str, deadline: float | None) -> int | None:
        pause = 0.001
        while True:
            handle = self._try_range(name) if self._ranges else self._try_file(name)
            if handle is not None or (deadline is not None and time.monotonic() >= deadline):
                return handle
            time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(pause * 2, 0.05)

    def _release(self, name: str, handle: int) -> None:
        if self._ranges:
            if sys.platform == "linux":
                fcntl.fcntl(
                    handle, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, _place(name), 1, 0)
                )
            return
        # Unlinked while still locked: who waits on it sees that its file is gone and opens the next one.
        with contextlib.suppress(OSError):
            os.unlink(self._path(name))
        os.close(handle)

    def _try_range(self, name: str) -> int | None:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._condition:
                if self._file is None:
                    self._file = os.open(self.folder / "ranges", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if sys.platform == "linux":
            try:
                fcntl.fcntl(
                    self._file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _place(name), 1, 0)
                )
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return None
                raise
        return self._file

    def _try_file(self, name: str) -> int | None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(name)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            if sys.platform == "win32":
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                return handle
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                os.close(handle)
                raise
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        return None

    def _path(self, name: str) -> Path:
        return self.folder / f"{_place(name):016x}.lock"


def _place(name: str) -> int:
    """A number below 2**62 that stands for the name; two names that share one only wait for each other."""
    return int.from_bytes(blake3.blake3(name.encode()).digest(8), "big") >> 2
