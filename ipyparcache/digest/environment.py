"""What lies outside memory: files and variables as rows of a trace, settings, random generators.

A row says what a run was told when it asked: `still_holds` asks again. Settings of libraries are inputs where
they differ from the defaults, so that it makes no difference whether a library is already loaded. What a run
changes in the process (environment, folder, `sys.path`, settings, generators, attributes of local modules) is
taken apart by `process_changes` and put back by `restore_process`.
"""

from __future__ import annotations

import builtins
import contextvars
import functools
import gc
import glob
import importlib
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType, NoneType
from typing import Any, NamedTuple

from blake3 import blake3

from ipyparcache.digest import modules, openfiles
from ipyparcache.digest.instances import logger_facts
from ipyparcache.digest.objects import Traversal, digest_of
from ipyparcache.digest.openfiles import Seen, Signature, answer_to, file_content, listing_of, signature_of
from ipyparcache.digest.walk import dumps
from ipyparcache.errors import Undigestible, Unrepeatable

__all__ = [
    "Row",
    "described",
    "files_named_in",
    "install",
    "observed_rows",
    "process_changes",
    "process_state",
    "restore_process",
    "static_rows",
    "still_holds",
    "uninstall",
    "use_secret",
]

SETTLED_SECONDS = 2.0  # a file changed less than this ago may change again within the same time stamp


class Row(NamedTuple):
    """One observation: what was asked (`kind`), of what (`name`), and what the answer was (`digest`)."""

    kind: str
    name: str
    digest: str


# ---- digests of files


class FileDigests:
    """Content digests of files, with a short-cut by size, times and inode; kept in a file if one is given."""

    def __init__(self, path: Path | None = None):
        self._path = path
        self._known: dict[str, tuple[Signature, str]] = {}
        self._lock = threading.Lock()
        if path is not None:
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))
                self._known = {name: (tuple(row[0]), row[1]) for name, row in rows.items()}
            except (OSError, ValueError, TypeError, IndexError, AttributeError):
                self._known = {}

    def digest(self, path: str) -> str:
        """Hexadecimal digest of a file's content; `absent` where there is none, `folder` for a folder."""
        full = os.path.abspath(path)
        signature = signature_of(full)
        if signature is None:
            return "absent"
        if os.path.isdir(full):
            return "folder"
        with self._lock:
            known = self._known.get(full)
        if known is not None and known[0] == signature:
            return known[1]
        content = file_content(full)
        if content is None:
            return "unreadable"
        found = content.hex()
        if signature_of(full) == signature and _is_settled(signature):
            with self._lock:
                self._known[full] = (signature, found)
        return found

    def save(self) -> None:
        """Write what is known to the file, so that another process need not read those files again."""
        if self._path is None:
            return
        with self._lock:
            text = json.dumps(self._known)
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(self._path)
        except OSError:
            partial.unlink(missing_ok=True)


def _is_settled(signature: Signature) -> bool:
    """Whether the file is old enough that another change would show in its time stamps."""
    return time.time_ns() - max(signature[1], signature[2]) > SETTLED_SECONDS * 1e9


_digests = FileDigests()
_secret = bytes(32)


def use_secret(secret: bytes) -> None:
    """Key the digests of environment variables, which may be passwords, with 32 bytes of this user's."""
    global _secret
    _secret = blake3(secret).digest()


def keep_digests_in(path: Path) -> None:
    """Remember the digests of files between processes."""
    global _digests
    _digests = FileDigests(path)


def save_digests() -> None:
    """Write the digests of files, if `keep_digests_in` named a file."""
    _digests.save()


# ---- rows


