"""Random generators of its own for each task, the same for any number of workers."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any


class Seeded:
    """A function whose global random generators are set for one task, and put back behind it.

    Each task gets its own child of `np.random.SeedSequence(seed)`: for `random`, for numpy's legacy
    generator, and for torch if it is loaded.
    """

    def __init__(self, function: Callable[..., Any], seed: int | Sequence[int], index: int):
        self.function = function
        self.seed = seed
        self.index = index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        import numpy as np

        words = np.random.SeedSequence(self.seed, spawn_key=(self.index,)).generate_state(8)
        before = random.getstate(), np.random.get_state()
        torch = sys.modules.get("torch")
        torch_before = torch.get_rng_state() if torch is not None else None
        random.seed(int.from_bytes(words[:4].tobytes(), "little"))
        np.random.seed(words[4:])
        if torch is not None:
            torch.manual_seed(int(words[7]))
        try:
            return self.function(*args, **kwargs)
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            if torch is not None:
                torch.set_rng_state(torch_before)
