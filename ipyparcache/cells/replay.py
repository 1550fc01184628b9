"""The one place where what iterations did is done to the live namespace, in their order."""

from __future__ import annotations

import ast
import functools
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ipyparcache.analysis.body import GIVEN, HOLE, OURS, REFIT, UNBOUND, Site
from ipyparcache.analysis.parfor import Parfor
from ipyparcache.cells import watching
from ipyparcache.cells.estimators import put_learned
from ipyparcache.cells.holding import Held
from ipyparcache.cells.messages import Left, Plain, given
from ipyparcache.cells.plans import Host
from ipyparcache.cells.tracebacks import SITE
from ipyparcache.cells.travel import ATOMS

Write = Callable[[str, str], None]


class Replayer:
    """Applies what an iteration left to the namespace: the same for success, error and interrupt.

    `dropped` holds the names, with their types, whose last value could not come home.

    Parameters
    ----------
    file_name
        The cell's, so that an error of a replayed statement shows the cell's own line.
    write
        Puts text out in the cell: the stream, the text.
    """

    def __init__(self, parfor: Parfor, namespace: dict[str, Any], file_name: str, write: Write) -> None:
        self.parfor = parfor
        self.namespace = namespace
        self.sites = _compiled(parfor, namespace, file_name, write)
        for number, site in enumerate(parfor.sites):
            if site.method == REFIT:
                self.sites[number] = functools.partial(put_learned, namespace, site.roots[0])
        self._printing = frozenset(number for number, site in enumerate(parfor.sites) if site.prints)
        self._takers = _takers(parfor)
        self.dropped: dict[str, str | Held] = {}
        self.failed_at = 0  # the entry of the iteration's log that raised last

    def apply(
        self, left: Left, objects: Mapping[int, object], show: Callable[[int], None] = lambda _entry: None
    ) -> None:
        """Do to the namespace what one iteration did.

        An error is raised where the serial loop would raise it. Before something is printed here, `show`
        is called with its number in the log: what the iteration itself put out before it comes first.
        """
        entries, bindings, unbound, changes, _, dropped = left
        sites = self.sites
        done = -1
        try:
            for done, entry in enumerate(entries):
                if entry[0] in self._printing:
                    show(done)
                sites[entry[0]](*entry[1:])
        except Exception as error:
            self.failed_at = done
            site = self.parfor.sites[entries[done][0]]
            self._bind_until(site, entries[done], bindings, unbound)
            for entry in entries[done + 1 :]:  # what was fitted before
                later = self.parfor.sites[entry[0]]
                if later.method == REFIT and later.line <= site.line:
                    sites[entry[0]](*entry[1:])
            if site.line > self.parfor.touched_until:
                self._change(changes, objects)
            elif changes:
                error.add_note(ELEMENT_AS_BEFORE)
            raise
        self._bind(bindings, unbound)
        for name in dropped:
            self.namespace.pop(name, None)
        self.dropped.update(dropped)
        self._change(changes, objects)

    def _change(self, changes: Sequence[tuple[int, str, Any]], objects: Mapping[int, object]) -> None:
        for number, how, content in changes:
            watching.put_content(objects[number], how, content)

    def _bind_until(
        self, site: Site, entry: Plain, bindings: Mapping[str, object], unbound: Sequence[str]
    ) -> None:
        """Bind what the iteration had assigned when it reached a statement that raised here."""
        before = self.parfor.assigned_at
        there = dict(zip(site.unstable, entry[1 + site.holes :], strict=False))
        found = {n: v for n, v in bindings.items() if n not in there and before.get(n, 0) <= site.line}
        self._bind(found | {n: v for n, v in there.items() if not (type(v) is str and v == UNBOUND)}, unbound)

    def apply_plain(self, entries: Plain, bindings: Plain | dict[str, object]) -> None:
        """The same for an iteration that left plain values only."""
        sites = self.sites
        done = -1
        try:
            for done, entry in enumerate(entries):  # noqa: B007 - tells where it failed
                sites[entry[0]](*entry[1:])
        except Exception:
            site = self.parfor.sites[entries[done][0]]
            self._bind_until(site, entries[done], self.by_name(bindings), ())
            raise
        if type(bindings) is tuple:
            if not bindings:
                return
            self.namespace.update(zip(self.parfor.temporaries, bindings, strict=True))
        elif bindings:
            self._bind(self.by_name(bindings), ())

    def apply_together(self, lefts: Sequence[Plain]) -> bool:
        """The same for many plain iterations at once; False, and nothing is done, where that cannot be.

        It can where all that the loop changes are lists, dicts and sets, into which values are put that
        cannot run any code, or fail.
        """
        if self._takers is None or not all(type(left[1]) is tuple for left in lefts):
            return False
        if any(kind is not list for _, kind in self._takers) and not all(
            type(key) in ATOMS for left in lefts for _, key, *_ in left[0]
        ):
            return False
        owners = [self.namespace.get(root) for root, _ in self._takers]
        if not all(type(owner) is kind for owner, (_, kind) in zip(owners, self._takers, strict=True)):
            return False
        if len(owners) == 1:
            _put_into(owners[0], [entry for left in lefts for entry in left[0]])
        else:
            entries: dict[int, list[Plain]] = {id(owner): [] for owner in owners}
            of_site = [entries[id(owner)] for owner in owners]
            for left in lefts:
                for entry in left[0]:
                    of_site[entry[0]].append(entry)
            for owner in {id(owner): owner for owner in owners}.values():
                _put_into(owner, entries[id(owner)])
        bindings = lefts[-1][1]
        if bindings:
            self.namespace.update(zip(self.parfor.temporaries, bindings, strict=True))
        return True

    def by_name(self, bindings: Plain | dict[str, object]) -> dict[str, object]:
        """Bindings of a plain iteration as a dict."""
        if isinstance(bindings, dict):
            return bindings
        return dict(zip(self.parfor.temporaries, bindings, strict=True))

    def _bind(self, bindings: Mapping[str, object], unbound: Sequence[str]) -> None:
        for name in unbound:
            self.namespace.pop(name, None)
        self.namespace.update(bindings)
        if self.dropped:
            for name in bindings:
                self.dropped.pop(name, None)


