import asyncio
import gc
import os
import signal
import sys
import textwrap

import pytest

from ipyparcache import last_run
from ipyparcache.cells import runs
from ipyparcache.cells.runs import NoRun
from ipyparcache.storage.entry import open_entries

pytestmark = pytest.mark.usefixtures("extension")


@pytest.fixture
def restart(shell):
    """Forget all variables and what was imported from the working folder, as a new kernel would."""

    def forget():
        shell.reset(new_session=False)
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(os.getcwd()):
                del sys.modules[name]
        gc.collect()

    return forget


@pytest.fixture
def cached(cell):
    """Run a body under `%%cached`; the status of the run."""

    def run(body, line=""):
        cell(f"%%cached {line} --quiet\n{textwrap.dedent(body)}")
        return last_run().status

    return run


@pytest.fixture
def names(shell):
    return shell.user_ns


# -- hit or miss -----------------------------------------------------------------------------------


def test_a_cell_runs_once_and_then_comes_from_the_store(cell, cached, names, restart):
    cell("x = 3")
    assert cached("y = x * 2") == "miss"
    restart()
    cell("x = 3")

    assert cached("y = x * 2") == "hit"
    assert names["y"] == 6


def test_a_loop_over_what_its_variable_already_stands_for_hits(cell, cached, names, restart):
    setup = "days = {'2024-01-01': 'a b', '2024-01-02': 'b c'}\nfor day, text in days.items():\n  pass"
    body = "index = {}\nfor day, text in days.items():\n  index[day] = text.split()"
    cell(setup)
    assert cached(body) == "miss"
    restart()
    cell(setup)

    assert cached(body) == "hit"
    assert (names["day"], names["index"]["2024-01-01"]) == ("2024-01-02", ["a", "b"])


def test_a_library_with_named_tuples_is_imported_for_the_first_time(cell, cached, monkeypatch):
    monkeypatch.delitem(sys.modules, "statistics", raising=False)

    assert cached("import statistics") == "miss"


def test_a_decorator_that_counts_calls_counts_those_of_a_hit(cell, cached, names, restart):
    setup = """
    def counted(f):
        def inner(*args):
            inner.calls += 1
            return f(*args)
        inner.calls = 0
        return inner
    @counted
    def double(x):
        return 2 * x
    """
    cell(textwrap.dedent(setup))
    assert cached("y = double(3) + double(4)") == "miss"
    restart()
    cell(textwrap.dedent(setup))

    assert cached("y = double(3) + double(4)") == "hit"
    assert (names["y"], names["double"].calls) == (14, 2)
    assert names["double"](1) == 2


def test_code_that_a_cell_puts_into_a_function_comes_back(cell, cached, names, restart):
    setup = "def f(): return 1\ndef g(): return 2"
    cell(setup)
    assert cached("f.__code__ = g.__code__") == "miss"
    restart()
    cell(setup)

    assert cached("f.__code__ = g.__code__") == "hit"
    assert names["f"]() == 2


def test_a_class_with_values_of_the_standard_library_is_defined_again(cell, cached, names, restart):
    body = """
    import itertools, re
    from datetime import timedelta
    from decimal import Decimal
    class Account:
        numbers = itertools.count(1000)
        rate, pause, name = Decimal("0.031"), timedelta(days=1), re.compile("[a-z]+")
        def __init__(self):
            self.number = next(Account.numbers)
    """
    cached(body)
    restart()

    assert cached(body) == "hit"
    assert names["Account"]().number == 1000
    assert cached("account = Account()") == "miss"
    restart()
    cached(body)
    assert cached("account = Account()") == "miss"  # the count stood one further on
    restart()
    cached(body)
    names["Account"]()
    assert cached("account = Account()") == "hit"
    assert (names["account"].number, next(names["Account"].numbers)) == (1001, 1002)


def test_a_loop_whose_variable_is_a_part_of_what_it_changes_hits(cell, cached, names, restart):
    setup = "rows = [[1], [2]]\nfor row in rows:\n  pass"
    body = "for row in rows:\n  row.append(0)"
    cell(setup)
    assert cached(body) == "miss"
    restart()
    cell(setup)

    assert cached(body) == "hit"
    assert names["rows"] == [[1, 0], [2, 0]]
    assert names["row"] is names["rows"][1]


def test_a_name_that_a_loop_may_bind_counts_when_it_stood_for_something_else(cell, cached, names, restart):
    body = "for row in rows:\n  row.append(0)"
    cell("rows = [[1], [2]]\nrow = rows[1]")
    assert cached(body) == "miss"
    restart()
    cell("rows = [[1], [2]]\nrow = [2]")

    assert cached(body) == "miss"
    assert names["row"] is names["rows"][1]


