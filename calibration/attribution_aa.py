"""How often the intervals of an attribution contain what is true, on synthetic queues.

Two features, each of which may do something: faster prefills, and less delay of half of the
first tokens. Their four combinations are simulated with the same traffic, a few times each, as
``python -m pytest_dynamo_bench attribution`` does with the replay's seeds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from calibration.queues import (
    ORDINARY,
    SyntheticRuns,
    make_traffic,
    samples,
    simulate,
)
from calibration.study import (
    MetricResult,
    ScenarioResult,
    metric_result,
    pooled_value,
)
from pytest_dynamo_bench.arrays import FloatArray
from pytest_dynamo_bench.attribution import Attribution, Combination, attribute
from pytest_dynamo_bench.attribution_runs import resample_combinations

FEATURES = ("faster_prefill", "less_delay")
_COMBINATIONS: tuple[Combination, ...] = (
    frozenset(),
    frozenset(FEATURES[:1]),
    frozenset(FEATURES[1:]),
    frozenset(FEATURES),
)
_DELAYED_SHARE = 0.5


@dataclass(frozen=True)
class AttributionScenario:
    """A kind of attribution, made many times.

    Attributes:
        name: for the report.
        comparisons: attributions.
        n: requests in a run.
        repeats: runs of each combination.
        naive: there is no naive method here.
        prefill_factor: of the first feature.
        delay: that the second feature takes away, relative to the mean time to first token.
        metrics: that are attributed.
    """

    name: str
    comparisons: int
    n: int = 600
    repeats: int = 3
    naive: bool = False
    prefill_factor: float = 1.0
    delay: float = 0.0
    metrics: tuple[str, ...] = ("time_to_first_token.mean", "time_to_first_token.p90", "goodput")


def attribution_scenarios(scale: float = 1.0) -> dict[str, AttributionScenario]:
    """The parts of the study by name; ``scale`` shortens them."""
    many = max(20, round(200 * scale))
    return {
        "attribution-nothing": AttributionScenario(
            "Attribution, two features that do nothing", many
        ),
        "attribution-two": AttributionScenario(
            "Attribution, two features that do something", many, prefill_factor=0.95, delay=0.10
        ),
        "attribution-one-run": AttributionScenario(
            "Attribution, two features that do something, one run of each",
            many, repeats=1, prefill_factor=0.95, delay=0.10,
        ),
    }  # fmt: skip


def run_attribution_scenario(
    scenario: AttributionScenario,
    *,
    resamples: int = 500,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> ScenarioResult:
    """Make all attributions of a scenario.

    Args:
        scenario: what to attribute.
        resamples: of the bootstrap in every attribution.
        seed: of everything random; the same seed gives the same result.
        tell: called with how many of how many are made.
    """
    started = time.monotonic()
    generator = np.random.default_rng([seed, 2])
    runs = _simulate(scenario, generator)
    results: list[MetricResult] = []
    for number, metric in enumerate(scenario.metrics):
        truth = _rows(attribute(FEATURES, _pooled(runs, metric)))
        intervals: dict[str, list[tuple[float, float]]] = {}
        for world in range(scenario.comparisons):
            tell(
                number * scenario.comparisons + world, len(scenario.metrics) * scenario.comparisons
            )
            by_combination = {
                combination: {
                    index: samples(run, world, (metric,), "")[0] for index, run in enumerate(made)
                }
                for combination, made in runs.items()
            }
            values = {
                combination: float(np.mean([sample.value for sample in made.values()]))
                for combination, made in by_combination.items()
            }
            draws, _, _ = resample_combinations(by_combination, resamples)
            for name, (_, low, high) in _rows(attribute(FEATURES, values, draws)).items():
                intervals.setdefault(name, []).append((low, high))
        for name, found in intervals.items():
            true = truth[name][0] if scenario.prefill_factor != 1 or scenario.delay else 0.0
            results.append(metric_result(f"{metric}, {name}", true, found, ()))
    return ScenarioResult(scenario, tuple(results), time.monotonic() - started)


def _simulate(
    scenario: AttributionScenario, generator: np.random.Generator
) -> dict[Combination, list[SyntheticRuns]]:
    traffic = make_traffic(scenario.comparisons, scenario.n, ORDINARY, generator)
    faster = dataclasses.replace(ORDINARY, prefill_factor=scenario.prefill_factor)
    found: dict[Combination, list[SyntheticRuns]] = {}
    for combination in _COMBINATIONS:
        model = faster if FEATURES[0] in combination else ORDINARY
        for _ in range(scenario.repeats):
            run = simulate(traffic, model, generator)
            if FEATURES[1] not in combination and scenario.delay:
                mean_ms = float(run.time_to_first_token_ms.mean())
                run = run.delayed(
                    _DELAYED_SHARE, scenario.delay * mean_ms / _DELAYED_SHARE, generator
                )
            found.setdefault(combination, []).append(run)
    return found


def _pooled(
    runs: Mapping[Combination, list[SyntheticRuns]], metric: str
) -> dict[Combination, float]:
    def joined(made: list[SyntheticRuns], name: str) -> FloatArray:
        return np.concatenate([getattr(run, f"{name}_ms").ravel() for run in made])

    return {
        combination: pooled_value(metric, lambda name, made=made: joined(made, name))  # type: ignore[misc]
        for combination, made in runs.items()
    }


def _rows(attribution: Attribution) -> dict[str, tuple[float, float, float]]:
    rows = {"total": attribution.total}
    for share in attribution.features:
        rows[f"{share.feature} alone"] = share.alone
        rows[f"{share.feature} on average"] = share.average
    return {name: (row.value, row.low, row.high) for name, row in rows.items()}
