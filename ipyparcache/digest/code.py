"""Digests of functions, classes and modules: what they do, and what they look up while they do it.

A function is its bytecode with constants and names, never its file or its lines, so that comments, blank
lines and its place count for nothing; then defaults, closure cells, attributes and annotations. The global
names that its code reads are reported to the traversal, which makes roots of them. A class is its bases and
its live attributes.
"""

from __future__ import annotations

import abc
import copyreg
import functools
import gc
import marshal
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import EnumMeta
from opcode import opmap
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from blake3 import blake3

from ipyparcache.digest import modules
from ipyparcache.digest.containers import PartsKind
from ipyparcache.digest.walk import (
    KINDS,
    PRIMITIVES,
    Kind,
    Walk,
    class_dict,
    dumps,
    resolves_to,
    without_nan,
)
from ipyparcache.errors import Unrestorable

if TYPE_CHECKING:
    from ipyparcache.digest.objects import Traversal

_OPCODES = opmap
_NAMED_GLOBAL = _OPCODES["LOAD_GLOBAL"]
_NAMED_PLAIN = {
    _OPCODES[name]
    for name in ("LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS")
    if name in _OPCODES
}
_WRITES = {_OPCODES["STORE_GLOBAL"], _OPCODES["DELETE_GLOBAL"]}
_ATTRIBUTE = {_OPCODES[name] for name in ("LOAD_ATTR", "LOAD_METHOD") if name in _OPCODES}
_IGNORED = {
    _OPCODES[name] for name in ("CACHE", "EXTENDED_ARG", "NOP", "PUSH_NULL", "PRECALL") if name in _OPCODES
}
_IMPORT = _OPCODES["IMPORT_NAME"]
_IMPORT_FROM = _OPCODES["IMPORT_FROM"]
_SHIFTED_ATTRIBUTE = sys.version_info >= (3, 12)  # the low bit of LOAD_ATTR tells a method call


class CodeFacts(NamedTuple):
    """What a code object, with those nested in it, does and looks up."""

    digest: bytes
    reads: Mapping[str, frozenset[str] | None]  # global names, and which attributes; None: the object itself
    writes: frozenset[str]  # global names that it binds or deletes
    imports: tuple[tuple[str, int, tuple[str, ...]], ...]  # module, dots before it, names taken from it


_facts: dict[int, tuple[types.CodeType, CodeFacts]] = {}
_FACTS_KEPT = 20_000


def facts_of(code: types.CodeType) -> CodeFacts:
    """Facts on a code object, worked out once."""
    known = _facts.get(id(code))
    if known is not None:
        return known[1]
    facts = _find_facts(code)
    if len(_facts) >= _FACTS_KEPT:
        _facts.clear()
    _facts[id(code)] = (code, facts)  # holding the code keeps its id its own
    return facts


def _find_facts(code: types.CodeType) -> CodeFacts:
    reads: dict[str, set[str] | None] = {}
    writes: set[str] = set()
    imports: list[tuple[str, int, tuple[str, ...]]] = []
    for name, attribute, is_write in _global_uses(code):
        if is_write:
            writes.add(name)
            continue
        known = reads.setdefault(name, set())
        if attribute is None:
            reads[name] = None
        elif known is not None:
            known.add(attribute)
    imports += _imports(code)
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = facts_of(constant)
            constants.append(b"code" + inner.digest)
            writes |= inner.writes
            imports += inner.imports
            for name, attributes in inner.reads.items():
                known = reads.setdefault(name, set())
                if attributes is None or known is None:
                    reads[name] = None
                else:
                    known |= attributes
        else:
            constants.append(_constant(constant))
    own = (
        code.co_code,
        code.co_exceptiontable,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_flags,
        code.co_name,
        tuple(constants),
    )
    return CodeFacts(
        blake3(dumps(own, 2)).digest(),
        {name: None if found is None else frozenset(found) for name, found in sorted(reads.items())},
        frozenset(writes),
        tuple(imports),
    )


def _constant(value: Any) -> bytes:
    """A constant by type and value: 1, True and 1.0 are equal and must not be taken for one another."""
    if type(value) in PRIMITIVES:
        return b"p" + dumps(without_nan([value]), 2)
    if isinstance(value, tuple):
        return b"t" + dumps([_constant(item) for item in value], 2)
    if isinstance(value, frozenset):
        return b"s" + dumps(sorted(_constant(item) for item in value), 2)
    if isinstance(value, slice):
        return b"l" + dumps([_constant(item) for item in (value.start, value.stop, value.step)], 2)
    return b"o" + type(value).__name__.encode()


