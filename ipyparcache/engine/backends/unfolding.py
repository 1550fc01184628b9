"""Outcomes that are no scalars, out of the records and the memory in which a worker has left them."""

from __future__ import annotations

import errno
import marshal
import os

from ipyparcache.engine.outcome import Error, load_exception, with_source_lines
from ipyparcache.engine.transport import MAPPED_FROM, UP, map_file, new_memory
from ipyparcache.engine.worker import ERROR, FAR_ERROR, FAR_RECORD, FAR_VALUE, VALUE
from ipyparcache.lean import pickle

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

    from ipyparcache.engine.batches import Batch
    from ipyparcache.engine.pool import WorkerHandle


def error_of(data: bytes, worker: WorkerHandle) -> Error:
    """The failure that a worker has described."""
    exception, text = marshal.loads(data)
    return Error(load_exception(exception), with_source_lines(text), 0.0, worker.pid)


def unfold(worker: WorkerHandle, batch: Batch, record: tuple[Any, ...]) -> Any:
    """A value that is no scalar, or an `Error`."""
    form, data, places = record
    try:
        if form == VALUE:
            return pickle.loads(data)
        if form == ERROR:
            return error_of(data, worker)
        pieces: list[Any] = []
        worker.used_areas = True
        for start, size in places:
            if start < 0:
                pieces.append(_passed(worker, -start, size))
                continue
            memory = new_memory(size)
            large = size >= MAPPED_FROM
            area = worker.block.map_area(UP + batch.slot, start + size, False) if large else None
            if area is None:
                worker.block.read_into(UP + batch.slot, start, memory)
            else:
                memoryview(memory)[:] = area[start : start + size]
            pieces.append(memory)
        if form == FAR_RECORD:
            return unfold(worker, batch, marshal.loads(pieces[0]))
        if form == FAR_ERROR:
            return error_of(bytes(pieces[0]), worker)
        assert form == FAR_VALUE
        return pickle.loads(pieces[0], buffers=pieces[1:])
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        error.add_note("The task ran, but its result could not be unpickled here.")
        return Error(error, "", 0.0, worker.pid)


def _passed(worker: WorkerHandle, number: int, size: int) -> memoryview:
    """The memory of a buffer that came in a file of its own."""
    if number not in worker.files:
        raise OSError(errno.EMFILE, "no descriptor was free to receive it")
    fd = worker.files.pop(number)
    try:
        return map_file(fd, size)
    finally:
        os.close(fd)
