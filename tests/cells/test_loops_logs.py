"""One file for all iterations: the kernel writes to it, in their order."""

from __future__ import annotations

import os

import pytest

from ipyparcache.errors import FilesMet, LoopRefused
from tests.cells.sessions import describe, new_namespace, parallel, serial

SETUP = (
    "import csv, json, os\nfrom pathlib import Path\nout, folder, log = [], '.', Path('p.txt')\n"
    "def ratio(x):\n    return 12 // (4 - x)"
)
SAME = {
    "lines": "    with open('log.txt', 'a') as f:\n        f.write(f'{x}: {ratio(x)}\\n')",
    "failing_between_two_writes": (
        "    with open('log.txt', 'a') as f:\n        f.write(f'begin {x}\\n')\n"
        "        f.write(f'{ratio(x + 2)}\\n')"
    ),
    "rows": (
        "    with open(os.path.join(folder, 'rows.csv'), mode='a', newline='') as f:\n"
        "        writer = csv.writer(f)\n        writer.writerow([x, x * x])\n        print('#', file=f)"
    ),
    "a_path": "    with log.open('a') as f:\n        f.write(f'{x}: {ratio(x)}\\n')",
    "a_path_in_a_folder": "    with (Path(folder) / 'log.txt').open(mode='a') as f:\n        f.write(str(x))",
    "the_last_state": "    with open('state.json', 'w') as f:\n        json.dump({'x': x}, f)\n    print(x)",
    "what_changes_behind": (
        "    xs = [x]\n    with open('log.txt', 'a') as f:\n        print(xs, file=f)\n    xs.append(x)"
    ),
    "some": (
        "    if x % 2:\n        with open('odd.txt', 'a') as f:\n            f.write(str(x))\n"
        "    out.append(x)"
    ),
}


def left_in(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("options", [{}, {"chunk": 1}, {"backend": "threads"}, {"cached": True}])
def test_a_file_that_all_iterations_write_holds_what_the_serial_loop_writes(
    name, options, tmp_path, monkeypatch
):
    cell = f"for x in range(4):\n{SAME[name]}"
    sides = []
    for side, run in (("plain", serial), ("tested", lambda names, text: parallel(names, text, **options))):
        (tmp_path / side).mkdir()
        monkeypatch.chdir(tmp_path / side)
        names = new_namespace(SETUP)
        result = run(names, cell)
        sides.append((names, result[1], left_in(tmp_path / side)))
    (plain, error, wrote), (tested, raised, written) = sides

    assert type(raised) is type(error)
    assert written == wrote
    assert describe(tested) == describe(plain)


USED = {
    "read": "out.append(len(open('log.txt').readlines()))",
    "listed": "out.append(len(os.listdir('.')))",
    "asked": "out.append(os.path.exists('log.txt'))",
}


@pytest.mark.parametrize("name", USED)
@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 3}])
def test_a_file_that_the_kernel_writes_must_not_be_used_by_iterations(name, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = new_namespace(SETUP)
    cell = f"for x in range(6):\n    with open('log.txt', 'a') as f:\n        f.write('x')\n    {USED[name]}"

    _, error, _ = parallel(namespace, cell, **options)

    assert isinstance(error, FilesMet)
    assert "log.txt" in str(error) or repr(os.curdir) in str(error)
    assert namespace["out"] == []
    assert "x" not in namespace


REFUSED = {
    "asks_the_file": (
        "    with open('log.txt', 'a') as f:\n        f.write('x')\n        n = f.tell()\n    out.append(n)"
    ),
    "in_a_try": (
        "    try:\n        with open('log.txt', 'a') as f:\n            f.write(str(ratio(x)))\n"
        "    except ZeroDivisionError:\n        pass"
    ),
    "reads_too": "    with open('log.txt', 'a+') as f:\n        f.write('x')\n        out.append(f.read())",
}


@pytest.mark.parametrize("name", REFUSED)
def test_more_than_writing_to_one_file_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    _, error, _ = parallel(new_namespace(SETUP), f"for x in range(3):\n{REFUSED[name]}")

    assert isinstance(error, LoopRefused)
    assert left_in(tmp_path) == {}
