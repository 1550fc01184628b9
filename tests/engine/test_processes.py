import contextlib
import decimal
import faulthandler
import functools
import logging
import os
import pickle
import signal
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

from ipyparcache.engine import launching
from ipyparcache.engine.outcome import Error, Value
from ipyparcache.engine.pool import shutdown_workers, the_pool
from ipyparcache.engine.worker import emit
from ipyparcache.errors import TaskCancelled, TaskTimeout, WorkerDied, WorkersNotStarted
from ipyparcache.parallel.dispatch import Emitted, Options, Output, run_tasks
from tests.conftest import ended
from tests.contracts.backend import BackendContract, outcomes, values

KINDS = {
    "memfd-forkserver": {},
    "portable-forkserver": {"IPYPARCACHE_TRANSPORT": "portable"},
    "memfd-spawn": {"IPYPARCACHE_START": "spawn"},
    "portable-spawn": {"IPYPARCACHE_TRANSPORT": "portable", "IPYPARCACHE_START": "spawn"},
}


@pytest.fixture(params=KINDS)
def backend(request, monkeypatch):
    """Worker processes over each transport and start method."""
    for name, value in KINDS[request.param].items():
        monkeypatch.setenv(name, value)
    return "processes"


class TestProcesses(BackendContract):
    """Everything that a backend must show, over each transport and start method."""


def by_name(module_name="__main__"):
    """A module whose functions travel by value, as a notebook's do."""
    return types.ModuleType(module_name)


# -- death ------------------------------------------------------------------------------------------------


def die_at(number, bad, how):
    if number == bad:
        if how == "exit":
            os._exit(7)
        os.kill(os.getpid(), how)
    return number


@pytest.mark.parametrize(
    ("how", "killed_by", "code"),
    [(signal.SIGKILL, 9, None), (signal.SIGSEGV, 11, None), ("exit", None, 7)],
)
def test_a_worker_that_dies_is_named_and_nothing_else_is_lost(backend, how, killed_by, code):
    found = outcomes(die_at, [(n, 37, how) for n in range(100)], backend, on_error="collect")

    error = found.pop(37).exception
    assert isinstance(error, WorkerDied)
    assert (error.index, error.signal, error.exit_code) == (37, killed_by, code)
    assert {n: outcome.unwrap() for n, outcome in found.items()} == {n: n for n in range(100) if n != 37}


def test_every_task_of_a_batch_runs_once_though_its_worker_dies(tmp_path):
    def leave_a_mark(number):
        with open(tmp_path / str(number), "a") as file:
            file.write("x")
        if number == 500:
            os._exit(1)
        return number

    found = outcomes(leave_a_mark, [(n,) for n in range(1000)], "processes", on_error="collect", batch=100)

    assert len(found) == 1000
    assert {file.read_text() for file in tmp_path.iterdir()} == {"x"}
    assert len(list(tmp_path.iterdir())) == 1000


