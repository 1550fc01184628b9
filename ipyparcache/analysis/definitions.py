"""Which statements of a cell a hit executes again, instead of unpickling what they made."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from ipyparcache.analysis.names import (
    COMPREHENSIONS,
    dotted,
    evaluated_at_definition,
    imported_names,
    names_of,
)


@dataclass(frozen=True)
class Definition:
    """A top-level import, `def` or `class` that a hit executes again instead of unpickling what it made."""

    index: int  # of the statement in the cell
    names: tuple[str, ...]
    reads: frozenset[str] = frozenset()  # names that executing it again reads


def re_executable_definitions(tree: ast.Module) -> list[Definition]:
    """Top-level imports, functions and classes that a hit may execute again.

    Only those whose decorators, defaults, annotations, bases and class-body values are made of constants,
    imported or outer names that the cell does not rebind and its own earlier definitions, without any call
    except of a decorator or a class-body call of an imported name (`field(...)`, `auto()`), and whose
    names nothing else in the cell binds.
    """
    binders: dict[str, int] = {}
    for statement in tree.body:
        for name in names_of([statement]).touched:
            binders[name] = binders.get(name, 0) + 1
    imported = {
        name
        for statement in tree.body
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for name in imported_names(statement)
    }
    found: list[Definition] = []
    safe = set(imported)
    for index, statement in enumerate(tree.body):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names = tuple(imported_names(statement))
            if "*" not in names and all(binders[name] == 1 for name in names):
                found.append(Definition(index, names))
        elif (
            isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and binders[statement.name] == 1
        ):
            reads = names_of([statement]).read
            rebound = {
                name for name in reads if name in binders and name not in safe and name != statement.name
            }
            if not rebound and _is_quiet_definition(statement):
                found.append(Definition(index, (statement.name,), frozenset(reads)))
                safe.add(statement.name)
        elif made := _class_made_by(statement):
            reads = names_of([statement]).read
            if binders[made] == 1 and not any(name in binders and name not in safe for name in reads):
                found.append(Definition(index, (made,), frozenset(reads)))
                safe.add(made)
    return found


def _is_quiet_definition(statement: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether executing the statement again calls nothing but decorators and class-body field
    descriptions."""
    if isinstance(statement, ast.ClassDef):
        parts: list[ast.AST] = [*statement.bases, *[word.value for word in statement.keywords]]
        if any(_has_call(part) for part in parts):
            return False
        for inner in statement.body:
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if not _is_quiet_definition(inner):
                    return False
            elif isinstance(inner, ast.Assign | ast.AnnAssign):
                if inner.value is not None and not _is_plain_value(inner.value):
                    return False
                if isinstance(inner, ast.AnnAssign) and not _is_plain_value(inner.annotation):
                    return False
            elif not isinstance(inner, ast.Pass) and not (
                isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant)
            ):
                return False
        return all(_is_plain_decorator(decorator) for decorator in statement.decorator_list)
    return all(map(_is_plain_value, evaluated_at_definition(statement))) and all(
        _is_plain_decorator(decorator) for decorator in statement.decorator_list
    )


def _has_call(node: ast.AST) -> bool:
    return any(
        isinstance(inner, ast.Call | ast.Await | ast.NamedExpr | ast.Yield) for inner in ast.walk(node)
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Decorators and class-body calls that are known to have no effect but on what they are given.
QUIET_CALLS = _words(
    """
    dataclass dataclasses.dataclass field dataclasses.field property staticmethod classmethod functools.wraps
    wraps functools.cached_property cached_property total_ordering functools.total_ordering abstractmethod
    abc.abstractmethod overload typing.overload auto enum.auto unique enum.unique contextmanager
    contextlib.contextmanager asynccontextmanager contextlib.asynccontextmanager final typing.final override
    typing.override njit numba.njit jit numba.jit lru_cache functools.lru_cache cache functools.cache
    singledispatch functools.singledispatch
    list tuple dict set frozenset len sum min max sorted range zip enumerate reversed int float str bool abs
    round any all bytes complex
    Decimal decimal.Decimal Fraction fractions.Fraction date datetime.date dt.date timedelta dt.timedelta
    datetime.timedelta re.compile Path pathlib.Path count itertools.count defaultdict collections.defaultdict
    Counter collections.Counter deque collections.deque OrderedDict collections.OrderedDict
    """
)
QUIET_NAMES = frozenset(name.split(".")[0] for name in QUIET_CALLS)


# Calls that make a class or a type under the name they are assigned to.
CLASS_MAKERS = _words(
    """
    namedtuple collections.namedtuple NamedTuple typing.NamedTuple TypedDict typing.TypedDict TypeVar
    typing.TypeVar NewType typing.NewType Enum enum.Enum IntEnum enum.IntEnum Flag enum.Flag StrEnum
    enum.StrEnum make_dataclass dataclasses.make_dataclass
    """
)


def _is_plain_decorator(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return dotted(node.func) in QUIET_CALLS and all(
            _is_plain_value(part) for part in [*node.args, *[word.value for word in node.keywords]]
        )
    name = dotted(node)
    return name in QUIET_CALLS or (
        name is not None and name.split(".")[-1] in {"setter", "getter", "deleter"}
    )


def _class_made_by(statement: ast.stmt) -> str | None:
    """The name of the class that `Point = namedtuple("Point", "x y")` and its like make."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    target, value = statement.targets[0], statement.value
    if not isinstance(target, ast.Name) or not isinstance(value, ast.Call):
        return None
    parts = [*value.args, *[word.value for word in value.keywords]]
    if dotted(value.func) in CLASS_MAKERS and all(_is_plain_value(part) for part in parts):
        return target.id
    return None


def _is_plain_value(node: ast.expr) -> bool:
    """A value that evaluates to the same fresh thing each time: constants, names, displays of these, quiet
    calls."""
    if isinstance(node, ast.Call):
        return dotted(node.func) in QUIET_CALLS and all(
            _is_plain_value(part) for part in [*node.args, *[word.value for word in node.keywords]]
        )
    if isinstance(node, ast.Constant | ast.Name | ast.Attribute | ast.Lambda):
        return True
    if isinstance(node, COMPREHENSIONS):
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        for generator in node.generators:
            parts += [generator.iter, *generator.ifs]
        return all(_is_plain_value(part) for part in parts)
    if isinstance(node, ast.Subscript):
        return _is_plain_value(node.value) and _is_plain_value(node.slice)
    if isinstance(node, ast.Compare):
        return all(_is_plain_value(part) for part in [node.left, *node.comparators])
    if isinstance(node, ast.BoolOp):
        return all(_is_plain_value(part) for part in node.values)
    if isinstance(node, ast.IfExp):
        return all(_is_plain_value(part) for part in (node.test, node.body, node.orelse))
    if isinstance(node, ast.JoinedStr):
        return all(_is_plain_value(part) for part in node.values)
    if isinstance(node, ast.FormattedValue | ast.Starred):
        return _is_plain_value(node.value)
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return all(_is_plain_value(part) for part in node.elts)
    if isinstance(node, ast.Dict):
        return all(part is None or _is_plain_value(part) for part in [*node.keys, *node.values])
    if isinstance(node, ast.UnaryOp):
        return _is_plain_value(node.operand)
    if isinstance(node, ast.BinOp):
        return _is_plain_value(node.left) and _is_plain_value(node.right)
    return False
