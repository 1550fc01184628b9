"""Short forms in which arrays, scalars, labels and frames travel: a loop over groups sends thousands.

Each is what pickle would have made, of fewer parts. Arrays keep their numbers, so that views of them come
home as views. What has no short form travels as its library pickles it.
"""

from __future__ import annotations

import functools
import marshal
import pickle
import sys
from collections.abc import Callable
from typing import Any

ATOMS = frozenset({int, float, str, bool, type(None), bytes, complex})
_MOST = 64  # column labels that are remembered
_PLAIN_KINDS = "biufcmM"  # of dtypes that their short text tells whole

Reduced = tuple[Callable[..., object], tuple[Any, ...]]


# ---- on arrival


def array(buffer: Any, dtype: str, shape: tuple[int, ...], order: Any) -> object:
    """An array over a buffer."""
    import numpy as np

    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def plain_objects(data: bytes, shape: tuple[int, ...], order: Any) -> object:
    """An array of texts, numbers and None."""
    import numpy as np

    items = marshal.loads(data)
    made = np.empty(len(items), object)
    made[:] = items
    return made.reshape(shape, order=order)


def scalar(dtype: str, data: bytes) -> object:
    """A scalar of NumPy."""
    import numpy as np

    return np.frombuffer(data, dtype)[0]


def remembered(data: bytes) -> Any:
    """What was pickled once on the other side, and is met again and again."""
    known = _arrived.get(data)
    if known is None:
        if len(_arrived) >= _MOST:
            _arrived.clear()
        known = _arrived[data] = pickle.loads(data)
    return known


def labels(data: bytes) -> object:
    """An index: one that was seen before is viewed, as the names of each may be changed."""
    return remembered(data).view()


def backed(kind: Any, values: Any, dtype: Any, attributes: tuple[Any, ...]) -> object:
    """An array of pandas' that is backed by one of NumPy."""
    made = kind.__new__(kind)
    made.__setstate__((values, dtype, dict(attributes)))
    return made


def numbered_rows(start: int, stop: int, step: int, name: object) -> object:
    """A `RangeIndex`."""
    import pandas as pd

    return pd.RangeIndex(start, stop, step, name=name)


def numeric_labels(values: Any, name: object) -> object:
    """An index of numbers, over an array."""
    import pandas as pd

    return pd.Index(values, name=name, copy=False)


def frame(
    kind: Any,
    manager: Any,
    blocks: tuple[Any, ...],
    axes: tuple[Any, ...],
    metadata: tuple[str, ...],
    flags: tuple[Any, ...],
    rest: tuple[Any, ...],
) -> object:
    """A frame or series."""
    made = [make(values, place_of(place), ndim) for make, values, place, ndim in blocks]
    own = manager.from_blocks(made, list(axes))
    result = kind.__new__(kind)
    state = {"_mgr": own, "attrs": {}, "_metadata": list(metadata), "_flags": dict(flags), **dict(rest)}
    result.__setstate__(state)
    return result


def place_of(place: Any) -> Any:
    """Where in its frame a block belongs."""
    return slice(*place) if type(place) is tuple else place


_arrived: dict[bytes, Any] = {}
_sent: dict[int, tuple[Any, Any, bytes | None]] = {}


# ---- to be sent


def short_form(kind: type) -> Callable[[Any], Reduced | None] | None:
    """What makes the short form of objects of this class, or None for one of them that has none."""
    if kind.__module__ not in _HOMES:
        return None
    return _short_form(kind)


_HOMES = frozenset({"numpy", "pandas", "pandas.arrays", "numpy.dtypes"}) | {
    f"pandas.core.{part}"  # before pandas 3
    for part in ("frame", "series", "indexes.base", "indexes.range", "dtypes.dtypes")
}


@functools.cache
def _short_form(kind: Any) -> Callable[[Any], Reduced | None] | None:
    import numpy as np

    if kind is np.ndarray:
        return _array
    if issubclass(kind, np.generic):
        return _scalar if np.dtype(kind).kind in _PLAIN_KINDS else None
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return None
    forms = {
        pandas.DataFrame: _frame,
        pandas.Series: _frame,
        pandas.RangeIndex: _numbered_rows,
        pandas.Index: _labels,
        pandas.StringDtype: _dtype,
        pandas.DatetimeTZDtype: _dtype,
        pandas.arrays.DatetimeArray: _backed,
        pandas.arrays.TimedeltaArray: _backed,
        pandas.arrays.StringArray: _backed,
    }
    return forms.get(kind) or (_dtype if issubclass(kind, np.dtype) else None)


