"""A tracker as a widget in a notebook: one HTML for everything, one Button, and static HTML at the end.

Why one HTML: the markup of eight lanes is one message a tick, where a tree of bars sends eighteen; and the
Jupyter server drops messages above 1000 a second. Why static at the end: a widget that is left in the saved
notebook shows "Loading widget..." for ever when it is opened without its kernel.
"""

from __future__ import annotations

import contextlib
import contextvars
import html
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Literal, Protocol

from ipyparcache.progress.tracker import (
    Lane,
    Snapshot,
    Tracker,
    count_text,
    duration_text,
    rate_text,
    summary_html,
    summary_text,
)

Where = Literal["auto", "notebook", "terminal", "nowhere"]
Keep = Literal["always", "shown", "never"]

# Seconds before a bar appears, so that a short run does not flash one, and between two looks at the tracker.
SHOW_AFTER = 0.3
LOOK_EVERY = 0.2

# A run that is over so soon gets no bar any more: to open one takes a processor from the workers for 10 ms.
SOON_OVER = 0.3

# Seconds between two states where each is a display of its own.
PLAIN_EVERY = 1.0

# Seconds without a bar after which the timer's thread ends: to start one costs the next run 2 ms.
END_AFTER = 30.0

_WIDGET = "application/vnd.jupyter.widget-view+json"

# JupyterLab's variables follow its theme; where they are missing, colours that are seen on both grounds.
_STYLE = """<style>
.ipyparcache-bar{font:var(--jp-ui-font-size1,13px)/1.5 var(--jp-ui-font-family,sans-serif);
color:var(--jp-ui-font-color1,inherit);font-variant-numeric:tabular-nums}
.ipyparcache-bar .head{display:flex;flex-wrap:wrap;gap:0 10px;align-items:center}
.ipyparcache-bar .lane{display:grid;grid-template-columns:70px minmax(20px,160px) minmax(max-content,1fr);
gap:8px;align-items:center;font-size:12px;color:var(--jp-ui-font-color2,inherit)}
.ipyparcache-bar .track{flex:1 1 60px;height:10px;border-radius:5px;overflow:hidden;
background:var(--jp-layout-color2,#8884)}
.ipyparcache-bar .lane .track{height:6px}
.ipyparcache-bar i{display:block;height:100%;background:var(--jp-brand-color1,#1976d2)}
.ipyparcache-bar .lane i{background:var(--jp-accent-color1,#4caf50)}
.ipyparcache-bar .hint{opacity:.7}
</style>"""


class Face(Protocol):
    """Something that shows the states of one run."""

    def update(self, snapshot: Snapshot) -> None:
        """Show a state; the first call makes the face appear."""

    def close(self, snapshot: Snapshot) -> None:
        """Show the last state in the form that stays."""


def show(
    tracker: Tracker,
    on_cancel: Callable[[], None] | None = None,
    where: Where = "auto",
    keep: Keep = "always",
) -> Bar:
    """Show a run until the bar is closed.

    Parameters
    ----------
    tracker
        What the run tells of itself.
    on_cancel
        Called once when the user presses Cancel, in a thread of the kernel's while the cell runs: it must
        return at once, so let it set an event or send a signal. Without it there is no button.
    where
        `auto` shows a widget if a notebook's page runs the cell, a text bar if standard error is a terminal,
        and nothing else. A cell that nbclient or papermill runs gets the static summary only.
    keep
        Whether a summary stays: `always`, only if the run took long enough for a bar (`shown`), or `never`.
    """
    face: Face | None = None
    if where == "auto":
        where = _place()
    if where == "notebook":
        face = NotebookBar(on_cancel, live=_page_answers(), keep=keep)
    elif where == "terminal":
        from ipyparcache.progress.terminal import TextBar

        face = TextBar(keep_summary=keep == "always" and "IPython" in sys.modules and _shell() is not None)
    return Bar(tracker, face)


class Bar:
    """A face that the timer keeps up to date, 5 times a second."""

    def __init__(self, tracker: Tracker, face: Face | None):
        self._tracker = tracker
        self._face = face
        self._open = face is not None
        self._lock = threading.Lock()  # held while the face is drawn, so that nothing is drawn after `close`
        self._appears_at = time.monotonic() + SHOW_AFTER
        self._appeared = False
        # What the timer displays belongs to the cell that runs now: without its context, output would
        # go to whatever message the kernel handles at that moment.
        self._context = contextvars.copy_context()
        if self._open:
            _TIMER.add(self)

    def close(self) -> None:
        """Replace the bar by what stays; a tracker that still runs is taken to be done."""
        self._tracker.finish()
        if self._face is None or not self._open:
            return
        _TIMER.remove(self)
        with self._lock:
            self._open = False
        self._face.close(self._tracker.snapshot())

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._tracker.finish("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")
        self.close()

    def look(self) -> None:
        """Draw the state of the run, if it is time; called by the timer."""
        with self._lock:
            if not self._open or self._face is None or time.monotonic() < self._appears_at:
                return
            snapshot = self._tracker.snapshot()
            left = snapshot.seconds_left
            if self._appeared or left is None or left > SOON_OVER:
                self._appeared = True
                self._context.run(self._face.update, snapshot)


