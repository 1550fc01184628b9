# ruff: noqa: E501 (each cell of the tables stands on one line)
from __future__ import annotations

import builtins
import copyreg
import importlib
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipyparcache.digest import modules
from ipyparcache.digest.code import facts_of
from ipyparcache.digest.objects import Traversal, digest_of
from ipyparcache.digest.states import put_state, state_of
from ipyparcache.errors import Undigestible

NewNotebook = Callable[[], Any]

# Two cells after which `f` differs, though its own text, or even everything that it refers to by name, looks alike.
EDITS = {
    "the body": ("def f(x): return x * 2", "def f(x): return x * 3"),
    "a constant of another type": ("def f(x): return x == 1", "def f(x): return x == True"),
    "a default": ("def f(x, k=1): return x", "def f(x, k=2): return x"),
    "a keyword default": ("def f(x, *, k=1): return x", "def f(x, *, k=2): return x"),
    "an argument's name": ("def f(x): return 1", "def f(y): return 1"),
    "the docstring": ("def f(x):\n    'one'", "def f(x):\n    'two'"),
    "an annotation": ("def f(x: int): return x", "def f(x: str): return x"),
    "an attribute": ("def f(x): return x\nf.unit = 'm'", "def f(x): return x\nf.unit = 's'"),
    "a global": ("K = 1\ndef f(x): return x + K", "K = 2\ndef f(x): return x + K"),
    "a global that appears": ("def f(x): return max(x)", "max = min\ndef f(x): return max(x)"),
    "a missing global": ("def f(x): return later(x)", "later = abs\ndef f(x): return later(x)"),
    "a helper": (
        "def g(x): return x\ndef f(x): return g(x)",
        "def g(x): return -x\ndef f(x): return g(x)",
    ),
    "a helper three deep": (
        "def a(x): return x\ndef b(x): return [a(i) for i in x]\ndef c(): return lambda x: b(x)\ndef f(x): return c()(x)",
        "def a(x): return -x\ndef b(x): return [a(i) for i in x]\ndef c(): return lambda x: b(x)\ndef f(x): return c()(x)",
    ),
    "a helper in a dict": ("T = {'op': lambda x: x}\ndef f(x): return T['op'](x)", "T = {'op': lambda x: -x}\ndef f(x): return T['op'](x)"),
    "a method of a class it makes": (
        "class C:\n    def go(self): return 1\ndef f(x): return C().go()",
        "class C:\n    def go(self): return 2\ndef f(x): return C().go()",
    ),
    "a class attribute": ("class C:\n    k = 1\ndef f(x): return C.k", "class C:\n    k = 2\ndef f(x): return C.k"),
    "a base class": (
        "class B:\n    def go(self): return 1\nclass C(B): pass\ndef f(x): return C().go()",
        "class B:\n    def go(self): return 2\nclass C(B): pass\ndef f(x): return C().go()",
    ),
    "a metaclass": (
        "class M(type):\n    def size(cls): return 1\nclass C(metaclass=M): pass\ndef f(x): return C.size()",
        "class M(type):\n    def size(cls): return 2\nclass C(metaclass=M): pass\ndef f(x): return C.size()",
    ),
    "a property": (
        "class C:\n    @property\n    def p(self): return 1\ndef f(x): return C().p",
        "class C:\n    @property\n    def p(self): return 2\ndef f(x): return C().p",
    ),
    "a static method": (
        "class C:\n    @staticmethod\n    def p(): return 1\ndef f(x): return C.p()",
        "class C:\n    @staticmethod\n    def p(): return 2\ndef f(x): return C.p()",
    ),
    "a cached property": (
        "import functools\nclass C:\n    @functools.cached_property\n    def p(self): return 1\ndef f(x): return C().p",
        "import functools\nclass C:\n    @functools.cached_property\n    def p(self): return 2\ndef f(x): return C().p",
    ),
    "a nested class": (
        "class C:\n    class D:\n        k = 1\ndef f(x): return C.D.k",
        "class C:\n    class D:\n        k = 2\ndef f(x): return C.D.k",
    ),
    "a descriptor": (
        "class D:\n    def __get__(self, *a): return 1\nclass C:\n    p = D()\ndef f(x): return C().p",
        "class D:\n    def __get__(self, *a): return 2\nclass C:\n    p = D()\ndef f(x): return C().p",
    ),
    "__init_subclass__": (
        "class B:\n    def __init_subclass__(cls): cls.k = 1\nclass C(B): pass\ndef f(x): return C.k",
        "class B:\n    def __init_subclass__(cls): cls.k = 2\nclass C(B): pass\ndef f(x): return C.k",
    ),
    "a decorator": (
        "def deco(g):\n    def run(*a): return g(*a) * 2\n    return run\n@deco\ndef f(x): return x",
        "def deco(g):\n    def run(*a): return g(*a) * 3\n    return run\n@deco\ndef f(x): return x",
    ),
    "what a decorator with wraps wraps": (
        "import functools\ndef deco(g):\n    @functools.wraps(g)\n    def run(*a): return g(*a)\n    return run\n@deco\ndef f(x): return x",
        "import functools\ndef deco(g):\n    @functools.wraps(g)\n    def run(*a): return g(*a)\n    return run\n@deco\ndef f(x): return -x",
    ),
    "a closure": (
        "def make(n):\n    def g(x): return x + n\n    return g\nf = make(1)",
        "def make(n):\n    def g(x): return x + n\n    return g\nf = make(2)",
    ),
    "a memoised function": (
        "import functools\n@functools.lru_cache\ndef f(x): return x",
        "import functools\n@functools.lru_cache\ndef f(x): return -x",
    ),
    "the size of a memo": (
        "import functools\n@functools.lru_cache(1)\ndef f(x): return x",
        "import functools\n@functools.lru_cache(2)\ndef f(x): return x",
    ),
    "what a memo holds": (
        "import functools\nN = []\n@functools.lru_cache\ndef f(x): return x + len(N)\nf(1)\nN.append(1)",
        "import functools\nN = [1]\n@functools.lru_cache\ndef f(x): return x + len(N)\nf(1)",
    ),
    "an overload": (
        "import functools\n@functools.singledispatch\ndef f(x): return 0\n@f.register\ndef _(x: int): return 1",
        "import functools\n@functools.singledispatch\ndef f(x): return 0\n@f.register\ndef _(x: int): return 2",
    ),
    "a partial": ("from functools import partial\nf = partial(pow, 2)", "from functools import partial\nf = partial(pow, 3)"),
    "a bound method": (
        "class C:\n    def __init__(self, k): self.k = k\n    def go(self, x): return self.k\nf = C(1).go",
        "class C:\n    def __init__(self, k): self.k = k\n    def go(self, x): return self.k\nf = C(2).go",
    ),
    "an enum member": (
        "import enum\nclass E(enum.Enum):\n    A = 1\ndef f(x): return E.A.value",
        "import enum\nclass E(enum.Enum):\n    A = 2\ndef f(x): return E.A.value",
    ),
    "a field of a data class": (
        "from dataclasses import dataclass\n@dataclass\nclass C:\n    k: int = 1\ndef f(x): return C()",
        "from dataclasses import dataclass\n@dataclass\nclass C:\n    k: int = 2\ndef f(x): return C()",
    ),
    "an exception table": (
        "def f(x):\n    try:\n        a = x\n    except ValueError:\n        a = 0\n    return a",
        "def f(x):\n    try:\n        a = x\n    except TypeError:\n        a = 0\n    return a",
    ),
    "a generator's text": ("def f(x): yield x", "def f(x): yield -x"),
    "a coroutine's text": ("async def f(x): return x", "async def f(x): return -x"),
    "a name in a class body": (
        "K = 1\ndef f(x):\n    class C:\n        k = K\n    return C.k",
        "K = 2\ndef f(x):\n    class C:\n        k = K\n    return C.k",
    ),
    "an f-string": ("def f(x): return f'{x:.1f}'", "def f(x): return f'{x:.2f}'"),
    "a registered subclass": (
        "import abc\nclass A(abc.ABC): pass\ndef f(x): return isinstance(x, A)",
        "import abc\nclass A(abc.ABC): pass\nA.register(int)\ndef f(x): return isinstance(x, A)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_far_or_near_changes_the_digest_of_a_function(new_notebook: NewNotebook, what: str) -> None:
    before, after = EDITS[what]

    assert new_notebook()(before).digest("f") != new_notebook()(after).digest("f")
    assert new_notebook()(before).digest("f") == new_notebook()(before).digest("f")


BENIGN = {
    "comments": (
        "def f(x):\n    return x + 1",
        "# first\ndef f(x):  # second\n    # third\n    return x + 1",
    ),
    "blank lines": ("def f(x):\n    y = x\n    return y", "\n\n\ndef f(x):\n\n    y = x\n\n    return y"),
    "spaces, quotes and brackets": ("def f(x): return {'a': x+1}", 'def f( x ):\n  return {"a": (x + 1)}'),
    "an unused name": ("K = 1\ndef f(x): return x", "K = 2\ndef f(x): return x"),
    "the same definition again": ("def f(x): return x", "def f(x): return x\ndef f(x): return x"),
    "the place of a class": (
        "class C:\n    def go(self): return 1\nf = C().go",
        "pass\n\nclass C:\n\n    def go(self): return 1\n\nf = C().go",
    ),
    "an instance pickled in between": (
        "import pickle\nclass C: pass\nf = C",
        "import copyreg\nclass C: pass\ncopyreg._slotnames(C)\nf = C",
    ),
    "a flag combined in between": (
        "import enum\nclass F(enum.Flag):\n    A = 1\n    B = 2\nf = F",
        "import enum\nclass F(enum.Flag):\n    A = 1\n    B = 2\nF.A | F.B\nf = F",
    ),
    "a function that ran hot": (
        "def f(n):\n    s = 0\n    for i in range(n): s += abs(i)\n    return s",
        "def f(n):\n    s = 0\n    for i in range(n): s += abs(i)\n    return s\nf(1000); f(1000)",
    ),
}


@pytest.mark.parametrize("what", BENIGN)
def test_what_does_not_change_what_a_function_does_leaves_its_digest(
    new_notebook: NewNotebook, what: str
) -> None:
    before, after = BENIGN[what]

    assert new_notebook()(before).digest("f") == new_notebook()(after).digest("f")


MODEL = """
import pydantic
class Inner(pydantic.BaseModel):
    n: int = 1
    @pydantic.field_validator("n", "m", check_fields=False)
    @classmethod
    def check(cls, value): return value + 1
class Model(pydantic.BaseModel):
    inner: Inner = pydantic.Field(default_factory=Inner)
    def go(self): return self.inner.n
def f(x): return Model(inner=x)
"""


def test_a_model_is_the_same_wherever_pydantic_has_made_its_validators(new_notebook: NewNotebook) -> None:
    assert new_notebook()(MODEL).digest("f") == new_notebook()(MODEL).digest("f")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("n: int = 1", "n: int = 2"),
        ("n: int = 1", "n: float = 1"),
        ('"n", "m"', '"m"'),
        ("check_fields=False", "check_fields=False, mode='before'"),
        ("value + 1", "value + 2"),
        ("self.inner.n", "-self.inner.n"),
    ],
)
def test_an_edit_of_a_model_changes_its_digest(new_notebook: NewNotebook, old: str, new: str) -> None:
    assert new_notebook()(MODEL).digest("f") != new_notebook()(MODEL.replace(old, new)).digest("f")


