"""Codecs by name, by file extension and by the bytes that a compressed file begins with.

A codec is a `CompressorWrapper`: it makes a file object that compresses into another one, and one that
reads back. lz4 and zstandard are optional and imported here alone.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Mapping
from typing import IO, Any

from ipyparcache.errors import CodecMissing
from ipyparcache.storage.store import Buffer

DEFAULT_LEVEL = 3
"""Level of zlib where none is asked for: higher ones cost much time and save little on arrays."""

_READ_BYTES = 1 << 18


class CompressorWrapper:
    """A codec for `register_compressor`.

    Parameters
    ----------
    obj : callable
        Makes a file object: called with a file object, or the name of a file to be written, and a mode (`rb`,
        or `wb` with `compresslevel=` if one is asked for). What it makes has `read`, `write`, `seek` and
        `tell`.
    prefix : bytes
        What every file of this codec begins with.
    extension : str
        File extension that stands for this codec, such as `.gz`.
    """

    levels = range(10)
    """Levels that may be asked for; 0 means no compression at all."""

    def __init__(self, obj: Callable[..., Any] | None, prefix: bytes = b"", extension: str = ""):
        self.fileobj_factory = obj
        self.prefix = prefix
        self.extension = extension

    def compressor_file(self, fileobj: IO[bytes] | str, compresslevel: int | None = None) -> Any:
        """A file object whose `write` compresses into `fileobj`; closing it leaves a file object open."""
        assert self.fileobj_factory is not None
        if compresslevel is None:
            return self.fileobj_factory(fileobj, "wb")
        return self.fileobj_factory(fileobj, "wb", compresslevel=compresslevel)

    def decompressor_file(self, fileobj: IO[bytes]) -> Any:
        """A file object whose `read` gives what was compressed into `fileobj`."""
        assert self.fileobj_factory is not None
        return self.fileobj_factory(fileobj, "rb")


class _Inflating(io.RawIOBase):
    """Decompresses a zlib stream; reads no more of the file than it needs, in pieces."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._inflate = zlib.decompressobj()
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, memory: Any) -> int:
        view = memoryview(memory).cast("B")
        while not self._inflate.eof:
            data = self._waiting or self._file.read(_READ_BYTES)
            if not data:
                raise EOFError("the compressed file ends before its data does")
            out = self._inflate.decompress(data, len(view))
            self._waiting = self._inflate.unconsumed_tail
            if out:
                view[: len(out)] = out
                return len(out)
        return 0


