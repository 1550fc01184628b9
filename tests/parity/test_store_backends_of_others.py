"""Store backends that programs and libraries wrote for joblib's `Memory`: each run with joblib and us."""

import datetime
import importlib
import io
import os
import pickle

import joblib
import pytest

import ipyparcache
from ipyparcache.storage import store

BOTH = pytest.mark.parametrize("package", [joblib, ipyparcache], ids=["joblib", "ours"])
KINDS = pytest.mark.parametrize("lists", [True, False], ids=["listing", "silent"])


def object_store(package, lists):
    """A backend over a dict of bytes, with paths as those of object stores: there are no folders."""
    names = importlib.import_module(f"{package.__name__}._store_backends")
    objects = {}

    class Writing(io.BytesIO):
        def __init__(self, path):
            super().__init__()
            self.path = path

        def close(self):
            if not self.closed:
                objects[self.path] = self.getvalue()
            super().close()

    class ObjectStoreBackend(names.StoreBackendBase, names.StoreBackendMixin):
        def configure(self, location, verbose=0, backend_options=None):
            self.location = location
            self.verbose = verbose
            self.compress = backend_options["compress"]
            self.mmap_mode = None
            self.bucket = backend_options["bucket"]

        def _open_item(self, f, mode):
            if mode == "wb":
                return Writing(f)
            if f not in objects:
                raise FileNotFoundError(f)
            return io.BytesIO(objects[f])

        def _item_exists(self, location):
            return location in objects or any(path.startswith(f"{location}/") for path in objects)

        def _move_item(self, src, dst):
            objects[dst] = objects.pop(src)

        def create_location(self, location):
            pass

        def clear_location(self, location):
            for path in [path for path in objects if path.startswith(f"{location}/")]:
                del objects[path]

        def get_items(self):
            if not lists:
                return []
            now = datetime.datetime.now()
            return [
                names.CacheItemInfo(os.path.dirname(path), len(objects[path]), now)
                for path in objects
                if path.endswith("/output.pkl")
            ]

    return ObjectStoreBackend, objects


@pytest.fixture
def memory(package, lists, monkeypatch):
    backend, objects = object_store(package, lists)
    tables = {joblib: joblib.memory._STORE_BACKENDS, ipyparcache: store.STORE_BACKENDS}
    monkeypatch.setitem(tables[package], "objects", backend)
    package.register_store_backend("objects", backend)
    made = package.Memory("bucket://x", backend="objects", verbose=0, backend_options={"bucket": "x"})
    return made, objects


def counted():
    runs = []

    def double(x):
        runs.append(x)
        return [x, x]

    return double, runs


@BOTH
@KINDS
def test_results_are_kept_and_found(memory):
    double, runs = counted()
    cached = memory[0].cache(double)
    assert [cached(1), cached(1), cached(2), cached(2)] == [[1, 1], [1, 1], [2, 2], [2, 2]]
    assert memory[0].cache(double)(1) == [1, 1]
    assert runs == [1, 2]
    assert all(path.startswith("bucket://x/joblib/") for path in memory[1])


@BOTH
@KINDS
def test_the_results_of_one_function_are_cleared(memory):
    first, first_runs = counted()
    cached, others = memory[0].cache(first), memory[0].cache(len)
    cached(1)
    others((1, 2))
    cached.clear(warn=False)
    cached(1)
    assert first_runs == [1, 1]
    assert others.check_call_in_cache((1, 2))


@BOTH
@KINDS
def test_all_results_are_cleared(memory):
    double, runs = counted()
    cached = memory[0].cache(double)
    cached(1)
    memory[0].clear(warn=False)
    assert memory[1] == {}
    cached(1)
    assert runs == [1, 1]


@BOTH
@KINDS
def test_a_shelved_result_is_read_and_cleared(memory):
    double, _ = counted()
    shelved = memory[0].cache(double).call_and_shelve(3)
    assert shelved.get() == [3, 3]
    shelved.clear()
    with pytest.raises(KeyError):
        shelved.get()


@BOTH
@pytest.mark.parametrize("lists", [True], ids=["listing"])
def test_the_store_is_kept_small(memory, lists):
    double, _ = counted()
    cached = memory[0].cache(double)
    for x in range(5):
        cached(x)
    memory[0].reduce_size(items_limit=2)
    assert len(memory[0].store_backend.get_items()) == 2
    assert sum(cached.check_call_in_cache(x) for x in range(5)) == 2


