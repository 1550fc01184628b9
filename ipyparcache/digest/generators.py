"""The global random generators: their states, who seeded them, whether a run drew from them.

Seeds, warning filters and codecs can be noted only by who watches from the beginning: `install` wraps the
functions that set them.
"""

from __future__ import annotations

import codecs
import functools
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, NoneType
from typing import Any

from blake3 import blake3

from ipyparcache.digest import modules, openfiles, registries, unaudited, warningfilters
from ipyparcache.digest.openfiles import Seen
from ipyparcache.digest.walk import KINDS, Kind, Walk, dumps


class RandomKind(Kind):
    """`random.Random`: its state, kept in C."""

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"Random")
        walk.stack.append(self.state(obj))
        walk.keep(walk.stack[-1])

    def state(self, obj: Any) -> object:
        return random.Random.getstate(obj)

    def put(self, obj: Any, state: Any) -> None:
        random.Random.setstate(obj, state)


KINDS[random.Random] = RandomKind()


@dataclass(frozen=True)
class GlobalGenerator:
    """A library's global random generator."""

    library: str
    read: Callable[[], object]
    write: Callable[[Any], None]
    seeders: tuple[str, ...]  # functions of the library that fix its state

    def state(self) -> object | None:
        """Its state; None if the library is not loaded."""
        return self.read() if self.library in sys.modules else None

    def digest(self) -> str:
        """Digest of its state, empty if the library is not loaded."""
        state = self.state()
        return "" if state is None else generator_digest(state)


def generator_digest(state: object) -> str:
    """Digest of a generator's state, which is asked for at every cell."""
    return blake3(dumps(_primitive(state), 2)).hexdigest(16)


def _primitive(state: Any) -> object:
    """A state as primitives: generators keep numbers, in tuples, dicts, arrays and tensors."""
    if isinstance(state, dict):
        return [(name, _primitive(part)) for name, part in sorted(state.items())]
    if isinstance(state, tuple):
        return state if len(state) > 100 else [_primitive(part) for part in state]
    if isinstance(state, bool | int | float | str | bytes | NoneType):
        return state
    array = state if hasattr(state, "tobytes") else state.numpy()
    return (array.dtype.str, array.tobytes())


def _read_numpy() -> object:
    return sys.modules["numpy.random"].mtrand._rand.get_state(legacy=False)


def _write_numpy(state: Any) -> None:
    sys.modules["numpy.random"].mtrand._rand.set_state(state)


def _read_torch() -> object:
    return sys.modules["torch"].random.default_generator.get_state().numpy().tobytes()


def _write_torch(state: bytes) -> None:
    torch = sys.modules["torch"]
    torch.random.default_generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


GENERATORS = {
    "random": GlobalGenerator(
        "random",
        lambda: sys.modules["random"]._inst.getstate(),
        lambda state: sys.modules["random"]._inst.setstate(state),
        ("seed", "setstate"),
    ),
    "numpy.random": GlobalGenerator("numpy.random", _read_numpy, _write_numpy, ("seed", "set_state")),
    "torch": GlobalGenerator("torch", _read_torch, _write_torch, ("manual_seed", "seed")),
}
seeded: set[str] = set()
_patched: dict[str, list[tuple[ModuleType, str, Any, Any]]] = {}
_installed = False


def install(user_cells_ran: bool) -> None:
    """Begin to watch who seeds generators, sets warning filters and registers codecs.

    Parameters
    ----------
    user_cells_ran : bool
        Whether cells ran before, which may have seeded any generator: unknown means seeded.
    """
    global _installed
    if _installed:
        return
    _installed = True
    for name, generator in GENERATORS.items():
        if generator.library in sys.modules:
            _patch_seeders(name, generator)
            if user_cells_ran:
                seeded.add(name)
        modules.AFTER_LOADING[generator.library] = functools.partial(_loaded, name)
    warningfilters.begin(user_cells_ran)
    for setter in ("filterwarnings", "simplefilter"):
        _patch(warnings, setter, warningfilters.noting_others(getattr(warnings, setter)), "warnings")
    for registrar, note in registries.CODEC_REGISTRARS.items():
        _patch(codecs, registrar, registries.noting_codecs(getattr(codecs, registrar), note), "codecs")


