"""The cloudpickle that is installed."""

from __future__ import annotations

from cloudpickle import *  # noqa: F403
