"""Containers of which each iteration uses only the item that one of its targets names."""

from __future__ import annotations

import ast
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ipyparcache.analysis.changing import Path, changed_roots
from ipyparcache.analysis.flow import bound_names
from ipyparcache.analysis.walk import comprehension_names, own_nodes


@dataclass(frozen=True)
class OwnRows:
    """A container of which every iteration reads and writes only the item that its target names.

    Attributes
    ----------
    position
        Which part of the element is the key (`for i, x in enumerate(a)`: 0); None for the element itself.
    site
        The number of the site that puts the item back; -1 where items are not assigned.
    stores
        Whether items themselves are assigned.
    deep
        Whether more than plain items is written (`a[i][j] = …`, `a[i].sort()`).
    changes
        Whether the text shows a change at all; else a method or function may still make one.
    parts
        Whether parts of items are indexed together with them (`a[i, j]`), as only arrays can be.
    column
        Whether the key is the second part of the index: `a[:, j]`, `a[0, j]`.
    line
        The first line that changes, or uses, it.
    """

    root: str
    position: int | None
    site: int
    stores: bool
    deep: bool
    changes: bool
    parts: bool
    column: bool
    line: int


def keys_of(target: ast.expr | None, body: Sequence[ast.stmt]) -> dict[str, int | None]:
    """The targets that may be keys, each with its position in the element; none that the body rebinds."""
    found: dict[str, int | None] = {}
    match target:
        case ast.Name(id=name):
            found[name] = None
        case ast.Tuple(elts=elts) if not any(isinstance(e, ast.Starred) for e in elts):
            found |= {e.id: n for n, e in enumerate(elts) if isinstance(e, ast.Name)}
    rebound = comprehension_names(body).union(*map(bound_names, body))
    return {name: position for name, position in found.items() if name not in rebound}


def own_rows_of(
    root: str,
    body: Sequence[ast.stmt],
    keys: Mapping[str, int | None],
    aliases: frozenset[str],
    changed_arguments: Callable[[ast.Call], Iterable[Path]],
) -> OwnRows | None:
    """How a body uses a container; None where that is more than the item of one key.

    `aliases` are names that stand for parts of it; `changed_arguments` tells what a call changes of its
    arguments.
    """
    covered: dict[int, ast.Subscript] = {}
    used: set[tuple[str, bool]] = set()
    parts = False
    for node in own_nodes(body):
        if not (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name)):
            continue
        if node.value.id != root:
            continue
        at, column = _key_in(node.slice, keys)
        if at is None or isinstance(node.ctx, ast.Del):
            return None
        covered[id(node.value)] = node
        used.add((at.id, column))
        parts = parts or isinstance(node.slice, ast.Tuple)
    everywhere = [n for s in body for n in ast.walk(s) if isinstance(n, ast.Name) and n.id == root]
    if len(used) != 1 or any(id(n) not in covered for n in everywhere):
        return None
    if not any(isinstance(node.ctx, ast.Load) for node in covered.values()):
        return None
    [(key, column)] = used
    stores = [node for node in covered.values() if isinstance(node.ctx, ast.Store)]
    changed = [
        place
        for node in own_nodes(body)
        for name, place in changed_roots(node)
        if name in aliases or (name == root and place not in stores)
    ]
    calls = [node for node in own_nodes(body) if isinstance(node, ast.Call)]
    names = aliases | {root}
    changed += [call for call in calls if any(path.root in names for path in changed_arguments(call))]
    deep = bool(changed) or (parts and bool(stores))
    lines = [getattr(node, "lineno", 0) for node in (*stores, *changed)]
    uses = [node.lineno for node in covered.values()]
    return OwnRows(
        root,
        keys[key],
        -1,
        bool(stores),
        deep,
        bool(stores or changed),
        parts,
        column,
        min(line for line in lines or uses if line),
    )


def _key_in(index: ast.expr, keys: Container[str]) -> tuple[ast.Name | None, bool]:
    """The key that an index names, and whether it is the second part: `a[j]`, `a[j, 0]`, but `a[0, j]`."""
    match index:
        case ast.Name(id=name) | ast.Tuple(elts=[ast.Name(id=name), *_]) if name in keys:
            return (index.elts[0] if isinstance(index, ast.Tuple) else index), False  # type: ignore[return-value]
        case ast.Tuple(elts=[_, ast.Name(id=name) as key]) if name in keys:
            return key, True
    return None, False
