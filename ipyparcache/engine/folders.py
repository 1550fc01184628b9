"""Private folders that go with the process: of the portable transport, all in one, and of arrays in files.

A file has no owner that the system would clean up after. So a shell waits for the end of a pipe that only
this process holds, and removes the folder then: whatever has ended the process, and its workers with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import NamedTuple

from ipyparcache.lean import signal

ROOMY = 256 << 20  # bytes that must be free in /dev/shm for it to be used: containers often have 64 MB there
SHELL = "/bin/sh"
_WAIT_AND_REMOVE = 'read -r line; rm -rf -- "$1"'


class Kept(NamedTuple):
    """A folder of this process."""

    path: str
    owner: int
    keeper: int  # process id of the shell; 0 where there is none
    pipe: int  # end that stays open as long as this process lives


_bases: dict[str, Kept] = {}  # those of the portable transport, by the place that they are in
_kept: dict[str, Kept] = {}  # all, by path
_lock = threading.RLock()
_made = 0


def _memory() -> str | None:
    """A folder in memory that has room, if there is one."""
    with contextlib.suppress(OSError):
        room = os.statvfs("/dev/shm")
        if os.access("/dev/shm", os.W_OK) and room.f_bavail * room.f_frsize > ROOMY:
            return "/dev/shm"
    return None


def _disk() -> str:
    import tempfile

    return tempfile.gettempdir()


def new_folder(on_disk: bool = False) -> str:
    """A private folder for shared memory: in /dev/shm if it has room, else in the temporary folder."""
    global _made
    with _lock:
        place = None if on_disk else _memory()
        place = place or _disk()
        base = _bases.get(place)
        if base is None or base.owner != os.getpid() or not os.path.isdir(base.path):
            base = _bases[place] = make_kept(place)
        _made += 1
        path = f"{base.path}/{_made}"
        os.mkdir(path, 0o700)
        return path


def in_use() -> list[str]:
    """The folders that hold everything that this process shares by name."""
    with _lock:
        return [base.path for base in _bases.values() if base.owner == os.getpid()]


def make_kept(place: str) -> Kept:
    """A folder in a place, which is removed when this process has ended if it is not before."""
    import tempfile

    path = tempfile.mkdtemp(prefix="ipyparcache-", dir=place)
    read, write = os.pipe()
    keeper = 0
    try:
        null = os.devnull
        keeper = os.posix_spawn(
            SHELL,
            [SHELL, "-c", _WAIT_AND_REMOVE, SHELL, path],
            {"PATH": os.defpath},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, read, 0),
                (os.POSIX_SPAWN_OPEN, 1, null, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, null, os.O_WRONLY, 0),
            ],
            setpgroup=0,  # the terminal's interrupts are not for it
            setsigdef=[signal.SIGPIPE],
        )
    except OSError:
        pass  # a system without a shell: only a killed process leaves its folder
    finally:
        os.close(read)
    kept = _kept[path] = Kept(path, os.getpid(), keeper, write)
    return kept


def remove_kept(kept: Kept) -> None:
    """Remove a folder with what is in it; a forked child leaves it alone, as it is the parent's."""
    import shutil

    if kept.owner == os.getpid():
        shutil.rmtree(kept.path, ignore_errors=True)
        _end_keeper(kept)


def remove_folder(path: str) -> None:
    """Remove what `new_folder` made, with what is in it; the last one takes the folder around it along."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    with _lock:
        for place, base in list(_bases.items()):
            if os.path.dirname(path) == base.path and base.owner == os.getpid():
                with contextlib.suppress(OSError):  # others are still in it
                    os.rmdir(base.path)
                    del _bases[place]
                    _end_keeper(base)


def _end_keeper(kept: Kept) -> None:
    if _kept.pop(kept.path, None) is not None:
        os.close(kept.pipe)
        if kept.keeper:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(kept.keeper, 0)


def forget_folders() -> None:
    """Let go, in a forked child, of what belongs to the parent."""
    global _lock
    _lock = threading.RLock()
    for kept in _kept.values():
        with contextlib.suppress(OSError):
            os.close(kept.pipe)
    _kept.clear()
    _bases.clear()


def is_full(error: OSError) -> bool:
    """Whether a write has failed for want of room in the file system."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_folders)
