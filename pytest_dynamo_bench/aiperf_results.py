"""Reads what AIPerf wrote: its records as this package's, request by request.

The files are those of AIPerf 0.13 (schema 1.4): ``profile_export.jsonl`` with a line per
request, and beside it ``profile_export_aiperf.json`` with the aggregates and the command.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from pytest_dynamo_bench.errors import ResultsError
from pytest_dynamo_bench.records import RequestRecord

RECORDS_FILE = "profile_export.jsonl"
SUMMARY_FILE = "profile_export_aiperf.json"
_MEASURED_PHASE = "profiling"
_LONGEST_ERROR = 2000
_OWN_CONCURRENCY = re.compile(r"concurrency (\d+)")


@dataclass(frozen=True)
class AiperfResults:
    """One run of AIPerf.

    Attributes:
        path: the file of records.
        records: in the order in which the requests were due. ``session_id`` and ``turn`` are
            AIPerf's conversation and turn; ``request_id`` is made of both, so that runs of the
            same dataset are paired. ``scheduled_ms`` is when AIPerf let the request go (its
            credit), counted from the first one.
        started_at: wall-clock time of the first credit, ISO 8601, UTC.
        schedule: ``fixed`` when requests were sent at given times, else ``concurrency``.
        concurrency: requests in flight at most, where the summary says it.
        summary: the aggregates as AIPerf wrote them; empty without that file.
        problems: why the run as a whole is not what it should be.
    """

    path: Path
    records: tuple[RequestRecord, ...]
    started_at: str
    schedule: Literal["fixed", "concurrency"] = "concurrency"
    concurrency: int | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_aiperf_results(path: Path) -> AiperfResults:
    """Read a directory that ``aiperf profile`` wrote, or its file of records.

    Requests of the warm-up are left out. Arrival times of the chunks are the time to first
    token and the inter-chunk latencies, added up.

    Raises:
        ResultsError: there is no such file, a line cannot be read, or the responses were not
            streamed; the message names file and line, and what to do.
    """
    records_path = _records_path(path)
    summary = _summary(records_path)
    rows = list(_rows(records_path))
    if not rows:
        raise ResultsError(f"{records_path}: has no measured request")
    start_ns = min(_due_ns(row["metadata"]) for _, row in rows)
    ids = _request_ids([row["metadata"] for _, row in rows])
    records = []
    for (line, row), request_id in zip(rows, ids, strict=True):
        try:
            records.append(_record(row, request_id, start_ns))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _unreadable(records_path, line, error) from None
    schedule, concurrency = _schedule(summary)
    return AiperfResults(
        path=records_path,
        records=tuple(sorted(records, key=lambda r: (r.scheduled_ms, r.request_id))),
        started_at=datetime.fromtimestamp(start_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        schedule=schedule,
        concurrency=concurrency,
        summary=summary,
        problems=_problems(summary, len(records)),
    )


def _records_path(path: Path) -> Path:
    if path.is_file():
        return path
    direct = path / RECORDS_FILE
    if direct.is_file():
        return direct
    found = sorted(path.glob(f"*/{RECORDS_FILE}"))
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(item.parent.name for item in found)
        raise ResultsError(f"{path}: holds several results of AIPerf, name one of: {listed}")
    if (path / SUMMARY_FILE).is_file():
        raise ResultsError(
            f"{path}: has no {RECORDS_FILE}; run AIPerf with --export-level records (its default)"
        )
    raise ResultsError(
        f"{path}: has no {RECORDS_FILE}; give the directory that `aiperf profile "
        "--artifact-dir` wrote"
    )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of the measured requests."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8", errors="replace"))
            phase = row["metadata"].get("benchmark_phase", _MEASURED_PHASE)
            _due_ns(row["metadata"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(path, number, error) from None
        if phase == _MEASURED_PHASE:
            yield number, row


def _unreadable(path: Path, line: int, error: Exception) -> ResultsError:
    return ResultsError(
        f"{path}, line {line}: is not a record of AIPerf ({type(error).__name__}: {error})"
    )


def _summary(records_path: Path) -> dict[str, Any]:
    stem = records_path.stem
    for name in (SUMMARY_FILE, f"{stem}_aiperf.json", f"{stem}.json"):
        path = records_path.with_name(name)
        if not path.is_file():
            continue
        try:
            summary = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        except json.JSONDecodeError as error:
            raise ResultsError(f"{path}, line {error.lineno}: is not JSON: {error.msg}") from None
        return summary if isinstance(summary, dict) else {}
    return {}


def _measured_phase(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    config = summary.get("input_config")
    phases = config.get("phases") if isinstance(config, dict) else None
    for phase in phases if isinstance(phases, list) else []:
        if isinstance(phase, dict) and phase.get("kind", phase.get("name")) == _MEASURED_PHASE:
            return phase
    return {}


def _schedule(summary: Mapping[str, Any]) -> tuple[Literal["fixed", "concurrency"], int | None]:
    """How requests were sent, by AIPerf's configuration or by what an export of ours says."""
    phase = _measured_phase(summary)
    own = _OWN_CONCURRENCY.fullmatch(str(summary.get("schedule")))
    if phase.get("type") == "fixed_schedule" or summary.get("schedule") == "fixed schedule":
        return "fixed", None
    return "concurrency", int(own.group(1)) if own else phase.get("concurrency")


