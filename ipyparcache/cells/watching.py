"""Own states of mutable objects.

Whether an iteration changed them, and how a change is made to the live object.
"""

from __future__ import annotations

import functools
import io
import operator
import random
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, cast

from ipyparcache.cells import foreign
from ipyparcache.cells.foreign import Known
from ipyparcache.cells.foreign import State as State

DIGEST = "digest"  # the state of an object with all that it leads to
INSTANCE = "instance"  # the state of an object by its attributes, and its items if it has some
ALONE = "alone"  # the state of an object of which only the attributes are looked at
MOST_DIGESTS = 64  # objects of libraries that have a digest each

_MODULE_NAMES = frozenset({"__builtins__", "__warningregistry__", "__annotations__"})
_CLASS_NAMES = frozenset(
    {
        "__dict__",
        "__weakref__",
        "__doc__",
        "__slotnames__",
        "_abc_impl",
        "__abstractmethods__",
        "__annotations__",
    }
)
#: What nobody changes in place, or what is a part of an object that is looked at as a whole.
_CONSTANT = frozenset(
    {types.BuiltinFunctionType, types.MethodType, types.CellType, property, staticmethod, classmethod}
    | {functools._lru_cache_wrapper, functools.singledispatchmethod}
)
_CONSTANT_MODULES = (
    *(
        "logging",
        "re",
        "datetime",
        "decimal",
        "fractions",
        "uuid",
        "pathlib",
        "zoneinfo",
        "typing",
        "weakref",
        "_io",
    ),
    *(
        "pandas._libs",
        "pandas.core.internals",
        "pandas.core.indexes",
        "pandas.core.arrays",
        "pandas.core.dtypes",
    ),
    *("numpy.dtypes", "ipyparcache"),
)
#: Groups, windows and resampled rows of pandas are views of tables that keep what was asked of them.
_VIEWS = ("pandas.core.groupby", "pandas.core.resample", "pandas.core.window")
_CONSTANT_NAMES = frozenset({"cython_function_or_method", "_DTypeMeta", "StringDtype", "Pattern"})


def _same_items(one: Iterable[object], other: Iterable[object]) -> bool:
    return all(map(operator.is_, one, other))


def _same_dict(one: Mapping[Any, object], other: Mapping[Any, object]) -> bool:
    return len(one) == len(other) and _same_items(one, other) and _same_items(one.values(), other.values())


def states_of(
    objects: Mapping[int, object], roots: Mapping[str, object], is_user_code: Callable[[object], bool]
) -> tuple[dict[int, State], dict[str, State]]:
    """Own states of those numbered objects that can change, and of whole roots where those are many.

    What pandas keeps of what it was asked is no change. What a library made counts by a digest of all that
    it leads to. Where many such objects lead to each
    other, as in a tree of elements, digests of each would take time by the square: their roots have one each.
    """
    kept = {
        id(vars(obj).get("_cache"))
        for obj in objects.values()
        if type(obj).__module__.startswith("pandas.") and hasattr(obj, "__dict__")
    }
    objects = {number: obj for number, obj in objects.items() if id(obj) not in kept}
    found = {number: _own_state(obj, is_user_code) for number, obj in objects.items()}
    others = [number for number, state in found.items() if state is None]
    if others:
        known = Known(objects.values())
        found |= {number: _library_state(objects[number], known) for number in others}
    by_digest = [number for number in others if found[number] is None]
    whole: dict[str, State] = {}
    if len(by_digest) <= MOST_DIGESTS:
        found |= {number: _digest_state(objects[number]) for number in by_digest}
    else:
        whole = {
            name: _digest_state(root)
            for name, root in roots.items()
            if not isinstance(root, types.ModuleType | type)
        }
        # Where a root has no digest, the objects do as far as their attributes show it.
        whole = {name: state for name, state in whole.items() if state[0] == DIGEST}
        found |= {number: _instance_alone(objects[number]) for number in by_digest}
    return {n: state for n, state in found.items() if state is not None and state != ("constant",)}, whole


def state_of(obj: Any, is_user_code: Callable[[object], bool]) -> State:
    """The own state of an object, its children by reference; comparable by `is_as`."""
    state = _own_state(obj, is_user_code)
    return _digest_state(obj) if state is None else state


def _library_state(obj: Any, known: Known) -> State | None:
    """The own state of what a library made; None for what has more than it is pickled as."""
    state = foreign.frame_state(obj)
    if state is not None:
        return state
    how = _kind_of_library(cast(Hashable, type(obj)))
    if how == "constant":
        return ("constant",)
    if how == "instance":
        return _instance_state(obj)
    if how != "pickled":
        return None
    try:
        return foreign.reduced_state(obj, known)
    except Exception:
        return None


