"""The `ipyparcache` command: the store's subcommands outside of a notebook."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from ipyparcache.cells import commands
from ipyparcache.errors import ParcacheError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status is 0, or 2 if it was not understood or could not be done."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        said = commands.run(shlex.join(words), in_kernel=False, caller="ipyparcache")
    except (ParcacheError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if said.text:
        print(said.text)
    return 0
