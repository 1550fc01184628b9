"""Digests of pandas objects: trees of columns, so that a miss can name the column that changed.

What pandas fills in lazily (item caches, index engines, the consolidation of blocks) does not count. Since
pandas 3 frames that share memory copy on write, so sharing is not seen by anybody; before, it counts like
that of arrays.
"""

from __future__ import annotations

import gc
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from blake3 import blake3

from ipyparcache.digest.arrays import Array, content_digest, dtype_facts
from ipyparcache.digest.instances import ReducedKind
from ipyparcache.digest.walk import FAMILIES, KINDS, NAMED, Kind, Met, Walk, is_pure, same
from ipyparcache.errors import Unrestorable


def write_column(walk: Walk, values: Any) -> None:
    """Write the values of a column, whatever holds them."""
    values = getattr(values, "_ndarray", values) if type(values).__name__ == "NumpyExtensionArray" else values
    if isinstance(values, np.ndarray):
        _write_values(walk, values)
        return
    writer = _WRITERS.get(type(values).__name__)
    if writer is not None and type(values).__module__.startswith("pandas."):
        writer(walk, values)
    else:
        walk.token(b"extension", str(values.dtype))
        walk.stack.append(values)


def _write_values(walk: Walk, values: Array) -> None:
    walk.token(b"values", dtype_facts(values.dtype), values.shape)
    if values.dtype.hasobject:
        items = values.reshape(-1).tolist()
        walk.keep(items)
        walk.items(items)
    else:
        # A row of a consolidated block is contiguous; a column that is not is hashed as its copy would be.
        if not values.flags.c_contiguous:
            values = np.ascontiguousarray(values)
        walk.out += content_digest(values)


def _write_categorical(walk: Walk, values: Any) -> None:
    walk.token(b"categorical", bool(values.ordered))
    _write_values(walk, np.asarray(values.codes))
    walk.stack.append(Wrapped(values.categories))


def _write_masked(walk: Walk, values: Any) -> None:
    mask = np.asarray(values._mask)
    data = values._data
    if mask.any():  # what lies under the mask is left over from computations
        data = data.copy()
        data[mask] = data.dtype.type(0)
    walk.token(b"nullable", str(values.dtype))
    _write_values(walk, data)
    _write_values(walk, mask)


def _write_strings(walk: Walk, values: Any) -> None:
    walk.token(b"strings", repr(values.dtype), repr(getattr(values.dtype, "na_value", None)))
    items = [item if type(item) is str else None for item in values.to_numpy(dtype=object).tolist()]
    walk.pure(items)


def _write_times(walk: Walk, values: Any) -> None:
    walk.token(b"times", repr(values.dtype))
    _write_values(walk, np.asarray(values.asi8))


def _write_intervals(walk: Walk, values: Any) -> None:
    walk.token(b"intervals", str(values.dtype), values.closed)
    walk.push([Wrapped(values.left), Wrapped(values.right)])
    walk.keep(walk.stack[-2:])


def _write_sparse(walk: Walk, values: Any) -> None:
    walk.token(b"sparse", repr(values.dtype), len(values))
    _write_values(walk, np.asarray(values.sp_values))
    _write_values(walk, np.asarray(values.sp_index.indices))


def _write_arrow(walk: Walk, values: Any) -> None:
    walk.token(b"arrow", repr(values.dtype))
    items = values._pa_array.to_pylist()
    walk.keep(items)
    walk.items(items)


_WRITERS = {
    "Categorical": _write_categorical,
    "IntegerArray": _write_masked,
    "FloatingArray": _write_masked,
    "BooleanArray": _write_masked,
    "StringArray": _write_strings,
    "StringArrayNumpySemantics": _write_strings,
    "ArrowStringArray": _write_strings,
    "ArrowStringArrayNumpySemantics": _write_strings,
    "ArrowExtensionArray": _write_arrow,
    "DatetimeArray": _write_times,
    "TimedeltaArray": _write_times,
    "PeriodArray": _write_times,
    "IntervalArray": _write_intervals,
    "SparseArray": _write_sparse,
}


class Wrapped:
    """An index as a part of something else: it has no number of its own."""

    def __init__(self, index: Any):
        self.index = index


class WrappedKind(Kind):
    """An index inside a frame, a series or another index."""

    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        walk.keep(obj)
        walk.numbered.fixed.append(obj.index)
        write_index(walk, obj.index)


def write_index(walk: Walk, index: Any) -> None:
    """Write an index: its type, names and labels."""
    walk.token(b"index")
    walk.definition(type(index))
    names = list(index.names)
    walk.keep(names)
    if isinstance(index, pd.RangeIndex):
        walk.token(b"range", index.start, index.stop, index.step)
    elif isinstance(index, pd.MultiIndex):
        walk.token(b"levels", index.nlevels, len(index))
        parts: list[object] = [Wrapped(level) for level in index.levels]
        walk.keep(parts)
        for codes in index.codes:
            _write_values(walk, np.asarray(codes))
        walk.push(parts)
    else:
        frequency = getattr(index, "freqstr", None)
        walk.token(b"labels", str(frequency) if frequency is not None else None)
        write_column(walk, index._data)
    walk.push(names)


