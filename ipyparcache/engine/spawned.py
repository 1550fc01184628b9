"""The start of a worker that was not forked but launched as a program of its own."""

from __future__ import annotations

import ast
import os
import select
import signal
import sys
import threading

from ipyparcache.engine.forkserver import die_with_pipe, run_named, run_with_fds
from ipyparcache.engine.launching import LIFELINE
from ipyparcache.engine.worker import leave, line_buffer_c_output


def _watch(parent: int) -> None:
    """End this process when the caller ends; by the process itself where it can be watched, else by
    its id.
    """
    if hasattr(os, "pidfd_open"):
        try:
            waiting = select.poll()
            waiting.register(os.pidfd_open(parent), select.POLLIN)
            waiting.poll()
            os.killpg(0, signal.SIGKILL)
        except OSError:
            pass  # forbidden in some containers
    alarm = threading.Event()
    while os.getppid() == parent:
        alarm.wait(0.5)
    os.killpg(0, signal.SIGKILL)


def main(description: str) -> None:
    """Be the worker that the text describes."""
    kind, idle_seconds, parent, *rest = ast.literal_eval(description)
    sys.argv = [""]
    os.set_inheritable(LIFELINE, False)
    die_with_pipe(LIFELINE)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    line_buffer_c_output()
    if kind == "fds":
        fds = range(3, 8)
        for fd in fds:
            os.set_inheritable(fd, False)
        run_with_fds(fds, idle_seconds)
    else:
        run_named(rest[0], idle_seconds)
    leave()
