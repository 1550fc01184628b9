"""What depends on earlier iterations is refused before anything runs, or told as lost."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from ipyparcache.engine.pool import shutdown_workers
from ipyparcache.errors import ChangedSideBySide, ChangeLost, LoopRefused
from tests.cells.sessions import FAILS_AT_3, describe, new_namespace, parallel, refusal_of, serial

REFUSED = {
    "break": ("xs = []", "for x in xs:\n    if x:\n        break", "break"),
    "carried": ("prev = 1", "for x in range(3):\n    cur = prev + x\n    prev = cur", "prev"),
    "own_container": ("fib = [1, 1]", "for i in range(3):\n    fib.append(fib[i] + 1)", "fib"),
    "running_total": ("t, c = 0, []", "for x in range(3):\n    t += x\n    c.append(t)", "t"),
    "finally_behind_a_write": (
        "d, out = {}, []",
        "for n in range(3):\n    try:\n        del d[n]\n    finally:\n        out.append(n)",
        "d",
    ),
    "finally_after_a_jump": (
        "out = []",
        "for n in range(3):\n    try:\n        if n: continue\n        z = n\n"
        "    finally:\n        out.append(z)",
        "z",
    ),
    "finally_of_what_is_caught": (
        FAILS_AT_3,
        "for n in range(5):\n    try:\n        try:\n            z = risky(n)\n        finally:\n"
        "            out.append(z)\n    except KeyError:\n        pass",
        "z",
    ),
    "finally_that_goes_on": (
        FAILS_AT_3,
        "for n in range(5):\n    try:\n        z = risky(n)\n    finally:\n"
        "        out.append(z)\n        continue",
        "z",
    ),
    "finally_before_the_end_of_a_with": (
        FAILS_AT_3
        + "\nclass Loud:\n    def __enter__(self): pass\n    def __exit__(self, *_): print('left')",
        "for n in range(5):\n    with Loud():\n        try:\n            z = risky(n)\n"
        "        finally:\n            print(z)",
        "z",
    ),
    "a_write_that_the_notebooks_manager_may_swallow": (
        "short = [0, 0]\n"
        "class Quiet:\n    def __enter__(self): pass\n    def __exit__(self, *_): return True\n"
        "quiet = Quiet()",
        "for n in range(4):\n    with quiet:\n        short[n] = n",
        "short",
    ),
    "a_write_behind_which_the_notebooks_generator_prints": (
        "import contextlib\nshort = [0, 0]\n"
        "@contextlib.contextmanager\ndef told():\n    try:\n        yield\n    finally:\n"
        "        print('end')",
        "for n in range(4):\n    with told():\n        short[n] = n",
        "short",
    ),
    "functions_of_a_comprehension": ("", "fs = [lambda: i for i in range(3)]", "i"),
    "a_method_handed_on": ("out = []", "for i in range(3):\n    list(map(out.append, [i]))", "out.append"),
    "a_generator_collected": (
        "gs = []",
        "for i in range(3):\n    gs.append(x for x in [i])",
        "(x for x in [i])",
    ),
    "an_iterator_handed_on": (
        "from itertools import islice\nrest, out = iter(range(9)), []",
        "for i in range(3):\n    out.append(list(islice(rest, 2)))",
        "rest",
    ),
    "an_iterator_beside_an_inner_loop": (
        "rest, out = iter(range(9)), []",
        "for i in range(3):\n    for a, b in zip(range(2), rest):\n        out.append((a, b))",
        "rest",
    ),
    "a_function_handed_on_that_changes_a_global": (
        "log, out = [], []\ndef f(x):\n    log.append(x)\n    return x",
        "for i in range(3):\n    out.append(list(map(f, [i])))",
        "log",
    ),
    "a_partial_that_holds_a_list": (
        "from functools import partial\ndef add(log, x):\n    log.append(x)\n    return x\n"
        "record, out = partial(add, []), []",
        "for i in range(3):\n    out.append(record(i))",
        "record",
    ),
    "a_decorator_that_counts": (
        "def counted(f):\n    def call(*args):\n        call.n += 1\n        return f(*args)\n"
        "    call.n = 0\n    return call\n@counted\ndef square(x): return x * x\nout = []",
        "for i in range(3):\n    out.append(square(i))",
        "call",
    ),
    "numbers_that_a_class_hands_out": (
        "import itertools\nclass P:\n    ids = itertools.count()\n"
        "    def __init__(self): self.id = next(P.ids)\nout = []",
        "for i in range(3):\n    out.append(P().id)",
        "P",
    ),
    "an_item_that_counts": (
        "class Data:\n    reads = 0\n    def __getitem__(self, i):\n        self.reads += 1\n"
        "        return i\ndata, out = Data(), []",
        "for i in range(3):\n    out.append(data[i])",
        "data",
    ),
    "a_property_that_fills_itself": (
        "class Data:\n    found = None\n    @property\n    def total(self):\n"
        "        if self.found is None:\n            self.found = 5\n        return self.found\n"
        "data, out = Data(), []",
        "for i in range(3):\n    out.append(data.total)",
        "data",
    ),
    "an_operator_that_changes": (
        "class Tally:\n    n = 0\n    def __add__(self, n):\n        self.n += n\n        return self\n"
        "tally, out = Tally(), []",
        "for i in range(3):\n    out.append((tally + i).n)",
        "tally",
    ),
    "membership_that_remembers": (
        "class Seen:\n    def __init__(self): self.known = set()\n    def __contains__(self, x):\n"
        "        self.known.add(x)\n        return False\nseen, out = Seen(), []",
        "for i in range(3):\n    if i not in seen:\n        out.append(i)",
        "seen",
    ),
    "pixels_of_one_image": (
        "from PIL import Image\nimage = Image.new('L', (3, 3))",
        "for i in range(3):\n    image.putpixel((i, 0), i)",
        "image",
    ),
    "a_list_that_a_cache_remembers": (
        "import functools\n@functools.cache\ndef rows(k): return [k]\nout = []",
        "for k in [1, 1, 2]:\n    found = rows(k)\n    found.append(0)\n    out.append(len(found))",
        "rows",
    ),
    "a_dict_that_a_cache_remembers": (
        "import functools\n@functools.lru_cache\ndef rows(k): return {}\nout = []",
        "for k in [1, 1, 2]:\n    rows(1).update({k: k})\n    out.append(k)",
        "rows",
    ),
    "an_identity": ("ids, xs = set(), [[], []]", "for x in xs:\n    ids.add(id(x))", "id(...)"),
    "a_path_opened_to_append": (
        "from pathlib import Path\np = Path('log')",
        "for i in range(3):\n    with p.open('a') as f:\n        f.write(str(i))",
        None,
    ),
    "a_fraction": ("k, o = 0.5, []", "for x in range(3):\n    o.append(k)\n    k += 1", "k"),
    "skipped": ("k = 0", "for x in range(3):\n    if x: continue\n    k += 1\n    print(k)", "k"),
    "counted_twice": ("k = 0", "for x in range(3):\n    k += 1\n    print(k)\n    k += 1", "k"),
    "used_write": ("out = []", "for x in range(3):\n    y = out.append(x)", "out.append(...)"),
    "used_inner_write": (
        "from collections import defaultdict\nd, out = defaultdict(set), []",
        "for x in range(3):\n    out.append(d[x].add(x))",
        "d.add(...)",
    ),
    "asked_write": ("s = set()", "for x in [1, 1]:\n    if x not in s and not s.add(x):\n        pass", "s"),
    "global_write": ("N = 0\ndef f():\n    global N\n    N += 1", "for x in range(3):\n    f()", "N"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_carried_loop_is_refused_with_its_variable(name):
    setup, cell, word = REFUSED[name]

    assert word is None or f"`{word}`" in refusal_of(cell, setup)


@pytest.mark.skipif("PYTHONHASHSEED" in os.environ, reason="texts have the same hashes everywhere")
@pytest.mark.parametrize("name", ["hash", "bucket"])
def test_a_hash_is_refused_as_it_is_another_one_on_each_worker(name):
    setup = "def bucket(word):\n    return hash(word) % 8\nout = []"

    assert "zlib.crc32" in refusal_of(f"for word in 'abc':\n    out.append({name}(word))", setup)


def test_a_function_that_names_a_global_and_does_not_assign_it_may_be_called():
    cell = (
        "least = 2\ndef enough(x):\n    global least\n    return x > least\nkept = []\n"
        "for x in range(5):\n    if enough(x):\n        kept.append(x)"
    )
    namespace = new_namespace()

    _, error, _ = parallel(namespace, cell)

    assert error is None
    assert namespace["kept"] == [3, 4]


def test_a_source_that_changes_what_the_body_reads_is_refused_once_it_does():
    namespace = new_namespace(
        "class S:\n    n = 0\ns, out = S(), []\ndef source():\n    for i in range(4):\n        s.n += 1\n"
        "        yield i"
    )

    _, error, _ = parallel(namespace, "for x in source():\n    out.append((x, s.n))")

    assert isinstance(error, LoopRefused)
    assert "`s`" in str(error)
    assert namespace["out"] == []


def test_an_element_that_cannot_travel_is_found_before_anything_runs():
    setup = "import threading\nxs, out = [1, 2, threading.Lock()], []"

    assert "element 2" in refusal_of("for x in xs:\n    out.append(1)", setup)


def test_a_loop_ends_behind_the_iterations_before_an_element_that_cannot_travel():
    setup = "import threading\nout = []\ndef source():\n    yield 1\n    yield 2\n    yield threading.Lock()"
    namespace = new_namespace(setup)

    _, error, _ = parallel(namespace, "for x in source():\n    out.append(x)")

    assert isinstance(error, LoopRefused)
    assert "element 2" in str(error)
    assert namespace["out"] == [1, 2]


def test_a_generator_that_reads_what_the_loop_changes_is_refused():
    setup = "out = []\ndef source():\n    while len(out) < 5:\n        yield len(out)\nmade = source()"

    assert "`out`" in refusal_of("for x in made:\n    out.append(x)", setup)


def test_a_changed_environment_is_reported_as_lost():
    namespace = new_namespace("import os\ndef go(i):\n    os.chdir('/')\nout = []")

    _, error, _ = parallel(namespace, "for i in range(3):\n    go(i)\n    out.append(i)")

    assert isinstance(error, ChangeLost)
    assert "folder" in str(error)


@pytest.mark.parametrize(
    "cell",
    ["for i in range(2):\n    line, = ax.plot([i])", "for ax in [ax, ax]:\n    ax.set_title('a')"],
    ids=["a result that is used", "axes as elements"],
)
def test_other_uses_of_axes_from_outside_are_refused(cell, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    namespace = new_namespace("import matplotlib.pyplot as plt\nfig, ax = plt.subplots()")

    _, error, _ = parallel(namespace, cell)

    assert isinstance(error, LoopRefused)
    assert not namespace["fig"].axes[0].lines
    pyplot.close(namespace["fig"])


def test_a_tree_of_library_objects_is_watched_in_time():
    setup = (
        "import xml.etree.ElementTree as ET\nout = []\n"
        "root = ET.fromstring('<a>' + ''.join(f'<b n=\"{i}\"/>' for i in range(300)) + '</a>')"
    )
    namespace = new_namespace(setup)

    _, error, _ = parallel(namespace, "for i in range(9):\n    out.append(root[i].get('n'))")
    _, lost, _ = parallel(namespace, "for i in range(9):\n    root[i].set('n', 'x')")

    assert error is None
    assert namespace["out"] == [str(i) for i in range(9)]
    assert isinstance(lost, ChangeLost)
    assert "`root`" in str(lost)


def test_a_write_to_an_item_that_may_be_missing_cannot_be_caught_here():
    cell = "for i in range(4):\n    try:\n        rows[i].append(i)\n    except IndexError:\n        print(i)"

    assert "`rows`" in refusal_of(cell, "rows = [[], []]")


COUNTING = "class P:\n    made = []\n    n = 0\n    def __init__(self):\n"
BANK = (
    "class Bank:\n    total = 0\n    def pay(self, x):\n        self._add(x)\n"
    "    def _add(self, x):\n        self.total += x\n    def seen(self):\n        return self.total\n"
    "bank, out = Bank(), []"
)
CHANGED_BY_CALLS = {
    "a_method": (BANK, "for i in range(3):\n    bank.pay(i)", "bank"),
    "a_class_that_counts": (
        COUNTING + "        type(self).n += 1\nps = []",
        "for i in range(3):\n    ps.append(P())",
        "P",
    ),
    "a_class_that_keeps": (
        COUNTING + "        self.made.append(self)\nps = []",
        "for i in range(3):\n    ps.append(P())",
        "P",
    ),
    "a_classmethod": (
        "class P:\n    n = 0\n    @classmethod\n    def make(cls):\n        cls.n += 1\n"
        "        return cls.n\nout = []",
        "for i in range(3):\n    out.append(P.make())",
        "P",
    ),
    "an_object_that_is_called": (
        "class F:\n    n = 0\n    def __call__(self, x):\n        self.n += 1\n        return x\n"
        "f, out = F(), []",
        "for i in range(3):\n    out.append(f(i))",
        "f",
    ),
    "a_keyword": (
        "acc = []\ndef add(v, xs):\n    xs.append(v)",
        "for i in range(3):\n    add(i, xs=acc)",
        "acc",
    ),
    "a_lambda": ("acc = []\nadd = lambda v: acc.append(v)", "for i in range(3):\n    add(i)", "acc"),
    "a_context": (
        "from contextlib import contextmanager\nlog = []\n@contextmanager\n"
        "def noting(x):\n    log.append(x)\n    yield",
        "for i in range(3):\n    with noting(i):\n        y = i",
        "log",
    ),
    "an_alias_of_two": ("a, b = [], []", "for i in range(3):\n    t = a if i else b\n    t.append(i)", "t"),
    "an_alias_of_several": (
        "a, b = [], []",
        "for i in range(3):\n    for t in (a, b):\n        t.append(i)",
        "t",
    ),
}


@pytest.mark.parametrize("name", CHANGED_BY_CALLS)
def test_what_calls_change_of_objects_from_outside_is_refused_before_anything_runs(name):
    setup, cell, word = CHANGED_BY_CALLS[name]

    assert f"`{word}`" in refusal_of(cell, setup)


NOT_CHANGED_BY_CALLS = {
    "a_method_that_asks": (BANK, "for i in range(3):\n    out.append(bank.seen() + i)"),
    "an_object_of_its_own": (
        BANK,
        "for i in range(3):\n    own = Bank()\n    own.pay(i)\n    out.append(own.total)",
    ),
    "a_class_that_counts_nothing": (
        COUNTING + "        self.made = [1]\nps = []",
        "for i in range(3):\n    ps.append(P())",
    ),
    "the_length_of_what_is_changed": (
        "ps = [{'v': v} for v in (3.0, 1.0)]",
        "for i, p in enumerate(ps):\n    p['share'] = p['v'] / len(ps)\n    print(f'{i + 1}/{len(ps)}')",
    ),
}


@pytest.mark.parametrize("name", NOT_CHANGED_BY_CALLS)
def test_calls_that_change_nothing_from_outside_run(name):
    setup, cell = NOT_CHANGED_BY_CALLS[name]
    plain, tested = new_namespace(setup), new_namespace(setup)
    text, _ = serial(plain, cell)

    host, error, _ = parallel(tested, cell)

    assert error is None
    assert describe(tested) == describe(plain)
    assert host.stdout == text


def test_an_object_that_counts_what_it_hands_out_is_refused_before_it_does():
    setup = (
        "class S:\n    n = 0\n    def __iter__(self):\n        for i in range(3):\n            self.n += 1\n"
        "            yield i\ns, out = S(), []"
    )

    assert "`s`" in refusal_of("for x in s:\n    out.append((x, s.n))", setup)


LOST = {
    "a list changed by an unknown function": (
        "import random\nxs, out = [1, 2, 3], []",
        "for i in range(4):\n    random.Random(i).shuffle(xs)\n    out.append(i)",
        "xs",
    ),
    "an array written through a function": (
        "import numpy as np\na, out = np.zeros(1000), []\nfill = np.ndarray.fill",
        "for i in range(4):\n    fill(a, i + 1)\n    out.append(i)",
        "a",
    ),
    "an object changed by its method": (
        "class M:\n    n = 0\n    def step(self):\n        self.n += 1\nm, out = M(), []",
        "for i in range(4):\n    getattr(m, 'st' + 'ep')()\n    out.append(i)",
        "m",
    ),
    "a generator drawn from": (
        "import numpy as np\nout, box = [], [np.random.default_rng(0)]",
        "for i in range(4):\n    out.append(box[0].random())",
        "box",
    ),
    "a closure's counter": (
        (
            "def make():\n    n = 0\n    def step():\n        nonlocal n\n        n += 1\n"
            "        return n\n    return step\nsteps, out = [make()], []"
        ),
        "for i in range(4):\n    out.append(steps[0]())",
        "steps",
    ),
    "a class attribute": (
        "class J:\n    made = 0\n    def __init__(self):\n        J.made += 1\nout, kinds = [], {'j': J}",
        "for i in range(4):\n    out.append(kinds['j']())",
        "J",
    ),
    "a default argument": (
        (
            "class K:\n    def call(self, x, seen=[]):\n        seen.append(x)\n"
            "        return len(seen)\nk, out = K(), []"
        ),
        "for i in range(4):\n    out.append(k.call(i))",
        "k|K|seen|call",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_a_change_that_would_be_lost_is_an_error(name):
    setup, cell, word = LOST[name]
    namespace = new_namespace(setup)
    before = describe(namespace)

    _, error, _ = parallel(namespace, cell)

    assert isinstance(error, ChangeLost)
    assert "lost" in str(error)
    assert any(f"`{w}" in str(error) or f"{w}`" in str(error) for w in word.split("|")), str(error)
    after = {n: t for n, t in describe(namespace).items() if n in before and n != "i"}
    assert after == before


@pytest.mark.parametrize("name", LOST)
def test_what_threads_change_side_by_side_is_an_error(name):
    setup, cell, _ = LOST[name]

    _, error, _ = parallel(new_namespace(setup), cell, backend="threads")

    assert isinstance(error, ChangedSideBySide | LoopRefused)
    assert isinstance(error, LoopRefused) or ("no fixed order" in str(error) and "lost" in str(error))


def test_a_refusal_comes_before_any_line_has_run():
    cell = "log.append('ran')\nfor i in range(3):\n    x = prev\n    prev = i"

    assert refusal_of(cell, "log = []").startswith("line 3")


DRAWS = {
    "np.random.rand()": "numpy.random",
    "np.random.normal(size=3)": "numpy.random",
    "randint(0, 9)": "random",
    "random.choice([1, 2])": "random",
}


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_from_a_seeded_generator_are_refused(draw, monkeypatch):
    setup = "import random\nimport numpy as np\nfrom random import randint\nout = []"
    monkeypatch.setattr("ipyparcache.cells.looprun.seeded_libraries", lambda: (DRAWS[draw],))

    text = refusal_of(f"for i in range(6):\n    out.append({draw})", setup)

    assert text.startswith("line 2")
    assert "--seed" in text


@pytest.mark.parametrize(
    ("statements", "seeded"),
    [
        ("out.append(np.random.rand())", "random"),
        ("np.random.seed(i)\n    out.append(np.random.rand())", "numpy.random"),
        ("out.append(np.random.default_rng(i).random())", "numpy.random"),
        ("out.append(random.Random(i).random())", "random"),
    ],
)
def test_what_was_not_seeded_before_or_is_in_the_body_is_drawn_from(statements, seeded, monkeypatch):
    monkeypatch.setattr("ipyparcache.cells.looprun.seeded_libraries", lambda: (seeded,))
    namespace = new_namespace("import random\nimport numpy as np\nout = []")

    _, error, _ = parallel(namespace, f"for i in range(6):\n    {statements}")

    assert error is None
    assert len(namespace["out"]) == 6


def test_draws_by_a_function_from_a_seeded_generator_are_lost_from_the_first_on(monkeypatch):
    namespace = new_namespace("import numpy as np\nout = []\ndef draw():\n    return np.random.rand()")
    monkeypatch.setattr("ipyparcache.cells.looprun.seeded_libraries", lambda: ("numpy.random",))

    _, error, _ = parallel(namespace, "for i in range(6):\n    out.append(draw())")

    assert isinstance(error, ChangeLost)
    assert "--seed" in str(error)
    assert namespace["out"] == []


def test_a_global_that_a_local_module_rebinds_is_lost(tmp_path, monkeypatch):
    (tmp_path / "loops_counter.py").write_text(
        "n = 0\ndef count(x):\n    global n\n    n += x\n    return x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    namespace = new_namespace("from loops_counter import count\nout = []")

    _, error, _ = parallel(namespace, "for i in range(1, 4):\n    out.append(count(i))")
    sys.modules.pop("loops_counter")

    assert isinstance(error, ChangeLost)
    assert "`loops_counter.n`" in str(error)
    assert namespace["out"] == []


@pytest.mark.parametrize("first", ["", "    import asyncio\n"])
def test_a_body_cannot_run_an_event_loop_where_the_cell_runs_in_one(first):
    setup = "async def add(x):\n    return x + 1\nout = []\n" + ("" if first else "import asyncio\n")
    cell = (
        f"for x in range(3):\n{first}    made = add(x)\n    try:\n        y = asyncio.run(made)\n"
        "    finally:\n        made.close()\n    out.append(y)"
    )
    alone, inside = new_namespace(setup), new_namespace(setup)

    async def run():
        return parallel(inside, cell)

    shutdown_workers()  # those of other tests may have imported it
    _, raised, _ = asyncio.run(run())
    _, error, _ = parallel(alone, cell + "\ndel made")

    assert error is None
    assert alone["out"] == [1, 2, 3]
    assert isinstance(raised, RuntimeError)
    assert "cannot be called from a running event loop" in str(raised)
    assert inside["out"] == []


KEPT = """
import io
from dataclasses import dataclass, field

