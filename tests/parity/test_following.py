"""How programs of the world show the progress of `Parallel`: each written once, run with joblib and us."""

import contextlib
import functools
import io
import time

import joblib
import pytest
from tqdm import tqdm

import ipyparcache

COUNT = 6

# joblib runs them on threads, as its processes would outlive the test.
EVERYWHERE = pytest.mark.parametrize(
    ("package", "options"),
    [
        (joblib, {"n_jobs": 2, "backend": "threading"}),
        (ipyparcache, {"n_jobs": 2, "backend": "threading"}),
        (ipyparcache, {"n_jobs": 2}),
        (ipyparcache, {"n_jobs": 2, "backend": "multiprocessing"}),
        (ipyparcache, {"n_jobs": 2, "return_as": "generator"}),
        (ipyparcache, {"n_jobs": 2, "return_as": "generator_unordered"}),
    ],
    ids=["joblib", "threads", "processes", "multiprocessing", "generator", "unordered"],
)
ONE_JOB = pytest.mark.parametrize("package", [joblib, ipyparcache], ids=["joblib", "ours"])


@pytest.fixture(autouse=True)
def no_monitor(monkeypatch):
    """tqdm's thread that looks after bars would outlive the test."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)


def bar(total=COUNT):
    return tqdm(total=total, file=io.StringIO())


def tasks(package):
    return (package.delayed(abs)(-i) for i in range(COUNT))


def ran(parallel, package):
    assert sorted(parallel(tasks(package))) == list(range(COUNT))


@contextlib.contextmanager
def replaced(place, name, value):
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


@EVERYWHERE
def test_a_callback_class_is_replaced(package, options):
    """As in `tqdm_joblib`, and thousands of notebooks."""
    shown = bar()

    class Callback(package.parallel.BatchCompletionCallBack):
        def __call__(self, *args, **kwargs):
            shown.update(n=self.batch_size)
            return super().__call__(*args, **kwargs)

    with replaced(package.parallel, "BatchCompletionCallBack", Callback):
        ran(package.Parallel(**options), package)
    assert shown.n == COUNT
    ran(package.Parallel(**options), package)
    assert shown.n == COUNT


def test_a_replaced_callback_counts_with_one_job_too_here():
    shown = bar()

    class Callback(ipyparcache.parallel.BatchCompletionCallBack):
        def __call__(self, *args, **kwargs):
            shown.update(n=self.batch_size)
            return super().__call__(*args, **kwargs)

    with replaced(ipyparcache.parallel, "BatchCompletionCallBack", Callback):
        ran(ipyparcache.Parallel(n_jobs=1), ipyparcache)
    assert shown.n == COUNT


@EVERYWHERE
def test_a_callback_class_keeps_what_it_is_made_with(package, options):
    made = []

    class Callback(package.parallel.BatchCompletionCallBack):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append((self.batch_size, self.parallel, self.dispatch_timestamp))

    before = time.time()
    parallel = package.Parallel(**options)
    with replaced(package.parallel, "BatchCompletionCallBack", Callback):
        ran(parallel, package)
    assert sum(size for size, _, _ in made) == COUNT
    assert {owner for _, owner, _ in made} == {parallel}
    assert all(before - 60 < begun < time.time() for _, _, begun in made)


@EVERYWHERE
def test_what_a_callback_does_is_replaced(package, options):
    shown = bar()
    original = package.parallel.BatchCompletionCallBack.__call__

    def counted(self, *args, **kwargs):
        shown.update(n=self.batch_size)
        return original(self, *args, **kwargs)

    with replaced(package.parallel.BatchCompletionCallBack, "__call__", counted):
        ran(package.Parallel(**options), package)
    assert shown.n == COUNT
    ran(package.Parallel(**options), package)
    assert shown.n == COUNT


@EVERYWHERE
def test_the_method_that_prints_is_replaced(package, options):
    """As in `joblib_progress`."""
    seen = []
    original = package.parallel.Parallel.print_progress

    def told(self):
        seen.append(self.n_completed_tasks)
        return original(self)

    with replaced(package.parallel.Parallel, "print_progress", told):
        ran(package.Parallel(**options), package)
    assert seen[-1] == COUNT
    assert seen == sorted(seen)
    count = len(seen)
    ran(package.Parallel(**options), package)
    assert len(seen) == count


@EVERYWHERE
def test_the_method_that_prints_is_replaced_for_one_object(package, options):
    seen = []
    parallel = package.Parallel(**options)
    parallel.print_progress = functools.partial(lambda one: seen.append(one.n_completed_tasks), parallel)
    ran(parallel, package)

    assert seen[-1] == COUNT


def progress_parallel(package):
    """The class that is copied most."""

    class ProgressParallel(package.Parallel):
        def __init__(self, use_tqdm=True, total=None, *args, **kwargs):
            self._use_tqdm = use_tqdm
            self._total = total
            super().__init__(*args, **kwargs)

        def __call__(self, *args, **kwargs):
            with tqdm(disable=not self._use_tqdm, total=self._total, file=io.StringIO()) as self._pbar:
                return package.Parallel.__call__(self, *args, **kwargs)

        def print_progress(self):
            if self._total is None:
                self._pbar.total = self.n_dispatched_tasks
            self._pbar.n = self.n_completed_tasks
            self._pbar.refresh()

    return ProgressParallel


@EVERYWHERE
@pytest.mark.parametrize("total", [None, COUNT])
def test_a_subclass_with_a_bar(package, options, total):
    parallel = progress_parallel(package)(total=total, **options)
    ran(parallel, package)

    assert (parallel._pbar.n, parallel._pbar.total) == (COUNT, COUNT)


@ONE_JOB
def test_a_subclass_with_a_bar_and_one_job(package):
    parallel = progress_parallel(package)(n_jobs=1)
    ran(parallel, package)

    assert (parallel._pbar.n, parallel._pbar.total) == (COUNT, COUNT)


@EVERYWHERE
def test_a_subclass_that_looks_for_the_end_of_the_input(package, options):
    """Its bar begins with the first batch and learns the total when nothing is left to be drawn."""

    class Bar(package.Parallel):
        bar = None

        def dispatch_one_batch(self, iterator):
            if self.bar is None:
                self.bar = bar(None)
            return super().dispatch_one_batch(iterator)

        def print_progress(self):
            if self.bar.total is None and self._original_iterator is None:
                self.bar.total = self.n_dispatched_tasks
            self.bar.update(self.n_completed_tasks - self.bar.n)

    parallel = Bar(**options)
    ran(parallel, package)

    assert (parallel.bar.n, parallel.bar.total) == (COUNT, COUNT)


@EVERYWHERE
def test_the_number_of_tasks_is_known_from_the_start_where_it_can_be(package, options):
    seen = []

    class Telling(package.Parallel):
        def print_progress(self):
            seen.append(self.n_tasks)

    list(Telling(**options)([package.delayed(abs)(-i) for i in range(COUNT)]))

    assert set(seen) == {COUNT}


@EVERYWHERE
def test_a_bar_around_the_input_or_the_results(package, options):
    taken = bar()
    inputs = tqdm(range(COUNT), file=io.StringIO())
    results = package.Parallel(**options)(package.delayed(abs)(-i) for i in inputs)
    for _ in results:
        taken.update()

    assert (inputs.n, taken.n) == (COUNT, COUNT)


def test_the_callback_of_old_programs_works_here():
    """It is no subclass, and asks for the next tasks itself; joblib fails with it since version 1.3."""
    done = []

    class Callback:
        def __init__(self, dispatched, size, parallel):
            self.size = size
            self.parallel = parallel

        def __call__(self, out):
            done.append(self.size)
            if self.parallel._original_iterator is not None:
                self.parallel.dispatch_next()

    parallel = ipyparcache.Parallel(n_jobs=2)
    with replaced(ipyparcache.parallel, "BatchCompletionCallBack", Callback):
        ran(parallel, ipyparcache)
    assert sum(done) == parallel.n_completed_tasks == COUNT


def test_no_bar_of_ours_beside_that_of_the_program(monkeypatch):
    shown = []
    monkeypatch.setattr("ipyparcache.progress.widget.show", lambda *args: shown.append(args))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("ipyparcache.parallel.front.BAR_AFTER", 0.0)

    parallel = progress_parallel(ipyparcache)(n_jobs=2)
    parallel(ipyparcache.delayed(time.sleep)(0.02) for _ in range(4))

    assert shown == []
