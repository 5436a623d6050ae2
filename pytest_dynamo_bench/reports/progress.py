"""How a measurement is getting on: a live line for a person, plain lines for a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

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


class LineProgress:
    """Progress as plain lines, a line per stage and at most one every ten seconds between."""

    def __init__(self, label: str, write: Callable[[str], None], noun: str = "requests") -> None:
        self._label = label
        self._noun = noun
        self._write = write
        self._last = time.monotonic()

    def stage(self, name: str) -> None:
        self._last = time.monotonic()
        self._write(f"{self._label}: {name}")

    def requests(self, done: int, failed: int, total: int) -> None:
        if time.monotonic() - self._last >= _QUIET_SECONDS or done == total:
            self._last = time.monotonic()
            trouble = f", {failed} failed" if failed else ""
            self._write(f"{self._label}: {done} of {total} {self._noun}{trouble}")


class LiveProgress:
    """Progress as one live line, for a person at a terminal."""

    def __init__(self, label: str, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=None, stage="")

    def stage(self, name: str) -> None:
        self._progress.update(self._task, stage=name)

    def requests(self, done: int, failed: int, total: int) -> None:
        trouble = f", [red]{failed} failed[/]" if failed else ""
        self._progress.update(self._task, completed=done, total=total, stage=f"measuring{trouble}")


@contextmanager
def live_progress(label: str, console: Console) -> Iterator[LiveProgress]:
    """A live line that is gone when it closes."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=_REFRESHES_PER_SECOND
    ) as progress:
        yield LiveProgress(label, progress)
