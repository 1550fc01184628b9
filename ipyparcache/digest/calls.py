"""Digests of calls: of a function with everything that it reaches, and of its arguments by parameter.

The digest of a function is kept as long as a few identity checks say that nothing of what it reaches has
changed: the code, defaults and closures of the functions, and what the global names stand for. Only mutable
objects that it reaches are looked at again in each call.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import sys
import types
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from marshal import dumps
from typing import TYPE_CHECKING, Any, cast

from blake3 import blake3

from ipyparcache.digest.code import CLASS, facts_of, owner_of
from ipyparcache.digest.objects import Traversal
from ipyparcache.digest.states import is_atomic
from ipyparcache.digest.walk import PRIMITIVES, Walk, is_pure, without_nan

if TYPE_CHECKING:
    import dis
    import inspect

    from ipyparcache.digest.libsettings import Setting

_MISSING = object()

_QUIET_MODULES = frozenset(
    {
        "math", "cmath", "operator", "itertools", "functools", "collections", "collections.abc", "statistics",
        "re", "decimal", "fractions", "numbers", "string", "bisect", "heapq", "copy", "dataclasses", "typing",
        "abc", "enum", "datetime", "time", "json", "textwrap", "hashlib", "base64", "struct", "array", "zlib",
        "types",
    }
)  # fmt: skip
"""Standard modules whose functions ask nothing of files, environment or console."""

_LOUD_BUILTINS = frozenset(
    {
        "open", "input", "exec", "eval", "compile", "__import__", "breakpoint", "globals", "locals", "vars",
        "getattr",
    }
)  # fmt: skip

_QUIET_NUMPY = frozenset(
    {
        "abs", "all", "amax", "amin", "any", "arange", "argmax", "argmin", "argsort", "array", "asarray",
        "clip", "concatenate", "cos", "cumsum", "diff", "dot", "einsum", "exp", "eye", "float32", "float64",
        "full", "int32", "int64", "isnan", "linspace", "log", "log10", "log2", "max", "maximum", "mean",
        "median", "min", "minimum", "nan", "nansum", "ndarray", "ones", "ones_like", "outer", "percentile",
        "pi", "prod", "quantile", "repeat", "reshape", "round", "sin", "sort", "sqrt", "square",
        "stack", "std",
        "sum", "tile", "unique", "vander", "var", "vstack", "hstack", "where", "zeros", "zeros_like",
    }
)  # fmt: skip


_SINK_TYPES = (list, set, dict, bytearray, deque, Counter)
_SINK_METHODS = frozenset(
    {
        "append",
        "add",
        "extend",
        "update",
        "appendleft",
        "extendleft",
        "insert",
        "discard",
        "subtract",
        "clear",
    }
)


class _CallTraversal(Traversal):
    """A traversal that passes over containers into which code only puts things."""

    def __init__(self, sinks: Sequence[object] = ()):
        super().__init__()
        self.sinks = {id(sink): sink for sink in sinks}

    def _add(self, root: str, value: object, definition: bool = False) -> bytes:
        walk = _CallWalk(self, root)
        self._values[root] = value
        self._roots[root] = walk.numbered
        digest = self.digests[root] = walk.run(value, CLASS if definition else None)
        return digest


class _CallWalk(Walk):
    traversal: _CallTraversal

    def visit(self, obj: Any) -> None:
        if id(obj) in self.traversal.sinks:
            self.token(b"sink")
            return
        super().visit(obj)


def _sinks_of(traversal: Traversal) -> list[object]:
    """Containers that reached functions name only to put something in, dropping what the call returns.

    Such a list of results or of calls changes with each run and tells nothing about the value.
    """
    put_into: dict[int, object] = {}
    read: set[int] = set()
    functions = [thing for _, _, thing in traversal.numbered() if type(thing) is types.FunctionType]
    if not any(_may_put(function.__code__) for function in functions):
        return []
    for thing in functions:
        for name, is_closure, is_put in _uses(thing.__code__):
            value = _value_named(thing, name, is_closure)
            if is_put and type(value) in _SINK_TYPES:
                put_into[id(value)] = value
            else:
                read.add(id(value))
    return [value for number, value in put_into.items() if number not in read]


def _may_put(code: types.CodeType) -> bool:
    """Whether code names a method that puts something into a container."""
    return not _SINK_METHODS.isdisjoint(code.co_names) or any(
        _may_put(constant) for constant in code.co_consts if type(constant) is types.CodeType
    )


def _value_named(function: types.FunctionType, name: str, is_closure: bool) -> object:
    if not is_closure:
        return function.__globals__.get(name)
    free = function.__code__.co_freevars
    if name in free and function.__closure__ is not None:
        with contextlib.suppress(ValueError):
            return cast("object", function.__closure__[free.index(name)].cell_contents)
    return None


@functools.lru_cache(2000)
def _uses(code: types.CodeType) -> tuple[tuple[str, bool, bool], ...]:
    """How code names globals and closure variables: name, whether of a closure, whether only to put into
    it."""
    import dis

    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "EXTENDED_ARG")]
    found = []
    for at, step in enumerate(steps):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.append((str(step.argval), False, _is_put(steps, at)))
        elif step.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
            found.append((str(step.argval), True, _is_put(steps, at)))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found += _uses(constant)
    return tuple(found)


def _is_put(steps: list[dis.Instruction], at: int) -> bool:
    """Whether what is loaded here serves for `it.append(...)` as a statement."""
    import dis

    if at + 1 >= len(steps) or steps[at + 1].opname not in ("LOAD_METHOD", "LOAD_ATTR"):
        return False
    if steps[at + 1].argval not in _SINK_METHODS:
        return False
    depth = 2  # the method and its object
    for step, following in itertools.pairwise(steps[at + 2 :]):
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            return False
        depth += dis.stack_effect(step.opcode, step.arg, jump=False)
        if depth < 2 and step.opname.startswith("CALL"):
            return depth == 1 and following.opname == "POP_TOP"
    return False


class FunctionDigest:
    """The digest of one function, and whether it may ask anything of the world outside."""

    def __init__(self, function: Callable[..., object]):
        self.function = function
        self.is_quiet = False
        """Whether nothing that its code reaches can open files, read the environment or the console."""

        self._digest: bytes | None = None
        self._traversal: Traversal | None = None
        self._functions: list[tuple[types.FunctionType, Any, Any, Any, tuple[Any, ...]]] = []
        self._names: list[tuple[Mapping[str, Any], str, Any]] = []
        self._has_mutable = True
        self._settings: tuple[Setting, ...] = ()

    def now(self) -> bytes:
        """The digest as things are, the process settings of what the function reaches included.

        Raises
        ------
        Undigestible
            If something that the function reaches has no stable content.
        """
        if self._digest is not None and self._is_as_before():
            return self._under_settings(self._digest) if self._settings else self._digest
        roots = [("function", self.function)]
        traversal = _traversal_of(roots, ())
        sinks = _sinks_of(traversal)
        if sinks:
            traversal = _traversal_of(roots, sinks)
        self._note(traversal)
        self._digest = traversal.combined()[:16]
        self._settings = _settings_of({*traversal.modules, *map(_module_of, [row[2] for row in self._names])})
        return self._under_settings(self._digest)

    def _under_settings(self, digest: bytes) -> bytes:
        special = settings_now(self._settings)
        return blake3(digest + special).digest(16) if special else digest

    def _note(self, traversal: Traversal) -> None:
        functions, self._has_mutable = [], False
        for _, _, thing in traversal.numbered():
            if type(thing) is types.FunctionType and not thing.__dict__:
                functions.append(_state_of(thing))
            elif type(thing) is not types.CellType:
                self._has_mutable = True
        names = [
            (namespace, name, namespace.get(name, _MISSING)) for namespace, name, _ in _names_in(traversal)
        ]
        self._functions, self._names = functions, names
        self._traversal = traversal
        self.is_quiet = _is_quiet(traversal)

    def _is_as_before(self) -> bool:
        for function, code, defaults, keywords, cells in self._functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not keywords
            ):
                return False
            if cells:
                try:
                    if any(cell.cell_contents is not value for cell, value in cells):
                        return False
                except ValueError:
                    return False
        for namespace, name, value in self._names:
            if namespace.get(name, _MISSING) is not value:
                return False
        if self._has_mutable:
            assert self._traversal is not None
            return not self._traversal.changed()
        return True


def _module_of(value: object) -> str:
    """The module that a global name stands for or comes from."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return str(value.__module__)
    return ""


