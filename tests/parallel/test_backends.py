import concurrent.futures
import multiprocessing
import multiprocessing.pool
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

from ipyparcache import (
    Parallel,
    ParallelBackendBase,
    delayed,
    parallel_backend,
    parallel_config,
    pickling,
    register_parallel_backend,
)
from ipyparcache.engine.backends.base import (
    BACKENDS,
    AutoBatchingMixin,
    LokyBackend,
    SequentialBackend,
    ThreadingBackend,
)
from ipyparcache.engine.backends.multiprocess import MultiprocessingBackend
from ipyparcache.errors import PoolWorkerDied
from ipyparcache.parallel import protocol
from ipyparcache.parallel.config import active_backend, active_count, nesting_level
from ipyparcache.parallel.expressions import evaluate, parse_ahead
from tests.conftest import ended


class FuturesBackend(AutoBatchingMixin, ParallelBackendBase):
    """A backend as somebody would write it, results by callback."""

    supports_retrieve_callback = True
    supports_sharedmem = True

    def __init__(self, size=2, nesting_level=None):
        self.size = size
        self.nesting_level = nesting_level
        self.calls = []

    def effective_n_jobs(self, n_jobs):
        return self.size

    def configure(self, n_jobs=1, parallel=None, **arguments):
        self.calls.append("configure")
        self.parallel = parallel
        self.pool = concurrent.futures.ThreadPoolExecutor(self.size)
        return self.size

    def start_call(self):
        self.calls.append("start")

    def stop_call(self):
        self.calls.append("stop")

    def submit(self, func, callback=None):
        future = self.pool.submit(func)
        future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out):
        return out.result()

    def terminate(self):
        self.calls.append("terminate")
        self.pool.shutdown()

    def abort_everything(self, ensure_ready=True):
        self.calls.append("abort")
        self.pool.shutdown(cancel_futures=True)
        if ensure_ready:
            self.configure(self.parallel.n_jobs, self.parallel)


class WaitingBackend(ParallelBackendBase):
    """The older kind: results are fetched one after another."""

    def effective_n_jobs(self, n_jobs):
        return 2

    def configure(self, n_jobs=1, parallel=None, **arguments):
        self.pool = multiprocessing.pool.ThreadPool(2)
        return 2

    def apply_async(self, func, callback=None):
        return self.pool.apply_async(func, callback=callback)

    def terminate(self):
        self.pool.terminate()
        self.pool.join()


@pytest.fixture
def registered(monkeypatch):
    """A way to register a backend for this test alone."""
    before = dict(BACKENDS)
    yield register_parallel_backend
    BACKENDS.clear()
    BACKENDS.update(before)


def failing(x):
    if x == 3:
        raise KeyError(x)
    return x


class Parametrized(SequentialBackend):
    """Derives from one of ours and takes arguments of its own alone."""

    def __init__(self, param=None):
        self.param = param


def test_a_class_derived_from_a_backend_of_ours_need_not_take_its_arguments(registered):
    registered("parametrized", Parametrized)

    with parallel_config("parametrized", param=42, n_jobs=3):
        assert active_backend().param == 42
        assert Parallel()(delayed(abs)(-n) for n in range(3)) == [0, 1, 2]
    assert Parallel(backend="parametrized", n_jobs=2)(delayed(abs)(-n) for n in range(3)) == [0, 1, 2]


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_a_backend_of_somebody_else_runs_tasks(return_as):
    backend = FuturesBackend()
    found = Parallel(n_jobs=2, backend=backend, return_as=return_as)(delayed(abs)(-n) for n in range(50))

    assert sorted(found) == list(range(50))
    assert backend.calls == ["configure", "start", "stop", "terminate"]


def test_a_failed_call_is_aborted_and_a_managed_one_can_go_on():
    backend = FuturesBackend()
    with Parallel(n_jobs=2, backend=backend) as parallel:
        with pytest.raises(KeyError):
            parallel(delayed(failing)(n) for n in range(6))
        assert parallel(delayed(failing)(n) for n in range(3)) == [0, 1, 2]

    assert backend.calls.count("abort") == 1


