"""What is printed only if an iteration is better than those before it: by the kernel, in its place."""

from __future__ import annotations

import pytest

from ipyparcache.errors import LoopRefused
from tests.cells.sessions import describe, new_namespace, parallel, serial

SETUP = "best, out = 0, []\nxs = [3, 1, 4, 1, 5, 9, 2, 6]"
CELL = """
for i, x in enumerate(xs):
    print('trying', x)
    if x > best:
        print(f'{best} -> {x:.1f}', end=' ')
        best = x
        print('now', best, sep=': ')
    else:
        print('not', round(best, 1))
    print('done', i)
    out.append(x)
"""


@pytest.mark.parametrize(
    "options",
    [{"chunk": 1}, {"chunk": 3}, {"jobs": 1}, {"backend": "threads"}, {"cached": True}, {"retries": 1}],
)
def test_what_the_kernel_prints_comes_between_what_the_iteration_prints(options):
    plain, tested = new_namespace(SETUP), new_namespace(SETUP)
    text, _ = serial(plain, CELL)

    host, error, _ = parallel(tested, CELL, **options)

    assert error is None
    assert host.stdout == text
    assert describe(tested) == describe(plain)


def test_iterations_that_were_kept_print_the_same_again(extension, cell, names, capsys):
    cell(SETUP)
    cell("%%parallel --cached --quiet\n" + CELL)
    first = capsys.readouterr().out
    names["best"] = 0

    cell("%%parallel --cached --quiet\n" + CELL)

    assert capsys.readouterr().out == first
    assert "0 -> 3.0 now: 3\ndone 0" in first


def test_a_long_iteration_does_not_show_what_comes_behind_before_it(monkeypatch):
    monkeypatch.setattr("ipyparcache.cells.relaying.HOLD", 0.0)
    plain, tested = new_namespace(SETUP), new_namespace(SETUP)
    text, _ = serial(plain, CELL)

    host, _, _ = parallel(tested, CELL, chunk=1)

    assert host.stdout == text


OTHERS = {
    "another_print": ("from pprint import pprint as print", {}),
    "background": ("", {"background": "later"}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_be_printed_in_its_place_is_refused(name):
    more, options = OTHERS[name]

    _, error, _ = parallel(new_namespace(f"{SETUP}\n{more}"), CELL, **options)

    assert isinstance(error, LoopRefused)
    assert "Move the `print` behind the loop" in str(error)


def test_a_name_that_is_not_bound_fails_behind_what_comes_before_it():
    cell = "for x in xs:\n    if x > best:\n        best = x\n        print(best, nowhere)"
    plain, tested = new_namespace(SETUP), new_namespace(SETUP)
    _, error = serial(plain, cell)

    _, raised, _ = parallel(tested, cell)

    assert type(raised) is type(error) is NameError
    assert describe(tested) == describe(plain)


def test_an_operand_that_is_not_wanted_may_fail_and_one_that_is_wanted_fails_where_it_does_serially():
    cell = "for i, x in enumerate(xs):\n    if x > best:\n        best = x\n        after = xs[i + {n}]"
    for n in (2, 3):  # the largest has two behind it
        plain, tested = new_namespace(SETUP), new_namespace(SETUP)
        _, error = serial(plain, cell.format(n=n))

        _, raised, _ = parallel(tested, cell.format(n=n))

        assert type(raised) is type(error)
        assert describe(tested) == describe(plain)
        assert (n == 3) is isinstance(error, IndexError)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    ("taken", "name"),
    [("from tqdm import tqdm", "tqdm"), ("import tqdm.auto", "tqdm.auto.tqdm")],
)
def test_what_a_bar_is_told_to_write_comes_in_its_place(taken, name, at_once, monkeypatch):
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread that outlives the test
    cell = (
        f"for x in {name}(xs, disable=True):\n    print('at', x)\n    {name}.write(str(x))\n"
        "    print('behind', x)"
    )
    before, cell = (SETUP, f"{taken}\n{cell}") if at_once else (f"{SETUP}\n{taken}", cell)
    text, _ = serial(new_namespace(before), cell)

    host, error, _ = parallel(new_namespace(before), cell)

    assert error is None
    assert host.stdout == text
