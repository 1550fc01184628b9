import os
import pickle
import random
import shutil

import numpy as np
import pytest

from ipyparcache.errors import DamagedEntry, StoreUnavailable
from ipyparcache.storage import entry as entry_module
from ipyparcache.storage.entry import close_entries, open_entries

KEY, TRACE = "ab" * 16, "cd" * 8
MAPPED_BYTES = 1 << 21


def planted():
    class Planted:
        def __reduce__(self):
            return exec, ("raise SystemExit('executed')",)

    return pickle.dumps(Planted(), 4)


def store_value(entries, value, key=KEY, trace=TRACE, manifest=None, **named):
    buffers = []
    pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return entries.write(key, trace, manifest or {"inputs": {"x": 1}}, pickled, buffers, **named)


def load_value(entry):
    pickled, buffers = entry.payload()
    return pickle.loads(pickled, buffers=buffers)


def files_of(tmp_path):
    """All files of the store that hold entries."""
    return [
        os.path.join(folder, file)
        for folder, _, files in os.walk(tmp_path / "store")
        for file in files
        if os.path.basename(folder) not in ("locks", "aside", "temporary")
    ]


def fresh():
    """The entries as another process would open them."""
    close_entries()
    return open_entries()


@pytest.fixture
def entries():
    return open_entries()


