"""What calls in a loop change of objects from outside, as far as the source of the notebook's code tells."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import io
import itertools
import textwrap
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ipyparcache.analysis import refusals
from ipyparcache.analysis.changing import REPLAYED_METHODS, changed_roots, in_place, path_of
from ipyparcache.analysis.flow import bound_names, parameters_of
from ipyparcache.analysis.parfor import Parfor
from ipyparcache.analysis.refusals import Refusal
from ipyparcache.cells.facts import parameters_changed_by

#: Methods by which objects of these libraries learn, and so change.
_LEARNING = frozenset({"fit", "partial_fit", "fit_transform", "fit_predict"})
_LEARNERS = frozenset({"sklearn", "xgboost", "lightgbm", "catboost", "keras", "imblearn"})
#: Methods by which an image of Pillow's changes.
_PAINTING = frozenset(
    {"putpixel", "paste", "putdata", "putalpha", "putpalette", "thumbnail", "alpha_composite", "frombytes"}
)
#: Containers of Python's own that change.
_CONTAINERS = frozenset({list, dict, set, deque, Counter, OrderedDict, defaultdict, bytearray, io.StringIO})
_LOOKED_AT = 100  # elements of a container whose kinds are asked for
#: Methods that run when an object is made.
_MAKING = ("__new__", "__init__", "__post_init__")


def change_by_call(
    parfor: Parfor, namespace: Mapping[str, Any], is_user_code: Callable[[object], bool]
) -> Refusal | None:
    """Why the loop is refused: a call in its body changes an object from outside, or a class."""
    remembered = _change_of_remembered(parfor, namespace)
    if remembered is not None:
        return remembered
    for node in ast.walk(parfor.body):
        if isinstance(node, ast.For):
            inner = _inner_change(node, parfor, namespace, is_user_code)
            if inner is not None:
                return inner
        asked = _change_by_asking(node, parfor, namespace, is_user_code)
        if asked is not None:
            return asked
        if not isinstance(node, ast.Call):
            continue
        for part in (*node.args, *(k.value for k in node.keywords)):
            handed = _change_by_handing(part, parfor, namespace)
            if handed is not None:
                return handed
        path = path_of(node.func)
        if path is None or path.holes or path.root not in parfor.reads or path.root not in namespace:
            continue
        kept = _kept_by(_value_of(node.func, namespace), node, namespace)
        if kept is not None:
            return refusals.ChangesWhatItKeeps(node.lineno, ast.unparse(node.func), kept)
        found = _changed(node.func, namespace, is_user_code)
        if found is not None and path.root not in {refit.root for refit in parfor.refits}:
            what, function = found
            return refusals.ChangedByMethod(node.lineno, what, function)
    return None


def _change_of_remembered(parfor: Parfor, namespace: Mapping[str, Any]) -> Refusal | None:
    """Why the loop is refused: an object that a `functools.cache` keeps is changed."""
    changed = {root for node in ast.walk(parfor.body) for root, _ in changed_roots(node)}
    for node in ast.walk(parfor.body):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call) if name in changed:
                pass
            case ast.Call(func=ast.Attribute(value=ast.Call() as call, attr=method)) if (
                method in REPLAYED_METHODS
            ):
                pass
            case _:
                continue
        path = path_of(call.func)
        if path is None or path.holes or path.root not in namespace:
            continue
        if isinstance(_value_of(call.func, namespace), functools._lru_cache_wrapper):
            return refusals.ChangesRemembered(call.lineno, ast.unparse(call.func))
    return None


def _change_by_handing(part: ast.expr, parfor: Parfor, namespace: Mapping[str, Any]) -> Refusal | None:
    """Why a call may not be given this: an iterator, or a function that changes a global."""
    if not isinstance(part, ast.Name) or part.id not in parfor.reads:
        return None
    value = namespace.get(part.id)
    if type(value).__module__ in ("builtins", "itertools") and isinstance(value, Iterator):
        return refusals.TakenFrom(part.lineno, part.id)
    helper = parfor.facts.helpers.get(part.id)
    if helper is not None and isinstance(value, types.FunctionType):
        if helper.writes:
            return refusals.GlobalWrite(part.lineno, min(helper.writes), part.id)
        if helper.mutates:
            return refusals.GlobalChange(part.lineno, min(helper.mutates), part.id)
    return None


def _change_by_asking(
    node: ast.AST, parfor: Parfor, namespace: Mapping[str, Any], is_user_code: Callable[[object], bool]
) -> Refusal | None:
    """Why the loop is refused: an item, an attribute or an operator changes the object that is asked."""
    owner: ast.expr
    match node:
        case ast.Subscript(value=owner, ctx=ast.Load()):
            methods: tuple[str, ...] = ("__getitem__",)
        case ast.Attribute(value=owner, attr=name, ctx=ast.Load()):
            methods = (name,)
        case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[owner]):
            methods = ("__contains__",)
        case ast.BinOp(left=owner, op=op):
            methods = (f"__{_OPERATORS.get(type(op), '')}__",)
        case ast.withitem(context_expr=owner):
            methods = ("__enter__", "__exit__")
        case ast.For(iter=owner) | ast.comprehension(iter=owner):
            methods = ("__iter__", "__next__")
        case ast.Call(func=ast.Name(id="len" | "bool" | "str" | "repr" | "iter" as name), args=[owner]):
            methods = (f"__{name}__",)
        case _:
            return None
    path = path_of(owner)
    if path is None or path.holes or path.root not in parfor.reads or path.root in parfor.changed:
        return None
    value = _value_of(owner, namespace)
    kind = type(value)
    if not is_user_code(kind.__module__):
        return None
    for method in methods:
        found = inspect.getattr_static(kind, method, None)
        if isinstance(node, ast.Attribute):
            found = found.fget if isinstance(found, property) else None
        if isinstance(found, types.FunctionType) and _changes_first(found, kind):
            text = ast.unparse(owner)
            return refusals.ChangedByMethod(owner.lineno, text, f"{text}.{method}")
    return None


_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "truediv",
    ast.BitOr: "or",
    ast.BitAnd: "and",
    ast.LShift: "lshift",
    ast.RShift: "rshift",
    ast.MatMult: "matmul",
}


def _inner_change(
    loop: ast.For, parfor: Parfor, namespace: Mapping[str, Any], is_user_code: Callable[[object], bool]
) -> Refusal | None:
    """`for t in teams: t.points += 3` in the body: the elements are those of all iterations."""
    for target, place in _element_names(loop.target, loop.iter):
        path = path_of(place)
        if (
            path is None
            or path.holes
            or path.root not in parfor.reads
            or target in set().union(*map(bound_names, loop.body))
        ):
            continue
        container = _value_of(place, namespace)
        if not isinstance(container, list | dict | tuple | set | deque):
            continue
        values = container.values() if isinstance(container, dict) else container
        elements = {type(obj): obj for obj in itertools.islice(values, _LOOKED_AT)}
        for node in (part for statement in loop.body for part in ast.walk(statement)):
            line = getattr(node, "lineno", loop.lineno)
            if any(root == target and _changes(at, target, elements) for root, at in changed_roots(node)):
                return refusals.InnerElementChanged(loop.lineno, target, path.root, line)
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name)) as called) if name == target:
                    for obj in elements.values():
                        if _changed(called, {**namespace, target: obj}, is_user_code) is not None:
                            return refusals.InnerElementChanged(loop.lineno, target, path.root, line)
    return None


def _element_names(target: ast.expr, iterable: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """The names of a loop that stand for elements of a container, each with the container."""
    match target, iterable:
        case ast.Name(id=name), ast.Call(func=ast.Attribute(value=owner, attr="values"), args=[]):
            yield name, owner
        case ast.Tuple(elts=[_, inner]), ast.Call(func=ast.Attribute(value=owner, attr="items"), args=[]):
            if isinstance(inner, ast.Name):
                yield inner.id, owner
        case ast.Tuple(elts=[_, inner]), ast.Call(func=ast.Name(id="enumerate"), args=[owner, *_]):
            yield from _element_names(inner, owner)
        case ast.Tuple(elts=parts), ast.Call(func=ast.Name(id="zip"), args=owners, keywords=[]):
            for part, owner in zip(parts, owners, strict=False):
                yield from _element_names(part, owner)
        case ast.Name(), ast.Call(func=ast.Name(id="list" | "sorted" | "reversed"), args=[owner, *_]):
            yield from _element_names(target, owner)
        case ast.Name(id=name), ast.Name() | ast.Attribute():
            yield name, iterable


def _changes(place: ast.AST, target: str, elements: Mapping[type, object]) -> bool:
    """Whether what looks like a change of an element is one; a method may be any, if it is no container's."""
    if not (isinstance(place, ast.Call) and isinstance(place.func, ast.Attribute)) or in_place(place):
        return True
    path = path_of(place.func.value)
    if path is None or path.root != target:  # it is given to a function
        return True
    return any(type(_value_of(place.func.value, {target: obj})) in _CONTAINERS for obj in elements.values())


