"""The replay target against Dynamo's real replay, on traffic that takes a second."""

import dataclasses
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from replay_bench import AGGREGATED, SPLIT, Silent, make_benchmark, make_traffic

from pytest_dynamo_bench import (
    Claim,
    Concurrency,
    Configuration,
    KvOffload,
    SpeculativeDecoding,
    SyntheticTraffic,
    Worker,
)
from pytest_dynamo_bench.dynamo import environment
from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.targets.base import PlannedRun
from pytest_dynamo_bench.targets.replay import child as replay_child
from pytest_dynamo_bench.targets.replay.results import matched, to_records, write_trace
from pytest_dynamo_bench.targets.replay.target import ReplayTarget
from pytest_dynamo_bench.verdicts.regression import mismatches
from tests.simulations import simulating

pytest.importorskip("dynamo.replay")


@pytest.fixture
def progress():
    return Silent()


KV = AGGREGATED.but(name="agg-kv", role="treatment", router="kv")


def measure(configuration, traffic, directory, progress, target=None, **changes):
    benchmark = make_benchmark(configuration, **changes)
    return (target or ReplayTarget()).measure(
        PlannedRun(benchmark, configuration, traffic, directory), progress
    )


DECODE_FIRST = SPLIT.but(workers=SPLIT.workers[::-1])


@pytest.mark.parametrize(
    "configuration", [AGGREGATED, KV, SPLIT, SPLIT.but(router="kv"), DECODE_FIRST]
)
def test_every_request_has_a_record(configuration, tmp_path, progress):
    traffic = make_traffic()
    run = measure(configuration, traffic, tmp_path, progress)
    assert run.simulated and run.problems == () and run.gpus == 8
    assert progress.seen == (200, 0, 200)
    for record, request in zip(run.records, traffic.requests, strict=True):
        assert record.succeeded and record.request_id == request.request_id
        assert record.sent_ms == record.scheduled_ms == pytest.approx(request.timestamp_ms)
        assert record.prompt_tokens == request.input_tokens
        assert record.completion_tokens == request.output_tokens
        assert record.sent_ms < record.chunk_ms[0] <= record.chunk_ms[-1] <= record.end_ms
        assert 0 <= record.cached_tokens < request.input_tokens
        sides = ("prefill-", "decode-") if configuration.disaggregated else ("aggregated-",) * 2
        assert record.prefill_worker.startswith(sides[0])
        assert record.decode_worker.startswith(sides[1])


def test_metrics_agree_with_the_replays_own_report(tmp_path, progress):
    run = measure(AGGREGATED, make_traffic(turns=2), tmp_path, progress)
    metrics, report = Metrics(run), run.observed["report"]
    assert metrics.time_to_first_token.mean == pytest.approx(report["mean_ttft_ms"])
    assert metrics.time_to_first_token.max == pytest.approx(report["max_ttft_ms"])
    assert metrics.kv_hit_rate == pytest.approx(report["prefix_cache_reused_ratio"])
    assert metrics.request_throughput == pytest.approx(report["request_throughput_rps"])


@pytest.mark.parametrize("configuration", [AGGREGATED, KV, SPLIT.but(router="kv")])
def test_the_same_run_twice_gives_identical_records(configuration, tmp_path, progress):
    first = measure(configuration, make_traffic(), tmp_path / "a", progress)
    second = measure(configuration, make_traffic(), tmp_path / "b", progress)
    assert first.records == second.records


def test_another_seed_breaks_ties_otherwise(tmp_path, progress):
    runs = [
        measure(KV, make_traffic(), tmp_path / str(seed), progress, ReplayTarget(seed=seed))
        for seed in (0, 1)
    ]
    assert runs[0].records != runs[1].records


def test_routing_by_cache_raises_the_hit_rate(tmp_path, progress):
    hit_rate = {
        configuration.name: Metrics(
            measure(configuration, make_traffic(), tmp_path / configuration.name, progress)
        ).kv_hit_rate
        for configuration in (AGGREGATED, KV)
    }
    assert hit_rate["agg-kv"] > hit_rate["agg"] + 0.02


def test_moving_the_kv_cache_takes_time(tmp_path, progress):
    latency = {
        bandwidth: Metrics(
            measure(SPLIT, make_traffic(), tmp_path / str(bandwidth), progress, bandwidth=bandwidth)
        ).request_latency.mean
        for bandwidth in (1.0, 25.0, None)
    }
    # A mean prompt of about 4,900 tokens of 256 KiB takes 1.3 s at 1 GB/s.
    assert latency[1.0] > latency[25.0] + 1000 > latency[None] + 1000


