"""What differs between two configurations, so that a number is not credited to the wrong thing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from pytest_dynamo_bench.benchmark import LABELS, Configuration, Worker
from pytest_dynamo_bench.features import FEATURES
from pytest_dynamo_bench.traffic import Concurrency, Schedule


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
    kind: Literal["feature", "part of a feature", "other"] = "other"

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
) -> tuple[Difference, ...]:
    """Everything that differs: features first, then GPUs, workers role by role, other fields.

    All fields of the dataclasses are compared, so that a field added later is not overlooked.

    Args:
        treatment: one configuration.
        baseline: the other.
        treatment_schedule: how its traffic was sent, where known.
        baseline_schedule: likewise.
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
    parts = {name for row in switched for name in row.fields}
    if treatment.gpus != baseline.gpus:
        found.append(Difference("GPUs", str(treatment.gpus), str(baseline.gpus)))
    if treatment.replicas != baseline.replicas:
        found.append(Difference("workers", str(treatment.replicas), str(baseline.replicas)))
    found += _worker_differences(treatment, baseline)
    for item in dataclasses.fields(Configuration):
        if item.name in LABELS or item.name == "workers":
            continue
        found += _difference(
            item.name,
            getattr(treatment, item.name),
            getattr(baseline, item.name),
            "part of a feature" if item.name in parts else "other",
        )
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
    return tuple(found)


def _difference(
    what: str, treatment: Any, baseline: Any, kind: Literal["part of a feature", "other"] = "other"
) -> list[Difference]:
    if treatment == baseline:
        return []
    return [Difference(what, _text(treatment), _text(baseline), kind)]


def _text(value: Any) -> str:
    if value is None:
        return "engine's default"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _worker_differences(treatment: Configuration, baseline: Configuration) -> list[Difference]:
    names = [item.name for item in dataclasses.fields(Worker) if item.name != "mode"]
    if treatment.disaggregated == baseline.disaggregated:
        found = []
        others = {worker.mode: worker for worker in baseline.workers}
        for worker in treatment.workers:
            role = "workers" if worker.mode == "aggregated" else f"{worker.mode} workers"
            for name in names:
                # The number of all workers is named already where there is only one role.
                if name == "replicas" and len(treatment.workers) == 1:
                    continue
                other = others[worker.mode]
                found += _difference(f"{role}: {name}", getattr(worker, name), getattr(other, name))
        return found
    # A split has other roles than an aggregated graph; each field is compared over all workers.
    # That workers are divided over two roles is the feature itself.
    found = []
    for name in names:
        if name == "replicas":
            continue
        sides = [
            {getattr(worker, name) for worker in configuration.workers}
            for configuration in (treatment, baseline)
        ]
        if sides[0] != sides[1]:
            texts = [
                ", ".join(f"{_text(getattr(w, name))} ({w.mode})" for w in configuration.workers)
                for configuration in (treatment, baseline)
            ]
            found.append(Difference(f"workers: {name}", texts[0], texts[1]))
    return found
