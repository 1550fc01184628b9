"""Run the body of a cell as the shell itself would have run it: same transformers, same traceback, same
result."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Body:
    """The body of a cell below its magic lines, parsed and ready to run."""

    source: str  # as the user wrote it, without the magic lines
    transformed: str  # IPython's own syntax turned into Python, line numbers as in the cell
    tree: ast.Module
    file_name: str
    silenced: bool  # the last expression ends with `;`


def parse_body(shell: Any, source: str, lines_above: int) -> Body:
    """Turn the body into Python with the shell's transformers.

    Parameters
    ----------
    shell : InteractiveShell
    source : str
        What stands below the magic lines.
    lines_above : int
        How many lines of the cell stand above it, so that tracebacks show the cell's own line numbers.

    Raises
    ------
    SyntaxError
        As the shell would raise it.
    """
    # `transform_cell` removes leading blank lines, so they are counted here and given back
    stripped = source.lstrip("\n")
    above = lines_above + len(source) - len(stripped)
    transformed = "\n" * above + shell.transform_cell(source)
    number = shell.execution_count - 1
    file_name = _cache_source(shell, transformed, number)
    tree = shell.transform_ast(shell.compile.ast_parse(transformed, filename=file_name))
    return Body(source, transformed, tree, file_name, _ends_with_semicolon(transformed))


def _cache_source(shell: Any, transformed: str, number: int) -> str:
    """Make the source known to tracebacks under the number of the running cell."""
    try:
        return str(shell.compile.cache(transformed, number, raw_code=transformed))
    except TypeError:  # IPython 7 knows no raw_code
        return str(shell.compile.cache(transformed, number))


def _ends_with_semicolon(source: str) -> bool:
    import io
    import tokenize

    skipped = {
        tokenize.ENDMARKER,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.COMMENT,
        tokenize.DEDENT,
        tokenize.INDENT,
    }
    try:
        tokens = [
            token
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type not in skipped
        ]
    except (tokenize.TokenError, SyntaxError):
        return False
    return bool(tokens) and tokens[-1].type == tokenize.OP and tokens[-1].string == ";"


async def run_statements(
    shell: Any, body: Body, statements: list[ast.stmt], *, last: bool = True
) -> BaseException | None:
    """Run statements of the body in the notebook's namespace and return what they raised, already shown.

    `last` says whether the last of them is the cell's last statement, whose value is displayed.
    """
    from IPython.core.interactiveshell import ExecutionInfo, ExecutionResult

    result = ExecutionResult(_execution_info(ExecutionInfo, body))
    interactivity = shell.ast_node_interactivity if last else "none"
    with _own_frames_left_out(shell), _silenced(shell.displayhook, body.silenced):
        # a copy: with "last_expr_or_assign" the shell appends to the list it is given
        failed = await shell.run_ast_nodes(
            list(statements),
            body.file_name,
            interactivity=interactivity,
            compiler=shell.compile,
            result=result,
        )
    if not failed:
        return None
    error: object = result.error_before_exec or result.error_in_exec
    if not isinstance(error, BaseException):
        error = RuntimeError("the cell failed without an exception")
    _shown.error = error
    return error


@contextmanager
def _silenced(hook: Any, silenced: bool) -> Iterator[None]:
    """Show no value if the cell ends with `;`, which the shell looks for behind the text of its magic."""
    if not silenced or "quiet" in vars(hook):
        yield
        return
    hook.quiet = lambda: True
    try:
        yield
    finally:
        del hook.quiet


@contextmanager
def _own_frames_left_out(shell: Any) -> Iterator[None]:
    """Show tracebacks without the functions that stand for others while a cell is watched."""
    plain = getattr(shell, "_get_exc_info", None)
    if plain is None or "_get_exc_info" in vars(shell):
        yield
        return

    def asked(*args: Any, **kwargs: Any) -> Any:
        kind, error, trace = plain(*args, **kwargs)
        return kind, error, leave_out_own_frames(error, trace)

    vars(shell)["_get_exc_info"] = asked
    try:
        yield
    finally:
        vars(shell).pop("_get_exc_info", None)


_WATCHERS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "digest", "")


def leave_out_own_frames(error: Any, trace: TracebackType | None) -> TracebackType | None:
    """The traceback of an exception without the frames of watchers; those behind it are changed, too."""
    seen: set[int] = set()
    waiting = [error] if isinstance(error, BaseException) else []
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        shorter = _without_own(one.__traceback__)
        if one is error and one.__traceback__ is trace:
            trace = shorter
        one.__traceback__ = shorter
        waiting += [behind for behind in (one.__cause__, one.__context__) if behind is not None]
    return _without_own(trace)


def _without_own(trace: TracebackType | None) -> TracebackType | None:
    steps = []
    here = trace
    while here is not None:
        steps.append(here)
        here = here.tb_next
    kept = [step for step in steps if not step.tb_frame.f_code.co_filename.startswith(_WATCHERS)]
    if len(kept) == len(steps):
        return trace
    made = None
    for step in reversed(kept):
        made = TracebackType(made, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return made


def _execution_info(kind: Any, body: Body) -> Any:
    try:
        return kind(body.source, False, False, True, None)
    except TypeError:  # IPython before 8 has no cell id
        return kind(body.source, False, False, True)


def run_to_completion(coroutine: Any) -> Any:
    """Drive a coroutine that never really waits, as the shell does with cells without `await`."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value
    except RuntimeError as error:
        # A coroutine cannot raise a StopIteration, which a cell may.
        stopped = error.__cause__
        if not isinstance(stopped, StopIteration) or str(error) != "coroutine raised StopIteration":
            raise
    else:
        stopped = None
    if stopped is not None:
        raise stopped
    coroutine.close()
    raise RuntimeError("a cell without top-level await tried to wait")


@dataclass
class _Shown:
    """The exception whose traceback the user has seen last."""

    error: BaseException | None = None


_shown = _Shown()


def is_shown(error: BaseException) -> bool:
    """Whether the user has just seen the traceback of an exception."""
    return error is _shown.error


def show_error(shell: Any, error: BaseException) -> None:
    """Show the traceback of an exception, unless the user has seen it."""
    if error is not _shown.error:
        shell.showtraceback((type(error), error, error.__traceback__))
        _shown.error = error


@contextmanager
def shown_once(shell: Any) -> Iterator[None]:
    """Let the exception that leaves the block end the cell without a second traceback.

    What an inner run has shown, with the cell's own frames, is raised again only to make the outer cell
    fail, so that Run All stops: the shell's next showtraceback is swallowed, once. Other exceptions pass
    as they are.
    """
    try:
        yield
    except BaseException as error:
        if error is _shown.error:
            _swallow_next_traceback(shell)
        raise
    finally:
        _shown.error = None


def _swallow_next_traceback(shell: Any) -> None:
    kept = shell._last_traceback if hasattr(shell, "_last_traceback") else None

    def showtraceback(*_args: Any, **_kwargs: Any) -> None:
        restore()
        if kept is not None:
            shell._last_traceback = kept

    def restore(*_args: Any) -> None:
        if shell.__dict__.get("showtraceback") is showtraceback:
            del shell.__dict__["showtraceback"]
        if restore in shell.events.callbacks.get("post_run_cell", []):
            shell.events.unregister("post_run_cell", restore)

    shell.__dict__["showtraceback"] = showtraceback
    shell.events.register("post_run_cell", restore)
