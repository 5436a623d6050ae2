"""The figures of the HTML report, as data for plotly.js.

A figure holds what is seen and no more: distributions are a few hundred quantiles, series over
time are bins, so that a page does not grow with the number of requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pytest_dynamo_bench.arrays import FloatArray
from pytest_dynamo_bench.metric import Metric
from pytest_dynamo_bench.metric_definitions import METRICS, find_metric
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.reports.model import (
    ATTRIBUTION_VIEWS,
    ComparisonReport,
    ConfigurationReport,
)
from pytest_dynamo_bench.reports.stored_types import number

_COLORS = (
    "#3b7dd8", "#e0742c", "#2a9d6f", "#b45cc4", "#c29a0a", "#d1495b", "#3fa7c4", "#8d8f98",
)  # fmt: skip
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
OUTCOME_COLORS = {
    "holds": "#2a9d6f", "provisional": "#3fa7c4", "fails": "#d1495b", "inconclusive": "#c29a0a",
    "invalid": "#8d8f98",
}  # fmt: skip
_GREY = "#8d8f98"
_QUANTILES = 240
_MOST_POINTS = 400
_BINS = 90
_SLO_FACTORS = np.geomspace(0.25, 4, 49)


@dataclass(frozen=True)
class Chart:
    """A figure: what it shows in words, traces and layout for plotly.js."""

    key: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = 380


def charts(report: ComparisonReport) -> list[Chart]:
    """All figures that this comparison has the data for."""
    measured = report.measured
    if not measured:
        return _effect_charts(report)
    drawn = [metric for metric in METRICS.values() if metric.headline]
    found: list[Chart | None] = [
        *_effect_charts(report),
        *(_distribution(report, metric) for metric in drawn),
        *(_over_time(report, metric) for metric in drawn),
        _pareto(report),
        _goodput_curve(report),
        _hit_rate(report),
        _attribution(report),
    ]
    return [chart for chart in found if chart is not None]


def _curve(
    index: int, item: ConfigurationReport, x: Iterable[float], y: Iterable[float], hover: str
) -> dict[str, Any]:
    """A line of a configuration, in its color and dashes."""
    style = {"color": _COLORS[index % len(_COLORS)], "dash": _DASHES[index % len(_DASHES)]}
    return {
        "type": "scatter", "mode": "lines", "name": plain_label(item.name, 60, 1),
        "x": _numbers(x), "y": _numbers(y), "hovertemplate": hover, "line": style | {"width": 2},
    }  # fmt: skip


def _marks(
    index: int, item: ConfigurationReport, x: Iterable[float], y: Iterable[float], hover: str,
    **marker: float,
) -> dict[str, Any]:  # fmt: skip
    """Marks of a configuration, in its color and shape."""
    style = {"color": _COLORS[index % len(_COLORS)], "symbol": _SYMBOLS[index % len(_SYMBOLS)]}
    return {
        "type": "scatter", "mode": "markers", "name": plain_label(item.name, 60, 1),
        "x": _numbers(x), "y": _numbers(y), "hovertemplate": hover, "marker": style | marker,
    }  # fmt: skip


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Five significant digits: more cannot be seen, and would be most of the file."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title, "standoff": 8}, "automargin": True, **more}


def _log_axis(title: str, values: Sequence[float], **more: Any) -> dict[str, Any]:
    """Few round ticks, with whole numbers; Plotly's own digits between decades cannot be read."""
    low, high = math.log10(min(values)), math.log10(max(values))
    span = high - low
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if span < 1 else (1, 2, 5) if span < 3 else (1,)
    ticks = [
        step * 10.0**decade
        for decade in range(math.floor(low) - 1, math.ceil(high) + 1)
        for step in steps
    ]
    return _axis(
        title, type="log", tickmode="array", tickvals=ticks,
        ticktext=[f"{tick:,.12g}" for tick in ticks], range=[low - 0.02, high + 0.02], **more,
    )  # fmt: skip


def _positive(data: Sequence[Mapping[str, Any]], axis: str) -> list[float]:
    return [value for trace in data for value in trace[axis] if value is not None and value > 0]


# -- distributions ------------------------------------------------------------------------


