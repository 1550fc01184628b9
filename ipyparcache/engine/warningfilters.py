"""The filters of `warnings`, in a form that travels without the libraries whose categories they name.

IPython and numpy put filters for categories of their own. To unpickle one of those, a worker would import the
library before its first task: a quarter of a second, for a warning that cannot come up until somebody loads
it.
"""

from __future__ import annotations

import sys
import warnings

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any


class _Named(type):
    """Stands for the category of that name, loaded or not: a filter asks whether a warning's class is one."""

    def __subclasscheck__(cls, category: type) -> bool:
        return any(_name_of(base) == _name_of(cls) for base in category.__mro__)


def _name_of(category: Any) -> tuple[str, str]:
    return category.__module__, category.__qualname__


def take() -> list[tuple[Any, ...]]:
    """The filters that are in place, with module and name for each category."""
    return [
        (action, message, _name_of(category), module, line)
        for action, message, category, module, line in warnings.filters
    ]


def put(filters: list[tuple[Any, ...]]) -> None:
    """Put filters in place that another process took."""
    found: list[Any] = [
        (action, message, _category(*name), module, line) for action, message, name, module, line in filters
    ]
    warnings.filters[:] = found  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _category(module: str, name: str) -> type:
    category = getattr(sys.modules.get(module), name, None)
    if isinstance(category, type) and _name_of(category) == (module, name):
        return category
    return _Named(name, (), {"__module__": module, "__qualname__": name})
