"""Filters for warnings: those that the user set, by a call or by hand, and Python's own that are gone.

Libraries set filters as they are imported, and thousands more for a moment each; theirs are no inputs. They
all call the functions of `warnings`, so that what stands there and was not seen to come from a library is the
user's.
"""

from __future__ import annotations

import functools
import operator
import sys
import warnings
from collections.abc import Callable
from typing import Any

from ipyparcache.digest import modules, openfiles
from ipyparcache.digest.askers import is_asked_by_user

Filter = tuple[Any, ...]  # action, pattern of the message, category, pattern of the module, line

_PYTHONS: tuple[Filter, ...] = (
    ("default", None, DeprecationWarning, "__main__", 0),
    ("ignore", None, DeprecationWarning, None, 0),
    ("ignore", None, PendingDeprecationWarning, None, 0),
    ("ignore", None, ImportWarning, None, 0),
    ("ignore", None, ResourceWarning, None, 0),
)
_PASSING = 2000  # filters of libraries that are kept until somebody looks which of them stand

_is_begun = False
_own: tuple[Filter, ...] = ()  # Python's own that stood there at the beginning
_others: dict[int, Filter] = {}  # that the user did not set, by identity, which keeping them makes theirs
_passing: dict[int, Filter] = {}  # the same, and most of them are gone by now
_last: tuple[list[Filter], list[str]] | None = None  # the filters that stood there, and what was told of them


def begin(user_cells_ran: bool) -> None:
    """Take the filters that stand here for those of Python and of libraries.

    Parameters
    ----------
    user_cells_ran : bool
        Whether cells ran before, which may have set those that nothing but a category of Python's limits.
    """
    global _is_begun, _own, _last
    _is_begun, _last = True, None
    _own = tuple(one for one in _PYTHONS if one in warnings.filters)
    _others.clear()
    _passing.clear()
    for one in warnings.filters:
        if not (user_cells_ran and _may_be_users(one)):
            _others[id(one)] = one


def end() -> None:
    """Tell of no filters any more, as nobody sees who sets them."""
    global _is_begun
    _is_begun = False


def _may_be_users(one: Filter) -> bool:
    _, message, category, module, _ = one
    name = category.__module__
    return (
        one not in _PYTHONS
        and message is None
        and module is None
        and (name == "builtins" or modules.is_user_code(name))
    )


def facts() -> list[str]:
    """Filters that the user set, in order, Python's own that are gone, and what `PYTHONWARNINGS` says."""
    global _last
    if not _is_begun:
        return []
    now: list[Filter] = list(warnings.filters)
    if _last is not None and len(now) == len(_last[0]) and all(map(operator.is_, now, _last[0])):
        return _last[1]  # each cell asks
    _keep_those_that_stand()
    told = [_text(one) for one in now if id(one) not in _others]
    told += [f"not {_text(one)}" for one in _own if one not in now]
    told += [f"as started with {option}" for option in sys.warnoptions]
    _last = now, told
    return told


def capture() -> list[tuple[Filter, bool]]:
    """All filters, and whether each is the user's."""
    facts()
    return [(one, id(one) not in _others) for one in warnings.filters]


def restore(captured: list[tuple[Filter, bool]]) -> None:
    """Put these filters in place of those that stand there."""
    standing = [one for one in warnings.filters if id(one) in _others]
    found = []
    for one, is_users in captured:
        if not is_users:
            one = next((other for other in standing if other == one), one)
            _others[id(one)] = one
        found.append(one)
    warnings.filters[:] = found  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _text(one: Filter) -> str:
    try:
        action, message, category, module, line = one
        name = f"{category.__module__}.{category.__qualname__}"
    except (AttributeError, TypeError, ValueError):  # put in by hand, and no filter
        return repr(one)
    return repr((action, _pattern(message), name, _pattern(module), line))


def _pattern(part: Any) -> object:
    return (part.pattern, part.flags) if hasattr(part, "pattern") else part


def _keep_those_that_stand() -> None:
    for one in warnings.filters:
        if id(one) in _passing:
            _others[id(one)] = one
    _passing.clear()


def noting_others(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A function that sets a filter, wrapped so that filters of libraries are known."""

    @functools.wraps(plain)
    def set_filter(*arguments: Any, **options: Any) -> Any:
        users = True
        with openfiles.bookkeeping():
            users = is_asked_by_user(sys._getframe(1))
        before = [*warnings.filters[:1], *warnings.filters[-1:]]
        result = plain(*arguments, **options)
        if not users:  # libraries do this thousands of times, and take it back
            for one in (*warnings.filters[:1], *warnings.filters[-1:]):
                if not any(one is earlier for earlier in before):
                    _passing[id(one)] = one
            if len(_passing) > _PASSING:
                _keep_those_that_stand()
        return result

    return set_filter
