"""Results against earlier results: two directories, or many over time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_dynamo_bench.errors import ResultsError
from pytest_dynamo_bench.metrics import Metrics, Sample
from pytest_dynamo_bench.reports.model import (
    ComparisonReport,
    ConfigurationReport,
    SessionReport,
)
from pytest_dynamo_bench.verdicts.regression import (
    Regression,
    Tolerance,
    compare_with_stored,
    mismatches,
)


@dataclass(frozen=True)
class Difference:
    """A configuration's metrics in one directory against those in another.

    Attributes:
        mismatches: why the two are not of the same thing.
        regressions: the verdicts; empty where nothing can be concluded.
        missing: what could not be compared, and why.
    """

    benchmark: str
    configuration: str
    mismatches: tuple[str, ...] = ()
    regressions: tuple[Regression, ...] = ()
    missing: tuple[str, ...] = ()


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
    """A metric of a configuration over sessions, oldest first.

    Attributes:
        without: results that have the configuration, but no value of the metric.
    """

    benchmark: str
    configuration: str
    target: str
    tolerance: Tolerance
    points: tuple[Point, ...]
    without: tuple[Path, ...] = ()

    @property
    def missing(self) -> list[str]:
        """What could not be judged, and why."""
        named = f"{self.benchmark}: {self.configuration}"
        found = [
            f"{path}: {named} has no value of {self.tolerance.metric}" for path in self.without
        ]
        found += [
            f"{point.directory}: {named} is not comparable: {point.mismatches[0]}"
            for point in self.points
            if point.mismatches
        ]
        if len(self.points) == 1:
            found.append(f"{self.points[0].directory}: {named} has no other result to compare with")
        return found


def compare_sessions(
    new: SessionReport,
    old: SessionReport,
    tolerances: Sequence[Tolerance],
    *,
    allow_mismatches: bool = False,
) -> list[Difference]:
    """Judge every configuration that either has, metric by metric, as the regression gate does.

    Args:
        allow_mismatches: judge also what is not of the same thing.

    Raises:
        ResultsError: they are of different targets.
    """
    if new.target != old.target:
        raise ResultsError(
            f"{new.directory} is from target {new.target}, {old.directory} from {old.target}; "
            "results of different targets cannot be compared"
        )
    found = [
        {
            (report.name, item.name): item
            for report in session.comparisons
            for item in report.configurations
            if item.runs or item.unusable
        }
        for session in (new, old)
    ]
    return [
        _difference(
            *key,
            [(new.directory, found[0].get(key)), (old.directory, found[1].get(key))],
            tolerances,
            allow_mismatches,
        )
        for key in dict.fromkeys([*found[0], *found[1]])
    ]


def _difference(
    benchmark: str,
    configuration: str,
    items: Sequence[tuple[Path, ConfigurationReport | None]],
    tolerances: Sequence[Tolerance],
    allow_mismatches: bool,
) -> Difference:
    """Judge one configuration, given with its directories; the first is in question."""
    missing = tuple(
        f"{directory}: {item.unusable if item else 'has no result'}"
        for directory, item in items
        if item is None or item.unusable
    )
    if missing:
        return Difference(benchmark, configuration, missing=missing)
    runs, stored = (item.runs for _, item in items if item is not None)
    differs = mismatches(runs[0].run, stored[0].run)
    if differs and not allow_mismatches:
        reason = f"not comparable: {differs[0]}"
        return Difference(benchmark, configuration, differs, missing=(reason,))
    judged = {tolerance.metric: _judged(runs, stored, tolerance) for tolerance in tolerances}
    return Difference(
        benchmark,
        configuration,
        differs,
        tuple(found for found in judged.values() if found is not None),
        tuple(f"{metric}: one of the two has no value" for metric in judged if not judged[metric]),
    )


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
            shown = {point.directory for point in points}
            without = tuple(s.directory for s, _ in runs if s.directory not in shown)
            found.append(
                History(benchmark, configuration, target, tolerance, tuple(points), without)
            )
    if not any(history.points for history in found):
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
    samples = [[_sample(item, tolerance.metric) for item in runs] for runs in (current, stored)]
    new, old = ([sample for sample in runs if sample is not None] for runs in samples)
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
