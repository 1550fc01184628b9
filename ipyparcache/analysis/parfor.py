"""A loop as tasks: what each variable of its body is, and the body that a worker runs.

The classes are those of a `parfor`: loop targets and temporaries are *private* to an iteration; what is only read is
*shared*; what is only written, by one of the recognised forms below, is *replayed*: the worker evaluates the operands
(the holes of a `Site`) and the kernel executes the statement with them, in iteration order. Anything that one
iteration reads and an earlier one wrote is *loop-carried* and refused.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ipyparcache.analysis import refusals
from ipyparcache.analysis.flow import Flow, Read, bound_names, free_names, parameters_of
from ipyparcache.analysis.refusals import Refusal

LOG = "__ipyparcache_log__"
KEY = "__ipyparcache_key__"
CONTENT = "__ipyparcache_content__"
HASHED = "__ipyparcache_hashed__"
UNBIND = "__ipyparcache_unbind__"
ITEM = "__ipyparcache_item__"
VALUE = "__ipyparcache_value__"
ITERABLE = "__ipyparcache_iterable__"
TRIAL = "__ipyparcache_trial__"
OURS = "__ipyparcache_"
TEMPORARY = "__ipyparcache_t%d__"
HOLE = "__ipyparcache_h%d__"

#: Methods that change their object and whose result says what was in it.
TAKING_METHODS = frozenset({"pop", "popitem", "popleft", "setdefault"})
#: Methods that change their object and whose call, as a statement of its own, can be replayed in iteration order.
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
#: Those that copy what they are given, so that a later change of the operand must not reach the target.
COPYING_METHODS = frozenset({"extend", "update", "extendleft", "subtract", "writelines", "writerows"})
#: Functions that change their first argument, for statements of their own.
REPLAYED_FUNCTIONS = frozenset(
    {"heapq.heappush", "heappush", "bisect.insort", "insort", "bisect.insort_right", "bisect.insort_left"}
    | {"np.add.at", "numpy.add.at", "np.subtract.at", "np.maximum.at", "np.minimum.at", "np.put", "np.copyto"}
)
#: `x = F(x, e)` with one of these is a reduction; a list or tuple around `x` counts.
FOLDING_FUNCTIONS = frozenset(
    {"max", "min", "math.gcd", "gcd", "math.lcm"}
    | {
        f"{np}.{f}"
        for np in ("np", "numpy")
        for f in ("maximum", "minimum", "fmax", "fmin", "append", "concatenate")
    }
    | {
        f"{np}.{f}"
        for np in ("np", "numpy")
        for f in ("vstack", "hstack", "dstack", "add", "logical_or", "union1d")
    }
    | {f"{np}.{f}" for np in ("np", "numpy") for f in ("logical_and", "multiply", "column_stack")}
    | {"pd.concat", "pandas.concat", "operator.add", "operator.or_", "operator.mul"}
)
#: Methods by which `x = x.m(e)` is a reduction.
FOLDING_METHODS = frozenset({"union", "intersection", "add", "combine_first", "concat", "vstack"})
#: Classes of operators that may stand together in `x = x + a - b`.
CHAINS: tuple[tuple[type[ast.operator], ...], ...] = (
    (ast.Add, ast.Sub),
    (ast.Mult, ast.Div),
    (ast.BitOr,),
    (ast.BitAnd,),
    (ast.BitXor,),
    (ast.MatMult,),
)
#: Calls that may read or write any name.
DYNAMIC = frozenset({"exec", "eval", "globals", "locals", "vars", "dir"})
DYNAMIC_WITHOUT_ARGUMENT = frozenset({"vars", "dir"})
#: Objects of modules that belong to the process.
PROCESS_OBJECTS = frozenset(
    {"environ", "path", "modules", "argv", "rcParams", "meta_path", "filters", "handlers"}
)
#: Calls that need the kernel's own process.
KERNEL_ONLY = frozenset({"input", "breakpoint"})
#: Functions that read a generator to its end, or stop early only as `any` and `all` do.
CONSUMERS = frozenset(
    [
        "sum",
        "max",
        "min",
        "any",
        "all",
        "list",
        "dict",
        "set",
        "sorted",
        "tuple",
        "frozenset",
        "str.join",
        "np.fromiter",
        "numpy.fromiter",
        "Counter",
        "collections.Counter",
        "math.fsum",
        "fsum",
        "math.prod",
        "prod",
        "pd.concat",
        "pandas.concat",
        "np.array",
        "bytes",
        "bytearray",
        "deque",
        "collections.deque",
        "OrderedDict",
        "statistics.mean",
        "mean",
        "statistics.median",
        "np.sum",
        "len",
    ]
)


@dataclass(frozen=True)
class Helper:
    """What a call of a notebook function may do to the notebook's names.

    Attributes
    ----------
    reads
        Names that it, or a notebook function it calls, may read.
    writes
        Names that it, or a notebook function it calls, may assign by `global`.
    changes
        Positions of parameters that it changes in place.
    mutates
        Names whose objects it, or a notebook function it calls, visibly changes in place.
    dynamic
        The call by which it may read or write any name, else None.
    """

    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    changes: frozenset[int] = frozenset()
    mutates: frozenset[str] = frozenset()
    dynamic: str | None = None


@dataclass(frozen=True)
class Facts:
    """What is known of the names that a cell reads, beside its text."""

    helpers: Mapping[str, Helper] = field(default_factory=dict)
    modules: frozenset[str] = frozenset()


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
        For a statement that every iteration reaches and that gives each one place in its root: for every hole the
        target whose value it is, None for the value itself. A failed iteration's place can then be filled.
    """

    statement: ast.stmt
    holes: int
    roots: tuple[str, ...]
    assigns: frozenset[str]
    method: str
    guarded: bool
    line: int
    slot: tuple[str | None, ...] | None = None


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


