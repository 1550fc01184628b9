"""The small process from which workers are forked.

It has loaded what every worker needs and nothing of the caller's, so a new worker costs a fork of a small
process. It is the parent of the workers: it reaps them, says how each ended, and kills them, without the
danger of meeting a process id that was given away again. When the caller is gone, however it ended, it
kills them all and goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import select
import sys
from collections.abc import Iterable

from ipyparcache.engine.transport import Block, Message, PacketChannel, StreamChannel
from ipyparcache.engine.worker import leave, line_buffer_c_output, run_worker
from ipyparcache.lean import signal, socket

QUIET = 100  # milliseconds without a message after which there is time to load what workers may need later


def die_with_pipe(fd: int) -> None:
    """Have the kernel signal this process, and what its tasks started, when the pipe closes, which no one who
    holds the GIL can prevent.
    """
    # A negative number is a group.
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpid() if os.getpgrp() == os.getpid() else os.getpid())
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)  # else SIGIO, which ends it too
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([fd], [], [], 0)[0]:  # it has been closed before
        os.kill(os.getpid(), signal.SIGKILL)


def run_with_fds(fds: Iterable[int], idle_seconds: float) -> None:
    """Be a worker that has been given its sockets, its block, and the files that it prints into."""
    tasks, bell, block, out, err = fds
    channels = PacketChannel(socket.socket(fileno=tasks)), PacketChannel(socket.socket(fileno=bell))
    run_worker(*channels, Block.open(block), out, err, idle_seconds)


def run_named(named: tuple[tuple[str, int], bytes, str], idle_seconds: float) -> None:
    """Be a worker of the portable transport: connect to the caller, open the files of the folder, and run.

    It returns at once if the caller has ended meanwhile, and has removed the folder.
    """
    from socket import create_connection  # it loads `enum`, which few workers need

    address, token, folder = named
    try:
        end = create_connection(address, timeout=10)
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.sendall(token)
        channel = StreamChannel(end)
        out, err = (os.open(f"{folder}/{name}", os.O_RDWR | os.O_APPEND) for name in ("stdout", "stderr"))
        block = Block.open(folder)
    except OSError:
        if os.path.isdir(folder):
            raise
        return
    run_worker(channel, channel, block, out, err, idle_seconds)


def be_worker(message: Message, fds: list[int]) -> None:
    """Become the worker that a "fork" message describes; does not return."""
    _, _, idle_seconds, named, _ = message
    if named is None:
        run_with_fds(fds, idle_seconds)
    else:
        run_named(named, idle_seconds)
    leave()


class ForkServer:
    """State of the fork server."""

    def __init__(self, caller: PacketChannel | StreamChannel, parent: int):
        self.caller = caller
        self.parent = parent
        self.workers: dict[int, int] = {}  # number by process id
        self.lifelines: dict[int, int] = {}  # by process id: end of a pipe that closes with this process
        self.ready = False  # everything that workers may need is loaded
        self.modules: set[str] = set()  # what else they may need

    def get_ready(self) -> None:
        """Load once what workers may need."""
        if not self.ready:
            self.ready = True
            line_buffer_c_output()
            import cloudpickle.cloudpickle  # noqa: F401

            for name in self.modules:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
            gc.collect()
            gc.freeze()

    def fork(self, message: Message, fds: list[int]) -> None:
        """Start a worker."""
        number = message[1]
        if not message[4]:
            self.get_ready()
        lifeline, end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                with contextlib.suppress(OSError):
                    os.setpgid(0, 0)
                for fd in (end, *self.lifelines.values()):
                    os.close(fd)
                die_with_pipe(lifeline)
                self.caller.close()
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                gc.enable()
                be_worker(message, fds)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(1)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        os.close(lifeline)
        self.workers[pid] = number
        self.lifelines[pid] = end
        for fd in fds:
            os.close(fd)
        self.caller.send(("forked", number, pid))

    def reap(self) -> None:
        """Tell the caller of each worker that has ended."""
        while self.workers:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self.workers.pop(pid, None)
            if number is None:
                continue
            os.close(self.lifelines.pop(pid))
            # What the worker's tasks started and left behind is in its process group.
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
            rss = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            self.caller.send(("ended", number, os.waitstatus_to_exitcode(status), rss))

    def kill(self, number: int) -> None:
        """End a worker and what it started."""
        for pid, known in self.workers.items():
            if known == number:
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def serve(self) -> None:
        """Answer the caller until it is gone."""
        wake, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        waiting = select.poll()
        waiting.register(self.caller, select.POLLIN)
        waiting.register(wake, select.POLLIN)
        if hasattr(os, "pidfd_open"):
            # A forked child of the caller may hold the socket open: the process itself must be watched too.
            with contextlib.suppress(OSError):
                waiting.register(os.pidfd_open(self.parent), select.POLLIN)
        while os.getppid() == self.parent:
            ready = {fd for fd, _ in waiting.poll(1000 if self.ready else QUIET)}
            if not ready:
                self.get_ready()
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
            self.reap()
            if self.caller.fileno() not in ready:
                continue
            while (received := self.caller.receive(wait=False)) is not None:
                message, fds = received
                if message[0] == "fork":
                    self.fork(message, fds)
                elif message[0] == "load":
                    self.modules.update(message[1])
                    self.ready = False
                    self.get_ready()
                elif message[0] == "kill":
                    self.kill(message[1])
                    self.reap()
                elif message[0] == "stop":
                    return

    def kill_all(self) -> None:
        """End every worker, and wait until they have ended."""
        for number in list(self.workers.values()):
            self.kill(number)
        while self.workers:
            try:
                pid, _ = os.waitpid(-1, 0)
            except ChildProcessError:
                return
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
            self.workers.pop(pid, None)


def main(fd: int, parent: int, forked: bool = False) -> None:
    """Be the fork server of the process `parent`, which holds the other end of the socket `fd`.

    One that was `forked` has loaded no library that C code prints with; its workers see to C's output when
    they load one.
    """
    # A group of its own: the terminal's and the notebook's interrupts are for the caller.
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = socket.socket(fileno=fd)
    channel = PacketChannel(end) if end.type == getattr(socket, "SOCK_SEQPACKET", -1) else StreamChannel(end)
    if not forked:
        line_buffer_c_output()
    gc.disable()
    server = ForkServer(channel, parent)
    try:
        server.serve()
    except (EOFError, ConnectionError, BrokenPipeError):
        pass  # the caller is gone
    finally:
        server.kill_all()
        os._exit(0)
