"""What travels between the one who schedules tasks and those who run them: batches there, reports back."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

from ipyparcache.engine.outcome import Error


@dataclass(slots=True)
class Batch:
    """Tasks with neighbouring indices, which one worker runs one after another.

    `rows` holds one tuple of arguments a task; with `triples` a row is (function, arguments, keywords) and
    the function of the call is not used. `careful` asks for each argument to be looked at again, because
    code of the user has run since the batch before was drawn.
    """

    first: int
    rows: Sequence[tuple[object, ...]]
    triples: bool = False
    careful: bool = True
    number: int = 0  # given when it is sent; grows within a worker
    slot: int = 0
    # The arguments as they were pickled when it was sent first, and where its rows begin in them: what is
    # sent again is what was sent, whatever has happened to the objects since.
    packed: Any = None
    offset: int = 0

    def __len__(self) -> int:
        return len(self.rows)

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


@dataclass(slots=True)
class Ran:
    """Tasks of a batch that ran: those from `position` on, as many as there are `values`.

    Where a task failed, its value is its `Error`, and `failed` is set. `times` holds the clock as the first
    began and as each ended. `complete` says that the worker is done with the batch; tasks behind were not
    run then.
    """

    batch: Batch
    position: int
    values: list[object]
    failed: bool
    times: array[float]
    worker: int
    complete: bool


@dataclass(slots=True)
class Died:
    """A worker ended while the task at `position` of the batch ran; those before it are reported by `Ran`."""

    batch: Batch
    position: int
    signal: int | None
    exit_code: int | None
    max_rss: int
    worker: int
    memory: bytes = b""  # what the task of a batch of one left in the memory that it shares with the caller


@dataclass(slots=True)
class NotBegun:
    """A batch that a worker had been sent, of which it has run nothing."""

    batch: Batch


@dataclass(slots=True)
class NotRead:
    """A batch whose arguments do not unpickle on the worker; nothing of it has run."""

    batch: Batch
    error: Error


@dataclass(slots=True)
class NoFunction:
    """The function does not unpickle on the worker: no task of the call can run."""

    error: Error


Report: TypeAlias = Ran | Died | NotBegun | NotRead | NoFunction


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that a task wrote to a stream."""

    stream: str  # "stdout" or "stderr"
    data: bytes


@dataclass(frozen=True, slots=True)
class Emitted:
    """What a task sent with `worker.emit`."""

    payload: bytes


Event: TypeAlias = Output | Emitted
OnEvent: TypeAlias = Callable[[int, Event], None]


@dataclass(slots=True)
class CallOptions:
    """What the workers must know of a call."""

    capture: bool = False
    timed: bool = False
    inner_threads: int | None = None
    inner_forced: bool = False
    keep_arguments: bool = False  # tasks may be sent again after they have run
    prompt: bool = False  # somebody waits for each result
    on_event: OnEvent | None = None
    # Entered by each thread of the threads backend around all that it runs.
    around_thread: Callable[[], AbstractContextManager[object]] = nullcontext
