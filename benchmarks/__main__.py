"""`python -m benchmarks [--rounds N] [WORDS ...]`: measure the contests whose names hold one of the words."""

from __future__ import annotations

import argparse

from benchmarks.headline import contests
from benchmarks.rounds import hold, machine


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("words", nargs="*", help="parts of the names of the contests; all without them")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(machine(), flush=True)
    with contests() as all_of_them:
        wanted = [
            c for c in all_of_them if not options.words or any(word in c.name for word in options.words)
        ]
        hold(wanted, options.rounds)


if __name__ == "__main__":
    main()