def _kept_by(function: object, call: ast.Call, namespace: Mapping[str, Any]) -> str | None:
    """What a function of the notebook, or a method of a container, changes of what it keeps between calls."""
    if isinstance(function, types.BuiltinMethodType) and isinstance(call.func, ast.Name):
        changes = type(function.__self__) in _CONTAINERS and function.__name__ in REPLAYED_METHODS
        return f"the object of `{function.__name__}`" if changes else None
    if isinstance(function, functools.partial) and isinstance(function.func, types.FunctionType):
        kept = function.args
        if any(n < len(kept) and type(kept[n]) in _CONTAINERS for n in parameters_changed_by(function.func)):
            return "an argument that `partial` holds"
        return None
    if not isinstance(function, types.FunctionType) or function.__globals__ is not namespace:
        return None
    own = set(function.__code__.co_freevars)
    for step in dis.get_instructions(function.__code__) if own else ():
        if step.opname == "STORE_DEREF" and step.argval in own:
            return f"`{step.argval}` of the function around it"
    around = _changed_around(function.__code__) if own else None
    if around is not None:
        return f"`{around}` of the function around it"
    if any(isinstance(part, ast.Starred) for part in call.args) or any(k.arg is None for k in call.keywords):
        return None
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    defaults = dict(
        zip(reversed(names[: code.co_argcount]), reversed(function.__defaults__ or ()), strict=False)
    )
    defaults |= function.__kwdefaults__ or {}
    given = {*names[: len(call.args)], *(k.arg for k in call.keywords)}
    for name in (names[n] for n in parameters_changed_by(function) if n < len(names)):
        if name not in given and type(defaults.get(name)) in _CONTAINERS:
            return f"the default of its parameter `{name}`"
    return None


