"""Kinds of Python's own containers and of the small objects that hold others."""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from types import CellType, MappingProxyType, MethodType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, WeakValueDictionary

from ipyparcache.digest.walk import (
    KINDS,
    Kind,
    NoDigest,
    Walk,
    content_of,
    is_pure,
    module_of,
    same,
    type_name,
    without_nan,
)
from ipyparcache.errors import Unrestorable


class PrimitiveKind(Kind):
    """Instances of `int`, `str` and so on: as the value base of classes derived from them."""

    mutable = False
    atomic = True

    def __init__(self, plain: Callable[[Any], Any]):
        self.plain = plain

    def write(self, walk: Walk, obj: Any) -> None:
        walk.visit(self.plain(obj))

    def state(self, obj: Any) -> object:
        return self.plain(obj)

    def put(self, obj: Any, state: Any) -> None:
        if not same(self.plain(obj), state):
            raise Unrestorable(type_name(obj), "its value is fixed when it is made")


class ListKind(Kind):
    """Lists."""

    def write(self, walk: Walk, obj: Any) -> None:
        walk.sequence(b"list", self.state(obj))

    def state(self, obj: Any) -> list[Any]:
        return list.__getitem__(obj, slice(None))

    def put(self, obj: Any, state: Any) -> None:
        list.__setitem__(obj, slice(None), state)


class TupleKind(Kind):
    """Tuples; how often one occurs does not count, unless something in it can change."""

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
        if not same(self.state(obj), state):
            raise Unrestorable(type_name(obj), "a tuple is fixed when it is made")


class DictKind(Kind):
    """Dicts, in their order."""

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
    """Ordered dicts, which keep their order apart from that of `dict`."""

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
    """Dicts with a factory."""

    def write(self, walk: Walk, obj: Any) -> None:
        walk.mapping(b"defaultdict", dict(dict.items(obj)))
        walk.stack.append(obj.default_factory)

    def state(self, obj: Any) -> dict[Any, Any]:
        return {"factory": obj.default_factory, "items": dict(dict.items(obj))}

    def mark(self, walk: Walk, obj: Any) -> object:
        return self.state(obj)

    def put(self, obj: Any, state: Any) -> None:
        super().put(obj, state["items"])
        obj.default_factory = state["factory"]


class SetKind(Kind):
    """Sets, in no order."""

    def write(self, walk: Walk, obj: Any) -> None:
        walk.unordered(b"set", list(set.__iter__(obj)))

    def state(self, obj: Any) -> set[Any]:
        return set(set.__iter__(obj))

    def put(self, obj: Any, state: Any) -> None:
        set.clear(obj)
        set.update(obj, state)


class FrozenSetKind(Kind):
    """Frozen sets, in no order."""

    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        walk.unordered(b"frozenset", list(frozenset.__iter__(obj)))

    def state(self, obj: Any) -> object:
        return frozenset(frozenset.__iter__(obj))

    def put(self, obj: Any, state: Any) -> None:
        if not same(self.state(obj), state):
            raise Unrestorable(type_name(obj), "a frozenset is fixed when it is made")


class ByteArrayKind(Kind):
    """Byte arrays."""

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"bytearray")
        walk.pure(bytes(memoryview(obj)))

    def state(self, obj: Any) -> object:
        return bytes(memoryview(obj))

    def put(self, obj: Any, state: Any) -> None:
        bytearray.__setitem__(obj, slice(None), state)


class DequeKind(Kind):
    """Deques with their greatest length."""

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
    atomic = True

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

    def __init__(self, tag: bytes, parts_of: Callable[[Any], Sequence[object]], atomic: bool = False):
        self.tag = tag
        self.atomic = atomic
        self.is_told_apart = not atomic
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
        return content_of(obj)

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
    """Dicts with weak keys or values: what they hold now."""

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
    """Weak sets: what they hold now."""

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


class IteratorKind(Kind):
    """Iterators over builtin sequences: the sequence, and how far they are."""

    def write(self, walk: Walk, obj: Any) -> None:
        state = self.state(obj)
        walk.token(b"iterator", type(obj).__name__, state["at"])
        walk.stack.append(state["over"])
        walk.keep(state)

    def state(self, obj: Any) -> dict[str, Any]:
        _, (over, *_rest), *at = obj.__reduce__()
        return {"over": over, "at": at[0] if at else None}  # without a position: it came to its end

    def put(self, obj: Any, state: Any) -> None:
        now = self.state(obj)
        if state["at"] is None:
            for _ in obj:
                pass
        elif now["at"] is None or not same(now["over"], state["over"]):
            raise Unrestorable(type_name(obj), "it is over something else, or came to its end")
        else:
            obj.__setstate__(state["at"])


