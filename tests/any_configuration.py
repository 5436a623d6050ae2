"""Whatever an author may configure, for property-based tests."""

from __future__ import annotations

from typing import get_args

from hypothesis import strategies as st

from pytest_dynamo_bench import (
    Benchmark,
    Configuration,
    Hardware,
    KvOffload,
    MooncakeTrace,
    SpeculativeDecoding,
    Worker,
)
from pytest_dynamo_bench.benchmark import RouterMode

ENGINES = ("vllm", "trtllm", "sglang")
counts = st.none() | st.integers(1, 100_000)
amounts = st.floats(0.01, 1000)


@st.composite
def configurations(draw):
    """Any workers that an author may write, aggregated or split."""
    drafts = draw(st.none() | st.tuples(st.integers(1, 4), st.sampled_from(["Eagle3", "MTP"])))
    speculative = drafts and SpeculativeDecoding(
        drafts[0], (0.5,) * drafts[0], method=drafts[1],
        draft_model="org/head" if drafts[1] == "Eagle3" else "",
    )  # fmt: skip

    def worker(mode):
        ranks = draw(st.sampled_from([1, 2, 8]))
        experts = draw(st.sampled_from([None, 1, ranks]))
        return Worker(
            draw(st.integers(1, 3)), mode=mode, tp=draw(st.sampled_from([1, 4])),
            attention_dp=ranks, moe_ep=experts,
            wideep=(experts or 1) > 1 and draw(st.booleans()),
            prefix_caching=draw(st.booleans()), kv_blocks=100, max_num_seqs=draw(counts),
            max_num_batched_tokens=draw(counts),
            memory_fraction=draw(st.none() | st.floats(0.1, 1)), speculative=speculative,
            kv_offload=draw(st.none() | (st.integers(1, 1000) | amounts).map(KvOffload)),
            frontend_decoding=draw(st.booleans()),
            embedding_cache_gib=draw(st.none() | amounts),
        )  # fmt: skip

    modes = draw(st.sampled_from([["aggregated"], ["prefill", "decode"]]))
    return Configuration(
        "any", "baseline", [worker(mode) for mode in modes],
        router=draw(st.sampled_from(get_args(RouterMode))),
        block_size=draw(st.sampled_from([16, 32, 64])),
    )  # fmt: skip


def benchmark_with(configuration: Configuration, engine: str) -> Benchmark:
    """A benchmark that has this configuration on this engine."""
    return Benchmark(
        name="any", question="?", model="Qwen/Qwen3-32B", engine=engine,
        hardware=Hardware("H200", 200, kv_transfer_gb_per_second=50),
        traffic=MooncakeTrace("conversation"), configurations=[configuration], claims=[],
    )  # fmt: skip
