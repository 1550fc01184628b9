"""`python -m benchmarks.engine [--rounds N] [WORDS ...]`: the engine against the other pools of processes.

Every workload of the engine's table, two workers, everybody in turn. The functions are defined here, in
`__main__`, as a notebook's are: they travel by value where the peer does that.
"""

from __future__ import annotations

import compileall
import io
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import psutil
from joblib.externals import loky

import ipyparcache
from benchmarks.rounds import IDEAL, OURS, Contest, Standing, asked, measure, repeated, report, timed
from ipyparcache.parallel.dispatch import Options, Run, Source

try:
    import mpire
except ImportError:
    mpire = None

WORKERS = 2
COLD = {
    OURS: "from ipyparcache import Parallel, delayed\nParallel(2)(delayed(f)(i) for i in range(2))",
    "joblib": "from joblib import Parallel, delayed\nParallel(2)(delayed(f)(i) for i in range(2))",
    "futures": "from concurrent.futures import ProcessPoolExecutor\n"
    "with ProcessPoolExecutor(2) as pool: list(pool.map(f, range(2)))",
}


@dataclass(frozen=True)
class Floors:
    """What ours shall reach.

    Attributes
    ----------
    joblib, others
        How many times as fast as joblib, and as the fastest of the others.
    ideal
        The part of the ideal time over ours.
    at_most
        What it may take: seconds, where nothing else is compared.
    """

    joblib: float | None = None
    others: float | None = None
    ideal: float | None = None
    at_most: float | None = None


def nothing(number: int) -> int:
    """A task of no length."""
    return number


def part(array: Any, start: int) -> float:
    """A task that reads a part of a large argument."""
    return float(array[start * 1000 : start * 1000 + 1000].sum())


def at(container: Any, key: Any) -> Any:
    """A task that looks at one element of a shared container."""
    return container[key]


def filled(number: int) -> np.ndarray:
    """A task with a result of 20 MB, which can be written to where it arrives."""
    return np.full(2_500_000, float(number))


def summed(array: np.ndarray) -> float:
    """A task with an argument of 8 kB."""
    return float(array.sum())


