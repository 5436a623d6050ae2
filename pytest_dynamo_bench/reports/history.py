"""Metrics over many sessions as an HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pytest_dynamo_bench.metric_definitions import metric_of
from pytest_dynamo_bench.reports.charts import OUTCOME_COLORS, Chart, plain_label
from pytest_dynamo_bench.reports.differences import History
from pytest_dynamo_bench.reports.html import render_page
from pytest_dynamo_bench.verdicts.verdict import quantity

_COLORS = {
    "reference": OUTCOME_COLORS["invalid"], "unchanged": "#3b7dd8",
    "improvement": OUTCOME_COLORS["holds"], "regression": OUTCOME_COLORS["fails"],
    "inconclusive": OUTCOME_COLORS["inconclusive"], "not comparable": OUTCOME_COLORS["invalid"],
}  # fmt: skip


def render_history(histories: Sequence[History], against: str, missing: Sequence[str] = ()) -> str:
    """A chart and a table for each configuration and metric.

    Args:
        against: which session each is judged against, in one word.
        missing: what could not be judged, and why.
    """
    return render_page(
        "history.html",
        title="Dynamo benchmarks over time",
        histories=[(history, _chart(history), _rows(history)) for history in histories],
        against=against,
        missing=list(dict.fromkeys(missing)),
    )


def _outcome(point: Any) -> str:
    if point.regression is not None:
        return str(point.regression.outcome)
    return "not comparable" if point.mismatches else "reference"


def _rows(history: History) -> list[dict[str, str]]:
    unit = metric_of(history.tolerance.metric).unit
    return [
        {
            "measured": point.started_at,
            "results": point.directory.name,
            "value": quantity(point.value, unit),
            "outcome": _outcome(point),
            "text": point.regression.sentence if point.regression else "; ".join(point.mismatches),
        }
        for point in history.points
    ]


def _chart(history: History) -> Chart:
    definition = metric_of(history.tolerance.metric)
    factor, unit = (100, "%") if definition.is_share else (1, definition.unit)
    places = list(range(len(history.points)))
    values = [factor * point.value for point in history.points]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "x": places, "y": values, "hoverinfo": "skip",
            "line": {"color": OUTCOME_COLORS["invalid"], "width": 1}, "showlegend": False,
        }
    ]  # fmt: skip
    judged = [i for i, point in enumerate(history.points) if point.regression is not None]
    if judged:
        # A separate stretch for each session, since a line through one point is not drawn.
        levels = [factor * _tolerated(history, index) for index in judged]
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": "tolerated",
                "x": [x for index in judged for x in (index - 0.4, index + 0.4, None)],
                "y": [y for level in levels for y in (level, level, None)],
                "line": {"color": OUTCOME_COLORS["fails"], "width": 1.5, "dash": "dot"},
                "hovertemplate": f"tolerated: %{{y:,.4g}} {unit}",
            }
        )  # fmt: skip
    for outcome, color in _COLORS.items():
        chosen = [i for i, point in enumerate(history.points) if _outcome(point) == outcome]
        if chosen:
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": outcome,
                    "x": chosen, "y": [values[i] for i in chosen],
                    "error_y": _interval(history, chosen, factor, definition.is_share),
                    "marker": {"color": color, "size": 11},
                    "hovertemplate": f"%{{y:,.4g}} {unit}",
                }
            )  # fmt: skip
    return Chart(
        key=f"{history.benchmark}-{history.configuration}-{history.tolerance.metric}",
        title=f"{history.benchmark}: {history.configuration} on {history.target}, "
        f"{history.tolerance.metric}",
        caption=f"{definition.better.capitalize()} is better. Bars: the interval of the change "
        "from the results that it is judged against.",
        data=data,
        layout={
            "xaxis": {
                "tickvals": places,
                "ticktext": [_when(point.started_at) for point in history.points],
                "automargin": True,
                "zeroline": False,
                "range": [-0.5, len(places) - 0.5],
            },
            "yaxis": {"title": {"text": f"{history.tolerance.metric}, {unit}"}, "automargin": True},
        },
    )


def _when(started_at: str) -> str:
    """Date and time of day on two lines."""
    return f"{plain_label(started_at[:10])}<br>{plain_label(started_at[11:16])}"


def _tolerated(history: History, index: int) -> float:
    """The worst value of a session that the gate would have let pass."""
    definition = metric_of(history.tolerance.metric)
    regression = history.points[index].regression
    assert regression is not None
    share = history.tolerance.share * (1 if definition.better == "lower" else -1)
    stored = regression.effect.baseline_value
    return stored + share if definition.is_share else stored * (1 + share)


def _interval(
    history: History, chosen: Sequence[int], factor: float, is_share: bool
) -> dict[str, Any]:
    """The ends of the change's interval, as the values that they mean for this session."""
    above, below = [], []
    for index in chosen:
        regression = history.points[index].regression
        ends = (0.0, 0.0)
        if regression is not None:
            effect = regression.effect
            base = 1.0 if is_share else effect.baseline_value
            if math.isfinite(effect.low) and math.isfinite(effect.high):
                ends = (base * (effect.high - effect.change), base * (effect.change - effect.low))
        above.append(factor * ends[0])
        below.append(factor * ends[1])
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "width": 4}
