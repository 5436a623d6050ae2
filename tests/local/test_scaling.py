"""How much of a benchmark's traffic local sends at each scale, and what is said about it."""

from __future__ import annotations

import pytest

from pytest_dynamo_bench import (
    Benchmark,
    Concurrency,
    Configuration,
    Hardware,
    MooncakeTrace,
    Size,
    SyntheticTraffic,
    Worker,
)
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.targets.local.scaling import in_words, survived
from pytest_dynamo_bench.targets.local.target import LocalOptions, LocalTarget
from tests.test_benchmarks_published import benchmark_of

AGG = Configuration("agg", "baseline", [Worker(4, tp=2, kv_blocks=4000)])
KV = AGG.but(name="kv", role="treatment", router="kv")


def make(traffic, **changes):
    return Benchmark(
        **{
            "name": "example", "question": "?", "model": "Qwen/Qwen3-32B",
            "hardware": Hardware("H200", 8), "traffic": traffic, "configurations": [AGG, KV],
            "claims": [], **changes,
        }
    )  # fmt: skip


def at(scale, seconds=None):
    return LocalTarget(LocalOptions(scale=scale, seconds=seconds))


def said(target, benchmark):
    whole, part = benchmark.traffic.load(), target.traffic(benchmark)
    return in_words(benchmark, benchmark.configurations[0], target.size(benchmark), whole, part)


TRACE = make(MooncakeTrace("conversation"))
LOOP = make(SyntheticTraffic(isl=1000, osl=10, requests=400, schedule=Concurrency(8)))


def test_a_fixed_schedule_has_10_or_35_seconds_or_all_of_it():
    lengths = [at(scale).traffic(TRACE).duration_seconds for scale in ("smoke", "standard", "full")]
    assert lengths == pytest.approx([10, 35, 3536.999], rel=0.06)
    assert at("smoke", seconds=20).traffic(TRACE).duration_seconds == pytest.approx(20, rel=0.05)


def test_modelled_time_that_runs_faster_has_more_traffic_in_as_many_seconds():
    fast = make(TRACE.traffic, sizes={"smoke": Size(seconds=10, fast_forward=3)})
    assert at("smoke").traffic(fast).duration_seconds == pytest.approx(30, rel=0.05)
    assert "3 times faster than real time" in said(at("smoke"), fast)
    assert any("3 times faster" in text for text in at("smoke").limitations(fast, AGG))


def test_a_closed_loop_has_sessions_for_each_place_unless_the_benchmark_says_how_many():
    counts = [len(at(scale).traffic(LOOP).requests) for scale in ("smoke", "standard", "full")]
    assert counts == [16, 64, 400]
    sized = make(LOOP.traffic, sizes={"smoke": Size(seconds=10, sessions=30)})
    assert len(at("smoke").traffic(sized).requests) == 30
    assert len(at("smoke", seconds=20).traffic(sized).requests) == 60


def test_another_traffic_can_take_the_place_of_the_published_one():
    other = SyntheticTraffic(isl=7, osl=3, requests=5, schedule=Concurrency(2))
    benchmark = make(LOOP.traffic, sizes={"smoke": Size(traffic=other)})
    assert at("smoke").traffic(benchmark).requests == other.load().requests


def test_another_traffic_is_not_cut_and_says_so():
    smaller = SyntheticTraffic(isl=10, osl=2, requests=5, schedule=Concurrency(2))
    benchmark = make(MooncakeTrace("conversation"), sizes={"standard": Size(traffic=smaller)})
    asked = at("standard", seconds=7)
    assert len(asked.traffic(benchmark).requests) == 5
    assert "is not cut to 7 s" in said(asked, benchmark)
    assert "is not cut" not in said(at("standard"), benchmark)


def test_claims_about_configurations_that_are_not_brought_up_say_what_to_use():
    benchmark = make(LOOP.traffic, sizes={"smoke": Size(configurations=["agg"])})
    told = at("smoke").not_measured(benchmark, ["agg", "kv"])
    assert told == "kv is not started at scale smoke; use --dynamo-scale=standard"
    assert at("smoke").not_measured(benchmark, ["agg"]) == ""
    assert at("standard").not_measured(benchmark, ["agg", "kv"]) == ""


def test_what_survives_is_said_with_numbers():
    found = survived(TRACE, AGG, TRACE.traffic.load(), at("standard").traffic(TRACE))
    whole, part = found["input tokens/s per worker"]
    assert part == pytest.approx(whole, rel=0.06)
    whole, part = found["reusable prompt blocks, %"]
    assert part == pytest.approx(whole, abs=2)
    assert "published → sent, agg: requests 12,031 → " in said(at("standard"), TRACE)
    assert said(at("full"), TRACE) == ""


@pytest.mark.parametrize(
    ("name", "reuse"),
    [("kimi_feature_stack", 17), ("deepseek_wideep_routing", 1), ("llama_topology", 0.1)],
)
def test_load_and_reuse_of_the_shipped_benchmarks_survive_at_standard(name, reuse):
    """Coding agents lose reuse, since only the beginnings of their sessions are sent."""
    benchmark = benchmark_of(name)
    part = at("standard").traffic(benchmark)
    for configuration in benchmark.configurations[:1]:
        found = survived(benchmark, configuration, benchmark.traffic.load(), part)
        for load in ("input tokens/s per worker", "sessions in flight per worker"):
            if load in found:
                assert found[load][1] == pytest.approx(found[load][0], rel=0.05)
        whole, sent = found["reusable prompt blocks, %"]
        assert sent == pytest.approx(whole, abs=reuse)


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0}, {"sessions": 1.5}, {"turns": -1}, {"fast_forward": 0}, {"traffic": 3}]
)
def test_a_size_that_makes_no_sense_names_its_field(wrong):
    with pytest.raises(BenchmarkError, match=f"Size: {next(iter(wrong))}: must be"):
        Size(**wrong)


def test_sizes_name_scales_and_configurations_that_exist():
    with pytest.raises(BenchmarkError, match="sizes: 'tiny' is not one of 'smoke'"):
        make(LOOP.traffic, sizes={"tiny": Size()})
    with pytest.raises(BenchmarkError, match="sizes: smoke: configuration: 'other' is not one of"):
        make(LOOP.traffic, sizes={"smoke": Size(configurations=["other"])})
