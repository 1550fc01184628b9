"""Tracebacks that travel: what they show, without the frames of this package, and made again elsewhere."""

from __future__ import annotations

import linecache
import os
import types
from collections.abc import Iterable

Traceback = list[tuple[str, str, int, int]]
"""File, function, line and the function's first line of every frame."""

#: What the functions are called that replay the statements of a cell.
SITE = "__ipyparcache_site"
OWN_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def traceback_rows(error: BaseException) -> Traceback:
    """File, function, line and the function's first line for the frames of a traceback, without ours."""
    rows: Traceback = []
    entry = error.__traceback__
    while entry is not None:
        code = entry.tb_frame.f_code
        if not code.co_filename.startswith(OWN_FOLDER):
            rows.append((code.co_filename, code.co_name, entry.tb_lineno, code.co_firstlineno))
        entry = entry.tb_next
    return rows


def with_traceback(error: BaseException, rows: Traceback) -> BaseException:
    """The exception with a traceback that shows these lines, although no frame of them ran here."""
    chain: types.TracebackType | None = None
    for row in reversed(rows):
        chain = _entry(*row, chain)
    return error.with_traceback(chain)


def sources_of(codes: Iterable[types.CodeType]) -> dict[str, list[str]]:
    """Lines of the cells that code comes from, which no file holds, by their name."""
    names = {code.co_filename for code in codes}
    entries = {name: linecache.cache.get(name) for name in names if not os.path.exists(name)}
    return {name: list(entry[2]) for name, entry in entries.items() if entry is not None and len(entry) == 4}


def know_sources(sources: dict[str, list[str]]) -> None:
    """Have tracebacks of this process show these lines."""
    for name, lines in sources.items():
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)


def _entry(
    file_name: str, name: str, line: int, first: int, following: types.TracebackType | None
) -> types.TracebackType | None:
    """One line of a traceback: in a function that begins in line `first`."""
    first = max(1, min(first, line))
    code = compile("\n" * (line - first) + "raise error", file_name, "exec")
    code = code.replace(co_name=name, co_qualname=name, co_firstlineno=first)
    try:
        exec(code, {"__name__": "__main__", "error": ZeroDivisionError()})
    except ZeroDivisionError as error:
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        if last is not None:
            return types.TracebackType(following, last.tb_frame, last.tb_lasti, max(line, 1))
    return following


def of_the_cell(error: BaseException, file_name: str) -> BaseException:
    """The error of a replayed statement, with the frame of the cell's own line instead of the function's."""
    rows: Traceback = []
    entry = error.__traceback__
    while entry is not None:
        code = entry.tb_frame.f_code
        if code.co_filename == file_name and code.co_name.startswith(SITE):
            rows.append((file_name, "<module>", entry.tb_lineno, 1))
        elif not code.co_filename.startswith(OWN_FOLDER):
            rows.append((code.co_filename, code.co_name, entry.tb_lineno, code.co_firstlineno))
        entry = entry.tb_next
    return with_traceback(error, rows)


def below(error: BaseException, file_name: str, line: int) -> BaseException:
    """The exception as raised by what a line of the cell calls."""
    inner = without_our_frames(error).__traceback__
    return error.with_traceback(_entry(file_name, "<module>", line, 1, inner))


def without_our_frames(error: BaseException, loop: tuple[str, int] | None = None) -> BaseException:
    """The exception without the frames of this package, wherever they stand in its traceback.

    Where nothing else is left, as for an interrupt or a worker's death, it is raised by the line of the cell
    that `loop` names; if none is given, all frames stay.
    """
    kept: list[types.TracebackType] = []
    entry = error.__traceback__
    while entry is not None:
        if not entry.tb_frame.f_code.co_filename.startswith(OWN_FOLDER):
            kept.append(entry)
        entry = entry.tb_next
    chain: types.TracebackType | None = None
    for part in reversed(kept):
        chain = types.TracebackType(chain, part.tb_frame, part.tb_lasti, part.tb_lineno)
    if chain is None and loop is not None:
        chain = _entry(loop[0], "<module>", loop[1], 1, None)
    return error.with_traceback(chain) if chain is not None else error
