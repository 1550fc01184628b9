"""Why a loop or a cell is refused.

One class a reason, with the line, the variable and a rewrite that works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Refusal:
    """Why `%%parallel` will not run a loop; its texts are filled with its facts.

    Attributes
    ----------
    line
        Line of the cell that is in the way.
    variable
        The name that it is about; None where it is about the statement itself.
    SAYS
        What is in the way, as a clause without a full stop.
    INSTEAD
        What to type instead.
    """

    line: int
    variable: str | None = None

    SAYS: ClassVar[str]
    INSTEAD: ClassVar[str]

    @property
    def reason(self) -> str:
        """What is in the way, as a clause without a full stop."""
        return self.SAYS.format_map(vars(self))

    @property
    def advice(self) -> str:
        """What to type instead."""
        return self.INSTEAD.format_map(vars(self))

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}.\n{self.advice}"


@dataclass(frozen=True)
class MapCall(Refusal):
    """`map(f, xs)`, whose calls a comprehension would make."""

    written: str = ""  # the call
    rewritten: str = ""

    SAYS = "`{written}` is no `for` loop and no comprehension, so it is not run in parallel"
    INSTEAD = "Write `{rewritten}`."


class NothingParallel(Refusal):
    """The cell has no loop of a kind that can be run in tasks."""

    SAYS = "the cell has no top-level `for` loop, comprehension or generator argument to run in parallel"
    INSTEAD = (
        "Drop %%parallel from this cell, or move its loop out of the `if`, `while`, `with` or "
        "function it is in."
    )


class OnlyWhile(Refusal):
    """The cell has loops, but each of them is a `while`."""

    SAYS = "a `while` loop decides before each round whether there is another: rounds depend on each other"
    INSTEAD = (
        "If you know how many rounds there are, or what they go over, write `for i in range(n):` or "
        "`for x in xs:`; else drop %%parallel from this cell."
    )


class BreakInLoop(Refusal):
    """A `break` that belongs to the loop itself: which iterations run depends on the ones before."""

    SAYS = "`break` ends the loop, so whether an iteration runs depends on the one before"
    INSTEAD = (
        "Collect for every element whether it is the one (`hits = [x for x in xs if test(x)]` under "
        "%%parallel) and choose afterwards (`found = hits[0] if hits else None`), or drop %%parallel "
        "from the cell."
    )


@dataclass(frozen=True)
class StatementInLoop(Refusal):
    """`return`, `yield`, `await` and their kind, which only the kernel itself can run."""

    what: str = ""

    SAYS = "`{what}` cannot run on a worker"
    INSTEAD = "Move it in front of the loop or behind it, or drop %%parallel from the cell."


@dataclass(frozen=True)
class CarriedVariable(Refusal):
    """A variable that an iteration reads as an earlier iteration left it."""

    written_at: int = 0

    SAYS = (
        "`{variable}` is read here as the iteration before left it (line {written_at} assigns it), so"
        " the iterations depend on each other"
    )
    INSTEAD = (
        "Keep only what needs no earlier iteration in this loop, collecting it in a list, and move "
        "the lines with `{variable}` to a second loop over that list in a cell without %%parallel; "
        "or, if `{variable}` is meant to be new in every iteration, assign it at the top of the body."
    )


@dataclass(frozen=True)
class CarriedReduction(Refusal):
    """The running value of a reduction is used inside of the loop."""

    written_at: int = 0

    SAYS = (
        "the running value of `{variable}` is read here while line {written_at} changes it in every iteration"
    )
    INSTEAD = (
        "Collect each iteration's part in a list here (`parts.append(...)`) and form the running "
        "values afterwards, for instance with `itertools.accumulate(parts)`, in a cell without "
        "%%parallel."
    )


class PrintedIfCarried(Refusal):
    """What is printed depends on earlier iterations, and cannot be printed in its place."""

    SAYS = (
        "what is printed here depends on `{variable}` as the iterations before left it, and it cannot be "
        "printed in its place with --background, or by another `print` than Python's own"
    )
    INSTEAD = "Move the `print` behind the loop."


@dataclass(frozen=True)
class CarriedContainer(Refusal):
    """A container that the loop both changes and reads.

    Attributes
    ----------
    kind
        Name of its class, as far as it was known.
    """

    changed_at: int = 0
    kind: str = "list"

    SAYS = (
        "`{variable}` is read here while line {changed_at} changes it in every iteration, so an "
        "iteration would need what the ones before it have written"
    )
    INSTEAD = (
        "Write the results to a new container and read only the old one (`new_{variable} = []` before"
        " the loop, `new_{variable}.append(...)` in it), or drop %%parallel from the cell."
    )
    WITH_A_COPY: ClassVar[str] = (
        "If no iteration needs what another one has written, write to a copy and read only the old one "
        "(`new_{variable} = {variable}.copy()` before the loop, `new_{variable}[...] = ...` in it, "
        "`{variable} = new_{variable}` in the next cell); else drop %%parallel from the cell."
    )

    @property
    def advice(self) -> str:
        """What to type instead: a list is made anew, of others a copy is written to."""
        return (self.INSTEAD if self.kind == "list" else self.WITH_A_COPY).format_map(vars(self))


@dataclass(frozen=True)
class MutatorResult(Refusal):
    """The result of a method that changes an outer object is used: it depends on the earlier iterations."""

    method: str = ""

    SAYS = (
        "`{variable}.{method}(...)` changes `{variable}` and its result is used here, so it depends "
        "on the iterations before"
    )
    INSTEAD = (
        "Loop over the elements of `{variable}` instead of taking them out one by one, or drop %%parallel."
    )


@dataclass(frozen=True)
class ChangedInExpression(Refusal):
    """A method that changes an outer object is called as a part of an expression, not as a statement."""

    method: str = ""

    SAYS = (
        "`{variable}.{method}(...)` changes `{variable}` inside of an expression, where it cannot be applied "
        "afterwards in the order of the iterations"
    )
    INSTEAD = (
        "Give it a line of its own in the body of the loop, outside of any expression or function: "
        "`{variable}.{method}(...)`."
    )


@dataclass(frozen=True)
class MethodHandedOn(Refusal):
    """A method that changes an outer object is not called but handed on, or given another name."""

    method: str = ""

    SAYS = (
        "`{variable}.{method}` is handed on here instead of being called: what it changes would be a copy of "
        "`{variable}` on a worker"
    )
    INSTEAD = "Call it in a line of its own in the body of the loop: `{variable}.{method}(...)`."


@dataclass(frozen=True)
class CannotComeBack(Refusal):
    """What an iteration collects is of a kind that exists in its own process only."""

    what: str = ""

    SAYS = "`{what}` cannot come back from a worker"
    INSTEAD = (
        "Collect what comes out of it (for a generator `list(...)`, for a file what is read from it), or "
        "drop %%parallel from the cell."
    )


class KeptFunction(Refusal):
    """Functions of a comprehension, which all see the last value of its variable."""

    SAYS = (
        "the functions made here all read `{variable}` as the last iteration leaves it, when they are called"
    )
    INSTEAD = (
        "Give each its own value by a default (`lambda ..., {variable}={variable}: ...`), or drop %%parallel "
        "from the cell."
    )


class IdentityAsked(Refusal):
    """`id(…)`: an object has another number in each process."""

    SAYS = "`id(...)` of an object is another number in a worker's process"
    INSTEAD = (
        "Tell the objects apart by what you know them by (a name, a number from `enumerate`), or drop "
        "%%parallel from the cell."
    )


@dataclass(frozen=True)
class ChangedThroughAlias(Refusal):
    """An outer object is changed through a second name made in the body."""

    root: str = ""
    changed_at: int = 0

    SAYS = (
        "`{variable}` stands for (a part of) `{root}` here and line {changed_at} changes it: the "
        "change would be made to a worker's copy of `{root}`"
    )
    INSTEAD = (
        "Write through the outer name itself (`{root}[...] = ...` or `{root}.append(...)`), without "
        "`{variable}`."
    )


@dataclass(frozen=True)
class ChangedByCall(Refusal):
    """A notebook function changes an outer object that it gets as an argument."""

    function: str = ""

    SAYS = (
        "`{function}` changes its argument `{variable}` in place: the change would be made to a worker's copy"
    )
    INSTEAD = (
        "Let `{function}` return what it would have put into `{variable}` and collect it here, for "
        "instance `{variable}.append({function}(...))`."
    )


@dataclass(frozen=True)
class ChangedByMethod(Refusal):
    """A method of the notebook's changes its object, or making an object changes its class."""

    function: str = ""

    SAYS = "`{function}(...)` changes `{variable}`, and a worker has a copy of it: the change would be lost"
    INSTEAD = (
        "Make an object of its own in the body of the loop (for a copy: `copy.deepcopy({variable})`), or "
        "collect here what `{function}` is to be given and call it in a loop without %%parallel."
    )


