"""What a parallel cell is planned and reported as, and the kernel as its loops see it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ipyparcache.analysis.refusals import CarriedContainer, Refusal
from ipyparcache.analysis.steps import Step
from ipyparcache.cells.leftovers import Leftover
from ipyparcache.errors import IterationError, LoopRefused


@dataclass(frozen=True)
class LoopOptions:
    """The options of `%%parallel`."""

    jobs: int | None = None
    backend: str = "processes"
    cached: bool = False
    seed: int | None = None
    background: str | None = None
    on_error: str = "raise"
    timeout: float | None = None
    retries: int = 0
    chunk: int | None = None
    order: str = "kept"
    inner_threads: int | None = None
    progress: bool | None = None
    no_progress: bool = False
    quiet: bool = False


class Host(Protocol):
    """The kernel, as a loop sees it."""

    namespace: dict[str, Any]
    file_name: str
    secret: bytes | None  # under `%%cached`: keys the digests of what iterations read of the environment

    def run_statement(self, statement: ast.stmt, *, last: bool) -> None:
        """Execute a statement as the shell does.

        Show the value of the cell's last expression, raise its error.
        """

    def write(self, stream: str, text: str) -> None:
        """Write to the cell's `stdout` or `stderr`."""

    def show_note(self, html: str, text: str) -> None:
        """Show something of ours below the cell."""

    def display(self, objects: tuple[object, ...], options: dict[str, Any]) -> None:
        """Show objects as a call of `display` in the cell would."""

    def clear_output(self, wait: bool) -> None:
        """Clear what the cell has put out, as a call of IPython's `clear_output` in it would."""

    def clear_before_more(self) -> None:
        """Something else shows output of the cell: what waited to be cleared then goes."""


@dataclass(frozen=True)
class CellPlan:
    """A cell whose loops can run in tasks."""

    steps: tuple[Step, ...]
    options: LoopOptions


@dataclass
class LoopReport:
    """What became of one loop.

    Attributes
    ----------
    rows
        For the timeline: worker, begin and end (monotonic clock), first iteration, number of iterations.
    partial
        What iterations behind an error or interrupt had done, by their number; it was not merged.
    asked
        Under `%%cached`: what iterations asked of files and environment, as rows; None if they did what
        cannot
        be stored.
    """

    line: int
    iterations: int = 0
    seconds: float = 0.0
    rows: list[tuple[int, float, float, int, int]] = field(default_factory=list)
    errors: list[IterationError] = field(default_factory=list)
    partial: dict[int, Leftover] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    asked: list[Any] | None = field(default_factory=list)
    restored: int = 0
    figures: list[object] = field(default_factory=list)
    title: str = ""


@dataclass
class RunReport:
    """What became of a cell's loops."""

    loops: list[LoopReport] = field(default_factory=list)
    error: BaseException | None = None


#: Kinds of containers whose items can be written to a copy of them.
_COPIED = frozenset({"DataFrame", "Series", "ndarray", "dict", "defaultdict", "OrderedDict", "Counter"})


def refused(refusal: Refusal, namespace: Mapping[str, Any] | None = None) -> LoopRefused:
    """The error that tells of a refusal, with advice that fits what the variable is in the namespace."""
    if isinstance(refusal, CarriedContainer) and namespace is not None:
        kind = type(namespace.get(refusal.variable or "")).__name__
        refusal = replace(refusal, kind=kind if kind in _COPIED else "list")
    return LoopRefused(refusal.line, refusal.variable, refusal.reason, refusal.advice)