def busy(seconds: float) -> float:
    """A task of pure Python that takes so long."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return seconds


def fails_late(number: int) -> None:
    """The tenth of the tasks of 5 ms raises."""
    busy(0.005)
    if number == 9:
        raise ValueError(number)


def serial(function: Callable[..., Any], rows: list[tuple[Any, ...]]) -> Callable[[], float]:
    """The tasks one after another in this process, their time divided by the workers."""

    def run() -> float:
        began = time.perf_counter()
        for row in rows:
            function(*row)
        return (time.perf_counter() - began) / WORKERS

    return run


def with_bar(function: Callable[..., Any], rows: list[tuple[Any, ...]], shown: bool) -> Callable[[], float]:
    """Ours with a bar that nobody sees, or without one."""

    def run() -> float:
        stderr, sys.stderr = sys.stderr, io.StringIO()
        try:
            return timed(lambda: by_parallel(ipyparcache, function, rows, progress=shown))()
        finally:
            sys.stderr = stderr

    return run


def ours_by_row(function: Callable[..., Any], rows: Any) -> list[Any]:
    """What `%%parallel` uses: a function and its arguments as they are."""
    found: list[Any] = []
    for done in Run(function, Source(rows), Options(n_jobs=WORKERS)):
        found += done.values
    return found


def by_parallel(package: Any, function: Callable[..., Any], rows: Any, **options: Any) -> list[Any]:
    """`Parallel` of either package, with `delayed(f)(i)` in the generator, as people write it."""
    return list(package.Parallel(n_jobs=WORKERS, **options)(package.delayed(function)(*row) for row in rows))


def cold(program: str) -> Callable[[], float]:
    """A fresh interpreter, from its start to the end of its first call."""
    code = f"def f(i): return i\n{program}\nimport time; print(time.time(), flush=True)"

    def run() -> float:
        began = time.time()
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(found.stdout) - began

    return run


@contextmanager
def contests() -> Iterator[list[tuple[Contest, Floors]]]:
    """All of them, with the pools that they need."""
    # An installed package is compiled; a working tree may not be.
    compileall.compile_dir(ipyparcache.__path__[0], quiet=1)
    rng = random.Random(0)
    numbers = [(number,) for number in range(20_000)]
    with ExitStack() as stack:
        stack.callback(ipyparcache.shutdown_workers)
        futures = stack.enter_context(ProcessPoolExecutor(WORKERS))
        own_loky = loky.ProcessPoolExecutor(WORKERS)
        stack.callback(own_loky.shutdown)
        list(futures.map(nothing, range(4)))

        def pools(function: Callable[..., Any], rows: list[tuple[Any, ...]], chunk: int) -> dict[str, Any]:
            columns = list(zip(*rows, strict=True))
            found = {
                OURS: timed(lambda: by_parallel(ipyparcache, function, rows)),
                "joblib": timed(lambda: by_parallel(joblib, function, rows)),
                "futures": timed(lambda: list(futures.map(function, *columns, chunksize=chunk))),
                "loky": timed(lambda: list(own_loky.map(function, *columns, chunksize=chunk))),
            }
            if mpire is not None and chunk == 8:  # forked workers: only where sharing is what is measured
                pool = mpire.WorkerPool(WORKERS)
                found["mpire"] = timed(lambda: pool.map(function, rows, chunk_size=chunk))
            return found

        table: list[tuple[Contest, Floors]] = []

        def add(name: str, contestants: dict[str, Callable[[], float]], **floors: float) -> None:
            table.append((Contest(name, contestants, floors.get("joblib")), Floors(**floors)))

        def of_packages(make: Callable[[Any], Callable[[], float]]) -> dict[str, Callable[[], float]]:
            return {package.__name__: make(package) for package in (ipyparcache, joblib)}

        add("20 000 no-op tasks, Parallel", pools(nothing, numbers, 1000), joblib=3)
        add(
            "20 000 no-op tasks, the dispatch under it",
            {
                OURS: timed(lambda: ours_by_row(nothing, numbers)),
                "futures": timed(lambda: list(futures.map(nothing, range(20_000), chunksize=2500))),
            },
            others=0.7,
        )
        add(
            "a warm call with 2 trivial tasks",
            {name: repeated(run, 50) for name, run in pools(nothing, numbers[:2], 1).items()},
            joblib=40,
            others=2,
            at_most=0.0002,
        )
        add("cold start", {name: cold(text) for name, text in COLD.items()}, joblib=4, others=1.5)

        large = np.random.default_rng(0).random(50_000_000)

        def fresh(call: Callable[[Any], object]) -> Callable[[], float]:
            def run() -> float:
                copy = large.copy()
                copy[0] = time.perf_counter()  # equal arrays would share one copy
                began = time.perf_counter()
                call(copy)
                return time.perf_counter() - began

            return run

        def as_argument(package: Any, data: Any) -> None:
            by_parallel(package, part, ((data, n) for n in range(64)))

        def in_closure(package: Any, data: Any) -> None:
            def inner(number: int) -> float:
                return float(data[number * 1000 : number * 1000 + 1000].sum())

            by_parallel(package, inner, ((n,) for n in range(64)))

        def as_global(package: Any, data: Any) -> None:
            notebook: dict[str, Any] = {"__name__": "__main__", "data": data}
            exec("def read(n): return float(data[n * 1000 : n * 1000 + 1000].sum())", notebook)
            by_parallel(package, notebook["read"], ((n,) for n in range(64)))

        for name, give, floor in (
            ("as an argument", as_argument, 3.0),
            ("in a closure", in_closure, 8.0),
            ("as a global", as_global, 8.0),
        ):
            add(
                f"400 MB to 64 tasks {name}",
                of_packages(lambda p, give=give: fresh(lambda data: give(p, data))),
                joblib=floor,
            )
            add(
                f"the same 400 MB again {name}",
                of_packages(lambda p, give=give: timed(lambda: give(p, large))),
                joblib=9,
            )
        table.append(
            (
                Contest(
                    "memory beyond 400 MB that 16 tasks read",
                    of_packages(
                        lambda p: memory_of(lambda: by_parallel(p, summed, ((large,),) * 16), large.nbytes)
                    ),
                    shown=lambda part: f"{part:.2f}x",
                ),
                Floors(at_most=1.15),
            )
        )
        add("40 results of 20 MB", pools(filled, numbers[:40], 1), joblib=2.5, others=1.8)
        arrays = [(np.random.default_rng(n).random(1000),) for n in range(5000)]
        add("5 000 tasks with 8 kB arrays", pools(summed, arrays, 100), joblib=2, others=1.4)
        items = list(range(1_000_000))
        words = {f"key {n}": f"value {n}" for n in range(100_000)}
        add(
            "a list of 1e6 ints to 32 tasks",
            pools(at, [(items, n) for n in range(32)], 8),
            joblib=8,
            others=1.8,
        )
        add(
            "a dict of 1e5 str to 32 tasks",
            pools(at, [(words, f"key {n}") for n in range(32)], 8),
            joblib=8,
            others=1.8,
        )

        def failing(package: Any, after: bool) -> Callable[[], float]:
            def run() -> float:
                began = time.perf_counter()
                with suppress(ValueError):
                    by_parallel(package, fails_late, ((n,) for n in range(1000)))
                failed = time.perf_counter()
                by_parallel(package, nothing, numbers[:2])
                return time.perf_counter() - failed if after else failed - began

            return run

        # 27.5 ms is what workers forked by hand need: the five tasks of one of them, and a little more.
        add("one of 1 000 tasks raises", of_packages(lambda p: failing(p, False)), at_most=1.2 * 0.0275)
        add("the call after it", of_packages(lambda p: failing(p, True)), at_most=0.002)
        same = [(0.005,)] * 400
        add(
            "400 tasks of 5 ms",
            {**pools(busy, same, 1), IDEAL: serial(busy, same)},
            others=0.99,
            ideal=0.97,
        )
        lengths = [(min(0.1, max(0.0001, rng.lognormvariate(-7, 1.2))),) for _ in range(2000)]
        add(
            "2 000 lognormal tasks",
            {**pools(busy, lengths, 1), IDEAL: serial(busy, lengths)},
            ideal=1 / 1.03,
        )
        short = [(0.0005,)] * 4000
        add(
            "4 000 tasks of 0.5 ms with a bar",
            {OURS: with_bar(busy, short, True), "no bar": with_bar(busy, short, False)},
            others=0.98,
        )
        add(
            "20 000 trivial tasks on threads",
            {
                OURS: timed(lambda: by_parallel(ipyparcache, nothing, numbers, backend="threads")),
                "joblib": timed(lambda: by_parallel(joblib, nothing, numbers, backend="threading")),
            },
            joblib=10,
        )
        yield table


def memory_of(work: Callable[[], object], size: int) -> Callable[[], float]:
    """How many times `size` this process and its children hold while they work, beyond what they held."""

    def run() -> float:
        held: list[int] = [resident()]
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.01):
                held.append(resident())

        watch = threading.Thread(target=look)
        watch.start()
        try:
            work()
        finally:
            over.set()
            watch.join()
        return (max(held) - held[0]) / size

    return run


def resident() -> int:
    """Bytes in memory of this process and its children, what they share counted once."""
    here = psutil.Process()
    total = 0
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.Error, OSError):
            total += process.memory_full_info().pss
    return total


def verdict(contest: Contest, floors: Floors, standings: dict[str, Standing]) -> str:
    """Whether ours is as fast as it shall be, beyond what is said of joblib."""
    ours = standings[OURS].median
    others = {name: one.median for name, one in standings.items() if name not in (OURS, "joblib", IDEAL)}
    lines = []

    def tell(what: str, reached: bool) -> None:
        lines.append(f"\n    floor: {what}, {'reached' if reached else 'MISSED'}")

    if floors.others is not None and others:
        best = min(others, key=lambda name: others[name])
        tell(f"{floors.others:.3g}x {best}", others[best] / ours >= floors.others)
    if floors.ideal is not None:
        part_of_ideal = standings[IDEAL].median / ours
        tell(f"{floors.ideal:.3g} of the ideal ({part_of_ideal:.3f})", part_of_ideal >= floors.ideal)
    if floors.at_most is not None:
        tell(contest.shown(floors.at_most), ours <= floors.at_most)
    return "".join(lines)


def main() -> None:
    """Measure and print."""
    options = asked("benchmarks.engine", rounds=3)
    with contests() as table:
        for contest, floors in table:
            if not options.wants(contest.name):
                continue
            standings = measure(contest, options.rounds)
            print(report(contest, standings), verdict(contest, floors, standings), sep="", flush=True)


if __name__ == "__main__":
    main()
