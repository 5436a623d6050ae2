"""Runs all combinations of the features between two configurations, for an attribution.

Simulations differ from one another by how Dynamo's router breaks ties, and the traffic is one
stretch of many that could have been. Both go into the intervals: each combination is simulated
with several seeds, and blocks of consecutive requests are resampled, the same for all
combinations, so that what the traffic does to all of them cancels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_dynamo_bench.arrays import FloatArray, IntArray
from pytest_dynamo_bench.attribution import (
    Attribution,
    AttributionPlan,
    Combination,
    attribute,
    plan,
)
from pytest_dynamo_bench.benchmark import Benchmark
from pytest_dynamo_bench.errors import BenchmarkError, DeploymentError
from pytest_dynamo_bench.metric_definitions import METRICS, full_name, parse_metric
from pytest_dynamo_bench.metrics import Metrics, Sample, evaluate
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.targets.base import sent_traffic
from pytest_dynamo_bench.targets.replay.target import ReplayTarget, plain_run
from pytest_dynamo_bench.traffic import Traffic
from pytest_dynamo_bench.verdicts.blocks import block_length
from pytest_dynamo_bench.verdicts.resampling import drawn_blocks, requests_of, widening


@dataclass(frozen=True)
class CombinationRuns:
    """What one combination of features measured.

    Attributes:
        features: taken from the treatment.
        configuration: its name.
        seeds: that it was simulated with; one where no seed can matter.
        values: of the metric, one for each seed, in the metric's unit.
    """

    features: tuple[str, ...]
    configuration: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class AttributionStudy:
    """An attribution with the runs that it was made from.

    Attributes:
        metric: that is divided among the features.
        block_requests: consecutive requests that were resampled together.
        requests: that the combinations have in common, by which they were paired.
    """

    benchmark: str
    baseline: str
    treatment: str
    metric: str
    attribution: Attribution
    runs: tuple[CombinationRuns, ...]
    block_requests: int
    requests: int
    resamples: int


def run_attribution(
    benchmark: Benchmark,
    baseline: str,
    treatment: str,
    *,
    metric: str = "goodput",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    together: Iterable[Sequence[str]] = (),
    target: ReplayTarget | None = None,
    traffic: Traffic | None = None,
    resamples: int = 2000,
    on_run: Callable[[int, int, str, int, bool], None] | None = None,
) -> AttributionStudy:
    """Simulate every combination with every seed, and divide the difference.

    Combinations without KV routing are simulated once: the seed decides the router's ties and
    nothing else.

    Args:
        metric: such as ``goodput`` or ``ttft.mean``.
        seeds: of the simulations.
        together: features that count as one, as in :func:`~pytest_dynamo_bench.attribution.plan`.
        target: its runner simulates; its seed is not used.
        traffic: what is sent; the benchmark's own when None.
        resamples: of the traffic and the seeds.
        on_run: called after each run with how many are done, of how many, the configuration, the
            seed, and whether it was read from the cache.

    Raises:
        BenchmarkError: an unknown configuration or metric, a metric that cannot be resampled,
            or configurations whose difference cannot be divided.
        TargetError: a combination cannot be simulated; found out before any is.
        DeploymentError: a simulation failed. Runs that were done are in the runner's cache.
    """
    metric = _checked_metric(benchmark, metric)
    if not seeds or len(set(seeds)) != len(seeds):
        raise BenchmarkError(
            f"attribution: seeds: must be one or more different numbers, got {seeds!r}"
        )
    target = target if target is not None else ReplayTarget()
    made = plan(benchmark.configuration(baseline), benchmark.configuration(treatment), together)
    treatments = [
        dataclasses.replace(item, role="treatment") for item in made.configurations.values()
    ]
    target.check(benchmark.with_configurations(treatments))
    traffic = traffic if traffic is not None else sent_traffic(target, benchmark)
    jobs = {
        (combination, seed): dataclasses.replace(target, seed=seed).simulation(
            benchmark, configuration, traffic
        )
        for combination, configuration in made.configurations.items()
        for seed in (seeds if configuration.router == "kv" else seeds[:1])
    }
    samples: dict[_Run, Sample] = {}
    for run, simulated, known in target.runner.simulated(jobs):
        configuration = made.configurations[run[0]]
        records = plain_run(benchmark, configuration, jobs[run], simulated)
        samples[run] = _sample(benchmark, records, metric)
        if on_run is not None:
            on_run(len(samples), len(jobs), configuration.name, run[1], known)
    # Not in the order in which they ended: random numbers are drawn for one after the other.
    return _study(benchmark, made, metric, {run: samples[run] for run in jobs}, resamples)


def _checked_metric(benchmark: Benchmark, metric: str) -> str:
    """The metric's full name, if it can be divided among features."""
    try:
        name, statistic = parse_metric(metric)
    except ValueError as error:
        raise BenchmarkError(f"attribution: metric: {error}") from None
    if METRICS[name].needs_limits and benchmark.goodput is None:
        raise BenchmarkError(
            f"attribution: metric: {metric} needs SLOs, and benchmark {benchmark.name!r} has no "
            "goodput=Goodput(...)"
        )
    if statistic in ("min", "max") or METRICS[name].kind == "gaps":
        raise BenchmarkError(
            f"attribution: metric: {metric} cannot be resampled by request; use a mean, a "
            "percentile or a rate of another metric"
        )
    return full_name(metric)


