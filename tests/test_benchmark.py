"""What an author may write, and what the errors say when it is wrong."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

import pytest_dynamo_bench
from pytest_dynamo_bench import (
    Benchmark,
    Claim,
    Concurrency,
    Configuration,
    Goodput,
    Hardware,
    MooncakeTrace,
    PublishedResults,
    Worker,
)
from pytest_dynamo_bench.benchmark import Size
from pytest_dynamo_bench.cli.modules import known_targets
from pytest_dynamo_bench.errors import BenchmarkError, TrafficError

AGG = Configuration("agg", "baseline", [Worker(8, tp=2)])
KV = AGG.but(name="kv", role="treatment", router="kv")
TTFT = Claim("lower", "time_to_first_token.mean", "kv", "agg", lower_by=0.1)


def benchmark(**changes):
    fields = {
        "name": "example",
        "question": "?",
        "model": "Qwen/Qwen3-32B",
        "hardware": Hardware("H200", 16),
        "traffic": MooncakeTrace("conversation"),
        "configurations": [AGG, KV],
        "claims": [TTFT],
    }
    return Benchmark(**{**fields, **changes})


def test_a_configuration_derived_by_but_differs_only_in_what_is_named():
    assert KV.router == "kv"
    assert KV.workers == AGG.workers
    assert (AGG.features, KV.features) == (frozenset(), {"kv_routing"})


def test_the_role_of_a_promoted_configuration_still_has_its_old_name():
    with pytest.warns(DeprecationWarning, match="role='winner' is now role='promoted'") as warned:
        old = Configuration("kv", "winner", [Worker(8, tp=2)], router="kv")
    assert warned[0].filename == __file__
    assert old == Configuration("kv", "promoted", [Worker(8, tp=2)], router="kv")


def test_gpus_and_replicas_are_counted_over_roles():
    split = AGG.but(
        workers=[Worker(6, mode="prefill", tp=2), Worker(2, mode="decode", tp=2)], router="kv"
    )
    assert (split.gpus, split.replicas, split.prefill_replicas) == (16, 8, 6)
    assert split.features == {"kv_routing", "pd_split"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AGG.but(router="kvv"), r"'agg': router: 'kvv' is not one of .*'kv'"),
        (lambda: AGG.but(routerr="kv"), r"has no field 'routerr'; fields: name, role"),
        (lambda: Configuration("A b", "baseline", [Worker(1)]), "name: 'A b' must be lower-case"),
        (lambda: AGG.but(workers=[]), "workers: give at least one Worker"),
        (lambda: AGG.but(workers=[Worker(1, mode="prefill")]), "one prefill and one decode"),
        (lambda: AGG.but(block_size=0), "block_size: must be greater than 0"),
        (lambda: Worker(0), "replicas: must be greater than 0"),
        (lambda: Worker(1.5), "replicas: must be a whole number, got 1.5"),
        (lambda: Worker(1, mode="both"), "mode: 'both' is not one of"),
        (lambda: Goodput(), "give at least one limit: time_to_first_token_ms"),
        (lambda: Goodput(time_to_first_token_ms=-1), "time_to_first_token_ms: must be greater"),
        (lambda: Concurrency(0), "sessions: must be 1 or more, got 0"),
        (lambda: Claim("c", "tttf.mean", "kv", "agg", lower_by=0.1), "'tttf' is not a metric"),
        (
            lambda: Claim("c", "time_to_first_token", "kv", "agg", lower_by=0.1),
            "add a statistic, for example time_to_first_token.mean",
        ),
        (
            lambda: Claim("c", "time_to_first_token.p100", "kv", "agg", lower_by=0.1),
            "add a statistic",
        ),
        (lambda: Claim("c", "goodput.mean", "kv", "agg", higher_by=0.1), "without .mean"),
        (lambda: Claim("c", "kv_hit_rate", "kv", "agg"), "give exactly one of lower_by"),
        (
            lambda: Claim("c", "kv_hit_rate", "kv", "agg", lower_by=0.1, higher_by=0.1),
            "give exactly one of",
        ),
        (
            lambda: Claim("c", "kv_hit_rate", "kv", "agg", higher_by={"my cluster": 0.1}),
            "higher_by: 'my cluster' is not a valid name of a target",
        ),
        (
            lambda: Claim("c", "time_to_first_token.mean", "kv", "agg", lower_by=20),
            "write 0.2 for 20 %",
        ),
        (
            lambda: Claim("c", "kv_hit_rate", "agg", "agg", higher_by=0.1),
            "treatment and baseline are the same",
        ),
        (lambda: benchmark(configurations=[AGG, AGG]), "the name 'agg' is used more than once"),
        (lambda: benchmark(configurations=[AGG]), "'lower': treatment: 'kv' is not one of 'agg'"),
        (lambda: benchmark(traffic="conversation"), "traffic: must be a traffic source"),
        (
            lambda: benchmark(claims=[Claim("g", "goodput", "kv", "agg", higher_by=0.1)]),
            "goodput needs SLOs",
        ),
        (lambda: benchmark(engine="tgi"), "engine: 'tgi' is not one of"),
        (lambda: benchmark().configuration("kvv"), "has no configuration 'kvv'; it has agg, kv"),
    ],
)
def test_errors_name_the_field_and_the_remedy(make, message):
    with pytest.raises(BenchmarkError, match=message):
        make()


def test_a_missing_trace_is_found_when_the_benchmark_is_written():
    with pytest.raises(TrafficError, match=r"no file 'nowhere.jsonl'.*shipped: 'conversation'"):
        MooncakeTrace("nowhere.jsonl")


@pytest.mark.parametrize(
    ("claim", "statement", "limit"),
    [
        (TTFT, "time_to_first_token.mean lower by at least 10 %", -0.1),
        (
            Claim("c", "kv_hit_rate", "kv", "agg", higher_by=0.05),
            "kv_hit_rate higher by at least 5 points",
            0.05,
        ),
        (Claim("c", "goodput", "kv", "agg", higher_by=0), "goodput higher", 0.0),
        (
            Claim("c", "request_latency.p99", "kv", "agg", not_higher_by=0.02),
            "request_latency.p99 at most 2 % higher",
            0.02,
        ),
        (
            Claim("c", "output_token_throughput", "kv", "agg", not_lower_by=0.02),
            "output_token_throughput at most 2 % lower",
            -0.02,
        ),
        (Claim("c", "goodput", "kv", "agg", not_lower_by=0), "goodput not lower", 0.0),
        (
            Claim("c", "kv_hit_rate", "kv", "agg", within=0.02),
            "kv_hit_rate at most 2 points higher or lower",
            0.02,
        ),
    ],
)
def test_a_claim_says_in_words_what_its_bound_says_in_numbers(claim, statement, limit):
    assert claim.statement("local") == statement
    bound = claim.bound("local")
    assert bound is not None
    assert bound.limit == pytest.approx(limit)


def test_a_claim_is_made_only_on_the_targets_that_it_names():
    claim = Claim("c", "time_to_first_token.mean", "kv", "agg", lower_by={"replay": 0.1})
    assert claim.bound("local") is None
    assert claim.statement("local") == "not claimed on local"


@pytest.mark.parametrize("bound", ["lower_by", "higher_by", "not_higher_by", "within"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.1", True])
def test_a_threshold_is_a_number_that_a_change_can_be_compared_with(bound, value):
    with pytest.raises(BenchmarkError, match=f"{bound}: must be 0 or more"):
        Claim("c", "goodput", "kv", "agg", **{bound: {"local": value}})


@pytest.mark.parametrize("value", [0, 1, 1.5])
def test_a_margin_leaves_both_sides_something_to_exclude(value):
    with pytest.raises(BenchmarkError, match="within: "):
        Claim("c", "goodput", "kv", "agg", within=value)


def test_a_claim_that_has_been_made_stays_what_it_is():
    thresholds = {"local": 0.1}
    claim = Claim("c", "goodput", "kv", "agg", higher_by=thresholds)
    same, other = dataclasses.replace(claim), dataclasses.replace(claim, higher_by={"local": 0.2})
    thresholds["local"] = 0.2
    assert claim == same != other
    assert len({claim, same, other}) == 2


def test_a_claim_by_target_is_the_claim_written_out():
    agg = Configuration("agg", "baseline", [Worker(8, tp=2)])
    kv = agg.but(name="kv", role="treatment", router="kv")
    short = Claim.lower(
        "KV is faster", "time_to_first_token.mean", kv, agg,
        local=(0, "29 %"), replay=(0.1, "17 %"),
    )  # fmt: skip
    assert short == Claim(
        "KV is faster", "time_to_first_token.mean", "kv", "agg",
        lower_by={"local": 0, "replay": 0.1}, evidence="local: 29 %; replay: 17 %",
    )  # fmt: skip
    higher = Claim.higher("more", "kv_hit_rate", kv, agg, kind="mechanism", local=(0.1, "?"))
    assert (higher.kind, higher.higher_by) == ("mechanism", {"local": 0.1})
    assert Claim.not_higher("no", "kv_hit_rate", kv, agg, local=(0.1, "?")).not_higher_by
    unchanged = Claim.unchanged("same", "kv_hit_rate", kv, agg, local=(0.1, "?"))
    assert (unchanged.kind, unchanged.within) == ("control", {"local": 0.1})
    with pytest.raises(BenchmarkError, match="local: must be a threshold with its evidence"):
        Claim.lower("KV is faster", "time_to_first_token.mean", kv, agg, local=0.1)
    elsewhere = Claim.lower("KV", "time_to_first_token.mean", kv, agg, my_cluster=(0.1, "?"))
    assert elsewhere.targets == ("my_cluster",)
    with pytest.raises(BenchmarkError, match="'nowhere' is not a target; targets: local, replay"):
        known_targets([]).check_claims(
            benchmark(claims=[dataclasses.replace(elsewhere, lower_by={"nowhere": 0})])
        )


def test_with_some_of_its_configurations_a_benchmark_has_sizes_of_those():
    made = benchmark(sizes={"smoke": Size(configurations=["agg", "kv"]), "full": Size(seconds=9)})
    some = made.only({"agg"})
    assert some.sizes["smoke"].configurations == ("agg",)
    assert some.sizes["full"] == made.sizes["full"]
    other = made.with_configurations([KV, KV.but(name="new")])
    assert other.sizes["smoke"].configurations == ("kv", "new")


def test_published_results_stay_with_the_configuration_that_they_are_about():
    results = PublishedResults("a page", "H200", {"agg": {"TTFT": 1.0}, "kv": {"TTFT": 0.5}})
    made = benchmark(published=results)
    assert made.only({"kv"}).published == dataclasses.replace(results, values={"kv": {"TTFT": 0.5}})
    assert made.with_configurations([KV.but(block_size=32)]).published is None


def test_a_configuration_that_there_is_not_cannot_be_chosen():
    with pytest.raises(BenchmarkError, match="has no configuration 'agf'; it has agg, kv"):
        benchmark().only({"agf"})
    with pytest.raises(BenchmarkError, match="give at least one Configuration"):
        benchmark().only(())


def test_another_traffic_is_what_every_size_is_about():
    small = MooncakeTrace("conversation")
    made = benchmark(sizes={"smoke": Size(traffic=small), "full": Size(seconds=9)})
    own = MooncakeTrace("conversation", schedule=Concurrency(4))
    other = made.with_traffic(own)
    assert other.traffic is own
    assert {name: size.traffic for name, size in other.sizes.items()} == {
        "smoke": None, "full": None,
    }  # fmt: skip


def test_nothing_else_makes_a_benchmark_with_other_configurations_or_traffic():
    """``dataclasses.replace`` with these forgets what names configurations or replaces traffic.

    A planned run has only the one traffic that it sends, a run only a description of it.
    """
    package = Path(pytest_dynamo_bench.__file__).parent
    found = {
        f"{path.relative_to(package)}:{call.lineno}"
        for path in package.rglob("*.py")
        if path.name != "benchmark.py"
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("replace")
        and {"configurations", "traffic"} & {keyword.arg for keyword in call.keywords}
        and ast.unparse(call.args[0]) not in ("planned", "run")
    }  # fmt: skip
    assert not found
