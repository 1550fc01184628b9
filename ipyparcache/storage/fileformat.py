"""`dump` and `load`: any object in one file, its arrays as raw aligned bytes.

    magic, bytes of the pickle, number of arrays
    a row for each array: offset from the magic, bytes
    pickle
    arrays, each at a multiple of 64 in the file

An object without arrays is a plain pickle. The pickle refers to arrays by number, so an array that occurs
twice is stored once and comes back as one. Files that joblib wrote are read too: there the raw bytes of
each array lie in the midst of the pickle, behind a description of the array.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from ipyparcache.errors import DamagedFile
from ipyparcache.storage.compression import (
    CODECS,
    CompressorWrapper,
    codec_of_prefix,
    is_ours,
    longest_prefix,
    parse_codec,
)
from ipyparcache.storage.joblibfile import OLD_PREFIX, JoblibUnpickler, load_old
from ipyparcache.storage.rawarrays import fill, fill_from_places, in_native_order

if TYPE_CHECKING:
    import numpy as np

_MAGIC = b"\x93ipyparc\x01dump\r\n\0"
_FRONT = struct.Struct("<QQ")  # bytes of the pickle, number of arrays
_ROW = struct.Struct("<QQ")  # offset from the magic, bytes
_ALIGNMENT = 64
_PIECE = 16 << 20
"""Bytes handed to a compressor at a time."""

_RESERVED = 1 << 20
"""Bytes from which room for a file is reserved before it is written."""

_WITHOUT_ARRAYS = (int, float, str, bytes, bool, type(None))

FindClass = Callable[[str, str], Any]
"""Gives what a module and a name in a pickle stand for."""

_MMAP_MODES = (None, "r", "r+", "w+", "c")


class Dumper(pickle.Pickler):
    """A pickler that leaves the bytes of arrays out and collects the arrays."""

    def __init__(self, file: IO[bytes], protocol: int | None):
        super().__init__(file, protocol)
        self.arrays: list[np.ndarray[Any, Any]] = []
        # An array can only be met if somebody has imported numpy.
        numpy = sys.modules.get("numpy")
        self._plain = () if numpy is None else (numpy.ndarray, numpy.memmap)

    def reducer_override(self, obj: Any) -> Any:
        """For an array, its number."""
        if type(obj) not in self._plain or obj.dtype.hasobject:
            return NotImplemented
        fortran = obj.flags.f_contiguous and not obj.flags.c_contiguous
        self.arrays.append(obj)
        return stored_array, (
            len(self.arrays) - 1,
            obj.dtype,
            obj.shape,
            "F" if fortran else "C",
            obj.flags.writeable or not _is_plain(obj),
        )


def _is_plain(array: Any) -> bool:
    """Whether a read-only flag is the array's own, and not that of the file it is mapped from."""
    return type(array).__name__ != "memmap"


def stored_array(index: int, dtype: object, shape: tuple[int, ...], order: str, writable: bool) -> object:
    """Stands in a pickle for an array whose bytes lie elsewhere in the file; only `load` can put it there."""
    raise pickle.UnpicklingError("this pickle is part of a file with arrays: read it with ipyparcache.load")


def take_apart(value: object, protocol: int = 5) -> tuple[bytes | memoryview, list[np.ndarray[Any, Any]]]:
    """The pickle of a value without the bytes of its arrays, and the arrays, for `put_together`."""
    if type(value) in _WITHOUT_ARRAYS:
        return pickle.dumps(value, protocol), []
    text = io.BytesIO()
    dumper = Dumper(text, protocol)
    try:
        dumper.dump(value)
    except AttributeError as error:
        # What older interpreters say of a function inside of another, where joblib's pickler says this.
        if not str(error).startswith("Can't pickle local object"):
            raise
        raise pickle.PicklingError(str(error)) from error
    return text.getbuffer(), dumper.arrays


