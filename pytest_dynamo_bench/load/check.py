"""How far the load generator can be trusted on this machine, found out by trying.

Load is raised step by step against a server that knows when it wrote what. A step is trusted
when what the load generator recorded agrees with that, and when it kept its own schedule.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from pytest_dynamo_bench.errors import LoadError
from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.load.generator import LoadGenerator
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.traffic import Concurrency, FixedSchedule, Traffic, TrafficRequest

_SERVER = Path(__file__).with_name("reference_server.py")
_BLOCK_TOKENS = 512
_TTFT_MS, _ITL_MS = 50.0, 10.0


@dataclass(frozen=True)
class Limits:
    """From when on a step is not trusted.

    Attributes:
        ttft_error_p99_ms: of the time to first token, against the server's log.
        gap_error_p99_ms: of the time between two chunks.
        schedule_delay_p99_ms: how late requests were sent, for steps with a rate.
        cpu_share: of a core, in the busiest process.
    """

    ttft_error_p99_ms: float = 1.0
    gap_error_p99_ms: float = 1.0
    schedule_delay_p99_ms: float = 5.0
    cpu_share: float = 0.9


@dataclass(frozen=True)
class Step:
    """A load to try: a closed loop of ``streams``, or ``rate`` requests a second.

    ``tokens`` are streamed in each response; ``itl_ms`` apart, all streams at the same moments.
    """

    requests: int
    tokens: int
    streams: int | None = None
    rate: float | None = None
    input_tokens: int = 100

    @property
    def name(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s of {self.input_tokens:,} tokens"
        plural = "s" if self.streams != 1 else ""
        return f"{self.streams} stream{plural} of {1000 / _ITL_MS:g} tokens/s"


STEPS = (
    Step(requests=3, tokens=64, streams=1),
    Step(requests=32, tokens=64, streams=16),
    Step(requests=128, tokens=64, streams=64),
    Step(requests=400, tokens=64, streams=200),
    Step(requests=800, tokens=64, streams=400),
    Step(requests=1600, tokens=64, streams=800),
    Step(requests=100, tokens=4, rate=50, input_tokens=2000),
    Step(requests=400, tokens=4, rate=200, input_tokens=2000),
    Step(requests=1000, tokens=4, rate=500, input_tokens=500),
    Step(requests=2000, tokens=4, rate=1000, input_tokens=100),
    Step(requests=4000, tokens=4, rate=2000, input_tokens=100),
)


@dataclass(frozen=True)
class StepResult:
    """What a step came to.

    Attributes:
        chunks_per_second: that arrived.
        ttft_error_mean_ms, ttft_error_p99_ms, gap_error_p99_ms: against the server's log.
        server_late_p99_ms: how late the server itself wrote, by its own schedule: a step with
            much of it is one that this machine cannot serve, and says less about the client.
        reasons: why it is not trusted; empty when it is.
    """

    step: Step
    chunks_per_second: float = math.nan
    ttft_error_mean_ms: float = math.nan
    ttft_error_p99_ms: float = math.nan
    gap_error_p99_ms: float = math.nan
    schedule_delay_p50_ms: float = math.nan
    schedule_delay_p99_ms: float = math.nan
    cpu_share: float = math.nan
    coalesced_share: float = math.nan
    kernel_timestamp_share: float = math.nan
    server_late_p99_ms: float = math.nan
    reasons: tuple[str, ...] = ()

    @property
    def trusted(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class CheckResult:
    """All steps, and how exact the yardstick is.

    Attributes:
        server_accuracy_ms: median time from the server's note of a write to the first moment
            at which a plain blocking read had it: what its log can be off by, at most.
    """

    steps: tuple[StepResult, ...]
    processes: int
    server_accuracy_ms: float
    limits: Limits

    @property
    def most_streams(self) -> int:
        """The highest concurrency up to which every step is trusted; 0 for none."""
        return int(_highest([s for s in self.steps if s.step.streams], "streams"))

    @property
    def most_rate(self) -> float:
        """The highest rate, in requests/s, up to which every step is trusted; 0 for none."""
        return _highest([s for s in self.steps if s.step.rate], "rate")

    def plain(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "most_streams": self.most_streams,
            "most_requests_per_second": self.most_rate,
            "processes": self.processes,
            "server_accuracy_ms": self.server_accuracy_ms,
            "limits": asdict(self.limits),
            "steps": [asdict(s) | {"name": s.step.name, "trusted": s.trusted} for s in self.steps],
        }


def _highest(steps: Sequence[StepResult], name: str) -> float:
    highest = 0.0
    for result in steps:
        if not result.trusted:
            break
        highest = float(getattr(result.step, name))
    return highest


async def check_client(
    processes: int = 1,
    *,
    steps: Sequence[Step] = STEPS,
    limits: Limits | None = None,
    tell: Callable[[int, Step], None] = lambda done, step: None,
) -> CheckResult:
    """Try all steps; after one that is not trusted, no higher one of its kind.

    Args:
        processes: of the load generator.
        tell: called before each step with how many are done.

    Raises:
        LoadError: the reference server or a process of the load generator died.
    """
    limits = limits or Limits()
    results: list[StepResult] = []
    async with _reference_server() as url:
        accuracy_ms = await asyncio.to_thread(_probe, url)
        for index, step in enumerate(steps):
            kind = [r for r in results if (r.step.rate is None) == (step.rate is None)]
            if kind and not kind[-1].trusted:
                continue
            tell(index, step)
            results.append(await _try(step, url, processes, limits))
    return CheckResult(tuple(results), processes, accuracy_ms, limits)


async def _try(step: Step, url: str, processes: int, limits: Limits) -> StepResult:
    blocks = -(-step.input_tokens // _BLOCK_TOKENS)
    requests = [
        TrafficRequest(
            str(i), str(i), 0, 1000 * i / step.rate if step.rate else 0.0, 0.0,
            step.input_tokens, step.tokens, tuple(range(i * blocks, (i + 1) * blocks)),
        )
        for i in range(step.requests)
    ]  # fmt: skip
    schedule = Concurrency(step.streams) if step.streams else FixedSchedule()
    query = f"ttft_ms={_TTFT_MS:g}&itl_ms={_ITL_MS:g}&in_step=1"
    generator = LoadGenerator(
        Server(f"{url}/v1/chat/completions?{query}"), "reference",
        request_timeout_seconds=60, processes=processes, connections=step.streams or 64,
    )  # fmt: skip
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        await client.get("/reset")
        await generator.send(Traffic(requests, schedule, _BLOCK_TOKENS, ()), lambda whole: None)
        log = (await client.get("/log")).text
    written = [[int(number) for number in line.split()] for line in log.splitlines()]
    return _judge(step, generator, written, limits)


def _judge(
    step: Step, generator: LoadGenerator, log: list[list[int]], limits: Limits
) -> StepResult:
    records = [record for record in generator.records() if record.error is None]
    failed = step.requests - len(records)
    health = generator.measured
    if failed or len(log) != len(records):
        errors = [record.error for record in generator.records() if record.error]
        reason = f"{failed} of {step.requests} requests failed" + (
            f": {errors[0]}" if errors else ""
        )
        return StepResult(step, cpu_share=health.cpu_share, reasons=(reason,))
    ttft_error, gap_error = errors_against(records, log)
    due = [entry[1] / 1e6 % _ITL_MS for entry in log]
    delays = [r.sent_ms - r.scheduled_ms for r in records if r.sent_ms is not None]
    p50, p99 = (float(q) for q in np.percentile(delays, [50, 99]))
    seconds = (max(entry[-1] for entry in log) - min(entry[0] for entry in log)) / 1e9
    found = {
        "ttft_error_p99_ms": float(np.percentile(ttft_error, 99)),
        "gap_error_p99_ms": float(np.percentile(gap_error, 99)),
        "schedule_delay_p99_ms": p99 if step.rate else 0.0,
        "cpu_share": health.cpu_share,
    }
    reasons = tuple(
        f"{name} {value:.2f} is above {getattr(limits, name):g}"
        for name, value in found.items()
        if value > getattr(limits, name)
    )
    return StepResult(
        step=step,
        chunks_per_second=sum(len(entry) - 1 for entry in log) / seconds,
        ttft_error_mean_ms=float(ttft_error.mean()),
        ttft_error_p99_ms=found["ttft_error_p99_ms"],
        gap_error_p99_ms=found["gap_error_p99_ms"],
        schedule_delay_p50_ms=p50,
        schedule_delay_p99_ms=p99,
        cpu_share=health.cpu_share,
        coalesced_share=health.coalesced_share,
        kernel_timestamp_share=health.kernel_timestamp_share,
        server_late_p99_ms=float(np.percentile(due, 99)),
        reasons=reasons,
    )


def errors_against(
    records: Sequence[RequestRecord], log: Sequence[Sequence[int]]
) -> tuple[Any, Any]:
    """How far records are from what the server did, requests in the order of their sending.

    Args:
        records: successful requests.
        log: for each request its arrival and the time of each write, in ns.

    Returns:
        (requests,) absolute errors of the time to first token, and (gaps,) of the time between
        two chunks, in ms.
    """
    by_sending = sorted(records, key=lambda r: r.sent_ms or 0.0)
    by_arrival = sorted(log, key=lambda entry: entry[0])
    mine = np.array([r.chunk_ms[0] - (r.sent_ms or 0.0) for r in by_sending])
    true = np.array([(entry[1] - entry[0]) / 1e6 for entry in by_arrival])
    gaps = [
        np.abs(np.diff(r.chunk_ms) - np.diff(entry[1:]) / 1e6)
        for r, entry in zip(by_sending, by_arrival, strict=True)
        if len(r.chunk_ms) == len(entry) - 1
    ]
    return np.abs(mine - true), np.concatenate(gaps) if gaps else np.zeros(1)


@contextlib.asynccontextmanager
async def _reference_server() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(_SERVER),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line.strip().isdigit():
            raise LoadError("the reference server did not start; see its output above")
        yield f"http://127.0.0.1:{int(line)}"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


def _probe(url: str) -> float:
    """Median time from the server's note of a write to the end of a blocking read of it, in ms."""
    parts = urlsplit(url)
    body = b'{"max_tokens": 50}'
    seen: list[int] = []
    with socket.create_connection((parts.hostname, parts.port)) as sock:
        sock.settimeout(10)
        sock.sendall(
            b"POST /v1/chat/completions?ttft_ms=5&itl_ms=5 HTTP/1.1\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        ending = b""
        while not ending.endswith(b"0\r\n\r\n"):
            data = sock.recv(65_536)
            now = time.monotonic_ns()
            if not data:
                raise LoadError("the reference server closed the connection of the probe")
            ending = (ending + data)[-5:]
            if b'"content": "w' in data:
                seen.append(now)
    log = httpx.get(url + "/log", trust_env=False).text.splitlines()[-1]
    written = [int(number) for number in log.split()][1:]
    count = min(len(seen), len(written))
    return float(np.median(np.subtract(seen[:count], written[:count]))) / 1e6
