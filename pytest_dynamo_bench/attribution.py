"""Which feature brings what, where two configurations differ in several.

The published comparisons change several things at once. Running every combination tells them
apart: what a feature brings to the baseline alone, what it brings on top of all others, and,
averaged over the orders in which features could have been added, its fair share of the whole
difference (its Shapley value). Pure: it makes configurations, and takes numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_dynamo_bench.arrays import FloatArray
from pytest_dynamo_bench.benchmark import LABELS, Configuration, Worker
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.features import FEATURES, OPTION_FIELDS, Feature, with_options

Combination = frozenset[str]

MAX_FEATURES = 4


@dataclass(frozen=True)
class AttributionPlan:
    """The combinations of features between a baseline and a treatment.

    Attributes:
        features: what differs, in a fixed order; two that were asked to go together are
            joined with ``+``.
        configurations: one for every set of features that are taken from the treatment;
            the empty set is the baseline itself, the full set the treatment itself.
    """

    features: tuple[str, ...]
    configurations: Mapping[Combination, Configuration]


def plan(
    baseline: Configuration,
    treatment: Configuration,
    together: Iterable[Sequence[str]] = (),
) -> AttributionPlan:
    """All combinations of the features in which two configurations differ.

    Features are the rows of :data:`~pytest_dynamo_bench.features.FEATURES` whose fields differ,
    among them ``kv_routing`` (``router``, where neither or both route by KV), ``pd_split``
    (how workers are laid out; ``workers``, where no split is involved) and ``load`` (a
    configuration's own concurrency and number of requests), and each option and variable of
    Dynamo, such as ``frontend.router-temperature``, ``engine.max-model-len`` or ``env.DYN_LOG``.

    Args:
        together: features that are not to be distinguished, each group counting as one.

    Raises:
        BenchmarkError: they don't differ, differ in more than four features (sixteen
            combinations), or a combination of them cannot be.
    """
    owner = f"attribution of {treatment.name!r} against {baseline.name!r}"
    rows = with_options(baseline, treatment)
    differing = {
        row.change(baseline, treatment): row
        for row in rows
        if _carried(row, baseline) != _carried(row, treatment)
    }
    if not differing:
        raise BenchmarkError(f"{owner}: the configurations do not differ in any feature")
    groups = _grouped(owner, list(differing), together)
    if len(groups) > MAX_FEATURES:
        raise BenchmarkError(
            f"{owner}: {len(groups)} features ({', '.join(groups)}) make {2 ** len(groups)} "
            f"combinations; group some of them, until {MAX_FEATURES} are left"
        )
    configurations: dict[Combination, Configuration] = {}
    for size in range(len(groups) + 1):
        for names in itertools.combinations(groups, size):
            taken = {differing[feature].id for name in names for feature in groups[name]}
            if not names:
                configurations[frozenset()] = baseline
            elif size == len(groups):
                configurations[frozenset(names)] = treatment
            else:
                configurations[frozenset(names)] = _combine(rows, baseline, treatment, taken, names)
    everything = {row.id for row in differing.values()}
    whole = _combine(rows, baseline, treatment, everything, ())
    _check_complete(owner, rows, whole, treatment)
    return AttributionPlan(tuple(groups), configurations)


def _grouped(
    owner: str, differing: Sequence[str], together: Iterable[Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in differing}
    for wanted in together:
        for name in wanted:
            if name not in groups:
                raise BenchmarkError(
                    f"{owner}: {name!r} cannot be grouped with others; features that differ, each "
                    f"once: {', '.join(differing)}"
                )
        members = tuple(name for name in differing if name in wanted)
        for name in members:
            del groups[name]
        groups["+".join(members)] = members
    return groups


def _carried(row: Feature, configuration: Configuration) -> list[Any]:
    """What a configuration has of a feature."""
    found = [row.value(configuration, name) for name in row.fields]
    if row.worker_field:
        found.append(_choice(row, configuration))
    if row.layout:
        found.append([_without_features(worker) for worker in configuration.workers])
    return found


def _choice(row: Feature, configuration: Configuration) -> Any:
    """A configuration's choice of what workers have, by the role that shows it.

    An option of Dynamo may be given to any role, so that all of them show it.
    """
    workers = configuration.workers
    if row.entry:
        given = [row.value(worker, row.worker_field) for worker in workers]
        return given[0] if len(set(given)) == 1 else given
    showing = [worker for worker in workers if worker.mode in (row.shown_by, "aggregated")]
    return row.value((showing or workers)[0], row.worker_field)


def _without_features(worker: Worker) -> Worker:
    fields: dict[str, Any] = {name: {} for name in OPTION_FIELDS if hasattr(worker, name)}
    for row in FEATURES:
        if row.worker_field and not row.entry and worker.mode in row.roles:
            fields[row.worker_field] = row.off
    return dataclasses.replace(worker, **fields)


def _combine(
    rows: Sequence[Feature],
    baseline: Configuration,
    treatment: Configuration,
    taken: set[str],
    names: Sequence[str],
) -> Configuration:
    """The baseline with some features of the treatment."""
    source = {row.id: treatment if row.id in taken else baseline for row in rows}
    (layout,) = (source[row.id] for row in rows if row.layout)
    fields: dict[str, Any] = {"frontend_args": {}, "env": {}}
    for row in rows:
        for name in row.fields:
            _put(fields, row, name, row.value(source[row.id], name))
    slug = ".".join(names).replace("+", ".").lower()
    return baseline.but(
        name=f"{baseline.name}.with.{slug or 'all'}",
        role="treatment",
        workers=[_worker(rows, source, worker) for worker in layout.workers],
        published=False,
        note="generated to attribute a difference to features",
        **fields,
    )


def _worker(rows: Sequence[Feature], source: Mapping[str, Configuration], like: Worker) -> Worker:
    fields: dict[str, Any] = {"engine_args": {}, "env": {}}
    for row in rows:
        if row.worker_field and like.mode in row.roles:
            _put(fields, row, row.worker_field, _in_role(row, source[row.id], like))
    return dataclasses.replace(like, **fields)


def _put(fields: dict[str, Any], row: Feature, name: str, value: Any) -> None:
    if not row.entry:
        fields[name] = value
    elif value is not None:
        fields[name][row.entry] = value


def _in_role(row: Feature, source: Configuration, like: Worker) -> Any:
    """What a configuration has of a feature for a worker of some role."""
    for worker in source.workers:
        if worker.mode == like.mode:
            return row.value(worker, row.worker_field)
    if row.entry:
        given = (row.value(worker, row.worker_field) for worker in source.workers)
        return next((value for value in given if value is not None), None)
    return _choice(row, source) if like.mode in ("aggregated", row.shown_by) else row.off


def _check_complete(
    owner: str, rows: Iterable[Feature], combined: Configuration, treatment: Configuration
) -> None:
    """All features together must be the treatment, or something would go unnoticed."""
    for item in dataclasses.fields(Configuration):
        if item.name in LABELS or item.name == "workers":
            continue
        if getattr(combined, item.name) != getattr(treatment, item.name):
            raise BenchmarkError(f"{owner}: cannot attribute the difference in {item.name}")
    shown_by = {row.worker_field: row.shown_by for row in rows if not row.entry}
    for one, other in zip(combined.workers, treatment.workers, strict=True):
        for item in dataclasses.fields(Worker):
            # The role of a split that does not show a feature is not compared.
            shows = shown_by.get(item.name) in (None, other.mode) or other.mode == "aggregated"
            if shows and getattr(one, item.name) != getattr(other, item.name):
                raise BenchmarkError(
                    f"{owner}: cannot attribute the difference in {item.name} of the "
                    f"{other.mode} workers"
                )


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; the interval is NaN where nothing was resampled."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on one side of zero, else 0."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True)
class FeatureShare:
    """What one feature brings, in the metric's unit or relative to the baseline.

    Attributes:
        alone: added to the baseline.
        on_top: added to everything else of the treatment.
        average: averaged over all orders of adding features (Shapley value); over the features
            these add up to the whole difference.
    """

    feature: str
    alone: Estimate
    on_top: Estimate
    average: Estimate


@dataclass(frozen=True)
class Attribution:
    """The difference between baseline and treatment, feature by feature.

    Attributes:
        relative: whether effects are divided by the baseline's value.
        combinations: the metric of every combination, by its features.
    """

    features: tuple[FeatureShare, ...]
    total: Estimate
    relative: bool
    level: float
    combinations: tuple[tuple[tuple[str, ...], Estimate], ...]

    def as_rows(self) -> list[dict[str, Any]]:
        """A table as plain data: one row a feature, and one for the total."""
        rows: list[dict[str, Any]] = [
            {
                "feature": share.feature,
                "alone": dataclasses.asdict(share.alone),
                "on_top": dataclasses.asdict(share.on_top),
                "average": dataclasses.asdict(share.average),
            }
            for share in self.features
        ]
        rows.append({"feature": "total", "average": dataclasses.asdict(self.total)})
        return rows


def attribute(
    features: Sequence[str],
    values: Mapping[Combination, float],
    resampled: Mapping[Combination, FloatArray] | None = None,
    *,
    relative: bool = True,
    level: float = 0.95,
) -> Attribution:
    """Divide the difference between baseline and treatment among the features.

    With ``v(S)`` the metric when the features ``S`` are taken from the treatment and ``N`` all
    of them, the Shapley value of a feature is the mean of ``v(S with it) - v(S)`` over the
    subsets ``S`` of the others, weighted by ``|S|! (n - |S| - 1)! / n!`` (Shapley, 1953).

    Args:
        features: as in :attr:`AttributionPlan.features`.
        values: the metric of every combination.
        resampled: for every combination the metric of the same resamples, in the same order
            (paired by request, as verdicts do); gives the intervals.
        relative: divide effects by the baseline's value (0.05 is 5 %).
        level: of the intervals.

    Raises:
        ValueError: a combination is missing, or resamples differ in number.
    """
    wanted = [
        frozenset(names)
        for size in range(len(features) + 1)
        for names in itertools.combinations(features, size)
    ]
    missing = [set(names) or "{}" for names in wanted if names not in values]
    if missing:
        raise ValueError(f"no value for the combination {missing[0]} of {len(wanted)}")
    point = {names: np.array([values[names]], dtype=np.float64) for names in wanted}
    draws = None
    if resampled is not None:
        draws = {names: np.asarray(resampled[names], dtype=np.float64) for names in wanted}
        if len({len(values_of) for values_of in draws.values()}) != 1:
            raise ValueError("every combination needs the same number of resamples")

    def estimate(effect: Mapping[Combination, float], *, scaled: bool = True) -> Estimate:
        def of(metric: Mapping[Combination, FloatArray]) -> FloatArray:
            result = sum((weight * metric[names] for names, weight in effect.items()), np.zeros(1))
            return np.asarray(result / metric[frozenset()] if relative and scaled else result)

        value = float(of(point)[0])
        if draws is None:
            return Estimate(value)
        tail = 50 * (1 - level)
        low, high = np.percentile(of(draws), [tail, 100 - tail])
        return Estimate(value, float(low), float(high))

    everything: Combination = frozenset(features)
    nothing: Combination = frozenset()
    shares = []
    for feature in features:
        own = frozenset([feature])
        shares.append(
            FeatureShare(
                feature,
                alone=estimate({own: 1.0, nothing: -1.0}),
                on_top=estimate({everything: 1.0, everything - own: -1.0}),
                average=estimate(_shapley_weights(features, feature)),
            )
        )
    return Attribution(
        features=tuple(shares),
        total=estimate({everything: 1.0, nothing: -1.0}),
        relative=relative,
        level=level,
        combinations=tuple(
            (
                tuple(name for name in features if name in names),
                estimate({names: 1.0}, scaled=False),
            )
            for names in wanted
        ),
    )


def _shapley_weights(features: Sequence[str], feature: str) -> dict[Combination, float]:
    others = [name for name in features if name != feature]
    count = len(features)
    weights: dict[Combination, float] = {}
    for size in range(count):
        weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
        for names in itertools.combinations(others, size):
            weights[frozenset(names)] = -weight
            weights[frozenset([*names, feature])] = weight
    return weights
