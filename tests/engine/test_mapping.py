import ctypes
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ipyparcache.engine import mapping
from ipyparcache.engine.larges import digest_of
from ipyparcache.engine.mapping import CHUNK, HUGE, STEP, fill
from ipyparcache.engine.transport import IN_LARGE_PAGES, Shared, anonymous_file, can_memfd, map_shared

pytestmark = pytest.mark.skipif(not can_memfd(), reason="this system has no anonymous files")

SIZES = [IN_LARGE_PAGES, HUGE * 3 + 1, STEP + HUGE - 1, STEP * 2 + 12345]


def array_of(size):
    return np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)


@pytest.fixture(params=["as the system does it", "refused", "slow"])
def system(request, monkeypatch):
    if request.param == "refused":
        real = mapping._libc()
        refusing = SimpleNamespace(mmap=real.mmap, munmap=real.munmap, madvise=lambda *arguments: -1)
        monkeypatch.setattr(mapping, "_libc", lambda: refusing)
    elif request.param == "slow":
        monkeypatch.setattr(mapping, "_QUICK", 1 << 60)
    return request.param


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("writers", [1, 2, 3])
def test_what_is_shared_arrives_whole(system, size, writers):
    array = array_of(size)
    shared = Shared([memoryview(array)], writers)
    try:
        assert sum(shared.sizes) == size
        assert shared.digest() == digest_of(memoryview(array), shared.sizes)
        memory = map_shared(shared.describe(), [os.dup(fd) for fd in shared.passed()])
    finally:
        shared.close()

    assert bytes(memory) == array.tobytes()


def test_what_is_written_to_a_map_stays_there():
    array = array_of(HUGE * 4)
    shared = Shared([memoryview(array)], 2)
    try:
        one, two = (map_shared(shared.describe(), [os.dup(fd) for fd in shared.passed()]) for _ in range(2))
    finally:
        shared.close()
    one[: HUGE + 1] = bytes(HUGE + 1)

    assert bytes(two) == array.tobytes()
    assert bytes(one[HUGE + 1 :]) == array[HUGE + 1 :].tobytes()


def test_a_beginning_that_was_copied_in_large_pages_has_been_seen(system):
    array = array_of(STEP * 2 + HUGE + 5)
    seen = []
    fd = anonymous_file("test", len(array))
    try:
        done = fill(fd, memoryview(array), seen.append)
        found = os.pread(fd, done, 0)
    finally:
        os.close(fd)

    assert {"refused": done == 0, "slow": done == HUGE}.get(system, done % HUGE == 0)
    assert b"".join(seen) == found == array[:done].tobytes()
    assert {len(part) for part in seen} <= {CHUNK}


def test_maps_begin_where_a_large_page_may():
    shared = Shared([memoryview(array_of(HUGE * 4))], 2)
    try:
        memory = map_shared(shared.describe(), [os.dup(fd) for fd in shared.passed()])
    finally:
        shared.close()

    assert ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE == 0


def test_without_numpy_all_is_left_to_be_written(monkeypatch):
    data = bytes(range(256)) * (HUGE // 128)
    monkeypatch.delitem(sys.modules, "numpy")

    assert fill(-1, memoryview(data), print) == 0
