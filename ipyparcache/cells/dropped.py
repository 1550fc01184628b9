"""Temporaries whose last value did not come home from a worker: fetched, given up, or left unbound."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Mapping, Set

from ipyparcache.cells.holding import Fetch, Held
from ipyparcache.cells.plans import Host
from ipyparcache.engine.outcome import Value
from ipyparcache.engine.pool import the_pool
from ipyparcache.parallel.dispatch import Options, run_tasks

FETCHING = 5.0  # seconds that workers are asked for large temporaries at most
ENDING = 1.0  # seconds in which a worker ends what a dropped call left it


def settle_dropped(
    dropped: Mapping[str, str | Held], given_up: Set[str], token: str, host: Host, line: int
) -> None:
    """Bind each name to what a worker of the run holds, to None where the cell gives it up, or to nothing.

    Parameters
    ----------
    dropped
        By name: where the value lies, or the kind of a value that cannot travel.
    line
        The line of the loop, for the note below the cell.
    """
    held = {n: found for n, found in dropped.items() if isinstance(found, Held) and n not in given_up}
    fetched = _fetched(held, token) if held else {}
    host.namespace.update(fetched)
    for name, found in dropped.items():
        kind = found.kind if isinstance(found, Held) else found
        if name in fetched:
            continue
        if name in given_up:
            host.namespace[name] = None
            continue
        text = (
            f"line {line}: `{name}` ({kind}) cannot come back from a worker and was left "
            f"unbound; warning: a later cell that reads it fails"
        )
        host.show_note(f"<div><b>ipyparcache:</b> {html.escape(text)}</div>", text)


def _fetched(held: Mapping[str, Held], token: str) -> dict[str, object]:
    """Large temporaries from the workers that hold them."""
    found: dict[str, object] = {}
    until = time.monotonic() + FETCHING
    there = the_pool().settled({where.worker for where in held.values()}, ENDING)
    waiting = {name for name, where in held.items() if where.worker in there}

    def questions() -> Iterator[tuple[object, ...]]:
        while waiting - found.keys() and time.monotonic() < until:
            yield ()

    if not waiting:
        return found
    task = Fetch(token, tuple(held.items()))
    count = len(the_pool().pids())
    tasks = run_tasks(task, questions(), Options(n_jobs=count, batch=1, on_error="collect"))
    for _, outcome in tasks:
        if isinstance(outcome, Value):
            found.update(outcome.value)  # type: ignore[call-overload]
    return found
