"""What a cell left behind, as bytes and back: one pickle for all, in which objects that were there before
are references.

The pickler's memo is filled beforehand with what exists on both sides — the namespace, the cell's own
definitions, every mutable object of its inputs, in an order that both sides derive alike — and so is the
unpickler's. An output that holds an input then refers to the live object, at the speed of the C pickler
and without a call per object. Functions and instances of the notebook are taken apart by type, `__dict__`,
slots and content, never by their own pickling methods, so that putting them together runs no user code and
finds the live class.
"""

from __future__ import annotations

import collections
import enum
import importlib
import io
import math
import pickle
import re
import struct
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ipyparcache.cells.arrivals import OF_NAMEDTUPLES, match
from ipyparcache.digest import compiled, figures, spent
from ipyparcache.errors import ParcacheError

OUT_OF_BAND_BYTES = 64 * 1024  # smaller buffers stay inside the pickle

OWNED_BYTES = 1 << 20  # larger arrays lie in the memory of their entry

Reduction = tuple[Any, ...]


class NotStorable(ParcacheError):
    """Something a cell left behind cannot be stored, or would not come back as it is."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class _Packer(pickle.Pickler):
    """Pickles outputs over objects that are known on both sides."""

    def __init__(
        self,
        file: io.BytesIO,
        known: Sequence[object],
        buffers: list[pickle.PickleBuffer],
        namespace: dict[str, object],
        is_taken_apart: Callable[[type], bool],
        owners: ArrayOwners,
    ):
        def keep(buffer: pickle.PickleBuffer) -> bool:
            if buffer.raw().nbytes < OUT_OF_BAND_BYTES:
                return True
            buffers.append(buffer)
            return False

        super().__init__(file, protocol=5, buffer_callback=keep)
        self.namespace = namespace
        self.is_taken_apart = is_taken_apart
        self.owners = owners
        self.known = known
        self.tuple_classes: dict[type, bool] = {}  # met: whether one was made while a library ran
        self.memo = {id(thing): (number, thing) for number, thing in enumerate(known)}

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is types.FunctionType:
            return self._function(obj)
        if kind is types.ModuleType:
            return importlib.import_module, (obj.__name__,)
        if kind is types.CellType:
            return self._cell(obj)
        if isinstance(obj, type):
            return self._class(obj)
        numpy = sys.modules.get("numpy")
        if numpy is not None and kind is numpy.ndarray:
            return self.owners.reduce(obj)
        handle = spent.facts_of(obj)
        if handle is not None:
            return spent.make, handle
        if figures.is_figure(obj):
            return figures.make, figures.parts_of(obj)
        if compiled.is_compiled(obj):
            home = compiled.home_of(obj)
            if home is not None:
                return getattr, (importlib.import_module(home[0]), home[1])
            return compiled.make, compiled.parts_of(obj)
        if kind is re.Match:
            return match, (obj.re, obj.string, obj.pos, obj.endpos, obj.regs)
        if isinstance(obj, enum.Enum):
            return NotImplemented
        if self.is_taken_apart(kind):
            return _reduce_instance(obj)
        if isinstance(obj, tuple):
            self._check_tuple(kind)
        return NotImplemented

    def _check_tuple(self, kind: type) -> None:
        """Refuse rows of an input's own class: which of them are the input's could not be told."""
        if kind not in self.tuple_classes:
            self.tuple_classes[kind] = _reduce_tuple_class(kind) is not None
            if self.tuple_classes[kind] and any(thing is kind for thing in self.known):
                raise NotStorable(f"it keeps a `{kind.__name__}` of an input")

    def _function(self, function: types.FunctionType) -> Any:
        if function.__globals__ is not self.namespace and _is_importable(function):
            return NotImplemented
        if function.__globals__ is not self.namespace:
            raise NotStorable(
                f"the function `{function.__qualname__}` belongs to no module that can be imported"
            )
        code = function.__code__
        cells = function.__closure__ or ()
        state = (
            function.__defaults__,
            function.__kwdefaults__,
            dict(function.__dict__),
            function.__qualname__,
            function.__module__,
            function.__doc__,
            function.__annotations__,
        )
        import marshal

        made = (marshal.dumps(code), self.namespace, function.__name__, cells)
        return _make_function, made, state, None, None, _set_function_state

    def _cell(self, cell: Any) -> Reduction:
        try:
            content: tuple[object, ...] = (cell.cell_contents,)
        except ValueError:
            content = ()
        return _make_cell, (), content, None, None, _fill_cell

    def _class(self, cls: type) -> Any:
        if cls.__module__ != "__main__":
            return _reduce_tuple_class(cls) or NotImplemented
        # classes among the inputs and those that a hit makes again are known: the run has made this one
        raise NotStorable(f"the class `{cls.__qualname__}` cannot be made again without running the cell")


class _NanPacker(_Packer):
    """Also keeps which NaN is the one of `math` or NumPy: `in` and `==` of lists tell it by its identity."""

    def persistent_id(self, obj: object) -> int | None:
        if type(obj) is not float or obj == obj:
            return None
        return next((place for place, nan in _nans().items() if nan is obj), None)


_NAN_BYTES = pickle.BINFLOAT + struct.pack(">d", math.nan)


def _nans() -> dict[int, object]:
    """The NaNs that have a name, by what stands for them in a pickle."""
    numpy = sys.modules.get("numpy")
    return {-1: math.nan} if numpy is None else {-1: math.nan, -2: numpy.nan}


class ArrayOwners:
    """Which arrays share memory, so that a buffer is stored once and views stay views.

    Parameters
    ----------
    arrays : sequence of ndarray
        All arrays among the outputs.
    inputs : sequence of ndarray
        All arrays among the inputs, which are known on both sides.
    contents : sequence of object
        Among them arrays that stand for the new content of an input, to be stored whole.
    """

    def __init__(self, arrays: Sequence[Any], inputs: Sequence[Any], contents: Sequence[object] = ()):
        self._contents = {id(part): part for part in contents}
        counts: dict[int, int] = {}
        self._owners: dict[int, Any] = {}
        for array in arrays:
            owner = owner_of(array)
            self._owners[id(owner)] = owner
            counts[id(owner)] = counts.get(id(owner), 0) + 1
        self._shared = {number for number, count in counts.items() if count > 1}
        self._inputs = [(*memory_range(array), array) for array in inputs if array.nbytes]

    def reduce(self, array: Any) -> Any:
        """How to pickle one plain array: NotImplemented for numpy's own way, else as a view."""
        if id(array) in self._contents:
            return NotImplemented
        if array.dtype.hasobject and not array.flags.writeable:
            return _read_only, (array.copy(order="K"),)  # numpy's own pickle of objects forgets it
        if array.nbytes == 0 or array.dtype.hasobject:
            return NotImplemented
        low, high = memory_range(array)
        for input_low, input_high, source in self._inputs:
            if source is not array and input_low <= low and high <= input_high:
                return self._view(array, source)
            if source is not array and low < input_high and input_low < high:
                raise NotStorable("an array shares part of its memory with an input")
        owner = owner_of(array)
        if owner is array:
            return _reduce_owner(array)
        if id(owner) in self._shared or not (array.flags.c_contiguous or array.flags.f_contiguous):
            return self._view(array, owner)
        return NotImplemented

    def _view(self, array: Any, source: Any) -> Reduction:
        if not (source.flags.c_contiguous or source.flags.f_contiguous):
            raise NotStorable("an array is a view of memory that is not contiguous")
        offset = array.__array_interface__["data"][0] - source.__array_interface__["data"][0]
        made = (source, offset, array.shape, array.strides, array.dtype, array.flags.writeable)
        return _make_view, made


