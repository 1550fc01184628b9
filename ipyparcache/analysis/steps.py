"""The statements of a cell in order: which of them are loops that can be run in tasks."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from ipyparcache.analysis import refusals
from ipyparcache.analysis.behind import facts_behind
from ipyparcache.analysis.body import VALUE, replaced
from ipyparcache.analysis.changing import path_of
from ipyparcache.analysis.helpers import Facts, Guesses
from ipyparcache.analysis.parfor import Parfor, classify_comprehension, classify_loop
from ipyparcache.analysis.refusals import Refusal

#: Functions that read a generator to its end, or stop early only as `any` and `all` do.
CONSUMERS = frozenset(
    [
        "sum",
        "max",
        "min",
        "any",
        "all",
        "list",
        "dict",
        "set",
        "sorted",
        "tuple",
        "frozenset",
        "str.join",
        "np.fromiter",
        "numpy.fromiter",
        "Counter",
        "collections.Counter",
        "math.fsum",
        "fsum",
        "math.prod",
        "prod",
        "pd.concat",
        "pandas.concat",
        "np.array",
        "bytes",
        "bytearray",
        "deque",
        "collections.deque",
        "OrderedDict",
        "statistics.mean",
        "mean",
        "statistics.median",
        "np.sum",
        "len",
    ]
)


@dataclass(frozen=True)
class Serial:
    """A statement that the kernel executes itself."""

    statement: ast.stmt


@dataclass(frozen=True)
class Loop:
    """A `for` statement run in tasks."""

    statement: ast.For
    parfor: Parfor


@dataclass(frozen=True)
class Comprehension:
    """A statement whose comprehension or generator is run in tasks.

    Attributes
    ----------
    statement
        The statement with the comprehension replaced by the name `VALUE`.
    original
        The statement as it was.
    kind
        `list`, `set`, `dict` or `generator` (the place then takes an iterator).
    """

    statement: ast.stmt
    original: ast.stmt
    parfor: Parfor
    kind: str


Step = Serial | Loop | Comprehension


def steps_of(tree: ast.Module, facts: Facts) -> list[Step] | Refusal:
    """The statements of a cell in order, each loop as tasks; or why that cannot be.

    Notes
    -----
    `facts` are those of the namespace before the cell; functions and modules that the cell itself defines
    are added
    here as its statements are passed.
    """
    steps: list[Step] = []
    known = facts
    for statement in tree.body:
        last = statement is tree.body[-1]
        step = step_of(statement, known, last=last)
        if isinstance(step, Refusal):
            guessed = step_of(statement, known.guessed(), last=last) if known.guesses != Guesses() else step
            if isinstance(guessed, Refusal):
                return step
            step = guessed
        steps.append(step)
        known = facts_behind(statement, known)
    if all(isinstance(step, Serial) for step in steps):
        return _nothing_parallel(tree)
    return steps


def _nothing_parallel(tree: ast.Module) -> Refusal:
    for statement in tree.body:
        match statement:
            case ast.Assign(value=ast.Call(func=func, args=[ast.GeneratorExp(), *_])):
                return refusals.ConsumerUnknown(statement.lineno, ast.unparse(func))
            case ast.Expr(value=ast.Call(func=func, args=[ast.GeneratorExp(), *_])):
                return refusals.ConsumerUnknown(statement.lineno, ast.unparse(func))
            case ast.While():
                return refusals.OnlyWhile(statement.lineno)
            case ast.Assign(value=call) | ast.Expr(value=call) if rewritten := _as_comprehension(call):
                return refusals.MapCall(statement.lineno, None, ast.unparse(call), rewritten)
    return refusals.NothingParallel(tree.body[0].lineno if tree.body else 1)


def _as_comprehension(call: ast.expr) -> str:
    """`list(map(f, xs))` as a comprehension; empty for anything else."""
    match call:
        case ast.Call(
            func=ast.Name("list"),
            args=[ast.Call(func=ast.Name("map"), args=[function, elements], keywords=[])],
        ) if not isinstance(function, ast.Lambda | ast.Starred) and not isinstance(elements, ast.Starred):
            used = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
            name = next(name for name in ("x", *(f"x{n}" for n in range(len(used) + 1))) if name not in used)
            return f"[{ast.unparse(function)}({name}) for {name} in {ast.unparse(elements)}]"
    return ""


def step_of(statement: ast.stmt, facts: Facts, *, last: bool) -> Step | Refusal:
    """One statement of a cell, which may be its last, by itself."""
    if isinstance(statement, ast.AsyncFor):
        return refusals.StatementInLoop(statement.lineno, None, "async for")
    if isinstance(statement, ast.For):
        parfor = classify_loop(statement, facts)
        return parfor if isinstance(parfor, Refusal) else Loop(statement, parfor)
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign) or (
        last and isinstance(statement, ast.Expr)
    ):
        return _comprehension_step(statement, facts)
    return Serial(statement)


def _comprehension_step(statement: ast.stmt, facts: Facts) -> Step | Refusal:
    assert isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr)
    value = statement.value
    found: ast.expr | None = None
    streamed = False
    if isinstance(value, ast.ListComp | ast.SetComp | ast.DictComp):
        found = value
    elif isinstance(value, ast.Call) and value.args:
        inner = value.args[0]
        plain = path_of(value.func) is not None and not path_of(value.func).holes  # type: ignore[union-attr]
        joins = (
            isinstance(value.func, ast.Attribute)
            and value.func.attr == "join"
            and isinstance(value.func.value, ast.Constant | ast.Name)
        )
        if isinstance(inner, ast.ListComp | ast.SetComp | ast.DictComp) and (plain or joins):
            found = inner
        elif isinstance(inner, ast.GeneratorExp):
            name = ast.unparse(value.func)
            if (joins or name in CONSUMERS) and name not in facts.helpers:
                found, streamed = inner, True
        elif (
            plain
            and isinstance(inner, ast.Call)
            and len(inner.args) == 1
            and isinstance(inner.func, ast.Name)
        ):
            # One call inside of another: np.mean(list(f(x) for x in xs)), dict(sorted(...)).
            deeper = inner.args[0]
            if isinstance(deeper, ast.ListComp | ast.GeneratorExp) and inner.func.id in CONSUMERS:
                found, streamed = deeper, isinstance(deeper, ast.GeneratorExp)
    if found is None:
        return Serial(statement)
    assert isinstance(found, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp)
    parfor = classify_comprehension(found, facts)
    if isinstance(parfor, Refusal):
        return parfor
    place = ast.copy_location(ast.Name(VALUE, ast.Load()), found)
    with_name = replaced(statement, {id(found): place})
    assert isinstance(with_name, ast.stmt)
    kind = {ast.ListComp: "list", ast.SetComp: "set", ast.DictComp: "dict"}.get(type(found), "generator")
    assert streamed == (kind == "generator")
    return Comprehension(ast.fix_missing_locations(with_name), statement, parfor, kind)
