"""What lies outside memory as rows of a trace: files, variables, settings, random generators.

A row says what a run was told when it asked: `still_holds` asks again.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from json import dumps
from typing import Any, NamedTuple

from blake3 import blake3

from ipyparcache.digest import generators, modules, openfiles, shownonce
from ipyparcache.digest.filedigests import FileDigests
from ipyparcache.digest.generators import GENERATORS, generator_digest, is_seeded
from ipyparcache.digest.libsettings import SETTINGS, settings_digest
from ipyparcache.digest.objects import Traversal, digest_of
from ipyparcache.digest.openfiles import Seen, answer_to, listing_of, signature_of
from ipyparcache.errors import Undigestible, Unrepeatable


class Row(NamedTuple):
    """One observation: what was asked (`kind`), of what (`name`), and what the answer was (`digest`)."""

    kind: str
    name: str
    digest: str


_digests = FileDigests()
_secret = bytes(32)


def use_secret(secret: bytes) -> None:
    """Key the digests of environment variables, which may be passwords, with 32 bytes of this user's."""
    global _secret
    _secret = blake3(secret).digest()


# ---- rows


def observed_rows(seen: Seen, *, trust_shell: bool = False, logs: bool = True) -> list[Row]:
    """What a run asked for, as rows that hold as long as the answers are the same.

    Parameters
    ----------
    seen : Seen
        What was noted while it ran.
    trust_shell : bool
        Whether it may have started programs.
    logs : bool
        Whether files count that it only appended to: what they hold cannot change its results.

    Raises
    ------
    Unrepeatable
        If the run read from the console, started programs, removed files it did not make, or if a file that
        it read has changed since.
    """
    with openfiles.unwatched():
        _refuse(seen, trust_shell)
        rows = [*_file_rows(seen, logs)]
        for (question, path), answer in sorted(seen.answers.items()):
            use = seen.files.get(os.path.abspath(path))
            made_new = use is not None and use.is_written and not use.is_read
            if made_new and (question, path) not in seen.asked_by_user:
                continue  # a writer that looks whether it overwrites; that the file is there is demanded too
            rows.append(Row(question, path, _hexed(answer)))
        for path, listing in sorted(seen.listings.items()):
            rows.append(Row("listing", path, _hexed(listing)))
        for path in sorted(seen.own_listings):
            listing = listing_of(path)  # as a hit finds it, if nobody else puts something there
            if listing is not None:
                rows.append(Row("listing", path, _hexed(listing)))
        for name, value in sorted(seen.environment.items()):
            rows.append(Row("env", name, _variable(value)))
        rows += [Row("module", name, _module_digest(name)) for name in sorted(seen.modules)]
        rows += [Row("name", name, digest) for name, digest in sorted(seen.names.items())]
        if seen.asks_folder:
            rows.append(Row("cwd", "", _hexed(seen.folder)))
        rows += (Row("random", *drawn) for drawn in generators.drawn_from(seen))
        return rows


def _refuse(seen: Seen, trust_shell: bool) -> None:
    if seen.lost:
        raise Unrepeatable(seen.lost)
    if seen.unseen:
        raise Unrepeatable(f"not all that it asked for could be noted ({seen.unseen})")
    if seen.reads_stdin:
        raise Unrepeatable("it reads from the console")
    if seen.commands and not trust_shell:
        program = seen.commands[0].program
        raise Unrepeatable(f"it runs another program ({program}); --trust-shell caches it all the same")
    nameless = [name for name, digest in seen.names.items() if digest == "none"]
    if nameless:
        raise Unrepeatable(f"a library looks up `{nameless[0]}`, which has no digest")
    if seen.removed:
        raise Unrepeatable(f"it removes, renames or marks {seen.removed[0]}, which it did not make")


def _file_rows(seen: Seen, logs: bool) -> Iterable[Row]:
    for full, use in sorted(seen.files.items()):
        if use.is_log and not logs:
            continue
        if use.is_read:
            if use.is_written:
                yield Row("file", use.spelled, "absent" if use.content is None else use.content.hex())
            else:
                now = signature_of(full)
                found = _digests.digest(full)
                if now != use.before or signature_of(full) != use.before:
                    raise Unrepeatable(f"{use.spelled} changed while the cell ran")
                yield Row("file", use.spelled, found)
        if use.is_written:
            found = _digests.digest(full)
            if found == "absent":
                raise Unrepeatable(f"{use.spelled}, which it wrote, is no longer there")
            yield Row("output", use.spelled, found)
    for folder in sorted(seen.folders_made | seen.folders_kept):
        spelled = os.path.relpath(folder, seen.folder) if folder.startswith(seen.folder + os.sep) else folder
        if os.path.isdir(folder):
            yield Row("output", spelled, "folder")


