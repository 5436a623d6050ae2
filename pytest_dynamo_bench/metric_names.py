"""The metrics that a claim can name, with unit and meaning.

Names and definitions are those of AIPerf's metrics reference, so that numbers can be put
beside numbers measured with it; ``kv_hit_rate``, ``inter_token_gap``, the latencies from the
schedule, the per-GPU forms and the metrics of images are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

STATISTICS = ("mean", "min", "max", "p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99")
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)")


@dataclass(frozen=True)
class MetricDefinition:
    """A metric: a distribution over requests, or one number for the whole run."""

    name: str
    unit: str
    better: Literal["lower", "higher"]
    distribution: bool
    definition: str
    is_share: bool = False


METRICS: Mapping[str, MetricDefinition] = {
    definition.name: definition
    for definition in (
        MetricDefinition(
            "time_to_first_token",
            "ms",
            "lower",
            True,
            "from handing the request to the socket to the first chunk with content",
        ),
        MetricDefinition(
            "inter_token_latency",
            "ms",
            "lower",
            True,
            "per request: (request_latency - time_to_first_token) / (output tokens - 1)",
        ),
        MetricDefinition(
            "inter_chunk_latency",
            "ms",
            "lower",
            True,
            "time between two consecutive chunks with content, over all chunks of all requests",
        ),
        MetricDefinition(
            "inter_token_gap",
            "ms",
            "lower",
            True,
            "time between two consecutive tokens, over all tokens of all requests; the tokens of "
            "one chunk share the time that it took; only where it is known how many they are",
        ),
        MetricDefinition(
            "request_latency",
            "ms",
            "lower",
            True,
            "from handing the request to the socket to the last chunk with content",
        ),
        MetricDefinition(
            "time_to_first_token_from_schedule",
            "ms",
            "lower",
            True,
            "from the moment the request was due to the first chunk with content: what a user "
            "waits also when the load generator or a full queue kept the request back",
        ),
        MetricDefinition(
            "request_latency_from_schedule",
            "ms",
            "lower",
            True,
            "from the moment the request was due to the last chunk with content",
        ),
        MetricDefinition(
            "schedule_delay",
            "ms",
            "lower",
            True,
            "actual minus scheduled send time: how late the load generator was",
        ),
        MetricDefinition(
            "output_token_throughput_per_user",
            "tokens/s/user",
            "higher",
            True,
            "per request: 1000 / inter_token_latency",
        ),
        MetricDefinition(
            "output_token_throughput",
            "tokens/s",
            "higher",
            False,
            "output tokens of all successful requests / benchmark duration",
        ),
        MetricDefinition(
            "output_token_throughput_per_gpu",
            "tokens/s/GPU",
            "higher",
            False,
            "output_token_throughput / GPUs of the configuration",
        ),
        MetricDefinition(
            "request_throughput",
            "requests/s",
            "higher",
            False,
            "successful requests / benchmark duration",
        ),
        MetricDefinition(
            "goodput",
            "requests/s",
            "higher",
            False,
            "successful requests that meet every service-level objective / benchmark duration",
        ),
        MetricDefinition(
            "goodput_per_gpu",
            "requests/s/GPU",
            "higher",
            False,
            "goodput / GPUs of the configuration",
        ),
        MetricDefinition(
            "kv_hit_rate",
            "share",
            "higher",
            False,
            "prompt tokens found in a worker's KV cache / prompt tokens, as the engines counted",
            is_share=True,
        ),
        MetricDefinition(
            "embedding_hit_rate",
            "share",
            "higher",
            False,
            "images found in a worker's embedding cache / images, as the workers counted",
            is_share=True,
        ),
        MetricDefinition(
            "worker_decode_share",
            "share",
            "lower",
            False,
            "images that a worker decoded itself / images; the frontend decoded the others",
            is_share=True,
        ),
        MetricDefinition(
            "encoder_time",
            "ms",
            "lower",
            True,
            "per request with images: time of the vision encoder, over all of its images",
        ),
        MetricDefinition(
            "image_decode_time",
            "ms",
            "lower",
            True,
            "per request with images: time of decoding them in the worker; 0 where the frontend "
            "decodes",
        ),
        MetricDefinition(
            "image_transfer_time",
            "ms",
            "lower",
            True,
            "per request with images: time of reading their pixels from the frontend; 0 where the "
            "worker decodes",
        ),
        MetricDefinition(
            "host_hit_rate",
            "share",
            "higher",
            False,
            "prompt tokens found in the host tier of KV offload / prompt tokens",
            is_share=True,
        ),
        MetricDefinition(
            "split_share",
            "share",
            "higher",
            False,
            "requests whose prompt was processed by another worker than generated the tokens",
            is_share=True,
        ),
        MetricDefinition(
            "kv_transfer_time",
            "ms",
            "lower",
            True,
            "per request: from the end of the prompt's processing to decoding, Dynamo's own upper "
            "bound of moving its KV cache",
        ),
        MetricDefinition(
            "tokens_per_step",
            "tokens/step",
            "higher",
            False,
            "output tokens / forward passes that yielded them: more than 1 with speculative "
            "decoding",
        ),
        MetricDefinition(
            "other_rank_share",
            "share",
            "higher",
            False,
            "requests whose prompt was processed by another rank of attention data parallelism "
            "than the first of its worker",
            is_share=True,
        ),
    )
}


def parse_metric(text: str) -> tuple[str, str | None]:
    """Split ``time_to_first_token.p50`` into metric and statistic.

    Returns:
        The metric's name, and the statistic for a distribution or None for a single number.

    Raises:
        ValueError: no such metric, or a statistic that does not fit it.
    """
    name, _, statistic = text.partition(".")
    definition = METRICS.get(name)
    if definition is None:
        raise ValueError(f"{name!r} is not a metric; metrics: {', '.join(METRICS)}")
    if not definition.distribution:
        if statistic:
            raise ValueError(
                f"{name} is one number for the whole run; write it without .{statistic}"
            )
        return name, None
    if statistic in ("mean", "min", "max") or _PERCENTILE.fullmatch(statistic):
        return name, statistic
    raise ValueError(
        f"{name} is a distribution; add a statistic, for example {name}.mean or {name}.p99"
        + (f" (got .{statistic})" if statistic else "")
    )


def percentile_of(statistic: str) -> float | None:
    """The percentile in a statistic such as ``p99``, or None for mean, min and max."""
    match = _PERCENTILE.fullmatch(statistic)
    return float(match.group(1)) if match else None
