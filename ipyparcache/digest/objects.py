"""Content digests of live objects, and the numbers by which their mutable parts are named.

A digest covers types, values and *inner sharing*: within one root the mutable objects are numbered in the
order in which a depth-first walk first meets them, and a second meeting writes the number. The same numbers
name an object towards other rooms: which input an output refers to, what a run changed in place, where a
restored state belongs.
"""

from __future__ import annotations

import builtins
import copy
import sys
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

from blake3 import blake3

from ipyparcache.digest import code, modules, patches, registries
from ipyparcache.digest.instances import find_kind, is_user_definition
from ipyparcache.digest.walk import (
    KINDS,
    PRIMITIVES,
    Kind,
    Met,
    Numbered,
    Walk,
    dumps,
    is_pure,
    module_of,
    same,
)
from ipyparcache.errors import Undigestible

ABSENT = b"absent"
MODULES_ASKED = "local modules loaded"  # root of what `sys.modules` tells to code that asks it
REMEMBERED_FROM = 0.0005  # seconds; what is walked faster is walked again


class Read(NamedTuple):
    """A global name that reached code looks up, in the notebook (`owner` "__main__") or a local module."""

    owner: str
    name: str
    present: bool
    attributes: frozenset[str] | None = None  # read of it, if it is a module; None: all of them

    @property
    def root(self) -> str:
        """Name of the root that the value becomes."""
        return self.name if self.owner == "__main__" else f"{self.owner}:{self.name}"


class RememberedWalk(NamedTuple):
    """What the walk of one root showed, to be taken for a walk as long as its objects are as they were.

    It led to no code and no names of the notebook or of local modules, and shared nothing with other roots.
    """

    value: object  # kept, so that its identity stays its own
    digest: bytes
    objects: list[object]  # the mutable ones, by number
    places: dict[int, int]  # number of each, by its identity
    together: tuple[tuple[int, int], ...]
    arrays: tuple[tuple[int, int, int], ...]  # number, start and end in memory
    modules: tuple[str, ...]
    classes: tuple[type, ...]  # of distributions
    fixed: Met  # the immutable ones that are told apart


