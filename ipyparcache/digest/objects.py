"""Content digests of live objects, and the numbers by which their mutable parts are named.

A digest covers types, values and *inner sharing*: within one root the mutable objects are numbered in the
order in which a depth-first walk first meets them, and a second meeting writes the number. The same numbers
name an object towards other rooms: which input an output refers to, what a run changed in place, where a
restored state belongs.

The walk writes a stream of self-delimiting tokens that is hashed at the end. It keeps its own stack (a chain
of 20 000 links is no recursion), runs no code of the notebook, and does not follow names: a class of the
notebook or of a local module, a module, and a distribution are roots of their own, written by name where they
are met.

Values of one of the primitive types are written by `marshal`, version 2, which knows neither references nor
interning. It writes arrays and bytearrays as if they were bytes, so the exact types are looked at first.
"""

from __future__ import annotations

import builtins
import importlib
import marshal
import math
import operator
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CellType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, WeakValueDictionary

from blake3 import blake3

from ipyparcache.digest import modules
from ipyparcache.errors import Undigestible, Unrestorable

__all__ = [
    "Kind",
    "Read",
    "Summary",
    "Traversal",
    "Undigestible",
    "digest_of",
    "is_atomic",
    "put_state",
    "state_of",
]

PRIMITIVES = frozenset({int, float, complex, bool, str, bytes, type(None)})
_WITH_NAN = frozenset({float, complex})
_LARGE = 1 << 16  # a pure payload longer than this is hashed apart, once per lookup
_NAN = float("nan")

ABSENT = b"absent"

dumps: Callable[[Any, int], bytes] = marshal.dumps


class Kind:
    """How objects of one type are written into a digest, and how their own state is taken apart and put back.

    The own state is what the object holds itself: its children are in it by reference.
    """

    mutable = True

    def write(self, walk: Walk, obj: Any) -> None:
        """Write a token that tells the type and this object's own part; push its children onto the walk."""
        raise NotImplementedError

    def state(self, obj: Any) -> object:
        """Own state, as a value that `put` takes."""
        raise Unrestorable(_type_name(obj), "its state cannot be told apart")

    def put(self, obj: Any, state: Any) -> None:
        """Make `state` the own state of `obj`, in place, without running code of the notebook."""
        raise Unrestorable(_type_name(obj), "it cannot be changed in place")

    def mark(self, walk: Walk, obj: Any) -> object:
        """What is kept during a run to see afterwards whether the own state changed."""
        return self.state(obj)

    def is_as(self, walk: Walk, obj: Any, mark: object) -> bool:
        """Whether the own state is still as `mark` says; a replaced child counts, a changed one does not."""
        return _same(self.mark(walk, obj), mark)


KINDS: dict[type, Kind] = {}
"""By exact type; also the content of a builtin base in instances of derived classes."""

FAMILIES: dict[type, Kind] = {}
"""By base class: for all classes of distributions that derive from it."""

NAMED: dict[str, Callable[[type], Kind]] = {}
"""By full name of a base class that may not be imported yet: what makes the kind of a derived class."""

PROVIDERS = {
    "function": "ipyparcache.digest.code",
    "numpy": "ipyparcache.digest.arrays",
    "pandas": "ipyparcache.digest.frames",
    "scipy": "ipyparcache.digest.arrays",
    "torch": "ipyparcache.digest.tensors",
}
"""Which of our modules registers the kinds of a library's types, imported when such a type is first met."""


@dataclass(frozen=True)
class Read:
    """A global name that reached code looks up, in the notebook (`owner` "__main__") or a local module."""

    owner: str
    name: str
    present: bool
    attributes: frozenset[str] | None = None  # read of it, if it is a module; None: all of them

    @property
    def root(self) -> str:
        """Name of the root that the value becomes."""
        return self.name if self.owner == "__main__" else f"{self.owner}:{self.name}"


@dataclass
class Summary:
    """A few words on a root, to explain a miss: JSON-able by `vars`."""

    type: str
    size: str
    digest: str
    parts: dict[str, str] = field(default_factory=dict)
    text: str = ""


@dataclass
class _Numbered:
    """The mutable objects of one root, by number, with what tells whether they changed."""

    objects: list[object] = field(default_factory=list)
    marks: list[tuple[int, Kind, object]] = field(default_factory=list)  # of those met here first


