"""What a target is: it measures a configuration under a traffic, somehow.

The seam is the measurement, not an address: a simulation has no URL.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.errors import DynamoBenchError, TargetError
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.traffic import Traffic, tried

# Requests that a display takes the current latencies from.
RECENT = 20


class Progress(Protocol):
    """Told how a measurement is getting on; a target calls it, a terminal shows it."""

    def stage(self, name: str) -> None:
        """A new stage has begun: bringing up, warming, measuring, taking down."""

    def requests(self, done: int, failed: int, total: int) -> None:
        """So many requests of the measured traffic have ended."""


@runtime_checkable
class ShowsLatency(Protocol):
    """A display that also shows what latencies are like at the moment."""

    def latency(self, records: Sequence[RequestRecord]) -> None:
        """These requests have ended last."""


def show_latency(progress: Progress, records: Sequence[RequestRecord]) -> None:
    """Show what latencies are like at the moment, where the display can."""
    if isinstance(progress, ShowsLatency):
        progress.latency(records)


class Tally:
    """Counts requests as they end, and shows the count with what latencies are like.

    Args:
        progress: shows it.
        total: requests that will be sent.
        latest: the requests that have ended last, so many at most.
    """

    def __init__(
        self,
        progress: Progress,
        total: int,
        latest: Callable[[int], Sequence[RequestRecord]],
    ) -> None:
        self._progress, self._latest = progress, latest
        self.done, self.failed, self.total = 0, 0, total

    def __call__(self, whole: bool) -> None:
        """A request has ended, with a whole response or without."""
        self.done, self.failed = self.done + 1, self.failed + (not whole)
        self._progress.requests(self.done, self.failed, self.total)
        show_latency(self._progress, self._latest(RECENT))


class Unwatched:
    """A :class:`Progress` that shows nothing."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def requests(self, done: int, failed: int, total: int) -> None:
        """Nothing."""


@dataclass(frozen=True)
class PlannedRun:
    """A run that is to be made.

    Attributes:
        benchmark: whose question it is.
        configuration: what is measured.
        traffic: as the configuration is to get it.
        directory: for logs and whatever else explains the run.
        repeat: counts runs of the same configuration from 0; a target that would give the same
            numbers again varies what is left to chance in reality.
    """

    benchmark: Benchmark
    configuration: Configuration
    traffic: Traffic
    directory: Path
    repeat: int = 0


class Target(Protocol):
    """Where configurations are brought up."""

    @property
    def name(self) -> str:
        """The target's name, as in ``--dynamo-target``."""

    def check(self, benchmark: Benchmark) -> None:
        """Find out, before anything is brought up, whether this benchmark can run here.

        Raises:
            TargetError: it cannot; the message says what to install or change.
        """

    def traffic(self, benchmark: Benchmark) -> Traffic:
        """The benchmark's traffic as it will be sent here: in full, or cut.

        Raises:
            TrafficError: the traffic cannot be read.
        """

    def limitations(self, benchmark: Benchmark, configuration: Configuration) -> tuple[str, ...]:
        """What of the configuration this target only models, or cannot express; for reports."""

    def measure(self, planned: PlannedRun, progress: Progress) -> Run:
        """Bring the configuration up, send the traffic, take everything down again.

        Logs and whatever else explains the run are written to its directory.

        Raises:
            DeploymentError: the configuration did not come up, or died in the middle.
        """


@runtime_checkable
class SideBySideTarget(Protocol):
    """A target whose runs do not disturb each other, so that several can be made at a time."""

    @property
    def at_a_time(self) -> int:
        """How many runs are made at a time."""

    def measure_all(
        self, planned: Sequence[PlannedRun], progress: Progress
    ) -> Iterator[tuple[PlannedRun, Run | DynamoBenchError]]:
        """Make runs, each as ``measure`` does, and yield them with their outcomes.

        They come in the order in which they end, but repeats of a configuration in theirs. When
        the caller is interrupted, or closes the iterator, those under way are ended at once.
        """


@runtime_checkable
class ScalingTarget(Protocol):
    """A target that sends less than the published traffic, as a benchmark's ``sizes`` say."""

    def not_measured(self, benchmark: Benchmark, configurations: Iterable[str]) -> str:
        """Why claims about these configurations cannot be judged; empty when they can."""


@runtime_checkable
class ReadingTarget(Protocol):
    """A target that sends nothing, but reads what was measured elsewhere."""

    @property
    def measured_elsewhere(self) -> str:
        """By what."""


def check_target(target: Target) -> None:
    """See that a target measures a :class:`PlannedRun`, as those of users once did not.

    Raises:
        TargetError: its ``measure`` takes something else.
    """
    try:
        inspect.signature(target.measure).bind(None, None)
    except TypeError:
        raise TargetError(
            f"target {target.name!r}: {type(target).__name__}.measure must take (planned, "
            "progress): planned has the benchmark, configuration, traffic, directory and repeat "
            "that it was given one by one before"
        ) from None


def sent_traffic(target: Target, benchmark: Benchmark) -> Traffic:
    """What a target is given to send: its traffic, or the beginning of it in a trial.

    Raises:
        TrafficError: the traffic cannot be read, or the length of a trial is not a number.
    """
    traffic = target.traffic(benchmark)
    return traffic if isinstance(target, ReadingTarget) else tried(traffic)
