"""Random loop bodies of recognised and forbidden forms: equal to the serial loop, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipyparcache.cells.replay import ELEMENT_AS_BEFORE
from ipyparcache.errors import ChangeLost, LoopRefused
from tests.cells.sessions import describe, new_namespace, parallel, serial

SETUP = """
import numpy as np
from collections import defaultdict
K = 3
cfg = {'a': 1, 'b': [2]}
out, more, ref, names = [], ['x'], [0], {}
d, g, s = {}, {}, set()
lists, counts = defaultdict(list), defaultdict(lambda: defaultdict(int))
import sys
n0, short, seen = 3, [0, 0, 0], set()
total, prod, best, where, text, flag = 0.5, 1.0, None, None, '', False
arr, mat, row = np.zeros(12), np.arange(24.0).reshape(12, 2), np.ones(2)
xs, words, pairs = [3, 1, 4, 1, 5, 9, 2, 6], 'to be or not to be'.split(), [(1, 'a'), (2, 'b'), (3, 'c')]
class P:
    made = []
    def __init__(self, v):
        self.v = v
        self.log = []
    def bump(self, n):
        self.v += n
        return self.v
objs, shared = [P(i) for i in range(4)], P(100)
rows = [[i, -i] for i in range(4)]
def f(x):
    return x * K + 0.1
def peek():
    return len(out)
def deep(x, n=2):
    return x if n == 0 else deep(x, n - 1) + 1
def risky(x):
    if x == 4:
        raise ValueError(f'bad {x}')
    return x
import contextlib, heapq
heap, ids = [], {}
class Quiet:
    def __enter__(self):
        return self
    def __exit__(self, *_):
        return True
@contextlib.contextmanager
def told():
    try:
        yield K
    finally:
        print('told', K)
class Fields(dict):
    def __init__(self, **items):
        super().__init__(items)
        self.__dict__ = self
