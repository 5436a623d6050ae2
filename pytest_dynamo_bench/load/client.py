"""A streaming HTTP client that notes when bytes arrive and interprets them later.

What a general client does between the socket and the caller costs more than the latencies
that are measured here. This one does as little as it can while a response streams in: it
takes the time, lets a C parser strip the chunked encoding, and appends to a list. Server-
sent events and JSON are read when the response has ended.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

_IDLE_CONNECTIONS = 512
_TLS_END_SECONDS = 0.05


@dataclass
class RawResponse:
    """A response as it arrived.

    Attributes:
        sent_ns: ``time.perf_counter_ns()`` just before the request was handed to the socket.
        end_ns: arrival of the last byte, or of the error.
        status: HTTP status, 0 when there was no response.
        headers: lower-case names.
        body: pieces of the body with the time at which each arrived.
        error: why the response is not whole, in one line.
    """

    sent_ns: int = 0
    end_ns: int = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: list[tuple[int, bytes]] = field(default_factory=list)
    error: str | None = None


class StreamingClient(Protocol):
    """Sends a prepared body and returns what came back. A faster client can take its place."""

    async def post(self, body: bytes, timeout_seconds: float) -> RawResponse:
        """Send one request; errors are in the response, never raised."""

    async def close(self) -> None:
        """Close all connections."""


class _Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._response = RawResponse()
        self._ended: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._now_ns = 0
        self.reusable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio.Transport, though they behave like it.
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, head: bytes, body: bytes) -> tuple[RawResponse, asyncio.Future[None]]:
        assert self._transport is not None
        self._response = RawResponse()
        self._ended = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._response.sent_ns = time.perf_counter_ns()
        self._transport.writelines((head, body))
        return self._response, self._ended

    def data_received(self, data: bytes) -> None:
        self._now_ns = time.perf_counter_ns()
        if self._ended is None or self._ended.done():
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(f"not HTTP: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._response.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._response.body.append((self._now_ns, body))

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        self._finish(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        self._now_ns = time.perf_counter_ns()
        if self._ended is None or self._ended.done():
            return
        response = self._response
        framed = "content-length" in response.headers or "transfer-encoding" in response.headers
        if error is None and response.status and not framed:
            self._finish(None)
        else:
            received = sum(len(piece) for _, piece in response.body)
            self._finish(
                f"connection closed after {received} bytes of the body"
                + (f": {error}" if error else "")
            )

    def _finish(self, error: str | None) -> None:
        self._response.end_ns = self._now_ns
        self._response.error = error
        if error is not None:
            self.close()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def abandon(self, reason: str) -> None:
        """Give the response up: its connection cannot be used again."""
        self._now_ns = time.perf_counter_ns()
        self._finish(reason)

    def close(self) -> None:
        self.reusable = False
        if self._transport is None:
            return
        if self._transport.get_extra_info("sslcontext") is not None:
            # A closing handshake would outlive the event loop, which uvloop cannot cope with.
            self._transport.abort()
        else:
            self._transport.close()


class AsyncioClient:
    """The measuring client: raw asyncio, connections kept alive and reused.

    Args:
        url: the full address that requests are posted to.
        headers: sent with every request beside Host, Content-Type and Content-Length.
        tls: for ``https://``: whom to trust; the system's certificates when None.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the measuring client speaks http:// and https://, got {url!r}")
        secure = parts.scheme == "https"
        self._tls = (tls or ssl.create_default_context()) if secure else None
        self._host, self._port = parts.hostname, parts.port or (443 if secure else 80)
        lines = [f"POST {parts.path or '/'} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += ["Content-Type: application/json", "Accept: text/event-stream"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._head = "\r\n".join(lines).encode("latin-1")
        self._idle: list[_Connection] = []

    async def connect(self, count: int) -> None:
        """Open ``count`` connections ahead of time, so that requests need not wait for them."""
        for _ in range(min(count, _IDLE_CONNECTIONS)):
            self._idle.append(await self._open())

    async def post(self, body: bytes, timeout_seconds: float) -> RawResponse:
        """Send one request and wait for the whole response; errors are in the response."""
        try:
            connection = self._take() or await self._open()
        except OSError as error:
            now_ns = time.perf_counter_ns()
            return RawResponse(now_ns, now_ns, error=f"cannot connect: {error}")
        head = self._head + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
        response, ended = connection.send(head, body)
        try:
            async with asyncio.timeout(timeout_seconds):
                await ended
        except TimeoutError:
            connection.abandon(f"no end after {timeout_seconds:g} s")
        except asyncio.CancelledError:
            connection.abandon("cancelled")
            raise
        if connection.reusable and len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    async def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._idle.pop().close()
        await asyncio.sleep(_TLS_END_SECONDS if self._tls else 0)

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            _Connection, self._host, self._port, ssl=self._tls
        )
        return connection
