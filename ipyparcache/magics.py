"""Everything a user can type in a notebook: `%%cached`, `%%parallel`, `%parcache`, and loading the
extension."""

from __future__ import annotations

import ast
import html
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand

from ipyparcache import settings
from ipyparcache.analysis.cell import has_top_level_await
from ipyparcache.cells import ahead, auto, cached, loops, reports, runs
from ipyparcache.cells.cached import CACHED_OPTIONS, Asked, CachedOptions
from ipyparcache.cells.loops import CellPlan, LoopOptions
from ipyparcache.cells.options import (
    Option,
    Parsed,
    WrongOption,
    at_least,
    help_text,
    one_of,
    parse_line,
    seconds,
    variable,
    whole,
)
from ipyparcache.cells.runs import Run
from ipyparcache.cells.tracebacks import with_traceback, without_our_frames
from ipyparcache.engine.cpus import cpu_count
from ipyparcache.engine.launching import can_have_processes
from ipyparcache.engine.pool import the_pool
from ipyparcache.errors import LoopRefused, ParcacheError
from ipyparcache.kernel.host import ShellHost
from ipyparcache.kernel.namespace import is_embedded
from ipyparcache.kernel.outputs import show_note
from ipyparcache.kernel.running import (
    Body,
    is_shown,
    parse_body,
    run_statements,
    run_to_completion,
    show_error,
    shown_once,
)

# Cell magics that run their cell and change nothing of it: below one of ours they run live around it.
AROUND = ("time", "capture", "prun", "timeit", "mprun", "lprun", "memray_flamegraph")
# Of these, the ones that show the value of the last expression.
SHOWING = ("time", "capture")

#: What the value of a line magic's expression is called until the magic returns it.
VALUE = "__value__"

PARALLEL_OPTIONS = (
    Option("--jobs", "workers; one per core if not given, or for -1", whole, "N", None, "-j"),
    Option(
        "--backend",
        "processes, threads or sequential",
        one_of("processes", "threads", "sequential", "loky", "threading"),
        "NAME",
        "processes",
    ),
    Option("--cached", "each iteration is an entry of its own", None, "", False),
    Option("--seed", "own random stream for each iteration", at_least(0), "N"),
    Option("--background", "return at once; NAME is a handle", variable, "NAME"),
    Option(
        "--on-error", "raise, or collect the errors and go on", one_of("raise", "collect"), "HOW", "raise"
    ),
    Option("--timeout", "seconds an iteration may take", seconds, "S"),
    Option("--retries", "more attempts for an iteration that fails", at_least(0), "N", 0),
    Option(
        "--chunk",
        "iterations sent at once; by their time if not given",
        lambda text: None if text == "auto" else at_least(1)(text),
        "auto|N",
    ),
    Option("--order", "print in order (kept) or as it comes (free)", one_of("kept", "free"), "HOW", "kept"),
    Option("--inner-threads", "threads of BLAS and OpenMP in each worker", at_least(1), "N"),
    Option("--progress", "show the bar (--no-progress: do not)", None, "", None),
    Option("--no-progress", "show no bar"),
    Option("--quiet", "no summary below the cell; warnings stay", None, "", False),
)


@dataclass(frozen=True)
class Stack:
    """The magic lines above a body: which of ours, with their options, and who runs around them."""

    cached: CachedOptions | None
    parallel: LoopOptions | None
    around: tuple[str, str] | None  # name and line of another magic that was found below ours
    body: str
    lines_above: int
    help: str | None = None
    is_value: bool = False  # the body is the expression of a line magic