class Column:
    """Values with the name under which a frame or series holds them."""

    def __init__(self, name: object, values: Any):
        self.name = name
        self.values = values


class NamedColumnKind(Kind):
    """A column inside a frame or series."""

    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        walk.keep(obj)
        write_column(walk, obj.values)


_NDFRAME_FIELDS = frozenset(
    {"_mgr", "_item_cache", "_attrs", "_flags", "_name", "_cacher", "_index", "_is_copy"}
)


class FrameKind(Kind):
    """`DataFrame`: index, column labels, each column, `attrs`, flags."""

    covers = _NDFRAME_FIELDS

    def write(self, walk: Walk, obj: Any) -> None:
        columns = columns_of(obj)
        walk.token(b"frame", len(columns), bool(obj.flags.allows_duplicate_labels))
        walk.definition(pd.DataFrame)
        parts: list[object] = [Wrapped(obj.index), Wrapped(obj.columns)]
        written = self._digests(walk, obj, columns)
        parts += written
        walk.keep(parts)
        walk.stack.append(dict(obj.attrs))
        walk.keep(walk.stack[-1])
        walk.push(parts)

    def _digests(self, walk: Walk, obj: Any, columns: list[Column]) -> list[object]:
        """Digest of each column without objects, once per lookup; the others are walked."""
        known = walk.traversal.columns.get(id(obj))
        if known is None:
            known = [
                column if _holds_objects(column.values) else walk.apart().run(column) for column in columns
            ]
            walk.traversal.columns[id(obj)] = known
            walk.keep(obj)
        return known

    def mark(self, walk: Walk, obj: Any) -> object:
        own: list[object] = []
        for column in self._digests(walk, obj, columns_of(obj)):
            own.append(_objects_in(column.values) if isinstance(column, Column) else column)
        labels = walk.apart().run(Wrapped(obj.index)), walk.apart().run(Wrapped(obj.columns))
        return [[own, labels, _told_apart(obj)], _axes_of(obj)]

    def is_as(self, walk: Walk, obj: Any, mark: Any) -> bool:
        return _is_as(self.mark(walk, obj), obj, mark)

    def state(self, obj: Any) -> object:
        return {"frame": _with_axes_of(obj, pd.DataFrame(obj.copy(deep=False))), **_told_apart(obj)}

    def put(self, obj: Any, state: Any) -> None:
        replace_content(obj, state["frame"])
        _put_told_apart(obj, state)

    def parts(self, value: Any) -> list[tuple[str, object]]:
        """Columns by label, and the index, for explanations."""
        found: list[tuple[str, object]] = [("index", Wrapped(value.index))]
        return found + [(str(column.name), column) for column in columns_of(value)]


class _Axis(NamedTuple):
    """The labels that a frame or series had, and how they were named."""

    labels: Any
    names: list[object]


def _axes_of(obj: Any) -> list[_Axis]:
    return [_Axis(labels, list(labels.names)) for labels in obj.axes]


def _is_as(now: Any, obj: Any, mark: Any) -> bool:
    """Whether a frame or series is as marked.

    Raises
    ------
    Unrestorable
        If its labels were named anew in place and something else holds them, which the name is seen through.
    """
    if same(now[0], mark[0]):
        return True
    for new, old in zip(now[1], mark[1], strict=True):
        if new.labels is old.labels and not same(new.names, old.names):
            holders = gc.get_referrers(new.labels)
            own = [one for one in holders if type(one) in (_Axis, Met, Wrapped) or one is obj._mgr.axes]
            if len(holders) > len(own):
                raise Unrestorable(type(obj).__name__, "its labels got another name, and others share them")
    return False


def _told_apart(obj: Any) -> dict[str, object]:
    """What a frame or series carries besides its content."""
    return {"attrs": dict(obj.attrs), "duplicates": bool(obj.flags.allows_duplicate_labels)}


def _put_told_apart(obj: Any, state: Any) -> None:
    obj.attrs = state["attrs"]
    obj.flags.allows_duplicate_labels = state["duplicates"]


def replace_content(obj: Any, source: Any) -> None:
    """Give a live frame or series the content of another, as pandas' own in-place operations do."""
    try:
        obj._update_inplace(source)
    except AttributeError as error:
        raise Unrestorable(type(obj).__name__, f"this pandas has no way to do it ({error})") from None


def _with_axes_of(obj: Any, copied: Any) -> Any:
    """A shallow copy with the very labels of a frame or series."""
    copied._mgr.axes = list(obj._mgr.axes)
    return copied


