import errno
import os
import subprocess
import sys
import threading

import pytest

from ipyparcache.errors import StoreUnavailable
from ipyparcache.storage import local, packed
from ipyparcache.storage.local import LocalStore
from tests.contracts.store import NAME, StoreContract

BIG = b"x" * 200_000  # a file of its own


@pytest.fixture
def again(tmp_path):
    """Opens the folder of the test anew, as another process would."""
    opened = []

    def open_again() -> LocalStore:
        opened.append(LocalStore(tmp_path / "folder"))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()


@pytest.fixture
def store(again):
    return again()


class TestLocalStore(StoreContract):
    pass


class TestLocalStoreOnANetwork(StoreContract):
    @pytest.fixture(autouse=True)
    def on_network(self, monkeypatch):
        monkeypatch.setattr(local, "is_on_network", lambda folder: True)


class TestLocalStoreWithLockFiles(StoreContract):
    @pytest.fixture(autouse=True)
    def lock_files(self, monkeypatch):
        monkeypatch.setattr(local.locks, "_HAS_RANGES", False)


def test_folders_and_files_are_the_users_alone(store, tmp_path):
    store.put(NAME, [BIG])

    modes = {
        os.path.relpath(path, tmp_path): os.stat(path).st_mode & 0o777
        for folder, _, files in os.walk(tmp_path / "folder")
        for path in [folder, *(os.path.join(folder, file) for file in files)]
    }
    assert {mode for path, mode in modes.items() if os.path.isdir(tmp_path / path)} == {0o700}
    assert {mode for path, mode in modes.items() if os.path.isfile(tmp_path / path)} == {0o600}


def test_nothing_is_made_before_the_first_write(store, tmp_path):
    assert store.open(NAME) is None
    assert store.group("0a1b2c") == []
    assert not (tmp_path / "folder").exists()


def test_a_failed_write_leaves_nothing(store, monkeypatch, tmp_path):
    store.put(NAME, [BIG])

    def full(handle, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local, "_write", full)
    with pytest.raises(StoreUnavailable, match="the disk is full"):
        store.put("0a1b2c.other", [BIG])

    assert [item.name for item in store.items()] == [NAME]
    assert os.listdir(tmp_path / "folder" / "temporary") == []


