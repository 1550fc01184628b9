"""Loops whose iterations use, and change, the item of a container that their target names."""

from __future__ import annotations

import pytest

from ipyparcache.errors import ChangeLost, LoopRefused
from tests.cells.sessions import describe, new_namespace, parallel, serial

NET = """
class Net:
    def __init__(self, n, config=None):
        self.n, self.seen, self.config = n, [], config
    def train(self, x=1):
        self.n += x
        self.seen.append(x)
        return self
"""
LOOPS = {
    "method of a dict's item": (
        "nets = {k: Net(i) for i, k in enumerate('abc')}\nfirst = nets['a']\nout = {}",
        "for k in nets:\n    nets[k].train(2)\n    out[k] = nets[k].n",
    ),
    "item of a list by its number": (
        "nets = [Net(i) for i in range(4)]\nsecond = nets[1].seen",
        "for i in range(len(nets)):\n    nets[i].n = nets[i].n * 2\n    nets[i].train()",
    ),
    "item under a name": (
        "nets = {k: Net(1) for k in 'ab'}",
        "for k in ['b', 'a']:\n    net = nets[k]\n    net.train()\n    net.seen.append(k)",
    ),
    "item handed to a function": (
        "def grow(d, x):\n    d['w'] += x\n    return d['w']\nds = {'a': {'w': 1}, 'b': {'w': 2}}\nout = []",
        "for k in ds:\n    out.append(grow(ds[k], 3))",
    ),
    "item replaced": (
        "nets = {k: Net(1) for k in 'ab'}\nold = nets['a']",
        "for k in nets:\n    nets[k] = Net(nets[k].train().n)",
    ),
    "item made in its iteration": (
        "table = {}",
        "for r in range(3):\n    table[r] = {c: c for c in range(r)}\n    table[r]['s'] = sum(table[r])",
    ),
    "rows of a nested list": (
        "grid = [[i * j for j in range(3)] for i in range(3)]\nrow = grid[1]",
        "for i in range(3):\n    for j in range(3):\n        grid[i][j] = grid[i][j] + 1",
    ),
    "columns of an array": (
        "import numpy as np\na = np.arange(12.0).reshape(3, 4)",
        "for j in range(a.shape[1]):\n    a[:, j] = (a[:, j] - a[:, j].mean()) / a[:, j].std()",
    ),
    "several rows of one column": (
        "import numpy as np\na, w = np.zeros((3, 4)), np.arange(12.0).reshape(4, 3)",
        "for i in range(4):\n    a[0, i] = w[i].sum()\n    a[1, i] = w[i].std()\n"
        "    a[-1, i] = a[0, i] / a[1, i]",
    ),
    "the rows of a column, one after the other": (
        "import numpy as np\na = np.ones((3, 4))",
        "for j in range(a.shape[1]):\n    for k in range(1, 3):\n        a[k, j] = a[k - 1, j] + j",
    ),
    "a column that is not there": (
        "import numpy as np\na = np.ones((2, 4))",
        "for j in range(6):\n    a[0, j] = j\n    a[1, j] = a[0, j] + 1",
    ),
    "element and item are one": (
        "ds = {'a': {'w': 1}, 'b': {'w': 2}}",
        "for k, d in ds.items():\n    d['v'] = d['w']\n    ds[k]['u'] = ds[k]['v'] + d['w']",
    ),
    "what came of it is the item": (
        "nets = {k: Net(1) for k in 'ab'}\nkept = []",
        "for k in nets:\n    kept.append(nets[k].train())\n    last = nets[k]",
    ),
    "a key that is missing": (
        "ds = {'a': {'w': 1}, 'b': {'w': 2}}",
        "for k in ['a', 'x', 'b']:\n    ds[k]['w'] = ds[k]['w'] + 1",
    ),
    "a key that is missing, and made": (
        "ds = {'a': {'w': 1}, 'b': {'w': 2}}",
        "for k in ['a', 'x', 'b']:\n    try:\n        ds[k]['w'] = ds[k]['w'] + 1\n"
        "    except KeyError:\n        ds[k] = {'w': 0}",
    ),
    "a number that is out of range": (
        "ls = [[1], [2]]",
        "for i in range(3):\n    ls[i].append(len(ls[i]))",
    ),
    "a failure in the middle": (
        "nets = {k: Net(i) for i, k in enumerate('abcd')}",
        "for k in nets:\n    nets[k].train()\n    z = 1 / (nets[k].n - 3)\n    nets[k].train()",
    ),
    "something shared that nobody changes": (
        "config = {'lr': 2}\nnets = {k: Net(1, config) for k in 'ab'}",
        "for k in nets:\n    nets[k].train(config['lr'])",
    ),
    "generators, one for each key": (
        "import random\nrngs = {k: random.Random(k) for k in 'abc'}\nout = {}",
        "for k in rngs:\n    out[k] = rngs[k].random()",
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_an_iteration_may_change_the_item_of_its_own_key(name):
    setup, cell = LOOPS[name]
    plain, tested = new_namespace(NET + setup), new_namespace(NET + setup)
    _, error = serial(plain, cell)

    _, raised, _ = parallel(tested, cell)

    assert repr(raised) == repr(error)
    assert describe(tested) == describe(plain)


HELD_BACK = {
    "a row and a column": (
        "import numpy as np\na = np.zeros((4, 4))",
        "for j in range(4):\n    a[0, j] = j\n    a[j, 1] = a[0, j] * 2",
    ),
    "the column before": (
        "import numpy as np\na = np.ones((2, 4))",
        "for j in range(1, 4):\n    a[0, j] = a[0, j - 1] + a[1, j]",
    ),
    "the transposed place": (
        "import numpy as np\na = np.ones((3, 3))",
        "for i, j in [(0, 1), (1, 2), (2, 0)]:\n    a[i, j] = a[j, i] + 1",
    ),
    "pairs as keys of a dict": (
        "d = {}",
        "for i in [1, 2, 1]:\n    d['a', i] = i\n    d['b', i] = d['a', i] * 2",
    ),
    "one key twice": ("ls = {'a': [1], 'b': [2]}", "for k in ['a', 'b', 'a']:\n    ls[k].append(len(ls[k]))"),
    "one item under two keys": (
        "l = []\nls = {0: l, 1: l}",
        "for k in ls:\n    ls[k].append(len(ls[k]))",
    ),
    "one number twice": ("ls = [[1], [2]]", "for i in [0, -1, 1]:\n    ls[i].append(len(ls[i]))"),
    "a key that comes again, stored": (
        "ds = {'a': [1], 'b': [2]}",
        "for k, x in zip('aba', range(3)):\n    ds[k] = sorted(ds[k]) + [x]",
    ),
    "a function that reads the container": (
        "ds = [1, 2, 3]\ndef total():\n    return sum(ds)",
        "for i in range(3):\n    ds[i] = ds[i] + total()",
    ),
    "another name that leads to an item": (
        "ls = [[1], [2]]\nbest = ls[0]",
        "for i in range(2):\n    ls[i].append(len(ls[i]) + sum(best))",
    ),
    "another name of which the length is read": (
        "ls = [[1], [2]]\nbest = ls[0]",
        "for i in range(2):\n    ls[i].append(len(ls[i]) + len(best))",
    ),
    "an element of which the length is read": (
        "ls = [[1], [2]]\nbest = ls[0]",
        "for l in ls:\n    l.append(len(best))",
    ),
    "a comprehension that takes the name of the key": (
        "a = [1, 2, 3]",
        "for i in range(3):\n    a[i] = a[i] + sum(a[i] for i in range(3))",
    ),
    "an iterable that reads items as it goes": (
        "a = [1, 2, 3, 4]",
        "for i in (i for i in range(4) if a[i] % 2 == 0):\n    a[i] = a[i] * 2 + a[i]",
    ),
    "items that the earlier one changes too": (
        NET + "nets = [Net(i) for i in range(3)]\nnets[1].config = nets[0]",
        "for i in range(3):\n    nets[i].n = nets[i].n + (nets[i].config.n if nets[i].config else 1)",
    ),
}


#: Those of which only running them tells.
SEEN_LATE = {
    "a key that comes again, stored",
    "items that the earlier one changes too",
    "another name of which the length is read",
    "an element of which the length is read",
}


@pytest.mark.parametrize("name", HELD_BACK)
def test_where_two_iterations_may_meet_in_one_item_the_loop_is_held_back(name):
    setup, cell = HELD_BACK[name]

    _, error, _ = parallel(new_namespace(setup), cell)

    assert isinstance(error, LoopRefused | ChangeLost)
    assert name in SEEN_LATE or isinstance(error, LoopRefused)


def test_a_model_of_a_library_learns_under_its_key():
    pytest.importorskip("sklearn")
    setup = (
        "import numpy as np\nfrom sklearn.linear_model import Ridge\nfrom sklearn.ensemble import "
        "RandomForestClassifier\nX = np.arange(12.0).reshape(6, 2)\ny = np.array([0, 1, 0, 1, 0, 1])\n"
        "models = {'ridge': Ridge(), 'forest': RandomForestClassifier(70, random_state=0)}\n"
        "forest, scores = models['forest'], {}\n"
    )
    cell = "for k in models:\n    models[k].fit(X, y)\n    scores[k] = models[k].score(X, y)"
    plain, tested = new_namespace(setup), new_namespace(setup)
    serial(plain, cell)

    for _ in range(2):  # as it is made, and as it has learnt
        _, error, _ = parallel(tested, cell)

        assert error is None
    assert tested["scores"] == plain["scores"]
    assert tested["models"]["forest"] is tested["forest"]
    assert (tested["forest"].predict_proba(tested["X"]) == plain["forest"].predict_proba(plain["X"])).all()
