"""The fork server as a fork of the caller: when a cold start takes it, and that nobody can tell."""

import json
import os
import subprocess
import sys
import textwrap

import psutil
import pytest

CALL = """
    from ipyparcache import Parallel, delayed
    def call(function, *arguments):
        return Parallel(2)(delayed(function)(*arguments) for _ in range(2))
    def server():
        from ipyparcache.engine.pool import the_pool
        programs = [open(f"/proc/{pid}/cmdline").read() for pid in ("self", the_pool().server_pid())]
        return "forked" if programs[0] == programs[1] else "launched"
    def same(value):
        return value
"""


def said_by(*parts, cwd=None, **environment):
    """What a fresh interpreter prints, as JSON, that runs these programs one after another."""
    program = "\n".join(textwrap.dedent(part) for part in parts)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("IPYPARCACHE_")}
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
        env={**inherited, **environment},
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


TELL = """
    import json
    assert call(same, 1) == [1, 1]
    print(json.dumps(server()))
"""


@pytest.mark.parametrize(
    "before", ["", "import json, random, re, pathlib, argparse, dataclasses", "x = [0] * 9**5"]
)
def test_a_caller_that_holds_nothing_is_forked(before):
    assert said_by(before, CALL, TELL) == "forked"


@pytest.mark.parametrize(
    "before",
    [
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "import numpy",
        "import asyncio",
        "import logging",
        "import helper",
        "import colorsys",  # a module of the user by the name of a harmless one
        "import sys; sys.setprofile(lambda *about: None)",
        "import sys; sys.settrace(lambda *about: None)",
        "large = bytearray(100 << 20)",
        "import os; files = [os.dup(0) for _ in range(100)]",
    ],
)
def test_a_caller_that_holds_something_is_not_forked(before, tmp_path):
    for name in ("helper", "colorsys"):
        (tmp_path / f"{name}.py").write_text("state = []")
    assert said_by(f"import sys; sys.path.insert(0, {str(tmp_path)!r})", before, CALL, TELL) == "launched"


@pytest.mark.parametrize("kind", [{"IPYPARCACHE_START": "forkserver"}, {"IPYPARCACHE_TRANSPORT": "portable"}])
def test_what_the_user_asked_for_is_not_forked(kind):
    assert said_by(CALL, TELL, **kind) == "launched"


BEGIN = """
    import json
    from ipyparcache.engine.pool import the_pool
    pool = the_pool()
    pool.begin({count})
    early = pool._numbers
    found = call(same, {value})
    print(json.dumps([early, pool._numbers, len(found)]))
"""


@pytest.mark.parametrize(
    ("count", "value", "workers"),
    [(1, "1", [1, 2, 2]), (2, "1", [2, 2, 2]), (16, "1", [2, 2, 2]), (2, "lambda: 1", [2, 2, 2])],
)
def test_the_first_workers_of_a_forked_server_start_before_the_call_is_ready(count, value, workers):
    assert said_by(CALL, BEGIN.format(count=count, value=value)) == workers


def test_a_server_of_its_own_starts_no_worker_before_it_is_known_what_it_needs():
    assert said_by(CALL, BEGIN.format(count=2, value=1), IPYPARCACHE_START="forkserver") == [0, 2, 2]


def test_a_call_inside_of_a_task_does_not_fork_the_worker():
    nested = """
        import json
        def inner(server, same):
            from ipyparcache import Parallel, delayed
            found = Parallel(2, backend="processes")(delayed(same)(n) for n in range(2))
            return found, server()
        print(json.dumps([call(inner, server, same), server()]))
    """
    assert said_by(CALL, nested) == [[[[0, 1], "launched"]] * 2, "forked"]


