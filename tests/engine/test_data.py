import faulthandler
import functools
import hashlib
import os
import pickle
import subprocess
import sys
import threading
import time
import types
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from ipyparcache.engine.outcome import Error, Value
from ipyparcache.engine.pool import shutdown_workers, the_pool
from ipyparcache.parallel.dispatch import Options, run_tasks
from tests.conftest import ended
from tests.contracts.backend import outcomes, values


def by_name(module_name="__main__"):
    """A module whose functions travel by value, as a notebook's do."""
    return types.ModuleType(module_name)


def test_functions_of_the_notebook_travel_with_their_globals(backend):
    notebook = by_name()
    exec("offset = 5\ndef helper(x): return x + offset\ndef task(x): return helper(x)", notebook.__dict__)

    assert values(notebook.task, [(1,), (2,)], backend) == [6, 7]
    notebook.offset = 100
    assert values(notebook.task, [(1,), (2,)], backend) == [101, 102]


def test_instances_come_back_as_instances_of_the_live_class():
    notebook = by_name()
    exec(
        "class Point:\n    def __init__(self, x): self.x = x\ndef task(p): return Point(p.x + 1)",
        notebook.__dict__,
    )
    notebook.Point.later = "added"
    found = values(notebook.task, [(notebook.Point(n),) for n in range(4)], "processes")
    del notebook.Point.later

    assert {type(point) for point in found} == {notebook.Point}
    assert not hasattr(found[0], "later")
    assert [point.x for point in found] == [1, 2, 3, 4]


def test_an_attribute_deleted_from_a_class_is_gone_on_the_workers():
    notebook = by_name()
    exec("class C: flag = 1\ndef task(c): return hasattr(c, 'flag')", notebook.__dict__)

    assert values(notebook.task, [(notebook.C(),)] * 2, "processes") == [True] * 2
    del notebook.C.flag
    assert values(notebook.task, [(notebook.C(),)] * 2, "processes") == [False] * 2


def test_cached_and_dispatched_functions_travel():
    notebook = by_name()
    source = """
import functools
@functools.lru_cache(maxsize=7)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
@functools.singledispatch
def kind(x): return 'other'
@kind.register(int)
def _(x): return 'int'
def task(n): return fib(n), kind(n), kind('s'), fib.cache_parameters()['maxsize']
"""
    exec(source, notebook.__dict__)

    assert values(notebook.task, [(10,)] * 2, "processes") == [(55, "int", "other", 7)] * 2


def test_classes_with_cached_properties_travel():
    notebook = by_name()
    source = """
import functools
class Text:
    def __init__(self, text): self.text = text
    @functools.cached_property
    def words(self): return self.text.split()
def task(text): return len(text.words), 'words' in vars(text)
"""
    exec(source, notebook.__dict__)

    assert values(notebook.task, [(notebook.Text("a b"),)] * 2, "processes") == [(2, True)] * 2


def test_partials_and_bound_methods_travel():
    assert values(functools.partial(max, 3), [(n,) for n in range(5)], "processes") == [3, 3, 3, 3, 4]
    assert values("a-b".split, [("-",)], "processes") == [["a", "b"]]


def test_a_large_array_is_sent_once_and_is_private_to_each_worker(backend):
    array = np.arange(500_000, dtype=float)

    def write(data, at):
        data[at] = -1
        return os.getpid(), float(data.sum())

    found = values(write, [(array, n) for n in range(4)], backend, batch=1)

    assert array[0] == 0
    assert len(found) == 4


def test_an_array_changed_between_two_calls_is_seen_as_changed(backend):
    array = np.zeros(1_000_000)
    for number in range(3):
        array[number] = 1

        assert values(lambda data: float(data.sum()), [(array,)] * 2, backend) == [number + 1.0] * 2


