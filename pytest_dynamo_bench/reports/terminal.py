"""What a terminal shows: progress while it runs, a table and the verdicts at the end."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_dynamo_bench.benchmark import Benchmark
from pytest_dynamo_bench.metric_names import METRICS, MetricDefinition, parse_metric
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.reports.attribution import shares_table
from pytest_dynamo_bench.traffic import in_words
from pytest_dynamo_bench.verdicts import Verdict
from pytest_dynamo_bench.verdicts.regression import Regression

if TYPE_CHECKING:
    from pytest_dynamo_bench.attribution_runs import AttributionStudy
    from pytest_dynamo_bench.comparison import Comparison

_QUIET_SECONDS = 10.0
# The display shares a process with the load generator: each refresh delays what is measured.
_REFRESHES_PER_SECOND = 2
_COLUMNS = (
    ("TTFT\nmean", "time_to_first_token.mean"),
    ("TTFT\np50", "time_to_first_token.p50"),
    ("TTFT\np99", "time_to_first_token.p99"),
    ("ITL\nmean", "inter_token_latency.mean"),
    ("ITL\np99", "inter_token_latency.p99"),
    ("good-\nput", "goodput"),
    ("KV\nhits", "kv_hit_rate"),
)
_SHORT_UNITS = {"requests/s": "req/s", "tokens/s": "tok/s"}
_MARKS = {"holds": "green", "fails": "red", "inconclusive": "yellow", "invalid": "magenta"}


def render_comparison(comparison: Comparison, width: int, color: bool) -> str:
    """The table of a comparison, its verdicts and regressions, as text for a terminal."""
    console = _console(width, color)
    benchmark, measured = comparison.benchmark, comparison.measured
    simulated = any(metrics.run.simulated for metrics in measured.values())
    where = comparison.target.name + (", simulated time" if simulated else "")
    title = Text(f"{benchmark.name} on {where}", style="bold")
    console.print(title.append(f": {benchmark.question}", style="not bold"))
    console.print(Text(in_words(comparison.traffic), style="dim"))
    console.print(_table(benchmark, measured))
    console.print(_verdicts(comparison.verdicts))
    if comparison.regressions:
        console.print(_regressions(comparison.regressions))
    if comparison.how_judged:
        console.print(Text(comparison.how_judged, style="dim"))
    repeats = max(len(comparison.runs(name)) for name in measured)
    if repeats > 1:
        console.print(Text(f"{repeats} runs of each; the table shows the first", style="dim"))
    limits = {
        limit: None
        for name in measured
        for limit in comparison.target.limitations(benchmark, benchmark.configuration(name))
    }
    listed = Table.grid(padding=(0, 1))
    for limit in limits:
        listed.add_row(Text("-", style="dim"), Text(limit, style="dim"))
    console.print(listed)
    return _written(console)


def render_attribution(study: AttributionStudy, width: int, color: bool) -> str:
    """What each feature brings, as text for a terminal."""
    console = _console(width, color)
    title = Text(f"{study.benchmark}, attribution of {study.metric}", style="bold")
    told = f": {study.treatment} against {study.baseline}, % of the baseline's, simulated"
    console.print(title.append(told, style="not bold"))
    console.print(shares_table(study))
    return _written(console)


def _console(width: int, color: bool) -> Console:
    return Console(
        file=io.StringIO(), width=max(width, 60), force_terminal=color, no_color=not color,
        color_system="standard" if color else None, highlight=False, emoji=False,
    )  # fmt: skip


def _written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).rstrip()


def _regressions(found: Mapping[tuple[str, str], Regression]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column()
    marks = {"regression": "red", "improvement": "green", "unchanged": "green"}
    for (configuration, _), regression in found.items():
        outcome = Text(regression.outcome, style=marks.get(regression.outcome, "yellow"))
        told = Text(f"{configuration}\n", style="bold")
        grid.add_row(outcome, told.append(regression.sentence, style="not bold"))
    return grid


def _verdicts(verdicts: Iterable[Verdict]) -> Table:
    """A block per claim: outcome, claim, what was measured, what else differs."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column()
    for verdict in verdicts:
        told = Text(f"{verdict.claim.name}\n", style="bold")
        told.append(verdict.sentence, style="not bold")
        if verdict.confounds:
            told.append(f"\nwhat differs: {'; '.join(verdict.confounds)}", style="dim not bold")
        grid.add_row(Text(verdict.outcome, style=_MARKS[verdict.outcome]), told)
    return grid


def _table(benchmark: Benchmark, measured: Mapping[str, Metrics]) -> Table:
    rows = [item for item in benchmark.configurations if item.name in measured]
    shown = [item for item in _COLUMNS if item[1] != "goodput" or benchmark.goodput is not None]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("configuration")
    table.add_column("GPUs", justify="right")
    cells: list[list[Text]] = []
    for title, metric in shown:
        definition = METRICS[parse_metric(metric)[0]]
        table.add_column(f"{title}\n{_unit(definition)}", justify="right", no_wrap=True)
        values = [measured[row.name].value(metric) for row in rows]
        best = _best(values, metric)
        cells.append(
            [
                Text(_format(value, definition), style="bold" if index == best else "")
                for index, value in enumerate(values)
            ]
        )
    for index, row in enumerate(rows):
        table.add_row(row.name, str(row.gpus), *(column[index] for column in cells))
    return table


def _unit(definition: MetricDefinition) -> str:
    return "%" if definition.is_share else _SHORT_UNITS.get(definition.unit, definition.unit)


def _best(values: list[float], metric: str) -> int | None:
    finite = [(value, index) for index, value in enumerate(values) if math.isfinite(value)]
    if len(finite) < 2:
        return None
    better = METRICS[parse_metric(metric)[0]].better
    return (min(finite) if better == "lower" else max(finite))[1]


def _format(value: float, definition: MetricDefinition) -> str:
    if not math.isfinite(value):
        return "-"
    if definition.is_share:
        return f"{value * 100:.1f}"
    return f"{value:,.{1 if definition.unit == 'ms' else 2}f}" if value < 100 else f"{value:,.0f}"
