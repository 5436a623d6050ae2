"""Requests as Dynamo's replay reads them, and what it says of them as records."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from pytest_dynamo_bench.errors import DeploymentError
from pytest_dynamo_bench.outside import Amount, Count, Tokens, decoded
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.traffic import Traffic, TrafficRequest

_MAX_HASH_ID = 2**32 - 1
_MARKER = "pytest-dynamo-bench keeps the names of sessions"


def write_trace(requests: Sequence[TrafficRequest], path: Path) -> None:
    """Write requests in the Mooncake form that Dynamo's replay reads.

    Unlike the form that AIPerf reads, a later turn has its whole prompt. Every request names
    its session, by which its result is found again; but Dynamo drops the names where no
    session has a second turn. Such a trace gets one more session, of two requests of one token
    each, an hour after the last; its results are dropped. On a fixed schedule that leaves
    all others as they were; in a closed loop a step of the very last requests may have a
    token more.
    """
    ids: Mapping[int, int] | None = None
    if any(request.hash_ids and max(request.hash_ids) > _MAX_HASH_ID for request in requests):
        distinct = dict.fromkeys(block for request in requests for block in request.hash_ids)
        ids = {block: index for index, block in enumerate(distinct)}
    with path.open("w", encoding="utf-8") as file:
        for request in requests:
            hash_ids = request.hash_ids
            row: dict[str, Any] = {
                "session_id": request.session_id,
                "input_length": request.input_tokens,
                "output_length": request.output_tokens,
                "hash_ids": list(hash_ids) if ids is None else [ids[block] for block in hash_ids],
            }
            if request.turn == 0:
                row["timestamp"] = request.timestamp_ms
            else:
                row["delay"] = request.delay_ms
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
        if not any(request.turn for request in requests):
            last_ms = max((request.timestamp_ms for request in requests), default=0.0)
            marker = {
                "session_id": _MARKER, "input_length": 1, "output_length": 1, "hash_ids": [0],
            }  # fmt: skip
            file.write(json.dumps(marker | {"timestamp": last_ms + 3_600_000}) + "\n")
            file.write(json.dumps(marker | {"delay": 0}) + "\n")


class Routed(msgspec.Struct):
    """A choice of the router for a request.

    Attributes:
        pool: the workers that it had: ``agg``, ``prefill`` or ``decode``.
        overlap_regret_blocks: how many more blocks another of them had cached.
    """

    pool: str
    overlap_regret_blocks: Count | None = None


class Row(msgspec.Struct):
    """What Dynamo's replay says of a request."""

    input_length: Tokens
    requested_output_length: Tokens
    output_length: Tokens
    terminal_status: str
    arrival_time_ms: Amount
    session_id: str | None = None
    turn_index: Count | None = None
    first_token_ms: Amount | None = None
    last_token_ms: Amount | None = None
    terminal_time_ms: Amount | None = None
    reused_input_tokens: Tokens | None = None
    first_admission_host_reused_input_tokens: Tokens | None = None
    prefill_route_overlap_tokens: Tokens | None = None
    prefill_worker_idx: Count | None = None
    decode_worker_idx: Count | None = None
    routing_history: list[Routed] = []

    @property
    def given_up_blocks(self) -> int | None:
        """The regret of the choice of the worker that processed the prompt, where it is known."""
        chosen = [each for each in self.routing_history if each.pool != "decode"]
        return chosen[-1].overlap_regret_blocks if chosen else None


def read_rows(path: Path) -> list[Row]:
    """The requests of a simulation's report.

    Raises:
        DeploymentError: a line is none; the message names it and the field.
    """
    rows: list[Row] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(decoded(line, Row))
            except ValueError as error:
                raise DeploymentError(
                    f"what Dynamo's replay wrote cannot be read, request {number} ({error}); is it "
                    "another version of ai-dynamo than the one that is supported?"
                ) from None
    return rows


