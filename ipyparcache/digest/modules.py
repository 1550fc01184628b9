"""Where code comes from: the notebook, a local module, a distribution; and in which version.

A distribution is named by its version and never read. A local module is named by its source *as loaded*: the
text is noted when the module is executed (`watch_imports`), so that a file edited since does not lend its
name to old code.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib import machinery
from types import ModuleType
from typing import Literal, NamedTuple

from blake3 import blake3

Origin = Literal["notebook", "local", "library", "standard"]

NOTEBOOK_MODULES = frozenset({"__main__", "__mp_main__"})
_SITE_FOLDERS = frozenset({"site-packages", "dist-packages"})


class Source(NamedTuple):
    """What a local module was made from: `text` is None for a compiled one, `digest` covers its bytes."""

    digest: bytes
    text: str | None
    package: str  # what its relative imports start from


class _Loaded(NamedTuple):
    module: ModuleType
    source: Source | None  # None: the file changed under the import, so nobody knows what was loaded
    attributes: dict[str, object]  # as the import left them
    digests: dict[str, bytes | None]  # of those that can change without being replaced


_loaded: dict[str, _Loaded] = {}


class Observers:
    """What else looks on when a local module is executed; filled in by files that know more than this one."""

    def __init__(self) -> None:
        self.digests_of: Callable[[ModuleType], dict[str, bytes | None]] = lambda module: {}
        self.while_loading: Callable[[str], AbstractContextManager[object]] = lambda name: nullcontext()


observers = Observers()

_origins: dict[str, tuple[int, Origin]] = {}
_versions: dict[str, tuple[object, str]] = {}


def origin_of(name: str) -> Origin:
    """Whose code the module `name` is; a module that is not loaded is looked for without importing it."""
    if name in NOTEBOOK_MODULES:
        return "notebook"
    module = sys.modules.get(name)
    known = _origins.get(name)
    if known is not None and known[0] == id(module):
        return known[1]
    origin = _find_origin(name, module)
    if module is not None:
        _origins[name] = (id(module), origin)
    return origin


# Modules without a file that no user makes: where named tuples are made, and what Cython's modules share.
_MADE_BY_LIBRARIES = ("namedtuple_", "_cython_", "cython_runtime")


def is_user_code(name: object) -> bool:
    """Whether the module is the notebook or a local one, whose code counts by content."""
    return isinstance(name, str) and origin_of(name) in ("notebook", "local")


def _find_origin(name: str, module: ModuleType | None) -> Origin:
    top = name.partition(".")[0]
    if top in ("ipyparcache", "builtins"):
        return "library" if top == "ipyparcache" else "standard"
    place = _place_of(module) if module is not None else _file_of(name)
    if place is None:
        if top in sys.stdlib_module_names or top.startswith(_MADE_BY_LIBRARIES):
            return "standard"
        # A module made by hand (types.ModuleType) has no file: what it holds was put there by user code,
        # unless it hangs below a distribution's package.
        # A name below a package that is no module (a function that is imported by name) is its package's,
        # whether that is loaded or not.
        above = name.rpartition(".")[0]
        return origin_of(above) if above and (module is None or above in sys.modules) else "local"
    return origin_of_file(place)


@lru_cache(maxsize=1)
def _standard_folders() -> tuple[str, ...]:
    import sysconfig  # only who asks for a file needs it

    found = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib")]
    return tuple({os.path.realpath(path) + os.sep for path in found if path})


def origin_of_file(path: str) -> Origin:
    """Whose code a file is, from the folder that it lies in."""
    if path in ("built-in", "frozen"):
        return "standard"
    if not _SITE_FOLDERS.isdisjoint(path.split(os.sep)):
        return "library"
    if os.path.realpath(path).startswith(_standard_folders()):
        return "standard"
    return "local"


def _place_of(module: ModuleType) -> str | None:
    namespace = module.__dict__
    file = namespace.get("__file__")
    if isinstance(file, str):
        return file
    spec = namespace.get("__spec__")
    origin = getattr(spec, "origin", None)
    if isinstance(origin, str):
        return origin
    folders = getattr(spec, "submodule_search_locations", None)
    return next(iter(folders), None) if folders else None


def _file_of(name: str) -> str | None:
    spec = _find_spec(name)
    if spec is None:
        return None
    if spec.origin is not None:
        return spec.origin
    return next(iter(spec.submodule_search_locations or ()), None)


def _find_spec(name: str) -> machinery.ModuleSpec | None:
    """Spec of a module by the path alone: `importlib.util.find_spec` would import its parents."""
    if name in sys.builtin_module_names:
        return machinery.BuiltinImporter.find_spec(name)
    folders: list[str] | None = None
    spec = None
    full = ""
    for part in name.split("."):
        full = f"{full}.{part}" if full else part
        try:
            spec = machinery.PathFinder.find_spec(full, folders)
        except (ImportError, ValueError, OSError):
            return None
        if spec is None:
            return None
        folders = list(spec.submodule_search_locations or ())
    return spec


# ---- local modules: their source as loaded


#: What is done as soon as a library's module has been executed, before the code that imports it goes on.
AFTER_LOADING: dict[str, Callable[[], None]] = {}


def watch_imports() -> None:
    """Note from now on the source of each local module at the moment when it is executed."""
    if getattr(machinery.SourceFileLoader.exec_module, "ipyparcache_watches", False):
        return
    _standard_folders()  # what that imports is not to ask for them
    plain = machinery.SourceFileLoader.exec_module

    def exec_module(self: machinery.SourceFileLoader, module: ModuleType) -> None:
        path = self.path
        if origin_of_file(path) != "local" or module.__name__.partition(".")[0] == "ipyparcache":
            plain(self, module)
            if module.__name__ in AFTER_LOADING:
                AFTER_LOADING[module.__name__]()
            return
        before = _source_in(path, module)
        try:
            with observers.while_loading(module.__name__):
                plain(self, module)
        finally:
            try:
                after = _source_in(path, module)
                same = before is not None and after is not None and before.digest == after.digest
                _note_loaded(module, before if same else None)
            except Exception:  # the user's import goes on; `source_of` will look at the module again
                _loaded.pop(module.__name__, None)

    # so that warnings which count frames, and tracebacks, skip this frame as they skip importlib's own
    exec_module.__code__ = exec_module.__code__.replace(co_filename=plain.__code__.co_filename)
    exec_module.ipyparcache_watches = True  # type: ignore[attr-defined]
    machinery.SourceFileLoader.exec_module = exec_module  # type: ignore[method-assign,assignment]
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and name not in NOTEBOOK_MODULES and origin_of(name) == "local":
            source_of(name)


def _note_loaded(module: ModuleType, source: Source | None) -> None:
    noted = _loaded[module.__name__] = _Loaded(module, source, dict(vars(module)), {})
    noted.digests.update(observers.digests_of(module))  # which may ask for this very module's source


def changed_attributes(name: str) -> list[str]:
    """Attributes of a loaded local module that are not as its import left them.

    Submodules are no attributes; a module that was loaded before `watch_imports` counts as it was then.
    """
    module = sys.modules.get(name)
    known = _loaded.get(name)
    if module is None or known is None or known.module is not module:
        return []
    now = dict(vars(module))
    digests = observers.digests_of(module)
    found = []
    for attribute in sorted(now.keys() | known.attributes.keys()):
        if attribute.startswith("__") or isinstance(now.get(attribute), ModuleType):
            continue
        replaced = now.get(attribute, known) is not known.attributes.get(attribute, known)
        if replaced or digests.get(attribute) != known.digests.get(attribute):
            found.append(attribute)
    return found


def closure_of(name: str) -> list[str]:
    """The local modules that importing a module executes, those it imports in turn included."""
    found: dict[str, None] = {}
    waiting = list(parents_of(name))
    while waiting:
        part = waiting.pop()
        if part in found or origin_of(part) != "local":
            continue
        found[part] = None
        source = source_of(part)
        if source is not None:
            waiting += imports_of(source)
    return list(found)


def source_of(name: str) -> Source | None:
    """Source of a local module: as loaded, or of its file if it is not loaded; None where it cannot be told.

    A module that was loaded before `watch_imports` counts by its file as first seen, if that file is older
    than the compiled form that the import left, or than this process.
    """
    module = sys.modules.get(name)
    known = _loaded.get(name)
    if module is None:
        path = _file_of(name)
        return _source_at(path, name.rpartition(".")[0] if not _is_package(path) else name) if path else None
    if known is not None and known.module is module:
        return known.source
    path = _place_of(module)
    source = _source_in(path, module) if path is not None and _was_loaded_from(path, module) else None
    _note_loaded(module, source)
    return source


def _is_package(path: str | None) -> bool:
    return path is not None and os.path.basename(path).startswith("__init__.")


def _source_in(path: str, module: ModuleType) -> Source | None:
    package = module.__dict__.get("__package__")
    return _source_at(path, package if isinstance(package, str) else "")


def _source_at(path: str, package: str) -> Source | None:
    if os.path.isdir(path):  # a namespace package holds no code
        return Source(blake3(b"namespace").digest(), "", package)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    text = data.decode("utf-8", "surrogateescape") if path.endswith((".py", ".pyw")) else None
    return Source(blake3(data).digest(), text, package)


def _was_loaded_from(path: str, module: ModuleType) -> bool:
    try:
        modified = os.stat(path).st_mtime
    except OSError:
        return False
    if modified < _process_start() or os.path.isdir(path):  # a namespace package holds no code
        return True
    compiled = module.__dict__.get("__cached__")
    try:
        with open(compiled, "rb") as file:  # type: ignore[arg-type]
            header = file.read(16)
    except (OSError, TypeError):
        return False
    return int.from_bytes(header[8:12], "little") == int(modified) & 0xFFFFFFFF


@lru_cache(maxsize=1)
def _process_start() -> float:
    """When this process began, by the clock of files and rather too early; 0 where nothing tells.

    The times of `/proc/self` itself tell only when somebody first looked at it.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError, IndexError):
        return 0.0
    return time.time() - age - 0.1


