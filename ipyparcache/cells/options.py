"""The options of the magics, declared once: parsed, checked, explained, and completed from the same rows."""

from __future__ import annotations

import difflib
import io
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

from ipyparcache.errors import ParcacheError
from ipyparcache.settings import parse_duration


class WrongOption(ParcacheError):
    """A magic line that cannot be understood: which part, and what was probably meant."""

    def __init__(self, magic: str, problem: str):
        super().__init__(magic, problem)
        self.magic = magic
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.magic}: {self.problem} (`{self.magic} --help` lists the options)"


@dataclass(frozen=True)
class Option:
    """One option of a magic.

    `read` turns the text after the option into its value; None makes it a switch. A switch called
    `--no-NAME` sets NAME to False.
    """

    name: str  # with dashes, "--on-error"
    help: str
    read: Callable[[str], Any] | None = None
    metavar: str = ""
    default: Any = None
    short: str = ""
    optional_value: Any = None  # what the option means without its value, if it may stand alone
    is_code: bool = False  # the value is Python: quotation marks inside belong to it

    @property
    def field(self) -> str:
        """Name of the field it fills."""
        return self.name.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class Parsed:
    """A magic line taken apart: a value for every option, and the words that are none."""

    values: dict[str, Any]
    words: tuple[str, ...]
    help_wanted: bool = False


def names_list(text: str) -> tuple[str, ...]:
    """`a,b` as names."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    wrong = next((name for name in names if not name.isidentifier()), None)
    if wrong is not None or not names:
        raise ValueError(f"`{wrong or text}` is not a variable name")
    return names


def words_list(text: str) -> tuple[str, ...]:
    """`a,b` as words of any kind."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def share(text: str) -> float:
    """`2%` or `0.02` as a number between 0 and 1."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ValueError("a share is wanted, as in 2% or 0.02") from None
    if not 0 <= value <= 1:
        raise ValueError("a share lies between 0 and 100%")
    return value


def whole(text: str) -> int:
    """A whole number."""
    if not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError("a whole number is wanted")
    return int(text)


def at_least(least: int) -> Callable[[str], int]:
    """A whole number that is not less."""

    def read(text: str) -> int:
        value = whole(text)
        if value < least:
            raise ValueError(f"a whole number from {least} on is wanted")
        return value

    return read


def variable(text: str) -> str:
    """The name of a variable."""
    if not text.isidentifier() or iskeyword(text):
        raise ValueError("the name of a variable is wanted")
    return text


def seconds(text: str) -> float:
    """`30`, `1.5`, `2m` or `7d` in seconds."""
    try:
        value = float(text)
    except ValueError:
        return float(parse_duration(text))
    if not value > 0:
        raise ValueError("a positive number of seconds is wanted")
    return value


def one_of(*choices: str) -> Callable[[str], str]:
    """One of some words."""

    def read(text: str) -> str:
        if text not in choices:
            near = difflib.get_close_matches(text, choices, 1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"one of {', '.join(choices)} is wanted{hint}")
        return text

    return read


def parse_line(magic: str, line: str, options: Sequence[Option], *, stop_at_word: bool = False) -> Parsed:
    """Take a magic line apart.

    Parameters
    ----------
    magic : str
        For the messages, "%%cached".
    line : str
    options : sequence of Option
    stop_at_word : bool
        For line magics: the first word that is no option begins the statement, left as it is in `words[0]`.

    Raises
    ------
    WrongOption
        An unknown option (with the nearest right one), a missing or malformed value.
    """
    by_name: dict[str, Option] = {option.name: option for option in options}
    by_name.update({option.short: option for option in options if option.short})
    values = {option.field: option.default for option in options if not option.name.startswith("--no-")}
    words: list[str] = []
    rest = line.strip()
    while rest:
        if stop_at_word and not rest.startswith("-"):
            words.append(rest)
            break
        before = rest
        word, rest = _next_word(magic, rest)
        name, equals, attached = word.partition("=")
        if name in by_name and by_name[name].is_code:
            attached = _as_code(before[: len(before) - len(rest)].strip().partition("=")[2])
        if not word.startswith("-") or re.fullmatch(r"-\d*", word):
            words.append(word)  # also `-1`, the last cell
        elif name in ("--help", "-h"):
            return Parsed(values, tuple(words), help_wanted=True)
        elif name not in by_name:
            short = re.fullmatch(r"(-[a-z])(\d+)", word)
            if short and short[1] in by_name:  # -j4
                _read_value(magic, by_name[short[1]], short[1], short[2], values)
                continue
            near = difflib.get_close_matches(name, [*by_name, "--help"], 1, 0.5)
            raise WrongOption(
                magic, f"there is no option `{name}`" + (f"; did you mean `{near[0]}`?" if near else "")
            )
        else:
            rest = _take(magic, by_name[name], name, attached if equals else None, rest, values)
    return Parsed(values, tuple(words))


def _take(
    magic: str, option: Option, name: str, attached: str | None, rest: str, values: dict[str, Any]
) -> str:
    """Fill one option's field; returns what is left of the line."""
    if option.read is None:
        if attached is not None:
            raise WrongOption(magic, f"`{name}` takes no value")
        if option.name.startswith("--no-"):
            values[option.name[5:].replace("-", "_")] = False
        else:
            values[option.field] = True
        return rest
    if attached is None:
        following, after = _next_word(magic, rest) if rest else ("", "")
        alone = not rest or (following.startswith("-") and not re.fullmatch(r"-[\d.]+", following))
        if option.optional_value is not None and (
            alone or (following.isidentifier() and not _fits(option, following))
        ):
            values[option.field] = option.optional_value
            return rest
        if alone:
            raise WrongOption(magic, f"`{name}` wants a value: {name} {option.metavar}")
        attached = _as_code(rest[: len(rest) - len(after)].strip()) if option.is_code else following
        rest = after
    _read_value(magic, option, name, attached, values)
    return rest


