"""The real Dynamo on this machine: its frontend and router, with mockers as workers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_dynamo_bench.benchmark import SCALES, Benchmark, Configuration
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.targets.definition import TargetDefinition
from pytest_dynamo_bench.targets.options import OptionGroup, OptionValue, option

if TYPE_CHECKING:
    from pytest_dynamo_bench.targets.base import Target

_OPTIONS = OptionGroup("local and replay", (
    option(
        "--dynamo-scale", choices=SCALES, default="standard",
        help="local: how much traffic to send: 'smoke' runs all comparisons in minutes and skips "
        "undecided claims; 'standard' (default) is enough to decide the claims; 'full' is the "
        "published traffic, which takes hours",
    ),
    option(
        "--dynamo-frontend-port", metavar="PORT", type=int, default=None,
        help="local: port of Dynamo's frontend on 127.0.0.1 (default: a free one)",
    ),
    option(
        "--dynamo-engine", choices=("mocker", "vllm"), default="mocker",
        only_here="is for --dynamo-target=local only; leave it out",
        help="local: 'mocker' is Dynamo's mocker, with this plugin's vision worker for images "
        "(default); 'vllm' is Dynamo's real vLLM backend with a toy model on the CPU, for "
        "benchmarks with images: docs/images-and-caches.md",
    ),
    option(
        "--dynamo-load", choices=("own", "aiperf"), default="own",
        only_here="is for --dynamo-target=local only; leave it out, or check claims on AIPerf's "
        "results with --dynamo-aiperf-results",
        help="local: load generator: 'own' (default), or 'aiperf' to send the same traffic with "
        "AIPerf; docs/load-generator.md compares them",
    ),
))  # fmt: skip


def _make(option: OptionValue) -> Target:
    from pytest_dynamo_bench.targets.local.target import LocalOptions, LocalTarget

    engine, load = option("dynamo_engine"), option("dynamo_load")
    if engine != "mocker" and load != "own":
        raise TargetError(
            f"--dynamo-engine={engine} does not work with --dynamo-load={load}, because AIPerf "
            "does not record the server's response ids; leave out --dynamo-load"
        )
    return LocalTarget(
        LocalOptions(
            scale=option("dynamo_scale"),
            seconds=option("dynamo_seconds"),
            frontend_port=option("dynamo_frontend_port"),
            seed=option("dynamo_cut_seed"),
            load=load,
            load_processes=option("dynamo_load_processes"),
            engine=engine,
        )
    )


def _too_little(option: OptionValue) -> str:
    return "at scale smoke" if option("dynamo_scale") == "smoke" else ""


def _show(
    benchmark: Benchmark, configurations: Sequence[Configuration], options: argparse.Namespace
) -> Iterator[str]:
    from pytest_dynamo_bench.targets.local.show import describe

    for configuration in configurations:
        yield f"# {benchmark.name}: {configuration.name} on local"
        yield describe(benchmark, configuration) + "\n"


LOCAL = TargetDefinition(
    name="local",
    summary="the real Dynamo on this machine, with mockers",
    make=_make,
    options=[_OPTIONS],
    too_little=_too_little,
    show=_show,
)
