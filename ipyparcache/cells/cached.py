"""`%%cached`: bring a cell's effects back from the store, or run it and store them.

A hit is prepared first — payload read, definitions executed beside the namespace, everything unpickled
over the live inputs — which may fail and is a miss then; only after that is it committed, by steps that
run no user code. A miss runs the cell once, with its output live, and whatever goes wrong in storing
leaves the cell's effects untouched.
"""

from __future__ import annotations

import ast
import random
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from json import dumps
from typing import Any
from weakref import WeakKeyDictionary

import blake3

from ipyparcache import settings
from ipyparcache.analysis.cell import (
    dynamic_uses,
    line_uses,
    star_imports,
)
from ipyparcache.analysis.shellcalls import without_shell_calls
from ipyparcache.cells import auto, inputs, keeping, runs, unchanged
from ipyparcache.cells.effects import Effects
from ipyparcache.cells.inputs import FORMAT, Inputs, KeyOptions, NoKey
from ipyparcache.cells.options import Option, Parsed, WrongOption, names_list, share, words_list
from ipyparcache.cells.runs import Run
from ipyparcache.cells.values import NotStorable
from ipyparcache.digest import environment, generators, openfiles, process, shownonce
from ipyparcache.digest.modules import is_user_code
from ipyparcache.digest.objects import Traversal
from ipyparcache.digest.states import put_state
from ipyparcache.errors import DamagedEntry, StoreUnavailable, Unrepeatable, Unrestorable
from ipyparcache.kernel import outputs
from ipyparcache.kernel.namespace import (
    interrupt_main_thread,
    interrupts_deferred,
    is_embedded,
    rebind,
    user_bindings,
)
from ipyparcache.kernel.outputs import Record, recording, replay
from ipyparcache.kernel.running import Body
from ipyparcache.progress.tracker import Tracker
from ipyparcache.progress.widget import show
from ipyparcache.storage.compression import parse_codec
from ipyparcache.storage.entry import Entries, Entry, open_entries

RESTORE_BYTES_PER_SECOND = 1e9  # of entries, about; and what a hit costs besides
RESTORE_SECONDS = 0.003
WAIT_UNTOLD = 0.2  # seconds that another kernel may work on the same cell before the user is told
BAR_FROM_SECONDS = 1.0  # a cell that took less the last time gets no bar


def codec_of(text: str) -> tuple[str, int | None] | None:
    """`lz4` or `zlib:6` as a codec's name and level."""
    name, colon, level = text.partition(":")
    if colon and not level.isdigit():
        raise ValueError("a level is a whole number, as in zlib:6")
    return parse_codec((name, int(level)) if colon else name)


