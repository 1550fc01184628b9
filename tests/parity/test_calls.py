"""What programs rely on in calls of `Parallel`, asked of joblib and of us.

Where only ours is asked, joblib's worker processes would outlive the test, or it is wrong there.
"""

import concurrent.futures
import contextlib
import gc
import importlib
import inspect
import multiprocessing
import pickle
import threading
import time
import warnings
import weakref
from typing import ClassVar

import joblib
import pytest

import ipyparcache
from ipyparcache import Memory, Parallel, delayed

BOTH = pytest.mark.parametrize("package", [joblib, ipyparcache], ids=["joblib", "ours"])


@pytest.fixture
def front(package):
    """The module of `Parallel`, whose tables are as before when the test is over."""
    module = importlib.import_module(f"{package.__name__}.parallel")
    before = [(table, dict(table)) for table in (module.BACKENDS, module.EXTERNAL_BACKENDS)]
    yield module
    for table, kept in before:
        table.clear()
        table.update(kept)


# ---- what is called


@BOTH
def test_keywords_of_a_task_may_have_any_name(package):
    task = package.delayed(dict)(function=1, self=2, args=3, kwargs=4)

    assert package.Parallel()([task]) == [{"function": 1, "self": 2, "args": 3, "kwargs": 4}]


@BOTH
@pytest.mark.parametrize(
    "items", [[1], [(abs, (1,))], 3, [(1, (), {})]], ids=["number", "pair", "no iterable", "not callable"]
)
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_what_is_no_task_is_told(package, items, n_jobs):
    with pytest.raises((TypeError, ValueError)):
        package.Parallel(n_jobs=n_jobs, backend="threading")(items)


@BOTH
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_tasks_need_not_be_made_by_delayed(package, n_jobs):
    tasks = iter([(abs, (-1,), {}), [int, ("7",), {"base": 8}]])

    assert package.Parallel(n_jobs=n_jobs, backend="threading")(tasks) == [1, 7]


def test_delayed_goes_around_a_cached_function_and_not_the_other_way_round(tmp_path):
    runs = []

    def double(x):
        runs.append(x)
        return 2 * x

    memory = Memory(tmp_path, verbose=0)
    calls = [delayed(memory.cache(double))(n) for n in (1, 1, 2)]

    assert Parallel(n_jobs=1)(calls) == [2, 2, 4]
    assert runs == [1, 2]
    assert memory.cache(delayed(abs))(-3) == (abs, (-3,), {})


@pytest.mark.parametrize(
    "name",
    [
        "Parallel",
        "parallel_config",
        "parallel_backend",
        "register_parallel_backend",
        "register_store_backend",
        "register_compressor",
        "effective_n_jobs",
        "cpu_count",
        "wrap_non_picklable_objects",
        "Memory",
        "Memory.cache",
        "Memory.clear",
        "Memory.reduce_size",
        "Memory.eval",
        "expires_after",
        "dump",
        "load",
        "hash",
        "PrintTime",
        "Logger",
    ],
)
def test_arguments_stand_where_they_do_in_joblib(name):
    def positions(package):
        found = package
        for part in name.split("."):
            found = getattr(found, part)
        return [
            (parameter.name, parameter.kind)
            for parameter in inspect.signature(found).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]

    theirs, ours = positions(joblib), positions(ipyparcache)
    assert ours[: len(theirs)] == theirs
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind in ours[len(theirs) :])


@BOTH
def test_what_programs_read_of_a_call_is_there_once_it_has_run(package):
    parallel = package.Parallel(n_jobs=2, backend="threading", timeout=9, pre_dispatch=3, batch_size=2)
    parallel(package.delayed(abs)(-n) for n in range(7))

    assert (parallel.n_completed_tasks, parallel.n_dispatched_tasks) == (7, 7)
    assert parallel.n_dispatched_batches >= 4
    assert (parallel.n_jobs, parallel.verbose, parallel.timeout) == (2, 0, 9)
    assert (parallel.pre_dispatch, parallel.batch_size) == (3, 2)
    assert (parallel.return_as, parallel.return_generator, parallel.return_ordered) == ("list", False, True)
    assert repr(parallel) == "Parallel(n_jobs=2)"
    assert all(map(callable, (parallel.print_progress, parallel._print, parallel.format, parallel.warn)))


# ---- one job


@BOTH
@pytest.mark.parametrize("how", [{"n_jobs": 1}, {"n_jobs": 2, "backend": "sequential"}], ids=str)
def test_a_timeout_that_cannot_be_kept_is_warned_of(package, how):
    with pytest.warns(UserWarning, match="does not support timeout"):
        assert package.Parallel(timeout=1e-6, **how)([package.delayed(time.sleep)(0.001)]) == [None]


