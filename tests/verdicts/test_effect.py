"""Effects and their intervals: what must hold whatever the data, and what goes wrong quietly."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.queues import ORDINARY, make_traffic, samples, simulate
from pytest_dynamo_bench.verdicts.blocks import (
    automatic_block_length,
    block_length,
    circular_block_sums,
    hidden_drift_variance,
    uncertainty_of_mean,
)
from pytest_dynamo_bench.verdicts.effect import estimate_effect
from tests.verdicts.making import correlated, noisy, sample

METRICS = (
    "time_to_first_token.mean",
    "time_to_first_token.p50",
    "time_to_first_token.p99",
    "output_token_throughput",
)
seeds = st.integers(0, 10_000)
few = settings(max_examples=15, deadline=None)


def effect_of(treatment, baseline, metric=METRICS[0], **options):
    options = {"resamples": 300} | options
    return estimate_effect([sample(treatment, metric)], [sample(baseline, metric)], **options)


class TestWhatHoldsForAllData:
    @few
    @given(seed=seeds, metric=st.sampled_from(METRICS), factor=st.floats(0.01, 100))
    def test_a_unit_does_not_matter(self, seed, metric, factor):
        base = correlated(200, seed)
        other = noisy(base, seed + 1)
        a = effect_of(other, base, metric)
        b = effect_of(other * factor, base * factor, metric)
        assert b.change == pytest.approx(a.change, rel=1e-6, abs=1e-9)
        assert b.low == pytest.approx(a.low, rel=1e-6, abs=1e-9)
        assert b.high == pytest.approx(a.high, rel=1e-6, abs=1e-9)

    @few
    @given(seed=seeds, metric=st.sampled_from(METRICS), factor=st.floats(0.5, 2))
    def test_a_constant_factor_is_found_exactly(self, seed, metric, factor):
        base = correlated(200, seed)
        found = effect_of(base * factor, base, metric)
        assert found.change == pytest.approx(factor - 1, abs=1e-9)
        assert found.low <= factor - 1 + 1e-9
        assert found.high >= factor - 1 - 1e-9

    @few
    @given(seed=seeds, metric=st.sampled_from(METRICS))
    def test_swapping_the_arms_inverts_the_ratio(self, seed, metric):
        base = correlated(400, seed)
        other = noisy(base, seed + 1, 0.2)
        a, b = effect_of(other, base, metric), effect_of(base, other, metric)
        assert 1 + b.change == pytest.approx(1 / (1 + a.change))
        assert 1 + b.low == pytest.approx(1 / (1 + a.high))
        assert 1 + b.high == pytest.approx(1 / (1 + a.low))

    @few
    @given(seed=seeds, metric=st.sampled_from(METRICS))
    def test_more_confidence_is_a_wider_interval(self, seed, metric):
        base = correlated(400, seed)
        other = noisy(base, seed + 1, 0.2)
        widths = []
        for confidence in (0.5, 0.8, 0.9, 0.95, 0.99):
            found = effect_of(other, base, metric, confidence=confidence)
            assert found.low <= found.change <= found.high
            widths.append(found.high - found.low)
        assert widths == sorted(widths)

    @few
    @given(seed=seeds)
    def test_pairing_beats_no_pairing_when_traffic_is_shared(self, seed):
        base = correlated(400, seed)
        other = noisy(base, seed + 1)
        paired = estimate_effect([sample(other)], [sample(base)], resamples=300)
        apart = estimate_effect([sample(other, tag="x")], [sample(base, tag="y")], resamples=300)
        assert paired.paired and not apart.paired
        assert paired.high - paired.low < apart.high - apart.low

    @few
    @given(seed=seeds)
    def test_the_order_of_the_records_does_not_matter(self, seed):
        base, other = correlated(120, seed), noisy(correlated(120, seed), seed + 1)
        a, b = sample(other), sample(base)
        order = np.random.default_rng(seed).permutation(120)
        shuffled = type(a)(
            a.metric, a.values[order], None, "mean",
            tuple(a.request_ids[i] for i in order), a.time_ms[order],
        )  # fmt: skip
        straight = estimate_effect([a], [b], resamples=300)
        mixed = estimate_effect([shuffled], [b], resamples=300)
        assert mixed.low == pytest.approx(straight.low)

    def test_the_same_seed_gives_the_same_interval(self):
        base = correlated(300, 1)
        other = noisy(base, 2)
        assert effect_of(other, base, seed=5) == effect_of(other, base, seed=5)


class TestHonestWhereNothingCanBeSaid:
    @pytest.mark.parametrize("n", [0, 1, 2, 5, 9])
    @pytest.mark.parametrize("metric", METRICS)
    def test_tiny_runs_have_no_interval(self, n, metric):
        found = effect_of(np.full(n, 3.0) + np.arange(n), np.full(n, 4.0) + np.arange(n), metric)
        assert (found.low, found.high) == (-math.inf, math.inf)
        assert found.method.startswith("no interval")

    def test_a_percentile_with_next_to_nothing_around_it_has_no_interval(self):
        base = correlated(200, 1)
        found = effect_of(noisy(base, 2), base, "time_to_first_token.p99")
        assert math.isinf(found.high) and "too few requests near" in found.method

    def test_nan_is_not_hidden(self):
        values = correlated(50, 1)
        values[7] = np.nan
        found = effect_of(values, correlated(50, 2))
        assert math.isinf(found.low) and math.isinf(found.high)

    def test_a_baseline_of_zero_has_no_relative_change(self):
        found = effect_of(np.ones(50), np.zeros(50), "goodput")
        assert math.isnan(found.change) and math.isinf(found.high)

    @pytest.mark.parametrize("statistic", ["min", "max"])
    def test_an_extreme_needs_repeats(self, statistic):
        metric = f"time_to_first_token.{statistic}"
        runs = [sample(correlated(50, i), metric) for i in range(6)]
        assert math.isinf(estimate_effect(runs[:1], runs[1:2]).high)
        assert math.isfinite(estimate_effect(runs[:3], runs[3:]).high)

    def test_equal_runs_are_equal(self):
        base = correlated(100, 1)
        found = effect_of(base, base)
        assert (found.low, found.change, found.high) == (0, 0, 0)

    def test_equal_goodput_still_has_a_width(self):
        good = np.ones(300)
        found = effect_of(good, good, "goodput")
        # The rule of three: 3 of 300 requests may have changed unseen.
        assert found.change == 0 and 0.005 < found.high < 0.02

    def test_throughput_that_differs_by_the_last_response_only(self):
        # Every request counts 1, so that single requests seem to leave no doubt at all.
        a = sample(np.ones(300), "request_throughput", seconds=30.5)
        b = sample(np.ones(300), "request_throughput", seconds=30.2)
        found = estimate_effect([a], [b])
        assert found.change < 0 and found.low < 0 < found.high

    def test_the_end_of_the_run_is_one_of_many_moments(self):
        # The last response comes 0 ... 400 ms later, as any other one does.
        outside = 0
        for seed in range(200):
            generator = np.random.default_rng(seed)
            lasted = generator.exponential(300, size=(2, 400))
            ends = (np.arange(400) * 100 + lasted).max(axis=1)
            found = estimate_effect(
                *(
                    [sample(np.ones(400), "request_throughput", seconds=end / 1000, lasted_ms=late)]
                    for end, late in zip(ends, lasted, strict=True)
                ),
                resamples=100,
            )
            outside += not found.low <= 0 <= found.high
        assert 2 <= outside <= 18  # 10 are expected

    def test_throughput_of_a_closed_loop_is_as_sure_as_it_is(self):
        model = dataclasses.replace(ORDINARY, closed_loop_sessions=8)
        generator = np.random.default_rng(3)
        traffic = make_traffic(80, 400, model, generator)
        a, b = simulate(traffic, model, generator), simulate(traffic, model, generator)
        found = [
            estimate_effect(
                samples(a, world, ("request_throughput",), ""),
                samples(b, world, ("request_throughput",), ""),
                resamples=100,
            )
            for world in range(80)
        ]
        errors = np.sqrt(np.mean([one.standard_error**2 for one in found]))
        assert errors == pytest.approx(np.std([one.estimate for one in found]), rel=0.35)

    def test_rates_without_a_schedule_in_common_resample_the_time(self):
        late = np.full(300, 50.0)
        a = sample(np.ones(300), "request_throughput", tag="a", lasted_ms=late)
        b = sample(np.ones(300), "request_throughput", tag="b", lasted_ms=late)
        assert estimate_effect([a], [b]).standard_error == pytest.approx(0, abs=1e-9)

    def test_wrong_arguments_are_named(self):
        one = sample(correlated(20, 1))
        with pytest.raises(ValueError, match="confidence"):
            estimate_effect([one], [one], confidence=95)
        with pytest.raises(ValueError, match="resamples"):
            estimate_effect([one], [one], resamples=3)
        with pytest.raises(ValueError, match="at least one run"):
            estimate_effect([], [one])
        with pytest.raises(ValueError, match="different metrics"):
            estimate_effect([one], [sample([1.0], METRICS[1])])


class TestKindsOfMetrics:
    def test_a_share_is_a_difference(self):
        tokens = np.full(200, 1000.0)
        cached = correlated(200, 1)
        a = sample(cached + 100, "kv_hit_rate", weights=tokens)
        b = sample(cached, "kv_hit_rate", weights=tokens)
        found = estimate_effect([a], [b])
        assert found.scale == "difference"
        assert found.change == pytest.approx(0.1)
        assert found.low <= 0.1 + 1e-9 and found.high >= 0.1 - 1e-9

    def test_several_values_of_a_request_stay_together(self):
        base = correlated(200, 1)
        ids = [f"{i:05d}" for i in range(200) for _ in range(20)]
        metric = "inter_chunk_latency.mean"
        chunks = sample(np.repeat(base, 20), metric, ids=ids)
        other = sample(np.repeat(noisy(base, 2, 0.3), 20), metric, ids=ids)
        found = estimate_effect([other], [chunks], resamples=500)
        single = effect_of(noisy(base, 2, 0.3), base, resamples=500)
        # Twenty copies of a value are no more evidence than the value.
        assert found.n_requests == 200
        assert found.high - found.low == pytest.approx(single.high - single.low, rel=0.2)

    @pytest.mark.parametrize("share", [10, 50, 90, 95])
    def test_resampled_percentiles_are_those_of_numpy(self, share):
        # Of independent data, where the standard error of a percentile is known.
        generator = np.random.default_rng(3)
        a, b = generator.normal(100, 10, size=(2, 4000))
        found = estimate_effect(
            [sample(a, f"time_to_first_token.p{share}", tag="a")],
            [sample(b, f"time_to_first_token.p{share}", tag="b")],
        )
        p = share / 100
        from scipy import stats

        density = stats.norm.pdf(stats.norm.ppf(p), scale=10) / 1
        density = stats.norm.pdf(stats.norm.ppf(p)) / 10
        expected = math.sqrt(2 * p * (1 - p) / 4000) / density / (100 + 10 * stats.norm.ppf(p))
        assert found.standard_error == pytest.approx(expected, rel=0.35)

    @pytest.mark.parametrize("share", [50, 90, 99])
    def test_the_interval_of_a_paired_percentile_is_as_wide_as_it_varies(self, share):
        # Strong traffic in common and independent noise, so that blocks do not matter.
        generator = np.random.default_rng(7)
        metric, changes, errors = f"time_to_first_token.p{share}", [], []
        for _ in range(60):
            base = 200 * np.exp(0.8 * generator.normal(size=2000))
            noise = np.exp(0.1 * generator.normal(size=(2, 2000)))
            found = effect_of(base * noise[0], base * noise[1], metric)
            changes.append(found.estimate)
            errors.append(found.standard_error)
        assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(changes), rel=0.3)

    def test_a_percentile_of_equal_pairs_may_have_changed_unseen(self):
        base = correlated(300, 1)
        found = effect_of(base, base, "time_to_first_token.p90")
        assert found.change == 0 and 0.001 < found.high < 0.05

    def test_requests_that_one_run_lost_do_not_break_the_pairing(self):
        base = correlated(300, 1)
        other = noisy(base, 2)
        whole, part = sample(base), sample(other)
        keep = np.arange(300) % 50 != 0
        part = type(part)(
            part.metric, part.values[keep], None, "mean",
            tuple(np.array(part.request_ids)[keep]), part.time_ms[keep],
        )  # fmt: skip
        found = estimate_effect([part], [whole])
        assert found.paired and found.n_requests == 294


class TestRepeats:
    def runs(self, count, level, seed, sd=0.02):
        generator = np.random.default_rng(seed)
        base = correlated(200, 1)
        return [
            sample(noisy(base, 100 * seed + i) * level * np.exp(sd * generator.normal()))
            for i in range(count)
        ]

    def test_variation_between_runs_widens_the_interval(self):
        calm = estimate_effect(self.runs(3, 1, 1, 0.0), self.runs(3, 1, 2, 0.0))
        wild = estimate_effect(self.runs(3, 1, 1, 0.1), self.runs(3, 1, 2, 0.1))
        assert wild.standard_error > 2 * calm.standard_error
        assert "variation between 6 runs" in wild.method

    def test_two_repeats_that_agree_by_luck_do_not_make_it_certain(self):
        runs = [sample(correlated(200, 1)), sample(correlated(200, 2))]
        found = estimate_effect(runs, runs)
        single = estimate_effect(runs[:1], [runs[1]])
        assert found.degrees_of_freedom <= single.degrees_of_freedom

    def test_repeats_with_traffic_of_their_own_are_compared_in_pairs(self):
        # The traffic of each repeat has a level of its own, which cancels within a pair.
        bases = [correlated(200, i) * (1 + i) for i in range(4)]
        treatment = [sample(noisy(b, 50 + i), tag=f"r{i}-") for i, b in enumerate(bases)]
        baseline = [sample(noisy(b, 90 + i), tag=f"r{i}-") for i, b in enumerate(bases)]
        found = estimate_effect(treatment, baseline)
        assert found.paired and found.standard_error < 0.02

    @pytest.mark.parametrize(("spread", "share"), [(0.0, (0.0, 0.7)), (0.5, (0.9, 1.0))])
    def test_what_repeats_of_the_same_traffic_cannot_lessen(self, spread, share):
        base = correlated(300, 1)
        # A change of the same size for all requests, or one that differs between them.
        factor = np.exp(0.2 + spread * np.random.default_rng(5).normal(size=300))
        treatment = [sample(noisy(base * factor, 10 + i)) for i in range(4)]
        baseline = [sample(noisy(base, 20 + i)) for i in range(4)]
        found = estimate_effect(treatment, baseline)
        assert share[0] <= found.traffic_error / found.standard_error <= share[1]
        assert estimate_effect(treatment[:1], baseline[:1]).traffic_error == 0

    def test_of_exactly_this_traffic_what_the_traffic_does_is_no_uncertainty(self):
        base = correlated(300, 1)
        factor = np.exp(0.2 + 0.5 * np.random.default_rng(5).normal(size=300))
        runs = [
            [sample(noisy(base * f, 10 * arm + i)) for i in range(4)]
            for arm, f in ((1, factor), (2, 1.0))
        ]
        found = estimate_effect(*runs)
        here = found.of_this_traffic()
        assert here.change == found.change and here.low < here.change < here.high
        assert here.high - here.low < 0.5 * (found.high - found.low)
        assert here.of_this_traffic().high == pytest.approx(here.high)
        few = estimate_effect(runs[0][:2], runs[1][:2])
        assert few.of_this_traffic() == few
        other = [sample(one.values, tag="other") for one in runs[1]]
        apart = estimate_effect(runs[0], other)
        assert apart.of_this_traffic() == apart

    def test_more_repeats_are_narrower(self):
        widths = []
        for count in (2, 4, 8):
            found = estimate_effect(self.runs(count, 1.1, 3), self.runs(count, 1.0, 4))
            widths.append(found.high - found.low)
        assert widths == sorted(widths, reverse=True)


class TestBlocks:
    def test_correlated_series_get_longer_blocks(self):
        white = np.random.default_rng(1).normal(size=3000)
        slow = np.log(correlated(3000, 2, keep=0.95))
        assert automatic_block_length(white)[0] < 10 < 30 < automatic_block_length(slow)[0]

    def test_the_known_optimum_of_an_autoregression(self):
        # Politis & White (2004): for AR(1) with 0.7 and n = 800 the optimum is about 14 ... 24.
        lengths = [
            automatic_block_length(np.log(correlated(800, seed, keep=0.7)))[0] for seed in range(40)
        ]
        assert 10 <= np.median(lengths) <= 30

    def test_never_more_than_twenty_nor_fewer_than_six_by_the_floor(self):
        for n, blocks in ((120, 6), (1000, 8), (12000, 20)):
            white = np.random.default_rng(1).normal(size=n)
            assert n / block_length([white]) == pytest.approx(blocks, rel=0.05)

    def test_block_sums_go_round(self):
        assert circular_block_sums(np.arange(5.0), 3).tolist() == [3, 6, 9, 7, 5]

    def test_the_variance_of_the_mean_of_an_autoregression(self):
        keep, n = 0.8, 4000
        found = [
            uncertainty_of_mean(np.log(correlated(n, s, keep=keep, spread=1)), 200).variance
            for s in range(30)
        ]
        assert np.mean(found) == pytest.approx((1 + keep) / (1 - keep) / n, rel=0.25)

    def test_only_short_runs_hide_a_drift(self):
        assert hidden_drift_variance(750, 125, 1.0, queued=True) == 0
        hidden = [
            hidden_drift_variance(n, -(-n // 6), 1e-3, queued=True) for n in (100, 200, 400, 700)
        ]
        assert hidden == sorted(hidden, reverse=True) and hidden[-1] > 0

    @few
    @given(n=st.integers(20, 800), blocks=st.floats(2, 20), seen=st.floats(0, 1))
    def test_no_more_is_hidden_than_a_machine_can_drift(self, n, blocks, seen):
        hidden = hidden_drift_variance(n, max(1, round(n / blocks)), seen, queued=True)
        assert 0 <= hidden <= 2 * 0.06**2
        assert seen > 0 or hidden == 0

    def test_constant_series(self):
        assert automatic_block_length(np.ones(100)) == (1, 0.0)
        assert uncertainty_of_mean(np.ones(100), 10).variance == 0


@pytest.mark.slow
def test_twelve_thousand_requests_and_ten_metrics_take_two_seconds():
    base = correlated(12_000, 1)
    other = noisy(base, 2)
    metrics = [f"time_to_first_token.{s}" for s in ("mean", "p50", "p90", "p95", "p99")]
    metrics += [f"inter_token_latency.{s}" for s in ("mean", "p50", "p99")]
    metrics += ["output_token_throughput", "request_throughput"]
    started = time.process_time()
    for metric in metrics:
        estimate_effect([sample(other, metric)], [sample(base, metric)], resamples=2000)
    assert time.process_time() - started < 2.0
