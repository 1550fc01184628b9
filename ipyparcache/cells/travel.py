"""How the notebook's objects travel to the workers of a loop and how what the iterations leave comes home.

Functions, classes and local modules go by value into one namespace that stands for `__main__` (and one for
each local
module), as they are now. Pickler and unpickler number the objects that they meet in the same order (the
memo of
protocol 5), so these numbers name an object on both sides: what comes home refers to a live object by its
number and
never brings a copy of it.
"""

from __future__ import annotations

import functools
import importlib
import io
import itertools
import os
import pickle
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ipyparcache.analysis.codes import attributes_of, globals_of, globals_written_by
from ipyparcache.cells import arrivals, dictlike
from ipyparcache.cells.additions import PATCH, code_added
from ipyparcache.cells.arrivals import OF_NAMEDTUPLES, Key, arrival, space
from ipyparcache.cells.shortforms import ATOMS as ATOMS
from ipyparcache.cells.shortforms import short_form
from ipyparcache.cells.tracebacks import traceback_rows
from ipyparcache.digest import compiled, figures, spent

MAIN = "__main__"
SMALL_BUFFER = 4096  # bytes up to which an array lies in the pickle itself
#: Objects that are numbered but are no containers of the user's: they can be referred to, not looked into.
DEFINITIONS = (types.FunctionType, type, types.ModuleType)
_NOT_NUMBERED = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type(None),
    types.CodeType,
    range,
    slice,
    frozenset,
    tuple,
    pickle.PickleBuffer,
)


class NotTravelling(Exception):
    """A name whose value cannot be pickled; the text says which part and why."""

    def __init__(self, name: str, why: str, outdated: bool = False) -> None:
        super().__init__(name, why)
        self.name = name
        self.why = why
        self.outdated = outdated


class Outdated(TypeError):
    """A function of numba's would be compiled anew from other values."""


_RUN_ON_ARRIVAL = frozenset({"__init_subclass__", "__set_name__", "__prepare__"})
_numbers = itertools.count()


def _is_plain_namedtuple(kind: Any) -> bool:
    """Whether a class is just what `namedtuple` makes, for code that is not the notebook's."""
    if kind.__bases__ != (tuple,) or kind.__module__ == MAIN:
        return False
    own = vars(kind)
    is_bare = own.get("__slots__") == () and own.get("_field_defaults") == {}
    return bool(is_bare and own.keys() <= OF_NAMEDTUPLES | set(own["_fields"]))


def bases_of(objects: Iterable[object]) -> dict[int, Any]:
    """Arrays by the id of what holds their memory, where that is another array."""
    numpy = sys.modules.get("numpy")
    found: dict[int, Any] = {}
    if numpy is None:
        return found
    for obj in objects:
        if isinstance(obj, numpy.ndarray) and isinstance(obj.base, numpy.ndarray):
            holder = obj.base
            while isinstance(holder.base, numpy.ndarray):
                holder = holder.base
            found.setdefault(id(holder), obj)
    return found


#: Fields of exceptions that are neither in `args` nor in `__dict__`.
_FIELDS: dict[type[BaseException], tuple[str, ...]] = {
    OSError: ("errno", "strerror", "filename", "filename2"),
    ImportError: ("msg", "name", "path"),
    SyntaxError: ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset"),
    UnicodeError: ("encoding", "object", "start", "end", "reason"),
    StopIteration: ("value",),
    SystemExit: ("code",),
    NameError: ("name",),
    AttributeError: ("name",),
}


# ---- pickling


@functools.cache
def _cloud() -> Any:
    import cloudpickle.cloudpickle as source

    return source


@functools.cache
def _more_reducers() -> dict[type, Callable[[Any], Any]]:
    table = dict(_cloud().Pickler._dispatch_table)
    for kind in (io.TextIOWrapper, types.CellType, types.ModuleType):  # an open file would travel as its text
        table.pop(kind, None)
    return table


