"""Shell commands of a cell, as IPython writes them: `!ls {x}` is `get_ipython().system('ls {x}')`."""

from __future__ import annotations

import ast
import re
from copy import deepcopy
from typing import Any

COMMANDS = frozenset({"system", "getoutput"})
SCRIPTS = frozenset({"bash", "sh"})
_EXPANDED = re.compile(r"\$(\w+)|\{([^{}]*)\}")


def without_shell_calls(tree: ast.Module) -> ast.Module:
    """The cell with the variables that IPython puts into a command in the place of the command."""
    expanded: ast.Module = ast.fix_missing_locations(_Expanded().visit(deepcopy(tree)))
    return expanded


class _Expanded(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> Any:
        match node:
            case ast.Call(
                func=ast.Attribute(ast.Call(func=ast.Name(id="get_ipython"), args=[]), name),
                args=[ast.Constant(value=str(command))],
                keywords=[],
            ) if name in COMMANDS:
                return ast.copy_location(ast.Tuple(_variables(command), ast.Load()), node)
            case ast.Call(
                func=ast.Attribute(ast.Call(func=ast.Name(id="get_ipython"), args=[]), "run_cell_magic"),
                args=[ast.Constant(value=str(name)), ast.Constant(value=""), ast.Constant()],
                keywords=[],
            ) if name in SCRIPTS:  # a script's text is taken as it stands
                return ast.copy_location(ast.Constant(None), node)
        return self.generic_visit(node)


def _variables(command: str) -> list[ast.expr]:
    found: list[ast.expr] = []
    for name, expression in _EXPANDED.findall(command):
        try:
            found.append(ast.parse(name or expression, mode="eval").body)
        except SyntaxError:  # braces of the shell's or of awk's own
            continue
    return found
