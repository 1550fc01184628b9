"""What notebooks add to classes: methods on those of libraries, properties that are computed once."""

from __future__ import annotations

import pytest

from ipyparcache.errors import ChangeLost, LoopRefused
from tests.cells.sessions import describe, new_namespace, parallel, serial

TABLES = (
    "import pandas as pd\n"
    "tables = {'a': pd.DataFrame({'v': [1.0, None], 'k': [1, 2]})}\n"
    "tables['b'] = pd.DataFrame({'v': [3.0], 'k': [1]})\n"
    "out = {}\n"
)
DOCUMENTS = """
from functools import cached_property
class Document:
    def __init__(self, text): self.text = text
    @cached_property
    def words(self): return self.text.split()
documents = [Document('a b'), Document('c')]
out = []
"""
SAME = {
    "a method put on tables": (
        TABLES
        + "least = 1\ndef rows(self):\n    return len(self.dropna()) + least\npd.DataFrame.rows = rows",
        "for name, table in tables.items():\n    out[name] = table.rows()",
    ),
    "a method put on tables that the body makes": (
        TABLES + "pd.DataFrame.rows = lambda self: len(self)",
        "for name in 'ab':\n    out[name] = pd.DataFrame({'v': [1, 2]}).rows()",
    ),
    "a method put on numbers": (
        "import fractions\nout = []\nfractions.Fraction.doubled = lambda self: 2 * self",
        "for n in (333, 777):\n    out.append(fractions.Fraction(n, 1000).doubled())",
    ),
    "an accessor": (
        TABLES
        + "@pd.api.extensions.register_dataframe_accessor('counted')\nclass Counted:\n"
        + "    def __init__(self, table): self.table = table\n"
        + "    def rows(self): return len(self.table)",
        "for name, table in tables.items():\n    out[name] = table.counted.rows()",
    ),
    "bars of tqdm for pandas": (
        TABLES + "from tqdm import tqdm\ntqdm.pandas(disable=True)",
        "for name, table in tables.items():\n"
        "    out[name] = table['v'].progress_apply(lambda v: v * 2).sum()\n"
        "    out[name, 'k'] = table.groupby('k').progress_apply(len).tolist()",
    ),
    "a property computed once": (DOCUMENTS, "for d in documents:\n    out.append(len(d.words))"),
    "its value changed": (
        DOCUMENTS,
        "for d in documents:\n    d.words.append('x')\nafter = [len(d.words) for d in documents]",
    ),
    "objects that have one, made in the body": (
        DOCUMENTS,
        "for n in range(3):\n    d = Document('x ' * n)\n    out.append((len(d.words), d))",
    ),
}


@pytest.mark.filterwarnings("ignore:registration of accessor")
@pytest.mark.parametrize("name", SAME)
def test_iterations_find_what_was_added(name, request, monkeypatch):
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread that outlives the test
    if "pandas" in SAME[name][0]:
        pytest.importorskip("pandas")
    setup, cell = SAME[name]
    plain, tested = new_namespace(setup), new_namespace(setup)
    request.addfinalizer(lambda: _take_off(plain))
    _, error = serial(plain, cell)

    _, raised, _ = parallel(tested, cell)

    assert (error, raised) == (None, None)
    assert describe(tested) == describe(plain)


def _take_off(namespace):
    """Leave the classes of libraries as they were."""
    if "fractions" in namespace:
        del namespace["fractions"].Fraction.doubled
    if "pd" not in namespace:
        return
    groups = type(namespace["pd"].DataFrame({"k": [1]}).groupby("k"))
    for kind in (namespace["pd"].DataFrame, namespace["pd"].Series, *groups.__mro__):
        for name in [n for n in vars(kind) if n in ("rows", "counted") or n.startswith("progress_")]:
            delattr(kind, name)
        if hasattr(kind, "_accessors"):
            kind._accessors.discard("counted")


def test_a_loop_over_what_a_method_of_a_table_reads_is_refused_if_the_loop_changes_that():
    pytest.importorskip("pandas")
    namespace = new_namespace(
        TABLES + "seen = []\ndef rows(self):\n    return len(seen)\npd.DataFrame.rows = rows"
    )

    _, error, _ = parallel(namespace, "for name, table in tables.items():\n    seen.append(table.rows())")

    _take_off(namespace)
    assert isinstance(error, LoopRefused)
    assert "`seen`" in str(error)


def test_a_shared_object_may_compute_its_properties_on_the_workers():
    namespace = new_namespace(DOCUMENTS + "shared = documents[0]")

    _, error, _ = parallel(namespace, "for n in range(4):\n    out.append(len(shared.words) + n)")

    assert error is None
    assert namespace["out"] == [2, 3, 4, 5]


def test_a_shared_object_that_counts_how_often_it_is_asked_is_told_as_lost():
    counting = (
        "class Counting:\n    n = 0\n    @property\n    def value(self):\n"
        "        vars(self)['n'] = self.n + 1\n"
    )
    namespace = new_namespace(counting + "        return self.n\nshared, out = Counting(), []")

    _, error, _ = parallel(namespace, "for n in range(4):\n    out.append(shared.value)")

    assert isinstance(error, ChangeLost)


def test_images_come_home_as_they_were_changed():
    images = pytest.importorskip("PIL.Image")
    setup = (
        "from PIL import Image, ImageDraw\n"
        "images = [Image.new(mode, (5, 4), 3) for mode in ('L', 'RGB', 'P', '1')]\nout = []"
    )
    cell = (
        "for number, image in enumerate(images):\n    image.putpixel((1, 2), 1)\n"
        "    ImageDraw.Draw(image).point((3, 3), 0)\n    out.append(image.resize((2, 2)))"
    )
    plain, tested = new_namespace(setup), new_namespace(setup)
    first = tested["images"][0]
    serial(plain, cell)

    _, error, _ = parallel(tested, cell)

    assert error is None
    assert tested["images"][0] is first
    for name in ("images", "out"):
        for one, other in zip(tested[name], plain[name], strict=True):
            assert isinstance(one, images.Image)
            assert (one.mode, one.size, one.tobytes(), one.getpalette()) == (
                other.mode,
                other.size,
                other.tobytes(),
                other.getpalette(),
            )
