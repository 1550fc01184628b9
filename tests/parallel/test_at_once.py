"""Calls whose function is known to be short go to one worker in one message: every way out of that."""

import os
import subprocess
import sys

import pytest

from ipyparcache import Parallel, delayed
from ipyparcache.engine.backends import atonce
from ipyparcache.engine.pool import the_pool
from ipyparcache.errors import WorkerDied
from ipyparcache.parallel import dispatch, front, running


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """What is short, and how soon an answer comes, is not for a busy machine to decide."""
    monkeypatch.setattr(dispatch, "AT_ONCE", 10.0)
    monkeypatch.setattr(atonce, "AT_ONCE", 60_000)


@pytest.fixture
def call(monkeypatch):
    """Run a function that stands alone on rows, three times with harmless ones first, so that it is known."""
    answers = []
    real = dispatch.try_at_once

    def noted(*args):
        answers.append(type(real_answer := real(*args)).__name__)
        return real_answer

    monkeypatch.setattr(running, "try_at_once", noted)

    def run(source, rows, harmless=((1,), (2,))):
        space = {"__name__": "__main__"}
        exec(source, space)
        function = space["task"]
        for _ in range(3):
            Parallel(n_jobs=2)(delayed(function)(*row) for row in harmless)
        answers.clear()
        return Parallel(n_jobs=2)(delayed(function)(*row) for row in rows)

    run.answers = answers
    return run


def test_plain_results_come_at_once(call):
    assert call("def task(n): return n * 2", [(3,), (4,)]) == [6, 8]
    assert call.answers == ["Ran"]


def test_annotations_do_not_keep_a_function_from_standing_alone(call):
    assert call("def task(n: int, by: float = 2) -> float: return n * by", [(3,), (4,)]) == [6, 8]
    assert call.answers == ["Ran"]


IMPORTED = """
import os
from ipyparcache import Parallel, delayed
from ipyparcache.engine.backends import atonce
from ipyparcache.parallel import dispatch, front, running

dispatch.AT_ONCE, atonce.AT_ONCE = 10.0, 60_000
answers, real = [], dispatch.try_at_once
running.try_at_once = lambda *args: answers.append(real(*args)) or answers[-1]
for _ in range(4):
    found = Parallel(n_jobs=2)(delayed(os.path.basename)(f"folder/{n}") for n in "ab")
print(found, type(answers[-1]).__name__)
"""


def test_a_function_that_is_imported_goes_by_its_name():
    # in a process of its own: here a local module of another test may have been edited since it was loaded
    ran = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=50)

    assert (ran.stdout, ran.stderr) == ("['a', 'b'] Ran\n", "")


def test_tasks_without_arguments_are_counted(call):
    assert call("def task(): return 5", [()] * 7, harmless=[()]) == [5] * 7
    assert call.answers == ["Ran"]


@pytest.mark.parametrize(
    ("body", "results"),
    [
        ("[n] * 3", [[3] * 3, [4] * 3]),
        ("'x' * (n * 100000)", ["x" * 300000, "x" * 400000]),
        ("bytes(n)", [bytes(3), bytes(4)]),
    ],
)
def test_results_that_are_no_numbers_come_too(call, body, results):
    assert call(f"def task(n): return {body}", [(3,), (4,)]) == results


def test_an_error_is_raised_and_the_next_call_is_well(call):
    source = "def task(n): return 1 // (n - 4)"
    with pytest.raises(ZeroDivisionError):
        call(source, [(3,), (4,)])
    assert call.answers == ["Begun"]

    assert call(source, [(5,), (6,)]) == [1, 0]


def test_what_is_printed_is_seen(call, capfd):
    assert call("def task(n):\n    if n > 2: print('number', n)\n    return n", [(3,), (4,)]) == [3, 4]

    assert capfd.readouterr().out == "number 3\nnumber 4\n"
    assert call.answers == ["Begun"]


def test_a_worker_that_dies_is_named_and_replaced(call):
    source = "def task(n):\n    import os\n    if n == 4: os._exit(3)\n    return n"
    with pytest.raises(WorkerDied) as caught:
        call(source, [(3,), (4,)])
    assert (caught.value.index, caught.value.exit_code) == (1, 3)

    assert call(source, [(5,), (6,)]) == [5, 6]


