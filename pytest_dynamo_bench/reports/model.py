"""What every report is made from: the results of a session, as they are stored.

A report can be made again from its directory, so nothing of a session is used that is not there.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from msgspec import convert
from msgspec.structs import replace

from pytest_dynamo_bench.benchmark import Goodput
from pytest_dynamo_bench.errors import ResultsError
from pytest_dynamo_bench.metric import Heading, Metric, Table
from pytest_dynamo_bench.metric_definitions import headings, metric_of
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.reports.store import StoredResults, in_one_line
from pytest_dynamo_bench.reports.stored_types import (
    Attribution,
    Deployment,
    Environment,
    Regression,
    RunEntry,
    Test,
    Traffic,
    Verdict,
)
from pytest_dynamo_bench.reports.stored_types import Benchmark as StoredBenchmark
from pytest_dynamo_bench.reports.stored_types import Run as StoredRun
from pytest_dynamo_bench.verdicts import Effect, estimate_effect

_T = TypeVar("_T")
Measured = Mapping[str, Mapping[str, Sequence[Metrics]]]

ATTRIBUTION_VIEWS: Mapping[str, str] = {
    "alone": "alone", "on_top": "on top of the others", "average": "averaged over orders",
}  # fmt: skip
_RESAMPLES = 1000
_SHORT_UNITS = {
    "requests/s": "req/s", "tokens/s": "tok/s", "tokens/s/user": "tok/s/user",
    "tokens/s/GPU": "tok/s/GPU", "requests/s/GPU": "req/s/GPU",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A metric as tables show it."""

    metric: str
    heading: Heading

    @property
    def definition(self) -> Metric:
        """What the metric is."""
        return metric_of(self.metric)

    @property
    def unit(self) -> str:
        """The unit as tables write it; shares are in percent."""
        definition = self.definition
        return "%" if definition.is_share else _SHORT_UNITS.get(definition.unit, definition.unit)

    def text(self, value: float) -> str:
        """A value of the metric, without its unit."""
        if not math.isfinite(value):
            return "-"
        if self.definition.is_share:
            return f"{value * 100:.1f}"
        if abs(value) >= 100:
            return f"{value:,.0f}"
        return f"{value:,.{1 if self.definition.unit == 'ms' else 2}f}"


@dataclass(frozen=True)
class ConfigurationReport:
    """A configuration, what it ran as, and the metrics of its runs.

    Attributes:
        runs: empty where there is no valid result; an invalid run is never one.
        error: why it has no valid result: it failed to start, or a run is invalid.
        invalid: the gates that a run did not pass, in words.
        problem: why what is stored of it cannot be read.
    """

    name: str
    role: str
    gpus: int
    features: tuple[str, ...]
    deployment: Deployment
    details: StoredRun | None
    runs: tuple[Metrics, ...]
    error: str = ""
    invalid: tuple[str, ...] = ()
    problem: str = ""
    _values: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def metrics(self) -> Metrics:
        """Of the first run."""
        return self.runs[0]

    @property
    def failed(self) -> int:
        """Requests of all runs that did not succeed."""
        return sum(int(run.requests.failed.sum()) for run in self.runs)

    def value(self, metric: str) -> float:
        """A metric, averaged over the runs; NaN when there is none."""
        if metric not in self._values:
            values = [run.value(metric) for run in self.runs]
            self._values[metric] = sum(values) / len(values)
        return self._values[metric]

    @property
    def unusable(self) -> str:
        """Why nothing can be concluded from what is stored, in one line; empty if something can."""
        if self.error:
            return f"has no valid result: {in_one_line(self.error)}"
        return in_one_line(self.problem)

    @property
    def state(self) -> str:
        """``measured``, ``invalid``, ``no result``, ``unreadable`` or ``not measured``."""
        if self.error:
            return "invalid" if self.invalid else "no result"
        if self.problem:
            return "unreadable"
        return "measured" if self.runs else "not measured"

    @property
    def why(self) -> str:
        """The reason of a state that is not ``measured``, in one line; may be empty."""
        return in_one_line("; ".join(self.invalid) or self.error or self.problem)

    @property
    def features_at_work(self) -> list[tuple[str, str]]:
        """Each feature with what it did in the first run, and what of that is modelled."""
        found = self.details.features if self.details else ()
        return [(item.feature, str(item)) for item in found]

    @property
    def traffic(self) -> Traffic:
        """What the first run says of its traffic."""
        return convert(self.details.traffic, Traffic) if self.details else Traffic()