class RangeIteratorKind(Kind):
    """Iterators over ranges: what is left of the range. How far they came is told from Python 3.12 on by the
    range that they name, before that by a position in it.
    """

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"range iterator", *self.state(obj)["left"])

    def _left(self, obj: Any) -> tuple[range, int]:
        _, (over, *_rest), *at = obj.__reduce__()
        position = at[0] if at and at[0] is not None else 0
        return over[position:], position

    def state(self, obj: Any) -> dict[str, Any]:
        left, _ = self._left(obj)
        return {"left": (left.start, left.stop, left.step)}

    def put(self, obj: Any, state: Any) -> None:
        (left, position), wanted = self._left(obj), range(*state["left"])
        further = (wanted.start - left.start) // left.step if left != wanted else 0
        if further < 0 or left[further:] != wanted:
            raise Unrestorable(type_name(obj), "it is over something else, or came further")
        obj.__setstate__(position + further)


class CountKind(Kind):
    """`itertools.count` over whole numbers, as it numbers objects: told by its text, set by counting on."""

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"count", self.state(obj))

    def state(self, obj: Any) -> str:
        text = repr(obj)
        if _COUNT.fullmatch(text) is None:
            raise NoDigest("it counts in something else than numbers", obj)
        return text

    def put(self, obj: Any, state: Any) -> None:
        (now, step), (wanted, wanted_step) = _counted(self.state(obj)), _counted(state)
        further, rest = divmod(wanted - now, step) if step else (0, wanted - now)
        if step != wanted_step or further < 0 or rest:
            raise Unrestorable(type_name(obj), "it came further, or counts otherwise")
        deque(itertools.islice(obj, further), maxlen=0)


_COUNT = re.compile(r"count\(([-+.\w]+)(?:, ([-+.\w]+))?\)")


def _counted(text: str) -> tuple[int, int]:
    """Next number and step of a count."""
    told = _COUNT.fullmatch(text)
    try:
        return (0, 0) if told is None else (int(told[1]), int(told[2] or 1))
    except ValueError:
        raise Unrestorable("itertools.count", "it does not count in whole numbers") from None


class LazyKind(Kind):
    """`zip`, `map`, `filter`: what they draw from moves on, they themselves hold nothing that does."""

    def write(self, walk: Walk, obj: Any) -> None:
        parts = self.state(obj)
        walk.token(b"lazy", type(obj).__name__, len(parts))
        walk.push(parts)

    def state(self, obj: Any) -> list[Any]:
        return [part for more in obj.__reduce__()[1:] for part in (more if type(more) is tuple else (more,))]

    def put(self, obj: Any, state: Any) -> None:
        if not same(self.state(obj), state):
            raise Unrestorable(type_name(obj), "it draws from something else")


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
        defaultdict: DefaultDictKind(),
        deque: DequeKind(),
        type(Ellipsis): ConstantKind(),
        type(NotImplemented): ConstantKind(),
        object: ObjectKind(),
        re.Match: PartsKind(b"match", lambda obj: (obj.re, obj.string, obj.pos, obj.endpos, obj.regs)),
        range: PartsKind(b"range", lambda obj: (obj.start, obj.stop, obj.step), atomic=True),
        slice: PartsKind(b"slice", lambda obj: (obj.start, obj.stop, obj.step)),
        MethodType: PartsKind(b"method", lambda obj: (obj.__func__, obj.__self__)),
        MappingProxyType: PartsKind(b"mappingproxy", lambda obj: (dict(obj),)),
        CellType: CellKind(),
        ReferenceType: WeakRefKind(),
        WeakValueDictionary: WeakMappingKind(b"WeakValueDictionary"),
        WeakKeyDictionary: WeakMappingKind(b"WeakKeyDictionary"),
        WeakSet: WeakSetKind(),
        BaseException: ExceptionKind(),
    }
)
_ITERATORS: tuple[object, ...] = (
    *map(iter, ([], (), "a", "\xff", b"")),
    reversed([]),
)
KINDS.update(dict.fromkeys(map(type, _ITERATORS), IteratorKind()))
KINDS.update(dict.fromkeys(map(type, map(iter, (range(0), range(1 << 70)))), RangeIteratorKind()))
KINDS.update(dict.fromkeys((zip, map, filter), LazyKind()))
KINDS[itertools.count] = CountKind()
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
for _view in _VIEWS:
    KINDS[_view] = PartsKind(_view.__name__.encode(), lambda obj: (obj.mapping,))
