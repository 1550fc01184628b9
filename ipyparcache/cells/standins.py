"""What IPython's display functions are on a worker: they tell the kernel, which shows, updates and clears.

The real ones ask for a shell, and print where there is none.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Callable
from typing import Any

from ipyparcache.cells import showing

#: Modules that hold the functions, in one or the other version of IPython.
_MODULES = ("IPython.core.display_functions", "IPython.core.display", "IPython.display")


def display(*objects: object, **options: Any) -> Any:
    """Have the kernel show objects; the handle, if `display_id` asks for one."""
    name = options.get("display_id")
    if name is True:
        name = options["display_id"] = os.urandom(16).hex()
    showing.show(objects, options)
    return _Handle(name) if name else None


class _Handle:
    """What a display is updated by; in the kernel it is IPython's."""

    def __init__(self, display_id: str) -> None:
        self.display_id = display_id

    def display(self, obj: object, **options: Any) -> None:
        """Show something else under this name."""
        display(obj, **options, display_id=self.display_id)

    def update(self, obj: object, **options: Any) -> None:
        """Show something else where this name is shown."""
        update_display(obj, **options, display_id=self.display_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return handle, (self.display_id,)


def handle(display_id: str) -> Any:
    """The handle of this name: IPython's where it is loaded."""
    found = [module for module in map(sys.modules.get, _MODULES) if hasattr(module, "DisplayHandle")]
    return found[0].DisplayHandle(display_id) if found else _Handle(display_id)  # type: ignore[union-attr]


def update_display(obj: object, *, display_id: str, **options: Any) -> None:
    """Have the kernel show something else in the place of this name."""
    display(obj, **options, display_id=display_id, update=True)


def clear_output(wait: bool = False) -> None:
    """Have the kernel clear what the cell has put out so far."""
    showing.emit_event(showing.CLEAR, bool(wait))


def publish_display_data(data: object, metadata: object = None, **options: Any) -> None:
    """Have the kernel show data by MIME type."""
    options = {name: value for name, value in options.items() if name in ("transient", "update")}
    showing.show((data,), {**options, "metadata": metadata, "raw": True})


FUNCTIONS: dict[str, Callable[..., Any]] = {
    made.__name__: made for made in (display, update_display, clear_output, publish_display_data)
}


def stand_in(name: str) -> Callable[..., Any]:
    """The function that stands for IPython's of this name."""
    return FUNCTIONS[name]


def replaced() -> dict[int, tuple[Any, ...]]:
    """By the id of each of IPython's functions, what a pickle for a worker has in its place."""
    return {id(plain): (stand_in, (name,)) for _, name, plain in _plain()}


_taken: list[tuple[Any, str, Any]] = []  # what is to be put back


def put_in_place() -> None:
    """Put the stand-ins where code finds IPython's own."""
    found = _plain()
    if not hasattr(builtins, "display"):
        found.append((builtins, "display", None))
    for module, name, _ in found:
        setattr(module, name, FUNCTIONS[name])
    _taken.extend(found)


def put_back() -> None:
    """Leave the process as it was."""
    for module, name, plain in _taken:
        if plain is None:
            delattr(module, name)
        else:
            setattr(module, name, plain)
    _taken.clear()


def _plain() -> list[tuple[Any, str, Any]]:
    return [
        (module, name, plain)
        for module in map(sys.modules.get, _MODULES)
        if module is not None
        for name, made in FUNCTIONS.items()
        if (plain := getattr(module, name, made)) is not made
    ]
