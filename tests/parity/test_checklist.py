"""Every feature on the project's list has tests that show it, or a reason why there is none."""

import ast
import itertools
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

FILES = {
    "arrays": "parity/test_arrays.py",
    "at_once": "parallel/test_at_once.py",
    "backends": "parallel/test_backends.py",
    "caching": "parity/test_caching.py",
    "calls": "parity/test_calls.py",
    "compression": "storage/test_compression.py",
    "contract_backend": "contracts/backend.py",
    "contract_codec": "contracts/codec.py",
    "dependencies": "memory/test_dependencies.py",
    "digest_code": "digest/test_code.py",
    "dispatch": "parallel/test_dispatch.py",
    "engine_cpus": "engine/test_cpus.py",
    "engine_data": "engine/test_data.py",
    "engine_deaths": "engine/test_deaths.py",
    "engine_forking": "engine/test_forking.py",
    "engine_inprocess": "engine/test_inprocess.py",
    "engine_interrupts": "engine/test_interrupts.py",
    "engine_large_results": "engine/test_large_results.py",
    "engine_outcome": "engine/test_outcome.py",
    "engine_processes": "engine/test_processes.py",
    "fileformat": "storage/test_fileformat.py",
    "following": "parity/test_following.py",
    "front": "parallel/test_front.py",
    "functions": "memory/test_functions.py",
    "helpers": "parity/test_helpers.py",
    "joblibhash": "digest/test_joblibhash.py",
    "layers": "test_layers.py",
    "localmodules": "engine/test_localmodules.py",
    "logger": "test_logger.py",
    "others_backends": "parity/test_backends_of_others.py",
    "others_stores": "parity/test_store_backends_of_others.py",
    "parity": "parity/test_parity.py",
    "people": "parity/test_people.py",
    "platforms": "parallel/test_platforms.py",
    "programs": "parity/test_programs.py",
    "results": "memory/test_results.py",
    "scikit_learn": "parity/test_scikit_learn.py",
    "storage_entry": "storage/test_entry.py",
}

SECTIONS = {"A": 89, "B": 57, "C": 12, "D": 21, "E": 55, "F": 26, "G": 18, "H": 8, "I": 20, "X": 22}
"""How many features each section has; X are those defects of joblib that must not come back."""

REASONS = ("differs", "later", "unseen")


def read():
    """The lines below each id of the list, as pairs of what stands before and behind the colon."""
    rows, name = {}, None
    text = Path(__file__).with_name("checklist.txt").read_text(encoding="utf-8")
    for line in itertools.chain.from_iterable(part.splitlines() for part in text.split("\n\n")[1:]):
        if line.startswith("    "):
            kind, _, rest = line.strip().partition(": ")
            rows[name].append((kind, rest))
        else:
            name = line.split()[0]
            assert name not in rows
            rows[name] = []
    return rows


ROWS = read()


def names_in(file):
    """Names of the functions that pytest collects from a file, without what they all begin with."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name.removeprefix("test_") for node in functions if node.name.startswith("test_")}


def test_every_feature_is_on_the_list():
    expected = {
        f"{letter}{number:02}" for letter, count in SECTIONS.items() for number in range(1, count + 1)
    }

    assert set(ROWS) == expected | {"A26b"}
    assert [name for name, row in ROWS.items() if not row] == []


@pytest.mark.parametrize("key", FILES)
def test_the_tests_that_are_named_are_there(key):
    named = {test for row in ROWS.values() for kind, test in row if kind == key}

    assert named != set()
    assert named - names_in(FILES[key]) == set()


def test_what_has_no_test_has_a_reason():
    odd = [(name, kind) for name, row in ROWS.items() for kind, _ in row if kind not in {*FILES, *REASONS}]
    mixed = [name for name, row in ROWS.items() if len({kind in REASONS for kind, _ in row}) > 1]
    empty = [name for name, row in ROWS.items() for kind, rest in row if kind in REASONS and len(rest) < 8]

    assert (odd, mixed, empty) == ([], [], [])
