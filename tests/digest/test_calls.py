import math
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ipyparcache.digest import calls
from ipyparcache.digest.calls import FunctionDigest, Parameters, are_plain, digest_of_arguments


def made(text, name="f", **namespace):
    scope = {"__name__": "somewhere", **namespace}
    exec(textwrap.dedent(text), scope)
    return scope[name]


@pytest.fixture
def traversals(monkeypatch):
    """Counts how often a function is walked through."""
    counted = []
    real = calls._traversal_of

    def count(roots, sinks):
        counted.append(1)
        return real(roots, sinks)

    monkeypatch.setattr(calls, "_traversal_of", count)
    return counted


def test_a_function_is_walked_once_as_long_as_nothing_changes(traversals):
    function = FunctionDigest(made("n = 1\ndef g(x): return x\ndef f(x, y=2): return g(x) + n"))

    assert len({function.now() for _ in range(5)}) == 1
    assert len(traversals) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.__globals__.update(n=2),
        lambda f: f.__globals__.update(g=made("def g(x): return -x", "g")),
        lambda f: f.__globals__["table"].append(1),
        lambda f: f.__globals__["g"].__defaults__[0].append(1),
        lambda f: setattr(f, "__defaults__", (3,)),
        lambda f: setattr(
            f.__globals__["g"], "__code__", made("def g(x, items=[]): return -x", "g").__code__
        ),
        lambda f: f.__globals__.update(len=lambda x: 0),
    ],
    ids=["global", "helper", "mutable global", "mutable default", "default", "code of a helper", "builtin"],
)
def test_each_change_of_what_is_reached_is_another_digest(change):
    source = "n = 1\ntable = []\ndef g(x, items=[]): return x\ndef f(x, y=2): return g(x) + n + len(table)"
    f = made(source)
    function = FunctionDigest(f)
    before = function.now()
    change(f)

    assert function.now() != before


def test_closures_are_looked_at_in_each_call():
    make = made(
        "def make():\n    n = 1\n    def f(): return n\n"
        "    def put(v):\n        nonlocal n\n        n = v\n    return f, put",
        "make",
    )
    f, put = make()
    function = FunctionDigest(f)
    before = function.now()
    put(2)
    after = function.now()
    put(1)

    assert (after != before, function.now() == before) == (True, True)


@pytest.mark.parametrize(
    ("source", "quiet"),
    [
        ("def f(x): return x + 1", True),
        ("def g(x): return math.sin(x)\ndef f(x): return g(x)", True),
        ("def f(x): return np.sum(x) + np.pi", True),
        ("def f(x): return np.load(x)", False),
        ("def f(x): return open(x).read()", False),
        ("def f(x):\n    import os\n    return os.getcwd()", False),
        ("def f(x): return eval(x)", False),
        ("def f(x): return pathlib.Path(x)", False),
        ("def g(x): return open(x)\ndef f(x): return g(x)", False),
    ],
)
def test_what_can_ask_nothing_of_the_world_is_known(source, quiet):
    import pathlib

    function = FunctionDigest(made(source, math=math, np=np, pathlib=pathlib))
    function.now()

    assert function.is_quiet == quiet


@pytest.mark.parametrize(
    ("source", "is_input"),
    [
        ("def f(x): log.append(x)", False),
        # its jumps stand in the code of the function from Python 3.12 on
        ("def f(x): log.append((x, [i for i in range(3)])); return x", sys.version_info >= (3, 12)),
        ("def f(x):\n    def g(): log.extend([x])\n    g()", False),
        ("def f(x): return log.append(x)", True),
        ("def f(x): log.append(len(log))", True),
        ("def f(x): log.append(x if x else 1)", True),  # told apart only without jumps
        ("def f(x): log[0] = x", True),
        ("def f(x): return log", True),
    ],
)
def test_what_is_only_filled_is_no_input(source, is_input):
    log = []
    function = FunctionDigest(made(source, log=log))
    before = function.now()
    log.append("changed")

    assert (function.now() != before) == is_input


def test_arguments_are_named_by_parameter():
    parameters = Parameters(made("def f(a, b=2, *rest, k=3, **more): pass"), "f")

    assert (
        parameters.bind((1,), {})
        == parameters.bind((), {"a": 1})
        == [("a", 1), ("b", 2), ("*", ()), ("k", 3), ("**", [])]
    )
    assert parameters.bind((1, 2, 5), {"z": 1, "y": 2})[2:] == [
        ("*", (5,)),
        ("k", 3),
        ("**", [("y", 2), ("z", 1)]),
    ]


def test_what_arguments_share_counts():
    one = [1]

    assert digest_of_arguments([("a", [one, one])]) != digest_of_arguments([("a", [[1], [1]])])
    assert digest_of_arguments([("a", 1)]) != digest_of_arguments([("b", 1)])
    assert digest_of_arguments([("a", float("nan"))]) == digest_of_arguments([("a", -float("nan"))])


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (1, True),
        ([1, {"a": (2, None)}], True),
        (np.arange(3), True),
        (np.float64(1), True),
        (Path("x"), False),
        ([Path("x")], False),
        (np.array([Path("x")]), False),
        (open, False),
    ],
)
def test_arguments_that_can_do_nothing_are_known(value, plain):
    assert are_plain([("x", value)]) == plain
