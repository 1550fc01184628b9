"""Own states of live objects: taken from one object, and given to another in place."""

from __future__ import annotations

from types import ModuleType

from ipyparcache.digest import (
    code,  # noqa: F401 (registers the kinds of code, and containers those of Python's own)
    modules,
    patches,
)
from ipyparcache.digest.instances import find_kind
from ipyparcache.digest.walk import KINDS, PRIMITIVES, Kind, module_of


def state_of(obj: object) -> object:
    """Own state of a mutable object, its children by reference: what `put_state` takes.

    Raises
    ------
    Unrestorable
        If the state cannot be told apart.
    """
    if _is_library_code(obj):
        return {"patches": dict(patches.patches_of(obj))}  # type: ignore[arg-type]
    return _kind_for(obj).state(obj)


def put_state(obj: object, state: object) -> None:
    """Give a live object, in place, the own state that `state_of` took from another.

    Raises
    ------
    Unrestorable
        If objects of this type cannot be changed so.
    """
    if _is_library_code(obj):
        patches.put_patches(obj, state["patches"])  # type: ignore[arg-type,index]
        return
    _kind_for(obj).put(obj, state)


def _is_library_code(obj: object) -> bool:
    if isinstance(obj, ModuleType):
        return not modules.is_user_code(obj.__name__)
    return isinstance(obj, type) and not modules.is_user_code(module_of(obj))


def _kind_for(obj: object) -> Kind:
    return KINDS.get(type(obj)) or find_kind(type(obj))


def is_atomic(value: object) -> bool:
    """Whether a value is an immutable leaf, which a pickle may copy freely."""
    if type(value) in PRIMITIVES:
        return True
    kind = _kind_for(value)
    if type(value) in (tuple, frozenset):
        return all(map(is_atomic, value))  # type: ignore[call-overload]
    return kind.atomic
