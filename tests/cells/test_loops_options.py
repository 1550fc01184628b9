from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings

import pandas as pd
import pytest

from ipyparcache import magics, shutdown_workers
from ipyparcache.cells import looprun
from ipyparcache.errors import (
    BackgroundCancelled,
    BackgroundConflict,
    BackgroundRuns,
    IterationError,
    TaskTimeout,
    WorkerDied,
)
from ipyparcache.progress.tracker import Tracker
from tests.cells.sessions import describe, new_namespace, parallel, serial
from tests.conftest import ended


def test_an_error_names_its_iteration_and_its_element():
    namespace = new_namespace(
        "def f(x):\n    if x == 'b.csv':\n        raise ValueError('bad file')\nout = []"
    )

    _, error, _ = parallel(
        namespace, "for n, x in enumerate(['a.csv', 'b.csv', 'c.csv']):\n    out.append(f(x))"
    )

    assert type(error) is ValueError
    assert error.__notes__ == ["in iteration 1 (n = 1, x = 'b.csv')"]


def test_the_traceback_of_an_iteration_shows_the_cells_own_lines():
    namespace = new_namespace("")

    _, error, _ = parallel(namespace, "for i in range(3):\n    j = i + 1\n    k = 1 / (i - 2)")

    assert error is not None
    lines = []
    entry = error.__traceback__
    while entry is not None:
        lines.append((entry.tb_frame.f_code.co_filename, entry.tb_lineno))
        entry = entry.tb_next
    assert ("<cell>", 3) in lines


def test_of_several_failing_iterations_the_first_in_order_counts():
    setup = "import time\nout = []"
    cell = (
        "for i in range(6):\n    time.sleep(0.1 * (i == 1))\n    out.append(i)\n"
        "    if i in (1, 2, 3):\n        raise KeyError(i)"
    )
    plain, tested = new_namespace(setup), new_namespace(setup)
    serial(plain, cell)

    _, error, _ = parallel(tested, cell)

    assert isinstance(error, KeyError)
    assert error.args == (1,)
    assert describe(tested) == describe(plain)


# In the namespace of a test: the worker that comes to iteration 2 has sent what iteration 1 left.
UNTIL_2_IS_BEGUN = """
import os, time
def wait_in_0(i):
    open(os.path.join(begun, str(i)), "w").close()
    until = time.monotonic() + 20
    while i == 0 and not os.path.exists(os.path.join(begun, "2")) and time.monotonic() < until:
        time.sleep(0.001)
    return i
out = []
"""


def test_results_behind_an_error_are_kept_as_partial(tmp_path):
    namespace = new_namespace(UNTIL_2_IS_BEGUN)
    namespace["begun"] = str(tmp_path)
    cell = "for i in range(4):\n    out.append(wait_in_0(i))\n    1 / i"

    _, error, report = parallel(namespace, cell)

    assert isinstance(error, ZeroDivisionError)
    assert namespace["out"] == [0]
    left = report.loops[0].partial[1]
    assert str(left) == "line 1, iteration 1: i = 1; out.append(1)"
    assert (left.variables, left.effects) == ({"i": 1}, (("out.append(<0>)", (1,)),))


def test_what_was_merged_before_a_worker_died_is_not_partial():
    namespace = new_namespace("import os, signal\nout = []")
    cell = (
        "for i in range(8):\n    if i == 4:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    v = [i]\n    out.append(v)"
    )

    _, error, report = parallel(namespace, cell, jobs=1, backend="processes")

    assert isinstance(error, WorkerDied)
    assert str(error).startswith("the worker of iteration 4 was killed by SIGKILL while it ran.")
    assert namespace["out"] == [[0], [1], [2], [3]]
    assert not report.loops[0].partial.keys() & set(range(5))


def test_elements_of_a_comprehension_behind_an_error_are_partial(tmp_path):
    namespace = new_namespace(UNTIL_2_IS_BEGUN)
    namespace["begun"] = str(tmp_path)

    _, error, report = parallel(namespace, "out = [1 / wait_in_0(i) for i in range(3)]")

    assert isinstance(error, ZeroDivisionError)
    assert namespace["out"] == []
    assert str(report.loops[0].partial[1]).endswith("iteration 1: 1.0")


def test_collected_errors_stand_in_their_slots():
    namespace = new_namespace("def f(x):\n    return 10 // (x - 2)")

    _, error, report = parallel(namespace, "out = [f(x) for x in range(4)]", on_error="collect")

    assert error is None
    assert namespace["out"][:2] == [-5, -10]
    assert isinstance(namespace["out"][2], IterationError)
    assert namespace["out"][3] == 10
    assert [e.iteration for e in report.loops[0].errors] == [2]


