"""What can be cached, how a call is found again, and the interface of cached functions."""

import asyncio
import functools
import inspect
import os
import pickle
import threading
import time

import numpy as np
import pytest

from ipyparcache import Memory, expires_after
from ipyparcache.memory import CacheWarning, MemorizedFunc, NotMemorizedFunc
from ipyparcache.storage.entry import close_entries
from tests.memory.functions import made, runs, spelled


def test_a_call_runs_once(memory):
    f = memory.cache(made("def f(x):\n    runs.append(x)\n    return x * 2"))

    assert [f(1), f(1), f(2), f(1)] == [2, 2, 4, 2]
    assert runs == [1, 2]


def test_a_result_is_found_by_a_later_process(memory, tmp_path):
    source = "def f(x):\n    runs.append(x)\n    return [x]"
    memory.cache(made(source))(1)
    close_entries()

    assert Memory(tmp_path / "cache", verbose=0).cache(made(source))(1) == [1]
    assert runs == [1]


def test_a_result_is_the_callers_own(memory):
    f = memory.cache(made("def f():\n    return [1]"))
    f().append(2)
    f().append(3)

    assert f() == [1]


@pytest.mark.parametrize(
    "calls",
    [
        [((1,), {}), ((1, 2), {}), ((), {"a": 1}), ((1,), {"k": 3}), ((), {"b": 2, "a": 1})],
        [((1, 2, 3), {}), ((1, 2, 3), {"k": 3})],
        [((1,), {"x": 1, "y": 2}), ((1,), {"y": 2, "x": 1})],
    ],
)
def test_the_spelling_of_a_call_does_not_count(memory, calls):
    f = memory.cache(spelled)
    results = [f(*args, **kwargs) for args, kwargs in calls]

    assert all(result == results[0] for result in results)
    assert len(runs) == 1


def test_types_of_arguments_count(memory):
    f = memory.cache(made("def f(x):\n    runs.append(1)\n    return type(x).__name__"))

    values = [1, True, 1.0, "1", b"1", (1,), [1], {1: 1}, {1}, np.int64(1), np.array(1), None]
    assert [f(value) for value in values] == [type(value).__name__ for value in values]
    assert len(runs) == len(values)


def test_a_call_that_cannot_be_made_is_told(memory):
    f = memory.cache(made("def f(a, *, k=1):\n    return a"))

    with pytest.raises(ValueError, match="Too many arguments for"):
        f(1, 2)
    with pytest.raises(ValueError, match="Wrong number of arguments for"):
        f()


def test_an_ignored_argument_does_not_count(memory):
    f = memory.cache(
        made("def f(x, log, *rest, **more):\n    runs.append(x)\n    return x"), ignore=["log", "*", "**"]
    )

    assert [f(1, 2), f(1, 3), f(1, 2, 5), f(1, 2, z=1)] == [1] * 4
    assert runs == [1]
    with pytest.raises(ValueError, match="Ignore list"):
        memory.cache(made("def f(x): pass"), ignore=["y"])(1)
    with pytest.raises(ValueError, match="must be a list of parameters to ignore"):
        memory.cache(made("def f(x): pass"), ignore="x")(1)


# ---- what can be cached


class Scaler:
    memory = Memory(None)

    def __init__(self, factor):
        self.factor = factor

    def scaled(self, x):
        runs.append(x)
        return x * self.factor


def test_a_method_of_a_class_body_is_cached_by_instance(memory):
    class Doubling(Scaler):
        scaled = memory.cache(Scaler.scaled)

    assert [Doubling(2).scaled(3), Doubling(2).scaled(3), Doubling(5).scaled(3)] == [6, 6, 15]
    assert runs == [3, 3]


def test_a_bound_method_is_cached_with_its_object(memory):
    scaler = Scaler(2)
    scaler.scaled = memory.cache(scaler.scaled)
    found = [scaler.scaled(3), scaler.scaled(3)]
    scaler.factor = 10

    assert [*found, scaler.scaled(3)] == [6, 6, 30]
    assert len(runs) == 2


def test_partials_are_told_apart_by_all_of_their_arguments(memory):
    def total(a, b):
        return float(np.sum(a)) + b

    one = memory.cache(functools.partial(total, np.zeros(2000)))
    other = memory.cache(functools.partial(total, np.ones(2000)))

    assert [one(1), other(1), one(1)] == [1.0, 2001.0, 1.0]


@pytest.mark.parametrize(
    ("function", "args", "result"),
    [(np.square, (3,), 9), (lambda x: x + 1, (1,), 2), (len, ([1, 2],), 2), (staticmethod(abs), (-1,), 1)],
    ids=["ufunc", "lambda", "builtin", "staticmethod"],
)
def test_any_callable_can_be_cached(memory, function, args, result):
    f = memory.cache(function)

    assert [f(*args), f(*args)] == [result, result]


def test_a_coroutine_function_is_cached(memory):
    async def f(x):
        runs.append(x)
        await asyncio.sleep(0)
        return x + 1

    async def main():
        cached = memory.cache(f)
        shelved = await cached.call_and_shelve(5)
        called = await cached.call(5)
        return [await cached(1), await cached(1), shelved.get(), called[0], await memory.eval(f, 1)]

    assert asyncio.run(main()) == [2, 2, 6, 6, 2]
    assert runs == [5, 5, 1]


def test_a_raising_call_is_not_stored(memory):
    f = memory.cache(made("def f(x):\n    runs.append(x)\n    raise KeyError(x)"))
    for _ in range(2):
        with pytest.raises(KeyError):
            f(1)

    assert len(runs) == 2


