import traceback

import pytest

from ipyparcache.digest import openfiles
from ipyparcache.kernel.running import leave_out_own_frames, run_to_completion


def test_a_traceback_shows_no_function_that_stands_for_another(tmp_path):
    missing = str(tmp_path / "missing")
    try:
        with openfiles.watch():
            import os

            try:
                os.stat(missing)
            except OSError as first:
                raise ValueError("second") from first
    except ValueError as caught:
        error = caught
    shorter = leave_out_own_frames(error, error.__traceback__)

    assert error.__traceback__ is shorter
    for shown in (shorter, error.__cause__.__traceback__):
        assert [frame.filename for frame in traceback.extract_tb(shown)] == [__file__]


def test_a_traceback_without_such_functions_is_left_alone():
    try:
        raise KeyError("x")
    except KeyError as caught:
        error = caught

    assert leave_out_own_frames(error, error.__traceback__) is error.__traceback__
    assert leave_out_own_frames(None, None) is None


def test_a_stop_iteration_of_a_cell_leaves_its_coroutine_as_it_is():
    async def cell():
        raise StopIteration(3)

    with pytest.raises(StopIteration) as caught:
        run_to_completion(cell())

    assert caught.value.value == 3


def test_an_error_of_a_cell_that_a_stop_iteration_caused_stays_what_it_is():
    async def cell():
        raise RuntimeError("of the cell") from StopIteration()

    with pytest.raises(RuntimeError, match="of the cell"):
        run_to_completion(cell())
