"""The table of recognised forms: statements that the kernel can replay with operands from a worker."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from ipyparcache.analysis.collected import (
    Found,
    collected_call,
    collected_function,
    item_delete,
    item_write,
    printed,
    several_targets,
)
from ipyparcache.analysis.conditionals import conditional, made_on_demand
from ipyparcache.analysis.folding import fold_holes

#: How a statement changes its root that opens it, writes to it, and closes it.
FILE = "file"


#: Functions that write what they are given to a file that is open, or make what writes to it.
WRITING_FUNCTIONS = frozenset(
    {"print", "json.dump", "pickle.dump", "yaml.dump", "csv.writer", "csv.DictWriter"}
    | {"np.savetxt", "np.save"}
)


_MAKING_PATHS = frozenset({"os.path.join", "Path", "pathlib.Path"})


#: Methods of what is written to an open file.
WRITTEN_METHODS = frozenset({"to_csv", "to_string", "to_json", "to_html"})


def _reduction(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`x += e`, `x = x + e`, `x = e + x`, `x = max(x, e)`, `df = pd.concat([df, e])`, `s = s.union(e)`."""
    match statement:
        case ast.AugAssign(target=ast.Name(id=name), value=value) if name in carried:
            return Found(statement, [value], {name: None}, {name}, "reduce", frozenset({0}))
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in carried:
            holes = fold_holes(value, name)
            if holes is not None:
                return Found(statement, holes, {name: None}, {name}, "reduce", frozenset(range(len(holes))))
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(
            targets
        ) == len(values):
            names = [t.id for t in targets if isinstance(t, ast.Name)]
            if len(names) != len(targets) or len(set(names)) != len(names) or not set(names) <= carried:
                return None
            parts = [fold_holes(value, name) for name, value in zip(names, values, strict=True)]
            if any(p is None for p in parts):
                return None
            holes = [h for p in parts if p is not None for h in p]
            every = frozenset(range(len(holes)))
            return Found(statement, holes, dict.fromkeys(names), set(names), "reduce", every)
    return None


def _written_block(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`with open('log.txt', 'a') as f: f.write(e)`: one file for all iterations, written in their order.

    Or `with path.open('a') as f`.
    """
    match statement:
        case ast.With(
            items=[ast.withitem(context_expr=ast.Call() as opened, optional_vars=ast.Name(id=file))],
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
    path = path_opened(call)
    if path is None:
        return False
    given = {k.arg: k.value for k in call.keywords}
    options = [*(a for a in call.args if a is not path), *given.values()]
    mode = given.get("mode", options[0] if options else None)
    if not (len(options) - len(given) < 2 and isinstance(mode, ast.Constant) and isinstance(mode.value, str)):
        return False
    writes = bool(set(mode.value) & set("aw")) and set(mode.value) <= set("awbt")
    calls = [part for part in ast.walk(path) if isinstance(part, ast.Call)]
    plain = all(isinstance(o, ast.Constant) for o in options) and not _mentions(path, bound)
    return writes and plain and all(ast.unparse(part.func) in _MAKING_PATHS for part in calls)


def path_opened(call: ast.Call) -> ast.expr | None:
    """What `open(path, …)` or `path.open(…)` opens."""
    match call.func:
        case ast.Name(id="open") if call.args:
            return call.args[0]
        case ast.Attribute(value=path, attr="open"):
            return path
    return None


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