@pytest.mark.parametrize(
    "body",
    [
        "limit = 1\nn = len(table.query('a > @limit'))",
        "with np.load('kept.npz') as kept:\n  n = len(kept)\nn += 1",
    ],
)
def test_a_cell_hits_in_the_kernel_in_which_it_ran_although_its_names_are_bound_now(cell, cached, body):
    cell("import numpy as np, pandas as pd\ntable = pd.DataFrame({'a': [1, 2]})")
    cell("np.savez('kept.npz', table.a)")
    assert cached(body) == "miss"

    assert cached(body) == "hit"


@pytest.mark.parametrize(
    ("before", "after", "body"),
    [
        ("x = 1", "x = True", "y = repr(x)"),
        ("x = 0.0", "x = -0.0", "y = repr(x)"),
        ("d = {'a': 1, 'b': 2}", "d = {'b': 2, 'a': 1}", "y = list(d)"),
        ("x = [[0], [0]]", "r = [0]; x = [r, r]", "y = len(x)"),
        ("def f(): return 1", "def f(): return 2", "y = f()"),
        ("def g(): return 1\ndef f(): return g()", "def g(): return 2\ndef f(): return g()", "y = f()"),
        ("K = 1\ndef f(): return K", "K = 2\ndef f(): return K", "y = f()"),
        ("class C:\n  k = 1\nc = C()", "class C:\n  k = 2\nc = C()", "y = c.k"),
        ("f = (lambda n: lambda: n)(1)", "f = (lambda n: lambda: n)(2)", "y = f()"),
        ("pass", "start = 5", "try:\n  y = start\nexcept NameError:\n  y = 0"),
        ("pass", "def max(v): return -1", "y = max([1, 2])"),
        (
            "import numpy as np; a = np.arange(6)",
            "import numpy as np; a = np.arange(6).reshape(2, 3)",
            "y = a.shape",
        ),
    ],
)
def test_a_changed_input_is_a_miss_and_going_back_is_a_hit(cell, cached, names, before, after, body):
    cell(before)
    cached(body)
    first = names["y"]
    cell("del start") if "start" in names else None
    cell(after)
    assert cached(body) == "miss"
    cell("\n".join(f"globals().pop({name!r}, None)" for name in ("start", "max")))
    cell(before)

    assert cached(body) == "hit"
    assert names["y"] == first


def test_comments_and_layout_are_no_change(cell, cached):
    cached("y = {'k': 1}")

    assert cached("# why\n\ny = {\n  'k': 1,\n}  # so") == "hit"


def test_an_ignored_name_is_no_input(cell, cached):
    cell("verbose, x = False, 1")
    cached("y = x, verbose", "--ignore verbose")
    cell("verbose = True")
    assert cached("y = x, verbose", "--ignore verbose") == "hit"
    cell("x = 2")

    assert cached("y = x, verbose", "--ignore verbose") == "miss"


def test_the_value_of_a_key_expression_is_an_input(cell, cached):
    cell("version = 1")
    cached("y = 1", "--key version")
    assert cached("y = 1", "--key version") == "hit"
    cell("version = 2")

    assert cached("y = 1", "--key version") == "miss"


def test_only_the_names_to_keep_are_restored(cell, cached, names, restart):
    body = "a = 1\nb = (i for i in range(3))"
    assert cached(body) == "not stored"
    assert cached(body, "a") == "miss"
    restart()

    assert cached(body, "a") == "hit"
    assert names["a"] == 1
    assert "b" not in names


def test_force_runs_and_replaces(cell, cached):
    cached("y = 1")

    assert cached("y = 1", "--force") == "miss"
    assert cached("y = 1") == "hit"


def test_an_entry_that_is_too_old_is_a_miss(cell, cached, monkeypatch):
    cached("y = 1", "--expires 1h")
    assert cached("y = 1", "--expires 1h") == "hit"
    import ipyparcache.cells.cached as module

    later = module.time.time() + 4000
    monkeypatch.setattr(module.time, "time", lambda: later)

    assert cached("y = 1", "--expires 1h") == "miss"


def test_another_store_is_another_store(cell, cached, tmp_path):
    cached("y = 1")
    assert cached("y = 1", f"--dir {tmp_path / 'other'}") == "miss"
    assert cached("y = 1", f"--dir {tmp_path / 'other'}") == "hit"


# -- what a hit leaves -----------------------------------------------------------------------------


def test_what_shared_an_object_still_does(cell, cached, names, restart):
    cached("a = [1]\nb = a\nc = {'a': a}")
    restart()
    assert cached("a = [1]\nb = a\nc = {'a': a}") == "hit"

    assert names["b"] is names["a"]
    assert names["c"]["a"] is names["a"]


def test_a_result_that_holds_an_input_holds_the_live_one(cell, cached, names, restart):
    cell("src = [1, 2]")
    cached("res = {'src': src}")
    restart()
    cell("src = [1, 2]")
    assert cached("res = {'src': src}") == "hit"

    assert names["res"]["src"] is names["src"]


