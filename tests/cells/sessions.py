"""A notebook session for tests: cells run serially and under `%%parallel`; what they leave is compared."""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import types
from typing import Any

import numpy as np

from ipyparcache.cells.loops import LoopOptions, RunReport, last_report, plan_cell, run_cell
from ipyparcache.errors import LoopRefused

# What the first cell of a session may hold: a function that fails in one iteration.
FAILS_AT_3 = "out = []\ndef risky(x):\n    if x == 3:\n        raise KeyError(x)\n    return x"


class PlainHost:
    """The kernel as a dict, `exec` and two texts."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        self.file_name = "<cell>"
        self.secret: bytes | None = None
        self.out: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.shown: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []  # what was displayed and cleared, in order

    def run_statement(self, statement: ast.stmt, *, last: bool) -> None:
        text = io.StringIO()
        try:
            with contextlib.redirect_stdout(text):
                if last and isinstance(statement, ast.Expr):
                    value = eval(
                        compile(ast.Expression(statement.value), self.file_name, "eval"), self.namespace
                    )
                    if value is not None:
                        self.namespace["_"] = value
                else:
                    exec(compile(ast.Module([statement], []), self.file_name, "exec"), self.namespace)
        finally:
            if text.getvalue():
                self.write("stdout", text.getvalue())

    def write(self, stream: str, text: str) -> None:
        self.out.append((stream, text))

    def show_note(self, html: str, text: str) -> None:
        self.notes.append(text)

    def display(self, objects: tuple[object, ...], options: dict[str, Any]) -> None:
        self.shown.append(objects)
        self.events.append(("display", objects, options))

    def clear_output(self, wait: bool) -> None:
        self.events.append(("clear", wait))

    def clear_before_more(self) -> None:
        pass

    @property
    def stdout(self) -> str:
        return "".join(text for stream, text in self.out if stream == "stdout")


def new_namespace(setup: str = "") -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    # With its source at hand, as the kernel has it for every cell.
    linecache.cache["<setup>"] = (len(setup), None, setup.splitlines(keepends=True), "<setup>")
    exec(compile(setup, "<setup>", "exec"), namespace)
    return namespace


def serial(namespace: dict[str, Any], cell: str) -> tuple[str, BaseException | None]:
    """Run a cell as a notebook does; its output and its error."""
    host = PlainHost(namespace)
    tree = ast.parse(cell)
    error: BaseException | None = None
    try:
        for statement in tree.body:
            host.run_statement(statement, last=statement is tree.body[-1])
    except Exception as raised:
        error = raised
    return host.stdout, error


def parallel(
    namespace: dict[str, Any], cell: str, **options: Any
) -> tuple[PlainHost, BaseException | None, RunReport | None]:
    """Run a cell under `%%parallel`; its host, error and report."""
    host = PlainHost(namespace)
    options = {"jobs": 2, **options}
    tree = ast.parse(cell)
    try:
        plan = plan_cell(tree, namespace, LoopOptions(**options))
        report = run_cell(plan, host)
    except Exception as raised:
        return host, raised, last_report()
    return host, None, report


def refusal_of(cell: str, setup: str) -> str:
    """What is said of a cell that is refused; nothing of what was there before has changed."""
    namespace = new_namespace(setup)
    before = describe(namespace)

    _, error, _ = parallel(namespace, cell)

    assert isinstance(error, LoopRefused)
    assert describe(namespace) == before
    return str(error)


def describe(namespace: dict[str, Any]) -> dict[str, str]:
    """Canonical text of every variable; which mutable objects are one and the same is part of it."""
    seen: dict[int, int] = {}
    hidden = ("__builtins__", "__name__", "__warningregistry__", "__annotations__", "__doc__")

    def text(value: Any) -> str:
        kind = type(value)
        if kind in (int, bool, str, bytes, type(None), complex, range, slice):
            return f"{kind.__name__}:{value!r}"
        if kind is float:
            return f"float:{value.hex()}"
        if kind is tuple:
            return f"({', '.join(map(text, value))})"
        if isinstance(value, np.generic):
            return f"{kind.__name__}:{value!r}"
        if id(value) in seen:
            return f"@{seen[id(value)]}"
        seen[id(value)] = number = len(seen)
        return f"@{number}={inner(value, kind)}"

    def inner(value: Any, kind: type) -> str:
        if isinstance(value, np.ndarray):
            return f"array {value.dtype} {value.shape} {value.flags.writeable} {value.tolist()!r}"
        if hasattr(value, "to_dict") and hasattr(value, "index"):
            return f"{kind.__name__} {value.to_dict()!r} {list(value.index)!r} {value.dtypes!r}"
        if isinstance(value, types.FunctionType):
            owner = value.__globals__ is namespace
            return f"function {value.__qualname__} {owner} {text(value.__defaults__)}"
        if isinstance(value, type):
            members = {k: v for k, v in vars(value).items() if not k.startswith("__")}
            return f"class {value.__name__} {', '.join(f'{k}={text(v)}' for k, v in sorted(members.items()))}"
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        label = kind.__name__
        if kind.__module__ == "__main__":
            label += str(namespace.get(kind.__name__) is kind)
        if isinstance(value, BaseException):
            return f"{label} {text(value.args)} {text(vars(value))}"
        if isinstance(value, dict):
            return f"{label}{{{', '.join(f'{text(k)}: {text(v)}' for k, v in value.items())}}}"
        if isinstance(value, set | frozenset):
            return f"{label}{sorted(map(text, value))}"
        if hasattr(value, "__dict__"):
            return f"{label}({', '.join(f'{k}={text(v)}' for k, v in sorted(vars(value).items()))})"
        if isinstance(value, list) or hasattr(value, "popleft"):
            return f"{label}[{', '.join(map(text, value))}]"
        return f"{label} {object.__repr__(value).partition(' at ')[0]}"

    return {name: text(namespace[name]) for name in sorted(namespace) if name not in hidden}
