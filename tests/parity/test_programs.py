"""Programs that joblib's own documentation shows, run with `import ipyparcache as joblib`."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from math import modf, sqrt
from operator import itemgetter

import numpy as np
import pytest

import ipyparcache as joblib
from ipyparcache import Memory, Parallel, delayed, dump, load, parallel_backend
from ipyparcache.pool import has_shareable_memory

shared_set = set()
mutable = []


def collect(x):
    shared_set.add(x)


def test_a_cached_ufunc_prints_one_call_block(tmp_path, capsys):
    square = Memory(tmp_path, verbose=1).cache(np.square)
    a = np.vander(np.arange(3)).astype(float)
    first = square(a)
    printed = capsys.readouterr().out
    second = square(a)

    np.testing.assert_array_equal(first, [[0, 0, 1], [1, 1, 1], [16, 4, 1]])
    np.testing.assert_array_equal(first, second)
    assert printed.startswith("_" * 80 + "\n[Memory] Calling ")
    assert "square(array([[0., 0., 1.]," in printed
    assert printed.rstrip().endswith("min")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_square_roots(n_jobs):
    assert Parallel(n_jobs=n_jobs)(delayed(sqrt)(i**2) for i in range(10)) == [float(i) for i in range(10)]


def test_results_of_several_values_are_unzipped():
    r, i = zip(*Parallel(n_jobs=2)(delayed(modf)(i / 2.0) for i in range(10)), strict=True)

    assert r == (0.0, 0.5) * 5
    assert i == (0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0)


def test_a_generator_of_results():
    parallel = Parallel(n_jobs=2, return_generator=True)
    output = parallel(delayed(sqrt)(i**2) for i in range(10))

    assert type(output).__name__ == "generator"
    assert [next(output), next(output)] == [0.0, 1.0]
    assert list(output) == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]


@pytest.mark.parametrize("how", [{"prefer": "threads"}, {"backend": "threading"}])
def test_threads_give_the_same(how):
    assert Parallel(n_jobs=2, **how)(delayed(sqrt)(i**2) for i in range(10)) == [float(i) for i in range(10)]


def test_a_context_chooses_the_backend():
    with parallel_backend("threading", n_jobs=2):
        assert Parallel()(delayed(sqrt)(i**2) for i in range(10)) == [float(i) for i in range(10)]


def test_shared_memory_is_shared():
    shared_set.clear()
    results = Parallel(n_jobs=2, require="sharedmem")(delayed(collect)(i) for i in range(5))

    assert (results, sorted(shared_set)) == ([None] * 5, [0, 1, 2, 3, 4])


def count_mutable(extra):
    mutable.append(extra)
    return len(mutable)


def test_processes_change_nothing_of_the_callers_from_a_thread():
    found = []

    def call():
        with parallel_backend("multiprocessing", n_jobs=2):
            found.extend(Parallel()(delayed(count_mutable)(i) for i in range(2)))

    mutable.clear()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()

    assert mutable == []
    assert all(count >= 1 for count in found)


def test_a_pool_is_used_for_many_calls():
    with Parallel(n_jobs=2) as parallel:
        accumulator, n_iter = 0.0, 0
        while accumulator < 1000:
            results = parallel(delayed(sqrt)(accumulator + i**2) for i in range(5))
            accumulator += sum(results)
            n_iter += 1

    assert (accumulator, n_iter) == (1136.5969161564717, 14)


def test_delayed_makes_tuples():
    def add(x, y=0):
        return x + y

    task = delayed(add)(1, y=2)

    @delayed
    def decorated(x, y=0):
        return x + y

    function, args, kwargs = decorated(1, y=2)
    assert task == (add, (1,), {"y": 2})
    assert (function(*args, **kwargs), args, kwargs) == (3, (1,), {"y": 2})


def test_dump_and_load(tmp_path):
    filename = os.path.join(tmp_path, "test.joblib")
    to_persist = [("a", [1, 2, 3]), ("b", np.arange(10))]

    assert dump(to_persist, filename) == [filename]
    back = load(filename)
    assert back[0] == to_persist[0]
    np.testing.assert_array_equal(back[1][1], np.arange(10))


def test_large_arrays_are_shared():
    found = Parallel(n_jobs=2, max_nbytes=1e6)(
        delayed(has_shareable_memory)(np.ones(int(i))) for i in [1e2, 1e4, 1e6]
    )

    assert found == [False, False, True]


def test_arrays_of_a_dumped_file_are_shared(tmp_path):
    large_array = np.ones(int(1e6))
    filename = os.path.join(tmp_path, "joblib_test.mmap")
    _ = dump(large_array, filename)
    large_memmap = load(filename, mmap_mode="r+")
    described = [(type(a).__name__, a.nbytes, a.shape) for a in (large_memmap, large_memmap[2:5])]
    small_array = np.asarray(large_memmap[2:5])
    found = Parallel(n_jobs=2, max_nbytes=None)(
        delayed(has_shareable_memory)(a) for a in [large_memmap, large_memmap[2:5], small_array]
    )

    assert described == [("memmap", 8000000, (1000000,)), ("memmap", 24, (3,))]
    assert found == [True, True, True]


def sum_row(input, output, i):
    output[i] = input[i, :].sum()
    print(f"[Worker {os.getpid()}] Sum for row {i} is {output[i]:f}")


def test_workers_write_into_a_shared_output(tmp_path, capfd):
    rng = np.random.RandomState(42)
    data = rng.normal(size=(10, int(1e4)))
    output = np.memmap(tmp_path / "output_memmap", dtype=data.dtype, shape=data.shape[0], mode="w+")
    Parallel(n_jobs=4)(delayed(sum_row)(data, output, i) for i in range(data.shape[0]))

    np.testing.assert_allclose(data.sum(axis=1), output)
    assert capfd.readouterr().out.count("Sum for row") == 10
    del output


def stochastic_function_seeded(max_value, random_state):
    return np.random.RandomState(random_state).randint(max_value, size=5)


def test_seeded_random_numbers_are_the_same_twice():
    def draw():
        seeds = np.random.RandomState(0).randint(100, size=5)
        return Parallel(n_jobs=2)(delayed(stochastic_function_seeded)(10, seed) for seed in seeds)

    np.testing.assert_array_equal(draw(), draw())


def slow_mean(data, column):
    return float(data[:, column].mean())


def test_a_cached_function_in_parallel_tasks_is_loaded_the_second_time(tmp_path):
    memory = Memory(tmp_path, verbose=0)
    costly = memory.cache(slow_mean)
    data = np.random.RandomState(0).randn(1000, 4)
    first = Parallel(n_jobs=2)(delayed(costly)(data, column) for column in range(4))
    second = Parallel(n_jobs=2)(delayed(costly)(data, column) for column in range(4))

    assert first == second == [slow_mean(data, column) for column in range(4)]
    assert all(costly.check_call_in_cache(data, column) for column in range(4))


def test_tasks_can_be_drawn_as_they_are_needed():
    produced = []

    def producer():
        for i in range(6):
            produced.append((i, time.monotonic()))
            yield i

    found = Parallel(n_jobs=2, pre_dispatch="1.5*n_jobs", batch_size=1)(
        delayed(sqrt)(i**2) for i in producer()
    )

    assert found == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert list(map(itemgetter(0), produced)) == list(range(6))


def run_script(folder, text, **environment):
    """The lines that a program prints, run from a file as its users do."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(text))
    run = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env=os.environ | environment, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.splitlines()