@pytest.mark.parametrize(
    ("setup", "body", "left"),
    [
        ("v = [3, 1]", "v.sort()", [1, 3]),
        ("v = {'a': 1, 'b': 2}", "del v['a']", {"b": 2}),
        ("v = {1, 2}", "v.add(5)", {1, 2, 5}),
        ("v = bytearray(b'ab')", "v += b'c'", bytearray(b"abc")),
        ("from collections import deque\nv = deque([1], 2)", "v.append(2); v.append(3)", None),
        ("import numpy as np\nv = np.zeros(3)", "v[1] = 5", None),
        ("import pandas as pd\nv = pd.DataFrame({'x': [1]})", "v['z'] = v.x * 2", None),
    ],
)
def test_an_input_changed_in_place_is_changed_for_all_who_hold_it(
    cell, cached, names, restart, setup, body, left
):
    cell(f"{setup}\nother = [v]")
    assert cached(body) == "miss"
    expected = repr(names["v"])
    restart()
    cell(f"{setup}\nother = [v]")
    assert cached(body) == "hit"

    assert repr(names["v"]) == expected
    assert names["other"][0] is names["v"]
    assert left is None or names["v"] == left


def test_instances_are_instances_of_the_live_class(cell, cached, names, restart):
    source = "class P:\n  def __init__(self, v):\n    self.v = v"
    cell(source)
    cached("ps = [P(1), P(2)]")
    restart()
    cell(source)
    assert cached("ps = [P(1), P(2)]") == "hit"

    assert all(type(p) is names["P"] for p in names["ps"])
    assert [p.v for p in names["ps"]] == [1, 2]


def test_a_function_of_the_cell_sees_the_live_globals(cell, cached, names, restart):
    body = "def price(x):\n  return x * rate"
    cell("rate = 2")
    cached(body)
    restart()
    cell("rate = 5")
    assert cached(body) == "hit"

    assert names["price"](10) == 50
    assert names["price"].__globals__ is names


def test_a_closure_comes_back_over_the_live_globals(cell, cached, names, restart):
    setup = "base = 1\ndef adder(n):\n  def add(x):\n    return x + n + base\n  return add"
    cell(setup)
    cached("f = adder(10)")
    restart()
    cell(setup)
    assert cached("f = adder(10)") == "hit"
    cell("base = 100")

    assert names["f"](1) == 111


def test_figures_and_axes_come_back_as_one_drawing(cell, cached, names, restart):
    setup = "import matplotlib\nmatplotlib.use('agg')\nimport matplotlib.pyplot as plt"
    body = "fig, axes = plt.subplots(1, 2)\naxes[0].plot([1, 2])\nplt.close()"
    cell(setup)
    assert cached(body) == "miss"
    restart()
    cell(setup)
    assert cached(body) == "hit"

    assert names["axes"][0].figure is names["fig"]
    assert list(names["axes"][0].lines[0].get_ydata()) == [1, 2]
    assert names["plt"].get_fignums() == []


def test_a_cell_that_leaves_a_figure_open_is_not_stored(cell, cached, names):
    cell("import matplotlib\nmatplotlib.use('agg')\nimport matplotlib.pyplot as plt")
    assert cached("fig = plt.figure()") == "not stored"

    assert "open in pyplot" in last_run().reason
    names["plt"].close("all")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of how the backend observes its own traits
@pytest.mark.parametrize(
    ("setting", "value"), [("figure_formats", {"svg"}), ("print_figure_kwargs", {}), ("close_figures", False)]
)
def test_how_the_inline_backend_draws_figures_is_part_of_a_cell(cell, cached, monkeypatch, setting, value):
    from matplotlib_inline.config import InlineBackend

    backend = InlineBackend.instance()
    cached("x = 1")
    assert cached("x = 1") == "hit"

    monkeypatch.setattr(backend, setting, value)

    assert cached("x = 1") == "miss"


def test_imports_classes_and_functions_are_executed_again(cell, cached, names, restart):
    body = "import math as m\nclass T:\n  n = 3\ndef f(t):\n  return m.floor(t.n + 0.5)\nr = f(T())"
    cached(body)
    restart()
    assert cached(body) == "hit"

    import math

    assert names["m"] is math
    assert names["f"](names["T"]()) == 3
    assert names["T"].__module__ == "__main__"


def test_classes_that_use_the_cells_own_imports_are_made_again(cell, cached, names, restart):
    body = """
        from dataclasses import dataclass, field
        from enum import Enum, auto
        class Color(Enum):
            R = auto()
        @dataclass
        class Row:
            a: int
            b: list = field(default_factory=list)
            class Inner: pass
        vals = [Color.R, Row(1, [2]), Row.Inner()]
        n: int = 3
    """
    assert cached(body) == "miss"
    restart()
    assert cached(body) == "hit"

    assert names["vals"][0] is names["Color"].R
    assert names["vals"][1] == names["Row"](1, [2])
    assert type(names["vals"][2]) is names["Row"].Inner
    assert names["__annotations__"]["n"] is int


