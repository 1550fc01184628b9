"""Messages and memory between the calling process and one worker.

Small messages go through a socket; everything large lies in memory that both sides can reach. A worker has a
`Block`: a few words that both map (which batch it runs, how many of its tasks are committed), two ring
slots for outcomes, and areas for larger data. The outcome of a task is written to the slot before the next
task starts, so it survives the worker; a batch uses the slot and the areas that the other outstanding batch
does not use, so no allocator and no lock is needed.

Two kinds: `memfd` (Linux: anonymous files passed over sockets, nothing to leak) and `named` (files in a
private folder and stream sockets, for other systems; forced by IPYPARCACHE_TRANSPORT=portable).
"""

from __future__ import annotations

import contextlib
import marshal
import mmap
import os
import select
import struct
import sys
import time
from array import array
from collections.abc import Iterable, Sequence

from ipyparcache.lean import socket

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
Message: TypeAlias = "tuple[Any, ...]"

INLINE = 32 << 10  # larger payloads go through memory: a socket message stays far below the send buffer
OUT_OF_BAND = 64 << 10  # a buffer of this size leaves the pickle
IN_LARGE_PAGES = 4 << 20  # a buffer of this size is shared, and mapped, in large pages where they can be had
LARGE = 1 << 20  # a buffer of this size is shared by content, one copy for all workers
NO_REFERENCES = 2  # version of marshal that does not look up each object: numbers take a fifth of the time
ALIGNMENT = 64
MAPPED_FROM = 1 << 20  # an outcome of this size is copied through a mapping
RECEIVE = 192 << 10
SPIN = 0.0003  # seconds for which a message is looked for before a process sleeps: waking it takes longer
_CLOSED_ON_EXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_NO_WAIT = int(getattr(socket, "MSG_DONTWAIT", 0))

# Words at the start of a block, each 8 bytes and written by one side only.
BATCH, COMMITTED, CANCEL, LOADED, STARTED, LIMIT = range(6)
ENDED, EVENTS = 6, 10  # one word a slot
HEADER = 4096
# LIMIT holds a batch's number above, and below it the position that must not be begun; ENDED, how many
# tasks of it were committed.
POSITION_BITS = 24
SLOTS = 4  # batches that a worker may hold; each has a slot and areas of its own
SLOT = 512 << 10
MAPPED = HEADER + SLOTS * SLOT
_FAR = 1 << 40  # areas of one sparse file, so far apart that none meets the next
# The areas of a block.
RING, DOWN, UP, LOG = 0, 1, 1 + SLOTS, 1 + 2 * SLOTS  # all but the ring have one area a slot
AREAS = 1 + 3 * SLOTS


def can_memfd() -> bool:
    """Whether anonymous files and their passing over sockets are to be used."""
    return (
        os.environ.get("IPYPARCACHE_TRANSPORT", "") != "portable"
        and sys.platform == "linux"
        and hasattr(os, "memfd_create")
    )


def anonymous_file(name: str, size: int = 0) -> int:
    """Descriptor of a new file in memory."""
    fd = os.memfd_create(f"ipyparcache-{name}", os.MFD_CLOEXEC)
    if size:
        os.ftruncate(fd, size)
    return fd


def write_at(fd: int, offset: int, parts: Sequence[Buffer]) -> int:
    """Write the parts one after another from `offset`; return the offset behind them."""
    for start in range(0, len(parts), 512):  # IOV_MAX is 1024
        views = [memoryview(part).cast("B") for part in parts[start : start + 512]]
        while views:
            written = os.pwritev(fd, views, offset)
            offset += written
            while views and written >= len(views[0]):
                written -= len(views[0])
                views.pop(0)
            if written:
                views[0] = views[0][written:]
    return offset


