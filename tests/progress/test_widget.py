import io
import threading
from dataclasses import replace

import pytest

from ipyparcache.progress import widget
from ipyparcache.progress.terminal import TextBar
from ipyparcache.progress.tracker import Tracker
from ipyparcache.progress.widget import Bar, NotebookBar, bar_markup, show


class Face:
    """A face that notes what it is shown; `seen` is set at the first state."""

    def __init__(self):
        self.states, self.last, self.seen = [], None, threading.Event()

    def update(self, snapshot):
        self.states.append(snapshot)
        self.seen.set()

    def close(self, snapshot):
        self.last = snapshot


@pytest.fixture
def at_once(monkeypatch):
    """Bars appear at once rather than after 0.3 s, and look at the tracker every millisecond."""
    monkeypatch.setattr(widget, "SHOW_AFTER", 0.0)
    monkeypatch.setattr(widget, "LOOK_EVERY", 0.001)


def test_a_short_run_shows_no_bar_but_its_end(monkeypatch):
    monkeypatch.setattr(widget, "SHOW_AFTER", 60.0)
    face = Face()
    with Bar(Tracker(1, "loop"), face):
        pass

    assert face.states == []
    assert face.last.status == "done"


def test_a_bar_follows_its_tracker(at_once):
    tracker, face = Tracker(2, "loop"), Face()
    with Bar(tracker, face):
        assert face.seen.wait(10)
        tracker.done(0)
        tracker.done(1)

    assert face.states[0].status == "running"
    assert face.last.ended == 2


@pytest.mark.parametrize(("left", "times"), [(0.2, 0), (0.5, 1), (60.0, 1), (None, 1)])
def test_a_bar_does_not_open_any_more_for_a_run_that_is_nearly_over(monkeypatch, left, times):
    monkeypatch.setattr(widget, "SHOW_AFTER", 0.0)
    monkeypatch.setattr(widget._TIMER, "add", lambda _bar: None)
    tracker, face = Tracker(None, "loop"), Face()
    bar = Bar(tracker, face)
    state = replace(tracker.snapshot(), expected=left, elapsed=0.0)
    monkeypatch.setattr(tracker, "snapshot", lambda: state)

    bar.look()
    shown = len(face.states)
    bar.close()

    assert shown == times


def test_an_open_bar_stays_until_the_end(monkeypatch):
    monkeypatch.setattr(widget, "SHOW_AFTER", 0.0)
    monkeypatch.setattr(widget._TIMER, "add", lambda _bar: None)
    tracker, face = Tracker(None, "loop"), Face()
    bar = Bar(tracker, face)
    states = [replace(tracker.snapshot(), expected=left, elapsed=0.0) for left in (60.0, 0.1, 0.1)]
    monkeypatch.setattr(tracker, "snapshot", lambda: states.pop(0))

    bar.look()
    bar.look()
    bar.close()

    assert [state.expected for state in face.states] == [60.0, 0.1]


