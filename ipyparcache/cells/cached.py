"""`%%cached`: bring a cell's effects back from the store, or run it and store them.

A hit is prepared first — payload read, definitions executed beside the namespace, everything unpickled over the live
inputs — which may fail and is a miss then; only after that is it committed, by steps that run no user code. A miss
runs the cell once, with its output live, and whatever goes wrong in storing leaves the cell's effects untouched.
"""

from __future__ import annotations

import ast
import itertools
import json
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import blake3

from ipyparcache import settings
from ipyparcache.analysis.cell import (
    Definition,
    dynamic_uses,
    first_line_of,
    re_executable_definitions,
    star_imports,
)
from ipyparcache.cells import auto, inputs, runs, values
from ipyparcache.cells.inputs import FORMAT, Inputs, KeyOptions, NoKey
from ipyparcache.cells.options import Option, Parsed, WrongOption, names_list, seconds, share, words_list
from ipyparcache.cells.runs import Run
from ipyparcache.cells.values import ArrayOwners, NotStorable
from ipyparcache.digest import environment, openfiles
from ipyparcache.digest.modules import is_user_code
from ipyparcache.digest.objects import Traversal, digest_of, put_state, state_of
from ipyparcache.errors import DamagedEntry, StoreUnavailable, Undigestible, Unrestorable
from ipyparcache.kernel import outputs
from ipyparcache.kernel.namespace import difference, interrupts_deferred, rebind, user_bindings
from ipyparcache.kernel.outputs import Record, recording, replay
from ipyparcache.kernel.running import Body
from ipyparcache.storage.entry import Entries, Entry, open_entries

CACHED_OPTIONS = (
    Option("--ignore", "leave these names out of the key", names_list, "NAME,…", ()),
    Option("--files", "more file inputs: paths, globs, folders", words_list, "PATH,…", ()),
    Option("--env", "environment variables as inputs", words_list, "NAME,…", ()),
    Option("--key", "one more value in the key", str, "EXPR"),
    Option("--expires", "run again after this time", settings.parse_duration, "7d"),
    Option("--force", "run and replace the entry", None, "", False),
    Option("--dir", "another store", str, "DIR"),
    Option("--compress", "compress the entry", str, "[CODEC[:LEVEL]]", None, "", "zlib"),
    Option("--trust-shell", "cache a cell that runs shell commands", None, "", False),
    Option("--verify", "run this share of hits again and compare", share, "SHARE", 0.0),
    Option("--plain", "status as text on stderr instead of HTML", None, "", False),
    Option("--quiet", "no status line; warnings stay", None, "", False),
    Option("--auto", "as in automatic mode: store only what pays", None, "", False),
)


@dataclass(frozen=True)
class CachedOptions:
    """The options of one `%%cached` line."""

    names: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    key: str | None = None
    expires: float | None = None
    force: bool = False
    dir: str | None = None
    compress: str | None = None
    trust_shell: bool = False
    verify: float = 0.0
    plain: bool = False
    quiet: bool = False
    auto: bool = False

    def for_key(self) -> KeyOptions:
        """Those that change what is an input."""
        return KeyOptions(
            frozenset(self.ignore),
            self.files,
            self.env,
            self.key,
            self.trust_shell,
            tuple(sorted(self.names)),
        )


def options_from(parsed: Parsed) -> CachedOptions:
    """The options of a parsed magic line.

    Raises
    ------
    WrongOption
        If a word is no variable name.
    """
    wrong = next((word for word in parsed.words if not word.isidentifier()), None)
    if wrong is not None:
        raise WrongOption("%%cached", f"`{wrong}` is neither an option nor a variable name")
    return CachedOptions(names=parsed.words, **parsed.values)


@dataclass
class Prepared:
    """A hit ready to be committed."""

    bound: dict[str, object]
    deleted: list[str]
    states: list[tuple[object, object]]  # live object, its state after the cell
    events: Sequence[outputs.OutputEvent]
    results: list[object]
    process: Any
    keep_alive: list[object]