class StreamFile(io.BufferedIOBase):
    """A compressing or decompressing file object made of the parts that a library offers."""

    # Closing one that could not be made finds nothing to do.
    _reader: io.BufferedReader | None = None
    _finish: Callable[[], bytes] | None = None

    def __init__(
        self,
        file: IO[bytes],
        mode: str,
        *,
        reader: Callable[[IO[bytes]], Any],
        compress: Callable[[Any], bytes] | None = None,
        finish: Callable[[], bytes] | None = None,
    ):
        self._file = file
        self._reader_of = reader
        self._reader = io.BufferedReader(reader(file), _READ_BYTES) if mode == "rb" else None
        self._start = file.tell() if self._reader is not None and file.seekable() else 0
        self._compress = compress
        self._finish = finish
        self._position = 0

    def readable(self) -> bool:
        """Whether it was opened to read."""
        return self._reader is not None

    def writable(self) -> bool:
        """Whether it was opened to write."""
        return self._compress is not None

    def seekable(self) -> bool:
        """Whether `seek` works: when reading, forward, and back by reading again from the start."""
        return self._reader is not None and self._file.seekable()

    def tell(self) -> int:
        """Position in the data that is not compressed."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position of the data by reading up to it."""
        if self._reader is None:
            raise io.UnsupportedOperation("a compressed file that is being written cannot seek")
        if whence == os.SEEK_END:
            while self.read(_READ_BYTES):
                pass
            offset += self._position
        elif whence == os.SEEK_CUR:
            offset += self._position
        if offset < self._position:
            self._file.seek(self._start)
            self._reader.detach()
            self._reader = io.BufferedReader(self._reader_of(self._file), _READ_BYTES)
            self._position = 0
        while self._position < offset and self.read(min(_READ_BYTES, offset - self._position)):
            pass
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, or all that are left."""
        data = self._reading().read(-1 if size is None else size)
        self._position += len(data)
        return data

    def read1(self, size: int = -1) -> bytes:
        """The next bytes, as many as are at hand."""
        data = self._reading().read1(size)
        self._position += len(data)
        return data

    def readinto(self, memory: Any) -> int:
        """Fill `memory` with the next bytes."""
        count = self._reading().readinto(memory)
        self._position += count
        return count

    def readline(self, size: int | None = -1) -> bytes:
        """The next line; pickles of protocol 0 are read so."""
        data = self._reading().readline(-1 if size is None else size)
        self._position += len(data)
        return data

    def peek(self, size: int = 0) -> bytes:
        """The next bytes without moving on."""
        return self._reading().peek(size)

    def write(self, data: Any) -> int:
        """Compress these bytes."""
        if self._compress is None:
            raise io.UnsupportedOperation("not open for writing")
        count = memoryview(data).nbytes
        self._file.write(self._compress(data))
        self._position += count
        return count

    def fileno(self) -> int:
        """The descriptor of the file below."""
        return self._file.fileno()

    def close(self) -> None:
        """Write what is left; the file below stays open."""
        if self.closed:
            return
        try:
            if self._finish is not None:
                self._file.write(self._finish())
        finally:
            if self._reader is not None:
                with contextlib.suppress(ValueError):
                    self._reader.detach()
            super().close()

    def _reading(self) -> io.BufferedReader:
        if self._reader is None:
            raise io.UnsupportedOperation("not open for reading")
        return self._reader


class BinaryZlibFile(StreamFile):
    """A file that is compressed with zlib.

    Parameters
    ----------
    filename : str, path or file object
        Where it lies; a file object stays open when this one is closed.
    mode : {'rb', 'wb'}
        Read or write.
    compresslevel : int
        1 to 9.
    """

    _own: Any = None

    def __init__(self, filename: Any, mode: str = "rb", compresslevel: int = DEFAULT_LEVEL):
        file, is_own = _opened(filename, mode, compresslevel)
        self._own = file if is_own else None
        if mode == "rb":
            super().__init__(file, mode, reader=_Inflating)
        else:
            deflate = zlib.compressobj(compresslevel)
            super().__init__(file, mode, reader=_Inflating, compress=deflate.compress, finish=deflate.flush)

    def close(self) -> None:
        """Write what is left; close the file below if it was opened here."""
        try:
            super().close()
        finally:
            if self._own is not None:
                self._own.close()


class BinaryGzipFile(gzip.GzipFile):
    """The same with gzip; neither name nor time in it, so the same data gives the same file."""

    fileobj: Any = None

    def __init__(self, filename: Any, mode: str = "rb", compresslevel: int = DEFAULT_LEVEL):
        file, is_own = _opened(filename, mode, compresslevel)
        super().__init__("", mode, compresslevel, file, mtime=0)
        if is_own:
            self.myfileobj = file  # `close` closes it as well


def _opened(filename: Any, mode: str, compresslevel: object) -> tuple[Any, bool]:
    """The file object to compress into, and whether it was opened for that."""
    if mode not in ("rb", "wb"):
        raise ValueError(f"Invalid mode: {mode!r} is neither 'rb' nor 'wb'")
    if not isinstance(compresslevel, int) or isinstance(compresslevel, bool) or not 1 <= compresslevel <= 9:
        raise ValueError(
            "'compresslevel' must be an integer between 1 and 9. "
            f"You provided 'compresslevel={compresslevel}'"
        )
    if isinstance(filename, str | bytes | os.PathLike):
        return open(filename, mode), True
    if not hasattr(filename, "read") and not hasattr(filename, "write"):
        raise TypeError(f"filename must be a str or bytes object, or a file, not {type(filename).__name__}")
    return filename, False


def _bz2_file(file: IO[bytes], mode: str, compresslevel: int = 9) -> Any:
    return bz2.BZ2File(file, mode, compresslevel=compresslevel)  # type: ignore[call-overload]


def _xz_file(file: IO[bytes], mode: str, compresslevel: int | None = None) -> Any:
    if mode == "rb":
        return lzma.LZMAFile(file, mode)
    return lzma.LZMAFile(file, mode, preset=compresslevel)


def _lzma_file(file: IO[bytes], mode: str, compresslevel: int | None = None) -> Any:
    if mode == "rb":
        return lzma.LZMAFile(file, mode, format=lzma.FORMAT_ALONE)
    return lzma.LZMAFile(file, mode, format=lzma.FORMAT_ALONE, preset=compresslevel)


def _lz4() -> Any:
    try:
        import lz4.frame
    except ImportError:
        raise CodecMissing("lz4", "lz4") from None
    return lz4.frame


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise CodecMissing("zstd", "zstandard") from None
    return zstandard


def _lz4_file(file: IO[bytes], mode: str, compresslevel: int = 0) -> Any:
    return _lz4().LZ4FrameFile(file, mode, compression_level=compresslevel)


_THREADED = 4 << 20
"""Bytes from which a block is worth the start of threads."""


def _threads() -> int:
    """Threads for zstd: left to itself it starts one for each processor of the machine, allowed or not."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return allowed if allowed > 1 else 0


