"""Kinds of instances: the notebook's by what they hold, those of distributions by their reduce value."""

from __future__ import annotations

import copyreg
import importlib
import io
import pickle
import sys
import warnings
from types import FunctionType, ModuleType
from typing import Any

from ipyparcache.digest import compiled, figures, modules, spent
from ipyparcache.digest.walk import (
    FAMILIES,
    KINDS,
    NAMED,
    PROVIDERS,
    Kind,
    Walk,
    dict_of,
    is_by_reference,
    module_of,
    same,
    slots_of,
    type_name,
)
from ipyparcache.errors import Unrestorable


class InstanceKind(Kind):
    """Instances of classes of the notebook and of local modules: type, builtin base, `__dict__`, slots.

    Pickle hooks are not asked: what `__getstate__` leaves out may well be read by the cell.
    """

    def __init__(self, cls: type, base: Kind | None):
        self.base = base
        self.slots = slots_of(cls)
        self.has_dict = cls.__dictoffset__ != 0
        self.mutable = self.has_dict or bool(self.slots) or base is None or base.mutable
        self.is_told_apart = not self.mutable

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"instance")
        walk.definition(type(obj))
        own = self._own(obj)
        names = list(own)
        walk.sequence(b"fields", names)
        values = list(own.values())
        walk.push(values)
        if self.base is not None:
            self.base.write(walk, obj)

    def _entries(self, obj: Any) -> dict[str, object]:
        if not self.has_dict:
            return {}
        own = dict_of(obj)
        covered = self.base.covers if self.base is not None else ()
        return {name: value for name, value in own.items() if name not in covered} if covered else dict(own)

    def _own(self, obj: Any) -> dict[str, object]:
        own = self._entries(obj)
        for name, slot in self.slots:
            try:
                own[name] = slot.__get__(obj)
            except AttributeError:  # never assigned
                continue
        return own

    def attributes(self, obj: Any) -> list[tuple[str, object]]:
        """Names and values of what the instance holds."""
        return list(self._own(obj).items())

    def state(self, obj: Any) -> object:
        own = self._entries(obj)
        slots = {}
        for name, slot in self.slots:
            try:
                slots[name] = slot.__get__(obj)
            except AttributeError:
                continue
        base = None if self.base is None else self.base.state(obj)
        return {"class": type(obj), "dict": own, "slots": slots, "base": base}

    def mark(self, walk: Walk, obj: Any) -> object:
        own = self._own(obj)
        base = None if self.base is None or not self.base.mutable else self.base.mark(walk, obj)
        return own, base, type(obj)

    def is_as(self, walk: Walk, obj: Any, mark: Any) -> bool:
        if type(obj) is not mark[2] or not same(self._own(obj), mark[0]):
            return False
        return self.base is None or not self.base.mutable or self.base.is_as(walk, obj, mark[1])

    def put(self, obj: Any, state: Any) -> None:
        if type(obj) is not state["class"]:
            object.__setattr__(obj, "__class__", state["class"])
        if self.base is not None:
            self.base.put(obj, state["base"])
        if self.has_dict:
            own = dict_of(obj)
            for name in self._entries(obj).keys() - state["dict"].keys():
                del own[name]
            for name in state["dict"]:  # the order counts, too
                own.pop(name, None)
            own.update(state["dict"])
        for name, slot in self.slots:
            if name in state["slots"]:
                slot.__set__(obj, state["slots"][name])
            else:
                try:
                    slot.__delete__(obj)
                except AttributeError:
                    continue


class LibraryInstanceKind(InstanceKind):
    """Instances of distributions' classes that pickle the usual way: what `__getstate__` keeps."""

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"object of")
        write_reduced(walk, obj)


class ReducedKind(Kind):
    """Objects of distributions by their own reduce value."""

    def __init__(self, mutable: bool):
        self.mutable = mutable
        self.atomic = self.is_told_apart = not mutable

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"reduced")
        write_reduced(walk, obj)

    def mark(self, walk: Walk, obj: Any) -> object:
        return walk.apart().run(obj)


class ForeignKind(Kind):
    """What an instance inherits from a class written in C that has no kind: that class's own reduce value."""

    def __init__(self, base: Any):
        self.foreign = base

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"foreign")
        write_reduced(walk, obj, self.foreign)

    def mark(self, walk: Walk, obj: Any) -> object:
        return self.state(obj)

    def state(self, obj: Any) -> object:
        return pickle.dumps(self.foreign.__reduce_ex__(obj, 4)[1:], 5)

    def put(self, obj: Any, state: Any) -> None:
        if self.state(obj) != state:
            raise Unrestorable(type_name(obj), f"it inherits what changed from {self.foreign.__qualname__}")


