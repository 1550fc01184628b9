"""Iterations of a loop that were sent together: what came home of them, and how it is read."""

from __future__ import annotations

import codecs
import gc
import marshal
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipyparcache.cells import travel
from ipyparcache.cells.arrivals import Key
from ipyparcache.cells.journal import PLAIN
from ipyparcache.cells.messages import ChunkResult, Left, Plain
from ipyparcache.engine.outcome import Error


@dataclass
class Chunk:
    """Iterations sent together, until they are merged."""

    number: int
    first: int
    count: int
    objects: list[dict[int, object]]
    events: list[tuple[str, Any]] = field(default_factory=list)
    records: dict[int, tuple[bytes, list[Any]]] = field(default_factory=dict)
    shown: int = 0
    merged: bool = False
    key: str | None = None
    decoders: dict[str, codecs.IncrementalDecoder] = field(default_factory=dict)
    result: ChunkResult | None = None
    error: Error | None = None
    waits_since: float = 0.0  # clock as something was put out behind a write that may raise
    at: int | None = None  # the iteration that a worker ran when it died

    @property
    def is_over(self) -> bool:
        """Whether a worker has ended it, in whatever way."""
        return self.result is not None or self.error is not None

    def objects_of(self, number: int) -> Mapping[int, object]:
        """The mutable objects that the element of an iteration leads to, by number."""
        return self.objects[number - self.first] if self.objects else {}


class Reader:
    """Reads what came home, with the live objects that it refers to.

    Attributes
    ----------
    by_name
        Gives the bindings of a plain iteration as a dict.
    """

    def __init__(
        self,
        parcel: travel.Parcel,
        namespace: dict[str, Any],
        by_name: Callable[[Plain], dict[str, object]],
    ) -> None:
        self.parcel = parcel
        self.namespace = namespace
        self.by_name = by_name

    def load(self, data: bytes, buffers: Sequence[Any], objects: Mapping[int, object]) -> Any:
        """What was pickled on a worker; `objects` are those of the element that it belongs to."""
        live = self.parcel.objects

        def resolve(key: Key) -> object:
            return live[key[1]] if key[0] == "b" else objects[key[1]]

        return travel.load_result(data, buffers, self.namespace, resolve)

    def iterations_of(self, chunk: Chunk) -> Iterator[tuple[int, Left]]:
        """What the iterations of a chunk left, in order, as far as they came home."""
        for first in sorted(chunk.records):
            data, buffers = chunk.records[first]
            if data.startswith(PLAIN):
                for offset, (entries, values, *elements) in enumerate(load_plain(data)):
                    bindings = self.by_name(values)
                    value = elements[0] if elements else None
                    yield first + offset, (list(entries), bindings, [], [], value, {})
                continue
            objects = chunk.objects_of(first)
            for offset, left in enumerate(self.load(data, buffers, objects) if data else buffers):
                yield first + offset, left

    def bindings_of(self, chunk: Chunk, number: int) -> Mapping[str, object]:
        """What an iteration had bound, as far as it came home."""
        found = [left[1] for at, left in self.iterations_of(chunk) if at == number]
        return found[-1] if found else {}


def load_plain(data: bytes) -> list[Any]:
    """Iterations of a plain record: nothing new in them needs the collector at once."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        found: list[Any] = marshal.loads(memoryview(data)[len(PLAIN) :])
        if bytes in set(map(type, found)):
            found = [pickle.loads(left) if type(left) is bytes else left for left in found]
    finally:
        if collecting:
            gc.enable()
    return found


def size_of(records: Iterable[tuple[bytes, list[Any]]]) -> int:
    """How many bytes records have, with their buffers."""
    size = 0
    for data, buffers in records:
        size += len(data)
        for buffer in buffers:
            size += memoryview(buffer).nbytes
    return size
