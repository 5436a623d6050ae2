"""However the network cuts a response, it is the same response; garbage is an error."""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_dynamo_bench.load.chat import RecordMaker
from pytest_dynamo_bench.load.clock import ReceiveClock
from pytest_dynamo_bench.load.connection import Connection, Server
from tests.load.test_correctness import CHUNKED, chunk, event, stream, usage
from tests.load.test_load import request

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


def received(listener, pieces):
    """The record of a response that arrives in these pieces, one a millisecond."""
    with connected(listener) as connection:
        for index, piece in enumerate(pieces):
            if piece and not connection.ended:
                connection.pieces.append((b"", 1_000_000 * index, piece))
                connection.read_on(piece)
        if not connection.ended:
            connection.lost(1_000_000 * len(pieces), None)
        assert connection.ended
        *_, record = RecordMaker(ReceiveClock()).read(request(1), 0, connection.response)
    return record


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
        assert list(record.chunk_ms) == expected


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