def static_rows(
    reached: Collection[str], *, files: Sequence[str] = (), variables: Sequence[str] = ()
) -> list[Row]:
    """Rows known before a run: files and variables that the user declares, settings of the libraries reached.

    Parameters
    ----------
    reached : mapping
        Modules reached, as `Traversal.modules`.
    files : sequence of str
        Paths, folders (with all in them) and patterns.
    variables : sequence of str
        Names of environment variables.
    """
    with openfiles.unwatched():
        rows = []
        for pattern in files:
            for path in sorted(_files_of(pattern)) or [pattern]:
                rows.append(Row("file", path, _digests.digest(path)))
        for name in variables:
            rows.append(Row("env", name, _variable(_raw_variable(name))))
        rows += _setting_rows(reached)
        for name in sorted(reached):
            if name in sys.modules:
                rows += _import_rows.get(name, [])
        return rows


_import_rows: dict[str, list[Row]] = {}
"""What each loaded local module asked for while it was imported, with the answers it got then."""


@contextmanager
def _noting_import(name: str) -> Iterator[None]:
    openfiles.note_loading(name)
    with openfiles.FileWatch() as seen:
        yield
    with openfiles.bookkeeping():
        answers = {f"{question} {path}": _hexed(answer) for (question, path), answer in seen.answers.items()}
        for full, use in seen.files.items():
            if use.is_read:
                answers[f"file {use.spelled}"] = _digests.digest(full)
        answers |= {f"listing {path}": _hexed(listing) for path, listing in seen.listings.items()}
        answers |= {f"env {variable}": _variable(value) for variable, value in seen.environment.items()}
        _import_rows[name] = [Row(f"import of {name}", *answer) for answer in sorted(answers.items())]


def _files_of(pattern: str) -> set[str]:
    expanded = os.path.expanduser(pattern)
    found = set()
    for path in glob.glob(expanded, recursive=True):
        if os.path.isdir(path):
            for folder, _, names in os.walk(path):
                found |= {os.path.join(folder, name) for name in names}
        else:
            found.add(path)
    return found


def files_named_in(value: object) -> list[str]:
    """Existing files that a string or path names, also inside lists, tuples and the values of dicts.

    Readers written in other languages open them where no audit event tells. Of a text that quotes other
    texts, such as SQL, these are asked, too.
    """
    with openfiles.unwatched():
        return [text for text in _texts(value, 0) if _names_file(text)]


def patterns_quoted_in(text: str) -> list[str]:
    """What a text of SQL quotes that stands for all files of a folder whose names fit."""
    with openfiles.unwatched():
        found = [text for text in _quoted(text) if glob.has_magic(text) and "**" not in text]
        return [pattern for pattern in found if glob.glob(pattern)]


def pattern_rows(pattern: str) -> list[Row]:
    """Rows that hold as long as the same files, with the same content, fit a pattern."""
    with openfiles.unwatched():
        folder = os.path.dirname(pattern) or os.curdir
        listed = Row("listing", folder, _now("listing", folder))
        return [*(file_row(path) for path in sorted(_files_of(pattern))), listed]


_QUOTED = re.compile(r"'([^'\n\0]{1,1023})'|\"([^\"\n\0]{1,1023})\"")
_LONGEST = 1 << 16  # of a text that is searched for what it quotes


def _quoted(text: str) -> list[str]:
    return [one or other for one, other in _QUOTED.findall(text)] if len(text) <= _LONGEST else []


def _texts(value: object, depth: int) -> list[str]:
    if isinstance(value, str):
        plain = 0 < len(value) < 1024 and "\n" not in value and "\0" not in value
        return [value, *_quoted(value)] if plain else _quoted(value)
    if isinstance(value, os.PathLike) and modules.origin_of(type(value).__module__) == "standard":
        return [os.fsdecode(os.fspath(value))]
    if depth < 2 and isinstance(value, (list, tuple)) and len(value) <= 1000:
        return [text for item in value for text in _texts(item, depth + 1)]
    if depth < 2 and type(value) is dict and len(value) <= 1000:
        return [text for item in value.values() for text in _texts(item, depth + 1)]
    return []


def _names_file(text: str) -> bool:
    try:
        return os.path.isfile(text)
    except (OSError, ValueError):
        return False


def warning_rows(before: shownonce.Shown, new: shownonce.Shown) -> list[Row]:
    """Rows for the warnings of local modules that a run showed, and for those that it may have kept back.

    Parameters
    ----------
    before, new : dict
        What had been shown before the run of what it may show, and what the run showed.
    """
    rows = [Row("warned", name, "no") for name in sorted(shownonce.names_of(new))]
    return rows + [Row("warned", name, "yes") for name in sorted(shownonce.names_of(before))]


def file_row(path: str) -> Row:
    """A row that holds as long as a file has its present content."""
    with openfiles.unwatched():
        return Row("file", path, _digests.digest(path))


