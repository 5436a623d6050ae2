"""The host tier for KV blocks of a Dynamo that has one: hits, and the time of the link."""

from __future__ import annotations

import pytest

from pytest_dynamo_bench import Benchmark, Configuration, Hardware, KvOffload, MooncakeTrace, Worker
from pytest_dynamo_bench.dynamo.abilities import abilities
from pytest_dynamo_bench.dynamo.environment import resolve
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.reports.features import features_at_work
from pytest_dynamo_bench.targets.base import PlannedRun
from pytest_dynamo_bench.targets.local.target import LocalTarget
from pytest_dynamo_bench.targets.replay.target import ReplayTarget
from pytest_dynamo_bench.traffic import Concurrency, FixedSchedule, Traffic, TrafficRequest
from tests.which_dynamo.environments import each_other, skip_unless_there

# Of Qwen3-32B; 64 of them are a block of 16 MiB.
BYTES_PER_TOKEN = 1 << 18


class Silent:
    """Progress that nobody watches."""

    def stage(self, name):
        pass

    def requests(self, done, failed, total):
        pass


def worker(python, host_blocks, gb_per_second, gpu_blocks):
    offload = host_blocks and KvOffload(host_blocks / 64, gb_per_second, gb_per_second)
    return Configuration(
        "offload", "baseline", [Worker(1, tp=2, kv_blocks=gpu_blocks, kv_offload=offload or None)],
        dynamo=python,
    )  # fmt: skip


def measured(target, configuration, traffic, directory):
    benchmark = Benchmark(
        name="offload", question="?", model="Qwen/Qwen3-32B", hardware=Hardware("H200", 2),
        traffic=MooncakeTrace("conversation"), configurations=[configuration], claims=[],
    )  # fmt: skip
    run = target.measure(PlannedRun(benchmark, configuration, traffic, directory), Silent())
    assert not run.problems and all(record.succeeded for record in run.records)
    (work,) = [
        item
        for item in features_at_work(benchmark, configuration, Metrics(run))
        if item.feature == "kv_offload"
    ] or [None]
    return run, work, target.limitations(benchmark, configuration)


def conversations(sessions, turns, step_tokens):
    """Sessions in turn, each with a prompt that grows: 2, 3, 4 … times ``step_tokens``."""
    blocks = step_tokens // 512
    return Traffic(
        tuple(
            TrafficRequest(
                f"s{session}-{turn}", f"s{session}", turn, 2000.0 * session, 20_000.0 * (turn > 0),
                (turn + 2) * step_tokens, 12,
                tuple(range(1000 * session, 1000 * session + (turn + 2) * blocks)),
            )
            for session in range(sessions)
            for turn in range(turns)
        ),
        FixedSchedule(), 512, ("conversations",),
    )  # fmt: skip


def having_a_host_tier(python):
    skip_unless_there(python)
    if "vllm" not in abilities(resolve(python)).host_offload:
        pytest.skip("this release has no host tier")
    return python


@each_other
def test_replay_finds_in_host_memory_what_the_gpu_gave_up_and_pays_for_the_link(python, tmp_path):
    python = having_a_host_tier(python)
    traffic = conversations(sessions=12, turns=4, step_tokens=2048)

    def replayed(host_blocks, gb_per_second=None):
        configuration = worker(python, host_blocks, gb_per_second, gpu_blocks=1000)
        place = tmp_path / f"{host_blocks}-{gb_per_second}"
        return measured(ReplayTarget(), configuration, traffic, place)

    run, work, _ = replayed(0)
    without = Metrics(run)
    assert work is None and {record.host_tokens for record in run.records} == {None}
    found = {}
    for gb_per_second in (None, 50, 5, 1):
        run, work, limitations = replayed(4000, gb_per_second)
        found[gb_per_second] = metrics = Metrics(run)
        # Two, three and four of two to five steps of each session.
        assert metrics.kv_hit_rate == pytest.approx(9 / 14, abs=0.01)
        assert 0.3 < metrics.host_hit_rate <= metrics.kv_hit_rate
        speed = f"{gb_per_second} GB/s" if gb_per_second else "no time"
        assert f"{speed} to the GPU and {speed} to the host" in str(work)
        text = "\n".join(limitations)
        assert ("KV blocks between GPU and host memory takes no time" in text) is (
            not gb_per_second
        )
        assert "has no KV offload" not in text
    assert without.kv_hit_rate < 0.2
    ttft = {name: metrics.time_to_first_token.mean for name, metrics in found.items()}
    assert ttft[None] < ttft[50] < ttft[5] < ttft[1]
    assert ttft[None] < without.time_to_first_token.mean < ttft[1]
    # What a link of 50 GB/s is busy with, on its own.
    link_ms = found[50].host_hit_rate * sum(r.input_tokens for r in traffic.requests)
    link_ms *= BYTES_PER_TOKEN / 50e6 / len(traffic.requests)
    assert ttft[50] - ttft[None] == pytest.approx(link_ms, rel=0.5)