def imports_of(source: Source) -> list[str]:
    """Modules that this source may import, anywhere in it, by full name and in order of appearance."""
    return list(_imports_in(source.text, source.package)) if source.text else []


@lru_cache(maxsize=512)
def _imports_in(text: str, package: str) -> tuple[str, ...]:
    import ast  # only modules that imports are looked for in need it

    try:
        tree = ast.parse(text.encode("utf-8", "surrogateescape"))
    except (SyntaxError, ValueError):
        return ()
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.update(dict.fromkeys(parents_of(alias.name)))
        elif isinstance(node, ast.ImportFrom):
            base = absolute_name(node.module or "", node.level, package)
            if base:
                found.update(dict.fromkeys(parents_of(base)))
            for alias in node.names:
                name = f"{base}.{alias.name}" if base else alias.name
                if alias.name != "*" and is_module(name):
                    found[name] = None
    return tuple(found)


def absolute_name(name: str, level: int, package: str) -> str:
    """Full name of a module imported as `level` dots and `name` from inside `package`."""
    if level == 0:
        return name
    above = package.split(".")[: len(package.split(".")) - (level - 1)]
    return ".".join([*above, name] if name else above)


def parents_of(name: str) -> Iterator[str]:
    """`a`, `a.b`, `a.b.c` of `a.b.c`: importing the last executes all of them."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1):
        yield ".".join(parts[:n])


def is_module(name: str) -> bool:
    """Whether there is a module of this name, loaded or to be found."""
    if name in sys.modules:
        return True
    top = name.partition(".")[0]
    return origin_of(top) == "local" and _find_spec(name) is not None


def can_be_found(name: str) -> bool:
    """Whether an import would find a module of this name on the path; nothing is imported to tell."""
    return _find_spec(name) is not None


# ---- distributions: their version


def version_of(name: str) -> str:
    """Distribution and version that provide the top-level module of `name`, such as `scikit-learn 1.5.0`.

    A loaded module keeps the version under which it was first seen; one that is not loaded is looked up in
    its folder's metadata, again whenever that folder changes.
    """
    top = name.partition(".")[0]
    module = sys.modules.get(top)
    known = _versions.get(top)
    if module is not None:
        if known is None or known[0] is not module:
            known = (module, _find_version(top, _place_of(module)))
            _versions[top] = known
        return known[1]
    return _find_version(top, _file_of(top))


def _find_version(top: str, place: str | None) -> str:
    if place is None:
        return f"{top} ?"
    folder = os.path.dirname(place)
    if _is_package(place):
        folder = os.path.dirname(folder)
    elif os.path.isdir(place):
        folder = os.path.dirname(place)
    try:
        stamp = os.stat(folder).st_mtime_ns
    except OSError:
        return f"{top} ?"
    found = _distribution_in(folder, top, stamp)
    if found is not None:
        return found
    # No metadata: the best name of its content is what the file says of itself.
    try:
        facts = os.stat(place)
    except OSError:
        return f"{top} ?"
    return f"{top} {facts.st_size}-{facts.st_mtime_ns}"


@lru_cache(maxsize=1024)
def _distribution_in(folder: str, top: str, stamp: int) -> str | None:
    """Name and version of the distribution in `folder` that provides `top`; `stamp` is the folder's mtime."""
    entries = [entry for entry in os.listdir(folder) if entry.endswith((".dist-info", ".egg-info"))]
    own = _normalised(top)
    entries.sort(key=lambda entry: (_normalised(entry.split("-")[0]) != own, entry))
    for entry in entries:
        place = os.path.join(folder, entry)
        if (_normalised(entry.split("-")[0]) == own or _provides(place, top)) and (named := _metadata(place)):
            return named
    return None


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _provides(place: str, top: str) -> bool:
    listed = _read(os.path.join(place, "top_level.txt"))
    if listed is not None:
        return top in listed.split()
    record = _read(os.path.join(place, "RECORD")) or ""
    return re.search(rf"^{re.escape(top)}(/|\.py,|\.[\w-]+\.so,)", record, re.MULTILINE) is not None


def _metadata(place: str) -> str | None:
    text = _read(os.path.join(place, "METADATA")) or _read(os.path.join(place, "PKG-INFO"))
    if text is None:
        return None
    head = text.partition("\n\n")[0]
    name = re.search(r"^Name: *(.+)$", head, re.MULTILINE)
    version = re.search(r"^Version: *(.+)$", head, re.MULTILINE)
    return f"{name[1].strip()} {version[1].strip()}" if name and version else None


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


_looked_at: set[str] = set()
_all_loaded: list[str] = []  # as it was when it was looked at last
_local_names: set[str] = set()


def loaded_local() -> list[tuple[str, ModuleType]]:
    """The local modules that are loaded; each name in `sys.modules` is looked at once."""
    global _all_loaded
    loaded = list(sys.modules)
    new = set(loaded) - _looked_at if loaded != _all_loaded else set()
    _all_loaded = loaded
    for name in new:
        _looked_at.add(name)
        module = sys.modules.get(name)
        is_module = type(module) is ModuleType and name not in NOTEBOOK_MODULES
        if is_module and origin_of(name) == "local":
            _local_names.add(name)
    return [(name, sys.modules[name]) for name in sorted(_local_names) if name in sys.modules]