def test_no_prefix_caching_means_no_reuse(tmp_path, progress):
    worker = dataclasses.replace(AGGREGATED.workers[0], prefix_caching=False)
    run = measure(AGGREGATED.but(workers=[worker]), make_traffic(), tmp_path, progress)
    assert sum(record.cached_tokens for record in run.records) == 0


def test_fewer_blocks_mean_less_reuse(tmp_path, progress):
    worker = dataclasses.replace(AGGREGATED.workers[0], kv_blocks=300)
    small = measure(AGGREGATED.but(workers=[worker]), make_traffic(), tmp_path / "s", progress)
    large = measure(AGGREGATED, make_traffic(), tmp_path / "l", progress)
    assert Metrics(small).kv_hit_rate < Metrics(large).kv_hit_rate


def test_a_later_turn_waits_for_the_one_before(tmp_path, progress):
    traffic = make_traffic(60, turns=3)
    run = measure(AGGREGATED, traffic, tmp_path, progress)
    by_turn = {(record.session_id, record.turn): record for record in run.records}
    for (session, turn), record in by_turn.items():
        assert record.succeeded
        if turn:
            assert record.sent_ms == pytest.approx(by_turn[session, turn - 1].end_ms + 500)
            assert record.cached_tokens > 0 or record.prefill_worker


@pytest.mark.parametrize("schedule", [None, Concurrency(3)])
@pytest.mark.parametrize("turns", [1, 2])
def test_one_worker(schedule, turns, tmp_path, progress):
    """Dynamo's results don't name sessions then."""
    one = AGGREGATED.but(workers=[Worker(1, tp=2, kv_blocks=9000)], router="kv")
    traffic = make_traffic(40, turns=turns, schedule=schedule)
    run = measure(one, traffic, tmp_path, progress)
    for record, request in zip(run.records, traffic.requests, strict=True):
        assert record.succeeded and record.prompt_tokens == request.input_tokens
        assert record.decode_worker == "aggregated-0"
        if schedule is None and turns == 1:
            assert record.sent_ms == pytest.approx(request.timestamp_ms)


def test_requests_of_equal_length_on_one_worker(tmp_path, progress):
    one = AGGREGATED.but(workers=[Worker(1, tp=2, kv_blocks=9000)])
    alike = [
        dataclasses.replace(r, input_tokens=3000, output_tokens=9, hash_ids=r.hash_ids[:6])
        for r in make_traffic(30).requests
    ]
    traffic = dataclasses.replace(make_traffic(30), requests=alike, schedule=Concurrency(4))
    run = measure(one, traffic, tmp_path, progress)
    assert len({(r.sent_ms, r.chunk_ms) for r in run.records}) > 5
    assert [r.sent_ms for r in run.records] == sorted(r.sent_ms for r in run.records)


def test_concurrency_limits_requests_in_flight(tmp_path, progress):
    traffic = make_traffic(60, schedule=Concurrency(3))
    run = measure(AGGREGATED, traffic, tmp_path, progress)
    for record in run.records:
        in_flight = sum(
            other.sent_ms <= record.sent_ms < other.end_ms - 1e-6 for other in run.records
        )
        assert in_flight <= 3


def test_speculative_decoding_is_faster_by_the_accepted_tokens(tmp_path, progress):
    model = {"model": "nvidia/Kimi-K2.5-NVFP4", "engine": "trtllm"}
    benchmark = make_benchmark()
    hardware = dataclasses.replace(benchmark.hardware, gpu="GB200", count=24)
    plain = Configuration("tep8", "baseline", [Worker(3, tp=8, moe_ep=8, kv_blocks=20000)])
    speculative = SpeculativeDecoding(3, (0.8, 0.6, 0.4))
    drafting = plain.but(workers=[dataclasses.replace(plain.workers[0], speculative=speculative)])
    latency = {
        name: Metrics(
            measure(
                configuration, make_traffic(), tmp_path / name, progress, hardware=hardware, **model
            )
        ).inter_token_latency.mean
        for name, configuration in (("plain", plain), ("drafting", drafting))
    }
    # 2.47 tokens a step, but a step that checks four tokens takes longer.
    assert 1.2 < latency["plain"] / latency["drafting"] < 2.6


