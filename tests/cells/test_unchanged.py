"""Objects that nobody can have changed between two hits are not digested again; all others are."""

import asyncio
import gc
import signal
import threading

import pytest

from ipyparcache.cells import unchanged
from ipyparcache.digest import objects
from ipyparcache.digest.objects import Traversal

pytestmark = pytest.mark.usefixtures("extension")

SETUP = "%%cached --quiet\ndata = [[n] for n in range(40)]\nother = {'a': [1]}"
READ = "%%cached --quiet\nn = len(data)"
READ_AGAIN = "%%cached --quiet\nm = len(data) + len(other)"


@pytest.fixture
def walked(monkeypatch):
    """The names of the roots that were walked, in order."""
    names = []
    plain = Traversal._add_remembering

    def noted(self, root, value, remembered):
        names.append(root)
        return plain(self, root, value, remembered)

    monkeypatch.setattr(Traversal, "_add_remembering", noted)
    monkeypatch.setattr(objects, "REMEMBERED_FROM", 0.0)
    return names


@pytest.fixture
def alone(monkeypatch):
    """The test runner and its plugins are not there."""
    monkeypatch.setattr(unchanged, "is_alone", lambda _shell: True)


@pytest.fixture
def hits(cell, shell, walked, alone):
    """Everything is stored, the kernel is as new, and the first two cells are hits."""
    from ipyparcache import last_run

    for source in (SETUP, READ, READ_AGAIN):
        cell(source)
    shell.reset(new_session=False)
    gc.collect()
    for source in (SETUP, READ):
        cell(source)
        assert last_run().status == "hit"
    walked.clear()

    def run(source):
        cell(source)
        return last_run().status

    return run


def test_what_a_hit_restored_is_digested_once(hits, walked):
    assert hits(READ_AGAIN) == "hit"
    assert walked == ["other"]
    walked.clear()

    assert hits(READ_AGAIN) == "hit"
    assert hits(READ) == "hit"
    assert walked == []


def test_a_cell_that_runs_ends_it(hits, cell, walked):
    cell("data[0].append(1)")
    assert hits(READ) == "miss"
    assert walked == ["data"]


@pytest.mark.parametrize(
    "change",
    ["data[0].append(5)", "data[0] = 3", "data.append(1); del data[0]", "data[3][0] = 99"],
)
def test_a_change_is_seen(hits, cell, names_of, change):
    cell("%%cached --quiet\ntotal = sum(map(str, data), '') if False else repr(data)")
    cell(change)
    cell("%%cached --quiet\ntotal = sum(map(str, data), '') if False else repr(data)")

    assert names_of["total"] == repr(names_of["data"])


@pytest.fixture
def names_of(shell):
    return shell.user_ns


def test_a_silent_run_ends_it(hits, shell, walked):
    shell.run_cell("data[1] = 0", silent=True)
    hits(READ)

    assert walked == ["data"]


def test_an_expression_of_the_front_end_ends_it(hits, shell, walked):
    shell.user_expressions({"x": "data.append(7)"})
    hits(READ)

    assert walked == ["data"]


def test_a_line_of_the_same_cell_ends_it(hits, cell, walked, names_of):
    cell("%cached a = len(data)\ndata.append(1)\n%cached b = len(data)")

    assert names_of["b"] == names_of["a"] + 1


def test_where_somebody_else_may_run_code_all_is_digested(hits, walked, monkeypatch):
    monkeypatch.setattr(unchanged, "is_alone", lambda _shell: False)
    assert hits(READ_AGAIN) == "hit"
    assert walked == ["data", "other"]
    walked.clear()
    assert hits(READ_AGAIN) == "hit"
    assert walked == ["data", "other"]
    monkeypatch.setattr(unchanged, "is_alone", lambda _shell: True)
    assert hits(READ_AGAIN) == "hit"
    assert hits(READ) == "hit"

    assert walked == ["data", "other"] * 2


def test_an_input_changed_by_a_hit_is_digested_again(cell, shell, walked, names_of, alone):
    from ipyparcache import last_run

    change = "%%cached --quiet\ndata[2].append(8)"
    for source in (SETUP, READ, change, READ_AGAIN):
        cell(source)
    shell.reset(new_session=False)
    for source in (SETUP, READ, change):
        cell(source)
        assert last_run().status == "hit"
    walked.clear()
    cell(READ_AGAIN)

    assert last_run().status == "hit"
    assert "data" in walked
    assert names_of["data"][2] == [2, 8]


