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
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ipyparcache.digest import modules

_KINDS = ("CPUDispatcher", "DUFunc", "GUFunc", "UFuncDispatcher")
_VALUES = (bool, int, float, complex, str, bytes, type(None))
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
    for name, now in _data_and_code(function):
        if not _is_code(now):
            return f"numba compiles the value of `{name}` in; as an argument it would be told"
    return outdated(function)


def outdated(function: Any, seen: tuple[Any, ...] = ()) -> str | None:
    """Why a function, made anew from what its globals are now, may not do what it does; None if it does."""
    if any(function is other for other in seen):
        return None
    plain, _ = made_from(function)
    overloads = getattr(getattr(function, "_dispatcher", function), "overloads", None)
    if not modules.is_user_code(plain.__module__) or overloads == {}:
        return None
    then = _found_in(overloads)
    for name, now in _data_and_code(function):
        if not _is_code(now) and not isinstance(now, _VALUES):
            return f"numba has compiled in what `{name}` held then; as an argument it would be told"
        if then is None or any(not _same(value, now) for value in then.get(name, ())):
            return f"it may have been compiled with another `{name}` than that of now"
        if is_compiled(now) and (inner := outdated(now, (*seen, function))) is not None:
            return f"of `{name}`, which it calls: {inner}"
    return None


def _is_code(value: object) -> bool:
    return isinstance(value, FunctionType) or is_compiled(value)


def _same(then: object, now: object) -> bool:
    return then is now or (type(then) is type(now) and isinstance(now, _VALUES) and then == now)


def _data_and_code(function: Any) -> Iterator[tuple[str, object]]:
    """What a function of the user's reads, but modules, classes and what Python brings."""
    plain, _ = made_from(function)
    if modules.is_user_code(plain.__module__):
        for name, now in _read_by(plain):
            is_builtin = callable(now) and type(now).__module__ == "builtins" and not _is_code(now)
            if not isinstance(now, ModuleType | type) and not is_builtin:
                yield name, now


def _read_by(plain: FunctionType) -> Iterator[tuple[str, object]]:
    """Globals and closed-over names that a function may read, with what they stand for."""
    waiting = [plain.__code__]
    while waiting:
        code = waiting.pop()
        waiting += [part for part in code.co_consts if isinstance(part, CodeType)]  # functions inside of it
        for name in code.co_names:
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
