from __future__ import annotations

import traceback

import numpy as np
import pytest

from ipyparcache.cells.tracebacks import without_our_frames
from ipyparcache.errors import EarlierValueLost, LoopRefused
from tests.cells.sessions import FAILS_AT_3, describe, new_namespace, parallel, serial

SAME = {
    "append": (
        "def f(x):\n    return x * x\nout = []\nref = out",
        "for i in range(10):\n    out.append(f(i))",
    ),
    "extend_and_plus": (
        "out, more = [], ['x']\nref = more",
        "for i in range(6):\n    out.extend(range(i))\n    more += [i, str(i)]",
    ),
    "numbers": (
        "total, n, neg, prod, bits = 5, 0, 100, 1, 0",
        (
            "for i in range(1, 9):\n    total += i * i\n    n += 1\n    neg -= i\n"
            "    prod *= i\n    if i % 2:\n        bits |= 1 << i"
        ),
    ),
    "named_tuples": (
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    y: str = 'z'\n"
        "    def twice(self):\n        return self.x * 2",
        "ps = []\nfor i in range(3):\n    ps.append((P(i)._replace(y=str(i)), P(i).twice(), P(1, y='a')))",
    ),
    "containers_filled_side_by_side": (
        "out, seen, table = [], {5}, {'k': 0}\nsame = out",
        "for i in range(300):\n    if i % 3:\n        out.append(i)\n    same.append(-i)\n"
        "    table[i % 7] = last = i\n    table[str(i % 5)] = i\n    seen.add(i % 11)\n    if i % 50 == 0:\n"
        "        out.append('x')",
    ),
    "containers_of_other_kinds": (
        "from collections import deque, defaultdict\nclass L(list):\n    def append(self, x):\n"
        "        super().append((x, len(self)))\nout, d, q = L(), defaultdict(int, a=1), deque(maxlen=3)",
        "for i in range(9):\n    out.append(i)\n    d[i % 4] = i\n    q.append(i)",
    ),
    "array_rows": (
        "import numpy as np\nimg, over = np.zeros((6, 4)), np.zeros(9)\nref = img",
        "for i in range(6):\n    img[i, :] = i\n    img[i, 1:3] += 0.5\n    over[i:i + 3] = i",
    ),
    "last_values": (
        "out, seventh, untouched = [], None, 'as before'",
        "for i in range(20):\n    tmp = {'row': [i]}\n    a, *rest = i, i + 1, i + 2\n"
        "    if i % 7 == 0:\n        seventh = i\n"
        "    if i > 100:\n        untouched = i\n    i = i * 10\n    out.append(tmp)",
    ),
    "shared_objects": (
        "cfg, base, out = {'k': 1}, [0], []",
        "for i in range(5):\n    out.append((i, cfg, base))",
    ),
    "elements": (
        "class P:\n    score = 0\n    def __init__(self, v):\n        self.v = v\n"
        "people, rows = [P(i) for i in range(6)], [{'a': i} for i in range(6)]",
        "for p in people:\n    p.score = p.v * 10\nfor row in rows:\n    row['b'] = row['a'] + 1",
    ),
    "dict_values": (
        "d, lists = {c: i for i, c in enumerate('abcdef')}, {c: [c] for c in 'abc'}",
        "for k in d:\n    d[k] += 100\nfor k, v in lists.items():\n    v.append(k * 2)",
    ),
    "setdefault_get": (
        "words = 'the cat the dog a cat'.split()\ngroups, n = {}, {}",
        "for w in words:\n    groups.setdefault(len(w), []).append(w)\n    n[w] = n.get(w, 0) + 1",
    ),
    "best": (
        "xs = [3, 9, 2, 9, -4, 8]\nhi, best, where = float('-inf'), None, None",
        (
            "for i, x in enumerate(xs):\n    hi = max(hi, x)\n"
            "    if best is None or x > best:\n        best, where = x, i"
        ),
    ),
    "rebuilt": (
        "out, total = ['first'], 0.1",
        "for i in range(6):\n    out = out + [i]\n    total = total + i * 0.3",
    ),
    "prints": (
        "out = []",
        "for i in range(8):\n    print('round', i)\n    print('  more', i)\n    out.append(i)",
    ),
    "comprehensions": (
        "def f(x, y=0):\n    return x * 10 + y\nxs, x = [1, 2, 3, 4], 'outer'",
        "a = [f(x) for x in xs]\nb = [f(x) for x in xs if x % 2]\n"
        "c = [f(x, y) for x in xs for y in range(x)]\n"
        "d = [[f(x, y) for y in xs] for x in xs]\ne = {x: f(x) for x in xs}\ng = {f(x) for x in xs}",
    ),
    "generators": (
        "def f(x):\n    return x * 0.1\nxs = range(20)",
        "total = sum(f(x) for x in xs)\ntop = max((f(x), x) for x in xs)\n"
        "first = any(f(x) > 0.3 for x in xs)\n"
        "text = ','.join(str(f(x)) for x in xs)\ntop",
    ),
    "statements_of_a_body": (
        "out, bad = [], []",
        "for i in range(6):\n    import math\n    try:\n        v = 10 // (i - 3)\n"
        "    except ZeroDivisionError as e:\n"
        "        bad.append((i, str(e)))\n        v = None\n    else:\n        v += 1\n"
        "    finally:\n        w = v\n"
        "    match i % 3:\n        case 0:\n            kind = 'fizz'\n        case _:\n"
        "            kind = str(i)\n"
        "    def g(q):\n        return q + i\n"
        "    out.append((v, kind, math.floor(i / 2), g(1)))\nok = g(100), w, kind",
    ),
    "nothing_to_do": (
        "xs, out, keep = [], [], 'kept'",
        "for x in xs:\n    tmp = x\n    keep = x\n    out.append(tmp)\nelse:\n    ended = True",
    ),
    "targets": (
        "out = []",
        "for (a, [b, *c]), d in [((1, [2, 3, 4]), 5), ((6, [7]), 8)]:\n    out.append((a, b, c, d))",
    ),
    "generator_with_side_effects": (
        (
            "pulled, out = [], []\ndef source(n):\n    for i in range(n):\n"
            "        pulled.append(i)\n        yield i * 10"
        ),
        "for x in source(7):\n    out.append(x + 1)",
    ),
    "iterator_left_over": (
        "import itertools\nit, out = iter(range(100)), []",
        (
            "for a, b in zip(range(5), it):\n    out.append(a * b)\n"
            "for x in itertools.islice(it, 4):\n    out.append(x)\nnxt = next(it)"
        ),
    ),
    "classes": (
        (
            "class T:\n    k = 1\n    def run(self, x):\n        return x + self.k\n"
            "import enum\nclass C(enum.Enum):\n    A = 1\n    B = 2\nmade = []"
        ),
        "for x in range(4):\n    t = T()\n    t.r = t.run(x)\n    made.append((t, C.A if x % 2 else C.B))",
    ),
    "views_of_rows": (
        "import numpy as np\na = np.arange(12.0).reshape(4, 3)",
        "for row in a:\n    row *= 2",
    ),
    "errors": (
        "xs, out, d, total = [5, 4, 0, 2, 1], ['kept'], {}, 1\ndef inv(x):\n    return 20 / x",
        "for i, x in enumerate(xs):\n    d[i] = x\n    q = inv(x)\n    out.append(q)\n    total += x",
    ),
    "dicts_whose_attributes_are_their_items": (
        "class Fields(dict):\n    def __init__(self, **items):\n        super().__init__(items)\n"
        "        self.__dict__ = self\nxs, out = [Fields(a=i) for i in range(4)], []",
        "for x in xs:\n    x.b = x.a * 2\n    x['c'] = x['b'] + 1\n    out.append(Fields(d=x.c))",
    ),
    "finally_reads_what_try_was_to_assign": (
        FAILS_AT_3,
        "for n in range(5):\n    try:\n        v = risky(n)\n    except ValueError:\n        v = 0\n"
        "    finally:\n        w = v\n        print('w', w)\n        out.append(w)",
    ),
    "finally_reads_by_a_helper": (
        FAILS_AT_3 + "\nK = 10\ndef f(x):\n    return x * K",
        "for n in range(5):\n    try:\n        risky(n)\n        K = n\n"
        "    finally:\n        out.append(f(n))",
    ),
    "finally_in_finally": (
        FAILS_AT_3,
        "for n in range(5):\n    try:\n        print('in', n)\n        try:\n            z = risky(n)\n"
        "        finally:\n            print('inner', z)\n            a, b = z, n\n"
        "    finally:\n        print('outer', n)\n        out.append(n)",
    ),
    "finally_raises_itself": (
        FAILS_AT_3,
        "for n in range(5):\n    try:\n        z = risky(n)\n    finally:\n        out.append(1 / (z - 2))",
    ),
    "finally_of_the_first_iteration": (
        FAILS_AT_3,
        "for n in [3]:\n    try:\n        z = risky(n)\n    finally:\n        print('there')\n"
        "        out.append(z)",
    ),
    "elements_with_slots": (
        "class S:\n    __slots__ = ('a', '__b')\n    def __init__(self, a):\n"
        "        self.a, self.__b = a, 0\n"
        "    def bump(self):\n        self.__b += 1\n        return self.__b\nss, out = [S(1), S(2)], []",
        "for s in ss:\n    s.a *= 2\n    out.append(s.bump())\nr = [(s.a, s.bump()) for s in ss]",
    ),
    "rebuilt_in_place": (
        "xs, d, o, kw = [], {}, type('O', (), {})(), {}",
        "for i in range(3):\n    xs = [*xs, i]\n    d = {**d, i: i * 2}\n    setattr(o, f'a{i}', i)\n"
        "    kw.update(**{f'k{i}': i})\nr = vars(o)",
    ),
    "own_exception": (
        (
            "class MyErr(Exception):\n    def __init__(self, row, why):\n"
            "        super().__init__(f'{why} at {row}')\n        self.row = row\nout = []"
        ),
        "for i in range(10):\n    out.append(i)\n    if i == 3:\n        raise MyErr(i, 'negative')",
    ),
    "stop_iteration": (
        "out, it = [], iter([1])",
        "for i in range(3):\n    out.append(i)\n    if i == 1:\n        next(iter([]))",
    ),
    "stop_iteration_in_a_comprehension": ("", "x = [next(iter([])) for i in range(3)]"),
    "stop_iteration_in_a_generator": ("", "x = sum(next(iter([])) for i in range(3))"),
    "annotations": ("out = []", "for i in range(3):\n    j: int = i + 1\n    out.append(j)"),
    "abstract_and_generic_classes": (
        "import abc, typing\nT = typing.TypeVar('T')\nclass A(abc.ABC):\n    @abc.abstractmethod\n"
        "    def f(self): ...\nclass G(typing.Generic[T]):\n    def __init__(self, v):\n        self.v = v\n"
        "class B(A):\n    def f(self):\n        return G(1).v\nclass Meta(type):\n"
        "    def __call__(cls, *a):\n"
        "        made = super().__call__(*a)\n        made.tag = K\n        return made\nK = 5\n"
        "class C(metaclass=Meta):\n    pass\nout = []",
        "for i in range(3):\n    out.append((B().f(), isinstance(B(), A), C().tag, C()))",
    ),
    "reduced_objects": (
        "class R:\n    def __init__(self, v):\n        self.v = v\n"
        "    def __reduce__(self):\n        return R, (self.v,)\n"
        "class S:\n    def __getstate__(self):\n        return {'v': self.v}\n"
        "    def __setstate__(self, s):\n"
        "        self.v = s['v']\nout, r = [], R(1)",
        "for i in range(3):\n    s = S()\n    s.v = i\n    out.append((R(i), s, r))",
    ),
    "an_endless_source": (
        "import itertools\nout = []",
        "for i in itertools.count():\n    out.append(i)\n    if i == 50:\n        raise ValueError(i)",
    ),
    "counters": (
        "done, at, k, out, slots, sizes = 0, 5, 10, [], [0] * 20, {}\ndef seen():\n    return done * 10",
        (
            "for w in 'abcdefg':\n    slots[at] = w\n    at += 1\n    sizes[w] = k\n    k -= 5\n"
            "    sizes[w + w] = k\n    done = done + 1\n    print(f'{done} done', seen())\n"
            "    if done % 2:\n        continue\n    out.append(done)"
        ),
    ),
    "a_counter_before_an_error": (
        "n, out = 0, []",
        "for i in range(9):\n    n += 1\n    print(n)\n    out.append(1 / (i - 4))",
    ),
    "a_counter_behind_an_error": (
        "n, out = 0, [0, 0, 0]",
        "for i in range(9):\n    out[i] = n\n    n += 1",
    ),
    "a_swap_under_a_test": (
        "xs = [3, 1, 2, 5, 4]",
        "for i in range(4):\n    if xs[i] > xs[i + 1]:\n        xs[i], xs[i + 1] = xs[i + 1], xs[i]",
    ),
    "made_on_demand": (
        "counts, groups, out = {'a': 5}, {}, []",
        (
            "for i, w in enumerate('abcabca'):\n    try:\n        counts[w] += 1\n"
            "    except KeyError:\n        counts[w] = 1\n    pair = (i, w)\n    out.append(pair)\n"
            "    try:\n        groups[w, 0].append(pair)\n    except KeyError:\n        groups[w, 0] = [pair]"
        ),
    ),
    "made_on_demand_of_another_kind": (
        "counts = {'a': 'x'}",
        "for w in 'bba':\n    try:\n        counts[w] += 1\n    except KeyError:\n        counts[w] = 1",
    ),
    "writes_in_expressions": (
        "from collections import defaultdict\nd, out, seen, names = defaultdict(list), [], set(), ['t', 'u']",
        (
            "for i in range(8):\n    d[i % 3].append(i) if i % 2 else None\n    i > 3 and out.append(i)\n"
            "    i > 5 or seen.add(i)\n    [out.append(t * n) for n in range(i) if n % 2 for t in names]"
        ),
    ),
    "missing_file": ("out = []", "for x in range(3):\n    out.append(x)\n    open('/missing/file')"),
    "missing_key": ("out = []", "for x in range(3):\n    out.append({}[x, 'a'])"),
    "missing_module": ("out = []", "for x in range(3):\n    import missing_module_x"),
    "bad_text": ("out = []", "for x in range(3):\n    out.append(b'\\xff'.decode())"),
    "failing_source": (
        "out = []\ndef source():\n    yield 1\n    yield 2\n    raise OSError('connection lost')",
        "for x in source():\n    out.append(x)",
    ),
}


