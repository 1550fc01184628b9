"""Whose filters for warnings are whose."""

from __future__ import annotations

import pickle
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from ipyparcache.digest import warningfilters

LIBRARY = {"__name__": "pandas.core.frame", "warnings": warnings}
USER: dict[str, Any] = {"__name__": "__main__", "warnings": warnings}


@pytest.fixture(autouse=True)
def few_filters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python's own filters, and functions that are watched."""
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings():
        warnings.filters[:] = list(warningfilters._PYTHONS)  # type: ignore[index]
        warningfilters.begin(user_cells_ran=False)
        for name in ("filterwarnings", "simplefilter"):
            monkeypatch.setattr(warnings, name, warningfilters.noting_others(getattr(warnings, name)))
        yield
        warningfilters.end()


def test_filters_of_libraries_are_not_told() -> None:
    exec("warnings.filterwarnings('ignore', message='theirs')", LIBRARY)
    exec("warnings.simplefilter('always', FutureWarning, append=True)", LIBRARY)

    assert warningfilters.facts() == []


def test_filters_of_the_user_are_told_in_their_order() -> None:
    exec("warnings.filterwarnings('ignore', message='mine')", USER)
    exec("warnings.filters.insert(0, ('error', None, UserWarning, None, 0))", USER)
    found = warningfilters.facts()

    assert [re.findall(r"error|mine", text) for text in found] == [["error"], ["mine"]]


def test_what_is_no_filter_is_told_as_it_is() -> None:
    warnings.filters.insert(0, ("nothing",))  # type: ignore[attr-defined]

    assert warningfilters.facts() == ["('nothing',)"]


def test_a_filter_of_a_library_stays_its_own_however_many_come_and_go_after_it() -> None:
    exec("warnings.filterwarnings('ignore', message='theirs')", LIBRARY)
    exec(
        f"for _ in range({warningfilters._PASSING} + 9):\n"
        "  with warnings.catch_warnings():\n    warnings.simplefilter('ignore')",
        LIBRARY,
    )

    assert warningfilters.facts() == []
    assert len(warningfilters._others) < 20


def test_the_same_filter_set_by_the_user_is_the_users() -> None:
    exec("warnings.simplefilter('ignore')", LIBRARY)
    exec("warnings.simplefilter('ignore')", USER)

    assert len(warningfilters.facts()) == 1


@pytest.mark.parametrize(
    ("set_filter", "is_told"),
    [
        ("warnings.simplefilter('error')", True),
        ("warnings.filterwarnings('ignore', message='of a library, for all that is known')", False),
    ],
)
def test_filters_set_before_anybody_watched(set_filter: str, is_told: bool) -> None:
    exec(set_filter, USER)
    warningfilters.begin(user_cells_ran=True)

    assert bool(warningfilters.facts()) is is_told


def test_captured_filters_come_back_with_their_owners() -> None:
    exec("warnings.filterwarnings('ignore', message='theirs')", LIBRARY)
    exec("warnings.simplefilter('error')", USER)
    captured, told = pickle.loads(pickle.dumps(warningfilters.capture())), warningfilters.facts()
    del warnings.filters[0]  # type: ignore[attr-defined]
    assert warningfilters.facts() == []

    warningfilters.restore(captured)

    assert warningfilters.facts() == told
    assert [one[0] for one in warnings.filters][:2] == ["error", "ignore"]


def test_nothing_is_told_while_nobody_watches() -> None:
    warnings.filters.insert(0, ("error", None, UserWarning, None, 0))  # type: ignore[attr-defined]
    warningfilters.end()

    assert warningfilters.facts() == []


def test_filters_that_python_was_started_with_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["error::UserWarning"])

    assert warningfilters.facts() == ["as started with error::UserWarning"]
