"""What changes an object in place: names of methods and functions, and the variables at the roots."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

#: Methods that change their object and whose result says what was in it.
TAKING_METHODS = frozenset({"pop", "popitem", "popleft", "setdefault"})


#: Methods that change their object and whose call, as a statement of its own, can be replayed in iteration
#: order.
REPLAYED_METHODS = frozenset(
    [
        "append",
        "add",
        "extend",
        "update",
        "insert",
        "discard",
        "appendleft",
        "extendleft",
        "setdefault",
        "remove",
        "clear",
        "sort",
        "reverse",
        "pop",
        "popleft",
        "popitem",
        "rotate",
        "subtract",
        "intersection_update",
        "difference_update",
        "symmetric_difference_update",
        "move_to_end",
        "write",
        "writelines",
        "writerow",
        "writerows",
        "put",
        "put_nowait",
        "fill",
        "itemset",
    ]
)


#: Methods of a progress bar, by which a loop tells what it is at; a loop over the bar may call them.
PROGRESS_METHODS = frozenset(
    {"set_postfix", "set_postfix_str", "set_description", "set_description_str", "refresh"}
)


#: Those that copy what they are given, so that a later change of the operand must not reach the target.
COPYING_METHODS = frozenset({"extend", "update", "extendleft", "subtract", "writelines", "writerows"})


#: Functions that change their first argument, for statements of their own.
REPLAYED_FUNCTIONS = frozenset(
    {"bisect.insort", "insort", "bisect.insort_right", "bisect.insort_left"}
    | {
        f"{heapq}{f}"
        for heapq in ("heapq.", "")
        for f in ("heappush", "heappop", "heapreplace", "heappushpop", "heapify")
    }
    | {"np.fill_diagonal", "np.place", "np.putmask"}
    | {"np.add.at", "numpy.add.at", "np.subtract.at", "np.maximum.at", "np.minimum.at", "np.put", "np.copyto"}
)


#: Functions that change their first argument, but not the same way in another process.
SHUFFLING_FUNCTIONS = frozenset({"random.shuffle", "np.random.shuffle", "numpy.random.shuffle"})


#: Those of `REPLAYED_FUNCTIONS`, keeping what they are given as it is.
SETTING_FUNCTIONS = frozenset({"setattr", "delattr", "operator.setitem", "operator.delitem"})


#: All functions that change their first argument, wherever they are called.
CHANGING_FUNCTIONS = REPLAYED_FUNCTIONS | SETTING_FUNCTIONS | SHUFFLING_FUNCTIONS | {"next"}


def changed_roots(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Names whose objects this node itself (not its children) visibly changes in place."""
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=method)) as call) if method in REPLAYED_METHODS:
            yield from _owner_of(call)
        case ast.Call(func=ast.Attribute(attr=method)) if method in TAKING_METHODS or in_place(node):
            yield from _owner_of(node)
        case ast.Call(func=ast.Name() | ast.Attribute() as function, args=[taken, *_]) if (
            ast.unparse(function) in CHANGING_FUNCTIONS
        ):
            path = path_of(taken)
            if path is not None:
                yield path.root, node
        case ast.Subscript() | ast.Attribute() if not isinstance(node.ctx, ast.Load):
            path = path_of(node)
            if path is not None:
                yield path.root, node
        case ast.keyword(arg="out", value=value):
            path = path_of(value)
            if path is not None:
                yield path.root, value


def in_place(call: ast.Call) -> bool:
    """`df.drop(columns=c, inplace=True)`."""
    return any(
        k.arg == "inplace" and isinstance(k.value, ast.Constant) and k.value.value is True
        for k in call.keywords
    )


def _owner_of(call: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    assert isinstance(call.func, ast.Attribute)
    path = path_of(call.func.value)
    if path is not None:
        yield path.root, call


@dataclass(frozen=True)
class Path:
    """A name followed by attributes, items and `setdefault` calls.

    Attributes
    ----------
    attribute
        The first attribute after the name, where that comes first: what else is read of the name may then
        be apart.
    holes
        The keys, in the order in which they are evaluated.
    """

    root: str
    attribute: str | None
    holes: tuple[ast.expr, ...]


def path_of(node: ast.expr) -> Path | None:
    """`node` as a path, or None."""
    match node:
        case ast.Name(id=name):
            return Path(name, None, ())
        case ast.Attribute(value=value, attr=attribute):
            path = path_of(value)
            if path is None:
                return None
            first = attribute if isinstance(value, ast.Name) else path.attribute
            return Path(path.root, first, path.holes)
        case ast.Subscript(value=value, slice=key):
            path = path_of(value)
            return None if path is None else Path(path.root, path.attribute, (*path.holes, key))
        case ast.Call(func=ast.Attribute(value=value, attr="setdefault"), args=args, keywords=[]):
            path = path_of(value)
            return None if path is None else Path(path.root, path.attribute, (*path.holes, *args))
    return None