def _is_importable(obj: Any, name: str | None, owner: object) -> bool:
    if not isinstance(owner, str) or owner in (MAIN, "__mp_main__"):
        return False
    found: object = sys.modules.get(owner)
    for part in (name or "").split("."):
        found = getattr(found, part, None)
    return found is obj


class Traveller(pickle.Pickler):
    """Pickles what a namespace holds: notebook code by value, everything else as usual.

    Parameters
    ----------
    spaces
        Namespaces that travel by value, by their name on the other side: `__main__` and local modules.
    is_local
        Whether a module of this name is local code, which travels by value too.
    """

    def __init__(
        self,
        file: io.BytesIO,
        spaces: Mapping[str, dict[str, Any]],
        is_local: Callable[[str], bool],
        buffers: list[pickle.PickleBuffer] | None = None,
    ) -> None:
        def keep(buffer: pickle.PickleBuffer) -> bool:
            if buffer.raw().nbytes < SMALL_BUFFER:
                return True
            assert buffers is not None
            buffers.append(buffer)
            return False

        super().__init__(file, 5, buffer_callback=None if buffers is None else keep)
        self.spaces = {id(namespace): name for name, namespace in spaces.items()}
        self.by_name = dict(spaces)
        self.is_local = is_local
        self.wanted: list[tuple[str, str, str]] = []
        self.asked: set[tuple[types.ModuleType, str]] = set()
        self.replaced: dict[int, tuple[Any, ...]] = {}
        self._keep: list[object] = []
        self._stand_ins: dict[str, _Space] = {}

    def reducer_override(self, obj: Any) -> Any:
        """How objects that pickle knows no opcode for are taken apart."""
        kind = type(obj)
        special = self.replaced.get(id(obj))
        if special is not None:
            return special
        form = short_form(kind)
        short = form(obj) if form is not None else None
        if short is not None:
            return short
        if kind is types.FunctionType:
            return self._function(obj)
        if issubclass(kind, type):
            return self._class(obj)
        if kind is types.ModuleType:
            return self._module(obj)
        if kind is types.CellType:
            return arrivals.cell, ()
        if kind is functools._lru_cache_wrapper:
            from ipyparcache.pickling import cached_again

            if _is_importable(obj, obj.__qualname__, obj.__module__) and not self.is_local(obj.__module__):
                return NotImplemented
            return cached_again, (obj.__wrapped__, obj.cache_parameters())
        if kind is functools.cached_property:
            from ipyparcache.pickling import property_again

            return property_again, (obj.func, obj.attrname)
        if isinstance(obj, BaseException):
            return self._exception(obj)
        if kind is re.Match:
            facts = (obj.re, obj.string, obj.pos, obj.endpos, obj.regs)
            return NotImplemented if arrivals.match(*facts) is None else (arrivals.match, facts)
        if isinstance(obj, dict) and (parts := dictlike.reduced(obj)) is not None:
            return parts
        if kind.__name__ == "_TemporaryFileWrapper" and kind.__module__ == "tempfile":
            raise TypeError("cannot pickle a temporary file")  # it would fail where it is unpickled
        if kind.__name__ == "ImagingCore" and "PIL.Image" in sys.modules:
            return arrivals.core_of, (sys.modules["PIL.Image"].Image()._new(obj),)
        handle = spent.facts_of(obj)
        if handle is not None:
            return spent.make, handle
        if figures.is_figure(obj):
            return figures.make, figures.parts_of(obj)
        if compiled.is_compiled(obj) and (untold := compiled.outdated(obj)) is not None:
            raise Outdated(untold)
        if kind.__name__ == "memmap" and getattr(obj, "filename", None) and obj.mode in ("r+", "w+"):
            where = (str(obj.filename), obj.dtype, obj.offset, obj.shape, obj.flags.f_contiguous)
            return arrivals.memory_map, where
        more = _more_reducers().get(kind)
        return NotImplemented if more is None else more(obj)

    def _function(self, obj: types.FunctionType) -> Any:
        name = self.spaces.get(id(obj.__globals__))
        if name is None:
            owner = obj.__module__
            if _is_importable(obj, obj.__qualname__, owner) and not self.is_local(owner):
                return NotImplemented
            if hasattr(obj, "registry") and hasattr(obj, "_clear_cache") and hasattr(obj, "__wrapped__"):
                from ipyparcache.pickling import dispatched_again

                return dispatched_again, (obj.__wrapped__, dict(obj.registry))
            name = self._space_of(obj)
        for name_of_module, attribute in attributes_of(obj.__code__):
            module = obj.__globals__.get(name_of_module)
            if type(module) is types.ModuleType:
                self.asked.add((module, attribute))
        read = sorted(globals_of(obj.__code__))
        around: dict[str, Any] = {}
        if name.startswith("#") or obj.__name__ in _RUN_ON_ARRIVAL:
            # A namespace that is no module's: its function brings along what it reads there. So does a
            # function that
            # runs while classes are being made again, before the names are in place.
            around = {each: obj.__globals__[each] for each in read if each in obj.__globals__}
        if not name.startswith(("=", "#")):
            self.wanted.extend((name, each, obj.__qualname__) for each in read)
        contents = []
        for number, part in enumerate(obj.__closure__ or ()):
            try:
                contents.append((number, part.cell_contents))
            except ValueError:
                continue
        attributes = {
            "__qualname__": obj.__qualname__,
            "__module__": obj.__module__,
            "__doc__": obj.__doc__,
            "__defaults__": obj.__defaults__,
            "__kwdefaults__": obj.__kwdefaults__,
            "__annotations__": obj.__annotations__,
        }
        stand_in = self._stand_ins.setdefault(name, _Space((name,)))
        arguments = (obj.__code__, stand_in, obj.__name__, obj.__closure__)
        state = (attributes, obj.__dict__, contents, around)
        return arrivals.function, arguments, state, None, None, arrivals.set_function

    def _space_of(self, obj: types.FunctionType) -> str:
        """The name of the namespace of a function that is not the notebook's."""
        owner = obj.__globals__.get("__name__")
        module = sys.modules.get(owner) if isinstance(owner, str) else None
        if module is not None and module.__dict__ is obj.__globals__ and isinstance(owner, str):
            name = owner if self.is_local(owner) else "=" + owner
        else:
            name = f"#{os.getpid()}-{next(_numbers)}"
        self.spaces[id(obj.__globals__)] = name
        self.by_name[name] = obj.__globals__
        self._keep.append(obj)
        return name

    def _class(self, obj: type) -> Any:
        source = _cloud()
        if obj in source._BUILTIN_TYPE_NAMES or obj.__module__ == "builtins":
            reduced = source._class_reduce(obj)
            return reduced
        if _is_importable(obj, obj.__qualname__, obj.__module__) and not self.is_local(obj.__module__):
            return NotImplemented
        if _is_plain_namedtuple(obj) and not self.is_local(obj.__module__):
            return arrivals.namedtuple_class, (obj.__name__, vars(obj)["_fields"], obj.__module__)
        make, arguments, *rest = source._dynamic_class_reduce(obj)
        # Without an identity of cloudpickle's the class is made new: no attribute of an earlier version
        # lives on.
        place = 4 if make is source._make_skeleton_class else 5
        if place == 4 and "__slots__" in vars(obj):  # they can be given to a class only as it is made
            # One that was made of `NamedTuple` is a tuple: `NamedTuple` would give it its slots once more.
            bases = obj.__bases__ if NamedTuple in arguments[2] else arguments[2]
            given = arguments[3] | {"__slots__": vars(obj)["__slots__"]}
            arguments = (*arguments[:2], bases, given, *arguments[4:])
            for name in [n for n, v in rest[0][0].items() if type(v) is types.MemberDescriptorType]:
                del rest[0][0][name]
        return (make, (*arguments[:place], None, *arguments[place + 1 :]), *rest)

    def _module(self, obj: types.ModuleType) -> Any:
        name = obj.__name__
        if self.spaces.get(id(obj.__dict__)) == MAIN:
            return arrivals.module, (MAIN, None)
        if not self.is_local(name):
            return importlib.import_module, (name,)
        self.spaces[id(obj.__dict__)] = name
        self.by_name[name] = obj.__dict__
        skipped = ("__builtins__", "__loader__", "__spec__", "__cached__", "__warningregistry__")
        self.wanted.extend((name, each, name) for each in list(obj.__dict__) if each not in skipped)
        return arrivals.module, (name, getattr(obj, "__file__", None))

    def _exception(self, obj: BaseException) -> Any:
        fields = {
            name: getattr(obj, name, None)
            for base, names in _FIELDS.items()
            if isinstance(obj, base)
            for name in names
            if getattr(obj, name, None) is not None  # set to None, it would show in the text
        }
        arguments: tuple[Any, ...] = obj.args
        if isinstance(obj, BaseExceptionGroup):
            arguments = (obj.message, list(obj.exceptions))
        for owner in type(obj).__mro__:
            slots = owner.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(obj, name):
                    fields[name] = getattr(obj, name)
        rows = traceback_rows(obj)
        state = (dict(obj.__dict__), obj.__cause__, obj.__context__, obj.__suppress_context__, rows)
        return arrivals.exception, (type(obj), arguments, fields), state, None, None, arrivals.set_exception


