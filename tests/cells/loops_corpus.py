"""Loops as people write them, each with what it needs before it: the corpus of the acceptance figure."""

from __future__ import annotations


def lines(*text: str) -> str:
    """Source from its lines."""
    return "\n".join(text)


CORPUS = {
    "grid search": (
        lines(
            "import itertools",
            "def score(a,b):",
            "    return a*b-a",
            "params={'a':[1,2,3],'b':[4,5]}",
            "results=[]",
        ),
        lines(
            "for a, b in itertools.product(params['a'], params['b']):",
            "    s = score(a, b)",
            "    results.append({'a': a, 'b': b, 'score': s})",
            "best = max(results, key=lambda r: r['score'])",
        ),
    ),
    "df concat": (
        lines(
            "import pandas as pd",
            "dfs=[]",
            "frame=pd.DataFrame({'g':['x','y','x'],'v':[1,2,3]})",
        ),
        lines(
            "for g, part in frame.groupby('g'):",
            "    part = part.copy()",
            "    part['z'] = part['v'] * 2",
            "    dfs.append(part)",
            "res = pd.concat(dfs)",
            "res",
        ),
    ),
    "df rows loc": (
        lines(
            "import pandas as pd",
            "df=pd.DataFrame({'v':[1.0,2.0,3.0]})",
            "df['w']=0.0",
        ),
        lines(
            "for i, row in df.iterrows():",
            "    df.loc[i, 'w'] = row['v'] ** 2",
        ),
    ),
    "df at range": (
        lines(
            "import pandas as pd",
            "df=pd.DataFrame({'v':[1.0,2.0,3.0]})",
            "out=pd.Series(0.0,index=df.index)",
        ),
        lines(
            "for i in range(len(df)):",
            "    out.iloc[i] = df['v'].iloc[i] + 1",
        ),
    ),
    "bootstrap": (
        lines(
            "import numpy as np",
            "x=np.arange(50.0)",
            "means=[]",
        ),
        lines(
            "for b in range(20):",
            "    rng = np.random.default_rng(b)",
            "    idx = rng.integers(0, len(x), len(x))",
            "    means.append(x[idx].mean())",
            "arr = np.array(means)",
        ),
    ),
    "kfold": (
        lines(
            "import numpy as np",
            "X=np.arange(40.0).reshape(20,2)",
            "y=np.arange(20)%2",
            "class M:",
            "    def fit(self,X,y):",
            "        self.m=X[y==1].mean(0)",
            "        return self",
            "    def predict(self,X):",
            "        return (X>self.m).all(1).astype(int)",
            "scores=[]",
            "models={}",
        ),
        lines(
            "folds = np.arange(20) % 4",
            "for k in range(4):",
            "    tr, te = folds != k, folds == k",
            "    m = M().fit(X[tr], y[tr])",
            "    acc = (m.predict(X[te]) == y[te]).mean()",
            "    scores.append(acc)",
            "    models[k] = m",
            "    print(f'fold {k}: {acc:.2f}')",
            "print(np.mean(scores))",
        ),
    ),
    "fill matrix": (
        lines(
            "import numpy as np",
            "n=5",
            "D=np.zeros((n,n))",
            "pts=np.arange(10.0).reshape(5,2)",
        ),
        lines(
            "for i in range(n):",
            "    for j in range(n):",
            "        D[i, j] = np.sqrt(((pts[i]-pts[j])**2).sum())",
        ),
    ),
    "symmetric fill": (
        lines(
            "import numpy as np",
            "n=5",
            "D=np.zeros((n,n))",
        ),
        lines(
            "for i in range(n):",
            "    for j in range(i+1, n):",
            "        D[i, j] = D[j, i] = i * j",
        ),
    ),
    "in place map": (
        lines(
            "import numpy as np",
            "a=np.arange(10.0)",
        ),
        lines(
            "for i in range(len(a)):",
            "    a[i] = a[i] ** 2",
        ),
    ),
    "in place list map": (
        "names=['a','b']",
        lines(
            "for i, s in enumerate(names):",
            "    names[i] = s.upper()",
        ),
    ),
    "counter": (
        lines(
            "from collections import Counter, defaultdict",
            "words='a b a c'.split()",
            "c=Counter()",
            "d=defaultdict(list)",
            "e=defaultdict(int)",
            "s=set()",
        ),
        lines(
            "for i, w in enumerate(words):",
            "    c[w] += 1",
            "    c.update([w])",
            "    d[w].append(i)",
            "    e[w] += 1",
            "    s.add(w)",
        ),
    ),
    "if in": (
        lines(
            "words='a b a c'.split()",
            "c={}",
            "g={}",
        ),
        lines(
            "for w in words:",
            "    if w in c:",
            "        c[w] += 1",
            "    else:",
            "        c[w] = 1",
            "    if w not in g:",
            "        g[w] = []",
            "    g[w].append(len(w))",
        ),
    ),
    "try except append": (
        lines(
            "bad=[]",
            "good=[]",
            "xs=['1','x','3']",
        ),
        lines(
            "for x in xs:",
            "    try:",
            "        v = int(x)",
            "        good.append(v)",
            "    except ValueError as e:",
            "        bad.append((x, str(e)))",
            "        continue",
            "    print(v)",
        ),
    ),
    "nested accumulate": (
        lines(
            "rows=[[1,2],[3,4]]",
            "sums=[]",
        ),
        lines(
            "for r in rows:",
            "    t = 0",
            "    for v in r:",
            "        t += v",
            "    sums.append(t)",
        ),
    ),
    "zip": (
        lines(
            "xs=[1,2,3]",
            "ys=[4,5,6]",
            "out={}",
        ),
        lines(
            "for x, y in zip(xs, ys):",
            "    out[x] = y",
            "    z = x + y",
        ),
    ),
    "while inside": (
        lines(
            "def step(n):",
            "    return n//2 if n%2==0 else 3*n+1",
            "lengths={}",
        ),
        lines(
            "for n in range(1, 30):",
            "    k, m = 0, n",
            "    while m != 1:",
            "        m = step(m)",
            "        k += 1",
            "    lengths[n] = k",
            "longest = max(lengths, key=lengths.get)",
        ),
    ),
    "closures": (
        "fs=[]",
        lines(
            "for i in range(3):",
            "    fs.append(lambda x, i=i: x + i)",
            "vals = [f(10) for f in fs]",
        ),
    ),
    "early none": (
        lines(
            "best=None",
            "best_x=None",
            "def f(x): return -(x-3)**2",
        ),
        lines(
            "for x in range(7):",
            "    v = f(x)",
            "    if best is None or v > best:",
            "        best = v",
            "        best_x = x",
        ),
    ),
    "best dict": (
        lines(
            "best={'score': -1}",
            "def f(x): return x%4",
        ),
        lines(
            "for x in range(7):",
            "    s = f(x)",
            "    if s > best['score']:",
            "        best = {'score': s, 'x': x}",
        ),
    ),
    "best score model": (
        lines(
            "best_score=-1",
            "best_model=None",
            "class M:",
            "    def __init__(s,k): s.k=k",
            "    def score(s): return s.k%5",
        ),
        lines(
            "for k in range(8):",
            "    model = M(k)",
            "    score = model.score()",
            "    if score > best_score:",
            "        best_score = score",
            "        best_model = model",
        ),
    ),
    "progress print": (
        lines(
            "import sys",
            "out=[]",
        ),
        lines(
            "for i in range(10):",
            "    if i % 5 == 0:",
            "        print(i, end=' ')",
            "    sys.stdout.write('.')",
            "    out.append(i)",
        ),
    ),
    "warnings": (
        lines(
            "import warnings",
            "out=[]",
        ),
        lines(
            "for i in range(6):",
            "    if i % 2:",
            "        warnings.warn('odd')",
            "    out.append(i)",
        ),
    ),
    "counter nonlocal": (
        lines(
            "count=0",
            "xs=range(10)",
        ),
        lines(
            "for x in xs:",
            "    if x % 3 == 0:",
            "        continue",
            "    count += 1",
            "    last = x",
        ),
    ),
    "list of arrays": (
        lines(
            "import numpy as np",
            "out=np.empty((4,3))",
            "lst=[]",
        ),
        lines(
            "for i in range(4):",
            "    v = np.full(3, i)",
            "    out[i] = v",
            "    lst.append(v)",
            "    v[0] = 99",
            "st = np.stack(lst)",
        ),
    ),
    "mutate arg helper": (
        lines(
            "def norm(d):",
            "    d['n']=1",
            "    return d",
            "rows=[{'a':i} for i in range(3)]",
            "out=[]",
        ),
        lines(
            "for r in rows:",
            "    out.append(norm(r))",
            "same = [o is r for o, r in zip(out, rows)]",
        ),
    ),
    "helper mutates broadcast": (
        lines(
            "cache={}",
            "def f(x):",
            "    if x not in cache:",
            "        cache[x]=x*x",
            "    return cache[x]",
            "out=[]",
        ),
        lines(
            "for x in [1,2,1]:",
            "    out.append(f(x))",
        ),
    ),
    "lru": (
        lines(
            "from functools import lru_cache",
            "@lru_cache(None)",
            "def fib(n):",
            "    return n if n<2 else fib(n-1)+fib(n-2)",
            "out=[]",
        ),
        lines(
            "for n in range(20):",
            "    out.append(fib(n))",
        ),
    ),
    "namedtuple dataclass": (
        lines(
            "from collections import namedtuple",
            "from dataclasses import dataclass, field",
            "P=namedtuple('P','x y')",
            "@dataclass",
            "class D:",
            "    a: int",
            "    b: list = field(default_factory=list)",
            "ps=[]",
            "ds=[]",
        ),
        lines(
            "for i in range(4):",
            "    ps.append(P(i, i*2))",
            "    d = D(i)",
            "    d.b.append(i)",
            "    ds.append(d)",
        ),
    ),
    "inherit super": (
        lines(
            "class A:",
            "    def f(self): return 1",
            "class B(A):",
            "    def f(self): return super().f()+1",
            "    @property",
            "    def p(self): return self.f()*2",
            "    @staticmethod",
            "    def s(x): return x",
            "    @classmethod",
            "    def c(cls): return cls()",
            "out=[]",
        ),
        lines(
            "for i in range(3):",
            "    b = B.c()",
            "    out.append((b.f(), b.p, B.s(i), isinstance(b, A)))",
        ),
    ),
    "unpack star kw": (
        lines(
            "def f(*a, **k): return (a, sorted(k.items()))",
            "out=[]",
            "args=[(1,2),(3,)]",
            "kw={'z':1}",
        ),
        lines(
            "for a in args:",
            "    out.append(f(*a, **kw, y=2))",
        ),
    ),
    "deque heap": (
        lines(
            "import heapq",
            "from collections import deque",
            "h=[]",
            "q=deque(maxlen=3)",
        ),
        lines(
            "for i in [5,3,8,1]:",
            "    heapq.heappush(h, i)",
            "    q.append(i)",
        ),
    ),
    "string building": (
        lines(
            "s=''",
            "lines=[]",
        ),
        lines(
            "for i in range(5):",
            "    s += f'{i},'",
            "    lines += [str(i)]",
        ),
    ),
    "global const helper": (
        lines(
            "K=3",
            "def f(x): return x*K",
            "out=[]",
        ),
        lines(
            "for x in range(4):",
            "    y = f(x)",
            "    K2 = y + 1",
            "    out.append(K2)",
        ),
    ),
    "enumerate start": (
        lines(
            "xs='abc'",
            "m={}",
        ),
        lines(
            "for n, c in enumerate(xs, start=1):",
            "    m[c] = n",
        ),
    ),
    "dict items": (
        lines(
            "d={'a':[1,2],'b':[3]}",
            "r={}",
        ),
        lines(
            "for k, v in d.items():",
            "    r[k] = sum(v)/len(v)",
        ),
    ),
    "regex": (
        lines(
            "import re",
            "texts=['a1','b22']",
            "pat=re.compile(r'\\d+')",
            "out=[]",
        ),
        lines(
            "for t in texts:",
            "    m = pat.search(t)",
            "    if m:",
            "        out.append(m.group())",
            "m = None",
        ),
    ),
    "walrus": (
        "out=[]",
        lines(
            "for i in range(6):",
            "    if (y := i * i) > 5:",
            "        out.append(y)",
        ),
    ),
    "assert and raise": (
        "out=[]",
        lines(
            "for i in range(6):",
            "    assert i < 4, f'too big {i}'",
            "    out.append(i)",
        ),
    ),
    "np accumulate": (
        lines(
            "import numpy as np",
            "acc=np.zeros(3)",
            "hist=np.zeros((4,),int)",
        ),
        lines(
            "for i in range(8):",
            "    acc += np.arange(3) * i",
            "    hist[i % 4] += 1",
        ),
    ),
    "sum of arrays": (
        lines(
            "import numpy as np",
            "total=0",
        ),
        lines(
            "for i in range(4):",
            "    total = total + np.ones(2) * i",
        ),
    ),
    "set ops": (
        lines(
            "seen=set()",
            "uniq=[]",
        ),
        lines(
            "for x in [1,2,1,3]:",
            "    if x not in seen:",
            "        seen.add(x)",
            "        uniq.append(x)",
        ),
    ),
    "global class attr": (
        lines(
            "class Cfg:",
            "    lr=0.1",
            "cfg=Cfg()",
            "out=[]",
        ),
        lines(
            "for lr in [0.1,0.2]:",
            "    cfg.lr = lr",
            "    out.append(cfg.lr * 2)",
        ),
    ),
    "attr only write": (
        lines(
            "class S: pass",
            "st=S()",
            "st.total=0",
            "st.items=[]",
        ),
        lines(
            "for i in range(4):",
            "    st.total += i",
            "    st.items.append(i)",
            "    st.last = i",
        ),
    ),
    "obj list attr read other": (
        lines(
            "class S: pass",
            "st=S()",
            "st.lr=2",
            "st.items=[]",
        ),
        lines(
            "for i in range(4):",
            "    st.items.append(i * st.lr)",
        ),
    ),
    "generator func arg": (
        lines(
            "def gen(n):",
            "    for i in range(n):",
            "        yield i",
            "out=[]",
        ),
        lines(
            "for i in range(3):",
            "    out.append(list(gen(i)))",
            "tot = sum(len(o) for o in out)",
        ),
    ),
    "tuple swap": (
        "out=[]",
        lines(
            "for i in range(3):",
            "    a, b = i, i + 1",
            "    a, b = b, a",
            "    out.append((a, b))",
        ),
    ),
    "copy deep": (
        lines(
            "import copy",
            "base={'x':[1]}",
            "out=[]",
        ),
        lines(
            "for i in range(3):",
            "    c = copy.deepcopy(base)",
            "    c['x'].append(i)",
            "    out.append(c)",
        ),
    ),
    "alias base": (
        lines(
            "base={'x':[1]}",
            "out=[]",
        ),
        lines(
            "for i in range(3):",
            "    c = base",
            "    c['x'].append(i)",
            "    out.append(c)",
        ),
    ),
    "datetime": (
        lines(
            "import datetime as dt",
            "from decimal import Decimal",
            "from pathlib import Path",
            "out=[]",
        ),
        lines(
            "for i in range(3):",
            "    out.append((dt.date(2020, 1, 1) + dt.timedelta(days=i), Decimal(i), Path('a') / str(i)))",
        ),
    ),
    "tqdm": (
        lines(
            "from tqdm import tqdm",
            "out=[]",
        ),
        lines(
            "for i in tqdm(range(5), disable=True):",
            "    out.append(i)",
        ),
    ),
    "pbar update": (
        lines(
            "from tqdm import tqdm",
            "out=[]",
            "pbar=tqdm(total=3, disable=True)",
        ),
        lines(
            "for i in range(3):",
            "    out.append(i)",
            "    pbar.update(1)",
            "pbar.close()",
            "pbar = None",
        ),
    ),
    "nested function in body": (
        "out=[]",
        lines(
            "for i in range(3):",
            "    def sq(x):",
            "        return x * x + i",
            "    out.append(sq(i))",
        ),
    ),
    "dict of dict": (
        "res={}",
        lines(
            "for m in ['a', 'b']:",
            "    res[m] = {}",
            "    for k in range(2):",
            "        res[m][k] = k",
        ),
    ),
    "df col assign": (
        lines(
            "import pandas as pd",
            "df=pd.DataFrame({'a':[1,2],'b':[3,4]})",
            "cols=['a','b']",
        ),
        lines(
            "for c in cols:",
            "    df[c + '_sq'] = df[c] ** 2",
        ),
    ),
    "df new from cols": (
        lines(
            "import pandas as pd",
            "df=pd.DataFrame({'a':[1,2],'b':[3,4]})",
            "out=pd.DataFrame()",
        ),
        lines(
            "for c in df.columns:",
            "    out[c] = df[c] / df[c].sum()",
        ),
    ),
    "pd concat fold": (
        lines(
            "import pandas as pd",
            "all_df=pd.DataFrame()",
        ),
        lines(
            "for i in range(3):",
            "    part = pd.DataFrame({'i': [i], 'sq': [i * i]})",
            "    all_df = pd.concat([all_df, part], ignore_index=True)",
        ),
    ),
    "random seeded inside": (
        lines(
            "import random",
            "import numpy as np",
            "out=[]",
        ),
        lines(
            "for seed in range(3):",
            "    random.seed(seed)",
            "    np.random.seed(seed)",
            "    out.append((random.random(), np.random.rand()))",
        ),
    ),
    "json write": (
        lines(
            "import json",
            "import io",
            "buf=io.StringIO()",
        ),
        lines(
            "for i in range(3):",
            "    buf.write(json.dumps({'i': i}) + '\\n')",
            "text = buf.getvalue()",
            "buf = None",
        ),
    ),
    "logging": (
        lines(
            "import logging",
            "log=logging.getLogger('x')",
            "out=[]",
        ),
        lines(
            "for i in range(3):",
            "    log.info('i %d', i)",
            "    out.append(i)",
        ),
    ),
    "except global": (
        lines(
            "errors=0",
            "ok=[]",
        ),
        lines(
            "for i in range(5):",
            "    try:",
            "        ok.append(10 / (i - 2))",
            "    except ZeroDivisionError:",
            "        errors += 1",
        ),
    ),
    "else continue": (
        lines(
            "xs=[1,None,2]",
            "out=[]",
        ),
        lines(
            "for x in xs:",
            "    if x is None:",
            "        continue",
            "    elif x > 1:",
            "        tag = 'big'",
            "    else:",
            "        tag = 'small'",
            "    out.append((x, tag))",
        ),
    ),
    "first loop var leaks": (
        "xs=[1,2]",
        lines(
            "squares = []",
            "for x in xs:",
            "    squares.append(x ** 2)",
            "print(x, squares)",
            "for y in squares:",
            "    z = y + x",
            "print(z)",
        ),
    ),
    "carried flag": (
        lines(
            "flag=False",
            "out=[]",
        ),
        lines(
            "for i in range(5):",
            "    if i == 2:",
            "        flag = True",
            "    out.append(flag)",
        ),
    ),
    "prev diff": (
        lines(
            "xs=[1,4,9]",
            "prev=0",
            "diffs=[]",
        ),
        lines(
            "for x in xs:",
            "    diffs.append(x - prev)",
            "    prev = x",
        ),
    ),
    "list pop": (
        lines(
            "stack=[1,2,3]",
            "out=[]",
        ),
        lines(
            "for i in range(3):",
            "    out.append(stack.pop())",
        ),
    ),
    "del item": (
        "d={'a':1,'b':2,'c':3}",
        lines(
            "for k in ['a', 'c']:",
            "    del d[k]",
        ),
    ),
    "multi target": (
        lines(
            "a=[0]*4",
            "b=[0]*4",
            "def f(i): return i, i*2",
        ),
        lines(
            "for i in range(4):",
            "    a[i], b[i] = f(i)",
        ),
    ),
    "chained": (
        lines(
            "a=[0]*4",
            "b=[0]*4",
        ),
        lines(
            "for i in range(4):",
            "    a[i] = b[i] = i",
        ),
    ),
    "swap in place": (
        "a=[3,1,2]",
        lines(
            "for i in range(2):",
            "    a[i], a[i+1] = a[i+1], a[i]",
        ),
    ),
    "sort elements": (
        "rows=[[3,1],[2,0]]",
        lines(
            "for r in rows:",
            "    r.sort()",
        ),
    ),
    "normalize rows": (
        lines(
            "import numpy as np",
            "X=np.arange(6.0).reshape(2,3)+1",
        ),
        lines(
            "for i in range(X.shape[0]):",
            "    X[i] = X[i] / X[i].sum()",
        ),
    ),
    "normalize rows aug": (
        lines(
            "import numpy as np",
            "X=np.arange(6.0).reshape(2,3)+1",
        ),
        lines(
            "for i in range(X.shape[0]):",
            "    X[i] /= X[i].sum()",
        ),
    ),
    "use loop idx neighbors": (
        lines(
            "import numpy as np",
            "x=np.arange(6.0)",
            "y=np.zeros(6)",
        ),
        lines(
            "for i in range(1, 5):",
            "    y[i] = (x[i-1] + x[i] + x[i+1]) / 3",
        ),
    ),
    "simulate": (
        lines(
            "import numpy as np",
            "n=100",
            "hits=0",
        ),
        lines(
            "for i in range(10):",
            "    r = np.random.RandomState(i)",
            "    p = r.rand(n, 2)",
            "    hits += int((p ** 2).sum(1).__lt__(1).sum())",
            "pi = 4 * hits / (10 * n)",
        ),
    ),
    "list comp of df": (
        lines(
            "import pandas as pd",
            "df=pd.DataFrame({'t':['a b','c']})",
        ),
        lines(
            "toks = [t.split() for t in df['t']]",
            "df['n'] = [len(t) for t in toks]",
        ),
    ),
    "map lambda": (
        "xs=[1,2,3]",
        lines(
            "ys = [(lambda v: v + 1)(x) for x in xs]",
            "zs = list(x * 2 for x in map(lambda q: q + 1, xs))",
        ),
    ),
    "string keys": (
        lines(
            "res={}",
            "xs=[1,2]",
        ),
        lines(
            "for x in xs:",
            "    res[f'r_{x}'] = {'v': x}",
            "    res[f'r_{x}']['w'] = x * 2",
        ),
    ),
    "sk cv": (
        lines(
            "import numpy as np",
            "from sklearn.datasets import load_iris",
            "from sklearn.model_selection import KFold, cross_val_score",
            "from sklearn.linear_model import LogisticRegression",
            "from sklearn.base import clone",
            "X,y=load_iris(return_X_y=True)",
            "scores={}",
            "models=[]",
            "base=LogisticRegression(max_iter=200)",
        ),
        lines(
            "for C in [0.1, 1.0, 10.0]:",
            "    m = clone(base).set_params(C=C)",
            "    s = cross_val_score(m, X, y, cv=3).mean()",
            "    scores[C] = round(s, 6)",
            "    models.append(m.fit(X, y).coef_.shape)",
            "best = max(scores, key=scores.get)",
            "m = None",
        ),
    ),
    "sk predict with fitted": (
        lines(
            "import numpy as np",
            "from sklearn.datasets import load_iris",
            "from sklearn.ensemble import RandomForestClassifier",
            "X,y=load_iris(return_X_y=True)",
            "rf=RandomForestClassifier(n_estimators=5,random_state=0).fit(X,y)",
            "accs=[]",
        ),
        lines(
            "for k in range(4):",
            "    idx = np.arange(len(X)) % 4 == k",
            "    accs.append(float((rf.predict(X[idx]) == y[idx]).mean()))",
            "idx = None",
        ),
    ),
    "df groupby agg": (
        lines(
            "import pandas as pd, numpy as np",
            "df=pd.DataFrame({'g':list('aabbc'),'v':range(5),'t':pd.date_range('2020',periods=5)})",
            "res={}",
        ),
        lines(
            "for g in df['g'].unique():",
            "    sub = df[df['g'] == g]",
            "    res[g] = (sub['v'].mean(), sub.shape, df.groupby('g')['v'].sum()[g])",
            "del sub",
        ),
    ),
    "df query at": (
        lines(
            "import pandas as pd",
            "df=pd.DataFrame({'a':range(10)})",
            "out=[]",
        ),
        lines(
            "for lim in [2, 5]:",
            "    out.append(len(df.query('a > @lim')))",
        ),
    ),
    "series map": (
        lines(
            "import pandas as pd",
            "s=pd.Series([1,2,3],index=list('abc'))",
            "out=[]",
        ),
        lines(
            "for k in s.index:",
            "    out.append(s[k] * 2)",
            "for k, v in s.items():",
            "    out.append((k, v))",
        ),
    ),
    "itertuples": (
        lines(
            "import pandas as pd",
            "df=pd.DataFrame({'a':[1,2],'b':['x','y']})",
            "out=[]",
        ),
        lines(
            "for row in df.itertuples():",
            "    out.append((row.a, row.b, row.Index))",
            "row = None",
        ),
    ),
    "df apply per col": (
        lines(
            "import pandas as pd",
            "df=pd.DataFrame({'a':[1.,2],'b':[3.,4]})",
            "stats=pd.DataFrame(index=df.columns, columns=['mean','std'])",
        ),
        lines(
            "for c in df.columns:",
            "    stats.loc[c, 'mean'] = df[c].mean()",
            "    stats.loc[c, 'std'] = df[c].std()",
        ),
    ),
    "images": (
        lines(
            "import numpy as np",
            "imgs=np.random.default_rng(0).random((5,8,8))",
            "out=np.zeros((5,8,8))",
            "feats=[]",
        ),
        lines(
            "for i, img in enumerate(imgs):",
            "    k = img - img.mean()",
            "    out[i] = k",
            "    feats.append([k.max(), k.min()])",
            "feats = np.array(feats)",
        ),
    ),
    "monte carlo class": (
        lines(
            "import numpy as np",
            "class Walk:",
            "    def __init__(self, n, seed):",
            "        self.rng = np.random.default_rng(seed)",
            "        self.n = n",
            "        self.path = []",
            "    def run(self):",
            "        x = 0",
            "        for _ in range(self.n):",
            "            x += self.rng.choice([-1, 1])",
            "            self.path.append(int(x))",
            "        return self",
            "ends=[]",
            "walks=[]",
        ),
        lines(
            "for s in range(5):",
            "    w = Walk(20, s).run()",
            "    ends.append(w.path[-1])",
            "    walks.append(w)",
        ),
    ),
    "objects call methods": (
        lines(
            "class Shape:",
            "    def __init__(self, r): self.r=r",
            "    def area(self): return 3*self.r**2",
            "shapes=[Shape(i) for i in range(4)]",
            "areas={}",
        ),
        lines(
            "for sh in shapes:",
            "    areas[sh.r] = sh.area()",
            "    sh.cached = sh.area()",
        ),
    ),
    "fit elements": (
        lines(
            "from sklearn.linear_model import LinearRegression",
            "import numpy as np",
            "X=np.arange(10.).reshape(-1,1)",
            "ms=[LinearRegression(), LinearRegression(fit_intercept=False)]",
            "sc=[]",
        ),
        lines(
            "for m in ms:",
            "    m.fit(X, X.ravel()*2+1)",
            "    sc.append(round(m.score(X, X.ravel()*2+1), 6))",
            "co = [round(float(m.coef_[0]), 6) for m in ms]",
            "ms = m = None",
        ),
    ),
    "strings/regex": (
        lines(
            "import re, string",
            "from collections import Counter",
            "docs=['the cat sat','on the mat']",
            "stop={'the','on'}",
            "vocab=Counter()",
            "tok=[]",
        ),
        lines(
            "for d in docs:",
            "    ws = [w for w in re.findall(r'\\w+', d.lower()) if w not in stop]",
            "    vocab.update(ws)",
            "    tok.append(ws)",
            "common = vocab.most_common(2)",
        ),
    ),
    "zipfile-ish io": (
        lines(
            "import io, csv",
            "rows=[['a',1],['b',2]]",
            "texts=[]",
        ),
        lines(
            "for r in rows:",
            "    buf = io.StringIO()",
            "    csv.writer(buf).writerow(r)",
            "    texts.append(buf.getvalue())",
            "buf = None",
        ),
    ),
    "requests fake": (
        lines(
            "import time",
            "class Session:",
            "    def get(self, url):",
            "        return {'url': url, 'ok': True}",
            "ses=Session()",
            "out=[]",
            "errors=[]",
        ),
        lines(
            "for u in ['a','b','c']:",
            "    try:",
            "        r = ses.get(u)",
            "        out.append(r['url'])",
            "    except Exception as e:",
            "        errors.append((u, e))",
        ),
    ),
    "nested dict config": (
        lines(
            "cfg={'model':{'lr':0.1,'layers':[1,2]},'seed':0}",
            "import copy",
            "runs=[]",
        ),
        lines(
            "for lr in [0.1, 0.2]:",
            "    c = copy.deepcopy(cfg)",
            "    c['model']['lr'] = lr",
            "    runs.append({'cfg': c, 'loss': c['model']['lr'] * sum(c['model']['layers'])})",
            "    base = cfg['model']",
        ),
    ),
    "networkless graph": (
        lines(
            "graph={'a':['b'],'b':['c'],'c':[]}",
            "def reach(g, s):",
            "    seen, st = set(), [s]",
            "    while st:",
            "        n = st.pop()",
            "        if n not in seen:",
            "            seen.add(n)",
            "            st.extend(g[n])",
            "    return seen",
            "r={}",
        ),
        lines(
            "for n in graph:",
            "    r[n] = sorted(reach(graph, n))",
        ),
    ),
    "primes": (
        lines(
            "def is_prime(n):",
            "    return n > 1 and all(n % d for d in range(2, int(n**.5)+1))",
            "primes=[]",
            "count=0",
        ),
        lines(
            "for n in range(60):",
            "    if is_prime(n):",
            "        primes.append(n)",
            "        count += 1",
        ),
    ),
    "mandel": (
        lines(
            "import numpy as np",
            "h,w=6,7",
            "img=np.zeros((h,w),dtype=int)",
        ),
        lines(
            "for r in range(h):",
            "    for c in range(w):",
            "        z, k = 0, 0",
            "        p = complex(-2 + 3*c/w, -1 + 2*r/h)",
            "        while abs(z) < 2 and k < 20:",
            "            z = z*z + p",
            "            k += 1",
            "        img[r, c] = k",
        ),
    ),
    "matmul rows": (
        lines(
            "import numpy as np",
            "A=np.arange(6.).reshape(2,3)",
            "B=np.arange(6.).reshape(3,2)",
            "C=np.zeros((2,2))",
        ),
        lines(
            "for i in range(2):",
            "    for j in range(2):",
            "        for k in range(3):",
            "            C[i, j] += A[i, k] * B[k, j]",
        ),
    ),
    "matmul own read": (
        lines(
            "import numpy as np",
            "C=np.zeros((3,4))",
        ),
        lines(
            "for i in range(3):",
            "    C[i, 0] = i",
            "    for j in range(1, 4):",
            "        C[i, j] = C[i, j-1] + j",
        ),
    ),
    "smooth inplace carried": (
        lines(
            "import numpy as np",
            "x=np.arange(5.)",
        ),
        lines(
            "for i in range(1, 5):",
            "    x[i] = x[i] + x[i-1]",
        ),
    ),
    "time sleep prints": (
        "import time",
        lines(
            "for i in range(4):",
            "    time.sleep(0.01)",
            "    print(f'step {i}', flush=True)",
        ),
    ),
    "nested comps": (
        "m=[[1,2],[3,4]]",
        lines(
            "tr = [[row[i] for row in m] for i in range(2)]",
            "flat = [x for row in m for x in row]",
            "d = {i: [j * i for j in range(3)] for i in range(3)}",
        ),
    ),
    "any all": (
        lines(
            "xs=[1,2,3]",
            "def ok(x): return x > 0",
        ),
        lines(
            "a = all(ok(x) for x in xs)",
            "b = any(x > 2 for x in xs)",
            "c = sum(1 for x in xs if ok(x))",
            "e = sorted((ok(x), x) for x in xs)",
            "f = tuple(x * 2 for x in xs)",
            "g = set(x % 2 for x in xs)",
            "h = dict((x, ok(x)) for x in xs)",
            "i = min((x for x in xs), default=0)",
        ),
    ),
    "join": (
        "xs=range(4)",
        lines(
            "s = ', '.join(str(x * x) for x in xs)",
            "t = ''.join([chr(97 + x) for x in xs])",
        ),
    ),
    "global counter obj": (
        lines(
            "class Acc:",
            "    def __init__(self): self.vals=[]",
            "    def add(self, v): self.vals.append(v)",
            "acc=Acc()",
        ),
        lines(
            "for i in range(4):",
            "    acc.add(i * 2)",
        ),
    ),
    "lambda default": (
        "fns={}",
        lines(
            "for n in ['a','b']:",
            "    fns[n] = lambda x, n=n: n + x",
            "r = fns['a']('z')",
        ),
    ),
    "exception chain": (
        lines(
            "def g(x):",
            "    try:",
            "        return {}[x]",
            "    except KeyError as e:",
            "        raise RuntimeError('no key') from e",
            "out=[]",
        ),
        lines(
            "for i in range(3):",
            "    out.append(i)",
            "    if i == 1:",
            "        g(i)",
        ),
    ),
    "numpy errors": (
        lines(
            "import numpy as np",
            "out=np.zeros(3)",
        ),
        lines(
            "for i in range(5):",
            "    out[i] = i",
        ),
    ),
    "dict changed size": (
        "d={'a':1}",
        lines(
            "for k in d:",
            "    d[k + 'x'] = 1",
        ),
    ),
    "unhashable": (
        "d={}",
        lines(
            "for i in range(3):",
            "    d[[i]] = 1",
        ),
    ),
    "sparse results": (
        lines(
            "import numpy as np",
            "res=[None]*6",
        ),
        lines(
            "for i in range(6):",
            "    if i % 2:",
            "        continue",
            "    res[i] = np.full(2, i)",
        ),
    ),
    "bool flags": (
        lines(
            "any_bad=False",
            "n_bad=0",
        ),
        lines(
            "for x in [1, -1, 2]:",
            "    if x < 0:",
            "        any_bad = True",
            "        n_bad += 1",
        ),
    ),
    "max idx tuple": (
        lines(
            "best=(-1,None)",
            "def f(x): return -(x-2)**2",
        ),
        lines(
            "for x in range(5):",
            "    best = max(best, (f(x), x))",
        ),
    ),
    "append dict update": (
        "all_={}",
        lines(
            "for i in range(3):",
            "    all_.update({i: i*i})",
            "    all_ |= {i + 10: i}",
        ),
    ),
    "del temp": (
        "out=[]",
        lines(
            "for i in range(3):",
            "    big = [0] * 1000",
            "    out.append(len(big))",
            "    del big",
        ),
    ),
    "print sep": (
        "",
        lines(
            "for i, name in enumerate(['x', 'y'], 1):",
            "    print(i, name, sep=': ')",
        ),
    ),
}
