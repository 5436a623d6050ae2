"""``show``: what a benchmark would deploy on a target, without deploying it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from rich.text import Text

from pytest_dynamo_bench.cli import common
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.targets.options import Option
from pytest_dynamo_bench.targets.registry import TargetRegistry


def add_arguments(commands: Any, targets: TargetRegistry) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "show",
        help="show what a benchmark would deploy on a target",
        description="Prints what would be started for each configuration: command lines with "
        "their environment for local, the simulation's arguments for replay, manifests for "
        "kubernetes. Starts nothing and contacts no cluster.",
    )
    parser.add_argument("module", type=Path, metavar="MODULE.py", help="a benchmark")
    shown = {target.name: target for target in targets if target.show is not None}
    parser.add_argument("--target", default="local", choices=shown, help="default: %(default)s")
    parser.add_argument(
        "--configuration", action="append", default=[], metavar="NAME",
        help="only this configuration; can be repeated",
    )  # fmt: skip
    common.add_dynamo_version(parser)
    added: list[Option] = []
    for target in shown.values():
        for option in target.show_options:
            if option not in added:
                added.append(option)
                try:
                    parser.add_argument(option.flag, **option.settings)
                except argparse.ArgumentError as error:
                    raise TargetError(f"target {target.name!r}: show_options: {error}") from None
    parser.set_defaults(run=run, shown=shown)


def run(options: argparse.Namespace) -> None:
    """Print what would be deployed.

    Raises:
        DynamoBenchError: the benchmark cannot be loaded, or not be expressed on the target.
    """
    benchmark = common.load_benchmark(options.module, options.dynamo_version)
    known = [configuration.name for configuration in benchmark.configurations]
    names = [common.choose("configuration", name, known) for name in options.configuration]
    configurations = [benchmark.configuration(name) for name in names or known]
    console = common.output_console()
    for piece in options.shown[options.target].show(benchmark, configurations, options):
        text = Text(piece)
        text.highlight_regex(rf"(?m)^# {re.escape(benchmark.name)}: .*$", "bold")
        console.print(text, soft_wrap=True)
