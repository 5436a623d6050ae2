"""Drives a traffic against a server: keeps its schedule and collects one record per request."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus

from pytest_dynamo_bench.load.chat import DYNAMO, Dialect, request_body, to_record
from pytest_dynamo_bench.load.client import RawResponse, StreamingClient
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.traffic import Concurrency, Traffic, TrafficRequest

Ended = Callable[[bool], None]
_Keep = Callable[[TrafficRequest, float, RawResponse], None]


class LoadGenerator:
    """Sends a traffic through a client.

    Bodies are built before the clock starts and responses are interpreted after it has
    stopped, so that neither keeps the event loop from noting when bytes arrive.

    Args:
        client: what sends; it is not closed.
        model: the name that requests ask for.
        request_timeout_seconds: a request that has not ended by then is recorded as failed.
        dialect: what a body may say, and of which words prompts are made.
    """

    def __init__(
        self,
        client: StreamingClient,
        model: str,
        *,
        request_timeout_seconds: float = 600,
        dialect: Dialect = DYNAMO,
    ) -> None:
        self._client = client
        self._model = model
        self._dialect = dialect
        self._timeout_seconds = request_timeout_seconds
        self._start_ns = 0
        self._started_at = ""
        self._arrived: list[tuple[TrafficRequest, float, RawResponse]] = []

    @property
    def started_at(self) -> str:
        """Wall-clock start of the run, ISO 8601, UTC; empty before :meth:`send`."""
        return self._started_at

    async def send(
        self,
        traffic: Traffic,
        ended: Ended,
        *,
        prepared: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Send everything, and wait until everything has ended.

        Args:
            ended: called when a request has ended, with whether its response is whole.
            prepared: awaited when everything is ready to be sent; the run starts when it returns.
        """
        sessions = _sessions(traffic.requests)
        bodies = {
            request.request_id: request_body(
                self._model, request, traffic.block_tokens, self._dialect
            )
            for request in traffic.requests
        }

        def keep(request: TrafficRequest, due_ms: float, response: RawResponse) -> None:
            self._arrived.append((request, due_ms, response))
            ended(response.error is None and response.status == HTTPStatus.OK)

        if prepared is not None:
            await prepared()
        with _garbage_collector_away():
            self._started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._start_ns = time.perf_counter_ns()
            if isinstance(traffic.schedule, Concurrency):
                await self._closed_loop(sessions, bodies, traffic.schedule.sessions, keep)
            else:
                await self._open_loop(sessions, bodies, keep)

    def records(self) -> list[RequestRecord]:
        """What has ended so far, in the order in which it ended.

        Also after :meth:`send` was cancelled: what was measured until then is not lost.
        """
        return [to_record(*item, self._start_ns) for item in self._arrived]

    async def _open_loop(
        self, sessions: Sequence[Sequence[TrafficRequest]], bodies: dict[str, bytes], keep: _Keep
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for turns in sessions:
                await self._sleep_until(turns[0].timestamp_ms)
                group.create_task(self._session(turns, bodies, turns[0].timestamp_ms, keep))

    async def _closed_loop(
        self,
        sessions: Sequence[Sequence[TrafficRequest]],
        bodies: dict[str, bytes],
        concurrency: int,
        keep: _Keep,
    ) -> None:
        waiting = iter(sessions)

        async def take_turns() -> None:
            for turns in waiting:
                await self._session(turns, bodies, self._now_ms(), keep)

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(take_turns())

    async def _session(
        self,
        turns: Sequence[TrafficRequest],
        bodies: dict[str, bytes],
        due_ms: float,
        keep: _Keep,
    ) -> None:
        for request in turns:
            if request.turn:
                due_ms = self._now_ms() + request.delay_ms
                await self._sleep_until(due_ms)
            response = await self._client.post(
                bodies.pop(request.request_id), self._timeout_seconds
            )
            keep(request, due_ms, response)

    def _now_ms(self) -> float:
        return (time.perf_counter_ns() - self._start_ns) / 1e6

    async def _sleep_until(self, due_ms: float) -> None:
        while (remaining_ms := due_ms - self._now_ms()) > 0:
            await asyncio.sleep(remaining_ms / 1000)


def _sessions(requests: Sequence[TrafficRequest]) -> list[list[TrafficRequest]]:
    """Requests by session, sessions in the order of their first turns."""
    sessions: dict[str, list[TrafficRequest]] = defaultdict(list)
    for request in requests:
        sessions[request.session_id].append(request)
    for turns in sessions.values():
        turns.sort(key=lambda request: request.turn)
    return sorted(sessions.values(), key=lambda turns: turns[0].timestamp_ms)


@contextmanager
def _garbage_collector_away() -> Iterator[None]:
    """A collection stops everything for milliseconds, and would be measured as latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
