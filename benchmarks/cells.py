"""`python -m benchmarks.cells [--rounds N] [WORDS ...]`: a cell in a real kernel, from request to idle.

`%%cached` against the plain cell, against a magic of ten lines that pickles the variables that it is told
(fast, and stale as soon as anything changes), and against `joblib.Memory` around the same work in a function.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager

from benchmarks.rounds import OURS, Contest, asked, hold

SETUP = '''
import os, pickle, joblib, numpy as np, pandas as pd
from IPython import get_ipython
from IPython.core.magic import register_cell_magic

@register_cell_magic
def kept(line, body):
    """Load the variables named on the line from a file, or run the cell and pickle them."""
    path, space = line.replace(" ", "-") + ".pkl", get_ipython().user_ns
    if os.path.exists(path):
        with open(path, "rb") as file:
            space.update(pickle.load(file))
    else:
        get_ipython().run_cell(body)
        with open(path, "wb") as file:
            pickle.dump({name: space[name] for name in line.split()}, file, 5)

memory = joblib.Memory("joblib", verbose=0)
mapped = joblib.Memory("joblib", verbose=0, mmap_mode="c")

def remove(*paths):
    for path in paths:
        if os.path.exists(path):
            os.remove(path)

rng = np.random.default_rng(0)
table = pd.DataFrame({"key": rng.integers(0, 50_000, 1_000_000), "value": rng.random(1_000_000)})
base = rng.random(50_000_000)
lists = [[n, str(n)] for n in range(200_000)]

def grouped(table):
    return table.groupby("key").value.agg(["mean", "std", "median", "max"])

def roots(base):
    return np.sqrt(base)
'''

TRIVIAL, GROUPED, ROOTS = "x = 1 + 1", "g = grouped(table)", "r = roots(base)"


class Cells:
    """A kernel in a folder of its own; a cell is timed from the request to the kernel's being idle again."""

    def __init__(self, folder: Path):
        environment = os.environ | {
            "IPYPARCACHE_DIR": str(folder / "store"),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        self._manager = KernelManager()
        self._manager.start_kernel(cwd=str(folder), env=environment)
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)

    def run(self, source: str) -> float:
        """Run a cell; seconds.

        Raises
        ------
        RuntimeError
            If the cell raised.
        """
        began = time.perf_counter()
        reply = self._client.execute_interactive(source, timeout=300, output_hook=lambda message: None)
        taken = time.perf_counter() - began
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"{reply['content'].get('evalue')}, in a cell that begins {source[:40]!r}")
        return taken

    def first_output(self, source: str) -> float:
        """Seconds from the request of a cell to the first thing that it shows."""
        shown: list[float] = []

        def note(message: dict[str, Any]) -> None:
            if message["header"]["msg_type"] in ("stream", "display_data"):
                shown.append(time.perf_counter())

        began = time.perf_counter()
        self._client.execute_interactive(source, timeout=300, output_hook=note)
        return shown[0] - began

    def contestant(self, source: str, before: str = "") -> Callable[[], float]:
        """The cell as a contestant; what is run before it does not count."""

        def run() -> float:
            if before:
                self.run(before)
            return self.run(source)

        return run

    def close(self) -> None:
        """End the kernel."""
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()


@contextmanager
def contests() -> Iterator[list[Contest]]:
    """All of them, with their two kernels for as long as the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        kernels: list[Cells] = []
        try:
            for name in ("marked", "automatic"):
                place = Path(folder, name)
                place.mkdir()
                kernels.append(Cells(place))
            marked, automatic = kernels
            marked.run(SETUP)
            marked.run("%load_ext ipyparcache")
            automatic.run("%load_ext ipyparcache")
            automatic.run("%parcache auto on")
            yield _table(marked, automatic)
        finally:
            for kernel in kernels:
                kernel.close()


def _table(marked: Cells, automatic: Cells) -> list[Contest]:
    cell = marked.contestant

    def again(source: str, name: str, argument: str) -> dict[str, Any]:
        function = source.split("= ")[1].partition("(")[0]
        return {
            OURS: cell(f"%%cached\n{source}", f"{name} = None"),
            "pickle": cell(f"%%kept {name}\n{source}", f"{name} = None"),
            "joblib": cell(f"{name} = memory.cache({function})({argument})", f"{name} = None"),
            "joblib mapped": cell(f"{name} = mapped.cache({function})({argument})", f"{name} = None"),
            "plain": cell(source, f"{name} = None"),
        }

    def first(source: str, name: str, argument: str) -> dict[str, Any]:
        function = source.split("= ")[1].partition("(")[0]
        return {
            OURS: cell(f"%%cached\n{source}", "%parcache clear --all"),
            "pickle": cell(f"%%kept {name}\n{source}", f"remove('{name}.pkl')"),
            "joblib": cell(f"{name} = memory.cache({function})({argument})", "memory.clear(warn=False)"),
            "plain": cell(source),
        }

    return [
        Contest(
            "trivial cell, a hit",
            {
                OURS: cell(f"%%cached\n{TRIVIAL}"),
                "pickle": cell(f"%%kept x\n{TRIVIAL}"),
                "plain": cell(TRIVIAL),
            },
        ),
        Contest(
            "trivial cell in automatic mode",
            {OURS: automatic.contestant(TRIVIAL), "plain": cell(TRIVIAL)},
        ),
        Contest(
            "200 000 lists read by two cells, the second of two hits",
            {
                OURS: cell("%%cached\nk = len(lists)", "%%cached\nm = max(map(len, lists))"),
                "a cell ran between": cell("%%cached\nk = len(lists)", "pass"),
                "plain": cell("k = len(lists)"),
            },
        ),
        Contest("group a table of 1e6 rows, again", again(GROUPED, "g", "table")),
        Contest("group a table of 1e6 rows, first run", first(GROUPED, "g", "table")),
        Contest("an array of 400 MB from another, again", again(ROOTS, "r", "base")),
        Contest("an array of 400 MB from another, first run", first(ROOTS, "r", "base")),
    ]


def main() -> None:
    """Measure and print."""
    options = asked("benchmarks.cells", rounds=5)
    with contests() as table:
        hold([c for c in table if options.wants(c.name)], options.rounds)


if __name__ == "__main__":
    main()
