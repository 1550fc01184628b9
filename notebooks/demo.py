"""Execute the tour four times in real kernels and compare: what is gained, and that nothing else changes.

The runs are: plain and serial, with every magic line taken out; the first with the magics, on an empty store;
a restart and Run All; a restart and Run All after one helper function was edited. The edit keeps what the
function returns, so all four must leave the same variables, prints and figures.

The plain run of a loop with `--seed N` gets what the documentation says the option means: in round `i`,
`np.random.default_rng()` becomes `np.random.default_rng(np.random.SeedSequence(N, spawn_key=(i, 3, 0)))`.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbclient.util import run_sync
from nbformat import NotebookNode

TOUR = Path(__file__).with_name("01_tour.ipynb")
EDITED_FUNCTION = "resample"
EDIT = (
    "    rows = rng.integers(0, len(table), size=len(table))\n",
    "    count = len(table)\n    rows = rng.integers(0, count, size=count)\n",
)
MAGIC_LINE = re.compile(r"%%(cached|parallel)\b.*\n?")
SEED = re.compile(r"--seed[ =](\d+)")
UNSEEDED = "np.random.default_rng()"
SEEDED = "np.random.default_rng(np.random.SeedSequence([{seed}], spawn_key=(i, 3, 0)))"


@dataclass
class CellRun:
    """One execution of one code cell."""

    name: str
    seconds: float
    status: str = ""  # of a magic cell: hit, miss, not stored, refused
    reason: str = ""
    outputs: list[dict[str, Any]] = field(default_factory=list)  # what the user's code showed, in order


@dataclass
class Run:
    """One Run All of the notebook in a fresh kernel."""

    title: str
    notebook: NotebookNode  # with its outputs
    cells: dict[str, CellRun]
    variables: dict[str, str]  # digest of each variable that was left


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def magics_of(cell: NotebookNode) -> list[str]:
    """The magic lines of ours at the top of a cell."""
    return re.match(rf"(?:{MAGIC_LINE.pattern})*", cell.source)[0].splitlines()  # type: ignore[index]


def without_magics(notebook: NotebookNode) -> NotebookNode:
    """The same notebook for a kernel that has never heard of us."""
    plain = deepcopy(notebook)
    plain.cells = [cell for cell in plain.cells if cell.source.strip() != "%load_ext ipyparcache"]
    for cell in code_cells(plain):
        magics = magics_of(cell)
        body = "\n".join(cell.source.splitlines()[len(magics) :])
        seed = next((found[1] for line in magics if (found := SEED.search(line))), None)
        if seed is not None:
            body = body.replace(UNSEEDED, SEEDED.format(seed=seed))
        cell.source = body
    return plain


def edited(notebook: NotebookNode, old: str, new: str) -> NotebookNode:
    """The notebook after a person's edit of one line."""
    changed = deepcopy(notebook)
    (cell,) = [cell for cell in code_cells(changed) if old in cell.source]
    cell.source = cell.source.replace(old, new)
    return changed


def names_in(source: str) -> set[str]:
    """All names that a cell mentions."""
    body = MAGIC_LINE.sub("", source) if source.startswith("%%") else source
    return {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}


def cells_that_use(notebook: NotebookNode, function: str) -> set[str]:
    """Ids of the magic cells that call the function, or a function of the notebook that does."""
    reached = {function}
    definitions = {
        node.name: {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        for cell in code_cells(notebook)
        if not cell.source.startswith("%")
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.FunctionDef)
    }
    while more := {name for name, used in definitions.items() if used & reached} - reached:
        reached |= more
    return {cell.id for cell in code_cells(notebook) if magics_of(cell) and names_in(cell.source) & reached}


