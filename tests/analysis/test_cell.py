import ast

import pytest

from ipyparcache.analysis.cell import (
    attributes_read,
    dynamic_uses,
    first_line_of,
    has_top_level_await,
    identity_text,
    names_in_strings,
    names_of,
    re_executable_definitions,
    star_imports,
)


def names(source):
    return names_of(ast.parse(source).body)


def repeated(source):
    return [name for found in re_executable_definitions(ast.parse(source)) for name in found.names]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = {'k': 1}  # comment", "x = {\n 'k':\n 1 }"),
        ("y = (1 + 2)", "y = 1+2"),
        ('s = "a"', "s = 'a'"),
    ],
)
def test_layout_quotes_and_comments_are_no_part_of_a_cells_identity(one, other):
    assert identity_text(ast.parse(one)) == identity_text(ast.parse(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [("x = 1", "x = True"), ("s = 'a # b'", "s = 'a # c'"), ("x = 0.0", "x = -0.0"), ("f(a, b)", "f(b, a)")],
)
def test_what_a_cell_does_is_its_identity(one, other):
    assert identity_text(ast.parse(one)) != identity_text(ast.parse(other))


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


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("exec(text)", "exec()"),
        ("x = eval('y')", "eval()"),
        ("globals()['a'] = 1", "globals()"),
        ("names = dir()", "dir()"),
        ("v = vars()", "vars()"),
        ("f = eval", "eval"),
        ("import __main__", "import __main__"),
        ("get_ipython().user_ns['x']", ".user_ns"),
        ("f.__globals__['x']", ".__globals__"),
        ("sys._getframe(1)", "._getframe"),
        ("inspect.stack()", ".stack"),
        ("sys.modules['__main__']", "'__main__'"),
        ("importlib.import_module('a' + b)", ".import_module"),
    ],
)
def test_a_look_up_by_a_computed_name_is_found(source, what):
    assert [use.what for use in dynamic_uses(ast.parse(source))] == [what]


@pytest.mark.parametrize(
    "source",
    [
        "vars(obj)",
        "dir(obj)",
        "df.eval('a + b')",
        "model.eval()",
        "np.stack(a)",
        "if __name__ == '__main__': go()",
    ],
)
def test_a_look_up_in_an_object_is_not_dynamic(source):
    assert dynamic_uses(ast.parse(source)) == []


def test_a_star_import_is_found_with_its_line():
    assert star_imports(ast.parse("x = 1\nfrom helpers import *")) == [(2, "helpers")]


def test_awaiting_inside_a_function_is_not_top_level():
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

    assert not has_top_level_await(ast.parse("async def f():\n  await g()"))
    assert has_top_level_await(compile("await g()", "<cell>", "exec", flags))
    assert has_top_level_await(compile("x = [i async for i in s]", "<cell>", "exec", flags))


def test_identifiers_in_strings_are_found():
    assert {"limit", "größe"} <= names_in_strings(ast.parse("df.query('a > @limit and größe < 3')"))


def test_attributes_taken_from_a_name_are_known_unless_it_is_used_otherwise():
    tree = ast.parse("a = sys.argv[0], sys.path\nb = f(os)\nos.getcwd()")

    assert attributes_read(tree, "sys") == {"argv", "path"}
    assert attributes_read(tree, "os") is None


def test_a_message_points_at_the_first_line_of_a_name():
    assert first_line_of(ast.parse("a = 1\nb = a\nc = b"), "b") == 2


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
