"""The same calls put to joblib and to us; where the answers differ on purpose, the test says why."""

import functools
import io
import multiprocessing
import os
import pickle
import random
import re
import threading

import joblib
import numpy as np
import pytest

import ipyparcache

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

BOTH = (joblib, ipyparcache)


def answer(call, *args):
    """What a call gives: its value, or the kind of its error."""
    try:
        return call(*args)
    except Exception as error:
        bases = (ValueError, TypeError, KeyError, pickle.PicklingError, multiprocessing.TimeoutError)
        return next((base.__name__ for base in bases if isinstance(error, base)), type(error).__name__)


def on(module, backend):
    """The backend for ours; joblib answers on threads, as its processes would outlive the test."""
    return backend if module is ipyparcache else "threading"


def same(call):
    theirs, ours = (answer(call, module) for module in BOTH)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("n_jobs", [1, 2, "2", 2.9, None, 0, 0.5, "2.3", "x", [], -1, -2, -100])
def test_n_jobs(n_jobs):
    same(lambda m: m.Parallel(n_jobs=n_jobs, backend="threading")(m.delayed(abs)(-i) for i in range(3)))


@pytest.mark.parametrize("n_jobs", [1, 2, None, -1, -2, -100, 0])
def test_effective_n_jobs(n_jobs):
    same(lambda m: m.effective_n_jobs(n_jobs))


@pytest.mark.parametrize(
    "value", ["2 * n_jobs", "all", "n_jobs", "1.5*n_jobs", 3, 2.5, "n_jobs ** 9", "exit()", "x", "1/0", -1]
)
def test_pre_dispatch(value):
    # joblib accepts 0 silently and returns nothing: see the next test.
    same(
        lambda m: m.Parallel(n_jobs=2, backend="threading", pre_dispatch=value)(
            m.delayed(abs)(-i) for i in range(9)
        )
    )


def test_pre_dispatch_of_nothing_is_an_error_here():
    calls = [(abs, (-1,), {})]
    assert joblib.Parallel(n_jobs=2, backend="threading", pre_dispatch=0)(calls) == []
    with pytest.raises(ValueError, match="at least one task"):
        ipyparcache.Parallel(n_jobs=2, backend="threading", pre_dispatch=0)(calls)


@pytest.mark.parametrize("size", ["auto", 1, 3, 0, -1, 1.42, "x"])
def test_batch_size(size):
    same(
        lambda m: m.Parallel(n_jobs=2, backend="threading", batch_size=size)(
            m.delayed(abs)(-i) for i in range(9)
        )
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"backend": "unknown"},
        {"prefer": "wrong"},
        {"require": "wrong"},
        {"prefer": "processes", "require": "sharedmem"},
        {"backend": "loky", "require": "sharedmem"},
        {"return_as": "x"},
        {"backend": "threading", "return_as": "generator"},
        {"backend": "sequential", "n_jobs": 2},
        {"prefer": "threads", "n_jobs": 2},
    ],
    ids=str,
)
def test_arguments(arguments):
    same(lambda m: list(m.Parallel(**arguments)(m.delayed(abs)(-i) for i in range(3))))


def test_unknown_arguments_are_errors_here():
    joblib.Parallel(njobs=3)
    with pytest.raises(TypeError, match="njobs"):
        ipyparcache.Parallel(njobs=3)


def test_contexts():
    def found(m):
        results = []
        with m.parallel_config(backend="threading", n_jobs=2, verbose=0):
            results.append(m.Parallel().n_jobs)
            results.append(m.effective_n_jobs(None))
            with m.parallel_config(n_jobs=None):
                results.append(m.Parallel().n_jobs)
            with m.parallel_config(n_jobs=3):
                results.append((m.Parallel().n_jobs, m.Parallel(n_jobs=1).n_jobs))
            thread_sees = []
            thread = threading.Thread(target=lambda: thread_sees.append(m.Parallel().n_jobs))
            thread.start()
            thread.join()
            results += thread_sees
        return [*results, m.Parallel().n_jobs]

    same(found)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: m.parallel_config(inner_max_num_threads=1),
        lambda m: m.parallel_config(param=1),
        lambda m: m.parallel_config("unknown"),
        lambda m: m.parallel_config("threading", inner_max_num_threads=1),
    ],
)
def test_contexts_that_cannot_be(make):
    def kind(m):
        try:
            make(m).unregister()
        except Exception as error:
            return type(error).__name__
        return None

    assert kind(ipyparcache) == kind(joblib)


def failing(x):
    if x == 3:
        raise KeyError(x)
    return x


