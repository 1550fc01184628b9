import bz2
import gzip
import io
import lzma
import os
import zlib

import numpy as np
import pytest

from ipyparcache.errors import CodecMissing
from ipyparcache.storage import compression
from ipyparcache.storage.compression import (
    CODECS,
    CompressorWrapper,
    compress_block,
    decompress_into,
    parse_codec,
    register_compressor,
)
from ipyparcache.storage.fileformat import dump, load
from tests.contracts.codec import DATA, CodecContract


class TestCodecs(CodecContract):
    @pytest.fixture(params=sorted(CODECS))
    def codec(self, request):
        return CODECS[request.param]

    @pytest.fixture(params=[None, 1])
    def level(self, request):
        return request.param


@pytest.mark.parametrize(
    ("name", "decompress"),
    [("zlib", zlib.decompress), ("gzip", gzip.decompress), ("bz2", bz2.decompress), ("xz", lzma.decompress)],
)
def test_the_standard_tools_read_it(name, decompress):
    out = io.BytesIO()
    file = CODECS[name].compressor_file(out)
    file.write(DATA)
    file.close()

    assert decompress(out.getvalue()) == DATA


@pytest.mark.parametrize("name", sorted(CODECS))
def test_blocks_come_back(name):
    memory = memoryview(bytearray(len(DATA)))
    decompress_into(name, compress_block(name, None, DATA), memory)

    assert bytes(memory) == DATA


@pytest.mark.parametrize(
    ("compress", "filename", "means"),
    [
        (0, "x.pkl", None),
        (False, None, None),
        (True, None, ("zlib", None)),
        (None, None, ("zlib", None)),
        (4, None, ("zlib", 4)),
        ("xz", "x.gz", ("xz", None)),
        (("gzip", 5), "x.z", ("gzip", 5)),
        (("gzip", 0), "x.z", None),
        (0, "x.bz2", ("bz2", None)),
        (7, "x.gz", ("gzip", 7)),
        (0, "x.zst", ("zstd", None)),
        (("zstd", 19), None, ("zstd", 19)),
        (0, "x.GZ", None),
    ],
)
def test_compress_means(compress, filename, means):
    assert parse_codec(compress, filename) == means


@pytest.mark.parametrize(
    ("compress", "says"),
    [
        (-1, 'Non valid compress level given: "-1"'),
        (10, 'Non valid compress level given: "10"'),
        ({}, 'Non valid compress level given: "{}"'),
        (("zlib", 10), 'Non valid compress level given: "10"'),
        (("zlib", True), 'Non valid compress level given: "True"'),
        (("zlib", 1, 2), "should contain exactly 2 elements"),
        ("wrong", 'Non valid compression method given: "wrong"'),
    ],
)
def test_what_compress_cannot_mean(compress, says):
    with pytest.raises(ValueError, match=says):
        parse_codec(compress)


def test_a_codec_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lz4.frame", None)

    with pytest.raises(ValueError, match="pip install lz4"):
        parse_codec("lz4")


@pytest.fixture
def registry():
    before = dict(CODECS)
    yield CODECS
    CODECS.clear()
    CODECS.update(before)


def test_a_registered_codec_is_chosen_by_extension_and_prefix(registry):
    codec = CompressorWrapper(gzip.GzipFile, b"XX", ".mine")
    register_compressor("mine", codec)

    assert compression.name_of_extension("a.mine") == "mine"
    assert compression.codec_of_prefix(b"XX..") is codec
    with pytest.raises(ValueError, match="already registered"):
        register_compressor("mine", codec)
    register_compressor("mine", codec, force=True)


@pytest.mark.parametrize(
    ("name", "codec", "says"),
    [
        (1, CompressorWrapper(gzip.GzipFile), "Compressor name should be a string"),
        (
            "x",
            CompressorWrapper(dict),
            "'fileobj_factory' attribute should implement the file object interface",
        ),
        ("x", gzip.GzipFile, "should implement the CompressorWrapper interface"),
    ],
)
def test_what_cannot_be_registered(registry, name, codec, says):
    with pytest.raises(ValueError, match=says):
        register_compressor(name, codec)


def test_a_codec_that_opens_its_file_itself_is_given_the_name(registry, tmp_path):
    register_compressor("mine", CompressorWrapper(gzip.GzipFile, b"\x1f\x8b", ".mine"))
    value = [np.arange(5), "text"]
    path = tmp_path / "a.mine"

    assert dump(value, path) == [str(path)]
    dump(value, path, compress=("mine", 9))
    assert gzip.decompress(path.read_bytes())
    array, text = load(path)
    assert (array.tolist(), text) == ([0, 1, 2, 3, 4], "text")
    assert os.listdir(tmp_path) == ["a.mine"]


def test_an_unknown_codec_of_an_entry_is_told():
    with pytest.raises(CodecMissing, match="not known here"):
        decompress_into("other", b"", memoryview(b""))


@pytest.mark.parametrize(("allowed", "threads"), [({3}, 0), ({0, 2, 5}, 3)])
def test_zstd_starts_threads_for_the_processors_that_it_may_use(monkeypatch, allowed, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed, raising=False)

    assert compression._threads() == threads
    data = bytes(range(256)) * (compression._THREADED >> 7)
    memory = memoryview(bytearray(len(data)))
    compression.decompress_into("zstd", compression.compress_block("zstd", 3, data), memory)
    assert memory == data
