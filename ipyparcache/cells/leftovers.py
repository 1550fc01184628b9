"""What iterations behind an error or interrupt had done, in the form in which a user reads and takes it."""

from __future__ import annotations

import ast
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ipyparcache.analysis.body import HOLE, Site
from ipyparcache.analysis.parfor import Parfor
from ipyparcache.cells.messages import Left


@dataclass(frozen=True)
class Leftover:
    """What one finished iteration would have done to the namespace.

    Attributes
    ----------
    variables
        What it had assigned, the loop's own targets first.
    effects
        Its changes of containers and sums in their order: the statement with `<0>`, `<1>` for its operands,
        and these.
    elements
        Its elements of a comprehension.
    """

    line: int
    iteration: int
    variables: Mapping[str, object]
    effects: tuple[tuple[str, tuple[object, ...]], ...]
    elements: tuple[object, ...] = ()

    def __str__(self) -> str:
        brief = reprlib.Repr()
        said = [f"{name} = {brief.repr(value)}" for name, value in self.variables.items()]
        said += [
            _filled(statement, [brief.repr(one) for one in operands]) for statement, operands in self.effects
        ]
        if self.elements:
            said.append(", ".join(map(brief.repr, self.elements)))
        return f"line {self.line}, iteration {self.iteration}: {'; '.join(said) or 'it left nothing'}"


def leftover(number: int, left: Left, parfor: Parfor) -> Leftover:
    """What iteration `number` left, read by the statements that it belongs to."""
    entries, bindings, _, _, value, _ = left
    order = [*(name for name in parfor.targets if name in bindings), *bindings]
    effects = []
    for entry in entries:
        site = parfor.sites[entry[0]]
        if site.method != "looked up":
            effects.append((_text_of(site), tuple(entry[1 : 1 + site.holes])))
    elements = tuple(value) if isinstance(value, list) else ()
    return Leftover(parfor.line, number, {name: bindings[name] for name in order}, tuple(effects), elements)


def _text_of(site: Site) -> str:
    """The statement, with its operands as `<0>`, `<1>`."""
    text = ast.unparse(site.statement)
    for number in range(site.holes):
        text = text.replace(HOLE % number, f"<{number}>")
    return text


def _filled(statement: str, operands: Sequence[str]) -> str:
    return re.sub(r"<(\d+)>", lambda hole: operands[int(hole[1])], statement)
