"""Each Dynamo feature of a configuration at work: what it did in a run, in figures and words."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.engines import model_dimensions
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.features import FEATURES, Observation
from pytest_dynamo_bench.metrics import Metrics


@dataclass(frozen=True)
class FeatureAtWork:
    """What a feature did in one run.

    Attributes:
        feature: as the markers call it, such as ``kv_routing``; ``attention_dp`` is
            attention data parallelism.
        saw: what was measured of its mechanism, with units.
        modelled: what of it is a model here and not the thing itself; empty where nothing is.
    """

    feature: str
    saw: str
    modelled: str = ""

    def __str__(self) -> str:
        return self.saw + (f" (modelled: {self.modelled})" if self.modelled else "")


def features_at_work(
    benchmark: Benchmark, configuration: Configuration, metrics: Metrics
) -> tuple[FeatureAtWork, ...]:
    """What the features of a configuration did in a run, in the order of the documentation."""
    seen = Observation(benchmark, configuration, metrics, _kv_bytes_per_token(benchmark.model))
    return tuple(
        FeatureAtWork(row.id, row.seen(seen), modelled(seen) if modelled else "")
        for row in FEATURES
        if row.seen is not None and row.is_used(configuration)
        for modelled in [row.modelled.get(metrics.run.engines)]
    )


def _kv_bytes_per_token(model: str) -> float | None:
    try:
        return model_dimensions(model).kv_bytes_per_token
    except TargetError:
        return None
