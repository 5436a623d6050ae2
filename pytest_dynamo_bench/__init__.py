"""Benchmarks of NVIDIA Dynamo as tests: what an author of a benchmark imports."""

from pytest_dynamo_bench.benchmark import (
    Benchmark,
    Claim,
    Configuration,
    Goodput,
    Hardware,
    KvOffload,
    PublishedResults,
    Size,
    SpeculativeDecoding,
    Worker,
)
from pytest_dynamo_bench.metric import Metric
from pytest_dynamo_bench.metric_definitions import register_metric
from pytest_dynamo_bench.traffic import (
    AgenticCoding,
    Concurrency,
    FixedSchedule,
    Lognormal,
    MooncakeTrace,
    PooledImages,
    SlidingWindowImages,
    SynthesizedMooncake,
    SyntheticTraffic,
)

__version__ = "0.1.0"

__all__ = [
    "AgenticCoding",
    "Benchmark",
    "Claim",
    "Concurrency",
    "Configuration",
    "FixedSchedule",
    "Goodput",
    "Hardware",
    "KvOffload",
    "Lognormal",
    "Metric",
    "MooncakeTrace",
    "PooledImages",
    "PublishedResults",
    "Size",
    "SlidingWindowImages",
    "SpeculativeDecoding",
    "SynthesizedMooncake",
    "SyntheticTraffic",
    "Worker",
    "register_metric",
]
