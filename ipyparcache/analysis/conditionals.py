"""Conditions on what is carried: the kernel decides them, with operands from a worker."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ipyparcache.analysis.changing import REPLAYED_METHODS, Path, path_of
from ipyparcache.analysis.collected import Found, collected_call, collected_function, is_simple
from ipyparcache.analysis.folding import folds
from ipyparcache.analysis.walk import leaves_of, statements_of

#: Functions that may be asked about a carried value, as they neither change nor keep it.
ASKING_FUNCTIONS = frozenset({"len", "abs", "round", "int", "float", "str", "bool"})


def conditional(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`if x > best: best, at = x, i`, `if k not in d: d[k] = []`: tests of what is carried."""
    if not isinstance(statement, ast.If):
        return None
    outer: dict[str, str | None] = {}
    assigns: set[str] = set()
    for part in statements_of([*statement.body, *statement.orelse]):
        if isinstance(part, ast.If | ast.Pass) or _prints(part):
            continue
        if isinstance(part, ast.Assign) and len(part.targets) == 1:
            leaves = list(leaves_of(part.targets[0]))
            if all(isinstance(t, ast.Name) for t in leaves):
                assigns |= {t.id for t in leaves if isinstance(t, ast.Name)}
                continue
        if isinstance(part, ast.AugAssign) and isinstance(part.target, ast.Name):
            assigns.add(part.target.id)
            continue
        path = _changed_by(part, bound, carried)
        if path is None:
            return None
        outer[path.root] = path.attribute if path.root not in outer else None
    tested = {
        n.id for n in ast.walk(statement.test) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }
    if not (tested & ((assigns & carried) | outer.keys())):
        return None
    ours = assigns | outer.keys()
    holes: list[ast.expr] = []
    printed: set[int] = set()
    if not _plain_operands(statement, ours, holes, printed):
        return None
    certain = set(map(id, _certain(statement.test)))
    needless = frozenset(
        n
        for n, hole in enumerate(holes)
        if id(hole) not in certain and not (isinstance(hole, ast.Name) and hole.id in bound)
    )
    roots = {**outer, **dict.fromkeys(assigns)}
    return Found(statement, holes, roots, assigns, "conditional", frozenset(printed), needless=needless)


def _prints(statement: ast.stmt) -> bool:
    """`print(...)` to where the cell prints."""
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=args, keywords=keywords)):
            plain = all(k.arg in ("sep", "end", "flush") for k in keywords)
            return plain and not any(isinstance(a, ast.Starred) for a in args)
    return False


def prints_itself(found: Found) -> bool:
    """Whether the kernel prints when it executes a statement: what is printed depends on what is carried."""
    return found.method == "conditional" and any(map(_prints, statements_of([found.statement])))


def _changed_by(statement: ast.stmt, bound: set[str], carried: set[str]) -> Path | None:
    """The object from outside that a statement changes; what the operands are is another question."""
    path: Path | None = None
    match statement:
        case (
            ast.Assign(targets=[ast.Subscript() | ast.Attribute() as target])
            | ast.AugAssign(target=ast.Subscript() | ast.Attribute() as target)
        ):
            path = path_of(target)
        case ast.Delete(targets=[ast.Subscript() as target]):
            path = path_of(target)
        case _:
            found = collected_call(statement, bound, carried) or collected_function(statement, bound, carried)
            if found is not None:
                [(root, attribute)] = found.roots.items()
                path = Path(root, attribute, ())
    return path if path is not None and path.root not in bound else None