class Traversal:
    """All inputs of one lookup: each object digested once, kept alive so that identities stay valid.

    Parameters
    ----------
    main : Mapping, optional
        The notebook's namespace. A function whose globals it is, is a notebook function, and the names that
        such a function reads become `reads`.

    Attributes
    ----------
    digests : dict of str to bytes
        Digest of each root: those that were added, and those found on the way, `class helpers.Model`,
        `module helpers`, `package numpy`, and the names that reached code reads (after `follow`). All belong
        in a key.
    shared : list
        Objects met under two roots, as ((root, number), (root, number)); part of a key.
    memory_sharing : list
        Arrays that overlap in memory without being one object: ((root, number), (root, number), bytes between
        their starts); part of a key. Complete once `follow` has run.
    reads : list of Read
        Global names that reached code looks up, transitively, in the order of their discovery.
    modules : dict of str to str
        Modules reached: name to origin (`local`, `library`).
    """

    def __init__(self, main: Mapping[str, object] | None = None):
        self.main = main if main is not None else _notebook_namespace()
        self.digests: dict[str, bytes] = {}
        self.shared: list[tuple[tuple[str, int], tuple[str, int]]] = []
        self.reads: list[Read] = []
        self.modules: dict[str, str] = {}
        self.kept: list[object] = []  # temporaries of pickle hooks: their ids must stay taken
        self.frozen: dict[int, bytes] = {}  # digests of immutable containers and large payloads met before
        self.arrays: list[tuple[str, int, int, int]] = []  # (root, number, start, end) of arrays in memory
        self.columns: dict[int, list[Any]] = {}  # of frames, by id: digests of their columns
        self._first: dict[int, tuple[str, int]] = {}
        self._roots: dict[str, _Numbered] = {}
        self._values: dict[str, object] = {}
        self._pending: list[tuple[str, object]] = []  # definitions met that are roots of their own
        self._definitions: dict[int, str] = {}
        self._names: dict[str, int] = {}
        self._seen_reads: dict[tuple[str, str], int] = {}
        self._followed = 0
        self._kinds: dict[type, Kind] = {}
        self._classes: set[type] = set()  # of distributions, looked through for methods of the user

    # ---- roots

    def add(self, root: str, value: object, attributes: Iterable[str] | None = None) -> bytes:
        """Digest one root: its content and inner sharing, the same in every process.

        If the value is a module, `attributes` are those that code takes from it; None stands for any.

        Raises
        ------
        Undigestible
            With the path from the root, such as `x['a'][3]`.
        """
        if isinstance(value, ModuleType):
            self._values[root] = value
            self._roots[root] = _Numbered()
            digest = self.digests[root] = blake3(f"module {value.__name__}".encode()).digest()
            self.reach_module(value, attributes)
        else:
            digest = self._add(root, value)
        while self._pending:
            name, definition = self._pending.pop(0)
            if name not in self.digests:
                self._add(name, definition, definition=name.startswith("class "))
        return digest

    def _add(self, root: str, value: object, definition: bool = False) -> bytes:
        walk = Walk(self, root)
        self._values[root] = value
        self._roots[root] = walk.numbered
        digest = walk.run(value, definition)
        self.digests[root] = digest
        return digest

    def add_absent(self, root: str) -> bytes:
        """Note that there is no such name: that, too, is an input."""
        self.digests[root] = ABSENT
        return ABSENT

    def add_import(self, name: str) -> None:
        """Note a module that code imports while it runs: a local one by source, a distribution by version."""
        self.note_module(name)

    def follow(self, ignored: Container[str] = ()) -> dict[str, bytes]:
        """Add every name that reached code reads and that is no root yet, until nothing new is found.

        Names of the notebook in `ignored` are left out. Returns the digests of the roots added.
        """
        added: dict[str, bytes] = {}
        while self._followed < len(self.reads):
            read = self.reads[self._followed]
            self._followed += 1
            if read.root in self.digests or (read.owner == "__main__" and read.name in ignored):
                continue
            if not read.present:
                added[read.root] = self.add_absent(read.root)
                continue
            added[read.root] = self.add(read.root, self._value_of(read), read.attributes)
        return added

    def _value_of(self, read: Read) -> object:
        return self.namespace_of(read.owner)[read.name]

    def namespace_of(self, owner: str) -> Mapping[str, object]:
        """Globals of the notebook or of a module."""
        return self.main if owner == "__main__" else vars(sys.modules[owner])

    def reach_module(self, module: ModuleType, names: Iterable[str] | None) -> None:
        """Note a module object that code holds, and the attributes that may be taken from it (None: any).

        Of a local module they count by live value. Of a distribution only those do that the user put there:
        functions and classes of the notebook or of a local module.
        """
        name = module.__name__
        self.note_module(name)
        namespace = vars(module)
        origin = modules.origin_of(name)
        if origin == "notebook":
            return
        if names is None:
            names = [attribute for attribute in namespace if not attribute.startswith("__")]
        for attribute in sorted(names):
            value = namespace.get(attribute)
            if origin == "local" or _is_user_definition(value):
                self.note_read(name, attribute, namespace)
            elif isinstance(value, type):
                self.reach_class(value)

    def reach_class(self, cls: type) -> None:
        """Note a class of a distribution: methods that the user put on it are roots of their own."""
        if cls in self._classes:
            return
        self._classes.add(cls)
        for base in cls.__mro__:
            if not base.__flags__ & (1 << 9) or modules.is_user_code(module_of(base)):
                continue
            for name, value in list(class_dict(base).items()):
                if _is_user_definition(value):
                    self._pending.append((f"patch {module_of(base)}.{base.__qualname__}.{name}", value))

    @property
    def memory_sharing(self) -> list[tuple[tuple[str, int], tuple[str, int], int]]:
        """Pairs of arrays that overlap in memory; see the class."""
        found = []
        open_ones: list[tuple[str, int, int, int]] = []
        for array in sorted(self.arrays, key=lambda one: (one[2], one[3], one[0], one[1])):
            open_ones = [other for other in open_ones if other[3] > array[2]]
            for other in open_ones:
                pair = sorted([(other[0], other[1], other[2]), (array[0], array[1], array[2])])
                found.append((pair[0][:2], pair[1][:2], pair[1][2] - pair[0][2]))
            open_ones.append(array)
        return sorted(found)

    def combined(self) -> bytes:
        """One digest of everything: all roots by name, what they share, which memory they share."""
        rows = sorted(self.digests.items())
        shared = sorted(self.shared)
        return blake3(dumps((rows, shared, self.memory_sharing), 2)).digest()

    # ---- numbers

    def number_of(self, obj: object) -> tuple[str, int] | None:
        """Root and number of a mutable object met earlier, under the first root that reached it."""
        return self._first.get(id(obj))

    def object_at(self, root: str, number: int) -> object:
        """The live object with this number."""
        return self._roots[root].objects[number]

    def value_of(self, root: str) -> object:
        """The live value of a root, None if it is absent or stands for a module or a distribution."""
        return self._values.get(root)

    def count_of(self, root: str) -> int:
        """How many mutable objects the root reaches."""
        return len(self._roots[root].objects)

    def numbered(self) -> Iterator[tuple[str, int, object]]:
        """Every mutable object as (root, number, object), in an order that equal inputs share."""
        for root in sorted(self._roots):
            for number, obj in enumerate(self._roots[root].objects):
                yield root, number, obj

    def changed(self) -> list[tuple[str, int]]:
        """Mutable objects whose own state is not as it was digested, by the root that reached them first."""
        found = []
        self.frozen = {}  # what was digested before the run says nothing about now
        self.columns = {}
        for root, numbered in self._roots.items():
            walk = Walk(self, root, isolated=True)
            for number, kind, mark in numbered.marks:
                if not kind.is_as(walk, numbered.objects[number], mark):
                    found.append((root, number))
        return found

    def summary(self, root: str) -> Summary:
        """A few words on a root: its type, size, and digests of its columns or top-level items."""
        value = self._values.get(root)
        digest = self.digests[root]
        if digest == ABSENT:
            return Summary("absent", "", "")
        parts: dict[str, str] = {}
        labelled = self._parts_of(value)
        if labelled is not None and self.count_of(root) <= 100_000:
            for label, child in labelled:
                parts[label] = Walk(self, root, isolated=True).run(child).hex()[:16]
        text = repr(value) if type(value) in PRIMITIVES and len(repr(value)) <= 80 else ""
        return Summary(_type_name(value), _size_of(value), digest.hex()[:32], parts, text)

    def _parts_of(self, value: object) -> list[tuple[str, object]] | None:
        kind = self.kind_of(type(value))
        if hasattr(kind, "parts"):
            labelled: list[tuple[str, object]] = kind.parts(value)
        elif type(value) is dict:
            labelled = [(repr(key)[:60], child) for key, child in value.items()] if len(value) <= 1000 else []
        elif isinstance(kind, InstanceKind):
            labelled = [(f".{name}", child) for name, child in kind.attributes(value)]
        else:
            return None
        return labelled if 0 < len(labelled) <= 1000 else None

    # ---- what walks report

    def kind_of(self, cls: type) -> Kind:
        """How objects of this class are digested."""
        kind = KINDS.get(cls) or self._kinds.get(cls)
        if kind is None:
            kind = self._kinds[cls] = _find_kind(cls)
        return kind

    def meet(self, walk: Walk, obj: object, kind: Kind, number: int) -> None:
        """Note a mutable object that a root reached as its `number`."""
        here = (walk.root, number)
        there = self._first.setdefault(id(obj), here)
        if there is here:
            walk.numbered.marks.append((number, kind, kind.mark(walk.apart(), obj)))
        elif there != here:
            self.shared.append((there, here))

    def note_read(
        self, owner: str, name: str, namespace: Mapping[str, object], attributes: frozenset[str] | None = None
    ) -> None:
        """Note that reached code looks up a global name."""
        present = name in namespace
        if not present:
            foreign = _user_builtin(name)
            if foreign:
                owner, present = "builtins", True
        known = self._seen_reads.get((owner, name))
        if known is None:
            self._seen_reads[owner, name] = len(self.reads)
            self.reads.append(Read(owner, name, present, attributes))
            return
        # Another function reads more of the same module.
        earlier = self.reads[known]
        if present and earlier.attributes is not None and earlier.attributes != attributes:
            wider = None if attributes is None else earlier.attributes | attributes
            self.reads[known] = Read(owner, name, present, wider)
            value = namespace.get(name)
            if known < self._followed and isinstance(value, ModuleType):
                self.reach_module(value, wider)

    def note_module(self, name: str) -> None:
        """Make a module that code relies on a root: a local one by source, a distribution by version."""
        waiting = [name]
        while waiting:
            name = waiting.pop(0)
            if name in self.modules:
                continue
            origin = modules.origin_of(name)
            if origin in ("notebook", "standard"):
                continue
            if origin == "library":
                top = name.partition(".")[0]
                if top != "ipyparcache" and top not in self.modules:
                    self.modules[top] = origin
                    self.digests[f"package {top}"] = modules.version_of(top).encode()
                continue
            self.modules[name] = origin
            source = modules.source_of(name)
            if source is not None:
                self.digests[f"module {name}"] = source.digest
                waiting.extend(modules.imports_of(source))
            else:
                self.digests[f"module {name}"] = self._live_code_of(name)

    def _live_code_of(self, name: str) -> bytes:
        """Stand-in for a source that cannot be told: the code that the loaded module holds."""
        module = sys.modules.get(name)
        if module is None:
            return b"not found"
        self.reach_module(module, None)
        return b"no source"

    def definition(self, cls: type) -> str:
        """Name of the root that a class of the notebook or of a local module is; queued when new."""
        known = self._definitions.get(id(cls))
        if known is not None:
            return known
        base = f"class {module_of(cls)}.{cls.__qualname__}"
        count = self._names[base] = self._names.get(base, 0) + 1
        name = base if count == 1 else f"{base}#{count}"
        self._definitions[id(cls)] = name
        self._pending.append((name, cls))
        return name


