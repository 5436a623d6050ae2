"""Adding repeats until every claim is decided, without the wrong decisions that peeking brings.

Who looks after each repeat at a 95 % interval, and stops as soon as it excludes the limit, is
wrong far more often than in 5 % of cases. Here each look spends a part of the 5 %, by Lan &
DeMets' alpha spending ("Discrete sequential boundaries for clinical trials", Biometrika 70,
1983) with their function that is like O'Brien & Fleming's (Biometrics 35, 1979):
on each side of the limit ``2 - 2 Φ(z / sqrt(t))`` of the error is spent when the share t of the
planned repeats is done, with z the ``1 - α / 4`` quantile.
Early looks need overwhelming evidence, and the last one is nearly an ordinary interval. The
bounds of each look come from the recursion of Armitage, McPherson & Rowe (J. R. Statist.
Soc. A 132, 1969); their nominal levels are applied to Student's t (Jennison & Turnbull, "Group
Sequential Methods", 2000, section 4.4).
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import numpy as np
from scipy import optimize, special, stats

from pytest_dynamo_bench.arrays import FloatArray
from pytest_dynamo_bench.benchmark import Bound
from pytest_dynamo_bench.verdicts.effect import Effect
from pytest_dynamo_bench.verdicts.verdict import decide

Key = TypeVar("Key", bound=Hashable)

_GRID_POINTS = 801
_LEAST_SPENT = 1e-9


@dataclass(frozen=True)
class SequentialPlan:
    """When to look, and with which confidence.

    Attributes:
        most_repeats: runs of each configuration that the budget allows; looks stop there. A
            budget in time is turned into repeats after the first pair of runs.
        confidence: over all looks together.
        first_look: repeats at the first look; there is one after every repeat from then on.

    Raises:
        ValueError: the numbers cannot be.
    """

    most_repeats: int
    confidence: float = 0.95
    first_look: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.first_look <= self.most_repeats:
            raise ValueError(
                f"first_look: must be between 1 and most_repeats {self.most_repeats}, "
                f"got {self.first_look!r}"
            )
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence: must be between 0 and 1, got {self.confidence!r}")

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of repeats after which to look."""
        return tuple(range(self.first_look, self.most_repeats + 1))

    def confidence_at(self, repeats: int) -> float:
        """Confidence of the two-sided interval at the look after so many repeats.

        Raises:
            ValueError: there is no look then.
        """
        if repeats not in self.looks:
            raise ValueError(f"no look is planned after {repeats} repeats; looks: {self.looks}")
        bounds = spending_bounds(
            tuple(look / self.most_repeats for look in self.looks), 1 - self.confidence
        )
        return float(2 * special.ndtr(bounds[repeats - self.first_look]) - 1)


@dataclass(frozen=True)
class Decision:
    """How and when a claim was decided; later looks do not change it."""

    outcome: Literal["holds", "fails"]
    repeats: int
    confidence: float
    low: float
    high: float


@dataclass(frozen=True)
class Looks(Generic[Key]):
    """What is decided after the looks so far; begin with ``Looks(plan)``.

    Attributes:
        plan: that is followed.
        repeats: at the last look; 0 before the first.
        decided: by claim.
        undecided: the other claims.
    """

    plan: SequentialPlan
    repeats: int = 0
    decided: Mapping[Key, Decision] = field(default_factory=dict)
    undecided: tuple[Key, ...] = ()

    @property
    def done(self) -> bool:
        """Whether to stop: all is decided, or the budget is spent."""
        return self.repeats > 0 and (not self.undecided or self.repeats >= self.plan.most_repeats)

    def look(self, repeats: int, evidence: Mapping[Key, tuple[Effect, Bound]]) -> Looks[Key]:
        """Look once more.

        Args:
            repeats: done so far, of each configuration.
            evidence: for every claim its effect over all repeats so far, and its bound.

        Returns:
            What is decided now; claims that were decided before stay so.

        Raises:
            ValueError: no look is planned after so many repeats, or it was taken already: a
                second look at the same point would spend the error twice.
        """
        if repeats <= self.repeats:
            raise ValueError(f"the look after {repeats} repeats was taken already")
        confidence = self.plan.confidence_at(repeats)
        decided = dict(self.decided)
        for claim, (effect, bound) in evidence.items():
            if claim in decided:
                continue
            low, high = effect.interval(confidence)
            outcome = decide(bound, low, high)
            if outcome != "inconclusive":
                decided[claim] = Decision(outcome, repeats, confidence, low, high)
        undecided = tuple(claim for claim in evidence if claim not in decided)
        return Looks(self.plan, repeats, decided, undecided)


@functools.lru_cache(maxsize=64)
def spending_bounds(times: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """Bounds of |z| at each look, two-sided, for alpha spending like O'Brien & Fleming's.

    Args:
        times: shares of the planned information at the looks, ascending, at most 1.
        alpha: error over all looks.

    Returns:
        One bound for each look; with ``times = (1,)`` the ordinary quantile.

    Source: Lan & DeMets (1983); see the module's docstring.
    """
    ends = special.ndtri(1 - alpha / 4)
    spent = 4 * special.ndtr(-ends / np.sqrt(np.array(times)))
    bounds: list[float] = []
    grid = density = np.empty(0)
    before, already = 0.0, 0.0
    for time, total in zip(times, spent, strict=True):
        # The sum of the observations so far moves as a Brownian motion in information time.
        step, here = float(np.sqrt(time - before)), float(np.sqrt(time))
        to_spend = max(float(total) - already, _LEAST_SPENT)
        if not bounds:
            bound = float(-special.ndtri(to_spend / 2))
        else:
            weights = density * (grid[1] - grid[0])
            weights[[0, -1]] /= 2  # the trapezoidal rule

            def crossed(
                bound: float,
                grid: FloatArray = grid,
                weights: FloatArray = weights,
                step: float = step,
                here: float = here,
            ) -> float:
                edge = bound * here
                up = special.ndtr((grid - edge) / step)
                down = special.ndtr((-edge - grid) / step)
                return float(weights @ (up + down))

            bound = float(optimize.brentq(lambda b, s=to_spend, c=crossed: c(b) - s, 0.0, 12.0))
        bounds.append(bound)
        edge = bound * here
        next_grid = np.linspace(-edge, edge, _GRID_POINTS)
        if len(bounds) == 1:
            density = stats.norm.pdf(next_grid, scale=here)
        else:
            kernel = stats.norm.pdf(next_grid[:, None] - grid[None, :], scale=step)
            density = kernel @ weights
        grid, before, already = next_grid, time, float(total)
    return tuple(bounds)
