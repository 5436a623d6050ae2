"""Blocks of time: how long they must be, and how uncertain the mean of a correlated series is.

Requests of one run share queues, so that their latencies are correlated. A mean of ``n``
such values is far less certain than a mean of ``n`` independent ones; resampling blocks of
consecutive requests keeps the correlation.

Sources:
    Politis & White, "Automatic block-length selection for the dependent bootstrap",
    Econometric Reviews 23 (2004), with the correction of Patton, Politis & White,
    Econometric Reviews 28 (2009): the block length.
    Politis & Romano, "A circular block-resampling procedure for stationary data" (1992): the
    resampling.
    Politis & Romano, "Bias-corrected nonparametric spectral estimation", J. Time Series
    Analysis 16 (1995): the flat-top kernel.
    Kiefer & Vogelsang, "A new asymptotic theory for heteroskedasticity-autocorrelation
    robust tests", Econometric Theory 21 (2005): why few blocks need a wider interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pytest_dynamo_bench.arrays import BoolArray, FloatArray

_SIGNIFICANT = 2.0
_FEWEST_LAGS = 5
_MOST_BLOCKS = 20
_FEWEST_BLOCKS = 6
_REQUESTS_PER_BLOCK = 125
_DRIFT_REQUESTS = 18.0
_DRIFT_SD = 0.04
_QUEUED_DRIFT_SD = 0.06
_FEWEST_BY_KURTOSIS = 4.0


@dataclass(frozen=True)
class SeriesUncertainty:
    """How uncertain the mean of a correlated series is.

    Attributes:
        n: length of the series.
        block_length: consecutive values that are resampled together.
        block_variance: variance of the mean as block resampling gives it.
        unbiased_variance: the same times ``m / (m - 1)`` for m blocks.
        variance: ``unbiased_variance``, or the flat-top estimate where that is larger, since
            blocks lose the correlation across their ends.
        degrees_of_freedom: of ``variance``; about the number of blocks, fewer when few blocks
            carry all of the variation.
    """

    n: int
    block_length: int
    block_variance: float
    unbiased_variance: float
    variance: float
    degrees_of_freedom: float


def automatic_block_length(series: FloatArray) -> tuple[int, float]:
    """Block length of the circular bootstrap, chosen from the data.

    Args:
        series: (n,) values in the order of time.

    Returns:
        The block length in values, at least 1 and at most ``min(3 sqrt(n), n / 3)``, and the
        flat-top estimate of the long-run variance (the variance of the mean times n).
    """
    return _automatic_block_length(np.asarray(series, np.float64).tobytes())


# The same series are asked about for their blocks and for their variance.
@lru_cache(maxsize=8)
def _automatic_block_length(content: bytes) -> tuple[int, float]:
    series = np.frombuffer(content)
    n = len(series)
    longest = max(1, int(np.ceil(min(3 * np.sqrt(n), n / 3))))
    centered = series - series.mean() if n else series
    variance = float(centered @ centered) / n if n else 0.0
    if n < 2 * _FEWEST_LAGS or not variance > 0:
        return 1, variance
    quiet_run = max(_FEWEST_LAGS, int(np.ceil(np.sqrt(np.log10(n)))))
    lags = min(int(np.ceil(np.sqrt(n))) + quiet_run, n - 1)
    covariance = _autocovariance(centered, lags)
    correlation = np.abs(covariance[1:] / covariance[0])
    quiet = correlation < _SIGNIFICANT * np.sqrt(np.log10(n) / n)
    last_dependent = _lags_until_quiet(quiet, quiet_run)
    bandwidth = min(2 * max(last_dependent, 1), lags)
    lag = np.arange(1, bandwidth + 1)
    taper = np.minimum(1.0, 2 * (1 - lag / bandwidth))
    weighted = taper * covariance[1 : bandwidth + 1]
    long_run_variance = variance + 2 * float(weighted.sum())
    slope = 2 * float((lag * weighted).sum())
    if not long_run_variance > 0:
        return 1, variance
    length = (2 * slope**2 / (4 / 3 * long_run_variance**2)) ** (1 / 3) * n ** (1 / 3)
    return int(np.clip(np.ceil(length), 1, longest)), long_run_variance


def _autocovariance(centered: FloatArray, lags: int) -> FloatArray:
    """Autocovariances at lags 0 … ``lags``, divided by n."""
    n = len(centered)
    size = 1 << int(np.ceil(np.log2(n + lags + 1)))
    spectrum = np.fft.rfft(centered, size)
    return np.asarray(np.fft.irfft(spectrum * spectrum.conj(), size)[: lags + 1] / n)


def _lags_until_quiet(quiet: BoolArray, run: int) -> int:
    """The number of lags before ``run`` quiet ones in a row; else the last that is not quiet."""
    counted = np.convolve(quiet, np.ones(run, dtype=int), mode="valid")
    found = np.flatnonzero(counted == run)
    if len(found):
        return int(found[0])
    loud = np.flatnonzero(~quiet)
    return int(loud[-1]) + 1 if len(loud) else 0


def circular_block_sums(series: FloatArray, length: int) -> FloatArray:
    """Sums of the n blocks that start at each value, going round at the end.

    Args:
        series: (n, ...) values, summed along the first axis.

    Returns:
        (n, ...) sums of ``length`` consecutive values.
    """
    n = len(series)
    wrapped = np.concatenate([series, series[: length - 1]]) if length > 1 else series
    total = np.cumsum(wrapped, axis=0, dtype=np.float64)
    sums = total[length - 1 : length - 1 + n].copy()
    sums[1:] -= total[: n - 1]
    return sums


def block_length(series: Sequence[FloatArray], *, repeated: bool = False) -> int:
    """One block length for several series over the same requests.

    The longest of the automatic choices for each of them, and not shorter than a floor: the
    automatic choice takes a series whose correlation is weak but long (a drift, a rare busy
    period) for uncorrelated, and its blocks are then far too short. What the floor costs is
    little: beyond 20 or 30 blocks an interval hardly gets narrower (Schmeiser, "Batch size
    effects in the analysis of simulation output", Operations Research 30, 1982). So there are
    never more than 20 blocks; blocks have at least 125 requests, so that they outlast the
    queues of a burst, unless that leaves fewer than 6. With repeats that last condition is not
    needed: correlation that blocks miss shows as variation between runs.

    Args:
        series: (n,) each, in the order of time.
        repeated: whether variation between runs is known as well.
    """
    n = len(series[0])
    automatic = max(automatic_block_length(one)[0] for one in series)
    floor = n / _MOST_BLOCKS
    if not repeated:
        floor = max(floor, min(_REQUESTS_PER_BLOCK, n / _FEWEST_BLOCKS))
    return int(np.clip(np.ceil(max(automatic, floor)), 1, max(n, 1)))


def hidden_drift_variance(n: int, length: int, unbiased_variance: float, *, queued: bool) -> float:
    """What a single run with too few requests for long blocks cannot see, as a variance.

    A machine whose speed drifts makes requests alike, weakly next to their own noise but over
    many of them; with less than a few hundred requests that looks like no correlation at all.
    If it decays over 18 requests, a block of ``length`` requests shows the share ``h(length)`` of
    its variance, ``h(l) = 1 - 18 / l * (1 - exp(-l / 18))``, the whole run ``h(n)``, and the mean,
    from which deviations are taken, hides ``length / n`` of the latter. Block variance is then
    too small by the factor F, relative to the blocks of 125 requests that a longer run has.

    Two limits of what is hidden, of which the smaller one counts: ``F - 1`` times what is seen,
    as if all of it were such correlation; and a drift of both machines by 4 %, or by 6 % where
    a queue makes more of it. All were chosen on synthetic queues (seeds that the calibration
    page does not use) so that at most 5 % of claims are false from 100 requests on.

    Args:
        n: requests in the run.
        length: of the blocks.
        unbiased_variance: of the log ratio of two means over the run, by its blocks.
        queued: whether the metric is about waiting (time to first token, goodput).
    """
    if length >= min(_REQUESTS_PER_BLOCK, n):
        return 0.0

    def shown(requests: float) -> float:
        span = requests / _DRIFT_REQUESTS
        return 1 - (1 - math.exp(-span)) / span

    unseen = length / n
    factor = shown(n) * (1 - unseen) / (shown(length) - unseen * shown(n))
    factor = max(1.0, factor * shown(_REQUESTS_PER_BLOCK))
    drift_sd = _QUEUED_DRIFT_SD if queued else _DRIFT_SD
    drift = 2 * drift_sd**2 * 2 * _DRIFT_REQUESTS * shown(n) / n
    return min((factor - 1) * unbiased_variance, (1 - 1 / factor) * drift)


def uncertainty_of_mean(series: FloatArray, length: int) -> SeriesUncertainty:
    """Variance of the mean of a correlated series, with its degrees of freedom.

    Blocks number ``m = n / length``. The variance has ``m - 1`` degrees of freedom when
    block sums are normal (Kiefer & Vogelsang's critical values for b = 1/m agree with
    Student's t to two digits), and Satterthwaite's ``2 m / (kurtosis - 1)`` when few blocks
    carry all of the variation, as with an indicator that is rarely set; but not below 4, since
    the kurtosis of a handful of blocks is itself hardly known.

    Args:
        series: (n,) values in the order of time.
        length: of the blocks.
    """
    n = len(series)
    if n < 2 * length:
        return SeriesUncertainty(n, length, 0.0, 0.0, float("inf"), 1.0)
    sums = circular_block_sums(series - series.mean(), length)
    second = float(np.mean(sums**2))
    block_variance = second / length / n
    blocks = n / length
    if not second > 0:
        return SeriesUncertainty(n, length, 0.0, 0.0, 0.0, max(blocks - 1, 1.0))
    kurtosis = float(np.mean(sums**4)) / second**2
    by_kurtosis = max(2 * blocks / max(kurtosis - 1, 1e-9), _FEWEST_BY_KURTOSIS)
    freedom = max(min(blocks - 1, by_kurtosis), 1.0)
    unbiased = block_variance * blocks / (blocks - 1)
    variance = max(unbiased, automatic_block_length(series)[1] / n)
    return SeriesUncertainty(n, length, block_variance, unbiased, variance, freedom)
