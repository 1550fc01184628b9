"""A store in a directory: a file a blob, written aside and renamed, never changed in place.

    <folder>/packed/              blobs up to 64 KiB, in append-only logs
    <folder>/blobs/ab/<name>      one larger blob; `ab` spreads the names over 256 folders
    <folder>/aside/<name>         damaged blobs, kept a week for whoever wants to look
    <folder>/temporary/           what is being written; leftovers of dead processes are swept
    <folder>/locks/

Nothing is ever truncated or rewritten in place: a reader that mapped the file would see it, or die of SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import blake3

from ipyparcache.errors import StoreUnavailable
from ipyparcache.storage import locks
from ipyparcache.storage.folders import WatchedFolder, is_settled, make_folder
from ipyparcache.storage.packed import PackedLogs, Place
from ipyparcache.storage.store import Blob, Buffer, Item, Signature, Store, checked_name

PACKED = 1 << 16
"""Bytes up to which a blob is packed into a log: a file costs 170 us and at least a 4 KiB block."""

MAPPED = 1 << 20
"""Bytes from which a buffer is mapped rather than read: below, a page fault a page costs more than a copy."""

LARGE = 1 << 20
"""Bytes from which room for a file is reserved before it is written."""

ASIDE_SECONDS = 7 * 86400.0
STALE_SECONDS = 86400.0
"""Age at which a temporary file of another machine counts as left behind."""

_ATTEMPTS = 100
"""How often a blob is written while others clear the store at the same time."""

NETWORK_FILE_SYSTEMS = (
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse", "gfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs",
    "ocfs", "orangefs", "pvfs", "smb", "vboxsf", "wekafs",
)  # fmt: skip
"""Beginnings of the names of file systems whose files another machine may change or take away while
mapped."""

_counter = itertools.count()


class LocalBlob(Blob):
    """A file, open for reading."""

    def __init__(self, handle: int, *, may_map: bool):
        status = os.fstat(handle)
        self.size = status.st_size
        self.modified = status.st_mtime
        self.signature = signature_of(status) if may_map else None
        self._handle = handle
        self._may_map = may_map

    def read(self, offset: int, length: int) -> Buffer:
        """These bytes; fewer if the file ends before."""
        return _read_at(self._handle, offset, length)

    def writable(self, offset: int, length: int) -> memoryview:
        """These bytes, mapped copy-on-write if they are many and the file system is local."""
        if offset + length > self.size:
            raise EOFError(f"{offset + length - self.size} bytes are missing")
        if length < MAPPED:
            memory = memoryview(bytearray(length))
        elif self._may_map:
            start = offset - offset % mmap.ALLOCATIONGRANULARITY
            mapped = mmap.mmap(self._handle, offset + length - start, access=mmap.ACCESS_COPY, offset=start)
            return memoryview(mapped)[offset - start :]
        else:
            # Fresh anonymous pages: a bytearray of this size would be filled with zeros first.
            memory = memoryview(mmap.mmap(-1, length))
        _read_into(self._handle, memory, offset)
        return memory

    def close(self) -> None:
        """Close the file; mappings of it stay."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def __del__(self) -> None:
        self.close()


class PackedBlob(Blob):
    """A blob from a log, read whole."""

    signature = None
    is_whole = True

    def __init__(self, data: bytes, place: Place):
        self.size = len(data)
        self.modified = place.time
        self.token = place
        self._data = data

    def read(self, offset: int, length: int) -> Buffer:
        """These bytes; fewer if the blob ends before."""
        return self._data if not offset and length >= self.size else self._data[offset : offset + length]

    def writable(self, offset: int, length: int) -> memoryview:
        """These bytes, copied."""
        if offset + length > self.size:
            raise EOFError(f"{offset + length - self.size} bytes are missing")
        return memoryview(bytearray(self._data[offset : offset + length]))

    def close(self) -> None:
        """There is nothing to close."""


