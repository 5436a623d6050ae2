"""The replay target: Dynamo's own discrete-event simulation of a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.targets.definition import TargetDefinition
from pytest_dynamo_bench.targets.options import OptionGroup, OptionValue, count, option

if TYPE_CHECKING:
    from pytest_dynamo_bench.targets.base import Target

_OPTIONS = OptionGroup("local and replay", (
    option(
        "--dynamo-replay-processes", metavar="N", type=count, default=None,
        help="replay: simulations at a time (default: as many as there are cores); each takes up "
        "to 600 MB",
    ),
    option(
        "--dynamo-attribution", action="store_true",
        only_here="needs --dynamo-target=replay: it takes all combinations of the features, many "
        "times over",
        help="replay: simulate all combinations of the features in which the promoted "
        "configuration differs from the baseline, and say what each of them brings",
    ),
))  # fmt: skip


def _make(option: OptionValue) -> Target:
    from pytest_dynamo_bench.targets.replay.target import ReplayTarget

    return ReplayTarget(processes=option("dynamo_replay_processes"))


def _show(
    benchmark: Benchmark, configurations: Sequence[Configuration], options: argparse.Namespace
) -> Iterator[str]:
    import json

    from pytest_dynamo_bench.targets.replay.target import ReplayTarget, describe

    for configuration in configurations:
        given = describe(ReplayTarget(), benchmark, configuration)
        yield f"# {benchmark.name}: {configuration.name} on replay"
        yield json.dumps(given, indent=2, default=str) + "\n"


REPLAY = TargetDefinition(
    name="replay",
    summary="Dynamo's discrete-event simulation of the full traffic",
    make=_make,
    options=[_OPTIONS],
    show=_show,
)
