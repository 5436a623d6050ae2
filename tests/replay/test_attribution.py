"""Splitting a difference among features: combinations, effects, intervals."""

import itertools

import numpy as np
import pytest

from pytest_dynamo_bench import Configuration, KvOffload, SpeculativeDecoding, Worker
from pytest_dynamo_bench.attribution import attribute, plan
from pytest_dynamo_bench.errors import BenchmarkError

AGG = Configuration("agg-rr", "baseline", [Worker(8, tp=2, kv_blocks=100)])
SPLIT_KV = Configuration(
    "pd-kv",
    "promoted",
    [
        Worker(6, tp=2, mode="prefill", kv_blocks=100),
        Worker(2, tp=2, mode="decode", kv_blocks=100, prefix_caching=False),
    ],
    router="kv",
)
NOTHING = frozenset()
ROUTING, SPLIT = frozenset(["kv_routing"]), frozenset(["pd_split"])
BOTH = ROUTING | SPLIT
# Requests within SLO of the whole conversation trace, as in shared/facts/engine-timing.md.
KNOWN = {NOTHING: 9836.0, ROUTING: 10138.0, SPLIT: 9295.0, BOTH: 10356.0}


def test_routing_and_split_make_four_arms():
    found = plan(AGG, SPLIT_KV).configurations
    assert set(found) == {NOTHING, ROUTING, SPLIT, BOTH}
    assert found[NOTHING] is AGG and found[BOTH] is SPLIT_KV
    assert found[ROUTING].workers == AGG.workers and found[ROUTING].router == "kv"
    assert found[SPLIT].workers == SPLIT_KV.workers and found[SPLIT].router == "round-robin"
    assert len({item.name for item in found.values()}) == 4
    assert not found[ROUTING].published


def test_the_known_result_routing_helps_and_the_split_alone_hurts():
    result = attribute(("kv_routing", "pd_split"), KNOWN)
    routing, split = result.features
    assert routing.alone.value == pytest.approx(302 / 9836)
    assert routing.on_top.value == pytest.approx(1061 / 9836)
    assert split.alone.value == pytest.approx(-541 / 9836)
    assert split.on_top.value == pytest.approx(218 / 9836)
    assert routing.average.value == pytest.approx(681.5 / 9836)
    assert split.average.value == pytest.approx(-161.5 / 9836)
    assert result.total.value == pytest.approx(520 / 9836)


def test_in_the_metrics_own_unit():
    result = attribute(("kv_routing", "pd_split"), KNOWN, relative=False)
    assert result.total.value == 520 and result.features[1].alone.value == -541


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_averages_add_up_to_the_whole_difference(count):
    features = tuple("abcd"[:count])
    random = np.random.default_rng(count)
    values = {
        frozenset(names): float(random.uniform(1, 2))
        for size in range(count + 1)
        for names in itertools.combinations(features, size)
    }
    result = attribute(features, values)
    assert sum(share.average.value for share in result.features) == pytest.approx(
        result.total.value
    )


def test_the_average_is_over_all_orders():
    features = ("a", "b", "c")
    random = np.random.default_rng(7)
    values = {
        frozenset(names): float(random.uniform(1, 2))
        for size in range(4)
        for names in itertools.combinations(features, size)
    }
    expected = dict.fromkeys(features, 0.0)
    for order in itertools.permutations(features):
        have = frozenset()
        for feature in order:
            expected[feature] += (values[have | {feature}] - values[have]) / 6
            have |= {feature}
    result = attribute(features, values, relative=False)
    for share in result.features:
        assert share.average.value == pytest.approx(expected[share.feature])


def test_a_feature_that_does_nothing_gets_nothing():
    values = {
        names | extra: value for names, value in KNOWN.items() for extra in (NOTHING, {"idle"})
    }
    result = attribute(("kv_routing", "pd_split", "idle"), values)
    assert result.features[2].average.value == pytest.approx(0)
    assert result.features[0].average.value == pytest.approx(681.5 / 9836)


def test_intervals_come_from_paired_resamples():
    random = np.random.default_rng(0)
    shared = random.normal(0, 500, 2000)
    resampled = {
        names: value + shared + random.normal(0, 5, 2000) for names, value in KNOWN.items()
    }
    result = attribute(("kv_routing", "pd_split"), KNOWN, resampled, relative=False)
    alone = result.features[1].alone
    # What all arms share cancels: the interval is that of the small independent part.
    assert alone.low < -541 < alone.high and alone.high - alone.low < 40
    assert alone.sign == -1 and result.features[0].alone.sign == 1
    assert result.features[0].average.low > 0


def test_rows_are_plain_data():
    rows = attribute(("kv_routing", "pd_split"), KNOWN).as_rows()
    assert [row["feature"] for row in rows] == ["kv_routing", "pd_split", "total"]
    assert rows[0]["alone"]["value"] == pytest.approx(0.0307, abs=1e-4)