class _Imported(tuple[str, ...]):
    """Names of modules that are loaded here, and will be where it arrives."""

    def __reduce__(self) -> tuple[Any, ...]:
        return imported, tuple(self)


def imported(*names: str) -> None:
    """Import modules that are loaded on the other side."""
    for name in names:
        with suppress(Exception):  # it is missed where it is used
            importlib.import_module(name)


class _Space(tuple[str]):
    """Stands in a pickle for the namespace of this name; a tuple, so that it is no numbered object."""

    def __reduce__(self) -> tuple[Any, ...]:
        return space, tuple(self)


# ---- to the workers


@dataclass
class Parcel:
    """What the body reads, pickled once, with the numbers of its objects.

    Attributes
    ----------
    objects
        Live objects by number: those that a result may refer to.
    readers
        For every name of the notebook that a travelling function reads: the functions that do.
    sent
        Namespaces and names that are in it.
    left_out
        Names of the notebook that the loop changes.
    """

    data: bytes
    buffers: list[pickle.PickleBuffer]
    objects: dict[int, object]
    readers: dict[str, set[str]]
    written: dict[str, set[str]]
    sent: frozenset[tuple[str, str]] = frozenset()
    left_out: frozenset[str] = frozenset()

    @functools.cached_property
    def numbers(self) -> dict[int, int]:
        """Numbers by the id of the live object."""
        return {id(obj): number for number, obj in self.objects.items()}

    def codes(self) -> Iterator[types.CodeType]:
        """The code of the functions in it."""
        return (obj.__code__ for obj in self.objects.values() if type(obj) is types.FunctionType)


