"""Files by which one iteration may tell another something: where chunks meet there, the loop ends."""

from __future__ import annotations

import contextlib
import os
import sqlite3

import pytest

from ipyparcache.cells import fileuses
from ipyparcache.cells.fileuses import Meetings
from ipyparcache.errors import FilesMet
from tests.cells.sessions import new_namespace, parallel


def _uses(actions):
    with fileuses.noted() as uses:
        actions()
    return {
        os.path.relpath(path) + ("/" if path.endswith("/") else ""): u for path, u in uses.ended().items()
    }


def _write(path, text="x", mode="w"):
    with open(path, mode) as file:
        file.write(text)


def _read(path):
    with open(path) as file:
        return file.read()


def _insert(path, statement="create table if not exists t (a)"):
    with contextlib.closing(sqlite3.connect(path, uri=True)) as connection, connection:
        connection.execute(statement)
        if statement.startswith("create"):
            connection.execute("insert into t values (1)")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


#: What an earlier chunk does, and a later one beside it; whether a serial loop might leave something else.
PAIRS = {
    "writes what the other reads": (lambda: _write("a"), lambda: _read("a"), True),
    "writes what the other writes": (lambda: _write("a"), lambda: _write("a", "y"), True),
    "both append": (lambda: _write("a", mode="a"), lambda: _write("a", mode="a"), True),
    "makes a file in a folder that the other lists": (lambda: _write("a"), lambda: os.listdir("."), True),
    "reads what the other writes later": (lambda: _read("in"), lambda: _write("in"), True),
    "removes what the other then misses": (
        lambda: os.remove("in"),
        lambda: os.path.exists("in") or _write("b"),
        False,
    ),
    "both read": (lambda: _read("in"), lambda: _read("in"), False),
    "each its own": (lambda: _write("a"), lambda: (_write("b"), _read("b"), os.path.getsize("b")), False),
    "makes a file, and the other finds it": (lambda: _write("a"), lambda: os.path.exists("a"), False),
    "both make the folder": (
        lambda: os.makedirs("d", exist_ok=True),
        lambda: os.path.exists("d") or os.makedirs("d"),
        False,
    ),
    "writes a database that the other writes": (lambda: _insert("db"), lambda: _insert("db"), True),
    "writes a database that the other reads": (
        lambda: _insert("file:db?mode=rwc"),
        lambda: _insert("db", "select 1"),
        True,
    ),
    "both read a database": (
        lambda: _insert("there", "select 1"),
        lambda: _insert("file:there?mode=ro", "select * from t"),
        False,
    ),
    "databases in memory": (lambda: _insert(":memory:"), lambda: _insert("file::memory:"), False),
    "a temporary file each": (
        lambda: (_write("t"), os.remove("t")),
        lambda: (_write("u"), os.remove("u")),
        False,
    ),
    "a draft renamed each": (
        lambda: (_write("t"), os.replace("t", "a")),
        lambda: (_write("t"), os.replace("t", "b")),
        False,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_chunks_that_ran_side_by_side_met_where_one_wrote_what_the_other_used(name):
    earlier, later, meets = PAIRS[name]
    _write("in")
    _insert("there")
    first, second = _uses(earlier), _uses(later)

    beside, behind = Meetings(), Meetings()
    for meetings, started in ((beside, 0.5), (behind, 1.5)):
        assert meetings.add(0, 3, 0.0, 1.0, first) is None
        met = meetings.add(4, 7, started, 2.0, second)

        assert (met is not None) == (meets and meetings is beside)
        if met is not None:
            assert (met[1].first, met[1].last) == (0, 3)


def test_a_file_that_was_asked_for_too_early_is_met():
    asked = _uses(lambda: os.path.exists("a"))
    made = _uses(lambda: _write("a"))
    meetings = Meetings()

    assert meetings.add(0, 0, 0.0, 1.0, made) is None
    assert meetings.add(1, 1, 0.5, 2.0, asked) is not None


def test_the_functions_that_ask_about_paths_are_there_again_afterwards():
    before = os.stat, os.lstat

    with fileuses.noted():
        assert os.stat in os.supports_follow_symlinks

    assert (os.stat, os.lstat) == before


def test_a_loop_whose_iterations_tell_each_other_something_by_a_file_ends_with_an_error():
    setup = (
        "import os, time\ndef both_run(name):\n    open(name, 'w').close()\n"
        "    while len([n for n in os.listdir('gate')]) < 2:\n        time.sleep(0.001)\n"
        "os.mkdir('gate')\nout = []\n"
    )
    cell = (
        "for i in range(2):\n    both_run(f'gate/{i}')\n"
        "    p = os.path.join('.', 'log')\n    with open(p, 'a') as f:\n        f.write(str(i))\n"
        "    out.append(i)\ndel f"
    )
    namespace = new_namespace(setup)

    _, error, _ = parallel(namespace, cell)

    assert isinstance(error, FilesMet)
    assert (error.first, error.last) == (1, 1)
    assert "iteration 0" in str(error)
    assert namespace["out"] == [0]


def test_a_named_temporary_file_of_an_iteration_is_no_value_that_could_come_home():
    setup = "from tempfile import NamedTemporaryFile as made\nsizes = []\n"
    cell = "for i in range(4):\n    with made('w') as f:\n        sizes.append(f.write(i * 'x'))"
    namespace = new_namespace(setup)

    host, error, _ = parallel(namespace, cell)

    assert error is None
    assert namespace["sizes"] == [0, 1, 2, 3]
    assert "f" not in namespace
    assert any("`f`" in note for note in host.notes)
