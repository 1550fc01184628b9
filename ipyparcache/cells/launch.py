"""What live values show about a loop that its text does not: asked after analysis, before anything runs."""

from __future__ import annotations

import ast
import dis
import gc
import itertools
import os
import random
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ipyparcache.analysis import refusals
from ipyparcache.analysis.body import LOOKED_UP, Site
from ipyparcache.analysis.changing import PROGRESS_METHODS, REPLAYED_METHODS, path_of
from ipyparcache.analysis.codes import globals_of
from ipyparcache.analysis.collected import DRAW
from ipyparcache.analysis.parfor import Parfor
from ipyparcache.cells import travel
from ipyparcache.cells.aliasing import Changes, changes_of, is_apart, reached, steps_of_path
from ipyparcache.cells.estimators import parts_of
from ipyparcache.cells.facts import draws_into, facts_of
from ipyparcache.cells.ownitems import OwnItems
from ipyparcache.cells.plans import LoopOptions, refused


@dataclass(frozen=True)
class Launch:
    """The checks of one loop against the namespace that it is about to run in.

    Each raises `LoopRefused` where the loop would not leave what the serial one leaves.
    """

    parfor: Parfor
    namespace: dict[str, Any]

    def writes_items_only(self, name: str) -> bool:
        """Whether the loop changes no more of an object than items that are there."""
        return all(
            site.method in {"item", "augmented", "own", LOOKED_UP, *PROGRESS_METHODS}
            for site in self.parfor.sites
            if name in site.roots
        )

    def check_guards(self) -> None:
        """A replayed write inside of a `try` must be one that cannot raise."""
        for site in self.parfor.sites:
            if site.method == LOOKED_UP:  # with the statement that it is a part of
                continue
            if site.guarded and not all(_cannot_raise(site, self.namespace.get(n)) for n in site.roots):
                raise refused(refusals.MayRaiseHere(site.line, site.roots[0]))

    def check_printing(self, options: LoopOptions) -> None:
        """What the kernel prints comes in its place only if it is the builtin that prints, in the cell."""
        for site in self.parfor.sites:
            if site.prints and ("print" in self.namespace or options.background is not None):
                raise refused(refusals.PrintedIfCarried(site.line, min(site.assigns or site.roots)))

    def check_methods(self, apart: Set[str]) -> None:
        """A method that changes one of Python's own containers, called where it cannot be replayed.

        `apart` are names of containers of which each iteration has an item of its own.
        """
        places: dict[str, list[tuple[ast.Call, str]]] = {}
        for node in ast.walk(self.parfor.body):
            match node:
                case ast.Call(func=ast.Attribute(value=owner, attr=method)) if method in REPLAYED_METHODS:
                    path = path_of(owner)
                    if path is None or path.root not in self.parfor.reads.intersection(self.namespace):
                        continue
                    if path.root in apart:
                        continue
                    if _may_change(self.namespace[path.root], owner, method):
                        places.setdefault(path.root, []).append((node, method))
        for root, calls in places.items():
            line = calls[0][0].lineno
            others = [n for n in ast.walk(self.parfor.body) if isinstance(n, ast.Name) and n.id == root]
            if len(others) > len(calls):
                known = {id(part) for call, _ in calls for part in ast.walk(call.func)}
                read = next((n.lineno for n in others if id(n) not in known), line)
                raise refused(refusals.CarriedContainer(read, root, line), self.namespace)
            raise refused(refusals.ChangedInExpression(line, root, calls[0][1]))

    def check_generators(self) -> None:
        """A random generator that the body names would be drawn from by every iteration."""
        for node in ast.walk(self.parfor.body):
            if not (isinstance(node, ast.Name) and node.id in self.parfor.reads):
                continue
            if is_generator(self.namespace.get(node.id)):
                raise refused(refusals.SharedGenerator(node.lineno, node.id))

    def check_hashes(self) -> None:
        """The numbers by which this process hashes texts are no other's, unless it was told which to take."""
        if not sys.flags.hash_randomization or os.environ.get("PYTHONHASHSEED", "random").isdigit():
            return
        for node in ast.walk(self.parfor.body):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            name = node.func.id
            helper = self.parfor.facts.helpers.get(name)
            if "hash" not in self.namespace and (name == "hash" or (helper and "hash" in helper.reads)):
                raise refused(refusals.HashOfText(node.lineno))

    def counters(self, *, goes_on: bool) -> tuple[tuple[str, int, int], ...]:
        """Variables that count iterations, with their first values, which must be whole numbers.

        `goes_on` says that others follow an iteration that fails, which may not have counted.
        """
        found = []
        for counter in self.parfor.counters:
            begin = self.namespace.get(counter.name)
            if type(begin) is not int or goes_on:
                raise refused(refusals.CarriedReduction(counter.read_at, counter.name, counter.line))
            found.append((counter.name, begin, counter.step))
        return tuple(found)

    def check_drawn(self) -> None:
        """What the loop draws into is called by statements of their own, in the kernel, and not read else."""
        for site in self.parfor.sites:
            for name in site.roots if site.method == DRAW else ():
                if not draws_into(self.namespace.get(name)):
                    raise refused(refusals.DrawnInto(site.line, name))
        for node in ast.walk(self.parfor.body):
            if not (isinstance(node, ast.Name) and node.id in self.parfor.reads):
                continue
            if draws_into(self.namespace.get(node.id)):
                raise refused(refusals.DrawnInto(node.lineno, node.id))

    def check_drawing(self) -> None:
        """A body that draws by pyplot must make, or show, figures of its own."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        names = {name for name, value in self.namespace.items() if value is pyplot} if pyplot else set()
        asked = {attribute for name, attribute in self.parfor.attributes if name in names}
        if pyplot is not None and not asked & _FIGURES:
            self._check_drawing_by(pyplot)
        drawing = asked & vars(pyplot).keys() - _FIGURES - _NO_DRAWING if pyplot is not None else set()
        if not drawing or asked & _FIGURES:
            return
        for node in ast.walk(self.parfor.body):
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
                continue
            if node.attr in drawing and node.value.id in names:
                raise refused(refusals.DrawsOn(node.lineno, f"{node.value.id}.{node.attr}"))

    def _check_drawing_by(self, pyplot: types.ModuleType) -> None:
        """A function of the notebook that the body calls draws by pyplot, without a figure of its own."""
        for node in ast.walk(self.parfor.body):
            match node:
                case ast.Call(func=ast.Name(id=name)) if name in self.parfor.reads:
                    function = self.namespace.get(name)
                    if not isinstance(function, types.FunctionType):
                        continue
                    asked = set(_attributes_of(pyplot, function))
                    drawing = asked & vars(pyplot).keys() - _FIGURES - _NO_DRAWING
                    if drawing and not asked & _FIGURES:
                        raise refused(refusals.DrawsOn(node.lineno, name))

    def safe_sites(self) -> frozenset[int]:
        """Numbers of the sites whose replay certainly succeeds."""
        return frozenset(
            number
            for number, site in enumerate(self.parfor.sites)
            if all(_cannot_raise(site, self.namespace.get(n)) for n in site.roots)
        )

    def check_readers(self, parcel: travel.Parcel) -> None:
        """Functions that travel along must not read what the loop assigns, but as analysis saw it."""
        parfor = self.parfor
        known = set(self.parfor.facts.helpers)
        for name, readers in parcel.readers.items():
            if name in parfor.changed:
                line = parfor.changed[name][0]
            elif name in parfor.assigned_at:
                line = parfor.assigned_at[name]
            else:
                continue
            for reader in sorted(readers):
                if name in parfor.changed or reader not in known:
                    raise refused(refusals.ReadByHelper(parfor.line, name, reader, line))
        for name in sorted(parcel.written):
            if name in parfor.changed or name in parfor.temporaries:
                reader = min(parcel.written[name])
                raise refused(refusals.GlobalWrite(parfor.line, name, reader))

    def own_numbers(self, parcel: travel.Parcel, own: OwnItems) -> frozenset[int]:
        """Numbers of the containers of which each iteration has its own item.

        Checks that nothing else leads there.
        """
        found: set[int] = set()
        for rows in own.whole:
            value = self.namespace.get(rows.root)
            others = [n for n in self.parfor.reads if n != rows.root]
            shared = next((n for n in others if _leads_to(self.namespace.get(n), value)), None)
            if shared is not None:
                raise refused(refusals.SharedWithResult(rows.line, rows.root, shared, rows.line))
            found |= {n for n, obj in parcel.objects.items() if obj is value}
        for refit in self.parfor.refits:
            parts = parts_of(self.namespace[refit.root])
            others = [n for n in (*self.parfor.reads, *parcel.readers) if n != refit.root]
            values = ((n, self.namespace.get(n)) for n in others)
            shared = next((n for n, value in values if any(_leads_to(value, part) for part in parts)), None)
            if shared is not None or refit.root in parcel.readers:
                other = shared or min(parcel.readers[refit.root])
                raise refused(refusals.SharedWithResult(refit.line, refit.root, other, refit.line))
            ids = set(map(id, parts))
            found |= {n for n, obj in parcel.objects.items() if id(obj) in ids}
        return frozenset(found)

    def check_fitted(self, iterable: object) -> None:
        """What iterations fit must not be met among the elements, too."""
        for refit in self.parfor.refits:
            if any(_leads_to(iterable, part) for part in parts_of(self.namespace[refit.root])):
                raise refused(refusals.IterableChanged(self.parfor.line, refit.root, refit.line))

    def check_picked(self, parcel: travel.Parcel, own: OwnItems) -> bool:
        """Whether items that are to travel with their elements are reached by no other way.

        Containers that do not change are given up where they are: they must travel as all others then.
        """
        given_up = [
            rows for rows in own.picked if rows.root in parcel.readers or own.led_to(rows, parcel.numbers)
        ]
        for rows in given_up:
            readers = parcel.readers.get(rows.root)
            if rows.changes and readers:
                raise refused(refusals.ReadByHelper(self.parfor.line, rows.root, min(readers), rows.line))
            if rows.changes:
                value = self.namespace[rows.root]
                parts = list(value.values()) if type(value) is dict else list(value)
                others = sorted(self.parfor.reads.intersection(self.namespace) - own.picked_roots)
                values = {name: self.namespace[name] for name in others}
                led = (n for n, value in values.items() if any(_leads_to(value, part) for part in parts))
                shared = next(led, rows.root)
                raise refused(refusals.SharedWithResult(rows.line, rows.root, shared, rows.line))
            own.give_up(rows)
        return not given_up

    def check_tables(self) -> None:
        """A table of which columns are read and written must be reached by no other name."""
        for table in self.parfor.columns:
            value = self.namespace.get(table.root)
            others = sorted(self.parfor.reads.intersection(self.namespace) - {table.root})
            shared = next((n for n in others if _leads_to(self.namespace[n], value)), None)
            if shared is not None:
                raise refused(refusals.SharedWithResult(table.line, table.root, shared, table.line))

    def keys_read(self, iterable: Any) -> dict[object, int]:
        """The columns that iterations read by their target, each with the last iteration that does."""
        tables = [table for table in self.parfor.columns if table.reads_key]
        if not tables:
            return {}
        pandas = sys.modules.get("pandas")
        is_index = pandas is not None and isinstance(iterable, pandas.Index)
        found: dict[object, int] = {}
        if is_index or type(iterable) in (list, tuple, dict, set, range, _KEYS):
            with suppress(TypeError):  # what cannot be hashed is no column
                found = {key: number for number, key in enumerate(iterable)}
        for table in tables:
            if len(iterable) and (not found or any(name in found for name in table.written)):
                raise refused(refusals.CarriedContainer(table.line, table.root, table.line), self.namespace)
        return found

    def check_source(self, source: object, own: Set[str] = frozenset()) -> bool:
        """A generator that is drawn from while results are merged must not read what they change.

        Returns whether drawing from it may run code of the notebook.
        """
        kind = type(source)
        if kind is itertools.groupby:
            raise refused(refusals.SharedGroups(self.parfor.line))
        may_run = kind in _MAY_RUN_USER_CODE or kind.__module__ in (travel.MAIN, "itertools")
        code = getattr(source, "gi_code", None)
        frame = getattr(source, "gi_frame", None)
        if not isinstance(code, types.CodeType) or frame is None or frame.f_globals is not self.namespace:
            return may_run
        names = set(globals_of(code))
        for name in list(names):
            helper = facts_of([name], self.namespace).helpers.get(name)
            names |= helper.reads if helper is not None else set()
        for name in sorted(names & (set(self.parfor.changed) | set(self.parfor.temporaries) | own)):
            raise refused(refusals.IterableChanged(self.parfor.line, name, self.parfor.line))
        return True

    def beside_source(self, source: object, parcel: travel.Parcel) -> dict[str, object]:
        """Names that the body reads for small objects of the notebook that code of the iterable leads to."""
        led = reached([source, *_globals_of(source, self.namespace)], self.namespace)
        seen = set(map(id, islice(led, _COMPARED)))
        sent = set(map(id, parcel.objects.values()))
        found: dict[str, object] = {}
        for name in sorted(self.parfor.reads & self.namespace.keys()):
            value = self.namespace[name]
            if id(value) not in seen & sent:
                continue
            if type(value) in _CONTAINERS:
                if len(value) <= _COMPARED:
                    found[name] = value
            elif type(value).__module__ == travel.MAIN:
                found[name] = value
        return found

    def check_threads(self, parcel: travel.Parcel) -> None:
        """What one process cannot keep apart for several iterations at once."""
        for node in ast.walk(self.parfor.body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                why = f"with --backend threads the body cannot define `{node.name}`"
                raise refused(refusals.NotSupported(node.lineno, node.name, why))
            if isinstance(node, ast.List | ast.Tuple | ast.Dict | ast.Set | ast.ListComp | ast.GeneratorExp):
                inside = [part for part in ast.walk(node) if isinstance(part, ast.Lambda)]
                if inside and not _is_log_entry(node):
                    why = "with --backend threads the body cannot keep a lambda in a container"
                    raise refused(refusals.NotSupported(inside[0].lineno, None, why))
        for refit in self.parfor.refits:
            raise refused(refusals.ChangedByMethod(refit.line, refit.root, f"{refit.root}.fit"))
        readers = {name: min(found) for name, found in parcel.readers.items()}
        for name in self.parfor.reads:
            helper = self.parfor.facts.helpers.get(name)
            readers |= dict.fromkeys(helper.reads if helper is not None else (), name)
        for name in self.parfor.temporaries:
            if name in readers:
                raise refused(refusals.ReadByHelper(self.parfor.line, name, readers[name], self.parfor.line))

    def check_aliases(self, parcel: travel.Parcel, is_user_code: Callable[[object], bool]) -> Changes:
        """What the loop changes must not be reached by another way by what it reads; all that it changes."""
        parfor, namespace = self.parfor, self.namespace
        self._check_attributes(is_user_code)
        own = {rows.root for rows in parfor.own_rows} | {table.root for table in parfor.columns}
        own |= {refit.root for refit in parfor.refits}
        changes = changes_of(parfor.sites, {n: v for n, v in namespace.items() if n not in own}, is_user_code)
        if not changes.roots:
            return changes
        for name in sorted(self.lengths()[0]):
            root = changes.met_in([namespace[name]])
            if root is not None:
                raise refused(refusals.SharedWithResult(parfor.line, root, name, parfor.changed[root][0]))
        objects = [obj for obj in parcel.objects.values() if not isinstance(obj, travel.DEFINITIONS)]
        if changes.met_in(objects) is None and parcel.data:
            return changes
        # A root may itself be read, by attributes that the loop does not change.
        for name in sorted({*parfor.reads, *parcel.readers} & namespace.keys()):
            if name in parfor.changed:
                attributes = [a for root, a in parfor.attributes if root == name]
                values = [getattr(namespace[name], a) for a in attributes if hasattr(namespace[name], a)]
            else:
                values = [namespace[name]]
            root = changes.met_in(reached(values, namespace))
            if root is not None:
                line = parfor.changed[root][0]
                raise refused(refusals.SharedWithResult(parfor.line, root, name, line))
        return changes

    def _check_attributes(self, is_user_code: Callable[[object], bool]) -> None:
        """Where one attribute of an object is changed and another read, both must be plain data."""
        for name, read in sorted(self.parfor.attributes):
            changed = self.parfor.changed.get(name)
            if changed is None or changed[1] is None or name not in self.namespace:
                continue
            if not is_apart(self.namespace[name], changed[1], read, is_user_code):
                raise refused(refusals.CarriedAttribute(self.parfor.line, name, read, changed[1], changed[0]))

    def attributes_asked(self) -> Iterator[tuple[types.ModuleType, str]]:
        """Attributes of modules that the body reads by name."""
        for name, attribute in self.parfor.attributes:
            value = self.namespace.get(name)
            if isinstance(value, types.ModuleType):
                yield value, attribute

    def lengths(self) -> tuple[frozenset[str], dict[int, ast.expr]]:
        """Containers of which the body asks the length only, and the calls that ask with the numbers.

        They need not travel, and what an iteration changes of their elements is then read by no other.
        """
        asked: dict[str, list[ast.Call]] = {}
        named = [node.id for node in ast.walk(self.parfor.body) if isinstance(node, ast.Name)]
        for node in ast.walk(self.parfor.body):
            match node:
                case ast.Call(func=ast.Name(id="len"), args=[ast.Name(id=name)], keywords=[]) if (
                    name in self.parfor.reads and "len" not in self.namespace
                ):
                    asked.setdefault(name, []).append(node)
        only = {
            name: calls
            for name, calls in asked.items()
            if len(calls) == named.count(name) and type(self.namespace.get(name)) in _SIZED
        }
        numbers = {
            id(call): ast.copy_location(ast.Constant(len(self.namespace[name])), call)
            for name, calls in only.items()
            for call in calls
        }
        return frozenset(only), dict(numbers)


class LocalModules:
    """Whether a module is local code; remembers those asked that are."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __call__(self, name: str) -> bool:
        """Whether the module of this name is local code."""
        if name in self.names:
            return True
        from ipyparcache.digest.modules import origin_of

        if name in (travel.MAIN, "__mp_main__", "builtins") or origin_of(name) != "local":
            return False
        self.names.add(name)
        return True


