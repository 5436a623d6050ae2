"""The loop that keeps a schedule, sends, and notes what comes back.

One thread, one epoll. What must happen at its time comes first: reading sockets and sending
what is due. Everything that can wait is done in small steps while nothing is ready: preparing
the bodies of requests that are due soon, and interpreting responses that have ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import heapq
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pytest_dynamo_bench.load.chat import Ended, Reading, RecordMaker
from pytest_dynamo_bench.load.clock import ReceiveClock
from pytest_dynamo_bench.load.connection import (
    ANCILLARY_BYTES,
    READ_BYTES,
    Connection,
    Response,
    Server,
)
from pytest_dynamo_bench.load.health import DriverHealth, Sampler
from pytest_dynamo_bench.plain_text import secrets_in
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.traffic import TrafficRequest

_IN, _OUT, _BAD = 1, 4, 8 | 16
_IDLE_CONNECTIONS = 512
_BODIES_AHEAD = 64
_BODIES_AT_ONCE = 16
_TOKENS_AT_ONCE = 2048
_RECORDS_AT_ONCE = 16
_CHUNKS_AT_ONCE = 1024
_BODY_BYTES_AHEAD = 16_000_000
_MOST_WAITING_BYTES = 16_000_000
_CHECK_CLOCK_NS = 100_000_000
_REPORT_NS = 500_000_000
_SPIN_NS = 300_000
_STEP_NS = 300_000
_WORK_NS = 100_000
_STARVED_NS = 2_000_000
_COARSE_NS = 3_000_000
_PROBE_SECONDS = 2.0
_PR_SET_TIMERSLACK = 29


@dataclass(frozen=True)
class Job:
    """What a driver has to send. It can be pickled when its parts can.

    Attributes:
        server: where to.
        sessions: turns of each session in order; sessions in the order of their first turns.
        concurrency: sessions in flight at a time, for a closed loop; None for an open one.
        bodies: makes the bodies of some requests, which is faster for several at once.
        timeout_seconds: a request that has not ended by then has failed.
        connections: opened ahead of time.
        fast_forward: modelled time runs so many times faster than the clock.
        count_tokens: how many tokens each text of a list has; None: the server alone says.
        session_header: a header that names the session of a request; empty for none.
        session_salt: makes the names of one run's sessions unlike those of another's.
        ramp_seconds: of a closed loop, modelled time over which its places start one by one.
    """

    server: Server
    sessions: Sequence[Sequence[TrafficRequest]]
    concurrency: int | None
    bodies: Callable[[Sequence[TrafficRequest]], list[bytes]]
    timeout_seconds: float
    connections: int = 0
    fast_forward: float = 1.0
    count_tokens: Callable[[list[str]], list[int]] | None = None
    ramp_seconds: float = 0.0
    session_header: str = ""
    session_salt: str = ""

    def session_line(self, request: TrafficRequest) -> bytes:
        """The header that names a request's session; a trace's own name may be anything."""
        if not self.session_header:
            return b""
        name = hashlib.sha256(f"{self.session_salt}/{request.session_id}".encode()).hexdigest()
        return f"\r\n{self.session_header}: {name[:32]}".encode("latin-1")


class Mailbox(Protocol):
    """Where a driver reports to, without ever waiting for it."""

    def records(self, records: list[RequestRecord]) -> None:
        """Requests that have ended, and have been interpreted."""

    def stopped(self) -> bool:
        """Whether the driver has been asked to give up."""


class _Sending:
    """A request from being due to being interpreted."""

    __slots__ = ("connection", "due_ns", "position", "reading", "request", "retried", "turns")

    def __init__(self, turns: Sequence[TrafficRequest], position: int, due_ns: int) -> None:
        self.turns = turns
        self.position = position
        self.request = turns[position]
        self.due_ns = due_ns
        self.retried = False
        # A connection that holds this request already and only waits for its time.
        self.connection: Connection | None = None
        self.reading: Reading | None = None


class Driver:
    """Sends one job.

    Args:
        job: what to send.
        mailbox: called with what has ended, twice a second.
    """

    def __init__(self, job: Job, mailbox: Mailbox) -> None:
        self._job = job
        self._mailbox = mailbox
        self._head = job.server.head()
        self._tls = (job.server.tls or ssl.create_default_context)() if job.server.secure else None
        self._poller = _Poller()
        self._clock = ReceiveClock()
        self._connections: dict[int, Connection] = {}
        self._idle: list[Connection] = []
        self._deadlines: deque[tuple[int, Connection, _Sending]] = deque()
        # Due times of turns, a number that keeps equal times in order, the request.
        self._due: list[tuple[int, int, _Sending]] = []
        self._sequence = 0
        self._next_session = 0
        self._in_flight = 0
        self._bodies: dict[str, bytes] = {}
        self._body_bytes = 0
        self._next_body = self._sessions_sent = 0
        self._body_ns_per_token = 100.0
        # Not known before there is one, so that the first is built alone.
        self._bytes_per_body = _BODY_BYTES_AHEAD
        self._follow_ups: deque[TrafficRequest] = deque()
        # Later turns that could not wait for their body to be built ahead.
        self._sent_early: set[str] = set()
        # Connections of which something has been read that may tell what comes next.
        self._unseen: deque[Connection] = deque()
        # What has ended, with what it takes in memory.
        self._ended: deque[tuple[_Sending, Reading, int]] = deque()
        self._ended_bytes = 0
        self._interpreting: tuple[_Sending, Reading, Iterator[None]] | None = None
        self._understood: list[Ended] = []
        self._understood_chunks = 0
        self._finished: list[RequestRecord] = []
        self._address: tuple[int, tuple[Any, ...]] | None = None
        self._address_error: OSError | None = None
        self._next_check_ns = self._next_report_ns = 0
        self._stopping = False
        self._has_work = True
        self._worked_ns = 0
        self._start_ns = 0
        self._maker = RecordMaker(
            self._clock, job.fast_forward, job.count_tokens, secrets_in(job.server.headers)
        )
        self._loop_busy = Sampler()
        self._late_bodies = self._reconnects = self._reads = 0

    def prepare(self) -> None:
        """Resolve the address, open connections, build the first bodies."""
        try:
            self._prepare()
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        for connection in list(self._connections.values()):
            self._forget(connection)
        self._poller.close()

    def _prepare(self) -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        try:
            self._address = _reachable_address(self._job.server)
        except OSError as error:
            self._address_error = error
            return
        wanted = max(self._job.connections, self._job.concurrency or 0)
        try:
            for _ in range(min(wanted, len(self._job.sessions), _IDLE_CONNECTIONS)):
                self._idle.append(self._open())
        except OSError:
            pass
        while self._prepare_bodies():
            pass
        deadline_ns = time.monotonic_ns() + 1_000_000_000
        while any(not c.connected and not c.closed for c in self._idle):
            if time.monotonic_ns() > deadline_ns:
                break
            for fd, mask in self._poller.wait(10_000_000):
                self._serve(fd, mask, time.monotonic_ns())

    def run(self, start_ns: int) -> DriverHealth:
        """Send everything, and return when everything has ended and been reported.

        Args:
            start_ns: time 0 of the schedule, monotonic.
        """
        self._start_ns = start_ns
        self._maker.start_ns = start_ns
        cpu_ns, began_ns = time.thread_time_ns(), time.monotonic_ns()
        try:
            self._begin()
            self._loop()
        finally:
            self._close()
        self._clock.check()
        while self._interpret(force=True):
            pass
        self._report()
        wall_ns = time.monotonic_ns() - began_ns
        return DriverHealth(
            wall_seconds=wall_ns / 1e9,
            cpu_seconds=(time.thread_time_ns() - cpu_ns) / 1e9,
            receive_lag_ms=self._maker.receive_lag.spread_ms(),
            loop_busy_ms=self._loop_busy.spread_ms(),
            late_bodies=self._late_bodies,
            reconnects=self._reconnects,
            clock_steps=self._clock.steps,
            clock_uncertainty_ms=self._clock.uncertainty_ns / 1e6,
            reads=self._reads,
        )

    def _begin(self) -> None:
        if self._job.concurrency is None:
            for turns in self._job.sessions:
                self._push(_Sending(turns, 0, self._due_ns(turns[0].timestamp_ms)))
            self._next_session = len(self._job.sessions)
        else:
            places = min(self._job.concurrency, len(self._job.sessions))
            ramp_ms = 1000 * self._job.ramp_seconds
            for place in range(places):
                self._start_session(self._due_ns(ramp_ms * place / places))

    def _due_ns(self, milliseconds: float) -> int:
        return self._start_ns + int(milliseconds * 1e6 / self._job.fast_forward)

    def _push(self, sending: _Sending) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (sending.due_ns, self._sequence, sending))

    def _start_session(self, due_ns: int) -> None:
        if self._next_session < len(self._job.sessions) and not self._stopping:
            turns = self._job.sessions[self._next_session]
            self._next_session += 1
            self._push(_Sending(turns, 0, due_ns))

    # The loop.

    def _loop(self) -> None:
        clock = time.monotonic_ns
        wait = self._poller.wait
        connections, due, deadlines = self._connections, self._due, self._deadlines
        readable, size, ancillary_size = _IN, READ_BYTES, ANCILLARY_BYTES
        began = clock()
        while due or self._in_flight:
            now = clock()
            self._loop_busy.add(now - began)
            if now >= self._next_report_ns:
                self._report()
                self._next_report_ns = now + _REPORT_NS
                if self._mailbox.stopped():
                    self._stopping = True
                    break
            # Only what is due is worth being woken early for.
            later = min(
                deadlines[0][0] if deadlines else self._next_report_ns, self._next_report_ns
            )
            wake = min(due[0][0], later) if due else later + _SPIN_NS
            # Looking first costs a system call that is worth it only if there is work to do
            # while nothing is ready.
            looking = self._has_work or now >= self._next_check_ns or bool(due)
            events = wait(0) if looking else wait(wake - now)
            if looking and not events:
                if due and 0 < due[0][0] - now < 2 * _SPIN_NS and not due[0][2].connection:
                    self._load(due[0][2])
                    continue
                if wake - now > _STEP_NS and self._work_a_little(now, wake):
                    # No connection is served meanwhile, so that this counts as well.
                    began = now
                    continue
                events = wait(wake - clock())
            began = seen = clock()
            for fd, mask in events:
                connection = connections.get(fd)
                if connection is None:
                    continue
                recvmsg = connection.recvmsg
                if mask == readable and recvmsg is not None:
                    # The hot path, inline: what Connection.on_readable does.
                    try:
                        data, ancillary, _, _ = recvmsg(size, ancillary_size)
                    except (BlockingIOError, InterruptedError):
                        continue
                    except OSError as error:
                        connection.lost(seen, error)
                    else:
                        if not data:
                            connection.lost(seen, None)
                        # Nothing but the stamp was asked of the kernel.
                        elif connection.received(ancillary[0][2] if ancillary else b"", seen, data):
                            continue
                    if connection.ended:
                        self._settle(connection, seen)
                    elif connection.unseen:
                        self._note(connection)
                else:
                    self._serve(fd, mask, seen)
            while due and due[0][0] <= seen:
                self._send(heapq.heappop(due)[2])
                seen = clock()
            if deadlines and deadlines[0][0] <= seen:
                self._expire(seen)
            while self._ended_bytes > _MOST_WAITING_BYTES:
                self._interpret(force=True)
            if self._has_work and seen - self._worked_ns > _STARVED_NS:
                # Never idle: what can wait would wait for ever.
                self._work_a_little(seen, due[0][0] if due else seen + _STARVED_NS)

    def _serve(self, fd: int, mask: int, seen_ns: int) -> None:
        """Everything that can happen to a connection."""
        connection = self._connections.get(fd)
        if connection is None:
            return
        if mask & _OUT or (mask & _BAD and not connection.connected):
            try:
                connection.on_writable()
            except (OSError, ssl.SSLError) as error:
                self._not_connected(connection, error)
                return
        if mask & (_IN | _BAD) and not connection.closed:
            connection.on_readable(seen_ns)
        if connection.closed or connection.ended:
            self._settle(connection, seen_ns)
        elif connection.unseen:
            self._note(connection)
        if not connection.closed:
            self._poller.modify(fd, _IN | _OUT if connection.wants_write else _IN)

    def _settle(self, connection: Connection, seen_ns: int) -> None:
        """A response is over, or an idle connection is gone."""
        sending: _Sending | None = connection.job
        connection.job = None
        if sending is None:
            if connection.closed:
                self._forget(connection)
            return
        if connection.closed:
            self._forget(connection)
            if connection.response.error and connection.untouched and not sending.retried:
                # It was closed while it was idle, and that crossed the request.
                sending.retried = True
                self._reconnects += 1
                self._load(sending)
                if sending.connection is not None:
                    self._fire(sending, sending.connection, connection.response.sent_ns)
                return
        elif len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            self._forget(connection)
        self._keep(sending, connection.response, seen_ns)

    def _note(self, connection: Connection) -> None:
        """Look into what has been read when there is time."""
        connection.unseen = False
        self._unseen.append(connection)
        self._has_work = True

    def _keep(self, sending: _Sending, response: Response, seen_ns: int) -> None:
        """Note a response for later, and let its session go on."""
        self._in_flight -= 1
        self._has_work = True
        self._reads += response.reads
        size = response.size
        self._ended.append((sending, self._reading(sending, response), size))
        self._ended_bytes += size
        position = sending.position + 1
        if position < len(sending.turns) and not self._stopping:
            delay_ns = int(sending.turns[position].delay_ms * 1e6 / self._job.fast_forward)
            self._push(_Sending(sending.turns, position, seen_ns + delay_ns))
        elif self._job.concurrency is not None:
            self._start_session(seen_ns)

    def _send(self, sending: _Sending) -> None:
        self._in_flight += 1
        self._has_work = True
        if sending.connection is None or sending.connection.closed:
            self._load(sending)
        connection = sending.connection
        if connection is not None:
            self._fire(sending, connection)
        self._sessions_sent += sending.position == 0
        if sending.position + 1 < len(sending.turns):
            self._follow_ups.append(sending.turns[sending.position + 1])

    def _load(self, sending: _Sending) -> None:
        """Put a request into an idle connection or a new one, without sending it.

        Where that fails when it is due, the failure is its response.
        """
        sending.connection = None
        try:
            connection = self._take() or self._open()
        except OSError as error:
            if sending.due_ns <= time.monotonic_ns():
                response = Response()
                response.sent_ns = response.end_ns = time.monotonic_ns()
                response.error = f"cannot connect: {error.strerror or error}"
                self._keep(sending, response, response.end_ns)
            return
        body = self._bodies.pop(sending.request.request_id, None)
        if body is None:
            (body,) = self._job.bodies([sending.request])
            if not sending.retried:
                self._late_bodies += 1
                if sending.position:
                    self._sent_early.add(sending.request.request_id)
        else:
            self._body_bytes -= len(body)
        head = self._head + self._job.session_line(sending.request)
        connection.load(head + b"\r\nContent-Length: %d\r\n\r\n" % len(body), body)
        sending.connection = connection

    def _fire(self, sending: _Sending, connection: Connection, first_sent_ns: int = 0) -> None:
        """Send a loaded request.

        Args:
            first_sent_ns: when it was sent before, on a connection that was lost; or 0.
        """
        connection.job = sending
        connection.fire()
        sent_ns = connection.response.sent_ns
        if first_sent_ns:
            connection.response.sent_ns = first_sent_ns
        if connection.wants_write:
            self._poller.modify(connection.fd, _IN | _OUT)
        deadline_ns = sent_ns + int(self._job.timeout_seconds * 1e9)
        self._deadlines.append((deadline_ns, connection, sending))

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                connection.was_idle = True
                return connection
        return None

    def _open(self) -> Connection:
        if self._address is None:
            raise self._address_error or OSError("no address")
        family, address = self._address
        connection = Connection(address, family, self._job.server, self._tls)
        self._connections[connection.fd] = connection
        self._poller.register(connection.fd, _IN | _OUT)
        return connection

    def _forget(self, connection: Connection) -> None:
        # A new connection may have got the number of one that is closed already.
        if self._connections.get(connection.fd) is connection:
            del self._connections[connection.fd]
            self._poller.unregister(connection.fd)
        connection.close()

    def _not_connected(self, connection: Connection, error: Exception) -> None:
        sending: _Sending | None = connection.job
        connection.job = None
        self._forget(connection)
        if sending is not None:
            response = connection.response
            response.end_ns = time.monotonic_ns()
            text = error.strerror if isinstance(error, OSError) else None
            response.error = f"cannot connect: {text or error}"
            self._keep(sending, response, response.end_ns)

    def _expire(self, now_ns: int) -> None:
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, connection, sending = self._deadlines.popleft()
            if connection.job is sending:
                connection.abandon(f"no complete response after {self._job.timeout_seconds:g} s")
                self._settle(connection, now_ns)

    # What can wait.

    def _work_a_little(self, now_ns: int, wake_ns: int) -> bool:
        """Some small steps; False when there is nothing to do, or not enough time."""
        self._worked_ns = now_ns
        if now_ns >= self._next_check_ns:
            self._next_check_ns = now_ns + _CHECK_CLOCK_NS
            self._clock.check()
            while self._deadlines and self._deadlines[0][1].job is not self._deadlines[0][2]:
                self._deadlines.popleft()
        worked = False
        bodies = True
        while True:
            # Nothing is sent meanwhile, so that no more bodies are wanted when enough are there.
            bodies = bodies and self._prepare_bodies(wake_ns - now_ns)
            self._has_work = bodies or self._look_ahead() or self._interpret()
            worked = worked or self._has_work
            now_ns = time.monotonic_ns()
            if (
                not self._has_work
                or now_ns - self._worked_ns > _WORK_NS
                or wake_ns - now_ns < _STEP_NS
            ):
                return worked

    def _look_ahead(self) -> bool:
        """Read on in a response that goes on, so that what comes next is known when it comes."""
        if not self._unseen:
            return False
        connection = self._unseen.popleft()
        sending: _Sending | None = connection.job
        if sending is None or connection.ended:
            return True
        connection.look()
        if connection.ended:
            self._settle(connection, time.monotonic_ns())
            return True
        reading = self._reading(sending, connection.response)
        next(self._maker.read(reading), None)
        if reading.response.body and not reading.over:
            self._unseen.append(connection)
            return True
        if reading.pattern is not None:
            connection.expect(reading.pattern.start, reading.pattern.end)
        connection.unseen = reading.may_have_pattern and connection.worth_expecting
        return True

    def _reading(self, sending: _Sending, response: Response) -> Reading:
        if sending.reading is None or sending.reading.response is not response:
            sending.reading = Reading(response)
        return sending.reading

    def _prepare_bodies(self, time_ns: int | None = None) -> bool:
        """Build some of the bodies that are needed next.

        Args:
            time_ns: they are put off if they would probably take longer; None: there is no hurry.
        """
        requests = self._to_build(time_ns)
        if not requests:
            return False
        began_ns = time.monotonic_ns()
        bodies = self._job.bodies(requests)
        took_ns = time.monotonic_ns() - began_ns
        tokens = sum(request.input_tokens for request in requests)
        self._body_ns_per_token += (took_ns / max(tokens, 1) - self._body_ns_per_token) / 8
        for request, body in zip(requests, bodies, strict=True):
            self._bodies[request.request_id] = body
            self._body_bytes += len(body)
        self._bytes_per_body = max(len(body) for body in bodies)
        return True

    def _to_build(self, time_ns: int | None) -> list[TrafficRequest]:
        """The requests whose bodies are wanted next, as many as there is time for."""
        found: list[TrafficRequest] = []
        tokens, most_bytes = 0, _BODY_BYTES_AHEAD - self._body_bytes
        while len(found) < _BODIES_AT_ONCE:
            request = self._next_to_build()
            if request is None:
                break
            tokens += request.input_tokens
            needs_bytes = (len(found) + 1) * self._bytes_per_body
            if found and (tokens > _TOKENS_AT_ONCE or needs_bytes > most_bytes):
                break
            needs_ns = tokens * self._body_ns_per_token
            if time_ns is not None and needs_ns > time_ns and (found or self._bodies):
                break
            if self._follow_ups:
                self._follow_ups.popleft()
            else:
                self._next_body += 1
            found.append(request)
        return found

    def _next_to_build(self) -> TrafficRequest | None:
        """The request whose body is wanted next; bounded by number and by bytes."""
        while self._follow_ups and self._follow_ups[0].request_id in self._sent_early:
            self._sent_early.discard(self._follow_ups.popleft().request_id)
        if self._follow_ups:
            return self._follow_ups[0]
        self._next_body = max(self._next_body, self._sessions_sent)
        ahead = self._next_body - self._sessions_sent
        if (
            self._next_body >= len(self._job.sessions)
            or ahead >= max(_BODIES_AHEAD, self._job.concurrency or 0)
            or self._body_bytes >= _BODY_BYTES_AHEAD
        ):
            return None
        return self._job.sessions[self._next_body][0]

    def _interpret(self, *, force: bool = False) -> bool:
        """Read on in a response that has ended, for a fraction of a millisecond."""
        if self._interpreting is None:
            if not self._ended:
                return False
            sending, reading, size = self._ended.popleft()
            self._ended_bytes -= size
            self._interpreting = sending, reading, self._maker.read(reading)
        sending, reading, steps = self._interpreting
        for _ in steps:
            if not force:
                return True
        self._interpreting = None
        self._understood.append((sending.request, sending.due_ns, reading))
        self._understood_chunks += len(reading.chunk_reads)
        if (
            not self._ended
            or len(self._understood) >= _RECORDS_AT_ONCE
            or self._understood_chunks >= _CHUNKS_AT_ONCE
        ):
            self._clock.check(since_ns=max(r.response.end_ns for _, _, r in self._understood))
            self._finished += self._maker.records(self._understood)
            self._understood, self._understood_chunks = [], 0
        return True

    def _report(self) -> None:
        if self._finished:
            self._mailbox.records(self._finished)
            self._finished = []


def _reachable_address(server: Server) -> tuple[int, tuple[Any, ...]]:
    """Family and address of the first that takes a connection; the first of all if none does.

    A name may stand for several, such as ``localhost`` for ``::1``, where no server listens.

    Raises:
        OSError: the name cannot be resolved.
    """
    found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in found:
        if len(found) == 1:
            break
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.settimeout(_PROBE_SECONDS)
            probe.connect(address)
            return int(family), address
    family, _, _, _, address = found[0]
    return int(family), address


class _Poller:
    """Waits for sockets: epoll with waits of microseconds on Linux, poll elsewhere."""

    def __init__(self) -> None:
        self._epoll = select.epoll() if sys.platform == "linux" else None
        self._poll = self._epoll or select.poll()
        self.register = self._poll.register
        self.modify = self._poll.modify

    def unregister(self, fd: int) -> None:
        # Closing a socket has taken it out already.
        with contextlib.suppress(OSError, KeyError, ValueError):
            self._poll.unregister(fd)

    def wait(self, timeout_ns: int) -> list[tuple[int, int]]:
        """What is ready, after ``timeout_ns`` at the latest and hardly earlier.

        The last fraction of a millisecond is left to the caller, who asks again and again: to
        be woken takes the kernel longer than a request may be late.
        """
        epoll = self._epoll
        if epoll is None:
            return self._poll.poll(max(timeout_ns, 0) / 1e6)
        if timeout_ns > _COARSE_NS:
            return epoll.poll(timeout_ns // 1_000_000 / 1e3 - 0.001)
        if timeout_ns > _SPIN_NS:
            # An epoll is a file that can be waited for, with microseconds instead of
            # milliseconds. Only the first thousand files can; there is always epoll itself.
            try:
                select.select((epoll.fileno(),), (), (), (timeout_ns - _SPIN_NS) / 1e9)
            except ValueError:
                return epoll.poll(timeout_ns // 1_000_000 / 1e3)
        return epoll.poll(0)

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()
