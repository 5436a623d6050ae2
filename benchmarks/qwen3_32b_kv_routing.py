"""Does KV-aware routing with a prefill/decode split beat round-robin on multi-turn traffic?

The published comparison changes two things at once, routing and the split. Two more
configurations tell them apart.
"""

from pytest_dynamo_bench import (
    Benchmark,
    Claim,
    Configuration,
    Goodput,
    Hardware,
    MooncakeTrace,
    Worker,
)

# 724,992 tokens: what vLLM leaves for KV on two H200 at --gpu-memory-utilization 0.90.
KV_BLOCKS = 11_328
RUNS = "local, 2 cores, 2026-11-24, 4 runs of 122 requests"
REPLAY = "replay, 12,031 requests, router seeds 0 and 1"

AGG = Configuration(
    "agg-round-robin",
    role="baseline",
    router="round-robin",
    workers=[Worker(8, tp=2, kv_blocks=KV_BLOCKS)],
)
DISAGG_KV = Configuration(
    "disagg-kv-router",
    role="winner",
    router="kv",
    workers=[
        Worker(6, mode="prefill", tp=2, kv_blocks=KV_BLOCKS),
        Worker(2, mode="decode", tp=2, kv_blocks=KV_BLOCKS, prefix_caching=False),
    ],
)
AGG_KV = AGG.but(name="agg-kv-router", role="treatment", router="kv", published=False)
DISAGG = DISAGG_KV.but(
    name="disagg-round-robin", role="treatment", router="round-robin", published=False
)

benchmark = Benchmark(
    name="qwen3_32b_kv_routing",
    question="Does KV-aware routing with a prefill/decode split lower latency on traffic that "
    "reuses prefixes, against aggregated round-robin?",
    model="Qwen/Qwen3-32B",
    hardware=Hardware("H200", count=16, nodes=2, kv_transfer_gb_per_second=100),
    engine="vllm",
    traffic=MooncakeTrace("conversation"),
    goodput=Goodput(time_to_first_token_ms=2000, inter_token_latency_ms=25),
    held_constant="model, engine, 16 GPUs, fixed schedule, service-level objectives",
    recipe="recipes/qwen3-32b/vllm/disagg-kv-router",
    configurations=[AGG, AGG_KV, DISAGG, DISAGG_KV],
    claims=[
        Claim(
            "KV routing lowers TTFT",
            metric="time_to_first_token.mean",
            treatment="agg-kv-router",
            baseline="agg-round-robin",
            lower_by={"local": 0, "replay": 0.10},
            evidence=f"{RUNS}: 29.4, 28.0, 29.8, 29.9 % lower, intervals end at 2.1 to 3.1; "
            f"{REPLAY}: 17.1, 17.3 % lower, intervals end at 14.7, 14.8",
        ),
        Claim(
            "KV routing lowers request latency",
            metric="request_latency.mean",
            treatment="agg-kv-router",
            baseline="agg-round-robin",
            lower_by={"local": 0.02, "replay": 0.05},
            evidence=f"{RUNS}: 16.3, 15.6, 16.0, 16.1 % lower, intervals end at 5.2 to 6.2; "
            f"{REPLAY}: 11.2, 11.0 % lower, intervals end at 9.4",
        ),
        Claim(
            "KV routing finds more of a prompt in the cache",
            metric="kv_hit_rate",
            treatment="agg-kv-router",
            baseline="agg-round-robin",
            higher_by={"local": 0.01, "replay": 0.04},
            evidence=f"{RUNS}: 23.7, 22.7, 23.3, 23.3 points higher, intervals from 3.7 to 4.3 on; "
            f"{REPLAY}: 7.7, 7.8 points higher, intervals from 6.7 on",
            kind="mechanism",
        ),
        Claim(
            "The promoted configuration lowers request latency",
            metric="request_latency.mean",
            treatment="disagg-kv-router",
            baseline="agg-round-robin",
            lower_by={"local": 0.01, "replay": 0.15},
            evidence=f"{RUNS}: 10.2, 9.7, 9.7, 10.3 % lower, intervals end at 2.9 to 4.0; "
            f"{REPLAY}: 26.6, 26.6 % lower, intervals end at 24.6",
        ),
        Claim(
            "The promoted configuration lowers ITL",
            metric="inter_token_latency.p90",
            treatment="disagg-kv-router",
            baseline="agg-round-robin",
            lower_by={"local": 0, "replay": 0.35},
            evidence=f"{RUNS}: 24.9, 25.2, 24.6, 25.5 % lower, intervals end at 2.1 to 3.3; "
            f"{REPLAY}: 50.8, 50.7 % lower, intervals end at 47.3",
        ),
        Claim(
            "The promoted configuration lowers TTFT",
            metric="time_to_first_token.mean",
            treatment="disagg-kv-router",
            baseline="agg-round-robin",
            lower_by={"replay": 0.15},
            evidence=f"{REPLAY}: 27.0, 27.1 % lower, intervals end at 24.9, 25.2",
        ),
        Claim(
            "The promoted configuration raises goodput",
            metric="goodput",
            treatment="disagg-kv-router",
            baseline="agg-round-robin",
            higher_by={"replay": 0.15},
            evidence=f"{REPLAY}: 26.0, 26.0 % higher, intervals from 23.6 on",
        ),
        Claim(
            "KV routing lowers TTFT of split workers",
            metric="time_to_first_token.mean",
            treatment="disagg-kv-router",
            baseline="disagg-round-robin",
            lower_by={"replay": 0.25},
            evidence=f"{REPLAY}: 40.6, 40.7 % lower, intervals end at 36.9, 37.1",
        ),
        Claim(
            "The split alone lowers ITL",
            metric="inter_token_latency.p90",
            treatment="disagg-round-robin",
            baseline="agg-round-robin",
            lower_by={"replay": 0.30},
            evidence="replay, 12,031 requests: 48.7 % lower, interval ends at 45.2",
        ),
    ],
    notes=[
        "Published: no numbers, only the direction. 12,031 requests, fixed schedule.",
        "The published arms change routing and the split at once; agg-kv-router and "
        "disagg-round-robin are ours, to tell them apart.",
        "On replay the split alone raises mean TTFT by 23 % (1,536 to 1,889 ms) and leaves goodput "
        "as it is (+1.8 %); with KV routing on top of it TTFT falls to 1,121 ms.",
        "An older published set-up used limits of 1000 / 30 ms instead of 2000 / 25 ms.",
    ],
)


def test_claim(claim, comparison):
    comparison.check(claim)
