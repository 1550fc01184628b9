"""The programs of `people` give with us what they give with joblib."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("people.py")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What all programs answered, with joblib and with us, each in a process of its own."""
    folder = tmp_path_factory.mktemp("people")
    running = {}
    for package in ("joblib", "ipyparcache"):
        command = [sys.executable, str(SCRIPT), package, str(folder / f"{package}.json")]
        homes = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"), str(folder))
        running[package] = subprocess.Popen(command, cwd=folder, env={**os.environ, **homes})
    assert [process.wait(120) for process in running.values()] == [0, 0]
    return [json.loads((folder / f"{package}.json").read_text(encoding="utf-8")) for package in running]


def names():
    lines = SCRIPT.read_text(encoding="utf-8").split("@program\ndef ")[1:]
    return [line.partition("(")[0] for line in lines]


@pytest.mark.parametrize("name", names())
def test_a_program_answers_as_with_joblib(answers, name):
    theirs, ours = (found[name] for found in answers)

    assert ours == theirs
