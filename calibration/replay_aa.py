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
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

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
from pytest_dynamo_bench.targets.replay.runner import Runner
from pytest_dynamo_bench.targets.replay.simulation import Simulation
from pytest_dynamo_bench.targets.replay.target import ReplayTarget, plain_run
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
    runner: Runner | None = None,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> ReplayResult:
    """Make all comparisons of a scenario.

    Args:
        scenario: what to compare.
        resamples: of the bootstrap in every comparison.
        seed: of the first comparison's seeds; the same seed gives the same result.
        runner: simulates.
        tell: called with how many of how many comparisons are made.

    Raises:
        DeploymentError: a simulation failed, or another seed changed nothing, so that there is
            nothing to judge.
    """
    started = time.monotonic()
    runner = runner or Runner()
    traffic = BENCHMARK.traffic.load()
    configuration = BENCHMARK.configuration(scenario.configuration)
    span = scenario.n * (1 if scenario.same_traffic else 2)
    starts = np.linspace(0, len(traffic.requests) - span, scenario.comparisons).astype(int)
    windows: dict[tuple[int, int], Traffic] = {}
    jobs: dict[tuple[int, int], Simulation] = {}
    for number, start in enumerate(starts.tolist()):
        # Baseline and treatment.
        for side in range(2):
            first = start + (0 if scenario.same_traffic else side * scenario.n)
            target = ReplayTarget(seed=2 * (seed * scenario.comparisons + number) + side)
            windows[number, side] = window(traffic, first, scenario.n)
            jobs[number, side] = target.simulation(BENCHMARK, configuration, windows[number, side])
    runs: dict[tuple[int, int], Run] = {}
    judged: dict[int, _Judged] = {}
    for key, simulated, _ in runner.simulated(jobs):
        if simulated.seeding != "seeded":
            raise DeploymentError(f"the simulation is not reproducible: {simulated.seeding}")
        runs[key] = plain_run(BENCHMARK, configuration, jobs[key], simulated)
        number = key[0]
        if {(number, 0), (number, 1)} <= runs.keys():
            pair = [(runs.pop((number, side)), windows[number, side]) for side in (1, 0)]
            judged[number] = _judged(scenario, pair[0], pair[1], resamples, number)
            tell(len(judged), scenario.comparisons)
    every = [judged[number] for number in sorted(judged)]
    results = tuple(
        metric_result(
            metric,
            0.0,
            [one.intervals[metric] for one in every],
            [one.naive[metric] for one in every if scenario.naive],
        )
        for metric in scenario.metrics
    )
    closed = Counter(gate for one in every for gate in one.closed)
    return ReplayResult(scenario, results, time.monotonic() - started, dict(sorted(closed.items())))


@dataclass(frozen=True)
class _Judged:
    """One comparison: intervals and naive claims by metric, and the gates that are closed."""

    intervals: dict[str, tuple[float, float]]
    naive: dict[str, bool]
    closed: set[str]


def _judged(
    scenario: ReplayScenario,
    treatment: tuple[Run, Traffic],
    baseline: tuple[Run, Traffic],
    resamples: int,
    number: int,
) -> _Judged:
    if scenario.same_traffic and treatment[0].records == baseline[0].records:
        raise DeploymentError(
            f"comparison {number}: two seeds gave identical runs; nothing is random"
        )
    found = _Judged({}, {}, _closed_gates(scenario, treatment, baseline))
    sides = [Metrics(run, BENCHMARK.goodput) for run, _ in (treatment, baseline)]
    for metric in scenario.metrics:
        samples: list[Sample] = [side.sample(metric) for side in sides]
        effect = estimate_effect(samples[:1], samples[1:], resamples=resamples, seed=number)
        found.intervals[metric] = (effect.low, effect.high)
        if scenario.naive:
            found.naive[metric] = naive_claims(samples[0], samples[1], number)
    return found


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