class Walk:
    """One depth-first walk from a root, writing the stream that is hashed."""

    def __init__(self, traversal: Traversal, root: str, isolated: bool = False):
        self.traversal = traversal
        self.root = root
        self.isolated = isolated  # a walk on the side: it numbers for itself and reports nothing
        self.numbered = _Numbered()
        self.out = bytearray()
        self.stack: list[Any] = []
        self.touched = 0  # mutable objects written so far, to tell which tuples are deeply immutable
        self._local: dict[int, int] = {}
        self._hasher = blake3()
        self._opened: list[tuple[bytearray, int, object]] = []
        self._closed: dict[
            int, int
        ] = {}  # immutable containers with mutable content, met before in this root

    def run(self, value: object, definition: bool = False) -> bytes:
        """Digest of what `value` reaches; with `definition`, a class counts by content, not by name."""
        stack = self.stack
        if definition:
            self.visit_definition(value)
        else:
            stack.append(value)
        obj = value
        try:
            while stack:
                obj = stack.pop()
                self.visit(obj)
        except _NoDigest as stop:
            where = stop.culprit if stop.culprit is not None else obj
            if self.isolated:
                raise _NoDigest(stop.reason, where) from None
            path = find_path(self.root, value, where)
            raise Undigestible(path, _type_name(where), stop.reason) from None
        self._hasher.update(self.out)
        return self._hasher.digest()

    def visit(self, obj: Any) -> None:
        """Write one object and push its children."""
        cls = type(obj)
        if cls in PRIMITIVES:
            self.out += dumps(obj, 2) if obj == obj else dumps(_canonical(obj), 2)
            return
        kind = self.traversal.kind_of(cls)
        if kind.mutable and not self._number(obj, kind):
            return
        kind.write(self, obj)
        if len(self.out) > _LARGE and not self._opened:
            self._hasher.update(self.out)
            self.out.clear()

    def visit_definition(self, cls: Any) -> None:
        """Write a class by its content, as number 0 of a root of its own."""
        from ipyparcache.digest.code import (
            ClassKind,  # registers itself when first needed, as all kinds of code
        )

        kind = ClassKind()
        self._number(cls, kind)
        kind.write_content(self, cls)

    def _number(self, obj: object, kind: Kind) -> bool:
        """Number a mutable object; False, with its number written, if it was met before."""
        local = self._local
        known = local.get(id(obj))
        self.touched += 1
        if known is not None:
            self.out += b"\xff^" + known.to_bytes(4, "little")
            return False
        number = local[id(obj)] = len(local)
        self.numbered.objects.append(obj)
        if not self.isolated:
            self.traversal.meet(self, obj, kind, number)
        return True

    def number_of(self, obj: object) -> int | None:
        """Number of an object that this walk has met."""
        return self._local.get(id(obj))

    # ---- what kinds use

    def token(self, tag: bytes, *facts: object) -> None:
        """Write a tag, then facts of primitive types (or tuples of them)."""
        self.out += b"\xff" + tag + b"\x00"
        if facts:
            self.out += dumps(facts, 2)

    def push(self, children: Sequence[object]) -> None:
        """Have the children written next, in this order."""
        self.stack.extend(reversed(children))

    def pure(self, payload: object) -> None:
        """Write a container of primitives (exact types looked at, NaN made canonical) at once."""
        written = dumps(payload, 2)
        if len(written) > _LARGE:
            self.out += b"\xffL" + large_digest(written)
        else:
            self.out += written

    def sequence(self, tag: bytes, items: Sequence[object], *facts: object) -> None:
        """Write the items of a list, tuple or deque."""
        self.token(tag, len(items), *facts)
        if is_pure(items):
            self.pure(without_nan(items))
        else:
            self.push(items)

    def mapping(self, tag: bytes, items: Mapping[Any, object], *facts: object) -> None:
        """Write the items of an exact dict, in order."""
        self.token(tag, len(items), *facts)
        keys = list(items)
        values = list(items.values())
        if is_pure(keys):
            self.pure(without_nan(keys))
            if is_pure(values):
                self.pure(without_nan(values))
            else:
                self.push(values)
        else:
            self.push([part for item in items.items() for part in item])

    def unordered(self, tag: bytes, items: Sequence[object], *facts: object) -> None:
        """Write the elements of a set, in an order that depends on their content alone."""
        self.token(tag, len(items), *facts)
        types = set(map(type, items))
        if types <= PRIMITIVES:
            if len(types) == 1 and types <= {int, str, bytes}:
                self.pure(sorted(items))  # type: ignore[type-var]
            else:
                self.pure(sorted(dumps(item, 2) for item in without_nan(items)))
            return
        keyed = []
        for position, item in enumerate(items):
            known = self._local.get(id(item), len(self._local))
            keyed.append((self.apart().run(item), known, position))
        keyed.sort()
        self.push([items[position] for _, _, position in keyed])

    def apart(self) -> Walk:
        """A walk on the side, that numbers for itself."""
        return Walk(self.traversal, self.root, isolated=True)

    def definition(self, cls: type) -> None:
        """Write a class by name; one of the notebook or of a local module becomes a root of its own."""
        traversal = self.traversal
        if is_by_reference(cls):
            self.token(b"C", module_of(cls), cls.__qualname__)
            if module_of(cls) != "builtins" and not self.isolated:
                traversal.note_module(module_of(cls))
                traversal.reach_class(cls)
        else:
            self.token(b"D", traversal.definition(cls))

    def keep(self, obj: object) -> None:
        """Keep a temporary alive as long as the traversal, so that its identity stays its own."""
        self.traversal.kept.append(obj)

    def begin(self, obj: object, children: Sequence[object]) -> None:
        """Write an immutable container apart: equal ones are equal however often the object occurs."""
        known = self.traversal.frozen.get(id(obj))
        if known is not None:
            self.out += known
            return
        again = self._closed.get(id(obj))
        if again is not None:
            self.out += b"\xff~" + again.to_bytes(4, "little")
            return
        self._opened.append((self.out, self.touched, obj))
        self.out = bytearray()
        self.stack.append(_END)
        self.push(children)

    def end(self) -> None:
        """Close the container opened last."""
        written = b"\xff%" + blake3(self.out).digest()
        self.out, touched, obj = self._opened.pop()
        self.out += written
        if touched == self.touched:
            self.traversal.frozen[id(obj)] = written
            self.keep(obj)
        else:
            self._closed[id(obj)] = len(self._closed)
            self.keep(obj)

    def fail(self, reason: str, culprit: object = None) -> _NoDigest:
        """The error to raise for an object without a digest."""
        return _NoDigest(reason, culprit)