def test_an_array_changed_by_the_generator_between_two_tasks_is_seen_as_changed():
    array = np.zeros(1_000_000)

    def rows():
        for number in range(6):
            array[number] = 1
            yield (array,)

    found = values(lambda data: float(data.sum()), rows(), "processes", batch=1)

    assert found == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_list_changed_by_the_generator_between_two_tasks_is_seen_as_changed():
    shared = list(range(20_000))

    def rows():
        for number in range(6):
            shared[0] = number
            yield (shared,)

    assert values(lambda data: data[0], rows(), "processes", batch=1) == [0, 1, 2, 3, 4, 5]


def test_what_lies_in_a_shared_container_and_is_changed_between_two_draws_is_seen_as_changed():
    inside = [0]
    for shared in ((*range(20_000), inside), [*range(20_000), inside]):
        inside[0] = 0
        seen = []
        for _, outcome in run_tasks(lambda data: data[-1][0], [(shared,)] * 40, Options(n_jobs=2, batch=1)):
            seen.append(outcome.unwrap())
            inside[0] = 1

        assert seen[0] == 0
        assert seen[-1] == 1  # drawn long after the first outcome


@pytest.mark.parametrize(
    "make",
    [
        lambda: [None, True, 2**80, -1.5, 2j, "\ud800", "é", b"x"] * 3000,
        lambda: tuple(range(20_000)),
        lambda: {str(n): n for n in range(20_000)},
        lambda: set(range(20_000)),
        lambda: frozenset(map(str, range(20_000))),
        lambda: bytearray(20_000),
        lambda: b"y" * 20_000,
        lambda: "z" * 20_000,
        lambda: [np.float64(n) for n in range(20_000)],
        lambda: [[n] for n in range(20_000)],
        lambda: {n: np.int64(n) for n in range(20_000)},
    ],
)
def test_a_shared_container_arrives_as_what_it_is(make):
    container = make()

    def look(data):
        inside = data.values() if isinstance(data, dict) else data
        return type(data).__name__, sorted({type(value).__name__ for value in inside}), data

    assert values(look, [(container,)] * 3, "processes") == [look(container)] * 3


def test_a_large_array_in_a_closure_reaches_the_tasks(backend):
    array = np.arange(5_000_000, dtype=float)

    assert values(lambda at: array[at], [(n,) for n in range(5)], backend) == [0, 1, 2, 3, 4]


def test_arrays_of_every_layout_come_and_go(backend):
    base = np.arange(300_000, dtype=">i4").reshape(300, 1000)
    made = [
        base,
        base.T,
        base[::2, ::3],
        np.asfortranarray(base),
        base[:1],
        np.array(3.0),
        np.array(["a", None]),
    ]
    found = values(lambda data: data, [(data,) for data in made], backend)

    for data, back in zip(made, found, strict=True):
        assert back.dtype == data.dtype
        assert np.array_equal(back, data)
        assert back.flags.writeable


def test_many_buffers_in_one_batch_and_in_one_result_all_arrive(backend):
    arrays = [np.full(1000, n) for n in range(3000)]
    assert values(lambda data: int(data.sum()), [(data,) for data in arrays], backend, batch=3000) == [
        1000 * n for n in range(3000)
    ]

    def make(count):
        return [np.full(8200, n) for n in range(count)]

    found = values(make, [(n,) for n in (1, 600)], backend, batch=2)
    assert [int(data[0]) for data in found[1]] == list(range(600))


def test_many_large_containers_in_one_task_all_arrive():
    lists = [list(range(n, n + 20_000)) for n in range(12)]

    assert (
        values(lambda *all_lists: [one[0] for one in all_lists], [tuple(lists)] * 3, "processes")
        == [list(range(12))] * 3
    )


def test_a_pool_of_three_levels_works():
    def outer(depth):
        if depth == 0:
            return [os.getpid()]
        run = dict(run_tasks(outer, [(depth - 1,)], Options(n_jobs=1)))
        return [os.getpid(), *run[0].unwrap()]

    pids = values(outer, [(2,)], "processes")[0]

    assert len(set(pids)) == 3