def new_memory(size: int) -> Buffer:
    """Writable memory of our own, without the zeros being written first where that can be avoided."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "empty"):
        return memoryview(numpy.empty(size, numpy.uint8))
    if size < LARGE:
        return bytearray(size)
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def read_into(fd: int, offset: int, target: Buffer) -> None:
    """Fill `target` from the file at `offset`; EOFError if it ends before."""
    view = memoryview(target).cast("B")
    while view:
        got = os.preadv(fd, [view], offset)
        if got <= 0:
            raise EOFError("shared memory is shorter than its description")
        view = view[got:]
        offset += got


class Block:
    """The memory shared with one worker."""

    def __init__(self, areas: Sequence[tuple[int, int]], folder: str | None = None):
        self.areas = list(areas)  # (descriptor, offset of the area in it)
        self.folder = folder
        self._named = len({fd for fd, _ in areas}) > 1
        self.memory = mmap.mmap(self.areas[RING][0], MAPPED)
        self._view = memoryview(self.memory)
        self.words = self._view[:HEADER].cast("Q")
        self._maps: dict[int, tuple[mmap.mmap, memoryview]] = {}  # areas that hold large data, by number

    @classmethod
    def create(cls) -> Block:
        """Make a new one in anonymous memory, or as files of a private folder."""
        if can_memfd():
            fd = anonymous_file("block", MAPPED)
            return cls([(fd, area * _FAR) for area in range(AREAS)])
        from ipyparcache.engine.folders import is_full, new_folder, remove_folder

        folder = new_folder()
        try:
            return cls._in_folder(folder)
        except OSError as error:
            remove_folder(folder)
            if not is_full(error):
                raise
        return cls._in_folder(new_folder(on_disk=True))

    @classmethod
    def _in_folder(cls, folder: str) -> Block:
        areas: list[tuple[int, int]] = []
        try:
            for area in range(AREAS):
                fd = os.open(f"{folder}/area{area}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                areas.append((fd, 0))
            # Touching a page that a full file system cannot give would be a SIGBUS: ask for the mapped part
            # now.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(areas[RING][0], 0, MAPPED)
            else:
                os.ftruncate(areas[RING][0], MAPPED)
        except BaseException:
            for fd, _ in areas:
                os.close(fd)
            raise
        return cls(areas, folder)

    @classmethod
    def open(cls, description: int | str) -> Block:
        """Open, on the worker, what `describe` names there."""
        if isinstance(description, int):
            return cls([(description, area * _FAR) for area in range(AREAS)])
        return cls([(os.open(f"{description}/area{area}", os.O_RDWR), 0) for area in range(AREAS)])

    def slot(self, number: int) -> int:
        """Where a slot begins in `memory`."""
        return HEADER + number * SLOT

    def write(self, area: int, offset: int, parts: Sequence[Buffer]) -> int:
        """Write to an area; return the offset behind what was written."""
        fd, base = self.areas[area]
        return write_at(fd, base + offset, parts) - base

    def read(self, area: int, offset: int, size: int) -> bytes:
        """Bytes of an area."""
        fd, base = self.areas[area]
        data = os.pread(fd, size, base + offset)
        while len(data) < size:
            more = os.pread(fd, size - len(data), base + offset + len(data))
            if not more:
                raise EOFError("shared memory is shorter than its description")
            data += more
        return data

    def read_into(self, area: int, offset: int, target: Buffer) -> None:
        """Fill `target` from an area."""
        fd, base = self.areas[area]
        read_into(fd, base + offset, target)

    def map_area(self, area: int, size: int, extend: bool) -> memoryview | None:
        """The first bytes of an area as memory, which costs less than half of a call of the system.

        `extend` gives the file that length, and is for the side that writes. None for named files: where the
        file system is full, a page that cannot be had would be a SIGBUS.
        """
        if self._named:
            return None
        fd, base = self.areas[area]
        length = 1 << max(size - 1, MAPPED_FROM).bit_length()
        if extend:
            os.pwrite(fd, b"\0", base + length - 1)  # never shortens the file, as a truncation might
        known = self._maps.get(area)
        if known is None or len(known[1]) < length:
            made = mmap.mmap(fd, length, offset=base)
            known = self._maps[area] = (made, memoryview(made))
        return known[1]

    @property
    def is_anonymous(self) -> bool:
        """Whether memory files can be passed beside it."""
        return not self._named

    def held(self) -> int:
        """Bytes of memory that the areas occupy."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in {fd for fd, _ in self.areas})

    def trim(self) -> None:
        """Give back what lies behind the mapped part; only while the worker runs nothing."""
        for fd in {fd for fd, _ in self.areas}:
            os.ftruncate(fd, MAPPED if fd == self.areas[RING][0] else 0)

    def let_go(self) -> None:
        """Unmap and close, in a forked child of a worker: who touches it from now on gets an error."""
        with contextlib.suppress(BufferError):  # a task holds a part of it
            self.close()

    def close(self) -> None:
        """Unmap and close; the files of a folder are removed by the side that made them."""
        for mapped, view in self._maps.values():
            view.release()
            mapped.close()
        self.words.release()
        self._view.release()
        self.memory.close()
        for fd in {fd for fd, _ in self.areas}:
            os.close(fd)
        if self.folder is not None:
            from ipyparcache.engine.folders import remove_folder

            remove_folder(self.folder)


