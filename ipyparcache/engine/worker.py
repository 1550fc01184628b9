"""What a worker process does from start to exit.

It waits for messages, runs the tasks of a batch one after another, and writes the outcome of each to its
slot of the shared block before it starts the next; a ring of the bell (a small message) tells the caller
how far it is.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import marshal
import os
import struct
import sys
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from time import monotonic
from types import FunctionType

from ipyparcache.engine import surroundings
from ipyparcache.engine.transport import (
    BATCH,
    CANCEL,
    COMMITTED,
    DOWN,
    ENDED,
    EVENTS,
    IN_LARGE_PAGES,
    LIMIT,
    LOADED,
    LOG,
    MAPPED_FROM,
    NO_REFERENCES,
    OUT_OF_BAND,
    POSITION_BITS,
    SLOT,
    STARTED,
    UP,
    Block,
    Buffer,
    Channel,
    Message,
    file_of,
    layout,
    map_shared,
    new_memory,
    receive_soon,
)
from ipyparcache.lean import pickle, signal
from ipyparcache.pickling import Buffers, dump_result

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

RING_AFTER = 0.05  # seconds between two rings within a batch
PROMPT_AFTER = 0.004  # and where somebody waits for each result
CHECK = 0.0002  # seconds between two looks at whether to stop or to ring
LEISURE = 20  # milliseconds without a message after which there is time for what may be needed later
SMALL = 16 << 10  # an outcome up to this size lies in the slot itself
SCALARS = frozenset({type(None), bool, int, float, complex, str})
VALUE, FAR_VALUE, ERROR, FAR_ERROR, FAR_RECORD = range(5)  # forms of an outcome that is no scalar
EMIT, END, TO_OUT, TO_ERR = range(4)  # kinds of event records; the last two: this stream is written next
# An event record: kind, index of the task, ends of stdout and stderr so far, length of the payload behind it.
EVENT = struct.Struct("<BqQQI")


def apply(
    function: Callable[..., object], arguments: tuple[object, ...], keywords: dict[str, object]
) -> object:
    """Call with keywords: the function of a batch whose tasks do not share one function."""
    return function(*arguments, **keywords)


# What cloudpickle puts into the globals of each function that it makes.
_NO_GLOBALS = frozenset({"__builtins__", "__name__", "__file__", "__package__", "__path__"})


def _holds_nothing(function: Any) -> bool:
    """Whether a function is its code alone: no call of it can leave anything in it for the next."""
    return (
        type(function) is FunctionType
        and not function.__closure__
        and not function.__dict__
        and not function.__defaults__
        and not function.__kwdefaults__
        and not function.__annotations__
        and function.__globals__.keys() <= _NO_GLOBALS
    )


_buffers_lines = False


def line_buffer_c_output() -> None:
    """Let C's stdout go out line by line although it is a file, so that it keeps its place in a task's
    output.
    """
    global _buffers_lines
    if _buffers_lines:
        return
    import ctypes

    _buffers_lines = True
    with contextlib.suppress(OSError, AttributeError, ValueError):
        libc = ctypes.CDLL(None)
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, 1, 0)


class _BeforeLibraries:
    """Finds no module, but is asked before one is loaded that may print by C: see `line_buffer_c_output`.

    `ctypes`, which takes a part of a cold start, is so loaded by those only who load anything.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Be ready for the module."""
        # `ctypes` itself is ready when it loads the last of its parts.
        if name.partition(".")[0] != "ipyparcache" and name not in ("ctypes", "_ctypes", "struct", "_struct"):
            with contextlib.suppress(ValueError):  # another thread was faster
                sys.meta_path.remove(self)
            line_buffer_c_output()


class _RawStream(io.FileIO):
    """Standard output or error of a worker; notes when writing changes from one to the other."""

    def __init__(self, fd: int, worker: Worker):
        super().__init__(fd, "w", closefd=False)
        self._worker = worker

    def write(self, data: Any, /) -> int:
        """Write, after a mark if the other stream was written last, so that their order can be told."""
        worker = self._worker
        if worker.capture and worker.last_written != self.fileno():
            worker.last_written = self.fileno()
            worker.record_event(TO_OUT if self.fileno() == 1 else TO_ERR, b"")
        return super().write(data) or 0


class Worker:
    """State of a worker process."""

    def __init__(self, tasks: Channel, bell: Channel, block: Block):
        self.tasks = tasks
        self.bell = bell
        self.block = block
        self.call = 0  # number of the call whose function is loaded
        self.function: Callable[..., object] | None = None
        self.broken: bytes | None = None  # why the function did not load
        self.last_function: tuple[bytes, Any, int] = (b"", None, 0)  # pickle, function, size of its globals
        self.timed = False  # somebody looks at how long the running task has taken
        self.limits: tuple[int | None, bool] = (None, False)  # of threads: how many, and whether asked for
        self.ring_after = RING_AFTER
        self.state: bytes | None = None  # surroundings that came before their call, being large
        self.capture = False
        self.in_place: tuple[int | None, bool] | None = None  # thread limits, if no task has run since
        self.form = ""  # of the arguments of the last batch
        self.last_written = 1
        self.larges: dict[int, memoryview] = {}  # shared buffers of this call, by number
        self.definitions: dict[int, tuple[Any, list[int], str]] = {}  # shared objects not loaded yet
        self.objects: dict[int, object] = {}
        self.first = -1  # index of the first task of the running batch
        self.slot = 0
        self.count = 0  # tasks of the running batch
        self.files_sent = 0  # memory files that were handed over
        self.up_end = 0  # where the UP area of the running batch is free
        self.ends = (0, 0)  # sizes of stdout and stderr when the last task ended
        self.emitted = False
        self._event_lock = threading.Lock()
        self._own_pid = os.getpid()

    # -- events -------------------------------------------------------------------------------------------

    def record_event(self, kind: int, payload: bytes) -> None:
        """Append to the event log of the running batch; dropped if no task runs here."""
        with self._event_lock:
            if self.first < 0 or os.getpid() != self._own_pid:
                return
            words = self.block.words
            where = EVENTS + self.slot
            index = self.first + words[COMMITTED]
            out, err = os.lseek(1, 0, 2), os.lseek(2, 0, 2)
            head = EVENT.pack(kind, index, out, err, len(payload))
            words[where] = self.block.write(LOG + self.slot, words[where], [head, payload])
            self.emitted = True

    def _end_of_task(self) -> None:
        ends = (os.lseek(1, 0, 2), os.lseek(2, 0, 2))
        if self.emitted or ends != self.ends:
            self.record_event(END, b"")
            self.ends = ends
            self.emitted = False

    # -- loading ------------------------------------------------------------------------------------------

    def _load_packet(self, packet: Any, fds: list[int], form: str = "p") -> object:
        """Unpickle, or unmarshal, what `Packing` has described."""
        inline, shared, places, order = packet
        if form == "m":
            memory = inline if shared is None else map_shared(shared, fds)
            return marshal.loads(memory)
        if shared is None:
            return pickle.loads(inline, buffers=[self.larges[number] for number in order])
        memory = map_shared(shared, fds)
        pieces = [memory[start : start + size] for start, size in places]
        buffers = [pieces[1 + at] if at >= 0 else self.larges[-1 - at] for at in order]
        return pickle.loads(pieces[0], buffers=buffers)

    def _shared_object(self, number: int) -> object:
        if number in self.definitions:
            packet, fds, form = self.definitions.pop(number)
            self.objects[number] = self._load_packet(packet, fds, form)
        return self.objects[number]

    def _lacks(self, message: Message) -> bool:
        """Whether something that a batch shares with others has not come: the caller, who takes batches back
        from a worker that starts, may have fetched it together with them while this one was received.
        """
        for _, number in message[7]:
            if number in self.objects:
                continue
            if number not in self.definitions:
                return True
            _, shared, _, order = self.definitions[number][0]
            numbers = order if shared is None else [-1 - at for at in order if at < 0]
            if any(large not in self.larges for large in numbers):
                return True
        return any(at < 0 and -1 - at not in self.larges for at in message[10])

    def _columns(self, message: Message) -> tuple[Iterable[object], ...]:
        """The arguments of a batch, one column a parameter."""
        _, _, _, _, _, slot, form, constants, data, places, order, _ = message
        buffers: list[Buffer] = []
        if places:
            # One read for payload and buffers; the arrays are slices of this memory, which is ours.
            start = places[0][0]
            total = places[-1][0] + places[-1][1] - start
            if data is None:
                memory = memoryview(new_memory(total))
                self.block.read_into(DOWN + slot, start, memory)
            else:  # there was no room for it in the block
                memory = map_shared(data, [])
            data, *pieces = [memory[at - start : at - start + size] for at, size in places]
            buffers = [pieces[at] if at >= 0 else self.larges[-1 - at] for at in order]
        else:
            buffers = [self.larges[-1 - at] for at in order]
        columns = list(marshal.loads(data) if form == "m" else pickle.loads(data, buffers=buffers))
        for at, number in constants:
            columns[at] = repeat(self._shared_object(number))
        return tuple(columns)

    def _load_function(self, packet: Any, fds: list[int]) -> Any:
        """Unpickle the function of a call, or use the last one again if nothing could tell the difference."""
        payload = packet[0]
        kept, known, size = self.last_function
        if known is not None and payload == kept and len(known.__globals__) == size and not known.__dict__:
            return known
        function: Any = self._load_packet(packet, fds)
        if not callable(function):
            raise TypeError(f"{type(function).__name__} is not callable on the worker")
        if payload is not None and _holds_nothing(function):
            self.last_function = (payload, function, len(function.__globals__))
        return function

    def begin_call(self, message: Message, fds: list[int]) -> None:
        """Make the surroundings those of the caller, and load the function."""
        _, number, packet, options, state = message
        self.function = self.broken = None
        self.call = number
        self.capture, self.timed, threads, forced, prompt = options
        self.ring_after = PROMPT_AFTER if prompt else RING_AFTER
        self.limits = (threads, forced)
        self.last_written = 1
        try:
            state = state if state is not None else self.state
            if state is not None or self.in_place != self.limits:
                self._put_in_place(state)
            else:
                surroundings.enter_folder()
            self.state = None
            self.function = self._load_function(packet, fds)
        except BaseException as error:
            self.broken = self._dump_error(error)

    def end_call(self) -> None:
        """Forget the function and everything that was shared for it."""
        for _, fds, _ in self.definitions.values():
            for fd in fds:
                os.close(fd)
        self.function = None
        self.broken = None
        self.capture = False
        self.definitions.clear()
        self.objects.clear()
        self.larges.clear()

    def _put_in_place(self, state: bytes | None) -> None:
        """Give tasks the surroundings of the caller, whatever an earlier task did to them."""
        surroundings.restore(state, *self.limits)
        self._own_streams()
        self.in_place = self.limits

    def tidy(self) -> None:
        """Put in place again, while there is nothing to do, what the next call will want to find so."""
        # Functions that come with their arguments may be initialisers, whose effects are to last.
        if self.in_place is None and self.broken is None and self.form != "t":
            if hasattr(os, "sched_yield"):
                os.sched_yield()  # the caller first, if it waits for this processor
            with contextlib.suppress(Exception):  # will be raised again when it matters
                self._put_in_place(None)
                if len(sys._current_frames()) > 1:
                    self.in_place = None  # a thread that a task left behind may change it again

    def _own_streams(self) -> None:
        """Give tasks a working stdout and stderr again, whatever an earlier task did to them."""
        for fd, name in ((1, "stdout"), (2, "stderr")):
            saved, inode = self.saved[name]
            try:
                alike = os.fstat(fd).st_ino == inode
            except OSError:
                alike = False
            if not alike:
                os.dup2(saved, fd)
            stream = getattr(sys, name)
            if stream is not self.streams.get(name) or stream is None or stream.closed:
                made = io.TextIOWrapper(
                    _RawStream(fd, self),
                    encoding="utf-8",
                    errors="backslashreplace",
                    line_buffering=False,
                    write_through=True,
                )
                self.streams[name] = made
                setattr(sys, name, made)
                setattr(sys, f"__{name}__", made)

    # -- outcomes -----------------------------------------------------------------------------------------

    def _dump_error(self, error: BaseException) -> bytes:
        from ipyparcache.engine import outcome

        data = outcome.dump_exception(error, dump_result)
        return marshal.dumps((data, outcome.traceback_text(error, __file__)))

    def _far(self, form: int, payload: Buffer, buffers: list[memoryview], room: int) -> bytes:
        """Write a large outcome to the UP area of the batch; return the record that names it.

        If it has so many buffers that the record itself does not fit, it is written there as well.
        """
        passed = [self._passed(raw) if raw.nbytes >= IN_LARGE_PAGES else None for raw in buffers]
        parts, places = layout(payload, [raw for raw, to in zip(buffers, passed, strict=True) if to is None])
        base = self.up_end
        end = base + places[-1][0] + places[-1][1]
        area = self.block.map_area(UP + self.slot, end, True) if end - base >= MAPPED_FROM else None
        if area is None:
            self.block.write(UP + self.slot, base, parts)
        else:
            at = base
            for part in parts:
                piece = memoryview(part).cast("B")
                area[at : at + len(piece)] = piece
                at += len(piece)
        self.up_end = end + -end % 64
        first, *others = [(base + start, size) for start, size in places]
        following = iter(others)
        named = [next(following) if to is None else to for to in passed]
        record = marshal.dumps((form, None, (first, *named)))
        return record if len(record) <= room else self._far(FAR_RECORD, record, [], room)

    def _passed(self, raw: memoryview) -> tuple[int, int] | None:
        """Hand a large buffer over in a memory file of its own, which the caller maps without copying it.

        What stands for its place: a negative number, and the size. None where that cannot be done.
        """
        if not self.block.is_anonymous:
            return None
        try:
            fd = file_of(raw)
        except OSError:
            return None  # descriptors or memory are short: the caller's block may still have room
        try:
            self.files_sent += 1
            self.bell.send(("file", self.block.words[BATCH], self.files_sent), [fd])
        except (EOFError, ConnectionError):
            raise
        except OSError:
            return None  # too many files are under way
        finally:
            os.close(fd)
        return -self.files_sent, raw.nbytes

    def _record(self, value: object, room: int) -> bytes:
        """The record of what a task returned."""
        if type(value) in SCALARS:
            record = marshal.dumps(value, NO_REFERENCES)  # type: ignore[arg-type]
            if len(record) <= min(SMALL, room):
                return record
        buffers = Buffers(OUT_OF_BAND)
        try:
            payload = dump_result(value, buffers)
            if not buffers.taken and len(payload) <= min(SMALL, room - 64):
                return marshal.dumps((VALUE, payload, None))
            return self._far(FAR_VALUE, payload, buffers.taken, room)
        except BaseException as error:
            error.add_note(f"The task ran, but its result ({type(value).__name__}) could not be sent back.")
            return self._error_record(error, room)

    def _error_record(self, error: BaseException, room: int) -> bytes:
        data = self._dump_error(error)
        if len(data) <= min(SMALL, room - 64):
            return marshal.dumps((ERROR, data, None))
        return self._far(FAR_ERROR, data, [], room)

    # -- running ------------------------------------------------------------------------------------------

    def run_batch(self, message: Message) -> None:
        """Run the tasks of a batch, committing each outcome before the next task."""
        _, batch, call, first, count, slot = message[:6]
        self.in_place = None
        self.form = message[6]
        words = self.block.words
        memory = self.block.memory
        self.slot = slot
        self.count = count
        self.up_end = 0
        words[EVENTS + slot] = 0
        words[COMMITTED] = 0
        words[LOADED] = 0
        words[BATCH] = batch
        if call != self.call or self.broken is not None or self.function is None or self._lacks(message):
            words[BATCH] = 0
            self.bell.send(("broken", batch, call, self.broken or b""))
            return
        function: Callable[..., object] = apply if message[6] == "t" else self.function
        try:
            columns = self._columns(message)
        except BaseException as error:
            self.bell.send(("unread", batch, self._dump_error(error)))
            words[BATCH] = 0  # now that it is told: whoever reads them may have closed the bell
            return
        rows: Iterator[tuple[Any, ...]] = zip(*columns, strict=False) if columns else iter([()] * count)
        if columns:
            rows = islice(rows, message[11], message[11] + count)
        timed = self.timed
        ring_after = self.ring_after
        capture = self.capture
        bottom = position = self.block.slot(slot)
        bound = bottom + SLOT - 64 * (count + 1)  # each further task may need a far record at least
        scalars = SCALARS
        dumps: Callable[[Any, int], bytes] = marshal.dumps
        ends: list[float] = []
        note_end = ends.append
        done = 0
        failed = False
        begun = last_ring = monotonic()
        words[LOADED] = 1
        if timed:
            words[STARTED] = int(begun * 1e9)
        self.first = first
        if capture:
            self.ends = (os.lseek(1, 0, 2), os.lseek(2, 0, 2))
            self.emitted = False
        # A few hundred nanoseconds a task: what is not needed for each of them is looked at every `CHECK`
        # seconds.
        check_at = begun + CHECK
        base = batch << POSITION_BITS
        for row in rows:
            try:
                value = function(*row)
                if type(value) in scalars and len(record := dumps(value, NO_REFERENCES)) <= 64:
                    pass
                else:
                    record = self._record(value, bound + 64 * done - position)
                    value = row = None  # type: ignore[assignment] # freed before the next one is made
            except BaseException as error:
                record = self._error_record(error, bound + 64 * done - position)
                failed = True
            if capture:
                self._end_of_task()
            memory[position : (position := position + len(record))] = record
            words[COMMITTED] = done = done + 1
            note_end(now := monotonic())
            if timed:
                words[STARTED] = int(now * 1e9)
            if now < check_at and not failed:
                continue
            # The rest of the batch may have been taken back, see `Crew.steal`: not while this task took less
            # than `CHECK` seconds.
            if base <= words[LIMIT] <= base + done:
                break
            check_at = now + CHECK
            if done == count or words[CANCEL] >= batch:
                break
            if (failed or now - last_ring > ring_after) and self.bell.send(
                ("ring", batch, done, position - bottom, begun, array("d", ends).tobytes(), False), wait=False
            ):
                last_ring = now
                begun = now
                ends.clear()
            failed = False
        rows = columns = None  # type: ignore[assignment]
        with self._event_lock:
            self.first = -1
        # What was committed counts, though this process may end before it is told.
        words[ENDED + slot] = base + done
        words[BATCH] = 0
        self.bell.send(("ring", batch, done, position - bottom, begun, array("d", ends).tobytes(), True))

    def serve(self, idle_seconds: float) -> None:
        """Answer messages until told to exit, until the caller is gone, or until idle for too long."""
        import select

        waiting = select.poll()
        waiting.register(self.tasks, select.POLLIN)
        idle = idle_seconds * 1000
        kind = None
        while True:
            received = self.tasks.receive(wait=False)
            if received is None:
                self.tidy()
                if kind == "both":  # who makes one short call often makes another
                    received = receive_soon(self.tasks)
            if received is None:
                if "cloudpickle" not in sys.modules and not waiting.poll(LEISURE):
                    line_buffer_c_output()
                    self._import(["cloudpickle.cloudpickle"])  # the next function may need it
                received = self.tasks.receive_within(idle)
                if received is None:
                    return
            message, fds = received
            kind = message[0]
            if kind == "batch":
                self.run_batch(message)
            elif kind == "both":
                self.begin_call(message[1], fds)
                self.run_batch(message[2])
            elif kind == "call":
                self.begin_call(message, fds)
            elif kind == "large":
                try:
                    self.larges[message[1]] = map_shared(message[2], fds)
                except OSError as error:
                    self.broken = self._dump_error(error)
            elif kind == "state":
                self.state = bytes(map_shared(message[1], fds))
            elif kind == "define":
                for fd in self.definitions.pop(message[1], (None, [], ""))[1]:
                    os.close(fd)
                self.definitions[message[1]] = (message[2], fds, message[3])
            elif kind == "forget":
                self.objects.pop(message[1], None)
                for fd in self.definitions.pop(message[1], (None, [], ""))[1]:
                    os.close(fd)
            elif kind == "end":
                self.end_call()
            elif kind == "sync":
                self.bell.send(("sync", message[1]))
            elif kind == "import":
                _, names, limits, state = message
                if limits is not None:
                    self.limits = limits
                    try:
                        self._put_in_place(state)
                    except Exception:
                        self.state = state  # the next call raises it
                self._import(names)
            elif kind == "exit":
                return

    def _import(self, names: Iterable[str]) -> None:
        """Load modules before they are needed; one that fails will fail again, with its reason, when
        it is.
        """
        import importlib

        for name in names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    saved: dict[str, tuple[int, int]]  # descriptor and inode
    streams: dict[str, io.TextIOWrapper]


_worker: Worker | None = None


class LocalTask(threading.local):
    """The task that a thread of this very process runs, for the backends without worker processes."""

    index: int | None = None
    sink: Callable[[int, bytes], None] | None = None


local_task = LocalTask()


def emit(event: bytes) -> None:
    """Send an event of the running task to the caller, in order with what the task prints before and
    after.
    """
    if local_task.sink is not None and local_task.index is not None:
        local_task.sink(local_task.index, event)
    elif _worker is not None:
        _worker.record_event(EMIT, event)


def current_task() -> int | None:
    """Index of the task that runs in this process; None outside of one."""
    if local_task.index is not None:
        return local_task.index
    if _worker is None or _worker.first < 0:
        return None
    return _worker.first + _worker.block.words[COMMITTED]


def memory_of_task() -> memoryview | None:
    """Memory that the caller gets to read if this process ends in the running task; None where it cannot.

    It is the task's until it returns: its outcome is then written there. A batch of several has none.
    """
    if local_task.index is not None or _worker is None or _worker.first < 0 or _worker.count != 1:
        return None
    if os.getpid() != _worker._own_pid:
        return None
    start = _worker.block.slot(_worker.slot)
    return memoryview(_worker.block.memory)[start : start + SLOT]


def is_worker() -> bool:
    """Whether this process is a worker."""
    return _worker is not None


def _forget_in_child() -> None:
    """A child that a task forked is no worker: it has nothing to say to the caller."""
    global _worker
    worker, _worker = _worker, None
    if worker is not None:
        worker._event_lock = threading.Lock()  # a thread that is not here may have held it
        worker.block.let_go()
        worker.tasks.close()
        worker.bell.close()


def run_worker(tasks: Channel, bell: Channel, block: Block, out: int, err: int, idle_seconds: float) -> None:
    """Be a worker; return when it is time to exit. `out` and `err` are where the output of tasks goes."""
    global _worker
    os.dup2(out, 1)
    os.dup2(err, 2)
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it lives as long as the process
    # An empty handler, not SIG_IGN: that one would be inherited by programs that a task starts.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    if not faulthandler.is_enabled():
        faulthandler.enable(2)  # where a task crashed is told on its stderr
    worker = Worker(tasks, bell, block)
    worker.saved = {"stdout": (out, os.fstat(out).st_ino), "stderr": (err, os.fstat(err).st_ino)}
    worker.streams = {}
    worker._own_streams()
    _worker = worker
    if not _buffers_lines:
        sys.meta_path.insert(0, _BeforeLibraries())
    os.register_at_fork(after_in_child=_forget_in_child)
    try:
        bell.send(("hello", os.getpid()))
        worker.serve(idle_seconds)
    except (EOFError, ConnectionError):
        return  # the caller is gone
    except BaseException:
        if os.getpid() != worker._own_pid:
            os._exit(0)  # a child that a task forked, and that did not end when the task did
        raise


def leave() -> None:
    """End the process as an interpreter ends, but without waiting for threads that tasks left behind."""
    import atexit

    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)
