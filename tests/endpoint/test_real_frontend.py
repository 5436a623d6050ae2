"""The endpoint target against a real Dynamo frontend that somebody else started."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

from pytest_dynamo_bench.load.connection import Connection, Server
from pytest_dynamo_bench.load.generator import LoadGenerator
from tests.dynamo_by_hand import dynamo
from tests.load.test_load import request, traffic

pytest.importorskip("dynamo.mocker", reason="needs ai-dynamo")
pytestmark = [pytest.mark.slow, pytest.mark.alone]

MODULE = """
from pytest_dynamo_bench import *

AGG = Configuration("agg", "baseline", [Worker(2)])
KV = AGG.but(name="kv", role="treatment", router="kv")
benchmark = Benchmark(
    name="example", question="?", model="Qwen/Qwen3-32B", hardware=Hardware("H200", 2),
    traffic=MooncakeTrace("trace.jsonl"), configurations=[AGG, KV],
    claims=[
        Claim("KV routing does no harm", "time_to_first_token.mean", "kv", "agg",
              not_higher_by={"endpoint": 1}),
    ],
)

def test_claim(claim, comparison):
    comparison.check(claim)
"""


def conversations(path, count=80):
    """Eight conversations that come back with 2,048 tokens in common."""
    lines = [
        json.dumps({"timestamp": 60 * i, "input_length": 2148, "output_length": 6,
                    "hash_ids": [*range(100 * (i % 8), 100 * (i % 8) + 4), 5000 + i]})
        for i in range(count)
    ]  # fmt: skip
    path.write_text("\n".join(lines))


def run_json(pytester, configuration):
    (path,) = pytester.path.glob(f"reports/*/example/{configuration}/run.json")
    return json.loads(path.read_text())


def test_two_frontends_started_by_hand(pytester, tmp_path):
    pytester.makepyfile(test_example=MODULE)
    conversations(pytester.path / "trace.jsonl")
    shared = tmp_path / "model"
    with (
        dynamo(tmp_path / "agg", model=shared) as (agg, model),
        dynamo(tmp_path / "kv", model=shared, router="kv") as (kv, _),
    ):
        arguments = [
            "--dynamo-target=endpoint", f"--dynamo-endpoint=agg={agg}",
            f"--dynamo-endpoint=kv={kv}/v1",
        ]  # fmt: skip
        result = pytester.runpytest(*arguments)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*has no model 'Qwen/Qwen3-32B'*it has {model}*"])
        result = pytester.runpytest(
            *arguments, f"--dynamo-endpoint-model={model}", "--dynamo-gate=schedule_delay_ms=1000"
        )
        result.assert_outcomes(passed=1)
    for configuration in ("agg", "kv"):
        run = run_json(pytester, configuration)
        assert (run["failed"], run["requests"], run["problems"]) == (0, 80, [])
        assert run["observed"]["is_dynamo"] is True
        assert run["observed"]["frontend"]["dynamo_frontend_requests_total"] >= 80
    assert run["observed"]["cached_tokens_at_start"] == 0
    assert run["observed"]["frontend"]["router_kv_hit_rate"] > 0.5


def test_one_url_with_a_command_that_switches_and_a_cache_that_stays_warm(pytester, tmp_path):
    pytester.makepyfile(test_example=MODULE)
    conversations(pytester.path / "trace.jsonl")
    switch = tmp_path / "switch.py"
    switch.write_text("import sys; print('now', sys.argv[1])")
    with dynamo(tmp_path / "one", router="kv") as (url, model):
        result = pytester.runpytest(
            "--dynamo-target=endpoint", f"--dynamo-endpoint={url}", "--dynamo-same-prompts",
            f"--dynamo-endpoint-model={model}",
            "--dynamo-gate=schedule_delay_ms=1000",
            f"--dynamo-switch-command={sys.executable} {switch} {{configuration}}",
        )  # fmt: skip
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*caches cold at the start: * cached tokens before the first request*"]
    )
    (log,) = pytester.path.glob("reports/*/example/kv/logs/switch.log")
    assert log.read_text() == "now kv\n"


@pytest.mark.anyio
async def test_its_streams_are_as_expected(monkeypatch, tmp_path):
    """What costs the load generator least is what Dynamo sends."""
    reads, received = Counter(), Connection.received

    def counted(self, *read):
        expected = received(self, *read)
        reads[expected] += 1
        return expected

    monkeypatch.setattr(Connection, "received", counted)
    with dynamo(tmp_path / "agg", model=tmp_path / "model") as (url, model):
        generator = LoadGenerator(Server(f"{url}/v1/chat/completions"), model, processes=0)
        requests = [request(i, at=100.0 * i, isl=100, osl=60) for i in range(6)]
        await generator.send(traffic(requests), lambda whole: None)
    records = generator.records()
    assert [record.error for record in records] == [None] * 6
    assert [record.completion_tokens for record in records] == [60] * 6
    assert all(record.decode_worker for record in records)
    assert reads[True] > 0.8 * sum(reads.values())