class RefusedKind(Kind):
    """Objects that no digest can stand for."""

    mutable = False

    def __init__(self, reason: str):
        self.reason = reason

    def write(self, walk: Walk, obj: Any) -> None:
        raise walk.fail(self.reason, obj)


class HandleKind(RefusedKind):
    """Handles on files and databases: open ones have no digest, closed ones that of what is left in them."""

    def write(self, walk: Walk, obj: Any) -> None:
        facts = spent.facts_of(obj)
        if facts is None:
            raise walk.fail(self.reason, obj)
        walk.token(b"closed handle", repr(facts))


class LoggerKind(Kind):
    """Loggers: what decides which records pass and how they look, up to the root."""

    def write(self, walk: Walk, obj: Any) -> None:
        walk.traversal.note_module("logging")
        walk.token(b"logger", repr(logger_facts(obj)))

    def mark(self, walk: Walk, obj: Any) -> object:
        return logger_facts(obj)

    def is_as(self, walk: Walk, obj: Any, mark: object) -> bool:
        return logger_facts(obj) == mark


def logger_facts(logger: Any) -> list[object]:
    """Name, level and handlers of a logger and of those above it."""
    facts: list[object] = [logger.manager.disable]
    while logger is not None:
        handlers = [
            (
                type(handler).__qualname__,
                handler.level,
                getattr(handler.formatter, "_fmt", None),
                getattr(handler.formatter, "datefmt", None),
                getattr(getattr(handler, "stream", None), "name", None),
                len(handler.filters),
            )
            for handler in logger.handlers
        ]
        facts.append(
            (logger.name, logger.level, logger.disabled, logger.propagate, len(logger.filters), handlers)
        )
        logger = logger.parent if logger.propagate else None
    return facts


class BufferKind(Kind):
    """What `io.StringIO` and `io.BytesIO` hold: all that was written, and the place in it."""

    def __init__(self, cls: Any):
        self.cls = cls

    def write(self, walk: Walk, obj: Any) -> None:
        state = self.state(obj)
        walk.token(b"closed buffer" if state is None else b"buffer", self.cls.__name__)
        if state is not None:
            walk.push(list(state))

    def state(self, obj: Any) -> tuple[object, ...] | None:
        return None if obj.closed else self.cls.__getstate__(obj)[:-1]  # the last is its `__dict__`

    def put(self, obj: Any, state: Any) -> None:
        if state is None:
            self.cls.close(obj)
        else:
            self.cls.__setstate__(obj, (*state, None))


class FigurePartKind(ReducedKind):
    """Traces and layouts of plotly: those that belong to a figure change it, which no copy of them does."""

    def write(self, walk: Walk, obj: Any) -> None:
        if obj._parent is not None:
            raise walk.fail("it is a part of a figure, which it changes when it is changed", obj)
        super().write(walk, obj)


class CompiledKind(Kind):
    """Functions that numba compiles."""

    def write(self, walk: Walk, obj: Any) -> None:
        home = compiled.home_of(obj)
        if home is not None:
            walk.token(b"compiled of", *home)
            walk.traversal.note_module(home[0])
            return
        untold = compiled.compiled_in(obj)
        if untold is not None:
            raise walk.fail(untold, obj)
        plain, how = compiled.made_from(obj)
        walk.token(b"compiled", how)
        walk.push([plain])

    def mark(self, walk: Walk, obj: Any) -> object:
        return compiled.made_from(obj)

    def is_as(self, walk: Walk, obj: Any, mark: Any) -> bool:
        plain, how = compiled.made_from(obj)
        return plain is mark[0] and how == mark[1]


for _name in ("core.dispatcher.Dispatcher", "np.ufunc.dufunc.DUFunc", "np.ufunc.gufunc.GUFunc"):
    NAMED[f"numba.{_name}"] = lambda cls: CompiledKind()
NAMED["plotly.basedatatypes.BasePlotlyType"] = lambda cls: FigurePartKind(mutable=True)
NAMED["_io.StringIO"] = lambda cls: InstanceKind(cls, BufferKind(io.StringIO))
NAMED["_io.BytesIO"] = lambda cls: InstanceKind(cls, BufferKind(io.BytesIO))
NAMED["logging.Logger"] = lambda cls: LoggerKind()
NAMED["ipywidgets.widgets.widget.Widget"] = lambda cls: RefusedKind(
    "it is a live widget, connected to the page"
)


