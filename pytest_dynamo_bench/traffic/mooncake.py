"""Traces in Mooncake's format: JSON lines of lengths and prefix-block ids.

A line is ``{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids":
[…]}`` with one id for every 512 tokens. A multi-turn trace adds ``session_id``; a later
turn of a session has ``delay`` (ms after the previous turn) instead of ``timestamp``, and
its ``input_length`` and ``hash_ids`` are those that it adds: its whole prompt is the
previous prompt, the previous output, and the new tokens (the form that AIPerf's
``synthesize agentic-code`` writes).
"""

from __future__ import annotations

import functools
import json
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TextIO

from pytest_dynamo_bench.errors import TrafficError
from pytest_dynamo_bench.outside import MOST_TOKENS, shown
from pytest_dynamo_bench.traffic.arrivals import check_spread, spread_within_resolution
from pytest_dynamo_bench.traffic.fields import number_of, object_of, problem_of_name
from pytest_dynamo_bench.traffic.model import (
    BLOCK_TOKENS,
    FixedSchedule,
    Schedule,
    Traffic,
    TrafficRequest,
    TrafficSource,
)

_IDS = 2**64
SHIPPED = {"conversation": "mooncake_conversation_trace.jsonl.xz"}


@dataclass(frozen=True)
class MooncakeTrace(TrafficSource):
    """A trace in Mooncake's format, as a benchmark's traffic.

    ``trace`` is ``"conversation"`` (12,031 requests of a production chat service, shipped
    with the plugin) or the path of a ``.jsonl`` or ``.jsonl.xz`` file, relative to the
    working directory.

    Traces can have coarse timestamps; the shipped one has ten requests at once every 3,000 ms.
    ``spread_arrivals`` spreads requests within each step, in their order
    (:func:`~pytest_dynamo_bench.traffic.arrivals.spread_within_resolution`), with ``seed``.

    Raises:
        BenchmarkError: spread_arrivals is set for a schedule without arrival times.
        TrafficError: the file does not exist; checked when the benchmark is imported.
    """

    trace: str
    schedule: Schedule = field(default_factory=FixedSchedule)
    spread_arrivals: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_spread(type(self).__name__, self.spread_arrivals, self.seed, self.schedule)
        if self.trace not in SHIPPED and not Path(self.trace).is_file():
            raise TrafficError(
                f"MooncakeTrace: there is no file {self.trace!r} (in {Path.cwd()}), and no trace "
                f"of that name is shipped; shipped: {', '.join(map(repr, SHIPPED))}"
            )

    @property
    def description(self) -> str:
        spread = f", arrivals spread, seed {self.seed}" if self.spread_arrivals else ""
        return f"Mooncake {self.trace} trace, {self.schedule.description}{spread}"

    def load(self) -> Traffic:
        if self.trace in SHIPPED:
            source = resources.files("pytest_dynamo_bench") / "data" / SHIPPED[self.trace]
            with resources.as_file(source) as path:
                return _load(self, path, 0)
        path = Path(self.trace).absolute()
        return _load(self, path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _load(source: MooncakeTrace, path: Path, _modified_ns: int) -> Traffic:
    """Read a trace once, until its file changes."""
    with _open_text(path) as lines:
        requests = read_mooncake(lines, source.trace)
    history = (f"Mooncake trace {source.trace!r}",)
    traffic = Traffic(requests, source.schedule, BLOCK_TOKENS, history)
    return spread_within_resolution(traffic, source.seed) if source.spread_arrivals else traffic


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def read_mooncake(lines: Iterable[str], name: str) -> tuple[TrafficRequest, ...]:
    """Read a trace; ``name`` is what errors call it.

    Returns:
        Requests in the order of their timestamps; turns of a session in their own order.

    Raises:
        TrafficError: a line is not JSON, or a field is missing or cannot be right.
    """
    requests: list[TrafficRequest] = []
    latest: dict[str, TrafficRequest] = {}
    line_number = 0
    try:
        for line_number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = _parse_line(line, name, line_number)
            session = row.get("session_id")
            previous = latest.get(str(session)) if isinstance(session, str | int) else None
            request = _to_request(row, previous, len(requests), name, line_number)
            latest[request.session_id] = request
            requests.append(request)
    except (UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
        raise TrafficError(f"{name}, after line {line_number}: cannot be read: {error}") from error
    if not requests:
        raise TrafficError(f"{name}: has no requests")
    requests.sort(key=lambda request: request.timestamp_ms)
    return tuple(requests)


def _parse_line(line: str, name: str, number: int) -> dict[str, Any]:
    try:
        return object_of(line, f"{name}, line {number}")
    except TrafficError as error:
        raise TrafficError(
            f'{error}: {shown(line.strip())}; a line is {{"timestamp": 0, "input_length": 700, '
            '"output_length": 20, "hash_ids": [1, 2]}'
        ) from None


def _to_request(
    row: dict[str, Any], previous: TrafficRequest | None, index: int, name: str, number: int
) -> TrafficRequest:
    def fail(field_name: str, problem: str) -> TrafficError:
        return TrafficError(f"{name}, line {number}, field {field_name!r}: {problem}")

    new_tokens = int(number_of(row, "input_length", 1, fail, most=MOST_TOKENS))
    output_tokens = int(number_of(row, "output_length", 1, fail, most=MOST_TOKENS))
    new_ids = row.get("hash_ids")
    if not isinstance(new_ids, list) or not all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < _IDS
        for item in new_ids
    ):
        raise fail(
            "hash_ids", f"must be a list of whole numbers from 0 to 2**64 - 1, got {shown(new_ids)}"
        )
    if problem := problem_of_name(row.get("session_id")):
        raise fail("session_id", problem)
    if previous is None:
        timestamp_ms, delay_ms, turn = number_of(row, "timestamp", 0, fail), 0.0, 0
        input_tokens, hash_ids = new_tokens, tuple(new_ids)
    else:
        timestamp_ms, turn = previous.timestamp_ms, previous.turn + 1
        delay_ms = number_of(row, "delay", 0, fail, default=0.0)
        input_tokens = previous.input_tokens + previous.output_tokens + new_tokens
        hash_ids = previous.hash_ids + tuple(new_ids)
    needed = -(-input_tokens // BLOCK_TOKENS)
    if len(hash_ids) != needed:
        raise fail(
            "hash_ids",
            f"{len(hash_ids)} ids for a prompt of {input_tokens} tokens; must be {needed}, one per "
            f"{BLOCK_TOKENS} tokens",
        )
    session_id = row.get("session_id")
    return TrafficRequest(
        request_id=f"{index:06d}",
        session_id=f"{index:06d}" if session_id is None else str(session_id),
        turn=turn,
        timestamp_ms=float(timestamp_ms),
        delay_ms=float(delay_ms),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        hash_ids=hash_ids,
    )


def write_mooncake(requests: Iterable[TrafficRequest], file: TextIO) -> None:
    """Write requests as a Mooncake trace that :func:`read_mooncake` reads back unchanged.

    Raises:
        TrafficError: a request has images, which the format does not support.
    """
    file.writelines(json.dumps(row) + "\n" for row in _rows(requests))


def _rows(requests: Iterable[TrafficRequest]) -> Iterator[dict[str, Any]]:
    latest: dict[str, TrafficRequest] = {}
    for request in requests:
        previous = latest.get(request.session_id)
        row: dict[str, Any] = {}
        if request.images:
            raise TrafficError(
                "a Mooncake trace cannot have images; write these requests as an AIPerf dataset"
            )
        if request.session_id != request.request_id:
            row["session_id"] = request.session_id
        if previous is None:
            row["timestamp"] = request.timestamp_ms
            row["input_length"] = request.input_tokens
            row["hash_ids"] = list(request.hash_ids)
        else:
            row["delay"] = request.delay_ms
            row["input_length"] = (
                request.input_tokens - previous.input_tokens - previous.output_tokens
            )
            row["hash_ids"] = list(request.hash_ids[len(previous.hash_ids) :])
        row["output_length"] = request.output_tokens
        latest[request.session_id] = request
        yield row
