"""What travels between the one who schedules tasks and those who run them: batches there, reports back."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from ipyparcache.engine.outcome import Error
from ipyparcache.lean import Record

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any, TypeAlias


class Batch(Record):
    """Tasks with neighbouring indices, which one worker runs one after another.

    `rows` holds one tuple of arguments a task; with `triples` a row is (function, arguments, keywords) and
    the function of the call is not used. `careful` says whether each argument is to be looked at again,
    because code of the user has run since the batch before was drawn; or it is who knows that.
    """

    __slots__ = ("careful", "first", "number", "offset", "packed", "rows", "slot", "triples")

    def __init__(
        self,
        first: int,
        rows: Sequence[tuple[object, ...]],
        triples: bool = False,
        careful: bool | Callable[[], bool] = True,
        number: int = 0,
        slot: int = 0,
        packed: Any = None,
        offset: int = 0,
    ):
        self.first = first
        self.rows = rows
        self.triples = triples
        self.careful = careful
        self.number = number  # given when it is sent; grows within a worker
        self.slot = slot
        # The arguments as they were pickled when it was sent first, and where its rows begin in them: what is
        # sent again is what was sent, whatever has happened to the objects since.
        self.packed = packed
        self.offset = offset

    def __len__(self) -> int:
        return len(self.rows)

    def is_careful(self) -> bool:
        """Whether each argument is to be looked at again."""
        return self.careful if isinstance(self.careful, bool) else self.careful()

    def rest(self, position: int) -> Batch:
        """The tasks from `position` on, as a batch that was not sent yet."""
        return self.part(position, len(self.rows))

    def part(self, start: int, stop: int) -> Batch:
        """The tasks from position `start` to before `stop`, as a batch that was not sent yet."""
        return Batch(
            self.first + start,
            self.rows[start:stop],
            self.triples,
            self.careful,
            packed=self.packed,
            offset=self.offset + start,
        )


class Ran(Record):
    """Tasks of a batch that ran: those from `position` on, as many as there are `values`.

    Where a task failed, its value is its `Error`, and `failed` is set. `times` holds the clock as the first
    began and as each ended. `complete` says that the worker is done with the batch; tasks behind were not
    run then.
    """

    __slots__ = ("batch", "complete", "failed", "position", "times", "values", "worker")

    def __init__(
        self,
        batch: Batch,
        position: int,
        values: list[object],
        failed: bool,
        times: array[float],
        worker: int,
        complete: bool,
    ):
        self.batch = batch
        self.position = position
        self.values = values
        self.failed = failed
        self.times = times
        self.worker = worker
        self.complete = complete


class Died(Record):
    """A worker ended while the task at `position` of the batch ran; those before it are reported by `Ran`."""

    __slots__ = ("batch", "exit_code", "max_rss", "memory", "position", "signal", "worker")

    def __init__(
        self,
        batch: Batch,
        position: int,
        signal: int | None,
        exit_code: int | None,
        max_rss: int,
        worker: int,
        memory: bytes = b"",
    ):
        self.batch = batch
        self.position = position
        self.signal = signal
        self.exit_code = exit_code
        self.max_rss = max_rss
        self.worker = worker
        # What the task of a batch of one left in the memory that it shares with the caller.
        self.memory = memory


class NotBegun(Record):
    """A batch that a worker had been sent, of which it has run nothing."""

    __slots__ = ("batch",)

    def __init__(self, batch: Batch):
        self.batch = batch


class NotRead(Record):
    """A batch whose arguments do not unpickle on the worker; nothing of it has run."""

    __slots__ = ("batch", "error")

    def __init__(self, batch: Batch, error: Error):
        self.batch = batch
        self.error = error


class NoFunction(Record):
    """The function does not unpickle on the worker: no task of the call can run."""

    __slots__ = ("error",)

    def __init__(self, error: Error):
        self.error = error


Report: TypeAlias = Ran | Died | NotBegun | NotRead | NoFunction


class Output(Record):
    """Bytes that a task wrote to a stream."""

    __slots__ = ("data", "stream")

    def __init__(self, stream: str, data: bytes):
        self.stream = stream  # "stdout" or "stderr"
        self.data = data


class Emitted(Record):
    """What a task sent with `worker.emit`."""

    __slots__ = ("payload",)

    def __init__(self, payload: bytes):
        self.payload = payload


Event: TypeAlias = Output | Emitted
OnEvent: TypeAlias = Callable[[int, Event], None]


class CallOptions(Record):
    """What the workers must know of a call."""

    __slots__ = (
        "around_thread",
        "capture",
        "inner_forced",
        "inner_threads",
        "keep_arguments",
        "on_event",
        "prompt",
        "timed",
    )

    def __init__(
        self,
        capture: bool = False,
        timed: bool = False,
        inner_threads: int | None = None,
        inner_forced: bool = False,
        keep_arguments: bool = False,
        prompt: bool = False,
        on_event: OnEvent | None = None,
        around_thread: Callable[[], AbstractContextManager[object]] = nullcontext,
    ):
        self.capture = capture
        self.timed = timed
        self.inner_threads = inner_threads
        self.inner_forced = inner_forced
        self.keep_arguments = keep_arguments  # tasks may be sent again after they have run
        self.prompt = prompt  # somebody waits for each result
        self.on_event = on_event
        # Entered by each thread of the threads backend around all that it runs.
        self.around_thread = around_thread
