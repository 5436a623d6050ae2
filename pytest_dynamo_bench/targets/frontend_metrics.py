"""What Dynamo's frontend says of itself on ``/metrics``."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from pytest_dynamo_bench.outside import Amount
from pytest_dynamo_bench.plain_text import one_line

FILE = "frontend-metrics.txt"
_SECONDS = 30.0
_MOST_BYTES = 64 * 2**20
_KEPT = (
    "dynamo_frontend_requests_total",
    "dynamo_frontend_input_sequence_tokens_sum",
    "dynamo_frontend_output_tokens_total",
    "dynamo_frontend_cached_tokens_sum",
    "dynamo_frontend_time_to_first_token_seconds_sum",
    "dynamo_frontend_time_to_first_token_seconds_count",
    "dynamo_component_router_kv_hit_rate_sum",
    "dynamo_component_router_kv_hit_rate_count",
    _BEST := "dynamo_component_router_kv_best_eligible_cached_prefix_tokens_total",
    _CHOSEN := "dynamo_component_router_kv_selected_cached_prefix_tokens_total",
)
_OURS = re.compile(rf"({'|'.join(_KEPT)})(?![A-Za-z0-9_:])").match


async def scrape(
    client: httpx.AsyncClient, directory: Path, redact: Callable[[str], str] = str
) -> tuple[dict[str, float], list[str]]:
    """The counters that describe a run, and what is missing of them; it never fails.

    Args:
        client: of the frontend.
        directory: gets the whole of ``/metrics``.
        redact: takes secrets out of it.

    Returns:
        As :func:`summarize`.
    """
    try:
        async with asyncio.timeout(_SECONDS):
            text = await _text(client)
    except TimeoutError:
        return {}, [_missing(f"it did not answer within {_SECONDS:g} s")]
    except (httpx.HTTPError, ValueError) as error:
        return {}, [_missing(f"{type(error).__name__} {one_line(str(error))}".rstrip())]
    text = redact(text)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).write_text(text, encoding="utf-8", errors="replace")
    return summarize(text)


async def _text(client: httpx.AsyncClient) -> str:
    # The whole has a limit above; this one is for how long the server may say nothing.
    async with client.stream("GET", "/metrics", timeout=_SECONDS) as response:
        response.raise_for_status()
        content = bytearray()
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > _MOST_BYTES:
                raise ValueError(f"it is longer than {_MOST_BYTES // 2**20} MiB")
    return content.decode("utf-8", "replace")


def _missing(why: str) -> str:
    return (
        f"the frontend's counters (requests, tokens, the router's mean expectation) are missing: "
        f"/metrics could not be read: {why}"
    )


def summarize(text: str) -> tuple[dict[str, float], list[str]]:
    """The counters that describe a run, summed over their labels.

    Args:
        text: the response of ``/metrics``, Prometheus exposition format.

    Returns:
        Counters by name; ``router_kv_hit_rate``, the router's mean expectation per request,
        is added where the router has one, and where it says what its workers had cached
        ``router_given_up_share``: prompt tokens that another worker had cached beyond those of the
        worker that it chose / prompt tokens. The choice of decode workers is no part of that.
        And notes of lines that could not be read: they are left out.
    """
    sums: dict[str, float] = defaultdict(float)
    unreadable = []
    # Line by line, so that one which is malformed costs itself only.
    for line in filter(_OURS, text.split("\n")):
        try:
            found = [s for f in text_string_to_metric_families(line) for s in f.samples]
            samples = {
                sample.name: msgspec.convert(sample.value, Amount)
                for sample in found
                if sample.name not in (_BEST, _CHOSEN) or sample.labels.get("phase") != "decode"
            }
        except (ValueError, IndexError, KeyError):
            unreadable.append(line)
        else:
            for name, value in samples.items():
                sums[name] += value
    count = sums.get("dynamo_component_router_kv_hit_rate_count", 0.0)
    if count:
        rate = sums["dynamo_component_router_kv_hit_rate_sum"] / count
        if rate <= 1:
            sums["router_kv_hit_rate"] = rate
    prompts = sums.get("dynamo_frontend_input_sequence_tokens_sum", 0.0)
    if prompts and _BEST in sums and _CHOSEN in sums:
        given_up = (sums[_BEST] - sums[_CHOSEN]) / prompts
        if 0 <= given_up <= 1:
            sums["router_given_up_share"] = given_up
    notes = []
    if unreadable:
        notes.append(
            f"{len(unreadable)} line{'s' * (len(unreadable) > 1)} of the frontend's /metrics could "
            f"not be read and were ignored: {one_line(unreadable[0], 120)}"
        )
    return dict(sums), notes
