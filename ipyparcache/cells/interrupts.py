"""What a kernel interrupt means while a loop runs: first no new iteration, the second time an end at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Where an interrupt goes while tasks are waited for.

    Attributes
    ----------
    asked
        Set by the first interrupt that came while the loop waited for its workers.
    waiting
        Whether the loop waits for its workers: only then an interrupt is put off, for the grace of running
        iterations.
        In user code of the kernel (the iterable, a replayed statement) it is raised at once.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.waiting = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Take interrupts of this process, if this is its main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        plain = signal.getsignal(signal.SIGINT)

        def interrupted(number: int, frame: FrameType | None) -> None:
            if self.waiting and not self.asked.is_set():
                self.asked.set()
            elif callable(plain):
                plain(number, frame)
            else:
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, plain)