def _fits(option: Option, text: str) -> bool:
    assert option.read is not None
    try:
        option.read(text)
    except ValueError:
        return False
    return True


def _read_value(magic: str, option: Option, name: str, text: str, values: dict[str, Any]) -> None:
    assert option.read is not None
    try:
        values[option.field] = option.read(text)
    except ValueError as error:
        raise WrongOption(magic, f"`{name} {text}`: {error}") from None


def _next_word(magic: str, text: str) -> tuple[str, str]:
    source = io.StringIO(text)
    lexer = shlex.shlex(source, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        word = lexer.get_token()
    except ValueError:
        raise WrongOption(magic, f"a quotation mark is not closed in `{text}`") from None
    return word or "", source.read().lstrip()


def _as_code(text: str) -> str:
    """A word as it was typed, without quotation marks around the whole of it."""
    quoted = re.fullmatch(r"""'([^']*)'|"([^"]*)\"""", text)
    return text if quoted is None else quoted[1] or quoted[2] or ""


def help_text(usage: str, summary: str, options: Sequence[Option], notes: str = "") -> str:
    """The text of `--help`."""
    rows = []
    for option in options:
        shown = ", ".join(filter(None, [option.short, option.name])) + (
            f" {option.metavar}" if option.metavar else ""
        )
        default = option.default if option.read is not None and option.default else None
        told = option.help if default is None else f"{option.help} ({_as_typed(default)} if not given)"
        rows.append(f"  {shown:<28} {told}")
    return "\n".join(
        [
            usage,
            "",
            summary,
            "",
            *rows,
            "  --help                       show this text",
            *([notes] if notes else []),
        ]
    )


def _as_typed(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_fields(parsed: Parsed, *names: str) -> Mapping[str, Any]:
    """Only the fields of these names."""
    return {name: parsed.values[name] for name in names}
