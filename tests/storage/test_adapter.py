import pytest

from ipyparcache.errors import StoreUnavailable
from ipyparcache.storage.adapter import BackendStore
from ipyparcache.storage.locks import Locks
from ipyparcache.storage.store import StoreBackendBase
from tests.contracts.foreign import FolderBackend
from tests.contracts.store import NAME, StoreContract


@pytest.fixture
def again(tmp_path):
    """Opens the place of the test anew, as another process would."""
    opened = []

    def open_again():
        backend = FolderBackend()
        backend.configure(str(tmp_path / "place"))
        opened.append(BackendStore(backend, backend.location, Locks(tmp_path / "locks")))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()


@pytest.fixture
def store(again):
    return again()


class TestBackendStore(StoreContract):
    pass


def test_a_backend_that_fails_is_a_store_that_cannot_be_used(store, monkeypatch):
    def refuse(self, f, mode):
        raise RuntimeError("no such bucket")

    monkeypatch.setattr(FolderBackend, "_open_item", refuse)

    assert store.open(NAME) is None
    with pytest.raises(StoreUnavailable, match="RuntimeError: no such bucket"):
        store.put(NAME, [b"x"])


def test_a_backend_lacks_nothing_of_the_interface():
    class Half(StoreBackendBase):
        def _open_item(self, f, mode):
            return None

    with pytest.raises(TypeError, match="abstract"):
        Half()