@pytest.mark.alone
@pytest.mark.slow
@each_other
def test_local_counts_the_hits_that_the_frontend_reports(python, tmp_path):
    """Two prompts of 33 blocks in turn, on a GPU that holds 50: each evicts the other."""
    python = having_a_host_tier(python)
    requests = [
        TrafficRequest(
            f"{i}", f"{i}", 0, 0.0, 0.0, 2148, 12, (*range(4 * (i % 2), 4 * (i % 2) + 4), 100 + i)
        )
        for i in range(8)
    ]
    traffic = Traffic(tuple(requests), Concurrency(1), 512, ("two prompts in turn",))
    ttft = {}
    for gb_per_second in (None, 1.0):
        run, work, limitations = measured(
            LocalTarget(), worker(python, 128, gb_per_second, gpu_blocks=50), traffic,
            tmp_path / str(gb_per_second),
        )  # fmt: skip
        metrics = Metrics(run)
        said = run.observed["frontend"]
        reported = said["dynamo_frontend_cached_tokens_sum"]
        assert sum(record.cached_tokens for record in run.records) == pytest.approx(reported)
        # All but the first two find their 2,048 tokens, half of which had left the GPU.
        assert metrics.kv_hit_rate == pytest.approx(6 * 2048 / (8 * 2148), abs=0.02)
        assert 0.2 < metrics.host_hit_rate < metrics.kv_hit_rate
        computed = 1 - run.observed["engine_prefill_tokens"] / (8 * 2148)
        assert metrics.kv_hit_rate == pytest.approx(computed, abs=0.02)
        assert "blocks were evicted from the GPU (modelled: the link between GPU" in str(work)
        assert not any("extra blocks" in text for text in limitations)
        ttft[gb_per_second] = metrics.time_to_first_token.p50
    # 1,024 tokens of 256 KiB take 268 ms.
    assert ttft[1.0] > ttft[None] + 150


@pytest.mark.slow
@each_other
def test_hits_of_a_split_with_a_host_tier_are_unknown_and_said_to_be(python, tmp_path):
    python = having_a_host_tier(python)
    split = Configuration(
        "split", "baseline",
        [
            Worker(1, mode="prefill", tp=2, kv_blocks=50, kv_offload=KvOffload(2)),
            Worker(1, mode="decode", tp=2, kv_blocks=500, prefix_caching=False),
        ],
        dynamo=python,
    )  # fmt: skip
    requests = tuple(
        TrafficRequest(
            f"{i}", f"{i}", 0, 0.0, 0.0, 2148, 12, (*range(4 * (i % 2), 4 * (i % 2) + 4), 100 + i)
        )
        for i in range(8)
    )
    traffic = Traffic(requests, Concurrency(1), 512, ("two prompts in turn",))
    run, _, limitations = measured(LocalTarget(), split, traffic, tmp_path)
    assert {(record.cached_tokens, record.host_tokens) for record in run.records} == {(None, None)}
    # The engines did find them.
    assert run.observed["engine_prefill_tokens"] < 0.6 * 8 * 2148
    assert any("hits of the KV cache are unknown" in text for text in limitations)