DEEPSEEK = {"model": "nvidia/DeepSeek-V3.2-NVFP4", "engine": "trtllm"}
DEP8 = Configuration("dep8", "baseline", [Worker(2, attention_dp=8, moe_ep=8)])
DEP8_SPLIT = Configuration(
    "dep8-split",
    "treatment",
    [
        Worker(1, mode="prefill", attention_dp=8, moe_ep=8),
        Worker(1, mode="decode", attention_dp=8, moe_ep=8, wideep=True, prefix_caching=False),
    ],
    router="kv",
)


def test_a_run_of_another_directory_can_be_compared_with(tmp_path, progress):
    def run(configuration, name):
        target = ReplayTarget(prefix_pricing="measured")
        return measure(configuration, make_traffic(60), tmp_path / name, progress, target)

    runs = [run(AGGREGATED, name) for name in ("a", "b")]
    assert list(tmp_path.glob("*/*-with-prefix-priced.npz")), "the profile must be one of the run"
    assert mismatches(*runs) == ()
    arguments = runs[0].deployed["engine_arguments"]["extra_engine_args"]
    assert re.fullmatch(
        r"Qwen3-32B--H200-vllm-tp2, sha256 [0-9a-f]{16}", arguments["planner_profile_data"]
    )
    half = AGGREGATED.but(workers=[dataclasses.replace(AGGREGATED.workers[0], kv_blocks=2000)])
    assert ["num_gpu_blocks" in found for found in mismatches(run(half, "c"), runs[0])] == [True]


def test_ranks_of_attention_data_parallelism(tmp_path, progress):
    hardware = dataclasses.replace(make_benchmark().hardware, gpu="GB200", count=16)
    run = measure(DEP8, make_traffic(60), tmp_path, progress, hardware=hardware, **DEEPSEEK)
    assert run.gpus == 16 and all(record.succeeded for record in run.records)
    arguments = run.deployed["engine_arguments"]["extra_engine_args"]
    assert (arguments["dp_size"], arguments["engine_type"]) == (8, "trtllm")


def test_a_comparison_with_a_split_simulates_ranks_as_workers_everywhere(tmp_path, progress):
    hardware = dataclasses.replace(make_benchmark().hardware, gpu="GB200", count=16)
    benchmark = make_benchmark(DEP8, DEP8_SPLIT, hardware=hardware, **DEEPSEEK)
    target = ReplayTarget()
    for configuration in benchmark.configurations:
        directory = tmp_path / configuration.name
        run = target.measure(
            PlannedRun(benchmark, configuration, make_traffic(60), directory), progress
        )
        assert all(record.succeeded for record in run.records)
        assert sum(run.deployed["workers"].values()) == 16
        for arguments in run.deployed["engine_arguments"].values():
            assert "dp_size" not in arguments and arguments["engine_type"] == "vllm"
        caveats = {caveat["id"] for caveat in run.observed["caveats"]}
        assert {"ranks-as-workers", "wideep-by-table"} <= caveats
        text = "\n".join(target.limitations(benchmark, configuration))
        assert "no prefill/decode split for TensorRT-LLM" in text


def test_a_claim_that_assumes_a_simplification_is_made_only_where_a_simulation_has_it():
    hardware = dataclasses.replace(make_benchmark().hardware, gpu="GB200", count=16)
    claim = Claim.lower("lower", "ttft.mean", DEP8_SPLIT, DEP8, replay=(0.1, "?"), local=(0.1, "?"))
    assumed, other = claim.assuming("ranks-as-workers"), claim.assuming("ranks-in-step")
    benchmark = make_benchmark(DEP8, DEP8_SPLIT, hardware=hardware, claims=(assumed,), **DEEPSEEK)
    assert assumed != claim and assumed.statement("replay") == claim.statement("replay")
    assert ReplayTarget().why_not_assumed(benchmark, assumed) == ""
    why = ReplayTarget().why_not_assumed(benchmark, other)
    assert "'ranks-in-step'" in why and "Dynamo 1.4.2" in why
    # What cannot be simulated is told by the check, which names the reason.
    nowhere = benchmark.with_dynamo([("", "9.9.9")])
    assert ReplayTarget().why_not_assumed(nowhere, other) == ""
    with pytest.raises(TargetError, match=r"9\.9\.9"):
        ReplayTarget().check(nowhere)


def test_the_published_build_of_dynamo_has_no_kv_offload():
    """Why a configuration's KV offload is a limitation; if this fails, simulate it."""
    from dynamo import _core

    assert _core.MOCKER_KVBM_OFFLOAD_ENABLED is False


