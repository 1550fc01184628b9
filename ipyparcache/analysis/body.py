"""The body that a worker runs: replayed statements become entries of a log, and sites for the kernel."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipyparcache.analysis.changing import COPYING_METHODS, REPLAYED_METHODS
from ipyparcache.analysis.collected import Found
from ipyparcache.analysis.conditionals import prints_itself
from ipyparcache.analysis.flow import bound_names
from ipyparcache.analysis.forms import looked_up_before
from ipyparcache.analysis.ownrows import OwnRows
from ipyparcache.analysis.walk import leaves_of, own_nodes, statements_of

LOG = "__ipyparcache_log__"


KEY = "__ipyparcache_key__"


CONTENT = "__ipyparcache_content__"


HASHED = "__ipyparcache_hashed__"


UNBIND = "__ipyparcache_unbind__"


NOW = "__ipyparcache_now__"


UNFINISHED = "__ipyparcache_unfinished__"


THROUGH = "__ipyparcache_through__"


REFIT = "__ipyparcache_refit__"


TRIED = "__ipyparcache_tried__"


GIVEN = "__ipyparcache_given__"


#: Stands in a log entry for a name that is not bound.
UNBOUND = "\0unbound"


ITEM = "__ipyparcache_item__"


VALUE = "__ipyparcache_value__"


ITERABLE = "__ipyparcache_iterable__"


OURS = "__ipyparcache_"


LOOKED_UP = "looked up"


TEMPORARY = "__ipyparcache_t%d__"


HOLE = "__ipyparcache_h%d__"


KEPT = "__ipyparcache_k%d__"


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
        How it changes the root: a method's name, `item`, `attribute`, `assign`, `delete`, `call`, or
        `looked up` for the part of a statement that came before an operand that raised.
    guarded
        Whether an `except` of the body encloses it, or a `finally` that does more, so that it must not be
        able to raise.
    slot
        For a statement that every iteration reaches and that gives each one place in its root: for every
        hole the target whose value it is, None for the value itself. A failed iteration's place can be
        filled.
    unstable
        Names that are assigned before this statement and again behind it: their values here follow the
        operands.
    prints
        Whether the kernel prints when it executes it.
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
    prints: bool = False


@dataclass(frozen=True)
class Tail:
    """The part of a `finally` that is left to the kernel when an exception passes through.

    It reads what the failing iteration had not assigned yet, and only the kernel has from an earlier one.

    Attributes
    ----------
    statements
        As the kernel runs them, from the first that reads such a name on.
    names
        The names that they may miss.
    """

    statements: tuple[ast.stmt, ...]
    names: tuple[str, ...]


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
    missed: Mapping[int, Sequence[frozenset[str]]] = field(default_factory=dict)
    through: Mapping[int, frozenset[str]] = field(default_factory=dict)
    managers: frozenset[str] = frozenset()
    refits: Mapping[int, Sequence[str]] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    tails: list[Tail] = field(default_factory=list)

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
        place = f":, {HOLE % 0}" if rows.column else HOLE % 0
        statement = ast.parse(f"{rows.root}[{place}] = {HOLE % 1}").body[0]
        for node in ast.walk(statement):
            if isinstance(node, ast.stmt | ast.expr):
                node.lineno = node.end_lineno = rows.line
        self.sites.append(Site(statement, 2, (rows.root,), frozenset(), "row", False, rows.line))
        return len(self.sites) - 1

    def state(self, root: str, line: int) -> int:
        """The number of a site that gives an object the attributes with which an iteration left its own."""
        statement = ast.parse(f"{root}.__dict__ = {HOLE % 0}").body[0]
        for node in ast.walk(statement):
            if isinstance(node, ast.stmt | ast.expr):
                node.lineno = node.end_lineno = line
        self.sites.append(Site(statement, 1, (root,), frozenset(), REFIT, False, line))
        return len(self.sites) - 1

    def _statement(self, node: ast.stmt, *, guarded: bool) -> list[ast.stmt]:
        fresh = [_call_statement(REFIT, [ast.Constant(r)], node) for r in self.refits.get(id(node), ())]
        return [*fresh, *self._built(node, guarded=guarded)]

    def _built(self, node: ast.stmt, *, guarded: bool) -> list[ast.stmt]:
        found = self.found.get(id(node))
        if found is not None:
            return self._entry(found, guarded=guarded)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return [node]
        new = copy.copy(node)
        if isinstance(node, ast.Try | ast.TryStar):
            assert isinstance(new, ast.Try | ast.TryStar)
            after = guarded or self._leaves_something(node.finalbody)
            new.body = self.block(node.body, guarded=after or bool(node.handlers))
            new.handlers = [self._handler(h, guarded=after) for h in node.handlers]
            new.orelse = self.block(node.orelse, guarded=after)
            new.finalbody = self._finally(node, guarded=guarded)
            return [new]
        if isinstance(node, ast.With | ast.AsyncWith):
            assert isinstance(new, ast.With | ast.AsyncWith)
            after = guarded or any(self._does_something(item.context_expr) for item in node.items)
            new.body = self.block(node.body, guarded=after)
            doubted = [ast.Constant(name) for name in sorted(self.through.get(id(node), ()))]
            return [new, _call_statement(THROUGH, [*doubted], node)] if doubted else [new]
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

    def _finally(self, node: ast.Try | ast.TryStar, *, guarded: bool) -> list[ast.stmt]:
        """What a worker runs of a `finally`.

        Not the part from where it misses a name on, and nothing of it once one inside was given up.
        """
        missed = self.missed.get(id(node), ())
        begin = next((n for n, names in enumerate(missed) if names), None)
        if any(any(self.missed.get(id(part), ())) for part in ast.walk(node) if part is not node):
            begin = 0
        if begin is None:
            return self.block(node.finalbody, guarded=guarded)
        names = sorted(frozenset().union(*missed))
        number = ast.Constant(len(self.tails))
        self.tails.append(Tail(tuple(node.finalbody[begin:]), tuple(names)))
        first = node.finalbody[begin]
        test = _call(UNFINISHED, [number, *map(ast.Constant, names)], first)
        head = self.block(node.finalbody[:begin], guarded=guarded)
        tail = self.block(node.finalbody[begin:], guarded=guarded)
        return [*head, ast.copy_location(ast.If(ast.UnaryOp(ast.Not(), test), tail, []), first)]

    def _leaves_something(self, statements: Sequence[ast.stmt]) -> bool:
        """Whether a `finally` does what is seen afterwards: it does so when the write in front fails, too."""
        prints = any(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            for node in own_nodes(statements)
        )
        replays = any(id(statement) in self.found for statement in statements_of(statements))
        return prints or replays or any(map(bound_names, statements))

    def _does_something(self, manager: ast.expr) -> bool:
        """Whether what ends a `with` may go on after an exception, or do what is seen afterwards."""
        names = {part.id for part in ast.walk(manager) if isinstance(part, ast.Name)}
        return "suppress" in ast.unparse(manager) or not names.isdisjoint(self.managers)

    def _handler(self, node: ast.ExceptHandler, *, guarded: bool) -> ast.ExceptHandler:
        new = copy.copy(node)
        new.body = self.block(node.body, guarded=guarded)
        if node.name is not None:
            new.body.insert(0, _call_statement(UNBIND, [ast.Constant(node.name)], node))
        return new

    def _entry(self, found: Found, *, guarded: bool) -> list[ast.stmt]:
        """The call that logs one replayed statement; the statement itself becomes a site."""
        places: dict[int, ast.expr] = {}
        operands: list[ast.expr] = []
        holes: list[ast.expr] = []
        content: list[int] = []
        number = ast.Constant(len(self.sites))
        for n, hole in enumerate(found.holes):
            if isinstance(hole, ast.Constant):
                continue
            name = ast.copy_location(ast.Name(HOLE % len(operands), ast.Load()), hole)
            places[id(hole)] = _call(GIVEN, [name], hole) if n in found.needless else name
            operand = _as_key(hole) if n in found.keys or _has_slice(hole) else hole
            if guarded and n in found.keys:
                operand = _call(HASHED, [operand], hole)
            if n in found.needless:
                no_arguments = ast.arguments([], [], None, [], [], None, [])
                operand = _call(TRIED, [ast.copy_location(ast.Lambda(no_arguments, operand), hole)], hole)
            if n in found.by_content and not _is_fresh(hole):
                content.append(len(operands))
            operands.append(operand)
            holes.append(hole)
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
                prints_itself(found),
            )
        )
        before = self._looked_up(found, holes, operands, guarded=guarded)
        for n in content:
            ahead = operands[:n]
            reads = n == len(operands) - 1 and not any(map(_may_raise, ahead)) and _consumes(found)
            entered = [ast.Tuple(ahead, ast.Load())] if reads else []
            operands[n] = _call(CONTENT, [number, operands[n], *entered], holes[n])
        entry: list[ast.expr] = [number, *operands]
        if unstable:
            now = _call(NOW, [number, *map(ast.Constant, unstable)], found.statement)
            entry.append(ast.Starred(now, ast.Load()))
        logged = _call_statement(LOG, [ast.Tuple(entry, ast.Load())], found.statement)
        if not before:
            return [logged]
        before[-1][0].append(logged)
        return [part for statements, lookup in before for part in _trying(statements, lookup)]

    def _looked_up(
        self, found: Found, holes: Sequence[ast.expr], operands: list[ast.expr], *, guarded: bool
    ) -> list[tuple[list[ast.stmt], ast.stmt | None]]:
        """The operands in runs before which the same was looked up, each with the entry for that.

        The operands of all runs but the last are kept under names, which take their place in `operands`.
        Empty where nothing was looked up before an operand that may raise.
        """
        owners = looked_up_before(found)
        runs: list[tuple[ast.expr | None, list[int]]] = []
        for n, hole in enumerate(holes):
            owner = owners.get(id(hole))
            if not runs or runs[-1][0] is not owner:
                runs.append((owner, []))
            runs[-1][1].append(n)
        if not any(owner is not None and any(_may_raise(holes[n]) for n in run) for owner, run in runs):
            return []
        made: list[tuple[list[ast.stmt], ast.stmt | None]] = []
        for owner, run in runs:
            lookup = None
            if owner is not None and any(_may_raise(holes[n]) for n in run):
                lookup = self._lookup(found, owner, holes, operands, guarded=guarded)
            kept: list[ast.stmt] = []
            for n in run if run is not runs[-1][1] else ():
                if not isinstance(operands[n], ast.Constant):
                    place, name = (ast.Name(KEPT % n, c) for c in (ast.Store(), ast.Load()))
                    kept.append(ast.copy_location(ast.Assign([place], operands[n]), holes[n]))
                    operands[n] = ast.copy_location(name, holes[n])
            made.append((kept, lookup))
        return made

    def _lookup(
        self,
        found: Found,
        owner: ast.expr,
        holes: Sequence[ast.expr],
        operands: Sequence[ast.expr],
        *,
        guarded: bool,
    ) -> ast.stmt:
        """The entry for what was looked up before an operand raised."""
        inside = {id(node) for node in ast.walk(owner)}
        mine = [n for n, hole in enumerate(holes) if id(hole) in inside]
        names = (ast.copy_location(ast.Name(HOLE % m, ast.Load()), owner) for m in range(len(mine)))
        loaded = replaced(owner, {id(holes[n]): name for n, name in zip(mine, names, strict=True)})
        assert isinstance(loaded, ast.expr)
        if isinstance(loaded, ast.Subscript | ast.Attribute):
            loaded.ctx = ast.Load()
        statement = ast.copy_location(ast.Expr(loaded), found.statement)
        line = found.statement.lineno
        self.sites.append(
            Site(statement, len(mine), tuple(found.roots), frozenset(), LOOKED_UP, guarded, line)
        )
        entry: list[ast.expr] = [ast.Constant(len(self.sites) - 1), *(operands[n] for n in mine)]
        return _call_statement(LOG, [ast.Tuple(entry, ast.Load())], found.statement)


def _consumes(found: Found) -> bool:
    """Whether the changed object takes the elements of an iterator one by one: those before an error stay."""
    return found.method in COPYING_METHODS or isinstance(found.statement, ast.AugAssign)


def _may_raise(hole: ast.expr) -> bool:
    match hole:
        case ast.Name() | ast.Constant() | ast.Lambda() | ast.Dict(keys=[]):
            return False
        case ast.Tuple(elts=elts) | ast.List(elts=elts):
            return any(map(_may_raise, elts))
        case ast.Slice(lower=lower, upper=upper, step=step):
            return any(_may_raise(part) for part in (lower, upper, step) if part is not None)
    return True


def _trying(statements: list[ast.stmt], lookup: ast.stmt | None) -> list[ast.stmt]:
    """Statements with an entry that is made where they raise."""
    if lookup is None or not statements:
        return statements
    handler = ast.ExceptHandler(None, None, [lookup, ast.copy_location(ast.Raise(), lookup)])
    tried = ast.Try(statements, [ast.copy_location(handler, lookup)], [], [])
    return [ast.copy_location(tried, lookup)]


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
            chosen = _plainer_choice(statement)
            made.extend([chosen] if chosen is not None else _plainer_assign(statement, numbers))
            continue
        if isinstance(statement, ast.Expr):
            made.append(_plainer_expression(statement, numbers))
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


def _plainer_expression(statement: ast.Expr, numbers: Iterator[int]) -> ast.stmt:
    """`d[k].append(x) if c else None`, `c and out.append(x)`, `[out.append(x) for x in xs]` as statements.

    And `(a if c else b).append(x)`.
    """
    made: ast.stmt
    match statement.value:
        case ast.IfExp(test=test, body=body, orelse=orelse):
            blocks = [plainer(_alone(part), numbers) for part in (body, orelse)]
            if not blocks[0]:
                test, blocks = ast.UnaryOp(ast.Not(), test), blocks[::-1]
            made = ast.If(test, blocks[0] or [ast.Pass()], blocks[1])
        case ast.Call() as call if (choice := _chosen_owner(call)) is not None:
            calls = [replaced(call, {id(choice): owner}) for owner in (choice.body, choice.orelse)]
            blocks = [plainer(_alone(part), numbers) for part in calls if isinstance(part, ast.expr)]
            made = ast.If(choice.test, *blocks)
        case ast.BoolOp(op=op, values=[*tests, last]):
            test = ast.BoolOp(op, tests) if len(tests) > 1 else tests[0]
            test = test if isinstance(op, ast.And) else ast.UnaryOp(ast.Not(), test)
            made = ast.If(test, plainer(_alone(last), numbers) or [ast.Pass()], [])
        case ast.ListComp(elt=ast.Call() as call, generators=generators) if _is_a_loop(call, generators):
            own = {n.id for g in generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
            names = {name: TEMPORARY % next(numbers) for name in sorted(own)}
            first = generators[0].iter  # evaluated outside of the comprehension, whose names it does not see
            made = plainer([_renamed(ast.Expr(call), names)], numbers)[0]
            for generator in reversed(generators):
                for test in reversed(generator.ifs):
                    made = ast.If(_renamed(test, names), [made], [])
                around = first if generator is generators[0] else _renamed(generator.iter, names)
                made = ast.For(_renamed(generator.target, names), around, [made], [])
        case _:
            return statement
    for node in ast.walk(made):
        if isinstance(node, ast.stmt | ast.expr) and not hasattr(node, "lineno"):
            ast.copy_location(node, statement)
    return made


def _chosen_owner(call: ast.Call) -> ast.IfExp | None:
    """The choice with which a chain of calls, attributes and items begins: it is made before all else."""
    node: ast.expr = call
    while True:
        match node:
            case ast.IfExp():
                return node
            case ast.Call(func=ast.Attribute(value=owner)) | ast.Subscript(value=owner):
                node = owner
            case ast.Attribute(value=owner):
                node = owner
            case _:
                return None


def _alone(value: ast.expr) -> list[ast.stmt]:
    """An expression as a statement; nothing for a constant."""
    return [] if isinstance(value, ast.Constant) else [ast.copy_location(ast.Expr(value), value)]


def _is_a_loop(call: ast.Call, generators: Sequence[ast.comprehension]) -> bool:
    """Whether a comprehension is written for what its calls change, and a loop does the same."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in REPLAYED_METHODS:
        return False
    scopes = ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.NamedExpr
    inside = [call, *(part for g in generators for part in (g.target, *g.ifs))]
    inside += [g.iter for g in generators[1:]]
    plain = not any(isinstance(node, scopes) for part in inside for node in ast.walk(part))
    return plain and not any(g.is_async for g in generators)


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    """A copy of a node with other names."""
    new = copy.deepcopy(node)
    for part in ast.walk(new):
        if isinstance(part, ast.Name):
            part.id = names.get(part.id, part.id)
    return new


def _with_body(handler: ast.ExceptHandler, body: list[ast.stmt]) -> ast.ExceptHandler:
    new = copy.copy(handler)
    new.body = body
    return new


def _plainer_choice(statement: ast.Assign) -> ast.If | None:
    """`x = e if c else x` as two statements; None where `x` has nothing to do with what it gets.

    `x = x` stays: it fails where there is no `x` yet.
    """
    match statement:
        case ast.Assign(
            targets=[ast.Name(id=name) as target], value=ast.IfExp(test=test, body=body, orelse=orelse)
        ) if any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(statement.value)):
            assigns = (ast.Assign([copy.copy(target)], value) for value in (body, orelse))
            first, second = (ast.copy_location(assign, statement) for assign in assigns)
            return ast.copy_location(ast.If(test, [first], [second]), statement)
    return None


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
