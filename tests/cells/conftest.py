"""A shell that has loaded the extension, in a folder of its own, and cached cells in it."""

import gc
import os
import sys
import textwrap

import pytest

from ipyparcache import last_run, magics


@pytest.fixture
def extension(shell, tmp_path, monkeypatch):
    """`%load_ext ipyparcache` in the shell of the test, whose folder is the working folder."""
    monkeypatch.chdir(tmp_path)
    magics.load_ipython_extension(shell)
    yield
    magics.unload_ipython_extension(shell)


@pytest.fixture
def restart(shell):
    """Forget all variables and what was imported from the working folder, as a new kernel would."""

    def forget():
        shell.reset(new_session=False)
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(os.getcwd()):
                del sys.modules[name]
        gc.collect()

    return forget


@pytest.fixture
def cached(cell):
    """Run a body under `%%cached`; the status of the run."""

    def run(body, line=""):
        cell(f"%%cached {line} --quiet\n{textwrap.dedent(body)}")
        return last_run().status

    return run


@pytest.fixture
def names(shell):
    return shell.user_ns
