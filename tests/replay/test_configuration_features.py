"""The parallelism, speculation and offload fields, and the features derived from them."""

import pytest

from pytest_dynamo_bench import Configuration, KvOffload, SpeculativeDecoding, Worker
from pytest_dynamo_bench.errors import BenchmarkError


@pytest.mark.parametrize("name", ["to_host_gb_per_second", "to_gpu_gb_per_second"])
def test_bandwidths_of_kv_offload_are_accepted_and_said_to_have_no_effect(name):
    with pytest.warns(DeprecationWarning, match=f"{name} has no effect") as found:
        assert KvOffload(100, **{name: 50.0}) == KvOffload(100)
    assert found[0].filename == __file__


def test_gpus_count_attention_ranks():
    dep8 = Worker(4, attention_dp=8, moe_ep=8)
    assert dep8.gpus_per_replica == 8 and dep8.gpus == 32
    assert Worker(3, tp=8, moe_ep=8).gpus == 24


def test_features_are_derived_from_the_workers():
    configuration = Configuration(
        "stack",
        "promoted",
        [
            Worker(2, mode="prefill", tp=4, kv_offload=KvOffload(host_gib=100)),
            Worker(
                2, mode="decode", attention_dp=8, moe_ep=8, wideep=True, nodes=2,
                speculative=SpeculativeDecoding(3),
            ),
        ],
        router="kv",
    )  # fmt: skip
    assert configuration.features == {
        "kv_routing", "pd_split", "spec_decode", "kv_offload", "wideep", "multi_node",
    }  # fmt: skip
    assert Configuration("plain", "baseline", [Worker(1)]).features == set()
    assert Configuration("spread", "treatment", [Worker(2)], nodes=2).features == {"multi_node"}


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Worker(1, tp=4, moe_ep=3), "moe_ep"),
        (lambda: Worker(1, tp=4, nodes=3), "nodes"),
        (lambda: Worker(1, wideep=True), "wideep"),
        (lambda: Worker(1, attention_dp=0), "attention_dp"),
        (lambda: Worker(1, memory_fraction=1.5), "memory_fraction"),
        (lambda: Worker(1, speculative=3), "speculative"),
        (lambda: SpeculativeDecoding(9), "draft_tokens"),
        (lambda: SpeculativeDecoding(2, (0.5,)), "acceptance_rates"),
        (lambda: SpeculativeDecoding(1, (1.5,)), "acceptance_rates"),
        (lambda: KvOffload(host_gib=0), "host_gib"),
        (lambda: Configuration("a", "baseline", [Worker(1)], nodes=0), "nodes"),
    ],
)
def test_errors_name_the_field(make, field):
    with pytest.raises(BenchmarkError, match=field):
        make()