def observed_rows(seen: Seen, *, trust_shell: bool = False, logs: bool = True) -> list[Row]:
    """What a run asked for, as rows that hold as long as the answers are the same.

    Parameters
    ----------
    seen : Seen
        What was noted while it ran.
    trust_shell : bool
        Whether it may have started programs.
    logs : bool
        Whether files count that it only appended to: what they hold cannot change its results.

    Raises
    ------
    Unrepeatable
        If the run read from the console, started programs, removed files it did not make, or if a file that
        it read has changed since.
    """
    with openfiles.unwatched():
        _refuse(seen, trust_shell)
        rows = [*_file_rows(seen, logs)]
        for (question, path), answer in sorted(seen.answers.items()):
            use = seen.files.get(os.path.abspath(path))
            made_new = use is not None and use.is_written and not use.is_read
            if made_new and (question, path) not in seen.asked_by_user:
                continue  # a writer that looks whether it overwrites; that the file is there is demanded too
            rows.append(Row(question, path, _hexed(answer)))
        for path, listing in sorted(seen.listings.items()):
            rows.append(Row("listing", path, _hexed(listing)))
        for name, value in sorted(seen.environment.items()):
            rows.append(Row("env", name, _variable(value)))
        rows += [Row("module", name, _module_digest(name)) for name in sorted(seen.modules)]
        rows += [Row("name", name, digest) for name, digest in sorted(seen.names.items())]
        if seen.asks_folder:
            rows.append(Row("cwd", "", _hexed(seen.folder)))
        rows += _random_rows(seen)
        return rows


def _refuse(seen: Seen, trust_shell: bool) -> None:
    if seen.lost:
        raise Unrepeatable(seen.lost)
    if seen.unseen:
        raise Unrepeatable(f"not all that it asked for could be noted ({seen.unseen})")
    if seen.reads_stdin:
        raise Unrepeatable("it reads from the console")
    if seen.commands and not trust_shell:
        program = seen.commands[0].program
        raise Unrepeatable(f"it runs another program ({program}); --trust-shell caches it all the same")
    nameless = [name for name, digest in seen.names.items() if digest == "none"]
    if nameless:
        raise Unrepeatable(f"a library looks up `{nameless[0]}`, which has no digest")
    if seen.removed:
        raise Unrepeatable(f"it removes, renames or marks {seen.removed[0]}, which it did not make")


def _file_rows(seen: Seen, logs: bool) -> Iterable[Row]:
    for full, use in sorted(seen.files.items()):
        if use.is_log and not logs:
            continue
        if use.is_read:
            if use.is_written:
                yield Row("file", use.spelled, "absent" if use.content is None else use.content.hex())
            else:
                now = signature_of(full)
                found = _digests.digest(full)
                if now != use.before or signature_of(full) != use.before:
                    raise Unrepeatable(f"{use.spelled} changed while the cell ran")
                yield Row("file", use.spelled, found)
        if use.is_written:
            found = _digests.digest(full)
            if found == "absent":
                raise Unrepeatable(f"{use.spelled}, which it wrote, is no longer there")
            yield Row("output", use.spelled, found)
    for folder in sorted(seen.folders_made):
        spelled = os.path.relpath(folder, seen.folder) if folder.startswith(seen.folder + os.sep) else folder
        if os.path.isdir(folder):
            yield Row("output", spelled, "folder")


def static_rows(
    reached: Mapping[str, str], *, files: Sequence[str] = (), variables: Sequence[str] = ()
) -> list[Row]:
    """Rows known before a run: files and variables that the user declares, settings of the libraries reached.

    Parameters
    ----------
    reached : mapping
        Modules reached, as `Traversal.modules`.
    files : sequence of str
        Paths, folders (with all in them) and patterns.
    variables : sequence of str
        Names of environment variables.
    """
    with openfiles.unwatched():
        rows = []
        for pattern in files:
            for path in sorted(_files_of(pattern)) or [pattern]:
                rows.append(Row("file", path, _digests.digest(path)))
        for name in variables:
            rows.append(Row("env", name, _variable(_raw_variable(name))))
        rows += _setting_rows(reached)
        for name in sorted(reached):
            if name in sys.modules:
                rows += _import_rows.get(name, [])
        return rows


_import_rows: dict[str, list[Row]] = {}
"""What each loaded local module asked for while it was imported, with the answers it got then."""


@contextmanager
def _noting_import(name: str) -> Iterator[None]:
    openfiles.note_loading(name)
    with openfiles.FileWatch() as seen:
        yield
    with openfiles.bookkeeping():
        answers = {f"{question} {path}": _hexed(answer) for (question, path), answer in seen.answers.items()}
        for full, use in seen.files.items():
            if use.is_read:
                answers[f"file {use.spelled}"] = _digests.digest(full)
        answers |= {f"listing {path}": _hexed(listing) for path, listing in seen.listings.items()}
        answers |= {f"env {variable}": _variable(value) for variable, value in seen.environment.items()}
        _import_rows[name] = [Row(f"import of {name}", *answer) for answer in sorted(answers.items())]


