"""What raises an audit event: files that are opened, listed, changed and removed, programs, frames, pickles.

One hook, added once and for ever as hooks cannot be removed, looks at the watches that are active; it never
raises.
"""

from __future__ import annotations

import os
import re
import stat as stat_module
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from ipyparcache.digest import modules
from ipyparcache.digest.askers import asker_of, is_ignored
from ipyparcache.digest.openfiles import (
    ON_NAMES,
    Asker,
    Command,
    Seen,
    absolute,
    answer_to,
    bookkeeping,
    concerned,
    file_content,
    is_quiet,
    listing_of,
    path_of,
    plain_stat,
    use_of,
    watches,
)


def note_open(
    seen: Seen, frame: FrameType, path: Any, mode: Any, flags: Any, folder: int | None = None
) -> None:
    """Note that a file is opened, for reading or writing; the arguments are those of the audit event."""
    spelled = path_of(path, folder)
    if spelled is None:
        return
    full = absolute(spelled)
    if is_ignored(full, asker_of(frame)):
        return
    flags = flags if isinstance(flags, int) else 0
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    known = seen.files.get(full)
    appends = writes == os.O_WRONLY and bool(flags & os.O_APPEND)
    if known is not None:
        known.is_log = known.is_log and appends
    if not writes:
        try:
            if stat_module.S_ISDIR(plain_stat(full).st_mode):
                return
        except OSError:
            pass
        use = use_of(seen, spelled)
        if not use.is_made and not use.is_written:
            use.is_read = True
        return
    _on_write(seen, spelled, keeps=not flags & (os.O_TRUNC | os.O_EXCL))
    if known is None:
        seen.files[full].is_log = appends
    if flags & os.O_EXCL:
        seen.answers.setdefault(("exists", seen.spelled(spelled)), False)
        seen.asked_by_user.add(("exists", seen.spelled(spelled)))


def _on_write(seen: Seen, path: str, keeps: bool) -> None:
    """Note that a file is about to be written; with `keeps`, on top of what it holds."""
    use = use_of(seen, path)
    if keeps and not use.is_made and not use.is_written:
        use.is_read = True
        use.content = file_content(absolute(path))
    use.is_written = True
    use.is_made = True


def _on_listing(seen: Seen, frame: FrameType, path: Any) -> None:
    spelled = "." if path is None else path_of(path, -2 if isinstance(path, int) else None)
    if spelled is None or is_ignored(absolute(spelled), asker_of(frame)):
        return
    if seen.made(absolute(spelled)):
        seen.own_listings.add(seen.spelled(spelled))
        return
    seen.listings.setdefault(seen.spelled(spelled), listing_of(absolute(spelled)))


def _on_scan(seen: Seen, frame: FrameType, path: Any) -> None:
    """The same, and what the system says of each entry where the user's code may ask the entries for it."""
    _on_listing(seen, frame, path)
    spelled = "." if path is None else path_of(path, -2 if isinstance(path, int) else None)
    if spelled is None or not modules.is_user_code(frame.f_globals.get("__name__")):
        return
    if not _names_attribute(frame.f_code, "stat") or seen.made(absolute(spelled)):
        return
    for name, _ in listing_of(absolute(spelled)) or ():
        entry = os.path.join(seen.spelled(spelled), name)
        seen.answers.setdefault(("stat", entry), answer_to("stat", entry))


def _names_attribute(code: CodeType, name: str) -> bool:
    return name in code.co_names or any(
        _names_attribute(constant, name) for constant in code.co_consts if isinstance(constant, CodeType)
    )


def _on_sqlite(seen: Seen, frame: FrameType, database: Any) -> None:
    spelled = path_of(database)
    if spelled is None or spelled in ("", ":memory:"):
        return
    if spelled.startswith("file:"):
        if ":memory:" in spelled or "mode=memory" in spelled:
            return
        spelled = spelled[len("file:") :].partition("?")[0]
    if not is_ignored(absolute(spelled), asker_of(frame)):
        _on_write(seen, spelled, keeps=True)
        for log in (f"{spelled}-wal", f"{spelled}-journal"):  # what was committed may still lie there
            if os.path.exists(absolute(log)):
                _on_write(seen, log, keeps=True)


def _on_remove(seen: Seen, frame: FrameType, path: Any, folder: int = -1) -> None:
    spelled = path_of(path, folder)
    if spelled is None or is_ignored(absolute(spelled), asker_of(frame)):
        return
    full = absolute(spelled)
    use = seen.files.get(full)
    if seen.made(full) and (use is None or not use.existed):
        _forget_made(seen, full)
    elif os.path.lexists(full):
        seen.removed.append(spelled)


