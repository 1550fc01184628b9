"""One loop of a parallel cell while it runs: elements out in chunks, what they did merged in their order."""

from __future__ import annotations

import ast
import operator
import time
import uuid
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, Literal, cast

from ipyparcache.analysis import refusals
from ipyparcache.analysis.body import ITERABLE, replaced
from ipyparcache.analysis.parfor import Parfor
from ipyparcache.cells import failures, standins, travel, watching
from ipyparcache.cells.aliasing import code_in, reached
from ipyparcache.cells.calls import change_by_call, changes_itself
from ipyparcache.cells.chunks import Chunk, Reader, size_of
from ipyparcache.cells.dropped import settle_dropped
from ipyparcache.cells.elements import Sizes, Source
from ipyparcache.cells.facts import draws_into, goes_over_drawn
from ipyparcache.cells.interrupts import Interrupts
from ipyparcache.cells.iteration import Task
from ipyparcache.cells.journal import read_journal
from ipyparcache.cells.launch import (
    Launch,
    LocalModules,
    figures_open,
    keeps_references,
    runs_in_loop,
    seeded_libraries,
)
from ipyparcache.cells.leftovers import leftover
from ipyparcache.cells.loopcache import LoopCache, open_cache
from ipyparcache.cells.merging import Merger, StoppedInside
from ipyparcache.cells.messages import Body, ChunkResult, Packed, is_plain_sequence
from ipyparcache.cells.ownitems import OwnItems, carried
from ipyparcache.cells.plans import CellPlan, Host, LoopReport, refused
from ipyparcache.cells.relaying import Relay
from ipyparcache.cells.replay import Replayer
from ipyparcache.cells.seeds import draw_from, put_states, seeded_by
from ipyparcache.cells.threads import ThreadTask, routed_streams
from ipyparcache.cells.tracebacks import below, sources_of, without_our_frames
from ipyparcache.engine.cpus import cpu_count
from ipyparcache.engine.outcome import Error, Outcome, Value
from ipyparcache.errors import LoopRefused
from ipyparcache.parallel.dispatch import Options, run_tasks
from ipyparcache.progress.tracker import Tracker
from ipyparcache.progress.widget import show


def drained(stream: Iterable[list[Any]]) -> list[Any]:
    """All elements of a loop, which is run for that; raises what ended it."""
    found: list[Any] = []
    stopped: BaseException | None = None
    try:
        for part in stream:
            found.extend(part)
    except StoppedInside as carrier:
        stopped = carrier.error
    if stopped is not None:
        raise stopped
    return found


def streamed(stream: Iterable[list[Any]]) -> Generator[Any, None, None]:
    """The elements of a loop, which runs while they are asked for."""
    try:
        for part in stream:
            yield from part
    except StoppedInside as carrier:
        raise RuntimeError("generator raised StopIteration") from carrier.error
    except Exception as error:
        without_our_frames(error)
        raise


