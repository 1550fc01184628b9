import math
import time

import pytest

from ipyparcache.engine.backends.base import crew_factory
from ipyparcache.engine.worker import PROMPT_AFTER
from ipyparcache.parallel.dispatch import (
    CHUNK,
    LARGEST,
    LONG_TARGET,
    TARGET,
    Options,
    Pace,
    Source,
    run_tasks,
    usual_seconds,
)
from tests.conftest import ended


def test_the_first_batch_of_unknown_tasks_is_one_task():
    assert Pace(lanes=2, fixed=None).size(left=None) == 1


def test_short_tasks_go_in_large_batches_after_they_were_measured():
    pace = Pace(lanes=2, fixed=None)
    sizes = []
    for _ in range(4):
        pace.note(1, 1e-7)
        sizes.append(pace.size(left=None))

    assert sizes == sorted(sizes)
    assert sizes[-1] == LARGEST


def test_a_batch_runs_about_as_long_as_it_should():
    pace = Pace(lanes=2, fixed=None, prompt=True)
    pace.note(10, 10 * TARGET / 8)

    assert pace.size(left=None) == 8


def test_batches_grow_with_the_call_unless_results_are_waited_for():
    patient, prompt = Pace(lanes=2, fixed=None), Pace(lanes=2, fixed=None, prompt=True)
    for pace in (patient, prompt):
        pace.note(10, 10 * TARGET / 8)
        pace.begun -= 1000
        pace.size(left=None)  # no batch is much larger than the one before

    assert prompt.size(left=None) == 8
    assert patient.size(left=None) == 8 * LONG_TARGET / TARGET


def test_long_tasks_go_one_by_one():
    pace = Pace(lanes=2, fixed=None)
    pace.note(1, 1.0)

    assert pace.size(left=1000) == 1


def test_batches_shrink_towards_the_end_but_not_below_what_sending_costs():
    pace = Pace(lanes=2, fixed=None)
    for _ in range(3):
        pace.note(1000, 1e-6 * 1000)
        pace.size(left=None)

    assert [pace.size(left=left) for left in (12_000, 3_000, 600, 12)] == [3000, 2000, 2000, 2000]


def test_a_time_that_is_unknown_changes_nothing():
    pace = Pace(lanes=1, fixed=None)
    pace.note(3, math.nan)

    assert pace.mean() is None


def test_tasks_with_large_arguments_go_in_small_batches():
    np = pytest.importorskip("numpy")
    pace = Pace(lanes=1, fixed=None)
    pace.note_row((np.zeros(50_000), 1))
    for _ in range(3):
        pace.note(1000, 1e-6)

    assert pace.size(left=None) == 2


def test_triples_of_one_function_become_plain_rows():
    source = Source([(abs, (-n,), {}) for n in range(4)], triples=True)
    source.peek_function()
    batch = source.draw(10)

    assert (batch.triples, list(batch.rows)) == (False, [(0,), (-1,), (-2,), (-3,)])


def test_triples_with_keywords_or_other_functions_stay_triples():
    for rows in ([(max, ([],), {"default": 1})], [(abs, (1,), {}), (max, ((1, 2),), {})]):
        source = Source(rows, triples=True)
        source.peek_function()

        assert source.draw(10).triples


def test_a_batch_whose_tasks_turn_out_to_differ_is_made_of_triples():
    rows = [(abs, (-n,), {}) for n in range(2 * CHUNK)] + [(max, ([],), {"default": 1})]
    source = Source(iter(rows), triples=True)
    source.peek_function()
    batch = source.draw(10 * CHUNK)

    assert batch.triples
    assert list(batch.rows) == rows
    assert source.exhausted


def test_a_result_does_not_wait_for_the_tasks_behind_it_where_it_is_wanted(tmp_path):
    def wait_for_the_reader(number):
        time.sleep(2 * PROMPT_AFTER)
        while number == 1 and not (tmp_path / "read").exists():
            time.sleep(0.001)
        return number

    options = Options(n_jobs=1, batch=2, prompt=True)
    for number, outcome in run_tasks(wait_for_the_reader, [(0,), (1,)], options):
        assert outcome.unwrap() == number
        (tmp_path / "read").touch()


def test_a_source_knows_what_is_left_of_a_list_but_not_of_a_generator():
    source = Source([(1,), (2,), (3,)])
    source.draw(1)

    assert source.left() == 2
    assert Source(iter([(1,)])).left() is None


def test_an_unknown_backend_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"Invalid backend: 'gpu'.*processes"):
        crew_factory("gpu")


def test_the_first_batch_of_a_known_function_goes_by_its_last_call():
    def function():
        pass

    pace = Pace(lanes=2, fixed=None, function=function)
    pace.note(1000, 1e-3)
    pace.remember()

    assert Pace(lanes=2, fixed=None, function=function).size(left=None) > 1
    assert Pace(lanes=2, fixed=None, function=lambda: None).size(left=None) == 1


@pytest.mark.parametrize("backend", ["processes", "threads"])
def test_what_waits_behind_a_long_task_is_taken_over_by_idle_workers(backend, tmp_path):
    def note(number, all_others):
        """Leave a file; the long task ends when those of all others are there."""
        (tmp_path / str(number)).touch()
        return ended(lambda: len(list(tmp_path.iterdir())) > all_others)

    options = Options(n_jobs=2, backend=backend)
    list(run_tasks(note, [(0, 0)] * 100, options))  # from now on these tasks are held to be short
    found = dict(run_tasks(note, [(0, 10)] + [(number, 0) for number in range(1, 11)], options))

    assert found[0].unwrap()
    assert len(found) == 11


def test_a_batch_larger_than_a_slot_is_cut():
    found = dict(run_tasks(abs, [(-n,) for n in range(50_000)], Options(n_jobs=2, batch=50_000)))

    assert [found[n].unwrap() for n in range(50_000)] == list(range(50_000))


def test_a_batch_that_was_interrupted_by_other_processes_is_measured_without_them():
    times = [0.0]
    for number in range(100):
        times.append(times[-1] + (5.0 if number == 70 else 0.01))

    assert usual_seconds(times) == pytest.approx(1.0)
    assert usual_seconds([0.0, 1.0, 5.0]) == 5.0
