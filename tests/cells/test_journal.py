from __future__ import annotations

import marshal

from ipyparcache.cells.journal import HEAD, PLAIN, Journal, read_journal


def of(record: bytes) -> list[object]:
    return marshal.loads(record[len(PLAIN) :])


def test_a_journal_gives_back_what_was_noted_as_one_record():
    journal = Journal(None)

    assert journal.add(7, (((0, "a"),), (1, 2.5)))
    assert journal.add(8, ((), {"x": None}))

    first, record = journal.take()
    assert (first, of(record)) == (7, [(((0, "a"),), (1, 2.5)), ((), {"x": None})])
    assert journal.take() is None


def test_whoever_reads_the_memory_finds_the_whole_iterations_and_the_one_that_ran():
    memory = bytearray(4096)
    journal = Journal(memoryview(memory))
    journal.words[1] = 3
    journal.add(3, (("kept",), ()))
    journal.words[1] = 4
    before = bytes(memory)
    journal.add(4, (("half",), ()))
    torn = bytes(memory[HEAD:])

    at, (first, record) = read_journal(before[:HEAD] + torn)

    assert (at, first, of(record)) == (4, 3, [(("kept",), ())])


def test_an_iteration_without_room_is_told_and_nothing_is_noted():
    memory = bytearray(HEAD + 40)
    journal = Journal(memoryview(memory))

    assert not journal.add(0, (("x" * 100,), ()))
    assert read_journal(bytes(memory)) == (0, None)


def test_memory_that_holds_no_journal_is_not_read_as_one():
    memory = bytearray(4096)
    Journal(memoryview(memory)).close()

    assert read_journal(bytes(memory)) is None
    assert read_journal(b"") is None
