"""Cached tokens per request, counted from the blocks that the engines stored."""

from __future__ import annotations

import json

from pytest_dynamo_bench.targets.local.cache_hits import read_events, with_cached_tokens
from tests.test_metrics import record

START_MS = 1_000_000.0


def on(worker, index, first_token, cached=None):
    return record(index, chunks=(first_token, first_token + 10), prefill_worker=worker)


def test_a_block_is_charged_to_the_first_request_that_had_it_computed(tmp_path):
    records = [on("a", 1, 500.0), on("a", 2, 900.0), on("b", 3, 950.0)]
    prompts = {"1": [11, 12], "2": [11, 12, 13], "3": [11, 12]}
    path = tmp_path / "events.jsonl"
    lines = [
        {"at_ms": START_MS + 400, "kind": "stored", "worker": "a", "blocks": [11, 12]},
        {"at_ms": START_MS + 800, "kind": "stored", "worker": "a", "blocks": [13]},
        {"at_ms": START_MS + 810, "kind": "prefill", "worker": "a", "tokens": 64, "queued": 0},
        {"at_ms": START_MS + 900, "kind": "stored", "worker": "b", "blocks": [11, 12]},
        {"at_ms": START_MS + 950, "kind": "stored", "worker": "a", "blocks": [99]},
        {"at_ms": START_MS + 960, "kind": "removed", "worker": "a", "count": 3},
        {"at_ms": START_MS + 970, "kind": "unreadable", "reason": "?"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"at_ms": 1, "ki')
    events = read_events(path)
    assert (events.removed_blocks, events.prefill_tokens, events.unreadable) == (3, 64, 1)
    found = with_cached_tokens(records, prompts, events, START_MS, 64)
    assert [item.cached_tokens for item in found] == [0, 128, 0]


def test_a_block_that_was_evicted_and_stored_again_is_charged_again(tmp_path):
    records = [on("a", 1, 500.0), on("a", 2, 5000.0)]
    path = tmp_path / "events.jsonl"
    lines = [
        {"at_ms": START_MS + at, "kind": "stored", "worker": "a", "blocks": [11]}
        for at in (400, 4900)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    prompts = {"1": [11], "2": [11]}
    found = with_cached_tokens(records, prompts, read_events(path), START_MS, 64)
    assert [item.cached_tokens for item in found] == [0, 0]


def test_requests_without_a_worker_or_a_token_are_left_alone(tmp_path):
    records = [record(1), record(2, chunks=(), end_ms=5.0, error="x", prefill_worker="a")]
    found = with_cached_tokens(
        records, {"1": [1], "2": [1]}, read_events(tmp_path / "missing"), START_MS, 64
    )
    assert [item.cached_tokens for item in found] == [None, None]
