"""The one pickler: notebook code by value, buffers out of band, classes that come home as themselves.

cloudpickle sends what workers cannot import. Three things are done differently here, each because
cloudpickle's way is wrong for warm workers: a class gets a new identity on the worker in each call (an
attribute deleted since would live on), a result that holds an instance of a class sent out refers to the
sender's live class and never carries its attributes (they would overwrite the live ones), and functions
under `lru_cache` or `singledispatch` are taken apart, since they fail on arrival or do not leave.
"""

from __future__ import annotations

import copyreg
import functools
import io
import marshal
import os
import sys
import weakref
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType

from ipyparcache.lean import pickle

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any, TypeAlias


class Buffers:
    """Collects the buffers of a pickle that are at least `threshold` bytes, so that they stay out of it."""

    def __init__(self, threshold: int):
        self.threshold = threshold
        self.taken: list[memoryview] = []

    def keep(self, buffer: pickle.PickleBuffer) -> bool:
        """Take the buffer, or say that it belongs into the pickle."""
        raw = buffer.raw()
        if raw.nbytes < self.threshold:
            return True
        self.taken.append(raw)
        return False


_TRACKED = "ipyparcache"
_live_classes: weakref.WeakValueDictionary[int, type] = weakref.WeakValueDictionary()
_numbers_of_classes: weakref.WeakKeyDictionary[type, int] = weakref.WeakKeyDictionary()
_ATOMS = (type(None), bool, int, float, complex, str, bytes)


def live_class(owner: int, number: int, version: str) -> type:
    """The class that this process sent to its workers under this number; on a worker, the one that
    arrived.
    """
    if owner == os.getpid():
        if number in _live_classes:
            return _live_classes[number]
    elif "cloudpickle.cloudpickle" in sys.modules:
        source = sys.modules["cloudpickle.cloudpickle"]
        arrived = source._DYNAMIC_CLASS_TRACKER_BY_ID.get(f"{_TRACKED}:{owner}:{number}:{version}")
        if isinstance(arrived, type):
            return arrived
    raise pickle.UnpicklingError(f"class {number} of process {owner} is no longer there")


def _number_of(kind: type) -> int:
    number = _numbers_of_classes.get(kind)
    if number is None:
        number = len(_numbers_of_classes) + 1
        while number in _live_classes:
            number += 1
        _numbers_of_classes[kind] = number
        _live_classes[number] = kind
    return number


def cached_again(function: Callable[..., object], parameters: dict[str, Any]) -> object:
    """The function under a `lru_cache` of its own."""
    return functools.lru_cache(**parameters)(function)


def property_again(function: Callable[..., object], name: str | None) -> object:
    """The function under a `cached_property` of this name: until Python 3.12 each has a lock."""
    made: functools.cached_property[object] = functools.cached_property(function)
    if name is not None:
        made.__set_name__(object, name)
    return made


def dispatched_again(function: Callable[..., object], registry: dict[type, Any]) -> object:
    """The function under a `singledispatch` with these implementations."""
    made = functools.singledispatch(function)
    for kind, implementation in registry.items():
        if kind is not object:
            made.register(kind, implementation)
    return made


def is_array(value: object) -> bool:
    """Whether it is an array of numpy's, or a map of a file, and no class derived from them."""
    numpy = sys.modules.get("numpy")
    # `memmap` comes late: whoever loads it in another thread cannot have made an array yet.
    return numpy is not None and hasattr(numpy, "memmap") and type(value) in (numpy.ndarray, numpy.memmap)


def in_no_file(array: object) -> Any:
    """The word of no one about where an array lies."""
    return NotImplemented


reduce_array: Callable[[Any], Any] = in_no_file
"""How to send an array that lies in a file, or NotImplemented; `engine.filebacked` knows more."""


