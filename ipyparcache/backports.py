"""Two helpers of joblib's module of this name, for programs that import them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["concurrency_safe_rename", "make_memmap"]

concurrency_safe_rename = os.replace


def make_memmap(
    filename: str | os.PathLike[str],
    dtype: Any = "uint8",
    mode: Any = "r+",
    offset: int = 0,
    shape: Any = None,
    order: Any = "C",
) -> np.memmap[Any, Any]:
    """A `numpy.memmap`; the parameters are its own."""
    import numpy as np

    return np.memmap(filename, dtype=dtype, mode=mode, offset=offset, shape=shape, order=order)
