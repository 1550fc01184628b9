"""Code put on classes of libraries by others than their authors: which of it a loop may meet."""

from __future__ import annotations

import importlib
import itertools
import sys
import types
from collections.abc import Iterable, Set
from typing import Any

PATCH = "!"  # before the name of a module of which an attribute is sent


def code_added(
    sent: list[object], known: Set[tuple[str, str]], notebook: Iterable[object]
) -> list[tuple[str, str, object]]:
    """What others than their own distribution have put on classes that the loop may meet; rows of a parcel.

    These are the classes of what is sent, and those of the libraries that are.
    """
    from ipyparcache.digest import patches

    kinds = {type(obj) for obj in sent} | {obj for obj in sent if isinstance(obj, type)}
    libraries = {obj for obj in sent if type(obj) is types.ModuleType}
    if "pandas" in sys.modules and _may_meet_tables(sent, libraries, notebook):
        libraries |= {sys.modules[name] for name in ("pandas", "pandas.api.typing") if name in sys.modules}
    for library in libraries:
        kinds |= {value for value in vars(library).values() if issubclass(type(value), type)}
    owners = {base for kind in kinds for base in kind.__mro__}
    rows: list[tuple[str, str, object]] = []
    for owner in owners:
        place = f"{PATCH}{owner.__module__}:{owner.__qualname__}"
        rows += [(place, n, v) for n, v in patches.added_to(owner).items() if (place, n) not in known]
    return rows


def _may_meet_tables(
    sent: list[object], libraries: Set[types.ModuleType], notebook: Iterable[object]
) -> bool:
    """Whether a loop may come to tables of pandas: the notebook has any, or a library that may make them."""
    from ipyparcache.digest.modules import origin_of

    kinds = {type(thing) for thing in itertools.chain(sent, notebook)}
    modules = {thing for thing in notebook if type(thing) is types.ModuleType} | libraries
    return (
        any(kind.__module__.partition(".")[0] == "pandas" for kind in kinds)
        or any(origin_of(one.__name__) != "standard" and one.__name__ != "numpy" for one in modules)
        or any("pandas" in thing.__code__.co_names for thing in sent if type(thing) is types.FunctionType)
    )


def owner_of(place: str) -> Any:
    """The module or class of a library that a patch is of."""
    module, _, qualname = place.partition(":")
    found: Any = importlib.import_module(module)
    for part in qualname.split(".") if qualname else ():
        found = getattr(found, part)
    return found