def pack(
    namespace: dict[str, Any],
    names: Iterable[str],
    is_local: Callable[[str], bool],
    more: Iterable[object] = (),
    replaced: Mapping[int, tuple[Any, ...]] | None = None,
    left_out: Iterable[str] = (),
    asked: Iterable[tuple[types.ModuleType, str]] = (),
) -> Parcel:
    """Pickle the values of `names` with all notebook code and globals that they reach.

    `more` are objects that travel along without a name (the classes of the elements); `asked` are
    attributes of
    modules that the body reads: a worker that has another plain value there, or a function of a library
    where the
    notebook has put its own, gets the notebook's.

    Raises
    ------
    NotTravelling
        If a value, or a part of it, cannot be pickled.
    """
    skipped: dict[tuple[str, str], str] = {(MAIN, name): "" for name in left_out}
    while True:
        try:
            return _pack(
                namespace, list(names), is_local, list(more), dict(replaced or {}), skipped, set(asked)
            )
        except _Skip as found:
            skipped[found.place] = found.why


class _Skip(Exception):
    def __init__(self, place: tuple[str, str], why: str) -> None:
        super().__init__(place)
        self.place = place
        self.why = why


def _pack(
    namespace: dict[str, Any],
    names: list[str],
    is_local: Callable[[str], bool],
    more: list[object],
    replaced: dict[int, tuple[Any, ...]],
    skipped: dict[tuple[str, str], str],
    asked: set[tuple[types.ModuleType, str]],
) -> Parcel:
    file = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    pickler = Traveller(file, {MAIN: namespace}, is_local, buffers)
    pickler.replaced = replaced
    pickler.asked = asked
    patched: set[tuple[str, str]] = set()
    sent: set[tuple[str, str]] = set()
    readers: dict[str, set[str]] = {}
    pickler.wanted = [(MAIN, name, "") for name in names]
    for thing in more:
        pickler.dump(("", "", thing))
    while True:
        while pickler.asked:
            module, attribute = pickler.asked.pop()
            place = (PATCH + module.__name__, attribute)
            if place in patched or is_local(module.__name__) or module.__name__ == MAIN:
                continue
            patched.add(place)
            value = module.__dict__.get(attribute, patched)
            if type(value) in ATOMS or getattr(value, "__globals__", None) is namespace:
                pickler.dump((*place, value))
            elif type(value) is types.ModuleType and value.__name__ == f"{module.__name__}.{attribute}":
                # Importing the package alone may not load it.
                below = [name for name in list(sys.modules) if name.startswith(f"{value.__name__}.")]
                pickler.dump(("", "", _Imported((value.__name__, *sorted(below)))))
        if not pickler.wanted:
            memo = pickler.memo.copy()
            added = code_added([obj for _, obj in memo.values()], patched, list(namespace.values()))
            for row in added:
                patched.add(row[:2])
                pickler.dump(row)
            if not added:
                break
            continue
        where, name, reader = pickler.wanted.pop(0)
        if where == MAIN and reader:
            readers.setdefault(name, set()).add(reader)
        values = pickler.by_name[where]
        if (where, name) in sent or (where, name) in skipped or name not in values:
            continue
        sent.add((where, name))
        try:
            pickler.dump((where, name, values[name]))
        except Exception as error:
            outdated = isinstance(error, Outdated)
            why = str(error) if outdated else f"{type(values[name]).__name__}: {error}"
            if where != MAIN:
                raise _Skip((where, name), why) from None
            raise NotTravelling(name, why, outdated) from None
    objects = {number: obj for number, obj in memo.values() if is_numbered(obj)}
    written: dict[str, set[str]] = {}
    for obj in objects.values():
        if type(obj) is types.FunctionType and obj.__globals__ is namespace:
            for each in globals_written_by(obj.__code__):
                written.setdefault(each, set()).add(obj.__qualname__)
    left_out = frozenset(name for where, name in skipped if where == MAIN)
    return Parcel(file.getvalue(), buffers, objects, readers, written, frozenset(sent), left_out)