@dataclass(frozen=True)
class Parfor:
    """A loop that can be run in tasks.

    Attributes
    ----------
    line
        Its line in the cell.
    iterable
        The expression it iterates over, evaluated in the kernel.
    body
        What a worker executes for each element: it finds the element under `ITEM`, appends to the log by calling
        `LOG`, and leaves the elements of a comprehension under `VALUE`.
    reads
        Names that the body, or a helper it calls, may read and has not assigned: sent to the workers.
    names_in_strings
        Identifiers in string arguments of calls that look names up (`df.query`), for those that are bound.
    temporaries
        Names that keep the value of the last iteration that assigned them.
    targets
        The loop's own targets (a subset of `temporaries`).
    sites
        The statements replayed in the kernel.
    changed
        For every name that `sites` change: the line that does, and the attribute below which it stays (or None).
    orelse
        Statements of the `else` branch, executed in the kernel.
    assigned_at
        For every temporary that is no target: the line that assigns it first.
    own_rows
        Containers of which each iteration has its own item.
    yields
        Whether an iteration leaves a list of elements under `VALUE` (comprehensions do).
    """

    line: int
    iterable: ast.expr
    body: ast.Module
    reads: frozenset[str]
    attributes: frozenset[tuple[str, str]]
    names_in_strings: frozenset[str]
    temporaries: tuple[str, ...]
    targets: tuple[str, ...]
    sites: tuple[Site, ...]
    changed: Mapping[str, tuple[int, str | None]]
    orelse: tuple[ast.stmt, ...]
    assigned_at: Mapping[str, int]
    yields: bool
    own_rows: tuple[OwnRows, ...] = ()


@dataclass(frozen=True)
class Serial:
    """A statement that the kernel executes itself."""

    statement: ast.stmt


@dataclass(frozen=True)
class Loop:
    """A `for` statement run in tasks."""

    statement: ast.For
    parfor: Parfor


@dataclass(frozen=True)
class Comprehension:
    """A statement whose comprehension or generator is run in tasks.

    Attributes
    ----------
    statement
        The statement with the comprehension replaced by the name `VALUE`.
    original
        The statement as it was.
    kind
        `list`, `set`, `dict` or `generator` (the place then takes an iterator).
    """

    statement: ast.stmt
    original: ast.stmt
    parfor: Parfor
    kind: str


Step = Serial | Loop | Comprehension


def steps_of(tree: ast.Module, facts: Facts) -> list[Step] | Refusal:
    """The statements of a cell in order, each loop as tasks; or why that cannot be.

    Notes
    -----
    `facts` are those of the namespace before the cell; functions and modules that the cell itself defines are added
    here as its statements are passed.
    """
    steps: list[Step] = []
    known = facts
    for statement in tree.body:
        step = _step(statement, known, last=statement is tree.body[-1])
        if isinstance(step, Refusal):
            return step
        steps.append(step)
        known = _after(statement, known)
    if all(isinstance(step, Serial) for step in steps):
        return _nothing_parallel(tree)
    return steps


def _nothing_parallel(tree: ast.Module) -> Refusal:
    for statement in tree.body:
        match statement:
            case ast.Assign(value=ast.Call(func=func, args=[ast.GeneratorExp(), *_])):
                return refusals.ConsumerUnknown(statement.lineno, ast.unparse(func))
            case ast.Expr(value=ast.Call(func=func, args=[ast.GeneratorExp(), *_])):
                return refusals.ConsumerUnknown(statement.lineno, ast.unparse(func))
    return refusals.NothingParallel(tree.body[0].lineno if tree.body else 1)


def _step(statement: ast.stmt, facts: Facts, *, last: bool) -> Step | Refusal:
    if isinstance(statement, ast.AsyncFor):
        return refusals.StatementInLoop(statement.lineno, None, "async for")
    if isinstance(statement, ast.For):
        parfor = classify_loop(statement, facts)
        return parfor if isinstance(parfor, Refusal) else Loop(statement, parfor)
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign) or (
        last and isinstance(statement, ast.Expr)
    ):
        return _comprehension_step(statement, facts)
    return Serial(statement)


def _after(statement: ast.stmt, facts: Facts) -> Facts:
    """Facts when `statement` has run: what it binds is no longer what it was; its definitions are known."""
    names = bound_names(statement)
    helpers = {name: helper for name, helper in facts.helpers.items() if name not in names}
    modules = facts.modules - names
    if isinstance(statement, ast.FunctionDef):
        helpers[statement.name] = helper_of(statement, facts)
    elif isinstance(statement, ast.Import):
        modules = modules | names
    return Facts(helpers, modules)


# What a function does


def helper_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, facts: Facts) -> Helper:
    """What a call of the function defined by `node` may do, following the notebook functions it names."""
    reads = set(free_names(node))
    mutates = changed_globals(node) - facts.modules
    writes = {name for part in ast.walk(node) if isinstance(part, ast.Global) for name in part.names}
    dynamic = next(
        (
            n.func.id
            for n in ast.walk(node)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and _is_dynamic(n.func.id, n)
        ),
        None,
    )
    for name in list(reads):
        other = facts.helpers.get(name)
        if other is not None:
            reads |= other.reads
            writes |= other.writes
            mutates |= other.mutates
            dynamic = dynamic or other.dynamic
    return Helper(
        frozenset(reads), frozenset(writes), frozenset(changed_parameters(node)), frozenset(mutates), dynamic
    )


