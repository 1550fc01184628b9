from __future__ import annotations

import builtins
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ipyparcache.digest import openfiles
from ipyparcache.digest.openfiles import FileWatch, Seen, unwatched

pytestmark = pytest.mark.usefixtures("folder")


def seen_in(action: Callable[[], object]) -> Seen:
    with FileWatch() as seen:
        action()
    return seen


def read(name: str) -> None:
    with open(name) as file:
        file.read()


def write(name: str, mode: str = "w", text: str = "x") -> None:
    with open(name, mode) as file:
        file.write(text)


def map_file() -> None:
    mapped = np.memmap("data.txt", dtype="u1", mode="r")
    mapped._mmap.close()  # type: ignore[attr-defined]


READERS: dict[str, Callable[[], object]] = {
    "open": lambda: read("data.txt"),
    "pathlib": lambda: Path("data.txt").read_text(),
    "os.open": lambda: os.close(os.open("data.txt", os.O_RDONLY)),
    "numpy loadtxt": lambda: np.loadtxt("data.txt"),
    "numpy fromfile": lambda: np.fromfile("data.txt", "u1"),
    "numpy memmap": map_file,
    "pandas": lambda: pd.read_csv("data.txt"),
    "shutil": lambda: shutil.copyfile("data.txt", "copy.txt"),
    "absolute path": lambda: read(os.path.abspath("data.txt")),
    "loader of a module": lambda: SourceFileLoader("module", "module.py").get_data("data.txt"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_is_read_is_seen(reader: str, folder: Path) -> None:
    seen = seen_in(READERS[reader])

    use = seen.files[str(folder / "data.txt")]
    assert use.is_read
    assert not use.is_written


def test_paths_are_kept_as_spelled() -> None:
    seen = seen_in(lambda: (read("in/../data.txt"), read("in/a.csv")))

    assert [use.spelled for use in seen.files.values()] == ["in/../data.txt", "in/a.csv"]


def test_a_path_read_after_a_change_of_folder_is_kept_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def action() -> None:
        monkeypatch.chdir("in")
        read("a.csv")

    assert [use.spelled for use in seen_in(action).files.values()] == [str(folder / "in" / "a.csv")]


def test_an_open_that_fails_is_seen() -> None:
    def action() -> None:
        with pytest.raises(FileNotFoundError):
            read("missing.txt")

    [use] = seen_in(action).files.values()
    assert use.is_read
    assert use.before is None


@pytest.mark.parametrize("mode", ["w", "x", "wb"])
def test_a_file_that_is_made_is_no_input_even_if_it_is_read_later(mode: str) -> None:
    def action() -> None:
        with open("out.txt", mode) as file:
            file.write("x" if "b" not in mode else b"x")
        read("out.txt")

    [use] = seen_in(action).files.values()
    assert (use.is_read, use.is_written, use.existed) == (False, True, False)


def test_exclusive_creation_asks_whether_the_file_exists() -> None:
    assert seen_in(lambda: write("out.txt", "x")).answers == {("exists", "out.txt"): False}


@pytest.mark.parametrize("mode", ["a", "r+", "a+"])
def test_a_file_that_is_changed_is_an_input_by_what_it_held(mode: str) -> None:
    before = openfiles.file_content("data.txt")

    [use] = seen_in(lambda: write("data.txt", mode)).files.values()

    assert use.is_read
    assert use.is_written
    assert use.content == before


def test_a_database_is_an_input_and_an_output() -> None:
    seen = seen_in(lambda: sqlite3.connect("db.sqlite").close())

    [use] = seen.files.values()
    assert use.is_read
    assert use.is_written
    assert seen_in(lambda: sqlite3.connect(":memory:").close()).files == {}


QUESTIONS: dict[str, tuple[Callable[[], object], dict[tuple[str, str], object]]] = {
    "exists": (lambda: os.path.exists("data.txt"), {("exists", "data.txt"): True}),
    "exists not": (lambda: os.path.exists("no"), {("exists", "no"): False}),
    "isfile": (lambda: os.path.isfile("in"), {("isfile", "in"): False}),
    "isdir": (lambda: os.path.isdir("in"), {("isdir", "in"): True}),
    "islink": (lambda: os.path.islink("in"), {("islink", "in"): False}),
    "getsize": (lambda: os.path.getsize("data.txt"), {("size", "data.txt"): 4}),
    "Path.exists": (lambda: Path("no").exists(), {("exists", "no"): False}),
    "Path.is_file": (lambda: Path("data.txt").is_file(), {("isfile", "data.txt"): True}),
    "Path.is_dir": (lambda: Path("data.txt").is_dir(), {("isdir", "data.txt"): False}),
    "access": (lambda: os.access("no", os.R_OK), {(f"access {os.R_OK}", "no"): False}),
    "makedirs is no question": (lambda: os.makedirs("in", exist_ok=True), {}),
    "Path.mkdir is no question": (lambda: Path("new").mkdir(exist_ok=True), {}),
}


@pytest.mark.parametrize("what", QUESTIONS)
def test_what_is_asked_of_a_path_is_noted_and_only_that(what: str) -> None:
    ask, expected = QUESTIONS[what]

    assert seen_in(ask).answers == expected


@pytest.mark.parametrize("ask", [lambda: os.path.getmtime("data.txt"), lambda: Path("data.txt").stat()])
def test_times_are_noted_when_they_are_asked_for(ask: Callable[[], object]) -> None:
    [(question, path)] = seen_in(ask).answers

    assert question in ("mtime", "stat")
    assert path == "data.txt"


@pytest.mark.parametrize(
    "look",
    [
        lambda: os.listdir("in"),
        lambda: list(os.scandir("in")),
        lambda: list(Path("in").iterdir()),
        lambda: list(Path("in").glob("*.csv")),
        lambda: __import__("glob").glob("in/*.csv"),
        lambda: list(os.walk("in")),
    ],
)
def test_a_folder_that_is_listed_is_noted_with_what_it_held(look: Callable[[], Any]) -> None:
    listings = seen_in(look).listings

    assert listings["in"] == (("a.csv", False),)


def test_a_file_made_and_removed_by_the_run_leaves_no_trace() -> None:
    def action() -> None:
        with tempfile.TemporaryDirectory() as place:
            write(f"{place}/x")
            read(f"{place}/x")
            os.listdir(place)
            os.path.exists(f"{place}/x")

    seen = seen_in(action)
    assert seen.files == {}
    assert seen.removed == []
    assert seen.listings == {}
    assert not any("x" in path for _, path in seen.answers)


def test_a_file_moved_into_place_is_an_output() -> None:
    def action() -> None:
        write("partial")
        os.replace("partial", "final")

    [use] = seen_in(action).files.values()
    assert use.spelled == "final"
    assert use.is_written


@pytest.mark.parametrize(
    "remove",
    [
        lambda: os.remove("data.txt"),
        lambda: os.rename("data.txt", "other.txt"),
        lambda: shutil.rmtree("in"),
        lambda: shutil.move("data.txt", "other.txt"),
        lambda: Path("data.txt").unlink(),
    ],
)
def test_removing_what_the_run_did_not_make_is_noted(remove: Callable[[], object]) -> None:
    assert seen_in(remove).removed


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run(["true"], check=True),
        lambda: os.system("true"),
        lambda: os.popen("true").close(),
        lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
    ],
)
def test_programs_that_the_run_starts_are_noted(start: Callable[[], object]) -> None:
    assert {"true"} <= {command.program for command in seen_in(start).commands} | {"true"}
    assert seen_in(start).commands


