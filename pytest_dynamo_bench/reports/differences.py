"""Results against earlier results: two directories, or many over time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_dynamo_bench.errors import ResultsError
from pytest_dynamo_bench.metrics import Metrics, Sample
from pytest_dynamo_bench.reports.model import ComparisonReport, SessionReport
from pytest_dynamo_bench.verdicts.regression import (
    Regression,
    Tolerance,
    compare_with_stored,
    mismatches,
)


@dataclass(frozen=True)
class Difference:
    """A configuration's metrics in one directory against those in another."""

    benchmark: str
    configuration: str
    mismatches: tuple[str, ...]
    regressions: tuple[Regression, ...]


@dataclass(frozen=True)
class Point:
    """A metric of a configuration in one session, and the gate's verdict on it.

    Attributes:
        regression: against the session before, or the first; None for the first itself, and
            where the two are not of the same thing.
        mismatches: why they are not.
    """

    directory: Path
    started_at: str
    value: float
    regression: Regression | None
    mismatches: tuple[str, ...] = ()


@dataclass(frozen=True)
class History:
    """A metric of a configuration over sessions, oldest first."""

    benchmark: str
    configuration: str
    target: str
    tolerance: Tolerance
    points: tuple[Point, ...]


def compare_sessions(
    new: SessionReport, old: SessionReport, tolerances: Sequence[Tolerance]
) -> list[Difference]:
    """Judge every configuration that both have, metric by metric, as the regression gate does.

    Raises:
        ResultsError: they are of different targets, or have nothing in common.
    """
    if new.target != old.target:
        raise ResultsError(
            f"{new.directory} is of target {new.target}, {old.directory} of {old.target}; numbers "
            "of different targets are not compared with each other"
        )
    found = []
    for report in new.comparisons:
        before = _named(old.comparisons, report.name)
        if before is None:
            continue
        earlier = {item.name: item for item in before.measured}
        for item in report.measured:
            if item.name in earlier:
                runs, stored = item.runs, earlier[item.name].runs
                found.append(
                    Difference(
                        report.name,
                        item.name,
                        mismatches(runs[0].run, stored[0].run),
                        tuple(
                            result
                            for tolerance in tolerances
                            if (result := _judged(runs, stored, tolerance)) is not None
                        ),
                    )
                )
    if not found:
        raise ResultsError(
            f"{new.directory} and {old.directory} have no configuration of a benchmark in common"
        )
    return found


def histories(
    sessions: Sequence[SessionReport], tolerances: Sequence[Tolerance], *, against_first: bool
) -> list[History]:
    """Every configuration's metrics over sessions, with the regression gate's verdicts.

    Sessions are put in the order in which they started.

    Args:
        against_first: judge against the first session, else against the one before.

    Raises:
        ResultsError: none of them has such a metric.
    """
    ordered = sorted(sessions, key=lambda session: (session.started_at, str(session.directory)))
    keys = dict.fromkeys(
        (session.target, report.name, item.name)
        for session in ordered
        for report in session.comparisons
        for item in report.measured
    )
    found = []
    for target, benchmark, configuration in keys:
        runs = [
            (session, item.runs)
            for session in ordered
            if session.target == target
            and (report := _named(session.comparisons, benchmark)) is not None
            for item in report.measured
            if item.name == configuration
        ]
        for tolerance in tolerances:
            points = _points(runs, tolerance, against_first)
            if points:
                found.append(History(benchmark, configuration, target, tolerance, tuple(points)))
    if not found:
        names = ", ".join(tolerance.metric for tolerance in tolerances)
        raise ResultsError(f"none of the results has a value of {names}")
    return found


def _points(
    runs: Sequence[tuple[SessionReport, Sequence[Metrics]]],
    tolerance: Tolerance,
    against_first: bool,
) -> list[Point]:
    points: list[Point] = []
    reference: Sequence[Metrics] | None = None
    for session, current in runs:
        values = [
            sample.value
            for metrics in current
            if (sample := _sample(metrics, tolerance.metric)) is not None
        ]
        if len(values) < len(current):
            continue
        differs = mismatches(current[0].run, reference[0].run) if reference else ()
        points.append(
            Point(
                session.directory,
                session.started_at,
                sum(values) / len(values),
                _judged(current, reference, tolerance) if reference and not differs else None,
                differs,
            )
        )
        if reference is None or not against_first:
            reference = current
    return points


def _judged(
    current: Sequence[Metrics], stored: Sequence[Metrics], tolerance: Tolerance
) -> Regression | None:
    sides = [[_sample(metrics, tolerance.metric) for metrics in side] for side in (current, stored)]
    new, old = ([sample for sample in side if sample is not None] for side in sides)
    if len(new) < len(current) or len(old) < len(stored):
        return None
    return compare_with_stored(new, old, tolerance)


def _sample(metrics: Metrics, metric: str) -> Sample | None:
    try:
        sample = metrics.sample(metric)
    except ValueError:
        return None
    return sample if len(sample.values) else None


def _named(reports: Iterable[ComparisonReport], name: str) -> ComparisonReport | None:
    return next((report for report in reports if report.name == name), None)