def _read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def _reduce_owner(array: Any) -> Any:
    """How to pickle an array that owns its memory, so that it does again: as numpy would, and a copy."""
    if not array.flags.owndata or array.nbytes >= OWNED_BYTES:
        return NotImplemented
    made = array.__reduce_ex__(5)
    return (_make_owner, made[1]) if made[0].__name__ == "_frombuffer" else made


def _make_owner(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    numpy = importlib.import_module("numpy")
    held = numpy.frombuffer(buffer, dtype=dtype)
    made = held.reshape(shape, order=order).copy(order=order)
    made.flags.writeable = held.flags.writeable
    return made


def owner_of(array: Any) -> Any:
    """The array that owns the memory of this one, itself if none does."""
    numpy = sys.modules["numpy"]
    while type(array.base) is numpy.ndarray:
        array = array.base
    return array


def memory_range(array: Any) -> tuple[int, int]:
    """First address of the array's data and the one after its last."""
    numpy = sys.modules["numpy"]
    bounds = getattr(numpy.lib, "array_utils", numpy).byte_bounds(array)
    return int(bounds[0]), int(bounds[1])


def pack(
    outputs: object,
    known: Sequence[object],
    namespace: dict[str, object],
    is_taken_apart: Callable[[type], bool],
    owners: ArrayOwners,
) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Pickle what a cell left behind.

    Parameters
    ----------
    outputs : object
        Everything, as one object, so that what shares an object still does.
    known : sequence of object
        What exists on both sides, in the same order at `unpack`.
    namespace : dict
        The notebook's namespace, which functions keep as their globals; the first of `known`.
    is_taken_apart : callable
        Whether instances of a class are stored by type, attributes and content.
    owners : ArrayOwners

    Returns
    -------
    bytes, list of PickleBuffer
        The pickle and the buffers that lie outside of it.

    Raises
    ------
    NotStorable
        Naming what cannot be pickled.
    """
    file, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    try:
        _Packer(file, known, buffers, namespace, is_taken_apart, owners).dump(outputs)
        if _NAN_BYTES in file.getvalue():
            file, buffers = io.BytesIO(), []
            _NanPacker(file, known, buffers, namespace, is_taken_apart, owners).dump(outputs)
    except NotStorable:
        raise
    except RecursionError:
        raise NotStorable("it is nested too deeply to be pickled") from None
    except Exception as error:
        raise NotStorable(f"{type(error).__name__}: {error}") from error
    return file.getvalue(), buffers


class _Unpacker(pickle.Unpickler):
    """Unpickles over known objects: a first pickle, made here, puts them into the memo one after the other.

    CPython's unpickler drops a memo that is assigned as a dict, so it is filled by what fills it anyway.
    Places that nothing refers to hold None.
    """

    def __init__(
        self, pickled: Any, buffers: Sequence[Any], known: Sequence[object], referred: Iterable[int]
    ):
        self._known = known
        asks, filled = [], 0
        for place in referred:
            asks.append(b"N\x940" * (place - filled) + b"J" + place.to_bytes(4, "little") + b"Q\x940")
            filled = place + 1
        asks.append(b"N\x940" * (len(known) - filled))
        start = b"".join([b"\x80\x05", *asks, b"N."])
        super().__init__(io.BytesIO(start + bytes(pickled)), buffers=buffers)
        super().load()

    def persistent_load(self, number: int) -> object:
        if number < 0:
            return _nans().get(number, math.nan)
        return self._known[number]


def unpack(
    pickled: Any, buffers: Sequence[Any], known: Sequence[object], referred: Sequence[int] | None = None
) -> Any:
    """Put together what `pack` took apart, over the live objects in `known`.

    `referred` are the places in `known` that the pickle refers to, in order; None stands for all.
    """
    return _Unpacker(pickled, buffers, known, range(len(known)) if referred is None else referred).load()


def lookup(namespace: Mapping[str, object], qualname: str) -> object:
    """What a dotted name stands for in the namespace, None if nothing."""
    first, *rest = qualname.split(".")
    found = namespace.get(first)
    for part in rest:
        found = getattr(found, part, None)
    return found


def _is_importable(function: types.FunctionType) -> bool:
    module = sys.modules.get(function.__module__ or "")
    return module is not None and lookup(vars(module), function.__qualname__) is function


_TUPLE_CLASS_PARTS = OF_NAMEDTUPLES | {"__slotnames__"}


def _reduce_tuple_class(cls: type) -> Reduction | None:
    """A namedtuple class that a library makes while it runs, as `DataFrame.itertuples` does; else None."""
    fields = vars(cls).get("_fields")
    if cls.__bases__ != (tuple,) or type(fields) is not tuple:
        return None
    if vars(cls).keys() - _TUPLE_CLASS_PARTS - set(fields):
        return None
    if lookup(vars(sys.modules.get(cls.__module__, math)), cls.__qualname__) is cls:
        return None
    return _make_tuple_class, (cls.__name__, fields, vars(cls)["_field_defaults"], cls.__module__)


def _make_tuple_class(name: str, fields: tuple[str, ...], defaults: dict[str, object], module: str) -> type:
    values = [defaults[field] for field in fields if field in defaults] or None
    made: type = collections.namedtuple(name, fields, rename=True, defaults=values, module=module)  # type: ignore[misc]
    return made


def _make_function(code: bytes, namespace: dict[str, Any], name: str, cells: tuple[Any, ...]) -> Any:
    import marshal

    return types.FunctionType(marshal.loads(code), namespace, name, None, cells)


def _set_function_state(function: types.FunctionType, state: tuple[Any, ...]) -> None:
    defaults, keyword_defaults, attributes, qualname, module, doc, annotations = state
    function.__defaults__ = defaults
    function.__kwdefaults__ = keyword_defaults
    function.__dict__.update(attributes)
    function.__qualname__ = qualname
    function.__module__ = module
    function.__doc__ = doc
    function.__annotations__ = annotations


def _make_cell() -> Any:
    return types.CellType()


def _fill_cell(cell: Any, content: tuple[Any, ...]) -> None:
    if content:
        cell.cell_contents = content[0]


def _make_view(
    source: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any, writeable: bool
) -> Any:
    numpy = sys.modules["numpy"]
    flat = source if source.flags.c_contiguous else source.T
    # the first element may lie behind the start of the source: negative strides run backwards from it
    view = numpy.ndarray(shape, dtype, buffer=flat, offset=offset, strides=strides)
    view.flags.writeable = writeable
    return view


_IMMUTABLE_BASES = (str, bytes, int, float, complex, tuple, frozenset)
_MUTABLE_BASES = (list, dict, set, bytearray)


def _reduce_instance(obj: Any) -> Any:
    """An instance of a notebook or local class, whatever its pickling methods say."""
    cls = type(obj)
    if any("__del__" in vars(kind) for kind in cls.__mro__):
        raise NotStorable(f"instances of `{cls.__qualname__}` run code when they are dropped (`__del__`)")
    base = next((base for base in cls.__mro__ if base.__module__ == "builtins"), object)
    foreign = [kind for kind in cls.__mro__ if kind.__module__ != "builtins" and _has_native_state(kind)]
    if foreign:
        return NotImplemented  # state lies in a library's C structure: its own reduction knows it
    if issubclass(cls, BaseException):
        rest = (obj.__cause__, obj.__context__, obj.__suppress_context__)
        return _new_exception, (cls, obj.args), (_fields(obj), rest), None, None, _set_exception_state
    if base in _IMMUTABLE_BASES:
        return _new_with_value, (cls, base, base(obj)), _fields(obj), None, None, _set_fields
    if base in _MUTABLE_BASES:
        return _new_container, (cls, base), (_fields(obj), base(obj)), None, None, _set_container_state
    if base is not object or not _is_made_by_object(cls):
        return NotImplemented
    return _new_plain, (cls,), _fields(obj), None, None, _set_fields


def _has_native_state(kind: type) -> bool:
    """Whether a class outside of builtins is made by C code: then it brings its own `__new__`."""
    return isinstance(vars(kind).get("__new__"), types.BuiltinFunctionType)


def _is_made_by_object(cls: type) -> bool:
    """Whether `object.__new__` makes instances of the class: not of one whose data lies in C structures."""
    try:
        object.__new__(cls)
    except TypeError:
        return False
    return True


def _fields(obj: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    slots: dict[str, Any] = {}
    for kind in type(obj).__mro__:
        for name, member in vars(kind).items():
            if isinstance(member, types.MemberDescriptorType) and name not in ("__dict__", "__weakref__"):
                try:
                    slots[f"{kind.__qualname__}.{name}"] = member.__get__(obj, type(obj))
                except AttributeError:
                    continue
    return dict(getattr(obj, "__dict__", {})), slots


def _set_fields(obj: Any, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    attributes, slots = state
    if attributes:
        obj.__dict__.update(attributes)
    for kind in type(obj).__mro__:
        for name, member in vars(kind).items():
            key = f"{kind.__qualname__}.{name}"
            if key in slots and isinstance(member, types.MemberDescriptorType):
                member.__set__(obj, slots[key])


def _new_plain(cls: type) -> Any:
    return object.__new__(cls)


def _new_with_value(cls: type, base: Any, value: Any) -> Any:
    return base.__new__(cls, value)


def _new_container(cls: type, base: Any) -> Any:
    return base.__new__(cls)


def _set_container_state(obj: Any, state: tuple[Any, Any]) -> None:
    fields, content = state
    _set_fields(obj, fields)
    if isinstance(content, list):
        list.extend(obj, content)
    elif isinstance(content, dict):
        dict.update(obj, content)
    elif isinstance(content, set):
        set.update(obj, content)
    else:
        bytearray.extend(obj, content)


def _new_exception(cls: type[BaseException], args: tuple[Any, ...]) -> Any:
    return cls.__new__(cls, *args)


def _set_exception_state(obj: BaseException, state: tuple[Any, Any]) -> None:
    fields, (cause, context, suppress) = state
    _set_fields(obj, fields)
    obj.__cause__, obj.__context__, obj.__suppress_context__ = cause, context, suppress
