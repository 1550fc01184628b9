"""What tasks print and emit, passed on in the order in which it came to be."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ipyparcache.engine.batches import CallOptions, Emitted, Output
from ipyparcache.engine.transport import BATCH, COMMITTED, EVENTS, LOG, SLOTS
from ipyparcache.engine.worker import EMIT, EVENT, TO_ERR, TO_OUT

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

    from ipyparcache.engine.pool import WorkerHandle


class Printed:
    """How far the output and the event logs of the workers of a call were read."""

    def __init__(self, options: CallOptions):
        self._capture = options.capture
        self._on_event = options.on_event
        self._log_read: dict[int, list[int]] = {}  # by worker: how much of the log of each slot
        self._decoders: dict[str, Any] = {}

    def forget(self, worker: WorkerHandle, slot: int) -> None:
        """The next batch of a slot begins its log anew."""
        if worker.number in self._log_read:
            self._log_read[worker.number][slot] = 0

    def pass_on(self, worker: WorkerHandle, live: bool, upto: int | None = None) -> None:
        """Hand on what tasks of a worker have printed and emitted: up to the end of a task, or up to now."""
        if worker.gone or not worker.outstanding:
            if not worker.gone and not self._capture:
                self.forward(worker)
            return
        if not self._capture:
            self.forward(worker)
            if self._on_event is None:
                return
        on_event = self._on_event
        if on_event is None:
            return
        words = worker.block.words
        batch = worker.outstanding[0]
        before = (words[BATCH], words[COMMITTED])
        sizes = [os.fstat(fd).st_size for fd in worker.streams] if live and self._capture else None
        after = (words[BATCH], words[COMMITTED])
        read = self._log_read.setdefault(worker.number, [0] * SLOTS)
        if before[0] == batch.number or upto is not None:
            end = words[EVENTS + batch.slot]
            start = read[batch.slot]
            if end > start:
                log = worker.block.read(LOG + batch.slot, start, end - start)
                at = 0
                while at < len(log):
                    kind, index, out, err, size = EVENT.unpack_from(log, at)
                    at += EVENT.size
                    index = min(index, batch.first + len(batch) - 1)
                    if self._capture:
                        self._hand_over(worker, index, (out, err))
                    if kind in (TO_OUT, TO_ERR):
                        worker.written_to = kind - TO_OUT
                    elif kind == EMIT:
                        on_event(index, Emitted(log[at : at + size]))
                    at += size
                read[batch.slot] = end
        if sizes is not None and before == after and before[0] == batch.number and before[1] < len(batch):
            self._hand_over(worker, batch.first + before[1], sizes)

    def _hand_over(self, worker: WorkerHandle, index: int, ends: Sequence[int]) -> None:
        # What Python wrote came right behind the last record; bytes of the other stream are from below it.
        for which in (worker.written_to, 1 - worker.written_to):
            start = worker.read_to[which]
            if ends[which] > start:
                data = os.pread(worker.streams[which], ends[which] - start, start)
                worker.read_to[which] = start + len(data)
                if data and self._on_event is not None:
                    self._on_event(index, Output(("stdout", "stderr")[which], data))

    def forward(self, worker: WorkerHandle) -> None:
        """Write what was printed to this process's own streams."""
        if [os.lseek(fd, 0, os.SEEK_END) for fd in worker.streams] == worker.read_to:
            return
        for which, name in enumerate(("stdout", "stderr")):
            start = worker.read_to[which]
            size = os.lseek(worker.streams[which], 0, os.SEEK_END)
            while start < size:
                data = os.pread(worker.streams[which], min(size - start, 1 << 20), start)
                if not data:
                    break
                start += len(data)
                worker.read_to[which] = start
                stream = getattr(sys, name)
                if stream is not None:
                    stream.write(self._text(worker, which, data))
                    stream.flush()

    def _text(self, worker: WorkerHandle, which: int, data: bytes) -> str:
        import codecs

        key = f"{worker.number}.{which}"
        if key not in self._decoders:
            self._decoders[key] = codecs.getincrementaldecoder("utf-8")("replace")
        return str(self._decoders[key].decode(data))
