"""The regression gate: tolerances, outcomes, and what must not be compared."""

from __future__ import annotations

import pytest

from pytest_dynamo_bench.verdicts.regression import (
    Tolerance,
    compare_with_stored,
    mismatches,
    parse_tolerances,
)
from tests.verdicts.making import correlated, noisy, record, run, sample

P50 = "time_to_first_token.p50"


class TestTolerances:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("ttft:5%", [Tolerance(P50, 0.05)]),
            ("ttft:0.05", [Tolerance(P50, 0.05)]),
            ("ttft.p99:10%", [Tolerance("time_to_first_token.p99", 0.1)]),
            ("itl.mean:2.5%", [Tolerance("inter_token_latency.mean", 0.025)]),
            ("latency:5%", [Tolerance("request_latency.p50", 0.05)]),
            (
                " throughput:3% , goodput:0% ",
                [Tolerance("output_token_throughput", 0.03), Tolerance("goodput", 0)],
            ),
            ("request_throughput:1%", [Tolerance("request_throughput", 0.01)]),
            (["ttft:5%", "goodput:1%"], [Tolerance(P50, 0.05), Tolerance("goodput", 0.01)]),
        ],
    )
    def test_are_read(self, text, expected):
        assert list(parse_tolerances(text)) == expected

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is empty"),
            ("ttft", "must be METRIC:SHARE"),
            ("ttft:-5%", "not negative"),
            ("ttft:five", "must be METRIC:SHARE"),
            ("tttf:5%", r"'tttf' is not a metric; did you mean 'ttft'\? short names: ttft, itl"),
            ("ttft.p101:5%", "is a distribution"),
            ("goodput.p50:5%", "one number for the whole run"),
            ("ttft:5", "write ttft:5%"),
            ("ttft:5%,time_to_first_token.p50:3%", "is a duplicate"),
        ],
    )
    def test_that_cannot_be_read_say_what_would_be_right(self, text, message):
        with pytest.raises(ValueError, match=message):
            parse_tolerances(text)

    def test_are_written_as_they_are_read(self):
        (tolerance,) = parse_tolerances("ttft:5%")
        assert parse_tolerances(str(tolerance)) == (tolerance,)


class TestComparison:
    base = correlated(600, 1)

    def outcome(self, factor, share=0.05, metric="time_to_first_token.mean"):
        current = sample(noisy(self.base * factor, 2), metric)
        stored = sample(noisy(self.base, 3), metric)
        return compare_with_stored([current], [stored], Tolerance(metric, share))

    @pytest.mark.parametrize(
        ("factor", "outcome"),
        [(1.2, "regression"), (0.8, "improvement"), (1.0, "unchanged"), (1.05, "inconclusive")],
    )
    def test_of_a_metric_that_should_be_low(self, factor, outcome):
        assert self.outcome(factor).outcome == outcome

    @pytest.mark.parametrize(
        ("factor", "outcome"), [(0.8, "regression"), (1.2, "improvement"), (1.0, "unchanged")]
    )
    def test_of_a_metric_that_should_be_high(self, factor, outcome):
        assert self.outcome(factor, metric="output_token_throughput").outcome == outcome

    def test_says_both_values(self):
        sentence = self.outcome(1.2).sentence
        assert "tolerance 5 %: regression." in sentence and " ms, was " in sentence

    def test_an_identical_deterministic_run_is_unchanged(self):
        same = sample(self.base)
        found = compare_with_stored([same], [same], Tolerance(same.metric, 0.0))
        assert found.outcome == "unchanged"

    def test_other_metrics_are_refused(self):
        with pytest.raises(ValueError, match="but samples of"):
            compare_with_stored([sample(self.base)], [sample(self.base)], Tolerance(P50, 0.05))


class TestMismatches:
    def test_runs_of_the_same_thing(self):
        deployed = {"model": "m", "processes": {"a": ["--port", "1"]}, "ready_seconds": 3.0}
        again = {"model": "m", "processes": {"a": ["--port", "2"]}, "ready_seconds": 4.0}
        a = run([record(0)], deployed=deployed, traffic={"history": ("x",)})
        b = run([record(0)], deployed=again, traffic={"history": ["x"]})
        assert mismatches(a, b) == ()

    def test_each_difference_is_named(self):
        a = run(
            [], gpus=2, target="replay", deployed={"model": "m", "engine": {"kv_blocks": 100}},
            observed={"dynamo": "1.4.2"}, traffic={"requests": 10},
        )  # fmt: skip
        b = run(
            [], deployed={"model": "m", "engine": {"kv_blocks": 50}},
            observed={"dynamo": "1.4.1"}, traffic={"requests": 20},
        )  # fmt: skip
        assert mismatches(a, b) == (
            "target: 'replay', stored 'local'",
            "gpus: 2, stored 1",
            "deployed.engine.kv_blocks: 100, stored 50",
            "observed.dynamo: '1.4.2', stored '1.4.1'",
            "traffic.requests: 10, stored 20",
        )

    def test_where_it_ran_is_passed_over_but_not_its_host_memory(self):
        a = run([], deployed={"http_host": "a", "host": "a", "kv_offload": {"host_gib": 100}})
        b = run([], deployed={"http_host": "b", "host": "b", "kv_offload": {"host_gib": 50}})
        assert mismatches(a, b) == ("deployed.kv_offload.host_gib: 100, stored 50",)

    def test_another_load_generator(self):
        a, b = run([], observed={"load_generator": {"name": "aiperf", "version": "0.13"}}), run([])
        assert mismatches(a, b) == ("observed.load_generator: 'aiperf', stored 'own'",)

    def test_a_field_that_one_of_them_lacks(self):
        a, b = run([], deployed={"router": "kv"}), run([])
        assert mismatches(a, b) == ("deployed.router: 'kv', stored 'nothing'",)
