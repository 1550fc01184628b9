"""The subcommands of `%parcache` and of the `ipyparcache` command: one row each, the same code for both."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ipyparcache import settings
from ipyparcache.cells import auto, drawing, exchange, reports, runs
from ipyparcache.cells.options import Option, Parsed, WrongOption, at_least, help_text, one_of, parse_line
from ipyparcache.engine.pool import shutdown_workers, the_pool
from ipyparcache.errors import ParcacheError
from ipyparcache.storage.entry import Entry, is_entry, open_entries


@dataclass(frozen=True)
class Said:
    """What a subcommand has to say: as text, richer as HTML where it has more to show, and as variables."""

    text: str
    html: str = ""
    variables: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """One subcommand."""

    name: str
    usage: str
    summary: str
    run: Callable[[Parsed], Said]
    options: tuple[Option, ...] = ()
    words: int = 0  # that may stand behind its name, besides options
    in_kernel: bool = False  # speaks of the runs of a kernel, which the command line has none of


class NotInAKernel(ParcacheError):
    """A subcommand that speaks of a kernel's runs was given on the command line."""

    def __init__(self, command: str):
        super().__init__(command)
        self.command = command

    def __str__(self) -> str:
        return (
            f"`{self.command}` speaks of the cells that a kernel has run: "
            f"type %parcache {self.command} in a notebook"
        )


def _status(parsed: Parsed) -> Said:
    entries = open_entries()
    infos = list(entries.infos())
    used = runs.size(sum(info.size for info in infos))
    count = _count(sum(is_entry(info.name) for info in infos))
    now = settings.current()
    lines = [
        f"store      {now.dir}",
        f"size       {used} in {count}, of at most {runs.size(entries.budget())}",
        f"automatic  {'on, from ' + runs.duration(auto.min_seconds()) if auto.is_on() else 'off'}",
    ]
    ours = runs.runs()
    if ours:
        hits = [run for run in ours if run.hit]
        saved = sum(max(0.0, run.body_seconds - run.seconds) for run in hits)
        stored = sum(run.status == "miss" for run in ours)
        plural = "s" * (len(hits) != 1)
        lines.append(f"this kernel  {len(hits)} hit{plural}, {stored} stored, {runs.duration(saved)} saved")
    return Said("\n".join(lines))


def _count(entries: int) -> str:
    return "1 entry" if entries == 1 else f"{entries} entries"


_ORDERS: dict[str, Callable[[Entry], float]] = {
    "size": lambda entry: -entry.size,
    "age": lambda entry: -entry.created,
    "saved": lambda entry: -entry.seconds,
}


def _list(parsed: Parsed) -> Said:
    entries = sorted(open_entries().all(), key=_ORDERS[parsed.values["sort"]])
    if not entries:
        return Said("the store is empty")
    rows = []
    for entry in entries[: parsed.values["limit"]]:
        first = str(entry.manifest.get("cell", entry.manifest.get("function", ""))).strip().splitlines() or [
            ""
        ]
        age = runs.duration(max(0.0, time.time() - entry.created))
        saves = runs.duration(entry.seconds)
        rows.append(
            f"{entry.key[:10]}  {runs.size(entry.size):>8}  {age:>12} old  saves {saves:>12}  {first[0][:60]}"
        )
    left = len(entries) - len(rows)
    return Said("\n".join([*rows, *([f"and {left} more (--limit {len(entries)})"] if left > 0 else [])]))


def _run_of(command: str, parsed: Parsed) -> runs.Run:
    """The run that a word names, the last one without."""
    try:
        return runs.run_of(parsed.words[0] if parsed.words else "-1")
    except ValueError:
        raise WrongOption(
            f"%parcache {command}", f"write the number of a cell, as in `{command} 12`, or -1 for the last"
        ) from None


def _why(parsed: Parsed) -> Said:
    run = _run_of("why", parsed)
    lines = [f"cell [{run.execution_count}]: {run.status}: {run.reason}"]
    for change in run.changes:
        lines.append(f"  {change}")
        lines += [f"      {line}" for line in change.detail]
    if run.digest_seconds:
        lines.append(f"  {len(run.inputs)} inputs digested in {runs.duration(run.digest_seconds)}:")
    lines += [f"    {name:<28} {digest[:12]}" for name, digest in sorted(run.inputs.items())]
    return Said("\n".join(lines))


