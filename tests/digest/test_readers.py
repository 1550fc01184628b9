"""Files that libraries open by system calls of their own: no audit event tells of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import h5py
import pandas as pd
import polars
import pyarrow
import pytest
from pyarrow import dataset, feather, parquet

from ipyparcache.digest.openfiles import FileWatch, Seen

pytestmark = pytest.mark.usefixtures("files")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`one.*` and `two.*` in several formats, the latter also in a folder."""
    monkeypatch.chdir(tmp_path)
    frame = polars.DataFrame({"a": [1, 2, 3]})
    os.mkdir("parts")
    for name in ("one", "two", "parts/two"):
        frame.write_csv(f"{name}.csv")
        frame.write_parquet(f"{name}.parquet")
        frame.write_ipc(f"{name}.feather")
        with h5py.File(f"{name}.h5", "w") as file:
            file["x"] = [1.0, 2.0]


def seen_in(action: Callable[[], object]) -> Seen:
    with FileWatch() as seen:
        action()
    return seen


def read_in(action: Callable[[], object]) -> set[str]:
    return {use.spelled for use in seen_in(action).files.values() if use.is_read}


def written_in(action: Callable[[], object]) -> set[str]:
    return {use.spelled for use in seen_in(action).files.values() if use.is_written}


def h5(name: str, mode: str = "r") -> None:
    with h5py.File(name, mode) as file:
        if mode != "r":
            file["y"] = [3.0]


def connected(name: str) -> None:
    with duckdb.connect(name) as connection:
        connection.execute("create table t as select 1 as a")


READS: dict[str, tuple[Callable[[], object], set[str]]] = {
    "h5py": (lambda: h5("one.h5"), {"one.h5"}),
    "h5py, by keyword": (lambda: h5py.File(name=Path("one.h5"), mode="r").close(), {"one.h5"}),
    "polars": (lambda: polars.read_parquet("one.parquet"), {"one.parquet"}),
    "polars, some": (
        lambda: polars.read_parquet(["one.parquet", "two.parquet"]),
        {"one.parquet", "two.parquet"},
    ),
    "polars, csv": (lambda: polars.read_csv(Path("one.csv")), {"one.csv"}),
    "polars, folder": (lambda: polars.read_parquet("parts/*.parquet"), {"parts/two.parquet"}),
    "polars, lazily": (lambda: polars.scan_csv("one.csv").collect(), {"one.csv"}),
    "duckdb": (lambda: duckdb.read_csv("one.csv").fetchall(), {"one.csv"}),
    "duckdb, connected": (lambda: duckdb.connect().read_csv("one.csv").fetchall(), {"one.csv"}),
}


@pytest.mark.parametrize("kind", READS)
def test_a_file_that_a_library_reads_by_itself_is_an_input(kind: str) -> None:
    action, paths = READS[kind]

    assert read_in(action) == paths


@pytest.mark.parametrize("kind", ["parquet", "feather", "dataset", "map"])
def test_files_that_arrow_reads_are_inputs(kind: str) -> None:
    actions: dict[str, tuple[Callable[[], object], str]] = {
        "parquet": (lambda: parquet.read_table("one.parquet"), "one.parquet"),
        "feather": (lambda: feather.read_table("one.feather"), "one.feather"),
        "dataset": (lambda: dataset.dataset("one.parquet").to_table(), "one.parquet"),
        "map": (lambda: pyarrow.memory_map("one.csv").close(), "one.csv"),
    }
    action, path = actions[kind]

    assert read_in(action) == {path}


def test_what_a_lazy_frame_reads_is_an_input_of_the_run_that_collects_it() -> None:
    names = [f"{'long' * 20}{number}.csv" for number in range(4)]
    for name in names:
        os.link("one.csv", name)
    lazy = polars.scan_csv(names).join(polars.scan_parquet("*.parquet"), on="a")

    seen = seen_in(lambda: lazy.select("a").collect())

    assert {use.spelled for use in seen.files.values()} == {*names, "one.parquet", "two.parquet"}
    assert "." in seen.listings


def test_a_lazy_frame_of_values_reads_nothing() -> None:
    lazy = polars.LazyFrame({"a": ["one.csv"]})

    assert seen_in(lazy.collect).files == {}


WRITES: dict[str, tuple[Callable[[], object], set[str]]] = {
    "h5py": (lambda: h5("new.h5", "w"), {"new.h5"}),
    "h5py, more": (lambda: h5("one.h5", "a"), {"one.h5"}),
    "polars": (lambda: polars.DataFrame({"a": [1]}).write_parquet("new.parquet"), {"new.parquet"}),
    "polars, lazily": (lambda: polars.LazyFrame({"a": [1]}).sink_csv("new.csv"), {"new.csv"}),
    "duckdb, connected": (lambda: connected("new.db"), {"new.db"}),
    "duckdb, a relation": (lambda: duckdb.values([1]).write_csv("new.csv"), {"new.csv"}),
    "duckdb, by keyword": (lambda: duckdb.values([1]).to_parquet(file_name="new.parquet"), {"new.parquet"}),
}


@pytest.mark.parametrize("kind", WRITES)
def test_a_file_that_a_library_writes_by_itself_is_an_output(kind: str) -> None:
    action, paths = WRITES[kind]

    assert written_in(action) == paths


def test_a_file_that_is_changed_in_place_is_an_input_as_it_was() -> None:
    use = next(iter(seen_in(lambda: h5("one.h5", "a")).files.values()))

    assert (use.is_read, use.content is not None) == (True, True)


def test_what_cannot_be_told_is_not_stored_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: object) -> bytes:
        return b"Paths"  # as of a version that writes its plans in another way

    monkeypatch.setattr(polars.LazyFrame, "serialize", unknown)
    found: list[polars.DataFrame] = []

    seen = seen_in(lambda: found.append(polars.scan_csv("one.csv").collect()))

    assert found[0]["a"].to_list() == [1, 2, 3]
    assert "`LazyFrame.collect` opens cannot be told" in seen.lost


def test_what_is_no_file_is_left_alone() -> None:
    assert seen_in(lambda: polars.read_csv(b"a\n1\n")).files == {}
    assert seen_in(duckdb.connect().close).files == {}


def test_a_file_that_was_asked_for_and_is_not_there_is_an_input() -> None:
    def ask() -> None:
        with pytest.raises(FileNotFoundError):
            polars.read_parquet("none.parquet")

    assert read_in(ask) == {"none.parquet"}


def test_duckdb_finds_the_variables_of_who_calls_it() -> None:
    def ask() -> object:
        numbers = pd.DataFrame({"a": [1, 2]})  # noqa: F841 - found by its name
        return duckdb.sql("select sum(a) from numbers").fetchall()

    with FileWatch():
        assert ask() == [(3,)]


def test_the_functions_are_as_before_when_nothing_is_watched() -> None:
    before = polars.read_csv, h5py.File.__init__, duckdb.sql
    seen_in(lambda: polars.read_csv("one.csv"))

    assert (polars.read_csv, h5py.File.__init__, duckdb.sql) == before


def test_a_library_that_the_run_itself_imports_is_heard() -> None:
    text = (
        "from ipyparcache.digest import modules\n"
        "from ipyparcache.digest.openfiles import FileWatch\n"
        "modules.watch_imports()\n"
        "with FileWatch() as seen:\n"
        "    import polars\n"
        "    polars.read_csv('one.csv')\n"
        "print(*(use.spelled for use in seen.files.values()))"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)

    assert done.stdout == "one.csv\n"
