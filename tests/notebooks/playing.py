"""Plays notebooks through real kernels, plain and in automatic mode, and says where the two differ.

Beside a notebook `NAME.ipynb` lies `NAME.yaml`:

edits
    What a person changes between two runs, each alone. `cell` (its id), `file` or `env` says where, `old` and
    `new` what, in the case of `env` just `new`; `reruns` the ids of the cells that then run again, while all
    the others still come from the store.
not_stored
    Cells that run each time, with the reason that the user is told, as a regular expression.
changed
    Cells that run again in the second run, as what they ask for is another by then: a file they append to.
again
    Cells that run again when the notebook is run once more in the same kernel.
free, masked
    What differs by nature between two runs, the clock above all: variables that hold such values; and by the
    id of a cell a regular expression for such values in what it shows.
modules
    Files of this folder that lie beside the notebook.
watch
    Expressions whose values are compared as variables are, after the last cell.
"""

from __future__ import annotations

import ast
import json
import os
import queue
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import yaml
from jupyter_client.manager import KernelManager

HERE = Path(__file__).parent
SECONDS_PER_CELL = 120.0
RUNS = (
    "[(run.execution_count, run.status, run.reason) for run in __import__('ipyparcache.cells.runs',"
    " fromlist=['runs']).runs()]"
)


@dataclass(frozen=True)
class CodeCell:
    """A code cell of a notebook."""

    id: str
    source: str
    may_raise: bool


@dataclass(frozen=True)
class Edit:
    """What a person changes between two runs."""

    old: str
    new: str
    cell: str = ""
    file: str = ""
    env: str = ""
    reruns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.cell or self.file or self.env}: {self.old!r} -> {self.new!r}"