class LocalStore(Store):
    """Blobs in a folder of this machine, or of a server that this machine mounts."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.location = str(self.folder)
        self._blobs = self.folder / "blobs"
        self._temporary = self.folder / "temporary"
        self._locks = locks.Locks(self.folder / "locks")
        self._packed = PackedLogs(self.folder / "packed", f"{_host()}-{getattr(os, 'getuid', int)()}")
        self._may_map: bool | None = None  # asked once the folder exists
        self._blobs_text = str(self._blobs)
        self._watched = WatchedFolder(self._blobs_text)
        self._shards: set[str] | None = None  # folders of files, once they were looked at
        self._capacity: int | None = None
        self._puts = 0
        self._listings: dict[
            str, tuple[int, dict[str, list[Item]]]
        ] = {}  # folder -> its mtime, items by group
        self._swept = False

    def open(self, name: str) -> LocalBlob | PackedBlob | None:
        """The blob of this name, from its file or its log."""
        packed = self._packed.get(checked_name(name))
        if packed is not None:
            return PackedBlob(*packed)
        try:
            handle = os.open(
                self._path(name), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
            )
        except OSError:
            return None
        if self._may_map is None:
            self._may_map = not is_on_network(self._blobs)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                os.close(handle)
                return None
            return LocalBlob(handle, may_map=self._may_map)
        except BaseException:
            os.close(handle)
            raise

    def put(self, name: str, parts: Sequence[Buffer], *, own_file: bool = False) -> int:
        """Append to the log, or write the file aside and rename it."""
        checked_name(name)
        size = 0
        for part in parts:
            size += len(part) if type(part) is bytes else memoryview(part).nbytes
        is_packed = size <= PACKED and not own_file
        attempts = _ATTEMPTS
        while True:
            try:
                if not is_packed:
                    return self._put_file(name, parts, size)
                if not self._swept:
                    self._prepare()
                self._put_packed(name, b"".join(parts))
                return size
            except FileNotFoundError as error:  # somebody clears the store
                attempts -= 1
                if not attempts:
                    raise StoreUnavailable(self.location, _reason(error)) from error
            except OSError as error:
                raise StoreUnavailable(self.location, _reason(error)) from error

    def _put_file(self, name: str, parts: Sequence[Buffer], size: int) -> int:
        path = self._path(name)
        self._prepare()
        # The partial file lies in the same folder tree, since renaming is atomic only within a file system.
        temporary = self._temporary / f"{writer_name()}-{next(_counter)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        handle = os.open(temporary, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o600)
        try:
            try:
                if size >= LARGE:
                    reserve(handle, size, self._temporary)
                written = _write_all(handle, parts)
            finally:
                os.close(handle)  # a full NFS server may say so only here
            try:
                os.replace(temporary, path)
            except FileNotFoundError:
                make_folder(Path(path).parent)
                os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._listings.pop(os.path.dirname(path), None)
        self._shards = None
        self._packed.remove([name])  # a smaller blob of this name from before
        return written

    def token(self, name: str) -> object | None:
        """The place of a packed blob, which a later record of this name would change."""
        return self._packed.place(name)

    def wipe(self) -> None:
        """Remove the folder with all that is in it."""
        import shutil  # which brings the compressors

        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name: str, *, unpack: bool = False) -> str | None:
        """The file of this name, unless the blob lies in a log; with `unpack` it is moved into one."""
        packed = self._packed.get(checked_name(name))
        if packed is not None:
            if not unpack:
                return None
            try:
                self.put(name, [packed[0]], own_file=True)
            except StoreUnavailable:
                return None
        return self._path(name)

    def delete(self, name: str) -> bool:
        """Unlink the file, or note in the log that the blob is gone."""
        return bool(self.remove([name]))

    def remove(self, names: Iterable[str]) -> set[str]:
        """Take several blobs away; the log is compacted once it is mostly dead."""
        names = list(names)
        gone = self._compact_if_wasteful(names) if names else set()
        if gone is None:
            try:
                gone = self._packed.remove(names)
            except OSError:  # no room for a note that they are gone: without them there is
                gone = self._compact(names) or set()
        for name in names:
            if name not in gone:
                with contextlib.suppress(OSError):
                    os.unlink(self._path(name))
                    gone.add(name)
        return gone

    def set_aside(self, name: str) -> None:
        """Move the blob into `aside`; take it away if that cannot be done."""
        aside = self.folder / "aside"
        with contextlib.suppress(OSError):
            aside.mkdir(mode=0o700, exist_ok=True)
            packed = self._packed.get(name)
            if packed is None:
                os.replace(self._path(name), aside / name)
                return
            (aside / name).write_bytes(packed[0])
        self.delete(name)

    def group(self, group: str) -> list[Item]:
        """The blobs of one group, whose files lie in one folder."""
        packed = self._packed.group(checked_name(group))
        files = self._files_of(group)
        return packed + files if files else packed

    def open_group(self, group: str) -> list[tuple[str, Blob]]:
        """The same blobs open for reading, with their names; one look at the logs serves for all."""
        packed = self._packed.get_group(checked_name(group))
        found: list[tuple[str, Blob]] = [(name, PackedBlob(data, place)) for name, data, place in packed]
        for item in self._files_of(group):
            blob = self.open(item.name)
            if blob is not None:
                found.append((item.name, blob))
        return found

    def _files_of(self, group: str, *, look: bool = True) -> list[Item]:
        """The files of one group; a folder is listed again only once something was added or taken away.

        Without `look`, what others have done since the last look may be missing.
        """
        shard = _shard(group)
        if self._shards is None or (look and self._watched.look() is not False):
            self._shards = set(_names_in(self._blobs_text))
        if shard not in self._shards:
            return []
        folder = os.path.join(self._blobs_text, shard)
        if not look and folder in self._listings:
            return self._listings[folder][1].get(group, [])
        try:
            modified = os.stat(folder).st_mtime_ns
        except OSError:
            return []
        known = self._listings.get(folder)
        if known is None or known[0] != modified:
            groups: dict[str, list[Item]] = {}
            for item in _listed(folder):
                groups.setdefault(item.name.partition(".")[0], []).append(item)
            known = modified if is_settled(modified) else -1, groups
            self._listings[folder] = known
        return known[1].get(group, [])

    def items(self) -> Iterator[Item]:
        """All blobs: those in logs, then the files, folder by folder."""
        yield from self._packed.items()
        try:
            shards = sorted(os.listdir(self._blobs))
        except OSError:
            return
        for shard in shards:
            yield from _listed(self._blobs / shard)

    def lock(self, name: str, timeout: float | None = None) -> AbstractContextManager[bool]:
        """Hold the lock `name`; see `Store.lock`."""
        return self._locks.hold(name, timeout)

    def capacity(self) -> int | None:
        """Bytes of the disk below the folder."""
        if self._capacity is None:
            folder = self.folder
            while not folder.exists() and folder != folder.parent:
                folder = folder.parent
            try:
                facts = os.statvfs(folder)
            except (OSError, AttributeError):
                return None
            self._capacity = facts.f_frsize * facts.f_blocks
        return self._capacity

    def sweep(self) -> None:
        """Unlink temporary files of dead writers, and what was set aside long ago."""
        now = time.time()
        me = writer_name()
        for item in _listed(self._temporary):
            host, pid, start = _parse_writer(item.name)
            if item.name.startswith(me):
                continue
            here = host == _host()
            if (here and not is_running(pid, start)) or (not here and now - item.modified > STALE_SECONDS):
                with contextlib.suppress(OSError):
                    os.unlink(self._temporary / item.name)
        for item in _listed(self.folder / "aside"):
            if now - item.modified > ASIDE_SECONDS:
                with contextlib.suppress(OSError):
                    os.unlink(self.folder / "aside" / item.name)

    def close(self) -> None:
        """Close the lock file and the logs."""
        self._locks.close()
        self._packed.close()
        self._watched.close()

    def take_complaints(self) -> list[str]:
        """What was wrong with the logs."""
        complaints, self._packed.complaints = self._packed.complaints, []
        return complaints

    def _put_packed(self, name: str, data: bytes) -> None:
        self._packed.put(name, data)
        files = self._files_of(name.partition(".")[0], look=False)
        if files and any(item.name == name for item in files):
            with contextlib.suppress(OSError):  # a larger blob of this name from before
                os.unlink(self._path(name))
        self._puts += 1
        if self._puts % 256 == 0:
            self._compact_if_wasteful()

    def _compact_if_wasteful(self, without: Sequence[str] = ()) -> set[str] | None:
        """Write the logs anew without these blobs if that gives back much; which were there, None if it does
        not.
        """
        return self._compact(without) if self._packed.is_wasteful(without) else None

    def _compact(self, without: Sequence[str]) -> set[str] | None:
        """Write the logs anew without these blobs; which were there, None if it cannot be done."""
        with self.lock("packed", 0) as held, contextlib.suppress(OSError):
            if held:
                aside = self._temporary / f"{writer_name()}-{next(_counter)}"
                return self._packed.compact(aside, self._retire, without)
        return None

    def _retire(self, log: Path, damaged: bool) -> None:
        if damaged:
            with contextlib.suppress(OSError):
                (self.folder / "aside").mkdir(mode=0o700, exist_ok=True)
                os.replace(log, self.folder / "aside" / log.name)
                return
        os.unlink(log)

    def _prepare(self) -> None:
        """Make the folders; the first time also sweep."""
        if self._swept and os.path.isdir(self._temporary):
            return
        for folder in (self.folder, self._blobs, self._temporary):
            make_folder(folder)
        if not self._swept:
            self._swept = True
            self.sweep()

    def _path(self, name: str) -> str:
        # The last two characters of the group, since groups may share their beginning.
        return os.path.join(self._blobs_text, _shard(checked_name(name)), name)


def signature_of(status: os.stat_result) -> Signature:
    """What changes whenever somebody writes to the file."""
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def is_on_network(folder: Path) -> bool:
    """Whether files below `folder` lie on another machine, or on a file system that is not known to be
    local."""
    if sys.platform != "linux":
        return str(folder).startswith("\\\\")
    try:
        device = os.stat(folder).st_dev
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                left, _, right = line.partition(" - ")
                major, _, minor = left.split()[2].partition(":")
                if os.makedev(int(major), int(minor)) == device:
                    return right.startswith(NETWORK_FILE_SYSTEMS)
    except OSError:
        return True
    # Some file systems (btrfs subvolumes) show another device than their mount line; those are local.
    return False


def writer_name() -> str:
    """Names this process on this machine: host, pid and the time at which the process began."""
    global _writer
    if _writer[0] != os.getpid():
        _writer = os.getpid(), f"{_host()}-{os.getpid()}-{_start_of(os.getpid())}"
    return _writer[1]


_writer = (-1, "")


def is_running(pid: int, start: str) -> bool:
    """Whether the process of this machine with that pid and start time still lives."""
    if sys.platform == "linux":
        return _start_of(pid) == start
    if sys.platform != "win32":  # where signal 0 would end it
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass
    return True


_host_id: str | None = None


def _host() -> str:
    # The machine's own id tells two containers of one host name apart.
    global _host_id
    if _host_id is None:
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                boot = file.read()
            own = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
        except OSError:
            boot = own = ""
        _host_id = blake3.blake3(f"{_host_name()}{boot}{own}".encode()).hexdigest(8)
    return _host_id


def _host_name() -> str:
    if hasattr(os, "uname"):
        return os.uname().nodename
    import socket  # slow to import, and asked for before the first result

    return socket.gethostname()


def _start_of(pid: int) -> str:
    """Clock ticks since boot at which the process began; empty where that is not known or it is no more."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return ""


