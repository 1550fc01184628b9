import multiprocessing
import os
import threading
import time
from math import sqrt

import numpy as np
import pytest

from ipyparcache import Parallel, delayed, effective_n_jobs, parallel_config
from ipyparcache.engine.backends import base
from ipyparcache.engine.outcome import Error
from ipyparcache.parallel import tasks
from ipyparcache.parallel.expressions import parse_ahead


def square(number):
    return number * number


@pytest.fixture(params=["processes", "threads", "sequential"])
def backend(request):
    return request.param


def test_results_come_in_the_order_of_the_tasks(backend):
    assert Parallel(n_jobs=2, backend=backend)(delayed(square)(n) for n in range(500)) == [
        n * n for n in range(500)
    ]


def test_functions_and_keywords_may_differ(backend):
    tasks = [delayed(sqrt)(4), delayed(max)([3, 1], key=lambda n: -n), delayed(int)("7", base=8)]

    assert Parallel(n_jobs=2, backend=backend)(tasks) == [2.0, 1, 7]


def test_no_tasks_give_an_empty_list(backend):
    assert Parallel(n_jobs=2, backend=backend)([]) == []


def test_an_error_is_raised_as_it_was(backend):
    with pytest.raises(ZeroDivisionError):
        Parallel(n_jobs=2, backend=backend)(delayed(divmod)(1, n - 3) for n in range(10))


def test_errors_can_be_collected():
    found = Parallel(n_jobs=2, on_error="collect")(delayed(divmod)(6, n) for n in range(3))

    assert isinstance(found[0], Error)
    assert found[1:] == [(6, 0), (3, 0)]


def wait_for(path):
    """Return at once without a path, else when there is something at it."""
    while path is not None and not path.exists():
        time.sleep(0.005)


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_a_generator_gives_results_before_later_tasks_end(backend, return_as, batch_size, tmp_path):
    gates = tmp_path / "one", tmp_path / "two"
    found = Parallel(n_jobs=2, backend=backend, return_as=return_as, batch_size=batch_size)(
        delayed(wait_for)(path) for path in (None, None, gates[0], None, gates[1])
    )
    assert [next(found), next(found)] == [None, None]  # the third task cannot have ended
    gates[0].touch()
    assert [next(found), next(found)] == [None, None]  # nor the last
    gates[1].touch()

    assert list(found) == [None]


def test_results_that_came_before_a_long_task_are_right_however_large(tmp_path):
    gate = tmp_path / "gate"
    space = {"__name__": "__main__"}
    exec(
        "def task(n, path):\n"
        "    import os, time\n"
        "    while path and not os.path.exists(path): time.sleep(0.005)\n"
        "    return 1 // n if n < 1 else 'x' * n",
        space,
    )
    sizes = (1, 70_000, 0, 3, 30_000, 5)
    found = Parallel(n_jobs=2, return_as="generator", on_error="collect", batch_size=6)(
        delayed(space["task"])(n, str(gate) if n == 5 else "") for n in sizes
    )
    early = [next(found) for _ in sizes[:-1]]
    gate.touch()

    assert [value if isinstance(value, Error) else len(value) for value in early[:2]] == [1, 70_000]
    assert isinstance(early[2].exception, ZeroDivisionError)
    assert [len(value) for value in early[3:]] == [3, 30_000]
    assert list(found) == ["x" * 5]


def test_a_generator_works_on_while_no_one_asks():
    drawn = []

    def tasks():
        for number in range(20):
            drawn.append(number)
            yield delayed(square)(number)

    found = Parallel(n_jobs=2, return_as="generator")(tasks())
    until = time.monotonic() + 5
    while len(drawn) < 20 and time.monotonic() < until:
        time.sleep(0.01)

    assert len(drawn) == 20
    assert list(found) == [n * n for n in range(20)]


def test_a_closed_generator_does_not_show_in_the_next_call(tmp_path):
    parallel = Parallel(n_jobs=2, return_as="generator")
    found = parallel(delayed(wait_for)(tmp_path / "never" if n else None) for n in range(20))
    next(found)
    with pytest.warns(UserWarning, match="dropped before its end"):
        found.close()

    assert list(parallel(delayed(square)(n) for n in range(3))) == [0, 1, 4]


def test_an_object_whose_generator_is_alive_refuses_another_call(backend):
    parallel = Parallel(n_jobs=2, backend=backend, return_as="generator")
    found = parallel(delayed(square)(n) for n in range(5))

    with pytest.raises(RuntimeError, match="already running"):
        parallel([])
    assert len(list(found)) == 5


def test_a_late_task_raises_the_timeout_error_of_multiprocessing():
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(n_jobs=2, timeout=0.2)(delayed(time.sleep)(60) for _ in range(2))


