"""What is typed, and what is shown: outputs, status lines, errors, and the shell's corners."""

import asyncio
import decimal
import importlib
import json
import re
import subprocess
import sys
import warnings

import pytest

from ipyparcache import last_run
from ipyparcache.cells import runs
from ipyparcache.cells.runs import NoRun
from ipyparcache.errors import TaskTimeout, WorkerDied

pytestmark = pytest.mark.usefixtures("extension")


def test_a_result_that_shows_itself_is_the_last_value_after_a_hit(cell, cached, names):
    cell("class Shown:\n  def _ipython_display_(self): print('shown')")
    cached("Shown()")
    cell("0;")

    assert cached("Shown()") == "hit"
    assert type(names["_"]) is names["Shown"]


def test_output_is_replayed_and_the_result_is_set(cell, cached, names, capsys, restart):
    body = "import sys\nprint('out')\nprint('err', file=sys.stderr)\n[1, 2]"
    cached(body)
    first = capsys.readouterr()
    restart()
    assert cached(body) == "hit"

    again = capsys.readouterr()
    assert (again.out.replace("Out[2]", "Out[1]"), again.err) == (first.out, first.err)
    assert names["_"] == [1, 2]


def test_an_input_that_the_run_changed_is_not_told_as_the_run_left_it(cell, cached):
    body = "d['b'] = 2\nd['c'] = 3"
    cell("d = {'a': 1}")
    cached(body)
    cell("d = {'a': 1, 'x': 1}")
    cached(body)

    assert "d changed" in last_run().reason
    assert "dict 3" not in last_run().reason
    assert "dict 2" in last_run().reason


@pytest.mark.parametrize(
    ("before", "edit", "told"),
    [
        ("def f(x=1): return x", "def f(x=2): return x", "f changed (the default of x differs)"),
        (
            "def make(k):\n  return lambda: k\nf = make(1)",
            "f = make(2)",
            "f changed (k, which it closes over, differs)",
        ),
        (
            "class C:\n  lim = 1\n  def go(self): return self.lim\nf = C().go",
            "C.lim = 2",
            "class C changed (lim differs)",
        ),
        (
            "import decimal\ndef f(): return decimal.Decimal(1) / 3",
            "decimal.getcontext().prec = 7",
            "the decimal context changed (at its default → set)",
        ),
        ("d = {'a': 1, 'b': 2}\nf = d.copy", "d['b'] = 3", "f changed"),
    ],
)
def test_a_miss_says_what_of_an_input_differs(cell, cached, request, before, edit, told):
    context = decimal.getcontext().copy()
    request.addfinalizer(lambda: decimal.setcontext(context))
    cell(before)
    cached("r = f()")
    cell(edit)
    cached("r = f()")

    assert told in last_run().reason