@dataclass(frozen=True)
class ChangesWhatItKeeps(Refusal):
    """A function that changes what it keeps from call to call: a variable around it, or a default."""

    kept: str = ""

    SAYS = (
        "`{variable}(...)` changes {kept}, which it keeps from one call to the next, and a worker has a copy "
        "of it: the change would be lost"
    )
    INSTEAD = (
        "Let it get that as an argument made in the body of the loop, or collect here what `{variable}` is "
        "to be given and call it in a loop without %%parallel."
    )


@dataclass(frozen=True)
class InnerElementChanged(Refusal):
    """A loop in the body goes over an outer container and changes its elements."""

    root: str = ""
    changed_at: int = 0

    SAYS = (
        "`{variable}` is here an element of `{root}`, which all iterations share, and line {changed_at} "
        "changes it: the change would be made to a worker's copy"
    )
    INSTEAD = (
        "Collect here what is to change, and change the elements of `{root}` in a loop without %%parallel "
        "behind it, or let that loop be the outer one."
    )


@dataclass(frozen=True)
class GlobalWrite(Refusal):
    """A called notebook function assigns a global name."""

    function: str = ""

    SAYS = "`{function}` assigns the global `{variable}`, which would be lost on a worker"
    INSTEAD = (
        "Let `{function}` return the value and update `{variable}` in the loop (for instance "
        "`{variable} += ...`), or drop %%parallel from the cell."
    )


