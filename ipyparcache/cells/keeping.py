"""From what a cell left behind to bytes that are known to bring it back, and from such bytes to a prepared
hit.

Nothing is kept on trust. After packing, the payload is put together again beside the namespace and
compared with the live objects by digest, by which objects it shares, and by which inputs it refers to;
what would not come back as it is, is not stored.
"""

from __future__ import annotations

import ast
import bisect
import copy
import functools
import itertools
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, cast

from ipyparcache.analysis.cell import first_line_of
from ipyparcache.analysis.definitions import QUIET_NAMES, Definition, re_executable_definitions
from ipyparcache.cells import parts, values
from ipyparcache.cells.inputs import Inputs, global_writes
from ipyparcache.cells.values import ArrayOwners, NotStorable
from ipyparcache.digest.instances import INSTANCES
from ipyparcache.digest.modules import is_user_code
from ipyparcache.digest.objects import Traversal, digest_of
from ipyparcache.digest.states import put_state, state_of
from ipyparcache.errors import ParcacheError, Undigestible, Unrestorable
from ipyparcache.kernel.namespace import collector_paused, difference


@dataclass(frozen=True)
class Left:
    """What a run left in the namespace."""

    bound: dict[str, object]  # to be bound by a hit
    deleted: list[str]
    unsure: dict[str, object]  # names that the cell may bind and that stand for the same object as before it
    unsure_absent: list[str]


@dataclass(frozen=True)
class Kept:
    """A payload that is known to come back, and what a manifest has to say about it."""

    pickled: bytes
    buffers: list[Any]
    contents: list[Any]  # digests of the large arrays among the buffers
    names: list[str]
    deleted: list[str]
    definitions: list[int]  # statements of the cell that a hit executes again
    referred: list[int] | None  # places among what both sides know that the payload refers to; None: any
    parts: parts.Parts | None
    digests: dict[str, str]  # of what it left, by name, to compare another run with
    changed: frozenset[str]  # inputs of which something was changed in place


@dataclass(frozen=True)
class Source:
    """The cell as far as keeping needs it: its statements, its namespace, how to execute a statement
    apart."""

    tree: ast.Module
    namespace: dict[str, Any]
    inputs: Inputs
    compile: Callable[[ast.Module], Any]

    def execute_apart(self, statements: Iterable[int]) -> dict[str, Any]:
        """Execute some statements beside the namespace; functions made there see the live globals.

        A class body finds names in the globals alone, so what the statements before it made stands there
        while it
        runs, and what stood there before is put back.
        """
        scratch: dict[str, Any] = {}
        with _standing_in(self.namespace, {}) as stand_in:
            for index in statements:
                exec(self.compile(ast.Module([self.tree.body[index]], [])), self.namespace, scratch)
                stand_in(scratch)
        return scratch

    def known(self, defined: Mapping[str, object]) -> Sequence[object]:
        """What exists on both sides, in an order that both derive alike; each object once."""
        traversal = self.inputs.traversal
        made = self.made(defined)
        values = (traversal.value_of(root) for root in sorted(traversal.digests))
        matchers = (value for value in values if type(value) is re.Pattern)  # the very one that matched
        patterns = list({id(pattern): pattern for pattern in matchers}.values())
        if traversal.shared or any(traversal.number_of(thing) is not None for thing in made):
            things = itertools.chain(made, traversal.objects(), patterns)
            return list({id(thing): thing for thing in things}.values())
        return _Joined([made, *traversal.lists_of_objects(), patterns])

    def made(self, defined: Mapping[str, object]) -> list[object]:
        """The first of what exists on both sides: the namespace, and what the cell defines."""
        parts = (part for name in sorted(defined) for part in _held_by(defined[name]))
        return [self.namespace, *{id(part): part for part in parts}.values()]


