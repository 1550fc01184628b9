"""How processes are started: the fork server, and workers that are programs of their own."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable

from ipyparcache.engine.forking import can_fork, fork_server
from ipyparcache.engine.transport import Channel, PacketChannel, StreamChannel, can_memfd
from ipyparcache.lean import signal, socket

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

LIFELINE = 9  # descriptor of the lifeline in a spawned worker
STARTING = 30.0  # seconds in which a worker must have said hello
LOOK = 0.05  # seconds between two looks at whether a worker that is to connect has ended


def start_method() -> str:
    """How workers are started: "forkserver" on Linux, else "spawn"; IPYPARCACHE_START names one."""
    asked = os.environ.get("IPYPARCACHE_START", "")
    if asked in ("forkserver", "spawn"):
        return asked
    return "forkserver" if sys.platform == "linux" else "spawn"


def can_have_processes() -> bool:
    """Whether this system has what workers need; Pyodide and Windows have not."""
    return hasattr(os, "posix_spawn") and hasattr(os, "pwritev") and hasattr(socket, "AF_UNIX")


def _interpreter(code: str, *arguments: str) -> list[str]:
    """Command line of a new interpreter like this one that runs `code`."""
    flags: list[str] = []
    if sys.flags.optimize or sys.flags.dev_mode or sys._xoptions or sys.warnoptions or sys.flags.isolated:
        import subprocess

        flags = [
            flag
            for flag in subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
            if not flag.startswith("-W")
        ]
    return [sys.executable, *flags, "-c", code, *arguments]


# The package must be found by the new interpreter although only this one's sys.path may name it.
_START = "import sys; sys.path[:] = eval(sys.argv.pop(1)); "
_SERVER = _START + "from ipyparcache.engine.forkserver import main; main(int(sys.argv[1]), int(sys.argv[2]))"
_SPAWNED = _START + "from ipyparcache.engine.spawned import main; main(sys.argv[1])"


def _launch(command: list[str], passed: dict[int, int]) -> int:
    """Start a program in a process group of its own; `passed` maps descriptors here to their numbers
    there.
    """
    # Two steps, since a target may be the number of another source: up first, then down to the target. No
    # higher than needed, for the process may be near its limit of descriptors.
    actions: list[Any] = []
    high = max([*passed, *passed.values()]) + 1
    for at, source in enumerate(passed):
        actions.append((os.POSIX_SPAWN_DUP2, source, high + at))
    for at, target in enumerate(passed.values()):
        actions.append((os.POSIX_SPAWN_DUP2, high + at, target))
        actions.append((os.POSIX_SPAWN_CLOSE, high + at))
    return os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=actions,
        setpgroup=0,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE],
    )


class Server:
    """This side of a fork server."""

    def __init__(self, may_fork: bool = False) -> None:
        kind = getattr(socket, "SOCK_SEQPACKET", None) if can_memfd() else None
        mine, theirs = socket.socketpair(socket.AF_UNIX, kind or socket.SOCK_STREAM)
        self.channel: Channel = PacketChannel(mine) if kind else StreamChannel(mine)
        self.forked = bool(may_fork and kind and can_fork())
        try:
            if self.forked:
                self.pid = fork_server(theirs.fileno())
                return
            paths = repr([path for path in sys.path if isinstance(path, str)])
            self.pid = _launch(_interpreter(_SERVER, paths, "3", str(os.getpid())), {theirs.fileno(): 3})
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()

    def close(self, wait: float) -> None:
        """Have it end all workers and itself."""
        with contextlib.suppress(OSError, ConnectionError):
            self.channel.send(("stop",), wait=False)
        self.channel.close()
        until = time.monotonic() + wait
        while True:
            try:
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    return
            except ChildProcessError:
                return
            if time.monotonic() > until:
                break
            time.sleep(0.002)
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def spawn(description: tuple[Any, ...], there: dict[int, int]) -> tuple[int, int]:
    """Launch a worker; its process id, and the pipe end that keeps it alive."""
    read, write = os.pipe()
    try:
        paths = repr([path for path in sys.path if isinstance(path, str)])
        command = _interpreter(_SPAWNED, paths, repr(description))
        return _launch(command, {**there, read: LIFELINE}), write
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)


def append_only(fd: int) -> None:
    """Have every write to the descriptor go to the end of its file."""
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)


def accept(listener: socket.socket, token: bytes, has_ended: Callable[[], bool]) -> socket.socket:
    """The connection of the worker that knows the token; one that is closed if it has ended before."""
    import hmac

    until = time.monotonic() + STARTING
    while time.monotonic() < until:
        listener.settimeout(LOOK)
        try:
            end, _ = listener.accept()
        except TimeoutError:
            if has_ended():
                end, other = socket.socketpair()
                other.close()
                return end
            continue
        end.settimeout(5)
        got = b""
        with contextlib.suppress(OSError):
            while len(got) < len(token) and (more := end.recv(len(token) - len(got))):
                got += more
        if hmac.compare_digest(got, token):
            end.settimeout(None)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return end
        end.close()
    raise OSError(f"a worker did not connect within {STARTING:g} s")
