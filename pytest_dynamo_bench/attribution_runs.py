"""Runs all combinations of the features between two configurations, for an attribution.

Simulations differ from one another by how Dynamo's router breaks ties, and the traffic is one
stretch of many that could have been. Both go into the intervals: each combination is simulated
with several seeds, and blocks of consecutive requests are resampled, the same for all
combinations, so that what the traffic does to all of them cancels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from pytest_dynamo_bench.arrays import FloatArray, IntArray
from pytest_dynamo_bench.attribution import (
    Attribution,
    AttributionPlan,
    Combination,
    attribute,
    plan,
)
from pytest_dynamo_bench.benchmark import LABELS, Benchmark, Configuration
from pytest_dynamo_bench.errors import BenchmarkError, DeploymentError
from pytest_dynamo_bench.metric_definitions import METRICS, full_name, parse_metric
from pytest_dynamo_bench.metrics import Metrics, Sample, evaluate
from pytest_dynamo_bench.parallel import compute_all
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.sweep import fingerprint
from pytest_dynamo_bench.targets.base import PlannedRun, Unwatched, sent_traffic
from pytest_dynamo_bench.targets.replay.target import ReplayTarget
from pytest_dynamo_bench.traffic import Traffic
from pytest_dynamo_bench.verdicts.blocks import block_length, resampled_blocks


@dataclass(frozen=True)
class CombinationRuns:
    """What one combination of features measured.

    Attributes:
        features: taken from the treatment.
        configuration: its name.
        seeds: that it was simulated with; one where no seed can matter.
        values: of the metric, one for each seed, in the metric's unit.
    """

    features: tuple[str, ...]
    configuration: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class AttributionStudy:
    """An attribution with the runs that it was made from.

    Attributes:
        metric: that is divided among the features.
        block_requests: consecutive requests that were resampled together.
        requests: that the combinations have in common, by which they were paired.
    """

    benchmark: str
    baseline: str
    treatment: str
    metric: str
    attribution: Attribution
    runs: tuple[CombinationRuns, ...]
    block_requests: int
    requests: int
    resamples: int

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "benchmark": self.benchmark,
            "target": "replay",
            "simulated": True,
            "baseline": self.baseline,
            "treatment": self.treatment,
            "metric": self.metric,
            "relative": self.attribution.relative,
            "level": self.attribution.level,
            "rows": self.attribution.as_rows(),
            "combinations": [
                dataclasses.asdict(run) | {"estimate": dataclasses.asdict(estimate)}
                for run, (_, estimate) in zip(self.runs, self.attribution.combinations, strict=True)
            ],
            "block_requests": self.block_requests,
            "requests": self.requests,
            "resamples": self.resamples,
        }


def run_attribution(
    benchmark: Benchmark,
    baseline: str,
    treatment: str,
    *,
    metric: str = "goodput",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    together: Iterable[Sequence[str]] = (),
    target: ReplayTarget | None = None,
    traffic: Traffic | None = None,
    cache: Path | None = None,
    processes: int | None = None,
    resamples: int = 2000,
    on_run: Callable[[int, int, str, int, bool], None] | None = None,
) -> AttributionStudy:
    """Simulate every combination with every seed, and divide the difference.

    Combinations without KV routing are simulated once: the seed decides the router's ties and
    nothing else.

    Args:
        metric: such as ``goodput`` or ``ttft.mean``.
        seeds: of the simulations.
        together: features that count as one, as in :func:`~pytest_dynamo_bench.attribution.plan`.
        target: its seed is not used.
        traffic: what is sent; the benchmark's own when None.
        cache: a directory for what has been simulated; None simulates everything anew.
        processes: simulations at a time; by default as many as there are cores.
        resamples: of the traffic and the seeds.
        on_run: called after each run with how many are done, of how many, the configuration, the
            seed, and whether it was read from the cache.

    Raises:
        BenchmarkError: an unknown configuration or metric, a metric that cannot be resampled,
            or configurations whose difference cannot be divided.
        TargetError: a combination cannot be simulated; found out before any is.
        DeploymentError: a simulation failed. Runs that were done are in the cache.
    """
    metric = _checked_metric(benchmark, metric)
    if not seeds or len(set(seeds)) != len(seeds):
        raise BenchmarkError(f"attribution: seeds: give one or more, each once, got {seeds!r}")
    target = target if target is not None else ReplayTarget()
    made = plan(benchmark.configuration(baseline), benchmark.configuration(treatment), together)
    treatments = [
        dataclasses.replace(item, role="treatment") for item in made.configurations.values()
    ]
    target.check(benchmark.with_configurations(treatments))
    traffic = traffic if traffic is not None else sent_traffic(target, benchmark)
    runs = _simulated(benchmark, made, seeds, target, traffic, cache, processes, on_run)
    samples = {
        run: _sample(benchmark, made.configurations[run[0]], timings, metric)
        for run, timings in runs.items()
    }
    return _study(benchmark, made, metric, samples, resamples)


def _checked_metric(benchmark: Benchmark, metric: str) -> str:
    """The metric's full name, if it can be divided among features."""
    try:
        name, statistic = parse_metric(metric)
    except ValueError as error:
        raise BenchmarkError(f"attribution: metric: {error}") from None
    if METRICS[name].needs_limits and benchmark.goodput is None:
        raise BenchmarkError(
            f"attribution: metric: {metric} needs limits, and benchmark {benchmark.name!r} has no "
            "goodput=Goodput(...)"
        )
    if statistic in ("min", "max") or METRICS[name].kind == "gaps":
        raise BenchmarkError(
            f"attribution: metric: {metric} cannot be resampled by request; use a mean, a "
            "percentile or a rate of another metric"
        )
    return full_name(metric)