def test_one_job_runs_in_this_process_in_step_with_the_input():
    log = []

    def tasks():
        for number in range(3):
            log.append(f"made {number}")
            yield delayed(log.append)(f"ran {number}")

    Parallel(n_jobs=1)(tasks())

    assert log == ["made 0", "ran 0", "made 1", "ran 1", "made 2", "ran 2"]


def test_pre_dispatch_bounds_what_is_drawn_ahead(tmp_path):
    drawn = []

    def tasks():
        for number in range(6):
            if number == 3:
                until = time.monotonic() + 5
                while not list(tmp_path.iterdir()) and time.monotonic() < until:
                    time.sleep(0.005)
                drawn.append(len(list(tmp_path.iterdir())))
            yield delayed((tmp_path / str(number)).touch)()

    Parallel(n_jobs=2, pre_dispatch=3, batch_size=1)(tasks())

    assert drawn[0] >= 1


def test_values_of_n_jobs_are_read_as_joblib_reads_them(monkeypatch):
    monkeypatch.setattr(base, "cpu_count", lambda: 4)

    assert [effective_n_jobs(n) for n in (-1, -2, -100, 3, 2.9, "2", None)] == [4, 3, 1, 3, 2, 2, 1]
    with pytest.raises(ValueError, match="n_jobs == 0 in Parallel has no meaning"):
        Parallel(n_jobs=0)([])
    with pytest.raises(ValueError, match="n_jobs could not be converted to int"):
        Parallel(n_jobs="abc")


def test_contexts_set_what_a_call_leaves_open():
    with parallel_config(backend="threads", n_jobs=2), parallel_config(verbose=0):
        parallel = Parallel()

        assert (parallel._backend.crew, parallel.n_jobs) == ("threads", 2)
        assert Parallel(n_jobs=3).n_jobs == 3
    assert Parallel().n_jobs == 1


def test_calls_inside_a_task_stay_in_its_process():
    def outer():
        inner = Parallel(n_jobs=2)
        return inner._backend.crew, set(inner(delayed(os.getpid)() for _ in range(4))) == {os.getpid()}

    assert Parallel(n_jobs=2)(delayed(outer)() for _ in range(2)) == [("threads", True)] * 2


@pytest.mark.parametrize(
    ("text", "ahead"), [("2 * n_jobs", 8), ("all", None), (3, 3), ("n_jobs + 1.5", 5), (2.9, 2)]
)
def test_pre_dispatch_is_arithmetic(text, ahead):
    assert parse_ahead(text, 4) == ahead


@pytest.mark.parametrize("text", [0, "0", -1, "__import__('os')", "9**9**9", "n", "1/0", "1" * 31])
def test_what_is_no_arithmetic_is_refused(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_ahead(text, 4)


def test_delayed_keeps_the_names_of_its_function():
    assert delayed(square).__name__ == "square"
    assert delayed(square)(3) == (square, (3,), {})
    assert delayed(np.add)(1, 2)[0] is np.add


def test_only_an_iterable_that_runs_no_code_is_trusted():
    data = [1]

    def touch(value):
        data.append(value)
        return value

    assert tasks.is_transparent([])
    assert tasks.is_transparent(delayed(square)(n) for n in range(3))
    assert tasks.is_transparent(delayed(max)(n, m) for n, m in zip(range(3), enumerate([1]), strict=False))
    assert tasks.is_transparent(delayed(square)(*row) for row in ((n,) for n in range(3)))
    assert not tasks.is_transparent(delayed(square)(n) for n in zip(map(touch, [1]), strict=False))
    assert not tasks.is_transparent(delayed(square)(n) for n in (touch(m) for m in [1]))
    assert not tasks.is_transparent(delayed(square)(touch(n)) for n in range(3))
    assert not tasks.is_transparent(delayed(square)(n) for n in map(touch, [1]))
    assert not tasks.is_transparent(map(delayed(square), [1]))


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_a_generator_dropped_half_way_tells_what_is_lost(backend, return_as):
    released = threading.Event()
    wait = released.wait if backend == "threading" else time.sleep
    parallel = Parallel(n_jobs=2, backend=backend, return_as=return_as, pre_dispatch=6, batch_size=1)
    found = parallel(delayed(wait)(0 if i < 4 else 30) for i in range(100))
    for _ in range(3):
        next(found)

    with pytest.warns(UserWarning, match="dropped before its end: .*tasks were under way") as told:
        found.close()
    released.set()
    assert len(told) == 1
    assert sorted(parallel(delayed(abs)(-i) for i in range(3))) == [0, 1, 2]


@pytest.mark.parametrize("backend", ["loky", "threading", "sequential"])
def test_a_generator_that_was_used_up_or_ran_nothing_ahead_tells_nothing(backend):
    parallel = Parallel(n_jobs=2, backend=backend, return_as="generator")
    found = parallel(delayed(abs)(-i) for i in range(5))
    if backend == "sequential":
        next(found)
    else:
        assert list(found) == [0, 1, 2, 3, 4]

    found.close()  # a warning would be an error here