def _problems(summary: Mapping[str, Any], records: int) -> tuple[str, ...]:
    found = []
    if summary.get("was_cancelled"):
        found.append("AIPerf was cancelled before it had ended")
    planned = _measured_phase(summary).get("requests")
    if isinstance(planned, int) and planned > records:
        found.append(f"AIPerf has records of {records} of {planned} requests")
    return tuple(found)


def _due_ns(metadata: Mapping[str, Any]) -> int:
    due = metadata.get("credit_issued_ns")
    return int(metadata["request_start_ns"] if due is None else due)


def _request_ids(rows: list[Mapping[str, Any]]) -> list[str]:
    """Ids that are equal for the same request of another run, and unique in this one.

    A dataset that is cycled through sends a conversation several times; only then the order in
    which sessions began tells its requests apart.
    """
    by_conversation = [f"{row.get('conversation_id')}/{row.get('turn_index') or 0}" for row in rows]
    if len(set(by_conversation)) == len(rows) and all(row.get("conversation_id") for row in rows):
        return by_conversation
    by_session = [f"{row.get('session_num')}/{row.get('turn_index') or 0}" for row in rows]
    if len(set(by_session)) == len(rows):
        return by_session
    return [f"{index:06d}" for index in range(len(rows))]


def _record(row: Mapping[str, Any], request_id: str, start_ns: int) -> RequestRecord:
    metadata, metrics = row["metadata"], row.get("metrics") or {}
    sent_ms = (int(metadata["request_start_ns"]) - start_ns) / 1e6
    end_ns = metadata.get("request_end_ns")
    error = _error(row)
    input_tokens = _number(metrics, "input_sequence_length", "error_isl", "usage_prompt_tokens")
    completion = _number(metrics, "output_sequence_length", "usage_completion_tokens")
    return RequestRecord(
        request_id=request_id,
        session_id=str(metadata.get("conversation_id") or metadata.get("session_num")),
        turn=int(metadata.get("turn_index") or 0),
        scheduled_ms=(_due_ns(metadata) - start_ns) / 1e6,
        sent_ms=sent_ms,
        chunk_ms=() if error else _chunks(metrics, sent_ms),
        end_ms=None if end_ns is None else (int(end_ns) - start_ns) / 1e6,
        input_tokens=int(input_tokens or 0),
        output_tokens=_requested(metrics, completion),
        prompt_tokens=_whole(_number(metrics, "usage_prompt_tokens", "input_sequence_length")),
        completion_tokens=_whole(completion),
        cached_tokens=_whole(_number(metrics, "usage_prompt_cache_read_tokens")),
        status=_status(row),
        error=error,
    )


def _chunks(metrics: Mapping[str, Any], sent_ms: float) -> tuple[float, ...]:
    first = _number(metrics, "time_to_first_token")
    if first is None:
        raise ValueError("has no time_to_first_token; run AIPerf with --streaming")
    gaps = _value(metrics, "inter_chunk_latency")
    if isinstance(gaps, list):
        return tuple(accumulate(map(float, gaps), initial=sent_ms + first))
    last = _number(metrics, "request_latency")
    if last is None or last <= first:
        return (sent_ms + first,)
    return (sent_ms + first, sent_ms + last)


def _requested(metrics: Mapping[str, Any], completion: float | None) -> int:
    """Tokens that were asked for: AIPerf says by how many percent the output is off."""
    difference = _number(metrics, "osl_mismatch_diff_pct")
    if completion is None:
        return 0
    if difference is None or difference <= -100:
        return int(completion)
    return round(completion / (1 + difference / 100))


def _value(metrics: Mapping[str, Any], name: str) -> Any:
    found = metrics.get(name)
    return found.get("value") if isinstance(found, dict) else found


def _number(metrics: Mapping[str, Any], *names: str) -> float | None:
    for name in names:
        value = _value(metrics, name)
        if value is not None:
            return float(value)
    return None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _error(row: Mapping[str, Any]) -> str | None:
    """Why the request does not count, in one line."""
    error = row.get("error")
    if error:
        told = error if isinstance(error, dict) else {"message": error}
        code, kind = told.get("code"), told.get("type")
        words = [f"HTTP {code}" if code else "", str(kind or ""), str(told.get("message", ""))]
        return " ".join(": ".join(word for word in words if word).split())[:_LONGEST_ERROR]
    if row["metadata"].get("was_cancelled"):
        return "cancelled by AIPerf"
    if row["metadata"].get("context_overflow_skip"):
        return "skipped by AIPerf: longer than the context"
    return None


def _status(row: Mapping[str, Any]) -> int | None:
    error = row.get("error")
    if not error:
        return 200
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else None
