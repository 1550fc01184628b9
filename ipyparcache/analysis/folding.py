"""Expressions that fold one more value into what a variable stands for."""

from __future__ import annotations

import ast

from ipyparcache.analysis.collected import CHAINS

#: `x = F(x, e)` with one of these is a reduction; a list or tuple around `x` counts.
FOLDING_FUNCTIONS = frozenset(
    {"max", "min", "math.gcd", "gcd", "math.lcm"}
    | {
        f"{np}.{f}"
        for np in ("np", "numpy")
        for f in ("maximum", "minimum", "fmax", "fmin", "append", "concatenate")
    }
    | {
        f"{np}.{f}"
        for np in ("np", "numpy")
        for f in ("vstack", "hstack", "dstack", "add", "logical_or", "union1d")
    }
    | {f"{np}.{f}" for np in ("np", "numpy") for f in ("logical_and", "multiply", "column_stack")}
    | {"pd.concat", "pandas.concat", "operator.add", "operator.or_", "operator.mul"}
)


#: Methods by which `x = x.m(e)` is a reduction.
FOLDING_METHODS = frozenset(
    {"union", "intersection", "add", "combine_first", "concat", "vstack", "merge", "join"}
)


def folds(call: ast.Call, names: set[str]) -> bool:
    """Whether a call folds values into what a name stands for: `pd.concat([x, e])`, `x.merge(e)`."""
    if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        return False
    match call.func:
        case ast.Attribute(value=ast.Name(id=name), attr=method) if name in names:
            return method in FOLDING_METHODS
    return ast.unparse(call.func) in FOLDING_FUNCTIONS


def fold_holes(value: ast.expr, name: str) -> list[ast.expr] | None:
    """Operands beside `name` where `value` folds one more value into it, else None."""

    def mentions(node: ast.AST) -> bool:
        return any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node))

    def is_name(node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == name

    match value:
        case ast.BinOp(left=left, op=op, right=right):
            chain = next((c for c in CHAINS if isinstance(op, c)), None)
            if chain is None:
                return None
            if is_name(right) and not mentions(left):
                return [left]
            if mentions(right):
                return None
            if is_name(left):
                return [right]
            if isinstance(left, ast.BinOp) and isinstance(left.op, chain):
                inner = fold_holes(left, name)
                return None if inner is None else [*inner, right]
            return None
        case ast.Dict(keys=[None, *keys], values=[first, *values]) if is_name(first):
            holes = [part for part in [*keys, *values] if part is not None]
            return None if any(map(mentions, holes)) else _in_order(holes)
        case ast.List(elts=elts) | ast.Tuple(elts=elts) | ast.Set(elts=elts):
            own = [e for e in elts if isinstance(e, ast.Starred) and is_name(e.value)]
            holes = [e for e in elts if e not in own]
            if len(own) != 1 or any(map(mentions, holes)) or any(isinstance(h, ast.Starred) for h in holes):
                return None
            return holes
        case ast.BoolOp(values=[first, second]):
            if is_name(first) and not mentions(second) and _is_harmless(second):
                return [second]
            return [first] if is_name(second) and not mentions(first) else None
        case ast.Call(func=func, args=args, keywords=keywords) if ast.unparse(func) in FOLDING_FUNCTIONS:
            flat = [e for a in args for e in (a.elts if isinstance(a, ast.List | ast.Tuple) else [a])]
            if sum(map(is_name, flat)) != 1 or any(k.arg is None for k in keywords):
                return None
            holes = [a for a in flat if not is_name(a)] + [k.value for k in keywords]
            if any(map(mentions, holes)) or any(isinstance(h, ast.Starred) for h in holes):
                return None
            return holes
        case ast.Call(func=ast.Attribute(value=owner, attr=method), args=args, keywords=keywords) if is_name(
            owner
        ):
            holes = [*args, *(k.value for k in keywords)]
            if method not in FOLDING_METHODS or any(map(mentions, holes)):
                return None
            unclear = any(k.arg is None for k in keywords) or any(isinstance(a, ast.Starred) for a in args)
            return None if unclear else holes
    return None


def _in_order(holes: list[ast.expr]) -> list[ast.expr]:
    """Expressions as Python comes to them."""
    return sorted(holes, key=lambda hole: (hole.lineno, hole.col_offset))


def _is_harmless(node: ast.expr) -> bool:
    """Whether a test can be made although the serial loop would not make it: no call, nothing looked up."""
    allowed = (
        *(ast.Name, ast.Constant, ast.Compare, ast.UnaryOp, ast.BinOp, ast.BoolOp),
        *(ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
    )
    return all(isinstance(part, allowed) for part in ast.walk(node))
