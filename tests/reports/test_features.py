"""What each feature did in a run, in words that say what of it is modelled."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_dynamo_bench import (
    Benchmark,
    Configuration,
    Hardware,
    KvOffload,
    MooncakeTrace,
    SpeculativeDecoding,
    Worker,
)
from pytest_dynamo_bench.features import (
    Simulation,
    absent_features,
    feature_caveats,
    feature_limits,
)
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.reports.features import features_at_work
from tests.test_metrics import record

PLAIN = Configuration("plain", "baseline", [Worker(2, tp=2)])
STACK = Configuration(
    "stack", "promoted", router="kv", nodes=2,
    workers=[
        Worker(1, mode="prefill", attention_dp=4, moe_ep=4, kv_offload=KvOffload(10)),
        Worker(1, mode="decode", tp=4, moe_ep=4, wideep=True, nodes=2,
               speculative=SpeculativeDecoding(1, (1.0,))),
    ],
)  # fmt: skip
BENCHMARK = Benchmark(
    name="b", question="?", model="nvidia/Kimi-K2.5-NVFP4", engine="trtllm",
    hardware=Hardware("GB200", 8, kv_transfer_gb_per_second=1),
    traffic=MooncakeTrace("conversation"), configurations=[PLAIN, STACK], claims=[],
)  # fmt: skip


def seen(configuration, target="local", **changes):
    records = [
        record(
            i, chunks=(100.0, 110.0), cached_tokens=50, host_tokens=10, input_tokens=100,
            completion_tokens=20, decode_steps=9, prefill_worker="p", decode_worker="d",
            prefill_rank=i % 2, decode_rank=0, kv_transfer_ms=5.0, router_hit_rate=0.4, **changes,
        )
        for i in range(4)
    ]  # fmt: skip
    run = Run(
        "b", configuration.name, target, 8, records, "", simulated=target == "replay",
        stand_in_engines=target == "local", observed={"evicted_blocks": 7},
    )  # fmt: skip
    found = features_at_work(BENCHMARK, configuration, Metrics(run))
    return {item.feature: str(item) for item in found}


def test_a_configuration_without_features_did_nothing():
    assert seen(PLAIN) == {}


def test_every_feature_says_what_it_did_and_what_of_that_is_modelled():
    found = seen(STACK)
    assert set(found) == {*STACK.features, "attention_dp"}
    assert "50.0 % of prompt tokens" in found["kv_routing"]
    assert "the router expected 40.0 %" in found["kv_routing"]
    assert "modelled" not in found["kv_routing"]
    assert "100 % of requests were prefilled and decoded on different workers" in found["pd_split"]
    assert "5.0 ms on average (upper bound)" in found["pd_split"]
    # 100 tokens of 35,136 bytes at 1 GB/s.
    assert "modelled: the network, 3.5 ms for the KV cache of a mean prompt" in found["pd_split"]
    assert "2.00 tokens per step (modelled: accepted drafts" in found["spec_decode"]
    assert "10.0 % of prompt tokens came from host memory, 7 blocks" in found["kv_offload"]
    assert "2 of 4 prefill ranks served requests, the busiest 50.0 %" in found["attention_dp"]
    assert "experts over 4 (decode) GPUs (modelled:" in found["wideep"]
    assert "workers over 2 nodes; decode workers span 2 nodes" in found["multi_node"]


TIERS = {"prefill": {"to_gpu_gb_per_second": 5.0, "to_host_gb_per_second": 0.0}}


@pytest.mark.parametrize(
    ("simulated", "tiers", "modelled"),
    [
        (False, {}, "host memory as extra blocks of the cache; onboarding takes no time"),
        (True, {}, ""),
        (False, TIERS, "the link between GPU and host memory: 5 GB/s to the GPU and no time to"),
        (True, TIERS, "the link between GPU and host memory: 5 GB/s to the GPU and no time to"),
    ],
)
def test_kv_offload_says_what_stands_for_host_memory(simulated, tiers, modelled):
    run = Run(
        "b", "stack", "t", 8, [record(1)], "", simulated=simulated,
        stand_in_engines=not simulated, deployed={"host_tiers": tiers} if tiers else {},
    )  # fmt: skip
    found = {i.feature: i.modelled for i in features_at_work(BENCHMARK, STACK, Metrics(run))}
    assert found["kv_offload"].startswith(modelled) and bool(found["kv_offload"]) is bool(modelled)


@pytest.mark.parametrize(
    ("offload", "free"),
    [
        (KvOffload(1), "to_host_gb_per_second and to_gpu_gb_per_second are"),
        (KvOffload(1, to_gpu_gb_per_second=5), "to_host_gb_per_second is"),
        (KvOffload(1, to_host_gb_per_second=5, to_gpu_gb_per_second=5), ""),
    ],
)
def test_a_host_link_without_bandwidth_is_named_and_one_with_it_is_not(offload, free):
    configuration = PLAIN.but(workers=[Worker(1, kv_offload=offload)])
    own, none = (Simulation(BENCHMARK, configuration, host_tiers=t) for t in (["aggregated"], []))
    links = [item.text for item in feature_caveats(own) if item.id == "host-link-free"]
    for texts in (links, list(feature_limits(own, "stand-in"))):
        assert len(texts) == bool(free) and all(f"{free} not given" in text for text in texts)
    assert list(absent_features(own)) == []
    assert "host-link-free" not in {item.id for item in feature_caveats(none)}
    (absent,), (limit,) = absent_features(none), feature_limits(none, "stand-in")
    assert absent.id == "kv-offload-absent" and "for the aggregated workers" in absent.text
    assert "takes no time, which favors KV offload" in limit


def test_session_affinity_says_where_later_turns_went():
    sticky = PLAIN.but(frontend_args={"router-session-affinity-ttl-secs": 60})
    assert sticky.features == {"session_affinity"}
    records = [
        dataclasses.replace(record(i), session_id="s", turn=i, prefill_worker=worker)
        for i, worker in enumerate("aabb")
    ]
    metrics = Metrics(Run("b", "plain", "local", 8, records, "", stand_in_engines=True))
    (found,) = features_at_work(BENCHMARK, sticky, metrics)
    assert str(found) == "66.7 % of later turns went to the worker of the turn before"


def test_on_a_cluster_nothing_is_called_modelled():
    assert not any("modelled" in told for told in seen(STACK, target="kubernetes").values())


def test_what_a_target_cannot_see_is_not_made_up():
    found = seen(STACK, target="replay")
    assert "modelled" in found["wideep"] or found["wideep"]
    run = Run("b", "stack", "endpoint", 8, [record(1)], "")
    told = {i.feature: i.saw for i in features_at_work(BENCHMARK, STACK, Metrics(run))}
    for feature in ("spec_decode", "kv_offload", "kv_routing"):
        assert "not seen on this target" in told[feature]


@pytest.mark.parametrize("bandwidth", [None, 1])
def test_the_transfer_is_modelled_by_the_bandwidth_that_is_given(bandwidth):
    hardware = dataclasses.replace(BENCHMARK.hardware, kv_transfer_gb_per_second=bandwidth)
    benchmark = dataclasses.replace(BENCHMARK, hardware=hardware)
    run = Run("b", "stack", "local", 8, [record(1)], "", stand_in_engines=True)
    found = {i.feature: i.modelled for i in features_at_work(benchmark, STACK, Metrics(run))}
    assert ("without transfer time" in found["pd_split"]) is (bandwidth is None)
