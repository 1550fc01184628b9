"""What became of a task: `Value` or `Error`, and how an exception of any class travels between processes.

An exception is pickled by its own rules only if a trial on the worker shows that it comes back as what it
was; otherwise it is rebuilt without its `__init__`, from class, arguments and attributes, because classes
whose `__init__` takes other arguments than `args` holds are common and must not break the caller.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from itertools import pairwise

from ipyparcache.errors import TaskExit
from ipyparcache.lean import Record, pickle

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import TypeAlias

Dumps: TypeAlias = Callable[[object], bytes]


class RemoteTraceback(Exception):
    """The traceback text of a worker, shown as the cause of the exception that crossed the border."""

    def __init__(self, text: str):
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class Value(Record):
    """A task that returned.

    `seconds` is its run time on the worker, `started` the system's monotonic clock as it began, `worker` the
    process id that ran it.
    """

    __slots__ = ("seconds", "started", "value", "worker")

    def __init__(self, value: object, seconds: float = 0.0, worker: int = 0, started: float = 0.0):
        self.value = value
        self.seconds = seconds
        self.worker = worker
        self.started = started

    def unwrap(self) -> object:
        """Return what the task returned."""
        return self.value


class Error(Record):
    """A task that raised, or that was lost with its worker; `traceback` was formatted on the worker."""

    __slots__ = ("exception", "memory", "seconds", "started", "traceback", "worker")

    def __init__(
        self,
        exception: BaseException,
        traceback: str = "",
        seconds: float = 0.0,
        worker: int = 0,
        started: float = 0.0,
        memory: bytes = b"",
    ):
        self.exception = exception
        self.traceback = traceback
        self.seconds = seconds
        self.worker = worker
        self.started = started
        # What a task that was lost with its worker had left in the memory that both share.
        self.memory = memory

    def unwrap(self) -> object:
        """Raise the exception of the task; one that would end the caller (SystemExit) is wrapped in
        `TaskExit`.
        """
        error = self.exception
        if self.traceback:
            last: BaseException = error
            seen = set()
            while last.__cause__ is not None and id(last) not in seen:
                seen.add(id(last))
                last = last.__cause__
            if not isinstance(last, RemoteTraceback):
                last.__cause__ = RemoteTraceback(self.traceback)
        if isinstance(error, Exception):
            raise error
        raise TaskExit(type(error).__name__, str(error)) from error


Outcome: TypeAlias = Value | Error


# Base classes whose state is in C fields, outside `args` and `__dict__`: field names to carry over.
_FIELDS: dict[type[BaseException], tuple[str, ...]] = {
    OSError: ("errno", "strerror", "filename", "filename2"),
    ImportError: ("msg", "name", "path"),
    SyntaxError: ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset"),
    UnicodeDecodeError: ("encoding", "object", "start", "end", "reason"),
    UnicodeEncodeError: ("encoding", "object", "start", "end", "reason"),
    StopIteration: ("value",),
    SystemExit: ("code",),
    NameError: ("name",),
    AttributeError: ("name",),
}


def rebuild(
    kind: type[BaseException],
    arguments: tuple[object, ...],
    state: dict[str, object],
    fields: dict[str, object],
) -> BaseException:
    """Make an exception without calling its `__init__`."""
    if issubclass(kind, BaseExceptionGroup):
        message, members = arguments
        inner = [load_exception(data) for data in members]  # type: ignore[attr-defined]
        error: BaseException = kind.__new__(kind, str(message), inner)
    else:
        error = kind.__new__(kind)
        error.args = arguments
    for name, value in {**state, **fields}.items():
        # Past any `__setattr__` of the class; what is read-only was set by `args`.
        with contextlib.suppress(AttributeError, TypeError):
            object.__setattr__(error, name, value)
    return error


def _travels(value: object, dumps: Dumps) -> bool:
    try:
        pickle.loads(dumps(value))
    except Exception:
        return False
    return True


def _same(one: BaseException, other: object) -> bool:
    """Whether `other`, come back from a pickle, is what `one` was, as far as its text and attributes tell."""
    if type(other).__qualname__ != type(one).__qualname__ or not isinstance(other, BaseException):
        return False
    if repr(other.args) != repr(one.args) and "0x" not in repr(one.args):
        return False
    mine, theirs = getattr(one, "__dict__", {}), getattr(other, "__dict__", {})
    return mine.keys() == theirs.keys()


def _by_parts(error: BaseException, dumps: Dumps) -> bytes:
    """Pickle class, arguments and attributes one by one; what does not travel becomes its `repr`."""

    def part(value: object) -> object:
        if _travels(value, dumps):
            return value
        try:
            return repr(value)
        except Exception:
            return f"<{type(value).__name__}>"

    arguments: tuple[object, ...] = tuple(part(value) for value in error.args)
    if isinstance(error, BaseExceptionGroup):
        arguments = (error.message, [dump_exception(member, dumps) for member in error.exceptions])
    state = {name: part(value) for name, value in getattr(error, "__dict__", {}).items()}
    for owner in type(error).__mro__:
        slots = owner.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(error, name):
                state[name] = part(getattr(error, name))
    fields: dict[str, object] = {}
    for base, names in _FIELDS.items():
        if isinstance(error, base):
            values = {name: getattr(error, name, None) for name in names}
            # one that is None is so by itself; setting it would show in the text
            fields |= {name: part(value) for name, value in values.items() if value is not None}
    # The nearest class that travels: the last in any chain is Exception or BaseException itself.
    for kind in type(error).__mro__:
        if not issubclass(kind, BaseException):
            continue
        shown = arguments if kind is type(error) else (_text(error),)
        try:
            data = dumps((kind, shown, state, fields))
            back = rebuild(*pickle.loads(data))
        except Exception:
            continue
        if isinstance(back, BaseException):
            return data
    return dumps((Exception, (_text(error),), {}, {}))


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__qualname__}: {error}"
    except Exception:
        return type(error).__qualname__


def _chain(error: BaseException) -> list[tuple[str, BaseException]]:
    """The exceptions behind `error`, nearest first, each with how it hangs on the one before."""
    found: list[tuple[str, BaseException]] = []
    seen = {id(error)}
    here = error
    while True:
        if here.__cause__ is not None:
            how, following = "cause", here.__cause__
        elif here.__context__ is not None and not here.__suppress_context__:
            how, following = "context", here.__context__
        else:
            return found
        if id(following) in seen or len(found) == 20:
            return found
        seen.add(id(following))
        found.append((how, following))
        here = following


def _dump_one(error: BaseException, dumps: Dumps) -> tuple[bool, bytes]:
    try:
        data = dumps(error)
        if _same(error, pickle.loads(data)):
            return True, data
    except Exception:
        # Any failure here, RecursionError included, only means that the class must go by parts.
        data = b""
    return False, _by_parts(error, dumps)


def dump_exception(error: BaseException, dumps: Dumps) -> bytes:
    """Bytes from which `load_exception` makes the exception again, with what it was raised from."""
    rows: list[tuple[str, bool, bytes]] = [("", *_dump_one(error, dumps))]
    rows += [(how, *_dump_one(behind, dumps)) for how, behind in _chain(error)]
    return pickle.dumps(rows, 5)


def load_exception(data: bytes) -> BaseException:
    """Make the exception that `dump_exception` took apart; never fails, whatever its class does."""
    made: list[tuple[str, BaseException]] = []
    for how, whole, part in pickle.loads(data):
        try:
            error = pickle.loads(part) if whole else rebuild(*pickle.loads(part))
        except Exception as problem:
            error = RuntimeError(f"an exception of a task could not be rebuilt here: {problem!r}")
        if not isinstance(error, BaseException):
            error = RuntimeError(f"an exception of a task came back as {type(error).__name__}")
        made.append((how, error))
    for (_, above), (how, below) in pairwise(made):
        if how == "cause":
            above.__cause__ = below
        else:
            above.__context__ = below
    return made[0][1]


def traceback_text(error: BaseException, skip: str) -> str:
    """Formatted traceback without the leading frames that lie in the file `skip`."""
    import traceback  # loaded by the first error only: it costs a worker's start 4 ms

    where = error.__traceback__
    while where is not None and where.tb_frame.f_code.co_filename == skip:
        where = where.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, where))
    except Exception:
        # A `__str__` that raises, or a source file that vanished, must not hide the error itself.
        return f"{type(error).__qualname__} (its traceback could not be formatted: {sys.exc_info()[1]!r})\n"


_FRAME = r'^( *)File "(?P<file>.*)", line (?P<line>\d+), in .*$'


def with_source_lines(text: str) -> str:
    """The traceback of a worker with the lines of code that only this process has, as those of cells."""
    import linecache
    import re

    lines = text.split("\n")
    found = []
    for at, line in enumerate(lines):
        found.append(line)
        frame = re.match(_FRAME, line)
        if frame is None or (at + 1 < len(lines) and lines[at + 1].startswith(frame[1] + "  ")):
            continue
        source = linecache.getline(frame["file"], int(frame["line"])).strip()
        if source:
            found.append(f"{frame[1]}  {source}")
    return "\n".join(found)
