"""How many iterations are sent together: played with a clock of its own, so that nothing is timed."""

from __future__ import annotations

import heapq
from collections import deque

import pytest

from ipyparcache.cells.elements import Sizes
from ipyparcache.cells.plans import LoopOptions

COST = 0.001  # seconds that a chunk costs a worker beyond its iterations
AHEAD = 2  # chunks that a worker holds


def played(seconds: list[float], jobs: int) -> tuple[float, int]:
    """Time of a loop with iterations of these lengths, over what its workers could do at best; its chunks."""
    now = 0.0
    sizes = Sizes(LoopOptions(), jobs, is_cached=False, clock=lambda: now)
    sent = chunks = 0
    waiting: list[deque[tuple[int, int]]] = [deque() for _ in range(jobs)]
    running: list[tuple[float, int, int, float]] = []

    def draw(worker: int) -> None:
        nonlocal sent, chunks
        if sent < len(seconds):
            size = min(sizes.following(sent, len(seconds)), len(seconds) - sent)
            waiting[worker].append((sent, size))
            sent, chunks = sent + size, chunks + 1

    def begin(worker: int) -> None:
        others = [] if waiting[worker] else [queue for queue in waiting if queue]
        queue = others[0] if others else waiting[worker]
        if queue:
            first, size = queue.popleft()
            length = sum(seconds[first : first + size])
            heapq.heappush(running, (now + length + COST, worker, size, length))

    for _ in range(AHEAD):
        for worker in range(jobs):
            draw(worker)
    for worker in range(jobs):
        begin(worker)
    while running:
        now, worker, size, length = heapq.heappop(running)
        sizes.measured(size, length, 0)
        draw(worker)
        begin(worker)
    return now / (sum(seconds) / jobs), chunks


@pytest.mark.parametrize("jobs", [2, 4, 8, 16])
def test_iterations_that_grow_longer_are_not_given_away_as_the_first_were_measured(jobs):
    assert played([0.00005 * number for number in range(400)], jobs)[0] < 1.1


@pytest.mark.parametrize(
    ("seconds", "jobs", "most"),
    [
        ([0.005] * 400, 2, 1.02),
        ([0.005] * 400, 16, 1.1),
        ([0.00005 * (400 - number) for number in range(400)], 8, 1.07),
        ([0.0002] * 20_000, 2, 1.02),
        ([0.0002] * 20_000, 16, 1.07),
        ([0.001] * 1000 + [0.02] * 50, 2, 1.03),
        ([0.1] * 50, 2, 1.01),
    ],
)
def test_workers_end_together(seconds, jobs, most):
    assert played(seconds, jobs)[0] < most


def test_chunks_are_few_where_iterations_are_alike():
    assert played([0.005] * 400, 2)[1] <= 28
    assert played([1e-6] * 20_000, 2)[1] <= 30
