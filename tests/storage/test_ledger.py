import os

from ipyparcache.storage.ledger import Ledger

SIGNATURE = (1, 2, 3, 4)


def test_a_checked_file_is_known_to_the_next_process(tmp_path):
    Ledger(tmp_path / "x" / "uses").note_checked("name", SIGNATURE)

    assert Ledger(tmp_path / "x" / "uses").checked("name") == SIGNATURE


def test_a_checked_file_is_forgotten_after_a_restart_of_the_machine(tmp_path, monkeypatch):
    Ledger(tmp_path / "uses").note_checked("name", SIGNATURE)
    monkeypatch.setattr("ipyparcache.storage.ledger.boot_id", lambda: "another")

    assert Ledger(tmp_path / "uses").checked("name") is None


def test_uses_of_several_processes_add_up(tmp_path):
    one, other = Ledger(tmp_path / "uses"), Ledger(tmp_path / "uses")
    one.note_use("name", 1.0)
    one.flush()
    other.uses()
    one.note_use("name", 2.0)
    other.note_use("name", 4.0)
    one.flush()

    assert (other.uses()["name"].hits, other.uses()["name"].saved) == (3, 7.0)


def test_a_use_costs_no_write(tmp_path):
    ledger = Ledger(tmp_path / "uses")
    ledger.note_use("name", 1.0)

    assert not (tmp_path / "uses").exists()


def test_torn_and_foreign_lines_are_passed_over(tmp_path):
    ledger = Ledger(tmp_path / "uses")
    ledger.note_checked("name", SIGNATURE)
    with open(tmp_path / "uses", "ab") as file:
        file.write(b"\xff\xfe\n\nu\tx\nc\ty\nu\tz\tq\tq\tq\nu\ttorn\t1")

    assert Ledger(tmp_path / "uses").checked("name") == SIGNATURE
    assert Ledger(tmp_path / "uses").uses() == {}


def test_the_file_is_written_anew_when_most_of_it_is_of_no_use(tmp_path):
    ledger = Ledger(tmp_path / "uses")
    for n in range(300):
        ledger.note_checked(f"n{n}", SIGNATURE)
    before = os.path.getsize(tmp_path / "uses")
    ledger.forget({f"n{n}" for n in range(299)})

    assert os.path.getsize(tmp_path / "uses") < before / 50
    assert ledger.checked("n299") == Ledger(tmp_path / "uses").checked("n299") == SIGNATURE


def test_a_home_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    ledger = Ledger(tmp_path / "file" / "uses")
    ledger.note_checked("name", SIGNATURE)
    ledger.note_use("name", 1.0)

    assert ledger.checked("name") is None or ledger.checked("name") == SIGNATURE
    assert ledger.uses() == {}
