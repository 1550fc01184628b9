import decimal
import itertools
import math
import pickle
import random
import struct
import subprocess
import sys
import threading
from collections import OrderedDict, defaultdict, deque
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest

from ipyparcache import Memory, hash
from ipyparcache.digest import joblibhash


def helper(x, by=2):
    return x * by


class Point:
    def __init__(self, x):
        self.x = x

    def norm(self):
        return abs(self.x)


DIFFERENT = [
    1, 1.0, True, "1", b"1", (1,), [1], {1}, frozenset({1}), {1: 1}, None, np.int64(1), np.float64(1),
    np.array(1),
    np.array([1]), 0.0, -0.0, float("nan"), "", b"", [], (), {}, set(), frozenset(), [[]], [()], 2**70, 1j,
    np.array([1], ">i8"), np.array([1.0]), np.array([[1]]), np.array([1], "datetime64[D]"),
    np.array([1], object),
    np.array(["1"]), bytearray(b"1"), deque([1]), decimal.Decimal(1), OrderedDict([(1, 1), (2, 2)]),
    OrderedDict([(2, 2), (1, 1)]), {1: 1, 2: 2}, defaultdict(int, {1: 1}), Point(1), Point(2), helper, Point,
    Point(1).norm, Point(2).norm, len, [1].append, [2].append, Path("a"), Path("b"), np.dtype("i4"),
    np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0]), np.array([1, 2]),
    pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]}), pd.DataFrame({"a": [1.0]}), pd.Series([1]),
    np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(6).reshape(3, 2).T,
    np.arange(12).reshape(2, 6)[:, ::2], ["a", "b"], ["ab", ""], ("a", "b"), [["a"], "b"],
]  # fmt: skip


def test_different_values_have_different_names():
    names = [hash(value) for value in DIFFERENT]

    clashes = [
        (one, other)
        for (one, name), (other, same) in itertools.combinations(zip(DIFFERENT, names, strict=True), 2)
        if name == same
    ]
    assert clashes == []


@pytest.mark.parametrize("value", DIFFERENT, ids=lambda value: repr(value)[:30])
def test_a_copy_has_the_same_name(value):
    if isinstance(value, np.ndarray) and not (value.flags.forc and value.dtype.isnative):
        pytest.skip("numpy's own pickle changes it")
    assert hash(value) == hash(pickle.loads(pickle.dumps(value)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1: 1, "x": 2, None: 3}, {None: 3, "x": 2, 1: 1}),
        ({decimal.Decimal("NaN"), 1, "a"}, {"a", decimal.Decimal("NaN"), 1}),
        ([[1, 2]] * 2, [[1, 2], [1, 2]]),
        (["abc", "abc"], ["abc", "".join(["ab", "c"])]),
        (float("nan"), -float("nan")),
        ({"a": np.ones(3)}, {"a": np.ones(3).copy()}),
    ],
    ids=repr,
)
def test_equal_content_has_the_same_name(one, other):
    assert hash(one) == hash(other)


def test_sets_are_named_the_same_in_whatever_order_they_were_filled():
    rnd = random.Random(1)
    items = [*map(str, range(50)), *range(50), *map(decimal.Decimal, range(60, 90)), (1, "a")]
    names = set()
    for _ in range(5):
        rnd.shuffle(items)
        names |= {hash((set(items), frozenset(items)))}

    assert len(names) == 1


def test_a_cycle_has_a_name():
    ring = [1]
    ring.append(ring)
    other = [1]
    other.append(other)
    longer = [1, [1]]
    longer[1].append(longer)

    assert hash(ring) == hash(other) != hash(longer)


def test_names_do_not_depend_on_the_process():
    code = (
        "import sys, numpy as np, decimal\n"
        "from ipyparcache import hash\n"
        "v = [{'a', 'b', 'c'}, frozenset('xyz'), {'k': np.arange(5), 2: 'x'}, decimal.Decimal(1), len]\n"
        "print(hash(v))\n"
    )
    names = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }

    assert len(names) == 1