def test_an_interrupted_write_leaves_nothing(store, monkeypatch, tmp_path):
    def interrupt(handle, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "_write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.put(NAME, [BIG])

    assert store.open(NAME) is None
    assert os.listdir(tmp_path / "folder" / "temporary") == []


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    store = LocalStore(tmp_path / "file")

    assert store.open(NAME) is None
    assert store.group("0a1b2c") == []
    with pytest.raises(StoreUnavailable, match="it is no folder"):
        store.put(NAME, [b"1"])
    with store.lock(NAME) as held:
        assert not held


@pytest.fixture
def read_only(monkeypatch):
    """Has the file system refuse to open anything for writing; root may, whatever the permissions say."""

    def begin():
        real = os.open

        def opened(path, flags, *rest, **named):
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise OSError(errno.EROFS, "Read-only file system")
            return real(path, flags, *rest, **named)

        monkeypatch.setattr(os, "open", opened)

    return begin


def test_a_read_only_folder_is_read_and_told(store, read_only):
    store.put(NAME, [BIG])
    read_only()
    with pytest.raises(StoreUnavailable, match="it is read-only"):
        store.put("0a1b2c.other", [BIG])
    with store.lock(NAME) as held:
        assert not held
    with store.open(NAME) as blob:
        assert blob.size == len(BIG)


def test_a_log_that_was_opened_read_only_is_written_once_it_can_be(again, read_only, monkeypatch):
    again().put(NAME, [b"1"])
    read_only()
    store = again()
    assert store.open(NAME).size == 1
    with pytest.raises(StoreUnavailable, match="it is read-only"):
        store.put("0a1b2c.other", [b"22"])
    assert store.remove([NAME]) == set()
    monkeypatch.undo()
    store.put("0a1b2c.other", [b"22"])

    for look in (store, again()):
        assert sorted(item.name for item in look.items()) == [NAME, "0a1b2c.other"]


def test_blobs_are_removed_from_a_full_disk(store, again, monkeypatch):
    names = [f"n{n}.x" for n in range(10)]
    for name in names:
        store.put(name, [b"x" * 1000])
    write, write_new = os.write, packed._write_new
    full = OSError(errno.ENOSPC, "No space left on device")

    def written(handle, data):
        if len(data) < 1000:  # the note that a blob is gone
            raise full
        return write(handle, data)

    def written_anew(path, parts):
        if len(os.listdir(path.parent.parent / "packed")) > 0:  # beside the old log
            raise full
        write_new(path, parts)

    monkeypatch.setattr(os, "write", written)
    monkeypatch.setattr(packed, "_write_new", written_anew)
    gone = store.remove(names[:2])
    monkeypatch.undo()

    assert gone == set(names[:2])
    for look in (store, again()):
        assert sorted(item.name for item in look.items()) == names[2:]


def test_leftovers_of_dead_writers_are_swept_and_those_of_living_ones_kept(store, again, tmp_path):
    store.put(NAME, [BIG])
    temporary = tmp_path / "folder" / "temporary"
    host = local.writer_name().partition("-")[0]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (temporary / f"{host}-{dead.pid}-12345-0").write_text("dead")
    (temporary / f"{local.writer_name()}-99").write_text("mine")
    (temporary / "elsewhere-1-2-3").write_text("of another machine, fresh")
    (temporary / "elsewhere-1-2-4").write_text("of another machine, old")
    os.utime(temporary / "elsewhere-1-2-4", (1, 1))

    again().put("0a1b2c.other", [BIG])

    assert sorted(os.listdir(temporary)) == sorted([f"{local.writer_name()}-99", "elsewhere-1-2-3"])


def test_a_deleted_folder_is_made_again(store, tmp_path):
    store.put(NAME, [BIG])
    os.system(f"rm -r {tmp_path}/folder")

    assert store.open(NAME) is None
    store.put(NAME, [BIG])
    with store.open(NAME) as blob:
        assert blob.size == len(BIG)


@pytest.mark.parametrize(
    ("step", "blob"), [("open", b"1"), ("listdir", b"1"), ("open", BIG), ("replace", BIG)]
)
def test_a_store_cleared_while_a_blob_is_written_takes_it_all_the_same(
    store, tmp_path, monkeypatch, step, blob
):
    real = getattr(os, step)
    cleared = []

    def clearing(*arguments, **named):
        if (tmp_path / "folder").exists() and len(cleared) < 2:
            cleared.append(arguments)
            LocalStore(tmp_path / "folder").wipe()
        return real(*arguments, **named)

    monkeypatch.setattr(os, step, clearing)
    store.put(NAME, [blob])
    monkeypatch.undo()

    assert len(cleared) == 2
    with store.open(NAME) as found:
        assert found.size == len(blob)


def test_a_lock_dies_with_its_holder(store, tmp_path):
    store.put(NAME, [b"1"])
    code = (
        "import sys, time\n"
        "from ipyparcache.storage.local import LocalStore\n"
        f"with LocalStore({str(tmp_path / 'folder')!r}).lock({NAME!r}) as held:\n"
        "    print(held, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        with store.lock(NAME, 0) as held:
            assert not held
        other.kill()
        other.wait()
        with store.lock(NAME, 10) as held:
            assert held


def test_a_waiting_thread_gets_the_lock_when_it_is_free(store):
    got = threading.Event()

    def wait():
        with store.lock(NAME) as held:
            assert held
            got.set()

    with store.lock(NAME):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.is_set()
    thread.join(10)

    assert got.is_set()


def test_a_forked_child_does_not_hold_the_parents_lock(store):
    with store.lock(NAME):
        pid = os.fork()
        if pid == 0:
            with store.lock(NAME, 0) as held:
                os._exit(3 if held else 4)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4


def test_a_local_folder_is_no_network(tmp_path):
    assert not local.is_on_network(tmp_path)


def test_what_cannot_be_listed_counts_as_a_network(tmp_path):
    assert local.is_on_network(tmp_path / "missing")


def test_a_folder_that_another_process_removes_while_it_is_made_is_made_again(store, monkeypatch):
    plain, removed = local.Path.mkdir, []

    def mkdir(folder, **options):
        plain(folder, **options)
        if folder.name == "blobs" and not removed:  # it was there, and is gone as one looks what it is
            folder.rmdir()
            removed.append(folder)
            raise FileExistsError(errno.EEXIST, "File exists", str(folder))

    monkeypatch.setattr(local.Path, "mkdir", mkdir)
    store.put(NAME, [BIG])

    assert removed
    with store.open(NAME) as blob:
        assert blob.size == len(BIG)


def test_a_folder_that_others_remove_just_as_it_is_found_to_be_there_is_made_again(
    store, tmp_path, monkeypatch
):
    store.put(NAME, [BIG])
    shard = os.path.dirname(store.path(NAME))
    store.remove([NAME])
    os.rmdir(shard)
    plain, found = os.mkdir, []

    def mkdir(path, *options, **more):
        if os.fspath(path) == shard and not found:
            found.append(path)
            raise FileExistsError(errno.EEXIST, "it is gone by now", path)
        plain(path, *options, **more)

    monkeypatch.setattr(os, "mkdir", mkdir)
    store.put(NAME, [BIG])

    assert found
    with store.open(NAME) as blob:
        assert blob.size == len(BIG)