_WITHOUT_SETTINGS = frozenset({"", "__main__", "builtins"})


def _settings_of(modules: Iterable[str]) -> tuple[Setting, ...]:
    """The process settings on which code may depend that reaches these modules."""
    tops = {name.partition(".")[0] for name in modules} - _WITHOUT_SETTINGS
    if not tops:
        return ()  # the common case, in which what follows need not be loaded
    from ipyparcache.digest.libsettings import SETTINGS

    return tuple(
        setting
        for setting in SETTINGS
        if setting.library.partition(".")[0] in tops or not tops.isdisjoint(setting.libraries)
    )


def settings_now(settings: Sequence[Setting]) -> bytes:
    """What differs from the defaults, in a few bytes; none if nothing does."""
    if not settings:
        return b""
    from ipyparcache.digest.libsettings import settings_digest

    found = []
    for setting in settings:
        special = setting.special() if setting.library in sys.modules else None
        if special:
            found.append(f"{setting.name} {settings_digest(special)}")
    return "\n".join(found).encode()


@functools.cache
def _settings_for_any() -> tuple[Setting, ...]:
    """Settings that the methods of arguments may read, whatever the code names."""
    from ipyparcache.digest.libsettings import SETTINGS

    return tuple(
        setting for setting in SETTINGS if setting.name in ("decimal context", "NumPy print options")
    )


