"""What JUnit files carry beside pass and fail: properties, and messages that stand alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_dynamo_bench.metric_definitions import METRICS
from pytest_dynamo_bench.plain_text import printable

if TYPE_CHECKING:
    from pytest_dynamo_bench.attribution_runs import AttributionStudy
    from pytest_dynamo_bench.comparison import Comparison
    from pytest_dynamo_bench.verdicts import Effect, Verdict
    from pytest_dynamo_bench.verdicts.regression import Regression

_LONGEST_LINE = 2000
Properties = list[tuple[str, object]]


def explain(verdict: Verdict, results: str) -> str:
    """Why a verdict is what it is, in a message that stands alone.

    Args:
        results: where the comparison's records are, as a reader finds them.
    """
    lines = [f"{verdict.outcome}: {verdict.claim.name}", verdict.sentence]
    lines += [f"- {gate.sentence}" for gate in verdict.gates if not gate.passed]
    if verdict.confounds:
        lines.append(f"what differs: {'; '.join(map(str, verdict.confounds))}")
    lines.append(f"target: {verdict.target}")
    lines.append(f"records and logs: {results}")
    return "\n".join(printable(line, _LONGEST_LINE) for line in lines)


def verdict_properties(
    comparison: Comparison, verdict: Verdict, report: str, number: int = 1
) -> Properties:
    """A claim's verdict, and the metrics of its two configurations.

    Args:
        report: where the comparison's records are, as a reader finds them.
        number: which of the claims that one test checks this is, from 1.
    """
    claim, effect = verdict.claim, verdict.effect
    found: Properties = [
        ("dynamo.benchmark", comparison.benchmark.name),
        ("dynamo.target", verdict.target),
        ("dynamo.claim", claim.name),
        ("dynamo.kind", claim.kind),
        ("dynamo.statement", verdict.statement),
        ("dynamo.metric", claim.metric),
        ("dynamo.treatment", claim.treatment),
        ("dynamo.baseline", claim.baseline),
        ("dynamo.verdict", verdict.outcome),
        *(
            [("dynamo.provisional", verdict.not_measured)]
            if verdict.outcome == "provisional"
            else []
        ),
        ("dynamo.report", report),
        ("dynamo.confounds", "; ".join(map(str, verdict.confounds))),
    ]
    if effect is not None:
        found += _effect_properties(effect, "treatment_value", "baseline_value")
        found.append(("dynamo.confidence", effect.confidence))
        found.append(("dynamo.threshold", verdict.bound.limit))
    for configuration in (claim.treatment, claim.baseline):
        metrics = comparison[configuration]
        # All repeats of a configuration run on the same Dynamo.
        version = metrics.runs[0].run.dynamo
        if version:
            found.append((f"dynamo.{configuration}.dynamo_version", version))
        for name, definition in METRICS.items():
            if definition.needs_limits and comparison.benchmark.goodput is None:
                continue
            for statistic in (".mean", ".p50", ".p99") if definition.distribution else ("",):
                value = metrics.value(name + statistic)
                found.append((f"dynamo.{configuration}.{name}{statistic}", value))
    if number == 1:
        return found
    return [(f"dynamo.{number}.{name.removeprefix('dynamo.')}", value) for name, value in found]


def regression_properties(benchmark: str, configuration: str, found: Regression) -> Properties:
    """A configuration's metric against a stored measurement of it."""
    return [
        ("dynamo.benchmark", benchmark),
        ("dynamo.configuration", configuration),
        ("dynamo.metric", found.tolerance.metric),
        ("dynamo.regression", found.outcome),
        ("dynamo.tolerance", found.tolerance.share),
        *_effect_properties(found.effect, "value", "stored_value"),
    ]


def _effect_properties(effect: Effect, new: str, old: str) -> Properties:
    return [
        (f"dynamo.{new}", effect.treatment_value),
        (f"dynamo.{old}", effect.baseline_value),
        ("dynamo.change", effect.change),
        ("dynamo.change_low", effect.low),
        ("dynamo.change_high", effect.high),
    ]


def attribution_properties(study: AttributionStudy) -> Properties:
    """What each feature brings."""
    return [
        (f"dynamo.attribution.{row['feature']}.{view}.{key}", estimate[key])
        for row in study.attribution.as_rows()
        for view, estimate in row.items()
        if view != "feature"
        for key in ("value", "low", "high")
    ]
