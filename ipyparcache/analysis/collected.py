"""Statements that change one object from outside: calls of its methods, and writes of its items."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from ipyparcache.analysis.changing import (
    COPYING_METHODS,
    PROGRESS_METHODS,
    REPLAYED_FUNCTIONS,
    REPLAYED_METHODS,
    SETTING_FUNCTIONS,
    Path,
    in_place,
    path_of,
)

TEXT = "__ipyparcache_text__"


#: How a statement changes its root that draws into it.
DRAW = "draw"


#: Classes of operators that may stand together in `x = x + a - b`.
CHAINS: tuple[tuple[type[ast.operator], ...], ...] = (
    (ast.Add, ast.Sub),
    (ast.Mult, ast.Div),
    (ast.BitOr,),
    (ast.BitAnd,),
    (ast.BitXor,),
    (ast.MatMult,),
)


@dataclass
class Found:
    """A statement recognised as one to replay, before its holes are cut out."""

    statement: ast.stmt
    holes: list[ast.expr]
    roots: dict[str, str | None]
    assigns: set[str]
    method: str
    by_content: frozenset[int] = frozenset()
    keys: frozenset[int] = frozenset()
    needless: frozenset[int] = frozenset()  # evaluated although the statement may not come to them


def collected_call(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`out.append(e)`, `d[k].add(e)`, `d.setdefault(k, []).append(e)`, `state.losses.extend(e)`."""
    match statement:
        case ast.Expr(
            value=ast.Call(func=ast.Attribute(value=owner, attr=method), args=args, keywords=keywords) as call
        ):
            path = path_of(owner)
            if path is None or path.root in bound:
                return None
            if method not in REPLAYED_METHODS | PROGRESS_METHODS and not in_place(call):
                return None
            given = [a.value if isinstance(a, ast.Starred) else a for a in args]
            holes = [*path.holes, *given, *(k.value for k in keywords)]
            spread = [isinstance(a, ast.Starred) for a in args] + [k.arg is None for k in keywords]
            content = frozenset(
                n for n, each in enumerate(spread, len(path.holes)) if each or method in COPYING_METHODS
            )
            keys = _key_positions(owner)
            if method == "add":
                keys = keys | {len(path.holes)}
            return Found(statement, holes, {path.root: path.attribute}, set(), method, content, keys)
    return None


def drawing(statement: ast.stmt, drawn: set[str]) -> Found | None:
    """`ax.plot(x, y)`, `axes[i, 0].set_title(t)`: a call of a method of what is drawn into, unused otherwise.

    Attributes of what is drawn into may be arguments (`transform=ax.transAxes`): the kernel looks them up.
    """
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=owner), args=args, keywords=keywords)):
            path = path_of(owner)
            if path is None or path.root not in drawn or any(isinstance(a, ast.Starred) for a in args):
                return None
            if any(k.arg is None for k in keywords):
                return None
            holes = [*path.holes]
            for given in [*args, *(k.value for k in keywords)]:
                if not any(isinstance(n, ast.Name) and n.id in drawn for n in ast.walk(given)):
                    holes.append(given)
                elif not _only_attributes(given):
                    return None
            roots = {n.id: None for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id in drawn}
            content = frozenset(range(len(path.holes), len(holes)))
            return Found(statement, holes, dict(roots), set(), DRAW, content, _key_positions(owner))
    return None


def _only_attributes(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and _only_attributes(node.value))


