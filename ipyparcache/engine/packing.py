"""What a call sends, as bytes and shared memory: its function, arguments, and objects that many tasks get."""

from __future__ import annotations

import marshal
import sys
from collections.abc import Sequence
from operator import itemgetter

from ipyparcache import pickling
from ipyparcache.engine.filebacked import belongs_into_a_file
from ipyparcache.engine.transport import INLINE, LARGE, NO_REFERENCES, OUT_OF_BAND, Shared, layout
from ipyparcache.engine.worker import SCALARS
from ipyparcache.lean import Record, pickle

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

    from ipyparcache.engine.batches import Batch
    from ipyparcache.engine.larges import Larges
    from ipyparcache.engine.pool import WorkerHandle

PLAIN_BUFFER = 4 << 10  # a buffer of an argument leaves the pickle from this size on: one copy less
MANY_BUFFERS = 2000  # more would not fit into the message that says where they are
CONTAINER = 10_000  # a container with so many elements is shared if several tasks get it
CONTAINERS = (list, tuple, dict, set, frozenset, bytes, bytearray, str)
SHARED_CONTAINERS = 4  # how many of them a call keeps

_larges: Larges | None = None


def the_larges() -> Larges:
    """The shared copies of large buffers of this process."""
    global _larges
    if _larges is None:
        from ipyparcache.engine.larges import Larges

        _larges = Larges()
    return _larges


def clear_larges() -> None:
    """Give back the memory of arrays that were shared with workers."""
    if _larges is not None:
        _larges.clear()


class SharedContainer:
    """An object that several tasks get, pickled once; `form` as that of `Packed`.

    What a flat one holds is kept if it is `watched`, to see later whether it has changed.
    """

    def __init__(
        self,
        number: int,
        value: Any,
        form: str,
        packed: tuple[Any, Shared | None, list[Any]],
        flat: bool,
        watched: bool,
    ):
        self.number = number
        self.value = value  # keeps its id from being given away
        self.form = form
        self.packet, self.shared, self.larges = packed
        self.snapshot: Any = None
        if flat and isinstance(value, (tuple, bytes, str, frozenset)):
            self.snapshot = value
        elif flat and watched:
            self.snapshot = list(value.items()) if isinstance(value, dict) else value.copy()


def _unchanged(container: SharedContainer) -> bool:
    """Whether a flat container is known to hold the very objects that it held when it was pickled."""
    value, snapshot = container.value, container.snapshot
    if value is snapshot:
        return True
    if snapshot is None:
        return False
    if isinstance(value, bytearray):
        return bool(value == snapshot)
    if len(value) != len(snapshot):
        return False
    if isinstance(value, dict):
        return all(
            one is key and other is item
            for (one, other), (key, item) in zip(value.items(), snapshot, strict=True)
        )
    if isinstance(value, set):
        return bool(value == snapshot)
    from operator import is_

    return all(map(is_, value, snapshot))


def _is_flat(value: Any) -> bool:
    """Whether a container holds nothing that could change without the container changing."""
    if isinstance(value, (bytes, bytearray, str)):
        return True
    atoms = SCALARS | {bytes}
    if isinstance(value, dict):
        return set(map(type, value)) <= atoms and set(map(type, value.values())) <= atoms
    return set(map(type, value)) <= atoms


def _marshalled(value: Any) -> bytes | None:
    """A flat container as the bytes that are read fastest; None if they cannot hold it."""
    if type(value) is bytearray:
        return None  # it would arrive as bytes
    try:
        return marshal.dumps(value)
    except ValueError:
        return None  # too long


