"""Settings of this process: frozen, in one place, from four sources.

A value comes from `change` (the running session), else from the environment (`IPYPARCACHE_MAX_SIZE`), else
from the user's saved file (written by `save`), else from the default. A new setting is a field of
`Settings` and a row of `ROWS`; everything else follows from the row.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ipyparcache.errors import BadSetting, ParcacheError, UnknownSetting

SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
"""Units of a duration; a number without a unit counts seconds."""

BYTES = {
    "": 1,
    "B": 1,
    **{unit: 1024 ** (i + 1) for i, unit in enumerate("KMGT")},
    **{f"{unit}iB": 1024 ** (i + 1) for i, unit in enumerate("KMGT")},
    **{f"{unit}B": 1000 ** (i + 1) for i, unit in enumerate("KMGT")},
}
"""Units of a size: K, M, G and KiB, MiB, GiB are powers of 1024 (as joblib reads them), KB, MB, GB of
1000."""


class Settings(NamedTuple):
    """What the whole process agrees on; see `ROWS` for what each value means."""

    dir: str
    key_file: str
    max_size: int | None
    check_store: bool
    quiet: bool
    warm: str


class Row(NamedTuple):
    """How one setting is read from text and what it means."""

    parse: Callable[[str], object]
    default: Callable[[], object]
    meaning: str
    expects: str


def parse_duration(text: str) -> float:
    """Seconds that `text` stands for: `90`, `1.5h`, `7d`; units s, m, h, d, w.

    Raises
    ------
    ValueError
        If it is no such duration, or negative.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", text.lower())
    if found is None or (found[2] or "s") not in SECONDS:
        raise ValueError(f"{text!r} is no duration: write a number and one of s, m, h, d, w, as in 7d")
    return float(found[1]) * SECONDS[found[2] or "s"]


def parse_size(text: str) -> int:
    """Bytes that `text` stands for: `65536`, `2GB`, `1.5 G`, `512KiB`.

    Raises
    ------
    ValueError
        If it is no such size, or negative.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    unit = found[2] if found else ""
    unit = next((known for known in BYTES if known.lower() == unit.lower()), "?")
    if found is None or unit == "?":
        raise ValueError(
            f"{text!r} is no size: write a number and one of K, M, G, T, KB, MB, GB, TB, as in 2GB"
        )
    return int(float(found[1]) * BYTES[unit])


def _parse_bool(text: str) -> bool:
    value = {
        "1": True,
        "on": True,
        "true": True,
        "yes": True,
        "0": False,
        "off": False,
        "false": False,
        "no": False,
    }
    if text.strip().lower() not in value:
        raise ValueError(f"{text!r} is neither on nor off")
    return value[text.strip().lower()]


def _parse_budget(text: str) -> int | None:
    return None if text.strip().lower() == "auto" else parse_size(text)


def _parse_location(text: str) -> str:
    if not text.strip():
        raise ValueError("the empty text names no place")
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return parse


_XDG = {
    "cache": ("XDG_CACHE_HOME", "~/.cache"),
    "config": ("XDG_CONFIG_HOME", "~/.config"),
    "data": ("XDG_DATA_HOME", "~/.local/share"),
    "state": ("XDG_STATE_HOME", "~/.local/state"),
}


def user_folder(kind: str) -> str:
    """Our folder for the user's files of a kind: `cache`, `config`, `data` or `state`."""
    if sys.platform == "linux" and "ANDROID_ROOT" not in os.environ:
        variable, default = _XDG[kind]
        folder = os.environ.get(variable) or os.path.expanduser(default)
        if os.path.isabs(folder) and folder == folder.strip():
            return os.path.join(folder, "ipyparcache")
    import platformdirs  # which says the same there, but takes a tenth of the time to a first result to load

    found: str = getattr(platformdirs, f"user_{kind}_dir")("ipyparcache", appauthor=False)
    return found


def _default_dir() -> str:
    return user_folder("cache")


def _default_key_file() -> str:
    return os.path.join(user_folder("data"), "signing.key")


