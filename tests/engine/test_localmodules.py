import importlib.machinery
import importlib.util
import os
import sys

import cloudpickle
import pytest

from tests.contracts.backend import values

NAMES = ("local_helper", "local_user")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a local module; each text is newer than the one before, as the clock of a file system is
    coarse.
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    clock = iter(range(1_600_000_000, 1_700_000_000, 10))

    def write(name, text):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        second = next(clock)
        os.utime(path, (second, second))
        importlib.invalidate_caches()

    yield write
    for name in NAMES:
        sys.modules.pop(name, None)


def load(name):
    return importlib.import_module(name)


def test_a_module_that_was_loaded_again_is_new_on_warm_workers(write):
    write("local_helper", "def answer(): return 1")
    helper = load("local_helper")
    assert values(helper.answer, [()] * 4, "processes") == [1] * 4

    write("local_helper", "def answer(): return 2")
    importlib.reload(helper)

    assert values(helper.answer, [()] * 4, "processes") == [2] * 4


def test_a_module_that_was_edited_only_runs_as_loaded(write):
    write("local_helper", "def answer(): return 1")
    helper = load("local_helper")
    values(helper.answer, [()] * 4, "processes")

    write("local_helper", "def answer(): return 2")

    assert values(helper.answer, [()] * 4, "processes") == [1] * 4


def test_a_module_that_imports_an_edited_one_runs_as_loaded(write):
    write("local_helper", "def answer(): return 1")
    write("local_user", "import local_helper\ndef use(): return local_helper.answer()")
    user = load("local_user")
    values(user.use, [()] * 4, "processes")

    write("local_helper", "def answer(): return 2")
    assert values(user.use, [()] * 4, "processes") == [1] * 4

    importlib.reload(sys.modules["local_helper"])
    assert values(user.use, [()] * 4, "processes") == [2] * 4


def test_an_edit_before_the_first_call_is_noticed_by_the_bytecode(write, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    write("local_helper", "def answer(): return 1")
    helper = load("local_helper")
    write("local_helper", "def answer(): return 2")

    assert values(helper.answer, [()] * 4, "processes") == [1] * 4


def test_old_bytecode_beside_what_another_loader_has_loaded_is_not_asked(write, tmp_path, monkeypatch):
    class OtherLoader(importlib.machinery.SourceFileLoader):
        def get_code(self, fullname):
            return self.source_to_code(self.get_data(self.path), self.path)

    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    write("local_helper", "def answer(): return 1")
    load("local_helper")
    del sys.modules["local_helper"]
    write("local_helper", "def answer(): return 22")
    path = str(tmp_path / "local_helper.py")
    spec = importlib.util.spec_from_loader("local_helper", OtherLoader("local_helper", path))
    helper = sys.modules["local_helper"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helper)

    assert values(helper.answer, [()] * 4, "processes") == [22] * 4
    assert helper.__name__ not in cloudpickle.list_registry_pickle_by_value()  # goes by its name
