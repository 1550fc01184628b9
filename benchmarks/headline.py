"""The workloads that a user feels first, against joblib."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import joblib
import numpy as np

import ipyparcache
from benchmarks.rounds import OURS, Contest, repeated, timed
from ipyparcache.digest.objects import digest_of

MEGABYTE = 2**20 // 8  # in float64
COLD = """
import time
began = time.perf_counter()
from {package} import Parallel, delayed
Parallel(n_jobs=2)(delayed(abs)(i) for i in range(2))
print(time.perf_counter() - began)
"""


def nothing(number: int) -> int:
    """A task of no length."""
    return number


def total(array: np.ndarray, start: int) -> float:
    """A task that reads a part of a large argument."""
    return float(array[start : start + 1000].sum())


def filled(megabytes: int, number: int) -> np.ndarray:
    """A task with a large result."""
    return np.full(megabytes * MEGABYTE, float(number))


def small(number: int) -> int:
    """A function whose result is kept."""
    return number + 1


def cold(package: str) -> Callable[[], float]:
    """Import and first parallel call, in a process of their own."""

    def run() -> float:
        command = [sys.executable, "-c", COLD.format(package=package)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return run


def hits(memory: Any) -> Callable[[], float]:
    """Seconds for one hit of a small cached call, over a thousand of them."""
    cached = memory.cache(small)
    cached(1)

    def run() -> float:
        began = time.perf_counter()
        for _ in range(1000):
            cached(1)
        return (time.perf_counter() - began) / 1000

    return run


def both(
    function: Callable[..., object], arguments: Sequence[tuple[Any, ...]]
) -> dict[str, Callable[[], float]]:
    """Calls of one function by either package, with `delayed(f)(i)` in the generator, as people write it."""

    def calls(package: Any) -> object:
        return package.Parallel(n_jobs=2)(package.delayed(function)(*each) for each in arguments)

    return {OURS: timed(lambda: calls(ipyparcache)), "joblib": timed(lambda: calls(joblib))}


@contextmanager
def contests() -> Iterator[list[Contest]]:
    """All of them, with the folders and workers that they need for as long as the block runs."""
    large = np.random.default_rng(0).random(400 * MEGABYTE)
    starts = range(0, 64_000, 1000)

    numbers = [(number,) for number in range(20_000)]
    with ExitStack() as stack:
        stack.callback(ipyparcache.shutdown_workers)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        memories = {
            OURS: ipyparcache.Memory(folder / "ours", verbose=0),
            "joblib": joblib.Memory(folder / "joblib", verbose=0),
        }
        warm = {name: repeated(run, 50) for name, run in both(nothing, numbers[:2]).items()}
        yield [
            Contest("20 000 tasks that do nothing", both(nothing, numbers), floor=3),
            Contest("a call of two tasks, workers warm", warm, floor=40),
            Contest(
                "cold start: import and first call", {OURS: cold(OURS), "joblib": cold("joblib")}, floor=4
            ),
            Contest("400 MB array to 64 tasks", both(total, [(large, at) for at in starts]), floor=3),
            Contest("40 results of 20 MB", both(filled, [(20, number) for number in range(40)]), floor=2.5),
            Contest(
                "one hit of a cached small call", {name: hits(m) for name, m in memories.items()}, floor=5
            ),
            Contest(
                "digest of a 400 MB array",
                {OURS: timed(lambda: digest_of(large)), "joblib": timed(lambda: joblib.hash(large))},
            ),
        ]
