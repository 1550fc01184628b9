"""The refusals of fifteen common loops, each with the rewrite that its text tells to type, executed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ipyparcache.errors import LoopRefused
from tests.cells.sessions import new_namespace, parallel, serial


@dataclass(frozen=True)
class Case:
    """A refused cell, what its refusal must say, and cells that do the same; `*` is %%parallel."""

    setup: str
    cell: str
    says: str
    rewrite: tuple[str, ...]
    same: tuple[str, ...]


CASES = {
    "break": Case(
        "xs = [3, 8, 12, 20]\ndef test(x):\n    return x > 10\nfound = None",
        "for x in xs:\n    if test(x):\n        found = x\n        break",
        "hits = [x for x in xs if test(x)]",
        ("*hits = [x for x in xs if test(x)]", "found = hits[0] if hits else None"),
        ("found",),
    ),
    "previous value": Case(
        "xs = [1, 4, 9]\nprev = 0\ndiffs = []",
        "for x in xs:\n    diffs.append(x * x - prev)\n    prev = x * x",
        "a second loop over that list",
        (
            "*squares = []\nfor x in xs:\n    squares.append(x * x)",
            "for s in squares:\n    diffs.append(s - prev)\n    prev = s",
        ),
        ("diffs", "prev"),
    ),
    "running total": Case(
        "xs = [1, 2, 3]\ntotal, cum = 0, []",
        "for x in xs:\n    total += x\n    cum.append(total)",
        "itertools.accumulate(parts)",
        (
            "*parts = []\nfor x in xs:\n    parts.append(x)",
            "import itertools\ncum = list(itertools.accumulate(parts))\ntotal = cum[-1]",
        ),
        ("cum", "total"),
    ),
    "container read and written": Case(
        "a = [1, 2, 3, 4]",
        "for i in range(1, len(a)):\n    a[i] = a[i] + a[0]",
        "new_a = []",
        ("new_a = [a[0]]", "*for i in range(1, len(a)):\n    new_a.append(a[i] + a[0])", "a = new_a"),
        ("a",),
    ),
    "columns of a table": Case(
        "import pandas as pd\ndf = pd.DataFrame({'a': [1.0, 2.0], 'b': [3.0, 5.0], 'k': [0, 0]})",
        "for c in ['a', 'b']:\n    df[c + '_rank'] = df.groupby('k')[c].rank()\ntable = df.to_dict()",
        "new_df = df.copy()",
        (
            "new_df = df.copy()",
            "*for c in ['a', 'b']:\n    new_df[c + '_rank'] = df.groupby('k')[c].rank()",
            "df = new_df\ntable = df.to_dict()",
        ),
        ("table",),
    ),
    "flag set in a branch": Case(
        "xs = [1, -1, 2]\nsign, out = 0, []",
        "for x in xs:\n    if x:\n        sign = 1 if x > 0 else -1\n    out.append(sign * x)",
        "assign it at the top of the body",
        ("*for x in xs:\n    sign = 1 if x > 0 else -1\n    out.append(sign * x)",),
        ("out", "sign"),
    ),
    "pop": Case(
        "stack, out = [1, 2, 3], []",
        "for _ in range(3):\n    x = stack.pop()\n    out.append(x * x)",
        "Loop over the elements of `stack`",
        ("*for x in reversed(stack):\n    out.append(x * x)", "stack.clear()"),
        ("out", "stack", "x"),
    ),
    "alias": Case(
        "table = [[0], [0]]",
        "for i in range(2):\n    row = table[1 - i]\n    row[0] = i + 1",
        "Write through the outer name itself (`table[...] = ...`",
        ("*for i in range(2):\n    table[1 - i][0] = i + 1",),
        ("table",),
    ),
    "function that fills its argument": Case(
        "out = []\ndef add(where, x):\n    where.append(x * x)",
        "for x in range(3):\n    add(out, x)",
        "Let `add` return what it would have put into `out`",
        ("def add(x):\n    return x * x", "*for x in range(3):\n    out.append(add(x))"),
        ("out",),
    ),
    "function with a global counter": Case(
        "n = 0\ndef count(x):\n    global n\n    n += x\n    return x",
        "for x in range(4):\n    y = count(x)",
        "`n += ...`",
        ("def count(x):\n    return x", "*for x in range(4):\n    y = count(x)\n    n += y"),
        ("n", "y"),
    ),
    "memo in a dict": Case(
        "memo, out = {}, []\ndef f(x):\n    if x not in memo:\n        memo[x] = x * x\n    return memo[x]",
        "for x in [1, 2, 1]:\n    out.append(f(x))",
        "functools.lru_cache",
        (
            "import functools\n@functools.lru_cache\ndef f(x):\n    return x * x",
            "*for x in [1, 2, 1]:\n    out.append(f(x))",
        ),
        ("out",),
    ),
    "helper that reads the loop's name": Case(
        "scale, out = 2, []\ndef f():\n    return scale * 10",
        "for x in range(3):\n    out.append(f())\n    scale = x",
        "Keep only what needs no earlier iteration|Hand `scale` to `f` as an argument",
        ("for x in range(3):\n    out.append(f())\n    scale = x",),
        ("out", "scale"),
    ),
    "the list it loops over": Case(
        "xs = [1, 2, 3]",
        "for x in xs:\n    if x > 2:\n        xs.remove(x)",
        "list(xs)",
        ("*for x in list(xs):\n    if x > 2:\n        xs.remove(x)",),
        ("xs",),
    ),
    "elements changed by their numbers": Case(
        "rows = [{'n': 1}, {'n': 2}]",
        "for i, r in enumerate(rows):\n    rows[i].setdefault('tags', []).append(r['n'] * 2)",
        "for i in range(len(rows)):",
        ("*for i in range(len(rows)):\n    rows[i].setdefault('tags', []).append(rows[i]['n'] * 2)",),
        ("rows",),
    ),
    "environment": Case(
        "import os\nout = []",
        "for x in range(2):\n    os.environ['LOOPS_REWRITE'] = 'a'\n"
        "    out.append(os.environ['LOOPS_REWRITE'])",
        "once in front of the loop",
        (
            "os.environ['LOOPS_REWRITE'] = 'a'",
            "*for x in range(2):\n    out.append(os.environ['LOOPS_REWRITE'])",
            "del os.environ['LOOPS_REWRITE']",
        ),
        ("out",),
    ),
    "open file": Case(
        "import tempfile\nfile, out = tempfile.TemporaryFile('w+'), []",
        "for x in range(2):\n    out.append(print(x, file=file))",
        "Make it inside of the loop body",
        (
            "file.close()",
            "*for x in range(2):\n    with tempfile.TemporaryFile('w+') as mine:\n"
            "        out.append(print(x, file=mine))\ndel mine",
        ),
        ("out",),
    ),
    "iterator taken from": Case(
        "from itertools import islice\nrest, out = iter(range(9)), []",
        "for n in range(3):\n    out.append(sum(islice(rest, 3)))",
        "items = list(rest)",
        ("items = list(rest)", "*for n in range(3):\n    out.append(sum(items[3 * n : 3 * n + 3]))"),
        ("out",),
    ),
    "generator for another function": Case(
        "def table(rows):\n    return list(rows)",
        "made = table(x * x for x in range(4))",
        "table([",
        ("*made = table([x * x for x in range(4)])",),
        ("made",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_rewrite_of_a_refusal_does_what_the_cell_does(name):
    case = CASES[name]
    plain, refused, rewritten = (new_namespace(case.setup) for _ in range(3))
    serial(plain, case.cell)
    if "os" in plain:
        plain["os"].environ.pop("LOOPS_REWRITE", None)

    _, error, _ = parallel(refused, case.cell)
    for cell in case.rewrite:
        run = parallel(rewritten, cell[1:]) if cell.startswith("*") else serial(rewritten, cell)
        assert run[1] is None, run[1]

    assert isinstance(error, LoopRefused)
    assert any(part in str(error) for part in case.says.split("|")), str(error)
    assert {key: rewritten[key] for key in case.same} == {key: plain[key] for key in case.same}
    for namespace in (plain, refused, rewritten):
        if "file" in namespace:
            namespace["file"].close()


PAGE = Path(__file__).parents[2] / "docs" / "refusals.md"


def page() -> str:
    """The page of the documentation that shows these cases; written anew by running this file."""
    text = [
        "# What `%%parallel` refuses, and what to type instead",
        "",
        "A loop is refused before any line of its cell has run, if its iterations depend on each other or",
        "would change something that only the kernel has. The tests run each case below: the cell, its",
        "refusal, and the rewrite.",
    ]
    for name, case in CASES.items():
        _, error, _ = parallel(namespace := new_namespace(case.setup), case.cell)
        if "file" in namespace:
            namespace["file"].close()
        text += [
            "",
            f"## {name.capitalize()}",
            "",
            "```python",
            "%%parallel",
            *case.cell.splitlines(),
            "```",
            "",
        ]
        text += [f"> {line}" for line in str(error).splitlines()]
        for cell in case.rewrite:
            magic = ["%%parallel"] if cell.startswith("*") else []
            text += ["", "```python", *magic, *cell.removeprefix("*").splitlines(), "```"]
    return "\n".join(text) + "\n"


def test_the_documentation_shows_the_refusals_as_they_are():
    shown = page().replace("'TextIOWrapper' instances", "'_io.TextIOWrapper' object")  # from Python 3.12 on

    assert PAGE.read_text(encoding="utf-8") == shown


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
