"""However the network cuts a response, it is the same response; garbage is an error."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_dynamo_bench.load.chat import Pattern, Reading, RecordMaker, count_words
from pytest_dynamo_bench.load.clock import ReceiveClock
from pytest_dynamo_bench.load.connection import Connection, Response, Server, _size_line
from pytest_dynamo_bench.load.generator import LoadGenerator
from pytest_dynamo_bench.record_files import RECORDS_FILE, read_records, write_records
from pytest_dynamo_bench.records import possible
from pytest_dynamo_bench.traffic import Concurrency, Traffic
from tests.any_json import odd_documents
from tests.load.test_clock import checked_clock
from tests.load.test_correctness import CHUNKED, chunk, event, stream, usage
from tests.load.test_load import request
from tests.reference_server import Script
from tests.servers import serving

CONTENT = st.text('w1 ü→\r\n"\\0', max_size=6)
EVENTS = st.lists(
    st.one_of(
        CONTENT.map(event),
        CONTENT.map(lambda text: event(text, ending="\r\n")),
        st.just(event(role="assistant", content="")),
        st.just(b": keep-alive\n\n"),
        # Looks like the end of a chunked body.
        st.just(b": 0\r\n\r\n"),
        st.just(event(choices=[])),
    ),
    max_size=8,
)
ENDING = [event(finish="length"), event(choices=[], usage=usage(completion=3))]


@pytest.fixture(scope="module")
def listener():
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        yield server


@contextmanager
def connected(listener):
    address = listener.getsockname()
    server = Server(f"http://127.0.0.1:{address[1]}/")
    connection = Connection(address, socket.AF_INET, server, None)
    peer, _ = listener.accept()
    connection.load(b"", b"")
    try:
        yield connection
    finally:
        connection.close()
        peer.close()


def received(listener, pieces, looks=(), count_tokens=None):
    """The record of a response that arrives in these pieces, one a millisecond.

    Args:
        looks: after which of them there is time to look into what has come.
    """
    maker = RecordMaker(ReceiveClock(), count_tokens=count_tokens)
    with connected(listener) as connection:
        reading = Reading(connection.response)
        for index, piece in enumerate(pieces):
            if piece and not connection.ended:
                connection.received(b"", 1_000_000 * (index + 1), piece)
            if index in looks and not connection.ended:
                connection.look()
                list(maker.read(reading))
                if reading.pattern is not None:
                    connection.expect(reading.pattern.start, reading.pattern.end)
        if not connection.ended:
            connection.lost(1_000_000 * (len(pieces) + 1), None)
        assert connection.ended
        list(maker.read(reading))
        return maker.records([(request(1), 0, reading)])[0]


def cut(data, cuts):
    places = sorted({min(place, len(data)) for place in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def said(record):
    return (record.error, record.status, len(record.chunk_ms), record.prompt_tokens,
            record.completion_tokens, record.chunk_tokens)  # fmt: skip


CUTS = st.lists(st.integers(0, 1500), max_size=12)


@settings(max_examples=200, deadline=None)
@given(EVENTS, CUTS, st.booleans())
def test_every_split_of_a_stream_gives_the_same_record(listener, events, cuts, close):
    body = stream(*events, *ENDING)
    data = CHUNKED + b"\r\n" + body
    if close:
        data = b"HTTP/1.1 200 OK\r\n\r\n" + b"".join([*events, *ENDING])
    assert said(received(listener, cut(data, cuts))) == said(received(listener, [data]))


@settings(max_examples=200, deadline=None)
@given(EVENTS, CUTS)
def test_no_chunk_is_noted_before_its_last_byte_or_after_the_next_read(listener, events, cuts):
    head = CHUNKED + b"\r\n"
    data = head + stream(*events, *ENDING)
    pieces = cut(data, [len(head), *cuts])
    record = received(listener, pieces)
    ends, at = [], 0
    for piece in pieces:
        at += len(piece)
        ends.append(at)
    expected, at = [], len(head)
    for item in events:
        wire = chunk(item)
        # A carriage return ends a line by itself, whatever follows it.
        last_byte = at + len(wire) - 2 - item.endswith(b"\r\n")
        at += len(wire)
        if item.startswith(b"data: ") and b'"content": ""' not in item and b'"content"' in item:
            expected.append(next(i for i, end in enumerate(ends) if end >= last_byte))
    if record.error is None:
        assert [ms - 1 for ms in record.chunk_ms] == expected


GARBAGE = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(lambda data: CHUNKED + b"\r\n" + chunk(data) + b"0\r\n\r\n"),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=3)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(
                    ["choices", "delta", "content", "usage", "completion_tokens", "nvext",
                     "worker_id", "timing", "kv_hit_rate", "error", "finish_reason",
                     "prompt_tokens_details", "cached_tokens"]
                ),
                inner,
                max_size=4,
            ),
        ),
        max_leaves=12,
    ).map(lambda value: CHUNKED + b"\r\n" + stream(b"data: %s\n\n" % json.dumps(value).encode())),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(GARBAGE, CUTS)
def test_garbage_is_an_error_and_never_an_exception(listener, data, cuts):
    record = received(listener, cut(data, cuts))
    # It may happen to be a whole response.
    assert record.error or (record.chunk_ms and record.completion_tokens is not None)


@settings(max_examples=200, deadline=None)
@given(EVENTS, st.data())
def test_a_damaged_stream_never_raises_and_never_counts_more(listener, events, data):
    good = CHUNKED + b"\r\n" + stream(*events, *ENDING)
    at = data.draw(st.integers(0, len(good) - 1))
    damaged = good[:at] + data.draw(st.binary(max_size=3)) + good[at + 1 :]
    record = received(listener, [damaged])
    assert len(record.chunk_ms) <= len(events)
    assert record.completion_tokens is None or record.completion_tokens >= 0
    assert record.error is None or "\n" not in record.error


def upper_chunk(data):
    """A chunk as hyper writes it, which Dynamo's frontend is built on."""
    return b"%X\r\n%s\r\n" % (len(data), data)


