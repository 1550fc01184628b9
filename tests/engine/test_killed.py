"""What is left, and what goes on, when the caller or the fork server is killed in the midst of a call."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from ipyparcache.engine.pool import the_pool
from ipyparcache.errors import WorkerDied
from tests.conftest import ended
from tests.contracts.backend import outcomes, values
from tests.engine.conftest import KINDS

CALLER = """
import subprocess, sys
import numpy as np
from ipyparcache import Parallel, delayed

def task(array):
    child = subprocess.Popen(["sleep", "60"])
    print(array.filename, child.pid, flush=True)
    child.wait()

Parallel(n_jobs=2, max_nbytes=10, temp_folder=sys.argv[1], batch_size=1)(
    delayed(task)(array) for array in [np.ones(100)] * 2
)
"""


def is_over(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("kind", KINDS)
def test_programs_and_files_of_a_call_go_with_its_caller(kind, tmp_path):
    command = [sys.executable, "-c", CALLER, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, **KINDS[kind]}, text=True
    ) as caller:
        told = [caller.stdout.readline().split() for _ in range(2)]
        assert all(os.path.exists(file) for file, _ in told)
        caller.kill()

    assert ended(lambda: all(is_over(int(pid)) for _, pid in told), 2)
    assert ended(lambda: os.listdir(tmp_path) == [], 2)


def test_a_forked_child_leaves_the_files_of_its_parents_call(tmp_path):
    script = (
        "import os, sys\n"
        "import numpy as np\n"
        "from ipyparcache import Parallel, delayed\n"
        "def child():\n"
        "    sys.exit()\n"  # in a child, an end with all that is done at the end of an interpreter
        "with Parallel(n_jobs=2, max_nbytes=10, temp_folder=sys.argv[1]) as call:\n"
        "    array = np.ones(100)\n"
        "    call(delayed(len)(array) for _ in range(4))\n"
        "    if not (pid := os.fork()):\n"
        "        child()\n"
        "    os.waitpid(pid, 0)\n"
        "    print(call(delayed(len)(array) for _ in range(4)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60
    )

    assert (ran.stdout, ran.stderr) == ("[100, 100, 100, 100]\n", "")
    assert os.listdir(tmp_path) == []


def test_a_fork_server_that_is_killed_in_the_midst_of_a_call_costs_what_ran(monkeypatch, tmp_path):
    for kind in ("memfd-forkserver", "portable-forkserver"):
        for name, value in KINDS[kind].items():
            monkeypatch.setenv(name, value)

        def start_and_wait(number, folder):
            child = subprocess.Popen(["sleep", "60"])
            (folder / str(child.pid)).touch()
            child.wait()

        def kill_once_they_run(folder, server):
            if ended(lambda: len(list(folder.iterdir())) == 2):
                os.kill(server, signal.SIGKILL)

        folder = tmp_path / kind
        folder.mkdir()
        values(abs, [(1,)] * 4, "processes")
        begun = time.monotonic()
        killer = threading.Thread(target=kill_once_they_run, args=(folder, the_pool().server_pid()))
        killer.start()
        rows = [(number, folder) for number in range(2)]
        found = outcomes(start_and_wait, rows, "processes", batch=1, on_error="collect")
        killer.join()

        assert time.monotonic() - begun < 2
        assert all(isinstance(found[number].exception, WorkerDied) for number in range(2))
        assert ended(lambda folder=folder: all(is_over(int(path.name)) for path in folder.iterdir()), 1)
        assert values(abs, [(-n,) for n in range(50)], "processes") == list(range(50))
