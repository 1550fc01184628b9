"""From an iterable of tasks to their outcomes: how many at once, how far ahead, what is done when one
fails.
"""

from __future__ import annotations

import math
import operator
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice, pairwise
from types import BuiltinFunctionType, FunctionType

from ipyparcache.engine.backends.atonce import Begun, run_at_once
from ipyparcache.engine.backends.base import STEAL_AFTER, Crew, crew_factory
from ipyparcache.engine.batches import (
    Batch,
    CallOptions,
    Died,
    Emitted,
    Event,
    NoFunction,
    NotBegun,
    NotRead,
    OnEvent,
    Output,
    Ran,
)
from ipyparcache.engine.cpus import inner_threads
from ipyparcache.engine.outcome import Error, Outcome, Value
from ipyparcache.engine.worker import SCALARS
from ipyparcache.errors import TaskCancelled, TaskTimeout, WorkerDied
from ipyparcache.lean import Record

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any, Literal, TypeAlias

TARGET = 0.004  # seconds that a batch should run at first, and always where results are wanted one by one
LONG_TARGET = 0.1  # and later: fewer reports wake the caller, and what is left at the end is shared out
PART = 0.2  # of the time that the call has run: no batch should run longer
LARGEST = 4096  # tasks of a batch: more would not fit into a slot of the block
GROWTH = 32  # how much larger than the largest so far a batch may be: the first measurements are rough
CHUNK = 64  # tasks that are drawn at once
BATCH_BYTES = (1 << 20) - 1  # arguments of a batch: what is larger is shared by its content
SHORTEST = 0.002  # seconds: batches do not shrink below this towards the end; `Crew.steal` evens that out
LOOK = 0.05  # seconds between two looks at time limits and at `cancelled`, at most
GRACE = 0.7  # seconds that running tasks get to finish when the call is cancelled
SPLIT = 0.001  # what will take so long is fetched from a running batch when workers have nothing to do
SILENCE = 0.005  # seconds without news after which the times measured so far are not believed

AT_ONCE = 0.001  # seconds that the tasks of a call may take together to go to one worker in one message
MOST_AT_ONCE = 1024  # more are drawn while the first of them run

Progress: TypeAlias = Callable[[int, float, int], None]


class Options(Record):
    """How the tasks of a call are to be run.

    `batch` None: sized by measured run time. `timeout` is in seconds and counts from a task's own start.
    `retries` counts further attempts after an exception, a death or a timeout. With `on_error` "raise"
    nothing is begun after a task has failed, but what comes before it in order is finished; with "collect"
    all others go on. `inner_threads` None: processors divided by workers. With `capture` what tasks print
    comes as events. `prompt` says that somebody waits for each result, not for all of them.
    """

    __slots__ = (
        "backend",
        "batch",
        "capture",
        "inner_threads",
        "n_jobs",
        "on_error",
        "prompt",
        "retries",
        "timeout",
    )

    def __init__(
        self,
        n_jobs: int = 1,
        backend: str = "processes",
        batch: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        on_error: Literal["raise", "collect"] = "raise",
        inner_threads: int | None = None,
        capture: bool = False,
        prompt: bool = False,
    ):
        self.n_jobs = n_jobs
        self.backend = backend
        self.batch = batch
        self.timeout = timeout
        self.retries = retries
        self.on_error = on_error
        self.inner_threads = inner_threads
        self.capture = capture
        self.prompt = prompt


class Done(Record):
    """Outcomes of neighbouring tasks from index `first` on: plain values, and `Error` where `failed`
    is set.
    """

    __slots__ = ("failed", "first", "times", "values", "worker")

    def __init__(self, first: int, values: list[Any], failed: bool, times: Sequence[float], worker: int):
        self.first = first
        self.values = values
        self.failed = failed
        self.times = times  # the clock as the first began and as each ended
        self.worker = worker