def matched(requests: Sequence[TrafficRequest], rows: Sequence[Row]) -> list[Row | None]:
    """The result of each request; None where there is none.

    Dynamo leaves the names of sessions out where there is one worker. Requests with the same
    lengths are then taken in the order in which they came and were served, which is the order of
    the trace unless such requests overtake each other.
    """
    if any(row.session_id is not None for row in rows):
        by_turn = {(row.session_id, row.turn_index): row for row in rows}
        return [by_turn.get((request.session_id, request.turn)) for request in requests]
    order: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        order[row.input_length, row.requested_output_length].append(row)
    for alike in order.values():
        alike.sort(key=lambda row: (row.arrival_time_ms, row.first_token_ms or math.inf))
    waiting = {lengths: iter(alike) for lengths, alike in order.items()}
    none: Iterator[Row] = iter(())
    return [
        next(waiting.get((request.input_tokens, request.output_tokens), none), None)
        for request in requests
    ]


def finished(row: Row | None) -> TypeGuard[Row]:
    """Whether a request got all of its answer."""
    return (
        row is not None
        and row.terminal_status == "completed"
        and row.first_token_ms is not None
        and row.last_token_ms is not None
        and row.terminal_time_ms is not None
    )


def to_records(
    traffic: Traffic,
    rows: Sequence[Row | None],
    *,
    disaggregated: bool,
    block_size: int,
    speedup: float = 1.0,
) -> tuple[RequestRecord, ...]:
    """The results of a traffic's requests as records; those without a result have an error.

    The replay knows when the first and the last token came, not those between: ``chunk_ms``
    has these two. It counts time from the first arrival; records count from the start of the
    traffic.

    Args:
        rows: as :func:`matched` gives them.
        block_size: of the KV cache of the workers that process prompts.
    """
    start_ms = min((request.timestamp_ms for request in traffic.requests), default=0.0) / speedup
    return tuple(
        _record(request, row, start_ms, disaggregated, block_size)
        for request, row in zip(traffic.requests, rows, strict=True)
    )


def _record(
    request: TrafficRequest,
    row: Row | None,
    start_ms: float,
    disaggregated: bool,
    block_size: int,
) -> RequestRecord:
    if not finished(row):
        status = "never started" if row is None else f"ended as {row.terminal_status!r}"
        return RequestRecord(
            request.request_id, request.session_id, request.turn, request.timestamp_ms, None, (),
            None, request.input_tokens, request.output_tokens,
            error=f"in the simulation the request {status}",
        )  # fmt: skip
    arrival_ms = row.arrival_time_ms + start_ms
    first_ms, last_ms = (
        (row.first_token_ms or 0.0) + start_ms,
        (row.last_token_ms or 0.0) + start_ms,
    )
    given_up = row.given_up_blocks
    overlap = row.prefill_route_overlap_tokens
    # Dynamo leaves the index out where there is one worker.
    mode = "decode" if disaggregated else "aggregated"
    decode_worker = f"{mode}-{row.decode_worker_idx or 0}"
    prefill_worker = decode_worker
    if row.prefill_worker_idx is not None:
        prefill_worker = f"prefill-{row.prefill_worker_idx}"
    return RequestRecord(
        request_id=request.request_id,
        session_id=request.session_id,
        turn=request.turn,
        scheduled_ms=arrival_ms,
        sent_ms=arrival_ms,
        chunk_ms=(first_ms, last_ms) if row.output_length > 1 else (first_ms,),
        end_ms=(row.terminal_time_ms or 0.0) + start_ms,
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        prompt_tokens=row.input_length,
        completion_tokens=row.output_length,
        cached_tokens=row.reused_input_tokens,
        host_tokens=row.first_admission_host_reused_input_tokens,
        given_up_tokens=None if given_up is None else given_up * block_size,
        router_hit_rate=None if overlap is None else overlap / request.input_tokens,
        prefill_worker=prefill_worker,
        decode_worker=decode_worker,
    )