def test_large_results_that_were_not_fetched_yet_survive_their_worker(backend):
    def make(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full(200_000, number)

    found = outcomes(make, [(n,) for n in range(4)], backend, on_error="collect", batch=4)

    assert [int(found[n].unwrap().sum()) for n in range(3)] == [0, 200_000, 400_000]
    assert isinstance(found[3].exception, WorkerDied)


def test_the_task_that_always_kills_its_worker_is_tried_again_only_as_asked():
    found = outcomes(die_at, [(0, 0, "exit")], "processes", retries=2)

    assert isinstance(found[0].exception, WorkerDied)


def test_workers_killed_while_idle_are_replaced(backend):
    values(abs, [(1,)] * 4, backend)
    for pid in the_pool().pids():
        os.kill(pid, signal.SIGKILL)

    assert values(abs, [(-n,) for n in range(50)], backend) == list(range(50))


def test_a_killed_fork_server_is_replaced():
    values(abs, [(1,)] * 4, "processes")
    os.kill(the_pool().server_pid(), signal.SIGKILL)

    assert values(abs, [(-n,) for n in range(50)], "processes") == list(range(50))


def test_workers_that_cannot_start_are_an_error_that_tells_what_they_wrote(monkeypatch):
    shutdown_workers()
    monkeypatch.setattr(launching, "_SERVER", "import sys; sys.exit()")
    begun = time.monotonic()
    with pytest.raises(WorkersNotStarted):
        outcomes(abs, [(1,)], "processes")
    assert time.monotonic() - begun < 10
    shutdown_workers()

    monkeypatch.setenv("IPYPARCACHE_START", "spawn")
    monkeypatch.setattr(launching, "_SPAWNED", "import os, sys; os.dup2(7, 2); sys.exit('no sitecustomize')")
    with pytest.raises(WorkersNotStarted, match="no sitecustomize"):
        outcomes(abs, [(1,)], "processes")

    monkeypatch.undo()
    assert values(abs, [(-1,)], "processes") == [1]


def test_running_out_of_memory_kills_one_task_only():
    def hoard(number):
        import resource

        if number == 1:
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
            return len(bytearray(4 << 30))
        return number

    found = outcomes(hoard, [(n,) for n in range(4)], "processes", on_error="collect", batch=1)

    assert isinstance(found[1].exception, MemoryError)
    assert [found[n].unwrap() for n in (0, 2, 3)] == [0, 2, 3]


# -- errors -----------------------------------------------------------------------------------------------


class Liar(Exception):
    def __reduce__(self):
        return str, ("not an exception",)


class Heavy(Exception):
    def __init__(self, *, keyword):
        super().__init__(keyword)
        self.keyword = keyword
        self.lock = threading.Lock()


class Explosive(Exception):
    def __reduce__(self):
        return Explosive._explode, ()

    @staticmethod
    def _explode():
        raise RuntimeError("boom")


@pytest.mark.parametrize(
    "make", [lambda: Liar("a", 1), lambda: Heavy(keyword="k"), lambda: Explosive("b")], ids=str
)
def test_exceptions_that_do_not_pickle_come_back_as_their_own_class(backend, make):
    wanted = make()

    def fail():
        raise make()

    error = outcomes(fail, [()], backend)[0].exception

    assert type(error).__name__ == type(wanted).__name__
    assert error.args == wanted.args


def test_notes_causes_and_groups_travel():
    def fail():
        try:
            raise KeyError("inner")
        except KeyError as inner:
            error = ExceptionGroup("two", [ValueError(1), Heavy(keyword="k")])
            error.add_note("a note")
            raise error from inner

    error = outcomes(fail, [()], "processes")[0].exception

    assert isinstance(error, ExceptionGroup)
    assert [type(member).__name__ for member in error.exceptions] == ["ValueError", "Heavy"]
    assert error.__notes__ == ["a note"]
    assert isinstance(error.__cause__, KeyError)


def test_oserror_keeps_its_fields():
    error = outcomes(open, [("/no/such/file",)], "processes")[0].exception

    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.filename) == (2, "/no/such/file")


def test_a_result_that_does_not_pickle_is_an_error_of_its_task(backend):
    def make(number):
        return (n for n in range(3)) if number == 1 else number

    found = outcomes(make, [(n,) for n in range(4)], backend, on_error="collect")

    assert "generator" in str(found[1].exception)
    assert "result (generator) could not be sent back" in found[1].exception.__notes__[0]
    assert [found[n].unwrap() for n in (0, 2, 3)] == [0, 2, 3]


class FailsToArrive:
    def __reduce__(self):
        return _fail, ()


def _fail():
    raise LookupError("cannot be made here")


def test_an_argument_that_does_not_unpickle_fails_its_task_alone(backend):
    rows = [(FailsToArrive() if n == 5 else n,) for n in range(10)]
    found = outcomes(str, rows, backend, on_error="collect", batch=10)

    assert isinstance(found[5].exception, LookupError)
    assert [found[n].unwrap() for n in range(10) if n != 5] == [str(n) for n in range(10) if n != 5]


def test_a_result_that_does_not_unpickle_is_an_error_of_its_task(backend):
    found = outcomes(lambda: FailsToArrive(), [()], backend)

    assert isinstance(found[0].exception, LookupError)
    assert values(abs, [(-1,)], backend) == [1]


