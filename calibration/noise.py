"""Servers with noise that outlasts a request: what a single run of each cannot tell from an effect.

The queues of :mod:`~calibration.queues` are correlated over tens of requests. Here the machine's
speed drifts over tens of seconds, a neighbour comes and goes, runs differ, sessions stick to a slow
worker, bursts overload the server, and a percentile lies between cache hits and misses. One server
handles prefills first come, first served; its speed applies to prefills and tokens alike.

Sources:
    Uhlenbeck & Ornstein, "On the theory of the Brownian motion", Phys. Rev. 36 (1930): the drift.
    Lindley, "The theory of queues with a single server", Proc. Camb. Phil. Soc. 48 (1952):
    waiting times.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from calibration.study import MetricResult, ScenarioResult, metric_result
from pytest_dynamo_bench.arrays import BoolArray, FloatArray, IntArray
from pytest_dynamo_bench.metrics import Sample
from pytest_dynamo_bench.verdicts.effect import estimate_effect

NOISE_METRICS = (
    "time_to_first_token.mean",
    "time_to_first_token.p50",
    "time_to_first_token.p90",
    "time_to_first_token.p99",
    "inter_token_latency.mean",
    "request_latency.mean",
    "output_token_throughput",
    "goodput",
    "kv_hit_rate",
)
_TTFT_MEAN = "time_to_first_token.mean"
_WORLDS_AT_ONCE = 50
_TOKEN_MS = 15.0
_MEAN_OUTPUT_TOKENS = 60.0
_JITTER_SD = 0.05


@dataclass(frozen=True)
class NoisyServer:
    """A server and its traffic; times in seconds, all deviations relative.

    Attributes:
        rate: mean requests per second.
        utilization: share of time that prefills take.
        length_sd: of the logarithm of prefill work, from request to request.
        drift_sd: of the speed, an Ornstein-Uhlenbeck process.
        drift_seconds: in which its correlation falls to 1/e.
        run_sd: of the speed from run to run.
        slow_by: how much slower the machine is while a neighbour is there (telegraph noise).
        slow_seconds: mean stay of the neighbour.
        free_seconds: mean time without it.
        turns: of each session; 1 for requests that are independent of each other.
        turn_seconds: mean time between turns.
        placement_sd: of the speed of the worker to which a session sticks in one run.
        burst_seconds: length of a burst of arrivals; 0 for a Poisson process.
        calm_seconds: mean time between bursts.
        burst_rate: arrivals in a burst, as a multiple of those in between.
        hit_share: of requests that find their prompt cached, at random in each run.
        hit_saves: of the prefill where the prompt is cached.
    """

    rate: float = 10.0
    utilization: float = 0.3
    length_sd: float = 0.5
    drift_sd: float = 0.0
    drift_seconds: float = 20.0
    run_sd: float = 0.0
    slow_by: float = 0.0
    slow_seconds: float = 20.0
    free_seconds: float = 60.0
    turns: int = 1
    turn_seconds: float = 6.0
    placement_sd: float = 0.0
    burst_seconds: float = 0.0
    calm_seconds: float = 60.0
    burst_rate: float = 1.0
    hit_share: float = 0.5
    hit_saves: float = 0.0


@dataclass(frozen=True)
class NoiseScenario:
    """Comparisons on one server.

    Attributes:
        name: for the report.
        comparisons: how many.
        n: requests in a run.
        repeats: runs of each configuration in a comparison.
        server: the system.
        same_traffic: whether both configurations get the same requests.
        factor: of the treatment's times; 1 is the same configuration.
        metrics: that are claimed.
        naive: always False; the naive method is not judged here.
    """

    name: str
    comparisons: int
    n: int
    server: NoisyServer
    repeats: int = 1
    same_traffic: bool = True
    factor: float = 1.0
    metrics: tuple[str, ...] = NOISE_METRICS
    naive: bool = False


@dataclass(frozen=True)
class _Traffic:
    """(worlds, n) each: seconds at which requests are due, prefill ms, tokens, and sessions."""

    due: FloatArray
    prefill_ms: FloatArray
    tokens: FloatArray
    session: IntArray


@dataclass(frozen=True)
class _Measured:
    """(worlds, n) each, in ms; ``hit`` where the prompt was cached."""

    first_token_ms: FloatArray
    token_ms: FloatArray
    hit: BoolArray


def noise_scenarios(scale: float = 1.0) -> dict[str, NoiseScenario]:
    """The study by name of each part; ``scale`` shortens it."""
    count = max(20, round(400 * scale))
    drift = NoisyServer(drift_sd=0.05)
    quick = NoisyServer(rate=50.0, drift_sd=0.02)
    differ = NoisyServer(run_sd=0.02)
    telegraph = NoisyServer(slow_by=0.15)
    sessions = NoisyServer(turns=10, placement_sd=0.2)
    overload = NoisyServer(burst_seconds=10.0, burst_rate=5.0, utilization=0.45)
    bimodal = NoisyServer(hit_share=0.9, hit_saves=0.95, length_sd=0.2, utilization=0.01)
    heavy = NoisyServer(length_sd=1.0)
    kinds: dict[str, tuple[str, NoisyServer, int, bool]] = {
        "drift-150": ("speed drifts by 5 % over 20 s", drift, 150, True),
        "drift-400": ("speed drifts by 5 % over 20 s", drift, 400, True),
        "drift-1000": ("speed drifts by 5 % over 20 s", drift, 1000, True),
        "drift-4000": ("speed drifts by 2 % over 20 s, 50 requests/s", quick, 4000, True),
        "runs-400": ("runs differ by 2 %", differ, 400, True),
        "telegraph-1000": ("15 % slower for 20 s now and then", telegraph, 1000, True),
        "sessions-1000": ("sessions of ten turns stick to a worker", sessions, 1000, True),
        "overload-1000": ("bursts of 10 s overload the server", overload, 1000, True),
        "gap-1000": ("p90 between cache hits and misses", bimodal, 1000, True),
        "lognormal-400": ("lognormal prompts (1.0), different traffic", heavy, 400, False),
        "bursts-400": ("bursts, different traffic", overload, 400, False),
        "quiet-400": ("quiet, lognormal prompts (1.0)", heavy, 400, True),
    }
    found = {
        f"noise-{name}": NoiseScenario(f"A/A, {text}", count, n, server, same_traffic=same)
        for name, (text, server, n, same) in kinds.items()
    }
    found |= {
        f"noise-{name}-3": NoiseScenario(
            f"A/A, {text}, 3 repeats", count, n, server, repeats=3, same_traffic=same
        )
        for name, (text, server, n, same) in kinds.items()
        if n <= 1000
    }
    planted = {
        "noise-planted-quiet-3": ("10 % higher, lognormal prompts (1.0)", heavy, 400, 1.1),
        "noise-planted-drift-3": ("20 % higher, speed drifts by 5 % over 20 s", drift, 400, 1.2),
    }
    found |= {
        name: NoiseScenario(
            f"{text}, 3 repeats", count, n, server, repeats=3, factor=factor,
            metrics=(_TTFT_MEAN, "time_to_first_token.p50", "inter_token_latency.mean"),
        )
        for name, (text, server, n, factor) in planted.items()
    }  # fmt: skip
    return found


def run_noise_scenario(
    scenario: NoiseScenario,
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
    for first in range(0, scenario.comparisons, _WORLDS_AT_ONCE):
        worlds = min(_WORLDS_AT_ONCE, scenario.comparisons - first)
        generator = np.random.default_rng([seed, first])
        pairs = _pairs(scenario, worlds, generator)
        for world in range(worlds):
            tell(first + world, scenario.comparisons)
            arms: tuple[list[dict[str, Sample]], ...] = ([], [])
            for repeat, pair in enumerate(pairs):
                for arm, (traffic, measured) in enumerate(pair):
                    tag = "" if scenario.same_traffic else f"arm{arm}-run{repeat}-"
                    arms[arm].append(_samples(traffic, measured, world, scenario, tag))
            for metric in scenario.metrics:
                effect = estimate_effect(
                    [run[metric] for run in arms[0]], [run[metric] for run in arms[1]],
                    resamples=resamples, seed=first + world,
                )  # fmt: skip
                intervals[metric].append((effect.low, effect.high))
    results = tuple(_result(scenario, metric, intervals[metric]) for metric in scenario.metrics)
    return ScenarioResult(scenario, results, time.monotonic() - started)


def _result(
    scenario: NoiseScenario, metric: str, intervals: list[tuple[float, float]]
) -> MetricResult:
    return metric_result(metric, scenario.factor - 1, intervals, [])


def _pairs(
    scenario: NoiseScenario, worlds: int, generator: np.random.Generator
) -> list[tuple[tuple[_Traffic, _Measured], ...]]:
    """The runs of each repeat: first the treatment's, then the baseline's."""
    traffic = _make_traffic(worlds, scenario.n, scenario.server, generator)
    pairs = []
    for _ in range(scenario.repeats):
        sides = []
        for factor in (scenario.factor, 1.0):
            if not scenario.same_traffic:
                traffic = _make_traffic(worlds, scenario.n, scenario.server, generator)
            measured = _measure(traffic, scenario.server, generator)
            if factor != 1:
                measured = dataclasses.replace(
                    measured,
                    first_token_ms=factor * measured.first_token_ms,
                    token_ms=factor * measured.token_ms,
                )
            sides.append((traffic, measured))
        pairs.append(tuple(sides))
    return pairs


def _make_traffic(
    worlds: int, n: int, server: NoisyServer, generator: np.random.Generator
) -> _Traffic:
    shape = (worlds, n)
    sessions = -(-n // server.turns)
    session = np.broadcast_to(np.arange(n) // server.turns, shape)
    if server.burst_seconds:
        due = _bursty(worlds, n, server, generator)
    elif server.turns > 1:
        starts = generator.uniform(0, n / server.rate, size=(worlds, sessions))
        gaps = generator.exponential(server.turn_seconds, size=(worlds, sessions, server.turns))
        gaps[:, :, 0] = 0
        due = (starts[:, :, None] + np.cumsum(gaps, axis=2)).reshape(worlds, -1)[:, :n]
    else:
        due = np.cumsum(generator.exponential(1 / server.rate, size=shape), axis=1)
    order = np.argsort(due, axis=1, kind="stable")
    prefill = np.exp(server.length_sd * generator.normal(size=shape) - server.length_sd**2 / 2)
    tokens = 2 + generator.geometric(1 / (_MEAN_OUTPUT_TOKENS - 2), size=shape)
    return _Traffic(
        np.take_along_axis(due, order, axis=1),
        prefill * 1000 * server.utilization / server.rate / _work(server),
        tokens.astype(np.float64),
        np.take_along_axis(session, order, axis=1),
    )


def _work(server: NoisyServer) -> float:
    """Mean prefill of a request as a share of one that finds nothing cached."""
    return 1 - server.hit_share * server.hit_saves


def _bursty(worlds: int, n: int, server: NoisyServer, generator: np.random.Generator) -> FloatArray:
    """Due times with bursts of fixed length after calm times that are exponential."""
    share = server.burst_seconds / (server.burst_seconds + server.calm_seconds)
    calm_rate = server.rate / (1 + share * (server.burst_rate - 1))
    work = np.cumsum(generator.exponential(size=(worlds, n)), axis=1)
    due = np.empty((worlds, n))
    periods = 4 + int(4 * n / server.rate / (server.burst_seconds + server.calm_seconds))
    for world in range(worlds):
        lengths = np.empty(2 * periods)
        lengths[0::2] = generator.exponential(server.calm_seconds, periods)
        lengths[1::2] = server.burst_seconds
        rates = np.tile([calm_rate, calm_rate * server.burst_rate], periods)
        ends = np.concatenate([[0.0], np.cumsum(lengths)])
        expected = np.concatenate([[0.0], np.cumsum(lengths * rates)])
        # What the periods do not cover goes on at the last rate.
        beyond = np.maximum(work[world] - expected[-1], 0) / rates[-1]
        due[world] = np.interp(work[world], expected, ends) + beyond
    return due


def _measure(traffic: _Traffic, server: NoisyServer, generator: np.random.Generator) -> _Measured:
    """One run of the traffic in every world."""
    shape = traffic.due.shape
    slow = _slowness(traffic, server, generator)
    jitter = np.exp(_JITTER_SD * generator.normal(size=(2, *shape)))
    hit = generator.random(shape) < server.hit_share
    prefill = traffic.prefill_ms * (1 - server.hit_saves * hit) * slow * jitter[0]
    due_ms = 1000 * traffic.due
    done = np.cumsum(prefill, axis=1)
    # Lindley: a prefill ends when all work since the last idle moment is done.
    end = done + np.maximum.accumulate(due_ms - (done - prefill), axis=1)
    return _Measured(end - due_ms, _TOKEN_MS * slow * jitter[1], hit)


def _slowness(traffic: _Traffic, server: NoisyServer, generator: np.random.Generator) -> FloatArray:
    """(worlds, n) how much slower than normal the machine is for each request."""
    worlds, n = traffic.due.shape
    elapsed = np.diff(traffic.due, axis=1, prepend=traffic.due[:, :1])
    log_slow = np.zeros((worlds, n))
    if server.drift_sd:
        keep = np.exp(-elapsed / server.drift_seconds)
        steps = generator.normal(size=(worlds, n)) * np.sqrt(1 - keep**2)
        state = generator.normal(size=worlds)
        for i in range(n):
            state = keep[:, i] * state + steps[:, i]
            log_slow[:, i] += server.drift_sd * state
    if server.slow_by:
        share = server.slow_seconds / (server.slow_seconds + server.free_seconds)
        keep = np.exp(-elapsed * (1 / server.slow_seconds + 1 / server.free_seconds))
        drawn = generator.random((worlds, n))
        there = generator.random(worlds) < share
        for i in range(n):
            there = drawn[:, i] < share * (1 - keep[:, i]) + keep[:, i] * there
            log_slow[:, i] += np.log1p(server.slow_by) * there
    if server.placement_sd:
        placed = server.placement_sd * generator.normal(size=(worlds, n))
        log_slow += np.take_along_axis(placed, traffic.session, axis=1)
    return np.asarray(np.exp(log_slow + server.run_sd * generator.normal(size=(worlds, 1))))


def _samples(
    traffic: _Traffic, measured: _Measured, world: int, scenario: NoiseScenario, tag: str
) -> dict[str, Sample]:
    """The metrics of one world's run; ``tag`` begins its request ids."""
    due_ms = 1000 * traffic.due[world]
    n = len(due_ms)
    ids = tuple(f"{tag}{i:06d}" for i in range(n))
    first, token = measured.first_token_ms[world], measured.token_ms[world]
    latency = first + token * (traffic.tokens[world] - 1)
    end_ms = due_ms + latency
    seconds = float(end_ms.max() - due_ms.min()) / 1000
    latencies = {
        "time_to_first_token": first, "inter_token_latency": token, "request_latency": latency,
    }  # fmt: skip
    mean_ms = float(traffic.prefill_ms.mean()) * _work(scenario.server)
    rates = {
        "goodput": (first <= 3 * mean_ms).astype(np.float64),
        "output_token_throughput": traffic.tokens[world],
    }
    found = {}
    for metric in scenario.metrics:
        name, _, statistic = metric.partition(".")
        if name in rates:
            found[metric] = Sample(
                metric, rates[name], None, "rate", ids, due_ms,
                duration_seconds=seconds, end_ms=end_ms,
            )  # fmt: skip
        elif name in latencies:
            percentile = 0.0 if statistic == "mean" else float(statistic[1:])
            found[metric] = Sample(
                metric, latencies[name], None, "percentile" if percentile else "mean", ids, due_ms,
                percentile=percentile,
            )  # fmt: skip
        else:
            hits = measured.hit[world].astype(np.float64)
            found[metric] = Sample(metric, hits, np.ones(n), "ratio", ids, due_ms)
    return found
