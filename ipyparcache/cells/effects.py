"""What a cell does to libraries that no entry could bring back.

It assigns an attribute of a library's module or class, as `np.name`, or fills a table of the process, as
`atexit.register`: the library is imported anew by the next kernel. Assignments and calls are found in the
code; tables that a library holds, and that the code leads to, are compared with what they held before.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from abc import ABCMeta
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from ipyparcache.cells.inputs import reached_functions
from ipyparcache.digest import registries
from ipyparcache.digest.modules import is_user_code
from ipyparcache.digest.objects import Traversal, digest_of
from ipyparcache.errors import Undigestible

Chain = tuple[str, ...]  # names as code goes along them: ("np", "random", "seed")
Use = tuple[str, Chain]  # what code does with what a chain leads to: "reach" it, "set" or "change" it

_CHANGING_METHODS = frozenset(
    {
        "add",
        "append",
        "clear",
        "discard",
        "extend",
        "insert",
        "pop",
        "popitem",
        "remove",
        "setdefault",
        "update",
    }
)
_LARGE_TABLE = 10_000  # items; a larger one is compared item by item, not by content


class Effects:
    """Watches one run of a cell.

    Parameters
    ----------
    compiled : list of code
        The statements of the cell.
    namespace : mapping
        The notebook's.
    traversal : Traversal
        Of the cell's inputs, which the functions that it calls are among.
    """

    def __init__(
        self, compiled: Sequence[types.CodeType], namespace: Mapping[str, Any], traversal: Traversal
    ):
        self._scopes: list[tuple[types.CodeType, Mapping[str, Any]]] = [(one, namespace) for one in compiled]
        self._scopes += [
            (function.__code__, function.__globals__) for function in reached_functions(traversal)
        ]
        self._tables = {
            ".".join(chain): (table, _content(table))
            for chain, names in self._chains()
            if (table := _table_of_library(chain, names)) is not None
        }

    def found(self) -> str | None:
        """The first effect that the run had, if it had one, as a reason not to store it."""
        for name, (table, before) in self._tables.items():
            if not _same_content(before, _content(table)):
                return f"it changes {name}, which belongs to a library"
        for code, scope in self._scopes:
            effect = _effect_of(code, scope)
            if effect is not None:
                return effect
        return None

    def untold_inputs(self) -> str | None:
        """What the cell may read that no digest tells, as a reason not to look for an entry."""
        asked = next(
            (name for _, reached in self._reached() if (name := registries.default_database(reached))), None
        )
        return None if asked is None else _with_default_database(asked)

    def _reached(self) -> Iterator[tuple[types.CodeType, object]]:
        for code, scope in self._scopes:
            for inner in _with_nested(code):
                names = _names_in(inner, scope)
                yield from ((inner, _resolved(chain, names)) for use, chain in _uses(inner) if use == "reach")

    def _chains(self) -> Iterator[tuple[Chain, ChainMap[str, Any]]]:
        for code, scope in self._scopes:
            for inner in _with_nested(code):
                names = _names_in(inner, scope)
                yield from ((chain, names) for use, chain in _uses(inner) if use == "reach")


def _with_default_database(function: str) -> str | None:
    held = registries.untold_of_default_database()
    if held is None:
        return None
    return (
        f"it calls {function}(), and DuckDB's default database holds {held}, which is no input and which a "
        "hit could not make; a connection of its own (`con = duckdb.connect()`, `del con`) would not matter"
    )


def _content(table: object) -> object:
    """What a table holds, to be compared later: a digest, or its items where there is none."""
    items: list[object] = [*(table.items() if isinstance(table, dict) else cast("list[object]", table))]
    if len(items) <= _LARGE_TABLE:
        try:
            return digest_of(table, {})
        except Undigestible:
            pass
    return items


def _same_content(before: object, now: object) -> bool:
    if isinstance(before, list) and isinstance(now, list):
        pairs = zip(before, now, strict=False)
        return len(before) == len(now) and all(_same_item(one, other) for one, other in pairs)
    return before == now


def _same_item(one: object, other: object) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return all(part is now for part, now in zip(one, other, strict=True))
    return one is other


def _effect_of(code: types.CodeType, scope: Mapping[str, Any]) -> str | None:
    """The first effect in the code and in what is defined inside of it."""
    for inner in _with_nested(code):
        names = _names_in(inner, scope)
        sets_by_name = sorted({"setattr", "delattr"} & set(inner.co_names))
        for use, chain in _uses(inner):
            changed = ""
            if (
                _is_of_library(_resolved(chain[:-1], names))
                if use == "set"
                else use == "change" and _table_of_library(chain, names) is not None
            ):
                changed = ".".join(chain)
            elif sets_by_name and len(chain) == 1 and _is_of_library(_resolved(chain, names)):
                changed = f"{chain[0]} by {sets_by_name[0]}"
            if changed:
                return f"it changes {changed}, which belongs to a library"
            reached = _resolved(chain, names) if use == "reach" else None
            registers, asks = registries.registrar(reached), registries.untold(reached)
            if registers is not None:
                return f"it calls {registers}(), whose effect a hit could not bring back"
            if asks is not None:
                return f"it calls {asks}(), whose answer is no input"
            if (database := registries.default_database(reached)) is not None:
                if (word := registries.sets_up_session(inner)) is not None:
                    return f"it calls {database}() with {word}, whose effect a hit could not bring back"
                if (untold := _with_default_database(database)) is not None:
                    return untold
    return None


def _with_nested(code: types.CodeType) -> Iterator[types.CodeType]:
    waiting = [code]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += [const for const in one.co_consts if isinstance(const, types.CodeType)]


@functools.lru_cache(1024)
def _uses(code: types.CodeType) -> tuple[Use, ...]:
    """What the code does along chains of names; functions defined inside of it are left out.

    Follows which chain lies where on the interpreter's stack. Where that cannot be told (after a jump, below
    an instruction that is not known here), a chain is forgotten, never invented.
    """
    found: list[Use] = []
    stack: list[Chain] = []

    def pop(count: int = 1) -> Chain:
        taken: Chain = ()
        for _ in range(count):
            taken = stack.pop() if stack else ()
        return taken

    for step in dis.get_instructions(code):
        name, value = step.opname, step.argval
        if name in ("LOAD_GLOBAL", "LOAD_NAME") or name.startswith("LOAD_FAST"):
            names = value if isinstance(value, tuple) else (value,)
            chains: list[Chain] = [(str(one),) for one in names]
            found += [("reach", chain) for chain in chains]
            if name == "LOAD_GLOBAL" and _effect_on_stack(step) == 2:  # with the place of a `self`
                chains = [(), *chains] if sys.version_info < (3, 13) else [*chains, ()]
            stack += chains
        elif name in ("LOAD_ATTR", "LOAD_METHOD"):
            chain = pop()
            if chain:
                if value in _CHANGING_METHODS:
                    found.append(("change", chain))
                chain = (*chain, str(value))
                found.append(("reach", chain))
            stack += [chain] * (1 + _effect_on_stack(step))
        elif name in ("STORE_ATTR", "DELETE_ATTR"):
            chain = pop()
            if chain:
                found.append(("set", (*chain, str(value))))
            pop(-_effect_on_stack(step) - 1)
        elif name in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            chain = pop(2)  # below the key
            if chain:
                found.append(("change", chain))
            pop(-_effect_on_stack(step) - 2)
        elif name == "COPY":
            stack.append(stack[-step.arg] if step.arg and step.arg <= len(stack) else ())
        elif name == "SWAP":
            if step.arg and step.arg <= len(stack):
                stack[-1], stack[-step.arg] = stack[-step.arg], stack[-1]
        elif name in _ENDS:
            stack.clear()
        else:
            change = _effect_on_stack(step)
            if change > 0:
                stack += [()] * change
            elif change < 0:
                pop(-change)
            if name not in _LEAVE_THE_TOP and stack:
                stack[-1] = ()
    return tuple(found)


_ENDS = frozenset(
    {"RETURN_VALUE", "RETURN_CONST", "RERAISE", "RAISE_VARARGS", "JUMP_FORWARD", "JUMP_BACKWARD"}
)
_LEAVE_THE_TOP = frozenset(
    {
        "CACHE",
        "EXTENDED_ARG",
        "KW_NAMES",
        "LOAD_CONST",
        "LOAD_SMALL_INT",
        "NOP",
        "NOT_TAKEN",
        "POP_TOP",
        "PRECALL",
        "PUSH_NULL",
        "RESUME",
        "STORE_DEREF",
        "STORE_FAST",
        "STORE_GLOBAL",
        "STORE_NAME",
    }
)


def _effect_on_stack(step: dis.Instruction) -> int:
    argument = step.arg if step.opcode >= dis.HAVE_ARGUMENT else None
    try:
        return dis.stack_effect(step.opcode, argument, jump=False)
    except ValueError:  # an instruction of the compiler alone
        return 0


@functools.lru_cache(1024)
def _imports_in(code: types.CodeType) -> tuple[tuple[str, str, str], ...]:
    """Local names that import statements of the code bind: (name, module, what of it; "" the module)."""
    found = []
    module = part = ""
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            module, part = str(step.argval), ""
        elif step.opname == "IMPORT_FROM":
            part = str(step.argval)
        elif step.opname.startswith("STORE_") and module:
            name = step.argval[0] if isinstance(step.argval, tuple) else str(step.argval)
            found.append((name, module, part))
            if not part:
                module = ""
        elif step.opname == "POP_TOP" and not part:
            module = ""
    return tuple(found)


def _names_in(code: types.CodeType, scope: Mapping[str, Any]) -> ChainMap[str, Any]:
    """What names of the code stand for: those that it imports itself, then its globals."""
    return ChainMap(_imported_in(code), cast("dict[str, Any]", scope))


def _imported_in(code: types.CodeType) -> dict[str, object]:
    """What these names stand for, as far as the modules are loaded."""
    found: dict[str, object] = {}
    for name, module, part in _imports_in(code):
        if is_user_code(module):
            continue
        if not part:
            found[name] = sys.modules.get(module.partition(".")[0])
        elif module.endswith(f".{part}"):  # import a.part as name
            found[name] = sys.modules.get(module)
        else:
            holder = sys.modules.get(module)
            found[name] = vars(holder).get(part) if holder else None
    return found


def _table_of_library(chain: Sequence[str], names: ChainMap[str, Any]) -> object:
    """The list, dict or set of a library's module or class to which the names lead, else None.

    A single name does if the code itself imports it: one of the notebook stands for a value among the inputs.
    What is brought back with the process (`sys.path`, warning filters) is none.
    """
    if len(chain) == 1:
        thing = names.maps[0].get(chain[0])
    else:
        thing = _resolved(chain, names) if _is_of_library(_resolved(chain[:-1], names)) else None
    if type(thing) not in (list, dict, set):
        return None
    own = (sys.path, sys.modules, sys.modules["warnings"].filters)
    return None if any(thing is one for one in own) else thing


def _resolved(chain: Sequence[str], names: Mapping[str, Any]) -> object:
    if not chain:
        return None
    found: object = names.get(chain[0])
    for part in chain[1:]:
        if not isinstance(found, types.ModuleType | type):
            return None  # attributes of other objects may be computed
        if (
            part == "register"
            and type(found) is ABCMeta
            and not any("register" in vars(k) for k in found.__mro__)
        ):
            return found.register  # of its metaclass
        found = vars(found).get(part)
    return found


def _is_of_library(thing: object) -> bool:
    if isinstance(thing, types.ModuleType):
        return not is_user_code(thing.__name__)
    return isinstance(thing, type) and not is_user_code(thing.__module__)
