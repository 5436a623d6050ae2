"""Cached tokens per request, counted from the blocks that the engines stored."""

from __future__ import annotations

import json
import tempfile
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench.targets.local import cache_hits
from pytest_dynamo_bench.targets.local.cache_hits import (
    with_hits_of_both_tiers,
    with_host_tokens,
)
from pytest_dynamo_bench.targets.local.engine_events import chain, read_events, with_decode_steps
from tests.test_metrics import record

START_MS = 1_000_000.0


def with_cached_tokens(records, prompts, events, start_ms, size):
    chained = {name: chain(prompt) for name, prompt in prompts.items()}
    return cache_hits.with_cached_tokens(records, chained, events, start_ms, size)


def stored(at_ms, worker, *hashes, after=(), rank=0):
    """What the tap writes of blocks that a worker stores after others."""
    whole = (*after, *hashes)
    names = [str(whole[: place + 1]) for place in range(len(whole))]
    blocks = [[name, tokens] for name, tokens in zip(names, whole, strict=True)][len(after) :]
    parent = names[len(after) - 1] if after else None
    event = {"at_ms": START_MS + at_ms, "kind": "stored", "worker": worker, "rank": rank}
    return {**event, "parent": parent, "blocks": blocks}


def on(worker, index, first_token, cached=None):
    return record(index, chunks=(first_token, first_token + 10), prefill_worker=worker)


def test_a_block_is_charged_to_the_first_request_that_had_it_computed(tmp_path):
    records = [on("a", 1, 500.0), on("a", 2, 900.0), on("b", 3, 950.0)]
    prompts = {"1": [11, 12], "2": [11, 12, 13], "3": [11, 12]}
    path = tmp_path / "events.jsonl"
    lines = [
        stored(400, "a", 11, 12),
        stored(800, "a", 13, after=(11, 12)),
        {"at_ms": START_MS + 810, "kind": "pass", "worker": "a", "prefill": 64, "decode": 2},
        stored(900, "b", 11, 12),
        stored(950, "a", 99),
        {"at_ms": START_MS + 960, "kind": "removed", "worker": "a", "count": 3},
        {"at_ms": START_MS + 970, "kind": "unreadable", "reason": "?"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"at_ms": 1, "ki')
    events = read_events(path)
    assert (events.removed_blocks, events.prefill_tokens, events.unreadable) == (3, {"a": 64}, 1)
    assert (events.decode_steps, events.decode_passes) == (2, {("a", 0): [START_MS + 810]})
    found = with_cached_tokens(records, prompts, events, START_MS, 64)
    assert [item.cached_tokens for item in found] == [0, 128, 0]


def test_a_block_that_was_evicted_and_stored_again_is_charged_again(tmp_path):
    records = [on("a", 1, 500.0), on("a", 2, 5000.0)]
    path = tmp_path / "events.jsonl"
    lines = [stored(at, "a", 11) for at in (400, 4900)]
    path.write_text("\n".join(map(json.dumps, lines)))
    prompts = {"1": [11], "2": [11]}
    found = with_cached_tokens(records, prompts, read_events(path), START_MS, 64)
    assert [item.cached_tokens for item in found] == [0, 0]


def test_a_request_is_charged_with_a_block_once(tmp_path):
    """Stored, evicted and stored again before a first token: the second time was for another."""
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(json.dumps(stored(at, "a", 11)) for at in (400, 490)))
    records = [on("a", 1, 500.0), on("a", 2, 900.0)]
    found = with_cached_tokens(records, {"1": [11], "2": [11]}, read_events(path), START_MS, 64)
    assert [item.cached_tokens for item in found] == [0, 0]


def test_a_block_is_another_one_after_other_blocks(tmp_path):
    """Prompts that end alike share nothing; engines publish the blocks of each."""
    path = tmp_path / "events.jsonl"
    lines = [stored(499, "a", 1, 9, 9), stored(501, "a", 2, 9, 9)]
    path.write_text("\n".join(map(json.dumps, lines)))
    records = [on("a", 1, 510.0), on("a", 2, 520.0), on("a", 3, 530.0)]
    prompts = {"1": [1, 9, 9], "2": [2, 9, 9], "3": [2, 9, 9]}
    found = with_cached_tokens(records, prompts, read_events(path), START_MS, 64)
    assert [item.cached_tokens for item in found] == [0, 0, 192]


def test_a_block_after_one_that_nobody_stored_is_told(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(stored(499, "a", 9, after=(1,))))
    events = read_events(path)
    assert (events.unreadable, dict(events.stored)) == (1, {})


class Engine:
    """An engine that takes one prompt at a time, and forgets what it has not used for longest."""

    def __init__(self, blocks):
        self.blocks, self.cache, self.events = blocks, OrderedDict(), []

    def run(self, at_ms, prompt):
        """How many blocks of a prompt it found."""
        prefixes = [tuple(prompt[: n + 1]) for n in range(len(prompt))]
        found = next((n for n, p in enumerate(prefixes) if p not in self.cache), len(prompt))
        new = [prefix for prefix in prefixes[found:] if prefix not in self.cache]
        for prefix in prefixes:
            self.cache[prefix] = None
            self.cache.move_to_end(prefix)
        self.events += [stored(at_ms, "a", p[-1], after=p[:-1]) for p in new]
        while len(self.cache) > self.blocks:
            self.cache.popitem(last=False)
        return found


PROMPTS = st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=8)