def test_an_input_that_raises_reaches_the_caller():
    def tasks():
        yield delayed(abs)(1)
        raise LookupError("in the input")

    for ahead in (1, "all"):
        with pytest.raises(LookupError, match="in the input"):
            Parallel(n_jobs=2, backend=FuturesBackend(), pre_dispatch=ahead)(tasks())


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_a_call_ends_that_has_taken_all_results_before_the_end_of_its_input_is_known(monkeypatch, return_as):
    caller = threading.current_thread()

    def waits_for_news(taken):
        frame = sys._current_frames()[caller.ident]
        while frame is not None and frame.f_code.co_name != "_next_news":
            frame = frame.f_back
        return frame is not None and frame.f_back.f_locals["following"] >= taken

    class Late:
        """A lock that others than the caller get when it waits for a third result."""

        def __init__(self):
            self.lock = threading.RLock()

        def __enter__(self):
            assert threading.current_thread() is caller or ended(lambda: waits_for_news(2))
            return self.lock.__enter__()

        def __exit__(self, *error):
            return self.lock.__exit__(*error)

    class LateRun(protocol.ProtocolRun):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self._lock = Late()

    def task(number):
        assert ended(lambda: waits_for_news(0))
        return number

    monkeypatch.setattr(protocol, "ProtocolRun", LateRun)
    tasks = [delayed(task)(1), delayed(task)(2)]
    found = Parallel(n_jobs=2, backend=FuturesBackend(), pre_dispatch=2, return_as=return_as)(iter(tasks))

    assert sorted(found) == [1, 2]


def test_a_backend_of_the_older_kind_runs_tasks():
    with pytest.warns(DeprecationWarning, match="apply_async"):
        found = Parallel(n_jobs=2, backend=WaitingBackend())(delayed(abs)(-n) for n in range(20))

    assert found == list(range(20))


def test_a_backend_without_workers_is_told(monkeypatch):
    monkeypatch.setattr(FuturesBackend, "configure", lambda self, **arguments: 0)

    with pytest.raises(RuntimeError, match="FuturesBackend has no active worker"):
        Parallel(n_jobs=2, backend=FuturesBackend())([delayed(abs)(1)])


def test_a_registered_backend_is_found_by_name(registered):
    registered("mine", FuturesBackend)

    assert type(Parallel(backend="mine")._backend) is FuturesBackend
    with parallel_config("mine", size=5) as settings:
        assert settings["backend"].size == 5
        assert Parallel()._backend is settings["backend"]
    registered("made", lambda: FuturesBackend(7))
    assert Parallel(backend="made")._backend.size == 7


