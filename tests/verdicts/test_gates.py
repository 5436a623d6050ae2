"""Every validity gate, tripped by a real cause, and open on a good run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.queues import ORDINARY, STRESS, make_traffic, simulate
from pytest_dynamo_bench.traffic import Concurrency, FixedSchedule
from pytest_dynamo_bench.verdicts.gates import (
    GateThresholds,
    check_pair,
    check_run,
)
from tests.verdicts.making import record, run, traffic

MEAN = "time_to_first_token.mean"


def closed(results) -> list[str]:
    for result in results:
        assert result.saw and result.threshold
        assert bool(result.what_to_do) == (not result.passed)
    return [result.name for result in results if not result.passed]


def good(count=200):
    return [record(i, 100.0 + i % 7) for i in range(count)]


def with_one(change, count=200):
    records = good(count)
    records[50] = dataclasses.replace(records[50], **change)
    return run(records)


def test_a_good_run_passes_everything():
    results = check_run(run(good()), FixedSchedule(), MEAN, traffic=traffic(200))
    assert closed(results) == []
    assert len({result.name for result in results}) == len(results) == 9
    assert closed(check_pair(run(good()), run(good(), "rr"))) == []


@pytest.mark.parametrize(
    ("measured", "names"),
    [
        (with_one({"error": "connection reset"}), ["requests succeeded"]),
        (with_one({"chunk_ms": ()}), ["requests succeeded"]),
        (run(good(150)), ["requests succeeded"]),
        (run([]), ["requests succeeded", "enough requests"]),
        (run(good(), problems=["worker-2 was killed by signal 9"]), ["process alive"]),
        (
            with_one({"error": "HTTP 503", "status": 503}),
            ["requests succeeded", "no time-outs or rejections"],
        ),
        (
            with_one({"error": "timed out after 30 s"}),
            ["requests succeeded", "no time-outs or rejections"],
        ),
        (with_one({"completion_tokens": 9}), ["token counts as asked for"]),
        (with_one({"prompt_tokens": 1013}), ["token counts as asked for"]),
        (
            run(
                good(), deployed={"model": "a", "workers": 4}, observed={"model": "b", "workers": 4}
            ),
            ["deployment as asked for"],
        ),
        (
            run(good(), deployed={"workers": 4}, observed={"workers": 3}),
            ["deployment as asked for"],
        ),
        (run(good(), observed={"cached_tokens_at_start": 512}), ["caches cold at the start"]),
        (
            run([dataclasses.replace(r, cached_tokens=960) for r in good()]),
            ["caches cold at the start"],
        ),
        (
            run([dataclasses.replace(r, sent_ms=r.scheduled_ms + 40) for r in good()]),
            ["load generator on schedule"],
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_each_cause_closes_its_gate(measured, names):
    expected = traffic(200) if len(measured.records) != 0 else None
    results = check_run(measured, FixedSchedule(), MEAN, traffic=expected)
    assert closed(results) == names


def test_too_few_requests_for_the_percentile():
    fifty = run(good(50))
    assert closed(check_run(fifty, FixedSchedule(), "time_to_first_token.p99")) == [
        "enough requests"
    ]
    assert closed(check_run(fifty, FixedSchedule(), "time_to_first_token.p90")) == []
    assert closed(check_run(run(good(10)), FixedSchedule(), "goodput")) == ["enough requests"]
    lenient = GateThresholds(fewest_beyond_percentile=0.5)
    assert (
        closed(check_run(fifty, FixedSchedule(), "time_to_first_token.p99", thresholds=lenient))
        == []
    )


def test_a_reused_prefix_is_no_warm_cache():
    cached = [dataclasses.replace(r, cached_tokens=960 if i else 0) for i, r in enumerate(good())]
    shared = traffic(200, shared_blocks=True)
    assert closed(check_run(run(cached), FixedSchedule(), MEAN, traffic=shared)) == []


@given(st.lists(st.booleans(), min_size=4, max_size=4))
def test_requests_sent_together_may_find_what_another_of_them_has_computed(found):
    """Each of the first four, sent within 3 ms, finds the shared prefix or computes it."""
    together = [
        dataclasses.replace(r, scheduled_ms=float(i), sent_ms=float(i))
        for i, r in enumerate(good())
    ]
    cached = [
        dataclasses.replace(r, cached_tokens=960 if i >= 4 or found[i] else 0)
        for i, r in enumerate(together)
    ]
    shared = traffic(200, shared_blocks=True)
    names = closed(check_run(run(cached), Concurrency(8), MEAN, traffic=shared))
    assert names == (["caches cold at the start"] if all(found) else [])


def test_lateness_within_the_noise_of_long_waits_is_allowed():
    late = [dataclasses.replace(record(i, 2000.0), sent_ms=100.0 * i + 40) for i in range(200)]
    assert closed(check_run(run(late), FixedSchedule(), MEAN)) == []


def test_a_closed_loop_has_no_schedule_to_be_late_for():
    late = [dataclasses.replace(r, sent_ms=r.scheduled_ms + 40) for r in good()]
    assert closed(check_run(run(late), Concurrency(8), MEAN)) == []


def test_a_machine_that_had_nothing_left_did_not_keep_up():
    busy = dataclasses.replace(run(good()), observed={"processor_use": [0.4, 0.99, 1.0]})
    assert closed(check_run(busy, FixedSchedule(), MEAN)) == ["machine kept up"]
    idle = dataclasses.replace(run(good()), observed={"processor_use": [1.0, 0.5, 0.9]})
    assert closed(check_run(idle, FixedSchedule(), MEAN)) == []


def test_simulated_time_is_never_late():
    late = [dataclasses.replace(r, sent_ms=r.scheduled_ms + 40) for r in good()]
    assert closed(check_run(run(late, simulated=True), FixedSchedule(), MEAN)) == []


class TestSteadyState:
    def from_queue(self, model, n, world_count, seed):
        generator = np.random.default_rng(seed)
        simulated = simulate(make_traffic(world_count, n, model, generator), model, generator)
        for world in range(world_count):
            due = simulated.due_ms[world]
            waits = simulated.time_to_first_token_ms[world]
            yield run(
                [
                    dataclasses.replace(
                        record(i),
                        scheduled_ms=float(due[i]),
                        sent_ms=float(due[i]),
                        chunk_ms=(float(due[i] + waits[i]),),
                        end_ms=float(due[i] + waits[i]),
                    )
                    for i in range(n)
                ]
            )

    def share_growing(self, model, n=500, worlds=60, seed=1):
        growing = [
            "queue in a steady state" in closed(check_run(one, FixedSchedule(), MEAN))
            for one in self.from_queue(model, n, worlds, seed)
        ]
        return np.mean(growing)

    @pytest.mark.parametrize("utilization", [1.2, 1.5])
    def test_an_overloaded_queue_is_seen(self, utilization):
        model = dataclasses.replace(ORDINARY, utilization=utilization)
        assert self.share_growing(model) >= 0.95

    @pytest.mark.parametrize("model", [ORDINARY, dataclasses.replace(STRESS, utilization=0.5)])
    def test_bursts_that_drain_are_not(self, model):
        assert self.share_growing(model, worlds=100) <= 0.02

    def test_a_short_run_is_not_judged(self):
        rising = [record(i, 50.0 * (i + 1)) for i in range(40)]
        assert closed(check_run(run(rising), FixedSchedule(), MEAN)) == []

    def test_says_that_it_is_overloaded(self):
        rising = run([record(i, 50.0 * (i + 1)) for i in range(200)])
        (result,) = (r for r in check_run(rising, FixedSchedule(), MEAN) if not r.passed)
        assert "exceeds what this configuration can serve" in result.what_to_do
        assert "+500.0 ms per second" in result.saw
        assert closed(check_run(rising, Concurrency(8), MEAN)) == []


class TestPairs:
    def test_token_counts_that_differ_for_the_same_request(self):
        assert closed(check_pair(with_one({"completion_tokens": 9}), run(good(), "rr"))) == [
            "same token counts"
        ]

    def test_lengths_that_were_asked_for_differ(self):
        assert closed(check_pair(with_one({"output_tokens": 99}), run(good(), "rr"))) == [
            "same requests"
        ]

    def test_a_request_lost_in_one(self):
        assert closed(check_pair(run(good(199)), run(good(200), "rr"))) == ["same requests"]

    def test_traffic_made_anew_may_have_nothing_in_common(self):
        anew = [dataclasses.replace(r, request_id=f"x{r.request_id}") for r in good()]
        assert closed(check_pair(run(good()), run(anew, "rr"))) == []

    def test_different_targets(self):
        assert closed(check_pair(run(good()), run(good(), "rr", target="replay"))) == [
            "same target"
        ]


class TestLoadGeneratorKeptUp:
    """What the load generator measured of itself."""

    @staticmethod
    def gate(coalesced=1, **health):
        records = [dataclasses.replace(r, coalesced_chunks=coalesced) for r in good()]
        measured = {
            "name": "own", "cpu_share": 0.3, "kernel_timestamp_share": 1.0, "clock_steps": 0,
            "receive_lag_ms": {"p99": 1.0}, "loop_busy_ms": {"p99": 1.0},
        } | health  # fmt: skip
        results = check_run(
            run(records, observed={"load_generator": measured}), Concurrency(4), MEAN
        )
        return next(result for result in results if result.name == "load generator kept up")

    def test_passes(self):
        assert self.gate().passed
        assert "30% of a core" in self.gate().saw

    def test_a_core_that_is_full_is_not_enough(self):
        found = self.gate(cpu_share=0.97)
        assert not found.passed
        assert "--dynamo-load-processes" in found.what_to_do

    def test_lateness_does_no_harm_where_the_kernel_notes_arrivals(self):
        assert self.gate(receive_lag_ms={"p99": 40.0}).passed
        assert self.gate(coalesced=5).passed
        assert not self.gate(coalesced=5, receive_lag_ms={"p99": 40.0}).passed

    def test_elsewhere_it_does(self):
        late = {"kernel_timestamp_share": 0.0, "loop_busy_ms": {"p99": 40.0}}
        assert not self.gate(**late).passed
        assert self.gate(kernel_timestamp_share=0.0).passed

    def test_a_clock_that_was_set_is_said(self):
        assert "was set 2 times" in self.gate(clock_steps=2).saw

    def test_aiperf_does_not_measure_itself(self):
        results = check_run(
            run(good(), observed={"load_generator": {"name": "aiperf"}}), Concurrency(4), MEAN
        )
        assert "load generator kept up" not in {result.name for result in results}
