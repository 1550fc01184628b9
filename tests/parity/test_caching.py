"""What programs rely on in `Memory`, asked of joblib and of us."""

import json
import os
import pathlib
import pickle
import warnings

import joblib
import numpy as np
import pytest

import ipyparcache

BOTH = pytest.mark.parametrize("package", [joblib, ipyparcache], ids=["joblib", "ours"])


@pytest.fixture
def memory(package, tmp_path):
    return package.Memory(str(tmp_path / "cache"), verbose=0)


class Adding:
    def __init__(self, step):
        self.step = step

    def add(self, x):
        return x + self.step


def letters(count):
    return "a" * count


@BOTH
def test_arguments_count_as_they_were_before_the_call(memory):
    runs = []

    def note(x, seen=[]):  # noqa: B006 (that it changes is the point)
        runs.append(x)
        seen.append(x)
        return len(seen)

    cached = memory.cache(note)

    assert [cached(1), cached(1)] == [1, 2]
    assert len(runs) == 2


@BOTH
def test_a_hit_does_nothing_that_the_run_did(memory, capsys):
    def tell(x):
        print("running")
        warnings.warn("running", stacklevel=1)
        return x

    cached = memory.cache(tell)
    with pytest.warns(UserWarning, match="running"):
        cached(1)
    assert capsys.readouterr().out == "running\n"
    assert cached(1) == 1  # a warning would be an error here
    assert capsys.readouterr().out == ""


@BOTH
def test_results_are_listed(memory):
    cached = memory.cache(letters)
    for more in range(3):
        cached(1000 + more)
    items = memory.store_backend.get_items()

    assert len(set(items)) == 3
    assert sorted(items) == sorted(items, key=lambda item: item.path)
    assert all(1000 < item.size < 1536 for item in items)


@BOTH
def test_what_programs_ask_of_a_cached_function_is_there(memory):
    cached = memory.cache(letters, mmap_mode="r", ignore=[])
    names = (
        "store_backend timestamp func_id func_code_info warn debug info call call_and_shelve clear compress"
    )

    assert (cached.func, cached.ignore, cached.mmap_mode) == (letters, [], "r")
    assert [name for name in names.split() if not hasattr(cached, name)] == []
    assert cached.__doc__.startswith("Memoized version of ")
    assert cached.check_call_in_cache(3) is False


@BOTH
def test_what_programs_ask_of_a_shelved_result_is_there(memory):
    shelved = memory.cache(letters).call_and_shelve(3)
    back = pickle.loads(pickle.dumps(shelved))

    assert (back.get(), back.args_id, str(back)) == ("aaa", shelved.args_id, str(shelved))
    assert type(shelved.args_id) is str
    assert shelved.duration >= 0
    assert shelved.metadata["input_args"] == {"count": "3"}
    shelved.clear()
    shelved.clear()
    for gone in (shelved, back):
        with pytest.raises(KeyError):
            gone.get()


@BOTH
def test_a_result_that_is_not_kept_can_be_pickled_and_shows_itself(package):
    kept = package.Memory(None).cache(abs).call_and_shelve(-3)

    assert pickle.loads(pickle.dumps(kept)).get() == 3
    assert repr(kept) == "NotMemorizedResult(3)"
    kept.clear()
    assert repr(kept) == "NotMemorizedResult with no value"
    with pytest.raises(KeyError):
        kept.get()


@BOTH
def test_cached_functions_can_be_made_by_hand(package, tmp_path):
    first, second = (package.memory.MemorizedFunc(letters, str(tmp_path), verbose=0) for _ in range(2))

    assert repr(first) == repr(second)
    assert (first(3), second.check_call_in_cache(3)) == ("aaa", True)
    assert package.memory.NotMemorizedFunc(letters)(2) == "aa"


@BOTH
def test_a_folder_may_be_a_path_and_is_told_as_it_was_given(package, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (tmp_path, str(tmp_path), "~/below", pathlib.Path(tmp_path, "c"), None):
        assert package.Memory(place, verbose=0).location == place
    assert os.path.isdir(tmp_path / "below")


@BOTH
def test_what_is_compressed_and_to_be_mapped_is_compressed(package, tmp_path):
    with pytest.warns(UserWarning, match="Compressed"):
        memory = package.Memory(str(tmp_path), compress=True, mmap_mode="r", verbose=0)
    cached = memory.cache(np.ones)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # joblib tells at each call, too
        assert [list(cached(2)), list(cached(2))] == [[1, 1], [1, 1]]


def test_a_large_argument_makes_no_large_note(tmp_path):
    """joblib writes and reads its whole text."""
    shelved = ipyparcache.Memory(tmp_path, verbose=0).cache(len).call_and_shelve(list(range(10**5)))

    assert len(json.dumps(shelved.metadata)) < 1000


@BOTH
def test_objects_that_are_called_are_cached_by_what_they_hold(memory):
    one, other = memory.cache(Adding(1).add), memory.cache(Adding(5).add)

    assert [one(1), other(1), one(1), other(1)] == [2, 6, 2, 6]


@BOTH
def test_a_memory_of_a_programs_own_makes_cached_functions_of_its_own(package, tmp_path):
    called = []

    class Telling(package.memory.MemorizedFunc):
        def __call__(self, *args, **kwargs):
            called.append(args)
            return package.memory.MemorizedFunc.__call__(self, *args, **kwargs)

    class Own(package.Memory):
        def __init__(self, location=None, *args, **kwargs):
            super().__init__(location if location is not None else str(tmp_path), *args, **kwargs)

        def cache(self, func=None, ignore=None, verbose=None, mmap_mode=False):
            return Telling(
                func,
                location=self.store_backend,
                backend=self.backend,
                ignore=ignore,
                mmap_mode=self.mmap_mode,
                compress=self.compress,
                verbose=self._verbose,
                timestamp=self.timestamp,
            )

    cached = Own(verbose=0).cache(letters)

    assert (cached(2), cached(2), called) == ("aa", "aa", [(2,), (2,)])
    assert pickle.loads(pickle.dumps(package.Memory(str(tmp_path), verbose=0).cache(letters)))(2) == "aa"
    assert Own(verbose=0).cache(letters).check_call_in_cache(2)
