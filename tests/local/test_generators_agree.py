"""The own load generator and AIPerf, on the same deployment and traffic, measure the same."""

from __future__ import annotations

import pytest

from pytest_dynamo_bench.errors import LoadError
from pytest_dynamo_bench.load.aiperf import find_aiperf
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.targets.local.target import LocalOptions
from pytest_dynamo_bench.verdicts import check_run
from tests.local.test_local_target import AGG, Watch, conversation, measure, nothing_left
from tests.local.test_local_target import scratch_directories as scratch

pytest.importorskip("dynamo.mocker", reason="needs ai-dynamo")
pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="module", autouse=True)
def aiperf():
    try:
        find_aiperf()
    except LoadError as error:
        pytest.skip(str(error))


def test_they_agree(tmp_path):
    before, traffic, runs = scratch(), conversation(count=40), {}
    for load in ("own", "aiperf"):
        watch = Watch()
        runs[load] = measure(AGG, tmp_path / load, traffic, watch, options=LocalOptions(load=load))
        assert "measuring" in watch.stages
        assert nothing_left(before)
    own, other = runs["own"], runs["aiperf"]
    assert other.observed["load_generator"]["name"] == "aiperf"
    for run in runs.values():
        assert run.problems == []
        assert [record.error for record in run.records] == [None] * 40
        gates = check_run(run, traffic.schedule, "time_to_first_token.p50", traffic=traffic)
        named = {gate.name: gate for gate in gates}
        assert named["token counts as asked for"].passed
    mine = {r.request_id: r for r in own.records}
    theirs = {r.request_id: r for r in other.records}
    assert mine.keys() == theirs.keys()
    for name, record in mine.items():
        assert record.prompt_tokens == theirs[name].prompt_tokens
        assert record.completion_tokens == theirs[name].completion_tokens
        assert len(record.chunk_ms) == len(theirs[name].chunk_ms)
        assert theirs[name].scheduled_ms == pytest.approx(record.scheduled_ms)
    # docs/load-generator.md says how closely; here only that they mean the same thing.
    for metric in ("time_to_first_token.p50", "inter_token_latency.p50", "request_latency.p50"):
        a, b = Metrics(own).value(metric), Metrics(other).value(metric)
        assert b == pytest.approx(a, rel=0.5), metric