fields = [Fields(v=i) for i in range(4)]
"""

ITERABLES = {
    "i": [
        "range(6)",
        "range(5, 0, -2)",
        "xs",
        "set([2, 5])",
        "(v for v in xs)",
        "[]",
        "iter(xs)",
        "range(-1, 3)",
    ],
    "(n, w)": ["enumerate(words)", "pairs", "list(zip(xs, words))", "dict(pairs).items()"],
    "p": ["objs", "objs[1:]", "[P(7), P(8)]"],
    "r": ["rows", "mat[:4]", "[[0]] * 2"],
    "g2": ["fields", "fields[::-1]"],
}

SIMPLE = [
    "out.append({e})",
    "out.extend([{e}, {e}])",
    "more += [{e}]",
    "d[{k}] = {e}",
    "d[{k}] = d.get({k}, 0) + 1",
    "g.setdefault({k}, []).append({e})",
    "g.setdefault({k}, []).append(risky({k}))",
    "lists[{k}].append(risky({k}))",
    "lists[{k}].extend(risky(v) for v in range({k}))",
    "counts[{k}][risky({k})] += {e}",
    "counts[{k}][risky({k})] = {e}",
    "s.add({k})",
    "total += {e}",
    "total = total + {e}",
    "prod *= 1.5",
    "text += str({e})",
    "text = str({k}) + text",
    "tmp = {e}",
    "tmp = [{e}, cfg]",
    "a, *b = {e}, {k}, 3",
    "print({e})",
    "print('x', end='')",
    "arr[{i}] = {e}",
    "arr[{i}] += 1",
    "mat[{i}] = {e}",
    "mat[{i}, 0] = mat[{i}, 1] * 2",
    "names[{k}] = tmp",
    "out.append(tmp)",
    "ref[0] = {e}",
    "ref[0] += 1",
    "best = {e}",
    "flag = not flag",
    "where = {k}",
    "cfg['a'] = {e}",
    "alias = more; alias.append({e})",
    "shared.v = {e}",
    "shared.bump(1)",
    "out.append(peek())",
    "out.append(len(more))",
    "del tmp",
    "row[0] = {e}",
    "xs.append({e})",
    "K = {k}",
    "q = f({e})",
    "z = risky({k})",
    "import math; m = math.floor(2.5)",
    "h = lambda t, u={k}: t + u",
    "x, y = {e}, {e}",
    "ys = [v * 2 for v in range({k})]",
    "(w2 := {e})",
    "shared.log.append({e})",
    "lists[{k}].append({e}) if {k} % 2 else None",
    "{k} % 2 and out.append({e})",
    "[out.append(v) for v in range({k})]",
    "y = more.append({e})",
    "n0 += 1",
    "n0 += 1; print(n0)",
    "out.append(n0); n0 = n0 + 2",
    "out.append(1 / ({k} - 3))",
    "short[{k}] = {e}",
    "print(short[{k}])",
    "seen = seen | {{k}}",
    "d.pop({k}, None)",
    "del d[{k}]",
    "arr[{k}:{k} + 2] += {e}",
    "print({e}, file=sys.stderr)",
    "assert {k} != 4, 'four'",
    "heapq.heappush(heap, {e})",
    "if len(heap) > 2: heapq.heappop(heap)",
    "least = heapq.heappop(heap)",
    "ids[len(ids)] = {e}",
    "if {k} in ids: del ids[{k}]",
    "if {e} not in ids: ids[{e}] = len(ids)",
    "fields[0].v = {e}",
    "tmp = Fields(v={e})",
    "(out if {k} % 2 else more).append({e})",
    "where = {k} if where is None else where",
    "best = {e} if best is None or best < {e} else best",
    "tmp = {e} if {k} % 2 else tmp",
    "for p2 in objs: p2.v += 1",
    "for p2 in objs: out.append(p2.v)",
    "for r2 in rows: r2.append({e})",
]
#: What may stand above the loop in its cell.
ABOVE = ["", "first = 1", "best, n0 = None, 4", "more = out", "tmp = cfg"]

OF_ELEMENT = {
    "p": [
        "p.v += 1",
        "p.log.append(1)",
        "p.bump(2)",
        "out.append(p)",
        "p.extra = cfg",
        "names[p.v] = p",
        "tmp = p.v",
    ],
    "r": ["r[0] = 5", "r[1] += 1", "out.append(r)", "tmp = r[0]", "more.append(list(r))"],
    "i": ["i = i + 1", "out.append(i)"],
    "g2": ["g2.v += 1", "g2['w'] = K", "g2.u = g2['v']", "out.append(g2)", "names[g2.v] = g2"],
    "(n, w)": ["out.append((n, w))", "d[w] = n", "w = str(w) * 2"],
}

KEYS = {
    "g2": ["1", "g2.v"],
    "i": ["i", "i % 3", "2"],
    "(n, w)": ["n", "n % 2"],
    "p": ["1", "3"],
    "r": ["0", "2"],
}
VALUES = {
    "i": ["i", "i * 0.3", "f(i)", "deep(i)", "xs[i % 3]", "cfg['a']"],
    "(n, w)": ["n", "n + 0.5", "f(n)", "K"],
    "p": ["p.v", "f(p.v)", "shared.v", "K"],
    "r": ["r[0]", "r[1] * 0.5", "K"],
    "g2": ["g2.v", "f(g2['v'])", "K"],
}


@st.composite
def cells(draw: st.DrawFn) -> str:
    target = draw(st.sampled_from(sorted(ITERABLES)))
    iterable = draw(st.sampled_from(ITERABLES[target]))

    def fill(form: str) -> str:
        while "{e}" in form:
            form = form.replace("{e}", draw(st.sampled_from(VALUES[target])), 1)
        key = draw(st.sampled_from(KEYS[target]))
        return form.replace("{k}", key).replace("{i}", key)

    def simple() -> str:
        own = draw(st.integers(0, 3)) == 0
        return fill(draw(st.sampled_from(OF_ELEMENT[target] if own else SIMPLE)))

    def block(depth: int, indent: str) -> list[str]:
        lines: list[str] = []
        for _ in range(draw(st.integers(1, 3))):
            kind = draw(st.integers(0, 12)) if depth else 0
            if kind < 6:
                lines += [indent + part for part in simple().split("; ")]
            elif kind == 6:
                lines += [f"{indent}if {fill('{k}')} % 2:", *block(depth - 1, indent + "    ")]
                if draw(st.booleans()):
                    lines += [f"{indent}else:", *block(depth - 1, indent + "    ")]
            elif kind == 7:
                lines += [f"{indent}for j in range(2):", *block(depth - 1, indent + "    ")]
            elif kind == 8:
                lines += [f"{indent}try:", *block(depth - 1, indent + "    ")]
                lines += [
                    f"{indent}except (ValueError, ZeroDivisionError, TypeError, KeyError) as e:",
                    *block(0, indent + "    "),
                ]
            elif kind == 9:
                value = fill("{e}")
                lines += [f"{indent}if best is None or {value} > best:", f"{indent}    best = {value}"]
                more = [
                    "",
                    "where = {k}",
                    "print('best', best)",
                    "print(f'{best} {tmp}', end='')",
                    "tmp = xs[{k}]",
                ]
                form = draw(st.sampled_from(more))
                form = form.replace("{k}", draw(st.sampled_from(KEYS[target])))
                lines += [f"{indent}    {form}"] if form else []
                lines += [f"{indent}else:", f"{indent}    print('not')"] if draw(st.booleans()) else []
            elif kind == 10:
                lines += [
                    f"{indent}if {fill('{k}')} == 1:",
                    f"{indent}    {draw(st.sampled_from(['continue', 'break', 'pass']))}",
                ]
            elif kind == 11:
                manager = draw(st.sampled_from(["Quiet()", "told()", "told() as tmp"]))
                lines += [f"{indent}with {manager}:", *block(depth - 1, indent + "    ")]
            else:
                lines += [
                    f"{indent}try:",
                    *block(0, indent + "    "),
                    f"{indent}finally:",
                    *block(0, indent + "    "),
                ]
        return lines

    body = block(2, "    ")
    after = draw(
        st.sampled_from(
            ["", "end = len(out)", "again = [f(v) for v in xs]", "for v in range(2):\n    out.append(v)"]
        )
    )
    above = draw(st.sampled_from(ABOVE))
    above += "\n" if above else ""
    return f"{above}for {target} in {iterable}:\n" + "\n".join(body) + ("\n" + after if after else "")


def check(cell: str, **options: Any) -> str:
    plain, tested = new_namespace(SETUP), new_namespace(SETUP)
    before = describe(tested)

    host, raised, _ = parallel(tested, cell, **options)

    # Not to be run serially: a loop that lengthens the list it walks is refused, and never ends.
    if isinstance(raised, LoopRefused):
        above, _, _ = cell.partition("for ")  # has run where only an element showed the reason
        serial(plain, above)
        assert describe(tested) in (before, describe(plain)), f"a refused cell has changed something:\n{cell}"
        assert "line" in str(raised)
        return "refused"
    if isinstance(raised, ChangeLost):
        return "lost"
    text, error = serial(plain, cell)
    if any("in place stay" in note for note in host.notes):
        return "told"  # threads: what later iterations did to their elements
    if ELEMENT_AS_BEFORE in getattr(raised, "__notes__", ()):
        return "told"
    assert type(raised).__name__ == type(error).__name__, f"{cell}\n{error!r} | {raised!r}"
    was, now = describe(plain), describe(tested)
    for name in sorted(was | now):
        assert was.get(name) == now.get(name), f"{cell}\n{name}: {was.get(name)} | {now.get(name)}"
    assert host.stdout == text, f"{cell}\n{text!r} | {host.stdout!r}"
    return "ran"


OPTIONS: list[dict[str, Any]] = [
    *({"jobs": jobs, "chunk": chunk} for jobs in (1, 2, 3) for chunk in (None, 1, 3)),
    *({"backend": "threads", "chunk": chunk} for chunk in (None, 4)),
    {"cached": True},
]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(cells())
def test_generated_loops_leave_what_the_serial_loop_leaves(cell):
    check(cell)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(cells(), st.sampled_from(OPTIONS))
def test_thousands_of_generated_loops_leave_what_the_serial_loop_leaves(cell, options):
    check(cell, **options)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(cells())
def test_generated_loops_found_in_the_store_leave_what_the_serial_loop_leaves(cell):
    check(cell, cached=True)
    check(cell, cached=True)
