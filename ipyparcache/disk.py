"""Folders and sizes, under the names that joblib's helpers have."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ipyparcache.settings import parse_size

__all__ = ["delete_folder", "disk_used", "memstr_to_bytes", "mkdirp", "rm_subdirs"]

RM_SUBDIRS_RETRY_TIME = 0.1
"""Seconds between two attempts to remove a folder of which a file may still be in use."""

RM_SUBDIRS_N_RETRY = 10
"""Attempts behind the first."""

Path = str | os.PathLike[str]
OnError = Callable[
    [Callable[..., Any], str, tuple[type[BaseException], BaseException, TracebackType | None]], Any
]
"""Told what failed, at which path, and why, as `shutil.rmtree` does."""


def disk_used(path: Path) -> int:
    """KiB that a folder and the files directly in it take up on their disk."""
    total = 0
    for name in [*os.listdir(path), "."]:
        found = os.stat(os.path.join(path, name))
        blocks = getattr(found, "st_blocks", None)  # Windows does not tell it
        total += 512 * (found.st_size // 512 + 1 if blocks is None else blocks)
    return total // 1024


def memstr_to_bytes(text: str) -> int:
    """Bytes that a size such as `500K`, `1.4M` or `80G` stands for, in powers of 1024.

    The other units of `parse_size`, such as `2GB` for powers of 1000, are read as well.

    Raises
    ------
    ValueError
        If it is no size.
    """
    try:
        return parse_size(text)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Invalid literal for size: {text!r} (of type {type(text).__name__}); write 50K, 1.5M or 10G"
        ) from error


def mkdirp(d: Path) -> None:
    """Make a folder and those above it, if they are not there.

    Raises
    ------
    OSError
        If it cannot be made, or something else has its name.
    """
    os.makedirs(d, exist_ok=True)


def rm_subdirs(path: Path, onerror: OnError | None = None) -> None:
    """Remove the folders in a folder; the folder itself and its files stay.

    Parameters
    ----------
    path : str or path
        The folder.
    onerror : callable, optional
        Called with a function, a path and the facts of an error, in place of raising it.
    """
    try:
        names = os.listdir(path)
    except OSError as error:
        if onerror is None:
            raise
        onerror(os.listdir, os.fspath(path), (type(error), error, error.__traceback__))
        return
    for name in names:
        delete_folder(os.path.join(path, name), onerror)


def delete_folder(folder_path: Path, onerror: OnError | None = None, allow_non_empty: bool = True) -> None:
    """Remove a folder with all that is in it, if it is there.

    Without `onerror` an attempt that fails is repeated for a second, as another process may just be closing
    a file.

    Parameters
    ----------
    folder_path : str or path
        The folder.
    onerror : callable, optional
        As in `rm_subdirs`.
    allow_non_empty : bool
        Whether it may hold anything; not asked where `onerror` is given.

    Raises
    ------
    OSError
        If it cannot be removed, or holds something and must not.
    """
    if onerror is not None:
        if os.path.isdir(folder_path):
            _remove_tree(folder_path, onerror)
        return
    failures = 0
    while os.path.isdir(folder_path):
        try:
            if not allow_non_empty and (names := os.listdir(folder_path)):
                raise OSError(f"{folder_path} should be empty and holds {len(names)} files or folders")
            shutil.rmtree(folder_path)
        except OSError:
            failures += 1
            if failures > RM_SUBDIRS_N_RETRY:
                raise
            time.sleep(RM_SUBDIRS_RETRY_TIME)


def _remove_tree(path: Path, onerror: OnError) -> None:
    if sys.version_info < (3, 12):
        shutil.rmtree(path, onerror=onerror)
    else:
        shutil.rmtree(
            path,
            onexc=lambda step, where, error: onerror(step, where, (type(error), error, error.__traceback__)),
        )
