"""``show``: what a benchmark would deploy on a target, without deploying it."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, ScaleName
from pytest_dynamo_bench.cli import common
from pytest_dynamo_bench.dynamo_options import shown_variables
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.targets.local.commands import Ports, environment, process_specs
from pytest_dynamo_bench.targets.local.scaling import sized
from pytest_dynamo_bench.targets.local.vision.deployment import VisionWorkers
from pytest_dynamo_bench.targets.replay.target import ReplayTarget, describe

Describe = Callable[[Benchmark, Configuration], str]
_RUN = "show"
_SCALE: ScaleName = "standard"
_SCRATCH, _LOGS = Path("$SCRATCH"), Path("$LOGS")
_PORTS = Ports(frontend=8000, event_publishers=8001, event_subscribers=8002)


def add_arguments(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "show",
        help="what a benchmark would deploy on a target",
        description="Prints what would be brought up for each configuration: command lines with "
        "their environment for local, the simulation's arguments for replay, manifests for "
        "kubernetes. Nothing is started, and no cluster is asked.",
    )
    parser.add_argument("module", type=Path, metavar="MODULE.py", help="a benchmark")
    parser.add_argument(
        "--target",
        default="local",
        choices=(*DESCRIBE, "kubernetes"),
        help="default: %(default)s",
    )
    parser.add_argument(
        "--configuration", action="append", default=[], metavar="NAME",
        help="only this one; may be given more than once",
    )  # fmt: skip
    parser.add_argument(
        "--dynamo-cluster", type=Path, metavar="FILE",
        help="kubernetes: settings of the cluster (default: none, with namespace 'default')",
    )  # fmt: skip
    parser.add_argument(
        "--with-claims", action="store_true",
        help="kubernetes: also print the PersistentVolumeClaims that have to exist",
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
    if options.target == "kubernetes":
        text = render_kubernetes(
            benchmark, names or known, options.dynamo_cluster, with_claims=options.with_claims
        )
        console.out(text, end="", highlight=False)
        return
    for name in names or known:
        configuration = benchmark.configuration(name)
        text = DESCRIBE[options.target](benchmark, configuration)
        console.print(Text(f"# {benchmark.name}: {name} on {options.target}", style="bold"))
        console.print(Text(text), soft_wrap=True)
        console.print()


def describe_local(benchmark: Benchmark, configuration: Configuration) -> str:
    """The processes of a local deployment as shell commands, in starting order.

    At scale standard: the size of embedding caches, and how fast modelled time runs, depend on it.
    """
    lines = ["# ports are chosen when it is brought up; $SCRATCH is a temporary directory"]
    size = benchmark.size(_SCALE)
    traffic = sized(benchmark, _SCALE, size)
    images = None
    if traffic.images is not None:
        images = VisionWorkers().serving(benchmark, configuration, traffic, _SCRATCH)
    variables = environment(_SCRATCH, _PORTS) | dict(images.variables if images else {})
    variables |= shown_variables(configuration.env)
    lines += [f"export {name}={_quoted(value)}" for name, value in variables.items()]
    for spec in process_specs(
        benchmark, configuration, _SCRATCH, _LOGS, _PORTS, size.fast_forward, images
    ):
        own = {
            name: shown_variables(worker.env)
            for worker in configuration.workers
            for name in (images.commands if images is not None else (worker.mode,))
        }
        words = [f"{name}={value}" for name, value in own.get(spec.name, {}).items()]
        words += ["python", *spec.argv[1:]]
        command = " ".join(_quoted(part) for part in words)
        lines += [f"# {spec.name}", command]
    return "\n".join(lines)


def _quoted(word: str) -> str:
    """For a shell, which is to put the directory in."""
    return f'"{word}"' if word.startswith(f"{_SCRATCH}/") else shlex.quote(word)


def describe_replay(benchmark: Benchmark, configuration: Configuration) -> str:
    """The arguments of Dynamo's replay as JSON; the traffic's are added when it is simulated."""
    return json.dumps(describe(ReplayTarget(), benchmark, configuration), indent=2, default=str)


def render_kubernetes(
    benchmark: Benchmark,
    configurations: list[str],
    settings_file: Path | None,
    *,
    with_claims: bool = False,
) -> str:
    """The manifests of some configurations as one YAML stream.

    Raises:
        TargetError: the settings are wrong, or a configuration cannot be rendered.
        BenchmarkError: there is no such configuration.
    """
    from pytest_dynamo_bench.targets.kubernetes.manifest import claims, render
    from pytest_dynamo_bench.targets.kubernetes.settings import ClusterSettings, read_settings
    from pytest_dynamo_bench.targets.kubernetes.yaml_files import dump_all

    settings = read_settings(settings_file) if settings_file else ClusterSettings("default")
    parts = []
    if with_claims:
        found = claims(settings)
        if not found:
            raise BenchmarkError("--with-claims: the settings name no model_cache")
        parts.append("# volumes that have to exist\n" + dump_all(found))
    for name in configurations:
        documents = render(benchmark, benchmark.configuration(name), settings, _RUN)
        parts.append(f"# {benchmark.name}: {name}\n" + dump_all(documents))
    return "---\n".join(parts)


# A target that renders something else (manifests, say) is one more entry here.
DESCRIBE: Mapping[str, Describe] = {"local": describe_local, "replay": describe_replay}
