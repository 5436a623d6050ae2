"""What is resampled: the requests of runs with the same traffic, and the statistics over them.

Every statistic but the extremes is one of two things: a ratio of two sums over requests (a mean,
a ratio, a rate), or a quantile of values of which a request has one or more.

Sources:
    Hampel, "The influence curve and its role in robust estimation", J. Am. Statist. Ass. 69
    (1974): the influence of a request on a statistic.
    Agresti & Min, "Simple improved confidence intervals for comparing matched proportions",
    Statistics in Medicine 24 (2005): pairs that are added where few changed sides.
    James & Stein, "Estimation with quadratic loss", Proc. 4th Berkeley Symposium 1 (1961): a
    difference is kept only as far as it exceeds its own noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse, special

from pytest_dynamo_bench.arrays import FloatArray, IndexArray
from pytest_dynamo_bench.metrics import Sample
from pytest_dynamo_bench.verdicts.blocks import (
    SeriesUncertainty,
    automatic_block_length,
    block_length,
    circular_block_sums,
    uncertainty_of_mean,
)

# Degrees of freedom of how much later the last response comes: not that its spread is hardly
# known, but that its tails are heavier than normal ones (kurtosis 4.2 on the synthetic queues).
END_DEGREES_OF_FREEDOM = 8.0

_CANDIDATE_VALUES = 128
_CANDIDATE_WIDTH_SD = 7.0
_FEW_BEYOND = 50
_SESSIONS_DIFFER = 0.1
_FEWEST_NEAR = 3.0
_SAME_SCHEDULE_MS = 1.0
_RAMP_UP_SHARE = 0.25


@dataclass(frozen=True)
class RatioOfSums:
    """``scale * sum(numerator) / sum(denominator)``; both (n,), one row per request."""

    numerator: FloatArray
    denominator: FloatArray
    scale: float

    @property
    def value(self) -> float:
        """The statistic; NaN when the denominator is zero."""
        total = float(self.denominator.sum())
        return self.scale * float(self.numerator.sum()) / total if total > 0 else math.nan

    def influence(self) -> FloatArray:
        """(n,) first-order effect of each request on the value, times n; sums to 0."""
        mean = float(self.denominator.mean())
        ratio = float(self.numerator.sum() / self.denominator.sum())
        return self.scale * (self.numerator - ratio * self.denominator) / mean

    def resampled(self, picks: sparse.csr_array, length: int) -> FloatArray:
        """(resamples,) values; ``picks`` counts how often each block start was drawn."""
        columns = np.column_stack([self.numerator, self.denominator])
        sums = picks @ circular_block_sums(columns, length)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.scale * sums[:, 0] / sums[:, 1])


@dataclass(frozen=True)
class Quantile:
    """The ``share`` quantile of values, each of which belongs to request ``owner``."""

    values: FloatArray
    owner: IndexArray
    n: int
    share: float

    @cached_property
    def value(self) -> float:
        """The quantile; NaN without values."""
        return float(np.quantile(self.values, self.share)) if len(self.values) else math.nan

    @property
    def _step(self) -> float:
        narrow = 0.5 / math.cbrt(len(self.values))
        return min(narrow, self.share / 2, (1 - self.share) / 2)

    @property
    def near(self) -> float:
        """About how many values :meth:`spread` is computed from."""
        return 2 * self._step * len(self.values)

    @property
    def beyond(self) -> float:
        """About how many values there are on the rarer side of the quantile."""
        return min(self.share, 1 - self.share) * len(self.values)

    def spread(self) -> float:
        """One over the density at the quantile, in the unit of the values.

        A difference quotient over ``± n^(-1/3) / 2`` in probability, less near the ends.
        """
        low, high = np.quantile(self.values, [self.share - self._step, self.share + self._step])
        spread = float(high - low)
        if not spread > 0:
            spread = float(np.ptp(self.values)) or 1.0
        return spread / (2 * self._step)

    def _counts(self) -> FloatArray:
        return np.bincount(self.owner, minlength=self.n).astype(np.float64)

    def _above(self, limit: float) -> FloatArray:
        return np.bincount(self.owner[self.values > limit], minlength=self.n).astype(np.float64)

    def influence(self, spread: float | None = None) -> FloatArray:
        """(n,) as for a ratio: ``(above - share above) * spread``, by default its own."""
        counts, above = self._counts(), self._above(self.value)
        excess = above - above.sum() / len(self.values) * counts
        return np.asarray(excess / counts.mean() * (self.spread() if spread is None else spread))

    def _candidates(self) -> FloatArray:
        """Values between which every resampled quantile lies, ascending, thinned to a few."""
        ordered = np.sort(self.values)
        total = len(ordered)
        above = self._above(self.value)
        spread = uncertainty_of_mean(above, block_length([above])).variance
        spread = spread if math.isfinite(spread) else 1.0
        ranks = _CANDIDATE_WIDTH_SD * math.sqrt(max(spread, 0.25 / total)) * self.n
        center = self.share * (total - 1)
        first = max(0, math.floor(center - max(ranks, 8)))
        last = min(total - 1, math.ceil(center + max(ranks, 8)))
        chosen = np.unique(np.linspace(first, last, _CANDIDATE_VALUES).round().astype(int))
        return np.unique(ordered[chosen])

    def resampled(self, picks: sparse.csr_array, length: int) -> FloatArray:
        """(resamples,) quantiles, found by counting values up to each candidate."""
        candidates = self._candidates()
        at_most = np.zeros((self.n, len(candidates) + 1))
        position = np.searchsorted(candidates, self.values, side="left")
        np.add.at(at_most, (self.owner, position), 1.0)
        np.cumsum(at_most, axis=1, out=at_most)
        counts = picks @ circular_block_sums(at_most, length)
        target = self.share * (counts[:, -1] - 1)
        below = np.floor(target)
        last = len(candidates) - 1
        lower = (counts[:, :-1] <= below[:, None]).sum(axis=1).clip(max=last)
        upper = (counts[:, :-1] <= np.ceil(target)[:, None]).sum(axis=1).clip(max=last)
        part = target - below
        return np.asarray(candidates[lower] * (1 - part) + candidates[upper] * part)


Statistic = RatioOfSums | Quantile


class RequestGroup:
    """Runs that had the same requests, and so are resampled together.

    Attributes:
        runs: (configuration, index) of each, with 0 for the treatment and 1 for the baseline.
        n: requests, of all runs together.
        statistics: of each run.
        paired: whether requests are paired across the configurations.
    """

    def __init__(self, samples: Sequence[Sample], runs: Sequence[tuple[int, int]]) -> None:
        self.runs = list(runs)
        self.paired = {which for which, _ in runs} == {0, 1}
        self._ends: list[FloatArray] = []
        rests: list[float | None] = [None] * len(samples)
        first = samples[0].request_ids
        if all(sample.request_ids == first for sample in samples) and samples[
            0
        ].distinct_requests == len(first):
            due = np.mean([sample.time_ms for sample in samples], axis=0)
            order = np.argsort(due, kind="stable")
            rank = np.empty_like(order)
            rank[order] = np.arange(len(order))
            owners = [rank] * len(samples)
            self.n = len(first)
            if self.paired and _same_schedule(samples):
                self._ends = [_ends(sample, order) for sample in samples]
                rests = [float(np.mean([_rest_ms(sample) for sample in samples]))] * len(samples)
            elif self.paired and all(_sessions(sample) for sample in samples):
                self._ends = [_idle_at_the_end(sample, order) for sample in samples]
        else:
            times: dict[str, list[float]] = {}
            for sample in samples:
                for request_id, time in zip(
                    sample.request_ids, sample.time_ms.tolist(), strict=True
                ):
                    times.setdefault(request_id, []).append(time)
            in_order = sorted(times, key=lambda key: (sum(times[key]) / len(times[key]), key))
            place = {request_id: index for index, request_id in enumerate(in_order)}
            owners = [
                np.fromiter((place[key] for key in s.request_ids), np.intp, len(s.request_ids))
                for s in samples
            ]
            self.n = len(in_order)
        self._durations_ms = [1000 * sample.duration_seconds for sample in samples]
        self.statistics: list[Statistic] = [
            _statistic(sample, owner, self.n, rest_ms)
            for sample, owner, rest_ms in zip(samples, owners, rests, strict=True)
        ]

    @property
    def paired_percentile(self) -> bool:
        """Whether it is a percentile of paired runs, which has a formula and no bootstrap."""
        return self.paired and isinstance(self.statistics[0], Quantile)

    def influences(self, slopes: Sequence[float]) -> list[FloatArray]:
        """(n,) for each run: first-order effect of each request on the estimate, times n.

        Args:
            slopes: how the estimate moves with the value of each run.
        """
        if not self.paired_percentile:
            return [
                slope * statistic.influence()
                for slope, statistic in zip(slopes, self.statistics, strict=True)
            ]
        return [
            slope * statistic.influence(spread)
            for slope, statistic, spread in zip(slopes, self._quantiles, self._spreads, strict=True)
        ]

    @property
    def _quantiles(self) -> list[Quantile]:
        return [one for one in self.statistics if isinstance(one, Quantile)]

    @cached_property
    def _near(self) -> tuple[float, float]:
        """Values that the density of each configuration is estimated from."""
        both = list(zip(self.runs, self._quantiles, strict=True))
        first, second = (sum(q.near for run, q in both if run[0] == which) for which in (0, 1))
        return first, second

    @cached_property
    def _spreads(self) -> list[float]:
        """The spread of each run at the percentile, with what is only noise taken out.

        What the traffic does moves both configurations' percentiles alike, and cancels, if both
        have the same density around it relative to its value. Two densities that were estimated
        apart never are the same, and a percentile's interval would grow by traffic times that
        noise. So the logarithm of their ratio counts only as far as it exceeds twice its
        standard error.
        """
        own = [quantile.spread() for quantile in self._quantiles]
        values = [quantile.value for quantile in self._quantiles]
        if min(values) <= 0:
            return own
        relative = [spread / value for spread, value in zip(own, values, strict=True)]
        both = list(zip(self.runs, relative, strict=True))
        means = [np.mean([one for run, one in both if run[0] == which]) for which in (0, 1)]
        ratio = math.log(means[0] / means[1])
        noise = sum(1 / near for near in self._near)
        kept = ratio * max(0.0, 1 - 4 * noise / ratio**2) if ratio else 0.0
        middle = float(np.mean(means))
        pooled = (middle * math.exp(kept / 2), middle * math.exp(-kept / 2))
        return [pooled[run[0]] * value for run, value in zip(self.runs, values, strict=True)]

    def percentile_variance(
        self, uncertain: SeriesUncertainty, slopes: Sequence[float]
    ) -> tuple[float, float]:
        """Variance of the change of a paired percentile, and its degrees of freedom.

        That of its influences, with two values added that changed sides (Agresti & Min), since a
        handful that did may have been none; the flat-top estimate only where fewer than 50
        values lie beyond, which then come in few clusters. The density is known from few
        values, which costs degrees of freedom; from fewer than three it is not known at all,
        and the variance infinite.

        Args:
            uncertain: of the sum of all runs' :meth:`influences`.
            slopes: as for :meth:`influences`.
        """
        moved = sum(
            (slope * spread / len(quantile.values)) ** 2
            for slope, spread, quantile in zip(slopes, self._spreads, self._quantiles, strict=True)
        )
        few = min(quantile.beyond for quantile in self._quantiles) < _FEW_BEYOND
        variance = uncertain.variance if few else uncertain.unbiased_variance
        if min(self._near) < _FEWEST_NEAR:
            return math.inf, 1.0
        freedom = 1 / (1 / uncertain.degrees_of_freedom + 1 / min(self._near))
        return variance + moved, max(freedom, 1.0)

    def end_variance(self, slopes: Sequence[float]) -> float:
        """Variance of the change of a rate by when the last response came.

        In an open loop the same traffic takes the same time but for that. How much later the
        last of all responses so far comes than the request that is due: that is known at every
        request, and the end of the run is one of those moments. The mean square of what the
        configurations differ by in it, over all but the first quarter of the run, is the
        variance; or what makes the 95 % interval as wide as 95 % of those moments need, where
        that is more. In a closed loop it is how long sessions are idle at the end. 0 where runs are
        neither, and all of the time is resampled.

        Args:
            slopes: as for :meth:`influences`.
        """
        if not self._ends:
            return 0.0
        change = np.zeros(self.n)
        for slope, statistic, late, duration in zip(
            slopes, self.statistics, self._ends, self._durations_ms, strict=True
        ):
            change -= slope * statistic.value / duration * late
        change = np.abs(change[int(_RAMP_UP_SHARE * self.n) :])
        # Where a few long requests decide, most moments are alike and some are far off.
        student = float(special.stdtrit(END_DEGREES_OF_FREEDOM, 0.975))
        far = float(np.quantile(change, 0.95)) / student
        return max(float(np.mean(change**2)), far**2)


def _same_schedule(samples: Sequence[Sample]) -> bool:
    """Whether these are rates of open loops: requests were due at the same times."""
    first = samples[0].time_ms
    return all(
        sample.statistic == "rate"
        and sample.end_ms is not None
        and len(first) > 0
        and bool(np.all(np.isfinite(sample.end_ms)))
        and bool(np.all(np.abs(sample.time_ms - first) <= _SAME_SCHEDULE_MS))
        for sample in samples
    )


def _ends(sample: Sample, order: IndexArray) -> FloatArray:
    """(n,) how much later than each request was due the last response until then came."""
    assert sample.end_ms is not None
    return np.asarray(np.maximum.accumulate(sample.end_ms[order]) - sample.time_ms[order])


def _idle_at_the_end(sample: Sample, order: IndexArray) -> FloatArray:
    """(n,) how long, on average, a closed loop's sessions were idle, had it ended there."""
    assert sample.end_ms is not None
    due, end = sample.time_ms[order], sample.end_ms[order]
    lasted = np.maximum.accumulate(end) - due.min()
    return np.asarray(lasted - np.cumsum(end - due) / _sessions(sample))


