import re

import nbformat
import pytest

from notebooks import demo

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.browser, pytest.mark.slow]  # the whole tour in a page: minutes

SHORTER = {
    "trees=1000": "trees=20",
    "trees=60": "trees=10",
    "draws=5": "draws=1",
    "n_repeats=20": "n_repeats=2",
}


def index_of(page, name):
    """The place of a cell in the page, by its id."""
    cells = nbformat.read(page.lab.root / page.name, as_version=4).cells
    return [cell.id for cell in cells].index(name)


def run_cells(page, names):
    for name in names:
        page.run(index_of(page, name))


def test_the_tour_runs_with_a_live_bar_and_comes_back_after_a_restart(open_notebook, lab):
    notebook = nbformat.read(demo.TOUR, as_version=4)
    for cell in notebook.cells:
        for long, short in SHORTER.items():
            cell.source = cell.source.replace(long, short)
    nbformat.write(notebook, lab.root / "tour.ipynb")
    page = open_notebook("tour.ipynb")
    names = [cell.id for cell in demo.code_cells(notebook)]
    search = index_of(page, "search")

    run_cells(page, names[: names.index("search")])
    page.run(search, wait=False)
    said = page.out(search).locator(".ipyparcache-bar .said")
    sync_api.expect(said).to_have_text(re.compile(r"^[1-9]/24"), timeout=60_000)
    early = said.inner_text()
    page.shot("tour-running", search)
    sync_api.expect(said).not_to_have_text(early)
    sync_api.expect(page.out(search).get_by_role("button", name="Cancel")).to_be_visible()
    sync_api.expect(page.out(search)).to_contain_text("24/24 ·", timeout=300_000)
    sync_api.expect(page.out(search).locator(".jupyter-widgets")).to_have_count(0)
    run_cells(page, names[names.index("search") + 1 :])
    page.shot("tour-done", search)
    page.shot("tour-figures", index_of(page, "figures"))

    saved = page.save()
    assert "widgets" not in saved.metadata
    assert page.errors == []
    page.page.reload()
    page.wait_until_open()
    sync_api.expect(page.out(search)).to_contain_text("24/24 ·")
    assert "Loading widget" not in page.out(search).inner_text()

    page.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    page.wait_until_open()
    run_cells(page, names)
    for name in ("clean", "features", "search", "bootstrap", "final-model", "figures"):
        sync_api.expect(page.out(index_of(page, name))).to_contain_text("cached · ")
    page.shot("tour-restored", search)