CACHED_OPTIONS = (
    Option("--ignore", "leave these names out of the key", names_list, "NAME,…", ()),
    Option("--files", "more file inputs: paths, globs, folders", words_list, "PATH,…", ()),
    Option("--env", "environment variables as inputs", words_list, "NAME,…", ()),
    Option("--key", "one more value in the key", str, "EXPR", is_code=True),
    Option("--expires", "run again after this time", settings.parse_duration, "7d"),
    Option("--force", "run and replace the entry", None, "", False),
    Option("--dir", "another store", str, "DIR"),
    Option("--compress", "compress the entry", codec_of, "[CODEC[:LEVEL]]", None, "", ("zlib", None)),
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
    compress: tuple[str, int | None] | None = None
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
class Asked:
    """What the run asked for where no watch of this process sees it: on workers."""

    rows: list[Sequence[str]] = field(default_factory=list)
    is_known: bool = True

    def add(self, rows: list[Any] | None) -> None:
        """Add the rows of a loop, None if one of its iterations did what cannot be stored."""
        if rows is None:
            self.is_known = False
        else:
            self.rows += rows


def secret_of(options: CachedOptions) -> bytes | None:
    """What keys the digests of a run's environment variables; None if there is no store to put the run in."""
    try:
        return open_entries(options.dir).secret
    except StoreUnavailable:
        return None


@dataclass
class Prepared:
    """A hit ready to be committed."""

    bound: dict[str, object]
    deleted: list[str]
    states: list[tuple[object, object]]  # live object, its state after the cell
    events: Sequence[outputs.OutputEvent]
    results: list[object]
    annotations: dict[str, object]
    process: Any
    imported: bool  # modules that were not loaded
    keep_alive: list[object]


@dataclass
class _Cell:
    """One run of one cell, from its magic line to its status line."""

    shell: Any
    body: Body
    options: CachedOptions
    execute: Callable[[Body], Awaitable[BaseException | None]]
    asked: Asked
    started: float
    identity: str
    warnings: list[str]
    entries: Entries | None = None
    inputs: Inputs | None = None
    no_key: str | None = None  # why the cell runs without being stored
    expected: float | None = None  # seconds that its last run took, if one is known
    doubted: Entry | None = None  # the hit that this run is to be compared with
    why_missed: str = ""
    changes: tuple[runs.InputChange, ...] = ()
    clears_next: bool = False  # a status line would take the place of what the cell has put out

    @property
    def watch(self) -> unchanged.Watch | None:
        return _watches.get(self.shell)

    @property
    def namespace(self) -> dict[str, Any]:
        namespace: dict[str, Any] = self.shell.user_ns
        return namespace

    def effects(self, traversal: Traversal) -> Effects:
        # one statement at a time, as the shell compiles them: an import from __future__ may come late
        compile_one = self.source().compile
        compiled = [compile_one(ast.Module([statement], [])) for statement in self.body.tree.body]
        return Effects(compiled, self.namespace, traversal)

    def source(self) -> keeping.Source:
        assert self.inputs is not None

        def compiled(module: ast.Module) -> Any:
            with self.shell.compile.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
                return self.shell.compile(module, self.body.file_name, "exec")

        return keeping.Source(self.body.tree, self.namespace, self.inputs, compiled)


async def run_cached(
    shell: Any,
    body: Body,
    options: CachedOptions,
    execute: Callable[[Body], Awaitable[BaseException | None]],
    variant: str = "",
    asked: Asked | None = None,
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
    asked : Asked
        What `execute` learns of the run's questions on workers.

    Raises
    ------
    BaseException
        Whatever the cell raised.
    """
    started = time.perf_counter()
    shown_how = f"{variant} {outputs.display_facts(shell, is_user_code)}"
    identity = inputs.identity_of(body.tree, body.silenced, options.for_key(), shown_how)
    cell = _Cell(shell, body, options, execute, asked or Asked(), started, identity, [])
    with ExitStack() as held:
        prepared = _guarded(cell, lambda: _look_up(cell, held))
        if prepared is not None and random.SystemRandom().random() < options.verify:
            cell.doubted, prepared = prepared[0], None
            cell.why_missed = "--verify chose it"
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
    except (NoKey, NotStorable, StoreUnavailable, Unrepeatable, Unrestorable) as error:
        cell.no_key = str(error)
    except Exception as error:
        cell.no_key = f"{type(error).__name__} in ipyparcache: {error}"
        cell.warnings.append("".join(traceback.format_exception(error)))
    return None


# -- looking up ------------------------------------------------------------------------------------


def _look_up(cell: _Cell, held: ExitStack) -> tuple[Entry, Prepared] | None:
    """The entry whose every input is as now, prepared; None if the cell has to run."""
    tree, options = cell.body.tree, cell.options
    if is_embedded(cell.shell):
        raise NoKey("the shell is embedded in a program, and part of the variables are those of its module")
    if options.trust_shell:
        tree = without_shell_calls(tree)
    _refuse_dynamic(tree)
    walks = cell.watch.walks() if cell.watch is not None else None
    cell.inputs = inputs.collect(tree, cell.namespace, options.for_key(), cell.identity, walks)
    if "duckdb" in sys.modules and (untold := cell.effects(cell.inputs.traversal).untold_inputs()):
        raise NoKey(untold)
    if cell.watch is not None:
        cell.watch.looked_up()
    cell.entries = open_entries(options.dir)
    environment.use_secret(cell.entries.secret)
    found = None if options.force else _find(cell)
    # one writer a key: another kernel that runs this cell just now is waited for, then looked up again
    if found is None and held.enter_context(_alone(cell)) and not options.force:
        found = _find(cell)
    cell.warnings += cell.entries.take_complaints()
    if found is None:
        _explain(cell)
        cell.inputs.mark()
    return found


@contextmanager
def _alone(cell: _Cell) -> Iterator[bool]:
    """Be the only kernel that works on the cell's inputs; who has to wait for another is told so."""
    assert cell.entries is not None
    assert cell.inputs is not None
    began = time.monotonic()
    with cell.entries.lock(cell.inputs.key, WAIT_UNTOLD) as alone:
        if alone or time.monotonic() - began < WAIT_UNTOLD:  # or no lock can be had there
            yield alone
            return
    tracker = Tracker(None, "another kernel runs this cell: waiting for what it leaves")
    with ExitStack() as held:
        with nullcontext() if cell.options.quiet else show(tracker, interrupt_main_thread, keep="never"):
            try:
                alone = held.enter_context(cell.entries.lock(cell.inputs.key))
            except KeyboardInterrupt as interrupt:
                interrupt.add_note(
                    "while it waited for another kernel that runs this cell; here it has not run"
                )
                raise
        yield alone


def _refuse_dynamic(tree: ast.Module) -> None:
    uses = dynamic_uses(tree)
    if uses:
        raise NoKey(f"line {uses[0].line} uses {uses[0].what}, whose reach cannot be known")
    for use in line_uses(tree):
        raise NoKey(f"line {use.line} uses {use.what}: {inputs.LINES_ARE_NO_INPUT}")
    for line, module in star_imports(tree):
        if is_user_code(module):
            raise NoKey(f"line {line} imports * from {module}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "get_ipython":
            command = "; --trust-shell keeps what it prints and leaves" if _is_only_shell(tree) else ""
            raise NoKey(f"line {node.lineno} runs a magic or the shell itself{command}")


def _is_only_shell(tree: ast.Module) -> bool:
    """Whether the cell asks the shell for nothing but commands."""
    left = ast.walk(without_shell_calls(tree))
    return not any(isinstance(node, ast.Name) and node.id == "get_ipython" for node in left)


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
        unmet = inputs.still_holds(manifest["observed"], cell.namespace, cell.inputs.traversal)
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
    recent = cell.entries.recent(cell.identity)
    if recent:
        cell.expected = float(recent[0].get("seconds", 0.0))
    if cell.options.force:
        cell.why_missed = "--force was given"
    if cell.why_missed:
        return
    if not recent:
        cell.why_missed = "no run of this cell is stored"
        return
    inputs.summarise(cell.inputs)
    changes = min(
        (inputs.difference(cell.inputs.rows, cell.inputs.summaries, manifest) for manifest in recent), key=len
    )
    cell.changes = changes
    cell.why_missed = str(changes[0]) if changes else "its inputs share objects otherwise than before"
    if len(changes) > 1:
        cell.why_missed += f" and {len(changes) - 1} more"


# -- a hit -----------------------------------------------------------------------------------------


def _prepare(cell: _Cell, entry: Entry) -> Prepared:
    """Everything of a hit that may fail; the namespace is not touched."""
    pickled, buffers = entry.payload()
    keeping.note_contents(buffers, entry.manifest.get("contents", ()))
    source = cell.source()
    is_loaded = all(map(sys.modules.__contains__, inputs.imported_modules(cell.body.tree, parts=False)))
    holding: AbstractContextManager[list[outputs.Stream]] = (
        nullcontext([]) if is_loaded else outputs.held_back()
    )
    with holding as heard:  # an import prints again what the record tells already
        payload, defined, known = keeping.unpack(
            source,
            entry.manifest["definitions"],
            pickled,
            buffers,
            entry.manifest.get("referred"),
            entry.manifest.get("parts"),
        )
    if not process.can_restore(payload["process"]):
        raise NotStorable("what the cell changed in the process cannot be brought back here")
    traversal = source.inputs.traversal
    return Prepared(
        bound={**defined, **payload["names"]},
        deleted=list(entry.manifest["deleted"]),
        states=[(traversal.object_at(root, number), state) for root, number, state in payload["states"]],
        events=[*outputs.not_recorded(heard, payload["events"]), *payload["events"]],
        results=payload["results"],
        annotations=payload["annotations"],
        process=payload["process"],
        imported=not is_loaded,
        keep_alive=known,
    )


def _restore(cell: _Cell, entry: Entry, prepared: Prepared) -> Run:
    """Commit a prepared hit and show what the run showed."""
    gone = [*prepared.bound, *prepared.deleted, *(("___",) if prepared.results else ())]
    replaced = [cell.namespace[name] for name in gone if name in cell.namespace]
    with interrupts_deferred():
        for live, state in prepared.states:
            put_state(live, state)
        rebind(cell.namespace, prepared.bound, prepared.deleted)
        if prepared.annotations:
            cell.namespace.setdefault("__annotations__", {}).update(prepared.annotations)
        process.restore_process(prepared.process)
        entry.used()
    replay(cell.shell, prepared.events, prepared.results)
    if cell.watch is not None:
        cell.watch.restored(replaced, cell.namespace, in_place=bool(prepared.states) or prepared.imported)
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


# -- a miss ----------------------------------------------------------------------------------------


async def _run(cell: _Cell) -> Run:
    """Run the cell once, with its output live, and store what it left."""
    if cell.watch is not None:
        cell.watch.forget()
    record = Record()
    before = _Before.now(cell)
    error: BaseException | None = None
    body_seconds = 0.0

    def is_to_be_stored() -> bool:
        return error is None and cell.no_key is None and not _is_too_short(cell, body_seconds)

    with (
        _bar(cell),
        openfiles.watch() as seen,
        recording(cell.shell, record, silenced=cell.body.silenced, is_wanted=is_to_be_stored),
    ):
        began = time.perf_counter()
        error = await cell.execute(cell.body)
        body_seconds = time.perf_counter() - began
    cell.clears_next = record.clears_next
    if cell.options.auto:
        auto.note_seconds(cell.body.source, body_seconds)
    generators.unwrap(cell.namespace)
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
        try:
            stored = _guarded(cell, lambda: _store(cell, record, before, seen, body_seconds))
        except KeyboardInterrupt as interrupt:
            interrupt.add_note("while it was stored: the cell has run to its end, and is not stored")
            raise
        run = stored or replace(run, reason=cell.no_key or "")
    return replace(run, seconds=time.perf_counter() - cell.started, changes=cell.changes)


def _is_too_short(cell: _Cell, body_seconds: float) -> bool:
    """Whether automatic mode does not store a run of this length."""
    return cell.options.auto and body_seconds < auto.min_seconds()


@dataclass(frozen=True)
class _Before:
    """What a run may change, as it was."""

    bindings: dict[str, object]
    process: process.ProcessState
    figures: set[int]  # open in pyplot
    modules: set[str]  # loaded
    effects: Effects | None  # on libraries; not watched if the run is not to be stored

    @classmethod
    def now(cls, cell: _Cell) -> _Before:
        shell, found = cell.shell, cell.inputs
        touched = found.names.touched if found else ()
        bindings = user_bindings(shell.user_ns, shell.user_ns_hidden, touched)
        effects = None
        if found is not None and cell.no_key is None:
            effects = _guarded(cell, lambda: cell.effects(found.traversal))
        return cls(bindings, process.process_state(), outputs.open_figures(), set(sys.modules), effects)


def _store(
    cell: _Cell, record: Record, before: _Before, seen: openfiles.Seen, body_seconds: float
) -> Run | None:
    """Store what the cell left; NotStorable says why not."""
    assert cell.inputs is not None
    assert cell.entries is not None
    if _is_too_short(cell, body_seconds):
        cell.no_key = f"it ran shorter than {runs.duration(auto.min_seconds())}"
        return None
    observed: list[Sequence[str]] = [*environment.observed_rows(seen, trust_shell=cell.options.trust_shell)]
    if record.tracebacks:
        raise NotStorable("it shows the traceback of an error that did not end it")
    if record.incomplete:
        raise NotStorable("what it printed through descriptors 1 and 2 did not arrive in time")
    printed = {event.name for event in record.events() if isinstance(event, outputs.Stream)}
    for name in outputs.streams_of_the_user(is_user_code):
        if name in printed:
            raise NotStorable(f"it prints to sys.{name}, which the notebook replaced")
    changed = cell.inputs.ignored.changed()
    if changed:
        raise NotStorable(f"it changes `{changed[0][0]}`, which --ignore leaves out")
    if not cell.asked.is_known:
        raise NotStorable("one of its iterations did what a hit could not bring back")
    observed += cell.asked.rows
    observed += inputs.rows_of_imports(before.modules, cell.inputs.traversal)
    observed += inputs.rows_of_named_files(cell.body.tree, cell.inputs.traversal, seen)
    opened = outputs.open_figures() - before.figures
    if opened:
        raise NotStorable(f"it leaves figure {min(opened)} open in pyplot; end with plt.close()")
    effect = before.effects.found() if before.effects is not None else None
    if effect is not None:
        raise NotStorable(effect)
    source = cell.source()
    after = user_bindings(cell.namespace, cell.shell.user_ns_hidden, cell.inputs.names.touched)
    left = keeping.what_is_left(cell.inputs, before.bindings, after, cell.options.names)
    observed += keeping.binding_rows(left, cell.inputs, cell.namespace)
    changes = process.process_changes(before.process)
    warned = shownonce.inside(before.process.warned, inputs.reached_functions(cell.inputs.traversal))
    observed += environment.warning_rows(warned, changes.get("warned", {}))
    kept = keeping.keep(source, left, record.values, record.events(), changes)
    inputs.summarise(cell.inputs, kept.changed)
    if cell.doubted is not None:
        _compare_runs(cell, kept)
    if (
        cell.options.auto
        and auto.min_seconds()
        and _costs_more_than_it_saves(kept, cell.inputs, body_seconds)
    ):
        raise NotStorable("bringing it back would take longer than running it")
    manifest = {
        "format": FORMAT,
        "identity": cell.identity,
        "cell": cell.body.source,
        "inputs": cell.inputs.rows,
        "summaries": cell.inputs.summaries,
        "observed": observed,
        "names": kept.names,
        "deleted": kept.deleted,
        "definitions": kept.definitions,
        "referred": kept.referred,
        "parts": kept.parts,
        "seconds": body_seconds,
        "ran": time.time(),
        "left": kept.digests,
        "contents": kept.contents,
    }
    trace = blake3.blake3(dumps(observed, sort_keys=True).encode()).hexdigest(8)
    size = cell.entries.write(
        cell.inputs.key,
        trace,
        manifest,
        kept.pickled,
        kept.buffers,
        seconds=body_seconds,
        codec=cell.options.compress,
    )
    if settings.current().check_store:
        _check_stored(cell.entries, cell.inputs.key, trace, kept)
    cell.entries.remember(cell.identity, cell.inputs.key)
    return Run(
        "miss",
        cell.why_missed,
        body_seconds=body_seconds,
        digest_seconds=cell.inputs.seconds,
        bytes=size,
        inputs=cell.inputs.rows,
        names=tuple(kept.names),
        identity=cell.identity,
        key=cell.inputs.key,
        trace=trace,
    )


def _check_stored(entries: Entries, key: str, trace: str, kept: keeping.Kept) -> None:
    """Read the entry back from where it was stored; what is not as it was packed is removed."""
    entry = next((entry for entry in entries.under(key) if entry.trace == trace), None)
    if entry is not None:
        pickled, buffers = entry.payload(check=True)
        packed = [buffer.raw() for buffer in kept.buffers]
        if bytes(pickled) == kept.pickled and list(map(bytes, buffers)) == list(map(bytes, packed)):
            return
        entries.delete(entry)
    raise NotStorable("what was stored did not read back as it was")


def _compare_runs(cell: _Cell, kept: keeping.Kept) -> None:
    """Warn if a run left something else than the stored run with the same inputs."""
    assert cell.doubted is not None
    before: Mapping[str, str] = cell.doubted.manifest.get("left", {})
    differing = sorted(
        name for name in {*before, *kept.digests} if before.get(name) != kept.digests.get(name)
    )
    if differing:
        cell.warnings.append(
            f"--verify: {runs.joined(tuple(differing))} came out otherwise than in the stored run, although "
            "every input is as it was: it depends on something that is no input (the clock, the network, "
            "an unseeded generator); name it with --key or let the entry end with --expires"
        )


def _costs_more_than_it_saves(kept: keeping.Kept, found: Inputs, body_seconds: float) -> bool:
    size = len(kept.pickled) + sum(int(buffer.raw().nbytes) for buffer in kept.buffers)
    return bool(RESTORE_SECONDS + found.seconds + size / RESTORE_BYTES_PER_SECOND > body_seconds)


def _bar(cell: _Cell) -> AbstractContextManager[object]:
    """A bar with the time that is left, going by the last run."""
    if cell.expected is None or cell.expected < BAR_FROM_SECONDS or cell.options.quiet:
        return nullcontext()
    return show(Tracker(None, "cell", cell.expected), interrupt_main_thread, keep="never")


# -- telling ---------------------------------------------------------------------------------------


def _report(cell: _Cell, run: Run) -> None:
    run = runs.note_run(_placed(cell, run))
    for warning in cell.warnings:
        outputs.show_note(cell.shell, runs.warning_html(warning), f"ipyparcache: {warning}", kind="warning")
    if cell.options.quiet or settings.current().quiet or (cell.options.auto and run.status == "not stored"):
        return
    if cell.clears_next:
        return
    if cell.options.plain:
        print(runs.status_line(run), file=sys.stderr)
        return
    outputs.show_note(
        cell.shell, runs.status_html(run), runs.status_line(run), kind="status", status=run.status
    )


def _placed(cell: _Cell, run: Run) -> Run:
    return replace(run, execution_count=cell.shell.execution_count - 1, cell=cell.body.source)


_watches: WeakKeyDictionary[Any, unchanged.Watch] = WeakKeyDictionary()


def install(shell: Any) -> None:
    """Start watching what only a watcher from the beginning can know: imports, seeds."""
    watch = _watches[shell] = unchanged.Watch(shell)
    watch.install()
    environment.install(user_cells_ran=shell.execution_count > 2)
    shell.events.register("post_run_cell", _unwrap_names)


def uninstall(shell: Any) -> None:
    """Stop what `install` started."""
    environment.uninstall()
    watch = _watches.pop(shell, None)
    if watch is not None:
        watch.uninstall()
    if _unwrap_names in shell.events.callbacks["post_run_cell"]:
        shell.events.unregister("post_run_cell", _unwrap_names)


def _unwrap_names(*_result: object) -> None:
    """A cell may have imported by name a function that is wrapped as long as the extension is loaded."""
    generators.unwrap(vars(sys.modules["__main__"]))
