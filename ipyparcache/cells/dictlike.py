"""Dicts of classes of their own: their attributes, which pickle drops, or parts from their items."""

from __future__ import annotations

import functools
from typing import Any

_BUNCHES = frozenset({"sklearn.utils", "sklearn.utils._bunch"})  # drop their attributes when they are loaded


def with_itself(kind: Any) -> Any:
    """A dict whose attributes are its items (`self.__dict__ = self`)."""
    made = kind.__new__(kind)
    made.__dict__ = made
    return made


def empty(kind: Any) -> Any:
    """An object of the class without anything in it."""
    return kind.__new__(kind)


def set_attributes(made: Any, attributes: dict[str, object]) -> None:
    """Give an object its attributes, whatever its class does of it."""
    vars(made).update(attributes)


def reduced(obj: dict[Any, Any]) -> tuple[Any, ...] | None:
    """How such a dict is pickled where its class loses something; None for all others."""
    kind = type(obj)
    if not _is_plainly_pickled(kind):
        return None
    attributes = getattr(obj, "__dict__", None)
    if attributes is obj:
        return with_itself, (kind,), None, None, iter(dict.items(obj))
    if kind.__name__ == "Bunch" and kind.__module__ in _BUNCHES and attributes:
        return empty, (kind,), attributes, None, iter(dict.items(obj)), set_attributes
    return None


@functools.lru_cache(maxsize=1024)
def _is_plainly_pickled(kind: Any) -> bool:
    """Whether a class says nothing itself of how its objects are taken apart."""
    own = {"__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__", "__getstate__"}
    return not any(own & vars(base).keys() for base in kind.__mro__ if base is not object)
