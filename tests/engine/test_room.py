"""Drills without room: no shared memory, little of it, none on disk, and too little memory altogether.

Each runs a script of its own, in a file system that looks so to it alone.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PORTABLE = {"IPYPARCACHE_TRANSPORT": "portable"}
CALLS = """
    import os, sys, numpy as np
    from ipyparcache.engine import folders
    from ipyparcache.engine.pool import shutdown_workers
    from ipyparcache.parallel.dispatch import Options, run_tasks

    def values(function, rows, **options):
        found = dict(run_tasks(function, rows, Options(n_jobs=2, **options)))
        return [found[number].unwrap() for number in range(len(found))]

    def total(array):
        return float(array.sum())
"""
FINISH = """
    shutdown_workers()
    print("done", *folders.in_use())
"""


def can_mount():
    """Whether this user may have mounts of its own that do not hide this interpreter."""
    if sys.platform != "linux" or any(path.startswith("/tmp/") for path in (__file__, sys.prefix)):
        return False
    try:
        probe = subprocess.run(
            ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
        )
    except OSError:
        return False
    return probe.returncode == 0


mounts = pytest.mark.skipif(not can_mount(), reason="needs mounts of its own, not over its own folder")


def run(script, *commands, **environment):
    """Run a script behind shell commands in a mount namespace of its own; what it printed last."""
    code = textwrap.dedent(CALLS) + textwrap.dedent(script) + textwrap.dedent(FINISH)
    shell = " && ".join([*commands, 'exec "$0" -c "$1"'])
    found = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, sys.executable, code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


SOME_CALLS = """
    array = np.ones(4_000_000)
    assert values(total, [(array,)] * 4) == [4e6] * 4
    assert values(total, [(np.full(50_000, n),) for n in range(40)]) == [50_000.0 * n for n in range(40)]
    assert [one[-1] for one in values(np.arange, [(2_000_000 + n,) for n in range(4)])] == [
        1_999_999 + n for n in range(4)
    ]
"""


@mounts
@pytest.mark.parametrize("environment", [{}, PORTABLE], ids=["memfd", "portable"])
@pytest.mark.parametrize(
    "mount",
    ["mount -t tmpfs -o ro none /dev/shm", "mount -t tmpfs -o size=64m none /dev/shm"],
    ids=["no shared memory", "64 MB of it"],
)
def test_calls_work_without_shared_memory_by_name(mount, environment):
    where = "assert all(not path.startswith('/dev/shm') for path in folders.in_use()), folders.in_use()\n"

    assert run(SOME_CALLS + "    " + where, mount, **environment) == "done\n"


@mounts
@pytest.mark.parametrize("environment", [{}, PORTABLE], ids=["memfd", "portable"])
def test_calls_work_without_a_temporary_folder(environment):
    read_only = ["mount -t tmpfs -o ro none /tmp", "mount -t tmpfs -o ro none /var/tmp"]

    assert run(SOME_CALLS, *read_only, **environment, TMPDIR="/proc") == "done\n"


@mounts
def test_what_does_not_fit_into_shared_memory_lies_on_disk():
    script = """
    room = os.statvfs("/dev/shm")
    assert values(abs, [(-1,)] * 2) == [1, 1]
    assert folders.in_use()[0].startswith("/dev/shm/")
    filler = open("/dev/shm/filler", "wb")
    room = os.statvfs("/dev/shm")
    os.posix_fallocate(filler.fileno(), 0, (room.f_bavail - 16) * room.f_frsize)
    array = np.ones(4_000_000)
    assert values(total, [(array,)] * 4) == [4e6] * 4
    assert values(total, [(np.full(50_000, n),) for n in range(40)]) == [50_000.0 * n for n in range(40)]
    found = dict(run_tasks(np.ones, [(2_000_000,)], Options(n_jobs=2)))
    assert isinstance(found[0].exception, OSError), found
    filler.close()
    os.unlink("/dev/shm/filler")
    assert [one.sum() for one in values(np.ones, [(2_000_000,)] * 2)] == [2e6] * 2
    """

    assert run(script, "mount -t tmpfs -o size=300m none /dev/shm", **PORTABLE) == "done\n"


@pytest.mark.slow
def test_a_task_that_the_kernel_kills_for_its_memory_is_named():
    group = Path(f"/sys/fs/cgroup/memory/ipyparcache-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("needs a memory cgroup of its own")
    try:
        (group / "memory.limit_in_bytes").write_text(str(300 << 20))
        script = """
        from ipyparcache.errors import WorkerDied

        def hoard(number):
            return len(np.ones(80_000_000)) if number == 3 else number

        rows = [(n,) for n in range(10)]
        found = dict(run_tasks(hoard, rows, Options(n_jobs=2, batch=1, on_error="collect")))
        error = found.pop(3).exception
        assert isinstance(error, WorkerDied) and error.signal == 9, error
        assert [one.unwrap() for one in found.values()] and len(found) == 9
        assert values(abs, [(-1,)] * 4) == [1] * 4
        """
        code = textwrap.dedent(CALLS) + textwrap.dedent(script) + textwrap.dedent(FINISH)
        shell = f'echo $$ > {group}/cgroup.procs && exec "$0" -c "$1"'
        found = subprocess.run(
            ["sh", "-c", shell, sys.executable, code],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (found.returncode, found.stdout) == (0, "done\n"), found.stderr
    finally:
        group.rmdir()
