"""The table of recognised forms: statements that the kernel can replay with operands from a worker."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ipyparcache.analysis.walk import leaves_of, statements_of

TEXT = "__ipyparcache_text__"


#: How a statement changes its root that draws into it.
DRAW = "draw"


#: How a statement changes its root that opens it, writes to it, and closes it.
FILE = "file"


#: Functions that write what they are given to a file that is open, or make what writes to it.
WRITING_FUNCTIONS = frozenset(
    {"print", "json.dump", "pickle.dump", "yaml.dump", "csv.writer", "csv.DictWriter"}
    | {"np.savetxt", "np.save"}
)


#: Methods of what is written to an open file.
WRITTEN_METHODS = frozenset({"to_csv", "to_string", "to_json", "to_html"})


#: Methods that change their object and whose result says what was in it.
TAKING_METHODS = frozenset({"pop", "popitem", "popleft", "setdefault"})


#: Methods that change their object and whose call, as a statement of its own, can be replayed in iteration
#: order.
REPLAYED_METHODS = frozenset(
    [
        "append",
        "add",
        "extend",
        "update",
        "insert",
        "discard",
        "appendleft",
        "extendleft",
        "setdefault",
        "remove",
        "clear",
        "sort",
        "reverse",
        "pop",
        "popleft",
        "popitem",
        "rotate",
        "subtract",
        "intersection_update",
        "difference_update",
        "symmetric_difference_update",
        "move_to_end",
        "write",
        "writelines",
        "writerow",
        "writerows",
        "put",
        "put_nowait",
        "fill",
        "itemset",
    ]
)


#: Methods of a progress bar, by which a loop tells what it is at; a loop over the bar may call them.
PROGRESS_METHODS = frozenset(
    {"set_postfix", "set_postfix_str", "set_description", "set_description_str", "refresh"}
)


#: Functions that may be asked about a carried value, as they neither change nor keep it.
ASKING_FUNCTIONS = frozenset({"len", "abs", "round", "int", "float", "str", "bool"})


#: Those that copy what they are given, so that a later change of the operand must not reach the target.
COPYING_METHODS = frozenset({"extend", "update", "extendleft", "subtract", "writelines", "writerows"})


#: Functions that change their first argument, for statements of their own.
REPLAYED_FUNCTIONS = frozenset(
    {"bisect.insort", "insort", "bisect.insort_right", "bisect.insort_left"}
    | {
        f"{heapq}{f}"
        for heapq in ("heapq.", "")
        for f in ("heappush", "heappop", "heapreplace", "heappushpop", "heapify")
    }
    | {"np.fill_diagonal", "np.place", "np.putmask"}
    | {"np.add.at", "numpy.add.at", "np.subtract.at", "np.maximum.at", "np.minimum.at", "np.put", "np.copyto"}
)


#: Functions that change their first argument, but not the same way in another process.
SHUFFLING_FUNCTIONS = frozenset({"random.shuffle", "np.random.shuffle", "numpy.random.shuffle"})


#: Those of `REPLAYED_FUNCTIONS`, keeping what they are given as it is.
SETTING_FUNCTIONS = frozenset({"setattr", "delattr", "operator.setitem", "operator.delitem"})


#: All functions that change their first argument, wherever they are called.
CHANGING_FUNCTIONS = REPLAYED_FUNCTIONS | SETTING_FUNCTIONS | SHUFFLING_FUNCTIONS | {"next"}


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


#: Classes of operators that may stand together in `x = x + a - b`.
CHAINS: tuple[tuple[type[ast.operator], ...], ...] = (
    (ast.Add, ast.Sub),
    (ast.Mult, ast.Div),
    (ast.BitOr,),
    (ast.BitAnd,),
    (ast.BitXor,),
    (ast.MatMult,),
)


def changed_roots(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Names whose objects this node itself (not its children) visibly changes in place."""
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=method)) as call) if method in REPLAYED_METHODS:
            yield from _owner_of(call)
        case ast.Call(func=ast.Attribute(attr=method)) if method in TAKING_METHODS or _in_place(node):
            yield from _owner_of(node)
        case ast.Call(func=ast.Name() | ast.Attribute() as function, args=[taken, *_]) if (
            ast.unparse(function) in CHANGING_FUNCTIONS
        ):
            path = path_of(taken)
            if path is not None:
                yield path.root, node
        case ast.Subscript() | ast.Attribute() if not isinstance(node.ctx, ast.Load):
            path = path_of(node)
            if path is not None:
                yield path.root, node
        case ast.keyword(arg="out", value=value):
            path = path_of(value)
            if path is not None:
                yield path.root, value


