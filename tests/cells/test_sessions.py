"""Sessions such as people have, played plain and in automatic mode: cold, warm, and after edits."""

import gc
import shutil
import sys
import textwrap

import pytest

from ipyparcache import last_run, magics
from ipyparcache.cells import runs
from ipyparcache.digest.objects import digest_of
from ipyparcache.errors import Undigestible
from ipyparcache.kernel.namespace import user_bindings

# Each session: its cells, and edits (number of the cell, what is replaced by what).
SESSIONS = {
    "cleaning a table": (
        [
            "import numpy as np, pandas as pd",
            """
            raw = pd.DataFrame({"name": [" Ann", "bob ", None, "Cid"], "age": ["31", "x", "40", "22"],
                                "city": ["Oslo", "oslo", "Rome", None]})
            """,
            """
            def tidy(text):
                return text.strip().title() if isinstance(text, str) else "Unknown"
            """,
            """
            df = raw.copy()
            df["name"] = df["name"].map(tidy)
            df["age"] = pd.to_numeric(df["age"], errors="coerce")
            df.city = df.city.str.title()
            """,
            "df.dropna(subset=['age'], inplace=True)\ndf['old'] = df.age > 30",
            "by_city = df.groupby('city', dropna=False).age.agg(['mean', 'count'])\nby_city",
            "print(len(raw), '->', len(df))\ndf.describe()",
        ],
        [(2, "Unknown", "Nobody"), (4, "> 30", "> 35"), (1, '"22"', '"23"')],
    ),
    "classes and inheritance": (
        [
            """
            class Account:
                rate = 0.02
                def __init__(self, owner, balance=0):
                    self.owner, self.balance, self.log = owner, balance, []
                def deposit(self, x):
                    self.balance += x
                    self.log.append(("deposit", x))
                    return self
                def year(self):
                    return self.deposit(self.balance * self.rate)
            """,
            """
            class Savings(Account):
                rate = 0.05
                def __repr__(self):
                    return f"<{self.owner}: {self.balance:.2f}>"
            """,
            "accounts = [Account('a', 100), Savings('b', 200)]\nbest = accounts[1]",
            "for account in accounts:\n    account.year()",
            "best",
            "total = sum(account.balance for account in accounts)\nlogs = {a.owner: a.log for a in accounts}",
        ],
        [(1, "0.05", "0.06"), (2, "200", "250"), (0, '"deposit", x', '"paid", x')],
    ),
    "a simulation with a seed": (
        [
            "import numpy as np, random",
            "random.seed(3)\nnp.random.seed(4)\nrng = np.random.default_rng(5)",
            "walk = np.cumsum(rng.normal(size=500))",
            "coin = [random.choice('HT') for _ in range(20)]\nnoise = np.random.rand(3)",
            "peaks = [i for i in range(1, len(walk) - 1) if walk[i - 1] < walk[i] > walk[i + 1]]",
            "print('peaks', len(peaks), 'heads', coin.count('H'))\nrng.integers(100), random.random()",
        ],
        [(1, "seed(3)", "seed(7)"), (2, "500", "400")],
    ),
    "fitting a model in place": (
        [
            """
            import numpy as np
            from sklearn.linear_model import Ridge
            from sklearn.preprocessing import StandardScaler
            """,
            "X = np.arange(40.0).reshape(20, 2) % 7\ny = X @ [1.0, -2.0] + 3",
            "scaler = StandardScaler()\nmodel = Ridge(alpha=0.1)\nboth = {'scaler': scaler, 'model': model}",
            "Z = scaler.fit_transform(X)",
            "model.fit(Z, y)\nscore = model.score(Z, y)",
            "print(f'{score:.6f}')\nboth['model'].coef_.round(3).tolist()",
        ],
        [(2, "0.1", "10.0"), (1, "% 7", "% 5")],
    ),
    "files in and out": (
        [
            "import json, os, pathlib, csv",
            """
            pathlib.Path('in').mkdir(exist_ok=True)
            for n in range(3):
                pathlib.Path(f'in/{n}.csv').write_text(f'k,v\\na,{n}\\n')
            """,
            """
            rows = []
            for path in sorted(pathlib.Path("in").glob("*.csv")):
                with open(path, newline="") as handle:
                    rows += list(csv.DictReader(handle))
            """,
            "summary = {'n': len(rows), 'sum': sum(int(r['v']) for r in rows)}",
            "with open('summary.json', 'w') as handle:\n    json.dump(summary, handle)",
            "with open('summary.json') as handle:\n    back = json.load(handle)\nback",
        ],
        [(1, "range(3)", "range(4)"), (3, "'n': len(rows)", "'count': len(rows)")],
    ),
    "text and counters": (
        [
            "from collections import Counter, defaultdict\nimport re",
            "text = 'the cat and the dog and the bird'",
            "words = re.findall(r'\\w+', text)\ncounts = Counter(words)",
            """
            index = defaultdict(list)
            for position, word in enumerate(words):
                index[word].append(position)
            """,
            "counts.update(['cat', 'cat'])\ncounts.most_common(2)",
            "longest = max(words, key=len)\npairs = {(a, b) for a, b in zip(words, words[1:])}",
        ],
        [(1, "dog", "fox"), (4, "'cat', 'cat'", "'cow'")],
    ),
    "recursion, closures and caches": (
        [
            "from functools import lru_cache, partial, reduce",
            "@lru_cache(maxsize=None)\ndef fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)",
            """
            def make(k):
                def scale(x):
                    return x * k
                return scale
            double, triple = make(2), make(3)
            """,
            "values = [double(triple(n)) for n in range(5)]\nf20 = fib(20)",
            "add = partial(lambda a, b: a + b, 10)\ntotal = reduce(lambda a, b: a + b, values, add(1))",
            "total, f20",
        ],
        [(2, "make(3)", "make(4)"), (3, "fib(20)", "fib(21)")],
    ),
    "dataclasses and enums": (
        [
            "from dataclasses import dataclass, field\nfrom enum import Enum, auto",
            "class Kind(Enum):\n    FOOD = auto()\n    TOY = auto()",
            """
            @dataclass(order=True)
            class Item:
                price: float
                kind: Kind = field(compare=False)
                tags: list = field(default_factory=list, compare=False)
            """,
            "items = [Item(3.5, Kind.FOOD), Item(1.25, Kind.TOY, ['red'])]",
            "items.sort()\nitems[0].tags.append('cheap')",
            "by_kind = {kind: [i for i in items if i.kind is kind] for kind in Kind}\nby_kind[Kind.TOY]",
        ],
        [(3, "3.5", "0.5"), (4, "'cheap'", "'cheapest'")],
    ),
    "arrays, views and masks": (
        [
            "import numpy as np",
            "grid = np.zeros((6, 8))\nrow = grid[2]\nedge = grid[:, 0]",
            "row += np.arange(8)\nedge[:] = -1",
            "mask = grid > 3\nclipped = np.where(mask, 3, grid)",
            "grid[mask] = 0\ngrid.sum(), clipped.sum()",
            "rows = np.zeros(3, dtype=[('x', 'f4'), ('n', 'i2')])\nrows['n'] = [1, 2, 3]\nrows",
        ],
        [(2, "-1", "-2"), (3, "> 3", "> 4")],
    ),
    "names that come and go": (
        [
            "config = {'depth': 2, 'debug': False}",
            "if config['debug']:\n    extra = 'on'\nelse:\n    extra = None",
            "try:\n    limit\nexcept NameError:\n    limit = 10",
            "tmp = [n for n in range(limit) if n % config['depth'] == 0]\nevens = tuple(tmp)\ndel tmp",
            "for number in evens:\n    last = number * 2",
            "first, *middle, end = evens\n(first, middle, end, last, extra)",
        ],
        [(0, "False", "True"), (0, "'depth': 2", "'depth': 3")],
    ),
}  # fmt: skip


