import os
import random
import subprocess
import sys
import threading

import pytest

from ipyparcache.storage import packed
from ipyparcache.storage.packed import PackedLogs, scan


@pytest.fixture
def open_logs(tmp_path):
    """Opens the logs of the test's folder, as a process of the named machine would."""
    opened = []

    def open_them(writer="here"):
        opened.append(PackedLogs(tmp_path / "packed", writer))
        return opened[-1]

    yield open_them
    for logs in opened:
        logs.close()


def compact(logs, tmp_path):
    logs.compact(tmp_path / "temporary", lambda path, damaged: os.unlink(path))


def names_of(logs):
    return sorted(item.name for item in logs.items())


def test_many_blobs_lie_in_one_file(open_logs, tmp_path):
    logs = open_logs()
    for n in range(1000):
        logs.put(f"n{n}.x", str(n).encode())

    assert len(os.listdir(tmp_path / "packed")) == 1
    assert all(open_logs().get(f"n{n}.x")[0] == str(n).encode() for n in range(0, 1000, 100))


def test_what_another_process_appends_is_seen(open_logs):
    one, other = open_logs(), open_logs()
    one.put("aa.1", b"1")
    assert other.get("aa.1")[0] == b"1"
    other.put("aa.2", b"2")
    one.remove(["aa.1"])

    assert (names_of(one), names_of(other)) == (["aa.2"], ["aa.2"])


def test_machines_write_logs_of_their_own_and_read_all(open_logs, tmp_path):
    here, there = open_logs("here"), open_logs("there")
    here.put("aa.1", b"here")
    there.put("aa.1", b"there, later")
    here.put("aa.2", b"x")
    there.remove(["aa.2"])

    assert len(os.listdir(tmp_path / "packed")) == 2
    for logs in (here, there, open_logs("third")):
        assert names_of(logs) == ["aa.1"]
        assert logs.get("aa.1")[0] == b"there, later"


@pytest.mark.parametrize("cut", [1, 10, 30, 45, 60])
def test_a_torn_record_is_passed_over(open_logs, tmp_path, cut):
    killed, reader = open_logs(), open_logs()
    killed.put("aa.1", b"x" * 40)
    assert names_of(reader) == ["aa.1"]
    killed.put("aa.2", b"y" * 40)
    (path,) = (tmp_path / "packed").iterdir()
    size = path.stat().st_size
    os.truncate(path, size - cut)
    fresh = open_logs()
    assert fresh.get("aa.1")[0] == b"x" * 40
    assert fresh.get("aa.2") is None
    fresh.put("aa.3", b"z" * 40)

    assert names_of(fresh) == names_of(reader) == names_of(open_logs()) == ["aa.1", "aa.3"]


def test_a_log_that_became_shorter_is_complained_of(open_logs, tmp_path):
    logs = open_logs()
    logs.put("aa.1", b"x" * 40)
    (path,) = (tmp_path / "packed").iterdir()
    path.write_bytes(b"garbage")

    assert logs.get("aa.1") is None
    assert [complaint.rpartition(" ")[2] for complaint in logs.complaints] == [path.name]


def test_an_incomplete_end_is_left_until_it_is_whole():
    whole = packed._record(1, "aa.1", b"payload", 5.0)
    for cut in range(1, len(whole)):
        assert scan(whole + whole[:cut], settled=False) == (scan(whole, settled=False)[0], len(whole), 0)
        assert scan(whole + whole[:cut], settled=True)[1:] == (len(whole) + cut, cut)


def test_whole_records_are_found_between_any_garbage():
    rnd = random.Random(3)
    records = [packed._record(1, f"a{n}.1", rnd.randbytes(rnd.randrange(200)), float(n)) for n in range(50)]
    data, garbage = b"", 0
    for record in records:
        junk = rnd.choice(
            [b"", packed._MAGIC * 3, rnd.randbytes(50), record[:-1], packed._MAGIC + rnd.randbytes(60)]
        )
        garbage += len(junk)
        data += junk + record
    found, seen, bad = scan(data, settled=True)

    assert [record.name for record in found] == [f"a{n}.1" for n in range(50)]
    assert (seen, bad) == (len(data), garbage)


def test_no_flipped_byte_gives_a_wrong_record():
    data = packed._record(1, "aa.1", b"payload", 5.0)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x10
        assert scan(bytes(changed), settled=True)[0] == []


