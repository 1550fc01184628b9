import pytest

from ipyparcache.cells import drawing, reports
from ipyparcache.cells.drawing import CannotDraw
from ipyparcache.cells.leftovers import Leftover
from ipyparcache.cells.loops import LoopReport, RunReport
from ipyparcache.cells.reports import bars_of, busy_share, note_report
from ipyparcache.errors import IterationError


@pytest.fixture
def loop():
    """Two workers, 4 s each; the second idles for half of it."""
    rows = [(11, 100.0, 102.0, 0, 1), (12, 100.0, 102.0, 1, 1), (11, 102.0, 104.0, 2, 3)]
    return LoopReport(3, iterations=5, seconds=4.0, rows=rows)


def test_bars_count_from_the_start_of_the_loop(loop):
    bars = bars_of(loop)

    assert [(bar.worker, bar.begin, bar.end) for bar in bars] == [(11, 0, 2), (11, 2, 4), (12, 0, 2)]
    assert busy_share(bars) == 0.75


def test_too_many_bars_are_joined_where_no_gap_would_show(loop, monkeypatch):
    monkeypatch.setattr(reports, "BARS", 1)
    bars = bars_of(loop)

    assert [(bar.worker, bar.first, bar.count) for bar in bars] == [(11, 0, 4), (12, 1, 1)]


def test_a_loop_without_iterations_has_no_bars():
    assert bars_of(LoopReport(1)) == []
    assert busy_share([]) == 0.0


def test_the_timeline_is_a_picture_and_a_sentence(loop):
    note_report(RunReport([loop]))
    picture = reports.timeline()

    assert picture.text == "line 3: 5 iterations in 4.0 s on 2 workers, busy 75%"
    assert picture.svg.count("<rect") == 3 + 1  # the bars, and the paper
    assert reports.ticks_of(4.0) == [1.0, 2.0, 3.0]
    assert "iterations 2 to 4: 2.0 s" in picture.svg


def test_the_picture_can_be_saved_as_svg_and_png(loop, tmp_path):
    note_report(RunReport([loop]))
    picture = reports.timeline()
    drawing.save(picture, str(tmp_path / "a.svg"))
    drawing.save(picture, str(tmp_path / "a.png"))

    assert (tmp_path / "a.svg").read_text() == picture.svg
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CannotDraw, match=r"neither in \.svg nor in \.png"):
        drawing.save(picture, str(tmp_path / "a.gif"))


def test_collected_errors_and_the_one_that_ended_the_cell_are_listed(loop):
    loop.errors.append(IterationError(2, "x = 5", ValueError("bad")))
    note_report(RunReport([loop], KeyError("end")))

    assert reports.errors_text() == (
        "line 3: iteration 2 (x = 5) failed: ValueError: bad\nthe cell ended with KeyError: 'end'"
    )
    note_report(RunReport([LoopReport(1)]))
    assert reports.errors_text() == "no iteration failed"


def test_what_was_not_merged_is_listed_by_iteration_and_handed_out(loop):
    long = Leftover(3, 5, {"x": "x" * 1000}, ())
    loop.partial = {7: Leftover(3, 7, {}, (("out[<1>] = <0>", ([1], "k")),)), 5: long}
    note_report(RunReport([loop]))
    first, second = reports.partial_text().splitlines()

    assert first.startswith("line 3, iteration 5: x = 'xxx")
    assert len(first) < 100
    assert second == "line 3, iteration 7: out['k'] = [1]"
    assert reports.partial_results() == [loop.partial]
