"""`python -m benchmarks [--rounds N] [WORDS ...]`: measure the contests whose names hold one of the words."""

from __future__ import annotations

from benchmarks.headline import contests
from benchmarks.rounds import asked, hold


def main() -> None:
    """Measure and print."""
    options = asked("benchmarks", rounds=5)
    with contests() as all_of_them:
        wanted = [c for c in all_of_them if options.wants(c.name)]
        hold(wanted, options.rounds)


if __name__ == "__main__":
    main()