def _parse_writer(name: str) -> tuple[str, int, str]:
    host, pid, start = [*name.split("-"), "", "", ""][:3]
    return host, int(pid) if pid.isdigit() else 0, start


def _shard(name: str) -> str:
    return name.partition(".")[0][-2:].lower()


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _listed(folder: str | Path) -> Iterator[Item]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield Item(entry.name, status.st_size, status.st_mtime)
    except OSError:
        return


def _read_at(handle: int, offset: int, length: int) -> Buffer:
    if hasattr(os, "pread"):
        data = os.pread(handle, length, offset)
        if len(data) == length or not data:
            return data
    memory = bytearray(length)
    return memory[: _read_into(handle, memoryview(memory), offset, short_ok=True)]


def _read_into(handle: int, memory: memoryview, offset: int, *, short_ok: bool = False) -> int:
    done = 0
    while done < len(memory):
        if hasattr(os, "preadv"):
            count = os.preadv(handle, [memory[done:]], offset + done)
        else:
            os.lseek(handle, offset + done, os.SEEK_SET)
            data = os.read(handle, min(len(memory) - done, 1 << 24))
            count = len(data)
            memory[done : done + count] = data
        if count == 0:
            if short_ok:
                return done
            raise EOFError(f"{len(memory) - done} bytes are missing")
        done += count
    return done


