"""What the commands share: loading a benchmark, parsing, progress, files, tables."""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pytest_dynamo_bench.benchmark import Benchmark, traffic_for
from pytest_dynamo_bench.cli.modules import known_targets, load_module
from pytest_dynamo_bench.errors import (
    BenchmarkError,
    IncompleteError,
    ReportError,
    ResultsError,
)
from pytest_dynamo_bench.files import write_whole
from pytest_dynamo_bench.metric_definitions import (
    METRICS,
    forget_metrics,
    full_name,
    register_metric,
)
from pytest_dynamo_bench.options import named_dynamo
from pytest_dynamo_bench.plain_text import did_you_mean, printable
from pytest_dynamo_bench.reports.model import SessionReport, load_session
from pytest_dynamo_bench.reports.store import StoredResults, write_json
from pytest_dynamo_bench.reports.stored_types import Stored
from pytest_dynamo_bench.targets.caveats import of_arrivals
from pytest_dynamo_bench.targets.options import LOCAL_EXECUTOR, executor
from pytest_dynamo_bench.targets.replay.runner import Runner, SimulationCache
from pytest_dynamo_bench.targets.replay.target import ReplayTarget
from pytest_dynamo_bench.traffic import trial_requests

LONGEST_LINE = 1000
SIMULATED = "simulated by Dynamo's replay, not measured on GPUs"


def title(benchmark: Benchmark) -> str:
    """The benchmark's name; in a trial also that it was one.

    Raises:
        TrafficError: the length of the trial is not a number.
    """
    count = trial_requests()
    return benchmark.name + (f", a trial with {count:,} requests" if count is not None else "")


def output_console() -> Console:
    """Where results go: standard output, as wide as a table needs when it is not a terminal."""
    console = Console(highlight=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=160)


def choose(what: str, name: str, known: Sequence[str]) -> str:
    """The name, if it is a known one.

    Raises:
        BenchmarkError: it isn't; the message lists those there are, and the closest.
    """
    if name in known:
        return name
    meant = did_you_mean(name, known, after=" ", cutoff=0.5)
    raise BenchmarkError(f"there is no {what} {name!r}; {meant}known: {', '.join(known)}")


def check_metric(text: str) -> str:
    """The full name of a metric, if there is such.

    Raises:
        BenchmarkError: there isn't; the message says what would be right.
    """
    try:
        return full_name(text)
    except ValueError as error:
        raise BenchmarkError(f"--metric: {error}") from None


def add_dynamo_version(parser: argparse.ArgumentParser) -> None:
    """The option of every command that runs a Dynamo, or shows what it would be given."""
    parser.add_argument(
        "--dynamo-version", metavar="[CONFIGURATION=]DYNAMO", type=named_dynamo, action="append",
        default=[],
        help="the Dynamo where a configuration names none, for all of them or for one: a release "
        "or wheels that install-dynamo has installed, or the Python of an environment (default: "
        "that of this environment)",
    )  # fmt: skip


def load_benchmark(path: Path, dynamos: Sequence[tuple[str, str]] = ()) -> Benchmark:
    """The ``benchmark`` of a module, given as a file.

    Args:
        dynamos: as ``--dynamo-version`` gives them, for configurations that name none.

    Raises:
        BenchmarkError: it cannot be imported or has none, with file and line; or one of its
            claims names a target that is not registered; or a Dynamo is given for a
            configuration that it does not have.
    """
    module = load_module(path)
    found = getattr(module, "benchmark", None)
    if not isinstance(found, Benchmark):
        got = "" if found is None else f" (it is a {type(found).__name__})"
        raise BenchmarkError(f"{path}: does not define a Benchmark named 'benchmark'{got}")
    try:
        known_targets([path]).check_claims(found)
    except BenchmarkError as error:
        raise BenchmarkError(f"{path}: {error}") from None
    known = [configuration.name for configuration in found.configurations]
    for name, _ in dynamos:
        if name:
            choose("configuration", name, known)
    return found.with_dynamo(dynamos)


@contextmanager
def own_metrics(path: Path | None) -> Iterator[None]:
    """Have the metrics of a file, such as a conftest.py with their hook, while a command runs.

    Raises:
        BenchmarkError: it cannot be imported, or has none; the message has file and line.
    """
    before = set(METRICS)
    try:
        if path is not None:
            hook = getattr(load_module(path), "pytest_dynamo_bench_metrics", list)
            for metric in hook():
                register_metric(metric)
            if before == set(METRICS):
                raise BenchmarkError(
                    f"--metrics: {path}: registers no metric; give the conftest.py that defines "
                    "pytest_dynamo_bench_metrics"
                )
        yield
    finally:
        forget_metrics(set(METRICS) - before)


