"""Walking the statements of a loop body: what belongs to its own scope, in which order."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator


def leaves_of(target: ast.expr | None) -> Iterator[ast.expr]:
    """The places that an assignment target consists of."""
    if isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from leaves_of(part)
    elif isinstance(target, ast.Starred):
        yield from leaves_of(target.value)
    elif target is not None:
        yield target


def blocks_of(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """Statement lists directly inside of a statement of the same scope."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if isinstance(block, list):
            yield block
    for handler in getattr(statement, "handlers", ()):
        yield handler.body
    for case in getattr(statement, "cases", ()):
        yield case.body


def statements_of(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements of a scope, in order, those inside of other statements too."""
    for statement in body:
        yield statement
        for block in blocks_of(statement):
            yield from statements_of(block)


def own_nodes(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes of the statements, without what lies inside of functions defined there."""
    for node in body:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield from own_nodes(ast.iter_child_nodes(node))


def comprehension_names(body: Iterable[ast.AST]) -> set[str]:
    """Names that are bound inside of comprehensions."""
    return {
        t.id
        for node in own_nodes(body)
        if isinstance(node, ast.comprehension)
        for t in ast.walk(node.target)
        if isinstance(t, ast.Name)
    }


def kept_functions(node: ast.expr) -> Iterator[ast.Lambda]:
    """The lambdas that a value is, or holds, as far as its text tells: not those that a call is given."""
    match node:
        case ast.Lambda():
            yield node
        case ast.Call():
            return
        case _:
            for part in ast.iter_child_nodes(node):
                if isinstance(part, ast.expr):
                    yield from kept_functions(part)


def own_jumps(
    body: Iterable[ast.stmt], kind: type[ast.Break] | type[ast.Continue]
) -> Iterator[ast.Break | ast.Continue]:
    """The `break` or `continue` statements that belong to the loop with this body."""
    for statement in body:
        if isinstance(statement, kind):
            yield statement
        elif isinstance(statement, ast.For | ast.While | ast.AsyncFor):
            yield from own_jumps(statement.orelse, kind)
        else:
            for block in blocks_of(statement):
                yield from own_jumps(block, kind)


def names_in_strings_of(body: Iterable[ast.AST]) -> Iterator[str]:
    """Identifiers in string arguments of calls that look names up in the caller's frame."""
    for node in own_nodes(body):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr not in ("query", "eval", "sql", "execute", "from_formula", "ols", "glm", "logit"):
            continue
        for argument in [*node.args, *(k.value for k in node.keywords)]:
            for part in ast.walk(argument):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield from _identifiers(part.value)


def _identifiers(text: str) -> Iterator[str]:
    word = ""
    for letter in text + " ":
        if letter.isalnum() or letter == "_":
            word += letter
        elif word:
            if word.isidentifier():
                yield word
            word = ""


def line_of(node: ast.AST, default: int) -> int:
    """The line of a node, or of what it stands in."""
    return getattr(node, "lineno", default)


def word_of(node: ast.AST) -> str:
    """The keyword of a statement that only the kernel can run."""
    return {
        ast.Yield: "yield",
        ast.YieldFrom: "yield from",
        ast.Return: "return",
        ast.Await: "await",
        ast.AsyncFor: "async for",
        ast.AsyncWith: "async with",
    }[type(node)]
