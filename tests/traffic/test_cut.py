"""A cut keeps what a claim about caching rests on, and says what it gives up."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_dynamo_bench import Configuration, SyntheticTraffic, Worker
from pytest_dynamo_bench.benchmark import traffic_for
from pytest_dynamo_bench.errors import TrafficError
from pytest_dynamo_bench.traffic import (
    AgenticCoding,
    Concurrency,
    FixedSchedule,
    MooncakeTrace,
    Traffic,
    cut,
    describe,
    first_turns,
)
from pytest_dynamo_bench.traffic.model import TrafficRequest

WHOLE = MooncakeTrace("conversation").load()
WORKERS = 8
KV_TOKENS = WORKERS * 11_328 * 64


@pytest.mark.parametrize("seconds", [25, 35, 60])
def test_lengths_reuse_and_load_survive_and_cache_pressure_does_not(seconds):
    whole, part = describe(WHOLE), describe(cut(WHOLE, seconds))
    assert part.mean_isl == pytest.approx(whole.mean_isl, rel=0.05)
    assert part.mean_osl == pytest.approx(whole.mean_osl, rel=0.06)
    assert part.reusable_share == pytest.approx(whole.reusable_share, abs=0.02)
    assert part.load_per_worker(WORKERS) == pytest.approx(whole.load_per_worker(WORKERS), rel=0.06)
    # Given up: the whole trace needs 16 times the cache that there is, the cut fits into it.
    assert whole.cache_pressure(KV_TOKENS) == pytest.approx(16.1, abs=0.1)
    assert part.cache_pressure(KV_TOKENS) < 0.4


def test_the_head_of_the_trace_would_not_do():
    head = dataclasses.replace(
        WHOLE, requests=[r for r in WHOLE.requests if r.timestamp_ms < 35_000]
    )
    assert describe(head).reusable_share < 0.1


def test_the_same_seed_gives_the_same_cut_and_another_seed_another():
    assert cut(WHOLE, 20).requests == cut(WHOLE, 20).requests
    assert cut(WHOLE, 20, seed=1).requests != cut(WHOLE, 20).requests


def test_conversations_are_kept_whole_and_requests_keep_their_ids():
    part = cut(WHOLE, 35)
    originals = {request.request_id: request for request in WHOLE.requests}
    kept = {request.request_id for request in part.requests}
    roots = {request.hash_ids[1] for request in part.requests if len(request.hash_ids) > 1}
    for request in WHOLE.requests:
        if len(request.hash_ids) > 1 and request.hash_ids[1] in roots:
            assert request.request_id in kept
    for request in part.requests:
        assert request.hash_ids == originals[request.request_id].hash_ids


def test_traffic_that_is_short_enough_is_not_cut():
    assert cut(WHOLE, 10_000) is WHOLE


def test_sessions_stay_together():
    requests = [
        TrafficRequest(f"{i}", f"s{i // 2}", i % 2, 1000.0 * (i // 2), 5.0, 512, 4, (i,))
        for i in range(400)
    ]
    part = cut(Traffic(requests, FixedSchedule(), 512, ()), 20)
    sessions = [request.session_id for request in part.requests]
    assert all(sessions.count(session) == 2 for session in sessions)


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_length_that_makes_no_sense_is_refused(seconds):
    with pytest.raises(TrafficError, match="must be greater than 0"):
        cut(WHOLE, seconds)


def test_a_cut_that_leaves_next_to_nothing_is_refused():
    requests = [TrafficRequest(f"{i}", f"{i}", 0, 1000.0 * i, 0.0, 512, 4, (i,)) for i in range(30)]
    with pytest.raises(TrafficError, match="leaves 1; make the run longer"):
        cut(Traffic(requests, FixedSchedule(), 512, ()), 0.5)


def closed_loop():
    return SyntheticTraffic(isl=1000, osl=10, requests=40, schedule=Concurrency(8)).load()


def test_a_closed_loop_is_cut_to_first_turns_of_first_sessions_as_they_are():
    whole = AgenticCoding(sessions=40, seed=1, schedule=Concurrency(8)).load()
    part = first_turns(whole, 10, 3)
    kept = list(dict.fromkeys(request.session_id for request in whole.requests))[:10]
    expected = tuple(r for r in whole.requests if r.session_id in kept and r.turn < 3)
    assert part.requests == expected and len(expected) < 31
    assert part.schedule == whole.schedule
    assert part.share == pytest.approx(len(expected) / len(whole.requests))
    assert "first 3 turns of 10 of" in part.history[-1]
    assert first_turns(whole, None) is whole


def test_an_arm_with_fewer_requests_gets_as_large_a_part_of_a_cut():
    shorter = Configuration("c", "baseline", [Worker(1)], requests=20)
    part = traffic_for(first_turns(closed_loop(), 10), shorter)
    assert len(part.requests) == 5
    assert len(traffic_for(part, shorter).requests) == 5
    assert len(traffic_for(closed_loop(), shorter).requests) == 20
