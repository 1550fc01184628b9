"""Estimators that every iteration fits anew before it uses them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ipyparcache.analysis.flow import Flow

#: Methods by which an estimator learns, and forgets what it had learned.
LEARNING = frozenset({"fit", "fit_transform", "fit_predict"})

_CONDITIONAL = (ast.IfExp, ast.BoolOp, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_PLAIN = (ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign)


@dataclass(frozen=True)
class Refit:
    """An estimator from outside that iterations fit before they use it.

    Attributes
    ----------
    site
        The number of the site that gives it, in the kernel, what an iteration has left in it.
    line
        The line that fits it.
    """

    root: str
    site: int
    line: int


def refit_of(root: str, body: Sequence[ast.stmt], flow: Flow) -> ast.stmt | None:
    """The statement of a loop body that fits `root`, where all uses of it are there and behind it.

    `flow` tells the places at which the body, and functions that it calls, read the name.
    """
    reads = flow.reads.get(root, ())
    if not reads or root in flow.bound or any(read.by is not None for read in reads):
        return None
    first = min((name for s in body for name in _names(s, root)), key=_place, default=None)
    if first is None:
        return None
    for block in _blocks(body):
        for statement in block:
            if isinstance(statement, _PLAIN) and _fits(statement, first, root):
                end = block[-1].end_lineno or 0, block[-1].end_col_offset or 0
                inside = all(_place(name) < end for s in body for name in _names(s, root))
                return statement if inside else None
    return None


def _names(statement: ast.AST, root: str) -> Iterator[ast.Name]:
    return (n for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id == root)


def _place(node: ast.Name) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _blocks(body: Sequence[ast.stmt]) -> Iterator[Sequence[ast.stmt]]:
    """Blocks of statements that follow each other, unless an exception ends the iteration."""
    yield body
    for statement in body:
        if isinstance(statement, ast.If | ast.For | ast.While):
            yield from _blocks(statement.body)
            yield from _blocks(statement.orelse)


def _fits(statement: ast.stmt, first: ast.Name, root: str) -> bool:
    """Whether a statement, before it does anything else with the estimator, fits it."""

    def visit(node: ast.AST) -> bool:
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name() as owner, attr=method), args=args, keywords=given
            ):
                if owner is first:
                    return method in LEARNING and not any(
                        name for part in (*args, *given) for name in _names(part, root)
                    )
        return not isinstance(node, _CONDITIONAL) and any(map(visit, ast.iter_child_nodes(node)))

    return visit(statement)