def test_a_worker_cannot_tell_whether_its_server_was_forked():
    describe = """
        import contextvars, faulthandler, gc, json, random, signal, sys, weakref
        from ipyparcache import parallel_config
        variable = contextvars.ContextVar("variable", default="nothing")
        variable.set("the caller's")
        signal.signal(signal.SIGUSR1, lambda *about: None)
        signal.signal(signal.SIGTERM, lambda *about: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        gc.callbacks.append(lambda *about: None)
        sys.setrecursionlimit(1234)
        faulthandler.enable()
        class Thing:
            pass
        thing = Thing()
        weakref.finalize(thing, len, "")
        def told():
            import _contextvars, faulthandler, gc, os, signal, sys, threading, weakref
            import ipyparcache.parallel.config as config
            from ipyparcache.engine import pool
            return {
                "main": sorted(name for name in vars(sys.modules["__main__"]) if name[:2] != "__"
                               and name not in ("sys", "main")),
                "context": [one.name for one in _contextvars.copy_context()],
                "handlers": [repr(signal.getsignal(n))[:9] for n in signal.valid_signals()],
                "mask": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
                "gc": [len(gc.callbacks), gc.isenabled()],
                "recursion": sys.getrecursionlimit(),
                "fault": faulthandler.is_enabled(),
                "threads": threading.active_count(),
                "finalizers": len(weakref.finalize._registry),
                "config": [config.is_anything_set(), pool is sys.modules["ipyparcache.engine.pool"]],
                "workers": pool.the_pool().pids(),
                "level": config.nesting_level(),
                "argv": sys.argv,
                "stdin": os.readlink("/proc/self/fd/0"),
                "files": sum(1 for n in os.listdir("/proc/self/fd")
                             if not os.path.exists(f"/proc/self/fd/{n}") or n == "0"),
            }
        with parallel_config(n_jobs=2, verbose=0):
            found = Parallel(2)(delayed(told)() for _ in range(2))
        print(json.dumps([server(), found[0]]))
    """
    forked, here = said_by(CALL, describe)
    launched, there = said_by(CALL, describe, IPYPARCACHE_START="forkserver")

    assert (forked, launched) == ("forked", "launched")
    assert here == there


def test_what_the_caller_has_open_ends_with_the_caller_and_is_written_once(tmp_path):
    script = """
        import atexit, gc, json, os, random, select
        PATH, DRAWING = {path!r}, {drawing!r}
        def note(text):
            with open(PATH, "a") as file:
                file.write(text)
        atexit.register(note, "exit ")
        class Noisy:
            def __init__(self):
                self.cycle = self
            def __del__(self):
                note("destroyed ")
        gc.disable()
        Noisy()
        buffered = open(PATH, "a")
        buffered.write("buffered ")
        read, write = os.pipe()
        print("shown ", end="")
        random.seed(0)
        def drawn():
            import gc, os, random, time
            gc.collect()
            open(f"{{DRAWING}}/{{os.getpid()}}", "w").close()
            until = time.monotonic() + 20
            while len(os.listdir(DRAWING)) < 2 and time.monotonic() < until:  # both workers draw
                time.sleep(0.001)
            return random.random()
        numbers = call(drawn)
        os.close(write)
        ended = select.select([read], [], [], 10)[0] == [read] and os.read(read, 1) == b""
        from ipyparcache import shutdown_workers
        forked = server()
        shutdown_workers()
        buffered.close()
        gc.collect()
        print()
        print(json.dumps([forked, ended, len({{*numbers, random.random()}})]))
    """
    path, drawing = tmp_path / "notes", tmp_path / "drawing"
    drawing.mkdir()

    assert said_by(CALL, script.format(path=str(path), drawing=str(drawing))) == ["forked", True, 3]
    assert sorted(path.read_text().split()) == ["buffered", "destroyed", "exit"]


def test_what_c_code_prints_keeps_its_place_though_libraries_come_late():
    script = """
        import json
        def printing(number):
            import ctypes
            print("first", flush=True)
            ctypes.CDLL(None).puts(b"second")
            print("third", flush=True)
        call(printing, 1)
        print(json.dumps(server()))
    """
    program = "\n".join(textwrap.dedent(part) for part in (CALL, script))
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()

    assert found == ["first", "second", "third"] * 2 + ['"forked"']


SPIN = """
    import os, re, sys, time
    def spin(path):
        import os, re
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        re.match("(a+)+$", "a" * 40 + "b")  # holds the GIL for ever
    Parallel(2)(delayed(spin)(sys.argv[1] + str(number)) for number in range(2))
"""


@pytest.mark.parametrize("start", ["", "forkserver"])
def test_workers_that_hold_the_gil_end_with_their_fork_server(start, tmp_path):
    program = "\n".join(textwrap.dedent(part) for part in (CALL, SPIN))
    caller = subprocess.Popen(
        [sys.executable, "-c", program, f"{tmp_path}/"],
        env={**os.environ, "IPYPARCACHE_START": start},
        stderr=subprocess.DEVNULL,
    )
    try:
        files = [tmp_path / "0", tmp_path / "1"]
        while not all(path.exists() and path.read_text() for path in files):
            assert caller.poll() is None
        workers = [psutil.Process(int(path.read_text())) for path in files]
        workers[0].parent().kill()

        assert psutil.wait_procs(workers, timeout=10)[1] == []
    finally:
        caller.kill()
        caller.wait()