def loses_byte_order(value: object) -> bool:
    """Whether numpy would bring an array back in another byte order: it does so where it pickles no
    buffer.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) is not getattr(numpy, "ndarray", None):
        return False
    array: Any = value
    return not (array.dtype.isnative or array.dtype.hasobject or array.flags.forc)


# cloudpickle takes 25 ms to import, and a process that sends importable functions only never needs it: it is
# loaded by the first pickle that does, while the fork server starts.
@functools.cache
def _picklers() -> tuple[type, type]:
    import cloudpickle.cloudpickle as source

    by_reference = source._should_pickle_by_reference
    tracked = source._DYNAMIC_CLASS_TRACKER_BY_CLASS

    def reduced_by_parts(obj: Any) -> Any:
        """The reduction of what cloudpickle cannot send, or NotImplemented."""
        if isinstance(obj, functools._lru_cache_wrapper):
            if not is_importable(obj):
                return cached_again, (obj.__wrapped__, obj.cache_parameters())
        elif (
            isinstance(obj, FunctionType)
            and hasattr(obj, "registry")
            and hasattr(obj, "_clear_cache")
            and hasattr(obj, "__wrapped__")
            and not by_reference(obj)
        ):
            return dispatched_again, (obj.__wrapped__, dict(obj.registry))
        elif type(obj) is functools.cached_property:
            return property_again, (obj.func, obj.attrname)
        elif loses_byte_order(obj):
            return obj.copy("C").__reduce_ex__(5)
        return NotImplemented

    class Sender(source.Pickler):  # type: ignore[misc]
        """Pickles what goes to a worker; `version` tells the calls apart."""

        def __init__(self, file: io.BytesIO, version: str, buffers: Buffers | None):
            super().__init__(file, 5, buffer_callback=buffers.keep if buffers is not None else None)
            self.version = version

        def reducer_override(self, obj: Any) -> Any:
            if is_array(obj):
                parts = reduce_array(obj)
                if parts is not NotImplemented:
                    return parts
            parts = reduced_by_parts(obj)
            if parts is not NotImplemented:
                return parts
            reduced = super().reducer_override(obj)
            if isinstance(obj, type) and type(reduced) is tuple and len(reduced) == 6:
                make, arguments, *rest = reduced
                identity = f"{_TRACKED}:{os.getpid()}:{_number_of(obj)}:{self.version}"
                if make is source._make_skeleton_class:
                    return make, (*arguments[:4], identity, *arguments[5:]), *rest
                if make is source._make_skeleton_enum:
                    return make, (*arguments[:5], identity, *arguments[6:]), *rest
            return reduced

    class Returner(source.Pickler):  # type: ignore[misc]
        """Pickles what goes home from a worker."""

        def __init__(self, file: io.BytesIO, buffers: Buffers | None):
            super().__init__(file, 5, buffer_callback=buffers.keep if buffers is not None else None)

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, type):
                identity = tracked.get(obj)
                if isinstance(identity, str) and identity.startswith(_TRACKED):
                    _, owner, number, version = identity.split(":", 3)
                    return live_class, (int(owner), int(number), version)
            parts = reduced_by_parts(obj)
            return parts if parts is not NotImplemented else super().reducer_override(obj)

    return Sender, Returner


def is_importable(function: object) -> bool:
    """Whether a plain function or class is found again by its module and name, and may go as these."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module in ("__main__", "__mp_main__"):
        return False
    # Another thread may be just importing it: then nobody has told it of such modules yet.
    if getattr(sys.modules.get("cloudpickle.cloudpickle"), "_PICKLE_BY_VALUE_MODULES", None):
        return False
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is function


