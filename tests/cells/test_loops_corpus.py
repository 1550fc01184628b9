"""Every loop of the corpus leaves what the serial loop leaves, or is refused; how many run is held."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import pytest

from ipyparcache.errors import ChangeLost, LoopRefused
from tests.cells.loops_corpus import CORPUS
from tests.cells.sessions import describe, new_namespace, parallel, serial

PAGE = Path(__file__).parents[2] / "docs" / "acceptance.md"
LEAST_SHARE = 0.88  # of the corpus that must run in parallel

_became: Counter[str] = Counter()


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPUS)
def test_a_loop_of_the_corpus_leaves_what_the_serial_loop_leaves(name, monkeypatch):
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread that outlives the test
    for library in ("pandas", "sklearn", "matplotlib", "scipy"):
        if library in CORPUS[name][0]:
            pytest.importorskip(library)
    setup, cell = CORPUS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, tested = new_namespace(setup), new_namespace(setup)
        text, error = serial(plain, cell)
        host, raised, _ = parallel(tested, cell)

    if isinstance(raised, LoopRefused | ChangeLost):
        _became[type(raised).__name__] += 1
        assert "line" in str(raised)
        return
    _became["ran"] += 1
    assert type(raised).__name__ == type(error).__name__, raised
    was, now = describe(plain), describe(tested)
    assert {n: now.get(n) for n in was | now} == {n: was.get(n) for n in was | now}
    assert host.stdout == text


@pytest.mark.slow
def test_most_loops_of_the_corpus_run_in_parallel():
    if sum(_became.values()) < len(CORPUS):
        pytest.skip("the corpus has not been run whole")

    assert _became["ChangeLost"] == 0
    assert _became["ran"] / len(CORPUS) >= LEAST_SHARE, dict(_became)
    said = (
        f"Of the {len(CORPUS)} loops of `tests/cells/loops_corpus.py`, {_became['ran']} run in parallel and "
        f"{_became['LoopRefused']} are refused"
    )
    assert said in " ".join(PAGE.read_text(encoding="utf-8").split())