class Source:
    """Tasks drawn from an iterable when they are wanted.

    `triples` says that rows are (function, arguments, keywords); where all of a batch are calls of `function`
    without keywords they are sent as plain rows. `careful` False says that drawing runs no code of the
    user, so that arguments met before need not be looked at again; None that this is so for a list. A
    function is asked after the first draw, if that was not the last one.
    """

    def __init__(
        self,
        rows: Iterable[Any],
        *,
        triples: bool = False,
        function: object = None,
        careful: bool | Callable[[], bool] | None = None,
    ):
        self._rows = iter(rows)
        self._triples = triples
        self._function = function
        self._identity = {id(function)}
        # A list cannot change what it holds by being drawn from; what runs between two draws is the consumer.
        self._careful = not isinstance(rows, (list, tuple)) if careful is None else careful
        self.looked_away = False  # code of the consumer has run since the last draw
        self.drawn = 0
        self.exhausted = False
        hint = operator.length_hint(rows, -1)
        self.total: int | None = hint if hint >= 0 and hasattr(rows, "__len__") else None
        self._waiting: deque[Any] = deque()

    def peek_function(self) -> object:
        """The function of the first task, which is drawn for this and kept."""
        for row in self._rows:
            self._waiting.append(row)
            self._function = row[0]
            self._identity = {id(self._function)}
            return self._function
        return None

    def peeked(self) -> Any:
        """The row that was drawn to see its function, while it waits; else None."""
        return self._waiting[0] if self._waiting else None

    def left(self) -> int | None:
        """How many tasks are still to be drawn; None if that is not known."""
        return None if self.total is None else self.total - self.drawn

    def draw(self, count: int) -> Batch | None:
        """The next tasks, as many as there are up to `count`; what the iterable raises goes through."""
        rows: list[Any] = []
        alike = self._triples
        while len(rows) < count:
            # A few at a time: what a triple is made of goes before the garbage collector has met it twice.
            left = count - len(rows)
            chunk = self._some(min(left, CHUNK) if alike else left)
            if alike and chunk:
                functions, arguments, keywords = zip(*chunk, strict=True)
                alike = (
                    set(map(id, functions)) == self._identity
                    and set(map(len, arguments)) == {len((rows or arguments)[0])}
                    and not any(keywords)
                )
                if not alike:
                    rows = [(self._function, row, {}) for row in rows]
            rows += arguments if alike and chunk else chunk
            if self.exhausted:
                break
        if not rows:
            return None
        first = self.drawn
        self.drawn += len(rows)
        careful: bool | Callable[[], bool] = self._careful or self.looked_away
        if not isinstance(self._careful, bool):
            # What was drawn at once is pickled after all of it has been drawn: nothing changes in between.
            careful = self.looked_away or (self._is_careful if not self.exhausted or first else False)
        self.looked_away = False
        return Batch(first, rows, self._triples and not alike, careful)

    def _is_careful(self) -> bool:
        """Whether drawing runs code of the user; found out for arguments to which it matters."""
        if not isinstance(self._careful, bool):
            self._careful = self._careful()
        return self._careful

    def has_plain_row(self) -> bool:
        """Whether the row that was drawn to see its function holds plain arguments and no keywords."""
        if not self._waiting:
            return False
        _, arguments, keywords = self.peeked()
        return not keywords and SCALARS.issuperset(map(type, arguments))

    def _some(self, count: int) -> list[Any]:
        rows: list[Any] = []
        while self._waiting and len(rows) < count:
            rows.append(self._waiting.popleft())
        rows += islice(self._rows, count - len(rows))
        self.exhausted = len(rows) < count
        return rows


_remembered: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()