@pytest.mark.parametrize("backend", ["processes", "threads"])
def test_an_error_names_the_element_of_a_comprehension(backend):
    namespace = new_namespace("def f(a, b):\n    return a // (b - 2)")
    cell = "out = [f(a, b) for a, b in [(1, 1), (3, 2)]]"

    _, error, _ = parallel(namespace, cell, backend=backend)
    _, _, report = parallel(namespace, cell, backend=backend, on_error="collect")

    assert error.__notes__ == ["in iteration 1 (a, b = (3, 2))"]
    assert str(report.loops[0].errors[0]).startswith("iteration 1 (a, b = (3, 2)) failed: ZeroDivisionError")


def test_collected_errors_of_a_loop_keep_its_list_aligned():
    namespace = new_namespace("out, table = [], {}\ndef f(x):\n    return 10 // (x - 2)")

    _, error, _ = parallel(
        namespace, "for x in range(4):\n    v = f(x)\n    out.append(v)\n    table[x] = v", on_error="collect"
    )

    assert error is None
    assert [type(v).__name__ for v in namespace["out"]] == ["int", "int", "IterationError", "int"]
    assert isinstance(namespace["table"][2], IterationError)


def test_an_iteration_over_its_time_is_ended_alone():
    namespace = new_namespace("import time\nout = []")
    cell = "for i in range(4):\n    time.sleep(30 * (i == 1))\n    out.append(i)"

    _, error, _ = parallel(namespace, cell, timeout=0.5)

    assert isinstance(error, TaskTimeout)
    assert namespace["out"] == [0]


def test_a_retried_iteration_leaves_the_traces_of_its_last_attempt_only(tmp_path):
    namespace = new_namespace("import os\nout, total = [], 0")
    namespace["folder"] = str(tmp_path)
    cell = (
        "for x in range(4):\n    print('try', x)\n    total += x\n"
        "    n = len(os.listdir(folder)) if x == 2 else 2\n"
        "    if x == 2 and n < 2:\n"
        "        open(os.path.join(folder, str(n)), 'w').close()\n"
        "        raise OSError('again')\n"
        "    out.append(x)"
    )

    host, error, _ = parallel(namespace, cell, retries=3)

    assert error is None
    assert namespace["out"] == [0, 1, 2, 3]
    assert namespace["total"] == 6
    assert host.stdout == "try 0\ntry 1\ntry 2\ntry 3\n"


def test_a_dead_worker_is_named_and_what_finished_before_is_kept():
    namespace = new_namespace("import os, signal, time\nout = []")
    cell = (
        "for i in range(6):\n    time.sleep(0.01)\n    if i == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n    out.append(i)"
    )

    _, error, _ = parallel(namespace, cell)

    assert isinstance(error, WorkerDied)
    assert "SIGKILL" in str(error)
    assert error.__notes__[0].startswith("in iteration 3")
    assert namespace["out"] == [0, 1, 2]


@pytest.mark.parametrize("dies_at", [2, 5, 137])
def test_short_iterations_that_finished_before_a_death_are_kept_to_the_last(dies_at):
    namespace = new_namespace("import os, signal\nout, total, words = [], 0.5, []")
    cell = (
        f"for i in range(400):\n    if i == {dies_at}:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    tmp = i * 2\n    out.append(i)\n    total += i * 0.1\n    words.append(str(i))"
    )

    _, error, _ = parallel(namespace, cell)

    assert isinstance(error, WorkerDied)
    assert f"in iteration {dies_at}" in error.__notes__
    assert namespace["out"] == list(range(dies_at))
    assert namespace["words"] == [str(i) for i in range(dies_at)]
    assert (namespace["tmp"], namespace["i"]) == (dies_at * 2 - 2, dies_at - 1)


def test_seeded_draws_are_the_same_for_any_number_of_workers_and_chunk():
    setup = "import random\nimport numpy as np\nout = []"
    cell = (
        "for i in range(9):\n"
        "    out.append((random.random(), float(np.random.rand()), float(np.random.default_rng().random())))"
    )
    found = []

    for options in ({"jobs": 1}, {"jobs": 2}, {"jobs": 2, "chunk": 4}):
        namespace = new_namespace(setup)
        _, error, _ = parallel(namespace, cell, seed=7, **options)
        assert error is None
        found.append(namespace["out"])

    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 9


