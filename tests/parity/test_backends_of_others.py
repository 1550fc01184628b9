"""Backends that programs and libraries wrote for joblib: each written once, and run with joblib and us."""

import concurrent.futures
import importlib
import os
import threading
import time

import joblib
import pytest

import ipyparcache

BOTH = pytest.mark.parametrize("package", [joblib, ipyparcache], ids=["joblib", "ours"])


@pytest.fixture(autouse=True)
def registry():
    """Backends that a test registers are known to that test alone."""
    tables = [package.parallel.BACKENDS for package in (joblib, ipyparcache)]
    before = [dict(table) for table in tables]
    defaults = [package.parallel.DEFAULT_BACKEND for package in (joblib, ipyparcache)]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
    for package, name in zip((joblib, ipyparcache), defaults, strict=True):
        package.parallel.DEFAULT_BACKEND = name


def module(package, name):
    return importlib.import_module(f"{package.__name__}.{name}")


def tasks(package, count=6):
    return (package.delayed(abs)(-i) for i in range(count))


class Futures:
    """The backend of joblib's documentation, for either package."""

    def __new__(cls, package, **base):
        class FuturesBackend(package.ParallelBackendBase):
            supports_retrieve_callback = True

            def __init__(self, nesting_level=None, inner_max_num_threads=None, **backend_kwargs):
                super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
                self.backend_kwargs = backend_kwargs
                self._executor = None

            def effective_n_jobs(self, n_jobs):
                return 2 if n_jobs == -1 else n_jobs

            def configure(self, n_jobs=1, parallel=None, **backend_kwargs):
                self.parallel = parallel
                self.given = {**self.backend_kwargs, **backend_kwargs}
                self._executor = concurrent.futures.ThreadPoolExecutor(n_jobs)
                return self.effective_n_jobs(n_jobs)

            def terminate(self):
                self._executor.shutdown()

            def submit(self, func, callback):
                future = self._executor.submit(func)
                future.add_done_callback(callback)
                return future

            def retrieve_result_callback(self, future):
                return future.result()

        return FuturesBackend


@BOTH
@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_the_backend_of_the_documentation(package, return_as):
    backend = Futures(package)
    package.register_parallel_backend("custom", backend)
    with package.parallel_config("custom", n_jobs=2, option=3) as config:
        results = package.Parallel(return_as=return_as)(tasks(package))
        assert sorted(results) == list(range(6))
        assert config["backend"].given["option"] == 3
    assert package.Parallel(2, "custom")(tasks(package)) == list(range(6))


@BOTH
def test_a_backend_may_have_another_one_run_the_call(package):
    names = module(package, "_parallel_backends")

    class Falling(package.ParallelBackendBase):
        def effective_n_jobs(self, n_jobs):
            return n_jobs

        def configure(self, n_jobs=1, parallel=None, **arguments):
            raise names.FallbackToBackend(names.SequentialBackend(nesting_level=self.nesting_level))

    here = threading.get_ident()
    parallel = package.Parallel(n_jobs=2, backend=Falling())
    assert parallel(package.delayed(threading.get_ident)() for _ in range(3)) == [here] * 3
    assert type(parallel._backend) is names.SequentialBackend


@BOTH
def test_batches_are_counted_as_they_are_handed_over(package):
    threading_backend = package.parallel.ThreadingBackend

    class Counting(threading_backend):
        count = 0

        def submit(self, func, callback=None):
            Counting.count += 1
            return super().submit(func, callback)

    package.register_parallel_backend("counting", Counting)
    found = package.Parallel(n_jobs=2, backend="counting", batch_size=1)(tasks(package, 4))
    assert (found, Counting.count) == ([0, 1, 2, 3], 4)
    with package.parallel_config(backend="counting", n_jobs=2):
        found = package.Parallel(batch_size=2)(tasks(package, 4))
    assert (found, Counting.count) == ([0, 1, 2, 3], 6)


def test_results_are_looked_at_as_soon_as_a_worker_has_them():
    """As optimisers do that are told of each result in the caller: joblib's `LokyBackend` of old."""
    seen = []

    class Telling(ipyparcache._parallel_backends.LokyBackend):
        def submit(self, func, callback=None):
            def both(future):
                seen.extend(future.result())
                callback(future)

            return super().submit(func, both)

    found = ipyparcache.Parallel(n_jobs=2, backend=Telling())(
        ipyparcache.delayed(os.getpid)() for _ in range(4)
    )

    assert sorted(seen) == sorted(found)
    assert os.getpid() not in found


def failing():
    raise KeyError("it")


@pytest.mark.parametrize("kind", ["ThreadingBackend", "LokyBackend"])
def test_a_backend_derived_from_ours_ends_with_the_first_error(kind):
    class Own(getattr(ipyparcache._parallel_backends, kind)):
        def submit(self, func, callback=None):
            return super().submit(func, callback)

    slow = [ipyparcache.delayed(time.sleep)(0.01) for _ in range(4)]
    parallel = ipyparcache.Parallel(n_jobs=2, backend=Own(), batch_size=1)
    with pytest.raises(KeyError, match="it"):
        parallel([*slow, ipyparcache.delayed(failing)(), *slow])
    assert parallel(slow) == [None] * 4


def marked():
    return os.environ.get("MARKED_BY_INITIALIZER")


def mark(text):
    os.environ["MARKED_BY_INITIALIZER"] = text


