"""What compiled code reads and writes by name: its globals, and attributes of them."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator


@functools.lru_cache(maxsize=4096)
def globals_of(code: types.CodeType) -> frozenset[str]:
    """Names that a code object, or code inside of it, reads or writes as globals."""
    return frozenset(_global_names(code, ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL")))


@functools.lru_cache(maxsize=4096)
def attributes_of(code: types.CodeType) -> frozenset[tuple[str, str]]:
    """Pairs (global name, attribute) that a code object, or code inside of it, reads."""
    return frozenset(_attribute_reads(code))


def _attribute_reads(code: types.CodeType) -> Iterator[tuple[str, str]]:
    import dis

    name: str | None = None
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and name is not None:
            yield name, instruction.argval
        name = instruction.argval if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") else None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _attribute_reads(constant)


@functools.lru_cache(maxsize=4096)
def globals_written_by(code: types.CodeType) -> frozenset[str]:
    """Names that a code object, or code inside of it, assigns as globals."""
    return frozenset(_global_names(code, ("STORE_GLOBAL", "DELETE_GLOBAL")))


def _global_names(code: types.CodeType, operations: tuple[str, ...]) -> Iterator[str]:
    import dis

    for instruction in dis.get_instructions(code):
        if instruction.opname in operations:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant, operations)
