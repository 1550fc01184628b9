"""Figures of plotly: what they show, whatever order its parts were set in, and how they are made again.

Their own pickle turns arrays into text, which stay text, and leaves out what Plotly Express notes of trend
lines.
"""

from __future__ import annotations

from typing import Any

_TRENDS = "_px_trendlines"


def is_figure(value: object) -> bool:
    """Whether it is a figure of plotly, and none that is a widget of the page."""
    cls = type(value)
    return cls.__name__ == "Figure" and cls.__module__ == "plotly.graph_objs._figure"


def shown_by(figure: Any) -> tuple[Any, ...]:
    """What tells a figure from others: its class, its data, layout and frames, and where its subplots are."""
    return type(figure), _in_order(figure.__reduce_ex__(4)[1]), getattr(figure, _TRENDS, None)


def _in_order(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _in_order(part[key]) for key in sorted(part)}
    if isinstance(part, list | tuple):
        return [_in_order(one) for one in part]
    return part


def parts_of(figure: Any) -> tuple[Any, ...]:
    """What `make` needs, arrays as arrays."""
    raw = {
        "data": figure._data,
        "layout": figure._layout,
        "frames": [frame._props for frame in figure._frame_objs],
        "_grid_str": figure._grid_str,
        "_grid_ref": figure._grid_ref,
    }
    return type(figure), raw, getattr(figure, _TRENDS, None)


def make(cls: Any, raw: dict[str, Any], trends: object) -> Any:
    """The figure of these parts."""
    figure = cls(_containers_copied(raw))  # it takes apart what it gets
    _put_in_order([figure._layout, figure._data], [raw["layout"], raw["data"]])
    if trends is not None:
        setattr(figure, _TRENDS, trends)
    return figure


def _containers_copied(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _containers_copied(value) for key, value in part.items()}
    if type(part) is list:
        return [*map(_containers_copied, part)]
    return part


def _put_in_order(now: Any, before: Any) -> None:
    """Bring keys into the order that they had, in which the figure is written as text."""
    if isinstance(now, dict) and isinstance(before, dict):
        for key in before:
            if key in now:
                now[key] = now.pop(key)
                _put_in_order(now[key], before[key])
    elif isinstance(now, list | tuple) and isinstance(before, list | tuple):
        for one, other in zip(now, before, strict=False):
            _put_in_order(one, other)
