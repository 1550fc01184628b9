"""Store backends that programs and libraries wrote for joblib's `Memory`: each run with joblib and us."""

import datetime
import importlib
import io
import os

import joblib
import pytest

import ipyparcache

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
    tables = {joblib: joblib.memory._STORE_BACKENDS, ipyparcache: ipyparcache.storage.store.STORE_BACKENDS}
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