def _files_of(pattern: str) -> set[str]:
    expanded = os.path.expanduser(pattern)
    found = set()
    for path in glob.glob(expanded, recursive=True):
        if os.path.isdir(path):
            for folder, _, names in os.walk(path):
                found |= {os.path.join(folder, name) for name in names}
        else:
            found.add(path)
    return found


def files_named_in(value: object) -> list[str]:
    """Existing files that a string or path names, also inside lists, tuples and the values of dicts.

    Readers written in other languages open them where no audit event tells.
    """
    with openfiles.unwatched():
        return [text for text in _texts(value, 0) if _names_file(text)]


def _texts(value: object, depth: int) -> list[str]:
    if isinstance(value, str):
        return [value] if 0 < len(value) < 1024 and "\n" not in value and "\0" not in value else []
    if isinstance(value, os.PathLike) and modules.origin_of(type(value).__module__) == "standard":
        return [os.fsdecode(os.fspath(value))]
    if depth < 2 and isinstance(value, (list, tuple)) and len(value) <= 1000:
        return [text for item in value for text in _texts(item, depth + 1)]
    if depth < 2 and type(value) is dict and len(value) <= 1000:
        return [text for item in value.values() for text in _texts(item, depth + 1)]
    return []


def _names_file(text: str) -> bool:
    try:
        return os.path.isfile(text)
    except (OSError, ValueError):
        return False


def file_row(path: str) -> Row:
    """A row that holds as long as a file has its present content."""
    with openfiles.unwatched():
        return Row("file", path, _digests.digest(path))


def still_holds(row: Sequence[Any]) -> bool:
    """Whether asking again gives the answer that the row notes."""
    kind, name, digest = row
    with openfiles.unwatched():
        return bool(_now(kind, name) == digest)


def _now(kind: str, name: str) -> str:
    if kind in ("file", "output"):
        return _digests.digest(name)
    if kind == "listing":
        return _hexed(listing_of(name))
    if kind == "env":
        return _variable(_raw_variable(name))
    if kind == "name":
        return _name_digest(name)
    if kind == "module":
        return _module_digest(name)
    if kind == "cwd":
        return _hexed(os.getcwd())
    if kind == "random":
        state = _GENERATORS[name].state() if name in _GENERATORS else None
        return _generator_digest(state) if state is not None and _is_seeded(name) else "unseeded"
    if kind == "readlink":
        try:
            return _hexed(os.readlink(name))
        except OSError:
            return _hexed(None)
    if kind.startswith("access "):
        return _hexed(os.access(name, int(kind.split()[1])))
    return _hexed(answer_to(kind, name))


def _module_digest(name: str) -> str:
    """Digest of a local module as an import would find it: by sources, and by what changed since."""
    traversal = Traversal()
    try:
        traversal.add_import(name)
        traversal.follow()
    except Undigestible:
        return "none"
    return traversal.combined().hex()[:32]


def _name_digest(name: str) -> str:
    namespace = vars(sys.modules["__main__"])
    if name not in namespace:
        return "absent"
    try:
        return digest_of(namespace[name], namespace).hex()[:32]
    except Undigestible:
        return "none"


def described(row: Sequence[Any]) -> str:
    """What does not hold any more, for a line of explanation."""
    kind, name, _ = row
    texts = {
        "file": f"the file {name} changed",
        "output": f"{name}, which it wrote, is gone or changed",
        "listing": f"the folder {name} holds other files",
        "env": f"the environment variable {name} changed",
        "cwd": "the present folder is another one",
        "module": f"the module {name} changed",
        "name": f"`{name}`, which a library looks up, changed",
        "random": f"the {name} generator is in another state",
        "exists": f"whether {name} exists",
    }
    return texts.get(kind, f"{name} ({kind}) is not as it was")


def _hexed(answer: object) -> str:
    return blake3(json.dumps(answer).encode("utf-8", "surrogatepass")).hexdigest(16)


def _hexed_value(value: object) -> str:
    return digest_of(value).hex()[:32]


def _raw_variable(name: str) -> str | None:
    return os.environ.get(name)


