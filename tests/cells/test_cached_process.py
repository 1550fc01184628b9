"""What lies in the process and no name of the cell leads to: filters of warnings, codecs, types of files."""

import mimetypes
import sys
import warnings

import pytest

from ipyparcache import last_run
from ipyparcache.cells import inputs
from ipyparcache.digest import warningfilters

pytestmark = pytest.mark.usefixtures("extension")

WARNS = "try:\n  warnings.warn('x', UserWarning)\n  r = 'warned'\nexcept UserWarning:\n  r = 'raised'"


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """The filters, file types and attributes that the tests replace, as they were."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warningfilters.begin(user_cells_ran=False)
        monkeypatch.setattr(mimetypes, "_db", None)
        for table in ("types_map", "common_types", "encodings_map", "suffix_map"):
            monkeypatch.setattr(mimetypes, table, getattr(mimetypes, table).copy())
        yield


@pytest.mark.parametrize(
    ("setup", "body", "change"),
    [
        ("import warnings", WARNS, "warnings.filters.insert(0, ('error', None, UserWarning, None, 0))"),
        (
            "import warnings",
            WARNS,
            "warnings.filters = [('error', None, UserWarning, None, 0), *warnings.filters]",
        ),
        (
            "import codecs\ncodecs.register_error('mine', lambda error: ('?', error.end))",
            "r = 'a\xe9'.encode('ascii', 'mine')",
            "codecs.register_error('mine', lambda error: ('!', error.end))",
        ),
        (
            "import mimetypes\nmimetypes.add_type('text/one', '.mine')",
            "r = mimetypes.guess_type('a.mine')",
            "mimetypes.add_type('text/two', '.mine')",
        ),
        (
            "import sys\nsys.chosen_by_test = 1\npart = 'chosen'",
            "r = getattr(sys, f'{part}_by_test')",
            "sys.chosen_by_test = 2",
        ),
        (
            "import sys\nsys.argv = ['prog']\npart = 'arg'",
            "r = list(getattr(sys, part + 'v'))",
            "sys.argv = ['prog', '--fast']",
        ),
    ],
)
def test_a_change_of_what_no_name_leads_to_is_a_miss(cell, cached, names, setup, body, change, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "chosen_by_test", 0, raising=False)
    cell(setup)
    assert [cached(body), cached(body)] == ["miss", "hit"]
    before = names["r"]
    cell(change)

    assert cached(body) == "miss"
    cell(body)
    assert names["r"] != before


def test_a_filter_that_a_cell_puts_in_by_hand_comes_back(cell, cached):
    standing = list(warnings.filters)
    cell("import warnings")
    body = "warnings.filters.insert(0, ('error', None, UserWarning, None, 0))"
    assert cached(body) == "miss"
    told = warningfilters.facts()
    warnings.filters[:] = standing

    assert cached(body) == "hit"
    assert warnings.filters[0] == ("error", None, UserWarning, None, 0)
    assert warningfilters.facts() == told


def test_a_filter_of_pythons_own_that_is_gone_is_an_input(cell, cached):
    warnings.filters[:] = [("ignore", None, ResourceWarning, None, 0)]
    warningfilters.begin(user_cells_ran=False)
    cell("import warnings")
    assert [cached("r = 1"), cached("r = 1")] == ["miss", "hit"]

    cell("warnings.filters.remove(('ignore', None, ResourceWarning, None, 0))")

    assert cached("r = 1") == "miss"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = helper.__code__.co_firstlineno", "line 2 uses .co_firstlineno: "),
        ("r = line_of(helper)", "the function `line_of` uses co_firstlineno: "),
        (
            "try:\n  helper(1)\nexcept TypeError as error:\n  r = error.__traceback__.tb_lineno",
            "line 5 uses .tb_",
        ),
    ],
)
def test_a_cell_that_asks_on_which_line_code_stands_is_not_stored(cell, cached, body, reason):
    cell("def helper(): return 1\ndef line_of(one): return one.__code__.co_firstlineno")

    assert cached(body) == "not stored"
    assert reason in last_run().reason
    assert inputs.LINES_ARE_NO_INPUT in last_run().reason
