import ast

import pytest

from ipyparcache.analysis.names import names_of
from ipyparcache.analysis.shellcalls import without_shell_calls


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("get_ipython().system('echo $word {n + 1}')", {"word", "n"}),
        ("out = get_ipython().getoutput('ls {folder.name}')", {"folder"}),
        ("get_ipython().system(\"awk '{print $1}' {path}\")", {"path"}),
        ("for k in ks:\n  get_ipython().system('echo $k')", {"ks"}),
        ("get_ipython().run_cell_magic('bash', '', 'echo $x {y}\\n')", set()),
        ("get_ipython().run_cell_magic('bash', '--out o', 'ls')", {"get_ipython"}),
        ("get_ipython().run_line_magic('cd', '/')", {"get_ipython"}),
        ("get_ipython().system(command)", {"get_ipython", "command"}),
        ("get_ipython().user_ns['x'] = 1", {"get_ipython"}),
    ],
)
def test_a_command_reads_what_ipython_puts_into_it(source, read):
    assert names_of(without_shell_calls(ast.parse(source)).body).read == read


def test_the_cell_itself_stays_as_it_is():
    tree = ast.parse("get_ipython().system('echo $word')")
    before = ast.dump(tree)

    without_shell_calls(tree)

    assert ast.dump(tree) == before
