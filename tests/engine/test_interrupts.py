"""A call that is interrupted, wherever it is, leaves a pool that the next call can use."""

import linecache
import subprocess
import sys
import threading
import time

import pytest

from ipyparcache import Parallel, delayed
from ipyparcache.parallel.dispatch import Options, run_tasks
from tests.contracts.backend import values


def interrupting(line):
    """A trace function that raises KeyboardInterrupt at the given count of lines run in the engine.

    Lines with a `with` are left out: they are reported once more when the block has ended and its lock is not
    released yet, where Python never handles a signal. An exception there would leave the lock taken for ever.
    """
    counted = 0

    def trace(frame, event, argument):
        nonlocal counted
        if "ipyparcache" not in frame.f_code.co_filename or "forkserver" in frame.f_code.co_filename:
            return None
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        if event == "line" and not text.startswith("with "):
            counted += 1
            if counted == line:
                raise KeyboardInterrupt
        return trace

    return trace


def call_tasks():
    for _ in run_tasks(abs, [(-n,) for n in range(30)], Options(n_jobs=2)):
        pass


SPACE = {"__name__": "__main__"}  # its function travels by value, and stands alone
exec("def task(number): return -number", SPACE)


def call_at_once():
    Parallel(n_jobs=2)(delayed(SPACE["task"])(n) for n in range(2))


def is_usable():
    """Whether calls from this thread and from another one work, and soon."""
    begun = time.monotonic()
    assert values(abs, [(-n,) for n in range(30)], "processes") == list(range(30))
    found = []
    thread = threading.Thread(target=lambda: found.append(values(abs, [(-1,)] * 4, "processes")), daemon=True)
    thread.start()
    thread.join(10)
    return found == [[1] * 4] and time.monotonic() - begun < 5


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 8, 20, 45, 90, 130, 170, 220, 300, 400, 500, 600])
@pytest.mark.parametrize("call", [call_tasks, call_at_once])
def test_an_interrupt_anywhere_in_a_call_leaves_a_usable_pool(step, call):
    for _ in range(3):
        call()
    for line in range(step, step + 3):
        sys.settrace(interrupting(line))
        try:
            call()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)

        assert is_usable()


MANY = """
import os, random, signal
from ipyparcache.engine.pool import shutdown_workers, the_pool
from tests.engine.test_interrupts import call_at_once, call_tasks, is_usable

for _ in range(3):
    call_tasks()
    call_at_once()
before = len(os.listdir("/proc/self/fd"))
moments = random.Random(0)
signal.signal(signal.SIGALRM, signal.default_int_handler)
for number in range(400):
    try:
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-5, 2e-3))
        while True:
            (call_tasks, call_at_once)[number % 2]()
    except KeyboardInterrupt:
        pass
assert is_usable()
workers = len(the_pool().pids())
shutdown_workers()
print(workers, len(os.listdir("/proc/self/fd")) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_a_pool_stands_any_number_of_interrupts():
    # A process of its own, as it counts all that is open.
    done = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    workers, descriptors = map(int, done.stdout.split())
    assert descriptors <= 0  # all that the interrupted calls had open belongs to workers
    assert workers < 40  # an interrupted call's workers are lent again when they have answered