ROWS: Mapping[str, Row] = {
    "dir": Row(_parse_location, _default_dir, "folder of the store", "a folder"),
    "key_file": Row(
        _parse_location,
        _default_key_file,
        "file with the key that signs entries; share it to share a store",
        "a file",
    ),
    "max_size": Row(
        _parse_budget,
        lambda: None,
        "bytes the store may take; auto is 20 GB or a tenth of the disk",
        "a size or auto",
    ),
    "check_store": Row(
        _parse_bool, lambda: False, "restore and compare each entry once it is stored", "on or off"
    ),
    "quiet": Row(_parse_bool, lambda: False, "no status lines below cells; warnings stay", "on or off"),
    "warm": Row(
        _one_of("auto", "on", "off"),
        lambda: "auto",
        "what %load_ext starts: on the workers, auto the server that forks them, off nothing; workers import "
        "what the notebook imports: with on always, with auto where it has run loops on them before",
        "auto, on or off",
    ),
}

_lock = threading.Lock()
_changed: dict[str, object] = {}
_cached: tuple[tuple[str | None, ...], Settings] | None = None
_VARIABLES = [f"IPYPARCACHE_{name.upper()}" for name in ROWS]
_PLACES = ["HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"]  # what the defaults are made of


def settings_file() -> Path:
    """The file in which `save` keeps settings for later sessions."""
    return Path(user_folder("config")) / "settings.json"


def current() -> Settings:
    """The settings as they are now.

    Raises
    ------
    BadSetting
        If the environment or the saved file holds a value that cannot be read.
    """
    global _cached
    environment = tuple(map(os.environ.get, [*_VARIABLES, *_PLACES]))
    cached = _cached
    if cached is not None and cached[0] == environment:
        return cached[1]
    with _lock:
        saved = _read_saved()
        values: dict[str, object] = {}
        for (name, row), variable in zip(ROWS.items(), environment, strict=False):
            if name in _changed:
                values[name] = _changed[name]
            elif variable:
                values[name] = _read(name, variable, f"the environment variable IPYPARCACHE_{name.upper()}")
            elif name in saved:
                values[name] = _read(name, saved[name], str(settings_file()))
            else:
                values[name] = row.default()
        settings = Settings(**values)  # type: ignore[arg-type]  # each value was made by its row
        _cached = environment, settings
    return settings


def change(name: str, value: str | None) -> Settings:
    """Set one value for this process (`max-size`, `2GB`), or take the change back with None.

    Raises
    ------
    UnknownSetting
        If there is no setting of that name.
    BadSetting
        If the text cannot be read.
    """
    global _cached
    name = _known(name)
    with _lock:
        if value is None:
            _changed.pop(name, None)
        else:
            _changed[name] = _read(name, value)
        _cached = None
    return current()


def save(names: Iterable[str]) -> Path:
    """Write the present values of these settings into the user's file; the path of that file."""
    now = current()
    path = settings_file()
    with _lock:
        saved = _read_saved()
        for name in map(_known, names):
            saved[name] = _as_text(getattr(now, name))
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        import tempfile  # only who saves needs it, and it takes long to load

        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".settings-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(saved, file, indent=1, sort_keys=True)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    return path


def described() -> list[tuple[str, str, str]]:
    """Name as typed, present value and meaning of every setting."""
    now = current()
    return [(name.replace("_", "-"), _as_text(getattr(now, name)), row.meaning) for name, row in ROWS.items()]


def _known(name: str) -> str:
    plain = name.strip().replace("-", "_").lower()
    if plain not in ROWS:
        import difflib  # slow to import, and seldom needed

        near = difflib.get_close_matches(plain, ROWS, n=1, cutoff=0.5)
        raise UnknownSetting(name, near[0].replace("_", "-") if near else None)
    return plain


def _read(name: str, text: str, source: str = "") -> object:
    try:
        return ROWS[name].parse(text)
    except ValueError as error:
        raise BadSetting(name.replace("_", "-"), text, ROWS[name].expects, str(error), source) from None


def _read_saved() -> dict[str, str]:
    path = settings_file()
    try:
        with open(path, encoding="utf-8") as file:
            saved = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ParcacheError(
            f"the saved settings in {path} cannot be read: {error}; delete or repair that file"
        ) from None
    if not isinstance(saved, dict):
        raise ParcacheError(
            f"the saved settings in {path} are no table of names and values; delete that file"
        )
    # A name that a later version wrote is kept in the file and means nothing here.
    return {name: str(text) for name, text in saved.items()}


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "auto" if value is None else str(value)


assert Settings._fields == tuple(ROWS), "every setting has a row, in order"