_Run = tuple[Combination, int]


def _simulated(
    benchmark: Benchmark,
    made: AttributionPlan,
    seeds: Sequence[int],
    target: ReplayTarget,
    traffic: Traffic,
    cache: Path | None,
    processes: int | None,
    on_run: Callable[[int, int, str, int, bool], None] | None,
) -> dict[_Run, _Timings]:
    """What was measured in every run."""
    unseeded = dataclasses.replace(target, seed=None)
    # Limits and metrics are applied to what is cached, and have no part in it.
    unjudged = dataclasses.replace(benchmark, goodput=None, claims=())
    common = fingerprint(unjudged, unseeded, traffic, made.configurations.values(), [])
    keys: dict[_Run, str] = {}
    for combination, configuration in made.configurations.items():
        for seed in seeds if configuration.router == "kv" else seeds[:1]:
            keys[combination, seed] = _key(common, configuration, seed)
    done: dict[_Run, _Timings] = {}

    def add(run: _Run, timings: _Timings, cached: bool) -> None:
        done[run] = timings
        if on_run is not None:
            on_run(len(done), len(keys), made.configurations[run[0]].name, run[1], cached)

    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        for run, key in keys.items():
            found = _read(cache / f"{key}.npz")
            if found is not None:
                add(run, found, True)
    jobs = {run: (made.configurations[run[0]], run[1]) for run in keys if run not in done}
    computed = compute_all(_simulate, jobs, processes=processes, shared=(unjudged, target, traffic))
    for run, timings in computed:
        if cache is not None:
            _write(cache / f"{keys[run]}.npz", timings)
        add(run, timings, False)
    # Not in the order in which they ended: random numbers are drawn for one after the other.
    return {run: done[run] for run in keys}