def _names_in(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names_in(constant)
    return names


_SPACE = ("__name__", "__package__", "__file__")  # what a function may ask about its module
# By function that stands alone: its parts, the names that its code reads, and its pickle.
_Alike: TypeAlias = "tuple[CodeType, object, object, object, object, object, object, frozenset[str], bytes]"
_pickled_functions: weakref.WeakKeyDictionary[FunctionType, _Alike] = weakref.WeakKeyDictionary()


def _has_more(function: FunctionType) -> bool:
    # Annotations stay here: a task cannot ask for those of a function that no name leads to.
    return bool(function.__closure__ or function.__dict__ or function.__kwdefaults__)


def stands_alone(function: object) -> bool:
    """Whether a function consists of its code and plain defaults: it reads no global but builtins."""
    if type(function) is not FunctionType or _has_more(function):
        return False
    if function.__defaults__ and not all(type(value) in _ATOMS for value in function.__defaults__):
        return False
    names = _names_in(function.__code__)
    return function.__globals__.keys().isdisjoint(names) and "__import__" not in names


def pickled_before(function: FunctionType) -> bytes | None:
    """The pickle of a function that stands alone, if it and what it may ask about its module are as then."""
    known = _pickled_functions.get(function)
    if known is None:
        return None
    code, defaults, doc, name, qualified, module, space, names, payload = known
    values = function.__globals__
    if (
        function.__code__ is code
        and function.__defaults__ is defaults
        and function.__doc__ is doc
        and function.__name__ is name
        and function.__qualname__ is qualified
        and function.__module__ is module
        and not _has_more(function)
        and values.keys().isdisjoint(names)
        and (values.get("__name__"), values.get("__package__"), values.get("__file__")) == space
    ):
        return payload
    return None


class _Alone:
    """A function that stands alone, as its parts."""

    def __init__(self, parts: tuple[Any, ...]):
        self._parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return made_of_code, self._parts


def made_of_code(
    code: bytes,
    names: tuple[str, str, Any],
    defaults: tuple[Any, ...] | None,
    doc: Any,
    space: dict[str, Any],
) -> FunctionType:
    """The function that `dump_function` took apart, with globals of its own."""
    import builtins

    name, qualified, module = names
    made = FunctionType(marshal.loads(code), {"__builtins__": builtins, **space}, name, defaults)
    made.__qualname__ = qualified
    made.__module__ = module
    made.__doc__ = doc
    return made


def needs_cloudpickle(function: object) -> bool:
    """Whether a worker must have cloudpickle to load what `dump_function` makes of it."""
    plain = type(function) in (FunctionType, BuiltinFunctionType, type) and is_importable(function)
    return not plain and not stands_alone(function)


def dump_function(function: object, version: str, buffers: Buffers | None = None) -> bytes:
    """Pickle a callable for the workers, with all that it refers to."""
    kind = type(function)
    alone: Any = function
    if kind is FunctionType and (payload := pickled_before(alone)) is not None:
        return payload
    if kind in (FunctionType, BuiltinFunctionType, type) and is_importable(function):
        return pickle.dumps(function, 5)
    if not stands_alone(function):
        return dumps(function, version, buffers)
    names = (alone.__name__, alone.__qualname__, alone.__module__)
    space = tuple(map(alone.__globals__.get, _SPACE))
    told = {name: value for name, value in zip(_SPACE, space, strict=True) if isinstance(value, str)}
    parts = (marshal.dumps(alone.__code__), names, alone.__defaults__, alone.__doc__, told)
    payload = pickle.dumps(_Alone(parts), 5)
    read = frozenset(_names_in(alone.__code__))
    known = (alone.__code__, alone.__defaults__, alone.__doc__, *names, space, read, payload)
    _pickled_functions[alone] = known
    return payload


def dumps(value: object, version: str, buffers: Buffers | None = None) -> bytes:
    """Pickle a value for the workers; large buffers go into `buffers`."""
    file = io.BytesIO()
    _picklers()[0](file, version, buffers).dump(value)
    return file.getvalue()


_MAP = b"\x06memmap"
"""How a pickle names the class of maps of files."""


def _without_maps(value: Any) -> Any:
    """The value with maps of files as arrays of their own: the file may go with the call."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "memmap"):  # not loaded, or just being loaded
        return value
    if type(value) is numpy.memmap:
        return numpy.array(value, order="K", subok=False)
    if type(value) in (tuple, list) and numpy.memmap in map(type, value):
        return type(value)(map(_without_maps, value))
    return value


def dump_result(value: object, buffers: Buffers | None = None) -> bytes:
    """Pickle, on a worker, what a task returned."""
    sent: Any = _without_maps(value)
    if loses_byte_order(sent):
        sent = sent.copy("C")
    keep = buffers.keep if buffers is not None else None
    try:
        data = pickle.dumps(sent, 5, buffer_callback=keep)
        if _MAP not in data or "numpy" not in sys.modules:
            return data
        # Deeper inside, as looking for them would cost every result: it is pickled anew.
        if buffers is not None:
            buffers.taken.clear()
        file = io.BytesIO()
        pickler = pickle.Pickler(file, 5, buffer_callback=keep)
        pickler.dispatch_table = {
            **copyreg.dispatch_table,
            sys.modules["numpy"].memmap: lambda array: _without_maps(array).__reduce_ex__(5),
        }
        pickler.dump(sent)
        return file.getvalue()
    except Exception:
        # By value, then; an error of this second attempt is the one worth telling.
        if buffers is not None:
            buffers.taken.clear()
        file = io.BytesIO()
        _picklers()[1](file, buffers).dump(sent)
        return file.getvalue()


class Wrapped:
    """An object that pickles by value wherever it goes; calls and attributes are passed on to it."""

    def __init__(self, wrapped: object, keep_wrapper: bool = True):
        self._wrapped: Any = wrapped
        self._keep_wrapper = keep_wrapper

    def __reduce__(self) -> tuple[Any, ...]:
        return unwrap_arrived, (dumps(self._wrapped, "wrapped"), self._keep_wrapper)

    def __getattr__(self, name: str) -> Any:
        if name in ("_wrapped", "_keep_wrapper"):
            raise AttributeError(name)
        return getattr(self._wrapped, name)

    def __repr__(self) -> str:
        return f"<wrapped {self._wrapped!r}>"


class WrappedCallable(Wrapped):
    """A `Wrapped` that can be called."""

    def __call__(self, *arguments: object, **keywords: object) -> object:
        return self._wrapped(*arguments, **keywords)


def unwrap_arrived(data: bytes, keep_wrapper: bool) -> object:
    """What `Wrapped.__reduce__` names."""
    value = pickle.loads(data)
    return wrap_non_picklable_objects(value, keep_wrapper) if keep_wrapper else value


def wrap_non_picklable_objects(obj: Any, keep_wrapper: bool = True) -> Any:
    """Wrap `obj` (function, class, instance) so that it travels by value though the rest is pickled plainly.

    A wrapped class keeps its name and makes wrapped instances; `keep_wrapper=False` unwraps on arrival.
    """
    if isinstance(obj, type):

        class WrappedClass(WrappedCallable):
            def __init__(self, *arguments: object, **keywords: object):
                super().__init__(obj(*arguments, **keywords), keep_wrapper)

        WrappedClass.__name__ = obj.__name__
        WrappedClass.__qualname__ = obj.__qualname__
        WrappedClass.__doc__ = obj.__doc__
        WrappedClass.__module__ = obj.__module__
        return WrappedClass
    return WrappedCallable(obj, keep_wrapper) if callable(obj) else Wrapped(obj, keep_wrapper)


__all__ = [
    "Buffers",
    "dump_function",
    "dump_result",
    "dumps",
    "is_array",
    "is_importable",
    "live_class",
    "loses_byte_order",
    "pickled_before",
    "stands_alone",
    "wrap_non_picklable_objects",
]