@BOTH
def test_a_batch_of_one_job_is_drawn_and_then_run(package):
    log = []

    def tasks():
        for number in range(6):
            log.append(f"made {number}")
            yield package.delayed(log.append)(f"ran {number}")

    package.Parallel(n_jobs=1, batch_size=4)(tasks())

    made, ran = ([f"{word} {number}" for number in range(6)] for word in ("made", "ran"))
    assert log == made[:4] + ran[:4] + made[4:] + ran[4:]


@BOTH
@pytest.mark.parametrize("how", [{"n_jobs": 1}, {"n_jobs": 2, "backend": "sequential"}], ids=str)
@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_one_job_runs_a_task_when_its_result_is_asked_for(package, how, return_as):
    log = []
    found = package.Parallel(return_as=return_as, **how)(package.delayed(log.append)(n) for n in range(3))

    assert log == []
    next(found)
    assert log == [0]
    found.close()
    assert log == [0]


@BOTH
def test_one_job_reads_nothing_into_pre_dispatch(package):
    assert package.Parallel(n_jobs=1, pre_dispatch="exit()")([package.delayed(abs)(-1)]) == [1]


@BOTH
def test_no_number_to_draw_ahead_is_a_type_error(package):
    with pytest.raises(TypeError):
        package.Parallel(n_jobs=2, backend="threading", pre_dispatch=None)([package.delayed(abs)(1)] * 3)


# ---- generators


@BOTH
@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_results_that_were_taken_are_let_go(package, return_as):
    class Result:
        pass

    found = package.Parallel(n_jobs=2, backend="threading", return_as=return_as)(
        package.delayed(Result)() for _ in range(20)
    )
    references = [weakref.ref(next(found)) for _ in range(10)]
    gc.collect()

    assert sum(reference() is not None for reference in references) <= 1
    assert len(list(found)) == 10


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_results_of_a_batch_are_let_go_one_by_one(return_as):
    class Result:
        pass

    found = Parallel(n_jobs=2, backend="threading", return_as=return_as, batch_size=5)(
        delayed(Result)() for _ in range(10)
    )
    references = [weakref.ref(next(found)) for _ in range(8)]
    gc.collect()

    assert [reference() for reference in references[:-1]] == [None] * 7  # the last one may be at hand
    assert len(list(found)) == 2


@BOTH
def test_the_fastest_comes_first_where_order_does_not_count(package):
    gate = threading.Event()
    found = package.Parallel(n_jobs=2, backend="threading", return_as="generator_unordered")(
        package.delayed(gate.wait)(0 if n else 30) for n in range(10)
    )
    quick = [next(found) for _ in range(9)]
    gate.set()

    assert (quick, list(found)) == ([False] * 9, [True])


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_two_generators_live_side_by_side_and_one_ends_without_the_other(backend):
    first = Parallel(n_jobs=2, backend=backend, return_as="generator")(delayed(abs)(-n) for n in range(9))
    second = Parallel(n_jobs=2, backend=backend, return_as="generator")(delayed(pow)(n, 2) for n in range(9))
    taken = [next(first), next(second)]
    assert list(first) == list(range(1, 9))
    assert taken + list(second) == [0, *(n * n for n in range(9))]


@BOTH
@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_a_generator_ends_with_the_first_error(package, return_as):
    found = package.Parallel(n_jobs=2, backend="threading", return_as=return_as)(
        package.delayed(divmod)(6, n - 2) for n in range(50)
    )
    with pytest.raises(ZeroDivisionError):
        list(found)
    assert list(found) == []


@BOTH
@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_a_late_task_is_told_when_its_result_is_asked_for(package, return_as):
    gate = threading.Event()
    found = package.Parallel(n_jobs=2, backend="threading", timeout=0.05, return_as=return_as)(
        package.delayed(gate.wait)(30) for _ in range(2)
    )
    with pytest.raises(multiprocessing.TimeoutError):
        list(found)
    gate.set()


def test_a_call_inside_of_its_own_task_is_refused():
    parallel = Parallel(n_jobs=2, backend="threading")

    def again():
        return parallel([delayed(abs)(-1)])

    with pytest.raises(RuntimeError, match="already running"):
        parallel(delayed(again)() for _ in range(2))
    assert parallel([delayed(abs)(-1)] * 2) == [1, 1]


# ---- how many, and how they are chosen


def meet(folder, number, count):
    (folder / str(number)).touch()
    until = time.monotonic() + 30
    while len(list(folder.iterdir())) < count and time.monotonic() < until:
        time.sleep(0.005)
    return len(list(folder.iterdir())) == count


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_there_may_be_more_workers_than_processors(backend, tmp_path):
    count = 2 * ipyparcache.cpu_count()
    with Parallel(n_jobs=count, backend=backend, batch_size=1, pre_dispatch="all") as parallel:
        assert all(parallel(delayed(meet)(tmp_path, number, count) for number in range(count)))