class _NoDigest(Exception):
    def __init__(self, reason: str, culprit: object = None):
        super().__init__(reason)
        self.reason = reason
        self.culprit = culprit


# ---- primitives and pure containers


def is_pure(items: Iterable[object]) -> bool:
    """Whether all items are of primitive types, exactly."""
    return set(map(type, items)) <= PRIMITIVES


def without_nan(items: Sequence[Any]) -> Sequence[Any]:
    """The same primitives with every NaN replaced by the one canonical NaN."""
    if _WITH_NAN.isdisjoint(map(type, items)) or not any(map(operator.ne, items, items)):
        return items if type(items) is list else list(items)
    return [item if item == item else _canonical(item) for item in items]


def _canonical(value: float | complex) -> float | complex:
    if type(value) is complex:
        real, imag = value.real, value.imag
        return complex(_NAN if math.isnan(real) else real, _NAN if math.isnan(imag) else imag)
    return _NAN


def large_digest(data: Any) -> bytes:
    """BLAKE3 of a large buffer, on all cores."""
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update(data)
    return hasher.digest()


def _same(new: object, old: object) -> bool:
    """Whether two own states hold the same children: identical, or equal primitives of one type."""
    if new is old:
        return True
    if type(new) is not type(old):
        return False
    if isinstance(new, (list, tuple)):
        other: Any = old
        if len(new) != len(other):
            return False
        return all(map(operator.is_, new, other)) or all(map(_same, new, other))
    if isinstance(new, dict):
        other = old
        return _same(list(new), list(other)) and _same(list(new.values()), list(other.values()))
    if isinstance(new, (set, frozenset)):
        other = old
        return {id(item) for item in new} == {id(item) for item in other} or (
            is_pure(new) and is_pure(other) and new == other
        )
    if type(new) in PRIMITIVES:
        return dumps(new, 2) == dumps(old, 2)
    return False


