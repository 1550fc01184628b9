"""The place where programs look for the errors of joblib's process pool."""

from __future__ import annotations

from ipyparcache.errors import WorkerDied

__all__ = ["BrokenProcessPool", "TerminatedWorkerError"]

BrokenProcessPool = TerminatedWorkerError = WorkerDied