def test_deleted_names_are_deleted(cell, cached, names, restart):
    body = "tmp = sum(raw)\ntotal = tmp\ndel raw, tmp"
    cell("raw = [1, 2]")
    cached(body)
    restart()
    cell("raw, tmp = [1, 2], 'older'")
    assert cached(body) == "hit"

    assert {"raw", "tmp"}.isdisjoint(names)
    assert names["total"] == 3


def test_a_name_that_the_cell_left_alone_stays(cell, cached, names):
    body = "r = 1\nif flag:\n  extra = 'made'"
    cell("flag, extra = False, 'mine'")
    cached(body)
    cell("extra = 'other'")
    cached(body)

    assert names["extra"] == "other"


def test_a_name_bound_to_the_value_that_it_had_is_bound_by_a_hit(cell, cached, names, restart):
    cell("x = 1")
    cached("x = 1")
    restart()

    assert cached("x = 1") == "hit"
    assert names["x"] == 1


def test_a_view_of_an_input_is_a_view_again(cell, cached, names, restart):
    setup = "import numpy as np\na = np.arange(12.0).reshape(3, 4)"
    cell(setup)
    cached("row = a[1]\ncol = a[:, 2]")
    restart()
    cell(setup)
    assert cached("row = a[1]\ncol = a[:, 2]") == "hit"
    names["row"][2] = 99

    assert names["a"][1, 2] == 99
    assert names["col"][1] == 99


def test_a_large_array_is_mapped_and_writable(cell, cached, names, restart):
    body = "import numpy as np\na = np.arange(1_000_000.0)"
    cached(body)
    restart()
    assert cached(body) == "hit"
    names["a"][0] = 7
    restart()
    cached(body)

    assert names.pop("a")[0] == 0


def test_random_draws_continue_after_a_hit(cell, cached, names, restart):
    cell("import random\nrandom.seed(1)")
    cached("a = random.random()")
    cell("b = random.random()")
    first = names["a"], names["b"]
    restart()
    cell("import random\nrandom.seed(1)")
    assert cached("a = random.random()") == "hit"
    cell("b = random.random()")

    assert (names["a"], names["b"]) == first


# -- files and environment -------------------------------------------------------------------------


def test_a_file_that_was_read_is_an_input(cell, cached, names, tmp_path):
    (tmp_path / "d.txt").write_text("1")
    body = "with open('d.txt') as f:\n  v = int(f.read())"
    cached(body)
    assert cached(body) == "hit"
    (tmp_path / "d.txt").write_text("2")

    assert cached(body) == "miss"
    assert names["v"] == 2


def test_a_file_that_was_written_has_to_be_there(cell, cached, tmp_path):
    body = "with open('out.txt', 'w') as f:\n  f.write('x')\ny = 1"
    cached(body)
    assert cached(body) == "hit"
    (tmp_path / "out.txt").unlink()

    assert cached(body) == "miss"
    assert (tmp_path / "out.txt").read_text() == "x"


def test_a_file_named_in_a_text_that_nobody_was_seen_to_open_is_an_input(cell, cached, tmp_path):
    (tmp_path / "d.parquet").write_text("1")
    body = "path = 'd.parquet'\ny = len(path)"  # as a reader written in another language would get it
    cached(body)
    assert cached(body) == "hit"
    (tmp_path / "d.parquet").write_text("22")

    assert cached(body) == "miss"


def test_an_environment_variable_that_was_read_is_an_input(cell, cached, monkeypatch):
    monkeypatch.setenv("STAGE", "dev")
    cell("import os")
    cached("s = os.environ['STAGE']")
    assert cached("s = os.environ['STAGE']") == "hit"
    monkeypatch.setenv("STAGE", "prod")

    assert cached("s = os.environ['STAGE']") == "miss"
    assert "dev" not in str([entry.manifest for entry in open_entries().all()]).replace("/dev", "")


# -- not stored ------------------------------------------------------------------------------------


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
        ("import sys\nsys.setrecursionlimit(sys.getrecursionlimit() + 1)", "it changes the recursion limit"),
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
    assert cached(body) == "not stored"

    assert reason in last_run().reason
    assert list(open_entries().all()) == []


def test_functions_and_classes_that_call_themselves_come_back(cell, cached, names):
    body = """
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n != 0 and even(n - 1)
class Tree:
    def __init__(self, depth): self.inner = Tree(depth - 1) if depth else None
tree, r = Tree(2), even(10)
"""
    cached(body)
    cell("del even, odd, Tree, tree, r")

    assert cached(body) == "hit"
    assert names["odd"](3)
    assert type(names["tree"].inner) is names["Tree"]


