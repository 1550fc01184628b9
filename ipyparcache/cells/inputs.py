"""Everything a cell depends on: the key of its static inputs, and what its earlier runs were seen to ask.

The static inputs — the values and code behind the names that the cell may read, modules, settings, options
— are digested before it runs and make the first key (K1). What only a run can tell — files, the
environment, listings, random draws — is observed while it runs and recorded as rows of a trace; an entry
under K1 is a hit when all rows of its trace hold now.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import dis
import inspect
import itertools
import os
import sys
import time
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import blake3

from ipyparcache.analysis.cell import (
    DYNAMIC_ATTRIBUTES,
    DYNAMIC_CALLS,
    DYNAMIC_VALUES,
    LINE_ATTRIBUTES,
    attributes_read,
    identifiers,
    identity_text,
)
from ipyparcache.analysis.names import Names, names_of
from ipyparcache.cells.runs import InputChange
from ipyparcache.digest import environment, openfiles
from ipyparcache.digest.modules import is_user_code, origin_of, source_of
from ipyparcache.digest.objects import ABSENT, MODULES_ASKED, RememberedWalk, Traversal, digest_of
from ipyparcache.digest.summaries import summary_of
from ipyparcache.errors import ParcacheError, Undigestible
from ipyparcache.kernel.namespace import collector_paused

FORMAT = 3  # of keys and payloads; a change orphans all entries

# Calls that look up names inside their string arguments.
NAME_LOOKUPS = frozenset(
    {"query", "eval", "sql", "execute", "ols", "wls", "gls", "logit", "probit", "mixedlm", "glm"}
)
LINES_ARE_NO_INPUT = "on which line code stands is no input"
SOURCE_LIMIT = 20_000  # characters of a source that are kept to explain a miss


class NoKey(ParcacheError):
    """A cell has no key, so that it runs and is not stored: why, in one line."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class KeyOptions:
    """The options of `%%cached` that change what is an input."""

    ignore: frozenset[str] = frozenset()
    files: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    key: str | None = None
    trust_shell: bool = False
    keep: tuple[str, ...] = ()


@dataclass
class Inputs:
    """The static inputs of one run of a cell."""

    identity: str
    key: str
    rows: dict[str, str]  # input by name → digest
    traversal: Traversal
    names: Names
    ignored: Traversal  # of the names that the key leaves out: seen to be left alone, no part of the key
    seconds: float  # spent on digesting
    summaries: dict[str, Any] = field(default_factory=dict)

    def mark(self) -> None:
        """Note how the inputs are, to see after the run what it changed."""
        began = time.perf_counter()
        with collector_paused():
            self.traversal.mark()
            self.ignored.mark()
        self.seconds += time.perf_counter() - began


def identity_of(tree: ast.Module, silenced: bool, options: KeyOptions, variant: str = "") -> str:
    """The name of a cell: its text as far as it matters, and the options that change what is an input."""
    facts = (
        FORMAT,
        sys.version_info[:2],
        identity_text(tree),
        silenced,
        sorted(options.ignore),
        sorted(options.files),
        sorted(options.env),
        options.key,
        options.trust_shell,
        sorted(options.keep),
        variant,
    )
    return blake3.blake3(repr(facts).encode("utf-8", "surrogatepass")).hexdigest(16)


def collect(
    tree: ast.Module,
    namespace: dict[str, Any],
    options: KeyOptions,
    identity: str,
    remembered: dict[int, RememberedWalk] | None = None,
) -> Inputs:
    """Digest the static inputs of a cell.

    Parameters
    ----------
    tree : Module
    namespace : dict
    options : KeyOptions
    identity : str
        Of the cell.
    remembered : dict, optional
        Walks that still hold, as `Traversal` takes them.

    Raises
    ------
    NoKey
        If one of them has no digest; names it and what to type.
    """
    started = time.perf_counter()
    names = names_of(tree.body)
    with collector_paused():
        traversal = _traversal_of(tree, names, namespace, options, remembered)
    rows = {root: digest.hex() for root, digest in traversal.digests.items()}
    # not while the collector is paused: whether it runs is a setting as well
    extra = environment.static_rows(
        {*traversal.modules, *traversal.standard}, files=options.files, variables=options.env
    )
    rows |= {f"{row.kind} {row.name}": str(row.digest) for row in extra}
    if MODULES_ASKED in rows:
        rows |= {f"loaded module {name}": "" for name in _texts_in(tree, traversal) & sys.modules.keys()}
    key_text = repr((identity, traversal.combined().hex(), sorted(rows.items())))
    key = blake3.blake3(key_text.encode("utf-8", "surrogatepass")).hexdigest(16)
    ignored = _ignored(names.read & options.ignore, namespace)
    return Inputs(identity, key, rows, traversal, names, ignored, time.perf_counter() - started)