class Traversal:
    """All inputs of one lookup: each object digested once, kept alive so that identities stay valid.

    Parameters
    ----------
    main : Mapping, optional
        The notebook's namespace. A function whose globals it is, is a notebook function, and the names that
        such a function reads become `reads`.

    known : sequence of object, optional
        Mutable objects that exist on both sides of a comparison: written by their place in this sequence, and
        neither entered nor numbered.

    marking : bool
        Whether to note at once what `changed` asks for; else `mark` does, if it is to be asked.

    remembered : dict, optional
        Walks of earlier traversals by the identity of their value, over objects that nobody can have changed
        since; they are not walked again, and new ones are added. Without `marking` and `known` only.

    Attributes
    ----------
    digests : dict of str to bytes
        Digest of each root: those that were added, and those found on the way, `class helpers.Model`,
        `module helpers`, `package numpy`, and the names that reached code reads (after `follow`). All belong
        in a key.
    shared : list
        Objects met under two roots, as ((root, number), (root, number)); part of a key.
    memory_sharing : list
        Arrays that overlap in memory without being one object: ((root, number), (root, number), bytes between
        their starts); part of a key. Complete once `follow` has run.
    reads : list of Read
        Global names that reached code looks up, transitively, in the order of their discovery.
    modules : dict of str to str
        Modules reached: name to origin (`local`, `library`).
    """

    def __init__(
        self,
        main: Mapping[str, object] | None = None,
        known: Sequence[object] = (),
        marking: bool = True,
        remembered: dict[int, RememberedWalk] | None = None,
    ):
        self.remembered = remembered
        self.marking = marking
        self.main = main if main is not None else _notebook_namespace()
        self.known = {id(obj): place for place, obj in enumerate(known)}
        self.known_met: set[int] = set()  # places in `known` of the objects that were met
        self._outside = known
        self.digests: dict[str, bytes] = {}
        self.shared: list[tuple[tuple[str, int], tuple[str, int]]] = []
        self.reads: list[Read] = []
        self.modules: dict[str, str] = {}
        self.standard: set[str] = set()  # Python's own modules: no inputs, but settings may concern them
        self.kept: list[object] = []  # temporaries of pickle hooks: their ids must stay taken
        self.frozen: dict[int, bytes] = {}  # digests of immutable containers met before
        self.contents: dict[int, bytes] = {}  # digests of the contents of large arrays met before
        self.arrays: list[tuple[str, int, int, int]] = []  # (root, number, start, end) of arrays in memory
        self.named: dict[type, bytes] = {}  # how classes of distributions that were met before are written
        self.columns: dict[int, list[Any]] = {}  # of frames, by id: digests of their columns
        self._first: dict[int, tuple[str, int]] = {}
        self._recalled: list[tuple[str, dict[int, int]]] = []  # the same, for roots that are not walked again
        self._roots: dict[str, Numbered] = {}
        self._values: dict[str, object] = {}
        self._pending: list[tuple[str, object]] = []  # definitions met that are roots of their own
        self._definitions: dict[int, str] = {}
        self._names: dict[str, int] = {}
        self._seen_reads: dict[tuple[str, str], int] = {}
        self._followed = 0
        self._looked_up = 0  # how often a walk led to names and code that may change without being changed
        self._kinds: dict[type, Kind] = {}
        self._classes: set[type] = set()  # of distributions, looked through for methods of the user
        self._bases: set[type] = set()  # of those
        self._patches: dict[str, tuple[Any, dict[str, object]]] = {}  # what the user put where, when digested
        self._awaited: list[str] = []  # modules that the code will import
        self.dynamic: list[str] = []  # what was met that reaches the notebook by computed names

    # ---- roots

    def add(self, root: str, value: object, attributes: Iterable[str] | None = None) -> bytes:
        """Digest one root: its content and inner sharing, the same in every process.

        If the value is a module, `attributes` are those that code takes from it; None stands for any.

        Raises
        ------
        Undigestible
            With the path from the root, such as `x['a'][3]`.
        """
        if isinstance(value, ModuleType):
            self._values[root] = value
            self._roots[root] = Numbered()
            digest = self.digests[root] = blake3(f"module {value.__name__}".encode()).digest()
            self.reach_module(value, attributes)
        else:
            digest = self._add(root, value)
        while self._pending:
            name, definition = self._pending.pop(0)
            if name not in self.digests:
                self._add(name, definition, definition=name.startswith("class "))
        return digest

    def _add(self, root: str, value: object, definition: bool = False) -> bytes:
        self._values[root] = value
        remembered = None
        if self.remembered is not None and not definition and type(value) not in PRIMITIVES:
            remembered = self.remembered.get(id(value))
            if remembered is None:
                return self._add_remembering(root, value, self.remembered)
            return self._add_remembered(root, remembered)
        walk = Walk(self, root)
        self._roots[root] = walk.numbered
        digest = walk.run(value, code.CLASS if definition else None)
        self.digests[root] = digest
        return digest

    def _add_remembering(self, root: str, value: object, remembered: dict[int, RememberedWalk]) -> bytes:
        """Walk a root without what earlier roots have shown, so that all is heard that it leads to."""
        earlier = self.named, self.modules, self.standard, self.frozen, self.columns
        looked_up, shared, arrays = self._looked_up, len(self.shared), len(self.arrays)
        self.named, self.modules, self.standard, self.frozen, self.columns = {}, {}, set(), {}, {}
        walk = Walk(self, root)
        self._roots[root] = walk.numbered
        began = time.perf_counter()
        try:
            digest = self.digests[root] = walk.run(value)
        finally:
            took = time.perf_counter() - began
            named, found = self.named, [*self.modules, *self.standard]
            earlier[0].update(self.named)
            earlier[1].update(self.modules)
            earlier[2].update(self.standard)
            earlier[3].update(self.frozen)
            earlier[4].update(self.columns)
            self.named, self.modules, self.standard, self.frozen, self.columns = earlier
        if took >= REMEMBERED_FROM and self._looked_up == looked_up and len(self.shared) == shared:
            remembered[id(value)] = RememberedWalk(
                value,
                digest,
                walk.numbered.objects,
                walk.numbers,
                tuple(walk.numbered.together),
                tuple(place[1:] for place in self.arrays[arrays:]),
                tuple(found),
                tuple(cls for cls in named if module_of(cls) != "builtins"),
                walk.numbered.fixed,
            )
        return digest

    def _add_remembered(self, root: str, walk: RememberedWalk) -> bytes:
        self.digests[root] = walk.digest
        numbered = self._roots[root] = Numbered(walk.objects)
        numbered.fixed = walk.fixed
        places = walk.places.keys()
        if places.isdisjoint(self._first.keys()) and self._is_new_to_recalled(places):
            self._recalled.append((root, walk.places))
            numbered.together = list(walk.together)
        else:
            for number, obj in enumerate(walk.objects):
                self._meet(obj, (root, number))
        for number, start, end in walk.arrays:
            if self.number_of(walk.objects[number]) == (root, number):
                self.arrays.append((root, number, start, end))
        for module in walk.modules:
            self.note_module(module)
        for cls in walk.classes:
            self.note_module(module_of(cls))
            self.reach_class(cls)
        return walk.digest

    def add_absent(self, root: str) -> bytes:
        """Note that there is no such name: that, too, is an input."""
        self.digests[root] = ABSENT
        return ABSENT

    def add_import(self, name: str) -> None:
        """Note a module that code imports while it runs.

        A local one counts by source, with those that it imports; if it is loaded, also by the attributes that
        are no longer as its import left them. A distribution counts by version and by what the user put into
        it.
        """
        self.note_module(name)
        if name not in sys.modules:
            self._awaited.append(name)
            return
        for part in modules.closure_of(name):
            for attribute in modules.changed_attributes(part):
                self.note_read(part, attribute, vars(sys.modules[part]))
        if modules.origin_of(name) in ("library", "standard"):
            self.reach_module(sys.modules[name], None, imported=True)

    def follow(self, ignored: Container[str] = ()) -> dict[str, bytes]:
        """Add every name that reached code reads and that is no root yet, until nothing new is found.

        Names of the notebook in `ignored` are left out. Returns the digests of the roots added.
        """
        added: dict[str, bytes] = {}
        while self._followed < len(self.reads):
            read = self.reads[self._followed]
            self._followed += 1
            if read.root in self.digests or (read.owner == "__main__" and read.name in ignored):
                continue
            if not read.present:
                added[read.root] = self.add_absent(read.root)
                continue
            added[read.root] = self.add(read.root, self._value_of(read), read.attributes)
        return added

    def _value_of(self, read: Read) -> object:
        return self.namespace_of(read.owner)[read.name]

    def namespace_of(self, owner: str) -> Mapping[str, object]:
        """Globals of the notebook or of a module."""
        return self.main if owner == "__main__" else vars(sys.modules[owner])

    def reach_module(self, module: ModuleType, names: Iterable[str] | None, imported: bool = False) -> None:
        """Note a module object that code holds, and the attributes that may be taken from it (None: any).

        Of a local module they count by live value. Of a distribution only those do that the user may have put
        there: functions and classes of the notebook or of a local module, and plain data, unless code has
        merely `imported` the module.
        """
        self._looked_up += 1
        name = module.__name__
        self.note_module(name)
        namespace = vars(module)
        origin = modules.origin_of(name)
        if origin == "notebook":
            if names is None:
                self.note_dynamic(name)
            for attribute in sorted(names or ()):
                self.note_read(name, attribute, self.main)
            return
        if origin == "local":
            if names is None:
                names = [attribute for attribute in namespace if not attribute.startswith("__")]
            if "__getattr__" in namespace:  # what it makes up is told by what it reads
                names = {*names, "__getattr__"}
            for attribute in sorted(names):
                self.note_read(name, attribute, namespace)
            return
        own = patches.patches_of(module)
        self._patches[patches.place_of(module)] = module, own
        if names is None:
            if not imported:
                self._note_settings(module)
            for attribute in sorted(own):
                self.note_read(name, attribute, namespace)
            for value in list(namespace.values()):
                if isinstance(value, type):
                    self.reach_class(value)
            return
        if origin == "standard":  # its functions use classes that nobody names
            for value in list(namespace.values()):
                if isinstance(value, type) and patches.patches_of(value):
                    self.reach_class(value)
        if name == "sys" and "modules" in names:
            loaded = sorted(part for part in list(sys.modules) if modules.origin_of(part) == "local")
            self.digests[MODULES_ASKED] = blake3(dumps(loaded, 2)).digest()
        for attribute in sorted(names):
            value = namespace.get(attribute)
            if attribute in own or _is_plain_setting(attribute, value):
                self.note_read(name, attribute, namespace)
            elif isinstance(value, type):
                self.reach_class(value)
            elif origin == "standard" and isinstance(value, ModuleType):
                # `collections.abc`: which of its attributes is not told
                self.reach_module(value, None, imported=True)

    def _note_settings(self, module: ModuleType) -> None:
        """Note the plain data of a distribution's module, of which code may take any by a computed name."""
        told = {
            name: sorted(map(repr, value)) if type(value) is set else value
            for name, value in list(vars(module).items())
            if not name.startswith("_") and _is_plain_setting(name, value)
        }
        if module is sys:  # which are those of the kernel's own start
            told.pop("orig_argv", None)
            if registries.special_arguments() is None:
                told.pop("argv", None)
        self.digests[f"settings of {module.__name__}"] = blake3(dumps(sorted(told.items()), 2)).digest()

    def reach_class(self, cls: type) -> None:
        """Note a class of a distribution: methods that the user put on it are roots of their own."""
        if cls in self._classes:
            return
        self._classes.add(cls)
        for base in cls.__mro__:
            if base in self._bases or not base.__flags__ & (1 << 9):
                continue
            self._bases.add(base)
            if modules.is_user_code(module_of(base)):
                continue
            virtual = [
                named for named in code.registered_with(base) if modules.is_user_code(module_of(named))
            ]
            if virtual:
                names = [f"{module_of(named)}.{named.__qualname__}" for named in virtual]
                place = f"{module_of(base)}.{base.__qualname__}"
                self.digests[f"classes registered with {place}"] = blake3(dumps(names, 2)).digest()
            own = patches.patches_of(base)
            self._patches[patches.place_of(base)] = base, own
            for name, value in own.items():
                self._pending.append((f"patch {module_of(base)}.{base.__qualname__}.{name}", value))

    @property
    def memory_sharing(self) -> list[tuple[tuple[str, int], tuple[str, int], int]]:
        """Pairs of arrays that overlap in memory; see the class."""
        found = []
        open_ones: list[tuple[str, int, int, int]] = []
        for array in sorted(self.arrays, key=lambda one: (one[2], one[3], one[0], one[1])):
            open_ones = [other for other in open_ones if other[3] > array[2]]
            for other in open_ones:
                pair = sorted([(other[0], other[1], other[2]), (array[0], array[1], array[2])])
                found.append((pair[0][:2], pair[1][:2], pair[1][2] - pair[0][2]))
            open_ones.append(array)
        return sorted(found)

    def combined(self) -> bytes:
        """One digest of everything: all roots by name, what they share, which memory they share."""
        rows = sorted(self.digests.items())
        shared = sorted(self.shared)
        return blake3(dumps((rows, shared, self.memory_sharing), 2)).digest()

    # ---- numbers

    def number_of(self, obj: object) -> tuple[str, int] | None:
        """Root and number of a mutable object met earlier, under the first root that reached it."""
        return (self._recalled_place(obj) if self._recalled else None) or self._first.get(id(obj))

    def object_at(self, root: str, number: int) -> object:
        """The live object with this number."""
        if root not in self._roots and root.startswith(patches.PATCHES):
            return patches.owner_at(root)
        return self._roots[root].objects[number]

    def value_of(self, root: str) -> object:
        """The live value of a root, None if it is absent or stands for a module or a distribution."""
        return self._values.get(root)

    def stands_for_code(self, root: str) -> bool:
        """Whether a root is a module or a distribution, which have a source or a version, and no value."""
        return root not in self._values and self.digests[root] != ABSENT

    def count_of(self, root: str) -> int:
        """How many mutable objects the root reaches."""
        return len(self._roots[root].objects)

    def numbered(self) -> Iterator[tuple[str, int, object]]:
        """Every mutable object as (root, number, object), in an order that equal inputs share."""
        for root in sorted(self._roots):
            for number, obj in enumerate(self._roots[root].objects):
                yield root, number, obj

    def objects(self) -> Iterator[object]:
        """Every mutable object, in the same order; what several roots reach comes again."""
        return chain.from_iterable(self.lists_of_objects())

    def lists_of_objects(self) -> list[list[object]]:
        """The mutable objects of each root, in the same order; not to be changed."""
        return [self._roots[root].objects for root in sorted(self._roots)]

    def fixed(self) -> list[object]:
        """The immutable objects that are told apart, in an order that inputs share which share them alike."""
        return [thing for root in sorted(self._roots) for thing in self._roots[root].fixed]

    def instances(self, *classes: type) -> Iterator[tuple[str, Any]]:
        """The mutable objects of some classes, with the root of each."""
        for root in sorted(self._roots):
            objects = self._roots[root].objects
            wanted = {kind for kind in set(map(type, objects)) if issubclass(kind, classes)}
            if wanted:
                yield from ((root, obj) for obj in objects if type(obj) in wanted)

    def mark(self) -> None:
        """Note what `changed` will compare with; the objects are still as they were digested."""
        if self.marking:
            return
        self.marking = True
        for root, numbered in self._roots.items():
            walk = Walk(self, root, isolated=True)
            together: set[int] = set()
            for first, count in numbered.together:
                items: list[Any] = numbered.objects[first : first + count]
                numbered.many.append((first, list(map(copy.copy, items))))
                together.update(range(first, first + count))
            for number, obj in enumerate(numbered.objects):
                if number not in together and self.number_of(obj) == (root, number):
                    kind = self.kind_of(type(obj))
                    numbered.marks.append((number, kind, kind.mark(walk, obj)))

    def changed(self) -> list[tuple[str, int]]:
        """Mutable objects whose own state is not as it was digested, by the root that reached them first."""
        found = []
        self.frozen, self.contents, self.columns = {}, {}, {}  # of before the run: nothing about now
        for root, numbered in self._roots.items():
            walk = Walk(self, root, isolated=True)
            for number, kind, mark in numbered.marks:
                if not kind.is_as(walk, numbered.objects[number], mark):
                    found.append((root, number))
            for first, copies in numbered.many:
                now = numbered.objects[first : first + len(copies)]
                if not _same_dumps(now, copies):
                    pairs = zip(now, copies, strict=True)
                    found += [(root, first + n) for n, (new, old) in enumerate(pairs) if not same(new, old)]
        places = [
            place
            for place, (owner, before) in self._patches.items()
            if not patches.is_same(before, patches.patches_of(owner))
        ]
        places += [place for name in self._awaited for place in patches.patched_in(name)]
        return found + [(place, 0) for place in places]

    # ---- what walks report

    def kind_of(self, cls: type) -> Kind:
        """How objects of this class are digested."""
        kind = KINDS.get(cls) or self._kinds.get(cls)
        if kind is None:
            kind = self._kinds[cls] = find_kind(cls)
        return kind

    def meet(self, walk: Walk, obj: object, kind: Kind, number: int) -> None:
        """Note a mutable object that a root reached as its `number`."""
        if self._meet(obj, (walk.root, number)) and self.marking:
            walk.numbered.marks.append((number, kind, kind.mark(walk.apart(), obj)))

    def _meet(self, obj: object, here: tuple[str, int]) -> bool:
        """Note where a mutable object was met; whether that was the first time."""
        there = self._recalled_place(obj) if self._recalled else None
        if there is None:
            there = self._first.setdefault(id(obj), here)
        if there is not here and there != here:
            self.shared.append((there, here))
        return there is here

    def _recalled_place(self, obj: object) -> tuple[str, int] | None:
        for root, places in self._recalled:
            number = places.get(id(obj))
            if number is not None:
                return root, number
        return None

    def _is_new_to_recalled(self, identities: Iterable[int]) -> bool:
        return all(places.keys().isdisjoint(identities) for _, places in self._recalled)

    def meet_many(self, walk: Walk, items: Sequence[Any], number: int) -> None:
        """Note many plain lists or dicts that a root reached, the first of them as its `number`."""
        places = [(walk.root, place) for place in range(number, number + len(items))]
        if self._first.keys().isdisjoint(map(id, items)) and self._is_new_to_recalled(map(id, items)):
            self._first.update(zip(map(id, items), places, strict=True))
            if self.marking:
                walk.numbered.many.append((number, list(map(copy.copy, items))))
            else:
                walk.numbered.together.append((number, len(items)))
            return
        kind = KINDS[type(items[0])]
        for place, item in zip(places, items, strict=True):
            self.meet(walk, item, kind, place[1])

    def note_read(
        self, owner: str, name: str, namespace: Mapping[str, object], attributes: frozenset[str] | None = None
    ) -> None:
        """Note that reached code looks up a global name."""
        self._looked_up += 1
        present = name in namespace
        if not present:
            foreign = _is_user_builtin(name)
            if foreign:
                owner, present = "builtins", True
        known = self._seen_reads.get((owner, name))
        if known is None:
            self._seen_reads[owner, name] = len(self.reads)
            self.reads.append(Read(owner, name, present, attributes))
            return
        # Another function reads more of the same module.
        earlier = self.reads[known]
        if present and earlier.attributes is not None and earlier.attributes != attributes:
            wider = None if attributes is None else earlier.attributes | attributes
            self.reads[known] = Read(owner, name, present, wider)
            value = namespace.get(name)
            if known < self._followed and isinstance(value, ModuleType):
                self.reach_module(value, wider)

    def note_dynamic(self, what: str) -> None:
        """Note something that reaches names of the notebook which no code spells out."""
        self._looked_up += 1
        self.dynamic.append(what)

    def note_module(self, name: str) -> None:
        """Make a module that code relies on a root: a local one by source, a distribution by version."""
        waiting = [name]
        while waiting:
            name = waiting.pop(0)
            if name in self.modules:
                continue
            origin = modules.origin_of(name)
            if origin == "standard":
                self.standard.add(name.partition(".")[0])
            if origin in ("notebook", "standard"):
                continue
            if origin == "library":
                top = name.partition(".")[0]
                if top != "ipyparcache" and top not in self.modules:
                    self.modules[top] = origin
                    self.digests[f"package {top}"] = modules.version_of(top).encode()
                continue
            self.modules[name] = origin
            source = modules.source_of(name)
            if source is not None:
                self.digests[f"module {name}"] = source.digest
                waiting.extend(modules.imports_of(source))
            else:
                self.digests[f"module {name}"] = self._live_code_of(name)

    def _live_code_of(self, name: str) -> bytes:
        """Stand-in for a source that cannot be told: the code that the loaded module holds."""
        module = sys.modules.get(name)
        if module is None:
            return b"not found"
        self.reach_module(module, None)
        return b"no source"

    def definition(self, cls: type) -> str:
        """Name of the root that a class of the notebook or of a local module is; queued when new."""
        self._looked_up += 1
        known = self._definitions.get(id(cls))
        if known is not None:
            return known
        base = f"class {module_of(cls)}.{cls.__qualname__}"
        count = self._names[base] = self._names.get(base, 0) + 1
        name = base if count == 1 else f"{base}#{count}"
        self._definitions[id(cls)] = name
        self._pending.append((name, cls))
        return name