def test_limitations_name_what_is_not_expressed():
    configuration = SPLIT.but(
        router="kv",
        nodes=2,
        workers=[
            Worker(2, tp=2, mode="prefill", kv_offload=KvOffload(100)),
            Worker(1, tp=2, mode="decode"),
        ],
    )
    benchmark = make_benchmark(configuration, bandwidth=None)
    text = "\n".join(ReplayTarget().limitations(benchmark, configuration))
    for part in (
        "KV blocks of the prefill workers are computed",
        "max_num_seqs of the decode workers is the replay's default",
        "2 nodes is simulated by the bandwidth",
        "has no KV offload for the prefill workers",
        "KV transfers take no time",
        "is a mean over this traffic",
        "Qwen3-32B--H200-vllm-tp2",
        "at random",
    ):
        assert part in text, part


def test_the_routers_options_change_what_is_simulated(tmp_path, progress):
    """A router without credit for overlap finds less in the caches."""
    found = {}
    for credit in (1, 0):
        configuration = KV.but(
            name=f"credit-{credit}", frontend_args={"router-kv-overlap-score-credit": credit}
        )
        run = measure(configuration, make_traffic(), tmp_path / configuration.name, progress)
        assert run.deployed["router_config"] == {"overlap_score_credit": float(credit)}
        found[credit] = sum(record.cached_tokens for record in run.records)
    assert found[0] < found[1]


def test_caveats_attach_where_they_apply():
    target = ReplayTarget()

    def ids(configuration, **changes):
        benchmark = make_benchmark(configuration, **changes)
        return {caveat.id for caveat in target.caveats(benchmark, configuration)}

    assert "kv-transfer-unshared" in ids(SPLIT) and "kv-transfer-unshared" not in ids(AGGREGATED)
    assert "kv-transfer-free" in ids(SPLIT, bandwidth=None)
    assert "seeded-ties" in ids(KV) and "seeded-ties" not in ids(AGGREGATED)
    assert {"model-estimate", "prefix-priced-on-average", "data-source"} <= ids(AGGREGATED)


def test_configurations_that_cannot_be_simulated_are_usage_errors():
    target = ReplayTarget()
    with pytest.raises(TargetError, match="'random' cannot be simulated"):
        target.check(make_benchmark(AGGREGATED.but(router="random")))
    with pytest.raises(TargetError, match=r"engines\.make --model Qwen/Qwen3-32B.*--tp 8"):
        target.check(make_benchmark(AGGREGATED.but(workers=[Worker(2, tp=8)])))


def test_without_dynamo_the_error_says_what_to_install(monkeypatch):
    nothing = environment._Described("", {})
    monkeypatch.setattr(environment, "_described", lambda python: nothing)
    with pytest.raises(TargetError, match=r"pip install 'pytest-dynamo-bench\[local\]'"):
        ReplayTarget().check(make_benchmark())


def test_times_between_the_first_and_the_last_token_are_not_made_up(tmp_path, progress):
    run = measure(AGGREGATED, make_traffic(20), tmp_path, progress)
    assert len(Metrics(run).sample("inter_chunk_latency.mean").values) == 0


def test_a_failed_simulation_shows_the_logs_end(tmp_path, progress):
    worker = dataclasses.replace(AGGREGATED.workers[0], kv_blocks=10)
    traffic = make_traffic(4)
    broken = [dataclasses.replace(traffic.requests[0], hash_ids=())]
    traffic = dataclasses.replace(traffic, requests=broken)
    with pytest.raises(DeploymentError, match=r"replay\.log") as error:
        measure(AGGREGATED.but(workers=[worker]), traffic, tmp_path, progress)
    assert "positive input_length" in str(error.value)


def test_a_prompt_that_fits_no_worker_is_a_failed_request(tmp_path, progress):
    worker = dataclasses.replace(AGGREGATED.workers[0], kv_blocks=60)
    run = measure(AGGREGATED.but(workers=[worker]), make_traffic(20), tmp_path, progress)
    failed = [record for record in run.records if not record.succeeded]
    assert failed and all("in the simulation the request" in record.error for record in failed)
    assert all(request.input_tokens > 60 * 64 - 64 for request in failed)


def test_a_slow_simulation_is_ended(tmp_path, progress):
    with pytest.raises(DeploymentError, match="took longer than"):
        measure(
            AGGREGATED, make_traffic(2000), tmp_path, progress, ReplayTarget(timeout_seconds=0.05)
        )


