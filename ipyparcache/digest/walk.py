"""The walk that writes an object graph as a stream of tokens to be hashed, and what a kind of object is.

A walk goes depth first, numbers the mutable objects that it meets and writes the number when it meets one
again. It keeps its own stack (a chain of 20 000 links is no recursion), runs no code of the notebook, and
does not follow names: classes of the notebook and of local modules, modules and distributions are written by
name where they are met, and the traversal makes roots of them.

Values of one of the primitive types are written by `marshal`, version 2, which knows neither references nor
interning. It writes arrays and bytearrays as if they were bytes, so the exact types are looked at first. Its
type codes are ASCII; the tokens written here begin with 0xff.
"""

from __future__ import annotations

import contextlib
import marshal
import math
import operator
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import MethodType
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from ipyparcache.digest import modules
from ipyparcache.errors import Undigestible, Unrestorable

if TYPE_CHECKING:
    from ipyparcache.digest.objects import Traversal

PRIMITIVES = frozenset({int, float, complex, bool, str, bytes, type(None)})
_WITH_NAN = frozenset({float, complex})
_LARGE = 1 << 16  # a pure payload longer than this is hashed apart, once per lookup
_NAN = float("nan")
_MANY = 16  # fewer objects than this are written one by one
_PLAIN = frozenset({list, dict})
_PRIMITIVES_OR_TUPLE = PRIMITIVES | {tuple}

dumps: Callable[[Any, int], bytes] = marshal.dumps


class Kind(ABC):
    """How objects of one type are written into a digest, and how their own state is taken apart and put back.

    The own state is what the object holds itself: its children are in it by reference.
    """

    mutable = True
    atomic = False  # an immutable leaf
    is_told_apart = False  # immutable, and people may ask whether it is this very object: dates, named tuples
    covers: frozenset[str] = frozenset()  # entries of `__dict__` that are told by other means

    @abstractmethod
    def write(self, walk: Walk, obj: Any) -> None:
        """Write a token that tells the type and this object's own part; push its children onto the walk."""

    def write_content(self, walk: Walk, obj: Any) -> None:
        """Write what `write` tells by a name only, as far as there is more to tell."""
        self.write(walk, obj)

    def state(self, obj: Any) -> object:
        """Own state, as a value that `put` takes."""
        raise Unrestorable(type_name(obj), "its state cannot be told apart")

    def put(self, obj: Any, state: Any) -> None:
        """Make `state` the own state of `obj`, in place, without running code of the notebook."""
        raise Unrestorable(type_name(obj), "it cannot be changed in place")

    def mark(self, walk: Walk, obj: Any) -> object:
        """What is kept during a run to see afterwards whether the own state changed."""
        return self.state(obj)

    def is_as(self, walk: Walk, obj: Any, mark: object) -> bool:
        """Whether the own state is still as `mark` says; a replaced child counts, a changed one does not."""
        return same(self.mark(walk, obj), mark)


KINDS: dict[type, Kind] = {}
"""By exact type; also the content of a builtin base in instances of derived classes."""

FAMILIES: dict[type, Kind] = {}
"""By base class: for all classes of distributions that derive from it."""

NAMED: dict[str, Callable[[type], Kind]] = {}
"""By full name of a base class that may not be imported yet: what makes the kind of a derived class."""

PROVIDERS = {
    "random": "ipyparcache.digest.generators",
    "numpy": "ipyparcache.digest.arrays",
    "pandas": "ipyparcache.digest.frames",
    "scipy": "ipyparcache.digest.arrays",
    "torch": "ipyparcache.digest.tensors",
}
"""Which of our modules registers the kinds of a library's types, imported when such a type is first met."""


class Met(list[object]):
    """Immutable objects that a walk met: a type of its own, as some ask who else holds an object."""


class Numbered:
    """The mutable objects of one root, by number, with what tells whether they changed."""

    __slots__ = ("fixed", "many", "marks", "objects", "together")

    def __init__(self, objects: list[object] | None = None):
        self.objects = [] if objects is None else objects
        self.marks: list[tuple[int, Kind, object]] = []  # of those met here first
        self.many: list[tuple[int, list[Any]]] = []
        """Number of the first, and copies, of plain containers met here first and together."""
        self.together: list[tuple[int, int]] = []  # number of the first, and how many
        self.fixed = Met()  # immutable objects that are told apart, as often as they were met


