"""The tasks of a call as people write them: `delayed`, and what drawing them may change."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType, GeneratorType, ModuleType

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

Triple = tuple[Callable[..., object], tuple[object, ...], dict[str, object]]
"""A task: function, arguments, keywords."""

_last_delayed: tuple[object, Any] = (None, None)


def delayed(function: Callable[..., Any]) -> Callable[..., Triple]:
    """Decorate a function so that a call returns (function, arguments, keywords) and runs nothing."""
    # People write `delayed(f)(i) for i in ...`: wrapping anew for each task costs more than running it.
    global _last_delayed
    last, made = _last_delayed
    if last is function:
        return made  # type: ignore[no-any-return]

    def delayed_function(*args: object, **kwargs: object) -> Triple:
        return function, args, kwargs

    if type(function) is FunctionType and not function.__dict__:  # what `wraps` does, in half the time
        for name in functools.WRAPPER_ASSIGNMENTS:
            setattr(delayed_function, name, getattr(function, name))
        delayed_function.__wrapped__ = function  # type: ignore[attr-defined]
    else:
        with contextlib.suppress(AttributeError):  # some callables lack what it copies
            delayed_function = functools.wraps(function)(delayed_function)
    _last_delayed = (function, delayed_function)
    return delayed_function


def forget_delayed() -> None:
    """Let go of the last function."""
    global _last_delayed
    _last_delayed = (None, None)


_CONTAINERS: tuple[Iterable[object], ...] = ([], (), range(0), {}, {}.values(), {}.items(), set(), "", b"")
_PLAIN_ITERATORS = {type(iter(made)) for made in _CONTAINERS}


@functools.lru_cache(maxsize=256)
def _facts_of(code: CodeType) -> tuple[int, bool, frozenset[str]]:
    """How many calls a piece of code makes, whether it stores into objects, and the globals that it reads."""
    import dis

    steps = list(dis.get_instructions(code))
    calls = sum(1 for step in steps if step.opname in ("CALL", "CALL_KW", "CALL_FUNCTION_EX"))
    stores = any(step.opname.startswith(("STORE_SUBSCR", "STORE_ATTR")) for step in steps)
    return calls, stores, frozenset(step.argval for step in steps if step.opname.startswith("LOAD_GLOBAL"))


def _runs_no_code(source: object) -> bool:
    """Whether an iterator goes over containers only, if need be through `zip`, `enumerate` or a generator."""
    if type(source) in _PLAIN_ITERATORS:
        return True
    if type(source) in (zip, enumerate, reversed):
        parts = [part for part in gc.get_referents(source) if part is not type(source)]
        inner = [one for part in parts for one in (part if type(part) is tuple else (part,))]
        return all(_runs_no_code(one) for one in inner if hasattr(type(one), "__next__"))
    if type(source) is not GeneratorType or source.gi_frame is None or source.gi_code.co_name != "<genexpr>":
        return False
    calls, stores, _ = _facts_of(source.gi_code)
    return not calls and not stores and _runs_no_code(source.gi_frame.f_locals.get(".0"))


def is_transparent(tasks: object) -> bool:
    """Whether drawing a task runs no code of the user, so that no argument can change between two of them.

    True for lists, and for `delayed(f)(x, i) for i in range(n)` with nothing called but `delayed(f)` and its
    result.
    """
    if isinstance(tasks, (list, tuple)):
        return True
    if type(tasks) is not GeneratorType or tasks.gi_frame is None or tasks.gi_code.co_name != "<genexpr>":
        return False
    calls, stores, names = _facts_of(tasks.gi_code)
    if stores or calls != 2:
        return False
    own = tasks.gi_frame.f_locals  # made anew each time it is asked for
    if not _runs_no_code(own.get(".0")):
        return False
    spaces = tasks.gi_frame.f_globals
    for one in (*map(spaces.get, names), *own.values()):
        if one is delayed or (type(one) is ModuleType and getattr(one, "delayed", None) is delayed):
            return True
    return False
