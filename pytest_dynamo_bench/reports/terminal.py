"""What a terminal shows when everything has been measured: tables and verdicts."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from pytest_dynamo_bench.benchmark import PublishedResults
from pytest_dynamo_bench.plain_text import printable
from pytest_dynamo_bench.reports.attribution import shares_table
from pytest_dynamo_bench.reports.model import (
    Column,
    ComparisonReport,
)
from pytest_dynamo_bench.reports.state import state_of, tally_in_words
from pytest_dynamo_bench.reports.stored_types import Regression, Verdict
from pytest_dynamo_bench.verdicts import Effect

if TYPE_CHECKING:
    from pytest_dynamo_bench.attribution_runs import AttributionStudy

_LONGEST_ERROR, _LONGEST_SENTENCE = 1500, 3000
# Of a published table, what fits into 80 columns side by side.
_PUBLISHED_COLUMNS = 6
_STATE_MARKS = {
    "failed": "bold red", "incomplete": "bold magenta", "undecided": "bold yellow",
    "passed": "bold green",
}  # fmt: skip
_MARKS = {
    "holds": "green", "provisional": "cyan", "fails": "red", "inconclusive": "yellow",
    "invalid": "magenta",
}  # fmt: skip


def render_comparison(report: ComparisonReport, width: int, color: bool) -> str:
    """The tables of a comparison, its verdicts and regressions, as text for a terminal."""
    console = _console(width, color)
    title = Text(f"{report.name} on {report.where}", style="bold")
    console.print(title.append(f": {printable(report.question)}", style="not bold"))
    console.print(Text(tally_in_words(report), style=_STATE_MARKS.get(state_of(report), "")))
    console.print(Text(printable(report.traffic_in_words), style="dim"))
    if report.scaling_in_words:
        console.print(Text(printable(report.scaling_in_words), style="dim"))
    if report.measured:
        console.print(_values(report, console.width))
        if any(map(report.best, report.columns)):
            console.print(Text("* best of the configurations", style="dim"))
        changes = _changes(report, console.width)
        if changes is not None:
            assert report.baseline is not None
            text = f"change from {report.baseline.name}, with 95 % intervals"
            console.print(Text(text, style="dim"))
            console.print(changes)
        if any(item.features_at_work for item in report.measured):
            console.print(Text("features at work", style="dim"))
            console.print(_features(report))
    if report.entry.published:
        console.print(_published(report.entry.published))
    for item in report.without_result:
        lines = Text(f"no result of {item.name}: ", style="red")
        text = printable(item.error or item.problem, _LONGEST_ERROR)
        console.print(lines.append(text, style="not red"))
    for name, test in report.unexplained.items():
        lines = Text(f"{test.outcome} {printable(name)}: ", style="red")
        console.print(lines.append(printable(test.message, _LONGEST_ERROR), style="not red"))
    console.print(_verdicts(report.verdicts))
    if report.regressions:
        console.print(_regressions(report.regressions))
    if report.entry.how_judged:
        console.print(Text(report.entry.how_judged, style="dim"))
    if report.repeats > 1:
        console.print(Text(f"{report.repeats} runs of each; tables show their means", style="dim"))
    listed = Table.grid(padding=(0, 1))
    for limit in report.limitations:
        listed.add_row(Text("-", style="dim"), Text(printable(limit), style="dim"))
    console.print(listed)
    return _written(console)


def render_attribution(study: AttributionStudy, width: int, color: bool) -> str:
    """What each feature brings, as text for a terminal."""
    console = _console(width, color)
    title = Text(f"{study.benchmark}, attribution of {study.metric}", style="bold")
    text = f": {study.treatment} against {study.baseline}, % of the baseline's, simulated"
    console.print(title.append(text, style="not bold"))
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


def _values(report: ComparisonReport, width: int) -> Table:
    """A row per configuration, a column per metric, as many as there is room for.

    In place of the first metric of what has no valid result is what it has instead.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("configuration", overflow="fold", min_width=len("configuration"))
    table.add_column("GPUs", justify="right")
    shown = [*report.measured, *report.without_result]
    rows: list[list[Text]] = [[] for _ in shown]
    room = width - len("configuration") - len("GPUs") - 2
    for column in report.terminal_columns:
        cells = []
        for item in report.measured:
            best = report.best(column) is item
            text = column.text(item.value(column.metric))
            cells.append(Text(f"{text}*" if best else text, style="bold" if best else ""))
        for index, item in enumerate(report.without_result, len(report.measured)):
            cells.append(Text("-") if rows[index] else Text(item.state, style="red"))
        title = f"{column.heading.short}\n{column.unit}"
        room -= max(map(len, (*title.splitlines(), *map(str, cells)))) + 2
        if room < 0:
            break
        table.add_column(title, justify="right", no_wrap=True)
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
    for item, row in zip(shown, rows, strict=True):
        table.add_row(printable(item.name), str(item.gpus), *row)
    return table


