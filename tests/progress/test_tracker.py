import sys
import threading

import pytest

from ipyparcache.progress import tracker as module
from ipyparcache.progress.tracker import Tracker, duration_text


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is set."""
    time = {"now": 100.0}
    monkeypatch.setattr(module.time, "perf_counter", lambda: time["now"])
    return time


def test_done_failed_and_cached_tasks_add_up(clock):
    tracker = Tracker(10, "loop")
    tracker.done(0, 1.0, worker=7)
    tracker.done(1, 2.0, worker=8)
    tracker.failed(2)
    tracker.from_cache(3)

    snapshot = tracker.snapshot()
    assert (snapshot.ended, snapshot.done, snapshot.failed, snapshot.from_cache) == (6, 5, 1, 3)
    assert snapshot.fraction == 0.6


def test_the_rate_leaves_out_what_came_from_the_cache(clock):
    tracker = Tracker(10, "loop")
    tracker.from_cache(4)
    tracker.done_batch(2)
    clock["now"] += 4.0

    snapshot = tracker.snapshot()
    assert snapshot.rate == 0.5
    assert snapshot.seconds_left == 8.0


def test_nothing_is_foretold_before_the_first_task_has_ended(clock):
    tracker = Tracker(10, "loop")
    clock["now"] += 3.0

    snapshot = tracker.snapshot()
    assert snapshot.rate is None
    assert snapshot.seconds_left is None


def test_an_unknown_total_has_no_fraction(clock):
    tracker = Tracker(None, "loop")
    tracker.done(0)

    assert tracker.snapshot().fraction is None


def test_a_total_that_becomes_known_replaces_the_unknown_one(clock):
    tracker = Tracker(None, "loop")
    tracker.start(4)
    tracker.done(0)

    assert tracker.snapshot().fraction == 0.25


def test_an_empty_run_is_over_at_once(clock):
    assert Tracker(0, "loop").snapshot().fraction == 1.0


def test_a_run_of_known_length_goes_by_the_clock_and_is_not_over_before_its_end(clock):
    tracker = Tracker(None, "cell", expected=10.0)
    clock["now"] += 4.0
    assert tracker.snapshot().fraction == 0.4
    assert tracker.snapshot().seconds_left == 6.0

    clock["now"] += 60.0
    assert tracker.snapshot().fraction == 0.99
    assert tracker.snapshot().seconds_left == 0.0

    tracker.finish()
    assert tracker.snapshot().fraction == 1.0


def test_the_clock_stops_at_the_first_end_and_the_first_word_counts(clock):
    tracker = Tracker(1, "loop")
    clock["now"] += 2.0
    tracker.finish("cancelled")
    clock["now"] += 5.0
    tracker.finish("done")

    snapshot = tracker.snapshot()
    assert (snapshot.elapsed, snapshot.status) == (2.0, "cancelled")


def test_lanes_show_what_each_worker_did_and_does(clock):
    tracker = Tracker(10, "loop")
    tracker.done(0, 1.0, worker=8)
    tracker.done_batch(3, 3.0, worker=5)
    tracker.begin("iteration 4", worker=8)
    clock["now"] += 4.0

    first, second = tracker.snapshot().lanes
    assert (first.worker, first.done, first.busy_share(4.0)) == (5, 3, 0.75)
    assert (second.worker, second.done, second.current) == (8, 1, "iteration 4")


def test_no_count_is_lost_when_threads_tell_and_look_at_once():
    tracker = Tracker(None, "loop")
    begin = threading.Barrier(5)

    def tell():
        begin.wait()
        for index in range(5000):
            tracker.done(index, 0.0, threading.get_ident())

    threads = [threading.Thread(target=tell) for _ in range(4)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        begin.wait()
        while any(thread.is_alive() for thread in threads):
            tracker.snapshot()
    finally:
        sys.setswitchinterval(switch)
        for thread in threads:
            thread.join()

    assert tracker.snapshot().done == 20_000


def test_what_nobody_looks_at_does_not_grow():
    tracker = Tracker(None, "loop")
    for index in range(3 * module._LOOK_EVERY):
        tracker.done(index)

    assert len(tracker._news) < module._LOOK_EVERY
    assert tracker.snapshot().done == 3 * module._LOOK_EVERY


def test_the_summary_names_what_happened_in_one_line(clock):
    tracker = Tracker(20, "%%parallel")
    tracker.from_cache(3)
    tracker.done_batch(16, 3.0, worker=1)
    tracker.failed(19)
    clock["now"] += 4.0
    tracker.finish("failed")

    assert tracker.summary_text() == (
        "✗ %%parallel · failed · 20/20 · 4.0 s · 4.2/s · 3 from cache · 1 failed · 1 worker, 75 % busy"
    )


def test_the_html_summary_escapes_what_the_user_wrote_and_brings_no_colours_of_text(clock):
    tracker = Tracker(2, "<script>alert(1)</script>")
    tracker.done(0, 0.5, worker=1)
    tracker.done(1, 0.5, worker=2)
    tracker.finish()

    markup = tracker.summary_html()
    assert "<script>" not in markup
    assert "&lt;script&gt;" in markup
    assert "color:" not in markup
    assert markup.count("<tr>") == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0 ms"),
        (0.04, "40 ms"),
        (0.9996, "1.0 s"),
        (3.21, "3.2 s"),
        (59.96, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_read_as_people_write_them(seconds, text):
    assert duration_text(seconds) == text