class Pace:
    """How many tasks to put into the next batch."""

    def __init__(self, lanes: int, fixed: int | None, function: object = None, prompt: bool = False):
        self.lanes = lanes
        self.fixed = fixed
        self._longest = TARGET if prompt else LONG_TARGET
        self.begun = time.monotonic()
        self._function = function if type(function) in (FunctionType, BuiltinFunctionType) else None
        # What the function took in its last call is a first guess, forgotten at the first measurement.
        self._guess = _remembered.get(self._function) if self._function is not None else None
        self._seconds = 0.0
        self._tasks = 0.0
        self._largest = 1 if self._guess is None else GROWTH
        self._row_bytes = 0

    def note(self, tasks: int, seconds: float) -> None:
        """Take in how long tasks ran; older measurements count less."""
        if math.isnan(seconds):
            return
        self._seconds = self._seconds * 0.7 + seconds
        self._tasks = self._tasks * 0.7 + tasks

    def mean(self) -> float | None:
        """Seconds of a task; None if nothing was measured."""
        return self._seconds / self._tasks if self._tasks else self._guess

    def remember(self) -> None:
        """Keep the measurement for the next call of the function, if it is news."""
        if self._function is not None and self._tasks:
            mean = self._seconds / self._tasks
            if self._guess is None or not 0.5 < mean / max(self._guess, 1e-9) < 2:
                _remembered[self._function] = mean

    def note_row(self, row: Sequence[Any]) -> None:
        """Look at how large the arguments of a task are."""
        if type(row) is tuple and len(row) == 3 and type(row[1]) is tuple:
            row = row[1]
        self._row_bytes = sum(size for value in row if type(size := getattr(value, "nbytes", 0)) is int)

    def size(self, left: int | None) -> int:
        """Tasks of the next batch when `left` are still to be drawn."""
        if self.fixed is not None:
            return min(self.fixed, LARGEST)
        mean = self.mean()
        if mean is None:
            return 1
        target = min(max(TARGET, PART * (time.monotonic() - self.begun)), self._longest)
        size = min(int(target / max(mean, 1e-7)), self._largest * GROWTH, LARGEST)
        if self._row_bytes:
            size = min(size, BATCH_BYTES // self._row_bytes)
        if left is not None:
            size = min(size, max(-(-left // (2 * self.lanes)), int(SHORTEST / max(mean, 1e-7))))
        size = max(size, 1)
        self._largest = max(self._largest, size)
        return size


class _HeldEvents:
    """Events kept back until it is known that an attempt was the last one."""

    def __init__(self, on_event: OnEvent):
        self._on_event = on_event
        self._held: dict[int, list[Event]] = {}

    def take(self, index: int, event: Event) -> None:
        self._held.setdefault(index, []).append(event)

    def settle(self, index: int, final: bool) -> None:
        """Hand over what the attempt sent, or drop it."""
        for event in self._held.pop(index, ()):
            if final:
                self._on_event(index, event)


def usual_seconds(times: Sequence[float]) -> float:
    """Seconds that tasks with these ends took together, had none of them been put aside for another process.

    Of many tasks the two faster quarters count: on a loaded machine a batch of short tasks is measured to be
    ten times longer than it is, and the next ones would be cut too small.
    """
    count = len(times) - 1
    if count < 16:
        return times[-1] - times[0]
    marks = [times[count * part // 4] for part in range(5)]
    quarters = sorted(end - start for start, end in pairwise(marks))
    return 2 * (quarters[0] + quarters[1])


def try_at_once(function: object, source: Source, threads: int) -> Ran | Begun | Batch | None:
    """Run all tasks of a source in one batch on a waiting worker, if they will take no longer than that.

    What cannot be done so simply is given back, for a `Run` to begin with: a batch, sent or not sent.
    """
    if type(function) is not FunctionType:
        return None
    seconds = _remembered.get(function)
    if seconds is None or seconds > AT_ONCE / 2 or not source.has_plain_row():
        return None
    batch = source.draw(min(int(AT_ONCE / max(seconds, 1e-7)), MOST_AT_ONCE))
    if batch is None or not source.exhausted or batch.triples:
        return batch
    answer = run_at_once(function, batch, threads)
    if type(answer) is Ran:
        took = usual_seconds(answer.times) / len(batch.rows)
        if not 0.5 < took / max(seconds, 1e-9) < 2:
            _remembered[function] = took
    return answer or batch


class Run:
    """One call: a source of tasks, a crew that runs them, and the rules between the two."""

    def __init__(
        self,
        function: object,
        source: Source,
        options: Options,
        *,
        on_event: OnEvent | None = None,
        cancelled: threading.Event | None = None,
        around_thread: Callable[[], Any] = nullcontext,
        ahead: int | None = None,
        on_look: Callable[[], None] | None = None,
        begun: Begun | Batch | None = None,
    ):
        self.source = source
        self.on_look = on_look  # called now and then, and at least every `LOOK` seconds
        self.ahead = ahead  # batches that may be under way at once, beside the workers' own limit
        self.options = options
        self.cancelled = cancelled
        self._held = _HeldEvents(on_event) if on_event is not None and options.retries else None
        call = CallOptions(
            capture=options.capture and on_event is not None,
            timed=options.timeout is not None,
            inner_threads=options.inner_threads or inner_threads(options.n_jobs),
            inner_forced=options.inner_threads is not None,
            keep_arguments=options.retries > 0,
            prompt=options.prompt,
            on_event=self._held.take if self._held is not None else on_event,
            around_thread=around_thread,
        )
        count = options.n_jobs
        left = source.left()
        if left is not None:
            count = max(1, min(count, left))
        self.crew: Crew
        self.backlog: deque[Batch] = deque()
        if begun is None or isinstance(begun, Batch):
            self.crew = crew_factory(options.backend)(function, count, call)
            if begun is not None:
                self.backlog.append(begun)
        else:
            from ipyparcache.engine.backends.processes import ProcessCrew

            self.crew = ProcessCrew(function, count, call, begun)
        self.pace = Pace(self.crew.size, options.batch, function, options.prompt)
        if (row := source.peeked()) is not None:
            self.pace.note_row(row)
        self.attempts: dict[int, int] = {}
        self.failed_at: int | None = None  # least index that failed for good, with on_error "raise"
        self._longest = 0 if begun is None else source.drawn  # tasks of the largest batch so far
        self.silent = False  # nothing was reported in the last look
        self.idle = False  # a lane has nothing to do
        self.stealing = False  # a lane was told to begin nothing more, and will be asked again
        self._ending: float | None = None  # when running tasks are ended, once the call was cancelled
        self._killed: set[int] = set()

    # -- rules --------------------------------------------------------------------------------------------

    def _next_batch(self) -> Batch | None:
        if self.source.exhausted and not self.backlog:
            return None
        while self.backlog:
            batch = self.backlog.popleft()
            if self.failed_at is not None:
                # What comes before the failed task in order is still wanted.
                kept = max(0, min(len(batch), self.failed_at - batch.first))
                if kept == 0:
                    continue
                if kept < len(batch):
                    batch = batch.part(0, kept)
            return batch
        if self.failed_at is not None or self._ending is not None or self.source.exhausted:
            return None
        drawn = self.source.draw(self.pace.size(self.source.left()))
        if drawn is not None:
            self.pace.note_row(drawn.rows[0])
            self._longest = max(self._longest, len(drawn))
        return drawn

    def _depth(self) -> int:
        """How many batches a lane may hold now."""
        mean = self.pace.mean()
        if self.crew.can_take_back:
            # Long tasks want one behind them, which hides the way to the worker; short ones a few
            # milliseconds.
            return self.crew.depth if mean is not None and mean < TARGET / 4 else min(2, self.crew.depth)
        # What waits behind a long task cannot be fetched back when another lane falls idle.
        return 1 if mean is None or mean > TARGET else self.crew.depth

    def fill(self) -> bool:
        """Send batches to lanes that want some; False if there is nothing left to send."""
        crew = self.crew
        lanes = range(crew.size)
        for depth in range(1, self._depth() + 1):
            for lane in lanes:
                while crew.outstanding(lane) < depth and crew.is_open(lane):
                    if self.ahead is not None and self._under_way() >= self.ahead:
                        return True
                    batch = self._next_batch()
                    if batch is None:
                        return False
                    crew.send(lane, batch)
        return True

    def _under_way(self) -> int:
        return sum(self.crew.outstanding(lane) for lane in range(self.crew.size))

    def rebalance(self) -> None:
        """Give idle lanes what waits behind a running batch, or the rest of one."""
        crew = self.crew
        starting = [lane for lane in range(crew.size) if not crew.has_started(lane)]
        if starting and self.failed_at is None and self._ending is None:
            self._relieve(starting)
        mean = self.pace.mean() or math.inf
        if not self.silent and not self.backlog and mean * self._longest < SPLIT:
            self.idle = True
            return  # nothing is worth fetching
        idle = [lane for lane in range(crew.size) if crew.outstanding(lane) == 0 and crew.is_open(lane)]
        if not idle or self._ending is not None:
            return
        self.idle = True
        for lane in range(crew.size):
            taken: list[Batch] = []
            if crew.outstanding(lane) >= 2:
                taken = crew.take_back(lane)
            elif crew.outstanding(lane) == 1 and not self.backlog and self._lasts(lane):
                rest = crew.steal(lane)
                self.stealing = rest is None
                taken = [] if rest is None else [rest]
            for batch in taken:
                # Not cut by the measured time alone: it may have been measured on other tasks than these.
                self.backlog.extend(self._cut(batch, len(idle) + 1))
        if self.backlog:
            self.fill()

    def _relieve(self, starting: list[int]) -> None:
        """Give lanes that have nothing to do what waits for workers that are still starting."""
        crew = self.crew
        ready = [lane for lane in range(crew.size) if lane not in starting and crew.is_open(lane)]
        idle = [lane for lane in ready if crew.outstanding(lane) == 0]
        for lane in starting:
            for batch in crew.take_back(lane) if idle else ():
                if idle:
                    crew.send(idle.pop(), batch)
                else:
                    self.backlog.append(batch)

    def _lasts(self, lane: int) -> bool:
        """Whether what lies behind the running task of a lane is worth fetching."""
        mean = self.pace.mean() or 0.0
        running = self.crew.running(lane)
        if running is None:
            return False
        batch, position, _ = running
        left = len(batch) - position - 1
        return left > 0 and (left * mean > SPLIT or self.silent)

    @staticmethod
    def _cut(batch: Batch, parts: int) -> list[Batch]:
        step = -(-len(batch) // parts)
        return [batch.part(at, min(at + step, len(batch))) for at in range(0, len(batch), step)]

    def _give_up_or_retry(self, batch: Batch, position: int, error: Error) -> Done | None:
        """A task has failed: put it in again, or tell its outcome."""
        index = batch.first + position
        tried = self.attempts.get(index, 0) + 1
        self.attempts[index] = tried
        may_retry = tried <= self.options.retries and self._ending is None
        if may_retry and (self.failed_at is None or index < self.failed_at):
            if self._held is not None:
                self._held.settle(index, final=False)
            self.backlog.appendleft(batch.part(position, position + 1))
            return None
        if self._held is not None:
            self._held.settle(index, final=True)
        if self.options.on_error == "raise":
            self.failed_at = index if self.failed_at is None else min(index, self.failed_at)
        return Done(index, [error], True, (error.started, error.started + error.seconds), error.worker)

    def take(self, report: object) -> Iterator[Done]:
        """What a report of the crew means for the call."""
        if isinstance(report, Ran):
            yield from self._ran(report)
        elif isinstance(report, Died):
            done = self._give_up_or_retry(report.batch, report.position, self._lost(report))
            if done is not None:
                yield done
        elif isinstance(report, NotBegun):
            self.backlog.append(report.batch)
        elif isinstance(report, NotRead):
            batch = report.batch
            if len(batch) == 1:
                report.error.exception.add_note(
                    "An argument of the task could not be unpickled on the worker."
                )
                done = self._give_up_or_retry(batch, 0, report.error)
                if done is not None:
                    yield done
            else:
                self.backlog.extend(
                    Batch(batch.first + at, batch.rows[at : at + 1], batch.triples)
                    for at in range(len(batch))
                )
        elif isinstance(report, NoFunction):
            report.error.exception.add_note("The function of the tasks could not be unpickled on the worker.")
            report.error.unwrap()

    def _lost(self, report: Died) -> Error:
        index = report.batch.first + report.position
        if index in self._killed:
            self._killed.discard(index)
            if self._ending is not None:
                return Error(TaskCancelled(index), worker=report.worker, memory=report.memory)
            limit = self.options.timeout or 0.0
            return Error(TaskTimeout(index, limit), "", limit, report.worker, memory=report.memory)
        died = WorkerDied(index, report.signal, report.exit_code, report.max_rss)
        return Error(died, worker=report.worker, memory=report.memory)

    def _note(self, report: Ran) -> None:
        """Take in how long tasks took, and what the worker did not run of its batch."""
        values = len(report.values)
        if values:
            self.pace.note(values, usual_seconds(report.times))
        behind = report.position + values
        if report.complete and behind < len(report.batch):
            self.backlog.append(report.batch.rest(behind))

    @staticmethod
    def _done(report: Ran) -> Done:
        return Done(report.batch.first + report.position, report.values, False, report.times, report.worker)

    def _ran(self, report: Ran) -> Iterator[Done]:
        batch, values, times = report.batch, report.values, report.times
        self._note(report)
        if not report.failed and self._held is None:
            if values:
                yield self._done(report)
            return
        first = batch.first + report.position
        start = 0
        for at, value in enumerate(values):
            if type(value) is not Error:
                if self._held is not None:
                    self._held.settle(first + at, final=True)
                continue
            if at > start:
                yield Done(first + start, values[start:at], False, times[start : at + 1], report.worker)
            start = at + 1
            seconds = times[at + 1] - times[at]
            error = Error(value.exception, value.traceback, seconds, report.worker, times[at])
            done = self._give_up_or_retry(batch, report.position + at, error)
            if done is not None:
                yield done
        if start < len(values):
            yield Done(first + start, values[start:], False, times[start:], report.worker)

    def _enforce_limits(self) -> Iterator[Done]:
        """End tasks that ran longer than they may; end all when a cancelled call's grace is over."""
        now = time.monotonic()
        if self._ending is None and self.cancelled is not None and self.cancelled.is_set():
            self._ending = now + GRACE
            self.crew.stop()
            self.backlog.clear()
        timeout = self.options.timeout
        for lane in range(self.crew.size):
            running = self.crew.running(lane) if timeout is not None or self._ending is not None else None
            if running is None:
                continue
            batch, position, started = running
            late = timeout is not None and self._ending is None and now - started > timeout
            if late or (self._ending is not None and now >= self._ending):
                self._killed.add(batch.first + position)
                for report in self.crew.kill(lane):
                    yield from self.take(report)

    def _is_over(self) -> bool:
        busy = self.crew.busy()
        if self._ending is not None:
            # A lane that holds something and runs nothing now has just not reported yet, or is stuck.
            return not busy or time.monotonic() > self._ending + 0.2
        if not busy:
            return not self.backlog and (self.source.exhausted or self.failed_at is not None)
        if self.failed_at is None or self.backlog:
            return False
        # After a failure only what comes before it is waited for.
        return not any(self._holds_before(lane, self.failed_at) for lane in busy)

    def _holds_before(self, lane: int, index: int) -> bool:
        running = self.crew.running(lane)
        if running is None or self.crew.outstanding(lane) > 1:
            return True
        batch, position, _ = running
        return batch.first + position < index

    def __iter__(self) -> Iterator[Done]:
        crew = self.crew
        limited = self.options.timeout is not None or self.cancelled is not None
        try:
            while True:
                self.stealing = self.idle = False
                if not self.fill() and crew.size > 1:
                    self.rebalance()
                if self._is_over():
                    return
                reports = crew.poll(2 * STEAL_AFTER if self.stealing else SILENCE if self.idle else LOOK)
                self.silent = not reports
                for report in reports:
                    if type(report) is Ran and not report.failed and self._held is None:
                        self._note(report)
                        if report.values:
                            yield self._done(report)
                    else:
                        yield from self.take(report)
                if self.failed_at is not None:
                    self._drop_later(self.failed_at)
                if limited:
                    yield from self._enforce_limits()
                if self.on_look is not None:
                    self.on_look()
                if self.source.exhausted and not self.backlog and not crew.busy():
                    return
        finally:
            self.pace.remember()
            crew.close()

    def _drop_later(self, index: int) -> None:
        """Take back what waits on the lanes; what comes behind the failed task is not sent again."""
        for lane in range(self.crew.size):
            if self.crew.outstanding(lane) >= 2:
                self.backlog.extend(self.crew.take_back(lane))
            running = self.crew.running(lane)
            if running is not None and running[0].first + running[1] > index:
                self.crew.shorten(lane)


def run_tasks(
    function: Callable[..., object],
    arguments: Iterable[tuple[object, ...]],
    options: Options,
    *,
    on_event: Callable[[int, Event], None] | None = None,
    cancelled: threading.Event | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Outcome]]:
    """Run `function(*row)` for each row of `arguments`; yield (index, outcome) as tasks complete.

    Rows are drawn as workers want them, a bounded number ahead. The function is pickled once and unpickled
    once a worker. Events of a task come before its outcome, while it runs. `progress` is called with the
    number of tasks done since, their seconds, and the worker. Closing the generator, or setting
    `cancelled`, begins nothing more; tasks that run get 0.7 s (their outcomes are still yielded after
    `cancelled`), then their workers are killed, and tasks killed so come as `Error` of `TaskCancelled`.
    """
    source = Source(arguments)
    run = Run(function, source, options, on_event=on_event, cancelled=cancelled)
    for done in run:
        source.looked_away = True
        times = done.times
        if progress is not None:
            progress(len(done.values), times[-1] - times[0], done.worker)
        for at, value in enumerate(done.values):
            if type(value) is Error:
                yield done.first + at, value
            else:
                started = times[at]
                yield done.first + at, Value(value, times[at + 1] - started, done.worker, started)


__all__ = ["Done", "Emitted", "Event", "Options", "Output", "Run", "Source", "run_tasks"]
