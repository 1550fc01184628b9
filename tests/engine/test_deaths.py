import contextlib
import os
import pickle
import signal
import socket
import threading
import time

import numpy as np
import psutil
import pytest

from ipyparcache.engine import launching, pool
from ipyparcache.engine.backends.processes import ProcessCrew
from ipyparcache.engine.batches import Batch, CallOptions, Ran
from ipyparcache.engine.pool import shutdown_workers, the_pool
from ipyparcache.engine.transport import ENDED, POSITION_BITS
from ipyparcache.errors import WorkerDied, WorkersDiedLoading, WorkersNotStarted
from tests.conftest import ended
from tests.contracts.backend import outcomes, values


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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


def test_tasks_that_cut_their_worker_off_run_once(backend, tmp_path):
    def close_all(number):
        with open(tmp_path / str(number), "a") as file:
            file.write("x")
        os.closerange(3, 50)  # its sockets too: it cannot tell any more that it has run them
        return number

    assert values(close_all, [(n,) for n in range(8)], backend, batch=4) == list(range(8))
    assert {file.read_text() for file in tmp_path.iterdir()} == {"x"}
    assert values(abs, [(-n,) for n in range(50)], backend) == list(range(50))


def test_what_a_dead_worker_had_no_time_to_tell_is_read(backend, monkeypatch):
    values(abs, [(1,)], backend)
    crew = ProcessCrew(abs, 1, CallOptions())
    try:
        batches = [Batch(2 * at, [(-2 * at,), (-2 * at - 1,)]) for at in range(3)]
        for batch in batches:
            crew.send(0, batch)
        (worker,) = crew.lanes
        words = worker.block.words
        ended_last = batches[2].number << POSITION_BITS | 2
        assert ended(lambda: words[ENDED + batches[2].slot] == ended_last)

        def is_gone(wait=True):
            raise EOFError

        monkeypatch.setattr(worker.bell, "receive", is_gone)  # whatever it said is lost
        found = crew.poll(5)
    finally:
        crew.close()

    assert [type(report) for report in found] == [Ran] * 3
    assert [report.values for report in found] == [[0, 1], [2, 3], [4, 5]]


class EndsItsWorker:
    """Stands for a function that needs a module which crashes when it is imported there."""

    def __reduce__(self):
        return os._exit, (3,)

    def __call__(self, number):
        return number


def test_a_function_that_no_worker_survives_is_told(backend):
    for on_error in ("raise", "collect"):
        with pytest.raises(WorkersDiedLoading, match=r"while it loaded the function.*exited with code 3"):
            outcomes(EndsItsWorker(), [(n,) for n in range(100)], backend, on_error=on_error)

    assert values(abs, [(-n,) for n in range(50)], backend) == list(range(50))


def test_the_task_whose_argument_no_worker_survives_is_named(backend):
    rows = [([n, EndsItsWorker() if n == 5 else None],) for n in range(12)]
    found = outcomes(len, rows, backend, on_error="collect", batch=4)

    error = found.pop(5).exception
    assert type(error) is WorkerDied
    assert (error.index, error.exit_code) == (5, 3)
    assert [outcome.unwrap() for outcome in found.values()] == [2] * 11


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
    workers = the_pool().pids()
    os.kill(the_pool().server_pid(), signal.SIGKILL)
    assert ended(lambda: not any(map(is_running, workers)))  # they end with it, a moment later

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


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_a_worker_that_ends_before_it_connects_is_replaced_at_once(start, monkeypatch):
    monkeypatch.setenv("IPYPARCACHE_TRANSPORT", "portable")
    monkeypatch.setenv("IPYPARCACHE_START", start)
    shutdown_workers()
    real, started = pool.accept, []

    def accept(listener, token, has_ended):
        def end_the_first():
            for child in () if started else psutil.Process().children(recursive=True):
                # Not the server, nor what removes the folder in the end.
                if child.pid != the_pool().server_pid() and child.name() != "sh":
                    child.kill()
                    started.append(True)
            return has_ended()

        if not started:
            with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as nobody:
                return real(nobody, token, end_the_first)  # where it does not connect
        return real(listener, token, has_ended)

    monkeypatch.setattr(pool, "accept", accept)
    begun = time.monotonic()

    assert values(abs, [(-n,) for n in range(50)], "processes") == list(range(50))
    assert started
    assert time.monotonic() - begun < 10  # and not as long as one that starts may take
    shutdown_workers()


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


@pytest.mark.parametrize(
    ("kind", "shared"),
    [("define", list(range(20_000))), ("define", b"x" * 3_000_000), ("large", np.ones(10**6))],
)
def test_a_batch_that_comes_before_what_it_shares_is_sent_again(kind, shared, monkeypatch):
    # So it is where the caller fetches messages back just as the worker receives the last of them.
    real, withheld = ProcessCrew._tell, []

    def tell(crew, worker, message, fds=()):
        if message[0] == kind and not withheld:
            withheld.append(message)
        else:
            real(crew, worker, message, fds)

    monkeypatch.setattr(ProcessCrew, "_tell", tell)

    assert values(len, [(shared,)] * 8, "processes") == [len(shared)] * 8
    assert withheld
