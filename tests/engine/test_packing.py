"""What a call sends: the arguments of a batch as columns."""

from __future__ import annotations

import gc

import pytest

from ipyparcache.engine.packing import columns_of


def test_rows_are_turned():
    assert columns_of([(1, "a"), (2, "b")]) == [(1, 2), ("a", "b")]
    assert columns_of([(), ()]) == []


def test_rows_that_differ_in_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        columns_of([(1,), (1, 2)])


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
