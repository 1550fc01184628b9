"""Loops as they stand in notebooks, and as an adversary writes them: equal to the serial loop, or held back.

`loops_of_people.txt` holds them: a line `## name = verdict`, what they need before them, a line of dashes,
the cell. Each is played so, and with what it needs in the cell, too. A verdict is `ran`; `refused` before
anything ran; `lost`, where only running showed that a change would be lost; `serially`, where statements
above the loop had run already and it then ran in the kernel.
"""

from __future__ import annotations

import ast
import decimal
import linecache
import re
import sqlite3
import sys
import warnings
import zipfile
from pathlib import Path

import pytest

from ipyparcache.errors import ChangeLost, LoopRefused
from tests.cells.sessions import describe, new_namespace, parallel, serial

SOURCE = Path(__file__).with_name("loops_of_people.txt")
PAGE = Path(__file__).parents[2] / "docs" / "acceptance.md"


def loops() -> dict[str, tuple[str, str, str]]:
    """By name: the verdict, what stands before the cell, the cell."""
    found = {}
    for part in re.split(r"(?m)^## ", SOURCE.read_text(encoding="utf-8"))[1:]:
        head, _, rest = part.partition("\n")
        name, _, verdict = head.rpartition(" = ")
        setup, _, cell = rest.partition("\n----\n")
        found[name] = verdict.strip(), setup + "\n", cell.strip() + "\n"
    return found


LOOPS = loops()
#: Those whose set-up, or the lines behind, hold a comprehension that runs in the kernel.
BESIDE_OTHERS = {
    "plt one ax many lines",
    "plt axes indexed",
    "image thresholds (more)",
    "refit coefficients by number",
    "subplots per feature",
}


@pytest.fixture
def outcome(monkeypatch, tmp_path):
    """Play a cell both ways; what became of it. If it ran, it has left what the serial cell leaves."""

    def play(name: str, setup: str, cell: str) -> str:
        folder = tmp_path / name.replace("/", "_")
        folder.mkdir()
        return played(setup, cell, monkeypatch, folder)

    return play


def played(setup, cell, monkeypatch, tmp_path):
    for library in ("pandas", "sklearn", "matplotlib", "tqdm"):
        if library in setup + cell:
            pytest.importorskip(library)
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread that outlives the test
    monkeypatch.setattr("ipyparcache.digest.generators.seeded", set())  # by no loop before this one
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")  # figures of the loop before
    sides = []
    with warnings.catch_warnings(), decimal.localcontext():
        warnings.simplefilter("ignore")
        for side, run in (("plain", serial), ("tested", parallel)):
            folder = tmp_path / side
            folder.mkdir()
            monkeypatch.chdir(folder)
            namespace = new_namespace(setup)
            linecache.cache["<cell>"] = (len(cell), None, cell.splitlines(keepends=True), "<cell>")
            sides.append((namespace, run(namespace, cell)))
    (plain, (text, error)), (tested, (host, raised, _)) = sides

    for value in tested.values():
        if isinstance(value, zipfile.ZipFile | sqlite3.Connection):  # a refused cell has not closed it
            value.close()
    became = {LoopRefused: "refused", ChangeLost: "lost"}.get(type(raised), "ran")
    if became == "ran":
        assert type(raised).__name__ == type(error).__name__, raised
        was, now = describe(plain), describe(tested)
        unbound = {n for n in was if any(f"`{n}` (" in note for note in host.notes)}
        differ = {n: (was.get(n), now.get(n)) for n in was.keys() | now.keys() if was.get(n) != now.get(n)}
        assert not differ.keys() - unbound, differ
        assert host.stdout == text
        became = "serially" if any("ran here, one" in note for note in host.notes) else "ran"
    return became


def with_set_up(setup: str, cell: str) -> tuple[str, str]:
    """What stands before a cell, and the cell, where all but the loops before it stands in it."""
    tree = ast.parse(setup)
    loops = [n for n, part in enumerate(tree.body) if isinstance(part, ast.For | ast.While)]
    first = loops[-1] + 1 if loops else 0
    before, inside = (ast.unparse(ast.Module(part, [])) for part in (tree.body[:first], tree.body[first:]))
    return before + "\n", f"{inside}\n{cell}"


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_leaves_what_the_serial_loop_leaves_or_is_held_back(name, outcome):
    verdict, setup, cell = LOOPS[name]

    became = outcome(name, setup, cell)

    assert became == verdict or (became == "serially" and name in BESIDE_OTHERS)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(LOOPS), 50))
def test_loops_are_held_back_no_more_with_their_set_up_in_the_cell(first, outcome):
    differ = {}

    for name, (verdict, setup, cell) in list(LOOPS.items())[first : first + 50]:
        became = outcome(name, *with_set_up(setup, cell))
        if became != verdict and not (
            became == "serially" and (verdict == "refused" or name in BESIDE_OTHERS)
        ):
            differ[name] = verdict, became

    assert not differ


def test_the_page_of_acceptance_tells_how_many_of_them_run():
    verdicts = [verdict for verdict, _, _ in LOOPS.values()]
    said = (
        f"Of {len(LOOPS)} loops written like those of public notebooks, {verdicts.count('ran')} run in "
        f"parallel, {verdicts.count('refused') + verdicts.count('serially')} are refused"
    )

    assert said in " ".join(PAGE.read_text(encoding="utf-8").split())
