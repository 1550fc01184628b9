"""Small blobs, packed into append-only logs: one log a machine, one write a blob, no file and no rename each.

    record   magic, kind, lengths, time; checksum of all this and the name; checksum of the payload; name;
    payload

Who appends uses O_APPEND and a single write, so records of several processes of a machine do not mix, and
machines have logs of their own. A torn record (killed writer, full disk) is passed over: what follows it is
found by its magic and checksum. Of two records of one name the later one counts, and who writes gives it a
time that is after all that it has read, whatever its clock says. Nothing is changed in place; `compact`
writes what lives into a new log and unlinks the old ones, which who has them open notices by their link
count.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from ipyparcache.storage.folders import WatchedFolder, make_folder
from ipyparcache.storage.store import Item

ROTATE_BYTES = 64 << 20
STALE_SECONDS = 86400.0
"""A log of another machine that was not written for so long may be compacted by anybody."""

TORN_SECONDS = 10.0
"""A record that is still incomplete after so long is not being written any more."""

_MAGIC = b"\xf5rec"
_PUT, _DELETE = 1, 2
_HEADER = struct.Struct("<4sBxHId")  # magic, kind, bytes of the name, bytes of the payload, time
_CHECKSUMS = struct.Struct("<QQ")  # xxh3-64 of header and name, and of the payload
_FRONT = _HEADER.size + _CHECKSUMS.size


class Place(NamedTuple):
    """Where a packed blob lies; `record` and `start` are offsets of its record and of its payload."""

    log: Log
    record: int
    start: int
    length: int
    time: float

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        return self.start + self.length - self.record


class Record(NamedTuple):
    """A whole record as `scan` finds it; `at` and `start` are offsets of the record and of its payload."""

    kind: int
    name: str
    at: int
    start: int
    length: int
    time: float


class Log:
    """One log as far as it was read."""

    def __init__(self, path: Path, handle: int, writable: bool = True):
        self.path = path
        self.handle = handle
        self.writable = writable
        self.read = 0
        """Bytes that were looked at; what is whole before them is in the index."""
        self.bad = 0
        """Bytes before `read` that belong to no whole record."""
        self.size = 0
        """Bytes of the file when it was written to last."""
        self.live = 0
        """Bytes before `read` that belong to records in the index."""

    def close(self) -> None:
        """Close the file."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)

    def __del__(self) -> None:
        self.close()


