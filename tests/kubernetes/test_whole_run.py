"""A whole run on the double, where the frontend is a real Dynamo on this machine."""

from __future__ import annotations

import json

import pytest

from tests.dynamo_by_hand import dynamo
from tests.endpoint.test_real_frontend import conversations
from tests.kubernetes.fake_cluster import DGD, NAMESPACE, TOKEN, pulling, running, unschedulable

pytest.importorskip("dynamo.mocker", reason="needs ai-dynamo")
pytestmark = [pytest.mark.slow, pytest.mark.alone]

MODULE = """
from pytest_dynamo_bench import *

AGG = Configuration("agg", "baseline", [Worker(2)])
KV = AGG.but(name="kv", role="treatment", router="kv")
benchmark = Benchmark(
    name="example", question="?", model={model!r}, hardware=Hardware("H200", 2),
    traffic=MooncakeTrace("trace.jsonl"), configurations=[AGG, KV],
    claims=[Claim("KV does no harm", "time_to_first_token.mean", "kv", "agg",
                  not_higher_by={{"kubernetes": 5}})],
)

def test_claim(claim, comparison):
    comparison.check(claim)
"""


def test_preflight_create_pending_ready_measure_delete(pytester, fake, tmp_path):
    conversations(pytester.path / "trace.jsonl")
    (pytester.path / "cluster.yaml").write_text(
        f"namespace: {NAMESPACE}\nload: {{pip: '', shards: 3}}\n"
    )
    fake.script["agg"] = ((0, unschedulable()), (1.5, pulling()), (1.5, running(False)),
                          (1.5, running()))  # fmt: skip
    with dynamo(tmp_path / "dynamo", router="kv") as (url, model):
        fake.frontend_url = url
        pytester.makepyfile(test_example=MODULE.format(model=model))
        result = pytester.runpytest(
            "--dynamo-target=kubernetes", "--dynamo-cluster=cluster.yaml",
            "--dynamo-gate=schedule_delay_ms=2000",
        )  # fmt: skip
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*agg: creating",
            "*agg: starting: Frontend *agg 0/2 scheduling (*unschedulable: 0/3 nodes*",
            "*agg: starting: Frontend 1/1, agg 2/2",
            "*agg: starting load: * of 3 pods run",
            "*agg: measuring",
            "*agg: stopping",
            "*KV does no harm*",
        ]
    )
    assert not any(fake.named(kind) for kind in (DGD, "pods", "configmaps", "jobs"))
    for path in pytester.path.glob("reports/*/example/*/run.json"):
        run = json.loads(path.read_text())
        assert (run["failed"], run["requests"], run["problems"]) == (0, 80, [])
        assert run["observed"]["frontend"]["dynamo_frontend_requests_total"] >= 80
        assert [entry["requests"] for entry in run["observed"]["shards"]] == [27, 27, 26]
        assert run["deployed"]["workers"] == run["observed"]["workers"] == 2
        assert TOKEN not in path.read_text()
