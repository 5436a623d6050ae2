"""AIPerf as the load generator: the same traffic, sent by ``aiperf``, read back into records.

The dataset is AIPerf's ``single_turn`` form with the very prompts that the own client sends;
later turns of a session follow when the one before has ended. What it recorded per request
(``profile_export.jsonl``) becomes a record: its times are wall-clock, taken in user space.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from array import array
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytest_dynamo_bench.errors import LoadError
from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.load.generator import Ended
from pytest_dynamo_bench.load.health import Spread
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.traffic import Concurrency, Traffic, TrafficRequest
from pytest_dynamo_bench.traffic.prompts import prompt_text

_GUARD = Path(__file__).with_name("guard.py")
_POLL_SECONDS = 0.5
_LOG_LINES = 30
_REMEDY = (
    "install it with: pip install aiperf (0.13 or newer), in this environment or anywhere on PATH"
)


def find_aiperf() -> Path:
    """The ``aiperf`` program, beside this Python or on PATH.

    Raises:
        LoadError: there is none.
    """
    beside = Path(sys.executable).with_name("aiperf")
    found = str(beside) if beside.is_file() else shutil.which("aiperf")
    if found is None:
        raise LoadError(f"--dynamo-load=aiperf needs the program aiperf; {_REMEDY}")
    return Path(found)


def dataset_lines(traffic: Traffic) -> Iterable[str]:
    """The traffic as AIPerf's ``single_turn`` dataset, a line for each request."""
    timed = not isinstance(traffic.schedule, Concurrency)
    for request in _in_order(traffic.requests):
        row: dict[str, Any] = {
            "session_id": request.session_id,
            "text": prompt_text(request.hash_ids, request.input_tokens, traffic.block_tokens),
            "output_length": request.output_tokens,
            "extra": {"min_tokens": request.output_tokens, "ignore_eos": True},
        }
        if request.turn:
            row["delay"] = request.delay_ms
        elif timed:
            row["timestamp"] = request.timestamp_ms
        yield json.dumps(row, ensure_ascii=False)


def _in_order(requests: Iterable[TrafficRequest]) -> list[TrafficRequest]:
    """Sessions in the order of their first turns, the turns of each in theirs."""
    sessions: dict[str, list[TrafficRequest]] = {}
    for request in requests:
        sessions.setdefault(request.session_id, []).append(request)
    for turns in sessions.values():
        turns.sort(key=lambda request: request.turn)
    ordered = sorted(sessions.values(), key=lambda turns: turns[0].timestamp_ms)
    return [request for turns in ordered for request in turns]


def arguments(
    program: Path, server: Server, model: str, traffic: Traffic, dataset: Path, artifacts: Path,
    timeout_seconds: float,
) -> list[str]:  # fmt: skip
    """The command line. Headers are not in it: they can be secrets, and everybody sees it."""
    parts = urlsplit(server.url)
    schedule = (
        ["--concurrency", str(traffic.schedule.sessions), "--no-fixed-schedule"]
        if isinstance(traffic.schedule, Concurrency)
        else ["--fixed-schedule"]
    )
    return [
        str(program), "profile", "--model", model,
        "--url", f"{parts.scheme}://{parts.netloc}", "--endpoint", parts.path,
        "--endpoint-type", "chat", "--streaming", "--use-legacy-max-tokens",
        "--use-server-token-count", "--tokenizer", "builtin",
        "--input-file", str(dataset), "--custom-dataset-type", "single_turn",
        "--dataset-sampling-strategy", "sequential", *schedule,
        "--request-count", str(len(traffic.requests)),
        "--request-timeout-seconds", f"{timeout_seconds:g}",
        "--artifact-dir", str(artifacts), "--export-level", "records", "--ui", "none",
        "--no-gpu-telemetry", "--no-server-metrics",
    ]  # fmt: skip


