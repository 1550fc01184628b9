"""What is not stored and says why, and what goes wrong: the result of the cell stays."""

import signal
import sys

import pytest

from ipyparcache import last_run
from ipyparcache.storage.entry import open_entries

pytestmark = pytest.mark.usefixtures("extension")


def test_a_cell_that_leaves_a_figure_open_is_not_stored(cell, cached, names):
    cell("import matplotlib\nmatplotlib.use('agg')\nimport matplotlib.pyplot as plt")
    assert cached("fig = plt.figure()") == "not stored"

    assert "open in pyplot" in last_run().reason
    names["plt"].close("all")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = eval('1')", "line 2 uses eval()"),
        ("exec('r = 1')", "line 2 uses exec()"),
        ("r = globals()", "line 2 uses globals()"),
        ("r = 1\n!true", "line 3 runs a magic or the shell"),
        ("g = (i for i in range(3))", "`g` (generator) cannot be stored, line 2"),
        ("import threading\nlock = threading.Lock()", "`lock` (lock) cannot be stored, line 3"),
        ("import subprocess\nsubprocess.run(['true'])\nr = 1", "another program"),
        ("r = helper()", "a function that it calls uses eval()"),
        ("r = alias('1')", "is or uses eval, whose reach"),
        ("r = table['ev']('1')", "is or uses eval, whose reach"),
        ("r = by_module('helper')", "`by_module` uses sys.modules[__name__]"),
        ("import sys\nr = sys.modules[__name__]", "line 3 uses sys.modules[__name__]"),
        ("r = from_builtins('1')", "`from_builtins` uses eval"),
        ("r = imports_main('helper')", "is or uses import __main__"),
        ("r = getattr(notebook, 'helper')", "is or uses __main__"),
        ("import sys\nn = sys.getrefcount(sys)", "it calls sys.getrefcount(), whose answer is no input"),
        ("from gc import get_objects\nn = len(get_objects())", "it calls gc.get_objects(), whose answer"),
        ("import os\nos.nice(0)", "it calls os.nice(), whose effect"),
        ("with lock_above:\n  r = 1", "`lock_above` has no digest"),
        ("import atexit\natexit.register(bool)", "it calls atexit.register(), whose effect"),
        (
            "import codecs\ncodecs.register_error('m', codecs.ignore_errors)",
            "it calls codecs.register_error()",
        ),
        ("from collections.abc import Sized\nSized.register(complex)", "it calls Sized.register()"),
        ("import calendar\ncalendar.mdays.append(calendar.mdays.pop())", "it changes calendar.mdays"),
        ("import calendar\ncalendar.mdays[0] = 0", "it changes calendar.mdays, which belongs to a library"),
        ("import signal\nsignal.signal(signal.SIGUSR2, signal.SIG_IGN)", "it changes the signal handlers"),
        (
            "import logging\nlogging.getLogger('app').addHandler(logging.NullHandler())",
            "the handlers of loggers",
        ),
    ],
)
def test_what_is_not_stored_says_why_and_stays(cell, cached, names, body, reason):
    cell("import threading\nlock_above = threading.Lock()\ndef helper(): return eval('1')")
    cell("import sys, __main__ as notebook\nalias, table = eval, {'ev': eval}")
    cell("def by_module(name): return getattr(sys.modules[__name__], name)")
    cell("def from_builtins(text): return __builtins__.eval(text)")
    cell("def imports_main(name):\n  import __main__\n  return getattr(__main__, name)")
    assert cached(body) == "not stored"

    assert reason in last_run().reason
    assert list(open_entries().all()) == []


def test_names_that_are_taken_from_the_notebook_as_a_module_are_inputs(cell, cached, names):
    cell("import __main__ as notebook\nk = 1\ndef get():\n  from __main__ import k\n  return k")
    body = "r = notebook.k, get()"
    assert [cached(body), cached(body)] == ["miss", "hit"]

    cell("k = 2")

    assert cached(body) == "miss"
    assert names["r"] == (2, 2)