@magics_class
class ParcacheMagics(Magics):  # type: ignore[misc]  # IPython's classes have no types
    """The magics of ipyparcache."""

    @no_var_expand  # type: ignore[untyped-decorator]  # IPython's decorators have no types
    @line_cell_magic  # type: ignore[untyped-decorator]
    def cached(self, line: str, cell: str | None = None) -> object:
        """Bring a cell's effects back from disk if nothing it depends on has changed."""
        if cell is None:
            line, cell = _split_line_magic("%cached", line, CACHED_OPTIONS)
            return _value_of(self.shell, "cached", line, cell)
        _finish(self.shell, "cached", line, _parse_stack("cached", line, cell))
        return None

    @no_var_expand  # type: ignore[untyped-decorator]  # IPython's decorators have no types
    @line_cell_magic  # type: ignore[untyped-decorator]
    def parallel(self, line: str, cell: str | None = None) -> object:
        """Run the loops of a cell on all cores, with the effects of the serial run."""
        if cell is None:
            line, cell = _split_line_magic("%parallel", line, PARALLEL_OPTIONS)
            return _value_of(self.shell, "parallel", line, cell)
        _finish(self.shell, "parallel", line, _parse_stack("parallel", line, cell))
        return None

    @line_magic("%cached")  # type: ignore[untyped-decorator]  # IPython's decorators have no types
    def misplaced_cached(self, line: str) -> None:
        """What IPython calls for `%%cached` on any line but a cell's first."""
        raise UsageError(_not_first("%%cached"))

    @line_magic("%parallel")  # type: ignore[untyped-decorator]  # IPython's decorators have no types
    def misplaced_parallel(self, line: str) -> None:
        """What IPython calls for `%%parallel` on any line but a cell's first."""
        raise UsageError(_not_first("%%parallel"))

    @line_magic  # type: ignore[untyped-decorator]  # IPython's decorators have no types
    def parcache(self, line: str) -> None:
        """Look at the store, the runs and the workers: `%parcache --help`."""
        from ipyparcache.cells import commands  # with pictures and archives, which loading need not wait for

        try:
            said = commands.run(line)
        except (WrongOption, ParcacheError, OSError) as error:
            raise UsageError(str(error)) from None
        self.shell.user_ns.update(said.variables)
        if said.text:
            show_note(
                self.shell, said.html or f"<pre>{html.escape(said.text)}</pre>", said.text, kind="command"
            )

    async def run_awaiting(self, magic: str, line: str, cell: str) -> None:
        """Run a cell with top-level `await`; called by the text that `rewrite_awaiting_cell` makes."""
        with shown_once(self.shell):
            await _run(self.shell, _parse_stack(magic, line, cell))


def _not_first(magic: str) -> str:
    return (
        f"{magic} goes on the first line of its cell, above comments and code: move it up there and run again"
    )


def _split_line_magic(magic: str, line: str, options: tuple[Option, ...]) -> tuple[str, str]:
    """The options and the statement of a line magic."""
    try:
        parsed = parse_line(magic, line, options, stop_at_word=True)
    except WrongOption as error:
        raise UsageError(str(error)) from None
    if parsed.help_wanted:
        return "--help", "\n"
    if not parsed.words:
        raise UsageError(f"{magic}: write a statement after it, as in `{magic} x = f(y)`")
    statement = parsed.words[0]
    return line[: line.rindex(statement)], f"{statement}\n"


def _is_expression(statement: str) -> bool:
    try:
        body = ast.parse(statement.strip()).body
    except SyntaxError:
        return False
    return len(body) == 1 and isinstance(body[0], ast.Expr) and not statement.rstrip().endswith(";")


def _value_of(shell: Any, magic: str, line: str, statement: str) -> object:
    """Run the statement of a line magic; returns the value of an expression."""
    stack = replace(_parse_stack(magic, line, statement), lines_above=0, is_value=_is_expression(statement))
    _finish(shell, magic, line, stack)
    return shell.user_ns.pop(VALUE, None)


def _with_value_bound(tree: ast.Module) -> ast.Module:
    """The expression as an assignment to `VALUE`, in the same places of the text."""
    (statement,) = tree.body
    assert isinstance(statement, ast.Expr)
    bound = ast.Assign([ast.Name(VALUE, ast.Store())], statement.value)
    ast.copy_location(bound.targets[0], statement)
    return ast.Module([ast.fix_missing_locations(ast.copy_location(bound, statement))], [])


def _finish(shell: Any, magic: str, line: str, stack: Stack) -> None:
    """Run a cell without `await`: the magic returns when it is done."""
    if stack.help is not None:
        show_note(shell, f"<pre>{html.escape(stack.help)}</pre>", stack.help, kind="help")
        return
    if stack.around is not None:
        name, arguments = stack.around
        body = stack.body if name in SHOWING else f"{stack.body}\nNone"
        shell.run_cell_magic(name, arguments, f"%%{magic} {line}\n{body}")
        return
    with shown_once(shell):
        run_to_completion(_run(shell, stack))


