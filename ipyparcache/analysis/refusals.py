"""Why a loop or a cell is refused: one class a reason, each with the line, the variable and a rewrite that works."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Refusal(ABC):
    """Why `%%parallel` will not run a loop.

    Attributes
    ----------
    line
        Line of the cell that is in the way.
    variable
        The name that it is about; None where it is about the statement itself.
    """

    line: int
    variable: str | None = None

    @property
    @abstractmethod
    def reason(self) -> str:
        """What is in the way, as a clause without a full stop."""

    @property
    @abstractmethod
    def advice(self) -> str:
        """What to type instead."""

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}.\n{self.advice}"


@dataclass(frozen=True)
class NothingParallel(Refusal):
    """The cell has no loop of a kind that can be run in tasks."""

    @property
    def reason(self) -> str:
        return "the cell has no top-level `for` loop, comprehension or generator argument to run in parallel"

    @property
    def advice(self) -> str:
        return "Drop %%parallel from this cell, or move its loop out of the `if`, `while`, `with` or function it is in."


@dataclass(frozen=True)
class BreakInLoop(Refusal):
    """A `break` that belongs to the loop itself: which iterations run depends on the ones before."""

    @property
    def reason(self) -> str:
        return "`break` ends the loop, so whether an iteration runs depends on the one before"

    @property
    def advice(self) -> str:
        return (
            "Collect for every element whether it is the one (`hits = [x for x in xs if test(x)]` under %%parallel) "
            "and choose afterwards (`found = hits[0] if hits else None`), or drop %%parallel from the cell."
        )


@dataclass(frozen=True)
class StatementInLoop(Refusal):
    """`return`, `yield`, `await` and their kind, which only the kernel itself can run."""

    what: str = ""

    @property
    def reason(self) -> str:
        return f"`{self.what}` cannot run on a worker"

    @property
    def advice(self) -> str:
        return "Move it in front of the loop or behind it, or drop %%parallel from the cell."


@dataclass(frozen=True)
class CarriedVariable(Refusal):
    """A variable that an iteration reads as an earlier iteration left it."""

    written_at: int = 0

    @property
    def reason(self) -> str:
        return (
            f"`{self.variable}` is read here as the iteration before left it (line {self.written_at} assigns it), "
            "so the iterations depend on each other"
        )

    @property
    def advice(self) -> str:
        return (
            f"Keep only what needs no earlier iteration in this loop, collecting it in a list, and move the lines with "
            f"`{self.variable}` to a second loop over that list in a cell without %%parallel; or, if `{self.variable}` "
            "is meant to be new in every iteration, assign it at the top of the body."
        )


@dataclass(frozen=True)
class CarriedReduction(Refusal):
    """The running value of a reduction is used inside of the loop."""

    written_at: int = 0

    @property
    def reason(self) -> str:
        return (
            f"the running value of `{self.variable}` is read here while line {self.written_at} changes it in every "
            "iteration"
        )

    @property
    def advice(self) -> str:
        return (
            "Collect each iteration's part in a list here (`parts.append(...)`) and form the running values afterwards, "
            "for instance with `itertools.accumulate(parts)`, in a cell without %%parallel."
        )


@dataclass(frozen=True)
class CarriedContainer(Refusal):
    """A container that the loop both changes and reads."""

    changed_at: int = 0

    @property
    def reason(self) -> str:
        return (
            f"`{self.variable}` is read here while line {self.changed_at} changes it in every iteration, so an "
            "iteration would need what the ones before it have written"
        )

    @property
    def advice(self) -> str:
        return (
            f"Write the results to a new container and read only the old one "
            f"(`new_{self.variable} = []` before the loop, `new_{self.variable}.append(...)` in it), "
            "or drop %%parallel from the cell."
        )


@dataclass(frozen=True)
class MutatorResult(Refusal):
    """The result of a method that changes an outer object is used: it depends on the earlier iterations."""

    method: str = ""

    @property
    def reason(self) -> str:
        return (
            f"`{self.variable}.{self.method}(...)` changes `{self.variable}` and its result is used here, so it depends "
            "on the iterations before"
        )

    @property
    def advice(self) -> str:
        return f"Loop over the elements of `{self.variable}` instead of taking them out one by one, or drop %%parallel."


@dataclass(frozen=True)
class ChangedThroughAlias(Refusal):
    """An outer object is changed through a second name made in the body."""

    root: str = ""
    changed_at: int = 0

    @property
    def reason(self) -> str:
        return (
            f"`{self.variable}` stands for (a part of) `{self.root}` here and line {self.changed_at} changes it: the "
            f"change would be made to a worker's copy of `{self.root}`"
        )

    @property
    def advice(self) -> str:
        return f"Write through the outer name itself (`{self.root}[...] = ...` or `{self.root}.append(...)`), without `{self.variable}`."


@dataclass(frozen=True)
class ChangedByCall(Refusal):
    """A notebook function changes an outer object that it gets as an argument."""

    function: str = ""

    @property
    def reason(self) -> str:
        return (
            f"`{self.function}` changes its argument `{self.variable}` in place: the change would be made to a worker's "
            "copy"
        )

    @property
    def advice(self) -> str:
        return (
            f"Let `{self.function}` return what it would have put into `{self.variable}` and collect it here, "
            f"for instance `{self.variable}.append({self.function}(...))`."
        )


@dataclass(frozen=True)
class GlobalWrite(Refusal):
    """A called notebook function assigns a global name."""

    function: str = ""

    @property
    def reason(self) -> str:
        return f"`{self.function}` assigns the global `{self.variable}`, which would be lost on a worker"

    @property
    def advice(self) -> str:
        return (
            f"Let `{self.function}` return the value and update `{self.variable}` in the loop "
            f"(for instance `{self.variable} += ...`), or drop %%parallel from the cell."
        )


@dataclass(frozen=True)
class GlobalChange(Refusal):
    """A called notebook function changes a global object in place: a memo, a log, a registry."""

    function: str = ""

    @property
    def reason(self) -> str:
        return f"`{self.function}` changes the global `{self.variable}` in place, which would be lost on a worker"

    @property
    def advice(self) -> str:
        return (
            f"Let `{self.function}` return what belongs into `{self.variable}` and put it there in the loop "
            f"(for a memo: `functools.lru_cache` on `{self.function}`), or drop %%parallel from the cell."
        )


@dataclass(frozen=True)
class DynamicNames(Refusal):
    """`exec`, `globals()` and the like: what is read or written cannot be known."""

    what: str = ""

    @property
    def reason(self) -> str:
        return f"`{self.what}` may read or write any variable"

    @property
    def advice(self) -> str:
        return "Name the variables it uses in the loop itself, or drop %%parallel from the cell."


@dataclass(frozen=True)
class ShellInLoop(Refusal):
    """IPython syntax or the shell object in the body."""

    @property
    def reason(self) -> str:
        return "magics, `!` commands and get_ipython() need the kernel, which a worker has not"

    @property
    def advice(self) -> str:
        return (
            "Use plain Python there (for a command: `subprocess.run([...], capture_output=True, text=True).stdout`), "
            "or drop %%parallel from the cell."
        )


@dataclass(frozen=True)
class DeletesOuter(Refusal):
    """`del` of a name that the iteration has not bound itself."""

    @property
    def reason(self) -> str:
        return f"`del {self.variable}` deletes a variable that this iteration did not bind"

    @property
    def advice(self) -> str:
        return f"Move `del {self.variable}` behind the loop."


@dataclass(frozen=True)
class TargetNotAName(Refusal):
    """`for o.x in …`, `for d['k'] in …`, and other places where only a name can be told apart."""

    @property
    def reason(self) -> str:
        return (
            f"the loop assigns into `{self.variable}`, an object from outside of the loop, by an unusual form"
        )

    @property
    def advice(self) -> str:
        return "Loop over a plain name (`for value in …:`) and assign from it in the first line of the body."


@dataclass(frozen=True)
class ModuleChanged(Refusal):
    """The body changes a module or the process: the environment, sys.path, a module's attribute."""

    @property
    def reason(self) -> str:
        return f"the body changes the module `{self.variable}`, and a worker has a copy of its own"

    @property
    def advice(self) -> str:
        return "Make the change once in front of the loop: the workers take over the kernel's settings."


