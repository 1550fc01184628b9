"""Local modules as this process has them loaded, so that workers run the same code.

A module that was loaded again here is loaded again by the workers. One whose file was edited but not loaded
again cannot be had from its file any more: its functions then travel by value, and those of all other local
modules too, because these may import it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from types import ModuleType

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STANDARD = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


class _Seen:
    """A local module as it was when it was noticed, or loaded again."""

    __slots__ = ("generation", "module", "named", "path", "spec", "stamp")

    def __init__(self, module: Any, path: str, generation: int):
        self.module = module
        self.spec: Any = module.__spec__
        self.named: str = module.__file__  # its file, as it names it
        self.path = path  # the same, from the root
        self.generation = generation
        self.stamp = _loaded_stamp(self.spec, path)  # modification time (ns) and size of what was loaded


def local_file(module: object) -> str | None:
    """The source file of a module that is neither installed nor of the standard library nor ours."""
    path = getattr(module, "__file__", None)
    if not isinstance(path, str) or not path.endswith(".py") or getattr(module, "__spec__", None) is None:
        return None
    if "site-packages" in path or "dist-packages" in path:
        return None
    if path.startswith((_OURS, _STANDARD)) and os.pardir not in path:
        return None
    full = os.path.abspath(path)
    return None if full.startswith((_OURS, _STANDARD)) else full


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _loaded_stamp(spec: Any, path: str) -> tuple[int, int] | None:
    """Stamp of a file that was just loaded; None if its cached bytecode shows that it was edited since.

    Only Python's own loader makes or uses that bytecode. Where another one loaded the module, as pytest's
    that rewrites assertions, what lies there can be of an older version.
    """
    import importlib.machinery
    import importlib.util

    stamp = _stamp(path)
    if stamp is None or type(spec.loader) is not importlib.machinery.SourceFileLoader:
        return stamp
    head = b""
    with contextlib.suppress(OSError, NotImplementedError):
        cached = importlib.util.cache_from_source(path)
        with open(cached, "rb") as file:
            head = file.read(16)
    if len(head) == 16 and head[4:8] == bytes(4):  # the kind that names time and size of its source
        seconds = int.from_bytes(head[8:12], "little")
        size = int.from_bytes(head[12:16], "little")
        if (seconds, size) != (stamp[0] // 10**9 & 0xFFFFFFFF, stamp[1] & 0xFFFFFFFF):
            return None
    return stamp


class LocalModules:
    """Watches which local modules are loaded, and whether from the files as they are now."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._generations: dict[str, int] = {}  # never changed, but replaced
        self._others: tuple[int, str] = (0, "")  # how many modules there were, and the last of them
        self._by_value: set[str] = set()

    def take(self) -> dict[str, int]:
        """Generation of each local module by name; makes them travel by value if one was edited.

        The same dictionary as the last time, if all is as it was then.
        """
        now = (len(sys.modules), next(reversed(sys.modules)))
        if now != self._others:
            self._others = now
            for name, module in list(sys.modules.items()):
                if name not in self._seen and name != "__main__" and (path := local_file(module)) is not None:
                    self._seen[name] = _Seen(module, path, 0)
        edited = False
        changed = len(self._seen) != len(self._generations)
        for name, seen in list(self._seen.items()):
            here: Any = sys.modules.get(name)
            if (
                here is not seen.module
                or here is None
                or getattr(here, "__spec__", None) is not seen.spec
                or getattr(here, "__file__", None) != seen.named
            ):
                changed = True
                found = local_file(here)
                if found is None:
                    del self._seen[name]
                    continue
                again = here.__spec__ is not seen.spec
                seen = self._seen[name] = _Seen(here, found, seen.generation + again)
            if seen.stamp is None or _stamp(seen.path) != seen.stamp:
                edited = True
        if edited or self._by_value:
            self._send_by_value(set(self._seen) if edited else set())
        if changed:
            self._generations = {name: seen.generation for name, seen in self._seen.items()}
        return self._generations

    def _send_by_value(self, names: set[str]) -> None:
        if names == self._by_value:
            return
        import cloudpickle

        for name in names - self._by_value:
            module = sys.modules.get(name)
            if isinstance(module, ModuleType):
                cloudpickle.register_pickle_by_value(module)
        for name in self._by_value - names:
            module = sys.modules.get(name)
            with contextlib.suppress(ValueError):  # somebody else has taken it back
                if isinstance(module, ModuleType):
                    cloudpickle.unregister_pickle_by_value(module)
        self._by_value = names


def drop_outdated(before: dict[str, int], now: dict[str, int]) -> None:
    """Forget, on a worker, the local modules if one of them is not the caller's: they are loaded again."""
    loaded = [name for name in now if name in sys.modules]
    if all(before.get(name) == now[name] for name in loaded):
        return
    for name in loaded:
        del sys.modules[name]
    import importlib

    importlib.invalidate_caches()
