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
from typing import Any, TypeVar

from pytest_dynamo_bench.benchmark import Bound, Goodput
from pytest_dynamo_bench.errors import ResultsError
from pytest_dynamo_bench.metric import Heading, Metric, Table
from pytest_dynamo_bench.metric_definitions import headings, metric_of
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.plain_text import printable
from pytest_dynamo_bench.reports.store import EndedTest, StoredResults, in_one_line
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
class VerdictReport:
    """A verdict as it is stored, with defaults for what an older file lacks.

    ``name`` is the claim's, with its statement where several claims of the benchmark have that
    name.
    """

    name: str
    kind: str
    outcome: str
    statement: str
    sentence: str
    metric: str
    treatment: str
    baseline: str
    evidence: str
    limits: tuple[float, ...]
    change: float
    low: float
    high: float
    confidence: float
    method: str
    confounds: tuple[str, ...]
    gates: tuple[Mapping[str, Any], ...]

    @property
    def is_share(self) -> bool:
        """Whether the change is in points instead of percent."""
        return metric_of(self.metric).is_share

    @property
    def failed_gates(self) -> tuple[Mapping[str, Any], ...]:
        """The validity gates that were not passed."""
        return tuple(gate for gate in self.gates if not gate.get("passed", True))


@dataclass(frozen=True)
class RegressionReport:
    """A metric of a configuration against a stored measurement of it."""

    configuration: str
    outcome: str
    sentence: str


@dataclass(frozen=True)
class ConfigurationReport:
    """A configuration, what it ran as, and the metrics of its runs.

    Attributes:
        runs: empty where there is no valid result; an invalid run is never one.
        error: why it has no valid result: it did not come up, or a run was declared invalid.
        invalid: the gates that a run did not pass, in words.
        problem: why what is stored of it cannot be read.
    """

    name: str
    role: str
    gpus: int
    features: tuple[str, ...]
    deployment: Mapping[str, Any]
    details: Mapping[str, Any]
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
        return sum(not record.succeeded for run in self.runs for record in run.run.records)

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
        found = []
        for item in self.details.get("features") or ():
            text = str(item.get("saw", ""))
            text += f" (modelled: {item['modelled']})" if item.get("modelled") else ""
            found.append((str(item.get("feature", "")), text))
        return found

    @property
    def in_words(self) -> str:
        """What is deployed, in one line."""
        return deployment_in_words(self.deployment)


@dataclass
class ComparisonReport:
    """One benchmark on one target."""

    name: str
    target: str
    entry: Mapping[str, Any]
    configurations: Sequence[ConfigurationReport]
    verdicts: Sequence[VerdictReport]
    attribution: Mapping[str, Any] | None = None
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
        return str(self.entry.get("question", ""))

    @property
    def simulated(self) -> bool:
        """Whether time was simulated."""
        return any(item.metrics.run.simulated for item in self.measured)

    @property
    def where(self) -> str:
        """The target, and whether its time is simulated."""
        return self.target + (", simulated time" if self.simulated else "")

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
    def regressions(self) -> list[RegressionReport]:
        """The regression gate's findings, where the session had a stored baseline."""
        return [
            RegressionReport(
                configuration, str(found.get("outcome", "")), str(found.get("sentence", ""))
            )
            for configuration, by_metric in (self.entry.get("regressions") or {}).items()
            for found in by_metric.values()
        ]

    @property
    def tests(self) -> list[EndedTest]:
        """How the tests of the benchmark ended; empty in results of a comparison without any."""
        return [
            EndedTest(
                str(test),
                str(found.get("outcome", "")),
                str(found.get("message", "")),
                bool(found.get("explained")),
            )
            for test, found in (self.entry.get("tests") or {}).items()
        ]

    @property
    def unexplained(self) -> list[EndedTest]:
        """The tests that failed for a reason that nothing else in a report says."""
        return [t for t in self.tests if t.outcome in ("failed", "error") and not t.explained]

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

    @cached_property
    def goodput(self) -> Goodput | None:
        """The service-level objectives, where there are any."""
        return _goodput(self.entry)

    @property
    def published(self) -> Mapping[str, Any] | None:
        """What somebody else measured: source, hardware, values by configuration, note."""
        return self.entry.get("published") or None

    @property
    def limitations(self) -> dict[str, list[str]]:
        """What the target only models, or is missing from a run, with the configurations."""
        found: dict[str, list[str]] = {}
        for item in self.measured:
            details = item.details
            for limit in (*details.get("limitations", ()), *details.get("notes", ())):
                found.setdefault(limit, []).append(item.name)
        return found

    @property
    def scaling_in_words(self) -> str:
        """What of the published traffic the one that was sent has kept; empty where it is that."""
        if not self.measured:
            return ""
        return str(self.measured[0].details.get("traffic", {}).get("scaling", ""))

    @property
    def traffic_in_words(self) -> str:
        """Where the traffic comes from and how it was sent."""
        if not self.measured:
            return str(self.entry.get("traffic", ""))
        item = self.measured[0]
        traffic = item.details.get("traffic", {})
        records = item.metrics.run.records
        text = "; ".join(map(str, traffic.get("history", ()))) or str(self.entry.get("traffic", ""))
        count = max(len(records), 1)
        isl = sum(record.input_tokens for record in records) / count
        osl = sum(record.output_tokens for record in records) / count
        schedule = str(traffic.get("schedule") or "")
        # Open loop: how long the traffic is; closed loop: how long it took.
        seconds = (
            max((record.scheduled_ms for record in records), default=0.0) / 1000
            if schedule.startswith("fixed")
            else item.metrics.duration_seconds
        )
        text += f". {len(records):,} requests in {seconds:,.0f} s"
        text += f", {schedule}" if schedule else ""
        text += f"; mean ISL {isl:,.0f}, mean OSL {osl:,.0f} tokens"
        reusable, images = traffic.get("reusable_share"), traffic.get("images")
        if images:
            seen = 1 - traffic.get("distinct_images", images) / images
            text += f"; {images:,} images, {seen:.1%} of them seen before"
        elif isinstance(reusable, float):
            text += f"; {reusable:.1%} of the prompt blocks are reusable"
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
            {verdict.treatment, verdict.baseline} == pair and self._forbids(verdict, metric)
            for verdict in self.verdicts
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
    def _forbids(verdict: VerdictReport, metric: str) -> bool:
        """Whether a verdict says that its two configurations must not be compared in a metric."""
        pair = f"{verdict.treatment}, {verdict.baseline}"
        return verdict.outcome == "invalid" and (
            verdict.metric == metric
            or any(gate.get("configuration") == pair for gate in verdict.failed_gates)
        )


