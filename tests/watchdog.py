"""Ends a test that would never end, and tells where it hung: a run with one such test ends, and is red.

`Watchdog` starts a process of its own, no child of the test process, and tells it of each test that begins.
A test that takes longer than its limit is reported with the processes below it. Then those are ended, with a
traceback of theirs where Python can still give one, which lets most tests go on to fail; a test that goes on
hanging is interrupted, and at last the test process is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

LIMIT = 300.0  # seconds for one test; `make test-all` has drills of some minutes, which get `SLOW`
SLOW = 1500.0
BETWEEN = 20.0  # seconds from one means to the next


class Watchdog:
    """This side, in the test process."""

    def __init__(self, hung: Path, between: float = BETWEEN):
        """Start it; it writes to what is stderr now, and names tests that hung in the file `hung`."""
        read, self._news = os.pipe()
        os.set_inheritable(read, True)
        with contextlib.closing(os.fdopen(read)), contextlib.suppress(OSError):
            hung.unlink(missing_ok=True)
            arguments = [str(read), str(os.getpid()), str(hung), str(between)]
            # It forks and ends, so that no test finds a child of its own that it did not start.
            subprocess.run(
                [sys.executable, __file__, *arguments],
                pass_fds=[read],
                stdin=subprocess.DEVNULL,
                stdout=2,
                check=True,
            )

    def begins(self, test: str, limit: float) -> None:
        """Tell of a test that begins now; an empty name: none runs."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._news, f"{limit} {test}\n".encode())

    def close(self) -> None:
        """End it."""
        os.close(self._news)


def watch(news: int, tests: int, hung: Path, between: float) -> None:
    """Wait for tests that hang, until the test process has ended."""
    test, limit, began, steps, rest = "", 0.0, 0.0, 0, b""
    while psutil.pid_exists(tests):  # what it forked may hold the other end of the pipe
        means_at = began + limit + steps * between
        wait = min(max(means_at - time.monotonic(), 0.0), 5.0) if test else 5.0
        if select.select([news], [], [], wait)[0]:
            if not (read := os.read(news, 1 << 16)):
                return
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                seconds, _, test = line.decode().partition(" ")
                limit, began, steps = float(seconds), time.monotonic(), 0
        elif test and time.monotonic() >= means_at:
            with contextlib.suppress(psutil.Error, OSError):
                _end(test, limit, psutil.Process(tests), steps, hung)
            steps += 1


def _end(test: str, limit: float, process: psutil.Process, step: int, hung: Path) -> None:
    if step == 0:
        below = process.children(recursive=True)
        report = [f"{test} hangs: it has run for {limit:.0f} s.", *map(_told, [process, *below])]
        with hung.open("a") as file:
            file.write("\n  ".join(report) + "\n")
        _say("\n  ".join(report))
        for child in below:
            with contextlib.suppress(psutil.Error):
                child.send_signal(signal.SIGABRT)  # Python prints where it is, where it was asked to
        psutil.wait_procs(below, timeout=3)
        for child in below:
            with contextlib.suppress(psutil.Error):
                child.kill()
    elif step == 1:
        _say(f"{test} goes on hanging: interrupted.")
        process.send_signal(signal.SIGINT)
    else:
        _say(f"{test} goes on hanging: the run is ended.")
        process.send_signal(signal.SIGABRT)
        time.sleep(1)
        process.kill()


def _told(process: psutil.Process) -> str:
    """A line on a process that may hang."""
    try:
        waits = Path(f"/proc/{process.pid}/wchan")
        where = waits.read_text().strip() if waits.exists() else ""
        command = " ".join(process.cmdline())[:200] or process.name()
        return f"process {process.pid} of {process.ppid()}, {process.status()} {where}: {command}"
    except (psutil.Error, OSError) as error:
        return f"process {process.pid}: {error}"


def _say(text: str) -> None:
    os.write(2, f"\n{text}\n".encode())


if __name__ == "__main__":
    # Before the fork the caller still waits, so that it goes on with a watchdog that is there.
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        watch(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