# ---- kinds of builtin containers


class PrimitiveKind(Kind):
    """Instances of `int`, `str` and so on: as the value base of classes derived from them."""

    mutable = False

    def __init__(self, plain: Callable[[Any], Any]):
        self.plain = plain

    def write(self, walk: Walk, obj: Any) -> None:
        walk.visit(self.plain(obj))

    def state(self, obj: Any) -> object:
        return self.plain(obj)

    def put(self, obj: Any, state: Any) -> None:
        if not _same(self.plain(obj), state):
            raise Unrestorable(_type_name(obj), "its value is fixed when it is made")


class ListKind(Kind):
    def write(self, walk: Walk, obj: Any) -> None:
        walk.sequence(b"list", self.state(obj))

    def state(self, obj: Any) -> list[Any]:
        return list.__getitem__(obj, slice(None))

    def put(self, obj: Any, state: Any) -> None:
        list.__setitem__(obj, slice(None), state)


class TupleKind(Kind):
    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        items = tuple.__getitem__(obj, slice(None))
        walk.token(b"tuple", len(items))
        if is_pure(items):
            walk.pure(without_nan(items))
        else:
            walk.begin(obj, items)

    def state(self, obj: Any) -> object:
        return tuple.__getitem__(obj, slice(None))

    def put(self, obj: Any, state: Any) -> None:
        if not _same(self.state(obj), state):
            raise Unrestorable(_type_name(obj), "a tuple is fixed when it is made")


class DictKind(Kind):
    def write(self, walk: Walk, obj: Any) -> None:
        walk.mapping(b"dict", self.state(obj))

    def state(self, obj: Any) -> dict[Any, Any]:
        return obj if type(obj) is dict else dict(dict.items(obj))

    def mark(self, walk: Walk, obj: Any) -> object:
        return dict(dict.items(obj))

    def put(self, obj: Any, state: Any) -> None:
        items = list(state.items())
        dict.clear(obj)
        dict.update(obj, items)


class OrderedDictKind(DictKind):
    def put(self, obj: Any, state: Any) -> None:
        items = list(state.items())
        OrderedDict.clear(obj)
        for key, value in items:
            OrderedDict.__setitem__(obj, key, value)

    def write(self, walk: Walk, obj: Any) -> None:
        walk.mapping(b"OrderedDict", self.state(obj))

    def state(self, obj: Any) -> dict[Any, Any]:
        return dict(OrderedDict.items(obj))

    def mark(self, walk: Walk, obj: Any) -> object:
        return self.state(obj)


class DefaultDictKind(DictKind):
    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"defaultdict")
        walk.stack.append(dict(dict.items(obj)))
        walk.keep(walk.stack[-1])
        walk.stack.append(obj.default_factory)

    def state(self, obj: Any) -> dict[Any, Any]:
        return {"factory": obj.default_factory, "items": dict(dict.items(obj))}

    def mark(self, walk: Walk, obj: Any) -> object:
        return self.state(obj)

    def put(self, obj: Any, state: Any) -> None:
        super().put(obj, state["items"])
        obj.default_factory = state["factory"]


class SetKind(Kind):
    def write(self, walk: Walk, obj: Any) -> None:
        walk.unordered(b"set", list(set.__iter__(obj)))

    def state(self, obj: Any) -> set[Any]:
        return set(set.__iter__(obj))

    def put(self, obj: Any, state: Any) -> None:
        set.clear(obj)
        set.update(obj, state)


class FrozenSetKind(Kind):
    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        walk.unordered(b"frozenset", list(frozenset.__iter__(obj)))

    def state(self, obj: Any) -> object:
        return frozenset(frozenset.__iter__(obj))

    def put(self, obj: Any, state: Any) -> None:
        if not _same(self.state(obj), state):
            raise Unrestorable(_type_name(obj), "a frozenset is fixed when it is made")


class ByteArrayKind(Kind):
    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"bytearray")
        walk.pure(bytes(memoryview(obj)))

    def state(self, obj: Any) -> object:
        return bytes(memoryview(obj))

    def put(self, obj: Any, state: Any) -> None:
        bytearray.__setitem__(obj, slice(None), state)