def still_holds(row: Sequence[Any]) -> bool:
    """Whether asking again gives the answer that the row notes."""
    kind, name, digest = row
    with openfiles.unwatched():
        return bool(_now(kind, name) == digest)


def _now(kind: str, name: str) -> str:
    if kind in ("file", "output"):
        return _digests.digest(name)
    if kind == "listing":
        return _hexed(listing_of(name))
    if kind == "env":
        return _variable(_raw_variable(name))
    if kind == "name":
        return _name_digest(name)
    if kind == "module":
        return _module_digest(name)
    if kind == "cwd":
        return _hexed(os.getcwd())
    if kind == "warned":
        return "yes" if name in shownonce.names_of(shownonce.shown()) else "no"
    if kind == "random":
        state = GENERATORS[name].state() if name in GENERATORS else None
        return generator_digest(state) if state is not None and is_seeded(name) else "unseeded"
    if kind == "readlink":
        try:
            return _hexed(os.readlink(name))
        except OSError:
            return _hexed(None)
    if kind.startswith("access "):
        return _hexed(os.access(name, int(kind.split()[1])))
    return _hexed(answer_to(kind, name))


def _module_digest(name: str) -> str:
    """Digest of a local module as an import would find it: by sources, and by what changed since."""
    traversal = Traversal()
    try:
        traversal.add_import(name)
        traversal.follow()
    except Undigestible:
        return "none"
    return traversal.combined().hex()[:32]


def _name_digest(name: str) -> str:
    namespace = vars(sys.modules["__main__"])
    if name not in namespace:
        return "absent"
    try:
        return digest_of(namespace[name], namespace).hex()[:32]
    except Undigestible:
        return "none"


def described(row: Sequence[Any]) -> str:
    """What does not hold any more, for a line of explanation."""
    kind, name, _ = row
    texts = {
        "file": f"the file {name} changed",
        "output": f"{name}, which it wrote, is gone or changed",
        "listing": f"the folder {name} holds other files",
        "env": f"the environment variable {name} changed",
        "cwd": "the present folder is another one",
        "module": f"the module {name} changed",
        "name": f"`{name}`, which a library looks up, changed",
        "warned": f"whether {name.partition(' ')[0]} has shown a warning already has changed",
        "random": f"the {name} generator is in another state",
        "exists": f"whether {name} exists has changed",
        "lexists": f"whether {name} exists has changed",
        "isfile": f"whether {name} is a file has changed",
        "isdir": f"whether {name} is a folder has changed",
        "size": f"the size of {name} changed",
        "mtime": f"the time of {name} changed",
        "stat": f"size or time of {name} changed",
        "lstat": f"size or time of {name} changed",
        "readlink": f"the link {name} leads elsewhere",
        "find_spec": f"whether the module {name} is found has changed",
    }
    return texts.get(kind, f"{name} ({kind}) is not as it was")


def _hexed(answer: object) -> str:
    return blake3(dumps(answer).encode("utf-8", "surrogatepass")).hexdigest(16)


def _hexed_value(value: object) -> str:
    return digest_of(value).hex()[:32]


def _raw_variable(name: str) -> str | None:
    return os.environ.get(name)


def _variable(value: str | None) -> str:
    if value is None:
        return "unset"
    return blake3(value.encode("utf-8", "surrogateescape"), key=_secret).hexdigest(16)


def _setting_rows(reached: Collection[str]) -> list[Row]:
    rows = []
    for setting in SETTINGS:
        if setting.library not in sys.modules or not setting.concerns(reached):
            continue
        try:
            special = setting.special()
        except Exception as error:
            raise Unrepeatable(f"the {setting.name} cannot be read ({error})") from error
        if special:
            rows.append(Row("setting", setting.name, settings_digest(special)))
    return rows


def _note_bindings(seen: Seen) -> None:
    seen.bindings = dict(vars(sys.modules["__main__"]))


def _note_names(seen: Seen, namespace: Mapping[str, Any], names: Sequence[str]) -> None:
    """Digest the variables that a library looks up by name, but for those that the run itself bound."""
    known = namespace is vars(sys.modules["__main__"])
    for name in names:
        if name in seen.names or (known and seen.bindings.get(name, seen) is not namespace[name]):
            continue
        try:
            seen.names[name] = digest_of(namespace[name], namespace).hex()[:32]
        except Undigestible:
            seen.names[name] = "none"


openfiles.AT_START.append(_note_bindings)
openfiles.ON_NAMES.append(_note_names)


def install(user_cells_ran: bool) -> None:
    """Begin to watch what can only be known from the beginning: seeds, warning filters, imports.

    Parameters
    ----------
    user_cells_ran : bool
        Whether cells ran before, which may have seeded any generator: unknown means seeded.
    """
    modules.observers.while_loading = _noting_import
    modules.watch_imports()
    generators.install(user_cells_ran)


def uninstall() -> None:
    """Take the wrappers out again."""
    generators.uninstall()
