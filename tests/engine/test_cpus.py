import os

import pytest

from ipyparcache.engine import cpus
from ipyparcache.engine.cpus import cpu_count, inner_threads


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """A process that may use eight processors, and an environment that says nothing of it."""
    for name in ("LOKY_MAX_CPU_COUNT", "JOBLIB_MULTIPROCESSING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    cpus._cgroup_quota.cache_clear()
    yield
    cpus._cgroup_quota.cache_clear()


@pytest.fixture
def files(monkeypatch):
    """Files of the system, by the end of their path."""
    texts: dict[str, str] = {}

    def text_of(path):
        return next((text for end, text in texts.items() if path.endswith(end)), "")

    monkeypatch.setattr(cpus, "_text_of", text_of)
    return texts


def test_without_limits_the_affinity_counts(files):
    assert cpu_count() == 8


@pytest.mark.parametrize(("quota", "count"), [("250000 100000", 3), ("max 100000", 8), ("50000 100000", 1)])
def test_a_quota_of_the_cgroup_bounds_the_count(files, quota, count):
    files["cpu.max"] = quota

    assert cpu_count() == count


def test_the_older_cgroup_files_count_too(files):
    files["cfs_quota_us"], files["cfs_period_us"] = "400000", "100000"

    assert cpu_count() == 4


def test_the_environment_bounds_the_count(files, monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "5")
    assert cpu_count() == 5

    monkeypatch.setenv("JOBLIB_MULTIPROCESSING", "0")
    assert cpu_count() == 1


def test_two_threads_of_a_core_are_one_physical_core(files, monkeypatch):
    monkeypatch.setattr(cpus, "_physical_cores", lambda: 4)

    assert cpu_count(only_physical_cores=True) == 4
    assert cpu_count() == 8


def test_inner_threads_fill_the_processors(files):
    assert [inner_threads(workers) for workers in (1, 2, 3, 8, 100)] == [8, 4, 2, 1, 1]
