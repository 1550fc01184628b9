"""What a chunk of iterations did, done to the namespace, up to what ended it."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from types import CodeType
from typing import Any

from ipyparcache.analysis.body import HOLE, Site
from ipyparcache.analysis.columns import Columns
from ipyparcache.analysis.forms import FILE, path_opened
from ipyparcache.analysis.parfor import Parfor
from ipyparcache.analysis.refits import Refit
from ipyparcache.cells import failures
from ipyparcache.cells.chunks import Chunk, Reader, load_plain
from ipyparcache.cells.estimators import parts_of
from ipyparcache.cells.fileuses import Meetings, Span
from ipyparcache.cells.journal import PLAIN
from ipyparcache.cells.messages import ChunkResult, Failure, Left
from ipyparcache.cells.plans import Host, LoopOptions, LoopReport
from ipyparcache.cells.relaying import Relay
from ipyparcache.cells.replay import Replayer, run_while_raised
from ipyparcache.cells.tracebacks import of_the_cell, without_our_frames
from ipyparcache.errors import ChangeLost, EngineError, IterationError, TaskCancelled


class StoppedInside(Exception):
    """Carries a StopIteration of an iteration through the generators here, which cannot raise one."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class Merger:
    """Merges the chunks of a loop, which come in their order.

    Attributes
    ----------
    stops_early
        Whether who takes the elements may stop between two of them, and it would show.
    keys_read
        The columns that iterations read by their target, each with the last iteration that does.
    measured
        By the id of a container of which iterations are told the length only: its name.
    """

    def __init__(
        self,
        parfor: Parfor,
        host: Host,
        options: LoopOptions,
        report: LoopReport,
        reader: Reader,
        relay: Relay,
        replayer: Replayer,
        *,
        stops_early: bool,
        keys_read: Mapping[object, int],
        measured: Mapping[int, str],
    ) -> None:
        self.parfor = parfor
        self.host = host
        self.namespace = host.namespace
        self.options = options
        self.report = report
        self.reader = reader
        self.relay = relay
        self.replayer = replayer
        self.stops_early = stops_early
        self.keys_read = keys_read
        self.measured = measured
        self._columns = [_column_written(site, parfor) for site in parfor.sites] if parfor.columns else []
        self._touched: dict[int, object] = {}
        # By the number of a site: what its estimator, and each part of that, has learned.
        self._learned: dict[int, list[Set[str]]] = {}
        self._meetings = Meetings()
        self._files = {
            number: _path_of(site, host.file_name)
            for number, site in enumerate(parfor.sites)
            if site.method == FILE
        }

    def merge(self, chunk: Chunk) -> Iterator[list[Any]]:
        """Merge a chunk that is over; yields elements, and raises what ended it."""
        result = chunk.result
        if result is not None and result.files:
            self._check_files(chunk, result)
        lost_from = result.lost_from() if result is not None else None
        failure = result.failure if result is not None else None
        apart = self.relay.marked and bool(chunk.events)
        one_by_one = bool(chunk.objects or self._columns or self.parfor.refits) or self.stops_early or apart
        one_by_one = one_by_one or bool(self._files)
        if lost_from is None and failure is None and not one_by_one:
            values = self._merge_plain(chunk)
            if values:
                yield values
        for number, left in () if chunk.merged else self.reader.iterations_of(chunk):
            if lost_from is not None and number >= lost_from:
                break
            if failure is not None and number == failure.iteration:
                self._check_names(failure, chunk, left)
                if self.options.on_error == "collect":
                    break
            self.apply(number, left, chunk)
            if apart:
                self.relay.show_of(chunk, number)
            if failure is None or number < failure.iteration:
                self.report.iterations += 1
                if self.parfor.yields:
                    yield self._values(left)
        if lost_from is not None and result is not None:
            raise failures.change_lost(result, lost_from, self.parfor, self.reader)
        if failure is not None:
            self.relay.show(chunk)
            error = failures.error_of(failure, chunk, self.parfor, self.reader)
            if self.options.on_error != "collect":
                error = self._finish(failure, error, chunk)
                # A generator cannot raise StopIteration, which an iteration may.
                raise StoppedInside(error) if isinstance(error, StopIteration) else error
            yield from self._collect(failure.iteration, error, chunk)
        if chunk.error is not None:
            self.relay.show(chunk)
            done = chunk.first + sum(1 for _ in self.reader.iterations_of(chunk))
            error = chunk.error.exception
            if chunk.at is not None and chunk.at > done:
                error.add_note(
                    f"what iterations {done} to {chunk.at - 1} had left was too large to be sent at once: "
                    f"it is lost with the worker"
                )
                done = chunk.at
            if isinstance(error, TaskCancelled):
                raise KeyboardInterrupt
            if isinstance(error, EngineError):
                error.of_iteration(done)
            failures.noted(error, self.parfor, done, {})
            if self.options.on_error != "collect":
                raise error
            yield from self._collect(done, error, chunk)

    def _merge_plain(self, chunk: Chunk) -> list[Any]:
        """The same for the commonest chunk, without looking at each iteration for what it cannot have.

        Returns the elements of a comprehension.
        """
        found: list[Any] = []
        apply, apply_plain = self.replayer.apply, self.replayer.apply_plain
        chunk.merged = True
        for first in sorted(chunk.records):
            data, buffers = chunk.records[first]
            number = first
            plain = data.startswith(PLAIN)
            lefts = load_plain(data) if plain else self.reader.load(data, buffers, {}) if data else buffers
            if plain and not self.parfor.yields and self.replayer.apply_together(lefts):
                self.report.iterations += len(lefts)
                continue
            try:
                if plain and self.parfor.yields:
                    for number, (entries, values, elements) in enumerate(lefts, first):  # noqa: B007
                        if entries or values:
                            apply_plain(entries, values)
                        found += elements
                elif plain:
                    for number, (entries, values) in enumerate(lefts, first):  # noqa: B007 - where it failed
                        apply_plain(entries, values)
                else:
                    for number, left in enumerate(lefts, first):  # noqa: B007 - the same
                        apply(left, {})
                        if self.parfor.yields:
                            found += self._values(left)
            except Exception as error:
                bindings = self.replayer.by_name(lefts[number - first][1])
                raise failures.noted(
                    of_the_cell(error, self.host.file_name), self.parfor, number, bindings
                ) from None
            finally:
                self.report.iterations += number - first
            self.report.iterations += 1
        return found

    def _values(self, left: Left) -> list[Any]:
        value = left[4]
        assert isinstance(value, list)
        return value

    def apply(self, number: int, left: Left, chunk: Chunk) -> None:
        """Do what an iteration did to the namespace."""
        objects = chunk.objects_of(number)
        if self._columns:
            self._check_columns(number, left)
        for refit in self.parfor.refits:
            self._check_fitted(refit, number, left)
        if self._touched and any(id(obj) in self._touched for obj in objects.values()):
            raise ChangeLost(
                self.parfor.line,
                "an element that an earlier iteration had changed too",
                number,
                number,
                _MEET_ADVICE,
            )
        # A buffer of an array has a number on the worker only; the array itself is in the list too.
        left[3][:] = [change for change in left[3] if change[0] in objects]
        for key, _, _ in left[3]:
            if id(objects[key]) in self.measured:
                what = f"`{self.measured[id(objects[key])]}`, whose length is read, too,"
                raise ChangeLost(self.parfor.line, what, number, number, _MEET_ADVICE)
            self._touched[id(objects[key])] = objects[key]
        written = self._written_by(number, left, chunk) if self._files else ()
        try:
            self.replayer.apply(left, objects, lambda entry: self.relay.show_of(chunk, number, entry))
        except Exception as error:
            self.relay.show_of(chunk, number, self.replayer.failed_at)
            raise failures.noted(
                of_the_cell(error, self.host.file_name), self.parfor, number, left[1]
            ) from None
        for path in written:
            self._meetings.wrote(path, number)

    def _written_by(self, number: int, left: Left, chunk: Chunk) -> list[str]:
        """The files that are to be written here for an iteration, which its worker must not have used."""
        sites = {entry[0] for entry in left[0] if entry[0] in self._files}
        found = [eval(self._files[site], self.namespace) for site in sorted(sites)]
        paths = [os.path.abspath(os.fsdecode(f)) for f in found if isinstance(f, str | bytes | os.PathLike)]
        uses = chunk.result.files if chunk.result is not None else {}
        for path in paths:
            if uses.keys() & {path, os.path.dirname(path) + os.sep}:
                here = Span(number, number, 0.0)
                raise failures.files_met(self.parfor, path, here, chunk.first, chunk.first + chunk.count - 1)
        return paths

    def _check_files(self, chunk: Chunk, result: ChunkResult) -> None:
        """No iteration may meet an earlier one at a file while both run."""
        last = chunk.first + max(0, result.ran - 1)
        met = self._meetings.add(chunk.first, last, result.started, result.ended, result.files)
        if met is not None:
            path, other = met
            raise failures.files_met(self.parfor, path, other, chunk.first, last)

    def _check_names(self, failure: Failure, chunk: Chunk, left: Left) -> None:
        bound = self.namespace.keys() & set(self.parfor.temporaries) - set(left[2])
        error = failures.error_of(failure, chunk, self.parfor, self.reader)
        lost = failures.value_lost(error, failure, self.parfor, bound)
        if lost is not None:
            raise lost

    def _finish(self, failure: Failure, error: BaseException, chunk: Chunk) -> BaseException:
        """Run what a failed iteration left to the kernel of its `finally`; the exception that goes on."""
        for number in failure.unfinished:
            shown = error.__traceback__
            raised = run_while_raised(self.parfor.tails[number].statements, error, self.host)
            if raised is error:
                error.__traceback__ = shown
            else:
                bindings = self.reader.bindings_of(chunk, failure.iteration)
                error = failures.noted(without_our_frames(raised), self.parfor, failure.iteration, bindings)
        return error

    def _check_columns(self, number: int, left: Left) -> None:
        """What an iteration writes of a table must not be read by a later one, nor behind the write."""
        for entry in left[0]:
            written = self._columns[entry[0]]
            if written is None:
                continue
            table, hole, by_cell = written
            key = entry[1 + hole]
            if by_cell:
                row = key[0]
                if _is_label(row) and row not in self.namespace[table.root].index:
                    self._column_lost(f"the rows of `{table.root}`, which others read,", number)
                continue
            for column in key if type(key) is list else [key]:
                last = self.keys_read.get(column, -1) if _is_label(column) else number + 1
                if last > number or column in table.constants or (table.reads_later and last == number):
                    self._column_lost(f"the column {column!r} of `{table.root}`, which is read, too,", number)

    def _check_fitted(self, refit: Refit, number: int, left: Left) -> None:
        """Each iteration must leave the same attributes in an estimator, so that no earlier one stays on."""
        for entry in left[0]:
            if entry[0] == refit.site:
                names = [state.keys() for state in entry[1]]
                if refit.site not in self._learned:
                    parts = parts_of(self.namespace[refit.root])
                    self._learned[refit.site] = [
                        vars(part).keys() | own for part, own in zip(parts, names, strict=True)
                    ]
                if self._learned[refit.site] != names:
                    what = f"what `{refit.root}` keeps from before it is fitted"
                    raise ChangeLost(self.parfor.line, what, number, number, _FITTED_ADVICE)

    def _column_lost(self, what: str, number: int) -> None:
        raise ChangeLost(self.parfor.line, what, number, number, _COLUMN_ADVICE)

    def _collect(self, number: int, error: BaseException, chunk: Chunk) -> Iterator[list[Any]]:
        notes = getattr(error, "__notes__", [""])
        element = notes[-1].partition("(")[2].removesuffix(")")
        failed = IterationError(number, element, error)
        self.report.errors.append(failed)
        self._fill_slots(failed, number, chunk)
        self.report.iterations += 1
        if self.parfor.yields:
            yield [failed]

    def _fill_slots(self, failed: IterationError, number: int, chunk: Chunk) -> None:
        """Put the error where the failed iteration would have put its results."""
        bindings = self.reader.bindings_of(chunk, number)
        for position, site in enumerate(self.parfor.sites):
            if site.slot is None or any(name not in bindings for name in site.slot if name is not None):
                continue
            holes = [failed if name is None else bindings[name] for name in site.slot]
            with suppress(Exception):  # a place that cannot hold an object, such as an array's
                self.replayer.sites[position](*holes)