def test_a_call_in_a_forked_child_has_workers_of_its_own():
    values(abs, [(1,)] * 2, "processes")
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.write(write, repr(values(abs, [(-3,)] * 2, "processes")).encode())
            shutdown_workers()
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)

    with open(read) as pipe:
        assert pipe.read() == "[3, 3]"
    assert values(abs, [(-1,)] * 2, "processes") == [1, 1]


def test_calls_from_a_thread_pool_share_nothing():
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda n: values(abs, [(-n,)] * 20, "processes"), range(8)))

    assert found == [[n] * 20 for n in range(8)]


def test_a_worker_that_is_idle_for_long_goes_by_itself(monkeypatch):
    shutdown_workers()
    monkeypatch.setattr(the_pool(), "idle_seconds", 0.05)
    values(abs, [(1,)] * 2, "processes")
    workers = [psutil.Process(pid) for pid in the_pool().pids() if psutil.pid_exists(pid)]

    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
    monkeypatch.undo()
    assert values(abs, [(-1,)] * 2, "processes") == [1, 1]


def test_nothing_is_left_in_memory_or_open_after_many_calls():
    values(abs, [(1,)] * 2, "processes")
    assert ended(lambda: len(the_pool().pids()) == 2)  # the call may be over before the second has begun
    process = psutil.Process()
    before = (process.num_fds(), threading.active_count(), len(the_pool().pids()))
    for _ in range(300):
        values(abs, [(-1,), (2,)], "processes")

    assert (process.num_fds(), threading.active_count(), len(the_pool().pids())) == before


@pytest.mark.slow
def test_ten_thousand_calls_leak_nothing():
    values(abs, [(1,)] * 2, "processes")
    process = psutil.Process()
    for _ in range(500):
        values(abs, [(-1,), (2,)], "processes")
    before = (process.num_fds(), threading.active_count(), process.memory_info().rss)
    for _ in range(9_500):
        values(abs, [(-1,), (2,)], "processes")

    assert (process.num_fds(), threading.active_count()) == before[:2]
    assert process.memory_info().rss < before[2] + (8 << 20)


@pytest.mark.slow
def test_restarting_the_pool_leaks_nothing():
    process = psutil.Process()
    values(abs, [(1,)] * 2, "processes")
    shutdown_workers()
    before = (process.num_fds(), threading.active_count(), process.memory_info().rss)
    faulthandler.cancel_dump_traceback_later()  # a thousand take minutes
    for _ in range(1000):
        assert values(abs, [(-1,)] * 2, "processes") == [1, 1]
        shutdown_workers()

    assert (process.num_fds(), threading.active_count()) == before[:2]
    assert process.memory_info().rss < before[2] + (8 << 20)


