"""Functions that numba compiles are inputs and outputs by the functions that they were made from."""

import pytest

from ipyparcache import last_run

pytestmark = pytest.mark.usefixtures("extension")

TOTAL = """
import numba
@numba.njit
def step(x):
    return x + 1
@numba.njit
def total(values):
    result = 0.0
    for value in values:
        result += value
    return step(result)
"""


def test_a_cell_that_calls_one_is_kept_over_a_restart(cell, cached, names, restart):
    cell(TOTAL)
    body = "import numpy\nn = total(numpy.ones(3))"
    assert cached(body) == "miss"
    assert cached(body) == "hit"  # though it is compiled by now
    restart()
    cell(TOTAL)

    assert cached(body) == "hit"
    assert names["n"] == 4


def test_another_helper_is_another_input(cell, cached, names, restart):
    cell(TOTAL)
    assert cached("n = total((1.0, 2.0))") == "miss"
    restart()
    cell(TOTAL.replace("x + 1", "x + 10"))

    assert cached("n = total((1.0, 2.0))") == "miss"
    assert names["n"] == 13


def test_what_was_compiled_with_another_helper_is_not_stored(cell, cached, names):
    cell(TOTAL)
    cell("total((1.0, 2.0))")
    cell("@numba.njit\ndef step(x):\n    return x + 10")

    assert cached("n = total((1.0, 2.0))") == "not stored"
    assert "another `step`" in (last_run().reason or "")
    assert names["n"] == 4


@pytest.mark.parametrize(
    "body", ["    return x * scale", "    def inner(y):\n        return y * scale\n    return inner(x)"]
)
def test_a_global_that_is_compiled_in_is_named(cell, cached, body):
    cell(f"import numba\nscale = 2.0\n@numba.njit\ndef scaled(x):\n{body}")
    assert cached("n = scaled(1.0)") == "not stored"
    assert "compiles the value of `scale` in" in (last_run().reason or "")


@pytest.mark.parametrize(
    "body",
    [
        TOTAL + "n = total((1.0, 2.0))",
        "import numba\ndef plain(x):\n    return 2 * x\nmade = numba.njit(plain)\nn = made(2)",
        "import numba\nmade = numba.vectorize(lambda x: 2 * x)\nn = int(made(2))",
        "import numba\nmade = numba.vectorize(['float64(float64)'])(lambda x: 2 * x)\nn = int(made(2.0))",
        "import numba\n@numba.njit('f8(f8)', fastmath=True)\ndef made(x):\n    return 2 * x\nn = made(2)",
    ],
)
def test_one_that_a_cell_makes_comes_back(cell, cached, names, restart, body):
    assert cached(body) == "miss"
    before = names["n"]
    restart()

    assert cached(body) == "hit"
    assert names["n"] == before == 4
    cell("again = total((1.0, 2.0)) if 'total' in globals() else made(2.0)")
    assert names["again"] == 4


def test_a_function_that_a_library_compiles_goes_by_its_name(
    cell, cached, names, restart, tmp_path, monkeypatch
):
    made = tmp_path / "site-packages"
    made.mkdir()
    text = "import numba\nFACTOR = 3\n@numba.njit\ndef times(x):\n    return x * FACTOR\n"
    (made / "compiledlib.py").write_text(text)
    monkeypatch.syspath_prepend(str(made))
    body = "import compiledlib\nf = compiledlib.times\nn = f(2)"
    assert cached(body) == "miss"
    restart()

    assert cached(body) == "hit"
    assert names["n"] == 6
    assert names["f"] is names["compiledlib"].times
