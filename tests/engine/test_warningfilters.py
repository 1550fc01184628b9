"""Filters travel by name: a worker loads no library for them, and they work once the library is there."""

import pickle
import sys
import types
import warnings

import pytest

from ipyparcache import Parallel, delayed
from ipyparcache.engine import warningfilters


@pytest.fixture(autouse=True)
def filters_as_they_were():
    with warnings.catch_warnings():
        yield


@pytest.fixture
def library(monkeypatch):
    """Loads a library whose own category a filter names; until then it is not loaded."""

    def load():
        module = types.ModuleType("library_of_warnings")
        exec("class Rough(UserWarning): pass\nclass Rougher(Rough): pass", vars(module))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    warnings.simplefilter("error", load().Rough)
    monkeypatch.delitem(sys.modules, "library_of_warnings")
    return load


def heard(category):
    with warnings.catch_warnings(record=True) as seen:
        warnings.warn("as told", category, stacklevel=1)
    return seen


def test_a_filter_for_a_library_that_is_not_loaded_holds_once_it_is(library):
    pickled = pickle.dumps(warningfilters.take())

    warningfilters.put(pickle.loads(pickled))
    assert "library_of_warnings" not in sys.modules
    module = library()
    for category in (module.Rough, module.Rougher):
        with pytest.raises(category, match="as told"):
            heard(category)


def test_a_filter_for_a_library_that_is_not_loaded_stops_no_other_warning(library):
    warnings.simplefilter("always", UserWarning)
    warnings.simplefilter("error", library().Rough)
    sys.modules.pop("library_of_warnings")

    warningfilters.put(warningfilters.take())
    assert len(heard(UserWarning)) == 1


def test_filters_are_told_again_as_they_came(library):
    taken = warningfilters.take()

    warningfilters.put(taken)

    assert warningfilters.take() == taken


def test_a_category_that_is_loaded_stands_for_itself():
    warningfilters.put([("ignore", None, ("builtins", "DeprecationWarning"), None, 0)])

    assert warnings.filters == [("ignore", None, DeprecationWarning, None, 0)]


def has_loaded(name):
    return name in sys.modules


def test_workers_load_no_library_for_a_filter(tmp_path, monkeypatch):
    (tmp_path / "library_that_filters.py").write_text("class Rough(UserWarning): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import library_that_filters

    warnings.simplefilter("error", library_that_filters.Rough)
    try:
        calls = (delayed(has_loaded)("library_that_filters") for _ in range(4))
        assert Parallel(n_jobs=2)(calls) == [False] * 4
    finally:
        sys.modules.pop("library_that_filters")
