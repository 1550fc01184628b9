"""`python -m benchmarks.digest [--rounds N] [WORDS ...]`: what naming a value by its content costs.

Against joblib's `hash`, which answers a coarser question (it sees neither layouts nor what functions read),
and
against reading the same memory once.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

from benchmarks.rounds import OURS, Contest, asked, hold, timed
from ipyparcache.digest.objects import Traversal, digest_of


def forest() -> RandomForestClassifier:
    """A fitted model of a hundred trees."""
    samples, targets = load_iris(return_X_y=True)
    return RandomForestClassifier(100, random_state=0).fit(samples, targets)


def values() -> dict[str, Callable[[], Any]]:
    """What is digested, by name."""
    numbers = np.random.default_rng(0)
    return {
        "array of 400 MB": lambda: numbers.random(50_000_000),
        "frame of 1e6 x 10": lambda: pd.DataFrame(numbers.random((1_000_000, 10))).copy(),
        "column of 1e6 strings": lambda: pd.DataFrame({"s": [str(n) for n in range(1_000_000)]}),
        "list of 1e6 strings": lambda: [str(n) for n in range(1_000_000)],
        "dict of 1e5": lambda: {str(n): n for n in range(100_000)},
        "list of 1e5 lists": lambda: [[n, str(n)] for n in range(100_000)],
        "forest of 100 trees": forest,
        "a small dict": lambda: {"a": 1, "b": [1, 2, 3], "c": (1, "x")},
    }


def found_unchanged(value: object) -> Callable[[], float]:
    """Time to see after a run that nothing changed in place."""
    traversal = Traversal({})
    traversal.add("value", value)

    def look() -> float:
        began = time.perf_counter()
        assert traversal.changed() == []
        return time.perf_counter() - began

    return look


def contests() -> list[Contest]:
    """One contest a value; the values are made when their turn comes."""
    found = []
    for name, make in values().items():
        value = make()
        contestants = {
            OURS: timed(lambda value=value: digest_of(value, {})),  # type: ignore[misc]
            "changed()": found_unchanged(value),
            "joblib": timed(lambda value=value: joblib.hash(value)),  # type: ignore[misc]
            "pickle": timed(lambda value=value: pickle.dumps(value, 5)),  # type: ignore[misc]
        }
        found.append(Contest(f"digest of: {name}", contestants))
    return found


def main() -> None:
    """Measure and print."""
    options = asked("benchmarks.digest", rounds=3)
    wanted = [c for c in contests() if options.wants(c.name)]
    hold(wanted, options.rounds)


if __name__ == "__main__":
    main()