class DequeKind(Kind):
    def write(self, walk: Walk, obj: Any) -> None:
        walk.sequence(b"deque", list(deque.__iter__(obj)), obj.maxlen)

    def state(self, obj: Any) -> object:
        return list(deque.__iter__(obj))

    def put(self, obj: Any, state: Any) -> None:
        deque.clear(obj)
        deque.extend(obj, state)


class ConstantKind(Kind):
    """`Ellipsis`, `NotImplemented`: nothing but their type."""

    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"constant", type(obj).__name__)


class ObjectKind(Kind):
    """`object()`: nothing but an identity, which its number tells."""

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"object")

    def state(self, obj: Any) -> object:
        return None

    def put(self, obj: Any, state: Any) -> None:
        pass


class PartsKind(Kind):
    """Immutable objects that are a fixed number of parts."""

    mutable = False

    def __init__(self, tag: bytes, parts_of: Callable[[Any], Sequence[object]]):
        self.tag = tag
        self.parts_of = parts_of

    def write(self, walk: Walk, obj: Any) -> None:
        parts = self.parts_of(obj)
        walk.keep(parts)
        walk.token(self.tag, len(parts))
        walk.push(parts)


class CellKind(Kind):
    """A variable that closures share."""

    def write(self, walk: Walk, obj: Any) -> None:
        content = self.state(obj)
        walk.token(b"cell", len(content))
        walk.push(content)

    def state(self, obj: Any) -> list[object]:
        try:
            return [obj.cell_contents]
        except ValueError:  # assigned later, or never
            return []

    def put(self, obj: Any, state: Any) -> None:
        if state:
            obj.cell_contents = state[0]
        else:
            del obj.cell_contents


class WeakRefKind(Kind):
    """A weak reference is what it refers to now."""

    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        target = ReferenceType.__call__(obj)
        walk.token(b"weakref", target is None)
        if target is not None:
            walk.stack.append(target)

    def state(self, obj: Any) -> object:
        return [ReferenceType.__call__(obj)]


class WeakMappingKind(Kind):
    def __init__(self, tag: bytes):
        self.tag = tag

    def write(self, walk: Walk, obj: Any) -> None:
        if (
            self.tag == b"WeakKeyDictionary"
        ):  # its keys are hashed by identity more often than not, the order is ours
            walk.mapping(self.tag, self._items(obj))
        else:
            walk.mapping(self.tag, self._items(obj))

    def _items(self, obj: Any) -> dict[Any, Any]:
        return dict(obj.items())

    def state(self, obj: Any) -> object:
        return self._items(obj)

    def put(self, obj: Any, state: Any) -> None:
        obj.clear()
        obj.update(state)


class WeakSetKind(Kind):
    def write(self, walk: Walk, obj: Any) -> None:
        walk.unordered(b"WeakSet", list(obj))

    def state(self, obj: Any) -> object:
        return set(obj)

    def put(self, obj: Any, state: Any) -> None:
        obj.clear()
        obj.update(state)


class ExceptionKind(Kind):
    """What every exception holds besides its `__dict__`."""

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"exception", bool(obj.__suppress_context__), obj.__traceback__ is not None)
        extra = [
            _plain_attribute(obj, name)
            for name in ("filename", "filename2", "lineno", "offset", "name", "value", "code")
        ]
        walk.push([obj.args, obj.__cause__, obj.__context__, *extra])

    def state(self, obj: Any) -> object:
        return [obj.args, obj.__cause__, obj.__context__, obj.__suppress_context__]

    def put(self, obj: Any, state: Any) -> None:
        obj.args, obj.__cause__, obj.__context__, obj.__suppress_context__ = state


def _plain_attribute(obj: Any, name: str) -> object:
    """Value of a C-level field of a builtin exception, None if its type has no such field."""
    for cls in type(obj).__mro__:
        if module_of(cls) == "builtins" and name in cls.__dict__:
            descriptor = cls.__dict__[name]
            return descriptor.__get__(obj, type(obj)) if hasattr(descriptor, "__get__") else None
    return None


class RandomKind(Kind):
    """`random.Random`: its state, kept in C."""

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"Random")
        walk.stack.append(self.state(obj))
        walk.keep(walk.stack[-1])

    def state(self, obj: Any) -> object:
        return random.Random.getstate(obj)

    def put(self, obj: Any, state: Any) -> None:
        random.Random.setstate(obj, state)


class _EndKind(Kind):
    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        walk.end()


class _End:
    pass


_END = _End()

KINDS.update(
    {
        int: PrimitiveKind(int.__int__),
        float: PrimitiveKind(float.__float__),
        complex: PrimitiveKind(complex.__complex__),
        bool: PrimitiveKind(bool),
        str: PrimitiveKind(str.__str__),
        bytes: PrimitiveKind(lambda obj: bytes.__getitem__(obj, slice(None))),
        type(None): PrimitiveKind(lambda obj: obj),
        list: ListKind(),
        tuple: TupleKind(),
        dict: DictKind(),
        OrderedDict: OrderedDictKind(),
        set: SetKind(),
        frozenset: FrozenSetKind(),
        bytearray: ByteArrayKind(),
        deque: DequeKind(),
        type(Ellipsis): ConstantKind(),
        type(NotImplemented): ConstantKind(),
        object: ObjectKind(),
        range: PartsKind(b"range", lambda obj: (obj.start, obj.stop, obj.step)),
        slice: PartsKind(b"slice", lambda obj: (obj.start, obj.stop, obj.step)),
        MethodType: PartsKind(b"method", lambda obj: (obj.__func__, obj.__self__)),
        MappingProxyType: PartsKind(b"mappingproxy", lambda obj: (dict(obj),)),
        CellType: CellKind(),
        ReferenceType: WeakRefKind(),
        WeakValueDictionary: WeakMappingKind(b"WeakValueDictionary"),
        WeakKeyDictionary: WeakMappingKind(b"WeakKeyDictionary"),
        WeakSet: WeakSetKind(),
        BaseException: ExceptionKind(),
        random.Random: RandomKind(),
        _End: _EndKind(),
    }
)
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
for _view in _VIEWS:
    KINDS[_view] = PartsKind(_view.__name__.encode(), lambda obj: (obj.mapping,))