def test_a_backend_can_become_the_default(registered, monkeypatch):
    monkeypatch.setattr("ipyparcache.engine.backends.base.default_backend", "loky")
    registered("mine", FuturesBackend, make_default=True)

    assert type(Parallel()._backend) is FuturesBackend


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Parallel(backend="unknown"), "Invalid backend:"),
        (lambda: Parallel(backend=ThreadingBackend), "Invalid backend:"),
        (lambda: parallel_config("unknown"), "Invalid backend:"),
        (lambda: parallel_config(inner_max_num_threads=2), "only supported when backend is not None"),
        (lambda: parallel_config(ThreadingBackend(), x=1), "only supported when backend is a string"),
        (lambda: Parallel(prefer="wrong"), "prefer=wrong is not a valid"),
        (lambda: Parallel(backend="loky", require="sharedmem"), "shared memory"),
    ],
)
def test_what_cannot_be_chosen_is_told(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_unknown_arguments_are_told():
    with pytest.raises(TypeError, match="njobs"):
        Parallel(njobs=3)
    with pytest.raises(TypeError, match="wrong"):
        parallel_config("loky", wrong=1)
    with pytest.raises(AssertionError, match=r"does not acc.*inner_max_num_threads"):
        parallel_config("threading", inner_max_num_threads=1)


def test_shared_memory_beats_the_process_backend_of_a_context():
    with parallel_config("loky", n_jobs=4):
        parallel = Parallel(require="sharedmem")
        assert (type(parallel._backend), parallel.n_jobs) == (ThreadingBackend, 1)
        assert Parallel(n_jobs=3, require="sharedmem").n_jobs == 3


def test_older_spellings_of_a_generator_are_read():
    for parallel in (Parallel(2, "threading", True), Parallel(2, "threading", return_generator=True)):
        assert next(parallel([delayed(abs)(-1)])) == 1
    assert Parallel(2, "threading", return_generator=False)([delayed(abs)(-1)]) == [1]
    with pytest.raises(ValueError, match="contradicts"):
        Parallel(return_as="generator", return_generator=False)


def test_prefer_is_a_hint():
    assert type(Parallel(prefer="threads")._backend) is ThreadingBackend
    with parallel_config("loky", n_jobs=2):
        assert type(Parallel(prefer="threads")._backend) is LokyBackend
    with parallel_config(n_jobs=3):
        assert Parallel(prefer="threads").n_jobs == 3


def test_a_context_works_without_with_and_can_be_undone():
    context = parallel_config(n_jobs=5)
    inside = Parallel().n_jobs
    context.unregister()

    assert (inside, Parallel().n_jobs) == (5, 1)


def test_the_older_context_gives_backend_and_count():
    with parallel_backend("threading") as (backend, n_jobs):
        assert (type(backend), n_jobs) == (ThreadingBackend, -1)
        with parallel_config(n_jobs=None):
            assert Parallel().n_jobs == 1


def levels(limit):
    with Parallel(n_jobs=2) as parallel:
        here = [(type(parallel._backend).__name__, nesting_level())]
        if limit:
            here += parallel(delayed(levels)(limit - 1) for _ in range(1))[0]
        return here


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_nested_calls_become_threads_and_then_serial(backend):
    with parallel_config(backend, n_jobs=2):
        found = levels(3)

    assert found == [
        (f"{backend.title()}Backend", 0),
        ("ThreadingBackend", 1),
        ("SequentialBackend", 2),
        ("SequentialBackend", 2),
    ]


def inside():
    backend = active_backend()
    return type(backend).__name__, backend.nesting_level, active_count(backend)


@pytest.mark.parametrize("outer", ["multiprocessing", "loky", "threading"])
def test_what_runs_inside_of_a_task_finds_threads(outer):
    assert Parallel(n_jobs=2, backend=outer)([delayed(inside)()]) == [("ThreadingBackend", 1, 1)]


def test_a_serial_loop_changes_nothing_for_what_runs_inside():
    with parallel_config("loky", n_jobs=2):
        assert Parallel(n_jobs=1)([delayed(inside)()]) == [("LokyBackend", 0, 2)]
        assert Parallel(n_jobs=2, backend="sequential")([delayed(inside)()]) == [("LokyBackend", 0, 2)]


# ---- multiprocessing


def test_a_context_of_multiprocessing_is_a_backend():
    context = multiprocessing.get_context("fork")

    assert Parallel(n_jobs=2, backend=context)(delayed(pow)(n, 2) for n in range(4)) == [0, 1, 4, 9]


def test_a_script_can_use_the_spawn_method(tmp_path):
    (tmp_path / "script.py").write_text(
        "import multiprocessing\n"
        "from ipyparcache import Parallel, delayed\n"
        "def square(n):\n"
        "    return n * n\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    print(Parallel(n_jobs=2, backend=context)(delayed(square)(n) for n in range(4)))\n"
    )
    ran = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=120
    )

    assert (ran.stdout, ran.stderr) == ("[0, 1, 4, 9]\n", "")


def test_functions_travel_by_value_where_they_must():
    factor = 3

    assert Parallel(n_jobs=2, backend="multiprocessing")(
        delayed(lambda n: n * factor)(n) for n in range(3)
    ) == [0, 3, 6]


def test_errors_come_home_from_a_pool_of_multiprocessing():
    def interrupted(n):
        raise KeyboardInterrupt

    with Parallel(n_jobs=2, backend="multiprocessing") as parallel:
        with pytest.raises(KeyError) as caught:
            parallel(delayed(failing)(n) for n in range(6))
        with pytest.raises(KeyboardInterrupt):
            parallel(delayed(interrupted)(n) for n in range(2))
        assert parallel(delayed(failing)(n) for n in range(3)) == [0, 1, 2]
    assert "failing" in str(caught.value.__cause__)


def test_a_pool_ends_although_a_worker_took_a_lock_with_it():
    backend = MultiprocessingBackend()
    backend.configure(2)
    backend._pool._outqueue._wlock.acquire()  # as by a worker that is killed while it writes a result
    backend.terminate()

    assert multiprocessing.active_children() == []


