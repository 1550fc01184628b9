"""The notebook's variables: which are the user's, what a run changed, and how a hit changes them."""

from __future__ import annotations

import _thread
import gc
import re
import signal
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# What the shell keeps in the namespace for itself: histories, results, dunders.
_OF_THE_SHELL = re.compile(
    r"_+|_(i+|ih|oh|dh|sh)|_i?\d+|__\w+__|__pydevd\w*|In|Out|get_ipython|exit|quit|open"
)


def is_user_name(name: str, value: object, hidden: Mapping[str, object]) -> bool:
    """Whether a name of the notebook's namespace is the user's own, not the shell's."""
    if name in hidden and hidden[name] is value:
        return False
    return _OF_THE_SHELL.fullmatch(name) is None or name == "open"


def user_bindings(
    namespace: Mapping[str, object], hidden: Mapping[str, object], also: Collection[str] = ()
) -> dict[str, object]:
    """The user's names and what they stand for now.

    `also` names of the shell that the user's code binds itself.
    """
    return {
        name: value
        for name, value in list(namespace.items())
        if name in also or is_user_name(name, value, hidden)
    }


@dataclass(frozen=True)
class Difference:
    """How a run changed the bindings of the namespace."""

    bound: dict[str, object]  # new names, and names that stand for another object than before
    deleted: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.bound or self.deleted)


def difference(before: Mapping[str, object], after: Mapping[str, object]) -> Difference:
    """What was bound, rebound and deleted between two snapshots of the bindings."""
    absent = object()
    bound = {name: value for name, value in after.items() if before.get(name, absent) is not value}
    return Difference(bound, frozenset(name for name in before if name not in after))


def rebind(namespace: MutableMapping[str, Any], bound: Mapping[str, object], deleted: Iterable[str]) -> None:
    """Bind and delete names; runs no user code."""
    namespace.update(bound)
    for name in deleted:
        namespace.pop(name, None)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let a keyboard interrupt wait until the block has ended.

    Only the main thread receives signals; elsewhere the block simply runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, Any]] = []
    previous = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if waiting and callable(previous):
            previous(*waiting[0])


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the garbage collector from walking all that is alive, again and again, while much is allocated."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def interrupt_main_thread() -> None:
    """Send the interrupt that the kernel's stop button sends; may be called from any thread."""
    main = threading.main_thread()
    if main.ident is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main.ident, signal.SIGINT)
    else:
        _thread.interrupt_main()


def is_embedded(shell: Any) -> bool:
    """Whether the shell is embedded in a program: some variables are its own, some those of a module."""
    return shell.user_ns is not shell.user_global_ns
