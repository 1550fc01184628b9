"""Worker processes over each transport and start method."""

import pytest

KINDS = {
    "memfd-forkserver": {},
    "portable-forkserver": {"IPYPARCACHE_TRANSPORT": "portable"},
    "memfd-spawn": {"IPYPARCACHE_START": "spawn"},
    "portable-spawn": {"IPYPARCACHE_TRANSPORT": "portable", "IPYPARCACHE_START": "spawn"},
}


@pytest.fixture(params=KINDS)
def backend(request, monkeypatch):
    """Worker processes over each transport and start method."""
    for name, value in KINDS[request.param].items():
        monkeypatch.setenv(name, value)
    return "processes"
