import linecache
import pickle

import pytest

from ipyparcache.engine.outcome import (
    Error,
    RemoteTraceback,
    Value,
    dump_exception,
    load_exception,
    traceback_text,
    with_source_lines,
)
from ipyparcache.errors import TaskExit


def through(error):
    return load_exception(dump_exception(error, pickle.dumps))


def test_a_value_gives_itself():
    assert Value(3).unwrap() == 3


def test_an_error_raises_itself_with_the_workers_traceback_as_its_cause():
    with pytest.raises(ValueError, match="x") as caught:
        Error(ValueError("x"), "the text").unwrap()

    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "the text" in str(caught.value.__cause__)


def test_a_cause_of_its_own_stays_and_the_traceback_hangs_behind_it():
    error = ValueError("x")
    error.__cause__ = KeyError("y")
    for _ in range(2):
        with pytest.raises(ValueError, match="x"):
            Error(error, "the text").unwrap()

    assert isinstance(error.__cause__, KeyError)
    assert isinstance(error.__cause__.__cause__, RemoteTraceback)
    assert error.__cause__.__cause__.__cause__ is None


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_would_end_the_caller_is_wrapped(error):
    with pytest.raises(TaskExit, match=type(error).__name__):
        Error(error).unwrap()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a", 1),
        FileNotFoundError(2, "no file", "name"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "why"),
        SystemExit(3),
        SyntaxError("bad", ("file", 1, 2, "text")),
        ExceptionGroup("both", [ValueError(1), ExceptionGroup("inner", [KeyError(2)])]),
    ],
)
def test_exceptions_of_python_come_back_as_they_were(error):
    back = through(error)

    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.args == error.args or isinstance(error, ExceptionGroup)


def test_contexts_travel_unless_they_were_suppressed():
    error = ValueError("x")
    error.__context__ = KeyError("y")
    assert isinstance(through(error).__context__, KeyError)

    error.__suppress_context__ = True
    assert through(error).__context__ is None


def test_a_ring_of_causes_ends():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one

    assert through(one).__cause__.args == ("other",)


class Slotted(Exception):
    __slots__ = ("extra",)

    def __init__(self, extra, *, text):
        super().__init__(text)
        self.extra = extra


def test_slots_travel_with_a_class_that_does_not_pickle():
    back = through(Slotted(5, text="t"))

    assert (type(back), back.args, back.extra) == (Slotted, ("t",), 5)


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def test_an_exception_without_a_text_still_has_a_traceback():
    assert "Unprintable" in traceback_text(Unprintable(), skip=__file__)


def test_lines_that_only_the_caller_has_are_put_into_a_traceback():
    linecache.cache["<cell 1>"] = (20, None, ["one = 1\n", "  two()\n"], "<cell 1>")
    text = 'Traceback (most recent call last):\n  File "<cell 1>", line 2, in f\nValueError: x\n'

    assert with_source_lines(text) == text.replace("in f\n", "in f\n    two()\n")
    assert with_source_lines(with_source_lines(text)) == with_source_lines(text)