def collected_function(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`heapq.heappush(heap, e)`, `np.add.at(acc, i, e)`."""
    match statement:
        case ast.Expr(value=ast.Call(func=func, args=[first, *rest], keywords=[])):
            path = path_of(first)
            known = REPLAYED_FUNCTIONS | SETTING_FUNCTIONS
            if path is None or path.root in bound or ast.unparse(func) not in known:
                return None
            if any(isinstance(a, ast.Starred) for a in rest):
                return None
            holes = [*path.holes, *rest]
            content = frozenset() if ast.unparse(func) in SETTING_FUNCTIONS else frozenset(range(len(holes)))
            return Found(statement, holes, {path.root: path.attribute}, set(), "call", content)
    return None


def printed(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`print(x, file=f)`: the text is made on the worker and written here."""
    match statement:
        case ast.Expr(
            value=ast.Call(func=ast.Name(id="print") as func, args=args, keywords=keywords) as call
        ):
            given = {k.arg: k.value for k in keywords}
            path = path_of(given["file"]) if "file" in given else None
            if path is None or path.root in bound or None in given:
                return None
            shaped = [k for k in keywords if k.arg in ("sep", "end")]
            text = ast.Call(ast.Name(TEXT, ast.Load()), args, shaped)
            others = [k for k in keywords if k.arg not in ("sep", "end")]
            printed = ast.Call(func, [text], [*others, ast.keyword("end", ast.Constant(""))])
            made = ast.copy_location(ast.Expr(printed), statement)
            for node in (text, printed):
                ast.copy_location(node, call)
            ast.fix_missing_locations(made)
            return Found(made, [text, *path.holes], {path.root: path.attribute}, set(), "call")
    return None


def item_write(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`out[k] = e`, `df.loc[i, 'c'] = e`, `state.best = e`, and the augmented forms."""
    match statement:
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute() as target], value=value):
            method = "item" if isinstance(target, ast.Subscript) else "attribute"
        case ast.AugAssign(target=ast.Subscript() | ast.Attribute() as target, value=value):
            method = "augmented"
        case ast.AnnAssign(target=ast.Subscript() as target, value=ast.expr() as value):
            method = "item"
        case _:
            return None
    path = path_of(target)
    if path is None or path.root in bound:
        return None
    if method == "item" and isinstance(target, ast.Subscript) and _is_length(target.slice, path.root):
        holes = [value, *path.holes[:-1]]
        before = frozenset(range(1, len(holes)))
        return Found(statement, holes, {path.root: None}, set(), "item", frozenset({0}), before)
    if method == "item" and _reads_own_key(value, target, path.root):
        return _own_key(statement, target, value, path)
    # Python evaluates the value of a plain assignment before the target's keys, of an augmented one after
    # them.
    ahead = [value, *path.holes] if method != "augmented" else [*path.holes, value]
    place = 0 if method != "augmented" else len(path.holes)
    keys = frozenset(range(len(ahead))) - {place}
    return Found(statement, ahead, {path.root: path.attribute}, set(), method, frozenset({place}), keys)


def _is_length(key: ast.expr, root: str) -> bool:
    """`len(df)`, `len(df.index)`: where the next item of what an outer name stands for goes."""
    match key:
        case ast.Call(func=ast.Name(id="len"), args=[ast.Name(id=name)], keywords=[]):
            return name == root
        case ast.Call(
            func=ast.Name(id="len"),
            args=[ast.Attribute(value=ast.Name(id=name), attr="index")],
            keywords=[],
        ):
            return name == root
    return False


def several_targets(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`a[i], b[i] = f(x)`: recognised where every target is an item of an outer object."""
    match statement:
        case ast.Assign(targets=[ast.Tuple(elts=elts)], value=value) if elts:
            paths = [path_of(e) if isinstance(e, ast.Subscript | ast.Attribute) else None for e in elts]
            if any(p is None or p.root in bound for p in paths):
                return None
            known = [p for p in paths if p is not None]
            holes = [value, *(h for p in known for h in p.holes)]
            roots: dict[str, str | None] = {}
            for path in known:
                roots[path.root] = path.attribute if path.root not in roots else None
            return Found(
                statement, holes, roots, set(), "items", frozenset({0}), frozenset(range(1, len(holes)))
            )
    return None


def item_delete(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`del d[k]`."""
    match statement:
        case ast.Delete(targets=[ast.Subscript() as target]):
            path = path_of(target)
            if path is None or path.root in bound:
                return None
            holes = list(path.holes)
            return Found(statement, holes, {path.root: path.attribute}, set(), "delete", frozenset())
    return None


def _reads_own_key(value: ast.expr, target: ast.expr, root: str) -> bool:
    return isinstance(target, ast.Subscript) and any(
        isinstance(n, ast.Name) and n.id == root for n in ast.walk(value)
    )


def _own_key(
    statement: ast.stmt, target: ast.Subscript | ast.Attribute, value: ast.expr, path: Path
) -> Found | None:
    """`n[w] = n.get(w, 0) + 1`, `n[w] = max(n[w], e)`: reads of the root only at the key that is written."""
    if (
        not isinstance(target, ast.Subscript)
        or not isinstance(target.value, ast.Name)
        or len(path.holes) != 1
    ):
        return None
    root, key = path.root, ast.dump(target.slice)
    if not is_simple(target.slice):
        return None
    holes: list[ast.expr] = []

    def mentions(node: ast.AST) -> bool:
        return any(isinstance(n, ast.Name) and n.id == root for n in ast.walk(node))

    def visit(node: ast.expr) -> bool:
        if not mentions(node):
            holes.append(node)
            return True
        match node:
            case ast.Subscript(value=ast.Name(), slice=inner) if ast.dump(inner) == key:
                holes.append(inner)
                return True
            case ast.Call(
                func=ast.Attribute(value=ast.Name(), attr="get"), args=[first, *default], keywords=[]
            ):
                if ast.dump(first) != key or any(mentions(d) for d in default):
                    return False
                holes.extend([first, *default])
                return True
            case ast.BinOp(left=left, op=op, right=right) if any(isinstance(op, c) for c in CHAINS):
                return visit(left) and visit(right)
            case ast.Call(func=func, args=args, keywords=[]) if ast.unparse(func) in ("max", "min"):
                return all(visit(a) for a in args)
        return False

    if not visit(value):
        return None
    holes.append(target.slice)
    return Found(statement, holes, {root: None}, set(), "own", frozenset(), frozenset({len(holes) - 1}))


def is_simple(node: ast.expr) -> bool:
    """Whether evaluating `node` once more, or needlessly, changes nothing.

    Names, constants, attributes, items of them.
    """
    match node:
        case ast.Name() | ast.Constant():
            return True
        case ast.Attribute(value=value) | ast.UnaryOp(operand=value):
            return is_simple(value)
        case ast.Subscript(value=value, slice=key):
            return is_simple(value) and is_simple(key)
        case ast.Tuple(elts=elts):
            return all(map(is_simple, elts))
        case ast.BinOp(left=left, right=right):
            return is_simple(left) and is_simple(right)
    return False


def _key_positions(owner: ast.expr) -> frozenset[int]:
    path = path_of(owner)
    return frozenset(range(len(path.holes))) if path is not None else frozenset()
