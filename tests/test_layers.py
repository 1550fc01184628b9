import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ipyparcache

ROOT = Path(ipyparcache.__file__).parent

# In the order of the data flow: a row may import from its own folder and from what it names, always above it.
# A dotted name allows one module of a folder (and what lies below it), a plain one the whole folder or file.
MAY_IMPORT = {
    "errors": set(),
    "settings": {"errors"},
    "lean": set(),
    "pickling": {"errors", "lean"},
    "logger": {"errors"},
    "analysis": {"errors"},
    "digest": {"errors", "analysis", "pickling"},
    "storage": {"errors", "settings", "pickling"},
    "results": {"errors", "logger", "digest", "storage"},
    "func_inspect": {"logger", "digest"},
    "memorized": {"errors", "logger", "digest", "storage", "results", "func_inspect"},
    "disk": {"settings"},
    "memory": {"errors", "pickling", "logger", "digest", "storage", "results", "memorized", "disk"},
    "backports": set(),
    "_store_backends": {"storage", "results", "memorized", "disk", "backports"},
    "hashing": {"digest"},
    "numpy_pickle": {"storage"},
    "compressor": {"storage"},
    "engine": {"errors", "settings", "lean", "pickling", "storage.fileformat"},
    "pool": {"errors", "engine"},
    "_memmapping_reducer": {"engine"},
    "progress": {"errors", "settings"},
    "parallel": {"errors", "settings", "lean", "pickling", "logger", "engine", "progress"},
    "_parallel_backends": {"engine"},
    "externals": {"errors", "pickling", "engine", "parallel"},
    "executor": {"externals"},
    "kernel": {"errors"},
    "cells": {
        "errors", "settings", "pickling", "analysis", "digest", "storage", "memory", "engine", "progress",
        "parallel", "kernel",
    },
    "magics": {
        "errors", "settings", "analysis", "digest", "storage", "engine", "progress", "parallel", "kernel",
        "cells",
    },
    "cli": {"errors", "settings", "storage", "cells.commands"},
    "__main__": {"cli"},
}  # fmt: skip

# Libraries that only the places named may import, so that "is it there, and what if not" is asked once.
ONLY_IN = {
    "IPython": {"__init__", "kernel", "magics", "progress.widget"},
    "ipykernel": {"kernel", "magics", "progress.widget"},
    "ipywidgets": {"progress.widget"},
    "lz4": {"storage.compression"},
    "zstandard": {"storage.compression"},
    "fsspec": {"storage.remote"},
    "dask": {"engine.backends.dask"},
    "distributed": {"engine.backends.dask"},
    "ray": {"engine.backends.ray"},
    "pyspark": {"engine.backends.spark"},
    "ipyparallel": {"engine.backends.ipyparallel"},
    "loky": set(),
}


def module_of(path: Path) -> str:
    """The dotted name of a file below the package, without the package's own: `engine.pool`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(path: Path, at_import: bool = False) -> set[str]:
    """Full names of everything the file imports, inside functions too, or only what importing it imports."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        if not (at_import and deferred):
            waiting.extend(ast.iter_child_nodes(node))
    return found


def is_below(module: str, place: str) -> bool:
    return module == place or module.startswith(place + ".")


def our_imports_of(path: Path, at_import: bool = False) -> set[str]:
    """The modules of the package that the file imports, without the package's own name."""
    found = set()
    for name in imports_of(path, at_import):
        head, _, inner = name.partition(".")
        while head == "ipyparcache" and inner and inner not in FILES:
            inner = inner.rpartition(".")[0]  # a name inside a module
        if head == "ipyparcache" and inner:
            found.add(inner)
    return found


def test_imports_point_one_way():
    wrong = [
        f"{module} imports {target}"
        for module, path in FILES.items()
        if module != "__init__"
        for target in sorted(our_imports_of(path))
        if not is_below(target, here := module.partition(".")[0])
        and not any(is_below(target, place) for place in MAY_IMPORT[here])
    ]

    assert wrong == []


def reached_from(module: str, graph: dict[str, set[str]]) -> set[str]:
    """Modules that importing this one imports, directly or through others."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = graph.get(waiting.pop(), set()) - found
        found |= new
        waiting.extend(new)
    return found


def test_importing_a_module_never_comes_back_to_it():
    """Within a room, an import inside a function may close a circle, as of a registry and what it lists."""
    graph = {module: our_imports_of(path, at_import=True) - {module} for module, path in FILES.items()}
    reached = {module: reached_from(module, graph) for module in graph}
    circles = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in graph
        if module in reached[module]
    }

    assert sorted(circles) == []


def test_optional_and_heavy_libraries_are_imported_in_their_own_places_only():
    wrong = [
        f"{module} imports {name}"
        for module, path in FILES.items()
        for name in sorted(imports_of(path))
        if (places := ONLY_IN.get(name.partition(".")[0])) is not None
        and not any(is_below(module, place) for place in places)
    ]

    assert wrong == []


def test_joblib_is_never_imported_as_a_library_of_ours():
    """`register_joblib` alone touches it, to register our engine with a joblib that the user has."""
    importing = {
        module for module, path in FILES.items() if any(is_below(name, "joblib") for name in imports_of(path))
    }

    assert importing <= {"engine.backends.joblib"}


def modules_loaded_by(statement: str) -> set[str]:
    """What a fresh interpreter holds in `sys.modules` after the statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


SLOW_TO_LOAD = {"asyncio", "dataclasses", "enum", "inspect", "logging", "numpy", "re", "subprocess", "typing"}


def test_a_first_call_loads_nothing_slow_here_or_on_the_worker():
    call = "from ipyparcache import Parallel, delayed; {} = Parallel(2)(delayed({})({!r}) for _ in range(2))"
    on_worker = call.format("there", "eval", "[*__import__('sys').modules]")
    code = f"{on_worker}\nimport json, sys\nprint(json.dumps([[*sys.modules], *there]))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded = [set(modules) - modules_loaded_by("pass") for modules in json.loads(run.stdout)]

    assert [sorted(modules & SLOW_TO_LOAD) for modules in loaded] == [[], [], []]


def test_importing_the_package_loads_next_to_nothing():
    bare = modules_loaded_by("import importlib, __future__")

    assert modules_loaded_by("import ipyparcache") - bare == {"ipyparcache"}


def test_a_worker_starts_without_the_notebook_and_the_network():
    loaded = modules_loaded_by("import ipyparcache.engine.worker")

    assert loaded & {"IPython", "ipykernel", "ipywidgets", "fsspec", "pandas", "asyncio"} == set()


@pytest.mark.parametrize("name", sorted(ipyparcache.__all__))
def test_every_public_name_is_found_on_first_use(name):
    assert getattr(ipyparcache, name) is not None


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Paralel'"):
        ipyparcache.Paralel  # noqa: B018 - the look-up is the point


def test_every_name_of_joblib_is_offered():
    joblib = pytest.importorskip("joblib")

    assert set(joblib.__all__) <= set(ipyparcache.__all__)


def test_type_checkers_are_told_the_same_homes():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module.startswith("ipyparcache.")
    }

    assert told == ipyparcache._HOMES


def test_every_module_has_its_line_in_the_picture_of_the_house():
    picture = (ROOT.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = {path.name for path in FILES.values() if f"`{path.name}`" in picture}
    missing = [path.name for path in FILES.values() if path.name not in {*named, "__init__.py"}]

    assert missing == ["__main__.py"]
