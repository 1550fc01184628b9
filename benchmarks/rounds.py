"""Several ways to do one thing, measured in turn, so that a loaded machine is unkind to all of them alike.

Each begins when the machine has come to rest from the one before: who still starts or ends workers, as after
an error, would slow whoever follows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

OURS = "ipyparcache"
IDEAL = "ideal"  # what no pool can beat: the tasks one after another, divided by the workers


def milliseconds(seconds: float) -> str:
    """A duration with three digits that mean something."""
    value = seconds * 1000
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


@dataclass(frozen=True)
class Contest:
    """One workload and those who do it.

    Attributes
    ----------
    name
        What is measured, in a few words.
    contestants
        By name, a function that does the work once and gives the seconds that count; ours is called `OURS`.
    floor
        How many times ours shall be faster than joblib at least; None where nothing was promised.
    shown
        How a figure is written; seconds are what is compared if nothing else is said.
    """

    name: str
    contestants: dict[str, Callable[[], float]]
    floor: float | None = None
    shown: Callable[[float], str] = milliseconds


@dataclass(frozen=True)
class Standing:
    """What one contestant needed: the median of its rounds, and the fastest, in seconds."""

    median: float
    fastest: float


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """The work as a contestant whose whole duration counts."""

    def run() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return run


def repeated(run: Callable[[], float], times: int) -> Callable[[], float]:
    """A contestant that runs so often in a row, as short work does where it matters; seconds of one run."""

    def runs() -> float:
        return statistics.median(run() for _ in range(times))

    return runs


def rest() -> None:
    """Wait until the processors have next to nothing to do, half a second at most."""
    until = time.monotonic() + 0.5
    while psutil.cpu_percent(interval=0.05) > 15 and time.monotonic() < until:
        pass


def measure(contest: Contest, rounds: int) -> dict[str, Standing]:
    """Run everybody once without counting, then in turn; each round begins with another one."""
    names = list(contest.contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        contest.contestants[name]()
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            rest()
            seconds[name].append(contest.contestants[name]())
    return {name: Standing(statistics.median(taken), min(taken)) for name, taken in seconds.items()}


def report(contest: Contest, standings: dict[str, Standing]) -> str:
    """One line for each contestant, with its ratio to ours; below one means faster than ours."""
    ours = standings[OURS].median
    lines = [contest.name]
    for name, standing in sorted(standings.items(), key=lambda item: item[1].median):
        ratio = "" if name == OURS else f"{standing.median / ours:6.2f}x ours"
        times = f"{contest.shown(standing.median):>11} median {contest.shown(standing.fastest):>11} fastest"
        lines.append(f"    {name:14}{times}  {ratio}".rstrip())
    joblib = standings.get("joblib")
    if contest.floor is not None and joblib is not None:
        verdict = "reached" if joblib.median / ours >= contest.floor else "MISSED"
        lines.append(f"    floor: {contest.floor:.3g}x joblib, {verdict}")
    return "\n".join(lines)


def hold(contests: list[Contest], rounds: int) -> None:
    """Measure the contests one after the other and print each as soon as it is known."""
    for contest in contests:
        print(report(contest, measure(contest, rounds)), flush=True)


def machine() -> str:
    """On what the figures were taken, for the head of the table."""
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    return f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, load before: {load}"


@dataclass(frozen=True)
class Asked:
    """What a command line asks for: how many rounds, and parts of the names of contests; all without them."""

    rounds: int
    words: list[str]

    def wants(self, name: str) -> bool:
        """Whether the contest of this name is to be held."""
        return not self.words or any(word in name for word in self.words)


def asked(module: str, rounds: int) -> Asked:
    """Read the command line of `python -m module`, where so many rounds are usual, and name the machine."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("words", nargs="*", help="parts of the names of the contests; all without them")
    parser.add_argument("--rounds", type=int, default=rounds)
    options = parser.parse_args()
    print(machine(), flush=True)
    return Asked(options.rounds, options.words)
