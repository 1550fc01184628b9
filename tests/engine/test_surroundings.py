"""What lies around a task is compared at each call, by shortcuts: none of them may miss a change."""

import decimal
import importlib.util
import logging
import os
import sys
import warnings

import numpy as np
import pytest

from ipyparcache.engine import surroundings
from ipyparcache.engine.surroundings import Surroundings


@pytest.fixture
def taken():
    """A `Surroundings` that has been asked before."""
    made = Surroundings()
    made.take()
    assert made.take()[0] == 1  # nothing has changed
    return made


def changed_filters():
    warnings.simplefilter("error", BytesWarning)


def changed_logger():
    logging.getLogger("tests.surroundings.known").setLevel(logging.ERROR)


def changed_propagation():
    logging.getLogger("tests.surroundings.known").propagate = False


def changed_placeholder():
    logging.getLogger("tests.surroundings").setLevel(logging.ERROR)  # it only held the place of its child


def changed_root():
    logging.root.setLevel(7)


def changed_disable():
    logging.disable(3)


def changed_precision():
    decimal.getcontext().prec = 7


def changed_traps():
    decimal.getcontext().traps[decimal.Inexact] = True


def changed_errors():
    np.seterr(divide="raise")


def changed_printing():
    np.set_printoptions(precision=2)


@pytest.mark.parametrize(
    "change",
    [
        changed_filters,
        changed_logger,
        changed_propagation,
        changed_placeholder,
        changed_root,
        changed_disable,
        changed_precision,
        changed_traps,
        changed_errors,
        changed_printing,
    ],
)
def test_a_changed_setting_of_a_library_is_seen(taken, change):
    known = logging.getLogger("tests.surroundings.known")
    taken.take()
    root, disabled = logging.root.level, logging.root.manager.disable
    try:
        with warnings.catch_warnings(), decimal.localcontext(), np.errstate(), np.printoptions():
            taken.take()
            before = taken.version
            assert taken.take()[0] == before
            change()
            assert taken.take()[0] == before + 1
            assert taken.take()[0] == before + 1
        assert taken.take()[0] >= before + 1
    finally:
        logging.root.setLevel(root)
        logging.disable(disabled)
        known.setLevel(logging.NOTSET)
        known.propagate = True
        logging.getLogger("tests.surroundings").setLevel(logging.NOTSET)


def test_a_changed_process_is_seen(taken, monkeypatch, tmp_path):
    versions = [taken.take()[0]]

    def note():
        versions.append(taken.take()[0])

    monkeypatch.setenv("TESTED_SURROUNDINGS", "1")
    note()
    monkeypatch.setenv("TESTED_SURROUNDINGS", "2")
    note()
    monkeypatch.syspath_prepend(str(tmp_path))
    note()
    monkeypatch.chdir(tmp_path)
    note()
    monkeypatch.setattr(sys, "argv", ["other"])
    note()
    monkeypatch.setattr(sys, "dont_write_bytecode", not sys.dont_write_bytecode)
    note()
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 50)
    try:
        note()
    finally:
        sys.setrecursionlimit(before)

    assert [version - versions[0] for version in versions] == list(range(8))


@pytest.mark.parametrize("library", ["matplotlib", "pandas"])
def test_an_option_that_is_changed_in_place_is_seen(taken, library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if library == "matplotlib":
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcParams["font.serif"] = ["One"]
            before = taken.take()[0]
            matplotlib.rcParams["font.serif"].append("Two")
            assert taken.take()[0] == before + 1
    else:
        import pandas as pd

        before = taken.take()[0]
        with pd.option_context("display.max_rows", 7):
            assert taken.take()[0] == before + 1
        assert taken.take()[0] == before + 2


def test_a_removed_folder_does_not_stop_calls(taken, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    version = taken.take()[0]
    assert taken.take()[0] == version


def test_a_worker_puts_in_place_what_a_task_has_changed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pickled = Surroundings().take()[1]
    here = dict(os.environ)
    with monkeypatch.context() as undo:
        undo.setattr(surroundings, "_in_place", None)
        undo.setattr(surroundings, "_restored", [])
        undo.setattr(surroundings, "_folder", "")
        undo.setattr(surroundings, "_modules", {})
        undo.setattr(sys, "meta_path", list(sys.meta_path))
        # this process is no worker: its local modules, the tests among them, are to stay
        undo.setattr(surroundings, "drop_outdated", lambda _before, _now: None)
        surroundings.restore(pickled)
        surroundings.restore(None)
        os.environ["LEFT_BY_A_TASK"] = "1"
        sys.path.append("left by a task")
        os.chdir("/")
        logging.getLogger("left.by.a.task").setLevel(3)

        surroundings.restore(None)

    assert dict(os.environ) == here
    assert "left by a task" not in sys.path
    assert os.getcwd() == str(tmp_path)
    assert logging.getLogger("left.by.a.task").level == logging.NOTSET
