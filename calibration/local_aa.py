"""A/A comparisons on the local target: one configuration, brought up and measured many times.

Every run has a deployment of its own with cold caches, as the runs of a benchmark do, and the
same traffic. Two runs that follow each other are a comparison; these share nothing and are
independent but for the machine. All other pairs of runs are compared, too: many more, but a run
is then in many of them, so that their binomial intervals are too narrow.

A known delay is planted by adding it to what was measured: half of one run's first tokens come
later, chosen at random, by so much that their mean rises by 5, 10 or 20 %.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.kept import KeptRuns
from calibration.replay_aa import AGGREGATED, BENCHMARK
from calibration.study import (
    METRICS,
    MetricResult,
    Share,
    metric_result,
    naive_claims,
)
from pytest_dynamo_bench.errors import DeploymentError
from pytest_dynamo_bench.metrics import Metrics, Sample
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.targets.base import PlannedRun, Progress
from pytest_dynamo_bench.targets.local.target import LocalTarget
from pytest_dynamo_bench.traffic import Traffic
from pytest_dynamo_bench.verdicts import check_pair, check_run, estimate_effect

PLANTED = (0.05, 0.10, 0.20)
_PLANTED_METRICS = ("time_to_first_token.mean", "time_to_first_token.p50")
_DELAYED_SHARE = 0.5


@dataclass(frozen=True)
class LocalScenario:
    """What is compared on the local target.

    Attributes:
        name: for the report.
        comparisons: how many.
        n: requests in a run.
        repeats: runs of each side in a comparison.
        naive: whether to judge with the naive method, too.
        runs: that the comparisons are made of.
    """

    name: str
    comparisons: int
    n: int
    runs: int
    repeats: int = 1
    naive: bool = True


@dataclass(frozen=True)
class PlantedResult:
    """How often a delay was found that was added to half of a run's first tokens.

    Attributes:
        planted: by how much the mean time to first token rises, relative.
        found: intervals that exclude no change.
        covered: intervals that contain the change; of the mean only, whose change is known.
    """

    planted: float
    metric: str
    found: Share
    covered: Share | None


@dataclass(frozen=True)
class LocalResult:
    """All metrics of the comparisons, and how long it took.

    Attributes:
        seconds: of the runs together.
        gates_closed: as for the replay.
        planted: what became of planted delays.
    """

    scenario: LocalScenario
    metrics: tuple[MetricResult, ...]
    seconds: float
    gates_closed: dict[str, int]
    planted: tuple[PlantedResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def check_local() -> None:
    """Find out whether the local target can be used here.

    Raises:
        TargetError: Dynamo is not installed; the message says what to install.
    """
    LocalTarget().check(BENCHMARK)


def measure_local(
    pairs: int, kept: KeptRuns, progress: Progress, *, until: float | None = None
) -> list[Run]:
    """Make the runs of so many pairs, as far as they have not been kept yet.

    Args:
        pairs: each is two runs.
        kept: where runs are found, and kept as soon as they have ended.
        progress: shows each run.
        until: on the monotonic clock; no run is begun that would not end before, going by the
            longest so far.

    Returns:
        All runs that there are now, in order.

    Raises:
        DeploymentError: a deployment did not come up, or died.
    """
    target = LocalTarget()
    traffic = target.traffic(BENCHMARK)
    configuration = BENCHMARK.configuration(AGGREGATED.name)
    runs: list[Run] = []
    longest = 0.0
    for number in range(2 * pairs):
        name = f"local-run-{number + 1:03d}"
        run = kept.get(name)
        if run is None:
            started = time.monotonic()
            if until is not None and started + longest > until:
                break
            progress.stage(f"run {number + 1} of {2 * pairs}")
            with tempfile.TemporaryDirectory(prefix="local-aa-") as directory:
                run = target.measure(
                    PlannedRun(BENCHMARK, configuration, traffic, Path(directory), number), progress
                )
            if run.problems:
                raise DeploymentError("; ".join(run.problems))
            run = kept.put(name, run)
            longest = max(longest, time.monotonic() - started)
        runs.append(run)
    return runs


def judge_local(
    runs: Sequence[Run], *, resamples: int = 500, seed: int = 0
) -> dict[str, LocalResult]:
    """Compare runs that follow each other, and all runs with each other.

    Args:
        runs: of one configuration; at least two.
        resamples: of the bootstrap in every comparison.
        seed: of what is planted.

    Returns:
        The results by the names of the parts.
    """
    traffic = LocalTarget().traffic(BENCHMARK)
    following = [(i, i + 1) for i in range(0, len(runs) - 1, 2)]
    every = list(itertools.combinations(range(len(runs)), 2))
    name = "8 aggregated workers, KV routing"
    return {
        "local": _judged(f"{name}, runs that follow each other", following, runs, traffic,
                         resamples, seed),
        "local-all": _judged(f"{name}, every run with every other", every, runs, traffic,
                             resamples, seed),
    }  # fmt: skip


def _judged(
    name: str,
    pairs: Sequence[tuple[int, int]],
    runs: Sequence[Run],
    traffic: Traffic,
    resamples: int,
    seed: int,
) -> LocalResult:
    sides = [Metrics(run, BENCHMARK.goodput) for run in runs]
    intervals: dict[str, list[tuple[float, float]]] = {metric: [] for metric in METRICS}
    naive: dict[str, list[bool]] = {metric: [] for metric in METRICS}
    planted: dict[tuple[float, str], list[tuple[float, float]]] = {}
    closed: Counter[str] = Counter()
    for number, (first, second) in enumerate(pairs):
        closed.update(_closed_gates(runs[first], runs[second], traffic))
        for metric in METRICS:
            samples = [sides[second].sample(metric), sides[first].sample(metric)]
            effect = estimate_effect(samples[:1], samples[1:], resamples=resamples, seed=number)
            intervals[metric].append((effect.low, effect.high))
            naive[metric].append(naive_claims(samples[0], samples[1], number))
        for share, metric in itertools.product(PLANTED, _PLANTED_METRICS):
            generator = np.random.default_rng([seed, number, round(1000 * share)])
            treatment = _delayed(sides[second].sample(metric), share, generator)
            effect = estimate_effect(
                [treatment], [sides[first].sample(metric)], resamples=resamples, seed=number
            )
            planted.setdefault((share, metric), []).append((effect.low, effect.high))
    seconds = sum(side.duration_seconds for side in sides)
    return LocalResult(
        LocalScenario(name, len(pairs), len(traffic.requests), len(runs)),
        tuple(metric_result(m, 0.0, intervals[m], naive[m]) for m in METRICS),
        seconds,
        dict(sorted(closed.items())),
        tuple(_planted_result(share, metric, found) for (share, metric), found in planted.items()),
    )


def _delayed(sample: Sample, share: float, generator: np.random.Generator) -> Sample:
    """The mean of the times to first token raised by a share, by delaying half of them."""
    hit = generator.random(len(sample.values)) < _DELAYED_SHARE
    delay_ms = share * float(sample.values.mean()) / _DELAYED_SHARE
    return dataclasses.replace(sample, values=sample.values + delay_ms * hit)


def _planted_result(
    share: float, metric: str, intervals: Sequence[tuple[float, float]]
) -> PlantedResult:
    counted = metric_result(metric, share, intervals, ())
    covered = counted.covered if metric.endswith(".mean") else None
    return PlantedResult(share, metric, counted.claimed, covered)


def _closed_gates(first: Run, second: Run, traffic: Traffic) -> set[str]:
    found = [
        gate
        for run in (first, second)
        for metric in METRICS
        for gate in check_run(run, traffic.schedule, metric, traffic=traffic)
    ]
    found += check_pair(second, first)
    return {gate.name for gate in found if not gate.passed}