def _variable(value: str | None) -> str:
    if value is None:
        return "unset"
    return blake3(value.encode("utf-8", "surrogateescape"), key=_secret).hexdigest(16)


# ---- settings of libraries


def _setting_rows(reached: Collection[str]) -> list[Row]:
    rows = []
    for setting in SETTINGS:
        if setting.library not in sys.modules or not setting.concerns(reached):
            continue
        try:
            special = setting.special()
        except Exception as error:
            raise Unrepeatable(f"the {setting.name} cannot be read ({error})") from error
        if special:
            rows.append(Row("setting", setting.name, _settings_digest(special)))
    return rows


def _settings_digest(special: object) -> str:
    try:
        return _hexed_value(special)
    except Undigestible:
        return _hexed(repr(special))


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


def _different(facts: Callable[[], Mapping[str, object]]) -> dict[str, object]:
    """What differs from the defaults of a setting that lives in a context variable."""
    now = facts()
    default = contextvars.Context().run(facts)
    return {name: value for name, value in now.items() if value != default.get(name)}


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


def _pandas_special() -> dict[str, object]:
    config = sys.modules.get("pandas._config.config")
    if config is None:
        return {}
    defaults = {name: option.defval for name, option in config._registered_options.items()}
    return {
        name: value
        for name, value in _pandas_options().items()
        if name in defaults and not _equal(value, defaults[name])
    }


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
    parameters = dict.copy(sys.modules["matplotlib"].rcParams)
    return {name: value for name, value in parameters.items() if name not in _OWN_RC}


def _rc_special() -> dict[str, object]:
    loaded = sys.modules["matplotlib"].rcParamsOrig
    return {name: value for name, value in _rc().items() if not _equal(value, dict.get(loaded, name))}


def _restore_rc(parameters: Mapping[str, object]) -> None:
    dict.update(sys.modules["matplotlib"].rcParams, parameters)


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


def _restore_locale(facts: Mapping[str, str]) -> None:
    import locale

    for part, name in facts.items():
        locale.setlocale(getattr(locale, part), name)


_user_filters: list[tuple[Any, ...]] = []


def _filter_facts() -> list[str]:
    """The warning filters that the user set, in force now; those of libraries come and go with imports."""
    return [_filter_text(one) for one in warnings.filters if any(one is own for own in _user_filters)]


def _filter_text(one: Any) -> str:
    action, message, category, module, line = one
    patterns = [
        part.pattern if part is not None and not isinstance(part, str) else part for part in (message, module)
    ]
    return repr((action, patterns, f"{category.__module__}.{category.__qualname__}", line))


def _restore_filters(filters: Any) -> None:
    warnings.filters[:] = filters  # type: ignore[index]
    _user_filters.extend(one for one in filters if not any(one is own for own in _user_filters))
    warnings._filters_mutated()  # type: ignore[attr-defined]


