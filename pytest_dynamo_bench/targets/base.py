"""The interface of targets: a target measures a configuration under a traffic.

The interface is the measurement, not an address: a simulation has no URL.
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
    """Shows the progress of a measurement; targets call it."""

    def stage(self, name: str) -> None:
        """A new stage has begun: starting, warming, measuring, stopping."""

    def requests(self, done: int, failed: int, total: int) -> None:
        """So many requests of the measured traffic have ended."""


@runtime_checkable
class ShowsLatency(Protocol):
    """A display that also shows current latencies."""

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
    """A run to make.

    Attributes:
        benchmark: the benchmark.
        configuration: the configuration to measure.
        traffic: the traffic to send.
        directory: for logs and other files about the run.
        repeat: index of the run of this configuration, from 0; a deterministic target varies its
            seed with it.
    """

    benchmark: Benchmark
    configuration: Configuration
    traffic: Traffic
    directory: Path
    repeat: int = 0


class Target(Protocol):
    """Measures configurations."""

    @property
    def name(self) -> str:
        """The target's name, as in ``--dynamo-target``."""

    def check(self, benchmark: Benchmark) -> None:
        """Check, before anything is started, whether this benchmark can run here.

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
            DeploymentError: the configuration failed to start, or died.
        """


@runtime_checkable
class SideBySideTarget(Protocol):
    """A target whose runs do not disturb each other and can run in parallel."""

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
    """A target that sends less than the published traffic, according to ``Benchmark.sizes``."""

    def not_measured(self, benchmark: Benchmark, configurations: Iterable[str]) -> str:
        """Why claims about these configurations cannot be judged; empty when they can."""


@runtime_checkable
class ReadingTarget(Protocol):
    """A target that sends nothing and reads existing measurements."""

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
            "progress): 'planned' has the benchmark, configuration, traffic, directory and repeat"
        ) from None


def sent_traffic(target: Target, benchmark: Benchmark) -> Traffic:
    """What a target is given to send: its traffic, or the beginning of it in a trial.

    Raises:
        TrafficError: the traffic cannot be read, or the length of a trial is not a number.
    """
    traffic = target.traffic(benchmark)
    return traffic if isinstance(target, ReadingTarget) else tried(traffic)
