import ast

import pytest

from ipyparcache.analysis.cell import (
    attributes_read,
    dynamic_uses,
    first_line_of,
    has_top_level_await,
    identifiers,
    identity_text,
    star_imports,
)


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
    ("source", "what"),
    [
        ("exec(text)", "exec()"),
        ("x = eval('y')", "eval()"),
        ("globals()['a'] = 1", "globals()"),
        ("typing.get_type_hints(A)", ".get_type_hints"),
        ("from typing import get_type_hints\nget_type_hints(A)", "get_type_hints"),
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


def test_the_identifiers_of_a_text_are_found():
    assert {"limit", "größe"} <= identifiers("a > @limit and größe < 3")


def test_attributes_taken_from_a_name_are_known_unless_it_is_used_otherwise():
    tree = ast.parse("a = sys.argv[0], sys.path\nb = f(os)\nos.getcwd()")

    assert attributes_read(tree, "sys") == {"argv", "path"}
    assert attributes_read(tree, "os") is None


def test_a_message_points_at_the_first_line_of_a_name():
    assert first_line_of(ast.parse("a = 1\nb = a\nc = b"), "b") == 2
