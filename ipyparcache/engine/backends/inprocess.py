"""Backends without processes: threads of this one, and the calling thread itself."""

from __future__ import annotations

import functools
import queue
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from ipyparcache.engine.backends.base import STEAL_AFTER, Crew
from ipyparcache.engine.batches import Batch, CallOptions, Died, Emitted, NotBegun, Ran, Report
from ipyparcache.engine.outcome import Error, traceback_text
from ipyparcache.engine.worker import apply, local_task

RING_AFTER = 0.02  # seconds between two reports within a batch


@dataclass(slots=True, eq=False)
class _Running:
    """A batch on its way through a thread; the thread alone writes `done`, `started` and `values`."""

    batch: Batch
    done: int = 0
    started: float = 0.0
    stopped: bool = False
    limit: int = 1 << 60  # position of the first task that must not be begun
    limited_at: float = 0.0


def _run(
    function: Callable[..., object],
    running: _Running,
    report: Callable[[Ran], None],
    on_emit: Callable[[int, bytes], None] | None,
    report_after: float = RING_AFTER,
) -> None:
    """Run the tasks of a batch one after another until it ends or is stopped."""
    batch = running.batch
    call: Callable[..., object] = apply if batch.triples else function
    values: list[object] = []
    times = array("d", [time.monotonic()])
    failed = False
    position = 0
    last = times[0]
    local_task.sink = on_emit
    for row in batch.rows:
        if running.stopped or running.done >= running.limit:
            break
        local_task.index = batch.first + running.done
        running.started = last
        try:
            values.append(call(*row))  # under no name: who takes a result decides how long it lives
        except BaseException as error:
            values.append(Error(error, traceback_text(error, __file__), 0.0, 0))
            failed = True
        last = time.monotonic()
        times.append(last)
        running.done += 1
        if (failed or last - times[0] >= report_after) and running.done < len(batch):
            report(Ran(batch, position, values, failed, times, 0, False))
            position, values, failed, times = running.done, [], False, array("d", [last])
    local_task.index = None
    local_task.sink = None
    report(Ran(batch, position, values, failed, times, 0, True))


@functools.cache
def can_have_threads() -> bool:
    """Whether this system lets a thread start; Pyodide does not."""
    try:
        thread = threading.Thread(target=int, daemon=True)
        thread.start()
    except RuntimeError:
        return False
    thread.join()
    return True


