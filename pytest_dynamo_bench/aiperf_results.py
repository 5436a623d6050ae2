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
from typing import Annotated, Any, Literal

import msgspec

from pytest_dynamo_bench.errors import ResultsError
from pytest_dynamo_bench.outside import (
    MOST_TOKENS,
    Amount,
    Count,
    Finite,
    Name,
    admitted,
    decoded,
    plain,
    shown,
)
from pytest_dynamo_bench.plain_text import one_line
from pytest_dynamo_bench.records import RequestRecord, possible

RECORDS_FILE = "profile_export.jsonl"
SUMMARY_FILE = "profile_export_aiperf.json"
_MEASURED_PHASE = "profiling"
_LONGEST_ERROR = 2000
_OWN_CONCURRENCY = re.compile(r"concurrency (\d{1,9})")
_MOST_CONCURRENCY = 10**9

# Nanoseconds since 1970, for so long as a date can be made of them.
Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=4 * 10**18)]
_TokenNumber = Annotated[float, msgspec.Meta(ge=0, le=MOST_TOKENS)]


class _Metadata(msgspec.Struct):
    request_start_ns: Nanoseconds
    credit_issued_ns: Nanoseconds | None = None
    request_end_ns: Nanoseconds | None = None
    conversation_id: Name | int | None = None
    session_num: Name | int | None = None
    turn_index: Count | None = None
    benchmark_phase: str = "profiling"
    was_cancelled: bool | None = None
    context_overflow_skip: bool | None = None

    @property
    def due_ns(self) -> int:
        """When AIPerf let the request go."""
        return self.request_start_ns if self.credit_issued_ns is None else self.credit_issued_ns


class _Row(msgspec.Struct):
    """A line of the file of records."""

    metadata: _Metadata
    metrics: dict[str, Any] | None = None
    error: Any = None


@dataclass(frozen=True)
class AiperfResults:
    """One run of AIPerf, without impossible values.

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

    @property
    def command(self) -> str | None:
        """What AIPerf was started with, where the summary says it."""
        about = self.summary.get("run_info")
        found = about.get("cli_command") if isinstance(about, dict) else None
        return one_line(found) if isinstance(found, str) and found else None

    @property
    def version(self) -> str | None:
        """Of AIPerf, where the summary says it."""
        found = self.summary.get("aiperf_version")
        return one_line(found) if isinstance(found, str) else None


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
        raise ResultsError(f"{records_path}: has no measured requests")
    start_ns = min(row.metadata.due_ns for _, row in rows)
    ids = _request_ids([row.metadata for _, row in rows])
    records = []
    for (line, row), request_id in zip(rows, ids, strict=True):
        try:
            records.append(_record(row, request_id, start_ns))
        except (ValueError, RecursionError) as error:
            raise _unreadable(records_path, line, error) from None
    schedule, concurrency = _schedule(summary)
    return AiperfResults(
        path=records_path,
        records=tuple(sorted(map(possible, records), key=lambda r: (r.scheduled_ms, r.request_id))),
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
        raise ResultsError(f"{path}: contains several AIPerf results; give one of: {listed}")
    if (path / SUMMARY_FILE).is_file():
        raise ResultsError(
            f"{path}: has no {RECORDS_FILE}; run AIPerf with --export-level records (its default)"
        )
    raise ResultsError(
        f"{path}: has no {RECORDS_FILE}; give the directory that `aiperf profile "
        "--artifact-dir` wrote"
    )


def _rows(path: Path) -> Iterator[tuple[int, _Row]]:
    """Line numbers and rows of the measured requests."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = decoded(line.decode("utf-8", errors="replace"), _Row)
        except ValueError as error:
            raise _unreadable(path, number, error) from None
        if row.metadata.benchmark_phase == _MEASURED_PHASE:
            yield number, row


def _unreadable(path: Path, line: int, error: Exception) -> ResultsError:
    return ResultsError(f"{path}, line {line}: not an AIPerf record ({one_line(str(error))})")


def _summary(records_path: Path) -> dict[str, Any]:
    stem = records_path.stem
    for name in (SUMMARY_FILE, f"{stem}_aiperf.json", f"{stem}.json"):
        path = records_path.with_name(name)
        if not path.is_file():
            continue
        try:
            summary = plain(path.read_text(encoding="utf-8", errors="replace"))
        except json.JSONDecodeError as error:
            raise ResultsError(f"{path}, line {error.lineno}: is not JSON: {error.msg}") from None
        except (OSError, ValueError) as error:
            raise ResultsError(f"{path}: cannot be read: {error}") from None
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
    said = int(own.group(1)) if own else phase.get("concurrency")
    return "concurrency", said if type(said) is int and 0 < said <= _MOST_CONCURRENCY else None


def _problems(summary: Mapping[str, Any], records: int) -> tuple[str, ...]:
    found = []
    if summary.get("was_cancelled"):
        found.append("AIPerf was cancelled before it finished")
    planned = _measured_phase(summary).get("requests")
    if isinstance(planned, int) and planned > records:
        found.append(f"AIPerf has records of {records} of {planned} requests")
    return tuple(found)