def _instructions(code: types.CodeType) -> Iterator[tuple[int, int]]:
    raw = code.co_code
    extended = 0
    for at in range(0, len(raw), 2):
        opcode, argument = raw[at], raw[at + 1] | extended
        if opcode == _OPCODES["EXTENDED_ARG"]:
            extended = argument << 8
            continue
        extended = 0
        if opcode not in _IGNORED:
            yield opcode, argument


def _global_uses(code: types.CodeType) -> Iterator[tuple[str, str | None, bool]]:
    """Each use of a global: its name, the attribute taken from it if that is all, whether it is written."""
    names = code.co_names
    pending: str | None = None
    for opcode, argument in _instructions(code):
        if pending is not None:
            if opcode in _ATTRIBUTE:
                shifted = _SHIFTED_ATTRIBUTE and opcode == _OPCODES["LOAD_ATTR"]
                yield pending, names[argument >> 1 if shifted else argument], False
            else:
                yield pending, None, False
            pending = None
        if opcode == _NAMED_GLOBAL:
            pending = names[argument >> 1]
        elif opcode in _NAMED_PLAIN:
            if opcode in _WRITES:
                yield names[argument], None, True
            else:
                pending = names[argument]
    if pending is not None:
        yield pending, None, False


def _imports(code: types.CodeType) -> list[tuple[str, int, tuple[str, ...]]]:
    """Imports of a code object: the level and the names were loaded as constants just before."""
    found = []
    before: list[tuple[int, int]] = []
    load = _OPCODES["LOAD_CONST"]
    small = _OPCODES.get("LOAD_SMALL_INT", -1)
    for opcode, argument in _instructions(code):
        if opcode == _IMPORT:
            level: Any = 0
            taken: Any = None
            if len(before) >= 2:
                first, second = before[-2:]
                level = first[1] if first[0] == small else code.co_consts[first[1]] if first[0] == load else 0
                taken = code.co_consts[second[1]] if second[0] == load else None
            names = tuple(name for name in taken or () if isinstance(name, str))
            found.append((code.co_names[argument], level if isinstance(level, int) else 0, names))
        before = [*before[-1:], (opcode, argument)]
    return found


# ---- functions


def note_lookups(traversal: Traversal, facts: CodeFacts, namespace: Mapping[str, object], owner: str) -> None:
    """Report to the traversal what code looks up in its globals and what it imports."""
    for name, attributes in facts.reads.items():
        traversal.note_read(owner, name, namespace, attributes)
    package = namespace.get("__package__")
    for module, level, taken in facts.imports:
        full = modules.absolute_name(module, level, package if isinstance(package, str) else "")
        if full in modules.NOTEBOOK_MODULES:
            if not taken or "*" in taken:
                traversal.note_dynamic(f"import {full}")
            for name in taken:
                traversal.note_read("__main__", name, traversal.main)
            continue
        for part in modules.parents_of(full):
            traversal.note_module(part)
        for name in taken:
            inner = f"{full}.{name}"
            if (
                name != "*"
                and modules.origin_of(full.partition(".")[0]) == "local"
                and modules.is_module(inner)
            ):
                traversal.note_module(inner)