@functools.cache
def _text_of(dtype: Any) -> str | None:
    """A dtype as text, if that tells it whole."""
    if dtype.kind not in _PLAIN_KINDS or dtype.metadata or dtype.fields or dtype.subdtype:
        return None
    text: str = dtype.str
    return text


def _array(obj: Any) -> Reduced | None:
    if not obj.size:
        return None
    order = "F" if obj.flags.f_contiguous and not obj.flags.c_contiguous else "C"
    if obj.dtype.kind == "O":
        items = obj.ravel(order).tolist()
        return (plain_objects, (marshal.dumps(items), obj.shape, order)) if _are_plain(items) else None
    text = _text_of(obj.dtype)
    if text is None:
        return None
    data = obj if obj.flags.forc else obj.copy()
    if obj.dtype.kind in "mM":  # which no buffer knows
        data = data.view("i8")
    return array, (pickle.PickleBuffer(data), text, obj.shape, order)


def _are_plain(items: list[Any]) -> bool:
    return ATOMS.issuperset(map(type, items))


def _scalar(obj: Any) -> Reduced | None:
    text = _text_of(obj.dtype)
    return None if text is None else (scalar, (text, obj.tobytes()))


def _numbered_rows(obj: Any) -> Reduced | None:
    return numbered_rows, (obj.start, obj.stop, obj.step, obj.name)


def _labels(obj: Any) -> Reduced | None:
    values = obj._data
    if type(values).__module__ == "numpy" and values.dtype.kind in "iuf":
        return numeric_labels, (values, obj.name)
    data = _remembered_labels(obj)
    return None if data is None else (labels, (data,))


def _remembered_labels(obj: Any) -> bytes | None:
    """The pickle of an index of texts that is met again and again, as columns are."""
    names = tuple(obj.names)
    known = _sent.get(id(obj._data))  # views of an index share it
    if known is None or known[1] != names:
        plain = len(obj) <= _MOST and _are_plain([*obj.tolist(), *names])
        known = _remember(obj._data, names, pickle.dumps(obj, 5) if plain else None)
    return known[2]


def _remember(key: Any, facts: object, data: bytes | None) -> tuple[Any, Any, bytes | None]:
    if len(_sent) >= _MOST:
        _sent.clear()
    found = _sent[id(key)] = key, facts, data
    return found


def _dtype(obj: Any) -> Reduced | None:
    known = _sent.get(id(obj)) or _remember(obj, None, pickle.dumps(obj, 5))
    assert known[2] is not None
    return remembered, (known[2],)


def _backed(obj: Any) -> Reduced | None:
    state = obj.__reduce__()[2]
    if type(state) is not tuple or len(state) != 3 or type(state[2]) is not dict:
        return None
    dtype, values, attributes = state
    return backed, (type(obj), values, dtype, tuple(attributes.items()))


def _frame(obj: Any) -> Reduced | None:
    state = obj.__getstate__()
    manager = state.pop("_mgr", None)
    if manager is None or state.pop("attrs", None):
        return None
    blocks = []
    for block in manager.blocks:
        make, (values, place, ndim) = block.__reduce__()[:2]
        if type(values).__module__ == "numpy":
            if values.dtype.hasobject and not _are_plain(values.ravel().tolist()):
                return None  # it may hold the frame itself
        elif values.dtype.kind == "O" and type(values).__name__ not in _TEXTS:
            return None
        if type(place) is slice:
            place = place.start, place.stop, place.step
        blocks.append((make, values, place, ndim))
    metadata, flags = tuple(state.pop("_metadata")), tuple(state.pop("_flags").items())
    rest = tuple(state.items())
    return frame, (type(obj), type(manager), tuple(blocks), tuple(manager.axes), metadata, flags, rest)


_TEXTS = frozenset(
    {
        "StringArray",
        "StringArrayNumpySemantics",
        "ArrowStringArray",
        "ArrowStringArrayNumpySemantics",
        "Categorical",
    }
)