@pytest.fixture(params=["small", "large"])
def value(request):
    if request.param == "small":
        return {"a": np.arange(5), "b": "text"}
    return {"a": np.arange(MAPPED_BYTES // 8), "b": np.arange(100), "c": list(range(10_000))}


def test_an_entry_comes_back_with_its_manifest(entries, value):
    store_value(entries, value, manifest={"inputs": {"x": "ä\ud800"}}, seconds=3.5)

    (entry,) = fresh().under(KEY)
    back = load_value(entry)
    assert (entry.key, entry.trace, entry.seconds) == (KEY, TRACE, 3.5)
    assert entry.manifest == {"inputs": {"x": "ä\ud800"}}
    assert back.keys() == value.keys()
    np.testing.assert_equal(back, value)


def test_arrays_come_back_writable_and_apart_from_the_entry(entries, value):
    store_value(entries, value)
    first = load_value(entries.under(KEY)[0])
    first["a"][:] = -1

    assert load_value(entries.under(KEY)[0])["a"][3] == 3


def test_large_arrays_come_back_mapped(entries):
    store_value(entries, np.arange(MAPPED_BYTES // 8))
    array = load_value(fresh().under(KEY)[0])

    with open("/proc/self/maps") as maps:
        assert f"{KEY}.{TRACE}" in maps.read()
    assert array.ctypes.data % 64 == 0


def test_buffers_are_aligned(entries):
    arrays = [np.zeros(n, np.uint8) for n in (1, 3, MAPPED_BYTES + 1, MAPPED_BYTES, 7)]
    store_value(entries, arrays)

    assert [row.offset % 64 for row in entries.under(KEY)[0]._rows[1:]] == [0] * 5


def test_entries_of_one_key_are_listed_newest_first(entries, monkeypatch):
    for n in range(4):
        monkeypatch.setattr(entry_module.time, "time", lambda n=n: 1000.0 + n)
        store_value(entries, n, trace=f"{n:04x}")
    store_value(entries, "other", key="ff" * 16)

    assert [load_value(entry) for entry in entries.under(KEY)] == [3, 2, 1, 0]


def test_a_later_write_replaces_the_entry(entries):
    store_value(entries, "first")
    store_value(entries, "second")

    assert [load_value(entry) for entry in fresh().under(KEY)] == ["second"]


def test_nothing_is_under_an_unknown_key(entries):
    assert entries.under(KEY) == []
    assert entries.take_complaints() == []


def _truncate(data):
    return data[: len(data) // 2]


def _flip(data):
    changed = bytearray(data)
    for i in {len(data) // 4, len(data) // 2, 3 * len(data) // 4, len(data) - 1}:
        changed[i] ^= 4
    return bytes(changed)


def _plant(data):
    at = min(i for i in (data.find(b"\x80\x04"), data.find(b"\x80\x05")) if i >= 0)
    return data[:at] + planted()


DAMAGE = {
    "truncated": _truncate,
    "emptied": lambda data: b"",
    "garbage": lambda data: random.Random(7).randbytes(len(data)),
    "flipped": _flip,
    "planted": _plant,
    "planted raw": lambda data: planted(),
    "cut by a byte": lambda data: data[:-1],
    "with its front torn off": lambda data: data[1:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_a_miss_with_one_complaint(entries, value, damage, tmp_path):
    store_value(entries, value)
    for path in files_of(tmp_path):
        with open(path, "rb") as file:
            data = file.read()
        with open(path, "wb") as file:
            file.write(damage(data))
        os.utime(path, (1, 1))  # or the end of a log could be one that is being written

    entries = fresh()
    found = entries.under(KEY)
    for entry in found:  # a changed buffer shows only when it is read
        with pytest.raises(DamagedEntry):
            entry.payload()
    # An empty log is what a process that was killed at the wrong moment leaves.
    is_empty_log = [os.path.getsize(path) for path in files_of(tmp_path)] == [0]
    assert len(entries.take_complaints()) == (0 if is_empty_log else 1)
    assert entries.under(KEY) == []
    assert entries.take_complaints() == []
    store_value(entries, value)
    np.testing.assert_equal(load_value(fresh().under(KEY)[0]), value)


def test_no_flipped_bit_passes(entries, tmp_path):
    value = [np.arange(30), "some text", 1.5]
    for at in range(0, 600, 7):
        store_value(entries, value)
        (path,) = (path for path in files_of(tmp_path) if os.path.getsize(path))
        with open(path, "r+b") as file:
            file.seek(at % os.path.getsize(path))
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
        entries = fresh()
        for entry in entries.under(KEY):
            try:
                back = load_value(entry)
            except DamagedEntry:
                continue
            np.testing.assert_equal(back, value)  # the bit was padding
        entries.wipe()


def test_a_change_after_the_manifest_was_read_is_seen(entries, tmp_path):
    store_value(entries, np.arange(MAPPED_BYTES // 8))
    (entry,) = entries.under(KEY)
    (path,) = files_of(tmp_path)
    with open(path, "r+b") as file:
        file.seek(-8, 2)
        file.write(b"changed!")

    with pytest.raises(DamagedEntry, match="a buffer was changed"):
        entry.payload()


def test_an_entry_under_anothers_name_is_foreign(entries, tmp_path):
    big = np.arange(20_000)
    store_value(entries, big)
    store_value(entries, big * 2, key="ff" * 16)
    one, other = (path for path in sorted(files_of(tmp_path)))
    shutil.copy(one, other)

    assert fresh().under("ff" * 16) == []


def test_an_entry_of_another_key_is_not_met(entries, tmp_path, monkeypatch):
    store_value(entries, 1)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another user"))

    entries = fresh()
    assert entries.under(KEY) == []
    assert entries.take_complaints() == []


def test_an_entry_signed_by_another_key_is_not_believed(entries, tmp_path, monkeypatch):
    store_value(entries, np.arange(20_000))
    (ours,) = os.listdir(tmp_path / "store")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another user"))
    other = fresh()
    store_value(other, np.zeros(20_000))
    (theirs,) = set(os.listdir(tmp_path / "store")) - {ours}
    shutil.rmtree(tmp_path / "store" / ours / "blobs")
    shutil.copytree(tmp_path / "store" / theirs / "blobs", tmp_path / "store" / ours / "blobs")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))

    entries = fresh()
    assert entries.under(KEY) == []
    assert "signature is wrong" in entries.take_complaints()[0]


def test_a_checked_file_is_not_checked_again(entries, monkeypatch):
    store_value(entries, np.arange(MAPPED_BYTES // 8))
    entries = fresh()
    monkeypatch.setattr(entry_module.xxhash, "xxh3_128_digest", lambda data: pytest.fail("read again"))

    assert load_value(entries.under(KEY)[0])[5] == 5


def test_a_file_of_another_machine_is_checked_once(entries, monkeypatch, tmp_path):
    store_value(entries, np.arange(MAPPED_BYTES // 8))
    shutil.rmtree(tmp_path / "state")
    entries = fresh()
    checks = []
    real = entry_module.xxhash.xxh3_128_digest
    monkeypatch.setattr(entry_module.xxhash, "xxh3_128_digest", lambda data: checks.append(1) or real(data))
    for _ in range(3):
        load_value(entries.under(KEY)[0])

    assert len(checks) == 1


def test_verify_tells_right_from_wrong(entries, tmp_path):
    for n in range(3):
        store_value(entries, np.arange(20_000) + n, trace=f"{n:04x}")
    path = sorted(files_of(tmp_path))[1]
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")

    assert fresh().verify() == (2, [f"{KEY}.0001"])


def test_deleted_entries_are_gone(entries):
    store_value(entries, 1)
    store_value(entries, 2, trace="ee")
    entries.delete(next(entry for entry in entries.under(KEY) if entry.trace == "ee"))

    assert [load_value(entry) for entry in entries.under(KEY)] == [1]
    assert entries.clear() == 1
    assert list(fresh().all()) == []


def test_the_store_keeps_within_its_budget(monkeypatch):
    monkeypatch.setenv("IPYPARCACHE_MAX_SIZE", "1M")
    entries = open_entries()
    for n in range(10):
        store_value(entries, np.zeros(25_000), trace=f"{n:04x}", seconds=100.0 if n == 0 else 1.0)
    kept = {entry.trace for entry in entries.under(KEY)}

    assert sum(item.size for item in entries.store.items()) <= 1 << 20
    assert "0000" in kept
    assert len(kept) < 6


def test_a_result_beyond_the_budget_is_refused(monkeypatch):
    monkeypatch.setenv("IPYPARCACHE_MAX_SIZE", "1000")
    entries = open_entries()

    with pytest.raises(StoreUnavailable, match="set max-size"):
        store_value(entries, bytes(2000))
    assert list(entries.store.items()) == []


def test_prune_takes_the_unused_and_the_least_useful(entries):
    for n in range(5):
        store_value(entries, np.zeros(10_000), trace=f"{n:04x}", seconds=float(n))
    entries.prune(max_size=200_000)

    assert sorted(entry.trace for entry in entries.under(KEY)) == ["0003", "0004"]
    entries.prune(older=0.0)
    assert entries.under(KEY) == []


def test_uses_are_counted_across_openings(entries):
    store_value(entries, 1, seconds=2.0)
    for _ in range(3):
        entries.under(KEY)[0].used()
    use = fresh().ledger.uses()[f"{KEY}.{TRACE}"]

    assert (use.hits, use.saved) == (3, 6.0)


def test_recent_gives_the_latest_manifests_of_an_identity(entries):
    for n in range(12):
        store_value(entries, n, key=f"{n:032x}", manifest={"n": n})
        entries.remember("identity", f"{n:032x}")
    entries.remember("identity", f"{8:032x}")
    entries.delete(entries.under(f"{10:032x}")[0])

    entries = fresh()
    assert [manifest["n"] for manifest in entries.recent("identity")] == [8, 11, 9, 7, 6, 5, 4]
    assert entries.recent("unknown") == []


def test_only_one_works_on_a_key(entries):
    with entries.lock(KEY) as held:
        assert held


def test_a_key_inside_the_store_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("IPYPARCACHE_DIR", str(tmp_path))

    with pytest.raises(StoreUnavailable, match="would lie inside it"):
        open_entries()


def test_a_shared_key_file_shares_the_entries(monkeypatch, tmp_path):
    monkeypatch.setenv("IPYPARCACHE_KEY_FILE", str(tmp_path / "shared.key"))
    entries = fresh()
    store_value(entries, "shared")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another user"))

    assert load_value(fresh().under(KEY)[0]) == "shared"
