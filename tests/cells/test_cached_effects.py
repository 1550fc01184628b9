"""What a hit leaves is what the run left: objects, sharing, changes in place, definitions, settings."""

import subprocess
import sys
import textwrap

import pytest

from ipyparcache import last_run

pytestmark = pytest.mark.usefixtures("extension")


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


COLLECTED = """
import gc, importlib
from ipyparcache.cells import arrivals
for allocations in range(1, 700):
    gc.collect()
    gc.set_threshold(allocations, 1, 1)
    importlib.reload(arrivals)
    assert "_fields" in arrivals.OF_NAMEDTUPLES, allocations
"""


def test_what_named_tuples_have_is_known_whenever_garbage_is_collected():
    ran = subprocess.run([sys.executable, "-c", COLLECTED], capture_output=True, text=True, timeout=60)

    assert ran.stderr == ""


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


@pytest.mark.parametrize("size", [5, 20_000])  # inside the pickle, beside it
def test_an_array_that_is_not_mapped_owns_its_memory_after_a_hit(cell, cached, names, restart, size):
    for expected in ("miss", "hit"):
        restart()
        cell("import numpy as np")
        assert (
            cached(f"a = np.arange({size}.)\nb = np.ones((2, 3), order='F')\nb.flags.writeable = False")
            == expected
        )

    cell("view = a[1:]\nsame = view.base is a\ndel view\na.resize(3)")
    assert names["same"]
    assert names["a"].tolist() == [0, 1, 2]
    assert names["b"].flags.owndata
    assert names["b"].flags.f_contiguous
    assert not names["b"].flags.writeable


def test_a_class_of_a_library_that_holds_a_lock_is_an_input_like_others(cell, cached, names):
    cell("from tqdm import tqdm\ntqdm.set_lock(tqdm.get_lock())")

    assert cached("n = tqdm.__name__") == "miss"
    assert cached("n = tqdm.__name__") == "hit"


@pytest.mark.parametrize(
    ("setup", "body", "same"),
    [
        ("import datetime as dt\nxs = [dt.date(2024, 1, n) for n in (1, 3, 2)]", "y = max(xs)", "y is xs[1]"),
        ("from decimal import Decimal\nxs = {'a': Decimal('1.5')}", "y = xs['a']", "y is xs['a']"),
        ("from pathlib import Path\nx = Path('a')", "y = {x: 1}", "next(iter(y)) is x"),
        (
            "import pandas as pd\nxs = (pd.Timestamp(5), pd.Timestamp(5))",
            "y = xs[1]",
            "y is xs[1] is not xs[0]",
        ),
        (
            "from collections import namedtuple\nE = namedtuple('E', 'a b')\nxs = [E(2, [1]), E(1, [])]",
            "by = {e.a: e for e in xs}; xs.sort(); xs[0].b.append(7)",
            "by[1] is xs[0] and by[2] is xs[1] and by[1].b == [7]",
        ),
        ("import pandas as pd\nx = pd.DataFrame({'a': [1]})", "y = x.columns", "y is x.columns"),
        (
            "import pandas as pd\nx = pd.DataFrame({'a': [1]}, index=['u']); labels = x.index",
            "x['b'] = 2",
            "x.index is labels and list(x) == ['a', 'b']",
        ),
        (
            "from fractions import Fraction\nxs = [(Fraction(1, n), n) for n in range(1, 2000)]",
            "y = [f for f, n in xs if n % 2]; z = y[3]",
            "z is y[3] is xs[6][0]",
        ),
    ],
)
def test_immutable_objects_of_the_inputs_stay_the_same_objects(
    cell, cached, names, restart, setup, body, same
):
    cell(setup)
    cached(body)
    assert eval(same, names)
    restart()
    cell(setup)

    assert cached(body) == "hit"
    assert eval(same, names)


def test_equal_objects_that_are_shared_otherwise_are_no_hit_that_mixes_them_up(cell, cached, names):
    make = "from fractions import Fraction\nfrom typing import NamedTuple\n"
    make += "class Pair(NamedTuple):\n  one: Fraction\n  two: Fraction\n"
    cell(make + "p = Pair(Fraction(1, 2), Fraction(1, 3)); xs = [p, Pair(*p), Fraction(1, 5)]")
    body = "y = xs[2]"
    cached(body)
    cell("xs[1] = p")

    assert cached(body) in ("hit", "miss")
    assert names["y"] is names["xs"][2]


def test_an_equal_object_in_place_of_one_that_was_shared_is_no_hit(cell, cached, names):
    cell("import datetime as dt\ndays = [dt.date(2024, 1, n) for n in (1, 2)]; last = days[1]")
    body = "pair = (last, days[0])"
    assert [cached(body), cached(body)] == ["miss", "hit"]
    cell("last = dt.date(2024, 1, 2)")

    assert cached(body) == "miss"
    assert names["pair"][0] is names["last"]


def test_a_read_only_array_of_objects_comes_back_read_only(cached, names, restart):
    body = "import numpy\na = numpy.array(['b', None, [1]], dtype=object)\na.flags.writeable = False"
    assert cached(body) == "miss"
    restart()

    assert cached(body) == "hit"
    assert names["a"].tolist() == ["b", None, [1]]
    assert not names["a"].flags.writeable
