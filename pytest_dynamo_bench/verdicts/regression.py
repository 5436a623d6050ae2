"""Whether a configuration got worse than in a stored measurement.

The statistics are those of a claim: the stored runs are the baseline, the current ones the
treatment. A regression is a change for the worse whose whole interval is beyond the tolerance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pytest_dynamo_bench.metric_definitions import find_metric, full_name, metric_of
from pytest_dynamo_bench.metrics import Sample
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.verdicts.effect import Effect, estimate_effect
from pytest_dynamo_bench.verdicts.verdict import change_in_words, interval_in_words, quantity

Change = Literal["regression", "improvement", "unchanged", "inconclusive"]

DEFAULT_STATISTIC = "p50"
_TOLERANCE = re.compile(r"\s*([\w.]+)\s*:\s*([0-9]*\.?[0-9]+)\s*(%?)\s*")
# What differs between two runs of one configuration on one machine.
_PASSING = re.compile(
    r"(^|_)(command|commands|process|processes|argv|pid|pids|port|ports|url|urls|path|directory|log|logs|time|seconds"
    r"|started|started_at|hostname|environment|report|seed|seeding|namespace)s?($|_)|(^|_)host$"
)
_VERSIONS = (
    "dynamo",
    "dynamo_version",
    "dynamo_of_workers",
    "versions",
    "hardware",
    "machine",
    "python",
)


@dataclass(frozen=True)
class Tolerance:
    """How much worse a metric may be.

    Attributes:
        metric: full name; a short one is taken for it.
        share: relative, 0.05 is 5 %; for shares such as ``kv_hit_rate`` a plain difference.
    """

    metric: str
    share: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", full_name(self.metric))

    def __str__(self) -> str:
        return f"{self.metric}:{100 * self.share:g}%"


DEFAULT_TOLERANCES = (
    Tolerance("time_to_first_token.p50", 0.05),
    Tolerance("inter_token_latency.p50", 0.05),
    Tolerance("output_token_throughput", 0.05),
)


@dataclass(frozen=True)
class Regression:
    """A metric now against the stored one.

    ``outcome`` is ``regression`` when the whole interval is worse than the tolerance,
    ``improvement`` when all of it is better than no change, ``unchanged`` when none of it is
    worse than the tolerance, and ``inconclusive`` otherwise.
    """

    tolerance: Tolerance
    outcome: Change
    effect: Effect
    sentence: str


def parse_tolerances(text: str | Iterable[str]) -> tuple[Tolerance, ...]:
    """Read ``ttft:5%,itl.p99:10%,request_throughput:0.02``.

    Without a statistic a distribution is judged by its median.

    Args:
        text: items separated by commas, or several such texts.

    Raises:
        ValueError: an item cannot be read; the message says which, and what would be right.
    """
    texts = [text] if isinstance(text, str) else list(text)
    items = [item for one in texts for item in one.split(",") if item.strip()]
    if not items:
        raise ValueError("tolerance: is empty; give for example ttft:5%")
    found: dict[str, Tolerance] = {}
    for item in items:
        tolerance = _parse_item(item)
        if tolerance.metric in found:
            raise ValueError(f"tolerance {item.strip()!r}: {tolerance.metric} is a duplicate")
        found[tolerance.metric] = tolerance
    return tuple(found.values())


def _parse_item(item: str) -> Tolerance:
    match = _TOLERANCE.fullmatch(item)
    if match is None:
        raise ValueError(
            f"tolerance {item.strip()!r}: must be METRIC:SHARE with a share that is not negative, "
            "such as ttft:5% or ttft.p99:0.05"
        )
    name, number, percent = match.groups()
    metric = find_metric(name)
    try:
        full = full_name(f"{name}.{DEFAULT_STATISTIC}" if metric and metric.distribution else name)
    except ValueError as error:
        raise ValueError(f"tolerance {item.strip()!r}: {error}") from None
    share = float(number) / (100 if percent else 1)
    if not percent and share >= 1:
        raise ValueError(
            f"tolerance {item.strip()!r}: {share:g} would be {100 * share:g} %; "
            f"write {name}:{share:g}%"
        )
    return Tolerance(full, share)


def compare_with_stored(
    current: Sequence[Sample],
    stored: Sequence[Sample],
    tolerance: Tolerance,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Regression:
    """Judge one metric of one configuration.

    Args:
        current: the metric in the runs of now, one Sample per repeat.
        stored: likewise of the stored runs.
        tolerance: which metric, and how much worse it may be.
        confidence: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: the samples are of another metric, or there are none.
    """
    for sample in (*current, *stored):
        if sample.metric != tolerance.metric:
            raise ValueError(f"tolerance for {tolerance.metric}, but samples of {sample.metric}")
    # Both had the same requests, and whether these got slower is the question.
    effect = estimate_effect(
        current, stored, confidence=confidence, resamples=resamples, seed=seed
    ).of_this_traffic()
    definition = metric_of(tolerance.metric)
    # From here on higher is worse.
    worse_low, worse_high = effect.low, effect.high
    if definition.better == "higher":
        worse_low, worse_high = -effect.high, -effect.low
    outcome: Change
    if worse_low > tolerance.share:
        outcome = "regression"
    elif worse_high < 0:
        outcome = "improvement"
    elif worse_high <= tolerance.share:
        outcome = "unchanged"
    else:
        outcome = "inconclusive"
    unit = "points" if definition.is_share else "%"
    sentence = (
        f"{tolerance.metric} is {quantity(effect.treatment_value, definition.unit)}, was "
        f"{quantity(effect.baseline_value, definition.unit)}: "
        f"{change_in_words(effect.change, definition.is_share)} ({interval_in_words(effect)}); "
        f"tolerance {100 * tolerance.share:g} {unit}: {outcome}."
    )
    return Regression(tolerance, outcome, effect, sentence)


def mismatches(current: Run, stored: Run) -> tuple[str, ...]:
    """Why two runs are not comparable; empty if they are.

    Compared are benchmark, configuration, target, GPUs, traffic, everything of ``deployed``
    that is not bound to one bring-up (ports, paths, times, command lines), and of ``observed``
    the versions and the machine.

    Args:
        current: a run of now.
        stored: a run that was stored.
    """
    found = [
        f"{name}: {getattr(current, name)!r}, stored {getattr(stored, name)!r}"
        for name in ("benchmark", "configuration", "target", "gpus", "simulated")
        if getattr(current, name) != getattr(stored, name)
    ]
    compared = [_comparable(run) for run in (current, stored)]
    for name in sorted(compared[0].keys() | compared[1].keys()):
        values = [fields.get(name, "nothing") for fields in compared]
        if values[0] != values[1]:
            found.append(f"{name}: {_short(values[0])}, stored {_short(values[1])}")
    return tuple(found)


def _comparable(run: Run) -> dict[str, Any]:
    observed = {key: run.observed[key] for key in _VERSIONS if key in run.observed}
    # What another load generator measures is another number.
    generator = run.observed.get("load_generator") or {}
    observed["load_generator"] = generator.get("name", "own")
    flat: dict[str, Any] = {}
    for prefix, part in (
        ("deployed", run.deployed),
        ("observed", observed),
        ("traffic", run.traffic),
    ):
        flat |= _flatten(part, prefix)
    return flat


def _flatten(part: Any, prefix: str) -> dict[str, Any]:
    if isinstance(part, Mapping):
        flat: dict[str, Any] = {}
        for key, value in part.items():
            if not _PASSING.search(str(key)):
                flat |= _flatten(value, f"{prefix}.{key}")
        return flat
    # A stored run has been through JSON, which knows no tuples.
    return {prefix: list(part) if isinstance(part, tuple) else part}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