def test_an_instance_of_a_class_that_was_defined_again_is_told_from_a_new_one(notebook: Any) -> None:
    notebook("class C:\n    def go(self): return 1\nold = C()")
    notebook("class C:\n    def go(self): return 2\nnew = C()")

    assert notebook.digest("old") != notebook.digest("new")


def test_the_edited_class_is_named_by_its_root(notebook: Any) -> None:
    notebook("class C:\n    def go(self): return 1\nc = C()")
    before = notebook.traversal("c").digests
    notebook("C.go = lambda self: 2")
    after = notebook.traversal("c").digests

    assert {root for root in after if before.get(root) != after[root]} == {"class __main__.C"}


def test_recursive_functions_and_classes_that_refer_to_each_other_are_digested(notebook: Any) -> None:
    notebook("def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n and even(n - 1)")
    notebook("class A:\n    pass\nclass B:\n    a = A()\nA.b = B()\nA.me = A")

    traversal = notebook.traversal("even", "A")

    assert {"even", "odd", "class __main__.A", "class __main__.B"} <= set(traversal.digests)


def test_names_that_code_reads_tell_absent_from_present(notebook: Any) -> None:
    notebook("K = 1\ndef f(x): return len(x) + K + later")

    reads = {read.name: read.present for read in notebook.traversal("f").reads}

    assert reads == {"len": False, "K": True, "later": False}