@pytest.mark.parametrize("name", [n for n in SAME if n.startswith("finally_") and "helper" not in n])
@pytest.mark.parametrize("options", [{"backend": "threads"}, {"chunk": 1}, {"cached": True}])
def test_finally_of_a_failed_iteration_runs_in_the_kernel_whatever_runs_the_loop(name, options):
    setup, cell = SAME[name]
    plain, tested = new_namespace(setup), new_namespace(setup)
    out, error = serial(plain, cell)

    host, raised, _ = parallel(tested, cell, **options)

    assert type(raised) is type(error)
    assert type(raised.__context__) is type(error.__context__)
    assert describe(tested) == describe(plain)
    assert host.stdout == out


SWALLOWED = {
    "read_behind": "    with Quiet():\n        z = risky(n)\n    out.append(z)",
    "read_where_its_absence_is_swallowed": (
        "    with Quiet():\n        z = risky(n)\n"
        "    try:\n        out.append(z)\n    except Exception:\n        out.append(None)"
    ),
    "read_by_a_helper_behind": (
        "    with Quiet():\n        K = risky(n)\n"
        "    try:\n        print(times_k(n))\n    finally:\n        risky(n)"
    ),
    "deleted_behind": (
        "    with Quiet():\n        z = risky(n)\n    with Quiet():\n        del z\n        out.append(n)"
    ),
}


