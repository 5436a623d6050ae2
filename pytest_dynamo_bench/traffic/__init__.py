"""Where requests come from: traces, their schedules, the prompts, and cuts for a small machine."""

from pytest_dynamo_bench.traffic.agentic import AgenticCoding, AgenticSession, Lognormal
from pytest_dynamo_bench.traffic.aiperf import aiperf_rows
from pytest_dynamo_bench.traffic.arrivals import Arrivals, arrivals, spread_within_resolution
from pytest_dynamo_bench.traffic.beginning import (
    TRIAL_VARIABLE,
    beginning,
    trial_requests,
    tried,
)
from pytest_dynamo_bench.traffic.cut import cut, first_turns
from pytest_dynamo_bench.traffic.figures import TrafficFigures, describe, ideal_cached_tokens
from pytest_dynamo_bench.traffic.images import ImageFiles, Images, NoiseImages
from pytest_dynamo_bench.traffic.model import (
    Concurrency,
    FixedSchedule,
    Schedule,
    Traffic,
    TrafficRequest,
    TrafficSource,
)
from pytest_dynamo_bench.traffic.mooncake import MooncakeTrace, read_mooncake, write_mooncake
from pytest_dynamo_bench.traffic.multimodal import PooledImages, SlidingWindowImages
from pytest_dynamo_bench.traffic.own import TraceFile, read_traffic
from pytest_dynamo_bench.traffic.synthesizer import SynthesizedMooncake, synthesize
from pytest_dynamo_bench.traffic.synthetic import SyntheticTraffic

__all__ = [
    "TRIAL_VARIABLE",
    "AgenticCoding",
    "AgenticSession",
    "Arrivals",
    "Concurrency",
    "FixedSchedule",
    "ImageFiles",
    "Images",
    "Lognormal",
    "MooncakeTrace",
    "NoiseImages",
    "PooledImages",
    "Schedule",
    "SlidingWindowImages",
    "SynthesizedMooncake",
    "SyntheticTraffic",
    "TraceFile",
    "Traffic",
    "TrafficFigures",
    "TrafficRequest",
    "TrafficSource",
    "aiperf_rows",
    "arrivals",
    "beginning",
    "cut",
    "describe",
    "first_turns",
    "ideal_cached_tokens",
    "read_mooncake",
    "read_traffic",
    "spread_within_resolution",
    "synthesize",
    "trial_requests",
    "tried",
    "write_mooncake",
]