class PacketChannel:
    """A socket whose messages are atomic (SOCK_SEQPACKET): one is received whole, by one side, or not
    at all.
    """

    def __init__(self, end: socket.socket):
        self.socket = end
        self._buffer = bytearray(RECEIVE)
        self._view = memoryview(self._buffer)
        self._within = 0.0  # milliseconds after which waiting ends; 0: never

    def fileno(self) -> int:
        """Descriptor to poll."""
        return self.socket.fileno()

    def send(self, message: Message, fds: Sequence[int] = (), wait: bool = True) -> bool:
        """Send one message; False if there is no room and `wait` is not set."""
        data = marshal.dumps(message)
        flags = 0 if wait else _NO_WAIT
        try:
            if fds:
                self.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))], flags)
            else:
                self.socket.send(data, flags)
        except BlockingIOError:
            return False
        return True

    def receive(self, wait: bool = True) -> tuple[Message, list[int]] | None:
        """The next message with its descriptors; None if there is none; EOFError if the other side is
        gone.
        """
        flags = _CLOSED_ON_EXEC if wait else _CLOSED_ON_EXEC | _NO_WAIT
        try:
            size, ancillary, _, _ = self.socket.recvmsg_into([self._buffer], 1100, flags)
        except BlockingIOError:
            return None
        except ConnectionError as error:
            raise EOFError from error
        if size == 0:
            raise EOFError
        fds: list[int] = []
        for _, _, data in ancillary:
            fds.extend(struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4]))
        return marshal.loads(self._view[:size]), fds

    def receive_within(self, milliseconds: float) -> tuple[Message, list[int]] | None:
        """The next message, or None if none comes in time, by one call of the system."""
        if milliseconds != self._within:
            seconds, rest = divmod(max(milliseconds, 0.001), 1000)
            limit = struct.pack("ll", int(seconds), int(rest * 1000))
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._within = milliseconds
        return self.receive()

    def close(self) -> None:
        """Close the descriptor."""
        self.socket.close()


