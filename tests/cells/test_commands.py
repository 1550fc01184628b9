import pytest

from ipyparcache import cli, magics, settings
from ipyparcache.cells import commands, runs
from ipyparcache.cells.commands import NotInAKernel
from ipyparcache.cells.exchange import NotAnExport
from ipyparcache.cells.options import WrongOption
from ipyparcache.cells.runs import InputChange, Run, note_run
from ipyparcache.storage.entry import close_entries, open_entries


@pytest.fixture(autouse=True)
def no_runs_yet(monkeypatch):
    monkeypatch.setattr(runs, "_runs", type(runs._runs)(maxlen=runs.KEPT))


@pytest.fixture
def stored():
    """Two entries, as cells would have left them."""
    entries = open_entries()
    entries.write("a" * 32, "t1", {"cell": "x = slow()", "identity": "i1"}, b"N.", [], seconds=2.0)
    entries.write("b" * 32, "t2", {"cell": "y = fast()", "identity": "i2"}, b"N." * 500, [], seconds=0.5)
    return entries


def said(line, **more):
    return commands.run(line, **more).text


def test_status_tells_the_folder_and_what_it_holds(stored):
    text = said("status")

    assert settings.current().dir in text
    assert "in 2 entries" in text


def test_status_tells_what_this_kernel_has_saved(stored):
    note_run(Run("hit", "", seconds=0.5, body_seconds=60.5))

    assert "1 hit, 0 stored, 1 min 0 s saved" in said("status")


def test_list_is_sorted_as_asked(stored):
    by_size, by_saved = said("list --sort size").splitlines(), said("list --sort saved").splitlines()

    assert by_size[0].endswith("y = fast()")
    assert by_saved[0].endswith("x = slow()")
    assert said("list --limit 1").splitlines()[1].startswith("and 1 more")


def test_an_empty_store_says_so():
    assert said("list") == "the store is empty"


def test_why_names_what_changed_with_its_diff():
    change = InputChange("f", "function", "function", ("-    return 1", "+    return 2"))
    note_run(Run("miss", str(change), inputs={"f": "ab" * 16}, changes=(change,), execution_count=4))

    text = said("why")
    assert text == said("why 4") == said("why -1")
    assert "cell [4]: miss: f changed" in text
    assert "+    return 2" in text


def test_why_of_a_cell_that_never_ran_says_so():
    with pytest.raises(runs.NoRun, match="no cell 7"):
        commands.run("why 7")


def test_what_is_no_number_of_a_cell_is_told(stored):
    for command in ("why x", "clear --cell x"):
        with pytest.raises(WrongOption, match="number of a cell"):
            commands.run(command)


def test_only_entries_are_counted_not_what_leads_to_them(stored):
    stored.remember("i1", "a" * 32)

    assert "in 2 entries" in said("status")
    assert said("clear --all") == "removed 2 entries: the whole store"
    assert list(stored.store.items()) == []


def test_clear_removes_what_this_kernel_used_and_all_the_rest_only_when_told(stored):
    note_run(Run("hit", "", key="a" * 32, trace="t1", identity="i1"))

    assert "removed 1 " in said("clear")
    assert len(list(stored.all())) == 1
    assert "whole store" in said("clear --all")
    assert list(open_entries().all()) == []


def test_clear_of_one_cell_leaves_the_others(stored):
    note_run(Run("hit", "", key="a" * 32, trace="t1", identity="i1"))
    note_run(Run("miss", "", key="b" * 32, trace="t2", identity="i2"))

    assert "removed 1 " in said("clear --cell -2")
    assert [entry.key[0] for entry in stored.all()] == ["b"]


def test_prune_wants_to_know_how_much_stays(stored):
    with pytest.raises(WrongOption, match="--max-size"):
        commands.run("prune")
    assert said("prune --max-size 0") == "removed 2 entries"


def test_verify_counts_whole_entries(stored):
    assert said("verify") == "2 entries are whole"


def test_set_shows_changes_and_saves(stored):
    assert "max-size" in said("set")
    commands.run("set max-size=3GB quiet=on")
    assert settings.current().max_size == 3_000_000_000
    assert settings.current().quiet
    assert "settings.json" in said("set max-size=4GB --save")
    settings.change("max-size", None)
    settings.change("quiet", None)

    assert settings.current().max_size == 4_000_000_000


