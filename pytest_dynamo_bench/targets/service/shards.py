"""One traffic sent by several processes: dealt out, put together again, and packed for the way.

A shard is a separate traffic with the same clock: whole sessions, due when they were due. What it
measured is put back on the common clock by how far its own clock was off.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.load.chat import Dialect
from pytest_dynamo_bench.outside import Amount, decoded
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.targets.service.address import Access, Address
from pytest_dynamo_bench.targets.service.probe import Service
from pytest_dynamo_bench.traffic import Concurrency, FixedSchedule, Traffic, TrafficRequest
from pytest_dynamo_bench.traffic.images import NoiseImages

_TIMES = ("scheduled_ms", "sent_ms", "end_ms")
_RECORD_FIELDS = tuple(item.name for item in dataclasses.fields(RequestRecord))
# A record's fields, in the order of ``_RECORD_FIELDS``, as JSON can have them.
Row = list[Any]
_OTHER_VERSION = (
    "the load generator in the cluster has another version of pytest-dynamo-bench than this "
    "machine; set load.pip or load.image to the same version"
)
_REQUEST_FIELDS = tuple(item.name for item in dataclasses.fields(TrafficRequest))


@dataclass(frozen=True)
class Clock:
    """How far another machine's clock is ahead of ours.

    Attributes:
        offset_ms: its time less ours.
        uncertainty_ms: half the time that the fastest question and answer took.
    """

    offset_ms: float
    uncertainty_ms: float


@dataclass(frozen=True)
class ShardResult:
    """What a shard measured, on its own clock.

    Attributes:
        index: which shard.
        records: with times from the shard's own start.
        started_unix: its own start, seconds since 1970 on its own clock.
        clock: of the machine that it ran on.
        observed: what the service said of itself afterwards.
        files: texts to be kept with the run.
        problems, notes: as of a run.
    """

    index: int
    records: Sequence[RequestRecord]
    started_unix: float
    clock: Clock
    observed: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Merged:
    """All shards on one clock.

    Attributes:
        records: in the order in which requests ended.
        started_unix: when the run was to start, on our clock.
        problems: of the shards, and requests that are missing or came back twice.
        shards: of each shard its clock and how far its start was off, for reports.
        observed: what the service said of itself, as the first shard heard it.
        files: texts to be kept with the run.
        notes: what the first shard missed.
    """

    records: list[RequestRecord]
    started_unix: float
    problems: list[str]
    shards: list[dict[str, float]]
    observed: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def split(traffic: Traffic, count: int) -> list[Traffic]:
    """Deal the sessions of a traffic out, one after the other.

    An open loop stays exactly as it is when all shards start together. In a closed loop each
    shard has its part of the concurrency, and takes its own sessions in order.

    Raises:
        TargetError: there are fewer sessions, or fewer in flight, than shards.
    """
    if count == 1:
        return [traffic]
    order: dict[str, int] = {}
    for request in traffic.requests:
        order.setdefault(request.session_id, len(order))
    if len(order) < count:
        raise TargetError(f"load.shards: {count} shards for {len(order)} sessions; use fewer")
    schedule = traffic.schedule
    if isinstance(schedule, Concurrency) and schedule.sessions < count:
        raise TargetError(
            f"load.shards: {count} shards for {schedule.sessions} sessions in flight; use fewer"
        )
    parts: list[list[TrafficRequest]] = [[] for _ in range(count)]
    for request in traffic.requests:
        parts[order[request.session_id] % count].append(request)
    shards = []
    for index, requests in enumerate(parts):
        own: FixedSchedule | Concurrency = schedule
        if isinstance(schedule, Concurrency):
            share, rest = divmod(schedule.sessions, count)
            own = Concurrency(share + (index < rest))
        history = (*traffic.history, f"shard {index + 1} of {count}")
        part = dataclasses.replace(traffic, requests=tuple(requests), schedule=own, history=history)
        shards.append(part)
    return shards


def merge(results: Sequence[ShardResult], traffic: Traffic, start_unix: float) -> Merged:
    """Put the shards' records on one clock, and see whether all requests came back once.

    Args:
        traffic: what was dealt out.
        start_unix: when all were to start, seconds since 1970 on our clock.
    """
    records: list[RequestRecord] = []
    shards = []
    for result in results:
        late_ms = (result.started_unix - start_unix) * 1000 - result.clock.offset_ms
        records += [_moved(record, late_ms) for record in result.records]
        shards.append(
            {
                "shard": result.index,
                "requests": len(result.records),
                "start_late_ms": round(late_ms, 3),
                "clock_offset_ms": round(result.clock.offset_ms, 3),
                "clock_uncertainty_ms": round(result.clock.uncertainty_ms, 3),
            }
        )
    seen: dict[str, int] = {}
    for record in records:
        seen[record.request_id] = seen.get(record.request_id, 0) + 1
    wanted = {request.request_id for request in traffic.requests}
    problems = [f"shard {r.index}: {problem}" for r in results for problem in r.problems]
    for what, names in (
        ("are missing", sorted(wanted - seen.keys())),
        ("were returned twice", sorted(name for name, n in seen.items() if n > 1)),
        ("were never sent", sorted(seen.keys() - wanted)),
    ):
        if names:
            problems.append(f"{len(names)} requests of the shards {what} ({names[0]}, …)")
    records.sort(key=lambda record: (record.end_ms or 0.0, record.request_id))
    first = results[0]
    observed = dict(first.observed)
    generators = [r.observed["load_generator"] for r in results if "load_generator" in r.observed]
    if generators:
        # The gate looks at the one that had most to do.
        observed["load_generator"] = max(generators, key=lambda g: float(g.get("cpu_share", 0)))
    return Merged(records, start_unix, problems, shards, observed, first.files, first.notes)


def _moved(record: RequestRecord, by_ms: float) -> RequestRecord:
    changes: dict[str, Any] = {
        name: value + by_ms for name in _TIMES if (value := getattr(record, name)) is not None
    }
    # A request is due on the common clock: a shard that started late was late.
    changes["scheduled_ms"] = record.scheduled_ms
    chunks = tuple(time + by_ms for time in record.chunk_ms)
    return dataclasses.replace(record, chunk_ms=chunks, **changes)


# -- packing ------------------------------------------------------------------------------------


def pack_order(service: Service, traffic: Traffic, settings: dict[str, Any]) -> bytes:
    """Everything that a shard needs to know, compressed. Keys and headers are not in it.

    Raises:
        TargetError: the traffic has images that are files here.
    """
    images = traffic.images
    if images is not None and not isinstance(images, NoiseImages):
        raise TargetError(
            "image files are not in the cluster; use load.source: url or api-server, or generated "
            "images"
        )
    schedule = traffic.schedule
    order = {
        "url": service.address.url,
        "model": service.model,
        "dialect": dataclasses.asdict(service.dialect),
        "is_dynamo": service.is_dynamo,
        "concurrency": schedule.sessions if isinstance(schedule, Concurrency) else None,
        "block_tokens": traffic.block_tokens,
        "session_header": traffic.session_header,
        "history": list(traffic.history),
        "images": dataclasses.asdict(images) if images is not None else None,
        "requests": [
            [_packed(getattr(request, name)) for name in _REQUEST_FIELDS]
            for request in traffic.requests
        ],
        **settings,
    }
    return gzip.compress(json.dumps(order, separators=(",", ":")).encode(), 6)


def _packed(value: Any) -> Any:
    """Block ids as runs of consecutive ones, which they mostly are; all else as it is."""
    if not isinstance(value, tuple):
        return value
    runs: list[int] = []
    for number in value:
        if runs and number == runs[-2] + runs[-1]:
            runs[-1] += 1
        else:
            runs += [number, 1]
    return runs


def unpack_order(data: bytes) -> tuple[Service, Traffic, dict[str, Any]]:
    """What :func:`pack_order` packed; the settings without what is said by the others."""
    order: dict[str, Any] = json.loads(gzip.decompress(data))
    address = Address(order.pop("url"), Access())
    dialect = order.pop("dialect")
    service = Service(
        address,
        order.pop("model"),
        Dialect(**{**dialect, "words": tuple(dialect["words"]) if dialect["words"] else None}),
        order.pop("is_dynamo"),
    )
    concurrency = order.pop("concurrency")
    requests = []
    for packed in order.pop("requests"):
        values = dict(zip(_REQUEST_FIELDS, packed, strict=True))
        for name, runs in values.items():
            if isinstance(runs, list):
                values[name] = tuple(
                    number
                    for first, length in zip(runs[::2], runs[1::2], strict=True)
                    for number in range(first, first + length)
                )
        requests.append(TrafficRequest(**values))
    schedule = FixedSchedule() if concurrency is None else Concurrency(concurrency)
    images = order.pop("images")
    traffic = Traffic(
        requests, schedule, order.pop("block_tokens"), tuple(order.pop("history")),
        NoiseImages(**images) if images is not None else None,
        session_header=order.pop("session_header", ""),
    )  # fmt: skip
    return service, traffic, order


def pack_brief(record: RequestRecord) -> Row:
    """As much of a record as a display needs: no error, the first and the last chunk only."""
    brief = dataclasses.replace(
        record,
        chunk_ms=(record.chunk_ms[0], record.chunk_ms[-1]) if record.chunk_ms else (),
        chunk_tokens=None,
        error=record.error and "failed",
    )
    return _row(brief)


def pack_result(
    records: Sequence[RequestRecord],
    started_unix: float,
    observed: Mapping[str, Any],
    files: Mapping[str, str],
    problems: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> bytes:
    """What a shard brings back, compressed.

    Args:
        observed: what the service said of itself.
        files: texts to be kept with the run, by name.
        problems, notes: as of a run.
    """
    rows = [_row(record) for record in records]
    content = {
        "fields": _RECORD_FIELDS, "rows": rows, "started_unix": started_unix,
        "observed": observed, "files": files, "problems": problems, "notes": notes,
    }  # fmt: skip
    return gzip.compress(json.dumps(content, separators=(",", ":")).encode(), 6)


def _row(record: RequestRecord) -> Row:
    values = (getattr(record, name) for name in _RECORD_FIELDS)
    return [list(value) if isinstance(value, tuple | array) else value for value in values]


def unpack_record(row: Row) -> RequestRecord:
    """A record of a shard, or as much of it as :func:`pack_brief` packed.

    Raises:
        TargetError: the shard runs another version of this package.
    """
    if len(row) != len(_RECORD_FIELDS):
        raise TargetError(_OTHER_VERSION)
    try:
        record = msgspec.convert(dict(zip(_RECORD_FIELDS, row, strict=True)), RequestRecord)
    except ValueError as error:
        raise TargetError(f"{_OTHER_VERSION} (a record: {error})") from None
    return dataclasses.replace(record, chunk_ms=tuple(record.chunk_ms))


class _Result(msgspec.Struct):
    fields: tuple[str, ...]
    rows: list[Row]
    started_unix: Amount
    observed: dict[str, Any]
    files: dict[str, str]
    problems: list[str]
    notes: list[str]


def unpack_result(data: bytes, index: int, clock: Clock) -> ShardResult:
    """What a shard brought back.

    Raises:
        TargetError: the shard runs another version of this package.
    """
    try:
        content = decoded(gzip.decompress(data), _Result)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise TargetError(f"{_OTHER_VERSION} (its results: {error})") from None
    if content.fields != _RECORD_FIELDS:
        raise TargetError(_OTHER_VERSION)
    records = [unpack_record(row) for row in content.rows]
    return ShardResult(
        index, records, content.started_unix, clock, content.observed, content.files,
        content.problems, content.notes,
    )  # fmt: skip