@dataclass
class ComparisonReport:
    """One benchmark on one target.

    Attributes:
        verdicts: with a name of its own for each claim: with its statement, where several claims
            of the benchmark have one name.
    """

    name: str
    target: str
    entry: StoredBenchmark
    configurations: Sequence[ConfigurationReport]
    verdicts: Sequence[Verdict]
    attribution: Attribution | None = None
    problems: Sequence[str] = ()
    _effects: dict[tuple[str, str], Effect | None] = field(default_factory=dict)

    @cached_property
    def measured(self) -> list[ConfigurationReport]:
        """The configurations that there are valid runs of."""
        return [item for item in self.configurations if item.runs]

    @property
    def without_result(self) -> list[ConfigurationReport]:
        """The configurations that were asked about, and have no valid result."""
        return [item for item in self.configurations if item.error or item.problem]

    @property
    def question(self) -> str:
        """The benchmark's question."""
        return self.entry.question

    @property
    def simulated(self) -> bool:
        """Whether time was simulated."""
        return any(item.metrics.run.simulated for item in self.measured)

    @property
    def where(self) -> str:
        """The target, whether its time is simulated, and the Dynamo of the configurations."""
        versions: dict[str, list[str]] = {}
        for item in self.measured:
            for run in item.runs:
                names = versions.setdefault(run.run.dynamo, [])
                names += [item.name] if item.name not in names else []
        parts = [self.target, *(["simulated time"] if self.simulated else [])]
        for version, names in versions.items():
            of = f" ({', '.join(names)})" if len(versions) > 1 else ""
            parts += [f"Dynamo {in_one_line(version)}{of}"] if version else []
        return ", ".join(parts)

    @property
    def repeats(self) -> int:
        """Runs of the configuration that has most."""
        return max((len(item.runs) for item in self.measured), default=0)

    @property
    def baseline(self) -> ConfigurationReport | None:
        """What the others are compared with: the measured one with the role, else the first."""
        measured = self.measured
        return next(
            (c for c in measured if c.role == "baseline"), measured[0] if measured else None
        )

    @property
    def regressions(self) -> list[tuple[str, Regression]]:
        """The regression gate's findings by configuration, where there was a stored baseline."""
        return [
            (configuration, found)
            for configuration, by_metric in self.entry.regressions.items()
            for found in by_metric.values()
        ]

    @property
    def unexplained(self) -> dict[str, Test]:
        """The tests that failed for a reason that nothing else in a report says."""
        return {
            name: test
            for name, test in self.entry.tests.items()
            if test.outcome in ("failed", "error") and not test.explained
        }

    @cached_property
    def columns(self) -> list[Column]:
        """The metrics of reports that at least one configuration has."""
        return self._columns("report")

    @cached_property
    def terminal_columns(self) -> list[Column]:
        """Those of them that a terminal shows."""
        return self._columns("terminal")

    @cached_property
    def changed_columns(self) -> list[Column]:
        """Those whose changes it shows, the most important ones first."""
        return sorted(self._columns("changes"), key=lambda column: column.heading.priority)

    def _columns(self, table: Table) -> list[Column]:
        return [
            column
            for column in itertools.starmap(Column, headings(table))
            if (self.goodput is not None or not column.definition.needs_limits)
            and any(math.isfinite(item.value(column.metric)) for item in self.measured)
        ]

    @property
    def goodput(self) -> Goodput | None:
        """The service-level objectives, where there are any."""
        return self.entry.goodput

    @property
    def limitations(self) -> dict[str, list[str]]:
        """What the target only models, or is missing from a run, with the configurations."""
        found: dict[str, list[str]] = {}
        for item in self.measured:
            details = item.details
            for limit in (*details.limitations, *details.notes) if details else ():
                found.setdefault(limit, []).append(item.name)
        return found

    @property
    def scaling_in_words(self) -> str:
        """What of the published traffic the one that was sent has kept; empty where it is that."""
        return self.measured[0].traffic.scaling if self.measured else ""

    @property
    def traffic_in_words(self) -> str:
        """Where the traffic comes from and how it was sent."""
        if not self.measured:
            return self.entry.traffic
        item = self.measured[0]
        traffic = item.traffic
        requests = item.metrics.requests
        text = "; ".join(traffic.history) or self.entry.traffic
        count = max(len(requests), 1)
        isl = requests.numbers("input_tokens").sum() / count
        osl = requests.numbers("output_tokens").sum() / count
        # Open loop: how long the traffic is; closed loop: how long it took.
        seconds = (
            requests.numbers("scheduled_ms").max(initial=0.0) / 1000
            if traffic.schedule.startswith("fixed")
            else item.metrics.duration_seconds
        )
        text += f". {len(requests):,} requests in {seconds:,.0f} s"
        text += f", {traffic.schedule}" if traffic.schedule else ""
        text += f"; mean ISL {isl:,.0f}, mean OSL {osl:,.0f} tokens"
        if traffic.images:
            distinct = traffic.distinct_images
            seen = 0 if distinct is None else 1 - distinct / traffic.images
            text += f"; {traffic.images:,} images, {seen:.1%} of them seen before"
        elif traffic.reusable_share is not None:
            text += f"; {traffic.reusable_share:.1%} of the prompt blocks are reusable"
        return text

    def best(self, column: Column) -> ConfigurationReport | None:
        """The configuration with the best value; None where a table does not tell it from another.

        A difference that cannot be read in the table is no reason to mark one of them, and where
        values must not be compared none is.
        """
        if any(self._forbids(verdict, column.metric) for verdict in self.verdicts):
            return None
        values = [(item.value(column.metric), item) for item in self.measured]
        finite = [pair for pair in values if math.isfinite(pair[0])]
        pick = min if column.definition.better == "lower" else max
        if len(finite) < 2:
            return None
        value, found = pick(finite, key=lambda pair: pair[0])
        text = column.text(value)
        tied = sum(column.text(other) == text for other, _ in finite)
        return found if tied == 1 else None

    def effect(self, configuration: ConfigurationReport, metric: str) -> Effect | None:
        """The change from the baseline with its 95 % interval, as a claim would be judged alone.

        None for the baseline itself, where there is nothing to compare, and where a verdict on
        the same is invalid.
        """
        key = configuration.name, metric
        if key not in self._effects:
            self._effects[key] = self._estimate(configuration, metric)
        return self._effects[key]

    def _estimate(self, configuration: ConfigurationReport, metric: str) -> Effect | None:
        baseline = self.baseline
        if baseline is None or configuration.name == baseline.name:
            return None
        pair = {configuration.name, baseline.name}
        if any(
            {found.claim.treatment, found.claim.baseline} == pair and self._forbids(found, metric)
            for found in self.verdicts
        ):
            return None
        samples = [[run.sample(metric) for run in item.runs] for item in (configuration, baseline)]
        if any(len(sample.values) == 0 for runs in samples for sample in runs):
            return None
        try:
            return estimate_effect(*samples, resamples=_RESAMPLES)
        except ValueError:
            return None

    @staticmethod
    def _forbids(verdict: Verdict, metric: str) -> bool:
        """Whether a verdict says that its two configurations must not be compared in a metric."""
        pair = f"{verdict.claim.treatment}, {verdict.claim.baseline}"
        return verdict.outcome == "invalid" and (
            verdict.claim.metric == metric
            or any(gate.configuration == pair for gate in verdict.failed_gates)
        )