def _rest_ms(sample: Sample) -> float:
    """From the last request being due to the end of the run."""
    return max(sample.duration_seconds * 1000 - float(np.ptp(sample.time_ms)), 0.0)


def _time_of_each(sample: Sample, rest_ms: float | None) -> FloatArray:
    """(n,) the time of the run that each request brings along when it is resampled.

    In an open loop the time until the next one was due, the last one the rest of the run. In a
    closed loop of c sessions that are never idle a request takes a c-th of its latency: Little's
    law, which does not have the noise at the ends of each block that due times have there.

    Args:
        rest_ms: of an open loop that several runs share; None to use the run's own.
    """
    if rest_ms is None and _sessions(sample):
        assert sample.end_ms is not None
        latency = sample.end_ms - sample.time_ms
        return np.asarray(latency / latency.sum() * (1000 * sample.duration_seconds))
    order = np.argsort(sample.time_ms, kind="stable")
    due = sample.time_ms[order]
    time_ms = np.empty(len(due))
    rest_ms = _rest_ms(sample) if rest_ms is None else rest_ms
    time_ms[order] = np.append(np.diff(due), rest_ms)
    return time_ms


def _sessions(sample: Sample) -> int:
    """The sessions of a closed loop, all of which were busy but for start and end; 0 if it is not.

    In an open loop the number of requests in flight changes all the time.
    """
    if sample.statistic != "rate" or sample.end_ms is None or not len(sample.time_ms):
        return 0
    if not np.all(np.isfinite(sample.end_ms)):
        return 0
    due, end = np.sort(sample.time_ms), np.sort(sample.end_ms)
    in_flight = np.arange(1, len(due) + 1) - np.searchsorted(end, due, side="right")
    middle = in_flight[int(0.1 * len(due)) : math.ceil(0.9 * len(due))]
    most = int(middle.max())
    alike = np.mean(middle >= (1 - _SESSIONS_DIFFER) * most)
    return most if most > 1 and alike >= 1 - _SESSIONS_DIFFER else 0


