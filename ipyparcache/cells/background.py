"""`--background NAME`.

A loop that goes on while other cells run, and enters the namespace between two of them.
"""

from __future__ import annotations

import contextvars
import html
import threading
from typing import Any

from ipyparcache.analysis.body import VALUE
from ipyparcache.analysis.steps import Comprehension, Loop, Serial
from ipyparcache.cells import loops
from ipyparcache.cells.looprun import LoopRun, drained
from ipyparcache.cells.plans import CellPlan, Host, RunReport
from ipyparcache.cells.tracebacks import without_our_frames
from ipyparcache.errors import BackgroundCancelled, BackgroundConflict, BackgroundRuns
from ipyparcache.progress.tracker import Snapshot, Status, Tracker
from ipyparcache.progress.widget import Bar, is_watched, show, show_summary


class Handle:
    """A loop that runs in the background.

    Its results enter the namespace when `result` is called, or at the end of the cell that runs when they are
    complete.
    """

    def __init__(self, name: str, plan: CellPlan, host: Host, report: RunReport, step: int) -> None:
        self._name = name
        self._plan = plan
        self._host = host
        self._report = report
        self._step = step
        self._over = threading.Event()
        self._entered = False
        self._failure: BaseException | None = None
        self._error: BaseException | None = None
        self._lock = threading.RLock()
        self._shown: list[tuple[contextvars.Context, Bar]] = []  # where cells have shown this handle
        self._shown_lock = threading.Lock()
        found = plan.steps[step]
        assert isinstance(found, Loop | Comprehension)
        found = loops.as_it_is_now(found, host.namespace, last=step == len(plan.steps) - 1)
        self._loop = found
        self._run = LoopRun(found.parfor, plan, host)
        self._run.is_streamed = isinstance(found, Comprehension) and found.kind == "generator"
        report.loops.append(self._run.report)
        self._run.prepare()
        self._run.start()
        self._run.open_cache(found.original if isinstance(found, Comprehension) else found.statement)
        self._tracker = Tracker(self._run.expected, f"{name}: {found.parfor.title}")
        self._tracker.start()
        namespace = host.namespace
        watched = {*found.parfor.changed, *found.parfor.temporaries}
        self._before = {key: namespace.get(key, _MISSING) for key in watched}

    def _start(self, *, quiet: bool, progress: bool) -> None:
        keep = "never" if quiet else "always"
        bar = show(self._tracker, self.cancel, keep=keep) if progress else None  # type: ignore[arg-type]

        def work() -> None:
            try:
                self._run.receive(self._tracker)
            except BaseException as error:
                self._failure = error
            finally:
                self._tracker.finish(self._ending())
                if bar is not None:
                    bar.close()
                with self._shown_lock:
                    self._over.set()
                for context, shown in self._shown:
                    context.run(shown.close)

        # The copied context keeps what the loop prints below its own cell.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(
            target=run, args=(work,), name=f"ipyparcache-{self._name}", daemon=True
        )
        self._thread.start()

    def _ending(self) -> Status:
        if self._run.interrupts.asked.is_set():
            return "interrupted"
        if self._failure is not None:
            return "failed"
        failed = self._plan.options.on_error == "raise" and self._tracker.snapshot().failed
        return "failed" if failed else "done"

    def done(self) -> bool:
        """Whether all iterations are over."""
        return self._over.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all iterations are over, `timeout` seconds at most; whether they are."""
        try:
            return self._over.wait(timeout)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"{self._name} goes on in the background; {self._name}.cancel() stops it")
            raise

    def cancel(self) -> None:
        """Begin no more iterations; what is finished in order is kept and enters the namespace."""
        self._run.interrupts.asked.set()

    @property
    def progress(self) -> Snapshot:
        """How far it is."""
        return self._tracker.snapshot()

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the loop, let its results enter the namespace, and hand back the variables that it set.

        Raises
        ------
        TimeoutError
            If it is not over within `timeout` seconds.
        BackgroundConflict
            If a variable that the loop changes was rebound meanwhile.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"{self._name} is not over after {timeout} s")
        self._enter()
        if self._error is not None:
            raise self._error
        return {key: self._host.namespace[key] for key in self._names() if key in self._host.namespace}

    def _names(self) -> list[str]:
        parfor = self._loop.parfor
        names = [*parfor.changed, *parfor.temporaries]
        if isinstance(self._loop, Comprehension):
            from ipyparcache.analysis.flow import bound_names

            names += sorted(bound_names(self._loop.original))
        return names

    def _enter(self) -> None:
        """Merge once, in the thread that asks."""
        with self._lock:
            if self._entered:
                return
            self._entered = True
            self._thread.join()
            try:
                self._merge()
            except KeyboardInterrupt:
                self._error = BackgroundCancelled(self._name, self._run.report.iterations)
            except BaseException as error:
                self._error = without_our_frames(error)

    def _merge(self) -> None:
        if self._failure is not None:
            raise self._failure
        namespace = self._host.namespace
        for name in self._loop.parfor.changed:
            if namespace.get(name, _MISSING) is not self._before[name]:
                raise BackgroundConflict(self._name, name)
        newer = {
            name: namespace.get(name, _MISSING)
            for name in self._loop.parfor.temporaries
            if namespace.get(name, _MISSING) is not self._before[name]
        }
        last = self._step == len(self._plan.steps) - 1
        stream = self._run.conclude()
        try:
            if isinstance(self._loop, Comprehension):
                loops.fill(self._loop, stream, self._host, last=last)
            else:
                drained(stream)
                for statement in self._loop.parfor.orelse:
                    self._host.run_statement(statement, last=False)
        finally:
            namespace.pop(VALUE, None)
            for name, value in newer.items():
                if value is not _MISSING:
                    namespace[name] = value
                text = f"`{name}` was set by another cell while {self._name} ran and keeps that value"
                self._host.show_note(f"<div>{html.escape(text)}</div>", text)
        loops.run_steps(self._plan, self._host, self._report, self._step + 1)
        loops.show_figures(self._report, self._host)
        loops.show_notes(self._plan, self._report, self._host)

    def make_room(self) -> None:
        """Let another loop have the name: the results of this one enter before that, if it is over.

        Raises
        ------
        BackgroundRuns
            If it is not.
        """
        if not self._over.is_set():
            raise BackgroundRuns(self._name, self._tracker.snapshot().ended)
        self._enter_between_cells()

    def _enter_between_cells(self, *_: object) -> None:
        """Before a cell begins and at its end: if the loop is over, its results enter now."""
        if not self._over.is_set() or self._entered:
            return
        _forget(self)
        self._enter()
        if self._error is not None:
            text = f"{self._name} ended with {type(self._error).__name__}: {self._error}"
            text += "".join(f", {note}" for note in getattr(self._error, "__notes__", ()))
            self._host.show_note(f"<div><b>ipyparcache:</b> {html.escape(text)}</div>", text)

    def __repr__(self) -> str:
        return self._tracker.summary_text()

    def _ipython_display_(self) -> None:
        """Show the bar: live until the loop is over, where a page looks; else how far it is."""
        with self._shown_lock:
            if not self._over.is_set() and is_watched():
                self._shown.append((contextvars.copy_context(), show(self._tracker, self.cancel)))
                return
        show_summary(self._tracker)


_MISSING = object()
_BETWEEN_CELLS = ("pre_run_cell", "post_run_cell")
_waiting: dict[int, tuple[Any, Any]] = {}


def start(plan: CellPlan, host: Host, report: RunReport) -> Handle:
    """Run the statements above the loop of a cell, start the loop, and bind its handle."""
    name = plan.options.background
    assert name is not None
    earlier = host.namespace.get(name)
    if isinstance(earlier, Handle):
        earlier.make_room()
    step = next(n for n, found in enumerate(plan.steps) if not isinstance(found, Serial))
    for found in plan.steps[:step]:
        assert isinstance(found, Serial)
        host.run_statement(found.statement, last=False)
    handle = Handle(name, plan, host, report, step)
    host.namespace[name] = handle
    shell = getattr(host, "shell", None)
    if shell is not None:
        for event in _BETWEEN_CELLS:
            shell.events.register(event, handle._enter_between_cells)
        _waiting[id(handle)] = shell, handle._enter_between_cells
    wanted = plan.options.progress is not False and not plan.options.no_progress
    handle._start(quiet=plan.options.quiet, progress=wanted)
    return handle


def _forget(handle: Handle) -> None:
    found = _waiting.pop(id(handle), None)
    if found is not None:
        shell, callback = found
        for event in _BETWEEN_CELLS:
            if callback in shell.events.callbacks.get(event, []):
                shell.events.unregister(event, callback)
