"""A cache of the test's own."""

import pytest

from ipyparcache import Memory
from tests.memory.functions import runs


@pytest.fixture(autouse=True)
def no_runs():
    runs.clear()


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path / "cache", verbose=0)