def test_compacting_keeps_what_lives(open_logs, tmp_path):
    logs, other = open_logs(), open_logs()
    for n in range(100):
        logs.put(f"n{n}.x", b"x" * 2000)
    logs.remove([f"n{n}.x" for n in range(0, 100, 4)])
    logs.put("n1.x", b"new")
    assert not logs.is_wasteful()
    logs.remove([f"n{n}.x" for n in range(2, 100)])
    assert logs.is_wasteful()
    compact(logs, tmp_path)

    assert names_of(logs) == names_of(other) == names_of(open_logs()) == ["n1.x"]
    assert other.get("n1.x")[0] == b"new"
    assert sum(path.stat().st_size for path in (tmp_path / "packed").iterdir()) < 200


def test_what_is_appended_while_compacting_is_kept(open_logs, tmp_path):
    logs, other = open_logs(), open_logs()
    logs.put("aa.1", b"1")

    def retire(path, damaged):
        other.put("aa.2", b"before the unlink")
        os.unlink(path)
        other.put("aa.3", b"after the unlink")

    logs.compact(tmp_path / "temporary", retire)

    assert names_of(logs) == names_of(other) == ["aa.1", "aa.2", "aa.3"]


def test_compacting_leaves_the_logs_of_other_machines(open_logs, tmp_path):
    here, there = open_logs("here"), open_logs("there")
    there.put("aa.1", b"1")
    here.put("aa.2", b"2")
    here.remove(["aa.1"])
    compact(here, tmp_path)

    assert names_of(here) == names_of(there) == names_of(open_logs("third")) == ["aa.2"]


def test_what_was_put_again_survives_compacting_beside_other_machines(open_logs, tmp_path):
    here, there = open_logs("here"), open_logs("there")
    there.put("aa.1", b"1")
    here.remove(["aa.1"])
    here.put("aa.1", b"2")
    compact(here, tmp_path)

    assert here.get("aa.1")[0] == there.get("aa.1")[0] == open_logs("third").get("aa.1")[0] == b"2"


@pytest.mark.parametrize("writer", ["same", "fresh"])
def test_a_clock_that_was_set_back_changes_no_order(open_logs, tmp_path, monkeypatch, writer):
    logs = open_logs()
    now = 2e9
    monkeypatch.setattr(packed, "ROTATE_BYTES", 1)  # each record goes into a log of its own
    monkeypatch.setattr(packed.time, "time", lambda: now)
    logs.put("aa.1", b"1")
    logs.put("aa.2", b"1")
    logs.remove(["aa.1"])
    now = 1e9
    if writer == "fresh":
        logs = open_logs()
    logs.put("aa.1", b"2")
    logs.remove(["aa.2"])

    for look in (logs, open_logs()):
        assert names_of(look) == ["aa.1"]
        assert look.get("aa.1")[0] == b"2"


def test_a_log_that_was_deleted_is_noticed(open_logs, tmp_path):
    logs = open_logs()
    logs.put("aa.1", b"1")
    for path in (tmp_path / "packed").iterdir():
        path.unlink()

    assert logs.get("aa.1") is None
    logs.put("aa.2", b"2")
    assert names_of(open_logs()) == ["aa.2"]


def test_a_full_log_is_followed_by_another(open_logs, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "ROTATE_BYTES", 1000)
    logs = open_logs()
    for n in range(100):
        logs.put(f"n{n}.x", b"x" * 100)

    assert len(list((tmp_path / "packed").iterdir())) > 10
    assert len(names_of(open_logs())) == 100


def test_threads_do_not_disturb_each_other(open_logs):
    logs = open_logs()

    def work(k):
        for n in range(100):
            logs.put(f"n{n}.{k}", f"{n} {k}".encode())
            assert logs.get(f"n{n}.{k}")[0] == f"{n} {k}".encode()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(names_of(logs)) == len(names_of(open_logs())) == 400


def test_processes_do_not_disturb_each_other(open_logs, tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ipyparcache.storage.packed import PackedLogs\n"
        f"logs = PackedLogs(Path({str(tmp_path / 'packed')!r}), 'here')\n"
        "for n in range(300): logs.put(f'n{n}.{sys.argv[1]}', b'x' * (n * 7 % 500))\n"
    )
    (tmp_path / "packed").mkdir()
    others = [subprocess.Popen([sys.executable, "-c", code, str(k)]) for k in range(3)]
    logs = open_logs()
    compactions = 0
    while any(other.poll() is None for other in others):
        compact(logs, tmp_path)
        compactions += 1
    assert [other.wait() for other in others] == [0, 0, 0]

    assert compactions > 1
    found = {item.name for item in open_logs().items()}
    assert found == {f"n{n}.{k}" for n in range(300) for k in range(3)}