def read_records(lines: Iterable[str], traffic: Traffic) -> tuple[list[RequestRecord], int]:
    """What AIPerf recorded, as records of this traffic.

    Args:
        lines: of ``profile_export.jsonl``.

    Returns:
        The records in the order of their ends, and the start of the run in ns since the epoch:
        the latest at which no request was sent before it was due.

    Raises:
        LoadError: a line cannot be read.
    """
    by_turn = {(r.session_id, r.turn): r for r in traffic.requests}
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            times = entry["metadata"]
            if times.get("benchmark_phase") != "profiling":
                continue
            request = by_turn[times["conversation_id"], times["turn_index"]]
            entries.append((request, times, entry.get("metrics") or {}, entry.get("error")))
        except (ValueError, KeyError, TypeError) as error:
            raise LoadError(f"profile_export.jsonl: line {number}: {error!r}") from None
    open_loop = not isinstance(traffic.schedule, Concurrency)
    start_ns = min(
        (
            times["request_start_ns"] - (int(request.timestamp_ms * 1e6) if open_loop else 0)
            for request, times, _, _ in entries
            if not request.turn
        ),
        default=0,
    )
    records = [_record(*entry, start_ns, open_loop) for entry in entries]
    ends = {(r.session_id, r.turn): r.end_ms for r in records}
    delays = {(r.session_id, r.turn): r.delay_ms for r in traffic.requests}
    return [
        _scheduled(record, ends, delays) if record.turn else record
        for record in sorted(records, key=lambda r: r.end_ms or math.inf)
    ], start_ns


def _record(
    request: TrafficRequest,
    times: Mapping[str, Any],
    metrics: Mapping[str, Any],
    error: Any,
    start_ns: int,
    open_loop: bool,
) -> RequestRecord:
    def value(name: str) -> Any:
        return metrics[name]["value"] if name in metrics else None

    def count(name: str) -> int | None:
        found = value(name)
        return None if found is None else int(found)

    sent_ms = (times["request_start_ns"] - start_ns) / 1e6
    first = value("time_to_first_token")
    chunks = []
    if first is not None:
        gaps = value("inter_chunk_latency") or []
        chunks = list(itertools.accumulate([sent_ms + first, *gaps]))
    problem = None
    if error:
        problem = f"AIPerf: {error.get('message') if isinstance(error, dict) else error}"
    elif times.get("was_cancelled"):
        problem = "AIPerf cancelled it"
    elif not chunks:
        problem = "the response has no content"
    return RequestRecord(
        request_id=request.request_id,
        session_id=request.session_id,
        turn=request.turn,
        scheduled_ms=request.timestamp_ms if open_loop else sent_ms,
        sent_ms=sent_ms,
        chunk_ms=array("d", chunks),
        end_ms=(times["request_end_ns"] - start_ns) / 1e6,
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        prompt_tokens=count("usage_prompt_tokens"),
        completion_tokens=count("usage_completion_tokens"),
        cached_tokens=count("usage_prompt_cache_read_tokens"),
        status=None if problem else 200,
        error=" ".join(problem.split())[:300] if problem else None,
        receive_clock="user space" if chunks else None,
    )


def _scheduled(
    record: RequestRecord,
    ends: Mapping[tuple[str, int], float | None],
    delays: Mapping[tuple[str, int], float],
) -> RequestRecord:
    """A later turn is due its delay after the one before has ended."""
    before = ends.get((record.session_id, record.turn - 1))
    if before is None:
        return record
    values = {name: getattr(record, name) for name in record.__dataclass_fields__}
    values["scheduled_ms"] = before + delays[record.session_id, record.turn]
    return RequestRecord(**values)