class _Joined(Sequence[object]):
    """Several sequences as one, without a copy."""

    def __init__(self, parts: Sequence[Sequence[object]]) -> None:
        self._parts = [part for part in parts if part]
        self._starts = list(itertools.accumulate(map(len, self._parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[object]:
        return itertools.chain.from_iterable(self._parts)

    def __getitem__(self, place: Any) -> Any:
        part = bisect.bisect_right(self._starts, place) - 1
        return self._parts[part][place - self._starts[part]]


@contextmanager
def _standing_in(
    namespace: dict[str, Any], things: Mapping[str, object]
) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """Have things stand in the namespace, and more when the block says so; afterwards all is as it was."""
    absent = object()
    before: dict[str, Any] = {}

    def stand_in(more: Mapping[str, object]) -> None:
        for name in more:
            before.setdefault(name, namespace.get(name, absent))
        namespace.update(more)

    try:
        stand_in(things)
        yield stand_in
    finally:
        for name, value in before.items():
            if value is absent:
                namespace.pop(name, None)
            else:
                namespace[name] = value


def _held_by(definition: object) -> Iterator[object]:
    """A class or function, and what it holds that other results may refer to, in an order of its own."""
    waiting: list[object] = [definition]
    seen: dict[int, object] = {}
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        kind = type(thing)
        held: Iterable[object] = ()
        if isinstance(thing, type):
            inner = thing.__qualname__.startswith(f"{getattr(definition, '__qualname__', '')}.")
            if thing.__module__ != "__main__" or not (inner or thing is definition):
                continue
            held = vars(thing).values()
        elif isinstance(thing, FunctionType):
            if thing.__module__ != "__main__":
                continue
            held = [
                *(thing.__defaults__ or ()),
                *(thing.__kwdefaults__ or {}).values(),
                *vars(thing).values(),
            ]
        elif isinstance(thing, staticmethod | classmethod):
            waiting.append(thing.__func__)
            continue
        elif kind is list or kind is tuple:
            held = cast("Iterable[object]", thing)
        elif kind is dict:
            held = cast("dict[object, object]", thing).values()
        elif kind not in (set, bytearray):
            continue
        if kind is not tuple:
            yield thing
        waiting += reversed(list(held))


def what_is_left(
    inputs: Inputs, before: Mapping[str, object], after: Mapping[str, object], keep: Collection[str]
) -> Left:
    """Compare the bindings before and after a run.

    Parameters
    ----------
    inputs : Inputs
    before, after : mapping of str to object
        The user's bindings.
    keep : collection of str
        Names that the user wants to keep; all if empty.

    Raises
    ------
    NotStorable
        If a name to be kept was not bound.
    """
    changed = difference(before, after)
    names = inputs.names
    bound = {
        name: value
        for name, value in after.items()
        if name in changed.bound or name in names.bound_for_certain
    }
    deleted = changed.deleted | {name for name in names.deleted if name not in after}
    unsure = (names.touched | global_writes(inputs.traversal)) - bound.keys() - deleted
    if keep:
        missing = next((name for name in keep if name not in after), None)
        if missing is not None:
            raise NotStorable(f"it did not bind `{missing}`, which is to be kept")
        bound = {name: after[name] for name in keep}
    return Left(
        bound,
        sorted(deleted),
        {name: after[name] for name in sorted(unsure) if name in after},
        sorted(name for name in unsure if name not in after),
    )


def binding_rows(left: Left, inputs: Inputs, namespace: dict[str, Any]) -> list[list[Any]]:
    """The demands that names which the cell may bind, but did not, stand for what they stood for.

    What is a part of an input is named by its place there: the cell may have changed it since.
    """
    rows: list[list[Any]] = [["binding", name, "absent"] for name in left.unsure_absent]
    for name, value in left.unsure.items():
        place = inputs.traversal.number_of(value)
        if place is not None:
            rows.append(["part", name, *place])
            continue
        try:
            rows.append(["binding", name, digest_of(value, namespace).hex()])
        except Undigestible as error:
            raise NotStorable(
                f"it may bind `{name}`, whose present value has no digest: {error.reason}"
            ) from error
    return rows


def keep(
    source: Source, left: Left, results: Sequence[object], events: Sequence[object], process: Any
) -> Kept:
    """Pack what a cell left and see that it comes back.

    Raises
    ------
    NotStorable
        Naming the variable that cannot be stored, the line that binds it, and what to type instead.
    """
    with _contents_remembered(), collector_paused():
        return _keep(source, left, results, events, process)


def _keep(
    source: Source, left: Left, results: Sequence[object], events: Sequence[object], process: Any
) -> Kept:
    mutated = source.inputs.traversal.changed()
    definitions = _definitions_to_repeat(
        source.tree, source.namespace, left.bound, {root for root, _ in mutated}
    )
    defined = {name: left.bound[name] for definition in definitions for name in definition.names}
    payload = {
        "names": {name: value for name, value in left.bound.items() if name not in defined},
        "states": [(root, number, _state(source.inputs.traversal, root, number)) for root, number in mutated],
        "results": list(results),
        "events": tuple(events),
        "process": process,
        "annotations": _annotations(source),
        "memos": _memos(defined),
    }
    repeated = [definition.index for definition in definitions]
    known = source.known(defined)
    original = _digested(source, payload, known)
    fixed = parts.kept(source.inputs.traversal, original, known)
    _refuse_nan_keys(original)
    numpy = sys.modules.get("numpy")
    arrays = [] if numpy is None else [array for _, array in original.instances(numpy.ndarray)]
    contents = [
        part for _, _, state in payload["states"] if isinstance(state, dict) for part in state.values()
    ]
    owners = ArrayOwners(arrays, [thing for thing in known if _is_array(thing)], contents)
    everything = _Joined([known, parts.live(source.inputs.traversal, fixed)])
    try:
        pickled, buffers = values.pack(payload, everything, source.namespace, _is_taken_apart, owners)
    except NotStorable as error:
        raise NotStorable(_blame(source, payload, known, error)) from error
    referred = _referred(source, original, known, defined)
    try:
        _try_out(source, original, known, defined, repeated, pickled, buffers, referred, fixed)
    except NotStorable:
        if referred is None:
            raise
        referred = None
        _try_out(source, original, known, defined, repeated, pickled, buffers, referred, fixed)
    digests = {root: digest.hex() for root, digest in original.digests.items()}
    in_buffers = _contents_of(buffers)
    return Kept(
        pickled,
        buffers,
        in_buffers,
        sorted(left.bound),
        left.deleted,
        repeated,
        referred,
        fixed,
        digests,
        frozenset(root for root, _ in mutated),
    )


_FEW = 1000  # objects of the inputs are offered at a hit without asking which are needed
_CONTAINERS = frozenset({list, dict, set, bytearray})


def _referred(
    source: Source, original: Traversal, known: Sequence[object], defined: Mapping[str, object]
) -> list[int] | None:
    """Places of what the payload may refer to, so that a hit need not offer every list of a large input.

    Digests tell which containers were met; classes, functions and the namespace are referred to in other ways
    as well. None stands for all.
    """
    if len(known) <= _FEW or _drawn_roots(original):
        return None
    found = {place for place, thing in enumerate(known) if type(thing) not in _CONTAINERS}
    found.update(original.known_met, range(len(source.made(defined))))
    return sorted(found) if len(found) < len(known) // 2 else None


def unpack(
    source: Source,
    definitions: Sequence[int],
    pickled: Any,
    buffers: Sequence[Any],
    referred: Sequence[int] | None = None,
    fixed: parts.Parts | None = None,
) -> tuple[Any, Any, Any]:
    """Put a payload together beside the namespace.

    Returns
    -------
    payload : dict
        "names", "states", "results", "events", "process" as `keep` packed them.
    defined : dict
        What the repeated definitions made.
    known : list
        What both sides knew; keeps identities alive.

    Other Parameters
    ----------------
    referred : sequence of int
        Places among `known` that the payload refers to; all if None.
    fixed : Parts
        Immutable objects of the inputs that it refers to.

    Raises
    ------
    NotStorable
        If the inputs hold other objects than these at their places.
    """
    defined = source.execute_apart(definitions)
    with collector_paused():
        offered = known = source.known(defined)
        if fixed is not None:
            live = parts.live(source.inputs.traversal, fixed)
            if parts.digest_of_parts(live, source.namespace, known) != fixed[1]:
                raise NotStorable("its inputs share equal objects otherwise than before")
            if referred is not None:
                referred = [*referred, *range(len(known), len(known) + len(live))]
            offered = _Joined([known, live])
        payload = values.unpack(pickled, buffers, offered, referred)
        for name, state in payload["memos"].items():
            put_state(defined[name], state)
        return payload, defined, known


def _memos(defined: Mapping[str, object]) -> dict[str, object]:
    """What the memos (`functools.cache`) that the cell defines remember already."""
    memos = {
        name: thing for name, thing in defined.items() if isinstance(thing, functools._lru_cache_wrapper)
    }
    try:
        return {name: state_of(memo) for name, memo in memos.items() if memo.cache_info().currsize}
    except Unrestorable as error:
        raise NotStorable(f"`{min(memos)}` cannot be stored: {error}") from error


def _annotations(source: Source) -> dict[str, object]:
    """What the cell's own `name: type` statements wrote into the notebook's `__annotations__`."""
    found = source.namespace.get("__annotations__", {})
    names = [
        statement.target.id
        for statement in source.tree.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    ]
    return {name: found[name] for name in names if name in found}


@contextmanager
def _contents_remembered() -> Iterator[None]:
    """Hash each large array once in the block, which runs our own code alone."""
    if "numpy" not in sys.modules:
        yield
        return
    from ipyparcache.digest import arrays  # NumPy, which only arrays need

    with arrays.remembering():
        yield


def _contents_of(buffers: Sequence[Any]) -> list[Any]:
    """Digests of the large arrays among the buffers of an entry, for its manifest."""
    if not buffers:
        return []
    from ipyparcache.digest import arrays  # NumPy, which only arrays need

    return arrays.contents_of(buffers)


def note_contents(buffers: Sequence[Any], contents: Sequence[Any]) -> None:
    """Let arrays over these buffers go without another digest as long as they are not written."""
    if buffers:
        from ipyparcache.digest import pages  # NumPy, which only arrays need

        pages.note_contents(buffers, contents)


def is_ours(cls: type) -> bool:
    """Whether a class is defined in the notebook or a local module."""
    return is_user_code(cls.__module__)


def _is_taken_apart(cls: type) -> bool:
    """Whether instances are stored by type, attributes and content rather than by their own pickling."""
    return is_ours(cls) or f"{cls.__module__}.{cls.__qualname__}" in INSTANCES


def _definitions_to_repeat(
    tree: ast.Module, namespace: Mapping[str, object], bound: Mapping[str, object], mutated: set[str]
) -> list[Definition]:
    """Definitions that a hit executes again: all whose names are kept and whose inputs are as they were."""
    return [
        definition
        for definition in re_executable_definitions(tree)
        if all(name in bound for name in definition.names)
        and not definition.reads & mutated
        and not any(_runs_user_code_when_made(bound[name]) for name in definition.names)
        and not any(_is_user_made(namespace.get(name)) for name in definition.reads & QUIET_NAMES)
        and not any(is_ours(type(namespace.get(name))) for name in definition.reads)
    ]


def _runs_user_code_when_made(value: object) -> bool:
    """Whether a class statement runs code of the notebook: a metaclass, `__init_subclass__`,
    `__set_name__`."""
    if not isinstance(value, type) or value.__module__ != "__main__":
        return False
    if is_ours(type(value)):
        return True
    above = [kind for kind in value.__mro__[1:] if is_ours(kind)]
    parts = [type(part) for part in vars(value).values()]
    return any("__init_subclass__" in vars(kind) for kind in above) or any(
        is_ours(kind) and hasattr(kind, "__set_name__") for kind in parts
    )


def _is_user_made(value: object) -> bool:
    """Whether a name that usually stands for something of Python's stands for something of the notebook."""
    return value is not None and is_user_code(getattr(value, "__module__", None))


def _state(traversal: Traversal, root: str, number: int) -> object:
    """Own state of a changed input, in objects of its own: the live object itself would be packed as a
    reference."""
    live = traversal.object_at(root, number)
    try:
        state = state_of(live)
    except Unrestorable as error:
        raise NotStorable(f"it changes `{root}` in place: {error}") from error
    if state is live:
        return copy.copy(state)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(live, numpy.ndarray) and isinstance(state, dict):
        return {part: _apart(value, live) for part, value in state.items()}
    return state


def _apart(value: Any, live: Any) -> Any:
    """A part of a state in an object of its own; memory with gaps is stored, and comes back, without them."""
    if not isinstance(value, sys.modules["numpy"].ndarray):
        return value
    if not (value.flags.c_contiguous or value.flags.f_contiguous):
        return value.copy(order="C")
    return value.view() if value is live else value


def _try_out(
    source: Source,
    original: Traversal,
    known: Sequence[object],
    defined: Mapping[str, object],
    repeated: Sequence[int],
    pickled: bytes,
    buffers: Sequence[Any],
    referred: Sequence[int] | None,
    fixed: parts.Parts | None,
) -> None:
    """Put the payload together again, over the same buffers, and compare."""
    try:
        again, defined_again, known_again = unpack(
            source, repeated, pickled, [buffer.raw() for buffer in buffers], referred, fixed
        )
    except ParcacheError:
        raise
    except Exception as error:  # of the code of some class that makes its objects again
        said = f"{type(error).__name__}: {error}"
        raise NotStorable(f"what it leaves cannot be put together again from its pickle ({said})") from error
    digests = {name: _digest_or_none(thing, source) for name, thing in defined.items()}
    with _standing_in(source.namespace, defined_again):  # what was made again calls itself by name
        digests_again = {name: _digest_or_none(thing, source) for name, thing in defined_again.items()}
    for name, digest in digests.items():
        if digest != digests_again[name]:
            raise NotStorable(f"`{name}` would not come back as it is, {_where(source, name)}")
    other = _digested(source, again, known_again)
    drawn = _drawn_roots(original)
    for root, digest in original.digests.items():
        if root not in drawn and other.digests.get(root) != digest:
            raise NotStorable(f"`{root}` would not come back as it is, {_where(source, root)}")
    if _sharing(original, drawn) != _sharing(other, drawn) or _views(original, drawn) != _views(other, drawn):
        raise NotStorable("its results share objects in a way that would not come back")


STATE = " #"  # marks the root of an input's new state; no name contains it


def _views(traversal: Traversal, drawn: set[str]) -> list[Any]:
    """Arrays that share memory; an input's new content is a window on the input until it is packed."""
    return [
        pair
        for pair in traversal.memory_sharing
        if not any(STATE in root or root in drawn for root in (pair[0][0], pair[1][0]))
    ]


def _sharing(traversal: Traversal, drawn: set[str]) -> list[Any]:
    return sorted(pair for pair in traversal.shared if pair[0][0] not in drawn and pair[1][0] not in drawn)


def _refuse_nan_keys(traversal: Traversal) -> None:
    """A NaN is found in a dict or set only by its identity, which no pickle keeps."""
    for root, thing in traversal.instances(dict, set):
        if any(type(key) is float and key != key for key in thing):
            raise NotStorable(f"`{root}` holds a NaN as a key, which is found by identity alone")


def _drawn_roots(traversal: Traversal) -> set[str]:
    """Roots that reach figures, axes and their parts.

    They hold caches and callbacks that no two copies share; matplotlib pickles them, they come back untried.
    """
    artist = getattr(sys.modules.get("matplotlib.artist"), "Artist", None)
    if artist is None:
        return set()
    return {root for root, _ in traversal.instances(artist)}


def _digested(source: Source, payload: Mapping[str, Any], known: Sequence[object]) -> Traversal:
    """Digests of what a cell left, a root for each name, state and result; inputs are told by their place."""
    traversal = Traversal(source.namespace, known, marking=False)
    for name, value in sorted(payload["names"].items()):
        _add_output(source, traversal, name, value)
    for root, number, state in payload["states"]:
        _add_output(source, traversal, f"{root}{STATE}{number}", state)
    for index, value in enumerate(payload["results"]):
        _add_output(source, traversal, f"the result shown ({index})", value)
    return traversal


def _add_output(source: Source, traversal: Traversal, name: str, value: object) -> None:
    if _is_drawing(value):
        return
    try:
        traversal.add(name, value)
    except Undigestible as error:
        reason = f"`{name}` ({type(value).__name__}) cannot be stored, {_where(source, name)}: {error.reason}"
        raise NotStorable(f"{reason}{_hint(source, name)}") from error


def _is_drawing(value: object, depth: int = 3) -> bool:
    """Whether a value is a figure, axes or a part of them, or a container of such.

    They hold caches and callbacks that no two copies share, and walking one takes seconds; matplotlib
    pickles them,
    and they come back untried.
    """
    artist = getattr(sys.modules.get("matplotlib.artist"), "Artist", None)
    if artist is None or depth == 0:
        return False
    if isinstance(value, artist):
        return True
    parts: Iterable[object] = ()
    if isinstance(value, list | tuple | set):
        parts = value
    elif isinstance(value, dict):
        parts = value.values()
    elif _is_array(value) and value.dtype.hasobject:  # type: ignore[attr-defined]  # an array by its type
        parts = value.flat  # type: ignore[attr-defined]
    return any(_is_drawing(part, depth - 1) for part in itertools.islice(parts, 100))


def _digest_or_none(value: object, source: Source) -> bytes | None:
    try:
        return digest_of(value, source.namespace)
    except Undigestible:
        return None


def _blame(source: Source, payload: Mapping[str, Any], known: Sequence[object], error: NotStorable) -> str:
    """Which variable it is that cannot be pickled, and what to type."""
    for name, value in payload["names"].items():
        try:
            values.pack(value, known, source.namespace, _is_taken_apart, ArrayOwners([], []))
        except NotStorable as own:
            kind = type(value).__name__
            said = f"`{name}` ({kind}) cannot be stored, {_where(source, name)}: {own.reason}"
            return f"{said}{_hint(source, name)}"
    return error.reason


def _hint(source: Source, name: str) -> str:
    others = sorted(source.inputs.names.bound - {name})
    return f"; keep only some: %%cached {' '.join(others[:3])}" if others else ""


def _where(source: Source, name: str) -> str:
    line = first_line_of(source.tree, name)
    return f"line {line}" if line is not None else "made by a function that it calls"


def _is_array(thing: Any) -> bool:
    kind = type(thing)
    return kind.__module__ == "numpy" and kind.__name__ == "ndarray"
