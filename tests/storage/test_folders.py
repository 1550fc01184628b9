import os
import shutil

import pytest

from ipyparcache.storage import folders
from ipyparcache.storage.folders import WatchedFolder, is_settled


@pytest.fixture
def watched(tmp_path):
    folder = WatchedFolder(str(tmp_path / "folder"))
    yield folder
    folder.close()


def age(path, seconds=5.0):
    """Set the time of a folder's last change back, as if it lay longer ago."""
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - int(seconds * 1e9)))


def test_a_folder_that_is_not_there_is_told(watched):
    assert watched.look() is None


def test_nothing_new_is_told_only_once_a_change_would_show(watched, tmp_path):
    os.mkdir(watched.path)
    assert [watched.look(), watched.look()] == [True, True]
    age(watched.path)
    assert [watched.look(), watched.look()] == [True, False]


def test_what_is_added_or_taken_away_shows(watched, tmp_path):
    os.mkdir(watched.path)
    age(watched.path)
    watched.look()
    (tmp_path / "folder" / "a").touch()
    assert watched.look()
    age(watched.path)
    watched.look()
    (tmp_path / "folder" / "a").unlink()
    assert watched.look()


def test_a_folder_that_is_made_anew_shows(watched):
    os.mkdir(watched.path)
    age(watched.path)
    watched.look()
    shutil.rmtree(watched.path)
    assert watched.look() is None
    os.mkdir(watched.path)
    age(watched.path)
    assert [watched.look(), watched.look()] == [True, False]


def test_a_folder_that_another_took_the_place_of_shows_within_a_second(watched, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "BY_PATH_SECONDS", 0.0)
    os.mkdir(watched.path)
    age(watched.path)
    watched.look()
    os.rename(watched.path, tmp_path / "away")
    assert watched.look() is None


def test_times_without_parts_of_a_second_have_a_coarse_grain(monkeypatch):
    now = 1_000_000_000_000_000_000
    monkeypatch.setattr(folders.time, "time_ns", lambda: now)
    assert not is_settled(now - 1_000_000_000)
    assert is_settled(now - 3_000_000_000)
    assert is_settled(now - 150_000_001)
    assert not is_settled(now - 50_000_001)
