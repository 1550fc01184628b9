"""What iterations show and warn of: as the serial loop does, in its order."""

from __future__ import annotations

import linecache
import warnings

import pytest
from IPython.display import DisplayHandle

from tests.cells.sessions import new_namespace, parallel, serial

IMPORTS = "from IPython.display import clear_output, display, publish_display_data, update_display\n"
CAREFUL = """
import warnings
def careful():
    with warnings.catch_warnings():
        warnings.simplefilter('{}')
        warnings.warn('inside')
        warnings.warn('inside')
"""


def test_the_output_is_cleared_between_what_iterations_show():
    host, error, _ = parallel(
        new_namespace(IMPORTS), "for i in range(3):\n    clear_output(wait=True)\n    display(i)"
    )

    assert error is None
    assert host.events == [event for i in range(3) for event in (("clear", True), ("display", (i,), {}))]


def test_functions_that_the_body_imports_show_here_too():
    cell = "for i in range(2):\n    from IPython.display import clear_output as clear, display as show\n"
    host, error, _ = parallel(new_namespace(), cell + "    show(i)\n    clear()")

    assert error is None
    assert host.events == [event for i in range(2) for event in (("display", (i,), {}), ("clear", False))]


def test_a_handle_updates_what_it_has_shown():
    cell = "for i in range(2):\n    handle = display(i, display_id=True)\n    handle.update(i + 10)"

    namespace = new_namespace(IMPORTS)
    host, error, _ = parallel(namespace, cell)

    assert error is None
    assert type(namespace["handle"]) is DisplayHandle
    assert [objects[0] for _, objects, _ in host.events] == [0, 10, 1, 11]
    names = [options["display_id"] for _, _, options in host.events]
    assert names[0] == names[1] != names[2] == names[3]
    assert [options.get("update", False) for _, _, options in host.events] == [False, True, False, True]


def test_data_by_mime_type_is_shown_as_it_is():
    cell = "for i in range(2):\n    publish_display_data({'text/plain': str(i)}, metadata={'n': i})"

    host, error, _ = parallel(new_namespace(IMPORTS), cell)

    assert error is None
    assert host.events == [
        ("display", ({"text/plain": str(i)},), {"metadata": {"n": i}, "raw": True}) for i in range(2)
    ]


@pytest.mark.parametrize("backend", ["processes", "threads"])
def test_threads_and_processes_clear_alike(backend):
    cell = "for i in range(3):\n    clear_output()\n    update_display(i, display_id='place')"

    host, error, _ = parallel(new_namespace(IMPORTS), cell, backend=backend)

    assert error is None
    shown = [("display", (i,), {"display_id": "place", "update": True}) for i in range(3)]
    assert host.events == [event for one in shown for event in (("clear", False), one)]


@pytest.mark.parametrize("action", ["always", "default", "ignore", "once"])
def test_warnings_of_a_block_of_their_own_are_shown_as_often_as_serially(action):
    setup = CAREFUL.format(action) + "    warnings.warn('outside')"
    cell = "for i in range(4):\n    careful()"
    seen = []
    for run in (serial, parallel):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            run(new_namespace(setup), cell)
        seen.append([(str(w.message), w.filename, w.lineno) for w in caught])

    assert seen[0] == seen[1]


def test_tracebacks_that_the_body_takes_show_the_lines_of_the_notebook(monkeypatch):
    cell = "for i in range(2):\n    try:\n        helper(i)\n    except ValueError:\n"
    cell += "        out.append(traceback.format_exc())"
    lines = cell.splitlines(keepends=True)
    monkeypatch.setitem(linecache.cache, "<cell>", (len(cell), None, lines, "<cell>"))
    setup = "import traceback\ndef helper(i):\n    raise ValueError(i)\nout = []"
    one, other = new_namespace(setup), new_namespace(setup)

    serial(one, cell)
    _, error, _ = parallel(other, cell)

    assert error is None
    assert "    helper(i)\n" in one["out"][0]
    assert "    raise ValueError(i)\n" in one["out"][0]
    assert one["out"] == other["out"]