def test_threads_with_a_seed_give_the_numbers_of_processes():
    setup = "import random\nout = []"
    cell = "for i in range(6):\n    out.append(random.random())"
    one, other = new_namespace(setup), new_namespace(setup)

    parallel(one, cell, seed=3)
    parallel(other, cell, seed=3, backend="threads")

    assert one["out"] == other["out"]


def test_a_warning_is_shown_once_for_its_place():
    namespace = new_namespace("import warnings\nout = []")
    cell = "for i in range(6):\n    warnings.warn('odd')\n    out.append(i)"

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        _, error, _ = parallel(namespace, cell)

    assert error is None
    assert [(str(w.message), w.filename, w.lineno) for w in caught] == [("odd", "<cell>", 2)]


def test_log_records_of_iterations_reach_the_handlers_here(caplog):
    namespace = new_namespace("import logging\nlog = logging.getLogger('loops-test')\nout = []")

    with caplog.at_level("INFO", logger="loops-test"):
        _, error, _ = parallel(namespace, "for i in range(3):\n    log.info('at %d', i)\n    out.append(i)")

    assert error is None
    assert [r.getMessage() for r in caplog.records if r.name == "loops-test"] == ["at 0", "at 1", "at 2"]


def test_display_shows_the_objects_here_in_order():
    namespace = new_namespace("class Shown:\n    def __init__(self, i):\n        self.i = i")

    host, error, _ = parallel(namespace, "for i in range(4):\n    display(Shown(i))")

    assert error is None
    assert [objects[0].i for objects in host.shown] == [0, 1, 2, 3]
    assert all(isinstance(objects[0], namespace["Shown"]) for objects in host.shown)


def test_an_interrupt_keeps_what_is_finished_and_ends_within_a_second():
    namespace = new_namespace("import time\nout = []")
    cell = "for i in range(50):\n    time.sleep(0.02 if i < 4 else 20)\n    out.append(i)"
    pressed: list[float] = []

    def press() -> None:
        while len(namespace["out"]) < 4:
            time.sleep(0.01)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    user = threading.Thread(target=press)
    user.start()
    with pytest.raises(KeyboardInterrupt):
        parallel(namespace, cell)
    took = time.monotonic() - pressed[0]
    user.join()
    _, error, _ = parallel(new_namespace("out = []"), "for i in range(4):\n    out.append(i)")

    assert namespace["out"] == [0, 1, 2, 3]
    assert took < 2.5  # a second, on a machine with nothing else to do
    assert error is None


def test_a_background_loop_enters_the_namespace_with_its_result():
    namespace = new_namespace("out = []")

    _, error, _ = parallel(
        namespace, "for i in range(5):\n    out.append(i)\ntotal = sum(out)", background="run"
    )
    handle = namespace.pop("run")
    before = list(namespace["out"])
    found = handle.result(30)

    assert error is None
    assert before == []
    assert found == {"out": [0, 1, 2, 3, 4], "i": 4}
    assert namespace["total"] == 10


def test_a_background_loop_reports_a_variable_that_was_rebound():
    namespace = new_namespace("out = []")

    parallel(namespace, "for i in range(5):\n    out.append(i)", background="run")
    namespace["out"] = ["mine"]

    with pytest.raises(BackgroundConflict, match="`out` was rebound"):
        namespace.pop("run").result(30)
    assert namespace["out"] == ["mine"]


def test_a_name_whose_background_loop_runs_is_refused_before_anything_has_run():
    namespace = new_namespace("import time\nout = []")
    cell = "out = [9]\nfor i in range(2):\n    time.sleep(60)\n    out.append(i)"

    parallel(namespace, cell, background="run")
    handle, out = namespace["run"], namespace["out"]
    _, error, _ = parallel(namespace, cell, background="run")
    same = namespace.pop("run") is handle and namespace["out"] is out
    handle.cancel()

    assert isinstance(error, BackgroundRuns)
    assert "run.cancel()" in str(error)
    assert same
    with pytest.raises(BackgroundCancelled):
        handle.result(30)


def test_results_of_a_background_loop_enter_before_its_name_goes_to_another():
    namespace = new_namespace("out = []")
    cell = "for i in range(3):\n    out.append(i)"

    parallel(namespace, cell, background="run")
    assert namespace["run"].wait(30)
    parallel(namespace, cell, background="run")
    namespace.pop("run").result(30)

    assert namespace["out"] == [0, 1, 2, 0, 1, 2]


def test_the_bar_of_a_background_loop_that_raised_says_so():
    namespace = new_namespace("out = []")

    parallel(namespace, "for i in range(3):\n    out.append(1 / i)", background="run")
    handle = namespace.pop("run")

    with pytest.raises(ZeroDivisionError):
        handle.result(30)
    assert handle.progress.status == "failed"


