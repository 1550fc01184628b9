"""What a run changed of an object is found, and put into an equal one in place."""

from __future__ import annotations

import collections
import io
import itertools
import random
import threading
import types
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from ipyparcache.digest.objects import Traversal, digest_of
from ipyparcache.digest.states import is_atomic, put_state, state_of
from ipyparcache.errors import Unrestorable
from tests.digest.values import DAY, Point, Rows, Slotted, adder, frame, table, tagged

CHANGES: dict[str, tuple[Any, Any]] = {
    "list": ([1, 2], lambda v: v.append(3)),
    "list item of another type": ([1, 2], lambda v: v.__setitem__(0, True)),
    "dict": ({"a": 1}, lambda v: v.update(a=2)),
    "dict order": ({"a": 1, "b": 2}, lambda v: v.update(a=v.pop("a"))),
    "set": ({1, 2}, lambda v: v.discard(1)),
    "bytearray": (bytearray(b"ab"), lambda v: v.extend(b"c")),
    "deque": (collections.deque([1]), lambda v: v.append(2)),
    "defaultdict": (collections.defaultdict(list), lambda v: v["missing"]),
    "factory": (collections.defaultdict(list), lambda v: setattr(v, "default_factory", int)),
    "OrderedDict": (collections.OrderedDict(a=1, b=2), lambda v: v.move_to_end("a")),
    "Counter": (collections.Counter("ab"), lambda v: v.update("a")),
    "array": (np.zeros(3), lambda v: v.__setitem__(1, 5)),
    "large array": (np.zeros(30_000), lambda v: v.__setitem__(20_000, 5)),
    "array shape": (np.zeros(4), lambda v: v.resize((2, 3), refcheck=False)),
    "array flag": (np.zeros(4), lambda v: v.setflags(write=False)),
    "object array": (np.array([None, 1], object), lambda v: v.__setitem__(0, "x")),
    "masked array": (np.ma.array([1, 2], mask=[0, 1]), lambda v: v.__setitem__(0, np.ma.masked)),
    "instance": (Point(1, 2), lambda v: setattr(v, "x", 5)),
    "instance grows": (Point(1, 2), lambda v: setattr(v, "z", 5)),
    "slots": (Slotted(1, 2), lambda v: setattr(v, "b", 5)),
    "slots emptied": (Slotted(1, 2), lambda v: delattr(v, "b")),
    "list subclass": (Rows([1]), lambda v: v.append(2)),
    "frame value": (frame(), lambda v: v.loc.__setitem__((0, "a"), 50)),
    "frame column": (frame(), lambda v: v.__setitem__("c", 1)),
    "frame rows": (frame(), lambda v: v.loc.__setitem__(7, [7, 7.0])),
    "frame index": (frame(), lambda v: setattr(v, "index", [5, 6, 7])),
    "frame attrs": (frame(), lambda v: v.attrs.update(unit="m")),
    "frame flag": (frame(), lambda v: setattr(v.flags, "allows_duplicate_labels", False)),
    "series": (pd.Series([1, 2]), lambda v: v.__setitem__(0, 5)),
    "series flag": (pd.Series([1, 2]), lambda v: setattr(v.flags, "allows_duplicate_labels", False)),
    "series name": (pd.Series([1, 2]), lambda v: setattr(v, "name", "x")),
    "index name": (pd.Index([1, 2]), lambda v: setattr(v, "name", "x")),
    "Generator": (np.random.default_rng(1), lambda v: v.random()),
    "RandomState": (np.random.RandomState(1), lambda v: v.rand()),
    "Random": (random.Random(1), lambda v: v.random()),
    "estimator": (LogisticRegression(), lambda v: setattr(v, "C", 2.0)),
    "function attribute": (adder(1), lambda v: setattr(v, "note", 1)),
    "function default": (lambda x, n=1: x, lambda v: setattr(v, "__defaults__", (2,))),
    "exception": (ValueError("a"), lambda v: v.add_note("b")),
    "subclass of a C type": (tagged("x"), lambda v: setattr(v, "note", "y")),
    "subclass of a frame": (table("x", 1), lambda v: v.__setitem__("b", 2)),
    "attribute of a subclass of a frame": (table("x", 1), lambda v: v.__dict__.update(note="y")),
    "text in memory": (io.StringIO("a"), lambda v: v.write("bc")),
    "place in bytes in memory": (io.BytesIO(b"abc"), lambda v: v.seek(2)),
    "bytes in memory closed": (io.BytesIO(b"abc"), lambda v: v.close()),
    "simple namespace": (types.SimpleNamespace(a=1), lambda v: setattr(v, "a", 2)),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_in_place_is_found_and_can_be_put_into_an_equal_object(case: str) -> None:
    import copy

    value, change = CHANGES[case]
    original = copy.deepcopy(value) if not isinstance(value, types.FunctionType) else value
    target = copy.deepcopy(original)
    traversal = Traversal({})
    traversal.add("x", original)
    assert traversal.changed() == []

    change(original)

    assert ("x", 0) in traversal.changed()
    if original is not target:
        put_state(target, state_of(original))
        assert digest_of(target) == digest_of(original)


def test_what_cannot_be_put_back_says_so() -> None:
    with pytest.raises(Unrestorable):
        put_state(enumerate([1]), None)


@pytest.mark.parametrize("numbers", [(5,), (0, 3), (7, -2)])
def test_a_count_is_set_by_counting_on(numbers: tuple[int, ...]) -> None:
    ahead, behind = itertools.count(*numbers), itertools.count(*numbers)
    assert digest_of(ahead) == digest_of(behind)
    next(ahead)
    next(ahead)
    assert digest_of(ahead) != digest_of(behind)

    put_state(behind, state_of(ahead))

    assert next(behind) == next(ahead)
    with pytest.raises(Unrestorable):
        put_state(behind, state_of(itertools.count(*numbers)))  # back
    assert digest_of(itertools.count(0.5)) != digest_of(itertools.count(0.25))


def test_zip_moves_what_it_draws_from() -> None:
    first, second = iter([1, 2, 3]), iter("abc")
    pairs = zip(first, second, strict=True)
    traversal = Traversal({})
    before = traversal.add("pairs", pairs)

    next(pairs)

    places = traversal.changed()
    assert [traversal.object_at(*place) for place in places] == [first, second]
    assert digest_of(pairs) != before
    assert digest_of(zip(iter([1]), iter("a"), strict=True)) != digest_of(
        zip(iter([1]), iter("a"), strict=False)
    )


@pytest.mark.parametrize("taken", [1, 3, 4])
@pytest.mark.parametrize(
    "over",
    [[1, 2, 3], (1, 2, 3), "abc", "äöü", b"abc", range(1, 4), range(9, 0, -3), range(1 << 70, (1 << 70) + 3)],
    ids=repr,
)
def test_an_iterator_can_be_put_where_another_is(over: Any, taken: int) -> None:
    one, other = iter(over), iter(over)
    traversal = Traversal({})
    traversal.add("it", one)
    assert digest_of(one) == digest_of(other)
    assert traversal.changed() == []

    for _ in range(taken):
        next(one, None)
    assert ("it", 0) in traversal.changed()
    put_state(other, state_of(one))

    assert digest_of(other) == digest_of(one)
    assert list(other) == list(over)[taken:]


def test_an_iterator_that_came_to_its_end_cannot_be_put_back() -> None:
    one, other = iter([1, 2]), iter([1, 2])
    next(one)
    list(other)

    with pytest.raises(Unrestorable):
        put_state(other, state_of(one))


@pytest.mark.parametrize(
    "value", [1, "a", None, DAY, (1, "a"), np.float64(1), pd.Timestamp("2024"), range(3), frozenset({1})]
)
def test_immutable_leaves_are_atomic(value: object) -> None:
    assert is_atomic(value)


@pytest.mark.parametrize("value", [[], {}, ([],), np.zeros(1), Point(1), object(), threading.Lock()])
def test_what_can_change_is_not_atomic(value: object) -> None:
    assert not is_atomic(value)
