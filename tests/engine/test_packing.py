"""What a call sends: the arguments of a batch as columns."""

from __future__ import annotations

import gc
import pickle

import numpy as np
import pytest

import ipyparcache
from ipyparcache.engine.packing import _Stack, _stacked, columns_of


def test_rows_are_turned():
    assert columns_of([(1, "a"), (2, "b")]) == [(1, 2), ("a", "b")]
    assert columns_of([(), ()]) == []


def test_rows_that_differ_in_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        columns_of([(1,), (1, 2)])
    with pytest.raises(ValueError, match="differ in length"):
        columns_of([(1, 2), (1, 2), (1,)])


def test_turning_many_rows_does_not_call_the_garbage_collector():
    rows = [(number,) for number in range(4096)]
    begun: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            begun.append(info["generation"])

    gc.collect()
    gc.callbacks.append(note)
    try:
        for _ in range(20):
            columns_of(rows)
    finally:
        gc.callbacks.remove(note)
    assert len(begun) <= 2


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


ONE = np.arange(3.0)
ALONE = {
    "shapes": [np.zeros(3), np.zeros(4)],
    "types": [np.zeros(3), np.zeros(3, "f4")],
    "read-only": [_read_only(np.zeros(3)), np.zeros(3)],
    "columns first": [np.zeros((3, 2), order="F"), np.ones((3, 2), order="F")],
    "strided": [np.arange(6)[::2], np.arange(6)[::2].copy()],
    "no dimension": [np.array(1), np.array(2)],
    "the same one": [ONE, ONE],
    "dates": [np.zeros(2, "M8[s]"), np.ones(2, "M8[s]")],
    "text": [np.array(["a"]), np.array(["b"])],
    "records": [np.zeros(2, [("a", "i4")]), np.ones(2, [("a", "i4")])],
    "metadata": [np.zeros(2, np.dtype("f8", metadata={"unit": 1})) for _ in range(2)],
    "derived": [np.ma.masked_array([1.0]), np.ma.masked_array([2.0])],
    "no array": [np.zeros(1), [0.0]],
    "as large as what is shared": [np.zeros(1 << 16), np.zeros(1 << 16)],
    "a single one": [np.zeros(3)],
    "numbers": [1, 2],
}
TOGETHER = {
    "one dimension": [np.arange(3.0), np.ones(3)],
    "two": [np.arange(6).reshape(2, 3), np.ones((2, 3), int)],
    "empty": [np.zeros((0, 3)), np.zeros((0, 3))],
    "truth": [np.array([True]), np.array([False])],
    "complex": [np.array([1j]), np.array([2j])],
    "parts of one": list(np.arange(12, dtype="i2").reshape(4, 3)),
}


@pytest.mark.parametrize("column", ALONE.values(), ids=ALONE.keys())
def test_a_column_that_would_arrive_otherwise_is_not_stacked(column):
    column = tuple(column)
    assert _stacked(column) is column


@pytest.mark.parametrize("column", TOGETHER.values(), ids=TOGETHER.keys())
def test_arrays_of_one_shape_arrive_as_if_each_were_sent_alone(column):
    stack = _stacked(tuple(column))
    assert type(stack) is _Stack
    found = pickle.loads(pickle.dumps(stack, 5))
    assert type(found) is list
    for array, before in zip(found, column, strict=True):
        alone = pickle.loads(pickle.dumps(before, 5))
        assert (type(array), array.dtype, array.shape) == (type(alone), alone.dtype, alone.shape)
        assert array.flags.carray
        assert alone.flags.carray
        np.testing.assert_array_equal(array, before)


def test_what_a_task_writes_into_its_array_no_other_sees():
    def doubled(array, factor):
        array *= factor
        return array

    before = [np.full(1000, float(number)) for number in range(300)]
    found = ipyparcache.Parallel(n_jobs=2)(ipyparcache.delayed(doubled)(array, 2) for array in before)

    assert [array[0] for array in before] == list(range(300))
    for number, array in enumerate(found):
        np.testing.assert_array_equal(array, np.full(1000, 2.0 * number))
