"""What a first call needs of `pickle`, `socket`, `signal` and `dataclasses`, without what these load.

A fresh interpreter spends most of the time to its first result on imports, and these bring `re`, `enum`,
`ast` and `inspect`. `pickle`, `socket` and `signal` are here as they are compiled into the interpreter; who
needs what only the modules have (`socket.create_server`) imports them.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for True
if TYPE_CHECKING:
    import pickle
    import signal
    import socket
else:
    try:
        import _pickle as pickle
        import _signal as signal
        import _socket as socket
    except ImportError:  # another interpreter
        import pickle
        import signal
        import socket

__all__ = ["Record", "pickle", "signal", "socket"]


class Record:
    """A class with `__slots__`, compared and shown by what they hold."""

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __repr__(self) -> str:
        held = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__qualname__}({held})"