def put_together(pickled: Any, array: Callable[..., Any], find_class: FindClass | None = None) -> Any:
    """The value of a pickle from `take_apart`.

    `array` makes each array, from its number, dtype, shape, order ("C" or "F") and whether it was writable.
    `find_class` gives what a module and a name stand for, if not the attribute of the imported module.
    """
    return _ArrayUnpickler(io.BytesIO(pickled), array, find_class).load()


def raw_bytes(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of an array in the order that `put_together` is told; a copy if it has gaps."""
    import numpy as np

    if not array.flags.forc:
        array = np.ascontiguousarray(array)
    order: Any = "C" if array.flags.c_contiguous else "F"
    return array.reshape(-1, order=order).view(np.uint8).data if array.nbytes else memoryview(b"")


def dump(
    value: object,
    filename: str | os.PathLike[str] | IO[bytes],
    compress: object = 0,
    protocol: int | None = None,
) -> list[str] | None:
    """Write any object into one file, arrays as raw bytes.

    A file is written aside and renamed when it is complete, so a failed `dump` leaves the old one as it was.

    Parameters
    ----------
    value : object
        What to write.
    filename : str, path or file object
        Where to write it. The extensions .z, .gz, .bz2, .xz, .lzma, .lz4 and .zst choose a codec.
    compress : bool, int, str or tuple
        False or 0 for none, True for zlib, a level from 1 to 9, a codec's name, or (name, level).
    protocol : int, optional
        Protocol of the pickle; Python's default if it is not given.

    Returns
    -------
    list of str or None
        `[filename]`, or None for a file object.

    Raises
    ------
    ValueError
        If the arguments are the wrong way round, or `compress` means nothing.
    """
    if isinstance(filename, Path):
        filename = str(filename)
    is_file = hasattr(filename, "write")
    if not is_file and not isinstance(filename, str | os.PathLike):
        raise ValueError(
            "Second argument should be a filename or a file-like object, "
            f"{filename!r} (type {type(filename)}) was given."
        )
    path = None if is_file else os.fspath(cast("str | os.PathLike[str]", filename))
    codec = parse_codec(compress, path)
    if path is None:
        _dump_into(value, cast("IO[bytes]", filename), codec, protocol)
        return None
    with _replacing(path) as (file, name, folder):
        if codec is not None and not is_ours(codec[0]):
            _dump_into(value, name, codec, protocol)  # codecs written for joblib may open files themselves
        else:
            _dump_into(value, file, codec, protocol, folder)
    return [cast("str", filename)]


def load(
    filename: str | os.PathLike[str] | IO[bytes],
    mmap_mode: str | None = None,
    ensure_native_byte_order: bool | str = "auto",
) -> Any:
    """Read what `dump` wrote, or joblib, or `pickle`.

    Only load what you trust: reading a pickle runs the code that it names.

    Parameters
    ----------
    filename : str, path or file object
        Where to read; compression is told by content, whatever the name.
    mmap_mode : {None, 'r', 'r+', 'w+', 'c'}
        Map arrays from the file in place of reading them; `w+` counts as `r+`.
    ensure_native_byte_order : bool or 'auto'
        Give arrays the byte order of this machine; 'auto' does so unless they are mapped.

    Raises
    ------
    ValueError
        If a mode is unknown, or both mapping and a change of byte order are asked for.
    DamagedFile
        If the file ends too early or is no pickle.
    """
    if mmap_mode not in _MMAP_MODES:
        raise ValueError(f"mmap_mode {mmap_mode!r} is none of {', '.join(map(str, _MMAP_MODES))}")
    if ensure_native_byte_order not in (True, False, "auto"):
        raise ValueError(
            f"ensure_native_byte_order {ensure_native_byte_order!r} is none of True, False, 'auto'"
        )
    if ensure_native_byte_order is True and mmap_mode is not None:
        raise ValueError(
            "Native byte ordering can only be enforced if 'mmap_mode' parameter is set to None, "
            f"but got 'mmap_mode={mmap_mode}' instead. Copy what was mapped, or leave the mode out."
        )
    native = mmap_mode is None if ensure_native_byte_order == "auto" else bool(ensure_native_byte_order)
    if mmap_mode == "w+":
        mmap_mode = "r+"
    if hasattr(filename, "read"):
        given = cast("IO[bytes]", filename)
        name = getattr(given, "name", "")
        return load_from(given, name if isinstance(name, str) else "", mmap_mode, native)
    path = os.fspath(filename)
    with open(path, "rb") as file:
        return load_from(file, path, mmap_mode, native)


def _dump_into(
    value: object,
    file: IO[bytes] | str,
    codec: tuple[str, int | None] | None,
    protocol: int | None,
    folder: str | None = None,
) -> None:
    """Write into a file; `folder` is where it lies if nothing else is written into it."""
    if codec is None:
        _write(value, cast("IO[bytes]", file), protocol, folder)
        return
    name, level = codec
    compressing = CODECS[name].compressor_file(file, level)
    try:
        _write(value, compressing, protocol)
    finally:
        compressing.close()


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[tuple[IO[bytes], str, str | None]]:
    """A file that takes the place of `path` once it is complete, its name, and the folder where it lies."""
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        with open(target, "wb") as file:  # a device or a pipe cannot be replaced
            yield file, target, None
        return
    try:
        handle, temporary = tempfile.mkstemp(
            dir=os.path.dirname(target), prefix=f".{os.path.basename(target)[:50]}-"
        )
    except OSError as error:
        error.filename = path  # what was asked for, and not the file beside it
        raise
    try:
        with open(handle, "wb") as file:
            yield file, temporary, os.path.dirname(target)
        with contextlib.suppress(OSError):
            os.chmod(temporary, _mode_of(target))
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _mode_of(path: str) -> int:
    """Permissions that a file written at `path` would have."""
    try:
        return os.stat(path).st_mode & 0o7777
    except OSError:
        # The mask can only be read by setting it; another thread may make a file in between.
        mask = os.umask(0o022)
        os.umask(mask)
        return 0o666 & ~mask


def _write(value: object, file: Any, protocol: int | None, folder: str | None = None) -> None:
    pickled, arrays = take_apart(value, pickle.DEFAULT_PROTOCOL if protocol is None else protocol)
    write_parts(pickled, arrays, file, folder)


def write_parts(
    pickled: bytes | memoryview,
    arrays: list[np.ndarray[Any, Any]],
    file: Any,
    folder: str | None = None,
) -> None:
    """Write what `take_apart` gave; `folder` is where the file lies if nothing else is written into it."""
    if not arrays:
        file.write(pickled)
        return
    base = _position(file)
    end = len(_MAGIC) + _FRONT.size + _ROW.size * len(arrays) + len(pickled)
    rows, gaps = [], []
    for array in arrays:
        offset = -(-(base + end) // _ALIGNMENT) * _ALIGNMENT - base
        gaps.append(offset - end)
        rows.append(_ROW.pack(offset, array.nbytes))
        end = offset + array.nbytes
    if folder is not None and end >= _RESERVED:
        from ipyparcache.storage.local import reserve  # workers load this file, and store nothing

        reserve(file.fileno(), end, folder)
    file.write(b"".join([_MAGIC, _FRONT.pack(len(pickled), len(rows)), *rows]))
    file.write(pickled)
    for array, gap in zip(arrays, gaps, strict=True):
        file.write(bytes(gap))
        _write_array(array, file)


def _position(file: Any) -> int:
    """Where a plain file stands, for alignment; zero where nothing can be mapped anyway."""
    try:
        return int(file.tell()) if file.seekable() else 0
    except (AttributeError, OSError):
        return 0


def _write_array(array: np.ndarray[Any, Any], file: Any) -> None:
    import numpy as np

    if not array.nbytes:
        return
    if array.flags.c_contiguous or array.flags.f_contiguous:
        flat = array.reshape(-1, order="A" if array.flags.c_contiguous else "F").view(np.uint8)
        plain = isinstance(file, io.BufferedWriter | io.FileIO)
        step = len(flat) if plain else _PIECE
        for start in range(0, len(flat), step):
            file.write(flat[start : start + step].data)
        return
    # A view with gaps is copied piece by piece, never whole.
    pieces = np.nditer(
        array,
        flags=["external_loop", "buffered", "zerosize_ok"],
        buffersize=max(_PIECE // array.itemsize, 1),
        order="C",
    )
    for piece in pieces:
        file.write(np.ascontiguousarray(piece).view(np.uint8).data)


def load_from(
    file: IO[bytes], name: str, mmap_mode: str | None, native: bool, find_class: FindClass | None = None
) -> Any:
    """Read from a file object; `find_class` decides what the names in a pickle stand for, and its errors
    are raised as they are."""
    front = _peek(file, max(longest_prefix(), len(_MAGIC)))
    codec = codec_of_prefix(front)
    mmap_mode = _usable_mode(file, name, codec, mmap_mode)
    try:
        if front.startswith(OLD_PREFIX):
            return load_old(file, name, find_class)
        if codec is None:
            return _read(file, front, name, mmap_mode, native, find_class)
        decompressing = codec.decompressor_file(file)
        if not hasattr(decompressing, "peek"):
            decompressing = io.BufferedReader(decompressing)
        inner = _peek(decompressing, len(_MAGIC))
        return _read(decompressing, inner, name, None, native, find_class)
    except UnicodeDecodeError as error:
        raise DamagedFile(
            name or repr(file),
            "You may be trying to read with python 3 a joblib pickle generated with python 2.",
        ) from error
    except (EOFError, struct.error, pickle.UnpicklingError) as error:
        if find_class is not None:
            raise
        raise DamagedFile(name or repr(file), str(error)) from error


def _usable_mode(
    file: IO[bytes], name: str, codec: CompressorWrapper | None, mmap_mode: str | None
) -> str | None:
    """The mode, or None with a warning where nothing can be mapped."""
    if mmap_mode is None:
        return None
    if isinstance(file, io.BytesIO):
        problem = (
            "In memory persistence is not compatible with mmap_mode "
            f'"{mmap_mode}" flag passed. mmap_mode option will be ignored.'
        )
    elif codec is not None:
        problem = (
            f'mmap_mode "{mmap_mode}" is not compatible with compressed file {name}. '
            f'"{mmap_mode}" flag will be ignored.'
        )
    elif not isinstance(file, io.BufferedReader | io.BufferedRandom | io.FileIO) or not isinstance(
        getattr(file, "raw", file), io.FileIO
    ):
        problem = f'"{file!r}" is not a raw file, mmap_mode "{mmap_mode}" flag will be ignored.'
    else:
        return mmap_mode
    warnings.warn(problem, stacklevel=4)
    return None


def _peek(file: Any, count: int) -> bytes:
    """The first bytes, which are read again afterwards."""
    if hasattr(file, "peek"):
        return bytes(file.peek(count)[:count])
    front = file.read(count)
    if not front and file.seekable():
        file.seek(0)  # a buffer that was just written stands at its end
        front = file.read(count)
    file.seek(-len(front), os.SEEK_CUR)
    return bytes(front)


def _read(
    file: Any, front: bytes, name: str, mmap_mode: str | None, native: bool, find_class: FindClass | None
) -> Any:
    if not front:
        raise EOFError("it is empty")
    if front.startswith(_MAGIC):
        return _Loader(file, name, mmap_mode, native, find_class).load()
    start = file.tell() if file.seekable() else None
    if start is not None:
        try:
            return _PlainUnpickler(file, find_class).load()
        except _WrittenByJoblib:
            file.seek(start)
    return JoblibUnpickler(file, name, mmap_mode, native, find_class).load()


class _WrittenByJoblib(Exception):
    """The pickle holds raw arrays."""


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], find_class: FindClass | None):
        super().__init__(file)
        self._find = find_class

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("joblib.numpy_pickle"):
            raise _WrittenByJoblib
        return super().find_class(module, name) if self._find is None else self._find(module, name)


class _Loader:
    """One reading of a file in our own format."""

    def __init__(
        self, file: Any, name: str, mmap_mode: str | None, native: bool, find_class: FindClass | None
    ):
        self._file = file
        self._find = find_class
        self._name = name
        self._mode = mmap_mode
        self._native = native
        self._base = file.tell() if mmap_mode is not None else 0
        self._rows: list[tuple[int, int]] = []
        self._raw: list[np.ndarray[Any, Any]] = []

    def load(self) -> Any:
        _exactly(self._file, len(_MAGIC))
        length, count = _FRONT.unpack(_exactly(self._file, _FRONT.size))
        self._rows = list(_ROW.iter_unpack(_exactly(self._file, _ROW.size * count)))
        pickled = _exactly(self._file, length)
        end = len(_MAGIC) + _FRONT.size + _ROW.size * count + length
        if self._mode is None:
            self._raw = self._places_read(end) if self._is_plain_file() else list(self._read_arrays(end))
        elif self._rows:
            # Where the next object begins, if several were written into one file.
            self._file.seek(self._base + sum(self._rows[-1]))
        return put_together(pickled, self._array, self._find)

    def _is_plain_file(self) -> bool:
        """Whether arrays can be read from their places, in any order."""
        raw = getattr(self._file, "raw", None)
        return hasattr(os, "preadv") and isinstance(raw, io.FileIO) and self._file.seekable()

    def _places_read(self, at: int) -> list[np.ndarray[Any, Any]]:
        if not self._rows:
            return []
        import numpy as np

        base = self._file.tell() - at
        raw = [np.empty(size, np.uint8) for _, size in self._rows]
        places = [(array, base + offset) for array, (offset, _) in zip(raw, self._rows, strict=True)]
        fill_from_places(self._file.fileno(), places)
        self._file.seek(base + sum(self._rows[-1]))
        return raw

    def _read_arrays(self, at: int) -> Iterator[np.ndarray[Any, Any]]:
        import numpy as np

        for offset, size in self._rows:
            _exactly(self._file, offset - at)
            raw = np.empty(size, np.uint8)
            fill(self._file, raw)
            at = offset + size
            yield raw

    def _array(self, index: int, dtype: Any, shape: tuple[int, ...], order: Any, writable: bool) -> Any:
        import numpy as np

        offset, size = self._rows[index]
        if self._mode is None:
            array = self._raw[index].view(dtype) if size else np.empty(0, dtype)
            array = array.reshape(shape, order=order)
        elif size:
            mode: Any = self._mode
            where = self._base + offset
            array = np.memmap(self._name, dtype=dtype, mode=mode, offset=where, shape=shape, order=order)
        else:
            array = np.empty(shape, dtype, order=order)
        if self._native:
            array = in_native_order(array)
        if not writable and self._mode is None:
            array.flags.writeable = False
        return array


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], array: Callable[..., Any], find_class: FindClass | None):
        super().__init__(file)
        self._array = array
        self._find = find_class

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name == stored_array.__name__:
            return self._array
        return super().find_class(module, name) if self._find is None else self._find(module, name)


def _exactly(file: Any, count: int) -> bytes:
    """The next bytes, from files that give fewer than were asked for too."""
    if not count:
        return b""
    data = file.read(count)
    if len(data) == count:
        return bytes(data)
    parts = [data]
    missing = count - len(data)
    while missing:
        data = file.read(missing)
        if not data:
            raise EOFError(f"{missing} bytes are missing")
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)
