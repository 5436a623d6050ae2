"""What differs between two configurations, so that a number is not credited to the wrong thing."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pytest_dynamo_bench.benchmark import LABELS, Configuration, Worker
from pytest_dynamo_bench.dynamo_options import shown_value
from pytest_dynamo_bench.features import FEATURES, OPTION_FIELDS
from pytest_dynamo_bench.traffic import Concurrency, Schedule

Kind = Literal["feature", "part of a feature", "other"]


@dataclass(frozen=True)
class Difference:
    """One thing that two configurations do not have in common.

    Attributes:
        what: its name, such as ``router``, ``GPUs`` or ``decode workers: tp``.
        treatment: its value in the treatment, as text.
        baseline: its value in the baseline, as text.
        kind: ``feature`` for a Dynamo feature that only one of them uses; ``part of a feature``
            for a field whose change follows from such a feature; ``other`` for the rest.
    """

    what: str
    treatment: str
    baseline: str
    kind: Kind = "other"

    def __str__(self) -> str:
        if self.kind == "feature":
            return f"{self.what} ({self.treatment} against {self.baseline})"
        return f"{self.what}: {self.treatment} against {self.baseline}"


def confounds(
    treatment: Configuration,
    baseline: Configuration,
    *,
    treatment_schedule: Schedule | None = None,
    baseline_schedule: Schedule | None = None,
    treatment_dynamo: str = "",
    baseline_dynamo: str = "",
) -> tuple[Difference, ...]:
    """Everything that differs: features first, then GPUs, workers role by role, other fields.

    All fields of the dataclasses are compared, so that a field added later is not overlooked.

    Args:
        treatment: one configuration.
        baseline: the other.
        treatment_schedule: how its traffic was sent, where known.
        baseline_schedule: likewise.
        treatment_dynamo: the version of Dynamo that it ran on, where known.
        baseline_dynamo: likewise; the two take the place of what was asked for.
    """
    switched = [
        row
        for row in sorted(FEATURES, key=lambda row: row.id)
        if row.marked and row.is_used(treatment) != row.is_used(baseline)
    ]
    found = [
        Difference(row.name, _text(row.is_used(treatment)), _text(row.is_used(baseline)), "feature")
        for row in switched
    ]
    parts = {
        OPTION_FIELDS[name].format(row.entry) if row.entry else name
        for row in switched
        for name in row.fields
    }
    if treatment.gpus != baseline.gpus:
        found.append(Difference("GPUs", str(treatment.gpus), str(baseline.gpus)))
    if treatment.replicas != baseline.replicas:
        found.append(Difference("workers", str(treatment.replicas), str(baseline.replicas)))
    found += _worker_differences(treatment, baseline)
    found += _differences("", _choices(treatment), _choices(baseline), parts)
    if (
        treatment_schedule is not None
        and baseline_schedule is not None
        and treatment_schedule != baseline_schedule
    ):
        both = isinstance(treatment_schedule, Concurrency) and isinstance(
            baseline_schedule, Concurrency
        )
        found.append(
            Difference(
                "concurrency" if both else "schedule",
                treatment_schedule.description,
                baseline_schedule.description,
            )
        )
    if treatment_dynamo and baseline_dynamo:
        found = [item for item in found if item.what.rpartition(": ")[2] != "dynamo"]
        if treatment_dynamo != baseline_dynamo:
            found.append(Difference("Dynamo", treatment_dynamo, baseline_dynamo))
    return tuple(found)


_NOT_GIVEN = object()


def _choices(item: Configuration | Worker) -> dict[str, Any]:
    """What was chosen: fields by their names, options and variables of Dynamo by theirs."""
    found: dict[str, Any] = {}
    for name in (part.name for part in dataclasses.fields(item)):
        value = getattr(item, name)
        if name in OPTION_FIELDS:
            found |= {OPTION_FIELDS[name].format(key): each for key, each in value.items()}
        elif name not in (*LABELS, "workers", "mode"):
            found[name] = value
    return found


def _differences(
    whose: str,
    treatment: Mapping[str, Any],
    baseline: Mapping[str, Any],
    parts: Collection[str] = (),
) -> list[Difference]:
    found = []
    for name in dict.fromkeys((*treatment, *baseline)):
        new, old = (choices.get(name, _NOT_GIVEN) for choices in (treatment, baseline))
        if new != old:
            kind: Kind = "part of a feature" if name in parts else "other"
            found.append(Difference(whose + name, _text(new, name), _text(old, name), kind))
    return found


def _text(value: Any, name: str = "") -> str:
    if value is _NOT_GIVEN:
        return "not given"
    if value is None:
        return "engine's default"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(shown_value(name, value))


def _worker_differences(treatment: Configuration, baseline: Configuration) -> list[Difference]:
    if treatment.disaggregated == baseline.disaggregated:
        found = []
        others = {worker.mode: _choices(worker) for worker in baseline.workers}
        for worker in treatment.workers:
            role = "workers" if worker.mode == "aggregated" else f"{worker.mode} workers"
            choices = [_choices(worker), others[worker.mode]]
            # The number of all workers is named already where there is only one role.
            if len(treatment.workers) == 1:
                choices = [{**item, "replicas": 0} for item in choices]
            found += _differences(f"{role}: ", *choices)
        return found
    # A split has other roles than an aggregated graph; each field is compared over all workers.
    # That workers are divided over two roles is the feature itself.
    by_mode = [
        {worker.mode: {**_choices(worker), "replicas": 0} for worker in configuration.workers}
        for configuration in (treatment, baseline)
    ]
    found = []
    for name in dict.fromkeys(n for workers in by_mode for own in workers.values() for n in own):
        values = [[own.get(name, _NOT_GIVEN) for own in workers.values()] for workers in by_mode]
        if set(values[0]) != set(values[1]):
            new, old = (
                ", ".join(
                    f"{_text(own.get(name, _NOT_GIVEN), name)} ({mode})"
                    for mode, own in workers.items()
                )
                for workers in by_mode
            )
            found.append(Difference(f"workers: {name}", new, old))
    return found