def numbers(text: str) -> tuple[float, ...]:
    """``0.5,1,2`` as numbers greater than 0, for argparse."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be numbers greater than 0, separated by commas, such as 0.5,1,2"
        )
    return tuple(dict.fromkeys(values))


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, 1 or more")
    return int(text)


def add_allow_missing(parser: argparse.ArgumentParser) -> None:
    """The option of every command that reads stored results."""
    parser.add_argument(
        "--allow-missing", action="store_true",
        help="exit with 0 although results are missing, damaged, invalid or not comparable; they "
        "are still listed",
    )  # fmt: skip


def load_sessions(directories: Iterable[Path]) -> tuple[list[SessionReport], list[str]]:
    """The results that can be read, and for each of the others why it cannot.

    Raises:
        ResultsError: none can be read.
    """
    found: list[SessionReport] = []
    unreadable: list[str] = []
    for directory in directories:
        try:
            found.append(load_session(StoredResults(directory)))
        except ResultsError as error:
            unreadable.append(str(error))
    if not found:
        raise ResultsError("; ".join(unreadable))
    return found, unreadable


def end_incomplete(missing: Sequence[str], options: argparse.Namespace, done: str) -> None:
    """Name what is missing; end with an error unless that was allowed.

    Args:
        missing: what is, one line each.
        done: what could not be done with it, such as "compared".

    Raises:
        IncompleteError: something is missing, and that was not allowed.
    """
    if not missing:
        return
    lines = "".join(f"\n- {printable(text, LONGEST_LINE)}" for text in dict.fromkeys(missing))
    if options.allow_missing:
        Console(stderr=True, highlight=False, emoji=False, soft_wrap=True).print(
            Text(f"warning: some results could not be {done}:{lines}")
        )
        return
    raise IncompleteError(
        f"some results could not be {done}:{lines}\nto accept this, use --allow-missing"
    )


def add_running_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that simulates."""
    add_dynamo_version(parser)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write results and figures"
    )
    parser.add_argument(
        "--processes", type=positive, metavar="N",
        help="simulations at a time on this machine (default: number of CPU cores)",
    )  # fmt: skip
    parser.add_argument(
        "--executor", type=executor, metavar="WHERE", default=LOCAL_EXECUTOR,
        help="where to simulate: local, or dask:ADDRESS for the workers of a dask scheduler "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", default=Path(".dynamo-bench-cache"),
        help="where to cache simulations (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--no-cache", action="store_true", help="neither read nor write the cache")
    parser.add_argument("--png", action="store_true", help="also write figures as PNG")


def simulating_target(options: argparse.Namespace) -> ReplayTarget:
    """A target that simulates as the options of every such command say."""
    cache = SimulationCache(directory=None if options.no_cache else options.cache)
    return ReplayTarget(runner=Runner(options.executor, options.processes, cache))


def output_directory(options: argparse.Namespace, default: Path) -> Path:
    """Where results go, which need not exist yet.

    Raises:
        BenchmarkError: it could not be made or written to; said before anything is simulated.
    """
    directory: Path = options.output or default
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise BenchmarkError(f"--output: {existing} is not a directory")
    if not os.access(existing, os.W_OK):
        raise BenchmarkError(f"--output: {existing} is not writable")
    return directory


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show progress: a live line on a terminal, otherwise a line per step.

    Yields a function of the number of steps done, the total, and the last step.
    """
    console = Console(stderr=True, highlight=False, emoji=False)
    began = time.monotonic()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[last]}"),
        )  # fmt: skip
        with Progress(*columns, console=console, transient=True) as live:
            task = live.add_task(label, total=None, last="")
            yield lambda done, total, last: live.update(
                task, completed=done, total=total, last=last
            )
        return

    def line(done: int, total: int, last: str) -> None:
        seconds = time.monotonic() - began
        console.print(Text(f"{label}: {done} of {total}, {seconds:.1f} s: {last}"), soft_wrap=True)

    yield line


def draw(
    console: Console, directory: Path, name: str, png: bool, write: Callable[[Path], None]
) -> list[Path]:
    """Write a figure in the wanted forms; without Matplotlib say how to get it.

    Returns:
        The files.
    """
    written: list[Path] = []
    for ending in (".svg", ".png") if png else (".svg",):
        path = directory / f"{name}{ending}"
        try:
            write(path)
        except ReportError as error:
            console.print(Text(f"no figure {path.name}: {error}", style="yellow"))
            return written
        written.append(path)
    return written


def write_results(
    directory: Path, name: str, content: Stored, rows: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Write ``name.json`` and ``name.csv``, each in one step.

    Args:
        rows: of the CSV; the first one's keys are the columns.

    Returns:
        The files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / f"{name}.json", content)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = directory / f"{name}.csv"
    write_whole(path, text.getvalue().encode("utf-8"))
    return [directory / f"{name}.json", path]


def say_written(console: Console, paths: Iterable[Path]) -> None:
    """List the files that were written, by directory."""
    by_directory: dict[Path, list[str]] = {}
    for path in paths:
        by_directory.setdefault(path.parent, []).append(path.name)
    for directory, names in by_directory.items():
        console.print(Text(f"written to {directory}: {', '.join(names)}"), soft_wrap=True)


def limitations(target: ReplayTarget, benchmark: Benchmark) -> dict[str, list[str]]:
    """What the simulation leaves out or simplifies, by configuration."""
    whole = benchmark.traffic.load()
    return {
        configuration.name: [
            *map(str, of_arrivals(*[traffic_for(whole, configuration)] * 2)),
            *target.limitations(benchmark, configuration),
        ]
        for configuration in benchmark.configurations
    }


def say_limitations(console: Console, file: str) -> None:
    """Point to what the simulation simplifies."""
    console.print(
        Text(f"for what the simulation simplifies, see 'limitations' in {file} and docs/replay.md"),
        soft_wrap=True,
    )


def plain_table(*columns: str, left: int = 1) -> Table:
    """A table without lines; the first ``left`` columns hold text, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if index < left else "right",
            no_wrap=index >= left,
            overflow="fold",
        )
    return table


def number(value: float, unit: str) -> str:
    """A metric's value as text."""
    if not math.isfinite(value):
        return "-"
    if unit == "share":
        return f"{100 * value:.1f}"
    if unit == "requests/s":
        return f"{value:.3f}"
    return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
