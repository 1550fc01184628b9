"""What every store must show. A subclass gives a fixture `store`, and `again`, which opens the same place
anew."""

import threading

import pytest

from ipyparcache.storage.store import Store

NAME = "0a1b2c.3d4e"


class StoreContract:
    def test_what_was_put_is_read_back_whole(self, store: Store):
        store.put(NAME, [b"abc", bytearray(b"def"), memoryview(b"ghi")])

        with store.open(NAME) as blob:
            assert (blob.size, bytes(blob.read(0, 100))) == (9, b"abcdefghi")

    def test_parts_can_be_read_alone(self, store: Store):
        store.put(NAME, [bytes(range(100))])

        with store.open(NAME) as blob:
            assert bytes(blob.read(10, 5)) == bytes(range(10, 15))
            assert bytes(blob.read(98, 5)) == bytes([98, 99])

    def test_put_says_how_many_bytes_it_wrote(self, store: Store):
        assert store.put(NAME, [b"abc", b"", b"de"]) == 5

    def test_an_empty_blob_is_a_blob(self, store: Store):
        store.put(NAME, [])

        with store.open(NAME) as blob:
            assert (blob.size, bytes(blob.read(0, 10))) == (0, b"")

    def test_a_later_put_replaces_the_earlier(self, store: Store):
        store.put(NAME, [b"first, and longer"])
        store.put(NAME, [b"second"])

        with store.open(NAME) as blob:
            assert bytes(blob.read(0, 100)) == b"second"

    def test_a_reader_of_the_earlier_blob_reads_on(self, store: Store):
        store.put(NAME, [b"a" * 100_000])
        with store.open(NAME) as blob:
            store.put(NAME, [b"b" * 100_000])

            assert bytes(blob.read(50_000, 10)) == b"a" * 10

    def test_what_is_not_there_is_none(self, store: Store):
        assert store.open(NAME) is None

    def test_what_was_deleted_is_gone(self, store: Store):
        store.put(NAME, [b"abc"])

        assert [store.delete(NAME), store.delete(NAME), store.open(NAME)] == [True, False, None]

    def test_what_was_set_aside_is_gone(self, store: Store):
        store.put(NAME, [b"abc"])
        store.set_aside(NAME)

        assert store.open(NAME) is None
        assert list(store.items()) == []

    @pytest.mark.parametrize("size", [0, 1, 5_000, (1 << 20) - 1, 1 << 20, 3_000_001])
    def test_writable_memory_is_private(self, store: Store, size: int):
        data = (bytes(range(256)) * (size // 256 + 1))[:size]
        store.put(NAME, [b"head", data])

        with store.open(NAME) as blob:
            memory = blob.writable(4, size)
            assert bytes(memory) == data
            memory[:] = bytes(size)

            assert bytes(blob.read(4, size)) == data
        assert bytes(memory) == bytes(size)

    def test_writable_memory_outlives_the_blob(self, store: Store):
        store.put(NAME, [b"x" * 2_000_000])
        with store.open(NAME) as blob:
            memory = blob.writable(0, 2_000_000)
        store.delete(NAME)

        assert bytes(memory[-3:]) == b"xxx"

    def test_writable_memory_beyond_the_end_is_refused(self, store: Store):
        store.put(NAME, [b"abc"])

        with store.open(NAME) as blob, pytest.raises(EOFError):
            blob.writable(1, 3)

    def test_a_group_lists_its_members_only(self, store: Store):
        for name in ("0a1b2c.1", "0a1b2c.2", "0a1b2c", "0a1b2c3.1", "ffff2c.1"):
            store.put(name, [name.encode()])

        assert sorted((item.name, item.size) for item in store.group("0a1b2c")) == [
            ("0a1b2c", 6),
            ("0a1b2c.1", 8),
            ("0a1b2c.2", 8),
        ]

    def test_items_lists_everything(self, store: Store):
        names = {"0a1b2c.1", "0a1b2c.2", "i-xyz.q", "0a"}
        for name in names:
            store.put(name, [b"1"])

        assert {item.name for item in store.items()} == names

    def test_an_empty_store_lists_nothing(self, store: Store):
        assert ([*store.items()], store.group(NAME[:6])) == ([], [])

    @pytest.mark.parametrize("name", ["", "a", "../x", "a/b", "ab.c.d", "a b", "ab\0", "ä" * 3, "x" * 201])
    def test_a_name_that_no_store_can_take_is_refused(self, store: Store, name: str):
        with pytest.raises(ValueError, match="cannot name a blob"):
            store.put(name, [b""])

    def test_another_opening_of_the_place_sees_the_same(self, store: Store, again):
        store.put(NAME, [b"abc"])
        other = again()
        with other.open(NAME) as blob:
            seen = bytes(blob.read(0, 3))
        other.put(NAME, [b"later"])
        with store.open(NAME) as blob:
            back = bytes(blob.read(0, 5))
        other.delete(NAME)

        assert (seen, back, store.open(NAME)) == (b"abc", b"later", None)

    def test_many_small_blobs_are_all_kept(self, store: Store, again):
        for i in range(300):
            store.put(f"{i:06x}.t", [str(i).encode()])
        other = again()

        for i in range(300):
            with other.open(f"{i:06x}.t") as blob:
                assert bytes(blob.read(0, 10)) == str(i).encode()

    def test_a_lock_can_be_taken_again_by_its_thread(self, store: Store):
        with store.lock(NAME) as outer, store.lock(NAME, 0) as inner:
            assert (outer, inner) == (True, True)
        with store.lock(NAME, 0) as later:
            assert later

    def test_a_lock_keeps_out_other_threads(self, store: Store):
        answers = []

        def ask():
            with store.lock(NAME, 0) as held:
                answers.append(held)

        with store.lock(NAME):
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

        assert answers == [False, True]

    def test_a_lock_keeps_out_another_opening_of_the_place(self, store: Store, again):
        other = again()
        with store.lock(NAME), other.lock(NAME, 0.01) as held, other.lock("another", 0) as free:
            assert (held, free) == (False, True)
        with other.lock(NAME, 0) as held:
            assert held

    def test_a_lock_is_let_go_when_its_block_raises(self, store: Store, again):
        with pytest.raises(KeyError), store.lock(NAME):
            raise KeyError
        with again().lock(NAME, 0) as held:
            assert held
