import traceback

from ipyparcache.digest import openfiles
from ipyparcache.kernel.running import leave_out_own_frames


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