# ---- instances


class InstanceKind(Kind):
    """Instances of classes of the notebook and of local modules: type, builtin base, `__dict__`, slots.

    Pickle hooks are not asked: what `__getstate__` leaves out may well be read by the cell.
    """

    def __init__(self, cls: type, base: Kind | None):
        self.base = base
        self.slots = _slots_of(cls)
        self.has_dict = cls.__dictoffset__ != 0
        self.mutable = self.has_dict or bool(self.slots) or base is None or base.mutable

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

    def _own(self, obj: Any) -> dict[str, object]:
        own = dict(_dict_of(obj)) if self.has_dict else {}
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
        own = dict(_dict_of(obj)) if self.has_dict else {}
        slots = {}
        for name, slot in self.slots:
            try:
                slots[name] = slot.__get__(obj)
            except AttributeError:
                continue
        return {"dict": own, "slots": slots, "base": None if self.base is None else self.base.state(obj)}

    def mark(self, walk: Walk, obj: Any) -> object:
        own = self._own(obj)
        return own, None if self.base is None or not self.base.mutable else self.base.mark(walk, obj)

    def is_as(self, walk: Walk, obj: Any, mark: Any) -> bool:
        if not _same(self._own(obj), mark[0]):
            return False
        return self.base is None or not self.base.mutable or self.base.is_as(walk, obj, mark[1])

    def put(self, obj: Any, state: Any) -> None:
        if self.base is not None:
            self.base.put(obj, state["base"])
        if self.has_dict:
            own = _dict_of(obj)
            own.clear()
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

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"reduced")
        write_reduced(walk, obj)

    def mark(self, walk: Walk, obj: Any) -> object:
        return walk.apart().run(obj)


class RefusedKind(Kind):
    """Objects that no digest can stand for."""

    mutable = False

    def __init__(self, reason: str):
        self.reason = reason

    def write(self, walk: Walk, obj: Any) -> None:
        raise walk.fail(self.reason, obj)


class FileKind(RefusedKind):
    """Files: open ones have no digest, closed ones are but a name and a mode."""

    def write(self, walk: Walk, obj: Any) -> None:
        if not obj.closed:
            raise walk.fail(self.reason, obj)
        raw = getattr(obj, "buffer", obj)
        walk.token(b"closed file", type(obj).__name__, repr(raw.name), str(getattr(obj, "mode", "")))


def write_reduced(walk: Walk, obj: Any) -> None:
    """Write what pickle would: how to make the object, then its state."""
    import copyreg

    cls = type(obj)
    try:
        hook = copyreg.dispatch_table.get(cls)
        value: Any = hook(obj) if hook is not None else obj.__reduce_ex__(4)
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


def _find_kind(cls: type) -> Kind:
    """How objects of a class without a kind of its own are digested."""
    for base in cls.__mro__:
        provider = PROVIDERS.get(module_of(base).partition(".")[0])
        if provider is not None and module_of(base) != "builtins":
            _provide(provider)
    if "ipyparcache.digest.code" not in sys.modules:
        _provide(PROVIDERS["function"])
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
        kind = FileKind if name.startswith("_io.") else RefusedKind
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
        # A C base that we know nothing of: only its own reduce value can tell what it holds.
        return ReducedKind(mutable=True)
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
    import copyreg

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
    {"collections.Counter", "collections.UserDict", "collections.UserList", "collections.ChainMap"}
)
"""Library classes whose instances are read and restored like those of the notebook."""

_POSITION = "how far it has run cannot be told or restored"
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
    "_io.TextIOWrapper": "an open file has a position in something outside",
    "_io.BufferedReader": "an open file has a position in something outside",
    "_io.BufferedWriter": "an open file has a position in something outside",
    "_io.BufferedRandom": "an open file has a position in something outside",
    "_io.FileIO": "an open file has a position in something outside",
    "mmap.mmap": "it is a window on a file",
    "_socket.socket": _LIVE,
    "socket.socket": _LIVE,
    "sqlite3.Connection": _LIVE,
    "sqlite3.Cursor": _LIVE,
    "subprocess.Popen": _LIVE,
    "threading.Thread": "a thread has no content",
}


# ---- classes and their parts


def is_by_reference(cls: type) -> bool:
    """Whether a class is told by its name alone: one of a distribution, found under that name."""
    if modules.is_user_code(module_of(cls)):
        return False
    return resolves_to(cls, module_of(cls), cls.__qualname__)


def resolves_to(obj: object, module: str | None, qualname: str) -> bool:
    """Whether `module` holds `obj` under `qualname`."""
    if not isinstance(module, str) or "<" in qualname:
        return False
    found: Any = sys.modules.get(module)
    if found is None:
        return False
    for part in qualname.split("."):
        try:
            found = found.__dict__[part] if part in getattr(found, "__dict__", {}) else getattr(found, part)
        except AttributeError:
            # Types such as `builtins.generator` are reachable by no name; there is one of each.
            return module == "builtins"
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    return found is obj


def module_of(cls: type) -> str:
    """Name of a class's module, also where instances (Cython functions) shadow it by a descriptor."""
    name: object = cls.__module__
    return name if isinstance(name, str) else "builtins"


_TYPE_DICT: Any = type.__dict__["__dict__"]


def class_dict(cls: type) -> Mapping[str, Any]:
    """Attributes of the class itself, whatever its metaclass does."""
    found: Mapping[str, Any] = _TYPE_DICT.__get__(cls)
    return found