class StreamChannel:
    """The same over a stream socket: a length, then the message; no descriptors travel."""

    def __init__(self, end: socket.socket):
        self.socket = end
        self._pending = bytearray()

    def fileno(self) -> int:
        """Descriptor to poll."""
        return self.socket.fileno()

    def send(self, message: Message, fds: Sequence[int] = (), wait: bool = True) -> bool:
        """Send one message; False if there is no room and `wait` is not set."""
        if fds:
            raise ValueError("descriptors do not travel over a stream")
        data = marshal.dumps(message)
        if not wait:
            writable = select.poll()
            writable.register(self.socket, select.POLLOUT)
            if not writable.poll(0):
                return False
        self.socket.sendall(len(data).to_bytes(4, "little") + data)
        return True

    def receive(self, wait: bool = True) -> tuple[Message, list[int]] | None:
        """The next message; None if there is none; EOFError if the other side is gone."""
        while True:
            if len(self._pending) >= 4:
                size = int.from_bytes(self._pending[:4], "little") + 4
                if len(self._pending) >= size:
                    message = marshal.loads(self._pending[4:size])
                    del self._pending[:size]
                    return message, []
            try:
                data = self.socket.recv(1 << 16, 0 if wait else _NO_WAIT)
            except BlockingIOError:
                return None
            except ConnectionError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            self._pending += data

    def receive_within(self, milliseconds: float) -> tuple[Message, list[int]] | None:
        """The next message, or None if none comes in time."""
        until = time.monotonic() + milliseconds / 1000
        waiting = select.poll()
        waiting.register(self.socket, select.POLLIN)
        while (received := self.receive(wait=False)) is None:
            if not waiting.poll(max(0.0, until - time.monotonic()) * 1000):
                return None
        return received

    def close(self) -> None:
        """Close the descriptor."""
        self.socket.close()


Channel: TypeAlias = PacketChannel | StreamChannel
_CAN_SPIN = hasattr(os, "sched_yield") and (os.cpu_count() or 1) > 1


def receive_soon(channel: Channel) -> tuple[Message, list[int]] | None:
    """The next message if it comes within `SPIN`, without sleeping; None if it does not."""
    if _CAN_SPIN:
        until = time.monotonic() + SPIN
        while time.monotonic() < until:
            if (received := channel.receive(wait=False)) is not None:
                return received
            os.sched_yield()  # the other side first, if it waits for this processor
    return None


