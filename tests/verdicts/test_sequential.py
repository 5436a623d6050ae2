"""Looking after every repeat without being wrong more often."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_dynamo_bench.benchmark import Bound
from pytest_dynamo_bench.verdicts.sequential import Looks, SequentialPlan, spending_bounds
from tests.verdicts.test_verdict import effect

AT_MOST_ZERO = Bound("at most", 0.0)


def test_the_bounds_are_the_published_ones():
    # O'Brien-Fleming-like spending, five equal looks, two-sided 5 %: as R's ldbounds gives them.
    found = spending_bounds((0.2, 0.4, 0.6, 0.8, 1.0), 0.05)
    assert found == pytest.approx((4.8769, 3.3569, 2.6803, 2.2898, 2.0310), abs=3e-4)


def test_one_look_is_the_ordinary_interval():
    assert SequentialPlan(1, first_look=1).confidence_at(1) == pytest.approx(0.95)


def test_all_looks_together_are_wrong_in_five_percent():
    times = np.array([2, 3, 4, 5, 6]) / 6
    bounds = spending_bounds(tuple(times), 0.05)
    generator = np.random.default_rng(1)
    steps = generator.normal(size=(200_000, 5)) * np.sqrt(np.diff(times, prepend=0))
    z = np.cumsum(steps, axis=1) / np.sqrt(times)
    wrong = (np.abs(z) > bounds).any(axis=1).mean()
    assert wrong == pytest.approx(0.05, abs=0.002)
    assert (np.abs(z) > 1.96).any(axis=1).mean() > 0.10  # what peeking would do


def test_looking_at_student_intervals_of_repeats_is_not_wrong_more_often():
    plan = SequentialPlan(6)
    generator = np.random.default_rng(2)
    wrong = 0
    for _ in range(1000):
        values = generator.normal(size=6) * 0.05
        looks = Looks(plan)
        while not looks.done:
            count = max(looks.repeats + 1, plan.first_look)
            done = values[:count]
            error = float(done.std(ddof=1)) / math.sqrt(count)
            found = effect(float(np.expm1(done.mean())), error, degrees_of_freedom=count - 1.0)
            looks = looks.look(count, {"c": (found, AT_MOST_ZERO)})
        wrong += "c" in looks.decided
    assert wrong / 1000 < 0.065


def test_decided_claims_stay_decided_and_the_rest_goes_on():
    plan = SequentialPlan(4)
    clear, unclear = effect(-0.5, 0.01, degrees_of_freedom=50.0), effect(0.0, 0.05)
    looks = Looks(plan).look(2, {"a": (clear, AT_MOST_ZERO), "b": (unclear, AT_MOST_ZERO)})
    assert looks.decided["a"].outcome == "holds" and looks.undecided == ("b",)
    assert not looks.done
    later = looks.look(3, {"a": (unclear, AT_MOST_ZERO), "b": (unclear, AT_MOST_ZERO)})
    assert later.decided["a"] == looks.decided["a"]
    last = later.look(4, {"b": (unclear, AT_MOST_ZERO)})
    assert last.done and last.undecided == ("b",)


def test_stops_when_all_is_decided():
    clear = effect(-0.5, 0.01, degrees_of_freedom=50.0)
    assert Looks(SequentialPlan(9)).look(2, {"a": (clear, AT_MOST_ZERO)}).done


def test_looks_that_are_not_planned():
    with pytest.raises(ValueError, match="first_look"):
        SequentialPlan(3, first_look=4)
    with pytest.raises(ValueError, match="confidence"):
        SequentialPlan(3, confidence=95)
    with pytest.raises(ValueError, match="no look is planned after 1"):
        SequentialPlan(3).confidence_at(1)
    looks = Looks(SequentialPlan(3)).look(2, {})
    with pytest.raises(ValueError, match="taken already"):
        looks.look(2, {})
