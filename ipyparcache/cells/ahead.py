"""Workers import what the notebook has imported, before its first loop waits for that.

Only where the notebook has run loops on workers before: a small file of ours tells how many.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from ipyparcache import settings
from ipyparcache.digest.modules import origin_of
from ipyparcache.engine.backends.atonce import surroundings
from ipyparcache.engine.cpus import cpu_count
from ipyparcache.engine.pool import the_pool

NOTEBOOKS = 200  # that are remembered; the ones used last

#: Belong to the front end, which workers have not, or are there already.
_NOT_AHEAD = frozenset({"IPython", "ipykernel", "ipywidgets", "ipyparcache", "matplotlib_inline", "tqdm"})


def modules_ahead(namespace: Mapping[str, object], origin: Callable[[str], str] = origin_of) -> list[str]:
    """Modules of libraries that a namespace's modules, classes, functions and objects come from."""
    found: dict[str, None] = {}
    for name, value in list(namespace.items()):
        if name.startswith("_"):
            continue
        if isinstance(value, types.ModuleType):
            owner: object = value.__name__
        elif isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            owner = value.__module__
        else:
            owner = type(value).__module__
        if not isinstance(owner, str) or owner in found or owner.partition(".")[0] in _NOT_AHEAD:
            continue
        if origin(owner) == "library":
            found[owner] = None
    return list(found)


class Ahead:
    """Has workers import, after each cell that has imported something, what it has.

    Parameters
    ----------
    place
        The file that tells how many workers this notebook has used.
    """

    def __init__(self, shell: Any, place: Path) -> None:
        self._shell = shell
        self._place = place
        self._loaded = 0  # modules of this process when it was last looked
        self._told: set[str] = set()
        self._workers = _read(place)

    def look(self, *_: object) -> None:
        """After a cell: tell workers what it has imported."""
        warm = settings.current().warm
        workers = cpu_count() if warm == "on" else min(self._workers, cpu_count())
        if warm == "off" or not workers or len(sys.modules) == self._loaded:
            return
        self._loaded = len(sys.modules)
        names = [name for name in modules_ahead(self._shell.user_ns) if name not in self._told]
        if names:
            self._told.update(names)
            the_pool().prepare(workers, tuple(names), *surroundings.take())

    def note_use(self, workers: int) -> None:
        """A loop ran on so many workers: the next session of this notebook will want them."""
        if workers > self._workers:
            self._workers = workers
            with contextlib.suppress(OSError):  # a home that cannot be written to
                _write(self._place, workers)


def place_of_notebook() -> Path:
    """Where it is noted that this notebook, or where nobody tells its name, this folder, uses workers."""
    notebook = os.environ.get("JPY_SESSION_NAME") or os.getcwd()
    name = hashlib.blake2b(notebook.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return Path(settings.user_folder("state")) / "workers" / name


def _read(place: Path) -> int:
    try:
        found = int(place.read_text())
        os.utime(place)
    except (OSError, ValueError):
        return 0
    return max(found, 0)


def _write(place: Path, workers: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(str(workers))
    found = sorted(place.parent.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in found[NOTEBOOKS:]:
        file.unlink(missing_ok=True)


_of_shell: WeakKeyDictionary[Any, Ahead] = WeakKeyDictionary()


def install(shell: Any) -> None:
    """Look after each cell of a shell."""
    if shell not in _of_shell:
        ahead = _of_shell[shell] = Ahead(shell, place_of_notebook())
        shell.events.register("post_run_cell", ahead.look)


def uninstall(shell: Any) -> None:
    """Look no more."""
    ahead = _of_shell.pop(shell, None)
    if ahead is not None and ahead.look in shell.events.callbacks["post_run_cell"]:
        shell.events.unregister("post_run_cell", ahead.look)


def note_use(shell: Any, workers: int) -> None:
    """A loop of a shell ran on so many worker processes."""
    ahead = _of_shell.get(shell)
    if ahead is not None:
        ahead.note_use(workers)
