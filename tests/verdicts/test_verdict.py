"""Verdicts: where the interval lies, what the sentence says, and several claims together."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench.benchmark import Bound, Claim
from pytest_dynamo_bench.verdicts.effect import Effect
from pytest_dynamo_bench.verdicts.gates import GateResult
from pytest_dynamo_bench.verdicts.verdict import (
    control_false_discoveries,
    decide,
    judge,
    quantity,
    repeats_are_futile,
    two_sided_p_value,
)

METRIC = "time_to_first_token.p50"


def effect(change=-0.25, error=0.02, **changes) -> Effect:
    estimate = math.log1p(change)
    made = Effect(
        metric=METRIC, treatment_value=400 * (1 + change), baseline_value=400.0, change=change,
        low=0, high=0, confidence=0.95, method="m", scale="log ratio", estimate=estimate,
        standard_error=error, degrees_of_freedom=11.0, block_length=125, n_requests=1500,
        repeats=1, resamples=2000, paired=True,
    )  # fmt: skip
    made = dataclasses.replace(made, **changes)
    low, high = made.interval(made.confidence)
    return dataclasses.replace(made, low=low, high=high)


def claim(name="KV routing lowers TTFT", metric=METRIC, **bound) -> Claim:
    return Claim(name, metric, treatment="kv", baseline="rr", **(bound or {"lower_by": 0.2}))


class TestProvisional:
    why = "run-to-run variation was not measured; --dynamo-repeats=3 measures it"

    @given(change=st.floats(-0.6, 0.6), error=st.floats(0.001, 0.2))
    def test_only_what_would_hold_is_provisional(self, change, error):
        found = judge(claim(), "local", effect(change, error))
        lacking = judge(claim(), "local", effect(change, error), not_measured=self.why)
        expected = "provisional" if found.outcome == "holds" else found.outcome
        assert lacking.outcome == expected
        assert (self.why in lacking.sentence) == (expected == "provisional")
        (together,) = control_false_discoveries([lacking])
        assert together.outcome == expected and together.not_measured == self.why

    def test_an_invalid_measurement_is_not_provisional(self):
        gates = [GateResult("process alive", False, "died", "none")]
        found = judge(claim(), "local", effect(), gates, not_measured=self.why)
        assert found.outcome == "invalid"


class TestOutcome:
    @pytest.mark.parametrize(
        ("change", "bound", "outcome"),
        [
            (-0.30, {"lower_by": 0.2}, "holds"),
            (-0.21, {"lower_by": 0.2}, "inconclusive"),
            (-0.10, {"lower_by": 0.2}, "fails"),
            (0.30, {"higher_by": 0.2}, "holds"),
            (0.21, {"higher_by": 0.2}, "inconclusive"),
            (0.10, {"higher_by": 0.2}, "fails"),
            (0.00, {"not_higher_by": 0.1}, "holds"),
            (0.09, {"not_higher_by": 0.1}, "inconclusive"),
            (0.30, {"not_higher_by": 0.1}, "fails"),
            (0.00, {"not_lower_by": 0.1}, "holds"),
            (-0.30, {"not_lower_by": 0.1}, "fails"),
            (0.00, {"within": 0.1}, "holds"),
            (0.09, {"within": 0.1}, "inconclusive"),
            (-0.11, {"within": 0.1}, "inconclusive"),
            (0.367, {"within": 0.1}, "fails"),
            (-0.367, {"within": 0.1}, "fails"),
        ],
    )
    def test_follows_the_interval(self, change, bound, outcome):
        assert judge(claim(**bound), "local", effect(change)).outcome == outcome

    @given(st.floats(-0.9, 3), st.floats(0.001, 0.5), st.floats(0, 0.9))
    def test_holds_and_fails_exclude_each_other(self, change, error, limit):
        evidence = effect(change, error)
        lower = judge(claim(lower_by=limit), "local", evidence)
        if lower.outcome == "holds":
            assert evidence.high <= -limit
        if lower.outcome == "fails":
            assert evidence.low > -limit

    def test_noise_never_makes_equivalence(self):
        # An interval that reaches beyond both limits excludes neither.
        verdict = judge(claim(within=0.1), "local", effect(0.0, 0.2))
        assert verdict.outcome == "inconclusive" and verdict.more_requests > 0

    @pytest.mark.parametrize("direction", ["at most", "at least", "within"])
    @given(
        change=st.floats(-0.9, 3), error=st.floats(0.001, 0.5), limit=st.floats(-0.5, 0.9),
        confidence=st.floats(0.5, 0.9999),
    )  # fmt: skip
    def test_the_p_value_is_where_the_interval_starts_to_decide(
        self, direction, change, error, limit, confidence
    ):
        bound = Bound(direction, abs(limit) if direction == "within" else limit)
        evidence = effect(change, error)
        p = two_sided_p_value(evidence, bound)
        if math.isclose(p, 1 - confidence, rel_tol=1e-6):
            return
        decided = decide(bound, *evidence.interval(confidence)) != "inconclusive"
        assert decided == (p < 1 - confidence)

    def test_without_an_interval_nothing_is_decided(self):
        verdict = judge(claim(), "local", effect(error=math.inf, method="no interval: too few"))
        assert verdict.outcome == "inconclusive"
        assert verdict.more_requests is None
        assert "too few" in verdict.sentence

    def test_a_closed_gate_makes_it_invalid_however_clear_it_is(self):
        gate = GateResult("requests succeeded", False, "3 failed", "none", "look why")
        verdict = judge(claim(), "local", effect(-0.5), [gate])
        assert verdict.outcome == "invalid"
        assert "requests succeeded: 3 failed" in verdict.sentence
        assert judge(claim(), "local", None).outcome == "invalid"

    def test_only_on_targets_where_it_is_claimed(self):
        with pytest.raises(ValueError, match="not made on replay"):
            judge(claim(lower_by={"local": 0.2}), "replay", effect())
        with pytest.raises(ValueError, match="not time_to_first_token"):
            judge(claim(metric="goodput", higher_by=0.1), "local", effect())


class TestSentence:
    def test_has_values_units_interval_and_what_was_claimed(self):
        assert judge(claim(), "local", effect()).sentence == (
            "time_to_first_token.p50 was 300.0 ms with kv against 400.0 ms with rr: 25.0 % lower "
            "(95 % interval -28.2 % to -21.6 %). The claim, lower by at least 20 %, holds."
        )

    def test_of_both_sides(self):
        told = judge(claim(within=0.1), "local", effect(0.01)).sentence
        assert told.endswith("The claim, at most 10 % higher or lower, holds.")

    def test_a_control_of_one_side_says_so_where_the_other_is_what_happened(self):
        def told(change, **given):
            return judge(claim(**given), "local", effect(change)).sentence

        aside = "holds; it covers one direction only, and the change is larger than"
        assert aside in told(0.367, not_lower_by=0.01, kind="control")
        assert aside in told(-0.9, not_higher_by=0.3, kind="control")
        assert told(-0.1, not_higher_by=0.3, kind="control").endswith(" holds.")
        assert told(-0.9, not_higher_by=0.3).endswith(" holds.")

    def test_says_what_would_decide_it(self):
        verdict = judge(claim(), "local", effect(-0.21))
        assert f"{verdict.more_requests:,} more requests" in verdict.sentence
        assert "more repeats" in verdict.sentence

    @pytest.mark.parametrize(
        ("value", "unit", "text"),
        [
            (1234.5, "ms", "1,234 ms"),
            (432.15, "ms", "432.1 ms"),
            (12.3456, "ms", "12.35 ms"),
            (0.0123, "ms", "0.01230 ms"),
            (0, "ms", "0 ms"),
            (0.4567, "share", "45.7 %"),
            (math.nan, "ms", "no value"),
        ],
    )
    def test_quantities(self, value, unit, text):
        assert quantity(value, unit) == text


class TestHowMuchMore:
    def test_so_many_requests_would_decide_it(self):
        evidence = effect(-0.21)
        more = judge(claim(), "local", evidence).more_requests
        times = 1 + more / evidence.n_requests
        then = effect(
            -0.21,
            evidence.standard_error / math.sqrt(times),
            degrees_of_freedom=11 * times,
        )
        assert judge(claim(), "local", then).outcome == "holds"

    def test_so_many_requests_would_decide_that_nothing_changes(self):
        evidence = effect(0.05, 0.03)
        more = judge(claim(within=0.1), "local", evidence).more_requests
        times = 1 + more / evidence.n_requests
        then = effect(
            0.05, evidence.standard_error / math.sqrt(times), degrees_of_freedom=11 * times
        )
        assert judge(claim(within=0.1), "local", evidence).outcome == "inconclusive"
        assert judge(claim(within=0.1), "local", then).outcome == "holds"

    def test_from_one_run_to_two_the_degrees_of_freedom_shrink(self):
        # One more run alone never helps much: two runs of each leave two degrees of freedom.
        verdict = judge(claim(), "local", effect(-0.225))
        assert verdict.outcome == "inconclusive" and verdict.more_repeats >= 2

    def test_repeats_of_the_same_traffic_do_not_lessen_what_the_traffic_does(self):
        known = {"change": -0.21, "error": 0.03, "repeats": 4, "degrees_of_freedom": 20.0}
        by_runs = judge(claim(), "replay", effect(**known, traffic_error=0.001))
        by_traffic = judge(claim(), "replay", effect(**known, traffic_error=0.0299))
        assert by_runs.more_repeats is not None
        assert by_traffic.more_repeats is None and by_traffic.more_requests is not None
        assert "more requests of each" in by_traffic.sentence
        assert "repeat" not in by_traffic.sentence

    def test_repeats_are_futile_only_if_the_traffic_alone_leaves_it_open(self):
        bound = claim().bound("replay")
        assert repeats_are_futile(effect(-0.21, 0.03, traffic_error=0.0299), bound, 0.95)
        within = claim(within=0.05).bound("replay")
        assert repeats_are_futile(effect(0.0, 0.05, traffic_error=0.0499), within, 0.95)
        assert not repeats_are_futile(effect(0.0, 0.05, traffic_error=0.001), within, 0.95)
        assert not repeats_are_futile(effect(-0.21, 0.03, traffic_error=0.02), bound, 0.95)
        assert not repeats_are_futile(effect(-0.21, 0.03), bound, 0.95)
        assert not repeats_are_futile(effect(-0.21, math.inf, traffic_error=0.1), bound, 0.95)

    def test_nothing_reasonable_decides_a_change_at_the_limit(self):
        verdict = judge(claim(), "local", effect(-0.2))
        assert verdict.more_requests is None and "no reasonable amount" in verdict.sentence


class TestSeveralClaims:
    def test_one_claim_is_as_before(self):
        verdict = judge(claim(), "local", effect())
        assert control_false_discoveries([verdict], 0.05) == [verdict]

    def test_what_is_barely_clear_among_many_unclear_is_not(self):
        barely = judge(claim(), "local", effect(-0.2 - 0.037, 0.0205))
        assert barely.outcome == "holds"
        unclear = [
            judge(claim(f"c{i}", not_higher_by=0.0), "local", effect(0.0)) for i in range(19)
        ]
        decided = control_false_discoveries([barely, *unclear], 0.05)
        assert decided[0].outcome == "inconclusive"
        assert decided[0].effect.confidence == pytest.approx(1 - 0.05 / 20)

    def test_outcome_and_interval_always_agree_with_benjamini_and_hochberg(self):
        generator = np.random.default_rng(1)
        verdicts = [
            judge(claim(f"c{i}"), "local", effect(float(c), 0.03))
            for i, c in enumerate(generator.uniform(-0.4, 0, 12))
        ]
        level = 0.05
        p_values = np.array([two_sided_p_value(v.effect, v.bound) for v in verdicts])
        ordered = np.sort(p_values)
        passing = np.flatnonzero(ordered <= level * np.arange(1, 13) / 12)
        selected = p_values <= ordered[passing[-1]]
        adjusted = control_false_discoveries(verdicts, level)
        assert [v.outcome != "inconclusive" for v in adjusted] == selected.tolist()

    def test_the_share_of_wrong_decisions_is_held(self):
        generator = np.random.default_rng(2)
        wrong = shares = 0.0
        for _ in range(300):
            true = np.where(np.arange(10) < 7, -0.2, -0.3)  # seven at the limit, three beyond
            found = np.expm1(np.log1p(true) + 0.03 * generator.normal(size=10))
            verdicts = [
                judge(claim(f"c{i}"), "local", effect(float(c), 0.03, degrees_of_freedom=1e6))
                for i, c in enumerate(found)
            ]
            outcomes = [v.outcome for v in control_false_discoveries(verdicts, 0.05)]
            decided = [i for i, outcome in enumerate(outcomes) if outcome != "inconclusive"]
            wrong = sum(i < 7 or outcomes[i] == "fails" for i in decided)
            shares += wrong / max(len(decided), 1)
        assert shares / 300 < 0.06

    def test_invalid_verdicts_stay_and_do_not_count(self):
        gate = GateResult("g", False, "s", "t", "w")
        invalid = judge(claim("i"), "local", effect(), [gate])
        good = judge(claim(), "local", effect())
        assert control_false_discoveries([invalid, good]) == [invalid, good]
        assert control_false_discoveries([]) == []

    def test_level(self):
        with pytest.raises(ValueError, match="level"):
            control_false_discoveries([], 5)
