"""A call on the worker processes of the pool."""

from __future__ import annotations

import contextlib
import os
import select
import time
from array import array
from collections.abc import Sequence

from ipyparcache import pickling
from ipyparcache.engine.backends.atonce import Begun, first_values_in, surroundings, values_in
from ipyparcache.engine.backends.base import STEAL_AFTER, Crew
from ipyparcache.engine.backends.printed import Printed
from ipyparcache.engine.backends.unfolding import error_of, unfold
from ipyparcache.engine.batches import (
    Batch,
    CallOptions,
    Died,
    NoFunction,
    NotBegun,
    NotRead,
    Ran,
    Report,
)
from ipyparcache.engine.outcome import Error
from ipyparcache.engine.packing import Packed, Packing, SharedContainer
from ipyparcache.engine.pool import KEPT_OUTPUT, WorkerHandle, the_pool
from ipyparcache.engine.transport import (
    BATCH,
    CANCEL,
    COMMITTED,
    DOWN,
    ENDED,
    INLINE,
    LIMIT,
    LOADED,
    POSITION_BITS,
    SLOT,
    SLOTS,
    STARTED,
    Message,
    Shared,
    layout,
)
from ipyparcache.errors import WorkersDiedLoading

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

PROMPT_LOOK = 0.005  # seconds between two looks at what has ended before a task that is still running
OUTPUT_EVERY = 0.05  # seconds between two looks at what running tasks print
_NAN = float("nan")
_NOTHING: Any = frozenset()


