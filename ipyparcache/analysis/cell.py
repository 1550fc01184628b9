"""A cell's source as facts: its identity, and what reaches past the names that it spells out.

Everything here is text in, plain values out.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from ipyparcache.analysis.names import COMPREHENSIONS, dotted, walk_same_scope

# What reads or writes the namespace in ways that no analysis of names can follow.
DYNAMIC_CALLS = frozenset({"exec", "eval", "globals", "__import__"})
DYNAMIC_BARE_CALLS = frozenset({"locals", "vars", "dir"})  # without an argument they look around themselves
DYNAMIC_VALUES = frozenset({"exec", "eval", "globals"})


DYNAMIC_ATTRIBUTES = frozenset(
    {
        "user_ns",
        "user_global_ns",
        "run_cell",
        "import_module",
        "currentframe",
        "_getframe",
        "f_globals",
        "f_locals",
        "f_back",
        "__globals__",
        "__subclasses__",
        "getsource",
        "getsourcelines",
        "get_type_hints",
    }
)
LINE_ATTRIBUTES = frozenset(  # on which lines code stands: comments above it change that, and are no input
    {"co_firstlineno", "co_lines", "co_linetable", "co_lnotab", "co_positions", "f_lineno", "tb_lineno"}
)
DYNAMIC_IMPORTS = frozenset({"getsource", "getsourcelines", "get_type_hints"})  # often imported by name
DYNAMIC_DOTTED = frozenset({"inspect.stack", "inspect.trace", "runpy.run_path", "runpy.run_module"})


@dataclass(frozen=True)
class DynamicUse:
    """A use that reaches names by a computed string."""

    line: int
    what: str  # as the user wrote it: "exec", "globals()", "import *"


def identity_text(tree: ast.Module) -> str:
    """The cell's text as its identity sees it: comments, blank lines, quotes and brackets left out."""
    return ast.dump(tree, annotate_fields=False, include_attributes=False)


def identifiers(text: str) -> set[str]:
    """The identifiers that occur in a text, keywords included."""
    found: set[str] = set()
    word: list[str] = []
    for char in f"{text} ":
        if char == "_" or char.isalnum():
            word.append(char)
        elif word:
            found.add("".join(word))
            word = []
    return {name for name in found if name.isidentifier()}


def line_uses(tree: ast.AST) -> list[DynamicUse]:
    """Where the cell asks on which lines code stands."""
    found = [
        DynamicUse(node.lineno, f".{node.attr}")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in LINE_ATTRIBUTES
    ]
    return sorted(found, key=lambda use: use.line)


def dynamic_uses(tree: ast.AST) -> list[DynamicUse]:
    """Where the cell, or a function it defines, reaches names by strings: `exec`, `globals()`, frames,
    `__main__`."""
    own = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    found: list[DynamicUse] = []
    guards = {id(part) for node in ast.walk(tree) if _is_main_guard(node) for part in ast.walk(node)}
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in own:
            if node.func.id in DYNAMIC_CALLS or (node.func.id in DYNAMIC_BARE_CALLS and not node.args):
                found.append(DynamicUse(node.lineno, f"{node.func.id}()"))
        elif isinstance(node, ast.Name) and node.id in DYNAMIC_IMPORTS and node.id not in own:
            found.append(DynamicUse(node.lineno, node.id))
        elif isinstance(node, ast.Name) and node.id in DYNAMIC_VALUES and node.id not in own:
            if id(node) not in called:
                found.append(DynamicUse(node.lineno, node.id))
        elif isinstance(node, ast.Attribute) and (
            node.attr in DYNAMIC_ATTRIBUTES or dotted(node) in DYNAMIC_DOTTED
        ):
            found.append(DynamicUse(node.lineno, f".{node.attr}"))
        elif isinstance(node, ast.Subscript) and _is_own_module(node):
            found.append(DynamicUse(node.lineno, "sys.modules[__name__]"))
        elif isinstance(node, ast.Import) and any(alias.name == "__main__" for alias in node.names):
            found.append(DynamicUse(node.lineno, "import __main__"))
        elif isinstance(node, ast.ImportFrom) and node.module == "__main__":
            found.append(DynamicUse(node.lineno, "from __main__ import"))
        elif isinstance(node, ast.Constant) and node.value == "__main__" and id(node) not in guards:
            found.append(DynamicUse(node.lineno, "'__main__'"))
    return sorted(found, key=lambda use: use.line)


def _is_own_module(node: ast.Subscript) -> bool:
    """Whether this is `sys.modules[__name__]`."""
    is_named = isinstance(node.slice, ast.Name) and node.slice.id == "__name__"
    return is_named and dotted(node.value) == "sys.modules"


def _is_main_guard(node: ast.AST) -> bool:
    """Whether this is `__name__ == "__main__"`."""
    return isinstance(node, ast.Compare) and any(
        isinstance(part, ast.Name) and part.id == "__name__" for part in [node.left, *node.comparators]
    )


def star_imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and module of each `from module import *`."""
    return [
        (node.lineno, "." * node.level + (node.module or ""))
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]


def has_top_level_await(tree: ast.Module) -> bool:
    """Whether the cell awaits outside of any function."""
    return any(
        isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith) for node in walk_same_scope(tree.body)
    ) or any(
        isinstance(node, COMPREHENSIONS) and any(gen.is_async for gen in node.generators)
        for node in walk_same_scope(tree.body)
    )


def attributes_read(tree: ast.AST, name: str) -> frozenset[str] | None:
    """Attributes that the cell takes from what a name stands for; None if it is used in other ways, too."""
    taken = {
        id(node.value): node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    }
    uses = [id(node) for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    return frozenset(taken[use] for use in uses) if all(use in taken for use in uses) else None


def first_line_of(tree: ast.AST, name: str) -> int | None:
    """The first line where the name occurs, for a message that points at it."""
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    lines += [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name
    ]
    return min(lines, default=None)