def _names_in(traversal: Traversal) -> list[tuple[Mapping[str, Any], str, frozenset[str] | None]]:
    """Every global name that reached code looks up: where, and which attributes of it."""
    found = [(traversal.namespace_of(read.owner), read.name, read.attributes) for read in traversal.reads]
    for _, _, thing in traversal.numbered():
        if type(thing) is types.FunctionType and owner_of(thing.__globals__, traversal) is None:
            for name, attributes in facts_of(thing.__code__).reads.items():
                found.append((thing.__globals__, name, attributes))
    return found


def _state_of(function: types.FunctionType) -> tuple[types.FunctionType, Any, Any, Any, tuple[Any, ...]]:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append((cell, cell.cell_contents))
        except ValueError:
            cells.append((cell, _MISSING))
    return function, function.__code__, function.__defaults__, function.__kwdefaults__, tuple(cells)


def _is_quiet(traversal: Traversal) -> bool:
    for _, _, thing in traversal.numbered():
        if type(thing) is types.FunctionType:
            if facts_of(thing.__code__).imports:
                return False
        elif not isinstance(thing, types.CellType | list | dict | set | bytearray) and not _is_array(thing):
            return False
    for namespace, name, attributes in _names_in(traversal):
        value = namespace.get(name, _MISSING)
        if value is _MISSING:
            if name in _LOUD_BUILTINS:
                return False
        elif isinstance(value, types.ModuleType):
            if value.__name__ == "numpy" and attributes is not None and attributes <= _QUIET_NUMPY:
                continue
            if value.__name__ not in _QUIET_MODULES:
                return False
        elif (type(value) is not types.FunctionType and not is_atomic(value) and not _is_array(value)) or (
            isinstance(value, types.BuiltinFunctionType) and value.__module__ not in _QUIET_MODULES
        ):
            return False
    return True


def _is_array(value: object) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"


_STARS = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}


