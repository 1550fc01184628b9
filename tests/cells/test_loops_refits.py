"""Estimators that every iteration fits anew: the live one is left as the last iteration left it."""

from __future__ import annotations

import pytest

from ipyparcache.cells.estimators import forgets, make_fresh
from ipyparcache.digest.objects import digest_of
from ipyparcache.errors import ChangeLost, LoopRefused
from tests.cells.sessions import describe, new_namespace, parallel, serial

np = pytest.importorskip("numpy")
pytest.importorskip("sklearn")

SETUP = """
import numpy as np
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 3)), rng.normal(size=40)
model, scaler, out, kept = Ridge(), StandardScaler(), [], []
"""
CELL = """
for k in range(4):
    Z = scaler.fit_transform(X[k:])
    model.fit(Z, y[k:])
    out.append(model.coef_)
    kept.append(model)
"""


def both(cell, setup=SETUP, **options):
    plain, tested = new_namespace(setup), new_namespace(setup)
    live = tested["model"]
    _, error = serial(plain, cell)
    host, raised, _ = parallel(tested, cell, **options)
    assert tested["model"] is live
    return (plain, error), (tested, raised), host


@pytest.mark.parametrize("options", [{"chunk": 1}, {"jobs": 1}, {"cached": True}])
def test_an_estimator_fitted_in_every_iteration_is_left_as_the_last_one_left_it(options):
    (plain, _), (tested, raised), _ = both(CELL, **options)

    assert raised is None
    assert describe(tested) == describe(plain)
    assert tested["out"][-1] is tested["model"].coef_
    assert all(kept is tested["model"] for kept in tested["kept"])


def test_iterations_that_fit_an_estimator_are_not_kept_and_that_is_said():
    _, _, host = both(CELL, cached=True)

    assert "it fits an object of the notebook" in "".join(host.notes)


def test_what_was_fitted_before_an_error_is_there_and_the_error_says_what_is_not():
    cell = "for k in range(5):\n    model.fit(X[k * 10:], y[k * 10:])\n    out.append(model.coef_)"

    (plain, error), (tested, raised), _ = both(cell)

    assert type(raised) is type(error) is ValueError
    assert "is not kept" in "".join(raised.__notes__)
    assert vars(tested["model"]).keys() == vars(plain["model"]).keys()
    assert (tested["model"].coef_ == plain["model"].coef_).all()


def test_what_an_estimator_keeps_from_before_its_fit_is_told_as_lost():
    _, (tested, raised), _ = both(CELL, SETUP + "model.mine = 1")

    assert isinstance(raised, ChangeLost)
    assert "keeps from before it is fitted" in str(raised)
    assert not hasattr(tested["model"], "coef_")


