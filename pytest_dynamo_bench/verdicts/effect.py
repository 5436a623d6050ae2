"""By how much two configurations differ in a metric, and how sure that is.

The interval is ``exp(L ± t · SE) - 1`` around the log ratio ``L = ln(treatment / baseline)``,
or ``D ± t · SE`` around the plain difference for metrics that are shares already. How SE and
the degrees of freedom of t come about, step by step:

1. *Resampling.* Requests are put in the order in which they were due; blocks of consecutive
   requests are drawn with replacement, going round at the end (circular block bootstrap), and the
   metric is recomputed. Where the request ids of the two configurations coincide, both
   get the same blocks, so that what the traffic does to both cancels. For percentiles of
   such pairs the variance is computed from the influences instead of drawn: when shared
   traffic moves both percentiles, a bootstrap adds what the two samples happen to look like
   on the way (see :class:`~pytest_dynamo_bench.verdicts.statistics.RequestGroup`).
2. *Block length*, from the data: Politis & White's automatic choice on the series of each
   request's influence on L. For a mean the influence is
   ``(x - mean) / mean``; for a ratio or a rate ``(v - R w) / (R mean w)``; for a percentile it
   is the indicator of being above it, divided by the density (Hampel 1974). The longest of
   three: for the difference and for each configuration alone; with a floor that
   :func:`~pytest_dynamo_bench.verdicts.blocks.block_length` explains.
3. *Few blocks.* Block variances are too small when blocks are few or correlated across their
   ends: SE is enlarged by ``sqrt(m / (m - 1))`` for m blocks, and is not less than Politis &
   Romano's flat-top estimate from the influences. A single run with too few requests for long
   blocks gets what it cannot see added
   (:func:`~pytest_dynamo_bench.verdicts.blocks.hidden_drift_variance`). t has at most m - 1
   degrees of freedom, and fewer when few blocks carry all of the variation (see
   :mod:`~pytest_dynamo_bench.verdicts.blocks`); for a percentile without pairs no more than
   there are clusters of slow requests beyond it. For rates of the same open loop the time is
   the same but for when the last response came, and that has a separate variance.
4. *Repeats.* With more than one run per configuration the variation between runs is added:
   ``V = V_blocks + max(0, V_between - V_within)``, where V_between is what the repeats' values
   show, and V_within what the noise inside single runs already explains of it. Degrees of
   freedom after Satterthwaite (1946), in which V_between always counts in full, so that a
   lucky agreement of two or three runs does not make the interval narrow.

5. *Shares.* The wider of this interval and a score interval, which has a width where all requests
   are alike, too (see :mod:`~pytest_dynamo_bench.verdicts.shares`).

What the interval is about: the change under traffic *like this*. Requests are regarded as a
stretch of a longer stream. Where the change is the same for all requests, or there is none,
this is the same as the change under exactly this traffic, since the traffic itself cancels in
pairs; where it differs between requests the interval is the wider, cautious one. A single run
per configuration cannot see what varies from run to run; repeats can.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from pytest_dynamo_bench.arrays import FloatArray
from pytest_dynamo_bench.metric_definitions import metric_of
from pytest_dynamo_bench.metrics import Sample
from pytest_dynamo_bench.verdicts.blocks import (
    SeriesUncertainty,
    block_length,
    hidden_drift_variance,
    uncertainty_of_mean,
)
from pytest_dynamo_bench.verdicts.resampling import counted, drawn_blocks
from pytest_dynamo_bench.verdicts.shares import ShareNumbers, ShareParts, worth
from pytest_dynamo_bench.verdicts.statistics import (
    END_DEGREES_OF_FREEDOM,
    Quantile,
    RequestGroup,
    clusters_beyond,
)

Scale = Literal["log ratio", "difference"]

_SAME_TRAFFIC_OVERLAP = 0.5
_NEGLIGIBLE = 1e-12
_RULE_OF_THREE = 3.0
_FEWEST_REQUESTS = 10
_FEWEST_RUNS = 3


@dataclass(frozen=True)
class Effect:
    """The change of a metric from a baseline to a treatment, with its interval.

    Attributes:
        metric: full name, such as ``time_to_first_token.p50``.
        treatment_value: in the metric's unit; the mean over repeats.
        baseline_value: likewise.
        change: relative (-0.2 is 20 % lower), or the plain difference for shares; NaN when it
            is not defined.
        low: lower end of the interval of the change; -inf when nothing can be said.
        high: upper end; inf when nothing can be said.
        confidence: of the interval, such as 0.95.
        method: how the interval was made, as a phrase.
        scale: what ``estimate`` is: ``log ratio`` for relative changes, ``difference`` for
            shares.
        estimate: of the change on that scale.
        standard_error: of ``estimate``; inf when nothing can be said.
        degrees_of_freedom: of ``standard_error``.
        block_length: requests that were resampled together; the longest, where there are
            several.
        n_requests: requests of the metric, fewest of all runs.
        repeats: runs of the configuration with fewer of them.
        resamples: of the bootstrap.
        paired: whether requests of both configurations were paired by id.
        traffic_error: the part of ``standard_error`` that more repeats of the same traffic would
            not lessen, since the change differs from request to request; 0 where that cannot be
            distinguished from noise (single runs), or where each repeat has different traffic.
        share_parts: of a difference of shares, what its score interval is made from: the numbers
            of a :class:`~pytest_dynamo_bench.verdicts.shares.ShareParts`; else empty.
    """

    metric: str
    treatment_value: float
    baseline_value: float
    change: float
    low: float
    high: float
    confidence: float
    method: str
    scale: Scale
    estimate: float
    standard_error: float
    degrees_of_freedom: float
    block_length: int
    n_requests: int
    repeats: int
    resamples: int
    paired: bool
    traffic_error: float = 0.0
    share_parts: ShareNumbers | tuple[()] = ()

    @property
    def _score(self) -> ShareParts | None:
        return ShareParts(*self.share_parts, self.paired) if self.share_parts else None

    def interval(self, confidence: float) -> tuple[float, float]:
        """The interval of the change at another confidence, from the same standard error.

        Raises:
            ValueError: confidence is not between 0 and 1.
        """
        _check_confidence(confidence)
        low, high = _interval(
            self.scale, self.estimate, self.standard_error, self.degrees_of_freedom, confidence
        )
        if (score := self._score) is None or not math.isfinite(low):
            return low, high
        score_low, score_high = score.interval(confidence)
        return max(min(low, score_low), -1.0), min(max(high, score_high), 1.0)

    def of_this_traffic(self) -> Effect:
        """The change under exactly this traffic, not under traffic like it.

        What the traffic does to both is then no uncertainty; what is left is what differs
        between runs of the same. The effect itself where that is hardly known: for fewer than three
        runs of each, and where they had other traffic.
        """
        if not self.paired or self.repeats < _FEWEST_RUNS or not math.isfinite(self.standard_error):
            return self
        error = math.sqrt(max(self.standard_error**2 - self.traffic_error**2, 0.0))
        freedom = min(self.degrees_of_freedom, 2.0 * (self.repeats - 1))
        here = dataclasses.replace(
            self,
            standard_error=error,
            degrees_of_freedom=freedom,
            traffic_error=0.0,
            method=f"{self.method}, of exactly this traffic",
        )
        low, high = here.interval(self.confidence)
        return dataclasses.replace(here, low=low, high=high)

    def on_scale(self, change: float) -> float:
        """A change as a point on the scale of ``estimate``; -inf for -100 % and below."""
        if self.scale == "difference":
            return change
        return math.log1p(change) if change > -1 else -math.inf

    def p_value(self, direction: Literal["at most", "at least"], limit: float) -> float:
        """How likely such an estimate, or a more favourable one, is if the claim were false.

        One-sided, for ``change <= limit`` or ``change >= limit`` against the claim's border
        (the change being exactly the limit). 1 when nothing can be said.
        """
        distance = self.on_scale(limit) - self.estimate
        if direction == "at least":
            distance = -distance
        if math.isnan(distance) or not math.isfinite(self.standard_error):
            return 1.0
        if self.standard_error == 0:
            by_error = 0.0 if distance >= 0 else 1.0
        else:
            ratio = -distance / self.standard_error
            by_error = float(special.stdtr(self.degrees_of_freedom, ratio))
        if (score := self._score) is None:
            return by_error
        return max(by_error, score.p_value(direction == "at most", limit))


@dataclass(frozen=True)
class _Part:
    """What one group of runs with the same requests adds to the uncertainty of the estimate.

    Attributes:
        length: of the blocks, in requests.
        seen: of the sum of the runs' influences.
        variance: of the estimate, with ``hidden``.
        hidden: what blocks as short as these hide.
        freedom: degrees of freedom of ``variance``.
        within: the variance that noise inside the runs explains, without the runs' ends.
        ends: that of when the runs ended.
    """

    group: RequestGroup
    length: int
    seen: SeriesUncertainty
    variance: float
    hidden: float
    freedom: float
    within: float
    ends: float


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: must be between 0 and 1, such as 0.95; got {confidence!r}")


def _interval(
    scale: Scale, estimate: float, error: float, freedom: float, confidence: float
) -> tuple[float, float]:
    if math.isnan(estimate) or not math.isfinite(error):
        return -math.inf, math.inf
    half = float(special.stdtrit(freedom, (1 + confidence) / 2)) * error
    low, high = estimate - half, estimate + half
    if scale == "difference":
        return low, high
    return math.expm1(low), math.expm1(high) if high < 700 else math.inf


def estimate_effect(
    treatment: Sequence[Sample],
    baseline: Sequence[Sample],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Effect:
    """The change from ``baseline`` to ``treatment`` with its confidence interval.

    Args:
        treatment: the metric in every run of the treatment, one Sample per repeat.
        baseline: likewise for the baseline; the metric must be the same.
        confidence: of the two-sided interval.
        resamples: of the block bootstrap.
        seed: of the resampling; the same input and seed give the same interval.

    Returns:
        The effect. Where nothing can be said (no requests, a baseline of zero, fewer than two
        blocks, the minimum or maximum of a single run) the interval is infinite.

    Raises:
        ValueError: no sample of a configuration, different metrics, or an invalid confidence or
            number of resamples.

    Source: see the module's docstring and those of
    :mod:`~pytest_dynamo_bench.verdicts.blocks`.
    """
    _check_confidence(confidence)
    if resamples < 100:
        raise ValueError(f"resamples: must be 100 or more, got {resamples!r}")
    if not treatment or not baseline:
        raise ValueError("estimate_effect: give at least one run of each configuration")
    metrics = {sample.metric for sample in (*treatment, *baseline)}
    if len(metrics) > 1:
        raise ValueError(f"estimate_effect: different metrics: {', '.join(sorted(metrics))}")
    comparison = _Comparison(treatment, baseline)
    found = comparison.uncertainty(resamples, seed)
    effect = Effect(
        metric=treatment[0].metric,
        treatment_value=comparison.values[0],
        baseline_value=comparison.values[1],
        change=comparison.change,
        low=-math.inf,
        high=math.inf,
        confidence=confidence,
        method=found.method,
        scale=comparison.scale,
        estimate=comparison.estimate,
        standard_error=found.error,
        degrees_of_freedom=found.freedom,
        block_length=found.block_length,
        n_requests=min(s.distinct_requests for s in (*treatment, *baseline)),
        repeats=min(len(treatment), len(baseline)),
        resamples=resamples,
        paired=comparison.paired,
        traffic_error=found.traffic_error,
        share_parts=comparison.share_parts(found.error),
    )
    low, high = effect.interval(confidence)
    return dataclasses.replace(effect, low=low, high=high)


@dataclass(frozen=True)
class _Uncertainty:
    """Of an estimate; the fields as in :class:`Effect`. By default there is none to be had."""

    method: str
    error: float = math.inf
    freedom: float = 1.0
    block_length: int = 1
    traffic_error: float = 0.0


def _same_traffic(a: Sample, b: Sample) -> bool:
    if a.request_ids == b.request_ids:
        return True
    ids_a, ids_b = set(a.request_ids), set(b.request_ids)
    return len(ids_a & ids_b) >= _SAME_TRAFFIC_OVERLAP * len(ids_a | ids_b)


class _Comparison:
    """Everything between the samples and the effect.

    A run is a pair of numbers: of its configuration, 0 for the treatment and 1 for the baseline,
    and of the run among those of the configuration.
    """

    def __init__(self, treatment: Sequence[Sample], baseline: Sequence[Sample]) -> None:
        self.samples = (tuple(treatment), tuple(baseline))
        metric = metric_of(treatment[0].metric)
        self.queued = metric.queued
        self.scale: Scale = "difference" if metric.is_share else "log ratio"
        self.run_values = tuple(np.array([s.value for s in samples]) for samples in self.samples)
        self.values = tuple(float(np.mean(values)) for values in self.run_values)
        self.estimate = float(self._on_scale(np.array(self.values[0]), np.array(self.values[1])))
        self.change = self._change()
        self.groups = self._group()
        self.paired = any({which for which, _ in group} == {0, 1} for group in self.groups)

    def _on_scale(self, treatment: FloatArray, baseline: FloatArray) -> FloatArray:
        if self.scale == "difference":
            return np.asarray(treatment - baseline)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.log(treatment) - np.log(baseline))

    def _change(self) -> float:
        treatment, baseline = self.values
        if self.scale == "difference":
            return treatment - baseline
        return treatment / baseline - 1 if baseline > 0 else math.nan

    def _group(self) -> list[list[tuple[int, int]]]:
        groups: list[list[tuple[int, int]]] = []
        for which, samples in enumerate(self.samples):
            for index, sample in enumerate(samples):
                for group in groups:
                    other, other_index = group[0]
                    if _same_traffic(sample, self.samples[other][other_index]):
                        group.append((which, index))
                        break
                else:
                    groups.append([(which, index)])
        # In an order that does not depend on which is called the treatment.
        key = [(len(g), float(sum(self.run_values[a][i] for a, i in g))) for g in groups]
        return [groups[i] for i in sorted(range(len(groups)), key=key.__getitem__)]

    def _sample(self, run: tuple[int, int]) -> Sample:
        return self.samples[run[0]][run[1]]

    def _slope(self, run: tuple[int, int]) -> float:
        """How the estimate moves with the value of one run."""
        which = run[0]
        per_run = (1 if which == 0 else -1) / len(self.samples[which])
        return per_run if self.scale == "difference" else per_run / self.values[which]

    def uncertainty(self, resamples: int, seed: int) -> _Uncertainty:
        """How sure the estimate is."""
        if not all(np.isfinite(values).all() for values in self.run_values):
            return _Uncertainty("no interval: a run has no value of this metric")
        if any(
            not np.isfinite(sample.values).all() for samples in self.samples for sample in samples
        ):
            return _Uncertainty("no interval: values that are not finite numbers")
        if self.samples[0][0].statistic in ("min", "max"):
            return self._between_runs_only()
        if self.scale == "log ratio" and min(self.values) <= 0:
            return _Uncertainty("no interval: a relative change needs values above zero")
        return self._blocks(resamples, seed)

    def _blocks(self, resamples: int, seed: int) -> _Uncertainty:
        parts: list[_Part] = []
        for runs in self.groups:
            part = self._part(RequestGroup([self._sample(run) for run in runs], runs))
            if isinstance(part, _Uncertainty):
                return part
            parts.append(part)
        longest = max(part.length for part in parts)
        ends = sum(part.ends for part in parts)
        within = ends + sum(part.within for part in parts)
        by_blocks = sum(part.variance for part in parts)
        squares = ends**2 / END_DEGREES_OF_FREEDOM
        squares += sum(part.variance**2 / part.freedom for part in parts)
        fewest = min(part.freedom for part in parts)
        freedom = (by_blocks + ends) ** 2 / squares if squares > 0 else fewest
        if not self.paired and any(part.hidden > 0 for part in parts):
            # Blocks that are too short are too short for both.
            freedom = fewest
        paired = "paired by request" if self.paired else "not paired"
        how = "variance of circular blocks"
        if not all(part.group.paired_percentile for part in parts):
            how = "circular block bootstrap"
            by_blocks = max(by_blocks, self._drawn_variance(parts, resamples, seed))
        method = f"{how}, blocks of {longest} requests, {paired}, Student's t"
        enlarged = max(by_blocks + ends, self._rare_events_variance())
        between, between_freedom = self._between_runs()
        traffic = 0.0
        if between_freedom > 0:
            if any(len(runs) > 2 for runs in self.groups):
                traffic = max(0.0, enlarged - within)
            total = enlarged + max(0.0, between - within)
            squares = enlarged**2 / freedom + between**2 / between_freedom
            freedom = max(total**2 / squares, 1.0) if squares > 0 else freedom
            enlarged = total
            count = len(self.samples[0]) + len(self.samples[1])
            method += f", with the variation between {count} runs"
        return _Uncertainty(method, math.sqrt(enlarged), freedom, longest, math.sqrt(traffic))

    def _part(self, group: RequestGroup) -> _Part | _Uncertainty:
        """What one group of runs adds; or why there is no interval."""
        slopes = [self._slope(run) for run in group.runs]
        influences = group.influences(slopes)
        series = np.sum(influences, axis=0)
        if np.abs(series).max() < _NEGLIGIBLE:
            series = np.zeros(group.n)
        by_configuration = [
            np.sum(
                [x for run, x in zip(group.runs, influences, strict=True) if run[0] == which],
                axis=0,
            )
            for which in sorted({which for which, _ in group.runs})
        ]
        repeated = len(self.samples[0]) + len(self.samples[1]) > 2
        length = block_length([series, *by_configuration], repeated=repeated)
        if group.n < max(_FEWEST_REQUESTS, 2 * length):
            return _Uncertainty("no interval: too few requests", block_length=length)
        seen = uncertainty_of_mean(series, length)
        variance, freedom = seen.variance, seen.degrees_of_freedom
        if group.paired_percentile:
            variance, freedom = group.percentile_variance(seen, slopes)
            if math.isinf(variance):
                return _Uncertainty("no interval: too few requests near this percentile")
        elif isinstance(group.statistics[0], Quantile):
            freedom = min(freedom, clusters_beyond(series) - 1)
        hidden = 0.0
        if not repeated and self.scale == "log ratio":
            hidden = hidden_drift_variance(
                group.n, length, seen.unbiased_variance, queued=self.queued
            )
        return _Part(
            group=group,
            length=length,
            seen=seen,
            variance=variance + hidden,
            hidden=hidden,
            freedom=max(freedom, 1.0),
            within=self._within(group.runs, influences, length),
            ends=group.end_variance(slopes),
        )

    def _drawn_variance(self, parts: Sequence[_Part], resamples: int, seed: int) -> float:
        """Variance of the estimate by drawing blocks, enlarged as that of the influences is."""
        drawn = [np.zeros(resamples), np.zeros(resamples)]
        lengthened = 1.0
        for number, part in enumerate(parts):
            group, length = part.group, part.length
            generator = np.random.default_rng([seed, number])
            starts = drawn_blocks(group.n, length, resamples, generator)
            # Whole blocks make a resample a little longer than the run.
            lengthened = max(lengthened, starts.shape[1] * length / group.n)
            counts = counted(starts, group.n)
            for (which, _), statistic in zip(group.runs, group.statistics, strict=True):
                drawn[which] += statistic.resampled(counts, length) / len(self.samples[which])
        variance = _variance(self._on_scale(drawn[0], drawn[1])) * lengthened
        raw = sum(part.seen.block_variance for part in parts)
        if raw > 0:
            variance *= sum(part.seen.unbiased_variance for part in parts) / raw
        return variance + sum(part.hidden for part in parts)

    def _within(
        self,
        group: list[tuple[int, int]],
        influences: list[FloatArray],
        length: int,
    ) -> float:
        """Variance of the estimate that noise within runs explains.

        Runs of one configuration with the same traffic share what the traffic does; what is left
        after taking out their mean is noise. A run alone in its group keeps all of its variation.
        """
        variance = 0.0
        for which in (0, 1):
            mine = [
                series for run, series in zip(group, influences, strict=True) if run[0] == which
            ]
            if not mine:
                continue
            mean = np.mean(mine, axis=0) if len(mine) > 1 else np.zeros_like(mine[0])
            correction = len(mine) / (len(mine) - 1) if len(mine) > 1 else 1.0
            for series in mine:
                found = uncertainty_of_mean(series - mean, length)
                variance += found.variance * correction
        return variance

    def share_parts(self, error: float) -> ShareNumbers | tuple[()]:
        """What the score interval of a share is made from; empty for other metrics.

        Several runs with the same requests count as one, since what decides a request is often its
        traffic.

        Args:
            error: the standard error by blocks and runs; a larger one than that of independent
                requests takes requests away (design effect).
        """
        first = self.samples[0][0]
        if self.scale != "difference" or first.statistic != "ratio" or not math.isfinite(error):
            return ()
        # Of what goes up and of what goes down: the sum, and that of squares over the weight.
        sums, squares = [0.0, 0.0], [0.0, 0.0]
        weights: tuple[list[FloatArray], list[FloatArray]] = ([], [])
        for runs in self.groups:
            changes: dict[str, float] = {}
            importance: tuple[dict[str, float], dict[str, float]] = ({}, {})
            for which, index in runs:
                sample = self.samples[which][index]
                assert sample.weights is not None
                scale = 1 / (float(sample.weights.sum()) * len(self.samples[which]))
                sign = 1 if which == 0 else -1
                for key, value, weight in zip(
                    sample.request_ids, (sample.values * scale).tolist(),
                    (sample.weights * scale).tolist(), strict=True,
                ):  # fmt: skip
                    changes[key] = changes.get(key, 0.0) + sign * value
                    importance[which][key] = importance[which].get(key, 0.0) + weight
            for key, change in changes.items():
                part = 0 if change > 0 else 1
                sums[part] += abs(change)
                weight = max(importance[0].get(key, 0.0), importance[1].get(key, 0.0))
                squares[part] += change**2 / weight if weight > 0 else 0.0
            for which in (0, 1):
                weights[which].append(np.fromiter(importance[which].values(), np.float64))
        ours, theirs = (worth(np.concatenate(arm)) for arm in weights)
        if self.paired:
            ours = theirs = min(ours, theirs)
        up, down = (min(total, 1.0) for total in sums)
        up_size, down_size = (
            min(square / total, 1.0) if total > 0 else 1.0
            for square, total in zip(squares, sums, strict=True)
        )
        parts = ShareParts(up, down, ours, theirs, up_size, down_size, self.paired)
        parts = parts.with_design_effect(error**2)
        return (
            parts.up, parts.down, parts.up_requests, parts.down_requests,
            parts.up_size, parts.down_size,
        )  # fmt: skip

    def _rare_events_variance(self) -> float:
        """At least this, since requests that changed between good and not good are rare.

        The rule of three (Hanley & Lippman-Hand, JAMA 1983): no event in n does not exclude a
        share of 3/n at 95 %. Without it two runs with equal goodput would have an interval of
        no width at all. Of two runs, each request that did change adds its own variance.
        """
        if not metric_of(self.samples[0][0].metric).needs_limits:
            return 0.0
        good = min(float(sample.values.sum()) for samples in self.samples for sample in samples)
        first, *others = (s for samples in self.samples for s in samples)
        if all(o.request_ids == first.request_ids for o in others) and (
            first.distinct_requests == len(first.request_ids)
        ):
            changed = sum(int(np.count_nonzero(o.values != first.values)) for o in others)
        else:
            changed = self._changed_by_id()
        unseen = (_RULE_OF_THREE / special.ndtri(0.975)) ** 2
        if len(self.samples[0]) + len(self.samples[1]) == 2 and self.paired:
            return float(unseen + changed) / good**2
        return 0.0 if changed else float(unseen) / good**2

    def _changed_by_id(self) -> int:
        by_run = [
            dict(zip(s.request_ids, s.values.tolist(), strict=True))
            for samples in self.samples
            for s in samples
        ]
        first = by_run[0]
        return sum(first.get(key, 0.0) != value for o in by_run[1:] for key, value in o.items())

    def _between_runs(self) -> tuple[float, float]:
        """Variance of the estimate by the spread of repeats, and its degrees of freedom.

        Repeats with the same index that share their traffic with each other but with no other
        repeat are compared in pairs; otherwise the spread within each configuration is pooled.
        """
        counts = [len(samples) for samples in self.samples]
        in_pairs = (
            counts[0] == counts[1] > 1
            and len(self.groups) == counts[0]
            and all(len(g) == 2 and g[0][1] == g[1][1] for g in self.groups)
        )
        if in_pairs:
            slopes = [self._slope((which, 0)) for which in (0, 1)]
            pairs = sum(
                slope * values for slope, values in zip(slopes, self.run_values, strict=True)
            )
            return float(np.var(pairs, ddof=1)) * counts[0], counts[0] - 1.0
        freedom = sum(counts) - 2
        if freedom < 1:
            return 0.0, 0.0
        squares = 0.0
        for which, values in enumerate(self.run_values):
            unit = 1.0 if self.scale == "difference" else self.values[which]
            squares += float(np.sum((values / unit - values.mean() / unit) ** 2))
        return squares / freedom * (1 / counts[0] + 1 / counts[1]), float(freedom)

    def _between_runs_only(self) -> _Uncertainty:
        """For extremes, which no resampling of one run can judge."""
        usable = self.scale == "difference" or min(self.values) > 0
        variance, freedom = self._between_runs() if usable else (0.0, 0.0)
        if freedom < 1:
            return _Uncertainty("no interval: an extreme of a single run has none")
        return _Uncertainty("variation between runs, Student's t", math.sqrt(variance), freedom)


def _variance(values: FloatArray) -> float:
    """Variance of a bootstrap distribution; from its quantiles where a tail is infinite."""
    if np.isfinite(values).all():
        return float(np.var(values, ddof=1))
    ordered = np.sort(np.where(np.isnan(values), np.inf, values))
    low, high = ordered[int(0.025 * len(ordered))], ordered[int(0.975 * len(ordered))]
    if not (math.isfinite(low) and math.isfinite(high)):
        return math.inf
    return float((high - low) / (2 * special.ndtri(0.975))) ** 2
