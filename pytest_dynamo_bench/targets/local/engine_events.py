"""What the engines said of themselves while a run lasted: blocks stored, forward passes made."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pytest_dynamo_bench.outside import Amount, Count, Rank
from pytest_dynamo_bench.records import RequestRecord

Place = tuple[str, int]
"""A worker and one of its ranks of attention data parallelism; the first is 0."""


@dataclass(frozen=True)
class EngineEvents:
    """What the event tap wrote.

    Attributes:
        stored: place to [(wall-clock ms, block)], in order; a block as :func:`chain` names it.
        removed_blocks: blocks that all workers evicted from the GPU; a host tier may keep them.
        prefill_tokens: worker to prompt tokens that it computed, by forward pass.
        decode_passes: place to wall-clock ms at which passes ended that decoded, in order.
        decode_steps: requests that were decoded, summed over all passes.
        unreadable: events that could not be read, or that store a block after an unknown one.
    """

    stored: Mapping[Place, Sequence[tuple[float, int]]]
    removed_blocks: int
    prefill_tokens: Mapping[str, int]
    decode_passes: Mapping[Place, Sequence[float]]
    decode_steps: int
    unreadable: int


_NOTHING = 0


def _chained(before: int, tokens_hash: int) -> int:
    return hash((before, tokens_hash))


def chain(tokens_hashes: Iterable[int]) -> list[int]:
    """Names for the blocks of a prompt, from its first on: each with all that comes before it.

    A cached block holds what was computed after the blocks before it, so that its own tokens
    alone do not say which it is. The names are the same within a process.
    """
    return list(itertools.accumulate(tokens_hashes, _chained, initial=_NOTHING))[1:]


class Event(msgspec.Struct, tag_field="kind", kw_only=True):
    """A line of the event tap's file; times are wall clock."""

    at_ms: Amount
    worker: str
    rank: Rank = 0


class Stored(Event, tag="stored", kw_only=True):
    """Blocks that a worker stored, after one that it has: name and hash of the tokens of each."""

    parent: int | str | None
    blocks: list[tuple[int | str, int]]


class Removed(Event, tag="removed", kw_only=True):
    """Blocks that a worker evicted."""

    count: Count


class Pass(Event, tag="pass", kw_only=True):
    """A forward pass: prompt tokens that it computed, requests that it decoded."""

    prefill: Count
    decode: Count


decode = msgspec.json.Decoder(Stored | Removed | Pass).decode


def read_events(path: Path) -> EngineEvents:
    """Read the file of an event tap; a last line that is cut off is left out."""
    names: dict[Place, dict[int | str | None, int]] = defaultdict(lambda: {None: _NOTHING})
    stored: dict[Place, list[tuple[float, int]]] = defaultdict(list)
    passes: dict[Place, list[float]] = defaultdict(list)
    prefill: dict[str, int] = defaultdict(int)
    removed = steps = unreadable = 0
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            event = decode(line)
        except (ValueError, RecursionError):
            # The last line may have been cut off when the tap was ended.
            unreadable += number < len(lines)
            continue
        place = (event.worker, event.rank)
        match event:
            case Stored() if event.parent in (known := names[place]):
                name = known[event.parent]
                for block, tokens_hash in event.blocks:
                    name = known[block] = _chained(name, tokens_hash)
                    stored[place].append((event.at_ms, name))
            case Stored():
                unreadable += 1
            case Removed():
                removed += event.count
            case Pass():
                prefill[place[0]] += event.prefill
                steps += event.decode
                if event.decode:
                    passes[place].append(event.at_ms)
    for times in passes.values():
        times.sort()
    return EngineEvents(stored, removed, prefill, passes, steps, unreadable)


def with_decode_steps(
    records: Iterable[RequestRecord],
    events: EngineEvents,
    start_wall_ms: float,
    fast_forward: float = 1.0,
) -> list[RequestRecord]:
    """The records with ``decode_steps`` filled in.

    In continuous batching every pass of a worker that decodes takes all of its running requests
    one step further. So a request's steps are the passes of its decode worker between its first
    and its last token. A pass whose tokens were under way at either end makes that one too many
    or too few.

    Args:
        start_wall_ms: wall clock at the start of the run, to put events on its clock.
        fast_forward: how many times faster than the wall clock the records' clock runs.
    """

    def counted(record: RequestRecord) -> RequestRecord:
        first, last = record.first_token_ms, record.last_token_ms
        if record.decode_worker is None or first is None or last is None:
            return record
        rank = record.decode_rank
        if rank is None:
            ranks = [r for worker, r in events.decode_passes if worker == record.decode_worker]
            if len(ranks) > 1:
                # Each rank makes separate passes, and which one it was is not known.
                return record
            rank = ranks[0] if ranks else 0
        passes = events.decode_passes.get((record.decode_worker, rank), ())
        first, last = (start_wall_ms + time_ms / fast_forward for time_ms in (first, last))
        steps = bisect.bisect_right(passes, last) - bisect.bisect_right(passes, first)
        return dataclasses.replace(record, decode_steps=steps)

    return [counted(record) for record in records]