class ProcessCrew(Crew):
    """Leased worker processes, and everything that one call has told them."""

    depth = SLOTS
    _stopped = False
    _said: Message | None = None  # what the worker of a call that was begun without a crew has said
    _fruitless = 0  # workers that ended before they began a task, since the last one that began any

    def __init__(self, function: object, count: int, options: CallOptions, begun: Begun | None = None):
        self.pool = the_pool()
        self.options = options
        self._call = self.pool.next_call() if begun is None else begun.call
        self._packing = Packing(f"{os.getpid()}.{self._call}", options.keep_arguments)
        self._elsewhere: list[Shared] = []  # arguments for which there was no room in a block
        # The lease first: new workers start while the function is pickled.
        started = begun.lease if begun is not None else None
        self._lease = self.pool.lease(count, lambda: not pickling.needs_cloudpickle(function), started)
        self.lanes: list[WorkerHandle] = list(self._lease.workers)
        self.size = size = len(self.lanes)
        self.can_take_back = self.lanes[0].spare is not None
        # By lane: numbers of larges and (negative) of containers it has; none before it knows of the call.
        self._sent: list[set[int]] = [_NOTHING] * size
        self._printed = Printed(options)
        self._ring_read = [0] * size  # how far the outcomes of the running batch were read
        self._count_read = [0] * size
        self._poll = select.poll()
        self._by_fd: dict[int, int] = {}
        self._ready: list[Report] = []
        self._limits: dict[int, tuple[int, float]] = {}  # by lane: the LIMIT word, and when it was written
        self._begun: set[int] = set()  # lanes that know of the call, or will with their first batch
        self._beginning: dict[int, Message] = {}  # by lane: what tells of the call, while it was not sent
        self._next_look = time.monotonic() + OUTPUT_EVERY
        self._seen: dict[int, tuple[int, float]] = {}  # by lane: the task that ran at a look, and since when
        try:
            # The surroundings first: they find the modules that must travel by value.
            self._state_version, self._state = surroundings.take() if begun is None else begun.state
            self._function, self._function_shared, self._function_larges = self._packing.function(function)
            if begun is not None:
                self._watch(0)
                self._said = begun.said
        except BaseException:
            self.pool.release(self._lease)
            raise

    # -- what a worker is told ----------------------------------------------------------------------------

    def _watch(self, lane: int) -> None:
        """Listen to a lane from now on."""
        self._begun.add(lane)
        self._sent[lane] = set()
        self._ring_read[lane] = self._count_read[lane] = 0
        fd = self.lanes[lane].bell.fileno()
        self._by_fd[fd] = lane
        self._poll.register(fd, select.POLLIN)

    def _begin(self, lane: int) -> None:
        """Send a worker the state of this process and the function."""
        worker = self.lanes[lane]
        self._watch(lane)
        if self._function_larges:
            self._send_larges(lane, self._function_larges)
        asked = self.options
        options = (asked.capture, asked.timed, asked.inner_threads, asked.inner_forced, asked.prompt)
        state = None if worker.state_version == self._state_version else self._state
        passed = self._function_shared.passed() if self._function_shared is not None else []
        if state is not None and len(state) > INLINE:
            holder = Shared([state])
            try:
                self._tell(worker, ("state", holder.describe()), holder.passed())
                if not holder.passed():
                    self._packing.pinned[-worker.number] = holder  # a named one must stay until it is read
            finally:
                if holder.passed():
                    holder.close()
            state = None
        message = ("call", self._call, self._function, options, state)
        if passed:
            self._tell(worker, message, passed)
            worker.state_version = self._state_version
        else:
            self._beginning[lane] = message  # with the first batch: one message wakes the worker once
        worker.written_to = 0
        if self.options.capture:
            worker.read_to = [os.fstat(fd).st_size for fd in worker.streams]

    def _tell(self, worker: WorkerHandle, message: Message, fds: Sequence[int] = ()) -> None:
        # A worker that is gone is noticed, and answered, when its bell is read.
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            worker.tasks.send(message, fds)

    def _send_larges(self, lane: int, larges: Sequence[Any]) -> None:
        for large in larges:
            if large.number not in self._sent[lane]:
                message = ("large", large.number, large.shared.describe())
                self._tell(self.lanes[lane], message, large.shared.passed())
                self._sent[lane].add(large.number)

    # -- sending ------------------------------------------------------------------------------------------

    def outstanding(self, lane: int) -> int:
        """How many batches the lane holds."""
        return len(self.lanes[lane].outstanding)

    def busy(self) -> list[int]:
        """The lanes that hold batches."""
        return [lane for lane, worker in enumerate(self.lanes) if worker.outstanding]

    def is_open(self, lane: int) -> bool:
        """Whether the lane takes batches now."""
        return not self._stopped and not self.lanes[lane].gone

    def send(self, lane: int, batch: Batch) -> None:
        """Pickle the arguments of a batch, if they are not yet, and give it to a lane."""
        worker = self.lanes[lane]
        while (gone := self._packing.superfluous()) is not None:
            self._forget_container(gone)
        fresh = batch.packed is None
        packed: Packed = self._packing.arguments(batch) if fresh else batch.packed
        if lane not in self._begun:
            self._begin(lane)
        batch.number = worker.next_batch
        if worker.outstanding:
            # The lowest free slot: its memory is the warmest.
            taken = {other.slot for other in worker.outstanding}
            batch.slot = next(slot for slot in range(SLOTS) if slot not in taken)
        else:
            batch.slot = 0
        for _, container in packed.constants:
            self._send_container(lane, container)
        if packed.larges:
            self._send_larges(lane, packed.larges)
        places: tuple[tuple[int, int], ...] = ()
        data = packed.data
        if packed.buffers or len(data) > INLINE:
            parts, found = layout(data, packed.buffers)
            worker.used_areas = True
            places, data = tuple(found), None
            try:
                worker.block.write(DOWN + batch.slot, 0, parts)
            except OSError as error:
                from ipyparcache.engine.folders import is_full

                if worker.block.folder is None or not is_full(error):
                    raise
                elsewhere = Shared(parts)  # on disk, then
                self._elsewhere.append(elsewhere)
                data = elsewhere.describe()
                packed.buffers = [bytes(raw) for raw in packed.buffers]
            else:
                if fresh and not self.options.keep_arguments:
                    # The buffers are the caller's arrays: from here on the copy in the block is what was
                    # sent.
                    packed.data = None
                    packed.buffers = []
                packed.where = (worker, batch.slot, places)
        constants = tuple([(at, container.number) for at, container in packed.constants])
        batch.packed = packed
        head = ("batch", batch.number, self._call, batch.first, len(batch.rows), batch.slot)
        worker.next_batch += 1
        worker.outstanding.append(batch)
        message = (*head, packed.form, constants, data, places, packed.order, batch.offset)
        beginning = self._beginning.pop(lane, None)
        self._tell(worker, message if beginning is None else ("both", beginning, message))
        if beginning is not None:
            worker.state_version = self._state_version

    def _hold(self, batch: Batch) -> Batch:
        """Fetch the pickled arguments of a batch that is to be sent again out of the block that has them."""
        packed: Packed | None = batch.packed
        if packed is not None and packed.data is None and packed.where is not None:
            worker, slot, places = packed.where
            pieces = [worker.block.read(DOWN + slot, start, size) for start, size in places]
            packed.data, packed.buffers = pieces[0], list(pieces[1:])
            packed.where = None
        return batch

    def _forget_container(self, gone: SharedContainer) -> None:
        for lane, sent in enumerate(self._sent):
            if -gone.number in sent:
                sent.discard(-gone.number)
                self._tell(self.lanes[lane], ("forget", gone.number))

    def _send_container(self, lane: int, container: SharedContainer) -> None:
        if -container.number in self._sent[lane]:
            return
        self._send_larges(lane, container.larges)
        passed = container.shared.passed() if container.shared is not None else []
        self._tell(self.lanes[lane], ("define", container.number, container.packet, container.form), passed)
        self._sent[lane].add(-container.number)

    # -- receiving ----------------------------------------------------------------------------------------

    def poll(self, timeout: float | None) -> list[Report]:
        """What the workers did; also passes on what their tasks print."""
        if self._said is not None:
            said, self._said = self._said, None
            self._ready += self._answer(0, said, [])
        if self._ready:
            reports, self._ready = self._ready, []
            return reports
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            every = PROMPT_LOOK if self.options.prompt and self._are_in_batches() else OUTPUT_EVERY
            wait = every if until is None else max(0.0, min(every, until - time.monotonic()))
            events = self._poll.poll(wait * 1000)
            reports: list[Report] = []  # type: ignore[no-redef]
            for fd, _ in events:
                lane = self._by_fd.get(fd)
                if lane is not None:
                    reports += self._read_bell(lane)
            now = time.monotonic()
            if not reports and every == PROMPT_LOOK:
                reports = [report for lane in range(self.size) for report in self._overdue(lane, now)]
            if now >= self._next_look:
                self._next_look = now + OUTPUT_EVERY
                for lane in range(self.size):
                    self._printed.pass_on(self.lanes[lane], live=True)
            if reports or (until is not None and now >= until):
                return reports

    def _are_in_batches(self) -> bool:
        """Whether some task runs that others, which have ended, may be waiting for."""
        return any(worker.outstanding and len(worker.outstanding[0]) > 1 for worker in self.lanes)

    def _overdue(self, lane: int, now: float) -> list[Report]:
        """What ended before the task that a lane runs, if that has run for so long that none should wait."""
        running = self.running(lane)
        if running is None or running[1] <= self._count_read[lane]:
            return []
        batch, done, _ = running
        seen, since = self._seen.get(lane, (0, 0.0))
        if seen != batch.first + done:
            self._seen[lane] = batch.first + done, now
            return []
        if now - since < PROMPT_LOOK / 2:
            return []
        self._printed.pass_on(self.lanes[lane], live=False, upto=done)
        times = array("d", [_NAN] * (done - self._count_read[lane] + 1))
        return [self._read_outcomes(lane, batch, done, None, times, False)]

    def _read_bell(self, lane: int) -> list[Report]:
        worker = self.lanes[lane]
        reports: list[Report] = []
        while not worker.gone:
            try:
                received = worker.bell.receive(wait=False)
            except EOFError:
                return reports + self._bury(lane)
            if received is None:
                return reports
            reports += self._answer(lane, *received)
            if received[0][0] == "ring" and not worker.outstanding:
                return reports  # it has nothing more to say
        return reports

    def _answer(self, lane: int, message: Message, fds: list[int]) -> list[Report]:
        """What a message of a worker means."""
        worker = self.lanes[lane]
        kind = message[0]
        if kind == "ring":
            return self._rung(lane, message)
        if kind == "file" and fds and any(batch.number == message[1] for batch in worker.outstanding):
            worker.files[message[2]] = fds[0]
            return []
        if kind == "unread":
            batch = self._take_outstanding(worker, message[1])
            return [NotRead(batch, error_of(message[2], worker))] if batch is not None else []
        if kind == "broken":
            batch = self._take_outstanding(worker, message[1])
            if batch is not None and message[3]:
                return [NoFunction(error_of(message[3], worker))]
            self._begun.discard(lane)  # it knows nothing of the call: it is told again, with the next batch
            return [NotBegun(batch)] if batch is not None else []
        self.pool.note(worker, message, fds)
        return []

    @staticmethod
    def _take_outstanding(worker: WorkerHandle, number: int) -> Batch | None:
        for batch in worker.outstanding:
            if batch.number == number:
                worker.outstanding.remove(batch)
                return batch
        return None

    def _rung(self, lane: int, message: Message) -> list[Report]:
        _, number, done, position, begun, ends, complete = message
        worker = self.lanes[lane]
        if not worker.outstanding or worker.outstanding[0].number != number:
            return []  # of a call that is over
        self._fruitless = 0
        batch = worker.outstanding[0]
        self._printed.pass_on(worker, live=False, upto=done)
        before = self._count_read[lane]
        if done <= before and not complete:
            return []  # what it tells was overdue when it was sent, and has been read
        times = array("d", [begun])
        times.frombytes(ends)
        if len(times) > done - before + 1:
            times = times[before - done - 1 :]  # what came before was overdue, and has been read
        report = self._read_outcomes(lane, batch, done, position, times, complete)
        if complete:
            worker.outstanding.popleft()
            self._count_read[lane] = self._ring_read[lane] = 0
            self._printed.forget(worker, batch.slot)
        return [report]

    def _read_outcomes(
        self, lane: int, batch: Batch, done: int, position: int | None, times: array[float], complete: bool
    ) -> Ran:
        """Read the outcomes that were committed since the last time; `position` None: up to the last
        of them.
        """
        worker = self.lanes[lane]
        before = self._count_read[lane]
        start = worker.block.slot(batch.slot) + self._ring_read[lane]
        end = start + SLOT if position is None else worker.block.slot(batch.slot) + position
        raw = worker.block.memory[start:end]
        if position is None:
            values, length = first_values_in(raw, done - before)
            position = self._ring_read[lane] + length
        else:
            values = values_in(raw, done - before)
        failed = False
        if tuple in set(map(type, values)):
            for at, value in enumerate(values):
                if type(value) is tuple:
                    values[at] = unfold(worker, batch, value)
                    failed = failed or type(values[at]) is Error
        if complete and done < len(batch):
            self._hold(batch)
        self._count_read[lane] = done
        self._ring_read[lane] = position
        return Ran(batch, before, values, failed, times, worker.pid, complete)

    def _bury(self, lane: int) -> list[Report]:
        """A worker's socket has closed: read what it had committed, name the task it died in, replace it."""
        worker = self.lanes[lane]
        self._poll.unregister(worker.bell.fileno())
        self._by_fd.pop(worker.bell.fileno(), None)
        exit_code, rss = self.pool.how_it_ended(worker)
        code = exit_code if exit_code is not None and exit_code >= 0 else None
        number = -exit_code if exit_code is not None and exit_code < 0 else None
        words = worker.block.words
        first = min((batch.first for batch in worker.outstanding), default=0)
        reports: list[Report] = []
        self._fruitless += worker.said_hello  # else it counts among those that cannot start
        while worker.outstanding:
            batch = worker.outstanding[0]
            number_ended, done = divmod(words[ENDED + batch.slot], 1 << POSITION_BITS)
            has_ended = number_ended == batch.number
            if not has_ended and batch.number != words[BATCH]:
                reports.append(NotBegun(self._hold(worker.outstanding.popleft())))
                continue
            self._fruitless = 0
            done = done if has_ended else words[COMMITTED]
            self._hold(batch)
            self._printed.pass_on(worker, live=False, upto=done)
            if done > self._count_read[lane]:
                times = array("d", [_NAN] * (done - self._count_read[lane] + 1))
                reports.append(self._read_outcomes(lane, batch, done, None, times, False))
            if not has_ended and (words[LOADED] or len(batch) == 1):
                self._printed.pass_on(worker, live=True)
            worker.outstanding.popleft()
            self._count_read[lane] = self._ring_read[lane] = 0
            self._printed.forget(worker, batch.slot)
            if done == len(batch):
                continue
            if has_ended:
                reports.append(NotBegun(batch.rest(done)))
                continue
            if not words[LOADED] and len(batch) > 1:
                # It died over the arguments of some task of these: each goes alone, to find which.
                reports += [NotBegun(Batch(batch.first + at, [row], batch.triples)) for at, row in
                            enumerate(batch.rows)]  # fmt: skip
                continue
            start = worker.block.slot(batch.slot)
            memory = bytes(worker.block.memory[start : start + SLOT]) if len(batch) == 1 else b""
            reports.append(Died(batch, done, number, code, rss, worker.pid, memory))
            if done + 1 < len(batch):
                reports.append(NotBegun(batch.rest(done + 1)))
        self._printed.pass_on(worker, live=True)
        worker.outstanding.clear()
        if not worker.said_hello:
            self.pool.failed_starts += 1
            worker.said_hello = True  # counted once
            self.pool.check_starts(worker)
        self.pool.forget(worker)
        if worker in self._lease.workers:
            self._lease.workers.remove(worker)
        if not self._stopped:
            if self._fruitless > 2 * self.size:
                raise WorkersDiedLoading(first, number, code, rss)
            self.lanes[lane] = self.pool.another(self._lease)
            self._begun.discard(lane)
        return reports

    # -- steering -----------------------------------------------------------------------------------------

    def has_started(self, lane: int) -> bool:
        """Whether the lane receives what it is sent; its worker may still be starting."""
        return self.lanes[lane].said_hello

    def take_back(self, lane: int) -> list[Batch]:
        """Take batches out of the socket of a worker that has not received them."""
        worker = self.lanes[lane]
        if worker.spare is None or worker.gone or (worker.said_hello and len(worker.outstanding) < 2):
            return []
        taken: list[Batch] = []
        other: list[tuple[Message, list[int]]] = []
        while (received := worker.spare.receive(wait=False)) is not None:
            if received[0][0] == "both":
                other.append((received[0][1], []))
                received = (received[0][2], [])
            if received[0][0] == "batch":
                batch = self._take_outstanding(worker, received[0][1])
                if batch is not None:
                    taken.append(self._hold(batch))
            else:
                other.append(received)
        for message, fds in other:
            self._tell(worker, message, fds)
            for fd in fds:
                os.close(fd)
        return taken

    def shorten(self, lane: int) -> None:
        """Have a worker stop behind the task that it runs."""
        worker = self.lanes[lane]
        if worker.outstanding and not worker.gone:
            worker.block.words[CANCEL] = worker.outstanding[0].number

    def steal(self, lane: int) -> Batch | None:
        """Take back what lies behind the running task of a batch.

        Worker and caller each write one word and then read the other's. That is safe only if a write is
        seen by then, so the caller reads a millisecond after it has written: no processor holds a write
        back so long.
        """
        worker = self.lanes[lane]
        if worker.gone or not worker.outstanding:
            return None
        batch = worker.outstanding[0]
        words = worker.block.words
        if words[BATCH] != batch.number or not words[LOADED]:
            return None
        done = words[COMMITTED]
        limit, written = self._limits.get(lane, (0, 0.0))
        base = batch.number << POSITION_BITS
        if base <= limit < base + len(batch):
            position = limit - base
            if done >= position or time.monotonic() - written < STEAL_AFTER:
                return None  # it has run on meanwhile: what is left comes with its report
            rest = self._hold(batch).part(position, len(batch))
            batch.rows = batch.rows[:position]
            self._limits.pop(lane)
            return rest
        if done + 1 < len(batch):
            words[LIMIT] = base + done + 1
            self._limits[lane] = (base + done + 1, time.monotonic())
        return None

    def running(self, lane: int) -> tuple[Batch, int, float] | None:
        """The batch that the lane runs, the position of the task, and the clock as it began."""
        worker = self.lanes[lane]
        if worker.gone or not worker.outstanding:
            return None
        words = worker.block.words
        batch = worker.outstanding[0]
        done = words[COMMITTED]
        if words[BATCH] != batch.number or not words[LOADED] or done >= len(batch):
            return None
        return batch, done, words[STARTED] / 1e9

    def kill(self, lane: int) -> list[Report]:
        """End a worker at once; another takes its lane."""
        worker = self.lanes[lane]
        if worker.gone:
            return []
        self.pool.kill(worker)
        reports: list[Report] = []
        until = time.monotonic() + 5
        waiting = select.poll()
        waiting.register(worker.bell.fileno(), select.POLLIN)
        while self.lanes[lane] is worker and not worker.gone and time.monotonic() < until:
            waiting.poll(100)
            reports += self._read_bell(lane)
        return reports

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True
        for worker in self.lanes:
            if worker.gone:
                continue
            worker.block.words[CANCEL] = worker.next_batch
            with contextlib.suppress(OSError, EOFError):
                for message, _ in self.pool.unreceived(worker):
                    sent = message[2] if message[0] == "both" else message
                    if sent[0] == "batch":
                        batch = self._take_outstanding(worker, sent[1])
                        if batch is not None:
                            self._ready.append(NotBegun(batch))

    def close(self) -> None:
        """Give the workers back."""
        self._stopped = True
        for lane, worker in enumerate(self.lanes):
            if worker.gone or lane not in self._begun:
                continue
            if worker.outstanding:
                if not self.options.capture:
                    self._printed.forward(worker)
            else:
                # What it printed was passed on with its last batch; what a thread of a task prints later is
                # passed on with the next one.
                if max(worker.read_to) > KEPT_OUTPUT:
                    for fd in worker.streams:
                        os.ftruncate(fd, 0)
                    worker.read_to = [0, 0]
                if self._sent[lane] or self._function_shared is not None:
                    # What it holds of the call is large; else the next call replaces it.
                    with contextlib.suppress(BrokenPipeError, ConnectionError, BlockingIOError):
                        worker.tasks.send(("end",), wait=False)
        self.pool.release(self._lease)
        self._elsewhere.clear()
        self._packing.clear()
