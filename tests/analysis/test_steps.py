"""What is known of names before a cell is known behind its first statements, too."""

import ast

import pytest

from ipyparcache.analysis.helpers import Facts
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
