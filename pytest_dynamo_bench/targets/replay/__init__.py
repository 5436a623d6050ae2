"""The replay target: Dynamo's own discrete-event simulation of a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.targets.definition import TargetDefinition
from pytest_dynamo_bench.targets.options import (
    LOCAL_EXECUTOR,
    OptionGroup,
    OptionValue,
    count,
    executor,
    option,
)

if TYPE_CHECKING:
    from pytest_dynamo_bench.targets.base import Target

_OPTIONS = OptionGroup("local and replay", (
    option(
        "--dynamo-replay-processes", metavar="N", type=count, default=None,
        help="replay: simulations at a time (default: number of CPU cores); each takes up to 600 "
        "MB",
    ),
    option(
        "--dynamo-executor", metavar="WHERE", type=executor, default=LOCAL_EXECUTOR,
        only_here="needs --dynamo-target=replay: only simulations are made elsewhere",
        help="replay: where simulations are made: local, or dask:ADDRESS for the workers of a "
        "dask scheduler, such as dask:tcp://10.0.0.1:8786 (default: local)",
    ),
    option(
        "--dynamo-attribution", action="store_true",
        only_here="needs --dynamo-target=replay: it measures all combinations of the features, "
        "several times",
        help="replay: simulate every combination of the features in which the promoted "
        "configuration differs from the baseline, and report what each feature contributes",
    ),
))  # fmt: skip


def _make(option: OptionValue) -> Target:
    from pytest_dynamo_bench.targets.replay.runner import Runner, SimulationCache
    from pytest_dynamo_bench.targets.replay.target import ReplayTarget

    # What a session has simulated it does not simulate again.
    known = SimulationCache(memory={})
    return ReplayTarget(
        runner=Runner(option("dynamo_executor"), option("dynamo_replay_processes"), known)
    )


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
