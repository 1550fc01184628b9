"""Results where they lie: mapped, compressed, shelved, damaged, removed, written by several at once."""

import datetime
import itertools
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from ipyparcache import MemorizedResult, Memory, StoreBackendBase, register_store_backend
from ipyparcache.errors import StoreUnavailable
from ipyparcache.memory import CacheWarning
from ipyparcache.storage.local import LocalStore
from ipyparcache.storage.store import STORE_BACKENDS
from tests.contracts.foreign import FolderBackend, SilentBackend
from tests.memory.functions import made, runs


def test_large_results_come_back_writable(memory):
    f = memory.cache(
        made("import numpy as np\ndef f(n):\n    runs.append(n)\n    return {'a': np.arange(n), 'b': [1]}")
    )
    f(1_000_000)
    first = f(1_000_000)
    first["a"][:] = 0

    assert f(1_000_000)["a"][5] == 5
    assert len(runs) == 1


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_results_are_mapped_if_asked_for(tmp_path, mode):
    f = Memory(tmp_path, mmap_mode=mode, verbose=0).cache(
        made("import numpy as np\ndef f(n): return np.arange(n)")
    )
    for back in (f(10), f(10)):
        assert isinstance(back, np.memmap)
        assert back.flags.writeable == (mode != "r")
        np.testing.assert_array_equal(back, np.arange(10))
        if mode != "r":
            back[:] = 0  # stays private: an entry never changes
    del back


def test_a_small_result_stored_without_mapping_is_mapped_when_that_is_asked_for_later(tmp_path):
    source = "import numpy as np\ndef f(n): return np.arange(n)"
    shelved = Memory(tmp_path, verbose=0).cache(made(source)).call_and_shelve(10)

    place = shelved.store_backend.location
    for back in (
        MemorizedResult(place, shelved.func, shelved.args_id, mmap_mode="r").get(),
        Memory(tmp_path, mmap_mode="r", verbose=0).cache(made(source))(10),
    ):
        assert isinstance(back, np.memmap)
        assert not back.flags.writeable
        np.testing.assert_array_equal(back, np.arange(10))
    assert shelved.get().flags.writeable
    del back


@pytest.mark.parametrize("compress", [True, 9, "lz4", ("zstd", 1)])
def test_results_can_be_compressed(tmp_path, compress):
    f = Memory(tmp_path, compress=compress, verbose=0).cache(
        made("import numpy as np\ndef f(n): return [np.ones(n), 'x' * n]")
    )
    f(200_000)
    back = f(200_000)

    assert (back[0].sum(), len(back[1])) == (200_000, 200_000)
    assert sum(item.size for item in f.store_backend.get_items()) < 50_000
    with pytest.warns(UserWarning, match="cannot be memmapped"):
        Memory(tmp_path, compress=compress, mmap_mode="r", verbose=0)


def test_a_shelved_result_is_read_until_it_is_cleared(memory):
    f = memory.cache(made("import numpy as np\ndef f(x): return np.arange(x)"))
    shelved = f.call_and_shelve(5)
    again = pickle.loads(pickle.dumps(shelved))

    assert list(again.get()) == list(shelved.get()) == [0, 1, 2, 3, 4]
    assert (again.func, again.args_id, str(again)) == (shelved.func, shelved.args_id, str(shelved))
    assert list(eval(repr(shelved), {"MemorizedResult": MemorizedResult}).get()) == [0, 1, 2, 3, 4]
    shelved.clear()
    shelved.clear()
    with pytest.raises(KeyError):
        again.get()


def test_a_damaged_shelved_result_is_told(memory, tmp_path):
    f = memory.cache(made("def f(x): return 'x' * x"))
    shelved = f.call_and_shelve(200_000)
    (path,) = (tmp_path / "cache").rglob("*.0")
    with open(path, "r+b") as file:
        file.seek(-100, 2)
        file.write(b"damaged")
    with pytest.raises(KeyError, match="is corrupted"):
        shelved.get()
    assert len(f(200_000)) == 200_000


def test_a_cache_folder_deleted_under_it_is_made_again(memory, tmp_path):
    f = memory.cache(made("def f(x):\n    runs.append(x)\n    return x"))
    f(1)
    subprocess.run(["rm", "-r", str(tmp_path / "cache")], check=True)

    assert [f(1), f(1)] == [1, 1]
    assert len(runs) == 2


def test_reduce_size_keeps_what_was_used_last(memory, monkeypatch):
    clock = map(time.time().__add__, itertools.count(0, 0.001))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    f = memory.cache(made("def f(x):\n    return bytes(1000)"))
    for n in range(10):
        f(n)
    memory.reduce_size()
    assert len(memory.store_backend.get_items()) == 10
    memory.reduce_size(items_limit=5)
    assert [f.check_call_in_cache(n) for n in range(10)] == [False] * 5 + [True] * 5
    memory.reduce_size(bytes_limit="4K")
    assert 1 <= len(memory.store_backend.get_items()) <= 3
    memory.reduce_size(age_limit=datetime.timedelta(0))
    assert memory.store_backend.get_items() == []
    with pytest.raises(ValueError, match="has to be a positive"):
        memory.reduce_size(age_limit=datetime.timedelta(-1))


