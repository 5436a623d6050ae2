"""How often the procedure is wrong, how often it finds what is there, and how the naive one does.

What "no effect" means: two runs of one configuration. Under the *same traffic* they differ
by noise alone (routing, jitter, drift), and requests are paired. Under *different traffic*
they differ by the traffic as well, and nothing is paired. In both cases the true change is
zero, and an interval that excludes zero is a false claim ("lower by at least 0 %" or "higher by
at least 0 %").

What the interval must cover where there is an effect: the change of the metric over the whole
population of traffic and runs, which is found by pooling all simulated worlds.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from calibration.queues import (
    GOODPUT_TTFT_MS,
    ORDINARY,
    STRESS,
    QueueModel,
    SyntheticRuns,
    make_traffic,
    samples,
    simulate,
)
from pytest_dynamo_bench.arrays import FloatArray
from pytest_dynamo_bench.metrics import Sample
from pytest_dynamo_bench.verdicts.effect import estimate_effect
from pytest_dynamo_bench.verdicts.resampling import drawn_blocks

METRICS = (
    "time_to_first_token.mean",
    "time_to_first_token.p50",
    "time_to_first_token.p90",
    "time_to_first_token.p99",
    "inter_token_latency.mean",
    "inter_token_latency.p50",
    "inter_token_latency.p90",
    "inter_token_latency.p99",
    "output_token_throughput",
    "request_throughput",
    "goodput",
)
_WORLDS_AT_ONCE = 250
_DELAYED_SHARE = 0.5


@dataclass(frozen=True)
class Scenario:
    """A kind of comparison, made many times.

    Attributes:
        name: for the report.
        comparisons: how many.
        n: requests in a run.
        repeats: runs of each configuration in a comparison.
        same_traffic: whether both configurations get the same requests.
        model: the baseline's system.
        prefill_factor: of the treatment; 1 is the same configuration.
        delay: added to half of the treatment's first tokens, as twice this share of the mean
            time to first token, so that the mean rises by this share.
        naive: whether to judge with the naive method, too.
        metrics: that are claimed.
    """

    name: str
    comparisons: int
    n: int = 1000
    repeats: int = 1
    same_traffic: bool = True
    model: QueueModel = ORDINARY
    prefill_factor: float = 1.0
    delay: float = 0.0
    naive: bool = False
    metrics: tuple[str, ...] = METRICS


@dataclass(frozen=True)
class Share:
    """A count of cases with the exact 95 % interval of their share (Clopper & Pearson 1934)."""

    cases: int
    count: int
    low: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        interval = stats.binomtest(self.count, self.cases).proportion_ci(0.95, "exact")
        object.__setattr__(self, "low", float(interval.low))
        object.__setattr__(self, "high", float(interval.high))

    @property
    def value(self) -> float:
        """The share."""
        return self.count / self.cases

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f}–{100 * self.high:.1f})"


@dataclass(frozen=True)
class MetricResult:
    """What happened to one metric in all comparisons of a scenario.

    Attributes:
        true_change: relative, over the population; 0 where both are the same configuration.
        claimed: intervals that exclude no change.
        covered: intervals that contain the true change.
        naive_claimed: as ``claimed``, by resampling single requests of each run independently.
        median_half_width: of the intervals, as a relative change; None where most are infinite.
    """

    metric: str
    true_change: float
    claimed: Share
    covered: Share
    naive_claimed: Share | None
    median_half_width: float | None


@dataclass(frozen=True)
class ScenarioResult:
    """All metrics of a scenario, and how long it took."""

    scenario: Any
    metrics: tuple[MetricResult, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def scenarios(scale: float = 1.0) -> dict[str, Scenario]:
    """The study by name of each part; ``scale`` shortens it, 1 is what the page shows."""

    def many(count: int) -> int:
        return max(20, round(count * scale))

    aa = {
        "aa-same": Scenario("A/A, same traffic", many(1000), naive=True),
        "aa-different": Scenario(
            "A/A, different traffic", many(1000), same_traffic=False, naive=True
        ),
        "aa-closed": Scenario(
            "A/A, same traffic, closed loop of 16 sessions",
            many(1000),
            model=dataclasses.replace(ORDINARY, closed_loop_sessions=16),
        ),
        "aa-repeats": Scenario(
            "A/A, same traffic, runs differ by 2 %, 3 repeats",
            many(1000),
            n=400,
            repeats=3,
            model=dataclasses.replace(ORDINARY, run_sd=0.02),
        ),
        "aa-single-of-repeats": Scenario(
            "A/A, same traffic, runs differ by 2 %, 1 repeat",
            many(1000),
            n=400,
            model=dataclasses.replace(ORDINARY, run_sd=0.02),
        ),
        "aa-122": Scenario("A/A, same traffic", many(1000), n=122, naive=True),
        "aa-small": Scenario("A/A, same traffic", many(1000), n=200),
        "aa-500": Scenario("A/A, same traffic", many(1000), n=500),
        "aa-different-small": Scenario(
            "A/A, different traffic", many(1000), n=200, same_traffic=False
        ),
        "aa-large": Scenario("A/A, same traffic", many(400), n=4000),
        "aa-different-large": Scenario(
            "A/A, different traffic", many(400), n=4000, same_traffic=False
        ),
        "aa-stress": Scenario("A/A, same traffic, stress", many(400), n=4000, model=STRESS),
        "aa-stress-repeats": Scenario(
            "A/A, same traffic, stress, 3 repeats", many(200), n=4000, repeats=3, model=STRESS
        ),
        "slower": Scenario("prefill 5 % slower, same traffic", many(1000), prefill_factor=1.05),
        "delayed": Scenario("half delayed, same traffic", many(1000), delay=0.10),
        "delayed-small": Scenario("half delayed, same traffic", many(1000), n=200, delay=0.10),
        "delayed-large": Scenario("half delayed, same traffic", many(400), n=4000, delay=0.10),
        "delayed-different": Scenario(
            "half delayed, different traffic", many(1000), delay=0.10, same_traffic=False
        ),
        "delayed-repeats": Scenario(
            "half delayed, same traffic, runs differ by 2 %, 3 repeats",
            many(1000),
            n=400,
            repeats=3,
            delay=0.10,
            model=dataclasses.replace(ORDINARY, run_sd=0.02),
        ),
    }
    power = {
        f"power-{round(100 * delay)}-{n}-{repeats}": Scenario(
            f"TTFT {round(100 * delay)} % higher",
            many(200),
            n=n,
            repeats=repeats,
            delay=delay,
            metrics=("time_to_first_token.mean", "time_to_first_token.p50"),
        )
        for delay in (0.05, 0.10, 0.20)
        for n in (200, 1000, 4000)
        for repeats in (1, 3)
    }
    return aa | power


def run_scenario(
    scenario: Scenario,
    *,
    resamples: int = 500,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> ScenarioResult:
    """Make all comparisons of a scenario.

    Args:
        scenario: what to compare.
        resamples: of the bootstrap in every comparison.
        seed: of everything random; the same seed gives the same result.
        tell: called with how many of how many comparisons are made.
    """
    started = time.monotonic()
    intervals: dict[str, list[tuple[float, float]]] = {metric: [] for metric in scenario.metrics}
    naive: dict[str, list[bool]] = {metric: [] for metric in scenario.metrics}
    pooled: list[tuple[SyntheticRuns, SyntheticRuns]] = []
    for first in range(0, scenario.comparisons, _WORLDS_AT_ONCE):
        worlds = min(_WORLDS_AT_ONCE, scenario.comparisons - first)
        generator = np.random.default_rng([seed, first])
        runs = _simulate_pairs(scenario, worlds, generator)
        pooled += runs
        for world in range(worlds):
            tell(first + world, scenario.comparisons)
            arms = [
                [
                    samples(run, world, scenario.metrics, _tag(scenario, arm, index))
                    for index, run in enumerate(arm_runs)
                ]
                for arm, arm_runs in enumerate(zip(*runs, strict=True))
            ]
            for number, metric in enumerate(scenario.metrics):
                treatment, baseline = ([run[number] for run in arm] for arm in arms)
                effect = estimate_effect(
                    treatment, baseline, resamples=resamples, seed=first + world
                )
                intervals[metric].append((effect.low, effect.high))
                if scenario.naive:
                    naive[metric].append(naive_claims(treatment[0], baseline[0], world))
    results = tuple(
        metric_result(
            metric, _true_change(scenario, metric, pooled), intervals[metric], naive[metric]
        )
        for metric in scenario.metrics
    )
    return ScenarioResult(scenario, results, time.monotonic() - started)


def _tag(scenario: Scenario, arm: int, index: int) -> str:
    return "" if scenario.same_traffic else f"arm{arm}-run{index}-"


def _simulate_pairs(
    scenario: Scenario, worlds: int, generator: np.random.Generator
) -> list[tuple[SyntheticRuns, SyntheticRuns]]:
    model = scenario.model
    changed = dataclasses.replace(model, prefill_factor=scenario.prefill_factor)
    traffic = make_traffic(worlds, scenario.n, model, generator)
    pairs = []
    for _ in range(scenario.repeats):
        sides = []
        for side_model in (changed, model):
            if not scenario.same_traffic:
                traffic = make_traffic(worlds, scenario.n, model, generator)
            sides.append(simulate(traffic, side_model, generator))
        if scenario.delay:
            mean_ms = float(sides[1].time_to_first_token_ms.mean())
            sides[0] = sides[0].delayed(
                _DELAYED_SHARE, scenario.delay * mean_ms / _DELAYED_SHARE, generator
            )
        pairs.append((sides[0], sides[1]))
    return pairs


def _true_change(
    scenario: Scenario, metric: str, pairs: Sequence[tuple[SyntheticRuns, SyntheticRuns]]
) -> float:
    if scenario.prefill_factor == 1 and not scenario.delay:
        return 0.0
    if metric in ("output_token_throughput", "request_throughput"):
        return 0.0  # an open loop that is not overloaded serves what is offered

    def side(arm: int) -> float:
        return pooled_value(
            metric,
            lambda name: np.concatenate([getattr(p[arm], f"{name}_ms").ravel() for p in pairs]),
        )

    return side(0) / side(1) - 1


def pooled_value(metric: str, values: Callable[[str], FloatArray]) -> float:
    """A latency metric, or goodput up to a factor, over all requests of many worlds.

    Args:
        values: of a latency by its name.
    """
    name, _, statistic = metric.partition(".")
    if name == "goodput":
        return float(np.mean(values("time_to_first_token") <= GOODPUT_TTFT_MS))
    if statistic == "mean":
        return float(np.mean(values(name)))
    return float(np.percentile(values(name), float(statistic[1:])))


def metric_result(
    metric: str,
    true_change: float,
    intervals: Sequence[tuple[float, float]],
    naive: Sequence[bool],
) -> MetricResult:
    """Count how often one metric was claimed and covered.

    Args:
        intervals: of every comparison.
        naive: whether the naive method claimed a difference in each; may be empty.
    """
    table = np.array(intervals)
    low, high = table[:, 0], table[:, 1]
    cases = len(table)
    return MetricResult(
        metric,
        true_change,
        Share(cases, int(np.sum((low > 0) | (high < 0)))),
        Share(cases, int(np.sum((low <= true_change) & (true_change <= high)))),
        Share(cases, sum(naive)) if naive else None,
        half if math.isfinite(half := float(np.median((high - low) / 2))) else None,
    )


def naive_claims(treatment: Sample, baseline: Sample, seed: int, resamples: int = 200) -> bool:
    """Whether the usual bootstrap claims a difference: single requests, each run on its own."""
    generator = np.random.default_rng(seed)
    logs = []
    for sample in (treatment, baseline):
        n = len(sample.values)
        if sample.statistic == "percentile":
            value = _naive_percentiles(sample, resamples, generator)
        else:
            value = sample.values[drawn_blocks(n, 1, resamples, generator)].mean(axis=1)
            if sample.statistic == "rate":
                value = value * n / sample.duration_seconds
        logs.append(np.log(value))
    low, high = np.quantile(logs[0] - logs[1], [0.025, 0.975])
    return bool(low > 0 or high < 0)


def _naive_percentiles(
    sample: Sample, resamples: int, generator: np.random.Generator
) -> FloatArray:
    """(resamples,) percentiles of n values that were drawn with replacement, without drawing all.

    The k-th smallest of n uniform numbers is Beta(k, n + 1 - k), and the next one divides what
    is left above it (David & Nagaraja, "Order Statistics", 2003, section 2.5).
    """
    ordered, n = np.sort(sample.values), len(sample.values)
    place = sample.percentile / 100 * (n - 1)
    rank = min(int(place), n - 2)
    lower = generator.beta(rank + 1, n - rank, size=resamples)
    upper = 1 - (1 - lower) * generator.random(resamples) ** (1 / (n - rank - 1))
    picked = [ordered[np.minimum((n * share).astype(int), n - 1)] for share in (lower, upper)]
    return np.asarray(picked[0] + (place - rank) * (picked[1] - picked[0]))
