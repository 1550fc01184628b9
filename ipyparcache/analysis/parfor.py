"""A loop as tasks: what each variable of its body is, and the body that a worker runs.

The classes are those of a `parfor`: loop targets and temporaries are *private* to an iteration; what is
only read is
*shared*; what is only written, by one of the recognised forms below, is *replayed*: the worker evaluates
the operands
(the holes of a `Site`) and the kernel executes the statement with them, in iteration order. Anything that one
iteration reads and an earlier one wrote is *loop-carried* and refused.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ipyparcache.analysis import refusals
from ipyparcache.analysis.body import ITEM, OURS, VALUE, Builder, Site, Tail, plainer
from ipyparcache.analysis.changing import CHANGING_FUNCTIONS, PROGRESS_METHODS, Path, changed_roots, path_of
from ipyparcache.analysis.collected import Found, drawing
from ipyparcache.analysis.columns import Columns, columns_of, only_asked, writes_of
from ipyparcache.analysis.conditionals import ASKING_FUNCTIONS, prints_itself
from ipyparcache.analysis.counters import Counter, counters_of
from ipyparcache.analysis.flow import Flow, Read, Unstable, free_names
from ipyparcache.analysis.forms import FILE, RECOGNISED, template_nodes
from ipyparcache.analysis.helpers import Facts, is_dynamic, is_fixed, written_path
from ipyparcache.analysis.ownrows import OwnRows, keys_of, own_rows_of
from ipyparcache.analysis.refits import Refit, refit_of
from ipyparcache.analysis.refusals import Refusal
from ipyparcache.analysis.walk import (
    blocks_of,
    comprehension_names,
    kept_functions,
    leaves_of,
    line_of,
    names_in_strings_of,
    own_jumps,
    own_nodes,
    statements_of,
    word_of,
)

LONGEST_TITLE = 48


#: Objects of modules that belong to the process.
PROCESS_OBJECTS = frozenset(
    {"environ", "path", "modules", "argv", "rcParams", "meta_path", "filters", "handlers"}
)


#: Calls that need the kernel's own process.
KERNEL_ONLY = frozenset({"input", "breakpoint"})


#: Sites that keep an operand itself.
KEEPING = frozenset({"append", "appendleft", "add", "insert", "item", "setdefault"})


#: Calls whose value exists in its own process only.
STAYS_BEHIND = frozenset({"open", "weakref.ref", "weakref.proxy", "sqlite3.connect", "subprocess.Popen"}) | {
    f"threading.{kind}" for kind in ("Thread", "Timer", "Lock", "RLock", "Event", "Condition")
}


#: Methods by which objects of Python's own change, and which nothing else has as plain attributes.
HANDED_ON = frozenset({"append", "extend", "add", "insert", "appendleft", "setdefault", "__setitem__"})


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
        What a worker executes for each element: it finds the element under `ITEM`, appends to the log by
        calling
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
        For every name that `sites` change: the line that does, and the attribute below which it stays (or
        None).
    orelse
        Statements of the `else` branch, executed in the kernel.
    assigned_at
        For every temporary that is no target: the line that assigns it first.
    own_rows
        Containers of which each iteration has its own item.
    touched_until
        The last line that may change, in place, what belongs to an iteration: its element above all.
    title
        What a user knows the loop by: its own line, shortened.
    element
        The target of a comprehension, as text.
    counters
        Variables that count the iterations; each begins an iteration with the value that it has there.
    columns
        Tables of which an iteration may read columns and write others.
    tails
        Parts of `finally` left to the kernel where an iteration fails before it has assigned what they read.
    refits
        Estimators that an iteration fits before it uses them.
    facts
        What was known of the names of the cell when the loop was taken apart.
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
    touched_until: int = 0
    title: str = ""
    element: str = ""
    counters: tuple[Counter, ...] = ()
    tails: tuple[Tail, ...] = ()
    columns: tuple[Columns, ...] = ()
    refits: tuple[Refit, ...] = ()
    facts: Facts = field(default_factory=Facts)


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


def classify_loop(loop: ast.For, facts: Facts) -> Parfor | Refusal:
    """A `for` statement as tasks, or why it cannot be."""
    bad = next((t for t in leaves_of(loop.target) if not isinstance(t, ast.Name)), None)
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
    for kept in kept_functions(element):
        name = next((n for n in free_names(kept) if n in comprehension_names([node])), None)
        if name is not None:
            return refusals.KeptFunction(kept.lineno, name)
    here = ast.copy_location(ast.Name(ITEM, ast.Load()), first.iter)
    one = ast.Tuple([here], ast.Load())
    inner = ast.ListComp(element, [ast.comprehension(first.target, one, first.ifs, 0), *node.generators[1:]])
    body = ast.Assign([ast.Name(VALUE, ast.Store())], inner)
    ast.copy_location(body, node)
    ast.fix_missing_locations(body)
    try:
        return _Classifier(node.lineno, None, first.iter, [body], [], facts, first.target).parfor()
    except _Refused as found:
        return found.refusal


@dataclass
class _Classifier:
    line: int
    target: ast.expr | None
    iterable: ast.expr
    body: list[ast.stmt]
    orelse: list[ast.stmt]
    facts: Facts
    shown: ast.expr | None = None  # the target of a comprehension, for its title
    targets: tuple[str, ...] = ()
    found: dict[int, Found] = field(default_factory=dict)
    own_rows: dict[str, OwnRows] = field(default_factory=dict)
    counters: tuple[Counter, ...] = ()
    columns: dict[str, Columns] = field(default_factory=dict)
    refits: dict[str, ast.stmt] = field(default_factory=dict)

    def parfor(self) -> Parfor:
        self.body = plainer(self.body, iter(range(10**6)))
        self.targets = (
            tuple(t.id for t in leaves_of(self.target) if isinstance(t, ast.Name)) if self.target else ()
        )
        self._forbid()
        plain = Flow(self._helper_reads)
        plain.run(self.body, (*self.targets, ITEM))
        bound = set(plain.bound) | set(self.targets)
        carried = {name for name in bound if plain.early(name) is not None}
        self._find_columns(bound)
        self._find_refits(plain)
        self.counters = (
            tuple(counters_of(self.body, carried, self.targets, self._helper_reads))
            if self.target is not None
            else ()
        )
        counted = {counter.name for counter in self.counters}
        carried -= counted
        self._recognise(self.body, bound, carried)
        self._demote(bound, carried)
        self._take_own_rows(bound)
        flow = Flow(self._helper_reads, self._holes_of)
        flow.run(self.body, (*self.targets, ITEM, *counted))
        self._check(flow, bound)
        private = set(flow.bound) | set(self.targets) | comprehension_names(self.body)
        self._check_files(private)
        self._check_methods(private)
        self._check_values()
        return self._build(flow)

    # what cannot run on a worker at all

    def _forbid(self) -> None:
        for node in own_nodes(self.body):
            match node:
                case ast.Yield() | ast.YieldFrom() | ast.Return():
                    raise _Refused(refusals.StatementInLoop(node.lineno, None, word_of(node)))
                case ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                    raise _Refused(refusals.StatementInLoop(node.lineno, None, word_of(node)))
                case ast.ImportFrom(names=[ast.alias(name="*")]):
                    raise _Refused(refusals.DynamicNames(node.lineno, None, "from … import *"))
                case ast.Call(func=ast.Name(id="get_ipython")):
                    raise _Refused(refusals.ShellInLoop(node.lineno))
                case ast.Call(func=ast.Name(id=name)) if (
                    is_dynamic(name, node) and name not in self.facts.helpers
                ):
                    raise _Refused(refusals.DynamicNames(node.lineno, None, f"{name}()"))
                case ast.Call(func=ast.Name(id=name)) if name in self.facts.helpers:
                    self._forbid_helper(name, node)
                case ast.Call(func=ast.Name(id=name)) if name in KERNEL_ONLY:
                    raise _Refused(refusals.StatementInLoop(node.lineno, None, f"{name}()"))
                case ast.Call(func=ast.Name(id="id"), args=[_]) if "id" not in self.facts.helpers:
                    raise _Refused(refusals.IdentityAsked(node.lineno))
        for node in own_jumps(self.body, ast.Break):
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

    def _find_columns(self, bound: set[str]) -> None:
        key = self.target.id if isinstance(self.target, ast.Name) else None
        for root in sorted(self.facts.tables - bound):
            found = columns_of(root, self.body, key)
            if found is not None:
                self.columns[root] = found

    def _find_refits(self, flow: Flow) -> None:
        asked = {node.id for node in ast.walk(self.iterable) if isinstance(node, ast.Name)}
        for root in sorted(self.facts.learners - asked):
            statement = refit_of(root, self.body, flow)
            if statement is not None:
                self.refits[root] = statement

    def _column(self, statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
        """`df['log_' + c] = f(df[c])` on a table: the column is put there in the kernel."""
        for root in self.columns.keys() - bound:
            for found, place in writes_of([statement], root):
                path = path_of(place)
                if found is statement and path is not None:
                    keys = frozenset(range(1, 1 + len(path.holes)))
                    holes = [found.value, *path.holes]
                    return Found(statement, holes, {root: None}, set(), "item", frozenset({0}), keys)
        return None

    def _holes_of(self, statement: ast.stmt) -> Sequence[ast.expr] | None:
        found = self.found.get(id(statement))
        return None if found is None else found.holes

    def _recognise(self, statements: Sequence[ast.stmt], bound: set[str], carried: set[str]) -> None:
        for statement in statements:
            for recognise in (self._column, *RECOGNISED, self._drawing):
                found = recognise(statement, bound, carried)
                if found is not None and not self._asks_the_notebook(found):
                    self.found[id(statement)] = found
                    break
            else:
                for block in blocks_of(statement):
                    self._recognise(block, bound, carried)

    def _asks_the_notebook(self, found: Found) -> bool:
        """Whether the kernel would change a module, call a function of the notebook, or print too late."""
        names = {node.id for node in template_nodes(found) if isinstance(node, ast.Name)}
        if prints_itself(found) and self._changes_later(found):
            return True
        return not (
            found.roots.keys().isdisjoint(self.facts.modules) and names.isdisjoint(self.facts.helpers)
        )

    def _changes_later(self, found: Found) -> bool:
        """Whether an operand may be changed behind a statement, which is executed when that has happened."""
        names = {node.id for hole in found.holes for node in ast.walk(hole) if isinstance(node, ast.Name)}
        inside = {id(node) for node in ast.walk(found.statement)}
        end = found.statement.end_lineno or 0
        rounds = [s for s in statements_of(self.body) if isinstance(s, ast.For | ast.While)]
        if any(id(found.statement) in map(id, ast.walk(s)) for s in rounds):
            end = 0
        for node in own_nodes(self.body):
            if id(node) in inside or line_of(node, end) < end:
                continue
            if any(root in names for root, _ in changed_roots(node)):
                return True
            if isinstance(node, ast.Call) and not _only_keeps(node):
                parts = [node.func, *node.args, *(k.value for k in node.keywords)]
                paths = [path_of(part) for part in parts]
                if any(path is not None and path.root in names for path in paths):
                    return True
        return False

    def _drawing(self, statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
        """`ax.plot(x, y)`, `axes[i].set_title(t)` on what is drawn into: the calls are made in the kernel."""
        return drawing(statement, set(self.facts.drawn) - bound)

    def _demote(self, bound: set[str], carried: set[str]) -> None:
        """A name that is rebound by a replayed statement must be bound nowhere else.

        Plain values are replayed too.
        """
        replayed = {name for found in self.found.values() for name in found.assigns}
        if not replayed:
            return
        for statement in statements_of(self.body):
            if id(statement) in self.found or not isinstance(statement, ast.Assign):
                continue
            names = [t.id for t in statement.targets if isinstance(t, ast.Name)]
            if len(names) == len(statement.targets) == 1 and names[0] in replayed:
                self.found[id(statement)] = Found(
                    statement, [statement.value], {names[0]: None}, {names[0]}, "assign"
                )

    def _take_own_rows(self, bound: set[str]) -> None:
        """Find containers that each iteration reads, and may write, only at its own key."""
        keys = keys_of(self.target, self.body)
        used = {
            node.value.id
            for node in own_nodes(self.body)
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name)
        }
        used -= bound | self.facts.modules | self.facts.drawn | self.columns.keys() | self._read_lazily()
        if not keys or not used:
            return
        flow = Flow(self._helper_reads, self._holes_of)
        flow.run(self.body, (*self.targets, ITEM))
        aliases = self._aliases(bound | set(self.targets) | comprehension_names(self.body))
        for root in sorted(used):
            reads = flow.reads.get(root)
            if not reads or any(read.by is not None for read in reads):
                continue
            own = frozenset(name for name, alias in aliases.items() if alias is not None and alias[0] == root)
            rows = own_rows_of(root, self.body, keys, own, self._changed_arguments)
            if rows is not None:
                self.own_rows[root] = rows
                self.found = {i: f for i, f in self.found.items() if root not in f.roots}

    def _changed_arguments(self, call: ast.Call) -> Iterator[Path]:
        """The arguments of a call that the notebook's function changes in place."""
        helper = self.facts.helpers.get(call.func.id) if isinstance(call.func, ast.Name) else None
        for position in helper.changes if helper is not None else ():
            assert helper is not None
            argument = call.args[position] if position < len(call.args) else None
            if argument is None and position < len(helper.parameters):
                wanted = helper.parameters[position]
                argument = next((k.value for k in call.keywords if k.arg == wanted), None)
            path = path_of(argument) if argument is not None else None
            if path is not None:
                yield path

    def _read_lazily(self) -> set[str]:
        """Names that the iterable may read while it is drawn from."""
        names = {n.id for n in ast.walk(self.iterable) if isinstance(n, ast.Name)}
        lazy: set[str] = set()
        for node in ast.walk(self.iterable):
            if isinstance(node, ast.GeneratorExp):
                lazy |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            elif isinstance(node, ast.Lambda):
                lazy |= set(free_names(node))
        for name in names:
            lazy |= set(self._helper_reads(name))
        return lazy

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
            if conflict is not None and (name not in self.columns or conflict.by is not None):
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
                    raise _Refused(
                        refusals.ReadByHelper(line_of(early.node, self.line), name, early.by, where)
                    )
                raise _Refused(refusals.CarriedVariable(line_of(early.node, self.line), name, where))
        for name, node in flow.deleted_early.items():
            raise _Refused(refusals.DeletesOuter(line_of(node, self.line), name))
        for name, node in flow.inner_globals.items():
            raise _Refused(refusals.GlobalWrite(line_of(node, self.line), name, "a function of the body"))
        self._check_rest(flow, changed)
        self._check_iterable(changed, set(flow.bound))
        self.changed = changed

    def _carried(self, name: str, read: Read, line: int, reduction: bool) -> Refusal:
        at = line_of(read.node, self.line)
        if read.by is not None:
            return refusals.ReadByHelper(at, name, read.by, line)
        if reduction:
            return refusals.CarriedReduction(at, name, line)
        return refusals.CarriedContainer(at, name, line)

    def _check_rest(self, flow: Flow, changed: Mapping[str, tuple[int, str | None]]) -> None:
        """Changes of outer objects by forms that are not replayed."""
        private = set(flow.bound) | set(self.targets) | comprehension_names(self.body)
        aliases = self._aliases(private)
        cut = {id(n) for found in self.found.values() for n in template_nodes(found)}
        for node in own_nodes(self.body):
            if id(node) in cut:
                continue
            for root, place in changed_roots(node):
                line = line_of(place, self.line)
                alias = aliases.get(root)
                if alias is not None and alias[0] not in self.own_rows:
                    raise _Refused(refusals.ChangedThroughAlias(alias[1], root, alias[0], line))
                if root in private or root in self.own_rows:
                    continue
                if root in self.facts.modules:
                    if isinstance(place, ast.Call) and (_is_stream(place) or _is_function_of(place)):
                        continue
                    raise _Refused(refusals.ModuleChanged(line, root))
                if isinstance(place, ast.Call) and ast.unparse(place.func) == "next":
                    raise _Refused(refusals.TakenByNext(line, root))
                if isinstance(place, ast.Call) and ast.unparse(place.func) in CHANGING_FUNCTIONS:
                    raise _Refused(refusals.ChangedByFunction(line, root, ast.unparse(place.func)))
                if isinstance(place, ast.Call) and isinstance(place.func, ast.Attribute):
                    raise _Refused(refusals.MutatorResult(line, root, place.func.attr))
                read = next(
                    (r for r in flow.reads.get(root, ()) if r.node is not place and r.by is None), None
                )
                if read is not None:
                    raise _Refused(refusals.CarriedContainer(line_of(read.node, self.line), root, line))
                raise _Refused(refusals.TargetNotAName(line, root))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                for path in self._changed_arguments(node):
                    if path.root not in private and path.root not in self.own_rows:
                        raise _Refused(
                            refusals.ChangedByCall(line_of(node, self.line), path.root, node.func.id)
                        )

    def _check_values(self) -> None:
        """What is collected must be able to come back, as far as its text tells."""
        for found in self.found.values():
            kept = found.holes if found.method in KEEPING else ()
            for hole in kept:
                bound_here = isinstance(hole, ast.Call) and ast.unparse(hole.func) in STAYS_BEHIND
                if bound_here or isinstance(hole, ast.GeneratorExp):
                    raise _Refused(refusals.CannotComeBack(hole.lineno, None, ast.unparse(hole)))

    def _check_methods(self, private: set[str]) -> None:
        """A method that changes an outer object, taken without being called."""
        called = {id(n.func) for n in own_nodes(self.body) if isinstance(n, ast.Call)}
        for node in own_nodes(self.body):
            match node:
                case ast.Attribute(value=ast.Name(id=name), attr=method) if (
                    isinstance(node.ctx, ast.Load)
                    and method in HANDED_ON
                    and id(node) not in called
                    and name not in private | self.facts.modules
                ):
                    raise _Refused(refusals.MethodHandedOn(node.lineno, name, method))

    def _check_files(self, private: set[str]) -> None:
        """Files that every iteration writes: their lines would come in any order, or the wrong one last."""
        in_order = {
            id(part)
            for found in self.found.values()
            if found.method == FILE
            for part in ast.walk(found.statement)
        }
        for node in own_nodes(self.body):
            if not isinstance(node, ast.Call) or id(node) in in_order:
                continue
            path = written_path(node)
            if path is not None and is_fixed(path, private):
                raise _Refused(refusals.SameFile(node.lineno, None, ast.unparse(path)))
            helper = self.facts.helpers.get(node.func.id) if isinstance(node.func, ast.Name) else None
            if helper is not None and helper.file is not None:
                raise _Refused(refusals.SameFile(node.lineno, None, helper.file))

    def _aliases(self, private: set[str]) -> dict[str, tuple[str, int] | None]:
        """Body names that only ever stand for (a part of) one outer object, with its name and the line."""
        found: dict[str, tuple[str, int] | None] = {}

        def note(name: str, value: ast.expr | None, line: int) -> None:
            roots = _roots_of(value) if value is not None else None
            outer = roots is not None and not roots & (private | self.facts.modules)
            alias = (min(roots), line) if outer and roots else None
            found[name] = alias if name not in found or found[name] else None

        for node in own_nodes(self.body):
            match node:
                case ast.Assign(targets=targets, value=value):
                    for target in targets:
                        for name, part in _pairs(target, value):
                            note(name, part, node.lineno)
                case ast.NamedExpr(target=ast.Name(id=name), value=value):
                    note(name, value, node.lineno)
                case ast.For(target=target, iter=ast.Tuple(elts=elts) | ast.List(elts=elts)) if elts:
                    for name, _ in _pairs(target, None):
                        roots = [_roots_of(part) for part in elts]
                        one = None if None in roots or not isinstance(target, ast.Name) else elts[0]
                        note(name, one, node.lineno)
                case ast.For(target=target):
                    for name, _ in _pairs(target, None):
                        note(name, None, node.lineno)
        return found

    def _check_iterable(self, changed: Mapping[str, tuple[int, str | None]], bound: set[str]) -> None:
        names = {n.id for n in ast.walk(self.iterable) if isinstance(n, ast.Name)}
        lazy = self._read_lazily()
        for name in sorted(lazy & bound):
            raise _Refused(refusals.IterableChanged(self.line, name, self.line))
        for name in sorted((names | lazy) & changed.keys()):
            apart = name in self.columns and only_asked(self.iterable, name)
            if not apart and not self._changes_own_element(name):
                raise _Refused(refusals.IterableChanged(self.line, name, changed[name][0]))

    def _changes_own_element(self, name: str) -> bool:
        """Whether every replayed write to the iterated object goes to the element just handed out.

        Or its length only is asked.
        """
        whole = [
            n
            for n in ast.walk(self.iterable)
            if isinstance(n, ast.Call)
            and isinstance(n.func, ast.Name)
            and n.func.id in ("len", "list", "tuple", "sorted", "dict", "set")
            and (n.func.id == "len" or any(isinstance(a, ast.Name) and a.id == name for a in n.args))
        ]
        copied = {id(a) for call in whole for a in call.args}
        copied |= set(self._copies_of(name))
        if not any(isinstance(n, ast.Lambda | ast.GeneratorExp) for n in ast.walk(self.iterable)):
            lengths = [n for n in whole if ast.unparse(n.func) == "len"]
            copied |= {id(part) for call in lengths for part in ast.walk(call)}
        uses = [n for n in ast.walk(self.iterable) if isinstance(n, ast.Name) and n.id == name]
        if all(id(n) in copied for n in uses) or ".shape" in ast.unparse(self.iterable):
            return True
        for found in self.found.values():
            if name not in found.roots:
                continue
            if found.method in PROGRESS_METHODS:
                continue
            if found.method not in ("item", "augmented", "own"):
                return False
            first = found.holes[min(found.keys)] if found.keys else None
            if isinstance(first, ast.Tuple) and first.elts:
                first = first.elts[0]
            if not (isinstance(first, ast.Name) and first.id in self.targets):
                return False
        return True

    def _copies_of(self, name: str) -> Iterator[int]:
        """Places where the iterable copies: `xs.copy()`, `list(d.keys())`, `xs[:]` of what is a list."""
        methods = {found.method for found in self.found.values() if name in found.roots}
        for node in ast.walk(self.iterable):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name() as owner, attr="copy"), args=[], keywords=[]
                ):
                    yield id(owner)
                case ast.Call(
                    func=ast.Name(id="list" | "tuple" | "sorted" | "set" | "dict"),
                    args=[
                        ast.Call(
                            func=ast.Attribute(value=ast.Name() as owner, attr="keys" | "values" | "items"),
                            args=[],
                        ),
                        *_,
                    ],
                ):
                    yield id(owner)
                case ast.Subscript(value=ast.Name() as owner, slice=ast.Slice(None, None, None)) if (
                    methods & {"append", "remove", "insert", "extend"}
                ):
                    yield id(owner)

    # the worker's body

    def _build(self, flow: Flow) -> Parfor:
        unstable = Unstable(self.body, self.targets).at
        own = frozenset(flow.bound)
        missed = {at: [names & own for names in every] for at, every in flow.unfinished.items()}
        wary = Flow(self._helper_reads, self._holes_of, distrusting=True)
        wary.run(self.body, (*self.targets, ITEM, *(counter.name for counter in self.counters)))
        doubted = {name for name in wary.bound if wary.early(name) is not None} | wary.deleted_early.keys()
        builder = Builder(
            self.found,
            self.targets,
            frozenset(map(id, self.body)),
            unstable,
            missed,
            {at: names & doubted for at, names in flow.through.items()},
            self.facts.managers,
            {id(s): [r for r, other in self.refits.items() if other is s] for s in self.refits.values()},
        )
        statements = builder.block(self.body, guarded=False)
        own_rows = [
            replace(rows, site=builder.row(rows)) if rows.changes else rows for rows in self.own_rows.values()
        ]
        refits = tuple(
            Refit(root, builder.state(root, fit.lineno), fit.lineno) for root, fit in self.refits.items()
        )
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
            if not name.startswith(OURS) and (name not in flow.bound and name not in self.targets) and places
        }
        # An attribute of a changed root is read elsewhere: the root travels; a root that is only changed
        # does not.
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
            names_in_strings=frozenset(names_in_strings_of(self.body)),
            temporaries=tuple(temporaries),
            targets=self.targets,
            sites=tuple(builder.sites),
            changed=dict(self.changed),
            orelse=tuple(self.orelse),
            assigned_at=early,
            yields=self.target is None,
            own_rows=tuple(own_rows),
            touched_until=self._touched_until(set(flow.bound) | set(self.targets)),
            title=self._title(),
            element=_target_text(self.shown) if self.shown is not None else "",
            counters=self.counters,
            tails=tuple(builder.tails),
            columns=tuple(self.columns.values()),
            refits=refits,
            facts=self.facts,
        )

    def _title(self) -> str:
        target = self.target or self.shown
        text = f"for {_target_text(target) if target is not None else '…'} in {ast.unparse(self.iterable)}"
        return text if len(text) <= LONGEST_TITLE else text[: LONGEST_TITLE - 1] + "…"

    def _touched_until(self, private: set[str]) -> int:
        last = 0
        for node in own_nodes(self.body):
            if isinstance(node, ast.Call):
                parts = [node.func, *node.args, *(k.value for k in node.keywords)]
                paths = [path_of(part) for part in parts if not isinstance(part, ast.Starred)]
                touches = any(path is not None and path.root in private for path in paths)
            else:
                touches = any(root in private for root, _ in changed_roots(node))
            last = max(last, line_of(node, 0)) if touches else last
        return last

    changed: Mapping[str, tuple[int, str | None]] = field(default_factory=dict)


