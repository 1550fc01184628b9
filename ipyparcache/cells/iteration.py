"""A worker's side of a parallel loop: runs iterations and hands back, in order, what each of them did."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import pickle
import sys
import time
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ipyparcache.analysis.body import (
    CONTENT,
    HASHED,
    ITEM,
    KEY,
    LOG,
    NOW,
    REFIT,
    THROUGH,
    TRIED,
    UNBIND,
    UNBOUND,
    UNFINISHED,
    VALUE,
)
from ipyparcache.analysis.collected import TEXT as TEXT_OF
from ipyparcache.cells import arrivals, fileuses, holding, standins, travel, watching
from ipyparcache.cells.additions import owner_of
from ipyparcache.cells.arrivals import Key
from ipyparcache.cells.estimators import Fitted
from ipyparcache.cells.holding import Held
from ipyparcache.cells.journal import AT, Journal, record_of, told_plainly
from ipyparcache.cells.losses import Losses
from ipyparcache.cells.messages import (
    Body,
    ChunkResult,
    Failure,
    Left,
    Packed,
    Plain,
    Unfinished,
    brief,
    tried,
)
from ipyparcache.cells.showing import (
    AGAIN,
    AT_END,
    BEGINS,
    ENDED,
    RECORD,
    Showing,
    emit_event,
    put_out_so_far,
)
from ipyparcache.cells.tracebacks import know_sources, traceback_rows
from ipyparcache.cells.travel import ATOMS, MAIN

FLUSH_AFTER = 0.2  # seconds of work after which the records of finished iterations are sent
LARGE = 1 << 16  # bytes from which a record waits for the end of its chunk, to travel out of band
CHECK_SHARE = 0.005  # of the time of an iteration that looking for changes may cost, to be done after each


class KeyOf:
    """`KeyOf()[i, :]` is the key that `x[i, :]` would use."""

    def __getitem__(self, key: object) -> object:
        return key


class RandomStreams:
    """The random streams of an iteration: children of one seed, numbered by the iteration."""

    def __init__(self, entropy: tuple[int, ...]) -> None:
        self.entropy = entropy
        self._default_rng: Callable[..., Any] | None = None

    def begin(self, iteration: int) -> None:
        """Seed every global generator of this process for one iteration."""
        import random

        import numpy as np

        children = np.random.SeedSequence(list(self.entropy), spawn_key=(iteration,)).spawn(4)
        random.seed(int.from_bytes(children[0].generate_state(8).tobytes(), "little"))
        np.random.seed(children[1].generate_state(8))
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.manual_seed(int(children[2].generate_state(1, np.uint64)[0] >> 1))
        self._follow_default_rng(children[3])

    def _follow_default_rng(self, sequence: Any) -> None:
        import numpy as np

        if self._default_rng is None:
            self._default_rng = np.random.default_rng
        plain = self._default_rng

        def default_rng(seed: Any = None) -> Any:
            return plain(sequence.spawn(1)[0] if seed is None else seed)

        np.random.default_rng = default_rng

    def end(self) -> None:
        """Give numpy its own `default_rng` back."""
        if self._default_rng is not None:
            import numpy as np

            np.random.default_rng = self._default_rng


class Task:
    """The callable that a worker keeps for one run of a loop: called with one chunk of elements at a time.

    It is built from a `Body` on the worker, at its first chunk.
    """

    def __init__(self, body: Body) -> None:
        self.body = body
        self.run: _Run | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Task, (self.body,)

    def __call__(self, first: int, items: object, emit_records: bool) -> ChunkResult:
        """Run the iterations over `items`, numbered from `first`; their records come early if they may."""
        if self.run is None:
            self.run = _Run(self.body)
        return self.run.chunk(first, items, emit_records)


class _Run:
    """State of one loop on one worker."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.arrived = travel.unpack(body.parcel, body.buffers)
        self.namespace = self.arrived.namespace
        self.is_local = body.local_modules.__contains__
        self.log: list[tuple[Any, ...]] = []
        self.unbound: list[str] = []
        self.unfinished = Unfinished(self.namespace)
        self.fitted = Fitted(self.namespace, self.log.append)
        self.known: dict[int, Key] = {
            id(obj): ("b", number)
            for number, obj in self.arrived.objects.items()
            if not travel.goes_by_name(obj, self.is_local)
        }
        self._bases = self._bases_of_parcel = travel.bases_of(self.arrived.objects.values())
        self.with_objects = any(not isinstance(o, travel.DEFINITIONS) for o in self.arrived.objects.values())
        self.random = RandomStreams(body.seed) if body.seed is not None else None
        self.patches = [patch for patch in self.arrived.patches if _differs(*patch)]
        if body.token:
            holding.begin(body.token)
        self.showing = Showing(self._sendable, self.patches, figures_open=body.figures_open)
        if _names("IPython", body):
            importlib.import_module("IPython.display")  # so that its functions can be replaced
        if body.in_loop and _names("asyncio", body):
            importlib.import_module("asyncio")  # so that it can be told that a loop runs
        know_sources(body.sources)
        self._hide()
        with self._as_main():  # digests of functions follow the names that they read there
            self.losses = Losses(body, self.arrived, self._is_user_code)
        self._refers = False
        if body.seed is None:
            _new_streams()
        self.losses.watch_generators()
        self.journal = Journal(None)

    @contextlib.contextmanager
    def _as_main(self) -> Iterator[None]:
        """Let the notebook's namespace stand for `__main__`."""
        before = sys.modules.get(MAIN)
        sys.modules[MAIN] = self.arrived.module
        try:
            yield
        finally:
            if before is not None:
                sys.modules[MAIN] = before

    def _hide(self) -> None:
        """Put what the rewritten body calls into the namespace."""
        self.namespace[LOG] = self._log_marked if self.body.marks else self.log.append
        self.namespace[KEY] = KeyOf()
        self.namespace[CONTENT] = self._content
        self.namespace[HASHED] = hashed
        self.namespace[UNBIND] = self.unbound.append
        self.namespace[UNFINISHED] = self.unfinished
        self.namespace[THROUGH] = self.unfinished.through
        self.namespace[REFIT] = self.fitted
        self.namespace[TRIED] = tried
        self.namespace[NOW] = functools.partial(now, self.namespace, self.body.safe)
        self.namespace[TEXT_OF] = text_of

    def _content(self, site: int, value: Any, ahead: Plain | None = None) -> Any:
        """The operand as it is now, where the target copies it; else the operand itself."""
        if type(value) in ATOMS or site not in self.body.by_content:
            return value
        return snapshot(value, None if ahead is None else partial_entry(self.log, site, ahead))

    def _is_unchanged(self, obj: object, before: watching.State) -> bool:
        return watching.is_unchanged(obj, before, self._is_user_code)

    def _is_user_code(self, name: object) -> bool:
        return name == MAIN or (isinstance(name, str) and name in self.body.local_modules)

    # one chunk

    def chunk(self, first: int, items: object, emit_records: bool) -> ChunkResult:
        """Run the iterations of a chunk, numbered from `first`."""
        with fileuses.noted() as uses, _inside_a_loop(self.body.in_loop):
            result = self._chunk(first, items, emit_records)
        if uses.found:
            result.files = uses.ended()
            result.ended = time.monotonic()
        return result

    def _chunk(self, first: int, items: object, emit_records: bool) -> ChunkResult:
        result = ChunkResult(started=time.monotonic(), pid=os.getpid())
        elements = items.elements if isinstance(items, Packed) else items
        assert isinstance(elements, Sequence | range)
        before = sys.modules.get(MAIN)
        sys.modules[MAIN] = self.arrived.module
        self.showing.begin()
        standins.put_in_place()
        checked = first
        self._flushed = result.started
        simple = not (isinstance(items, Packed) or self.random or self.body.own_rows or self.body.refits)
        self._raised: BaseException | None = None
        self._refers = False
        self.losses.begin()
        self.journal = Journal(_shared_memory())
        running = self.journal.words
        self._put_out = put_out_so_far() if self.body.marks else ()
        self._is_alone = len(elements) == 1
        seen = _watched(self.body.secret)
        observed = seen.__enter__() if seen is not None else None
        try:
            begun = result.started
            for number, element in enumerate(elements, first):
                running[AT] = number
                if simple and self._simple_iteration(number, element):
                    if self.body.marks:
                        self._mark(number)
                    ended = time.monotonic()
                    result.ran += 1
                    result.seconds += ended - begun
                    if ended - self._flushed > FLUSH_AFTER:
                        if emit_records:
                            self._flush(result, emit=True)
                        if self.losses.cost < CHECK_SHARE * (ended - begun):
                            self.losses.look(checked, number, result.lost)
                            if result.lost:
                                break
                            checked = number + 1
                        ended = time.monotonic()
                    begun = ended
                    continue
                if simple:
                    error, self._raised = self._raised, None
                    failed = self._keep(number, error, {}, {}, [], result, emit_records)
                else:
                    failed = self._iteration(number, element, isinstance(items, Packed), result, emit_records)
                for _ in range(self.body.retries if failed else 0):
                    emit_event(AGAIN, number)
                    self._forget(number, result)
                    failed = self._iteration(number, element, isinstance(items, Packed), result, emit_records)
                    if not failed:
                        break
                if self.body.marks and not failed:
                    self._mark(number)
                ended = time.monotonic()
                took, begun = ended - begun, ended
                result.ran += 1
                result.seconds += took
                if failed or result.earlier is not None:
                    break
                if self.losses.cost and self.losses.cost < CHECK_SHARE * took:
                    self.losses.look(checked, number, result.lost)
                    if result.lost:
                        break
                    checked = number + 1
            if not result.lost and checked < first + result.ran:
                self.losses.look(checked, first + result.ran - 1, result.lost)
        finally:
            if seen is not None:
                seen.__exit__(None, None, None)
            standins.put_back()
            self.showing.end()
            if self.random is not None:
                self.random.end()
            if before is not None:
                sys.modules[MAIN] = before
        self._flush(result, emit=False)
        self.journal.close()
        if observed is not None and result.failure is None and not result.loses:
            result.observed = _rows_of(observed)
        result.refers = self._refers
        if self.body.seeds:
            from ipyparcache.cells.seeds import states_of

            result.generators = states_of(self.body.seeds)
        return result

    def _mark(self, number: int, entry: int = AT_END) -> None:
        """Tell that what was put out since the last mark came before this entry of the iteration's log."""
        if put_out_so_far() != self._put_out:
            emit_event(ENDED, (number, entry))
            self._put_out = put_out_so_far()

    def _log_marked(self, entry: tuple[Any, ...]) -> None:
        """Log an entry that may raise when it is replayed: what is printed behind it would not be then."""
        if entry[0] not in self.body.safe:
            number = self.journal.words[AT]
            self._mark(number, len(self.log))
            if self._is_alone:  # what it prints is shown as it comes, but for what comes behind this
                self._is_alone = False
                emit_event(ENDED, (number, BEGINS))
                self._put_out = put_out_so_far()
        self.log.append(entry)

    def _simple_iteration(self, number: int, element: Any) -> bool:
        """Run an iteration over a plain element.

        False if it left more than plain values, and is still to be sent.
        """
        namespace, log = self.namespace, self.log
        for name in self.body.assigned:
            if name in namespace:
                del namespace[name]
        if log:
            log.clear()
        if self.unbound:
            self.unbound.clear()
        self.unfinished.clear()
        namespace[ITEM] = element
        for name, begin, step in self.body.counters:
            namespace[name] = begin + step * number
        try:
            exec(self.body.code, namespace)
        except BaseException as error:
            self._raised = error
            return False
        if self.unfinished:
            return False
        if self.showing.draws and self.showing.open_figures():
            return False
        for entry in log:
            for part in entry:
                if type(part) not in ATOMS:
                    return False
        bindings: Plain | dict[str, Any] = ()
        try:
            bindings = tuple([namespace[name] for name in self.body.assigned])
            if not ATOMS.issuperset(map(type, bindings)):
                return False
        except KeyError:
            bindings = {name: namespace[name] for name in self.body.assigned if name in namespace}
            if not ATOMS.issuperset(map(type, bindings.values())):
                return False
        if self.unbound and type(bindings) is not tuple:
            return False
        if self.body.yields:
            value = namespace[VALUE]
            if not ATOMS.issuperset(map(type, value)):
                return False
            done: tuple[Any, ...] = (tuple(log), bindings, value)
        else:
            done = (tuple(log), bindings)
        return self.journal.add(number, done)

    def _forget(self, number: int, result: ChunkResult) -> None:
        """Drop what a failed attempt left."""
        result.failure = result.earlier = None
        result.records = [record for record in result.records if record[0] != number]

    def _iteration(self, number: int, element: Any, packed: bool, result: ChunkResult, emit: bool) -> bool:
        """Run one iteration; whether it raised."""
        namespace, log = self.namespace, self.log
        objects: dict[int, object] = {}
        states: dict[int, watching.State] = {}
        whole: dict[str, watching.State] = {}
        for name in self.body.assigned:
            namespace.pop(name, None)
        log.clear()
        self.unbound.clear()
        self.unfinished.clear()
        failure: BaseException | None = None
        arrived: object = None
        rows: list[tuple[int, Any, Any, Any, Any]] = []
        try:
            if packed:
                data, buffers = element
                arrived, objects = travel.unpack_element(data, buffers, self.arrived)
                element = self._unpicked(arrived) if self.body.picked else arrived
                self.losses.note_late()
                states, whole = watching.states_of(objects, {ITEM: arrived}, self._is_user_code)
                self._bases = self._bases_of_parcel | travel.bases_of(objects.values())
            if self.random is not None:
                self.random.begin(number)
            namespace[ITEM] = element
            for name, begin, step in self.body.counters:
                namespace[name] = begin + step * number
            rows = self._own_rows(element)
            exec(self.body.code, namespace)
        except BaseException as error:
            failure = error
        self.fitted.end(self.body.refits, failure)
        for state in whole.values():
            if not self._is_unchanged(arrived, state):
                result.lost.append((number, number, None, f"the element of iteration {number}"))
        return self._keep(number, failure, objects, states, rows, result, emit)

    def _keep(
        self,
        number: int,
        failure: BaseException | None,
        objects: dict[int, object],
        states: dict[int, watching.State],
        rows: list[tuple[int, Any, Any, Any, Any]],
        result: ChunkResult,
        emit: bool,
    ) -> bool:
        """Record what the iteration left that has just run; whether it raised."""
        namespace, log = self.namespace, self.log
        if failure is None and "matplotlib.pyplot" in sys.modules:
            self.showing.end_figures()
        if self.showing.drew_on:
            self.showing.drew_on = False
            result.lost.append((number, number, None, "the current figure of pyplot"))
        self.unfinished.note(number, result, failed=failure is not None)
        value = namespace.pop(VALUE, None) if self.body.yields else None
        element = namespace.pop(ITEM, None)
        for row in rows:
            log.extend(_row_entry(*row))
        bindings = {name: namespace[name] for name in self.body.assigned if name in namespace}
        unbound = [name for name in self.unbound if name not in bindings]
        changes: list[tuple[int, str, Any]] = []
        for key, state in states.items():
            if not self._is_unchanged(objects[key], state):
                content = watching.content_of(objects[key])
                if content is None:
                    result.lost.append((number, number, None, f"the element of iteration {number}"))
                else:
                    changes.append((key, *content))
        left: Left = (list(log), bindings, unbound, changes, value, {})
        done = None
        if not (objects or unbound or changes) and failure is None:
            done = told_plainly(left, self.known)
        if done is not None:
            if not self.journal.add(number, done):
                self._flush(result, emit=emit)
                if not self.journal.add(number, done):
                    self._send((number, record_of(done), []), result, emit)
        else:
            self._flush(result, emit=emit and failure is None)
            known = self.known
            if objects:
                known = known | {id(obj): ("i", key) for key, obj in objects.items()}

            try:
                record = self._without_large(number, left, known, bool(objects)) if failure is None else None
                if record is None:
                    record = (number, *self._pickled([left], known, bool(objects)))
            except Exception as error:
                kept = {n: v for n, v in bindings.items() if self._travels(v, known, bool(objects))}
                dropped: dict[str, str | Held] = {
                    n: type(v).__name__ for n, v in bindings.items() if n not in kept
                }
                safe: Left = (list(log), kept, unbound, changes, value, dropped)
                try:
                    record = (number, *self._pickled([safe], known, bool(objects)))
                except Exception:
                    failure = failure or _unsendable(error, left)
                    entries = [e for e in log if self._travels(e, known, bool(objects))]
                    safe = (entries, kept, unbound, [], None, dropped)
                    record = (number, *self._pickled([safe], known, bool(objects)))
            self._send(record, result, emit and failure is None)
        if emit and time.monotonic() - self._flushed > FLUSH_AFTER:
            self._flush(result, emit=True)
        if failure is not None:
            self._flush(result, emit=False)
            result.failure = self._failure(number, failure, objects, element)
            return True
        return False

    def _own_rows(self, element: Any) -> list[tuple[int, Any, Any, Any, Any]]:
        """The items that are this iteration's own: site, container, key, place, value before."""
        found = []
        for root, site, position, column in self.body.own_rows:
            container = self.namespace[root]
            key = element if position is None else element[position]
            place = (slice(None), key) if column else key
            before = _MISSING
            with contextlib.suppress(LookupError, TypeError):
                before = container[place]
            found.append((site, container, key, place, before))
        return found

    def _unpicked(self, arrived: Any) -> Any:
        """The element of those that came with items of containers, which find their places."""
        element, items = arrived
        for (root, position, is_list), item in zip(self.body.picked, items, strict=True):
            key = element if position is None else element[position]
            self.namespace[root] = own = _Listed() if is_list else {}
            if item:
                own[key] = item[0]
        return element

    def _travels(self, value: object, known: dict[int, Key], objects: bool) -> bool:
        try:
            self._pickled(value, known, objects)
        except Exception:
            return False
        return True

    def _without_large(
        self, number: int, left: Left, known: dict[int, Key], objects: bool
    ) -> tuple[int, bytes, list[Any]] | None:
        """The record of an iteration whose large temporaries stay here; None if there are none that can."""
        entries, bindings, unbound, changes, value, _ = left
        if not self.body.token or not any(map(holding.is_large, bindings.values())):
            return None
        large = {name: v for name, v in bindings.items() if holding.is_large(v)}
        small = {name: v for name, v in bindings.items() if name not in large}
        kept = {name: Held(os.getpid(), number, type(v).__name__) for name, v in large.items()}
        pickler, file, buffers = self._pickler(known, objects)
        pickler.dump([(entries, small, unbound, changes, value, kept)])
        if not holding.stand_alone(large, pickler.memo.copy().keys() | known.keys()):
            return None
        for name, v in large.items():
            holding.hold(self.body.token, name, number, v)
        return number, file.getvalue(), list(buffers)

    def _pickler(
        self, known: dict[int, Key], objects: bool
    ) -> tuple[travel.Returner, io.BytesIO, list[pickle.PickleBuffer]]:
        file = io.BytesIO()
        buffers: list[pickle.PickleBuffer] = []
        kind = travel.ReturnerOfObjects if objects or self.with_objects else travel.Returner
        pickler = kind(file, self.arrived, known, self.is_local, buffers)
        pickler.by_names = self.body.by_names
        pickler.bases = self._bases
        return pickler, file, buffers

    def _pickled(self, value: object, known: dict[int, Key], objects: bool) -> tuple[bytes, list[Any]]:
        pickler, file, buffers = self._pickler(known, objects)
        pickler.dump(value)
        self._refers = self._refers or pickler.refers
        return file.getvalue(), list(buffers)

    def _sendable(self, value: object, whole: bool) -> tuple[bytes, list[bytes]]:
        """A value that an event carries; `whole` where it may hold objects of the kernel."""
        data, buffers = self._pickled(value, self.known, whole and bool(self.arrived.objects))
        return data, [bytes(b.raw()) for b in buffers]

    def _flush(self, result: ChunkResult, *, emit: bool) -> None:
        """Send the plain iterations that have gathered."""
        taken = self.journal.take()
        if taken is not None:
            self._send((*taken, []), result, emit)

    def _send(self, record: tuple[int, bytes, list[Any]], result: ChunkResult, emit: bool) -> None:
        number, data, buffers = record
        size = len(data) + sum(buffer.raw().nbytes for buffer in buffers)
        if emit and size < LARGE and not result.records:
            inband = [bytes(buffer.raw()) for buffer in buffers]
            emit_event(RECORD, number, data, inband)
            self._flushed = time.monotonic()
            return
        result.records.append(record)

    def _failure(
        self, number: int, error: BaseException, objects: dict[int, object], element: object
    ) -> Failure:
        import traceback as formatting

        rows, tails = traceback_rows(error), tuple(self.unfinished.tails)
        shown = brief(element) if self.body.yields else ""
        known = self.known | {id(obj): ("i", key) for key, obj in objects.items()}
        text = "".join(formatting.format_exception_only(error)).strip()
        error.__traceback__ = None
        for attempt in (error, _reduced(error), _nearest(error)):
            try:
                data, buffers = self._pickled(attempt, known, bool(objects))
                inband = pickle.dumps((data, [bytes(b.raw()) for b in buffers]), 5)
                return Failure(number, inband, text, rows, tails, shown)
            except Exception:
                continue
        data, _ = self._pickled(RuntimeError(text), {}, False)
        return Failure(number, pickle.dumps((data, []), 5), text, rows, tails, shown)


