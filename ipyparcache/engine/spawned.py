"""The start of a worker that was not forked but launched as a program of its own."""

from __future__ import annotations

import ast
import os
import select
import signal
import socket
import sys
import threading

from ipyparcache.engine.forkserver import connect_named, die_with_pipe
from ipyparcache.engine.launching import LIFELINE
from ipyparcache.engine.transport import Block, Channel, PacketChannel
from ipyparcache.engine.worker import leave, line_buffer_c_output, run_worker


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
    tasks: Channel
    bell: Channel
    if kind == "fds":
        tasks = PacketChannel(socket.socket(fileno=3))
        bell = PacketChannel(socket.socket(fileno=4))
        block, out, err = Block.open(5), 6, 7
        for fd in range(3, 8):
            os.set_inheritable(fd, False)
    else:
        address, token, folder = rest[0]
        tasks = bell = connect_named(address, token)
        block = Block.open(folder)
        out = os.open(f"{folder}/stdout", os.O_RDWR | os.O_APPEND)
        err = os.open(f"{folder}/stderr", os.O_RDWR | os.O_APPEND)
    run_worker(tasks, bell, block, out, err, idle_seconds)
    leave()