def compact(text, **more):
    """An event as servers write it; what it says may be in it more than once."""
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    data = {"id": "w1", "choices": choices, "x": "w2"} | more
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=len(text) > 2)
    return b"data: %s\n\n" % text.encode("utf-8", "surrogatepass")


SAYING = st.one_of(
    st.sampled_from(["w1", "w1", "w22", ":", ",", "content", "id", "x", "ü→", '"', "\\", "\n", ""]),
    st.text(max_size=4),
)
ANYTHING = st.one_of(
    SAYING.map(lambda text: compact(text)),
    SAYING.map(lambda text: compact(text)),
    SAYING.map(lambda text: compact(text, nvext={"worker_id": {"decode_worker_id": 7}})),
    SAYING.map(lambda text: compact(text, usage=usage(completion=7))),
    SAYING.map(lambda text: compact(text).replace(b"\n", b"\r\n")),
    SAYING.map(lambda text: compact(text).replace(b"}", b"}\n\ndata: ", 1)),
    SAYING.map(lambda text: b"data: " + compact(text)),
    SAYING.map(lambda text: compact(text).replace(b'"', b"", 1)),
    SAYING.map(lambda text: compact(text)[:-1]),
    st.binary(max_size=9).map(lambda data: compact("w1").replace(b"w1", data)),
    st.just(compact("w1").replace(b"w1", b'w1","finish_reason":"stop","x":"')),
    st.just(b"event: error\n"),
    st.just(b": keep-alive\n\n"),
)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(ANYTHING, min_size=1, max_size=10),
    st.sets(st.integers(0, 12)),
    st.booleans(),
    st.sampled_from([0, 0, 0, 1, 2, 5]),
    st.sampled_from([None, count_words]),
    st.sampled_from([{}, {"nvext": {"worker_id": {"decode_worker_id": 7}}}]),
    st.booleans(),
)
def test_looking_into_a_response_before_its_end_changes_nothing(
    listener, events, looks, whole, damage, count, more, upper_case
):
    """What is known by what surrounds it is what it would be if it were decoded."""
    ending = [event(finish="length"), event(choices=[], usage=usage(completion=3))]
    sized = upper_chunk if upper_case else chunk
    pieces = [CHUNKED + b"\r\n" + sized(compact("w0", **more)), *map(sized, events)]
    if damage:
        pieces[-1] = pieces[-1][damage:]
    pieces += [b"".join(map(chunk, ending)), b"0\r\n\r\n"] if whole else []
    assert received(listener, pieces, looks, count) == received(listener, pieces, (), count)


