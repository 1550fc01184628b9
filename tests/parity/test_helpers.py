"""joblib's helper modules: the same calls put to its functions and to ours of the same name."""

import copyreg
import functools
import importlib
import io
import linecache
import os
import pickle
from pathlib import Path

import joblib
import numpy as np
import pytest

import ipyparcache

pytestmark = pytest.mark.filterwarnings("ignore:Cannot inspect object:UserWarning")


def both(module, name):
    """joblib's function and ours."""
    return [getattr(importlib.import_module(f"{top}.{module}"), name) for top in ("joblib", "ipyparcache")]


def answer(call, *args, **kwargs):
    """What a call gives: its value, or the kind of its error."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        bases = (ValueError, TypeError, OSError)
        return next((base.__name__ for base in bases if isinstance(error, base)), type(error).__name__)


def same(module, name, *args, **kwargs):
    theirs, ours = (answer(function, *args, **kwargs) for function in both(module, name))
    assert ours == theirs
    return ours


def plain(x, y=0):
    return x, y


def starred(x, y=0, *rest, z=1, **more):
    return x, y, rest, z, more


def only_stars(*args, **kwargs):
    return args, kwargs


def keywords(x, *, y, z=3):
    return x, y, z


def keyword_default_first(*, a=1, b):
    return a, b


class Holder:
    def method(self, x, y=2):
        return x, y

    @classmethod
    def of_class(cls, x):
        return cls, x

    @staticmethod
    def of_none(x):
        return x

    class Inner:
        def method(self):
            return 1


@functools.wraps(plain)
def wrapper(*args, **kwargs):
    return plain(*args, **kwargs)


holder = Holder()
partial = functools.partial(plain, 1)


def outer():
    def inner(x):
        return x

    return inner


# ---- func_inspect


@pytest.mark.parametrize(
    ("function", "ignore", "args", "kwargs"),
    [
        (plain, [], (1,), {}),
        (plain, [], (1, 2), {}),
        (plain, [], (), {"y": 1, "x": 2}),
        (plain, ["x"], (1,), {}),
        (plain, ["x", "y"], (1,), {"y": 3}),
        (plain, [], (), {}),
        (plain, [], (1, 2, 3), {}),
        (plain, [], (1,), {"x": 2}),
        (plain, [], (1,), {"unknown": 2}),
        (plain, ["unknown"], (1,), {}),
        (plain, ["*"], (1,), {}),
        (plain, ["**"], (1,), {}),
        (plain, "x", (1,), {}),
        (starred, [], (1,), {}),
        (starred, [], (1, 2, 3, 4), {"e": 5}),
        (starred, ["*"], (1, 2, 3), {"e": 5}),
        (starred, ["**", "z"], (1, 2, 3), {"e": 5}),
        (starred, ["rest"], (1, 2, 3), {"e": 5}),
        (starred, ["x"], (), {"y": 1}),
        (only_stars, [], (1, 2), {"a": 3}),
        (only_stars, [], (), {}),
        (keywords, [], (1,), {"y": 2}),
        (keywords, [], (1, 2), {}),
        (keywords, [], (1,), {}),
        (keyword_default_first, [], (), {"b": 1}),
        (holder.method, [], (1,), {}),
        (holder.method, ["self"], (1,), {"y": 3}),
        (holder.method, [], (), {}),
        (Holder.of_class, [], (1,), {}),
        (Holder.of_none, [], (1,), {}),
        (wrapper, [], (1,), {}),
        (outer(), [], ([],), {}),
        (partial, [], (1,), {}),
        (partial, ["y"], (1,), {"y": 2}),
        (len, [], ([],), {}),
        (np.square, [], (1,), {"out": None}),
        (Holder, [], (), {}),
    ],
)
def test_arguments_by_parameter(function, ignore, args, kwargs):
    before = dict(kwargs)
    theirs, ours = (answer(filter_args, function, ignore, args, kwargs) for filter_args in both_filters)

    if ignore == ["rest"]:  # joblib knows it as `*` only
        assert (theirs, ours) == ("ValueError", {"x": 1, "y": 2, "z": 1, "**": {"e": 5}})
    else:
        assert ours == theirs
    assert kwargs == before


both_filters = both("func_inspect", "filter_args")


def test_positional_only_parameters_are_bound_here():
    def f(x, /, y=1):
        return x, y

    theirs, ours = (answer(filter_args, f, [], (1, 2)) for filter_args in both_filters)
    assert (theirs, ours) == ("ValueError", {"x": 1, "y": 2})


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_ignored_is_warned_of():
    for filter_args in both_filters:
        with pytest.warns(UserWarning, match="Cannot inspect object"):
            filter_args(partial, ["y"], (1,))


FUNCTIONS = [
    plain, wrapper, outer, outer(), (lambda x: x), holder.method, Holder.method, Holder.of_class,
    Holder.of_none, Holder.Inner().method, Holder, holder, partial, len, "a".lower, [].append, dict.get,
    np.square, np.vander, joblib.Memory,
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_names(function):
    parts, name = same("func_inspect", "get_func_name", function)
    assert same("func_inspect", "get_func_name", function, resolv_alias=False) == (parts, name)


@pytest.mark.parametrize(
    "file",
    ["<ipython-input-3-0123abcd>", "/tmp/ipykernel_12345/678.py", "/home/a/script.py", "/home/a.b/no-suffix"],
)
def test_names_of_functions_of_a_notebook_or_script(file, monkeypatch):
    source = "def f(x):\n    return x\n"
    monkeypatch.setitem(linecache.cache, file, (len(source), None, source.splitlines(True), file))
    namespace = {"__name__": "__main__"}
    exec(compile(source, file, "exec"), namespace)
    parts, name = same("func_inspect", "get_func_name", namespace["f"])

    assert (parts[0].split("-")[0], name) == ("__main__", "f")
    assert "12345" not in "".join(parts)
    assert same("func_inspect", "get_func_code", namespace["f"]) == (source, file, 1)


@pytest.mark.parametrize("text", [r"C:\folder\main.py", "<lambda>", "a!b", "plain_name"])
def test_names_on_windows(text):
    ours = importlib.import_module("ipyparcache.func_inspect").quoted
    theirs = importlib.import_module("joblib.func_inspect")._clean_win_chars

    assert ours(text) == theirs(text)


@pytest.mark.parametrize("function", FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_sources(function):
    source, file, line = same("func_inspect", "get_func_code", function)
    assert (file is None) == (line == -1)
    assert source


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "changing.py"
    path.write_text("# -*- coding: latin-1 -*-\ndef f(x):\n    return 'é'\n", encoding="latin-1")
    namespace = {}
    exec(compile(path.read_bytes(), str(path), "exec"), namespace)
    first = same("func_inspect", "get_func_code", namespace["f"])
    path.write_text("\ndef f(x):\n    return 2\n")

    assert first == ("def f(x):\n    return 'é'\n", str(path), 2)
    assert same("func_inspect", "get_func_code", namespace["f"])[0] == "def f(x):\n    return 2\n"


def test_code_stands_in_for_a_source_that_is_gone():
    def made(text):
        namespace = {}
        exec(compile(text, "<nowhere>", "exec"), namespace)
        return namespace["f"]

    theirs, ours = both("func_inspect", "get_func_code")
    first, again, moved, other = map(
        made, ["def f(x): return x", "def f(x): return x", "\n\ndef f(x): return x", "def f(x): return -x"]
    )
    for get_func_code in theirs, ours:
        assert get_func_code(first)[1:] == ("<nowhere>", -1)
        assert get_func_code(first) == get_func_code(again) == get_func_code(moved)
        assert get_func_code(first)[0] != get_func_code(other)[0]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1, "two", (3, 4)), {"y": True}),
        ((list(range(40)), 2, 3), {"y": list(range(40))}),
        ((np.arange(1000.0), np.eye(2)), {}),
        ((["x" * 30] * 4, {"a": ["b"]}, "c" * 90, 1), {}),
    ],
)
def test_calls_as_text(args, kwargs):
    same("func_inspect", "format_signature", only_stars, *args, **kwargs)
    same("func_inspect", "format_call", only_stars, args, kwargs)
    same("func_inspect", "format_call", outer(), args, kwargs, object_name="Cache")


def test_long_arguments_are_shortened():
    for format_signature in both("func_inspect", "format_signature"):
        assert len(format_signature(only_stars, "a" * 1500, b="b" * 5000)[1]) < 2 * 720


# ---- disk


@pytest.mark.parametrize(
    "text",
    ["80G", "1.4M", "120M", "53K", "0K", ".5G", "1.M", "fooG", "1.4N", "", "K", "1,5M", None, 5, b"5K"],
)
def test_sizes(text):
    theirs, ours = (answer(memstr_to_bytes, text) for memstr_to_bytes in both("disk", "memstr_to_bytes"))

    # What joblib says of no text at all differs from case to case.
    assert ours == (theirs if isinstance(text, str) and text else "ValueError")


@pytest.mark.parametrize(("text", "count"), [("500", 500), ("2GB", 2 * 10**9), ("1T", 1 << 40)])
def test_more_sizes_are_read_here(text, count):
    assert importlib.import_module("ipyparcache.disk").memstr_to_bytes(text) == count


def test_disk_used(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "large").write_bytes(os.urandom(1 << 20))
    (tmp_path / "small").write_bytes(b"1")
    (tmp_path / "below" / "not counted").write_bytes(os.urandom(1 << 18))

    assert same("disk", "disk_used", str(tmp_path)) >= 1024
    assert same("disk", "disk_used", tmp_path / "missing") == "OSError"


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(params=["joblib", "ipyparcache"])
def disk(request):
    return importlib.import_module(f"{request.param}.disk")


def test_folders_are_made(disk, tmp_path):
    disk.mkdirp(tmp_path / "a" / "b")
    disk.mkdirp(str(tmp_path / "a" / "b"))

    assert tree(tmp_path) == ["a", "a/b"]
    with pytest.raises(OSError, match="No such file"):
        disk.mkdirp("")


def test_folders_below_are_removed_and_files_stay(disk, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("1")
    (tmp_path / "file").write_text("1")
    disk.rm_subdirs(str(tmp_path))

    assert tree(tmp_path) == ["file"]


def test_errors_of_removing_are_told(disk, tmp_path):
    told = []

    def onerror(function, path, facts):
        told.append((function.__name__, path, facts[0]))

    (tmp_path / "target").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "target")
    disk.rm_subdirs(str(tmp_path / "missing"), onerror)
    disk.rm_subdirs(str(tmp_path / "folder"), onerror)

    assert told[0] == ("listdir", str(tmp_path / "missing"), FileNotFoundError)
    assert [path for _, path, _ in told[1:]] == [str(tmp_path / "folder" / "link")]
    with pytest.raises(FileNotFoundError):
        disk.rm_subdirs(str(tmp_path / "missing"))


def test_a_folder_is_removed_if_it_is_there(disk, tmp_path):
    (tmp_path / "full" / "below").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    disk.delete_folder(str(tmp_path / "missing"))
    disk.delete_folder(str(tmp_path / "full"))
    assert tree(tmp_path) == ["empty"]


def test_a_folder_that_should_be_empty_stays_with_what_it_holds(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "RM_SUBDIRS_RETRY_TIME", 0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("1")

    with pytest.raises(OSError, match="mpty"):
        disk.delete_folder(str(tmp_path / "full"), allow_non_empty=False)
    assert tree(tmp_path) == ["full", "full/file"]


def test_removing_is_tried_again(tmp_path, monkeypatch):
    from ipyparcache import disk

    monkeypatch.setattr(disk, "RM_SUBDIRS_RETRY_TIME", 0)
    attempts = []
    real = disk.shutil.rmtree

    def busy_twice(path, *args, **kwargs):
        attempts.append(path)
        if len(attempts) < 3:
            raise PermissionError("in use")
        real(path, *args, **kwargs)

    monkeypatch.setattr(disk.shutil, "rmtree", busy_twice)
    (tmp_path / "folder").mkdir()
    disk.delete_folder(tmp_path / "folder")

    assert (len(attempts), tree(tmp_path)) == (3, [])


# ---- hashing, numpy_pickle, compressor, logger


def test_the_modules_offer_what_the_package_does():
    from ipyparcache import compressor, hashing, logger, numpy_pickle

    assert hashing.hash is ipyparcache.hash
    assert (numpy_pickle.dump, numpy_pickle.load) == (ipyparcache.dump, ipyparcache.load)
    assert compressor.register_compressor is ipyparcache.register_compressor
    assert (logger.Logger, logger.PrintTime) == (ipyparcache.Logger, ipyparcache.PrintTime)


@pytest.mark.parametrize("seconds", [0, 0.04, 3.26, 60, 61, 75.25, 6000])
def test_times_as_text(seconds):
    same("logger", "format_time", seconds)
    theirs, ours = (function(seconds) for function in both("logger", "short_format_time"))
    assert ours.strip() == theirs.strip()


VALUE = [np.arange(5.0), np.array(["a", None, {"b": 1}], dtype=object), "text", {1: np.eye(2)}]


@pytest.mark.parametrize("writer", [joblib, ipyparcache])
@pytest.mark.parametrize("name", ["value", "value.gz"])
def test_an_unpickler_asks_its_subclass_for_every_name(writer, name, tmp_path):
    from ipyparcache.numpy_pickle import NumpyUnpickler

    class Runs:
        def __reduce__(self):
            return os.getcwd, ()

    class Restricted(NumpyUnpickler):
        def __init__(self, *args, allowed, **kwargs):
            super().__init__(*args, **kwargs)
            self.allowed = allowed

        def find_class(self, module, name):
            if module.partition(".")[0] not in self.allowed:
                raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
            return super().find_class(module, name)

    def read(path):
        with open(path, "rb") as file:
            return Restricted(path, file, True, allowed={"numpy", "_codecs", "joblib"}).load()

    path = str(tmp_path / name)
    writer.dump(VALUE, path)
    back = read(path)
    assert [type(part) for part in back] == [type(part) for part in VALUE]
    np.testing.assert_array_equal(back[0], VALUE[0])
    assert back[1].tolist() == VALUE[1].tolist()

    for hidden in (Runs(), np.array([Runs()], dtype=object), [np.arange(3), Runs()]):
        writer.dump(hidden, path)
        with pytest.raises(pickle.UnpicklingError, match="not allowed"):
            read(path)


def test_an_unpickler_refuses_pickles_that_would_not_ask_it():
    from ipyparcache.numpy_pickle import NumpyUnpickler

    path = Path(joblib.__file__).parent / "test" / "data" / "joblib_0.9.2_pickle_py35_np19.pkl"
    with open(path, "rb") as file, pytest.raises(ValueError, match="allow_pickle=False"):
        NumpyUnpickler(path, file, True).load()


class Counted:
    def __init__(self, array):
        self.array = array


def rebuilt(array):
    return Counted(array + 1)


@pytest.mark.parametrize("module", ["joblib", "ipyparcache"])
def test_a_pickler_takes_reducers_of_its_own(module):
    numpy_pickle = importlib.import_module(f"{module}.numpy_pickle")
    file = io.BytesIO()
    pickler = numpy_pickle.NumpyPickler(file)
    pickler.dispatch_table = copyreg.dispatch_table.copy()
    pickler.dispatch_table[Counted] = lambda counted: (rebuilt, (counted.array,))
    pickler.dump([Counted(np.arange(3)), np.eye(2)])
    file.seek(0)
    counted, eye = numpy_pickle.load(file)

    assert (counted.array.tolist(), eye.tolist()) == ([1, 2, 3], np.eye(2).tolist())


def test_a_pickler_writes_one_object_behind_another():
    from ipyparcache.numpy_pickle import NumpyPickler, load

    file = io.BytesIO()
    pickler = NumpyPickler(file)
    array = np.arange(3)
    for value in (array, [array, "x"], "y"):
        pickler.dump(value)
    file.seek(0)

    assert load(file).tolist() == [0, 1, 2]
    second = load(file)
    assert (second[0].tolist(), second[1], load(file)) == ([0, 1, 2], "x", "y")


@pytest.mark.parametrize("name", ["BinaryZlibFile", "BinaryGzipFile"])
@pytest.mark.parametrize("order", [1, -1])
def test_compressed_files_are_read_by_the_other(name, order, tmp_path):
    writer, reader = both("compressor", name)[::order]
    data = b"some text " * 10_000
    path = tmp_path / "file"
    with writer(str(path), "wb", compresslevel=9) as file:
        assert (file.writable(), file.readable(), file.write(data)) == (True, False, len(data))
    with reader(str(path)) as file:
        assert (file.read(9), file.tell(), file.seek(100), file.read()) == (data[:9], 9, 100, data[100:])
        assert file.seekable()
        file.seek(0)
        assert file.readline() == data
    assert file.closed


@pytest.mark.parametrize("name", ["BinaryZlibFile", "BinaryGzipFile"])
def test_a_compressed_file_leaves_a_file_object_open_and_closes_its_own(name, tmp_path):
    make = both("compressor", name)[1]
    with open(tmp_path / "file", "wb") as below:
        with make(below, "wb") as file:
            file.write(b"1")
            assert file.fileno() == below.fileno()
            for refused in (file.read, lambda: file.seek(-1)):
                with pytest.raises(OSError):  # noqa: PT011 - each library words it in its own way
                    refused()
        assert not below.closed
    own = make(tmp_path / "file")
    descriptor = own.fileno()
    own.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("name", ["BinaryZlibFile", "BinaryGzipFile"])
@pytest.mark.parametrize(
    "arguments",
    [
        *[("file", "wb", level) for level in (-1, 0, 10, "a", ())],
        *[("file", mode) for mode in ("a", "x", "r", "w", 1)],
        *[(file, "rb") for file in (1, (), {})],
        ("file", "rb"),
    ],
    ids=repr,
)
def test_compressed_files_refuse_the_same(name, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert same("compressor", name, *arguments) in ("ValueError", "TypeError", "OSError")


def test_arguments_of_what_cannot_be_inspected_are_not_ignored(tmp_path):
    for package in (joblib, ipyparcache):
        largest = package.Memory(tmp_path / package.__name__, verbose=0).cache(max, ignore=["x"])
        with pytest.warns(UserWarning, match="Cannot inspect object"):
            assert largest(3, 2) == 3


def test_a_folder_that_is_not_there_is_told_by_the_name_that_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for package in (joblib, ipyparcache):
        with pytest.raises(FileNotFoundError) as caught:
            package.dump(1, "nowhere/f.pkl")
        assert caught.value.filename == "nowhere/f.pkl"


def test_a_local_function_is_no_pickle_in_a_file(tmp_path):
    for package in (joblib, ipyparcache):
        with pytest.raises(pickle.PicklingError):
            package.dump([lambda: 1], tmp_path / "f.pkl")


@pytest.mark.parametrize("name", ["Threading", "Sequential", "Loky", "Multiprocessing"])
def test_backends_are_found_beside_parallel(name):
    theirs, ours = both("parallel", f"{name}Backend")

    assert ours.__name__ == theirs.__name__
    for package, backend in ((joblib, theirs()), (ipyparcache, ours())):
        with pytest.raises(ValueError, match="only supported when backend is a string"):
            package.parallel_config(backend=backend, something=1)


# What programs import from joblib's modules, by how often one meets it in public code.
IMPORTED = """
    parallel: Parallel delayed cpu_count effective_n_jobs parallel_backend parallel_config BatchedCalls
    parallel: BatchCompletionCallBack BACKENDS DEFAULT_BACKEND EXTERNAL_BACKENDS ParallelBackendBase mp
    parallel: AutoBatchingMixin LokyBackend ThreadingBackend SequentialBackend MultiprocessingBackend
    parallel: FallbackToBackend get_active_backend register_parallel_backend VALID_BACKEND_HINTS
    parallel: VALID_BACKEND_CONSTRAINTS
    memory: Memory MemorizedFunc MemorizedResult NotMemorizedFunc NotMemorizedResult AsyncMemorizedFunc
    memory: JobLibCollisionWarning CacheWarning StoreBackendBase expires_after register_store_backend
    memory: filter_args format_call format_signature format_time get_func_code get_func_name
    hashing: hash Hasher NumpyHasher
    numpy_pickle: dump load NumpyPickler NumpyUnpickler
    compressor: register_compressor CompressorWrapper BinaryZlibFile
    func_inspect: filter_args get_func_code get_func_name format_call format_signature
    logger: Logger PrintTime format_time short_format_time pformat
    disk: memstr_to_bytes mkdirp rm_subdirs delete_folder disk_used
    backports: concurrency_safe_rename make_memmap
    externals.loky: get_reusable_executor set_loky_pickler cpu_count wrap_non_picklable_objects
    externals.loky: BrokenProcessPool
    externals.loky.process_executor: TerminatedWorkerError BrokenProcessPool
    _parallel_backends: LokyBackend ThreadingBackend SequentialBackend MultiprocessingBackend
    _parallel_backends: ParallelBackendBase AutoBatchingMixin FallbackToBackend inside_dask_worker
    _store_backends: StoreBackendBase StoreBackendMixin CacheItemInfo CacheWarning FileSystemStoreBackend
    _store_backends: concurrency_safe_rename concurrency_safe_write mkdirp rm_subdirs
    _memmapping_reducer: has_shareable_memory
    executor: get_memmapping_executor
