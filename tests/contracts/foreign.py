"""What somebody else would write for our interfaces."""

import os
import types

from ipyparcache import StoreBackendBase


class FolderBackend(StoreBackendBase):
    """A backend as somebody would write it."""

    def configure(self, location, verbose=0, backend_options=None):
        self.location = location
        self.options = backend_options

    def _open_item(self, f, mode):
        return open(f, mode)

    def _item_exists(self, location):
        return os.path.exists(location)

    def _move_item(self, src, dst):
        os.replace(src, dst)

    def create_location(self, location):
        os.makedirs(location, exist_ok=True)

    def clear_location(self, location):
        os.remove(location)

    def get_items(self):
        for folder, _, files in os.walk(self.location):
            for file in files:
                path = os.path.join(folder, file)
                yield types.SimpleNamespace(
                    path=path, size=os.path.getsize(path), last_access=os.path.getatime(path)
                )
