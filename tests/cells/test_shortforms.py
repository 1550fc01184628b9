"""What travels in a short form arrives as it was, with its numbers; a change of it is seen."""

from __future__ import annotations

import numpy as np
import pytest

from ipyparcache.cells import travel, watching
from ipyparcache.digest.objects import digest_of

pd = pytest.importorskip("pandas")


def _table():
    days = pd.date_range("2020", periods=2)
    return pd.DataFrame(
        {
            "k": [1, 2],
            "a": [1.0, 2.0],
            "s": ["x", None],
            "t": days,
            "z": days.tz_localize("UTC"),
            "c": pd.Categorical(["u", "v"]),
            "n": pd.array([1, None], dtype="Int64"),
            "d": pd.to_timedelta([1, 2], unit="s"),
            "o": [[1], 2],
        }
    )


def _read_only():
    made = np.arange(3.0)
    made.flags.writeable = False
    return made


THINGS = {
    "frame": _table,
    "group": lambda: next(iter(_table().groupby("k"))),
    "row": lambda: _table().iloc[0],
    "named row": lambda: next(_table().itertuples()),
    "series": lambda: _table()["a"],
    "empty frame": lambda: _table().iloc[:0],
    "two levels": lambda: _table()[["k", "a"]].set_index(["k", "a"], drop=False),
    "named axes": lambda: pd.DataFrame({"a": [1]}).rename_axis("r").rename_axis("c", axis=1),
    "flags": lambda: pd.DataFrame({"a": [1]}).set_flags(allows_duplicate_labels=False),
    "labels": lambda: pd.Index([1.5, 2.0], name="q"),
    "dates": lambda: np.array(["2020", "NaT"], "M8[D]"),
    "turned": lambda: np.arange(6.0).reshape(2, 3).T,
    "texts": lambda: np.array([["a", None], [1, 2.5]], object),
    "objects": lambda: np.array([[1, 2], {}], object),
    "none": lambda: np.array([]),
    "fields": lambda: np.zeros(2, [("a", "i4")]),
    "swapped": lambda: np.array([1, 2], ">i4"),
    "read only": _read_only,
    "scalar": lambda: np.datetime64("2020-01-01"),
}


def _sent(thing):
    """An element as it arrives, with its numbered objects there and here."""
    parcel = travel.pack({}, [], lambda name: False)
    arrived = travel.unpack(parcel.data, parcel.buffers)
    data, buffers, here = travel.pack_element(thing, parcel, {}, lambda name: False)
    made, there = travel.unpack_element(data, buffers, arrived)
    return made, there, here


@pytest.mark.parametrize("name", THINGS)
def test_a_short_form_arrives_as_what_was_sent(name):
    thing = THINGS[name]()

    made, there, here = _sent(thing)

    assert type(made).__name__ == type(thing).__name__
    assert digest_of(tuple(made) if name == "named row" else made) == digest_of(
        tuple(thing) if name == "named row" else thing
    )
    assert {n: type(obj).__name__ for n, obj in here.items()}.items() <= {
        n: type(obj).__name__ for n, obj in there.items()
    }.items()
    if isinstance(thing, np.ndarray):
        assert made.flags.writeable == thing.flags.writeable


def test_named_rows_of_one_table_have_one_class():
    (one, other), _, _ = _sent(tuple(_table().itertuples()))

    assert type(one) is type(other)


CHANGES = {
    "cell": lambda f: f.__setitem__("a", [1.0, 3.0]),
    "one value": lambda f: f.iloc.__setitem__((0, 1), 7.0),
    "new column": lambda f: f.__setitem__("new", 1),
    "name of the columns": lambda f: setattr(f.columns, "name", "c"),
    "index": lambda f: setattr(f, "index", [5, 6]),
    "order": lambda f: f.__setitem__(["k", "a"], f[["k", "a"]].to_numpy()[::-1]),
    "attrs": lambda f: f.attrs.update(a=1),
    "text": lambda f: f.loc.__setitem__((0, "s"), "y"),
    "missing": lambda f: f.loc.__setitem__((0, "n"), None),
    "category": lambda f: f.loc.__setitem__((0, "c"), "v"),
}
READS = {
    "sum": lambda f: f["a"].sum(),
    "values": lambda f: f[["k", "a"]].to_numpy(),
    "groups": lambda f: f.groupby("k")["a"].mean(),
    "lookup": lambda f: (f.loc[1, "a"], f.index.get_loc(1), f.columns.get_loc("a")),
    "copy": lambda f: f.assign(a=1),
    "text": repr,
}


def _states(objects):
    def is_user_code(name):
        return name == "__main__"

    states, whole = watching.states_of(objects, {}, is_user_code)
    assert not whole
    return lambda: [n for n, s in states.items() if not watching.is_unchanged(objects[n], s, is_user_code)]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_a_frame_is_seen(name):
    frame, objects, _ = _sent(_table())
    changed = _states(objects)

    CHANGES[name](frame)

    assert changed()


@pytest.mark.parametrize("name", READS)
def test_reading_a_frame_is_no_change(name):
    table = _table()
    table["late"] = table["a"] * 2  # in a block of its own, which pandas may put beside the others
    frame, objects, _ = _sent(table)
    changed = _states(objects)

    READS[name](frame)

    assert not changed()


def test_an_object_of_a_library_is_seen_to_change_with_what_it_holds():
    linear = pytest.importorskip("sklearn.linear_model")
    ensemble = pytest.importorskip("sklearn.ensemble")
    data, wanted = np.arange(12.0).reshape(6, 2), np.array([0, 1, 0, 1, 0, 1])
    for model in (linear.Ridge(), ensemble.RandomForestClassifier(100, random_state=0)):
        for _ in range(2):  # as it is made, and as it has learnt
            made, objects, _ = _sent(model)
            changed = _states(objects)
            if hasattr(made, "n_features_in_"):
                made.predict(data)
            assert not changed()

            made.fit(data, wanted)

            assert [type(objects[n]) for n in changed() if objects[n] is made]
            model.fit(data, wanted)


def test_a_list_of_many_objects_that_have_digests_only_is_looked_at_as_a_whole():
    many = [BaseExceptionGroup("many", [ValueError(n)]) for n in range(watching.MOST_DIGESTS + 1)]

    def is_user_code(name):
        return name == "__main__"

    _, whole = watching.states_of(dict(enumerate(many)), {"many": many}, is_user_code)

    assert watching.is_unchanged(many, whole["many"], is_user_code)
    many.pop()
    assert not watching.is_unchanged(many, whole["many"], is_user_code)