def variable_digests(namespace: dict[str, Any]) -> dict[str, str]:
    """A digest of every variable that a session left, by exact type and bits; runs inside the kernel.

    It shares nothing with ipyparcache's own digests, which it is there to check. Everything it needs is
    imported within, as only its source travels.
    """
    import hashlib
    import types

    import numpy as np
    import pandas as pd

    def parts_of(value: Any) -> Iterator[Any]:
        """What a value is made of: bytes, and further values."""
        yield type(value).__qualname__.encode()
        if isinstance(value, bool | int | str | bytes | type(None)):
            yield repr(value).encode()
        elif isinstance(value, float | complex):
            yield np.asarray(value).tobytes()
        elif isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            yield f"{array.dtype.str}{array.shape}".encode()
            if array.dtype.names:  # field by field, as what lies between fields is not set
                yield from (array[name] for name in array.dtype.names)
            else:
                yield array.tolist() if array.dtype.hasobject else array.tobytes()
        elif isinstance(value, pd.DataFrame):
            yield from (list(value.columns), value.index.to_numpy(), [str(kind) for kind in value.dtypes])
            yield from (value.iloc[:, number].to_numpy() for number in range(value.shape[1]))
        elif isinstance(value, pd.Series | pd.Index):
            yield from (str(value.dtype), value.name, value.to_numpy())
            yield value.index.to_numpy() if isinstance(value, pd.Series) else None
        elif isinstance(value, dict):
            yield from (item for pair in value.items() for item in pair)
        elif isinstance(value, list | tuple):
            yield from value
        elif isinstance(value, set | frozenset):
            yield from sorted(value, key=repr)
        elif type(value).__module__.startswith("matplotlib."):
            pass  # what a figure draws is compared as the output of its cell
        elif isinstance(value, type | types.FunctionType | types.BuiltinFunctionType | types.ModuleType):
            yield value.__name__.encode()
        else:
            yield from value.__reduce_ex__(4)

    def digest(value: Any) -> str:
        stream, met, waiting = hashlib.sha256(), {}, [value]
        while waiting:
            value = waiting.pop()
            if isinstance(value, bytes):
                stream.update(len(value).to_bytes(8, "little") + value)
            elif id(value) in met:
                stream.update(b"again")
            else:
                if not isinstance(value, bool | int | float | str | type(None) | np.generic):
                    met[id(value)] = value  # held, so that no other object gets its id
                parts = list(parts_of(value))
                stream.update(b"(%d" % len(parts))
                waiting.extend(reversed(parts))
        return stream.hexdigest()

    apart = types.ModuleType | types.FunctionType | types.BuiltinFunctionType | type
    shell_names = {"In", "Out", "exit", "quit", "open", "get_ipython"}
    return {
        name: digest(value)
        for name, value in sorted(namespace.items())
        if not name.startswith("_") and name not in shell_names and not isinstance(value, apart)
    }


LAST_RUN = """{name: getattr(__import__("ipyparcache").last_run(), name) for name in ("status", "reason")}"""


class Session:
    """A notebook in a fresh kernel, executed cell by cell."""

    def __init__(self, notebook: NotebookNode, folder: Path, environment: dict[str, str]):
        self.notebook = deepcopy(notebook)
        self._client = NotebookClient(
            self.notebook,
            timeout=900,
            kernel_name="python3",
            store_widget_state=False,
            resources={"metadata": {"path": str(folder)}},
        )
        self._environment = environment
        self._log = folder.with_suffix(".log")  # beside the folder, whose times the cells may ask for

    @contextmanager
    def kernel(self) -> Iterator[Session]:
        """The kernel for as long as the block runs."""
        # What the kernel says of itself goes to a file: the output of cells comes as messages.
        with (
            self._log.open("wb") as log,
            self._client.setup_kernel(env=self._environment, stdout=log, stderr=log),
        ):
            yield self

    def run(self, cell: NotebookNode) -> float:
        """Run a cell of the notebook to its end and give the seconds that it took."""
        began = time.perf_counter()
        self._client.execute_cell(cell, self.notebook.cells.index(cell))
        return time.perf_counter() - began

    def ask(self, expression: str, setup: str = "") -> Any:
        """The value of an expression in the kernel, as JSON, without leaving a trace in the notebook."""
        assert self._client.kc is not None, "asked within `kernel()` only"
        request = self._client.kc.execute(
            setup, silent=True, user_expressions={"it": f"__import__('json').dumps({expression})"}
        )
        reply = run_sync(self._client.async_wait_for_reply)(request)
        assert reply is not None
        answer = reply["content"].get("user_expressions", {}).get("it", reply["content"])
        if answer["status"] != "ok":
            raise RuntimeError(f"{answer['ename']}: {answer['evalue']}")
        return json.loads(ast.literal_eval(answer["data"]["text/plain"]))