@dataclass
class _Cell:
    """One run of one cell, from its magic line to its status line."""

    shell: Any
    body: Body
    options: CachedOptions
    execute: Callable[[Body], Awaitable[BaseException | None]]
    variant: str
    started: float
    identity: str
    warnings: list[str]
    entries: Entries | None = None
    inputs: Inputs | None = None
    no_key: str | None = None  # why the cell runs without being stored
    why_missed: str = ""
    changes: tuple[runs.InputChange, ...] = ()

    @property
    def namespace(self) -> dict[str, Any]:
        namespace: dict[str, Any] = self.shell.user_ns
        return namespace


async def run_cached(
    shell: Any,
    body: Body,
    options: CachedOptions,
    execute: Callable[[Body], Awaitable[BaseException | None]],
    variant: str = "",
) -> Run:
    """Restore the cell or run it, and say which.

    Parameters
    ----------
    shell : InteractiveShell
    body : Body
    options : CachedOptions
    execute : callable
        Runs the body in the notebook's namespace; returns what it raised, already shown to the user.
    variant : str
        What else the cell is run under (the options of `%%parallel`), part of its identity.

    Raises
    ------
    BaseException
        Whatever the cell raised.
    """
    started = time.perf_counter()
    identity = inputs.identity_of(body.tree, body.silenced, options.for_key(), variant)
    cell = _Cell(shell, body, options, execute, variant, started, identity, [])
    with ExitStack() as held:
        prepared = _guarded(cell, lambda: _look_up(cell, held))
        if prepared is not None:
            run = _restore(cell, *prepared)
        else:
            run = await _run(cell)
    _report(cell, run)
    return run


def _guarded(cell: _Cell, step: Callable[[], Any]) -> Any:
    """Run a step of caching; whatever it raises means that the cell runs and is not stored."""
    try:
        return step()
    except (NoKey, NotStorable, StoreUnavailable) as error:
        cell.no_key = str(error)
    except Exception as error:
        cell.no_key = f"{type(error).__name__} in ipyparcache: {error}"
        cell.warnings.append("".join(traceback.format_exception(error)))
    return None


# -- looking up ----------------------------------------------------------------------------------------------------


def _look_up(cell: _Cell, held: ExitStack) -> tuple[Entry, Prepared] | None:
    """The entry whose every input is as now, prepared; None if the cell has to run."""
    tree, options = cell.body.tree, cell.options
    _refuse_dynamic(tree)
    cell.inputs = inputs.collect(tree, cell.namespace, options.for_key(), cell.identity)
    cell.entries = open_entries(options.dir)
    found = None if options.force else _find(cell)
    if found is None:
        # one writer a key: another kernel that runs this cell just now is waited for, then looked up again
        if held.enter_context(cell.entries.lock(cell.inputs.key)) and not options.force:
            found = _find(cell)
    cell.warnings += cell.entries.take_complaints()
    if found is None:
        _explain(cell)
    return found


