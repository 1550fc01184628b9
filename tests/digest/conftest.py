"""A notebook without a kernel: a namespace in which cells are executed, a folder with files, and modules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipyparcache.digest import modules
from ipyparcache.digest.objects import Traversal


class Notebook:
    """Executes cells in one namespace that counts as the notebook's."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
        self.cells = 0

    def __call__(self, source: str) -> Notebook:
        self.cells += 1
        exec(compile(source, f"<cell {self.cells}>", "exec"), self.names)
        return self

    def __getitem__(self, name: str) -> Any:
        return self.names[name]

    def traversal(self, *names: str) -> Traversal:
        """All that these names reach."""
        traversal = Traversal(self.names)
        for name in names:
            traversal.add(name, self.names[name])
        traversal.follow()
        return traversal

    def digest(self, *names: str) -> str:
        """One digest of all that these names reach."""
        return self.traversal(*names).combined().hex()


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


@pytest.fixture
def new_notebook() -> Callable[[], Notebook]:
    return Notebook


@pytest.fixture
def local_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path` for local modules, which are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules.watch_imports()
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if modules.origin_of(name) == "local":
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a file `data.txt` and a folder `in` that holds `a.csv`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text("1\n2\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("k,v\na,1\n")
    return tmp_path