class PackedLogs:
    """The logs of one folder; `writer` names this machine. Safe to use from several threads and processes."""

    def __init__(self, folder: Path, writer: str):
        self.folder = folder
        self.writer = writer
        self.complaints: list[str] = []
        self._lock = threading.RLock()
        self._logs: dict[str, Log] = {}
        self._places: dict[str, Place] = {}
        self._groups: dict[str, tuple[str, ...]] = {}  # group -> names, of which one is usual
        self._dead: dict[str, float] = {}  # name -> time of its deletion
        self._latest = 0.0  # time of the latest record that was read or written
        self._writing: Log | None = None
        self._owner = os.getpid()
        self._watched = WatchedFolder(str(folder))

    def place(self, name: str) -> Place | None:
        """Where the blob of this name lies now."""
        with self._lock:
            self._refresh()
            return self._places.get(name)

    def get(self, name: str) -> tuple[bytes, Place] | None:
        """The payload of this name and where it lies."""
        with self._lock:
            self._refresh()
            place = self._places.get(name)
            if place is None:
                return None
            return _read_at(place.log.handle, place.start, place.length), place

    def get_group(self, group: str) -> list[tuple[str, bytes, Place]]:
        """Names, payloads and places of the blobs whose name is `group` or begins with `group.`."""
        with self._lock:
            self._refresh()
            found = []
            for name in self._groups.get(group, ()):
                place = self._places[name]
                found.append((name, _read_at(place.log.handle, place.start, place.length), place))
            return found

    def group(self, group: str) -> list[Item]:
        """The blobs whose name is `group` or begins with `group.`."""
        with self._lock:
            self._refresh()
            places = [(name, self._places[name]) for name in self._groups.get(group, ())]
        return [Item(name, place.length, place.time) for name, place in places]

    def items(self) -> Iterator[Item]:
        """All blobs."""
        with self._lock:
            self._refresh()
            places = self._places.copy()
        for name, (_, record, start, length, when) in places.items():
            yield Item(name, start + length - record, when)

    def put(self, name: str, payload: bytes) -> None:
        """Append a blob; an error of the system if it cannot be written whole."""
        with self._lock:
            if self._writing is None:
                self._open_for_writing()  # which reads what is there, so that the new record is later than it
            when = self._now()
            self._append(_record(_PUT, name, payload, when), (name, len(payload), when))

    def remove(self, names: Iterable[str]) -> set[str]:
        """Delete these blobs; the names that were there."""
        with self._lock:
            self._refresh()
            found = self._places.keys() & names
            if found:
                now = self._now()
                self._append(b"".join(_record(_DELETE, name, b"", now) for name in found))
        return found

    def is_wasteful(self, without: Collection[str] = ()) -> bool:
        """Whether compacting would give back much of what it keeps, once the blobs `without` are gone, or
        mend a damaged log.
        """
        with self._lock:
            self._refresh()
            mine = {log for log in self._logs.values() if self._may_compact(log)}
            if any(log.bad for log in mine):
                return True
            live = sum(log.live for log in mine)
            dead = sum(log.read for log in mine) - live
            for name in without:
                place = self._places.get(name)
                if place is not None and place.log in mine:
                    size = place.start + place.length - place.record
                    dead += size
                    live -= size
            return 2 * dead > live and dead > 1 << 16

    def compact(
        self, temporary: Path, retire: Callable[[Path, bool], None], without: Collection[str] = ()
    ) -> set[str]:
        """Write what lives in this machine's logs into a new one, but for the blobs `without`; the names of
        those that were there.

        `temporary` is where the new log is written; `retire` takes an old one out of the way, and is told
        whether it was damaged. The caller sees to it that nobody else compacts.
        """
        with self._lock:
            self._refresh()
            old = {log for log in self._logs.values() if self._may_compact(log)}
            gone = self._places.keys() & without
            kept: dict[Log, list[tuple[int, int]]] = {log: [] for log in old}
            for name, (log, record, start, length, _) in self._places.items():
                if log in old and name not in gone:
                    kept[log].append((record, start + length))
            parts: list[bytes | memoryview] = []
            if len(old) < len(self._logs):
                # What was deleted here may lie in a log of another machine. Told first, as what follows in
                # the same log was put again since.
                self._dead |= dict.fromkeys(gone, self._now())
                parts += [_record(_DELETE, name, b"", when) for name, when in self._dead.items()]
            for log, spans in kept.items():
                data = memoryview(_read_at(log.handle, 0, log.read))
                parts += [data[start:end] for start, end in _joined(spans)]
            target = self._next_path()
            try:
                _write_new(temporary, parts)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                # There is no room for both, nor to set one aside; what is kept is in memory.
                late = self._retired(old, lambda path, damaged: retire(path, False))
                _write_new(temporary, [*parts, late])
                os.replace(temporary, target)
                return gone
            os.replace(temporary, target)
            late = self._retired(old, retire)
            if late:
                self._append(late)
        return gone

    def close(self) -> None:
        """Close the logs; they are opened again when they are needed."""
        with self._lock:
            self._forget()

    def _retired(self, old: Collection[Log], retire: Callable[[Path, bool], None]) -> bytes:
        """Take logs out of the way; what others appended to them since they were read."""
        for log in old:
            retire(log.path, log.bad > 0)
        self._writing = None
        # Who appends after the unlink sees it and appends again.
        late = b"".join([_read_at(log.handle, log.read, 1 << 30) for log in old])
        self._forget()
        return late

    def _forget(self) -> None:
        for log in self._logs.values():
            log.close()
        self._logs, self._places, self._groups, self._dead = {}, {}, {}, {}
        self._watched.close()
        self._writing = None

    def _now(self) -> float:
        """The time, or just after the latest record if the clock was set back since."""
        self._latest = max(math.nextafter(self._latest, math.inf), time.time())
        return self._latest

    def _may_compact(self, log: Log) -> bool:
        if log.path.name.startswith(f"{self.writer}-"):
            return True
        with contextlib.suppress(OSError):
            return time.time() - os.fstat(log.handle).st_mtime > STALE_SECONDS
        return False

    def _next_path(self) -> Path:
        numbers = [
            int(name.rpartition("-")[2]) for name in os.listdir(self.folder) if name.startswith(self.writer)
        ]
        return self.folder / f"{self.writer}-{max(numbers, default=0) + 1}"

    def _append(self, records: bytes, put: tuple[str, int, float] | None = None) -> None:
        """Append records; `put` tells name, length and time of the one blob that they are, which then need
        not be read again.
        """
        with self._lock:
            while True:
                log = self._open_for_writing()
                written = os.write(log.handle, records)
                if written < len(records):
                    # What is there of it is passed over by readers; the rest did not fit.
                    os.write(log.handle, records[written:])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                # A log that was compacted meanwhile is read by nobody any more.
                status = os.fstat(log.handle)
                log.size = status.st_size
                if status.st_nlink:
                    if put is not None and log.read == log.size - written:
                        name, length, when = put
                        self._take(log, _PUT, name, log.read, log.size - length, length, when)
                        log.read = log.size
                    return
                self._forget()

    def _open_for_writing(self) -> Log:
        log = self._writing
        # What others have added matters not here; that the log is still read does, and `_append` looks at it.
        if log is not None and log.size < ROTATE_BYTES and self._owner == os.getpid():
            return log
        self._refresh()
        own = self._own_logs()
        if own and not own[0].writable:
            os.close(os.open(own[0].path, _FLAGS))  # the error says why; without one it has become writable
            self._forget()
            self._refresh()
            own = [log for log in self._own_logs() if log.writable]
        if own:
            self._writing = own[0]
            return own[0]
        make_folder(self.folder)
        path = self._next_path()
        handle = os.open(path, _FLAGS | os.O_CREAT, 0o600)
        log = self._logs[path.name] = self._writing = Log(path, handle)
        return log

    def _own_logs(self) -> list[Log]:
        """Those of this machine to which may be appended."""
        own = [log for log in self._logs.values() if log.path.name.startswith(f"{self.writer}-")]
        return [log for log in own if log.read < ROTATE_BYTES and not log.bad]

    def _refresh(self) -> None:
        """Read what was appended or added since the last call."""
        if self._owner != os.getpid():
            # The handles of the parent share their position with it.
            self._forget()
            self._owner = os.getpid()
        is_new = self._watched.look()
        if is_new is None:
            if self._logs:
                self._forget()
            return
        if is_new:
            self._list()
        for log in self._logs.values():
            # As long as no name came or went none was unlinked either, and then the size says it all.
            if not is_new and os.lseek(log.handle, 0, os.SEEK_END) == log.read:
                continue
            status = os.fstat(log.handle)
            if status.st_size < log.read or not status.st_nlink:
                # Compacted, cleared or damaged by others: begin anew.
                if status.st_nlink:  # logs only ever grow
                    self._complain(log)
                self._forget()
                self._list()
                for again in self._logs.values():
                    self._read_on(again, os.fstat(again.handle))
                return
            if status.st_size > log.read:
                self._read_on(log, status)

    def _list(self) -> None:
        names: set[str] = set()
        with contextlib.suppress(OSError):
            names = set(os.listdir(self.folder))
        for name in names - self._logs.keys():
            with contextlib.suppress(OSError):
                writable = True
                try:
                    handle = os.open(self.folder / name, _FLAGS)
                except OSError:  # another user's, or on a read-only file system
                    handle = os.open(self.folder / name, os.O_RDONLY | _EXTRA_FLAGS)
                    writable = False
                self._logs[name] = Log(self.folder / name, handle, writable=writable)

    def _read_on(self, log: Log, status: os.stat_result) -> None:
        data = _read_at(log.handle, log.read, status.st_size - log.read)
        records, seen, bad = scan(data, settled=time.time() - status.st_mtime > TORN_SECONDS)
        base = log.read
        for kind, name, at, start, length, when in records:
            self._take(log, kind, name, base + at, base + start, length, when)
        log.read += seen
        if bad and not log.bad:
            self._complain(log)
        log.bad += bad

    def _complain(self, log: Log) -> None:
        self.complaints.append(
            f"a log of small cache entries was damaged; only its whole ones count: {log.path.name}"
        )

    def _take(self, log: Log, kind: int, name: str, at: int, start: int, length: int, when: float) -> None:
        if when > self._latest:
            self._latest = when
        old = self._places.get(name)
        # Within one log the later record counts; between logs the later time.
        if old is not None and old.log is not log and old.time > when:
            return
        if kind == _DELETE:
            self._dead[name] = max(when, self._dead.get(name, 0.0))
        elif self._dead and self._dead.get(name, 0.0) > when:
            return
        if old is not None:
            old.log.live -= old.size
        if kind == _PUT:
            self._places[name] = Place(log, at, start, length, when)
            log.live += start + length - at
            if old is None:
                group = name.partition(".")[0]
                names = self._groups.get(group)
                self._groups[group] = (name,) if names is None else (*names, name)
        elif old is not None:
            del self._places[name]
            group = name.partition(".")[0]
            left = tuple([other for other in self._groups[group] if other != name])
            if left:
                self._groups[group] = left
            else:
                del self._groups[group]