def _takers(parfor: Parfor) -> list[tuple[str, type]] | None:
    """By site, name and kind of the container that takes its operands as they are; None if one does more."""
    found: list[tuple[str, type]] = []
    for site in parfor.sites:
        match site.statement:
            case ast.Expr(ast.Call(ast.Attribute(ast.Name(root), method), [ast.Name(hole)], [])):
                if hole != HOLE % 0 or method not in _TAKING:
                    return None
                found.append((root, _TAKING[method]))
            case ast.Assign([ast.Subscript(ast.Name(root), ast.Name(key))], ast.Name(hole)):
                if (key, hole) != (HOLE % 0, HOLE % 1):
                    return None
                found.append((root, dict))
            case _:
                return None
    return found if found and not any(site.unstable for site in parfor.sites) else None


_TAKING: dict[str, type] = {"append": list, "add": set}


def _put_into(owner: object, entries: Sequence[Plain]) -> None:
    """Put the operands of log entries into a list, set or dict, in their order."""
    if isinstance(owner, dict):
        owner.update([entry[1:] for entry in entries])
    elif isinstance(owner, list):
        owner.extend([value for _, value in entries])
    elif isinstance(owner, set):
        owner.update([value for _, value in entries])


def _printer(write: Write) -> Callable[..., None]:
    """`print`, to the cell."""

    def put_out(*values: object, sep: str | None = None, end: str | None = None, flush: bool = False) -> None:
        text = io.StringIO()
        print(*values, sep=sep, end=end, file=text)
        if text.getvalue():
            write("stdout", text.getvalue())

    return put_out


def _compiled(
    parfor: Parfor, namespace: dict[str, Any], file_name: str, write: Write
) -> list[Callable[..., None]]:
    """Each site as a function of its operands over the live namespace."""
    definitions: list[ast.stmt] = []
    ours = {GIVEN: given}
    if any(site.prints for site in parfor.sites):
        ours["print"] = _printer(write)
    for number, site in enumerate(parfor.sites):
        rest = ast.arg(HOLE % site.holes) if site.unstable else None
        named = {node.id for node in ast.walk(site.statement) if isinstance(node, ast.Name)}
        known = [name for name in ours if name in named]
        arguments = ast.arguments(
            [],
            [ast.arg(HOLE % n) for n in range(site.holes)],
            rest,
            [ast.arg(name) for name in known],
            [ast.Name(name, ast.Load()) for name in known],
            None,
            [],
        )
        body: list[ast.stmt] = [site.statement]
        names = sorted(name for name in site.assigns if not name.startswith(OURS))
        if names:
            body.insert(0, ast.Global(names))
        made = ast.FunctionDef(f"{SITE}{number}", arguments, body, [], None, None)
        definitions.append(ast.copy_location(made, site.statement))
    module = ast.fix_missing_locations(ast.Module(definitions, []))
    found: dict[str, Any] = dict(ours)
    exec(compile(module, file_name, "exec", dont_inherit=True), namespace, found)
    return [found[f"{SITE}{n}"] for n in range(len(parfor.sites))]


def run_while_raised(statements: Sequence[ast.stmt], error: BaseException, host: Host) -> BaseException:
    """Run statements of a `finally` in the kernel, as an exception passes; the one that leaves them."""
    namespace, found = host.namespace, list[BaseException | None]()
    before = set(namespace)
    namespace[PASSING] = error
    namespace[LEAVES] = lambda: found.append(sys.exc_info()[1])
    passing = ast.Raise(ast.Name(PASSING, ast.Load()), None)
    leaves = ast.Expr(ast.Call(ast.Name(LEAVES, ast.Load()), [], []))
    inner = ast.Try([passing], [], [], list(statements))
    around = ast.Try([inner], [ast.ExceptHandler(None, None, [leaves])], [], [])
    try:
        host.run_statement(ast.fix_missing_locations(ast.copy_location(around, statements[0])), last=False)
    finally:
        for name in [n for n in namespace if n.startswith(OURS) and n not in before]:
            del namespace[name]
    [raised] = found
    assert raised is not None
    return raised


PASSING = "__ipyparcache_passing__"
LEAVES = "__ipyparcache_leaves__"
ELEMENT_AS_BEFORE = "what this iteration changed in its element before it failed is not kept"