@pytest.mark.parametrize("backend", ["loky", "threading", "sequential"])
def test_an_error_of_a_task(backend):
    same(lambda m: m.Parallel(n_jobs=2, backend=on(m, backend))(m.delayed(failing)(i) for i in range(6)))


def raising_input(m):
    yield m.delayed(abs)(1)
    raise LookupError("in the input")


@pytest.mark.parametrize("backend", ["loky", "threading", "sequential"])
def test_an_error_of_the_input(backend):
    same(lambda m: m.Parallel(n_jobs=2, backend=on(m, backend))(raising_input(m)))


@pytest.mark.parametrize("backend", ["loky", "threading", "sequential", "multiprocessing"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_results_of_every_backend(backend, n_jobs):
    same(lambda m: m.Parallel(n_jobs=n_jobs, backend=on(m, backend))(m.delayed(pow)(i, 2) for i in range(20)))


def test_a_second_call_while_a_generator_lives():
    for module in BOTH:
        parallel = module.Parallel(n_jobs=2, backend="threading", return_as="generator")
        generator = parallel(module.delayed(abs)(i) for i in range(3))
        with pytest.raises(RuntimeError, match="This Parallel instance is already running"):
            parallel(module.delayed(abs)(i) for i in range(3))
        assert list(generator) == [0, 1, 2]
        assert list(parallel(module.delayed(abs)(i) for i in range(2))) == [0, 1]


def lines_of(capsys, module, **arguments):
    module.Parallel(n_jobs=2, backend="threading", **arguments)(module.delayed(abs)(i) for i in range(10))
    out, err = capsys.readouterr()
    text = re.sub(r"\d+\.\d+(s|min)", "T", out + err)
    return out != "", [line for line in text.splitlines() if "Using backend" in line or "finished" in line]


@pytest.mark.parametrize("known_length", [True, False])
@pytest.mark.parametrize("verbose", [1, 5, 10, 11, 50])
def test_all_lines_of_verbose_without_workers(capsys, verbose, known_length):
    told = []
    for module in BOTH:
        tasks = (module.delayed(abs)(i) for i in range(12))
        module.Parallel(n_jobs=1, verbose=verbose)(list(tasks) if known_length else tasks)
        told.append([re.sub(r"\d+\.\d+(s|min)", "T", text) for text in capsys.readouterr()])

    assert told[0] == told[1]


@pytest.mark.parametrize("verbose", [0, 1, 5, 11, 50])
def test_first_and_last_lines_of_verbose(capsys, verbose):
    assert lines_of(capsys, ipyparcache, verbose=verbose) == lines_of(capsys, joblib, verbose=verbose)


@pytest.mark.parametrize("compress", [0, 1, "gzip", ("bz2", 2), 10, "x", ("zlib", 1, 1), {}])
def test_dump(tmp_path, compress):
    value = {"a": np.arange(100), "b": [1, "x"]}

    def found(m):
        m.dump(value, tmp_path / "file", compress=compress)
        back = m.load(tmp_path / "file")
        return back["a"].sum(), back["b"]

    same(found)


def test_dump_into_a_buffer():
    def found(m):
        file = io.BytesIO()
        m.dump([np.arange(3), "x"], file)
        return m.load(file)

    same(found)


VALUES = [
    1,
    1.0,
    True,
    "1",
    b"1",
    (1,),
    [1],
    {1: 1},
    {1},
    None,
    np.arange(3),
    np.arange(3.0),
    np.int64(1),
    [[1], [1]],
]


def test_hash_tells_the_same_values_apart():
    theirs, ours = ([m.hash(value) for value in VALUES] for m in BOTH)

    assert len(set(ours)) == len(set(theirs)) == len(VALUES)


@pytest.mark.parametrize("name", ["md5", "sha1", "sha256"])
def test_hash_names(name):
    same(lambda m: len(result) if isinstance(result := m.hash("x", hash_name=name), str) else result)


def test_hash_of_what_cannot_be():
    def found(m):
        def local():
            return 1

        return m.hash(local)

    same(found)


def test_hash_of_random_generators_goes_by_their_state():
    def found(m):
        one, other = np.random.RandomState(1), np.random.RandomState(1)
        names = [m.hash(one), m.hash(other)]
        other.random_sample()
        one_of_python = random.Random(1)
        names += [m.hash(other), m.hash(one_of_python), m.hash(random.Random(1)), m.hash(random.Random(2))]
        return [names.index(name) for name in names]

    same(found)
    assert found(ipyparcache) == [0, 0, 2, 3, 3, 5]


def counted(x, y=1, *rest, k=2, **more):
    return x, y, rest, k, more


def test_memory(tmp_path):
    def found(m):
        memory = m.Memory(tmp_path / m.__name__, verbose=0)
        f = memory.cache(counted)
        results = [f(1), f(x=1), f(1, 1, k=2), f(1, 2, 3, z=4)]
        before = [f.check_call_in_cache(1), f.check_call_in_cache(9)]
        shelved = f.call_and_shelve(1)
        value = shelved.get()
        shelved.clear()
        return results, before, value, f.check_call_in_cache(1), f.call(5)[0], memory.eval(counted, 6)

    same(found)


@pytest.mark.parametrize("verbose", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("function", [counted, np.square, functools.partial(counted, 3)], ids=str)
def test_what_memory_prints(tmp_path, capsys, function, verbose):
    """But that of a partial, which joblib calls unknown."""

    def printed(package):
        memory = package.Memory(tmp_path / package.__name__, verbose=verbose)
        cached = memory.cache(function)
        cached(2)
        cached(2)
        return re.sub(r"\d+\.\d+(s|min)", r"0.0\1", capsys.readouterr().out)

    ours = printed(ipyparcache)
    if isinstance(function, functools.partial):
        assert "unknown" not in ours
    else:
        assert ours == printed(joblib)


def test_nothing_is_printed_of_a_call_without_tasks(capsys):
    for package in (joblib, ipyparcache):
        package.Parallel(n_jobs=2, backend="threading", verbose=5)([])
    theirs, ours = capsys.readouterr().err.splitlines()

    assert ours == theirs


def test_times_that_are_printed(capsys, tmp_path):
    for package in (joblib, ipyparcache):
        told = package.PrintTime(logfile=tmp_path / f"{package.__name__}.log")
        told("Foo")
        told("Bar", total=True)
    lines = [re.sub(r"\d", "0", line) for line in capsys.readouterr().err.splitlines()]

    assert lines[:2] == lines[2:]


def test_arguments_of_a_pool():
    """joblib takes and refuses the same; its pool would leave a process behind."""
    calls = [(os.getpid, (), {}) for _ in range(6)]

    def processes(**arguments):
        parallel = ipyparcache.Parallel(n_jobs=2, backend="multiprocessing", batch_size=1, **arguments)
        return len(set(parallel(calls)))

    assert processes(initializer=int, initargs=("1",)) <= 2
    assert processes(maxtasksperchild=1) == 6
    with pytest.raises(TypeError, match="nonsense"):
        processes(nonsense=1)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, folder: m.Memory(folder, backend="unknown"),
        lambda m, folder: m.Memory(folder).cache(counted, cache_validation_callback=True),
        lambda m, folder: m.Memory(folder, verbose=0).cache(counted, ignore=["unknown"])(1),
        lambda m, folder: m.Memory(folder, verbose=0).cache(counted)(),
        lambda m, folder: m.register_store_backend(1, m.StoreBackendBase),
        lambda m, folder: m.register_store_backend("x", dict),
        lambda m, folder: m.register_compressor(1, None),
        lambda m, folder: m.PrintTime(logfile="a", logdir="b"),
    ],
)
def test_errors(tmp_path, call):
    same(lambda m: call(m, tmp_path))


def test_the_active_backend_is_told():
    import joblib.parallel

    import ipyparcache.parallel

    def found(m):
        told = [m.get_active_backend()]
        with m.parallel_config(backend="threading", n_jobs=3):
            told += [m.get_active_backend(), m.get_active_backend(require="sharedmem")]
        with m.parallel_config(backend="loky", n_jobs=3):
            told += [m.get_active_backend(require="sharedmem")]
        return [(type(backend).__name__, n_jobs) for backend, n_jobs in told]

    assert found(ipyparcache.parallel) == found(joblib.parallel)


def test_the_default_backend_is_an_attribute():
    import ipyparcache.parallel as front

    before = front.DEFAULT_BACKEND
    try:
        front.register_parallel_backend("threading", front.BACKENDS["threading"], make_default=True)
        during = front.DEFAULT_BACKEND, type(front.Parallel()._backend).__name__
    finally:
        front.DEFAULT_BACKEND = before

    assert (before, during) == ("loky", ("threading", "ThreadingBackend"))
    assert type(front.Parallel()._backend).__name__ == "LokyBackend"


def test_the_order_of_a_dict_counts_for_memory_here(tmp_path):
    seen = []
    for package in (joblib, ipyparcache):
        cached = package.Memory(tmp_path / package.__name__, verbose=0).cache(list)
        seen.append((cached({"a": 1, "b": 2}), cached({"b": 2, "a": 1})))

    assert seen == [(["a", "b"], ["a", "b"]), (["a", "b"], ["b", "a"])]