@dataclass(frozen=True)
class SessionReport:
    """All comparisons of one session."""

    directory: Path
    target: str
    command: str
    started_at: str
    environment: Environment
    comparisons: Sequence[ComparisonReport]
    problems: Sequence[str] = ()

    @property
    def missing(self) -> list[str]:
        """What has no usable result, or cannot be read, each with the reason in one line."""
        found = [in_one_line(problem) for problem in self.problems]
        for report in self.comparisons:
            found += [in_one_line(problem) for problem in report.problems]
            found += [
                f"{report.name}: {item.name} {item.unusable}"
                for item in report.configurations
                if item.error
            ]
        if not any(report.measured for report in self.comparisons):
            found.append("there is no usable result of any configuration")
        return [f"{self.directory}: {text}" for text in found]


def load_session(results: StoredResults, measured: Measured | None = None) -> SessionReport:
    """Everything that reports show of a session.

    Args:
        results: where it is stored.
        measured: by benchmark and configuration the metrics of all runs that are in memory
            already; what is missing is read.

    Raises:
        ResultsError: a file is missing or cannot be read.
    """
    summary = results.summary
    problems: list[str] = []
    return SessionReport(
        directory=results.directory,
        target=summary.target,
        command=shlex.join(summary.command),
        started_at=summary.started_at,
        environment=_unless_damaged(results.environment, problems) or Environment(),
        comparisons=[
            _comparison(results, name, entry, (measured or {}).get(name, {}))
            for name, entry in summary.benchmarks.items()
        ],
        problems=problems,
    )


