"""What is known of the notebook's functions before a cell is taken apart.

Which globals they read, write and change.
"""

from __future__ import annotations

import ast
import functools
import gc
import inspect
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ipyparcache.analysis.codes import globals_of, globals_written_by
from ipyparcache.analysis.helpers import Facts, Helper, changed_globals, changed_parameters, written_file
from ipyparcache.cells import estimators

_DYNAMIC = frozenset({"exec", "eval", "globals", "locals"})


def facts_of(names: Iterable[str], namespace: Mapping[str, Any]) -> Facts:
    """Facts of those names that are bound in the namespace."""
    helpers: dict[str, Helper] = {}
    modules: set[str] = set()
    drawn: set[str] = set()
    tables: set[str] = set()
    managers: set[str] = set()
    learners: set[str] = set()
    makers: set[str] = set()
    for name in names:
        value = namespace.get(name)
        if is_table(value):
            tables.add(name)
        if _makes_managers(value, namespace):
            managers.add(name)
        if estimators.forgets(value):
            learners.add(name)
        if estimators.is_of_sklearn(value):
            makers.add(name)
        if draws_into(value):
            drawn.add(name)
            continue
        if isinstance(value, types.ModuleType) or _is_bar(value):
            modules.add(name)
            continue
        plain = _function_of(value)
        if plain is not None and plain.__globals__ is namespace:
            helpers[name] = _helper(plain, namespace)
    return Facts(
        helpers,
        frozenset(modules),
        frozenset(drawn),
        frozenset(tables),
        frozenset(managers),
        frozenset(learners),
        frozenset(makers),
    )


def facts_now(names: Iterable[str], facts: Facts, namespace: Mapping[str, Any]) -> Facts:
    """Facts of a cell, with what live values tell by now of those names that its statements may have changed.

    They are `facts` itself where nothing is different.
    """
    known = [name for name in names if name in namespace]
    tables = frozenset(name for name in known if is_table(namespace[name]))
    learners = frozenset(name for name in known if estimators.forgets(namespace[name]))
    others = facts.tables.difference(names), facts.learners.difference(names)
    now = replace(facts, tables=tables | others[0], learners=learners | others[1])
    return facts if (now.tables, now.learners) == (facts.tables, facts.learners) else now


def _makes_managers(value: object, namespace: Mapping[str, Any]) -> bool:
    """Whether a value is a context manager of the notebook's own making, or makes such."""
    kind = value if isinstance(value, type) else type(value)
    if hasattr(kind, "__exit__"):
        return kind.__module__ == namespace.get("__name__")
    made = getattr(value, "__wrapped__", None)
    return isinstance(made, types.FunctionType) and made.__globals__ is namespace and _is_of_library(value)


def is_table(value: object) -> bool:
    """Whether a value is a frame of pandas with rows, whose columns have one name each."""
    pandas = sys.modules.get("pandas")
    if pandas is None or type(value) is not getattr(pandas, "DataFrame", None):
        return False
    columns = value.columns  # type: ignore[attr-defined]
    return columns.nlevels == 1 and bool(columns.is_unique) and len(value) > 0  # type: ignore[arg-type]


def draws_into(value: object) -> bool:
    """Whether a value is a figure or axes of matplotlib, or a container of such and of nothing else."""
    artists = sys.modules.get("matplotlib.artist")
    if artists is None:
        return False
    if isinstance(value, artists.Artist):
        return True
    parts: list[object] = []
    if type(value) in (list, tuple):
        parts = list(value)  # type: ignore[call-overload]
    elif type(value) is dict:
        parts = list(value.values())
    elif type(value).__name__ == "ndarray" and getattr(getattr(value, "dtype", None), "hasobject", False):
        parts = value.ravel().tolist()  # type: ignore[attr-defined]
    return bool(parts) and all(isinstance(part, artists.Artist) or draws_into(part) for part in parts[:1000])