def _forget_made(seen: Seen, path: str) -> None:
    """A file that the run made goes: whatever lies there when it is asked again would have gone as well."""
    use = seen.files.pop(path, None)
    if use is not None and not any(path.startswith(folder + os.sep) for folder in seen.folders_made):
        seen.answers.setdefault(("lexists", use.spelled), False)


def _on_remove_folder(seen: Seen, frame: FrameType, path: Any, folder: int = -1) -> None:
    spelled = path_of(path, folder)
    if spelled is None or is_ignored(absolute(spelled), asker_of(frame)):
        return
    full = absolute(spelled)
    if full in seen.folders_made:
        seen.folders_made.discard(full)
    elif not seen.made(full) and os.path.lexists(full):
        seen.removed.append(spelled)


def _on_remove_tree(seen: Seen, frame: FrameType, path: Any, folder: Any = None) -> None:
    spelled = path_of(path, folder)
    if spelled is None or is_ignored(absolute(spelled), asker_of(frame)):
        return
    full = absolute(spelled)
    if not seen.made(full):
        if os.path.lexists(full):
            seen.removed.append(spelled)
        return
    for known in [known for known in seen.files if known.startswith(full + os.sep)]:
        del seen.files[known]


def _on_rename(
    seen: Seen, frame: FrameType, source: Any, target: Any, from_folder: int = -1, to_folder: int = -1
) -> None:
    old, new = path_of(source, from_folder), path_of(target, to_folder)
    if old is None or new is None or is_ignored(absolute(old), asker_of(frame)):
        return
    full, there = absolute(old), absolute(new)
    use = seen.files.get(full)
    if full in seen.folders_made:
        seen.folders_made.discard(full)
        seen.folders_made.add(there)
        for known in [known for known in seen.files if known.startswith(full + os.sep)]:
            moved = seen.files.pop(known)
            moved.spelled = os.path.join(new, os.path.relpath(known, full))
            seen.files[there + known[len(full) :]] = moved
    elif seen.made(full) and (use is None or not use.existed):
        _forget_made(seen, full)
        replaced = use_of(seen, new)
        replaced.is_written = replaced.is_made = True
    else:
        seen.removed.append(old)


def _on_make_folder(seen: Seen, frame: FrameType, path: Any, mode: int = 0, folder: int = -1) -> None:
    spelled = path_of(path, folder)
    if spelled is None or is_ignored(absolute(spelled), asker_of(frame)):
        return
    full = absolute(spelled)
    is_there = os.path.lexists(full)
    if _must_be_new(frame) and not seen.made(full):
        seen.answers.setdefault(("lexists", seen.spelled(spelled)), is_there)
        seen.asked_by_user.add(("lexists", seen.spelled(spelled)))
    elif is_there:
        seen.folders_kept.add(full)
    if not is_there:
        seen.folders_made.add(full)


def _must_be_new(frame: FrameType | None) -> bool:
    """Whether user code makes a folder so that one that is there already is an error."""
    while frame is not None and frame.f_code in _FOLDER_MAKERS:
        if frame.f_locals.get("exist_ok"):
            return False
        frame = frame.f_back
    return frame is not None and modules.is_user_code(frame.f_globals.get("__name__"))


_FOLDER_MAKERS = {os.makedirs.__code__, Path.mkdir.__code__}


def _on_link(seen: Seen, frame: FrameType, source: Any, target: Any, *folders: int) -> None:
    spelled = path_of(target, folders[-1] if folders else None)
    if spelled is not None and not is_ignored(absolute(spelled), asker_of(frame)):
        _on_write(seen, spelled, keeps=False)


def _on_mark(seen: Seen, frame: FrameType, path: Any, *_rest: Any) -> None:
    """Mode, owner or times of a file are set: of one that was there before, no hit brings that back."""
    spelled = path_of(path)
    if spelled is None or is_ignored(absolute(spelled), asker_of(frame)):
        return
    if not seen.made(absolute(spelled)) and os.path.lexists(absolute(spelled)):
        seen.removed.append(spelled)


def _on_truncate(seen: Seen, frame: FrameType, path: Any, length: int = 0) -> None:
    spelled = path_of(path)
    if spelled is not None and not is_ignored(absolute(spelled), asker_of(frame)):
        _on_write(seen, spelled, keeps=length > 0)


# Programs that libraries start to learn about the machine: their answer changes nothing that a cell computes.
_MACHINE_PROGRAMS = frozenset({"lscpu", "fc-list", "uname", "ldconfig", "nvidia-smi", "getconf", "sysctl"})
_ENGINES = frozenset({"joblib", "loky", "ipyparcache", "multiprocessing", "distributed", "ray"})