def test_many_small_results_do_not_make_many_files(memory, tmp_path):
    f = memory.cache(made("def f(x): return x"))
    for n in range(1000):
        f(n)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]

    assert len(files) < 10
    item = memory.store_backend.get_items()[0]
    assert item.size < 700
    assert sorted(memory.store_backend.get_items())
    assert len(set(memory.store_backend.get_items())) == 1000


def test_places_that_are_none_are_told(tmp_path):
    with pytest.warns(UserWarning, match="is not supported"):
        assert Memory(5).store_backend is None
    with pytest.raises(TypeError, match="Unknown location"):
        Memory(tmp_path, backend="unknown")


def test_an_existing_gitignore_is_left_alone(tmp_path):
    Memory(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".gitignore").write_text("mine")
    Memory(tmp_path / "b")

    assert "*" in (tmp_path / "a" / ".gitignore").read_text()
    assert (tmp_path / "b" / ".gitignore").read_text() == "mine"


def test_a_store_that_cannot_be_written_costs_one_warning(tmp_path):
    (tmp_path / "file").write_text("")
    f = Memory(tmp_path / "file", verbose=0).cache(made("def f(x):\n    runs.append(x)\n    return x"))
    with pytest.warns(CacheWarning, match="are not stored"):
        assert f(1) == 1

    assert [f(1), f(2)] == [1, 2]


@pytest.mark.parametrize("attempt", ["clear", "clear_function", "clear_result", "reduce"])
def test_results_that_cannot_be_removed_are_told(memory, monkeypatch, attempt):
    f = memory.cache(made("def f(x): return x"))
    f(1)
    shelved = f.call_and_shelve(1)
    monkeypatch.setattr(LocalStore, "remove", lambda store, names: set())
    monkeypatch.setattr(LocalStore, "wipe", lambda store: None)
    attempts = {
        "clear": memory.clear,
        "clear_function": f.clear,
        "clear_result": shelved.clear,
        "reduce": lambda: memory.reduce_size(items_limit=0),
    }

    with pytest.raises(StoreUnavailable, match="not all results could be removed"):
        attempts[attempt]()
    assert f.check_call_in_cache(1)


def test_a_damaged_result_is_computed_again_with_a_warning(memory, tmp_path, caplog):
    f = memory.cache(made("def f(x):\n    runs.append(x)\n    return 'x' * x"))
    f(200_000)
    (path,) = (tmp_path / "cache").rglob("*.0")
    path.write_bytes(b"garbage")

    assert [len(f(200_000)), len(f(200_000))] == [200_000, 200_000]
    assert len(runs) == 2
    (record,) = caplog.records
    assert "Exception while loading results" in record.getMessage()


def test_two_threads_compute_a_call_once(memory, monkeypatch):
    # What is quicker than this, everybody computes alone.
    monkeypatch.setattr("ipyparcache.memorized._QUICK_SECONDS", 0)
    started, go_on = threading.Event(), threading.Event()

    def slow(x, started, go_on):
        runs.append(x)
        started.set()
        go_on.wait(10)
        return x

    f = memory.cache(slow, ignore=["started", "go_on"])
    results = []
    threads = [threading.Thread(target=lambda: results.append(f(1, started, go_on))) for _ in range(2)]
    threads[0].start()
    started.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()

    assert (results, runs) == ([1, 1], [1])


def test_processes_that_compute_at_once_leave_a_readable_entry(tmp_path):
    code = (
        "import sys\n"
        "from ipyparcache import Memory\n"
        "def f(x):\n"
        "    return list(range(x))\n"
        f"f = Memory({str(tmp_path / 'cache')!r}, verbose=0).cache(f)\n"
        "for n in range(50): assert f(n) == list(range(n))\n"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(3)
    ]

    assert [other.communicate()[0] for other in others] == [b"", b"", b""]
    assert [other.returncode for other in others] == [0, 0, 0]


@pytest.mark.parametrize("size", [10, 200_000], ids=["packed", "file"])
def test_a_process_killed_in_the_midst_of_a_write_leaves_the_others_results(tmp_path, size):
    code = textwrap.dedent(f"""
        import os, signal, sys
        from ipyparcache import Memory
        def f(x): return str(x) * {size}
        f = Memory({str(tmp_path / "cache")!r}, verbose=0).cache(f)
        if sys.argv[1] == "die":
            f(1)
            write = os.write
            def half(handle, data):
                write(handle, bytes(data)[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            os.write = half
            f(2)
        stored = [f.check_call_in_cache(n) for n in (1, 2)]
        for n in (1, 2, 3, 2, 3): assert f(n) == str(n) * {size}
        print(stored, [f.check_call_in_cache(n) for n in (1, 2, 3)])
    """)
    runs = [
        subprocess.run([sys.executable, "-c", code, what], capture_output=True, text=True)
        for what in ("die", "go on", "go on")
    ]

    assert runs[0].returncode == -signal.SIGKILL
    assert [run.stdout.strip() for run in runs[1:]] == [
        "[True, False] [True, True, True]",
        "[True, True] [True, True, True]",
    ]