def uninstall() -> None:
    """Take the wrappers out again."""
    global _installed
    for patches in _patched.values():
        for module, name, plain, wrapped in patches:
            if getattr(module, name) is wrapped:
                setattr(module, name, plain)
    _patched.clear()
    warningfilters.end()
    for generator in GENERATORS.values():
        modules.AFTER_LOADING.pop(generator.library, None)
    _installed = False


def _loaded(name: str) -> None:
    """A library was loaded just now, so nobody has seeded its generator; or a second time, by a reload."""
    if name in _patched:
        seeded.add(name)
    else:
        _patch_seeders(name, GENERATORS[name])


def note_seeded(name: str) -> None:
    """Note that a generator's state is the user's choice from now on."""
    seeded.add(name)


def is_seeded(name: str) -> bool:
    """Whether the state of a generator is the user's choice."""
    generator = GENERATORS[name]
    if _installed and generator.library in sys.modules and name not in _patched:
        _patch_seeders(name, generator)  # loaded unseen, and perhaps seeded at once
        seeded.add(name)
    return name in seeded


def unwrap(namespace: dict[str, Any]) -> None:
    """Put plain functions in the place of our wrappers that a cell imported by name.

    Whoever holds a plain seed function may seed unseen, so its generator counts as seeded from then on.
    """
    found = unaudited.unwrap(namespace)
    for group, patches in _patched.items():
        if group in GENERATORS and any(plain in found for _, _, plain, _ in patches):
            seeded.add(group)


def _patch(module: ModuleType, name: str, wrapped: Any, group: str) -> None:
    wrapped.__dict__[unaudited.PLAIN] = getattr(module, name)
    _patched.setdefault(group, []).append((module, name, getattr(module, name), wrapped))
    setattr(module, name, wrapped)


def _patch_seeders(name: str, generator: GlobalGenerator) -> None:
    if name in _patched:
        return
    library = sys.modules[generator.library]
    _patched[name] = []
    for seeder in generator.seeders:
        plain = getattr(library, seeder, None)
        if plain is not None:
            _patch(library, seeder, _noting_seed(plain, name, generator), name)


def _noting_seed(plain: Callable[..., Any], name: str, generator: GlobalGenerator) -> Callable[..., Any]:
    @functools.wraps(plain)
    def seed(*arguments: Any, **options: Any) -> Any:
        before = generator.state()
        result = plain(*arguments, **options)
        seeded.add(name)
        with openfiles.bookkeeping():
            for noted in list(_noted_states):
                noted.setdefault(name, generator_digest(before))
        return result

    # pickled by the name under which it stands here, and the plain function stands elsewhere
    seed.__module__, seed.__qualname__ = generator.library, seed.__name__
    return seed


# What each generator held when the run first set its state; a run that had not drawn before depends on
# nothing.
_noted_states: list[dict[str, str]] = []


@dataclass
class _RandomStart:
    """The generators when a run began."""

    digests: dict[str, str]
    seeded: frozenset[str]
    first_set: dict[str, str] = field(default_factory=dict)


def _note_generators(seen: Seen) -> None:
    for name in GENERATORS:
        is_seeded(name)
    start = _RandomStart(
        {
            name: generator.digest()
            for name, generator in GENERATORS.items()
            if generator.library in sys.modules
        },
        frozenset(seeded),
    )
    seen.start = start
    _noted_states.append(start.first_set)
    del _noted_states[:-64]


openfiles.AT_START.append(_note_generators)


def drawn_from(seen: Seen) -> list[tuple[str, str]]:
    """The generators that a run drew from, or asked for their state, after somebody had seeded them; with
    their states before it."""
    start = seen.start
    if not isinstance(start, _RandomStart):
        return []
    _noted_states[:] = [noted for noted in _noted_states if noted is not start.first_set]
    found = []
    for name, before in start.digests.items():
        first_set = start.first_set.get(name)
        then = first_set if first_set is not None else GENERATORS[name].digest()
        if name in start.seeded and (then != before or name in seen.states_read):
            found.append((name, before))
    return found