@dataclass(frozen=True)
class GlobalChange(Refusal):
    """A called notebook function changes a global object in place: a memo, a log, a registry."""

    function: str = ""

    SAYS = "`{function}` changes the global `{variable}` in place, which would be lost on a worker"
    INSTEAD = (
        "Let `{function}` return what belongs into `{variable}` and put it there in the loop (for a "
        "memo: `functools.lru_cache` on `{function}`), or drop %%parallel from the cell."
    )


@dataclass(frozen=True)
class DynamicNames(Refusal):
    """`exec`, `globals()` and the like: what is read or written cannot be known."""

    what: str = ""

    SAYS = "`{what}` may read or write any variable"
    INSTEAD = "Name the variables it uses in the loop itself, or drop %%parallel from the cell."


class ShellInLoop(Refusal):
    """IPython syntax or the shell object in the body."""

    SAYS = "magics, `!` commands and get_ipython() need the kernel, which a worker has not"
    INSTEAD = (
        "Use plain Python there (for a command: `subprocess.run([...], capture_output=True, "
        "text=True).stdout`), or drop %%parallel from the cell."
    )


class DeletesOuter(Refusal):
    """`del` of a name that the iteration has not bound itself."""

    SAYS = "`del {variable}` deletes a variable that this iteration did not bind"
    INSTEAD = "Move `del {variable}` behind the loop."


class TargetNotAName(Refusal):
    """`for o.x in …`, `for d['k'] in …`, and other places where only a name can be told apart."""

    SAYS = "the loop assigns into `{variable}`, an object from outside of the loop, by an unusual form"
    INSTEAD = "Loop over a plain name (`for value in …:`) and assign from it in the first line of the body."


class ModuleChanged(Refusal):
    """The body changes a module or the process: the environment, sys.path, a module's attribute."""

    SAYS = "the body changes the module `{variable}`, and a worker has a copy of its own"
    INSTEAD = "Make the change once in front of the loop: the workers take over the kernel's settings."


@dataclass(frozen=True)
class IterableChanged(Refusal):
    """The loop changes what it iterates over."""

    changed_at: int = 0

    SAYS = "the loop iterates over `{variable}` and line {changed_at} changes it"
    INSTEAD = (
        "Iterate over a copy: `for … in list({variable}):`; or, where elements themselves change, over their "
        "numbers: `for i in range(len({variable})):`."
    )


