"""Drives a traffic against a server: keeps its schedule and collects one record per request."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import secrets
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from pytest_dynamo_bench.errors import LoadError
from pytest_dynamo_bench.load.chat import DYNAMO, Dialect, request_bodies
from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.load.driver import Driver, Job
from pytest_dynamo_bench.load.health import DriverHealth, GeneratorHealth
from pytest_dynamo_bench.load.worker import LENGTH, message
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.traffic import Concurrency, Traffic, TrafficRequest

Ended = Callable[[bool], None]

_READY_SECONDS = 60.0
_STOP_SECONDS = 5.0
_HEAD_START_NS = 5_000_000


class Generator(Protocol):
    """What sends a traffic, and leaves records."""

    @property
    def started_at(self) -> str:
        """Wall-clock start of the run, ISO 8601, UTC."""

    async def send(self, traffic: Traffic, ended: Ended) -> None:
        """Send everything, and wait until everything has ended."""

    def records(self) -> list[RequestRecord]:
        """What has ended so far, also after a cancelled :meth:`send`."""

    def latest(self, count: int) -> list[RequestRecord]:
        """The requests that have ended last, so many at most; empty where that is not known."""

    def health(self) -> dict[str, Any]:
        """How the load generator itself did, as plain data."""


class LoadGenerator:
    """Sends a traffic to a server.

    What is measured shares no process, no lock and no garbage collector with the caller: it runs
    in ``processes`` separate processes, each on one core, all on one clock.

    Args:
        server: where to.
        model: the name that requests ask for.
        request_timeout_seconds: a request that has not ended by then is recorded as failed.
        processes: 0 sends from a thread of this process instead, for a few requests whose
            times do not matter much.
        connections: opened ahead of time, so that requests need not wait for them.
        fast_forward: modelled time runs so many times faster than the clock. The traffic's
            times and those of the records are modelled time.
        ramp_seconds: of a closed loop, modelled time over which its places start one by one.
        count_tokens: how many tokens each text of a list has, to tell the chunks of several
            tokens; used where it adds up to the server's count. None: the server alone says.
        dialect: what a body may say, and of which words prompts are made.
    """

    def __init__(
        self,
        server: Server,
        model: str,
        *,
        request_timeout_seconds: float = 600,
        processes: int = 1,
        connections: int = 16,
        fast_forward: float = 1.0,
        ramp_seconds: float = 0.0,
        count_tokens: Callable[[list[str]], list[int]] | None = None,
        dialect: Dialect = DYNAMO,
    ) -> None:
        self._count_tokens = count_tokens
        self._dialect = dialect
        self._server = server
        self._model = model
        self._timeout_seconds = request_timeout_seconds
        self._processes = processes
        self._connections = connections
        self._fast_forward = fast_forward
        self._ramp_seconds = ramp_seconds
        self._started_at = ""
        self._records: list[RequestRecord] = []
        self._drivers: list[DriverHealth] = []
        self._open_loop = True
        self._ended: Ended = lambda whole: None

    @property
    def started_at(self) -> str:
        """Wall-clock start of the run, ISO 8601, UTC; empty before :meth:`send`."""
        return self._started_at

    def health(self) -> dict[str, Any]:
        """How the load generator itself did, as plain data for reports and for the gate."""
        return {"name": "own"} | self.measured.plain()

    @property
    def measured(self) -> GeneratorHealth:
        """How the load generator itself did; also after :meth:`send` was cancelled."""
        delays = [
            r.sent_ms - r.scheduled_ms
            for r in self._records
            if r.sent_ms is not None and (self._open_loop or r.turn)
        ]
        return GeneratorHealth.of(
            self._drivers,
            self._processes,
            delays,
            sum(len(r.chunk_ms) for r in self._records if r.receive_clock == "kernel"),
            sum(r.coalesced_chunks for r in self._records),
            sum(len(r.chunk_ms) for r in self._records),
        )

    def records(self) -> list[RequestRecord]:
        """What has ended so far, in the order in which it ended.

        Also after :meth:`send` was cancelled: what was measured until then is not lost.
        """
        return list(self._records)

    def latest(self, count: int) -> list[RequestRecord]:
        """The requests that have ended last, so many at most."""
        return self._records[-count:]

    async def send(
        self,
        traffic: Traffic,
        ended: Ended,
        *,
        prepared: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Send everything, and wait until everything has ended.

        Args:
            ended: called when a request has ended, with whether it succeeded; twice a second for
                all that have.
            prepared: awaited when the processes are ready to send; they start when it returns.

        Raises:
            LoadError: a process of the load generator died.
        """
        self._ended = ended
        self._open_loop = not isinstance(traffic.schedule, Concurrency)
        jobs = self._jobs(traffic)
        if self._processes:
            await self._send_from_processes(jobs, prepared)
        else:
            await self._send_from_thread(jobs[0])

    def _jobs(self, traffic: Traffic) -> list[Job]:
        """One for each process: sessions are dealt out in turns, and so is the concurrency."""
        sessions = _sessions(traffic.requests)
        schedule = traffic.schedule
        concurrency = schedule.sessions if isinstance(schedule, Concurrency) else None
        count = max(min(self._processes, concurrency or self._processes, len(sessions)), 1)
        bodies = functools.partial(
            request_bodies,
            self._model,
            block_tokens=traffic.block_tokens,
            images=traffic.images,
            dialect=self._dialect,
        )
        # A server that is there for longer than a run may still know the sessions of another.
        salt = secrets.token_hex(4)
        return [
            Job(
                server=self._server,
                sessions=sessions[index::count],
                concurrency=None if concurrency is None else len(range(index, concurrency, count)),
                bodies=bodies,
                timeout_seconds=self._timeout_seconds,
                connections=-(-self._connections // count),
                fast_forward=self._fast_forward,
                count_tokens=self._count_tokens,
                ramp_seconds=self._ramp_seconds,
                session_header=traffic.session_header,
                session_salt=salt,
            )
            for index in range(count)
        ]

    def _start(self) -> int:
        """Fix the start of the run, on both clocks."""
        start_ns = time.monotonic_ns() + _HEAD_START_NS
        until = timedelta(microseconds=(start_ns - time.monotonic_ns()) / 1000)
        self._started_at = (datetime.now(UTC) + until).isoformat(timespec="milliseconds")
        return start_ns

    def _take(self, records: Sequence[RequestRecord]) -> None:
        self._records.extend(records)
        for record in records:
            self._ended(record.succeeded)

    async def _send_from_thread(self, job: Job) -> None:
        mailbox = _ThreadMailbox(asyncio.get_running_loop(), self._take)

        def work() -> DriverHealth:
            driver = Driver(job, mailbox)
            driver.prepare()
            return driver.run(self._start())

        with _garbage_collector_away():
            working = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                self._drivers = [await asyncio.shield(working)]
            except asyncio.CancelledError:
                mailbox.stop()
                self._drivers = [await working]
                raise
            finally:
                # What the thread reported last may still be on its way.
                await asyncio.sleep(0)

    async def _send_from_processes(
        self, jobs: Sequence[Job], prepared: Callable[[], Awaitable[None]] | None
    ) -> None:
        async with contextlib.AsyncExitStack() as stack:
            workers = [await stack.enter_async_context(_Worker.started()) for _ in jobs]
            pairs = list(zip(workers, jobs, strict=True))
            await asyncio.gather(*(worker.prepare(job) for worker, job in pairs))
            if prepared is not None:
                await prepared()
            start_ns = self._start()
            for worker in workers:
                worker.tell(start_ns)
            collecting = asyncio.gather(*(worker.collect(self._take) for worker in workers))
            try:
                self._drivers = await asyncio.shield(collecting)
            except asyncio.CancelledError:
                for worker in workers:
                    worker.stop()
                with contextlib.suppress(TimeoutError, LoadError):
                    async with asyncio.timeout(_STOP_SECONDS):
                        self._drivers = await collecting
                raise


class _ThreadMailbox:
    def __init__(
        self, loop: asyncio.AbstractEventLoop, take: Callable[[Sequence[RequestRecord]], None]
    ) -> None:
        self._loop, self._take = loop, take
        self._stopped = threading.Event()

    def records(self, records: list[RequestRecord]) -> None:
        self._loop.call_soon_threadsafe(self._take, records)

    def stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        self._stopped.set()


class _Worker:
    """A process that drives one job."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls) -> Any:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pytest_dynamo_bench.load.worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            yield cls(process)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()

    async def prepare(self, job: Job) -> None:
        """Give it its job, and wait until it is ready to start.

        Raises:
            LoadError: it died, or takes too long.
        """
        self.tell(job)
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await self._read()
        except TimeoutError:
            raise LoadError(
                f"a load generator process was not ready after {_READY_SECONDS:g} s"
            ) from None

    def tell(self, content: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(message(content))

    def stop(self) -> None:
        """Ask it to send nothing more, and to report what has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def collect(self, take: Callable[[Sequence[RequestRecord]], None]) -> DriverHealth:
        """Take its records until it is done.

        Raises:
            LoadError: it died.
        """
        while True:
            kind, content = await self._read()
            if kind == "health":
                return content  # type: ignore[no-any-return]
            take([RequestRecord(*values) for values in content])

    async def _read(self) -> tuple[str, Any]:
        import pickle

        stdout = self._process.stdout
        assert stdout is not None
        try:
            head = await stdout.readexactly(LENGTH.size)
            body = await stdout.readexactly(LENGTH.unpack(head)[0])
        except asyncio.IncompleteReadError:
            code = await self._process.wait()
            raise LoadError(
                f"a load generator process exited early with code {code}; see its output above"
            ) from None
        return pickle.loads(body)  # type: ignore[no-any-return] # noqa: S301 from our own child


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