def _clear(parsed: Parsed) -> Said:
    entries = open_entries()
    if parsed.values["all"]:
        return Said(f"removed {_count(entries.clear())}: the whole store")
    mine = runs.runs()
    if parsed.words and not parsed.values["cell"]:
        word = parsed.words[0]
        meant = "--all" if word == "all" else f"--cell {word}"
        raise WrongOption("%parcache clear", f"`{word}` is no option; did you mean `clear {meant}`?")
    if parsed.values["cell"]:
        wanted = _run_of("clear --cell", parsed)
        mine = [run for run in mine if run.identity == wanted.identity]
    names = {f"{run.key}.{run.trace}" for run in mine if run.key and run.trace}
    return Said(f"removed {_count(entries.remove(names))} that this kernel stored or hit")


def _prune(parsed: Parsed) -> Said:
    values = parsed.values
    if values["max_size"] is None and values["older"] is None:
        raise WrongOption("%parcache prune", "say how much is to stay: --max-size 10G or --older 30d")
    gone = open_entries().prune(values["max_size"], values["older"])
    return Said(f"removed {_count(sum(map(is_entry, gone)))}")


def _verify(parsed: Parsed) -> Said:
    right, wrong = open_entries().verify()
    said = f"{_count(right)} {'is' if right == 1 else 'are'} whole"
    return Said(
        said if not wrong else f"{said}, {len(wrong)} were damaged and are set aside: {', '.join(wrong[:5])}"
    )


def _auto(parsed: Parsed) -> Said:
    if parsed.words not in (("on",), ("off",)):
        raise WrongOption("%parcache auto", "write `auto on [--min 1s]` or `auto off`")
    auto.switch(on=parsed.words == ("on",), min_seconds=parsed.values["min"])
    return Said("")


def _set(parsed: Parsed) -> Said:
    if not parsed.words:
        rows = [f"{name:<14} {value:<40} {meaning}" for name, value, meaning in settings.described()]
        return Said("\n".join(rows))
    names = []
    for word in parsed.words:
        name, equals, value = word.partition("=")
        if not equals:
            raise WrongOption("%parcache set", f"write KEY=VALUE, as in `set {name}=…`")
        settings.change(name, value)
        names.append(name)
    if parsed.values["save"]:
        return Said(f"saved in {settings.save(names)}")
    return Said("")


def _export(parsed: Parsed) -> Said:
    target = _one_word(parsed, "export", "FILE")
    return Said(exchange.export_entries(open_entries(), target))


def _import(parsed: Parsed) -> Said:
    source = _one_word(parsed, "import", "FILE")
    return Said(exchange.import_entries(open_entries(), source, trust=parsed.values["trust"]))


def _graph(parsed: Parsed) -> Said:
    picture = drawing.graph(runs.runs())
    return Said(picture.text, drawing.scrolled(picture))


def _timeline(parsed: Parsed) -> Said:
    picture = reports.timeline()
    target = parsed.values["save"]
    if target and picture.svg:
        drawing.save(picture, target)
        return Said(f"{picture.text}\nsaved in {target}", picture.svg)
    return Said(picture.text, picture.svg)


def _name(text: str) -> str:
    if not text.isidentifier():
        raise ValueError("write the name of a variable")
    return text


def _partial(parsed: Parsed) -> Said:
    target = parsed.values["to"]
    return Said(reports.partial_text(), variables={target: reports.partial_results()} if target else {})


def _workers(parsed: Parsed) -> Said:
    pool = the_pool()
    if parsed.words == ("stop",):
        shutdown_workers()
        return Said("the workers are stopped; the next parallel cell starts new ones")
    if parsed.words == ("restart",):
        count = max(1, len(pool.pids()))
        shutdown_workers()
        the_pool().warm_up(count)
        return Said(f"{count} workers started anew")
    if parsed.words:
        raise WrongOption("%parcache workers", "write `workers`, `workers restart` or `workers stop`")
    pids = pool.pids()
    if not pids:
        return Said("no worker runs")
    return Said("\n".join([f"{len(pids)} workers", *(f"  process {pid}" for pid in pids)]))