def test_a_cell_is_stored_while_a_function_of_the_standard_library_is_replaced(
    cell, cached, monkeypatch, request, tmp_path
):
    # Not a function of this file: edited while the tests run, all of it would be an input, as loaded.
    tmp_path.joinpath("replacing_m.py").write_text("def dumps(_value):\n    return 'replaced'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    request.addfinalizer(lambda: sys.modules.pop("replacing_m", None))
    monkeypatch.setattr(json, "dumps", importlib.import_module("replacing_m").dumps)

    assert cached("import json\nr = json.dumps(1)") == "miss"
    assert cached("import json\nr = json.dumps(1)") == "hit"


def test_what_is_no_value_is_told_without_a_type(cell, cached, tmp_path):
    tmp_path.joinpath("told_m.py").write_text("def f():\n    return 1\n")
    cell(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport told_m")
    cached("y = told_m.f()")
    tmp_path.joinpath("told_m.py").write_text("def f():\n    return 2222\n")
    cell("import importlib\nimportlib.reload(told_m)")
    cached("y = told_m.f()")

    told = [str(change) for change in last_run().changes]
    assert any("module told_m changed" in text for text in told)
    assert not any("None" in text for text in told)


def test_an_import_that_prints_is_heard_once(cell, cached, capfd, restart, tmp_path):
    text = "import os, sys, warnings\nprint('hello')\nprint('oh', file=sys.stderr)\nos.write(1, b'raw')\n"
    tmp_path.joinpath("prints_a.py").write_text(text + "sys.stdout.flush()\n")
    cell(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})")
    assert cached("import prints_a\nprint('then')") == "miss"
    first = capfd.readouterr()
    restart()
    cell("import sys")
    assert cached("import prints_a\nprint('then')") == "hit"
    again = capfd.readouterr()

    assert first.out.count("hello") == again.out.count("hello") == 1
    assert (first.err.count("oh"), again.err.count("oh")) == (1, 1)
    assert again.out.count("raw") <= 1


def test_what_an_import_of_a_hit_prints_for_the_first_time_is_heard(
    cell, cached, names, capfd, restart, tmp_path
):
    tmp_path.joinpath("prints_b.py").write_text("print('loaded')\n")
    cell(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport prints_b")
    assert cached("import prints_b\nx = 1") == "miss"
    restart()
    capfd.readouterr()
    assert cached("import prints_b\nx = 1") == "hit"

    assert capfd.readouterr().out == "loaded\n"


def test_a_warning_of_an_imported_module_points_at_the_one_who_imports(cell, capsys, tmp_path):
    tmp_path.joinpath("old_c.py").write_text(
        "import warnings\nwarnings.warn('old', DeprecationWarning, stacklevel=2)\n"
    )
    cell(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})")
    cell(
        "import warnings\nwith warnings.catch_warnings(record=True) as heard:\n"
        "  warnings.simplefilter('always')\n  import old_c"
    )
    cell("print([warning.lineno for warning in heard])")
    cell("print(any('modules.py' in warning.filename for warning in heard))")

    assert capsys.readouterr().out == "[4]\nFalse\n"


def test_a_warning_of_a_local_module_is_shown_once_in_each_kernel(
    cell, cached, capsys, restart, tmp_path, monkeypatch
):
    (tmp_path / "warning_module.py").write_text(
        "import warnings\ndef warn():\n  warnings.warn('careful')\n  return 1\ndef rest(): return 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", lambda text, *_: print(text, file=sys.stderr))

    def runs_and_what_they_show(*bodies):
        return [(cached(body), capsys.readouterr().err) for body in bodies]

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        cell("import warning_module as m")
        first = runs_and_what_they_show("y = m.warn()", "y = m.warn()", "y = m.warn()", "z = m.rest()")
        restart()
        cell("import warning_module as m")
        second = runs_and_what_they_show("y = m.warn()", "y = m.warn()", "z = m.rest()")
        cell("m.warn()")

    assert first == [("miss", "careful\n"), ("miss", ""), ("hit", ""), ("miss", "")]
    assert second == [("hit", "careful\n"), ("hit", ""), ("hit", "")]
    assert capsys.readouterr().err == ""


def test_an_error_shows_the_cell_and_no_watcher(cell, cached, capsys, tmp_path):
    with pytest.raises(FileNotFoundError):
        cached(f"import os\nos.path.getsize({str(tmp_path / 'missing')!r})")
    shown = capsys.readouterr().out

    assert "getsize" in shown
    assert "ipyparcache" not in shown


def test_a_silenced_result_is_not_shown_nor_kept_as_out(cell, cached, names, capsys):
    cached("[1, 2];")
    assert capsys.readouterr().out == ""
    assert cached("[1, 2];") == "hit"

    assert capsys.readouterr().out == ""
    assert names["_"] == ""


def test_the_status_line_says_what_happened(cell, capsys):
    cell("x = 1")
    cell("%%cached\ny = x")
    assert "stored" in capsys.readouterr().out
    cell("%%cached\ny = x")
    assert "cached · restored y" in capsys.readouterr().out
    cell("x = 2")
    cell("%%cached\ny = x")

    assert "because x changed (1 → 2)" in capsys.readouterr().out


def test_plain_says_it_on_stderr_and_quiet_not_at_all(cell, capsys):
    cell("%%cached --plain\ny = 1")
    shown = capsys.readouterr()
    assert "stored" in shown.err
    assert shown.out == ""
    cell("%%cached --quiet\ny = 1")
    shown = capsys.readouterr()

    assert (shown.out, shown.err) == ("", "")


def test_the_last_run_tells_status_reason_and_inputs(cell, cached):
    cell("x = [1]")
    cached("y = len(x)")
    run = last_run()

    assert run.status == "miss"
    assert {"x", "len"} <= set(run.inputs)
    assert run.bytes > 0
    assert run.seconds >= run.body_seconds >= 0
    cached("y = len(x)")
    assert last_run().hit


def test_asking_for_a_run_before_there_was_one_is_an_error_of_ours(monkeypatch):
    monkeypatch.setattr(runs, "_runs", type(runs._runs)())

    with pytest.raises(NoRun):
        last_run()


def test_a_changed_helper_is_shown_as_a_diff(shell, cell, cached):
    cell("def f(x):\n    return x + 1")
    cached("y = f(1)")
    cell("def f(x):\n    return x + 2")
    cached("y = f(1)")

    changes = last_run().changes
    assert [change.name for change in changes] == ["f"]
    assert any("x + 2" in line for line in changes[0].detail)


def test_a_cell_may_await_at_top_level(shell, cached, names, restart):
    source = "%%cached --quiet\nimport asyncio\nawait asyncio.sleep(0)\ny = 5"

    async def run():
        return await shell.run_cell_async(
            source, transformed_cell=shell.transform_cell(source), store_history=True
        )

    asyncio.run(run()).raise_error()
    assert names["y"] == 5
    assert last_run().status == "miss"
    restart()
    asyncio.run(run()).raise_error()

    assert names["y"] == 5
    assert last_run().status == "hit"


def test_a_line_magic_caches_a_statement(shell, cell, names):
    cell("def f(x): return x + 1")
    cell("%cached --quiet y = f(1)")
    assert last_run().status == "miss"
    cell("%cached --quiet y = f(1)")

    assert last_run().status == "hit"
    assert names["y"] == 2


def test_a_line_magic_gives_the_value_of_an_expression(shell, cell, names):
    cell("def f(x): return x + 1")

    cell("y = %cached --quiet f(1)")
    cell("z = %cached --quiet f(1)")
    out = cell("%parallel --quiet [f(i) for i in range(3)]")
    silent = cell("%cached --quiet f(2);")

    assert (names["y"], names["z"]) == (2, 2)
    assert out == [1, 2, 3]
    assert silent is None
    assert "__value__" not in names


def test_the_error_of_a_line_magic_shows_what_was_typed(shell, capsys):
    shell.run_cell("%cached --quiet 1 / 0", store_history=True)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)

    assert "----> 1 1 / 0" in shown
    assert "__value__" not in shown