def test_a_pool_grows_and_shrinks_with_what_is_asked_for(tmp_path):
    for count in (2, 4, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        call = Parallel(n_jobs=count, batch_size=1, pre_dispatch="all")
        assert all(call(delayed(meet)(folder, number, count) for number in range(count)))


@BOTH
def test_threads_get_tasks_one_by_one(package):
    parallel = package.Parallel(n_jobs=2, backend="threading", batch_size="auto")
    parallel(package.delayed(abs)(-n) for n in range(500))

    assert parallel._backend.compute_batch_size() == 1


def noting(package):
    """A backend that runs tasks as they come and notes what it is configured with."""

    class Noting(package.ParallelBackendBase):
        supports_retrieve_callback = True
        noted: ClassVar = {}

        def effective_n_jobs(self, n_jobs):
            return 2

        def configure(self, n_jobs=1, parallel=None, **settings):
            self.noted.update(settings, n_jobs=n_jobs)
            self.parallel = parallel
            return 2

        def submit(self, func, callback=None):
            future = concurrent.futures.Future()
            future.set_result(func())
            callback(future)
            return future

        def retrieve_result_callback(self, out):
            return out.result()

    return Noting()


@BOTH
@pytest.mark.parametrize(
    ("name", "outer", "inner", "own"),
    [
        ("n_jobs", 2, 3, 4),
        ("verbose", 51, 52, 53),
        ("temp_folder", "/a", "/b", "/c"),
        ("max_nbytes", 2000, 3000, 4000),
        ("mmap_mode", "c", "r+", "r"),
        ("prefer", "threads", "processes", "threads"),
    ],
)
def test_an_argument_beats_the_inner_context_which_beats_the_outer(package, name, outer, inner, own, capsys):
    backend = noting(package)
    found = []

    def call(**arguments):
        package.Parallel(**arguments)([package.delayed(abs)(-1)] * 3)
        found.append(backend.noted[name])

    with package.parallel_config(backend, n_jobs=2), package.parallel_config(**{name: outer}):
        call()
        with package.parallel_config(**{name: inner}):
            call()
            call(**{name: own})
        call()
    assert found == [value - 50 if name == "verbose" else value for value in (outer, inner, own, outer)]


@BOTH
def test_a_context_tells_all_that_holds_inside_of_it(package):
    with package.parallel_config("threading", n_jobs=2), package.parallel_config(verbose=3) as settings:
        assert type(settings["backend"]).__name__ == "ThreadingBackend"
        assert (settings["n_jobs"], settings["verbose"]) == (2, 3)
        inside = package.Parallel()
    assert (inside.n_jobs, inside.verbose) == (2, 3)
    assert (package.Parallel().n_jobs, package.Parallel().verbose) == (1, 0)


@BOTH
def test_only_the_backend_of_a_context_goes_without_a_name(package):
    with pytest.raises(TypeError):
        package.parallel_config("threading", 2)


@BOTH
def test_what_a_context_prefers_is_read_by_the_call(package):
    for wrong in ({"prefer": "wrong"}, {"require": "wrong"}):
        with package.parallel_config(**wrong), pytest.raises(ValueError, match="=wrong is not a valid"):
            package.Parallel()


@BOTH
def test_a_call_that_must_share_memory_tells_what_it_runs_on(package, capsys):
    with package.parallel_config("loky", n_jobs=2):
        package.Parallel(require="sharedmem", verbose=10)

    assert "Using ThreadingBackend as joblib backend instead of LokyBackend" in capsys.readouterr().out


# ---- backends of others


@BOTH
def test_a_backend_that_is_registered_when_it_is_asked_for(package, front):
    asked = []

    def register():
        asked.append("now")
        package.register_parallel_backend("elsewhere", front.ThreadingBackend)

    front.EXTERNAL_BACKENDS["elsewhere"] = register
    with package.parallel_config("elsewhere", n_jobs=2):
        found = package.Parallel()(package.delayed(abs)(-n) for n in range(3))

    assert (asked, found) == (["now"], [0, 1, 2])


@BOTH
@pytest.mark.parametrize("as_pair", [True, False], ids=["pair", "backend alone"])
def test_a_backend_says_what_runs_inside_of_its_tasks(package, front, as_pair):
    class Own(front.ThreadingBackend):
        def get_nested_backend(self):
            nested = front.SequentialBackend(nesting_level=1)
            return (nested, None) if as_pair else nested

    def inside():
        return type(front.get_active_backend()[0]).__name__

    found = package.Parallel(n_jobs=2, backend=Own())(package.delayed(inside)() for _ in range(3))

    assert found == ["SequentialBackend"] * 3


@BOTH
def test_a_backend_is_told_that_results_are_waited_for(package, front):
    entered = []

    class Own(front.ThreadingBackend):
        @contextlib.contextmanager
        def retrieval_context(self):
            entered.append("in")
            yield
            entered.append("out")

    package.Parallel(n_jobs=2, backend=Own())(package.delayed(abs)(-n) for n in range(4))

    assert entered == ["in", "out"]


@BOTH
def test_what_a_backend_can_do_is_told_by_its_class(package, front):
    flags = "default_n_jobs supports_retrieve_callback supports_inner_max_num_threads nesting_level"
    assert [getattr(package.ParallelBackendBase, name) for name in flags.split()] == [1, False, False, None]
    made = [front.BACKENDS[name]() for name in ("loky", "threading", "sequential", "multiprocessing")]
    able = "supports_timeout supports_inner_max_num_threads supports_sharedmem uses_threads"

    def told(backend):
        return [bool(getattr(backend, name, False)) for name in able.split()]

    assert [told(backend) for backend in made] == [
        [True, True, False, False],
        [True, False, True, True],
        [False, False, True, True],
        [True, False, False, False],
    ]
    assert [made[at].supports_return_generator for at in (0, 1, 3)] == [True, True, False]


@BOTH
def test_calls_inside_of_calls_without_end_are_a_recursion_error(package):
    def deeper():
        return package.Parallel(n_jobs=2)(package.delayed(deeper)() for _ in range(2))

    with package.parallel_config("threading", n_jobs=2), pytest.raises(RecursionError):
        deeper()


# ---- errors, and calls inside of calls

BACKENDS = ["loky", "threading", "multiprocessing", "sequential"]


class Unwilling:
    def __reduce__(self):
        raise RuntimeError("will not go")


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_an_argument_that_cannot_be_sent_is_told_whatever_it_raises(backend):
    with pytest.raises(pickle.PicklingError, match="the task to send"):
        Parallel(n_jobs=2, backend=backend)(delayed(id)(Unwilling()) for _ in range(3))


def fail_or_wait(number, wait):
    if number == 1:
        raise LookupError(number)
    wait(60)


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_the_first_error_waits_for_no_other_task(backend):
    gate = threading.Event()
    wait = gate.wait if backend == "threading" else time.sleep
    began = time.monotonic()
    with pytest.raises(LookupError):
        Parallel(n_jobs=2, backend=backend, batch_size=1)(
            delayed(fail_or_wait)(number, wait) for number in range(50)
        )
    gate.set()

    assert time.monotonic() - began < 30


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_managed_call_stands_an_input_that_raises(backend):
    def tasks(count):
        for number in range(count):
            yield delayed(abs)(-number)
        raise LookupError("in the input")

    with Parallel(n_jobs=2, backend=backend) as parallel:
        for count in (0, 1, 20):
            with pytest.raises(LookupError, match="in the input"):
                parallel(tasks(count))
            assert parallel(delayed(abs)(-number) for number in range(3)) == [0, 1, 2]


def inner(backend, number):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # where a pool cannot be nested
        return Parallel(n_jobs=2, backend=backend)(delayed(pow)(number, n) for n in range(3))


@pytest.mark.parametrize("below", BACKENDS)
@pytest.mark.parametrize("above", BACKENDS)
def test_any_backend_runs_inside_of_any_other(above, below):
    found = Parallel(n_jobs=2, backend=above)(delayed(inner)(below, number) for number in range(2))

    assert found == [[1, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_of_any_name_may_call(backend, monkeypatch):
    monkeypatch.setattr(threading.current_thread(), "name", "renamed")
    found = []

    def call():  # a warning would be an error here
        found.append(Parallel(n_jobs=2, backend=backend)(delayed(abs)(-n) for n in range(3)))

    call()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert found == [[0, 1, 2]] * 2


@BOTH
def test_a_backend_may_be_used_for_many_calls(package, front):
    backend = front.BACKENDS["threading"]()
    for _ in range(2):
        assert package.Parallel(n_jobs=2, backend=backend)([package.delayed(abs)(-1)] * 3) == [1, 1, 1]


# ---- more


def test_descriptors_of_methods_travel():
    assert Parallel(n_jobs=2)(delayed(str.upper)(letter) for letter in "ab") == ["A", "B"]


@BOTH
def test_how_many_workers_a_nested_call_has(package):
    def inside(depth):
        here = package.effective_n_jobs(3)
        if not depth:
            return [here]
        return [here, *package.Parallel(n_jobs=2)([package.delayed(inside)(depth - 1)])[0]]

    assert package.Parallel(n_jobs=2, backend="threading")([package.delayed(inside)(1)])[0] == [3, 1]
