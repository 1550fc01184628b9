"""What somebody else would write for our interfaces."""

import datetime
import os
import re
import shutil
import types

from ipyparcache import StoreBackendBase


class FolderBackend(StoreBackendBase):
    """A backend as somebody would write it: what it lists and removes are folders of results."""

    def configure(self, location, verbose=0, backend_options=None):
        self.location = location
        self.options = backend_options
        self.create_location(location)

    def _open_item(self, f, mode):
        return open(f, mode)

    def _item_exists(self, location):
        return os.path.exists(location)

    def _move_item(self, src, dst):
        os.replace(src, dst)

    def create_location(self, location):
        os.makedirs(location, exist_ok=True)

    def clear_location(self, location):
        shutil.rmtree(location, ignore_errors=True)

    def get_items(self):
        found = []
        for folder, _, files in os.walk(self.location):
            if re.match("[a-f0-9]{32}$", os.path.basename(folder)):
                used = os.path.getatime(os.path.join(folder, "output.pkl"))
                size = sum(os.path.getsize(os.path.join(folder, file)) for file in files)
                used = datetime.datetime.fromtimestamp(used)
                found.append(types.SimpleNamespace(path=folder, size=size, last_access=used))
        return found


class SilentBackend(FolderBackend):
    """One that lists nothing, as some for object stores do."""

    def get_items(self):
        return []
