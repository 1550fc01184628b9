"""Notebooks played in real kernels: plain, and in automatic mode cold, warm and edited.

Those in `people` are written as people write them; of ours the magics are taken off, and what asks after the
package itself. What lies beside each notebook (see `playing`) says what to edit, which cells run again then,
and which cells are never stored, with the reason.
"""

import re
from pathlib import Path

import nbformat
import pytest

from notebooks import demo
from tests.notebooks import playing

PEOPLE = Path(__file__).parent / "people"
NAMES = sorted(path.stem for path in PEOPLE.glob("*.ipynb"))
OURS = Path(__file__).parent / "ours"
OUR_NAMES = sorted(path.stem for path in demo.TOUR.parent.glob("*.ipynb"))
QUICK = ("bank_classes", "homework")

pytestmark = pytest.mark.kernel


@pytest.fixture
def both(tmp_path, kernel_loop, monkeypatch):
    """Play a script plain and in automatic mode, in folders of the same name."""
    monkeypatch.chdir(tmp_path)

    def played(script, source, edits):
        plain = playing.play_all(script, source, tmp_path / "work", edits, auto=False)
        return plain, playing.play_all(script, source, tmp_path / "work", edits, auto=True)

    return played


def statuses(played, status):
    return {cell.id: cell.reason for cell in played if cell.status == status}


def check(script, plain, auto, edits):
    """Nothing differs, what can be stored is, and after an edit those cells run again that depend on it."""
    assert [line for name in plain for line in playing.differences(plain[name], auto[name])] == []
    magics = [cell.id for cell in script.cells if playing.has_magics(cell.source)]
    for name, cells in auto.items():
        assert [cell.id for cell in cells if cell.status == "plain"] == magics, name
    refused = statuses(auto["warm"], "not stored")
    assert refused.keys() == script.not_stored.keys()
    assert [name for name, why in script.not_stored.items() if not re.search(why, refused[name])] == []
    assert statuses(auto["warm"], "miss").keys() == set(script.changed)
    assert statuses(auto["again"], "miss").keys() == set(script.again)
    for edit in edits:
        assert statuses(auto[str(edit)], "miss").keys() == set(edit.reruns), edit


@pytest.mark.parametrize("name", QUICK)
def test_a_notebook_is_the_same_plain_cold_warm_and_after_an_edit(both, name):
    script = playing.read(PEOPLE / f"{name}.ipynb")
    edits = script.edits[:1]

    check(script, *both(script, PEOPLE, edits), edits)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_the_same_after_each_of_its_edits(both, name):
    script = playing.read(PEOPLE / f"{name}.ipynb")

    check(script, *both(script, PEOPLE, script.edits), script.edits)


def without_the_package(name):
    """One of our notebooks for a kernel that has never heard of us, and in a size for tests."""
    notebook = demo.without_magics(nbformat.read(demo.TOUR.parent / f"{name}.ipynb", as_version=4))
    told = playing.told(OURS / f"{name}.yaml")
    left_out, replaced, shorter = (told.pop(what, {}) for what in ("left_out", "replaced", "shorter"))
    notebook.cells = [cell for cell in notebook.cells if cell.id not in left_out]
    for cell in demo.code_cells(notebook):
        cell.source = replaced.get(cell.id, cell.source)
        for long, short in shorter.items():
            cell.source = cell.source.replace(long, short)
    return playing.script_of(notebook, told)


def test_one_of_our_notebooks_is_the_same_plain_cold_warm_and_after_an_edit(both):
    script = without_the_package("03_parallel")
    edits = script.edits[:1]

    check(script, *both(script, OURS, edits), edits)


@pytest.mark.slow
@pytest.mark.parametrize("name", OUR_NAMES)
def test_each_of_our_notebooks_is_the_same_after_each_of_its_edits(both, name):
    script = without_the_package(name)

    assert len(script.edits) == 5
    check(script, *both(script, OURS, script.edits), script.edits)


def test_each_notebook_has_five_edits_of_cells_files_or_variables():
    for name in NAMES:
        script = playing.read(PEOPLE / f"{name}.ipynb")

        assert len(script.edits) == 5, name
        assert {*script.not_stored, *script.again, *script.changed} <= {cell.id for cell in script.cells}
        for edit in script.edits:
            assert [edit.cell, edit.file, edit.env].count("") == 2
            changed = script.edited(edit)
            assert (changed == script.cells) == (not edit.cell)


def test_a_difference_in_what_is_shown_or_left_is_told():
    one = playing.Played("a", [("stdout", "1\n")], {"x": "int 1", "y": "int 2"})
    other = playing.Played("a", [("stdout", "2\n")], {"x": "int 1"}, "hit", "every input is as it was")

    assert playing.differences([one], [one]) == []
    assert [line.partition(": ")[2][:20] for line in playing.differences([one], [other])] == [
        "shows ('stdout', '2\\",
        "y is nothing instead",
    ]
