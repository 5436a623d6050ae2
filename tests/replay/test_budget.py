"""Repeats until all is decided, on Dynamo's real replay."""

import io
import json
import re

import pytest

from pytest_dynamo_bench import MooncakeTrace
from pytest_dynamo_bench.traffic.cut import cut
from pytest_dynamo_bench.traffic.mooncake import write_mooncake
from pytest_dynamo_bench.verdicts.sequential import SequentialPlan

pytest.importorskip("dynamo.replay")
pytestmark = pytest.mark.slow

BENCHMARK = """
from pytest_dynamo_bench import *

RR = Configuration("rr", "baseline", [Worker(8, tp=2, kv_blocks=11_328)], router="round-robin")
KV = RR.but(name="kv", role="treatment", router="kv")

def lowers(share):
    return Claim(
        f"KV routing lowers TTFT by {share}", "time_to_first_token.mean", treatment="kv",
        baseline="rr", lower_by={"replay": share}, evidence="none",
    )

benchmark = Benchmark(
    name="budget", question="Does KV routing help?", model="Qwen/Qwen3-32B",
    hardware=Hardware("H200", 16, 2), traffic=MooncakeTrace("trace.jsonl"),
    configurations=[RR, KV], claims=[lowers(0.02), lowers(0.25), lowers(0.90)],
)

def test_claim(claim, comparison):
    comparison.check(claim)
"""


def test_a_budget_is_spent_only_as_long_as_it_decides_something(pytester):
    with io.StringIO() as file:
        write_mooncake(cut(MooncakeTrace("conversation").load(), 120).requests, file)
        (pytester.path / "trace.jsonl").write_text(file.getvalue())
    pytester.makepyfile(test_until_decided=BENCHMARK)
    result = pytester.runpytest(
        "--dynamo-target=replay", "--dynamo-budget=10m", "-p", "no:cacheprovider"
    )
    # One holds, one is plainly false, and of one the traffic is too little to tell.
    result.assert_outcomes(passed=1, failed=2)
    told = result.stdout.str().replace("\n", " ")
    (repeats, most, why) = re.search(
        r"3 claims checked after every repeat, (\d+) of at most (\d+), because (more[\w ]+);", told
    ).groups()
    assert why == "more repeats of the same traffic would not decide more"
    assert 3 <= int(repeats) < int(most)

    (directory,) = (pytester.path / "reports").iterdir()
    entry = json.loads((directory / "summary.json").read_text())["benchmarks"]["budget"]
    assert {name: len(runs) for name, runs in entry["runs"].items()} == {
        "rr": int(repeats),
        "kv": int(repeats),
    }
    verdicts = {name.split()[-1]: verdict for name, verdict in entry["verdicts"].items()}
    assert {share: verdict["outcome"] for share, verdict in verdicts.items()} == {
        "0.02": "holds",
        "0.25": "inconclusive",
        "0.9": "fails",
    }
    plan = SequentialPlan(int(most), confidence=1 - 0.05 / 3)
    looks = [plan.confidence_at(look) for look in range(2, int(repeats) + 1)]
    assert all(
        any(verdict["effect"]["confidence"] == pytest.approx(look) for look in looks)
        for verdict in verdicts.values()
    )
    assert verdicts["0.25"]["more_repeats"] is None
    assert verdicts["0.25"]["more_requests"] > 0