def test_lines_are_counted_with_what_stands_between_magics(shell, capsys):
    shell.run_cell("%%cached\n\n# all cores\n%%parallel\n\nx = 1")

    assert "line 6: the cell has no top-level" in capsys.readouterr().out


def test_a_shell_command_is_told_with_the_option_that_keeps_it(cell, cached):
    assert cached("!true") == "not stored"
    assert "--trust-shell" in last_run().reason
    assert cached("%time 1") == "not stored"
    assert "--trust-shell" not in last_run().reason


def test_time_below_runs_live_around_the_cell(cell, capsys):
    cell("%%cached --quiet\n%%time\ny = 1")
    assert "Wall time" in capsys.readouterr().out
    cell("%%cached --quiet\n%%time\ny = 1")

    assert last_run().hit
    assert "Wall time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--forse", "did you mean `--force`?"),
        ("--compress zlib:x", "a level is a whole number"),
        ("--expires soon", "no duration"),
        ("--verify often", "a share is wanted, as in 2%"),
        ("3x", "neither an option nor"),
    ],
)
def test_a_wrong_line_is_a_usage_error_and_the_cell_does_not_run(shell, names, capsys, line, said):
    result = shell.run_cell(f"%%cached {line}\nran = 1")

    assert not result.success
    assert "ran" not in names
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("# a comment\n%%cached\nran = 1", "%%cached goes on the first line"),
        ("%%cached\nx = 1\n%%parallel\nran = [i for i in [1]]", "%%parallel goes on the first line"),
        ("%%cached\n%%cached\nran = 1", "%%cached stands twice"),
        ("%%parallel 4\nran = [i for i in [1]]", "did you mean `-j 4`?"),
        ("%%cached ran\n%%parallel --background b\nran = [i for i in [1]]", "--cached --background b"),
    ],
)
def test_magics_that_stand_in_the_wrong_place_are_told_where_they_go(shell, names, capsys, source, said):
    result = shell.run_cell(source)

    assert not result.success
    assert "ran" not in names
    assert said in capsys.readouterr().err


def test_an_error_is_shown_once_with_the_cells_own_line(shell, capsys):
    result = shell.run_cell("%%cached\nx = 1\n1 / 0", store_history=True)
    shown = capsys.readouterr().out + capsys.readouterr().err

    assert isinstance(result.error_in_exec, ZeroDivisionError)
    assert shown.count("Traceback") <= 1
    assert shown.count("ZeroDivisionError") <= 2
    result = shell.run_cell("undefined_name")
    assert "undefined_name" in capsys.readouterr().out


def test_nothing_hidden_is_left_in_the_namespace(cell, cached, names):
    before = set(names)
    cached("y = 1")
    cached("y = 1")

    assert {name for name in set(names) - before if not name.startswith("_")} == {"y"}


