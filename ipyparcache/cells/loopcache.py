"""`--cached`: every iteration of a loop is an entry of its own.

So that a loop cut short computes only the rest.
"""

from __future__ import annotations

import ast
import json
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import blake3

from ipyparcache.analysis.body import ITEM
from ipyparcache.analysis.parfor import Parfor
from ipyparcache.cells import inputs
from ipyparcache.cells.inputs import KeyOptions, NoKey
from ipyparcache.digest import environment
from ipyparcache.digest.objects import digest_of
from ipyparcache.errors import DamagedEntry, StoreUnavailable, Undigestible
from ipyparcache.storage.entry import Entries, Entry, open_entries


@dataclass
class LoopCache:
    """The entries of one loop's iterations.

    Attributes
    ----------
    key
        Digest of everything that all iterations depend on: the loop's text, what its body reads, settings.
    problem
        Why nothing more can be stored, once a write has failed.
    """

    entries: Entries
    identity: str
    key: str
    cell: str
    namespace: dict[str, Any]
    seed: int | None
    numbered: bool  # what an iteration does depends on its number, beside the seed
    problem: str | None = None

    def key_of(self, iteration: int, element: object) -> str | None:
        """The key of one iteration; None if its element has no digest."""
        try:
            digest = digest_of(element, self.namespace)
        except Undigestible:
            return None
        place = (self.seed, iteration) if self.seed is not None or self.numbered else None
        facts = (self.key, digest.hex(), place)
        return blake3.blake3(repr(facts).encode()).hexdigest(16)

    def find(self, key: str) -> tuple[bytes, list[Any], list[Any]] | None:
        """Record, buffers and output of an earlier run of an iteration whose observed inputs are as they
        were."""
        for entry in self.entries.under(key):
            if inputs.still_holds(entry.manifest.get("observed", ()), self.namespace) is None:
                found = _payload_of(entry)
                if found is not None:
                    entry.used()
                    return found
        return None

    def store(
        self,
        key: str,
        observed: Sequence[Any],
        record: tuple[bytes, list[Any]],
        events: list[Any],
        seconds: float,
    ) -> None:
        """Keep what an iteration left."""
        if self.problem is not None:
            return
        rows = [list(row) for row in observed]
        trace = blake3.blake3(json.dumps(rows, sort_keys=True).encode()).hexdigest(8)
        manifest = {
            "format": inputs.FORMAT,
            "identity": self.identity,
            "cell": self.cell,
            "inputs": {},
            "summaries": {},
            "observed": rows,
            "names": [],
            "deleted": [],
            "definitions": [],
            "seconds": seconds,
            "ran": time.time(),
            "left": {},
            "iteration": True,
        }
        data, buffers = record
        try:
            payload = pickle.dumps((data, events), 5)
            self.entries.write(key, trace, manifest, payload, buffers, seconds=seconds)
        except StoreUnavailable as error:
            self.problem = str(error)


def _payload_of(entry: Entry) -> tuple[bytes, list[Any], list[Any]] | None:
    try:
        pickled, buffers = entry.payload()
    except DamagedEntry:
        return None
    data, events = pickle.loads(pickled)
    return data, list(buffers), events


def open_cache(
    parfor: Parfor, statement: ast.stmt, namespace: dict[str, Any], seed: int | None
) -> tuple[LoopCache | None, str]:
    """The entries of a loop's iterations, or None and the reason why they cannot be kept."""
    if isinstance(statement, ast.For):
        nothing = ast.copy_location(ast.Tuple([], ast.Load()), statement.iter)
        loop: ast.stmt = ast.copy_location(ast.For(statement.target, nothing, statement.body, []), statement)
        tree = ast.Module([loop], [])
    else:
        tree = parfor.body
    only_changed = frozenset(parfor.changed) - parfor.reads | {ITEM}
    options = KeyOptions(ignore=only_changed)
    try:
        identity = inputs.identity_of(tree, False, options, "iteration")
        found = inputs.collect(tree, namespace, options, identity)
        entries = open_entries()
    except (NoKey, StoreUnavailable) as error:
        return None, str(error)
    environment.use_secret(entries.secret)
    cell = ast.unparse(statement)
    return LoopCache(entries, identity, found.key, cell, namespace, seed, bool(parfor.counters)), ""
