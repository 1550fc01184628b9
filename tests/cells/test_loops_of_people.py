"""Loops as they stand in notebooks, and as an adversary writes them: equal to the serial loop, or held back.

`loops_of_people.txt` holds them: a line `## name = verdict`, what they need before them, a line of dashes,
the cell. A verdict is `ran`; `refused` before anything ran; `lost`, where only running showed that a change
would be lost; `serially`, where statements above the loop had run already and it then ran in the kernel.
"""

from __future__ import annotations

import decimal
import re
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


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_leaves_what_the_serial_loop_leaves_or_is_held_back(name, monkeypatch, tmp_path):
    verdict, setup, cell = LOOPS[name]
    for library in ("pandas", "sklearn", "matplotlib", "tqdm"):
        if library in setup:
            pytest.importorskip(library)
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread that outlives the test
    monkeypatch.setattr("ipyparcache.digest.generators.seeded", set())  # by no loop before this one
    sides = []
    with warnings.catch_warnings(), decimal.localcontext():
        warnings.simplefilter("ignore")
        for side, run in (("plain", serial), ("tested", parallel)):
            folder = tmp_path / side
            folder.mkdir()
            monkeypatch.chdir(folder)
            namespace = new_namespace(setup)
            sides.append((namespace, run(namespace, cell)))
    (plain, (text, error)), (tested, (host, raised, _)) = sides

    for value in tested.values():
        if isinstance(value, zipfile.ZipFile):  # a refused cell has not closed it
            value.close()
    became = {LoopRefused: "refused", ChangeLost: "lost"}.get(type(raised), "ran")
    assert became == verdict.replace("serially", "ran"), raised
    if became == "ran":
        assert type(raised).__name__ == type(error).__name__, raised
        was, now = describe(plain), describe(tested)
        unbound = {n for n in was if any(f"`{n}` (" in note for note in host.notes)}
        differ = {n: (was.get(n), now.get(n)) for n in was.keys() | now.keys() if was.get(n) != now.get(n)}
        assert not differ.keys() - unbound, differ
        assert host.stdout == text


def test_the_page_of_acceptance_tells_how_many_of_them_run():
    verdicts = [verdict for verdict, _, _ in LOOPS.values()]
    said = (
        f"Of {len(LOOPS)} loops written like those of public notebooks, {verdicts.count('ran')} run in "
        f"parallel, {verdicts.count('refused') + verdicts.count('serially')} are refused"
    )

    assert said in " ".join(PAGE.read_text(encoding="utf-8").split())
