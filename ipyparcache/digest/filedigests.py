"""Content digests of files, found again without reading where a file is certainly as it was."""

from __future__ import annotations

import os
import threading
import time

from ipyparcache.digest.openfiles import Signature, file_content, signature_of

SETTLED_SECONDS = 2.0  # a file changed less than this ago may change again within the same time stamp


class FileDigests:
    """Content digests of files, with a short-cut by size, times and inode.

    It is of this process alone: a file may be changed without a trace in its times while nobody watches.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Signature, str]] = {}
        self._lock = threading.Lock()

    def digest(self, path: str) -> str:
        """Hexadecimal digest of a file's content; `absent` where there is none, `folder` for a folder."""
        full = os.path.abspath(path)
        signature = signature_of(full)
        if signature is None:
            return "absent"
        if os.path.isdir(full):
            return "folder"
        with self._lock:
            known = self._known.get(full)
        if known is not None and known[0] == signature:
            return known[1]
        content = file_content(full)
        if content is None:
            return "unreadable"
        found = content.hex()
        if signature_of(full) == signature and _is_settled(signature):
            with self._lock:
                self._known[full] = (signature, found)
        return found


def _is_settled(signature: Signature) -> bool:
    """Whether the file is old enough that another change would show in its time stamps."""
    return time.time_ns() - max(signature[1], signature[2]) > SETTLED_SECONDS * 1e9
