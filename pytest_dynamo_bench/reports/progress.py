"""How a measurement is getting on: a live line for a person, plain lines for a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pytest_dynamo_bench.columns import Columns
from pytest_dynamo_bench.metric_definitions import METRICS
from pytest_dynamo_bench.records import RequestRecord

_QUIET_SECONDS = 10.0
# The display shares a process with the load generator: each refresh delays what is measured.
_REFRESHES_PER_SECOND = 2


@contextmanager
def show_progress(
    label: str,
    write: Callable[[str], None] | None,
    *,
    live_on: IO[str] | None = None,
    noun: str = "requests",
) -> Iterator[LineProgress | LiveProgress]:
    """The display of one measurement.

    Args:
        label: what is measured.
        write: takes a line; None for no display.
        live_on: the terminal of a person, for a live line; None for plain lines.
        noun: what is counted.
    """
    if live_on is None or write is None:
        yield LineProgress(label, write or (lambda line: None), noun)
        return
    with live_progress(label, Console(file=live_on, force_terminal=True)) as live:
        yield live
    write(f"{label}: {live.summary}" if live.summary else label)


class _Latencies:
    """Means over the requests that ended last, computed no more often than they are shown."""

    def __init__(self) -> None:
        self._due = 0.0
        self.text = ""

    def update(self, records: Sequence[RequestRecord]) -> None:
        """Take the latest requests into account, if it is time again."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + 1 / _REFRESHES_PER_SECOND
        columns = Columns([record for record in records if record.succeeded and record.chunk_ms])
        parts = []
        for metric in METRICS.values():
            if metric.headline:
                values = columns.of(metric.name)
                values = values[columns.known(values)]
                if len(values):
                    number = f"{values.mean():,.{0 if values.mean() >= 100 else 1}f}"
                    parts.append(f"{metric.label} {number} {metric.unit}")
        self.text = ", ".join(parts)


class _Counting:
    """What both displays say of requests."""

    def __init__(self) -> None:
        self._latencies = _Latencies()

    def latency(self, records: Sequence[RequestRecord]) -> None:
        self._latencies.update(records)

    def _parts(self, done: int, failed: int, total: int, noun: str = "") -> list[str]:
        parts = [f"{done:,} of {total:,} {noun}".rstrip()]
        parts += [f"{failed:,} failed"] if failed else []
        return parts + ([self._latencies.text] if self._latencies.text else [])


class LineProgress(_Counting):
    """Progress as plain lines, a line per stage and at most one every ten seconds between."""

    def __init__(self, label: str, write: Callable[[str], None], noun: str = "requests") -> None:
        self._label = label
        self._noun = noun
        self._write = write
        self._last = time.monotonic()
        self._began = self._last
        super().__init__()

    def stage(self, name: str) -> None:
        self._last = self._began = time.monotonic()
        self._write(f"{self._label}: {name}")

    def requests(self, done: int, failed: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= _QUIET_SECONDS or done == total:
            self._last = now
            parts = self._parts(done, failed, total, self._noun)
            if 0 < done < total:
                left = (now - self._began) / done * (total - done)
                parts.append(f"about {_duration(left)} left")
            self._write(f"{self._label}: {', '.join(parts)}")


class LiveProgress(_Counting):
    """Progress as one live line, for a person at a terminal."""

    def __init__(self, label: str, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task(escape(label), total=None, stage="", latency="")
        self._stage = ""
        super().__init__()
        self.done, self.failed, self.total = 0, 0, 0

    def stage(self, name: str) -> None:
        self._stage = name
        if self.done:
            self._progress.update(self._task, stage=escape(name))
        else:
            # Time left follows from how fast requests end, not from when the stage before began.
            self._progress.reset(self._task, stage=escape(name), latency="")

    def requests(self, done: int, failed: int, total: int) -> None:
        self.done, self.failed, self.total = done, failed, total
        trouble = f", [red]{failed:,} failed[/]" if failed else ""
        self._progress.update(
            self._task,
            completed=done,
            total=total,
            stage=f"{escape(self._stage)}{trouble}",
            latency=self._latencies.text,
        )

    @property
    def summary(self) -> str:
        """What is left of the line when it has gone."""
        if not self.total:
            return ""
        return ", ".join(self._parts(self.done, self.failed, self.total))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def live_progress(label: str, console: Console) -> Iterator[LiveProgress]:
    """A live line that is gone when it closes."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[stage]}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[latency]}"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=_REFRESHES_PER_SECOND
    ) as progress:
        yield LiveProgress(label, progress)
