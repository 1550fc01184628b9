"""Which names of the notebook statements may read, bind and delete.

A name counts as *read* when some path through the cell loads it before binding it for certain (definite
assignment, as in compilers); as *bound* when some path stores it; as *bound for certain* when every path that
reaches the end stores it. Where a rule cannot tell, it errs to "read": an input too many costs a rerun, one
too few a stale result.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Scope: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
Comprehension: TypeAlias = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


# Context managers known not to swallow exceptions: what their block binds is bound after it. Last part of the
# called name; any other manager might be `contextlib.suppress`, so its block may have been left half-way.
TRANSPARENT_MANAGERS = frozenset(
    """
    open ZipFile TarFile GzipFile BZ2File LZMAFile catch_warnings errstate option_context printoptions
    localcontext rc_context context style no_grad inference_mode threadpool_limits parallel_config
    parallel_backend Pool Parallel ThreadPoolExecutor ProcessPoolExecutor closing nullcontext redirect_stdout
    redirect_stderr chdir connect TemporaryDirectory NamedTemporaryFile TemporaryFile SpooledTemporaryFile
    ExcelWriter HDFStore File Lock RLock config_context urlopen Session scandir load tqdm
    """.split()  # noqa: SIM905 (a list of a hundred quoted words is not easier to read)
)


@dataclass(frozen=True)
class Names:
    """What running some statements may do to the names of the notebook."""

    read: frozenset[str]
    bound: frozenset[str]
    deleted: frozenset[str]
    bound_for_certain: frozenset[str]

    @property
    def touched(self) -> frozenset[str]:
        """Names whose binding a run may change."""
        return self.bound | self.deleted


def names_of(body: Sequence[ast.stmt]) -> Names:
    """What a run of these module-level statements may read, bind and delete."""
    flow = _Flow()
    flow.block(body)
    return Names(
        frozenset(flow.read),
        frozenset(flow.bound),
        frozenset(flow.deleted),
        frozenset(flow.certain & flow.bound),
    )


def walk_same_scope(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes below these that run in their own scope: bodies of functions, classes and lambdas left
    out."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            stack.extend(node.decorator_list)
            stack.extend(node.args.defaults)
            stack.extend(default for default in node.args.kw_defaults if default is not None)
        elif isinstance(node, ast.Lambda):
            stack.extend(node.args.defaults)
            stack.extend(default for default in node.args.kw_defaults if default is not None)
        else:
            stack.extend(ast.iter_child_nodes(node))


def imported_names(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """The names that an import statement binds."""
    if isinstance(statement, ast.Import):
        return [alias.asname or alias.name.split(".")[0] for alias in statement.names]
    return [alias.asname or alias.name for alias in statement.names]


def dotted(node: ast.AST) -> str | None:
    """A chain of names as text, `np.linalg.norm`; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return None if head is None else f"{head}.{node.attr}"
    return None


