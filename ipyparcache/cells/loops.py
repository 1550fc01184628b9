"""`%%parallel`: a cell's loops as tasks.

And a namespace afterwards that is the one the serial cell would have left.
"""

from __future__ import annotations

import ast
import html
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from typing import Any

from ipyparcache.analysis import refusals
from ipyparcache.analysis.body import VALUE, replaced
from ipyparcache.analysis.flow import Flow
from ipyparcache.analysis.parfor import Parfor
from ipyparcache.analysis.refusals import Refusal
from ipyparcache.analysis.steps import Comprehension, Loop, Serial, Step, step_of, steps_of
from ipyparcache.cells.facts import facts_now, facts_of
from ipyparcache.cells.looprun import LoopRun, drained, jobs_of, streamed
from ipyparcache.cells.plans import CellPlan, Host, LoopOptions, LoopReport, RunReport, refused
from ipyparcache.errors import LoopRefused


def plan_cell(tree: ast.Module, namespace: dict[str, Any], options: LoopOptions) -> CellPlan:
    """Take a cell apart into statements and loops.

    Raises
    ------
    LoopRefused
        If one of its loops cannot be run in tasks; nothing has been executed then.
    """
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    steps = steps_of(tree, facts_of(names, namespace))
    if isinstance(steps, Refusal):
        raise refused(steps, namespace)
    loops = [step for step in steps if not isinstance(step, Serial)]
    if options.background is not None and len(loops) > 1:
        line = loops[1].parfor.line
        raise refused(refusals.NotSupported(line, None, "--background takes a cell with one loop only"))
    return CellPlan(tuple(steps), options)


SHOWN_ERRORS = 10  # of those collected, below the cell

_last = RunReport()


def last_report() -> RunReport:
    """What became of the loops of the last cell: its errors, partial results and timeline."""
    return _last


def run_cell(plan: CellPlan, host: Host) -> RunReport:
    """Run the statements of a planned cell in order, its loops in tasks.

    The error that ends the cell is raised; `last_report` tells of its loops then, too.
    """
    global _last
    _last = report = RunReport()
    if plan.options.background is not None:
        from ipyparcache.cells import background

        background.start(plan, host, report)
        return report
    try:
        run_steps(plan, host, report, 0)
    finally:
        show_figures(report, host)
        show_notes(plan, report, host)
    return report


def show_notes(plan: CellPlan, report: RunReport, host: Host) -> None:
    """Say what the user should know of a run that went well: errors collected, iterations not kept."""
    if plan.options.quiet:
        return
    lines: list[str] = []
    for loop in report.loops:
        lines += loop.notes
        lines += [str(error) for error in loop.errors[:SHOWN_ERRORS]]
        if len(loop.errors) > SHOWN_ERRORS:
            lines.append(f"and {len(loop.errors) - SHOWN_ERRORS} more: `%parcache errors` shows them all")
    if lines:
        rows = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        host.show_note(f"<ul>{rows}</ul>", "\n".join(lines))


def show_figures(report: RunReport, host: Host) -> None:
    """Show the figures that iterations left open, as the notebook does at the end of a cell."""
    for loop in report.loops:
        for figure in loop.figures:
            host.display((figure,), {})
        loop.figures.clear()


def run_steps(plan: CellPlan, host: Host, report: RunReport, first: int) -> None:
    """Run the steps of a plan from the one numbered `first` on."""
    ran = first > 0
    for number, step in list(enumerate(plan.steps))[first:]:
        last = number == len(plan.steps) - 1
        try:
            if isinstance(step, Serial):
                host.run_statement(step.statement, last=last)
            else:
                _run_in_tasks(step, plan, number, host, report, fresh=not ran)
        except BaseException as error:
            report.error = error
            raise
        ran = True


def as_it_is_now(
    step: Loop | Comprehension, namespace: dict[str, Any], *, last: bool
) -> Loop | Comprehension:
    """The step of a loop, with what the statements before it have made of the names that it reads.

    Raises
    ------
    LoopRefused
        If they are not what the cell let guess, and the loop cannot be run in tasks.
    """
    statement = step.original if isinstance(step, Comprehension) else step.statement
    names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    facts = facts_now(names, step.parfor.facts, namespace)
    if facts is step.parfor.facts:
        return step
    now = step_of(statement, facts, last=last)
    if isinstance(now, Refusal):
        raise refused(now, namespace)
    assert not isinstance(now, Serial)
    return now


def _run_in_tasks(
    step: Loop | Comprehension, plan: CellPlan, number: int, host: Host, report: RunReport, *, fresh: bool
) -> None:
    """Run a loop in tasks, or here, if live values show that it cannot be and other statements have run."""
    last = number == len(plan.steps) - 1
    statement = step.original if isinstance(step, Comprehension) else step.statement
    run: LoopRun | None = None
    try:
        if not fresh:
            step = as_it_is_now(step, host.namespace, last=last)
        run = LoopRun(step.parfor, plan, host)
        run.is_streamed = isinstance(step, Comprehension) and step.kind == "generator"
        if isinstance(step, Loop):
            run.given_up = _given_up(plan.steps[number + 1 :])
        report.loops.append(run.report)
        run.prepare()
        run.start()
        run.open_cache(statement)
    except LoopRefused as error:
        if fresh:
            raise
        _say_serial(error, host)
        with run.iterable_at_hand() if run is not None else nullcontext() as place:
            host.run_statement(_with_iterable(statement, step.parfor, place), last=last)
        return
    if isinstance(step, Comprehension):
        fill(step, run.iterate(), host, last=last)
        return
    drained(run.iterate())
    for following in step.parfor.orelse:  # a value there is not shown, as it is not the cell's
        host.run_statement(following, last=False)


def fill(step: Comprehension, stream: Generator[list[Any], None, None], host: Host, *, last: bool) -> None:
    """Execute the statement around a comprehension with the elements of `stream` in its place."""
    found: object = streamed(stream) if step.kind == "generator" else drained(stream)
    if step.kind == "set":
        found = set(found)  # type: ignore[call-overload]
    elif step.kind == "dict":
        found = dict(found)  # type: ignore[call-overload]
    host.namespace[VALUE] = found
    try:
        host.run_statement(step.statement, last=last)
    finally:
        host.namespace.pop(VALUE, None)
        if isinstance(found, Generator):
            found.close()
        stream.close()


def _given_up(steps: Sequence[Step]) -> frozenset[str]:
    """Names that these steps rebind or delete before they read them."""
    flow = Flow()
    flow.run((step.original if isinstance(step, Comprehension) else step.statement for step in steps), ())
    return frozenset(name for name in flow.bound if flow.early(name) is None)


def _with_iterable(statement: ast.stmt, parfor: Parfor, place: ast.expr | None) -> ast.stmt:
    """The statement with its iterable, where that was evaluated already, taken from `place`."""
    if place is None:
        return statement
    filled = ast.fix_missing_locations(replaced(statement, {id(parfor.iterable): place}))
    assert isinstance(filled, ast.stmt)
    return filled


def _say_serial(error: LoopRefused, host: Host) -> None:
    text = f"ran here, one iteration after the other: {error}"
    host.show_note(f"<div>{text}</div>", text)


__all__ = [
    "CellPlan",
    "Host",
    "LoopOptions",
    "LoopReport",
    "LoopRun",
    "RunReport",
    "jobs_of",
    "plan_cell",
    "run_cell",
]