QUIET = (
    FAILS_AT_3 + "\nK = 2\ndef times_k(x): return x * K\n"
    "class Quiet:\n    def __enter__(self): pass\n    def __exit__(self, *_): return True"
)


@pytest.mark.parametrize("name", SWALLOWED)
@pytest.mark.parametrize("options", [{"chunk": 1}, {"backend": "threads"}, {"cached": True}])
def test_a_value_of_an_earlier_iteration_that_no_worker_has_is_told_as_lost(name, options):
    namespace = new_namespace(QUIET)
    before_it_runs = "backend" in options and "helper" in name  # functions of threads read the live names

    _, error, _ = parallel(namespace, f"for n in range(5):\n{SWALLOWED[name]}", **options)

    if before_it_runs:
        assert isinstance(error, LoopRefused)
        return
    assert isinstance(error, EarlierValueLost)
    assert "lost" in str(error)
    assert namespace["n"] == 2


def test_what_a_with_left_unassigned_and_no_one_reads_is_not_missed():
    cell = "for n in range(5):\n    with Quiet():\n        z = risky(n)\n        out.append(z)"
    plain, tested = new_namespace(QUIET), new_namespace(QUIET)
    serial(plain, cell)

    _, error, _ = parallel(tested, cell)

    assert error is None
    assert describe(tested) == describe(plain)