async def _run(shell: Any, stack: Stack) -> None:
    try:
        with auto.paused():
            body = parse_body(shell, stack.body, stack.lines_above)
            if stack.is_value:
                body = replace(body, tree=_with_value_bound(body.tree))
    except SyntaxError as error:
        show_error(shell, error)
        raise
    execute: Callable[[Body], Awaitable[BaseException | None]]
    asked = Asked()
    if stack.parallel is None:

        async def execute(body: Body) -> BaseException | None:
            with auto.paused():
                return await run_statements(shell, body, body.tree.body)

    else:
        plan = _plan(shell, body, stack.parallel)
        secret = None if stack.cached is None else cached.secret_of(stack.cached)

        async def execute(body: Body) -> BaseException | None:
            return _run_loops(shell, body, plan, secret, asked)

    if stack.cached is None:
        raised = await execute(body)
        if raised is not None:
            raise raised
        return
    if stack.cached.auto and auto.is_too_short(body.source, body.tree, shell.user_ns):
        await _just_run(shell, body, execute)
        return
    # how the loop is spread over workers changes nothing of what it leaves; these options do
    loop = stack.parallel
    variant = "" if loop is None else repr((loop.seed, loop.on_error, loop.inner_threads))
    try:
        await cached.run_cached(shell, body, stack.cached, execute, variant, asked)
    except KeyboardInterrupt as interrupt:
        if not is_shown(interrupt):  # it came while the cell was looked up or stored, in code of ours
            place = (body.file_name, "<module>", body.tree.body[0].lineno if body.tree.body else 1, 1)
            show_error(shell, with_traceback(interrupt, [place]))
        raise


async def _just_run(
    shell: Any, body: Body, execute: Callable[[Body], Awaitable[BaseException | None]]
) -> None:
    """Run a cell that automatic mode finds too short to look up."""
    began = time.perf_counter()
    raised = await execute(body)
    seconds = time.perf_counter() - began
    auto.note_seconds(body.source, seconds)
    reason = "automatic mode finds it too short to look up"
    number = shell.execution_count - 1
    runs.note_run(Run("not stored", reason, seconds, seconds, execution_count=number, cell=body.source))
    if raised is not None:
        raise raised


def _plan(shell: Any, body: Body, options: LoopOptions) -> CellPlan:
    """Plan the loops of a cell; a refusal is noted as a run before it is raised."""
    try:
        if is_embedded(shell):
            raise LoopRefused(
                body.tree.body[0].lineno if body.tree.body else 1,
                None,
                "the shell is embedded in a program, and part of the variables are those of its module",
                "Drop %%parallel from the cell, or write the loop with `ipyparcache.Parallel`.",
            )
        return loops.plan_cell(body.tree, shell.user_ns, options)
    except LoopRefused as refusal:
        number = shell.execution_count - 1
        runs.note_run(Run("refused", refusal.reason, execution_count=number, cell=body.source))
        raise


def _run_loops(
    shell: Any, body: Body, plan: CellPlan, secret: bytes | None, asked: Asked
) -> BaseException | None:
    """Run a planned cell and note what became of it; returns what it raised, shown to the user."""
    started = time.perf_counter()
    raised: BaseException | None = None
    host = ShellHost(shell, body, secret)
    try:
        with auto.paused():
            loops.run_cell(plan, host)
    except BaseException as error:
        raised = error
    report = loops.last_report()
    if raised is not None:
        host.clear_before_more()
        last = (host.file_name, report.loops[-1].line) if report.loops else None
        show_error(shell, without_our_frames(raised, last))
    reports.note_report(report)
    for loop in report.loops:
        asked.add(loop.asked)
    if plan.options.backend == "processes":
        ahead.note_use(shell, max((len({row[0] for row in loop.rows}) for loop in report.loops), default=0))
    seconds = time.perf_counter() - started
    count = sum(loop.iterations for loop in report.loops)
    reason = f"{count} iterations" if raised is None else f"it raised {type(raised).__name__}"
    status: runs.Status = "refused" if isinstance(raised, LoopRefused) else "parallel"
    number = shell.execution_count - 1
    runs.note_run(Run(status, reason, seconds, seconds, execution_count=number, cell=body.source))
    return raised