@dataclass(frozen=True)
class Script:
    """A notebook and what is to be done with it."""

    cells: tuple[CodeCell, ...]
    edits: tuple[Edit, ...] = ()
    not_stored: Mapping[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    masked: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()

    def edited(self, edit: Edit) -> tuple[CodeCell, ...]:
        """The cells after an edit."""
        if not edit.cell:
            return self.cells
        (found,) = [cell for cell in self.cells if cell.id == edit.cell]
        assert found.source.count(edit.old) == 1, f"{edit} does not fit"
        new = CodeCell(found.id, found.source.replace(edit.old, edit.new), found.may_raise)
        return tuple(new if cell is found else cell for cell in self.cells)


@dataclass
class Played:
    """What a cell showed, what was there after it, and what became of it."""

    id: str
    shown: list[tuple[str, ...]]
    state: dict[str, str]
    status: str = "plain"  # or hit, miss, not stored
    reason: str = ""


def read(path: Path) -> Script:
    """The notebook at `path`, with what lies beside it."""
    return script_of(nbformat.read(path, as_version=4), told(path.with_suffix(".yaml")))


def told(path: Path) -> dict[str, Any]:
    """What a file that lies beside a notebook says."""
    said: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf8"))
    return said


def script_of(notebook: nbformat.NotebookNode, told: Mapping[str, Any]) -> Script:
    """A notebook and what is to be done with it."""
    told = dict(told)
    edits = [
        Edit(**{"old": "", **row, "reruns": tuple(row.get("reruns", ()))}) for row in told.pop("edits", [])
    ]
    lists = {name: tuple(told.pop(name, ())) for name in ("changed", "again", "free", "modules", "watch")}
    return Script(cells_of(notebook), tuple(edits), **lists, **told)


def cells_of(notebook: nbformat.NotebookNode) -> tuple[CodeCell, ...]:
    """The code cells of a notebook that hold anything."""
    return tuple(
        CodeCell(cell.id, cell.source, "raises-exception" in cell.metadata.get("tags", ()))
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source.strip()
    )


def has_magics(source: str) -> bool:
    """Whether IPython alone understands a cell, so that automatic mode leaves it alone."""
    try:
        ast.parse(source)
    except SyntaxError:
        return True
    return False


class Kernel:
    """A kernel in a folder; plain, or with automatic mode on."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, auto: bool) -> None:
        self.auto = auto
        self.manager = KernelManager(transport="ipc", ip=str(folder.parent / "kernel"))
        paths = os.pathsep.join(filter(None, [str(HERE / "inkernel"), os.environ.get("PYTHONPATH")]))
        self.manager.start_kernel(
            cwd=str(folder),
            env={**os.environ, **environment, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        if auto:
            for line in ("%load_ext ipyparcache", "%parcache auto on --min 0"):
                reply, _ = self.execute(line, store_history=False)
                assert reply["status"] == "ok", reply

    def execute(
        self, source: str, *, store_history: bool = True
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Run a cell; the reply, and the messages with what it showed."""
        request = self.client.execute(
            source, store_history=store_history, allow_stdin=False, stop_on_error=False
        )
        messages: list[dict[str, Any]] = []
        end = time.monotonic() + SECONDS_PER_CELL
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except queue.Empty:
                assert self.manager.is_alive(), "the kernel died"
                assert time.monotonic() < end, f"no end after {SECONDS_PER_CELL} s"
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return self.reply(request), messages
            messages.append(message)

    def reply(self, request: str) -> dict[str, Any]:
        while True:
            message = self.client.get_shell_msg(timeout=SECONDS_PER_CELL)
            if message["parent_header"].get("msg_id") == request:
                return message["content"]

    def ask(self, expression: str) -> Any:
        """The value of an expression, without leaving a trace in the notebook."""
        expression = f"__import__('json').dumps({expression})"
        request = self.client.execute(
            "", silent=True, store_history=False, user_expressions={"it": expression}
        )
        answer = self.reply(request)["user_expressions"]["it"]
        assert answer["status"] == "ok", (answer["evalue"], answer.get("traceback"))
        return json.loads(ast.literal_eval(answer["data"]["text/plain"]))

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


def play(script: Script, kernel: Kernel, cells: Sequence[CodeCell]) -> list[Played]:
    """Run the cells one after the other, as "Run All" does; only tagged cells may raise."""
    played = []
    leave_out = list(script.free)
    for cell in cells:
        watch = list(script.watch) if cell is cells[-1] else []
        reply, messages = kernel.execute(cell.source)
        raised = reply["status"] == "error"
        assert not raised or cell.may_raise, (cell.id, reply["ename"], reply["evalue"], reply["traceback"])
        shown = visible(messages, script.masked.get(cell.id))
        state = f"__import__('notebook_state').state(get_ipython(), {leave_out!r}, {watch!r})"
        played.append(Played(cell.id, shown, kernel.ask(state)))
        if kernel.auto:
            runs = {count: (status, reason) for count, status, reason in kernel.ask(RUNS)}
            count = reply["execution_count"]
            if count in runs:
                played[-1].status, played[-1].reason = runs[count]
    return played


def without_chance(text: str, mask: str | None) -> str:
    """Text without addresses of objects, the files that IPython invents for cells, and what `mask` says."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r"(?<!\S)\S*/ipykernel_\d+/\d+\.py", "<cell>", text)
    text = re.sub(r"0x[0-9a-f]{6,}", "0x", text)
    return re.sub(mask, "(free)", text) if mask else text


def visible(messages: list[dict[str, Any]], mask: str | None) -> list[tuple[str, ...]]:
    """What a reader sees below a cell.

    What two streams bring between two displays is joined for each of them, as the protocol leaves open how
    they mix; `clear_output` and updates of displays are applied, notes of ours left out.
    """
    seen: list[tuple[str, ...]] = []
    streams = {"stdout": "", "stderr": ""}
    displays: dict[str, int] = {}
    clear_with_next = False

    def flush() -> None:
        seen.extend((name, without_chance(text, mask)) for name, text in streams.items() if text)
        streams.update(stdout="", stderr="")

    def bundle(content: dict[str, Any]) -> list[str]:
        texts = {
            mime: data if isinstance(data, str) else json.dumps(data, sort_keys=True)
            for mime, data in sorted(content["data"].items())
        }
        return [
            f"{mime}: {text if mime.startswith('image/png') else without_chance(text, mask)}"
            for mime, text in texts.items()
        ]

    for message in messages:
        kind, content = message["msg_type"], message["content"]
        if any(key.startswith("ipyparcache") for key in content.get("metadata", {})):
            continue
        if kind == "clear_output" and content["wait"]:
            clear_with_next = True
            continue
        if kind == "clear_output" or (
            clear_with_next and kind in ("stream", "display_data", "execute_result", "error")
        ):
            seen, clear_with_next = [], False
            displays.clear()
            streams.update(stdout="", stderr="")
        if kind == "stream":
            streams[content["name"]] += content["text"]
        elif kind in ("display_data", "execute_result"):
            flush()
            display = content.get("transient", {}).get("display_id")
            if display:
                displays[display] = len(seen)
            seen.append((kind, *bundle(content)))
        elif kind == "update_display_data" and content["transient"]["display_id"] in displays:
            place = displays[content["transient"]["display_id"]]
            seen[place] = (seen[place][0], *bundle(content))
        elif kind == "error":
            flush()
            trace = without_chance("\n".join(content["traceback"]), mask)
            seen.append(("error", content["ename"], without_chance(content["evalue"], mask), trace))
    flush()
    return seen


def differences(plain: list[Played], auto: list[Played]) -> list[str]:
    """Where two runs differ in what is shown or left, cell by cell."""
    found = []
    for one, other in zip(plain, auto, strict=True):
        what = f"{one.id} ({other.status}{f', {other.reason}' if other.reason else ''})"
        if one.shown != other.shown:
            pairs = [(a, b) for a, b in zip(one.shown, other.shown, strict=False) if a != b]
            pairs = pairs or [(tuple(one.shown[len(other.shown) :]), tuple(other.shown[len(one.shown) :]))]
            found.append(f"{what}: shows {str(pairs[0][1])[:600]} instead of {str(pairs[0][0])[:600]}")
        for name in sorted(one.state.keys() | other.state.keys()):
            before, after = (run.state.get(name, "nothing") for run in (one, other))
            if before != after:
                found.append(f"{what}: {name} is {apart(after, before)} instead of {apart(before, after)}")
    return found


def apart(text: str, other: str) -> str:
    """The part of a text that differs from another one, with a little before it."""
    pairs = enumerate(zip(text, other, strict=False))
    start = next((place for place, (a, b) in pairs if a != b), min(len(text), len(other)))
    return f"{'…' if start > 40 else ''}{text[max(0, start - 40) : start + 160]}"


def play_all(
    script: Script, source: Path, folder: Path, edits: Sequence[Edit], *, auto: bool
) -> dict[str, list[Played]]:
    """Run All in a folder made for it; after a restart ("warm"); once more without one; after each edit."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in script.modules:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, folder / name)
    done = {}
    with kernel_in(folder, {}, auto=auto) as kernel:
        done["cold"] = play(script, kernel, script.cells)
    with kernel_in(folder, {}, auto=auto) as kernel:
        done["warm"] = play(script, kernel, script.cells)
        done["again"] = play(script, kernel, script.cells)
    for edit in edits:
        environment = {edit.env: edit.new} if edit.env else {}
        with file_edited(folder, edit), kernel_in(folder, environment, auto=auto) as kernel:
            done[str(edit)] = play(script, kernel, script.edited(edit))
    return done


@contextmanager
def kernel_in(folder: Path, environment: Mapping[str, str], *, auto: bool) -> Iterator[Kernel]:
    kernel = Kernel(folder, environment, auto=auto)
    try:
        yield kernel
    finally:
        kernel.close()


@contextmanager
def file_edited(folder: Path, edit: Edit) -> Iterator[None]:
    """A file as it is after an edit, for as long as the block runs."""
    if not edit.file:
        yield
        return
    path = folder / edit.file
    before = path.read_text(encoding="utf8")
    assert before.count(edit.old) == 1, f"{edit} does not fit"
    path.write_text(before.replace(edit.old, edit.new), encoding="utf8")
    try:
        yield
    finally:
        path.write_text(before, encoding="utf8")
