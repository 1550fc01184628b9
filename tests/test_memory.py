import asyncio
import datetime
import decimal
import functools
import importlib
import inspect
import itertools
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from ipyparcache import MemorizedResult, Memory, expires_after, register_store_backend
from ipyparcache.errors import StoreUnavailable
from ipyparcache.memory import CacheWarning, MemorizedFunc, NotMemorizedFunc
from ipyparcache.storage.entry import close_entries
from ipyparcache.storage.local import LocalStore
from ipyparcache.storage.store import STORE_BACKENDS
from tests.contracts.foreign import FolderBackend

runs = []


@pytest.fixture(autouse=True)
def no_runs():
    runs.clear()


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path / "cache", verbose=0)


def made(text, name="f", **namespace):
    """A function from source, in a namespace of its own, as after an edit."""
    scope = {"__name__": "__main__", "runs": runs, **namespace}
    exec(textwrap.dedent(text), scope)
    return scope[name]


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


def spelled(a, b=2, *rest, k=3, **more):
    runs.append(1)
    return a, b, rest, k, more


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
    with pytest.raises(ValueError, match="ignore list should be a list"):
        memory.cache(made("def f(x): pass"), ignore="x")(1)


# ---- what a result depends on


def test_versions_of_a_function_lie_side_by_side(memory):
    one = memory.cache(made("def f(x):\n    runs.append(1)\n    return x + 1"))
    other = memory.cache(made("def f(x):\n    runs.append(2)\n    return x + 2"))

    assert [one(1), other(1), one(1), other(1)] == [2, 3, 2, 3]
    assert runs == [1, 2]


def test_comments_and_blank_lines_do_not_count(memory):
    memory.cache(made("def f(x):\n    runs.append(1)\n    return x"))(1)
    memory.cache(made("\n\n\ndef f(x):\n    # a comment\n    runs.append(1)\n\n    return x"))(1)

    assert runs == [1]


def test_a_changed_helper_is_a_miss(memory):
    f = made("def g(x): return x + 1\ndef f(x):\n    runs.append(1)\n    return g(x)")
    cached = memory.cache(f)
    before = [cached(1), cached(1)]
    f.__globals__["g"] = made("def g(x): return x + 10", "g")

    assert (before, cached(1)) == ([2, 2], 11)


def test_a_changed_global_is_a_miss_and_going_back_a_hit(memory):
    f = made("n = 1\ndef f(x):\n    runs.append(1)\n    return x + n")
    cached = memory.cache(f)
    found = []
    for f.__globals__["n"] in (1, 2, 1, 2):
        found.append(cached(1))

    assert found == [2, 3, 2, 3]
    assert len(runs) == 2


def test_a_global_that_was_changed_in_place_is_a_miss(memory):
    f = made("table = {'a': 1}\ndef f(x):\n    runs.append(1)\n    return table[x]")
    cached = memory.cache(f)
    before = cached("a")
    f.__globals__["table"]["a"] = 5

    assert (before, cached("a")) == (1, 5)


def test_closures_are_told_apart(memory):
    make = made(
        "def make(n):\n    def f(x):\n        runs.append(n)\n        return x + n\n    return f", "make"
    )
    one, other = memory.cache(make(1)), memory.cache(make(2))

    assert [one(1), other(1), one(1)] == [2, 3, 2]
    assert runs == [1, 2]


def test_a_changed_default_is_a_miss(memory):
    f = made("def f(x, items=[]):\n    runs.append(1)\n    return x + len(items)")
    cached = memory.cache(f)
    before = cached(1)
    f.__defaults__[0].append(1)

    assert (before, cached(1)) == (1, 2)


def test_replaced_code_is_a_miss(memory):
    f = made("def f(x): return x")
    cached = memory.cache(f)
    before = cached(1)
    f.__code__ = made("def f(x): return -x").__code__

    assert (before, cached(1)) == (1, -1)


def test_a_list_that_the_function_only_fills_is_no_input(memory):
    log = []
    f = memory.cache(
        made("def f(x):\n    runs.append(x)\n    log.append((x, list('ab')))\n    return x", log=log)
    )

    assert [f(1), f(1)] == [1, 1]
    assert len(log) == 1


def test_a_list_that_the_function_reads_is_an_input(memory):
    log = []
    f = memory.cache(made("def f(x):\n    log.append(x)\n    return len(log)", log=log))

    assert [f(1), f(1), f(1)] == [1, 2, 3]


