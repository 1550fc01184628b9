"""Estimators of scikit-learn that iterations fit anew: what they are before, and what is left in them."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: Those that fit parts in place of which it is not known here which.
_FIT_PARTS = frozenset({"FeatureUnion"})
#: Beginnings of attributes that are no parameters and yet are not learned.
_SETTINGS = ("_sklearn_", "_skl_", "_metadata_request")
#: Said of an iteration that failed.
FIT_NOT_KEPT = "what this iteration fitted before it failed is not kept"


def is_of_sklearn(value: object) -> bool:
    """Whether a value is a class, function or module of scikit-learn."""
    if isinstance(value, type | types.FunctionType):
        return str(value.__module__).partition(".")[0] == "sklearn"
    return isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] == "sklearn"


def forgets(value: object) -> bool:
    """Whether an object is an estimator that, when it is fitted, forgets all that it has learned before."""
    base = sys.modules.get("sklearn.base")
    if base is None or not isinstance(value, base.BaseEstimator):
        return False
    kind = type(value)
    if not kind.__module__.startswith("sklearn.") or kind.__name__ in _FIT_PARTS:
        return False
    try:
        parameters = value.get_params(deep=True)
        parts = parts_of(value)
    except Exception:
        return False
    # With a memory, a pipeline fits copies; one part in two places is fitted twice.
    if len(parts) > 1 and (parameters["memory"] is not None or len(set(map(id, parts))) < len(parts)):
        return False
    return all(map(forgets, parts[1:])) and not any(
        (name.rpartition("__")[2] == "warm_start" and given) or _goes_on(given)
        for name, given in parameters.items()
    )


def _goes_on(parameter: object) -> bool:
    """Whether a parameter is not the same when it is used again: a random generator, an iterator."""
    return type(parameter).__module__.startswith("numpy.random") or hasattr(parameter, "__next__")


def parts_of(estimator: Any) -> list[Any]:
    """The objects that change as an estimator is fitted: itself, and the steps of pipelines."""
    found = [estimator]
    if type(estimator).__name__ == "Pipeline":
        for _, step in estimator.steps:
            if step is not None and step != "passthrough":
                found += parts_of(step)
    return found


def put_learned(namespace: Mapping[str, Any], name: str, states: Sequence[dict[str, Any]]) -> None:
    """Give the live estimator of this name, and its parts, the attributes that an iteration has left."""
    for part, state in zip(parts_of(namespace[name]), states, strict=True):
        part.__dict__ = state


def make_fresh(estimator: Any) -> None:
    """Let an estimator forget, in place, all but its parameters and settings."""
    parameters = estimator.get_params(deep=False)
    own = vars(estimator)
    kept = {n: own[n] for n in own if n in parameters or n.startswith(_SETTINGS)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as that the class is deprecated
        made = vars(type(estimator)(**parameters))
    own.clear()
    own.update(made | kept)


class Fitted:
    """On a worker: the estimators that an iteration has fitted so far."""

    def __init__(self, namespace: Mapping[str, Any], log: Callable[[tuple[Any, ...]], None]) -> None:
        self.namespace = namespace
        self.log = log
        self.names: dict[str, None] = {}

    def __call__(self, name: str) -> None:
        """The iteration is about to fit this one."""
        for part in parts_of(self.namespace[name]):
            make_fresh(part)
        self.names[name] = None

    def end(self, sites: Mapping[str, int], failure: BaseException | None) -> None:
        """The iteration is over: log what is left in each, unless it failed."""
        if failure is None:
            for name in self.names:
                self.log((sites[name], [dict(vars(part)) for part in parts_of(self.namespace[name])]))
        elif self.names:
            failure.add_note(FIT_NOT_KEPT)
        self.names.clear()
