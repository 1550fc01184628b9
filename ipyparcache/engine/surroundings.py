"""What a task sees around it: environment, folder, import path and settings of the process that called.

`take` is asked at every call and must cost microseconds; only libraries that the caller has loaded are
looked at. A worker puts the state in place before each call, since a task of an earlier call may have
changed it.
"""

from __future__ import annotations

import contextlib
import copy
import operator
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

from ipyparcache.engine.localmodules import LocalModules, drop_outdated

# Read by BLAS and OpenMP libraries when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def _take_warnings() -> Any:
    import warnings

    return list(warnings.filters)


def _put_warnings(filters: Any) -> None:
    import warnings

    if warnings.filters != filters:
        warnings.filters[:] = filters  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]


_SWITCHES = operator.attrgetter("level", "propagate", "disabled")
_SILENT = (0, True, False)  # a logger that decides nothing itself


def _take_logging() -> Any:
    import logging

    loggers = logging.root.manager.loggerDict
    named = {name: logger for name, logger in list(loggers.items()) if isinstance(logger, logging.Logger)}
    switches = dict(zip(named, map(_SWITCHES, named.values()), strict=True))
    levels = {name: found for name, found in switches.items() if found != _SILENT}
    return logging.root.level, logging.root.manager.disable, levels


def _stamp_logging() -> Any:
    logging = sys.modules["logging"]
    root = logging.root
    loggers = list(root.manager.loggerDict.values())
    # What only holds a place in the tree of names has no level.
    switches = [_SWITCHES(one) for one in loggers if "level" in one.__dict__]
    return root.level, root.manager.disable, loggers, switches


def _put_logging(state: Any) -> None:
    import logging

    root, disabled, levels = state
    if logging.root.level != root:
        logging.root.setLevel(root)
    logging.root.manager.disable = disabled
    for name, (level, propagate, off) in levels.items():
        logger = logging.getLogger(name)
        if logger.level != level:
            logger.setLevel(level)
        logger.propagate = propagate
        logger.disabled = off


def _take_decimal() -> Any:
    import decimal

    context = decimal.getcontext()
    return (
        context.prec,
        context.rounding,
        context.Emin,
        context.Emax,
        context.capitals,
        context.clamp,
        tuple(name.__name__ for name, on in context.traps.items() if on),
    )


def _put_decimal(state: Any) -> None:
    import decimal

    precision, rounding, smallest, largest, capitals, clamp, traps = state
    decimal.setcontext(
        decimal.Context(
            precision,
            rounding,
            smallest,
            largest,
            capitals,
            clamp,
            [],
            [getattr(decimal, name) for name in traps],
        )
    )


def _take_numpy() -> Any:
    import numpy as np

    return np.geterr(), np.get_printoptions()


def _put_numpy(state: Any) -> None:
    import numpy as np

    errors, printing = state
    np.seterr(**errors)
    np.set_printoptions(
        **{name: value for name, value in printing.items() if name != "override_repr" or value}
    )


def _take_pandas() -> Any:
    """Options that are not at their default."""
    from pandas._config import config

    found: dict[str, Any] = {}
    known = getattr(config, "_registered_options", {})

    def walk(prefix: str, tree: dict[str, Any]) -> None:
        for name, value in tree.items():
            if isinstance(value, dict):
                walk(f"{prefix}{name}.", value)
            elif (option := known.get(prefix + name)) is None or option.defval != value:
                found[prefix + name] = value

    walk("", getattr(config, "_global_config", {}))
    return found


def _put_pandas(state: Any) -> None:
    import pandas as pd
    from pandas._config import config

    defaults = {name: option.defval for name, option in getattr(config, "_registered_options", {}).items()}
    for name in _take_pandas().keys() | state.keys():
        with contextlib.suppress(Exception):
            pd.set_option(name, state[name] if name in state else defaults[name])


def _take_matplotlib() -> Any:
    """Parameters that are not at their default; the backend is this process's own."""
    import matplotlib

    defaults = matplotlib.rcParamsDefault
    return {
        name: value
        for name, value in dict.items(matplotlib.rcParams)
        if name not in ("backend", "interactive") and dict.get(defaults, name) != value
    }


def _put_matplotlib(state: Any) -> None:
    import matplotlib

    for name in _take_matplotlib().keys() | state.keys():
        value = state[name] if name in state else dict.get(matplotlib.rcParamsDefault, name)
        dict.__setitem__(matplotlib.rcParams, name, value)


def _take_authkey() -> bytes:
    """What proxies of a manager prove themselves with."""
    return bytes(sys.modules["multiprocessing"].current_process().authkey)


def _put_authkey(key: bytes) -> None:
    sys.modules["multiprocessing"].current_process().authkey = key


def _stamp_decimal() -> Any:
    return repr(sys.modules["decimal"].getcontext())


def _stamp_pandas() -> Any:
    return _unshared(sys.modules["pandas"]._config.config._global_config)


