"""A run in the files that AIPerf writes, so that notebooks made for those read it.

Names, units and structure are those of AIPerf 0.13 (schema 1.4): ``profile_export.jsonl`` with a
line per request and ``profile_export_aiperf.json`` with the aggregates. What only AIPerf itself
can know (its configuration and workers, HTTP timings, telemetry) is left out; ``slos``,
``schedule``, ``simulated`` and ``written_by`` are ours.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from pytest_dynamo_bench.aiperf_results import RECORDS_FILE, SUMMARY_FILE
from pytest_dynamo_bench.arrays import FloatArray
from pytest_dynamo_bench.benchmark import Goodput
from pytest_dynamo_bench.files import whole_file, write_whole
from pytest_dynamo_bench.metric_definitions import METRICS
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.records import RequestRecord, Run

_SCHEMA_VERSION = "1.4"
_FORMAT_OF = "0.13.0"
_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_WRITER = "pytest-dynamo-bench"


def write_aiperf_results(directory: Path, run: Run, goodput: Goodput | None = None) -> list[Path]:
    """Write the records and the aggregates of a run.

    Args:
        directory: made if it does not exist.
        run: also a simulated one; its inter-chunk latencies are left out.
        goodput: the service-level objectives, where there are any.

    Returns:
        The files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / RECORDS_FILE, directory / SUMMARY_FILE]
    with whole_file(paths[0]) as file:
        for row in _rows(run, goodput):
            line = json.dumps(row, separators=(",", ":")) + "\n"
            file.write(line.encode("utf-8", errors="replace"))
    summary = json.dumps(aiperf_summary(run, goodput), indent=2, allow_nan=False)
    write_whole(paths[1], summary.encode("utf-8", errors="replace"))
    return paths


def _rows(run: Run, goodput: Goodput | None) -> Iterator[dict[str, Any]]:
    start_ns = int(datetime.fromisoformat(run.started_at).timestamp() * 1000) * 1_000_000

    def wall_ns(time_ms: float | None) -> int | None:
        return None if time_ms is None else start_ns + round(time_ms * 1e6)

    sessions: dict[str, int] = {}
    metrics = Metrics(run, goodput)
    computed = iter(_computed(metrics))
    for record in metrics.requests.in_order(metrics.requests.in_due_order):
        counts = record.succeeded and record.chunk_ms
        number = sessions.setdefault(record.session_id, len(sessions))
        sent_ms = record.scheduled_ms if record.sent_ms is None else record.sent_ms
        row: dict[str, Any] = {
            "metadata": {
                "session_num": number,
                "x_request_id": record.request_id,
                "x_correlation_id": record.session_id,
                "conversation_id": record.session_id,
                "turn_index": record.turn,
                "credit_issued_ns": wall_ns(record.scheduled_ms),
                "request_start_ns": wall_ns(sent_ms),
                "request_end_ns": wall_ns(sent_ms if record.end_ms is None else record.end_ms),
                "worker_id": record.decode_worker or _WRITER,
                "record_processor_id": _WRITER,
                "benchmark_phase": "profiling",
                "was_cancelled": False,
            },
            "metrics": _metrics(record, run.simulated, next(computed))
            if counts
            else {"error_isl": {"value": record.input_tokens, "unit": "tokens"}},
        }
        if not record.succeeded:
            row["error"] = {"type": "RequestError", "message": record.error}
            if record.status and record.status >= 400:
                row["error"]["code"] = record.status
        yield row


def _computed(metrics: Metrics) -> Iterator[dict[str, tuple[Any, str]]]:
    """For each request that counts, in order, the metrics that AIPerf has of single requests."""
    columns = metrics.columns
    wanted = {
        metric.name: (columns.of(metric.name).tolist(), metric.aiperf_unit)
        for metric in METRICS.values()
        if metric.kind == "distribution" and metric.aiperf_unit
    }
    if columns.limits:
        good = columns.of("goodput").astype(int).tolist()
        wanted["good_request_count"] = good, "requests"
    for index in range(len(columns)):
        yield {
            name: (values[index], unit)
            for name, (values, unit) in wanted.items()
            if not math.isnan(values[index])
        }


