"""What the iterations of a loop put out, passed on to the cell in their order."""

from __future__ import annotations

import codecs
import logging
import pickle
import sys
import time
import warnings
from collections.abc import MutableMapping
from typing import Any

from ipyparcache.cells import showing, travel
from ipyparcache.cells.chunks import Chunk, Reader
from ipyparcache.cells.plans import Host, LoopOptions
from ipyparcache.parallel.dispatch import Emitted, Output

HOLD = 0.5  # seconds that the output of a running iteration waits behind a write that may raise


class Relay:
    """Takes the events of chunks, and passes on what they put out.

    Attributes
    ----------
    marked
        Whether chunks tell which entry of an iteration's log comes next, as its replay may raise.
    prints_here
        Whether the kernel prints between what iterations put out.
    keeps
        Whether events are wanted again after they were passed on.
    figures
        Where figures go that iterations leave open.
    on_threads
        What iterations on threads of this process display, by number.
    """

    def __init__(
        self,
        host: Host,
        options: LoopOptions,
        reader: Reader,
        figures: list[object],
        on_threads: MutableMapping[int, tuple[tuple[object, ...], dict[str, Any]]],
        *,
        marked: bool,
        prints_here: bool,
        keeps: bool,
    ) -> None:
        self.host = host
        self.options = options
        self.reader = reader
        self.figures = figures
        self.on_threads = on_threads
        self.marked = marked
        self.prints_here = prints_here
        self.keeps = keeps

    def take(self, event: object, chunk: Chunk, *, is_live: bool, is_held: bool) -> None:
        """Note what a running chunk tells, and pass on what can be seen already.

        Parameters
        ----------
        is_live
            Whether it is the first chunk that is not over.
        is_held
            Whether what it did is merged later, and its output comes before that.
        """
        if isinstance(event, Output):
            chunk.events.append((event.stream, event.data))
        elif isinstance(event, Emitted):
            kind, *rest = pickle.loads(event.payload)
            if kind == showing.RECORD:
                first, data, buffers = rest
                chunk.records[first] = (data, buffers)
            elif kind == showing.TEXT:
                stream, text = rest[0]
                chunk.events.append((stream, text.encode("utf-8", "surrogatepass")))
            elif kind == showing.AGAIN:
                # A failed attempt: what it printed and left does not count.
                chunk.events.clear()
                chunk.records.pop(rest[0], None)
            else:
                chunk.events.append(("", (kind, rest[0])))
        if self.options.order == "free" and not self.options.retries:
            self.show(chunk)
        elif is_live:
            self.show_live(chunk, is_held=is_held)

    def show_live(self, chunk: Chunk, *, is_held: bool) -> None:
        """Pass on what the chunk has put out so far, while it runs, as far as the serial loop shows it too.

        A write that is replayed may raise: what comes behind it waits until that is known, if it is not long.
        """
        if self.options.retries:
            return
        if not self.marked or is_held:
            self.show(chunk)
            return
        if chunk.count > 1:
            return
        for place in range(chunk.shown, len(chunk.events)):
            stream, data = chunk.events[place]
            if stream or data[0] != showing.ENDED:
                continue
            # Threads tell each write, and not that one begins.
            if data[1][1] == showing.BEGINS or (self.prints_here and data[1][1] != showing.AT_END):
                chunk.waits_since = chunk.waits_since or time.monotonic()
                if self.prints_here or time.monotonic() - chunk.waits_since < HOLD:
                    self._show_until(chunk, place)
                    return
        self._show_until(chunk, len(chunk.events))

    def show(self, chunk: Chunk) -> None:
        """Pass on what the chunk has put out so far."""
        self._show_until(chunk, len(chunk.events))
        if not self.keeps:
            chunk.events.clear()
            chunk.shown = 0

    def show_of(self, chunk: Chunk, number: int, entry: int = showing.AT_END) -> None:
        """Pass on what a chunk has put out up to an entry of an iteration's log, or to its end."""
        for place in range(chunk.shown, len(chunk.events)):
            stream, data = chunk.events[place]
            if not stream and data[0] == showing.ENDED and data[1][1] != showing.BEGINS:
                at, before = data[1]
                if at > number or (at == number and entry >= 0 and not 0 <= before <= entry):
                    return
                self._show_until(chunk, place + 1)

    def _show_until(self, chunk: Chunk, end: int) -> None:
        while chunk.shown < end:
            stream, data = chunk.events[chunk.shown]
            chunk.shown += 1
            if stream:
                self._write(stream, data, chunk)
            else:
                self._show_special(*data)

    def _write(self, stream: str, data: bytes, chunk: Chunk) -> None:
        if stream not in chunk.decoders:
            chunk.decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
        text = chunk.decoders[stream].decode(bytes(data))
        if self.options.order == "free" and text:
            mark = f"[{chunk.first}] "
            text = mark + text[:-1].replace("\n", "\n" + mark) + text[-1]
        self.host.write(stream, text)

    def _show_special(self, kind: int, payload: Any) -> None:
        load = self.reader.load
        if kind == showing.DISPLAY:
            data, buffers = payload
            objects, options = load(data, buffers, {})
            self.host.display(objects, options)
        elif kind == showing.CLEAR:
            self.host.clear_output(payload)
        elif kind == showing.FIGURE:
            data, buffers = payload
            self.figures.append(load(data, buffers, {})[0][0])
        elif kind == showing.SHOWN:
            self.host.display(*self.on_threads.pop(payload))
        elif kind == showing.WARNING:
            data, buffers, file_name, line, judged_here, filters_changed = payload
            message, category = load(data, buffers, {})
            if filters_changed:
                showing.forget_warnings()
            self.host.clear_before_more()
            if judged_here:
                _warn(message, category, file_name, line, self.host.namespace)
            else:
                warnings.showwarning(message, category, file_name, line)
        elif kind == showing.FILTERS:
            showing.forget_warnings()
        elif kind == showing.LOGGED:
            self.host.clear_before_more()
            logging.getLogger(payload["name"]).handle(logging.makeLogRecord(payload))


def _warn(
    message: Any, category: type[Warning], file_name: str, line: int, namespace: dict[str, Any]
) -> None:
    """A warning of a worker, as if it had been raised here: filters and "once" count over all iterations."""
    registry = namespace.setdefault("__warningregistry__", {})
    module = travel.MAIN
    for name, loaded in list(sys.modules.items()):
        if name != travel.MAIN and getattr(loaded, "__file__", None) == file_name:
            module, registry = name, loaded.__dict__.setdefault("__warningregistry__", {})
            break
    warnings.warn_explicit(message, category, file_name, line, module, registry)
