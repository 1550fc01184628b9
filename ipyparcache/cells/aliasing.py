"""Which objects a loop changes when its statements are replayed, and whether what it reads leads to one."""

from __future__ import annotations

import ast
import gc
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ipyparcache.analysis.body import Site
from ipyparcache.analysis.changing import path_of
from ipyparcache.analysis.codes import globals_of
from ipyparcache.cells.travel import ATOMS, DEFINITIONS

#: What of an object of a library can be read while its items are written: none of it depends on them.
_SHAPE = frozenset({"index", "columns", "shape", "ndim", "size", "dtype"})
_ITEMS_ONLY = frozenset({"iloc", "iat", "flat"})
LOOKED_AT = 2000  # objects of an iterable in which code is looked for before it is drawn from


@dataclass
class Changes:
    """Objects that replayed statements may change in place.

    Attributes
    ----------
    roots
        By the id of the object: the name through which it is changed, and the object, kept alive.
    arrays
        Those of them whose memory another object may share, with their names.
    """

    roots: dict[int, tuple[str, object]] = field(default_factory=dict)
    arrays: list[tuple[str, Any]] = field(default_factory=list)

    def add(self, name: str, obj: object) -> None:
        """One more object that is changed through a name."""
        if type(obj) in ATOMS or isinstance(obj, types.ModuleType):
            return
        self.roots.setdefault(id(obj), (name, obj))
        self.arrays += ((name, array) for array in _memory_of(obj))

    def met_in(self, objects: Iterable[object]) -> str | None:
        """The name through which one of these objects is changed, if there is one."""
        for obj in objects:
            found = self.roots.get(id(obj))
            if found is not None:
                return found[0]
            if self.arrays and _is_array(obj):
                for name, array in self.arrays:
                    if _share(array, obj):
                        return name
        return None


def changes_of(
    sites: Iterable[Site], namespace: Mapping[str, Any], is_user_code: Callable[[object], bool]
) -> Changes:
    """What the sites of a loop may change in place."""
    found = Changes()
    for site in sites:
        for name in site.roots:
            if name not in namespace:
                continue
            layers = list(_layers(namespace[name], _depth(site.statement, name)))
            for obj in layers:
                found.add(name, obj)
            if any(is_user_code(type(obj).__module__) for obj in layers):
                # A method of the notebook's may change whatever it reaches.
                for obj in reached(layers, namespace):
                    if not isinstance(obj, DEFINITIONS):
                        found.add(name, obj)
    return found


def is_apart(owner: object, changed: str, read: str, is_user_code: Callable[[object], bool]) -> bool:
    """Whether the attribute `read` is plain data beside the attribute `changed` of the same object."""
    kind = owner if isinstance(owner, type) else type(owner)
    if not is_user_code(kind.__module__) and kind is not types.SimpleNamespace:
        return read in _SHAPE and changed in _ITEMS_ONLY
    for base in kind.__mro__:
        if base.__module__ != "builtins" and not {"__getattr__", "__getattribute__"}.isdisjoint(vars(base)):
            return False
    for base in kind.__mro__:
        if read in vars(base):
            attribute = vars(base)[read]
            return isinstance(attribute, types.MemberDescriptorType) or not hasattr(attribute, "__get__")
    return True


def reached(values: Iterable[object], namespace: Mapping[str, Any]) -> Iterator[object]:
    """Every object that these lead to: parts, attributes, closures, and the globals that functions name."""
    waiting = deque(values)
    seen: set[int] = set()
    kept: list[object] = []  # what is only made while it is looked at must not share an id
    while waiting:
        obj = waiting.pop()
        kind = type(obj)
        if kind in ATOMS or id(obj) in seen or kind is types.ModuleType or _is_namespace(obj):
            continue
        if isinstance(obj, type) and obj.__module__ != "__main__":
            continue
        seen.add(id(obj))
        kept.append(obj)
        yield obj
        if kind is types.FunctionType:
            waiting.extend(namespace[n] for n in globals_of(obj.__code__) if n in namespace)  # type: ignore[attr-defined]
        waiting.extend(gc.get_referents(obj))
        if isinstance(obj, type | types.FunctionType):
            continue
        if isinstance(type(obj), type):
            waiting.append(type(obj))