def _is_user_builtin(name: str) -> bool:
    """Whether `builtins` holds something of the notebook under this name: code, or what was put there
    later."""
    value = vars(builtins).get(name)
    return is_user_definition(value) or (
        name in vars(builtins)
        and name not in _FIRST_BUILTINS
        and name != "_"
        and not isinstance(value, BuiltinFunctionType)
    )


_FIRST_BUILTINS = frozenset(vars(builtins))


def _notebook_namespace() -> Mapping[str, object]:
    return vars(sys.modules["__main__"])


def _same_dumps(now: list[object], before: list[object]) -> bool:
    """Whether plain containers hold what they held; False also where that cannot be told so fast."""
    try:
        return dumps(now, 2) == dumps(before, 2) and all(is_pure(_inner(one)) for one in now)
    except ValueError:  # something that marshal does not know was put in
        return False


def _inner(container: Any) -> list[object]:
    return [*container, *container.values()] if type(container) is dict else list(container)


def _is_plain_setting(name: str, value: object) -> bool:
    """Whether a library's module attribute is plain data, which user code may have set.

    `sys.path`, `sys.argv`.
    """
    if name.startswith("__"):
        return False
    if type(value) in (list, tuple, set, dict):
        parts: Any = value
        items = [*parts, *parts.values()] if type(value) is dict else parts
        return len(parts) < 1000 and all(type(part) in PRIMITIVES for part in items)
    return value is not None and type(value) in PRIMITIVES


def _note_attributes(module: ModuleType) -> dict[str, bytes | None]:
    """Digests of what a module holds that can change without being replaced."""
    noted: dict[str, bytes | None] = {}
    for name, value in vars(module).items():
        if (
            name.startswith("__")
            or type(value) in PRIMITIVES
            or isinstance(value, (ModuleType, FunctionType, type))
        ):
            continue
        noted[name] = _digest_or_none(value)
    return noted


def _digest_or_none(value: object) -> bytes | None:
    try:
        return Traversal().add("value", value)
    except Undigestible:
        return None


modules.observers.digests_of = _note_attributes


# ---- for other rooms


def digest_of(value: object, main: Mapping[str, object] | None = None) -> bytes:
    """Digest of one object alone, with all code, names and modules that it reaches.

    Raises
    ------
    Undigestible
        If part of it has no stable content.
    """
    traversal = Traversal(main, marking=False)
    traversal.add("value", value)
    traversal.follow()
    return traversal.combined()