@pytest.fixture
def names(package):
    return importlib.import_module(f"{package.__name__}._store_backends")


@pytest.fixture
def files(names, tmp_path):
    backend = names.FileSystemStoreBackend()
    backend.configure(str(tmp_path / "store"))
    return backend


@BOTH
def test_a_backend_that_changes_a_step_of_the_file_systems(package, names, monkeypatch, tmp_path):
    opened = []

    class Watched(names.FileSystemStoreBackend):
        def _open_item(self, f, mode):
            opened.append(mode)
            return open(f, mode)

    tables = {joblib: joblib.memory._STORE_BACKENDS, ipyparcache: store.STORE_BACKENDS}
    monkeypatch.setitem(tables[package], "watched", Watched)
    memory = package.Memory(str(tmp_path), backend="watched", verbose=0)
    double, runs = counted()

    assert [memory.cache(double)(1), memory.cache(double)(1)] == [[1, 1], [1, 1]]
    assert runs == [1]
    assert {"wb", "rb"} <= set(opened)
    assert len(memory.store_backend.get_items()) == 1


@BOTH
def test_what_a_backend_inherits_keeps_objects_by_name(files, capsys):
    call = ("module", "function", "0" * 32)
    assert not files.contains_item(call)
    with pytest.raises(KeyError):
        files.load_item(call)

    files.dump_item(call, {"a": [1, 2]})
    files.store_metadata(call, {"duration": 1.5})
    files.store_cached_func_code(call[:2], "def function(): pass\n")

    assert files.contains_item(call)
    assert files.load_item(call, verbose=0) == {"a": [1, 2]}
    assert files.get_metadata(call) == {"duration": 1.5}
    assert files.get_metadata(call[:2]) == {}
    assert files.get_cached_func_code(call[:2]) == "def function(): pass\n"
    assert files.get_item_info(call) == {"location": os.path.join(files.location, *call)}
    assert files.get_cached_func_info(call[:2]) == {"location": os.path.join(files.location, *call[:2])}
    assert [item.path for item in files.get_items()] == [os.path.join(files.location, *call)]
    files.clear_item(call)
    assert not files.contains_item(call)
    files.dump_item(call, 1)
    files.clear()
    assert files.get_items() == []
    assert repr(files) == f'FileSystemStoreBackend(location="{files.location}")'


@BOTH
def test_what_a_backend_inherits_keeps_the_store_small(files):
    for index in range(4):
        call = ("function", f"{index:032}")
        files.dump_item(call, "a" * 1000)
        os.utime(os.path.join(files.location, *call, "output.pkl"), (1e9 + index, 1e9))
    with pytest.raises(ValueError, match="positive"):
        files.enforce_store_limits(None, None, datetime.timedelta(days=-1))
    files.enforce_store_limits("2.5K")
    assert {os.path.basename(item.path) for item in files.get_items()} == {f"{2:032}", f"{3:032}"}
    files.enforce_store_limits(None, 1)
    assert {os.path.basename(item.path) for item in files.get_items()} == {f"{3:032}"}
    files.enforce_store_limits(None, None, datetime.timedelta(days=1))
    assert files.get_items() == []


@BOTH
@pytest.mark.parametrize("error", [RuntimeError, pickle.PicklingError])
def test_what_a_backend_inherits_warns_of_what_cannot_be_written(package, files, names, error):
    class Stubborn:
        def __reduce__(self):
            raise error("will not go")

    kind = FutureWarning if error is pickle.PicklingError else names.CacheWarning
    with pytest.warns(kind, match="will not go"):
        files.dump_item(("function", "0" * 32), Stubborn())
    # joblib leaves the beginning of the file where a PicklingError ended it
    assert package is joblib or not files.contains_item(("function", "0" * 32))


@BOTH
def test_a_file_is_replaced_whole_or_not_at_all(files, names):
    call = ("module", "function")
    files.store_cached_func_code(call, "first")

    def failing(name, mode):
        open(name, mode).close()
        raise RuntimeError("disk full")

    files._open_item = failing
    with pytest.raises(RuntimeError, match="disk full"):
        files.store_cached_func_code(call, "second")
    del files._open_item
    assert files.get_cached_func_code(call) == "first"
