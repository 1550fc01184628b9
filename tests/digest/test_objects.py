from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import gc
import io
import itertools
import math
import operator
import pathlib
import random
import re
import struct
import subprocess
import sys
import threading
import types
import uuid
import warnings
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from ipyparcache.digest.objects import Traversal, digest_of
from ipyparcache.digest.states import is_atomic, put_state, state_of
from ipyparcache.digest.summaries import summary_of
from ipyparcache.errors import Undigestible, Unrestorable

DAY = datetime.datetime(2024, 1, 1, 12)


class Text(str):
    pass


class Pair(NamedTuple):
    one: int
    two: int


class Other(NamedTuple):
    one: int
    two: int


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


@dataclasses.dataclass(frozen=True)
class Fixed:
    x: float


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: object, b: object):
        self.a = a
        self.b = b


class Hiding:
    """Its pickle leaves a field out."""

    def __init__(self, cache: object):
        self.rows = [1]
        self.cache = cache

    def __getstate__(self) -> dict[str, object]:
        return {"rows": self.rows}


class Rows(list[int]):
    pass


class Tagged(datetime.datetime):
    """Its pickle leaves out what is in `__dict__`."""


class Table(pd.DataFrame):
    @property
    def _constructor(self) -> Any:
        return Table


def tagged(note: str, day: int = 1) -> Tagged:
    moment = Tagged(2024, 1, day)
    moment.note = note  # type: ignore[attr-defined]
    return moment


def table(note: str, *numbers: int) -> Table:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas suspects a column in every attribute
        made = Table({"a": numbers})
        made.note = note
    return made


class Adder:
    def __init__(self, n: int):
        self.n = n

    def __call__(self, x: int) -> int:
        return x + self.n


def text_with(note: str) -> Text:
    text = Text("a")
    text.note = note  # type: ignore[attr-defined]
    return text


def rows_with(note: str, *items: int) -> Rows:
    rows = Rows(items)
    rows.note = note  # type: ignore[attr-defined]
    return rows


def add(x: int, n: int = 1) -> int:
    return x + n


def subtract(x: int, n: int = 1) -> int:
    return x - n


def adder(n: int) -> Any:
    def inner(x: int) -> int:
        return x + n

    return inner


def shared_rows(kind: type = list) -> Any:
    row = [0]
    return kind([row, row])


def own_rows(kind: type = list) -> Any:
    return kind([[0], [0]])


def cyclic(n: int) -> list[Any]:
    """A ring of `n` lists."""
    first: list[Any] = []
    last = first
    for _ in range(n - 1):
        last = [last]
    first.append(last)
    return first


def nan_of(bits: int) -> float:
    value: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
    return value


def frame(**options: Any) -> pd.DataFrame:
    return pd.DataFrame({"a": [1, 2, 3], "b": [1.0, 2.0, 3.0]}, **options)


def changed(value: Any, change: Any) -> Any:
    change(value)
    return value


def fitted(**options: Any) -> LogisticRegression:
    samples, targets = load_iris(return_X_y=True)
    return LogisticRegression(max_iter=1000, **options).fit(samples, targets)


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
        np.matrix(np.eye(2)),
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
        "from test_objects import COLLISIONS\n"
        "from ipyparcache.digest.objects import digest_of\n"
        "for group in COLLISIONS.values():\n"
        "    for value in group: print(digest_of(value).hex())\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, str(pathlib.Path(__file__).parent)],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(own)},
        ).stdout
        for own in (seed, seed + 100)
    ]

    assert outputs[0] == outputs[1]


# ---- numbers, sharing, changes


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
    "series": (pd.Series([1, 2]), lambda v: v.__setitem__(0, 5)),
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


def test_a_plain_object_is_told_by_its_number_only() -> None:
    marker = object()

    assert digest_of([marker, marker]) != digest_of([object(), object()])
    assert digest_of(object()) == digest_of(object())


@pytest.mark.parametrize(
    "value", [1, "a", None, DAY, (1, "a"), np.float64(1), pd.Timestamp("2024"), range(3), frozenset({1})]
)
def test_immutable_leaves_are_atomic(value: object) -> None:
    assert is_atomic(value)


@pytest.mark.parametrize("value", [[], {}, ([],), np.zeros(1), Point(1), object(), threading.Lock()])
def test_what_can_change_is_not_atomic(value: object) -> None:
    assert not is_atomic(value)


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