def changed_globals(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> set[str]:
    """Free names of a function whose objects it visibly changes in place."""
    free = set(free_names(node))
    return {root for part in ast.walk(node) for root, _ in changed_roots(part) if root in free}


def changed_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Iterator[int]:
    """Positions of the parameters that a function visibly changes in place and does not rebind before."""
    if isinstance(node, ast.Lambda):
        return
    rebound = {n for part in node.body for n in bound_names(part)}
    for position, name in enumerate(parameters_of(node.args)):
        if name in rebound:
            continue
        for part in ast.walk(node):
            if any(root == name for root, _ in changed_roots(part)):
                yield position
                break


def changed_roots(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Names whose objects this node itself (not its children) visibly changes in place."""
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=method)) as call) if method in REPLAYED_METHODS:
            yield from _owner_of(call)
        case ast.Call(func=ast.Attribute(attr=method)) if method in TAKING_METHODS:
            yield from _owner_of(node)
        case ast.Subscript() | ast.Attribute() if not isinstance(node.ctx, ast.Load):
            path = path_of(node)
            if path is not None:
                yield path.root, node
        case ast.keyword(arg="out", value=value):
            path = path_of(value)
            if path is not None:
                yield path.root, value


def _owner_of(call: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    assert isinstance(call.func, ast.Attribute)
    path = path_of(call.func.value)
    if path is not None:
        yield path.root, call


# Paths: name.attribute[key].attribute …


@dataclass(frozen=True)
class Path:
    """A name followed by attributes, items and `setdefault` calls.

    Attributes
    ----------
    attribute
        The first attribute after the name, where that comes first: what else is read of the name may then be apart.
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


# The classification


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


@dataclass
class _Found:
    """A statement recognised as one to replay, before its holes are cut out."""

    statement: ast.stmt
    holes: list[ast.expr]
    roots: dict[str, str | None]
    assigns: set[str]
    method: str
    by_content: frozenset[int] = frozenset()
    keys: frozenset[int] = frozenset()


def classify_loop(loop: ast.For, facts: Facts) -> Parfor | Refusal:
    """A `for` statement as tasks, or why it cannot be."""
    bad = next((t for t in _leaves(loop.target) if not isinstance(t, ast.Name)), None)
    if bad is not None:
        path = path_of(bad)
        return refusals.TargetNotAName(loop.lineno, path.root if path else ast.unparse(bad))
    try:
        return _Classifier(loop.lineno, loop.target, loop.iter, loop.body, loop.orelse, facts).parfor()
    except _Refused as found:
        return found.refusal


def classify_comprehension(
    node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp, facts: Facts
) -> Parfor | Refusal:
    """A comprehension or generator as tasks over its outermost `for`, or why it cannot be."""
    first = node.generators[0]
    if any(g.is_async for g in node.generators):
        return refusals.StatementInLoop(node.lineno, None, "async for")
    element: ast.expr = (
        node.elt if not isinstance(node, ast.DictComp) else ast.Tuple([node.key, node.value], ast.Load())
    )
    here = ast.copy_location(ast.Name(ITEM, ast.Load()), first.iter)
    one = ast.Tuple([here], ast.Load())
    inner = ast.ListComp(element, [ast.comprehension(first.target, one, first.ifs, 0), *node.generators[1:]])
    body = ast.Assign([ast.Name(VALUE, ast.Store())], inner)
    ast.copy_location(body, node)
    ast.fix_missing_locations(body)
    try:
        return _Classifier(node.lineno, None, first.iter, [body], [], facts).parfor()
    except _Refused as found:
        return found.refusal


def _comprehension_step(statement: ast.stmt, facts: Facts) -> Step | Refusal:
    assert isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr)
    value = statement.value
    found: ast.expr | None = None
    streamed = False
    if isinstance(value, ast.ListComp | ast.SetComp | ast.DictComp):
        found = value
    elif isinstance(value, ast.Call) and value.args:
        inner = value.args[0]
        plain = path_of(value.func) is not None and not path_of(value.func).holes  # type: ignore[union-attr]
        joins = (
            isinstance(value.func, ast.Attribute)
            and value.func.attr == "join"
            and isinstance(value.func.value, ast.Constant | ast.Name)
        )
        if isinstance(inner, ast.ListComp | ast.SetComp | ast.DictComp) and (plain or joins):
            found = inner
        elif isinstance(inner, ast.GeneratorExp):
            name = ast.unparse(value.func)
            if (joins or name in CONSUMERS) and name not in facts.helpers:
                found, streamed = inner, True
        elif (
            plain
            and isinstance(inner, ast.Call)
            and len(inner.args) == 1
            and isinstance(inner.func, ast.Name)
        ):
            # One call inside of another: np.mean(list(f(x) for x in xs)), dict(sorted(...)).
            deeper = inner.args[0]
            if isinstance(deeper, ast.ListComp | ast.GeneratorExp) and inner.func.id in CONSUMERS:
                found, streamed = deeper, isinstance(deeper, ast.GeneratorExp)
    if found is None:
        return Serial(statement)
    assert isinstance(found, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp)
    parfor = classify_comprehension(found, facts)
    if isinstance(parfor, Refusal):
        return parfor
    place = ast.copy_location(ast.Name(VALUE, ast.Load()), found)
    with_name = replaced(statement, {id(found): place})
    assert isinstance(with_name, ast.stmt)
    kind = {ast.ListComp: "list", ast.SetComp: "set", ast.DictComp: "dict"}.get(type(found), "generator")
    assert streamed == (kind == "generator")
    return Comprehension(ast.fix_missing_locations(with_name), statement, parfor, kind)


@dataclass
class _Classifier:
    line: int
    target: ast.expr | None
    iterable: ast.expr
    body: list[ast.stmt]
    orelse: list[ast.stmt]
    facts: Facts
    targets: tuple[str, ...] = ()
    found: dict[int, _Found] = field(default_factory=dict)
    own_rows: dict[str, OwnRows] = field(default_factory=dict)

    def parfor(self) -> Parfor:
        self.body = _plainer(self.body, iter(range(10**6)))
        self.targets = (
            tuple(t.id for t in _leaves(self.target) if isinstance(t, ast.Name)) if self.target else ()
        )
        self._forbid()
        plain = Flow(self._helper_reads)
        plain.run(self.body, (*self.targets, ITEM))
        bound = set(plain.bound) | set(self.targets)
        carried = {name for name in bound if plain.early(name) is not None}
        self._recognise(self.body, bound, carried)
        self._demote(bound, carried)
        self._take_own_rows(bound)
        flow = Flow(self._helper_reads, self._holes_of)
        flow.run(self.body, (*self.targets, ITEM))
        self._check(flow, bound)
        return self._build(flow)

    # what cannot run on a worker at all

    def _forbid(self) -> None:
        for node in _own_nodes(self.body):
            match node:
                case ast.Yield() | ast.YieldFrom() | ast.Return():
                    raise _Refused(refusals.StatementInLoop(node.lineno, None, _word(node)))
                case ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                    raise _Refused(refusals.StatementInLoop(node.lineno, None, _word(node)))
                case ast.ImportFrom(names=[ast.alias(name="*")]):
                    raise _Refused(refusals.DynamicNames(node.lineno, None, "from … import *"))
                case ast.Call(func=ast.Name(id="get_ipython")):
                    raise _Refused(refusals.ShellInLoop(node.lineno))
                case ast.Call(func=ast.Name(id=name)) if (
                    _is_dynamic(name, node) and name not in self.facts.helpers
                ):
                    raise _Refused(refusals.DynamicNames(node.lineno, None, f"{name}()"))
                case ast.Call(func=ast.Name(id=name)) if name in self.facts.helpers:
                    self._forbid_helper(name, node)
                case ast.Call(func=ast.Name(id=name)) if name in KERNEL_ONLY:
                    raise _Refused(refusals.StatementInLoop(node.lineno, None, f"{name}()"))
        for node in _own_break(self.body):
            raise _Refused(refusals.BreakInLoop(node.lineno))

    def _forbid_helper(self, name: str, call: ast.Call) -> None:
        helper = self.facts.helpers[name]
        if helper.dynamic is not None:
            raise _Refused(refusals.DynamicNames(call.lineno, None, f"{helper.dynamic}() in `{name}`"))
        if helper.writes:
            raise _Refused(refusals.GlobalWrite(call.lineno, min(helper.writes), name))
        if helper.mutates:
            raise _Refused(refusals.GlobalChange(call.lineno, min(helper.mutates), name))

    def _helper_reads(self, name: str) -> Iterable[str]:
        helper = self.facts.helpers.get(name)
        return helper.reads if helper is not None else ()

    # what is replayed

    def _holes_of(self, statement: ast.stmt) -> Sequence[ast.expr] | None:
        found = self.found.get(id(statement))
        return None if found is None else found.holes

    def _recognise(self, statements: Sequence[ast.stmt], bound: set[str], carried: set[str]) -> None:
        for statement in statements:
            for recognise in RECOGNISED:
                found = recognise(statement, bound, carried)
                if found is not None and not (found.roots.keys() & self.facts.modules):
                    self.found[id(statement)] = found
                    break
            else:
                for block in _blocks(statement):
                    self._recognise(block, bound, carried)

    def _demote(self, bound: set[str], carried: set[str]) -> None:
        """A name that is rebound by a replayed statement must be bound nowhere else: plain values are replayed too."""
        replayed = {name for found in self.found.values() for name in found.assigns}
        if not replayed:
            return
        for statement in _statements(self.body):
            if id(statement) in self.found or not isinstance(statement, ast.Assign):
                continue
            names = [t.id for t in statement.targets if isinstance(t, ast.Name)]
            if len(names) == len(statement.targets) == 1 and names[0] in replayed:
                self.found[id(statement)] = _Found(
                    statement, [statement.value], {names[0]: None}, {names[0]}, "assign"
                )

    def _take_own_rows(self, bound: set[str]) -> None:
        """Find containers that are read and written, but each iteration only at its own key."""
        written = {
            path.root
            for node in _own_nodes(self.body)
            if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load)
            if (path := path_of(node)) is not None and path.root not in bound
        }
        for root in sorted(written - self.facts.modules):
            rows = self._own_rows_of(root)
            if rows is not None:
                self.own_rows[root] = rows
                self.found = {i: f for i, f in self.found.items() if root not in f.roots}

    def _own_rows_of(self, root: str) -> OwnRows | None:
        key = self._own_key()
        if key is None or any(key.id in bound_names(s) for s in self.body):
            return None
        covered: dict[int, ast.Subscript] = {}
        for node in _own_nodes(self.body):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == root:
                at = (
                    node.slice.elts[0]
                    if isinstance(node.slice, ast.Tuple) and node.slice.elts
                    else node.slice
                )
                if isinstance(at, ast.Name) and at.id == key.id:
                    covered[id(node.value)] = node
        everywhere = [n for s in self.body for n in ast.walk(s) if isinstance(n, ast.Name) and n.id == root]
        if any(id(n) not in covered for n in everywhere):
            return None
        if not any(isinstance(node.ctx, ast.Load) for node in covered.values()):
            return None
        stores = [node for node in covered.values() if not isinstance(node.ctx, ast.Load)]
        changes = [
            place
            for node in _own_nodes(self.body)
            for name, place in changed_roots(node)
            if name == root and place not in stores
        ]
        deep = bool(changes) or any(isinstance(node.slice, ast.Tuple) for node in stores)
        lines = [node.lineno for node in stores] or [self.line]
        return OwnRows(root, -1, isinstance(self.target, ast.Tuple), deep, min(lines))

    def _own_key(self) -> ast.Name | None:
        """The target that has another value in every iteration, by the form of the iterable."""
        match self.target, self.iterable:
            case ast.Name() as name, ast.Call(func=ast.Name(id="range")) | ast.Name():
                return name
            case ast.Name() as name, ast.Call(func=ast.Attribute(attr="keys"), args=[]):
                return name
            case ast.Tuple(elts=[ast.Name() as first, *_]), ast.Call(func=ast.Name(id="enumerate"), args=[_]):
                return first
            case ast.Tuple(elts=[ast.Name() as first, _]), ast.Call(
                func=ast.Attribute(attr="items"), args=[]
            ):
                return first
        return None

    # what is loop-carried

    def _check(self, flow: Flow, bound: set[str]) -> None:
        changed: dict[str, tuple[int, str | None]] = {}
        assigned: dict[str, int] = {}
        for found in self.found.values():
            for root, attribute in found.roots.items():
                line, known = changed.get(root, (found.statement.lineno, attribute))
                changed[root] = (line, known if known == attribute else None)
            for name in found.assigns:
                assigned.setdefault(name, found.statement.lineno)
        for name, (line, attribute) in changed.items():
            conflict = next(
                (
                    r
                    for r in flow.reads.get(name, ())
                    if attribute is None or r.attribute is None or r.attribute == attribute
                ),
                None,
            )
            if conflict is not None:
                raise _Refused(self._carried(name, conflict, line, name in assigned))
            if name in assigned and name in flow.bound:
                raise _Refused(
                    refusals.CarriedVariable(line, name, flow.bound[name].lineno)  # type: ignore[attr-defined]
                )
        for name in flow.bound:
            early = flow.early(name)
            if early is not None and name not in assigned:
                where = flow.bound[name].lineno  # type: ignore[attr-defined]
                if early.by is not None:
                    raise _Refused(refusals.ReadByHelper(_line(early.node, self.line), name, early.by, where))
                raise _Refused(refusals.CarriedVariable(_line(early.node, self.line), name, where))
        for name, node in flow.deleted_early.items():
            raise _Refused(refusals.DeletesOuter(_line(node, self.line), name))
        for name, node in flow.inner_globals.items():
            raise _Refused(refusals.GlobalWrite(_line(node, self.line), name, "a function of the body"))
        self._check_rest(flow, changed)
        self._check_iterable(changed, set(flow.bound))
        self.changed = changed

    def _carried(self, name: str, read: Read, line: int, reduction: bool) -> Refusal:
        at = _line(read.node, self.line)
        if read.by is not None:
            return refusals.ReadByHelper(at, name, read.by, line)
        if reduction:
            return refusals.CarriedReduction(at, name, line)
        return refusals.CarriedContainer(at, name, line)

    def _check_rest(self, flow: Flow, changed: Mapping[str, tuple[int, str | None]]) -> None:
        """Changes of outer objects by forms that are not replayed."""
        private = set(flow.bound) | set(self.targets) | _comprehension_names(self.body)
        aliases = self._aliases(private)
        cut = {id(n) for found in self.found.values() for n in _template_nodes(found)}
        for node in _own_nodes(self.body):
            if id(node) in cut:
                continue
            for root, place in changed_roots(node):
                line = _line(place, self.line)
                if root in aliases and aliases[root] is not None:
                    name, at = aliases[root]  # type: ignore[misc]
                    raise _Refused(refusals.ChangedThroughAlias(at, root, name, line))
                if root in private or root in self.own_rows:
                    continue
                if root in self.facts.modules:
                    if isinstance(place, ast.Call) and (_is_stream(place) or _is_function_of(place)):
                        continue
                    raise _Refused(refusals.ModuleChanged(line, root))
                if isinstance(place, ast.Call) and isinstance(place.func, ast.Attribute):
                    raise _Refused(refusals.MutatorResult(line, root, place.func.attr))
                read = next(
                    (r for r in flow.reads.get(root, ()) if r.node is not place and r.by is None), None
                )
                if read is not None:
                    raise _Refused(refusals.CarriedContainer(_line(read.node, self.line), root, line))
                raise _Refused(refusals.TargetNotAName(line, root))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                helper = self.facts.helpers.get(node.func.id)
                for position in helper.changes if helper is not None else ():
                    argument = node.args[position] if position < len(node.args) else None
                    path = path_of(argument) if argument is not None else None
                    if path is not None and path.root not in private:
                        raise _Refused(
                            refusals.ChangedByCall(_line(node, self.line), path.root, node.func.id)
                        )

    def _aliases(self, private: set[str]) -> dict[str, tuple[str, int] | None]:
        """Body names that only ever stand for (a part of) one outer object, with its name and the line."""
        found: dict[str, tuple[str, int] | None] = {}
        for node in _own_nodes(self.body):
            match node:
                case ast.Assign(targets=targets, value=value):
                    path = path_of(value)
                    outer = (
                        path is not None and path.root not in private and path.root not in self.facts.modules
                    )
                    for target in targets:
                        for leaf in _leaves(target):
                            if isinstance(leaf, ast.Name):
                                alias = (path.root, node.lineno) if outer and path is not None else None
                                if isinstance(target, ast.Name):
                                    found[leaf.id] = alias if leaf.id not in found or found[leaf.id] else None
                                else:
                                    found[leaf.id] = None
                case ast.For(target=target):
                    for leaf in _leaves(target):
                        if isinstance(leaf, ast.Name):
                            found[leaf.id] = None
        return found

    def _check_iterable(self, changed: Mapping[str, tuple[int, str | None]], bound: set[str]) -> None:
        names = {n.id for n in ast.walk(self.iterable) if isinstance(n, ast.Name)}
        lazy: set[str] = set()
        for node in ast.walk(self.iterable):
            if isinstance(node, ast.GeneratorExp):
                lazy |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            elif isinstance(node, ast.Lambda):
                lazy |= set(free_names(node))
        for name in list(names):
            lazy |= set(self._helper_reads(name))
        for name in sorted(lazy & bound):
            raise _Refused(refusals.IterableChanged(self.line, name, self.line))
        for name in sorted((names | lazy) & changed.keys()):
            if not self._changes_own_element(name):
                raise _Refused(refusals.IterableChanged(self.line, name, changed[name][0]))

    def _changes_own_element(self, name: str) -> bool:
        """Whether every replayed write to the iterated object goes to the element just handed out, or its length only is asked."""
        whole = [
            n
            for n in ast.walk(self.iterable)
            if isinstance(n, ast.Call)
            and isinstance(n.func, ast.Name)
            and n.func.id in ("len", "list", "tuple", "sorted", "dict", "set")
            and any(isinstance(a, ast.Name) and a.id == name for a in n.args)
        ]
        copied = {id(a) for call in whole for a in call.args}
        uses = [n for n in ast.walk(self.iterable) if isinstance(n, ast.Name) and n.id == name]
        if all(id(n) in copied for n in uses) or ".shape" in ast.unparse(self.iterable):
            return True
        for found in self.found.values():
            if name not in found.roots:
                continue
            if found.method not in ("item", "augmented", "own"):
                return False
            first = found.holes[min(found.keys)] if found.keys else None
            if isinstance(first, ast.Tuple) and first.elts:
                first = first.elts[0]
            if not (isinstance(first, ast.Name) and first.id in self.targets):
                return False
        return True

    # the worker's body

    def _build(self, flow: Flow) -> Parfor:
        builder = _Builder(self.found, self.targets, frozenset(map(id, self.body)))
        statements = builder.block(self.body, guarded=False)
        own_rows = [replace(rows, site=builder.row(rows)) for rows in self.own_rows.values()]
        if self.target is not None:
            # A loop over the one element, so that `continue` means what it did.
            one = ast.copy_location(ast.Tuple([ast.Name(ITEM, ast.Load())], ast.Load()), self.target)
            statements = [ast.copy_location(ast.For(self.target, one, statements, []), self.target)]
        module = ast.fix_missing_locations(ast.Module(statements, []))
        replayed = {name for found in self.found.values() for name in found.assigns}
        hidden = {ITEM, VALUE}
        temporaries = [
            n
            for n in dict.fromkeys((*self.targets, *flow.bound))
            if n not in replayed and not n.startswith(OURS)
        ]
        reads = {
            name
            for name, places in flow.reads.items()
            if name not in hidden and (name not in flow.bound and name not in self.targets) and places
        }
        # An attribute of a changed root is read elsewhere: the root travels; a root that is only changed does not.
        reads = {name for name in reads if name not in self.changed or flow.reads.get(name)}
        attributes = frozenset(
            (name, read.attribute)
            for name in reads
            for read in flow.reads[name]
            if read.attribute is not None and read.by is None
        )
        early = {
            name: node.lineno if isinstance(node, ast.stmt | ast.expr) else self.line
            for name, node in flow.bound.items()
            if name not in self.targets and name not in hidden
        }
        return Parfor(
            line=self.line,
            iterable=self.iterable,
            body=module,
            reads=frozenset(reads),
            attributes=attributes,
            names_in_strings=frozenset(_names_in_strings(self.body)),
            temporaries=tuple(temporaries),
            targets=self.targets,
            sites=tuple(builder.sites),
            changed=dict(self.changed),
            orelse=tuple(self.orelse),
            assigned_at=early,
            yields=self.target is None,
            own_rows=tuple(own_rows),
        )

    changed: Mapping[str, tuple[int, str | None]] = field(default_factory=dict)


