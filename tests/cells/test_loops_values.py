"""Small new values that iterations leave: they come home by the short way, and must be what they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipyparcache.cells.arrivals import Key
from ipyparcache.cells.journal import MOST_PARTS, stands_alone
from tests.cells.sessions import describe, new_namespace, parallel, serial

SAME = {
    "rows_as_tuples": ("out = []", "for i in range(300):\n    out.append((i, str(i), None, [i, {i}]))"),
    "a_row_that_is_also_bound": (
        "out = []",
        "for i in range(30):\n    row = {'i': i, 'x': i / 3}\n    pair = (row, row)\n    out.append(row)",
    ),
    "numbers_of_numpy": (
        "import numpy as np\nout, best = [], {}",
        "for i in range(40):\n    m = np.float64(i)\n    out.append(m)\n    best[np.int64(i % 7)] = m, m > 2",
    ),
    "shared_within_one_iteration": (
        "out = []",
        "for i in range(20):\n    one = [i]\n    out.append((one, one, [one, one]))",
    ),
    "objects_of_the_notebook_inside": (
        "base, out, half = {'k': [1]}, [], (1, [2])",
        "for i in range(20):\n    out.append((i, base, base['k'], half))",
    ),
    "a_list_in_itself": (
        "out = []",
        "for i in range(5):\n    loop = [i]\n    loop.append(loop)\n    out.append((i, loop))",
    ),
    "plain_and_other_values_in_turn": (
        "out = []",
        "for i in range(60):\n    out.append(i if i % 3 else [i])",
    ),
    "more_than_is_looked_at": ("out = []", "for i in range(4):\n    out.append(list(range(5000)) + [[i]])"),
    "elements_of_a_comprehension": ("import numpy as np", "out = [(i, np.float32(i)) for i in range(50)]"),
    "sets_and_keys": (
        "seen, table = set(), {}",
        "for i in range(40):\n    seen.add((i % 7, 'x'))\n    table[i % 5, 'k'] = [i]",
    ),
    "what_cannot_be_a_key": (
        "seen, out = {0}, []",
        "for i in range(9):\n    out.append((i,))\n    seen.add([i] if i == 6 else (i,))",
    ),
    "a_key_that_cannot_be": (
        "table = {}",
        "for i in range(9):\n    table[(i, [i]) if i == 4 else (i,)] = (i, i)",
    ),
    "not_all_names_bound": (
        "out = []",
        "for i in range(12):\n    if i % 4 == 0:\n        row = (i, [i])\n    out.append([i])",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_small_values_come_home_as_they_were(name):
    setup, cell = SAME[name]
    plain, tested = new_namespace(setup), new_namespace(setup)
    out, error = serial(plain, cell)

    host, raised, _ = parallel(tested, cell)

    assert (type(raised), str(raised)) == (type(error), str(error))
    assert describe(tested) == describe(plain)
    assert host.stdout == out


ATOMS = ("i", "i / 3", "str(i)", "None", "b'x'", "i > 2", "np.float64(i)", "np.int8(i % 7)", "1 << i", "-0.0")
SHARED = ("one", "pair", "base", "base['k']", "half", "base['row']")


def _containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    parts = st.lists(inner, min_size=1, max_size=3)
    keys = st.sampled_from([*ATOMS, "(i, 'x')"])
    return st.one_of(
        parts.map(lambda these: f"({', '.join(these)},)"),
        parts.map(lambda these: f"[{', '.join(these)}]"),
        st.dictionaries(keys, inner, min_size=1, max_size=2).map(
            lambda these: f"{{{', '.join(f'{key}: {value}' for key, value in these.items())}}}"
        ),
        st.lists(keys, min_size=1, max_size=2).map(lambda these: f"{{{', '.join(these)}}}"),
    )


VALUES = st.recursive(st.sampled_from([*ATOMS, *SHARED]), _containers, max_leaves=8)


@given(
    VALUES, VALUES, st.sampled_from(["out.append({0})", "table[i % 5] = {0}", "out.append({0}); last = {1}"])
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_small_value_comes_home_as_it_was(value, other, kept):
    setup = "import numpy as np\nout, table = [], {}\nbase = {'k': [1], 'row': (1, 'a')}\nhalf = (1, [2])"
    cell = "for i in range(9):\n    one = [i]\n    pair = (one, i)\n    " + kept.format(value, other)
    plain, tested = new_namespace(setup), new_namespace(setup)
    serial(plain, cell)

    parallel(tested, cell)

    assert describe(tested) == describe(plain)


def test_a_row_is_the_object_that_its_name_stands_for():
    tested = new_namespace("out = []")

    parallel(tested, "for i in range(8):\n    row = {'i': i}\n    out.append(row)")

    assert tested["out"][-1] is tested["row"]
    assert tested["out"] == [{"i": i} for i in range(8)]


def test_what_stands_alone():
    shared, none = [1], {}
    known: dict[int, Key] = {id(shared): ("b", 0)}
    endless: list[object] = []
    endless.append(endless)

    assert stands_alone((1, "a", [2.5, {None: {3}}], frozenset({b"b"})), none)
    assert stands_alone((np.float64(1), np.datetime64("2024-01-01"), np.str_("x")), none)
    assert stands_alone(endless, none)
    assert not stands_alone({"k": (shared,)}, known)
    assert not stands_alone([np.zeros(3)], none)
    assert not stands_alone([object()], none)
    assert not stands_alone([type("L", (list,), {})()], none)
    assert not stands_alone([np.void(b"x")], none)
    assert not stands_alone([[]] * (MOST_PARTS + 2), none)
