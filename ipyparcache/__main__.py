"""`python -m ipyparcache`: the same as the command `ipyparcache`."""

from __future__ import annotations

import sys

from ipyparcache.cli import main

if __name__ == "__main__":
    sys.exit(main())