def write_reduced(walk: Walk, obj: Any, base: Any = None) -> None:
    """Write what pickle would: how to make the object, then its state; with `base`, as that class does it."""
    cls = type(obj)
    try:
        hook = copyreg.dispatch_table.get(cls)
        value: Any
        if base is not None:
            value = base.__reduce_ex__(obj, 4)
        else:
            value = hook(obj) if hook is not None else _reduced(obj)
    except Exception as error:
        raise walk.fail(f"it has no stable content ({error})", obj) from None
    walk.keep(value)
    walk.definition(cls)
    if isinstance(value, str):
        walk.token(b"global", value)
        return
    make, arguments, state, items, pairs = (*value, None, None, None)[:5]
    parts: list[object] = [make, *arguments]
    walk.token(b"made by", len(arguments))
    for own in state if type(state) is tuple and len(state) == 2 else (state,):
        if type(own) is dict:
            parts += [len(own), *own, *own.values()]
        else:
            parts.append(own)
    for more in (items, pairs):
        listed = list(more) if more is not None else None
        if listed is None:
            parts.append(None)
        else:
            walk.keep(listed)
            parts.append(len(listed))
            parts += listed
    walk.keep(parts)
    walk.push(parts)


def _reduced(obj: Any) -> Any:
    if figures.is_figure(obj):
        return figures.make, figures.shown_by(obj)
    if type(obj).__module__ == "pyarrow.lib":
        value = obj.__reduce_ex__(4)
        if type(value) is tuple:
            value = (value[0], tuple(map(_without_needless_bitmap, value[1])), *value[2:])
        return value
    if type(obj).__module__ != "itertools":
        return obj.__reduce_ex__(4)
    with warnings.catch_warnings():  # from Python 3.12 to 3.13 it says that 3.14 does without
        warnings.simplefilter("ignore", DeprecationWarning)
        return obj.__reduce_ex__(4)


def _without_needless_bitmap(data: Any) -> Any:
    """The parts of an array of pyarrow without the bitmap of its nulls where it has none.

    It is not pickled, so that an array with one, as Parquet files and filters leave them, would not come back
    as it was.
    """
    if type(data) is not tuple or len(data) != 7 or type(data[4]) is not list:
        return data
    kind, length, nulls, offset, buffers, children, dictionary = data
    bitmap = buffers[:1] if nulls else [None] * len(buffers[:1])
    inner = [_without_needless_bitmap(child) for child in children]
    return kind, length, nulls, offset, [*bitmap, *buffers[1:]], inner, dictionary


def find_kind(cls: type) -> Kind:
    """How objects of a class without a kind of its own are digested."""
    for base in cls.__mro__:
        provider = PROVIDERS.get(module_of(base).partition(".")[0])
        if provider is not None and module_of(base) != "builtins":
            _provide(provider)
    if cls in KINDS:
        return KINDS[cls]
    user = not is_by_reference(cls)
    if not user:
        for base in cls.__mro__:
            if base in FAMILIES:
                return FAMILIES[base]
            named = NAMED.get(f"{module_of(base)}.{base.__qualname__}")
            if named is not None:
                return named(cls)
    if issubclass(cls, type):
        return KINDS[type]
    if issubclass(cls, ModuleType):
        return KINDS[ModuleType]
    name = f"{module_of(cls)}.{cls.__qualname__}"
    if name in REFUSED:
        kind = HandleKind if name in spent.KINDS else RefusedKind
        return kind(REFUSED[name])
    if user:
        return _user_kind(cls)
    if issubclass(cls, BaseException):
        return InstanceKind(cls, KINDS[BaseException])
    if name in IMMUTABLE or module_of(cls) in IMMUTABLE_MODULES or _is_immutable_family(cls):
        return ReducedKind(mutable=False)
    if name in INSTANCES:
        return InstanceKind(cls, _base_kind(cls))
    if _has_usual_reduce(cls) and _base_kind(cls) is None and not _hides_state(cls):
        return LibraryInstanceKind(cls, None)
    return ReducedKind(mutable=True)


def _user_kind(cls: type) -> Kind:
    base = _base_kind(cls)
    if base is None and _hides_state(cls):
        base = ForeignKind(next(one for one in cls.__mro__ if not modules.is_user_code(module_of(one))))
    return InstanceKind(cls, base)


def _base_kind(cls: type) -> Kind | None:
    """Kind of the content that instances inherit from a builtin or library base."""
    for base in cls.__mro__[1:]:
        if base is object:
            return None
        if base in KINDS:
            return KINDS[base]
        if base in FAMILIES:
            return FAMILIES[base]
        named = NAMED.get(f"{module_of(base)}.{base.__qualname__}")
        if named is not None:
            return named(base)
    return None


