"""Reads `pre_dispatch`: a number, `all`, or arithmetic with `n_jobs`, without `eval`."""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

_LONGEST = 30
_LARGEST = 1e6

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}


def parse_ahead(text: Any, n_jobs: int) -> int | None:
    """How many tasks `pre_dispatch` allows to be under way; None for all.

    Raises
    ------
    ValueError
        If it is no such expression, or allows none.
    """
    if text == "all":
        return None
    if isinstance(text, str):
        text = evaluate(text.replace("n_jobs", str(n_jobs)))
    count = int(text)
    if count <= 0:
        raise ValueError(f"pre_dispatch must allow at least one task, it is {count}")
    return count


@functools.lru_cache(maxsize=64)
def evaluate(text: str) -> float:
    """The value of an arithmetic expression of numbers.

    Raises
    ------
    ValueError
        If it is anything else, or a part of it is beyond a million.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"{text!r} is too long for an expression")
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, ArithmeticError) as error:
        raise ValueError(f"{text!r} is not a valid or supported arithmetic expression: {error}") from error


def _value(node: ast.expr, text: str) -> float:
    number: Any
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        number = node.value
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, text), _value(node.right, text)
        if isinstance(node.op, ast.Pow) and abs(right) > 100:
            raise OverflowError(f"an exponent of {right} is too large")
        number = _OPERATORS[type(node.op)](left, right)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        number = _OPERATORS[type(node.op)](_value(node.operand, text))
    else:
        raise ValueError(f"{text!r} is not a valid or supported arithmetic expression")
    if isinstance(number, complex) or math.isnan(number) or abs(number) > _LARGEST:
        raise ValueError(f"Numeric literal {number!r} in {text!r} is too large")
    return float(number) if isinstance(number, float) else number