class ThreadCrew(Crew):
    """Threads of this process, made for one call."""

    can_take_back = True

    def __init__(self, function: object, count: int, options: CallOptions):
        self.size = count
        self.options = options
        self._function = cast("Callable[..., object]", function)
        self._reports: queue.SimpleQueue[tuple[int, _Running, Ran]] = queue.SimpleQueue()
        self._waiting: list[deque[_Running]] = [deque() for _ in range(count)]
        # Before any thread is started: whenever an interrupt comes, they are told that nothing will.
        self._inboxes: list[queue.SimpleQueue[_Running | None]] = [queue.SimpleQueue() for _ in range(count)]
        self._stopped = False
        self._ready: list[Report] = []
        self._emitted: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        for lane in range(count):
            self._start_thread(lane)

    def __del__(self) -> None:
        for inbox in getattr(self, "_inboxes", ()):
            inbox.put(None)

    def _start_thread(self, lane: int) -> None:
        # The thread knows nothing of the crew, which goes with its call, however that ends.
        inbox, reports, function, emitted = self._inboxes[lane], self._reports, self._function, self._emitted
        on_emit: Callable[[int, bytes], None] | None = None
        if self.options.on_event is not None:

            def on_emit(index: int, payload: bytes) -> None:
                emitted.put((index, payload))

        setup = self.options.around_thread
        # Where somebody waits for each result, none waits for the task behind it.
        report_after = 0.0 if self.options.prompt else RING_AFTER

        def put(running: _Running, ran: Ran) -> None:
            reports.put((lane, running, ran))

        def work() -> None:
            with setup():
                while (running := inbox.get()) is not None:
                    report = functools.partial(put, running)
                    _run(function, running, report, on_emit, report_after)

        threading.Thread(target=work, daemon=True, name=f"ipyparcache-task-{lane}").start()

    def outstanding(self, lane: int) -> int:
        """How many batches the lane holds."""
        return len(self._waiting[lane])

    def is_open(self, lane: int) -> bool:
        """Whether the lane takes batches now."""
        return not self._stopped

    def send(self, lane: int, batch: Batch) -> None:
        """Give a batch to a thread."""
        running = _Running(batch)
        self._waiting[lane].append(running)
        self._inboxes[lane].put(running)

    def poll(self, timeout: float | None) -> list[Report]:
        """What the threads have done."""
        if self._ready:
            reports, self._ready = self._ready, []
            return reports
        until = None if timeout is None else time.monotonic() + timeout
        reports = []
        while not reports:
            try:
                left = None if until is None else max(until - time.monotonic(), 0.0)
                lane, running, ran = self._reports.get(timeout=left)
                reports += self._taken(lane, running, ran)
                while True:
                    lane, running, ran = self._reports.get_nowait()
                    reports += self._taken(lane, running, ran)
            except queue.Empty:
                if until is not None and time.monotonic() >= until:
                    break
        self._pass_events()
        return reports

    def _taken(self, lane: int, running: _Running, ran: Ran) -> list[Report]:
        if running not in self._waiting[lane]:
            return []  # of a thread that was given up
        if ran.complete:
            self._waiting[lane].remove(running)
        return [ran]

    def _pass_events(self) -> None:
        while self.options.on_event is not None:
            try:
                index, payload = self._emitted.get_nowait()
            except queue.Empty:
                return
            self.options.on_event(index, Emitted(payload))

    def take_back(self, lane: int) -> list[Batch]:
        """Take out of a thread's inbox what it has not begun."""
        taken: list[Batch] = []
        while True:
            try:
                running = self._inboxes[lane].get_nowait()
            except queue.Empty:
                return taken
            if running is not None:
                self._waiting[lane].remove(running)
                taken.append(running.batch)

    def shorten(self, lane: int) -> None:
        """Have a thread stop behind the task that it runs."""
        if self._waiting[lane]:
            self._waiting[lane][0].stopped = True

    def steal(self, lane: int) -> Batch | None:
        """Take back what lies behind the running task of a batch."""
        if not self._waiting[lane]:
            return None
        running = self._waiting[lane][0]
        if running.started == 0.0:
            return None
        if running.limit < len(running.batch):
            if running.done >= running.limit or time.monotonic() - running.limited_at < STEAL_AFTER:
                return None
            rest = running.batch.part(running.limit, len(running.batch))
            running.batch.rows = running.batch.rows[: running.limit]
            return rest
        if running.done + 1 < len(running.batch):
            running.limited_at = time.monotonic()
            running.limit = running.done + 1
        return None

    def running(self, lane: int) -> tuple[Batch, int, float] | None:
        """The batch that a thread runs, the position of the task, and the clock as it began."""
        if not self._waiting[lane]:
            return None
        running = self._waiting[lane][0]
        if running.started == 0.0 or running.done >= len(running.batch):
            return None
        return running.batch, running.done, running.started

    def kill(self, lane: int) -> list[Report]:
        """Give a thread up: it cannot be ended, but what it does from here on is not looked at."""
        reports: list[Report] = []
        if not self._waiting[lane]:
            return reports
        given_up = self._waiting[lane][0]
        given_up.stopped = True
        for batch in self.take_back(lane):
            reports.append(NotBegun(batch))
        reports += [report for report in self.poll(0) if not (isinstance(report, Ran) and report.complete)]
        done = given_up.done
        self._waiting[lane].clear()
        self._inboxes[lane].put(None)
        self._inboxes[lane] = queue.SimpleQueue()
        self._start_thread(lane)
        if done < len(given_up.batch):
            reports.append(Died(given_up.batch, done, None, None, 0, 0))
            if done + 1 < len(given_up.batch):
                reports.append(NotBegun(given_up.batch.rest(done + 1)))
        return reports

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True
        for lane in range(self.size):
            for batch in self.take_back(lane):
                self._ready.append(NotBegun(batch))
            for running in self._waiting[lane]:
                running.stopped = True

    def close(self) -> None:
        """End the threads behind the tasks that they run."""
        self.stop()
        self._pass_events()
        for inbox in self._inboxes:
            inbox.put(None)


class SequentialCrew(Crew):
    """The calling thread: `poll` runs the next task."""

    depth = 1
    can_take_back = True

    def __init__(self, function: object, count: int, options: CallOptions):
        self.size = 1
        self.options = options
        self._function = cast("Callable[..., object]", function)
        self._batch: Batch | None = None
        self._done = 0
        self._stopped = False

    def outstanding(self, lane: int) -> int:
        """Whether there is a batch."""
        return 0 if self._batch is None else 1

    def is_open(self, lane: int) -> bool:
        """Whether a batch can be taken."""
        return not self._stopped

    def send(self, lane: int, batch: Batch) -> None:
        """Take a batch; it runs in `poll`."""
        self._batch = batch
        self._done = 0

    def poll(self, timeout: float | None) -> list[Report]:
        """Run one task."""
        batch = self._batch
        if batch is None:
            return []
        if self._stopped:
            self._batch = None
            return [NotBegun(batch.rest(self._done))]
        found: list[Ran] = []
        on_event = self.options.on_event
        sink = None if on_event is None else lambda index, payload: on_event(index, Emitted(payload))
        at = self._done
        one = Batch(batch.first + at, batch.rows[at : at + 1], batch.triples)
        _run(self._function, _Running(one), found.append, sink)
        self._done += 1
        complete = self._done == len(batch)
        if complete:
            self._batch = None
        ran = found[0]
        return [Ran(batch, at, ran.values, ran.failed, ran.times, 0, complete)]

    def take_back(self, lane: int) -> list[Batch]:
        """Nothing waits here."""
        return []

    def shorten(self, lane: int) -> None:
        """The calling thread is never waited for."""

    def running(self, lane: int) -> tuple[Batch, int, float] | None:
        """Nothing runs while the caller looks."""
        return None

    def kill(self, lane: int) -> list[Report]:
        """Nothing runs while the caller looks."""
        return []

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True

    def close(self) -> None:
        """Nothing is held."""
        self._batch = None
