"""What a loop shows through the shell: clears that wait come with the user's next output, not with ours."""

from __future__ import annotations

import ast

import pytest

from ipyparcache.kernel import host as hosts
from ipyparcache.kernel.running import parse_body


@pytest.fixture
def done(shell, monkeypatch):
    """What is shown and cleared, in order."""
    done: list[object] = []
    monkeypatch.setattr(hosts, "display", lambda *objects, **_: done.extend(objects))
    monkeypatch.setattr(hosts, "clear_output", lambda wait=False: done.append(("clear", wait)))
    monkeypatch.setattr(hosts, "show_note", lambda *_, **__: done.append("note"))
    return done


@pytest.fixture
def host(shell):
    return hosts.ShellHost(shell, parse_body(shell, "pass", 0))


def test_a_clear_that_waits_comes_with_what_is_shown_next(host, done):
    host.display((1,), {})
    host.clear_output(True)
    host.show_note("", "")
    host.display((2,), {})
    host.display((3,), {})

    assert done == [1, "note", ("clear", True), 2, 3]


def test_what_the_last_clear_waits_for_may_not_come(host, done):
    host.display((1,), {})
    host.clear_output(True)
    host.show_note("", "")

    assert done == [1, "note"]


def test_a_clear_at_once_takes_the_place_of_one_that_waits(host, done, capsys):
    host.clear_output(True)
    host.clear_output(False)
    host.write("stdout", "behind")

    assert done == [("clear", False)]
    assert capsys.readouterr().out == "behind"


def test_a_statement_behind_the_loop_may_show_something(host, done):
    host.clear_output(True)
    host.run_statement(ast.parse("pass").body[0], last=True)

    assert done == [("clear", True)]


@pytest.mark.parametrize("source", ["[1, 2]", "[1, 2];", "[1, 2]; # why"])
def test_a_value_is_shown_unless_a_semicolon_ends_the_cell(shell, capsys, source):
    host = hosts.ShellHost(shell, parse_body(shell, source, 0))

    with shell.display_trap:
        host.run_statement(ast.parse("[1, 2]").body[0], last=True)

    assert ("[1, 2]" in capsys.readouterr().out) == (";" not in source)
    assert "quiet" not in vars(shell.displayhook)
