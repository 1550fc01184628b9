"""Tables of the whole process that user code fills and no name leads to: dialects, loggers, handlers, hooks.

Only what differs from a fresh interpreter is told, so that it makes no difference which libraries are loaded.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from abc import ABCMeta
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, MethodType
from typing import Any

from ipyparcache.digest import modules, openfiles
from ipyparcache.digest.askers import is_asked_by_user

# ---- dialects of csv

_DIALECT_FACTS = (
    "delimiter",
    "doublequote",
    "escapechar",
    "lineterminator",
    "quotechar",
    "quoting",
    "skipinitialspace",
    "strict",
)
_OWN_DIALECTS = frozenset({"excel", "excel-tab", "unix"})


def dialects() -> dict[str, dict[str, Any]]:
    """The dialects that were registered besides those of the csv module itself."""
    csv = sys.modules["csv"]
    return {
        name: {fact: getattr(csv.get_dialect(name), fact) for fact in _DIALECT_FACTS}
        for name in sorted(csv.list_dialects())
        if name not in _OWN_DIALECTS
    }


def restore_dialects(wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Register these dialects, and no others besides the csv module's own."""
    csv = sys.modules["csv"]
    for name in dialects():
        if name not in wanted:
            csv.unregister_dialect(name)
    for name, facts in wanted.items():
        csv.register_dialect(name, **facts)


# ---- prefixes of XML namespaces


def namespaces() -> dict[str, str]:
    """The prefixes that ElementTree writes, by namespace; it brings eight of its own."""
    tree = sys.modules["xml.etree.ElementTree"]
    return dict(tree._namespace_map)


def restore_namespaces(wanted: Mapping[str, str]) -> None:
    """Make these the prefixes that ElementTree writes."""
    known = sys.modules["xml.etree.ElementTree"]._namespace_map
    known.clear()
    known.update(wanted)


_OWN_PREFIXES = frozenset({"xml", "html", "rdf", "wsdl", "xs", "xsi", "dc"})


def special_namespaces() -> dict[str, str]:
    """The prefixes that ElementTree does not bring itself."""
    return {space: prefix for space, prefix in namespaces().items() if prefix not in _OWN_PREFIXES}


# ---- loggers

_users_names: dict[str, bool] = {}


def _is_users(name: str) -> bool:
    """Whether a logger of this name is the user's: no library has a module of the name's first part."""
    top = name.partition(".")[0]
    known = _users_names.get(top)
    if known is None:
        # cvxpy's is `__cvxpy__`
        known = _users_names[top] = all(map(modules.is_user_code, (top, top.strip("_") or top)))
    return known


def _loggers() -> list[Any]:
    logging = sys.modules["logging"]
    found = list(logging.root.manager.loggerDict.items())
    return [one for name, one in found if isinstance(one, logging.Logger) and _is_users(name)]


def loggers() -> dict[str, tuple[int, bool, bool]]:
    """Level, being disabled and passing on of the user's loggers that are not as they were made."""
    facts = {one.name: (one.level, one.disabled, one.propagate) for one in _loggers()}
    return {name: fact for name, fact in sorted(facts.items()) if fact != (0, False, True)}


def restore_loggers(wanted: Mapping[str, tuple[int, bool, bool]]) -> None:
    """Give the user's loggers these levels; those that are not named are as they were made."""
    logging = sys.modules["logging"]
    for name in loggers().keys() - wanted.keys():
        _set_logger(logging.getLogger(name), 0, False, True)
    for name, facts in wanted.items():
        _set_logger(logging.getLogger(name), *facts)


def _set_logger(logger: Any, level: int, disabled: bool, propagate: bool) -> None:
    logger.setLevel(level)
    logger.disabled, logger.propagate = disabled, propagate


# ---- codecs

_error_handlers: dict[str, object] = {}  # those that the user registered, by name
_codec_finders: list[object] = []  # functions of the user that find a codec by its name


def codecs_of_user() -> dict[str, object]:
    """What the user registered with the codecs module, which tells of nothing that it holds."""
    found: dict[str, object] = {
        f"errors {name}": handler for name, handler in sorted(_error_handlers.items())
    }
    return {**found, **({"finders": list(_codec_finders)} if _codec_finders else {})}


def _note_handler(name: str, handler: object) -> None:
    _error_handlers[name] = handler


def _forget_finder(finder: object) -> None:
    _codec_finders[:] = [one for one in _codec_finders if one is not finder]