def shown_by_the_user(cell: NotebookNode) -> list[dict[str, Any]]:
    """The outputs of a cell without our own notes, text of one stream joined."""
    shown: list[dict[str, Any]] = []
    for output in cell.outputs:
        if any(key.startswith("ipyparcache") for key in output.get("metadata", {})):
            continue
        kept = {key: output[key] for key in ("output_type", "name", "text", "data", "ename") if key in output}
        if shown and kept["output_type"] == "stream" and shown[-1].get("name") == kept["name"]:
            shown[-1]["text"] += kept["text"]
        else:
            shown.append(kept)
    return shown


def run_all(
    title: str, notebook: NotebookNode, folder: Path, environment: dict[str, str], say: Callable[[str], None]
) -> Run:
    """Run every cell in a fresh kernel, as Restart and Run All does."""
    say(f"{title}:")
    cells = {}
    with Session(notebook, folder, environment).kernel() as session:
        for cell in code_cells(session.notebook):
            ran = CellRun(cell.id, session.run(cell))
            if magics_of(cell):
                last = session.ask(LAST_RUN)
                ran.status, ran.reason = last["status"], last["reason"] or ""
            ran.outputs = shown_by_the_user(cell)
            cells[cell.id] = ran
            if magics_of(cell) or ran.seconds > 0.5:
                say(f"    {cell.id:16} {ran.seconds:7.2f} s  {ran.status} {ran.reason}".rstrip())
        source = "from __future__ import annotations\n" + inspect.getsource(variable_digests)
        variables = session.ask(
            "_demo['variable_digests'](globals())", setup=f"_demo = {{}}; exec({source!r}, _demo)"
        )
    return Run(title, session.notebook, cells, variables)


def differences(plain: Run, other: Run) -> list[str]:
    """What a run left or showed otherwise than the plain run; empty if nothing."""
    found = [
        f"variable {name}"
        for name in sorted(plain.variables.keys() | other.variables.keys())
        if plain.variables.get(name) != other.variables.get(name)
    ]
    found += [
        f"output of {name}" for name, cell in plain.cells.items() if cell.outputs != other.cells[name].outputs
    ]
    return found


def table(notebook: NotebookNode, runs: list[Run]) -> str:
    """Seconds of each magic cell in each run, with what became of it."""
    magic = {cell.id: " ".join(magics_of(cell)) for cell in code_cells(notebook) if magics_of(cell)}
    width = max(map(len, magic)) + 2
    lines = [" " * width + "".join(f"{run.title:>22}" for run in runs)]
    for name, line in magic.items():
        row = "".join(f"{run.cells[name].seconds:10.2f} s {run.cells[name].status:9}" + " " for run in runs)
        lines.append(f"{name:{width}}{row} {line}".rstrip())
    for what, names in (("magic cells", set(magic)), ("parallel cells", parallel_cells(notebook))):
        row = "".join(
            f"{seconds_in(run, names):10.2f} s {ratio_text(runs[0], run, names):9}" + " " for run in runs
        )
        lines.append(f"{what:{width}}{row}".rstrip())
    return "\n".join(lines)


def parallel_cells(notebook: NotebookNode) -> set[str]:
    """Ids of the cells whose loops run on workers."""
    return {cell.id for cell in code_cells(notebook) if any("%%parallel" in line for line in magics_of(cell))}


