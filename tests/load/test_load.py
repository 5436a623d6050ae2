"""The load generator against a server with known timing and scripted faults."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import statistics

import pytest

from pytest_dynamo_bench.load.chat import count_words
from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.load.generator import LoadGenerator
from pytest_dynamo_bench.traffic import Concurrency, FixedSchedule, Traffic, TrafficRequest
from tests.reference_server import Script, reference_server

pytestmark = [pytest.mark.anyio, pytest.mark.alone]


def request(index, *, at=0.0, session=None, turn=0, delay=0.0, isl=40, osl=8):
    return TrafficRequest(f"{index:03d}", session or f"{index:03d}", turn, at, delay, isl, osl,
                          (index,))  # fmt: skip


def traffic(requests, schedule=None):
    return Traffic(requests, schedule or FixedSchedule(), 512, ())


async def send(script, requests, schedule=None, timeout=5.0, processes=0):
    async with reference_server(script) as server:
        generator = LoadGenerator(
            Server(server.url),
            "a-model",
            request_timeout_seconds=timeout,
            processes=processes,
            count_tokens=count_words,
        )
        ended = []
        await generator.send(traffic(requests, schedule), ended.append)
        records = {record.request_id: record for record in generator.records()}
        assert len(ended) == len(requests)
        return [records[item.request_id] for item in requests], server


@pytest.mark.parametrize("processes", [0, 2])
async def test_sessions_are_named_where_the_traffic_says_so(processes):
    requests = [
        request(i, session=name, turn=turn)
        for i, (name, turn) in enumerate([("a\r\nb: c", 0), ("a\r\nb: c", 1), ("d", 0)])
    ]
    told = dataclasses.replace(traffic(requests), session_header="x-session")
    runs = []
    async with reference_server(Script()) as server:
        for _ in range(2):
            generator = LoadGenerator(Server(server.url), "m", processes=processes)
            await generator.send(told, id)
            assert all(record.error is None for record in generator.records())
            names = [seen.headers["x-session"] for seen in server.seen]
            server.seen.clear()
            assert sorted(map(names.count, set(names))) == [1, 2]
            assert not any("b" in seen.headers for seen in server.seen)
            runs.append(set(names))
    assert not runs[0] & runs[1], "a server could take a session for that of the run before"


async def test_no_session_is_named_otherwise():
    _, server = await send(Script(), [request(1)])
    assert not any("session" in name for name in server.seen[0].headers)


async def test_times_and_tokens_are_those_of_the_server():
    (record,), server = await send(Script(0.05, 0.02), [request(1, isl=100, osl=6)])
    assert record.error is None
    assert (record.prompt_tokens, record.completion_tokens) == (100, 6)
    assert len(record.chunk_ms) == 6
    assert record.first_token_ms is not None
    assert record.first_token_ms - record.sent_ms >= 50
    # Written to received on loopback: the same gaps, give or take scheduling.
    written = server.seen[0].written
    for mine, theirs in zip(_gaps(record.chunk_ms), _gaps(written), strict=True):
        assert mine == pytest.approx(theirs * 1000, abs=15)


def _gaps(times):
    return [b - a for a, b in itertools.pairwise(times)]


async def test_the_body_asks_for_exactly_the_lengths_of_the_traffic():
    _, server = await send(Script(0, 0), [request(1, isl=33, osl=5)])
    body = server.seen[0].body
    assert len(body["messages"][0]["content"].split()) == 33
    assert body["max_tokens"] == body["min_tokens"] == 5
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True}


async def test_role_only_chunks_comments_and_keep_alives_are_not_tokens():
    (record,), _ = await send(Script(0.01, 0, keep_alives=True), [request(1, osl=4)])
    assert record.error is None
    assert len(record.chunk_ms) == 4


async def test_tokens_come_from_usage_when_a_chunk_holds_several():
    (record,), _ = await send(Script(0, 0.001, tokens_per_chunk=4), [request(1, osl=8)])
    assert len(record.chunk_ms) == 2
    assert record.completion_tokens == 8


FAULTS = {
    "status": (Script(status=503, body=b"busy\nnow"), "HTTP 503: busy now"),
    "stall": (Script(0, 0, stall_after=2), "no complete response after 0.5 s"),
    "cut": (Script(0, 0, cut_after=3), "connection closed before"),
    "error in the stream": (Script(0, 0, error_after=2), "reported an error in the stream"),
    "no usage": (Script(0, 0, no_usage=True), "no usage"),
    "no finish": (Script(0, 0, no_finish=True), "without finish_reason"),
    "no content": (Script(0, 0, tokens=0), "no content"),
    "not HTTP": (Script(raw=b"garbage\r\n\r\n", close=True), "not HTTP"),
    "not JSON": (
        Script(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\ndata: {oops\n\n"),
        "cannot be read",
    ),
    "huge": (Script(status=500, body=b"x" * 1_000_000), "HTTP 500: xxx"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_becomes_the_error_of_its_request_and_of_no_other(fault):
    script, message = FAULTS[fault]
    requests = [request(1), request(2), request(3)]
    records, _ = await send(
        lambda index, body: script if index == 1 else Script(0, 0), requests,
        Concurrency(1), timeout=0.5,
    )  # fmt: skip
    assert [record.succeeded for record in records] == [True, False, True]
    assert message in records[1].error
    assert len(records[1].error) <= 300
    assert "\n" not in records[1].error


async def test_a_server_that_is_not_there_is_an_error_of_each_request():
    server = Server("http://127.0.0.1:9/v1/chat/completions")
    generator = LoadGenerator(server, "a-model", processes=0)
    await generator.send(traffic([request(1)]), lambda whole: None)
    (record,) = generator.records()
    assert record.error is not None
    assert "cannot connect" in record.error


async def test_a_lie_about_tokens_is_recorded_as_told():
    (record,), _ = await send(Script(0, 0, claimed_completion_tokens=3), [request(1, osl=8)])
    assert record.completion_tokens == 3
    assert record.output_tokens == 8


async def test_an_open_loop_sends_when_due_however_slow_the_server_is():
    requests = [request(i, at=20.0 * i) for i in range(10)]
    records, server = await send(Script(0.5, 0), requests)
    delays = [record.sent_ms - record.scheduled_ms for record in records]
    assert [record.scheduled_ms for record in records] == [20.0 * i for i in range(10)]
    assert min(delays) >= 0
    assert statistics.median(delays) < 10
    assert server.most_in_flight == 10


async def test_a_closed_loop_keeps_its_concurrency():
    _, server = await send(Script(0.01, 0.001), [request(i) for i in range(12)], Concurrency(3))
    assert server.most_in_flight == 3
    assert len(server.seen) == 12


@pytest.mark.parametrize("schedule", [FixedSchedule(), Concurrency(2)])
async def test_turns_of_a_session_follow_each_other_after_their_delay(schedule):
    requests = [
        request(1, session="a"),
        request(2, session="a", turn=1, delay=60),
        request(3, session="b"),
    ]
    records, _ = await send(Script(0.01, 0.001), requests, schedule)
    first, second, _ = records
    assert second.sent_ms - first.end_ms >= 59
    assert second.scheduled_ms == pytest.approx(first.end_ms + 60, abs=10)


async def test_connections_are_reused():
    _, server = await send(Script(0, 0), [request(i) for i in range(5)], Concurrency(1))
    assert len({seen.connection for seen in server.seen}) == 1


@pytest.mark.parametrize("processes", [0, 1])
async def test_what_has_ended_is_kept_when_sending_is_given_up(processes):
    def script(index, body):
        return Script(0, 0) if index < 2 else Script(0, 0, stall_after=1)

    async with reference_server(script) as server:
        generator = LoadGenerator(Server(server.url), "a-model", processes=processes)
        sending = asyncio.create_task(
            generator.send(
                traffic([request(i) for i in range(4)], Concurrency(1)), lambda whole: None
            )
        )
        while len(server.seen) < 3:
            await asyncio.sleep(0.01)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert [record.succeeded for record in generator.records()] == [True, True]


@pytest.mark.parametrize("url", ["ftp://x/", "nonsense", "http://"])
def test_addresses_that_it_cannot_speak_to_are_refused(url):
    with pytest.raises(ValueError, match="must start with http:// or https://"):
        Server(url)
