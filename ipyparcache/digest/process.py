"""What a run changed in the process, outside the namespace, and how a hit brings that back."""

from __future__ import annotations

import builtins
import functools
import importlib
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from ipyparcache.digest import interpreter, libsettings, modules, openfiles, registries, shownonce
from ipyparcache.digest.generators import GENERATORS, generator_digest, is_seeded, seeded
from ipyparcache.digest.libsettings import SETTINGS, Setting, settings_digest
from ipyparcache.errors import Unrepeatable


@dataclass
class ProcessState:
    """What a run may change outside the namespace, as it was."""

    environment: dict[str, str]
    folder: str
    path: list[str]
    settings: dict[str, tuple[object, str]]  # captured value, digest
    generators: dict[str, str]
    modules: dict[str, dict[str, object]]  # attributes of local modules
    threads: frozenset[int]
    children: frozenset[int]
    tasks: set[int]  # pending in the event loop
    fixtures: dict[str, object]  # what is told to have changed, and cannot be brought back
    has_backend: bool  # whether pyplot has a place to draw
    warned: shownonce.Shown


def process_state() -> ProcessState:
    """The process as it is, to be compared after a run."""
    with openfiles.unwatched():
        return ProcessState(
            dict(os.environ),
            os.getcwd(),
            list(sys.path),
            {
                setting.name: (setting.capture(), _setting_digest(setting))
                for setting in SETTINGS
                if setting.library in sys.modules
            },
            {name: generator.digest() for name, generator in GENERATORS.items()},
            {name: dict(vars(module)) for name, module in modules.loaded_local()},
            frozenset(thread.ident or 0 for thread in threading.enumerate()),
            frozenset(_children()),
            _pending_tasks(),
            _fixtures(),
            libsettings.has_plotting_backend(),
            shownonce.shown(),
        )


def _fixtures() -> dict[str, object]:
    """What user code sets once for the whole process and no hit brings back; compared by equality."""
    return {
        "the builtins": {name: id(value) for name, value in vars(builtins).items() if name != "_"},
        **interpreter.fixtures(),
        **registries.fixtures(),
    }


def _setting_digest(setting: Setting) -> str:
    special = setting.special()
    return settings_digest(special) if special else ""


def process_changes(before: ProcessState) -> dict[str, Any]:
    """What a run changed outside the namespace, for `restore_process`; picklable if its values are.

    Raises
    ------
    Unrepeatable
        If the run left threads or child processes of its own.
    """
    with openfiles.unwatched():
        _refuse_leftovers(before)
        changes: dict[str, Any] = {}
        environment = dict(os.environ)
        changed = {
            name: value for name, value in environment.items() if before.environment.get(name) != value
        }
        gone = [name for name in before.environment if name not in environment]
        changed = {name: value for name, value in changed.items() if not name.startswith("JPY_")}
        changed = _without_library_variables(changed)
        if changed or gone:
            changes["environment"] = (changed, gone)
        if os.getcwd() != before.folder:
            changes["folder"] = os.path.relpath(os.getcwd(), before.folder)
        if sys.path != before.path:
            changes["path"] = _path_change(before.path, sys.path)
        settings = {}
        for setting in SETTINGS:
            if setting.library not in sys.modules:
                continue
            now = _setting_digest(setting)
            if now != before.settings.get(setting.name, (None, ""))[1]:
                settings[setting.name] = setting.capture()
        if settings:
            changes["settings"] = settings
        if libsettings.has_plotting_backend() and not before.has_backend:
            changes["backend"] = True
        generators = {}
        for name, generator in GENERATORS.items():
            state = generator.state()
            if (
                state is not None
                and is_seeded(name)
                and generator_digest(state) != before.generators.get(name)
            ):
                generators[name] = state
        if generators:
            changes["generators"] = generators
        attributes = _changed_attributes(before)
        if attributes:
            changes["modules"] = attributes
        warned = shownonce.new_in(shownonce.shown(), before.warned)
        if warned:
            changes["warned"] = warned
        return changes