REFUSED = {
    "used_before_it_is_fitted": "    kept.append(model.get_params())\n    model.fit(X, y)",
    "fitted_in_a_try": "    try:\n        model.fit(X, y)\n    finally:\n        out.append(k)",
    "fitted_or_not": "    k and model.fit(X, y)\n    out.append(vars(model))",
    "used_behind_a_branch": "    if k:\n        model.fit(X, y)\n    out.append(vars(model))",
    "fitted_on_itself": "    model.fit(model.alpha * X, y)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_estimator_that_may_be_used_as_an_earlier_iteration_left_it_is_refused(name):
    namespace = new_namespace(SETUP)
    before = describe(namespace)

    _, error, _ = parallel(namespace, f"for k in range(3):\n{REFUSED[name]}")

    assert isinstance(error, LoopRefused)
    assert describe(namespace) == before


def test_threads_share_the_estimator_and_are_refused():
    _, error, _ = parallel(new_namespace(SETUP), CELL, backend="threads")

    assert isinstance(error, LoopRefused)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_each_estimator_forgets_when_it_is_fitted_what_it_knew():
    from sklearn.utils import all_estimators

    rng = np.random.default_rng(0)
    data = [(abs(rng.normal(size=(n, 4))), rng.integers(0, 2, n)) for n in (30, 26)]
    compared = 0
    for name, kind in all_estimators():
        fixed = {"random_state": 0} if "random_state" in kind._get_param_names() else {}
        try:
            again, fresh = kind(**fixed), kind(**fixed)
        except TypeError:  # made of others
            continue
        if not forgets(again):
            continue
        try:
            again.fit(*data[0]).fit(*data[1])
            fresh.fit(*data[0])
        except (ValueError, TypeError, AttributeError):  # wants other data
            continue
        make_fresh(fresh)
        fresh.fit(*data[1])
        compared += 1

        was, now = ({n: digest_of(v) for n, v in vars(e).items()} for e in (again, fresh))
        assert was == now, name

    assert compared > 100


@pytest.mark.parametrize("before", ["out = []", "out, other = [], model.get_params()"])
def test_statements_of_the_cell_before_the_loop_leave_it_an_estimator_that_is_fitted_anew(before):
    (plain, _), (tested, raised), host = both(before + CELL)

    assert raised is None
    assert describe(tested)["model"] == describe(plain)["model"]
    assert not host.notes


def test_an_estimator_that_the_cell_has_told_to_go_on_is_not_fitted_on_workers():
    setup = SETUP + "from sklearn.linear_model import SGDRegressor\nmodel = SGDRegressor(random_state=0)\n"
    cell = (
        "model.set_params(warm_start=True)\nfor k in range(3):\n    model.fit(X, y)\n    out.append(model.t_)"
    )
    plain, tested = new_namespace(setup), new_namespace(setup)
    serial(plain, cell)
    host, raised, _ = parallel(tested, cell)

    assert raised is None
    assert tested["out"] == plain["out"]
    assert "ran here" in "".join(host.notes)


@pytest.mark.parametrize(
    "before",
    [
        "model = Ridge(alpha=0.1)",
        "from sklearn.linear_model import LinearRegression\nmodel = LinearRegression()",
    ],
)
def test_an_estimator_that_the_cell_has_made_is_fitted_on_workers(before):
    plain, tested = new_namespace(SETUP), new_namespace(SETUP)
    serial(plain, f"{before}\n{CELL}")

    host, raised, _ = parallel(tested, f"{before}\n{CELL}")

    assert raised is None
    assert describe(tested) == describe(plain)
    assert not host.notes


STEPS = """
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures
inner = make_pipeline(StandardScaler(), PolynomialFeatures(2))
steps = [('nothing', 'passthrough'), ('before', inner), ('model', Ridge())]
model = Pipeline(steps{more})
"""
FITTED = """
for k in range(4):
    model.fit(X[k:], y[k:])
    out.append(model[-1].coef_)
    kept.append(model.named_steps['before'])
"""


@pytest.mark.parametrize("at_once", [False, True])
def test_a_pipeline_fitted_in_every_iteration_is_left_with_all_its_steps_as_the_last_one_left_it(at_once):
    made = STEPS.format(more="")
    before, cell = (SETUP, made + FITTED) if at_once else (SETUP + made, FITTED)
    plain, tested = new_namespace(before), new_namespace(before)
    serial(plain, cell)

    host, raised, _ = parallel(tested, cell)

    assert raised is None
    assert not host.notes
    assert describe(tested) == describe(plain)
    assert all(kept is tested["inner"] is tested["model"].steps[1][1] for kept in tested["kept"])
    assert tested["out"][-1] is tested["model"][-1].coef_


@pytest.mark.parametrize(
    ("more", "body"),
    [
        (", memory='kept'", FITTED),
        (")\ninner.steps[0] = ('other', inner.steps[1][1]", FITTED),
        ("", FITTED + "    out.append(inner.steps[0][1].mean_)\n"),
        (")\nsteps[2][1].set_params(random_state=np.random.RandomState(0)", FITTED),
    ],
)
def test_a_pipeline_is_refused_if_it_fits_copies_or_a_step_is_met_elsewhere_too(more, body):
    namespace = new_namespace(SETUP + STEPS.format(more=more))

    _, error, _ = parallel(namespace, body)

    assert isinstance(error, LoopRefused)
    assert not hasattr(namespace["model"][-1], "coef_")
