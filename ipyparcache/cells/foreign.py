"""Own states of what libraries made: frames of pandas by their columns, others by what they are pickled as.

Children are held by reference where they have numbers, and so states of their own; what is made only while
it is looked at, or has no number, is held by its content.
"""

from __future__ import annotations

import copyreg
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

State = tuple[Any, ...]

BLOCKS, COLUMNS, REDUCED = "blocks", "columns", "reduced"  # kinds of states
SMALL = 1 << 16  # bytes up to which content is kept instead of its digest
_DEEPEST = 40  # steps into what has no numbers
_BY_VALUE = frozenset({int, str, bool, type(None)})
_BY_REFERENCE = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.MethodType)


class Known:
    """Numbers of the objects that have own states, by the ids of the objects."""

    __slots__ = ("ids",)

    def __init__(self, objects: Iterable[object]) -> None:
        self.ids = frozenset(map(id, objects))


def array_digest(obj: Any) -> bytes:
    """XXH3 of an array's content: it only asks whether the content is as before."""
    import numpy as np
    import xxhash

    if obj.flags.c_contiguous:
        data = obj
    elif obj.flags.f_contiguous:
        data = obj.T
    else:
        data = np.ascontiguousarray(obj)
    return xxhash.xxh3_128_digest(data.reshape(-1).view(np.uint8).data)


def content_of_array(obj: Any) -> bytes:
    """The content of an array without objects, or its digest where it is large."""
    content: bytes = obj.tobytes() if obj.nbytes <= SMALL else array_digest(obj)
    return content


# ---- pandas


def frame_state(obj: Any, like: str | None = None) -> State | None:
    """The own state of a frame or series, of the kind `like`.

    The same for an index or array of pandas'. None for what is neither, or holds arrays of which no more is
    known than how they are pickled. Labels count as the objects that they are: only their names change.
    """
    pandas = sys.modules.get("pandas")
    kind = type(obj)
    if pandas is None or not (kind is pandas.DataFrame or kind is pandas.Series):
        return None if pandas is None else _part_state(obj, pandas)
    manager = obj._mgr
    blocks = manager.blocks
    if like is None:
        like = BLOCKS if kind is pandas.Series or _is_consolidated(blocks) else COLUMNS
    if like == BLOCKS:
        values = [block.values for block in blocks]
        places: list[Any] = [block.mgr_locs.as_array.tobytes() for block in blocks]
    else:
        values = list(obj._iter_column_arrays())
        places = []
    facts: list[Any] = []
    children: list[object] = []
    for part in values:
        if not _note_values(part, facts, children):
            return None
    axes = list(manager.axes)
    names = [tuple(axis.names) for axis in axes]
    flags = bool(obj.flags.allows_duplicate_labels), obj.name if kind is pandas.Series else None
    return like, (tuple(facts), places, names, flags), children, axes, dict(obj.attrs)


def _part_state(obj: Any, pandas: Any) -> State | None:
    """The own state of an index or array of pandas'."""
    if not type(obj).__module__.startswith("pandas"):
        return None
    if isinstance(obj, pandas.Index):
        return COLUMNS, tuple(obj.names)
    facts: list[Any] = []
    children: list[object] = []
    if isinstance(obj, pandas.api.extensions.ExtensionArray) and _note_values(obj, facts, children):
        return COLUMNS, tuple(facts), children
    return None


def _is_consolidated(blocks: Iterable[Any]) -> bool:
    """Whether no reading operation of pandas puts blocks of a frame together."""
    kinds = [block.dtype for block in blocks if type(block.values).__module__ == "numpy"]
    return len(set(kinds)) == len(kinds)


def _note_values(values: Any, facts: list[Any], children: list[object]) -> bool:
    """Note what holds the values of a column; False where that is not known."""
    if type(values).__module__ == "numpy":
        facts.append((values.shape, values.dtype.str))
        if values.dtype.hasobject:
            children += values.ravel().tolist()
        else:
            facts.append(content_of_array(values))
        return True
    own = vars(values) if hasattr(values, "__dict__") else {}
    facts.append((type(values), values.dtype))
    if "_pa_array" in own:  # what it holds never changes
        children.append(own["_pa_array"])
        return True
    if "_mask" in own and "_data" in own:
        return _note_values(own["_data"], facts, children) and _note_values(own["_mask"], facts, children)
    inner = getattr(values, "_ndarray", None)
    return inner is not None and _note_values(inner, facts, children)


# ---- all others


def reduced_state(obj: Any, known: Known) -> State:
    """What an object is pickled as, its numbered children by reference.

    Raises
    ------
    Exception
        Whatever its pickling raises.
    """
    facts: list[object] = []
    children: list[object] = []
    _Reduction(known, facts, children).own(obj)
    return REDUCED, tuple(facts), children, known


class _Reduction:
    def __init__(self, known: Known, facts: list[object], children: list[object]) -> None:
        self._known = known.ids
        self._facts = facts
        self._children = children
        self._open: set[int] = set()

    def own(self, obj: Any) -> None:
        """Note how an object is made, its state and its items."""
        if id(obj) in self._open or len(self._open) > _DEEPEST:
            raise RecursionError("what it is pickled as has no end")
        self._open.add(id(obj))
        hook = copyreg.dispatch_table.get(type(obj))
        value = hook(obj) if hook is not None else obj.__reduce_ex__(4)
        if isinstance(value, str):
            self._facts.append(value)
        else:
            make, arguments, state, items, pairs = (*value, None, None, None)[:5]
            for part in (make, arguments, state, *(None if p is None else list(p) for p in (items, pairs))):
                self._note(part)
        self._open.discard(id(obj))

    def _note(self, value: Any) -> None:
        kind = type(value)
        if kind in _BY_VALUE:
            self._facts.append((kind, value))
        elif kind in (float, complex):
            self._facts.append(repr(value))
        elif id(value) in self._known or isinstance(value, _BY_REFERENCE):
            self._children.append(value)
        elif kind in (bytes, bytearray):
            self._facts.append(_bytes(value))
        elif kind in _PARTS:
            self._facts.append((kind, len(value)))
            for part in _PARTS[kind](value):
                self._note(part)
        elif kind.__module__ == "numpy" and kind.__name__ == "ndarray":
            self._facts.append((value.shape, value.strides, value.dtype.str))
            if value.dtype.hasobject:
                for part in value.ravel().tolist():
                    self._note(part)
            else:
                self._facts.append(content_of_array(value))
        else:
            self._facts.append(kind)
            self.own(value)


def _bytes(value: bytes | bytearray) -> bytes:
    if len(value) <= SMALL:
        return bytes(value)
    import xxhash

    return xxhash.xxh3_128_digest(value)


def _pairs(value: dict[Any, Any]) -> list[object]:
    return [part for pair in value.items() for part in pair]


_PARTS: dict[type, Callable[[Any], Iterable[object]]] = {tuple: tuple, list: tuple, dict: _pairs}