SETTINGS = (
    Setting(
        "decimal context", "decimal", lambda: _different(_decimal_facts), _decimal_copy, _restore_decimal
    ),
    Setting(
        "time zone", "time", lambda: _zone() if "TZ" in os.environ else None, _zone, lambda _: time.tzset()
    ),
    Setting("logging", "logging", _root_logger_special, lambda: None, lambda _: None),
    Setting("locale", "locale", _locale_special, _locale_facts, _restore_locale),
    Setting("warning filters", "warnings", _filter_facts, lambda: list(warnings.filters), _restore_filters),
    Setting(
        "NumPy print options", "numpy", lambda: _different(_numpy_print), _numpy_print, _restore_numpy_print
    ),
    Setting(
        "NumPy error handling",
        "numpy",
        lambda: _different(_numpy_errors),
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


# ---- random generators


@dataclass(frozen=True)
class GlobalGenerator:
    """A library's global random generator."""

    library: str
    read: Callable[[], object]
    write: Callable[[Any], None]
    seeders: tuple[str, ...]  # functions of the library that fix its state

    def state(self) -> object | None:
        """Its state; None if the library is not loaded."""
        return self.read() if self.library in sys.modules else None

    def digest(self) -> str:
        """Digest of its state, empty if the library is not loaded."""
        state = self.state()
        return "" if state is None else _generator_digest(state)


def _generator_digest(state: object) -> str:
    """Digest of a generator's state, which is asked for at every cell."""
    return blake3(dumps(_primitive(state), 2)).hexdigest(16)


def _primitive(state: Any) -> object:
    """A state as primitives: generators keep numbers, in tuples, dicts, arrays and tensors."""
    if isinstance(state, dict):
        return [(name, _primitive(part)) for name, part in sorted(state.items())]
    if isinstance(state, tuple):
        return state if len(state) > 100 else [_primitive(part) for part in state]
    if isinstance(state, bool | int | float | str | bytes | NoneType):
        return state
    array = state if hasattr(state, "tobytes") else state.numpy()
    return (array.dtype.str, array.tobytes())


def _read_numpy() -> object:
    return sys.modules["numpy.random"].get_state(legacy=False)


def _write_numpy(state: Any) -> None:
    sys.modules["numpy.random"].mtrand._rand.set_state(state)


def _read_torch() -> object:
    return sys.modules["torch"].random.get_rng_state().numpy().tobytes()


def _write_torch(state: bytes) -> None:
    torch = sys.modules["torch"]
    torch.random.default_generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


_GENERATORS = {
    "random": GlobalGenerator(
        "random",
        lambda: sys.modules["random"]._inst.getstate(),
        lambda state: sys.modules["random"]._inst.setstate(state),
        ("seed", "setstate"),
    ),
    "numpy.random": GlobalGenerator("numpy.random", _read_numpy, _write_numpy, ("seed", "set_state")),
    "torch": GlobalGenerator("torch", _read_torch, _write_torch, ("manual_seed", "seed")),
}
_seeded: set[str] = set()
_patched: dict[str, list[tuple[ModuleType, str, Any, Any]]] = {}
_installed = False


def install(user_cells_ran: bool) -> None:
    """Begin to watch what can only be known from the beginning: seeds, warning filters, imports.

    Parameters
    ----------
    user_cells_ran : bool
        Whether cells ran before, which may have seeded any generator: unknown means seeded.
    """
    global _installed
    modules.observers.while_loading = _noting_import
    modules.watch_imports()
    if _installed:
        return
    _installed = True
    for name, generator in _GENERATORS.items():
        if generator.library in sys.modules:
            _patch_seeders(name, generator)
            if user_cells_ran:
                _seeded.add(name)
    for setter in ("filterwarnings", "simplefilter"):
        _patch(warnings, setter, _noting_filters(getattr(warnings, setter)), "warnings")


def uninstall() -> None:
    """Take the wrappers out again."""
    global _installed
    for patches in _patched.values():
        for module, name, plain, wrapped in patches:
            if getattr(module, name) is wrapped:
                setattr(module, name, plain)
    _patched.clear()
    _installed = False


def note_seeded(name: str) -> None:
    """Note that a generator's state is the user's choice from now on."""
    _seeded.add(name)


def _is_seeded(name: str) -> bool:
    generator = _GENERATORS[name]
    if _installed and generator.library in sys.modules and name not in _patched:
        _patch_seeders(name, generator)  # loaded by a cell, which may have seeded it at once
        _seeded.add(name)
    return name in _seeded


def unwrap(namespace: dict[str, Any]) -> None:
    """Put plain functions in the place of our wrappers that a cell imported by name.

    Whoever holds a plain seed function may seed unseen, so its generator counts as seeded from then on.
    """
    found = openfiles.unwrap(namespace)
    for group, patches in _patched.items():
        if group in _GENERATORS and any(plain in found for _, _, plain, _ in patches):
            _seeded.add(group)


def _patch(module: ModuleType, name: str, wrapped: Any, group: str) -> None:
    wrapped.__dict__[openfiles.PLAIN] = getattr(module, name)
    _patched.setdefault(group, []).append((module, name, getattr(module, name), wrapped))
    setattr(module, name, wrapped)


def _patch_seeders(name: str, generator: GlobalGenerator) -> None:
    if name in _patched:
        return
    library = sys.modules[generator.library]
    _patched[name] = []
    for seeder in generator.seeders:
        plain = getattr(library, seeder, None)
        if plain is not None:
            _patch(library, seeder, _noting_seed(plain, name, generator), name)


def _noting_seed(plain: Callable[..., Any], name: str, generator: GlobalGenerator) -> Callable[..., Any]:
    @functools.wraps(plain)
    def seed(*arguments: Any, **options: Any) -> Any:
        before = generator.state()
        result = plain(*arguments, **options)
        _seeded.add(name)
        with openfiles.bookkeeping():
            for noted in list(_noted_states):
                noted.setdefault(name, _generator_digest(before))
        return result

    return seed


def _noting_filters(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def set_filter(*arguments: Any, **options: Any) -> Any:
        users = False
        with openfiles.bookkeeping():
            users = openfiles.is_asked_by_user(sys._getframe(1))
        if not users:  # libraries do this thousands of times, and take it back
            return plain(*arguments, **options)
        before = list(warnings.filters)
        result = plain(*arguments, **options)
        with openfiles.bookkeeping():
            _user_filters.extend(
                one for one in warnings.filters if not any(one is earlier for earlier in before)
            )
            del _user_filters[:-1000]
        return result

    return set_filter


# What each generator held when the run first set its state; a run that had not drawn before depends on
# nothing.
_noted_states: list[dict[str, str]] = []


@dataclass
class _RandomStart:
    """The generators when a run began."""

    digests: dict[str, str]
    seeded: frozenset[str]
    first_set: dict[str, str] = field(default_factory=dict)


def _note_generators(seen: Seen) -> None:
    for name in _GENERATORS:
        _is_seeded(name)
    start = _RandomStart(
        {
            name: generator.digest()
            for name, generator in _GENERATORS.items()
            if generator.library in sys.modules
        },
        frozenset(_seeded),
    )
    seen.start = start
    _noted_states.append(start.first_set)
    del _noted_states[:-64]


def _note_bindings(seen: Seen) -> None:
    seen.bindings = dict(vars(sys.modules["__main__"]))


def _note_names(seen: Seen, namespace: Mapping[str, Any], names: Sequence[str]) -> None:
    """Digest the variables that a library looks up by name, but for those that the run itself bound."""
    known = namespace is vars(sys.modules["__main__"])
    for name in names:
        if name in seen.names or (known and seen.bindings.get(name, seen) is not namespace[name]):
            continue
        try:
            seen.names[name] = digest_of(namespace[name], namespace).hex()[:32]
        except Undigestible:
            seen.names[name] = "none"


openfiles.AT_START += [_note_generators, _note_bindings]
openfiles.ON_NAMES.append(_note_names)


def _random_rows(seen: Seen) -> list[Row]:
    """Rows for the generators that a run drew from after somebody had seeded them."""
    start = seen.start
    if not isinstance(start, _RandomStart):
        return []
    _noted_states[:] = [noted for noted in _noted_states if noted is not start.first_set]
    rows = []
    for name, before in start.digests.items():
        if name not in start.seeded:
            continue
        first_set = start.first_set.get(name)
        drew = first_set != before if first_set is not None else _GENERATORS[name].digest() != before
        if drew:
            rows.append(Row("random", name, before))
    return rows


# ---- the process before and after


@dataclass
class ProcessState:
    """What a run may change outside the namespace, as it was."""

    environment: dict[str, str]
    folder: str
    path: list[str]
    settings: dict[str, tuple[object, str]]  # captured value, digest
    generators: dict[str, str]
    modules: dict[str, dict[str, object]]  # attributes of local modules
    threads: frozenset[int]
    children: frozenset[int]
    tasks: set[int]  # pending in the event loop
    fixtures: dict[str, object]  # what is told to have changed, and cannot be brought back


def process_state() -> ProcessState:
    """The process as it is, to be compared after a run."""
    with openfiles.unwatched():
        return ProcessState(
            dict(os.environ),
            os.getcwd(),
            list(sys.path),
            {
                setting.name: (setting.capture(), _setting_digest(setting))
                for setting in SETTINGS
                if setting.library in sys.modules
            },
            {name: generator.digest() for name, generator in _GENERATORS.items()},
            {name: dict(vars(module)) for name, module in _local_modules()},
            frozenset(thread.ident or 0 for thread in threading.enumerate()),
            frozenset(_children()),
            _pending_tasks(),
            _fixtures(),
        )


def _fixtures() -> dict[str, object]:
    """What user code sets once for the whole process and no hit brings back; compared by equality."""
    found: dict[str, object] = {
        "the recursion limit": sys.getrecursionlimit(),
        "sys.excepthook": sys.excepthook,
        "the garbage collector": (gc.isenabled(), gc.get_threshold()),
        "the builtins": {name: id(value) for name, value in vars(builtins).items() if name != "_"},
        "the signal handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
    }
    logging = sys.modules.get("logging")
    if logging is not None:
        found["the root logger"] = (logging.root.level, list(logging.root.handlers), logging.root.disabled)
    socket = sys.modules.get("socket")
    if socket is not None:
        found["the socket timeout"] = socket.getdefaulttimeout()
    return found


_looked_at: set[str] = set()
_loaded: list[str] = []  # as it was when it was looked at last
_local_names: set[str] = set()


def _local_modules() -> list[tuple[str, ModuleType]]:
    """The local modules that are loaded; each name in `sys.modules` is looked at once."""
    global _loaded
    loaded = list(sys.modules)
    new = set(loaded) - _looked_at if loaded != _loaded else set()
    _loaded = loaded
    for name in new:
        _looked_at.add(name)
        module = sys.modules.get(name)
        is_module = type(module) is ModuleType and name not in modules.NOTEBOOK_MODULES
        if is_module and modules.origin_of(name) == "local":
            _local_names.add(name)
    return [(name, sys.modules[name]) for name in sorted(_local_names) if name in sys.modules]


def _setting_digest(setting: Setting) -> str:
    special = setting.special()
    return _settings_digest(special) if special else ""


def process_changes(before: ProcessState) -> dict[str, Any]:
    """What a run changed outside the namespace, for `restore_process`; picklable if its values are.

    Raises
    ------
    Unrepeatable
        If the run left threads or child processes of its own.
    """
    with openfiles.unwatched():
        _refuse_leftovers(before)
        changes: dict[str, Any] = {}
        environment = dict(os.environ)
        changed = {
            name: value for name, value in environment.items() if before.environment.get(name) != value
        }
        gone = [name for name in before.environment if name not in environment]
        changed = {name: value for name, value in changed.items() if not name.startswith("JPY_")}
        changed = _without_library_variables(changed)
        if changed or gone:
            changes["environment"] = (changed, gone)
        if os.getcwd() != before.folder:
            changes["folder"] = os.path.relpath(os.getcwd(), before.folder)
        if sys.path != before.path:
            changes["path"] = _path_change(before.path, sys.path)
        settings = {}
        for setting in SETTINGS:
            if setting.library not in sys.modules:
                continue
            now = _setting_digest(setting)
            if now != before.settings.get(setting.name, (None, ""))[1]:
                settings[setting.name] = setting.capture()
        if settings:
            changes["settings"] = settings
        generators = {}
        for name, generator in _GENERATORS.items():
            state = generator.state()
            if (
                state is not None
                and _is_seeded(name)
                and _generator_digest(state) != before.generators.get(name)
            ):
                generators[name] = state
        if generators:
            changes["generators"] = generators
        attributes = _changed_attributes(before)
        if attributes:
            changes["modules"] = attributes
        return changes


def _path_change(before: Sequence[str], now: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """What was put before and behind the old entries of `sys.path`, and what was taken out."""
    kept = [entry for entry in now if entry in before]
    first = now.index(kept[0]) if kept else len(now)
    front = [entry for entry in now[:first] if entry not in before]
    behind = [entry for entry in now[first:] if entry not in before]
    return front, behind, [entry for entry in before if entry not in now]


def _change_path(front: Sequence[str], behind: Sequence[str], dropped: Sequence[str]) -> None:
    rest = [
        entry for entry in sys.path if entry not in dropped and entry not in front and entry not in behind
    ]
    sys.path[:] = [*front, *rest, *behind]


_LIBRARY_VARIABLES = frozenset({"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "MPLBACKEND"})


def _without_library_variables(changed: dict[str, str]) -> dict[str, str]:
    """Leave out what libraries set when they are imported, as a hit may not need to import them."""
    return {name: value for name, value in changed.items() if name not in _LIBRARY_VARIABLES}


def _changed_attributes(before: ProcessState) -> dict[str, tuple[dict[str, object], list[str]]]:
    found = {}
    for name, module in _local_modules():
        earlier = before.modules.get(name)
        if earlier is None:
            continue  # imported by the run
        now = vars(module)
        changed = {
            attribute: value
            for attribute, value in now.items()
            if not _is_as_before(earlier, attribute, value) and not isinstance(value, ModuleType)
        }
        gone = [attribute for attribute in earlier if attribute not in now]
        if changed or gone:
            if now.get("__spec__") is not earlier.get("__spec__"):
                raise Unrepeatable(f"it reloads the module {name}")
            found[name] = (changed, gone)
    return found


def _is_as_before(earlier: Mapping[str, object], attribute: str, value: object) -> bool:
    return attribute in earlier and earlier[attribute] is value


def _pending_tasks() -> set[int]:
    """Tasks of the running event loop that have not ended, by identity."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return set()
    try:
        return {id(task) for task in asyncio.all_tasks()}
    except RuntimeError:  # no loop runs here
        return set()


def _refuse_leftovers(before: ProcessState) -> None:
    if _pending_tasks() - before.tasks:
        raise Unrepeatable("it leaves an asyncio task running")
    now = _fixtures()
    for name, value in before.fixtures.items():
        if now.get(name) != value:
            raise Unrepeatable(f"it changes {name}, which a hit could not bring back")
    for thread in threading.enumerate():
        if thread.ident not in before.threads and thread.is_alive() and _runs_user_code(thread):
            raise Unrepeatable(f"it leaves a thread running ({thread.name})")
    for child in _children() - before.children:
        if not _is_engine_process(child):
            raise Unrepeatable(f"it leaves a process running ({_command_of(child) or child})")


def _runs_user_code(thread: threading.Thread) -> bool:
    target = getattr(thread, "_target", None)
    while isinstance(target, functools.partial):
        target = target.func
    target = getattr(target, "__func__", target)
    if isinstance(target, FunctionType):
        return modules.is_user_code(target.__globals__.get("__name__"))
    return modules.is_user_code(type(thread).__module__)


def _children() -> set[int]:
    found: set[int] = set()
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                found |= {int(word) for word in file.read().split()}
    except (OSError, ValueError):
        return found
    return {child for child in found if not _is_zombie(child)}


def _is_zombie(child: int) -> bool:
    try:
        with open(f"/proc/{child}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[:1] == ["Z"]
    except OSError:
        return True


_ENGINE_WORDS = ("ipyparcache", "loky", "joblib", "resource_tracker", "forkserver", "multiprocessing.spawn")


def _command_of(child: int) -> str:
    try:
        with open(f"/proc/{child}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _is_engine_process(child: int) -> bool:
    """Whether a child is one of a pool's, idle or about to end."""
    started = sys.modules.get("multiprocessing.process")
    for process in getattr(started, "_children", ()):
        if process.pid == child:
            target = getattr(process, "_target", None)
            return not (
                isinstance(target, FunctionType) and modules.is_user_code(target.__globals__.get("__name__"))
            )
    command = _command_of(child)
    return any(word in command for word in _ENGINE_WORDS)


def restore_process(changes: Mapping[str, Any]) -> None:
    """Bring the process to where a run had brought it."""
    with openfiles.unwatched():
        changed, gone = changes.get("environment", ({}, []))
        for name in gone:
            os.environ.pop(name, None)
        os.environ.update(changed)
        if "folder" in changes:
            os.chdir(changes["folder"])
        if "path" in changes:
            _change_path(*changes["path"])
        by_name = {setting.name: setting for setting in SETTINGS}
        for name, value in changes.get("settings", {}).items():
            if by_name[name].library in sys.modules:
                by_name[name].restore(value)
        for name, state in changes.get("generators", {}).items():
            generator = _GENERATORS[name]
            if generator.library in sys.modules:
                generator.write(state)
                _seeded.add(name)
        for name, (values, dropped) in changes.get("modules", {}).items():
            module = sys.modules.get(name)
            if module is not None:
                vars(module).update(values)
                for attribute in dropped:
                    vars(module).pop(attribute, None)


def can_restore(changes: Mapping[str, Any]) -> bool:
    """Whether what `restore_process` needs is there, the folder and the libraries, which are imported."""
    if "folder" in changes and not os.path.isdir(changes["folder"]):
        return False
    for name in changes.get("generators", {}):
        try:
            importlib.import_module(_GENERATORS[name].library)
        except ImportError:
            return False
    return True