def test_an_argument_that_does_not_pickle_raises_and_the_pool_goes_on(backend):
    with pytest.raises(pickle.PicklingError, match="the task to send"):
        outcomes(str, [(threading.Lock(),)], backend)

    assert values(abs, [(-1,)], backend) == [1]


def test_a_function_that_does_not_unpickle_raises_its_own_error(backend):
    with pytest.raises(LookupError, match="cannot be made here"):
        outcomes(FailsToArriveCallable(), [(1,)], backend)


class FailsToArriveCallable(FailsToArrive):
    def __call__(self, number):
        return number


def test_the_traceback_of_the_worker_is_the_cause():
    def fail():
        raise ValueError("here")

    with pytest.raises(ValueError, match="here") as caught:
        values(fail, [()], "processes")

    assert 'raise ValueError("here")' in str(caught.value.__cause__)


# -- time and interrupts ----------------------------------------------------------------------------------


def ignore_everything(number):
    if number == 1:
        for ignored in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ignored, signal.SIG_IGN)
        while True:
            time.sleep(1)
    return number


def test_a_task_that_is_late_is_ended_and_the_others_go_on(backend):
    found = outcomes(ignore_everything, [(n,) for n in range(6)], backend, timeout=0.3, on_error="collect")

    assert isinstance(found[1].exception, TaskTimeout)
    assert [found[n].unwrap() for n in (0, 2, 3, 4, 5)] == [0, 2, 3, 4, 5]


def test_the_time_of_a_task_counts_from_its_own_start():
    assert values(time.sleep, [(0.15,)] * 8, "processes", timeout=0.4) == [None] * 8


def test_a_cancelled_call_ends_within_a_second_and_tells_what_it_killed(backend):
    cancelled = threading.Event()
    values(abs, [(1,)] * 2, backend)

    def wait(number):
        emit(b"begun")
        time.sleep(60 if number else 0.3)
        return number

    def on_event(index, event):
        if index == 1:
            cancelled.set()

    begun = time.monotonic()
    found = dict(
        run_tasks(
            wait,
            [(0,), (1,), (2,)],
            Options(n_jobs=2, backend=backend),
            on_event=on_event,
            cancelled=cancelled,
        )
    )

    assert time.monotonic() - begun < 3
    assert found[0].unwrap() == 0
    assert isinstance(found[1].exception, TaskCancelled)
    assert 2 not in found
    assert values(abs, [(-1,)] * 4, backend) == [1] * 4


def test_stragglers_of_a_closed_call_are_killed(backend):
    run = run_tasks(time.sleep, [(0,), (60,), (60,)], Options(n_jobs=2, backend=backend, batch=1))
    next(run)
    pids = the_pool().pids()
    run.close()

    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=3)
    assert values(abs, [(-1,)] * 4, backend) == [1] * 4


SCRIPT = """
import os, sys, time
from ipyparcache.engine import folders
from ipyparcache.engine.pool import the_pool
from ipyparcache.parallel.dispatch import Options, run_tasks
the_pool().warm_up(2)
print(*folders.in_use(), flush=True)
def task(number):
    os.close(0)
    print(os.getpid(), flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        sum(range(10**9)) if number else time.sleep(1)
for _ in run_tasks(task, [(n,) for n in range(2)], Options(n_jobs=2)):
    pass
"""


@pytest.mark.parametrize("kind", KINDS)
def test_workers_of_a_killed_caller_are_gone_within_two_seconds(kind, own_folders):
    caller = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, env={**os.environ, **KINDS[kind]}, text=True
    )
    with caller:
        folders = caller.stdout.readline().split()
        pids = [int(caller.stdout.readline()) for _ in range(2)]
        workers = [psutil.Process(pid) for pid in pids]
        caller.kill()
    _, alive = psutil.wait_procs(workers, timeout=2)

    assert alive == []
    assert bool(folders) == ("portable" in kind)
    assert ended(lambda: not any(map(os.path.exists, folders)), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_script_that_leaves_a_call_half_done_ends_at_once(kind):
    script = (
        "import time\n"
        "from ipyparcache.parallel.dispatch import Options, run_tasks\n"
        "run = run_tasks(time.sleep, [(0,), (30,), (30,)], Options(n_jobs=2))\n"
        "print(next(run)[0])\n"
    )
    begun = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **KINDS[kind]},
        timeout=60,
    )

    assert (found.stdout, found.stderr) == ("0\n", "")
    assert time.monotonic() - begun < 15


