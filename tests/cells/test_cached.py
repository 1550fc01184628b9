"""What is a hit and what a miss: the inputs of a cell, and the options that add to them."""

import sys

import pytest

from ipyparcache import last_run
from ipyparcache.storage.entry import open_entries

pytestmark = pytest.mark.usefixtures("extension")


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


def test_whether_a_module_that_the_cell_names_is_loaded_is_an_input(cell, cached, monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    cell("import sys\ndef is_there(): return 'colorsys' in sys.modules")
    assert [cached("r = is_there()"), cached("r = is_there()")] == ["miss", "hit"]

    cell("import colorsys")

    assert cached("r = is_there()") == "miss"


def test_an_entry_can_be_compressed(cell, cached, names, restart):
    body = "import numpy as np\na = np.zeros(500_000)"
    assert cached(body, "--compress lz4") == "miss"
    assert last_run().bytes < 200_000
    restart()

    assert cached(body, "--compress lz4") == "hit"
    assert names.pop("a").sum() == 0
