"""What the kernel and the workers of a loop send each other."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ipyparcache.cells.holding import Held
from ipyparcache.cells.tracebacks import Traceback
from ipyparcache.cells.travel import ATOMS


@dataclass(frozen=True)
class Body:
    """What every iteration of a loop needs, as it travels to a worker.

    Attributes
    ----------
    code
        The compiled body; the element lies under `ITEM`.
    assigned
        Names that an iteration may bind.
    by_content
        Numbers of the sites whose operands are copied where they are evaluated.
    local_modules
        Names of modules that travel by value.
    seed
        Entropy of the loop's random streams, or None.
    watch_random
        Libraries whose global generator was seeded, so that drawing from it without a seed would be lost.
    token
        Name of the run under which large temporaries are held on the worker; empty where they are sent.
    secret
        With `--cached`: keys the digests of environment variables that the iteration reads.
    own_rows
        Containers of which each iteration has its own item: name, site that puts it back, the position of
        the key in the element (None: the element is the key), whether a full slice stands before the key.
    picked
        Those whose items travel with the elements, with the position of the key, and whether each is a list.
    exempt
        Numbers of the objects that may change for that reason, or as they are fitted anew.
    refits
        Estimators that iterations fit anew, with the site that takes what is left in them.
    safe
        Numbers of the sites whose replay cannot raise.
    figures_open
        Whether the kernel has figures open, which the body could draw into.
    marks
        Whether to tell where the output of each iteration ends, as an error of the replay may come between.
    counters
        Names with what they begin the first iteration with, and by what they differ from one to the next.
    seeds
        Libraries whose global generator every iteration seeds.
    in_loop
        Whether the cell runs inside of an event loop, so that another cannot be run in it.
    sources
        Lines of the cells that the code comes from, by their name.
    """

    code: types.CodeType
    assigned: tuple[str, ...]
    by_content: frozenset[int]
    local_modules: frozenset[str]
    seed: tuple[int, ...] | None
    yields: bool
    watch_random: tuple[str, ...]
    retries: int
    token: str
    secret: bytes | None
    by_names: bool
    own_rows: tuple[tuple[str, int, int | None, bool], ...]
    picked: tuple[tuple[str, int | None, bool], ...]
    exempt: frozenset[int]
    refits: dict[str, int]
    safe: frozenset[int]
    figures_open: bool
    marks: bool
    counters: tuple[tuple[str, int, int], ...]
    seeds: tuple[str, ...]
    in_loop: bool
    sources: dict[str, list[str]]
    parcel: bytes
    buffers: tuple[Any, ...]


@dataclass(frozen=True)
class Failure:
    """Why a chunk ended early.

    The exception of its last iteration, pickled if it comes from another process; and the numbers of the
    parts of `finally` that are left to the kernel, in the order in which the exception came to them. Of a
    comprehension, whose targets are bound nowhere else, the element as text.
    """

    iteration: int
    data: bytes | BaseException
    text: str
    traceback: Traceback
    unfinished: tuple[int, ...] = ()
    element: str = ""


@dataclass
class ChunkResult:
    """What a chunk hands back at its end; records emitted before are not in it.

    Attributes
    ----------
    records
        Of iterations in order: number of the first, pickle of a list of `Left`, its buffers.
    lost
        Changed objects of the parcel by number, and changed names: (first iteration, last, number or None,
        name).
    earlier
        An iteration and a variable that it may read as an earlier one left it, where a `with` swallowed an
        exception.
    observed
        With `--cached`, and under `%%cached`: what the iterations asked of files and environment; None if
        they did
        what cannot be stored.
    ran, seconds
        How many iterations ran, the last one in part if it failed, and how long together.
    ended
        When it ended, by the clock of `started`.
    files
        What was done with files, by path, as `FileUses` tells it.
    refers
        Whether what is handed back refers to live objects of the kernel.
    generators
        States of the generators that the iterations seed, as the last of them left them.
    """

    records: list[tuple[int, bytes, list[Any]]] = field(default_factory=list)
    failure: Failure | None = None
    lost: list[tuple[int, int, int | None, str]] = field(default_factory=list)
    earlier: tuple[int, str] | None = None
    ran: int = 0
    seconds: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    files: dict[str, int] = field(default_factory=dict)
    pid: int = 0
    observed: list[Any] | None = None
    refers: bool = False
    generators: dict[str, Any] = field(default_factory=dict)

    @property
    def loses(self) -> bool:
        """Whether something is lost."""
        return bool(self.lost) or self.earlier is not None

    def lost_from(self) -> int | None:
        """The first iteration of which something is lost."""
        first = [entry[0] for entry in self.lost] + ([self.earlier[0]] if self.earlier else [])
        return min(first, default=None)


def brief(value: object) -> str:
    """A value in a line of an error."""
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}…"


Plain = tuple[Any, ...]

Left = tuple[
    list[tuple[Any, ...]],
    dict[str, object],
    list[str],
    list[tuple[int, str, Any]],
    object,
    dict[str, str | Held],
]
"""What an iteration leaves: log entries, bindings, names unbound, changes of its element, elements of a
comprehension,
and the types of bindings that cannot come home."""


class Unfinished:
    """Which parts of `finally` an iteration leaves to the kernel, and what it has not assigned elsewhere.

    Parameters
    ----------
    namespace
        In which the body runs.

    Attributes
    ----------
    missing
        Variables that a `with` of the body left unassigned, as it swallowed an exception.
    """

    def __init__(self, namespace: Mapping[str, object]) -> None:
        self.namespace = namespace
        self.tails: list[int] = []
        self.missing: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.tails or self.missing)

    def clear(self) -> None:
        """Begin an iteration."""
        self.tails.clear()
        self.missing.clear()

    def through(self, *names: str) -> None:
        """A `with` is over behind which these are assigned."""
        self.missing += [name for name in names if name not in self.namespace]

    def __call__(self, tail: int, *names: str) -> bool:
        """Whether to leave this part: one of the names is missing, or another part was left before."""
        if self.tails or not all(name in self.namespace for name in names):
            self.tails.append(tail)
            return True
        return False

    def swallowed(self, number: int) -> tuple[int, int, None, str]:
        """The change that is lost where the iteration goes on although an exception came by here."""
        return number, number, None, "what a `finally` of the body is to change"

    def note(self, number: int, result: ChunkResult, *, failed: bool) -> bool:
        """Take note of what an iteration, which is over, has lost; whether it has."""
        if self.missing and result.earlier is None:
            result.earlier = number, self.missing[0]
        if self.tails and not failed:
            result.lost.append(self.swallowed(number))
        return bool(self.missing or (self.tails and not failed))


@dataclass(frozen=True)
class Untaken:
    """Stands for an operand that could not be evaluated: its statement may not come to it."""

    error: Exception


def tried(operand: Callable[[], object]) -> object:
    """The value of an operand of which it is not known whether it is wanted."""
    try:
        return operand()
    except Exception as error:
        return Untaken(error)


def given(value: object) -> object:
    """An operand that is wanted."""
    if type(value) is Untaken:
        raise value.error
    return value


@dataclass(frozen=True)
class Packed:
    """Elements that are no plain values, each pickled for itself."""

    elements: tuple[tuple[bytes, list[Any]], ...]


def is_plain_sequence(items: Iterable[object]) -> bool:
    """Whether all elements are atoms, or tuples of atoms, so that they travel without numbers."""
    for item in () if ATOMS.issuperset(map(type, items)) else items:
        kind = type(item)
        if kind in ATOMS:
            continue
        if kind is tuple and all(type(part) in ATOMS for part in item):  # type: ignore[attr-defined]
            continue
        return False
    return True
