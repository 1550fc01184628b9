"""`python -m benchmarks.loops [--rounds N] [WORDS ...]`: a loop under `%%parallel` in a real kernel.

Two workers, from the request to the kernel's being idle again. What it is held to: 400 iterations of 5 ms
reach 0.95 of what two processors could do, which is half of the serial cell's time in the same round;
20 000 iterations of nothing take 3 us each more than the same calls of `Parallel`; the first
result of the first `%%parallel` cell of a kernel whose workers are warm is seen after 30 ms.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cells import Cells
from benchmarks.rounds import IDEAL, OURS, Contest, asked, measure, report

WORKERS = 2
LONG, LENGTH = 400, 0.005  # iterations, and seconds of each
SHORT = 20_000

SETUP = f"""
import time, joblib, ipyparcache

def busy(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return seconds

def nothing(number):
    return number

def by(library, function, arguments):
    return library.Parallel(n_jobs={WORKERS})(library.delayed(function)(given) for given in arguments)
"""

WARM = "out = ipyparcache.Parallel(2)(ipyparcache.delayed(nothing)(i) for i in range(4))"


@contextmanager
def kernel() -> Iterator[Cells]:
    """A kernel of its own with the extension."""
    with tempfile.TemporaryDirectory() as folder:
        cells = Cells(Path(folder))
        try:
            cells.run("%load_ext ipyparcache")
            cells.run(SETUP)
            yield cells
        finally:
            cells.close()


def first_cell() -> float:
    """Seconds to the first result of a kernel's first parallel cell; its workers have run something else."""
    with kernel() as cells:
        cells.run(WARM)
        return cells.first_output(marked("for i in range(2):\n    print(nothing(i))"))


def marked(source: str) -> str:
    """The cell under `%%parallel`."""
    return f"%%parallel -j {WORKERS}\n{source}"


def contests(cells: Cells) -> list[tuple[Contest, Callable[[dict[str, float]], str]]]:
    """The contests, each with what was reached of its aim."""
    long = f"out = []\nfor i in range({LONG}):\n    out.append(busy({LENGTH}))"
    loops = {
        "append": f"out = []\nfor i in range({SHORT}):\n    out.append(nothing(i))",
        "comprehension": f"out = [nothing(i) for i in range({SHORT})]",
    }

    def halved() -> float:
        return cells.run(long) / WORKERS

    def peers(function: str, arguments: str) -> dict[str, Callable[[], float]]:
        return {
            "Parallel": cells.contestant(f"out = by(ipyparcache, {function}, {arguments})"),
            "joblib": cells.contestant(f"out = by(joblib, {function}, {arguments})"),
        }

    table: list[tuple[Contest, Callable[[dict[str, float]], str]]] = [
        (
            Contest(
                f"{LONG} iterations of {LENGTH * 1000:.0f} ms",
                {
                    OURS: cells.contestant(marked(long)),
                    **peers("busy", f"[{LENGTH}] * {LONG}"),
                    IDEAL: halved,
                },
            ),
            share,
        ),
        (Contest("first result of the first parallel cell, warm workers", {OURS: first_cell}), first),
    ]
    for name, source in loops.items():
        contestants = {OURS: cells.contestant(marked(source)), **peers("nothing", f"range({SHORT})")}
        table.append((Contest(f"{SHORT} iterations of nothing, {name}", contestants), extra))
    return table


def share(seconds: dict[str, float]) -> str:
    """Of what the processors could do."""
    reached = seconds[IDEAL] / seconds[OURS]
    return said(f"{reached:.3f} of ideal, aim 0.95", reached >= 0.95)


def extra(seconds: dict[str, float]) -> str:
    """An iteration, beside what `Parallel` needs for it."""
    more = (seconds[OURS] - seconds["Parallel"]) / SHORT * 1e6
    return said(f"{more:.2f} us an iteration more than Parallel, aim 3", more <= 3)


def first(seconds: dict[str, float]) -> str:
    """From the request to what the first iteration prints."""
    return said(f"{seconds[OURS] * 1000:.1f} ms, aim 30", seconds[OURS] <= 0.03)


def said(text: str, reached: bool) -> str:
    """A figure beside its aim."""
    return f"    {text}: {'reached' if reached else 'MISSED'}"


def main() -> None:
    """Measure and print."""
    options = asked("benchmarks.loops", rounds=5)
    with kernel() as cells:
        for contest, verdict in contests(cells):
            if not options.wants(contest.name):
                continue
            standings = measure(contest, options.rounds)
            seconds = {name: standing.median for name, standing in standings.items()}
            print(report(contest, standings), verdict(seconds), sep="\n", flush=True)


if __name__ == "__main__":
    main()
