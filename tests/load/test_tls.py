"""Over TLS everything is the same, the kernel's timestamps too."""

from __future__ import annotations

import asyncio
import ssl
import sys

import pytest
import trustme

from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.load.generator import LoadGenerator
from pytest_dynamo_bench.traffic import Concurrency
from tests.load.test_load import request, traffic
from tests.reference_server import ReferenceServer, Script

pytestmark = pytest.mark.anyio


class TlsServer(ReferenceServer):
    """The reference server behind a certificate for 127.0.0.1."""

    def __init__(self, script, context):
        super().__init__(lambda index, body: script)
        self._context = context

    async def start(self):
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, limit=2**24, ssl=self._context
        )

    @property
    def url(self):
        return super().url.replace("http:", "https:")


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


async def sent(authority, trusted, script, requests):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = TlsServer(script, context)
    await server.start()

    def settings():
        mine = ssl.create_default_context()
        if trusted:
            authority.configure_trust(mine)
        return mine

    try:
        generator = LoadGenerator(Server(server.url, tls=settings), "m", processes=0)
        await generator.send(traffic(requests, Concurrency(2)), lambda whole: None)
    finally:
        await server.stop()
    return generator.records(), server


async def test_streams_over_tls(authority):
    script = Script(0.02, 0.01)
    records, server = await sent(authority, True, script, [request(i, isl=500) for i in range(6)])
    assert [record.error for record in records] == [None] * 6
    assert all(len(record.chunk_ms) == 8 for record in records)
    assert all(record.prompt_tokens == 500 for record in records)
    assert len({seen.connection for seen in server.seen}) == 2
    if sys.platform == "linux":
        assert {record.receive_clock for record in records} == {"kernel"}
    first = min(records, key=lambda r: r.sent_ms)
    assert first.chunk_ms[0] - first.sent_ms >= 20


async def test_a_certificate_that_nobody_trusts_is_an_error_of_each_request(authority):
    records, server = await sent(authority, False, Script(0, 0), [request(i) for i in range(2)])
    assert len(records) == 2
    assert all("certificate verify failed" in record.error for record in records)
    assert server.seen == []