def goes_over_drawn(iterable: object) -> bool:
    """Whether elements of an iterable, or their parts, are what is drawn into; nothing is taken from it."""
    if sys.modules.get("matplotlib.artist") is None:
        return False
    waiting: list[object] = [iterable]
    for _ in range(_LAYERS):
        following: list[object] = []
        for obj in waiting:
            if draws_into(obj):
                return True
            if type(obj).__name__ == "flatiter":
                following.append(obj.base)  # type: ignore[attr-defined]
            elif isinstance(obj, Sequence) and not isinstance(obj, str | bytes | range):
                following += obj[:_LOOKED_AT]
            elif isinstance(obj, Iterator):
                following += gc.get_referents(obj)
        waiting = following[:_LOOKED_AT]
    return False


_LAYERS, _LOOKED_AT = 4, 200


def _is_bar(value: object) -> bool:
    """Whether a value is a class of progress bars; its `write` prints, as functions of modules do."""
    return isinstance(value, type) and value.__module__.partition(".")[0] == "tqdm"


def _function_of(value: object) -> types.FunctionType | None:
    """The plain function under `lru_cache`, `partial` and the like."""
    for _ in range(10):
        inner = value.func if isinstance(value, functools.partial) else getattr(value, "__wrapped__", None)
        if type(value) is types.FunctionType and (inner is None or not _is_of_library(value)):
            return value
        value = inner
    return None


def _is_of_library(function: object) -> bool:
    """Whether a function that wraps another was made by the standard library, as by `contextmanager`."""
    where = getattr(function, "__globals__", {})
    return where.get("__name__") in ("contextlib", "functools")


def _helper(function: types.FunctionType, namespace: Mapping[str, Any]) -> Helper:
    reads: set[str] = set()
    writes: set[str] = set()
    mutates: set[str] = set()
    dynamic: str | None = None
    file: str | None = None
    seen: set[str] = set()
    waiting = [function]
    while waiting:
        current = waiting.pop()
        names = globals_of(current.__code__)
        mutates |= {
            n for n in _changes_of(current).globals if not isinstance(namespace.get(n), types.ModuleType)
        }
        writes |= globals_written_by(current.__code__)
        file = file or _changes_of(current).file
        reads |= names
        found = names & _DYNAMIC
        dynamic = dynamic or next((n for n in found if n not in namespace), None)
        for name in names - seen:
            seen.add(name)
            other = _function_of(namespace.get(name))
            if other is not None and other.__globals__ is namespace:
                waiting.append(other)
    changes = _changes_of(function).parameters
    code = function.__code__
    own = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return Helper(frozenset(reads), frozenset(writes), changes, frozenset(mutates), dynamic, file, own)


def parameters_changed_by(function: types.FunctionType) -> frozenset[int]:
    """Positions of the parameters that a function visibly changes in place."""
    return _changes_of(function).parameters


@dataclass(frozen=True)
class _Changes:
    """What a function visibly changes: positions of parameters, names of globals, a file."""

    parameters: frozenset[int] = frozenset()
    globals: frozenset[str] = frozenset()
    file: str | None = None


_known: dict[types.CodeType, _Changes] = {}


def _changes_of(function: types.FunctionType) -> _Changes:
    code = function.__code__
    found = _known.get(code)
    if found is None:
        if len(_known) > 4096:
            _known.clear()
        found = _known[code] = _read_changes(function)
    return found


def _read_changes(function: types.FunctionType) -> _Changes:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):
        return _Changes()
    node: ast.AST | None = tree.body[0] if tree.body else None
    if function.__name__ == "<lambda>":
        made = [part for part in ast.walk(tree) if isinstance(part, ast.Lambda)]
        node = made[0] if len(made) == 1 else None
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return _Changes()
    # A free name of the source may be a variable of an enclosing function: only globals count.
    changed = changed_globals(node) & globals_of(function.__code__)
    return _Changes(frozenset(changed_parameters(node)), frozenset(changed), written_file(node))
