"""A/A comparisons on Dynamo's own simulation: one configuration twice, with other seeds.

What differs between the two runs is what is random in a real deployment, too: how Dynamo's KV
router breaks ties between equally good workers. After the first tie that falls otherwise the two
runs have other queues and other caches. Each comparison has a window of the conversation trace,
begun with cold caches, and two seeds that no other comparison has.

Windows overlap, since the trace has only twenty windows of 600 requests. With the *same
traffic* on both sides that leaves comparisons independent given the traffic, because all that is
random is the seeds. With *neighbouring windows* the traffic itself makes the difference, and
comparisons with overlapping windows are alike: their binomial intervals are too narrow.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.kept import KeptRuns
from calibration.study import (
    METRICS,
    MetricResult,
    metric_result,
    naive_claims,
)
from pytest_dynamo_bench.benchmark import Benchmark, Configuration, Goodput, Hardware, Worker
from pytest_dynamo_bench.errors import DeploymentError
from pytest_dynamo_bench.metrics import Metrics, Sample
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.targets.base import PlannedRun, Unwatched
from pytest_dynamo_bench.targets.replay.target import ReplayTarget
from pytest_dynamo_bench.traffic import MooncakeTrace, Traffic
from pytest_dynamo_bench.verdicts import check_pair, check_run, estimate_effect

# Those of benchmarks/qwen3_32b_kv_routing.py, repeated here: runs that were kept stay comparable
# when the benchmark changes.
_KV_BLOCKS = 11_328
AGGREGATED = Configuration(
    "agg-kv-router", "treatment", [Worker(8, tp=2, kv_blocks=_KV_BLOCKS)], "kv"
)
SPLIT = Configuration(
    "disagg-kv-router",
    "promoted",
    [
        Worker(6, mode="prefill", tp=2, kv_blocks=_KV_BLOCKS),
        Worker(2, mode="decode", tp=2, kv_blocks=_KV_BLOCKS, prefix_caching=False),
    ],
    "kv",
)
BENCHMARK = Benchmark(
    name="replay-aa",
    question="Do two runs of one configuration differ?",
    model="Qwen/Qwen3-32B",
    hardware=Hardware("H200", count=16, nodes=2, kv_transfer_gb_per_second=100),
    traffic=MooncakeTrace("conversation"),
    goodput=Goodput(time_to_first_token_ms=2000, inter_token_latency_ms=25),
    configurations=[AGGREGATED, SPLIT],
    claims=(),
)


@dataclass(frozen=True)
class ReplayScenario:
    """A kind of A/A comparison on the replay.

    Attributes:
        name: for the report.
        comparisons: how many; each is two simulations.
        n: requests in a window.
        configuration: that both sides have.
        same_traffic: whether both sides get the same window; otherwise the treatment gets the
            one that follows the baseline's.
        repeats: runs of each side in a comparison.
        naive: whether to judge with the naive method, too.
        metrics: that are claimed.
    """

    name: str
    comparisons: int
    n: int = 600
    configuration: str = AGGREGATED.name
    same_traffic: bool = True
    repeats: int = 1
    naive: bool = True
    metrics: tuple[str, ...] = METRICS


@dataclass(frozen=True)
class ReplayResult:
    """All metrics of a scenario, and how long it took.

    Attributes:
        gates_closed: by the name of each validity gate, comparisons that it would have declared
            invalid; they are judged here all the same.
    """

    scenario: ReplayScenario
    metrics: tuple[MetricResult, ...]
    seconds: float
    gates_closed: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def replay_scenarios(scale: float = 1.0) -> dict[str, ReplayScenario]:
    """The replay's parts of the study by name; ``scale`` shortens them."""
    many = max(20, round(200 * scale))
    return {
        "replay-aa": ReplayScenario("8 aggregated workers, same traffic", many),
        "replay-aa-split": ReplayScenario(
            "6 prefill and 2 decode workers, same traffic", many, configuration=SPLIT.name
        ),
        "replay-aa-neighbours": ReplayScenario(
            "8 aggregated workers, neighbouring windows", many, n=500, same_traffic=False
        ),
    }


def window(traffic: Traffic, first: int, n: int) -> Traffic:
    """``n`` requests of a traffic from number ``first`` on, the first of them due at once."""
    requests = traffic.requests[first : first + n]
    start_ms = requests[0].timestamp_ms
    moved = tuple(
        dataclasses.replace(request, timestamp_ms=request.timestamp_ms - start_ms)
        for request in requests
    )
    step = f"requests {first:,} to {first + len(moved) - 1:,}"
    return dataclasses.replace(traffic, requests=moved, history=(*traffic.history, step))


