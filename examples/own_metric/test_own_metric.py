"""Claims about metrics of our own, which conftest.py defines.

pytest examples/own_metric --dynamo-target=replay
"""

from pytest_dynamo_bench import (
    Benchmark,
    Claim,
    Configuration,
    Hardware,
    MooncakeTrace,
    Worker,
)

AGG = Configuration("agg", role="baseline", workers=[Worker(8, tp=2, kv_blocks=11_328)])
AGG_KV = AGG.but(name="agg-kv", role="treatment", router="kv")

benchmark = Benchmark(
    name="own_metric",
    question="Do fewer users wait with KV routing, and are short prompts kept waiting less?",
    model="Qwen/Qwen3-32B",
    hardware=Hardware("H200", count=16),
    traffic=MooncakeTrace("conversation"),
    configurations=[AGG, AGG_KV],
    claims=[
        Claim.lower(
            "Fewer first tokens take more than two seconds", "slow_starts", AGG_KV, AGG,
            replay=(0.04, "7.5 points, at least 6.8"),
        ),
        Claim.lower(
            "Fewer prompts wait long for their length",
            "ttft_per_1000_prompt_tokens.p99", AGG_KV, AGG,
            replay=(0.3, "58 %, at least 51"),
        ),
    ],
)  # fmt: skip


def test_claim(claim, comparison):
    comparison.check(claim)
