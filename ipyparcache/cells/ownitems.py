"""Containers of which each iteration uses the item that its target names: how that item reaches a worker.

Items that may change travel with the element of their iteration, as a part of it, and the worker finds
nothing else under the container's name: what it changes in an item comes home as any change of an element
does. Arrays, and plain items, are there as a whole, and the item is put back.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from ipyparcache.analysis import refusals
from ipyparcache.analysis.ownrows import OwnRows
from ipyparcache.analysis.parfor import Parfor
from ipyparcache.cells.messages import is_plain_sequence
from ipyparcache.cells.plans import refused
from ipyparcache.cells.travel import ATOMS, DEFINITIONS

Way = Literal["whole", "picked"]

_KEYS: type = type({}.keys())
_ITEMS: type = type({}.items())


@dataclass
class OwnItems:
    """The containers of one loop, by the way in which their items reach a worker.

    Attributes
    ----------
    whole
        Those that workers have as a whole: each iteration's item is put back.
    picked
        Those whose items travel with the elements.
    """

    namespace: Mapping[str, Any]
    whole: list[OwnRows] = field(default_factory=list)
    picked: list[OwnRows] = field(default_factory=list)
    _seen: dict[str, set[object]] = field(default_factory=dict)  # keys, where they were not told before

    @classmethod
    def of(cls, parfor: Parfor, namespace: Mapping[str, Any]) -> OwnItems:
        """Those of a loop.

        Raises
        ------
        LoopRefused
            If one changes that is of no known kind.
        """
        found = cls(namespace)
        for rows in parfor.own_rows:
            way = _way_of(rows, namespace.get(rows.root))
            if way == "whole":
                found.whole.append(rows)
            elif way == "picked":
                found.picked.append(rows)
            elif rows.changes:
                raise carried(rows, namespace)
        return found

    @property
    def roots(self) -> set[str]:
        """The names of the containers."""
        return {rows.root for rows in (*self.whole, *self.picked)}

    @property
    def picked_roots(self) -> set[str]:
        """The names of those that do not travel as a whole."""
        return {rows.root for rows in self.picked}

    def give_up(self, rows: OwnRows) -> None:
        """Send a container as a whole after all; nothing in it may change then."""
        self.picked.remove(rows)

    def check_keys(self, iterable: object) -> None:
        """No two iterations may change one item, as far as that can be told before the first."""
        for rows in self.whole:
            if not _are_distinct(rows, iterable, self.namespace[rows.root]):
                raise carried(rows, self.namespace)
        for rows in self.picked:
            keys = _keys_in(rows, iterable)
            if keys is None:
                self._seen[rows.root] = set()
                continue
            container = self.namespace[rows.root]
            with suppress(TypeError):  # what has no hash is no key: the body says so
                places = [_place(container, key) for key in keys]
                if rows.stores and len(set(places)) < len(places):
                    raise carried(rows, self.namespace)
                items = {id(item) for item in _items_at(container, places) if type(item) not in ATOMS}
                if rows.changes and len(items) < sum(
                    type(item) not in ATOMS for item in _items_at(container, places)
                ):
                    raise carried(rows, self.namespace)

    def of_element(self, element: Any) -> tuple[tuple[object, ...], ...]:
        """The items of one iteration, each as a tuple of itself; empty where there is none.

        Raises
        ------
        LoopRefused
            If an earlier iteration had the same key, or an array is asked for what it has not.
        """
        found: list[tuple[object, ...]] = []
        for rows in self.picked:
            container = self.namespace[rows.root]
            key = element if rows.position is None else element[rows.position]
            try:
                item: tuple[object, ...] = (container[key],)
            except (LookupError, TypeError) as error:
                if type(container) is not dict and not (type(container) is list and type(key) is int):
                    raise carried(rows, self.namespace) from error
                item = ()
            seen = self._seen.get(rows.root)
            if seen is not None and rows.stores:
                place = _place(container, key)
                if place in seen:
                    raise carried(rows, self.namespace)
                seen.add(place)
            found.append(item)
        return tuple(found)

    def led_to(self, rows: OwnRows, numbers: Mapping[int, int]) -> bool:
        """Whether objects with these ids, which all iterations read, are items of a container."""
        container = self.namespace[rows.root]
        items = container.values() if type(container) is dict else container
        mutable = (item for item in items if type(item) not in ATOMS and not isinstance(item, DEFINITIONS))
        return id(container) in numbers or any(id(item) in numbers for item in mutable)


def carried(rows: OwnRows, namespace: Mapping[str, Any]) -> Exception:
    """What to raise where iterations may meet in one item."""
    return refused(refusals.CarriedContainer(rows.line, rows.root, rows.line), dict(namespace))


def _way_of(rows: OwnRows, container: Any) -> Way | None:
    """How a container's items reach a worker; None where it is read as any other is."""
    kind = type(container)
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        if not container.dtype.hasobject:
            return "whole" if rows.changes else None
        return "picked" if container.ndim == 1 and not rows.parts else None
    if kind not in (list, dict) or rows.parts:
        return None
    items = list(container.values()) if kind is dict else container
    if not rows.deep and is_plain_sequence(items) and items:
        return "whole" if rows.changes else None
    return "picked"


def _keys_in(rows: OwnRows, iterable: Any) -> list[Any] | None:
    """The keys of all iterations, where the iterable tells them without being drawn from."""
    kind = type(iterable)
    if rows.position is None:
        if kind in (list, tuple, dict, set, frozenset, range, str, _KEYS) or kind.__module__ in _LISTED:
            return list(iterable) if not hasattr(iterable, "__next__") else None
        return None
    if kind is _ITEMS and rows.position == 0:
        return [key for key, _ in iterable]
    if kind in (list, tuple) and all(type(part) is tuple and len(part) > rows.position for part in iterable):
        return [part[rows.position] for part in iterable]
    return None


_LISTED = frozenset({"numpy", "pandas", "pandas.core.indexes.base", "pandas.core.indexes.range"})


def _place(container: Any, key: Any) -> object:
    """The same for all keys of one item."""
    hash(key)
    if type(container) is dict or not isinstance(key, int) or key >= 0:
        return key
    return key + len(container)


def _items_at(container: Any, places: list[Any]) -> list[object]:
    found = []
    for place in places:
        with suppress(LookupError, TypeError):
            found.append(container[place])
    return found


def _are_distinct(rows: OwnRows, iterable: object, container: object) -> bool:
    """Whether every element certainly names another item of a container that travels as a whole."""
    if type(iterable) is range and rows.position is None:
        return type(container) is not dict and (not iterable or min(iterable[0], iterable[-1]) >= 0)
    if type(iterable) is enumerate and rows.position == 0:
        return type(container) is not dict
    if type(container) is not dict:
        return False
    if rows.position is None:
        return isinstance(iterable, dict | _KEYS)
    return isinstance(iterable, _ITEMS) and rows.position == 0
