"""A small benchmark for the replay target, and traffic with reuse in it."""

import numpy as np

from pytest_dynamo_bench import (
    Benchmark,
    Configuration,
    FixedSchedule,
    Goodput,
    Hardware,
    MooncakeTrace,
    Worker,
)
from pytest_dynamo_bench.traffic import Traffic, TrafficRequest

AGGREGATED = Configuration("agg", "baseline", [Worker(4, tp=2, kv_blocks=4000)])
SPLIT = Configuration(
    "pd",
    "treatment",
    [
        Worker(3, tp=2, mode="prefill", kv_blocks=4000),
        Worker(1, tp=2, mode="decode", kv_blocks=4000),
    ],
)


class Silent:
    """Progress that nobody watches."""

    def stage(self, name):
        pass

    def requests(self, done, failed, total):
        self.seen = (done, failed, total)


def make_benchmark(*configurations, bandwidth=25.0, **changes):
    fields = {
        "name": "small",
        "question": "Does it?",
        "model": "Qwen/Qwen3-32B",
        "hardware": Hardware("H200", 8, 1, kv_transfer_gb_per_second=bandwidth),
        "traffic": MooncakeTrace("conversation"),
        "configurations": configurations or (AGGREGATED, SPLIT),
        "claims": (),
        "goodput": Goodput(2000, 25),
    }
    return Benchmark(**(fields | changes))


def make_traffic(requests=200, turns=1, schedule=None, seed=0):
    """Prompts of a few thousand tokens from a few families that share their beginning."""
    random = np.random.default_rng(seed)
    rows = []
    next_id = 100
    for session in range(requests // turns):
        prefix = [int(random.integers(0, 8)) * 10 + block for block in range(6)]
        hash_ids = tuple(prefix)
        start = session * 300.0
        tokens = 0
        for turn in range(turns):
            new = int(random.integers(1, 8))
            hash_ids = (*hash_ids, *range(next_id, next_id + new))
            next_id += new
            tokens = len(hash_ids) * 512 - int(random.integers(0, 400))
            rows.append(
                TrafficRequest(
                    f"r{len(rows):05d}", f"s{session}", turn, start, 500.0 * (turn > 0), tokens,
                    int(random.integers(1, 60)), hash_ids,
                )
            )  # fmt: skip
    return Traffic(tuple(rows), schedule or FixedSchedule(), 512, ("made for a test",))
