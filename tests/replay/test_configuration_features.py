"""The parallelism, speculation and offload fields, and the features derived from them."""

import pytest

from pytest_dynamo_bench import Configuration, KvOffload, SpeculativeDecoding, Worker
from pytest_dynamo_bench.errors import BenchmarkError


def test_a_bandwidth_of_kv_offload_that_is_not_given_is_not_stored():
    """So that results from before there were any can be compared with."""
    for offload, stored in (
        (KvOffload(100), {"host_gib": 100}),
        (
            KvOffload(100, to_gpu_gb_per_second=50.0),
            {"host_gib": 100, "to_gpu_gb_per_second": 50.0},
        ),
        (None, None),
    ):
        (worker,) = Configuration("c", "baseline", [Worker(1, kv_offload=offload)]).as_dict()[
            "workers"
        ]
        assert worker["kv_offload"] == stored


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
        (lambda: KvOffload(1, to_host_gb_per_second=0), "to_host_gb_per_second"),
        (lambda: KvOffload(1, to_gpu_gb_per_second=-1), "to_gpu_gb_per_second"),
        (lambda: Configuration("a", "baseline", [Worker(1)], nodes=0), "nodes"),
    ],
)
def test_errors_name_the_field(make, field):
    with pytest.raises(BenchmarkError, match=field):
        make()
