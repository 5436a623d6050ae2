"""Cached prompt tokens per request, counted from what the engines stored.

Dynamo's round-robin router knows nothing of caches, and the KV router reports what it
expected. The engines publish every block that they store, and a block that they store for a
prompt is one that was not cached. So the cached tokens of a request are its tokens in full
blocks less those stored for it. This counts in the same way for every router mode.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.records import RequestRecord

# Events carry wall-clock milliseconds of another process; a request's own blocks are stored
# before its first token, give or take that much.
_CLOCK_SLACK_MS = 100.0


@dataclass(frozen=True)
class EngineEvents:
    """What the event tap wrote.

    Attributes:
        stored: worker to [(wall-clock ms, block hash)], in order.
        removed_blocks: blocks that all workers evicted.
        prefill_tokens: prompt tokens that all workers computed, by forward pass.
        unreadable: events that could not be read.
    """

    stored: Mapping[str, Sequence[tuple[float, int]]]
    removed_blocks: int
    prefill_tokens: int
    unreadable: int


def read_events(path: Path) -> EngineEvents:
    """Read the file of an event tap; a last line that is cut off is left out."""
    stored: dict[str, list[tuple[float, int]]] = defaultdict(list)
    removed = prefill = unreadable = 0
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in text.splitlines():
        try:
            event: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        match event["kind"]:
            case "stored":
                stored[event["worker"]] += [(event["at_ms"], block) for block in event["blocks"]]
            case "removed":
                removed += event["count"]
            case "prefill":
                prefill += event["tokens"]
            case _:
                unreadable += 1
    return EngineEvents(stored, removed, prefill, unreadable)


def with_cached_tokens(
    records: Iterable[RequestRecord],
    prompts: Mapping[str, Sequence[int]],
    events: EngineEvents,
    start_wall_ms: float,
    block_size: int,
    fast_forward: float = 1.0,
) -> list[RequestRecord]:
    """The records with ``cached_tokens`` filled in.

    A stored block is charged to the request that it was stored for: of those on its worker
    whose prompt has the block, the first whose first token came after the event.

    Args:
        prompts: request id to the hashes of the prompt's full blocks, as the engines hash.
        start_wall_ms: wall clock at the start of the run, to put events on its clock.
        fast_forward: how many times faster than the wall clock that clock runs.
    """
    records = list(records)
    wanting: dict[tuple[str, int], list[RequestRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda r: r.first_token_ms or float("inf")):
        if record.prefill_worker is not None and record.first_token_ms is not None:
            for block in set(prompts[record.request_id]):
                wanting[record.prefill_worker, block].append(record)
    computed_blocks: dict[str, int] = defaultdict(int)
    for worker, blocks in events.stored.items():
        for at_ms, block in blocks:
            due = (at_ms - start_wall_ms - _CLOCK_SLACK_MS) * fast_forward
            for record in wanting.get((worker, block), ()):
                if (record.first_token_ms or 0.0) >= due:
                    computed_blocks[record.request_id] += 1
                    break
    return [
        record
        if record.prefill_worker is None or record.first_token_ms is None
        else dataclasses.replace(
            record,
            cached_tokens=block_size
            * (len(prompts[record.request_id]) - computed_blocks[record.request_id]),
        )
        for record in records
    ]
