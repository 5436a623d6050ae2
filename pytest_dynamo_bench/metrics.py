"""From records to metrics, by the formulas of :mod:`~pytest_dynamo_bench.metric_definitions`.

A metric of a run is a :class:`Sample`: one value (and for a ratio one weight) per request,
in the order in which the requests were due, and the statistic that turns them into a
number. Verdicts resample the requests of a Sample and apply the same statistic.

Only successful requests count, except for the benchmark duration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from pytest_dynamo_bench.arrays import BoolArray, FloatArray, IntArray
from pytest_dynamo_bench.benchmark import Goodput
from pytest_dynamo_bench.columns import Columns
from pytest_dynamo_bench.metric import Metric
from pytest_dynamo_bench.metric_definitions import (
    METRICS,
    find_metric,
    metric_of,
    parse_metric,
    percentile_of,
    unknown_metric,
)
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.request_table import RequestTable


class RequestIds(tuple[str, ...]):
    """The ids of requests, which are counted once for all metrics of a run."""

    @cached_property
    def distinct(self) -> int:
        """How many there are."""
        return len(set(self))


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
    def distinct_requests(self) -> int:
        """How many requests it is of."""
        ids = self.request_ids
        return (ids if isinstance(ids, RequestIds) else RequestIds(ids)).distinct

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


_STATISTICS = ("mean", "min", "max", "p50", "p90", "p95", "p99")


class Metrics:
    """The metrics of one run, by name, for reports and for plain assertions::

        assert metrics.time_to_first_token.p50 < 500
        assert metrics.goodput > 2

    Distributions are :class:`Distribution`, single numbers are floats.
    """

    def __init__(self, run: Run, goodput: Goodput | None = None) -> None:
        self.run = run
        self._goodput = goodput
        self._known: dict[str, _Values] = {}
        self._distributions: dict[str, Distribution] = {}

    def __repr__(self) -> str:
        return f"<Metrics of {self.run.configuration} on {self.run.target}>"

    @cached_property
    def requests(self) -> RequestTable:
        """All requests, as columns."""
        return RequestTable.of(self.run.records)

    @cached_property
    def columns(self) -> Columns:
        """The successful requests, in the order in which they were due."""
        due = self.requests.in_due_order
        limits = self._goodput.limits if self._goodput else None
        return Columns(self.requests, limits, due[self.requests.good[due]])

    @cached_property
    def _request_ids(self) -> tuple[str, ...]:
        return RequestIds(self.columns.request_id)

    @cached_property
    def duration_seconds(self) -> float:
        """Benchmark duration: first request sent to last response received."""
        sent, ends = (self.requests.numbers(name) for name in ("sent_ms", "end_ms"))
        if np.isnan(sent).all() or np.isnan(ends).all():
            return float("nan")
        return float(np.nanmax(ends) - np.nanmin(sent)) / 1000

    def sample(self, metric: str) -> Sample:
        """The metric with everything that is needed to resample it.

        Raises:
            ValueError: there is no such metric, or goodput was asked for without limits.
            BenchmarkError: the formula of a metric of the author's own failed.
        """
        name, statistic = parse_metric(metric)
        definition = METRICS[name]
        found = self._values(definition)
        ids, time_ms = self._request_ids, self.columns.scheduled_ms
        if found.request is not None:
            ids = tuple(np.array(ids, dtype=object)[found.request])
            time_ms = time_ms[found.request]
        if statistic is not None:
            percentile = percentile_of(statistic)
            return Sample(
                f"{name}.{statistic}", found.values, None,
                "percentile" if percentile is not None else statistic,  # type: ignore[arg-type]
                ids, time_ms, percentile=percentile or 0.0,
            )  # fmt: skip
        if found.weights is not None:
            return Sample(name, found.values, found.weights, "ratio", ids, time_ms)
        end_ms = self.columns.end_ms
        return Sample(
            name, found.values, None, "rate", ids, time_ms,
            duration_seconds=self.duration_seconds,
            factor=1 / self.run.gpus if "gpus" in definition.needs else 1.0,
            end_ms=end_ms if found.request is None else end_ms[found.request],
        )  # fmt: skip

    def value(self, metric: str) -> float:
        """The metric as a number; NaN when no request has it."""
        name, statistic = parse_metric(metric)
        if statistic in _STATISTICS:
            return float(getattr(self.distribution(name), statistic))
        return self.sample(metric).value

    def distribution(self, name: str) -> Distribution:
        """All usual statistics of a distribution; NaN when no request has it."""
        definition = metric_of(f"{name}.mean")
        if definition.name not in self._distributions:
            if definition.kind == "gaps" and not self.run.simulated:
                self._distributions |= self._distributions_of_gaps()
            else:
                found = _distribution(definition, self._values(definition).values)
                self._distributions[definition.name] = found
        return self._distributions[definition.name]

    def _distributions_of_gaps(self) -> dict[str, Distribution]:
        """All of them, since going through the gaps takes longer than anything else."""
        metrics = [metric for metric in METRICS.values() if metric.kind == "gaps"]
        found: dict[str, Distribution] = {}
        known: dict[int, Distribution] = {}
        gaps = self._gaps(metrics)
        for metric, (values, _) in zip(metrics, gaps, strict=True):
            if id(values) not in known:
                known[id(values)] = _distribution(metric, values)
            found[metric.name] = dataclasses.replace(
                known[id(values)], metric=metric.name, unit=metric.unit
            )
        return found

    def __getattr__(self, name: str) -> Distribution | float:
        return _attribute(self, name)

    def as_dict(self) -> dict[str, dict[str, float] | float]:
        """All metrics as plain data, for JSON."""
        result: dict[str, dict[str, float] | float] = {}
        for name, definition in METRICS.items():
            if definition.distribution:
                found = self.distribution(name)
                result[name] = {key: getattr(found, key) for key in _STATISTICS}
            elif not (definition.needs_limits and self._goodput is None):
                result[name] = self.value(name)
        return result

    def _values(self, metric: Metric) -> _Values:
        """The numbers of a metric, without the requests that lack it."""
        if metric.needs_limits and self._goodput is None:
            raise ValueError("goodput needs SLOs: give the Benchmark goodput=Goodput(...)")
        if "every chunk" in metric.needs and self.run.simulated:
            return _Values(np.empty(0), request=np.empty(0, dtype=np.int64))
        if metric.kind == "gaps":
            values, counts = self._gaps([metric])[0]
            return _Values(values, np.arange(len(counts)).repeat(counts))
        # Reports ask for every statistic of these again and again; gaps are too many to keep.
        if metric.name not in self._known:
            self._known[metric.name] = self._computed(metric)
        return self._known[metric.name]

    def _gaps(self, metrics: Sequence[Metric]) -> list[tuple[FloatArray, IntArray]]:
        """What the formulas of some metrics return; one array where all of it is the same."""
        parts = [[part.computed(m) for m in metrics] for part in self.columns.parts()]
        found: list[tuple[FloatArray, IntArray]] = []
        for index in range(len(metrics)):
            same = (i for i in range(index) if all(part[i] is part[index] for part in parts))
            if (earlier := next(same, None)) is not None:
                found.append(found[earlier])
            else:
                values, counts = zip(*(part[index] for part in parts), strict=True)
                found.append((np.concatenate(values), np.concatenate(counts)))
        return found

    def _computed(self, metric: Metric) -> _Values:
        if metric.kind != "ratio":
            values = self.columns.of(metric.name)
            return _where(~np.isnan(values), values)
        values, weights = (
            np.broadcast_to(np.asarray(part, np.float64), len(self.columns))
            for part in self.columns.computed(metric)
        )
        return _where(~(np.isnan(values) | np.isnan(weights)), values, weights)


@dataclass(frozen=True)
class _Values:
    """The numbers of a metric, (n,) each.

    ``request`` has the positions of the requests that they are of; None for all, in order.
    """

    values: FloatArray
    request: IntArray | None = None
    weights: FloatArray | None = None


def _distribution(metric: Metric, values: FloatArray) -> Distribution:
    if len(values) == 0:
        values = np.array([np.nan])
    return Distribution(
        metric.name, metric.unit, int(np.isfinite(values).sum()), float(values.mean()),
        float(values.min()), float(values.max()), *percentiles(values, (50, 90, 95, 99)),
    )  # fmt: skip


def percentiles(values: FloatArray, ranks: Sequence[float]) -> list[float]:
    """The percentiles that ``np.percentile`` gives, to the last bit, and many times as fast.

    numpy has vector instructions to find one place in the order, but not to find several at once.

    Args:
        values: (n,) one or more.
        ranks: ascending, from 0 to 100.
    """
    if np.isnan(values).any():
        return [float("nan")] * len(ranks)
    ordered, last, done = values.copy(), len(values) - 1, 0
    found = []
    for rank in ranks:
        exact = last * (rank / 100)
        below = int(exact)
        ordered[done:].partition(below - done)
        done = below
        low = float(ordered[below])
        high = float(ordered[below + 1 :].min()) if below < last else low
        share, step = exact - below, high - low
        found.append(low + step * share if share < 0.5 else high - step * (1 - share))
    return found


def _where(known: BoolArray, values: FloatArray, weights: FloatArray | None = None) -> _Values:
    if known.all():
        return _Values(values, None, weights)
    picked = None if weights is None else weights[known]
    return _Values(values[known], np.flatnonzero(known), picked)


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
        text = repr(self.runs[0])
        return text if count == 1 else f"{text.removesuffix('>')}, over {count} runs>"

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
            found[0].metric,
            found[0].unit,
            sum(one.count for one in found),
            *(
                _EXTREMES.get(statistic, _mean)([getattr(one, statistic) for one in found])
                for statistic in _STATISTICS
            ),
        )

    def __getattr__(self, name: str) -> Distribution | float:
        return _attribute(self, name)


def _attribute(metrics: Metrics | RepeatedMetrics, name: str) -> Distribution | float:
    """A metric by its full or short name, as an attribute."""
    # What copies and pickles ask for is no metric.
    definition = None if name.startswith("_") else find_metric(name)
    if definition is None:
        raise AttributeError(unknown_metric(name))
    if definition.distribution:
        return metrics.distribution(definition.name)
    return metrics.value(definition.name)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


# np's own, since Python's hide a NaN that is not the first.
_EXTREMES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "min": lambda values: float(np.min(values)),
    "max": lambda values: float(np.max(values)),
}