def _attributes_of(module: types.ModuleType, function: types.FunctionType) -> Iterator[str]:
    """What a function asks of a module that it knows by a global name."""
    before: dis.Instruction | None = None
    for step in dis.get_instructions(function.__code__):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and before is not None:
            is_asked = before.opname == "LOAD_GLOBAL" and function.__globals__.get(before.argval) is module
            yield from [str(step.argval)] if is_asked else []
        before = step


def _globals_of(source: object, namespace: dict[str, Any]) -> Iterator[object]:
    """What the code of a generator names in the notebook."""
    code = getattr(source, "gi_code", None)
    if isinstance(code, types.CodeType):
        yield from (namespace[name] for name in globals_of(code) if name in namespace)


_SIZED = frozenset({list, tuple, dict, set, frozenset, deque, str})
_COMPARED = 10_000  # items of a container that is compared with itself after each drawing
_CONTAINERS = (list, dict, set, deque, defaultdict, OrderedDict, Counter, bytearray)
_LOOKED_AT = 100  # items of a container whose kinds are asked for
_KEYS: type = type({}.keys())
_MAY_RUN_USER_CODE = (zip, map, filter, enumerate, reversed)


def _is_log_entry(node: ast.AST) -> bool:
    """Whether a tuple is that of a site and its operands, with lambdas only as such or in calls."""
    if not isinstance(node, ast.Tuple):
        return False
    return all(isinstance(part, ast.Lambda | ast.Constant | ast.Name | ast.Call) for part in node.elts)