def test_a_memory_map_is_an_array_only_if_told_so(tmp_path):
    array = np.arange(100.0)
    np.save(tmp_path / "x.npy", array)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")

    assert hash(mapped) != hash(array)
    assert hash({"x": mapped}, coerce_mmap=True) == hash({"x": array}, coerce_mmap=True)
    del mapped


def test_a_function_is_named_by_what_it_does():
    def make(text):
        namespace = {"__name__": "__main__"}
        exec(text, namespace)
        return namespace["f"]

    assert hash(make("def f(x): return x + 1")) != hash(make("def f(x): return x + 2"))
    assert hash(make("def f(x): return x + 1")) == hash(make("def f(x):\n    # a comment\n    return x + 1"))


def test_what_cannot_be_found_by_its_name_is_told():
    with pytest.raises(pickle.PicklingError, match="PicklingError while hashing"):
        hash([lambda: 1])


@pytest.mark.parametrize("value", [threading.Lock(), (i for i in "a"), sys], ids=repr)
def test_what_has_no_stable_content_is_told(value):
    for function in (hash, joblib.hash):
        with pytest.raises(TypeError):
            function([value])


def test_names_are_as_long_as_those_of_joblib():
    for name in ("md5", "sha1"):
        assert len(hash("x", hash_name=name)) == len(joblib.hash("x", hash_name=name))
    with pytest.raises(ValueError, match="Valid options for 'hash_name' are"):
        hash(1, hash_name="sha256")


def test_rows_are_told_apart():
    rows = [(n, str(n), n / 3) for n in range(100)]

    assert hash(rows) == hash(pickle.loads(pickle.dumps(rows)))
    assert hash(rows) != hash([*rows[:-1], (99, "99", 33)])
    assert hash(rows) != hash(list(map(list, rows)))
    assert hash([(1.0, float("nan"))]) == hash([(1.0, -float("nan"))])


def test_many_strings_are_told_apart():
    strings = [str(n) for n in range(5000)]

    assert hash(strings) == hash(list(strings))
    assert hash(strings) != hash([*strings[:-2], strings[-2] + "4", "999"])
    assert hash(tuple(strings)) != hash(strings)


@pytest.mark.parametrize("others", [[math.inf, -math.inf], [10**400], ["a", None], [1j], []], ids=str)
def test_a_nan_is_found_among_whatever_else(others):
    quiet, loud = (
        struct.unpack("<d", struct.pack("<Q", bits))[0] for bits in (0x7FF8 << 48, 0xFFF8 << 48 | 5)
    )

    assert hash([*others, quiet]) == hash([*others, loud]) != hash([*others, 1.0])


def test_a_cached_function_is_named_by_its_function_and_not_by_when_it_was_wrapped(tmp_path):
    one, later = (Memory(tmp_path, verbose=0) for _ in range(2))
    later.timestamp = one.timestamp + 1
    cached, again = one.cache(helper), later.cache(helper)
    again.timestamp = cached.timestamp + 1

    assert hash(one) == hash(later) != hash(Memory(tmp_path / "elsewhere", verbose=0))
    assert hash(cached) == hash(again)
    assert len({hash(cached), hash(one.cache(helper, ignore=["by"])), hash(one.cache(Point.norm))}) == 3
    assert hash(cached) != hash(helper)


@pytest.mark.parametrize(
    "mappings",
    [
        [{"b": 1, "a": float("nan")}, {"x": "y"}],
        [{}, {1: "one", 2: None}, {b"k": 1j}],
        [{str(n): n for n in range(200)}, {"long": "x" * 100_000}],
        [{1: "mixed", "keys": 2}, {(1, 2): 3}, {1.5: -0.0}],
    ],
)
def test_many_small_dicts_hash_as_each_of_them_would(mappings, monkeypatch):
    together = joblibhash.hash({"values": mappings})
    monkeypatch.setattr(joblibhash, "_are_plain_mappings", lambda items: False)

    assert joblibhash.hash({"values": mappings}) == together


@pytest.mark.parametrize("longest", [1, 255, 256, 1000])
def test_texts_are_told_apart_by_where_one_ends(longest):
    many = ["a" * longest] + ["b", "cd"] * 600
    other = ["a" * longest] + ["bc", "d"] * 600

    assert hash(many) == hash(list(many))
    assert hash(many) != hash(other)