def _names(library: str, body: Body) -> bool:
    """Whether the body of a loop, or what it brings along, may import from a library."""

    def mentions(code: types.CodeType) -> bool:
        return any(name.startswith(library) for name in code.co_names) or any(
            mentions(part) for part in code.co_consts if isinstance(part, types.CodeType)
        )

    return library.encode() in body.parcel or mentions(body.code)


class _Listed(dict[object, object]):
    """Stands for a list of which the iteration has one item, or none."""

    def __missing__(self, key: object) -> object:
        raise IndexError("list index out of range")


class _KernelsLoop:
    """Stands for the event loop that the cell runs in."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"the event loop of the notebook is not on a worker (its `{name}` was asked for)")


@contextlib.contextmanager
def _inside_a_loop(in_loop: bool) -> Iterator[None]:
    """Let no event loop be run, where the cell itself runs in one."""
    asyncio: Any = sys.modules.get("asyncio") if in_loop else None
    if asyncio is None:
        yield
        return
    before = asyncio._get_running_loop()
    asyncio._set_running_loop(_KernelsLoop())
    try:
        yield
    finally:
        asyncio._set_running_loop(before)


def _differs(place: str, attribute: str, value: object) -> bool:
    """Whether a module or class has another value here than in the kernel."""
    try:
        here = vars(owner_of(place)).get(attribute)
    except (ImportError, AttributeError):
        return False
    if type(value) in ATOMS:
        return type(here) in ATOMS and (type(here) is not type(value) or repr(here) != repr(value))
    if isinstance(here, types.FunctionType) and isinstance(value, types.FunctionType):
        # What another library puts there when it is imported.
        return here.__code__ != value.__code__ or value.__globals__ is not here.__globals__
    return True


def _shared_memory() -> memoryview | None:
    """Memory of the running task that the kernel can read if this process dies."""
    from ipyparcache.engine.worker import memory_of_task

    return memory_of_task()


def _watched(secret: bytes | None) -> Any:
    """A watch of what is asked of the file system, with `--cached`."""
    if secret is None:
        return None
    from ipyparcache.digest import environment, openfiles

    environment.use_secret(secret)
    return openfiles.watch()


def _rows_of(seen: Any) -> list[Any] | None:
    from ipyparcache.digest import environment
    from ipyparcache.errors import Unrepeatable

    try:
        return [tuple(row) for row in environment.observed_rows(seen)]
    except Unrepeatable:
        return None


_MISSING = object()


def _row_entry(site: int, container: Any, key: Any, place: Any, before: Any) -> list[tuple[Any, ...]]:
    """The log entry that puts an iteration's own item back, if it has changed."""
    try:
        now = container[place]
    except (LookupError, TypeError):
        return []
    if isinstance(container, list | dict):
        return [] if now is before else [(site, key, now)]
    return [(site, key, now.copy() if hasattr(now, "copy") else now)]


