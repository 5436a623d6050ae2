"""The real Dynamo: comes up, answers, is measured, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from pytest_dynamo_bench import (
    Benchmark,
    Configuration,
    Goodput,
    Hardware,
    KvOffload,
    MooncakeTrace,
    Size,
    SpeculativeDecoding,
    Worker,
)
from pytest_dynamo_bench.benchmark import traffic_for
from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.reports.features import features_at_work
from pytest_dynamo_bench.targets.base import PlannedRun
from pytest_dynamo_bench.targets.local import target as local_target
from pytest_dynamo_bench.targets.local.target import LocalOptions, LocalTarget
from pytest_dynamo_bench.traffic import Traffic
from pytest_dynamo_bench.traffic.model import Concurrency, FixedSchedule, TrafficRequest
from pytest_dynamo_bench.verdicts.regression import mismatches
from tests import dynamo_parsers

pytest.importorskip("dynamo.mocker", reason="needs ai-dynamo")
pytestmark = [pytest.mark.slow, pytest.mark.alone]

AGG = Configuration("agg", "baseline", [Worker(4, tp=2, kv_blocks=4000)])
AGG_KV = AGG.but(name="agg-kv", role="treatment", router="kv")
SPLIT_KV = AGG_KV.but(
    name="split-kv",
    workers=[
        Worker(2, mode="prefill", tp=2, kv_blocks=4000),
        Worker(2, mode="decode", tp=2, kv_blocks=4000, prefix_caching=False),
    ],
)
BENCHMARK = Benchmark(
    name="example", question="?", model="Qwen/Qwen3-32B",
    hardware=Hardware("H200", 8, kv_transfer_gb_per_second=100),
    traffic=MooncakeTrace("conversation"), goodput=Goodput(time_to_first_token_ms=2000),
    configurations=[AGG, AGG_KV, SPLIT_KV], claims=[],
)  # fmt: skip


def conversation(count=12, tokens=2048, spacing_ms=150.0):
    """Two conversations, each coming back with the same prompt."""
    blocks = tokens // 512
    return Traffic(
        [
            TrafficRequest(f"{i:03d}", f"{i:03d}", 0, spacing_ms * i, 0.0, tokens + 100, 12,
                           (*range(1000 * (i % 2), 1000 * (i % 2) + blocks), 10_000 + i))
            for i in range(count)
        ],
        FixedSchedule(), 512, ("two conversations",),
    )  # fmt: skip


class Watch:
    """A progress that looks around, and can interfere, while requests are under way."""

    def __init__(self, interfere=lambda: None):
        self.interfere = interfere
        self.stages = []
        self.listening = set()
        self.processes = []

    def stage(self, name):
        self.stages.append(name)

    def requests(self, done, failed, total):
        if done == 2:
            self.processes = dynamo_processes()
            for process in self.processes:
                with contextlib.suppress(psutil.Error):
                    for connection in process.net_connections("inet"):
                        if connection.status == psutil.CONN_LISTEN:
                            self.listening.add(connection.laddr.ip)
            self.interfere()


def dynamo_processes():
    """All processes below this one, the supervisor's among them."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if not _lives_as_long_as_this_one(child)]