def _leads_to(value: object, target: object) -> bool:
    """Whether an object is, or leads in a few steps to, another, or shares its memory."""
    if value is target or reaches(value, target, 3):
        return True
    numpy = sys.modules.get("numpy")
    return (
        numpy is not None
        and all(isinstance(v, numpy.ndarray) for v in (value, target))
        and bool(numpy.may_share_memory(value, target))
    )


def _may_change(root: object, owner: ast.expr, method: str) -> bool:
    """Whether the method of what a path leads to is one of a container of Python's own, that changes it."""
    found = [root]
    for _ in range(steps_of_path(owner)):
        found = [part for obj in found for part in _parts_asked(obj)]
    return any(type(obj) in _CONTAINERS and hasattr(obj, method) for obj in found)


def _parts_asked(obj: object) -> list[object]:
    if isinstance(obj, defaultdict) and obj.default_factory in _CONTAINERS:
        return [*islice(obj.values(), _LOOKED_AT), obj.default_factory()]
    if isinstance(obj, dict):
        return list(islice(obj.values(), _LOOKED_AT))
    if isinstance(obj, list | tuple | deque):
        return list(islice(obj, _LOOKED_AT))
    return list(getattr(obj, "__dict__", {}).values())


def is_generator(value: object) -> bool:
    """Whether a value is a random generator, or what such are made from."""
    if isinstance(value, random.Random):
        return True
    module, name = type(value).__module__, type(value).__name__
    if module.startswith("numpy.random"):
        return name in _GENERATORS
    return (module, name) == ("torch", "Generator")


