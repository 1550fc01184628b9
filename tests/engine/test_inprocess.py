import threading

import pytest

from ipyparcache.engine.backends.inprocess import ThreadCrew
from ipyparcache.engine.batches import CallOptions
from ipyparcache.engine.outcome import Error
from ipyparcache.errors import TaskTimeout
from tests.contracts.backend import BackendContract, outcomes, values


class TestThreads(BackendContract):
    @pytest.fixture
    def backend(self):
        return "threads"


class TestSequential(BackendContract):
    @pytest.fixture
    def backend(self):
        return "sequential"


def test_threads_see_the_callers_objects():
    seen = set()

    values(seen.add, [(n,) for n in range(100)], "threads")

    assert seen == set(range(100))


def test_threads_end_with_a_call_that_an_interrupt_left_unclosed():
    crew = ThreadCrew(abs, 2, CallOptions(on_event=lambda index, event: None))
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("ipyparcache-task-")]
    assert len(threads) == 2
    del crew

    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


def test_a_thread_that_is_late_is_given_up_and_the_others_go_on():
    release = threading.Event()

    def wait(number):
        if number == 1:
            release.wait()
        return number

    found = outcomes(wait, [(n,) for n in range(6)], "threads", timeout=0.1, on_error="collect")
    release.set()

    assert isinstance(found[1], Error)
    assert isinstance(found[1].exception, TaskTimeout)
    assert [found[n].unwrap() for n in (0, 2, 3, 4, 5)] == [0, 2, 3, 4, 5]