def test_results_of_a_background_loop_are_there_for_the_next_cell(shell, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    magics.load_ipython_extension(shell)
    try:
        shell.run_cell("%%parallel --background bg\nout = []\nfor i in range(4):\n    out.append(i)")
        assert shell.user_ns["bg"].wait(30)
        shell.run_cell("seen = list(out)")
    finally:
        magics.unload_ipython_extension(shell)

    assert shell.user_ns["seen"] == [0, 1, 2, 3]


def test_the_error_of_a_background_loop_is_told_with_its_iteration(shell, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    magics.load_ipython_extension(shell)
    try:
        shell.run_cell("%%parallel --background bg\nout = []\nfor i in [2, 0]:\n    out.append(1 / i)")
        assert shell.user_ns["bg"].wait(30)
        shell.run_cell("1;")
    finally:
        magics.unload_ipython_extension(shell)

    told = "bg ended with ZeroDivisionError: division by zero, in iteration 1 (i = 0)"
    assert told in capsys.readouterr().out


@pytest.mark.kernel
def test_what_is_ended_with_a_loop_has_not_failed(kernel):
    kernel.run("%load_ext ipyparcache\nimport threading, time, signal, os")
    kernel.run("threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()")
    ran = kernel.run("%%parallel -j 2\nfor i in range(4):\n    time.sleep(60)")

    assert ran.error.startswith("KeyboardInterrupt")
    assert "interrupted · 0/4" in ran.notes()[0]
    assert "failed" not in ran.notes()[0]


def test_a_cancelled_background_loop_keeps_its_first_iterations():
    namespace = new_namespace("import time\nout = []")
    cell = "for i in range(100):\n    time.sleep(60 * (i > 3))\n    out.append(i)"

    parallel(namespace, cell, background="run")
    handle = namespace.pop("run")
    assert ended(lambda: handle.progress.done == 4)
    handle.cancel()

    with pytest.raises(BackgroundCancelled):
        handle.result(30)
    assert namespace["out"] == [0, 1, 2, 3]


def test_kept_iterations_are_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYPARCACHE_DIR", str(tmp_path / "store"))
    setup = "import os\nclass M:\n    def __init__(self, x):\n        self.x = x\nout, total = [], 0"
    cell = (
        "for x in range(N):\n    print('at', x)\n"
        "    with open(os.path.join(folder, f'{x}-{os.getpid()}-{len(os.listdir(folder))}'), 'w'):\n"
        "        pass\n    out.append(M(x))\n    total += x"
    )
    counts, namespaces, texts = [], [], []
    for n in (3, 5):
        namespace = new_namespace(setup)
        namespace |= {"folder": str(tmp_path / "runs"), "N": n}
        (tmp_path / "runs").mkdir(exist_ok=True)
        # Listings and files are inputs: what is written lies apart from what the loop depends on.
        host, error, report = parallel(namespace, cell.replace("len(os.listdir(folder))", "0"), cached=True)
        assert error is None
        counts.append(report.loops[0].restored)
        namespaces.append(namespace)
        texts.append(host.stdout)

    assert counts == [0, 3]
    assert [m.x for m in namespaces[1]["out"]] == [0, 1, 2, 3, 4]
    assert all(isinstance(m, namespaces[1]["M"]) for m in namespaces[1]["out"])
    assert texts[1] == "".join(f"at {x}\n" for x in range(5))
    gc.collect()


def test_a_kept_iteration_that_counts_is_found_at_its_own_place_only(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYPARCACHE_DIR", str(tmp_path / "store"))
    namespaces = []
    for words in (["a", "b"], ["b", "a", "b"]):
        namespace = new_namespace("n, out = 0, []")
        namespace["words"] = words
        _, error, _ = parallel(namespace, "for w in words:\n    out.append((w, n))\n    n += 1", cached=True)
        assert error is None
        namespaces.append(namespace)

    assert namespaces[1]["out"] == [("b", 0), ("a", 1), ("b", 2)]
    assert namespaces[1]["n"] == 3


@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 3}, {"chunk": 20}, {"jobs": 1}], ids=str)
def test_nothing_is_shown_of_iterations_behind_one_whose_write_fails(options):
    setup = "import warnings\nout = [0] * 7"
    cell = (
        "for i in range(12):\n    if i % 2:\n        print('at', i)\n    out[i] = i\n"
        "    x = 1 / (9 - i)\n    print('behind', i)"
    )
    plain, tested = new_namespace(setup), new_namespace(setup)
    text, error = serial(plain, cell)

    host, raised, _ = parallel(tested, cell, **options)

    assert type(raised) is type(error) is IndexError
    assert host.stdout == text
    assert describe(tested) == describe(plain)


