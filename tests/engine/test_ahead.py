"""Workers that load modules before a call needs them."""

from __future__ import annotations

import sys

from ipyparcache.engine.backends.atonce import surroundings
from ipyparcache.engine.pool import the_pool
from tests.contracts.backend import values


def seen_early(_):
    return sys.modules["asks_early"].SEEN


def test_workers_load_modules_ahead_in_the_surroundings_of_the_caller(tmp_path, monkeypatch):
    (tmp_path / "asks_early.py").write_text("import os\nSEEN = os.environ.get('ASKED_EARLY')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ASKED_EARLY", "as it was")

    the_pool().prepare(2, ("asks_early", "there_is_no_such_module"), *surroundings.take())
    monkeypatch.setenv("ASKED_EARLY", "as it is now")

    assert set(values(seen_early, [(n,) for n in range(8)], "processes")) == {"as it was"}
