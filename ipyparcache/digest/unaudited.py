"""What raises no audit event: questions about paths, records logged, environment variables.

While a run is watched, these are wrapped: `os.stat` and its kin (told apart by who calls them, so that
`exists` is one bit and not a modification time), `os.open` with `dir_fd`, `getcwd`, `input`. `os.environ`
keeps its entries in a dict that reports reads by name.
"""

from __future__ import annotations

import builtins
import functools
import gc
import genericpath
import getpass
import importlib.util
import os
import pathlib
import posixpath
import sys
import threading
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any

from ipyparcache.digest import modules, openfiles, readers
from ipyparcache.digest.askers import asker_of, is_ignored
from ipyparcache.digest.audited import note_open
from ipyparcache.digest.openfiles import (
    Seen,
    absolute,
    answer_to,
    bookkeeping,
    concerned,
    is_quiet,
    is_watching,
    note_loading,
    path_of,
    unwatched,
)


def _code_of(function: Any) -> CodeType | None:
    return getattr(function, "__code__", None)


_QUESTIONS: dict[CodeType, str] = {}
for _function, _question in [
    (genericpath.exists, "exists"),
    (genericpath.isfile, "isfile"),
    (genericpath.isdir, "isdir"),
    (genericpath.getsize, "size"),
    (genericpath.getmtime, "mtime"),
    (genericpath.samefile, "inode"),
    (posixpath.lexists, "lexists"),
    (posixpath.islink, "islink"),
    (pathlib.Path.exists, "exists"),
    (pathlib.Path.is_file, "isfile"),
    (pathlib.Path.is_dir, "isdir"),
    (pathlib.Path.is_symlink, "islink"),
]:
    _code = _code_of(_function)
    if _code is not None:
        _QUESTIONS[_code] = _question

_PASSED_THROUGH = {
    code for code in (_code_of(pathlib.Path.stat), _code_of(pathlib.Path.lstat)) if code is not None
}
# Functions of the standard library for which asking is a step of doing, or that ask about their own business.
_OWN_BUSINESS = frozenset(
    [
        "shutil",
        "tempfile",
        "linecache",
        "inspect",
        "tokenize",
        "zipfile",
        "tarfile",
        "mimetypes",
        "os",
        "glob",
        "importlib",
        "traceback",
        "zipimport",
        "posixpath",
        "genericpath",
        "fnmatch",
        "logging",
        "doctest",
        "pkgutil",
        "site",
        "threading",
        "subprocess",
        "multiprocessing",
    ]
)


def _ask(question: str, path: Any, frame: FrameType | None) -> None:
    """Note a question about a path, with what is true now."""
    if is_quiet():
        return
    with bookkeeping():
        caller = frame
        while caller is not None and caller.f_code in _PASSED_THROUGH:
            caller = caller.f_back
        if caller is not None and caller.f_code in _QUESTIONS:
            question = _QUESTIONS[caller.f_code]
            caller = caller.f_back
        if caller is not None and caller.f_globals.get("__name__") in _OWN_BUSINESS:
            return
        spelled = path_of(path)
        if not spelled:  # the empty path names nothing, always
            return
        full = absolute(spelled)
        asker = asker_of(frame)
        if is_ignored(full, asker):
            return
        for seen in concerned():
            if not seen.made(full):
                asked = question, seen.spelled(spelled)
                if asker[0] == "user":
                    seen.asked_by_user.add(asked)
                seen.answers.setdefault(asked, answer_to(question, full))


