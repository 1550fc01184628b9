"""Warnings that Python shows once for each place: which of the local modules' were shown already.

A module keeps them in its `__warningregistry__`, until somebody sets a filter. That of the notebook IPython
forgets before each cell.
"""

from __future__ import annotations

import contextlib
from _warnings import warn_explicit
from collections.abc import Iterable, Mapping
from types import CodeType, FunctionType
from typing import Any

from blake3 import blake3

from ipyparcache.digest import modules

REGISTRY = "__warningregistry__"
Key = tuple[Any, ...]  # text, category, mostly the line
Shown = dict[str, frozenset[Key]]  # by module


class _Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise LookupError("this one is not to be shown")


class _Probe(Warning, metaclass=_Nameless):
    """A warning that cannot be shown, as that asks for the name of its class."""


_probed: dict[Any, Any] = {}
_PROBED: Key = ("", _Probe, 1)


def _version() -> object:
    """Which filters are in force: a registry of another version is empty as soon as somebody asks it."""
    with contextlib.suppress(LookupError, _Probe):  # if it was not up to date, as it is then
        warn_explicit("", _Probe, "", 1, __name__, _probed)
    _probed[_PROBED] = True
    return _probed.get("version")


def shown() -> Shown:
    """The warnings that will not be shown again."""
    found: Shown = {}
    for name, module in modules.loaded_local():
        registry = vars(module).get(REGISTRY)
        if registry and registry.get("version") == _version():
            found[name] = frozenset(key for key in registry if key != "version")
    return found


def new_in(now: Shown, before: Shown) -> Shown:
    """Those that were shown since."""
    new = {name: keys - before.get(name, frozenset()) for name, keys in now.items()}
    return {name: keys for name, keys in new.items() if keys}


def inside(warnings: Shown, functions: Iterable[FunctionType]) -> Shown:
    """Those that these functions may show, by the lines on which they stand."""
    lines: dict[str, set[int]] = {}
    for function in functions:
        lines.setdefault(function.__module__, set()).update(_lines_of(function.__code__))
    return {
        name: frozenset(key for key in keys if len(key) < 3 or not key[2] or key[2] in lines[name])
        for name, keys in warnings.items()
        if name in lines
    }


def _lines_of(code: CodeType) -> set[int]:
    found = {line for _, _, line in code.co_lines() if line is not None}
    return found.union(*(_lines_of(one) for one in code.co_consts if isinstance(one, CodeType)))


def names_of(warnings: Mapping[str, Iterable[Key]]) -> set[str]:
    """A name for each of them, the same in every process."""
    return {f"{name} {_digest(key)}" for name, keys in warnings.items() for key in keys}


def _digest(key: Key) -> str:
    said = [
        f"{part.__module__}.{part.__qualname__}" if isinstance(part, type) else repr(part) for part in key
    ]
    return blake3("\n".join(said).encode("utf-8", "surrogatepass")).hexdigest(8)


def note_shown(warnings: Mapping[str, Iterable[Key]]) -> None:
    """Have these count as shown."""
    loaded = dict(modules.loaded_local())
    for name, keys in warnings.items():
        if name not in loaded:
            continue
        registry = vars(loaded[name]).setdefault(REGISTRY, {})
        version = _version()
        if registry.get("version") != version:
            registry.clear()
            registry["version"] = version
        registry.update(dict.fromkeys(keys, True))