class LoopRun:
    """One loop while it runs.

    Iterations are sent in chunks sized by their measured time; what a chunk did is merged when all chunks
    before it
    have been merged and it was found to have changed nothing but what it may.
    """

    def __init__(self, parfor: Parfor, plan: CellPlan, host: Host) -> None:
        self.parfor = parfor
        self.options = plan.options
        self.launch = Launch(parfor, host.namespace)
        self.host = host
        self.namespace = host.namespace
        self.report = LoopReport(parfor.line, title=parfor.title)
        self.interrupts = Interrupts()
        self.jobs = jobs_of(self.options.jobs)
        self.chunks: dict[int, Chunk] = {}
        self.sent = 0
        self.token = uuid.uuid4().hex
        self.holding = False
        self.front = 0
        self.by_task: dict[int, Chunk] = {}
        self._tasks_sent = 0
        self.cache: LoopCache | None = None
        self._not_kept: Counter[str] = Counter()
        self._key: str | None = None
        self.merged = 0
        self._iterations_sent = 0
        self._stop_feeding = False
        self._source_error: tuple[int, BaseException] | None = None
        self._left: int | None = None
        self._iterable: object = None
        self.source: Source | None = None
        self._beside: dict[str, object] = {}  # what the body reads and the iterable may change, by its name
        self.replayer: Replayer | None = None
        self.parcel: travel.Parcel | None = None
        self.given_up: frozenset[str] = frozenset()
        self.is_streamed = False

    @property
    def _may_hold(self) -> bool:
        """Whether large temporaries may stay with the workers.

        Those of our own pool, until this run is over.
        """
        is_ours = BACKENDS.get(self.options.backend, self.options.backend) == "processes"
        return is_ours and self.cache is None and not self.holding

    @property
    def expected(self) -> int | None:
        """How many iterations there will be, if the iterable tells."""
        return self._left

    # before it starts

    def prepare(self) -> None:
        """Evaluate the iterable and pack what the body reads.

        Raises
        ------
        LoopRefused
            If live values show what the text did not: an alias, something that cannot travel.
        """
        parfor, namespace = self.parfor, self.namespace
        self.counters = self.launch.counters(goes_on=self.options.on_error == "collect")
        self.launch.check_guards()
        self.launch.check_printing(self.options)
        self._is_threaded = BACKENDS.get(self.options.backend, self.options.backend) == "threads"
        self.own = OwnItems(namespace) if self._is_threaded else OwnItems.of(parfor, namespace)
        if not self._is_threaded:
            self.launch.check_hashes()
        self.launch.check_methods(self.own.roots)
        self.launch.check_generators()
        self.launch.check_drawing()
        self.launch.check_drawn()
        self.launch.check_tables()
        self.local = LocalModules()
        self._in_loop = runs_in_loop()
        seeds_itself = self.options.seed is None and not self._is_threaded
        self._seeds = seeded_by(parfor, namespace) if seeds_itself else ()
        if seeds_itself:
            drawn = draw_from(set(seeded_libraries()).difference(self._seeds), parfor, namespace)
            if drawn is not None:
                raise refused(drawn)
        change = change_by_call(parfor, namespace, lambda name: name == travel.MAIN)
        if change is not None:
            raise refused(change)
        self._pack(())
        # A number or text has no place of its own: elements are looked up only where something could be met
        # again.
        self.replayer = Replayer(parfor, namespace, self.host.file_name, self.host.write)

    def _pack(self, more: Sequence[object]) -> None:
        """Pack what the body reads, and the code in `more` with what that reads; check what they lead to."""
        parfor, namespace = self.parfor, self.namespace
        names = set(parfor.reads) | {n for n in parfor.names_in_strings if n in namespace}
        names -= self.own.picked_roots
        if not self._is_threaded:
            names -= self.launch.lengths()[0]
        left_out = (set(parfor.changed) | set(parfor.temporaries) | self.own.picked_roots) - names
        try:
            self.parcel = travel.pack(
                namespace,
                sorted(names - left_out),
                self.local,
                more,
                standins.replaced(),
                left_out,
                self.launch.attributes_asked(),
            )
        except travel.NotTravelling as error:
            if not self._is_threaded:
                kind = refusals.CompiledBefore if error.outdated else refusals.CannotTravel
                raise refused(kind(parfor.line, error.name, error.why)) from None
            self.parcel = travel.Parcel(b"", [], {}, {}, {})
        if self._is_threaded:
            self.launch.check_threads(self.parcel)
            for table in parfor.columns:
                raise refused(refusals.CarriedContainer(table.line, table.root, table.line), namespace)
            for rows in parfor.own_rows:
                if rows.changes:
                    raise carried(rows, namespace)
        if not self.launch.check_picked(self.parcel, self.own):
            self._pack(more)
            return
        self.launch.check_readers(self.parcel)
        self.changes = self.launch.check_aliases(self.parcel, self._is_user_code)
        self.exempt = self.launch.own_numbers(self.parcel, self.own)

    @contextmanager
    def iterable_at_hand(self) -> Iterator[ast.expr | None]:
        """The evaluated iterable under a name of the namespace; None if it was not evaluated yet."""
        if self.source is None:
            yield None
            return
        self.namespace[ITERABLE] = self._iterable
        try:
            yield ast.copy_location(ast.Name(ITERABLE, ast.Load()), self.parfor.iterable)
        finally:
            self.namespace.pop(ITERABLE, None)

    def start(self) -> None:
        """Evaluate the iterable: from here on the loop has begun."""
        code = compile(
            ast.fix_missing_locations(ast.Expression(self.parfor.iterable)), self.host.file_name, "eval"
        )
        self._iterable = iterable = eval(code, self.namespace)
        for name in self.parfor.changed:
            if self.namespace.get(name, self) is iterable and not isinstance(iterable, dict):
                line = self.parfor.changed[name][0]
                if not self.launch.writes_items_only(name):
                    raise refused(refusals.IterableChanged(self.parfor.line, name, line))
        if goes_over_drawn(iterable):
            raise refused(refusals.ElementDrawnInto(self.parfor.line))
        self.own.check_keys(iterable)
        self.launch.check_fitted(iterable)
        self._keys_read = self.launch.keys_read(iterable)
        code_of_elements = code_in(iterable, self._is_user_code)
        if code_of_elements:
            self._pack(code_of_elements)
        self._try_elements(iterable)
        self._check_itself(iterable)
        self.source = Source(iter(iterable))
        self.source.runs_user_code = self.launch.check_source(self.source.iterator, self.own.picked_roots)
        if self.source.runs_user_code and self.parcel is not None:
            self._beside = self.launch.beside_source(self.source.iterator, self.parcel)
        left = operator.length_hint(iterable, -1)
        self._left = left if left >= 0 else None

    def open_cache(self, statement: ast.stmt) -> None:
        """With `--cached`: find the entries of the loop's iterations."""
        if not self.options.cached or self._is_threaded:
            return
        self.cache, why = open_cache(self.parfor, statement, self.namespace, self.options.seed)
        if self.cache is None:
            self.report.notes.append(f"the iterations are not kept: {why}")

    def _task(self) -> Task | ThreadTask:
        assert self.parcel is not None
        parfor = self.parfor
        body = parfor.body if self._is_threaded else replaced(parfor.body, self.launch.lengths()[1])
        assert isinstance(body, ast.Module)
        code = compile(body, self.host.file_name, "exec", dont_inherit=True)
        # Where a replayed statement may raise, what iterations behind that one print is not to be seen.
        self.marked = len(self.launch.safe_sites()) < len(parfor.sites) and self.options.order != "free"
        by_content = frozenset(
            number
            for number, site in enumerate(parfor.sites)
            if not (
                site.method in ("item", "items", "attribute")
                and all(keeps_references(self.namespace.get(name)) for name in site.roots)
            )
        )
        seed = (self.options.seed,) if self.options.seed is not None else None
        if self._is_threaded:
            return ThreadTask(
                code,
                self.namespace,
                parfor.temporaries,
                by_content,
                self.launch.safe_sites(),
                yields=parfor.yields,
                retries=self.options.retries,
                seed=seed,
                counters=self.counters,
                marks=self.marked,
            )
        return Task(
            Body(
                code,
                tuple(n for n in parfor.temporaries),
                by_content,
                frozenset(self.local.names),
                seed,
                parfor.yields,
                tuple(n for n in seeded_libraries() if n not in self._seeds) if seed is None else (),
                self.options.retries,
                self.token if self._may_hold else "",
                self.cache.entries.secret if self.cache is not None else self.host.secret,
                self.cache is not None,
                tuple(
                    (rows.root, rows.site, rows.position, rows.column)
                    for rows in (*self.own.whole, *self.own.picked)
                    if rows.changes
                ),
                tuple(
                    (rows.root, rows.position, type(self.namespace[rows.root]) is list)
                    for rows in self.own.picked
                ),
                self.exempt,
                {refit.root: refit.site for refit in parfor.refits},
                self.launch.safe_sites(),
                figures_open(),
                self.marked,
                self.counters,
                self._seeds,
                self._in_loop,
                sources_of([code, *self.parcel.codes()]),
                self.parcel.data,
                tuple(self.parcel.buffers),
            )
        )

    # the elements

    def _elements(self) -> Iterator[tuple[object, ...]]:
        """The arguments of the tasks: chunks of elements, drawn when they are wanted."""
        assert self.source is not None
        while not self._stop_feeding:
            size = self._sizes.following(self._iterations_sent, self._left)
            items: list[Any] = []
            ended = False
            self.interrupts.waiting = False
            before = {n: self._state(obj) for n, obj in self._beside.items()}
            try:
                ended = self.source.draw(items, size, self._iterations_sent)
            except BaseException as error:
                self._source_error = (self._iterations_sent + len(items), error)
                ended = True
            finally:
                self.interrupts.waiting = True
            for name, state in before.items():
                if not watching.is_as(self._state(self._beside[name]), state):
                    self._source_error = self._iterations_sent, self._source_changes(name)
                    return
            if items and not self._restored(items):
                sent, objects = self._packed(items)
                if items:
                    yield self._chunk_of(items, sent, objects)
                if self._source_error is not None:
                    return
            if self.source.holds_one:
                ended = False
            if ended:
                return

    def _check_itself(self, iterable: object) -> None:
        """What hands out the elements and changes by it must not be read by the body."""
        if not changes_itself(iterable, lambda name: name == travel.MAIN):
            return
        for name in sorted(self.parfor.reads & self.namespace.keys()):
            if self.namespace[name] is iterable and name not in self.launch.lengths()[0]:
                raise self._source_changes(name)

    def _source_changes(self, name: str) -> LoopRefused:
        return refused(refusals.SourceChanges(self.parfor.line, name))

    def _packed(self, items: list[Any]) -> tuple[object, list[dict[int, object]]]:
        """The elements as they are sent, and what they lead to.

        From the first that cannot be sent on they are taken out of the list: the loop ends there, behind the
        iterations before it.
        """
        first = self._iterations_sent
        objects: list[dict[int, object]] = []
        parts: list[tuple[bytes, list[Any]]] = []
        is_plain = not self._is_threaded and not self.own.picked and is_plain_sequence(items)
        for number, item in enumerate(() if is_plain else items, first):
            try:
                if self._is_threaded:
                    self._check_element(number, reached([item], self.namespace) if self.changes.roots else ())
                    continue
                own = self.own.of_element(item)
                data, buffers, found = self._pack_element(number, (item, own) if own else item)
                self._check_element(number, found.values())
            except LoopRefused as error:
                self._source_error = number, error
                del items[number - first :]
                break
            parts.append((data, buffers))
            objects.append(found)
        return Packed(tuple(parts)) if parts else items, objects

    def _pack_element(self, number: int, item: object) -> tuple[bytes, list[Any], dict[int, object]]:
        assert self.parcel is not None
        if draws_into(item) or (type(item) is tuple and any(map(draws_into, item))):
            raise refused(refusals.ElementDrawnInto(self.parfor.line))
        try:
            return travel.pack_element(item, self.parcel, self.namespace, self.local)
        except Exception as error:
            why = f"element {number} of the loop is a {type(item).__name__}: {error}"
            raise refused(refusals.CannotTravel(self.parfor.line, "the element", why)) from None

    def _try_elements(self, iterable: object) -> None:
        """Pack one element of each kind, where they can be seen already: what cannot travel is found now."""
        if self._is_threaded or type(iterable) not in (list, tuple):
            return
        kinds: dict[type, int] = {}
        for number, item in enumerate(islice(cast(list[object], iterable), ELEMENTS_TRIED)):
            kinds.setdefault(type(item), number)
        for kind, number in kinds.items():
            if kind not in travel.ATOMS:
                self._pack_element(number, cast(list[object], iterable)[number])

    def _chunk_of(
        self, items: list[Any], sent: object, objects: list[dict[int, object]]
    ) -> tuple[object, ...]:
        first = self._iterations_sent
        chunk = Chunk(self.sent, first, len(items), objects)
        chunk.key = self._key
        self._enlist(chunk)
        self.by_task[self._tasks_sent] = chunk
        self._tasks_sent += 1
        return first, sent, self.cache is None

    def _check_element(self, number: int, objects: Iterable[object]) -> None:
        """What an element leads to must not be changed by the loop's statements: it was sent before that."""
        root = self.changes.met_in(objects)
        if root is not None:
            raise refused(
                refusals.SharedWithElement(self.parfor.line, root, number, self.parfor.changed[root][0])
            )

    def _enlist(self, chunk: Chunk) -> None:
        self.chunks[chunk.number] = chunk
        self.sent += 1
        self._iterations_sent += chunk.count
        assert self.source is not None
        said = self.source.said.pop(chunk.first, "")
        if said:
            chunk.events.insert(0, ("stdout", said.encode("utf-8", "surrogatepass")))

    def _restored(self, items: Sequence[Any]) -> bool:
        """Whether the iteration over these elements (one of them) was found in the store.

        And enlisted as over.
        """
        if self.cache is None:
            return False
        number = self._iterations_sent
        key = self._key = self.cache.key_of(number, items[0])
        found = self.cache.find(key) if key is not None else None
        if found is not None:
            self.report.asked = None  # its entry knows what it asked, this run does not
        if found is None:
            return False
        data, buffers, events = found
        chunk = Chunk(self.sent, number, 1, [], events)
        chunk.records[number] = (data, buffers)
        chunk.result = ChunkResult()
        self._enlist(chunk)
        self._tracker.from_cache(1)
        self.report.restored += 1
        return True

    # running

    def iterate(self) -> Generator[list[Any], None, None]:
        """Run the loop; yields the elements of a comprehension.

        Iteration by iteration, as they are merged.
        """
        begun = time.monotonic()
        tracker = Tracker(self._left, self.parfor.title)
        tracker.start()
        self._tracker = tracker
        wanted = self.options.progress is not False and not self.options.no_progress
        keep: Literal["always", "never"] = "never" if self.options.quiet else "always"
        bar = show(tracker, self.interrupts.asked.set, keep=keep) if wanted else None
        status: Literal["done", "failed", "interrupted"] = "failed"
        try:
            with self.interrupts.caught(), routed_streams() if self._is_threaded else nullcontext():
                yield from self._run_tasks()
            status = "done"
        except GeneratorExit:
            status = "done"
            raise
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            tracker.finish(status)
            if bar is not None:
                bar.close()
            self.report.seconds = time.monotonic() - begun
            self._note_not_kept()
            self._settle_dropped()

    def _run_tasks(self) -> Iterator[list[Any]]:
        tasks = self._begun()
        try:
            while (following := self._next_outcome(tasks)) is not None:
                self._take_outcome(*following)
                yield from self._merge_ready()
                if self._source_error is not None and self._source_error[0] == self.report.iterations:
                    break
            yield from self._concluded()
        except GeneratorExit:
            self._note_read_ahead()
            raise
        except BaseException as error:
            self._abandon(error)
            raise
        finally:
            tasks.close()

    def _begun(self) -> Generator[tuple[int, Outcome], None, None]:
        """The tasks of the loop, whose outcomes come as they are asked for."""
        options = Options(
            n_jobs=self.jobs,
            backend=BACKENDS.get(self.options.backend, self.options.backend),
            batch=1,
            timeout=self.options.timeout,
            on_error="collect",
            inner_threads=self.options.inner_threads,
            capture=True,
        )
        task = self._task()
        assert self.parcel is not None
        assert self.replayer is not None
        self._reader = Reader(self.parcel, self.namespace, self.replayer.by_name)
        self._relay = Relay(
            self.host,
            self.options,
            self._reader,
            self.report.figures,
            task.shown if isinstance(task, ThreadTask) else {},
            marked=self.marked,
            prints_here=any(site.prints for site in self.parfor.sites),
            keeps=self.cache is not None,
        )
        shows = bool(self.parfor.sites or self.parfor.temporaries)
        is_generator = self.source is not None and self.source.is_generator
        self._merger = Merger(
            self.parfor,
            self.host,
            self.options,
            self.report,
            self._reader,
            self._relay,
            self.replayer,
            stops_early=self.is_streamed and (shows or is_generator),
            keys_read=self._keys_read,
            measured={id(self.namespace[name]): name for name in self.launch.lengths()[0]},
        )
        self._sizes = Sizes(self.options, self.jobs, is_cached=self.cache is not None)
        self._states_before = self._states() if self._is_threaded else {}
        tasks = run_tasks(
            task,
            self._elements(),
            options,
            on_event=self._take_event,
            cancelled=self.interrupts.asked,
        )
        assert isinstance(tasks, Generator)
        return tasks

    def _concluded(self) -> Iterator[list[Any]]:
        """Merge what is left to merge and raise what ended the loop."""
        yield from self._merge_ready()
        if self.source is not None and self.source.said_last:
            self.host.write("stdout", self.source.said_last)
        if self.interrupts.asked.is_set():
            raise KeyboardInterrupt
        self._check_states(self._states_before)
        if self._source_error is not None:
            raise below(self._source_error[1], self.host.file_name, self.parfor.line)

    def _abandon(self, error: BaseException) -> None:
        self._stop_feeding = True
        if self._is_threaded:
            text = "with --backend threads, changes that later iterations made to elements in place stay"
            self.report.notes.append(text)
        if isinstance(error, KeyboardInterrupt):
            self._merge_interrupted()
        self._keep_partial()
        self._note_read_ahead()

    def receive(self, tracker: Tracker) -> None:
        """Run the loop without touching the namespace: `conclude` merges what it did."""
        begun = time.monotonic()
        self._tracker = tracker
        self.holding = True
        try:
            tasks = self._begun()
            try:
                while (following := self._next_outcome(tasks)) is not None:
                    self._take_outcome(*following)
                    self._advance_front()
            finally:
                tasks.close()
        finally:
            self.report.seconds = time.monotonic() - begun

    def conclude(self) -> Generator[list[Any], None, None]:
        """After `receive`: merge what the iterations did, and raise what ended the loop."""
        self.holding = False
        try:
            yield from self._concluded()
        except GeneratorExit:
            raise
        except BaseException as error:
            self._abandon(error)
            raise
        finally:
            self._note_not_kept()
            self._settle_dropped()

    def _advance_front(self) -> None:
        while self.front in self.chunks and self.chunks[self.front].is_over:
            self._relay.show(self.chunks[self.front])
            self.front += 1
            if self.front in self.chunks:
                self._relay.show_live(self.chunks[self.front], is_held=True)

    def _next_outcome(self, tasks: Iterator[tuple[int, Outcome]]) -> tuple[int, Outcome] | None:
        self.interrupts.waiting = True
        try:
            return next(tasks, None)
        finally:
            self.interrupts.waiting = False

    def _states(self) -> dict[int, watching.State]:
        """Own states of what threads share, to see afterwards whether they changed it side by side."""
        assert self.parcel is not None
        found = {n: self._state(obj) for n, obj in self.parcel.objects.items()}
        return {n: state for n, state in found.items() if state != ("constant",)}

    def _is_user_code(self, name: object) -> bool:
        return name == travel.MAIN or (isinstance(name, str) and name in self.local.names)

    def _state(self, obj: object) -> watching.State:
        return watching.state_of(obj, self._is_user_code)

    def _check_states(self, before: Mapping[int, watching.State]) -> None:
        assert self.parcel is not None
        for number, state in before.items():
            obj = self.parcel.objects[number]
            if not watching.is_as(self._state(obj), state):
                last = max(0, self.report.iterations - 1)
                raise failures.changed_side_by_side(obj, last, self.parfor, self._reader)

    def _settle_dropped(self) -> None:
        assert self.replayer is not None
        settle_dropped(self.replayer.dropped, self.given_up, self.token, self.host, self.parfor.line)

    def _take_event(self, number: int, event: object) -> None:
        chunk = self.by_task[number]
        live = self.front if self.holding else self.merged
        self._relay.take(event, chunk, is_live=chunk.number == live, is_held=self.holding)

    def _take_outcome(self, number: int, outcome: Outcome) -> None:
        chunk = self.by_task.pop(number)
        if isinstance(outcome, Value):
            result = outcome.value
            assert isinstance(result, ChunkResult)
            chunk.result = result
            assert self.parcel is not None
            result.lost = [e for e in result.lost if e[2] is None or e[2] in self.parcel.objects]
            for first, data, buffers in result.records:
                chunk.records[first] = (data, buffers)
            ran = result.ran
            if ran:
                size = 0 if self._is_threaded else size_of(chunk.records.values())
                self._sizes.measured(ran, result.seconds, size)
            ended = result.started + result.seconds
            has_failed = ran > 0 and result.failure is not None
            self._tracker.done_batch(ran - has_failed, result.seconds, result.pid)
            if has_failed:
                self._tracker.failed(chunk.first + ran - 1)
            self.report.rows.append((result.pid, result.started, ended, chunk.first, ran))
            if self.host.secret is not None:
                self.report.asked = _joined_rows(self.report.asked, result.observed)
            if self.cache is not None:
                self._store(chunk, result, self.cache)
            if result.failure is not None or result.loses:
                self._stop_feeding = self._stop_feeding or self.options.on_error != "collect" or result.loses
        else:
            chunk.error = outcome
            chunk.at = self._read_what_is_left(chunk, outcome)
            if not self.interrupts.asked.is_set():  # else it has not failed: it was ended
                self._tracker.failed(chunk.first, outcome.seconds, outcome.worker)
            if self.options.on_error != "collect":
                self._stop_feeding = True

    def _store(self, chunk: Chunk, result: ChunkResult, cache: LoopCache) -> None:
        """Keep what an iteration left, or note why it cannot be kept."""
        if result.failure is not None or result.loses:
            return
        if chunk.key is None:
            self._not_kept["its element has no digest"] += 1
        elif self._seeds:
            self._not_kept["it seeds a global random generator, which is to be as it leaves it"] += 1
        elif result.observed is None:
            self._not_kept["it did what cannot be repeated from a store"] += 1
        elif self.parfor.refits:
            self._not_kept["it fits an object of the notebook"] += 1
        elif result.refers or self._changes_something(chunk):
            self._not_kept["it changes its element in place, or leaves objects of the notebook itself"] += 1
        else:
            record = chunk.records[chunk.first]
            cache.store(chunk.key, result.observed, record, chunk.events, result.seconds)

    def _changes_something(self, chunk: Chunk) -> bool:
        return any(left[3] for _, left in self._reader.iterations_of(chunk))

    def _note_not_kept(self) -> None:
        """Say below the cell which iterations a later run will not find, and why."""
        for why, count in self._not_kept.items():
            what = "1 iteration is" if count == 1 else f"{count} iterations are"
            self.report.notes.append(f"{what} not kept by --cached: {why}")
        if self.cache is not None and self.cache.problem is not None:
            self.report.notes.append(f"the iterations are not kept: {self.cache.problem}")

    def _read_what_is_left(self, chunk: Chunk, error: Error) -> int | None:
        """Take over what a worker had not sent when it died; the iteration that it ran, if that is known."""
        found = read_journal(error.memory)
        if found is None or not chunk.first <= found[0] < chunk.first + chunk.count:
            return None
        at, record = found
        if record is not None:
            chunk.records.setdefault(record[0], (record[1], []))
        return at

    # merging

    def _merge_ready(self) -> Iterator[list[Any]]:
        """Merge the chunks that are over, as far as all before them have been merged."""
        while self.merged in self.chunks and self.chunks[self.merged].is_over:
            chunk = self.chunks[self.merged]
            if chunk.result is not None:
                put_states(chunk.result.generators)
            together = not self.marked or not chunk.events
            if together:
                self._relay.show(chunk)
            yield from self._merger.merge(chunk)
            if not together:
                self._relay.show(chunk)
            del self.chunks[self.merged]
            self.merged += 1
            following = self.chunks.get(self.merged)
            if following is not None:
                self._relay.show_live(following, is_held=False)

    def _merge_interrupted(self) -> None:
        """After an interrupt: iterations of the lowest unfinished chunk that came home are merged."""
        chunk = self.chunks.get(self.merged)
        if chunk is None:
            return
        self._relay.show(chunk)
        expected = chunk.first
        for number, left in self._reader.iterations_of(chunk):
            if number != expected or (chunk.result is not None and chunk.result.failure is not None):
                break
            self._merger.apply(number, left, chunk)
            self.report.iterations += 1
            expected += 1

    def _keep_partial(self) -> None:
        """Later iterations that had finished are not lost."""
        for number in sorted(self.chunks):
            chunk = self.chunks[number]
            if number == self.merged and chunk.result is not None:
                continue
            for at, left in self._reader.iterations_of(chunk):
                if at >= self.report.iterations:  # the others were merged
                    self.report.partial[at] = leftover(at, left, self.parfor)

    def _note_read_ahead(self) -> None:
        ahead = self._iterations_sent - self.report.iterations - 1
        if ahead > 0 and self.source is not None and self.source.is_generator:
            self.report.notes.append(
                f"the iterator was read {ahead} elements ahead of the iteration that ended the loop"
            )


def jobs_of(jobs: int | None) -> int:
    """How many workers `-j` asks for: all processors without it, those left for a negative number."""
    if jobs is None:
        return cpu_count()
    return jobs if jobs > 0 else max(1, cpu_count() + 1 + jobs)


ELEMENTS_TRIED = 10_000  # elements of a list among which one of each kind is packed before the loop begins
BACKENDS = {"threading": "threads", "loky": "processes"}


def _joined_rows(rows: list[Any] | None, more: list[Any] | None) -> list[Any] | None:
    """Rows of all iterations, each once; None as soon as one iteration did what cannot be stored."""
    if rows is None or more is None:
        return None
    return list(dict.fromkeys([*rows, *map(tuple, more)]))