class Walk:
    """One depth-first walk from a root, writing the stream that is hashed."""

    def __init__(
        self, traversal: Traversal, root: str, isolated: bool = False, above: frozenset[int] = frozenset()
    ):
        self.traversal = traversal
        self.root = root
        self.isolated = isolated  # a walk on the side: it numbers for itself and reports nothing
        self.above = above  # elements of sets, by identity, for whose order this walk is
        self.numbered = Numbered()
        self.out = bytearray()
        self.stack: list[Any] = []
        self.touched = 0  # mutable objects written so far, to tell which tuples are deeply immutable
        self._local: dict[int, int] = {}
        self._hasher = blake3()
        self._opened: list[tuple[bytearray, int, object]] = []
        self._closed: dict[
            int, int
        ] = {}  # immutable containers with mutable content, met before in this root

    def run(self, value: object, definition: Kind | None = None) -> bytes:
        """Digest of what `value` reaches; a class counts by content, not by name, where its kind is given."""
        stack = self.stack
        if definition is not None:
            self._number(value, definition)  # 0, of a root of its own
            definition.write_content(self, value)
        else:
            stack.append(value)
        obj = value
        try:
            while stack:
                obj = stack.pop()
                self.visit(obj)
        except NoDigest as stop:
            where = stop.culprit if stop.culprit is not None else obj
            if self.isolated:
                raise NoDigest(stop.reason, where) from None
            path = find_path(self.root, value, where)
            raise Undigestible(path, type_name(where), stop.reason) from None
        self._hasher.update(self.out)
        return self._hasher.digest()

    def visit(self, obj: Any) -> None:
        """Write one object and push its children."""
        cls = type(obj)
        if cls in PRIMITIVES:
            self.out += dumps(obj, 2) if obj == obj else dumps(_canonical(obj), 2)
            return
        kind = self.traversal.kind_of(cls)
        if kind.mutable:
            if not self._number(obj, kind):
                return
        elif kind.is_told_apart:
            self.numbered.fixed.append(obj)
        kind.write(self, obj)
        if len(self.out) > _LARGE and not self._opened:
            self._hasher.update(self.out)
            self.out.clear()

    def _number(self, obj: object, kind: Kind) -> bool:
        """Number a mutable object; False, with its number written, if it was met before."""
        local = self._local
        known = local.get(id(obj))
        self.touched += 1
        outside = self.traversal.known.get(id(obj)) if self.traversal.known else None
        if outside is not None:
            self.out += b"\xffK" + outside.to_bytes(4, "little")
            self.traversal.known_met.add(outside)
            return False
        if known is not None:
            self.out += b"\xff^" + known.to_bytes(4, "little")
            return False
        number = local[id(obj)] = len(local)
        self.numbered.objects.append(obj)
        if not self.isolated:
            self.traversal.meet(self, obj, kind, number)
        return True

    @property
    def numbers(self) -> dict[int, int]:
        """Number of each object that this walk has met, by its identity."""
        return self._local

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
        self.items(items)

    def items(self, items: Sequence[object]) -> None:
        """Write a number of objects, told beforehand, at once where they are plain, else one by one.

        What is written is a matter of content and inner sharing alone, however it was found out.
        """
        types = set(map(type, items))
        if types <= PRIMITIVES:
            self.pure(without_nan(items))
        elif not self._write_many(items, types):
            self.push(items)

    def _write_many(self, items: Sequence[Any], types: set[type]) -> bool:
        if len(items) < _MANY:
            return False
        if types <= _PRIMITIVES_OR_TUPLE:
            return self._write_tuples(items)
        return len(types) == 1 and types <= _PLAIN and self._write_plain(items)

    def _write_tuples(self, items: Sequence[Any]) -> bool:
        """Write primitives and tuples of primitives; False if something else is in them."""
        inner = list(chain.from_iterable(item for item in items if type(item) is tuple))
        if (
            not is_pure(inner)
            or has_nan(inner)
            or has_nan([item for item in items if type(item) is not tuple])
        ):
            return False
        self.out += b"\xffT"
        self.pure(list(items))
        return True

    def _write_plain(self, items: Sequence[Any]) -> bool:
        """Write many lists or dicts of primitives that are met here first; False if they are not such."""
        if type(items[0]) is list:
            inner = list(chain.from_iterable(items))
        else:
            inner = [*chain.from_iterable(items), *chain.from_iterable(map(dict.values, items))]
        if not is_pure(inner) or has_nan(inner):
            return False
        places = dict.fromkeys(map(id, items))
        if len(places) < len(items) or not self._local.keys().isdisjoint(places):
            return False
        known = self.traversal.known
        if known and not known.keys().isdisjoint(places):
            return False
        first = len(self._local)
        self._local.update(zip(places, range(first, first + len(items)), strict=True))
        self.numbered.objects.extend(items)
        self.touched += len(items)
        if not self.isolated:
            self.traversal.meet_many(self, items, first)
        self.out += b"\xffP"
        self.pure(list(items))
        return True

    def mapping(self, tag: bytes, items: Mapping[Any, object], *facts: object) -> None:
        """Write the items of an exact dict, in order."""
        self.token(tag, len(items), *facts)
        keys = list(items)
        values = list(items.values())
        if is_pure(keys):
            self.pure(without_nan(keys))
            self.items(values)
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
            if id(item) in self.above:
                raise self.fail(
                    "it leads to a set that it is in, so that no order of the set can be told", item
                )
            known = self._local.get(id(item), len(self._local))
            keyed.append((self.apart(item).run(item), known, position))
        keyed.sort()
        self.push([items[position] for _, _, position in keyed])

    def apart(self, *elements: object) -> Walk:
        """A walk on the side, that numbers for itself; from elements of a set, if it is for their order."""
        return Walk(self.traversal, self.root, isolated=True, above=self.above.union(map(id, elements)))

    def definition(self, cls: type) -> None:
        """Write a class by name; one of the notebook or of a local module becomes a root of its own."""
        traversal = self.traversal
        known = traversal.named.get(cls)
        if known is not None:
            self.out += known
        elif is_by_reference(cls):
            start = len(self.out)
            self.token(b"C", module_of(cls), cls.__qualname__)
            if not self.isolated:
                if module_of(cls) != "builtins":
                    traversal.note_module(module_of(cls))
                    traversal.reach_class(cls)
                traversal.named[cls] = bytes(self.out[start:])
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

    def fail(self, reason: str, culprit: object = None) -> NoDigest:
        """The error to raise for an object without a digest."""
        return NoDigest(reason, culprit)


