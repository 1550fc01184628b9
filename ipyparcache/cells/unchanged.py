"""Whether anybody but ourselves can have changed an object since it was digested.

Between two cells that came from the store no code of the notebook runs, so what the first lookup digested
need not be digested by the second. That holds until a cell runs, and only where nobody else is there to run
code in between: no thread, no task or callback of the event loop, no widget, no signal handler and no hook
but those of the kernel itself. All this is asked anew at each lookup; in any doubt objects are digested.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ipyparcache.digest.objects import RememberedWalk
from ipyparcache.digest.walk import PRIMITIVES

_KERNEL = frozenset(
    {
        "IPython",
        "_signal",
        "anyio",
        "asyncio",
        "comm",
        "concurrent",
        "ipykernel",
        "ipyparcache",
        "jupyter_client",
        "matplotlib_inline",
        "signal",
        "tornado",
        "tqdm",
        "traitlets",
        "zmq",
    }
)
"""Packages whose threads, callbacks and hooks leave the notebook's objects alone."""

_CHANGES = "ipyparcache.cells.background"  # but for this: its hook lets the results of a loop enter


class Watch:
    """The walks of one shell's inputs that still hold, and what ends their validity.

    Parameters
    ----------
    shell : InteractiveShell
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._walks: dict[int, RememberedWalk] = {}
        self._cells = 0  # that began, but those that say nothing
        self._silent = 0  # runs that began without being announced as a cell
        self._known = 0  # walks before the present lookup
        self._held_at = -1  # the cell after which all walks held
        self._expressions: Callable[[Any], Any] | None = None

    def install(self) -> None:
        """Begin to hear of cells."""
        self._shell.events.register("pre_execute", self._on_execute)
        self._shell.events.register("pre_run_cell", self._on_cell)
        self._expressions = self._shell.user_expressions
        self._shell.user_expressions = self._evaluate

    def uninstall(self) -> None:
        """Take back what `install` did."""
        callbacks = self._shell.events.callbacks
        for event, callback in (("pre_execute", self._on_execute), ("pre_run_cell", self._on_cell)):
            if callback in callbacks[event]:
                self._shell.events.unregister(event, callback)
        vars(self._shell).pop("user_expressions", None)
        self.forget()

    def walks(self) -> dict[int, RememberedWalk]:
        """Walks to be taken for new ones at a lookup, and to be added to."""
        if self._silent or self._held_at != self._cells - 1 or (self._walks and not is_alone(self._shell)):
            self.forget()
        self._silent = 0
        self._known = len(self._walks)
        return self._walks

    def looked_up(self) -> None:
        """Note that a lookup has added its walks: they hold if nobody else can change anything."""
        if len(self._walks) > self._known and not is_alone(self._shell):
            self.forget()

    def restored(
        self, replaced: Iterable[object], namespace: Mapping[str, object], *, in_place: bool
    ) -> None:
        """Note that a hit took the place of the cell.

        Parameters
        ----------
        replaced : iterable of object
            What names stood for that the hit bound anew or deleted; it may have died.
        namespace : mapping
            The notebook's, after the hit.
        in_place : bool
            Whether objects were changed, or modules imported.
        """
        if in_place or not all(self._is_quiet(value) for value in replaced):
            self.forget()
        used = set(map(id, namespace.values()))
        self._walks = {place: walk for place, walk in self._walks.items() if place in used}
        self._held_at = self._cells

    def forget(self) -> None:
        """Note that code may run: no walk holds any more, and none keeps its objects."""
        self._walks = {}
        self._held_at = -1

    def _is_quiet(self, value: object) -> bool:
        """Whether a value can die without running code of the notebook."""
        return type(value) in PRIMITIVES or id(value) in self._walks

    def _on_execute(self, *_info: object) -> None:
        self._silent += 1

    def _on_cell(self, info: Any = None, *_more: object) -> None:
        self._silent -= 1
        self._cells += 1
        if "%%cached" not in (getattr(info, "raw_cell", None) or "")[:1000] and self._walks:
            self.forget()  # at once, as it may drop large objects

    def _evaluate(self, expressions: Any) -> Any:
        assert self._expressions is not None
        if expressions:
            self.forget()
        return self._expressions(expressions)


def is_alone(shell: Any) -> bool:
    """Whether nobody but the kernel and ourselves can run code between two cells."""
    try:
        return all(map(_is_of_kernel, _agents(shell)))
    except Exception:  # an event loop or a kernel of another make, which cannot be looked into
        return False


def _agents(shell: Any) -> Iterator[object]:
    """Everything that may run code, as functions or objects whose module tells whose it is."""
    threads = threading.enumerate()
    yield from (_work_of(thread) for thread in threads if thread is not threading.main_thread())
    if len(sys._current_frames()) > len(threads):
        yield None  # a thread that Python did not start
    yield from gc.callbacks
    yield from (hook for hook in (sys.gettrace(), sys.getprofile()) if hook is not None)
    handlers = (signal.getsignal(number) for number in signal.valid_signals())
    yield from (handler for handler in handlers if callable(handler))
    for callbacks in shell.events.callbacks.values():
        yield from callbacks
    yield from shell.input_transformers_cleanup
    yield from shell.input_transformers_post
    yield from shell.ast_transformers
    debugger = getattr(getattr(shell, "kernel", None), "debugger", None)
    if getattr(debugger, "is_started", False):
        yield None
    yield from _comms(shell)
    yield from _scheduled()


def _work_of(thread: threading.Thread) -> object:
    """What a thread does: its own `run`, or the function that it was given."""
    target = getattr(thread, "_target", None)
    return target if target is not None and type(thread).run is threading.Thread.run else type(thread)


def _comms(shell: Any) -> Iterator[object]:
    """Open comms: a widget's callbacks are the user's."""
    manager = getattr(getattr(shell, "kernel", None), "comm_manager", None)
    if manager is not None:
        yield from (None for _ in manager.comms)


def _scheduled() -> Iterator[object]:
    """Tasks and callbacks that wait in the running event loop."""
    try:
        loop: Any = asyncio.get_running_loop()
    except RuntimeError:
        return
    yield from (_code_of(task) for task in asyncio.all_tasks(loop))
    waiting = [*loop._ready, *loop._scheduled]
    for key in loop._selector.get_map().values():
        waiting += [handle for handle in key.data if handle is not None]
    for handle in waiting:
        if not handle._cancelled:
            callback = handle._callback
            task = getattr(callback, "__self__", None)
            yield _code_of(task) if isinstance(task, asyncio.Task) else callback


def _code_of(task: Any) -> object:
    """The coroutine function of a task, as far as a frame tells of it."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    return _InModule(frame.f_globals.get("__name__")) if frame is not None else None


class _InModule:
    """Something that is known by its module alone."""

    def __init__(self, module: object) -> None:
        self.__module__ = str(module)


def _is_of_kernel(agent: object) -> bool:
    while isinstance(agent, functools.partial):
        agent = agent.func
    owner = getattr(agent, "__self__", None)
    module = getattr(agent, "__module__", None)
    if not isinstance(module, str) and owner is not None:
        module = type(owner).__module__
    return isinstance(module, str) and module.partition(".")[0] in _KERNEL and module != _CHANGES