def _in_place(call: ast.Call) -> bool:
    """`df.drop(columns=c, inplace=True)`."""
    return any(
        k.arg == "inplace" and isinstance(k.value, ast.Constant) and k.value.value is True
        for k in call.keywords
    )


def _owner_of(call: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    assert isinstance(call.func, ast.Attribute)
    path = path_of(call.func.value)
    if path is not None:
        yield path.root, call


@dataclass(frozen=True)
class Path:
    """A name followed by attributes, items and `setdefault` calls.

    Attributes
    ----------
    attribute
        The first attribute after the name, where that comes first: what else is read of the name may then
        be apart.
    holes
        The keys, in the order in which they are evaluated.
    """

    root: str
    attribute: str | None
    holes: tuple[ast.expr, ...]


def path_of(node: ast.expr) -> Path | None:
    """`node` as a path, or None."""
    match node:
        case ast.Name(id=name):
            return Path(name, None, ())
        case ast.Attribute(value=value, attr=attribute):
            path = path_of(value)
            if path is None:
                return None
            first = attribute if isinstance(value, ast.Name) else path.attribute
            return Path(path.root, first, path.holes)
        case ast.Subscript(value=value, slice=key):
            path = path_of(value)
            return None if path is None else Path(path.root, path.attribute, (*path.holes, key))
        case ast.Call(func=ast.Attribute(value=value, attr="setdefault"), args=args, keywords=[]):
            path = path_of(value)
            return None if path is None else Path(path.root, path.attribute, (*path.holes, *args))
    return None


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


def _collected_call(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`out.append(e)`, `d[k].add(e)`, `d.setdefault(k, []).append(e)`, `state.losses.extend(e)`."""
    match statement:
        case ast.Expr(
            value=ast.Call(func=ast.Attribute(value=owner, attr=method), args=args, keywords=keywords) as call
        ):
            path = path_of(owner)
            if path is None or path.root in bound:
                return None
            if method not in REPLAYED_METHODS | PROGRESS_METHODS and not _in_place(call):
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


def _collected_function(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
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


def _printed(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
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


def _item_write(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
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


def _several_targets(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
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


def _item_delete(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`del d[k]`."""
    match statement:
        case ast.Delete(targets=[ast.Subscript() as target]):
            path = path_of(target)
            if path is None or path.root in bound:
                return None
            holes = list(path.holes)
            return Found(statement, holes, {path.root: path.attribute}, set(), "delete", frozenset())
    return None


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


def _conditional(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
    """`if x > best: best.

    Where = x, i`, and `if k not in d: d[k] = []`: tests of what is carried, with plain operands.
    """
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
            found = _collected_call(statement, bound, carried) or _collected_function(
                statement, bound, carried
            )
            if found is not None:
                [(root, attribute)] = found.roots.items()
                path = Path(root, attribute, ())
    return path if path is not None and path.root not in bound else None


def _made_on_demand(statement: ast.stmt, bound: set[str], carried: set[str]) -> Found | None:
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
    _conditional,
    _collected_call,
    _collected_function,
    _printed,
    _item_write,
    _several_targets,
    _item_delete,
    _reduction,
    _made_on_demand,
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
    if not _is_simple(target.slice):
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
                asked = asked or (_asks(node) and _is_simple(node.args[0]) and _counts(node))
                if asked or any(node is each for each in certain):
                    holes.append(node)
                    return True
                return False
            if _is_simple(node):
                holes.append(node)
                return True
        match node:
            case ast.Call(args=[asked_of]) if _asks(node):
                return expr(asked_of)
            case ast.Call(func=ast.Name(id="round"), args=[asked_of, ast.Constant()], keywords=[]):
                return expr(asked_of)
            case ast.Call(args=args, keywords=given) if _formats(node):
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


def _is_simple(node: ast.expr) -> bool:
    """Whether evaluating `node` once more, or needlessly, changes nothing.

    Names, constants, attributes, items of them.
    """
    match node:
        case ast.Name() | ast.Constant():
            return True
        case ast.Attribute(value=value) | ast.UnaryOp(operand=value):
            return _is_simple(value)
        case ast.Subscript(value=value, slice=key):
            return _is_simple(value) and _is_simple(key)
        case ast.Tuple(elts=elts):
            return all(map(_is_simple, elts))
        case ast.BinOp(left=left, right=right):
            return _is_simple(left) and _is_simple(right)
    return False


def _key_positions(owner: ast.expr) -> frozenset[int]:
    path = path_of(owner)
    return frozenset(range(len(path.holes))) if path is not None else frozenset()


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
