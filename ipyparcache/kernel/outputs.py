"""Record what a cell prints and shows, in order and while it streams; replay it.

The record is made by wrapping `write` of the stream objects (which sees output through older references,
and in a kernel also what C code and child processes write to descriptors 1 and 2, since ipykernel pumps
those into the same method), `publish` and `clear_output` of the display publisher, and two steps of the
display hook. Nothing is held back: every wrapper passes on first and notes afterwards.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

OWN = "ipyparcache"  # metadata key of everything that we show ourselves
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
DRAIN_SECONDS = 10.0  # how long to wait at most for the kernel's pump of descriptors 1 and 2


@dataclass(frozen=True)
class Stream:
    """Text written to stdout or stderr."""

    name: str
    text: str


@dataclass(frozen=True)
class Display:
    """A display or, with `update`, the replacement of an earlier one with the same display id."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    transient: dict[str, Any]
    update: bool


@dataclass(frozen=True)
class Clear:
    """A call of clear_output."""

    wait: bool


@dataclass(frozen=True)
class Result:
    """A value shown by the display hook; the value itself is `values[index]` of the record."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    index: int


OutputEvent: TypeAlias = Stream | Display | Clear | Result


class Record:
    """The outputs of one run, in the order in which they came."""

    def __init__(self) -> None:
        self._events: list[OutputEvent] = []
        self.values: list[object] = []  # of the results shown
        self.tracebacks = 0  # shown: also of errors that did not end the cell, as of a `__repr__`
        self.incomplete = False  # whether texts may still be under way in the kernel's pump
        self.muted = 0  # a shell without a front end writes displays to stdout: they are recorded as displays

    def add(self, event: OutputEvent) -> None:
        """Append an event."""
        self._events.append(event)

    def add_result(self, value: object) -> None:
        """Append a value that the display hook has put into `_`, before it writes it."""
        self.values.append(value)
        self._events.append(Result({}, {}, len(self.values) - 1))

    def fill_result(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Tell how the last value was written."""
        places = [place for place, event in enumerate(self._events) if isinstance(event, Result)]
        if not places:
            self.add_result(None)
            places = [len(self._events) - 1]
        self._events[places[-1]] = Result(data, metadata, len(self.values) - 1)

    def events(self) -> tuple[OutputEvent, ...]:
        """What is to be replayed: neighbouring texts of a stream joined, our own notes left out."""
        joined: list[OutputEvent] = []
        texts: list[str] = []

        def end_stream(name: str | None) -> None:
            if texts and name is not None:
                joined.append(Stream(name, "".join(texts)))
                texts.clear()

        current: str | None = None
        for event in self._events:
            if isinstance(event, Stream):
                if event.name != current:
                    end_stream(current)
                    current = event.name
                texts.append(event.text)
                continue
            end_stream(current)
            current = None
            joined.append(event)
        end_stream(current)
        # A clear that waits for what comes next has no effect if nothing does.
        return tuple(joined[:-1] if self.clears_next else joined)

    @property
    def clears_next(self) -> bool:
        """Whether what is shown next takes the place of all this."""
        return bool(self._events) and self._events[-1] == Clear(wait=True)


def _is_part_of_a_display(record: Record, hook: Any) -> bool:
    """Whether text is written by a terminal's display hook or publisher, which is recorded as what it
    shows."""
    return record.muted > 0 or bool(getattr(hook, "_is_active", False))