def runs_in_loop() -> bool:
    """Whether this thread is inside of an event loop, as cells are, that cannot be entered again."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or hasattr(asyncio, "_nest_patched"):
        return False
    return asyncio._get_running_loop() is not None


def figures_open() -> bool:
    """Whether pyplot has open figures in this process."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    return pyplot is not None and bool(pyplot.get_fignums())


#: Functions of pyplot that make a figure, or end it.
_FIGURES = frozenset({"figure", "subplots", "subplot_mosaic", "show", "close"})
#: Those that draw nothing.
_NO_DRAWING = frozenset(
    {
        "style",
        "rcParams",
        "rc",
        "rc_context",
        "get_cmap",
        "cm",
        "colormaps",
        "cycler",
        "ion",
        "ioff",
        "Normalize",
    }
    | {"Figure", "Axes", "Circle", "Rectangle", "Polygon", "Line2D", "get_fignums", "colorbar", "setp", "np"}
)
_GENERATORS = frozenset({"Generator", "RandomState", "SeedSequence"})


def seeded_libraries() -> tuple[str, ...]:
    """Libraries whose global random generator the user has seeded in this kernel."""
    from ipyparcache.digest.environment import still_holds

    return tuple(
        library
        for library in ("random", "numpy.random", "torch")
        if library in sys.modules and not still_holds(("random", library, "unseeded"))
    )