def _on_command(seen: Seen, frame: FrameType, *arguments: Any) -> None:
    who, name = asker_of(frame)
    program = _program_in(arguments)
    if who in ("ours", "import") or (who == "library" and (name in _ENGINES or program in _MACHINE_PROGRAMS)):
        return
    if frame.f_globals.get("__name__", "").partition(".")[0] == "multiprocessing":
        return  # a pool of processes: what it leaves running is looked at when the cell has ended
    seen.commands.append(Command(_what_starts(frame), program))


def _what_starts(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _program_in(arguments: tuple[Any, ...]) -> str:
    first = arguments[0] if arguments else ""
    if isinstance(first, (list, tuple)):
        first = first[0] if first else ""
    try:
        text = os.fsdecode(first)
    except TypeError:
        text = str(first)
    words = text.split()
    return os.path.basename(words[0]) if words else ""


_NAME_ASKERS = frozenset(
    [
        "collections",
        "enum",
        "typing",
        "warnings",
        "logging",
        "functools",
        "abc",
        "importlib",
        "dataclasses",
        "types",
        "string",
        "traceback",
    ]
)


def _on_frame(seen: Seen, frame: FrameType, asked: FrameType | None = None) -> None:
    name = str(frame.f_globals.get("__name__", ""))
    who = frame
    if name == "inspect" and frame.f_back is not None:
        who = frame.f_back
        name = str(who.f_globals.get("__name__", ""))
    if name.partition(".")[0] in _NAME_ASKERS or modules.origin_of(name) != "library":
        return
    if name.partition(".")[0] in ("ipyparcache", "IPython", "ipykernel", "zmq", "traitlets"):
        return
    above: FrameType | None = who
    texts: list[str] = []
    for _ in range(60):
        if above is None:
            return
        above_name = above.f_globals.get("__name__")
        if above_name in modules.NOTEBOOK_MODULES:
            break
        if above.f_code.co_name == "<module>" and modules.origin_of(str(above_name)) == "library":
            return
        texts += _texts_in(above)
        above = above.f_back
    else:
        return
    seen.askers[Asker(name, above.f_lineno)] = None
    words = {word for text in texts for word in _IDENTIFIER.findall(text)}
    names = [word for word in words if word in above.f_globals]
    for note in ON_NAMES:
        note(seen, above.f_globals, names)


_IDENTIFIER = re.compile(r"[^\W\d]\w*")


def _texts_in(frame: FrameType) -> list[str]:
    """Strings that a function of a library was handed, or holds, while it asks for the caller's frame."""
    found = []
    for value in frame.f_locals.values():
        for part in value if type(value) in (tuple, list) and len(value) < 100 else (value,):
            if type(part) is str and len(part) < 10_000:
                found.append(part)
    return found


def _on_unpickle(seen: Seen, frame: FrameType, module: Any, name: Any) -> None:
    """A class is looked up for an object in a pickle: its code is an input."""
    if not isinstance(module, str) or not isinstance(name, str) or not modules.is_user_code(module):
        return
    if asker_of(frame)[0] == "ours":
        return
    if module in modules.NOTEBOOK_MODULES:
        namespace = vars(sys.modules[module])
        top = name.partition(".")[0]
        if top in namespace:
            for note in ON_NAMES:
                note(seen, namespace, [top])
    else:
        seen.modules.add(module)


def _on_input(seen: Seen, frame: FrameType, *prompt: Any) -> None:
    seen.reads_stdin = True


_HANDLERS: dict[str, Callable[..., None]] = {
    "open": note_open,
    "os.listdir": _on_listing,
    "os.scandir": _on_scan,
    "sqlite3.connect": _on_sqlite,
    "os.remove": _on_remove,
    "os.rmdir": _on_remove_folder,
    "shutil.rmtree": _on_remove_tree,
    "os.rename": _on_rename,
    "os.mkdir": _on_make_folder,
    "os.link": _on_link,
    "os.symlink": _on_link,
    "os.truncate": _on_truncate,
    "os.chmod": _on_mark,
    "os.chown": _on_mark,
    "os.utime": _on_mark,
    "os.setxattr": _on_mark,
    "subprocess.Popen": _on_command,
    "os.system": _on_command,
    "os.exec": _on_command,
    "os.posix_spawn": _on_command,
    "os.spawn": _on_command,
    "os.fork": _on_command,
    "os.forkpty": _on_command,
    "pty.spawn": _on_command,
    "sys._getframe": _on_frame,
    "pickle.find_class": _on_unpickle,
    "builtins.input": _on_input,
}


def hear(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook."""
    if not watches:
        return
    handler = _HANDLERS.get(event)
    if handler is None or is_quiet():
        return
    with bookkeeping():  # asking for a frame raises an event, too
        for seen in concerned():
            handler(seen, sys._getframe(1), *arguments)
