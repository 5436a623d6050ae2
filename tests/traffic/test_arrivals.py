"""The resolution of recorded times is found, said, and can be spread within."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench import Benchmark, Configuration, Hardware, Worker
from pytest_dynamo_bench.errors import BenchmarkError, TrafficError
from pytest_dynamo_bench.targets.caveats import of_arrivals
from pytest_dynamo_bench.targets.local.target import LocalOptions, LocalTarget
from pytest_dynamo_bench.traffic import (
    Concurrency,
    FixedSchedule,
    MooncakeTrace,
    SynthesizedMooncake,
    TraceFile,
    Traffic,
    TrafficRequest,
    arrivals,
    cut,
    spread_within_resolution,
)

TRACE = MooncakeTrace("conversation")


def at(times_ms, schedule=None):
    requests = tuple(
        TrafficRequest(f"{n:03d}", f"{n:03d}", 0, at_ms, 0.0, 10, 2, (n,))
        for n, at_ms in enumerate(sorted(times_ms))
    )
    return Traffic(requests, schedule or FixedSchedule(), 512, ("made up",))


def test_the_shipped_trace_was_recorded_every_three_seconds():
    found = arrivals(TRACE.load())
    assert (found.starts, found.instants, found.most_at_once) == (12_031, 1180, 28)
    assert found.resolution_ms == 3000
    assert found.in_bursts and found.mean_at_once == pytest.approx(10.2, abs=0.01)
    assert "12,031 requests at 1,180 distinct times, 10.2 at once every 3,000 ms" in str(found)


@given(
    st.sampled_from([1.0, 40.0, 1000.0, 3000.0, 1 / 7]),
    st.floats(0, 1e6),
    st.integers(0, 10**6),
    st.floats(0.3, 1),
    st.sampled_from([0, 0.005]),
)
def test_a_step_is_found_wherever_the_recording_began_and_if_clocks_tick(
    step, first, seed, busy, off
):
    chance = random.Random(seed)
    counts = [(chance.random() < busy) * chance.randrange(1, 9) for _ in range(150)]
    times = [
        [first + step * (place + off * chance.choice((-1, 0, 1)))] * n
        for place, n in enumerate([1, 1, *counts, 1])
    ]
    found = arrivals(at([at_ms for some in times for at_ms in some]))
    assert found.resolution_ms == pytest.approx(step, rel=2e-3)
    assert found.instants == sum(1 for some in times if some)


@given(st.integers(0, 10**6))
def test_times_without_a_step_show_none(seed):
    chance = random.Random(seed)
    found = arrivals(at([chance.expovariate(1 / 300) + 300 * n for n in range(200)]))
    assert found.resolution_ms is None and not found.in_bursts


def test_whole_milliseconds_are_a_step_too_but_no_bursts():
    chance = random.Random(3)
    found = arrivals(at([float(chance.randrange(10**6)) for _ in range(500)]))
    assert found.resolution_ms == 1 and not found.in_bursts


def test_few_times_show_no_step_and_a_closed_loop_has_none():
    assert arrivals(at([0.0] * 50 + [60_000.0] * 50)).resolution_ms is None
    assert arrivals(at([0.0] * 50 + [60_000.0] * 50)).in_bursts
    assert arrivals(at([0.0, 1.0], Concurrency(2))) is None
    assert arrivals(at([])) is None


def test_what_is_synthesized_from_a_trace_has_its_bursts():
    made = SynthesizedMooncake("conversation", requests=2000, speedup_ratio=2).load()
    assert arrivals(made).in_bursts
    assert arrivals(made).resolution_ms == pytest.approx(1500, rel=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_spread_arrivals_fill_their_step_and_keep_their_order(seed):
    recorded = TRACE.load()
    spread = dataclasses.replace(TRACE, spread_arrivals=True, seed=seed).load()
    assert [r.request_id for r in spread.requests] == [r.request_id for r in recorded.requests]
    moves = []
    for before, after in zip(recorded.requests, spread.requests, strict=True):
        assert dataclasses.replace(after, timestamp_ms=before.timestamp_ms) == before
        moves.append(after.timestamp_ms - before.timestamp_ms)
    assert min(moves) >= 0 and max(moves) < 3004
    # Uniform: each tenth of a step has a tenth of the requests, give or take four deviations.
    tenths = [sum(300 * n <= move < 300 * (n + 1) for move in moves) for n in range(10)]
    assert all(abs(count - 1203.1) < 4 * (12_031 * 0.1 * 0.9) ** 0.5 for count in tenths)
    found = arrivals(spread)
    assert found.instants > 12_000 and found.resolution_ms is None and not found.in_bursts
    assert (
        f"arrivals spread within the 3,000 ms of the recording's resolution, seed {seed}"
        in (spread.history[-1])
    )
    assert (
        f"arrivals spread, seed {seed}"
        in dataclasses.replace(TRACE, spread_arrivals=True, seed=seed).description
    )


def test_a_seed_gives_the_same_times_and_another_others():
    one, same, other = (
        [r.timestamp_ms for r in spread_within_resolution(TRACE.load(), seed).requests]
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_later_turns_go_with_their_session(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = []
    for n in range(40):
        first = {"timestamp": 1000 * (n // 4), "input_length": 500, "output_length": 5}
        rows.append({**first, "session_id": f"s{n}", "hash_ids": [2 * n]})
        rows.append({"session_id": f"s{n}", "delay": 7, "input_length": 500, "output_length": 5,
                     "hash_ids": [2 * n + 1]})  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in (MooncakeTrace(str(path), spread_arrivals=True),
                   TraceFile(str(path), spread_arrivals=True)):  # fmt: skip
        traffic = source.load()
        starts = {}
        for request in traffic.requests:
            assert starts.setdefault(request.session_id, request.timestamp_ms) == (
                request.timestamp_ms
            )
            assert request.turn == 0 or request.delay_ms == 7
        assert list(starts) == [f"s{n}" for n in range(40)]
        assert len(set(starts.values())) == 40


def test_what_cannot_be_spread_is_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="spread_arrivals: concurrency 4 has no arrival times"):
        MooncakeTrace("conversation", Concurrency(4), spread_arrivals=True)
    with pytest.raises(BenchmarkError, match="spread_arrivals: must be True or False, got 3"):
        MooncakeTrace("conversation", spread_arrivals=3)
    with pytest.raises(BenchmarkError, match="seed"):
        MooncakeTrace("conversation", spread_arrivals=True, seed=-1)
    with pytest.raises(TrafficError, match="made up: the timestamps have no coarse steps"):
        spread_within_resolution(at([0.0, 1.0]), 0)


def test_reports_say_that_bursts_are_sent_or_that_the_cut_has_them_no_more():
    whole = TRACE.load()
    (sent,) = of_arrivals(whole, whole)
    assert sent.id == "arrivals-in-bursts" and "10.2 at once every 3,000 ms" in sent.text
    (apart,) = of_arrivals(whole, cut(whole, 30))
    assert apart.id == "bursts-cut-apart"
    assert "10.2 at once every 3,000 ms" in apart.text and "1.0 start at once" in apart.text
    spread = spread_within_resolution(whole, 0)
    assert of_arrivals(spread, spread) == of_arrivals(spread, cut(spread, 30)) == ()
    loop = dataclasses.replace(whole, schedule=Concurrency(8))
    assert of_arrivals(loop, loop) == ()


def test_a_cut_that_keeps_the_bursts_says_so():
    rows = [1000.0 * (n // 50) for n in range(5000)]
    traffic = at(rows)
    (kept,) = of_arrivals(traffic, cut(traffic, 50))
    assert kept.id == "arrivals-in-bursts"


def test_the_local_target_sends_a_cut_without_bursts():
    benchmark = Benchmark(
        name="example", question="?", model="Qwen/Qwen3-32B", hardware=Hardware("H200", 8),
        traffic=TRACE, configurations=[Configuration("agg", "baseline", [Worker(4, tp=2)])],
        claims=[],
    )  # fmt: skip
    sent = LocalTarget(LocalOptions()).traffic(benchmark)
    assert [item.id for item in of_arrivals(TRACE.load(), sent)] == ["bursts-cut-apart"]
    whole = LocalTarget(LocalOptions(scale="full")).traffic(benchmark)
    assert [item.id for item in of_arrivals(TRACE.load(), whole)] == ["arrivals-in-bursts"]
