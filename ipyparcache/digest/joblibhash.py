"""`hash(obj)`: a short name of a value, coarser than the digest of a cell.

The order of a dict and the sharing of objects do not count; a memory map is no array unless told so. Each
container is hashed on its own and named in its parent by that digest, so what occurs twice is walked once.
"""

from __future__ import annotations

import copyreg
import hashlib
import pickle
import sys
import types
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from itertools import chain
from marshal import dumps
from operator import itemgetter
from typing import Any

from blake3 import blake3
from xxhash import xxh3_128_digest as quick_digest

from ipyparcache.digest import arrays, modules
from ipyparcache.digest.containers import PartsKind
from ipyparcache.digest.objects import Traversal, digest_of
from ipyparcache.digest.walk import KINDS, PRIMITIVES, has_nan, is_pure, without_nan
from ipyparcache.errors import ParcacheError

_LARGE = 1 << 16
_WALKED = ("pandas", "polars", "pyarrow", "scipy", "xarray")
"""Libraries whose containers `digest.objects` takes apart better than their pickles would."""

_SMALL = 100
"""Elements of a dict that is hashed among many like it."""

_SORTED_KEYS = {str, int, bytes}
_WITH_NAN = {float, complex}
_DICT, _VALUES, _DIGEST = dumps("dict", 2), dumps("values", 2), (32).to_bytes(8, "little")

_REFUSED = (types.ModuleType, types.GeneratorType, types.CoroutineType, types.FrameType)


def hash(obj: object, hash_name: str = "md5", coerce_mmap: bool = False) -> str:
    """A name for the content of any object, the same in every process.

    Equal content gives an equal name, whatever the order of dicts and sets and whatever is shared; types
    count (1, 1.0 and True differ), and so do memory layouts of arrays. Functions count by what they do:
    code, defaults, closure and the names they read.

    Parameters
    ----------
    obj : object
        What to name.
    hash_name : {'md5', 'sha1'}
        Length of the name: 32 or 40 digits. Neither is meant to resist an attacker.
    coerce_mmap : bool
        Give a memory-mapped array the name of the array in memory.

    Raises
    ------
    ValueError
        If `hash_name` is another.
    pickle.PicklingError
        If part of it cannot be found by its name, such as a lambda.
    TypeError
        If part of it has no stable content, such as a module, a generator or a lock.
    """
    if hash_name not in ("md5", "sha1"):
        raise ValueError(
            f"Valid options for 'hash_name' are ('md5', 'sha1'). Got hash_name={hash_name!r} instead."
        )
    try:
        stream = _Hashing(coerce_mmap).content(obj)
    except TypeError as error:
        raise TypeError(f"{error}, met while hashing {_short(obj)}") from error
    except (ParcacheError, AttributeError, pickle.PicklingError) as error:
        raise pickle.PicklingError(f"PicklingError while hashing {_short(obj)}: {error}") from error
    hasher = hashlib.new(hash_name, usedforsecurity=False)
    hasher.update(stream)
    return hasher.hexdigest()


