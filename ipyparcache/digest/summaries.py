"""A few words on the roots of a traversal, by which a miss is explained."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ipyparcache.digest.instances import InstanceKind
from ipyparcache.digest.objects import ABSENT, Traversal
from ipyparcache.digest.walk import PRIMITIVES, Walk, module_of, type_name

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
            parts[label] = Walk(traversal, root, isolated=True).run(child).hex()[:16]
    text = repr(value) if type(value) in PRIMITIVES and len(repr(value)) <= 80 else ""
    return Summary(type_name(value), _size_of(value), digest.hex()[:32], parts, text)


def _parts_of(traversal: Traversal, value: object) -> list[tuple[str, object]] | None:
    kind = traversal.kind_of(type(value))
    if hasattr(kind, "parts"):
        labelled: list[tuple[str, object]] = kind.parts(value)
    elif type(value) is dict:
        fits = len(value) <= _MOST_PARTS
        labelled = [(repr(key)[:60], child) for key, child in value.items()] if fits else []
    elif isinstance(kind, InstanceKind):
        labelled = [(f".{name}", child) for name, child in kind.attributes(value)]
    else:
        return None
    return labelled if 0 < len(labelled) <= _MOST_PARTS else None


def _size_of(value: Any) -> str:
    cls = type(value)
    shape = (
        getattr(value, "shape", None)
        if module_of(cls).partition(".")[0] in ("numpy", "pandas", "scipy", "torch")
        else None
    )
    if isinstance(shape, tuple):
        return " x ".join(map(str, shape))
    if cls in (list, tuple, dict, set, frozenset, str, bytes, bytearray, deque):
        return str(len(value))
    return ""