def test_ignored_names_are_not_followed(notebook: Any) -> None:
    notebook("verbose = True\ndef f(x): return x if verbose else -x")
    digests = []
    for _ in range(2):
        traversal = Traversal(notebook.names)
        traversal.add("f", notebook["f"])
        traversal.follow(ignored={"verbose"})
        digests.append(traversal.combined())
        notebook("verbose = False")

    assert digests[0] == digests[1]


def test_a_function_with_globals_of_its_own_carries_what_it_reads() -> None:
    made: list[Any] = []
    for k in (1, 2):
        namespace: dict[str, Any] = {"K": k, "unused": k, "__builtins__": __builtins__}
        exec("def f(x): return x + K", namespace)
        made.append(namespace["f"])

    assert digest_of(made[0]) != digest_of(made[1])


def test_an_empty_cell_is_told_from_a_filled_one(notebook: Any) -> None:
    notebook("def make(fill):\n    def g(): return n\n    if fill:\n        n = None\n    return g")
    notebook("empty, filled = make(False), make(True)")

    assert notebook.digest("empty") != notebook.digest("filled")


def test_facts_name_the_attributes_taken_from_a_global(notebook: Any) -> None:
    notebook("def f(x):\n    helpers.K\n    helpers.go(x)\n    whole\n    return [math.pi for _ in x]")

    reads = facts_of(notebook["f"].__code__).reads

    assert reads == {"helpers": {"K", "go"}, "math": {"pi"}, "whole": None}


