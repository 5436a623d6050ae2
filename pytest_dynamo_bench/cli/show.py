"""``show``: what a benchmark would deploy on a target, without deploying it."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.cli import common
from pytest_dynamo_bench.targets.local.commands import Ports, environment, process_specs
from pytest_dynamo_bench.targets.replay import ReplayTarget, describe

Describe = Callable[[Benchmark, Configuration], str]
_SCRATCH, _LOGS = Path("$SCRATCH"), Path("$LOGS")
_PORTS = Ports(frontend=8000, event_publishers=8001, event_subscribers=8002)


def add_arguments(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "show",
        help="what a benchmark would deploy on a target",
        description="Prints what would be brought up for each configuration: command lines with "
        "their environment for local, the simulation's arguments for replay. Nothing is started.",
    )
    parser.add_argument("module", type=Path, metavar="MODULE.py", help="a benchmark")
    parser.add_argument(
        "--target", default="local", choices=tuple(DESCRIBE), help="default: %(default)s"
    )
    parser.add_argument(
        "--configuration", action="append", default=[], metavar="NAME",
        help="only this one; may be given more than once",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print what would be deployed.

    Raises:
        DynamoBenchError: the benchmark cannot be loaded, or not be expressed on the target.
    """
    benchmark = common.load_benchmark(options.module)
    known = [configuration.name for configuration in benchmark.configurations]
    names = [common.choose("configuration", name, known) for name in options.configuration]
    console = common.output_console()
    for name in names or known:
        configuration = benchmark.configuration(name)
        text = DESCRIBE[options.target](benchmark, configuration)
        console.print(Text(f"# {benchmark.name}: {name} on {options.target}", style="bold"))
        console.print(Text(text), soft_wrap=True)
        console.print()


def describe_local(benchmark: Benchmark, configuration: Configuration) -> str:
    """The processes of a local deployment as shell commands, in starting order."""
    lines = ["# ports are chosen when it is brought up; $SCRATCH is a temporary directory"]
    variables = environment(_SCRATCH, _PORTS)
    lines += [f"export {name}={_quoted(value)}" for name, value in variables.items()]
    for spec in process_specs(benchmark, configuration, _SCRATCH, _LOGS, _PORTS):
        command = " ".join(_quoted(part) for part in ["python", *spec.argv[1:]])
        lines += [f"# {spec.name}", command]
    return "\n".join(lines)


def _quoted(word: str) -> str:
    """For a shell, which is to put the directory in."""
    return f'"{word}"' if word.startswith(f"{_SCRATCH}/") else shlex.quote(word)


def describe_replay(benchmark: Benchmark, configuration: Configuration) -> str:
    """The arguments of Dynamo's replay as JSON; the traffic's are added when it is simulated."""
    return json.dumps(describe(ReplayTarget(), benchmark, configuration), indent=2, default=str)


# A target that renders something else (manifests, say) is one more entry here.
DESCRIBE: Mapping[str, Describe] = {"local": describe_local, "replay": describe_replay}
