"""What iterations show while they run on a worker, sent to the kernel as events.

Warnings, log records, displays and figures.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from ipyparcache.cells.additions import owner_of
from ipyparcache.cells.travel import ATOMS

#: Kinds of events that a chunk emits while it runs.
RECORD, DISPLAY, WARNING, LOGGED, AGAIN, TEXT, SHOWN, FIGURE, ENDED, CLEAR, FILTERS = range(11)

#: With `ENDED`: what came before it was put out before this entry of an iteration's log; before its end;
#: what comes behind it is put out behind an entry whose replay may raise.
AT_END, BEGINS = -1, -2

_active = threading.local()
_emitted = 0  # events of this process


def emit_event(kind: int, *facts: object) -> None:
    """Send an event of the running task to the kernel."""
    from ipyparcache.engine.worker import emit

    global _emitted
    _emitted += 1
    emit(pickle.dumps((kind, *facts), 5))


def put_out_so_far() -> tuple[int, ...]:
    """What differs when something was printed, or an event sent, since it was asked last."""
    try:
        return _emitted, os.lseek(1, 0, os.SEEK_END), os.lseek(2, 0, os.SEEK_END)
    except OSError:  # no files, as on a worker: it may have been printed
        return (time.monotonic_ns(),)


def show(objects: tuple[object, ...], options: dict[str, Any]) -> None:
    """Have the kernel show objects as a call of `display` with these options would."""
    showing: Showing | None = getattr(_active, "showing", None)
    if showing is None:  # between iterations: as IPython does where there is no shell
        print(*objects)
    else:
        emit_event(DISPLAY, showing.sendable((objects, options), True))


#: What Python calls when filters have changed.
_MUTATED = "_filters_mutated" if hasattr(warnings, "_filters_mutated") else "_filters_mutated_lock_held"


def forget_warnings() -> None:
    """Have warnings that were shown "once" shown again, as a change of filters does."""
    with getattr(warnings, "_lock", nullcontext()):
        getattr(warnings, _MUTATED)()


class Showing:
    """Catches what the iterations of a chunk show.

    Parameters
    ----------
    sendable
        Pickles a value for an event; the second argument says whether it may hold objects of the kernel.
    patches
        Attributes of modules and classes that have another value in the kernel than here.
    figures_open
        Whether the kernel has figures open, which the body would draw into.

    Attributes
    ----------
    drew_on
        Whether an iteration drew into a figure that it had not made, as an earlier one would have left it.
    """

    def __init__(
        self,
        sendable: Callable[[object, bool], tuple[bytes, list[bytes]]],
        patches: Sequence[tuple[str, str, Any]],
        *,
        figures_open: bool,
    ) -> None:
        self.sendable = sendable
        self.patches = patches
        self.figures_open = figures_open
        self.drew_on = False
        self.draws = False
        self._taken = False

    def begin(self) -> None:
        """Catch from now on."""
        import logging

        _active.showing = self
        self._plain_attributes = []
        for place, attribute, value in self.patches:
            owner = owner_of(place)
            self._plain_attributes.append((owner, attribute, vars(owner).get(attribute, self)))
            setattr(owner, attribute, value)

        self._showwarning = warnings.showwarning
        warnings.showwarning = self._warn
        self._filters = list(warnings.filters)
        # "Once" is decided in the kernel, which sees all iterations.
        self._shared_filters = [
            ("always", *entry[1:]) if entry[0] in ("default", "once", "module") else entry
            for entry in self._filters
        ]
        warnings.filters[:] = self._shared_filters  # type: ignore[index]
        forget_warnings()
        self._have_filters_changed = False
        self._mutated = getattr(warnings, _MUTATED)
        setattr(warnings, _MUTATED, self._note_change_of_filters)
        self._catch_figures()
        self._handler = _Handler()
        # The kernel's loggers have handlers of their own, which are asked there.
        loggers = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
        ending = [one for one in loggers if one.handlers or not one.propagate]
        self._handlers = [(one, list(one.handlers)) for one in (logging.root, *ending)]
        for one, _ in self._handlers:
            one.handlers[:] = [self._handler] if one is logging.root or not one.propagate else []

    def end(self) -> None:
        """Leave the process as it was."""
        for owner, attribute, value in self._plain_attributes:
            if value is self:  # there was none
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, value)
        if self.draws:
            pyplot: Any = sys.modules["matplotlib.pyplot"]
            pyplot.show, pyplot.gcf = self._plain_show, self._plain_gcf
        _active.showing = None
        warnings.showwarning = self._showwarning
        setattr(warnings, _MUTATED, self._mutated)
        warnings.filters[:] = self._filters  # type: ignore[index]
        forget_warnings()
        if self._have_filters_changed:
            emit_event(FILTERS, None)
        for one, handlers in self._handlers:
            one.handlers[:] = handlers

    def _warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if file is not None:
            self._showwarning(message, category, filename, lineno, file, line)
            return
        data, buffers = self.sendable((message, category), False)
        asks = self._is_for_kernel(message, category, lineno)
        emit_event(WARNING, (data, buffers, filename, lineno, asks, self._have_filters_changed))
        self._have_filters_changed = False

    def _note_change_of_filters(self) -> None:
        """Filters were changed or put back: what was shown "once" so far is shown again.

        Those which a module sets when it is imported were set in the kernel when it was imported there.
        """
        self._mutated()
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return
            frame = frame.f_back
        self._have_filters_changed = True

    def _is_for_kernel(self, message: Warning | str, category: type[Warning], line: int) -> bool:
        """Whether the kernel judges a warning: not where a filter of the body's own lets it pass."""
        shared = {id(entry) for entry in self._shared_filters}
        for entry in warnings.filters:
            _, text, kind, _, at = entry
            if issubclass(category, kind) and at in (0, line) and (text is None or text.match(str(message))):
                return id(entry) in shared
        return True

    # figures

    def _catch_figures(self) -> None:
        """Let `plt.show` show the figures in the kernel, and see who draws into a figure that is there."""
        pyplot: Any = sys.modules.get("matplotlib.pyplot")
        self.draws = pyplot is not None
        if pyplot is None:
            return
        self._plain_show, self._plain_gcf = pyplot.show, pyplot.gcf
        pyplot.show = lambda *_, **__: self._send_figures(DISPLAY)
        pyplot.gcf = self._gcf

    def open_figures(self) -> list[int]:
        """Numbers of the figures that are open here."""
        found: list[int] = sys.modules["matplotlib.pyplot"].get_fignums()
        return found

    def _gcf(self) -> Any:
        """The current figure; where there is none, the kernel's, or one that the next iteration draws on."""
        if not self.open_figures():
            self._taken = True
            self.drew_on = self.drew_on or self.figures_open
        return self._plain_gcf()

    def end_figures(self) -> None:
        """At the end of an iteration: what it left open is shown at the end of the cell."""
        self.drew_on = self.drew_on or (self._taken and bool(self.open_figures()))
        self._send_figures(FIGURE)

    def _send_figures(self, kind: int) -> None:
        """Send the open figures to the kernel and close them, as the notebook does when it shows them."""
        pyplot: Any = sys.modules["matplotlib.pyplot"]
        for number in pyplot.get_fignums():
            figure = pyplot.figure(number)
            # Closed first: an open figure would open again where it arrives.
            pyplot.close(figure)
            emit_event(kind, self.sendable(((figure,), {}), False))
        self._taken = False


@functools.cache
def _handler_class() -> Any:
    import logging

    class Handler(logging.Handler):
        """Sends log records to the kernel."""

        def emit(self, record: logging.LogRecord) -> None:
            facts = dict(record.__dict__)
            facts["msg"], facts["args"] = record.getMessage(), None
            if record.exc_info:
                facts["exc_text"] = logging.Formatter().formatException(record.exc_info)
                facts["exc_info"] = None
            plain = {name: value for name, value in facts.items() if type(value) in ATOMS}
            emit_event(LOGGED, plain)

    return Handler


def _Handler() -> Any:
    return _handler_class()()
