"""Tables of which a loop reads some columns and writes others, or each iteration its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ipyparcache.analysis.flow import bound_names
from ipyparcache.analysis.walk import statements_of

_BY_CELL = frozenset({"loc", "at"})

Branches = tuple[tuple[int, bool], ...]


@dataclass(frozen=True)
class Columns:
    """A table whose columns a loop reads and writes by name.

    No iteration may read what an earlier one has written: that is known when the names are.

    Attributes
    ----------
    constants
        Columns that are read by names written out.
    reads_key
        Whether each iteration reads the column that its target names.
    reads_later
        Whether something is read behind a write, which must then be to another column.
    written
        Columns that are written by names written out.
    """

    root: str
    constants: frozenset[str]
    reads_key: bool
    reads_later: bool
    written: frozenset[str]
    line: int


def columns_of(root: str, body: Sequence[ast.stmt], key: str | None) -> Columns | None:
    """How a loop body uses a table; None where that is more than reading and writing columns by name."""
    if key is not None and any(key in bound_names(statement) for statement in body):
        key = None
    covered: set[int] = set()
    constants: set[str] = set()
    written: set[str] = set()
    reads_key = writes_key = False
    reads: list[ast.Name] = []
    stores = {id(place): statement for statement, place in writes_of(body, root)}
    by_cell = any(isinstance(place.value, ast.Attribute) for _, place in writes_of(body, root))
    for node in (part for statement in body for part in ast.walk(statement)):
        used = _use_of(node, root)
        if used is None:
            continue
        name, column = used
        covered.add(id(name))
        if isinstance(column, ast.Slice) or (column is None and by_cell):  # a cell of a new row adds the row
            return None
        if id(node) in stores:
            if isinstance(column, ast.Compare | ast.UnaryOp):  # rows by a mask
                return None
            written |= set(_texts(column))
            writes_key = writes_key or (isinstance(column, ast.Name) and column.id == key)
            continue
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            return None
        if column is None:
            continue
        reads.append(name)
        texts = set(_texts(column))
        if isinstance(column, ast.Name) and column.id == key:
            reads_key = True
        elif texts:
            constants |= texts
        else:
            return None
    names = [n for s in body for n in ast.walk(s) if isinstance(n, ast.Name) and n.id == root]
    if not stores or any(id(name) not in covered for name in names) or written & constants:
        return None
    repeats = any(isinstance(s, ast.For | ast.While) for s in statements_of(body))
    where = dict(_branches(body, ()))
    later = bool(reads) and (
        repeats or any(_follows(read, write, where) for read in reads for write in stores.values())
    )
    if later and reads_key and writes_key:
        return None
    line = min(statement.lineno for statement in stores.values())
    return Columns(root, frozenset(constants), reads_key, later, frozenset(written), line)


def _branches(body: Sequence[ast.AST], around: Branches) -> Iterator[tuple[int, Branches]]:
    """By the id of a node: the branches of `if` statements in which it stands."""
    for node in body:
        yield id(node), around
        if isinstance(node, ast.If):
            yield from _branches([node.test], around)
            yield from _branches(node.body, (*around, (id(node), True)))
            yield from _branches(node.orelse, (*around, (id(node), False)))
        else:
            yield from _branches(list(ast.iter_child_nodes(node)), around)


def _follows(read: ast.Name, write: ast.stmt, where: dict[int, Branches]) -> bool:
    """Whether an iteration may come from a write to a read that stands behind it."""
    behind = (read.lineno, read.col_offset) > (write.end_lineno or write.lineno, write.end_col_offset or 0)
    apart = {(at, not taken) for at, taken in where[id(write)]} & set(where[id(read)])
    return behind and not apart


def writes_of(body: Sequence[ast.stmt], root: str) -> Iterator[tuple[ast.Assign, ast.Subscript]]:
    """The statements `df[c] = e` and `df.loc[i, 'c'] = e` on a table, with the place that is written."""
    for statement in statements_of(body):
        match statement:
            case ast.Assign(targets=[ast.Subscript() as place]):
                used = _use_of(place, root)
                if used is not None and used[1] is not None:
                    yield statement, place


def _use_of(node: ast.AST, root: str) -> tuple[ast.Name, ast.expr | None] | None:
    """The name of the table and the column, if this is a use of one; no column where rows are asked."""
    match node:
        case ast.Subscript(value=ast.Name(id=name) as table, slice=column) if name == root:
            return table, column
        case ast.Subscript(
            value=ast.Attribute(value=ast.Name(id=name) as table, attr=how),
            slice=ast.Tuple(elts=[_, ast.Constant(value=str()) as column]),
        ) if name == root and how in _BY_CELL:
            return table, column
        case ast.Call(func=ast.Name(id="len"), args=[ast.Name(id=name) as table]) if name == root:
            return table, None
        case ast.Attribute(value=ast.Name(id=name) as table, attr="index") if name == root:
            return table, None
    return None


def _texts(column: ast.expr | None) -> Iterator[str]:
    """The names of columns that an expression spells out."""
    match column:
        case ast.Constant(value=str(text)):
            yield text
        case ast.List(elts=elts):
            texts = [e.value for e in elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
            yield from texts if len(texts) == len(elts) else ()


def only_asked(iterable: ast.expr, root: str) -> bool:
    """Whether what a loop goes over is not changed by writes to columns: names of columns, rows, values."""
    asked = {
        id(node.value)
        for node in ast.walk(iterable)
        if isinstance(node, ast.Attribute) and node.attr in ("columns", "index", "select_dtypes", "shape")
    }
    for node in ast.walk(iterable):
        match node:
            case ast.Call(func=ast.Name(id="len"), args=[argument]):
                asked.add(id(argument))
            case ast.Call(func=ast.Attribute(value=owner, attr="unique" | "tolist"), args=[]):
                asked |= {id(part) for part in ast.walk(owner)}
    names = [n for n in ast.walk(iterable) if isinstance(n, ast.Name) and n.id == root]
    return all(id(name) in asked for name in names)