def _metrics(
    record: RequestRecord, simulated: bool, computed: Mapping[str, tuple[Any, str]]
) -> dict[str, Any]:
    found: dict[str, tuple[Any, str]] = {
        "input_sequence_length": (record.input_tokens, "tokens"),
        "usage_prompt_tokens": (record.prompt_tokens, "tokens"),
        "output_sequence_length": (record.completion_tokens, "tokens"),
        "usage_completion_tokens": (record.completion_tokens, "tokens"),
        "usage_prompt_cache_read_tokens": (record.cached_tokens, "tokens"),
        **computed,
    }
    gaps = np.diff(record.chunk_ms).tolist()
    if gaps and not simulated:
        found["inter_chunk_latency"] = (gaps, "ms")
        found["time_to_second_token"] = (gaps[0], "ms")
    if record.completion_tokens and record.output_tokens:
        off = 100 * (record.completion_tokens - record.output_tokens) / record.output_tokens
        found["osl_mismatch_diff_pct"] = (off, "%")
    return {
        name: {"value": value, "unit": unit}
        for name, (value, unit) in found.items()
        if value is not None
    }


def aiperf_summary(run: Run, goodput: Goodput | None = None) -> dict[str, Any]:
    """The aggregates of a run under AIPerf's names."""
    metrics = Metrics(run, goodput)
    good = metrics.columns
    failed = len(run.records) - len(good)
    isl, osl = good.input_tokens, good.or_zero(good.completion_tokens)
    summary: dict[str, Any] = {
        "schema_version": _SCHEMA_VERSION,
        "aiperf_version": _FORMAT_OF,
        "written_by": f"{_WRITER} {metadata.version(_WRITER)}, in the format of AIPerf",
        "benchmark_id": f"{run.benchmark}/{run.configuration}/{run.target}",
        "simulated": run.simulated,
        "request_count": _single("requests", len(good)),
        "output_sequence_length": _distribution("tokens", osl),
        "input_sequence_length": _distribution("tokens", isl),
        "total_output_tokens": _single("tokens", osl.sum()),
        "total_isl": _single("tokens", isl.sum()),
        "total_osl": _single("tokens", osl.sum()),
        "benchmark_duration": _single("sec", metrics.duration_seconds),
        "error_request_count": _single("requests", failed),
        "error_summary": _errors(metrics.requests.texts("error")),
        "was_cancelled": bool(run.problems),
        "is_complete": not run.problems,
        "slos": goodput.limits if goodput else {},
        "schedule": run.traffic.get("schedule"),
        "start_time": _local_time(run, 0.0),
        "end_time": _local_time(run, metrics.duration_seconds),
    }
    for name, metric in METRICS.items():
        if not metric.aiperf_unit or (metric.needs_limits and goodput is None):
            continue
        if metric.distribution:
            values = metrics.sample(f"{name}.mean").values
            summary[name] = _distribution(metric.aiperf_unit, values)
        else:
            summary[name] = _single(metric.aiperf_unit, metrics.value(name))
    if goodput is not None:
        count = metrics.columns.of("goodput").sum()
        summary["good_request_count"] = _single("requests", count)
    return {name: value for name, value in summary.items() if value is not None}


def _single(unit: str, value: float) -> dict[str, Any] | None:
    return {"unit": unit, "avg": float(value)} if np.isfinite(value) else None


def _distribution(unit: str, values: Sequence[float] | FloatArray) -> dict[str, Any] | None:
    if len(values) == 0:
        return None
    array = np.asarray(values, dtype=float)
    ranks = np.percentile(array, _PERCENTILES).tolist()
    return {
        "unit": unit,
        "avg": float(array.mean()),
        **{f"p{rank}": value for rank, value in zip(_PERCENTILES, ranks, strict=True)},
        "min": float(array.min()),
        "max": float(array.max()),
        "std": float(array.std()),
        "count": len(array),
        "sum": float(array.sum()),
    }


def _errors(errors: Sequence[str | None]) -> list[dict[str, Any]]:
    return [
        {"error_details": {"type": "RequestError", "message": message}, "count": count}
        for message, count in Counter(filter(None, errors)).items()
    ]


def _local_time(run: Run, seconds: float) -> str | None:
    if not np.isfinite(seconds):
        return None
    begun = datetime.fromisoformat(run.started_at).astimezone(UTC)
    return (begun + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()
