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
import numpy.typing as npt

from pytest_dynamo_bench.benchmark import Configuration, Worker
from pytest_dynamo_bench.errors import BenchmarkError

FloatArray = npt.NDArray[np.float64]
Combination = frozenset[str]

MAX_FEATURES = 4
# Of a worker, what is a feature of its own; all else of it is how the workers are laid out.
_WORKER_FEATURES = {
    "prefix_caching": "prefix_caching",
    "spec_decode": "speculative",
    "kv_offload": "kv_offload",
    "wideep": "wideep",
}
# Where a configuration without the role in question shows its choice.
_SHOWN_BY = {
    "prefix_caching": "prefill",
    "speculative": "decode",
    "kv_offload": "prefill",
    "wideep": "decode",
}
_OFF: Mapping[str, Any] = {"speculative": None, "kv_offload": None, "wideep": False}


@dataclass(frozen=True)
class AttributionPlan:
    """The combinations of features between a baseline and a treatment.

    Attributes:
        features: what differs, in a fixed order; two that were asked to go together are
            joined with ``+``.
        arms: a configuration for every set of features that are taken from the treatment;
            the empty set is the baseline itself, the full set the treatment itself.
    """

    features: tuple[str, ...]
    arms: Mapping[Combination, Configuration]


def plan(
    baseline: Configuration,
    treatment: Configuration,
    together: Iterable[Sequence[str]] = (),
) -> AttributionPlan:
    """All combinations of the features in which two configurations differ.

    Features are ``kv_routing`` (the router), ``pd_split`` (how workers are laid out, or
    ``workers`` where no split is involved), ``prefix_caching``, ``spec_decode``,
    ``kv_offload``, ``wideep``, ``block_size`` and ``load`` (a configuration's own concurrency and
    number of requests). That the decode side of a split keeps no prefix cache belongs to the
    split.

    Args:
        together: features that are not to be told apart, each group counting as one.

    Raises:
        BenchmarkError: they don't differ, differ in more than four features (sixteen arms), or
            a combination of them cannot be.
    """
    owner = f"attribution of {treatment.name!r} against {baseline.name!r}"
    layout = "pd_split" if baseline.disaggregated != treatment.disaggregated else "workers"
    differing = [
        layout if name == _LAYOUT else name
        for name in _FEATURES
        if _differs(name, baseline, treatment)
    ]
    if not differing:
        raise BenchmarkError(f"{owner}: the configurations do not differ in any feature")
    groups = _grouped(owner, differing, together)
    if len(groups) > MAX_FEATURES:
        raise BenchmarkError(
            f"{owner}: {len(groups)} features ({', '.join(groups)}) make {2 ** len(groups)} arms; "
            f"name some that go together, until {MAX_FEATURES} are left"
        )
    arms: dict[Combination, Configuration] = {}
    for size in range(len(groups) + 1):
        for names in itertools.combinations(groups, size):
            taken = {feature for name in names for feature in groups[name]}
            if not names:
                arms[frozenset()] = baseline
            elif size == len(groups):
                arms[frozenset(names)] = treatment
            else:
                arms[frozenset(names)] = _combine(baseline, treatment, taken, names)
    _check_complete(owner, _combine(baseline, treatment, set(differing), ()), treatment)
    return AttributionPlan(tuple(groups), arms)


def _grouped(
    owner: str, differing: Sequence[str], together: Iterable[Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in differing}
    for wanted in together:
        for name in wanted:
            if name not in groups:
                raise BenchmarkError(
                    f"{owner}: {name!r} cannot be put together with others; what differs, each "
                    f"once: {', '.join(differing)}"
                )
        members = tuple(name for name in differing if name in wanted)
        for name in members:
            del groups[name]
        groups["+".join(members)] = members
    return groups


def _router(configuration: Configuration) -> object:
    return configuration.router


def _block_size(configuration: Configuration) -> object:
    return configuration.block_size


def _load(configuration: Configuration) -> object:
    return configuration.concurrency, configuration.requests


def _layout(configuration: Configuration) -> object:
    """The workers without what is a feature of its own, and where they sit."""
    workers = []
    for worker in configuration.workers:
        neutral = dict(_OFF)
        if worker.mode != "decode":
            neutral["prefix_caching"] = True
        workers.append(dataclasses.replace(worker, **neutral))
    return tuple(workers), configuration.nodes


_LAYOUT = "layout"
_FEATURES = ("kv_routing", _LAYOUT, *_WORKER_FEATURES, "block_size", "load")


def _differs(name: str, baseline: Configuration, treatment: Configuration) -> bool:
    if name == "kv_routing":
        return _router(baseline) != _router(treatment)
    if name == "block_size":
        return _block_size(baseline) != _block_size(treatment)
    if name == "load":
        return _load(baseline) != _load(treatment)
    if name == _LAYOUT:
        return _layout(baseline) != _layout(treatment)
    attribute = _WORKER_FEATURES[name]
    return bool(_shown(baseline, attribute) != _shown(treatment, attribute))


def _shown(configuration: Configuration, attribute: str) -> Any:
    """A configuration's choice, by the role that shows it."""
    return getattr(_worker(configuration, _SHOWN_BY[attribute]), attribute)


def _worker(configuration: Configuration, mode: str) -> Worker:
    for worker in configuration.workers:
        if worker.mode in (mode, "aggregated"):
            return worker
    return configuration.workers[0]


def _combine(
    baseline: Configuration, treatment: Configuration, taken: set[str], names: Sequence[str]
) -> Configuration:
    """The baseline with some features of the treatment."""

    def source(feature: str) -> Configuration:
        return treatment if feature in taken else baseline

    layout = treatment if taken & {"pd_split", "workers"} else baseline
    workers = []
    for worker in layout.workers:
        values = {}
        for feature, attribute in _WORKER_FEATURES.items():
            if attribute == "prefix_caching" and worker.mode == "decode":
                continue
            chosen = source(feature)
            same_role = [other for other in chosen.workers if other.mode == worker.mode]
            shown_here = worker.mode in ("aggregated", _SHOWN_BY[attribute])
            if same_role:
                values[attribute] = getattr(same_role[0], attribute)
            else:
                values[attribute] = _shown(chosen, attribute) if shown_here else _OFF[attribute]
        workers.append(dataclasses.replace(worker, **values))
    return baseline.but(
        name=f"{baseline.name}.with.{'.'.join(names).replace('+', '.') or 'all'}",
        role="treatment",
        router=source("kv_routing").router,
        block_size=source("block_size").block_size,
        nodes=layout.nodes,
        concurrency=source("load").concurrency,
        requests=source("load").requests,
        workers=workers,
        published=False,
        note="made to attribute a difference to features",
    )


def _check_complete(owner: str, combined: Configuration, treatment: Configuration) -> None:
    """All features together must be the treatment, or something would go unnoticed."""
    for name in ("router", "block_size", "nodes", "concurrency", "requests"):
        if getattr(combined, name) != getattr(treatment, name):
            raise BenchmarkError(f"{owner}: cannot attribute the difference in {name}")
    for one, other in zip(combined.workers, treatment.workers, strict=True):
        for item in dataclasses.fields(Worker):
            # The side of a split that does not show a feature has no say in it.
            shows = _SHOWN_BY.get(item.name) in (None, other.mode) or other.mode == "aggregated"
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
