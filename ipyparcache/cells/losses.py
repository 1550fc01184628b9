"""Changes on a worker that its analysis could not see, and that no one would bring home."""

from __future__ import annotations

import importlib
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

from ipyparcache.analysis.body import CONTENT, HASHED, ITEM, KEY, LOG, NOW, OURS, UNBIND, VALUE
from ipyparcache.analysis.collected import TEXT as TEXT_OF
from ipyparcache.cells import travel, watching
from ipyparcache.cells.messages import Body
from ipyparcache.cells.travel import MAIN
from ipyparcache.engine.surroundings import Surroundings

_HIDDEN = frozenset(
    {LOG, KEY, CONTENT, HASHED, UNBIND, NOW, TEXT_OF, ITEM, VALUE}
    | {"__builtins__", "__warningregistry__", "__annotations__"}
)
_OF_MODULES = frozenset({"__builtins__", "__warningregistry__", "__annotations__"})
_SETTINGS = {"environ": "environment variables", "cwd": "the working folder", "path": "`sys.path`"}


class Losses:
    """What must stay as it is on a worker while it runs iterations of a loop.

    Attributes
    ----------
    cost
        Seconds that the last look took; 0 before the first.
    """

    def __init__(self, body: Body, arrived: travel.Arrived, is_user_code: Callable[[object], bool]) -> None:
        self.arrived = arrived
        self.namespace = arrived.namespace
        self.cost = 0.0
        self._libraries = body.watch_random
        self._is_user_code = is_user_code
        watched = {n: obj for n, obj in arrived.objects.items() if n not in body.exempt}
        exempt = {id(arrived.objects[n]) for n in body.exempt if n in arrived.objects}
        roots = {n: v for n, v in self.namespace.items() if not n.startswith("__") and id(v) not in exempt}
        self._before, self._whole = watching.states_of(watched, roots, is_user_code)
        self._hidden = _HIDDEN | set(body.assigned) | {root for root, *_ in body.picked}
        self._fixed = {name: value for name, value in self.namespace.items() if name not in self._hidden}
        self._modules_before = {
            name: dict(values)
            for name, values in arrived.spaces.items()
            if name != MAIN and not name.startswith(("=", "@"))
        }
        self._random_before: dict[str, object] = {}
        self._process = Surroundings()
        self._process_version = -1
        self._process_rows: dict[str, bytes] = {}
        self._modules = 0

    def watch_generators(self) -> None:
        """From here on, the global generators that were seeded must not be drawn from."""
        for library in self._libraries:
            importlib.import_module(library)
        self._random_before = self._random_state()

    def begin(self) -> None:
        """A chunk begins: settings of the process are as they should be."""
        version, rows = self._process.take()
        if version != self._process_version:
            self._process_version, self._process_rows = version, dict(pickle.loads(rows))
        self._modules = len(sys.modules)

    def note_late(self) -> None:
        """What an element brought along for its functions was not set by an iteration."""
        for where, values in self.arrived.late.items():
            (self._fixed if where == MAIN else self._modules_before.setdefault(where, {})).update(values)
        self.arrived.late.clear()

    def look(self, first: int, last: int, lost: list[tuple[int, int, int | None, str]]) -> None:
        """Add to `lost`, as in a `ChunkResult`, what iterations `first` to `last` changed."""
        begun = time.monotonic()
        for number, state in self._before.items():
            obj = self.arrived.objects[number]
            if not watching.says_nothing_new(obj, state, self._is_user_code):
                lost.append((first, last, number, ""))
        namespace = self.namespace
        for name, state in self._whole.items():
            if name in namespace and not watching.is_unchanged(namespace[name], state, self._is_user_code):
                lost.append((first, last, None, name))
        for name, value in self._fixed.items():
            if namespace.get(name, self) is not value:
                lost.append((first, last, None, name))
        if len(namespace) > len(self._fixed):
            for name in namespace.keys() - self._fixed.keys() - self._hidden:
                if not name.startswith(OURS):
                    lost.append((first, last, None, name))
        for where, before in self._modules_before.items():
            values = self.arrived.spaces[where]
            for name in before.keys() | values.keys():
                if values.get(name, self) is not before.get(name, self) and name not in _OF_MODULES:
                    lost.append((first, last, None, f"{where}.{name}"))
        version, rows = self._process.take()
        if version != self._process_version:
            earlier, later = self._process_rows, dict(pickle.loads(rows))
            # A library that has just been imported may set what it likes.
            imported = len(sys.modules) != self._modules
            for name in {"cwd"} if imported else earlier.keys() & later.keys():
                if earlier.get(name) != later.get(name):
                    lost.append((first, last, None, _SETTINGS.get(name, f"settings of {name}")))
            self._process_version, self._process_rows = version, later
        self._modules = len(sys.modules)
        if self._libraries:
            for name, drawn in self._random_state().items():
                if self._random_before[name] != drawn:
                    lost.append((first, last, None, f"the state of the generator of `{name}`"))
        self.cost = max(time.monotonic() - begun, 1e-6)

    def _random_state(self) -> dict[str, object]:
        """States of the global generators that must not be drawn from."""
        found: dict[str, object] = {}
        for library in self._libraries:
            module: Any = sys.modules[library]
            if library == "random":
                found[library] = module.getstate()
            elif library == "numpy.random":
                legacy = module.get_state()
                found[library] = (legacy[1].tobytes(), *legacy[2:])
            else:
                found[library] = module.get_rng_state().numpy().tobytes()
        return found