@functools.lru_cache(maxsize=1024)
def _changed_around(code: types.CodeType) -> str | None:
    """A variable of the function around this one that its code changes in place."""
    node = _source_of(code)
    if node is None:
        return None
    roots = {root for part in ast.walk(node) for root, _ in changed_roots(part)}
    return min(roots.intersection(code.co_freevars), default=None)


def changes_itself(iterable: object, is_user_code: Callable[[object], bool]) -> bool:
    """Whether an object of the notebook visibly changes as it hands out elements."""
    kind = type(iterable)
    if not is_user_code(kind.__module__):
        return False
    found = (inspect.getattr_static(kind, name, None) for name in ("__iter__", "__next__", "__getitem__"))
    return any(
        isinstance(function, types.FunctionType) and _changes_first(function, kind) for function in found
    )


def _changed(
    called: ast.expr, namespace: Mapping[str, Any], is_user_code: Callable[[object], bool]
) -> tuple[str, str] | None:
    """What a call of this expression changes, and how the function is called that does it."""
    name = ast.unparse(called)
    if isinstance(called, ast.Attribute):
        owner = _value_of(called.value, namespace)
        kind = type(owner)
        text = ast.unparse(called.value)
        if called.attr in _PAINTING and any(base.__module__ == "PIL.Image" for base in kind.__mro__):
            return text, name
        if called.attr in _LEARNING and kind.__module__.partition(".")[0] in _LEARNERS:
            return text, name
        if isinstance(owner, type):
            if not is_user_code(owner.__module__):
                return None
            method = inspect.getattr_static(owner, called.attr, None)
            inner = method.__func__ if isinstance(method, classmethod) else None
            changes = isinstance(inner, types.FunctionType) and _changes_first(inner, owner)
            return (text, name) if changes else None
        if not is_user_code(kind.__module__):
            return None
        method = inspect.getattr_static(kind, called.attr, None)
        return (
            (text, name) if isinstance(method, types.FunctionType) and _changes_first(method, kind) else None
        )
    value = _value_of(called, namespace)
    if isinstance(value, type) and is_user_code(value.__module__):
        return (value.__name__, name) if _counts(value) else None
    if isinstance(value, types.MethodType) and is_user_code(type(value.__self__).__module__):
        changes = isinstance(value.__func__, types.FunctionType) and _changes_first(
            value.__func__, type(value.__self__)
        )
        return (name, name) if changes else None
    if is_user_code(type(value).__module__) and not isinstance(value, type | types.FunctionType):
        method = inspect.getattr_static(type(value), "__call__", None)
        if isinstance(method, types.FunctionType) and _changes_first(method, type(value)):
            return name, name
    return None


