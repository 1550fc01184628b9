"""A call whose only batch goes to one worker in one message, and comes back in one."""

from __future__ import annotations

import contextlib
import io
import marshal
import os
import struct
from array import array
from types import FunctionType

from ipyparcache import pickling
from ipyparcache.engine.batches import Batch, Ran
from ipyparcache.engine.packing import Packed
from ipyparcache.engine.pool import Lease, the_pool
from ipyparcache.engine.surroundings import Surroundings
from ipyparcache.engine.transport import INLINE, Message, receive_soon
from ipyparcache.engine.worker import SCALARS
from ipyparcache.lean import Record, pickle

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

AT_ONCE = 5  # milliseconds that the only batch of a call may take before a crew is made for it

surroundings = Surroundings()  # of this process, as they were when a call last asked


class Begun(Record):
    """A call whose only batch was sent to a worker, for a crew to finish; what the worker has said so far."""

    __slots__ = ("call", "lease", "said", "state")

    def __init__(self, lease: Lease, call: int, state: tuple[int, bytes], said: Message | None = None):
        self.lease = lease
        self.call = call
        self.state = state
        self.said = said


def run_at_once(function: FunctionType, batch: Batch, threads: int) -> Ran | Begun | None:
    """Run the only batch of a call where it takes no more than a message to a worker and one back.

    So it is for a function that is known to stand alone, or is imported by its name, with plain arguments
    and results. None if nothing was sent; a `Begun` if the answer is not as simple as that or is long in
    coming.
    """
    payload = pickling.pickled_before(function)
    if payload is None and not pickling.is_importable(function):
        return None
    columns = tuple(zip(*batch.rows, strict=True))
    for column in columns:
        if not SCALARS.issuperset(map(type, column)):
            return None
    data = marshal.dumps(columns)
    if len(data) > INLINE:
        return None
    pool = the_pool()
    lease = pool.lease_waiting()
    if lease is None:
        return None
    try:
        begun = Begun(lease, pool.next_call(), surroundings.take())
        version, pickled = begun.state
        if payload is None and pickling.is_importable(function):  # not if its module was edited
            payload = pickle.dumps(function, 5)
        worker = lease.workers[0]
        state = None if worker.state_version == version else pickled
        if payload is None or len(payload) > INLINE or (state is not None and len(state) > INLINE):
            pool.release(lease)
            return None
        batch.number = number = worker.next_batch
        batch.packed = Packed("m", [], data, [], (), [])
        worker.next_batch = number + 1
        worker.written_to = 0
        count = len(batch.rows)
        call = ("call", begun.call, (payload, None, None, ()), (False, False, threads, False, False), state)
        message = ("batch", number, begun.call, batch.first, count, 0, "m", (), data, (), (), 0)
        worker.outstanding.append(batch)
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            worker.tasks.send(("both", call, message))
        worker.state_version = version
        try:
            received = receive_soon(worker.bell) or worker.bell.receive_within(AT_ONCE)
        except EOFError:  # it is gone, and so the crew will find it
            return begun
        if received is None:
            return begun
        said, fds = received
        if said[0] == "file" and fds:
            worker.files[said[2]] = fds[0]
            return begun
        begun.said = said
        if said[0] != "ring" or said[1] != number or said[2] != count or not said[6]:
            return begun
        if [os.lseek(fd, 0, os.SEEK_END) for fd in worker.streams] != worker.read_to:
            return begun  # something was printed
        start = worker.block.slot(0)
        values = values_in(worker.block.memory[start : start + said[3]], count)
        if tuple in set(map(type, values)):
            return begun
        worker.outstanding.clear()
        pool.release(lease)
    except BaseException:
        pool.release(lease)
        raise
    times = array("d", [said[4]])
    times.frombytes(said[5])
    return Ran(batch, 0, values, False, times, worker.pid, True)


def values_in(records: bytes, count: int) -> list[Any]:
    """What so many records of a slot hold."""
    return list(marshal.loads(b"(" + struct.pack("<I", count) + records))


def first_values_in(records: bytes, count: int) -> tuple[list[Any], int]:
    """What the first so many records say, and their length; there may be others behind them."""
    head = b"(" + struct.pack("<I", count)
    stream = io.BytesIO(head + records)
    return list(marshal.load(stream)), stream.tell() - len(head)