def _traversal_of(
    tree: ast.Module,
    names: Names,
    namespace: dict[str, Any],
    options: KeyOptions,
    remembered: dict[int, RememberedWalk] | None,
) -> Traversal:
    traversal = Traversal(namespace, marking=False, remembered=remembered)
    for name in sorted((names.read | _names_looked_up(tree, namespace)) - options.ignore):
        if name not in namespace:
            traversal.add_absent(name)
            continue
        try:
            value = namespace[name]
            taken = attributes_read(tree, name) if isinstance(value, types.ModuleType) else None
            traversal.add(name, value, taken)
        except Undigestible as error:
            raise NoKey(
                f"the input `{name}` has no digest: {error}; --ignore {name} leaves it out"
            ) from error
    if options.key is not None:
        _add_key(options.key, namespace, traversal)
    for module in imported_modules(tree):
        traversal.add_import(module)
    try:
        traversal.follow(options.ignore)
    except Undigestible as error:
        raise NoKey(f"something that the cell calls uses an object without a digest: {error}") from error
    _refuse_dynamic_helpers(traversal)
    return traversal


def _ignored(names: Iterable[str], namespace: dict[str, Any]) -> Traversal:
    traversal = Traversal(namespace, marking=False)
    for name in names:
        if name in namespace:
            with contextlib.suppress(Undigestible):  # then nobody can tell whether the cell changed it
                traversal.add(name, namespace[name])
    return traversal


def _add_key(expression: str, namespace: dict[str, Any], traversal: Traversal) -> None:
    try:
        value = eval(expression, namespace)  # the user's own expression, in the user's namespace
    except Exception as error:
        raise NoKey(f"--key {expression} fails: {type(error).__name__}: {error}") from error
    try:
        traversal.add("--key", value)
    except Undigestible as error:
        raise NoKey(f"the value of --key {expression} has no digest: {error}") from error


def _refuse_dynamic_helpers(traversal: Traversal) -> None:
    """Code that looks names up by computed strings, or in frames, makes the reach of the cell unknown."""
    if traversal.dynamic:
        raise NoKey(f"something that it reads is or uses {traversal.dynamic[0]}, whose reach cannot be known")
    for read in traversal.reads:
        if read.name in DYNAMIC_CALLS and not read.present:
            raise NoKey(f"a function that it calls uses {read.name}()")
    for function, code in _reached_code(traversal):
        names = set(code.co_names)
        dynamic = names & DYNAMIC_ATTRIBUTES
        if {"inspect", "stack"} <= names:
            dynamic.add("inspect.stack")
        if "modules" in names and "__main__" in code.co_consts:
            dynamic.add("sys.modules['__main__']")
        if {"modules", "__name__"} <= names:
            dynamic.add("sys.modules[__name__]")
        if names & {"__builtins__", "builtins"} and names & DYNAMIC_VALUES:
            dynamic |= names & DYNAMIC_VALUES
        if dynamic:
            raise NoKey(f"the function `{function}` uses {min(dynamic)}, whose reach cannot be known")
        if names & LINE_ATTRIBUTES:
            raise NoKey(
                f"the function `{function}` uses {min(names & LINE_ATTRIBUTES)}: {LINES_ARE_NO_INPUT}"
            )


def reached_functions(traversal: Traversal) -> Iterator[types.FunctionType]:
    """The notebook's and local modules' functions among the inputs."""
    for _, function in traversal.instances(types.FunctionType):
        if is_user_code(function.__module__):
            yield function


def _reached_code(traversal: Traversal) -> Iterator[tuple[str, types.CodeType]]:
    """Code of these functions with their names, nested functions included."""
    waiting = [(function.__qualname__, function.__code__) for function in reached_functions(traversal)]
    while waiting:
        name, code = waiting.pop()
        yield name, code
        waiting += [(name, const) for const in code.co_consts if isinstance(const, types.CodeType)]