def _own_state(obj: Any, is_user_code: Callable[[object], bool]) -> State | None:
    """The same; None for what counts by a digest."""
    kind = type(obj)
    if kind is list or kind is deque:
        return "items", list(obj)
    if kind is dict or kind is OrderedDict or kind is defaultdict:
        return "dict", dict(obj)
    if kind in _as_before:
        return _as_before[kind]
    state = _state_of_kind(obj, kind, is_user_code)
    if (state is None or (state == ("constant",) and kind is not type)) and (
        kind.__module__.partition(".")[0] in ("numpy", "pandas")
    ):
        _as_before[kind] = state
    return state


_as_before: dict[type, State | None] = {}  # of classes of which all objects have the same


def _state_of_kind(obj: Any, kind: Any, is_user_code: Callable[[object], bool]) -> State | None:
    if kind is set:
        return "set", set(obj)
    if kind is bytearray:
        return "bytes", bytes(obj)
    if kind is types.FunctionType:
        if obj.__closure__ is None and not obj.__dict__ and not is_user_code(obj.__module__):
            return ("constant",)
        contents = []
        for part in obj.__closure__ or ():
            try:
                contents.append(part.cell_contents)
            except ValueError:
                contents.append(None)
        return "function", [obj.__code__, obj.__defaults__, obj.__kwdefaults__, *contents], dict(obj.__dict__)
    if isinstance(obj, type):
        if not is_user_code(obj.__module__):
            return ("constant",)
        return "class", {name: value for name, value in vars(obj).items() if name not in _CLASS_NAMES}
    if kind is types.ModuleType:
        if not is_user_code(obj.__name__):
            return ("constant",)
        return "module", {name: value for name, value in vars(obj).items() if name not in _MODULE_NAMES}
    if kind in (io.StringIO, io.BytesIO):
        return ("equal", None) if obj.closed else ("equal", (obj.tell(), obj.getvalue()))
    if kind is random.Random:
        return "equal", random.Random.getstate(obj)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if kind is numpy.ndarray:
            return _array_state(obj)
        if isinstance(obj, numpy.memmap):
            return ("constant",)  # its file is shared for writing
        if isinstance(obj, numpy.random.Generator):
            return "repr", repr(obj.bit_generator.state)
        if isinstance(obj, numpy.random.BitGenerator):
            return "repr", repr(obj.state)
        if isinstance(obj, numpy.random.RandomState):
            return "repr", repr(
                [part.tobytes() if hasattr(part, "tobytes") else part for part in obj.get_state()]
            )
        if isinstance(obj, numpy.dtype | numpy.ufunc | numpy.generic):
            return ("constant",)
    if kind.__module__.startswith("pandas.") and any(b.__module__.startswith(_VIEWS) for b in kind.__mro__):
        return ("constant",)
    if kind in _CONSTANT or kind.__module__.startswith(_CONSTANT_MODULES) or kind.__name__ in _CONSTANT_NAMES:
        return ("constant",)
    if is_user_code(kind.__module__):
        return _instance_state(obj)
    return None


@functools.lru_cache(maxsize=4096)
def _kind_of_library(kind: Hashable) -> str:
    """Whether objects of a class are constant, what they hold themselves, as they are pickled, or more."""
    from ipyparcache.digest.instances import InstanceKind, LibraryInstanceKind, ReducedKind, find_kind
    from ipyparcache.digest.walk import KINDS

    assert isinstance(kind, type)
    found = KINDS.get(kind) or find_kind(kind)
    if found.atomic:
        return "constant"
    if type(found) is InstanceKind and (found.base is None or issubclass(kind, (dict, list, set, deque))):
        return "instance"
    return "pickled" if type(found) in (LibraryInstanceKind, ReducedKind) else "more"


def _instance_alone(obj: Any) -> State:
    return ALONE, dict(getattr(obj, "__dict__", ()))


def _array_state(obj: Any) -> State:
    if obj.dtype.hasobject:
        return "items", (obj.shape, obj.dtype.str), obj.ravel().tolist()
    return "array", (obj.shape, obj.strides, obj.dtype.str), foreign.content_of_array(obj)


