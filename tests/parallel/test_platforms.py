"""Systems without worker processes, without threads, or where the user switched processes off."""

import os
import subprocess
import sys
import textwrap

import pytest

WITHOUT_PROCESSES = """
    import os, sys
    for name in ("posix_spawn", "posix_spawnp", "fork", "forkpty"):
        delattr(os, name)
    sys.modules["_multiprocessing"] = None
    sys.modules["_posixshmem"] = None
"""
WITHOUT_THREADS = """
    import _thread, threading
    def refuse(*args, **kwargs):
        raise RuntimeError("can't start new thread")
    for module in (_thread, threading):
        for start in [name for name in vars(module) if "start_" in name and "thread" in name]:
            setattr(module, start, refuse)
"""
PROGRAM = """
    import warnings
    from math import sqrt
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        import ipyparcache as joblib
        def call(**how):
            return list(joblib.Parallel(n_jobs=2, **how)(joblib.delayed(sqrt)(i * i) for i in range(5)))
        expected = [0.0, 1.0, 2.0, 3.0, 4.0]
        assert call(**HOW) == call(**HOW) == expected
        assert call(return_as="generator", **{**HOW, "backend": "loky"}) == expected
        assert call(prefer="threads") == expected
    memory = joblib.Memory(FOLDER, verbose=0)
    square = memory.cache(lambda x: x * x)
    assert square(4) == square(4) == 16
    assert square.check_call_in_cache(4)
    joblib.dump([1, 2], FOLDER + "/file.gz")
    assert joblib.load(FOLDER + "/file.gz") == [1, 2]
    print(*(one.message for one in told if one.category is UserWarning), sep="\\n")
"""


def said_by(platform, how, folder, **environment):
    given = f"HOW = {how!r}\nFOLDER = {str(folder)!r}\n"
    program = "\n".join([textwrap.dedent(platform), given, textwrap.dedent(PROGRAM)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "IPYPARCACHE_DIR": str(folder), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("how", [{}, {"backend": "loky"}], ids=str)
def test_without_processes_tasks_run_on_threads_with_one_warning(tmp_path, how):
    said = said_by(WITHOUT_PROCESSES, how, tmp_path)

    assert said == ["this system has no worker processes: tasks run on threads"]


def test_without_multiprocessing_its_backend_runs_on_threads(tmp_path):
    how = {"backend": "multiprocessing"}
    said = said_by(WITHOUT_PROCESSES, how, tmp_path)

    assert "this system has no multiprocessing: tasks run on threads" in said


def test_without_threads_tasks_run_one_by_one_with_one_warning(tmp_path):
    said = said_by(WITHOUT_PROCESSES + WITHOUT_THREADS, {}, tmp_path)

    assert said == ["this system has neither worker processes nor threads: tasks run one by one"]


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_processes_that_the_user_switched_off_are_not_started(tmp_path, backend):
    said = said_by("", {"backend": backend}, tmp_path, JOBLIB_MULTIPROCESSING="0")

    assert said
    assert all(line.endswith("with JOBLIB_MULTIPROCESSING=0, setting n_jobs=1") for line in said)
