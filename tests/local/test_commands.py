"""A configuration becomes the command lines of Dynamo's processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

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
from pytest_dynamo_bench.engines import host_tier
from pytest_dynamo_bench.targets.local.commands import (
    Ports,
    environment,
    inherited_environment,
    process_specs,
)

PORTS = Ports(8100, 8101, 8102)
SPLIT = Configuration(
    "split", "promoted", router="kv", block_size=32,
    workers=[
        Worker(6, mode="prefill", tp=2, kv_blocks=100, max_num_seqs=9),
        Worker(2, mode="decode", tp=2, prefix_caching=False, max_num_batched_tokens=4096),
    ],
)  # fmt: skip


def commands(configuration, fast_forward=1.0):
    benchmark = Benchmark(
        name="b", question="?", model="Qwen/Qwen3-32B", engine="vllm",
        hardware=Hardware("H200", 16, kv_transfer_gb_per_second=50),
        traffic=MooncakeTrace("conversation"), configurations=[configuration], claims=[],
    )  # fmt: skip
    specs = process_specs(
        benchmark, configuration, Path("/scratch"), Path("/logs"), PORTS, fast_forward
    )
    return {spec.name: spec for spec in specs}


def value(argv, option):
    return argv[argv.index(option) + 1]


def test_the_router_mode_is_the_frontends():
    argv = commands(SPLIT)["frontend"].argv
    assert value(argv, "--router-mode") == "kv"
    assert value(argv, "--http-host") == "127.0.0.1"
    assert value(argv, "--http-port") == "8100"


def test_roles_become_processes_with_their_own_options():
    specs = commands(SPLIT)
    assert list(specs) == ["event-tap", "frontend", "prefill", "decode"]
    prefill, decode = specs["prefill"].argv, specs["decode"].argv
    assert value(prefill, "--num-workers") == "6"
    assert value(decode, "--num-workers") == "2"
    assert value(prefill, "--disaggregation-mode") == "prefill"
    assert value(decode, "--disaggregation-mode") == "decode"
    assert value(prefill, "--num-gpu-blocks-override") == "100"
    assert int(value(decode, "--num-gpu-blocks-override")) > 100
    assert value(prefill, "--max-num-seqs") == "9"
    assert "--max-num-batched-tokens" not in decode
    assert value(prefill, "--block-size") == "32"
    assert "--enable-prefix-caching" in prefill
    assert "--no-enable-prefix-caching" in decode
    assert value(prefill, "--kv-transfer-bandwidth") == "50"
    assert value(prefill, "--kv-bytes-per-token") == str(2 * 64 * 8 * 128 * 2)


def test_aggregated_workers_transfer_nothing_and_take_the_profile_of_their_gpu():
    argv = commands(Configuration("agg", "baseline", [Worker(8, tp=2)]))["aggregated"].argv
    assert "--disaggregation-mode" not in argv
    assert "--kv-transfer-bandwidth" not in argv
    assert "Qwen3-32B" in value(argv, "--planner-profile-data")


def test_a_gpu_without_a_profile_gets_dynamos_own_timing():
    argv = commands(Configuration("agg", "baseline", [Worker(8, tp=1)]))["aggregated"].argv
    assert "--planner-profile-data" not in argv


def test_nothing_of_the_users_environment_steers_dynamo():
    source = {"DYN_ROUTER_MODE": "random", "PATH": "/bin", "PYTEST_CURRENT_TEST": "x"}
    assert inherited_environment(source) == {"PATH": "/bin"}
    assert "DYN_ROUTER_MODE" not in environment(Path("/scratch"), PORTS)


def test_what_dynamo_leaves_behind_is_left_where_it_is_removed():
    assert environment(Path("/scratch"), PORTS)["TMPDIR"] == "/scratch"


@pytest.mark.parametrize("able", [(), ("vllm",)])
def test_drafts_ranks_and_a_host_tier_reach_the_workers(able, monkeypatch):
    can = SimpleNamespace(host_offload=able, host_offload_with_drafts=False)
    monkeypatch.setattr(host_tier, "abilities", lambda dynamo: can)
    drafts = SpeculativeDecoding(2, (0.8, 0.5))
    offload = KvOffload(host_gib=1, to_gpu_gb_per_second=50)
    split = SPLIT.but(
        workers=[
            Worker(1, mode="prefill", attention_dp=4, kv_blocks=100, kv_offload=offload,
                   speculative=drafts),
            Worker(1, mode="decode", tp=4, kv_blocks=100, speculative=drafts),
        ]
    )  # fmt: skip
    specs = commands(split, fast_forward=4)
    prefill, decode = specs["prefill"].argv, specs["decode"].argv
    assert value(prefill, "--data-parallel-size") == "4"
    # A rank's quarter of a GiB, in blocks of 32 tokens of 256 KiB.
    assert value(prefill, "--num-gpu-blocks-override") == str(100 + (0 if able else 32))
    assert ("--num-host-blocks" in prefill) is bool(able)
    if able:
        assert value(prefill, "--num-host-blocks") == "32"
        assert value(prefill, "--host-offload-h2d-bandwidth-gbps") == "200"
        assert value(prefill, "--host-offload-d2h-bandwidth-gbps") == "0"
        assert value(prefill, "--kv-bytes-per-token") == str(1 << 18)
    assert "--num-host-blocks" not in decode
    assert "--aic-nextn" not in prefill and "--data-parallel-size" not in decode
    assert value(decode, "--aic-nextn") == "2"
    assert value(decode, "--aic-nextn-accept-rates") == "0.8,0.5"


def test_all_of_modelled_time_runs_faster():
    """The mocker's speed-up leaves KV transfers as they are."""
    prefill = commands(SPLIT, fast_forward=4)["prefill"].argv
    assert value(prefill, "--speedup-ratio") == "4"
    assert value(prefill, "--kv-transfer-bandwidth") == "200"


def test_the_frontend_gets_a_home_that_is_removed_and_keeps_the_users_caches(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    for name in ("XDG_CACHE_HOME", "HF_HOME", "PYTHONUSERBASE"):
        monkeypatch.delenv(name, raising=False)
    specs = commands(SPLIT)
    found = specs["frontend"].environment
    assert found["HOME"] == "/scratch/home"
    assert found["HF_HOME"] == "/home/somebody/.cache/huggingface"
    assert found["XDG_CACHE_HOME"] == "/home/somebody/.cache"
    assert {specs[name].environment["HOME"] for name in ("prefill", "decode")} == {"/home/somebody"}
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert commands(SPLIT)["frontend"].environment["HF_HOME"] == "/caches/huggingface"
    monkeypatch.setenv("HF_HOME", "/models")
    assert commands(SPLIT)["frontend"].environment["HF_HOME"] == "/models"
