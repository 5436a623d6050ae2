"""``show``: what a target would bring up, printed and not done."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.benchmark import Benchmark
from pytest_dynamo_bench.cli.common import choose, load_benchmark, output_console
from pytest_dynamo_bench.errors import BenchmarkError

_TARGETS = ("kubernetes",)
_RUN = "show"


def add_arguments(commands: Any) -> None:
    """Add the command and its options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "show",
        help="print what a target would bring up",
        description="Print what a target would bring up for each configuration. Nothing is done, "
        "and nothing but the files is looked at.",
    )
    parser.add_argument("benchmark", type=Path, metavar="BENCHMARK.py", help="a benchmark module")
    parser.add_argument("--target", choices=_TARGETS, default="kubernetes", help="%(choices)s")
    parser.add_argument(
        "--configuration", action="append", metavar="NAME",
        help="only this one; can be given several times (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--dynamo-cluster", type=Path, metavar="FILE",
        help="settings of the cluster (default: none, with namespace 'default')",
    )  # fmt: skip
    parser.add_argument(
        "--with-claims", action="store_true",
        help="also print the PersistentVolumeClaims that have to exist",
    )  # fmt: skip
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    benchmark = load_benchmark(options.benchmark)
    names = [item.name for item in benchmark.configurations]
    for name in options.configuration or ():
        choose("configuration", name, names)
    text = render_kubernetes(
        benchmark,
        options.configuration or names,
        options.dynamo_cluster,
        with_claims=options.with_claims,
    )
    output_console().out(text, end="", highlight=False)


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
