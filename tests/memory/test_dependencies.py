"""What a result depends on: code, globals, closures, files, environment, settings."""

import decimal
import importlib
import sys

import numpy as np

from tests.memory.functions import made, runs


def test_versions_of_a_function_lie_side_by_side(memory):
    one = memory.cache(made("def f(x):\n    runs.append(1)\n    return x + 1"))
    other = memory.cache(made("def f(x):\n    runs.append(2)\n    return x + 2"))

    assert [one(1), other(1), one(1), other(1)] == [2, 3, 2, 3]
    assert runs == [1, 2]


def test_comments_and_blank_lines_do_not_count(memory):
    memory.cache(made("def f(x):\n    runs.append(1)\n    return x"))(1)
    memory.cache(made("\n\n\ndef f(x):\n    # a comment\n    runs.append(1)\n\n    return x"))(1)

    assert runs == [1]


def test_a_changed_helper_is_a_miss(memory):
    f = made("def g(x): return x + 1\ndef f(x):\n    runs.append(1)\n    return g(x)")
    cached = memory.cache(f)
    before = [cached(1), cached(1)]
    f.__globals__["g"] = made("def g(x): return x + 10", "g")

    assert (before, cached(1)) == ([2, 2], 11)


def test_a_changed_global_is_a_miss_and_going_back_a_hit(memory):
    f = made("n = 1\ndef f(x):\n    runs.append(1)\n    return x + n")
    cached = memory.cache(f)
    found = []
    for f.__globals__["n"] in (1, 2, 1, 2):
        found.append(cached(1))

    assert found == [2, 3, 2, 3]
    assert len(runs) == 2


def test_a_global_that_was_changed_in_place_is_a_miss(memory):
    f = made("table = {'a': 1}\ndef f(x):\n    runs.append(1)\n    return table[x]")
    cached = memory.cache(f)
    before = cached("a")
    f.__globals__["table"]["a"] = 5

    assert (before, cached("a")) == (1, 5)


def test_closures_are_told_apart(memory):
    make = made(
        "def make(n):\n    def f(x):\n        runs.append(n)\n        return x + n\n    return f", "make"
    )
    one, other = memory.cache(make(1)), memory.cache(make(2))

    assert [one(1), other(1), one(1)] == [2, 3, 2]
    assert runs == [1, 2]


def test_a_changed_default_is_a_miss(memory):
    f = made("def f(x, items=[]):\n    runs.append(1)\n    return x + len(items)")
    cached = memory.cache(f)
    before = cached(1)
    f.__defaults__[0].append(1)

    assert (before, cached(1)) == (1, 2)


def test_replaced_code_is_a_miss(memory):
    f = made("def f(x): return x")
    cached = memory.cache(f)
    before = cached(1)
    f.__code__ = made("def f(x): return -x").__code__

    assert (before, cached(1)) == (1, -1)


def test_a_list_that_the_function_only_fills_is_no_input(memory):
    log = []
    f = memory.cache(
        made("def f(x):\n    runs.append(x)\n    log.append((x, list('ab')))\n    return x", log=log)
    )

    assert [f(1), f(1)] == [1, 1]
    assert len(log) == 1


def test_a_list_that_the_function_reads_is_an_input(memory):
    log = []
    f = memory.cache(made("def f(x):\n    log.append(x)\n    return len(log)", log=log))

    assert [f(1), f(1), f(1)] == [1, 2, 3]


def test_a_changed_file_is_a_miss(memory, tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("one")
    f = memory.cache(
        made("def f(path):\n    runs.append(1)\n    with open(path) as file:\n        return file.read()")
    )
    found = [f(str(path)), f(str(path))]
    path.write_text("two")
    found += [f(str(path)), f(str(path))]
    path.write_text("one")
    found += [f(str(path))]

    assert found == ["one", "one", "two", "two", "one"]
    assert len(runs) == 2


def test_a_log_that_a_function_appends_to_is_no_input(memory, tmp_path):
    source = "def f(path):\n    with open(path, 'a') as log:\n        log.write('ran ')\n    return 5"
    log = tmp_path / "log"
    found = [memory.cache(made(source))(str(log)) for _ in range(3)]

    assert (found, log.read_text()) == ([5, 5, 5], "ran ")


def test_a_file_that_a_function_appends_to_and_reads_is_an_input(memory, tmp_path):
    source = """
        def f(path):
            with open(path, 'a') as log:
                log.write('x')
            with open(path) as log:
                return log.read()
    """
    log = tmp_path / "log"
    found = [memory.cache(made(source))(str(log)) for _ in range(3)]

    assert found == ["x", "xx", "xxx"]


def test_a_file_read_by_a_cached_helper_is_an_input_of_the_caller(memory, tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("one")
    g = memory.cache(made("def g(path):\n    with open(path) as file:\n        return file.read()", "g"))
    f = memory.cache(made("def f(path):\n    return g(path) + '!'", g=g))
    g(str(path))
    before = f(str(path))
    path.write_text("two")

    assert (before, f(str(path))) == ("one!", "two!")


def test_a_changed_environment_variable_is_a_miss(memory, monkeypatch):
    monkeypatch.setenv("SOME_NAME", "one")
    f = memory.cache(made("import os\ndef f():\n    return os.environ['SOME_NAME']"))
    before = [f(), f()]
    monkeypatch.setenv("SOME_NAME", "two")

    assert (before, f()) == (["one", "one"], "two")


def test_an_edited_local_module_is_a_miss_once_it_is_reloaded(memory, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_helpers.py").write_text("def g(x): return x + 1\n")
    module = importlib.import_module("some_helpers")
    f = memory.cache(made("def f(x): return some_helpers.g(x)", some_helpers=module))
    before = f(1)
    (tmp_path / "some_helpers.py").write_text("def g(x): return x + 100\n")
    importlib.reload(module)

    assert (before, f(1)) == (2, 101)
    del sys.modules["some_helpers"]


def test_the_decimal_context_of_a_function_that_computes_with_it_counts(memory):
    f = memory.cache(made("import decimal\ndef f(n):\n    runs.append(n)\n    return decimal.Decimal(1) / n"))
    with decimal.localcontext() as context:
        exact = f(3)
        context.prec = 4
        short = f(3)
        context.prec = 28
        again = f(3)

    assert (str(short), again, runs) == ("0.3333", exact, [3, 3])


def test_the_decimal_context_of_a_decimal_argument_counts(memory):
    f = memory.cache(made("def f(x):\n    return x / 3"))
    with decimal.localcontext() as context:
        f(decimal.Decimal(1))
        context.prec = 4

        assert str(f(decimal.Decimal(1))) == "0.3333"


def test_print_options_count_where_numpy_is_used_and_nowhere_else(memory):
    shown = memory.cache(made("import numpy\ndef f(n):\n    return str(numpy.arange(n) / 3)"))
    plain = memory.cache(made("def f(n):\n    runs.append(n)\n    return n"))
    before = shown(2), plain(2)
    with np.printoptions(precision=2):
        during = shown(2), plain(2)

    assert before == ("[0.         0.33333333]", 2)
    assert (during, runs) == (("[0.   0.33]", 2), [2])