class SourceChanges(Refusal):
    """Drawing an element changes what the body reads."""

    SAYS = "handing out an element changes `{variable}`, which the body reads, and a worker has a copy of it"
    INSTEAD = (
        "Let the iterable hand out with each element what the body needs of `{variable}` "
        "(`for element, value in …:`), or drop %%parallel from the cell."
    )


class ConsumerUnknown(Refusal):
    """A generator handed to a function that may not read it to its end, or not at once."""

    SAYS = "`{variable}` gets a generator and may read it later or only in part"
    INSTEAD = "Hand it a list: `{variable}([… for …])`."


@dataclass(frozen=True)
class ReadByHelper(Refusal):
    """A helper function reads a name that the loop assigns or changes."""

    function: str = ""
    changed_at: int = 0

    SAYS = (
        "`{function}` reads the global `{variable}`, which line {changed_at} of the loop changes, as "
        "an earlier iteration left it"
    )
    INSTEAD = "Hand `{variable}` to `{function}` as an argument, assigned earlier in the same iteration."


class MayRaiseHere(Refusal):
    """A collected write whose exception the body would catch.

    It happens only when the results are put together.
    """

    SAYS = (
        "the write to `{variable}` is applied after the iteration, so the `except` or `finally` around it "
        "could not meet its error"
    )
    INSTEAD = (
        "Compute the value inside of the `try` and write it behind it (in `else:`, or after the statement)."
    )


@dataclass(frozen=True)
class CannotTravel(Refusal):
    """A variable that the body reads cannot be sent to a worker."""

    why: str = ""

    SAYS = "`{variable}` cannot be sent to a worker: {why}"
    INSTEAD = (
        "Make it inside of the loop body (open the file, connect, lock there), or take `{variable}` "
        "out of the loop."
    )


@dataclass(frozen=True)
class CompiledBefore(CannotTravel):
    """A function that numba compiled may do what a worker, which compiles it anew, would not."""

    SAYS = "`{variable}` is not sent to a worker: {why}"
    INSTEAD = (
        "Run the cell that defines `{variable}` again, or give it "
        "what it reads from the notebook as arguments."
    )


@dataclass(frozen=True)
class SharedWithResult(Refusal):
    """What the loop changes is reached through another name that it reads."""

    other: str = ""
    changed_at: int = 0

    SAYS = (
        "`{other}` leads to the same object as `{variable}`, which line {changed_at} changes in every"
        " iteration"
    )
    INSTEAD = "Read from a copy (`{other} = copy.deepcopy({other})` before the loop), or drop %%parallel."


class TakenByNext(Refusal):
    """An iterator from outside is advanced: what it gives depends on how often it was asked before."""

    SAYS = "`next({variable})` takes what the iterations before have left over"
    INSTEAD = "Let the loop itself draw it: `for …, value in zip(…, {variable}):`."


class ChangesRemembered(Refusal):
    """What a function under `functools.cache` has returned is changed: it returns the same object again."""

    SAYS = "the body changes what `{variable}` remembers and returns again for the same arguments"
    INSTEAD = "Change a copy of it (`import copy`, and `copy.copy({variable}(...))`), or drop %%parallel."


@dataclass(frozen=True)
class TakenFrom(Refusal):
    """An iterator from outside is handed on in the body, or gone over there."""

    SAYS = "`{variable}` is an iterator, of which the iterations before have taken what they needed"
    INSTEAD = (
        "Make its parts a list before the loop (`items = list({variable})`) and let each iteration use "
        "its own slice of it, or drop %%parallel from the cell."
    )


@dataclass(frozen=True)
class HashOfText(Refusal):
    """`hash` of texts and of what holds texts is another number in each process."""

    SAYS = "`hash(...)` gives other numbers for texts in a worker's process"
    INSTEAD = (
        "Take one that is the same everywhere (`import zlib`, and `zlib.crc32(text.encode())` instead), "
        "or drop %%parallel from the cell."
    )


@dataclass(frozen=True)
class ChangedByFunction(Refusal):
    """A function of a library changes an outer object: its result is used, or another one each time."""

    function: str = ""

    SAYS = (
        "`{function}(...)` changes `{variable}`, so what an iteration finds there depends on those before it"
    )
    INSTEAD = (
        "Collect here what it is to be given (`items.append(...)`) and call it in a loop without %%parallel, "
        "or let each iteration work on a copy of its own (`own = list({variable})`)."
    )


