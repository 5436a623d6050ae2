"""Where requests come from: traces, their schedules, the prompts, and cuts for a small machine."""

from pytest_dynamo_bench.traffic.agentic import AgenticCoding, AgenticSession, Lognormal
from pytest_dynamo_bench.traffic.cut import cut
from pytest_dynamo_bench.traffic.figures import TrafficFigures, describe, ideal_cached_tokens
from pytest_dynamo_bench.traffic.model import (
    Concurrency,
    FixedSchedule,
    Schedule,
    Traffic,
    TrafficRequest,
    TrafficSource,
)
from pytest_dynamo_bench.traffic.mooncake import MooncakeTrace, read_mooncake, write_mooncake
from pytest_dynamo_bench.traffic.own import TraceFile, read_traffic
from pytest_dynamo_bench.traffic.synthesizer import SynthesizedMooncake, synthesize
from pytest_dynamo_bench.traffic.synthetic import SyntheticTraffic

__all__ = [
    "AgenticCoding",
    "AgenticSession",
    "Concurrency",
    "FixedSchedule",
    "Lognormal",
    "MooncakeTrace",
    "Schedule",
    "SynthesizedMooncake",
    "SyntheticTraffic",
    "TraceFile",
    "Traffic",
    "TrafficFigures",
    "TrafficRequest",
    "TrafficSource",
    "cut",
    "describe",
    "ideal_cached_tokens",
    "read_mooncake",
    "read_traffic",
    "synthesize",
    "write_mooncake",
]
