"""`dump` and `load` where programs written for joblib look for them, and the pickler and unpickler behind."""

from __future__ import annotations

import io
import os
import pickle
from typing import IO, Any

from ipyparcache.storage.fileformat import Dumper, dump, load, load_from, write_parts

__all__ = ["NumpyPickler", "NumpyUnpickler", "dump", "load"]


class NumpyPickler(Dumper):
    """A pickler whose files `load` reads, for programs that give it reducers of their own.

    Parameters
    ----------
    fp : file object
        Where to write.
    protocol : int, optional
        Protocol of the pickle; Python's default if it is not given.
    """

    def __init__(self, fp: IO[bytes], protocol: int | None = None):
        self._text = io.BytesIO()
        super().__init__(self._text, protocol)
        self.file_handle = fp

    def dump(self, obj: object) -> None:
        """Write an object behind what was written before."""
        self.clear_memo()
        self.arrays.clear()
        self._text.seek(0)
        self._text.truncate()
        super().dump(obj)
        write_parts(memoryview(self._text.getvalue()), self.arrays, self.file_handle)


class NumpyUnpickler(pickle.Unpickler):
    """An unpickler for the files that `load` reads; in a subclass, `find_class` decides what they may name.

    Whatever lies in the file, nested pickles too, asks `find_class`. Arrays of objects that joblib before
    0.10 wrote into files of their own are refused, as they would not.

    Parameters
    ----------
    filename : str or path
        Name of the file, of which arrays are mapped.
    file_handle : file object
        The file, open to read.
    ensure_native_byte_order : bool
        Give arrays the byte order of this machine.
    mmap_mode : {None, 'r', 'r+', 'w+', 'c'}
        As in `load`.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        file_handle: IO[bytes],
        ensure_native_byte_order: bool,
        mmap_mode: str | None = None,
    ):
        super().__init__(file_handle)
        self.filename = os.fspath(filename)
        self.file_handle = file_handle
        self.mmap_mode = "r+" if mmap_mode == "w+" else mmap_mode
        self._ensure_native_byte_order = ensure_native_byte_order

    def load(self) -> Any:
        """The object that lies at the present place of the file."""
        return load_from(
            self.file_handle, self.filename, self.mmap_mode, self._ensure_native_byte_order, self.find_class
        )