def test_an_interrupted_script_ends_with_its_workers():
    script = SCRIPT.replace("sum(range(10**9)) if number else time.sleep(1)", "time.sleep(1)")
    caller = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    with caller:
        caller.stdout.readline()
        pids = [int(caller.stdout.readline()) for _ in range(2)]
        workers = [psutil.Process(pid) for pid in pids]
        begun = time.monotonic()
        os.killpg(caller.pid, signal.SIGINT)
        assert "KeyboardInterrupt" in caller.stderr.read()
    assert time.monotonic() - begun < 3
    _, alive = psutil.wait_procs(workers, timeout=1)
    assert alive == []


# -- what tasks do to their worker ------------------------------------------------------------------------


def test_output_comes_in_the_order_in_which_it_was_written(backend):
    def write(number):
        print("out", number)
        print("err", number, file=sys.stderr)
        os.write(1, b"raw\n")
        emit(b"event")
        print("last")

    seen = {}
    options = Options(n_jobs=2, backend=backend, capture=True)

    def on_event(index, event):
        events = seen.setdefault(index, [])
        # What is seen while the task runs may come in pieces.
        if events and isinstance(event, Output) and getattr(events[-1], "stream", None) == event.stream:
            event = Output(event.stream, events.pop().data + event.data)
        events.append(event)

    list(run_tasks(write, [(n,) for n in range(10)], options, on_event=on_event))

    for number in range(10):
        assert seen[number] == [
            Output("stdout", b"out %d\n" % number),
            Output("stderr", b"err %d\n" % number),
            Output("stdout", b"raw\n"),
            Emitted(b"event"),
            Output("stdout", b"last\n"),
        ]


def test_output_of_a_running_task_is_seen_while_it_runs(backend):
    cancelled = threading.Event()

    def print_and_wait():
        print("begun")
        time.sleep(60)

    seen = []

    def on_event(index, event):
        seen.append(event)
        cancelled.set()

    list(
        run_tasks(
            print_and_wait,
            [()],
            Options(n_jobs=1, backend=backend, capture=True),
            on_event=on_event,
            cancelled=cancelled,
        )
    )

    assert b"".join(event.data for event in seen) == b"begun\n"


def test_what_a_dying_task_printed_last_is_not_lost(backend):
    def print_and_die():
        print("last words")
        os._exit(1)

    seen = []
    list(
        run_tasks(
            print_and_die,
            [()],
            Options(n_jobs=1, backend=backend, capture=True),
            on_event=lambda index, event: seen.append(event),
        )
    )

    assert b"".join(event.data for event in seen) == b"last words\n"


def test_output_is_passed_on_when_it_is_not_captured(capsys):
    values(print, [(n,) for n in range(5)], "processes")

    assert sorted(capsys.readouterr().out.split()) == ["0", "1", "2", "3", "4"]


def test_a_task_may_print_a_hundred_megabytes(capfd):
    def flood():
        for _ in range(100):
            os.write(1, b"x" * (1 << 20))

    size = 0

    def count(index, event):
        nonlocal size
        size += len(event.data)

    list(run_tasks(flood, [()], Options(n_jobs=1, capture=True), on_event=count))

    assert size == 100 << 20


def test_a_task_that_closes_or_replaces_stdout_spoils_nothing(capsys):
    def spoil(how):
        if how == "close":
            sys.stdout.close()
        elif how == "fd":
            with contextlib.suppress(OSError):  # the other task has closed it, if they met on one worker
                os.close(1)
        else:
            sys.stdout = None

    for how in ("close", "fd", "replace"):
        values(spoil, [(how,)] * 2, "processes")
        values(print, [(how,)] * 2, "processes")

    assert sorted(capsys.readouterr().out.split()) == sorted(["close", "fd", "replace"] * 2)