def test_facts_name_imports_and_global_writes(notebook: Any) -> None:
    notebook(
        "def f():\n    global N\n    from lib.sub import g as h\n    import other.part\n    from . import near\n    N = 1"
    )

    facts = facts_of(notebook["f"].__code__)

    assert [(name, level) for name, level, _ in facts.imports] == [("lib.sub", 0), ("other.part", 0), ("", 1)]
    assert facts.writes == {"N"}


# ---- local modules


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def forget(*names: str) -> None:
    for name in names:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def test_equal_functions_of_two_modules_differ_by_the_constants_they_read(
    local_modules: Path, notebook: Any
) -> None:
    write(local_modules / "m1.py", "K = 1\ndef f(x):\n    return x + K\n")
    write(local_modules / "m2.py", "K = 2\ndef f(x):\n    return x + K\n")

    one = notebook("from m1 import f").digest("f")
    two = notebook("from m2 import f").digest("f")

    assert one != two


def test_a_module_counts_with_the_modules_that_it_imports(
    local_modules: Path, new_notebook: NewNotebook
) -> None:
    write(local_modules / "deep.py", "K = 1\n")
    write(local_modules / "middle.py", "def g(x):\n    import deep\n    return x + deep.K\n")
    write(local_modules / "top.py", "from middle import g\ndef f(x):\n    return g(x)\n")
    before = new_notebook()("import top").digest("top")
    forget("deep", "middle", "top")
    write(local_modules / "deep.py", "K = 20\n")

    assert new_notebook()("import top").digest("top") != before