def test_what_a_definition_holds_is_one_object_with_the_results_that_refer_to_it(cell, cached, names):
    body = """
class Table:
    rows = {'a': [1]}
    @staticmethod
    def f(): return 1
def g(memo={}): return memo
rows, row, f, memo = Table.rows, Table.rows['a'], Table.f, g()
"""
    cached(body)
    cell("del Table, g, rows, row, f, memo")

    assert cached(body) == "hit"
    table = names["Table"]
    assert names["rows"] is table.rows
    assert names["row"] is table.rows["a"]
    assert names["f"] is table.f
    assert names["memo"] is names["g"]()


def test_the_row_that_a_loop_over_a_frame_leaves_comes_back(cell, cached, names):
    cell("import pandas as pd\ndf = pd.DataFrame({'a': [1, 2], 'b c': [3, 4]})")
    body = "rows = list(df.itertuples())\nfor row in df.itertuples(name='Rec'): pass"
    cached(body)
    row = names["row"]
    cell("del row, rows")

    assert cached(body) == "hit"
    assert names["row"] == row
    assert names["row"].a == 2
    assert names["row"]._fields == row._fields
    assert type(names["row"]).__name__ == "Rec"
    assert type(names["rows"][0]) is type(names["rows"][1])


def test_a_row_that_may_be_one_of_the_inputs_is_not_stored(cell, cached, names):
    cell("import pandas as pd\nrows = list(pd.DataFrame({'a': [2, 1]}).itertuples())")

    assert cached("best = min(rows, key=lambda row: row.a)") == "not stored"
    assert "of an input" in last_run().reason


def test_a_named_nan_is_found_in_a_restored_list(cell, cached, names):
    cell("import math, numpy as np")
    body = "values = ['a', np.nan, math.nan, float('nan')]"
    cached(body)
    cell("del values")

    assert cached(body) == "hit"
    assert names["np"].nan in names["values"]
    assert names["math"].nan in names["values"]
    assert names["values"][3] is not names["np"].nan


def test_a_view_with_gaps_of_an_array_that_the_cell_changes_comes_back(cell, cached, names):
    make = "import numpy as np\nm = np.arange(12.0).reshape(4, 3)\ncolumn = m[:, 1]"
    cell(make)
    cached("m *= 2\ns = column.sum()")
    cell(make)

    assert cached("m *= 2\ns = column.sum()") == "hit"
    assert names["column"].tolist() == [2, 8, 14, 20]
    assert names["np"].shares_memory(names["column"], names["m"])


def test_a_result_that_shows_itself_is_the_last_value_after_a_hit(cell, cached, names):
    cell("class Shown:\n  def _ipython_display_(self): print('shown')")
    cached("Shown()")
    cell("0;")

    assert cached("Shown()") == "hit"
    assert type(names["_"]) is names["Shown"]


def test_a_cell_whose_result_cannot_be_shown_is_not_stored(cell, cached, names):
    cell("class Broken:\n  def __repr__(self): raise ValueError('no text')")

    assert cached("Broken()") == "not stored"
    assert "traceback" in last_run().reason


def test_a_count_that_the_cell_advances_is_as_far_after_a_hit(cell, cached, names):
    make = (
        "import itertools\nids = itertools.count(1)\nclass Item:\n  def __init__(self): self.id = next(ids)"
    )
    cell(make)
    cached("items = [Item(), Item()]")
    cell(make)

    assert cached("items = [Item(), Item()]") == "hit"
    assert next(names["ids"]) == 3


def test_a_csv_dialect_is_an_input_and_comes_back(cell, cached, names):
    cell("import csv\ncsv.register_dialect('above', delimiter=';')")
    body = "csv.register_dialect('mine', delimiter='|')\nr = list(csv.reader(['a;b|c'], 'above'))"
    cached(body)
    cell("csv.unregister_dialect('mine')")
    assert cached(body) == "hit"
    assert names["csv"].get_dialect("mine").delimiter == "|"
    cell("csv.unregister_dialect('mine')\ncsv.register_dialect('above', delimiter='|')")

    assert cached(body) == "miss"
    assert names["r"] == [["a;b", "c"]]
    cell("csv.unregister_dialect('mine')\ncsv.unregister_dialect('above')")


def test_the_level_of_a_logger_that_the_cell_finds_by_name_is_an_input_and_comes_back(cell, cached, names):
    cell("import logging")
    body = "r = logging.getLogger('app.a').getEffectiveLevel()\nlogging.getLogger('made').setLevel(10)"
    cached(body)
    cell("logging.getLogger('made').setLevel(0)")
    assert cached(body) == "hit"
    assert names["logging"].getLogger("made").level == 10
    cell("logging.getLogger('made').setLevel(0)\nlogging.getLogger('app').setLevel(40)")

    assert cached(body) == "miss"
    assert names["r"] == 40
    cell("logging.getLogger('made').setLevel(0)\nlogging.getLogger('app').setLevel(0)")


