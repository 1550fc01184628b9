import bz2
import decimal
import gzip
import io
import lzma
import mmap
import os
import pickle
import random
import socket
import threading
import warnings
import zlib
from pathlib import Path

import joblib
import numpy as np
import pytest

from ipyparcache import dump, load
from ipyparcache.errors import DamagedFile
from ipyparcache.storage import fileformat

ARRAYS = {
    "C order": np.arange(12.0).reshape(3, 4),
    "Fortran order": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "a view with gaps": np.arange(24).reshape(4, 6)[::2, 1::2],
    "0-d": np.array(3.5),
    "empty": np.empty((0, 3), np.int16),
    "structured": np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", "f8")]),
    "datetimes": np.array(["2020-01-01", "NaT"], "datetime64[D]"),
    "text": np.array(["ab", "ä"]),
    "objects": np.array([1, "a", None, [1, 2]], dtype=object),
    "booleans": np.array([True, False]),
    "masked": np.ma.array([1, 2, 3], mask=[0, 1, 0]),
}


@pytest.fixture(params=ARRAYS.values(), ids=ARRAYS.keys())
def array(request):
    return request.param


def same(one, other):
    assert type(one) is type(other)
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)
    return True


def test_anything_comes_back(tmp_path):
    value = [("a", [1, 2, 3]), ("b", np.arange(10)), {"c": decimal.Decimal("1.5"), "d": {1, 2}}, None]
    assert dump(value, str(tmp_path / "file")) == [str(tmp_path / "file")]

    back = load(tmp_path / "file")
    same(back[1][1], value[1][1])
    assert (back[0], back[2:]) == (value[0], value[2:])


@pytest.mark.parametrize(("protocol", "compress"), [(None, 0), (0, 3), (2, "lz4"), (5, 0), (5, ("zstd", 1))])
def test_arrays_of_all_kinds_come_back(array, tmp_path, protocol, compress):
    dump([array, "between", array], tmp_path / "file", compress=compress, protocol=protocol)
    back = load(tmp_path / "file")

    same(back[0], array)
    assert back[0].flags.f_contiguous == array.flags.f_contiguous or not array.flags.contiguous
    assert back[0] is back[2]


@pytest.mark.parametrize("mode", ["r", "r+", "w+", "c"])
def test_arrays_can_be_mapped(array, tmp_path, mode):
    dump({"odd": np.arange(3, dtype=np.uint8), "x": array}, tmp_path / "file")
    back = load(tmp_path / "file", mmap_mode=mode)["x"]

    np.testing.assert_array_equal(back, array)
    if type(array) is np.ndarray and array.size and not array.dtype.hasobject:
        assert isinstance(back, np.memmap)
        assert back.ctypes.data % 16 == 0
        assert back.mode == {"w+": "r+"}.get(mode, mode)


def test_a_mapped_array_is_written_through_only_where_asked_for(tmp_path):
    dump(np.zeros(100), tmp_path / "file")
    copied, shared = load(tmp_path / "file", "c"), load(tmp_path / "file", "r+")
    copied[0] = 1
    shared[1] = 2
    with pytest.raises(ValueError, match="read-only"):
        load(tmp_path / "file", "r")[0] = 3

    assert list(load(tmp_path / "file")[:3]) == [0, 2, 0]


def test_offsets_beyond_the_granularity_are_right(tmp_path):
    arrays = [np.zeros(mmap.ALLOCATIONGRANULARITY + 3, np.uint8), np.arange(1000), np.arange(7.0)]
    dump(arrays, tmp_path / "file")
    back = load(tmp_path / "file", "r")

    assert back[1].offset > mmap.ALLOCATIONGRANULARITY
    for one, other in zip(back, arrays, strict=True):
        np.testing.assert_array_equal(one, other)


def test_several_objects_in_one_file_are_read_in_their_order(tmp_path):
    values = [np.arange(5), "plain", [np.ones(3), np.zeros(1000)], {"a": 1}]
    with open(tmp_path / "file", "wb") as file:
        for value in values:
            dump(value, file)

    for mode in (None, "r"):
        with open(tmp_path / "file", "rb") as file:
            for value in values:
                np.testing.assert_equal(load(file, mmap_mode=mode), value)


def test_a_buffer_that_was_just_written_is_read_from_its_start():
    file = io.BytesIO()
    assert dump([1, np.arange(3)], file) is None

    assert load(file)[0] == 1


