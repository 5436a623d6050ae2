"""The traffic that this machine is sent in place of the published one, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_dynamo_bench.benchmark import (
    Benchmark,
    Configuration,
    ScaleName,
    Size,
    traffic_for,
)
from pytest_dynamo_bench.engines import device_blocks
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.traffic import Concurrency, Traffic, cut, describe, first_turns

# Sessions of a closed loop for each one in flight, where a benchmark's sizes don't say.
_SESSIONS_PER_PLACE: Mapping[ScaleName, int] = {"smoke": 2, "standard": 8, "full": 8}


def sized(benchmark: Benchmark, scale: ScaleName, size: Size, seed: int = 0) -> Traffic:
    """The traffic of a benchmark at one size.

    Args:
        scale: decides how many sessions of a closed loop are sent where ``size`` does not.
        seed: chooses among equally good cuts.

    Raises:
        TrafficError: the traffic cannot be read, or is too short for such a cut.
    """
    if size.traffic is not None:
        return size.traffic.load()
    traffic = benchmark.traffic.load()
    if isinstance(traffic.schedule, Concurrency):
        sessions = size.sessions
        if sessions is None and size.seconds is not None:
            sessions = _SESSIONS_PER_PLACE[scale] * traffic.schedule.sessions
        return first_turns(traffic, sessions, size.turns)
    if size.seconds is None:
        return traffic
    return cut(traffic, size.seconds * size.fast_forward, seed=seed)


def survived(
    benchmark: Benchmark, configuration: Configuration, whole: Traffic, part: Traffic
) -> dict[str, tuple[float, float]]:
    """What a claim about caching and load rests on, in the whole traffic and in what is sent.

    Args:
        configuration: whose workers share the load and whose KV caches are filled.

    Returns:
        By name (with its unit) the value of the whole traffic and that of the part. The load is
        input tokens per second and worker on a fixed schedule, sessions in flight per worker in
        a closed loop. The KV cache is that of all workers that process prompts.
    """
    traffics = [traffic_for(traffic, configuration) for traffic in (whole, part)]
    figures = [describe(traffic) for traffic in traffics]
    workers = configuration.prefill_replicas
    found = {
        "requests": [float(item.requests) for item in figures],
        "mean ISL, tokens": [item.mean_isl for item in figures],
        "mean OSL, tokens": [item.mean_osl for item in figures],
        "reusable prompt blocks, %": [100 * item.reusable_share for item in figures],
    }
    flying = [
        min(traffic.schedule.sessions, item.sessions)
        for traffic, item in zip(traffics, figures, strict=True)
        if isinstance(traffic.schedule, Concurrency)
    ]
    if len(flying) == len(traffics):
        found["sessions in flight per worker"] = [sessions / workers for sessions in flying]
    else:
        found["input tokens/s per worker"] = [item.load_per_worker(workers) for item in figures]
    kv_tokens = _kv_tokens(benchmark, configuration)
    if kv_tokens:
        found["working set over KV cache"] = [item.cache_pressure(kv_tokens) for item in figures]
        if len(flying) == len(traffics):
            found["prompts in flight over KV cache"] = [
                sessions * item.mean_isl / kv_tokens
                for sessions, item in zip(flying, figures, strict=True)
            ]
    return {name: (values[0], values[1]) for name, values in found.items()}


def _kv_tokens(benchmark: Benchmark, configuration: Configuration) -> int:
    """Tokens of KV cache on all workers that process prompts; 0 where that is not known."""
    try:
        return sum(
            worker.replicas
            * worker.attention_dp
            * device_blocks(benchmark, configuration, worker)
            * configuration.block_size
            for worker in configuration.workers
            if worker.mode != "decode"
        )
    except TargetError:
        return 0


def in_words(
    benchmark: Benchmark, configuration: Configuration, size: Size, whole: Traffic, part: Traffic
) -> str:
    """What was scaled, and what of the traffic survived that; empty where nothing was."""
    steps = []
    if part.share != 1 or size.traffic is not None:
        changes = "; ".join(
            f"{name} {_number(before)} → {_number(after)}"
            for name, (before, after) in survived(benchmark, configuration, whole, part).items()
        )
        steps.append(f"published → sent, {configuration.name}: {changes}")
    if size.traffic is not None and size.seconds is not None:
        steps.append(
            "the traffic sent instead of the published one has no duration and is not cut to "
            f"{size.seconds:g} s"
        )
    if size.fast_forward != 1:
        steps.append(
            f"modelled time runs {size.fast_forward:g} times faster than real time, so HTTP, "
            f"routing and tokenizing, which are real, weigh {size.fast_forward:g} times as much"
        )
    if size.ramp_seconds:
        steps.append(f"the first sessions start over {size.ramp_seconds:g} s of modelled time")
    return ". ".join(steps)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"
