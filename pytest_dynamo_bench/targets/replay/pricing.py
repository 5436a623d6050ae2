"""What each new token of a prefill is charged for what it attends to before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pytest_dynamo_bench.engines import PrefillPricing, price_prefills
from pytest_dynamo_bench.engines.profiles import ProfileTables
from pytest_dynamo_bench.traffic import Traffic, ideal_cached_tokens

PrefixPricing = Literal["none", "traffic", "measured"]
CLOSE_ENOUGH = 0.05
_PILOT_DIVISOR = 10
_LEAST_PILOT_REQUESTS = 500


def priced_prefills(
    tables: ProfileTables,
    step_tokens: int,
    traffic: Traffic,
    cached_tokens: Sequence[int] | None = None,
) -> PrefillPricing:
    """Price the prompts of a traffic; None where no token is cached."""
    inputs = [request.input_tokens for request in traffic.requests]
    return price_prefills(tables, inputs, cached_tokens or [0] * len(inputs), step_tokens)


def priced_at_best(tables: ProfileTables, step_tokens: int, traffic: Traffic) -> PrefillPricing:
    """Price the prompts of a traffic with what an ideal cache would hold of them."""
    return priced_prefills(tables, step_tokens, traffic, ideal_cached_tokens(traffic))


def pilot_of(traffic: Traffic) -> Traffic:
    """The first tenth of a long traffic's sessions; without requests if that saves nothing."""
    sessions = list(dict.fromkeys(request.session_id for request in traffic.requests))
    wanted = set(sessions[: len(sessions) // _PILOT_DIVISOR])
    part = [request for request in traffic.requests if request.session_id in wanted]
    return replace(traffic, requests=part if len(part) >= _LEAST_PILOT_REQUESTS else [])


def charged_rightly(pricing: PrefillPricing, charged_ms_per_token: float) -> bool:
    """Whether prefilling is charged what the source says, to 5 %."""
    share = charged_and_source(pricing, charged_ms_per_token)["charged_share_of_source"]
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