def test_nothing_is_left_behind(tmp_path, progress):
    measure(AGGREGATED, make_traffic(10), tmp_path, progress, ReplayTarget(prefix_pricing="none"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replay-job.json", "replay.log"]


def test_much_reuse_is_priced_as_it_was_found(tmp_path, progress):
    traffic = make_traffic(120, turns=12)
    grown = [
        dataclasses.replace(r, input_tokens=r.input_tokens + 40_000,
                            hash_ids=(*range(10_000, 10_079), *r.hash_ids))
        for r in traffic.requests
    ]  # fmt: skip
    grown = [dataclasses.replace(r, input_tokens=len(r.hash_ids) * 512) for r in grown]
    run = measure(KV, dataclasses.replace(traffic, requests=grown), tmp_path, progress)
    priced = run.observed["prefill_pricing"]
    assert priced["simulations"] > 1
    assert priced["charged_share_of_source"] == pytest.approx(1, abs=0.05)


def test_a_tenth_tells_the_price_of_all_before_they_are_simulated(tmp_path, progress):
    traffic = make_traffic(6_000, turns=12)
    grown = [
        dataclasses.replace(r, input_tokens=512 * (len(r.hash_ids) + 79),
                            hash_ids=(*range(10_000, 10_079), *r.hash_ids))
        for r in traffic.requests
    ]  # fmt: skip
    run = measure(KV, dataclasses.replace(traffic, requests=grown), tmp_path, progress)
    priced = run.observed["prefill_pricing"]
    assert priced["simulations"] == 1
    assert priced["pilot_requests"] == len(traffic.requests) // 10
    assert priced["charged_share_of_source"] == pytest.approx(1, abs=0.05)
    assert len(run.records) == len(traffic.requests)


@pytest.mark.parametrize("prefix_pricing", ["none", "traffic", "measured"])
def test_prefill_time_is_charged_as_the_source_says(prefix_pricing, tmp_path, progress):
    long = [
        dataclasses.replace(r, input_tokens=60_000, hash_ids=(*r.hash_ids[:6], *range(k, k + 112)))
        for k, r in zip(range(1000, 100_000, 1000), make_traffic(20).requests, strict=False)
    ]
    traffic = dataclasses.replace(make_traffic(20), requests=long)
    worker = dataclasses.replace(AGGREGATED.workers[0], kv_blocks=11_000)
    target = ReplayTarget(prefix_pricing=prefix_pricing)
    configuration = AGGREGATED.but(workers=[worker])
    run = measure(configuration, traffic, tmp_path, progress, target)
    priced = run.observed["prefill_pricing"]
    share = priced["charged_share_of_source"]
    if prefix_pricing == "none":
        assert share < 0.65 and priced["simulations"] == 1
    else:
        assert share == pytest.approx(1, abs=0.05)
        assert priced["simulations"] == (1 if prefix_pricing == "traffic" else 2)
    caveats = {caveat["id"] for caveat in run.observed["caveats"]}
    assert ("cached-prefix-free" in caveats) == (prefix_pricing == "none")


def test_an_interruption_in_the_midst_of_waiting_is_no_reason_to_hang(
    tmp_path, progress, monkeypatch
):
    """What Ctrl-C leaves of ``Popen.wait`` once in a few hundred times: its lock is taken."""

    def interrupted(process, timeout=None):
        assert timeout is not None, "it would wait for ever"
        process._waitpid_lock.acquire()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(AGGREGATED, make_traffic(20_000), tmp_path, progress)
    assert not simulating()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after_seconds", [0, 0.5])
def test_the_child_dies_with_its_parent(tmp_path, after_seconds):
    trace = tmp_path / "trace.jsonl"
    write_trace(make_traffic(20_000).requests, trace)
    engine = {"block_size": 64, "num_gpu_blocks": 4000}
    job = tmp_path / "job.json"
    arguments = {"trace_files": str(trace), "extra_engine_args": engine, "num_workers": 4}
    job.write_text(
        json.dumps({"arguments": arguments, "seed": 0, "result": str(tmp_path / "result.json")})
    )
    starter = (
        "import os, subprocess, sys, time\n"
        f"command = [sys.executable, {replay_child.__file__!r}, {str(job)!r}, str(os.getpid())]\n"
        "child = subprocess.Popen(command)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True
    ) as parent:
        child = int(parent.stdout.readline())
        time.sleep(after_seconds)
        assert Path(f"/proc/{child}").exists()
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the simulation outlived the process that started it")
    assert not (tmp_path / "result.json").exists()


def test_ids_beyond_32_bits_are_renumbered(tmp_path):
    traffic = make_traffic(5)
    large = [
        dataclasses.replace(r, hash_ids=tuple(2**40 + block for block in r.hash_ids))
        for r in traffic.requests
    ]
    write_trace(large, tmp_path / "large.jsonl")
    lines = (tmp_path / "large.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[: len(large)]]
    assert max(max(row["hash_ids"]) for row in rows) < 1000
    back = {}
    for row, request in zip(rows, traffic.requests, strict=True):
        for new, old in zip(row["hash_ids"], request.hash_ids, strict=True):
            assert back.setdefault(new, old) == old


def test_a_request_without_a_result_is_a_failure():
    traffic = make_traffic(3)
    records = to_records(traffic, matched(traffic.requests, []), disaggregated=False, block_size=64)
    assert [record.error for record in records] == [
        "in the simulation the request never started"
    ] * 3


def test_the_bare_command_is_shown(tmp_path, progress):
    run = measure(SPLIT, make_traffic(10), tmp_path, progress)
    command = run.deployed["command"]
    assert command.startswith("python -m dynamo.replay trace.jsonl")
    assert "--num-prefill-workers 3" in command and "--decode-engine-args '{" in command


def test_time_counts_from_the_start_of_the_traffic(tmp_path, progress):
    traffic = make_traffic(10)
    shifted = dataclasses.replace(
        traffic,
        requests=[
            dataclasses.replace(r, timestamp_ms=r.timestamp_ms + 5000) for r in traffic.requests
        ],
    )
    early = measure(AGGREGATED, traffic, tmp_path / "a", progress)
    late = measure(AGGREGATED, shifted, tmp_path / "b", progress)
    assert [r.sent_ms + 5000 for r in early.records] == [r.sent_ms for r in late.records]


def test_twice_the_load_is_half_the_time(tmp_path, progress):
    run = measure(AGGREGATED, make_traffic(), tmp_path, progress, ReplayTarget(speedup=2))
    assert max(record.sent_ms for record in run.records) == pytest.approx(199 * 300 / 2)


def test_prefill_workers_hand_over_in_order_of_arrival(tmp_path, progress):
    """Ten prompts that overlap on one prefill worker, as the KV cache of each is sent when it is
    ready. Dynamo's replay on its own hands all of them over when the last one is.
    """
    one_and_one = SPLIT.but(
        workers=[dataclasses.replace(worker, replicas=1) for worker in SPLIT.workers]
    )
    ten = SyntheticTraffic(isl=8192, osl=8, requests=10, schedule=Concurrency(10)).load()
    run = measure(one_and_one, ten, tmp_path, progress)
    firsts = sorted(record.first_token_ms for record in run.records)
    gaps = [after - before for before, after in itertools.pairwise(firsts)]
    assert firsts[0] < 2 * gaps[0]
    assert max(gaps) < 1.1 * min(gaps)
    caveats = ReplayTarget().caveats(make_benchmark(one_and_one), one_and_one)
    assert "prefill-one-at-a-time" in {caveat.id for caveat in caveats}


def test_a_configuration_may_have_its_own_concurrency_and_length(tmp_path, progress):
    traffic = SyntheticTraffic(isl=2048, osl=20, requests=60, schedule=Concurrency(4))
    configuration = AGGREGATED.but(concurrency=8, requests=24)
    benchmark = make_benchmark(configuration, traffic=traffic)
    run = ReplayTarget().measure(
        PlannedRun(benchmark, configuration, traffic.load(), tmp_path), progress
    )
    assert [record.request_id for record in run.records][:2] == ["000000@24", "000001@24"]
    assert len(run.records) == 24 and all(record.succeeded for record in run.records)
    assert sum(record.sent_ms == 0 for record in run.records) == 8
    assert run.traffic["schedule"] == "concurrency 8"


def test_a_session_keeps_its_place_while_it_waits_between_turns(tmp_path, progress):
    traffic = make_traffic(requests=60, turns=3, schedule=Concurrency(4))
    run = measure(AGGREGATED, traffic, tmp_path, progress)
    sessions = {}
    for record in run.records:
        start, end = sessions.get(record.session_id, (record.sent_ms, record.end_ms))
        sessions[record.session_id] = min(start, record.sent_ms), max(end, record.end_ms)
    for start, _ in sessions.values():
        assert sum(begin <= start < end for begin, end in sessions.values()) <= 4