class Parameters:
    """The parameters of a function, for binding arguments to them."""

    def __init__(self, function: Callable[..., object], name: str, ignore: Sequence[str] = ()):
        self.name = name
        self.ignore = frozenset(ignore)
        self._function = function
        plain = function if type(function) is types.FunctionType else None
        code = plain.__code__ if plain is not None else None
        self.names: tuple[str, ...] | None = None
        """The parameters, if positional ones are all that there are."""

        if code is not None and not code.co_kwonlyargcount and not code.co_flags & 0xC and not self.ignore:
            self.names = code.co_varnames[: code.co_argcount]
            if getattr(function, "__wrapped__", None) is not None:
                self.names = None
        self._signature: inspect.Signature | None = None
        if self.names is None:
            import inspect  # slow to load, and seldom needed

            try:
                self._signature = inspect.signature(function)
            except (ValueError, TypeError):
                self._signature = None
        self._check_ignored()

    def _check_ignored(self) -> None:
        if not self.ignore:
            return
        if self._signature is None:
            warnings.warn(
                f"Cannot inspect object {self._function!r}: none of its arguments is ignored.", stacklevel=5
            )
            return
        known = set(self._signature.parameters)
        kinds = {parameter.kind.name for parameter in self._signature.parameters.values()}
        known |= {star for kind, star in _STARS.items() if kind in kinds}
        unknown = sorted(self.ignore - known)
        if unknown:
            raise ValueError(
                f"Ignore list: argument '{unknown[0]}' is not defined for "
                f"function {self.name}{self._signature}"
            )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Every parameter that counts with its value, defaults as they are now; `*` and `**` hold the rest.

        Raises
        ------
        ValueError
            If the function cannot be called with these arguments.
        """
        if self.names is not None and not kwargs:
            values = self.filled(args)
            if values is not None:
                return list(zip(self.names, values, strict=True))
        return self._bind_any(args, kwargs)

    def filled(self, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Positional arguments and the defaults of the others, in order; None where that is not all to it."""
        if self.names is None:
            return None
        missing = len(self.names) - len(args)
        if not missing:
            return args
        defaults = self._function.__defaults__ or ()
        return args + defaults[-missing:] if 0 < missing <= len(defaults) else None

    def _bind_any(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        if self._signature is None:
            if self.names is None:
                return [("*", args), ("**", sorted(kwargs.items()))]
            import inspect

            self._signature = inspect.signature(self._function)
        # The defaults of a function may have been replaced since the signature was taken.
        signature = self._signature
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ValueError(self._complaint(str(error), args)) from None
        bound.apply_defaults()
        found = []
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind.name
            if kind == "VAR_POSITIONAL":
                found.append(("*", value))
            elif kind == "VAR_KEYWORD":
                found.append(("**", sorted(value.items())))
            else:
                found.append((name, value))
        ignored = self.ignore
        if not ignored:
            return found
        for name in ignored & {"**"}:
            found = [pair for pair in found if pair[0] != name]
        kept = []
        for name, value in found:
            if name in ignored or (name == "*" and self._star() in ignored):
                continue
            if name == "**":
                value = [pair for pair in value if pair[0] not in ignored]
            kept.append((name, value))
        return kept

    def _star(self) -> str:
        assert self._signature is not None
        for parameter in self._signature.parameters.values():
            if parameter.kind.name == "VAR_POSITIONAL":
                return parameter.name
        return ""

    def _complaint(self, reason: str, args: tuple[Any, ...]) -> str:
        if "too many positional" in reason:
            return (
                f"Too many arguments for {self.name}{self._signature}: {len(args)} positional ones were given"
            )
        twice = re.fullmatch(r"multiple values for argument '(.*)'", reason)
        if twice:
            return (
                f"Argument {twice[1]} was given both as positional and as keyword for "
                f"{self.name}{self._signature}"
            )
        what = "Too many keyword" if "unexpected keyword" in reason else "Wrong number of"
        return f"{what} arguments for {self.name}{self._signature}: {reason}"


def bytes_of_primitives(values: Sequence[Any]) -> bytes | None:
    """What tells these values from all others, if they are numbers, strings and the like; else None."""
    return dumps(tuple(without_nan(values)), 2) if is_pure(values) else None


def digest_of_primitives(names: Sequence[str], told: bytes) -> bytes:
    """Digest of arguments of which `bytes_of_primitives` told."""
    return blake3(dumps(tuple(names), 2) + told).digest(16)


def digest_of_arguments(bound: list[tuple[str, Any]]) -> bytes:
    """Digest of bound arguments: of their content, and of what they share.

    Raises
    ------
    Undigestible
        If an argument has no stable content.
    """
    told = bytes_of_primitives([value for _, value in bound])
    if told is not None:
        return digest_of_primitives([name for name, _ in bound], told)
    traversal = _traversal_of(bound, ())
    sinks = _sinks_of(traversal)
    if sinks:
        traversal = _traversal_of(bound, sinks)
    return traversal.combined()[:16] + settings_now(_settings_for_any())


def _traversal_of(roots: Sequence[tuple[str, Any]], sinks: Sequence[object]) -> Traversal:
    traversal = _CallTraversal(sinks)
    for name, value in roots:
        traversal.add(name, value)
    traversal.follow()
    return traversal


def are_plain(bound: list[tuple[str, Any]]) -> bool:
    """Whether no method of an argument can ask anything of the world outside."""
    return all(_is_plain(value, 3) for _, value in bound)


def _is_plain(value: Any, depth: int) -> bool:
    cls = type(value)
    if cls in PRIMITIVES:
        return True
    if _is_array(value):
        return not value.dtype.hasobject
    if cls in (list, tuple, set, frozenset):
        return is_pure(value) or (
            depth > 0 and len(value) < 100 and all(_is_plain(v, depth - 1) for v in value)
        )
    if cls is dict:
        return is_pure(value) and (is_pure(value.values()) or _is_plain([*value.values()], depth))
    numpy = sys.modules.get("numpy")
    return numpy is not None and issubclass(cls, numpy.generic)


def note_again(rows: Sequence[Sequence[Any]]) -> None:
    """Tell the watches that are active what a run once asked, as a hit answers for it without asking."""
    from ipyparcache.digest import openfiles

    with openfiles.unwatched():
        concerned = openfiles.concerned()
    for seen in concerned:
        for kind, name, _ in rows:
            if kind in ("file", "output"):
                use = openfiles.use_of(seen, name)
                if not use.is_made and not use.is_written:
                    use.is_read = True
            elif kind == "listing":
                seen.listings.setdefault(name, openfiles.listing_of(name))
            elif kind == "env":
                seen.environment.setdefault(name, os.environ.get(name))
            elif kind == "cwd":
                seen.asks_folder = True
            elif kind != "random":
                seen.answers.setdefault((kind, name), openfiles.answer_to(kind, name))
