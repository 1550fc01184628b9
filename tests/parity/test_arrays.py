"""Arrays as arguments and results of worker processes, as joblib's users send them."""

import mmap
import os
import subprocess
import sys

import numpy as np
import pytest

from ipyparcache import Parallel, delayed

PROCESSES = pytest.mark.parametrize("backend", ["loky", "multiprocessing"])


def total(array):
    return float(np.sum(array))


def fill(array, value):
    before = total(array)
    array[:] = value
    return before, array


def facts(array):
    turned = array.flags.f_contiguous and not array.flags.c_contiguous
    return array.dtype.str, array.shape, turned, array.tolist()


@PROCESSES
@pytest.mark.parametrize("n_jobs", [2, 4])
def test_arrays_that_the_input_makes_and_drops_are_told_apart(backend, n_jobs):
    found = Parallel(n_jobs=n_jobs, backend=backend, max_nbytes=1, mmap_mode="r", pre_dispatch=4)(
        delayed(total)(np.full(100, number)) for number in range(60)
    )

    assert found == [100.0 * number for number in range(60)]


@PROCESSES
@pytest.mark.parametrize("mode", ["r+", "w+", "c"])
def test_each_task_has_an_array_of_its_own_with_what_it_held(backend, mode):
    arrays = [np.ones(50) for _ in range(8)]
    found = Parallel(n_jobs=2, backend=backend, mmap_mode=mode, max_nbytes=0)(
        delayed(fill)(array, number) for number, array in enumerate(arrays)
    )

    assert [before for before, _ in found] == [50.0] * 8
    assert [set(array) for _, array in found] == [{float(number)} for number in range(8)]
    assert {value for array in arrays for value in array} == {1.0}


