"""The package as people get it: built, and installed where nothing else is."""

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
    import sys
    from math import sqrt

    import ipyparcache
    from ipyparcache import Memory, Parallel, delayed, dump, load

    assert "site-packages" in ipyparcache.__file__, ipyparcache.__file__
    assert "joblib" not in sys.modules and "loky" not in sys.modules
    for name in ipyparcache.__all__:
        if name != "register_joblib":
            getattr(ipyparcache, name)
    if __name__ == "__main__":
        assert Parallel(n_jobs=2)(delayed(sqrt)(i * i) for i in range(10)) == [float(i) for i in range(10)]
        square = Memory("cache", verbose=0).cache(lambda x: x * x)
        assert square(7) == square(7) == 49 and square.check_call_in_cache(7)
        dump([1, "two"], "file.gz")
        assert load("file.gz") == [1, "two"]

        from IPython.core.interactiveshell import InteractiveShell

        shell = InteractiveShell.instance()
        shell.run_line_magic("load_ext", "ipyparcache")
        shell.run_cell("%%cached\\ntotal = sum(range(10))").raise_error()
        shell.run_cell("%%parallel -j 2\\nout = [i * i for i in range(20)]").raise_error()
        assert shell.user_ns["total"] == 45 and shell.user_ns["out"] == [i * i for i in range(20)]
        print("all well")
"""


def run(*command, folder, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=folder,
        env={**kept, **environment},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(tmp_path):
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT, folder=tmp_path)
    (wheel,) = tmp_path.glob("ipyparcache-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    run(sys.executable, "-m", "venv", tmp_path / "empty", folder=tmp_path)
    python = tmp_path / "empty" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, folder=tmp_path)
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM), encoding="utf-8")
    said = run(python, "program.py", folder=tmp_path, IPYPARCACHE_DIR=str(tmp_path / "store"))

    assert said.strip().endswith("all well")
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"ipyparcache"}
    assert "ipyparcache/py.typed" in names
    assert not any("__pycache__" in name or name.startswith("tests") for name in names)