def columns_of(frame: Any) -> list[Column]:
    """The columns of a frame, in order, each over the memory of the frame."""
    labels = frame.columns.tolist()
    arrays = list(frame._iter_column_arrays())
    return [Column(label, values) for label, values in zip(labels, arrays, strict=True)]


def _holds_objects(values: Any) -> bool:
    if isinstance(values, np.ndarray):
        return bool(values.dtype.hasobject) and not is_pure(values.reshape(-1).tolist())
    return type(values).__name__ not in _WRITERS or type(values).__name__ in ("IntervalArray", "Categorical")


def _objects_in(values: Any) -> object:
    if isinstance(values, np.ndarray):
        return values.reshape(-1).tolist()
    return (
        blake3(repr(values).encode()).digest() if type(values).__name__ not in _WRITERS else _frozen(values)
    )


def _frozen(values: Any) -> object:
    if type(values).__name__ == "Categorical":
        return [
            content_digest(np.ascontiguousarray(values.codes)),
            bool(values.ordered),
            list(values.categories),
        ]
    return list(values)


class SeriesKind(Kind):
    """`Series`: index, name, values, `attrs`, flags."""

    covers = _NDFRAME_FIELDS

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"series", bool(obj.flags.allows_duplicate_labels))
        walk.definition(pd.Series)
        column = Column(None, obj.array)
        parts: list[object] = [obj.name, Wrapped(obj.index), column, dict(obj.attrs)]
        walk.keep(parts)
        walk.push(parts)

    def mark(self, walk: Walk, obj: Any) -> object:
        values = obj.array
        column = Column(None, values)
        own = _objects_in(_plain(values)) if _holds_objects(_plain(values)) else walk.apart().run(column)
        facts = [obj.name, walk.apart().run(Wrapped(obj.index)), own, _told_apart(obj)]
        return [facts, _axes_of(obj)]

    def is_as(self, walk: Walk, obj: Any, mark: Any) -> bool:
        return _is_as(self.mark(walk, obj), obj, mark)

    def state(self, obj: Any) -> object:
        copied = _with_axes_of(obj, pd.Series(obj.copy(deep=False)))
        return {"series": copied, "name": obj.name, **_told_apart(obj)}

    def put(self, obj: Any, state: Any) -> None:
        replace_content(obj, state["series"])
        obj.name = state["name"]
        _put_told_apart(obj, state)

    def parts(self, value: Any) -> list[tuple[str, object]]:
        """Values and index, for explanations."""
        return [("index", Wrapped(value.index)), ("values", Column(None, value.array))]


def _plain(values: Any) -> Any:
    return getattr(values, "_ndarray", values) if type(values).__name__ == "NumpyExtensionArray" else values


class IndexKind(Kind):
    """An index on its own: labels are fixed, names are not."""

    def write(self, walk: Walk, obj: Any) -> None:
        write_index(walk, obj)

    def mark(self, walk: Walk, obj: Any) -> object:
        return list(obj.names)

    def state(self, obj: Any) -> object:
        return {"names": list(obj.names)}

    def put(self, obj: Any, state: Any) -> None:
        obj.names = state["names"]


class ExtensionKind(ReducedKind):
    """pandas' own arrays, when they are met outside a frame."""

    def __init__(self) -> None:
        super().__init__(mutable=True)

    def write(self, walk: Walk, obj: Any) -> None:
        if type(obj).__name__ in _WRITERS and type(obj).__module__.startswith("pandas."):
            walk.token(b"extension array")
            walk.definition(type(obj))
            write_column(walk, obj)
        elif type(obj).__name__ == "NumpyExtensionArray":
            walk.token(b"extension array")
            _write_values(walk, obj._ndarray)
        else:
            super().write(walk, obj)


KINDS.update(
    {
        pd.DataFrame: FrameKind(),
        pd.Series: SeriesKind(),
        Wrapped: WrappedKind(),
        Column: NamedColumnKind(),
    }
)
FAMILIES.update({pd.Index: IndexKind(), pd.api.extensions.ExtensionArray: ExtensionKind()})
NAMED.update(
    {
        "pandas._libs.tslibs.timestamps.Timestamp": lambda cls: ReducedKind(mutable=False),
        "pandas._libs.tslibs.timedeltas.Timedelta": lambda cls: ReducedKind(mutable=False),
        "pandas._libs.tslibs.period.Period": lambda cls: ReducedKind(mutable=False),
        "pandas._libs.interval.Interval": lambda cls: ReducedKind(mutable=False),
        "pandas._libs.tslibs.nattype.NaTType": lambda cls: ReducedKind(mutable=False),
        "pandas._libs.missing.NAType": lambda cls: ReducedKind(mutable=False),
        "pandas._libs.tslibs.offsets.BaseOffset": lambda cls: ReducedKind(mutable=False),
        "pandas.core.dtypes.base.ExtensionDtype": lambda cls: ReducedKind(mutable=False),
    }
)
