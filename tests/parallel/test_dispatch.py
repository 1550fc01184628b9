import math

import pytest

from ipyparcache.engine.backends.base import crew_factory
from ipyparcache.parallel.dispatch import LARGEST, TARGET, Pace, Source


def test_the_first_batch_of_unknown_tasks_is_one_task():
    assert Pace(lanes=2, fixed=None).size(left=None) == 1


def test_short_tasks_go_in_large_batches_after_they_were_measured():
    pace = Pace(lanes=2, fixed=None)
    sizes = []
    for _ in range(4):
        pace.note(1, 1e-6)
        sizes.append(pace.size(left=None))

    assert sizes == sorted(sizes)
    assert sizes[-1] == LARGEST


def test_a_batch_runs_about_as_long_as_it_should():
    pace = Pace(lanes=2, fixed=None)
    pace.note(10, 10 * TARGET / 8)

    assert pace.size(left=None) == 8


def test_long_tasks_go_one_by_one():
    pace = Pace(lanes=2, fixed=None)
    pace.note(1, 1.0)

    assert pace.size(left=1000) == 1


def test_batches_shrink_towards_the_end():
    pace = Pace(lanes=2, fixed=None)
    pace.note(1000, 1e-3)

    assert [pace.size(left=left) for left in (256, 80, 8, 1)] == [32, 10, 1, 1]


def test_a_time_that_is_unknown_changes_nothing():
    pace = Pace(lanes=1, fixed=None)
    pace.note(3, math.nan)

    assert pace.mean() is None


def test_tasks_with_large_arguments_go_in_small_batches():
    np = pytest.importorskip("numpy")
    pace = Pace(lanes=1, fixed=None)
    pace.note_row((np.zeros(1 << 16), 1))
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


def test_a_source_knows_what_is_left_of_a_list_but_not_of_a_generator():
    source = Source([(1,), (2,), (3,)])
    source.draw(1)

    assert source.left() == 2
    assert Source(iter([(1,)])).left() is None


def test_an_unknown_backend_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"Invalid backend: 'gpu'.*processes"):
        crew_factory("gpu")
