"""Short sessions, played plain and in automatic mode: cold, warm, after edits, and back.

Whole notebooks are played so in `tests/notebooks/test_people.py`.
"""

import gc
import sys
import textwrap

import pytest

from ipyparcache import last_run
from ipyparcache.cells import runs
from ipyparcache.digest.objects import digest_of
from ipyparcache.errors import Undigestible
from ipyparcache.kernel.namespace import user_bindings

# Each session: its cells, and edits (number of the cell, what is replaced by what).
SESSIONS = {
    "dataclasses and enums": (
        [
            "from dataclasses import dataclass, field\nfrom enum import Enum, auto",
            "class Kind(Enum):\n    FOOD = auto()\n    TOY = auto()",
            """
            @dataclass(order=True)
            class Item:
                price: float
                kind: Kind = field(compare=False)
                tags: list = field(default_factory=list, compare=False)
            """,
            "items = [Item(3.5, Kind.FOOD), Item(1.25, Kind.TOY, ['red'])]",
            "items.sort()\nitems[0].tags.append('cheap')",
            "by_kind = {kind: [i for i in items if i.kind is kind] for kind in Kind}\nby_kind[Kind.TOY]",
        ],
        [(3, "3.5", "0.5"), (4, "'cheap'", "'cheapest'")],
    ),
    "arrays, views and masks": (
        [
            "import numpy as np",
            "grid = np.zeros((6, 8))\nrow = grid[2]\nedge = grid[:, 0]",
            "row += np.arange(8)\nedge[:] = -1",
            "mask = grid > 3\nclipped = np.where(mask, 3, grid)",
            "grid[mask] = 0\ngrid.sum(), clipped.sum()",
            "rows = np.zeros(3, dtype=[('x', 'f4'), ('n', 'i2')])\nrows['n'] = [1, 2, 3]\nrows",
        ],
        [(2, "-1", "-2"), (3, "> 3", "> 4")],
    ),
    "names that come and go": (
        [
            "config = {'depth': 2, 'debug': False}",
            "if config['debug']:\n    extra = 'on'\nelse:\n    extra = None",
            "try:\n    limit\nexcept NameError:\n    limit = 10",
            "tmp = [n for n in range(limit) if n % config['depth'] == 0]\nevens = tuple(tmp)\ndel tmp",
            "for number in evens:\n    last = number * 2",
            "first, *middle, end = evens\n(first, middle, end, last, extra)",
        ],
        [(0, "False", "True"), (0, "'depth': 2", "'depth': 3")],
    ),
}  # fmt: skip


@pytest.fixture
def play(extension, shell, monkeypatch, capsys):
    """Play a session from a fresh namespace; what each cell shows, and digests of what is left."""
    monkeypatch.setattr(runs, "_runs", [])

    def played(cells, mode):
        shell.reset(new_session=True)
        shell.run_cell(f"%parcache auto {mode}")
        capsys.readouterr()
        record = []
        for source in cells:
            result = shell.run_cell(textwrap.dedent(source), store_history=True)
            shown = capsys.readouterr()
            said = [
                line for line in shown.out.splitlines() if "ipyparcache" not in line and " · " not in line
            ]
            record.append(("\n".join(said), shown.err, repr(result.error_in_exec), left(shell)))
        gc.collect()
        return record

    yield played
    shell.run_cell("%parcache auto off")


def left(shell):
    found = {}
    for name, value in sorted(user_bindings(shell.user_ns, shell.user_ns_hidden).items()):
        try:
            found[name] = digest_of(value, shell.user_ns).hex()
        except Undigestible:
            found[name] = type(value).__name__
    return found


def edited(cells, number, old, new):
    assert old in cells[number]
    return [*cells[:number], cells[number].replace(old, new), *cells[number + 1 :]]


@pytest.mark.parametrize("name", list(SESSIONS))
def test_a_session_is_the_same_plain_cold_warm_and_after_edits(play, name):
    cells, edits = SESSIONS[name]
    plain = play(cells, "off")

    assert play(cells, "on --min 0") == plain, "cold"
    count = len(runs.runs())
    assert play(cells, "on --min 0") == plain, "warm"
    hits = sum(run.hit for run in runs.runs()[count:])
    assert hits >= len(cells) - 2, [run.reason for run in runs.runs()[count:] if not run.hit]
    for edit in edits:
        changed = edited(cells, *edit)
        expected = play(changed, "off")
        assert play(changed, "on --min 0") == expected, edit
        assert play(cells, "on --min 0") == plain, ("back", edit)


def test_going_back_to_the_first_version_hits(play):
    cells, edits = SESSIONS["dataclasses and enums"]
    play(cells, "on --min 0")
    play(edited(cells, *edits[0]), "on --min 0")
    play(cells, "on --min 0")

    assert last_run().hit
    assert sys.modules["__main__"] is not None
