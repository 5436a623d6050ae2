"""Benchmarks of NVIDIA Dynamo as tests: what an author of a benchmark imports."""

from pytest_dynamo_bench.benchmark import (
    Benchmark,
    Claim,
    Configuration,
    Goodput,
    Hardware,
    KvOffload,
    SpeculativeDecoding,
    Worker,
)
from pytest_dynamo_bench.traffic import Concurrency, FixedSchedule, MooncakeTrace

__version__ = "0.1.0"

__all__ = [
    "Benchmark",
    "Claim",
    "Concurrency",
    "Configuration",
    "FixedSchedule",
    "Goodput",
    "Hardware",
    "KvOffload",
    "MooncakeTrace",
    "SpeculativeDecoding",
    "Worker",
]