class Shared:
    """Bytes that several workers read: written once, passed by descriptor, or by name.

    Cut into several files written by as many threads when large, because one file's lock makes threads that
    write into it wait for each other; the worker maps the files side by side.
    """

    def __init__(self, parts: Sequence[Buffer], writers: int = 1):
        self.size = 0
        self.fds: list[int] = []
        self.sizes: list[int] = []
        self._digests: list[bytes] = []
        self._maker = os.getpid()
        self.folder: str | None = None
        if can_memfd():
            self._write_or_close(parts, writers)
            return
        from ipyparcache.engine.folders import is_full, new_folder

        self.folder = new_folder()
        try:
            self._write_or_close(parts, writers)
        except OSError as error:
            if not is_full(error):
                raise
            # Memory for files is short where files on disk may still have room.
            self.size, self.sizes, self._digests = 0, [], []
            self.folder = new_folder(on_disk=True)
            self._write_or_close(parts, writers)

    def _write_or_close(self, parts: Sequence[Buffer], writers: int) -> None:
        try:
            self._write(parts, writers)
        except BaseException:
            self.close()
            raise

    def _new_file(self, size: int) -> int:
        if self.folder is None:
            fd = anonymous_file("shared", size)
        else:
            fd = os.open(f"{self.folder}/{len(self.fds)}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.ftruncate(fd, size)
        self.fds.append(fd)
        self.sizes.append(size)
        self.size += size
        return fd

    def _write(self, parts: Sequence[Buffer], writers: int) -> None:
        if len(parts) > 1 or memoryview(parts[0]).nbytes < IN_LARGE_PAGES:
            fd = self._new_file(max(sum(memoryview(part).nbytes for part in parts), 1))
            write_at(fd, 0, parts)
            return
        import threading

        import xxhash

        from ipyparcache.engine.mapping import CHUNK, HUGE, fill

        whole = memoryview(parts[0]).cast("B")
        step = -(-len(whole) // writers)
        step += -step % HUGE
        failed: list[BaseException] = []

        def work(number: int, fd: int, piece: memoryview) -> None:
            hashed = xxhash.xxh3_128()
            try:
                # Hashed while the chunk is in the cache, which makes it nearly free.
                done = fill(fd, piece, hashed.update) if self.folder is None else 0
                for start in range(done, len(piece), CHUNK):
                    part = piece[start : start + CHUNK]
                    write_at(fd, start, [part])
                    hashed.update(part)
                self._digests[number] = hashed.digest()
            except BaseException as error:
                failed.append(error)

        threads = []
        for number, start in enumerate(range(0, len(whole), step)):
            piece = whole[start : start + step]
            self._digests.append(b"")
            given = (number, self._new_file(len(piece)), piece)
            threads.append(threading.Thread(target=work, args=given, daemon=True))
        for thread in threads[1:]:
            thread.start()
        threads[0].run()
        for thread in threads[1:]:
            thread.join()
        if failed:
            raise failed[0]

    def digest(self) -> tuple[bytes, ...]:
        """XXH3 of each file."""
        import xxhash

        if not self._digests:
            for fd, size in zip(self.fds, self.sizes, strict=True):
                with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
                    self._digests.append(xxhash.xxh3_128_digest(mapped))
        return tuple(self._digests)

    def describe(self) -> tuple[tuple[int, ...], str | None]:
        """What a message says of it; the descriptors travel beside the message."""
        return tuple(self.sizes), self.folder

    def passed(self) -> list[int]:
        """Descriptors that go with a message that holds `describe()`."""
        return [] if self.folder is not None else self.fds

    def close(self) -> None:
        """Close and remove; workers that have it mapped keep it."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        if self.folder is not None and self._maker == os.getpid():  # a forked child only closes
            from ipyparcache.engine.folders import remove_folder

            remove_folder(self.folder)
            self.folder = None

    def __del__(self) -> None:
        with contextlib.suppress(OSError, TypeError, AttributeError):
            self.close()


def map_shared(description: tuple[tuple[int, ...], str | None], fds: Iterable[int]) -> memoryview:
    """A private, writable mapping of a `Shared`; what is written to it is seen by no one else. Closes
    the fds.
    """
    sizes, folder = description
    files = (
        list(fds) if folder is None else [os.open(f"{folder}/{n}", os.O_RDONLY) for n in range(len(sizes))]
    )
    try:
        if len(files) == 1 and (folder is not None or sizes[0] < IN_LARGE_PAGES):
            mapping = mmap.mmap(
                files[0], sizes[0], flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
            return memoryview(mapping)
        from ipyparcache.engine.mapping import side_by_side

        return side_by_side(files, sizes)
    finally:
        for fd in files:
            os.close(fd)


def file_of(raw: memoryview) -> int:
    """Descriptor of a memory file that holds a copy of a buffer."""
    from ipyparcache.engine.mapping import fill

    fd = anonymous_file("result", raw.nbytes)
    try:
        done = fill(fd, raw, lambda part: None)
        if done < raw.nbytes:
            write_at(fd, done, [raw[done:]])
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_file(fd: int, size: int) -> memoryview:
    """A private, writable map of a memory file that nobody else has; a copy where it cannot be mapped."""
    from ipyparcache.engine.mapping import side_by_side

    try:
        return side_by_side([fd], [size])
    except OSError:  # too many maps
        memory = memoryview(new_memory(size))
        read_into(fd, 0, memory)
        return memory


def layout(payload: Buffer, buffers: Sequence[Buffer]) -> tuple[list[Buffer], list[tuple[int, int]]]:
    """Pack a payload and its buffers one behind another, aligned; the parts to write and (offset,
    size) of each.
    """
    parts: list[Buffer] = []
    places: list[tuple[int, int]] = []
    offset = 0
    for part in (payload, *buffers):
        gap = -offset % ALIGNMENT
        if gap:
            parts.append(bytes(gap))
            offset += gap
        size = memoryview(part).nbytes
        parts.append(part)
        places.append((offset, size))
        offset += size
    return parts, places