CODEC_REGISTRARS: dict[str, Callable[..., None]] = {
    "register_error": _note_handler,
    "register": _codec_finders.append,
    "unregister": _forget_finder,
}


def noting_codecs(plain: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    """A function that registers something with the codecs module, wrapped so that the user's is known."""

    @functools.wraps(plain)
    def register(*arguments: Any) -> Any:
        result = plain(*arguments)
        with openfiles.bookkeeping():
            if is_asked_by_user(sys._getframe(1)):
                note(*arguments)
        return result

    return register


# ---- types of files by their endings


def file_types() -> dict[str, dict[str, Any]]:
    """What the tables of the mimetypes module hold besides what it and the system bring; falsy if nothing."""
    mimetypes = sys.modules["mimetypes"]
    now = _type_tables(mimetypes, mimetypes._db)
    plain = _plain_types(mimetypes._db is not None, tuple(mimetypes.knownfiles))
    if now == plain:
        return {}
    return {name: _items_that_differ(table, plain[name]) for name, table in now.items()}


def _items_that_differ(now: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    return {key: now.get(key) for key in sorted({*now, *plain}) if now.get(key) != plain.get(key)}


def _type_tables(mimetypes: Any, known: Any) -> dict[str, dict[str, Any]]:
    """The tables that are asked: those of the module until it has looked into the system's files."""
    if known is None:
        tables = {"types": mimetypes.types_map, "common types": mimetypes.common_types}
        return {**tables, "encodings": mimetypes.encodings_map, "suffixes": mimetypes.suffix_map}
    tables = {"types": known.types_map[True], "common types": known.types_map[False]}
    endings = {"endings": known.types_map_inv[True], "common endings": known.types_map_inv[False]}
    return {**tables, **endings, "encodings": known.encodings_map, "suffixes": known.suffix_map}


@functools.cache
def _plain_types(has_looked: bool, files: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    mimetypes: Any = sys.modules["mimetypes"]
    if has_looked:
        fresh = mimetypes.MimeTypes()
        for file in files:
            if os.path.isfile(file):
                fresh.read(file)
        return _type_tables(mimetypes, fresh)
    return {
        "types": mimetypes._types_map_default,
        "common types": mimetypes._common_types_default,
        "encodings": mimetypes._encodings_map_default,
        "suffixes": mimetypes._suffix_map_default,
    }


# ---- arguments of the command line

_first_arguments = list(sys.argv)


def special_arguments() -> list[str] | None:
    """`sys.argv`, if it is not as the kernel was started."""
    return None if sys.argv == _first_arguments else list(sys.argv)


# ---- what no hit brings back, compared before and after a run


def fixtures() -> dict[str, object]:
    """What user code hangs up for the whole process; compared by equality."""
    found: dict[str, object] = {}
    if "numpy" in sys.modules:
        found["the error handler of NumPy"] = sys.modules["numpy"].geterrcall()
    if "logging" in sys.modules:
        found["the handlers of loggers"] = {
            one.name: (list(one.handlers), list(one.filters))
            for one in _loggers()
            if one.handlers or one.filters
        }
    found["the methods of pandas"] = _methods_added_to_pandas()
    return found


_PANDAS_CLASSES = ("DataFrame", "Series", "Index")
_added: dict[
    str, tuple[int, frozenset[str]]
] = {}  # by class: how many attributes it had, and which were added


def _methods_added_to_pandas() -> dict[str, frozenset[str]]:
    """Methods of pandas' classes that others have added (`tqdm.pandas()`), by class."""
    pandas = sys.modules.get("pandas")
    found = {}
    for name in _PANDAS_CLASSES:
        cls = getattr(pandas, name, None)
        if not isinstance(cls, type):
            continue
        members = vars(cls)
        known = _added.get(name)
        if known is None or known[0] != len(members):
            names = frozenset(key for key, member in members.items() if _is_foreign(member))
            known = _added[name] = (len(members), names)
        if known[1]:
            found[name] = known[1]
    return found


def _is_foreign(member: object) -> bool:
    module = getattr(member, "__module__", None)
    return (
        callable(member)
        and isinstance(module, str)
        and module.partition(".")[0] not in ("pandas", "builtins", "functools", "typing")
    )


# ---- the database that all of DuckDB's functions share, which no name leads to

_DEFAULT_CALLS = (
    "append",
    "appender",
    "begin",
    "commit",
    "default_connection",
    "execute",
    "executemany",
    "from_query",
    "query",
    "query_appender",
    "query_df",
    "rollback",
    "sql",
    "table",
    "table_function",
    "view",
)
_DEFAULT_CHANGES = (
    "create_function",
    "load_extension",
    "register",
    "register_filesystem",
    "remove_function",
    "set_default_connection",
    "unregister",
    "unregister_filesystem",
)
_OF_THE_SESSION = re.compile(r"(?:^|;)\s*(set|reset|pragma|use|load|attach|detach)\b", re.IGNORECASE)
_CATALOG = """
    select table_name from duckdb_tables() where not internal
    union all select view_name from duckdb_views() where not internal
    union all select function_name from duckdb_functions() where not internal
"""


def _duckdb_function(thing: object, names: Sequence[str]) -> str | None:
    duckdb = sys.modules.get("duckdb")
    if duckdb is None or not callable(thing):
        return None
    return next((f"duckdb.{name}" for name in names if getattr(duckdb, name, None) is thing), None)


def default_database(thing: object) -> str | None:
    """The name of a function that works on DuckDB's default database; None for others."""
    return _duckdb_function(thing, _DEFAULT_CALLS)


def untold_of_default_database() -> str | None:
    """What DuckDB's default database holds, that no digest tells and no hit brings back; None if nothing."""
    duckdb: Any = sys.modules["duckdb"]
    try:
        if int(duckdb.__version__.partition(".")[0]) >= 2:
            found = duckdb.sql(_CATALOG).fetchall()
        else:  # a query would end the one whose result the user is fetching; a cursor knows no temporary ones
            found = duckdb.cursor().execute(_CATALOG).fetchall()
    except Exception:
        return "something that cannot be told now"
    return f"`{found[0][0]}`" if found else None


def sets_up_session(code: CodeType) -> str | None:
    """The word of SQL by which code changes the session of the connection that it asks."""
    for constant in code.co_consts:
        if isinstance(constant, str) and (found := _OF_THE_SESSION.search(constant)):
            return found[1].upper()
    return None


# ---- calls that fill a table which cannot be read

_REGISTRARS = frozenset(
    {
        ("_codecs", "register"),
        ("_codecs", "register_error"),
        ("_codecs", "unregister"),
        ("_sqlite3", "register_adapter"),
        ("_sqlite3", "register_converter"),
        ("sqlite3", "register_adapter"),
        ("sqlite3", "register_converter"),
        ("atexit", "register"),
        ("atexit", "unregister"),
        ("copyreg", "pickle"),
        ("copyreg", "add_extension"),
        ("logging", "addLevelName"),
        ("mimetypes", "add_type"),
        ("shutil", "register_archive_format"),
        ("shutil", "register_unpack_format"),
        ("asyncio.events", "set_event_loop_policy"),
        ("posix", "nice"),
        ("posix", "sched_setaffinity"),
        ("posix", "setpriority"),
    }
)
_UNTOLD = frozenset(
    {
        ("_weakref", "getweakrefcount"),
        ("_weakref", "getweakrefs"),
        ("gc", "get_count"),
        ("gc", "get_objects"),
        ("gc", "get_referrers"),
        ("gc", "get_stats"),
        ("posix", "getpriority"),
        ("sys", "_current_frames"),
        ("sys", "getrefcount"),
        ("threading", "active_count"),
        ("threading", "enumerate"),
    }
)


def registrar(thing: object) -> str | None:
    """The name of a function that fills a table of the process which no hit fills again; None for others.

    The `register` of a library's class, as of `Sequence`, is such a function, too.
    """
    if (name := _duckdb_function(thing, _DEFAULT_CHANGES)) is not None:
        return name
    if isinstance(thing, MethodType) and thing.__func__ is ABCMeta.register:
        cls: Any = thing.__self__
        return None if modules.is_user_code(cls.__module__) else f"{cls.__qualname__}.register"
    return _name_among(thing, _REGISTRARS)


def untold(thing: object) -> str | None:
    """The name of a function that asks for what no digest tells: which objects, frames, threads there are."""
    return _name_among(thing, _UNTOLD)


def _name_among(thing: object, table: frozenset[tuple[str, str]]) -> str | None:
    name = getattr(thing, "__name__", None)
    module = getattr(thing, "__module__", None)
    if isinstance(module, str) and isinstance(name, str) and (module, name) in table:
        return f"{module.lstrip('_').replace('posix', 'os')}.{name}"
    return None
