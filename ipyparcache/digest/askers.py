"""Who is behind a request that a run makes of the system: the user, a library, an import, ourselves."""

from __future__ import annotations

import os
from types import FrameType

from ipyparcache.digest import modules

# Our wrappers stand between who asks and the system.
_WRAPPING = frozenset(
    f"{__package__}.{name}"
    for name in (
        "openfiles",
        "audited",
        "unaudited",
        "readers",
        "environment",
        "generators",
        "registries",
        "warningfilters",
    )
)


def asker_of(frame: FrameType | None, limit: int = 120) -> tuple[str, str]:
    """Who is behind a request (`user`, `library`, `import`, `ours`), and the name of a library.

    The nearest frame that is not of the standard library asks. A distribution that is being imported asks for
    nothing that its version does not tell.
    """
    importing = about_distributions = False
    found: tuple[str, str] | None = None
    temporary = ""
    while frame is not None and limit:
        limit -= 1
        code = frame.f_code
        if code.co_filename.startswith(_IMPORT_SYSTEM):
            importing = importing or not _is_asked_for_data(frame)
            frame = frame.f_back
            continue
        name = frame.f_globals.get("__name__")
        if name in _WRAPPING:
            frame = frame.f_back
            continue
        if isinstance(name, str) and name.startswith(_METADATA):
            about_distributions = True  # a library that looks for plug-ins walks all of sys.path
            frame = frame.f_back
            continue
        origin = modules.origin_of(name) if isinstance(name, str) else "local"
        if origin == "library" and about_distributions and found is None:
            return "import", ""
        if origin == "standard":
            if name == "tempfile":
                temporary = "tempfile"
        elif importing and found is None:
            return "import", ""
        elif origin == "library":
            top = str(name).partition(".")[0]
            if found is None:
                found = ("ours", top) if top == "ipyparcache" else ("library", top)
            if code.co_name == "<module>" and top != "ipyparcache":
                return "import", top
        else:
            return found or ("user", temporary)
        frame = frame.f_back
    return found or ("library", "import" if importing else "")


def _is_asked_for_data(frame: FrameType) -> bool:
    """Whether the import system does not import, but reads a file that lies beside a module (`pkgutil`)."""
    above = frame.f_back
    is_first = above is not None and not above.f_code.co_filename.startswith(_IMPORT_SYSTEM)
    return is_first and frame.f_code.co_name == "get_data"


def is_asked_by_user(frame: FrameType | None) -> bool:
    """Whether the nearest frame that is not of the standard library is the user's own: `asker_of` for what
    libraries do thousands of times, as it looks no further than that frame.
    """
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if not isinstance(name, str):
            return True
        if name not in _WRAPPING:
            origin = modules.origin_of(name)
            if origin != "standard":
                return origin != "library"
        frame = frame.f_back
    return False


_IMPORT_SYSTEM = "<frozen importlib"
_METADATA = ("importlib.metadata", "importlib_metadata", "importlib.resources", "pkg_resources")
_ENGINE_FOLDERS = ("joblib_memmapping_folder_", "pymp-", "loky-")  # what pools exchange arrays through
_SYSTEM_FOLDERS = ("/proc/", "/sys/", "/dev/")
_LIBRARY_SYSTEM_FOLDERS = ("/etc/", "/usr/", "/lib/", "/var/lib/", "/opt/")


def is_ignored(path: str, asker: tuple[str, str]) -> bool:
    """Whether a path is no business of the user's: bytecode, system tables, a library's own folders."""
    if f"{path}/".startswith(_SYSTEM_FOLDERS) or "__pycache__" in path:
        return True
    if any(part.startswith(_ENGINE_FOLDERS) for part in path.split(os.sep)):
        return True
    who, name = asker
    if who in ("import", "ours"):
        return True
    if who == "user":
        return False
    if modules.origin_of_file(path) != "local" or path.startswith(_LIBRARY_SYSTEM_FOLDERS):
        return True
    home = os.path.expanduser("~") + os.sep
    if path.startswith(home) and name:
        parts = path[len(home) :].lower().split(os.sep)
        own = name.lower()
        hidden = parts[0].startswith(".")
        return hidden and (
            any(own in part for part in parts) or parts[0] in (".fonts", ".ipython", ".jupyter")
        )
    return path.endswith("matplotlibrc")
