"""The workloads that a user feels first, against joblib."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import joblib
import numpy as np

import ipyparcache
from benchmarks.rounds import OURS, Contest, timed
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


def cold_start(package: str) -> Callable[[], float]:
    """Import and first parallel call, in a process of their own."""

    def run() -> float:
        command = [sys.executable, "-c", COLD.format(package=package)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return run


def hits(memory: object) -> Callable[[], float]:
    """Seconds for one hit of a small cached call, over a thousand of them."""
    cached = memory.cache(small)  # type: ignore[attr-defined]
    cached(1)

    def run() -> float:
        began = time.perf_counter()
        for _ in range(1000):
            cached(1)
        return (time.perf_counter() - began) / 1000

    return run


def both(work: Callable[[object], object]) -> dict[str, Callable[[], float]]:
    """The same work done with each of the two packages, which have the same interface."""
    return {OURS: timed(lambda: work(ipyparcache)), "joblib": timed(lambda: work(joblib))}


@contextmanager
def contests() -> Iterator[list[Contest]]:
    """All of them, with the folders and workers that they need for as long as the block runs."""
    large = np.random.default_rng(0).random(400 * MEGABYTE)
    starts = range(0, 64_000, 1000)

    def calls(
        package: object, function: Callable[..., object], arguments: list[tuple[object, ...]]
    ) -> object:
        delayed = package.delayed(function)  # type: ignore[attr-defined]
        return package.Parallel(n_jobs=2)(delayed(*each) for each in arguments)  # type: ignore[attr-defined]

    numbers = [(number,) for number in range(20_000)]
    with ExitStack() as stack:
        stack.callback(ipyparcache.shutdown_workers)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        memories = {
            OURS: ipyparcache.Memory(folder / "ours", verbose=0),
            "joblib": joblib.Memory(folder / "joblib", verbose=0),
        }
        yield [
            Contest("20 000 tasks that do nothing", both(lambda p: calls(p, nothing, numbers)), 0.4),
            Contest(
                "a call of two tasks, workers warm", both(lambda p: calls(p, nothing, numbers[:2])), 0.05
            ),
            Contest(
                "cold start: import and first call",
                {OURS: cold_start(OURS), "joblib": cold_start("joblib")},
                0.3,
            ),
            Contest(
                "400 MB array to 64 tasks",
                both(lambda p: calls(p, total, [(large, at) for at in starts])),
                0.35,
            ),
            Contest(
                "40 results of 20 MB",
                both(lambda p: calls(p, filled, [(20, each) for each in range(40)])),
                0.4,
            ),
            Contest("one hit of a cached small call", {name: hits(m) for name, m in memories.items()}, 0.25),
            Contest(
                "digest of a 400 MB array",
                {OURS: timed(lambda: digest_of(large)), "joblib": timed(lambda: joblib.hash(large))},
                0.3,
            ),
        ]