_EXTRA_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_FLAGS = os.O_RDWR | os.O_APPEND | _EXTRA_FLAGS


def scan(data: bytes, *, settled: bool) -> tuple[list[Record], int, int]:
    """The whole records in a piece of a log, how many bytes were looked at, and how many belong to none.

    An incomplete record at the end is left to the next look, unless the log is `settled`: not written any
    more.
    """
    records = []
    at = bad = 0
    while at < len(data):
        record = _parsed(data, at)
        if record is not None:
            records.append(record)
            at = record.start + record.length
            continue
        following = data.find(_MAGIC, at + 1)
        while following >= 0 and _parsed(data, following) is None:
            following = data.find(_MAGIC, following + 1)
        if following < 0:
            if not settled and _may_be_cut(data, at):
                break
            following = len(data)
        bad += following - at
        at = following
    return records, at, bad


def _parsed(data: bytes, at: int) -> Record | None:
    """The record at this offset, if it is whole and right."""
    if len(data) - at < _FRONT:
        return None
    magic, kind, name_length, length, when = _HEADER.unpack_from(data, at)
    if magic != _MAGIC:
        return None
    head, tail = _CHECKSUMS.unpack_from(data, at + _HEADER.size)
    name_at = at + _FRONT
    start = name_at + name_length
    if start + length > len(data):
        return None
    name = data[name_at:start]
    if xxhash.xxh3_64_intdigest(data[at : at + _HEADER.size] + name) != head:
        return None
    if xxhash.xxh3_64_intdigest(memoryview(data)[start : start + length]) != tail:
        return None
    return Record(kind, name.decode("ascii"), at, start, length, when)


