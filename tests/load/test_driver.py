"""The loop: what it prepares and keeps is bounded by what is in flight."""

from __future__ import annotations

import dataclasses
import functools
import socket
import threading
import time
from collections import Counter

import pytest

from pytest_dynamo_bench.load.connection import Connection, Server
from pytest_dynamo_bench.load.driver import Driver, Job
from pytest_dynamo_bench.traffic import Concurrency
from tests.load.test_load import request, send
from tests.reference_server import Script

pytestmark = pytest.mark.alone


class Mailbox:
    def __init__(self):
        self.got = []
        self.stop = threading.Event()

    def records(self, records):
        self.got += records

    def stopped(self):
        return self.stop.is_set()


def bodies_of(size, made, items):
    made += [item.request_id for item in items]
    return [b"x" * size for _ in items]


def prepared(count, size, concurrency=None, at=1000.0):
    made = []
    sessions = [[request(i, at=at * (i + 1))] for i in range(count)]
    bodies = functools.partial(bodies_of, size, made)
    server = Server("http://127.0.0.1:9/")
    driver = Driver(Job(server, sessions, concurrency, bodies, 5.0), Mailbox())
    driver.prepare()
    driver._close()
    return made


def test_bodies_ahead_are_bounded_in_number():
    assert len(prepared(500, 10)) == 64
    assert len(prepared(500, 10, concurrency=100)) == 100


def test_bodies_ahead_are_bounded_in_bytes():
    assert 16_000_000 <= 1_000_000 * len(prepared(500, 1_000_000)) <= 17_000_000


def test_small_bodies_are_built_several_at_a_time_and_long_ones_alone():
    def calls_for(tokens):
        calls = []

        def bodies(items):
            calls.append(len(items))
            return [b"x"] * len(items)

        sessions = [[dataclasses.replace(request(i), input_tokens=tokens)] for i in range(40)]
        driver = Driver(Job(Server("http://127.0.0.1:9/"), sessions, 40, bodies, 5.0), Mailbox())
        driver.prepare()
        driver._close()
        assert sum(calls) == 40
        return calls

    # How large they are is not known before there is one.
    assert calls_for(100) == [1, 16, 16, 7]
    assert calls_for(900) == [1] + [2] * 19 + [1]
    assert calls_for(3000) == [1] * 40


def test_they_are_built_in_the_order_in_which_they_are_due():
    made = prepared(10, 10)
    assert made == [f"{i:03d}" for i in range(10)]


@pytest.mark.anyio
async def test_later_turns_are_built_while_the_ones_before_are_answered():
    turns = [request(i, session="a", turn=i, delay=0) for i in range(4)]
    records, server = await send(Script(0.05, 0.001), turns, Concurrency(1))
    assert [record.error for record in records] == [None] * 4
    assert len(server.seen) == 4


@pytest.mark.anyio
async def test_nothing_is_late_when_there_is_time(monkeypatch):
    seen = []
    original = Driver.run

    def run(self, start_ns):
        health = original(self, start_ns)
        seen.append(health)
        return health

    monkeypatch.setattr(Driver, "run", run)
    requests = [request(i, at=20.0 * i) for i in range(80)]
    records, _ = await send(Script(0.001, 0.0), requests)
    assert all(record.succeeded for record in records)
    assert seen[0].late_bodies == 0
    assert seen[0].reconnects == 0


def test_it_stops_soon_after_it_is_asked_to():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = Server(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        mailbox = Mailbox()
        bodies = functools.partial(bodies_of, 10, [])
        driver = Driver(Job(server, [[request(1)]], 1, bodies, 60.0), mailbox)
        driver.prepare()
        threading.Timer(0.2, mailbox.stop.set).start()
        began = time.monotonic()
        driver.run(time.monotonic_ns())
        assert 0.2 <= time.monotonic() - began < 5
    assert mailbox.got == []


def test_a_name_with_several_addresses_is_tried_until_one_answers(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        nobody = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
        somebody = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [nobody, somebody])
        bodies = functools.partial(bodies_of, 10, [])
        job = Job(Server(f"http://localhost:{port}/"), [[request(1)]], 1, bodies, 1.0)
        driver = Driver(job, Mailbox())
        driver.prepare()
        assert driver._address == (socket.AF_INET, ("127.0.0.1", port))
        driver._close()


async def counted(monkeypatch, script, requests):
    """Records, and how often something was looked into, and was as expected."""
    counts = Counter()
    look, received = Connection.look, Connection.received

    def counted_look(self):
        counts["looks"] += 1
        return look(self)

    def counted_received(self, *read):
        found = received(self, *read)
        counts["expected"] += found
        return found

    monkeypatch.setattr(Connection, "look", counted_look)
    monkeypatch.setattr(Connection, "received", counted_received)
    records, _ = await send(script, requests)
    return records, counts


@pytest.mark.anyio
async def test_most_of_a_stream_is_as_expected_and_costs_no_second_look(monkeypatch):
    records, counts = await counted(
        monkeypatch, Script(0.01, 0.005), [request(i, osl=40) for i in range(4)]
    )
    assert [record.error for record in records] == [None] * 4
    assert [len(record.chunk_ms) for record in records] == [40] * 4
    assert counts["expected"] > 0.7 * 4 * 40
    assert counts["looks"] < 10 * 4


@pytest.mark.anyio
async def test_an_error_that_comes_slowly_is_not_looked_at_again_and_again(monkeypatch):
    head = b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = (head, b"3\r\nnot\r\n", b"4\r\n now\r\n", b"0\r\n\r\n")
    (record,), counts = await counted(monkeypatch, Script(0, 0.05, pieces=pieces), [request(1)])
    assert record.error == "HTTP 503: not now"
    assert counts["looks"] < 10
