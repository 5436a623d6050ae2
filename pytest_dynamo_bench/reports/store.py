"""Results on disk: written as each run ends, whole or not at all.

``reports/<run>/`` holds ``summary.json``, ``environment.json``, and for every benchmark and
configuration a directory with ``requests.parquet`` (one row per request), ``run.json`` (the
configuration as deployed, what it said of itself, all metrics) and ``logs/``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import psutil

from pytest_dynamo_bench.attribution_runs import AttributionStudy
from pytest_dynamo_bench.benchmark import Benchmark, Claim
from pytest_dynamo_bench.errors import ResultsError
from pytest_dynamo_bench.files import write_whole
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.plain_text import printable
from pytest_dynamo_bench.record_files import RECORDS_FILE, columns, read_records, write_records
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.reports import stored_types
from pytest_dynamo_bench.reports.features import features_at_work
from pytest_dynamo_bench.verdicts import Verdict
from pytest_dynamo_bench.verdicts.regression import Regression

if TYPE_CHECKING:
    import pyarrow.parquet as pq

SUMMARY_VERSION = 1
_T = TypeVar("_T")
_SUMMARY = "summary.json"
_LONGEST_ERROR = 4000
_LONGEST_REASON = 400
_IN_SUMMARY = (
    "gpus", "simulated", "requests", "failed", "problems", "duration_seconds", "metrics",
)  # fmt: skip
_PACKAGES = ("pytest-dynamo-bench", "ai-dynamo", "pytest", "numpy", "httptools")


@dataclasses.dataclass(frozen=True)
class EndedTest:
    """How a test of a benchmark ended.

    Attributes:
        test: its id.
        outcome: ``passed``, ``failed``, ``error``, ``skipped``, ``xfailed``, ``xpassed`` or
            ``not run``.
        message: why, where it did not pass.
        explained: whether it follows from a verdict, a regression or a missing result that reports
            show already.
    """

    test: str
    outcome: str = "not run"
    message: str = ""
    explained: bool = False


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
        self._claims: dict[str, dict[str, Claim]] = {}
        self._runs: dict[tuple[str, str, int], dict[str, Any]] = {}
        _make(directory)
        write_json(directory / "environment.json", environment())
        self._write_summary()

    def run_directory(self, benchmark: str, configuration: str, repeat: int = 0) -> Path:
        """Where a run's files are; made if it does not exist. Repeats count from 0."""
        directory = _run_directory(self.directory / benchmark / configuration, repeat)
        _make(directory)
        return directory

    def save_records(self, run: Run, repeat: int = 0) -> None:
        """Write what was measured, before anything is made of it.

        Raises:
            ResultsError: it cannot be written.
        """
        write_records(self.run_directory(run.benchmark, run.configuration, repeat), run.records)

    def save_run(
        self,
        benchmark: Benchmark,
        metrics: Metrics,
        limitations: tuple[str, ...],
        repeat: int = 0,
    ) -> None:
        """Write what a run whose records are written ran on, and its metrics."""
        run = metrics.run
        directory = self.run_directory(run.benchmark, run.configuration, repeat)
        details = {
            "version": SUMMARY_VERSION,
            "benchmark": run.benchmark,
            "configuration": benchmark.configuration(run.configuration).as_dict(),
            "target": run.target,
            "simulated": run.simulated,
            "stand_in_engines": run.stand_in_engines,
            "gpus": run.gpus,
            "started_at": run.started_at,
            "duration_seconds": metrics.duration_seconds,
            "requests": len(run.records),
            "failed": sum(not record.succeeded for record in run.records),
            "problems": list(run.problems),
            "notes": list(run.notes),
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
        kept: dict[str, Any] = {key: details[key] for key in _IN_SUMMARY} | {"invalid": []}
        self._runs[benchmark.name, run.configuration, repeat] = kept
        self._entry(benchmark)["runs"].setdefault(run.configuration, []).append(kept)
        self._write_summary()

    def save_invalid(
        self, benchmark: Benchmark, configuration: str, reasons: Sequence[str], repeat: int = 0
    ) -> None:
        """Add why a run that was stored is no result."""
        shown = [printable(reason, _LONGEST_ERROR) for reason in reasons]
        self._runs[benchmark.name, configuration, repeat]["invalid"] = shown
        self._write_summary()

    def save_regression(
        self, benchmark: Benchmark, configuration: str, regression: Regression
    ) -> None:
        """Add the comparison of a configuration's metric with a stored measurement."""
        found = self._entry(benchmark)["regressions"].setdefault(configuration, {})
        found[regression.tolerance.metric] = dataclasses.asdict(regression)
        self._write_summary()

    def save_attribution(self, study: AttributionStudy) -> None:
        """Write an attribution."""
        directory = self.directory / study.benchmark
        _make(directory)
        write_json(directory / "attribution.json", study.as_dict())

    def save_error(self, benchmark: Benchmark, configuration: str, error: str) -> None:
        """Add why a configuration has no result: it did not come up, or its run is invalid."""
        self._entry(benchmark)["errors"][configuration] = printable(error, _LONGEST_ERROR)
        self._write_summary()

    def save_tests(self, benchmark: Benchmark, outcomes: Iterable[EndedTest]) -> None:
        """Add how the tests of a benchmark ended, by their ids."""
        self._entry(benchmark)["tests"] = {
            printable(item.test, _LONGEST_ERROR): {
                "outcome": item.outcome,
                "message": printable(item.message, _LONGEST_ERROR),
                "explained": item.explained,
            }
            for item in outcomes
        }
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
            key = self._verdict_key(benchmark, verdict)
            entry["verdicts"][key] = dataclasses.asdict(verdict)
        entry["how_judged"] = how_judged
        self._write_summary()

    def _verdict_key(self, benchmark: Benchmark, verdict: Verdict) -> str:
        """The claim's name, or that with a number where another claim has the name already."""
        keys = self._claims.setdefault(benchmark.name, {})
        key, number = verdict.claim.name, 1
        while keys.setdefault(key, verdict.claim) != verdict.claim:
            number += 1
            key = f"{verdict.claim.name} ({number})"
        return key

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
                        "deployment": item.as_dict(),
                    }
                    for item in benchmark.configurations
                },
                "runs": {},
                "errors": {},
                "verdicts": {},
                "how_judged": "",
                "regressions": {},
                "tests": {},
            }
        entry: dict[str, Any] = entries[benchmark.name]
        return entry

    def _write_summary(self) -> None:
        write_json(self.directory / _SUMMARY, self._summary)


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
        self.directory = directory.parent if directory.name == _SUMMARY else directory
        path = self.directory / _SUMMARY
        self.summary = _read_versioned(path)
        self._typed = _typed(path, self.summary, stored_types.Summary, "a summary of results")

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks that there is anything of."""
        return list(self._typed.benchmarks)

    def configurations(self, benchmark: str) -> list[str]:
        """The configurations of a benchmark that there are runs of, in the benchmark's order."""
        entry = self._entry(benchmark)
        known = [name for name in entry.configurations if name in entry.runs]
        return list(dict.fromkeys([*known, *entry.runs]))

    def environment(self) -> dict[str, Any]:
        """The machine and the versions; empty where they were not stored.

        Raises:
            ResultsError: they cannot be read.
        """
        return self._if_there(self.directory / "environment.json", stored_types.Environment) or {}

    def attribution(self, benchmark: str) -> dict[str, Any] | None:
        """The attribution of a benchmark, where one was made.

        Raises:
            ResultsError: it cannot be read.
        """
        path = self.directory / benchmark / "attribution.json"
        return self._if_there(path, stored_types.Attribution)

    @staticmethod
    def _if_there(path: Path, kind: type[Any]) -> dict[str, Any] | None:
        if not path.exists():
            return None
        found = _read_json(path)
        _typed(path, found, kind, "what this plugin wrote")
        return found

    def details(self, benchmark: str, configuration: str) -> dict[str, Any]:
        """What ``run.json`` says of a configuration's first run.

        Raises:
            ResultsError: there is none, or it cannot be read.
        """
        path = self._directories(benchmark, configuration)[0] / "run.json"
        found = _read_versioned(path)
        _typed(path, found, stored_types.Run, "the description of a run")
        return found

    def runs(self, benchmark: str, configuration: str) -> list[Run]:
        """All repeats of a configuration, whatever was said of them.

        Raises:
            ResultsError: there are none, or one of them is missing or cannot be read.
        """
        return [read_run(path) for path in self._directories(benchmark, configuration)]

    def check_usable(self, benchmark: str, configuration: str) -> None:
        """Make sure that something can be concluded from a configuration's runs.

        The files are opened, the records not read.

        Raises:
            ResultsError: there are none; or they are damaged; or the configuration did not come
                up, or a run of it was declared invalid.
        """
        if benchmark not in self.benchmarks:
            raise ResultsError(
                f"{self.directory}: has no results of benchmark {benchmark!r}; it has "
                f"{', '.join(map(repr, self.benchmarks)) or 'none of any benchmark'}"
            )
        if error := self._entry(benchmark).errors.get(configuration):
            raise ResultsError(
                f"{self.directory}: {benchmark}: {configuration} has no valid result: "
                f"{in_one_line(error)}"
            )
        for path in self._directories(benchmark, configuration):
            _open_run(path)

    def usable_runs(self, benchmark: str, configuration: str) -> list[Run]:
        """All repeats of a configuration, of which something can be concluded.

        Raises:
            ResultsError: as :meth:`check_usable` and :meth:`runs`.
        """
        self.check_usable(benchmark, configuration)
        return self.runs(benchmark, configuration)

    def _entry(self, benchmark: str) -> stored_types.Benchmark:
        return self._typed.benchmarks.get(benchmark) or stored_types.Benchmark()

    def _directories(self, benchmark: str, configuration: str) -> list[Path]:
        """Where the repeats are that the summary counts."""
        count = len(self._entry(benchmark).runs.get(configuration, ()))
        if not count:
            known = ", ".join(map(repr, self.configurations(benchmark))) or "none"
            raise ResultsError(
                f"{self.directory}: has no runs of configuration {configuration!r} of benchmark "
                f"{benchmark!r}, but of {known}"
            )
        directory = self.directory / benchmark / configuration
        return [_run_directory(directory, repeat) for repeat in range(count)]

    def copy_to(self, directory: Path) -> None:
        """Copy what a later comparison needs, in one step; logs are left out.

        An earlier copy is replaced; any other directory is left alone.

        Raises:
            ResultsError: the directory exists and holds something else, or cannot be written.
        """
        check_replaceable(directory)
        partial = directory.with_name(f".{directory.name}.{os.getpid()}")
        replaced = directory.with_name(f".{directory.name}.{os.getpid()}.replaced")
        try:
            shutil.copytree(self.directory, partial, ignore=shutil.ignore_patterns("logs", "*.log"))
            if directory.exists():
                directory.rename(replaced)
            partial.rename(directory)
        except shutil.Error as error:
            # Each that was not copied, as (from, to, why).
            reason = in_one_line(error.args[0][0][2])
            raise ResultsError(f"{directory}: cannot be written ({reason})") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise ResultsError(f"{directory}: cannot be written ({reason})") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)