@pytest.mark.parametrize("line", ["set nonsense=1", "set quiet=perhaps"])
def test_a_wrong_setting_is_an_error_that_names_it(line):
    with pytest.raises(ValueError, match=r"nonsense|perhaps"):
        commands.run(line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("stauts", "did you mean `status`?"),
        ("list --sort seize", "did you mean `size`?"),
        ("auto perhaps", "auto on"),
        ("set quiet", "KEY=VALUE"),
        ("export", "export FILE"),
        ("workers dance", "workers restart"),
        ("clear 3", "did you mean `clear --cell 3`?"),
        ("clear all", "did you mean `clear --all`?"),
        ("status now", "`now` means nothing here"),
        ("list --limit -1", "a whole number from 1 on"),
    ],
)
def test_a_wrong_line_says_what_was_meant(line, said):
    with pytest.raises(WrongOption) as caught:
        commands.run(line)

    assert said in str(caught.value)


def test_entries_move_between_machines_of_one_key(stored, tmp_path, monkeypatch):
    file = tmp_path / "entries.zip"
    assert "wrote 2 entries" in said(f"export {file}")
    close_entries()
    monkeypatch.setenv("IPYPARCACHE_DIR", str(tmp_path / "elsewhere"))
    assert "took 2 entries" in said(f"import {file}")

    assert sorted(entry.manifest["cell"] for entry in open_entries().all()) == ["x = slow()", "y = fast()"]


def test_entries_of_another_key_are_taken_only_when_trusted(stored, tmp_path, monkeypatch):
    file = tmp_path / "entries.zip"
    commands.run(f"export {file}")
    close_entries()
    monkeypatch.setenv("IPYPARCACHE_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("IPYPARCACHE_KEY_FILE", str(tmp_path / "other.key"))
    with pytest.raises(NotAnExport, match="another key"):
        commands.run(f"import {file}")

    assert "took 2 entries" in said(f"import {file} --trust")


def test_a_file_that_is_no_export_is_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"nonsense")

    with pytest.raises(NotAnExport):
        commands.run(f"import {tmp_path / 'x.zip'}")


def test_the_graph_goes_from_the_cell_that_bound_a_name_to_those_that_read_it():
    note_run(Run("hit", "", names=("df",), identity="1", execution_count=1, cell="df = load()"))
    note_run(
        Run("miss", "", inputs={"df": "x"}, names=("m",), identity="2", execution_count=2, cell="m = fit(df)")
    )
    picture = commands.run("graph")

    assert picture.text == "[1] → [2]: df"
    assert "<svg" in picture.html
    assert "m = fit(df)" in picture.html


def test_every_subcommand_has_help():
    for name in commands.COMMANDS:
        assert name in said(f"{name} --help")
        assert name in said("")


def test_the_command_line_has_the_same_subcommands_but_for_those_of_a_kernel(stored, capsys):
    assert cli.main(["status"]) == 0
    assert "in 2 entries" in capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert "prune" in told
    assert "timeline" not in told
    assert cli.main(["why"]) == 2
    assert "in a notebook" in capsys.readouterr().err
    assert cli.main(["stauts"]) == 2
    assert "did you mean `status`?" in capsys.readouterr().err
    with pytest.raises(NotInAKernel):
        commands.run("why", in_kernel=False)


def test_the_magic_shows_what_the_command_says(shell, cell, capsys):
    magics.load_ipython_extension(shell)
    cell("%parcache list")
    assert "the store is empty" in capsys.readouterr().out
    for line, told in {
        "stauts": "did you mean `status`?",
        "why 99": "no cell 99",
        "why x": "number of a cell",
        "export /nowhere/at/all": "/nowhere/at/all cannot be written: No such file or directory",
        "import /nowhere/at/all": "/nowhere/at/all cannot be imported",
    }.items():
        assert not shell.run_cell(f"%parcache {line}").success
        heard = capsys.readouterr().err
        assert told in heard
        assert len(heard.splitlines()) == 1
    magics.unload_ipython_extension(shell)
    assert not shell.run_cell("%parcache list").success


def test_nothing_parallel_has_run_yet(monkeypatch):
    from ipyparcache.cells import reports

    monkeypatch.setattr(reports, "_last", [])

    assert said("errors") == said("partial") == said("timeline") == reports.NOTHING
