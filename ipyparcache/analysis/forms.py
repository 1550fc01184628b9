"""The table of recognised forms: statements that the kernel can replay with operands from a worker."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from ipyparcache.analysis.collected import (
    CHAINS,
    Found,
    collected_call,
    collected_function,
    item_delete,
    item_write,
    printed,
    several_targets,
)
from ipyparcache.analysis.conditionals import conditional, made_on_demand

#: How a statement changes its root that opens it, writes to it, and closes it.
FILE = "file"


#: Functions that write what they are given to a file that is open, or make what writes to it.
WRITING_FUNCTIONS = frozenset(
    {"print", "json.dump", "pickle.dump", "yaml.dump", "csv.writer", "csv.DictWriter"}
    | {"np.savetxt", "np.save"}
)


#: Methods of what is written to an open file.
WRITTEN_METHODS = frozenset({"to_csv", "to_string", "to_json", "to_html"})


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
FOLDING_METHODS = frozenset({"union", "intersection", "add", "combine_first", "concat", "vstack"})


def _reduction(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`x += e`, `x = x + e`, `x = e + x`, `x = max(x, e)`, `df = pd.concat([df, e])`, `s = s.union(e)`."""
    match statement:
        case ast.AugAssign(target=ast.Name(id=name), value=value) if name in carried:
            return Found(statement, [value], {name: None}, {name}, "reduce", frozenset({0}))
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in carried:
            holes = _fold_holes(value, name)
            if holes is not None:
                return Found(statement, holes, {name: None}, {name}, "reduce", frozenset(range(len(holes))))
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(
            targets
        ) == len(values):
            names = [t.id for t in targets if isinstance(t, ast.Name)]
            if len(names) != len(targets) or len(set(names)) != len(names) or not set(names) <= carried:
                return None
            parts = [_fold_holes(value, name) for name, value in zip(names, values, strict=True)]
            if any(p is None for p in parts):
                return None
            holes = [h for p in parts if p is not None for h in p]
            every = frozenset(range(len(holes)))
            return Found(statement, holes, dict.fromkeys(names), set(names), "reduce", every)
    return None


