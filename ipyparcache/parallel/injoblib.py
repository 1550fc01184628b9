"""Our workers as the default backend of the joblib that is installed."""

from __future__ import annotations

from collections.abc import Callable

from ipyparcache.parallel.dispatch import Options, run_tasks

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any


def register_joblib() -> None:
    """Make our workers the default backend of the joblib that is installed: scikit-learn runs on them."""
    from ipyparcache.engine.backends.joblib import register

    register(_run_batch, _begin_bar)


def _run_batch(batch: Callable[[], Any], inner_threads: int) -> Any:
    options = Options(n_jobs=1, backend="processes", inner_threads=inner_threads)
    for _, outcome in run_tasks(batch, [()], options):
        return outcome.unwrap()
    raise AssertionError("one task has one outcome")


def _begin_bar() -> tuple[Callable[[int], None], Callable[[], None]]:
    from ipyparcache.progress.tracker import Tracker
    from ipyparcache.progress.widget import show

    tracker = Tracker(None, "joblib")
    tracker.start()
    bar = show(tracker, None, "auto", "shown")

    def close() -> None:
        tracker.finish("done")
        bar.close()

    return tracker.done_batch, close
