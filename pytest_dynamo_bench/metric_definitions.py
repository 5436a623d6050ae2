"""All metrics, each in one place; what parses, computes, shows or documents them reads this.

Names and definitions are those of AIPerf's metrics reference, so that numbers can be put
beside numbers measured with it; ``kv_hit_rate``, ``inter_token_gap``, the latencies from the
schedule, the per-GPU forms and the metrics of images are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.metric import Heading, Metric, Need, Table
from pytest_dynamo_bench.plain_text import did_you_mean

if TYPE_CHECKING:
    from pytest_dynamo_bench.columns import Columns

_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)")
_LIMITS: frozenset[Need] = frozenset({"limits"})
_PER_GPU: frozenset[Need] = frozenset({"gpus"})
_EVERY_CHUNK: frozenset[Need] = frozenset({"every chunk"})
_EVERYWHERE: tuple[Table, ...] = ("report", "terminal", "changes", "point", "sweep")
_SHOWN: tuple[Table, ...] = ("report", "terminal")
_SHOWN_WITH_CHANGES: tuple[Table, ...] = ("report", "terminal", "changes", "point")
_AT_POINTS: tuple[Table, ...] = ("point",)


# ---------------------------------------------------------------------------------------
# Formulas of more than a line
# ---------------------------------------------------------------------------------------


def _inter_token_latency(c: Columns) -> Any:
    # One token has no next one, and tokens that all came in one chunk no time between them.
    defined = (c.completion_tokens >= 2) & (c.last_token_ms > c.first_token_ms)
    return c.only((c.last_token_ms - c.first_token_ms) / (c.completion_tokens - 1), defined)


def _gaps_of_tokens(c: Columns) -> Any:
    if c.one_token_each:
        return c.gaps
    # The tokens of a chunk share the time since the chunk before.
    tokens = c.gap_tokens
    return (c.gaps[0] / tokens.clip(1)).repeat(tokens), c.sums(tokens)


def _output_tokens(c: Columns) -> Any:
    return c.or_zero(c.completion_tokens)


def _good_requests(c: Columns) -> Any:
    good: Any = True
    for metric, limit in c.limits.items():
        # A limit on what a request does not have holds.
        good = good & ~(c.of(metric) > limit)
    return good


def _images(c: Columns) -> Any:
    return c.only(c.images, c.images > 0)


def _split(c: Columns) -> Any:
    both = c.known(c.prefill_worker) & c.known(c.decode_worker)
    return c.only(c.prefill_worker != c.decode_worker, both), 1


def _same_worker(c: Columns) -> Any:
    before = c.of_turn_before(c.prefill_worker)
    return c.only(c.prefill_worker == before, c.known(c.prefill_worker) & c.known(before)), 1


def _tokens_per_step(c: Columns) -> Any:
    # The pass that yields the first token, and with drafts some more, is not among the steps.
    return c.only(c.completion_tokens, c.completion_tokens > 0), c.decode_steps + 1


# ---------------------------------------------------------------------------------------
# The metrics, in the order in which they are shown
# ---------------------------------------------------------------------------------------

_BUILT_IN = (
    Metric("time_to_first_token", "ms", "lower", "distribution",
        "from handing the request to the socket to the first chunk with content",
        lambda c: c.first_token_ms - c.sent_ms, short_names=("ttft",), label="TTFT", queued=True,
        headline=True, aiperf_unit="ms",
        headings=(
            Heading("mean", "TTFT mean", "TTFT\nmean", _EVERYWHERE, 1),
            Heading("p50", "TTFT p50", "TTFT\np50", ("report", "terminal", "point")),
            Heading("p99", "TTFT p99", "TTFT\np99", _EVERYWHERE, 6),
        )),
    Metric("inter_token_latency", "ms", "lower", "distribution",
        "per request: (request_latency - time_to_first_token) / (output tokens - 1). This is "
        "AIPerf's ITL and vLLM's TPOT (time per output token); vLLM's ITL is inter_token_gap",
        _inter_token_latency, short_names=("itl", "tpot"), label="ITL", headline=True,
        aiperf_unit="ms",
        headings=(
            Heading("mean", "ITL mean", "ITL\nmean", _EVERYWHERE, 2),
            Heading("p99", "ITL p99", "ITL\np99", _EVERYWHERE, 7),
        )),
    Metric("inter_chunk_latency", "ms", "lower", "gaps",
        "time between two consecutive chunks with content, over all chunks of all requests",
        lambda c: c.gaps, short_names=("icl",), needs=_EVERY_CHUNK, aiperf_unit="ms"),
    Metric("inter_token_gap", "ms", "lower", "gaps",
        "time between two consecutive tokens, over all tokens of all requests; the tokens of a "
        "chunk share its time; only for chunks with a known number of tokens",
        _gaps_of_tokens, needs=_EVERY_CHUNK),
    Metric("request_latency", "ms", "lower", "distribution",
        "from handing the request to the socket to the last chunk with content",
        lambda c: c.last_token_ms - c.sent_ms, short_names=("latency",), aiperf_unit="ms",
        headings=(Heading("mean", "latency mean", "lat.\nmean", ("report", "changes"), 4),)),
    Metric("time_to_first_token_from_schedule", "ms", "lower", "distribution",
        "from the scheduled time of the request to the first chunk with content; includes time "
        "that the load generator or a full queue held the request back",
        lambda c: c.first_token_ms - c.scheduled_ms, queued=True),
    Metric("request_latency_from_schedule", "ms", "lower", "distribution",
        "from the scheduled time of the request to the last chunk with content",
        lambda c: c.last_token_ms - c.scheduled_ms),
    Metric("schedule_delay", "ms", "lower", "distribution",
        "actual minus scheduled send time: how late the load generator was",
        lambda c: c.sent_ms - c.scheduled_ms),
    Metric("output_token_throughput_per_user", "tokens/s/user", "higher", "distribution",
        "per request: 1000 / inter_token_latency",
        lambda c: 1000 / c.of("inter_token_latency"), aiperf_unit="tokens/sec/user",
        headings=(Heading("mean", "output per user", "tok/s\nper user", _AT_POINTS),)),
    Metric("output_token_throughput", "tokens/s", "higher", "rate",
        "output tokens of all successful requests / benchmark duration",
        _output_tokens, short_names=("throughput",), aiperf_unit="tokens/sec"),
    Metric("output_token_throughput_per_gpu", "tokens/s/GPU", "higher", "rate",
        "output_token_throughput / GPUs of the configuration",
        _output_tokens, needs=_PER_GPU,
        headings=(
            Heading("", "output per GPU", "tok/s\nper GPU", ("report", "changes", "point"), 8),
        )),
    Metric("request_throughput", "requests/s", "higher", "rate",
        "successful requests / benchmark duration",
        lambda c: 1, aiperf_unit="requests/sec",
        headings=(Heading("", "requests per second", "req/s", _AT_POINTS),)),
    Metric("goodput", "requests/s", "higher", "rate",
        "successful requests that meet every SLO / benchmark duration",
        _good_requests, needs=_LIMITS, queued=True, aiperf_unit="requests/sec",
        headings=(Heading("", "goodput", "good-\nput", _SHOWN_WITH_CHANGES, 3),)),
    Metric("goodput_per_gpu", "requests/s/GPU", "higher", "rate",
        "goodput / GPUs of the configuration",
        _good_requests, needs=_LIMITS | _PER_GPU, queued=True,
        headings=(Heading("", "goodput per GPU", "good-\nput/GPU", _AT_POINTS),)),
    Metric("kv_hit_rate", "share", "higher", "ratio",
        "prompt tokens found in a worker's KV cache / prompt tokens, as counted by the workers",
        lambda c: (c.cached_tokens, c.input_tokens), short_names=("hit_rate",), label="KV hit rate",
        is_share=True, headings=(Heading("", "KV hit rate", "KV\nhits", _EVERYWHERE, 5),)),
    Metric("embedding_hit_rate", "share", "higher", "ratio",
        "images found in a worker's embedding cache / images, as counted by the workers",
        lambda c: (c.or_zero(c.image_cache_hits), _images(c)), is_share=True,
        headings=(Heading("", "embedding hit rate", "image\nhits", _SHOWN),)),
    Metric("worker_decode_share", "share", "lower", "ratio",
        "images decoded by a worker / images; the frontend decodes the others",
        lambda c: (c.or_zero(c.images_decoded), _images(c)), is_share=True),
    Metric("encoder_time", "ms", "lower", "distribution",
        "per request with images: time of the vision encoder, over all of its images",
        lambda c: c.encoder_ms, headings=(Heading("mean", "encoder time", "en-\ncoder", _SHOWN),)),
    Metric("image_decode_time", "ms", "lower", "distribution",
        "per request with images: time to decode them in the worker; 0 if the frontend decodes",
        lambda c: c.image_decode_ms,
        headings=(Heading("mean", "image decoding in the worker", "de-\ncode", _SHOWN),)),
    Metric("image_transfer_time", "ms", "lower", "distribution",
        "per request with images: time to read their pixels from the frontend; 0 if the worker "
        "decodes",
        lambda c: c.image_transfer_ms,
        headings=(Heading("mean", "image transfer", "trans-\nfer", _SHOWN),)),
    Metric("host_hit_rate", "share", "higher", "ratio",
        "prompt tokens found in the host tier of KV offload / prompt tokens",
        lambda c: (c.host_tokens, c.input_tokens), is_share=True),
    Metric("given_up_reuse", "share", "lower", "ratio",
        "prompt tokens that another worker had cached beyond those of the worker that the router "
        "chose / prompt tokens; only on replay of a Dynamo that reports it",
        lambda c: (c.given_up_tokens, c.input_tokens), is_share=True),
    Metric("split_share", "share", "higher", "ratio",
        "requests prefilled and decoded on different workers / requests",
        _split, is_share=True),
    Metric("same_worker_share", "share", "higher", "ratio",
        "later turns prefilled by the worker of the previous turn / later turns",
        _same_worker, is_share=True),
    Metric("kv_transfer_time", "ms", "lower", "distribution",
        "per request: from the end of prefill to the start of decode; Dynamo's upper bound of the "
        "KV transfer time",
        lambda c: c.kv_transfer_ms),
    Metric("tokens_per_step", "tokens/step", "higher", "ratio",
        "output tokens / forward passes that produced them; above 1 with speculative decoding",
        _tokens_per_step),
    Metric("other_rank_share", "share", "higher", "ratio",
        "requests prefilled by another rank of attention data parallelism than their worker's "
        "first / requests",
        lambda c: (c.only(c.prefill_rank > 0, c.known(c.prefill_rank)), 1), is_share=True),
)  # fmt: skip

_metrics = {metric.name: metric for metric in _BUILT_IN}
METRICS: Mapping[str, Metric] = MappingProxyType(_metrics)
"""Every metric by its full name; those that were registered come last."""
SHORT_NAMES: Mapping[str, str] = {
    short: metric.name for metric in _BUILT_IN for short in metric.short_names
}


# ---------------------------------------------------------------------------------------
# Metrics of a benchmark's author
# ---------------------------------------------------------------------------------------


def register_metric(metric: Metric) -> None:
    """Make a metric of your own known: claims can name it, and reports show it.

    In a pytest session the hook ``pytest_dynamo_bench_metrics`` does so. A later one of the same
    name takes the place of an earlier one, as when its module is loaded again.

    Args:
        metric: as :meth:`Metric.of_frame <pytest_dynamo_bench.metric.Metric.of_frame>` makes it.

    Raises:
        BenchmarkError: it is no such metric, or its name is taken.
    """
    if not isinstance(metric, Metric) or not metric.own:
        raise BenchmarkError(f"a metric: must be made by Metric.of_frame, got {metric!r}")
    taken = _metrics.get(metric.name)
    if metric.name in SHORT_NAMES or (taken is not None and not taken.own):
        raise BenchmarkError(f"metric {metric.name!r}: name: is taken by a metric of the plugin")
    _metrics[metric.name] = metric


def forget_metrics(names: Iterable[str]) -> None:
    """Undo :func:`register_metric`; names that are not known do no harm."""
    for name in names:
        if name in _metrics and _metrics[name].own:
            del _metrics[name]


# ---------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------


def find_metric(name: str) -> Metric | None:
    """The metric with this full or short name; None where there is none."""
    return METRICS.get(SHORT_NAMES.get(name, name))


def unknown_metric(name: str) -> str:
    """What to say of a name that no metric has: what was meant, and what there is."""
    meant = did_you_mean(name, [*SHORT_NAMES, *METRICS], after=" ", cutoff=0.5)
    return (
        f"{name!r} is not a metric; {meant}short names: {', '.join(SHORT_NAMES)}; "
        f"metrics: {', '.join(METRICS)}"
    )


def parse_metric(text: str) -> tuple[str, str | None]:
    """Split ``time_to_first_token.p50``, or ``ttft.p50``, into metric and statistic.

    Returns:
        The metric's full name, and the statistic for a distribution or None for a single number.

    Raises:
        ValueError: no such metric, or a statistic that does not fit it.
    """
    name, _, statistic = text.partition(".")
    metric = find_metric(name)
    if metric is None:
        raise ValueError(unknown_metric(name))
    if not metric.distribution:
        if statistic:
            raise ValueError(
                f"{name} is one number for the whole run; write it without .{statistic}"
            )
        return metric.name, None
    if statistic in ("mean", "min", "max") or _PERCENTILE.fullmatch(statistic):
        return metric.name, statistic
    raise ValueError(
        f"{name} is a distribution; add a statistic, for example {name}.mean or {name}.p99"
        + (f" (got .{statistic})" if statistic else "")
    )


def full_name(text: str) -> str:
    """``time_to_first_token.p50`` for ``ttft.p50``: what is stored, compared and shown.

    Raises:
        ValueError: as :func:`parse_metric`.
    """
    return ".".join(filter(None, parse_metric(text)))


def metric_of(text: str) -> Metric:
    """The metric of a name with statistic, such as ``ttft.p50``.

    Raises:
        ValueError: as :func:`parse_metric`.
    """
    return METRICS[parse_metric(text)[0]]


def in_words(text: str) -> str:
    """``p50 time to first token`` for ``ttft.p50``.

    Raises:
        ValueError: as :func:`parse_metric`.
    """
    name, statistic = parse_metric(text)
    return " ".join(filter(None, (statistic, METRICS[name].words)))


def percentile_of(statistic: str) -> float | None:
    """The percentile in a statistic such as ``p99``, or None for mean, min and max."""
    match = _PERCENTILE.fullmatch(statistic)
    return float(match.group(1)) if match else None


def headings(table: Table) -> list[tuple[str, Heading]]:
    """The columns of a table, in order: each with the name of what is in it."""
    return [
        (f"{metric.name}.{heading.statistic}".rstrip("."), heading)
        for metric in METRICS.values()
        for heading in metric.headings
        if table in heading.tables
    ]