def _one_word(parsed: Parsed, command: str, wanted: str) -> str:
    if len(parsed.words) != 1:
        raise WrongOption(f"%parcache {command}", f"write `{command} {wanted}`")
    return parsed.words[0]


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("status", "status", "store, size, hits, time saved", _status),
        Command(
            "list",
            "list [--sort size|age|saved] [--limit N]",
            "the entries of the store",
            _list,
            (
                Option("--sort", "by what", one_of(*_ORDERS), "size|age|saved", "age"),
                Option("--limit", "how many", at_least(1), "N", 30),
            ),
        ),
        Command("why", "why [CELL|-1]", "what made a run hit or miss", _why, words=1, in_kernel=True),
        Command(
            "clear",
            "clear [--cell [CELL]|--all]",
            "remove entries: this kernel's, one cell's, or all",
            _clear,
            (
                Option("--cell", "only those of one cell", None, "", False),
                Option("--all", "the whole store", None, "", False),
            ),
            words=1,
        ),
        Command(
            "prune",
            "prune [--max-size 10G] [--older 30d]",
            "remove what is least useful",
            _prune,
            (
                Option("--max-size", "what is to stay at most", settings.parse_size, "SIZE"),
                Option("--older", "not used for so long", settings.parse_duration, "TIME"),
            ),
        ),
        Command("verify", "verify", "check every entry", _verify),
        Command(
            "auto",
            "auto on|off [--min 1s]",
            "treat later cells as if they began with %%cached",
            _auto,
            (
                Option(
                    "--min",
                    "store cells that ran at least so long",
                    settings.parse_duration,
                    "TIME",
                    auto.DEFAULT_MIN_SECONDS,
                ),
            ),
            words=2,
            in_kernel=True,
        ),
        Command(
            "set",
            "set [KEY=VALUE ...] [--save]",
            "show or change settings",
            _set,
            (Option("--save", "keep them for later sessions", None, "", False),),
            words=sys.maxsize,
        ),
        Command("export", "export FILE", "write all entries into one file", _export, words=2),
        Command(
            "import",
            "import FILE [--trust]",
            "take entries from such a file",
            _import,
            (Option("--trust", "also if it was signed with another key", None, "", False),),
            words=2,
        ),
        Command("graph", "graph", "which cell feeds which", _graph, in_kernel=True),
        Command(
            "workers", "workers [restart|stop]", "the worker processes", _workers, words=2, in_kernel=True
        ),
        Command(
            "timeline",
            "timeline [--save FILE]",
            "which worker ran what when",
            _timeline,
            (Option("--save", "write the picture into an .svg or .png file", str, "FILE"),),
            in_kernel=True,
        ),
        Command(
            "errors",
            "errors",
            "errors of the last parallel cell",
            lambda parsed: Said(reports.errors_text()),
            in_kernel=True,
        ),
        Command(
            "partial",
            "partial [--to NAME]",
            "results that an error or interrupt kept from being merged",
            _partial,
            (Option("--to", "bind them to a variable: for each loop a dict by iteration", _name, "NAME"),),
            in_kernel=True,
        ),
    )
}


def run(line: str, *, in_kernel: bool = True, caller: str = "%parcache") -> Said:
    """Run a subcommand from what the user typed.

    Raises
    ------
    WrongOption
        If there is no such subcommand or its options are wrong.
    """
    name, _, rest = line.strip().partition(" ")
    if name in ("", "--help", "-h"):
        return Said(overview(caller, in_kernel=in_kernel))
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise WrongOption(caller, f"there is no subcommand `{name}`{hint}")
    if command.in_kernel and not in_kernel:
        raise NotInAKernel(name)
    parsed = parse_line(f"{caller} {name}", rest, command.options)
    if parsed.help_wanted:
        return Said(help_text(f"{caller} {command.usage}", command.summary, command.options))
    if len(parsed.words) > command.words:
        surplus = parsed.words[command.words]
        options = {option.name for option in command.options}
        hint = f"; did you mean `--{surplus}`?" if f"--{surplus}" in options else ""
        raise WrongOption(f"{caller} {name}", f"`{surplus}` means nothing here{hint}")
    return command.run(parsed)


def overview(caller: str = "%parcache", *, in_kernel: bool = True) -> str:
    """All subcommands, or those that need no kernel, a line each."""
    shown = [command for command in COMMANDS.values() if in_kernel or not command.in_kernel]
    rows = [f"  {command.usage:<40} {command.summary}" for command in shown]
    return "\n".join([f"{caller} SUBCOMMAND [options]", "", *rows])