def in_one_line(text: object) -> str:
    """The beginning of an error, for a line of a list."""
    return printable(" ".join(str(text).split()), _LONGEST_REASON)


def check_replaceable(directory: Path) -> None:
    """Make sure that results may be written in the place of a directory.

    Raises:
        ResultsError: it exists and holds something else than results.
    """
    if directory.exists() and not (directory / _SUMMARY).is_file():
        raise ResultsError(f"{directory} exists and holds no results; it is left as it is")


def _run_directory(configuration: Path, repeat: int) -> Path:
    return configuration / f"repeat-{repeat + 1}" if repeat else configuration


# ---------------------------------------------------------------------------------------
# The door: what is stored is read here, and nowhere else.
# ---------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "; give a directory that an earlier session wrote, such as reports/<time>-<target>"
        raise ResultsError(
            f"{path}: cannot be read ({error.strerror}){hint if path.name == _SUMMARY else ''}"
        ) from None
    except json.JSONDecodeError as error:
        raise ResultsError(f"{path}, line {error.lineno}: is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ResultsError(f"{path}: is no JSON object")
    return found


def _read_versioned(path: Path) -> dict[str, Any]:
    """The content of a JSON file with a version, when it is one that this release reads."""
    found = _read_json(path)
    version = found.get("version")
    if version == SUMMARY_VERSION:
        return found
    if isinstance(version, int) and version > SUMMARY_VERSION:
        raise ResultsError(
            f"{path}: was written by a newer version of pytest-dynamo-bench (results of version "
            f"{version}, this one reads version {SUMMARY_VERSION}); upgrade pytest-dynamo-bench"
        )
    raise ResultsError(
        f"{path}: has version {version!r}, but results have version {SUMMARY_VERSION}; it is "
        "damaged, or no pytest-dynamo-bench wrote it"
    )


def _typed(path: Path, content: Mapping[str, Any], kind: type[_T], what: str) -> _T:
    try:
        return msgspec.convert(content, kind)
    except ValueError as error:
        raise ResultsError(f"{path}: is not {what}: {error}") from None


def _open_run(directory: Path) -> tuple[stored_types.Run, pq.ParquetFile]:
    """What a run's two files say of themselves, when they agree."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = directory / "run.json"
    details = _typed(path, _read_versioned(path), stored_types.Run, "the description of a run")
    path = directory / RECORDS_FILE
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise ResultsError(f"{path}: cannot be read: {in_one_line(error)}") from None
    if file.metadata.num_rows != details.requests:
        raise ResultsError(
            f"{path}: has {file.metadata.num_rows} requests, run.json says {details.requests}"
        )
    for field in file.schema_arrow:
        if (expected := columns().get(field.name, field.type)) != field.type:
            raise ResultsError(f"{path}: column {field.name} is {field.type}, not {expected}")
    return details, file


def read_run(directory: Path) -> Run:
    """Read a run that :meth:`ResultStore.save_run` wrote.

    Raises:
        ResultsError: a file is missing or cannot be read; the message names it.
    """
    import pyarrow as pa

    details, file = _open_run(directory)
    try:
        records = read_records(file)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        path = directory / RECORDS_FILE
        raise ResultsError(f"{path}: cannot be read: {in_one_line(error)}") from None
    return Run(
        benchmark=details.benchmark,
        configuration=details.configuration.name,
        target=details.target,
        gpus=details.gpus,
        records=records,
        started_at=details.started_at,
        simulated=details.simulated,
        stand_in_engines=details.stand_in_engines,
        deployed=details.deployed,
        observed=details.observed,
        traffic=details.traffic,
        problems=details.problems,
        notes=details.notes,
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON in one step, so that a reader never sees half of it.

    Numbers that JSON does not have (NaN, infinity) become null.

    Raises:
        ResultsError: it cannot be written.
    """
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    _write(path, text.encode("utf-8", errors="replace"))


def _make(directory: Path) -> None:
    with _as_results_error(directory):
        directory.mkdir(parents=True, exist_ok=True)


def _write(path: Path, content: bytes) -> None:
    with _as_results_error(path):
        write_whole(path, content)


@contextlib.contextmanager
def _as_results_error(path: Path) -> Iterator[None]:
    """A full disk and the like, as an error that names the file."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written ({error.strerror or error})") from None


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
