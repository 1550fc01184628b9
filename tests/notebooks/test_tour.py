"""The tour in its short form: the same cells, with fewer rounds and trees."""

from copy import deepcopy

import nbformat
import pytest

from notebooks import demo

SHORTER = {
    "range(120)": "range(4)",
    "[0.03, 0.06, 0.1, 0.2], [2, 3, 4], [0.5, 0.8]": "[0.06, 0.1], [2], [0.5, 0.8]",
    "trees=150": "trees=10",
    "trees=1000": "trees=20",
    "trees=60": "trees=10",
    "draws=5": "draws=1",
    "n_repeats=20": "n_repeats=2",
}


@pytest.fixture(scope="module")
def tour():
    return nbformat.read(demo.TOUR, as_version=4)


@pytest.fixture
def short_tour(tour):
    notebook = deepcopy(tour)
    for long, short in SHORTER.items():
        assert any(long in cell.source for cell in notebook.cells), f"the tour no longer says {long}"
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, short)
    return notebook


def test_the_plain_tour_holds_no_trace_of_the_package(tour):
    plain = demo.without_magics(tour)

    assert not any(
        word in cell.source
        for cell in demo.code_cells(plain)
        for word in ("%%", "%load", "ipyparcache", "--seed")
    )


def test_the_plain_tour_draws_what_the_seed_option_promises(tour):
    (cell,) = [cell for cell in demo.without_magics(tour).cells if cell.id == "bootstrap"]

    assert "rng = np.random.default_rng(np.random.SeedSequence([7], spawn_key=(i, 3, 0)))" in cell.source


def test_the_edit_changes_one_helper_that_one_cell_calls(tour):
    changed = demo.edited(tour, *demo.EDIT)

    assert [a.id for a, b in zip(tour.cells, changed.cells, strict=True) if a.source != b.source] == [
        "resample"
    ]
    assert demo.cells_that_use(changed, demo.EDITED_FUNCTION) == {"bootstrap"}


def test_cells_that_call_a_helper_through_another_one_are_found(tour):
    assert demo.cells_that_use(tour, "ratios") == {"features"}


def run_of(title, variables, outputs):
    cells = {name: demo.CellRun(name, 1.0, outputs=output) for name, output in outputs.items()}
    return demo.Run(title, None, cells, variables)


def test_a_variable_or_an_output_that_differs_is_reported():
    plain = run_of("plain", {"a": "1", "b": "2"}, {"one": ["x"], "two": ["y"]})
    other = run_of("first", {"a": "1", "b": "3", "c": "4"}, {"one": ["x"], "two": ["z"]})

    assert demo.differences(plain, plain) == []
    assert demo.differences(plain, other) == ["variable b", "variable c", "output of two"]


def test_digests_of_variables_tell_types_bits_and_sharing_apart():
    import numpy as np
    import pandas as pd

    values = {
        "int": 1,
        "bool": True,
        "float": 1.0,
        "zero": 0.0,
        "minus": -0.0,
        "ints": np.array([1]),
        "floats": np.array([1.0]),
        "list": [[], []],
        "shared": [both := [], both],
        "frame": pd.DataFrame({"a": [1]}),
        "named": pd.DataFrame({"b": [1]}),
        "row": pd.DataFrame({"a": [1]}, index=[7]),
    }
    digests = demo.variable_digests(values)

    assert len(set(digests.values())) == len(values)
    assert digests == demo.variable_digests(deepcopy(values))


@pytest.mark.kernel
def test_four_runs_of_the_tour_agree_and_only_what_changed_runs_again(short_tour, tmp_path, kernel_loop):
    runs = demo.four_runs(short_tour, tmp_path, say=lambda line: None)

    verdicts = list(demo.verdicts(short_tour, runs))
    assert [claim for holds, must_hold, claim in verdicts if must_hold and not holds] == []
