"""Entries: what is stored under a key, signed, in one blob each.

    header     magic, version, lengths, times, BLAKE3 of the pickle, and the code that signs all of this
    table      a row for the pickle and one for each buffer: place, length, checksum, codec
    manifest   JSON
    pickle     protocol 5
    buffers    raw bytes, each beginning at a multiple of 64

The code is a keyed BLAKE3 of the entry's name, the header, the table and the manifest; the header holds the
digest of the pickle, the table the checksums of the buffers, so it covers everything. It is checked before
the manifest is believed, and the pickle's digest before the pickle is handed out. Buffers are data, never
executed; small ones are checked on each read, large ones once in a boot as long as their file is untouched.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from json import loads
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import blake3
import xxhash

from ipyparcache import settings
from ipyparcache.errors import DamagedEntry, StoreUnavailable
from ipyparcache.storage.adapter import BackendStore
from ipyparcache.storage.eviction import EntryInfo, names_beyond, names_to_evict
from ipyparcache.storage.ledger import Ledger
from ipyparcache.storage.local import MAPPED, LocalStore
from ipyparcache.storage.locks import Locks
from ipyparcache.storage.signing import key_id, signing_key
from ipyparcache.storage.store import Blob, Buffer, Store, StoreBackendBase

FORMAT = 1
"""Version of the format; another one is another folder, so versions do not meet."""

Manifest: TypeAlias = dict[str, Any]

_MAGIC = b"\x93ipyparc"
_HEADER = struct.Struct(
    "<8sHHIQdd32s"
)  # magic, version, unused, rows, manifest, created, seconds, digest of pickle
_CODE = 32
_ROW = struct.Struct("<QQQ16s8s")  # offset, stored bytes, bytes, xxh3-128 (none for the pickle), codec
_ALIGNMENT = 64
_FIRST_READ = 4096
_TO_JSON = json.JSONEncoder(separators=(",", ":")).encode
_REMEMBERED = 8
"""How many of its latest keys are kept for an identity."""

_KEPT_SHARE = 0.9
"""Share of the budget to which the store shrinks once it is over, so that not every write evicts."""


class Row(NamedTuple):
    """Where one part of the payload lies."""

    offset: int
    stored: int
    length: int
    checksum: bytes
    codec: str


class Entry:
    """One entry whose manifest is authentic; its payload is read by `payload`.

    `blob` is the blob, if it is at hand as a whole.
    """

    __slots__ = (
        "_blob",
        "_digest",
        "_entries",
        "_rows",
        "created",
        "key",
        "manifest",
        "seconds",
        "size",
        "trace",
    )

    def __init__(
        self,
        key: str,
        trace: str,
        manifest: Manifest,
        size: int,
        created: float,
        seconds: float,
        entries: Entries,
        digest: bytes,
        rows: tuple[Row, ...],
        blob: Blob | None,
    ):
        self.key = key
        self.trace = trace
        self.manifest = manifest
        self.size = size
        self.created = created
        self.seconds = seconds
        self._entries = entries
        self._digest = digest
        self._rows = rows
        self._blob = blob

    @property
    def name(self) -> str:
        """What the store calls it."""
        return f"{self.key}.{self.trace}"

    def payload(self, *, check: bool = False) -> tuple[Buffer, list[memoryview]]:
        """The pickle and its buffers, verified; buffers are writable and belong to the caller.

        Buffers of 1 MiB and more are mapped copy-on-write where that is safe. `check` reads and checks all of
        them even if that was done before.

        Raises
        ------
        DamagedEntry
            If it is not what was stored; it has been set aside then.
        """
        return self._entries.read_payload(self, check=check)

    def file(self, *, unpack: bool = False) -> str | None:
        """The file in which this entry lies alone and uncompressed, for `buffer_offset`; None if there is
        none, and it cannot be given one by `unpack`."""
        compressed = any(row.codec for row in self._rows)
        return None if compressed else self._entries.store.path(self.name, unpack=unpack)

    def buffer_offset(self, number: int) -> int:
        """Where a buffer begins in `file`."""
        return self._rows[number + 1].offset

    def store_token(self) -> object | None:
        """Is the same as long as the entry is untouched; see `Store.token`."""
        return self._blob.token if self._blob is not None else self._entries.store.token(self.name)

    def used(self) -> None:
        """A hit took its value from this entry: counts for eviction and statistics."""
        self._entries.ledger.note_use(self.name, self.seconds)


def is_entry(name: str) -> bool:
    """Whether a blob of that name is an entry; the others tell which cells were stored under which inputs."""
    return not name.startswith("i-")


class Entries:
    """The entries of one store, signed and checked with one key. Safe to use from several threads."""

    def __init__(self, store: Store, key: bytes, ledger: Ledger, *, budget: int | None = None):
        self.store = store
        self.ledger = ledger
        self._key = key
        self._budget = budget
        self._lock = threading.Lock()
        self._complaints: list[str] = []
        self._total: int | None = None  # bytes in the store as far as this process knows
        _alive.add(self)

    @property
    def secret(self) -> bytes:
        """32 bytes that only this user knows, derived from the signing key, to key digests of what may be
        secret."""
        return blake3.blake3(self._key, derive_key_context="ipyparcache digests of secrets").digest()

    def under(self, key: str) -> list[Entry]:
        """The entries under this key, newest first; damaged and foreign ones are set aside and complained
        about."""
        found = []
        for name, blob in self.store.open_group(key):
            entry = self._entry_in(name, blob)
            if entry is not None:
                found.append(entry)
        if len(found) > 1:
            found.sort(key=lambda entry: entry.created, reverse=True)
        return found

    def write(
        self,
        key: str,
        trace: str,
        manifest: Mapping[str, Any] | bytes,
        pickled: Buffer,
        buffers: Sequence[Buffer | pickle.PickleBuffer] = (),
        *,
        seconds: float = 0.0,
        codec: tuple[str, int | None] | None = None,
        own_file: bool = False,
    ) -> int:
        """Store one entry, in place of an older one of that key and trace; bytes written.

        `manifest` is a mapping that JSON can hold, or the JSON of one.
        `seconds` is the run time that a hit will save. With `codec`, a name and level, pickle and buffers are
        compressed; what is compressed cannot be mapped. With `own_file` it is never packed with others.

        Raises
        ------
        StoreUnavailable
            If it cannot be stored; nothing of it is left then.
        """
        name = f"{key}.{trace}"
        text = manifest if isinstance(manifest, bytes) else _TO_JSON(manifest).encode()
        raws = [memoryview(b.raw() if isinstance(b, pickle.PickleBuffer) else b).cast("B") for b in buffers]
        start = _HEADER.size + _CODE + _ROW.size * (1 + len(raws)) + len(text)
        stored, how = (pickled, b"") if codec is None else _encoded(pickled, codec)
        digest = blake3.blake3(stored).digest()
        table = [_ROW.pack(start, len(stored), len(pickled), bytes(16), how)]
        body: list[Buffer] = [stored]
        end = start + len(stored)
        for raw in raws:
            offset = -(-end // _ALIGNMENT) * _ALIGNMENT
            stored, how = (raw, b"") if codec is None else _encoded(raw, codec)
            table.append(_ROW.pack(offset, len(stored), len(raw), xxhash.xxh3_128_digest(stored), how))
            body += [bytes(offset - end), stored]
            end = offset + len(stored)
        if end > self.budget():
            raise StoreUnavailable(
                self.store.location,
                f"a result of {end:,} bytes is more than it may take, {self.budget():,}; set max-size",
            )
        header = _HEADER.pack(_MAGIC, FORMAT, 0, len(table), len(text), time.time(), seconds, digest)
        rows = b"".join(table)
        code = self._code(name, header, rows, text)
        written = self.store.put(name, [header, code, rows, text, *body], own_file=own_file)
        if raws and max(map(len, raws)) >= MAPPED:
            self._note_written(name)
        self._account(written)
        return written

    def lock(self, key: str, timeout: float | None = None) -> AbstractContextManager[bool]:
        """Be the only one, in all processes, who works on this key; see `Store.lock` for what is yielded."""
        return self.store.lock(key, timeout)

    def remember(self, identity: str, key: str) -> None:
        """Note that a run of `identity` had this key, for `recent`.

        Raises
        ------
        StoreUnavailable
            If it cannot be noted.
        """
        group = f"i-{identity}"
        older = [item for item in self.store.group(group) if item.name != f"{group}.{key}"]
        older.sort(key=lambda item: item.modified)
        self.store.remove([item.name for item in older[: max(0, len(older) - _REMEMBERED + 1)]])
        self.store.put(f"{group}.{key}", [b"-"])

    def recent(self, identity: str) -> list[Manifest]:
        """The newest manifest under each of the latest keys of `identity`, latest first."""
        found = []
        for item in sorted(self.store.group(f"i-{identity}"), key=lambda item: item.modified, reverse=True):
            entries = self.under(item.name.partition(".")[2])
            if entries:
                found.append(entries[0].manifest)
            else:
                self.store.delete(item.name)
        return found

    def all(self) -> Iterator[Entry]:
        """Every entry that this key signed, in no order."""
        for item in self.store.items():
            if is_entry(item.name):
                entry = self._opened(item.name)
                if entry is not None:
                    yield entry

    def infos(self) -> Iterator[EntryInfo]:
        """What eviction knows about every blob of the store, entries or not; each is opened."""
        uses = self.ledger.uses()
        for name, size, modified in self.store.items():
            use = uses.get(name)
            last = modified if use is None else max(use.last, modified)
            yield EntryInfo(name, size, modified, last, self._seconds_of(name))

    def last_uses(self) -> list[tuple[float, str, int]]:
        """Last use, name and size of every blob of the store, none of which is opened."""
        uses = self.ledger.uses()
        # Plain tuples: the garbage collector lets go of those that hold numbers and strings only.
        return [
            (modified if name not in uses else max(uses[name].last, modified), name, size)
            for name, size, modified in self.store.items()
        ]

    def delete(self, entry: Entry) -> bool:
        """Take one entry away; whether it was still there."""
        return self.remove([entry.name]) == 1

    def remove(self, names: Iterable[str]) -> int:
        """Take blobs away by name; how many entries were still there."""
        gone = self.store.remove(names)
        self.ledger.forget(gone)
        self._total = None
        return sum(map(is_entry, gone))

    def clear(self) -> int:
        """Take everything away; how many entries that were."""
        return self.remove([item.name for item in self.store.items()])

    def wipe(self) -> None:
        """Take everything away, with the folder where the store is one."""
        self.ledger.forget({item.name for item in self.store.items()})
        self.store.wipe()
        self._total = None

    def prune(self, max_size: int | None = None, older: float | None = None) -> list[str]:
        """Delete what was not used for `older` seconds, then the least useful until `max_size` bytes are
        kept."""
        infos = list(self.infos())
        now = time.time()
        uses = [(info.last_use, info.name, info.size) for info in infos]
        gone = names_beyond(uses, now, oldest=older) if older is not None else []
        if max_size is not None:
            out = set(gone)
            gone += names_to_evict([info for info in infos if info.name not in out], max_size, now)
        self.remove(gone)
        return gone

    def verify(self) -> tuple[int, list[str]]:
        """Read and check every entry: how many are right, and the names of those that were set aside."""
        right, wrong = 0, []
        for item in list(self.store.items()):
            if not is_entry(item.name):
                continue
            entry = self._opened(item.name)
            try:
                if entry is not None:
                    entry.payload(check=True)
                    right += 1
                    continue
            except DamagedEntry:
                pass
            wrong.append(item.name)
        return right, wrong

    def take_complaints(self) -> list[str]:
        """What was wrong with entries met since the last call, one line each, for the caller to show."""
        complaints = self.store.take_complaints()
        if self._complaints:
            with self._lock:
                complaints, self._complaints = complaints + self._complaints, []
        return complaints

    def budget(self) -> int:
        """Bytes that the store may take."""
        if self._budget is None:
            capacity = self.store.capacity()
            self._budget = 20 * 10**9 if capacity is None else min(20 * 10**9, capacity // 10)
        return self._budget

    def read_payload(self, entry: Entry, *, check: bool) -> tuple[Buffer, list[memoryview]]:
        """What `Entry.payload` documents."""
        blob = entry._blob or self.store.open(entry.name)
        if blob is None:
            raise DamagedEntry(entry.name, "it is gone")
        with blob:
            try:
                return self._payload_of(entry, blob, check)
            except (DamagedEntry, EOFError, OSError) as error:
                reason = error.reason if isinstance(error, DamagedEntry) else str(error)
                self._set_aside(entry.name, reason)
                raise DamagedEntry(entry.name, reason) from error

    def _payload_of(self, entry: Entry, blob: Blob, check: bool) -> tuple[Buffer, list[memoryview]]:
        first, *rest = entry._rows
        pickled = blob.read(first.offset, first.stored)
        if blake3.blake3(pickled).digest() != entry._digest:
            raise DamagedEntry(entry.name, "its pickle was changed")
        pickled = _decoded(pickled, first)
        known = not check and blob.signature is not None and self.ledger.checked(entry.name) == blob.signature
        buffers = []
        large = False
        for row in rest:
            memory = blob.writable(row.offset, row.stored)
            if row.stored < MAPPED or not known:
                large |= row.stored >= MAPPED
                if xxhash.xxh3_128_digest(memory) != row.checksum:
                    raise DamagedEntry(entry.name, "a buffer was changed")
            buffers.append(memoryview(_decoded(memory, row)) if row.codec else memory)
        if large and blob.signature is not None:
            self.ledger.note_checked(entry.name, blob.signature)
        return pickled, buffers

    def _opened(self, name: str) -> Entry | None:
        """The entry of this name if it is authentic; else it is set aside."""
        blob = self.store.open(name)
        return None if blob is None else self._entry_in(name, blob)

    def _entry_in(self, name: str, blob: Blob) -> Entry | None:
        with blob:
            try:
                return self._parsed(name, blob)
            except (DamagedEntry, OSError) as error:
                self._set_aside(name, error.reason if isinstance(error, DamagedEntry) else str(error))
                return None

    def _parsed(self, name: str, blob: Blob) -> Entry:
        front = memoryview(blob.read(0, _FIRST_READ))
        if len(front) < _HEADER.size + _CODE:
            raise DamagedEntry(name, "it is too short")
        magic, version, _, count, text_length, created, seconds, digest = _HEADER.unpack_from(front)
        if magic != _MAGIC or version != FORMAT:
            raise DamagedEntry(name, "it is no entry of this format")
        start = _HEADER.size + _CODE
        text_start = start + count * _ROW.size
        end = text_start + text_length
        if end > blob.size:
            raise DamagedEntry(name, "it is too short")
        if end > len(front):
            front = memoryview(blob.read(0, end))
        header, code = bytes(front[: _HEADER.size]), bytes(front[_HEADER.size : start])
        rows, text = bytes(front[start:text_start]), bytes(front[text_start:end])
        if len(text) != text_length or self._code(name, header, rows, text) != code:
            raise DamagedEntry(name, "its signature is wrong")
        table = tuple(
            Row(offset, stored, length, checksum, codec.rstrip(b"\0").decode("ascii"))
            for offset, stored, length, checksum, codec in _ROW.iter_unpack(rows)
        )
        if blob.size != table[-1].offset + table[-1].stored:
            raise DamagedEntry(name, "it is cut short")
        key, _, trace = name.partition(".")
        whole = blob if blob.is_whole else None
        return Entry(key, trace, loads(text), blob.size, created, seconds, self, digest, table, whole)

    def _code(self, name: str, header: bytes, rows: bytes, text: bytes) -> bytes:
        # Every part has a fixed length or one that the header states, but for the name, which is counted
        # here.
        text = b"".join((len(name).to_bytes(8, "little"), name.encode(), header, rows, text))
        return blake3.blake3(text, key=self._key).digest()

    def _set_aside(self, name: str, reason: str) -> None:
        self.store.set_aside(name)
        with self._lock:
            self._complaints.append(
                f"a cache entry was damaged ({reason}) and has been set aside: {name[:16]}…"
            )

    def _seconds_of(self, name: str) -> float:
        blob = self.store.open(name)
        if blob is None:
            return 0.0
        with blob:
            front = blob.read(0, _HEADER.size)
        # Unauthenticated: a forged cost can only keep a forged entry.
        return float(_HEADER.unpack(front)[6]) if len(front) == _HEADER.size and front[:8] == _MAGIC else 0.0

    def _note_written(self, name: str) -> None:
        """The file just written needs no check by this machine."""
        blob = self.store.open(name)
        if blob is not None:
            with blob:
                if blob.signature is not None:
                    self.ledger.note_checked(name, blob.signature)

    def _account(self, written: int) -> None:
        total = self._total
        if total is None:
            total = sum(item.size for item in self.store.items())
        else:
            total += written
        budget = self.budget()
        if total > budget:
            self.remove(names_to_evict(self.infos(), int(budget * _KEPT_SHARE), time.time()))
            total = None
        self._total = total


def _encoded(data: Buffer, codec: tuple[str, int | None]) -> tuple[Buffer, bytes]:
    """What to store of a part, and the name of its codec; as it is where compressing does not make it
    smaller."""
    if len(data) > 100:
        from ipyparcache.storage.compression import compress_block

        smaller = compress_block(*codec, data)
        if len(smaller) < len(data):
            return smaller, codec[0].encode("ascii")
    return data, b""


def _decoded(data: Buffer, row: Row) -> Buffer:
    if not row.codec:
        return data
    from ipyparcache.storage.compression import decompress_into

    memory = bytearray(row.length)
    decompress_into(row.codec, data, memoryview(memory))
    return memory


_opened: dict[tuple[str, bytes, str, int | None], Entries] = {}
_alive: weakref.WeakSet[Entries] = weakref.WeakSet()
_opened_lock = threading.Lock()


def open_entries(location: str | os.PathLike[str] | None = None) -> Entries:
    """The entries in the folder `location`, or in that of the settings; the same object for the same folder.

    Nothing is made on disk before the first write, but for the signing key.

    Raises
    ------
    StoreUnavailable
        If there is no signing key and none can be made.
    """
    now = settings.current()
    folder = os.path.abspath(os.path.expanduser(os.fspath(location))) if location is not None else now.dir
    key = signing_key(Path(now.key_file), folder)
    state = settings.user_folder("state")
    with _opened_lock:
        entries = _opened.get((folder, key, state, now.max_size))
        if entries is None:
            # One folder a format and key: users of one folder do not meet each other's entries.
            root = Path(folder) / f"v{FORMAT}-{key_id(key)}"
            which = blake3.blake3(os.fsencode(root)).hexdigest(8)
            ledger = Ledger(Path(state) / f"uses-{which}.log")
            entries = Entries(LocalStore(root), key, ledger, budget=now.max_size)
            _opened[folder, key, state, now.max_size] = entries
    return entries


def entries_over(backend: StoreBackendBase, location: str) -> Entries:
    """The entries in a backend that a third party wrote.

    Raises
    ------
    StoreUnavailable
        If there is no signing key and none can be made.
    """
    now = settings.current()
    key = signing_key(Path(now.key_file), location)
    state = Path(settings.user_folder("state"))
    which = blake3.blake3(f"{type(backend).__qualname__} {location}".encode()).hexdigest(8)
    locks = Locks(state / "locks" / which)
    return Entries(
        BackendStore(backend, location, locks), key, Ledger(state / f"uses-{which}.log"), budget=now.max_size
    )


def close_entries() -> None:
    """Close the files that opened stores keep; each is opened again when it is needed."""
    with _opened_lock:
        opened = list(_alive)
        _opened.clear()
    for entries in opened:
        entries.ledger.flush()
        entries.store.close()
