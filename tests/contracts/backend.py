"""What every backend must show when the dispatch runs tasks on it. A subclass gives a fixture `backend`."""

import sys
import threading
import time

import pytest

from ipyparcache.engine.outcome import Error, Value
from ipyparcache.engine.worker import current_task, emit
from ipyparcache.errors import TaskExit
from ipyparcache.parallel.dispatch import Emitted, Options, run_tasks


class Odd(Exception):
    """Its `__init__` does not take what its `args` hold, as many classes of users do not."""

    def __init__(self, what, number):
        super().__init__(f"{what} {number}")
        self.number = number


def double(number):
    return 2 * number


def fail_at(number, bad):
    if number == bad:
        raise Odd("task", number)
    return number


def outcomes(function, rows, backend, **options):
    return dict(run_tasks(function, rows, Options(n_jobs=2, backend=backend, **options)))


def values(function, rows, backend, **options):
    found = outcomes(function, rows, backend, **options)
    return [found[index].unwrap() for index in range(len(found))]


class BackendContract:
    def test_each_task_runs_once_and_its_value_comes_back(self, backend):
        assert values(double, ((n,) for n in range(3000)), backend) == [2 * n for n in range(3000)]

    def test_no_tasks_are_no_outcomes(self, backend):
        assert outcomes(double, [], backend) == {}

    def test_tasks_without_arguments_run(self, backend):
        assert values(list, [()] * 5, backend) == [[]] * 5

    def test_values_of_any_size_and_kind_come_back(self, backend):
        made = [None, 1.5, "é" * 100_000, {"a": [1]}, b"x" * 3_000_000, 10**5000, float("inf"), (1, None)]

        assert values(lambda at: made[at], [(at,) for at in range(len(made))], backend) == made

    def test_arguments_are_drawn_as_they_are_wanted(self, backend):
        drawn = []

        def rows():
            for number in range(10_000):
                drawn.append(number)
                yield (number,)

        run = run_tasks(double, rows(), Options(n_jobs=2, backend=backend, batch=1))
        next(run)
        run.close()

        assert len(drawn) < 20

    def test_what_the_iterable_raises_reaches_the_caller(self, backend):
        def rows():
            yield (1,)
            raise LookupError("no more")

        with pytest.raises(LookupError, match="no more"):
            outcomes(double, rows(), backend)

    def test_an_error_keeps_its_class_its_attributes_and_the_text_of_its_traceback(self, backend):
        error = outcomes(fail_at, [(1, 1)], backend)[0]

        assert isinstance(error, Error)
        assert type(error.exception) is Odd
        assert (str(error.exception), error.exception.number) == ("task 1", 1)
        assert 'raise Odd("task", number)' in error.traceback
        assert "run_batch" not in error.traceback

    def test_collect_runs_all_others(self, backend):
        found = outcomes(fail_at, [(n, 3) for n in range(50)], backend, on_error="collect")

        assert [n for n in range(50) if isinstance(found[n], Error)] == [3]
        assert sorted(found) == list(range(50))

    def test_raise_begins_nothing_more_but_finishes_what_comes_before(self, backend):
        found = outcomes(fail_at, ((n, 30) for n in range(100_000)), backend, batch=1)

        assert len(found) < 1000
        assert set(range(31)) <= set(found)
        assert isinstance(found[30], Error)

    def test_exit_and_interrupt_in_a_task_do_not_end_the_caller(self, backend):
        def leave(number):
            if number:
                raise KeyboardInterrupt
            sys.exit(3)

        found = outcomes(leave, [(0,), (1,)], backend, on_error="collect")

        for outcome in found.values():
            with pytest.raises(TaskExit):
                outcome.unwrap()

    def test_a_task_that_fails_is_tried_again_as_often_as_asked(self, backend, tmp_path):
        def fail_twice(folder):
            made = len(list(folder.iterdir()))
            (folder / str(made)).touch()
            if made < 2:
                raise OSError("not yet")
            return made

        assert values(fail_twice, [(tmp_path,)], backend, retries=2) == [2]
        assert len(list(tmp_path.iterdir())) == 3

    def test_output_of_attempts_that_failed_is_dropped(self, backend, tmp_path):
        def fail_once(folder):
            emit(b"tried")
            made = len(list(folder.iterdir()))
            (folder / str(made)).touch()
            if made == 0:
                raise OSError("not yet")

        seen = []
        options = Options(n_jobs=2, backend=backend, retries=1)
        list(run_tasks(fail_once, [(tmp_path,)], options, on_event=lambda index, event: seen.append(event)))

        assert seen == [Emitted(b"tried")]

    def test_a_task_knows_its_number(self, backend):
        assert values(current_task, [()] * 20, backend) == list(range(20))
        assert current_task() is None

    def test_events_of_a_task_come_before_its_outcome_and_in_order(self, backend):
        def tell(number):
            emit(b"%d a" % number)
            emit(b"%d b" % number)

        log = []
        options = Options(n_jobs=2, backend=backend)
        for index, _ in run_tasks(
            tell, [(n,) for n in range(20)], options, on_event=lambda index, event: log.append((index, event))
        ):
            log.append((index, "done"))

        for number in range(20):
            assert [what for index, what in log if index == number] == [
                Emitted(b"%d a" % number), Emitted(b"%d b" % number), "done"
            ]  # fmt: skip

    def test_a_cancelled_call_begins_nothing_more(self, backend):
        cancelled = threading.Event()
        found = []
        for outcome in run_tasks(
            double, ((n,) for n in range(10**9)), Options(n_jobs=2, backend=backend), cancelled=cancelled
        ):
            found.append(outcome)
            cancelled.set()

        assert len(found) < 100_000
        assert values(double, [(4,)], backend) == [8]

    def test_a_closed_call_leaves_the_backend_usable(self, backend):
        run = run_tasks(double, ((n,) for n in range(10**9)), Options(n_jobs=2, backend=backend))
        next(run)
        run.close()

        assert values(double, [(4,)], backend) == [8]

    def test_calls_from_several_threads_do_not_meet(self, backend):
        found = {}

        def call(base):
            found[base] = values(double, [(base + n,) for n in range(200)], backend)

        threads = [threading.Thread(target=call, args=(1000 * n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert found == {1000 * n: [2 * (1000 * n + m) for m in range(200)] for n in range(3)}

    def test_run_times_and_the_worker_are_told(self, backend):
        before = time.monotonic()
        found = outcomes(time.sleep, [(0.01,)], backend)[0]

        assert isinstance(found, Value)
        assert 0.01 <= found.seconds < 5
        assert before <= found.started <= time.monotonic()

    def test_progress_counts_every_task(self, backend):
        counted = []
        list(
            run_tasks(
                double,
                [(n,) for n in range(500)],
                Options(n_jobs=2, backend=backend),
                progress=lambda count, seconds, worker: counted.append(count),
            )
        )

        assert sum(counted) == 500
