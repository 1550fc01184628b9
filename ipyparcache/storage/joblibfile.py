"""Reads pickles in which joblib put raw arrays.

Such a pickle holds, in place of an array, an object that describes it (class `NumpyArrayWrapper`: subclass,
shape, order, dtype, and in newer files an alignment); right after the instruction that gives this object
its state, and outside of any frame, come a padding (its length in one byte, then so many bytes) and the raw
bytes, or a pickle of its own for an array of objects. joblib before 0.10 wrote each array into a file of
its own beside the pickle. The C unpickler cannot stop there, so the standard library's Python one is used.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zlib
from collections.abc import Callable
from typing import IO, Any, ClassVar

from ipyparcache.storage.rawarrays import fill, in_native_order

OLD_PREFIX = b"ZF"

_PythonUnpickler: Any = pickle._Unpickler


class ArrayDescription:
    """Takes the place of joblib's class while a pickle is read; its attributes come from the file."""

    subclass: type
    shape: tuple[int, ...]
    order: str
    dtype: Any
    allow_mmap: bool = False
    numpy_array_alignment_bytes: int | None = None

    def read(self, unpickler: JoblibUnpickler) -> Any:
        """The array that lies at the present place of the file."""
        import numpy as np

        file = unpickler.file
        if self.dtype.hasobject:
            return unpickler.nested().load()
        if self.numpy_array_alignment_bytes is not None:
            padding = file.read(1)
            file.read(padding[0])
        shape = self.shape[::-1] if self.order == "F" else self.shape
        count = int(np.prod(shape, dtype=np.int64))
        mode: Any = unpickler.mmap_mode
        if mode is not None and self.allow_mmap and count:
            if self.numpy_array_alignment_bytes is None:
                warnings.warn(
                    f"an array memmapped from the file {unpickler.name} is not aligned, as joblib did not "
                    "see to that; code that relies on it may end with a segmentation fault: load and dump it "
                    "once",
                    stacklevel=2,
                )
            where = file.tell()
            array = np.memmap(unpickler.name, self.dtype, mode, where, self.shape, self.order)  # type: ignore
            file.seek(array.nbytes, 1)
            return array
        raw = np.empty(count * self.dtype.itemsize, np.uint8)
        fill(file, raw)
        array = (raw.view(self.dtype) if count else np.empty(0, self.dtype)).reshape(shape)
        if self.order == "F":
            array = array.transpose()
        if unpickler.native:
            array = in_native_order(array)
        if self.subclass is not np.ndarray and self.subclass is not np.memmap:
            array = array.view(self.subclass)
        return array


class FileOfArray:
    """Takes the place of the description of an array that joblib before 0.10 wrote into a file of its own."""

    filename: str
    subclass: type
    allow_mmap: bool = True

    def read(self, unpickler: JoblibUnpickler) -> Any:
        """The array from its file."""
        import numpy as np

        path = os.path.join(os.path.dirname(unpickler.name), self.filename)
        mode: Any = unpickler.mmap_mode if self.allow_mmap else None
        # A pickle in that file would not ask `find_class`.
        array = np.load(path, mmap_mode=mode, allow_pickle=unpickler.find is None)
        if unpickler.native:
            array = in_native_order(array)
        return array if self.subclass in (np.ndarray, np.memmap) else array.view(self.subclass)


class CompressedFileOfArray:
    """The same for a compressed file, whose description holds all of the array but its bytes."""

    filename: str
    init_args: tuple[Any, ...]
    state: tuple[Any, ...]

    def read(self, unpickler: JoblibUnpickler) -> Any:
        """The array from its file."""
        path = os.path.join(os.path.dirname(unpickler.name), self.filename)
        with open(path, "rb") as file:
            data = _inflated(file)
        build = unpickler.find_class("numpy.core.multiarray", "_reconstruct")
        array = build(*self.init_args)
        array.__setstate__((*self.state, data))
        return array


_DESCRIPTIONS = {
    "NumpyArrayWrapper": ArrayDescription,
    "NDArrayWrapper": FileOfArray,
    "ZNDArrayWrapper": CompressedFileOfArray,
}


def load_old(file: IO[bytes], name: str, find_class: Callable[[str, str], Any] | None = None) -> Any:
    """What joblib before 0.10 wrote compressed."""
    unpickler = JoblibUnpickler(io.BytesIO(_inflated(file)), name, None, True, find_class)
    value = unpickler.load()
    _warn_of_age(name)
    return value


def _inflated(file: IO[bytes]) -> bytes:
    """The content of a file that begins with `OLD_PREFIX` and its length in hexadecimal digits."""
    file.read(len(OLD_PREFIX) + 19)
    text = file.read()
    # Some versions wrote the length with a trailing blank less.
    return zlib.decompress(text if text[:1] == b"\x78" else text[1:])


def _warn_of_age(name: str) -> None:
    warnings.warn(
        f"The file '{name}' has been generated with a joblib version less than 0.10. "
        "Please regenerate this pickle file.",
        DeprecationWarning,
        stacklevel=4,
    )


class JoblibUnpickler(_PythonUnpickler):  # type: ignore[misc]
    """An unpickler that puts arrays where the pickle describes them."""

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(
        self,
        file: IO[bytes],
        name: str,
        mmap_mode: str | None,
        native: bool,
        find_class: Callable[[str, str], Any] | None = None,
    ):
        super().__init__(file)
        self.find = find_class
        self.file: Any = file
        self.name = name
        self.mmap_mode = mmap_mode
        self.native = native
        self.is_old = False

    def nested(self) -> JoblibUnpickler:
        """Reads a pickle that lies inside this one, with the same rules for classes."""
        return type(self)(self.file, self.name, None, self.native, self.find)

    def find_class(self, module: str, name: str) -> Any:
        """The class, or the description of an array for joblib's own."""
        if module.startswith("joblib.numpy_pickle"):
            return _DESCRIPTIONS[name]
        return super().find_class(module, name) if self.find is None else self.find(module, name)

    def load_build(self) -> None:
        """Give an object its state; an array description becomes the array."""
        super().load_build()
        described = self.stack[-1]
        if isinstance(described, ArrayDescription | FileOfArray | CompressedFileOfArray):
            self.stack[-1] = described.read(self)
            self.is_old |= isinstance(described, FileOfArray)

    def load(self) -> Any:
        """The object of the pickle."""
        value = super().load()
        if self.is_old:
            _warn_of_age(self.name)
        return value

    dispatch[pickle.BUILD[0]] = load_build
