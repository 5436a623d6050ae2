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
from typing import Any, TypeVar

import msgspec
import psutil

from pytest_dynamo_bench.attribution_runs import AttributionStudy
from pytest_dynamo_bench.benchmark import Benchmark, Claim
from pytest_dynamo_bench.errors import BenchmarkError, ResultsError
from pytest_dynamo_bench.files import write_whole
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.plain_text import printable
from pytest_dynamo_bench.record_files import RECORDS_FILE, read_records, write_records
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.reports import stored_types
from pytest_dynamo_bench.reports.features import features_at_work
from pytest_dynamo_bench.request_table import columns, odd_notes
from pytest_dynamo_bench.verdicts import Verdict
from pytest_dynamo_bench.verdicts.regression import Regression

_T = TypeVar("_T", bound=stored_types.Stored)
_SUMMARY, _RUN, _ENVIRONMENT, _ATTRIBUTION = list(stored_types.FILES)[:4]
_LONGEST_ERROR = 4000
_LONGEST_REASON = 400
_MOST_WHOLE = 2**63
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
        self._summary = stored_types.Summary(
            version=stored_types.VERSION,
            target=target,
            command=command,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            benchmarks={},
        )
        self._claims: dict[str, dict[str, Claim]] = {}
        self._runs: dict[tuple[str, str, int], stored_types.RunEntry] = {}
        _make(directory)
        write_json(directory / _ENVIRONMENT, environment())
        self._write_summary()

    def run_directory(self, benchmark: str, configuration: str, repeat: int = 0) -> Path:
        """Where a run's files are; made if it does not exist. Repeats count from 0."""
        directory = _run_directory(self.directory / benchmark / configuration, repeat)
        _make(directory)
        return directory

    def save_records(self, run: Run, repeat: int = 0) -> Run:
        """Write what was measured, before anything is made of it.

        Returns:
            The run as written, with nothing in its records that cannot be, and a note of what was.

        Raises:
            ResultsError: it cannot be written.
        """
        directory = self.run_directory(run.benchmark, run.configuration, repeat)
        # They are needed for metrics right away.
        records = write_records(directory, run.records, keep_chunks=True)
        return dataclasses.replace(run, records=records, notes=(*run.notes, *odd_notes(records)))

    def save_run(
        self,
        benchmark: Benchmark,
        metrics: Metrics,
        limitations: tuple[str, ...],
        repeat: int = 0,
    ) -> None:
        """Write what a run whose records are written ran on, and its metrics.

        Its chunks are only on disk from then on.
        """
        run = metrics.run
        directory = self.run_directory(run.benchmark, run.configuration, repeat)
        configuration = benchmark.configuration(run.configuration)
        kept: dict[str, Any] = {
            "dynamo": run.dynamo,
            "gpus": run.gpus,
            "simulated": run.simulated,
            "requests": len(run.records),
            "failed": int(metrics.requests.failed.sum()),
            "problems": run.problems,
            "duration_seconds": metrics.duration_seconds,
            "metrics": metrics.as_dict(),
        }
        details = stored_types.taken(
            stored_types.Run, run, **kept,
            version=stored_types.VERSION,
            configuration=configuration.as_dict(),
            limitations=limitations,
            features=features_at_work(benchmark, configuration, metrics),
        )  # fmt: skip
        metrics.requests.leave_chunks()
        write_json(directory / _RUN, details)
        entry = stored_types.RunEntry(**kept, invalid=())
        self._save_entry(benchmark, run.configuration, repeat, entry)

    def save_invalid(
        self, benchmark: Benchmark, configuration: str, reasons: Sequence[str], repeat: int = 0
    ) -> None:
        """Add why a run that was stored is no result."""
        entry = self._runs[benchmark.name, configuration, repeat]
        shown = [printable(reason, _LONGEST_ERROR) for reason in reasons]
        entry = msgspec.structs.replace(entry, invalid=shown)
        self._save_entry(benchmark, configuration, repeat, entry)

    def save_regression(
        self, benchmark: Benchmark, configuration: str, regression: Regression
    ) -> None:
        """Add the comparison of a configuration's metric with a stored measurement."""
        found = stored_types.taken(
            stored_types.Regression, regression,
            tolerance=stored_types.taken(stored_types.Tolerance, regression.tolerance),
            effect=stored_types.taken(stored_types.Effect, regression.effect),
        )  # fmt: skip
        stored = self._entry(benchmark).regressions
        of_it = stored.get(configuration, {}) | {regression.tolerance.metric: found}
        self._update(benchmark, regressions=stored | {configuration: of_it})

    def save_attribution(self, study: AttributionStudy) -> None:
        """Write an attribution."""
        directory = self.directory / study.benchmark
        _make(directory)
        write_json(directory / _ATTRIBUTION, stored_types.attribution(study))

    def save_error(self, benchmark: Benchmark, configuration: str, error: str) -> None:
        """Add why a configuration has no result: it did not come up, or its run is invalid."""
        errors = self._entry(benchmark).errors
        self._update(benchmark, errors=errors | {configuration: printable(error, _LONGEST_ERROR)})

    def save_tests(self, benchmark: Benchmark, tests: Mapping[str, stored_types.Test]) -> None:
        """Add how the tests of a benchmark ended, by their ids."""
        shown = {
            printable(name, _LONGEST_ERROR): msgspec.structs.replace(
                test, message=printable(test.message, _LONGEST_ERROR)
            )
            for name, test in tests.items()
        }
        self._update(benchmark, tests=shown)

    def save_verdicts(
        self, benchmark: Benchmark, verdicts: Iterable[Verdict], how_judged: str
    ) -> None:
        """Add verdicts to the summary; a later one for the same claim takes an earlier's place.

        Args:
            how_judged: how they were decided together, in one sentence; may be empty.
        """
        found = {
            self._verdict_key(benchmark, verdict): stored_types.taken(
                stored_types.Verdict, verdict,
                claim=stored_types.taken(stored_types.Claim, verdict.claim),
                effect=verdict.effect and stored_types.taken(stored_types.Effect, verdict.effect),
            )
            for verdict in verdicts
        }  # fmt: skip
        stored = self._entry(benchmark).verdicts
        self._update(benchmark, verdicts=stored | found, how_judged=how_judged)

    def _verdict_key(self, benchmark: Benchmark, verdict: Verdict) -> str:
        """The claim's name, or that with a number where another claim has the name already."""
        keys = self._claims.setdefault(benchmark.name, {})
        key, number = verdict.claim.name, 1
        while keys.setdefault(key, verdict.claim) != verdict.claim:
            number += 1
            key = f"{verdict.claim.name} ({number})"
        return key

    def _entry(self, benchmark: Benchmark) -> stored_types.Benchmark:
        return self._summary.benchmarks.get(benchmark.name) or stored_types.taken(
            stored_types.Benchmark, benchmark,
            traffic=benchmark.traffic.description,
            configurations={
                item.name: stored_types.taken(
                    stored_types.Configuration, item,
                    features=sorted(item.features), deployment=item.as_dict(),
                )
                for item in benchmark.configurations
            },
            runs={}, errors={}, verdicts={}, how_judged="", regressions={}, tests={},
        )  # fmt: skip

    def _save_entry(
        self, benchmark: Benchmark, configuration: str, repeat: int, entry: stored_types.RunEntry
    ) -> None:
        self._runs[benchmark.name, configuration, repeat] = entry
        key = benchmark.name, configuration
        repeats = [self._runs[run] for run in sorted(self._runs) if run[:2] == key]
        self._update(benchmark, runs=self._entry(benchmark).runs | {configuration: repeats})

    def _update(self, benchmark: Benchmark, **changes: Any) -> None:
        entry = msgspec.structs.replace(self._entry(benchmark), **changes)
        self._summary.benchmarks[benchmark.name] = entry
        self._write_summary()

    def _write_summary(self) -> None:
        write_json(self.directory / _SUMMARY, self._summary)