def _roots_of(value: ast.expr) -> set[str] | None:
    """The names of which a value is certainly (a part of) an object; None where it may be anything."""
    match value:
        case ast.IfExp(body=body, orelse=orelse):
            both = _roots_of(body), _roots_of(orelse)
            return None if both[0] is None or both[1] is None else both[0] | both[1]
        case ast.NamedExpr(value=inner):
            return _roots_of(inner)
        case ast.Call(func=ast.Attribute(value=owner, attr="get"), args=[_]):
            return _roots_of(owner)
    path = path_of(value)
    return None if path is None else {path.root}


def _pairs(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, ast.expr | None]]:
    """Names of a target, each with the expression that it gets, where it gets one as a whole."""
    match target, value:
        case ast.Name(id=name), _:
            yield name, value
        case (
            (ast.Tuple(elts=places) | ast.List(elts=places)),
            (ast.Tuple(elts=values) | ast.List(elts=values)),
        ) if len(places) == len(values) and not any(isinstance(e, ast.Starred) for e in [*places, *values]):
            for place, part in zip(places, values, strict=True):
                yield from _pairs(place, part)
        case _:
            for leaf in leaves_of(target):
                if isinstance(leaf, ast.Name):
                    yield leaf.id, None


def _only_keeps(call: ast.Call) -> bool:
    """Whether a call does not change what it is given: it prints it, asks it, or puts it into a container."""
    match call.func:
        case ast.Name(id=name):
            return name in ASKING_FUNCTIONS | {"print"}
        case ast.Attribute(value=ast.Name(), attr=method):
            return method in HANDED_ON and not any(isinstance(part, ast.Starred) for part in call.args)
    return False


def _is_stream(call: ast.Call) -> bool:
    """`sys.stdout.write(…)`, `sys.stderr.write(…)`: output, which comes back as such."""
    return ast.unparse(call.func).startswith(("sys.stdout.", "sys.stderr."))


def _is_function_of(call: ast.Call) -> bool:
    """`np.add(…)`, `os.remove(…)`, `np.ndarray.fill(a, 0)`.

    A function found in the module, no method of an object in it.
    """
    if not isinstance(call.func, ast.Attribute):
        return True
    return ast.unparse(call.func.value).rpartition(".")[2] not in PROCESS_OBJECTS


def _target_text(target: ast.expr) -> str:
    """The target of a loop as people write it."""
    text = ast.unparse(target)
    return text[1:-1] if isinstance(target, ast.Tuple) and len(target.elts) > 1 else text