def counted(engine, prompts, times_ms):
    records = [on("a", n, at_ms) for n, at_ms in enumerate(times_ms)]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "events.jsonl"
        path.write_text("\n".join(map(json.dumps, engine.events)))
        events = read_events(path)
    by_name = {str(n): prompt for n, prompt in enumerate(prompts)}
    return [
        item.cached_tokens for item in with_cached_tokens(records, by_name, events, START_MS, 4)
    ]


@given(PROMPTS, st.integers(1, 12))
def test_hits_are_those_that_the_engine_had(prompts, blocks):
    engine = Engine(blocks)
    times = [1000.0 * n + 500 for n in range(len(prompts))]
    hits = [4 * engine.run(at_ms - 1, prompt) for at_ms, prompt in zip(times, prompts, strict=True)]
    assert counted(engine, prompts, times) == hits


@given(PROMPTS, st.integers(1, 12), st.lists(st.floats(0, 300), min_size=8, max_size=8))
def test_hits_are_never_less_than_none_nor_more_than_the_prompt(prompts, blocks, times):
    """Also of requests at once, where nobody can say for which a block was stored."""
    engine = Engine(blocks)
    times = times[: len(prompts)]
    for at_ms, prompt in zip(times, prompts, strict=True):
        engine.run(at_ms, prompt)
    for cached, prompt in zip(counted(engine, prompts, times), prompts, strict=True):
        assert 0 <= cached <= 4 * len(prompt)


def test_requests_without_a_worker_or_a_token_are_left_alone(tmp_path):
    records = [record(1), record(2, chunks=(), end_ms=5.0, error="x", prefill_worker="a")]
    found = with_cached_tokens(
        records, {"1": [1], "2": [1]}, read_events(tmp_path / "missing"), START_MS, 64
    )
    assert [item.cached_tokens for item in found] == [None, None]


def test_ranks_of_a_worker_have_caches_of_their_own(tmp_path):
    records = [
        record(i, chunks=(100.0 * i, 100.0 * i + 10), prefill_worker="a", prefill_rank=i % 2)
        for i in (1, 2, 3)
    ]
    path = tmp_path / "events.jsonl"
    lines = [stored(100 * i, "a", 7, rank=i % 2) for i in (1, 2)]
    path.write_text("\n".join(map(json.dumps, lines)))
    prompts = {"1": [7], "2": [7], "3": [7]}
    found = with_cached_tokens(records, prompts, read_events(path), START_MS, 64)
    assert [item.cached_tokens for item in found] == [0, 0, 64]


@pytest.mark.parametrize("fast_forward", [1.0, 4.0])
def test_decode_steps_are_the_passes_between_first_and_last_token(tmp_path, fast_forward):
    path = tmp_path / "events.jsonl"
    lines = [
        {
            "at_ms": START_MS + at,
            "kind": "pass",
            "worker": "d",
            "rank": 0,
            "prefill": 0,
            "decode": n,
        }
        for at, n in ((10, 1), (20, 1), (30, 0), (40, 2), (50, 2), (60, 1))
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    chunks = tuple(fast_forward * at for at in (12.0, 22.0, 43.0, 53.0))
    records = [record(1, chunks=chunks, decode_worker="d"), record(2, chunks=chunks)]
    found = with_decode_steps(records, read_events(path), START_MS, fast_forward)
    assert [item.decode_steps for item in found] == [3, None]


def test_blocks_that_left_the_gpu_since_are_the_hosts():
    """Device of three blocks: of 1 2 | 3 4 | 1 2 the second use of 1 and 2 is too late for it."""
    prompts = {"1": [1, 2], "2": [3, 4], "3": [1, 2], "4": [1, 2]}
    cached = {1: 0, 2: 0, 3: 128, 4: 128}
    records = [
        record(i, chunks=(100.0 * i, 100.0 * i + 10), prefill_worker="a", cached_tokens=cached[i])
        for i in cached
    ]
    found = with_host_tokens(records, prompts, 64, 3)
    assert [item.host_tokens for item in found] == [0, 0, 64, 0]
    found = with_host_tokens(records, prompts, 64, 4)
    assert [item.host_tokens for item in found] == [0, 0, 0, 0]


def test_what_is_reported_and_was_not_on_the_gpu_is_the_hosts():
    on_gpu, reported = (
        [record(i, cached_tokens=tokens) for i, tokens in enumerate(found)]
        for found in ((0, 64, 192, None, 64), (128, 192, 191, 64, None))
    )
    found = with_hits_of_both_tiers(on_gpu, reported)
    assert [item.cached_tokens for item in found] == [128, 192, 191, 64, None]
    assert [item.host_tokens for item in found] == [128, 128, 0, None, None]


def test_where_nobody_says_which_rank_a_block_of_any_rank_is_charged(tmp_path):
    records = [
        record(i, chunks=(1000.0 * i, 1000.0 * i + 10), prefill_worker="a") for i in (1, 2, 3)
    ]
    path = tmp_path / "events.jsonl"
    lines = [stored(1000 * i, "a", 7, rank=i) for i in (1, 2)]
    passes = [
        {"at_ms": START_MS + 300, "kind": "pass", "worker": "a", "rank": rank, "prefill": 0,
         "decode": 1}
        for rank in (0, 1)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines + passes)))
    events = read_events(path)
    found = with_cached_tokens(records, {"1": [7], "2": [7], "3": [7]}, events, START_MS, 64)
    assert [item.cached_tokens for item in found] == [0, 0, 64]
    unknown = [record(1, chunks=(200.0, 400.0), decode_worker="a")]
    assert with_decode_steps(unknown, events, START_MS)[0].decode_steps is None
