"""Shares at the edges: intervals that have a width where all requests are alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_dynamo_bench.benchmark import Bound, Claim
from pytest_dynamo_bench.verdicts.effect import Effect, estimate_effect
from pytest_dynamo_bench.verdicts.shares import ShareParts, worth
from pytest_dynamo_bench.verdicts.verdict import decide, judge, two_sided_p_value
from tests.verdicts.making import sample

shares = st.floats(0, 1)


def difference(a, b, tags=("", ""), **options) -> Effect:
    arms = [
        [sample(np.asarray(x, float), "kv_hit_rate", weights=np.ones(len(x)), tag=tag)]
        for x, tag in zip((a, b), tags, strict=True)
    ]
    return estimate_effect(*arms, **({"resamples": 100} | options))


@pytest.mark.parametrize("tags", [("", ""), ("a", "b")])
def test_all_against_none_is_not_certain(tags):
    found = difference(np.ones(60), np.zeros(60), tags)
    assert found.change == 1 and found.high == 1
    assert 0.85 < found.low < 0.95


@pytest.mark.parametrize("tags", [("", ""), ("a", "b")])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_runs_at_an_edge_have_a_width(value, tags):
    found = difference(np.full(100, value), np.full(100, value), tags)
    assert found.change == 0
    assert -0.08 < found.low < -0.03 and 0.03 < found.high < 0.08


@pytest.mark.parametrize("n", [60, 100, 200, 500])
@pytest.mark.parametrize("tags", [("", ""), ("a", "b")])
def test_a_loss_of_1_1_points_is_not_within_1_point(n, tags):
    generator = np.random.default_rng(n)
    held = sum(
        difference(generator.random(n) >= 0.011, np.ones(n), tags).low >= -0.01 for _ in range(300)
    )
    assert held <= 20  # of 300: 5 % would be 15, and three times as many hold by chance never


def test_hits_that_come_in_clusters_are_known_less_well():
    generator = np.random.default_rng(3)
    apart = (generator.random((2, 1000)) < 0.5).astype(float)
    together = (generator.random((2, 50)) < 0.5).repeat(20, axis=1).astype(float)
    narrow = difference(*apart, tags=("a", "b"))
    wide = difference(*together, tags=("a", "b"))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_a_few_heavy_requests_are_worth_few():
    assert worth(np.ones(50)) == pytest.approx(50)
    assert worth(np.array([100.0] * 3 + [1e-9] * 97)) == pytest.approx(3)


@given(share=st.integers(0, 60), other=st.integers(0, 60), paired=st.booleans(), limit=shares)
@settings(max_examples=60, deadline=None)
def test_verdict_and_interval_agree_at_every_confidence(share, other, paired, limit):
    tags = ("", "") if paired else ("a", "b")
    found = difference(np.arange(60) < share, np.arange(60) < other, tags)
    bound = Bound("at least", limit - 0.5)
    p = two_sided_p_value(found, bound)
    for confidence in (0.5, 0.9, 0.95, 0.999):
        if abs(1 - confidence - p) > 1e-6:
            decided = decide(bound, *found.interval(confidence)) != "inconclusive"
            assert decided == (p < 1 - confidence)


@given(up=shares, down=shares, n=st.floats(2, 1000), paired=st.booleans())
def test_a_score_interval_contains_the_change_and_has_a_width(up, down, n, paired):
    if paired and up + down > 1:
        up, down = up / 2, down / 2
    parts = ShareParts(up, down, n, n, 1, 1, paired)
    low, high = parts.interval(0.95)
    change = up - down
    assert -1 <= low <= change + 1e-9 and change - 1e-9 <= high <= 1
    assert high - low > 0
    swapped = ShareParts(down, up, n, n, 1, 1, paired).interval(0.95)
    assert swapped == pytest.approx((-high, -low))
    wider = parts.interval(0.99)
    assert wider[0] <= low + 1e-12 and high - 1e-12 <= wider[1]


@given(up=st.floats(0.05, 0.4), down=st.floats(0.05, 0.4), times=st.floats(1, 30))
def test_a_design_effect_takes_requests_away(up, down, times):
    parts = ShareParts(up, down, 400, 400, 1, 1, True)
    fewer = parts.with_design_effect(times * parts.variance)
    assert fewer.up_requests == pytest.approx(400 / times)
    assert math.isclose(fewer.variance, times * parts.variance, rel_tol=1e-9)
    assert parts.with_design_effect(0.0) == parts


def test_coverage_of_small_shares_is_what_it_says():
    generator = np.random.default_rng(8)
    covered = 0
    for _ in range(400):
        a, b = generator.random((2, 150)) < np.array([[0.03], [0.01]])
        found = difference(a, b, ("a", "b"))
        covered += found.low <= 0.02 <= found.high
    assert covered >= 370


def test_advice_at_an_edge_is_more_requests():
    claim = Claim("c", "kv_hit_rate", treatment="kv", baseline="rr", not_lower_by=0.01)
    found = judge(claim, "local", difference(np.ones(60), np.ones(60)))
    assert found.outcome == "inconclusive"
    assert 200 < found.more_requests < 5000


def test_parts_of_requests_are_known_better_than_whole_ones_but_unseen_ones_count_in_full():
    whole = ShareParts(0.1, 0.1, 400, 400, 1, 1, True)
    part = ShareParts(0.1, 0.1, 400, 400, 0.2, 0.2, True)
    assert part.variance == pytest.approx(whole.variance / 5)
    low, high = part.interval(0.95)
    assert high - low < 0.7 * (whole.interval(0.95)[1] - whole.interval(0.95)[0])
    small = difference(np.full(200, 0.001), np.zeros(200))
    assert small.low < -0.01 and small.high > 0.01