def test_processes_fill_a_cache_that_another_clears(tmp_path):
    filling = textwrap.dedent(f"""
        import random, sys, warnings
        warnings.simplefilter("error")
        from ipyparcache import Memory
        def f(x): return str(x) * (100_000 if x % 10 == 0 else 10)
        cached = Memory({str(tmp_path / "cache")!r}, verbose=0).cache(f)
        draw = random.Random(sys.argv[1])
        for _ in range(1000):
            x = draw.randrange(100)
            assert cached(x) == f(x)
    """)
    fillers = [
        subprocess.Popen(
            [sys.executable, "-c", filling, which], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for which in "ab"
    ]
    memory = Memory(tmp_path / "cache", verbose=0)
    for n in itertools.count():
        if n % 2:
            memory.clear(warn=False)
        else:
            memory.reduce_size(items_limit=5)
        if all(filler.poll() is not None for filler in fillers):
            break

    assert [filler.communicate()[0] for filler in fillers] == [b"", b""]
    assert [filler.returncode for filler in fillers] == [0, 0]


def test_a_result_is_found_by_the_name_that_another_tells(memory):
    shelved = memory.cache(os.path.join).call_and_shelve("a", "b")

    assert MemorizedResult(memory.store_backend.location, shelved._call_id).get() == "a/b"
    with pytest.raises(TypeError, match="args_id"):
        MemorizedResult(memory.store_backend.location, "f")


@pytest.fixture
def backends(monkeypatch):
    """A way to register a backend for this test alone."""
    before = dict(STORE_BACKENDS)
    yield register_store_backend
    STORE_BACKENDS.clear()
    STORE_BACKENDS.update(before)


@pytest.mark.parametrize("backend", [FolderBackend, SilentBackend])
def test_a_backend_of_somebody_else_keeps_results(tmp_path, backends, backend):
    backends("files", backend)
    memory = Memory(tmp_path / "x", backend="files", verbose=0, backend_options={"a": 1})
    function = made("import numpy as np\ndef f(x):\n    runs.append(x)\n    return np.arange(x)")
    f = memory.cache(function)

    assert [len(f(3)), len(f(3)), len(f(200_000)), len(f(200_000))] == [3, 3, 200_000, 200_000]
    assert len(runs) == 2
    assert len(pickle.loads(pickle.dumps(memory)).cache(function)(3)) == 3
    assert len(runs) == 2
    f.clear(warn=False)
    f(3)
    assert len(runs) == 3
    memory.clear(warn=False)
    f(3)
    assert len(runs) == 4


def test_a_backend_of_somebody_else_is_kept_small(tmp_path, backends):
    backends("files", FolderBackend)
    memory = Memory(tmp_path, backend="files", verbose=0)
    f = memory.cache(made("def f(x):\n    runs.append(x)\n    return bytes(1000)"))
    for x in range(5):
        f(x)
    memory.reduce_size(items_limit=2)

    assert len(memory.store_backend.get_items()) == 2
    assert sum(f.check_call_in_cache(x) for x in range(5)) == 2


def test_a_backend_that_lacks_a_method_is_told_at_once(tmp_path, backends):
    class Half(StoreBackendBase):
        def _open_item(self, f, mode):
            return None

    backends("half", Half)
    with pytest.raises(TypeError, match="abstract"):
        Memory(tmp_path, backend="half")


def test_a_result_is_looked_at_and_removed_by_the_name_that_its_function_gives(memory):
    f = memory.cache(made("def f(x):\n    runs.append(x)\n    return x + 1"))
    f(1)
    f(2)
    store = memory.store_backend
    call = (f.func_id, f._get_args_id(1))

    assert call == f._get_output_identifiers(x=1)
    assert (store.contains_item(call), store.load_item(call)) == (True, 2)
    assert store.get_metadata(call)["input_args"] == {"x": "1"}
    store.clear_item(call)
    store.clear_item(call)
    assert (store.contains_item(call), store.get_metadata(call)) == (False, {})
    with pytest.raises(KeyError, match="Non-existing item"):
        store.load_item(call)
    assert [f.check_call_in_cache(1), f.check_call_in_cache(2)] == [False, True]


@pytest.mark.parametrize(
    ("name", "backend", "says"),
    [(1, FolderBackend, "should be a string"), ("x", dict, "should inherit StoreBackendBase")],
)
def test_what_is_no_backend_is_told(name, backend, says):
    with pytest.raises(ValueError, match=says):
        register_store_backend(name, backend)
