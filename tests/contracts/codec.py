"""What every codec must show. A subclass gives the fixtures `codec` and `level`."""

import io
import os

import pytest

from ipyparcache.storage.compression import CompressorWrapper, codec_of_prefix

DATA = os.urandom(1000) + bytes(range(256)) * 3000 + b"end"


class CodecContract:
    def compressed(self, codec: CompressorWrapper, level, data: bytes = DATA, piece: int = 1 << 20) -> bytes:
        out = io.BytesIO()
        file = codec.compressor_file(out, level)
        for start in range(0, len(data), piece):
            file.write(memoryview(data)[start : start + piece])
        file.close()
        return out.getvalue()

    def test_what_was_compressed_comes_back(self, codec, level):
        assert codec.decompressor_file(io.BytesIO(self.compressed(codec, level))).read() == DATA

    def test_it_is_smaller(self, codec, level):
        assert len(self.compressed(codec, level)) < len(DATA) / 5

    def test_it_is_told_by_its_first_bytes(self, codec, level):
        assert codec_of_prefix(self.compressed(codec, level)) is codec

    def test_no_data_comes_back_as_none(self, codec, level):
        assert codec.decompressor_file(io.BytesIO(self.compressed(codec, level, b""))).read() == b""

    @pytest.mark.parametrize("piece", [1, 77_777])
    def test_it_can_be_written_and_read_in_pieces(self, codec, level, piece):
        data = DATA[-2000:] if piece == 1 else DATA
        file = codec.decompressor_file(io.BytesIO(self.compressed(codec, level, data, piece)))
        found = bytearray()
        while part := file.read(piece):
            found += part

        assert bytes(found) == data

    def test_it_fills_memory(self, codec, level):
        file = codec.decompressor_file(io.BytesIO(self.compressed(codec, level)))
        memory, done = bytearray(len(DATA)), 0
        while count := file.readinto(memoryview(memory)[done:]):
            done += count

        assert (done, bytes(memory)) == (len(DATA), DATA)

    def test_it_tells_its_position_and_goes_back(self, codec, level):
        file = codec.decompressor_file(io.BytesIO(self.compressed(codec, level)))
        file.read(5000)
        position = file.tell()
        file.seek(100)

        assert (position, file.read(10)) == (5000, DATA[100:110])

    def test_a_cut_file_does_not_pass_as_whole(self, codec, level):
        data = self.compressed(codec, level)

        try:
            whole = codec.decompressor_file(io.BytesIO(data[: len(data) // 2])).read()
        except (EOFError, OSError, RuntimeError):
            return
        assert len(whole) < len(DATA)  # `load` then misses the bytes

    def test_the_file_below_stays_open(self, codec, level):
        out = io.BytesIO()
        codec.compressor_file(out, level).close()

        assert not out.closed
