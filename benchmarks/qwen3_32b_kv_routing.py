"""Does KV-aware routing with a prefill/decode split beat round-robin on multi-turn traffic?

The published comparison changes routing and disaggregation at once. Two more configurations
separate them.
"""

from pytest_dynamo_bench import (
    Benchmark,
    Claim,
    Configuration,
    Goodput,
    Hardware,
    MooncakeTrace,
    Size,
    Worker,
)

# fmt: off
# 724,992 tokens: what vLLM leaves for KV on two H200 at --gpu-memory-utilization 0.90.
TP2 = {"tp": 2, "kv_blocks": 11_328}

AGG = Configuration("agg-round-robin", role="baseline", router="round-robin",
                    workers=[Worker(8, **TP2)])
DISAGG_KV = Configuration("disagg-kv-router", role="promoted", router="kv",
                          workers=[Worker(6, mode="prefill", **TP2),
                                   Worker(2, mode="decode", prefix_caching=False, **TP2)])
# Ours: routing without disaggregation, disaggregation without routing.
OURS = {"role": "treatment", "published": False}
AGG_KV = AGG.but(name="agg-kv-router", router="kv", **OURS)
DISAGG = DISAGG_KV.but(name="disagg-round-robin", router="round-robin", **OURS)

TTFT, ITL = "time_to_first_token.mean", "inter_token_latency.p90"
LATENCY, HITS = "request_latency.mean", "kv_hit_rate"

benchmark = Benchmark(
    name="qwen3_32b_kv_routing",
    question="Does KV-aware routing with a prefill/decode split lower latency on traffic that "
    "reuses prefixes, against aggregated round-robin?",
    model="Qwen/Qwen3-32B",
    hardware=Hardware("H200", count=16, nodes=2, kv_transfer_gb_per_second=100),
    engine="vllm",
    traffic=MooncakeTrace("conversation"),
    sizes={
        "smoke": Size(seconds=12, fast_forward=2, configurations=(
            "agg-round-robin", "agg-kv-router", "disagg-kv-router")),
        "standard": Size(seconds=40, fast_forward=1.5),
    },
    goodput=Goodput(time_to_first_token_ms=2000, inter_token_latency_ms=25),
    held_constant="model, engine, 16 GPUs, fixed schedule, service-level objectives",
    recipe="recipes/qwen3-32b/vllm/disagg-kv-router",
    configurations=[AGG, AGG_KV, DISAGG, DISAGG_KV],
    # Thresholds: local from runs of 214 requests on 2 cores (docs/claims.md), "at least" in every
    # run, and one run each with the other releases; replay from one run of 12,031 requests with
    # each release, router seed 0. "At least" is the end of the interval.
    claims=[
        Claim.lower("KV routing lowers TTFT", TTFT, AGG_KV, AGG,
            local=(0.05, "32 %, at least 13.4; held in 10 of 10 runs; "
                "1.5.1: 29 %, 1.6.1: 30"),
            replay=(0.10, "1.4.2: 17.1 %, 1.5.1: 16.9, 1.6.1: 17.1; at least 14.5")),
        Claim.lower("KV routing lowers request latency", LATENCY, AGG_KV, AGG,
            replay=(0.05, "1.4.2: 11.2 %, 1.5.1: 10.7, 1.6.1: 10.9; at least 9.0")),
        Claim.higher("KV routing finds more of a prompt in the cache", HITS, AGG_KV, AGG,
            kind="mechanism", local=(0.04, "21 points, at least 7.8; held in 10 of 10 runs; "
                "1.5.1: 16 points, 1.6.1: 18"),
            replay=(0.04, "1.4.2: 7.7 points, 1.5.1: 7.7, 1.6.1: 7.9; at least 6.7")),
        Claim.lower("The promoted configuration lowers request latency", LATENCY, DISAGG_KV, AGG,
            replay=(0.15, "1.4.2: 26.6 %, 1.5.1: 25.0, 1.6.1: 25.0; at least 22.9")),
        Claim.lower("The promoted configuration lowers ITL", ITL, DISAGG_KV, AGG,
            replay=(0.35, "1.4.2: 50.8 %, 1.5.1: 51.1, 1.6.1: 51.1; at least 45.7")),
        Claim.lower("The promoted configuration lowers TTFT", TTFT, DISAGG_KV, AGG,
            local=(0, "23 %, at least 8.1; held in 9 of 9 runs; "
                "1.5.1: 22 %, 1.6.1: 22"),
            replay=(0.08, "1.4.2: 27.0 %, 1.5.1: 15.4, 1.6.1: 15.2; at least 12.6")),
        Claim.higher("The promoted configuration raises goodput", "goodput", DISAGG_KV, AGG,
            replay=(0.15, "1.4.2: 26.0 %, 1.5.1: 24.4, 1.6.1: 23.7; at least 21.3")),
        Claim.higher("The split processes prompts elsewhere", "split_share", DISAGG_KV, AGG,
            kind="mechanism", local=(0.5, "100 points, at least 100.0; held in 10 of 10 runs; "
                "1.5.1: 100 points, 1.6.1: 100")),
        Claim.lower("KV routing lowers TTFT of split workers", TTFT, DISAGG_KV, DISAGG,
            replay=(0.25, "1.4.2: 40.6 %, 1.5.1: 36.9, 1.6.1: 36.8; at least 32.7")),
        Claim.lower("The split alone lowers ITL", ITL, DISAGG, AGG,
            replay=(0.30, "1.4.2: 48.7 %, 1.5.1: 49.4, 1.6.1: 49.4; at least 43.7")),
    ],
    notes=[
        "Published: no numbers, only the direction. 12,031 requests, fixed schedule.",
        "The published arms change routing and the split at once; agg-kv-router and "
        "disagg-round-robin are ours, to tell them apart.",
        "On replay of 1.4.2 the split alone raises mean TTFT by 23 % (1,536 to 1,889 ms) and "
        "leaves goodput as it is (+1.8 %); with KV routing on top of it TTFT falls to 1,121 ms. "
        "There a prefill worker takes one prompt at a time; in later releases several share a "
        "step, and it is 2,055 and 1,297 ms (1.5.1), 2,055 and 1,298 ms (1.6.1).",
        "Claims on replay are about the trace as recorded, ten requests at once every 3 s. With "
        "arrivals spread within these (spread_arrivals=True) mean TTFT is 1,326 ms with round "
        "robin, 899 and 901 ms with the KV router (router seeds 0 and 1) and 905 ms with split and "
        "KV router, where it is 1,536, 1,273 and 1,271, 1,121 and 1,120 ms as recorded: KV routing "
        "gains 32 instead of 17 %, and the split adds nothing to that. All are beyond their "
        "thresholds both ways.",
        "As recorded, KV routing is worse for prompts under 1,000 tokens on aggregated workers: "
        "median TTFT 659 ms, 93 ms with round robin; with arrivals spread 51 and 52 ms.",
        "Claims on local are about a cut with 1.1 requests at once, as with arrivals spread.",
        "On local 214 requests are too few for request latency: KV routing 8.7 % lower (interval "
        "-17.1 to +0.7 %), the promoted configuration 10.5 and 11.6 % (at least 1.1). "
        "Nor for ITL p90 of the promoted configuration: 23 and 24 % lower, at least 3.5.",
        "An older published set-up used limits of 1000 / 30 ms instead of 2000 / 25 ms.",
    ],
)


def test_claim(claim, comparison):
    comparison.check(claim)
