"""Loops whose body seeds a global random generator itself: every iteration knows its state from there on."""

from __future__ import annotations

import ast
import inspect
import random
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ipyparcache.analysis.changing import path_of
from ipyparcache.analysis.parfor import Parfor
from ipyparcache.analysis.refusals import DrawsFromSeeded
from ipyparcache.digest import generators

#: By the function that seeds: the library whose generator it is.
_SEEDERS = {
    ("random", "seed"): "random",
    ("numpy.random", "seed"): "numpy.random",
    ("torch", "manual_seed"): "torch",
    ("torch.random", "manual_seed"): "torch",
}
_NO_DRAWS = frozenset({"seed", "getstate", "setstate", "get_state", "set_state"})


def seeded_by(parfor: Parfor, namespace: Mapping[str, Any]) -> tuple[str, ...]:
    """Libraries that every iteration seeds before it can draw from them."""
    found: list[str] = []
    for statement in _iteration_of(parfor):
        seeds = list(_seeds_of(statement, namespace))
        if not seeds and any(isinstance(node, ast.Call) for node in ast.walk(statement)):
            break  # what it calls may draw
        found += seeds
    return tuple(dict.fromkeys(found))


def draw_from(
    libraries: Iterable[str], parfor: Parfor, namespace: Mapping[str, Any]
) -> DrawsFromSeeded | None:
    """Why a loop is refused whose body draws from the global generator of one of these libraries."""
    wanted = frozenset(libraries)
    for node in ast.walk(parfor.body) if wanted else ():
        if isinstance(node, ast.Call):
            path = path_of(node.func)
            known = path is not None and path.root in parfor.reads
            library = _drawn_by(_value_of(node.func, namespace)) if known else None
            if library in wanted:
                return DrawsFromSeeded(node.lineno, ast.unparse(node.func), library)
    return None


def _drawn_by(function: object) -> str | None:
    """The library from whose global generator a function draws."""
    if getattr(function, "__name__", None) in _NO_DRAWS:
        return None
    owner = getattr(function, "__self__", None)
    numpy = sys.modules.get("numpy.random")
    if isinstance(owner, random.Random):
        return "random" if owner is getattr(random.random, "__self__", None) else None
    if numpy is not None and owner is getattr(numpy.rand, "__self__", numpy):
        return "numpy.random"
    return None


def states_of(libraries: Iterable[str]) -> dict[str, Any]:
    """The states of their generators in this process."""
    return {name: generators.GENERATORS[name].state() for name in libraries if name in sys.modules}


def put_states(states: Mapping[str, Any]) -> None:
    """Leave the generators of this process as the iterations left theirs."""
    for name, state in states.items():
        generators.GENERATORS[name].write(state)
        generators.note_seeded(name)


def _iteration_of(parfor: Parfor) -> Sequence[ast.stmt]:
    match parfor.body.body:
        case [ast.For(body=body)] if not parfor.yields:
            return body
    return ()


def _seeds_of(statement: ast.stmt, namespace: Mapping[str, Any]) -> Iterator[str]:
    """What a statement seeds whenever it is reached, itself or by a function of the notebook."""
    match statement:
        case ast.Expr(value=ast.Call(func=func)):
            value = _value_of(func, namespace)
            known = (getattr(value, "__module__", None), getattr(value, "__name__", None))
            owner = _value_of(func.value, namespace) if isinstance(func, ast.Attribute) else None
            if isinstance(owner, types.ModuleType):
                known = (owner.__name__, func.attr)  # type: ignore[attr-defined]
            library = _SEEDERS.get((str(known[0]), str(known[1])))
            if library is not None:
                yield library
            elif isinstance(value, types.FunctionType) and value.__globals__ is namespace:
                yield from _seeds_of_function(value, namespace)


def _seeds_of_function(function: types.FunctionType, namespace: Mapping[str, Any]) -> Iterator[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            for statement in node.body:
                if isinstance(statement, ast.Expr):
                    yield from _seeds_of(statement, namespace)


def _value_of(node: ast.expr, namespace: Mapping[str, Any]) -> object:
    if isinstance(node, ast.Name):
        return namespace.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _value_of(node.value, namespace)
        return getattr(owner, node.attr, None) if isinstance(owner, types.ModuleType) else None
    return None
