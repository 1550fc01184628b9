"""Values of many kinds, and makers of values that are easily taken for one another."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import struct
import warnings
from typing import Any, NamedTuple

import pandas as pd
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

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
