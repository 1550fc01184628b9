"""A few words on the roots of a traversal, by which a miss is explained."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from ipyparcache.digest.instances import InstanceKind
from ipyparcache.digest.modules import is_user_code
from ipyparcache.digest.objects import ABSENT, Traversal
from ipyparcache.digest.walk import PRIMITIVES, NoDigest, Walk, class_dict, module_of, type_name

_MOST_OBJECTS = 100_000  # that a root with parts reaches
_MOST_PARTS = 1000


@dataclass
class Summary:
    """A few words on a root, to explain a miss: JSON-able by `vars`."""

    type: str
    size: str
    digest: str
    parts: dict[str, str] = field(default_factory=dict)
    text: str = ""


def summary_of(traversal: Traversal, root: str) -> Summary:
    """The type and size of a root, and digests of its columns or top-level items."""
    value = traversal.value_of(root)
    digest = traversal.digests[root]
    if digest == ABSENT:
        return Summary("absent", "", "")
    if traversal.stands_for_code(root):
        is_version = root.startswith("package ")
        return Summary("", "", digest.hex()[:32], text=digest.decode(errors="replace") if is_version else "")
    parts: dict[str, str] = {}
    labelled = _parts_of(traversal, value)
    if labelled is not None and traversal.count_of(root) <= _MOST_OBJECTS:
        for label, child in labelled:
            with suppress(NoDigest):  # of a part alone that the root knows how to do without
                parts[label] = Walk(traversal, root, isolated=True).run(child).hex()[:16]
    text = repr(value) if type(value) in PRIMITIVES and len(repr(value)) <= 80 else ""
    return Summary(type_name(value), _size_of(value), digest.hex()[:32], parts, text)


def _parts_of(traversal: Traversal, value: object) -> list[tuple[str, object]] | None:
    kind = traversal.kind_of(type(value))
    labelled: list[tuple[str, object]]
    if isinstance(value, FunctionType | type) and not is_user_code(value.__module__):
        return None  # the version of its package stands for it
    if isinstance(value, FunctionType):
        labelled = list(_parts_of_function(value))
    elif isinstance(value, type):
        labelled = [
            (name, part)
            for name, part in class_dict(value).items()
            if name not in _OF_EVERY_CLASS and not _is_enums_own(name)
        ]
    elif hasattr(kind, "parts"):
        labelled = kind.parts(value)
    elif type(value) is dict:
        fits = len(value) <= _MOST_PARTS
        labelled = [(repr(key)[:60], child) for key, child in value.items()] if fits else []
    elif isinstance(kind, InstanceKind):
        labelled = [(f".{name}", child) for name, child in kind.attributes(value)]
    else:
        return None
    return labelled if 0 < len(labelled) <= _MOST_PARTS else None


_OF_EVERY_CLASS = frozenset(
    {
        "__dict__",
        "__weakref__",
        "__module__",
        "__doc__",
        "__qualname__",
        "__firstlineno__",
        "__static_attributes__",
        "_abc_impl",
    }
)


def _is_enums_own(name: str) -> bool:
    """Whether `enum` or `abc` keep something of theirs under this name, as `_member_map_`."""
    return name.startswith("_") and name.endswith("_") and not name.startswith("__")


def _parts_of_function(function: FunctionType) -> Iterator[tuple[str, object]]:
    code = function.__code__
    yield "the code", code
    positional = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    for name, value in zip(positional[len(positional) - len(defaults) :], defaults, strict=False):
        yield f"the default of {name}", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"the default of {name}", value
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        with suppress(ValueError):  # not filled yet
            yield f"{name}, which it closes over,", cell.cell_contents
    for name, value in vars(function).items():
        if name != "__wrapped__":
            yield f"its attribute {name}", value


def _size_of(value: Any) -> str:
    cls = type(value)
    shape = (
        getattr(value, "shape", None)
        if module_of(cls).partition(".")[0] in ("numpy", "pandas", "scipy", "torch")
        else None
    )
    if isinstance(shape, tuple):
        return " ".join([" x ".join(map(str, shape)), str(getattr(value, "dtype", ""))]).rstrip()
    if cls in (list, tuple, dict, set, frozenset, str, bytes, bytearray, deque):
        return str(len(value))
    return ""
