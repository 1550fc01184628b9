"""The key that signs entries: 32 random bytes in the user's data folder, readable by the user alone.

What lies in a cache folder was perhaps written by others; it counts only with a code that this key made.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import blake3

from ipyparcache.errors import StoreUnavailable

KEY_BYTES = 32


def signing_key(path: Path, store: str) -> bytes:
    """The key in the file `path`, made there if there is none yet; `store` is the folder that it is to sign
    for.

    Raises
    ------
    StoreUnavailable
        If the file cannot be read or made, holds no key, or lies inside the store, where whoever can plant an
        entry could read it.
    """
    if "://" not in store and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(store)):
        raise StoreUnavailable(
            store, f"its signing key {path} would lie inside it; set key-file or dir elsewhere"
        )
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = _made(path, store)
    except OSError as error:
        raise StoreUnavailable(store, f"its signing key {path} cannot be read: {error.strerror}") from error
    if len(key) != KEY_BYTES:
        raise StoreUnavailable(
            store, f"{path} holds no signing key; delete it, and older entries become misses"
        )
    return key


def key_id(key: bytes) -> str:
    """A short public name of the key: entries lie under it, so that users of one folder do not meet each
    other's."""
    return blake3.blake3(key, derive_key_context="ipyparcache 1 name of a signing key").hexdigest(8)


def _made(path: Path, store: str) -> bytes:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        import tempfile  # needed once for ever, and it takes long to load

        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".signing-")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(os.urandom(KEY_BYTES))
            _publish(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        # Of several processes that began at once, one won; its key is everybody's.
        return path.read_bytes()
    except OSError as error:
        raise StoreUnavailable(store, f"its signing key {path} cannot be made: {error.strerror}") from error


def _publish(temporary: str, path: Path) -> None:
    """Give the file its name unless there is one already, never showing half of it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except (OSError, AttributeError):
        # File systems without hard links: a rename could replace the key of a process that was a moment
        # faster, so the loser of that race signs one session with a key that nobody has later.
        if not path.exists():
            os.replace(temporary, path)