def check_replay() -> None:
    """Find out whether the replay's parts can be run here.

    Raises:
        TargetError: Dynamo's replay is not installed; the message says what to install.
    """
    ReplayTarget().check(BENCHMARK)


def run_replay_scenario(
    scenario: ReplayScenario,
    *,
    resamples: int = 500,
    seed: int = 0,
    kept: KeptRuns | None = None,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> ReplayResult:
    """Make all comparisons of a scenario, one simulation after another.

    Args:
        scenario: what to compare.
        resamples: of the bootstrap in every comparison.
        seed: of the first comparison's seeds; the same seed gives the same result.
        kept: where simulated runs are found and kept; None is nowhere.
        tell: called with how many of how many comparisons are made.

    Raises:
        DeploymentError: a simulation failed, or another seed changed nothing, so that there is
            nothing to judge.
    """
    started = time.monotonic()
    traffic = BENCHMARK.traffic.load()
    configuration = BENCHMARK.configuration(scenario.configuration)
    span = scenario.n * (1 if scenario.same_traffic else 2)
    starts = np.linspace(0, len(traffic.requests) - span, scenario.comparisons).astype(int)
    intervals: dict[str, list[tuple[float, float]]] = {metric: [] for metric in scenario.metrics}
    naive: dict[str, list[bool]] = {metric: [] for metric in scenario.metrics}
    closed: Counter[str] = Counter()
    for number, start in enumerate(starts):
        baseline_traffic = window(traffic, int(start), scenario.n)
        treatment_traffic = (
            baseline_traffic
            if scenario.same_traffic
            else window(traffic, int(start) + scenario.n, scenario.n)
        )
        first_seed = 2 * (seed * scenario.comparisons + number)
        tell(number, scenario.comparisons)
        baseline = _simulate(configuration, baseline_traffic, first_seed, kept)
        treatment = _simulate(configuration, treatment_traffic, first_seed + 1, kept)
        if scenario.same_traffic and treatment.records == baseline.records:
            raise DeploymentError(
                f"seeds {first_seed} and {first_seed + 1} gave identical runs; nothing is random"
            )
        closed.update(
            _closed_gates(scenario, (treatment, treatment_traffic), (baseline, baseline_traffic))
        )
        sides = [Metrics(run, BENCHMARK.goodput) for run in (treatment, baseline)]
        for metric in scenario.metrics:
            samples: list[Sample] = [side.sample(metric) for side in sides]
            effect = estimate_effect(samples[:1], samples[1:], resamples=resamples, seed=number)
            intervals[metric].append((effect.low, effect.high))
            if scenario.naive:
                naive[metric].append(naive_claims(samples[0], samples[1], number))
    results = tuple(
        metric_result(metric, 0.0, intervals[metric], naive[metric]) for metric in scenario.metrics
    )
    return ReplayResult(scenario, results, time.monotonic() - started, dict(sorted(closed.items())))


def _simulate(
    configuration: Configuration, traffic: Traffic, seed: int, kept: KeptRuns | None
) -> Run:
    # The last step of a traffic's history says which window it is.
    window = re.sub(r"\D+", "-", traffic.history[-1]).strip("-")
    name = f"replay-{configuration.name}-{window}-seed-{seed}"
    run = kept.get(name) if kept else None
    if run is None:
        with tempfile.TemporaryDirectory(prefix="replay-aa-") as directory:
            run = ReplayTarget(seed=seed).measure(
                PlannedRun(BENCHMARK, configuration, traffic, Path(directory)), Unwatched()
            )
        if run.problems:
            raise DeploymentError("; ".join(run.problems))
        if kept:
            run = kept.put(name, run)
    return run


def _closed_gates(
    scenario: ReplayScenario, treatment: tuple[Run, Traffic], baseline: tuple[Run, Traffic]
) -> set[str]:
    """Names of the gates that would have kept a verdict from being given."""
    found = [
        gate
        for run, traffic in (treatment, baseline)
        for metric in scenario.metrics
        for gate in check_run(run, traffic.schedule, metric, traffic=traffic)
    ]
    if scenario.same_traffic:
        found += check_pair(treatment[0], baseline[0])
    return {gate.name for gate in found if not gate.passed}
