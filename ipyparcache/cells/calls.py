"""What calls in a loop change of objects from outside, as far as the source of the notebook's code tells."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ipyparcache.analysis import refusals
from ipyparcache.analysis.changing import changed_roots, path_of
from ipyparcache.analysis.flow import parameters_of
from ipyparcache.analysis.parfor import Parfor
from ipyparcache.analysis.refusals import Refusal

#: Methods by which objects of these libraries learn, and so change.
_LEARNING = frozenset({"fit", "partial_fit", "fit_transform", "fit_predict"})
_LEARNERS = frozenset({"sklearn", "xgboost", "lightgbm", "catboost", "keras", "imblearn"})
#: Methods that run when an object is made.
_MAKING = ("__new__", "__init__", "__post_init__")


def change_by_call(
    parfor: Parfor, namespace: Mapping[str, Any], is_user_code: Callable[[object], bool]
) -> Refusal | None:
    """Why the loop is refused: a call in its body changes an object from outside, or a class."""
    for node in ast.walk(parfor.body):
        if not isinstance(node, ast.Call):
            continue
        path = path_of(node.func)
        if path is None or path.holes or path.root not in parfor.reads or path.root not in namespace:
            continue
        found = _changed(node.func, namespace, is_user_code)
        if found is not None and path.root not in {refit.root for refit in parfor.refits}:
            what, function = found
            return refusals.ChangedByMethod(node.lineno, what, function)
    return None


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
    shared = {name for name, value in vars(kind).items() if type(value) in (list, dict, set)}
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
    if isinstance(place, ast.Call) and isinstance(place.func, ast.Attribute):
        return path_of(place.func.value)
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


def _source_of(function: types.FunctionType) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):
        return None
    node = tree.body[0] if tree.body else None
    return node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None