def _zstd_file(file: IO[bytes], mode: str, compresslevel: int = 3) -> StreamFile:
    zstd = _zstandard()

    def reader(below: IO[bytes]) -> Any:
        return zstd.ZstdDecompressor().stream_reader(below, read_across_frames=True, closefd=False)

    if mode == "rb":
        return StreamFile(file, mode, reader=reader)
    maker = zstd.ZstdCompressor(level=compresslevel, threads=_threads(), write_checksum=True)
    compressor = maker.compressobj()
    return StreamFile(file, mode, reader=reader, compress=compressor.compress, finish=compressor.flush)


class _Zstd(CompressorWrapper):
    levels = range(23)


CODECS: dict[str, CompressorWrapper] = {
    "zlib": CompressorWrapper(BinaryZlibFile, b"\x78", ".z"),
    "gzip": CompressorWrapper(BinaryGzipFile, b"\x1f\x8b", ".gz"),
    "bz2": CompressorWrapper(_bz2_file, b"BZ", ".bz2"),
    "lzma": CompressorWrapper(_lzma_file, b"\x5d\x00", ".lzma"),
    "xz": CompressorWrapper(_xz_file, b"\xfd\x37\x7a\x58\x5a", ".xz"),
    "lz4": CompressorWrapper(_lz4_file, b"\x04\x22\x4d\x18", ".lz4"),
    "zstd": _Zstd(_zstd_file, b"\x28\xb5\x2f\xfd", ".zst"),
}
"""The codecs known by name; `register_compressor` adds to them."""

_BUILT_IN = dict(CODECS)


def register_compressor(compressor_name: str, compressor: CompressorWrapper, force: bool = False) -> None:
    """Make a codec known under a name; it then takes part in the choice by extension and by first bytes.

    Parameters
    ----------
    compressor_name : str
        Name for `compress=`.
    compressor : CompressorWrapper
        The codec.
    force : bool
        Replace a codec of that name.

    Raises
    ------
    ValueError
        If the name is no string, the codec no `CompressorWrapper`, its factory makes no file objects, or
        the name is taken and `force` is not given.
    """
    if not isinstance(compressor_name, str):
        raise ValueError(f"Compressor name should be a string, not {compressor_name!r}.")
    if not isinstance(compressor, CompressorWrapper):
        raise ValueError(f"Compressor should implement the CompressorWrapper interface, not {compressor!r}.")
    factory = compressor.fileobj_factory
    missing = [
        method
        for method in ("read", "write", "seek", "tell")
        if isinstance(factory, type) and not hasattr(factory, method)
    ]
    if missing:
        raise ValueError(
            "Compressor 'fileobj_factory' attribute should implement the file object interface: "
            f"{factory!r} has no {', '.join(missing)}."
        )
    if compressor_name in CODECS and not force:
        raise ValueError(f"Compressor {compressor_name!r} already registered; pass force=True to replace it.")
    CODECS[compressor_name] = compressor


