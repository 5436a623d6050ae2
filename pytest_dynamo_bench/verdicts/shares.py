"""Intervals of differences of shares that stay right at the edges.

Where every request is a hit, or none is, requests do not vary, and a standard error is zero: 60 of
60 against 0 of 60 seem to leave no doubt. A score interval does not have that flaw, since it asks
which true shares would make such counts likely.

Sources:
    Wilson, "Probable inference, the law of succession, and statistical inference", J. Am. Statist.
    Ass. 22 (1927): the interval of one share.
    Newcombe, "Interval estimation for the difference between independent proportions", Statistics
    in Medicine 17 (1998), method 10, and "Improved confidence intervals for the difference between
    binomial proportions based on paired data", ibid.: of a difference, from the intervals of its
    parts.
    Kish, "Survey Sampling" (1965): how many equal requests unequal ones are worth; design effect.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from pytest_dynamo_bench.arrays import FloatArray

_LARGEST_DEVIATE = 40.0
ShareNumbers = tuple[float, float, float, float, float, float]
"""The numbers of a :class:`ShareParts`, in their order."""


@dataclass(frozen=True)
class ShareParts:
    """A difference of shares as its two parts, ``up - down``, and what each is known from.

    Of paired requests, ``up`` is the share that the treatment gained and ``down`` that it lost.
    Without pairs they are the shares of treatment and baseline.

    Attributes:
        up: between 0 and 1.
        down: likewise.
        up_requests: that ``up`` is known from: what the requests are worth, after Kish.
        down_requests: likewise.
        up_size: how much of a request goes into ``up`` at a time: 1 where it is all or nothing,
            less where parts of prompts are hits. Unseen requests may be all or nothing still.
        down_size: likewise.
        paired: whether the two are parts of the same requests.
    """

    up: float
    down: float
    up_requests: float
    down_requests: float
    up_size: float
    down_size: float
    paired: bool

    @property
    def variance(self) -> float:
        """Of the difference, if requests were independent; 0 at the edges."""
        if self.paired:
            squares = self.up_size * self.up + self.down_size * self.down
            return max(squares - (self.up - self.down) ** 2, 0.0) / self.up_requests
        return (
            max(self.up * (self.up_size - self.up), 0.0) / self.up_requests
            + max(self.down * (self.down_size - self.down), 0.0) / self.down_requests
        )

    def with_design_effect(self, variance: float) -> ShareParts:
        """The same with so many fewer requests that its variance is at least the given one."""
        own = self.variance
        effect = variance / own if own > 0 and variance > own else 1.0
        return dataclasses.replace(
            self,
            up_requests=self.up_requests / effect,
            down_requests=self.down_requests / effect,
        )

    def interval(self, confidence: float) -> tuple[float, float]:
        """Of the difference."""
        return self._limits(float(special.ndtri((1 + confidence) / 2)))

    def p_value(self, at_most: bool, limit: float) -> float:
        """One-sided: the error at which the interval just reaches ``limit``; at most 1/2.

        Args:
            at_most: whether the claim is that the change is at most ``limit``, so that the upper
                end matters.
            limit: of the change.
        """

        def excluded(deviate: float) -> bool:
            low, high = self._limits(deviate)
            return high <= limit if at_most else low >= limit

        if not excluded(0.0):
            return 1.0
        low, high = 0.0, _LARGEST_DEVIATE
        if excluded(high):
            return 0.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if excluded(middle) else (low, middle)
        return float(special.ndtr(-low))

    def _limits(self, deviate: float) -> tuple[float, float]:
        up_low, up_high = _wilson(self.up, self.up_requests, self.up_size, deviate)
        down_low, down_high = _wilson(self.down, self.down_requests, self.down_size, deviate)
        # A request that was gained was not lost.
        both = self.up * self.down
        neither = (1 - self.up) * (1 - self.down)
        together = math.sqrt(both / neither) if self.paired and both > 0 and neither > 0 else 0.0
        change = self.up - self.down
        low = change - _combined(self.up - up_low, down_high - self.down, together)
        high = change + _combined(up_high - self.up, self.down - down_low, together)
        return max(low, -1.0), min(high, 1.0)


def _combined(first: float, second: float, together: float) -> float:
    return math.sqrt(first**2 + second**2 + 2 * min(together, 1.0) * first * second)


def _wilson(share: float, requests: float, size: float, deviate: float) -> tuple[float, float]:
    """Wilson's interval of one share, with the variance of requests that count in part."""
    square = deviate**2
    middle = share + square / (2 * requests)
    spread = max(share * (size - share), 0.0)
    half = deviate * math.sqrt(spread / requests + square / (4 * requests**2))
    scale = 1 + square / requests
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def worth(weights: FloatArray) -> float:
    """How many requests of equal weight requests of these weights are worth (Kish)."""
    squares = float(np.sum(weights**2))
    return float(np.sum(weights)) ** 2 / squares if squares > 0 else 1.0