def code_in(iterable: object, is_user_code: Callable[[object], bool]) -> list[object]:
    """Functions and classes of the notebook among the first elements of an iterable, whatever it is."""
    found: list[object] = []
    waiting: deque[object] = deque([iterable])
    kept: dict[int, object] = {}
    while waiting and len(kept) < LOOKED_AT:
        obj = waiting.popleft()
        kind = type(obj)
        if kind in ATOMS or id(obj) in kept or isinstance(obj, types.ModuleType | types.FrameType | range):
            continue
        kept[id(obj)] = obj
        code = obj if isinstance(obj, type | types.FunctionType) else kind
        if is_user_code(code.__module__):
            if id(code) not in kept or code is obj:
                found.append(code)
            kept[id(code)] = code
        if isinstance(obj, dict):
            waiting.extend(islice(obj.values(), LOOKED_AT))
        elif isinstance(obj, list | tuple | set | frozenset | deque):
            waiting.extend(islice(obj, LOOKED_AT))
        elif not isinstance(obj, type | types.FunctionType):
            waiting.extend(islice(gc.get_referents(obj), LOOKED_AT))
    return found


def _layers(value: object, depth: int) -> Iterator[object]:
    """A value and its parts down to a depth."""
    layer: list[object] = [value]
    seen: set[int] = set()
    for _ in range(depth + 1):
        following: list[object] = []
        for obj in layer:
            if type(obj) in ATOMS or id(obj) in seen:
                continue
            seen.add(id(obj))
            yield obj
            following += _parts(obj)
        layer = following


def _parts(obj: object) -> list[object]:
    if isinstance(obj, dict):
        return list(obj.values())
    if isinstance(obj, list | tuple | deque | set | frozenset):
        return list(obj)
    if isinstance(obj, types.ModuleType | types.FunctionType):
        return []
    if hasattr(obj, "__dict__") and type(obj).__module__.partition(".")[0] not in ("numpy", "pandas"):
        return [*vars(obj).values(), *gc.get_referents(obj)]
    return []


def _depth(statement: ast.stmt, name: str) -> int:
    """How many steps lie between a name and what the statement changes in place."""
    deepest = 0
    for node in ast.walk(statement):
        match node:
            case ast.Call(func=ast.Attribute(value=owner)):
                deepest = max(deepest, _steps(owner, name))
            case ast.Call(args=[first, *_]):
                deepest = max(deepest, _steps(first, name))
            case ast.AugAssign(target=target):
                deepest = max(deepest, _steps(target, name))
            case ast.Assign(targets=targets):
                places = [p for t in targets for p in (t.elts if isinstance(t, ast.Tuple) else [t])]
                deepest = max(deepest, *(_steps(p, name) - 1 for p in places))
            case ast.Delete(targets=targets):
                deepest = max(deepest, *(_steps(p, name) - 1 for p in targets))
    return deepest


def _steps(node: ast.expr, name: str) -> int:
    path = path_of(node)
    return 0 if path is None or path.root != name else steps_of_path(node)


def steps_of_path(node: ast.expr) -> int:
    """How many attributes, items and calls lie behind the name that a path begins with."""
    steps = 0
    while not isinstance(node, ast.Name):
        match node:
            case ast.Attribute(value=value) | ast.Subscript(value=value):
                node = value
                steps += 1
            case ast.Call(func=ast.Attribute(value=value)):
                node = value
                steps += 1
            case _:
                break
    return steps


def _is_array(obj: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(obj, numpy.ndarray)


def _memory_of(obj: Any) -> Iterator[Any]:
    """Arrays whose memory a change of the object writes to."""
    if _is_array(obj):
        yield obj
        return
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(obj, pandas.DataFrame | pandas.Series):
        columns = [obj] if isinstance(obj, pandas.Series) else [obj.iloc[:, n] for n in range(obj.shape[1])]
        for column in columns:
            values = column.to_numpy()
            if values.dtype.kind != "O":
                yield values


def _share(array: Any, other: Any) -> bool:
    numpy = sys.modules["numpy"]
    return bool(numpy.may_share_memory(array, other))


def _is_namespace(part: object) -> bool:
    return isinstance(part, dict) and "__builtins__" in part
