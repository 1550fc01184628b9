import ast

import pytest

from ipyparcache.analysis.names import names_of


def names(source):
    return names_of(ast.parse(source).body)


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("x = 1\nprint(x)", {"print"}),
        ("print(x)\nx = 1", {"print", "x"}),
        ("x += 1", {"x"}),
        ("if flag:\n  x = 1\nprint(x)", {"flag", "print", "x"}),
        ("if flag:\n  x = 1\nelse:\n  x = 2\nprint(x)", {"flag", "print"}),
        ("for i in xs:\n  t = i\nprint(t)", {"xs", "print", "t"}),
        ("while True:\n  x = 1\n  break\nprint(x)", {"print", "x"}),
        ("try:\n  x = f()\nexcept KeyError:\n  pass\nprint(x)", {"f", "KeyError", "print", "x"}),
        ("try:\n  x = f()\nexcept KeyError:\n  x = 1\nprint(x)", {"f", "KeyError", "print"}),
        ("try:\n  x = f()\nfinally:\n  y = 1\nprint(x, y)", {"f", "print"}),
        ("with suppress(E):\n  x = 1\nprint(x)", {"suppress", "E", "print", "x"}),
        ("with open(p) as f:\n  x = f.read()\nprint(x)", {"open", "p", "print"}),
        ("match c:\n  case 1:\n    x = 1\n  case _:\n    x = 2\nprint(x)", {"c", "print"}),
        ("match c:\n  case 1:\n    x = 1\nprint(x)", {"c", "print", "x"}),
        ("ys = [x for x in xs if x > k]", {"xs", "k"}),
        ("[y := x for x in xs]\nprint(y)", {"xs", "print", "y"}),
        ("del x", {"x"}),
        ("x = 1\ndel x\nprint(x)", {"print", "x"}),
        ("a and (x := 1)\nprint(x)", {"a", "print", "x"}),
        ("f = lambda v, w=d: v + w + k", {"d", "k"}),
        ("o.attr = 1", {"o"}),
        ("d['k'] = 1", {"d"}),
        ("x: int = 1", {"int"}),
        ("raise_it = 1\nif c:\n  raise E\nelse:\n  x = 1\nprint(x)", {"c", "E", "print"}),
    ],
)
def test_a_name_is_read_if_some_path_loads_it_before_it_is_bound_for_certain(source, read):
    assert names(source).read == read


def test_a_function_that_is_only_defined_reads_nothing_yet():
    assert names("def price(x):\n  return x * rate").read == set()


def test_what_a_function_reads_counts_where_the_function_is_first_used():
    assert names("def f():\n  return x + k\nx = 1\nf()").read == {"k"}
    assert names("def f():\n  return x\nf()\nx = 1").read == {"x"}


def test_what_a_class_body_reads_counts_at_once_and_its_methods_when_it_is_used():
    source = "class T:\n  n = len(rows)\n  def m(self):\n    return scale"

    assert names(source).read == {"len", "rows"}
    assert names(source + "\nT().m()").read == {"len", "rows", "scale"}


def test_every_kind_of_binding_is_seen():
    source = (
        "import a.b, c as d\nfrom e import f\nfirst, *mid = g\nwith h as i:\n  pass\nfor j in k:\n  pass\n"
        "try:\n  pass\nexcept E as l:\n  pass\ndef m(): pass\nclass N: pass\nif (o := 1):\n  pass\n"
        "match p:\n  case {'q': q, **r}:\n    pass\n[s := 1 for t in u]"
    )

    assert names(source).bound == set("adfijlmNoqrs") | {"first", "mid"}


def test_a_name_bound_on_one_branch_only_is_not_bound_for_certain():
    found = names("if flag:\n  extra = 1\nr = 2")

    assert found.bound == {"extra", "r"}
    assert found.bound_for_certain == {"r"}


def test_names_that_a_called_function_declares_global_are_bound():
    assert "n" in names("def f():\n  global n\n  n = 1\nf()").bound
