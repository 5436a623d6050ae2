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
    question="Do fewer users wait with KV routing, and less for each token of their prompt?",
    model="Qwen/Qwen3-32B",
    hardware=Hardware("H200", count=16),
    traffic=MooncakeTrace("conversation"),
    configurations=[AGG, AGG_KV],
    claims=[
        Claim(
            "Fewer first tokens take more than a second",
            "slow_starts",
            treatment="agg-kv",
            baseline="agg",
            lower_by=0,
        ),
        Claim(
            "A prompt token takes less time",
            "ttft_per_1000_prompt_tokens.p50",
            treatment="agg-kv",
            baseline="agg",
            lower_by=0,
        ),
    ],
)


def test_claim(claim, comparison):
    comparison.check(claim)
