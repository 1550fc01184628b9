"""What is known of the names of a cell behind each of its statements, and what may be guessed of them.

A guess is asked only where a loop would be refused without it, and live values are asked before the loop
begins: where they tell otherwise, it runs in the kernel.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ipyparcache.analysis.changing import path_of
from ipyparcache.analysis.flow import bound_names
from ipyparcache.analysis.helpers import Facts, Guesses, helper_of
from ipyparcache.analysis.walk import leaves_of

#: Functions of pyplot, methods of figures and axes, that give axes or figures.
MAKING_AXES = frozenset(
    {"subplots", "subplot_mosaic", "figure", "add_subplot", "add_axes", "subplot", "axes", "gca", "gcf"}
    | {"twinx", "twiny", "inset_axes"}
)

#: Functions of modules that give a frame, beside those that read one.
_MAKING_TABLES = frozenset(
    {"DataFrame", "concat", "merge", "pivot_table", "crosstab", "get_dummies", "json_normalize"}
    | {"load_dataset", "from_dict", "from_records"}
)


def facts_behind(statement: ast.stmt, facts: Facts) -> Facts:
    """Facts when `statement` has run: what it binds is no longer what it was; its definitions are known."""
    names = bound_names(statement)
    helpers = {name: helper for name, helper in facts.helpers.items() if name not in names}
    modules = facts.modules - names
    if isinstance(statement, ast.FunctionDef):
        helpers[statement.name] = helper_of(statement, facts)
    elif isinstance(statement, ast.Import) or _is_import_from(statement, "tqdm"):
        modules = modules | names
    drawn = facts.drawn - names
    if isinstance(statement, ast.Assign) and _makes_axes(statement.value, facts):
        drawn |= {t.id for target in statement.targets for t in leaves_of(target) if isinstance(t, ast.Name)}
    managers = facts.managers - names
    if isinstance(statement, ast.ClassDef) or getattr(statement, "decorator_list", None):
        managers |= names  # they may be, or make, managers of the notebook's own
    elif any(isinstance(part, ast.Name) and part.id in facts.managers for part in ast.walk(statement)):
        managers |= names
    return Facts(
        helpers,
        modules,
        drawn,
        tables=facts.tables - names,
        managers=managers,
        learners=facts.learners - names,
        makers=(facts.makers - names) | (names if _is_import_from(statement, "sklearn") else frozenset()),
        guesses=_guesses_behind(statement, facts, names),
    )


def _guesses_behind(statement: ast.stmt, facts: Facts, names: frozenset[str] | set[str]) -> Guesses:
    tables = facts.guesses.tables - names
    learners = facts.guesses.learners - names
    for name, value in _assigned(statement):
        if _may_be_a_table(value, facts):
            tables |= {name}
        elif _is_made_by(value, facts.makers):
            learners |= {name}
    return Guesses(tables, learners)


def _assigned(statement: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """Names that a statement assigns, each with its value."""
    match statement:
        case ast.Assign(targets=[ast.Tuple(elts=places)], value=ast.Tuple(elts=values)):
            pairs = zip(places, values, strict=False)
            yield from ((place.id, value) for place, value in pairs if isinstance(place, ast.Name))
        case ast.Assign(targets=targets, value=value):
            yield from ((place.id, value) for place in targets if isinstance(place, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            yield name, value


def _makes_axes(value: ast.expr, facts: Facts) -> bool:
    """`plt.subplots(…)`, `fig.add_subplot(…)`, `ax.twinx()`: what a cell draws into in the lines below."""
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)):
        return False
    path = path_of(value.func.value)
    return value.func.attr in MAKING_AXES and path is not None and path.root in facts.modules | facts.drawn


def _may_be_a_table(value: ast.expr, facts: Facts) -> bool:
    """`pd.read_csv(…)`, `df[df.a > 0].copy()`, `load(…)` with a function of the notebook."""
    tables = facts.tables | facts.guesses.tables
    made: ast.expr = value
    while True:
        match made:
            case ast.Name(id=name):
                return made is not value and name in tables
            case ast.Call(func=ast.Attribute(value=owner, attr=method)):
                is_maker = method.startswith("read_") or method in _MAKING_TABLES
                if is_maker and _root(owner) in facts.modules:
                    return True
                made = owner
            case ast.Call(func=ast.Name(id=name)):
                return name in facts.helpers
            case ast.Attribute(value=owner) | ast.Subscript(value=owner):
                made = owner
            case _:
                return False


def _is_made_by(value: ast.expr, makers: frozenset[str]) -> bool:
    """`Ridge(alpha=1)`, `linear_model.Ridge()` with names that come from scikit-learn."""
    return isinstance(value, ast.Call) and _root(value.func) in makers


def _root(node: ast.expr) -> str | None:
    path = path_of(node)
    return None if path is None else path.root


def _is_import_from(statement: ast.stmt, library: str) -> bool:
    """Whether a statement imports a module of this library, or from one."""
    match statement:
        case ast.ImportFrom(module=str() as module):
            return module.partition(".")[0] == library
        case ast.Import(names=[ast.alias(name=module)]):
            return module.partition(".")[0] == library
    return False