# The table of recognised forms: each row a function that recognises a statement, or hands back None


def _collected_call(statement: ast.stmt, bound: set[str], carried: set[str]) -> _Found | None:
    """`out.append(e)`, `d[k].add(e)`, `d.setdefault(k, []).append(e)`, `state.losses.extend(e)`."""
    match statement:
        case ast.Expr(
            value=ast.Call(func=ast.Attribute(value=owner, attr=method), args=args, keywords=keywords)
        ):
            path = path_of(owner)
            if path is None or path.root in bound or method not in REPLAYED_METHODS:
                return None
            if any(isinstance(a, ast.Starred) for a in args) or any(k.arg is None for k in keywords):
                return None
            holes = [*path.holes, *args, *(k.value for k in keywords)]
            content = (
                frozenset(range(len(path.holes), len(holes))) if method in COPYING_METHODS else frozenset()
            )
            keys = _key_positions(owner)
            if method == "add":
                keys = keys | {len(path.holes)}
            return _Found(statement, holes, {path.root: path.attribute}, set(), method, content, keys)
    return None


def _collected_function(statement: ast.stmt, bound: set[str], carried: set[str]) -> _Found | None:
    """`heapq.heappush(heap, e)`, `np.add.at(acc, i, e)`."""
    match statement:
        case ast.Expr(value=ast.Call(func=func, args=[first, *rest], keywords=[])):
            path = path_of(first)
            if path is None or path.root in bound or ast.unparse(func) not in REPLAYED_FUNCTIONS:
                return None
            if any(isinstance(a, ast.Starred) for a in rest):
                return None
            holes = [*path.holes, *rest]
            return _Found(
                statement, holes, {path.root: path.attribute}, set(), "call", frozenset(range(len(holes)))
            )
    return None