def _cannot_raise(site: Site, root: object) -> bool:
    """Whether a replayed write certainly succeeds; unhashable keys are found out on the worker."""
    match site.statement:  # what an item or attribute of the root is, or whether it is there, is not known
        case (
            ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Subscript() | ast.Call())))
            | ast.Assign(targets=[ast.Subscript(value=ast.Subscript() | ast.Call())])
        ):
            return False
    if site.method in ("append", "appendleft"):
        return type(root).__name__ in ("list", "deque")
    if site.method in ("add", "discard"):
        return isinstance(root, set)
    if site.method in ("item", "setdefault"):
        return isinstance(root, dict)
    # A constant can be added to a number; what else an operand may be is not known.
    return site.method == "reduce" and site.holes == 0 and isinstance(root, int | float | complex)


def keeps_references(root: object) -> bool:
    """Whether an item write into `root` keeps the object itself, not a copy of its content."""
    return isinstance(root, dict | list) or (root is not None and type(root).__module__ == travel.MAIN)


def reaches(value: object, target: object, depth: int = 7) -> bool:
    """Whether one object leads to another within some steps."""

    seen: set[int] = set()
    layer: list[object] = [value]
    for _ in range(depth):
        following: list[object] = []
        for obj in layer:
            for part in gc.get_referents(obj):
                if part is target:
                    return True
                if (
                    id(part) not in seen
                    and not isinstance(part, types.ModuleType)
                    and not _is_namespace(part)
                ):
                    seen.add(id(part))
                    following.append(part)
        layer = following[:10_000]
    return False


def _is_namespace(part: object) -> bool:
    return isinstance(part, dict) and "__builtins__" in part
