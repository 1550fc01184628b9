"""A shell that has loaded the extension, in a folder of its own."""

import pytest

from ipyparcache import magics


@pytest.fixture
def extension(shell, tmp_path, monkeypatch):
    """`%load_ext ipyparcache` in the shell of the test, whose folder is the working folder."""
    monkeypatch.chdir(tmp_path)
    magics.load_ipython_extension(shell)
    yield
    magics.unload_ipython_extension(shell)