def _item_write(statement: ast.stmt, bound: set[str], carried: set[str]) -> _Found | None:
    """`out[k] = e`, `df.loc[i, 'c'] = e`, `state.best = e`, and the augmented forms."""
    match statement:
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute() as target], value=value):
            method = "item" if isinstance(target, ast.Subscript) else "attribute"
        case ast.AugAssign(target=ast.Subscript() | ast.Attribute() as target, value=value):
            method = "augmented"
        case ast.AnnAssign(target=ast.Subscript() as target, value=ast.expr() as value):
            method = "item"
        case _:
            return None
    path = path_of(target)
    if path is None or path.root in bound:
        return None
    if method == "item" and _reads_own_key(value, target, path.root):
        return _own_key(statement, target, value, path)
    # Python evaluates the value of a plain assignment before the target's keys, of an augmented one after them.
    ahead = [value, *path.holes] if method != "augmented" else [*path.holes, value]
    place = 0 if method != "augmented" else len(path.holes)
    keys = frozenset(range(len(ahead))) - {place}
    return _Found(statement, ahead, {path.root: path.attribute}, set(), method, frozenset({place}), keys)


def _several_targets(statement: ast.stmt, bound: set[str], carried: set[str]) -> _Found | None:
    """`a[i], b[i] = f(x)`: recognised where every target is an item of an outer object."""
    match statement:
        case ast.Assign(targets=[ast.Tuple(elts=elts)], value=value) if elts:
            paths = [path_of(e) if isinstance(e, ast.Subscript | ast.Attribute) else None for e in elts]
            if any(p is None or p.root in bound for p in paths):
                return None
            known = [p for p in paths if p is not None]
            holes = [value, *(h for p in known for h in p.holes)]
            roots: dict[str, str | None] = {}
            for path in known:
                roots[path.root] = path.attribute if path.root not in roots else None
            return _Found(
                statement, holes, roots, set(), "items", frozenset({0}), frozenset(range(1, len(holes)))
            )
    return None