@dataclass
class _Flow:
    """Definite assignment over module-level statements, in the order in which they run."""

    read: set[str] = field(default_factory=set)
    bound: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    certain: set[str] = field(default_factory=set)  # bound on every path to this point
    waiting: dict[str, list[ast.AST]] = field(default_factory=dict)  # bodies of own functions not yet reached
    ended: bool = False  # no path reaches this point (raise, continue, break)

    # -- names -------------------------------------------------------------------------------------

    def load(self, name: str) -> None:
        if name not in self.certain:
            self.read.add(name)
        for body in self.waiting.pop(name, ()):
            self._called(body)

    def store(self, name: str) -> None:
        self.bound.add(name)
        self.certain.add(name)

    def delete(self, name: str) -> None:
        if name not in self.certain:
            self.read.add(name)
        self.deleted.add(name)
        self.certain.discard(name)

    def _called(self, body: ast.AST) -> None:
        """A function of the cell may run from here on: what its code takes from the notebook is read here."""
        for name in _free_names(body):
            self.load(name)
        for name in _names_declared_global(body):
            self.bound.add(name)

    # -- statements --------------------------------------------------------------------------------

    def block(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def branches(self, *parts: Sequence[ast.stmt]) -> None:
        """Run each alternative from here; afterwards only what all of them that go on have bound is
        certain."""
        start, ends = set(self.certain), []
        for part in parts:
            self.certain, self.ended = set(start), False
            self.block(part)
            if not self.ended:
                ends.append(self.certain)
        self.ended = not ends
        self.certain = set.intersection(*ends) if ends else set(start)

    def statement(self, node: ast.stmt) -> None:
        method = getattr(self, f"_{type(node).__name__}", None)
        if method is not None:
            method(node)
        else:
            for child in ast.iter_child_nodes(node):
                self.expression(child)

    def _Assign(self, node: ast.Assign) -> None:
        self.expression(node.value)
        for target in node.targets:
            self.target(target)

    def _AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.expression(node.value)
        self.expression(node.annotation)
        if node.value is not None:
            self.target(node.target)
        elif not isinstance(node.target, ast.Name):
            self.expression(node.target)

    def _AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.load(node.target.id)
        self.expression(node.value)
        self.target(node.target)

    def _Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._delete_target(target)

    def _delete_target(self, target: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.delete(target.id)
        elif isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self._delete_target(part)
        else:
            self.expression(target)

    def _FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in [*node.decorator_list, *evaluated_at_definition(node)]:
            self.expression(part)
        self.store(node.name)
        self.waiting[node.name] = [node]
        if node.decorator_list:
            self.load(node.name)

    _AsyncFunctionDef = _FunctionDef

    def _ClassDef(self, node: ast.ClassDef) -> None:
        for part in [*node.decorator_list, *node.bases, *[word.value for word in node.keywords]]:
            self.expression(part)
        for name in _class_body_reads(node):
            self.load(name)
        self.store(node.name)
        self.waiting[node.name] = _methods_of(node)
        if node.decorator_list or node.bases or node.keywords:
            self.load(node.name)  # a decorator, metaclass or __init_subclass__ may call its methods

    def _Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for name in imported_names(node):
            if name != "*":
                self.store(name)

    _ImportFrom = _Import

    def _If(self, node: ast.If) -> None:
        self.expression(node.test)
        self.branches(node.body, node.orelse)

    def _For(self, node: ast.For | ast.AsyncFor) -> None:
        self.expression(node.iter)
        start = set(self.certain)
        self.target(node.target)
        self.block(node.body)
        self.certain, self.ended = start, False
        # `else` runs after the last iteration, unless a `break` skipped it
        if node.orelse:
            self.block(node.orelse)
            if any(isinstance(inner, ast.Break) for inner in walk_same_scope(node.body)):
                self.certain = start
            self.ended = False

    _AsyncFor = _For

    def _While(self, node: ast.While) -> None:
        self.expression(node.test)
        start = set(self.certain)
        self.block(node.body)
        forever = isinstance(node.test, ast.Constant) and bool(node.test.value)
        if not forever:
            self.certain = start
        self.certain &= start
        self.ended = False
        if node.orelse:
            self.branches(node.orelse, [])

    def _With(self, node: ast.With | ast.AsyncWith) -> None:
        start = set(self.certain)
        for item in node.items:
            self.expression(item.context_expr)
            if item.optional_vars is not None:
                self.target(item.optional_vars)
        after_enter = set(self.certain)
        self.block(node.body)
        if not all(_is_transparent(item.context_expr) for item in node.items):
            self.certain = after_enter if len(node.items) == 1 else start
            self.ended = False

    _AsyncWith = _With

    def _Try(self, node: ast.Try) -> None:
        start = set(self.certain)
        self.block(node.body)
        self.block(node.orelse)
        ends = [] if self.ended else [set(self.certain)]
        for handler in node.handlers:
            self.certain, self.ended = set(start), False
            if handler.type is not None:
                self.expression(handler.type)
            if handler.name:
                self.store(handler.name)
            self.block(handler.body)
            if handler.name:
                self.deleted.add(handler.name)
                self.certain.discard(handler.name)
            if not self.ended:
                ends.append(set(self.certain))
        stops = not ends
        after = set.intersection(*ends) if ends else set(start)
        self.certain, self.ended = set(start), False
        self.block(node.finalbody)
        self.certain = after | (self.certain - start)
        self.ended = self.ended or stops

    _TryStar = _Try

    def _Match(self, node: ast.Match) -> None:
        self.expression(node.subject)
        start, ends, exhaustive = set(self.certain), [], False
        seen = set(start)
        for case in node.cases:
            self.certain, self.ended = set(seen), False
            for inner in ast.walk(case.pattern):
                if isinstance(inner, ast.MatchAs | ast.MatchStar) and inner.name:
                    self.store(inner.name)
                elif isinstance(inner, ast.MatchMapping) and inner.rest:
                    self.store(inner.rest)
                elif isinstance(inner, ast.MatchValue):
                    self.expression(inner.value)
                elif isinstance(inner, ast.MatchClass):
                    self.expression(inner.cls)
            if case.guard is not None:
                self.expression(case.guard)
            self.block(case.body)
            if not self.ended:
                ends.append(set(self.certain))
            wildcard = (
                isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None and case.guard is None
            )
            exhaustive = exhaustive or wildcard
        if not exhaustive:
            ends.append(start)
        self.ended = not ends
        self.certain = set.intersection(*ends) if ends else set(start)

    def _Raise(self, node: ast.Raise) -> None:
        for child in ast.iter_child_nodes(node):
            self.expression(child)
        self.ended = True

    def _Break(self, node: ast.Break) -> None:
        self.ended = True

    def _Continue(self, node: ast.Continue) -> None:
        self.ended = True

    def _Global(self, node: ast.Global) -> None:
        """At module level `global` changes nothing."""

    # -- expressions and targets -------------------------------------------------------------------

    def expression(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                self.load(node.id)
            else:
                self.target(node)
        elif isinstance(node, ast.NamedExpr):
            self.expression(node.value)
            self.store(node.target.id)
        elif isinstance(node, ast.Lambda):
            for part in evaluated_at_definition(node):
                self.expression(part)
            self._called(node)
        elif isinstance(node, COMPREHENSIONS):
            self.comprehension(node)
        elif isinstance(node, ast.BoolOp):
            self.expression(node.values[0])
            certain = set(self.certain)
            for value in node.values[1:]:
                self.expression(value)
            self.certain = certain
        elif isinstance(node, ast.IfExp):
            self.expression(node.test)
            certain = set(self.certain)
            self.expression(node.body)
            self.certain = set(certain)
            self.expression(node.orelse)
            self.certain = certain
        else:
            for child in ast.iter_child_nodes(node):
                self.expression(child)

    def comprehension(self, node: Comprehension) -> None:
        certain = set(self.certain)
        local: set[str] = set()
        for generator in node.generators:
            local |= {
                inner.id
                for inner in ast.walk(generator.target)
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
            }
        self.expression(node.generators[0].iter)
        hidden = local - self.certain
        self.certain |= hidden  # the comprehension's own variables
        for position, generator in enumerate(node.generators):
            for inner in ast.walk(generator.target):
                if isinstance(inner, ast.Attribute | ast.Subscript):
                    self.expression(inner)
            if position:
                self.expression(generator.iter)
            for condition in generator.ifs:
                self.expression(condition)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        for part in parts:
            self.expression(part)
        # a walrus inside binds here, if any round ran
        self.certain = certain

    def target(self, node: ast.expr) -> None:
        if isinstance(node, ast.Name):
            self.store(node.id)
        elif isinstance(node, ast.Tuple | ast.List):
            for part in node.elts:
                self.target(part)
        elif isinstance(node, ast.Starred):
            self.target(node.value)
        else:
            for child in ast.iter_child_nodes(node):
                self.expression(child)


def _is_transparent(manager: ast.expr) -> bool:
    called = manager.func if isinstance(manager, ast.Call) else manager
    name = dotted(called)
    return name is not None and name.split(".")[-1] in TRANSPARENT_MANAGERS


def evaluated_at_definition(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[ast.expr]:
    """Defaults and annotations: they run with the `def`, not with the call."""
    args = node.args
    parts = [*args.defaults, *[default for default in args.kw_defaults if default is not None]]
    everyone = [
        *args.posonlyargs,
        *args.args,
        *args.kwonlyargs,
        *[arg for arg in (args.vararg, args.kwarg) if arg],
    ]
    parts += [arg.annotation for arg in everyone if arg.annotation is not None]
    if not isinstance(node, ast.Lambda) and node.returns is not None:
        parts.append(node.returns)
    return parts


def _methods_of(node: ast.ClassDef) -> list[ast.AST]:
    found: list[ast.AST] = []
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found.append(inner)
    return found


def _class_body_reads(node: ast.ClassDef) -> list[str]:
    """Names that the class body takes from around it while it runs, not counting what it bound itself."""
    inner = _Flow()
    inner.block(node.body)
    return sorted(inner.read)


def _local_names(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> set[str]:
    args = function.args
    names = {arg.arg for arg in [*args.posonlyargs, *args.args, *args.kwonlyargs]}
    names |= {arg.arg for arg in (args.vararg, args.kwarg) if arg is not None}
    if isinstance(function, ast.Lambda):
        # a walrus inside a lambda binds in the lambda
        names |= {inner.target.id for inner in ast.walk(function.body) if isinstance(inner, ast.NamedExpr)}
        return names
    outer: set[str] = set()
    for inner in walk_same_scope(function.body):
        if isinstance(inner, ast.Global | ast.Nonlocal):
            outer |= set(inner.names)
        names |= set(_stored_names(inner))
    return names - outer


def _stored_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return [node.id]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return imported_names(node)
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
        return [node.name] if node.name else []
    if isinstance(node, ast.MatchMapping):
        return [node.rest] if node.rest else []
    return []


def _free_names(function: ast.AST) -> list[str]:
    """Names that a function's code, nested functions included, may take from the notebook when it runs."""
    found: set[str] = set()

    def visit(node: ast.AST, hidden: frozenset[str]) -> None:
        if isinstance(node, FUNCTIONS):
            for part in [*getattr(node, "decorator_list", []), *evaluated_at_definition(node)]:
                visit(part, hidden)
            inside = hidden | _local_names(node)
            inside -= _names_declared_global(node)
            for part in node.body if isinstance(node.body, list) else [node.body]:
                visit(part, inside)
        elif isinstance(node, COMPREHENSIONS):
            local = {
                inner.id
                for generator in node.generators
                for inner in ast.walk(generator.target)
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
            }
            visit(node.generators[0].iter, hidden)
            for child in ast.iter_child_nodes(node):
                visit(child, hidden | local)
        elif isinstance(node, ast.ClassDef):
            # a class body sees its own names, its methods do not
            for name in _class_body_reads(node):
                if name not in hidden:
                    found.add(name)
            for part in [*node.decorator_list, *node.bases, *[word.value for word in node.keywords]]:
                visit(part, hidden)
            for inner in node.body:
                for method in [n for n in ast.walk(inner) if isinstance(n, FUNCTIONS)]:
                    visit(method, hidden)
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load | ast.Del) and node.id not in hidden:
                found.add(node.id)
        else:
            for child in ast.iter_child_nodes(node):
                visit(child, hidden)

    visit(function, frozenset())
    return sorted(found)


def _names_declared_global(function: ast.AST) -> set[str]:
    return {name for node in ast.walk(function) if isinstance(node, ast.Global) for name in node.names}