class _StreamTap:
    """Sees all text that one stream object is given, while it is attached."""

    def __init__(self, name: str, stream: Any, record: Record, hook: Any) -> None:
        self.name = name
        self.stream = stream
        self.record = record
        self.hook = hook
        self.marker = f"\x1b[0;0;{os.getpid()};{id(self)}m"  # invisible in a terminal
        self.drained = threading.Event()
        self.draining = False
        self.held = ""
        self.write: Callable[[str], Any] = stream.write
        # the kernel's own, which the pump writes to, where the user put a stream around it; else the same
        self.inner: Any = getattr(getattr(self._pump(), "_target", None), "__self__", stream)
        self.write_inner: Callable[[str], Any] = self.inner.write

    def attach(self) -> None:
        def write(text: str) -> Any:
            if self.draining and threading.current_thread() is self._pump():
                return self._write_while_draining(text)
            written = self.write(text)
            if isinstance(text, str) and text and not _is_part_of_a_display(self.record, self.hook):
                self.record.add(Stream(self.name, text))
            return written

        def write_inner(text: str) -> Any:
            if threading.current_thread() is not self._pump():
                return self.write_inner(text)
            if self.draining:
                return self._write_while_draining(text)
            self.record.add(Stream(self.name, text))
            return self.write_inner(text)

        self.stream.write = write
        if self.inner is not self.stream:
            self.inner.write = write_inner

    def _pump(self) -> threading.Thread | None:
        thread = getattr(self.stream, "watch_fd_thread", None)
        return thread if isinstance(thread, threading.Thread) else None

    def _write_while_draining(self, text: str) -> int:
        """Pass on what the pump brings, without our marker, which may come in pieces."""
        self.held += text
        found = self.held.find(self.marker)
        keep = 0
        if found >= 0:
            self.held = self.held[:found] + self.held[found + len(self.marker) :]
            self.drained.set()
        else:
            keep = next(
                (n for n in range(len(self.marker) - 1, 0, -1) if self.held.endswith(self.marker[:n])), 0
            )
        ready, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        if ready:
            self.write_inner(ready)
            self.record.add(Stream(self.name, ready))
        return len(text)

    def start_drain(self) -> bool:
        """Send a marker through the kernel's pump; everything written to the descriptor before it comes
        first."""
        descriptor = {"stdout": 1, "stderr": 2}[self.name]
        pump = self._pump()
        if pump is None or not pump.is_alive():
            return False
        self.draining = True
        try:
            os.write(descriptor, self.marker.encode())
        except OSError:
            self.draining = False
            return False
        return True

    def end_drain(self, deadline: float) -> None:
        if not self.drained.wait(max(0.0, deadline - time.monotonic())):
            self.record.incomplete = True
        if self.held:
            self.write_inner(self.held)
            self.record.add(Stream(self.name, self.held))
            self.held = ""
        self.draining = False

    def detach(self) -> None:
        self.stream.__dict__.pop("write", None)
        self.inner.__dict__.pop("write", None)


class _Tee:
    """Stands for a stream whose `write` cannot be replaced (a plain text file): passes on and notes."""

    def __init__(self, name: str, stream: Any, record: Record, hook: Any) -> None:
        self._name, self._stream, self._record, self._hook = name, stream, record, hook

    def write(self, text: str) -> int:
        written: int = self._stream.write(text)
        if text and not _is_part_of_a_display(self._record, self._hook):
            self._record.add(Stream(self._name, text))
        return written

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)


