"""Programs as people write them with joblib's worker processes: run as `python people.py PACKAGE FILE`.

Each prints nothing and returns what it found; `test_people` runs all of them with joblib and with us, and
compares the answers.
"""

import collections
import importlib
import json
import multiprocessing
import os
import pickle
import sys
import tempfile
import threading
import time
import warnings

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.linear_model import Ridge

joblib = importlib.import_module(sys.argv[1] if __name__ == "__main__" else "ipyparcache")
delayed = joblib.delayed

PROGRAMS = {}
GLOBAL = 1


def program(function):
    """Note one of the programs."""
    PROGRAMS[function.__name__] = function
    return function


def on_two(function, *rows, **options):
    """The results of calls with these arguments on two workers."""
    return joblib.Parallel(n_jobs=2, **options)(delayed(function)(*row) for row in rows)


def square(x):
    return x * x


def facts(array):
    return type(array).__name__, array.flags.writeable, getattr(array, "mode", None)


def read_global():
    return GLOBAL


@program
def a_global_is_read_as_it_is_at_each_call():
    global GLOBAL
    found = []
    for value in (5, 6):
        GLOBAL = value
        found.append(on_two(read_global, (), ()))
    return found


@program
def lambdas_and_closures_travel():
    offset = 3
    return on_two(lambda x: x + offset, (1,), (2,))


@program
def methods_of_local_classes_travel():
    class Adding:
        def __init__(self, value):
            self.value = value

        def to(self, x):
            return self.value + x

    return on_two(Adding(2).to, (1,), (2,))


@program
def instances_of_local_classes_come_home():
    point = collections.namedtuple("point", "x y")
    found = on_two(point, (1, 2), (3, 4))
    return [type(one) is point for one in found], found[1].x


@program
def small_arrays_are_arrays():
    return on_two(facts, (np.zeros(10),), (np.zeros(10),))


@program
def arrays_beyond_a_limit_are_maps():
    return on_two(facts, (np.zeros(10),), (np.zeros(10),), max_nbytes=10)


@program
def arrays_without_a_limit_are_arrays():
    return on_two(facts, (np.zeros(10**6),), max_nbytes=None)


@program
def arrays_are_mapped_as_asked_for():
    return [on_two(facts, (np.zeros(100),), max_nbytes=10, mmap_mode=mode) for mode in ("r", "r+", "c", "w+")]


@program
def arrays_inside_of_containers_are_mapped_and_objects_are_not():
    def kinds(found):
        return type(found["a"][0]).__name__, type(found["b"]).__name__

    return on_two(kinds, ({"a": [np.zeros(100)], "b": np.array([None] * 100)},), max_nbytes=10)


@program
def a_part_of_a_map_comes_back_as_an_array():
    return [type(one).__name__ for one in on_two(lambda a: a[:50], (np.zeros(100),), max_nbytes=10)]


@program
def arguments_that_do_not_pickle_are_told():
    try:
        on_two(square, (threading.Lock(),))
    except (TypeError, pickle.PicklingError):
        return "told"


@program
def results_that_do_not_pickle_are_told():
    try:
        on_two(threading.Lock, (), ())
    except (TypeError, pickle.PicklingError):
        return "told"


@program
def local_errors_come_home():
    class Own(ValueError):
        pass

    def fail():
        raise Own("x")

    try:
        on_two(fail, (), ())
    except ValueError as error:
        return type(error).__name__, error.args


@program
def a_worker_that_dies_is_an_error_and_the_next_call_is_well():
    try:
        on_two(os._exit, (1,), (1,))
    except RuntimeError:
        return on_two(square, (1,), (2,))


@program
def a_call_in_a_task_finds_threads():
    def inside():
        return type(joblib.Parallel(n_jobs=2)._backend).__name__, joblib.Parallel().n_jobs

    return on_two(inside, (), ())


@program
def calls_in_tasks_give_their_results():
    def inside(count):
        return on_two(square, *[(n,) for n in range(count)])

    return on_two(inside, (1,), (2,), (3,))


@program
def processes_in_tasks_give_their_results():
    def inside(count):
        return on_two(square, *[(n,) for n in range(count)], backend="loky")

    return on_two(inside, (1,), (2,))


@program
def calls_that_call_themselves_end():
    def deeper(n):
        return on_two(deeper, (n - 1,))[0] if n else n

    return on_two(deeper, (5,), (5,))


@program
def inner_threads_are_set_in_the_environment():
    with joblib.parallel_config("loky", inner_max_num_threads=3):
        return on_two(lambda: (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]), (), ())


@program
def inner_threads_share_the_processors():
    return on_two(lambda: os.environ["OPENBLAS_NUM_THREADS"], ())


@program
def a_pool_keeps_its_processes():
    with joblib.Parallel(n_jobs=2) as parallel:
        first = set(parallel(delayed(os.getpid)() for _ in range(20)))
        second = set(parallel(delayed(os.getpid)() for _ in range(20)))
    return os.getpid() in first, len(first | second) <= 2


@program
def late_tasks_raise_the_error_of_multiprocessing():
    try:
        on_two(time.sleep, (3,), (3,), timeout=0.3)
    except multiprocessing.TimeoutError:
        return "late"


@program
def results_come_one_by_one():
    rows = [(n,) for n in range(10)]
    in_order = list(on_two(square, *rows, return_as="generator"))
    return in_order, sorted(on_two(square, *rows, return_as="generator_unordered"))


@program
def large_results_are_writable():
    return [(one.shape, one.flags.writeable) for one in on_two(np.zeros, ((1000, 500),), ((1000, 500),))]


@program
def frames_come_and_go():
    found = on_two(lambda frame: frame.assign(b=frame.a * 2), *[(pd.DataFrame({"a": [1, 2]}),)] * 2)
    return pd.concat(found).b.tolist()


@program
def models_are_fitted():
    samples = np.arange(20.0).reshape(10, 2)
    calls = [delayed(clone(Ridge(alpha)).fit)(samples, samples.sum(1)) for alpha in (0.1, 1.0)]
    return [model.coef_.round(4).tolist() for model in joblib.Parallel(n_jobs=2)(calls)]


@program
def workers_are_initialised():
    def name(value):
        os.environ["NAMED"] = value

    return on_two(os.environ.get, ("NAMED",), ("NAMED",), initializer=name, initargs=("so",))


@program
def cached_functions_are_called_on_workers():
    cached = joblib.Memory(tempfile.mkdtemp(dir=os.getcwd()), verbose=0).cache(square)
    found = on_two(cached, (1,), (2,))
    return found, [cached.check_call_in_cache(n) for n in (1, 2, 3)]


@program
def shelved_results_come_from_workers():
    cached = joblib.Memory(tempfile.mkdtemp(dir=os.getcwd()), verbose=0).cache(square)
    return [shelved.get() for shelved in on_two(cached.call_and_shelve, (1,), (2,))]


@program
def what_a_task_changes_stays_on_the_worker():
    kept = []
    on_two(kept.append, (1,), (2,))
    return kept


@program
def workers_are_where_the_caller_is():
    return on_two(os.getcwd, ()) == [os.getcwd()]


@program
def keywords_alone_are_passed():
    return joblib.Parallel(n_jobs=2)(delayed(dict)(a=n, b=2) for n in range(2))


def answer(function):
    """What a program returns or raises, as text, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            found = repr(function())
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
    return found, sorted({str(one.message) for one in caught if issubclass(one.category, UserWarning)})


if __name__ == "__main__":
    with open(sys.argv[2], "w", encoding="utf-8") as out:
        json.dump({name: answer(function) for name, function in PROGRAMS.items()}, out)
