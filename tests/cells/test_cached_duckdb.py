"""DuckDB's default database is the process's: no hit makes what cells make there, no digest tells it."""

import duckdb
import pytest

from ipyparcache import last_run

pytestmark = pytest.mark.usefixtures("extension")


@pytest.fixture(autouse=True)
def _empty_again():
    yield
    duckdb.set_default_connection(duckdb.connect())


@pytest.mark.parametrize(
    "body",
    [
        'duckdb.sql("create table points as select 3 a")',
        'duckdb.execute("create temp table points as select 3 a"); duckdb.complete()',
        'con = duckdb.default_connection(); con.sql("create view points as select 3 a"); del con',
        'from duckdb import sql\nsql("create macro plus(a) as a + 1")',
        'def make():\n    duckdb.sql("create table points as select 3 a")\nmake()',
    ],
)
def test_a_cell_that_makes_a_table_runs_each_time(cell, cached, body):
    cell("import duckdb")
    assert cached(body) == "not stored"
    assert "default database holds" in (last_run().reason or "")


def test_a_cell_that_reads_a_table_of_an_earlier_cell_sees_its_rows_of_now(cell, cached, names):
    body = "total = duckdb.sql('select sum(a) from points').fetchall()"
    cell("import duckdb; duckdb.sql('create table points as select 3 a')")
    assert cached(body) == "not stored"
    cell("duckdb.sql('insert into points values (4)')")
    assert cached(body) == "not stored"

    assert names["total"] == [(7,)]


def test_a_table_that_takes_the_place_of_a_variable_is_not_overlooked(cell, cached, names):
    cell("import duckdb, pandas\nframe = pandas.DataFrame({'a': [1, 2]})")
    body = "total = duckdb.sql('select sum(a) from frame').fetchall()[0][0]"
    assert [cached(body), cached(body), names["total"]] == ["miss", "hit", 3]
    cell("duckdb.sql('create table frame as select 10 a')")
    assert cached(body) == "not stored"

    assert names["total"] == 10


@pytest.mark.parametrize("body", ["duckdb.sql('set threads = 1')", "duckdb.execute('use memory')"])
def test_a_cell_that_sets_the_session_up_runs_each_time(cell, cached, body):
    cell("import duckdb")
    assert cached(body) == "not stored"


def test_a_cell_that_registers_a_table_runs_each_time(cell, cached):
    cell("import duckdb, pandas\nframe = pandas.DataFrame({'a': [1, 2]})")
    assert cached("duckdb.register('points', frame)\nn = 1") == "not stored"


def test_a_connection_of_the_cells_own_is_in_nobodys_way(cell, cached, names):
    cell("import duckdb; duckdb.sql('create table points as select 3 a')")
    body = """
    with duckdb.connect() as con:
        con.sql("create table points as select 5 a")
        total = con.sql("select sum(a) from points").fetchall()[0][0]
    del con
    """
    assert [cached(body), cached(body), names["total"]] == ["miss", "hit", 5]
