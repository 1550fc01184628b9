"""What is known of a function: its code, its name, and which argument goes to which parameter."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import re
import tokenize
import types
import urllib.parse
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ipyparcache.digest.calls import Parameters
from ipyparcache.digest.code import facts_of
from ipyparcache.logger import pformat

__all__ = ["filter_args", "format_call", "format_signature", "get_func_code", "get_func_name"]

_LONG_ARGUMENT = 1500
_SHOWN_ARGUMENT = 700
"""Characters of a long argument that a written call shows."""

_LINE = 80
"""Behind an argument longer than this, the next one begins a line."""

_NOT_IN_FILE_NAMES = re.compile(r"[<>!:\\]")


def get_func_code(func: Any) -> tuple[str, str | None, int]:
    """The source of a function, the file where it stands, and its first line there.

    The file is read as it is now. Of a function without source, a name of its code stands in for it, and the
    `repr` of what is no Python function; the line is then -1.
    """
    code = getattr(func, "__code__", None)
    if not isinstance(code, types.CodeType):
        return repr(func), None, -1
    file = code.co_filename
    try:
        if os.path.exists(file):
            with tokenize.open(file) as lines:
                from_there = list(itertools.islice(lines, code.co_firstlineno - 1, None))
            if not from_there:
                raise OSError(f"{file} has become shorter")
            return "".join(inspect.getblock(from_there)), file, code.co_firstlineno
        source = "".join(inspect.getsourcelines(func)[0])
    except (OSError, TypeError, SyntaxError, ValueError, tokenize.TokenError):
        return facts_of(code).digest.hex(), file, -1
    doctest = re.fullmatch(r"<doctest (.*\.rst)\[(\d+)\]>", file)
    return (source, f"<doctest {doctest[1]}>", int(doctest[2])) if doctest else (source, file, 1)


def get_func_name(func: Any, resolv_alias: bool = True, win_characters: bool = True) -> tuple[list[str], str]:
    """Where a function is at home, part by part, and its name.

    For a function of a script or a notebook, the path of that file is a part.

    Parameters
    ----------
    func : callable
        The function.
    resolv_alias : bool
        Taken for programs that pass it; it changes nothing.
    win_characters : bool
        On Windows, quote characters that cannot be part of a file name there.
    """
    module = getattr(func, "__module__", None)
    if not isinstance(module, str):
        module = ""
    if module == "__main__":
        file = _source_file(func)
        if file is not None:
            module = f"{module}-{_one_name(file)}"
    name = getattr(func, "__name__", "unknown")
    *around, last = getattr(func, "__qualname__", name).split(".")
    parts = [*module.split("."), *(around if around or last != name else [])]
    if os.name == "nt" and win_characters:
        return [quoted(part) for part in parts], quoted(name)
    return parts, name


def quoted(text: str) -> str:
    """The text with `%3A` and the like for what cannot be part of a file name on Windows."""
    return _NOT_IN_FILE_NAMES.sub(lambda found: urllib.parse.quote(found[0]), text)


def _source_file(func: Any) -> str | None:
    try:
        file = inspect.getsourcefile(func)
    except TypeError:
        return None
    return None if file is None else os.path.abspath(file)


def _one_name(path: str) -> str:
    """A path as one name, the same in the next session for the same cell of a notebook."""
    parts = path.split(os.sep)
    if parts[-1].startswith("<ipython-input"):
        # Of <ipython-input-3-0123abcd> the number tells when the cell ran, and the rest which one it is.
        words = parts[-1].split("-")
        parts[-1] = "-".join(words[:2] + words[3:])
    elif len(parts) > 2 and parts[-2].startswith("ipykernel_"):
        parts[-2] = "ipykernel"  # the number of the process went with it
    return "-".join(parts).removesuffix(".py")


def filter_args(
    func: Any, ignore_lst: Sequence[str], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments of a call by parameter, defaults too, without those to be ignored.

    What goes to `*args` is a list under `*`, what goes to `**kwargs` a dict under `**`. Arguments of what is
    neither a Python function nor a method are not told apart.

    Parameters
    ----------
    func : callable
        The function.
    ignore_lst : list of str
        Names of parameters, `*` and `**` too.
    args, kwargs : list and dict
        The arguments.

    Raises
    ------
    ValueError
        If the function cannot be called so, or has no such parameter to ignore.
    """
    if isinstance(ignore_lst, str):
        raise ValueError(f"ignore_lst must be a list of parameters to ignore, {ignore_lst!r} is a str")
    kwargs = {} if kwargs is None else kwargs
    if not inspect.isfunction(func) and not inspect.ismethod(func):
        if ignore_lst:
            warnings.warn(f"Cannot inspect object {func!r}: none of its arguments is ignored.", stacklevel=2)
        return {"*": list(args), "**": dict(kwargs)}
    target: Any = func
    if isinstance(func, types.MethodType):
        target, args = func.__func__, (func.__self__, *args)
    parameters = Parameters(target, get_func_name(func)[1], ignore_lst)
    bound: dict[str, Any] = dict(parameters.bind(tuple(args), kwargs))
    if "*" in bound:
        bound["*"] = list(bound["*"])
    if "**" in bound:
        bound["**"] = dict(bound["**"])
    return bound


def format_signature(func: Any, *args: Any, **kwargs: Any) -> tuple[str, str]:
    """The full name of a function, and a call of it as text, long arguments shortened."""
    return full_name(func), call_text(get_func_name(func)[1], args, kwargs)


def full_name(func: Any) -> str:
    """Where a function is at home, and its name; of a partial, those of what it calls."""
    while isinstance(func, functools.partial):
        func = func.func
    parts, name = get_func_name(func)
    return ".".join([*filter(None, parts), name])


def format_call(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], object_name: str = "Memory"
) -> str:
    """The lines that tell that a function is called: a rule, who calls what, and the call."""
    path, signature = format_signature(func, *args, **kwargs)
    return call_lines(object_name, path, signature)


def call_lines(caller: str, path: str, signature: str) -> str:
    """The same from its parts."""
    return f"{'_' * 80}\n[{caller}] Calling {path}...\n{signature}"


def call_text(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """A call as text."""
    shown = list(map(_shown, args))
    for at in range(len(shown) - 1, 0, -1):
        if len(shown[at - 1]) > _LINE:
            shown[at] = f"\n{shown[at]}"
    shown += [f"{keyword}={_shown(value)}" for keyword, value in kwargs.items()]
    return f"{name}({', '.join(shown)})"


def _shown(value: object) -> str:
    text = pformat(value, indent=2)
    half = _SHOWN_ARGUMENT // 2
    return text if len(text) <= _LONG_ARGUMENT else f"{text[:half]}...{text[-half:]}"