def _item_delete(statement: ast.stmt, bound: set[str], carried: set[str]) -> _Found | None:
    """`del d[k]`."""
    match statement:
        case ast.Delete(targets=[ast.Subscript() as target]):
            path = path_of(target)
            if path is None or path.root in bound:
                return None
            holes = list(path.holes)
            return _Found(statement, holes, {path.root: path.attribute}, set(), "delete", frozenset())
    return None


def _reduction(statement: ast.stmt, bound: set[str], carried: set[str]) -> _Found | None:
    """`x += e`, `x = x + e`, `x = e + x`, `x = max(x, e)`, `df = pd.concat([df, e])`, `s = s.union(e)`."""
    match statement:
        case ast.AugAssign(target=ast.Name(id=name), value=value) if name in carried:
            return _Found(statement, [value], {name: None}, {name}, "reduce", frozenset({0}))
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in carried:
            holes = _fold_holes(value, name)
            if holes is not None:
                return _Found(statement, holes, {name: None}, {name}, "reduce", frozenset(range(len(holes))))
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(
            targets
        ) == len(values):
            names = [t.id for t in targets if isinstance(t, ast.Name)]
            if len(names) != len(targets) or len(set(names)) != len(names) or not set(names) <= carried:
                return None
            parts = [_fold_holes(value, name) for name, value in zip(names, values, strict=True)]
            if any(p is None for p in parts):
                return None
            holes = [h for p in parts if p is not None for h in p]
            every = frozenset(range(len(holes)))
            return _Found(statement, holes, dict.fromkeys(names), set(names), "reduce", every)
    return None


def _conditional(statement: ast.stmt, bound: set[str], carried: set[str]) -> _Found | None:
    """`if x > best: best, where = x, i`, and `if k not in d: d[k] = []`: tests of what is carried, with plain operands."""
    if not isinstance(statement, ast.If):
        return None
    outer: dict[str, str | None] = {}
    assigns: set[str] = set()
    for part in _statements([*statement.body, *statement.orelse]):
        if isinstance(part, ast.If | ast.Pass):
            continue
        if isinstance(part, ast.Assign) and len(part.targets) == 1:
            leaves = list(_leaves(part.targets[0]))
            if all(isinstance(t, ast.Name) for t in leaves):
                assigns |= {t.id for t in leaves if isinstance(t, ast.Name)}
                continue
        if isinstance(part, ast.AugAssign) and isinstance(part.target, ast.Name):
            assigns.add(part.target.id)
            continue
        found = _collected_call(part, bound, carried) or _item_write(part, bound, carried)
        if found is None:
            return None
        for root, attribute in found.roots.items():
            outer[root] = attribute if root not in outer else None
    tested = {
        n.id for n in ast.walk(statement.test) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }
    if not (tested & ((assigns & carried) | outer.keys())):
        return None
    ours = assigns | outer.keys()
    holes: list[ast.expr] = []
    if not _plain_operands(statement, ours, holes):
        return None
    return _Found(statement, holes, {**outer, **dict.fromkeys(assigns)}, assigns, "conditional")