def _refuse_dynamic(tree: ast.Module) -> None:
    uses = dynamic_uses(tree)
    if uses:
        raise NoKey(f"line {uses[0].line} uses {uses[0].what}, whose reach cannot be known")
    for line, module in star_imports(tree):
        if is_user_code(module):
            raise NoKey(f"line {line} imports * from {module}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "get_ipython":
            raise NoKey(f"line {node.lineno} runs a magic or the shell itself")


def _find(cell: _Cell) -> tuple[Entry, Prepared] | None:
    assert cell.entries is not None
    assert cell.inputs is not None
    reasons = []
    for entry in cell.entries.under(cell.inputs.key):
        manifest = entry.manifest
        expires = cell.options.expires
        if expires is not None and time.time() - entry.created > expires:
            reasons.append(f"the entry is older than {runs.duration(expires)}")
            continue
        unmet = inputs.still_holds(manifest["observed"], cell.namespace)
        if unmet is not None:
            reasons.append(unmet)
            continue
        try:
            return entry, _prepare(cell, entry)
        except DamagedEntry as error:
            reasons.append(str(error))
        except Exception as error:
            reasons.append(f"the entry did not load ({type(error).__name__}: {error})")
    cell.why_missed = reasons[0] if reasons else ""
    return None


def _explain(cell: _Cell) -> None:
    """Why no entry fits: the input that differs from the latest run of the same cell."""
    assert cell.entries is not None
    assert cell.inputs is not None
    if cell.options.force:
        cell.why_missed = "--force was given"
    if cell.why_missed:
        return
    recent = cell.entries.recent(cell.identity)
    if not recent:
        cell.why_missed = "no run of this cell is stored"
        return
    _summarise(cell.inputs)
    changes = min(
        (inputs.difference(cell.inputs.rows, cell.inputs.summaries, manifest) for manifest in recent), key=len
    )
    cell.changes = changes
    cell.why_missed = str(changes[0]) if changes else "its inputs share objects otherwise than before"
    if len(changes) > 1:
        cell.why_missed += f" and {len(changes) - 1} more"


def _summarise(found: Inputs) -> None:
    for name in found.rows:
        if name in found.traversal.digests:
            found.summaries[name] = vars(found.traversal.summary(name))


# -- a hit ---------------------------------------------------------------------------------------------------------


def _prepare(cell: _Cell, entry: Entry) -> Prepared:
    """Everything of a hit that may fail; the namespace is not touched."""
    assert cell.inputs is not None
    manifest = entry.manifest
    pickled, buffers = entry.payload()
    scratch = _execute_definitions(cell, manifest["definitions"])
    known = _known(cell.namespace, [scratch[name] for name in sorted(scratch)], cell.inputs.traversal)
    payload = values.unpack(pickled, buffers, known)
    bound = {**scratch, **payload["names"]}
    states = [
        (cell.inputs.traversal.object_at(root, number), state) for root, number, state in payload["states"]
    ]
    return Prepared(
        bound,
        list(manifest["deleted"]),
        states,
        payload["events"],
        payload["results"],
        payload["process"],
        known,
    )


def _execute_definitions(cell: _Cell, wanted: Sequence[int]) -> dict[str, Any]:
    """Execute imports, functions and classes of the cell beside the namespace; functions see the live globals."""
    scratch: dict[str, Any] = {}
    for index in wanted:
        module = ast.Module([cell.body.tree.body[index]], [])
        code = cell.shell.compile(module, cell.body.file_name, "exec")
        exec(code, cell.namespace, scratch)
    return scratch


def _known(namespace: dict[str, Any], definitions: Sequence[object], traversal: Traversal) -> list[object]:
    """What exists on both sides, in an order that both derive alike; each object once."""
    known: list[object] = []
    seen: set[int] = set()
    inner = (thing for _, _, thing in traversal.numbered())
    for thing in itertools.chain([namespace], definitions, inner):
        if id(thing) not in seen:
            seen.add(id(thing))
            known.append(thing)
    return known


def _restore(cell: _Cell, entry: Entry, prepared: Prepared) -> Run:
    """Commit a prepared hit and show what the run showed."""
    with interrupts_deferred():
        for live, state in prepared.states:
            put_state(live, state)
        rebind(cell.namespace, prepared.bound, prepared.deleted)
        environment.restore_process(prepared.process)
        entry.used()
    replay(cell.shell, prepared.events, prepared.results)
    assert cell.inputs is not None
    return Run(
        "hit",
        "every input is as it was",
        seconds=time.perf_counter() - cell.started,
        body_seconds=entry.seconds,
        digest_seconds=cell.inputs.seconds,
        bytes=entry.size,
        inputs=cell.inputs.rows,
        names=tuple(sorted(prepared.bound)),
        identity=cell.identity,
        key=entry.key,
        trace=entry.trace,
    )


# -- a miss --------------------------------------------------------------------------------------------------------


async def _run(cell: _Cell) -> Run:
    """Run the cell once, with its output live, and store what it left."""
    record = Record()
    hidden = cell.shell.user_ns_hidden
    before = user_bindings(cell.namespace, hidden)
    process_before = environment.process_state()
    with openfiles.watch() as seen, recording(cell.shell, record, silenced=cell.body.silenced):
        began = time.perf_counter()
        error = await cell.execute(cell.body)
        body_seconds = time.perf_counter() - began
    run = Run(
        "not stored",
        cell.no_key or "",
        body_seconds=body_seconds,
        identity=cell.identity,
        inputs=cell.inputs.rows if cell.inputs else {},
        digest_seconds=cell.inputs.seconds if cell.inputs else 0.0,
    )
    if error is not None:
        run = replace(
            run, reason=f"it raised {type(error).__name__}", seconds=time.perf_counter() - cell.started
        )
        runs.note_run(_placed(cell, run))
        raise error
    if cell.no_key is None:
        stored = _guarded(cell, lambda: _store(cell, record, before, process_before, seen, body_seconds))
        run = stored or replace(run, reason=cell.no_key or "")
    return replace(run, seconds=time.perf_counter() - cell.started, changes=cell.changes)


def _store(
    cell: _Cell,
    record: Record,
    before: Mapping[str, object],
    process_before: Any,
    seen: openfiles.Seen,
    body_seconds: float,
) -> Run | None:
    """Store what the cell left; NotStorable says why not."""
    assert cell.inputs is not None
    assert cell.entries is not None
    if cell.options.auto and auto.min_seconds() and body_seconds < auto.min_seconds():
        cell.no_key = f"it ran shorter than {runs.duration(auto.min_seconds())}"
        return None
    if record.asked_for_input:
        raise NotStorable("it asked for input")
    observed = environment.observed_rows(seen, trust_shell=cell.options.trust_shell)
    left = _what_is_left(cell, before)
    observed += [_binding_row(name, left.after) for name in left.unsure]
    mutated = cell.inputs.traversal.changed()
    definitions = _definitions_to_repeat(cell, left.bound, {root for root, _ in mutated})
    defined = {name: left.bound[name] for definition in definitions for name in definition.names}
    payload = {
        "names": {name: value for name, value in left.bound.items() if name not in defined},
        "states": [(root, number, _state(cell, root, number)) for root, number in mutated],
        "results": record.values,
        "events": record.events(),
        "process": environment.process_changes(process_before),
    }
    known = _known(cell.namespace, [defined[name] for name in sorted(defined)], cell.inputs.traversal)
    repeated = [definition.index for definition in definitions]
    pickled, buffers = _pack_and_check(cell, payload, known, repeated, defined)
    _summarise(cell.inputs)
    manifest = {
        "format": FORMAT,
        "identity": cell.identity,
        "cell": cell.body.source,
        "inputs": cell.inputs.rows,
        "summaries": cell.inputs.summaries,
        "observed": observed,
        "names": sorted(left.bound),
        "deleted": left.deleted,
        "definitions": repeated,
        "seconds": body_seconds,
        "ran": time.time(),
    }
    trace = blake3.blake3(json.dumps(observed, sort_keys=True).encode()).hexdigest(8)
    size = cell.entries.write(cell.inputs.key, trace, manifest, pickled, buffers, seconds=body_seconds)
    cell.entries.remember(cell.identity, cell.inputs.key)
    return Run(
        "miss",
        cell.why_missed,
        body_seconds=body_seconds,
        digest_seconds=cell.inputs.seconds,
        bytes=size,
        inputs=cell.inputs.rows,
        names=tuple(sorted(left.bound)),
        identity=cell.identity,
        key=cell.inputs.key,
        trace=trace,
    )


@dataclass(frozen=True)
class _Left:
    """What a run left in the namespace."""

    after: Mapping[str, object]
    bound: dict[str, object]  # to be bound by a hit
    deleted: list[str]
    unsure: list[str]  # names that the cell may bind and that stand for the same object as before it


def _what_is_left(cell: _Cell, before: Mapping[str, object]) -> _Left:
    assert cell.inputs is not None
    after = user_bindings(cell.namespace, cell.shell.user_ns_hidden)
    changed = difference(before, after)
    names = cell.inputs.names
    bound = {
        name: value
        for name, value in after.items()
        if name in changed.bound or name in names.bound_for_certain
    }
    deleted = changed.deleted | {name for name in names.deleted if name not in after}
    written = names.touched | inputs.global_writes(cell.inputs.traversal)
    unsure = sorted(written - bound.keys() - deleted)
    keep = cell.options.names
    if keep:
        missing = next((name for name in keep if name not in after), None)
        if missing is not None:
            raise NotStorable(f"it did not bind `{missing}`, which is to be kept")
        bound = {name: after[name] for name in keep}
    return _Left(after, bound, sorted(deleted), unsure)


def _binding_row(name: str, after: Mapping[str, object]) -> list[str]:
    """The demand that a name which the cell may bind, but did not, stands for what it stood for."""
    if name not in after:
        return ["binding", name, "absent"]
    try:
        return ["binding", name, digest_of(after[name]).hex()]
    except Undigestible as error:
        raise NotStorable(f"it may bind `{name}`, whose present value has no digest: {error}") from error


def _definitions_to_repeat(cell: _Cell, bound: Mapping[str, object], mutated: set[str]) -> list[Definition]:
    """The definitions of the cell that a hit executes again: all whose names are kept and whose inputs are whole."""
    return [
        definition
        for definition in re_executable_definitions(cell.body.tree)
        if all(name in bound for name in definition.names) and not definition.reads & mutated
    ]


def _state(cell: _Cell, root: str, number: int) -> object:
    assert cell.inputs is not None
    try:
        return state_of(cell.inputs.traversal.object_at(root, number))
    except Unrestorable as error:
        raise NotStorable(f"it changes `{root}` in place: {error}") from error


def _pack_and_check(
    cell: _Cell,
    payload: dict[str, Any],
    known: Sequence[object],
    repeated: Sequence[int],
    defined: Mapping[str, object],
) -> tuple[bytes, list[Any]]:
    """Pickle the payload and see that it comes back as it is.

    Raises
    ------
    NotStorable
        Naming the variable that cannot be stored, and the line that binds it.
    """
    assert cell.inputs is not None
    namespace = cell.namespace
    try:
        original = _digested(payload, namespace)
        arrays = [thing for _, _, thing in original.numbered() if _is_array(thing)]
        old_arrays = [thing for thing in known if _is_array(thing)]
        owners = ArrayOwners(arrays, old_arrays)
        pickled, buffers = values.pack(payload, known, namespace, _is_ours, owners)
    except NotStorable as error:
        raise NotStorable(_blame(cell, payload, known, error)) from error
    scratch = _execute_definitions(cell, repeated)
    again_known = _known(namespace, [scratch[name] for name in sorted(scratch)], cell.inputs.traversal)
    again = values.unpack(pickled, [buffer.raw() for buffer in buffers], again_known)
    for name in defined:
        if _digest_or_none(defined[name], namespace) != _digest_or_none(scratch[name], namespace):
            raise NotStorable(f"`{name}` would not come back as it is, {_where(cell, name)}")
    _compare(cell, original, _digested(again, namespace), known, again_known)
    return pickled, buffers


def _digested(payload: Mapping[str, Any], namespace: dict[str, Any]) -> Traversal:
    """The digests of what a cell left, a root for each name."""
    traversal = Traversal(namespace)
    for name, value in sorted(payload["names"].items()):
        _add_output(traversal, name, value)
    for root, number, state in payload["states"]:
        _add_output(traversal, f"{root} #{number}", state)
    for index, value in enumerate(payload["results"]):
        _add_output(traversal, f"the result shown ({index})", value)
    return traversal


def _add_output(traversal: Traversal, name: str, value: object) -> None:
    try:
        traversal.add(name, value)
    except Undigestible as error:
        if not _comes_back_unseen(value):
            raise NotStorable(f"`{name}` cannot be stored: {error.reason}") from error


def _comes_back_unseen(value: object) -> bool:
    """Figures and axes have no digest and are stored without the trial."""
    return type(value).__module__.partition(".")[0] == "matplotlib"


def _compare(
    cell: _Cell, original: Traversal, again: Traversal, known: Sequence[object], again_known: Sequence[object]
) -> None:
    for root, digest in original.digests.items():
        if again.digests.get(root) != digest:
            raise NotStorable(f"`{root}` would not come back as it is, {_where(cell, root)}")
    if sorted(original.shared) != sorted(again.shared) or original.memory_sharing != again.memory_sharing:
        raise NotStorable("its results share objects in a way that would not come back")
    places = {id(thing): number for number, thing in enumerate(known)}
    again_places = {id(thing): number for number, thing in enumerate(again_known)}
    pairs = zip(original.numbered(), again.numbered(), strict=True)
    for (root, _, thing), (_, _, copy) in pairs:
        if places.get(id(thing)) != again_places.get(id(copy)):
            raise NotStorable(f"`{root}` refers to an input in a way that would not come back")


def _digest_or_none(value: object, namespace: dict[str, Any]) -> bytes | None:
    try:
        return digest_of(value, namespace)
    except Undigestible:
        return None


def _blame(cell: _Cell, payload: Mapping[str, Any], known: Sequence[object], error: NotStorable) -> str:
    """Which variable it is that cannot be pickled, and what to type."""
    if error.reason.startswith("`"):
        name = error.reason.split("`")[1]
        return f"{error.reason}{_hint(cell, name)}"
    for name, value in payload["names"].items():
        try:
            values.pack(value, known, cell.namespace, _is_ours, ArrayOwners([], []))
        except NotStorable as own:
            kind = type(value).__name__
            return (
                f"`{name}` ({kind}) cannot be stored, {_where(cell, name)}: {own.reason}{_hint(cell, name)}"
            )
    return error.reason


def _hint(cell: _Cell, name: str) -> str:
    others = sorted(cell.inputs.names.bound - {name}) if cell.inputs else []
    return f"; keep only some: %%cached {' '.join(others[:3])}" if others else ""


def _where(cell: _Cell, name: str) -> str:
    line = first_line_of(cell.body.tree, name)
    return f"line {line}" if line is not None else "made by a function that it calls"


def _is_array(thing: object) -> bool:
    kind = type(thing)
    return kind.__module__ == "numpy" and kind.__name__ == "ndarray"


def _is_ours(cls: type) -> bool:
    return is_user_code(cls.__module__)


# -- telling -------------------------------------------------------------------------------------------------------


def _report(cell: _Cell, run: Run) -> None:
    run = runs.note_run(_placed(cell, run))
    for warning in cell.warnings:
        outputs.show_note(cell.shell, runs.warning_html(warning), f"ipyparcache: {warning}", kind="warning")
    if cell.options.quiet or settings.current().quiet or (cell.options.auto and run.status == "not stored"):
        return
    if cell.options.plain:
        print(runs.status_line(run), file=sys.stderr)
        return
    outputs.show_note(
        cell.shell, runs.status_html(run), runs.status_line(run), kind="status", status=run.status
    )


def _placed(cell: _Cell, run: Run) -> Run:
    return replace(run, execution_count=cell.shell.execution_count - 1, cell=cell.body.source)


def install(shell: Any) -> None:
    """Start watching what only a watcher from the beginning can know: imports, seeds."""
    environment.install(user_cells_ran=shell.execution_count > 2)


def uninstall(shell: Any) -> None:
    """Stop what `install` started."""
    environment.uninstall()