_Run = tuple[Combination, int]


def _sample(benchmark: Benchmark, run: Run, metric: str) -> Sample:
    failed = sum(not record.succeeded for record in run.records)
    if failed:
        raise DeploymentError(
            f"attribution: {failed} of {len(run.records)} requests failed in "
            f"{run.configuration!r}; dropping them would bias the others"
        )
    return Metrics(run, benchmark.goodput).sample(metric)


# ---------------------------------------------------------------------------------------
# Resampling
# ---------------------------------------------------------------------------------------


def _study(
    benchmark: Benchmark,
    made: AttributionPlan,
    metric: str,
    samples: Mapping[_Run, Sample],
    resamples: int,
) -> AttributionStudy:
    by_combination: dict[Combination, dict[int, Sample]] = {}
    for (combination, seed), sample in samples.items():
        by_combination.setdefault(combination, {})[seed] = sample
    values = {
        combination: float(np.mean([sample.value for sample in runs.values()]))
        for combination, runs in by_combination.items()
    }
    if not all(math.isfinite(value) for value in values.values()):
        raise BenchmarkError(f"attribution: {metric} is not defined for a combination")
    draws, length, requests = resample_combinations(by_combination, resamples)
    attribution = attribute(made.features, values, draws)
    combinations = [frozenset(names) for names, _ in attribution.combinations]
    runs = tuple(
        CombinationRuns(
            tuple(name for name in made.features if name in combination),
            made.configurations[combination].name,
            tuple(sorted(by_combination[combination])),
            tuple(sample.value for _, sample in sorted(by_combination[combination].items())),
        )
        for combination in combinations
    )
    return AttributionStudy(
        benchmark.name,
        made.configurations[frozenset()].name,
        made.configurations[frozenset(made.features)].name,
        metric,
        attribution,
        runs,
        length,
        requests,
        resamples,
    )


def resample_combinations(
    by_combination: Mapping[Combination, Mapping[int, Sample]], resamples: int
) -> tuple[dict[Combination, FloatArray], int, int]:
    """The metric of every combination in every resample; block length; requests.

    The deviations that blocks give are widened for their small number, those that seeds give by
    ``sqrt(s / (s - 1))`` for s seeds.
    """
    first = next(iter(next(iter(by_combination.values())).values()))
    everything = [sample for runs in by_combination.values() for sample in runs.values()]
    due: dict[str, float] = {}
    for sample in everything:
        due.update(zip(sample.request_ids, sample.time_ms.tolist(), strict=True))
    order = sorted(due, key=lambda request: (due[request], request))
    position = {request: index for index, request in enumerate(order)}
    n = len(order)
    aligned = {
        combination: {seed: _aligned(sample, position) for seed, sample in runs.items()}
        for combination, runs in by_combination.items()
    }
    series = [_influences(next(iter(runs.values()))[0], first) for runs in aligned.values()]
    against = series[0]
    length = block_length([*series, *(one - against for one in series[1:])])
    generator = np.random.default_rng(0)
    starts = drawn_blocks(n, length, resamples, generator)
    widen = widening(n, length)
    draws: dict[Combination, FloatArray] = {}
    for combination, runs in by_combination.items():
        columns = []
        for seed, sample in runs.items():
            drawn = np.array(
                [_evaluated(sample, aligned[combination][seed], requests_of(row, length, n))
                 for row in starts]
            )  # fmt: skip
            columns.append(sample.value + widen * (drawn - sample.value))
        table = np.column_stack(columns)
        chosen = generator.integers(0, len(runs), size=table.shape)
        mean = table.mean(axis=1)
        of_seeds = np.take_along_axis(table, chosen, axis=1).mean(axis=1)
        more = math.sqrt(len(runs) / (len(runs) - 1)) if len(runs) > 1 else 0.0
        draws[combination] = mean + more * (of_seeds - mean)
    return draws, length, n


def _aligned(sample: Sample, position: Mapping[str, int]) -> tuple[FloatArray, FloatArray]:
    """Values and weights on all requests; NaN where the sample does not have one."""
    values = np.full(len(position), np.nan)
    weights = np.full(len(position), np.nan)
    where = [position[request] for request in sample.request_ids]
    values[where] = sample.values
    weights[where] = 1.0 if sample.weights is None else sample.weights
    return values, weights


def _evaluated(sample: Sample, aligned: tuple[FloatArray, FloatArray], picks: IntArray) -> float:
    values, weights = aligned[0][picks], aligned[1][picks]
    there = np.isfinite(values)
    values, weights = values[there], weights[there]
    if len(values) == 0:
        return sample.value
    row = weights[None, :] if sample.weights is not None else None
    return float(evaluate(sample, values[None, :], row)[0])


def _influences(values: FloatArray, sample: Sample) -> FloatArray:
    """What a request does to the metric, roughly: for the choice of the block length."""
    filled = np.where(np.isfinite(values), values, np.nanmean(values))
    if sample.statistic == "percentile":
        filled = (filled > np.percentile(filled, sample.percentile)).astype(np.float64)
    spread = float(filled.std())
    return np.asarray((filled - filled.mean()) / (spread if spread > 0 else 1.0))