def killed_at_two(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def exits_at_two(number):
    if number == 2:
        os._exit(0)
    return number


@pytest.mark.parametrize(
    ("task", "how"), [(killed_at_two, "killed by SIGKILL"), (exits_at_two, "exited with code 0")]
)
def test_a_process_of_multiprocessing_that_dies_ends_the_call(task, how):
    with Parallel(n_jobs=2, backend="multiprocessing") as parallel:
        with pytest.raises(PoolWorkerDied, match=how) as caught:
            parallel(delayed(task)(n) for n in range(6))
        assert parallel(delayed(task)(n) for n in range(2)) == [0, 1]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_processes_of_multiprocessing_may_end_after_so_many_tasks(monkeypatch):
    monkeypatch.setattr(protocol, "LOOK", 0.01)
    pids = Parallel(n_jobs=2, backend="multiprocessing", maxtasksperchild=1, batch_size=1)(
        delayed(own_pid_soon)() for _ in range(6)
    )

    assert len(set(pids)) > 2


def own_pid_soon():
    time.sleep(0.05)
    return os.getpid()


def test_a_pool_of_multiprocessing_gives_lists_only():
    with pytest.raises(ValueError, match="does not support return_as"):
        Parallel(n_jobs=2, backend="multiprocessing", return_as="generator")


# ---- initialisers, arrays in files, seeds


def note_worker(values, value):
    values.append((os.getpid(), value))


def test_workers_are_initialised_once():
    with multiprocessing.Manager() as manager:
        noted = manager.list()
        for value in (1, 1, 2):
            pids = Parallel(n_jobs=2, initializer=note_worker, initargs=(noted, value))(
                delayed(os.getpid)() for _ in range(10)
            )
            assert set(pids) <= {pid for pid, with_value in noted if with_value == value}
        found = list(noted)

    assert len(found) == len(set(found))
    assert {pid for pid, value in found if value == 1}.isdisjoint({pid for pid, value in found if value == 2})


def described(array):
    return type(array).__name__, array.flags.writeable


def test_arrays_are_private_and_writable_by_default():
    assert Parallel(n_jobs=2)([delayed(described)(np.ones(300_000))] * 2) == [("ndarray", True)] * 2


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
@pytest.mark.parametrize(("mode", "writable"), [("r", False), ("r+", True), ("w+", True), ("c", True)])
def test_arrays_come_in_files_if_asked_for(tmp_path, backend, mode, writable):
    parallel = Parallel(n_jobs=2, backend=backend, mmap_mode=mode, max_nbytes="1K", temp_folder=tmp_path)
    large, small = np.ones(1000), np.ones(10)

    assert parallel([delayed(described)(large), delayed(described)(small)]) == [
        ("memmap", writable),
        ("ndarray", True),
    ]
    assert os.listdir(tmp_path) == []


def total_and_first(arrays):
    return float(sum(map(np.sum, arrays))), float(arrays[-1][0, -1])


def test_arrays_in_files_keep_layout_and_content(tmp_path):
    arrays = [np.arange(2000.0).reshape(40, 50), np.asfortranarray(np.arange(2000.0).reshape(40, 50))]
    arrays.append(np.arange(4000.0).reshape(40, 100)[:, ::2])
    expected = total_and_first(arrays)

    assert (
        Parallel(n_jobs=2, max_nbytes=1, temp_folder=tmp_path)(
            delayed(total_and_first)(arrays) for _ in range(3)
        )
        == [expected] * 3
    )


def add_one(array):
    array += 1


def test_a_map_that_is_open_for_writing_is_shared(tmp_path):
    array = np.memmap(tmp_path / "file", float, "w+", shape=(4, 10))
    Parallel(n_jobs=2)(delayed(add_one)(array[row]) for row in range(4))

    assert array.sum() == 40
    del array


def test_what_comes_back_is_an_array_of_its_own(tmp_path):
    array = np.memmap(tmp_path / "file", float, "w+", shape=10)
    (back,) = Parallel(n_jobs=2)([delayed(np.asanyarray)(array)])

    assert type(back) is np.ndarray
    del array


def draw():
    return np.random.random(), __import__("random").random()


def test_a_seed_gives_the_same_numbers_for_any_number_of_workers():
    found = [
        Parallel(n_jobs=n, seed=5, backend=backend)(delayed(draw)() for _ in range(6))
        for n, backend in ((1, None), (2, "loky"), (3, "loky"))
    ]

    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 6
    assert Parallel(n_jobs=1, seed=6)([delayed(draw)()])[0] != found[0][0]


# ---- telling


def test_a_subclass_sees_the_progress():
    seen = []

    class Telling(Parallel):
        def print_progress(self):
            seen.append((self.n_completed_tasks, self.n_dispatched_tasks))

    for n_jobs in (1, 2):
        seen.clear()
        Telling(n_jobs=n_jobs, backend="threading")(delayed(abs)(n) for n in range(20))
        assert seen[-1] == (20, 20)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_verbose_tells_of_the_beginning_and_the_end(capsys):
    Parallel(n_jobs=2, backend="threading", verbose=60)(delayed(abs)(n) for n in range(20))
    lines = capsys.readouterr().out.splitlines()

    assert lines[0] == "[Parallel(n_jobs=2)]: Using backend ThreadingBackend with 2 concurrent workers."
    assert lines[-1].startswith("[Parallel(n_jobs=2)]: Done  20 out of  20 | elapsed:")
    assert lines[-1].endswith("finished")


def test_a_bar_is_shown_if_asked_for(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(
        "ipyparcache.progress.widget.show", lambda tracker, *rest: shown.append(tracker) or _Bar()
    )
    Parallel(n_jobs=2, backend="threading", progress=True)(delayed(abs)(n) for n in range(20))
    Parallel(n_jobs=2, backend="threading", progress=False)(delayed(abs)(n) for n in range(20))

    assert [tracker.snapshot().done for tracker in shown] == [20]
    assert capsys.readouterr() == ("", "")


class _Bar:
    def close(self):
        pass


# ---- expressions


@pytest.mark.parametrize(
    ("text", "count"),
    [("2 * n_jobs", 4), ("n_jobs", 2), ("all", None), ("1.5*n_jobs + 1", 4), (3, 3), (2.9, 2), ("7 // 2", 3)],
)
def test_pre_dispatch_is_read(text, count):
    assert parse_ahead(text, 2) == count


@pytest.mark.parametrize(
    "text",
    ["exit()", "n_jobs.real", "10**9", "9**9**9", "1/0", "x", "2 *", "[1]", "1+" * 20 + "1", "0", "-3"],
)
def test_what_pre_dispatch_cannot_be_is_told(text):
    with pytest.raises(ValueError):  # noqa: PT011 (each for a reason of its own)
        parse_ahead(text, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("9. ** 10000.", "is not a valid or supported arithmetic"),
        ("1 % 0", "is not a valid or supported arithmetic"),
        ("' ' * 10**10", "is not a valid or supported arithmetic"),
        ("10**7", "Numeric literal .* is too large"),
        ("1" + "+1" * 50, "is too long"),
    ],
)
def test_an_expression_is_refused_in_joblibs_words(text, words):
    with pytest.raises(ValueError, match=words):
        evaluate(text)


def test_a_function_travels_while_another_thread_imports_cloudpickle(monkeypatch):
    half_there = types.ModuleType("cloudpickle.cloudpickle")
    monkeypatch.setitem(sys.modules, "cloudpickle.cloudpickle", half_there)

    assert pickle.loads(pickling.dump_function(os.path.join, "1")) is os.path.join


def test_expressions_are_arithmetic():
    assert evaluate("-(2 + 3) * 4 % 7 ** 2") == -(2 + 3) * 4 % 7**2


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_a_generator_used_behind_its_with_block_is_told(backend):
    with Parallel(n_jobs=2, backend=backend, return_as="generator") as parallel:
        found = parallel(delayed(abs)(-n) for n in range(4))

    with pytest.raises(RuntimeError, match="the `with` block of this Parallel has ended"):
        list(found)
    assert list(parallel(delayed(abs)(-n) for n in range(3))) == [0, 1, 2]


# ---- the real joblib, and scikit-learn


def test_joblib_runs_on_our_workers():
    code = (
        "import os, joblib, ipyparcache\n"
        "ipyparcache.register_joblib()\n"
        "pids = joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for _ in range(8))\n"
        "assert os.getpid() not in pids, pids\n"
        "try:\n"
        "    joblib.Parallel(n_jobs=2)(joblib.delayed(divmod)(1, n) for n in (1, 0))\n"
        "except ZeroDivisionError:\n"
        "    print('right')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ran.stdout, ran.stderr) == ("right\n", "")


def test_backends_travel():
    for backend in (ThreadingBackend(nesting_level=1), SequentialBackend(nesting_level=2), LokyBackend()):
        assert type(pickle.loads(pickle.dumps(backend))) is type(backend)


def test_a_thread_does_not_see_the_contexts_of_another():
    seen = []
    with parallel_config(n_jobs=4):
        thread = threading.Thread(target=lambda: seen.append(Parallel().n_jobs))
        thread.start()
        thread.join()

    assert seen == [1]


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_a_backend_that_is_in_use_stands_in_the_registry_as_its_class(name):
    with parallel_config(name):
        assert type(active_backend()) is BACKENDS[name]