def _dict_of(obj: Any) -> dict[str, Any]:
    own: dict[str, Any] = object.__getattribute__(obj, "__dict__")
    return own


def _slots_of(cls: type) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for base in cls.__mro__:
        attributes = class_dict(base)
        slots = attributes.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name in ("__dict__", "__weakref__"):
                continue
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{base.__name__.lstrip('_')}{name}"
            descriptor = attributes.get(name)
            if type(descriptor).__name__ == "member_descriptor":
                found.append(
                    (f"{base.__name__}.{name}" if any(name == n for n, _ in found) else name, descriptor)
                )
    return found


def _user_builtin(name: str) -> bool:
    """Whether `builtins` holds, under this name, code of the notebook."""
    return _is_user_definition(vars(builtins).get(name))


def _is_user_definition(value: object) -> bool:
    """Whether a value is code of the notebook or of a local module, or a thin wrapper around such code."""
    if isinstance(value, FunctionType):
        return modules.is_user_code(value.__globals__.get("__name__"))
    if isinstance(value, type):
        return modules.is_user_code(value.__module__)
    if isinstance(value, property):
        return any(map(_is_user_definition, (value.fget, value.fset, value.fdel)))
    if isinstance(value, (staticmethod, classmethod)):
        return _is_user_definition(value.__func__)
    accessor = (
        getattr(value, "_accessor", None) if type(value).__name__ in ("CachedAccessor", "Accessor") else None
    )
    return accessor is not None and _is_user_definition(accessor)


def _notebook_namespace() -> Mapping[str, object]:
    return vars(sys.modules["__main__"])


# ---- what the user is told


def _type_name(obj: object) -> str:
    cls = type(obj)
    return (
        cls.__qualname__
        if module_of(cls) in ("builtins", "__main__")
        else f"{module_of(cls)}.{cls.__qualname__}"
    )


def _size_of(value: Any) -> str:
    cls = type(value)
    shape = (
        getattr(value, "shape", None)
        if module_of(cls).partition(".")[0] in ("numpy", "pandas", "scipy", "torch")
        else None
    )
    if isinstance(shape, tuple):
        return " x ".join(map(str, shape))
    if cls in (list, tuple, dict, set, frozenset, str, bytes, bytearray, deque):
        return str(len(value))
    return ""


def find_path(root: str, value: object, target: object, limit: int = 200_000) -> str:
    """How to get from `value`, called `root`, to `target`: breadth first, so the shortest way."""
    waiting: deque[tuple[str, object]] = deque([(root, value)])
    seen: set[int] = set()
    keep = []
    while waiting and len(seen) < limit:
        path, obj = waiting.popleft()
        if obj is target:
            return path
        if id(obj) in seen or type(obj) in PRIMITIVES:
            continue
        seen.add(id(obj))
        keep.append(obj)
        waiting.extend(_labelled(path, obj))
    return root


def _labelled(path: str, obj: Any) -> Iterator[tuple[str, object]]:
    cls = type(obj)
    if isinstance(obj, (list, tuple, deque)):
        yield from ((f"{path}[{n}]", item) for n, item in enumerate(list(obj)))
    elif isinstance(obj, dict):
        yield from ((f"{path}[{key!r:.40}]", item) for key, item in list(dict.items(obj)))
    elif isinstance(obj, (set, frozenset)):
        yield from ((f"{path}{{…}}", item) for item in list(obj))
    if isinstance(obj, type):
        if modules.is_user_code(obj.__module__):
            yield from ((f"{path}.{name}", item) for name, item in class_dict(obj).items())
        return
    if cls is MethodType:
        yield f"{path}.__self__", obj.__self__
        yield f"{path}.__func__", obj.__func__
    closure = getattr(obj, "__closure__", None) if cls.__name__ == "function" else None
    for name, cell in zip(obj.__code__.co_freevars, closure or (), strict=False) if closure else ():
        for content in CellKind().state(cell):
            yield f"{path}.{name}", content
    if cls.__name__ == "function":
        yield from ((f"{path}(default)", item) for item in obj.__defaults__ or ())
    if cls.__dictoffset__ and isinstance(getattr(obj, "__dict__", None), dict):
        yield from ((f"{path}.{name}", item) for name, item in list(_dict_of(obj).items()))
    for name, slot in _slots_of(cls):
        try:
            yield f"{path}.{name}", slot.__get__(obj)
        except AttributeError:
            continue


# ---- for other rooms


def digest_of(value: object, main: Mapping[str, object] | None = None) -> bytes:
    """Digest of one object alone, with all code, names and modules that it reaches.

    Raises
    ------
    Undigestible
        If part of it has no stable content.
    """
    traversal = Traversal(main)
    traversal.add("value", value)
    traversal.follow()
    return traversal.combined()


def state_of(obj: object) -> object:
    """Own state of a mutable object, its children by reference: what `put_state` takes.

    Raises
    ------
    Unrestorable
        If the state cannot be told apart.
    """
    return _kind_for(obj).state(obj)


def put_state(obj: object, state: object) -> None:
    """Give a live object, in place, the own state that `state_of` took from another.

    Raises
    ------
    Unrestorable
        If objects of this type cannot be changed so.
    """
    _kind_for(obj).put(obj, state)


def _kind_for(obj: object) -> Kind:
    return KINDS.get(type(obj)) or _find_kind(type(obj))


def is_atomic(value: object) -> bool:
    """Whether a value is an immutable leaf, which a pickle may copy freely."""
    if type(value) in PRIMITIVES:
        return True
    kind = _kind_for(value)
    if kind.mutable or isinstance(kind, RefusedKind):
        return False
    if type(value) in (tuple, frozenset):
        return all(map(is_atomic, value))  # type: ignore[call-overload]
    return isinstance(kind, (PrimitiveKind, ConstantKind, ReducedKind)) or type(value) is range