def test_a_changed_file_is_a_miss(memory, tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("one")
    f = memory.cache(
        made("def f(path):\n    runs.append(1)\n    with open(path) as file:\n        return file.read()")
    )
    found = [f(str(path)), f(str(path))]
    path.write_text("two")
    found += [f(str(path)), f(str(path))]
    path.write_text("one")
    found += [f(str(path))]

    assert found == ["one", "one", "two", "two", "one"]
    assert len(runs) == 2


def test_a_log_that_a_function_appends_to_is_no_input(memory, tmp_path):
    source = "def f(path):\n    with open(path, 'a') as log:\n        log.write('ran ')\n    return 5"
    log = tmp_path / "log"
    found = [memory.cache(made(source))(str(log)) for _ in range(3)]

    assert (found, log.read_text()) == ([5, 5, 5], "ran ")


def test_a_file_that_a_function_appends_to_and_reads_is_an_input(memory, tmp_path):
    source = """
        def f(path):
            with open(path, 'a') as log:
                log.write('x')
            with open(path) as log:
                return log.read()
    """
    log = tmp_path / "log"
    found = [memory.cache(made(source))(str(log)) for _ in range(3)]

    assert found == ["x", "xx", "xxx"]


def test_a_file_read_by_a_cached_helper_is_an_input_of_the_caller(memory, tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("one")
    g = memory.cache(made("def g(path):\n    with open(path) as file:\n        return file.read()", "g"))
    f = memory.cache(made("def f(path):\n    return g(path) + '!'", g=g))
    g(str(path))
    before = f(str(path))
    path.write_text("two")

    assert (before, f(str(path))) == ("one!", "two!")


def test_a_changed_environment_variable_is_a_miss(memory, monkeypatch):
    monkeypatch.setenv("SOME_NAME", "one")
    f = memory.cache(made("import os\ndef f():\n    return os.environ['SOME_NAME']"))
    before = [f(), f()]
    monkeypatch.setenv("SOME_NAME", "two")

    assert (before, f()) == (["one", "one"], "two")


def test_an_edited_local_module_is_a_miss_once_it_is_reloaded(memory, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_helpers.py").write_text("def g(x): return x + 1\n")
    module = importlib.import_module("some_helpers")
    f = memory.cache(made("def f(x): return some_helpers.g(x)", some_helpers=module))
    before = f(1)
    (tmp_path / "some_helpers.py").write_text("def g(x): return x + 100\n")
    importlib.reload(module)

    assert (before, f(1)) == (2, 101)
    del sys.modules["some_helpers"]


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


# ---- arrays


def test_large_results_come_back_writable(memory):
    f = memory.cache(
        made("import numpy as np\ndef f(n):\n    runs.append(n)\n    return {'a': np.arange(n), 'b': [1]}")
    )
    f(1_000_000)
    first = f(1_000_000)
    first["a"][:] = 0

    assert f(1_000_000)["a"][5] == 5
    assert len(runs) == 1


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_results_are_mapped_if_asked_for(tmp_path, mode):
    f = Memory(tmp_path, mmap_mode=mode, verbose=0).cache(
        made("import numpy as np\ndef f(n): return np.arange(n)")
    )
    for back in (f(10), f(10)):
        assert isinstance(back, np.memmap)
        assert back.flags.writeable == (mode != "r")
        np.testing.assert_array_equal(back, np.arange(10))
        if mode != "r":
            back[:] = 0  # stays private: an entry never changes
    del back


def test_a_small_result_stored_without_mapping_is_mapped_when_that_is_asked_for_later(tmp_path):
    source = "import numpy as np\ndef f(n): return np.arange(n)"
    shelved = Memory(tmp_path, verbose=0).cache(made(source)).call_and_shelve(10)

    place = shelved.store_backend.location
    for back in (
        MemorizedResult(place, shelved.func, shelved.args_id, mmap_mode="r").get(),
        Memory(tmp_path, mmap_mode="r", verbose=0).cache(made(source))(10),
    ):
        assert isinstance(back, np.memmap)
        assert not back.flags.writeable
        np.testing.assert_array_equal(back, np.arange(10))
    assert shelved.get().flags.writeable
    del back


@pytest.mark.parametrize("compress", [True, 9, "lz4", ("zstd", 1)])
def test_results_can_be_compressed(tmp_path, compress):
    f = Memory(tmp_path, compress=compress, verbose=0).cache(
        made("import numpy as np\ndef f(n): return [np.ones(n), 'x' * n]")
    )
    f(200_000)
    back = f(200_000)

    assert (back[0].sum(), len(back[1])) == (200_000, 200_000)
    assert sum(item.size for item in f.store_backend.get_items()) < 50_000
    with pytest.warns(UserWarning, match="cannot be memmapped"):
        Memory(tmp_path, compress=compress, mmap_mode="r", verbose=0)


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


def test_a_shelved_result_is_read_until_it_is_cleared(memory):
    f = memory.cache(made("import numpy as np\ndef f(x): return np.arange(x)"))
    shelved = f.call_and_shelve(5)
    again = pickle.loads(pickle.dumps(shelved))

    assert list(again.get()) == list(shelved.get()) == [0, 1, 2, 3, 4]
    assert (again.func, again.args_id, str(again)) == (shelved.func, shelved.args_id, str(shelved))
    assert list(eval(repr(shelved), {"MemorizedResult": MemorizedResult}).get()) == [0, 1, 2, 3, 4]
    shelved.clear()
    shelved.clear()
    with pytest.raises(KeyError):
        again.get()


def test_a_damaged_shelved_result_is_told(memory, tmp_path):
    f = memory.cache(made("def f(x): return 'x' * x"))
    shelved = f.call_and_shelve(200_000)
    (path,) = (tmp_path / "cache").rglob("*.0")
    with open(path, "r+b") as file:
        file.seek(-100, 2)
        file.write(b"damaged")
    with pytest.raises(KeyError, match="is corrupted"):
        shelved.get()
    assert len(f(200_000)) == 200_000


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


def test_a_cache_folder_deleted_under_it_is_made_again(memory, tmp_path):
    f = memory.cache(made("def f(x):\n    runs.append(x)\n    return x"))
    f(1)
    subprocess.run(["rm", "-r", str(tmp_path / "cache")], check=True)

    assert [f(1), f(1)] == [1, 1]
    assert len(runs) == 2


def test_reduce_size_keeps_what_was_used_last(memory, monkeypatch):
    clock = map(time.time().__add__, itertools.count(0, 0.001))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    f = memory.cache(made("def f(x):\n    return bytes(1000)"))
    for n in range(10):
        f(n)
    memory.reduce_size()
    assert len(memory.store_backend.get_items()) == 10
    memory.reduce_size(items_limit=5)
    assert [f.check_call_in_cache(n) for n in range(10)] == [False] * 5 + [True] * 5
    memory.reduce_size(bytes_limit="4K")
    assert 1 <= len(memory.store_backend.get_items()) <= 3
    memory.reduce_size(age_limit=datetime.timedelta(0))
    assert memory.store_backend.get_items() == []
    with pytest.raises(ValueError, match="has to be a positive"):
        memory.reduce_size(age_limit=datetime.timedelta(-1))


def test_many_small_results_do_not_make_many_files(memory, tmp_path):
    f = memory.cache(made("def f(x): return x"))
    for n in range(1000):
        f(n)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]

    assert len(files) < 10
    item = memory.store_backend.get_items()[0]
    assert item.size < 700
    assert sorted(memory.store_backend.get_items())
    assert len(set(memory.store_backend.get_items())) == 1000


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


def test_verbose_prints_as_joblib_does(tmp_path, capsys):
    f = Memory(tmp_path, verbose=2).cache(made("def f(x, y=1): return x"))
    f(1, y=[2])
    first = capsys.readouterr().out
    f(1, y=[2])

    assert first.splitlines() == [
        *["_" * 80, "[Memory] Calling __main__.f...", "f(1, y=[2])", "_" * 61 + "f - 0.0s, 0.0min"][:3],
        f"{'_' * 64}f - 0.0s, 0.0min",
    ]
    assert "Loading __main__.f..." in capsys.readouterr().out


def test_reprs_name_the_place(memory, tmp_path):
    f = memory.cache(made("def f(x): return x"))

    assert str(memory) == f"Memory(location={tmp_path}/cache/joblib)"
    assert str(f) == f"MemorizedFunc(func={f.func}, location={tmp_path}/cache/joblib)"


def test_places_that_are_none_are_told(tmp_path):
    with pytest.warns(UserWarning, match="is not supported"):
        assert Memory(5).store_backend is None
    with pytest.raises(TypeError, match="Unknown location"):
        Memory(tmp_path, backend="unknown")


def test_an_existing_gitignore_is_left_alone(tmp_path):
    Memory(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".gitignore").write_text("mine")
    Memory(tmp_path / "b")

    assert "*" in (tmp_path / "a" / ".gitignore").read_text()
    assert (tmp_path / "b" / ".gitignore").read_text() == "mine"


def test_a_store_that_cannot_be_written_costs_one_warning(tmp_path):
    (tmp_path / "file").write_text("")
    f = Memory(tmp_path / "file", verbose=0).cache(made("def f(x):\n    runs.append(x)\n    return x"))
    with pytest.warns(CacheWarning, match="are not stored"):
        assert f(1) == 1

    assert [f(1), f(2)] == [1, 2]


@pytest.mark.parametrize("attempt", ["clear", "clear_function", "clear_result", "reduce"])
def test_results_that_cannot_be_removed_are_told(memory, monkeypatch, attempt):
    f = memory.cache(made("def f(x): return x"))
    f(1)
    shelved = f.call_and_shelve(1)
    monkeypatch.setattr(LocalStore, "remove", lambda store, names: set())
    monkeypatch.setattr(LocalStore, "wipe", lambda store: None)
    attempts = {
        "clear": memory.clear,
        "clear_function": f.clear,
        "clear_result": shelved.clear,
        "reduce": lambda: memory.reduce_size(items_limit=0),
    }

    with pytest.raises(StoreUnavailable, match="not all results could be removed"):
        attempts[attempt]()
    assert f.check_call_in_cache(1)


def test_a_damaged_result_is_computed_again_with_a_warning(memory, tmp_path, caplog):
    f = memory.cache(made("def f(x):\n    runs.append(x)\n    return 'x' * x"))
    f(200_000)
    (path,) = (tmp_path / "cache").rglob("*.0")
    path.write_bytes(b"garbage")

    assert [len(f(200_000)), len(f(200_000))] == [200_000, 200_000]
    assert len(runs) == 2
    (record,) = caplog.records
    assert "Exception while loading results" in record.getMessage()


def test_two_threads_compute_a_call_once(memory, monkeypatch):
    # What is quicker than this, everybody computes alone.
    monkeypatch.setattr("ipyparcache.memorized._QUICK_SECONDS", 0)
    started, go_on = threading.Event(), threading.Event()

    def slow(x, started, go_on):
        runs.append(x)
        started.set()
        go_on.wait(10)
        return x

    f = memory.cache(slow, ignore=["started", "go_on"])
    results = []
    threads = [threading.Thread(target=lambda: results.append(f(1, started, go_on))) for _ in range(2)]
    threads[0].start()
    started.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()

    assert (results, runs) == ([1, 1], [1])


def test_processes_that_compute_at_once_leave_a_readable_entry(tmp_path):
    code = (
        "import sys\n"
        "from ipyparcache import Memory\n"
        "def f(x):\n"
        "    return list(range(x))\n"
        f"f = Memory({str(tmp_path / 'cache')!r}, verbose=0).cache(f)\n"
        "for n in range(50): assert f(n) == list(range(n))\n"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(3)
    ]

    assert [other.communicate()[0] for other in others] == [b"", b"", b""]
    assert [other.returncode for other in others] == [0, 0, 0]


@pytest.mark.parametrize("size", [10, 200_000], ids=["packed", "file"])
def test_a_process_killed_in_the_midst_of_a_write_leaves_the_others_results(tmp_path, size):
    code = textwrap.dedent(f"""
        import os, signal, sys
        from ipyparcache import Memory
        def f(x): return str(x) * {size}
        f = Memory({str(tmp_path / "cache")!r}, verbose=0).cache(f)
        if sys.argv[1] == "die":
            f(1)
            write = os.write
            def half(handle, data):
                write(handle, bytes(data)[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            os.write = half
            f(2)
        stored = [f.check_call_in_cache(n) for n in (1, 2)]
        for n in (1, 2, 3, 2, 3): assert f(n) == str(n) * {size}
        print(stored, [f.check_call_in_cache(n) for n in (1, 2, 3)])
    """)
    runs = [
        subprocess.run([sys.executable, "-c", code, what], capture_output=True, text=True)
        for what in ("die", "go on", "go on")
    ]

    assert runs[0].returncode == -signal.SIGKILL
    assert [run.stdout.strip() for run in runs[1:]] == [
        "[True, False] [True, True, True]",
        "[True, True] [True, True, True]",
    ]


def test_processes_fill_a_cache_that_another_clears(tmp_path):
    filling = textwrap.dedent(f"""
        import random, sys, warnings
        warnings.simplefilter("error")
        from ipyparcache import Memory
        def f(x): return str(x) * (100_000 if x % 10 == 0 else 10)
        cached = Memory({str(tmp_path / "cache")!r}, verbose=0).cache(f)
        draw = random.Random(sys.argv[1])
        for _ in range(1000):
            x = draw.randrange(100)
            assert cached(x) == f(x)
    """)
    fillers = [
        subprocess.Popen(
            [sys.executable, "-c", filling, which], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for which in "ab"
    ]
    memory = Memory(tmp_path / "cache", verbose=0)
    for n in itertools.count():
        if n % 2:
            memory.clear(warn=False)
        else:
            memory.reduce_size(items_limit=5)
        if all(filler.poll() is not None for filler in fillers):
            break

    assert [filler.communicate()[0] for filler in fillers] == [b"", b""]
    assert [filler.returncode for filler in fillers] == [0, 0]


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


def test_a_result_is_found_by_the_name_that_another_tells(memory):
    shelved = memory.cache(os.path.join).call_and_shelve("a", "b")

    assert MemorizedResult(memory.store_backend.location, shelved._call_id).get() == "a/b"
    with pytest.raises(TypeError, match="args_id"):
        MemorizedResult(memory.store_backend.location, "f")


def test_pickled_functions_find_the_same_results(memory):
    f = memory.cache(spelled)
    f(1)
    back = pickle.loads(pickle.dumps(f))

    assert (back(1), back.ignore, str(back)) == (f(1), f.ignore, str(f))
    assert len(runs) == 1
    assert str(pickle.loads(pickle.dumps(memory))) == str(memory)


def test_a_backend_of_somebody_else_keeps_results(tmp_path, monkeypatch):
    monkeypatch.setattr("ipyparcache.storage.store.STORE_BACKENDS", STORE_BACKENDS)
    monkeypatch.setitem(STORE_BACKENDS, "files", None)
    register_store_backend("files", FolderBackend)
    f = Memory(tmp_path / "x", backend="files", verbose=0, backend_options={"a": 1}).cache(
        made("import numpy as np\ndef f(x):\n    runs.append(x)\n    return np.arange(x)")
    )

    assert [len(f(3)), len(f(3)), len(f(200_000)), len(f(200_000))] == [3, 3, 200_000, 200_000]
    assert len(runs) == 2
    f.clear(warn=False)
    f(3)
    assert len(runs) == 3


@pytest.mark.parametrize(
    ("name", "backend", "says"),
    [(1, FolderBackend, "should be a string"), ("x", dict, "should inherit StoreBackendBase")],
)
def test_what_is_no_backend_is_told(name, backend, says):
    with pytest.raises(ValueError, match=says):
        register_store_backend(name, backend)


def test_the_decimal_context_of_a_function_that_computes_with_it_counts(memory):
    f = memory.cache(made("import decimal\ndef f(n):\n    runs.append(n)\n    return decimal.Decimal(1) / n"))
    with decimal.localcontext() as context:
        exact = f(3)
        context.prec = 4
        short = f(3)
        context.prec = 28
        again = f(3)

    assert (str(short), again, runs) == ("0.3333", exact, [3, 3])


def test_the_decimal_context_of_a_decimal_argument_counts(memory):
    f = memory.cache(made("def f(x):\n    return x / 3"))
    with decimal.localcontext() as context:
        f(decimal.Decimal(1))
        context.prec = 4

        assert str(f(decimal.Decimal(1))) == "0.3333"


def test_print_options_count_where_numpy_is_used_and_nowhere_else(memory):
    shown = memory.cache(made("import numpy\ndef f(n):\n    return str(numpy.arange(n) / 3)"))
    plain = memory.cache(made("def f(n):\n    runs.append(n)\n    return n"))
    before = shown(2), plain(2)
    with np.printoptions(precision=2):
        during = shown(2), plain(2)

    assert before == ("[0.         0.33333333]", 2)
    assert (during, runs) == (("[0.   0.33]", 2), [2])
