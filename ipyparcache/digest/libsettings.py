"""Settings of libraries and of the interpreter: what differs from the defaults, and how to bring it back.

Only what differs is an input, so that it makes no difference whether a library is already loaded.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import operator
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from blake3 import blake3

from ipyparcache.digest import interpreter, registries, warningfilters
from ipyparcache.digest.instances import logger_facts
from ipyparcache.digest.objects import digest_of
from ipyparcache.errors import Undigestible


def settings_digest(special: object) -> str:
    """Digest of what differs from the defaults."""
    try:
        return digest_of(special).hex()[:32]
    except Undigestible:
        return blake3(repr(special).encode("utf-8", "surrogatepass")).hexdigest(16)


@dataclass(frozen=True)
class Setting:
    """One group of process settings: how to read what is not at its default, and how to bring it back."""

    name: str
    library: str
    special: Callable[[], object]  # what differs from the defaults; falsy if nothing does
    capture: Callable[[], object]
    restore: Callable[[Any], None]
    libraries: frozenset[str] = frozenset()  # that read it; empty: any code may

    def concerns(self, reached: Collection[str]) -> bool:
        """Whether a cell that reaches these modules may depend on it."""
        return not self.libraries or any(name.partition(".")[0] in self.libraries for name in reached)


def _decimal_facts() -> dict[str, object]:
    import decimal

    context = decimal.getcontext()
    facts: dict[str, object] = {
        name: getattr(context, name) for name in ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
    }
    facts["traps"] = sorted(signal.__name__ for signal, is_set in context.traps.items() if is_set)
    return facts


Facts = Callable[[], Mapping[str, object]]
"""Reads a setting that lives in a context variable."""


def _different(facts: Facts, defaults: Callable[[Facts], Mapping[str, object]]) -> dict[str, object]:
    """What of it differs from the defaults."""
    now = facts()
    default = defaults(facts)
    if now == default:
        return {}
    return {name: value for name, value in now.items() if value != default.get(name)}


def _defaults_now(facts: Facts) -> Mapping[str, object]:
    return contextvars.Context().run(facts)


_fixed_defaults = functools.cache(_defaults_now)
"""Where the defaults are the library's own for good: each call of a function that reaches it asks."""


def _restore_decimal(context: Any) -> None:
    import decimal

    decimal.setcontext(context.copy())


def _decimal_copy() -> object:
    import decimal

    return decimal.getcontext().copy()


def _numpy_print() -> dict[str, object]:
    return dict(sys.modules["numpy"].get_printoptions())


def _numpy_errors() -> dict[str, object]:
    return dict(sys.modules["numpy"].geterr())


def _restore_numpy_print(options: Any) -> None:
    sys.modules["numpy"].set_printoptions(**options)


def _restore_numpy_errors(options: Any) -> None:
    sys.modules["numpy"].seterr(**options)


def _pandas_options() -> dict[str, object]:
    config = sys.modules.get("pandas._config.config")
    return _flat(config._global_config) if config is not None else {}


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


_plain_options: tuple[list[dict[str, Any]], list[object]] | None = None
"""The dicts in which pandas keeps its options, and what they held when all was at its default."""


def _pandas_special() -> dict[str, object]:
    global _plain_options
    config = sys.modules.get("pandas._config.config")
    if config is None:
        return {}
    known = _plain_options
    if known is not None and known[0][0] is config._global_config:
        held = _held_by(known[0])
        if len(held) == len(known[1]) and all(map(operator.is_, held, known[1])):
            return {}  # each call of a function that reaches pandas asks
    defaults = {name: option.defval for name, option in config._registered_options.items()}
    special = {
        name: value
        for name, value in _pandas_options().items()
        if name in defaults and not _equal(value, defaults[name])
    }
    if not special:
        nodes = _nodes_of(config._global_config)
        _plain_options = nodes, _held_by(nodes)
    return special


def _nodes_of(options: dict[str, Any]) -> list[dict[str, Any]]:
    found = [options]
    for value in options.values():
        if isinstance(value, dict):
            found += _nodes_of(value)
    return found


def _held_by(nodes: list[dict[str, Any]]) -> list[object]:
    return list(chain.from_iterable(map(dict.values, nodes)))


def _equal(one: object, other: object) -> bool:
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # == of a library's value may do anything
        return False


def _restore_pandas(options: Mapping[str, object]) -> None:
    pandas = sys.modules["pandas"]
    now = _pandas_options()
    for name, value in options.items():
        if name in now and not _equal(now[name], value):
            pandas.set_option(name, value)


_OWN_RC = frozenset({"backend", "backend_fallback", "interactive", "toolbar"})


def _rc() -> dict[str, object]:
    # `dict.copy` would ask it for each, which sets filters for warnings and chooses a backend
    parameters = dict.items(sys.modules["matplotlib"].rcParams)
    return {name: value for name, value in parameters if name not in _OWN_RC}


