"""What each new token of a prefill is charged for what it attends to before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pytest_dynamo_bench.benchmark import Worker
from pytest_dynamo_bench.engines import (
    EngineProfile,
    PrefillPricing,
    price_prefills,
    with_surcharge,
)
from pytest_dynamo_bench.targets.replay.arguments import DEFAULT_STEP_TOKENS, engine_key
from pytest_dynamo_bench.traffic import Traffic

PrefixPricing = Literal["none", "traffic", "measured"]
CLOSE_ENOUGH = 0.05
_PILOT_DIVISOR = 10
_LEAST_PILOT_REQUESTS = 500


def priced_prefills(
    worker: Worker,
    profile: EngineProfile,
    traffic: Traffic,
    cached_tokens: Sequence[int] | None,
) -> PrefillPricing:
    """Price the prompts of a traffic; None where no token is cached."""
    inputs = [request.input_tokens for request in traffic.requests]
    step_tokens = worker.max_num_batched_tokens or DEFAULT_STEP_TOKENS
    return price_prefills(profile.tables, inputs, cached_tokens or [0] * len(inputs), step_tokens)


def pilot_of(traffic: Traffic) -> Traffic:
    """The first tenth of a long traffic's sessions; without requests if that saves nothing."""
    sessions = list(dict.fromkeys(request.session_id for request in traffic.requests))
    wanted = set(sessions[: len(sessions) // _PILOT_DIVISOR])
    part = [request for request in traffic.requests if request.session_id in wanted]
    return replace(traffic, requests=part if len(part) >= _LEAST_PILOT_REQUESTS else [])


def is_close(share: float) -> bool:
    return abs(share - 1) <= CLOSE_ENOUGH


def charged_and_source(pricing: PrefillPricing, charged_ms_per_token: float) -> dict[str, float]:
    """What prefilling was charged in a run, and what it would cost by the source."""
    charged_ms = pricing.table_ms + charged_ms_per_token * pricing.new_tokens
    return {
        "surcharge_us_per_token": round(1000 * charged_ms_per_token, 3),
        "charged_seconds": round(charged_ms / 1000, 3),
        "source_seconds": round(pricing.source_ms / 1000, 3),
        "charged_share_of_source": round(charged_ms / max(pricing.source_ms, 1e-9), 4),
    }


def charge(
    arguments: dict[str, Any],
    worker: Worker,
    profile: EngineProfile,
    ms_per_token: float,
    directory: Path,
) -> None:
    """Have the prefilling workers use their profile with a surcharge on new tokens."""
    if ms_per_token == 0:
        return
    path = directory / f"{profile.name}-with-prefix-priced.npz"
    with_surcharge(profile.tables, ms_per_token).write(path)
    name = engine_key(worker)
    arguments[name] = {**arguments[name], "planner_profile_data": str(path)}
