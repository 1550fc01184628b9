"""The error tree: one class a situation, facts as attributes, the next step in the text.

Every class hands all its facts to `super().__init__`, since an exception is pickled as its class and its
`args`
and these errors cross process borders.
"""

from __future__ import annotations


class ParcacheError(Exception):
    """Base of every error that ipyparcache raises on purpose."""


class UnknownSetting(ParcacheError, ValueError):
    """A setting that does not exist."""

    def __init__(self, name: str, nearest: str | None):
        super().__init__(name, nearest)
        self.name = name
        self.nearest = nearest

    def __str__(self) -> str:
        hint = f"; did you mean `{self.nearest}`?" if self.nearest else "; `%parcache set` lists them."
        return f"there is no setting `{self.name}`{hint}"


class BadSetting(ParcacheError, ValueError):
    """A setting whose text cannot be read; `source` is where it stands, if nobody has just typed it."""

    def __init__(self, name: str, text: str, expected: str, reason: str, source: str = ""):
        super().__init__(name, text, expected, reason, source)
        self.source = source
        self.name = name
        self.text = text
        self.expected = expected
        self.reason = reason

    def __str__(self) -> str:
        told = f"{self.text!r}, as {self.source} has it" if self.source else repr(self.text)
        return f"setting `{self.name}` cannot be {told}: {self.reason}. It takes {self.expected}."


class StoreUnavailable(ParcacheError):
    """A store that cannot be written or reached: full, read-only, not a folder, without its signing key."""

    def __init__(self, location: str, reason: str):
        super().__init__(location, reason)
        self.location = location
        self.reason = reason

    def __str__(self) -> str:
        return f"the cache at {self.location} cannot be used: {self.reason}"


class DamagedEntry(ParcacheError):
    """An entry whose content is not what was stored: a miss for every reader."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"cache entry {self.name} is damaged ({self.reason})"


class Undigestible(ParcacheError):
    """A value that has no stable digest: a generator, a lock, an open connection."""

    def __init__(self, path: str, type_name: str, reason: str):
        super().__init__(path, type_name, reason)
        self.path = path
        self.type_name = type_name
        self.reason = reason

    def __str__(self) -> str:
        return f"`{self.path}` ({self.type_name}) cannot be an input: {self.reason}"


class Unrestorable(ParcacheError):
    """An object whose own state cannot be put back in place."""

    def __init__(self, type_name: str, reason: str):
        super().__init__(type_name, reason)
        self.type_name = type_name
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"an object of type {self.type_name} that was changed in place cannot be restored: {self.reason}"
        )


class EngineError(ParcacheError, RuntimeError):
    """The workers cannot do what was asked, for a reason that lies outside the tasks.

    Attributes
    ----------
    unit
        What the user knows the task by: an `iteration` in a loop.
    """

    unit = "task"
    index: int

    def of_iteration(self, number: int) -> None:
        """Name the iteration of a loop in the place of the task that held it."""
        self.index, self.unit = number, "iteration"


class WorkersNotStarted(EngineError):
    """Worker processes end before they are ready; `reason` is what they last wrote."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the worker processes end before they are ready:\n{self.reason}\n"
            "Check that a new Python started from here can import what sitecustomize and PYTHONSTARTUP name; "
            "backend='threads' needs no processes."
        )


class WorkerDied(EngineError):
    """The worker process of a task ended in the middle of it: killed, crashed, or out of memory."""

    def __init__(self, index: int, signal: int | None, exit_code: int | None, max_rss: int):
        super().__init__(index, signal, exit_code, max_rss)
        self.index = index
        self.signal = signal
        self.exit_code = exit_code
        self.max_rss = max_rss

    def __str__(self) -> str:
        how, advice, memory = self._end()
        return f"the worker of {self.unit} {self.index} {how} while it ran.{memory}{advice}"

    def _end(self) -> tuple[str, str, str]:
        if self.signal is not None:
            import signal

            try:
                name = signal.Signals(self.signal).name
            except ValueError:
                name = f"signal {self.signal}"
            how = f"was killed by {name}"
            advice = " Out of memory is the usual reason: run fewer at once." if self.signal == 9 else ""
        else:
            how = f"exited with code {self.exit_code}" if self.exit_code is not None else "ended"
            advice = ""
        memory = f" Its memory had reached {self.max_rss / 1e6:,.0f} MB." if self.max_rss else ""
        return how, advice, memory