class _Hashing:
    """One call of `hash`."""

    def __init__(self, coerce_mmap: bool):
        self._coerce = coerce_mmap
        self._known: dict[int, bytes] = {}  # digests of containers met before
        self._path: dict[int, int] = {}  # containers being hashed, and how deep they are
        self._kept: list[object] = []  # temporaries, so that their identities stay their own
        self._lowest = sys.maxsize  # depth of the outermost container that a cycle led back to

    def content(self, obj: Any) -> bytes:
        """Bytes that stand for the object: a primitive itself, or the digest of a container."""
        cls = type(obj)
        if cls in PRIMITIVES:
            if cls in (str, bytes) and len(obj) > _LARGE:
                return b"\xfflarge" + dumps(cls.__name__, 2) + quick_digest(_bytes_of(obj))
            return dumps(obj if obj == obj else without_nan([obj])[0], 2)
        known = self._known.get(id(obj))
        if known is not None:
            return known
        depth = self._path.get(id(obj))
        if depth is not None:
            self._lowest = min(self._lowest, depth)
            return b"\xffcycle" + dumps(len(self._path) - depth, 2)
        here = self._path[id(obj)] = len(self._path)
        outer, self._lowest = self._lowest, sys.maxsize
        try:
            digest = b"\xff" + self._parts(obj, cls)
        finally:
            del self._path[id(obj)]
        if self._lowest >= here:  # else it would be another seen from elsewhere in its cycle
            self._known[id(obj)] = digest
            self._kept.append(obj)
        self._lowest = min(outer, self._lowest if self._lowest < here else sys.maxsize)
        return digest

    def _parts(self, obj: Any, cls: type) -> bytes:
        if cls is list or cls is tuple:
            return self._sequence(cls.__name__, obj)
        if cls is dict:
            return self._mapping(obj)
        if cls is set or cls is frozenset:
            return self._joined(cls.__name__, self._sorted(obj))
        if cls is OrderedDict:
            return self._joined("ordered", map(self.content, [list(obj), list(obj.values())]))
        if isinstance(obj, types.FunctionType | types.MethodType | types.BuiltinFunctionType | type):
            return self._code(obj)
        if isinstance(obj, _REFUSED):
            raise TypeError(f"cannot hash a {cls.__name__}")
        family = cls.__module__.partition(".")[0]
        if family == "numpy":
            numeric = self._numeric(obj, cls)
            if numeric is not None:
                return numeric
        elif family in _WALKED:
            with arrays.quickly():
                walked = Traversal(marking=False).add("obj", obj)
            return self._joined(f"{cls.__module__}.{cls.__qualname__}", [walked])
        elif "numpy" in sys.modules and isinstance(obj, sys.modules["numpy"].ndarray):
            return self._joined("array of", [self._code(cls), self._array(obj), self.content(vars(obj))])
        elif family == "ipyparcache" and isinstance(kind := KINDS.get(cls), PartsKind):
            # The state of a cached function tells when and by whom it was made.
            parts = kind.parts_of(obj)
            self._kept.append(parts)
            if parts:
                return self._joined("own", [kind.tag, *map(self.content, parts)])
        return self._reduced(obj, cls)

    def _joined(self, tag: str, parts: Iterable[bytes]) -> bytes:
        hasher = blake3(dumps(tag, 2))
        for part in parts:
            hasher.update(len(part).to_bytes(8, "little"))
            hasher.update(part)
        return hasher.digest()

    def _sequence(self, tag: str, items: Any) -> bytes:
        kinds = set(map(type, items))
        if kinds <= PRIMITIVES:
            return self._joined(tag, [_pure(items, kinds)])
        rows = _pure_rows(items, kinds)
        if rows is not None:
            return self._joined(tag, [b"rows", rows])
        if _are_plain_mappings(items):
            return self._joined(
                tag, [b"mixed", *[_small_mapping(item) or self.content(item) for item in items]]
            )
        return self._joined(tag, [b"mixed", *map(self.content, items)])

    def _mapping(self, items: dict[Any, Any]) -> bytes:
        keys = list(items)
        types_of_keys = set(map(type, keys))
        if len(types_of_keys) == 1 and types_of_keys <= _SORTED_KEYS:
            keys.sort()
            values = itemgetter(*keys)(items) if len(keys) > 1 else tuple(items.values())
            return self._joined("dict", [_pure(keys, types_of_keys), self._sequence("values", values)])
        pairs = sorted((self.content(key), self.content(value)) for key, value in items.items())
        return self._joined("dict", [part for pair in pairs for part in pair])

    def _sorted(self, items: Any) -> list[bytes]:
        types_of_items = set(map(type, items))
        if len(types_of_items) == 1 and types_of_items <= _SORTED_KEYS:
            return [_pure(sorted(items), types_of_items)]
        return sorted(map(self.content, items))

    def _numeric(self, obj: Any, cls: type) -> bytes | None:
        numpy = sys.modules["numpy"]
        if isinstance(obj, numpy.ma.MaskedArray):
            mask = numpy.ma.getmaskarray(obj)
            plain = numpy.where(mask, numpy.zeros((), obj.dtype), numpy.ma.getdata(obj))
            parts = map(self.content, [plain, mask, obj.fill_value])
            return self._joined("masked", [cls.__qualname__.encode(), *parts])
        if isinstance(obj, numpy.ndarray):
            name = "ndarray" if self._coerce and cls is numpy.memmap else cls.__qualname__
            return self._joined(name, [self._array(obj)])
        if isinstance(obj, numpy.dtype):
            return self._joined("dtype", [repr(arrays.dtype_facts(obj)).encode(), self.content(obj.metadata)])
        if isinstance(obj, numpy.generic):
            return self._joined(cls.__qualname__, [self._array(numpy.asarray(obj))])
        return None

    def _array(self, values: Any) -> bytes:
        plain = arrays.as_plain(values)
        facts = repr((arrays.dtype_facts(plain.dtype), plain.shape, arrays.layout_of(plain))).encode()
        if plain.dtype.hasobject:
            items = plain.reshape(-1).tolist()
            self._kept.append(items)
            return self._joined("array", [facts, self.content(items)])
        return self._joined("array", [facts, arrays.quick_digest(plain)])

    def _code(self, obj: Any) -> bytes:
        """Functions, methods and classes: of the user by content, of libraries by name."""
        if isinstance(obj, types.MethodType):
            return self._joined("method", [self._code(obj.__func__), self.content(obj.__self__)])
        module = getattr(obj, "__module__", None)
        name = getattr(obj, "__qualname__", "")
        if isinstance(obj, types.BuiltinFunctionType) and not isinstance(
            obj.__self__, types.ModuleType | type(None)
        ):
            return self._joined("method", [name.encode(), self.content(obj.__self__)])
        if "<lambda>" in name or "<locals>" in name:
            raise pickle.PicklingError(f"{name} cannot be found by its name")
        if isinstance(module, str) and modules.is_user_code(module):
            return self._joined("code", [digest_of(obj)])
        return self._joined("named", [f"{module}.{name}".encode()])

    def _reduced(self, obj: Any, cls: type) -> bytes:
        hook = copyreg.dispatch_table.get(cls)
        value: Any = hook(obj) if hook is not None else obj.__reduce_ex__(4)
        self._kept.append(value)
        if isinstance(value, str):
            return self._joined("global", [f"{getattr(obj, '__module__', None)}.{value}".encode()])
        make, arguments, state, items, pairs = (*value, None, None, None)[:5]
        made = [make, arguments, state, None if items is None else list(items)]
        if pairs is not None:
            made.append(dict(pairs))  # its order does not count, as in a dict proper
        self._kept.append(made)
        return self._joined("object", [self._code(cls), *map(self.content, made)])