def _path_of(site: Site, file_name: str) -> CodeType:
    """What gives the path of the file that a site opens."""
    assert isinstance(site.statement, ast.With)
    opened = site.statement.items[0].context_expr
    assert isinstance(opened, ast.Call)
    path = path_opened(opened)
    assert path is not None
    return compile(ast.Expression(path), file_name, "eval")


def _is_label(key: Any) -> bool:
    """Whether a key names one row or column; masks, and slices, have no hash."""
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _column_written(site: Site, parfor: Parfor) -> tuple[Columns, int, bool] | None:
    """The table that a site writes to, the operand that names the place, and whether that is one cell."""
    table = next((t for t in parfor.columns if t.root in site.roots), None)
    match site.statement:
        case ast.Assign(targets=[ast.Subscript(value=owner, slice=ast.Name(id=hole))]) if table is not None:
            at = next(n for n in range(site.holes) if hole == HOLE % n)
            return table, at, isinstance(owner, ast.Attribute)
    return None


_MEET_ADVICE = "Let each iteration reach objects of its own, or drop %%parallel from the cell."
_FITTED_ADVICE = (
    "Fit an estimator of the iteration's own (`own = sklearn.base.clone(...)`), or drop %%parallel from "
    "the cell."
)
_COLUMN_ADVICE = (
    "Write the new columns to a table of their own (`new = pd.DataFrame(index=...)` before the loop), or "
    "drop %%parallel from the cell."
)
