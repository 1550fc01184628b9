"""Move entries between machines: one file that holds them, signed as a whole.

The file is a zip archive with, for each entry, its manifest, its pickle and its buffers, and a code over
all of that made with the exporter's key. A file of the same key is taken as it is; one of another key only
when the user says that it is to be trusted, since reading an entry runs what its pickle says.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile

import blake3

from ipyparcache import settings
from ipyparcache.errors import ParcacheError
from ipyparcache.storage.entry import Entries
from ipyparcache.storage.signing import signing_key

CODE = "code"


class CannotExport(ParcacheError):
    """A file that the entries cannot be written to."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} cannot be written: {self.reason}"


class NotAnExport(ParcacheError):
    """A file that `import` cannot take: why, and what to type."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} cannot be imported: {self.reason}"


def export_entries(entries: Entries, path: str) -> str:
    """Write every entry into one file; says how many."""
    mac = _mac()
    count = 0
    folder = os.path.dirname(os.path.abspath(path))
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".export-")
    except OSError as error:
        raise CannotExport(path, os.strerror(error.errno or 0)) from error
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for entry in entries.all():
                pickled, buffers = entry.payload(check=True)
                about = json.dumps(
                    {
                        "key": entry.key,
                        "trace": entry.trace,
                        "seconds": entry.seconds,
                        "manifest": entry.manifest,
                    }
                )
                parts = [about.encode(), bytes(pickled), *map(bytes, buffers)]
                for number, part in enumerate(parts):
                    name = f"{count:06d}/{number:04d}"
                    archive.writestr(name, part)
                    _include(mac, name, part)
                count += 1
            archive.writestr(CODE, mac.digest())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return f"wrote {count} entries to {path}"


def import_entries(entries: Entries, path: str, *, trust: bool) -> str:
    """Take the entries of such a file into the store; says how many.

    Raises
    ------
    NotAnExport
        If it is no such file, is damaged, or was signed with another key and `trust` is not given.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name != CODE]
            mac = _mac()
            for name in names:
                _include(mac, name, archive.read(name))
            if mac.digest() != archive.read(CODE) and not trust:
                raise NotAnExport(
                    path,
                    "it was changed or signed with another key; if you trust where it comes from, "
                    "`import FILE --trust`, or share the key: `%parcache set key-file=FILE` on both machines",
                )
            count = 0
            for number in sorted({name.split("/")[0] for name in names}):
                parts = [archive.read(name) for name in names if name.startswith(f"{number}/")]
                about = json.loads(parts[0])
                entries.write(
                    about["key"],
                    about["trace"],
                    about["manifest"],
                    parts[1],
                    parts[2:],
                    seconds=about["seconds"],
                )
                identity = about["manifest"].get("identity")
                if identity:
                    entries.remember(identity, about["key"])
                count += 1
    except (OSError, zipfile.BadZipFile, KeyError, IndexError, ValueError) as error:
        raise NotAnExport(path, f"{type(error).__name__}: {error}") from error
    return f"took {count} entries from {path}"


def _mac() -> blake3.blake3:
    now = settings.current()
    from pathlib import Path

    key = signing_key(Path(now.key_file), now.dir)
    return blake3.blake3(key=key)


def _include(mac: blake3.blake3, name: str, part: bytes) -> None:
    mac.update(f"{name}:{len(part)}:".encode())
    mac.update(part)