def expecting(connection, text="w0"):
    """A connection that has looked into the first event of a response."""
    reading = Reading(connection.response)
    connection.received(b"", 1, CHUNKED + b"\r\n" + chunk(compact(text)))
    connection.look()
    list(RecordMaker(ReceiveClock()).read(reading))
    if reading.pattern is not None:
        connection.expect(reading.pattern.start, reading.pattern.end)
    return reading


def test_of_a_chunk_as_expected_only_the_text_is_kept(listener):
    with connected(listener) as connection:
        expecting(connection)
        for text in ("w1", "w22", "\n", 200 * "long "):
            assert connection.received(b"", 2, chunk(compact(text)))
        assert not connection.received(b"", 2, chunk(compact("w1", usage=usage())))
        assert not connection.received(b"", 2, chunk(compact("w1")))
        kept = connection.response.contents(0, connection.response.reads)
    assert kept == [None, b"w1", b"w22", b"\\n", 200 * b"long ", None, None]


def test_a_text_that_is_elsewhere_in_the_event_first_is_not_taken_for_the_text(listener):
    with connected(listener) as connection:
        # "w1" is its id, ":" is between any two quotes of a name and a value.
        assert expecting(connection, "w1").pattern is None
    with connected(listener) as connection:
        assert expecting(connection, ":").pattern is None
    with connected(listener) as connection:
        # The first "w2" is the content, what comes after it is not.
        assert expecting(connection, "w2").pattern is not None


@given(st.integers(0, 70_000), st.booleans())
def test_a_whole_chunk_is_known_by_its_length(size, upper_case):
    whole = b"%X\r\n" % size if upper_case else b"%x\r\n" % size
    whole += bytes(size) + b"\r\n"
    assert whole.startswith(_size_line(len(whole), upper_case)) == (size > 0)
    line = _size_line(size, upper_case)
    assert len(line) > size or len(chunk(bytes(int(line, 16)))) == size


def test_a_server_may_write_sizes_in_upper_case(listener):
    with connected(listener) as connection:
        expecting(connection)
        long = b"%X\r\n%s\r\n" % (len(compact(80 * "long")), compact(80 * "long"))
        assert not connection.received(b"", 2, long)
        connection.look()
        expected = Pattern.of(compact("w0"))
        connection.expect(expected.start, expected.end)
        assert long[:3] != long[:3].lower()
        assert connection.received(b"", 3, long)
        assert [read for read, _ in connection.response.body] == [1]


def test_what_is_never_as_expected_is_not_expected_for_ever(listener):
    with connected(listener) as connection:
        expecting(connection)
        pattern = Pattern.of(compact("w0"))
        for count in range(4):
            assert connection.worth_expecting
            assert not connection.received(b"", 2 + count, chunk(compact("w1", usage=usage())))
            connection.look()
            connection.expect(pattern.start, pattern.end)
        assert not connection.worth_expecting


# Of each read: nanoseconds from its stamp to its being seen, or None for no stamp, and whether it
# had content.
READS = st.lists(
    st.tuples(
        st.one_of(
            st.integers(0, 5_000_000),
            st.integers(58_000_000_000, 62_000_000_000),
            st.sampled_from([None, -1_000_000]),
        ),
        st.booleans(),
    ),
    max_size=6,
)


def read_before(now, offset, reads, error):
    """A response of so many reads, a second each, until some time before."""
    response = Response()
    response.status, response.error = 200, error
    reading = Reading(response, finished=True, completion_tokens=4)
    first = response.sent_ns = now - 80_000_000_000
    for number, (age, has_content) in enumerate(reads):
        seen = first + 1_000_000_000 * number
        real = seen - (age or 0) + offset
        stamp = b"" if age is None else struct.pack("@ll", *divmod(real, 1_000_000_000))
        response.log += (stamp, seen, None)
        if has_content:
            reading.chunk_reads += [number] * (1 + number % 2)
    response.end_ns = first + 10_000_000_000
    return reading