def _request_ids(rows: list[_Metadata]) -> list[str]:
    """Ids that are equal for the same request of another run, and unique in this one.

    A dataset that is cycled through sends a conversation several times; only then the order in
    which sessions began tells its requests apart.
    """
    by_conversation = [f"{row.conversation_id}/{row.turn_index or 0}" for row in rows]
    if len(set(by_conversation)) == len(rows) and all(row.conversation_id for row in rows):
        return by_conversation
    by_session = [f"{row.session_num}/{row.turn_index or 0}" for row in rows]
    if len(set(by_session)) == len(rows):
        return by_session
    return [f"{index:06d}" for index in range(len(rows))]


def _record(row: _Row, request_id: str, start_ns: int) -> RequestRecord:
    metadata, metrics = row.metadata, row.metrics or {}
    sent_ms = (metadata.request_start_ns - start_ns) / 1e6
    end_ns = metadata.request_end_ns
    error = _error(row)
    input_tokens = _tokens(metrics, "input_sequence_length", "error_isl", "usage_prompt_tokens")
    completion = _tokens(metrics, "output_sequence_length", "usage_completion_tokens")
    cached = _value(metrics, "usage_prompt_cache_read_tokens")
    extras: dict[str, Any] = {}
    said = admitted(_Extras, {"usage_prompt_cache_read_tokens": cached}, extras)
    return RequestRecord(
        request_id=request_id,
        session_id=str(metadata.conversation_id or metadata.session_num),
        turn=metadata.turn_index or 0,
        scheduled_ms=(metadata.due_ns - start_ns) / 1e6,
        sent_ms=sent_ms,
        chunk_ms=() if error else _chunks(metrics, sent_ms),
        end_ms=None if end_ns is None else (end_ns - start_ns) / 1e6,
        input_tokens=input_tokens or 0,
        output_tokens=_requested(metrics, completion),
        prompt_tokens=_tokens(metrics, "usage_prompt_tokens", "input_sequence_length"),
        completion_tokens=completion,
        cached_tokens=_whole(said.usage_prompt_cache_read_tokens),
        status=_status(row.error),
        error=error,
        odd=tuple(f"{name}={shown(value)}" for name, value in extras.items()),
    )


class _Extras(msgspec.Struct):
    """What a record is whole without."""

    usage_prompt_cache_read_tokens: _TokenNumber | None = None


def _chunks(metrics: Mapping[str, Any], sent_ms: float) -> tuple[float, ...]:
    first = _number(metrics, "time_to_first_token")
    if first is None:
        raise ValueError("has no time_to_first_token; run AIPerf with --streaming")
    gaps = _value(metrics, "inter_chunk_latency")
    if isinstance(gaps, list):
        times = [_as(Amount, "inter_chunk_latency", gap) for gap in gaps]
        return tuple(accumulate(times, initial=sent_ms + first))
    last = _number(metrics, "request_latency")
    if last is None or last <= first:
        return (sent_ms + first,)
    return (sent_ms + first, sent_ms + last)


def _requested(metrics: Mapping[str, Any], completion: int | None) -> int:
    """Tokens that were asked for: AIPerf says by how many percent the output is off."""
    name = "osl_mismatch_diff_pct"
    difference = _as(Finite | None, name, _value(metrics, name))
    if completion is None:
        return 0
    if difference is None or difference <= -100:
        return completion
    asked: float = _as(_TokenNumber, name, completion / (1 + difference / 100))
    return round(asked)


def _value(metrics: Mapping[str, Any], name: str) -> Any:
    found = metrics.get(name)
    return found.get("value") if isinstance(found, dict) else found


def _number(metrics: Mapping[str, Any], name: str) -> float | None:
    found: float | None = _as(Amount | None, name, _value(metrics, name))
    return found


def _tokens(metrics: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = _as(_TokenNumber | None, name, _value(metrics, name))
        if value is not None:
            return _whole(value)
    return None


def _as(kind: Any, name: str, value: object) -> Any:
    """The value of a metric.

    Raises:
        ValueError: it cannot be that; the message names the metric.
    """
    try:
        return msgspec.convert(value, kind)
    except ValueError:
        raise ValueError(f"invalid value of metric {name!r}: {shown(value)}") from None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _error(row: _Row) -> str | None:
    """Why the request does not count, in one line."""
    error = row.error
    if error:
        details = error if isinstance(error, dict) else {"message": error}
        code, kind = details.get("code"), details.get("type")
        words = [f"HTTP {code}" if code else "", str(kind or ""), str(details.get("message", ""))]
        return one_line(": ".join(word for word in words if word), _LONGEST_ERROR) or "an error"
    if row.metadata.was_cancelled:
        return "cancelled by AIPerf"
    if row.metadata.context_overflow_skip:
        return "skipped by AIPerf: longer than the context"
    return None


def _status(error: object) -> int | None:
    if not error:
        return 200
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else None