class FunctionKind(Kind):
    """Functions written in Python."""

    def write(self, walk: Walk, obj: Any) -> None:
        traversal = walk.traversal
        namespace = obj.__globals__
        owner = owner_of(namespace, traversal)
        if owner is not None and not modules.is_user_code(owner):  # noqa: SIM102 (the last test is slow)
            if resolves_to(obj, obj.__module__, obj.__qualname__) and not modules.is_user_code(
                obj.__module__
            ):
                walk.token(b"F", obj.__module__, obj.__qualname__)
                if not walk.isolated:
                    traversal.note_module(obj.__module__)
                return
        facts = facts_of(obj.__code__)
        name = obj.__name__ if obj.__name__ != obj.__code__.co_name else None
        walk.token(
            b"function", owner, obj.__module__, name, obj.__qualname__, facts.digest, _text(obj.__doc__)
        )
        parts: list[object] = []
        if owner is None:  # globals that belong to no module are part of the function
            own = {name: namespace[name] for name in facts.reads if name in namespace}
            parts += [len(own), *own, *own.values()]
        elif modules.is_user_code(owner):
            if not walk.isolated:
                if owner not in modules.NOTEBOOK_MODULES:
                    traversal.note_module(owner)
                note_lookups(
                    traversal, facts, namespace, "__main__" if namespace is traversal.main else owner
                )
        elif not walk.isolated:
            traversal.note_module(owner)
        for own_mapping in (obj.__kwdefaults__, obj.__annotations__, obj.__dict__):
            if own_mapping:
                parts += [len(own_mapping), *own_mapping, *own_mapping.values()]
            else:
                parts.append(0)
        closure = obj.__closure__ or ()
        parts += [obj.__defaults__, *closure, *(getattr(obj, "__type_params__", None) or ())]
        walk.push(parts)

    def state(self, obj: Any) -> object:
        return {
            "code": (facts_of(obj.__code__).digest, marshal.dumps(obj.__code__)),
            "defaults": obj.__defaults__,
            "kwdefaults": obj.__kwdefaults__ and dict(obj.__kwdefaults__),
            "dict": dict(obj.__dict__),
            "doc": obj.__doc__,
        }

    def put(self, obj: Any, state: Any) -> None:
        digest, code = state["code"]
        if facts_of(obj.__code__).digest != digest:  # else the live one knows its lines better
            obj.__code__ = marshal.loads(code)
        obj.__defaults__ = state["defaults"]
        obj.__kwdefaults__ = state["kwdefaults"]
        obj.__doc__ = state["doc"]
        obj.__dict__.clear()
        obj.__dict__.update(state["dict"])


def owner_of(namespace: Mapping[str, Any], traversal: Traversal) -> str | None:
    """Module whose globals these are; None if they are nobody's."""
    if namespace is traversal.main:
        return "__main__"
    name = namespace.get("__name__")
    if name in modules.NOTEBOOK_MODULES:
        return None  # another namespace than the notebook's, under its name
    module = sys.modules.get(name) if isinstance(name, str) else None
    return name if module is not None and vars(module) is namespace else None


def _text(value: object) -> str | None:
    return value if type(value) is str else None


class CodeKind(Kind):
    """Code objects."""

    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"code", facts_of(obj).digest)


class BuiltinKind(Kind):
    """Functions written in C, and methods of builtin objects bound to them."""

    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        bound = obj.__self__
        if bound is None or isinstance(bound, types.ModuleType):
            module = obj.__module__ or (bound.__name__ if bound is not None else "builtins")
            walk.token(b"B", module, obj.__qualname__)
            if not walk.isolated and isinstance(module, str):
                walk.traversal.note_module(module)
                if (module, obj.__name__) in _LOOKING_AROUND:
                    walk.traversal.note_dynamic(obj.__name__)
        else:
            walk.token(b"bound", obj.__name__)
            walk.stack.append(bound)


_LOOKING_AROUND = frozenset(
    {
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "globals"),
        ("builtins", "locals"),
        ("sys", "_getframe"),
    }
)


class DescriptorKind(Kind):
    """Methods and attributes of classes written in C."""

    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"descriptor", type(obj).__name__, obj.__name__)
        walk.stack.append(obj.__objclass__)


class MemoKind(Kind):
    """`functools.lru_cache`: the function, the parameters, and what it remembers.

    What it remembers is an input: a file that was read through a memo is not opened again. How often it was
    asked is not. The memo is not shown in Python; the garbage collector names what the wrapper refers to, the
    links of the memo (key, result, type) first.
    """

    def write(self, walk: Walk, obj: Any) -> None:
        parameters = obj.cache_parameters()
        walk.token(b"memo", parameters["maxsize"], parameters["typed"])
        try:
            remembered = _remembered(obj)
        except Unrestorable as error:
            raise walk.fail(error.reason, obj) from None
        pairs = [(_memo_key(key), result) for key, result in remembered]
        own = _own_attributes(obj)
        parts = [obj.__wrapped__, len(pairs), *(part for pair in pairs for part in pair), own]
        walk.keep(parts)
        walk.push(parts)

    def mark(self, walk: Walk, obj: Any) -> object:
        return [(_memo_key(key), result) for key, result in _remembered(obj)], _own_attributes(obj)

    def state(self, obj: Any) -> object:
        function = obj.__wrapped__
        if type(function) is not FunctionType or not any(part is function for part in gc.get_referents(obj)):
            raise Unrestorable(type(obj).__name__, "it remembers the results of a function written in C")
        typed = obj.cache_parameters()["typed"]
        calls = [(*_call_of(key, typed), result) for key, result in _remembered(obj)]
        return {"calls": calls, "dict": _own_attributes(obj)}

    def put(self, obj: Any, state: Any) -> None:
        obj.cache_clear()
        _remember(obj, state["calls"])
        own = _own_attributes(obj)
        for name in own.keys() - state["dict"].keys():
            del obj.__dict__[name]
        obj.__dict__.update(state["dict"])