@pytest.mark.parametrize(("error", "status"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_a_run_left_by_an_error_says_so(error, status):
    face = Face()
    with pytest.raises(error), Bar(Tracker(1, "loop"), face):
        raise error

    assert face.last.status == status


def test_closing_twice_does_no_more_than_closing_once():
    face = Face()
    bar = Bar(Tracker(1, "loop"), face)
    bar.close()
    face.last = None
    bar.close()

    assert face.last is None


def test_a_short_call_starts_no_thread_of_its_own():
    with Bar(Tracker(1, "loop"), Face()):
        before = threading.active_count()
        for _ in range(100):
            Bar(Tracker(1, "loop"), Face()).close()

        assert threading.active_count() == before


def test_a_face_that_fails_does_not_stop_the_others(at_once):
    broken, face = Face(), Face()
    broken.update = lambda snapshot: 1 / 0
    with Bar(Tracker(1, "broken"), broken), Bar(Tracker(1, "loop"), face):
        assert face.seen.wait(10)


def test_the_timer_ends_when_there_is_nothing_to_show(monkeypatch, at_once):
    monkeypatch.setattr(widget, "END_AFTER", 0.0)
    timer = widget._Timer()
    monkeypatch.setattr(widget, "_TIMER", timer)
    bar = Bar(Tracker(1, "loop"), Face())
    thread = timer._thread
    bar.close()
    thread.join(10)

    assert not thread.is_alive()
    bar = Bar(Tracker(1, "loop"), face := Face())  # and starts again
    assert face.seen.wait(10)
    bar.close()


def test_nothing_is_shown_where_standard_error_is_no_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    before = threading.active_count()
    with show(Tracker(1, "loop")):
        assert threading.active_count() == before


def test_a_terminal_gets_a_text_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)

    with show(Tracker(3, "Parallel")) as bar:
        assert isinstance(bar._face, TextBar)


def test_cancel_is_passed_on_once_however_often_it_is_pressed():
    pressed = []
    face = NotebookBar(lambda: pressed.append(1), live=True, keep="always")
    face._peek({"content": {"event": "click"}}, None)
    face._peek({"content": {"event": "click"}}, None)
    face._cancel()

    assert pressed == [1]


@pytest.mark.parametrize("data", [None, {}, {"content": None}, {"content": {"event": "other"}}, 7])
def test_other_messages_of_the_button_change_nothing_and_never_raise(data):
    pressed = []
    face = NotebookBar(lambda: pressed.append(1), live=True, keep="always")

    assert face._peek(data, "elsewhere") is None
    assert pressed == []


def test_the_markup_is_a_progress_bar_to_a_screen_reader():
    tracker = Tracker(4, "a <b> loop")
    tracker.done(0, 0.1, worker=1)
    markup = bar_markup(tracker.snapshot())

    assert 'role="progressbar" aria-label="a &lt;b&gt; loop"' in markup
    assert 'aria-valuenow="25"' in markup
    assert "<b> loop" not in markup


def test_a_bar_without_a_known_end_claims_no_share():
    assert "aria-valuenow" not in bar_markup(Tracker(None, "loop").snapshot())


PRELUDE = """
import threading
from ipyparcache.progress import widget
from ipyparcache.progress.tracker import Tracker
widget.SHOW_AFTER, widget.LOOK_EVERY = 0.0, 0.01
appeared = threading.Event()
update = widget.NotebookBar.update
def noted(self, snapshot):
    update(self, snapshot)
    appeared.set()
widget.NotebookBar.update = noted
"""

RUN = """
tracker = Tracker(2, "%%parallel")
appeared.clear()
with widget.show(tracker, on_cancel=lambda: None):
    assert appeared.wait(30)
    tracker.done_batch(2, 0.1, 1)
"""


def outputs_of(kernel, source, allow_stdin):
    """The messages of one cell, asked for as JupyterLab does (input allowed) or as nbclient does."""
    messages = []
    reply = kernel.client.execute_interactive(
        source, allow_stdin=allow_stdin, timeout=60, output_hook=messages.append, stdin_hook=lambda _: None
    )
    assert reply["content"]["status"] == "ok", messages
    return messages


@pytest.mark.kernel
def test_a_page_sees_a_widget_that_static_html_replaces(kernel):
    outputs_of(kernel, PRELUDE, allow_stdin=True)
    messages = outputs_of(kernel, RUN, allow_stdin=True)

    (first,) = [m["content"] for m in messages if m["msg_type"] == "display_data"]
    (last,) = [m["content"] for m in messages if m["msg_type"] == "update_display_data"]
    assert widget._WIDGET in first["data"]
    assert set(last["data"]) == {"text/plain", "text/html"}
    assert last["transient"] == first["transient"]
    assert first["metadata"]["ipyparcache"]["kind"] == last["metadata"]["ipyparcache"]["kind"] == "progress"
    assert last["data"]["text/plain"].startswith("✓ %%parallel · 2/2")
    kinds = [m["msg_type"] for m in messages]
    assert kinds.count("comm_close") == kinds.count("comm_open"), "a widget was left open"


@pytest.mark.kernel
def test_nbclient_gets_the_static_summary_only(kernel):
    outputs_of(kernel, PRELUDE, allow_stdin=False)
    messages = outputs_of(kernel, RUN, allow_stdin=False)

    kinds = [m["msg_type"] for m in messages]
    assert "comm_open" not in kinds
    assert kinds.count("display_data") == 1
    (shown,) = [m["content"] for m in messages if m["msg_type"] == "display_data"]
    assert set(shown["data"]) == {"text/plain", "text/html"}


@pytest.mark.kernel
def test_two_nested_bars_stay_apart(kernel):
    outputs_of(kernel, PRELUDE, allow_stdin=True)
    messages = outputs_of(
        kernel,
        'outer = Tracker(1, "outer")\nwith widget.show(outer):\n    assert appeared.wait(30)\n'
        + "".join(f"    {line}\n" for line in RUN.splitlines())
        + "    outer.done(0)\n",
        allow_stdin=True,
    )

    last = {
        m["content"]["transient"]["display_id"]: m["content"]["data"]["text/plain"]
        for m in messages
        if m["msg_type"] == "update_display_data"
    }
    assert sorted(text.split(" · ")[0] for text in last.values()) == ["✓ %%parallel", "✓ outer"]


@pytest.mark.kernel
def test_a_kernel_without_ipywidgets_shows_the_states_as_html_in_one_place(kernel):
    outputs_of(kernel, "import sys\nsys.modules['ipywidgets'] = None" + PRELUDE, allow_stdin=True)
    shown = [m for m in outputs_of(kernel, RUN, allow_stdin=True) if "display" in m["msg_type"]]
    first, last = shown[0]["content"], shown[-1]["content"]

    assert set(first["data"]) == {"text/html", "text/plain"}
    assert first["data"]["text/plain"].startswith("▸ %%parallel")
    assert 'role="progressbar"' in first["data"]["text/html"]
    assert last["transient"]["display_id"] == first["transient"]["display_id"]
    assert last["data"]["text/plain"].startswith("✓ %%parallel · 2/2")
