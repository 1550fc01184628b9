"""Digests of NumPy arrays, scalars, dtypes and random generators.

A contiguous array is hashed where it lies. What counts: dtype with byte order, shape, whether the memory is
in C order, Fortran order or neither, whether it is writable, and the values, where one NaN is as good as
another. A memory-mapped array counts like one in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import ref

import numpy as np
import xxhash
from blake3 import blake3

from ipyparcache.digest import pages
from ipyparcache.digest.instances import InstanceKind, ReducedKind
from ipyparcache.digest.walk import (
    FAMILIES,
    KINDS,
    NAMED,
    Kind,
    Walk,
)
from ipyparcache.errors import Unrestorable

Array = np.ndarray[Any, Any]

_INLINE = 4096
_MANY = 1 << 20
_SMALL = 1 << 14  # items: a mask of them is cheaper than telling NumPy to be quiet
_PADDED_FLOAT = np.finfo(np.longdouble).nmant == 63  # x87: 10 bytes of number, then padding of any content


# Facts of structured dtypes met last, by identity; their names can be set in place.
_known_facts: dict[tuple[int, tuple[str, ...]], tuple[Any, tuple[object, ...]]] = {}


def dtype_facts(dtype: Any) -> tuple[object, ...]:
    """What tells a dtype from others, as nested tuples of primitives."""
    if dtype.fields is None:
        return _find_dtype_facts(dtype)
    key = id(dtype), dtype.names
    known = _known_facts.get(key)
    if known is None:
        facts = _find_dtype_facts(dtype)
        if any(field[0].fields is not None for field in dtype.fields.values()):
            return facts
        if len(_known_facts) > 100:
            _known_facts.clear()
        known = _known_facts[key] = dtype, facts
    return known[1]


def _find_dtype_facts(dtype: Any) -> tuple[object, ...]:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return ("sub", dtype_facts(base), tuple(shape))
    if dtype.fields is not None:
        rows = tuple(
            (
                name,
                *(dtype.fields[name][2:] or (None,)),
                int(dtype.fields[name][1]),
                dtype_facts(dtype.fields[name][0]),
            )
            for name in dtype.names or ()
        )
        return ("fields", dtype.type.__name__, dtype.itemsize, dtype.isalignedstruct, rows)
    if dtype.kind == "T":  # variable-width strings: the missing value counts, too
        return ("T", repr(dtype))
    if dtype.metadata:  # a note of the user's, which a cell may read
        return (dtype.str, repr(sorted(dtype.metadata.items(), key=repr)))
    return (dtype.str,)


def layout_of(array: Array) -> str:
    """`C`, `F` or `other`, as a copy of the array would keep it; with the axes that repeat one element."""
    if array.flags.c_contiguous:
        return "C"
    if array.flags.f_contiguous:
        return "F"
    repeated = [
        str(axis) for axis, stride in enumerate(array.strides) if stride == 0 and array.shape[axis] > 1
    ]
    return "other" + ",".join(repeated)


def content_digest(array: Array) -> bytes:
    """Digest of the values of an array without objects, in the order of its layout."""
    if _quickly.get():
        return quick_digest(array)
    contiguous = array.flags.c_contiguous or array.flags.f_contiguous
    known = pages.known_content(array) if contiguous else None
    if known is not None:
        return known
    if array.nbytes < _MANY:
        digest = _find_content(array, 1)
        if contiguous:
            pages.note_content(array, digest)
        return digest
    place = (array.__array_interface__["data"][0], array.dtype, array.shape, array.strides)
    if place in _remembered and _remembered[place][1]() is not None:
        return _remembered[place][0]
    digest = _find_again(array, place)
    if contiguous:
        pages.note_content(array, digest)
    if _remembering:
        owner = _owner_of(array)
        if owner.base is None:  # while it lives, nothing else can lie there
            _remembered[place] = digest, ref(owner)
    return digest


_SEEN_COUNT = 256
_seen: dict[tuple[object, ...], tuple[ref[Array], bytes | None, bytes]] = {}
"""Of large arrays by where they lie: the owner of the memory, a quick digest (empty before the second look,
None if the array was seen to change), and the digest of that content."""


def _find_again(array: Array, place: tuple[object, ...]) -> bytes:
    """Digest of a large array; where the same content was found before, that is seen by reading it once."""
    owner = _owner_of(array)
    known = _seen.pop(place, None)
    if known is None or known[0]() is not owner:
        quick: bytes | None = b""
        digest = _find_content(array, blake3.AUTO)
    else:
        _, before, digest = known
        quick = None if before is None else _byte_digest(array)
        if not before or before != quick:
            found = _find_content(array, blake3.AUTO)
            if before != b"" or found != digest:
                quick = None  # another look would cost more than it saves
            digest = found
    _seen[place] = ref(owner), quick, digest
    if len(_seen) > _SEEN_COUNT:
        _seen.pop(next(iter(_seen)), None)
    return digest


def _owner_of(array: Array) -> Array:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _find_content(array: Array, threads: int) -> bytes:
    hasher = blake3(max_threads=threads)
    for piece in _pieces(array):
        hasher.update(piece)
    return hasher.digest()


_quickly: ContextVar[bool] = ContextVar("quickly", default=False)


@contextmanager
def quickly() -> Iterator[None]:
    """Have the walks of this thread digest arrays by `quick_digest`."""
    token = _quickly.set(True)
    try:
        yield
    finally:
        _quickly.reset(token)


def quick_digest(array: Array) -> bytes:
    """Like `content_digest`, many times faster: for names that need not resist an attacker."""
    hasher = xxhash.xxh3_128()
    for piece in _pieces(array):
        hasher.update(piece)
    return hasher.digest()


_PLAIN_KINDS = frozenset("biufcmMSU")


def _byte_digest(array: Array) -> bytes:
    """What tells whether the bytes of an array are as before: one reading, in which each NaN is as it is."""
    if array.dtype.kind not in _PLAIN_KINDS or not (array.flags.c_contiguous or array.flags.f_contiguous):
        return quick_digest(array)
    flat = array if array.flags.c_contiguous else array.T
    return xxhash.xxh3_128_digest(flat.reshape(-1).view(np.uint8).data)


_remembering = 0
_remembered: dict[tuple[object, ...], tuple[bytes, ref[Array]]] = {}
"""Digests of large arrays by where they lie, with the owner of the memory."""


@contextmanager
def remembering() -> Iterator[None]:
    """Hash large arrays once, by their place in memory, while only our own code runs.

    What is stored is digested as it is, as its copy comes back over the same memory, and for the manifest.
    """
    global _remembering
    _remembering += 1
    try:
        yield
    finally:
        _remembering -= 1
        if not _remembering:
            _remembered.clear()


def contents_of(buffers: Sequence[Any]) -> list[list[Any] | None]:
    """Digests of the buffers of an entry in the making, for `pages.note_contents`; JSON-able.

    Parameters
    ----------
    buffers : sequence of PickleBuffer
        Those of arrays; for a table of long rows (the columns of a frame) each row has a digest of its own.
    """
    return [_content_of(buffer.raw().obj) for buffer in buffers]


def _content_of(owner: object) -> list[Any] | None:
    if not isinstance(owner, np.ndarray) or owner.nbytes < _MANY or owner.dtype.hasobject:
        return None
    plain = as_plain(owner)
    rows = []
    if plain.ndim == 2 and plain.flags.c_contiguous and 1 < len(plain) <= 1000 and plain[0].nbytes >= 1 << 16:
        rows = [content_digest(row).hex() for row in plain]
    return [plain.dtype.str, content_digest(plain).hex(), rows]


def _pieces(array: Array) -> Iterator[Any]:
    """The bytes of an array in runs, without padding and with every NaN made canonical."""
    if array.size == 0:
        return
    dtype = array.dtype
    if dtype.fields is not None:
        records = _record_bytes(array) if array.flags.c_contiguous and array.nbytes <= _MANY else None
        if records is not None:
            yield b"records"
            yield records
            return
        for name in dtype.names or ():
            yield from _pieces(array[name])
        return
    if array.flags.c_contiguous:
        yield from _flat_pieces(array.reshape(-1))
        return
    if array.flags.f_contiguous:
        yield from _flat_pieces(array.T.reshape(-1))
        return
    once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)
    array = array[once]
    rows = max(1, (64 << 20) // max(1, array.nbytes // array.shape[0]))
    for start in range(0, array.shape[0], rows):
        yield from _flat_pieces(np.ascontiguousarray(array[start : start + rows]).reshape(-1))


def _record_bytes(array: Array) -> Array | None:
    """The bytes of contiguous records without padding, if all fields are plain and free of NaN."""
    dtype = array.dtype
    used: list[int] = []
    for name in dtype.names or ():
        part, start = dtype.fields[name][:2]
        if part.kind not in "biuf" or part.itemsize > 8:
            return None
        if part.kind == "f" and np.isnan(array[name]).any():
            return None
        used.extend(range(start, start + part.itemsize))
    flat = array.reshape(-1).view(np.uint8)
    return flat if used == list(range(dtype.itemsize)) else flat.reshape(array.size, -1)[:, used].reshape(-1)


def _flat_pieces(flat: Array) -> Iterator[Any]:
    kind = flat.dtype.kind
    if kind == "c":
        flat = flat.view(flat.dtype.type(0).real.dtype.newbyteorder(flat.dtype.byteorder))
        kind = "f"
    if kind == "f":
        if flat.size <= _SMALL:
            clean = not np.isnan(flat).any()
        else:
            with np.errstate(all="ignore"):
                clean = not np.isnan(np.minimum.reduce(flat))
        if _PADDED_FLOAT and flat.dtype.itemsize > 10 and flat.dtype.type is np.longdouble:
            for start in range(0, flat.size, 1 << 16):
                yield _without_padding(flat[start : start + (1 << 16)])
            return
        if not clean:
            for start in range(0, flat.size, 1 << 17):
                piece = flat[start : start + (1 << 17)].copy()
                piece[np.isnan(piece)] = np.nan
                yield piece.view(np.uint8)
            return
    if kind == "T":
        yield repr(flat.tolist()).encode("utf-8", "surrogatepass")
        return
    if flat.dtype.itemsize:
        yield flat.view(np.uint8)


def _without_padding(piece: Array) -> Array:
    piece = piece.copy()
    piece[np.isnan(piece)] = np.nan
    return np.ascontiguousarray(piece.view(np.uint8).reshape(piece.size, -1)[:, :10]).reshape(-1)


def as_plain(obj: Any) -> Array:
    """The array as an `ndarray` proper, over the same memory."""
    plain: Array = np.ndarray.view(obj, np.ndarray)
    return plain


class ArrayKind(Kind):
    """`ndarray`, and what its subclasses inherit from it."""

    tag = b"array"

    def write(self, walk: Walk, obj: Any) -> None:
        plain = as_plain(obj)
        walk.token(self.tag, *self._header(plain))
        walk.definition(np.ndarray)
        if plain.dtype.hasobject:
            items = plain.reshape(-1, order="C").tolist()
            walk.keep(items)
            walk.items(items)
        elif plain.nbytes <= _INLINE:
            for piece in _pieces(plain):
                walk.out += bytes(piece)
        else:
            walk.out += self._digest(walk, obj, plain)
        if not walk.isolated and plain.size:
            self._note_memory(walk, obj, plain)

    def _header(self, plain: Array) -> tuple[object, ...]:
        return dtype_facts(plain.dtype), plain.shape, layout_of(plain), plain.flags.writeable

    def _digest(self, walk: Walk, obj: Any, plain: Array) -> bytes:
        known = walk.traversal.contents.get(id(obj))
        if known is None:
            known = walk.traversal.contents[id(obj)] = content_digest(plain)
            walk.keep(obj)
        return known

    def _note_memory(self, walk: Walk, obj: Any, plain: Array) -> None:
        number = walk.number_of(obj)
        if number is not None and walk.traversal.number_of(obj) == (walk.root, number):
            start, end = _bounds(plain)
            walk.traversal.arrays.append((walk.root, number, start, end))

    def mark(self, walk: Walk, obj: Any) -> object:
        plain = as_plain(obj)
        if plain.dtype.hasobject:
            return repr(self._header(plain)), plain.reshape(-1, order="C").tolist()
        content = plain.tobytes() if plain.nbytes <= _INLINE else self._digest(walk, obj, plain)
        return repr(self._header(plain)), content

    def state(self, obj: Any) -> object:
        plain = as_plain(obj)
        return {"array": plain, "writeable": plain.flags.writeable}

    def put(self, obj: Any, state: Any) -> None:
        wanted = state["array"]
        plain = as_plain(obj)
        if plain.dtype != wanted.dtype:
            raise Unrestorable("ndarray", "its dtype changed in place")
        if plain.shape != wanted.shape:
            try:
                np.ndarray.resize(obj, wanted.shape, refcheck=False)
            except ValueError as error:
                raise Unrestorable("ndarray", f"its shape changed in place ({error})") from None
            plain = as_plain(obj)
        locked = not plain.flags.writeable
        if locked:
            obj.flags.writeable = True
            plain = as_plain(obj)
        np.copyto(plain, wanted, casting="no")
        if obj.flags.writeable != state["writeable"]:
            obj.flags.writeable = state["writeable"]


def _bounds(array: Array) -> tuple[int, int]:
    start = end = array.__array_interface__["data"][0]
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            start += (length - 1) * stride
        else:
            end += (length - 1) * stride
    return start, end + array.itemsize


class SubarrayKind(ArrayKind):
    """Arrays of classes that libraries derive from `ndarray`, such as `matrix` and `recarray`."""

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"subarray")
        walk.definition(type(obj))
        own = getattr(obj, "__dict__", None)
        walk.stack.append(dict(own) if own else None)
        walk.keep(walk.stack[-1])
        super().write(walk, obj)

    def mark(self, walk: Walk, obj: Any) -> object:
        return super().mark(walk, obj), dict(getattr(obj, "__dict__", None) or {})


class MaskedKind(Kind):
    """Masked arrays: data, mask, fill value (the default one counts like one that was set so)."""

    covers = frozenset(
        {
            "_mask",
            "_fill_value",
            "_hardmask",
            "_sharedmask",
            "_optinfo",
            "_basedict",
            "_isfield",
            "_baseclass",
        }
    )

    def write(self, walk: Walk, obj: Any) -> None:
        parts = self._parts(obj)
        walk.keep(parts)
        walk.token(b"masked", bool(obj.hardmask))
        walk.definition(type(obj))
        walk.push(parts)

    def _parts(self, obj: Any) -> list[object]:
        fill = obj._fill_value
        if fill is None:
            fill = np.ma.default_fill_value(obj.dtype)
        fill = np.asarray(fill, dtype=None if obj.dtype.hasobject else obj.dtype)
        mask = obj._mask
        return [as_plain(obj.data), None if mask is np.ma.nomask else np.asarray(mask), fill]

    def mark(self, walk: Walk, obj: Any) -> object:
        return walk.apart().run(obj)

    def state(self, obj: Any) -> object:
        return {"data": as_plain(obj.data), "mask": obj._mask, "fill": obj._fill_value, "hard": obj.hardmask}

    def put(self, obj: Any, state: Any) -> None:
        ArrayKind().put(as_plain(obj.data), {"array": state["data"], "writeable": True})
        np.ma.MaskedArray.soften_mask(obj)
        obj.mask = state["mask"]
        obj._fill_value = state["fill"]
        if state["hard"]:
            np.ma.MaskedArray.harden_mask(obj)


class ScalarKind(Kind):
    """NumPy's scalars."""

    mutable = False
    atomic = True

    def write(self, walk: Walk, obj: Any) -> None:
        value = np.asarray(obj)
        walk.token(b"scalar", dtype_facts(value.dtype))
        walk.definition(type(obj))
        if value.dtype.hasobject:
            walk.stack.append(obj.item())
            walk.keep(walk.stack[-1])
            return
        for piece in _pieces(value):
            walk.out += bytes(piece)


