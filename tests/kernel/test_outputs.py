import io
import os
import sys
import threading

import pytest
from IPython.display import HTML, clear_output, display

from ipyparcache.kernel import outputs
from ipyparcache.kernel.outputs import (
    OWN,
    Clear,
    Display,
    Record,
    Result,
    Stream,
    recording,
    replay,
    show_note,
)


@pytest.fixture
def published(shell, monkeypatch):
    """Everything that the shell's publisher is given, in order."""
    seen = []
    publish, clear = type(shell.display_pub).publish, type(shell.display_pub).clear_output

    def noted_publish(self, data, metadata=None, **more):
        seen.append((data, metadata or {}))
        return publish(self, data, metadata, **more)

    monkeypatch.setattr(type(shell.display_pub), "publish", noted_publish)
    monkeypatch.setattr(
        type(shell.display_pub), "clear_output", lambda self, wait=False: seen.append("clear")
    )
    assert clear is not None
    return seen


def test_texts_and_displays_are_recorded_in_their_order_and_pass_on(shell, capsys):
    record = Record()
    with recording(shell, record, silenced=False):
        print("one", end="")
        print(" two")
        print("careful", file=sys.stderr)
        display(HTML("<b>three</b>"))
        print("four")

    assert [type(event) for event in record.events()] == [Stream, Stream, Display, Stream]
    assert record.events()[0] == Stream("stdout", "one two\n")
    assert record.events()[1] == Stream("stderr", "careful\n")
    shown = capsys.readouterr()
    assert shown.out.startswith("one two\n")
    assert shown.err == "careful\n"


def test_results_are_recorded_with_their_values(shell, capsys):
    record = Record()
    with recording(shell, record, silenced=False):
        shell.displayhook([1, 2])

    assert record.events() == (Result({"text/plain": "[1, 2]"}, {}, 0),)
    assert record.values == [[1, 2]]


def test_a_silenced_result_is_not_shown(shell, capsys):
    record = Record()
    with recording(shell, record, silenced=True):
        shell.displayhook([1, 2])

    assert record.events() == ()
    assert capsys.readouterr().out == ""


def test_our_own_notes_are_not_recorded(shell, capsys):
    record = Record()
    with recording(shell, record, silenced=False):
        show_note(shell, "<i>cached</i>", "cached")

    assert record.events() == ()


def test_nothing_stays_tapped_after_the_block(shell, capsys):
    record = Record()
    with pytest.raises(ZeroDivisionError), recording(shell, record, silenced=False):
        _ = 1 / 0
    print("later")
    display(HTML("later"))
    shell.displayhook(1)

    assert record.events() == ()
    for part in (shell.display_pub, shell.displayhook):
        assert not {"publish", "write_format_data", "update_user_ns", "quiet"} & set(vars(part))


def test_a_replay_shows_the_same_and_sets_the_result(shell, published, capsys):
    events = (
        Stream("stdout", "one\n"),
        Clear(True),
        Display({"text/html": "<b>x</b>", "text/plain": "x"}, {"k": 1}, {}, False),
        Result({"text/plain": "'kept text'"}, {}, 0),
    )
    shell.execution_count = 5
    replay(shell, events, [{"a": 1}])

    assert "one\n" in capsys.readouterr().out
    assert published == ["clear", ({"text/html": "<b>x</b>", "text/plain": "x"}, {"k": 1})]
    assert shell.user_ns["_"] == {"a": 1}
    assert shell.user_ns["Out"][4] == {"a": 1}


def test_a_widget_is_replayed_by_its_static_form(shell, published):
    view = "application/vnd.jupyter.widget-view+json"
    replay(shell, (Display({view: {"model_id": "gone"}, "text/plain": "Bar"}, {}, {}, False),), [])

    assert published == [({"text/plain": "Bar"}, {})]


def test_notes_carry_our_key(shell, published):
    show_note(shell, "<i>h</i>", "h", kind="status")

    assert published == [({"text/html": "<i>h</i>", "text/plain": "h"}, {OWN: {"kind": "status"}})]


@pytest.fixture
def piped_kernel(request, kernel_loop):
    """A kernel that pumps descriptors 1 and 2, which it does not when it believes to be pytest."""
    test = os.environ.pop("PYTEST_CURRENT_TEST")
    try:
        return request.getfixturevalue("kernel")
    finally:
        os.environ["PYTEST_CURRENT_TEST"] = test


@pytest.mark.kernel
def test_in_a_kernel_c_level_output_and_children_are_part_of_the_record(piped_kernel):
    source = (
        "import os, subprocess, sys\n"
        "from ipyparcache.kernel.outputs import Record, recording\n"
        "record = Record()\n"
        "with recording(get_ipython(), record, silenced=False):\n"
        "    print('python')\n"
        "    os.write(1, b'descriptor\\n')\n"
        "    subprocess.run(['echo', 'child'])\n"
        "found = ''.join(e.text for e in record.events())\n"
    )

    assert sorted(piped_kernel.run(source).stdout.split()) == ["child", "descriptor", "python"]
    assert piped_kernel.run("sorted(found.split())").shown() == ["['child', 'descriptor', 'python']"]


@pytest.mark.kernel
def test_in_a_kernel_a_stream_that_the_user_put_around_its_own_shows_nothing_of_ours(piped_kernel):
    piped_kernel.run(
        "import os, sys\n"
        "from ipyparcache.kernel.outputs import Record, recording\n"
        "class Tee:\n"
        "    def __init__(self, stream): self.stream = stream\n"
        "    def write(self, text): return self.stream.write(text)\n"
        "    def __getattr__(self, name): return getattr(self.stream, name)\n"
        "plain, sys.stdout, record = sys.stdout, Tee(sys.stdout), Record()\n"
    )
    source = (
        "with recording(get_ipython(), record, silenced=False):\n"
        "    print('python')\n"
        "    os.write(1, b'descriptor\\n')\n"
    )

    assert sorted(piped_kernel.run(source).stdout.split()) == ["descriptor", "python"]
    piped_kernel.run("sys.stdout = plain\nfound = ''.join(e.text for e in record.events())")
    assert piped_kernel.run("sorted(found.split())").shown() == ["['descriptor', 'python']"]


def test_a_record_knows_that_the_pump_of_a_descriptor_did_not_deliver(shell, monkeypatch):
    class Pumped(io.StringIO):
        """A stream whose pump is alive and brings nothing."""

    over = threading.Event()
    pumped = Pumped()
    pumped.watch_fd_thread = threading.Thread(target=lambda: over.wait(), daemon=True)
    pumped.watch_fd_thread.start()
    monkeypatch.setattr(sys, "stdout", pumped)
    monkeypatch.setattr(outputs, "DRAIN_SECONDS", 0.01)
    record = Record()
    try:
        with recording(shell, record, silenced=False):
            print("python")
    finally:
        over.set()
        pumped.watch_fd_thread.join()

    assert record.incomplete
    assert record.events() == (Stream("stdout", "python\n"),)


def test_clearing_is_recorded(shell):
    record = Record()
    with recording(shell, record, silenced=False):
        clear_output(wait=True)
        assert record.clears_next
        shell.display_pub.publish({"text/plain": "1"})
        clear_output(wait=False)

    kinds = [type(event) for event in record.events()]
    assert kinds == [Clear, Display, Clear]
    assert not record.clears_next


def test_a_clear_that_waits_for_nothing_is_not_recorded(shell):
    record = Record()
    with recording(shell, record, silenced=False):
        clear_output(wait=True)

    assert record.clears_next
    assert record.events() == ()
