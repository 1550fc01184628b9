"""Folders that several processes use: made, and asked again and again whether names in them have changed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

BY_PATH_SECONDS = 1.0
"""How often it is looked at by its path, too: another folder may have taken its place."""


class WatchedFolder:
    """A folder that is looked at through a handle that stays open: to look up a path costs far more."""

    def __init__(self, path: str):
        self.path = path
        self._handle = -1
        self._is = (-1, -1)  # device and inode
        self._until = 0.0  # clock until which the handle stands for the path
        self._seen = -1  # time of the last change, if what comes after it must have another
        self._lock = threading.Lock()

    def look(self) -> bool | None:
        """Whether names may have come or gone since the last look; None if there is no such folder."""
        with self._lock:
            try:
                status = os.fstat(self._handle) if time.monotonic() < self._until else self._by_path()
                if not status.st_nlink:
                    status = self._by_path()
            except OSError:
                self._close()
                return None
            if status.st_mtime_ns == self._seen:
                return False
            self._seen = status.st_mtime_ns if is_settled(status.st_mtime_ns) else -1
            return True

    def _by_path(self) -> os.stat_result:
        status = os.stat(self.path)
        if (status.st_dev, status.st_ino) != self._is:
            self._close()
            self._is = status.st_dev, status.st_ino
            if hasattr(os, "O_DIRECTORY"):
                self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if self._handle >= 0:
            self._until = time.monotonic() + BY_PATH_SECONDS
        return status

    def close(self) -> None:
        """Close the handle; the next look opens it again, and finds changes."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        handle, self._handle = self._handle, -1
        self._is, self._until, self._seen = (-1, -1), 0.0, -1
        if handle >= 0:
            os.close(handle)

    def __del__(self) -> None:
        self._close()


def is_settled(modified: int) -> bool:
    """Whether a change from now on gets another time than `modified`, in ns: clocks of file systems have a
    grain of a few ms, or of one or two seconds where they show whole seconds only.
    """
    grain = 100_000_000 if modified % 1_000_000_000 else 2_000_000_000
    return time.time_ns() - modified > grain


def make_folder(folder: Path) -> None:
    """Make a folder and those that it lies in.

    Raises
    ------
    FileNotFoundError
        If another process removes it, or the one that it lies in, at this moment.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except FileExistsError as error:
        if folder.exists() and not folder.is_dir():
            raise
        raise FileNotFoundError(error.errno, "removed while it was made", str(folder)) from error
