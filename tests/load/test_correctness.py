"""Whatever a server may send, the record has the right chunks, tokens and times, or an error."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import sys
import zlib

import pytest

from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.load.generator import LoadGenerator
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.traffic import Concurrency
from tests.load.test_load import request, send, traffic
from tests.reference_server import Script

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"


def event(content=None, *, finish=None, usage=None, ending="\n", choices=None, **delta):
    if content is not None:
        delta["content"] = content
    if choices is None:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    data = {"choices": choices} | ({"usage": usage} if usage else {})
    return f"data: {json.dumps(data, ensure_ascii=False)}{ending}{ending}".encode()


def usage(prompt=40, completion=2, **more):
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def stream(*events, done=True):
    last = (b"data: [DONE]\n\n",) if done else ()
    return b"".join(chunk(item) for item in (*events, *last)) + b"0\r\n\r\n"


USUAL = (
    event(role="assistant", content=""),
    event("w1"),
    event("w2"),
    event(finish="length"),
    event(choices=[], usage=usage()),
)


async def answered(*pieces, gap=0.0, close=False, **more):
    """The record of the second of three requests; the others are answered as usual."""

    def script(index, body):
        if index == 1:
            return Script(0, gap, pieces=pieces, close=close)
        return Script(0, 0)

    records, server = await send(
        script, [request(i, osl=2) for i in range(3)], Concurrency(1), timeout=2.0, **more
    )
    assert [records[0].error, records[2].error] == [None, None]
    return records[1], server


def whole(body, head=CHUNKED):
    return head + b"\r\n" + body


def split(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


async def test_chunks_without_content_are_not_tokens():
    record, _ = await answered(
        whole(
            stream(
                USUAL[0], event(), event(""), event("w1"), b": ping\n\n", event("w2"),
                event(None, finish="length"), event(choices=[]), USUAL[-1],
            )
        )
    )  # fmt: skip
    assert record.error is None
    assert len(record.chunk_ms) == 2
    assert record.chunk_tokens is None


async def test_reasoning_and_tool_calls_are_content():
    record, _ = await answered(
        whole(
            stream(
                event(reasoning_content="hm"), event(reasoning="hm"),
                event(tool_calls=[{"index": 0}]),
                event(finish="stop", choices=None), event(choices=[], usage=usage(completion=3)),
            )
        )
    )  # fmt: skip
    assert record.error is None
    assert len(record.chunk_ms) == 3


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
async def test_line_endings(ending):
    events = [item.replace(b"\n", ending.encode()) for item in USUAL]
    record, _ = await answered(*split(whole(stream(*events)), 50), gap=0.001)
    assert record.error is None
    assert len(record.chunk_ms) == 2


async def test_one_byte_at_a_time():
    record, _ = await answered(*split(whole(stream(*USUAL[1:])), 1), gap=0.0001)
    assert record.error is None
    assert len(record.chunk_ms) == 2
    assert record.coalesced_chunks == 0


async def test_a_chunk_has_arrived_when_its_last_byte_has():
    first, second, end = USUAL[1], USUAL[2], stream(*USUAL[3:])
    body = whole(chunk(first) + chunk(second))
    cut = len(body) - 12
    record, server = await answered(body[:cut], body[cut:] + end, gap=0.05)
    assert record.error is None
    assert len(record.chunk_ms) == 2
    gap_ms = record.chunk_ms[1] - record.chunk_ms[0]
    written = server.seen[1].written
    assert gap_ms == pytest.approx(1000 * (written[1] - written[0]), abs=15)


async def test_characters_cut_in_two():
    text = event("größer→")
    at = text.index("ß".encode()) + 1
    head = whole(b"")
    record, _ = await answered(
        head, chunk(text[:at]), chunk(text[at:]), stream(*USUAL[2:]), gap=0.002
    )
    assert record.error is None
    assert len(record.chunk_ms) == 2


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compressed(encoding):
    plain = b"".join(USUAL) + b"data: [DONE]\n\n"
    packed = gzip.compress(plain) if encoding == "gzip" else zlib.compress(plain)
    head = CHUNKED + f"Content-Encoding: {encoding}\r\n".encode()
    body = b"".join(chunk(part) for part in split(packed, 20)) + b"0\r\n\r\n"
    record, _ = await answered(*split(whole(body, head), 30), gap=0.001)
    assert record.error is None
    assert len(record.chunk_ms) == 2


async def test_an_unknown_compression_is_an_error():
    head = CHUNKED + b"Content-Encoding: br\r\n"
    record, _ = await answered(whole(stream(*USUAL), head))
    assert "content-encoding br is not supported" in record.error


async def test_content_length():
    body = b"".join(USUAL)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(body)
    record, server = await answered(*split(whole(body, head), 40), gap=0.001)
    assert record.error is None
    assert len({seen.connection for seen in server.seen}) == 1


async def test_a_body_that_ends_with_the_connection():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    record, server = await answered(whole(b"".join(USUAL), head), close=True)
    assert record.error is None
    assert len({seen.connection for seen in server.seen}) == 2


async def test_trailers_and_informational_responses():
    body = stream(*USUAL).removesuffix(b"\r\n") + b"X-Took: 1 s\r\n\r\n"
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    record, server = await answered(early, *split(whole(body), 33), gap=0.001)
    assert record.error is None
    assert record.status == 200
    assert len({seen.connection for seen in server.seen}) == 1


async def test_more_than_was_asked_for_costs_the_connection_and_nothing_else():
    record, server = await answered(whole(stream(*USUAL)) + b"HTTP/1.1 500 What\r\n\r\n")
    assert record.error is None
    assert record.status == 200
    assert len({seen.connection for seen in server.seen}) == 2


async def test_done_may_be_missing():
    record, _ = await answered(whole(stream(*USUAL, done=False)))
    assert record.error is None


ERRORS = {
    "event": b'event: error\ndata: {"message": "worker lost"}\n\n',
    "field": b'data: {"error": {"message": "worker lost"}}\n\n',
    "text": b'data: {"error": "worker lost"}\n\n',
    "with choices": b'data: {"choices": [], "error": {"message": "worker lost"}}\n\n',
}


@pytest.mark.parametrize("kind", ERRORS)
async def test_errors_inside_a_successful_stream(kind):
    record, _ = await answered(whole(stream(USUAL[1], ERRORS[kind], *USUAL[2:])))
    assert "worker lost" in record.error


def usage_with(cached):
    """The data of a last event that says so of cached tokens."""
    return (
        b'{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1, '
        b'"prompt_tokens_details": {"cached_tokens": %s}}}' % cached.encode()
    )


WRONG = {
    "a list": b"data: [1]\n\n",
    "a number as content": b'data: {"choices": [{"delta": {"content": 7}}]}\n\n',
    "not UTF-8": b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n',
    "half": b'data: {"choices": [\n\n',
    "negative usage": event(choices=[], usage=usage(completion=-1)),
    "a word as usage": event(choices=[], usage=usage(completion="many")),
    "astronomic usage": event(choices=[], usage=usage(completion=10**30)),
    "nesting": b"data: " + b"[" * 100_000 + b"\n\n",
}
# What an answer is whole without: what is said, and the field of the record that is empty then.
ODD = {
    "cached tokens beyond 64 bits": ("cached_tokens", usage_with(str(2**63))),
    "negative cached tokens": ("cached_tokens", usage_with("-1099511627776")),
    "cached tokens that are a text": ("cached_tokens", usage_with('"7"')),
    "a list of workers": ("prefill_worker", b'{"choices": [], "nvext": {"worker_id": [1]}}'),
    "a rank that is a text": (
        "prefill_rank",
        b'{"choices": [], "nvext": {"worker_id": {"prefill_dp_rank": "two"}}}',
    ),
    "a share that is a text": (
        "router_hit_rate",
        b'{"choices": [], "nvext": {"timing": {"kv_hit_rate": "nan"}}}',
    ),
    "a share that is no number": (
        "router_hit_rate",
        b'{"choices": [], "nvext": {"timing": {"kv_hit_rate": NaN}}}',
    ),
    "a share of 150 %": (
        "router_hit_rate",
        b'{"choices": [], "nvext": {"timing": {"kv_hit_rate": 1.5}}}',
    ),
    "an endless time": (
        "kv_transfer_ms",
        b'{"choices": [], "nvext": {"timing": {"kv_transfer_estimated_latency_ms": 1e999}}}',
    ),
}


@pytest.mark.parametrize("kind", WRONG)
async def test_what_cannot_be_right_is_an_error(kind):
    record, _ = await answered(whole(stream(*USUAL, WRONG[kind])))
    assert "cannot be read" in record.error


@pytest.mark.parametrize("kind", ODD)
async def test_one_odd_field_costs_that_field_and_not_the_answer(kind):
    name, said = ODD[kind]
    record, _ = await answered(whole(stream(*USUAL, b"data: %s\n\n" % said)))
    assert record.error is None and record.completion_tokens in (1, 2)
    assert getattr(record, name) is None
    assert len(record.odd) == 1


async def test_the_length_of_a_chunk_that_is_no_number():
    record, _ = await answered(whole(b"zz\r\nhello\r\n"))
    assert "not HTTP" in record.error


async def test_tokens_of_chunks_by_the_servers_running_count():
    record, _ = await answered(
        whole(
            stream(
                event("any text", usage=usage(completion=2)),
                event(" of any", usage=usage(completion=5)),
                event(finish="length"), event(choices=[], usage=usage(completion=5)),
            )
        )
    )  # fmt: skip
    assert record.chunk_tokens == (2, 3)


async def test_tokens_of_chunks_by_counting_only_if_they_add_up():
    def events(count):
        return (event("w1 w2 "), event("w3 "), event(finish="length"),
                event(choices=[], usage=usage(completion=count)))  # fmt: skip

    record, _ = await answered(whole(stream(*events(3))))
    assert record.chunk_tokens == (2, 1)
    record, _ = await answered(whole(stream(*events(4))))
    assert record.chunk_tokens is None


async def test_a_connection_that_the_server_closed_while_it_was_idle_is_replaced():
    def script(index, body):
        return Script(0, 0, close_idle_after=0.0)

    records, server = await send(script, [request(i) for i in range(6)], Concurrency(1))
    assert all(record.succeeded for record in records)
    assert len(server.seen) == 6


async def test_a_closed_connection_that_crosses_a_request_is_tried_again_once():
    records, _ = await send(
        lambda index, body: Script(0, 0) if index == 0 else Script(raw=b"", close=True),
        [request(i) for i in range(2)], Concurrency(1),
    )  # fmt: skip
    assert records[0].error is None
    assert "connection closed before the response was complete" in records[1].error


async def test_latencies_from_the_schedule_contain_what_the_request_waited():
    # The second turn is due when the first has ended; nothing else of this server is free.
    record, _ = await answered(whole(stream(*USUAL)))
    late = dataclass_with(record, scheduled_ms=record.sent_ms - 70.0)
    metrics = Metrics(Run("b", "c", "local", 1, [late], ""))
    sent = metrics.value("time_to_first_token.mean")
    assert metrics.value("time_to_first_token_from_schedule.mean") == pytest.approx(sent + 70)
    assert metrics.value("request_latency_from_schedule.max") == pytest.approx(
        metrics.value("request_latency.max") + 70
    )
    assert metrics.value("schedule_delay.max") == pytest.approx(70)


def dataclass_with(record, **changes):
    import dataclasses

    return dataclasses.replace(record, **changes)


async def test_gaps_by_token():
    record, _ = await answered(whole(stream(*USUAL)))
    record = dataclass_with(
        record, chunk_ms=(0.0, 30.0, 40.0), chunk_tokens=(1, 3, 1), completion_tokens=5
    )
    metrics = Metrics(Run("b", "c", "local", 1, [record], ""))
    assert metrics.sample("inter_token_gap.max").values.tolist() == [10, 10, 10, 10]
    assert metrics.value("inter_chunk_latency.max") == 30


@pytest.mark.skipif(sys.platform != "linux", reason="other systems acknowledge as they like")
async def test_a_server_that_waits_for_acknowledgements_is_not_kept_waiting():
    # With Nagle's algorithm the second small write leaves only when the first is acknowledged;
    # delayed acknowledgements of a reused connection would hold it back for 40 ms.
    head, first = whole(chunk(USUAL[0])), chunk(USUAL[1])
    rest = stream(*USUAL[2:])

    answering = []

    async def answer(reader, writer):
        answering.append(writer)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                got = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(got.partition(b"content-length:")[2].split()[0])
                await reader.readexactly(length)
                for part in (head, first, rest):
                    writer.write(part)
                    await asyncio.sleep(0.005)
        writer.close()
        answering.remove(writer)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    generator = LoadGenerator(Server(f"http://127.0.0.1:{port}/"), "m", processes=0)
    requests = [request(i) for i in range(20)]
    await generator.send(traffic(requests, Concurrency(1)), lambda whole: None)
    server.close()
    while answering:
        await asyncio.sleep(0.01)
    records = generator.records()
    assert [record.error for record in records] == [None] * 20
    waits = sorted(record.chunk_ms[0] - record.sent_ms for record in records)
    assert waits[10] < 35
