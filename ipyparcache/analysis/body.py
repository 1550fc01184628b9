"""The body that a worker runs: replayed statements become entries of a log, and sites for the kernel."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ipyparcache.analysis.forms import Found
from ipyparcache.analysis.walk import leaves_of

LOG = "__ipyparcache_log__"


KEY = "__ipyparcache_key__"


CONTENT = "__ipyparcache_content__"


HASHED = "__ipyparcache_hashed__"


UNBIND = "__ipyparcache_unbind__"


NOW = "__ipyparcache_now__"


#: Stands in a log entry for a name that is not bound.
UNBOUND = "\0unbound"


ITEM = "__ipyparcache_item__"


VALUE = "__ipyparcache_value__"


ITERABLE = "__ipyparcache_iterable__"


OURS = "__ipyparcache_"


TEMPORARY = "__ipyparcache_t%d__"


HOLE = "__ipyparcache_h%d__"


@dataclass(frozen=True)
class Site:
    """A statement of the body that the kernel replays, with the operands that the worker evaluates left open.

    Attributes
    ----------
    statement
        The statement with its holes filled by names `HOLE % n`.
    holes
        How many there are.
    roots
        Names of the kernel's namespace that it changes.
    assigns
        Those of them that it rebinds (reductions), else empty.
    method
        How it changes the root: a method's name, `item`, `attribute`, `assign`, `delete` or `call`.
    guarded
        Whether an `except` of the body encloses it, so that it must not be able to raise.
    slot
        For a statement that every iteration reaches and that gives each one place in its root: for every
        hole the target whose value it is, None for the value itself. A failed iteration's place can be
        filled.
    unstable
        Names that are assigned before this statement and again behind it: their values here follow the
        operands.
    """

    statement: ast.stmt
    holes: int
    roots: tuple[str, ...]
    assigns: frozenset[str]
    method: str
    guarded: bool
    line: int
    slot: tuple[str | None, ...] | None = None
    unstable: tuple[str, ...] = ()


@dataclass(frozen=True)
class OwnRows:
    """A container of which every iteration reads and writes only the item that its target names.

    Attributes
    ----------
    first
        Whether the key is the first part of the element (`for i, x in enumerate(a)`), not the element itself.
    deep
        Whether more than plain items is written (`a[i][j] = …`, `a[i].sort()`): sound for arrays only.
    line
        The first line that writes.
    """

    root: str
    site: int
    first: bool
    deep: bool
    line: int


def replaced(node: ast.AST, places: Mapping[int, ast.expr]) -> ast.AST:
    """A copy of `node` with other expressions in the given places; the original stays as it is."""
    if id(node) in places:
        return places[id(node)]
    new = copy.copy(node)
    for name, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            setattr(new, name, replaced(value, places))
        elif isinstance(value, list):
            setattr(new, name, [replaced(v, places) if isinstance(v, ast.AST) else v for v in value])
    return new


@dataclass
class Builder:
    """Rewrites a body so that replayed statements become entries of the log."""

    found: Mapping[int, Found]
    targets: tuple[str, ...] = ()
    always: frozenset[int] = frozenset()
    unstable: Callable[[ast.stmt], tuple[str, ...]] = lambda _statement: ()
    sites: list[Site] = field(default_factory=list)

    def _slot_of(self, found: Found) -> tuple[str | None, ...] | None:
        holes = [hole for hole in found.holes if not isinstance(hole, ast.Constant)]
        if id(found.statement) not in self.always or not holes:
            return None
        if found.method == "append" and len(holes) == 1 == len(found.holes):
            return (None,)
        if found.method != "item" or holes[0] is not found.holes[0]:
            return None
        names = [hole.id if isinstance(hole, ast.Name) else "" for hole in holes[1:]]
        return (None, *names) if all(name in self.targets for name in names) else None

    def block(self, statements: Sequence[ast.stmt], *, guarded: bool) -> list[ast.stmt]:
        """The statements as a worker runs them."""
        built: list[ast.stmt] = []
        for statement in statements:
            built.extend(self._statement(statement, guarded=guarded))
        return built

    def row(self, rows: OwnRows) -> int:
        """The number of a site that puts an iteration's own item back."""
        statement = ast.parse(f"{rows.root}[{HOLE % 0}] = {HOLE % 1}").body[0]
        for node in ast.walk(statement):
            if isinstance(node, ast.stmt | ast.expr):
                node.lineno = node.end_lineno = rows.line
        self.sites.append(Site(statement, 2, (rows.root,), frozenset(), "row", False, rows.line))
        return len(self.sites) - 1

    def _statement(self, node: ast.stmt, *, guarded: bool) -> list[ast.stmt]:
        found = self.found.get(id(node))
        if found is not None:
            return [self._entry(found, guarded=guarded)]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return [node]
        new = copy.copy(node)
        if isinstance(node, ast.Try | ast.TryStar):
            assert isinstance(new, ast.Try | ast.TryStar)
            new.body = self.block(node.body, guarded=guarded or bool(node.handlers))
            new.handlers = [self._handler(h, guarded=guarded) for h in node.handlers]
            new.orelse = self.block(node.orelse, guarded=guarded)
            new.finalbody = self.block(node.finalbody, guarded=guarded)
            return [new]
        if isinstance(node, ast.With | ast.AsyncWith):
            assert isinstance(new, ast.With | ast.AsyncWith)
            swallows = any("suppress" in ast.unparse(item.context_expr) for item in node.items)
            new.body = self.block(node.body, guarded=guarded or swallows)
            return [new]
        if isinstance(node, ast.Match):
            assert isinstance(new, ast.Match)
            new.cases = [
                ast.match_case(c.pattern, c.guard, self.block(c.body, guarded=guarded)) for c in node.cases
            ]
            return [new]
        if isinstance(node, ast.Delete):
            names = [t for t in node.targets if isinstance(t, ast.Name)]
            return [node, *(_call_statement(UNBIND, [ast.Constant(t.id)], t) for t in names)]
        for name in ("body", "orelse"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):
                setattr(new, name, self.block(inner, guarded=guarded))
        return [new]

    def _handler(self, node: ast.ExceptHandler, *, guarded: bool) -> ast.ExceptHandler:
        new = copy.copy(node)
        new.body = self.block(node.body, guarded=guarded)
        if node.name is not None:
            new.body.insert(0, _call_statement(UNBIND, [ast.Constant(node.name)], node))
        return new

    def _entry(self, found: Found, *, guarded: bool) -> ast.stmt:
        """The call that logs one replayed statement; the statement itself becomes a site."""
        places: dict[int, ast.expr] = {}
        operands: list[ast.expr] = []
        number = ast.Constant(len(self.sites))
        for n, hole in enumerate(found.holes):
            if isinstance(hole, ast.Constant):
                continue
            name = ast.copy_location(ast.Name(HOLE % len(operands), ast.Load()), hole)
            places[id(hole)] = name
            operand = _as_key(hole) if n in found.keys or _has_slice(hole) else hole
            if guarded and n in found.keys:
                operand = _call(HASHED, [operand], hole)
            if n in found.by_content and not _is_fresh(hole):
                operand = _call(CONTENT, [number, operand], hole)
            operands.append(operand)
        template = replaced(found.statement, places)
        assert isinstance(template, ast.stmt)
        unstable = self.unstable(found.statement)
        self.sites.append(
            Site(
                ast.fix_missing_locations(template),
                len(operands),
                tuple(found.roots),
                frozenset(found.assigns),
                found.method,
                guarded,
                found.statement.lineno,
                self._slot_of(found),
                unstable,
            )
        )
        entry: list[ast.expr] = [number, *operands]
        if unstable:
            now = _call(NOW, [number, *map(ast.Constant, unstable)], found.statement)
            entry.append(ast.Starred(now, ast.Load()))
        return _call_statement(LOG, [ast.Tuple(entry, ast.Load())], found.statement)


