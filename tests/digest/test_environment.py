from __future__ import annotations

import contextlib
import csv
import decimal
import functools
import gc
import importlib.util
import json
import locale
import logging
import os
import pickle
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from ipyparcache.digest import audited, environment, filedigests, generators, libsettings, unaudited
from ipyparcache.digest.environment import (
    described,
    files_named_in,
    observed_rows,
    static_rows,
    still_holds,
)
from ipyparcache.digest.filedigests import FileDigests
from ipyparcache.digest.openfiles import FileWatch
from ipyparcache.digest.process import process_changes, process_state, restore_process
from ipyparcache.errors import Unrepeatable

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Settings and generators as before the test."""
    state = (
        random.getstate(),
        np.random.get_state(),
        decimal.getcontext().copy(),
        list(sys.path),
        dict(os.environ),
    )
    seeded = set(generators.seeded)
    with mpl.rc_context(), warnings.catch_warnings(), np.printoptions(), np.errstate():
        yield
    random.setstate(state[0])
    np.random.set_state(state[1])
    decimal.setcontext(state[2])
    sys.path[:] = state[3]
    os.environ.clear()
    os.environ.update(state[4])
    pd.reset_option("display.precision")
    csv.field_size_limit(131072)
    generators.seeded.clear()
    generators.seeded.update(seeded)


@pytest.fixture
def seeds_watched() -> Iterator[None]:
    """The extension as if loaded before any cell ran."""
    environment.install(user_cells_ran=False)
    generators.seeded.clear()
    yield
    environment.uninstall()


def rows_of(action: Callable[[], object], **options: Any) -> list[environment.Row]:
    with FileWatch() as seen:
        action()
    return observed_rows(seen, **options)


def all_hold(rows: list[environment.Row]) -> bool:
    """Whether they hold, after a way through JSON as in a manifest."""
    return all(still_holds(row) for row in json.loads(json.dumps(rows)))


def edit(name: str, text: str = "another text") -> Callable[[], object]:
    return lambda: Path(name).write_text(text)


OBSERVED: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "a file that was read": (lambda: Path("data.txt").read_text(), edit("data.txt")),
    "a file of the same size and time": (
        lambda: Path("data.txt").read_text(),
        lambda: (edit("data.txt", "2\n")(), os.utime("data.txt", ns=(10**18, 10**18))),
    ),
    "a file that was missing": (
        lambda: contextlib.suppress(OSError).__enter__() or try_to_read("no.txt"),
        edit("no.txt"),
    ),
    "a file that went": (lambda: Path("data.txt").read_text(), lambda: os.remove("data.txt")),
    "whether a file exists": (lambda: os.path.exists("no.txt"), edit("no.txt")),
    "the size of a file": (lambda: os.path.getsize("data.txt"), edit("data.txt", "three")),
    "the time of a file": (lambda: os.path.getmtime("data.txt"), lambda: os.utime("data.txt", ns=(1, 1))),
    "a folder's files": (lambda: os.listdir("in"), edit("in/b.csv")),
    "a folder's files, one less": (lambda: os.listdir("in"), lambda: os.remove("in/a.csv")),
    "the files of a folder that the run made": (
        lambda: (os.makedirs("new", exist_ok=True), edit("new/b.csv")(), os.listdir("new")),
        edit("new/c.csv"),
    ),
    "whether a file exists in a folder that the run made": (
        lambda: (os.makedirs("new", exist_ok=True), os.path.exists("new/b.csv")),
        edit("new/b.csv"),
    ),
    "a file that was missing in a folder that the run made": (
        lambda: (os.makedirs("new", exist_ok=True), try_to_read("new/b.csv")),
        edit("new/b.csv"),
    ),
    "the size of an entry of a folder": (
        lambda: [entry.stat().st_size for entry in os.scandir("in")],
        edit("in/a.csv", "longer than before"),
    ),
    "what would be moved over a file": (
        lambda: (edit("draft")(), os.replace("draft", "final")),
        edit("draft", "of somebody else"),
    ),
    "what would be removed": (
        lambda: (edit("draft")(), os.remove("draft"), read_all("data.txt")),
        edit("draft"),
    ),
    "whether two paths are the same file": (
        lambda: (os.link("data.txt", "linked"), os.path.samefile("data.txt", "linked")),
        lambda: (os.remove("data.txt"), edit("data.txt", "1\n")()),
    ),
    "a variable": (lambda: os.environ.get("STAGE"), lambda: os.environ.update(STAGE="prod")),
    "the folder": (lambda: os.getcwd(), lambda: os.chdir("in")),
    "an output that went": (lambda: Path("out.txt").write_text("x"), lambda: os.remove("out.txt")),
    "an output that was changed": (lambda: Path("out.txt").write_text("x"), edit("out.txt")),
}


def read_all(name: str) -> str:
    return Path(name).read_text()


def try_to_read(name: str) -> None:
    with contextlib.suppress(OSError):
        Path(name).read_text()


@pytest.mark.parametrize("what", OBSERVED)
def test_rows_hold_until_what_was_asked_has_another_answer(what: str, folder: Path) -> None:
    ask, change = OBSERVED[what]
    rows = rows_of(ask)
    assert rows
    assert all_hold(rows)

    change()

    assert not all_hold(rows)
    assert all(described(row) for row in rows)
    os.chdir(folder)


@pytest.mark.parametrize(
    "make", [lambda: os.mkdir("new"), lambda: os.makedirs("new/inner"), lambda: Path("new").mkdir()]
)
def test_a_folder_that_must_be_new_is_an_error_in_the_next_run(make: Callable[[], object]) -> None:
    rows = rows_of(make)

    assert not all_hold(rows)
    shutil.rmtree("new")
    assert all_hold([row for row in rows if row.kind != "output"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: os.makedirs("new/inner", exist_ok=True),
        lambda: Path("new/inner").mkdir(parents=True, exist_ok=True),
        lambda: tempfile.mkdtemp(dir="."),
    ],
)
def test_a_folder_that_may_be_there_is_no_question(make: Callable[[], object]) -> None:
    assert all_hold(rows_of(make))


def test_a_folder_that_was_there_is_made_again_where_it_is_gone() -> None:
    rows = rows_of(lambda: os.makedirs("in", exist_ok=True))
    assert all_hold(rows)

    shutil.rmtree("in")

    assert not all_hold(rows)


def test_whether_a_module_is_found_is_asked_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    rows = rows_of(lambda: importlib.util.find_spec("no_such_module"))
    assert all_hold(rows)

    edit("no_such_module.py", "")()
    importlib.invalidate_caches()

    assert not all_hold(rows)


@pytest.mark.parametrize(
    ("imported", "asked", "made"),
    [
        ("from importlib.util import find_spec as ask", "ask('no_such_module')", "no_such_module.py"),
        ("from os import access as ask", "ask('no_such_file', 4)", "no_such_file"),
        ("from os import stat as ask", "ask('in').st_mtime", "in/new"),
    ],
)
def test_a_question_is_noted_under_the_name_by_which_a_module_imported_it(
    imported: str, asked: str, made: str, folder: Path, local_modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    edit("asking.py", f"{imported}\ndef answer(): return {asked}\n")()
    importlib.invalidate_caches()
    asking = importlib.import_module("asking")
    plain = asking.ask
    os.makedirs("in", exist_ok=True)
    rows = rows_of(asking.answer)
    assert all_hold(rows)
    assert asking.ask is plain

    edit(made, "")()
    importlib.invalidate_caches()

    assert not all_hold(rows)


def test_what_a_run_keeps_of_functions_that_are_watched_is_the_functions_themselves() -> None:
    kept: dict[str, Any] = {}

    class Holder:
        pass

    Holder.__module__ = "__main__"
    held: Any = Holder()
    with FileWatch():
        kept |= {"stat": os.stat, "all": [os.getcwd]}
        held.ask = os.access
        inner = os.readlink

    def look() -> object:
        return inner

    assert kept == {"stat": os.stat, "all": [os.getcwd]}
    assert held.ask is os.access
    assert look() is os.readlink


def test_the_state_of_a_seeded_generator_that_is_only_looked_at_counts(seeds_watched: None) -> None:
    np.random.seed(3)
    rows = rows_of(lambda: np.random.get_state())
    assert all_hold(rows)

    np.random.seed(4)

    assert not all_hold(rows)


def test_only_the_bit_that_was_asked_counts() -> None:
    rows = rows_of(lambda: os.path.exists("data.txt"))

    edit("data.txt")()

    assert all_hold(rows)


def test_a_file_that_was_touched_still_holds() -> None:
    rows = rows_of(lambda: Path("data.txt").read_text())

    edit("data.txt", Path("data.txt").read_text())()

    assert all_hold(rows)


def test_paths_are_looked_up_in_the_present_folder(folder: Path) -> None:
    rows = rows_of(lambda: Path("data.txt").read_text())
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "data.txt").write_text(Path("data.txt").read_text())

    os.chdir("elsewhere")
    assert all_hold(rows)
    edit("data.txt")()
    assert not all_hold(rows)
    os.chdir(folder)


def test_an_appended_file_is_an_input_as_it_was_and_an_output() -> None:
    def action() -> None:
        with open("data.txt", "a") as file:
            file.write("run\n")

    rows = rows_of(action)

    assert [row.kind for row in rows] == ["file", "output"]
    assert not all_hold(rows)


def test_a_file_that_changes_between_its_read_and_the_store_prevents_storing() -> None:
    with FileWatch() as seen:
        Path("data.txt").read_text()
    edit("data.txt")()

    with pytest.raises(Unrepeatable, match=r"data\.txt changed"):
        observed_rows(seen)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "another program": (lambda: subprocess.run(["true"], check=True), "runs another program"),
    "a removed file": (lambda: os.remove("data.txt"), "removes, renames or marks"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_run_that_cannot_be_repeated_is_refused_with_the_reason(what: str) -> None:
    action, reason = REFUSED[what]

    with pytest.raises(Unrepeatable, match=reason):
        rows_of(action)


def test_a_failure_of_ours_stays_out_of_the_users_call_and_prevents_storing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: object) -> bool:
        raise RuntimeError("ours")

    for asked in (audited, unaudited):
        monkeypatch.setattr(asked, "is_ignored", broken)
    for ask in (lambda: os.path.exists("x"), lambda: os.listdir("in"), lambda: Path("data.txt").read_text()):
        with FileWatch() as seen:
            ask()
        with pytest.raises(Unrepeatable, match="RuntimeError: ours"):
            observed_rows(seen)


def test_an_output_that_is_gone_again_prevents_storing() -> None:
    with FileWatch() as seen:
        Path("out.txt").write_text("x")
    os.remove("out.txt")

    with pytest.raises(Unrepeatable, match=r"out\.txt.*no longer there"):
        observed_rows(seen)


def test_shell_commands_are_trusted_on_request() -> None:
    assert rows_of(lambda: subprocess.run(["true"], check=True), trust_shell=True) is not None


def test_variables_are_kept_as_keyed_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "swordfish")
    [row] = rows_of(lambda: os.environ.get("PASSWORD"))
    monkeypatch.setattr(environment, "_secret", b"k" * 32)
    [keyed] = rows_of(lambda: os.environ.get("PASSWORD"))

    assert "swordfish" not in str(row)
    assert row.digest != keyed.digest


def test_a_variable_that_a_library_looks_up_in_a_string_is_an_input(notebook: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(**notebook.names))
    notebook.names = vars(sys.modules["__main__"])
    notebook("import pandas as pd\ndf = pd.DataFrame({'a': [1, 2]})\nlimit = 1\nother = 2")
    notebook("def pick(text): return df.query(text)")

    rows = rows_of(lambda: notebook("own = 1\npick('a > @limit and a > @own')"))
    assert [(row.kind, row.name) for row in rows] == [("name", "limit")]
    assert all_hold(rows)

    notebook("limit = 2")
    assert not all_hold(rows)


# ---- digests of files


def test_a_settled_file_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = FileDigests()
    monkeypatch.setattr(filedigests, "SETTLED_SECONDS", -1.0)
    first = digests.digest("data.txt")
    monkeypatch.setattr(filedigests, "file_content", lambda path: pytest.fail("was read again"))

    assert digests.digest(str(folder / "data.txt")) == first


def test_a_file_changed_just_now_is_read_again() -> None:
    digests = FileDigests()
    first = digests.digest("data.txt")
    facts = os.stat("data.txt")
    edit("data.txt", "2\n")()
    os.utime("data.txt", ns=(facts.st_atime_ns, facts.st_mtime_ns))

    assert digests.digest("data.txt") != first


def test_files_named_in_strings_and_paths_are_found() -> None:
    value = {"path": "data.txt", "others": [Path("in/a.csv"), "missing.txt"], "text": "data.txt\n", "n": 1}

    assert files_named_in(value) == ["data.txt", "in/a.csv"]


def test_declared_files_folders_and_patterns_are_rows() -> None:
    def declared() -> list[environment.Row]:
        rows = static_rows({}, files=["data.txt", "in", "*.md"], variables=["STAGE"])
        return [row for row in rows if row.kind != "setting"]

    before = declared()
    edit("in/b.csv")()
    after = declared()

    assert [(row.kind, row.name) for row in before] == [
        ("file", "data.txt"),
        ("file", "in/a.csv"),
        ("file", "*.md"),
        ("env", "STAGE"),
    ]
    assert set(before) < set(after)


# ---- settings


def set_precision() -> None:
    decimal.getcontext().prec = 5


SETTINGS: dict[str, tuple[Callable[[], object], str]] = {
    "decimal context": (set_precision, ""),
    "NumPy print options": (lambda: np.set_printoptions(precision=3), ""),
    "NumPy error handling": (lambda: np.seterr(all="ignore"), ""),
    "pandas options": (lambda: pd.set_option("display.precision", 2), "pandas"),
    "matplotlib rcParams": (lambda: mpl.rcParams.update({"lines.linewidth": 9}), "matplotlib"),
    "limit of CSV fields": (lambda: csv.field_size_limit(99), "csv"),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_a_setting_that_is_not_at_its_default_is_an_input(what: str) -> None:
    change, library = SETTINGS[what]
    reached = {library: "library"} if library else {}
    assert what not in {row.name for row in static_rows(reached)}

    change()

    assert what in {row.name for row in static_rows(reached)}
    if library:
        assert what not in {row.name for row in static_rows({})}


PROCESS: dict[str, tuple[Callable[[], object], str]] = {
    "recursion limit": (lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1), ""),
    "limit of digits": (lambda: sys.set_int_max_str_digits(700), "sys"),
    "switch interval": (lambda: sys.setswitchinterval(0.01), "sys"),
    "garbage collector": (lambda: gc.set_threshold(333, 3, 3), "gc"),
    "stack size of threads": (lambda: threading.stack_size(1 << 20), "threading"),
    "umask": (lambda: os.umask(0o027), "os"),
    "tracemalloc": (lambda: tracemalloc.start(2), "tracemalloc"),
    "socket timeout": (lambda: socket.setdefaulttimeout(3), "socket"),
    "logging.disable": (lambda: logging.disable(7), "logging"),
}


@pytest.mark.parametrize("what", PROCESS)
def test_a_setting_of_the_process_is_an_input_and_restored(what: str, request: pytest.FixtureRequest) -> None:
    change, library = PROCESS[what]
    setting = next(setting for setting in libsettings.SETTINGS if setting.name == what)
    request.addfinalizer(functools.partial(setting.restore, setting.capture()))
    before, rows = process_state(), static_rows({library})
    change()
    after = static_rows({library})
    changes = pickle.loads(pickle.dumps(process_changes(before)))
    setting.restore(before.settings[what][0])

    restore_process(changes)

    assert static_rows({library}) == after != rows


def test_handlers_of_signals_are_inputs_by_their_code(request: pytest.FixtureRequest) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    request.addfinalizer(lambda: signal.signal(signal.SIGUSR1, before))

    def rows_with(source: str) -> list[environment.Row]:
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(source, names)
        signal.signal(signal.SIGUSR1, names["handle"])
        return static_rows({"signal"})

    one = rows_with("def handle(*_): return 1")

    assert rows_with("def handle(*_): return 1") == one
    assert rows_with("def handle(*_): return 2") != one != static_rows({})


@pytest.mark.parametrize("name", ["showwarning", "formatwarning"])
def test_how_warnings_are_shown_is_an_input(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, name, getattr(warnings, f"_{name}_orig"))
    before = static_rows({})
    monkeypatch.setattr(warnings, name, lambda *_arguments, **_options: "")

    assert {row.name for row in static_rows({})} - {row.name for row in before} == {"how warnings are shown"}


def test_filters_for_warnings_that_were_all_dropped_are_an_input(seeds_watched: None) -> None:
    assert "warning filters" not in {row.name for row in static_rows({})}
    with warnings.catch_warnings():
        warnings.resetwarnings()

        assert "warning filters" in {row.name for row in static_rows({})}


def test_how_records_are_made_is_an_input(monkeypatch: pytest.MonkeyPatch) -> None:
    before = static_rows({})
    monkeypatch.setitem(logging._levelToName, 25, "NOTICE")

    assert {row.name for row in static_rows({})} - {row.name for row in before} == {"how records are logged"}


def test_functions_that_sqlite_adapts_values_with_are_inputs(request: pytest.FixtureRequest) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("class P: pass\ndef adapt(p): return 1", names)
    before = static_rows({"sqlite3"})
    sqlite3.register_adapter(names["P"], names["adapt"])
    request.addfinalizer(lambda: sqlite3.adapters.pop((names["P"], sqlite3.PrepareProtocol)))

    assert static_rows({"sqlite3"}) != before


def test_options_of_pandas_are_seen_whenever_they_change() -> None:
    def options() -> set[str]:
        return {row.name for row in static_rows({"pandas": "library"})} & {"pandas options"}

    assert [options(), options()] == [set(), set()]
    pd.set_option("display.precision", 2)
    assert [options(), options()] == [{"pandas options"}] * 2
    pd.reset_option("display.precision")
    assert options() == set()
    with pd.option_context("display.html.border", 7):  # one that lies deeper
        assert options() == {"pandas options"}
    assert options() == set()


def test_parameters_of_matplotlib_are_seen_whenever_they_change() -> None:
    def parameters() -> set[str]:
        return {row.name for row in static_rows({"matplotlib": "library"})} & {"matplotlib rcParams"}

    family = list(mpl.rcParams["font.family"])
    with mpl.rc_context({"font.family": family}):  # as it was, and yet another list
        assert [parameters(), parameters()] == [set(), set()]
        dict.__getitem__(mpl.rcParams, "font.family").append("x")
        assert parameters() == {"matplotlib rcParams"}
    assert parameters() == set()
    with mpl.rc_context({"lines.linewidth": 9}):
        assert [parameters(), parameters()] == [{"matplotlib rcParams"}] * 2
    assert parameters() == set()


@pytest.mark.parametrize("what", SETTINGS)
def test_a_setting_that_a_run_changes_is_restored(what: str) -> None:
    change, library = SETTINGS[what]
    reached = {library: "library"} if library else {}
    before = process_state()
    before_rows = static_rows(reached)
    change()
    after_rows = static_rows(reached)
    changes = pickle.loads(pickle.dumps(process_changes(before)))
    setting = next(setting for setting in libsettings.SETTINGS if setting.name == what)
    setting.restore(before.settings[what][0])
    assert static_rows(reached) == before_rows

    restore_process(changes)

    assert static_rows(reached) == after_rows


def test_a_user_filter_for_warnings_is_an_input_and_a_librarys_is_not(seeds_watched: None) -> None:
    names: dict[str, Any] = {"__name__": "__main__", "warnings": warnings}
    library = {"__name__": "pandas.core.frame", "warnings": warnings}
    before = [row for row in static_rows({}) if row.name == "warning filters"]

    exec("warnings.filterwarnings('ignore', message='theirs')", library)
    same = [row for row in static_rows({}) if row.name == "warning filters"]
    exec("warnings.filterwarnings('ignore', message='mine')", names)
    after = [row for row in static_rows({}) if row.name == "warning filters"]

    assert before == same
    assert after != before


def test_the_locale_is_an_input_where_it_is_not_c() -> None:
    assert "locale" not in {row.name for row in static_rows({})} or locale.setlocale(locale.LC_NUMERIC) != "C"


# ---- the process


def test_variables_folder_and_path_are_restored(folder: Path) -> None:
    os.environ["GONE"] = "1"
    before = process_state()
    os.environ["MODE"] = "on"
    del os.environ["GONE"]
    sys.path.append("extra")
    sys.path.insert(0, "first")
    os.chdir("in")
    changes = pickle.loads(pickle.dumps(process_changes(before)))
    os.chdir(folder)
    del os.environ["MODE"]
    os.environ["GONE"] = "1"
    sys.path[:] = [*before.path, "later"]

    restore_process(changes)

    assert os.environ["MODE"] == "on"
    assert "GONE" not in os.environ
    assert Path.cwd() == folder / "in"
    assert sys.path == ["first", *before.path, "later", "extra"]
    os.chdir(folder)


def test_a_run_without_effects_changes_nothing() -> None:
    before = process_state()

    assert process_changes(before) == {}


def test_attributes_of_local_modules_are_restored(local_modules: Path) -> None:
    (local_modules / "registry.py").write_text("N = 0\nTABLE = {}\ndef count():\n    global N\n    N += 1\n")
    import registry  # type: ignore[import-not-found]

    before = process_state()
    registry.count()
    registry.extra = "x"
    changes = process_changes(before)
    registry.N = 0
    del registry.extra

    restore_process(changes)

    assert (registry.N, registry.extra) == (1, "x")


def test_a_thread_that_runs_on_prevents_storing(notebook: Any) -> None:
    before = process_state()
    stop = threading.Event()
    notebook.names["stop"] = stop
    notebook("def wait(): stop.wait(10)")
    thread = threading.Thread(target=notebook["wait"], name="waiter")
    thread.start()
    try:
        with pytest.raises(Unrepeatable, match="waiter"):
            process_changes(before)
    finally:
        stop.set()
        thread.join()
    assert process_changes(before) == {}


def test_a_process_that_runs_on_prevents_storing() -> None:
    before = process_state()
    with subprocess.Popen(["cat", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        child.stdin.write("there\n")
        child.stdin.flush()
        assert child.stdout.readline() == "there\n"  # until it has begun, it has no command line
        with pytest.raises(Unrepeatable, match="cat -"):
            process_changes(before)


# ---- random generators


GENERATORS: dict[str, tuple[Callable[[int], object], Callable[[], float]]] = {
    "random": (lambda n: random.seed(n), random.random),
    "numpy.random": (lambda n: np.random.seed(n), np.random.rand),
}


def test_functions_that_seed_pickle_by_name():
    environment.install(user_cells_ran=False)
    try:
        for function in (random.seed, np.random.seed):
            assert pickle.loads(pickle.dumps(function)) is function
        plain = pickle.dumps([random.seed, np.random.seed])
    finally:
        environment.uninstall()

    assert pickle.loads(plain) == [random.seed, np.random.seed]


@pytest.mark.parametrize("name", GENERATORS)
def test_draws_from_a_generator_that_nobody_seeded_are_no_input(name: str, seeds_watched: None) -> None:
    _, draw = GENERATORS[name]
    before = process_state()

    assert rows_of(draw) == []
    assert "generators" not in process_changes(before)


@pytest.mark.parametrize("name", GENERATORS)
def test_draws_from_a_seeded_generator_depend_on_its_state_which_is_restored(
    name: str, seeds_watched: None
) -> None:
    seed, draw = GENERATORS[name]
    seed(1)
    before = process_state()
    rows = rows_of(draw)
    changes = pickle.loads(pickle.dumps(process_changes(before)))
    following = draw()
    assert [row.name for row in rows] == [name]

    seed(1)
    assert all_hold(rows)
    restore_process(changes)
    assert draw() == following
    assert not all_hold(rows)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_run_that_seeds_first_depends_on_no_state_but_leaves_one(name: str, seeds_watched: None) -> None:
    seed, draw = GENERATORS[name]
    seed(4)  # not as some test before may have left it
    before = process_state()

    rows = rows_of(lambda: (seed(5), draw()))

    assert rows == []
    assert list(process_changes(before)["generators"]) == [name]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_seeded_generator_that_is_left_alone_is_no_input(name: str, seeds_watched: None) -> None:
    seed, _ = GENERATORS[name]
    seed(1)

    assert rows_of(lambda: None) == []


def test_generators_count_as_seeded_where_cells_ran_before() -> None:
    environment.install(user_cells_ran=True)
    try:
        assert [row.name for row in rows_of(random.random)] == ["random"]
    finally:
        environment.uninstall()


LOADED_LATE = """
import sys
from ipyparcache.digest import environment
environment.install(user_cells_ran=False)
import ipyparcache.digest.generators as generators
before = "numpy.random" in sys.modules
import numpy.random
drawn = numpy.random.random()
unseeded = generators.is_seeded("numpy.random")
from numpy.random import seed
seed(3)
print(before, unseeded, generators.is_seeded("numpy.random"))
"""


def test_a_generator_that_is_loaded_later_counts_as_seeded_when_somebody_seeds_it() -> None:
    told = subprocess.run([sys.executable, "-c", LOADED_LATE], capture_output=True, text=True, check=True)

    assert told.stdout.split() == ["False", "False", "True"]


def test_noting_the_process_touches_no_filters_for_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[None] = []
    monkeypatch.setattr(warnings, "_filters_mutated", lambda: touched.append(None))

    process_changes(process_state())

    assert touched == []


def test_noting_the_process_is_quick() -> None:
    process_state()
    started = time.perf_counter()
    for _ in range(5):
        process_state()

    assert (time.perf_counter() - started) / 5 < 0.05


# ---- modules and classes that only a run shows


def test_a_module_that_is_imported_by_a_computed_name_is_an_input(
    local_modules: Path, seeds_watched: None
) -> None:
    write_module = (local_modules / "plugin.py").write_text
    write_module("from helper_of_plugin import K\n")
    (local_modules / "helper_of_plugin.py").write_text("K = 1\n")

    def forget() -> None:
        for name in ("plugin", "helper_of_plugin"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()

    name = "".join(["plug", "in"])
    first = [row for row in rows_of(lambda: importlib.import_module(name)) if row.kind == "module"]
    again = [row for row in rows_of(lambda: importlib.import_module(name)) if row.kind == "module"]
    assert "plugin" in {row.name for row in first}
    assert [row.name for row in again] == ["plugin"]
    forget()
    assert all_hold([*first, *again])

    (local_modules / "helper_of_plugin.py").write_text("K = 2\n")
    importlib.invalidate_caches()
    assert not all_hold(first)
    assert not all_hold(again)


def test_the_class_of_a_pickled_instance_is_an_input(notebook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(**notebook.names))
    notebook.names = vars(sys.modules["__main__"])
    notebook("import pickle\nclass P:\n    def go(self): return 1\n")
    Path("p.pkl").write_bytes(pickle.dumps(notebook["P"]()))

    rows = rows_of(lambda: notebook("with open('p.pkl', 'rb') as file: r = pickle.load(file).go()\ndel file"))
    assert {(row.kind, row.name) for row in rows} == {("file", "p.pkl"), ("name", "P")}
    assert all_hold(rows)

    notebook("class P:\n    def go(self): return 2\n")
    assert not all_hold(rows)


def test_what_a_text_of_sql_quotes_are_names_of_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_text("a\n1\n")
    text = """select * from 'data.csv', read_csv("d*.csv")
        where b = 'x' and c like '%*'"""

    assert files_named_in(text) == ["data.csv"]
    assert environment.patterns_quoted_in(text) == ["d*.csv"]
    rows = environment.pattern_rows("d*.csv")
    assert [row.name for row in rows] == ["data.csv", "."]
    Path("data2.csv").write_text("a\n1\n")
    assert [still_holds(row) for row in rows] == [True, False]
