"""``compare`` and ``history``: compare stored results without measuring anything."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pytest_dynamo_bench.cli import common
from pytest_dynamo_bench.errors import (
    BenchmarkError,
    IncompleteError,
    RegressionError,
    ResultsError,
)
from pytest_dynamo_bench.files import write_whole
from pytest_dynamo_bench.metric_definitions import metric_of
from pytest_dynamo_bench.plain_text import printable
from pytest_dynamo_bench.reports.differences import (
    Difference,
    History,
    Point,
    compare_sessions,
    histories,
)
from pytest_dynamo_bench.reports.history import render_history
from pytest_dynamo_bench.reports.model import load_session
from pytest_dynamo_bench.reports.store import StoredResults
from pytest_dynamo_bench.verdicts.regression import (
    DEFAULT_TOLERANCES,
    Regression,
    Tolerance,
    parse_tolerances,
)
from pytest_dynamo_bench.verdicts.verdict import quantity

_MARKS = {"regression": "red", "improvement": "green", "unchanged": "green"}


def add_arguments(commands: Any) -> None:
    """Add the commands to the parser."""
    parser = commands.add_parser(
        "compare",
        help="compare two results directories, metric by metric",
        description="Compares every configuration as the regression gate does, with B as the "
        "baseline. Lists what cannot be compared and then exits with 1.",
    )
    parser.add_argument("new", type=Path, metavar="A", help="new results")
    parser.add_argument("old", type=Path, metavar="B", help="baseline results")
    _add_tolerance(parser)
    parser.add_argument(
        "--check", action="store_true",
        help="exit with 1 if a metric got worse by more than its tolerance, or is undecided",
    )  # fmt: skip
    parser.add_argument(
        "--inconclusive", choices=("fail", "pass"), default="fail",
        help="how --check treats undecided comparisons (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--any", action="store_true",
        help="compare even if configuration, traffic, versions or machine differ",
    )  # fmt: skip
    common.add_allow_missing(parser)
    parser.set_defaults(run=run_compare)
    parser = commands.add_parser(
        "history",
        help="show metrics over many results directories",
        description="Sorts results by the time they were measured and shows the regression gate's "
        "verdict on each.",
    )
    parser.add_argument(
        "directories", type=Path, nargs="+", metavar="DIR", help="results directory"
    )
    _add_tolerance(parser)
    parser.add_argument(
        "--against", choices=("first", "previous"), default="first",
        help="which results to compare with (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FILE.html", help="also write an HTML page with figures"
    )
    common.add_allow_missing(parser)
    parser.set_defaults(run=run_history)


def _add_tolerance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tolerance", action="append", default=[], metavar="METRIC:SHARE",
        help="how much worse a metric may get, such as ttft:5%% or itl.p99:0.1; separate several "
        "with commas (default: ttft:5%%,itl:5%%,throughput:5%%)",
    )  # fmt: skip


def _tolerances(options: argparse.Namespace) -> tuple[Tolerance, ...]:
    try:
        return parse_tolerances(options.tolerance) if options.tolerance else DEFAULT_TOLERANCES
    except ValueError as error:
        raise BenchmarkError(f"--tolerance: {error}") from None


def run_compare(options: argparse.Namespace) -> None:
    """Compare two directories.

    Raises:
        ResultsError: they cannot be read, or are of different targets.
        IncompleteError: some of it could not be compared.
        RegressionError: with ``--check``, something got worse or is undecided.
    """
    new, old = (load_session(StoredResults(path)) for path in (options.new, options.old))
    found = compare_sessions(new, old, _tolerances(options), allow_mismatches=options.any)
    console = common.output_console()
    console.print(Text(f"A {new.directory}, {new.started_at}"), soft_wrap=True)
    console.print(Text(f"B {old.directory}, {old.started_at}"), soft_wrap=True)
    for difference in found:
        _show(console, difference)
    judged = [regression for difference in found for regression in difference.regressions]
    if options.check:
        _check([r.outcome for r in judged], undecided_fails=options.inconclusive == "fail")
    if not judged:
        raise IncompleteError(
            f"nothing was compared: {new.directory} and {old.directory} have no usable results of "
            "the same configuration"
        )
    missing = [f"{d.benchmark}: {d.configuration}: {text}" for d in found for text in d.missing]
    common.end_incomplete(missing, options, "compared")


def _show(console: Console, difference: Difference) -> None:
    console.print()
    title = f"{difference.benchmark}: {difference.configuration}"
    console.print(Text(title, style="bold"), soft_wrap=True)
    for text in difference.mismatches:
        console.print(Text(f"differs: {printable(text, 300)}", style="yellow"))
    for text in difference.missing:
        console.print(Text(f"not compared: {printable(text, 1000)}", style="yellow"))
    if difference.regressions:
        table = common.plain_table("metric", "A", "B", "change, %", "interval", "verdict")
        for regression in difference.regressions:
            table.add_row(*_cells(regression))
        console.print(table)


def _check(outcomes: Sequence[str], *, undecided_fails: bool) -> None:
    counts = Counter(outcomes)
    if counts["regression"]:
        raise RegressionError(
            f"{counts['regression']} metrics got worse by more than the tolerance"
        )
    if counts["inconclusive"] and undecided_fails:
        raise RegressionError(
            f"{counts['inconclusive']} of {len(outcomes)} comparisons are undecided; measure more "
            "requests or repeats, or accept them with --inconclusive=pass"
        )


def _cells(regression: Regression) -> list[Text]:
    effect = regression.effect
    metric = regression.tolerance.metric
    unit = metric_of(metric).unit
    interval = "-"
    if math.isfinite(effect.low) and math.isfinite(effect.high):
        interval = f"{100 * effect.low:+.1f} to {100 * effect.high:+.1f}"
    return [
        Text(metric),
        Text(quantity(effect.treatment_value, unit)),
        Text(quantity(effect.baseline_value, unit)),
        Text(f"{100 * effect.change:+.1f}" if math.isfinite(effect.change) else "-"),
        Text(interval),
        Text(regression.outcome, style=_MARKS.get(regression.outcome, "yellow")),
    ]


def run_history(options: argparse.Namespace) -> None:
    """Show metrics over time.

    Raises:
        ResultsError: none of the directories can be read.
        IncompleteError: some of it could not be judged.
    """
    if options.output is not None and options.output.suffix != ".html":
        raise ResultsError(f"--output: {options.output}: the file name must end in .html")
    sessions, missing = common.load_sessions(options.directories)
    found = histories(sessions, _tolerances(options), against_first=options.against == "first")
    missing += [text for session in sessions for text in session.missing]
    missing += [text for history in found for text in history.missing]
    found = [history for history in found if history.points]
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        page = render_history(found, options.against, missing)
        write_whole(options.output, page.encode("utf-8", errors="replace"))
    console = common.output_console()
    for history in found:
        title = f"{history.benchmark}: {history.configuration} on {history.target}"
        console.print(Text(f"{title}, {history.tolerance.metric}", style="bold"), soft_wrap=True)
        table = common.plain_table("measured", "results", "value", "change, %", "interval", "gate",
                                   left=2)  # fmt: skip
        for point in history.points:
            table.add_row(*_row(history, point))
        console.print(table)
        console.print()
    if options.output is not None:
        common.say_written(console, [options.output])
    if not any(point.regression for history in found for point in history.points):
        raise IncompleteError(
            "nothing was compared, because no configuration has two comparable results: "
            + "; ".join(dict.fromkeys(missing))
        )
    common.end_incomplete(missing, options, "compared")


def _row(history: History, point: Point) -> list[Text]:
    unit = metric_of(history.tolerance.metric).unit
    first = [Text(point.started_at), Text(point.directory.name), Text(quantity(point.value, unit))]
    if point.regression is not None:
        return [*first, *_cells(point.regression)[3:]]
    state = f"not comparable: {point.mismatches[0]}" if point.mismatches else "reference"
    return [*first, Text(""), Text(""), Text(printable(state, 100), style="dim")]