@dataclass(frozen=True)
class _Timings:
    """What all metrics need of a simulated run, as arrays: (n,) each, one value per request."""

    request_id: npt.NDArray[np.str_]
    scheduled_ms: FloatArray
    sent_ms: FloatArray
    first_token_ms: FloatArray
    last_token_ms: FloatArray
    end_ms: FloatArray
    input_tokens: IntArray
    output_tokens: IntArray
    completion_tokens: IntArray
    cached_tokens: IntArray

    def records(self) -> list[RequestRecord]:
        columns = [getattr(self, item.name).tolist() for item in dataclasses.fields(self)]
        return [
            RequestRecord(
                name, name, 0, scheduled, sent, (first, last) if asked > 1 else (first,), end,
                given, asked, given, completed, cached,
            )
            for name, scheduled, sent, first, last, end, given, asked, completed, cached
            in zip(*columns, strict=True)
        ]  # fmt: skip


def _simulate(
    configuration: Configuration,
    seed: int,
    benchmark: Benchmark,
    target: ReplayTarget,
    traffic: Traffic,
) -> _Timings:
    seeded = dataclasses.replace(target, seed=seed)
    with tempfile.TemporaryDirectory(prefix="dynamo-bench-attribution-") as directory:
        planned = PlannedRun(benchmark, configuration, traffic, Path(directory))
        run = seeded.measure(planned, Unwatched())
    failed = sum(not record.succeeded for record in run.records)
    if failed:
        raise DeploymentError(
            f"attribution: {failed} of {len(run.records)} requests failed in "
            f"{configuration.name!r}; what was dropped would make the others look faster"
        )
    columns: dict[str, Any] = {
        item.name: np.array([getattr(record, item.name) or 0 for record in run.records])
        for item in dataclasses.fields(_Timings)
    }
    return _Timings(**columns)


def _key(common: str, configuration: Configuration, seed: int) -> str:
    row = dataclasses.asdict(configuration)
    for name in LABELS:
        del row[name]
    text = json.dumps({"configuration": row, "seed": seed}, sort_keys=True, default=str)
    return hashlib.sha256(f"attribution {common} {text}".encode()).hexdigest()[:32]