def test_a_result_that_cannot_be_pickled_is_returned_with_a_warning(memory):
    f = memory.cache(made("def f(x):\n    runs.append(x)\n    return (i for i in range(x))"))

    with pytest.warns(CacheWarning, match="cannot be pickled"):
        assert list(f(3)) == [0, 1, 2]


def test_an_argument_without_a_digest_is_passed_on_with_a_warning(memory):
    f = memory.cache(made("def f(lock):\n    return 5"))

    with pytest.warns(CacheWarning, match="is not cached"):
        assert f(threading.Lock()) == 5


def test_a_function_that_calls_itself_is_cached(memory):
    scope = {"runs": runs, "__name__": "__main__"}
    exec("def fib(n):\n    runs.append(n)\n    return n if n < 2 else fib(n - 1) + fib(n - 2)", scope)
    scope["fib"] = memory.cache(scope["fib"])

    assert scope["fib"](20) == 6765
    assert len(runs) == 21


# ---- the rest of the interface


def test_call_runs_again_and_gives_metadata(memory):
    f = memory.cache(made("def f(x):\n    runs.append(x)\n    return x"))
    value, metadata = f.call(1)
    f.call(1)

    assert (value, len(runs), metadata["input_args"]) == (1, 2, {"x": "1"})
    assert metadata["duration"] >= 0
    assert abs(metadata["time"] - time.time()) < 60


def test_check_call_in_cache_tells(memory):
    f = memory.cache(made("def f(x): return x"))
    before = f.check_call_in_cache(1)
    f(1)

    assert (before, f.check_call_in_cache(1), f.check_call_in_cache(2)) == (False, True, False)


def test_a_validation_callback_decides(memory):
    seen = []

    def valid(metadata):
        seen.append(metadata)
        return answers.pop()

    answers = [None, True]
    f = memory.cache(made("def f(x):\n    runs.append(x)\n    return x"), cache_validation_callback=valid)
    for _ in range(3):
        f(1)

    assert len(runs) == 2
    assert set(seen[0]) == {"duration", "time", "input_args"}
    with pytest.raises(ValueError, match=r"cache_validation_callback needs to be callable. Got True"):
        memory.cache(made("def f(): pass"), cache_validation_callback=True)


def test_results_expire(memory):
    f = memory.cache(
        made("def f(x):\n    runs.append(x)\n    return x"), cache_validation_callback=expires_after(hours=1)
    )
    f(1)
    f(1)
    before = len(runs)
    f.cache_validation_callback = expires_after(seconds=-1)
    f(1)

    assert (before, len(runs)) == (1, 2)


def test_clear_removes_what_it_names(memory):
    f = memory.cache(made("def f(x):\n    runs.append(x)\n    return x"))
    g = memory.cache(made("def g(x):\n    runs.append(x)\n    return x", "g"))
    f(1), g(2)
    f.clear(warn=False)
    f(1), g(2)
    assert runs == [1, 2, 1]
    memory.clear(warn=False)
    f(1), g(2)

    assert runs == [1, 2, 1, 1, 2]


def test_without_a_location_nothing_is_kept():
    memory = Memory(location=None)
    f = memory.cache(made("def f(x):\n    runs.append(x)\n    return x"))
    shelved = f.call_and_shelve(1)

    assert isinstance(f, NotMemorizedFunc)
    assert (f(1), f.call(1), f.check_call_in_cache(1), shelved.get(), memory.eval(len, "ab")) == (
        1,
        (1, {}),
        False,
        1,
        2,
    )
    memory.clear()
    memory.reduce_size(items_limit=0)
    f.clear(warn=False)
    shelved.clear()
    with pytest.raises(KeyError):
        shelved.get()
    assert pickle.loads(pickle.dumps(memory)).store_backend is None


def test_it_decorates_in_every_spelling(memory):
    @memory.cache
    def f(x):
        """Says something."""
        return x

    @memory.cache()
    def g(x):
        return x

    @memory.cache(ignore=["x"], verbose=0, mmap_mode="r")
    def h(x):
        return x

    assert (f(1), g(1), h(1), memory.cache(f)(1)) == (1, 1, 1, 1)
    assert (h.ignore, h.mmap_mode) == (["x"], "r")
    assert "Says something." in f.__doc__
    assert f.__name__ == "f"
    assert str(inspect.signature(f)) == "(x)"
    assert isinstance(f, MemorizedFunc)
    assert "def f(x)" in f.func_code_info[0]


def test_reprs_name_the_place(memory, tmp_path):
    f = memory.cache(made("def f(x): return x"))

    assert str(memory) == f"Memory(location={tmp_path}/cache/joblib)"
    assert str(f) == f"MemorizedFunc(func={f.func}, location={tmp_path}/cache/joblib)"


def test_what_is_pickled_comes_back_with_the_same_attributes(memory):
    f = memory.cache(os.path.join)
    shelved = f.call_and_shelve("a", "b")

    for thing in (f, shelved, memory.store_backend):
        back = pickle.loads(pickle.dumps(thing))
        theirs = {
            name: value for name, value in vars(back).items() if name not in ("timestamp", "store_backend")
        }
        assert theirs == {name: vars(thing)[name] for name in theirs}
        assert vars(back).keys() == vars(thing).keys()


def test_pickled_functions_find_the_same_results(memory):
    f = memory.cache(spelled)
    f(1)
    back = pickle.loads(pickle.dumps(f))

    assert (back(1), back.ignore, str(back)) == (f(1), f.ignore, str(f))
    assert len(runs) == 1
    assert str(pickle.loads(pickle.dumps(memory))) == str(memory)