class StoredResults:
    """Results of an earlier session, read back.

    Args:
        directory: a directory of results, or its ``summary.json``.

    Raises:
        ResultsError: there are no results, or of a version that this one cannot read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.parent if directory.name == _SUMMARY else directory
        self.summary = _read(
            self.directory / _SUMMARY, stored_types.Summary, "a summary of results"
        )

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks that there is anything of."""
        return list(self.summary.benchmarks)

    def configurations(self, benchmark: str) -> list[str]:
        """The configurations of a benchmark that there are runs of, in the benchmark's order."""
        entry = self.summary.benchmarks.get(benchmark)
        if entry is None:
            return []
        known = [name for name in entry.configurations if name in entry.runs]
        return list(dict.fromkeys([*known, *entry.runs]))

    def environment(self) -> stored_types.Environment:
        """The machine and the versions; empty where they were not stored.

        Raises:
            ResultsError: they cannot be read.
        """
        found = self._if_there(self.directory / _ENVIRONMENT, stored_types.Environment)
        return found or stored_types.Environment()

    def attribution(self, benchmark: str) -> stored_types.Attribution | None:
        """The attribution of a benchmark, where one was made.

        Raises:
            ResultsError: it cannot be read.
        """
        path = self.directory / benchmark / _ATTRIBUTION
        return self._if_there(path, stored_types.Attribution)

    @staticmethod
    def _if_there(path: Path, kind: type[_T]) -> _T | None:
        return _read(path, kind, "what this plugin wrote") if path.exists() else None

    def details(self, benchmark: str, configuration: str) -> stored_types.Run:
        """What ``run.json`` says of a configuration's first run.

        Raises:
            ResultsError: there is none, or it cannot be read.
        """
        return _read_details(self._directories(benchmark, configuration)[0])

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
            ResultsError: there are none; or they are damaged; or the configuration failed to start,
                or one of its runs is invalid.
        """
        if benchmark not in self.benchmarks:
            raise ResultsError(
                f"{self.directory}: has no results of benchmark {benchmark!r}; it has "
                f"{', '.join(map(repr, self.benchmarks)) or 'none of any benchmark'}"
            )
        if error := self.summary.benchmarks[benchmark].errors.get(configuration):
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

    def _directories(self, benchmark: str, configuration: str) -> list[Path]:
        """Where the repeats are that the summary counts."""
        entry = self.summary.benchmarks.get(benchmark)
        count = len(entry.runs.get(configuration, ())) if entry else 0
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
    """Make sure that results may replace a directory.

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
        text = path.read_text(encoding="utf-8")
        found = json.loads(
            text, parse_int=_whole, parse_float=_finite, parse_constant=_finite
        )  # fmt: skip
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


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _whole(text: str) -> float:
    value = int(text)
    return value if abs(value) < _MOST_WHOLE else _finite(text)


