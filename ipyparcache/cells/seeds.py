"""Loops whose body seeds a global random generator itself: every iteration knows its state from there on."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ipyparcache.analysis.parfor import Parfor
from ipyparcache.digest import generators

#: By the function that seeds: the library whose generator it is.
_SEEDERS = {
    ("random", "seed"): "random",
    ("numpy.random", "seed"): "numpy.random",
    ("torch", "manual_seed"): "torch",
    ("torch.random", "manual_seed"): "torch",
}


def seeded_by(parfor: Parfor, namespace: Mapping[str, Any]) -> tuple[str, ...]:
    """Libraries that every iteration seeds before it can draw from them."""
    found: list[str] = []
    for statement in _iteration_of(parfor):
        seeds = list(_seeds_of(statement, namespace))
        if not seeds and any(isinstance(node, ast.Call) for node in ast.walk(statement)):
            break  # what it calls may draw
        found += seeds
    return tuple(dict.fromkeys(found))


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
