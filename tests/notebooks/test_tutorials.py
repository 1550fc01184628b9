"""The tutorials run in a real kernel and show what they were saved with."""

import os

import nbformat
import pytest

from notebooks import demo

FOLDER = demo.TOUR.parent
TUTORIALS = sorted(path.name for path in FOLDER.glob("0[2-9]_*.ipynb"))


def shown(cell):
    """What the user sees of a cell, apart from our notes, with their times, and the wording of errors."""
    return [
        {"error": output["ename"]} if output["output_type"] == "error" else output
        for output in demo.shown_by_the_user(cell)
    ]


@pytest.mark.kernel
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_shows_what_it_was_saved_with(name, tmp_path, kernel_loop):
    saved = nbformat.read(FOLDER / name, as_version=4)
    session = demo.Session(saved, tmp_path, dict(os.environ))
    with session.kernel():
        for cell in demo.code_cells(session.notebook):
            session.run(cell)

    pairs = zip(demo.code_cells(saved), demo.code_cells(session.notebook), strict=True)
    assert [cell.id for cell, again in pairs if shown(cell) != shown(again)] == []