def test_iterations_that_are_not_kept_are_told_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYPARCACHE_DIR", str(tmp_path / "store"))
    namespace = new_namespace("rows = [[0], [1], [2]]")

    host, error, report = parallel(namespace, "for row in rows:\n    row.append(1)", cached=True)

    assert error is None
    assert report.loops[0].restored == 0
    assert any("3 iterations are not kept" in note and "element" in note for note in host.notes)


def test_threads_leave_what_the_serial_loop_leaves():
    setup = (
        "class P:\n    def __init__(self, v):\n        self.v = v\n"
        "out, total, ps = [], 0.1, [P(i) for i in range(8)]"
    )
    cell = (
        "for p in ps:\n    print('p', p.v)\n    p.w = p.v * 2\n    tmp = p.w\n"
        "    out.append((p, tmp))\n    total += p.v * 0.1"
    )
    plain, tested = new_namespace(setup), new_namespace(setup)
    text, _ = serial(plain, cell)

    host, error, _ = parallel(tested, cell, backend="threads")

    assert error is None
    assert describe(tested) == describe(plain)
    assert host.stdout == text


def test_a_worker_of_a_loop_loads_no_library_of_the_kernel(monkeypatch):
    shutdown_workers()
    monkeypatch.setattr(pd.DataFrame, "added", lambda table: None, raising=False)
    namespace = new_namespace("import sys\nout = []")

    _, error, _ = parallel(
        namespace,
        "for i in range(2):\n"
        "    out.append([m for m in ('IPython', 'ipywidgets', 'pandas') if m in sys.modules])",
    )

    assert error is None
    assert namespace["out"] == [[], []]


def test_numbers_of_a_type_that_the_notebook_has_arrays_of_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYPARCACHE_DIR", str(tmp_path / "store"))
    cell = "for i in range({}):\n    out.append((X[i:] * 2).sum())"
    first, again = (new_namespace("import numpy as np\nX = np.arange(6.0)\nout = []") for _ in range(2))

    host, _, _ = parallel(first, cell.format(3), cached=True)
    _, _, report = parallel(again, cell.format(4), cached=True)

    assert not [note for note in host.notes if "not kept" in note]
    assert report.loops[0].restored == 3
    assert again["out"] == [30.0, 30.0, 28.0, 24.0]
    assert {type(value).__name__ for value in again["out"]} == {"float64"}


@pytest.mark.parametrize("backend", ["processes", "threads"])
def test_the_bar_counts_the_iterations_that_failed(monkeypatch, backend):
    kept = []

    def made(*arguments):
        kept.append(Tracker(*arguments))
        return kept[-1]

    monkeypatch.setattr(looprun, "Tracker", made)
    cell = "out = []\nfor i in range(6):\n    out.append(1 / (i % 3))"
    parallel(new_namespace(""), cell, on_error="collect", backend=backend)

    snapshot = kept[0].snapshot()
    assert (snapshot.done, snapshot.failed) == (4, 2)


@pytest.mark.kernel
def test_a_handle_is_a_live_bar_below_the_cell_that_shows_it(kernel, tmp_path):
    kernel.run("%load_ext ipyparcache\nimport os, time")
    wait = "    while not os.path.exists('go'):\n        time.sleep(0.01)\n"
    kernel.run(f"%%parallel -j 2 --background bg\nout = []\nfor i in range(4):\n{wait}    out.append(i)")
    client = kernel.client

    asked = client.execute("bg")  # as a page asks, which can be asked for input
    live = kernel_message(client, "display_data", lambda m: m["parent_header"]["msg_id"] == asked)
    (tmp_path / "go").touch()
    shown = live["content"]["transient"]["display_id"]
    ended = kernel_message(
        client, "update_display_data", lambda m: m["content"]["transient"]["display_id"] == shown
    )

    assert "application/vnd.jupyter.widget-view+json" in live["content"]["data"]
    assert ended["content"]["data"]["text/plain"].startswith("✓ bg")
    over = kernel.run("bg.wait()\nbg")
    assert over.outputs[0]["data"]["text/plain"].startswith("✓ bg")
    assert kernel.run("print(out)").stdout == "[0, 1, 2, 3]\n"


def kernel_message(client, kind, fits):
    """The next message of a kind that fits."""
    while True:
        message = client.get_iopub_msg(timeout=60)
        if message["msg_type"] == kind and fits(message):
            return message
