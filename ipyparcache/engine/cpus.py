"""How many processors this process may use, and how much memory there is."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable


def cpu_count(only_physical_cores: bool = False) -> int:
    """Processors that this process may use, at least 1.

    The least of the machine's count, the process's affinity, the cgroup's quota (rounded up), and
    LOKY_MAX_CPU_COUNT where the environment has it; `only_physical_cores` counts two hardware threads of
    one core once.
    """
    logical = _affinity()
    if only_physical_cores:
        cores = _physical_cores()
        if cores:
            logical = min(logical, cores)
    quota = _cgroup_quota()
    if quota:
        logical = min(logical, quota)
    limit = environment_value(_LIMIT)
    if limit.isdigit() and int(limit) > 0:
        logical = min(logical, int(limit))
    if environment_value(ALONE).strip() == "0":
        return 1
    return max(logical, 1)


def _key(name: str) -> object:
    encode: Callable[[str], object] = getattr(os.environ, "encodekey", str)
    return encode(name)


def environment_value(key: object) -> str:
    """A variable by its encoded name, empty if it is not set: each call asks for some that nobody sets."""
    value = os.environ._data.get(key)  # type: ignore[attr-defined]
    return "" if value is None else str(os.environ.decodevalue(value))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        try:
            return len(os.sched_getaffinity(0))
        except OSError:
            pass  # a sandbox may forbid the call
    return os.cpu_count() or 1


def _text_of(path: str) -> str:
    """Content of a small file; empty if there is none. (`pathlib` would take 5 ms to load.)"""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


@functools.cache
def _cgroup_quota() -> int:
    """CPUs that the cgroup grants, rounded up; 0 if it sets no limit."""
    quota, _, period = _text_of("/sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:
        quota = _text_of("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = _text_of("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return 0
    return max(1, -(-int(quota) // int(period)))


@functools.cache
def _physical_cores() -> int:
    """Cores of the machine; 0 if it cannot be told."""
    if sys.platform != "linux":
        return 0
    folder = "/sys/devices/system/cpu"
    try:
        names = [name for name in os.listdir(folder) if name[:3] == "cpu" and name[3:].isdigit()]
    except OSError:
        return 0
    topologies = [f"{folder}/{name}/topology" for name in names]
    cores = {(_text_of(f"{at}/physical_package_id"), _text_of(f"{at}/core_id")) for at in topologies}
    return len(cores - {("", "")})


@functools.cache
def physical_memory() -> int:
    """Bytes of memory of the machine; 4 GiB where it cannot be told."""
    ask: Callable[[str], int] | None = getattr(os, "sysconf", None)
    if ask is None:
        return 4 << 30
    try:
        return ask("SC_PHYS_PAGES") * ask("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 4 << 30


def inner_threads(workers: int) -> int:
    """Threads that a library may use in each of so many workers, so that together they fill the
    processors.
    """
    return max(1, cpu_count() // max(workers, 1))


_LIMIT, ALONE = _key("LOKY_MAX_CPU_COUNT"), _key("JOBLIB_MULTIPROCESSING")