#: What a statement may be to be replayed, in the order in which it is asked. A new form is a row here.
RECOGNISED: tuple[Callable[[ast.stmt, set[str], set[str]], _Found | None], ...] = (
    _conditional,
    _collected_call,
    _collected_function,
    _item_write,
    _several_targets,
    _item_delete,
    _reduction,
)


def _fold_holes(value: ast.expr, name: str) -> list[ast.expr] | None:
    """Operands beside `name` where `value` folds one more value into it, else None."""

    def mentions(node: ast.AST) -> bool:
        return any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node))

    def is_name(node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == name

    match value:
        case ast.BinOp(left=left, op=op, right=right):
            chain = next((c for c in CHAINS if isinstance(op, c)), None)
            if chain is None:
                return None
            if is_name(right) and not mentions(left):
                return [left]
            if mentions(right):
                return None
            if is_name(left):
                return [right]
            if isinstance(left, ast.BinOp) and isinstance(left.op, chain):
                inner = _fold_holes(left, name)
                return None if inner is None else [*inner, right]
            return None
        case ast.Call(func=func, args=args, keywords=keywords) if ast.unparse(func) in FOLDING_FUNCTIONS:
            flat = [e for a in args for e in (a.elts if isinstance(a, ast.List | ast.Tuple) else [a])]
            if sum(map(is_name, flat)) != 1 or any(k.arg is None for k in keywords):
                return None
            holes = [a for a in flat if not is_name(a)] + [k.value for k in keywords]
            if any(map(mentions, holes)) or any(isinstance(h, ast.Starred) for h in holes):
                return None
            return holes
        case ast.Call(func=ast.Attribute(value=owner, attr=method), args=args, keywords=[]) if is_name(owner):
            if method not in FOLDING_METHODS or any(map(mentions, args)):
                return None
            return list(args)
    return None


def _reads_own_key(value: ast.expr, target: ast.expr, root: str) -> bool:
    return isinstance(target, ast.Subscript) and any(
        isinstance(n, ast.Name) and n.id == root for n in ast.walk(value)
    )


def _own_key(
    statement: ast.stmt, target: ast.Subscript | ast.Attribute, value: ast.expr, path: Path
) -> _Found | None:
    """`n[w] = n.get(w, 0) + 1`, `n[w] = max(n[w], e)`: reads of the root only at the key that is written."""
    if (
        not isinstance(target, ast.Subscript)
        or not isinstance(target.value, ast.Name)
        or len(path.holes) != 1
    ):
        return None
    root, key = path.root, ast.dump(target.slice)
    if not _is_simple(target.slice):
        return None
    holes: list[ast.expr] = []

    def mentions(node: ast.AST) -> bool:
        return any(isinstance(n, ast.Name) and n.id == root for n in ast.walk(node))

    def visit(node: ast.expr) -> bool:
        if not mentions(node):
            holes.append(node)
            return True
        match node:
            case ast.Subscript(value=ast.Name(), slice=inner) if ast.dump(inner) == key:
                holes.append(inner)
                return True
            case ast.Call(
                func=ast.Attribute(value=ast.Name(), attr="get"), args=[first, *default], keywords=[]
            ):
                if ast.dump(first) != key or any(mentions(d) for d in default):
                    return False
                holes.extend([first, *default])
                return True
            case ast.BinOp(left=left, op=op, right=right) if any(isinstance(op, c) for c in CHAINS):
                return visit(left) and visit(right)
            case ast.Call(func=func, args=args, keywords=[]) if ast.unparse(func) in ("max", "min"):
                return all(visit(a) for a in args)
        return False

    if not visit(value):
        return None
    holes.append(target.slice)
    return _Found(statement, holes, {root: None}, set(), "own", frozenset(), frozenset({len(holes) - 1}))


def _plain_operands(statement: ast.If, ours: set[str], holes: list[ast.expr]) -> bool:
    """Cut the operands out of a conditional; False unless all of them can be evaluated whether or not it is taken."""

    def mentions(node: ast.AST) -> bool:
        return any(isinstance(n, ast.Name) and n.id in ours for n in ast.walk(node))

    def expr(node: ast.expr) -> bool:
        if isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id in ours):
            return True
        if (isinstance(node, ast.List | ast.Set) and not node.elts) or (
            isinstance(node, ast.Dict) and not node.keys
        ):
            return True
        if not mentions(node):
            if isinstance(node, ast.Call):
                return False
            if _is_simple(node):
                holes.append(node)
                return True
        match node:
            case ast.Compare(left=left, comparators=comparators):
                return expr(left) and all(map(expr, comparators))
            case ast.BoolOp(values=values):
                return all(map(expr, values))
            case ast.UnaryOp(operand=operand):
                return expr(operand)
            case ast.BinOp(left=left, right=right):
                return expr(left) and expr(right)
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                return all(map(expr, elts))
            case ast.Dict(keys=given, values=values):
                return all(key is not None and expr(key) for key in given) and all(map(expr, values))
            case ast.Subscript(value=value, slice=key):
                return expr(value) and expr(key)
        return False

    def stmt(node: ast.stmt) -> bool:
        match node:
            case ast.Pass():
                return True
            case ast.If(test=test, body=body, orelse=orelse):
                return expr(test) and all(map(stmt, body)) and all(map(stmt, orelse))
            case ast.Assign(targets=[target], value=value):
                if not expr(value):
                    return False
                leaves = list(_leaves(target))
                if all(isinstance(t, ast.Name) for t in leaves):
                    return True
                return isinstance(target, ast.Subscript | ast.Attribute) and keys(target)
            case ast.AugAssign(target=ast.Name(), value=value):
                return expr(value)
            case ast.AugAssign(target=ast.Subscript() | ast.Attribute() as target, value=value):
                return keys(target) and expr(value)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=owner), args=args, keywords=[])):
                return keys(owner) and all(map(expr, args))
        return False

    def keys(node: ast.expr) -> bool:
        path = path_of(node)
        if path is None:
            return False
        return all(map(expr, path.holes))

    return stmt(statement)


