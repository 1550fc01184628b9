"""Code that the user put on classes and modules of distributions: methods, accessors, replaced functions."""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from ipyparcache.digest import modules
from ipyparcache.digest.instances import is_user_definition
from ipyparcache.digest.walk import class_dict, module_of
from ipyparcache.errors import Unrestorable

PATCHES = "patches of "  # root of a distribution's class or module, as far as the user put code into it

# Attributes of library classes as they were when they were last looked through, and what was the user's
# among them.
_looked_through: WeakKeyDictionary[Any, tuple[list[object], dict[str, object]]] = WeakKeyDictionary()


def patches_of(owner: type | ModuleType) -> dict[str, object]:
    """Code that the user put on a class or module of a distribution, by attribute; not to be changed.

    All attributes are looked at again only if one was replaced.
    """
    if isinstance(owner, type) and (not owner.__flags__ & (1 << 9) or modules.is_user_code(module_of(owner))):
        return {}  # not to be patched, or the user's own
    attributes = class_dict(owner) if isinstance(owner, type) else vars(owner)
    now = list(attributes.values())
    known = _looked_through.get(owner)
    if known is not None and len(known[0]) == len(now) and all(map(operator.is_, known[0], now)):
        return known[1]
    found = {name: value for name, value in list(attributes.items()) if is_user_definition(value)}
    _looked_through[owner] = now, found
    return found


def added_to(owner: type) -> dict[str, object]:
    """Code that others than its own distribution put on a class: the user, and other distributions.

    Some of these do it when they are imported, some when they are told to, as by `tqdm.pandas()`.
    """
    own = patches_of(owner)
    looked = _looked_through.get(owner)
    if looked is None:
        return {}
    known = _others.get(owner)
    if known is None or known[0] is not looked[0]:
        top = _distribution_of(module_of(owner))
        attributes = class_dict(owner)
        others = {name: value for name, value in list(attributes.items()) if _is_of_another(value, top)}
        _others[owner] = known = looked[0], others
    return known[1] | own


_others: WeakKeyDictionary[type, tuple[list[object], dict[str, object]]] = WeakKeyDictionary()


def _is_of_another(value: object, top: str) -> bool:
    """Whether a function or accessor is of another distribution than `top`."""
    code = value if isinstance(value, FunctionType) else getattr(value, "_accessor", None)
    if not isinstance(code, FunctionType | type):
        return False
    module = code.__module__
    return (
        isinstance(module, str)
        and _distribution_of(module) != top
        and modules.origin_of(module) == "library"
        and not module.startswith("ipyparcache.")
    )


def _distribution_of(module: str) -> str:
    top = module.partition(".")[0].lstrip("_")  # `_duckdb` is a part of `duckdb`
    return "matplotlib" if top == "mpl_toolkits" else top


def put_patches(owner: type | ModuleType, patches: Mapping[str, object]) -> None:
    """Put such code where it belongs.

    Raises
    ------
    Unrestorable
        If other code was put there that `patches` does not have: what it replaced is not known.
    """
    extra = patches_of(owner).keys() - patches.keys()
    if extra:
        raise Unrestorable(owner.__name__, f"`{min(extra)}` was put on it, in place of something unknown")
    for name, value in patches.items():
        setattr(owner, name, value)


def place_of(owner: type | ModuleType) -> str:
    """The root that a class or module of a distribution is, as far as the user put code on it."""
    if isinstance(owner, ModuleType):
        return f"{PATCHES}{owner.__name__}:"
    return f"{PATCHES}{module_of(owner)}:{owner.__qualname__}"


def owner_at(place: str) -> object:
    """The class or module that such a root stands for."""
    module, _, qualname = place.removeprefix(PATCHES).partition(":")
    found: object = importlib.import_module(module)
    for part in qualname.split(".") if qualname else ():
        found = getattr(found, part)
    return found


def is_same(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Whether the same code stands under the same names."""
    return one.keys() == other.keys() and all(value is other[name] for name, value in one.items())


def patched_in(name: str) -> list[str]:
    """The places of a library's module where the user put code: the module itself, and its classes."""
    module = sys.modules.get(name)
    if module is None or modules.origin_of(name) not in ("library", "standard"):
        return []
    owners: list[type | ModuleType] = [module]
    owners += [value for value in vars(module).values() if isinstance(value, type)]
    return [place_of(owner) for owner in owners if patches_of(owner)]
