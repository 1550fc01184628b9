import pytest

from ipyparcache.storage.eviction import HALF_LIFE, EntryInfo, names_beyond, names_to_evict, usefulness


def info(name, size=100, seconds=1.0, last_use=0.0):
    return EntryInfo(name, size, 0.0, last_use, seconds)


def test_nothing_goes_while_all_fits():
    assert names_to_evict([info("a"), info("b")], 200, now=0) == []


def test_what_saves_least_per_byte_goes_first():
    entries = [info("slow", 100, 50.0), info("quick", 100, 0.1), info("large", 1000, 50.0)]

    assert names_to_evict(entries, 150, now=0) == ["quick", "large"]


def test_what_was_long_unused_counts_less():
    entries = [info("old", seconds=3.0), info("new", seconds=1.0, last_use=2 * HALF_LIFE)]

    assert names_to_evict(entries, 100, now=2 * HALF_LIFE) == ["old"]


def test_a_clock_that_went_back_does_no_harm():
    assert usefulness(info("a", last_use=100.0), now=0.0) == usefulness(info("a"), now=0.0)


def test_a_negative_budget_is_an_error():
    with pytest.raises(ValueError, match="cannot be kept"):
        names_to_evict([], -1, now=0)


def test_each_limit_takes_the_least_recently_used():
    uses = [(float(n), str(n), 100) for n in range(5)]

    assert names_beyond(uses, now=5) == []
    assert names_beyond(uses, now=5, most_bytes=250) == ["0", "1", "2"]
    assert names_beyond(uses, now=5, most_items=4) == ["0"]
    assert names_beyond(uses, now=5, oldest=3.5) == ["0", "1"]
    assert names_beyond(uses, now=5, most_items=0) == ["0", "1", "2", "3", "4"]