def is_numbered(obj: object) -> bool:
    """Whether an object of a pickle's memo can be told apart from its equals, so that its number is kept."""
    return not isinstance(obj, _NOT_NUMBERED)


def goes_by_name(obj: object, is_local: Callable[[str], bool]) -> bool:
    """Whether a copy of an object on another process comes home as the same object without its number.

    Classes and functions of libraries do, and the data types of numpy that exist once.
    """
    if isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType):
        owner = obj.__module__
        return _is_importable(obj, obj.__qualname__, owner) and not is_local(owner)
    return type(type(obj)).__name__ == "_DTypeMeta" and getattr(obj, "isbuiltin", 0) == 1


@dataclass
class Arrived:
    """What a parcel is on a worker.

    Attributes
    ----------
    namespace
        The one namespace that stands for `__main__`.
    objects
        The objects by number.
    late
        Globals by namespace that elements brought along for their functions.
    """

    namespace: dict[str, Any]
    module: types.ModuleType
    objects: dict[int, object]
    spaces: dict[str, dict[str, Any]] = field(default_factory=dict)
    patches: list[tuple[str, str, Any]] = field(default_factory=list)
    late: dict[str, dict[str, Any]] = field(default_factory=dict)


def unpack(data: bytes, buffers: Iterable[Any]) -> Arrived:
    """Load a parcel into a new `__main__`."""
    made = types.ModuleType(MAIN)
    made.__dict__["__builtins__"] = __builtins__
    arrival.spaces = {MAIN: made.__dict__, "@" + MAIN: {"module": made}}
    file = io.BytesIO(data)
    loader = pickle.Unpickler(file, buffers=buffers)
    ends = len(data)
    patches: list[tuple[str, str, Any]] = []
    before = sys.modules.get(MAIN)
    sys.modules[MAIN] = made
    try:
        while file.tell() < ends:
            where, name, value = loader.load()
            if where.startswith(PATCH):
                patches.append((where[1:], name, value))
            elif name:
                space(where)[name] = value
    finally:
        if before is not None:
            sys.modules[MAIN] = before
    spaces = {id(values) for values in arrival.spaces.values()}
    objects: dict[int, object] = {
        number: obj
        for number, obj in loader.memo.copy().items()
        if is_numbered(obj) and id(obj) not in spaces
    }
    return Arrived(made.__dict__, made, objects, arrival.spaces, patches)