@dataclass(frozen=True)
class SessionReport:
    """All comparisons of one session."""

    directory: Path
    target: str
    command: str
    started_at: str
    environment: Mapping[str, Any]
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
    try:
        return _session(results, measured or {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(
            f"{results.directory / 'summary.json'}: is not a summary of results ({error})"
        ) from error


def _session(results: StoredResults, measured: Measured) -> SessionReport:
    summary = results.summary
    problems: list[str] = []
    return SessionReport(
        directory=results.directory,
        target=str(summary.get("target", "")),
        command=shlex.join(map(str, summary.get("command", ()))),
        started_at=str(summary.get("started_at", "")),
        environment=_unless_damaged(results.environment, problems) or {},
        comparisons=[
            _comparison(results, name, entry, measured.get(name, {}))
            for name, entry in summary.get("benchmarks", {}).items()
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
    entry: Mapping[str, Any],
    measured: Mapping[str, Sequence[Metrics]],
) -> ComparisonReport:
    goodput = _goodput(entry)
    described = entry.get("configurations", {})
    names = list(dict.fromkeys([*described, *entry.get("runs", {})]))
    configurations = []
    problems: list[str] = []
    for configuration in names:
        errors = entry.get("errors", {})
        error = str(errors.get(configuration, ""))
        problem = ""
        runs: Sequence[Metrics] = ()
        details: dict[str, Any] = {}
        stored = entry.get("runs", {}).get(configuration)
        if stored:
            try:
                details = results.details(name, configuration)
                if not error:
                    runs = measured.get(configuration) or [
                        Metrics(run, goodput) for run in results.runs(name, configuration)
                    ]
            except ResultsError as unreadable:
                problem = str(unreadable)
                problems.append(problem)
        known = described.get(configuration, {})
        deployment = known.get("deployment") or details.get("configuration", {})
        configurations.append(
            ConfigurationReport(
                name=configuration,
                role=str(known.get("role") or deployment.get("role", "")),
                gpus=int(known.get("gpus") or details.get("gpus", 0)),
                features=tuple(known.get("features", ())),
                deployment=deployment,
                details=details,
                runs=tuple(runs),
                error=error,
                invalid=_why_invalid(error, stored or ()),
                problem=problem,
            )
        )
    attribution = _unless_damaged(lambda: results.attribution(name), problems)
    return ComparisonReport(
        name=name,
        target=str(results.summary.get("target", "")),
        entry=entry,
        configurations=configurations,
        verdicts=_verdicts(entry.get("verdicts", {})),
        attribution=attribution,
        problems=problems,
    )


def _why_invalid(error: str, runs: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The gates that runs of a configuration did not pass.

    Older results do not have them run by run; there a run with an error is an invalid one.
    """
    found = [reason for run in runs for reason in run.get("invalid", [error])]
    return tuple(dict.fromkeys(str(reason) for reason in found)) if error else ()


def _goodput(entry: Mapping[str, Any]) -> Goodput | None:
    limits = entry.get("goodput")
    return Goodput(**limits) if limits else None


def _verdicts(stored: Mapping[str, Any]) -> list[VerdictReport]:
    names = [str(found.get("claim", {}).get("name", key)) for key, found in stored.items()]
    return [
        _verdict(f"{name} ({found.get('statement')})" if names.count(name) > 1 else name, found)
        for name, found in zip(names, stored.values(), strict=True)
    ]


def _verdict(name: str, found: Mapping[str, Any]) -> VerdictReport:
    claim = found.get("claim", {})
    effect = found.get("effect") or {}
    bound = Bound(**({"direction": "at most", "limit": math.nan} | found.get("bound", {})))
    return VerdictReport(
        name=name,
        kind=claim.get("kind", "effect"),
        outcome=found.get("outcome", "invalid"),
        statement=found.get("statement", ""),
        sentence=printable(found.get("sentence", ""), 3000),
        metric=claim.get("metric", "time_to_first_token.mean"),
        treatment=claim.get("treatment", ""),
        baseline=claim.get("baseline", ""),
        evidence=claim.get("evidence", ""),
        limits=bound.limits,
        change=_finite(effect.get("change")),
        low=_finite(effect.get("low"), -math.inf),
        high=_finite(effect.get("high"), math.inf),
        confidence=_finite(effect.get("confidence")),
        method=str(effect.get("method", "")),
        confounds=tuple(found.get("confounds", ())),
        gates=tuple(found.get("gates", ())),
    )


def _finite(value: Any, default: float = math.nan) -> float:
    """A stored number; JSON has no infinities, so that null stands for them."""
    return default if value is None else float(value)


def deployment_in_words(deployment: Mapping[str, Any]) -> str:
    """Workers and router of a configuration in one line."""
    parts = [_worker_in_words(worker) for worker in deployment.get("workers", ())]
    if router := deployment.get("router"):
        parts.append(f"{router} router")
    for called, name in (("frontend --{}", "frontend_args"), ("{}", "env")):
        parts += [
            f"{called.format(option)} {value}"
            for option, value in (deployment.get(name) or {}).items()
        ]
    if deployment.get("concurrency"):
        parts.append(f"concurrency {deployment['concurrency']}")
    return "; ".join(parts)


def _worker_in_words(worker: Mapping[str, Any]) -> str:
    layout = [f"TP{worker.get('tp', 1)}"]
    for name, short in (("attention_dp", "DP"), ("moe_ep", "EP")):
        if (worker.get(name) or 1) > 1:
            layout.append(f"{short}{worker[name]}")
    text = f"{worker.get('replicas', 1)} {worker.get('mode', '')} × {' '.join(layout)}"
    extras = []
    if worker.get("prefix_caching") is False:
        extras.append("no prefix caching")
    if worker.get("wideep"):
        extras.append("wide EP")
    if speculative := worker.get("speculative"):
        extras.append(f"{speculative.get('method', 'speculative decoding')}")
    if worker.get("kv_offload"):
        extras.append("KV offload")
    extras += [f"--{option} {value}" for option, value in (worker.get("engine_args") or {}).items()]
    if (worker.get("nodes") or 1) > 1:
        extras.append(f"{worker['nodes']} nodes each")
    return text + (f" ({', '.join(extras)})" if extras else "")


def attribution_rows(study: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Feature, and in percent what it brings alone, on top of the others, and on average."""
    return [
        (str(row.get("feature")), *(_estimate_text(row.get(view)) for view in ATTRIBUTION_VIEWS))
        for row in study.get("rows", ())
    ]


def _estimate_text(estimate: Any) -> str:
    if not isinstance(estimate, Mapping) or estimate.get("value") is None:
        return ""
    text = f"{100 * float(estimate['value']):+.1f}"
    low, high = estimate.get("low"), estimate.get("high")
    if low is not None and high is not None:
        text += f" ({100 * float(low):+.1f} … {100 * float(high):+.1f})"
    return text


def change_text(effect: Effect, is_share: bool) -> tuple[str, str]:
    """A change and its interval as tables write them: ``-12.3 %``, ``-15.0 … -9.1``."""
    unit = "pp" if is_share else "%"
    change = f"{effect.change * 100:+.1f} {unit}" if math.isfinite(effect.change) else "-"
    if not (math.isfinite(effect.low) and math.isfinite(effect.high)):
        return change, "no interval"
    return change, f"{effect.low * 100:+.1f} … {effect.high * 100:+.1f}"
