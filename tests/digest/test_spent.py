import bz2
import csv
import gzip
import lzma
import pickle
import sqlite3
import zipfile

import h5py
import pytest

from ipyparcache.digest import spent
from ipyparcache.digest.objects import digest_of
from ipyparcache.errors import Undigestible


def _text(path):
    return open(path, "w")


def _binary(path):
    path.write_bytes(b"a")
    return open(path, "r+b")


def _with(function, mode):
    return lambda path: function(path, mode)


def _writer(path):
    with open(path, "w", newline="") as file:
        made = csv.writer(file, delimiter=";")
        made.writerow([1, 2])
    return made


def _reader(path):
    path.write_text("a,b\n1,2\n")
    with open(path) as file:
        made = csv.reader(file)
        list(made)
    return made


def _archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("member", "text")
    return archive


def _read_archive(path):
    _archive(path)
    with zipfile.ZipFile(path) as archive:
        archive.read("member")
    return archive


def _hdf(part, mode):
    def opened(path):
        with h5py.File(path, "w") as file:
            file["data"] = [1, 2]
            file.create_group("group")
        with h5py.File(path, mode) as file:
            return file[part] if part else file

    return opened


def _connection(path):
    made = sqlite3.connect(path)
    made.close()
    return made


def _closed(handle):
    if hasattr(handle, "close"):
        handle.close()
    return handle


USES = (
    lambda handle: handle.read(),
    lambda handle: next(handle),
    lambda handle: handle.writerow([1]),
    lambda handle: handle.namelist(),
    lambda handle: handle.getinfo("member").file_size,
    lambda handle: handle.execute("select 1"),
    lambda handle: handle.line_num,
    lambda handle: handle.dialect.delimiter,
    lambda handle: (handle.name, handle.closed),
    lambda handle: handle.mode,
    lambda handle: handle.encoding,
    lambda handle: handle["data"],
    lambda handle: handle[:],
    lambda handle: handle.shape,
    lambda handle: list(handle.attrs),
    lambda handle: handle.__bool__(),
)


def answer(use, handle):
    try:
        return use(handle)
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize(
    "opened",
    [
        _text,
        _binary,
        _with(gzip.open, "wt"),
        _with(gzip.open, "wb"),
        _with(bz2.open, "wb"),
        _with(lzma.open, "wb"),
        _writer,
        _reader,
        _archive,
        _read_archive,
        _connection,
        _hdf("", "r"),
        _hdf("", "a"),
        _hdf("group", "r"),
        _hdf("data", "r"),
    ],
    ids=[
        "text",
        "update",
        "gzip text",
        "gzip",
        "bz2",
        "xz",
        "writer",
        "reader",
        "zip",
        "zip read",
        "sqlite",
        "hdf5",
        "hdf5 update",
        "hdf5 group",
        "hdf5 data",
    ],
)
def test_a_closed_handle_comes_back_as_it_is(opened, tmp_path):
    handle = _closed(opened(tmp_path / "file"))
    again = spent.make(*pickle.loads(pickle.dumps(spent.facts_of(handle))))

    assert type(again) is type(handle)
    assert spent.facts_of(again) == spent.facts_of(handle)
    assert digest_of([again]) == digest_of([handle])
    # an object that `answer` names by its address differs, nothing else does
    assert [answer(use, again) for use in USES] == [answer(use, handle) for use in USES]


@pytest.mark.parametrize(
    "opened",
    [
        _text,
        _with(gzip.open, "wb"),
        _with(zipfile.ZipFile, "w"),
        sqlite3.connect,
        _with(h5py.File, "w"),
    ],
)
def test_an_open_handle_has_no_digest(opened, tmp_path):
    handle = opened(tmp_path / "file")
    try:
        assert spent.facts_of(handle) is None
        with pytest.raises(Undigestible):
            digest_of(handle)
    finally:
        handle.close()


def test_what_writes_to_an_open_file_has_no_digest(tmp_path):
    with open(tmp_path / "file", "w") as file:
        writer = csv.writer(file)
        with pytest.raises(Undigestible, match="open file"):
            digest_of(writer)


def test_other_objects_are_no_handles():
    assert spent.facts_of([1]) is None
    assert spent.facts_of(None) is None