@pytest.mark.parametrize(
    ("backend", "environment"),
    [
        ("loky", {}),
        ("loky", {"IPYPARCACHE_START": "spawn"}),
        ("multiprocessing", {"JOBLIB_START_METHOD": "spawn"}),
    ],
    ids=["forked", "spawned", "multiprocessing"],
)
def test_the_main_part_of_a_program_runs_once(tmp_path, backend, environment):
    program = f"""
        from math import sqrt
        from ipyparcache import Parallel, delayed

        OFFSET = 1

        def shifted(x):
            return sqrt(x) + OFFSET

        if __name__ == "__main__":
            print("main part")
            print(Parallel(n_jobs=2, backend={backend!r})(delayed(shifted)(i**2) for i in range(4)))
        """

    assert run_script(tmp_path, program, **environment) == ["main part", "[1.0, 2.0, 3.0, 4.0]"]


@pytest.mark.parametrize("pickler", ["", "pickle", "cloudpickle"])
def test_wrapped_objects_travel_whatever_pickler_is_asked_for(tmp_path, pickler):
    """joblib's workers cannot load the function that is not wrapped under LOKY_PICKLER=pickle; ours can."""
    program = """
        from ipyparcache import Parallel, delayed, wrap_non_picklable_objects

        large_list = list(range(100_000))

        def plain(i, *args):
            return 2 * i

        @delayed
        @wrap_non_picklable_objects
        def wrapped(i, *args):
            return 2 * i

        @wrap_non_picklable_objects
        class Adder:
            def __init__(self, step):
                self.step = step

            def __call__(self, x):
                return x + self.step

        def make():
            return wrap_non_picklable_objects(lambda x: -x, keep_wrapper=False)

        if __name__ == "__main__":
            with Parallel(n_jobs=2) as parallel:
                print(parallel(delayed(plain)(21, large_list) for _ in range(1)))
                print(parallel(wrapped(21, large_list) for _ in range(1)))
                print(parallel(delayed(Adder(3))(i) for i in range(2)), Adder.__name__)
                print(parallel(delayed(make())(i) for i in range(2)))
        """

    assert run_script(tmp_path, program, LOKY_PICKLER=pickler) == ["[42]", "[42]", "[3, 4] Adder", "[0, -1]"]


def test_every_name_of_joblib_is_there():
    namespace = {}
    exec("from ipyparcache import *", namespace)

    import joblib as original

    assert set(original.__all__) <= set(namespace)
    assert all(hasattr(joblib, name) for name in original.__all__)


def test_scikit_learn_keeps_its_steps_in_our_memory(tmp_path, capsys):
    from sklearn.datasets import load_iris
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline

    features, kinds = load_iris(return_X_y=True)
    steps = [("reduce", PCA(2)), ("classify", LogisticRegression(max_iter=500))]
    pipeline = Pipeline(steps, memory=Memory(tmp_path, verbose=1))
    first = pipeline.fit(features, kinds).score(features, kinds)
    called = capsys.readouterr().out.count("[Memory] Calling")
    second = pipeline.fit(features, kinds).score(features, kinds)

    assert (called, capsys.readouterr().out.count("[Memory] Calling")) == (1, 0)
    assert first == second > 0.9