def _wrap_stat(plain: Callable[..., Any], question: str) -> Callable[..., Any]:
    @functools.wraps(plain)
    def asked(path: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("dir_fd") is None and not is_quiet():
            kind = "lstat" if options.get("follow_symlinks") is False else question
            _ask(kind, path, sys._getframe(1))
        return plain(path, *arguments, **options)

    return asked


def _wrap_open(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def opened(path: Any, flags: int, *arguments: Any, **options: Any) -> Any:
        folder = options.get("dir_fd")
        if folder is None or is_quiet():
            return plain(path, flags, *arguments, **options)
        with bookkeeping():
            frame = sys._getframe(1)
            for seen in concerned():
                note_open(seen, frame, path, None, flags, folder)
        with unwatched():  # its own event lacks the folder
            return plain(path, flags, *arguments, **options)

    return opened


def _wrap_getcwd(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def asked() -> Any:
        if not is_quiet():
            with bookkeeping():
                frame = sys._getframe(1)
                if asker_of(frame) == ("user", ""):
                    for seen in concerned():
                        seen.asks_folder = True
        return plain()

    return asked


def _wrap_access(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def asked(path: Any, mode: int, **options: Any) -> Any:
        answer = plain(path, mode, **options)
        if not is_quiet() and options.get("dir_fd") is None:
            with bookkeeping():
                frame = sys._getframe(1)
                spelled = path_of(path)
                if spelled is not None and not is_ignored(absolute(spelled), asker_of(frame)):
                    for seen in concerned():
                        if not seen.made(absolute(spelled)):
                            seen.answers.setdefault((f"access {mode}", seen.spelled(spelled)), answer)
        return answer

    return asked


def _wrap_readlink(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def asked(path: Any, **options: Any) -> Any:
        answer = plain(path, **options)
        if not is_quiet() and options.get("dir_fd") is None:
            with bookkeeping():
                frame = sys._getframe(1)
                spelled = path_of(path)
                own = frame.f_globals.get("__name__") in _OWN_BUSINESS
                if spelled is not None and not own and not is_ignored(absolute(spelled), asker_of(frame)):
                    for seen in concerned():
                        seen.answers.setdefault(("readlink", seen.spelled(spelled)), os.fsdecode(answer))
        return answer

    return asked


def _wrap_import(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def imported(name: Any, package: Any = None) -> Any:
        result = plain(name, package)
        if not is_quiet() and modules.origin_of(result.__name__) == "local":
            with bookkeeping():
                frame = sys._getframe(1)
                if asker_of(frame)[0] in ("user", "library"):
                    note_loading(result.__name__)
        return result

    return imported


def _wrap_find_spec(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def found(name: str, package: str | None = None) -> Any:
        if not is_quiet():
            with bookkeeping():
                asker = asker_of(sys._getframe(1))
                full = importlib.util.resolve_name(name, package)
                for seen in concerned() if asker[0] == "user" else ():
                    seen.answers.setdefault(("find_spec", full), answer_to("find_spec", full))
        return plain(name, package)

    return found


def _wrap_state_reader(plain: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(plain)
    def read(*arguments: Any, **options: Any) -> Any:
        if not is_quiet():
            with bookkeeping():
                if asker_of(sys._getframe(1))[0] == "user":
                    for seen in concerned():
                        seen.states_read.add(name)
        return plain(*arguments, **options)

    return read


# What tells the state of a global random generator and leaves it as it is: generator, module, function.
_STATE_READERS = (
    ("random", "random", "getstate"),
    ("numpy.random", "numpy.random", "get_state"),
    ("torch", "torch", "get_rng_state"),
    ("torch", "torch", "initial_seed"),
    ("torch", "torch.random", "get_rng_state"),
)


def _wrap_input(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def asked(*arguments: Any, **options: Any) -> Any:
        for seen in concerned():
            seen.reads_stdin = True
        return plain(*arguments, **options)

    return asked


def _wrap_handlers(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def call_handlers(logger: Any, record: Any) -> Any:
        result = plain(logger, record)
        with bookkeeping():
            for seen in concerned():
                seen.lost = seen.lost or _where_logged(logger, record.levelno, seen)
        return result

    return call_handlers


def _where_logged(logger: Any, level: int, seen: Seen) -> str:
    """A handler that took a record to where no hit brings it; empty if all showed it or wrote a new file."""
    while logger is not None:
        for handler in logger.handlers:
            if level >= handler.level and not _is_brought_back(handler, seen):
                return f"it logs to {handler!r}, which was there before"
        logger = logger.parent if logger.propagate else None
    return ""


def _is_brought_back(handler: Any, seen: Seen) -> bool:
    import logging

    if modules.is_user_code(type(handler).__module__):
        return False  # also one that derives from a stream's handler: what it does is its own affair
    if isinstance(handler, logging.FileHandler):
        use = seen.files.get(handler.baseFilename)
        return use is not None and use.is_written
    if isinstance(handler, logging.StreamHandler):
        stream = getattr(handler, "stream", None)
        shown = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
        return any(stream is one for one in shown) or type(stream).__name__ == "OutStream"
    return type(handler).__module__ != "logging.handlers"


_WRAPPERS: list[tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = [
    (os, "stat", functools.partial(_wrap_stat, question="stat")),
    (os, "lstat", functools.partial(_wrap_stat, question="lstat")),
    (os, "open", _wrap_open),
    (os, "getcwd", _wrap_getcwd),
    (os, "access", _wrap_access),
    (os, "readlink", _wrap_readlink),
    (importlib, "import_module", _wrap_import),
    (importlib.util, "find_spec", _wrap_find_spec),
    (builtins, "input", _wrap_input),
    (getpass, "getpass", _wrap_input),
]
# `os.stat in os.supports_fd` and the like decide which way `shutil` and `pathlib` go.
_SUPPORTS = [
    getattr(os, name)
    for name in ("supports_fd", "supports_dir_fd", "supports_follow_symlinks", "supports_effective_ids")
    if hasattr(os, name)
]
_replaced: list[tuple[Any, str, Any, Any]] = []
_renamed: list[tuple[dict[str, Any], str, Any, Any]] = []  # the same, where user code imported them by name


PLAIN = "ipyparcache_plain"  # attribute of our wrappers: the function that it stands for


def unwrap(namespace: dict[str, Any]) -> list[object]:
    """Put plain functions in the place of our wrappers that code took by name; the plain functions."""
    found = []
    for name, value in list(namespace.items()):
        if type(value) is FunctionType and PLAIN in value.__dict__:
            namespace[name] = value.__dict__[PLAIN]
            found.append(namespace[name])
    return found


def _put_wrappers_in() -> None:
    wrappers = list(_WRAPPERS)
    if "logging" in sys.modules:
        wrappers.append((sys.modules["logging"].Logger, "callHandlers", _wrap_handlers))
    for name, owner, reader in _STATE_READERS:
        if owner in sys.modules:
            wrappers.append((sys.modules[owner], reader, functools.partial(_wrap_state_reader, name=name)))
    for module in readers.MODULES:
        wrappers += readers.wrappers(module)
    _wrap_all(wrappers)


def _put_readers_in(module: str) -> None:
    """The same for a library that the run has imported just now."""
    if openfiles.watches:
        _wrap_all(readers.wrappers(module))


for _module in readers.MODULES:
    modules.AFTER_LOADING[_module] = functools.partial(_put_readers_in, _module)


def _wrap_all(wrappers: list[tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]]) -> None:
    for owner, name, wrap in wrappers:
        plain = getattr(owner, name, None)
        if plain is None:
            continue
        wrapped = wrap(plain)
        wrapped.__dict__[PLAIN] = plain
        for supported in _SUPPORTS:
            if plain in supported:
                supported.add(wrapped)
        setattr(owner, name, wrapped)
        _replaced.append((owner, name, plain, wrapped))
    wrapped_by = {id(plain): (plain, wrapped) for _, _, plain, wrapped in _replaced}
    main = sys.modules.get("__main__")
    for namespace in [vars(module) for _, module in modules.loaded_local()] + ([vars(main)] if main else []):
        for name, value in list(namespace.items()):
            if id(value) in wrapped_by:
                namespace[name] = wrapped_by[id(value)][1]
                _renamed.append((namespace, name, *wrapped_by[id(value)]))


def _take_wrappers_out() -> None:
    while _renamed:
        namespace, name, plain, wrapped = _renamed.pop()
        if namespace.get(name) is wrapped:
            namespace[name] = plain
    while _replaced:
        owner, name, plain, wrapped = _replaced.pop()
        if getattr(owner, name) is wrapped:  # somebody else's wrapper around ours is left alone
            setattr(owner, name, plain)
        for supported in _SUPPORTS:
            supported.discard(wrapped)
        kept = sys.getrefcount(wrapped) - _UNREFERRED
        if kept > 0:
            _replace(wrapped, plain, kept)


_UNREFERRED = 2  # by the variable above and by the call that asks


def _replace(wrapped: Any, plain: Any, kept: int) -> None:
    """Put the plain function in the `kept` places where the run keeps our wrapper: names, containers."""
    main = vars(sys.modules["__main__"])
    names = [name for name, value in main.items() if value is wrapped]
    for name in names:
        main[name] = plain
    if len(names) == kept:  # looking for the others takes long
        return
    for holder in gc.get_referrers(wrapped):
        if isinstance(holder, dict):
            _replace_among(holder, list(holder.items()), wrapped, plain)
        elif isinstance(holder, list):
            _replace_among(holder, list(enumerate(holder)), wrapped, plain)
        elif isinstance(holder, CellType):
            holder.cell_contents = plain
        elif modules.is_user_code(type(holder).__module__) and hasattr(holder, "__dict__"):
            _replace_among(vars(holder), list(vars(holder).items()), wrapped, plain)


def _replace_among(holder: Any, items: list[tuple[Any, Any]], wrapped: Any, plain: Any) -> None:
    for place, value in items:
        if value is wrapped:
            holder[place] = plain


# ---- environment variables


class WatchedEnvironment(dict[bytes, bytes]):
    """The entries of `os.environ`, reporting what is read by name.

    A copy (`dict(os.environ)`, `.items()`) reads every key in the order of iteration: such reads count as
    none.
    """

    copying: dict[int, Iterator[bytes]]

    def __init__(self, entries: dict[bytes, bytes]):
        super().__init__(entries)
        self.copying = {}

    def __iter__(self) -> Iterator[bytes]:
        if is_watching():
            self.copying[threading.get_ident()] = iter(list(super().__iter__()))
        return super().__iter__()

    def __getitem__(self, key: bytes) -> bytes:
        if is_watching() and not is_quiet():
            expected = self.copying.get(threading.get_ident())
            if expected is None or next(expected, None) != key:
                self.copying.pop(threading.get_ident(), None)
                self._note(key)
        return super().__getitem__(key)

    def __setitem__(self, key: bytes, value: bytes) -> None:
        if is_watching():
            for seen in concerned():
                seen._set_here.add(os.fsdecode(key))
        super().__setitem__(key, value)

    def __delitem__(self, key: bytes) -> None:
        if is_watching():
            for seen in concerned():
                seen._set_here.add(os.fsdecode(key))
        super().__delitem__(key)

    def _note(self, key: bytes) -> None:
        name = os.fsdecode(key)
        if name.startswith("JPY_"):
            return
        with bookkeeping():
            frame = sys._getframe(2)
            who, _ = asker_of(frame)
            if who in ("ours", "import"):
                return
            value = super().get(key)
            for seen in concerned():
                if name not in seen._set_here:
                    seen.environment.setdefault(name, None if value is None else os.fsdecode(value))


_plain_entries: list[dict[bytes, bytes]] = []  # what os.environ holds while nobody watches


def _watch_environment() -> None:
    data = getattr(os.environ, "_data", None)
    if isinstance(data, dict) and not isinstance(data, WatchedEnvironment):
        _plain_entries[:] = [data]
        _set_entries(WatchedEnvironment(data))


def _leave_environment() -> None:
    data = getattr(os.environ, "_data", None)
    if isinstance(data, WatchedEnvironment) and _plain_entries:
        plain = _plain_entries.pop()
        plain.clear()
        plain.update(dict.items(data))
        _set_entries(plain)


def _set_entries(entries: dict[bytes, bytes]) -> None:
    os.environ._data = entries  # type: ignore[attr-defined]
    if hasattr(os, "environb"):
        os.environb._data = entries  # type: ignore[attr-defined]


openfiles.WHILE_WATCHED += [
    (_put_wrappers_in, _take_wrappers_out),
    (_watch_environment, _leave_environment),
]