# ---- elements: to a worker, each pickled for itself


class _Element(Traveller):
    """Pickles an element; what the parcel has brought already is named by its number."""

    known: dict[int, int]

    def persistent_id(self, obj: Any) -> Any:
        number = self.known.get(id(obj))
        return None if number is None else ("b", number)


def pack_element(
    item: object, parcel: Parcel, namespace: dict[str, Any], is_local: Callable[[str], bool]
) -> tuple[bytes, list[pickle.PickleBuffer], dict[int, object]]:
    """Pickle one element, with the globals of its functions; its own numbered objects come with it."""
    file = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    pickler = _Element(file, {MAIN: namespace}, is_local, buffers)
    pickler.known = parcel.numbers
    pickler.dump(item)
    sent: set[tuple[str, str]] = set()
    while pickler.wanted:
        where, name, reader = pickler.wanted.pop()
        values = pickler.by_name[where]
        if (where, name) in sent or (where, name) in parcel.sent or name not in values:
            continue
        if where == MAIN and name in parcel.left_out:
            raise NotTravelling(name, f"`{reader}` reads `{name}`, which the loop changes")
        sent.add((where, name))
        pickler.dump((where, name, values[name]))
    objects = {number: obj for number, obj in pickler.memo.copy().values() if is_numbered(obj)}
    return file.getvalue(), buffers, objects


class _Loader(pickle.Unpickler):
    resolve: Callable[[Key], object]

    def persistent_load(self, pid: Any) -> Any:
        return self.resolve(pid)


def unpack_element(data: bytes, buffers: Iterable[Any], arrived: Arrived) -> tuple[object, dict[int, object]]:
    """Load one element on a worker, with its numbered objects."""
    file = io.BytesIO(data)
    loader = _Loader(file, buffers=buffers)
    loader.resolve = lambda key: arrived.objects[key[1]]
    arrival.spaces = arrived.spaces
    item = loader.load()
    while file.tell() < len(data):
        where, name, value = loader.load()
        space(where)[name] = value
        arrived.late.setdefault(where, {})[name] = value
    spaces = {id(values) for values in arrived.spaces.values()}
    objects: dict[int, object] = {
        number: obj
        for number, obj in loader.memo.copy().items()
        if is_numbered(obj) and id(obj) not in spaces
    }
    return item, objects


