"""AIPerf as the load generator: the same traffic, sent by ``aiperf``, read back into records.

The dataset is AIPerf's ``single_turn`` form with the very prompts that the own client sends;
later turns of a session follow when the one before has ended. What it recorded per request
(``profile_export.jsonl``) becomes a record: its times are wall-clock, taken in user space.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from array import array
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytest_dynamo_bench.aiperf_results import RECORDS_FILE, AiperfResults, read_aiperf_results
from pytest_dynamo_bench.errors import LoadError, ResultsError
from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.load.generator import Ended
from pytest_dynamo_bench.load.health import Spread
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.traffic import Concurrency, Traffic, aiperf_rows
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


def dataset_lines(traffic: Traffic) -> Iterator[str]:
    """The traffic as AIPerf's dataset, with the prompts and lengths that the own client sends.

    Raises:
        LoadError: it has images, or sessions that requests name to the server.
    """
    if traffic.session_header:
        raise LoadError(
            "--dynamo-load=aiperf does not send session ids, which session affinity needs; use "
            "--dynamo-load=own"
        )
    rows = aiperf_rows(traffic, _no_image, text_of=prompt_text, name_sessions=True)
    for row in rows:
        row["extra"] = {"min_tokens": row["output_length"], "ignore_eos": True}
        yield json.dumps(row, ensure_ascii=False)


def _no_image(number: int) -> str:
    raise LoadError(
        f"--dynamo-load=aiperf cannot send images (the traffic has image {number}); use "
        "--dynamo-load=own"
    )


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
        "--use-server-token-count", "--tokenizer", model if Path(model).is_dir() else "builtin",
        "--input-file", str(dataset), "--custom-dataset-type", "single_turn",
        "--dataset-sampling-strategy", "sequential", *schedule,
        "--request-count", str(len(traffic.requests)),
        "--request-timeout-seconds", f"{timeout_seconds:g}",
        "--artifact-dir", str(artifacts), "--export-level", "records", "--ui", "none",
        "--no-gpu-telemetry", "--no-server-metrics",
    ]  # fmt: skip


def records_of(results: AiperfResults, traffic: Traffic) -> tuple[list[RequestRecord], float]:
    """What AIPerf recorded, as records of this traffic.

    Returns:
        The records in the order of their ends, with times from the start of the schedule, and
        how many ms that was after AIPerf's first credit: the latest start with which no request
        was sent before it was due.

    Raises:
        LoadError: AIPerf sent what this traffic does not have.
    """
    by_turn = {(r.session_id, r.turn): r for r in traffic.requests}
    open_loop = not isinstance(traffic.schedule, Concurrency)
    try:
        pairs = [(by_turn[found.session_id, found.turn], found) for found in results.records]
    except KeyError as error:
        raise LoadError(f"{results.path}: has an unknown request: {error}") from None
    starts = [
        found.sent_ms - (request.timestamp_ms if open_loop else 0.0)
        for request, found in pairs
        if found.sent_ms is not None and not found.turn
    ]
    start_ms = min(starts, default=0.0)
    ends = {(f.session_id, f.turn): f.end_ms for _, f in pairs}
    records = []
    for request, found in pairs:
        sent_ms = None if found.sent_ms is None else found.sent_ms - start_ms
        before = ends.get((request.session_id, request.turn - 1))
        if request.turn and before is not None:
            scheduled_ms = before - start_ms + request.delay_ms
        elif open_loop:
            scheduled_ms = request.timestamp_ms
        else:
            scheduled_ms = sent_ms or 0.0
        records.append(
            dataclasses.replace(
                found,
                request_id=request.request_id,
                scheduled_ms=scheduled_ms,
                sent_ms=sent_ms,
                chunk_ms=array("d", [ms - start_ms for ms in found.chunk_ms]),
                end_ms=None if found.end_ms is None else found.end_ms - start_ms,
                input_tokens=request.input_tokens,
                output_tokens=request.output_tokens,
                receive_clock="user space" if found.chunk_ms else None,
            )
        )
    return sorted(records, key=lambda r: r.end_ms or 0.0), start_ms


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
                "--dynamo-load=aiperf would show headers and certificates to every user of this "
                "machine; use --dynamo-load=own"
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
        try:
            results = read_aiperf_results(self._export)
        except ResultsError:
            # It was ended in the middle, of a line or before the first.
            return []
        records, start_ms = records_of(results, self._traffic)
        started = datetime.fromisoformat(results.started_at) + timedelta(milliseconds=start_ms)
        self._started_at = started.isoformat(timespec="milliseconds")
        return records

    def latest(self, count: int) -> list[RequestRecord]:
        """The requests that ended last; none while AIPerf runs, which tells at its end only."""
        return (self._records or [])[-count:]

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
        return self._directory / "aiperf" / RECORDS_FILE

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
        reported = 0
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=_POLL_SECONDS)
                reported = self._report(ended, reported)
        finally:
            if not waiting.done() and process.stdin is not None:
                process.stdin.close()
            await asyncio.shield(waiting)
            # Prompts are large, and follow from the traffic.
            dataset.unlink(missing_ok=True)
            (self._directory / "aiperf" / "inputs.json").unlink(missing_ok=True)
        self._report(ended, reported)
        if waiting.result() != 0 or not self._export.is_file():
            text = log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise LoadError(
                f"AIPerf exited with code {waiting.result()}; the end of {log}:\n"
                + "\n".join(text[-_LOG_LINES:])
            )
        self._records = self.records()

    def _report(self, ended: Ended, reported: int) -> int:
        """Report requests that were not reported before; how many there are now."""
        with contextlib.suppress(OSError):
            lines = self._export.read_bytes().split(b"\n")[:-1]
            for line in lines[reported:]:
                ended(b'"error":{' not in line)
            return max(len(lines), reported)
        return reported


def _version(program: Path) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [str(program), "--version"], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.strip().splitlines()[-1]
    return None