@pytest.mark.parametrize("name", SAME)
def test_a_loop_leaves_what_the_serial_loop_leaves(name):
    setup, cell = SAME[name]
    plain, tested = new_namespace(setup), new_namespace(setup)
    out, error = serial(plain, cell)

    host, raised, _ = parallel(tested, cell)

    assert type(raised) is type(error) or type(raised).__name__ == type(error).__name__, raised
    assert str(raised) == str(error)
    assert describe(tested) == describe(plain)
    assert host.stdout == out


def test_what_a_generator_prints_comes_before_what_its_iteration_prints():
    setup = (
        "def source(n):\n    for i in range(n):\n        print('draw', i)\n"
        "        yield i\n    print('end')\nout = []"
    )
    cell = "for x in source(6):\n    print('run', x)\n    out.append(x)"
    plain, tested = new_namespace(setup), new_namespace(setup)
    text, _ = serial(plain, cell)

    host, error, _ = parallel(tested, cell)

    assert error is None
    assert host.stdout == text
    assert describe(tested) == describe(plain)


def test_an_exception_that_an_iteration_keeps_shows_where_it_was_raised():
    setup = FAILS_AT_3 + "\nerrors = []"
    cell = "for n in [1, 3]:\n    try:\n        risky(n)\n    except KeyError as e:\n        errors.append(e)"
    plain, tested = new_namespace(setup), new_namespace(setup)
    serial(plain, cell)

    parallel(tested, cell)

    def shown(namespace):
        frames = traceback.extract_tb(without_our_frames(namespace["errors"][0]).__traceback__)
        return [(f.filename, f.name, f.lineno) for f in frames if f.filename in ("<cell>", "<setup>")]

    assert shown(tested) == shown(plain)
    assert len(shown(tested)) == 2


