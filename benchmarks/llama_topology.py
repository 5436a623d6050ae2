"""How do aggregated, one-node split and two-node split layouts compare per GPU?

The published layouts have 4, 8 and 16 GPUs. Aggregated layouts of 8 and 16 GPUs separate the
topology from the size.
"""

from pytest_dynamo_bench import (
    Benchmark,
    Claim,
    Concurrency,
    Configuration,
    Hardware,
    Size,
    SyntheticTraffic,
    Worker,
)

SHARED = {"memory_fraction": 0.9, "prefix_caching": False, "max_num_batched_tokens": 8192}
# fmt: off
# 16 requests in flight for each GPU, and ten times as many in all.
ON_4, ON_8, ON_16 = ({"concurrency": 16 * gpus, "requests": 160 * gpus} for gpus in (4, 8, 16))

AGG = Configuration("agg", role="baseline", block_size=128, **ON_4,
                    workers=[Worker(1, tp=4, **SHARED)])
ONE_NODE = AGG.but(name="disagg-single-node", role="treatment", **ON_8,
                   workers=[Worker(2, mode="prefill", tp=2, **SHARED),
                            Worker(1, mode="decode", tp=4, **SHARED)])
TWO_NODES = AGG.but(name="disagg-multi-node", role="treatment", nodes=2, **ON_16,
                    workers=[Worker(1, mode="prefill", tp=8, **SHARED),
                             Worker(1, mode="decode", tp=8, **SHARED)])
# Ours: aggregated on as many GPUs.
OURS = {"role": "treatment", "published": False}
AGG_8 = AGG.but(name="agg-8-gpus", workers=[Worker(2, tp=4, **SHARED)], **ON_8, **OURS)
AGG_16 = AGG.but(name="agg-16-gpus", nodes=2, workers=[Worker(4, tp=4, **SHARED)], **ON_16, **OURS)
AGG_16_TP8 = AGG_16.but(name="agg-16-gpus-tp8", workers=[Worker(2, tp=8, **SHARED)])

ITL = "inter_token_latency.mean"

benchmark = Benchmark(
    name="llama_topology",
    question="How do aggregated, one-node split and two-node split layouts compare per GPU?",
    model="RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic",
    # NDR InfiniBand: 50 GB/s for each of the eight GPUs of a worker; NVLink within a node is
    # faster, but the transfer is 7 ms even so.
    hardware=Hardware("H200", count=16, nodes=2, kv_transfer_gb_per_second=400),
    engine="vllm",
    traffic=SyntheticTraffic(isl=8192, osl=1024, requests=2560, schedule=Concurrency(64)),
    sizes={
        "smoke": Size(seconds=20, sessions=256, fast_forward=3,
                      configurations=("agg", "disagg-single-node")),
        "standard": Size(seconds=50, sessions=256, fast_forward=1.25),
    },
    held_constant="model, engine, GPU type, 8192 tokens in, 1024 out, 16 requests in flight per "
    "GPU; the number of GPUs differs by design",
    # Up to Dynamo 1.4; removed upstream on 2026-08-21.
    recipe="recipes/llama-3-70b/vllm/disagg-single-node",
    configurations=[AGG, AGG_8, ONE_NODE, AGG_16, AGG_16_TP8, TWO_NODES],
    # Thresholds: local from runs at scale standard on 2 cores (docs/claims.md), "at least" in every
    # run, and one run each with the other releases; replay from one run of all requests with each
    # release. "At least" is the end of the interval.
    claims=[
        Claim.lower("A split on one node lowers ITL", ITL, ONE_NODE, AGG,
            local=(0.05, "38 %, at least 19.3; held in 10 of 10 runs; "
                "1.5.1: 37 %, 1.6.1: 40"),
            replay=(0.2, "1.4.2: 39.7 %, 1.5.1: 40.4, 1.6.1: 40.3; at least 33.6")),
        Claim.lower("A split on one node lowers ITL on the same GPUs", ITL, ONE_NODE, AGG_8,
            replay=(0.2, "1.4.2: 39.7 %, 1.5.1: 40.4, 1.6.1: 40.3; at least 36.0")),
        Claim.lower("A split on two nodes lowers ITL", ITL, TWO_NODES, AGG,
            local=(0.2, "63 %, at least 51.8; held in 10 of 10 runs; "
                "1.5.1: 61 %, 1.6.1: 64"),
            replay=(0.5, "1.4.2: 71.8 %, 1.5.1: 71.8, 1.6.1: 71.8; at least 69.8")),
        Claim.lower("A split on two nodes lowers ITL on the same GPUs", ITL, TWO_NODES, AGG_16,
            replay=(0.5, "1.4.2: 71.8 %, 1.5.1: 71.8, 1.6.1: 71.8; at least 70.4")),
        Claim.higher("The split processes prompts elsewhere", "split_share", ONE_NODE, AGG,
            kind="mechanism", local=(0.5, "100 points, at least 100.0; held in 10 of 10 runs; "
                "1.5.1: 100 points, 1.6.1: 100")),
    ],
    notes=[
        "Published: no numbers; the catalog recommends disagg-single-node.",
        "The agg-8-gpus and agg-16-gpus arms are ours, to tell the topology apart from the size.",
        "Output tokens/s/GPU, the published measure, is no claim on replay: 350 aggregated, 414 "
        "split on one node, 240 on two, but requests of one length move in waves, and the "
        "intervals are too wide (+18 % within -24 and +84 %).",
        "On replay splits pay with TTFT: 2.0 s aggregated, 11.4 s on one node, 52 s on two, where "
        "one prefill worker cannot keep up with 256 requests in flight.",
        "On local the first wave of requests is measured, which all start at once: TTFT is 13 s "
        "aggregated, 19 s on one node and 34 s on two. Twice or four times the GPUs at as much "
        "more load change no ITL (35.1, 34.8 and 33.7 ms aggregated on 4, 8 and 16), so that the "
        "splits are compared with the smallest only.",
        "'Multi-node' means one worker on each node; no worker spans nodes.",
        "The published manifests of the split have no KV transfer configured; the transfer over "
        "NIXL that the catalog names is assumed.",
        "Published runs warm up with as many requests as are in flight; here they count.",
        "TP differs by role and size, so that tokens/s/GPU mixes topology with TP.",
    ],
)


def test_claim(claim, comparison):
    comparison.check(claim)
