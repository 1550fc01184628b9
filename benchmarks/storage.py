"""`python -m benchmarks.storage`: `Memory`, `hash`, `dump` and `load`, against joblib, diskcache, cachier and
dask's `tokenize`.

Who is not installed is left out.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

import ipyparcache
from benchmarks.rounds import OURS, Contest, asked, hold, timed
from ipyparcache.storage.entry import close_entries

BOTH = {OURS: ipyparcache, "joblib": joblib}
MEGABYTE = 2**20 // 8  # in float64
FILLED = 10_000
EVICTED = 20_000


def small(number: int, step: int = 1) -> int:
    """A function whose result is small."""
    return number + step


def corner(array: np.ndarray) -> np.ndarray:
    """A function with a large argument."""
    return array[:3] * 2


def ones(megabytes: int) -> np.ndarray:
    """A function with a large result."""
    return np.ones(megabytes * MEGABYTE)


def cachers(folder: Path) -> dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """What keeps the results of a function, by name, each in a folder of its own."""
    found: dict[str, Any] = {
        name: package.Memory(folder / name, verbose=0).cache for name, package in BOTH.items()
    }
    with contextlib.suppress(ImportError):
        import diskcache

        cache = diskcache.Cache(str(folder / "diskcache"), size_limit=2**40)
        found["diskcache"] = lambda function: cache.memoize()(function)
    with contextlib.suppress(ImportError):
        import cachier

        found["cachier"] = lambda function: cachier.cachier(cache_dir=str(folder / "cachier"))(function)
    return found


FIRST = """
    import sys, time
    began = time.perf_counter()
    if sys.argv[1] == "diskcache":
        import diskcache
        cache = diskcache.Cache(sys.argv[2] + "/diskcache").memoize()
    elif sys.argv[1] == "joblib":
        import joblib
        cache = joblib.Memory(sys.argv[2] + "/joblib", verbose=0).cache
    else:
        import ipyparcache
        cache = ipyparcache.Memory(sys.argv[2] + "/ours", verbose=0).cache
    def small(number, step=1):
        return number + step
    cache(small)(1)
    print(time.perf_counter() - began)