def _write(path: Path, timings: _Timings) -> None:
    buffer = io.BytesIO()
    columns = {item.name: getattr(timings, item.name) for item in dataclasses.fields(timings)}
    np.savez_compressed(buffer, **columns)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(buffer.getvalue())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path) -> _Timings | None:
    """A cached run; None where there is none, or the file is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return _Timings(**{name: arrays[name] for name in arrays.files})
    except Exception:  # zip files break in many ways, and all mean the same
        return None


def _sample(
    benchmark: Benchmark, configuration: Configuration, timings: _Timings, metric: str
) -> Sample:
    run = Run(
        benchmark.name, configuration.name, "replay", configuration.gpus, timings.records(), "",
        simulated=True,
    )  # fmt: skip
    return Metrics(run, benchmark.goodput).sample(metric)


# ---------------------------------------------------------------------------------------
# Resampling
# ---------------------------------------------------------------------------------------


def _study(
    benchmark: Benchmark,
    made: AttributionPlan,
    metric: str,
    samples: Mapping[_Run, Sample],
    resamples: int,
) -> AttributionStudy:
    by_combination: dict[Combination, dict[int, Sample]] = {}
    for (combination, seed), sample in samples.items():
        by_combination.setdefault(combination, {})[seed] = sample
    values = {
        combination: float(np.mean([sample.value for sample in runs.values()]))
        for combination, runs in by_combination.items()
    }
    if not all(math.isfinite(value) for value in values.values()):
        raise BenchmarkError(f"attribution: {metric} is not defined for a combination")
    draws, length, requests = resample_combinations(by_combination, resamples)
    attribution = attribute(made.features, values, draws)
    combinations = [frozenset(names) for names, _ in attribution.combinations]
    runs = tuple(
        CombinationRuns(
            tuple(name for name in made.features if name in combination),
            made.configurations[combination].name,
            tuple(sorted(by_combination[combination])),
            tuple(sample.value for _, sample in sorted(by_combination[combination].items())),
        )
        for combination in combinations
    )
    return AttributionStudy(
        benchmark.name,
        made.configurations[frozenset()].name,
        made.configurations[frozenset(made.features)].name,
        metric,
        attribution,
        runs,
        length,
        requests,
        resamples,
    )


def resample_combinations(
    by_combination: Mapping[Combination, Mapping[int, Sample]], resamples: int
) -> tuple[dict[Combination, FloatArray], int, int]:
    """The metric of every combination in every resample; block length; requests.

    The deviations that blocks give are widened for their small number (``sqrt(m / (m - 1))``
    and Student's t with m - 1 degrees of freedom against the normal, for m blocks), those that
    seeds give by ``sqrt(s / (s - 1))`` for s seeds.
    """
    first = next(iter(next(iter(by_combination.values())).values()))
    everything = [sample for runs in by_combination.values() for sample in runs.values()]
    due: dict[str, float] = {}
    for sample in everything:
        due.update(zip(sample.request_ids, sample.time_ms.tolist(), strict=True))
    order = sorted(due, key=lambda request: (due[request], request))
    position = {request: index for index, request in enumerate(order)}
    n = len(order)
    aligned = {
        combination: {seed: _aligned(sample, position) for seed, sample in runs.items()}
        for combination, runs in by_combination.items()
    }
    series = [_influences(next(iter(runs.values()))[0], first) for runs in aligned.values()]
    against = series[0]
    length = block_length([*series, *(one - against for one in series[1:])])
    generator = np.random.default_rng(0)
    starts = resampled_blocks(n, length, resamples, generator)
    blocks = max(n / length, 2.0)
    student = special.stdtrit(blocks - 1, 0.975) / special.ndtri(0.975)
    widen = float(np.sqrt(blocks / (blocks - 1)) * student)
    draws: dict[Combination, FloatArray] = {}
    for combination, runs in by_combination.items():
        columns = []
        for seed, sample in runs.items():
            drawn = np.array(
                [_evaluated(sample, aligned[combination][seed], _picks(row, length, n))
                 for row in starts]
            )  # fmt: skip
            columns.append(sample.value + widen * (drawn - sample.value))
        table = np.column_stack(columns)
        chosen = generator.integers(0, len(runs), size=table.shape)
        mean = table.mean(axis=1)
        of_seeds = np.take_along_axis(table, chosen, axis=1).mean(axis=1)
        more = math.sqrt(len(runs) / (len(runs) - 1)) if len(runs) > 1 else 0.0
        draws[combination] = mean + more * (of_seeds - mean)
    return draws, length, n


def _picks(starts: IntArray, length: int, n: int) -> IntArray:
    """The requests of one resample: whole blocks, going round at the end."""
    return np.asarray(((starts[:, None] + np.arange(length)) % n).ravel()[:n])


def _aligned(sample: Sample, position: Mapping[str, int]) -> tuple[FloatArray, FloatArray]:
    """Values and weights on all requests; NaN where the sample does not have one."""
    values = np.full(len(position), np.nan)
    weights = np.full(len(position), np.nan)
    where = [position[request] for request in sample.request_ids]
    values[where] = sample.values
    weights[where] = 1.0 if sample.weights is None else sample.weights
    return values, weights


def _evaluated(sample: Sample, aligned: tuple[FloatArray, FloatArray], picks: IntArray) -> float:
    values, weights = aligned[0][picks], aligned[1][picks]
    there = np.isfinite(values)
    values, weights = values[there], weights[there]
    if len(values) == 0:
        return sample.value
    row = weights[None, :] if sample.weights is not None else None
    return float(evaluate(sample, values[None, :], row)[0])


def _influences(values: FloatArray, sample: Sample) -> FloatArray:
    """What a request does to the metric, roughly: for the choice of the block length."""
    filled = np.where(np.isfinite(values), values, np.nanmean(values))
    if sample.statistic == "percentile":
        filled = (filled > np.percentile(filled, sample.percentile)).astype(np.float64)
    spread = float(filled.std())
    return np.asarray((filled - filled.mean()) / (spread if spread > 0 else 1.0))