out, res, buf = [], [], io.StringIO()
push, write, get = res.append, buf.write, {1: 2}.get


def counter():
    n = 0

    def count(k=1):
        nonlocal n
        n += k
        return n

    def peek():
        return n

    return count, peek


count, peek = counter()


def gather(x, seen=[], *, log=None):
    seen.append(x)
    return len(seen)


def told(x, *, memo={}):
    memo[x] = x
    return len(memo)


@dataclass
class Team:
    name: str
    points: int = 0
    log: list = field(default_factory=list)

    def win(self):
        self.points += 3

    def worth(self):
        return self.points


teams = [Team("a"), Team("b")]
by_name = {team.name: team for team in teams}
rows = [[1], [2]]
"""

CHANGES_WHAT_IS_KEPT = {
    "out.append(count())": "`n` of the function around it",
    "out.append(gather(i))": "the default of its parameter `seen`",
    "out.append(gather(x=i))": "the default of its parameter `seen`",
    "out.append(told(i))": "the default of its parameter `memo`",
    "push(i)": "the object of `append`",
    "write(str(i))": "the object of `write`",
    "for t in teams:\n        t.points += i": "`t` is here an element of `teams`",
    "for n, t in enumerate(teams):\n        t.log.append(i)": "`t` is here an element of `teams`",
    "for k, t in by_name.items():\n        if k == 'a':\n            t.win()": "an element of `by_name`",
    "for t in by_name.values():\n        setattr(t, 'x', i)": "`t` is here an element of `by_name`",
    "for t, r in zip(teams, rows):\n        r.append(i)": "`r` is here an element of `rows`",
    "for r in reversed(rows):\n        r[0] = i": "`r` is here an element of `rows`",
}


@pytest.mark.parametrize("statement", CHANGES_WHAT_IS_KEPT)
def test_what_functions_keep_and_loops_in_the_body_change_is_refused_before_any_work(statement):
    text = refusal_of(f"for i in range(3):\n    {statement}", KEPT)

    assert CHANGES_WHAT_IS_KEPT[statement] in text


@pytest.mark.parametrize(
    "statement",
    [
        "out.append(peek())",
        "out.append(gather(i, []) + gather(i, seen=[1]))",
        "out.append(get(i))",
        "out.append([t.worth() for t in teams])",
        "for t in teams:\n        out.append((t.name, t.worth()))",
        "for r in [list(r) for r in rows]:\n        r.append(i)\n        out.append(r)",
        "for t in teams:\n        t = Team(t.name)\n        t.win()\n        out.append(t.points)",
    ],
)
def test_what_is_only_asked_or_made_in_the_body_is_not_held_back(statement):
    cell = f"for i in range(3):\n    {statement}"
    plain, tested = new_namespace(KEPT), new_namespace(KEPT)
    serial(plain, cell)

    _, error, _ = parallel(tested, cell)

    assert error is None
    assert describe(tested)["out"] == describe(plain)["out"]


def test_a_function_that_draws_without_a_figure_of_its_own_is_refused():
    pytest.importorskip("matplotlib")
    setup = "import matplotlib.pyplot as plt\ndef draw(k):\n    plt.plot([k, k])"

    assert "`draw` draws into the current figure" in refusal_of("for k in range(3):\n    draw(k)", setup)


def test_what_a_cache_remembers_may_be_read_and_copied():
    setup = "import copy, functools\n@functools.cache\ndef rows(k): return [k]\nout = []"
    cell = (
        "for k in [1, 1, 2]:\n    found = copy.copy(rows(k))\n    found.append(0)\n"
        "    n = rows(k)\n    out.append((len(found), len(n)))"
    )
    tested = new_namespace(setup)

    _, error, _ = parallel(tested, cell)

    assert error is None
    assert tested["out"] == [(2, 1)] * 3