def _texts_in(tree: ast.AST, traversal: Traversal) -> set[str]:
    """Texts that the cell and the functions that it reaches spell out."""
    found = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for _, code in _reached_code(traversal):
        found |= {const for const in code.co_consts if isinstance(const, str)}
    return found


def imported_modules(tree: ast.AST, parts: bool = True) -> list[str]:
    """Full names of the modules that the cell's own import statements ask for.

    With `parts` also what `from module import name` takes, which may be a module.
    """
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append(node.module)
            if parts:
                found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name != "*"]
    return found


def rows_of_named_files(tree: ast.AST, traversal: Traversal, seen: openfiles.Seen) -> list[environment.Row]:
    """Rows for existing files that texts of the cell name and nobody was seen to open.

    A reader written in another language raises no audit event; the name that it was given is all there is
    to see.
    """
    texts: list[object] = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    texts += [traversal.value_of(root) for root in list(traversal.digests)]
    named = {path for text in texts for path in environment.files_named_in(text)}
    known = {os.path.realpath(path) for path in seen.files}
    rows = [environment.file_row(path) for path in sorted(named) if os.path.realpath(path) not in known]
    patterns = {p for text in texts if isinstance(text, str) for p in environment.patterns_quoted_in(text)}
    return rows + [row for pattern in sorted(patterns) for row in environment.pattern_rows(pattern)]


def rows_of_imports(before: set[str], traversal: Traversal) -> list[list[str]]:
    """Rows for local modules that were loaded while the cell ran and that no import statement had
    announced."""
    new = [name for name in list(sys.modules) if name not in before and name not in traversal.modules]
    return [["loaded", name, _module_digest(name)] for name in sorted(new) if origin_of(name) == "local"]


def _module_digest(name: str) -> str:
    source = source_of(name)
    return "unknown" if source is None else source.digest.hex()


def global_writes(traversal: Traversal) -> set[str]:
    """Names of the notebook that a function among the inputs assigns or deletes through `global`."""
    return {
        str(step.argval)
        for _, code in _reached_code(traversal)
        for step in dis.get_instructions(code)
        if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")
    }


def _names_looked_up(tree: ast.Module, namespace: Mapping[str, Any]) -> set[str]:
    """Variables named inside strings that are handed to a call which looks names up; without those that the
    cell has bound by then.
    """
    found: set[str] = set()
    for place, statement in enumerate(tree.body):
        texts = [
            inner.value
            for call in ast.walk(statement)
            if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr in NAME_LOOKUPS
            for part in [*call.args, *[word.value for word in call.keywords]]
            for inner in ast.walk(part)
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
        ]
        named = {name for text in texts for name in identifiers(text) if name in namespace}
        if named:
            found |= named - names_of(tree.body[:place]).bound_for_certain
    return found


def summarise(found: Inputs, changed: Collection[str] = ()) -> None:
    """Describe each input in a few words, and functions and classes by their source, to explain a later
    miss.

    Those that the run has `changed` are no longer what they were: nothing is said of them unless it was
    before the run.
    """
    for name in found.traversal.digests:
        if name in found.summaries:
            continue
        if name in changed:
            found.summaries[name] = {}
            continue
        summary: dict[str, Any] = dict(vars(summary_of(found.traversal, name)))
        source = _source_of(found.traversal.value_of(name))
        if source is not None:
            summary["source"] = source
        found.summaries[name] = summary


def _source_of(value: object) -> str | None:
    """Source of a function or class of the notebook, as far as Python still knows it."""
    if not isinstance(value, types.FunctionType | type) or value.__module__ != "__main__":
        return None
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):
        return None
    return source if len(source) < SOURCE_LIMIT else None