def test_what_is_printed_to_a_stream_of_the_notebook_is_not_stored(cell, cached, names, request):
    plain = sys.stdout
    request.addfinalizer(lambda: setattr(sys, "stdout", plain))
    body = "print('heard')\nr = 1"
    cached(body)
    cell(
        "import sys\nplain, told = sys.stdout, []\n"
        "class Tee:\n"
        "  def write(self, text): told.append(text); return plain.write(text)\n"
        "  def flush(self): plain.flush()\n"
        "sys.stdout = Tee()"
    )

    assert [cached(body), cached(body)] == ["not stored", "not stored"]
    assert "it prints to sys.stdout" in last_run().reason
    assert "".join(names["told"]).count("heard") == 2
    assert cached("r = 2") == "miss"


def test_a_name_of_labels_that_frames_share_is_given_without_storing(cell, cached, names):
    cell("import pandas as pd\ndf = pd.DataFrame({'a': [1, 2]}, index=['p', 'q'])")
    assert cached("df.index.name = 'alone'") == "miss"

    cell("other = pd.Series([1, 2], index=df.index)")

    assert cached("df.index.name = 'shared'") == "not stored"
    assert "others share them" in last_run().reason
    assert names["other"].index.name == "shared"


def test_a_row_is_stored_if_it_is_one_of_the_inputs_and_not_if_it_is_a_new_one_of_their_class(
    cell, cached, names
):
    cell("import pandas as pd\nrows = list(pd.DataFrame({'a': [2, 1]}).itertuples())")
    body = "best = min(rows, key=lambda row: row.a)"

    assert [cached(body), cached(body)] == ["miss", "hit"]
    assert names["best"] is names["rows"][1]
    assert cached("other = rows[0]._replace(a=5)") == "not stored"
    assert "of an input" in last_run().reason


def test_a_cell_whose_result_cannot_be_shown_is_not_stored(cell, cached, names):
    cell("class Broken:\n  def __repr__(self): raise ValueError('no text')")

    assert cached("Broken()") == "not stored"
    assert "traceback" in last_run().reason


def test_a_cell_that_raises_is_not_stored_and_its_effects_stay(cell, cached, names):
    with pytest.raises(ZeroDivisionError):
        cached("first = 1\nsecond = 1 / 0\nthird = 3")

    assert names["first"] == 1
    assert "third" not in names
    assert last_run().status == "not stored"
    assert list(open_entries().all()) == []


def test_an_interrupted_cell_is_not_stored(cell, cached, names):
    cell("import os, signal")
    with pytest.raises(KeyboardInterrupt):
        cached(f"half = 1\nos.kill(os.getpid(), {int(signal.SIGINT)})\nwhole = 2")

    assert names["half"] == 1
    assert last_run().status == "not stored"


def test_a_full_store_leaves_the_result(cell, cached, names, monkeypatch):
    from ipyparcache.errors import StoreUnavailable
    from ipyparcache.storage.entry import Entries

    def full(*_args, **_kwargs):
        raise StoreUnavailable("somewhere", "no space left on device")

    monkeypatch.setattr(Entries, "write", full)

    assert cached("y = 1") == "not stored"
    assert names["y"] == 1
    assert "no space left" in last_run().reason


def test_an_unforeseen_failure_of_ours_leaves_the_result(cell, cached, names, monkeypatch):
    from ipyparcache.cells import keeping

    def broken(*_args, **_kwargs):
        raise RuntimeError("never thought of")

    monkeypatch.setattr(keeping, "keep", broken)

    assert cached("y = 1") == "not stored"
    assert names["y"] == 1


def test_an_entry_that_does_not_load_is_a_miss(cell, cached, names, monkeypatch):
    cached("y = [1]")
    from ipyparcache.cells import keeping

    def broken(*_args, **_kwargs):
        raise ValueError("no")

    with monkeypatch.context() as patch:
        patch.setattr(keeping, "unpack", broken)
        cached("y = [1]")

    assert last_run().status != "hit"
    assert names["y"] == [1]


def test_verify_runs_a_hit_again_and_tells_what_differs(cell, cached, capsys):
    cell("import time")
    body = "y = time.perf_counter_ns()\nz = 1"
    cached(body, "--verify 100%")
    assert cached(body, "--verify 0") == "hit"
    assert cached(body, "--verify 100%") == "miss"

    assert "--verify: y came out otherwise" in capsys.readouterr().out
    assert cached("z = 1", "--verify 100%") == "miss"
    assert cached("z = 1", "--verify 100%") == "miss"
    assert "came out otherwise" not in capsys.readouterr().out


