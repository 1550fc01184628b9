"""What the pickles of a loop call where they arrive: functions that put together what was sent."""

from __future__ import annotations

import collections
import functools
import importlib
import re
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from ipyparcache.cells.tracebacks import Traceback, with_traceback

Key = tuple[str, int]


#: Held, as a class that is collected while its parts are read has none.
_PLAIN = collections.namedtuple("_PLAIN", "")
OF_NAMEDTUPLES = frozenset(vars(_PLAIN))  # what each class has that `namedtuple` makes, beside its fields


class Arrival(threading.local):
    """Where the objects of the pickle being loaded belong."""

    spaces: dict[str, dict[str, Any]]
    resolve: Callable[[Key], object]


arrival = Arrival()


def space(name: str) -> dict[str, Any]:
    """The namespace of this name in the pickle being loaded."""
    found = arrival.spaces.get(name)
    if found is None:
        if name.startswith("="):
            found = importlib.import_module(name[1:]).__dict__
        elif name.startswith("#"):
            found = {"__name__": name, "__builtins__": __builtins__}
        else:
            return module(name, None).__dict__
        arrival.spaces[name] = found
    return found


def module(name: str, file: str | None) -> types.ModuleType:
    """The local module of this name, with the namespace of the pickle being loaded."""
    found = arrival.spaces.get("@" + name)
    if found is None:
        fresh = types.ModuleType(name)
        arrival.spaces[name] = fresh.__dict__
        arrival.spaces["@" + name] = found = {"module": fresh}
        sys.modules[name] = fresh
    made: types.ModuleType = found["module"]
    if file is not None:
        made.__file__ = file
    return made


def function(code: types.CodeType, spaces: dict[str, Any], name: str, closure: tuple[Any, ...] | None) -> Any:
    """A function over a namespace; its state follows."""
    return types.FunctionType(code, spaces, name, None, closure)


def set_function(made: Any, state: tuple[Any, ...]) -> None:
    """Give a function its attributes and its cells their contents."""
    attributes, own, contents, around = state
    made.__globals__.update(around)
    for name, value in attributes.items():
        setattr(made, name, value)
    made.__dict__.update(own)
    for number, content in contents:
        made.__closure__[number].cell_contents = content


def cell() -> types.CellType:
    """An empty cell; the functions that hold it bring its content."""
    return types.CellType()


def live(side: str, number: int) -> object:
    """The object that the other side knows by this number."""
    return arrival.resolve((side, number))


@functools.lru_cache(maxsize=256)
def namedtuple_class(name: str, fields: tuple[str, ...], module: str) -> type:
    """The class of named tuples that a library makes while it runs, as for the rows of a frame."""
    return collections.namedtuple(name, fields, module=module)


def named(where: str, name: str) -> object:
    """The function or class that the kernel has under this name now."""
    first, *rest = name.split(".")
    found: object = space(where)[first]
    for part in rest:
        found = getattr(found, part)
    return found


def memory_map(file_name: str, dtype: Any, offset: int, shape: tuple[int, ...], by_columns: bool) -> object:
    """The same file mapped again: what is written there is shared."""
    import numpy as np

    order: Any = "F" if by_columns and len(shape) > 1 else "C"
    return np.memmap(file_name, dtype, "r+", offset, shape, order)


def view(
    owner: Any,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    layout: tuple[int, ...],
) -> object:
    """A view of a live array, from what it is over an array of other strides, `layout`."""
    import numpy as np

    if owner.strides == layout and owner.flags.c_contiguous:
        return np.ndarray(shape, dtype, owner, offset, strides)
    if owner.strides == layout and owner.flags.f_contiguous:
        return np.ndarray(shape, dtype, owner.T, offset, strides)
    # Each axis of the view runs along one of the owner's: that of the longest stride that divides its own.
    axes = sorted(range(owner.ndim), key=lambda n: -layout[n])
    begin = [0] * owner.ndim
    for axis in axes:
        begin[axis], offset = divmod(offset, layout[axis]) if layout[axis] else (0, offset)
    here = owner[tuple(slice(at, None) for at in begin)]
    steps = []
    for step in strides:
        axis = next(n for n in axes if layout[n] and step % layout[n] == 0)
        steps.append(step // layout[axis] * owner.strides[axis])
    return np.lib.stride_tricks.as_strided(here, shape, tuple(steps))


def match(
    pattern: re.Pattern[Any], string: Any, begin: int, end: int, regs: tuple[tuple[int, int], ...]
) -> re.Match[Any] | None:
    """The match that a pattern had there."""
    for find in (pattern.match, pattern.fullmatch):
        found = find(string, begin, end)
        if found is not None and found.regs == regs:
            return found
    return next((found for found in pattern.finditer(string, begin, end) if found.regs == regs), None)


def exception(kind: type[BaseException], arguments: tuple[Any, ...], fields: dict[str, Any]) -> BaseException:
    """An exception made without its `__init__`."""
    if issubclass(kind, BaseExceptionGroup):
        made: BaseException = kind.__new__(kind, *arguments)
    else:
        made = kind.__new__(kind)
        made.args = arguments
    for name, value in fields.items():
        try:
            setattr(made, name, value)
        except (AttributeError, TypeError):
            continue
    return made


def set_exception(made: BaseException, state: tuple[dict[str, Any], Any, Any, bool, Traceback]) -> None:
    """Give an exception its attributes, cause, context and traceback."""
    attributes, cause, context, suppressed, rows = state
    made.__dict__.update(attributes)
    made.__traceback__ = with_traceback(made, rows).__traceback__
    made.__cause__ = cause
    made.__context__ = context
    made.__suppress_context__ = suppressed


def core_of(image: Any) -> Any:
    """The pixels of an image of Pillow's, as it keeps them."""
    return image.im