def test_what_no_name_stands_for_any_more_is_not_kept(hits, cell, shell):
    from ipyparcache.cells.cached import _watches

    watch = _watches[shell]
    assert watch._walks
    cell("del data")

    assert not watch._walks


def test_sharing_between_remembered_and_new_roots_counts(shell, walked):
    shared = [1]
    first, second, third = [shared, 2], {"x": shared}, [[3]]
    remembered = {}
    for value in (first, third):
        Traversal({}, marking=False, remembered=remembered).add("a", value)
    fresh = Traversal({}, marking=False)
    recalled = Traversal({}, marking=False, remembered=remembered)
    for traversal in (fresh, recalled):
        traversal.add("first", first)
        traversal.add("second", second)
        traversal.add("third", third)

    assert recalled.combined() == fresh.combined()
    assert recalled.shared == fresh.shared != []
    assert recalled.number_of(shared) == fresh.number_of(shared)
    assert list(recalled.objects()) == list(fresh.objects())


def test_code_that_looks_names_up_is_walked_each_time(shell, walked):
    names = {"limit": 1}
    exec("def helper():\n  return limit", names)
    remembered = {}
    Traversal(names, marking=False, remembered=remembered).add("f", [names["helper"]])

    assert remembered == {}


def test_what_changed_is_told_of_remembered_inputs(shell, walked):
    data, other = [[n] for n in range(30)], {"k": [1]}
    remembered = {}
    for _ in range(2):
        traversal = Traversal({}, marking=False, remembered=remembered)
        traversal.add("data", data)
        traversal.add("other", other)
    traversal.mark()
    data[4].append(1)
    other["k"] = 2

    assert sorted(traversal.changed()) == [("data", 5), ("other", 0)]


def foreign(shell):
    """Who may run code here besides the kernel and the test runner with its plugins."""
    runner = ("_pytest", "pytest", "conftest", "hypothesis", "faulthandler")
    agents = [agent for agent in unchanged._agents(shell) if not unchanged._is_of_kernel(agent)]
    return [one for one in agents if not str(getattr(one, "__module__", "")).startswith(runner)]


@pytest.mark.parametrize("agent", ["thread", "signal", "event", "transformer", "gc"])
def test_whoever_may_run_code_is_noticed(shell, agent, request):
    def of_the_notebook(*_args):
        return _args[0] if _args else None

    of_the_notebook.__module__ = "__main__"
    before = foreign(shell)
    if agent == "thread":
        end = threading.Event()
        thread = threading.Thread(target=lambda: end.wait())
        thread.start()
        request.addfinalizer(lambda: (end.set(), thread.join()))
    elif agent == "signal":
        handler = signal.signal(signal.SIGUSR1, of_the_notebook)
        request.addfinalizer(lambda: signal.signal(signal.SIGUSR1, handler))
    elif agent == "event":
        shell.events.register("post_run_cell", of_the_notebook)
        request.addfinalizer(lambda: shell.events.unregister("post_run_cell", of_the_notebook))
    elif agent == "transformer":
        shell.input_transformers_post.append(of_the_notebook)
        request.addfinalizer(lambda: shell.input_transformers_post.remove(of_the_notebook))
    else:
        gc.callbacks.append(of_the_notebook)
        request.addfinalizer(lambda: gc.callbacks.remove(of_the_notebook))

    assert len(foreign(shell)) > len(before)
    assert not unchanged.is_alone(shell)


def test_a_loop_whose_results_may_enter_is_noticed(shell, cell):
    cell("%%parallel --background bg\nout = []\nfor i in range(2):\n    out.append(i)")
    shell.user_ns["bg"].wait(30)
    waiting = [one.__module__ for one in foreign(shell)]
    cell("len(out)")

    assert "ipyparcache.cells.background" in waiting
    assert "ipyparcache.cells.background" not in [one.__module__ for one in foreign(shell)]


def test_tasks_and_callbacks_of_the_event_loop_are_noticed(shell):
    async def look(prepare):
        prepare(asyncio.get_running_loop())
        return unchanged.is_alone(shell)

    async def waits():
        await asyncio.sleep(0)

    def none(loop):
        pass

    kept = []
    assert not asyncio.run(look(lambda loop: loop.call_later(60, print, 1)))
    assert not asyncio.run(look(lambda loop: kept.append(loop.create_task(waits()))))
    assert not asyncio.run(look(none))  # `look` itself is a task of the notebook's
