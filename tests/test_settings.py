import json
import pickle

import platformdirs
import pytest

from ipyparcache import settings
from ipyparcache.errors import BadSetting, UnknownSetting


@pytest.fixture(autouse=True)
def unchanged():
    yield
    for name in settings.ROWS:
        settings.change(name, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("7d", 604800), ("1.5h", 5400), ("2 m", 120), ("1w", 604800), (".5s", 0.5), ("1min", 60)],
)
def test_durations_are_read(text, seconds):
    assert settings.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1d", "7 years", "1e3", "nan"])
def test_what_is_no_duration_is_told(text):
    with pytest.raises(ValueError, match="is no duration"):
        settings.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536),
        ("2GB", 2 * 10**9),
        ("1.5 G", 3 << 29),
        ("512KiB", 1 << 19),
        ("1m", 1 << 20),
        ("3b", 3),
    ],
)
def test_sizes_are_read(text, size):
    assert settings.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "3 X", "1_000"])
def test_what_is_no_size_is_told(text):
    with pytest.raises(ValueError, match="is no size"):
        settings.parse_size(text)


def test_a_change_beats_the_environment_which_beats_the_file_which_beats_the_default(monkeypatch):
    defaults = settings.current().max_size
    settings.change("max-size", "1K")
    settings.save(["max-size"])
    settings.change("max-size", None)
    saved = settings.current().max_size
    monkeypatch.setenv("IPYPARCACHE_MAX_SIZE", "2K")
    environment = settings.current().max_size
    changed = settings.change("max_size", "3K").max_size

    assert (defaults, saved, environment, changed) == (None, 1024, 2048, 3072)


def test_saving_keeps_what_it_does_not_know():
    settings.settings_file().parent.mkdir(parents=True)
    settings.settings_file().write_text('{"from_later": "x"}')
    settings.change("check-store", "on")
    settings.save(["check-store"])

    assert json.loads(settings.settings_file().read_text()) == {"from_later": "x", "check_store": "on"}


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(UnknownSetting, match="did you mean `max-size`"):
        settings.change("max-sise", "1G")


def test_a_bad_value_names_the_setting_and_what_it_takes(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("IPYPARCACHE_CHECK_STORE", "perhaps")

        with pytest.raises(BadSetting, match=r"'perhaps', as the .* IPYPARCACHE_CHECK_STORE .*on or off"):
            settings.current()


def test_the_errors_survive_pickling():
    for error in (BadSetting("a", "b", "c", "d", "e"), UnknownSetting("a", None)):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_every_setting_is_described():
    assert [name for name, _, _ in settings.described()] == [name.replace("_", "-") for name in settings.ROWS]


@pytest.mark.parametrize("kind", ["cache", "config", "data", "state"])
@pytest.mark.parametrize("given", [None, "", "/elsewhere", "relative", "~/there", " /blank "])
def test_the_folders_are_those_that_platformdirs_names(monkeypatch, kind, given):
    variable = f"XDG_{kind.upper()}_HOME"
    monkeypatch.delenv(variable, raising=False)
    if given is not None:
        monkeypatch.setenv(variable, given)

    expected = getattr(platformdirs, f"user_{kind}_dir")("ipyparcache", appauthor=False)

    assert settings.user_folder(kind) == expected