def _may_be_cut(data: bytes, at: int) -> bool:
    """Whether a record may begin here whose end is not there yet."""
    if len(data) - at < _FRONT:
        return True
    magic, _, name_length, length, _ = _HEADER.unpack_from(data, at)
    return bool(magic == _MAGIC and at + _FRONT + name_length + length > len(data))


def _record(kind: int, name: str, payload: bytes, when: float) -> bytes:
    encoded = name.encode("ascii")
    header = _HEADER.pack(_MAGIC, kind, len(encoded), len(payload), when)
    sums = _CHECKSUMS.pack(xxhash.xxh3_64_intdigest(header + encoded), xxhash.xxh3_64_intdigest(payload))
    return b"".join((header, sums, encoded, payload))


def _write_new(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """A file of these parts; nothing of it is left if they do not fit."""
    try:
        with open(path, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.writelines(parts)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _joined(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The spans from first to last, those that touch as one."""
    first = last = 0
    for start, end in sorted(spans):
        if start != last:
            yield first, last
            first = start
        last = end
    yield first, last


def _read_at(handle: int, offset: int, length: int) -> bytes:
    if hasattr(os, "pread"):
        data = os.pread(handle, length, offset)
        if len(data) == length:
            return data
        parts = [data]
        while parts[-1]:
            done = sum(map(len, parts))
            parts.append(os.pread(handle, length - done, offset + done))
        return b"".join(parts)
    os.lseek(handle, offset, os.SEEK_SET)
    return os.read(handle, length)
