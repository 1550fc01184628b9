"""Loops that call functions which numba compiles: what is compiled in is what the serial loop would use."""

import pytest

from tests.cells.sessions import new_namespace, parallel, serial

SCALED = "import numba\nscale = 2.0\n@numba.njit\ndef scaled(x):\n    return x * scale\n"
CALLER = SCALED + "@numba.njit\ndef caller(x):\n    return scaled(x)\n"
TABLE = "import numba, numpy\ntable = numpy.ones(3)\n@numba.njit\ndef scaled(x):\n    return x * table[0]\n"


@pytest.mark.parametrize(
    ("setup", "runs"),
    [
        (SCALED, True),
        (SCALED + "scaled(1.0)", True),
        (SCALED + "scaled(1.0)\nscale = 5.0", False),
        (CALLER + "caller(1.0)\nscale = 5.0\ndef f(x): return caller(x)\nscaled = f", False),
        (TABLE + "scaled(1.0)\ntable[0] = 7", False),
        (TABLE, True),
    ],
)
def test_a_loop_uses_what_is_compiled_in(setup, runs):
    cell = "out = []\nfor i in range(6):\n    out.append(scaled(float(i)))"
    plain, tested = new_namespace(setup), new_namespace(setup)
    serial(plain, cell)

    host, error, _ = parallel(tested, cell)

    assert error is None
    told = [note for note in host.notes if "ran here" in note]
    assert len(told) == (not runs)
    assert all("Run the cell that defines `" in note for note in told)
    assert tested["out"] == plain["out"]