def _path_change(before: Sequence[str], now: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """What was put before and behind the old entries of `sys.path`, and what was taken out."""
    kept = [entry for entry in now if entry in before]
    first = now.index(kept[0]) if kept else len(now)
    front = [entry for entry in now[:first] if entry not in before]
    behind = [entry for entry in now[first:] if entry not in before]
    return front, behind, [entry for entry in before if entry not in now]


def _change_path(front: Sequence[str], behind: Sequence[str], dropped: Sequence[str]) -> None:
    rest = [
        entry for entry in sys.path if entry not in dropped and entry not in front and entry not in behind
    ]
    sys.path[:] = [*front, *rest, *behind]


_LIBRARY_VARIABLES = frozenset({"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "MPLBACKEND"})


def _without_library_variables(changed: dict[str, str]) -> dict[str, str]:
    """Leave out what libraries set when they are imported, as a hit may not need to import them."""
    return {name: value for name, value in changed.items() if name not in _LIBRARY_VARIABLES}


def _changed_attributes(before: ProcessState) -> dict[str, tuple[dict[str, object], list[str]]]:
    found = {}
    for name, module in modules.loaded_local():
        earlier = before.modules.get(name)
        if earlier is None:
            continue  # imported by the run
        now = vars(module)
        changed = {
            attribute: value
            for attribute, value in now.items()
            if not _is_as_before(earlier, attribute, value)
            and not isinstance(value, ModuleType)
            and attribute != shownonce.REGISTRY
        }
        gone = [attribute for attribute in earlier if attribute not in now]
        if changed or gone:
            if now.get("__spec__") is not earlier.get("__spec__"):
                raise Unrepeatable(f"it reloads the module {name}")
            found[name] = (changed, gone)
    return found


def _is_as_before(earlier: Mapping[str, object], attribute: str, value: object) -> bool:
    return attribute in earlier and earlier[attribute] is value


def _pending_tasks() -> set[int]:
    """Tasks of the running event loop that have not ended, by identity."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return set()
    try:
        return {id(task) for task in asyncio.all_tasks()}
    except RuntimeError:  # no loop runs here
        return set()


def _refuse_leftovers(before: ProcessState) -> None:
    if _pending_tasks() - before.tasks:
        raise Unrepeatable("it leaves an asyncio task running")
    now = _fixtures()
    for name, value in before.fixtures.items():
        if now.get(name) != value:
            raise Unrepeatable(f"it changes {name}, which a hit could not bring back")
    for thread in threading.enumerate():
        if thread.ident not in before.threads and thread.is_alive() and _runs_user_code(thread):
            raise Unrepeatable(f"it leaves a thread running ({thread.name})")
    for child in _children() - before.children:
        if not _is_engine_process(child):
            raise Unrepeatable(f"it leaves a process running ({_command_of(child) or child})")


def _runs_user_code(thread: threading.Thread) -> bool:
    target = getattr(thread, "_target", None)
    while isinstance(target, functools.partial):
        target = target.func
    target = getattr(target, "__func__", target)
    if isinstance(target, FunctionType):
        return modules.is_user_code(target.__globals__.get("__name__"))
    return modules.is_user_code(type(thread).__module__)


def _children() -> set[int]:
    found: set[int] = set()
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                found |= {int(word) for word in file.read().split()}
    except (OSError, ValueError):
        return found
    return {child for child in found if not _is_zombie(child)}


def _is_zombie(child: int) -> bool:
    try:
        with open(f"/proc/{child}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[:1] == ["Z"]
    except OSError:
        return True


_ENGINE_WORDS = ("ipyparcache", "loky", "joblib", "resource_tracker", "forkserver", "multiprocessing.spawn")


def _command_of(child: int) -> str:
    try:
        with open(f"/proc/{child}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _is_engine_process(child: int) -> bool:
    """Whether a child is one of a pool's, idle or about to end."""
    started = sys.modules.get("multiprocessing.process")
    for process in getattr(started, "_children", ()):
        if process.pid == child:
            target = getattr(process, "_target", None)
            return not (
                isinstance(target, FunctionType) and modules.is_user_code(target.__globals__.get("__name__"))
            )
    command = _command_of(child)
    return any(word in command for word in _ENGINE_WORDS)


def restore_process(changes: Mapping[str, Any]) -> None:
    """Bring the process to where a run had brought it."""
    with openfiles.unwatched():
        changed, gone = changes.get("environment", ({}, []))
        for name in gone:
            os.environ.pop(name, None)
        os.environ.update(changed)
        if "folder" in changes:
            os.chdir(changes["folder"])
        if "path" in changes:
            _change_path(*changes["path"])
        by_name = {setting.name: setting for setting in SETTINGS}
        for name, value in changes.get("settings", {}).items():
            if by_name[name].library in sys.modules:
                by_name[name].restore(value)
        if changes.get("backend"):
            libsettings.choose_plotting_backend()
        for name, state in changes.get("generators", {}).items():
            generator = GENERATORS[name]
            if generator.library in sys.modules:
                generator.write(state)
                seeded.add(name)
        shownonce.note_shown(changes.get("warned", {}))
        for name, (values, dropped) in changes.get("modules", {}).items():
            module = sys.modules.get(name)
            if module is not None:
                vars(module).update(values)
                for attribute in dropped:
                    vars(module).pop(attribute, None)


def can_restore(changes: Mapping[str, Any]) -> bool:
    """Whether what `restore_process` needs is there, the folder and the libraries, which are imported."""
    if "folder" in changes and not os.path.isdir(changes["folder"]):
        return False
    for name in changes.get("generators", {}):
        try:
            importlib.import_module(GENERATORS[name].library)
        except ImportError:
            return False
    return True