def _changes(report: ComparisonReport, width: int) -> Table | None:
    """Changes from the baseline with intervals, of as many metrics as there is room for."""
    others = [item for item in report.measured if item is not report.baseline]
    if not others:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("configuration", overflow="fold")
    room = width - max(len("configuration"), *(len(item.name) for item in others))
    shown: list[list[Text]] = []
    for column in report.changed_columns:
        cells = [_change(report.effect(item, column.metric), column) for item in others]
        needed = max([len(column.heading.title), *(cell.cell_len for cell in cells)]) + 2
        if needed > room:
            break
        room -= needed
        unit = "points" if column.definition.is_share else "%"
        table.add_column(f"{column.heading.title}\n{unit}", justify="right", no_wrap=True)
        shown.append(cells)
    for index, item in enumerate(others):
        table.add_row(printable(item.name), *(cells[index] for cells in shown))
    return table if shown else None


def _change(effect: Effect | None, column: Column) -> Text:
    if effect is None or not math.isfinite(effect.change):
        return Text("-")
    text = f"{100 * effect.change:+.1f}"
    if math.isfinite(effect.low) and math.isfinite(effect.high):
        text += f" [{100 * effect.low:+.1f}, {100 * effect.high:+.1f}]"
    if effect.low > 0 or effect.high < 0:
        better = (effect.high < 0) == (column.definition.better == "lower")
        return Text(text, style="green" if better else "red")
    return Text(text)


def _published(published: PublishedResults) -> Group:
    """What somebody else measured, under its source and hardware."""
    columns = published.columns
    text = f"published, not measured here: {published.source}; on {published.hardware}"
    if published.note:
        text += f"; {published.note}"
    tables = []
    for start in range(0, len(columns), _PUBLISHED_COLUMNS):
        shown = columns[start : start + _PUBLISHED_COLUMNS]
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("configuration", overflow="fold")
        for what in shown:
            table.add_column(Text(printable(what)), justify="right")
        for name, row in published.values.items():
            cells = [f"{row[what]:,g}" if what in row else "-" for what in shown]
            table.add_row(printable(name), *cells)
        tables.append(table)
    return Group(Text(printable(text), style="dim"), *tables)


def _regressions(found: Iterable[tuple[str, Regression]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column()
    marks = {"regression": "red", "improvement": "green", "unchanged": "green"}
    for configuration, item in found:
        text = Text(f"{printable(configuration)}\n", style="bold")
        text.append(printable(item.sentence), style="not bold")
        grid.add_row(Text(item.outcome, style=marks.get(item.outcome, "yellow")), text)
    return grid


def _features(report: ComparisonReport) -> Table:
    """What each feature did, configuration by configuration."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column()
    for item in report.measured:
        for index, (feature, text) in enumerate(item.features_at_work):
            grid.add_row("" if index else item.name, feature, Text(printable(text)))
    return grid


def _verdicts(verdicts: Iterable[Verdict]) -> Table:
    """A block per claim: outcome, claim, what was measured, what else differs."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column()
    for verdict in verdicts:
        text = Text(f"{printable(verdict.claim.name)}\n", style="bold")
        text.append(printable(verdict.sentence, _LONGEST_SENTENCE), style="not bold")
        if verdict.confounds:
            differs = printable("; ".join(verdict.confounds))
            text.append(f"\nwhat differs: {differs}", style="dim not bold")
        grid.add_row(Text(verdict.outcome, style=_MARKS.get(verdict.outcome, "")), text)
    return grid
