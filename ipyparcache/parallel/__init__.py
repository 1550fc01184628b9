"""The joblib-shaped front; its names are found here, too, as programs import them from `joblib.parallel`."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from ipyparcache.parallel import front

    if name not in front.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(front, name)