def test_workers_are_initialised_as_a_derived_backend_says():
    """In three ways that programs have: by `configure`, by its defaults, and by the constructor."""
    base = ipyparcache._parallel_backends.LokyBackend

    class ByKeywords(base):
        def configure(self, *args, **kwargs):
            kwargs.setdefault("initializer", mark)
            kwargs.setdefault("initargs", ("keywords",))
            return super().configure(*args, **kwargs)

    class ByDefaults(base):
        def configure(self, n_jobs=1, parallel=None, prefer=None, require=None, initializer=mark, **more):
            more["initargs"] = ("defaults",)
            return super().configure(
                n_jobs=n_jobs,
                parallel=parallel,
                prefer=prefer,
                require=require,
                idle_worker_timeout=86400,
                initializer=initializer,
                **more,
            )

    for backend, expected in (
        (ByKeywords(), "keywords"),
        (ByDefaults(), "defaults"),
        (base(initializer=mark, initargs=("constructor",)), "constructor"),
    ):
        found = ipyparcache.Parallel(n_jobs=2, backend=backend)(
            ipyparcache.delayed(marked)() for _ in range(4)
        )
        assert found == [expected] * 4


@BOTH
def test_a_backend_that_shows_the_progress_itself(package):
    """Its `start_call` replaces the method of the object that prints."""
    seen = []

    class Showing(package.parallel.ThreadingBackend):
        def start_call(self):
            self.original = self.parallel.print_progress
            self.parallel.print_progress = lambda: seen.append(self.parallel.n_completed_tasks)

        def stop_call(self):
            self.parallel.print_progress = self.original

    package.Parallel(n_jobs=2, backend=Showing())(tasks(package))

    assert seen[-1] == 6


@BOTH
def test_a_cluster_whose_results_are_asked_for(package):
    """As that of ipyparallel: made by a function without arguments, its results asked for with `get`."""

    class Result:
        def __init__(self, future):
            self.future = future

        def get(self, timeout=None):
            return self.future.result(timeout)

    class View(package.parallel.AutoBatchingMixin, package.ParallelBackendBase):
        supports_timeout = True

        def __init__(self, view=None, **kwargs):
            super().__init__(**kwargs)
            self._view = view

        def effective_n_jobs(self, n_jobs):
            return 2

        def submit(self, func, callback=None):
            future = self._view.submit(func)
            if callback:
                future.add_done_callback(lambda done: callback(done.result()))
            return Result(future)

        def retrieve_result(self, out, timeout=None):
            return out.get(timeout)

    with concurrent.futures.ThreadPoolExecutor(2) as view:
        package.register_parallel_backend("cluster", lambda: View(view=view))
        with package.parallel_backend("cluster"):
            assert package.Parallel()(tasks(package)) == list(range(6))
            assert package.effective_n_jobs(-1) == 2


# ---- the pool that joblib brings along


def test_the_pool_of_joblib_is_shut_down_where_programs_look_for_it():
    from ipyparcache.externals.loky import get_reusable_executor

    call = ipyparcache.Parallel(n_jobs=2)
    before = set(call(ipyparcache.delayed(os.getpid)() for _ in range(4)))
    get_reusable_executor().shutdown(wait=True)
    after = set(call(ipyparcache.delayed(os.getpid)() for _ in range(4)))
    ipyparcache.externals.loky.get_reusable_executor().shutdown(wait=True, kill_workers=True)

    assert not before & after


def test_the_pool_of_joblib_with_arrays_in_files_is_shut_down_where_programs_look_for_it():
    executor = ipyparcache.executor.get_memmapping_executor(2)
    assert executor is ipyparcache.externals.loky.get_reusable_executor(2)
    assert executor.submit(abs, -3).result() == 3
    executor.shutdown()
    assert ipyparcache.executor.get_memmapping_executor(2) is not executor


def test_the_pool_of_joblib_is_the_same_until_it_is_shut_down():
    get = ipyparcache.externals.loky.get_reusable_executor
    first = get(max_workers=2)

    assert get() is get(max_workers=2) is first
    assert get(max_workers=3) is not first
    get().shutdown()
    assert get().count == ipyparcache.cpu_count()


def test_the_pool_of_joblib_runs_what_it_is_given():
    with ipyparcache.externals.loky.get_reusable_executor(max_workers=2, timeout=100) as executor:
        assert list(executor.map(lambda x: x + 1, range(5))) == [1, 2, 3, 4, 5]
        future = executor.submit(failing)
        with pytest.raises(KeyError, match="it"):
            future.result()
        assert executor.submit(os.getpid).result() != os.getpid()


def test_a_dead_worker_is_caught_where_programs_look_for_it():
    errors = ipyparcache.externals.loky.process_executor
    with pytest.raises(errors.TerminatedWorkerError):
        ipyparcache.Parallel(n_jobs=2)(ipyparcache.delayed(os._exit)(3) for _ in range(2))
    with pytest.raises(errors.BrokenProcessPool):
        ipyparcache.Parallel(n_jobs=2)(ipyparcache.delayed(os._exit)(3) for _ in range(2))


@BOTH
def test_a_pickler_can_be_asked_for(package):
    loky = module(package, "externals.loky")
    try:
        loky.set_loky_pickler("pickle")
        with pytest.raises(ImportError):
            loky.set_loky_pickler("no_such_module")
        with pytest.raises((AttributeError, ImportError)):
            loky.set_loky_pickler("math")
    finally:
        loky.set_loky_pickler(None)


@BOTH
@pytest.mark.parametrize(
    "name",
    [
        "parallel",
        "memory",
        "hashing",
        "numpy_pickle",
        "compressor",
        "func_inspect",
        "logger",
        "disk",
        "_parallel_backends",
        "_store_backends",
        "externals",
    ],
)
def test_modules_are_attributes_of_the_package(package, name):
    assert getattr(package, name) is module(package, name)


def test_cloudpickle_is_found_where_joblib_used_to_have_it():
    cloudpickle = ipyparcache.externals.cloudpickle

    assert cloudpickle.loads(cloudpickle.dumps(lambda x: x + 1))(1) == 2
