import contextlib
import decimal
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import psutil
import pytest

from ipyparcache.engine.backends.processes import ProcessCrew
from ipyparcache.engine.batches import Batch, CallOptions
from ipyparcache.engine.pool import shutdown_workers, the_pool
from ipyparcache.engine.worker import emit
from ipyparcache.errors import TaskCancelled, TaskTimeout
from ipyparcache.parallel.dispatch import Emitted, Options, Output, run_tasks
from tests.conftest import ended
from tests.contracts.backend import BackendContract, outcomes, values
from tests.engine.conftest import KINDS


class TestProcesses(BackendContract):
    """Everything that a backend must show, over each transport and start method."""


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


def test_a_cancelled_call_ends_within_a_second_and_tells_what_it_killed(backend, tmp_path):
    cancelled = threading.Event()
    values(abs, [(1,)] * 2, backend)

    def wait(number):
        if number == 0:  # ends in the time that a cancelled call leaves to what is running
            (tmp_path / "zero").touch()
            return number if ended((tmp_path / "cancelled").exists) else None
        assert ended((tmp_path / "zero").exists)
        emit(b"begun")
        time.sleep(60)
        return number

    def on_event(index, event):
        cancelled.set()
        (tmp_path / "cancelled").touch()

    begun = time.monotonic()
    found = dict(
        run_tasks(
            wait,
            [(n,) for n in range(12)],
            Options(n_jobs=2, backend=backend, batch=1),
            on_event=on_event,
            cancelled=cancelled,
        )
    )

    assert time.monotonic() - begun < 3
    assert found[0].unwrap() == 0
    assert isinstance(found[1].exception, TaskCancelled)
    # The worker of the first may have begun another before the caller saw that it was cancelled.
    assert all(isinstance(outcome.exception, TaskCancelled) for n, outcome in found.items() if n > 1)
    assert 11 not in found
    assert values(abs, [(-1,)] * 4, backend) == [1] * 4


def test_stragglers_of_a_closed_call_are_killed(backend, tmp_path):
    def straggle(number):
        if number == 0:
            return ended(lambda: any(tmp_path.iterdir()))
        (tmp_path / str(os.getpid())).touch()
        time.sleep(60)

    run = run_tasks(straggle, [(0,), (1,), (2,)], Options(n_jobs=2, backend=backend, batch=1))
    assert next(run)[1].unwrap()
    stragglers = [int(path.name) for path in tmp_path.iterdir()]
    run.close()

    assert ended(lambda: not any(map(psutil.pid_exists, stragglers)), 3)
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


NAMED = """
import socket, sys
from ipyparcache.engine.forkserver import run_named
listener = socket.create_server(("127.0.0.1", 0))
run_named((listener.getsockname()[:2], b"token", sys.argv[1]), 60)
"""


def test_a_worker_whose_caller_ended_before_it_was_ready_says_nothing(tmp_path):
    def worker_in(folder):
        command = [sys.executable, "-c", NAMED, str(folder)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr

    assert worker_in(tmp_path / "removed") == ""
    assert "FileNotFoundError" in worker_in(tmp_path)


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


def test_a_worker_that_is_long_in_starting_keeps_nobody_waiting():
    def negative(number):  # nothing is known of how long it takes, so each worker gets a task
        return -number

    shutdown_workers()
    list(run_tasks(abs, [(1,)], Options(n_jobs=1)))
    server = the_pool().server_pid()
    os.kill(server, signal.SIGSTOP)
    try:
        assert values(negative, [(1,), (2,), (3,)], "processes") == [-1, -2, -3]
    finally:
        os.kill(server, signal.SIGCONT)
    assert values(abs, [(-n,) for n in range(50)], "processes") == list(range(50))


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


def exits_at_once(number):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)[1] + number


def goes_on(number):
    os.fork()
    return number


def fails(number):
    if os.fork() == 0:
        raise ValueError("in the child")
    return number


def writes_to_what_it_inherits(number):
    pid = os.fork()
    if pid == 0:
        for fd in range(3, 30):
            with contextlib.suppress(OSError):
                os.write(fd, b"nothing that anybody waits for")
        os._exit(0)
    os.waitpid(pid, 0)
    return number


def prints(number):
    pid = os.fork()
    if pid == 0:
        print("child")
        os._exit(0)
    os.waitpid(pid, 0)
    print("parent")
    return number


@pytest.mark.parametrize("fork", [exits_at_once, goes_on, fails, writes_to_what_it_inherits, prints])
def test_a_task_that_forks_does_not_confuse_its_worker(backend, fork):
    rows = [(number,) for number in range(6)]

    assert values(fork, rows, backend, capture=True) == list(range(6))
    assert values(abs, [(-n,) for n in range(50)], backend) == list(range(50))


def test_a_child_that_a_task_forked_does_not_hide_the_workers_death(backend):
    def leave_a_child_and_die(number):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        if number == 3:
            os._exit(5)
        return number

    found = outcomes(leave_a_child_and_die, [(n,) for n in range(6)], backend, on_error="collect")

    assert found.pop(3).exception.exit_code == 5
    assert {outcome.unwrap() for outcome in found.values()} == {0, 1, 2, 4, 5}


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


def slowly_up_to(number, held_up_at, release):
    time.sleep(0.01)  # so long that each end is told
    while number == held_up_at and not os.path.exists(release):
        time.sleep(0.005)
    return number


def test_what_was_read_before_it_was_told_is_not_read_again(tmp_path):
    release = str(tmp_path / "release")
    crew = ProcessCrew(slowly_up_to, 1, CallOptions(prompt=True))
    try:
        batch = Batch(0, [(number, 5, release) for number in range(6)])
        crew.send(0, batch)
        # All but the last task have ended, and their ends were told: nobody has listened yet.
        assert ended(lambda: (running := crew.running(0)) is not None and running[1] == 5)
        now = time.monotonic()
        assert crew._overdue(0, now) == []  # the first of two looks
        found = crew._overdue(0, now + 1)
        found += crew.poll(0.1)
        (tmp_path / "release").touch()
        while not found[-1].complete:
            found += crew.poll(1)
    finally:
        crew.close()

    assert [value for report in found for value in report.values] == list(range(6))
