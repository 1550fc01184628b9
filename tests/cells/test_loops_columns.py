"""Loops of which each iteration reads and writes columns or rows of one table."""

from __future__ import annotations

import pytest

from ipyparcache.errors import ChangeLost
from tests.cells.sessions import describe, new_namespace, parallel, refusal_of, serial

TABLE = (
    "import pandas as pd\nout = []\n"
    "df = pd.DataFrame({'k': list('aab'), 'x': [1.0, 2.0, 4.0], 'y': [3, 2, 1]})"
)


COLUMNS = {
    "new_from_own": (
        "for c in ['x', 'y']:\n    m = df[c].mean()\n    df[c + '_m'] = df[c] - m\n"
        "    df[f'{c}_r'] = df[c] / m"
    ),
    "own": "for c in df.columns:\n    df[c] = df[c].astype(str)",
    "new_from_constant": "for lag in range(1, 3):\n    df[f'lag{lag}'] = df['x'].shift(lag)",
    "rows": "for i in range(1, len(df)):\n    df.loc[i, 'd'] = df.loc[i, 'x'] - df.loc[i - 1, 'x']",
    "indicators": "for v in df['k'].unique():\n    df['is_' + v] = (df['k'] == v).astype(int)",
    "an_error": "for c in ['x', 'y', 'none']:\n    df[c + '_2'] = df[c] * 2",
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_a_table_are_read_and_others_written(name):
    pytest.importorskip("pandas")
    plain, tested = new_namespace(TABLE), new_namespace(TABLE)
    serial(plain, COLUMNS[name])

    parallel(tested, COLUMNS[name])

    assert describe(tested) == describe(plain)


CARRIED_COLUMNS = {
    "accumulated": "for c in ['x', 'y']:\n    df['k'] = df['k'] + df[c].astype(str)",
    "read_behind_its_write": "for c in ['x', 'y']:\n    df[c] = df[c] + 1\n    out.append(df[c].sum())",
    "read_by_name_behind": "for c in ['x', 't']:\n    df['t'] = df[c] * 2",
    "of_another_row": "for i in range(1, 3):\n    df.loc[i, 'x'] = df.loc[i - 1, 'x'] + 1",
    "by_another_name": "for c in ['x', 'y']:\n    df[c + '_2'] = g[c]",
}


@pytest.mark.parametrize("name", CARRIED_COLUMNS)
def test_columns_that_a_later_iteration_reads_are_refused(name):
    pytest.importorskip("pandas")
    said = refusal_of(CARRIED_COLUMNS[name], TABLE + "\ng = df")

    assert "`df`" in said or "`g`" in said


LOST_COLUMNS = {
    "an_element": "for c in ['x', 'y', 'x_2']:\n    df[c + '_2'] = df[c] * 2",
    "a_row_more": "for i in range(2, 5):\n    df.loc[i, 'w'] = df['x'].isna().sum()",
    "a_mask": "for t in [1.0, 2.0]:\n    mask = df['x'] == t\n    df[mask] = 0",
}


@pytest.mark.parametrize("name", LOST_COLUMNS)
def test_columns_that_turn_out_to_be_read_by_others_are_told_as_lost(name):
    pytest.importorskip("pandas")
    namespace = new_namespace(TABLE)

    _, error, _ = parallel(namespace, LOST_COLUMNS[name])

    assert isinstance(error, ChangeLost)
    assert "lost" in str(error)


@pytest.mark.parametrize(
    "before",
    [
        "out2 = []",
        "df['z'] = 0",
        "df = df[df.x > 0].copy()",
        "df = pd.DataFrame({'k': list('ab'), 'x': [1.0, 2.0], 'y': [3, 2]})",
    ],
)
@pytest.mark.parametrize("name", COLUMNS)
def test_the_table_may_have_been_made_or_changed_by_the_cell_itself(name, before):
    pytest.importorskip("pandas")
    cell = f"{before}\n{COLUMNS[name]}"
    plain, tested = new_namespace(TABLE), new_namespace(TABLE)
    serial(plain, cell)

    host, _, report = parallel(tested, cell)

    assert describe(tested) == describe(plain)
    assert not host.notes
    assert report.loops[0].iterations > 0


def test_what_the_cell_made_is_no_table_with_rows_and_the_loop_runs_here():
    pytest.importorskip("pandas")
    cell = "df = df.head(0)\nfor c in ['k', 'x', 'none']:\n    df[c + '_2'] = df[c] * 2"
    plain, tested = new_namespace(TABLE), new_namespace(TABLE)
    _, error = serial(plain, cell)

    host, raised, _ = parallel(tested, cell)

    assert describe(tested) == describe(plain)
    assert type(raised) is type(error)
    assert "ran here" in "".join(host.notes)


VIEWS = {
    "groups": "for k in groups.groups:\n    out[k] = groups.get_group(k)['x'].tolist()",
    "columns of groups": "for c in 'xy':\n    out[c] = groups[c].mean().tolist(), groups.ngroups",
    "rows of groups": "for k in 'ab':\n    out[k] = df.iloc[groups.indices[k]]['x'].tolist()",
    "sizes of groups": "for k in 'ab':\n    out[k] = groups.size()[k], len(groups)",
    "windows": "for n in (1, 2):\n    out[n] = window.sum()['x'].iloc[-n], wide.max()['y'].iloc[-n]",
    "spans": "for n in (1, 2):\n    out[n] = days.sum()['x'].iloc[-n]",
    "spans made": "for n in (1, 2):\n    out[n] = times.resample(f'{n}D').max()['y'].tolist()",
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_a_table_may_keep_what_they_were_asked(name):
    pytest.importorskip("pandas")
    setup = TABLE + (
        "\ngroups, window, wide = df.groupby('k'), df[['x', 'y']].rolling(1), df[['x', 'y']].expanding()\n"
        "times = df[['x', 'y']].set_index(pd.date_range('2021-01-01', periods=len(df), freq='12h'))\n"
        "days, out = times.resample('D'), {}"
    )
    plain, tested = new_namespace(setup), new_namespace(setup)
    serial(plain, VIEWS[name])

    _, error, _ = parallel(tested, VIEWS[name])

    assert error is None
    assert repr(tested["out"]) == repr(plain["out"])
