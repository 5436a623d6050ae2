"""From records to metrics, by AIPerf's definitions.

A metric of a run is a :class:`Sample`: one value (and for a ratio one weight) per request,
in the order in which the requests were due, and the statistic that turns them into a
number. Verdicts resample the requests of a Sample and apply the same statistic.

Source of the definitions: the metrics reference of AIPerf 0.13. Only successful requests
count, except for the benchmark duration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from pytest_dynamo_bench.benchmark import Goodput
from pytest_dynamo_bench.metric_names import METRICS, parse_metric, percentile_of
from pytest_dynamo_bench.records import RequestRecord, Run

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """A metric of one run, request by request.

    Attributes:
        metric: its full name, such as ``time_to_first_token.p50``.
        values: (n,) one value per request.
        weights: (n,) the denominators of a ratio of sums; None for other statistics.
        statistic: ``mean``, ``percentile`` (with ``percentile``), ``min``, ``max``, ``ratio``
            (sum of values over sum of weights) or ``rate`` (sum of values over
            ``duration_seconds``, times ``factor``).
        request_ids: (n,) what pairs a request with the same request of another run.
        time_ms: (n,) when each request was due.
        end_ms: (n,) when its last response came; of rates only, where it is known.
    """

    metric: str
    values: FloatArray
    weights: FloatArray | None
    statistic: Literal["mean", "percentile", "min", "max", "ratio", "rate"]
    request_ids: tuple[str, ...]
    time_ms: FloatArray
    percentile: float = 0.0
    duration_seconds: float = 0.0
    factor: float = 1.0
    end_ms: FloatArray | None = None

    @property
    def value(self) -> float:
        """The metric; NaN when no request has it."""
        if len(self.values) == 0:
            return float("nan")
        return float(evaluate(self, self.values[None, :], _row(self.weights))[0])


def _row(array: FloatArray | None) -> FloatArray | None:
    return None if array is None else array[None, :]


def evaluate(sample: Sample, values: FloatArray, weights: FloatArray | None) -> FloatArray:
    """Apply the statistic of ``sample`` to resampled requests.

    Args:
        values: (resamples, n) values.
        weights: (resamples, n) weights, for a ratio.

    Returns:
        (resamples,) one number per row.
    """
    match sample.statistic:
        case "mean":
            return np.asarray(values.mean(axis=1))
        case "percentile":
            return np.asarray(np.percentile(values, sample.percentile, axis=1))
        case "min":
            return np.asarray(values.min(axis=1))
        case "max":
            return np.asarray(values.max(axis=1))
        case "ratio":
            assert weights is not None
            return np.asarray(values.sum(axis=1) / weights.sum(axis=1))
        case "rate":
            scale = sample.factor / sample.duration_seconds * len(sample.values) / values.shape[1]
            return np.asarray(values.sum(axis=1) * scale)


@dataclass(frozen=True)
class Distribution:
    """A metric over the requests of a run; unit as in its definition."""

    metric: str
    unit: str
    count: int
    mean: float
    min: float
    max: float
    p50: float
    p90: float
    p95: float
    p99: float

    def __repr__(self) -> str:
        return (
            f"<{self.metric} in {self.unit}: mean {self.mean:.4g}, p50 {self.p50:.4g}, "
            f"p90 {self.p90:.4g}, p99 {self.p99:.4g}, {self.count} values>"
        )


class Metrics:
    """The metrics of one run, by name, for reports and for plain assertions::

        assert metrics.time_to_first_token.p50 < 500
        assert metrics.goodput > 2

    Distributions are :class:`Distribution`, single numbers are floats.
    """

    def __init__(self, run: Run, goodput: Goodput | None = None) -> None:
        self.run = run
        self._goodput = goodput
        self._known: dict[str, tuple[FloatArray, list[RequestRecord]]] = {}

    def __repr__(self) -> str:
        return f"<Metrics of {self.run.configuration} on {self.run.target}>"

    @cached_property
    def _due(self) -> list[RequestRecord]:
        return sorted(self.run.records, key=lambda r: (r.scheduled_ms, r.request_id))

    @cached_property
    def _succeeded(self) -> list[RequestRecord]:
        return [record for record in self._due if record.succeeded and record.chunk_ms]

    @cached_property
    def duration_seconds(self) -> float:
        """Benchmark duration: first request sent to last response received."""
        sent = [record.sent_ms for record in self.run.records if record.sent_ms is not None]
        ends = [record.end_ms for record in self.run.records if record.end_ms is not None]
        return (max(ends) - min(sent)) / 1000 if sent and ends else float("nan")

    def sample(self, metric: str) -> Sample:
        """The metric with everything that is needed to resample it.

        Raises:
            ValueError: there is no such metric, or goodput was asked for without limits.
        """
        name, statistic = parse_metric(metric)
        if statistic is not None:
            values, records = self._distribution(name)
            percentile = percentile_of(statistic)
            return Sample(
                metric,
                values,
                None,
                "percentile" if percentile is not None else statistic,  # type: ignore[arg-type]
                tuple(record.request_id for record in records),
                np.array([record.scheduled_ms for record in records]),
                percentile=percentile or 0.0,
            )
        return self._single(name)

    def value(self, metric: str) -> float:
        """The metric as a number; NaN when no request has it."""
        return self.sample(metric).value

    def distribution(self, name: str) -> Distribution:
        """All usual statistics of a distribution; NaN when no request has it."""
        values, _ = self._distribution(name)
        if len(values) == 0:
            values = np.array([np.nan])
        p50, p90, p95, p99 = (float(q) for q in np.percentile(values, [50, 90, 95, 99]))
        return Distribution(
            name, METRICS[name].unit, int(np.isfinite(values).sum()), float(values.mean()),
            float(values.min()), float(values.max()), p50, p90, p95, p99,
        )  # fmt: skip

    def __getattr__(self, name: str) -> Distribution | float:
        definition = METRICS.get(name)
        if definition is None:
            raise AttributeError(f"no metric {name!r}; metrics: {', '.join(METRICS)}")
        return self.distribution(name) if definition.distribution else self.value(name)

    def as_dict(self) -> dict[str, dict[str, float] | float]:
        """All metrics as plain data, for JSON."""
        result: dict[str, dict[str, float] | float] = {}
        for name, definition in METRICS.items():
            if definition.distribution:
                found = self.distribution(name)
                statistics = ("mean", "min", "max", "p50", "p90", "p95", "p99")
                result[name] = {key: getattr(found, key) for key in statistics}
            elif not (name.startswith("goodput") and self._goodput is None):
                result[name] = self.value(name)
        return result

    def _distribution(self, name: str) -> tuple[FloatArray, list[RequestRecord]]:
        if name in ("inter_chunk_latency", "inter_token_gap"):
            if self.run.simulated:
                # A simulation knows the first and the last token, not those between.
                return np.empty(0), []
            by_token = name == "inter_token_gap"
            gaps = [
                token_gaps(record) if by_token else np.diff(record.chunk_ms)
                for record in self._succeeded
            ]
            records = [r for r, gap in zip(self._succeeded, gaps, strict=True) for _ in gap]
            return (np.concatenate(gaps) if gaps else np.empty(0)), records
        # Reports ask for every statistic of these again and again; gaps are too many to keep.
        if name not in self._known:
            pairs = [(per_request(name, record), record) for record in self._succeeded]
            kept = [(value, record) for value, record in pairs if value is not None]
            values = np.array([value for value, _ in kept])
            values.flags.writeable = False
            self._known[name] = values, [record for _, record in kept]
        return self._known[name]

    def _single(self, name: str) -> Sample:
        records = self._succeeded
        ids = tuple(record.request_id for record in records)
        time_ms = np.array([record.scheduled_ms for record in records])
        if name in _RATIOS:
            pairs = [(_RATIOS[name](record), record) for record in records]
            known = [(pair, record) for pair, record in pairs if pair is not None]
            return Sample(
                name,
                np.array([float(pair[0]) for pair, _ in known]),
                np.array([float(pair[1]) for pair, _ in known]),
                "ratio",
                tuple(record.request_id for _, record in known),
                np.array([record.scheduled_ms for _, record in known]),
            )
        values = np.array([self._contribution(name, record) for record in records])
        factor = 1 / self.run.gpus if name.endswith("_per_gpu") else 1.0
        end_ms = np.array([np.nan if r.end_ms is None else r.end_ms for r in records])
        return Sample(
            name, values, None, "rate", ids, time_ms,
            duration_seconds=self.duration_seconds, factor=factor, end_ms=end_ms,
        )  # fmt: skip

    def _contribution(self, name: str, record: RequestRecord) -> float:
        if name.startswith("output_token_throughput"):
            return float(record.completion_tokens or 0)
        if name == "request_throughput":
            return 1.0
        if self._goodput is None:
            raise ValueError("goodput needs limits: give the Benchmark goodput=Goodput(...)")
        return float(is_good(record, self._goodput))


class RepeatedMetrics:
    """The metrics of a configuration over all of its runs, for plain assertions.

    Each number is the mean of what the runs have, as in verdicts and reports; only the ``min`` and
    ``max`` of a distribution are those of all requests of all runs, and ``count`` is their number.
    A number that one of the runs lacks is NaN, which no comparison is true of.

    Args:
        runs: of one configuration, one or more; still there as ``runs``.
    """

    def __init__(self, runs: Sequence[Metrics]) -> None:
        self.runs = tuple(runs)

    def __repr__(self) -> str:
        count = len(self.runs)
        told = repr(self.runs[0])
        return told if count == 1 else f"{told.removesuffix('>')}, over {count} runs>"

    @property
    def run(self) -> Run:
        """The only run.

        Raises:
            ValueError: there are several; ``runs`` has them.
        """
        if len(self.runs) > 1:
            raise ValueError(
                f"{self.runs[0].run.configuration} has {len(self.runs)} runs: take one of "
                f'comparison.runs("{self.runs[0].run.configuration}")'
            )
        return self.runs[0].run

    @property
    def duration_seconds(self) -> float:
        """Mean benchmark duration."""
        return _mean([run.duration_seconds for run in self.runs])

    def value(self, metric: str) -> float:
        """The metric as a number; NaN when a run lacks it."""
        _, statistic = parse_metric(metric)
        values = [run.value(metric) for run in self.runs]
        return _EXTREMES.get(statistic or "", _mean)(values)

    def distribution(self, name: str) -> Distribution:
        """All usual statistics of a distribution; NaN when a run lacks it."""
        found = [run.distribution(name) for run in self.runs]
        return Distribution(
            name,
            METRICS[name].unit,
            sum(one.count for one in found),
            *(
                _EXTREMES.get(statistic, _mean)([getattr(one, statistic) for one in found])
                for statistic in ("mean", "min", "max", "p50", "p90", "p95", "p99")
            ),
        )

    def __getattr__(self, name: str) -> Distribution | float:
        definition = METRICS.get(name)
        if definition is None:
            raise AttributeError(f"no metric {name!r}; metrics: {', '.join(METRICS)}")
        return self.distribution(name) if definition.distribution else self.value(name)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


# np's own, since Python's hide a NaN that is not the first.
_EXTREMES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "min": lambda values: float(np.min(values)),
    "max": lambda values: float(np.max(values)),
}


def _kv_hits(record: RequestRecord) -> tuple[float, float] | None:
    return None if record.cached_tokens is None else (record.cached_tokens, record.input_tokens)


def _host_hits(record: RequestRecord) -> tuple[float, float] | None:
    return None if record.host_tokens is None else (record.host_tokens, record.input_tokens)


def _split(record: RequestRecord) -> tuple[float, float] | None:
    if record.prefill_worker is None or record.decode_worker is None:
        return None
    return record.prefill_worker != record.decode_worker, 1


def _tokens_by_step(record: RequestRecord) -> tuple[float, float] | None:
    if record.decode_steps is None or not record.completion_tokens:
        return None
    # The pass that yields the first token, and with drafts some more, is not among them.
    return record.completion_tokens, record.decode_steps + 1


def _other_rank(record: RequestRecord) -> tuple[float, float] | None:
    return None if record.prefill_rank is None else (record.prefill_rank > 0, 1)


def _image_hits(record: RequestRecord) -> tuple[float, float] | None:
    return (record.image_cache_hits or 0, record.images) if record.images else None


def _decoded_by_worker(record: RequestRecord) -> tuple[float, float] | None:
    return (record.images_decoded or 0, record.images) if record.images else None


# Ratios of sums: numerator and denominator of a request, None where it does not count.
_RATIOS: Mapping[str, Callable[[RequestRecord], tuple[float, float] | None]] = {
    "kv_hit_rate": _kv_hits,
    "host_hit_rate": _host_hits,
    "split_share": _split,
    "tokens_per_step": _tokens_by_step,
    "other_rank_share": _other_rank,
    "embedding_hit_rate": _image_hits,
    "worker_decode_share": _decoded_by_worker,
}


def per_request(name: str, record: RequestRecord) -> float | None:
    """A per-request metric of a successful request, or None where it is not defined.

    An inter-token latency needs two tokens.
    """
    assert record.sent_ms is not None and record.first_token_ms is not None
    assert record.last_token_ms is not None
    match name:
        case "time_to_first_token":
            return record.first_token_ms - record.sent_ms
        case "request_latency":
            return record.last_token_ms - record.sent_ms
        case "kv_transfer_time":
            return record.kv_transfer_ms
        case "time_to_first_token_from_schedule":
            return record.first_token_ms - record.scheduled_ms
        case "request_latency_from_schedule":
            return record.last_token_ms - record.scheduled_ms
        case "schedule_delay":
            return record.sent_ms - record.scheduled_ms
        case "encoder_time":
            return record.encoder_ms
        case "image_decode_time":
            return record.image_decode_ms
        case "image_transfer_time":
            return record.image_transfer_ms
        case "inter_token_latency" | "output_token_throughput_per_user":
            tokens = record.completion_tokens or 0
            if tokens < 2 or record.last_token_ms <= record.first_token_ms:
                return None
            latency_ms = (record.last_token_ms - record.first_token_ms) / (tokens - 1)
            return latency_ms if name == "inter_token_latency" else 1000 / latency_ms
        case _:
            raise ValueError(f"{name} is not a per-request metric")


def token_gaps(record: RequestRecord) -> FloatArray:
    """Time between consecutive tokens of a request, in ms.

    The tokens of one chunk share the time since the chunk before; the first chunk has none.

    Returns:
        (tokens after the first chunk,) gaps; empty when it is not known how many tokens the
        chunks had.
    """
    gaps = np.diff(record.chunk_ms)
    if record.chunk_tokens is not None:
        tokens = np.asarray(record.chunk_tokens[1:])
        shared: FloatArray = np.repeat(gaps / np.maximum(tokens, 1), tokens)
        return shared
    return gaps if record.completion_tokens == len(record.chunk_ms) else np.empty(0)


def is_good(record: RequestRecord, limits: Goodput) -> bool:
    """Whether a successful request meets every limit; a limit on an undefined metric holds."""
    checks = (
        ("time_to_first_token", limits.time_to_first_token_ms),
        ("inter_token_latency", limits.inter_token_latency_ms),
        ("request_latency", limits.request_latency_ms),
    )
    for name, limit in checks:
        if limit is not None:
            value = per_request(name, record)
            if value is not None and value > limit:
                return False
    return True