def test_every_combination_is_needed():
    with pytest.raises(ValueError, match="no value for the combination"):
        attribute(("kv_routing", "pd_split"), {NOTHING: 1.0, BOTH: 2.0})
    draws = {names: np.ones(3 + len(names)) for names in KNOWN}
    with pytest.raises(ValueError, match="same number of resamples"):
        attribute(("kv_routing", "pd_split"), KNOWN, draws)


def test_prefix_caching_is_told_apart_from_the_split():
    """DeepSeek-V3.2: the published baseline has no prefix cache at all."""
    baseline = AGG.but(workers=[Worker(4, attention_dp=8, moe_ep=8, prefix_caching=False)])
    treatment = SPLIT_KV.but(
        workers=[
            Worker(2, mode="prefill", attention_dp=8, moe_ep=8),
            Worker(2, mode="decode", attention_dp=8, moe_ep=8, prefix_caching=False, wideep=True),
        ]
    )
    made = plan(baseline, treatment)
    assert made.features == ("kv_routing", "pd_split", "prefix_caching", "wideep")
    assert len(made.configurations) == 16
    caching = made.configurations[frozenset(["prefix_caching"])]
    assert caching.workers[0].prefix_caching and caching.workers[0].mode == "aggregated"
    split = made.configurations[frozenset(["pd_split"])]
    assert [worker.prefix_caching for worker in split.workers] == [False, False]
    assert not split.workers[1].wideep
    assert made.configurations[frozenset(["wideep"])].workers[0].wideep


def test_speculation_and_offload_follow_the_role_that_has_them():
    """Kimi-K2.5: drafts on both sides, offload on the prefill side."""
    drafts = SpeculativeDecoding(3, (0.8, 0.6, 0.4))
    treatment = SPLIT_KV.but(
        workers=[
            Worker(3, mode="prefill", tp=4, speculative=drafts, kv_offload=KvOffload(100)),
            Worker(3, mode="decode", tp=4, speculative=drafts, prefix_caching=False),
        ]
    )
    baseline = AGG.but(workers=[Worker(3, tp=8)])
    made = plan(baseline, treatment)
    assert made.features == ("kv_routing", "pd_split", "spec_decode", "kv_offload")
    assert made.configurations[frozenset(["spec_decode"])].workers[0].speculative == drafts
    split = made.configurations[frozenset(["pd_split"])]
    assert all(w.speculative is None and w.kv_offload is None for w in split.workers)
    offload = made.configurations[frozenset(["pd_split", "kv_offload"])]
    assert [bool(w.kv_offload) for w in offload.workers] == [True, False]


def test_a_load_of_its_own_is_told_apart_from_the_features():
    treatment = AGG.but(name="kv", router="kv", concurrency=64, requests=640)
    made = plan(AGG, treatment)
    assert made.features == ("kv_routing", "load")
    routing = made.configurations[ROUTING]
    assert (routing.concurrency, routing.requests) == (None, None)
    load = made.configurations[frozenset(["load"])]
    assert (load.router, load.concurrency, load.requests) == ("round-robin", 64, 640)


def test_a_change_of_router_is_kv_routing_only_to_or_from_the_kv_router():
    made = plan(AGG, SPLIT_KV.but(router="power-of-two"))
    assert made.features == ("router", "pd_split")
    assert made.configurations[frozenset(["router"])].router == "power-of-two"
    assert plan(AGG.but(router="kv"), AGG).features == ("kv_routing",)


@pytest.mark.parametrize(
    ("feature", "change"),
    [
        ("frontend_decoding", {"frontend_decoding": True}),
        ("embedding_cache", {"embedding_cache_gib": 1}),
    ],
)
def test_what_is_done_to_images_is_no_part_of_the_layout(feature, change):
    worker = Worker(8, tp=2, kv_blocks=100, **change)
    made = plan(AGG, AGG.but(name="images", router="kv", workers=[worker]))
    assert made.features == ("kv_routing", feature)
    assert made.configurations[frozenset([feature])].workers == (worker,)


def test_features_can_go_together():
    made = plan(AGG, SPLIT_KV, together=[("kv_routing", "pd_split")])
    assert made.features == ("kv_routing+pd_split",) and len(made.configurations) == 2


def test_more_workers_without_a_split_is_a_feature_too():
    made = plan(AGG, AGG.but(name="more", workers=[Worker(9, tp=2, kv_blocks=100)]))
    assert made.features == ("workers",)


def test_errors_say_what_is_wrong():
    with pytest.raises(BenchmarkError, match="do not differ"):
        plan(AGG, AGG.but(name="same"))
    with pytest.raises(BenchmarkError, match="'wideep' cannot be grouped"):
        plan(AGG, SPLIT_KV, together=[("wideep", "kv_routing")])
    many = SPLIT_KV.but(
        block_size=32,
        workers=[
            Worker(6, tp=2, mode="prefill", kv_blocks=100, kv_offload=KvOffload(1)),
            Worker(
                2, tp=2, mode="decode", kv_blocks=100, speculative=SpeculativeDecoding(1),
            ),
        ],
    )  # fmt: skip
    with pytest.raises(BenchmarkError, match=r"5 features .* make 32 combinations"):
        plan(AGG, many)
