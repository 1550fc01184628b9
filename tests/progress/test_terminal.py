import io
import threading
from types import SimpleNamespace

import pytest

from ipyparcache.progress import terminal as module
from ipyparcache.progress.terminal import TextBar
from ipyparcache.progress.tracker import Tracker


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    terminal = Terminal()
    # not sys.stderr itself, which pytest's capture sets again between a fixture and its test
    monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=terminal))
    return terminal


def test_the_bar_shows_counts_and_leaves_its_last_state(terminal):
    tracker, bar = Tracker(4, "Parallel"), TextBar(keep_summary=False)
    tracker.done(0)
    bar.update(tracker.snapshot())
    tracker.done_batch(2)
    tracker.failed(3)
    tracker.finish()
    bar.close(tracker.snapshot())

    last = terminal.getvalue().rstrip("\n").rpartition("\r")[2]
    assert "Parallel: 100%" in last
    assert "4/4" in last
    assert "1 failed" in last


def test_an_unknown_total_counts_up(terminal):
    tracker, bar = Tracker(None, "Parallel"), TextBar(keep_summary=False)
    tracker.done_batch(7)
    bar.update(tracker.snapshot())
    bar.close(tracker.snapshot())

    assert "7it" in terminal.getvalue()


def test_a_run_of_known_length_shows_its_share(terminal):
    tracker, bar = Tracker(None, "cell", expected=1000.0), TextBar(keep_summary=False)
    bar.update(tracker.snapshot())
    tracker.finish()
    bar.close(tracker.snapshot())

    assert "cell:   0%" in terminal.getvalue()
    assert "cell: 100%" in terminal.getvalue()


def test_a_run_too_short_for_a_bar_leaves_its_summary_if_that_is_kept(terminal):
    tracker = Tracker(1, "%%parallel")
    tracker.done(0)
    tracker.finish()

    TextBar(keep_summary=False).close(tracker.snapshot())
    assert terminal.getvalue() == ""

    TextBar(keep_summary=True).close(tracker.snapshot())
    assert terminal.getvalue().startswith("✓ %%parallel · 1/1")


def test_no_thread_of_tqdm_is_started(terminal):
    before = threading.active_count()
    tracker, bar = Tracker(4, "Parallel"), TextBar(keep_summary=False)
    bar.update(tracker.snapshot())

    assert threading.active_count() == before
    bar.close(tracker.snapshot())