def test_an_entry_that_does_not_read_back_is_removed_with_check_store(cell, cached, monkeypatch):
    from ipyparcache.storage.entry import Entries

    cell("%parcache set check-store=on")
    assert cached("y = [1]") == "miss"
    write = Entries.write

    def garble(self, key, trace, manifest, pickled, buffers=(), **more):
        return write(self, key, trace, manifest, pickled + b"x", buffers, **more)

    monkeypatch.setattr(Entries, "write", garble)
    assert cached("z = [2]") == "not stored"
    cell("%parcache set check-store=off")

    assert "read back" in last_run().reason
    assert len(list(open_entries().all())) == 1


@pytest.mark.parametrize(
    ("setup", "body", "reason"),
    [
        ("import math", "math.tau = 6", "math.tau"),
        ("import json\ndef patch(): json.encoder.X = 1", "patch()", "json.encoder.X"),
        ("import json", "setattr(json, 'x', 1)", "json by setattr"),
        ("def f():\n  import json as j\n  j.encoder.X = 1", "f()", "j.encoder.X"),
        ("def f():\n  from json import encoder\n  encoder.X = 1", "f()", "encoder.X"),
        ("def f():\n  import json.encoder as e\n  e.X = 1", "f()", "e.X"),
        ("import calendar", "calendar.mdays[0] += 1", "calendar.mdays"),
        ("import calendar\ndef f(t): t[0] = 1", "f(calendar.mdays)", "calendar.mdays"),
        ("import calendar", "days = calendar.mdays\ndays[0] = 1\ndel days", "calendar.mdays"),
        ("def f():\n  from calendar import mdays as m\n  m[0] += 1", "f()", "changes m"),
    ],
)
def test_a_change_to_a_library_is_not_stored(cell, cached, setup, body, reason, monkeypatch):
    import calendar
    import json
    import math

    monkeypatch.setattr(math, "tau", math.tau)
    monkeypatch.setattr(calendar, "mdays", list(calendar.mdays))
    monkeypatch.setattr(json, "x", None, raising=False)
    monkeypatch.setattr(json.encoder, "X", None, raising=False)
    cell(setup)
    assert cached(body) == "not stored"

    assert reason in last_run().reason


def test_a_memo_that_remembers_objects_is_not_stored(cell, cached):
    cell("import functools\nclass A:\n  @functools.cache\n  def m(self): return [1]\na = A()")
    assert cached("x = a.m()") == "not stored"

    assert "no plain values" in last_run().reason


@pytest.mark.parametrize(
    "handler",
    ["logging.FileHandler('my.log')", "logging.StreamHandler(io.StringIO())", "Collecting()", "Streaming()"],
)
def test_a_record_that_goes_where_no_hit_brings_it_is_not_stored(cell, cached, handler):
    cell("import io, logging\nclass Collecting(logging.Handler):\n  def emit(self, record): pass")
    cell("class Streaming(logging.StreamHandler):\n  def emit(self, record): pass")
    cell(f"log = logging.getLogger('mine'); log.setLevel('INFO'); log.addHandler({handler})")
    try:
        assert cached("log.debug('not taken'); x = 1") == "miss"
        assert cached("log.info('taken'); x = 1") == "not stored"
        assert "it logs to <" in last_run().reason
    finally:
        cell("log.handlers.pop().close(); log.setLevel(0)")


def test_what_cannot_be_put_together_again_is_not_stored(cell, cached, tmp_path, monkeypatch):
    made = tmp_path / "site-packages"
    made.mkdir()
    text = (
        "def fail(): raise AttributeError('Process')\nclass Odd:\n    def __reduce__(self): return fail, ()\n"
    )
    (made / "oddlib.py").write_text(text)
    monkeypatch.syspath_prepend(str(made))

    assert cached("import oddlib\nodd = oddlib.Odd()") == "not stored"
    assert "cannot be put together again" in (last_run().reason or "")