@pytest.mark.parametrize("value", [np.arange(100_000), {"a": [1, 2]}], ids=["arrays", "none"])
def test_a_socket_is_read_without_waiting_for_its_end(value):
    here, there = socket.socketpair()
    with here, there, there.makefile("wb") as writing, here.makefile("rb") as reading:
        thread = threading.Thread(target=lambda: (dump(value, writing), writing.flush()))
        thread.start()
        back = load(reading)
        thread.join()

    np.testing.assert_equal(back, value)


@pytest.mark.parametrize(
    ("extension", "decompress"),
    [(".z", zlib.decompress), (".gz", gzip.decompress), (".bz2", bz2.decompress), (".xz", lzma.decompress)],
)
def test_the_extension_chooses_a_standard_stream(tmp_path, extension, decompress):
    value = {"x": np.arange(1000)}
    dump(value, tmp_path / f"file{extension}")
    data = (tmp_path / f"file{extension}").read_bytes()
    (tmp_path / "renamed.pkl").write_bytes(data)
    (tmp_path / "unpacked").write_bytes(decompress(data))

    for name in (f"file{extension}", "renamed.pkl", "unpacked"):
        np.testing.assert_equal(load(tmp_path / name), value)


@pytest.mark.parametrize("open_file", [gzip.GzipFile, bz2.BZ2File, lzma.LZMAFile])
def test_a_decompressing_file_object_is_not_decompressed_twice(tmp_path, open_file):
    with open_file(tmp_path / "file", "wb") as file:
        dump([np.arange(10), "x"], file)
    with open_file(tmp_path / "file", "rb") as file:
        back = load(file)

    np.testing.assert_equal(back, [np.arange(10), "x"])


def _warned(*arguments, **named):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(*arguments, **named)
    return [str(warning.message) for warning in caught]


def test_where_nothing_can_be_mapped_a_warning_says_so(tmp_path):
    path = str(tmp_path / "file.gz")
    dump(np.arange(10), path)
    memory = io.BytesIO()
    dump(np.arange(10), memory)

    assert _warned(path, mmap_mode="r+") == [
        f'mmap_mode "r+" is not compatible with compressed file {path}. "r+" flag will be ignored.'
    ]
    assert _warned(memory, mmap_mode="r+") == [
        'In memory persistence is not compatible with mmap_mode "r+" flag passed. '
        "mmap_mode option will be ignored."
    ]
    with gzip.open(path) as file:
        assert _warned(file, mmap_mode="r+") == [
            f'"{file!r}" is not a raw file, mmap_mode "r+" flag will be ignored.'
        ]


def test_byte_order_is_this_machines_unless_mapped_or_told(tmp_path):
    foreign = np.arange(5, dtype=np.dtype("i4").newbyteorder("S"))
    dump(foreign, tmp_path / "file")

    assert load(tmp_path / "file").dtype.isnative
    assert load(tmp_path / "file", ensure_native_byte_order=False).dtype == foreign.dtype
    assert load(tmp_path / "file", mmap_mode="r").dtype == foreign.dtype
    for back in (load(tmp_path / "file"), load(tmp_path / "file", mmap_mode="r")):
        np.testing.assert_array_equal(back, foreign)
    with pytest.raises(ValueError, match="Native byte ordering can only be enforced"):
        load(tmp_path / "missing", mmap_mode="r", ensure_native_byte_order=True)


def test_a_read_only_array_stays_read_only(tmp_path):
    array = np.arange(5)
    array.flags.writeable = False
    dump(array, tmp_path / "file")

    assert not load(tmp_path / "file").flags.writeable


def test_a_mapped_array_is_stored_as_an_array(tmp_path):
    dump(np.arange(10), tmp_path / "file")
    dump(load(tmp_path / "file", "r"), tmp_path / "other")
    back = load(tmp_path / "other")

    assert type(back) is np.ndarray
    assert back.flags.writeable


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_subclass_stays_one(tmp_path):
    dump(np.matrix([[1, 2]]), tmp_path / "file")

    assert type(load(tmp_path / "file")) is np.matrix


def test_a_failed_dump_leaves_the_old_file(tmp_path):
    dump("old", tmp_path / "file")
    with pytest.raises((AttributeError, pickle.PicklingError)):
        dump([np.arange(10), lambda: 1], tmp_path / "file")

    assert os.listdir(tmp_path) == ["file"]
    assert load(tmp_path / "file") == "old"


def test_a_file_is_made_with_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    dump(1, tmp_path / "file")

    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    dump(1, tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "target") == 1