def test_variables_read_by_name_are_noted_and_those_set_by_the_run_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAGE", "prod")
    monkeypatch.delenv("REGION", raising=False)

    def action() -> None:
        os.environ.get("STAGE")
        os.getenv("REGION")
        os.environ["OWN"] = "1"
        os.environ["OWN"]
        del os.environ["OWN"]
        os.environ.get("JPY_PARENT_PID")

    assert seen_in(action).environment == {"STAGE": "prod", "REGION": None}


@pytest.mark.parametrize(
    "copy",
    [
        lambda: dict(os.environ),
        lambda: os.environ.copy(),
        lambda: list(os.environ.items()),
        lambda: {**os.environ},
        lambda: list(os.environ.values()),
        lambda: list(os.environ),
    ],
)
def test_copying_the_whole_environment_reads_nothing(copy: Callable[[], object]) -> None:
    assert seen_in(copy).environment == {}


def test_the_present_folder_counts_only_if_it_is_asked_for() -> None:
    assert not seen_in(lambda: read("data.txt")).asks_folder
    assert seen_in(lambda: os.getcwd()).asks_folder
    assert seen_in(lambda: os.path.abspath("x")).asks_folder
    assert seen_in(Path.cwd).asks_folder


def test_input_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "input", lambda prompt="": "yes")

    assert seen_in(lambda: input("sure? ")).reads_stdin