def test_too_few_descriptors_make_a_smaller_pool():
    import resource

    shutdown_workers()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 26, hard))
    try:
        found = dict(run_tasks(abs, [(-n,) for n in range(40)], Options(n_jobs=16)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert [found[n].unwrap() for n in range(40)] == list(range(40))


def test_a_worker_needs_neither_ipython_nor_widgets_nor_numpy():
    def loaded():
        return {"IPython", "ipywidgets", "numpy"} & set(sys.modules)

    shutdown_workers()
    script = (
        "from ipyparcache.parallel.dispatch import Options, run_tasks\n"
        "def loaded():\n"
        "    import sys\n"
        "    return sorted({'IPython', 'ipywidgets', 'numpy', 'asyncio'} & set(sys.modules))\n"
        "print([o.unwrap() for _, o in run_tasks(loaded, [()] * 2, Options(n_jobs=2))])\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert (found.stdout, found.stderr) == ("[[], []]\n", "")
    assert loaded()


def test_outcomes_can_be_pickled():
    found = outcomes(abs, [(-1,)], "processes")[0]

    assert isinstance(found, Value)
    assert pickle.loads(pickle.dumps(found)) == found
    assert isinstance(pickle.loads(pickle.dumps(Error(ValueError("x"), "text"))).exception, ValueError)


def test_an_array_that_is_gone_here_is_gone_on_the_workers():
    def use(array):
        values(lambda data: float(data.sum()), [(array,)] * 4, "processes")
        values(lambda: float(array.sum()), [()] * 4, "processes")

    use(np.ones(4_000_000))
    values(abs, [(1,)] * 4, "processes")

    def mapped(pid):
        with open(f"/proc/{pid}/maps") as maps:
            return "ipyparcache-shared" in maps.read()

    # a worker that this call did not need ends the one before in its own time
    assert ended(lambda: not any(map(mapped, (os.getpid(), *the_pool().pids()))))


def test_one_shared_copy_serves_all_workers_and_the_next_call():
    from ipyparcache.engine.packing import the_larges

    array = np.ones(4_000_000)
    for _ in range(3):
        values(lambda data: float(data.sum()), [(array,)] * 8, "processes")

        assert the_larges().held() == array.nbytes
    del array

    assert the_larges().held() == 0


def test_a_result_for_which_there_is_no_room_is_an_error_of_its_task(backend):
    def make(number):
        import resource

        if number == 1:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 22, hard))
        return np.full(2_000_000, number)

    found = outcomes(make, [(n,) for n in range(2)], backend, batch=1, on_error="collect")
    shutdown_workers()

    assert int(found[0].unwrap()[0]) == 0
    assert isinstance(found[1].exception, OSError)
    assert "could not be sent back" in found[1].exception.__notes__[0]


def test_a_callback_may_make_a_call_of_its_own():
    found = []

    def progress(count, seconds, worker):
        found.extend(values(abs, [(-count,)], "processes"))

    list(run_tasks(abs, [(-n,) for n in range(5)], Options(n_jobs=2), progress=progress))

    assert sum(found) == 5


def test_a_call_collected_in_another_thread_is_over():
    run = run_tasks(time.sleep, [(0,), (60,), (60,)], Options(n_jobs=2, batch=1))
    next(run)
    holder = [run]
    del run
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()

    assert values(abs, [(-1,)] * 4, "processes") == [1] * 4


def test_a_call_at_the_end_of_the_interpreter_works():
    script = (
        "import atexit\n"
        "@atexit.register\n"
        "def last():\n"
        "    from ipyparcache.parallel.dispatch import Options, run_tasks\n"
        "    print([o.unwrap() for _, o in run_tasks(abs, [(-1,), (-2,)], Options(n_jobs=2, batch=2))])\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)

    assert (found.stdout, found.stderr) == ("[1, 2]\n", "")


def told(container, number):
    rows = repr([(type(value).__name__, value) for value in container])
    return type(container).__name__, hashlib.sha256(rows.encode()).hexdigest()


def with_one(value, where):
    found = list(range(10_001))
    found[where] = value
    return found


@pytest.mark.parametrize(
    "container",
    [
        list(range(-5000, 5001)),
        tuple(range(10_001)),
        [n / 7 for n in range(10_001)],
        [-0.0, float("nan"), float("inf"), *[0.1] * 10_000],
        with_one(1 << 31, 3),
        with_one(-(1 << 31), 3),
        with_one(True, 7),
        with_one(None, 7),
        with_one(np.int64(3), 7),
        with_one(1.5, 7),
        with_one("\x05\x00\x00\x00i", 7),
        with_one([1], 7),
        with_one(b"i" * 40, 7),
        [1.0, *range(10_000), 2.0],
        [True] * 10_001,
    ],
    ids=lambda container: f"{type(container).__name__} with {container[3]!r} and {container[7]!r}",
)
def test_long_lists_of_numbers_arrive_as_they_are(container):
    found = values(told, [(container, n) for n in range(4)], "processes")

    assert found == [told(container, 0)] * 4
