"""Digests tell apart what differs, name what has none, and are the same in every process."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import functools
import itertools
import math
import operator
import pathlib
import pickle
import random
import re
import subprocess
import sys
import threading
import types
import uuid
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from ipyparcache.digest.instances import _without_needless_bitmap
from ipyparcache.digest.objects import digest_of
from ipyparcache.errors import Undigestible
from tests.digest.values import (
    DAY,
    Adder,
    Colour,
    Fixed,
    Hiding,
    Level,
    Other,
    Pair,
    Point,
    Rows,
    Slotted,
    Table,
    Tagged,
    Text,
    add,
    adder,
    changed,
    cyclic,
    fitted,
    frame,
    nan_of,
    own_rows,
    rows_with,
    shared_rows,
    subtract,
    table,
    tagged,
    text_with,
)

STEP = np.arange(6)

# Groups of values that are easily taken for one another: within a group, all digests differ.
COLLISIONS: dict[str, list[Any]] = {
    "numbers that are equal": [
        1,
        True,
        1.0,
        1 + 0j,
        np.int64(1),
        np.int32(1),
        np.float64(1),
        np.float32(1),
        np.bool_(True),
        np.uint64(1),
        decimal.Decimal(1),
        fractions.Fraction(1),
        Level.LOW,
        "1",
        b"1",
        [1],
        (1,),
        {1},
        np.array(1),
        np.array([1]),
        pd.Timedelta(1),
        None,
    ],
    "zeros": [
        0.0,
        -0.0,
        0,
        False,
        None,
        "",
        b"",
        [],
        (),
        {},
        set(),
        frozenset(),
        complex(0, 0),
        complex(0, -0.0),
    ],
    "nan is no number": [float("nan"), None, np.float64("nan"), math.inf, -math.inf, pd.NaT, pd.NA, "nan"],
    "big integers": [2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64, 2**70, -(2**70)],
    "text and bytes": [
        "abc",
        b"abc",
        bytearray(b"abc"),
        Text("abc"),
        text_with("x"),
        text_with("y"),
        ["a", "b", "c"],
        "ab\0c",
    ],
    "where one string ends": [["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], [["ab"], "c"], ("ab", "c")],
    "unicode": ["\u00e9", "e\u0301", "e", "\ud800", "\U0001f600"],
    "containers": [
        [1, 2],
        (1, 2),
        {1, 2},
        frozenset({1, 2}),
        collections.deque([1, 2]),
        {1: 2},
        range(1, 3),
        Pair(1, 2),
        Other(1, 2),
        array.array("i", [1, 2]),
        array.array("l", [1, 2]),
        Rows([1, 2]),
        rows_with("x", 1, 2),
        slice(1, 2),
    ],
    "subclasses of what is written in C": [
        tagged("x"),
        tagged("y"),
        tagged("x", 2),
        Tagged(2024, 1, 1),
        datetime.datetime(2024, 1, 1),
    ],
    "subclasses of frames": [
        table("x", 1),
        table("y", 1),
        table("x", 2),
        Table({"a": [1]}),
        pd.DataFrame({"a": [1]}),
    ],
    "dicts": [
        {"a": 1, "b": 2},
        {"b": 2, "a": 1},
        {"a": 2, "b": 1},
        collections.OrderedDict(a=1, b=2),
        collections.defaultdict(int, a=1, b=2),
        collections.defaultdict(list, a=1, b=2),
        collections.Counter(a=1, b=2),
        types.MappingProxyType({"a": 1, "b": 2}),
        types.SimpleNamespace(a=1, b=2),
        [("a", 1), ("b", 2)],
        {"a": 1, "b": 2, "c": None},
        {"a": True, "b": 2},
    ],
    "keys of several types": [{1: "x"}, {True: "x"}, {1.0: "x"}, {"1": "x"}, {(1,): "x"}, {np.int64(1): "x"}],
    "sets": [
        {1, "a"},
        {1, "b"},
        {True, "a"},
        {(1, 2), (3, 4)},
        {(1, 2, 3, 4)},
        frozenset({1, "a"}),
        {frozenset({1}), frozenset({2})},
    ],
    "deques": [
        collections.deque([1, 2]),
        collections.deque([1, 2], 2),
        collections.deque([1, 2], 3),
        collections.deque([2, 1]),
    ],
    "nesting": [[1, [2, 3]], [[1, 2], 3], [1, 2, 3], [[1], [2], [3]], [1, (2, 3)], [1, [2, [3]]]],
    "sharing": [shared_rows(), own_rows(), [[0, 0]], [[0], 0]],
    "sharing in tuples": [shared_rows(tuple), own_rows(tuple)],
    "sharing deep below": [{"a": shared_rows(), "b": 1}, {"a": own_rows(), "b": 1}],
    "cycles": [cyclic(1), cyclic(2), cyclic(3), [[]], []],
    "times": [
        DAY,
        DAY.replace(tzinfo=datetime.UTC),
        DAY.replace(hour=13, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
        DAY.replace(fold=1),
        DAY.date(),
        DAY.time(),
        DAY.isoformat(),
        pd.Timestamp(DAY),
        pd.Timestamp(DAY, tz="UTC"),
        pd.Timestamp(DAY).as_unit("s"),
        np.datetime64(DAY),
        np.datetime64(DAY, "s"),
        np.datetime64(DAY, "ns"),
        datetime.timedelta(1),
        np.timedelta64(1, "D"),
        np.timedelta64(24, "h"),
    ],
    "decimals": [
        decimal.Decimal("1.0"),
        decimal.Decimal("1.00"),
        decimal.Decimal("1"),
        decimal.Decimal("-0"),
        decimal.Decimal("0"),
        decimal.Decimal("NaN"),
    ],
    "paths": [pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("a/b"), pathlib.Path("a/b"), "a/b"],
    "patterns": [re.compile("a"), re.compile("a", re.I), re.compile(b"a"), "a"],
    "enums": [Colour.RED, Colour.BLUE, Level.LOW, Colour, Level, 1, "RED"],
    "data classes": [
        Point(1, 2),
        Point(2, 1),
        Point(1),
        Fixed(1),
        {"x": 1, "y": 2},
        (1, 2),
        Point(1, np.float64(2)),
        Point(True, 2),
    ],
    "slots": [Slotted(1, 2), Slotted(1, 3), Slotted(2, 1)],
    "what a pickle hides": [Hiding({"n": 1}), Hiding({"n": 2}), Hiding(None)],
    "subclasses of builtins": [Rows([1]), [1], rows_with("a", 1), rows_with("b", 1), Rows([2])],
    "functions": [
        add,
        subtract,
        adder(1),
        adder(2),
        adder(True),
        adder(1.0),
        lambda x: x + 1,
        lambda x: x + 1.0,
        lambda x: x + True,
        lambda x, n=1: x + n,
        lambda x, n=2: x + n,
        lambda x, *, n=1: x + n,
    ],
    "constants in code": [
        lambda: 1,
        lambda: True,
        lambda: 1.0,
        lambda: -0.0,
        lambda: 0.0,
        lambda: (1, 2),
        lambda: (1, True),
        lambda: "1",
        lambda: b"1",
        lambda v: v in {1, 2},
        lambda v: v in {1, 3},
        lambda v: v in (1, 2),
    ],
    "callables": [
        functools.partial(add, n=1),
        functools.partial(add, n=2),
        functools.partial(subtract, n=1),
        functools.partial(add, 1),
        Adder(1),
        Adder(2),
        Adder(1).__call__,
        Adder(2).__call__,
        operator.itemgetter(1),
        operator.itemgetter(2),
        operator.attrgetter("a"),
        functools.lru_cache(add),
        functools.lru_cache(None)(add),
    ],
    "bound methods": [[].append, [1].append, {}.get, "a".join, "b".join, str.join],
    "library functions": [
        len,
        sum,
        np.sum,
        np.mean,
        np.add,
        math.sin,
        np.sin,
        str.upper,
        list.append,
        pd.read_csv,
        print,
    ],
    "types": [
        int,
        bool,
        float,
        list,
        dict,
        list[int],
        list[str],
        dict[str, int],
        int | None,
        int | str,
        Point,
        Fixed,
        type,
    ],
    "exceptions": [
        ValueError("a"),
        ValueError("b"),
        TypeError("a"),
        ValueError("a", 1),
        ValueError(),
        OSError(2, "x"),
        OSError(2, "x", "file"),
        KeyError("a"),
    ],
    "iterators": [
        iter([1, 2, 3]),
        changed(iter([1, 2, 3]), next),
        iter((1, 2, 3)),
        itertools.count(1),
        itertools.count(2),
        enumerate([1]),
        zip([1], [2], strict=False),
        reversed([1, 2]),
    ],
    "constants of the language": [None, Ellipsis, NotImplemented, True, "None"],
    "identifiers": [uuid.UUID(int=1), uuid.UUID(int=2), 1],
    "random generators": [
        random.Random(1),
        random.Random(2),
        changed(random.Random(1), lambda r: r.random()),
        np.random.default_rng(1),
        np.random.default_rng(2),
        changed(np.random.default_rng(1), lambda r: r.random()),
        np.random.RandomState(1),
        np.random.RandomState(2),
        np.random.Generator(np.random.MT19937(1)),
        changed(np.random.default_rng(1), lambda r: r.spawn(1)),
    ],
    "arrays: dtype": [
        np.ones(3),
        np.ones(3, "f4"),
        np.ones(3, "i8"),
        np.ones(3, "i4"),
        np.ones(3, "u8"),
        np.ones(3, ">f8"),
        np.ones(3, ">i8"),
        np.ones(3, bool),
        np.ones(3, complex),
        np.ones(3, object),
        np.ones(3, "f2"),
        np.ones(3, np.longdouble),
        np.ones(3, "U1"),
        np.ones(3, "S1"),
        np.ones(3, "M8[D]"),
        np.ones(3, "M8[s]"),
        np.ones(3, "m8[s]"),
        [1.0, 1.0, 1.0],
        array.array("d", [1.0, 1.0, 1.0]),
    ],
    "arrays: the same bytes": [
        np.ones(3),
        np.ones(3).view("i8"),
        np.ones(3).view("u8"),
        np.ones(3).view("M8[s]"),
        np.ones(3).view("V8"),
        np.ones(3).tobytes(),
    ],
    "arrays: shape": [
        STEP,
        STEP.reshape(2, 3),
        STEP.reshape(3, 2),
        STEP.reshape(6, 1),
        STEP.reshape(1, 6),
        STEP.reshape(1, 1, 6),
    ],
    "arrays: transposed": [
        np.arange(4).reshape(2, 2),
        np.arange(4).reshape(2, 2).T,
        np.arange(4).reshape(2, 2).T.copy(),
        np.asfortranarray(np.arange(4).reshape(2, 2)),
    ],
    "arrays: layout": [
        np.zeros(4),
        np.zeros(8)[::2],
        np.broadcast_to(0.0, 4),
        changed(np.zeros(4), lambda a: a.setflags(write=False)),
    ],
    "arrays: empty": [np.empty(0), np.empty((0, 3)), np.empty((3, 0)), np.empty(0, "i4")],
    "arrays: zeros": [
        np.array([0.0]),
        np.array([-0.0]),
        np.array([0]),
        np.array([0j]),
        np.array([complex(0, -0.0)]),
        np.array([complex(-0.0, 0)]),
    ],
    "arrays: objects": [
        np.array([1, "a"], object),
        np.array([1, "b"], object),
        np.array([True, "a"], object),
        np.array([[1], "a"], object),
        np.array([1, None], object),
    ],
    "arrays: structured": [
        np.zeros(2, [("a", "i4"), ("b", "f8")]),
        np.zeros(2, [("b", "i4"), ("a", "f8")]),
        np.zeros(2, [("a", "f8"), ("b", "i4")]),
        np.zeros(2, np.dtype([("a", "i4"), ("b", "f8")], align=True)),
        np.zeros(2, [("a", "i4"), ("b", "f8", (1,))]),
        np.rec.array(np.zeros(2, [("a", "i4"), ("b", "f8")])),
        np.zeros(2, [(("title", "a"), "i4"), ("b", "f8")]),
    ],
    "arrays: masked": [
        np.ma.array([1, 2]),
        np.ma.array([1, 2], mask=[0, 1]),
        np.ma.array([1, 2], mask=[1, 0]),
        np.ma.array([1, 2], mask=[0, 0]),
        np.ma.array([1, 2], mask=[0, 1], fill_value=7),
        np.ma.array([1, 2], mask=[0, 1], hard_mask=True),
        np.array([1, 2]),
    ],
    "arrays: subclasses": [
        np.eye(2),
        np.eye(2).view(np.matrix),
        np.rec.array([(1.0, 0.0)], dtype=[("a", "f8"), ("b", "f8")]),
    ],
    "dtypes": [np.dtype("f8"), np.dtype("f4"), np.dtype(">f8"), np.dtype([("a", "f8")]), np.float64, "f8"],
    "frames": [
        frame(),
        frame(index=[1, 2, 3]),
        frame(index=pd.Index([0, 1, 2])),
        frame(index=pd.Index([0, 1, 2], name="day")),
        frame(index=pd.Index([0.0, 1.0, 2.0])),
        frame(index=list("xyz")),
        frame(index=pd.MultiIndex.from_tuples([(0, 0), (0, 1), (1, 0)])),
        frame()[["b", "a"]],
        frame().rename(columns={"b": "bb"}),
        frame().rename_axis(columns="metric"),
        frame().astype({"a": "int32"}),
        frame().astype({"a": "float64"}),
        frame().astype({"a": "Int64"}),
        frame().astype({"a": "category"}),
        frame().astype({"a": str}),
        frame().astype({"a": object}),
        changed(frame(), lambda f: f.attrs.update(unit="m")),
        changed(frame(), lambda f: f.__setitem__("c", 1)),
        frame().set_flags(allows_duplicate_labels=False),
        frame().iloc[::-1],
        frame().iloc[:2],
        frame().to_dict("list"),
        frame().to_numpy(),
        frame()["a"],
    ],
    "series": [
        pd.Series([1, 2]),
        pd.Series([1, 2], name="a"),
        pd.Series([1, 2], name=0),
        pd.Series([1, 2], index=[1, 2]),
        pd.Series([1.0, 2.0]),
        pd.Series([1, 2], dtype="Int64"),
        pd.Series([1, 2], dtype=object),
        pd.Series(["1", "2"]),
        pd.Series(["1", "2"], dtype=object),
        pd.Series(["1", "2"], dtype="string"),
        pd.Series([1, 2], dtype="category"),
        pd.Series([1, 2], dtype="Int32"),
        pd.Series([1, 2]).to_frame(),
        pd.Index([1, 2]),
        pd.array([1, 2]),
    ],
    "missing values": [
        pd.Series([1.0, None]),
        pd.Series([1.0, None], dtype="Float64"),
        pd.Series([1, None], dtype=object),
        pd.Series([1, np.nan], dtype=object),
        pd.Series([1, pd.NA], dtype=object),
        pd.Series(["a", None], dtype="string"),
        pd.Series(["a", None], dtype=object),
        pd.Series(["a", None]),
    ],
    "categories": [
        pd.Categorical(["a", "b"]),
        pd.Categorical(["a", "b"], categories=["b", "a"]),
        pd.Categorical(["a", "b"], categories=["a", "b", "c"]),
        pd.Categorical(["a", "b"], ordered=True),
        pd.Categorical(["b", "a"]),
    ],
    "time zones": [
        pd.date_range("2024", periods=3),
        pd.date_range("2024", periods=3, tz="UTC"),
        pd.date_range("2024", periods=3, tz="Europe/Berlin"),
        pd.date_range("2024", periods=3, freq="h"),
        pd.DatetimeIndex(["2024-01-01", "2024-01-02", "2024-01-03"]),
        pd.date_range("2024", periods=3, unit="s"),
        pd.period_range("2024", periods=3, freq="D"),
        pd.timedelta_range("1D", periods=3),
    ],
    "indexes": [
        pd.RangeIndex(3),
        pd.Index([0, 1, 2]),
        pd.Index([0, 1, 2], dtype="int32"),
        pd.Index([0, 1, 2], name="x"),
        pd.Index(["0", "1", "2"]),
        pd.interval_range(0, 3),
        pd.interval_range(0, 3, closed="left"),
        pd.MultiIndex.from_arrays([[0, 1, 2], [0, 1, 2]]),
        pd.MultiIndex.from_arrays([[0, 1, 2], [0, 1, 2]], names=["a", "b"]),
    ],
    "sparse": [
        scipy.sparse.csr_matrix(np.eye(3)),
        scipy.sparse.csc_matrix(np.eye(3)),
        scipy.sparse.csr_array(np.eye(3)),
        scipy.sparse.csr_matrix(np.eye(3, dtype="f4")),
        scipy.sparse.csr_matrix(np.diag([1, 1, 0])),
        scipy.sparse.csr_matrix((np.ones(3), np.arange(3), np.arange(4)), shape=(3, 4)),
        pd.arrays.SparseArray([0, 0, 1]),
        pd.arrays.SparseArray([0, 0, 1], fill_value=1),
        np.eye(3),
    ],
    "estimators": [fitted(), fitted(C=2.0), fitted(fit_intercept=False), LogisticRegression(max_iter=1000)],
    "weak references": [weakref.ref(add), weakref.ref(subtract), add],
    "views of dicts": [{"a": 1}.keys(), {"a": 1}.values(), {"a": 1}.items(), {"b": 1}.keys()],
    "modules": [math, operator, np, "math"],
}


@pytest.mark.parametrize("group", COLLISIONS)
def test_values_that_are_easily_confused_have_different_digests(group: str) -> None:
    digests: dict[bytes, Any] = {}
    for value in COLLISIONS[group]:
        digest = digest_of(value)
        assert digest not in digests, f"{value!r} has the digest of {digests[digest]!r}"
        digests[digest] = value


def fresh(*items: Any) -> tuple[Any, ...]:
    return items


def interned(text: str) -> str:
    return sys.intern(text)


EQUAL: dict[str, tuple[Any, Any]] = {
    "NaN of other bits": (nan_of(0x7FF8000000000000), nan_of(0xFFF8000000000123)),
    "NaN in a list": ([1.0, nan_of(0x7FF8000000000000)], [1.0, nan_of(0xFFF8000000000123)]),
    "NaN in a complex": (complex(nan_of(0xFFF8000000000001), 1), complex(math.nan, 1)),
    "NaN in an array": (np.array([1, math.nan]), np.array([1, nan_of(0xFFF8000000000123)])),
    "NaN in a large array": (np.full(9999, math.nan), np.full(9999, nan_of(0xFFF8000000000123))),
    "NaN in a frame": (pd.DataFrame({"a": [1, math.nan]}), pd.DataFrame({"a": [1, -math.nan]})),
    "interned and not": (interned("a long text"), "".join(["a long ", "text"])),
    "one tuple or two": ([(1, 2)] * 2, [(1, 2), fresh(1, 2)]),
    "nested tuples shared or not": ([((1, DAY),)] * 2, [((1, DAY),), fresh(fresh(1, DAY))]),
    "order of a set": ({1, 2, 100, 9}, {9, 100, 2, 1}),
    "order of a set of tuples": (
        {(i, str(i)) for i in range(50)},
        {(i, str(i)) for i in reversed(range(50))},
    ),
    "an array and its map": (np.arange(9.0), np.arange(9.0)),
    "a default fill value set or not": (
        np.ma.array([1, 2], mask=[0, 1]),
        np.ma.array([1, 2], mask=[0, 1], fill_value=np.ma.default_fill_value(np.dtype(int))),
    ),
    "what pandas cached": (
        frame(),
        changed(frame(), lambda f: (f["a"], f.index.is_unique, f.index.get_loc(1))),
    ),
    "fragmented or consolidated": (
        frame(),
        changed(pd.DataFrame({"a": [1, 2, 3]}), lambda f: f.__setitem__("b", [1.0, 2.0, 3.0])),
    ),
    "what lies under a mask": (
        pd.Series(pd.arrays.IntegerArray(np.array([1, 5]), np.array([False, True]))),
        pd.Series(pd.arrays.IntegerArray(np.array([1, 7]), np.array([False, True]))),
    ),
    "what pandas cached in a subclass": (
        table("x", 1),
        changed(table("x", 1), lambda t: (t["a"], t.index.is_unique)),
    ),
    "what scipy found out": (
        scipy.sparse.csr_matrix(np.eye(3)),
        changed(scipy.sparse.csr_matrix(np.eye(3)), lambda m: m.has_sorted_indices),
    ),
    "the same text of a function": (lambda x: x + 1, lambda x: x + 1),
    "closures of equal cells": (adder(1), adder(1)),
    "padding of long doubles": (np.ones(3, np.longdouble), np.array([1, 1, 1], np.longdouble)),
    "padding of records": (
        np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        np.frombuffer(
            b"\0\1\2\3\4\5\6\7" + bytes(8) + b"\0\7\7\7\7\7\7\7" + bytes(8),
            np.dtype([("a", "i1"), ("b", "f8")], align=True),
        ).copy(),
    ),
}


@pytest.mark.parametrize("case", EQUAL)
def test_what_no_code_can_tell_apart_has_one_digest(case: str) -> None:
    one, other = EQUAL[case]

    assert digest_of(one) == digest_of(other)


def test_a_memory_map_is_an_array(tmp_path: pathlib.Path) -> None:
    mapped = np.memmap(tmp_path / "a", dtype=float, mode="w+", shape=(3,))

    assert digest_of(mapped) == digest_of(np.zeros(3))
    mapped._mmap.close()  # type: ignore[attr-defined]


def test_a_chain_of_twenty_thousand_links_is_digested() -> None:
    chain: list[Any] = []
    for _ in range(20_000):
        chain = [chain]
    longer = [chain]

    assert digest_of(chain) != digest_of(longer)


def test_nested_tuples_that_double_are_digested_in_linear_time() -> None:
    immutable: Any = (1, DAY)
    mutable: Any = ([], 1)
    for _ in range(200):
        immutable = (immutable, immutable)
        mutable = (mutable, mutable)

    assert digest_of(immutable) != digest_of(mutable)


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ({"a": [1, 2, {"x": (i for i in [])}]}, "value['a'][2]['x']", "how far it has run"),
        ([0, (i for i in [])], "value[1]", "how far it has run"),
        (Point(threading.Lock(), 1), "value.x", "a lock has no content"),  # type: ignore[arg-type]
        ({1: {"k": sys._getframe()}}, "value[1]['k']", "running frame"),
        (adder(threading.Lock()), "value.n", "a lock"),  # type: ignore[arg-type]
        ({(1, threading.RLock())}, "value{…}[1]", "a lock"),
        (Slotted(1, [threading.Lock()]), "value.b[0]", "a lock"),
    ],
)
def test_what_has_no_digest_is_named_with_its_path(value: object, path: str, reason: str) -> None:
    with pytest.raises(Undigestible) as caught:
        digest_of(value)

    assert caught.value.path == path
    assert reason in str(caught.value)


# ---- the same in every process


CHILD = """
import pickle, sys
from ipyparcache.digest.objects import digest_of
while (line := sys.stdin.buffer.readline()):
    value = pickle.loads(bytes.fromhex(line.decode()))
    sys.stdout.write(digest_of(value).hex() + "\\n")
    sys.stdout.flush()
