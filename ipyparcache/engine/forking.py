"""The fork server as a fork of the caller: no second interpreter has to start, which is half of a cold start.

Only where it cannot tell the difference to a program of its own: the caller has one thread, is followed by
no debugger, is small, and has loaded nothing that may hold state of its own (see `HARMLESS`). So no lock is
held for ever, no library is there by half, and no module of the user comes as the user has changed it. What
is left of the caller in the child is not used and not destroyed: that would run finalisers and flush files
a second time.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import os
import sys
import threading
import weakref
from _contextvars import Context
from types import ModuleType

import ipyparcache
from ipyparcache.engine import worker
from ipyparcache.lean import signal

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

LARGEST = 64 << 20  # bytes in memory of a caller: what it frees later, the child would keep
MOST_FILES = 64
# Packages and modules beside those that are compiled in. None that keeps what a program has set (`locale`,
# `decimal`, `logging`), opened (`tempfile`, `sqlite3`) or begun (`asyncio`, `multiprocessing`), and none
# that does not come with Python; or that Python itself has loaded as it started.
HARMLESS = frozenset(
    """
    __future__ _bisect _blake2 _bootlocale _collections_abc _colorize _compat_pickle _contextvars _csv
    _datetime _frozen_importlib _frozen_importlib_external _hashlib _heapq _json _lsprof _md5 _opcode
    _opcode_metadata _pickle _posixsubprocess _queue _random _sha1 _sha2 _sha256 _sha3 _sha512
    _sitebuiltins _socket _statistics _struct _weakrefset _zoneinfo abc annotationlib argparse array ast
    base64 bisect builtins cmath codecs collections colorsys contextlib contextvars copy copyreg
    dataclasses datetime difflib dis encodings enum errno fcntl fnmatch fractions functools genericpath
    gettext glob hashlib heapq hmac html importlib inspect io ipaddress ipyparcache itertools json keyword
    linecache marshal math mmap ntpath numbers opcode operator os pathlib pickle posixpath pprint queue
    random re reprlib resource select selectors shlex signal site socket sre_compile sre_constants
    sre_parse stat string stringprep struct textwrap threading time token tokenize traceback types typing
    unicodedata urllib warnings weakref zipimport zlib
    """.split()  # noqa: SIM905 - a hundred quoted words are no easier to read
)
# Ours that a fork server has loaded; the child forgets the others, and what the caller has set in them.
KEPT = frozenset(
    f"ipyparcache{name}"
    for name in (
        "",
        ".lean",
        ".pickling",
        ".engine",
        ".engine.forking",
        ".engine.forkserver",
        ".engine.localmodules",
        ".engine.surroundings",
        ".engine.transport",
        ".engine.warningfilters",
        ".engine.worker",
    )
)
FROM_SITE = frozenset({"_distutils_hack", "sitecustomize", "usercustomize"})
PLACES = tuple(
    os.path.dirname(os.path.abspath(place)) + os.sep for place in (os.__file__, ipyparcache.__file__)
)
_never_destroyed: list[Any] = []  # in the child: what is the caller's


def can_fork() -> bool:
    """Whether nothing in this process would be in the way of a fork server that is a fork of it."""
    try:
        return (
            sys.platform == "linux"
            and threading.current_thread() is threading.main_thread()
            and len(os.listdir("/proc/self/task")) == 1
            and not _is_watched()
            and not worker.is_worker()
            and worker.current_task() is None
            and all(map(_is_harmless, sys.modules))
            and len(os.listdir("/proc/self/fd")) <= MOST_FILES
            and _resident() <= LARGEST
        )
    except OSError:  # no /proc
        return False


def _is_watched() -> bool:
    """Whether a debugger or a profiler follows what runs."""
    monitoring: Any = getattr(sys, "monitoring", None)  # since Python 3.12
    tools = () if monitoring is None else map(monitoring.get_tool, range(6))
    return sys.gettrace() is not None or sys.getprofile() is not None or any(tools)


def _is_harmless(name: str) -> bool:
    top = name.partition(".")[0]
    if top in sys.builtin_module_names or top in FROM_SITE or name == "__main__":
        return True
    file = getattr(sys.modules[name], "__file__", None)  # a module of the user may have one of these names
    return top in HARMLESS and (file is None or file.startswith(PLACES))


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fork_server(fd: int) -> int:
    """Fork a fork server, whose socket to this process is `fd`; its process id."""
    from ipyparcache.engine import warningfilters  # noqa: F401 - the first call of either side needs it

    parent = os.getpid()
    # No handler of the caller's may run in the child.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            try:
                Context().run(_serve, fd, parent)
            finally:
                os._exit(1)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _serve(fd: int, parent: int) -> None:
    """Become what a new interpreter would be, then the fork server."""
    gc.disable()
    gc.freeze()
    gc.callbacks.clear()
    gc.set_debug(0)
    _keep_objects()
    _forget_modules()
    _close_files(fd)
    _reset_signals()
    from ipyparcache.engine.forkserver import main

    main(fd, parent, forked=True)


def _keep_objects() -> None:
    atexit._clear()
    finalizers: Any = weakref.finalize
    _never_destroyed.extend((finalizers._registry, *map(sys.__dict__.get, ("stdin", "stdout", "stderr"))))
    _never_destroyed.extend(map(sys.__dict__.get, ("__stdin__", "__stdout__", "__stderr__")))
    finalizers._registry = {}
    finalizers._registered_with_atexit = False


def _forget_modules() -> None:
    for name in [name for name in sys.modules if name == "__main__" or name.startswith("ipyparcache")]:
        if name not in KEPT:
            _never_destroyed.append(sys.modules.pop(name))
            package, _, own = name.rpartition(".")
            if package in KEPT:
                delattr(sys.modules[package], own)
    sys.modules["__main__"] = ModuleType("__main__")
    ours = sys.modules["ipyparcache"]
    _never_destroyed.append(vars(ours).copy())
    for name in set(getattr(ours, "_HOMES", ())) & vars(ours).keys():
        delattr(ours, name)  # found again when it is asked for
    from ipyparcache import pickling

    pickling.reduce_array = pickling.in_no_file


def _close_files(fd: int) -> None:
    """Nobody who waits for the end of one of the caller's pipes shall wait for us.

    The numbers stay taken, as objects that will never be destroyed believe that they own them.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number not in (fd, null):
            os.dup2(null, number, inheritable=False)


def _reset_signals() -> None:
    faulthandler.disable()
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # as the fork server does
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