def _stamp_matplotlib() -> Any:
    return _unshared(sys.modules["matplotlib"].rcParams)


def _unshared(value: Any) -> Any:
    """A copy that shows when a container in the original was changed in place."""
    if isinstance(value, dict):
        return {name: part if type(part) in _ATOMS else _unshared(part) for name, part in dict.items(value)}
    return copy.copy(value)


_ATOMS = frozenset({type(None), bool, int, float, str, bytes})
# What is compared at each call, where reading all settings would take longer.
_STAMPS: dict[str, Callable[[], Any]] = {
    "logging": _stamp_logging,
    "decimal": _stamp_decimal,
    "pandas": _stamp_pandas,
    "matplotlib": _stamp_matplotlib,
}

# Library, how its settings are read, how they are put in place. They are read only where the library is
# loaded.
_LIBRARIES: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "warnings": (_take_warnings, _put_warnings),
    "logging": (_take_logging, _put_logging),
    "decimal": (_take_decimal, _put_decimal),
    "numpy": (_take_numpy, _put_numpy),
    "pandas": (_take_pandas, _put_pandas),
    "matplotlib": (_take_matplotlib, _put_matplotlib),
    "multiprocessing.managers": (_take_authkey, _put_authkey),
}


_CHECKS = tuple((name, _STAMPS.get(name, take)) for name, (take, _) in _LIBRARIES.items())


class Surroundings:
    """The state of this process as last taken, with a version that grows when it changed."""

    def __init__(self) -> None:
        self.version = 0
        self._lock = threading.RLock()  # an interrupt may leave it held by the thread that asks again
        self._modules = LocalModules()
        self._last: dict[str, Any] = {}
        self._stamps: dict[str, Any] = {}
        self._pickled = b""

    def take(self) -> tuple[int, bytes]:
        """Version and pickle of the present state."""
        with self._lock:
            modules = self._modules.take()
            if not self._is_as_last(modules):
                self._take_all(modules)
            return self.version, self._pickled

    def _is_as_last(self, modules: dict[str, int]) -> bool:
        """Whether all is as it was, told without making a copy of it."""
        last = self._last
        if not (
            last
            and modules is last["modules"]
            and os.environ._data == last["environ"]  # type: ignore[attr-defined]
            and sys.path == last["path"]
            and list(getattr(sys, "argv", ())) == last["argv"]
            and sys.dont_write_bytecode == last["dont_write_bytecode"]
            and sys.getrecursionlimit() == last["recursion"]
        ):
            return False
        try:
            if os.getcwd() != last.get("cwd"):
                return False
        except OSError:
            return False
        loaded, stamps = sys.modules, self._stamps
        try:
            for name, stamp in _CHECKS:
                if name in loaded and (name not in stamps or stamp() != stamps[name]):
                    return False
        except (AttributeError, ImportError):
            return False
        return True

    def _take_all(self, modules: dict[str, int]) -> None:
        state: dict[str, Any] = {
            "environ": dict(os.environ._data),  # type: ignore[attr-defined]
            "path": list(sys.path),
            "argv": list(getattr(sys, "argv", ())),
            "dont_write_bytecode": sys.dont_write_bytecode,
            "recursion": sys.getrecursionlimit(),
        }
        with contextlib.suppress(OSError):  # a removed folder: the workers stay where they are
            state["cwd"] = os.getcwd()
        state["modules"] = modules
        stamps: dict[str, Any] = {}
        for name, stamp in _CHECKS:
            if name in sys.modules:
                try:
                    stamps[name] = stamp()  # first, so that a change meanwhile shows at the next call
                    state[name] = _LIBRARIES[name][0]()
                except (AttributeError, ImportError):  # half loaded, or another version
                    stamps.pop(name, None)
        self._stamps = stamps
        if state != self._last:
            self._pickled = _pickled_rows(state)
            self.version += 1
        self._last = state


def _pickled_rows(state: dict[str, Any]) -> bytes:
    rows = []
    for name, value in state.items():
        try:
            rows.append((name, pickle.dumps(value, 5)))
        except Exception:
            # A setting that holds a function of the notebook (a formatter) does not reach the workers.
            if isinstance(value, dict):
                kept = {}
                for key, part in value.items():
                    with contextlib.suppress(Exception):
                        pickle.dumps(part, 5)
                        kept[key] = part
                rows.append((name, pickle.dumps(kept, 5)))
    return pickle.dumps(rows, 5)


_modules: dict[str, int] = {}  # generation of each local module of the caller


class _Row:
    """One part of a state that was restored; what a library gets is unpickled when it is loaded here."""

    def __init__(self, name: str, data: bytes):
        self.name = name
        self.data = data
        self._value: Any = _NOT_YET

    def value(self) -> Any:
        """The value, to compare with: whoever puts it in place takes a `copy`."""
        if self._value is _NOT_YET:
            self._value = pickle.loads(self.data)
        return self._value

    def copy(self) -> Any:
        """A value that nobody else has."""
        return pickle.loads(self.data)