@dataclass(frozen=True)
class IterableChanged(Refusal):
    """The loop changes what it iterates over."""

    changed_at: int = 0

    @property
    def reason(self) -> str:
        return f"the loop iterates over `{self.variable}` and line {self.changed_at} changes it"

    @property
    def advice(self) -> str:
        return f"Iterate over a copy: `for … in list({self.variable}):`."


@dataclass(frozen=True)
class ConsumerUnknown(Refusal):
    """A generator handed to a function that may not read it to its end, or not at once."""

    @property
    def reason(self) -> str:
        return f"`{self.variable}` gets a generator and may read it later or only in part"

    @property
    def advice(self) -> str:
        return f"Hand it a list: `{self.variable}([… for …])`."


@dataclass(frozen=True)
class ReadByHelper(Refusal):
    """A helper function reads a name that the loop assigns or changes."""

    function: str = ""
    changed_at: int = 0

    @property
    def reason(self) -> str:
        return (
            f"`{self.function}` reads the global `{self.variable}`, which line {self.changed_at} of the loop changes, "
            "as an earlier iteration left it"
        )

    @property
    def advice(self) -> str:
        return f"Hand `{self.variable}` to `{self.function}` as an argument, assigned earlier in the same iteration."


@dataclass(frozen=True)
class MayRaiseHere(Refusal):
    """A collected write whose exception the body would catch: it happens only when the results are put together."""

    @property
    def reason(self) -> str:
        return (
            f"the write to `{self.variable}` is applied after the iteration, so the `except` around it could not catch "
            "its error"
        )

    @property
    def advice(self) -> str:
        return "Compute the value inside of the `try` and write it behind it (in `else:`, or after the statement)."


