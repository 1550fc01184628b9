import ast

import pytest

from ipyparcache.analysis.definitions import re_executable_definitions


def repeated(source):
    return [name for found in re_executable_definitions(ast.parse(source)) for name in found.names]


def test_imports_functions_and_classes_are_executed_again():
    assert repeated("import math\ndef f(x, k=3):\n  return x\nclass C(Base):\n  rows = list(sizes)") == [
        "math",
        "f",
        "C",
    ]


@pytest.mark.parametrize(
    "source",
    [
        "@register\ndef f(): pass",  # the decorator may note it somewhere
        "K = 2\ndef f(k=K): pass",  # the default belongs to the cell's own value
        "class C:\n  print('made')",
        "def f(): pass\nf = wrap(f)",
        "class C(make_base()): pass",
        "def f(x: note('x')): pass",
        "def f() -> note('r'): pass",
        "class C:\n  a: note('a') = 1",
    ],
)
def test_definitions_with_effects_or_rebound_inputs_are_not(source):
    assert repeated(source) == []


def test_classes_made_by_a_call_are_executed_again():
    assert repeated("Point = namedtuple('Point', 'x y')\nother = f('x')") == ["Point"]
