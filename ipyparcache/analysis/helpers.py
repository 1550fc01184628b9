"""What is known of the names that a cell reads: what calls of the notebook's functions may do, above all."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ipyparcache.analysis.changing import changed_roots
from ipyparcache.analysis.flow import bound_names, free_names, parameters_of
from ipyparcache.analysis.walk import comprehension_names, own_nodes

#: Calls that may read or write any name.
DYNAMIC = frozenset({"exec", "eval", "globals", "locals", "vars", "dir"})

DYNAMIC_WITHOUT_ARGUMENT = frozenset({"vars", "dir"})

#: Methods and functions that write the file named by their first argument.
WRITING_METHODS = frozenset(
    {"savefig", "to_csv", "to_parquet", "to_pickle", "to_excel", "to_json", "to_feather", "tofile"}
    | {"save", "savetxt", "savez", "savez_compressed"}
)


@dataclass(frozen=True)
class Helper:
    """What a call of a notebook function may do to the notebook's names.

    Attributes
    ----------
    reads
        Names that it, or a notebook function it calls, may read.
    writes
        Names that it, or a notebook function it calls, may assign by `global`.
    changes
        Positions of parameters that it changes in place.
    parameters
        The names of its parameters.
    mutates
        Names whose objects it, or a notebook function it calls, visibly changes in place.
    dynamic
        The call by which it may read or write any name, else None.
    file
        A file that every call writes, as the path is written, else None.
    """

    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    changes: frozenset[int] = frozenset()
    mutates: frozenset[str] = frozenset()
    dynamic: str | None = None
    file: str | None = None
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guesses:
    """What names that a cell binds may stand for, which only running it shows."""

    tables: frozenset[str] = frozenset()
    learners: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Facts:
    """What is known of the names that a cell reads, beside its text."""

    helpers: Mapping[str, Helper] = field(default_factory=dict)
    modules: frozenset[str] = frozenset()  # and classes of progress bars, whose `write` prints
    drawn: frozenset[str] = frozenset()  # axes and figures of matplotlib, and containers of them
    tables: frozenset[str] = frozenset()  # frames of pandas whose columns have one name each
    managers: frozenset[str] = frozenset()  # the notebook's own context managers, and what makes them
    learners: frozenset[str] = frozenset()  # estimators that forget, when they are fitted, what they knew
    makers: frozenset[str] = frozenset()  # what scikit-learn has: its classes, functions and modules
    guesses: Guesses = Guesses()

    def guessed(self) -> Facts:
        """The facts, should the guesses be right."""
        return replace(
            self,
            tables=self.tables | self.guesses.tables,
            learners=self.learners | self.guesses.learners,
        )


def _names_bound_in(node: ast.AST) -> set[str]:
    """Names that a function, or one inside of it, assigns, deletes, defines or imports."""
    found: set[str] = set()
    for part in ast.walk(node):
        match part:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.alias(name=name, asname=other):
                found.add(other or name.partition(".")[0])
            case ast.ExceptHandler(name=str() as name) | ast.MatchAs(name=str() as name):
                found.add(name)
            case ast.MatchStar(name=str() as name) | ast.MatchMapping(rest=str() as name):
                found.add(name)
    return found


def helper_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, facts: Facts) -> Helper:
    """What a call of the function defined by `node` may do, following the notebook functions it names."""
    reads = set(free_names(node))
    mutates = changed_globals(node) - facts.modules
    declared = {name for part in ast.walk(node) if isinstance(part, ast.Global) for name in part.names}
    writes = declared & _names_bound_in(node) if declared else set()
    dynamic = next(
        (
            n.func.id
            for n in ast.walk(node)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and is_dynamic(n.func.id, n)
        ),
        None,
    )
    file = written_file(node)
    for name in list(reads):
        other = facts.helpers.get(name)
        if other is not None:
            file = file or other.file
            reads |= other.reads
            writes |= other.writes
            mutates |= other.mutates
            dynamic = dynamic or other.dynamic
    changes = frozenset(changed_parameters(node))
    own = tuple(parameters_of(node.args))
    return Helper(frozenset(reads), frozenset(writes), changes, frozenset(mutates), dynamic, file, own)


def written_file(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> str | None:
    """A file that every call of a function writes, as the path is written there."""
    if isinstance(node, ast.Lambda):
        return None
    own = set(parameters_of(node.args)) | {n for part in node.body for n in bound_names(part)}
    own |= comprehension_names(node.body)
    for part in own_nodes(node.body):
        path = written_path(part) if isinstance(part, ast.Call) else None
        if path is not None and is_fixed(path, own):
            return ast.unparse(path)
    return None


def is_fixed(path: ast.expr, private: set[str]) -> bool:
    """Whether a path is made of what does not change from one iteration, or call, to the next."""
    return not any(
        isinstance(part, ast.Call) or (isinstance(part, ast.Name) and part.id in private)
        for part in ast.walk(path)
    )


def written_path(call: ast.Call) -> ast.expr | None:
    """The path of a file that a call writes, where it is seen to write one by a path written out."""
    match call:
        case ast.Call(func=ast.Name(id="open"), args=[path, *rest], keywords=keywords):
            mode = rest[0] if rest else next((k.value for k in keywords if k.arg == "mode"), None)
            if (
                isinstance(mode, ast.Constant)
                and isinstance(mode.value, str)
                and set(mode.value) & set("wax+")
            ):
                return path
        case ast.Call(func=ast.Attribute(value=owner, attr="open"), args=args, keywords=keywords):
            given = [*args, *(k.value for k in keywords if k.arg == "mode")]
            modes = [n for n, part in enumerate(given) if _is_writing_mode(part)]
            return None if not modes else given[0] if modes[0] else owner
        case ast.Call(func=ast.Attribute(value=owner, attr="write_text" | "write_bytes")):
            return owner
        case ast.Call(func=ast.Attribute(attr=method), args=[path, *_]) if method in WRITING_METHODS:
            names_a_path = method.startswith("to_") and isinstance(path, ast.Name | ast.BinOp | ast.Attribute)
            return path if names_a_path or isinstance(path, ast.Constant | ast.JoinedStr) else None
    return None


def _is_writing_mode(node: ast.expr) -> bool:
    """Whether an argument is the mode of a file that is opened to be written."""
    if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        return False
    mode = node.value
    return 0 < len(mode) <= 3 and set(mode) <= set("rwaxbt+") and bool(set(mode) & set("wax+"))


def changed_globals(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> set[str]:
    """Free names of a function whose objects it visibly changes in place."""
    free = set(free_names(node))
    if isinstance(node, ast.Lambda):  # its value is what a statement does where it is called as one
        return {root for root, _ in changed_roots(ast.Expr(node.body)) if root in free}
    return {root for part in ast.walk(node) for root, _ in changed_roots(part) if root in free}


def changed_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Iterator[int]:
    """Positions of the parameters that a function visibly changes in place and does not rebind before."""
    if isinstance(node, ast.Lambda):
        return
    rebound = {n for part in node.body for n in bound_names(part)}
    for position, name in enumerate(parameters_of(node.args)):
        if name in rebound:
            continue
        for part in ast.walk(node):
            if any(root == name for root, _ in changed_roots(part)):
                yield position
                break


def is_dynamic(name: str, call: ast.Call) -> bool:
    """Whether a call of that name may read or write any name."""
    return name in DYNAMIC and not (name in DYNAMIC_WITHOUT_ARGUMENT and bool(call.args))