class AiperfGenerator:
    """Sends a traffic with AIPerf; it has the methods of :class:`~.generator.LoadGenerator`.

    Args:
        server: where to. Own headers and TLS settings are not passed on.
        model: the name that requests ask for.
        directory: for the dataset, AIPerf's own results and its log.
        request_timeout_seconds: a request that has not ended by then has failed.

    Raises:
        LoadError: AIPerf is not installed, or the server needs what it is not given.
    """

    def __init__(
        self,
        server: Server,
        model: str,
        directory: Path,
        *,
        request_timeout_seconds: float = 600,
    ) -> None:
        self._program = find_aiperf()
        if server.headers or server.tls is not None:
            raise LoadError(
                "--dynamo-load=aiperf cannot pass headers or certificates on without showing "
                "them to everybody on this machine; use the own load generator for this server"
            )
        self._server = server
        self._model = model
        self._directory = directory
        self._timeout_seconds = request_timeout_seconds
        self._traffic: Traffic | None = None
        self._started_at = ""
        self._records: list[RequestRecord] | None = None

    @property
    def started_at(self) -> str:
        """Wall-clock start of the run, ISO 8601, UTC; empty before anything has ended."""
        self.records()
        return self._started_at

    def records(self) -> list[RequestRecord]:
        """What AIPerf has recorded so far."""
        if self._records is not None:
            return list(self._records)
        if self._traffic is None or not self._export.is_file():
            return []
        lines = self._export.read_text(encoding="utf-8").splitlines()
        records, start_ns = read_records(lines, self._traffic)
        if records:
            started = datetime.fromtimestamp(start_ns / 1e9, UTC)
            self._started_at = started.isoformat(timespec="milliseconds")
        return records

    def health(self) -> dict[str, Any]:
        """What is known of AIPerf itself: its version and how late it sent."""
        records = self.records()
        delays = [
            record.sent_ms - record.scheduled_ms for record in records if record.sent_ms is not None
        ]
        return {
            "name": "aiperf",
            "version": _version(self._program),
            "schedule_delay_ms": Spread.of(delays).plain(),
        }

    @property
    def _export(self) -> Path:
        return self._directory / "aiperf" / "profile_export.jsonl"

    async def send(self, traffic: Traffic, ended: Ended) -> None:
        """Send everything, and wait until everything has ended.

        Args:
            ended: called when a request has ended, with whether it succeeded.

        Raises:
            LoadError: AIPerf failed; the message has the end of its log.
        """
        self._traffic = traffic
        self._directory.mkdir(parents=True, exist_ok=True)
        dataset = self._directory / "aiperf-dataset.jsonl"
        with dataset.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in dataset_lines(traffic))
        command = arguments(
            self._program, self._server, self._model, traffic, dataset,
            self._directory / "aiperf", self._timeout_seconds,
        )  # fmt: skip
        log = self._directory / "aiperf.log"
        environment = {
            name: value for name, value in os.environ.items() if not name.endswith("_proxy")
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(_GUARD), str(log), *command,
            stdin=asyncio.subprocess.PIPE, env=environment,
        )  # fmt: skip
        waiting = asyncio.ensure_future(process.wait())
        told = 0
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=_POLL_SECONDS)
                told = self._tell(ended, told)
        finally:
            if not waiting.done() and process.stdin is not None:
                process.stdin.close()
            await asyncio.shield(waiting)
            # Prompts are large, and follow from the traffic.
            dataset.unlink(missing_ok=True)
            (self._directory / "aiperf" / "inputs.json").unlink(missing_ok=True)
        self._tell(ended, told)
        if waiting.result() != 0 or not self._export.is_file():
            text = log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise LoadError(
                f"AIPerf ended with code {waiting.result()}; {log} ends:\n"
                + "\n".join(text[-_LOG_LINES:])
            )
        self._records = self.records()

    def _tell(self, ended: Ended, told: int) -> int:
        """Report requests that were not reported before; how many there are now."""
        with contextlib.suppress(OSError):
            lines = self._export.read_bytes().split(b"\n")[:-1]
            for line in lines[told:]:
                ended(b'"error":{' not in line)
            return max(len(lines), told)
        return told


def _version(program: Path) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [str(program), "--version"], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.strip().splitlines()[-1]
    return None