def _pure(items: Any, kinds: set[type]) -> bytes:
    """A container of primitives alone, of these kinds: their bytes, or the digest of many."""
    if kinds == {str} and len(items) > 1000:
        # Joined first: one encoding in place of one a string.
        try:
            lengths = bytes(map(len, items))
        except ValueError:  # one is longer than 255
            lengths = b"longer" + array("Q", map(len, items)).tobytes()
        return b"strings" + quick_digest(lengths) + quick_digest(_bytes_of("".join(items)))
    plain = items if kinds.isdisjoint(_WITH_NAN) else without_nan(items)
    written = dumps(plain if type(plain) is list else list(plain), 2)
    return written if len(written) <= _LARGE else b"large" + quick_digest(written)


def _are_plain_mappings(items: Any) -> bool:
    """Whether all items are dicts of nothing but primitives."""
    return (
        set(map(type, items)) == {dict}
        and is_pure(chain.from_iterable(items))
        and is_pure(chain.from_iterable(map(dict.values, items)))
    )


def _small_mapping(item: dict[Any, Any]) -> bytes | None:
    """What `content` gives for a dict of primitives, with less work; None where it takes more than this."""
    kinds = set(map(type, item))
    if len(kinds) != 1 or not kinds <= _SORTED_KEYS or len(item) > _SMALL:
        return None
    keys = sorted(item)
    written = dumps(keys, 2)
    told = dumps(list(without_nan([item[key] for key in keys])), 2)
    if len(written) > _LARGE or len(told) > _LARGE:
        return None
    values = blake3(_VALUES + len(told).to_bytes(8, "little") + told).digest()
    return b"\xff" + blake3(_DICT + len(written).to_bytes(8, "little") + written + _DIGEST + values).digest()


def _pure_rows(rows: Any, kinds: set[type]) -> bytes | None:
    """Digest of rows that are all tuples, or all lists, of nothing but primitives; None for others."""
    if kinds not in ({tuple}, {list}):
        return None
    items = list(chain.from_iterable(rows))
    if not is_pure(items):
        return None
    if has_nan(items):
        rows = [type(row)(without_nan(row)) for row in rows]
    return quick_digest(dumps(list(rows), 2))


def _bytes_of(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


def _short(obj: object) -> str:
    try:
        text = repr(obj)
    except Exception:  # the error to tell is the first one
        text = object.__repr__(obj)
    return text if len(text) <= 200 else f"{text[:200]}…"
