from __future__ import annotations

import json
import mmap
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ipyparcache.digest import arrays, pages
from ipyparcache.digest.arrays import contents_of
from ipyparcache.digest.objects import Traversal, digest_of

MANY = 1 << 18  # numbers: 2 MiB


class Restored:
    """Objects that went through a file, their buffers mapped from it privately."""

    def __init__(self, value: object, folder: Path, with_contents: bool = True):
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
        contents = json.loads(json.dumps(contents_of(buffers)))
        self.maps: list[mmap.mmap] = []
        mapped = []
        for number, buffer in enumerate(buffers):
            path = folder / str(number)
            path.write_bytes(buffer.raw())
            with path.open("rb") as file:
                self.maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            mapped.append(memoryview(self.maps[-1]))
        pages.note_contents(mapped, contents if with_contents else [])
        self.value: Any = pickle.loads(pickled, buffers=mapped)


@pytest.fixture
def pieces_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the arrays whose memory was read."""
    read: list[int] = []
    plain = arrays._pieces

    def counted(array: Any) -> Any:
        read.append(array.nbytes)
        return plain(array)

    monkeypatch.setattr(arrays, "_pieces", counted)
    return read


@pytest.mark.parametrize(
    "value",
    [
        np.arange(float(MANY)),
        np.where(np.arange(MANY) % 2, np.nan, 1.0),
        np.asfortranarray(np.arange(MANY).reshape(2, -1)),
        pd.DataFrame({str(n): np.arange(float(MANY)) + n for n in range(3)}).copy(),
    ],
    ids=["numbers", "with NaN", "Fortran order", "frame"],
)
def test_an_array_from_an_entry_is_not_read_again(
    value: object, tmp_path: Path, pieces_read: list[int]
) -> None:
    expected = digest_of(value)
    restored = Restored(value, tmp_path)
    pieces_read.clear()

    assert digest_of(restored.value) == expected
    assert sum(pieces_read) < 100


def test_an_array_that_was_written_is_read(tmp_path: Path, pieces_read: list[int]) -> None:
    restored = Restored(np.arange(float(MANY)), tmp_path)
    before = digest_of(restored.value)
    traversal = Traversal({})
    traversal.add("x", restored.value)

    restored.value[12345] = -1

    assert digest_of(restored.value) != before
    assert traversal.changed() == [("x", 0)]
    restored.value[12345] = 12345
    assert digest_of(restored.value) == before


def test_one_written_column_leaves_the_others_unread(tmp_path: Path, pieces_read: list[int]) -> None:
    frame = pd.DataFrame({str(n): np.arange(float(MANY)) + n for n in range(4)}).copy()
    restored = Restored(frame, tmp_path)
    digest_of(restored.value)
    pieces_read.clear()
    [block] = [np.asarray(restored.value["1"])]
    block.flags.writeable = True
    block[7] = -1

    assert digest_of(restored.value) != digest_of(frame.copy())
    assert len([size for size in pieces_read if size == 8 * MANY]) <= 5  # one of these, four of the copy


def test_a_digest_is_learned_at_the_first_reading(tmp_path: Path, pieces_read: list[int]) -> None:
    restored = Restored(np.arange(float(MANY)), tmp_path, with_contents=False)
    first = digest_of(restored.value)
    pieces_read.clear()

    assert digest_of(restored.value) == first
    assert pieces_read == []


def test_where_the_page_table_cannot_be_read_arrays_are(
    tmp_path: Path, pieces_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    restored = Restored(np.arange(float(MANY)), tmp_path)
    monkeypatch.setattr(pages, "is_unwritten", lambda array: False)

    assert digest_of(restored.value) == digest_of(np.arange(float(MANY)))
    assert pieces_read


def test_other_memory_maps_are_always_read(tmp_path: Path, pieces_read: list[int]) -> None:
    shared = np.memmap(tmp_path / "a", float, "w+", shape=(MANY,))
    digest_of(shared)
    pieces_read.clear()

    digest_of(shared)

    assert pieces_read == [8 * MANY] * 2 or pieces_read == [8 * MANY]
    shared._mmap.close()  # type: ignore[attr-defined]


def test_a_large_array_that_is_as_before_is_not_digested_in_full_again(monkeypatch):
    array = np.random.default_rng(0).random(1 << 18)
    digest = arrays.content_digest(array)
    assert arrays.content_digest(array) == digest
    full = arrays._find_content
    monkeypatch.setattr(arrays, "_find_content", None)
    assert arrays.content_digest(array) == digest
    monkeypatch.setattr(arrays, "_find_content", full)

    for place in (5, 6, 7):
        array[place] = 0
        assert arrays.content_digest(array) == arrays.content_digest(array.copy()) != digest


def test_another_nan_in_a_large_array_is_no_other_content():
    array = np.random.default_rng(0).random((1 << 9, 1 << 9)).T
    array[3, 4] = np.nan
    digest = arrays.content_digest(array)
    assert arrays.content_digest(array) == digest

    array.T.view(np.uint64)[4, 3] ^= 1
    assert np.isnan(array[3, 4])

    assert arrays.content_digest(array) == digest
    array[3, 4] = 0
    assert arrays.content_digest(array) != digest


def test_an_array_that_changes_before_it_is_seen_again_is_digested_in_full():
    array = np.random.default_rng(0).random(1 << 18)
    found = []
    for n in range(4):
        array[0] = n
        found.append(arrays.content_digest(array))

    assert len(set(found)) == 4
    assert found[3] == arrays.content_digest(array.copy())
