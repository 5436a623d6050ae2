"""Synthetic serving systems whose requests are correlated as those of real ones are.

Many independent worlds are simulated side by side, request by request. In each, requests
arrive in bursts, prompts of neighbouring requests have similar lengths (conversations), a router
picks the less loaded of two random workers (so that two runs of the same traffic differ), each
worker prefills first come, first served, and everything that decodes there slows it down. A
slow drift of the machine's speed comes on top. None of this is meant to be Dynamo; it is meant to
be as hard for a statistical procedure as a real system is: waiting times are skewed and
correlated over hundreds of requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pytest_dynamo_bench.arrays import FloatArray
from pytest_dynamo_bench.metrics import Sample

GOODPUT_TTFT_MS = 800.0
_LENGTH_SD = 0.6
_MEAN_PREFILL_MS = 200.0
_MEAN_OUTPUT_TOKENS = 60.0
_TOKEN_MS = 15.0
_SLOWER_PER_DECODE = 0.02
_JITTER_SD = 0.05


@dataclass(frozen=True)
class QueueModel:
    """A serving system.

    Attributes:
        workers: that prefill in parallel.
        utilization: offered prefill work per worker, before decodes slow it down.
        burst_rate: arrivals in a burst, as a multiple of the mean rate.
        burst_share: of requests that arrive in bursts.
        burst_requests: mean number of requests in a burst.
        length_correlation: of the log prompt lengths of neighbouring requests.
        drift_sd: relative, of the machine's speed within a run.
        drift_requests: over how many requests that drift is correlated.
        run_sd: relative, of the machine's speed from run to run.
        closed_loop_sessions: with a number, requests are sent by so many sessions, each when
            its last one has ended; 0 is an open loop.
        prefill_factor: of the time of every prefill; a configuration that is slower has more.
    """

    workers: int = 4
    utilization: float = 0.5
    burst_rate: float = 2.0
    burst_share: float = 0.15
    burst_requests: float = 10.0
    length_correlation: float = 0.5
    drift_sd: float = 0.03
    drift_requests: float = 15.0
    run_sd: float = 0.0
    closed_loop_sessions: int = 0
    prefill_factor: float = 1.0


ORDINARY = QueueModel()
STRESS = QueueModel(
    utilization=0.6,
    burst_rate=3.0,
    burst_requests=25.0,
    length_correlation=0.7,
    drift_requests=50.0,
)


@dataclass(frozen=True)
class SyntheticTraffic:
    """Requests of every world: when they are due, their prefill work and output lengths.

    All are (worlds, n); ``due_ms`` is not used in a closed loop.
    """

    due_ms: FloatArray
    prefill_ms: FloatArray
    output_tokens: FloatArray


@dataclass(frozen=True)
class SyntheticRuns:
    """What was measured, (worlds, n) each, in ms."""

    due_ms: FloatArray
    time_to_first_token_ms: FloatArray
    inter_token_latency_ms: FloatArray
    output_tokens: FloatArray

    @property
    def end_ms(self) -> FloatArray:
        """When each request ended."""
        decode_ms = self.inter_token_latency_ms * (self.output_tokens - 1)
        return self.due_ms + self.time_to_first_token_ms + decode_ms

    def delayed(
        self, share: float, delay_ms: float, generator: np.random.Generator
    ) -> SyntheticRuns:
        """The same with a known delay added to the first token of a share of the requests."""
        hit = generator.random(self.due_ms.shape) < share
        return SyntheticRuns(
            self.due_ms,
            self.time_to_first_token_ms + delay_ms * hit,
            self.inter_token_latency_ms,
            self.output_tokens,
        )


def make_traffic(
    worlds: int, n: int, model: QueueModel, generator: np.random.Generator
) -> SyntheticTraffic:
    """Bursty arrivals (a two-state Markov-modulated Poisson process) of correlated prompts."""
    leave_burst = 1 / model.burst_requests
    enter_burst = leave_burst * model.burst_share / (1 - model.burst_share)
    switch = generator.random((n, worlds))
    innovation = generator.normal(size=(n, worlds)) * np.sqrt(1 - model.length_correlation**2)
    burst = generator.random(worlds) < model.burst_share
    level = generator.normal(size=worlds)
    in_burst, levels = np.empty((n, worlds), bool), np.empty((n, worlds))
    for i in range(n):
        burst = np.where(burst, switch[i] >= leave_burst, switch[i] < enter_burst)
        level = model.length_correlation * level + innovation[i]
        in_burst[i], levels[i] = burst, level
    mean_gap = _MEAN_PREFILL_MS / model.workers / model.utilization
    # Requests in a burst come faster, the others so much slower that the mean is kept.
    quiet = (1 - model.burst_share / model.burst_rate) / (1 - model.burst_share)
    gaps = generator.exponential(size=(n, worlds)) * mean_gap
    gaps *= np.where(in_burst, 1 / model.burst_rate, quiet)
    prefill = _MEAN_PREFILL_MS * np.exp(_LENGTH_SD * levels - _LENGTH_SD**2 / 2)
    tokens = 2 + generator.geometric(1 / (_MEAN_OUTPUT_TOKENS - 2), size=(n, worlds))
    return SyntheticTraffic(np.cumsum(gaps, axis=0).T, prefill.T, tokens.T.astype(np.float64))


def simulate(
    traffic: SyntheticTraffic, model: QueueModel, generator: np.random.Generator
) -> SyntheticRuns:
    """One run of the traffic in every world; noise and routing come from ``generator``."""
    worlds, n = traffic.prefill_ms.shape
    every = np.arange(worlds)
    first, second = generator.integers(0, model.workers, size=(2, n, worlds))
    jitter = np.exp(_JITTER_SD * generator.normal(size=(2, n, worlds)))
    speed = _drift(n, worlds, model, generator)
    prefill = traffic.prefill_ms.T * model.prefill_factor * jitter[0] * speed
    decode_scale_ms = _TOKEN_MS * _MEAN_OUTPUT_TOKENS * 2
    free = np.zeros((worlds, model.workers))
    decoding = np.zeros((worlds, model.workers))
    updated = np.zeros((worlds, model.workers))
    session_free = np.zeros((worlds, max(model.closed_loop_sessions, 1)))
    due_all, first_token, per_token = (np.empty((n, worlds)) for _ in range(3))
    for i in range(n):
        if model.closed_loop_sessions:
            session = session_free.argmin(axis=1)
            due = session_free[every, session]
        else:
            session, due = np.zeros(worlds, int), traffic.due_ms[:, i]
        a, b = first[i], second[i]
        worker = np.where(free[every, a] <= free[every, b], a, b)
        start = np.maximum(due, free[every, worker])
        # Decodes in flight, as a counter that each request raises by one and time lets decay.
        elapsed = np.maximum(start - updated[every, worker], 0.0)
        busy = decoding[every, worker] * np.exp(-elapsed / decode_scale_ms)
        slowed = 1 + _SLOWER_PER_DECODE * busy
        end = start + prefill[i] * slowed
        token_ms = _TOKEN_MS * slowed * jitter[1, i] * speed[i]
        free[every, worker] = end
        decoding[every, worker], updated[every, worker] = busy + 1, start
        session_free[every, session] = end + token_ms * (traffic.output_tokens[:, i] - 1)
        due_all[i], first_token[i], per_token[i] = due, end - due, token_ms
    return SyntheticRuns(due_all.T, first_token.T, per_token.T, traffic.output_tokens)


def _drift(n: int, worlds: int, model: QueueModel, generator: np.random.Generator) -> FloatArray:
    """(n, worlds) relative slowness of the machine: a slow AR(1), and one level per run."""
    keep = np.exp(-1 / model.drift_requests)
    innovation = generator.normal(size=(n, worlds)) * np.sqrt(1 - keep**2)
    state = generator.normal(size=worlds)
    states = np.empty((n, worlds))
    for i in range(n):
        state = keep * state + innovation[i]
        states[i] = state
    level = model.run_sd * generator.normal(size=worlds)
    return np.asarray(np.exp(model.drift_sd * states + level))


def samples(runs: SyntheticRuns, world: int, metrics: tuple[str, ...], tag: str) -> list[Sample]:
    """The metrics of one world's run; ``tag`` begins its request ids."""
    due = runs.due_ms[world]
    ids = tuple(f"{tag}{i:06d}" for i in range(len(due)))
    seconds = float(runs.end_ms[world].max() - due.min()) / 1000
    found = []
    for metric in metrics:
        name, _, statistic = metric.partition(".")
        if statistic:
            values = getattr(runs, f"{name}_ms")[world]
            if statistic == "mean":
                found.append(Sample(metric, values, None, "mean", ids, due))
            else:
                share = float(statistic[1:])
                found.append(Sample(metric, values, None, "percentile", ids, due, share))
            continue
        if name == "goodput":
            values = (runs.time_to_first_token_ms[world] <= GOODPUT_TTFT_MS).astype(np.float64)
        elif name == "request_throughput":
            values = np.ones(len(due))
        else:
            values = runs.output_tokens[world]
        found.append(
            Sample(
                metric,
                values,
                None,
                "rate",
                ids,
                due,
                duration_seconds=seconds,
                end_ms=runs.end_ms[world],
            )
        )
    return found