def test_threads_of_the_run_and_executors_count_others_do_not() -> None:
    go, done = threading.Event(), threading.Event()

    def bystander() -> None:
        go.wait(10)
        read("in/a.csv")
        done.set()

    other = threading.Thread(target=bystander)
    other.start()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # its thread is there before the run

        def action() -> None:
            go.set()
            done.wait(10)
            pool.submit(read, "data.txt").result()
            own = threading.Thread(target=write, args=("out.txt",))
            own.start()
            own.join()

        seen = seen_in(action)
    other.join()

    assert [use.spelled for use in seen.files.values()] == ["data.txt", "out.txt"]


def test_importing_a_distribution_reads_no_files() -> None:
    for name in [name for name in sys.modules if name.startswith("xmlrpc")]:
        del sys.modules[name]

    def action() -> None:
        import xmlrpc.client  # noqa: F401

    assert seen_in(action).files == {}


def test_data_inside_a_distribution_is_told_by_its_version() -> None:
    from sklearn.datasets import load_iris

    seen = seen_in(load_iris)

    assert seen.files == {}
    assert seen.listings == {}


def test_the_functions_that_are_wrapped_keep_their_abilities() -> None:
    with FileWatch():
        assert os.stat in os.supports_follow_symlinks
        assert os.stat in os.supports_dir_fd
        assert os.open in os.supports_dir_fd
        assert shutil.rmtree.avoids_symlink_attacks
        shutil.rmtree("in")
    assert os.stat in os.supports_dir_fd
    assert type(os.stat).__name__ == "builtin_function_or_method"


def test_a_library_that_asks_for_the_frame_of_the_notebook_is_noted() -> None:
    names: dict[str, Any] = {"__name__": "__main__", "df": pd.DataFrame({"a": [1, 2]}), "limit": 1}

    seen = seen_in(lambda: exec("x = 1\ny = df.query('a > @limit')", names))

    assert ("pandas.core.computation.scope", 2) in {(asker.module, asker.line) for asker in seen.askers}


def test_what_is_unwatched_is_not_seen() -> None:
    def action() -> None:
        with unwatched():
            read("data.txt")
            os.path.exists("data.txt")
            os.environ.get("STAGE")

    seen = seen_in(action)
    assert (seen.files, seen.answers, seen.environment) == ({}, {}, {})


def test_watches_nest() -> None:
    with FileWatch() as outer:
        read("in/a.csv")
        with FileWatch() as inner:
            read("data.txt")

    assert [use.spelled for use in inner.files.values()] == ["data.txt"]
    assert [use.spelled for use in outer.files.values()] == ["in/a.csv", "data.txt"]


def test_what_was_seen_can_be_sent_to_another_process() -> None:
    seen = seen_in(lambda: (read("data.txt"), os.environ.get("STAGE"), os.path.exists("no")))

    again: Seen = pickle.loads(pickle.dumps(seen))

    assert again.files == seen.files
    assert again.answers == seen.answers


def test_the_hook_never_raises_into_the_users_call() -> None:
    class Odd(os.PathLike[str]):
        def __fspath__(self) -> str:
            raise ValueError("odd")

    with FileWatch(), pytest.raises(ValueError, match="odd"):
        os.stat(Odd())


def test_no_wrapper_stays_after_the_last_watch() -> None:
    plain = (os.stat, os.open, os.getcwd, builtins.input)
    with FileWatch():
        assert (os.stat, os.open, os.getcwd, builtins.input) != plain
    assert (os.stat, os.open, os.getcwd, builtins.input) == plain


def test_the_folders_of_other_pools_are_no_business_of_the_run(folder: Path) -> None:
    pool = folder / "joblib_memmapping_folder_1_2_3"

    def action() -> None:
        pool.mkdir()
        write(str(pool / "a"))
        shutil.rmtree(pool)

    pool.mkdir()
    assert seen_in(lambda: shutil.rmtree(pool)).removed == []
    assert seen_in(action).files == {}