_plain_rc: tuple[list[str], list[object], list[tuple[list[object], list[object]]]] | None = None
"""Names and values of the rcParams when all was as loaded; those that are lists again, with copies."""

_FIXED = (str, int, float, bool, tuple, type(None))


def _rc_special() -> dict[str, object]:
    global _plain_rc
    matplotlib = sys.modules["matplotlib"]
    names, values = list(dict.keys(matplotlib.rcParams)), list(dict.values(matplotlib.rcParams))
    if _plain_rc is not None:
        known, held, lists = _plain_rc
        is_same = names == known and all(map(operator.is_, values, held))
        if is_same and all(now == then for now, then in lists):
            return {}  # each call of a function that reaches matplotlib asks
    loaded = matplotlib.rcParamsOrig
    special = {name: value for name, value in _rc().items() if not _equal(value, dict.get(loaded, name))}
    if not special and all(
        isinstance(value, _FIXED) or type(value) is list or value is dict.get(loaded, name)
        for name, value in zip(names, values, strict=True)
    ):
        _plain_rc = names, values, [(value, list(value)) for value in values if isinstance(value, list)]
    return special


def _restore_rc(parameters: Mapping[str, object]) -> None:
    dict.update(sys.modules["matplotlib"].rcParams, parameters)


def has_plotting_backend() -> bool:
    """Whether pyplot has chosen where it draws: it does at the first figure, and figures then show."""
    return getattr(sys.modules.get("matplotlib.pyplot"), "_backend_mod", None) is not None


def choose_plotting_backend() -> None:
    """Have pyplot choose as the first figure would."""
    matplotlib = sys.modules.get("matplotlib")
    if matplotlib is not None and not has_plotting_backend():
        with contextlib.suppress(ImportError):  # the next figure will say it
            pyplot = importlib.import_module("matplotlib.pyplot")
            pyplot.switch_backend(dict.get(matplotlib.rcParams, "backend"))


_LOCALE_PARTS = ("LC_NUMERIC", "LC_TIME", "LC_COLLATE", "LC_MONETARY")


def _zone() -> tuple[object, ...]:
    return (*time.tzname, time.timezone, time.altzone)


def _root_logger_special() -> object:
    """What logging does with records when it is not what it does by itself."""
    root = sys.modules["logging"].root
    facts = logger_facts(root)
    plain = [0, (root.name, 30, False, True, 0, [])]
    return None if facts == plain else facts


def _sklearn() -> dict[str, object]:
    found: dict[str, object] = sys.modules["sklearn"].get_config()
    return found


def _sklearn_special() -> dict[str, object]:
    default = getattr(sys.modules.get("sklearn._config"), "_global_config", {})
    return {name: value for name, value in _sklearn().items() if value != default.get(name)}


def _restore_sklearn(options: Any) -> None:
    sys.modules["sklearn"].set_config(**options)


def _locale_facts() -> dict[str, str]:
    import locale

    return {part: locale.setlocale(getattr(locale, part)) for part in _LOCALE_PARTS if hasattr(locale, part)}


def _locale_special() -> dict[str, str]:
    return {part: name for part, name in _locale_facts().items() if name != "C"}


def _character_locale() -> str:
    """LC_CTYPE, which the environment sets in every kernel: an input only of code that may ask for it."""
    import locale

    return locale.setlocale(locale.LC_CTYPE)


def _restore_character_locale(name: str) -> None:
    import locale

    locale.setlocale(locale.LC_CTYPE, name)


def _restore_locale(facts: Mapping[str, str]) -> None:
    import locale

    for part, name in facts.items():
        locale.setlocale(getattr(locale, part), name)


def _socket_timeout() -> float | None:
    timeout: float | None = sys.modules["socket"].getdefaulttimeout()
    return None if timeout is None else timeout + 1  # a timeout of 0 is one, too


def _field_limit() -> int | None:
    limit: int = sys.modules["csv"].field_size_limit()
    return None if limit == 131072 else limit + 1  # a limit of 0 is one, too


_ARGUMENT_PARSERS = frozenset({"argparse", "optparse", "getopt", "click", "typer", "fire", "absl"})


def _nothing() -> None:
    """What there is to capture of a setting whose change prevents storing."""


def _leave(_state: object) -> None:
    """What there is to restore of such a setting."""