def _distribution(report: ComparisonReport, metric: Metric) -> Chart | None:
    name, short = metric.name, metric.label
    data = []
    for index, item in enumerate(report.measured):
        values = np.concatenate([run.sample(f"{name}.mean").values for run in item.runs])
        values = values[values > 0]
        if len(values) == 0:
            continue
        # Half of the quantiles are for the upper tail, which is what people look for.
        count = min(_QUANTILES, 2 * len(values)) // 2
        ranks = np.concatenate([np.linspace(0, 0.9, count), 1 - np.geomspace(0.1, 1e-4, count)])
        ranks = np.unique(np.clip(np.append(ranks, 1.0), 0, 1))
        hover = "%{y:.2f} % of requests within %{x:,.4g} " + metric.unit
        data.append(_curve(index, item, np.quantile(values, ranks), 100 * ranks, hover))
    if not data:
        return None
    limit = report.goodput.limits.get(name) if report.goodput else None
    return Chart(
        key=f"cdf-{name}",
        title=f"{short}: distribution over requests",
        caption=f"Share of requests with at most this {metric.words}; "
        "further left is better."
        + (f" The dotted line is the limit, {limit:g} ms." if limit else ""),
        data=data,
        layout={
            "xaxis": _log_axis(f"{short}, {metric.unit} (log)", _positive(data, "x")),
            "yaxis": _axis("requests, %", range=[0, 101]),
            "shapes": _line_at(limit),
        },
    )


def _line_at(x: float | None) -> list[dict[str, Any]]:
    if x is None:
        return []
    return [
        {
            "type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1,
            "line": {"color": _GREY, "dash": "dot", "width": 1.5},
        }
    ]  # fmt: skip


# -- over time ----------------------------------------------------------------------------


def _over_time(report: ComparisonReport, metric: Metric) -> Chart | None:
    """A metric by the time at which requests were due; below it how many were due."""
    name, short, unit = metric.name, metric.label, metric.unit
    data: list[dict[str, Any]] = []
    binned = False
    for index, item in enumerate(report.measured):
        sample = item.metrics.sample(f"{name}.mean")
        if len(sample.values) == 0:
            continue
        seconds = sample.time_ms / 1000
        if len(seconds) <= _MOST_POINTS:
            hover = f"due at %{{x:,.1f}} s: {short} %{{y:,.4g}} {unit}"
            data.append(_marks(index, item, seconds, sample.values, hover, size=6, opacity=0.75))
            continue
        binned = True
        middles, groups = _bins(seconds, sample.values)
        for quantile, width, label in ((0.5, 2, "median"), (0.95, 1, "p95")):
            values = [np.quantile(g, quantile) if len(g) else math.nan for g in groups]
            curve = _curve(index, item, middles, values, f"{label} %{{y:,.4g}} {unit}")
            curve["name"] += f" {label}"
            curve["line"] |= {"width": width, "dash": "solid" if quantile == 0.5 else "dot"}
            data.append(curve | {"legendgroup": item.name, "showlegend": quantile == 0.5})
    if not data:
        return None
    caption = (
        f"Solid: median, dotted: 95th percentile of the requests due in each of {_BINS} intervals. "
        if binned
        else "One mark per request, at its scheduled time. "
    )
    return Chart(
        key=f"time-{name}",
        title=f"{short} over time, with the schedule",
        caption=caption + "Below: requests due per second. First run of each configuration.",
        data=[*data, _schedule(report.measured[0].metrics)],
        layout={
            "xaxis": _axis("time since the start of the run, s", anchor="y2"),
            "yaxis": _log_axis(f"{short}, {unit} (log)", _positive(data, "y"), domain=[0.3, 1]),
            "yaxis2": _axis("req/s", domain=[0, 0.2], rangemode="tozero", nticks=3),
            "hovermode": "x unified" if binned else "closest",
        },
        height=460,
    )


def _bins(seconds: FloatArray, values: FloatArray) -> tuple[FloatArray, list[FloatArray]]:
    edges = np.linspace(0, max(float(seconds.max()), 1e-3), _BINS + 1)
    where = np.clip(np.digitize(seconds, edges) - 1, 0, _BINS - 1)
    return (edges[:-1] + edges[1:]) / 2, [values[where == bin_] for bin_ in range(_BINS)]