def _call(function: str, args: list[ast.expr], at: ast.AST) -> ast.expr:
    return ast.copy_location(ast.Call(ast.Name(function, ast.Load()), args, []), at)


def _call_statement(function: str, args: list[ast.expr], at: ast.AST) -> ast.stmt:
    return ast.copy_location(ast.Expr(_call(function, args, at)), at)


def _has_slice(node: ast.expr) -> bool:
    return isinstance(node, ast.Slice) or (
        isinstance(node, ast.Tuple) and any(_has_slice(e) for e in node.elts)
    )


def _as_key(node: ast.expr) -> ast.expr:
    """An expression for the key that `x[node]` would use; slices have no other form."""
    if not _has_slice(node):
        return node
    return ast.copy_location(ast.Subscript(ast.Name(KEY, ast.Load()), node, ast.Load()), node)


def _is_fresh(node: ast.expr) -> bool:
    """Whether the value of `node` is certainly not reached from anywhere else."""
    return isinstance(
        node,
        ast.Constant
        | ast.JoinedStr
        | ast.BinOp
        | ast.Compare
        | ast.ListComp
        | ast.SetComp
        | ast.DictComp
        | ast.List
        | ast.Dict
        | ast.Set
        | ast.UnaryOp,
    )


def plainer(statements: Sequence[ast.stmt], numbers: Iterator[int]) -> list[ast.stmt]:
    """The same statements with every assignment to several places, some of them items, written one by one."""
    made: list[ast.stmt] = []
    for statement in statements:
        if isinstance(statement, ast.Assign):
            made.extend(_plainer_assign(statement, numbers))
            continue
        if isinstance(statement, ast.Expr):
            made.extend(_plainer_call(statement))
            continue
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.append(statement)
            continue
        new = copy.copy(statement)
        for name in ("body", "orelse", "finalbody"):
            block = getattr(statement, name, None)
            if isinstance(block, list):
                setattr(new, name, plainer(block, numbers))
        if isinstance(new, ast.Try | ast.TryStar):
            new.handlers = [_with_body(h, plainer(h.body, numbers)) for h in new.handlers]
        elif isinstance(new, ast.Match):
            new.cases = [ast.match_case(c.pattern, c.guard, plainer(c.body, numbers)) for c in new.cases]
        made.append(new)
    return made