def reserve(handle: int, size: int, folder: str | Path) -> None:
    """Have the file system set aside the room of a large new file.

    It then need not find the room piece by piece; and where the file takes another's place, ext4 first sends
    to the disk what has no room yet, which takes as long as writing itself.
    """
    if hasattr(os, "posix_fallocate") and not is_on_network(Path(folder)):
        with contextlib.suppress(OSError):  # the disk is full: writing will say so; or it cannot be done here
            os.posix_fallocate(handle, 0, size)


def _write_all(handle: int, parts: Sequence[Buffer]) -> int:
    """Write the parts, joining small ones: one system call each would dominate."""
    written = 0
    small: list[Buffer] = []
    waiting = 0
    for part in parts:
        flat = memoryview(part).cast("B")
        if len(flat) >= 1 << 18:
            written += _write(handle, b"".join(small)) + _write(handle, flat)
            small, waiting = [], 0
        else:
            small.append(flat)
            waiting += len(flat)
            if waiting >= 1 << 20:
                written += _write(handle, b"".join(small))
                small, waiting = [], 0
    return written + _write(handle, b"".join(small))


def _write(handle: int, data: Buffer) -> int:
    view = memoryview(data)
    done = 0
    while done < len(view):
        # Linux writes at most 2 GiB a call, Windows takes an int.
        done += os.write(handle, view[done : done + (1 << 30)])
    return done


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "it is read-only"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "it is no folder"
    if error.errno == errno.EDQUOT:
        return "the disk quota is used up"
    return error.strerror or str(error)
