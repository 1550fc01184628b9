"""What this user on this machine knows about the entries of one store: last uses, hits, and checked files.

A small file of lines that are only appended, in the user's state folder: nobody else can write it, so what
it says about a file that was checked can be believed. Nothing sound depends on it being there: without it,
large entries are checked against their checksums again, and eviction knows less.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from pathlib import Path

from ipyparcache.storage.store import Signature

FLUSH_SECONDS = 5.0
"""How long a use may wait in memory, so that a hit costs no system call."""


class Use:
    """How an entry was used by this user on this machine; times in seconds since the epoch.

    `saved` are the seconds of run time that its hits have saved so far.
    """

    __slots__ = ("hits", "last", "saved")

    def __init__(self, last: float = 0.0, hits: int = 0, saved: float = 0.0):
        self.last = last
        self.hits = hits
        self.saved = saved


class Ledger:
    """The lines of one store; safe to use from several threads and processes."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._boot = boot_id()
        self._uses: dict[str, Use] = {}
        self._checked: dict[str, Signature] = {}
        self._unwritten: dict[str, Use] = {}  # what was used since the last flush
        self._read: tuple[int, int] = (-1, 0)  # inode of the file as read, and how far
        self._lines = 0
        self._flushed = time.time()
        # A weak reference, so that the interpreter does not keep every ledger of a test run to its end.
        reference = weakref.ref(self)
        atexit.register(_flush_at_exit, reference)

    def checked(self, name: str) -> Signature | None:
        """The file state whose checksums were found right since this machine was started."""
        with self._lock:
            if self._read[0] == -1:
                self._refresh()
            return self._checked.get(name)

    def note_checked(self, name: str, signature: Signature) -> None:
        """The checksums of this file state are right."""
        with self._lock:
            self._checked[name] = signature
            self._append(f"c\t{name}\t{self._boot}\t{' '.join(map(str, signature))}\n")

    def note_use(self, name: str, saved: float) -> None:
        """A hit of this entry saved so many seconds."""
        now = time.time()
        with self._lock:
            use = self._unwritten.get(name)
            if use is None:
                use = self._unwritten[name] = Use()
            use.last = now
            use.hits += 1
            use.saved += saved
            if not 0 <= now - self._flushed <= FLUSH_SECONDS:
                self._flush()

    def uses(self) -> dict[str, Use]:
        """All uses known, those of other processes included."""
        with self._lock:
            self._flush()
            self._refresh()
            return {name: Use(use.last, use.hits, use.saved) for name, use in self._uses.items()}

    def forget(self, names: set[str]) -> None:
        """These entries are gone; the file is written anew if most of its lines are of no use."""
        with self._lock:
            self._flush()
            self._refresh()
            for known in (self._uses, self._checked):
                for name in names & known.keys():
                    del known[name]
            if names and self._lines > 2 * (len(self._uses) + len(self._checked)) + 100:
                self._rewrite()

    def flush(self) -> None:
        """Write what waits in memory."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        self._flushed = time.time()
        waiting, self._unwritten = self._unwritten, {}
        if waiting:
            lines = [
                f"u\t{name}\t{use.last:.3f}\t{use.hits}\t{use.saved:.6f}\n" for name, use in waiting.items()
            ]
            self._append("".join(lines))

    def _append(self, text: str) -> None:
        # Best effort: a home that cannot be written only makes later hits slower.
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(handle, text.encode())  # one call, so that lines of two processes do not mix
            finally:
                os.close(handle)

    def _refresh(self) -> None:
        """Read what was appended since, or everything if the file was written anew."""
        try:
            with open(self.path, "rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if self._read[0] != inode:
                    self._uses, self._checked, self._lines = {}, {}, 0
                    self._read = (inode, 0)
                file.seek(self._read[1])
                data = file.read()
        except OSError:
            self._read = (-2, 0)
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read = (inode, self._read[1] + len(whole))
        for line in whole.decode("utf-8", "replace").splitlines():
            self._lines += 1
            with contextlib.suppress(ValueError, IndexError):
                self._take(line.split("\t"))

    def _take(self, fields: list[str]) -> None:
        if fields[0] == "c" and fields[2] == self._boot:
            size, inode, modified, changed = map(int, fields[3].split())
            self._checked[fields[1]] = size, inode, modified, changed
        elif fields[0] == "u":
            last, hits, saved = float(fields[2]), int(fields[3]), float(fields[4])
            use = self._uses.setdefault(fields[1], Use())
            use.last = max(use.last, last)
            use.hits += hits
            use.saved += saved

    def _rewrite(self) -> None:
        lines = [
            f"u\t{name}\t{use.last:.3f}\t{use.hits}\t{use.saved:.6f}\n" for name, use in self._uses.items()
        ]
        lines += [f"c\t{name}\t{self._boot}\t{' '.join(map(str, s))}\n" for name, s in self._checked.items()]
        with contextlib.suppress(OSError):
            import tempfile  # only who writes needs it, and it takes long to load

            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".ledger-")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.writelines(lines)
                os.replace(temporary, self.path)
            except BaseException:
                os.unlink(temporary)
                raise
            # What another process appended meanwhile is lost: a use or a check less.
            self._read = (-1, 0)
            self._refresh()


def boot_id() -> str:
    """Differs after every start of the machine; where that is not known, after every start of this
    process."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return f"{os.getpid()}-{time.time_ns()}"


def _flush_at_exit(reference: weakref.ref[Ledger]) -> None:
    ledger = reference()
    if ledger is not None:
        ledger.flush()
