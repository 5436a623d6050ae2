"""The real Dynamo on this machine: its frontend and router, and mockers as engines."""

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
        help="local: how much of each benchmark's traffic is sent: 'smoke' is all comparisons in "
        "minutes, where claims that so little cannot decide are skipped; 'standard' (default) is "
        "enough for the claims; 'full' is the published traffic, which takes hours",
    ),
    option(
        "--dynamo-frontend-port", metavar="PORT", type=int, default=None,
        help="local: port of Dynamo's frontend on 127.0.0.1 (default: a free one)",
    ),
    option(
        "--dynamo-engine", choices=("mocker", "vllm"), default="mocker",
        only_here="is for --dynamo-target=local only; leave it out",
        help="local: 'mocker' is Dynamo's, with a vision worker of this plugin for images "
        "(default); 'vllm' is Dynamo's real vLLM backend with a toy model on the processor, for "
        "benchmarks with images: docs/images-and-caches.md",
    ),
    option(
        "--dynamo-load", choices=("own", "aiperf"), default="own",
        only_here="is for --dynamo-target=local only; leave it out, or judge AIPerf's own results "
        "of a server with --dynamo-aiperf-results",
        help="local: the load generator: the own one (default), or the program aiperf with the "
        "same traffic, for a second opinion; docs/load-generator.md compares them",
    ),
))  # fmt: skip


def _make(option: OptionValue) -> Target:
    from pytest_dynamo_bench.targets.local.target import LocalOptions, LocalTarget

    engine, load = option("dynamo_engine"), option("dynamo_load")
    if engine != "mocker" and load != "own":
        raise TargetError(
            f"--dynamo-engine={engine} needs the own load generator, since AIPerf does not say "
            "what the server called a request; leave --dynamo-load out"
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
    summary="the real Dynamo with mocker engines on this machine",
    make=_make,
    options=[_OPTIONS],
    too_little=_too_little,
    show=_show,
)