def seconds_in(run: Run, names: set[str]) -> float:
    """Seconds that the named cells took together."""
    return sum(cell.seconds for name, cell in run.cells.items() if name in names)


def ratio_text(plain: Run, run: Run, names: set[str]) -> str:
    """How many times faster than the plain run."""
    return "" if run is plain else f"{seconds_in(plain, names) / seconds_in(run, names):.1f}x"


def verdicts(notebook: NotebookNode, runs: list[Run]) -> Iterator[tuple[bool, bool, str]]:
    """What the demo claims: whether it holds, whether it must on any machine, and the claim in words."""
    plain, first, again, after_edit = runs
    magic = {cell.id for cell in code_cells(notebook) if magics_of(cell)}
    parallel, downstream = parallel_cells(notebook), cells_that_use(notebook, EDITED_FUNCTION)
    for run in runs[1:]:
        differing = differences(plain, run)
        yield (
            not differing,
            True,
            f"{run.title}: results equal the plain run's"
            + (f", but for {', '.join(differing)}" if differing else ""),
        )
    ran = {name for name in magic if again.cells[name].status != "hit"}
    yield (
        not ran,
        True,
        "re-run: every magic cell was a hit" + (f", but for {', '.join(sorted(ran))}" if ran else ""),
    )
    ran = {name for name in magic if after_edit.cells[name].status != "hit"}
    yield (
        ran == downstream,
        True,
        (
            f"after the edit of {EDITED_FUNCTION}: ran {', '.join(sorted(ran)) or 'nothing'};"
            f" use it: {', '.join(sorted(downstream))}"
        ),
    )
    ratio = seconds_in(plain, parallel) / seconds_in(first, parallel)
    yield (
        ratio >= 1.6,
        False,
        f"first run: {ratio:.2f}x faster than plain over the parallel cells (aim 1.6x)",
    )
    ratio = seconds_in(plain, magic) / seconds_in(again, magic)
    yield ratio >= 20, False, f"re-run: {ratio:.1f}x faster than plain over the magic cells (aim 20x)"


def write_html(run: Run, folder: Path) -> Path:
    """Write an executed notebook as one HTML file."""
    from nbconvert import HTMLExporter

    text, _ = HTMLExporter().from_notebook_node(run.notebook)
    path = folder / f"01_tour_{run.title.replace(' ', '_')}.html"
    path.write_text(text, encoding="utf-8")
    return path


def four_runs(notebook: NotebookNode, folder: Path, say: Callable[[str], None]) -> list[Run]:
    """The plain run, the first with the magics, the re-run and the one after the edit, on one new store."""
    environment = os.environ | {
        "IPYPARCACHE_DIR": str(folder / "store"),
        "XDG_DATA_HOME": str(folder / "data"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    work = folder / "work"
    work.mkdir()
    notebooks = {
        "plain": without_magics(notebook),
        "first": notebook,
        "re-run": notebook,
        "after the edit": edited(notebook, *EDIT),
    }
    return [run_all(title, each, work, environment, say) for title, each in notebooks.items()]


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 1 if a result differs or the wrong cells ran."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for the HTML files")
    options = parser.parse_args(arguments)
    began = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - began:4.0f} s] {line}", flush=True)

    notebook = nbformat.read(TOUR, as_version=4)
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    say(f"{TOUR.name}, four times in real kernels, on {os.cpu_count()} cores (load before: {load})")
    with tempfile.TemporaryDirectory(prefix="ipyparcache-demo-") as folder:
        try:
            runs = four_runs(notebook, Path(folder), say)
        except CellExecutionError as error:
            print(error, file=sys.stderr)
            return 1
    options.output.mkdir(parents=True, exist_ok=True)
    for run in runs:
        say(f"wrote {write_html(run, options.output)}")
    print("\n" + table(notebook, runs) + "\n")
    failed = False
    for holds, must_hold, claim in verdicts(notebook, runs):
        print(f"{'yes ' if holds else 'NO  '} {claim}")
        failed |= must_hold and not holds
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