class PoolWorkerDied(WorkerDied):
    """A process of a pool of `multiprocessing` was killed or crashed; which tasks it had, no pool knows."""

    def __init__(self, signal: int | None, exit_code: int | None):
        super().__init__(-1, signal, exit_code, 0)
        self.args = (signal, exit_code)

    def __str__(self) -> str:
        how, advice, _ = self._end()
        return f"a process of the multiprocessing pool {how}, and the results of its tasks are lost.{advice}"


class WorkersDiedLoading(WorkerDied):
    """Worker processes end, one after another, while they load the function of the tasks."""

    def __str__(self) -> str:
        how, advice, memory = self._end()
        return (
            f"each worker ended before it began a {self.unit}, while it loaded the function and what that "
            f"needs: the last one {how}.{memory}{advice}\n"
            "Look for a module that cannot be imported twice, or a global whose unpickling ends the process."
        )


class TaskTimeout(EngineError, TimeoutError):
    """A task that ran longer than its limit; its worker was replaced."""

    def __init__(self, index: int, seconds: float):
        super().__init__(index, seconds)
        self.index = index
        self.seconds = seconds

    def __str__(self) -> str:
        return f"{self.unit} {self.index} ran longer than its limit of {self.seconds:g} s, and was ended"


class TaskCancelled(EngineError):
    """A task that was ended, or never begun, because its call was cancelled."""

    def __init__(self, index: int):
        super().__init__(index)
        self.index = index

    def __str__(self) -> str:
        return f"{self.unit} {self.index} was cancelled"


class TaskExit(EngineError):
    """A task raised SystemExit.

    KeyboardInterrupt or their like, which must not end the process that called it.
    """

    def __init__(self, name: str, text: str):
        super().__init__(name, text)
        self.name = name
        self.text = text

    def __str__(self) -> str:
        return f"a task raised {self.name}({self.text}); only its own work was ended"


class CodecMissing(ParcacheError, ValueError):
    """A codec that needs a package which is not installed, or that this process does not know."""

    def __init__(self, codec: str, package: str | None):
        super().__init__(codec, package)
        self.codec = codec
        self.package = package

    def __str__(self) -> str:
        if self.package is None:
            return f"the codec {self.codec} is not known here; register it with register_compressor"
        return f"the codec {self.codec} is not installed: pip install {self.package}"


class DamagedFile(ParcacheError, ValueError, EOFError):
    """A file that `load` cannot read to its end."""

    def __init__(self, filename: str, reason: str):
        super().__init__(filename, reason)
        self.filename = filename
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.filename} cannot be loaded: {self.reason}"


class LoopRefused(ParcacheError):
    """A loop that `%%parallel` will not run.

    Apart, its iterations would not leave what they leave in order.
    """

    def __init__(self, line: int, variable: str | None, reason: str, advice: str):
        super().__init__(line, variable, reason, advice)
        self.line = line
        self.variable = variable
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}.\n{self.advice}"

    def _render_traceback_(self) -> list[str]:
        return [f"LoopRefused: {self}"]


class ChangeLost(ParcacheError):
    """An iteration changed something that it only had a copy of: the change would be lost."""

    def __init__(self, line: int, what: str, first: int, last: int, advice: str):
        super().__init__(line, what, first, last, advice)
        self.line = line
        self.what = what
        self.first = first
        self.last = last
        self.advice = advice

    def __str__(self) -> str:
        one = self.first == self.last
        where = f"iteration {self.first}" if one else f"iterations {self.first} to {self.last}"
        return (
            f"line {self.line}: the loop changed {self.what} in {where}; the change was made to a worker's "
            f"copy and is lost. The variables are as before iteration {self.first}.\n{self.advice}"
        )

    def _render_traceback_(self) -> list[str]:
        return [f"ChangeLost: {self}"]