def is_ours(name: str) -> bool:
    """Whether a codec is one of those that come with the package."""
    return CODECS[name] is _BUILT_IN.get(name)


def codec_of_prefix(data: bytes) -> CompressorWrapper | None:
    """The codec whose files begin like `data`."""
    for codec in CODECS.values():
        if codec.prefix and data.startswith(codec.prefix):
            return codec
    return None


def longest_prefix() -> int:
    """Bytes that `codec_of_prefix` wants to see."""
    return max(len(codec.prefix) for codec in CODECS.values())


def name_of_extension(filename: str) -> str | None:
    """The codec that the extension of a file name stands for."""
    for name, codec in CODECS.items():
        if codec.extension and filename.endswith(codec.extension):
            return name
    return None


def parse_codec(compress: object, filename: str | None = None) -> tuple[str, int | None] | None:
    """What a `compress=` means: a codec's name and level (None for its default), or None for no compression.

    A file name decides by its extension where `compress` names no codec.

    Raises
    ------
    ValueError
        If it means nothing, or names a codec that is not there.
    """
    by_extension = name_of_extension(filename) if filename is not None else None
    method: str | None = None
    level: object = None
    if isinstance(compress, tuple):
        if len(compress) != 2:
            raise ValueError(
                "Compress argument tuple should contain exactly 2 elements: "
                f"(compress method, compress level), you passed {compress}"
            )
        method, level = compress
    elif isinstance(compress, str):
        method = compress
    elif compress is None or compress is True:
        method = by_extension or "zlib"
    elif compress is False or (isinstance(compress, int) and compress == 0):
        if by_extension is None:
            return None
        method = by_extension
    else:
        method, level = by_extension or "zlib", compress
    if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
        raise ValueError(f'Non valid compress level given: "{level}". It takes an integer from 0.')
    if method not in CODECS:
        raise ValueError(
            f'Non valid compression method given: "{method}". Possible values are {sorted(CODECS)}.'
        )
    levels = CODECS[method].levels
    if level is not None and level not in levels:
        raise ValueError(
            f'Non valid compress level given: "{level}". '
            f"It is an integer from 0 to {levels.stop - 1} for {method}."
        )
    if method == "lz4":
        _lz4()  # told now, and not when half of the file is written
    elif method == "zstd":
        _zstandard()
    return None if level == 0 else (method, level)


def compress_block(name: str, level: int | None, data: Buffer) -> bytes:
    """All of `data` compressed at once."""
    if name == "zstd":
        threads = _threads() if len(data) >= _THREADED else 0
        compressor = _zstandard().ZstdCompressor(level=3 if level is None else level, threads=threads)
        return bytes(compressor.compress(data))
    out = io.BytesIO()
    file = CODECS[name].compressor_file(out, level)
    file.write(data)
    file.close()
    return out.getvalue()


def decompress_into(name: str, data: Buffer, memory: memoryview) -> None:
    """Fill `memory` with what `compress_block` was given.

    Raises
    ------
    EOFError
        If it is not as many bytes.
    """
    if name not in CODECS:
        raise CodecMissing(name, None)
    file = CODECS[name].decompressor_file(io.BytesIO(data))
    done = 0
    while done < len(memory):
        count = file.readinto(memory[done:])
        if not count:
            raise EOFError(f"{len(memory) - done} bytes are missing")
        done += count
    file.close()


def built_in_codecs() -> Mapping[str, CompressorWrapper]:
    """The codecs that entries may use: every machine that shares a store has them, or says what to
    install."""
    return {name: codec for name, codec in CODECS.items() if name in _BUILT_IN}
