"""The place where programs look for the pool whose workers get large arrays as files."""

from __future__ import annotations

from typing import Any

from ipyparcache.externals.loky import ReusableExecutor, get_reusable_executor

__all__ = ["get_memmapping_executor"]


def get_memmapping_executor(n_jobs: int, **options: Any) -> ReusableExecutor:
    """The workers of this process as an executor, as `get_reusable_executor` gives them.

    Arrays reach them as they do those of `Parallel`: none of the options is needed.
    """
    return get_reusable_executor(n_jobs, **options)
