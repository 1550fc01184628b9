import re
import time

import nbformat
import pytest

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

PRELUDE = """\
import threading, time
from ipyparcache.progress.tracker import Tracker
from ipyparcache.progress.widget import show
def work(total, each, cancelled=threading.Event()):
    cancelled.clear()
    tracker = Tracker(total, "%%parallel")
    with show(tracker, on_cancel=cancelled.set):
        for i in range(total):
            if cancelled.wait(each):
                tracker.finish("cancelled")
                break
            tracker.done(i, each, worker=i % 2)
    return tracker.snapshot().status
"""


@pytest.mark.parametrize("theme", ["Dark", "Light"])  # the theme stays on the server: end on the default
def test_the_bar_moves_and_static_html_takes_its_place(open_notebook, theme):
    page = open_notebook(f"moves-{theme}.ipynb", [PRELUDE, "work(100, 0.05)"])
    page.theme(theme)
    page.run(0)
    page.run(1, wait=False)

    said = page.out(1).locator(".ipyparcache-bar .said")
    sync_api.expect(said).to_have_text(re.compile(r"^\d+/100"))
    early = said.inner_text()
    page.shot(f"running-{theme}", 1)
    sync_api.expect(said).not_to_have_text(early)
    sync_api.expect(page.out(1).get_by_role("progressbar")).to_have_attribute("aria-label", "%%parallel")

    sync_api.expect(page.out(1)).to_contain_text("✓ %%parallel · 100/100")
    sync_api.expect(said).to_have_count(0)
    page.shot(f"done-{theme}", 1)
    saved = page.save()
    assert set(saved.cells[1].outputs[0].data) == {"text/plain", "text/html"}
    assert "widgets" not in saved.metadata
    assert page.errors == []


def test_a_narrow_page_shows_the_count_and_the_button(open_notebook):
    page = open_notebook("narrow.ipynb", [PRELUDE, "work(600, 0.05)"])
    page.command("application:toggle-left-area")
    page.page.set_viewport_size({"width": 400, "height": 700})
    page.run(0)
    page.run(1, wait=False)

    button = page.out(1).get_by_role("button", name="Cancel")
    button.wait_for()
    said = page.out(1).locator(".ipyparcache-bar .said")
    area, *boxes = (box_of(part) for part in (page.out(1), button, said))
    page.shot("narrow", 1)
    for box in boxes:
        assert box["x"] + box["width"] <= area["x"] + area["width"]
    button.click()
    sync_api.expect(page.out(1)).to_contain_text("■ %%parallel · cancelled")


def test_cancel_ends_a_cell_that_blocks(open_notebook):
    page = open_notebook("cancel.ipynb", [PRELUDE, "print(work(600, 0.05))"])
    page.run(0)
    page.run(1, wait=False)

    page.out(1).get_by_role("button", name="Cancel").click()
    clicked = time.monotonic()
    page.out(1).locator("pre", has_text="cancelled").last.wait_for(timeout=10_000)
    assert time.monotonic() - clicked < 3
    sync_api.expect(page.out(1)).to_contain_text("■ %%parallel · cancelled")
    page.shot("cancelled", 1)


def test_a_reopened_notebook_shows_the_summary_without_a_kernel(open_notebook, lab):
    page = open_notebook("first.ipynb", [PRELUDE, "work(20, 0.05);"])
    page.run(0)
    page.run(1)
    saved = page.save()
    page.page.close()
    saved.metadata.kernelspec = {"name": "gone", "display_name": "gone", "language": "none"}
    del saved.metadata["language_info"]  # else a kernel of the same language is started
    nbformat.write(saved, lab.root / "later.ipynb")

    later = open_notebook("later.ipynb", kernel=False)
    later.page.locator(".jp-Dialog button", has_text="No Kernel").first.click()
    sync_api.expect(later.out(1)).to_contain_text("✓ %%parallel · 20/20")
    assert "Loading widget" not in later.out(1).inner_text()
    later.shot("reopened", 1)


def test_a_short_run_shows_its_summary_only(open_notebook):
    page = open_notebook("short.ipynb", [PRELUDE, "work(3, 0.01);"])
    page.run(0)
    page.run(1)

    sync_api.expect(page.out(1)).to_contain_text("✓ %%parallel · 3/3")
    sync_api.expect(page.out(1).locator(".jupyter-widgets")).to_have_count(0)


def box_of(part):
    """Where a part of the page is; the bar's is made anew five times a second."""
    while (box := part.bounding_box()) is None:
        pass
    return box
