"""Automatic mode: later cells are treated as if they began with `%%cached`."""

from __future__ import annotations

import ast
import builtins
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FrameType, FunctionType, ModuleType, NoneType


@dataclass
class _Mode:
    """Whether automatic mode is on, from how many seconds on a cell is worth storing, and who has paused
    it."""

    on: bool = False
    min_seconds: float = 1.0
    paused: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # what cells took when they ran last, by source


_mode = _Mode()

DEFAULT_MIN_SECONDS = 1.0


def switch(*, on: bool, min_seconds: float = DEFAULT_MIN_SECONDS) -> None:
    """Switch automatic mode; cells that ran shorter than `min_seconds` are not stored, 0 stores all."""
    _mode.on, _mode.min_seconds = on, min_seconds


def is_on() -> bool:
    """Whether automatic mode is on."""
    return _mode.on


def min_seconds() -> float:
    """From how many seconds on a cell is stored in automatic mode."""
    return _mode.min_seconds


def note_seconds(source: str, seconds: float) -> None:
    """Remember what a cell took."""
    if len(_mode.seconds) > 10_000:
        _mode.seconds.clear()
    _mode.seconds[source] = seconds


def is_too_short(source: str, tree: ast.Module, namespace: Mapping[str, object]) -> bool:
    """Whether a cell is not worth being looked up: it took far less than the minimum when it ran last, or
    does nothing that takes time. Such a cell just runs; what that costs at worst is a run that is not stored.
    """
    if not _mode.min_seconds:
        return False
    known = _mode.seconds.get(source)
    if known is not None:
        return known < _mode.min_seconds / 2
    return _mode.min_seconds >= DEFAULT_MIN_SECONDS / 10 and is_trivial(tree, namespace)


_SHORT_CALLS = frozenset({"print", "len", "type", "int", "float", "str", "bool", "isinstance", "repr", "id"})
_PLAIN = (
    int,
    float,
    complex,
    bool,
    str,
    bytes,
    NoneType,
    type,
    ModuleType,
    FunctionType,
    BuiltinFunctionType,
)
_SHORT = (
    ast.Module, ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Pass, ast.If, ast.Assert,
    ast.Import, ast.ImportFrom, ast.alias,
    ast.Constant, ast.Name, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp,
    ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Starred, ast.JoinedStr, ast.FormattedValue,
    ast.Call, ast.keyword,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip


def is_trivial(tree: ast.AST, namespace: Mapping[str, object]) -> bool:
    """Whether code computes with literals and plain values only, defines functions, or imports."""
    if isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
        defaults = [*tree.args.defaults, *tree.args.kw_defaults]
        return not tree.decorator_list and all(
            default is None or is_trivial(default, namespace) for default in defaults
        )
    if not isinstance(tree, _SHORT):
        return False
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Pow | ast.LShift | ast.Mult):
        return False  # a large number or text
    if isinstance(tree, ast.Name):
        value = namespace.get(tree.id)
        return isinstance(tree.ctx, ast.Store) or isinstance(value, _PLAIN)
    if isinstance(tree, ast.Call):
        function = tree.func
        if not isinstance(function, ast.Name) or function.id not in _SHORT_CALLS:
            return False
        if namespace.get(function.id, vars(builtins)[function.id]) is not vars(builtins)[function.id]:
            return False
        parts: list[ast.AST] = [*tree.args, *tree.keywords]
        return all(is_trivial(part, namespace) for part in parts)
    return all(is_trivial(part, namespace) for part in ast.iter_child_nodes(tree))


@contextmanager
def paused() -> Iterator[None]:
    """Leave source alone that is transformed inside the block: it belongs to a cell that runs already."""
    _mode.paused += 1
    try:
        yield
    finally:
        _mode.paused -= 1


def rewrite_cell(lines: list[str]) -> list[str]:
    """Put `%%cached --auto` above a cell, unless it is empty or uses magics of its own."""
    if not _mode.on or _mode.paused:
        return lines
    if not any(map(str.strip, lines)) or has_magics(lines) or _is_inside_a_cell():
        return lines
    return ["%%cached --auto\n", *lines]


def has_magics(lines: list[str]) -> bool:
    """Whether a cell has lines that IPython alone understands; a comment may well end with `?`."""
    texts = [line.strip() for line in lines]
    if not any(text.startswith(("%", "!", "?")) or text.endswith("?") for text in texts):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself will say them
            ast.parse("".join(lines))
    except (SyntaxError, ValueError):
        return True
    return False


def _is_inside_a_cell() -> bool:
    """Whether a cell is running in this thread: what it has transformed is part of it, as what follows
    `%timeit`.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "run_code" and frame.f_globals.get("__name__") == _SHELL_MODULE:
            return True
        frame = frame.f_back
    return False


_SHELL_MODULE = "IPython.core.interactiveshell"