class EarlierValueLost(ChangeLost):
    """An iteration asked for what an earlier one left in a variable, and no worker has it."""

    def __str__(self) -> str:
        return (
            f"line {self.line}: iteration {self.first} reads `{self.what}` as an earlier iteration left it, "
            f"which is lost on a worker. The variables are as before iteration {self.first}.\n{self.advice}"
        )

    def _render_traceback_(self) -> list[str]:
        return [f"EarlierValueLost: {self}"]


class FilesMet(ChangeLost):
    """Iterations that ran side by side used one file, and one of them wrote it."""

    def __str__(self) -> str:
        one = self.first == self.last
        where = f"iteration {self.first}" if one else f"iterations {self.first} to {self.last}"
        return (
            f"line {self.line}: {where} ran beside {self.what}, and what one of them wrote there another "
            f"reads, asks for, lists or writes: what the serial loop would have found is lost. The variables "
            f"are as before iteration {self.first}; files stay as they are.\n{self.advice}"
        )

    def _render_traceback_(self) -> list[str]:
        return [f"FilesMet: {self}"]


class ChangedSideBySide(ChangeLost):
    """Iterations on threads changed an object that they share: in no fixed order, and it cannot be undone."""

    def __str__(self) -> str:
        return (
            f"line {self.line}: iterations on threads changed {self.what} side by side, in no fixed order; "
            f"what the serial loop would have left there is lost. The change stays: run the cells again that "
            f"made it.\n{self.advice}"
        )


class IterationError(ParcacheError):
    """Stands, with `--on-error collect`, where the result of an iteration that failed would be."""

    def __init__(self, iteration: int, element: str, error: BaseException):
        super().__init__(iteration, element, error)
        self.iteration = iteration
        self.element = element
        self.error = error

    def __str__(self) -> str:
        error = f"{type(self.error).__name__}: {self.error}"
        which = f"iteration {self.iteration}" + (f" ({self.element})" if self.element else "")
        return f"{which} failed: {error}"


class Unrepeatable(ParcacheError):
    """A run did something outside the namespace that a hit could not bring back.

    Or depends on what has no digest.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class BackgroundRuns(ParcacheError):
    """A loop is to go to the background under a name whose loop is not over."""

    def __init__(self, run: str, ended: int):
        super().__init__(run, ended)
        self.run = run
        self.ended = ended

    def __str__(self) -> str:
        return (
            f"the loop `{self.run}` still runs in the background ({self.ended} iterations are done), so this "
            f"one has not begun.\nWait for it with `{self.run}.result()`, stop it with `{self.run}.cancel()` "
            "(what is finished is kept), or give this one another name."
        )

    def _render_traceback_(self) -> list[str]:
        return [f"BackgroundRuns: {self}"]


class BackgroundConflict(ParcacheError):
    """A loop in the background changes a variable that another cell has rebound meanwhile."""

    def __init__(self, run: str, variable: str):
        super().__init__(run, variable)
        self.run = run
        self.variable = variable

    def __str__(self) -> str:
        return (
            f"`{self.variable}` was rebound while {self.run} ran, so its results have no place to go. "
            "They are in `%parcache partial`; run the loop's cell again to have them in the variable."
        )

    def _render_traceback_(self) -> list[str]:
        return [f"BackgroundConflict: {self}"]


class BackgroundCancelled(ParcacheError):
    """A loop in the background was cancelled; its first iterations, in order, have been kept."""

    def __init__(self, run: str, iterations: int):
        super().__init__(run, iterations)
        self.run = run
        self.iterations = iterations

    def __str__(self) -> str:
        return f"{self.run} was cancelled after {self.iterations} iterations, which are kept"

    def _render_traceback_(self) -> list[str]:
        return [f"BackgroundCancelled: {self}"]
