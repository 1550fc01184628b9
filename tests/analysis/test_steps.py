"""What is known of names before a cell is known behind its first statements, too."""

import ast

import pytest

from ipyparcache.analysis.behind import facts_behind
from ipyparcache.analysis.helpers import Facts, Helper
from ipyparcache.analysis.refusals import CarriedContainer
from ipyparcache.analysis.steps import Loop, steps_of

LOOP = "for i in items:\n    with quiet():\n        out[f(i)] = i"


def body_behind(before, facts):
    step = steps_of(ast.parse(f"{before}\n{LOOP}"), facts)[-1]
    assert isinstance(step, Loop)
    return ast.unparse(step.parfor.body)


@pytest.mark.parametrize(
    ("before", "known"),
    [
        ("x = 0", {"quiet"}),
        ("class quiet:\n    pass", set()),
        ("@contextlib.contextmanager\ndef quiet():\n    yield", set()),
        ("quiet = functools.partial(own, 1)", {"own"}),
    ],
)
def test_a_context_manager_of_the_notebook_stays_one_behind_other_statements(before, known):
    guarded = body_behind("pass", Facts(managers=frozenset({"quiet"})))

    assert guarded != body_behind("pass", Facts())
    assert body_behind(before, Facts(managers=frozenset(known))) == guarded


COLUMNS = "for c in cols:\n    df[c + '_log'] = df[c] + 1"
REFIT = "for k in ks:\n    model.fit(X[k])\n    out[k] = model.score(X)"


@pytest.mark.parametrize(
    "before",
    [
        "df = pd.read_csv('a.csv')",
        "df = other[other.a > 0].copy()",
        "df, n = pd.DataFrame(rows), 3",
        "df: object = load()",
        "raw = pd.concat(parts)\ndf = raw.dropna()",
    ],
)
def test_what_a_cell_makes_may_be_a_table_whose_columns_the_loop_writes(before):
    facts = Facts({"load": Helper()}, modules=frozenset({"pd"}), tables=frozenset({"other"}))

    step = steps_of(ast.parse(f"{before}\n{COLUMNS}"), facts)[-1]

    assert isinstance(step, Loop)
    assert [table.root for table in step.parfor.columns] == ["df"]


@pytest.mark.parametrize("before", ["df = {}", "df = np.zeros(3)", "df = dict(other)", "df = 3"])
def test_what_is_no_table_is_not_guessed_to_be_one(before):
    facts = Facts(modules=frozenset({"np"}), tables=frozenset({"other", "df"}))

    assert isinstance(steps_of(ast.parse(f"{before}\n{COLUMNS}"), facts), CarriedContainer)


@pytest.mark.parametrize(
    ("before", "guessed"),
    [
        ("model = Ridge(alpha=1)", {"model"}),
        ("model = linear_model.Ridge()", {"model"}),
        ("from sklearn.svm import SVC\nmodel = SVC()", {"model"}),
        ("import sklearn.svm as svm\nmodel = svm.SVC()", {"model"}),
        ("model = Own()", set()),
        ("model = Ridge()\nmodel = Own()", set()),
        ("Ridge = Own\nmodel = Ridge()", set()),
    ],
)
def test_what_a_cell_makes_with_scikit_learn_may_be_an_estimator_that_forgets(before, guessed):
    facts = Facts(makers=frozenset({"Ridge", "linear_model"}))

    for statement in ast.parse(before).body:
        facts = facts_behind(statement, facts)

    assert facts.guesses.learners == guessed