def _is_simple(node: ast.expr) -> bool:
    """Whether evaluating `node` once more, or needlessly, changes nothing: names, constants, attributes, items of them."""
    match node:
        case ast.Name() | ast.Constant():
            return True
        case ast.Attribute(value=value) | ast.UnaryOp(operand=value):
            return _is_simple(value)
        case ast.Subscript(value=value, slice=key):
            return _is_simple(value) and _is_simple(key)
        case ast.Tuple(elts=elts):
            return all(map(_is_simple, elts))
        case ast.BinOp(left=left, right=right):
            return _is_simple(left) and _is_simple(right)
    return False


def _key_positions(owner: ast.expr) -> frozenset[int]:
    path = path_of(owner)
    return frozenset(range(len(path.holes))) if path is not None else frozenset()


# Building the worker's body


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
class _Builder:
    """Rewrites a body so that replayed statements become entries of the log."""

    found: Mapping[int, _Found]
    targets: tuple[str, ...] = ()
    always: frozenset[int] = frozenset()
    sites: list[Site] = field(default_factory=list)

    def _slot_of(self, found: _Found) -> tuple[str | None, ...] | None:
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

    def _entry(self, found: _Found, *, guarded: bool) -> ast.stmt:
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
        root_lines = found.statement.lineno
        self.sites.append(
            Site(
                ast.fix_missing_locations(template),
                len(operands),
                tuple(found.roots),
                frozenset(found.assigns),
                found.method,
                guarded,
                root_lines,
                self._slot_of(found),
            )
        )
        return _call_statement(LOG, [ast.Tuple([number, *operands], ast.Load())], found.statement)


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


def _plainer(statements: Sequence[ast.stmt], numbers: Iterator[int]) -> list[ast.stmt]:
    """The same statements with every assignment to several places, some of them items, written one by one."""
    made: list[ast.stmt] = []
    for statement in statements:
        if isinstance(statement, ast.Assign):
            made.extend(_plainer_assign(statement, numbers))
            continue
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.append(statement)
            continue
        new = copy.copy(statement)
        for name in ("body", "orelse", "finalbody"):
            block = getattr(statement, name, None)
            if isinstance(block, list):
                setattr(new, name, _plainer(block, numbers))
        if isinstance(new, ast.Try | ast.TryStar):
            new.handlers = [_with_body(h, _plainer(h.body, numbers)) for h in new.handlers]
        elif isinstance(new, ast.Match):
            new.cases = [ast.match_case(c.pattern, c.guard, _plainer(c.body, numbers)) for c in new.cases]
        made.append(new)
    return made


def _with_body(handler: ast.ExceptHandler, body: list[ast.stmt]) -> ast.ExceptHandler:
    new = copy.copy(handler)
    new.body = body
    return new


def _plainer_assign(statement: ast.Assign, numbers: Iterator[int]) -> list[ast.stmt]:
    places = [leaf for target in statement.targets for leaf in _leaves(target)]
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


# Walking


def _leaves(target: ast.expr | None) -> Iterator[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from _leaves(part)
    elif isinstance(target, ast.Starred):
        yield from _leaves(target.value)
    elif target is not None:
        yield target


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """Statement lists directly inside of a statement of the same scope."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if isinstance(block, list):
            yield block
    for handler in getattr(statement, "handlers", ()):
        yield handler.body
    for case in getattr(statement, "cases", ()):
        yield case.body


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        for block in _blocks(statement):
            yield from _statements(block)


def _own_nodes(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes of the statements, without what lies inside of functions defined there."""
    for node in body:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield from _own_nodes(ast.iter_child_nodes(node))


def _comprehension_names(body: Iterable[ast.AST]) -> set[str]:
    return {
        t.id
        for node in _own_nodes(body)
        if isinstance(node, ast.comprehension)
        for t in ast.walk(node.target)
        if isinstance(t, ast.Name)
    }


def _own_break(body: Iterable[ast.stmt]) -> Iterator[ast.Break]:
    for statement in body:
        if isinstance(statement, ast.Break):
            yield statement
        elif isinstance(statement, ast.For | ast.While | ast.AsyncFor):
            yield from _own_break(statement.orelse)
        else:
            for block in _blocks(statement):
                yield from _own_break(block)


def _template_nodes(found: _Found) -> Iterator[ast.AST]:
    """Nodes of a replayed statement that run in the kernel, not those of its holes."""
    holes = {id(h) for h in found.holes}

    def visit(node: ast.AST) -> Iterator[ast.AST]:
        if id(node) in holes:
            return
        yield node
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(found.statement)


def _names_in_strings(body: Iterable[ast.AST]) -> Iterator[str]:
    """Identifiers in string arguments of calls that look names up in the caller's frame."""
    for node in _own_nodes(body):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr not in ("query", "eval", "sql", "execute", "from_formula", "ols", "glm", "logit"):
            continue
        for argument in [*node.args, *(k.value for k in node.keywords)]:
            for part in ast.walk(argument):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield from _identifiers(part.value)


def _identifiers(text: str) -> Iterator[str]:
    word = ""
    for letter in text + " ":
        if letter.isalnum() or letter == "_":
            word += letter
        elif word:
            if word.isidentifier():
                yield word
            word = ""


def _is_stream(call: ast.Call) -> bool:
    """`sys.stdout.write(…)`, `sys.stderr.write(…)`: output, which comes back as such."""
    return ast.unparse(call.func).startswith(("sys.stdout.", "sys.stderr."))


def _is_function_of(call: ast.Call) -> bool:
    """`np.add(…)`, `os.remove(…)`, `np.ndarray.fill(a, 0)`: a function found in the module, no method of an object in it."""
    if not isinstance(call.func, ast.Attribute):
        return True
    return ast.unparse(call.func.value).rpartition(".")[2] not in PROCESS_OBJECTS


def _is_dynamic(name: str, call: ast.Call) -> bool:
    return name in DYNAMIC and not (name in DYNAMIC_WITHOUT_ARGUMENT and bool(call.args))


def _line(node: ast.AST, default: int) -> int:
    return getattr(node, "lineno", default)


def _word(node: ast.AST) -> str:
    return {
        ast.Yield: "yield",
        ast.YieldFrom: "yield from",
        ast.Return: "return",
        ast.Await: "await",
        ast.AsyncFor: "async for",
        ast.AsyncWith: "async with",
    }[type(node)]