"""


class Elsewhere:
    """Another process, with another hash seed, that digests what it unpickles."""

    def __init__(self, seed: int) -> None:
        import os

        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )

    def digest(self, value: object) -> str:
        import pickle

        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(pickle.dumps(value, 5).hex().encode() + b"\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().decode().strip()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    child = Elsewhere(4711)
    yield child
    child.close()


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.datetimes(),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
    st.sampled_from(
        [
            np.int8(1),
            np.float32(2.5),
            np.datetime64("2024-01-01"),
            pd.Timestamp("2024"),
            pd.NaT,
            Ellipsis,
            int,
            len,
            pathlib.PurePosixPath("a"),
        ]
    ),
)
ARRAYS = st.tuples(
    st.sampled_from(["i1", "u2", "i8", ">i4", "f4", "f8", "c16", "U3", "M8[s]", "bool"]),
    st.lists(st.integers(0, 1), max_size=6),
).map(lambda drawn: np.array(drawn[1], dtype="i8").astype(drawn[0]))
HASHABLE = st.one_of(
    st.integers(),
    st.text(max_size=4),
    st.tuples(st.integers(), st.text(max_size=2)),
    st.frozensets(st.integers(), max_size=3),
)
VALUES = st.recursive(
    st.one_of(LEAVES, ARRAYS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.sets(HASHABLE, max_size=5),
        st.frozensets(HASHABLE, max_size=5),
        st.lists(inner, max_size=3).map(collections.deque),
        inner.map(lambda value: [value, value]),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(collections.OrderedDict),
    ),
    max_leaves=12,
)
QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@QUICK
@given(value=VALUES)
def test_a_value_has_the_same_digest_in_another_process_with_another_hash_seed(
    elsewhere: Elsewhere, value: object
) -> None:
    assert elsewhere.digest(value) == digest_of(value).hex()


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Containers and keys at which something can be replaced."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        container = waiting.pop()
        keys = range(len(container)) if isinstance(container, (list, collections.deque)) else list(container)
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], (list, dict, collections.deque)):
                waiting.append(container[key])
    return found


@QUICK
@given(value=st.lists(VALUES, min_size=1, max_size=4), data=st.data(), leaf=LEAVES)
def test_one_other_leaf_makes_another_digest(value: list[Any], data: st.DataObject, leaf: object) -> None:
    before = digest_of(value)
    container, key = data.draw(st.sampled_from(places_in(value)))
    old = container[key]
    if digest_of(old) == digest_of(leaf):
        return
    container[key] = leaf

    assert digest_of(value) != before

    container[key] = old
    assert digest_of(value) == before


@pytest.mark.parametrize("seed", [1, 2])
def test_every_value_of_the_table_has_the_same_digest_under_another_hash_seed(seed: int) -> None:
    import os

    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "from tests.digest.test_objects import COLLISIONS\n"
        "from ipyparcache.digest.objects import digest_of\n"
        "for group in COLLISIONS.values():\n"
        "    for value in group: print(digest_of(value).hex())\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, str(pathlib.Path(__file__).parents[2])],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(own)},
        ).stdout
        for own in (seed, seed + 100)
    ]

    assert outputs[0] == outputs[1]


def test_tables_of_arrow_are_the_same_after_pickling_and_tell_nulls_apart() -> None:
    table = pyarrow.table({"a": [1, 2, None], "b": ["x", "y", None], "c": [[1], [], None]})
    kept = table.filter(pyarrow.array([True, True, False]))  # which leaves a bitmap of no nulls

    assert digest_of(pickle.loads(pickle.dumps(kept))) == digest_of(kept)
    assert digest_of(pickle.loads(pickle.dumps(table))) == digest_of(table)
    assert digest_of(pyarrow.array([0, None])) != digest_of(pyarrow.array([0, 0]))
    assert digest_of(pyarrow.array([1, None, 3])) != digest_of(pyarrow.array([1, 3, None]))


def test_the_bitmap_of_an_array_counts_only_where_it_has_nulls() -> None:
    def parts(nulls: int, bitmap: object) -> tuple[object, ...]:
        child = ("int64", 2, 0, 0, [bitmap, b"values"], [], None)
        return "list", 2, nulls, 0, [bitmap, b"offsets"], [child], None

    bare = ("int64", 2, 0, 0, [None, b"values"], [], None)
    assert _without_needless_bitmap(parts(0, b"1")) == ("list", 2, 0, 0, [None, b"offsets"], [bare], None)
    assert _without_needless_bitmap(parts(1, b"1")) == ("list", 2, 1, 0, [b"1", b"offsets"], [bare], None)


def test_a_set_whose_elements_lead_back_to_it_has_no_digest() -> None:
    class Owner:
        def __init__(self, owners: set[Any]) -> None:
            self.owners = owners

    owners: set[Any] = set()
    owners.update((Owner(owners), 1) for _ in range(30))

    with pytest.raises(Undigestible, match="a set that it is in"):
        digest_of(owners, {})