"""


def firsts(folder: Path) -> dict[str, Callable[[], float]]:
    """The first hit in a fresh process, its imports included, with compiled code as an installed one has."""
    program = folder / "program.py"
    program.write_text(textwrap.dedent(FIRST), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def first(name: str) -> float:
        command = [sys.executable, str(program), name, str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return float(done.stdout)

    names = [name for name in cachers(folder) if name != "cachier"]
    return {name: lambda name=name: first(name) for name in names}  # type: ignore[misc]


def repeated(call: Callable[[], object], times: int) -> Callable[[], float]:
    """Seconds for one of so many calls."""

    def run() -> float:
        began = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - began) / times

    return run


def hits(
    folder: Path, function: Callable[..., Any], argument: Any, times: int
) -> dict[str, Callable[[], float]]:
    """Calls that are found again."""
    found = {}
    for name, cache in cachers(folder).items():
        if name in ("diskcache", "cachier") and isinstance(argument, np.ndarray):
            continue  # they pickle it whole: 13 s
        cached = cache(function)
        cached(argument)
        found[name] = repeated(lambda cached=cached: cached(argument), times)  # type: ignore[misc]
    return found


def fills(folder: Path) -> dict[str, Callable[[], float]]:
    """Distinct calls that are all stored; each round in a folder of its own."""

    def fill(name: str) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            cached = cachers(Path(fresh))[name](small)
            began = time.perf_counter()
            for number in range(FILLED):
                cached(number)
            taken = time.perf_counter() - began
            close_entries()
        return taken

    names = [name for name in cachers(folder) if name != "cachier"]  # it takes 7 ms a call
    return {name: lambda name=name: fill(name) for name in names}  # type: ignore[misc]


def reads(folder: Path) -> dict[str, Callable[[], float]]:
    """The same calls, all found."""
    found = {}
    for name, cache in cachers(folder).items():
        if name == "cachier":
            continue
        cached = cache(small)
        for number in range(FILLED):
            cached(number)
        found[name] = timed(lambda cached=cached: [cached(number) for number in range(FILLED)])  # type: ignore[misc]
        files = [path for path in (folder / name).rglob("*") if path.is_file()]
        size = sum(path.stat().st_blocks * 512 for path in files)
        print(f"    {name}: {len(files)} files, {size / 1e6:.1f} MB on disk for {FILLED} results", flush=True)
    return found


def reductions(folder: Path) -> dict[str, Callable[[], float]]:
    """Half of many small results taken away."""

    def reduce(name: str) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            memory = BOTH[name].Memory(fresh, verbose=0)
            cached = memory.cache(small)
            for number in range(EVICTED):
                cached(number)
            began = time.perf_counter()
            memory.reduce_size(items_limit=EVICTED // 2)
            taken = time.perf_counter() - began
            close_entries()
        return taken

    def cull() -> float:
        import diskcache

        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            cache = diskcache.Cache(fresh, size_limit=2**40, cull_limit=0)
            cached = cache.memoize()(small)
            for number in range(EVICTED):
                cached(number)
            cache.reset("size_limit", cache.volume() // 2)
            began = time.perf_counter()
            cache.cull()
            return time.perf_counter() - began

    found: dict[str, Callable[[], float]] = {name: lambda name=name: reduce(name) for name in BOTH}  # type: ignore[misc]
    return {**found, "diskcache": cull} if "diskcache" in cachers(folder) else found


def hashes(value: Any) -> dict[str, Callable[[], float]]:
    """Names of one value."""
    found = {
        name: timed(lambda package=package: package.hash(value))  # type: ignore[misc]
        for name, package in BOTH.items()
    }
    with contextlib.suppress(ImportError):
        from dask.base import tokenize

        found["dask"] = timed(lambda: tokenize(value))
    return found


def writes(folder: Path, value: Any, **options: Any) -> dict[str, Callable[[], float]]:
    """One value written to a file."""
    return {
        name: timed(lambda name=name: BOTH[name].dump(value, folder / name, **options))  # type: ignore[misc]
        for name in BOTH
    }


def loads(folder: Path, value: Any, **options: Any) -> dict[str, Callable[[], float]]:
    """One value read from a file."""
    for name, package in BOTH.items():
        package.dump(value, folder / name)
    return {
        name: timed(lambda name=name: BOTH[name].load(folder / name, **options))  # type: ignore[misc]
        for name in BOTH
    }


Maker = Callable[[Path], dict[str, Callable[[], float]]]


def _argument(folder: Path) -> dict[str, Callable[[], float]]:
    return hits(folder, corner, np.random.default_rng(0).random(400 * MEGABYTE), 1)


def _arrays() -> list[np.ndarray]:
    return [np.random.default_rng(n).random(100 * MEGABYTE) for n in range(4)]


def _table() -> dict[str, float]:
    return {str(n): n * 1.5 for n in range(300_000)}


def _compressed(folder: Path) -> dict[str, Callable[[], float]]:
    rounded = [np.round(np.random.default_rng(0).random(40 * MEGABYTE), 3)]
    found = writes(folder, rounded, compress=("zlib", 3))
    found[OURS] = timed(lambda: ipyparcache.dump(rounded, folder / OURS, compress=("zstd", 3)))
    return found


def _frame() -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(0).random((10**6, 10)))


WORKLOADS: list[tuple[str, float | None, Maker]] = [
    ("a hit of a small call", 5, lambda folder: hits(folder, small, 1, 1000)),
    ("a first hit in a fresh process", None, firsts),
    ("10 000 distinct calls filled", 15, fills),
    ("10 000 distinct calls found again", None, reads),
    ("half of 20 000 results evicted", 30, reductions),
    ("a hit with a 400 MB argument", 8, _argument),
    ("a hit that returns 400 MB", 100, lambda folder: hits(folder, ones, 400, 1)),
    ("hash of a 1 GB array", 9, lambda folder: hashes(np.random.default_rng(0).random(1000 * MEGABYTE))),
    ("hash of a frame of 1e6 rows, 10 columns", 15, lambda folder: hashes(_frame())),
    ("hash of a list of 1e6 strings", 15, lambda folder: hashes([str(n) for n in range(10**6)])),
    ("hash of a dict of 1e5", 15, lambda folder: hashes({str(n): (n, float(n)) for n in range(10**5)})),
    ("dump of 400 MB of arrays", 1.5, lambda folder: writes(folder, _arrays())),
    ("load of 400 MB of arrays", 1.5, lambda folder: loads(folder, _arrays())),
    ("load of 400 MB of arrays, mapped", None, lambda folder: loads(folder, _arrays(), mmap_mode="c")),
    ("dump of a dict of 3e5", 10, lambda folder: writes(folder, _table())),
    ("load of a dict of 3e5", None, lambda folder: loads(folder, _table())),
    ("dump of 40 MB compressed, zstd 3 against zlib 3", 5, _compressed),
]
"""What is measured, how many times faster than joblib it shall be, and what makes the contestants."""


def main() -> None:
    """Measure and print."""
    options = asked("benchmarks.storage", rounds=3)
    with tempfile.TemporaryDirectory() as place:
        os.environ.setdefault("XDG_STATE_HOME", place)
        for number, (name, floor, make) in enumerate(WORKLOADS):
            if options.wants(name):
                folder = Path(place) / str(number)
                folder.mkdir()
                hold([Contest(name, make(folder), floor)], options.rounds)
                close_entries()


if __name__ == "__main__":
    main()
