"""``check-client``: the highest load at which the load generator is accurate on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from rich.text import Text

from pytest_dynamo_bench.cli import common
from pytest_dynamo_bench.load.check import STEPS, CheckResult, Limits, Step, check_client


def add_arguments(commands: Any) -> None:
    """Add the command to the parser."""
    limits = Limits()
    parser = commands.add_parser(
        "check-client",
        help="find the highest load at which the load generator is accurate on this machine",
        description="Increases the load on a local server with known timing and compares the load "
        "generator's records with the server's log. The server needs as much CPU as the load "
        "generator. Takes about half a minute; run nothing else meanwhile. A step is trusted if "
        f"the errors (p99) of TTFT and of gaps are at most {limits.ttft_error_p99_ms:g} ms, "
        f"requests are at most {limits.schedule_delay_p99_ms:g} ms late (p99), and no process uses "
        f"more than {limits.cpu_share:.0%} of a core.",
    )
    parser.add_argument(
        "--processes", type=common.positive, default=1, metavar="N",
        help="load generator processes, as in --dynamo-load-processes (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run all steps and print the results.

    Raises:
        LoadError: the reference server or the load generator died.
    """
    with common.progress("check-client") as tell:

        def show(done: int, step: Step) -> None:
            tell(done, len(STEPS), step.name)

        result = asyncio.run(check_client(options.processes, tell=show))
    if options.json:
        json.dump(result.plain(), sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    console = common.output_console()
    console.print(_table(result))
    for step in result.steps:
        if not step.trusted:
            console.print(Text(f"not trusted, {step.step.name}: {'; '.join(step.reasons)}"))
    for line in _conclusions(result):
        console.print(Text(line))


def _table(result: CheckResult) -> Any:
    table = common.plain_table(
        "load", "chunks/s", "TTFT error, mean / p99", "gap error, p99", "late, p50 / p99",
        "CPU", "trusted",
    )  # fmt: skip
    for step in result.steps:
        late = (
            f"{step.schedule_delay_p50_ms:.2f} / {step.schedule_delay_p99_ms:.2f} ms"
            if step.step.rate
            else ""
        )
        table.add_row(
            step.step.name,
            f"{step.chunks_per_second:,.0f}",
            f"{step.ttft_error_mean_ms:.2f} / {step.ttft_error_p99_ms:.2f} ms",
            f"{step.gap_error_p99_ms:.2f} ms",
            late,
            f"{step.cpu_share:.0%}",
            "yes" if step.trusted else "no",
        )
    return table


def _conclusions(result: CheckResult) -> list[str]:
    processes = f"{result.processes} process" + ("es" if result.processes > 1 else "")
    kernel = min((s.kernel_timestamp_share for s in result.steps), default=0.0)
    clock = "by the kernel" if kernel > 0.99 else "in user space"
    tops = [s for s in result.steps if s.trusted]
    highest = {
        "streams": result.most_streams == max(s.streams or 0 for s in STEPS),
        "rate": result.most_rate == max(s.rate or 0 for s in STEPS),
    }
    more = " (the highest that was tested)"
    lines = [
        f"With {processes}, measurements can be trusted up to {result.most_streams} streams of "
        f"100 tokens/s{more if highest['streams'] else ''} and up to {result.most_rate:g} "
        f"requests/s{more if highest['rate'] else ''}.",
        f"Arrivals are timestamped {clock}. The server's log is accurate to "
        f"{result.server_accuracy_ms:.3f} ms.",
    ]
    if not tops:
        lines.append("Even the lightest load failed: is something else running on this machine?")
    return lines