def _provide(name: str) -> None:
    if name not in sys.modules:
        importlib.import_module(name)


def _hides_state(cls: type) -> bool:
    """Whether a class, or one it derives from, keeps data in C that neither `__dict__` nor slots show."""
    for base in cls.__mro__:
        if base is object:
            continue
        if not base.__flags__ & (1 << 9):  # not made by a class statement
            return True
        own = base.__basicsize__ - (base.__base__ or object).__basicsize__
        slots = base.__dict__.get("__slots__", ())
        count = 1 if isinstance(slots, str) else len(tuple(slots))
        if own > 8 * (count + 2) or base.__itemsize__ != (base.__base__ or object).__itemsize__:
            return True
    return False


def _has_usual_reduce(cls: type) -> bool:
    found: Any = cls
    return (
        found.__reduce_ex__ is object.__reduce_ex__
        and found.__reduce__ is object.__reduce__
        and cls not in copyreg.dispatch_table
    )


def _is_immutable_family(cls: type) -> bool:
    return any(f"{module_of(base)}.{base.__qualname__}" in IMMUTABLE_BASES for base in cls.__mro__)


IMMUTABLE = frozenset(
    {
        "decimal.Decimal",
        "fractions.Fraction",
        "uuid.UUID",
        "re.Pattern",
        "types.GenericAlias",
        "types.UnionType",
        "zoneinfo.ZoneInfo",
        "operator.itemgetter",
        "operator.attrgetter",
        "operator.methodcaller",
        "time.struct_time",
        "os.stat_result",
    }
)
IMMUTABLE_MODULES = frozenset({"datetime", "ipaddress", "typing"})
IMMUTABLE_BASES = frozenset({"pathlib.PurePath", "datetime.tzinfo", "datetime.date", "datetime.timedelta"})
INSTANCES = frozenset(
    {
        "collections.Counter",
        "collections.UserDict",
        "collections.UserList",
        "collections.ChainMap",
        "types.SimpleNamespace",
        "sklearn.utils.Bunch",
        "sklearn.utils._bunch.Bunch",  # its pickling leaves its attributes out
    }
)
"""Library classes whose instances are read and restored like those of the notebook."""

_POSITION = "how far it has run cannot be told or restored"
_OPEN = "an open file has a position in something outside"
_LIVE = "it is a live connection to something outside"
REFUSED = {
    "builtins.generator": _POSITION,
    "builtins.coroutine": _POSITION,
    "builtins.async_generator": _POSITION,
    "builtins.frame": "it is a running frame",
    "builtins.traceback": "it refers to running frames",
    "builtins.memoryview": "it is a window on memory that belongs to another object",
    "_thread.lock": "a lock has no content",
    "_thread.RLock": "a lock has no content",
    "_thread._local": "it holds other values in every thread",
    "_io.TextIOWrapper": _OPEN,
    "_io.BufferedReader": _OPEN,
    "_io.BufferedWriter": _OPEN,
    "_io.BufferedRandom": _OPEN,
    "_io.FileIO": _OPEN,
    "gzip.GzipFile": _OPEN,
    "bz2.BZ2File": _OPEN,
    "lzma.LZMAFile": _OPEN,
    "zipfile.ZipFile": _OPEN,
    "h5py._hl.files.File": _OPEN,
    "h5py._hl.group.Group": _OPEN,
    "h5py._hl.dataset.Dataset": _OPEN,
    "_csv.reader": _OPEN,
    "_csv.writer": _OPEN,
    "mmap.mmap": "it is a window on a file",
    "_socket.socket": _LIVE,
    "socket.socket": _LIVE,
    "sqlite3.Connection": _LIVE,
    "sqlite3.Cursor": _LIVE,
    "subprocess.Popen": _LIVE,
    "threading.Thread": "a thread has no content",
    "functools.KeyWrapper": "it does not show the comparison that it wraps",
}


def is_user_definition(value: object) -> bool:
    """Whether a value is code of the notebook or of a local module, or a thin wrapper around such code."""
    if isinstance(value, FunctionType):
        return modules.is_user_code(value.__globals__.get("__name__"))
    if isinstance(value, type):
        return modules.is_user_code(value.__module__)
    if isinstance(value, property):
        return any(map(is_user_definition, (value.fget, value.fset, value.fdel)))
    if isinstance(value, (staticmethod, classmethod)):
        return is_user_definition(value.__func__)
    is_accessor = type(value).__name__ in ("CachedAccessor", "Accessor")
    accessor = getattr(value, "_accessor", None) if is_accessor else None
    return accessor is not None and is_user_definition(accessor)