@dataclass(frozen=True)
class CannotTravel(Refusal):
    """A variable that the body reads cannot be sent to a worker."""

    why: str = ""

    @property
    def reason(self) -> str:
        return f"`{self.variable}` cannot be sent to a worker: {self.why}"

    @property
    def advice(self) -> str:
        return f"Make it inside of the loop body (open the file, connect, lock there), or take `{self.variable}` out of the loop."


@dataclass(frozen=True)
class SharedWithResult(Refusal):
    """What the loop changes is reached through another name that it reads."""

    other: str = ""
    changed_at: int = 0

    @property
    def reason(self) -> str:
        return (
            f"`{self.other}` leads to the same object as `{self.variable}`, which line {self.changed_at} changes in "
            "every iteration"
        )

    @property
    def advice(self) -> str:
        return f"Read from a copy (`{self.other} = copy.deepcopy({self.other})` before the loop), or drop %%parallel."


@dataclass(frozen=True)
class ModuleEdited(Refusal):
    """A local module whose file was edited after it was imported."""

    @property
    def reason(self) -> str:
        return f"the file of module `{self.variable}` was edited after the import, and workers cannot import the old text"

    @property
    def advice(self) -> str:
        return f"Run `importlib.reload({self.variable})` first."


@dataclass(frozen=True)
class NotSupported(Refusal):
    """An option that does not go with this cell."""

    what: str = ""
    instead: ClassVar[str] = "Leave the option out."

    @property
    def reason(self) -> str:
        return self.what

    @property
    def advice(self) -> str:
        return self.instead