SETTINGS = (
    Setting(
        "decimal context",
        "decimal",
        lambda: _different(_decimal_facts, _defaults_now),
        _decimal_copy,
        _restore_decimal,
    ),
    Setting(
        "time zone", "time", lambda: _zone() if "TZ" in os.environ else None, _zone, lambda _: time.tzset()
    ),
    Setting("logging", "logging", _root_logger_special, _nothing, _leave),
    Setting("how records are logged", "logging", interpreter.record_making, _nothing, _leave),
    Setting(
        "logging.disable",
        "logging",
        lambda: sys.modules["logging"].root.manager.disable,
        lambda: sys.modules["logging"].root.manager.disable,
        lambda level: sys.modules["logging"].disable(level),
        frozenset({"logging"}),
    ),
    Setting(
        "loggers",
        "logging",
        registries.loggers,
        registries.loggers,
        registries.restore_loggers,
        frozenset({"logging"}),
    ),
    Setting(
        "CSV dialects",
        "csv",
        registries.dialects,
        registries.dialects,
        registries.restore_dialects,
        frozenset({"csv", "pandas"}),
    ),
    Setting(
        "limit of CSV fields",
        "csv",
        _field_limit,
        lambda: sys.modules["csv"].field_size_limit(),
        lambda limit: sys.modules["csv"].field_size_limit(limit),
        frozenset({"csv", "pandas"}),
    ),
    Setting(
        "XML prefixes",
        "xml.etree.ElementTree",
        registries.special_namespaces,
        registries.namespaces,
        registries.restore_namespaces,
        frozenset({"xml"}),
    ),
    Setting("codecs", "codecs", registries.codecs_of_user, _nothing, _leave),
    Setting(
        "types of files",
        "mimetypes",
        registries.file_types,
        _nothing,
        _leave,
        frozenset({"mimetypes", "email", "http", "requests", "urllib", "wsgiref"}),
    ),
    Setting("sys.argv", "sys", registries.special_arguments, _nothing, _leave, _ARGUMENT_PARSERS),
    Setting(
        "recursion limit",
        "sys",
        interpreter.recursion_limit,
        sys.getrecursionlimit,
        interpreter.restore_recursion_limit,
    ),
    Setting(
        "limit of digits",
        "sys",
        interpreter.digit_limit,
        sys.get_int_max_str_digits,
        sys.set_int_max_str_digits,
        frozenset({"sys"}),
    ),
    Setting(
        "switch interval",
        "sys",
        interpreter.switch_interval,
        sys.getswitchinterval,
        sys.setswitchinterval,
        frozenset({"sys"}),
    ),
    Setting(
        "garbage collector",
        "gc",
        interpreter.collector,
        interpreter.collector,
        interpreter.restore_collector,
        frozenset({"gc"}),
    ),
    Setting(
        "stack size of threads",
        "threading",
        interpreter.stack_size,
        interpreter.stack_size,
        interpreter.restore_stack_size,
        frozenset({"threading", "_thread"}),
    ),
    Setting(
        "umask", "os", interpreter.umask, interpreter.umask, interpreter.restore_umask, frozenset({"os"})
    ),
    Setting("signals", "signal", interpreter.signals, _nothing, _leave, frozenset({"signal"})),
    Setting(
        "limits of resources",
        "resource",
        interpreter.resource_limits,
        _nothing,
        _leave,
        frozenset({"resource"}),
    ),
    Setting(
        "tracemalloc",
        "tracemalloc",
        interpreter.tracing,
        interpreter.tracing,
        interpreter.restore_tracing,
        frozenset({"tracemalloc"}),
    ),
    Setting(
        "socket timeout",
        "socket",
        _socket_timeout,
        lambda: sys.modules["socket"].getdefaulttimeout(),
        lambda timeout: sys.modules["socket"].setdefaulttimeout(timeout),
        frozenset({"socket"}),
    ),
    Setting(
        "SQLite adapters",
        "sqlite3",
        interpreter.sqlite_adapters,
        _nothing,
        _leave,
        frozenset({"sqlite3", "pandas", "sqlalchemy"}),
    ),
    Setting("locale", "locale", _locale_special, _locale_facts, _restore_locale),
    Setting(
        "locale of characters",
        "locale",
        _character_locale,
        _character_locale,
        _restore_character_locale,
        frozenset({"locale"}),
    ),
    Setting(
        "warning filters", "warnings", warningfilters.facts, warningfilters.capture, warningfilters.restore
    ),
    Setting("how warnings are shown", "warnings", interpreter.warning_display, _nothing, _leave),
    Setting(
        "NumPy print options",
        "numpy",
        lambda: _different(_numpy_print, _fixed_defaults),
        _numpy_print,
        _restore_numpy_print,
    ),
    Setting(
        "NumPy error handling",
        "numpy",
        lambda: _different(_numpy_errors, _fixed_defaults),
        _numpy_errors,
        _restore_numpy_errors,
    ),
    Setting(
        "pandas options",
        "pandas",
        _pandas_special,
        _pandas_options,
        _restore_pandas,
        frozenset({"pandas", "geopandas", "seaborn", "sklearn", "statsmodels", "plotly", "dask", "xarray"}),
    ),
    Setting(
        "matplotlib rcParams",
        "matplotlib",
        _rc_special,
        _rc,
        _restore_rc,
        frozenset(
            {"matplotlib", "pylab", "seaborn", "pandas", "sklearn", "plotnine", "networkx", "arviz", "xarray"}
        ),
    ),
    Setting(
        "scikit-learn configuration",
        "sklearn",
        _sklearn_special,
        _sklearn,
        _restore_sklearn,
        frozenset({"sklearn", "imblearn", "xgboost", "lightgbm"}),
    ),
)
