"""What a task sees around it: environment, folder, import path and settings of the process that called.

`take` is asked at every call and must cost microseconds; only libraries that the caller has loaded are
looked at. A worker puts the state in place before each call, since a task of an earlier call may have
changed it.
"""

from __future__ import annotations

import contextlib
import operator
import os
import sys
import threading
from collections.abc import Callable

from ipyparcache.engine.localmodules import LocalModules, drop_outdated
from ipyparcache.lean import pickle

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

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
    from ipyparcache.engine import warningfilters

    return warningfilters.take()


def _put_warnings(filters: Any) -> None:
    from ipyparcache.engine import warningfilters

    if warningfilters.take() != filters:
        warningfilters.put(filters)


def _stamp_warnings() -> Any:
    return list(sys.modules["warnings"].filters)


_SWITCHES = operator.attrgetter("level", "propagate", "disabled")
_SILENT = (0, True, False)  # a logger that decides nothing itself


def _take_logging() -> Any:
    import logging

    loggers = logging.root.manager.loggerDict
    named = {name: logger for name, logger in list(loggers.items()) if isinstance(logger, logging.Logger)}
    switches = dict(zip(named, map(_SWITCHES, named.values()), strict=True))
    levels = {name: found for name, found in switches.items() if found != _SILENT}
    return logging.root.level, logging.root.manager.disable, levels


_loggers: tuple[list[Any], list[Any]] = ([], [])  # what is in the tree of names, and the loggers among that


def _stamp_logging() -> Any:
    global _loggers
    root = sys.modules["logging"].root
    named = list(root.manager.loggerDict.values())
    if named != _loggers[0]:
        # What only holds a place in the tree has no level.
        _loggers = named, [one for one in named if "level" in one.__dict__]
    return root.level, root.manager.disable, named, list(map(_SWITCHES, _loggers[1]))


def _put_logging(state: Any) -> None:
    import logging

    root, disabled, levels = state
    if logging.root.level != root:
        logging.root.setLevel(root)
    logging.root.manager.disable = disabled
    for name in _take_logging()[2].keys() | levels.keys():
        level, propagate, off = levels.get(name, _SILENT)
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


def _pandas_options() -> Any:
    return sys.modules["pandas"]._config.config._global_config


def _matplotlib_options() -> Any:
    return sys.modules["matplotlib"].rcParams


def _unshared(value: Any) -> Any:
    """A copy that shows when a container in the original was changed in place."""
    if isinstance(value, dict):
        return {name: part if type(part) in _ATOMS else _unshared(part) for name, part in dict.items(value)}
    import copy

    return copy.copy(value)


_ATOMS = frozenset({type(None), bool, int, float, str, bytes})
# What is compared at each call, where reading all settings would take longer.
_STAMPS: dict[str, Callable[[], Any]] = {
    "warnings": _stamp_warnings,
    "logging": _stamp_logging,
    "decimal": _stamp_decimal,
}
# Dictionaries of options that are compared with a copy of themselves.
_OPTIONS: dict[str, Callable[[], Any]] = {"pandas": _pandas_options, "matplotlib": _matplotlib_options}

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


def is_joblib() -> bool:
    """Whether a program has put us into the place of joblib."""
    return sys.modules.get("joblib") is sys.modules["ipyparcache"]


def _be_joblib() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "joblib"]:
        del sys.modules[name]
    sys.modules["joblib"] = sys.modules["ipyparcache"]


class _Noted:
    """What was found around a task at one moment, to tell later whether all is as it was."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {
            "environ": dict(os.environ._data),  # type: ignore[attr-defined]
            "path": list(sys.path),
            "argv": list(getattr(sys, "argv", ())),
            "dont_write_bytecode": sys.dont_write_bytecode,
            "recursion": sys.getrecursionlimit(),
            "joblib": is_joblib(),
        }
        with contextlib.suppress(OSError):  # a removed folder: the workers stay where they are
            self.state["cwd"] = os.getcwd()
        self._loaded = _loaded()
        self._stamps: list[tuple[Callable[[], Any], Any]] = []  # of the libraries that are loaded
        self.libraries: list[str] = []
        self._options: list[tuple[Callable[[], Any], Any]] = []
        for name in _LIBRARIES:
            if name in sys.modules:
                # half loaded, or another version
                with contextlib.suppress(AttributeError, ImportError, LookupError):
                    if name in _OPTIONS:
                        self._options.append((_OPTIONS[name], _unshared(_OPTIONS[name]())))
                    else:
                        stamp = _STAMPS.get(name, _LIBRARIES[name][0])
                        self._stamps.append((stamp, stamp()))
                    self.libraries.append(name)

    def holds(self) -> bool:
        """Whether nothing has changed, told without making a copy of it."""
        state = self.state
        try:
            if not (
                os.environ._data == state["environ"]  # type: ignore[attr-defined]
                and sys.path == state["path"]
                and list(getattr(sys, "argv", ())) == state["argv"]
                and sys.dont_write_bytecode == state["dont_write_bytecode"]
                and sys.getrecursionlimit() == state["recursion"]
                and os.getcwd() == state.get("cwd")
                and _loaded() == self._loaded
            ):
                return False
            for stamp, seen in self._stamps:
                if stamp() != seen:
                    return False
            return all(dict.__eq__(options(), seen) is True for options, seen in self._options)
        except (AttributeError, ImportError, LookupError, OSError, TypeError, ValueError):
            return False  # it cannot even be compared


def _loaded() -> tuple[int, str]:
    """How many modules there are, and the last of them: changes when one is loaded."""
    return len(sys.modules), next(reversed(sys.modules))


class Surroundings:
    """The state of this process as last taken, with a version that grows when it changed."""

    def __init__(self) -> None:
        self.version = 0
        self._lock = threading.RLock()  # an interrupt may leave it held by the thread that asks again
        self._modules = LocalModules()
        self._noted: _Noted | None = None
        self._last: dict[str, Any] = {}
        self._pickled = b""

    def take(self) -> tuple[int, bytes]:
        """Version and pickle of the present state."""
        with self._lock:
            modules = self._modules.take()
            noted = self._noted
            if noted is None or modules is not self._last["modules"] or not noted.holds():
                self._take_all(modules)
            return self.version, self._pickled

    def _take_all(self, modules: dict[str, int]) -> None:
        noted = _Noted()  # first, so that what changes meanwhile shows at the next call
        state = {**noted.state, "modules": modules}
        for name in noted.libraries:
            with contextlib.suppress(AttributeError, ImportError):
                found = _LIBRARIES[name][0]()
                state[name] = _unshared(found) if name in _OPTIONS else found
        if state != self._last:
            self._pickled = _pickled_rows(state)
            self.version += 1
        self._last = state
        self._noted = noted


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
_in_place: tuple[int | None, bool, _Noted] | None = None
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
    global _folder, _in_place, _modules, _restored
    if pickled is None and _in_place is not None:
        *limits, noted = _in_place
        if limits == [threads, forced] and noted.holds():
            enter_folder()
            return
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
        elif name == "joblib":
            if value and not is_joblib():
                _be_joblib()
        elif name == "modules":
            drop_outdated(_modules, value)
            _modules = value
    if threads is not None:
        _limit_loaded(threads, forced)
    _in_place = threads, forced, _Noted()


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
