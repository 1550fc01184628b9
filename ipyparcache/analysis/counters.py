"""Variables of a loop that count its iterations: their values are known ahead."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ipyparcache.analysis.flow import bound_names
from ipyparcache.analysis.walk import own_jumps, own_nodes, statements_of


@dataclass(frozen=True)
class Counter:
    """A variable that every iteration changes by the same whole number, once: its value is known ahead.

    Attributes
    ----------
    line
        The line that changes it.
    read_at
        The first line that reads its running value.
    """

    name: str
    step: int
    line: int
    read_at: int


def counters_of(
    body: Sequence[ast.stmt],
    carried: set[str],
    targets: Sequence[str],
    helper_reads: Callable[[str], Iterable[str]],
) -> Iterator[Counter]:
    """Variables that one statement of the body, which every iteration reaches, changes by a constant.

    Parameters
    ----------
    carried
        Names that an iteration reads before it assigns them.
    helper_reads
        Gives the names that a call of a notebook function reads.
    """
    for at, statement in enumerate(body):
        found = _counts(statement)
        if found is None or found[0] not in carried or found[0] in targets:
            continue
        name, step = found
        if any(own_jumps(body[:at], ast.Continue)):
            continue
        if sum(name in bound_names(other) for other in statements_of(body)) != 1:
            continue
        own = {id(node) for node in ast.walk(statement)}
        reads = [
            node
            for node in own_nodes(body)
            if isinstance(node, ast.Name) and id(node) not in own
            if node.id == name or name in helper_reads(node.id)
        ]
        if reads:
            yield Counter(name, step, statement.lineno, min(node.lineno for node in reads))


def _counts(statement: ast.stmt) -> tuple[str, int] | None:
    """Name and step of `n += 1`, `n -= 2` and `n = n + 1`."""
    match statement:
        case ast.AugAssign(target=ast.Name(id=name), op=op, value=ast.Constant(value=step)):
            pass
        case ast.Assign(
            targets=[ast.Name(id=name)],
            value=ast.BinOp(left=ast.Name(id=other), op=op, right=ast.Constant(value=step)),
        ) if other == name:
            pass
        case _:
            return None
    if type(step) is not int or not isinstance(op, ast.Add | ast.Sub):
        return None
    return name, step if isinstance(op, ast.Add) else -step
