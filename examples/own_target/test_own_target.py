"""Claims on a target of our own, which conftest.py registers.

pytest examples/own_target --dynamo-target=loaded-replay
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
    name="own_target",
    question="Does KV routing help more under more load?",
    model="Qwen/Qwen3-32B",
    hardware=Hardware("H200", count=16),
    traffic=MooncakeTrace("conversation"),
    configurations=[AGG, AGG_KV],
    claims=[
        Claim.lower(
            "KV routing lowers TTFT", "time_to_first_token.mean", AGG_KV, AGG,
            replay=(0.05, "17.1 % lower in a run"),
            loaded_replay=(0.05, "21.5 % lower in a run at 1.2 times the load"),
        ),
        Claim.higher(
            "Prompts are found in the caches", "kv_hit_rate", AGG_KV, AGG, kind="mechanism",
            replay=(0.01, "7.7 points higher in a run"),
        ),
    ],
)  # fmt: skip


def test_claim(claim, comparison):
    comparison.check(claim)
