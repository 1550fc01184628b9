"""The interface between those who schedule tasks and those who run them, and the registry of backends
by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from ipyparcache.engine.batches import Batch, CallOptions, Report


class Crew(ABC):
    """The workers of one call; a lane is one of them, by number.

    A worker that ends is replaced in its lane. All methods are called from one thread at a time.
    """

    size: int
    can_take_back = False  # whether `take_back` finds what a lane has not begun
    depth: int = 2  # batches that a lane may hold: the one that runs and those that wait behind it

    @abstractmethod
    def outstanding(self, lane: int) -> int:
        """How many batches the lane holds."""

    @abstractmethod
    def is_open(self, lane: int) -> bool:
        """Whether the lane takes batches now."""

    @abstractmethod
    def send(self, lane: int, batch: Batch) -> None:
        """Give a batch to a lane.

        An argument that does not pickle raises; the lane is as before then.
        """

    @abstractmethod
    def poll(self, timeout: float | None) -> list[Report]:
        """What has happened since; waits up to `timeout` seconds for something to happen."""

    @abstractmethod
    def take_back(self, lane: int) -> list[Batch]:
        """Batches that the lane has not begun; they are the caller's again. Empty where this cannot be
        done.
        """

    @abstractmethod
    def shorten(self, lane: int) -> None:
        """Have the lane stop behind the task that it runs; the rest of the batch comes back with its
        report.
        """

    @abstractmethod
    def running(self, lane: int) -> tuple[Batch, int, float] | None:
        """The batch that the lane runs, the position of the task in it, and the clock as that task began."""

    @abstractmethod
    def kill(self, lane: int) -> list[Report]:
        """End the task that the lane runs, at once: what it had finished, then `Died`, as reports."""

    @abstractmethod
    def stop(self) -> None:
        """Begin nothing more: what was not begun is dropped, running tasks go on."""

    @abstractmethod
    def close(self) -> None:
        """End the call. Returns at once; what still runs is ended within a second."""


CrewFactory: TypeAlias = Callable[[object, int, CallOptions], Crew]

_factories: dict[str, Callable[[], CrewFactory]] = {}


def _processes() -> CrewFactory:
    from ipyparcache.engine.backends.processes import ProcessCrew

    return ProcessCrew


def _threads() -> CrewFactory:
    from ipyparcache.engine.backends.inprocess import ThreadCrew

    return ThreadCrew


def _sequential() -> CrewFactory:
    from ipyparcache.engine.backends.inprocess import SequentialCrew

    return SequentialCrew


_factories |= {"processes": _processes, "threads": _threads, "sequential": _sequential}


def register_crew(name: str, load: Callable[[], CrewFactory]) -> None:
    """Make a backend known; `load` is called when it is used first, and imports its library then."""
    _factories[name] = load


def crew_factory(name: str) -> CrewFactory:
    """What makes the crews of a backend; ValueError for an unknown name."""
    if name not in _factories:
        raise ValueError(f"Invalid backend: {name!r}, expected one of {sorted(_factories)}")
    return _factories[name]()
