"""Settings of the interpreter and the process: read, and where a hit can, brought back."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any

from ipyparcache.digest.instances import is_user_definition

# ---- the garbage collector


def collector() -> tuple[bool, tuple[int, int, int], int, bool]:
    """Whether it runs, its thresholds, what it reports, whether objects were put out of its reach."""
    return gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.get_freeze_count() > 0


def restore_collector(facts: tuple[bool, tuple[int, int, int], int, bool]) -> None:
    """Set the collector as it was told."""
    is_enabled, thresholds, debug, is_frozen = facts
    gc.set_threshold(*thresholds)
    gc.set_debug(debug)
    (gc.enable if is_enabled else gc.disable)()
    (gc.freeze if is_frozen else gc.unfreeze)()


# ---- limits


def recursion_limit() -> int:
    """The recursion limit, 0 if it is Python's own."""
    limit = sys.getrecursionlimit()
    return 0 if limit == 1000 else limit


def restore_recursion_limit(limit: int) -> None:
    """Set the recursion limit, if the stack is not deeper than that already."""
    with contextlib.suppress(RecursionError):
        sys.setrecursionlimit(limit)


def digit_limit() -> int | None:
    """One more than the most digits of an integer that is read or written; None if it is Python's own."""
    digits = sys.get_int_max_str_digits()
    return None if digits == sys.int_info.default_max_str_digits else digits + 1  # 0 stands for no limit


def switch_interval() -> float | None:
    """How long threads run at a time, None if that is Python's own."""
    interval = sys.getswitchinterval()
    return None if interval == 0.005 else interval


def resource_limits() -> dict[str, tuple[int, int]]:
    """Limits that the system puts on this process."""
    resource = sys.modules["resource"]
    return {name: resource.getrlimit(number) for name, number in _limits_known(resource)}


def _limits_known(resource: Any) -> list[tuple[str, int]]:
    return [(name, number) for name, number in sorted(vars(resource).items()) if name.startswith("RLIMIT_")]


# ---- threads, files, memory


def umask() -> int:
    """The permissions that new files do not get."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def restore_umask(mask: int) -> None:
    """Set the permissions that new files do not get."""
    os.umask(mask)


def stack_size() -> int:
    """The stack size of new threads, 0 if it is the system's own."""
    size = threading.stack_size()  # which sets it to 0
    if size:
        threading.stack_size(size)
    return size


def restore_stack_size(size: int) -> None:
    """Set the stack size of new threads."""
    threading.stack_size(size)


def tracing() -> int:
    """How many frames tracemalloc keeps of each allocation, 0 if it does not run."""
    tracemalloc = sys.modules["tracemalloc"]
    return int(tracemalloc.get_traceback_limit()) if tracemalloc.is_tracing() else 0


def restore_tracing(frames: int) -> None:
    """Start or stop tracemalloc."""
    tracemalloc = sys.modules["tracemalloc"]
    tracemalloc.stop()
    if frames:
        tracemalloc.start(frames)


# ---- signals

SIGNALS = [
    getattr(signal, name)
    for name in (
        "SIGINT",
        "SIGTERM",
        "SIGHUP",
        "SIGQUIT",
        "SIGALRM",
        "SIGPROF",
        "SIGPIPE",
        "SIGUSR1",
        "SIGUSR2",
    )
    if hasattr(signal, name)
]
_TIMERS = [
    getattr(signal, name)
    for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF")
    if hasattr(signal, name)
]


def signals() -> dict[str, object]:
    """What signals do, and whether timers run: code of the user by itself, all else by name."""
    facts: dict[str, object] = {number.name: _named(signal.getsignal(number)) for number in SIGNALS}
    return {**facts, "timers": timers()}


def timers() -> list[tuple[bool, float]]:
    """Of each interval timer whether it runs, and its interval."""
    told = [signal.getitimer(timer) for timer in _TIMERS]
    return [(left > 0, interval) for left, interval in told]


def _named(handler: object) -> object:
    if is_user_definition(handler):
        return handler
    return str(getattr(handler, "__qualname__", getattr(handler, "name", type(handler).__qualname__)))


# ---- how warnings are shown


def warning_display() -> dict[str, object]:
    """The functions that show warnings, if they are not Python's own."""
    found: dict[str, object] = {}
    for name in ("showwarning", "formatwarning"):
        shown = getattr(warnings, name)
        plain = getattr(warnings, f"_{name}_orig", None)
        if shown is not plain and plain is not None:
            found[name] = _named(shown)
    return found


# ---- how records are logged


def record_making() -> dict[str, object]:
    """Logger class, record factory and names of levels, as far as the user set them."""
    logging = sys.modules["logging"]
    made = {"class": logging.getLoggerClass(), "factory": logging.getLogRecordFactory()}
    found: dict[str, object] = {name: thing for name, thing in made.items() if is_user_definition(thing)}
    names: Mapping[int, str] = logging._levelToName
    own = {level: name for level, name in names.items() if _OWN_LEVELS.get(level) != name}
    return {**found, **({"levels": sorted(own.items())} if own else {})}


_OWN_LEVELS = {50: "CRITICAL", 40: "ERROR", 30: "WARNING", 20: "INFO", 10: "DEBUG", 0: "NOTSET"}


# ---- adapters of SQLite


def sqlite_adapters() -> list[tuple[str, object]]:
    """The functions of the user that SQLite calls to write or read values, by what they are for."""
    sqlite = sys.modules["sqlite3"]
    tables: list[tuple[str, Mapping[Any, object]]] = [
        ("adapter", getattr(sqlite, "adapters", {})),
        ("converter", getattr(sqlite, "converters", {})),
    ]
    return sorted(
        (f"{what} of {_name_of(key)}", function)
        for what, table in tables
        for key, function in table.items()
        if is_user_definition(function)
    )


def _name_of(key: object) -> str:
    kind = key[0] if isinstance(key, tuple) else key
    return kind.__qualname__ if isinstance(kind, type) else str(kind)


def fixtures() -> dict[str, object]:
    """What user code sets once for the whole process and no hit brings back; compared by equality."""
    found: dict[str, object] = {
        "the signal handlers": [signal.getsignal(number) for number in SIGNALS],
        "the interval timers": timers(),
        "the hooks of sys": (sys.excepthook, sys.unraisablehook, threading.excepthook),
        "what traces the code": (sys.gettrace(), sys.getprofile()),
        "sys.argv": list(sys.argv),
    }
    if "resource" in sys.modules:
        found["the limits of resources"] = resource_limits()
    logging = sys.modules.get("logging")
    if logging is not None:
        found["the root logger"] = (logging.root.level, list(logging.root.handlers), logging.root.disabled)
        found["how records are logged"] = (logging.getLoggerClass(), logging.getLogRecordFactory())
    return found