def _numbers(value: Any) -> bytes | None:
    """A list or tuple of ints of 32 bits, or of floats, as bytes whose form shows that it holds nothing else.

    Every element takes the same number of bytes, of which the first tells its kind: a third of the time that
    asking each for its type takes.
    """
    if not isinstance(value, (list, tuple)):
        return None
    kind = type(value[0])
    mark, step = (b"i", 5) if kind is int else (b"g", 9)
    if kind not in (int, float) or type(value[-1]) is not kind or type(value[len(value) // 2]) is not kind:
        return None
    try:
        data = marshal.dumps(value, NO_REFERENCES)
    except ValueError:
        return None
    head = len(data) - step * len(value)
    return data if head == 5 and data[head::step] == mark * len(value) else None


class Packed(Record):
    """The pickled arguments of a batch, and of the batches that are parts of it."""

    __slots__ = ("buffers", "constants", "data", "form", "larges", "order", "where")

    def __init__(
        self,
        form: str,
        constants: list[tuple[int, SharedContainer]],
        data: Any,
        buffers: list[Any],
        order: tuple[int, ...],
        larges: list[Any],
        where: tuple[WorkerHandle, int, tuple[tuple[int, int], ...]] | None = None,
    ):
        self.form = form  # "m": marshalled columns, "p": pickled columns, "t": pickled triples
        self.constants = constants  # columns that are one shared object
        self.data = data  # bytes; None while they lie in `where` alone
        self.buffers = buffers
        self.order = order
        self.larges = larges
        self.where = where


def columns_of(rows: Sequence[Any]) -> list[Any]:
    """The rows of a batch, turned: one tuple a parameter.

    Not by `zip`, which makes an iterator for each row: so many at once have the garbage collector go over
    everything that the process holds.
    """
    width = len(rows[0])
    try:
        if width == 1:
            return [tuple([value for (value,) in rows])]  # by far the most frequent, in a third of the time
        if set(map(len, rows)) == {width}:
            return [tuple(map(itemgetter(at), rows)) for at in range(width)]
    except ValueError:
        pass
    raise ValueError("The rows of a batch differ in length.")


def _is_plain(column: tuple[Any, ...]) -> bool:
    """Whether the standard pickler does for these arguments what ours would do."""
    numpy = sys.modules.get("numpy")
    kinds = set(map(type, column)) - SCALARS - {bytes}
    if not kinds:
        return True
    if numpy is None or kinds != {getattr(numpy, "ndarray", None)}:  # none while it is being loaded
        return False
    return all(
        not value.dtype.hasobject
        and (value.dtype.isnative or value.flags.forc)
        and not belongs_into_a_file(value)
        for value in column
        if type(value) is numpy.ndarray
    )


class _Stack(Record):
    """Arrays of one shape as the rows of one array: a column of them is pickled and written at once."""

    __slots__ = ("rows",)

    def __init__(self, rows: Any):
        self.rows = rows

    def __reduce__(self) -> Any:
        return list, (self.rows,)


def _stacked(column: Any) -> Any:
    """A plain column, its arrays stacked where each would arrive as it is pickled alone."""
    if column is None or len(column) == 1:
        return column
    numpy = sys.modules.get("numpy")
    if numpy is None or set(map(type, column)) != {getattr(numpy, "ndarray", None)}:
        return column
    first = column[0]
    dtype, shape = first.dtype, first.shape
    if dtype.kind not in "biufc" or dtype.metadata is not None or not shape:
        return column
    if first.nbytes * len(column) >= LARGE or len(set(map(id, column))) < len(column):
        return column  # the same array twice is sent once
    if any(value.dtype is not dtype or value.shape != shape or not value.flags.carray for value in column):
        return column
    return _Stack(numpy.concatenate(column).reshape(len(column), *shape))


class Packing:
    """Pickles for one call; what was shared for it stays as long as it runs."""

    def __init__(self, version: str, keep_arguments: bool):
        self._version = version
        self._keep = keep_arguments  # tasks may be sent again after they have run
        self._seen: dict[tuple[int, int, int], Any] = {}
        self.pinned: dict[int, Any] = {}
        self._containers: dict[int, SharedContainer] = {}  # by id, oldest first
        self._numbers = 0

    def function(self, function: object) -> tuple[Any, Shared | None, list[Any]]:
        """Pickle the function of the call; what describes it, its memory and its large buffers."""
        buffers = pickling.Buffers(OUT_OF_BAND)
        payload = pickling.dump_function(function, self._version, buffers)
        if not buffers.taken and len(payload) <= INLINE:
            return (payload, None, None, ()), None, []
        return self._pack(payload, buffers.taken, trusted=False)

    def _pack(
        self, payload: bytes, buffers: Sequence[memoryview], trusted: bool
    ) -> tuple[Any, Shared | None, list[Any]]:
        """Describe a pickle for `Worker._load_packet`; the memory and the large buffers that go with it."""
        order: list[int] = []
        medium: list[memoryview] = []
        larges: list[Any] = []
        for raw in buffers:
            if raw.nbytes >= LARGE:
                large = self._share(raw, trusted)
                larges.append(large)
                order.append(-1 - large.number)
            else:
                order.append(len(medium))
                medium.append(raw)
        if not medium and len(payload) <= INLINE:
            return (payload, None, None, tuple(-1 - at for at in order)), None, larges
        parts, places = layout(payload, medium)
        shared = Shared(parts)
        return (None, shared.describe(), tuple(places), tuple(order)), shared, larges

    def _share(self, raw: memoryview, trusted: bool) -> Any:
        large = the_larges().share(raw, self._seen, trusted)
        self.pinned[large.number] = large
        return large

    def arguments(self, batch: Batch) -> Packed:
        """Pickle the arguments of a batch."""
        columns = columns_of(batch.rows)
        constants: list[tuple[int, SharedContainer]] = []
        plain = not batch.triples
        version = NO_REFERENCES
        for at, column in enumerate(columns):
            if plain and (kinds := set(map(type, column))) <= SCALARS and not self._is_long_text(column):
                if str in kinds:
                    version = marshal.version  # the same text many times is sent once
                continue
            container = self._container(column, batch)
            if container is None:
                plain = False
                continue
            columns[at] = None
            constants.append((at, container))
        if plain:
            return Packed("m", constants, marshal.dumps(tuple(columns), version), [], (), [])
        return self._pickled(batch, columns, constants)

    @staticmethod
    def _is_long_text(column: tuple[Any, ...]) -> bool:
        first = column[0]
        return type(first) is str and len(first) >= CONTAINER

    def _pickled(
        self, batch: Batch, columns: list[Any], constants: list[tuple[int, SharedContainer]]
    ) -> Packed:
        plain = all(column is None or _is_plain(column) for column in columns)
        try:
            for threshold in (PLAIN_BUFFER, LARGE):
                buffers = pickling.Buffers(threshold)
                if plain:
                    payload = pickle.dumps([*map(_stacked, columns)], 5, buffer_callback=buffers.keep)
                else:
                    payload = pickling.dumps(columns, self._version, buffers)
                if len(buffers.taken) <= MANY_BUFFERS:
                    break
        except Exception as error:
            raise pickle.PicklingError(f"Could not pickle the task to send: {error}") from error
        order: list[int] = []
        small: list[Any] = []
        larges: list[Any] = []
        for raw in buffers.taken:
            if raw.nbytes >= LARGE:
                large = self._share(raw, trusted=not batch.is_careful())
                larges.append(large)
                order.append(-1 - large.number)
            else:
                order.append(len(small))
                small.append(bytes(raw) if self._keep else raw)
        return Packed("t" if batch.triples else "p", constants, payload, small, tuple(order), larges)

    def _container(self, column: tuple[Any, ...], batch: Batch) -> SharedContainer | None:
        """The shared form of the large object that is the argument of every task of a batch, if it is one."""
        value = column[0]
        if type(value) not in CONTAINERS or len(value) < CONTAINER:
            return None
        if any(other is not value for other in column):
            return None
        careful = batch.is_careful()
        known = self._containers.get(id(value))
        if known is not None and (not careful or _unchanged(known)):
            return known
        if known is not None:
            del self._containers[id(value)]
        numbers = _numbers(value)
        flat = numbers is not None or _is_flat(value)
        if careful and not flat:
            return None  # what lies inside may change between two tasks, unseen
        buffers = pickling.Buffers(OUT_OF_BAND)
        form = "p"
        try:
            if not flat:
                payload = pickling.dumps(value, self._version, buffers)
            elif (marshalled := numbers or _marshalled(value)) is not None:
                form, payload = "m", marshalled
            else:
                payload = pickle.dumps(value, 5)
        except Exception as error:
            raise pickle.PicklingError(f"Could not pickle the task to send: {error}") from error
        self._numbers += 1
        packed = self._pack(payload, buffers.taken, trusted=not careful)
        made = SharedContainer(self._numbers, value, form, packed, flat, watched=careful)
        self._containers[id(value)] = made
        return made

    def superfluous(self) -> SharedContainer | None:
        """The oldest shared object, which is no longer kept, if there are more than are."""
        if len(self._containers) <= SHARED_CONTAINERS:
            return None
        return self._containers.pop(next(iter(self._containers)))

    def clear(self) -> None:
        """Let go of everything."""
        self._containers.clear()
        self.pinned.clear()
        self._seen.clear()