def _read(path: Path, kind: type[_T], what: str) -> _T:
    """The content of a JSON file, when it is of a version that this release reads."""
    found = _read_json(path)
    # What has a default came later than the file.
    required = {item.name for item in msgspec.structs.fields(kind) if item.required}
    version = found.get("version", None if "version" in required else stored_types.VERSION)
    if isinstance(version, int) and version > stored_types.VERSION:
        raise ResultsError(
            f"{path}: was written by a newer version of pytest-dynamo-bench (results of version "
            f"{version}, this one reads version {stored_types.VERSION}); upgrade "
            "pytest-dynamo-bench"
        )
    if version != stored_types.VERSION:
        raise ResultsError(
            f"{path}: has version {version!r}, but results have version {stored_types.VERSION}; "
            "it is damaged, or no pytest-dynamo-bench wrote it"
        )
    try:
        return msgspec.convert(found, kind)
    except (ValueError, RecursionError, BenchmarkError) as error:
        raise ResultsError(f"{path}: is not {what}: {error}") from None


def _read_details(directory: Path) -> stored_types.Run:
    return _read(directory / _RUN, stored_types.Run, "the description of a run")


def _open_run(directory: Path) -> stored_types.Run:
    """What is said of a run, when its two files agree."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    details = _read_details(directory)
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
    return details


def read_run(directory: Path) -> Run:
    """Read a run that :meth:`ResultStore.save_run` wrote.

    Raises:
        ResultsError: a file is missing or cannot be read; the message names it.
    """
    import pyarrow as pa

    details = _open_run(directory)
    try:
        records = read_records(directory / RECORDS_FILE)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        path = directory / RECORDS_FILE
        raise ResultsError(f"{path}: cannot be read: {in_one_line(error)}") from None
    names = [item.name for item in dataclasses.fields(Run) if hasattr(details, item.name)]
    kept = {name: getattr(details, name) for name in names}
    return Run(**kept | {"configuration": details.configuration["name"], "records": records})


def write_json(path: Path, content: stored_types.Stored) -> None:
    """Write JSON in one step, so that a reader never sees half of it.

    Numbers that JSON does not have (NaN, infinity) become null.

    Raises:
        ResultsError: it cannot be written.
    """
    text = msgspec.json.format(msgspec.json.encode(_plain(content)), indent=2)
    with _as_results_error(path):
        write_whole(path, text)


def _make(directory: Path) -> None:
    with _as_results_error(directory):
        directory.mkdir(parents=True, exist_ok=True)


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
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value) if abs(value) < _MOST_WHOLE else None
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.structs.asdict(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({item.name: getattr(value, item.name) for item in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return _plain(value.item() if hasattr(value, "item") else str(value))


def environment() -> stored_types.Environment:
    """The machine and the versions, for a reader who wants to know where a number is from."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return stored_types.Environment(
        python=platform.python_version(),
        implementation=sys.implementation.name,
        system=platform.system(),
        release=platform.release(),
        machine=platform.machine(),
        processor=_processor(),
        cores=psutil.cpu_count(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        packages=versions,
    )


def _processor() -> str:
    """The CPU's name; Linux keeps it where the platform module doesn't look."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
