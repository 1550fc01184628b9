"""The running shell, as far as a loop needs it: its namespace, its streams, its displays, its way to run a statement."""

from __future__ import annotations

import ast
import sys
from typing import Any

from ipyparcache.kernel.outputs import show_note
from ipyparcache.kernel.running import Body, run_statements, run_to_completion


class ShellHost:
    """Where the statements of a `%%parallel` cell run and where its iterations' output goes."""

    def __init__(self, shell: Any, body: Body):
        self.shell = shell
        self.body = body
        self.namespace: dict[str, Any] = shell.user_ns

    def run_statement(self, statement: ast.stmt) -> None:
        """Run a statement of the cell serially; the value of the cell's last expression is displayed.

        Raises
        ------
        BaseException
            Whatever it raised, which the user has seen by then.
        """
        last = statement is self.body.tree.body[-1]
        error = run_to_completion(run_statements(self.shell, self.body, [statement], last=last))
        if error is not None:
            raise error

    def write(self, stream: str, text: str) -> None:
        """Write text of an iteration to stdout or stderr."""
        getattr(sys, stream).write(text)

    def display(self, data: dict[str, Any], metadata: dict[str, Any], transient: dict[str, Any]) -> None:
        """Show what an iteration displayed."""
        self.shell.display_pub.publish(data=data, metadata=metadata, transient=transient)

    def show_value(self, value: object) -> None:
        """Show a value as the cell's result."""
        sys.displayhook(value)

    def show_note(self, html: str, text: str, **facts: Any) -> None:
        """Show a line of our own below the cell."""
        show_note(self.shell, html, text, **facts)
