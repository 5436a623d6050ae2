"""``report`` and ``schema``: the reports of a session made again, and what its files hold."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.cli import common
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.reports.aiperf import write_aiperf_results
from pytest_dynamo_bench.reports.model import SessionReport
from pytest_dynamo_bench.reports.stored_types import FILES, schema
from pytest_dynamo_bench.reports.terminal import render_comparison
from pytest_dynamo_bench.reports.write import write_reports


def add_arguments(commands: Any) -> None:
    """Add the commands to the parser."""
    parser = commands.add_parser(
        "report",
        help="write the reports of stored results again",
        description="Prints the tables and verdicts of each results directory, and writes "
        "report.html and report.md to it.",
    )
    parser.add_argument(
        "directories",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="results directory, such as reports/<time>",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="write to this directory instead; with several DIR, to one subdirectory for each",
    )  # fmt: skip
    parser.add_argument(
        "--aiperf", action="store_true",
        help="also write every run in AIPerf's format: profile_export.jsonl and "
        "profile_export_aiperf.json",
    )  # fmt: skip
    common.add_allow_missing(parser)
    parser.set_defaults(run=run)
    parser = commands.add_parser(
        "schema",
        help="the JSON Schema of a file of results",
        description="Prints what a program can rely on that reads the file.",
    )
    parser.add_argument("file", choices=FILES, metavar="FILE", help=", ".join(FILES))
    parser.set_defaults(run=run_schema)


def run_schema(options: argparse.Namespace) -> None:
    """Print it."""
    json.dump(schema(options.file), sys.stdout, indent=2)
    sys.stdout.write("\n")


def run(options: argparse.Namespace) -> None:
    """Load, print, write.

    Raises:
        ResultsError: no directory has results.
        ReportError: a directory cannot be written to.
        IncompleteError: some results are missing, damaged or invalid.
    """
    console = common.output_console()
    several = len(options.directories) > 1
    sessions, missing = common.load_sessions(options.directories)
    if several and len({session.directory.resolve().name for session in sessions}) < len(sessions):
        raise BenchmarkError("two directories have the same name; report them separately")
    for session in sessions:
        for report in session.comparisons:
            text = render_comparison(report, console.width, console.is_terminal)
            console.out(text, highlight=False)
            console.print()
        output = options.output or session.directory
        if options.output and several:
            output = options.output / session.directory.resolve().name
        environment = {k: v for k, v in os.environ.items() if k == "GITHUB_STEP_SUMMARY"}
        files = write_reports(session, environment, output)
        if options.aiperf:
            files += _write_aiperf(session, output)
        common.say_written(console, files)
        missing += session.missing
    common.end_incomplete(missing, options, "reported")


def _write_aiperf(session: SessionReport, output: Path) -> list[Path]:
    """Every run in AIPerf's form: ``<benchmark>/<configuration>/aiperf[/repeat-2]/…``."""
    written: list[Path] = []
    for report in session.comparisons:
        for item in report.measured:
            for repeat, metrics in enumerate(item.runs):
                directory = output / report.name / item.name / "aiperf"
                if repeat:
                    directory /= f"repeat-{repeat + 1}"
                written += write_aiperf_results(directory, metrics.run, report.goodput)
    return written