def _schedule(metrics: Metrics) -> dict[str, Any]:
    due = metrics.requests.numbers("scheduled_ms") / 1000
    bins = min(_BINS, max(10, len(due) // 4))
    counts, edges = np.histogram(due, bins=bins, range=(0, max(float(due.max()), 1e-3)))
    rates = counts / np.diff(edges)
    return {
        "type": "scatter", "mode": "lines", "name": "schedule", "yaxis": "y2",
        "x": _numbers(edges), "y": _numbers([*rates, rates[-1]]),
        "line": {"color": _GREY, "shape": "hv", "width": 1}, "fill": "tozeroy",
        "fillcolor": "rgba(141,143,152,0.3)", "showlegend": False,
        "hovertemplate": "%{y:.3g} requests/s due",
    }  # fmt: skip


def _hit_rate(report: ComparisonReport) -> Chart | None:
    data = []
    for index, item in enumerate(report.measured):
        sample = item.metrics.sample("kv_hit_rate")
        if len(sample.values) == 0 or sample.weights is None:
            continue
        seconds = sample.time_ms / 1000
        bins = min(_BINS // 2, max(5, len(seconds) // 8))
        edges = np.linspace(0, max(float(seconds.max()), 1e-3), bins + 1)
        cached, _ = np.histogram(seconds, bins=edges, weights=sample.values)
        prompt, _ = np.histogram(seconds, bins=edges, weights=sample.weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = 100 * cached / prompt
        data.append(_curve(index, item, (edges[:-1] + edges[1:]) / 2, share, "%{y:.1f} %"))
    if not data:
        return None
    return Chart(
        key="hit-rate",
        title="KV hit rate over time",
        caption="Prompt tokens found in a KV cache, of all prompt tokens of the requests due in "
        "each interval, as the engines counted; higher is better.",
        data=data,
        layout={
            "xaxis": _axis("time since the start of the run, s"),
            "yaxis": _axis("KV hit rate, %", rangemode="tozero"),
            "hovermode": "x unified",
        },
        height=340,
    )


# -- trade-offs ---------------------------------------------------------------------------


def _pareto(report: ComparisonReport) -> Chart | None:
    data = []
    for index, item in enumerate(report.measured):
        per_user = item.value("output_token_throughput_per_user.mean")
        per_gpu = item.value("output_token_throughput_per_gpu")
        if not (math.isfinite(per_user) and math.isfinite(per_gpu)):
            continue
        hover = "%{x:,.4g} tok/s/user, %{y:,.4g} tok/s/GPU"
        data.append(_marks(index, item, [per_user], [per_gpu], hover, size=14))
    if len(data) < 2:
        return None
    return Chart(
        key="pareto",
        title="Speed per user against throughput per GPU",
        caption="Mean output tokens/s per user against output tokens/s per GPU; further up and to "
        "the right is better. Under a fixed schedule all configurations serve the same load, and "
        "only the speed differs.",
        data=data,
        layout={
            "xaxis": _axis("output tokens/s per user", range=_around(data, "x")),
            "yaxis": _axis("output tokens/s per GPU", range=_around(data, "y")),
        },
    )


def _around(data: Sequence[Mapping[str, Any]], axis: str) -> list[float]:
    """A range with room, so that configurations that hardly differ lie close together."""
    values = _positive(data, axis)
    return [0.75 * min(values), 1.15 * max(values)] if values else [0, 1]


def _goodput_curve(report: ComparisonReport) -> Chart | None:
    """Goodput if every limit were a factor stricter or looser."""
    goodput = report.goodput
    if goodput is None:
        return None
    limits = goodput.limits
    data = []
    for index, item in enumerate(report.measured):
        metrics = item.metrics
        needed = _factors_needed(metrics, limits)
        if len(needed) == 0 or not metrics.duration_seconds > 0:
            continue
        met = np.searchsorted(np.sort(needed), _SLO_FACTORS, side="right")
        rate = met / metrics.duration_seconds
        data.append(_curve(index, item, _SLO_FACTORS, rate, "%{y:.3g} requests/s"))
    if not data:
        return None
    objectives = ", ".join(f"{METRICS[name].words} {limit:g} ms" for name, limit in limits.items())
    return Chart(
        key="goodput",
        title="Goodput against the SLOs",
        caption=f"Requests per second that meet every SLO, with all limits multiplied by a factor; "
        f"1 is the benchmark's SLO ({objectives}).",
        data=data,
        layout={
            "xaxis": _axis(
                "factor on every limit (log)", type="log", tickvals=[0.25, 0.5, 1, 2, 4]
            ),
            "yaxis": _axis("goodput, requests/s", rangemode="tozero"),
            "shapes": _line_at(1.0),
            "hovermode": "x unified",
        },
    )


def _factors_needed(metrics: Metrics, limits: Mapping[str, float]) -> FloatArray:
    """For each successful request the factor at which it meets every limit."""
    found = np.zeros(len(metrics.columns))
    for name, limit in limits.items():
        # A limit on what a request does not have holds.
        found = np.fmax(found, metrics.columns.of(name) / limit)
    return found


# -- claims and attribution -----------------------------------------------------------------


def _effect_charts(report: ComparisonReport) -> list[Chart]:
    """Intervals of the changes against what is claimed; points and percent apart."""
    found = []
    for is_share, unit in ((False, "%"), (True, "points")):
        verdicts = [
            (verdict, verdict.interval)
            for verdict in report.verdicts
            if verdict.is_share == is_share and verdict.interval is not None
        ]
        if not verdicts:
            continue
        # The first claim on top.
        verdicts = verdicts[::-1]
        data: list[dict[str, Any]] = []
        for outcome, color in OUTCOME_COLORS.items():
            rows = [
                (index, *interval)
                for index, (verdict, interval) in enumerate(verdicts)
                if verdict.outcome == outcome
            ]
            if rows:
                data.append(_intervals(rows, outcome, color))
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": "claimed threshold",
                "x": _numbers(100 * x for verdict, _ in verdicts for x in verdict.bound.limits),
                "y": [y for y, (verdict, _) in enumerate(verdicts) for _ in verdict.bound.limits],
                "marker": {"symbol": "line-ns", "size": 22, "color": _GREY,
                           "line": {"width": 3, "color": _GREY}},
                "hovertemplate": f"claimed: %{{x:+.4g}} {unit}",
            }
        )  # fmt: skip
        found.append(
            Chart(
                key=f"effects-{'points' if is_share else 'percent'}",
                title="Claims: measured change with its interval, against the threshold",
                caption="A claim holds if the whole interval is beyond the gray mark in the "
                "claimed direction, or between the two marks. These intervals decided the "
                "verdicts.",
                data=data,
                layout={
                    "xaxis": _axis(f"change, {unit}", zeroline=True),
                    "yaxis": {
                        "tickvals": list(range(len(verdicts))),
                        "ticktext": [plain_label(found.claim.name) for found, _ in verdicts],
                        "automargin": True,
                        "range": [-0.6, len(verdicts) - 0.4],
                        "showgrid": False,
                        "zeroline": False,
                    },
                },
                height=130 + 52 * len(verdicts),
            )
        )
    return found


def _intervals(
    rows: Sequence[tuple[int, float, float, float]], outcome: str, color: str
) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": outcome,
        "x": _numbers(100 * change for _, change, _, _ in rows),
        "y": [index for index, *_ in rows],
        "error_x": {
            "type": "data", "symmetric": False, "color": color, "thickness": 2, "width": 6,
            "array": _numbers(100 * (high - change) for _, change, _, high in rows),
            "arrayminus": _numbers(100 * (change - low) for _, change, low, _ in rows),
        },
        "marker": {"color": color, "size": 10},
        "customdata": [_numbers((100 * low, 100 * high)) for _, _, low, high in rows],
        "hovertemplate": "%{x:+.4g}, interval %{customdata[0]:+.4g} to %{customdata[1]:+.4g}",
    }  # fmt: skip


def plain_label(text: str, width: int = 28, lines: int = 3) -> str:
    """A label of an axis, broken into lines; what Plotly would read as markup is text in it."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    found = [""]
    for word in plain.split():
        while len(word) > width:
            found.append(word[:width])
            word = word[width:]
        if len(found[-1]) + len(word) >= width:
            found.append("")
        found[-1] = f"{found[-1]} {word}".strip()
    kept = [line for line in found if line]
    return "<br>".join(kept[:lines]) + (" …" if len(kept) > lines else "")


def _attribution(report: ComparisonReport) -> Chart | None:
    study = report.attribution
    if not study or not study.rows:
        return None
    data = []
    for index, (key, label) in enumerate(ATTRIBUTION_VIEWS.items()):
        rows = [(row.feature, found) for row in study.rows if (found := getattr(row, key))]
        ends = [
            (found.value, number(found.low, found.value), number(found.high, found.value))
            for _, found in rows
        ]
        data.append(
            {
                "type": "bar", "name": label,
                "x": [plain_label(feature, 16) for feature, _ in rows],
                "y": _numbers(100 * value for value, _, _ in ends),
                "error_y": {
                    "type": "data", "symmetric": False, "thickness": 1.5, "width": 4,
                    "color": _GREY,
                    "array": _numbers(100 * (high - value) for value, _, high in ends),
                    "arrayminus": _numbers(100 * (value - low) for value, low, _ in ends),
                },
                "marker": {"color": _COLORS[index]},
                "hovertemplate": "%{y:+.1f} %",
            }
        )  # fmt: skip
    definition = find_metric(study.metric.partition(".")[0])
    better = definition.better if definition else "higher"
    return Chart(
        key="attribution",
        title=f"What each feature contributes: {study.metric}",
        caption=f"{study.treatment} against {study.baseline}, in % of the baseline's value, "
        f"simulated, 95 % intervals; {better} is better.",
        data=data,
        layout={
            "barmode": "group",
            "yaxis": _axis(f"change of {study.metric}, %", zeroline=True),
            "xaxis": {"automargin": True},
        },
    )