def _value_of(node: ast.expr, namespace: Mapping[str, Any]) -> object:
    """What a name, or a plain attribute of it, stands for, without running code for it."""
    if isinstance(node, ast.Name):
        return namespace.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _value_of(node.value, namespace)
        own = getattr(owner, "__dict__", {})
        return own.get(node.attr) if isinstance(own, dict | types.MappingProxyType) else None
    return None


def _changes_first(function: types.FunctionType, kind: type) -> bool:
    """Whether a method visibly changes its object, itself or by another method that it calls on it."""
    seen: set[str] = set()
    waiting = [function]
    while waiting:
        changed, called = _facts_of(waiting.pop())
        if changed:
            return True
        for name in called - seen:
            seen.add(name)
            other = inspect.getattr_static(kind, name, None)
            if isinstance(other, types.FunctionType):
                waiting.append(other)
    return False


def _counts(kind: type) -> bool:
    """Whether making an object of a class changes the class: a counter, a list of all objects."""
    for name in _MAKING:
        function = inspect.getattr_static(kind, name, None)
        if isinstance(function, staticmethod):  # what `__new__` becomes
            function = function.__func__
        if isinstance(function, types.FunctionType) and _changes_class(function, kind):
            return True
    return False


@functools.lru_cache(maxsize=1024)
def _facts_of(function: types.FunctionType) -> tuple[bool, frozenset[str]]:
    """Whether a method changes its first parameter in place, and the methods that it calls on it."""
    node = _source_of(function)
    if node is None or not parameters_of(node.args):
        return False, frozenset()
    first = parameters_of(node.args)[0]
    changed = any(root == first for part in ast.walk(node) for root, _ in changed_roots(part))
    called = {
        part.func.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Call)
        and isinstance(part.func, ast.Attribute)
        and isinstance(part.func.value, ast.Name)
        and part.func.value.id == first
    }
    return changed, frozenset(called)


def _changes_class(function: types.FunctionType, kind: type) -> bool:
    node = _source_of(function)
    if node is None or not parameters_of(node.args):
        return False
    first = parameters_of(node.args)[0]
    shared = {
        name
        for name, value in vars(kind).items()
        if type(value) in (list, dict, set) or isinstance(value, itertools.count)
    }
    is_new = function.__name__ == "__new__"
    stores = (p for p in ast.walk(node) if isinstance(p, ast.Attribute) and not isinstance(p.ctx, ast.Load))
    if any(_is_class(part.value, first, kind, is_new) for part in stores):
        return True
    own = {text for part in ast.walk(node) for text in _assigned(part, first)}
    return any(
        path is not None and path.root in (first, kind.__name__) and path.attribute in shared - own
        for part in ast.walk(node)
        for _, place in changed_roots(part)
        for path in [_path_of_place(place)]
    )


def _path_of_place(place: ast.AST) -> Any:
    match place:
        case ast.Call(func=ast.Attribute(value=owner)):
            return path_of(owner)
        case ast.Call(func=ast.Name(id="next"), args=[taken, *_]):
            return path_of(taken)
    return path_of(place) if isinstance(place, ast.Subscript) else None


def _assigned(part: ast.AST, first: str) -> Iterator[str]:
    """The attributes that an object gets of its own."""
    match part:
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name == first and not isinstance(
            part.ctx, ast.Load
        ):
            yield attribute


def _is_class(node: ast.expr, first: str, kind: type, is_new: bool) -> bool:
    """Whether an expression stands for the class: `P`, `type(self)`, `self.__class__`, `cls` of `__new__`."""
    match node:
        case ast.Name(id=name):
            return name == kind.__name__ or (is_new and name == first)
        case ast.Call(func=ast.Name(id="type"), args=[ast.Name(id=name)]):
            return name == first
        case ast.Attribute(value=ast.Name(id=name), attr="__class__"):
            return name == first
    return False


def _source_of(
    function: types.FunctionType | types.CodeType,
) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):
        return None
    node = tree.body[0] if tree.body else None
    return node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None
