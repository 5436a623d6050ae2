"""Simulated and real time agree: the same cut, the same profile, through replay and local."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_dynamo_bench import Benchmark, Configuration, Goodput, Hardware, MooncakeTrace, Worker
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.targets.base import PlannedRun
from pytest_dynamo_bench.targets.local.target import LocalOptions, LocalTarget
from pytest_dynamo_bench.targets.replay.target import ReplayTarget
from pytest_dynamo_bench.traffic import FixedSchedule, Traffic, TrafficRequest

pytest.importorskip("dynamo.mocker", reason="needs ai-dynamo")
pytestmark = [pytest.mark.slow, pytest.mark.alone]

AGG = Configuration("agg", "baseline", [Worker(8, tp=2, kv_blocks=11_328)])
KV = AGG.but(name="kv", role="treatment", router="kv")
BENCHMARK = Benchmark(
    name="agreement", question="?", model="Qwen/Qwen3-32B",
    hardware=Hardware("H200", 16, kv_transfer_gb_per_second=100),
    traffic=MooncakeTrace("conversation"), goodput=Goodput(time_to_first_token_ms=2000),
    configurations=[AGG, KV], claims=[],
)  # fmt: skip


class Silent:
    def stage(self, name):
        pass

    def requests(self, done, failed, total):
        pass


@pytest.mark.parametrize("configuration", [AGG, KV], ids=lambda item: item.name)
def test_local_and_replay_agree_on_the_same_cut(configuration, tmp_path):
    local = LocalTarget(LocalOptions(seconds=12))
    # The mockers read Dynamo's own table, so the replay has to as well.
    replay = ReplayTarget(prefix_pricing="none")
    traffic = local.traffic(BENCHMARK)
    real, simulated = (
        Metrics(
            target.measure(
                PlannedRun(BENCHMARK, configuration, traffic, tmp_path / target.name), Silent()
            )
        )
        for target in (local, replay)
    )
    assert not real.run.simulated
    assert simulated.run.simulated
    records = {record.request_id: record for record in simulated.run.records}
    overhead_ms = sorted(
        (record.first_token_ms - record.sent_ms)
        - (records[record.request_id].first_token_ms - records[record.request_id].sent_ms)
        for record in real.run.records
    )
    # Measured on 2 cores: 8 to 12 ms for HTTP, tokenization and routing of a 12,000-token
    # prompt; a machine that does other things as well takes longer.
    assert -5 < overhead_ms[len(overhead_ms) // 2] < 60
    assert real.inter_token_latency.p50 == pytest.approx(simulated.inter_token_latency.p50, rel=0.1)
    assert real.time_to_first_token.mean == pytest.approx(
        simulated.time_to_first_token.mean, rel=0.15
    )
    assert real.kv_hit_rate == pytest.approx(simulated.kv_hit_rate, abs=0.06)


def test_without_the_same_table_they_would_not_agree(tmp_path):
    """The check above has teeth: the priced table takes visibly longer."""
    traffic = LocalTarget(LocalOptions(seconds=12)).traffic(BENCHMARK)
    plain, priced = (
        Metrics(
            dataclasses.replace(ReplayTarget(), prefix_pricing=pricing).measure(
                PlannedRun(BENCHMARK, AGG, traffic, tmp_path / pricing), Silent()
            )
        )
        for pricing in ("none", "traffic")
    )
    assert priced.time_to_first_token.mean > 1.15 * plain.time_to_first_token.mean


def test_prompts_that_wait_for_a_prefill_worker_get_their_tokens_one_by_one(tmp_path):
    """Dynamo's replay, left to itself, hands over all of them when the last one is done."""
    split = Configuration(
        "split", "baseline",
        [
            Worker(1, mode="prefill", tp=2, kv_blocks=11_328),
            Worker(1, mode="decode", tp=2, kv_blocks=11_328, prefix_caching=False),
        ],
    )  # fmt: skip
    benchmark = dataclasses.replace(BENCHMARK, configurations=[split])
    # A prompt takes about 475 ms to prefill, so that each waits 25 ms longer than the one before.
    traffic = Traffic(
        [
            TrafficRequest(f"{i}", f"{i}", 0, 450.0 * i, 0.0, 8192, 20,
                           tuple(range(1000 * i, 1000 * i + 16)))
            for i in range(10)
        ],
        FixedSchedule(), 512, ("ten prompts",),
    )  # fmt: skip
    for target in (LocalTarget(), ReplayTarget(prefix_pricing="none")):
        run = target.measure(
            PlannedRun(benchmark, split, traffic, tmp_path / target.name), Silent()
        )
        records = sorted(run.records, key=lambda record: record.scheduled_ms)
        waits = [record.first_token_ms - record.sent_ms for record in records]
        assert waits == pytest.approx([507 + 25 * i for i in range(10)], rel=0.15), target.name
