"""Mutable objects have numbers: in which order, what two names share, what has changed among many."""

from __future__ import annotations

import gc
import math
import types
import weakref
from typing import Any

import numpy as np
import pytest

from ipyparcache.digest.objects import Traversal, digest_of
from ipyparcache.digest.summaries import summary_of
from tests.digest.values import frame, nan_of


def test_mutable_objects_are_numbered_in_the_order_of_the_walk() -> None:
    inner: list[Any] = []
    value = {"a": inner, "b": (1, [inner])}
    traversal = Traversal({})

    traversal.add("x", value)

    assert traversal.number_of(value) == ("x", 0)
    assert traversal.number_of(inner) == ("x", 1)
    assert traversal.number_of(value["b"][1]) == ("x", 2)
    assert traversal.object_at("x", 1) is inner
    assert traversal.count_of("x") == 3


def test_the_numbers_in_a_set_do_not_depend_on_its_order() -> None:
    class Node:
        def __init__(self, tag: int, hashed: int):
            self.tag = tag
            self.hashed = hashed

        def __hash__(self) -> int:
            return self.hashed

    for hashes in ((1, 2, 3), (3, 2, 1)):
        nodes = [Node(tag, 0) for tag in range(3)]
        for node, hashed in zip(nodes, hashes, strict=True):
            node.__dict__["hashed"] = hashed
        members = set(nodes)
        for node in nodes:
            node.__dict__["hashed"] = 0
        traversal = Traversal({})
        traversal.add("x", members)

        tags = [traversal.object_at("x", n).tag for n in (1, 2, 3)]  # type: ignore[attr-defined]

        if hashes == (1, 2, 3):
            first = tags
    assert tags == first


def test_an_object_under_two_names_is_shared() -> None:
    row = [1]
    traversal = Traversal({})

    traversal.add("a", [row])
    traversal.add("b", {"row": row})

    assert traversal.shared == [(("a", 1), ("b", 1))]
    apart = Traversal({})
    apart.add("a", [[1]])
    apart.add("b", {"row": [1]})
    assert apart.digests == traversal.digests
    assert apart.combined() != traversal.combined()


def test_arrays_over_the_same_memory_are_seen() -> None:
    base = np.arange(10.0)
    views = Traversal({})
    views.add("a", base)
    views.add("b", base[2:5])
    copies = Traversal({})
    copies.add("a", base)
    copies.add("b", base[2:5].copy())

    assert views.memory_sharing == [(("a", 0), ("b", 0), 16)]
    assert copies.memory_sharing == []
    assert views.digests == copies.digests
    assert views.combined() != copies.combined()


def test_a_changed_child_is_not_a_change_of_its_holder() -> None:
    inner = [1]
    value = {"deep": [inner]}
    traversal = Traversal({})
    traversal.add("x", value)

    inner.append(2)

    assert traversal.changed() == [("x", 2)]


def test_a_variable_shared_by_closures_is_found_changed(notebook: Any) -> None:
    notebook(
        "def make():\n    n = 0\n    def count():\n        nonlocal n\n        n += 1\n        return n\n"
        "    return count\ncount = make()"
    )
    traversal = notebook.traversal("count")

    notebook["count"]()

    [place] = traversal.changed()
    assert isinstance(traversal.object_at(*place), types.CellType)


def test_a_plain_object_is_told_by_its_number_only() -> None:
    marker = object()

    assert digest_of([marker, marker]) != digest_of([object(), object()])
    assert digest_of(object()) == digest_of(object())


def test_a_summary_names_columns_and_size() -> None:
    traversal = Traversal({})
    traversal.add("df", frame())
    other = Traversal({})
    other.add("df", frame().assign(b=0))

    before, after = summary_of(traversal, "df"), summary_of(other, "df")

    assert before.type == "pandas.DataFrame"
    assert before.size == "3 x 2"
    assert before.parts["a"] == after.parts["a"]
    assert before.parts["b"] != after.parts["b"]


def test_a_traversal_keeps_what_it_met_alive() -> None:
    class Node:
        pass

    traversal = Traversal({})
    node = Node()
    watched = weakref.ref(node)
    traversal.add("x", [node])
    del node
    gc.collect()

    assert watched() is not None


def rows_of_numbers(count: int = 100) -> list[Any]:
    return [[n, str(n)] for n in range(count)]


MANY: dict[str, tuple[Any, Any]] = {
    "lists": (rows_of_numbers, lambda rows: rows[50].append(True)),
    "lists, one item of another type": (rows_of_numbers, lambda rows: rows[1].__setitem__(0, True)),
    "dicts": (lambda: [{"n": n} for n in range(100)], lambda rows: rows[50].update(n=50.0)),
    "dicts, in another order": (
        lambda: [{"n": n, "m": 1} for n in range(100)],
        lambda rows: rows[50].update(n=rows[50].pop("n")),
    ),
    "lists in a dict": (lambda: {str(n): [n] for n in range(100)}, lambda rows: rows["50"].clear()),
    "a list that gets a list": (rows_of_numbers, lambda rows: rows[50].append([])),
}


@pytest.mark.parametrize("case", MANY)
def test_one_change_among_many_plain_containers_is_found(case: str) -> None:
    make, change = MANY[case]
    value = make()
    traversal = Traversal({})
    before = traversal.add("x", value)
    assert traversal.changed() == []
    assert traversal.count_of("x") == 101

    change(value)

    [(root, number)] = traversal.changed()
    assert traversal.object_at(root, number) in (list(value.values()) if isinstance(value, dict) else value)
    assert digest_of(value) != before


def test_many_plain_containers_count_alike_whether_met_before_or_not() -> None:
    value = rows_of_numbers()
    alone = Traversal({}).add("b", value)
    traversal = Traversal({})
    traversal.add("a", [value[3], value[70]])

    assert traversal.add("b", value) == alone
    assert traversal.shared == [(("a", 1), ("b", 4)), (("a", 2), ("b", 71))]
    assert traversal.number_of(value[4]) == ("b", 5)


def test_sharing_among_many_plain_containers_counts() -> None:
    value = rows_of_numbers()
    twice = rows_of_numbers()
    value[7] = [6, "6"]
    twice[7] = twice[6]

    assert digest_of(value) != digest_of(twice)


def test_many_tuples_are_told_from_lists_and_from_each_other() -> None:
    tuples = [(n, str(n)) for n in range(100)]

    assert len({digest_of(tuples), digest_of(rows_of_numbers()), digest_of([*tuples[:-1], (99, "9")])}) == 3
    assert digest_of([*tuples, 1]) != digest_of([*tuples, True])
    assert digest_of([*tuples, (math.nan,)]) == digest_of([*tuples, (nan_of(0xFFF8000000000123),)])
