"""A target of our own: Dynamo's replay with more load than the benchmark's traffic has."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pytest_dynamo_bench.targets import OptionGroup, TargetDefinition, option

if TYPE_CHECKING:
    from pytest_dynamo_bench import Benchmark, Configuration
    from pytest_dynamo_bench.records import Run
    from pytest_dynamo_bench.targets.base import PlannedRun, Progress
    from pytest_dynamo_bench.traffic import Traffic

NAME = "loaded-replay"


def factor(text: str) -> float:
    """A factor of load, for argparse."""
    value = float(text)
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"must be between 0 and 100, got {text!r}")
    return value


class LoadedReplay:
    """Simulates with arrivals that are ``load`` times as fast as recorded."""

    name = NAME

    def __init__(self, load: float) -> None:
        # Imported when it is needed: this module is loaded in every session.
        from pytest_dynamo_bench.targets.replay.target import ReplayTarget

        self._load = load
        self._replay = ReplayTarget(speedup=load)

    def check(self, benchmark: Benchmark) -> None:
        """Whether the replay can simulate the benchmark."""
        self._replay.check(benchmark)

    def traffic(self, benchmark: Benchmark) -> Traffic:
        """The benchmark's traffic; the replay itself divides the times between arrivals."""
        return self._replay.traffic(benchmark)

    def limitations(self, benchmark: Benchmark, configuration: Configuration) -> tuple[str, ...]:
        """What the replay simplifies, and what this target does to the traffic."""
        return (
            f"requests arrive {self._load:g} times as fast as recorded",
            *self._replay.limitations(benchmark, configuration),
        )

    def measure(self, planned: PlannedRun, progress: Progress) -> Run:
        """One simulated run, under our name."""
        return dataclasses.replace(self._replay.measure(planned, progress), target=NAME)


def make(option: Callable[[str], Any]) -> LoadedReplay:
    """The target as the options describe it."""
    return LoadedReplay(option("loaded_by"))


def pytest_dynamo_bench_targets() -> Sequence[TargetDefinition]:
    """What ``--dynamo-target`` and claims know from here on."""
    loaded_by = option(
        "--loaded-by", metavar="FACTOR", type=factor, default=1.2,
        help="how much faster requests arrive than recorded (default: %(default)g)",
    )  # fmt: skip
    return [
        TargetDefinition(
            name=NAME,
            summary="Dynamo's replay under more load",
            make=make,
            options=[OptionGroup(NAME, [loaded_by])],
            # Claims about replay are made here too, unless they name this target themselves.
            like="replay",
        )
    ]
