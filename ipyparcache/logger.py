"""`Logger` and `PrintTime`, as joblib has them, and how times and values are written."""

from __future__ import annotations

import os
import sys
import time

_KEPT_LOGS = 9


def format_time(seconds: float) -> str:
    """A duration in seconds and minutes: `75.2s, 1.3min`."""
    return f"{seconds:.1f}s, {seconds / 60:.1f}min"


def short_format_time(seconds: float) -> str:
    """A duration in the larger of the two units, of constant width."""
    return f"{seconds / 60:5.1f}min" if seconds > 60 else f" {seconds:5.1f}s"


def pformat(obj: object, indent: int = 0, depth: int = 3) -> str:
    """A value for people, arrays shortened."""

    import pprint  # as `logging` and `shutil` below: 10 ms that only who prints should pay

    numpy = sys.modules.get("numpy")
    if numpy is None:
        return pprint.pformat(obj, depth=depth, indent=indent)
    with numpy.printoptions(precision=6, threshold=64, edgeitems=1):
        return pprint.pformat(obj, depth=depth, indent=indent)


class Logger:
    """Base of classes that log under their own name.

    Parameters
    ----------
    depth : int
        How deep `format` goes into nested values.
    name : str, optional
        What stands before each message; the object's `repr` if it is not given.
    """

    def __init__(self, depth: int = 3, name: str | None = None):
        self.depth = depth
        self._name = name

    def warn(self, msg: object) -> None:
        """Log a warning to the logger `ipyparcache`."""

        import logging

        logging.getLogger("ipyparcache").warning("[%s]: %s", self._label(), msg)

    def info(self, msg: object) -> None:
        """Log a message to the root logger."""

        import logging

        logging.info("[%s]: %s", self._label(), msg)

    def debug(self, msg: object) -> None:
        """Log a message for who looks for a fault."""

        import logging

        logging.getLogger("ipyparcache").debug("[%s]: %s", self._label(), msg)

    def format(self, obj: object, indent: int = 0) -> str:
        """The value as it is logged."""
        return pformat(obj, indent=indent, depth=self.depth)

    def _label(self) -> str:
        return repr(self) if self._name is None else self._name


class PrintTime:
    """Prints how long it took since the last call, to stderr and to a log file.

    Parameters
    ----------
    logfile : str or path, optional
        Where to write as well; older ones are kept as `logfile.1` to `logfile.9`.
    logdir : str or path, optional
        Folder for a log file `ipyparcache.log`.

    Raises
    ------
    ValueError
        If both are given.
    """

    def __init__(
        self, logfile: str | os.PathLike[str] | None = None, logdir: str | os.PathLike[str] | None = None
    ):
        if logfile is not None and logdir is not None:
            raise ValueError("Cannot specify both logfile and logdir")
        self.last_time = time.time()
        self.start_time = self.last_time
        if logdir is not None:
            logfile = os.path.join(logdir, "ipyparcache.log")
        self.logfile = logfile
        if logfile is not None:
            folder = os.path.dirname(os.path.abspath(logfile))
            os.makedirs(folder, exist_ok=True)
            self._rotate(os.fspath(logfile))
            with open(logfile, "w", encoding="utf-8") as file:
                file.write(f"\nLogging started {time.ctime()}\n")

    def __call__(self, msg: str = "", total: bool = False) -> None:
        """Print the time since the last call, or since the beginning."""
        now = time.time()
        since = self.start_time if total else self.last_time
        self.last_time = now
        taken = now - since
        line = f"{msg}: {taken:.2f}s, {taken / 60:.1f} min" if total else f"{msg}: {format_time(taken)}"
        print(line, file=sys.stderr)
        if self.logfile is not None:
            try:
                with open(self.logfile, "a", encoding="utf-8") as file:
                    print(line, file=file)
            except OSError as error:
                print(f"{self.logfile} cannot be written: {error}", file=sys.stderr)

    @staticmethod
    def _rotate(logfile: str) -> None:
        if not os.path.exists(logfile):
            return

        import shutil

        for number in range(_KEPT_LOGS - 1, 0, -1):
            if os.path.exists(f"{logfile}.{number}"):
                shutil.move(f"{logfile}.{number}", f"{logfile}.{number + 1}")
        shutil.copy(logfile, f"{logfile}.1")