def _statistic(sample: Sample, owner: IndexArray, n: int, rest_ms: float | None) -> Statistic:
    if sample.statistic == "percentile":
        return Quantile(sample.values, owner, n, sample.percentile / 100)

    def per_request(values: FloatArray) -> FloatArray:
        return np.bincount(owner, weights=values, minlength=n).astype(np.float64)

    if sample.statistic == "rate":
        time_ms = _time_of_each(sample, rest_ms)
        return RatioOfSums(per_request(sample.values), per_request(time_ms), sample.factor * 1000)
    weights = np.ones(len(sample.values)) if sample.weights is None else sample.weights
    return RatioOfSums(per_request(sample.values), per_request(weights), 1.0)


def clusters_beyond(series: FloatArray) -> float:
    """About how many separate clusters of requests beyond a percentile there are.

    Slow requests come together. With k clusters of equal size among m short blocks, the
    kurtosis of block sums is about m / k. A tail that a few clusters make up is known less
    well than its bootstrap says, which cannot draw a cluster that did not happen. Pairs are
    spared this, since both configurations have the same clusters.
    """
    length, _ = automatic_block_length(series)
    sums = circular_block_sums(series - series.mean(), length)
    second = float(np.mean(sums**2))
    if not second > 0:
        return 1.0
    kurtosis = float(np.mean(sums**4)) / second**2
    return len(series) / length / max(kurtosis - 1, 1e-9)