def _lives_as_long_as_this_one(process):
    """What other tests have started: trackers of multiprocessing, and Dynamo's parsers."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return any("multiprocessing" in word or word == dynamo_parsers.__file__ for word in words)
    return False


def nothing_left(before):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not dynamo_processes() and scratch_directories() == before:
            return True
        time.sleep(0.05)
    return False


def scratch_directories():
    import tempfile

    return set(Path(tempfile.gettempdir()).glob("dynamo-bench-*"))


def measure(configuration, tmp_path, traffic=None, watch=None, options=None):
    target = LocalTarget(options or LocalOptions())
    return target.measure(
        PlannedRun(BENCHMARK, configuration, traffic or conversation(), tmp_path), watch or Watch()
    )


@pytest.mark.parametrize("configuration", [AGG, AGG_KV, SPLIT_KV], ids=lambda item: item.name)
def test_a_configuration_is_measured_and_nothing_is_left(configuration, tmp_path):
    before, watch = scratch_directories(), Watch()
    run = measure(configuration, tmp_path, watch=watch)
    assert run.problems == []
    assert [record.error for record in run.records] == [None] * 12
    for record in run.records:
        assert record.prompt_tokens == record.input_tokens == 2148
        assert record.completion_tokens == record.output_tokens == 12
        assert len(record.chunk_ms) == 12
        assert record.prefill_worker
        assert record.decode_worker
    workers = {record.prefill_worker for record in run.records}
    decoders = {record.decode_worker for record in run.records}
    assert (workers == decoders) is (not configuration.disaggregated) or len(workers) == 1
    assert run.observed["workers"] == 4
    first, ready, *others = watch.stages
    assert [first, *others] == ["starting", "warming", "measuring", "stopping"]
    assert ready.startswith("ready after ")
    assert watch.listening <= {"127.0.0.1", "::1"}, "a port is open to other machines"
    assert nothing_left(before)
    assert (tmp_path / "logs" / "frontend.log").exists()
    # What the regression gate tells configurations apart by: it ignores command lines.
    elsewhere = dataclasses.replace(run, observed={**run.observed, "machine": "another"})
    assert [text.split(":")[0] for text in mismatches(elsewhere, run)] == ["observed.machine"]
    assert f"{psutil.cpu_count()} cores" in run.observed["machine"]
    for worker in configuration.workers:
        engines = run.deployed["engines"]
        half = {**engines[worker.mode], "kv_blocks": (worker.kv_blocks or 2) // 2}
        other = dataclasses.replace(
            run, deployed={**run.deployed, "engines": {**engines, worker.mode: half}}
        )
        (found,) = mismatches(other, run)
        assert found.startswith(f"deployed.engines.{worker.mode}.kv_blocks: ")


def test_cached_tokens_agree_with_the_engines_and_with_the_router(tmp_path):
    run = measure(AGG_KV, tmp_path)
    hits = Metrics(run).kv_hit_rate
    prompt_tokens = sum(record.input_tokens for record in run.records)
    computed = 1 - run.observed["engine_prefill_tokens"] / prompt_tokens
    expected = sum((r.router_hit_rate or 0) * r.input_tokens for r in run.records) / prompt_tokens
    assert hits > 0.5
    assert hits == pytest.approx(computed, abs=0.02)
    assert hits == pytest.approx(expected, abs=0.05)


def test_round_robin_finds_less_in_the_cache_than_kv_routing(tmp_path):
    traffic = conversation(count=8)
    round_robin = Metrics(measure(AGG, tmp_path / "a", traffic)).kv_hit_rate
    kv = Metrics(measure(AGG_KV, tmp_path / "b", traffic)).kv_hit_rate
    assert kv > round_robin + 0.2


def test_a_host_tier_finds_what_the_gpu_had_to_give_up(tmp_path):
    """Two prompts of 33 blocks in turn, on a GPU that holds 50: each evicts the other."""
    small = AGG_KV.but(name="small", workers=[Worker(1, tp=2, kv_blocks=50)])
    # 64 tokens of Qwen3-32B are 16 MiB, so that 2 GiB are 128 blocks.
    offload = small.but(
        name="offload",
        workers=[Worker(1, tp=2, kv_blocks=50, kv_offload=KvOffload(host_gib=2))],
    )
    traffic = dataclasses.replace(conversation(count=8), schedule=Concurrency(1))
    without = Metrics(measure(small, tmp_path / "a", traffic))
    run = measure(offload, tmp_path / "b", traffic)
    assert without.kv_hit_rate < 0.5 and without.run.observed["evicted_blocks"] > 100
    assert run.observed["evicted_blocks"] == 0
    assert Metrics(run).kv_hit_rate > 0.6
    assert Metrics(run).host_hit_rate > 0.3
    (work,) = [
        w for w in features_at_work(BENCHMARK, offload, Metrics(run)) if w.feature == "kv_offload"
    ]
    assert "came from host memory" in str(work) and "(modelled: " in str(work)


def test_drafts_ranks_and_the_split_are_seen_at_work(tmp_path):
    kimi = Benchmark(
        name="kimi", question="?", model="nvidia/Kimi-K2.5-NVFP4", engine="trtllm",
        hardware=Hardware("GB200", 24, kv_transfer_gb_per_second=900),
        traffic=MooncakeTrace("conversation"), configurations=[AGG], claims=[],
        sizes={"standard": Size(fast_forward=4)},
    )  # fmt: skip
    drafts = SpeculativeDecoding(3, (1.0, 1.0, 0.0))
    split = SPLIT_KV.but(
        name="split",
        workers=[
            Worker(1, mode="prefill", attention_dp=4, moe_ep=4, speculative=drafts),
            Worker(1, mode="decode", tp=4, moe_ep=4, speculative=drafts),
        ],
    )
    traffic = dataclasses.replace(
        conversation(count=12),
        requests=[dataclasses.replace(r, output_tokens=300) for r in conversation(12).requests],
    )
    run = LocalTarget().measure(PlannedRun(kimi, split, traffic, tmp_path), Watch())
    metrics = Metrics(run)
    assert [record.error for record in run.records] == [None] * 12
    exact = sum(r.completion_tokens for r in run.records) / run.observed["engine_decode_steps"]
    assert exact == pytest.approx(3, rel=0.05)
    # Tokens that arrive late on a busy machine hide a few steps.
    assert metrics.tokens_per_step == pytest.approx(exact, rel=0.2)
    assert metrics.split_share == 1 and metrics.kv_transfer_time.mean > 0
    assert {record.prefill_rank for record in run.records} <= {0, 1, 2, 3}
    seen = {item.feature: str(item) for item in features_at_work(kimi, split, metrics)}
    assert set(seen) == {"kv_routing", "pd_split", "spec_decode", "attention_dp"}
    assert "of 4 prefill ranks served requests" in seen["attention_dp"]


def test_session_affinity_keeps_every_turn_on_the_worker_of_the_first(tmp_path):
    """No two sessions and no two turns share a prompt, so that nothing else draws them there."""
    turns = [
        TrafficRequest(f"{session}{turn}", f"session {session}", turn, 40.0 * session, 0.0, 1000, 4,
                       (100 * session + 10 * turn, 100 * session + 10 * turn + 1))
        for turn in range(4) for session in range(3)
    ]  # fmt: skip
    traffic = Traffic(turns, FixedSchedule(), 512, ("three sessions",))
    found = {}
    for router in ("round-robin", "kv"):
        for options in ({}, {"router-session-affinity-ttl-secs": 60}):
            name = f"{router}-{len(options)}"
            configuration = AGG.but(name=name, router=router, frontend_args=options)
            sent = traffic_for(traffic, configuration)
            run = measure(configuration, tmp_path / name, sent)
            assert all(record.succeeded for record in run.records) and not run.problems
            found[name] = Metrics(run).same_worker_share
    assert found["round-robin-1"] == found["kv-1"] == 1, found
    assert found["round-robin-0"] < 1, found


def test_a_closed_loop_works_too(tmp_path):
    traffic = dataclasses.replace(conversation(count=6), schedule=Concurrency(2))
    run = measure(AGG, tmp_path, traffic)
    assert all(record.succeeded for record in run.records)


def test_a_worker_killed_in_the_middle_is_a_problem_of_the_run(tmp_path):
    def kill():
        (mocker,) = [p for p in dynamo_processes() if "dynamo.mocker" in p.cmdline()]
        os.kill(mocker.pid, signal.SIGKILL)

    before = scratch_directories()
    run = measure(AGG, tmp_path, watch=Watch(kill))
    (problem,) = run.problems
    assert "aggregated ended by signal SIGKILL" in problem
    assert "of 12 requests had ended by then" in problem
    assert any(record.succeeded for record in run.records), "what was measured is lost"
    assert nothing_left(before)


def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path):
    before = scratch_directories()
    watch = Watch(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        measure(AGG, tmp_path, watch=watch)
    assert watch.processes, "nothing was running when it was interrupted"
    assert nothing_left(before)


def test_a_port_that_is_taken_in_between_is_tried_again_with_another(tmp_path, monkeypatch):
    choose = local_target._choose_ports
    taken = socket.socket()
    attempts = []

    def choose_and_lose(frontend_port):
        ports = choose(frontend_port)
        if not attempts:
            taken.bind(("127.0.0.1", ports.frontend))
            taken.listen()
        attempts.append(ports)
        return ports

    monkeypatch.setattr(local_target, "_choose_ports", choose_and_lose)
    with taken:
        run = measure(AGG, tmp_path, conversation(count=3))
    assert len(attempts) == 2
    assert all(record.succeeded for record in run.records)


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = LocalOptions(frontend_port=taken.getsockname()[1])
        with pytest.raises(TargetError, match=r"port \d+ on 127.0.0.1 is in use"):
            LocalTarget(options).check(BENCHMARK)
        before = scratch_directories()
        with pytest.raises(DeploymentError, match="frontend ended"):
            measure(AGG, tmp_path, options=options)
        assert nothing_left(before)


def test_somebody_elses_server_on_the_port_is_not_taken_for_ours(tmp_path, monkeypatch):
    """A frontend that lists another model is not ready, however long one waits."""
    import http.server

    class Impostor(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = b'{"data": [{"id": "another-model"}], "instances": [{"endpoint": "generate"}]}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Impostor)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        options = LocalOptions(frontend_port=server.server_address[1])
        with pytest.raises(DeploymentError, match="frontend ended"):
            measure(AGG, tmp_path, options=options)
    finally:
        server.shutdown()
        server.server_close()


def test_a_configuration_that_is_not_ready_in_time_says_what_it_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(local_target, "_READY_SECONDS", 0.5)
    before = scratch_directories()
    with pytest.raises(DeploymentError, match="the frontend listed 0 of 4 workers") as caught:
        measure(AGG, tmp_path)
    assert "frontend.log ends:" in str(caught.value)
    assert nothing_left(before)
