"""`--backend threads`.

Iterations on threads of the kernel, over its own objects, with the same log and the same replay.
"""

from __future__ import annotations

import functools
import io
import itertools
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ipyparcache.analysis.body import (
    CONTENT,
    HASHED,
    ITEM,
    KEY,
    LOG,
    NOW,
    THROUGH,
    TRIED,
    UNBIND,
    UNFINISHED,
    VALUE,
)
from ipyparcache.analysis.collected import TEXT as TEXT_OF
from ipyparcache.cells import standins
from ipyparcache.cells.iteration import (
    KeyOf,
    RandomStreams,
    hashed,
    now,
    partial_entry,
    snapshot,
    text_of,
)
from ipyparcache.cells.messages import ChunkResult, Failure, Left, Plain, Unfinished, brief, tried
from ipyparcache.cells.showing import AGAIN, AT_END, CLEAR, ENDED, SHOWN, TEXT, emit_event
from ipyparcache.cells.tracebacks import traceback_rows
from ipyparcache.cells.travel import ATOMS
from ipyparcache.engine.worker import current_task

#: Streams of the global generators belong to the process: with --seed, iterations take turns.
_turn = threading.Lock()


class ThreadTask:
    """The callable that runs chunks on threads.

    Parameters
    ----------
    assigned
        Names that an iteration may bind: each thread has a namespace of its own for them, a copy of the
        notebook's.
    """

    def __init__(
        self,
        code: types.CodeType,
        namespace: dict[str, Any],
        assigned: tuple[str, ...],
        by_content: frozenset[int],
        safe: frozenset[int],
        *,
        yields: bool,
        retries: int,
        seed: tuple[int, ...] | None,
        counters: tuple[tuple[str, int, int], ...],
        marks: bool,
    ) -> None:
        self.code = code
        self.live = namespace
        self.assigned = assigned
        self.by_content = by_content
        self.safe = safe
        self.yields = yields
        self.retries = retries
        self.seed = seed
        self.counters = counters
        self.marks = marks
        self.shown: dict[int, tuple[tuple[object, ...], dict[str, Any]]] = {}
        self._keys = itertools.count()
        self._own = threading.local()

    def __call__(self, first: int, items: Sequence[object], emit_records: bool) -> ChunkResult:
        """Run the iterations of a chunk, numbered from `first`."""
        result = ChunkResult(started=time.monotonic(), pid=threading.get_ident())
        namespace, log, unbound = self._space()
        done: list[Left] = []
        for number, element in enumerate(items, first):
            begun = time.monotonic()
            for attempt in range(self.retries + 1):
                if attempt:
                    emit_event(AGAIN, number)
                error = self._iteration(number, element, namespace, log, unbound)
                if error is None:
                    break
            value = namespace.pop(VALUE, None) if self.yields else None
            bindings = {name: self._live(namespace[name]) for name in self.assigned if name in namespace}
            entries = [tuple(map(self._live, entry)) for entry in log]
            done.append((entries, bindings, [n for n in unbound if n not in bindings], [], value, {}))
            result.ran += 1
            result.seconds += time.monotonic() - begun
            if error is None and self.marks:
                emit_event(ENDED, (number, AT_END))
            lost = namespace[UNFINISHED].note(number, result, failed=error is not None)
            if error is not None:
                text = f"{type(error).__name__}: {error}"
                tails = tuple(namespace[UNFINISHED].tails)
                shown = brief(element) if self.yields else ""
                result.failure = Failure(number, error, text, traceback_rows(error), tails, shown)
            if lost or error is not None:
                break
        result.records.append((first, b"", done))
        return result

    def _iteration(
        self, number: int, element: object, namespace: dict[str, Any], log: list[Any], unbound: list[str]
    ) -> BaseException | None:
        for name in self.assigned:
            namespace.pop(name, None)
        log.clear()
        unbound.clear()
        namespace[UNFINISHED].clear()
        namespace[ITEM] = element
        self._own.number = number
        for name, begin, step in self.counters:
            namespace[name] = begin + step * number
        try:
            if self.seed is None:
                exec(self.code, namespace)
            else:
                with _turn:
                    streams = RandomStreams(self.seed)
                    streams.begin(number)
                    try:
                        exec(self.code, namespace)
                    finally:
                        streams.end()
        except BaseException as error:
            return error
        finally:
            namespace.pop(ITEM, None)
        return None

    def _space(self) -> tuple[dict[str, Any], list[Any], list[str]]:
        found = getattr(self._own, "space", None)
        if found is None:
            namespace = dict(self.live)
            log: list[Any] = []
            unbound: list[str] = []
            logged = functools.partial(self._log_marked, log) if self.marks else log.append
            namespace.update({LOG: logged, KEY: KeyOf(), HASHED: hashed, UNBIND: unbound.append})
            namespace[UNFINISHED] = unfinished = Unfinished(namespace)
            namespace[THROUGH] = unfinished.through
            namespace[TRIED] = tried
            namespace[CONTENT] = functools.partial(self._content, log)
            namespace[NOW] = functools.partial(now, namespace, self.safe)
            namespace[TEXT_OF] = text_of
            namespace.setdefault("display", self._display)
            shows = standins.replaced()
            for name in [name for name, value in namespace.items() if id(value) in shows]:
                namespace[name] = getattr(self, "_" + shows[id(namespace[name])][1][0])
            found = self._own.space = namespace, log, unbound
        return found

    def _log_marked(self, log: list[Any], entry: Plain) -> None:
        """Log an entry; where its replay may raise, tell that what was put out so far came before it."""
        if entry[0] not in self.safe:
            emit_event(ENDED, (self._own.number, len(log)))
        log.append(entry)

    def _live(self, value: Any) -> Any:
        """A function made by the body, over the notebook's namespace; anything else as it is."""
        if type(value) is not types.FunctionType or value.__globals__ is not self._own.space[0]:
            return value
        made = types.FunctionType(
            value.__code__, self.live, value.__name__, value.__defaults__, value.__closure__
        )
        made.__kwdefaults__ = value.__kwdefaults__
        made.__qualname__ = value.__qualname__
        made.__dict__.update(value.__dict__)
        return made

    def _content(self, log: list[Any], site: int, value: Any, ahead: Plain | None = None) -> Any:
        if type(value) in ATOMS or site not in self.by_content:
            return value
        return snapshot(value, None if ahead is None else partial_entry(log, site, ahead))

    def _clear_output(self, wait: bool = False) -> None:
        emit_event(CLEAR, bool(wait))

    def _update_display(self, obj: object, *, display_id: str, **options: object) -> None:
        self._display(obj, **options, display_id=display_id, update=True)

    def _publish_display_data(self, data: object, metadata: object = None, **options: object) -> None:
        self._display(data, **options, metadata=metadata, raw=True)

    def _display(self, *objects: object, **options: object) -> None:
        key = next(self._keys)
        self.shown[key] = objects, dict(options)
        emit_event(SHOWN, key)


class _Router(io.TextIOBase):
    """A standard stream that sends what a task's thread writes along with the task.

    And passes on the rest.
    """

    def __init__(self, name: str, plain: Any) -> None:
        self.stream_name = name
        self.plain = plain

    def write(self, text: str) -> int:
        """Write where the writing thread belongs."""
        if threading.current_thread() is not threading.main_thread() and current_task() is not None:
            emit_event(TEXT, (self.stream_name, text))
            return len(text)
        written: int = self.plain.write(text)
        return written

    def flush(self) -> None:
        """Flush the plain stream."""
        self.plain.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


@contextmanager
def routed_streams() -> Iterator[None]:
    """Tell the output of tasks from the kernel's own while threads run them."""
    plain = sys.stdout, sys.stderr
    routers = _Router("stdout", sys.stdout), _Router("stderr", sys.stderr)
    sys.stdout, sys.stderr = routers
    try:
        yield
    finally:
        if sys.stdout is routers[0]:
            sys.stdout = plain[0]
        if sys.stderr is routers[1]:
            sys.stderr = plain[1]