@pytest.mark.parametrize("value", [np.arange(1000), ["text"] * 1000], ids=["arrays", "none"])
@pytest.mark.parametrize("compress", [0, 3, "zstd"])
def test_a_cut_file_is_told(tmp_path, value, compress):
    dump(value, tmp_path / "file", compress=compress)
    data = (tmp_path / "file").read_bytes()
    for length in (0, 1, 10, len(data) // 2, len(data) - 20 if compress else len(data) - 1):
        (tmp_path / "file").write_bytes(data[:length])
        with pytest.raises((DamagedFile, zlib.error, OSError)):
            load(tmp_path / "file")


def test_wrong_arguments_are_told(tmp_path):
    with pytest.raises(ValueError, match="Second argument should be a filename"):
        dump("file", [1, 2])
    with pytest.raises(ValueError, match="Second argument should be a filename"):
        dump(1, b"file")
    with pytest.raises(ValueError, match="mmap_mode 'x' is none of"):
        load(tmp_path / "file", mmap_mode="x")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")


class Pathlike:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


def test_any_pathlike_object_names_a_file(tmp_path):
    named = Pathlike(tmp_path / "file")
    assert dump(1, named) == [named]
    assert dump(1, Path(tmp_path / "x")) == [str(tmp_path / "x")]

    assert load(named) == 1


def test_without_arrays_it_is_a_plain_pickle(tmp_path):
    dump({"a": 1}, tmp_path / "file")
    with open(tmp_path / "file", "rb") as file:
        assert pickle.load(file) == {"a": 1}


@pytest.mark.parametrize(
    ("compress", "mode"), [(0, None), (0, "r"), (3, None), ("gzip", "r"), ("lzma", None)]
)
@pytest.mark.filterwarnings("ignore:mmap_mode")
def test_what_joblib_wrote_is_read(array, tmp_path, compress, mode):
    value = ["before", array, {"k": [array, 1]}, decimal.Decimal(1), np.arange(3, dtype=">i4")]
    joblib.dump(value, tmp_path / "file", compress=compress)
    mine, theirs = (module_load(tmp_path / "file", mmap_mode=mode) for module_load in (load, joblib.load))

    for one, other in ((mine[1], theirs[1]), (mine[2]["k"][0], theirs[2]["k"][0]), (mine[4], theirs[4])):
        if one.size:  # joblib makes a memmap of nothing
            same(one, other)
    assert (mine[0], mine[3]) == (theirs[0], theirs[3])


def test_joblib_over_a_socket_is_read():
    here, there = socket.socketpair()
    with here, there, there.makefile("wb") as writing, here.makefile("rb") as reading:
        joblib.dump([np.arange(10), "x"], writing)
        writing.flush()
        back = load(reading)

    np.testing.assert_equal(back, [np.arange(10), "x"])


def test_compressing_takes_the_array_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(fileformat, "_PIECE", 1000)
    value = [np.arange(1001), np.asfortranarray(np.arange(3000).reshape(30, 100)), np.arange(9000)[::3]]
    dump(value, tmp_path / "file", compress=("zlib", 1))

    np.testing.assert_equal(load(tmp_path / "file"), value)


def test_random_values_come_back(tmp_path):
    rnd = random.Random(5)

    def made(depth):
        kind = rnd.randrange(6 if depth else 4)
        if kind == 0:
            return np.frombuffer(rnd.randbytes(rnd.randrange(300)), np.uint8)
        if kind == 1:
            return rnd.random()
        if kind == 2:
            return rnd.randbytes(5)
        if kind == 3:
            return np.arange(rnd.randrange(50))[:: rnd.choice([1, 2, -1])]
        if kind == 4:
            return [made(depth - 1) for _ in range(rnd.randrange(5))]
        return {n: made(depth - 1) for n in range(rnd.randrange(5))}

    for n in range(60):
        value = made(4)
        dump(value, tmp_path / "file", compress=rnd.choice([0, 1, "zstd"]))
        np.testing.assert_equal(load(tmp_path / "file"), value, err_msg=str(n))


def test_an_old_file_of_python_2_is_told(tmp_path):
    raw = b"\x80\x02U\x02\xf0\x3fq\x01."  # a string of bytes, as Python 2 pickled it
    (tmp_path / "old").write_bytes(b"ZF" + (b"%#x" % len(raw)).ljust(19) + zlib.compress(raw))
    with pytest.raises(ValueError, match="generated with python 2"):
        load(tmp_path / "old")