def test_the_arguments_that_a_parser_takes_from_the_command_line_are_an_input(
    cell, cached, names, monkeypatch
):
    monkeypatch.setattr("sys.argv", ["prog", "--n", "3"])
    cell("import argparse\nparser = argparse.ArgumentParser()\n_ = parser.add_argument('--n')")
    body = "r = parser.parse_args().n"
    cached(body)
    assert cached(body) == "hit"
    monkeypatch.setattr("sys.argv", ["prog", "--n", "4"])

    assert cached(body) == "miss"
    assert names["r"] == "4"


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


def test_an_entry_can_be_compressed(cell, cached, names, restart):
    body = "import numpy as np\na = np.zeros(500_000)"
    assert cached(body, "--compress lz4") == "miss"
    assert last_run().bytes < 200_000
    restart()

    assert cached(body, "--compress lz4") == "hit"
    assert names.pop("a").sum() == 0


# -- what is shown ---------------------------------------------------------------------------------


def test_output_is_replayed_and_the_result_is_set(cell, cached, names, capsys, restart):
    body = "import sys\nprint('out')\nprint('err', file=sys.stderr)\n[1, 2]"
    cached(body)
    first = capsys.readouterr()
    restart()
    assert cached(body) == "hit"

    again = capsys.readouterr()
    assert (again.out.replace("Out[2]", "Out[1]"), again.err) == (first.out, first.err)
    assert names["_"] == [1, 2]


def test_an_input_that_the_run_changed_is_not_told_as_the_run_left_it(cell, cached):
    body = "d['b'] = 2\nd['c'] = 3"
    cell("d = {'a': 1}")
    cached(body)
    cell("d = {'a': 1, 'x': 1}")
    cached(body)

    assert "d changed" in last_run().reason
    assert "dict 3" not in last_run().reason
    assert "dict 2" in last_run().reason


def test_what_is_no_value_is_told_without_a_type(cell, cached, tmp_path):
    tmp_path.joinpath("told_m.py").write_text("def f():\n    return 1\n")
    cell(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport told_m")
    cached("y = told_m.f()")
    tmp_path.joinpath("told_m.py").write_text("def f():\n    return 2222\n")
    cell("import importlib\nimportlib.reload(told_m)")
    cached("y = told_m.f()")

    told = [str(change) for change in last_run().changes]
    assert any("module told_m changed" in text for text in told)
    assert not any("None" in text for text in told)


def test_an_import_from_the_future_may_come_late(cell, cached, names, restart):
    body = "x = 1\nfrom __future__ import annotations\ndef f(a: Missing): return a"
    assert cached(body) == "miss"
    restart()
    assert cached(body) == "hit"
    assert names["f"].__annotations__ == {"a": "Missing"}


def test_closed_handles_come_back(cell, cached, names, restart):
    body = """
    import csv, gzip, sqlite3, zipfile
    with gzip.open('a.gz', 'wb') as packed: packed.write(b'a')
    with zipfile.ZipFile('a.zip', 'w') as archive: archive.writestr('m', 'x')
    with open('a.csv', 'w') as file: rows = csv.writer(file)
    base = sqlite3.connect(':memory:')
    base.close()
    """
    assert cached(body) == "miss"
    restart()
    assert cached(body) == "hit"
    assert names["packed"].closed
    assert names["archive"].namelist() == ["m"]
    assert names["file"].name == "a.csv"
    with pytest.raises(Exception, match="closed"):
        names["base"].execute("select 1")


def test_an_import_that_prints_is_heard_once(cell, cached, capfd, restart, tmp_path):
    text = "import os, sys, warnings\nprint('hello')\nprint('oh', file=sys.stderr)\nos.write(1, b'raw')\n"
    tmp_path.joinpath("prints_a.py").write_text(text + "sys.stdout.flush()\n")
    cell(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})")
    assert cached("import prints_a\nprint('then')") == "miss"
    first = capfd.readouterr()
    restart()
    cell("import sys")
    assert cached("import prints_a\nprint('then')") == "hit"
    again = capfd.readouterr()

    assert first.out.count("hello") == again.out.count("hello") == 1
    assert (first.err.count("oh"), again.err.count("oh")) == (1, 1)
    assert again.out.count("raw") <= 1


def test_what_an_import_of_a_hit_prints_for_the_first_time_is_heard(
    cell, cached, names, capfd, restart, tmp_path
):
    tmp_path.joinpath("prints_b.py").write_text("print('loaded')\n")
    cell(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport prints_b")
    assert cached("import prints_b\nx = 1") == "miss"
    restart()
    capfd.readouterr()
    assert cached("import prints_b\nx = 1") == "hit"

    assert capfd.readouterr().out == "loaded\n"


def test_a_warning_of_an_imported_module_points_at_the_one_who_imports(cell, capsys, tmp_path):
    tmp_path.joinpath("old_c.py").write_text(
        "import warnings\nwarnings.warn('old', DeprecationWarning, stacklevel=2)\n"
    )
    cell(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})")
    cell(
        "import warnings\nwith warnings.catch_warnings(record=True) as heard:\n"
        "  warnings.simplefilter('always')\n  import old_c"
    )
    cell("print([warning.lineno for warning in heard])")
    cell("print(any('modules.py' in warning.filename for warning in heard))")

    assert capsys.readouterr().out == "[4]\nFalse\n"