"""


@pytest.mark.parametrize("line", IMPORTED.split("\n")[1:-1], ids=str.strip)
def test_names_are_found_where_programs_import_them(line):
    module, _, names = line.strip().partition(": ")
    for name in names.split():
        theirs, ours = both(module, name)
        assert type(ours) is type(theirs) or callable(ours) == callable(theirs)


def test_hashers_of_programs_name_what_hash_names(tmp_path):
    for package in (joblib, ipyparcache):
        hashing = importlib.import_module(f"{package.__name__}.hashing")
        assert hashing.NumpyHasher("sha1").hash([1]) == package.hash([1], "sha1")
        assert hashing.Hasher().hash([1]) == hashing.NumpyHasher(hash_name="md5").hash([1])
        with pytest.raises(ValueError, match="wrong"):
            hashing.Hasher("wrong")
        mapped = np.memmap(tmp_path / "m", dtype=np.int64, mode="w+", shape=3)
        assert hashing.NumpyHasher(coerce_mmap=True).hash(mapped) == package.hash(np.zeros(3, np.int64))


def test_a_hasher_that_would_not_be_asked_is_refused_here():
    with pytest.raises(TypeError, match="would never be called"):

        class Own(ipyparcache.hashing.NumpyHasher):
            def save(self, obj):
                super().save(obj)