def _written_block(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`with open('log.txt', 'a') as f: f.write(e)`: one file for all iterations, written in their order."""
    match statement:
        case ast.With(
            items=[
                ast.withitem(
                    context_expr=ast.Call(func=ast.Name(id="open")) as opened, optional_vars=ast.Name(id=file)
                )
            ],
            body=body,
        ) if _opens_one_file(opened, bound):
            ours, holes = {file}, list[ast.expr]()
            for part in body:
                match part:
                    case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                        if not _cut_written(call, ours, holes):
                            return None
                        ours.add(name)
                    case ast.Expr(value=ast.Call() as call) if _mentions(call, ours):
                        if not _cut_written(call, ours, holes):
                            return None
                    case _:
                        return None
            every = frozenset(range(len(holes)))
            return Found(statement, holes, dict.fromkeys(sorted(ours)), ours, FILE, every, needless=every)
    return None


def _opens_one_file(call: ast.Call, bound: set[str]) -> bool:
    """Whether a file is opened to be written whose path is the same in all iterations."""
    given = {k.arg: k.value for k in call.keywords}
    options = [*call.args[1:], *given.values()]
    mode = call.args[1] if len(call.args) == 2 else given.get("mode")
    if not (len(call.args) in (1, 2) and isinstance(mode, ast.Constant) and isinstance(mode.value, str)):
        return False
    writes = bool(set(mode.value) & set("aw")) and set(mode.value) <= set("awbt")
    path = call.args[0]
    calls = [part for part in ast.walk(path) if isinstance(part, ast.Call)]
    plain = all(isinstance(o, ast.Constant) for o in options) and not _mentions(path, bound)
    return writes and plain and all(ast.unparse(part.func) == "os.path.join" for part in calls)


def _mentions(node: ast.AST, names: set[str]) -> bool:
    return any(isinstance(part, ast.Name) and part.id in names for part in ast.walk(node))


def _cut_written(node: ast.expr, ours: set[str], holes: list[ast.expr]) -> bool:
    """Cut out of a call what is written, apart from the file, and what writes to it."""
    if not _mentions(node, ours):
        holes += [] if isinstance(node, ast.Constant) else [node]
        return True
    match node:
        case ast.Name():
            return True
        case ast.Call(func=func, args=args, keywords=keywords):
            if any(isinstance(a, ast.Starred) for a in args) or any(k.arg is None for k in keywords):
                return False
            if isinstance(func, ast.Attribute) and ast.unparse(func) not in WRITING_FUNCTIONS:
                writes = _mentions(func.value, ours) or func.attr in WRITTEN_METHODS
                known = writes and _cut_written(func.value, ours, holes)
            else:
                known = ast.unparse(func) in WRITING_FUNCTIONS
            return known and all(_cut_written(a, ours, holes) for a in [*args, *(k.value for k in keywords)])
    return False


#: What a statement may be to be replayed, in the order in which it is asked. A new form is a row here.
RECOGNISED: tuple[Callable[[ast.stmt, set[str], set[str]], Found | None], ...] = (
    conditional,
    collected_call,
    collected_function,
    printed,
    item_write,
    several_targets,
    item_delete,
    _reduction,
    made_on_demand,
    _written_block,
)


def _fold_holes(value: ast.expr, name: str) -> list[ast.expr] | None:
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
                inner = _fold_holes(left, name)
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
        case ast.Call(func=ast.Attribute(value=owner, attr=method), args=args, keywords=[]) if is_name(owner):
            if method not in FOLDING_METHODS or any(map(mentions, args)):
                return None
            return list(args)
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


def template_nodes(found: Found) -> Iterator[ast.AST]:
    """Nodes of a replayed statement that run in the kernel, not those of its holes."""
    holes = {id(h) for h in found.holes}

    def visit(node: ast.AST) -> Iterator[ast.AST]:
        if id(node) in holes:
            return
        yield node
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(found.statement)


def looked_up_before(found: Found) -> dict[int, ast.expr]:
    """By the id of a hole: what Python has looked up of the changed object when it comes to that hole.

    Looking up may raise, or make an item as a `defaultdict` does, and happens whether or not the hole raises.
    """
    match found.statement:
        case ast.Expr(value=ast.Call(args=[first, *rest], keywords=[])) if found.method == "call":
            known = _on_the_way(first) | {id(hole): first for hole in rest}
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=owner), args=args, keywords=keywords)):
            given = [*args, *(k.value for k in keywords)] if found.method != "call" else []
            known = _on_the_way(owner) | {id(hole): owner for hole in given}
        case ast.Assign(targets=[ast.Subscript()], value=value) if found.method == "own":
            known = _beside_own_item(value, next(iter(found.roots)))
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute() as target]):
            known = _on_the_way(target)
        case ast.AugAssign(target=ast.Subscript() | ast.Attribute() as target, value=value):
            known = _on_the_way(target) | {id(value): target}
        case ast.Delete(targets=[ast.Subscript() as target]):
            known = _on_the_way(target)
        case _:
            known = {}
    return {hole: owner for hole, owner in known.items() if not isinstance(owner, ast.Name)}


def _on_the_way(node: ast.expr) -> dict[int, ast.expr]:
    """The same for the holes of a path."""
    match node:
        case ast.Attribute(value=value):
            return _on_the_way(value)
        case ast.Subscript(value=value, slice=key):
            return _on_the_way(value) | {id(key): value}
        case ast.Call(func=ast.Attribute(value=value), args=args):
            return _on_the_way(value) | {id(hole): value for hole in args}
    return {}


def _beside_own_item(value: ast.expr, root: str) -> dict[int, ast.expr]:
    """The same for the operands of `d[k] = d[k] + f(x)`."""
    known: dict[int, ast.expr] = {}
    seen: list[ast.expr] = []

    def visit(node: ast.expr) -> None:
        match node:
            case ast.Subscript(value=ast.Name(id=name)) if name == root:
                seen.append(node)
            case ast.BinOp(left=left, right=right):
                visit(left)
                visit(right)
            case ast.Call(args=args):
                for argument in args:
                    visit(argument)
        if seen:
            known.setdefault(id(node), seen[-1])

    visit(value)
    return known