def difference(
    rows: Mapping[str, str], summaries: Mapping[str, Any], earlier: Mapping[str, Any]
) -> tuple[InputChange, ...]:
    """What differs between the inputs now and those of an earlier entry, most telling first."""
    old_rows: Mapping[str, str] = earlier.get("inputs", {})
    old_summaries: Mapping[str, Any] = earlier.get("summaries", {})
    changes = []
    for name in sorted(set(rows) | set(old_rows)):
        if rows.get(name) == old_rows.get(name):
            continue
        old, new = old_summaries.get(name) or {}, summaries.get(name) or {}
        before, after = _said(old_rows.get(name), old), _said(rows.get(name), new)
        what = ""
        if before == after:
            is_value = bool(new.get("type"))
            what = _what_differs(old, new) or (f"other content, {after} as before" if is_value else "")
            before, after = f"{before} {old_rows[name][:6]}", f"{after} {rows[name][:6]}"
        if name.startswith("setting "):
            before, after = ("at its default" if one == "not read" else "set" for one in (before, after))
        shown = _as_the_user_says(name)
        changes.append(InputChange(shown, before, after, _detail(shown, old, new), what))
    # a changed function is found in its caller's digest, too: what changed itself says more
    return tuple(sorted(changes, key=lambda change: (not change.detail, change.name)))


def _as_the_user_says(name: str) -> str:
    """The name of an input as it would be spelled in a cell."""
    kind, _, rest = name.partition(" ")
    if kind == "setting":
        return f"the {rest}"
    if kind == "class":
        return f"class {rest.removeprefix('__main__.')}"
    return name if rest else name.replace(":", ".")


def _parts_that_differ(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[list[str], list[str], list[str]]:
    """Columns, items or attributes that differ, that are new, and that are gone."""
    old_parts, new_parts = old.get("parts") or {}, new.get("parts") or {}
    if not old_parts or not new_parts:
        return [], [], []
    differing = [part for part in new_parts if old_parts.get(part, new_parts[part]) != new_parts[part]]
    come = [part for part in new_parts if part not in old_parts]
    return differing, come, [part for part in old_parts if part not in new_parts]


def _what_differs(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The same in one line."""
    differing, come, gone = _parts_that_differ(old, new)
    told = [
        f"{', '.join(parts[:3])}{f' and {len(parts) - 3} more' if len(parts) > 3 else ''} {verb}"
        for parts, verb in (
            (differing, "differs" if len(differing) == 1 else "differ"),
            (come, "is new" if len(come) == 1 else "are new"),
            (gone, "is gone" if len(gone) == 1 else "are gone"),
        )
        if parts
    ]
    return "; ".join(told)


def _detail(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Which columns or items differ, or the diff of a source."""
    if old.get("source") and new.get("source"):
        lines = difflib.unified_diff(
            old["source"].splitlines(), new["source"].splitlines(), "then", "now", "", "", 1, ""
        )
        told = tuple(itertools.islice(lines, 2, 40))
        if told:
            return told
    differing, come, gone = _parts_that_differ(old, new)
    told = (
        *(f"{name}: {part} differs" for part in differing),
        *(f"{name}: {part} is new" for part in come),
        *(f"{name}: {part} is gone" for part in gone),
    )
    return told[:20]


def _said(digest: str | None, summary: Mapping[str, Any]) -> str:
    """A few words on an input: its value if short, else its type and size."""
    if digest is None:
        return "not read"
    if digest == ABSENT.hex():
        return "no such name"
    if summary.get("text"):
        return str(summary["text"])
    return " ".join(filter(None, [str(summary.get("type", "")), str(summary.get("size", ""))])) or digest[:8]


def still_holds(
    rows: Sequence[Sequence[Any]], namespace: Mapping[str, Any], traversal: Traversal | None = None
) -> str | None:
    """The first observed row that does not hold now, as text; None if all hold.

    Without the traversal of the inputs none is a part of them.
    """
    for row in rows:
        if row[0] == "binding":
            if not _binding_holds(row[1], row[2], namespace):
                return f"`{row[1]}` stands for something else"
        elif row[0] == "part":
            if traversal is None or traversal.number_of(namespace.get(row[1])) != (row[2], row[3]):
                return f"`{row[1]}` stands for something else"
        elif row[0] == "loaded":
            if _module_digest(row[1]) != row[2]:
                return f"the module {row[1]} changed"
        elif not environment.still_holds(row):
            return str(environment.described(row))
    return None


def _binding_holds(name: str, digest: str, namespace: Mapping[str, Any]) -> bool:
    if name not in namespace:
        return digest == "absent"
    if digest == "absent":
        return False
    try:
        return digest_of(namespace[name], namespace).hex() == digest
    except Undigestible:
        return False