def _plainer_call(statement: ast.Expr) -> list[ast.stmt]:
    """`d.setdefault(k, []).append(f(x))` makes its item before `f(x)` may raise: a statement of its own."""
    match statement.value:
        case ast.Call(
            func=ast.Attribute(
                value=ast.Call(func=ast.Attribute(attr="setdefault"), args=[key, new]) as made
            ),
            args=args,
        ):
            plain = ast.Name | ast.Constant
            is_empty = isinstance(new, ast.Constant) or ast.unparse(new) in ("[]", "{}", "set()", "()")
            if is_empty and isinstance(key, plain) and not all(isinstance(a, plain) for a in args):
                return [ast.copy_location(ast.Expr(made), statement), statement]
    return [statement]


def _with_body(handler: ast.ExceptHandler, body: list[ast.stmt]) -> ast.ExceptHandler:
    new = copy.copy(handler)
    new.body = body
    return new


def _plainer_assign(statement: ast.Assign, numbers: Iterator[int]) -> list[ast.stmt]:
    places = [leaf for target in statement.targets for leaf in leaves_of(target)]
    items = [leaf for leaf in places if not isinstance(leaf, ast.Name)]
    if not items or len(places) == 1:
        return [statement]
    names = {leaf.id for leaf in places if isinstance(leaf, ast.Name)}
    used = {n.id for leaf in items for n in ast.walk(leaf) if isinstance(n, ast.Name)}
    if names & used:  # `i, a[i] = …` binds and uses in an order that would be lost
        return [statement]
    made: list[ast.stmt] = []

    def temporary() -> str:
        return TEMPORARY % next(numbers)

    value = statement.value
    if len(statement.targets) > 1:
        whole = temporary()
        made.append(ast.Assign([ast.Name(whole, ast.Store())], value))
        value = ast.Name(whole, ast.Load())
    for target in statement.targets:
        later: list[ast.stmt] = []
        given = ast.Name(value.id, ast.Load()) if isinstance(value, ast.Name) else value
        made.append(ast.Assign([_named(target, temporary, later)], given))
        made.extend(later)
    for part in made:
        ast.copy_location(part, statement)
        ast.fix_missing_locations(part)
    return made


def _named(target: ast.expr, temporary: Callable[[], str], later: list[ast.stmt]) -> ast.expr:
    """A target whose items in a tuple are bound to temporaries first; `later` assigns them."""
    if isinstance(target, ast.Tuple | ast.List):
        return ast.Tuple([_part_named(e, temporary, later) for e in target.elts], ast.Store())
    return target


def _part_named(target: ast.expr, temporary: Callable[[], str], later: list[ast.stmt]) -> ast.expr:
    if isinstance(target, ast.Tuple | ast.List):
        return _named(target, temporary, later)
    if isinstance(target, ast.Starred):
        return ast.Starred(_part_named(target.value, temporary, later), ast.Store())
    if isinstance(target, ast.Name):
        return target
    name = temporary()
    later.append(ast.Assign([target], ast.Name(name, ast.Load())))
    return ast.Name(name, ast.Store())
