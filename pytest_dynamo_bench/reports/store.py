"""Results on disk: written as each run ends, whole or not at all.

``reports/<run>/`` holds ``summary.json``, ``environment.json``, and for every benchmark and
configuration a directory with ``requests.parquet`` (one row per request), ``run.json`` (the
configuration as deployed, what it said of itself, all metrics) and ``logs/``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import platform
import shutil
import sys
from array import array
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import psutil

from pytest_dynamo_bench.attribution_runs import AttributionStudy
from pytest_dynamo_bench.benchmark import Benchmark
from pytest_dynamo_bench.errors import ReportError, ResultsError
from pytest_dynamo_bench.files import write_whole
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.plain_text import printable
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.reports.features import features_at_work
from pytest_dynamo_bench.verdicts import Verdict
from pytest_dynamo_bench.verdicts.regression import Regression

SUMMARY_VERSION = 1
_LONGEST_ERROR = 4000
_IN_SUMMARY = (
    "gpus", "simulated", "requests", "failed", "problems", "duration_seconds", "metrics",
)  # fmt: skip
_PACKAGES = ("pytest-dynamo-bench", "ai-dynamo", "pytest", "numpy", "httptools")


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

    def run_directory(self, benchmark: str, configuration: str, repeat: int = 0) -> Path:
        """Where a run's files are; made if it does not exist. Repeats count from 0."""
        directory = _run_directory(self.directory / benchmark / configuration, repeat)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def save_run(
        self,
        benchmark: Benchmark,
        metrics: Metrics,
        limitations: tuple[str, ...],
        repeat: int = 0,
    ) -> None:
        """Write one run: its records, what it ran on, and its metrics."""
        run = metrics.run
        directory = self.run_directory(run.benchmark, run.configuration, repeat)
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
            "features": [
                dataclasses.asdict(item)
                for item in features_at_work(
                    benchmark, benchmark.configuration(run.configuration), metrics
                )
            ],
            "traffic": dict(run.traffic),
            "deployed": dict(run.deployed),
            "observed": dict(run.observed),
            "metrics": metrics.as_dict(),
        }
        write_json(directory / "run.json", details)
        runs = self._entry(benchmark)["runs"].setdefault(run.configuration, [])
        runs.append({key: details[key] for key in _IN_SUMMARY})
        self._write_summary()

    def save_regression(
        self, benchmark: Benchmark, configuration: str, regression: Regression
    ) -> None:
        """Add the comparison of a configuration's metric with a stored measurement."""
        found = self._entry(benchmark)["regressions"].setdefault(configuration, {})
        found[regression.tolerance.metric] = dataclasses.asdict(regression)
        self._write_summary()

    def save_attribution(self, study: AttributionStudy) -> None:
        """Write an attribution; with its figure, where the extra for figures is installed."""
        from pytest_dynamo_bench.reports import figures

        directory = self.directory / study.benchmark
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "attribution.json", study.as_dict())
        # Without the extra for figures there is the table in the terminal and the JSON file.
        with contextlib.suppress(ReportError):
            figures.write_attribution(
                directory / "attribution.svg",
                study.attribution.as_rows(),
                title=f"{study.metric}: {study.treatment} against {study.baseline}",
                subtitle=study.benchmark,
                metric=study.metric,
            )

    def save_error(self, benchmark: Benchmark, configuration: str, error: str) -> None:
        """Add why a configuration has no result: it did not come up, or its run is invalid."""
        self._entry(benchmark)["errors"][configuration] = printable(error, _LONGEST_ERROR)
        self._write_summary()

    def save_verdicts(
        self, benchmark: Benchmark, verdicts: Iterable[Verdict], how_judged: str
    ) -> None:
        """Add verdicts to the summary; a later one for the same claim takes an earlier's place.

        Args:
            how_judged: how they were decided together, in one sentence; may be empty.
        """
        entry = self._entry(benchmark)
        for verdict in verdicts:
            entry["verdicts"][verdict.claim.name] = dataclasses.asdict(verdict)
        entry["how_judged"] = how_judged
        self._write_summary()

    def _entry(self, benchmark: Benchmark) -> dict[str, Any]:
        entries = self._summary["benchmarks"]
        if benchmark.name not in entries:
            entries[benchmark.name] = {
                "question": benchmark.question,
                "model": benchmark.model,
                "engine": benchmark.engine,
                "hardware": dataclasses.asdict(benchmark.hardware),
                "traffic": benchmark.traffic.description,
                "held_constant": benchmark.held_constant,
                "goodput": dataclasses.asdict(benchmark.goodput) if benchmark.goodput else None,
                "recipe": benchmark.recipe,
                "notes": list(benchmark.notes),
                "published": _published(benchmark),
                "configurations": {
                    item.name: {
                        "role": item.role,
                        "gpus": item.gpus,
                        "features": sorted(item.features),
                        "deployment": dataclasses.asdict(item),
                    }
                    for item in benchmark.configurations
                },
                "runs": {},
                "errors": {},
                "verdicts": {},
                "how_judged": "",
                "regressions": {},
            }
        entry: dict[str, Any] = entries[benchmark.name]
        return entry

    def _write_summary(self) -> None:
        write_json(self.directory / "summary.json", self._summary)


def _published(benchmark: Benchmark) -> dict[str, Any] | None:
    published = benchmark.published
    return dataclasses.asdict(published) if published else None


