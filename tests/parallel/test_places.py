"""Calls from wherever a program can make one: finalisers, signal handlers, threads, forked children."""

import asyncio
import concurrent.futures
import gc
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from ipyparcache import Parallel, delayed
from tests.conftest import ended


def square(number):
    return number * number


def squares(count=4, **options):
    return Parallel(n_jobs=2, **options)(delayed(square)(number) for number in range(count))


WANTED = [0, 1, 4, 9]


class CallsAtItsEnd:
    found = None

    def __del__(self):
        CallsAtItsEnd.found = squares()


def test_a_finaliser_may_call():
    ring = CallsAtItsEnd()
    ring.itself = ring
    del ring
    gc.collect()

    assert CallsAtItsEnd.found == WANTED


def test_a_finaliser_may_call_while_a_call_draws_its_tasks():
    def tasks():
        for number in range(4):
            CallsAtItsEnd()
            yield delayed(square)(number)

    CallsAtItsEnd.found = None

    assert Parallel(n_jobs=2)(tasks()) == WANTED
    assert CallsAtItsEnd.found == WANTED


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
def test_a_signal_handler_may_call_in_the_midst_of_a_call(tmp_path):
    found = []

    def handle(number, frame):
        found.append(squares())
        (tmp_path / "handled").touch()

    def wait_for_the_handler():
        while not (tmp_path / "handled").exists():
            pass

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        Parallel(n_jobs=2, timeout=30)(delayed(wait_for_the_handler)() for _ in range(2))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert found == [WANTED]


def test_coroutines_may_call():
    async def here_and_in_threads():
        return [squares(), *await asyncio.gather(*[asyncio.to_thread(squares) for _ in range(4)])]

    assert asyncio.run(here_and_in_threads()) == [WANTED] * 5


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forks beside threads, from 3.12 on
def test_threads_may_call_with_any_backend_and_count():
    choices = [
        {"backend": backend, "n_jobs": count}
        for backend in ("loky", "threading", "sequential", "multiprocessing")
        for count in (1, 2, 3)
    ]

    def call(options):
        return Parallel(**options)(delayed(square)(number) for number in range(40))

    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        found = list(threads.map(call, choices * 2))

    assert found == [[number * number for number in range(40)]] * len(found)


HALF_LOADED = """
import sys, types
from ipyparcache import Parallel, delayed

sys.modules[sys.argv[1]] = types.ModuleType(sys.argv[1])  # as another thread may just have begun to load it
for value in ([1] * 40_000, b"x" * 3_000_000):
    assert Parallel(n_jobs=2)(delayed(len)(value) for _ in range(4)) == [len(value)] * 4
print(len(Parallel(n_jobs=2)(delayed(bytes)(3_000_000) for _ in range(4))))
"""


@pytest.mark.parametrize("name", ["numpy", "multiprocessing", "cloudpickle", "distributed", "logging"])
def test_a_call_stands_that_another_thread_has_just_begun_to_load_a_library(name):
    ran = subprocess.run(
        [sys.executable, "-c", HALF_LOADED, name], capture_output=True, text=True, timeout=60
    )

    assert (ran.stdout, ran.stderr) == ("4\n", "")


LOADED_BY_ANOTHER = """
import importlib.machinery, multiprocessing, os, sys, threading, time
from ipyparcache import Parallel, delayed

loading, go_on = threading.Event(), threading.Event()

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "ipyparcache.parallel.protocol":
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (loading.set(), go_on.wait(), execute(module))
            return spec

def load():
    import ipyparcache.parallel.protocol

def call():
    call.found = Parallel(n_jobs=2, backend="multiprocessing")(delayed(abs)(-n) for n in range(4))

def waits_for_it():
    frame = sys._current_frames().get(caller.ident)
    while frame is not None and frame.f_code.co_name not in ("_find_and_load", "_lock_unlock_module"):
        frame = frame.f_back
    return frame is not None and frame.f_locals.get("name") == "ipyparcache.parallel.protocol"

sys.meta_path.insert(0, Slow())
threading.Thread(target=load, daemon=True).start()
loading.wait()
caller = threading.Thread(target=call, daemon=True)
caller.start()
while not waits_for_it():
    time.sleep(0.001)
go_on.set()
caller.join(20)
print(getattr(call, "found", "never came"), flush=True)
for child in multiprocessing.active_children():
    child.kill()
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs children that are forked")
def test_children_are_forked_when_all_that_they_need_is_loaded():
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADED_BY_ANOTHER], capture_output=True, text=True, timeout=60
    )

    assert ran.stdout == "[0, 1, 2, 3]\n", ran.stderr


class InterruptedContext:
    """A context of multiprocessing in which an interrupt comes as a pool is made, and not handed out yet."""

    def Lock(self):
        return multiprocessing.Lock()

    def Pool(self, *arguments, **options):
        pool = multiprocessing.get_context("fork").Pool(*arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)
        return pool


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs children that are forked")
def test_a_pool_of_multiprocessing_that_an_interrupt_keeps_from_its_call_is_ended():
    with pytest.raises(KeyboardInterrupt):
        squares(backend=InterruptedContext())

    assert ended(lambda: not multiprocessing.active_children())
    assert squares(backend="multiprocessing") == WANTED


FORKED = """
import os, sys, threading
from ipyparcache import Parallel, delayed
from tests.parallel.test_places import WANTED, squares

def in_a_child(end):
    pid = os.fork()
    if pid == 0:
        assert squares() == WANTED
        end(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def wait_for(file):
    while not os.path.exists(file):
        pass

file = sys.argv[1]
found = [squares() == WANTED, in_a_child(os._exit), in_a_child(sys.exit)]
results = Parallel(n_jobs=2, return_as="generator")(delayed(wait_for)(file) for _ in range(2))
found += [in_a_child(os._exit), in_a_child(sys.exit), squares() == WANTED]
open(file, "w").close()
found.append(list(results))
print(found, squares() == WANTED)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs children that are forked")
@pytest.mark.parametrize("transport", ["", "portable"])
def test_a_forked_child_may_call_also_while_a_call_of_its_parent_runs(tmp_path, transport):
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path / "go")]
    environment = {**os.environ, "IPYPARCACHE_TRANSPORT": transport}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)

    assert (ran.stdout, ran.stderr) == ("[True, 0, 0, 0, 0, True, [None, None]] True\n", "")


ABANDONED = """
import atexit, time
from ipyparcache import Parallel, delayed
from tests.parallel.test_places import squares

atexit.register(lambda: print(squares()))
kept = [
    Parallel(n_jobs=2, return_as=kind, backend=backend)(delayed(time.sleep)(5) for _ in range(100))
    for kind in ("generator", "generator_unordered")
    for backend in ("loky", "threading")
]
print("ends")
"""


def test_an_interpreter_ends_though_generators_were_left_and_calls_at_its_end():
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ABANDONED], capture_output=True, text=True, timeout=60
    )

    assert (ran.stdout, ran.stderr) == (f"ends\n{WANTED}\n", "")
