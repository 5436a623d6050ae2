"""What Dynamo's frontend says of itself on ``/metrics``."""

from __future__ import annotations

from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

_KEPT = (
    "dynamo_frontend_requests_total",
    "dynamo_frontend_input_sequence_tokens_sum",
    "dynamo_frontend_output_tokens_total",
    "dynamo_frontend_cached_tokens_sum",
    "dynamo_frontend_time_to_first_token_seconds_sum",
    "dynamo_frontend_time_to_first_token_seconds_count",
    "dynamo_component_router_kv_hit_rate_sum",
    "dynamo_component_router_kv_hit_rate_count",
)


def summarize(text: str) -> dict[str, float]:
    """The counters that describe a run, summed over their labels.

    Args:
        text: the response of ``/metrics``, Prometheus exposition format.

    Returns:
        Counters by name; ``router_kv_hit_rate``, the router's mean expectation per request,
        is added where the router has one.
    """
    sums: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in _KEPT:
                sums[sample.name] += sample.value
    count = sums.get("dynamo_component_router_kv_hit_rate_count", 0.0)
    if count:
        sums["router_kv_hit_rate"] = sums["dynamo_component_router_kv_hit_rate_sum"] / count
    return dict(sums)