def made_on_demand(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`try: d[k] += 1` with `except KeyError: d[k] = 1`, and with `d[k].append(x)`, over plain operands."""
    match statement:
        case ast.Try(
            body=[inner],
            handlers=[
                ast.ExceptHandler(
                    type=ast.Name(id="KeyError"),
                    name=None,
                    body=[ast.Assign(targets=[ast.Subscript(value=ast.Name(id=root)) as made], value=value)],
                )
            ],
            orelse=[],
            finalbody=[],
        ) if root not in bound:
            match inner:
                case ast.AugAssign(target=ast.Subscript() as asked, value=given):
                    operands = [given]
                case ast.Expr(
                    value=ast.Call(
                        func=ast.Attribute(value=ast.Subscript() as asked, attr=method),
                        args=args,
                        keywords=[],
                    )
                ) if method in REPLAYED_METHODS:
                    operands = list(args)
                case _:
                    return None
            if ast.dump(asked.slice) != ast.dump(made.slice) or ast.dump(asked.value) != ast.dump(made.value):
                return None
            holes: list[ast.expr] = []
            for operand in (asked.slice, *operands, made.slice, value):
                if not _cut_plain(operand, root, holes):
                    return None
            return Found(statement, holes, {root: None}, set(), "conditional")
    return None


def _cut_plain(node: ast.expr, root: str, holes: list[ast.expr]) -> bool:
    """Cut names out of what is made of them; False for anything whose evaluation could raise."""
    match node:
        case ast.Constant():
            return True
        case ast.Name(id=name):
            holes.append(node)
            return name != root
        case ast.Tuple(elts=elts) | ast.List(elts=elts) | ast.Set(elts=elts):
            return all(_cut_plain(e, root, holes) for e in elts)
        case ast.Dict(keys=given, values=values):
            return all(k is not None and _cut_plain(k, root, holes) for k in given) and all(
                _cut_plain(v, root, holes) for v in values
            )
    return False


def _plain_operands(statement: ast.If, ours: set[str], holes: list[ast.expr], printed: set[int]) -> bool:
    """Cut the operands out of a conditional; `printed` gets the numbers of those that are printed.

    False unless all of them can be evaluated whether or not it is taken.
    """

    def mentions(node: ast.AST) -> bool:
        return any(isinstance(n, ast.Name) and n.id in ours for n in ast.walk(node))

    certain = list(_certain(statement.test))

    def expr(node: ast.expr) -> bool:
        if isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id in ours):
            return True
        if (isinstance(node, ast.List | ast.Set) and not node.elts) or (
            isinstance(node, ast.Dict) and not node.keys
        ):
            return True
        if not mentions(node):
            if isinstance(node, ast.Call) and not _formats(node):
                asked = _asks(node) and ast.dump(node) in map(ast.dump, certain)
                asked = asked or (_asks(node) and is_simple(node.args[0]) and _counts(node))
                if asked or any(node is each for each in certain):
                    holes.append(node)
                    return True
                return False
            if is_simple(node):
                holes.append(node)
                return True
        match node:
            case ast.Call(args=[asked_of]) if _asks(node):
                return expr(asked_of)
            case ast.Call(func=ast.Name(id="round"), args=[asked_of, ast.Constant()], keywords=[]):
                return expr(asked_of)
            case ast.Call(args=args, keywords=given) if _formats(node):
                return all(map(expr, [*args, *(k.value for k in given)]))
            case ast.Call(args=args, keywords=given) if folds(node, ours):
                return all(map(expr, [*args, *(k.value for k in given)]))
            case ast.JoinedStr(values=values):
                return all(map(expr, values))
            case ast.FormattedValue(value=shown, format_spec=form):
                return expr(shown) and (form is None or expr(form))
            case ast.Compare(left=left, comparators=comparators):
                return expr(left) and all(map(expr, comparators))
            case ast.BoolOp(values=values):
                return all(map(expr, values))
            case ast.UnaryOp(operand=operand):
                return expr(operand)
            case ast.BinOp(left=left, right=right):
                return expr(left) and expr(right)
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                return all(map(expr, elts))
            case ast.Dict(keys=given, values=values):
                return all(key is not None and expr(key) for key in given) and all(map(expr, values))
            case ast.Subscript(value=value, slice=key):
                return expr(value) and expr(key)
        return False

    def stmt(node: ast.stmt) -> bool:
        match node:
            case ast.Pass():
                return True
            case ast.If(test=test, body=body, orelse=orelse):
                return expr(test) and all(map(stmt, body)) and all(map(stmt, orelse))
            case ast.Assign(targets=[target], value=value):
                if not expr(value):
                    return False
                leaves = list(leaves_of(target))
                if all(isinstance(t, ast.Name) for t in leaves):
                    return True
                return isinstance(target, ast.Subscript | ast.Attribute) and keys(target)
            case ast.AugAssign(target=ast.Name(), value=value):
                return expr(value)
            case ast.Delete(targets=[ast.Subscript() as target]):
                return keys(target)
            case ast.AugAssign(target=ast.Subscript() | ast.Attribute() as target, value=value):
                return keys(target) and expr(value)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=owner), args=args, keywords=[])):
                return keys(owner) and all(map(expr, args))
            case ast.Expr(value=ast.Call(func=ast.Name(), args=args, keywords=given)):
                first = len(holes)
                plain = all(map(expr, [*args, *(k.value for k in given)]))
                printed.update(range(first, len(holes)) if _prints(node) else ())
                return plain and (_prints(node) or not given)
        return False

    def keys(node: ast.expr) -> bool:
        path = path_of(node)
        if path is None:
            return False
        return all(map(expr, path.holes))

    return stmt(statement)


def _asks(call: ast.Call) -> bool:
    return (
        isinstance(call.func, ast.Name)
        and call.func.id in ASKING_FUNCTIONS
        and len(call.args) == 1
        and not call.keywords
    )


def _formats(call: ast.Call) -> bool:
    """`"{}: {}".format(...)`."""
    match call.func:
        case ast.Attribute(value=ast.Constant(value=str()), attr="format"):
            return not any(isinstance(a, ast.Starred) for a in call.args)
    return False


def _counts(call: ast.Call) -> bool:
    """Whether a call asks for a number, which does no harm where it is not wanted."""
    return isinstance(call.func, ast.Name) and call.func.id in ("len", "abs", "int", "float", "round")


def _certain(test: ast.expr) -> Iterator[ast.expr]:
    """The parts of a test that are evaluated whatever the others are."""
    yield test
    match test:
        case ast.Compare(left=left, comparators=[right, *_]):
            yield from _certain(left)
            yield from _certain(right)
        case ast.BoolOp(values=[first, *_]) | ast.UnaryOp(operand=first):
            yield from _certain(first)
        case ast.BinOp(left=left, right=right):
            yield from _certain(left)
            yield from _certain(right)
