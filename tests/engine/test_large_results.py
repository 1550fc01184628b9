"""Large results come in memory files of their own: whole, writable, and without anything left behind."""

import gc
import os
import resource
import sys

import numpy as np
import psutil
import pytest

from ipyparcache import Parallel, delayed
from ipyparcache.engine import mapping
from ipyparcache.engine.outcome import Error
from ipyparcache.engine.pool import the_pool
from ipyparcache.engine.transport import IN_LARGE_PAGES
from ipyparcache.errors import WorkerDied
from tests.contracts.backend import outcomes, values

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory files are passed on Linux only")

SIZE = IN_LARGE_PAGES // 8  # numbers of 8 bytes: the smallest array that comes so


def files_open():
    """Descriptors of memory files with results in this process."""
    gc.collect()
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue  # the listing's own
    return [name for name in names if "ipyparcache-result" in name]


def maps():
    """Maps of such files."""
    gc.collect()
    return [
        one.path for one in psutil.Process().memory_maps(grouped=False) if "ipyparcache-result" in one.path
    ]


@pytest.mark.parametrize("extra", [0, 1, 300_000])
def test_they_arrive_whole_and_can_be_written_to(extra):
    def make(number):
        return np.arange(SIZE + extra, dtype=float) * number

    found = values(make, [(n,) for n in range(6)], "processes")

    for number, array in enumerate(found):
        assert np.array_equal(array, make(number))
        array += 1
        assert array[3] == 3 * number + 1
    assert files_open() == []


def test_their_memory_goes_with_them():
    found = values(lambda n: np.full(SIZE, n), [(n,) for n in range(4)], "processes")
    assert len(maps()) >= 4
    part = found[2][5:10]
    del found
    assert len(maps()) == 1

    assert list(part) == [2] * 5
    del part
    assert maps() == []


def test_several_in_one_result_keep_their_places():
    def make(number):
        large, small = np.full(SIZE, number), np.full(20_000, -number)
        return {"one": large, "small": small, "two": (large + 1)[::-1], "same": large, "text": "x" * 100_000}

    for number, found in enumerate(values(make, [(n,) for n in range(5)], "processes", batch=5)):
        assert [found[name][0] for name in ("one", "small", "two")] == [number, -number, number + 1]
        assert found["same"] is found["one"]
        assert len(found["text"]) == 100_000


def test_those_before_a_death_are_kept():
    def make(number):
        if number == 3:
            os.kill(os.getpid(), 9)
        return np.full(SIZE, number)

    found = outcomes(make, [(n,) for n in range(5)], "processes", batch=5, on_error="collect")

    assert isinstance(found[3].exception, WorkerDied)
    assert [found[n].unwrap()[-1] for n in (0, 1, 2, 4)] == [0, 1, 2, 4]
    assert files_open() == []


def test_a_result_of_which_a_part_does_not_pickle_leaves_nothing_behind():
    class Stubborn:
        def __reduce_ex__(self, protocol):
            raise ValueError("stays here")

    def make(number):
        return [np.full(SIZE, number), Stubborn() if number == 1 else None]

    found = outcomes(make, [(n,) for n in range(3)], "processes", on_error="collect")

    assert isinstance(found[1].exception, ValueError)
    assert [found[n].unwrap()[0][7] for n in (0, 2)] == [0, 2]
    assert files_open() == []


def test_what_a_dropped_generator_has_not_given_out_is_closed():
    def make(number):
        return np.full(SIZE, number)

    found = Parallel(n_jobs=2, return_as="generator")(delayed(make)(n) for n in range(30))
    assert next(found)[0] == 0
    with pytest.warns(UserWarning, match="dropped before its end"):
        found.close()
    the_pool().settled(set(the_pool().pids()), 3)

    assert values(make, [(n,) for n in range(4)], "processes")[3][0] == 3
    assert files_open() == []


def test_without_free_descriptors_here_the_task_has_an_error_that_says_so():
    def make(number):
        return np.full(SIZE, number)

    assert values(make, [(1,), (2,)], "processes")[1][0] == 2  # the workers are there
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 6, limits[1]))
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        found = outcomes(make, [(n,) for n in range(4)], "processes", on_error="collect")
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert len(found) == 4
    for number, outcome in found.items():
        if isinstance(outcome, Error):
            assert isinstance(outcome.exception, OSError)
        else:
            assert outcome.unwrap()[0] == number
    assert values(make, [(1,), (2,)], "processes")[1][0] == 2


def test_where_no_map_can_be_had_they_are_copied(monkeypatch):
    def refused(files, sizes):
        raise OSError(12, "too many maps")

    monkeypatch.setattr(mapping, "side_by_side", refused)

    assert values(lambda n: np.full(SIZE, n), [(3,), (4,)], "processes")[1][-1] == 4


def test_a_forked_child_keeps_what_its_parent_drops():
    array = values(lambda n: np.full(SIZE, n), [(7,), (8,)], "processes")[0]
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(read, 1)  # until the parent has dropped it
        os._exit(int(array[0] == array[-1] == 7))
    del array
    gc.collect()
    os.write(write, b"x")
    os.close(read)
    os.close(write)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
