"""Results on disk: written as each run ends, whole or not at all.

``reports/<run>/`` holds ``summary.json``, ``environment.json``, and for every benchmark and
configuration a directory with ``requests.parquet`` (one row per request), ``run.json`` (the
configuration as deployed, what it said of itself, all metrics) and ``logs/``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import psutil

from pytest_dynamo_bench.benchmark import Benchmark
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.verdicts import Verdict

SUMMARY_VERSION = 1
_IN_SUMMARY = (
    "gpus", "simulated", "requests", "failed", "problems", "duration_seconds", "metrics",
)  # fmt: skip
_PACKAGES = ("pytest-dynamo-bench", "ai-dynamo", "pytest", "numpy", "httptools", "uvloop")


class ResultStore:
    """The directory of one session's results.

    Args:
        directory: made if it does not exist.
        target: the name of the target that everything in it was measured on.
        command: how the session was started, for reports.
    """

    def __init__(self, directory: Path, target: str, command: list[str]) -> None:
        self.directory = directory
        self._summary: dict[str, Any] = {
            "version": SUMMARY_VERSION,
            "target": target,
            "command": command,
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "benchmarks": {},
        }
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "environment.json", environment())
        self._write_summary()

    def run_directory(self, benchmark: str, configuration: str) -> Path:
        """Where a run's files are; made if it does not exist."""
        directory = self.directory / benchmark / configuration
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def save_run(
        self, benchmark: Benchmark, metrics: Metrics, limitations: tuple[str, ...]
    ) -> None:
        """Write one run: its records, what it ran on, and its metrics."""
        run = metrics.run
        directory = self.run_directory(run.benchmark, run.configuration)
        write_parquet(directory / "requests.parquet", run)
        details = {
            "version": SUMMARY_VERSION,
            "benchmark": run.benchmark,
            "configuration": dataclasses.asdict(benchmark.configuration(run.configuration)),
            "target": run.target,
            "simulated": run.simulated,
            "gpus": run.gpus,
            "started_at": run.started_at,
            "duration_seconds": metrics.duration_seconds,
            "requests": len(run.records),
            "failed": sum(not record.succeeded for record in run.records),
            "problems": list(run.problems),
            "limitations": list(limitations),
            "traffic": dict(run.traffic),
            "deployed": dict(run.deployed),
            "observed": dict(run.observed),
            "metrics": metrics.as_dict(),
        }
        write_json(directory / "run.json", details)
        kept = (
            "gpus",
            "simulated",
            "requests",
            "failed",
            "problems",
            "duration_seconds",
            "metrics",
        )
        entry = self._entry(benchmark)
        entry["runs"][run.configuration] = {key: details[key] for key in kept}
        self._write_summary()

    def save_verdict(self, benchmark: Benchmark, verdict: Verdict) -> None:
        """Add a verdict to the summary; a later one for the same claim takes its place."""
        self._entry(benchmark)["verdicts"][verdict.claim.name] = dataclasses.asdict(verdict)
        self._write_summary()

    def _entry(self, benchmark: Benchmark) -> dict[str, Any]:
        entries = self._summary["benchmarks"]
        if benchmark.name not in entries:
            entries[benchmark.name] = {
                "question": benchmark.question,
                "model": benchmark.model,
                "hardware": dataclasses.asdict(benchmark.hardware),
                "traffic": benchmark.traffic.description,
                "goodput": dataclasses.asdict(benchmark.goodput) if benchmark.goodput else None,
                "recipe": benchmark.recipe,
                "runs": {},
                "verdicts": {},
            }
        entry: dict[str, Any] = entries[benchmark.name]
        return entry

    def _write_summary(self) -> None:
        write_json(self.directory / "summary.json", self._summary)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON in one step, so that a reader never sees half of it.

    Numbers that JSON does not have (NaN, infinity) become null.
    """
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    _write_whole(path, text.encode("utf-8", errors="replace"))


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        return _plain(value.item())
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


def write_parquet(path: Path, run: Run) -> None:
    """Write the records of a run in one step: a row per request, times in milliseconds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        str: pa.string(), int: pa.int64(), float: pa.float64(), tuple: pa.list_(pa.float64()),
    }  # fmt: skip
    columns = {}
    for name, hint in get_type_hints(RequestRecord).items():
        kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not NoneType]
        plain = tuple if get_origin(hint) is tuple else kinds[0]
        columns[name] = pa.array([getattr(r, name) for r in run.records], type=types[plain])
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(pa.table(columns), partial, compression="zstd")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """The machine and the versions, for a reader who wants to know where a number is from."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "packages": versions,
    }


def _processor() -> str:
    """The processor's name; Linux keeps it where the platform module doesn't look."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
