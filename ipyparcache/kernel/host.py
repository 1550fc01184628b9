"""The running shell, as far as a loop needs it: its namespace, its streams, its displays, its way to run a
statement."""

from __future__ import annotations

import ast
import sys
from typing import Any

from IPython.display import clear_output, display

from ipyparcache.kernel.outputs import show_note
from ipyparcache.kernel.running import Body, run_statements, run_to_completion


class ShellHost:
    """Where the statements of a `%%parallel` cell run and where its iterations' output goes."""

    def __init__(self, shell: Any, body: Body, secret: bytes | None = None):
        self.shell = shell
        self.secret = secret
        self.body = body
        self.namespace: dict[str, Any] = shell.user_ns
        self.file_name = body.file_name
        self._clears_next = False

    def run_statement(self, statement: ast.stmt, *, last: bool) -> None:
        """Run a statement of the cell serially; if it is the last one, its value is displayed.

        Raises
        ------
        BaseException
            Whatever it raised, which the user has seen by then.
        """
        self.clear_before_more()
        error = run_to_completion(run_statements(self.shell, self.body, [statement], last=last))
        if error is not None:
            raise error

    def write(self, stream: str, text: str) -> None:
        """Write text of an iteration to stdout or stderr."""
        self.clear_before_more()
        getattr(sys, stream).write(text)

    def display(self, objects: tuple[object, ...], options: dict[str, Any]) -> None:
        """Show what an iteration displayed."""
        self.clear_before_more()
        display(*objects, **options)

    def clear_output(self, wait: bool) -> None:
        """Clear what the cell has put out, now or with what comes next of the user's; the bar is not that."""
        self._clears_next = wait
        if not wait:
            clear_output()

    def clear_before_more(self) -> None:
        """Something is to be shown: clear what an iteration wanted cleared then."""
        if self._clears_next:
            self._clears_next = False
            clear_output(wait=True)

    def show_note(self, html: str, text: str) -> None:
        """Show a line of our own below the cell."""
        show_note(self.shell, html, text, kind="parallel")
