import ast

import numpy as np
import pytest

from ipyparcache import last_run
from ipyparcache.cells import auto


def trivial(source, **namespace):
    return auto.is_trivial(ast.parse(source), namespace)


@pytest.fixture
def minimum():
    auto.switch(on=True, min_seconds=1.0)
    yield
    auto.switch(on=False)


@pytest.mark.parametrize(
    "source",
    [
        "x = 1 + 1",
        "x = [1, 'a', (n, -n)]",
        "print(f'{n:.2f}', len('abc'))",
        "import os\nfrom json import dumps as d",
        "def f(x, y=1):\n    return [g(x) for _ in range(10**9)]",
        "n += 1",
        "if n > 2:\n    x = {'a': n}",
    ],
)
def test_cells_that_only_handle_plain_values_are_trivial(source):
    assert trivial(source, n=3)


@pytest.mark.parametrize(
    "source",
    [
        "x = f(1)",
        "x = table + 1",
        "table",
        "print(table)",
        "x = n.bit_length()",
        "x = [i for i in range(3)]",
        "for i in (1, 2):\n    pass",
        "x = 10 ** n",
        "x = 'a' * n",
        "x = [0][0]",
        "await n",
        "@f\ndef g(): pass",
        "def g(x=f()): pass",
        "class A:\n    x = 1",
        "with open('a'):\n    pass",
    ],
)
def test_whatever_may_take_time_is_not(source):
    assert not trivial(source, n=3, f=len, table=np.zeros(3))


def test_a_builtin_that_the_notebook_replaced_is_not_trivial():
    assert not trivial("print(1)", print=lambda value: value)


def test_a_cell_is_too_short_once_it_took_less_than_half_the_minimum(minimum):
    source = "x = f(1)"
    tree = ast.parse(source)

    assert not auto.is_too_short(source, tree, {})
    auto.note_seconds(source, 0.4)
    assert auto.is_too_short(source, tree, {})
    auto.note_seconds(source, 0.6)
    assert not auto.is_too_short(source, tree, {})


def test_with_a_minimum_of_nothing_every_cell_is_looked_up(minimum):
    auto.note_seconds("x = 1", 0.0)
    auto.switch(on=True, min_seconds=0.0)

    assert not auto.is_too_short("x = 1", ast.parse("x = 1"), {})


def test_a_short_cell_just_runs_and_says_so(extension, shell, cell):
    try:
        cell("%parcache auto on")
        cell("x = 1 + 1")
        cell("y = sorted([3, x])")
        assert "shorter" in last_run().reason
        cell("y = sorted([3, x])")

        assert shell.user_ns["y"] == [2, 3]
        assert last_run().status == "not stored"
        assert "too short" in last_run().reason
        with pytest.raises(ZeroDivisionError):
            cell("1 / 0")
    finally:
        cell("%parcache auto off")


@pytest.fixture
def automatic(extension, cell):
    cell("%parcache auto on --min 0")
    yield
    cell("%parcache auto off")


@pytest.mark.parametrize("magic", ["%timeit -n 2 -r 1", "%time", "%%time\n", "%%timeit -n 2 -r 1\n"])
def test_what_a_magic_measures_runs_as_often_as_the_magic_says(shell, cell, automatic, magic, capsys):
    cell("calls = []")
    cell(f"{magic} calls.append(1)")

    assert len(shell.user_ns["calls"]) == (2 if "timeit" in magic else 1)
    assert last_run().cell.strip() == "calls = []"


def test_code_that_a_cell_has_the_shell_run_is_part_of_that_cell(shell, cell, automatic):
    cell("get_ipython().run_cell('n = 1')")

    assert shell.user_ns["n"] == 1
    assert last_run().cell.startswith("get_ipython()")


@pytest.mark.parametrize("source", ["n = 7 # why not?", "n = (15\n% 8)", "text = '''\n!\n'''\nn = 7"])
def test_python_that_looks_like_a_magic_is_cached(shell, cell, automatic, source):
    cell(source)

    assert shell.user_ns["n"] == 7
    assert last_run().status == "miss"


@pytest.mark.parametrize("source", ["n = 7\n%who_ls", "n = 7\n\nn?", "n = 7\n?n"])
def test_a_cell_with_magics_of_its_own_just_runs(shell, cell, automatic, source, capsys):
    cell("before = 1")
    cell(source)

    assert shell.user_ns["n"] == 7
    assert last_run().cell.strip() == "before = 1"
