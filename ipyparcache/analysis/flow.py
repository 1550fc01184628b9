"""What one iteration reads before it has assigned it.

Definite assignment over the statements of a loop body.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipyparcache.analysis.walk import own_jumps

State = frozenset[str] | None
"""Names assigned on every path that leads here; None where no path does."""


@dataclass(frozen=True)
class Read:
    """One place that reads a name.

    Attributes
    ----------
    node
        The place, for its line.
    attribute
        `a` where only `name.a` is read, else None.
    early
        Whether some path leads here on which the iteration has not assigned the name.
    by
        The notebook function that reads it when it is called from here, else None.
    """

    node: ast.AST
    attribute: str | None
    early: bool
    by: str | None = None


@dataclass
class Flow:
    """Reads and bindings of a sequence of statements, path by path.

    Parameters
    ----------
    helper_reads
        For a name that stands for a notebook function: the notebook names that a call of it may read.
    skip
        For a statement that is replayed elsewhere: the expressions that are evaluated here; None for all
        others.

    Attributes
    ----------
    distrusting
        Whether any `with` may swallow an exception, not only one that is seen to.
    unfinished
        By the id of a `try` out of which an exception ends the iteration: for every statement of its
        `finally`, the names that it may read then without their having been assigned.
    through
        By the id of a `with`: the names that are assigned behind it unless it swallowed an exception.
    """

    helper_reads: Callable[[str], Iterable[str]] = lambda _name: ()
    skip: Callable[[ast.stmt], Sequence[ast.expr] | None] = lambda _stmt: None
    reads: dict[str, list[Read]] = field(default_factory=dict)
    bound: dict[str, ast.AST] = field(default_factory=dict)
    deleted: dict[str, ast.AST] = field(default_factory=dict)
    deleted_early: dict[str, ast.AST] = field(default_factory=dict)
    inner_globals: dict[str, ast.AST] = field(default_factory=dict)
    distrusting: bool = False
    unfinished: dict[int, list[frozenset[str]]] = field(default_factory=dict)
    through: dict[int, frozenset[str]] = field(default_factory=dict)
    _breaks: list[list[State]] = field(default_factory=list)
    _leaving: list[tuple[int, list[State]]] = field(default_factory=list)
    _caught: int = 0

    def early(self, name: str) -> Read | None:
        """The first place that may read `name` as it was before the iteration, if there is one."""
        return next((read for read in self.reads.get(name, ()) if read.early), None)

    def run(self, statements: Iterable[ast.stmt], assigned: Iterable[str]) -> State:
        """Follow `statements` from a state in which `assigned` are assigned; the state at their end."""
        return self._block(statements, frozenset(assigned))

    # statements

    def _block(self, statements: Iterable[ast.stmt], state: State) -> State:
        for statement in statements:
            state = self._statement(statement, state)
        return state

    def _statement(self, node: ast.stmt, state: State) -> State:
        holes = self.skip(node)
        if holes is not None:
            for hole in holes:
                state = self._expr(hole, state)
            return state
        match node:
            case ast.Expr(value=value):
                return self._expr(value, state)
            case ast.Assign(targets=targets, value=value):
                state = self._expr(value, state)
                for target in targets:
                    state = self._bind(target, state)
                return state
            case ast.AugAssign(target=target, value=value):
                if isinstance(target, ast.Name):
                    self._read(target.id, target, state)
                else:
                    state = self._expr(target, state)
                return self._bind(target, self._expr(value, state))
            case ast.AnnAssign(target=target, value=value):
                if value is None:
                    return state
                return self._bind(target, self._expr(value, state))
            case ast.If(test=test, body=body, orelse=orelse):
                state = self._expr(test, state)
                return _join(self._block(body, state), self._block(orelse, state))
            case ast.For() | ast.AsyncFor():
                return self._for(node, state)
            case ast.While():
                return self._while(node, state)
            case ast.Try() | ast.TryStar():
                return self._try(node, state)
            case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
                return self._with(node, items, body, state)
            case ast.Match(subject=subject, cases=cases):
                return self._match(subject, cases, state)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                for part in [*node.decorator_list, *_defaults(node.args)]:
                    state = self._expr(part, state)
                # Its body runs when it has its name, unless a decorator calls it.
                state = self._name(node.name, node, state) if not node.decorator_list else state
                self._read_free(node, state)
                return self._name(node.name, node, state)
            case ast.ClassDef():
                for part in [*node.decorator_list, *node.bases, *(k.value for k in node.keywords)]:
                    state = self._expr(part, state)
                self._class(node, state)
                return self._name(node.name, node, state)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                for alias in names:
                    state = self._name(alias.asname or alias.name.split(".")[0], node, state)
                return state
            case ast.Delete(targets=targets):
                return self._delete(targets, state)
            case ast.Raise(exc=exc, cause=cause):
                for given in (exc, cause):
                    if given is not None:
                        state = self._expr(given, state)
                return None
            case ast.Assert(test=test, msg=msg):
                state = self._expr(test, state)
                if msg is not None:
                    self._expr(msg, state)
                return state
            case ast.Break():
                self._leave(state)
                if self._breaks:
                    self._breaks[-1].append(state)
                return None
            case ast.Continue():
                self._leave(state)
                return None
            case _:
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        state = self._expr(child, state)
                return state

    def _for(self, node: ast.For | ast.AsyncFor, state: State) -> State:
        state = self._expr(node.iter, state)
        self._breaks.append([])
        inside = self._block(node.body, self._bind(node.target, state))
        breaks = self._breaks.pop()
        # A loop over something written out with at least one element runs its body; any other may run it
        # never.
        after = inside if _never_empty(node.iter) and inside is not None else state
        end = self._block(node.orelse, after)
        for left in breaks:
            end = _join(end, left)
        return end

    def _while(self, node: ast.While, state: State) -> State:
        state = self._expr(node.test, state)
        self._breaks.append([])
        self._block(node.body, state)
        breaks = self._breaks.pop()
        for_ever = isinstance(node.test, ast.Constant) and bool(node.test.value)
        end = None if for_ever else self._block(node.orelse, state)
        for left in breaks:
            end = _join(end, left)
        return end

    def _leave(self, state: State) -> None:
        """Take note of a jump that passes through the `finally` of the `try` statements around it."""
        for depth, states in self._leaving:
            if depth == len(self._breaks):
                states.append(state)

    def _try(self, node: ast.Try | ast.TryStar, state: State) -> State:
        jumps: list[State] = []
        if node.finalbody:
            self._leaving.append((len(self._breaks), jumps))
        swallows = any(own_jumps(node.finalbody, ast.Continue)) or any(own_jumps(node.finalbody, ast.Break))
        goes_on = bool(node.handlers) or swallows
        self._caught += goes_on
        done = self._block(node.body, state)
        self._caught -= goes_on
        end = self._block(node.orelse, done)
        for handler in node.handlers:
            inside = state if handler.type is None else self._expr(handler.type, state)
            if handler.name is not None:
                inside = self._name(handler.name, handler, inside)
                self.deleted.setdefault(handler.name, handler)
            left = self._block(handler.body, inside)
            if handler.name is not None and left is not None:
                left = left - {handler.name}
            end = _join(end, left)
        if not node.finalbody:
            return end
        self._leaving.pop()
        for left in jumps:
            self._block(node.finalbody, left)
        if self._caught or swallows:
            self._block(node.finalbody, state)  # the iteration may go on after that
        else:
            self._pass_through(node, state)
        return self._block(node.finalbody, end)

    def _pass_through(self, node: ast.Try | ast.TryStar, state: State) -> None:
        """Follow `finally` while an exception passes, from before any statement of the `try` was over."""
        inner = Flow(self.helper_reads, self.skip)
        found = self.unfinished[id(node)] = []
        for statement in node.finalbody:
            known = frozenset().union(*found)
            state = inner._statement(statement, state)
            early = {name for name in inner.reads if inner.early(name) is not None}
            found.append(frozenset(early) - known)

    def _with(
        self, node: ast.With | ast.AsyncWith, items: list[ast.withitem], body: list[ast.stmt], state: State
    ) -> State:
        swallows = self.distrusting
        for item in items:
            state = self._expr(item.context_expr, state)
            swallows = swallows or "suppress" in ast.unparse(item.context_expr)
            if item.optional_vars is not None:
                state = self._bind(item.optional_vars, state)
        self._caught += 1  # it may go on after an exception, and what it does at its end comes first
        end = self._block(body, state)
        self._caught -= 1
        if swallows:
            return _join(end, state)
        if end is not None and state is not None:
            self.through[id(node)] = end - state
        return end

    def _match(self, subject: ast.expr, cases: list[ast.match_case], state: State) -> State:
        state = self._expr(subject, state)
        end: State = None
        total = False
        for case in cases:
            inside = state
            for part in ast.walk(case.pattern):
                if isinstance(part, ast.MatchAs | ast.MatchStar) and part.name is not None:
                    inside = self._name(part.name, part, inside)
                elif isinstance(part, ast.MatchMapping) and part.rest is not None:
                    inside = self._name(part.rest, part, inside)
                elif isinstance(part, ast.MatchValue):
                    self._expr(part.value, inside)
                elif isinstance(part, ast.MatchClass):
                    self._expr(part.cls, inside)
            if case.guard is not None:
                inside = self._expr(case.guard, inside)
            end = _join(end, self._block(case.body, inside))
            total = total or (
                case.guard is None and isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None
            )
        return end if total else _join(end, state)

    def _delete(self, targets: list[ast.expr], state: State) -> State:
        for target in targets:
            if isinstance(target, ast.Name):
                if state is not None and target.id not in state:
                    self.deleted_early.setdefault(target.id, target)
                self.deleted.setdefault(target.id, target)
                self.bound.setdefault(target.id, target)
                if state is not None:
                    state = state - {target.id}
            elif isinstance(target, ast.Tuple | ast.List):
                state = self._delete(target.elts, state)
            else:
                state = self._expr(target, state)
        return state

    def _class(self, node: ast.ClassDef, state: State) -> None:
        inner = Flow(self.helper_reads)
        inner.run(node.body, ())
        for name, reads in inner.reads.items():
            for read in reads:
                if read.early:
                    self._read(name, read.node, state, read.attribute, read.by)
        self.inner_globals.update(inner.inner_globals)

    # names

    def _name(self, name: str, node: ast.AST, state: State) -> State:
        self.bound.setdefault(name, node)
        return None if state is None else state | {name}

    def _read(
        self, name: str, node: ast.AST, state: State, attribute: str | None = None, by: str | None = None
    ) -> None:
        early = state is not None and name not in state
        self.reads.setdefault(name, []).append(Read(node, attribute, early, by))
        if by is None:
            for other in self.helper_reads(name):
                if other != name:
                    self._read(other, node, state, None, name)

    def _bind(self, target: ast.expr, state: State) -> State:
        match target:
            case ast.Name(id=name):
                return self._name(name, target, state)
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                for part in elts:
                    state = self._bind(part, state)
                return state
            case ast.Starred(value=value):
                return self._bind(value, state)
            case _:
                return self._expr(target, state)

    def _read_free(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, state: State) -> None:
        for name, place in free_names(node).items():
            self._read(name, place, state)
        for part in ast.walk(node):
            if isinstance(part, ast.Global):
                for name in part.names:
                    self.inner_globals.setdefault(name, part)

    # expressions

    def _expr(self, node: ast.expr, state: State) -> State:
        match node:
            case ast.Name(id=name):
                if isinstance(node.ctx, ast.Load):
                    self._read(name, node, state)
                return state
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                self._read(name, node, state, attribute)
                return state
            case ast.NamedExpr(target=target, value=value):
                return self._bind(target, self._expr(value, state))
            case ast.BoolOp(values=values):
                state = self._expr(values[0], state)
                later = state
                for value in values[1:]:
                    later = self._expr(value, later)
                return state
            case ast.IfExp(test=test, body=body, orelse=orelse):
                state = self._expr(test, state)
                return _join(self._expr(body, state), self._expr(orelse, state))
            case ast.Lambda():
                for part in _defaults(node.args):
                    state = self._expr(part, state)
                self._read_free(node, state)
                return state
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return self._comprehension(node, state)
            case _:
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        state = self._expr(child, state)
                    elif isinstance(child, ast.keyword):
                        state = self._expr(child.value, state)
                return state

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, state: State
    ) -> State:
        state = self._expr(node.generators[0].iter, state)
        local: set[str] = set()
        inside = Flow(self.helper_reads)
        assigned = state
        for n, generator in enumerate(node.generators):
            if n:
                assigned = inside._expr(generator.iter, assigned)
            names = {t.id for t in ast.walk(generator.target) if isinstance(t, ast.Name)}
            local |= names
            assigned = None if assigned is None else assigned | names
            for test in generator.ifs:
                assigned = inside._expr(test, assigned)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        for part in parts:
            assigned = inside._expr(part, assigned)
        for name, reads in inside.reads.items():
            if name not in local:
                self.reads.setdefault(name, []).extend(reads)
        # A walrus in a comprehension binds the name outside of it, but perhaps never.
        for name, place in inside.bound.items():
            if name not in local:
                self.bound.setdefault(name, place)
        self.inner_globals.update(inside.inner_globals)
        return state


class Unstable:
    """Which names a body assigns both before and behind a statement, as it is written or by going round."""

    def __init__(self, body: Sequence[ast.stmt], targets: Iterable[str]) -> None:
        self.places: dict[str, list[tuple[int, int]]] = {name: [(0, 0)] for name in targets}
        self.rounds: list[tuple[tuple[int, int], tuple[int, int], set[str]]] = []
        for statement in body:
            self._note(statement)

    def _note(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            inner = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)]
            heads = [part for part in ast.iter_child_nodes(node) if not isinstance(part, ast.stmt)]
            is_scope = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            names = bound_names(node) if is_scope or not inner else set().union(*map(bound_names, heads))
            for name in names:
                self.places.setdefault(name, []).append(_begin(node))
            if isinstance(node, ast.For | ast.AsyncFor | ast.While):
                self.rounds.append((_begin(node), _end(node), bound_names(node)))
            if is_scope:
                return
        for part in ast.iter_child_nodes(node):
            self._note(part)

    def at(self, statement: ast.stmt) -> tuple[str, ...]:
        """The names, for one statement of the body."""
        here = _begin(statement)
        found = {
            name
            for name, places in self.places.items()
            if any(place <= here for place in places) and any(place > here for place in places)
        }
        for begin, end, names in self.rounds:
            if begin <= here < end:
                found |= names
        return tuple(sorted(found))


def _begin(node: ast.stmt) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: ast.stmt) -> tuple[int, int]:
    return node.end_lineno or node.lineno, node.end_col_offset or 0


def _join(one: State, other: State) -> State:
    if one is None:
        return other
    if other is None:
        return one
    return one & other


def _never_empty(node: ast.expr) -> bool:
    """Whether an iterable is written out with at least one element, or a `range` of a positive constant."""
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return any(not isinstance(e, ast.Starred) for e in node.elts)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and bool(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        if node.func.id == "range" and all(isinstance(a, ast.Constant) for a in node.args):
            try:
                bounds: list[Any] = [a.value for a in node.args if isinstance(a, ast.Constant)]
                return len(range(*bounds)) > 0
            except (TypeError, ValueError):
                return False
        if node.func.id == "enumerate":
            return _never_empty(node.args[0])
    return False


def _defaults(args: ast.arguments) -> list[ast.expr]:
    return [*args.defaults, *(d for d in args.kw_defaults if d is not None)]


def parameters_of(args: ast.arguments) -> list[str]:
    """All parameter names, the positional ones first."""
    starred = [a.arg for a in (args.vararg, args.kwarg) if a is not None]
    return [a.arg for a in [*args.posonlyargs, *args.args, *args.kwonlyargs]] + starred


def free_names(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> dict[str, ast.AST]:
    """Names that a function reads from outside of itself, each with the first place that reads it."""
    body: Sequence[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else node.body
    outside = {n for part in ast.walk(node) if isinstance(part, ast.Global) for n in part.names}
    local = set(parameters_of(node.args))
    found: dict[str, ast.AST] = {}

    def visit(part: ast.AST, hidden: frozenset[str]) -> None:
        match part:
            case ast.Name(id=name):
                if isinstance(part.ctx, ast.Load) and name not in hidden:
                    found.setdefault(name, part)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                for default in _defaults(part.args):
                    visit(default, hidden)
                for name, place in free_names(part).items():
                    if name not in hidden:
                        found.setdefault(name, place)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                names = {t.id for g in part.generators for t in ast.walk(g.target) if isinstance(t, ast.Name)}
                for child in ast.iter_child_nodes(part):
                    visit(child, hidden | names)
            case _:
                for child in ast.iter_child_nodes(part):
                    visit(child, hidden)

    for part in body:
        local |= bound_names(part)
    local -= outside
    for part in body:
        visit(part, frozenset(local))
    return found


def bound_names(node: ast.AST) -> set[str]:
    """Names that a statement binds in its own scope, without looking into functions and classes in it."""
    found: set[str] = set()

    def visit(part: ast.AST) -> None:
        match part:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
                return
            case ast.Lambda():
                return
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                found.update(
                    n.target.id
                    for n in ast.walk(part)
                    if isinstance(n, ast.NamedExpr) and isinstance(n.target, ast.Name)
                )
                return
            case ast.Name(id=name) if not isinstance(part.ctx, ast.Load):
                found.add(name)
            case (
                ast.ExceptHandler(name=str(name))
                | ast.MatchAs(name=str(name))
                | ast.MatchStar(name=str(name))
            ):
                found.add(name)
            case ast.MatchMapping(rest=str(name)):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found.update(a.asname or a.name.split(".")[0] for a in names)
        for child in ast.iter_child_nodes(part):
            visit(child)

    visit(node)
    return found
