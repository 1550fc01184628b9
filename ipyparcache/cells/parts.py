"""Immutable objects of the inputs that a cell's results hold: after a hit, `max(dates)` is one of the dates.

So is `df.columns` the frame's own. Digests do not tell equal immutable objects apart, so that
these have no number: they are told by when the walk of the inputs meets them, and by a digest of them all.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from ipyparcache.digest.objects import Traversal
from ipyparcache.errors import Undigestible

Parts = tuple[list[list[int]], str]
"""Places of each among the immutable objects of the inputs, and the digest of what lies there."""

MOST = 10_000  # where there are more, equal objects take their places, which costs less
MOST_PLACES = 8  # of one object, at which it has to lie again


def kept(inputs: Traversal, left: Traversal, known: Sequence[object]) -> Parts | None:
    """The immutable objects of the inputs that are among what a cell left; None if there are none.

    Parameters
    ----------
    inputs, left : Traversal
    known : sequence of object
        What exists on both sides besides them.
    """
    held = {id(thing) for thing in left.fixed()}
    pandas = sys.modules.get("pandas")
    if pandas is not None:
        held.update(id(labels) for _, labels in left.instances(pandas.Index))
    if not held:
        return None
    found: dict[int, list[int]] = {}
    for place, thing in enumerate(inputs.fixed()):
        if id(thing) in held:
            found.setdefault(id(thing), []).append(place)
    if not 0 < len(found) <= MOST:
        return None
    places = sorted(places[:MOST_PLACES] for places in found.values())
    digest = digest_of_parts(live(inputs, (places, "")), inputs.main, known)
    return None if digest is None else (places, digest)


def live(inputs: Traversal, parts: Parts | None) -> list[object]:
    """What lies at these places now, without what is no longer one object at all of its places."""
    if parts is None:
        return []
    fixed = inputs.fixed()
    found = []
    for places in parts[0]:
        things = [fixed[place] for place in places if place < len(fixed)]
        if len(things) == len(places) and all(thing is things[0] for thing in things):
            found.append(things[0])
    return found


def digest_of_parts(
    things: list[object], namespace: Mapping[str, object], known: Sequence[object]
) -> str | None:
    """Digest of such objects, those in `known` by their place; None if they have none."""
    traversal = Traversal(namespace, known, marking=False)
    try:
        return traversal.add("parts", things).hex()
    except Undigestible:
        return None
