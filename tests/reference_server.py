"""A server with known timing and scripted faults, independent of the product's code.

It speaks just enough HTTP/1.1 to stream chat completions, and logs when it wrote what.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Script:
    """How a request is answered; times in seconds."""

    time_to_first_token: float = 0.02
    inter_token_latency: float = 0.005
    tokens: int | None = None
    tokens_per_chunk: int = 1
    status: int = 200
    body: bytes = b""
    stall_after: int | None = None
    cut_after: int | None = None
    error_after: int | None = None
    no_usage: bool = False
    no_finish: bool = False
    claimed_completion_tokens: int | None = None
    raw: bytes | None = None
    keep_alives: bool = False
    close: bool = False
    cached_tokens: int | None = None
    pieces: tuple[bytes, ...] = ()
    close_idle_after: float | None = None


@dataclass(frozen=True)
class Character:
    """What kind of server it is.

    ``refused`` are fields that it answers with 400; ``long_words`` are two tokens each, and so
    are all ``w0``-like words when ``english`` is set. ``metrics`` are what ``/metrics`` says, and
    after how many seconds, one time after the other.
    """

    model: str = "m"
    template_tokens: int = 0
    english: bool = False
    long_words: frozenset[str] = frozenset()
    refused: tuple[str, ...] = ()
    api_key: str | None = None
    not_ready: int = 0
    metrics: tuple[tuple[str, float], ...] = ()

    def count(self, text: str) -> int:
        tokens = self.template_tokens
        for word in text.split():
            local = word[0] == "w" and word[1:].isdecimal()
            tokens += 2 if word in self.long_words or (local and self.english) else 1
        return tokens


@dataclass
class Seen:
    """A request that came in, and when its chunks with content were written."""

    body: dict
    arrived: float
    written: list[float] = field(default_factory=list)
    connection: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class ReferenceServer:
    """Listens on loopback; ``script_for`` decides how each request is answered."""

    def __init__(
        self,
        script_for: Callable[[int, dict], Script],
        character: Character | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._script_for = script_for
        self._tls = tls
        self.character = character or Character()
        self.models_asked = 0
        self.metrics_asked = 0
        self._server: asyncio.Server | None = None
        self._connections = 0
        self.seen: list[Seen] = []
        self.in_flight = 0
        self.most_in_flight = 0

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"{self.base_url}/v1/chat/completions"

    @property
    def base_url(self) -> str:
        assert self._server is not None
        scheme = "https" if self._tls else "http"
        return f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, limit=2**24, ssl=self._tls
        )

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        connection = self._connections
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                headers = {
                    line.split(":", 1)[0].lower(): line.split(":", 1)[1].strip()
                    for line in head.splitlines()[1:]
                    if ":" in line
                }
                key = self.character.api_key
                if key is not None and headers.get("authorization") != f"Bearer {key}":
                    given = headers.get("authorization", "nothing")
                    self._plain(writer, 401, {"error": f"{given} is not a valid key"})
                    continue
                if head.startswith("GET "):
                    await self._get(head.split()[1], writer)
                    continue
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                refused = [name for name in self.character.refused if name in body]
                if refused:
                    self._plain(writer, 400, {"error": f"Unrecognized argument: {refused[0]}"})
                    continue
                seen = Seen(body, time.perf_counter(), connection=connection, headers=headers)
                self.seen.append(seen)
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                script = self._script_for(len(self.seen) - 1, body)
                try:
                    await self._answer(script, seen, writer)
                finally:
                    self.in_flight -= 1
                if script.close or script.cut_after is not None:
                    break
                if script.close_idle_after is not None:
                    await asyncio.sleep(script.close_idle_after)
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _get(self, path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/metrics" and self.character.metrics:
            self.metrics_asked += 1
            told = self.character.metrics[: self.metrics_asked]
            text, seconds = told[-1]
            await asyncio.sleep(seconds)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(text) + text.encode())
            return
        if path != "/v1/models":
            self._plain(writer, 404, {"error": "not found"})
            return
        self.models_asked += 1
        ready = self.models_asked > self.character.not_ready
        self._plain(writer, 200, {"data": [{"id": self.character.model}] if ready else []})

    def _plain(self, writer: asyncio.StreamWriter, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        writer.write(
            b"HTTP/1.1 %d -\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % (status, len(body))
            + body
        )

    async def _answer(self, script: Script, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if script.pieces:
            for piece in script.pieces:
                writer.write(piece)
                seen.written.append(time.perf_counter())
                await asyncio.sleep(script.inter_token_latency)
            return
        if script.raw is not None:
            writer.write(script.raw)
            await writer.drain()
            return
        if script.status != 200:
            writer.write(
                b"HTTP/1.1 %d Oops\r\nContent-Length: %d\r\n\r\n"
                % (script.status, len(script.body))
                + script.body
            )
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                     b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
        self._event(writer, _delta("", role="assistant"))
        await asyncio.sleep(script.time_to_first_token)
        tokens = script.tokens if script.tokens is not None else seen.body["max_tokens"]
        for index in range(-(-tokens // script.tokens_per_chunk)):
            if index == script.stall_after:
                await asyncio.sleep(3600)
            if index == script.cut_after:
                return
            if index == script.error_after:
                self._event(writer, {"error": {"message": "worker lost", "code": 500}})
                break
            if index:
                await asyncio.sleep(script.inter_token_latency)
            if script.keep_alives:
                self._chunk(writer, b": keep-alive\n\n")
            self._event(writer, _delta("w1 " * script.tokens_per_chunk))
            seen.written.append(time.perf_counter())
            await writer.drain()
        if not script.no_finish:
            self._event(writer, _delta(None, finish="length"))
        if not script.no_usage:
            completion = script.claimed_completion_tokens or tokens
            prompt = self.character.count(seen.body["messages"][0]["content"])
            usage: dict = {"prompt_tokens": prompt, "completion_tokens": completion}
            if script.cached_tokens is not None:
                usage["prompt_tokens_details"] = {"cached_tokens": script.cached_tokens}
            self._event(writer, {"choices": [], "usage": usage})
        self._chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _event(self, writer: asyncio.StreamWriter, event: dict) -> None:
        self._chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def _delta(content: str | None, role: str | None = None, finish: str | None = None) -> dict:
    delta = {
        key: value for key, value in (("role", role), ("content", content)) if value is not None
    }
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


@asynccontextmanager
async def reference_server(
    script: Script | Callable[[int, dict], Script] = Script(),
    character: Character | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[ReferenceServer]:
    """A running server that answers every request by one script, or by a function of it."""
    by = script if callable(script) else lambda index, body: script
    server = ReferenceServer(by, character, tls)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