class _Timer:
    """One thread that looks at all open bars, and ends when there was none for a while.

    A bar costs a list entry rather than a thread, as most runs are over before their bar would appear.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: list[Bar] = []
        self._thread: threading.Thread | None = None

    def add(self, bar: Bar) -> None:
        with self._lock:
            self._bars.append(bar)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="ipyparcache-progress", daemon=True)
                with contextlib.suppress(RuntimeError):  # the interpreter ends: then there is nobody to look
                    self._thread.start()

    def remove(self, bar: Bar) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._bars.remove(bar)

    def _run(self) -> None:
        needed_at = time.monotonic()
        while True:
            time.sleep(LOOK_EVERY)
            with self._lock:
                bars = list(self._bars)
                if bars:
                    needed_at = time.monotonic()
                elif time.monotonic() - needed_at > END_AFTER:
                    self._thread = None
                    return
            for bar in bars:
                # A front end that went away must not end the bars of the others.
                with contextlib.suppress(Exception):
                    bar.look()


_TIMER = _Timer()


class NotebookBar:
    """The widget in a notebook, and the static HTML that takes its place.

    Parameters
    ----------
    live
        Whether somebody looks while the cell runs; if not, only the summary is shown.
    """

    def __init__(self, on_cancel: Callable[[], None] | None, live: bool, keep: Keep):
        self._on_cancel = on_cancel
        self._live = live
        self._keep = keep
        self._cancelled = False
        self._display_id = uuid.uuid4().hex
        self._box: Any = None
        self._body: Any = None
        self._button: Any = None
        self._is_plain = False  # without ipywidgets
        self._shown_at: float | None = None  # when plain HTML was shown last

    def update(self, snapshot: Snapshot) -> None:
        """Show the state; makes the widgets on the first call."""
        if not self._live:
            return
        if self._box is None and not self._is_plain:
            try:
                self._open(snapshot)
            except ImportError:  # a kernel without ipywidgets
                self._is_plain = True
        if self._is_plain:
            self._show_plain(snapshot)
            return
        self._body.value = self._markup(snapshot)  # sends nothing if nothing changed
        if self._cancelled and self._button is not None and not self._button.disabled:
            self._button.description = "Cancelling…"
            self._button.disabled = True

    def close(self, snapshot: Snapshot) -> None:
        """Put static HTML in the place of the widget, or show it now if there was none."""
        from IPython.display import display, update_display

        static = {"text/plain": summary_text(snapshot), "text/html": summary_html(snapshot)}
        if self._box is None and self._shown_at is None:
            if self._keep == "always" or (self._keep == "shown" and snapshot.elapsed >= SHOW_AFTER):
                display(static, raw=True, metadata=self._metadata(snapshot))
            return
        if self._keep == "never":
            static = {"text/plain": "", "text/html": ""}
        update_display(static, raw=True, metadata=self._metadata(snapshot), display_id=self._display_id)
        for widget in (self._box, self._body, self._button):
            if widget is not None:
                for part in (widget, widget.layout, getattr(widget, "style", None)):
                    if part is not None:  # `close` of a widget leaves its layout and style open for ever
                        part.close()

    def _show_plain(self, snapshot: Snapshot) -> None:
        """Show the state as HTML and text alone, each time in the place of the last."""
        from IPython.display import display, update_display

        now = time.monotonic()
        if self._shown_at is not None and now - self._shown_at < PLAIN_EVERY:
            return
        shown = {"text/plain": summary_text(snapshot), "text/html": self._markup(snapshot)}
        put = display if self._shown_at is None else update_display
        put(shown, raw=True, metadata=self._metadata(snapshot), display_id=self._display_id)
        self._shown_at = now

    def _open(self, snapshot: Snapshot) -> None:
        import ipywidgets
        from IPython.display import display

        if self._on_cancel is not None and _can_cancel():
            self._button = ipywidgets.Button(
                description="Cancel",
                tooltip="Stop this run; what is finished is kept",
                layout=ipywidgets.Layout(width="auto", height="26px"),
            )
            self._button.on_click(lambda _button: self._cancel())
            if self._button.comm is not None:
                # ipykernel 7.4 delivers a click to the shell that runs the cell, so after it; but it first
                # asks this function, in the thread that receives messages. Elsewhere the name means nothing.
                self._button.comm._reply_subshell_for = self._peek
        layout = ipywidgets.Layout(width="520px", max_width="100%")  # a narrow page wraps it
        self._body = ipywidgets.HTML(self._markup(snapshot), layout=layout)
        self._box = ipywidgets.HBox(
            [self._body] if self._button is None else [self._body, self._button],
            layout=ipywidgets.Layout(align_items="flex-start", flex_flow="row wrap", grid_gap="4px 10px"),
        )
        view = {"version_major": 2, "version_minor": 0, "model_id": self._box.model_id}
        bundle = {_WIDGET: view, "text/plain": summary_text(snapshot), "text/html": summary_html(snapshot)}
        display(bundle, raw=True, metadata=self._metadata(snapshot), display_id=self._display_id)

    def _cancel(self) -> None:
        if not self._cancelled and self._on_cancel is not None:
            self._cancelled = True
            self._on_cancel()

    def _peek(self, data: object, default: object) -> None:
        # An exception here would lose the message, and the kernel would log nothing.
        with contextlib.suppress(Exception):
            content = data.get("content") if isinstance(data, dict) else None
            if isinstance(content, dict) and content.get("event") == "click":
                self._cancel()

    def _markup(self, snapshot: Snapshot) -> str:
        hint = ""
        if self._on_cancel is not None and self._button is None:
            hint = '<span class="hint">to stop: interrupt the kernel (■, or I I)</span>'
        return _STYLE + bar_markup(snapshot, hint)

    @staticmethod
    def _metadata(snapshot: Snapshot) -> dict[str, object]:
        return {"ipyparcache": {"kind": "progress", "status": snapshot.status}}


def bar_markup(snapshot: Snapshot, hint: str = "") -> str:
    """The running bar as HTML: the whole run, then a lane for each worker; escaped but for `hint`."""
    fraction, left = snapshot.fraction, snapshot.seconds_left
    facts = [count_text(snapshot), rate_text(snapshot) if snapshot.total is not None else ""]
    facts.append("" if left is None else f"about {duration_text(max(1, round(left)))} left")
    facts.append(f"{snapshot.from_cache} from cache" if snapshot.from_cache else "")
    facts.append(f"{snapshot.failed} failed" if snapshot.failed else "")
    if fraction is None:
        facts.append(duration_text(max(1, int(snapshot.elapsed))))
    said = " · ".join(fact for fact in facts if fact)
    label = html.escape(snapshot.label)
    value = "" if fraction is None else f' aria-valuenow="{100 * fraction:.0f}"'
    lanes = "".join(_lane_markup(number, lane, snapshot) for number, lane in enumerate(snapshot.lanes, 1))
    return (
        f'<div class="ipyparcache-bar"><div class="head" role="progressbar" aria-label="{label}"'
        f' aria-valuemin="0" aria-valuemax="100"{value} aria-valuetext="{html.escape(said)}"><b>{label}</b>'
        f'<span class="track"><i style="width:{100 * (fraction or 0):.1f}%"></i></span>'
        f'<span class="said">{html.escape(said)}</span>{hint}</div>{lanes}</div>'
    )


def _lane_markup(number: int, lane: Lane, snapshot: Snapshot) -> str:
    busy = 100 * lane.busy_share(snapshot.elapsed)
    said = f"{lane.done} done, {busy:.0f} % busy" + (f", {lane.current}" if lane.current else "")
    return (
        f'<div class="lane"><span>worker {number}</span>'
        f'<span class="track" aria-hidden="true"><i style="width:{busy:.0f}%"></i></span>'
        f"<span>{html.escape(said)}</span></div>"
    )


def _shell() -> Any:
    """The IPython shell of this process, None if there is none; IPython is not loaded for the question."""
    interactive = sys.modules.get("IPython.core.interactiveshell")
    if interactive is None or not interactive.InteractiveShell.initialized():
        return None
    return interactive.InteractiveShell.instance()


def _place() -> Where:
    if hasattr(_shell(), "kernel"):
        return "notebook"
    return "terminal" if sys.stderr is not None and sys.stderr.isatty() else "nowhere"


def show_summary(tracker: Tracker) -> None:
    """Display how far a run is now, once."""
    from IPython.display import display

    display({"text/plain": tracker.summary_text(), "text/html": tracker.summary_html()}, raw=True)


def is_watched() -> bool:
    """Whether a person's page would show a bar live."""
    return _place() == "notebook" and _page_answers()


def _page_answers() -> bool:
    """Whether a person's page asked for the cell that runs, rather than nbclient, papermill or nbconvert.

    These say in the request that nobody can be asked for input, and they answer no click either. A widget
    shown to them would only leave its model in the notebook's metadata.
    """
    shell = _shell()
    parent = shell.get_parent() if hasattr(shell, "get_parent") else getattr(shell, "parent_header", None)
    content = parent.get("content", {}) if isinstance(parent, dict) else {}
    return bool(content.get("allow_stdin", True))


def _can_cancel() -> bool:
    """Whether a click can be handled while a cell runs; before ipykernel 7 it waits for the cell's end."""
    info = getattr(getattr(_shell(), "kernel", None), "kernel_info", {})
    return "kernel subshells" in info.get("supported_features", ())