def _unless_damaged(read: Callable[[], _T], problems: list[str]) -> _T | None:
    """What can be read; else the reason is added to the problems."""
    try:
        return read()
    except ResultsError as error:
        problems.append(str(error))
        return None


def _comparison(
    results: StoredResults,
    name: str,
    entry: StoredBenchmark,
    measured: Mapping[str, Sequence[Metrics]],
) -> ComparisonReport:
    configurations = []
    problems: list[str] = []
    for configuration in dict.fromkeys([*entry.configurations, *entry.runs]):
        error = entry.errors.get(configuration, "")
        problem = ""
        runs: Sequence[Metrics] = ()
        details = None
        stored = entry.runs.get(configuration, ())
        if stored:
            try:
                details = results.details(name, configuration)
                if not error:
                    runs = measured.get(configuration) or [
                        Metrics(run, entry.goodput) for run in results.runs(name, configuration)
                    ]
            except ResultsError as unreadable:
                problem = str(unreadable)
                problems.append(problem)
        known = entry.configurations.get(configuration)
        written = known.deployment if known else details.configuration if details else {}
        deployment = convert({"name": configuration, **written}, Deployment)
        configurations.append(
            ConfigurationReport(
                name=configuration,
                role=known.role if known else deployment.role,
                gpus=known.gpus if known else details.gpus if details else 0,
                features=tuple(known.features if known else ()),
                deployment=deployment,
                details=details,
                runs=tuple(runs),
                error=error,
                invalid=_why_invalid(error, stored),
                problem=problem,
            )
        )
    attribution = _unless_damaged(lambda: results.attribution(name), problems)
    return ComparisonReport(
        name=name,
        target=results.summary.target,
        entry=entry,
        configurations=configurations,
        verdicts=_named_apart(list(entry.verdicts.values())),
        attribution=attribution,
        problems=problems,
    )


def _why_invalid(error: str, runs: Iterable[RunEntry]) -> tuple[str, ...]:
    """The gates that runs of a configuration did not pass.

    Older results do not have them run by run; there a run with an error is an invalid one.
    """
    found = [reason for run in runs for reason in ([error] if run.invalid is None else run.invalid)]
    return tuple(dict.fromkeys(found)) if error else ()


def _named_apart(verdicts: Sequence[Verdict]) -> list[Verdict]:
    names = [verdict.claim.name for verdict in verdicts]
    return [
        replace(
            verdict,
            claim=replace(verdict.claim, name=f"{verdict.claim.name} ({verdict.statement})"),
        )
        if names.count(verdict.claim.name) > 1
        else verdict
        for verdict in verdicts
    ]


def attribution_rows(study: Attribution) -> list[tuple[str, ...]]:
    """Feature, and in percent what it brings alone, on top of the others, and on average."""
    return [
        (row.feature, *(found.in_percent if (found := getattr(row, view)) else ""
                        for view in ATTRIBUTION_VIEWS))
        for row in study.rows
    ]  # fmt: skip


def change_text(effect: Effect, is_share: bool) -> tuple[str, str]:
    """A change and its interval as tables write them: ``-12.3 %``, ``-15.0 … -9.1``."""
    unit = "pp" if is_share else "%"
    change = f"{effect.change * 100:+.1f} {unit}" if math.isfinite(effect.change) else "-"
    if not (math.isfinite(effect.low) and math.isfinite(effect.high)):
        return change, "no interval"
    return change, f"{effect.low * 100:+.1f} … {effect.high * 100:+.1f}"
