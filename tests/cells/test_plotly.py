"""Figures of plotly come back as they were: arrays stay arrays, what is written of them is the same text."""

import pytest

from ipyparcache import last_run
from tests.cells.sessions import new_namespace, parallel, serial

pytestmark = pytest.mark.usefixtures("extension")

EXPRESS = """
import numpy, pandas
import plotly.express as px
frame = pandas.DataFrame({"a": numpy.arange(6.0), "b": list("xyxyxy")})
fig = px.scatter(frame, x="a", y="a", color="b", title="points")
"""
SUBPLOTS = """
import plotly.graph_objects as go
from plotly.subplots import make_subplots
fig = make_subplots(rows=1, cols=2)
fig.add_trace(go.Bar(x=["a"], y=[1]), row=1, col=2)
"""
FRAMES = """
import pandas
import plotly.express as px
frame = pandas.DataFrame({"a": [1, 2], "t": [0, 1]})
fig = px.line(frame, x="a", y="a", animation_frame="t")
"""


@pytest.mark.parametrize("body", [EXPRESS, SUBPLOTS, FRAMES])
def test_a_figure_comes_back(cached, names, restart, body):
    assert cached(body) == "miss"
    fig = names["fig"]
    before = fig.to_json(), [type(trace.x) for trace in fig.data], fig._grid_str, len(fig.frames)
    restart()

    assert cached(body) == "hit"
    fig = names["fig"]
    assert (fig.to_json(), [type(trace.x) for trace in fig.data], fig._grid_str, len(fig.frames)) == before
    fig.data[0].name = "other"
    assert '"other"' in fig.to_json()


def test_what_a_figure_shows_is_an_input(cell, cached, names):
    cell(EXPRESS)
    assert cached("n = len(fig.to_dict()['data'])") == "miss"
    assert cached("n = len(fig.to_dict()['data'])") == "hit"
    cell("fig.add_bar(y=[1])")

    assert cached("n = len(fig.to_dict()['data'])") == "miss"
    assert names["n"] == 3


def test_a_trace_of_a_figure_is_not_stored_apart_from_it(cell, cached):
    cell(EXPRESS)
    assert cached("trace = fig.data[0]") == "not stored"
    assert "part of a figure" in (last_run().reason or "")


def test_a_trace_of_no_figure_is(cached, names, restart):
    body = "import plotly.graph_objects as go\ntrace = go.Bar(x=['a'], y=[1])"
    assert cached(body) == "miss"
    restart()

    assert cached(body) == "hit"
    assert names["trace"].y == (1,)


def test_figures_that_iterations_make_are_written_as_those_of_the_serial_loop():
    setup = "import numpy\nimport plotly.graph_objects as go\nfigures = []"
    cell = (
        "for i in range(4):\n"
        "    figure = go.Figure(go.Bar(x=numpy.arange(3.0), y=[i]))\n"
        "    figure.update_layout(title=str(i))\n"
        "    figures.append(figure)"
    )
    plain, tested = new_namespace(setup), new_namespace(setup)
    serial(plain, cell)

    parallel(tested, cell)

    assert [one.to_json() for one in tested["figures"]] == [one.to_json() for one in plain["figures"]]
    assert isinstance(tested["figures"][2].data[0].x, type(plain["figures"][2].data[0].x))
    assert tested["figures"][-1] is tested["figure"]