def test_a_package_counts_with_relative_imports(local_modules: Path, new_notebook: NewNotebook) -> None:
    write(local_modules / "pack" / "__init__.py", "from .part import f\n")
    write(local_modules / "pack" / "part.py", "from . import other\ndef f(x):\n    return other.g(x)\n")
    write(local_modules / "pack" / "other.py", "def g(x):\n    return x\n")
    traversal = new_notebook()("from pack import f").traversal("f")

    assert {"module pack.part", "module pack.other", "module pack"} <= set(traversal.digests)


def test_a_namespace_package_is_known_however_new_its_folder_is(local_modules: Path, notebook: Any) -> None:
    write(local_modules / "portions" / "steps.py", "K = 1\n")

    notebook("import portions.steps")

    assert modules.source_of("portions") is not None


def test_which_local_modules_are_loaded_counts_where_that_is_asked(
    local_modules: Path, notebook: Any
) -> None:
    write(local_modules / "plug.py", "")
    notebook("import sys\ndef f(): return 'plug' in sys.modules\ndef g(): return sys.platform")
    before = notebook.digest("f"), notebook.digest("g")

    notebook("import plug")

    assert notebook.digest("f") != before[0]
    assert notebook.digest("g") == before[1]


def test_an_edited_module_that_was_not_loaded_again_counts_as_loaded(
    local_modules: Path, notebook: Any
) -> None:
    write(local_modules / "helpers.py", "def f(x):\n    return x + 1\n")
    notebook("import helpers")
    before = notebook.digest("helpers")

    write(local_modules / "helpers.py", "def f(x):\n    return x + 222\n")
    edited = notebook.digest("helpers")
    importlib.reload(notebook["helpers"])
    reloaded = notebook.digest("helpers")

    assert before == edited
    assert reloaded != edited


def test_an_attribute_set_on_a_module_counts(local_modules: Path, notebook: Any) -> None:
    write(local_modules / "helpers.py", "K = 1\ndef f(x):\n    return x + K\n")
    notebook("import helpers\nfrom helpers import f\ndef g(x):\n    return helpers.f(x)")
    before = [notebook.digest(name) for name in ("helpers", "f", "g")]

    notebook("helpers.K = 2")

    assert [
        notebook.digest(name) == old for name, old in zip(("helpers", "f", "g"), before, strict=True)
    ] == [False] * 3


def test_what_a_module_read_when_it_was_imported_counts(
    local_modules: Path, new_notebook: NewNotebook
) -> None:
    write(
        local_modules / "conf.py",
        "from pathlib import Path\nK = Path(__file__).with_name('k.txt').read_text()\n",
    )
    write(local_modules / "k.txt", "1")
    before = new_notebook()("import conf").digest("conf")
    forget("conf")
    write(local_modules / "k.txt", "2")

    assert new_notebook()("import conf").digest("conf") != before


def test_a_module_that_is_not_loaded_counts_by_its_file(local_modules: Path, notebook: Any) -> None:
    write(local_modules / "helpers.py", "import deep\n")
    write(local_modules / "deep.py", "K = 1\n")

    def digests() -> dict[str, bytes]:
        importlib.invalidate_caches()
        traversal = Traversal(notebook.names)
        traversal.add_import("helpers")
        return traversal.digests

    before = digests()
    notebook("import helpers")
    loaded = digests()
    forget("deep", "helpers")
    write(local_modules / "deep.py", "K = 2\n")

    assert set(before) == {"module helpers", "module deep"}
    assert loaded == before
    assert digests() != before