def test_a_changed_folder_or_environment_does_not_outlive_its_call(tmp_path):
    def spoil():
        os.chdir("/")
        os.environ["SPOILED"] = "1"
        os.environ.pop("HOME", None)
        sys.path.insert(0, "/nowhere")

    here = (os.getcwd(), None, os.environ.get("HOME"), "/nowhere" in sys.path)
    values(spoil, [()] * 4, "processes")

    def look():
        return os.getcwd(), os.environ.get("SPOILED"), os.environ.get("HOME"), "/nowhere" in sys.path

    assert values(look, [()] * 4, "processes") == [here] * 4


def test_what_a_thread_does_after_its_task_does_not_reach_the_next_call(tmp_path):
    def leave_a_thread():
        def spoil():
            while not (tmp_path / "go").exists():
                time.sleep(0.001)
            os.environ["SPOILED"] = "yes"
            (tmp_path / "spoiled").touch()

        threading.Thread(target=spoil, daemon=True).start()
        return os.getpid()

    (spoiled,) = values(leave_a_thread, [()], "processes")
    (tmp_path / "go").touch()
    assert ended((tmp_path / "spoiled").exists)

    seen = values(lambda: (os.getpid(), os.environ.get("SPOILED")), [()], "processes")
    assert seen == [(spoiled, None)]


def test_threads_and_children_that_outlive_their_task_do_not_hold_it_up(backend):
    def leave_behind():
        threading.Thread(target=time.sleep, args=(30,)).start()
        return subprocess.Popen(["sleep", "30"]).pid

    pids = values(leave_behind, [()] * 2, backend)
    shutdown_workers()

    def is_over(pid):
        try:
            return psutil.Process(pid).status() == "zombie"
        except psutil.NoSuchProcess:
            return True

    assert ended(lambda: all(map(is_over, pids)), 2)


def test_a_task_that_forks_does_not_confuse_its_worker():
    def fork():
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        return os.waitpid(pid, 0)[1]

    assert values(fork, [()] * 6, "processes") == [0] * 6


# -- surroundings -----------------------------------------------------------------------------------------


def test_workers_see_the_state_of_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEEN_BY_WORKERS", "yes")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "beside_the_notebook.py").write_text("WHO = 'me'\n")
    logging.getLogger("some.library").setLevel(logging.ERROR)

    def look():
        import beside_the_notebook

        return (
            os.getcwd(),
            os.environ["SEEN_BY_WORKERS"],
            beside_the_notebook.WHO,
            logging.getLogger("some.library").level,
            decimal.getcontext().prec,
            np.geterr()["divide"],
            np.get_printoptions()["precision"],
            any(row[0] == "error" and row[2] is BytesWarning for row in warnings.filters),
        )

    with (
        decimal.localcontext(prec=11),
        np.errstate(divide="raise"),
        np.printoptions(precision=3),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error", BytesWarning)
        found = values(look, [()] * 2, "processes")
    logging.getLogger("some.library").setLevel(logging.NOTSET)

    assert found == [(str(tmp_path), "yes", "me", logging.ERROR, 11, "raise", 3, True)] * 2


def test_a_large_environment_reaches_the_workers(backend, monkeypatch):
    monkeypatch.setenv("LARGE_VARIABLE", "x" * 100_000)

    assert values(lambda: len(os.environ["LARGE_VARIABLE"]), [()] * 4, backend) == [100_000] * 4


def test_settings_reach_libraries_that_the_worker_loads_later():
    import pandas as pd

    def look():
        import pandas

        return pandas.get_option("display.max_rows")

    shutdown_workers()
    with pd.option_context("display.max_rows", 7):
        assert values(look, [()] * 2, "processes") == [7] * 2
    assert values(look, [()] * 2, "processes") == [pd.get_option("display.max_rows")] * 2


def test_inner_threads_are_limited():
    def count():
        import threadpoolctl

        np.ones((2, 2)) @ np.ones((2, 2))
        found = {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
        return os.environ["OMP_NUM_THREADS"], found

    assert values(count, [()] * 2, "processes", inner_threads=1) == [("1", {1})] * 2
    assert values(count, [()] * 2, "processes", inner_threads=3)[0][0] == "3"


# -- code and data ----------------------------------------------------------------------------------------


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
