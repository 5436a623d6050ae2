"""Which workers have Dynamo's own host tier for KV blocks, and of what size."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from hypothesis import given

from pytest_dynamo_bench import (
    Benchmark,
    Configuration,
    Hardware,
    KvOffload,
    MooncakeTrace,
    SpeculativeDecoding,
    Worker,
)
from pytest_dynamo_bench.engines import HostTier, host_tier, host_tiers
from pytest_dynamo_bench.errors import TargetError
from tests.any_configuration import configurations

# 64 tokens of Qwen3-32B are 16 MiB.
BYTES_PER_TOKEN = 1 << 18
OFFLOAD = KvOffload(1, to_host_gb_per_second=20, to_gpu_gb_per_second=5)
DRAFTS = SpeculativeDecoding(1, (0.5,))


def benchmark_with(configuration):
    return Benchmark(
        name="b", question="?", model="Qwen/Qwen3-32B", hardware=Hardware("H200", 16),
        traffic=MooncakeTrace("conversation"), configurations=[configuration], claims=[],
    )  # fmt: skip


def found(*workers, engine="vllm"):
    configuration = Configuration("c", "baseline", workers)
    return host_tiers(benchmark_with(configuration), configuration, engine)


@pytest.fixture
def able(monkeypatch):
    """A Dynamo that has a host tier of vLLM's scheduler, without drafts."""
    can = SimpleNamespace(host_offload=("vllm",), host_offload_with_drafts=False)
    monkeypatch.setattr(host_tier, "abilities", lambda dynamo: can)
    return can


def test_a_host_tier_has_its_blocks_and_its_bandwidth(able):
    tier = HostTier(64, BYTES_PER_TOKEN, to_host_gb_per_second=20, to_gpu_gb_per_second=5)
    assert found(Worker(3, kv_offload=OFFLOAD)) == {"aggregated": tier}
    plain = found(Worker(3, kv_offload=KvOffload(1)))["aggregated"]
    assert (plain.to_host_gb_per_second, plain.to_gpu_gb_per_second) == (0, 0)
    ranks = found(Worker(1, attention_dp=4, kv_offload=OFFLOAD))["aggregated"]
    assert ranks == dataclasses.replace(tier, blocks=16)


def test_workers_that_dynamo_has_none_for_are_left_out(able):
    assert found(Worker(1, kv_offload=OFFLOAD), engine="trtllm") == {}
    assert found(Worker(1, kv_offload=OFFLOAD, prefix_caching=False)) == {}
    assert found(Worker(1, kv_offload=OFFLOAD, speculative=DRAFTS)) == {}
    split = [
        Worker(1, mode=mode, kv_offload=OFFLOAD, speculative=DRAFTS)
        for mode in ("prefill", "decode")
    ]
    assert found(*split).keys() == {"prefill"}
    able.host_offload_with_drafts = True
    assert found(*split).keys() == {"prefill", "decode"}
    able.host_offload = ()
    assert found(*split) == {}


def test_a_tier_without_room_for_a_block_is_refused(able):
    with pytest.raises(
        TargetError, match=r"'c': the aggregated workers' host_gib of 0\.01 holds no"
    ):
        found(Worker(1, kv_offload=KvOffload(0.01)))


@given(configurations())
def test_without_kv_offload_no_dynamo_is_asked(configuration):
    workers = [dataclasses.replace(worker, kv_offload=None) for worker in configuration.workers]
    plain = configuration.but(workers=workers, dynamo="0.0.1")
    assert host_tiers(benchmark_with(plain), plain, "vllm") == {}
