"""What went wrong in a loop, told in the notebook's terms: which iteration failed, which change was lost."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Set

from ipyparcache.analysis.parfor import Parfor
from ipyparcache.cells.chunks import Chunk, Reader
from ipyparcache.cells.fileuses import Span
from ipyparcache.cells.launch import is_generator, reaches
from ipyparcache.cells.messages import ChunkResult, Failure, brief
from ipyparcache.cells.tracebacks import with_traceback, without_our_frames
from ipyparcache.digest.walk import find_path
from ipyparcache.errors import ChangedSideBySide, ChangeLost, EarlierValueLost, FilesMet

SHOWN_LOST = 3  # names in the error of a change that was lost
_NOTHING = object()
_DRAWN_ADVICE = (
    "Give each iteration random numbers of its own: `%%parallel --seed 1` for global generators, "
    "`rng = np.random.default_rng([1, i])` in the body for others."
)
_EARLIER_ADVICE = (
    "If `{name}` is meant to be new in every iteration, assign it at the top of the body; else drop "
    "%%parallel from the cell."
)
_FILES_ADVICE = (
    "Put the iteration into the file's name, or collect what belongs into it (`lines.append(...)`) and write "
    "it once behind the loop, or drop %%parallel from the cell."
)
_LOST_ADVICE = (
    "Work on a copy made in the body (`own = copy.deepcopy(...)`), or return the new value and collect it "
    "(`out.append(...)`, `out[key] = ...`), or drop %%parallel from the cell."
)


def noted(
    error: BaseException, parfor: Parfor, number: int, bindings: Mapping[str, object], element: str = ""
) -> BaseException:
    """The exception, which says from now on which iteration it comes from."""
    shown = ", ".join(f"{n} = {brief(bindings[n])}" for n in parfor.targets if n in bindings)
    if element:
        shown = f"{parfor.element} = {element}"
    note = f"in iteration {number}" + (f" ({shown})" if shown else "")
    if getattr(error, "__notes__", [""])[-1:] != [note]:  # a thread's exception is asked for more than once
        error.add_note(note)
    return error


def error_of(failure: Failure, chunk: Chunk, parfor: Parfor, reader: Reader) -> BaseException:
    """The exception that ended a chunk."""
    if isinstance(failure.data, BaseException):
        error = without_our_frames(failure.data)
        bindings = reader.bindings_of(chunk, failure.iteration)
        return noted(error, parfor, failure.iteration, bindings, failure.element)
    data, buffers = pickle.loads(failure.data)
    error = reader.load(data, buffers, chunk.objects_of(failure.iteration))
    assert isinstance(error, BaseException)
    bindings = reader.bindings_of(chunk, failure.iteration)
    rows = failure.traceback
    if parfor.yields and len(rows) > 1 and rows[1][1] == "<listcomp>":
        del rows[1]  # the body's own, whatever the comprehension is
    return noted(with_traceback(error, rows), parfor, failure.iteration, bindings, failure.element)


def value_lost(error: BaseException, failure: Failure, parfor: Parfor, bound: Set[str]) -> ChangeLost | None:
    """What to raise instead of an error that only a worker meets: a name is missing that is bound here.

    `bound` are the variables of the loop that earlier iterations left and this one did not unbind.
    """
    name = error.name if type(error) is NameError else None
    if name is None or name not in bound:
        return None
    return earlier_value_lost(name, failure.iteration, parfor)


def earlier_value_lost(name: str, number: int, parfor: Parfor) -> EarlierValueLost:
    """What to raise where an iteration reads what an earlier one left in a variable."""
    return EarlierValueLost(parfor.line, name, number, number, _EARLIER_ADVICE.format(name=name))


def change_lost(result: ChunkResult, first: int, parfor: Parfor, reader: Reader) -> ChangeLost:
    """What to raise for the changes that began in iteration `first`."""
    if result.earlier is not None and result.earlier[0] == first:
        return earlier_value_lost(result.earlier[1], first, parfor)
    objects = reader.parcel.objects
    last = max(entry[1] for entry in result.lost if entry[0] == first)
    what: list[str] = []
    for begin, _, number, name in result.lost:
        if begin != first:
            continue
        if number is None:
            what.append(f"`{name}`" if name.replace(".", "").isidentifier() else name)
        else:
            what.append(_name_of(objects.get(number), parfor, reader))
    names = [part for part in what if not part.startswith(("something", "a "))] or what
    names = list(dict.fromkeys(names))
    shown = ", ".join(names[:SHOWN_LOST])
    if len(names) > SHOWN_LOST:
        shown += f" and {len(names) - SHOWN_LOST} more"
    changed = [objects.get(entry[2]) for entry in result.lost if entry[2] is not None]
    drawn = any("generator" in part for part in what) or any(map(is_generator, changed))
    advice = _DRAWN_ADVICE if drawn else _LOST_ADVICE
    return ChangeLost(parfor.line, shown, first, last, advice)


def files_met(parfor: Parfor, path: str, other: Span, first: int, last: int) -> FilesMet:
    """What to raise where two chunks used one file while both ran."""
    near = os.path.relpath(path)
    shown = path if near.startswith(os.pardir) else near
    what = f"the entries of the folder {shown!r}" if path.endswith(os.sep) else f"the file {shown!r}"
    one = other.first == other.last
    beside = f"iteration {other.first}" if one else f"iterations {other.first} to {other.last}"
    return FilesMet(parfor.line, f"{beside}, using {what}", first, last, _FILES_ADVICE)


def changed_side_by_side(target: object, last: int, parfor: Parfor, reader: Reader) -> ChangedSideBySide:
    """What to raise for an object that threads share and changed, up to iteration `last`."""
    return ChangedSideBySide(parfor.line, _name_of(target, parfor, reader), 0, last, _LOST_ADVICE)


def _name_of(target: object, parfor: Parfor, reader: Reader) -> str:
    """How the body reaches an object."""
    namespace = reader.namespace
    names = sorted(parfor.reads)
    names += sorted(set(reader.parcel.readers) - set(names))
    for name in names:
        if namespace.get(name, _NOTHING) is target:
            return f"`{name}`"
    for name in names:
        if name in namespace:
            path = find_path(name, namespace[name], target)
            if path and path != name:
                return f"`{path}`"
    for name in names:
        if reaches(namespace.get(name), target):
            return f"something that `{name}` uses"
    return f"a {type(target).__name__}"