class DtypeKind(Kind):
    """Dtypes."""

    mutable = False
    atomic = True

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"dtype", dtype_facts(obj))


class GeneratorKind(ReducedKind):
    """Random generators: digested by their reduce value, restored in place."""

    def __init__(self) -> None:
        super().__init__(mutable=True)

    def state(self, obj: Any) -> object:
        bits = getattr(obj, "bit_generator", obj)
        seeds = getattr(bits, "seed_seq", None)
        return {"state": bits.state, "spawned": getattr(seeds, "n_children_spawned", None)}

    def put(self, obj: Any, state: Any) -> None:
        bits = getattr(obj, "bit_generator", obj)
        seeds = getattr(bits, "seed_seq", None)
        if getattr(seeds, "n_children_spawned", None) != state["spawned"]:
            raise Unrestorable(type(obj).__name__, "it spawned children, and that count cannot be set")
        bits.state = state["state"]


class LegacyGeneratorKind(ReducedKind):
    """`RandomState`, restored in place."""

    def __init__(self) -> None:
        super().__init__(mutable=True)

    def state(self, obj: Any) -> object:
        return obj.get_state(legacy=False)

    def put(self, obj: Any, state: Any) -> None:
        obj.set_state(state)


class SparseKind(InstanceKind):
    """SciPy's sparse arrays: what they found out about themselves does not count."""

    def __init__(self, cls: type):
        super().__init__(cls, None)

    def _own(self, obj: Any) -> dict[str, object]:
        own = super()._own(obj)
        return {name: value for name, value in own.items() if name.lstrip("_") not in _SPARSE_CACHES}


_SPARSE_CACHES = frozenset({"has_sorted_indices", "has_canonical_format"})

KINDS.update({np.ndarray: ArrayKind(), np.memmap: ArrayKind(), np.ma.MaskedArray: MaskedKind()})
FAMILIES.update(
    {
        np.ndarray: SubarrayKind(),
        np.ma.MaskedArray: MaskedKind(),
        np.generic: ScalarKind(),
        np.dtype: DtypeKind(),
    }
)
NAMED.update(
    {
        "numpy.random._generator.Generator": lambda cls: GeneratorKind(),
        "numpy.random.bit_generator.BitGenerator": lambda cls: GeneratorKind(),
        "numpy.random.mtrand.RandomState": lambda cls: LegacyGeneratorKind(),
        "scipy.sparse._base._spbase": SparseKind,
    }
)