def test_records_of_a_logger_that_does_not_propagate_reach_its_handlers_in_the_kernel():
    setup = (
        "import logging\nheard = []\nclass Heard(logging.Handler):\n    def emit(self, record):\n"
        "        heard.append(record.getMessage())\nlog = logging.getLogger('of_a_loop')\n"
        "log.handlers[:] = [Heard()]\nlog.setLevel('INFO')\nlog.propagate = False"
    )
    namespace = new_namespace(setup)

    _, error, _ = parallel(namespace, "for i in range(3):\n    log.info('at %d', i)")

    assert error is None
    assert namespace["heard"] == ["at 0", "at 1", "at 2"]


def test_a_memory_map_opened_for_writing_is_shared(tmp_path):
    namespace = new_namespace("import numpy as np\nfill = np.ndarray.fill")
    namespace["m"] = np.memmap(tmp_path / "data", np.float64, "w+", shape=(4, 3))

    _, error, _ = parallel(namespace, "for i in range(4):\n    fill(m[i], i + 1)")

    assert error is None
    assert namespace["m"][:, 0].tolist() == [1, 2, 3, 4]
    del namespace["m"]


def test_figures_of_iterations_are_shown_here():
    pytest.importorskip("matplotlib")
    namespace = new_namespace("import matplotlib\nmatplotlib.use('agg')\nimport matplotlib.pyplot as plt")
    cell = (
        "for i in range(3):\n    fig, ax = plt.subplots()\n    ax.set_title(str(i))\n"
        "    if i == 1:\n        plt.show()"
    )

    host, error, _ = parallel(namespace, cell)

    assert error is None
    assert [objects[0].axes[0].get_title() for objects in host.shown] == ["1", "0", "2"]
    assert namespace["plt"].get_fignums() == []