def test_automatic_mode_caches_every_cell_that_pays(shell, cell, names, restart):
    cell("%parcache auto on --min 0")
    cell("x = 2")
    cell("y = x + 1")
    restart()
    cell("x = 2")
    assert last_run().hit
    cell("y = x + 1")
    assert last_run().hit
    assert names["y"] == 3
    cell("%parcache auto on --min 1h")
    cell("z = 1")
    assert last_run().status == "not stored"
    cell("%parcache auto off")
    count = len(runs.runs())
    cell("w = 1")

    assert len(runs.runs()) == count


def test_the_magic_can_be_asked_for_help(cell, capsys):
    cell("%%cached --help\nx = 1")

    assert "--expires 7d" in capsys.readouterr().out


def test_a_question_mark_behind_a_magic_shows_its_options(shell, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.core.page.page", lambda text, *rest, **options: shown.append(str(text)))
    shell.run_cell("%%cached?")
    shell.run_cell("%parallel?")

    assert "--expires 7d" in shown[0]
    assert "--on-error HOW" in shown[1]


@pytest.mark.parametrize("other", ["%%timeit -n 2 -r 1 -q", "%%prun -q", "%%capture got"])
def test_a_magic_below_that_shows_no_result_shows_none_of_a_cached_cell(cell, capsys, other):
    cell(f"%%cached --quiet\n{other}\ny = 6\ny * 7  # the answer")

    assert "42" not in capsys.readouterr().out


def test_shell_commands_are_cached_when_trusted(cell, cached, names, restart):
    setup, body = "word = 'hey'\n!true", "out = !echo $word {len(word)}\n!false"
    cell(setup)
    assert cached(body) == "not stored"
    assert "runs a magic or the shell" in last_run().reason
    cell(setup)
    assert cached(body, "--trust-shell") == "miss"
    restart()
    cell(setup)

    assert cached(body, "--trust-shell") == "hit"
    assert (list(names["out"]), names["_exit_code"]) == (["hey 3"], 1)
    cell("word = 'ho'")
    assert cached(body, "--trust-shell") == "miss"
    assert list(names["out"]) == ["ho 2"]


def test_other_magics_are_not_trusted_with_the_shell(cached):
    assert cached("%cd .\nx = 1", "--trust-shell") == "not stored"
    assert "runs a magic or the shell" in last_run().reason


def test_a_clear_that_nothing_follows_leaves_what_is_shown(cell, names, restart, capsys):
    source = "%%cached\nfrom IPython.display import clear_output\nprint('kept')\nclear_output(wait=True)\n"
    cell(source)
    first = capsys.readouterr().out
    restart()
    cell(source)
    again = capsys.readouterr().out

    assert last_run().status == "hit"
    assert "stored" not in first  # the status line would take the place of what is shown
    assert again.startswith("kept\n")
    assert "cached" in again


@pytest.mark.parametrize(
    ("line", "body", "error"),
    [
        ("--timeout 0.2", "time.sleep(60)", TaskTimeout),
        ("", "os._exit(3)", WorkerDied),
        ("", "i == 0 and os.kill(kernel, signal.SIGINT)\n    time.sleep(0.05)", KeyboardInterrupt),
    ],
)
def test_what_ends_a_loop_from_outside_is_shown_at_the_line_of_the_loop(cell, capsys, line, body, error):
    cell("import os, signal, time\nkernel = os.getpid()")
    with pytest.raises(error):
        cell(f"%%parallel {line}\nn = 3\nfor i in range(n):\n    {body}")

    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "----> 3 for i in range(n):" in shown
    assert "ipyparcache/" not in shown


EMBEDDED = """
import subprocess
import sys
from IPython.terminal.embed import InteractiveShellEmbed
from traitlets.config import Config
import ipyparcache
x = int(sys.argv[1])
config = Config()
config.HistoryManager.enabled = False
def main():
    own = 2 * x
    shell = InteractiveShellEmbed(config=config, user_module=sys.modules["__main__"], user_ns=locals())
    shell.run_line_magic("load_ext", "ipyparcache")
    for body in ("a = x + 1", "b = own + 1"):
        shell.run_cell("%%cached --quiet\\n" + body)
        assert ipyparcache.last_run().status == "not stored", body
    shell.run_cell("%%parallel\\nc = [i + x + own for i in range(3)]")
    assert ipyparcache.last_run().status == "refused"
    print(shell.user_ns["a"], shell.user_ns["b"])
main()
"""


def test_a_shell_that_is_embedded_in_a_program_runs_its_cells(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(EMBEDDED)
    for x, said in ((1, "2 3"), (5, "6 11")):
        ran = subprocess.run(
            [sys.executable, str(program), str(x)], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines()[-1] == said