# ---- what an iteration leaves: home from a worker


class Returner(Traveller):
    """Pickles on a worker.

    Live objects of the caller are named by their number, functions stay the notebook's.
    """

    def __init__(
        self,
        file: io.BytesIO,
        arrived: Arrived,
        known: Mapping[int, Key],
        is_local: Callable[[str], bool],
        buffers: list[pickle.PickleBuffer],
    ) -> None:
        super().__init__(file, {MAIN: arrived.namespace}, is_local, buffers)
        self.known = known
        self.by_names = False
        self.refers = False
        self.bases: Mapping[int, Any] = {}
        for name, values in arrived.spaces.items():
            if not name.startswith("@"):
                self.spaces[id(values)] = name
                self.by_name[name] = values

    def reducer_override(self, obj: Any) -> Any:
        """Functions, classes and modules of the caller by number; views of its arrays as views."""
        key = self.known.get(id(obj))
        if key is not None:
            if self.by_names and (where := self._name_of(obj)) is not None:
                return arrivals.named, where
            self.refers = True
            return arrivals.live, key
        kind = type(obj)
        if kind.__module__ == "numpy" and kind.__name__ == "ndarray" and obj.base is not None:
            found = self._view(obj)
            if found is not None:
                return found
        return super().reducer_override(obj)

    def _name_of(self, obj: Any) -> tuple[str, str] | None:
        """Space and name of a function or class, if it is found there."""
        name = getattr(obj, "__qualname__", None)
        values = self.by_name.get(getattr(obj, "__module__", None) or "")
        if not isinstance(name, str) or values is None:
            return None
        first, *rest = name.split(".")
        found = values.get(first)
        for part in rest:
            found = getattr(found, part, None)
        return (obj.__module__, name) if found is obj else None

    def _view(self, obj: Any) -> Any:
        """An array over the memory of one of the caller's, as a view of that."""
        owner = obj.base
        while owner is not None:
            found = self.bases.get(id(owner))
            if found is not None:
                owner = found
            if id(owner) in self.known:
                self.refers = True
                if type(owner) is not type(obj) or not (owner.flags.c_contiguous or owner.flags.f_contiguous):
                    return None
                offset = obj.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
                if 0 <= offset <= owner.nbytes:
                    return arrivals.view, (owner, obj.dtype, obj.shape, obj.strides, offset, owner.strides)
                return None
            owner = getattr(owner, "base", None)
        return None


class ReturnerOfObjects(Returner):
    """The same where the caller's lists, dicts and sets may come home too; every object is asked."""

    def persistent_id(self, obj: Any) -> Any:
        """The caller's name of the object."""
        key = self.known.get(id(obj))
        if key is None or (self.by_names and isinstance(obj, DEFINITIONS)):
            return None
        self.refers = True
        return key


def load_result(
    data: bytes, buffers: Iterable[Any], namespace: dict[str, Any], resolve: Callable[[Key], object]
) -> Any:
    """Load, in the kernel, what an iteration left."""
    loader = _Loader(io.BytesIO(data), buffers=buffers)
    loader.resolve = resolve
    arrival.spaces = _Live({MAIN: namespace})
    arrival.resolve = resolve
    return loader.load()


class _Live(dict[str, dict[str, Any]]):
    """The kernel's own namespaces by name."""

    def get(self, name: str, default: Any = None) -> Any:
        found = super().get(name)
        if found is None and name.startswith("@"):
            loaded = sys.modules.get(name[1:])
            return {"module": loaded} if loaded is not None else default
        if found is None and not name.startswith(("=", "#")) and name in sys.modules:
            return sys.modules[name].__dict__
        return found if found is not None else default
