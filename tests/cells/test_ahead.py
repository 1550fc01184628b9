"""What workers import ahead of a notebook's first loop, and where it is noted that one will come."""

from __future__ import annotations

import collections
import os
import types
from fractions import Fraction

import pytest

from ipyparcache import settings
from ipyparcache.cells import ahead
from ipyparcache.engine.cpus import cpu_count


class Pool:
    """Takes what workers are to prepare for."""

    def __init__(self):
        self.prepared: list[tuple[int, set[str]]] = []

    def prepare(self, count, modules, version, state):
        self.prepared.append((count, set(modules)))


@pytest.fixture
def pool(monkeypatch):
    found = Pool()
    monkeypatch.setattr(ahead, "the_pool", lambda: found)
    monkeypatch.setattr(ahead, "cpu_count", lambda: 4)
    # As if modules of the standard library were those of libraries.
    monkeypatch.setattr(ahead.modules_ahead, "__defaults__", (lambda name: "library",))
    return found


class Shell:
    def __init__(self):
        self.user_ns = {"Fraction": Fraction}


def after_an_import(watch):
    watch._loaded = 0
    watch.look()


def test_modules_classes_functions_and_objects_tell_where_they_come_from():
    namespace = {
        "module": os.path,
        "kind": Fraction,
        "function": os.path.join,
        "thing": collections.OrderedDict(),
        "own": test_modules_classes_functions_and_objects_tell_where_they_come_from,
        "_hidden": types.SimpleNamespace(),
        "shell": type("Shell", (), {"__module__": "IPython.core"}),
    }
    origins = {"fractions": "library", "posixpath": "library", "collections": "standard"}

    assert ahead.modules_ahead(namespace, lambda name: origins.get(name, "local")) == [
        "posixpath",
        "fractions",
    ]


def test_a_notebook_that_never_used_workers_has_none_import(pool, tmp_path):
    watch = ahead.Ahead(Shell(), tmp_path / "none")

    after_an_import(watch)

    assert pool.prepared == []


def test_the_next_session_has_as_many_workers_import_as_the_last_one_used(pool, tmp_path):
    place = tmp_path / "state" / "notebook"
    ahead.Ahead(Shell(), place).note_use(3)
    watch = ahead.Ahead(Shell(), place)

    after_an_import(watch)
    after_an_import(watch)
    watch._shell.user_ns["path"] = os.path
    after_an_import(watch)

    assert pool.prepared == [(3, {"fractions"}), (3, {"posixpath"})]


def test_after_the_first_loop_workers_follow_in_the_same_session(pool, tmp_path):
    watch = ahead.Ahead(Shell(), tmp_path / "notebook")

    watch.note_use(9)
    after_an_import(watch)

    assert pool.prepared == [(4, {"fractions"})]


@pytest.mark.parametrize(("warm", "count"), [("on", 4), ("off", None)])
def test_the_setting_decides_alone_where_it_says_on_or_off(pool, tmp_path, warm, count):
    place = tmp_path / "notebook"
    ahead.Ahead(Shell(), place).note_use(2)
    settings.change("warm", warm)
    try:
        after_an_import(ahead.Ahead(Shell(), place))
    finally:
        settings.change("warm", None)

    assert pool.prepared == ([] if count is None else [(count, {"fractions"})])


def test_a_note_that_cannot_be_read_or_written_is_none(pool, tmp_path):
    place = tmp_path / "file" / "notebook"
    place.parent.write_text("in the way")

    watch = ahead.Ahead(Shell(), place)
    watch.note_use(2)

    assert place.parent.read_text() == "in the way"


def test_only_the_notebooks_used_last_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "NOTEBOOKS", 3)
    for number in range(5):
        place = tmp_path / f"{number}"
        ahead.Ahead(Shell(), place).note_use(2)
        os.utime(place, (number, number))
    ahead.Ahead(Shell(), tmp_path / "last").note_use(2)

    assert {file.name for file in tmp_path.iterdir()} == {"3", "4", "last"}


@pytest.mark.kernel
@pytest.mark.skipif(cpu_count() < 2, reason="on one core, one worker is made ready")
def test_workers_have_imported_what_the_notebook_has_after_a_restart(kernel):
    ask = "import sys, ipyparcache as p\n"
    ask += "p.Parallel(2)(p.delayed(lambda: 'cycler' in sys.modules)() for _ in range(4))"
    loop = "%%parallel\nfor i in range(4):\n    print(i)"

    kernel.run("%load_ext ipyparcache\nfrom cycler import cycler")
    first = kernel.run(ask).shown()
    kernel.run(loop)
    kernel.restart()
    kernel.run("%load_ext ipyparcache\nfrom cycler import cycler")
    again = kernel.run(ask).shown()

    assert first == ["[False, False, False, False]"]
    assert again == ["[True, True, True, True]"]