@dataclass(frozen=True)
class SameFile(Refusal):
    """A file that every iteration writes."""

    path: str = ""

    SAYS = "every iteration writes the file {path}, and on workers not in their order"
    INSTEAD = (
        "Collect what belongs into it (`lines.append(...)`) and write it once behind the loop, or put the "
        "iteration into the file's name."
    )


class SharedGenerator(Refusal):
    """A random generator from outside, from which every iteration would draw on."""

    SAYS = "`{variable}` is a random generator: what it gives depends on what was drawn from it before"
    INSTEAD = (
        "Give each iteration a generator of its own in the body (`rng = np.random.default_rng([1, i])`), or "
        "draw before the loop and iterate over what was drawn."
    )


@dataclass(frozen=True)
class DrawsFromSeeded(Refusal):
    """A draw from a global random generator that the notebook has seeded."""

    library: str = ""

    SAYS = (
        "`{variable}` draws from the generator of `{library}`, which was seeded: what it gives depends on "
        "all draws before"
    )
    INSTEAD = (
        "Give each iteration random numbers of its own: `%%parallel --seed 1`, or "
        "`rng = np.random.default_rng([1, i])` in the body."
    )


class SharedGroups(Refusal):
    """The groups of `itertools.groupby`, which end when the next one is asked for."""

    SAYS = "the groups of `itertools.groupby` share one iterator, and each ends when the next one begins"
    INSTEAD = "Iterate over `[(key, list(group)) for key, group in groupby(…)]`, made before the loop."


class DrawsOn(Refusal):
    """Drawing into the current figure of pyplot, which all iterations would share."""

    SAYS = "`{variable}` draws into the current figure, which all iterations share"
    INSTEAD = (
        "Begin every iteration's own figure (`plt.figure()` or `fig, ax = plt.subplots()`), or collect here "
        "what is to be drawn and draw it in a cell without %%parallel."
    )


class DrawnInto(Refusal):
    """Axes or a figure from outside that the body does more with than calling their methods for nothing."""

    SAYS = (
        "`{variable}` is drawn into by all iterations, and here by more than a call `{variable}.method(...)` "
        "whose result is not used"
    )
    INSTEAD = (
        "Collect here what is to be drawn (`curves.append((x, y))`) and draw it behind the loop in a cell "
        "without %%parallel: `for x, y in curves: {variable}.plot(x, y)`."
    )


class ElementDrawnInto(Refusal):
    """The loop goes over axes."""

    SAYS = "the loop goes over axes of matplotlib, which are not in a worker's process"
    INSTEAD = (
        "Go over their numbers (`for i in range(len(axes.flat)):`) and draw by `axes.flat[i].plot(...)`, "
        "each call a statement of its own, or drop %%parallel from the cell."
    )


@dataclass(frozen=True)
class SharedWithElement(Refusal):
    """What the loop changes is reached through what it iterates over."""

    number: int = 0
    changed_at: int = 0

    SAYS = "element {number} leads to the same object as `{variable}`, which line {changed_at} changes"
    INSTEAD = "Iterate over a copy: `for … in copy.deepcopy(…):`, or drop %%parallel from the cell."


@dataclass(frozen=True)
class CarriedAttribute(Refusal):
    """An attribute that is computed is read while the loop changes another one of the same object."""

    read: str = ""
    attribute: str = ""
    changed_at: int = 0

    SAYS = (
        "`{variable}.{read}` may depend on `{variable}.{attribute}`, which line {changed_at} changes in "
        "every iteration"
    )
    INSTEAD = (
        "Compute from the iteration's own values here and collect them, and call `{variable}.{read}` behind "
        "the loop, or drop %%parallel from the cell."
    )


class ModuleEdited(Refusal):
    """A local module whose file was edited after it was imported."""

    SAYS = (
        "the file of module `{variable}` was edited after the import, and workers cannot import the old text"
    )
    INSTEAD = "Run `importlib.reload({variable})` first."


@dataclass(frozen=True)
class NotSupported(Refusal):
    """An option that does not go with this cell."""

    what: str = ""

    SAYS = "{what}"
    INSTEAD = "Leave the option out."