def test_an_error_shows_the_cell_and_no_watcher(cell, cached, capsys, tmp_path):
    with pytest.raises(FileNotFoundError):
        cached(f"import os\nos.path.getsize({str(tmp_path / 'missing')!r})")
    shown = capsys.readouterr().out

    assert "getsize" in shown
    assert "ipyparcache" not in shown


def test_a_silenced_result_is_not_shown_nor_kept_as_out(cell, cached, names, capsys):
    cached("[1, 2];")
    assert capsys.readouterr().out == ""
    assert cached("[1, 2];") == "hit"

    assert capsys.readouterr().out == ""
    assert names["_"] == ""


def test_the_status_line_says_what_happened(cell, capsys):
    cell("x = 1")
    cell("%%cached\ny = x")
    assert "stored" in capsys.readouterr().out
    cell("%%cached\ny = x")
    assert "cached · restored y" in capsys.readouterr().out
    cell("x = 2")
    cell("%%cached\ny = x")

    assert "because x changed (1 → 2)" in capsys.readouterr().out


def test_plain_says_it_on_stderr_and_quiet_not_at_all(cell, capsys):
    cell("%%cached --plain\ny = 1")
    shown = capsys.readouterr()
    assert "stored" in shown.err
    assert shown.out == ""
    cell("%%cached --quiet\ny = 1")
    shown = capsys.readouterr()

    assert (shown.out, shown.err) == ("", "")


def test_the_last_run_tells_status_reason_and_inputs(cell, cached):
    cell("x = [1]")
    cached("y = len(x)")
    run = last_run()

    assert run.status == "miss"
    assert {"x", "len"} <= set(run.inputs)
    assert run.bytes > 0
    assert run.seconds >= run.body_seconds >= 0
    cached("y = len(x)")
    assert last_run().hit


def test_asking_for_a_run_before_there_was_one_is_an_error_of_ours(monkeypatch):
    monkeypatch.setattr(runs, "_runs", type(runs._runs)())

    with pytest.raises(NoRun):
        last_run()


def test_a_changed_helper_is_shown_as_a_diff(shell, cell, cached):
    cell("def f(x):\n    return x + 1")
    cached("y = f(1)")
    cell("def f(x):\n    return x + 2")
    cached("y = f(1)")

    changes = last_run().changes
    assert [change.name for change in changes] == ["f"]
    assert any("x + 2" in line for line in changes[0].detail)


# -- the shell's corners ---------------------------------------------------------------------------


def test_a_cell_may_await_at_top_level(shell, cached, names, restart):
    source = "%%cached --quiet\nimport asyncio\nawait asyncio.sleep(0)\ny = 5"

    async def run():
        return await shell.run_cell_async(
            source, transformed_cell=shell.transform_cell(source), store_history=True
        )

    asyncio.run(run()).raise_error()
    assert names["y"] == 5
    assert last_run().status == "miss"
    restart()
    asyncio.run(run()).raise_error()

    assert names["y"] == 5
    assert last_run().status == "hit"


def test_a_line_magic_caches_a_statement(shell, cell, names):
    cell("def f(x): return x + 1")
    cell("%cached --quiet y = f(1)")
    assert last_run().status == "miss"
    cell("%cached --quiet y = f(1)")

    assert last_run().status == "hit"
    assert names["y"] == 2


def test_time_below_runs_live_around_the_cell(cell, capsys):
    cell("%%cached --quiet\n%%time\ny = 1")
    assert "Wall time" in capsys.readouterr().out
    cell("%%cached --quiet\n%%time\ny = 1")

    assert last_run().hit
    assert "Wall time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--forse", "did you mean `--force`?"),
        ("--compress zlib:x", "a level is a whole number"),
        ("--expires soon", "no duration"),
        ("3x", "neither an option nor"),
    ],
)
def test_a_wrong_line_is_a_usage_error_and_the_cell_does_not_run(shell, names, capsys, line, said):
    result = shell.run_cell(f"%%cached {line}\nran = 1")

    assert not result.success
    assert "ran" not in names
    assert said in capsys.readouterr().err


def test_an_error_is_shown_once_with_the_cells_own_line(shell, capsys):
    result = shell.run_cell("%%cached\nx = 1\n1 / 0", store_history=True)
    shown = capsys.readouterr().out + capsys.readouterr().err

    assert isinstance(result.error_in_exec, ZeroDivisionError)
    assert shown.count("Traceback") <= 1
    assert shown.count("ZeroDivisionError") <= 2
    result = shell.run_cell("undefined_name")
    assert "undefined_name" in capsys.readouterr().out


