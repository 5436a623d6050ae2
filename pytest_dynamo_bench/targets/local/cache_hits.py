"""Cached prompt tokens per request, counted from what the engines stored.

Dynamo's round-robin router knows nothing of caches, and the KV router reports what it
expected. The engines publish every block that they store, and a block that they store for a
prompt is one that was not cached. An engine looks for a prompt from its first block on, and
computes everything after the first block that it does not find. So the cached tokens of a
request are its full blocks before the first that was stored for it. This counts in the same way
for every router mode.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.targets.local.engine_events import EngineEvents, Place

# Events carry wall-clock milliseconds of another process; a request's own blocks are stored
# before its first token, give or take that much.
_CLOCK_SLACK_MS = 100.0


# Only a router that chooses among ranks says which it chose.
_ANY_RANK = -1


def _place(record: RequestRecord) -> Place | None:
    """Where the prompt was processed; None where that is not known, or nothing came of it."""
    if record.prefill_worker is None or record.first_token_ms is None:
        return None
    rank = _ANY_RANK if record.prefill_rank is None else record.prefill_rank
    return record.prefill_worker, rank


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
    and rank whose prompt has the block, with all before it, the first whose first token came
    after the event, and that was not charged with it before. Where the rank of a request
    is not known, any rank of its worker counts.

    Args:
        prompts: request id to the prompt's full blocks, as
            :func:`~pytest_dynamo_bench.targets.local.engine_events.chain` names them.
        start_wall_ms: wall clock at the start of the run, to put events on its clock.
        fast_forward: how many times faster than the wall clock that clock runs.
    """
    records = list(records)
    wanting: dict[tuple[Place, int], list[RequestRecord]] = defaultdict(list)
    for record in _by_first_token(records):
        if (place := _place(record)) is not None:
            for block in prompts[record.request_id]:
                wanting[place, block].append(record)
    computed: dict[str, set[int]] = defaultdict(set)
    for place, blocks in events.stored.items():
        for at_ms, block in blocks:
            due = (at_ms - start_wall_ms - _CLOCK_SLACK_MS) * fast_forward
            somewhere = (place[0], _ANY_RANK)
            for record in wanting.get((place, block), []) or wanting.get((somewhere, block), []):
                own = computed[record.request_id]
                if (record.first_token_ms or 0.0) >= due and block not in own:
                    own.add(block)
                    break
    return [
        record
        if _place(record) is None
        else dataclasses.replace(
            record,
            cached_tokens=block_size
            * _blocks_before(prompts[record.request_id], computed[record.request_id]),
        )
        for record in records
    ]


def _blocks_before(prompt: Sequence[int], computed: set[int]) -> int:
    """How many blocks of a prompt come before the first that was computed."""
    places = (place for place, block in enumerate(prompt) if block in computed)
    return next(places, len(prompt))


def with_host_tokens(
    records: Iterable[RequestRecord],
    prompts: Mapping[str, Sequence[int]],
    block_size: int,
    device_blocks: int,
) -> list[RequestRecord]:
    """The records with ``host_tokens`` filled in: what of ``cached_tokens`` a host tier held.

    A host tier is modelled as more blocks of one cache. A block that was found is the host's
    when ``device_blocks`` others were used on that worker and rank since it last was: with
    least-recently-used eviction it would have left the GPU by then.
    """
    records = list(records)
    on_device: dict[Place, OrderedDict[int, None]] = defaultdict(OrderedDict)
    seen: dict[Place, set[int]] = defaultdict(set)
    found: dict[str, int] = {}
    for record in _by_first_token(records):
        place = _place(record)
        if place is None or record.cached_tokens is None:
            continue
        recent, prompt = on_device[place], prompts[record.request_id]
        cached = prompt[: record.cached_tokens // block_size]
        # Two prompts in work at once can share a block before either has had its first token.
        hosts = sum(block in seen[place] and block not in recent for block in cached)
        found[record.request_id] = block_size * hosts
        seen[place].update(prompt)
        for block in prompt:
            recent[block] = None
            recent.move_to_end(block)
        while len(recent) > device_blocks:
            recent.popitem(last=False)
    return [
        dataclasses.replace(record, host_tokens=found.get(record.request_id)) for record in records
    ]


def with_hits_of_both_tiers(
    on_gpu: Iterable[RequestRecord], reported: Iterable[RequestRecord]
) -> list[RequestRecord]:
    """The records with ``cached_tokens`` and ``host_tokens`` of a mocker that has a host tier.

    A block that comes back from host memory is stored on the GPU like one that was computed, so
    what the events leave uncounted is the host's. The mocker reports the hits of both.

    Args:
        on_gpu: as :func:`with_cached_tokens` gives them.
        reported: the same requests, with the ``cached_tokens`` of their responses.
    """
    return [
        dataclasses.replace(
            record,
            cached_tokens=both.cached_tokens,
            host_tokens=None
            if both.cached_tokens is None or record.cached_tokens is None
            else max(0, both.cached_tokens - record.cached_tokens),
        )
        for record, both in zip(on_gpu, reported, strict=True)
    ]


def _by_first_token(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    return sorted(records, key=lambda record: record.first_token_ms or float("inf"))
