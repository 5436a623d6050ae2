"""What follows a load, so that nothing of it costs a run what was measured.

The order is: store, then ask, work out, take down and judge.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pytest_dynamo_bench.errors import DynamoBenchError, UnexpectedError
from pytest_dynamo_bench.plain_text import one_line
from pytest_dynamo_bench.record_files import write_records
from pytest_dynamo_bench.records import RequestRecord

_LOG = "errors.log"


class Measuring(Protocol):
    """What measures, such as a load generator."""

    def records(self) -> list[RequestRecord]:
        """What has been measured so far."""


class Aftermath:
    """Collects what went wrong after a load had begun.

    Args:
        directory: of the run; it gets the records, and its logs the tracebacks.

    Attributes:
        problems: what makes the run invalid.
        notes: what is only missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._measured = False
        self.problems: list[str] = []
        self.notes: list[str] = []

    @contextmanager
    def sending(self, measuring: Measuring) -> Iterator[None]:
        """Send a load: however it ends, what was measured is on disk before anything else is done.

        An end before its time is a problem of the run, unless nothing was measured at all.
        """
        try:
            yield
        except Exception as error:
            if not measuring.records():
                raise
            self._failed("sending the traffic", error)
        finally:
            self.keep(measuring.records())

    def keep(self, records: Sequence[RequestRecord]) -> None:
        """Write what was measured, if anything was."""
        self._measured = bool(records)
        if records:
            with self.step("writing the records"):
                write_records(self._directory, records)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Do something of which a failure is a problem of the run, and no exception.

        Args:
            what: is done, as in "reading the engines' events".
        """
        try:
            yield
        except Exception as error:
            self._failed(what, error)

    @contextmanager
    def once_measured(self, what: str) -> Iterator[None]:
        """Around startup, load and shutdown: only what fails before the load raises."""
        try:
            yield
        except Exception as error:
            if not self._measured:
                raise
            self._failed(what, error)

    def _failed(self, what: str, error: Exception) -> None:
        self.problems.append(str(unexpected(error, self._directory, what)))

    def note(self, notes: Iterable[str]) -> None:
        """Add what is missing."""
        self.notes += notes


def unexpected(error: Exception, directory: Path, what: str) -> DynamoBenchError:
    """An exception as an error to be shown; the traceback of an unexpected one goes to the logs.

    Args:
        directory: of the run.
        what: was being done.
    """
    if isinstance(error, DynamoBenchError):
        return error
    log = directory / "logs" / _LOG
    where = f"the traceback is in {log}"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{what}:\n{''.join(traceback.format_exception(error))}\n")
    except OSError as full:
        where = f"its traceback could not be written to {log} ({full.strerror})"
    reason = one_line(str(error))
    return UnexpectedError(
        f"{what} failed: {type(error).__name__}{f': {reason}' if reason else ''}; {where}. "
        f"Measurements up to then are in {directory}. Please report this as a bug of "
        "pytest-dynamo-bench, or of the target if it is not one of the shipped ones"
    )