def test_a_distribution_counts_by_its_version_under_whatever_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notebook: Any
) -> None:
    site = tmp_path / "site-packages"
    monkeypatch.syspath_prepend(str(site))
    notebook("def h(x):\n    from lib_mod import g\n    return g(x)")

    def install(version: str) -> None:
        for old in site.glob("*.dist-info"):
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
        write(site / "lib_mod" / "__init__.py", f"def g(x):\n    return x * {version[0]}\n")
        folder = site / f"Some_Lib-{version}.dist-info"
        write(folder / "METADATA", f"Metadata-Version: 2.1\nName: Some-Lib\nVersion: {version}\n\nA text.\n")
        write(folder / "RECORD", "lib_mod/__init__.py,,\n")
        importlib.invalidate_caches()

    install("2.0")
    traversal = notebook.traversal("h")
    before = traversal.combined()
    install("3.0")

    assert traversal.digests["package lib_mod"] == b"Some-Lib 2.0"
    assert notebook.traversal("h").combined() != before


def test_a_method_that_the_user_put_on_a_library_class_counts(
    notebook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    notebook("import pandas as pd\ndf = pd.DataFrame({'a': [1]})")
    before = notebook.digest("df")
    notebook("def clean(self): return 1")
    monkeypatch.setattr(pd.DataFrame, "clean", notebook["clean"], raising=False)
    first = notebook.digest("df")
    notebook("def clean(self): return 2")
    monkeypatch.setattr(pd.DataFrame, "clean", notebook["clean"], raising=False)

    assert len({before, first, notebook.digest("df")}) == 3


def test_a_function_that_the_user_put_into_a_library_module_counts(
    notebook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    notebook("import json\ndef f(x): return json.dumps(x)")
    before = notebook.digest("f")
    notebook("def dumps(x): return 'x'")
    monkeypatch.setattr(json, "dumps", notebook["dumps"])

    assert notebook.digest("f") != before


def test_a_method_that_the_user_put_on_a_class_behind_a_function_counts(
    notebook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    notebook("import json\ndef f(x): return json.dumps(x)")
    before = notebook.digest("f")
    notebook("def default(self, x): return 'x'")
    monkeypatch.setattr(json.JSONEncoder, "default", notebook["default"])

    assert notebook.digest("f") != before


def test_a_class_that_the_user_registers_with_one_of_python_counts(notebook: Any) -> None:
    notebook("import collections.abc\ndef f(x): return isinstance(x, collections.abc.Sequence)")
    notebook("class Box: pass")
    before = notebook.digest("f")

    notebook("collections.abc.Sequence.register(Box)")

    assert notebook.digest("f") != before


def test_how_instances_of_a_class_are_copied_counts(notebook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook("class P: pass\np = P()\ndef reduce(p): return P, ()")
    before = notebook.digest("p")

    monkeypatch.setitem(copyreg.dispatch_table, notebook["P"], notebook["reduce"])

    assert notebook.digest("p") != before


def test_a_class_of_a_library_made_inside_a_function_counts_by_content() -> None:
    from collections import namedtuple

    def made(fields: str) -> Any:
        return namedtuple("Row", fields)

    assert digest_of(made("a b")(1, 2)) != digest_of(made("a c")(1, 2))


def test_a_lock_in_a_class_is_named(notebook: Any) -> None:
    notebook("import threading\nclass C:\n    lock = threading.Lock()\nc = C()")

    with pytest.raises(Undigestible) as caught:
        notebook.traversal("c")

    assert "lock" in caught.value.path


def test_memo_content_of_a_bounded_memo_is_read(notebook: Any) -> None:
    notebook(
        "import functools\n@functools.lru_cache(maxsize=2)\ndef f(x, y=0): return [x, y]\nf(1); f(2, y=3); f(4)"
    )
    state: Any = state_of(notebook["f"])
    assert state["calls"] == [((2,), {"y": 3}, [2, 3]), ((4,), {}, [4, 0])]

    notebook["f"](5)
    put_state(notebook["f"], state)
    assert notebook["f"](2, y=3) is state["calls"][0][2]
    assert notebook["f"].cache_info().currsize == 2
    assert notebook["f"](7) == [7, 0]


def test_a_module_that_code_imports_counts_by_attributes_only_if_they_were_changed(
    local_modules: Path, notebook: Any
) -> None:
    write(local_modules / "helpers.py", "K = 1\nTABLE = {}\nimport deep\ndef f(x):\n    return x + K\n")
    write(local_modules / "deep.py", "N = 0\n")

    def digest() -> bytes:
        traversal = Traversal(notebook.names)
        traversal.add_import("helpers")
        traversal.follow()
        return traversal.combined()

    digests = [digest()]
    for cell in (
        "import helpers",
        "helpers.K = 5",
        "helpers.K = 1",
        "helpers.TABLE['a'] = 1",
        "helpers.deep.N = 1",
    ):
        notebook(cell)
        digests.append(digest())

    assert digests[0] == digests[1] == digests[3]
    assert len(set(digests)) == 4


def test_code_put_on_a_library_class_by_a_run_is_found_and_can_be_put_there_again(
    notebook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    notebook("import pandas as pd\ndf = pd.DataFrame({'a': [1]})\ndef clean(self): return 1")
    traversal = notebook.traversal("df")
    monkeypatch.setattr(pd.DataFrame, "clean", notebook["clean"], raising=False)
    [place] = traversal.changed()
    state = state_of(traversal.object_at(*place))
    monkeypatch.undo()
    again = notebook.traversal("df")
    assert again.changed() == []

    put_state(again.object_at(*place), state)

    assert pd.DataFrame.clean is notebook["clean"]
    del pd.DataFrame.clean


def test_code_put_into_a_module_that_the_run_imports_is_found(
    notebook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    traversal = Traversal(notebook.names)
    traversal.add_import("json")
    notebook("def dumps(x): return 'x'")
    import json

    monkeypatch.setattr(json, "dumps", notebook["dumps"])

    assert traversal.changed() == [("patches of json:", 0)]


def test_objects_known_on_both_sides_are_told_by_their_place() -> None:
    inner, other = [1], [2]
    traversal = Traversal({}, known=[inner])
    before = traversal.add("x", {"a": inner, "b": other})
    inner.append(5)

    assert Traversal({}, known=[inner]).add("x", {"a": inner, "b": other}) == before
    assert Traversal({}, known=[other, inner]).add("x", {"a": inner, "b": other}) != before
    assert traversal.count_of("x") == 2


def test_what_cython_modules_share_is_no_code_of_the_user(monkeypatch):
    monkeypatch.setitem(sys.modules, "_cython_9_9", types.ModuleType("_cython_9_9"))
    monkeypatch.setitem(sys.modules, "made_by_hand", types.ModuleType("made_by_hand"))

    assert modules.origin_of("_cython_9_9") == "standard"
    assert modules.origin_of("made_by_hand") == "local"


BEGUN = """
import time
first = time.time()
from ipyparcache.digest import modules
print(modules._process_start() <= first, modules._process_start() > first - 60)
"""


def test_a_process_began_before_its_first_line() -> None:
    told = subprocess.run([sys.executable, "-c", BEGUN], capture_output=True, text=True, check=True)

    assert told.stdout.split() == ["True", "True"]


def test_what_a_module_makes_up_attributes_from_counts(notebook: Any, local_modules: Path) -> None:
    (local_modules / "lazy.py").write_text("_v = {'rate': 2}\ndef __getattr__(name): return _v[name]\n")
    notebook("import lazy\ndef f(): return lazy.rate")
    before = notebook.digest("f")
    notebook("lazy._v['rate'] = 3")

    assert notebook.digest("f") != before


def test_a_name_that_was_put_among_the_builtins_counts_by_value(
    notebook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook("def f(): return RATE_OF_ALL")
    monkeypatch.setattr(builtins, "RATE_OF_ALL", 3, raising=False)
    before = notebook.digest("f")
    monkeypatch.setattr(builtins, "RATE_OF_ALL", 4)

    assert notebook.digest("f") != before