_NOT_YET = object()
_restored: list[_Row] = []
_folder = ""
_environment: tuple[Any, int | None, bool, dict[Any, Any]] = (None, None, False, {})


class _ApplyWhenLoaded:
    """An entry of `sys.meta_path` that gives a library the caller's settings as soon as it is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec that the other finders give, its loader extended by the step that applies the settings."""
        if name not in _LIBRARIES or not any(row.name == name for row in _restored):
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _ApplyWhenLoaded) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                loader: Any = spec.loader
                with contextlib.suppress(AttributeError):  # built-in loaders are classes: nothing to extend
                    loader.exec_module = _and_apply(loader.exec_module, name)
                return spec
        return None


def _and_apply(run: Callable[[Any], Any], name: str) -> Callable[[Any], None]:
    def run_and_apply(module: Any) -> None:
        run(module)
        _apply_library(name)

    # warnings that count frames, and tracebacks, skip this frame as they skip importlib's own
    own = run_and_apply.__code__
    run_and_apply.__code__ = own.replace(co_filename="<frozen importlib._bootstrap_external>")
    return run_and_apply


def _apply_library(name: str) -> None:
    """Put the settings of a loaded library in place, if they are not."""
    for row in _restored:
        if row.name == name:
            # A setting that cannot be had here (another version) cannot matter to what runs here.
            with contextlib.suppress(Exception):
                take, put = _LIBRARIES[name]
                if take() != row.value():
                    put(row.copy())


def restore(pickled: bytes | None, threads: int | None = None, forced: bool = False) -> None:
    """Put a state in place on a worker; None is the one that was put in place last.

    Libraries that are not loaded here get their settings when they are. BLAS and OpenMP may use `threads`
    threads: those that are still to be loaded read it from the environment. A variable that the caller has
    set itself wins, unless the limit was asked for by name (`forced`).
    """
    global _folder, _modules, _restored
    if pickled is not None:
        _restored = [_Row(name, data) for name, data in pickle.loads(pickled)]
        if not any(isinstance(finder, _ApplyWhenLoaded) for finder in sys.meta_path):
            sys.meta_path.insert(0, _ApplyWhenLoaded())
    loaded = sys.modules
    for row in _restored:
        name = row.name
        if name in _LIBRARIES:
            if name in loaded:
                _apply_library(name)
            continue
        value = row.value()
        if name == "environ":
            _put_environment(_with_limit(value, threads, forced))
        elif name == "path":
            if sys.path != value:
                import importlib

                sys.path[:] = value
                importlib.invalidate_caches()
        elif name == "argv":
            if sys.argv != value:
                sys.argv[:] = value
        elif name == "dont_write_bytecode":
            sys.dont_write_bytecode = value
        elif name == "recursion":
            if sys.getrecursionlimit() != value:
                sys.setrecursionlimit(value)
        elif name == "cwd":
            _folder = value
            enter_folder()
        elif name == "modules":
            drop_outdated(_modules, value)
            _modules = value
    if threads is not None:
        _limit_loaded(threads, forced)


def enter_folder() -> None:
    """Go to the caller's folder, even if there is another one by that name now."""
    if _folder:
        with contextlib.suppress(OSError):
            os.chdir(_folder)


def _with_limit(environment: dict[Any, Any], threads: int | None, forced: bool) -> dict[Any, Any]:
    """The caller's environment and the variables that limit threads."""
    global _environment
    if threads is None:
        return environment
    known, count, by_name, wanted = _environment
    if known is not environment or count != threads or by_name != forced:
        limit = os.environ.encodevalue(str(threads))
        limits = {os.environ.encodekey(name): limit for name in THREAD_VARIABLES}
        wanted = {**environment, **limits} if forced else {**limits, **environment}
        _environment = environment, threads, forced, wanted
    return wanted


def _put_environment(wanted: dict[Any, Any]) -> None:
    here = os.environ._data  # type: ignore[attr-defined]
    if here == wanted:
        return
    decode = os.environ.decodevalue
    for key in [key for key in here if key not in wanted]:
        del os.environ[os.environ.decodekey(key)]
    for key, value in wanted.items():
        if here.get(key) != value:
            os.environ[os.environ.decodekey(key)] = decode(value)


_limited: tuple[int, bool, int] = (0, False, 0)


def _limit_loaded(limit: int, forced: bool) -> None:
    """Let the libraries that are loaded use `limit` threads."""
    global _limited
    # Numba refuses a change after its threads have started, other libraries take it at run time.
    state = (limit, forced, len(sys.modules))
    if _limited == state or "numpy" not in sys.modules:
        return
    if forced or all(os.environ.get(name) == str(limit) for name in THREAD_VARIABLES[:3]):
        import threadpoolctl

        threadpoolctl.threadpool_limits(limit)
    _limited = (limit, forced, len(sys.modules))