def _own_attributes(memo: Any) -> dict[str, object]:
    own = dict(memo.__dict__)
    for name in ("cache_parameters", "__wrapped__"):
        own.pop(name, None)
    return own


def _remembered(memo: Any) -> list[tuple[object, object]]:
    """Pairs of key and result, oldest first; for a memo without bound in the order of its dict."""
    found = gc.get_referents(memo)
    pairs: list[tuple[object, object]] = []
    at = 1  # behind the wrapper's type: key, result and type of each link, then the dict of the memo
    while at + 2 < len(found) and type(found[at]) is not dict:
        pairs.append((found[at], found[at + 1]))
        at += 3
    held = found[at] if at < len(found) else None
    if not pairs and type(held) is dict and held is not memo.__dict__:
        pairs = list(held.items())
    if len(pairs) != memo.cache_info().currsize:
        raise Unrestorable(type(memo).__name__, "what it remembers cannot be read")
    return pairs


def _memo_key(key: object) -> object:
    """The arguments that make a memo's key; between positional and named ones stands a bare `object()`."""
    if isinstance(key, (tuple, list)):  # a list is functools._HashedSeq
        return tuple("*" if type(part) is object else part for part in key)
    return key


def _call_of(key: object, typed: bool) -> tuple[tuple[object, ...], dict[str, object]]:
    """The arguments, positional and named, of the call that a memo has under a key.

    Raises
    ------
    Unrestorable
        If they are not plain: comparing them would run code of the notebook.
    """
    if not isinstance(key, (tuple, list)):
        key = (key,)
    parts = list(key)
    border = next((place for place, part in enumerate(parts) if type(part) is object), None)
    if border is None:
        positional, named = parts[: len(parts) // 2] if typed else parts, {}
    else:
        positional = parts[:border]
        count = (len(parts) - 2 * border - 1) // 3 if typed else (len(parts) - border - 1) // 2
        pairs = parts[border + 1 : border + 1 + 2 * count]
        named = dict(zip(pairs[::2], pairs[1::2], strict=True))
    if not all(map(_is_plain, [*positional, *named.values()])):
        raise Unrestorable("lru_cache", "it remembers calls with arguments that are no plain values")
    return tuple(positional), named


def _is_plain(value: object) -> bool:
    return type(value) in PRIMITIVES or (type(value) is tuple and all(map(_is_plain, value)))


def _remember(memo: Any, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any], object]]) -> None:
    """Have a memo remember results, by calls during which its function has another body.

    What a memo keeps lies in C and can be written by nothing else. No code of the notebook runs.
    """
    function = memo.__wrapped__
    results = iter([result for _, _, result in calls])
    plain = function.__code__
    function.__code__ = _answering(lambda: next(results), plain.co_freevars)
    try:
        for positional, named, _ in calls:
            memo(*positional, **named)
    finally:
        function.__code__ = plain


def _answering(answer: Callable[[], object], freevars: tuple[str, ...]) -> CodeType:
    """Code of a function that takes any arguments and returns what `answer` does, whatever its globals."""

    def body(*arguments: object, **named: object) -> object:
        stand_in: Any = "stands for `answer`"
        return stand_in()

    code = body.__code__
    constants = tuple(
        answer if constant == "stands for `answer`" else constant for constant in code.co_consts
    )
    return code.replace(co_consts=constants, co_freevars=freevars)


def _cached_property_parts(obj: Any) -> tuple[object, ...]:
    return obj.func, obj.attrname, obj.__doc__


# ---- classes


_SKIPPED = frozenset(
    {
        "__dict__",
        "__weakref__",
        "__slotnames__",  # written by copyreg when an instance is first pickled
        "__abstractmethods__",
        "_abc_impl",
        "__firstlineno__",
        "__static_attributes__",
        "__annotations_cache__",
        "_value2member_map_",  # of an enum: follows from its members, and grows when flags are combined
        # of a model of pydantic: made from its fields, decorators and methods, which are digested
        "__pydantic_core_schema__",
        "__pydantic_validator__",
        "__pydantic_serializer__",
        "__pydantic_setattr_handlers__",
    }
)