def _instance_state(obj: Any) -> State:
    own: dict[str, object] = {}
    for name in _slots_of(cast(Hashable, type(obj))):
        if hasattr(obj, name):
            own[name] = getattr(obj, name)
    attributes = dict(getattr(obj, "__dict__", ()))
    base: object = None
    if isinstance(obj, list | deque):
        base = list(obj)
    elif isinstance(obj, dict):
        base = dict(obj)
    elif isinstance(obj, set):
        base = set(obj)
    return INSTANCE, attributes, own, base


@functools.cache
def _slots_of(kind: Hashable) -> tuple[str, ...]:
    found: list[str] = []
    assert isinstance(kind, type)
    for owner in kind.__mro__:
        slots = owner.__dict__.get("__slots__", ())
        found.extend((slots,) if isinstance(slots, str) else slots)
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


def _digest_state(obj: Any) -> State:
    """Objects of libraries count by what they are pickled as, so that caches that fill lazily do not."""
    from ipyparcache.digest.objects import digest_of
    from ipyparcache.digest.states import is_atomic

    if is_atomic(obj):
        return ("constant",)
    try:
        return DIGEST, digest_of(obj)
    except Exception:
        return _instance_alone(obj)  # what it holds at the top must do


def is_unchanged(obj: Any, before: State, is_user_code: Callable[[object], bool]) -> bool:
    """Whether an object is as it was when its own state was taken."""
    return is_as(_state_like(obj, before, is_user_code), before)


def says_nothing_new(obj: Any, before: State, is_user_code: Callable[[object], bool]) -> bool:
    """The same, where what a `cached_property` has kept since does not count."""
    now = _state_like(obj, before, is_user_code)
    if now[0] == INSTANCE:
        known = before[1]
        kept = {
            name: value
            for name, value in now[1].items()
            if name in known or not isinstance(getattr(type(obj), name, None), functools.cached_property)
        }
        now = INSTANCE, kept, *now[2:]
    return is_as(now, before)


def _state_like(obj: Any, before: State, is_user_code: Callable[[object], bool]) -> State:
    """The own state of an object, of the kind that another one is of."""
    if before[0] == ALONE:
        return _instance_alone(obj)
    if before[0] in (foreign.BLOCKS, foreign.COLUMNS):
        return foreign.frame_state(obj, before[0]) or ("constant",)
    if before[0] == INSTANCE:
        return _instance_state(obj)
    if before[0] == DIGEST:  # also of a list or function, where it stands for all that it leads to
        return _digest_state(obj)
    if before[0] == foreign.REDUCED:
        try:
            return foreign.reduced_state(obj, before[-1])
        except Exception:
            return ("constant",)
    return state_of(obj, is_user_code)


def is_as(now: State, before: State) -> bool:
    """Whether two own states of one object are the same: children by identity, content by value."""
    if now[0] != before[0]:
        return False
    for one, other in zip(now[1:], before[1:], strict=True):
        if isinstance(one, dict):
            if not _same_dict(one, other):
                return False
        elif isinstance(one, list):
            if len(one) != len(other) or not _same_items(one, other):
                return False
        elif isinstance(one, set):
            if set(map(id, one)) != set(map(id, other)):
                return False
        elif one != other:
            return False
    return True


# ---- changes of elements


def content_of(obj: Any) -> tuple[str, Any] | None:
    """What must be put into the live object to make it as `obj` is.

    None where that cannot be done soundly.
    """
    kind = type(obj)
    if kind is list or kind is deque:
        return "items", list(obj)
    if isinstance(obj, dict) and kind in (dict, OrderedDict, defaultdict):
        return "dict", list(obj.items())
    if kind is set:
        return "set", list(obj)
    if kind is bytearray:
        return "bytes", bytes(obj)
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray:
        return "array", obj.copy()
    if isinstance(obj, type) or kind in (types.FunctionType, types.ModuleType):
        return None
    from ipyparcache.digest import states

    try:
        return "state", states.state_of(obj)
    except Exception:
        return None


def put_content(obj: Any, how: str, content: Any) -> None:
    """Make the live object as the worker's copy was."""
    if how == "items":
        if isinstance(obj, deque):
            obj.clear()
            obj.extend(content)
        else:
            obj[:] = content
    elif how == "dict":
        if list(obj) == [key for key, _ in content]:
            for key, value in content:
                obj[key] = value
        else:
            obj.clear()
            obj.update(content)
    elif how == "set":
        obj.clear()
        obj.update(content)
    elif how == "bytes":
        obj[:] = content
    elif how == "array":
        obj[...] = content
    else:
        from ipyparcache.digest.states import put_state

        put_state(obj, content)