def _parse_stack(magic: str, line: str, cell: str) -> Stack:
    """Take the magic lines at the top of a cell apart; the first has been read by IPython."""
    options: dict[str, Any] = {"cached": None, "parallel": None}
    above = 0
    around: tuple[str, str] | None = None
    while True:
        try:
            if magic == "cached":
                parsed = parse_line("%%cached", line, CACHED_OPTIONS)
                options["cached"] = cached.options_from(parsed)
            else:
                parsed = parse_line("%%parallel", line, PARALLEL_OPTIONS)
                options["parallel"] = _loop_options(parsed)
        except WrongOption as error:
            raise UsageError(str(error)) from None
        above += not parsed.values.get("auto", False)  # that line was put there, not typed
        if parsed.help_wanted:
            return Stack(None, None, None, cell, above, _help(magic))
        following = re.match(r"((?:[ \t]*(?:#.*)?\n)*)[ \t]*%%(\w+)[ \t]*(.*)\n?", cell)
        if following is None:
            break
        name = following[2]
        rest = cell[following.end() :]
        if name in options:
            if options[name] is not None:
                raise UsageError(f"%%{name} stands twice above this cell: leave one of them out")
            above += following[1].count("\n")
            magic, line, cell = name, following[3], rest
            continue
        if name in AROUND:
            above += following[1].count("\n")
            around, cell = (name, following[3]), rest
        break
    if not cell.strip():
        raise UsageError(f"%%{magic}: the cell below it is empty")
    loop = options["parallel"]
    if options["cached"] is not None and loop is not None and loop.background is not None:
        raise UsageError(
            "%%cached would store the cell before its loop in the background is over: leave it out; "
            f"`%%parallel --cached --background {loop.background}` stores each iteration"
        )
    return Stack(options["cached"], options["parallel"], around, cell, above)


def _loop_options(parsed: Parsed) -> LoopOptions:
    if parsed.words:
        word = parsed.words[0]
        hint = f"; did you mean `-j {word}`?" if word.isdigit() else ""
        raise WrongOption("%%parallel", f"`{word}` is no option{hint}")
    values = dict(parsed.values)
    if values["jobs"] == 0:
        raise WrongOption("%%parallel", "`-j 0` leaves nobody to run the loop")
    return LoopOptions(**values)


def _help(magic: str) -> str:
    if magic == "cached":
        return help_text(
            "%%cached [NAME ...] [options]",
            "The cell's effects come back from disk if nothing it depends on has changed; of its variables,\n"
            "where NAMEs are given, only these.",
            CACHED_OPTIONS,
        )
    return help_text(
        "%%parallel [options]",
        "The cell's top-level loops run on all cores and leave what the serial cell would leave.",
        PARALLEL_OPTIONS,
    )


# What `%%cached?` and `%%parallel?` show.
ParcacheMagics.cached.__doc__ = _help("cached")
ParcacheMagics.parallel.__doc__ = _help("parallel")


# -- loading ---------------------------------------------------------------------------------------


def rewrite_awaiting_cell(lines: list[str]) -> list[str]:
    """Turn a cell of ours that awaits into one that the shell awaits; other cells pass unchanged."""
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        return lines
    found = re.match(r"%%(cached|parallel)\b[ \t]*(.*)", lines[first])
    if found is None or not any("await" in line or "async" in line for line in lines[first + 1 :]):
        return lines
    body = "".join(lines[first + 1 :])
    if not _awaits(re.sub(r"(?m)^%%.*$", "", body)):
        return lines
    magics = "get_ipython().magics_manager.registry['ParcacheMagics']"
    return [f"await {magics}.run_awaiting({found[1]!r}, {found[2]!r}, {body!r})\n"]


def _awaits(body: str) -> bool:
    try:
        tree = compile(body, "<cell>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError:
        return False
    return isinstance(tree, ast.Module) and has_top_level_await(tree)


def load_ipython_extension(shell: Any) -> None:
    """Register the magics, the transformers and the hooks of the extension."""
    shell.register_magics(ParcacheMagics)
    transformers = shell.input_transformers_cleanup
    for transformer in (auto.rewrite_cell, rewrite_awaiting_cell):
        if transformer not in transformers:
            transformers.append(transformer)
    cached.install(shell)
    if hasattr(shell, "kernel"):
        _warm_up(shell)


def _warm_up(shell: Any) -> None:
    """Start in the background what the first parallel cell would wait for."""
    warm = settings.current().warm
    if warm == "off" or not can_have_processes():
        return
    the_pool().preload(("ipyparcache.cells.iteration",))
    ahead.install(shell)
    if warm == "on":
        the_pool().warm_up(cpu_count())
    else:
        the_pool().start_server()


def unload_ipython_extension(shell: Any) -> None:
    """Take back what `load_ipython_extension` registered."""
    transformers = shell.input_transformers_cleanup
    for transformer in (auto.rewrite_cell, rewrite_awaiting_cell):
        if transformer in transformers:
            transformers.remove(transformer)
    for kind in ("line", "cell"):
        for name in ("cached", "parallel", "parcache", "%cached", "%parallel"):
            shell.magics_manager.magics[kind].pop(name, None)
    auto.switch(on=False)
    ahead.uninstall(shell)
    cached.uninstall(shell)