#: What pydantic notes of the validators and serializers of a model.
_DECORATORS = "__pydantic_decorators__"


def _decorations(noted: Any) -> object:
    """The same without the address of the class, by which each of them refers to it."""
    kinds = getattr(noted, "__dict__", None) or {name: getattr(noted, name) for name in noted.__slots__}
    return {
        kind: {name: (found.info, found.shim) for name, found in decorators.items()}
        for kind, decorators in kinds.items()
    }


class ClassKind(Kind):
    """Classes: by name, or as roots of their own by content."""

    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        walk.definition(obj)

    def write_content(self, walk: Walk, obj: Any) -> None:
        own = self._own(obj)
        if _DECORATORS in own:
            own[_DECORATORS] = _decorations(own[_DECORATORS])
        walk.token(b"class", obj.__module__, obj.__qualname__, len(obj.__bases__), len(own))
        if modules.origin_of(obj.__module__) == "local" and not walk.isolated:
            walk.traversal.note_module(obj.__module__)
        registered = registered_with(obj)
        if registered:
            walk.unordered(b"registered", registered)
        parts = [type(obj), *obj.__bases__, *own, *own.values()]
        copied = copyreg.dispatch_table.get(obj)
        if copied is not None:
            walk.token(b"copied by")
            parts.append(copied)
        walk.push(parts)

    def _own(self, cls: type) -> dict[str, object]:
        return {
            name: value
            for name, value in class_dict(cls).items()
            if name not in _SKIPPED and not (name == "__annotations__" and not value)
        }

    def state(self, obj: Any) -> object:
        return {"bases": obj.__bases__, "dict": self._own(obj), "registered": registered_with(obj)}

    def put(self, obj: Any, state: Any) -> None:
        if obj.__bases__ != state["bases"]:
            raise Unrestorable(f"class {obj.__qualname__}", "its bases changed")
        now = self._own(obj)
        for name in now.keys() - state["dict"].keys():
            type.__delattr__(obj, name)
        for name, value in state["dict"].items():
            if name not in now or now[name] is not value:
                type.__setattr__(obj, name, value)
        for virtual in state["registered"]:
            if virtual not in registered_with(obj):
                abc.ABCMeta.register(obj, virtual)


CLASS = ClassKind()


def registered_with(cls: type) -> list[type]:
    """Classes registered as virtual subclasses."""
    if "_abc_impl" not in class_dict(cls):
        return []
    import _abc  # type: ignore[import-not-found]

    found: Iterable[Any] = _abc._get_dump(cls)[0]
    registered = [virtual for reference in found if (virtual := reference()) is not None]
    return sorted(registered, key=lambda virtual: f"{virtual.__module__}.{virtual.__qualname__}")


# ---- modules


class ModuleKind(Kind):
    """Modules: by name; their source or version is a root of its own."""

    mutable = False

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"M", obj.__name__)
        if not walk.isolated:
            walk.traversal.reach_module(obj, None)


KINDS.update(
    {
        types.FunctionType: FunctionKind(),
        types.CodeType: CodeKind(),
        types.BuiltinFunctionType: BuiltinKind(),
        types.WrapperDescriptorType: DescriptorKind(),
        types.MethodDescriptorType: DescriptorKind(),
        types.ClassMethodDescriptorType: DescriptorKind(),
        types.GetSetDescriptorType: DescriptorKind(),
        types.MemberDescriptorType: DescriptorKind(),
        types.MethodWrapperType: PartsKind(b"method-wrapper", lambda obj: (obj.__self__, obj.__name__)),
        type(functools.lru_cache(print)): MemoKind(),
        property: PartsKind(b"property", lambda obj: (obj.fget, obj.fset, obj.fdel, obj.__doc__)),
        staticmethod: PartsKind(b"staticmethod", lambda obj: (obj.__func__,)),
        classmethod: PartsKind(b"classmethod", lambda obj: (obj.__func__,)),
        functools.cached_property: PartsKind(b"cached_property", _cached_property_parts),
        functools.singledispatchmethod: PartsKind(
            b"singledispatchmethod", lambda obj: (obj.dispatcher, obj.func)
        ),
        types.ModuleType: ModuleKind(),
        type: CLASS,
        EnumMeta: CLASS,
    }
)
