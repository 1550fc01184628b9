"""Functions compiled by numba: which function they were made from, and how.

What they were compiled for so far is no part of them: that comes back when they are called. But the values of
the globals that they read are compiled in, at a moment that no digest tells and no hit repeats, so those have
none. Their own pickle has a new number in each process, and takes the globals along.
"""

from __future__ import annotations

import builtins
import sys
import uuid
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from ipyparcache.digest import modules

_KINDS = ("CPUDispatcher", "DUFunc", "GUFunc", "UFuncDispatcher")
_SIGNATURES = ("sigs", "siglist", "typesigs")


def is_compiled(value: object) -> bool:
    """Whether it is a function that numba compiles, or a part of one."""
    cls = type(value)
    return cls.__name__ in _KINDS and cls.__module__.startswith("numba.")


def parts_of(function: Any) -> tuple[Any, dict[str, Any]]:
    """The class and what `make` needs."""
    return type(function), function._reduce_states()


def make(cls: Any, parts: dict[str, Any]) -> Any:
    """The function of these parts, not yet compiled unless it was for given types alone."""
    if "uuid" in parts:
        parts["uuid"] = str(uuid.uuid4())
    return cls._rebuild(**parts)


def home_of(function: Any) -> tuple[str, str] | None:
    """Module and name under which a library has the function; None for one that is made where it is used."""
    plain, _ = made_from(function)
    module, name = plain.__module__, plain.__qualname__
    if modules.is_user_code(module) or getattr(sys.modules.get(module), name, None) is not function:
        return None
    return module, name


def made_from(function: Any) -> tuple[FunctionType, str]:
    """The Python function, and everything else that tells what is made from it."""
    parts = dict(function._reduce_states())
    inner = parts.pop("dispatcher", None)  # of a ufunc
    if inner is not None:
        parts |= inner._reduce_states()
    if parts.get("can_compile") or parts.get("frozen") is False:
        for name in _SIGNATURES:  # of the calls so far
            parts.pop(name, None)
    parts.pop("uuid", None)
    plain = parts.pop("py_func", None) or parts.pop("pyfunc")
    return plain, repr((type(function).__qualname__, sorted(parts.items())))


def compiled_in(function: Any) -> str | None:
    """Why what a function reads when it is called cannot be told from what its globals are now."""
    plain, _ = made_from(function)
    if not modules.is_user_code(plain.__module__):
        return None
    inner = getattr(function, "_dispatcher", function)
    then = _found_in(getattr(inner, "overloads", None))
    for name, now in _read_by(plain):
        if isinstance(now, ModuleType | type) or (callable(now) and type(now).__module__ == "builtins"):
            continue
        if not (isinstance(now, FunctionType) or is_compiled(now)):
            return f"numba compiles the value of `{name}` in; as an argument it would be told"
        if then is None or any(value is not now for value in then.get(name, ())):
            return f"it may have been compiled with another `{name}` than that of now"
    return None


def _read_by(plain: FunctionType) -> Iterator[tuple[str, object]]:
    """Globals and closed-over names that a function may read, with what they stand for."""
    for name in plain.__code__.co_names:
        if name in plain.__globals__ and not hasattr(builtins, name):
            yield name, plain.__globals__[name]
    for name, cell in zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True):
        yield name, cell.cell_contents


def _found_in(overloads: Any) -> dict[str, list[object]] | None:
    """What names stood for when a function was compiled; None where that cannot be told."""
    found: dict[str, list[object]] = {}
    if overloads is None:
        return None
    for result in overloads.values():
        blocks = getattr(getattr(result, "type_annotation", None), "blocks", None)
        if not isinstance(blocks, dict):
            return None
        for statement in (one for block in blocks.values() for one in block.body):
            if type(statement).__name__ == "Parfor":  # what is inside has been rewritten
                return None
            if type(statement).__name__ == "Assign":
                value = statement.value
                if type(value).__name__ in ("Global", "FreeVar"):
                    found.setdefault(value.name, []).append(value.value)
    return found