@settings(max_examples=500)
@given(st.lists(st.tuples(READS, st.sampled_from([None, "cut"])), min_size=1, max_size=4))
def test_records_made_together_are_those_made_alone(responses):
    clock, now, offset = checked_clock()
    maker, other = RecordMaker(clock), RecordMaker(clock)
    ended = [
        (request(number), now, read_before(now, offset, *response))
        for number, response in enumerate(responses)
    ]
    together = maker.records(ended)
    assert together == [other.records([one])[0] for one in ended]
    assert maker.receive_lag.spread_ms() == other.receive_lag.spread_ms()
    for record in together:
        assert list(record.chunk_ms) == sorted(record.chunk_ms)


WHOLE_ANSWER = [
    {"id": "r-1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    *[
        {
            "id": "r-1",
            "choices": [
                {"index": 0, "delta": {"content": text}, "finish_reason": None, "logprobs": None}
            ],
        }
        for text in ("w1 ", "w2 ", "w3 ")
    ],
    {
        "id": "r-1",
        "choices": [
            {
                "index": 0,
                "delta": {"reasoning_content": "hm ", "reasoning": None, "tool_calls": None},
                "finish_reason": "length",
            }
        ],
        "nvext": {
            "worker_id": {
                "prefill_worker_id": 7587888, "decode_worker_id": 7587889,
                "prefill_dp_rank": 0, "decode_dp_rank": 1,
            },
            "timing": {"kv_hit_rate": 0.5, "kv_transfer_estimated_latency_ms": 2.5},
        },
        "error": None,
    },
    {
        "id": "r-1",
        "choices": [],
        "usage": {
            "prompt_tokens": 5, "completion_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    },
]  # fmt: skip


def odd_answers():
    """Bodies of a response, of which fields are replaced, left out, or there twice."""
    return odd_documents(WHOLE_ANSWER).map(
        lambda texts: stream(*(b"data: %s\n\n" % text.encode() for text in texts))
    )


def assert_possible(record):
    """Every number of a record is within its bounds, and every text can be written."""
    prompt = 2**40 if record.prompt_tokens is None else record.prompt_tokens
    for name, most in {
        "prompt_tokens": 2**40, "completion_tokens": 2**40, "cached_tokens": prompt,
        "prefill_rank": 2**16, "decode_rank": 2**16, "router_hit_rate": 1, "kv_transfer_ms": 2**53,
    }.items():  # fmt: skip
        value = getattr(record, name)
        assert value is None or (type(value) in (int, float) and 0 <= value <= most), name
    for name in ("prefill_worker", "decode_worker", "response_id", "error"):
        value = getattr(record, name)
        assert value is None or (type(value) is str and value.isprintable()), name
    assert all(name.isprintable() for name in record.odd)
    assert record.chunk_tokens is None or max(record.chunk_tokens, default=0) <= 2**16


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(odd_answers(), CUTS)
def test_any_json_in_any_field_is_an_error_or_nothing_but_never_a_number(listener, body, cuts):
    record = possible(received(listener, cut(CHUNKED + b"\r\n" + body, cuts)))
    assert_possible(record)
    with tempfile.TemporaryDirectory() as directory:
        write_records(Path(directory), [record])
        assert read_records(Path(directory) / RECORDS_FILE) == [record]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(odd_answers(), min_size=25, max_size=25))
def test_a_server_that_says_anything_loses_no_other_request(bodies):
    scripts = [Script(raw=CHUNKED + b"\r\n" + body, close=True) for body in bodies]
    with serving(lambda index, _: scripts[index]) as server:
        generator = LoadGenerator(Server(server.url), "m", processes=0, request_timeout_seconds=20)
        traffic = Traffic([request(n) for n in range(len(bodies))], Concurrency(1), 512, ())
        asyncio.run(generator.send(traffic, lambda whole: None))
    records = [possible(record) for record in generator.records()]
    assert len(records) == len(bodies)
    for record in records:
        assert_possible(record)
