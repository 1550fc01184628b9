"""The watchdog of the tests: what hangs ends, and is named."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

HANGING = """
import subprocess, sys, threading, time
from pathlib import Path
from tests.watchdog import Watchdog

watchdog = Watchdog(Path(sys.argv[1]), between=0.2)
sleeps = "import faulthandler, time; faulthandler.enable(); print(1, flush=True); time.sleep(600)"


def waits_for_a_child():
    with subprocess.Popen([sys.executable, "-c", sleeps], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        watchdog.begins("the first test", 0.1)
        child.wait()


def waits_for_itself():
    watchdog.begins("the second test", 0.1)
    threading.Event().wait()


def waits_and_ignores():
    watchdog.begins("the third test", 0.1)
    while True:
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            pass


waits_for_a_child()
try:
    waits_for_itself()
except KeyboardInterrupt:
    print("interrupted", flush=True)
if len(sys.argv) == 3:
    waits_and_ignores()
watchdog.begins("", 0)
watchdog.close()
"""


def hang(hung: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HANGING, str(hung), *more],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_hanging_test_loses_its_children_then_is_interrupted(tmp_path: Path) -> None:
    ran = hang(tmp_path / "hung")
    assert (ran.returncode, ran.stdout) == (0, "interrupted\n"), ran.stderr
    assert 'File "<string>", line 1 in <module>' in ran.stderr  # where the child was
    told = (tmp_path / "hung").read_text()
    assert "the first test hangs: it has run for 0 s" in told
    assert "faulthandler.enable()" in told  # the command of the child
    assert "the second test hangs" in told


def test_a_test_that_ignores_interrupts_ends_with_the_run(tmp_path: Path) -> None:
    ran = hang(tmp_path / "hung", "on")
    assert ran.returncode in (-signal.SIGABRT, -signal.SIGKILL)
    assert "the third test goes on hanging: the run is ended." in ran.stderr