def _new_streams() -> None:
    """Workers forked from one process must not share a random stream."""
    random = sys.modules.get("random")
    if random is not None:
        random.seed()
    if "numpy.random" in sys.modules:
        import numpy as np

        np.random.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.seed()


def now(namespace: dict[str, Any], safe: frozenset[int], site: int, *names: str) -> Sequence[Any]:
    """The values of names where a statement stands that may raise when it is replayed."""
    return () if site in safe else [namespace.get(name, UNBOUND) for name in names]


def text_of(*values: object, sep: str | None = " ", end: str | None = "\n") -> str:
    """What `print` would write."""
    heard = io.StringIO()
    print(*values, sep=sep, end=end, file=heard)
    return heard.getvalue()


def hashed(key: Any) -> Any:
    """The key, which can be hashed: what a dict or set would say otherwise is said where it is evaluated."""
    hash(key)
    return key


def partial_entry(log: list[Plain], site: int, ahead: Plain) -> Callable[[list[Any]], None]:
    """What logs the elements that an iterator gave before it raised: its consumer has them by then."""
    return lambda found: log.append((site, *ahead, found))


def snapshot(value: Any, broken: Callable[[list[Any]], None] | None = None) -> Any:
    """A shallow copy of what may change later; iterators are read to their end, as their consumer would."""
    kind = type(value)
    if kind in (list, dict, set, bytearray, deque, OrderedDict, defaultdict):
        return value.copy()
    if kind in (tuple, frozenset, range):
        return value
    module = kind.__module__.partition(".")[0]
    if module in ("numpy", "pandas") and hasattr(value, "copy"):
        return value.copy()
    if not hasattr(value, "__next__"):
        return value
    found: list[Any] = []
    try:
        found.extend(value)
    except BaseException:
        if broken is not None:
            broken(found)
        raise
    return found


def _unsendable(error: Exception, left: Left) -> BaseException:
    entries, _, _, _, value, _ = left
    for what, part in [*(("a collected value", entry) for entry in entries), ("a value", value)]:
        try:
            pickle.dumps(part, 5)
        except Exception:
            return TypeError(f"{what} of this iteration cannot come back from its worker: {error}")
    return TypeError(f"what this iteration leaves cannot come back from its worker: {error}")


def _reduced(error: BaseException) -> BaseException:
    """The exception with only those arguments and attributes that pickle."""

    def part(value: object) -> object:
        try:
            pickle.dumps(value, 5)
        except Exception:
            return repr(value)
        return value

    made = arrivals.exception(type(error), tuple(map(part, error.args)), {})
    made.__dict__.update({name: part(value) for name, value in error.__dict__.items()})
    return made


def _nearest(error: BaseException) -> BaseException:
    """The nearest base class of an exception that is everywhere, with its text."""
    kind = next(k for k in type(error).__mro__ if k.__module__ == "builtins")
    made = arrivals.exception(kind, (str(error),), {})
    made.__dict__.update({k: v for k, v in error.__dict__.items() if type(v) in ATOMS or k == "__notes__"})
    return made