def test_a_worker_that_died_while_idle_costs_nothing(call):
    source = "def task(n): return n"
    assert call(source, [(3,)]) == [3]
    for pid in the_pool().pids():
        os.kill(pid, 9)

    assert call(source, [(3,), (4,)]) == [3, 4]


def test_tasks_that_wait_for_each_other_run_side_by_side(call, tmp_path, monkeypatch):
    monkeypatch.setattr(atonce, "AT_ONCE", 5)
    source = """def task(path, other):
    import os, time
    if path:
        open(path, "w").close()
        until = time.monotonic() + 20
        while not os.path.exists(other) and time.monotonic() < until:
            time.sleep(0.001)
        return os.path.exists(other)
"""
    one, two = str(tmp_path / "one"), str(tmp_path / "two")

    assert call(source, [(one, two), (two, one)], harmless=[("", "")] * 2) == [True, True]
    assert call.answers == ["Begun"]


def test_more_tasks_than_one_batch_holds_are_drawn_on(call):
    numbers = range(3 * dispatch.LARGEST)

    assert call("def task(n): return n + 1", [(n,) for n in numbers]) == [n + 1 for n in numbers]
    assert call.answers == ["Batch"]


def test_arguments_that_are_not_plain_travel_as_always(call):
    assert call("def task(n): return n", [([3],), ([4],)]) == [[3], [4]]
    assert call("def task(n): return n", [(3,), ([4],)]) == [3, [4]]


def test_functions_may_differ(call):
    def other(n):
        return -n

    space = {"__name__": "__main__"}
    exec("def task(n): return n", space)
    for _ in range(3):
        Parallel(n_jobs=2)(delayed(space["task"])(n) for n in range(2))

    assert Parallel(n_jobs=2)([delayed(space["task"])(1), delayed(other)(2)]) == [1, -2]


def test_a_changed_function_is_seen():
    space = {"__name__": "__main__"}
    exec("def task(n, by=2): return n * by", space)
    task = space["task"]

    def run():
        return Parallel(n_jobs=2)(delayed(task)(n) for n in (1, 2))

    assert [run() for _ in range(3)] == [[2, 4]] * 3
    task.__defaults__ = (3,)
    assert run() == [3, 6]
    exec("def task(n, by=2): return n - by + factor", space)
    task.__code__ = space["task"].__code__
    with pytest.raises(NameError):
        run()
    space["factor"] = 10  # it does not stand alone any more
    assert run() == [8, 9]
    space["factor"] = 20
    assert run() == [18, 19]
    del space["factor"]
    with pytest.raises(NameError):
        run()


def test_changed_surroundings_are_seen(monkeypatch, tmp_path):
    space = {"__name__": "__main__"}
    exec("def task(n):\n import os\n return os.environ.get('SEEN_AT_ONCE'), os.getcwd()", space)

    def run():
        return Parallel(n_jobs=2)(delayed(space["task"])(n) for n in (1,))[0]

    before = [run() for _ in range(3)]
    monkeypatch.setenv("SEEN_AT_ONCE", "yes")
    monkeypatch.chdir(tmp_path)

    assert before == [(None, before[0][1])] * 3
    assert run() == ("yes", str(tmp_path))


def test_what_a_task_does_to_its_surroundings_does_not_stay(call):
    source = """def task(n):
    import os
    seen = os.environ.get("LEFT_BEHIND"), os.getcwd()
    if n:
        os.environ["LEFT_BEHIND"] = "1"
        os.chdir("/")
    return str(seen)
"""
    clean = str((None, os.getcwd()))

    assert call(source, [(0,)], harmless=[(1,)]) == [clean]


def test_a_bar_comes_once_a_call_has_turned_out_to_be_long(monkeypatch):
    begun = []
    monkeypatch.setattr(front.Parallel, "_wants_bar", lambda self: True)
    real = front.Parallel._begin_bar
    monkeypatch.setattr(front.Parallel, "_begin_bar", lambda self: begun.append(self) or real(self))

    monkeypatch.setattr(front, "BAR_AFTER", 3600)
    Parallel(n_jobs=2)(delayed(abs)(n) for n in range(2))
    assert begun == []

    monkeypatch.setattr(front, "BAR_AFTER", 0)
    Parallel(n_jobs=2)(delayed(abs)(n) for n in range(2))
    assert len(begun) == 1