DRAWING = {
    "one axes": (
        "fig, ax = plt.subplots()",
        "for i in range(4):\n    y = np.arange(3) ** i\n    ax.plot(y, label=f'{i}')\n    y[0] = 9\n"
        "    ax.text(0, i, 't', transform=ax.transAxes)\nax.legend()",
    ),
    "axes of the same cell": (
        "",
        "fig, axes = plt.subplots(1, 3)\nfor i in range(3):\n    axes[i].bar([1, 2], [i, 3])\n"
        "    axes.flat[i].set_title(str(i))",
    ),
    "an error while drawing": (
        "fig, ax = plt.subplots()",
        "for i in range(6):\n    ax.plot([i, 2, 3], [1, 2] if i == 3 else [1, 2, 3])",
    ),
}


@pytest.mark.parametrize("name", DRAWING)
def test_axes_from_outside_are_drawn_into_as_by_the_serial_loop(name, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    setup, cell = DRAWING[name]
    shown = []
    for run in (serial, parallel):
        namespace = new_namespace(f"import matplotlib.pyplot as plt, numpy as np\n{setup}")
        error = run(namespace, cell)[1]
        found = [
            (
                *(ax.get_title(), len(ax.patches), len(ax.texts), ax.get_legend() is not None),
                *((line.get_label(), line.get_xydata().tolist()) for line in ax.lines),
            )
            for ax in namespace["fig"].axes
        ]
        shown.append((type(error), str(error), found, namespace["i"]))
        pyplot.close(namespace["fig"])

    assert shown[1] == shown[0]
    assert any(any(part) for part in shown[0][2])


LARGE = {
    "the last one": "for i in range(6):\n    X = np.full(200_000, float(i))\n    out.append(X.sum())",
    "shared with a result": "for i in range(6):\n    X = np.full(200_000, float(i))\n    out.append(X)",
    "with a view of it": "for i in range(6):\n    X = np.full(200_000, float(i))\n    Y = X[::2]",
    "of a broadcast array": "for i in range(6):\n    X = base\n    Y = base[1:]",
    "before an error": (
        "for i in range(6):\n    X = np.full(200_000, float(i))\n    if i == 3:\n        1 / 0\n    Y = X + 1"
    ),
    "assigned now and then": "for i in range(6):\n    if i % 4 == 0:\n        X = np.full(200_000, float(i))",
    "given up": "for i in range(6):\n    X = np.full(200_000, float(i))\ndel X",
}


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("name", LARGE)
def test_a_large_temporary_keeps_its_last_value(name, jobs):
    setup = "import numpy as np\nout, base = [], np.zeros(200_000)"
    plain, tested = new_namespace(setup), new_namespace(setup)
    _, error = serial(plain, LARGE[name])

    host, raised, _ = parallel(tested, LARGE[name], jobs=jobs)

    assert type(raised) is type(error)
    assert host.notes == []
    for key in ("X", "Y"):
        assert (key in tested) is (key in plain)
        if key in plain:
            assert np.array_equal(tested[key], plain[key])
            assert tested[key].flags.writeable
    assert [o is tested.get("X") for o in tested["out"]] == [o is plain.get("X") for o in plain["out"]]
    assert (tested.get("X") is tested["base"]) is (plain.get("X") is plain["base"])


def lines_shown(error: BaseException) -> list[tuple[str, str, int]]:
    """File, function and line of every frame that a user would see, but for those of the tests."""
    frames = traceback.extract_tb(without_our_frames(error).__traceback__)
    return [(f.filename, f.name, f.lineno) for f in frames if f.filename in ("<cell>", "<setup>")]


@pytest.mark.parametrize(
    "cell",
    [
        "for i in range(6):\n    y = f(i)",
        "for i in range(6):\n    a[i] = i",
        "def g():\n    yield 1\n    raise KeyError('g')\nfor i in g():\n    y = i",
        "for i in undefined:\n    y = i",
    ],
)
def test_a_traceback_shows_the_lines_of_the_serial_one_and_none_of_ours(cell):
    setup = "a = [0, 0]\ndef f(x):\n    if x == 3:\n        raise ValueError('bad')\n    return x"
    plain, tested = new_namespace(setup), new_namespace(setup)
    _, error = serial(plain, cell)

    _, raised, _ = parallel(tested, cell)

    assert error is not None
    assert raised is not None
    assert lines_shown(raised) == lines_shown(error)
    assert not [f for f in traceback.extract_tb(raised.__traceback__) if "ipyparcache" in f.filename]


RISKY = """
from collections import defaultdict
import heapq, types
import numpy as np
def risky(x):
    if x == 3:
        raise ValueError(x)
    return x
def many(x):
    return [risky(x)]
lists, counts, heaps, sets = defaultdict(list), defaultdict(int), defaultdict(list), defaultdict(set)
tables = defaultdict(lambda: defaultdict(int))
plain, rows, made, state, arr = {0: [], 1: []}, [[], [], []], {}, types.SimpleNamespace(), np.zeros(3)
"""


@pytest.mark.parametrize("options", [{"chunk": 1}, {"backend": "threads"}], ids=["processes", "threads"])
@pytest.mark.parametrize(
    "statement",
    [
        "lists[i].append(risky(i))",
        "lists[i] += many(i)",
        "counts[i % 2 + i] -= risky(i)",
        "counts[i] = counts[i] + risky(i)",
        "counts[i] = risky(i) + counts[i]",
        "counts[i] = max(counts[i], risky(i))",
        "tables[i][risky(i)] += 1",
        "tables[i][risky(i)] = 1",
        "tables[i + 1][i * 2] += risky(i)",
        "tables[risky(i)][i] = i",
        "heapq.heappush(heaps[i], risky(i))",
        "lists[(j := i + 1)].append((i := risky(j)))",
        "made.setdefault(i + 1, []).append(risky(i))",
        "made.setdefault(i, {}).setdefault(risky(i), []).append(i)",
        "del tables[i][risky(i)]",
        "plain[i].append(risky(i + 1))",
        "rows[i].append(risky(i))",
        "arr[i:i + 1] += risky(i)",
        "arr[i] += risky(i)",
        "state.log.append(risky(i + 3))",
        "lists[i].extend(risky(v) for v in range(i, i + 3))",
        "rows += map(risky, range(i, i + 3))",
        "sets[str(i)].update(risky(v) for v in range(i, i + 3))",
        "made.update(((v, risky(v)) for v in range(i, i + 3)), a=1)",
    ],
)
def test_what_comes_before_an_operand_that_raises_has_happened(statement, options):
    plain, tested = new_namespace(RISKY), new_namespace(RISKY)
    cell = f"for i in range(6):\n    {statement}"
    _, error = serial(plain, cell)

    _, raised, _ = parallel(tested, cell, **options)

    assert error is not None
    assert (type(raised), str(raised)) == (type(error), str(error))
    assert describe(tested) == describe(plain)


SEEDING = {
    "itself": "    np.random.seed(i)\n    random.seed(i)\n",
    "by_a_function": "    seed_everything(i)\n",
}


@pytest.mark.parametrize("how", SEEDING)
@pytest.mark.parametrize("ends", ["", "    assert i < 3\n"])
def test_global_generators_that_a_body_seeds_are_left_as_the_last_iteration_leaves_them(how, ends):
    setup = (
        "import random\nimport numpy as np\nout = []\n"
        "def seed_everything(s):\n    random.seed(s)\n    np.random.seed(s)"
    )
    cell = f"for i in range(5):\n{SEEDING[how]}    out.append((np.random.rand(), random.random()))\n{ends}"
    after = "next_ones = np.random.rand(), random.random()"
    plain, tested = new_namespace(setup), new_namespace(setup)
    serial(plain, cell)
    serial(plain, after)

    parallel(tested, cell)
    serial(tested, after)

    assert describe(tested) == describe(plain)


def test_an_else_runs_once_behind_a_loop_that_had_to_run_in_the_kernel():
    setup = "import random\nrng = random.Random(0)\nout, ended = [], []"
    cell = "n = 3\nfor i in range(n):\n    out.append(rng.random())\nelse:\n    ended.append(i)"
    plain, tested = new_namespace(setup), new_namespace(setup)
    serial(plain, cell)

    host, _, _ = parallel(tested, cell)

    assert "ran here" in "".join(host.notes)
    assert describe(tested) == describe(plain)


def test_functions_that_the_cell_itself_defines_may_read_what_the_loop_counts():
    setup = "k = 0\nout = []"
    cell = "def tens():\n    return k * 10\nfor c in range(5):\n    k = c\n    out.append(tens())"
    plain, tested = new_namespace(setup), new_namespace(setup)
    serial(plain, cell)

    host, _, _ = parallel(tested, cell)

    assert not host.notes
    assert describe(tested) == describe(plain)


def test_a_value_behind_the_else_of_a_loop_is_not_shown_as_that_of_the_cell():
    namespace = new_namespace("out = []")

    parallel(namespace, "for i in range(3):\n    out.append(i)\nelse:\n    out")

    assert namespace["out"] == [0, 1, 2]
    assert "_" not in namespace


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    ("taken", "used"),
    [
        ("import xml.sax.saxutils", "xml.sax.saxutils.escape(x)"),
        ("import xml.sax.saxutils\ndef safe(x):\n    return xml.sax.saxutils.escape(x)", "safe(x)"),
        ("import email.mime.text, email.mime.image", "email.mime.text.MIMEText(x).get_payload()"),
    ],
)
def test_a_module_of_a_package_is_there_if_only_the_package_has_a_name(taken, used, at_once):
    cell = f"for x in '<a>':\n    out.append({used})"
    before, cell = ("out = []", f"{taken}\n{cell}") if at_once else (f"out = []\n{taken}", cell)
    plain, tested = new_namespace(before), new_namespace(before)
    serial(plain, cell)

    _, error, _ = parallel(tested, cell)

    assert error is None
    assert tested["out"] == plain["out"]