def test_nothing_hidden_is_left_in_the_namespace(cell, cached, names):
    before = set(names)
    cached("y = 1")
    cached("y = 1")

    assert {name for name in set(names) - before if not name.startswith("_")} == {"y"}


def test_automatic_mode_caches_every_cell_that_pays(shell, cell, names, restart):
    cell("%parcache auto on --min 0")
    cell("x = 2")
    cell("y = x + 1")
    restart()
    cell("x = 2")
    assert last_run().hit
    cell("y = x + 1")
    assert last_run().hit
    assert names["y"] == 3
    cell("%parcache auto on --min 1h")
    cell("z = 1")
    assert last_run().status == "not stored"
    cell("%parcache auto off")
    count = len(runs.runs())
    cell("w = 1")

    assert len(runs.runs()) == count


def test_the_magic_can_be_asked_for_help(cell, capsys):
    cell("%%cached --help\nx = 1")

    assert "--expires 7d" in capsys.readouterr().out


def test_a_question_mark_behind_a_magic_shows_its_options(shell, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.core.page.page", lambda text, *rest, **options: shown.append(str(text)))
    shell.run_cell("%%cached?")
    shell.run_cell("%parallel?")

    assert "--expires 7d" in shown[0]
    assert "--on-error HOW" in shown[1]


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


def test_a_class_that_registers_itself_is_made_once(cell, cached, names):
    cell("class Base:\n  REG = []\n  def __init_subclass__(cls):\n    Base.REG.append(cls.__name__)")
    cached("class One(Base): pass\nclass Two(One): pass")

    assert names["Base"].REG == ["One", "Two"]
    assert last_run().status == "not stored"


MEMO = """
import functools

@functools.lru_cache({size})
def pairs(a, b=0):
    return [a, b]
"""


@pytest.mark.parametrize("size", ["None", "2", "typed=True"])
def test_what_a_memo_remembered_comes_back_with_the_cell(cell, cached, names, restart, size):
    cell(MEMO.format(size=size))
    body = "first = pairs(1)\npairs(1.0)\npairs('a', b=(1, 2))\nlast = pairs(3)\npairs(1)"
    assert cached(body) == "miss"
    plain = names["pairs"].cache_info()
    restart()
    cell(MEMO.format(size=size))
    assert cached(body) == "hit"

    assert names["pairs"](3) is names["last"]
    assert (names["pairs"](1) is names["first"]) == (size != "2")
    assert names["pairs"].cache_info().currsize == plain.currsize
    assert names["pairs"](9, b=1) == [9, 1]


def test_a_memo_that_a_cell_defines_and_uses_comes_back_with_what_it_remembers(cell, cached, names, restart):
    body = "import functools\n@functools.lru_cache\ndef square(n): return [n, n * n]\nfour = square(2)"
    assert cached(body) == "miss"
    restart()
    assert cached(body) == "hit"

    assert names["square"](2) is names["four"]
    assert names["square"](3) == [3, 9]


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


def test_a_match_and_a_bunch_come_back_whole(cell, cached, names, restart):
    body = (
        "import re\nfrom sklearn.datasets import load_iris\n"
        "m = re.search('(b+)', 'abb'); same = [m]\nb = load_iris()"
    )
    assert cached(body) == "miss"
    restart()
    assert cached(body) == "hit", last_run().reason

    assert names["same"][0] is names["m"]
    assert (names["m"].groups(), names["m"].span()) == (("bb",), (1, 3))
    assert names["b"].__dict__ == {"_deprecated_key_to_warnings": {}}
    assert names["b"].data.shape == (150, 4)


@pytest.mark.parametrize("other", ["%%timeit -n 2 -r 1 -q", "%%prun -q", "%%capture got"])
def test_a_magic_below_that_shows_no_result_shows_none_of_a_cached_cell(cell, capsys, other):
    cell(f"%%cached --quiet\n{other}\ny = 6\ny * 7  # the answer")

    assert "42" not in capsys.readouterr().out


# -- shell commands --------------------------------------------------------------------------------


def test_shell_commands_are_cached_when_trusted(cell, cached, names, restart):
    setup, body = "word = 'hey'\n!true", "out = !echo $word {len(word)}\n!false"
    cell(setup)
    assert cached(body) == "not stored"
    assert "runs a magic or the shell" in last_run().reason
    cell(setup)
    assert cached(body, "--trust-shell") == "miss"
    restart()
    cell(setup)

    assert cached(body, "--trust-shell") == "hit"
    assert (list(names["out"]), names["_exit_code"]) == (["hey 3"], 1)
    cell("word = 'ho'")
    assert cached(body, "--trust-shell") == "miss"
    assert list(names["out"]) == ["ho 2"]


def test_other_magics_are_not_trusted_with_the_shell(cached):
    assert cached("%cd .\nx = 1", "--trust-shell") == "not stored"
    assert "runs a magic or the shell" in last_run().reason