@PROCESSES
@pytest.mark.parametrize("limit", [None, 1, "1M"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_order_of_bytes_is_kept_both_ways(backend, limit, order):
    array = np.arange(5).astype(f"{order}i4")
    (there,) = Parallel(n_jobs=2, backend=backend, max_nbytes=limit)([delayed(facts)(array)])
    (back,) = Parallel(n_jobs=2, backend=backend, max_nbytes=limit)([delayed(np.asarray)(array)])

    assert there == facts(back) == facts(array)


def views(folder):
    """Arrays over files that are no plain arrays, by name."""
    path = folder / "file"
    size = 5 * mmap.ALLOCATIONGRANULARITY
    offset = mmap.ALLOCATIONGRANULARITY + 1
    whole = np.memmap(path, np.uint8, "w+", shape=offset + size)
    whole[:] = np.arange(offset + size) % 251
    whole.flush()
    with open(path, "rb") as file:
        raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {
        "beyond the granularity": np.memmap(path, np.uint8, "r", offset=offset, shape=(7,)),
        "a part of one": whole[offset + 3 : offset + 10],
        "of two dimensions": whole[:20].reshape(4, 5),
        "with gaps": whole[:40].reshape(4, 10)[:, ::3],
        "over a map of Python's": np.ndarray((10,), np.uint8, buffer=raw),
    }


NAMES = [
    "beyond the granularity",
    "a part of one",
    "of two dimensions",
    "with gaps",
    "over a map of Python's",
]


def view(folder, name):
    return views(folder)[name]


@PROCESSES
@pytest.mark.parametrize("name", NAMES)
def test_views_of_files_come_and_go_as_they_are(backend, name, tmp_path):
    array = views(tmp_path)[name]
    expected = facts(array)
    (there,) = Parallel(n_jobs=2, backend=backend)([delayed(facts)(array)])
    (back,) = Parallel(n_jobs=2, backend=backend)([delayed(view)(tmp_path, name)])

    assert there == facts(back) == expected


def among_others(array):
    return {"whole": array, "parts": [(array[1:], array.astype(">f8"))], "name": "memmap"}


@PROCESSES
@pytest.mark.parametrize("limit", [None, 10])
@pytest.mark.parametrize("size", [5, 200_000])
def test_what_comes_home_inside_of_others_is_a_plain_array(backend, limit, size, tmp_path):
    mapped = np.memmap(tmp_path / "file", float, "w+", shape=size)
    mapped[:] = np.arange(size)
    calls = [delayed(among_others)(one) for one in (mapped, np.arange(100.0))]
    for found, expected in zip(
        Parallel(n_jobs=2, backend=backend, max_nbytes=limit)(calls), (mapped, np.arange(100.0)), strict=True
    ):
        ((part, turned),) = found["parts"]
        assert [type(one) for one in (found["whole"], part, turned)] == [np.ndarray] * 3
        assert (turned.dtype.str, found["whole"].flags.writeable) == (">f8", True)
        for one, other in ((found["whole"], expected), (part, expected[1:]), (turned, expected)):
            np.testing.assert_array_equal(one, other)
    del calls, mapped, expected


@PROCESSES
@pytest.mark.parametrize("limit", [None, 10])
def test_what_comes_home_is_a_plain_array(backend, limit, tmp_path):
    mapped = np.memmap(tmp_path / "file", float, "w+", shape=(4, 5))
    mapped[:] = 1
    calls = [delayed(np.asanyarray)(one) for one in (mapped, mapped[1:, ::2], np.ones((3, 100)))]
    found = Parallel(n_jobs=2, backend=backend, max_nbytes=limit)(calls)

    assert [(type(one), one.sum(), one.flags.writeable) for one in found] == [
        (np.ndarray, 20, True),
        (np.ndarray, 9, True),
        (np.ndarray, 300, True),
    ]
    del calls, mapped


KINDS = {
    "turned and with gaps": np.arange(10).astype(">i4")[::2],
    "backwards": np.arange(10)[::-1],
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "Fortran order": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "one value for all": np.broadcast_to(np.arange(3), (4, 3)),
    "0-d": np.array(3.5),
    "empty": np.empty((0, 3)),
    "records": np.array([(1, 2.5)], dtype=[("a", ">i4"), ("b", "f8")]),
    "dates": np.array(["2020-01-01", "NaT"], "M8[D]"),
    "texts": np.array(["a", "bé"]),
    "objects": np.array([1, "a", None, [1]], object),
    "masked": np.ma.array([1, 2, 3], mask=[0, 1, 0]),
}


def described(array):
    turned = array.flags.f_contiguous and not array.flags.c_contiguous
    return type(array).__name__.replace("memmap", "ndarray"), str(array.dtype), turned, repr(array.tolist())


def described_and_given(values):
    return {name: described(value) for name, value in values.items()}, values


@PROCESSES
@pytest.mark.parametrize("limit", [None, 0, "1M"])
def test_arrays_of_every_kind_come_and_go(backend, limit):
    expected = {name: described(value) for name, value in KINDS.items()}
    ((there, back),) = Parallel(n_jobs=2, backend=backend, max_nbytes=limit)(
        [delayed(described_and_given)(KINDS)]
    )

    assert there == expected
    assert {name: described(value) for name, value in back.items()} == expected


@PROCESSES
def test_objects_of_the_program_go_beside_arrays_in_files(backend, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import numpy as np\n"
        "from ipyparcache import Parallel, delayed\n"
        "class Holding:\n"
        "    def __init__(self, array):\n"
        "        self.array = array\n"
        "    def doubled(self):\n"
        "        return Holding(self.array * 2)\n"
        "if __name__ == '__main__':\n"
        f"    call = Parallel(n_jobs=2, backend={backend!r}, max_nbytes=10)\n"
        "    found = call(delayed(Holding(np.ones(100)).doubled)() for _ in range(3))\n"
        "    print([type(one) is Holding for one in found], found[0].array.sum())\n"
    )
    ran = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120)

    assert (ran.stdout, ran.stderr) == ("[True, True, True] 200.0\n", "")


# ---- in files, where that is asked for


def where(array):
    return array.filename if isinstance(array, np.memmap) else None


def test_an_array_is_written_once_and_each_call_has_a_folder_of_its_own(tmp_path):
    array, equal = np.ones(1000), np.ones(1000)
    call = Parallel(n_jobs=2, max_nbytes=10, temp_folder=tmp_path)
    files = call(delayed(where)(one) for one in (array, array, equal))
    (later,) = call([delayed(where)(array)])

    assert files[0] == files[1] != files[2]
    folders = {os.path.dirname(file) for file in (files[0], later)}
    assert len(folders) == 2
    assert {os.path.dirname(folder) for folder in folders} == {str(tmp_path)}


def test_a_managed_call_keeps_its_folder(tmp_path):
    array = np.ones(1000)
    with Parallel(n_jobs=2, max_nbytes=10, temp_folder=tmp_path) as call:
        files = [call([delayed(where)(array)])[0] for _ in range(2)]
        assert os.listdir(tmp_path) == [os.path.basename(os.path.dirname(files[0]))]
    assert files[0] == files[1]
    assert os.listdir(tmp_path) == []


def test_files_lie_where_each_call_says(tmp_path, monkeypatch):
    array = np.ones(1000)
    places = [tmp_path / name for name in ("first", "second", "environment")]
    monkeypatch.setenv("JOBLIB_TEMP_FOLDER", str(places[2]))
    files = [
        Parallel(n_jobs=2, max_nbytes=10, temp_folder=place)([delayed(where)(array)])[0]
        for place in (*places[:2], None)
    ]

    assert [os.path.dirname(os.path.dirname(file)) for file in files] == list(map(str, places))


def modes(array):
    return [os.stat(path).st_mode & 0o777 for path in (array.filename, os.path.dirname(array.filename))]


def test_files_are_the_users_alone():
    assert Parallel(n_jobs=2, max_nbytes=10)([delayed(modes)(np.ones(1000))]) == [[0o600, 0o700]]


def test_no_mapping_at_all_is_no_mapping():
    assert Parallel(n_jobs=2, max_nbytes=10, mmap_mode=None)([delayed(where)(np.ones(1000))]) == [None]


@pytest.mark.parametrize(
    ("limit", "mapped"),
    [
        ("1K", True),
        ("1.5M", False),
        ("2G", False),
        (7999, True),
        (8000.5, True),
        (8001, False),
        (None, False),
    ],
)
def test_a_limit_is_a_number_or_a_text(limit, mapped):
    (found,) = Parallel(n_jobs=2, max_nbytes=limit, mmap_mode="r")([delayed(where)(np.ones(1000))])

    assert (found is not None) is bool(mapped)


def test_a_limit_that_is_no_size_is_told():
    with pytest.raises(ValueError, match="size"):
        Parallel(n_jobs=2, max_nbytes="x")([delayed(abs)(1)] * 2)