@pytest.fixture
def play(shell, tmp_path, monkeypatch, capsys):
    """Play a session from a fresh namespace; what each cell shows, and digests of what is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "_runs", [])
    magics.load_ipython_extension(shell)

    def played(cells, mode):
        shell.reset(new_session=True)
        (tmp_path / "summary.json").unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "in", ignore_errors=True)
        shell.run_cell(f"%parcache auto {mode}")
        capsys.readouterr()
        record = []
        for source in cells:
            result = shell.run_cell(textwrap.dedent(source), store_history=True)
            shown = capsys.readouterr()
            said = [
                line for line in shown.out.splitlines() if "ipyparcache" not in line and " · " not in line
            ]
            record.append(("\n".join(said), shown.err, repr(result.error_in_exec), left(shell)))
        gc.collect()
        return record

    yield played
    shell.run_cell("%parcache auto off")
    magics.unload_ipython_extension(shell)


def left(shell):
    found = {}
    for name, value in sorted(user_bindings(shell.user_ns, shell.user_ns_hidden).items()):
        try:
            found[name] = digest_of(value, shell.user_ns).hex()
        except Undigestible:
            found[name] = type(value).__name__
    return found


def edited(cells, number, old, new):
    assert old in cells[number]
    return [*cells[:number], cells[number].replace(old, new), *cells[number + 1 :]]


@pytest.mark.parametrize("name", list(SESSIONS))
def test_a_session_is_the_same_plain_cold_warm_and_after_edits(play, name):
    cells, edits = SESSIONS[name]
    plain = play(cells, "off")

    assert play(cells, "on --min 0") == plain, "cold"
    count = len(runs.runs())
    assert play(cells, "on --min 0") == plain, "warm"
    hits = sum(run.hit for run in runs.runs()[count:])
    assert hits >= len(cells) - 2, [run.reason for run in runs.runs()[count:] if not run.hit]
    for edit in edits:
        changed = edited(cells, *edit)
        expected = play(changed, "off")
        assert play(changed, "on --min 0") == expected, edit
        assert play(cells, "on --min 0") == plain, ("back", edit)


def test_going_back_to_the_first_version_hits(play):
    cells, edits = SESSIONS["classes and inheritance"]
    play(cells, "on --min 0")
    play(edited(cells, *edits[0]), "on --min 0")
    play(cells, "on --min 0")

    assert last_run().hit
    assert sys.modules["__main__"] is not None
