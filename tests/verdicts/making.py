"""Samples, records and runs with known properties, for the tests of verdicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pytest_dynamo_bench.metrics import Sample
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.traffic import FixedSchedule, Traffic, TrafficRequest

TTFT = "time_to_first_token.mean"


def sample(
    values: Sequence[float] | np.ndarray[Any, Any],
    metric: str = TTFT,
    *,
    tag: str = "",
    weights: np.ndarray[Any, Any] | None = None,
    seconds: float | None = None,
    ids: Sequence[str] | None = None,
    lasted_ms: np.ndarray[Any, Any] | None = None,
) -> Sample:
    """A metric whose n requests are due every 100 ms."""
    array = np.asarray(values, dtype=float)
    due = np.arange(len(array)) * 100.0
    name, _, statistic = metric.partition(".")
    kind: Any = "percentile" if statistic[1:].isdigit() else statistic
    if not statistic:
        kind = "ratio" if name == "kv_hit_rate" else "rate"
    return Sample(
        metric,
        array,
        weights,
        kind,
        tuple(ids) if ids is not None else tuple(f"{tag}{i:05d}" for i in range(len(array))),
        due,
        percentile=float(statistic[1:]) if kind == "percentile" else 0.0,
        duration_seconds=seconds if seconds is not None else len(array) / 10,
        end_ms=None if lasted_ms is None else due + lasted_ms,
    )


def correlated(
    n: int, seed: int, *, keep: float = 0.8, spread: float = 0.5
) -> np.ndarray[Any, Any]:
    """Positive values that are correlated from one to the next, with a median of 200."""
    generator = np.random.default_rng(seed)
    state, states = generator.normal(), []
    for step in generator.normal(size=n) * np.sqrt(1 - keep**2):
        state = keep * state + step
        states.append(state)
    return np.asarray(200 * np.exp(spread * np.array(states)))


def noisy(values: np.ndarray[Any, Any], seed: int, sd: float = 0.05) -> np.ndarray[Any, Any]:
    """The values with independent noise of a relative size."""
    generator = np.random.default_rng(seed)
    return np.asarray(values * np.exp(sd * generator.normal(size=len(values))))


def record(index: int, ttft_ms: float = 100.0, **changes: Any) -> RequestRecord:
    """A request as it should be: due every 100 ms, 10 output tokens 10 ms apart."""
    due = 100.0 * index
    made = RequestRecord(
        request_id=f"{index:05d}",
        session_id=f"{index:05d}",
        turn=0,
        scheduled_ms=due,
        sent_ms=due + 0.5,
        chunk_ms=tuple(due + 0.5 + ttft_ms + 10 * k for k in range(10)),
        end_ms=due + 0.5 + ttft_ms + 100,
        input_tokens=1000,
        output_tokens=10,
        prompt_tokens=1000,
        completion_tokens=10,
        cached_tokens=0,
        status=200,
    )
    return dataclasses.replace(made, **changes)


def run(records: Sequence[RequestRecord], configuration: str = "kv", **changes: Any) -> Run:
    """A run of the local target."""
    made = Run(
        benchmark="b",
        configuration=configuration,
        target="local",
        gpus=1,
        records=records,
        started_at="2026-01-01T00:00:00Z",
    )
    return dataclasses.replace(made, **changes)


def traffic(count: int, shared_blocks: bool = False) -> Traffic:
    """What :func:`record` answers; every prompt starts with a block of its own, or all alike."""
    requests = [
        TrafficRequest(
            f"{i:05d}",
            f"{i:05d}",
            0,
            100.0 * i,
            0.0,
            1000,
            10,
            (0 if shared_blocks else i, 10_000 + i),
        )
        for i in range(count)
    ]
    return Traffic(requests, FixedSchedule(), 512, ())