class NoDigest(Exception):
    """Ends a walk at an object without a digest; `run` tells the user where it is."""

    def __init__(self, reason: str, culprit: object = None):
        super().__init__(reason)
        self.reason = reason
        self.culprit = culprit


# ---- primitives and pure containers


def is_pure(items: Iterable[object]) -> bool:
    """Whether all items are of primitive types, exactly."""
    return set(map(type, items)) <= PRIMITIVES


def has_nan(items: Sequence[Any]) -> bool:
    """Whether one of the primitives is NaN."""
    if _WITH_NAN.isdisjoint(map(type, items)):
        return False
    with contextlib.suppress(TypeError, OverflowError):  # strings among them, or integers beyond any float
        total = sum(items)
        if total == total:  # a sum takes a tenth of the time, and is NaN if one of them is
            return False
    return any(map(operator.ne, items, items))


def without_nan(items: Sequence[Any]) -> Sequence[Any]:
    """The same primitives with every NaN replaced by the one canonical NaN."""
    if not has_nan(items):
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


def same(new: object, old: object) -> bool:
    """Whether two own states hold the same children: identical, or equal primitives of one type."""
    if new is old:
        return True
    if type(new) is not type(old):
        return False
    if isinstance(new, (list, tuple)):
        other: Any = old
        if len(new) != len(other):
            return False
        return all(map(operator.is_, new, other)) or all(map(same, new, other))
    if isinstance(new, dict):
        other = old
        return same(list(new), list(other)) and same(list(new.values()), list(other.values()))
    if isinstance(new, (set, frozenset)):
        other = old
        return {id(item) for item in new} == {id(item) for item in other} or (
            is_pure(new) and is_pure(other) and new == other
        )
    if type(new) in PRIMITIVES:
        return dumps(new, 2) == dumps(old, 2)
    return False


class _EndKind(Kind):
    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        walk.end()


class _End:
    pass


_END = _End()


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


def dict_of(obj: Any) -> dict[str, Any]:
    """The `__dict__` of an instance, whatever its class does."""
    own: dict[str, Any] = object.__getattribute__(obj, "__dict__")
    return own


def slots_of(cls: type) -> list[tuple[str, Any]]:
    """Slots that a class and its bases declare, with the descriptors that read and write them."""
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


# ---- what the user is told


def type_name(obj: object) -> str:
    """The type of an object, as a user knows it."""
    cls = type(obj)
    return (
        cls.__qualname__
        if module_of(cls) in ("builtins", "__main__")
        else f"{module_of(cls)}.{cls.__qualname__}"
    )


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
        for content in content_of(cell):
            yield f"{path}.{name}", content
    if cls.__name__ == "function":
        yield from ((f"{path}(default)", item) for item in obj.__defaults__ or ())
    if cls.__dictoffset__ and isinstance(getattr(obj, "__dict__", None), dict):
        yield from ((f"{path}.{name}", item) for name, item in list(dict_of(obj).items()))
    for name, slot in slots_of(cls):
        try:
            yield f"{path}.{name}", slot.__get__(obj)
        except AttributeError:
            continue


def content_of(cell: Any) -> list[object]:
    """The value of a closure's variable, in a list that is empty as long as it was never assigned."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


KINDS[_End] = _EndKind()