class StoredResults:
    """Results of an earlier session, read back.

    Args:
        directory: a directory of results, or its ``summary.json``.

    Raises:
        ResultsError: there are no results, or of a version that this one cannot read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.parent if directory.name == "summary.json" else directory
        path = self.directory / "summary.json"
        try:
            self.summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ResultsError(
                f"{path}: cannot be read ({error.strerror}); give a directory that an earlier "
                "session wrote, such as reports/<time>-<target>"
            ) from None
        except json.JSONDecodeError as error:
            raise ResultsError(f"{path}, line {error.lineno}: is not JSON: {error.msg}") from None
        version = self.summary.get("version") if isinstance(self.summary, dict) else None
        if version != SUMMARY_VERSION:
            raise ResultsError(
                f"{path}: has version {version!r}, this plugin reads version {SUMMARY_VERSION}"
            )

    def configurations(self, benchmark: str) -> list[str]:
        """The configurations of a benchmark that there are runs of, in the benchmark's order."""
        entry = self.summary.get("benchmarks", {}).get(benchmark, {})
        runs = entry.get("runs", {})
        known = [name for name in entry.get("configurations", {}) if name in runs]
        return list(dict.fromkeys([*known, *runs]))

    def environment(self) -> dict[str, Any]:
        """The machine and the versions; empty where they were not stored."""
        return self._json(self.directory / "environment.json") or {}

    def attribution(self, benchmark: str) -> dict[str, Any] | None:
        """The attribution of a benchmark, where one was made."""
        return self._json(self.directory / benchmark / "attribution.json")

    @staticmethod
    def _json(path: Path) -> dict[str, Any] | None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def details(self, benchmark: str, configuration: str) -> dict[str, Any]:
        """What ``run.json`` says of a configuration's first run.

        Raises:
            ResultsError: there is none, or it cannot be read.
        """
        path = _run_directory(self.directory / benchmark / configuration, 0) / "run.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResultsError(f"{path}: cannot be read: {error}") from None
        return found if isinstance(found, dict) else {}

    def runs(self, benchmark: str, configuration: str) -> list[Run]:
        """All repeats of a configuration.

        Raises:
            ResultsError: there are none.
        """
        directory = self.directory / benchmark / configuration
        found: list[Run] = []
        while (path := _run_directory(directory, len(found)) / "run.json").is_file():
            found.append(read_run(path.parent))
        if not found:
            raise ResultsError(f"{self.directory}: has no runs of {benchmark} {configuration}")
        return found

    def copy_to(self, directory: Path) -> None:
        """Copy what a later comparison needs, in one step; logs are left out.

        An earlier copy is replaced; any other directory is left alone.

        Raises:
            ResultsError: the directory exists and holds something else.
        """
        check_replaceable(directory)
        partial = directory.with_name(f".{directory.name}.{os.getpid()}")
        shutil.copytree(self.directory, partial, ignore=shutil.ignore_patterns("logs", "*.log"))
        if directory.exists():
            shutil.rmtree(directory)
        partial.rename(directory)


def check_replaceable(directory: Path) -> None:
    """Make sure that results may be written in the place of a directory.

    Raises:
        ResultsError: it exists and holds something else than results.
    """
    if directory.exists() and not (directory / "summary.json").is_file():
        raise ResultsError(f"{directory} exists and holds no results; it is left as it is")


def _run_directory(configuration: Path, repeat: int) -> Path:
    return configuration / f"repeat-{repeat + 1}" if repeat else configuration


def read_run(directory: Path) -> Run:
    """Read a run that :meth:`ResultStore.save_run` wrote.

    Raises:
        ResultsError: a file is missing or cannot be read; the message names it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        details = json.loads((directory / "run.json").read_text(encoding="utf-8"))
        rows = pq.read_table(directory / "requests.parquet").to_pylist()
        records = [_record(row) for row in rows]
        return Run(
            benchmark=details["benchmark"],
            configuration=details["configuration"]["name"],
            target=details["target"],
            gpus=details["gpus"],
            records=records,
            started_at=details["started_at"],
            simulated=details["simulated"],
            deployed=details["deployed"],
            observed=details["observed"],
            traffic=details["traffic"],
            problems=details["problems"],
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ResultsError(f"{directory}: cannot be read as a run: {error!r}") from None


def _record(row: dict[str, Any]) -> RequestRecord:
    tokens = row.get("chunk_tokens")
    lists = {
        "chunk_ms": array("d", row["chunk_ms"]),
        "chunk_tokens": None if tokens is None else tuple(tokens),
    }
    return RequestRecord(**{**row, **lists})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON in one step, so that a reader never sees half of it.

    Numbers that JSON does not have (NaN, infinity) become null.
    """
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, text.encode("utf-8", errors="replace"))


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

    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    columns = {}
    for name, hint in get_type_hints(RequestRecord).items():
        optional = [kind for kind in get_args(hint) if kind is not NoneType]
        kind = optional[0] if NoneType in get_args(hint) else hint
        plain = get_origin(kind) is None
        column = types[kind] if plain else pa.list_(types[get_args(kind)[0]])
        columns[name] = pa.array([getattr(r, name) for r in run.records], type=column)
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content, compression="zstd")
    write_whole(path, content.getvalue())


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