@contextmanager
def recording(
    shell: Any, record: Record, *, silenced: bool, is_wanted: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Record everything that the block prints and shows, live.

    Parameters
    ----------
    shell : InteractiveShell
    record : Record
    silenced : bool
        Whether the cell ends with `;`, so that its last value is not shown.
    is_wanted : callable
        Asked at the end: whether the record will be used, so that what C code and child processes wrote has
        to be waited for.
    """
    taps: list[_StreamTap] = []
    replaced: list[tuple[str, Any, _Tee]] = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        tap = _StreamTap(name, stream, record, shell.displayhook)
        try:
            tap.attach()
        except AttributeError:  # a C object: its attributes are fixed
            tee = _Tee(name, stream, record, shell.displayhook)
            setattr(sys, name, tee)
            replaced.append((name, stream, tee))
        else:
            taps.append(tap)
    undo = [*_tap_display(shell, record), *_tap_display_hook(shell.displayhook, record, silenced)]
    try:
        yield
    finally:
        flush_figures(shell)
        if is_wanted():
            _flush_c_streams()
            deadline = time.monotonic() + DRAIN_SECONDS
            draining = [tap for tap in taps if tap.start_drain()]
            for tap in draining:
                tap.end_drain(deadline)
        for tap in taps:
            tap.detach()
        for name, stream, tee in replaced:
            if getattr(sys, name) is tee:
                setattr(sys, name, stream)
        for step in reversed(undo):
            step()


def _tap_display(shell: Any, record: Record) -> list[Callable[[], None]]:
    publisher = shell.display_pub
    publish, clear = publisher.publish, publisher.clear_output
    mutes = not hasattr(shell, "kernel")  # in a kernel a display is a message, not text

    def tapped_publish(data: Any, metadata: Any = None, *args: Any, **kwargs: Any) -> Any:
        record.muted += mutes
        try:
            done = publish(data, metadata, *args, **kwargs)
        finally:
            record.muted -= mutes
        if OWN not in (metadata or {}):
            transient = dict(kwargs.get("transient") or {})
            shown = Display(dict(data), dict(metadata or {}), transient, bool(kwargs.get("update", False)))
            record.add(shown)
        return done

    def tapped_clear(wait: bool = False) -> Any:
        record.muted += mutes
        try:
            done = clear(wait)
        finally:
            record.muted -= mutes
        record.add(Clear(bool(wait)))
        return done

    publisher.publish, publisher.clear_output = tapped_publish, tapped_clear
    show = shell._showtraceback

    def tapped_show(*args: Any, **kwargs: Any) -> Any:
        record.tracebacks += 1
        return show(*args, **kwargs)

    own = shell.__dict__.get("_showtraceback")
    shell.__dict__["_showtraceback"] = tapped_show

    def undo() -> None:
        for name in ("publish", "clear_output"):
            publisher.__dict__.pop(name, None)
        if own is None:
            shell.__dict__.pop("_showtraceback", None)
        else:
            shell.__dict__["_showtraceback"] = own

    return [undo]


def _tap_display_hook(hook: Any, record: Record, silenced: bool) -> list[Callable[[], None]]:
    write_format_data, update_user_ns = hook.write_format_data, hook.update_user_ns

    def tapped_write(format_dict: Any, md_dict: Any = None) -> Any:
        done = write_format_data(format_dict, md_dict)
        record.fill_result(dict(format_dict), dict(md_dict or {}))
        return done

    def tapped_update(result: object) -> Any:
        record.add_result(result)  # also of what shows itself (`_ipython_display_`), which is not written
        return update_user_ns(result)

    hook.write_format_data, hook.update_user_ns = tapped_write, tapped_update
    hook.quiet = lambda: silenced

    def undo() -> None:
        for name in ("write_format_data", "update_user_ns", "quiet"):
            hook.__dict__.pop(name, None)

    return [undo]


def flush_figures(shell: Any) -> None:
    """Show figures that were drawn but not shown, as the inline backend does after a cell."""
    for callback in shell.events.callbacks.get("post_execute", []):
        if getattr(callback, "__name__", "") == "flush_figures":
            callback()


def display_facts(shell: Any, is_user_code: Callable[[str | None], bool]) -> str:
    """How the shell shows values, as far as the user has changed it: what it says of the same value differs.

    Printers that the user registered for a type count by the code of their function.
    """
    formatters = shell.display_formatter.formatters
    plain = formatters["text/plain"]
    facts: list[object] = [shell.ast_node_interactivity, plain.float_precision, plain.pprint, plain.max_width]
    for mime, formatter in sorted(formatters.items()):
        for kind, printer in formatter.type_printers.items():
            code = getattr(printer, "__code__", None)
            if code is not None and is_user_code(getattr(printer, "__module__", None)):
                consts = [const for const in code.co_consts if not hasattr(const, "co_code")]
                facts.append((mime, kind.__qualname__, code.co_code.hex(), repr(consts), code.co_names))
    facts += [("stream", name) for name in streams_of_the_user(is_user_code)]
    return repr(facts + _figure_facts())


def streams_of_the_user(is_user_code: Callable[[str | None], bool]) -> list[str]:
    """Which of the standard streams the user put an object of a class of his own in the place of."""
    names = ("stdout", "stderr")
    return [name for name in names if is_user_code(type(getattr(sys, name)).__module__)]


def _figure_facts() -> list[object]:
    """How the inline backend draws and closes figures, where that is not its default."""
    config: Any = sys.modules.get("matplotlib_inline.config")
    if config is None or not config.InlineBackend.initialized():
        return []
    backend = config.InlineBackend.instance()
    facts: list[object] = []
    for name in ("figure_formats", "print_figure_kwargs", "close_figures"):
        value, default = getattr(backend, name), getattr(type(backend), name).default()
        if value != default:
            facts.append((name, sorted(value) if isinstance(value, set) else repr(value)))
    return facts


def open_figures() -> set[int]:
    """Numbers of the figures that pyplot keeps open."""
    helpers: Any = sys.modules.get("matplotlib._pylab_helpers")
    return set() if helpers is None else set(helpers.Gcf.figs)


def _flush_c_streams() -> None:
    """Bring out what C code has printed but not flushed."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    ctypes = sys.modules.get("ctypes")  # only a process that uses C libraries has text waiting there
    if ctypes is not None and sys.platform != "win32":
        ctypes.CDLL(None).fflush(None)


@contextmanager
def held_back() -> Iterator[list[Stream]]:
    """Keep from the user what the block prints, also by C code; the list is filled at the end.

    The streams stay the objects that they are, as the block may keep them (a log handler does).
    """
    heard: list[Stream] = []
    main = threading.current_thread()

    def holding(name: str, write: Callable[[str], Any]) -> Callable[[str], Any]:
        def hold(text: str) -> Any:
            if threading.current_thread() is not main:
                return write(text)
            heard.append(Stream(name, text))
            return len(text)

        return hold

    held: list[Any] = []
    with _descriptors_aside() as files:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            try:
                stream.write = holding(name, stream.write)
            except AttributeError:  # a plain text file, which writes to the descriptor
                continue
            held.append(stream)
        try:
            yield heard
        finally:
            for stream in held:
                stream.__dict__.pop("write", None)
            _flush_c_streams()
            for name, file in files.items():
                file.seek(0)
                text = file.read().decode(errors="replace")
                if text:
                    heard.append(Stream(name, text))


@contextmanager
def _descriptors_aside() -> Iterator[dict[str, Any]]:
    """Files in place of descriptors 1 and 2."""
    _flush_c_streams()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, ExitStack() as undo:
        for file, descriptor in ((out, 1), (err, 2)):
            copy = os.dup(descriptor)
            undo.callback(os.close, copy)
            undo.callback(os.dup2, copy, descriptor)
            os.dup2(file.fileno(), descriptor)
        yield {"stdout": out, "stderr": err}


_CELL_FILES = re.compile(r"\S*ipykernel_\d+\S*\.py|<ipython-input-[^>]*>")


def not_recorded(heard: Sequence[Stream], events: Sequence[OutputEvent]) -> list[Stream]:
    """What of the texts heard the record does not tell; the name of a cell's file, new in each kernel, is
    no difference."""
    told = {
        name: "".join(event.text for event in events if isinstance(event, Stream) and event.name == name)
        for name in ("stdout", "stderr")
    }
    return [
        event
        for event in heard
        if _CELL_FILES.sub("", event.text) not in _CELL_FILES.sub("", told[event.name])
    ]


def replay(shell: Any, events: Sequence[OutputEvent], values: Sequence[object]) -> None:
    """Show a record again: the same texts, displays and results in the same order."""
    for event in events:
        if isinstance(event, Stream):
            getattr(sys, event.name).write(event.text)
        elif isinstance(event, Display):
            shell.display_pub.publish(
                data=_static(event.data),
                metadata=event.metadata,
                transient=event.transient,
                update=event.update,
            )
        elif isinstance(event, Clear):
            shell.display_pub.clear_output(event.wait)
        else:
            _show_result(shell.displayhook, event, values[event.index])


def _static(data: dict[str, Any]) -> dict[str, Any]:
    """A display without the view of a widget, whose model lived in another kernel."""
    if WIDGET_VIEW not in data:
        return data
    return {kind: content for kind, content in data.items() if kind != WIDGET_VIEW}


def _show_result(hook: Any, event: Result, value: object) -> None:
    """What the display hook does with a value, without formatting it again."""
    hook.check_for_underscore()
    hook.start_displayhook()
    hook.write_output_prompt()
    hook.update_user_ns(value)
    hook.fill_exec_result(value)
    if event.data:
        hook.write_format_data(event.data, event.metadata)
        hook.log_output(event.data)
    hook.finish_displayhook()


def show_note(shell: Any, html: str, text: str, **facts: Any) -> None:
    """Show something of our own below the cell, marked so that tools can tell it from the user's output."""
    shell.display_pub.publish(
        data={"text/html": html, "text/plain": text}, metadata={OWN: facts or {"kind": "note"}}
    )
