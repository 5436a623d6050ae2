"""The same comparison over a range of load, KV capacity or worker split.

Every point is a simulation; they run in parallel over the machine's cores, and what has been
computed once is read from a cache, found by a hash of everything that went in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from pytest_dynamo_bench import __version__
from pytest_dynamo_bench.benchmark import LABELS, Benchmark, Configuration, Worker
from pytest_dynamo_bench.engines import kv_capacity_tokens
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.metric_definitions import full_name, headings, metric_of
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.parallel import compute_all
from pytest_dynamo_bench.targets.base import PlannedRun, Unwatched, sent_traffic
from pytest_dynamo_bench.targets.replay.target import ReplayTarget
from pytest_dynamo_bench.traffic import Concurrency, Traffic

METRICS_OF_A_POINT = tuple(name for name, _ in headings("point"))
_CACHE_FORMAT = 1
_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Variation:
    """How a point of a sweep departs from the benchmark.

    Attributes:
        speedup: divides the times between arrivals, or, for traffic that is sent by concurrency,
            multiplies the sessions in flight.
        kv_scale: multiplies the KV blocks of every worker.
        split: prefill and decode workers, for configurations that have them.
    """

    speedup: float = 1.0
    kv_scale: float = 1.0
    split: tuple[int, int] | None = None

    def applied_to(self, benchmark: Benchmark, configuration: Configuration) -> Configuration:
        """The configuration at this point."""
        workers = tuple(
            self._vary(benchmark, configuration, worker) for worker in configuration.workers
        )
        return configuration.but(workers=workers)

    def _vary(self, benchmark: Benchmark, configuration: Configuration, worker: Worker) -> Worker:
        changes: dict[str, int] = {}
        if self.kv_scale != 1:
            blocks = worker.kv_blocks
            if blocks is None:
                tokens = kv_capacity_tokens(
                    benchmark.model, benchmark.hardware.gpu, worker, benchmark.engine
                )
                blocks = tokens // configuration.block_size
            changes["kv_blocks"] = max(1, round(blocks * self.kv_scale))
        if self.split is not None and worker.mode != "aggregated":
            changes["replicas"] = self.split[worker.mode == "decode"]
        return dataclasses.replace(worker, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class SweepPoint:
    """What a configuration did at one point.

    Attributes:
        metrics: value of each metric; NaN where no request has it.
        failed: requests that did not succeed.
        cached: whether the numbers were read from the cache.
    """

    configuration: str
    variation: Variation
    gpus: int
    metrics: Mapping[str, float]
    requests: int
    failed: int
    cached: bool = False

    def as_row(self) -> dict[str, Any]:
        """The point as plain data."""
        row = dataclasses.asdict(self)
        row.update(row.pop("variation"))
        return row


@dataclass(frozen=True)
class Sweep:
    """A sweep to be run.

    Attributes:
        benchmark: the comparison; its configurations are those that are swept.
        target: its ``speedup`` is multiplied by that of each point.
        traffic: what is sent; the benchmark's own when None.
        speedups: loads; 2 is twice as many requests per second, or sessions in flight.
        kv_scales: KV capacities, relative to the configuration's.
        splits: prefill and decode workers, such as ``(6, 2)``; only for configurations with a
            split, the others stay as they are.
        metrics: what is computed at each point.
    """

    benchmark: Benchmark
    target: ReplayTarget = dataclasses.field(default_factory=ReplayTarget)
    traffic: Traffic | None = None
    speedups: Sequence[float] = (1.0,)
    kv_scales: Sequence[float] = (1.0,)
    splits: Sequence[tuple[int, int]] = ()
    metrics: Sequence[str] = METRICS_OF_A_POINT

    def __post_init__(self) -> None:
        for name in ("speedups", "kv_scales"):
            values = tuple(getattr(self, name))
            if not values or any(isinstance(v, bool) or not v > 0 for v in values):
                raise BenchmarkError(f"Sweep: {name}: give numbers greater than 0, got {values!r}")
            # 1 and 1.0 are the same point, and must be found as such in the cache.
            object.__setattr__(self, name, tuple(map(float, values)))
        object.__setattr__(self, "splits", tuple(tuple(split) for split in self.splits))
        for split in self.splits:
            if len(split) != 2 or any(not isinstance(n, int) or n < 1 for n in split):
                raise BenchmarkError(
                    f"Sweep: splits: give pairs of prefill and decode workers, got {split!r}"
                )
        try:
            names = [full_name(name) for name in self.metrics]
        except ValueError as error:
            raise BenchmarkError(f"Sweep: metrics: {error}") from None
        for metric in map(metric_of, names):
            # Points are kept by the package's code, and computed by processes that have no other.
            if metric.own:
                raise BenchmarkError(
                    f"Sweep: metrics: {metric.name} is a metric of your own, which a sweep cannot "
                    "compute; claims, attributions and comparisons can name it"
                )
        limited = self.benchmark.goodput is not None
        wanted = (name for name in names if limited or not metric_of(name).needs_limits)
        object.__setattr__(self, "metrics", tuple(dict.fromkeys(wanted)))

    @cached_property
    def points(self) -> tuple[tuple[Configuration, Variation], ...]:
        """Every configuration at every point."""
        found = []
        for configuration in self.benchmark.configurations:
            splits: Sequence[tuple[int, int] | None] = (None,)
            if self.splits and configuration.disaggregated:
                splits = self.splits
            for values in itertools.product(self.speedups, self.kv_scales, splits):
                variation = Variation(*values)
                found.append((variation.applied_to(self.benchmark, configuration), variation))
        return tuple(found)

    def run(
        self,
        cache: Path | None = None,
        processes: int | None = None,
        on_point: Callable[[int, int, SweepPoint], None] | None = None,
    ) -> tuple[SweepPoint, ...]:
        """Compute all points, or read them from the cache.

        Args:
            cache: a directory, made if need be; None computes everything anew.
            processes: simulations at a time; by default as many as there are cores.
            on_point: called after each point with how many are done, of how many, and the point.

        Returns:
            The points, by configuration and then in the order of the ranges.

        Raises:
            TargetError: a configuration cannot be simulated; found out before any is.
            DeploymentError: a simulation failed. Points that were done are in the cache.
        """
        for configuration, _ in self.points:
            self.target.check(self.benchmark.with_configurations([configuration]))
        traffic = self.traffic
        if traffic is None:
            traffic = sent_traffic(self.target, self.benchmark)
        configurations = [configuration for configuration, _ in self.points]
        common = fingerprint(self.benchmark, self.target, traffic, configurations, self.metrics)
        keys = [_key(common, *point) for point in self.points]
        done: dict[str, SweepPoint] = {}
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            done = {key: point for key in keys if (point := _read(cache / f"{key}.json"))}
        count = 0
        for key, (configuration, _) in zip(keys, self.points, strict=True):
            if key in done and on_point is not None:
                count += 1
                on_point(count, len(keys), _named(done[key], configuration))
        missing = {
            key: point for key, point in zip(keys, self.points, strict=True) if key not in done
        }
        computed = compute_all(
            _simulate,
            missing,
            processes=processes,
            shared=(self.benchmark, self.target, traffic, tuple(self.metrics)),
        )
        for key, point in computed:
            done[key] = point
            if cache is not None:
                _write(cache / f"{key}.json", point)
            count += keys.count(key)
            if on_point is not None:
                on_point(count, len(keys), point)
        return tuple(
            _named(done[key], configuration)
            for key, (configuration, _) in zip(keys, self.points, strict=True)
        )


def fingerprint(
    benchmark: Benchmark,
    target: ReplayTarget,
    traffic: Traffic,
    configurations: Iterable[Configuration],
    metrics: Sequence[str],
) -> str:
    """A hash of everything, beside a configuration, that decides what it measures."""
    options = dataclasses.asdict(target)
    del options["timeout_seconds"], options["profile_directories"]
    digest = hashlib.sha256()
    _update(
        digest,
        {
            "format": _CACHE_FORMAT,
            "plugin": __version__,
            "code": _code_digest(_PACKAGE),
            "dynamo": metadata.version("ai-dynamo"),
            "target": options,
            "model": benchmark.model,
            "engine": benchmark.engine,
            "hardware": dataclasses.asdict(benchmark.hardware),
            "goodput": dataclasses.asdict(benchmark.goodput) if benchmark.goodput else None,
            "metrics": list(metrics),
            "schedule": traffic.schedule.description,
            "block_tokens": traffic.block_tokens,
        },
    )
    for request in traffic.requests:
        digest.update(repr(dataclasses.astuple(request)).encode())
    used = {
        profile.path: profile
        for configuration in configurations
        for profile in target.profiles(benchmark, configuration)
    }
    for path in sorted(used):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _code_digest(package: Path) -> str:
    """A hash of the package's code: how a configuration is simulated is nowhere else to be read."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(code)}\n".encode())
        digest.update(code)
    return digest.hexdigest()


def _update(digest: Any, data: Mapping[str, Any]) -> None:
    digest.update(json.dumps(data, sort_keys=True, default=str).encode())


def _key(common: str, configuration: Configuration, variation: Variation) -> str:
    """A hash of what a point is computed from; its name and role are not part of that."""
    row = dataclasses.asdict(configuration)
    for name in LABELS:
        del row[name]
    digest = hashlib.sha256(common.encode())
    _update(digest, {"configuration": row, "variation": dataclasses.asdict(variation)})
    return digest.hexdigest()[:32]


def _named(point: SweepPoint, configuration: Configuration) -> SweepPoint:
    return dataclasses.replace(point, configuration=configuration.name)


def _write(path: Path, point: SweepPoint) -> None:
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8"
    ) as file:
        json.dump(dataclasses.asdict(point), file)
    Path(file.name).replace(path)


def _read(path: Path) -> SweepPoint | None:
    """A cached point; None where there is none, or the file is damaged."""
    try:
        row = json.loads(path.read_text("utf-8"))
        variation = row.pop("variation")
        split = tuple(variation.pop("split") or ()) or None
        return SweepPoint(**row | {"variation": Variation(split=split, **variation),
                                   "cached": True})  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _simulate(
    configuration: Configuration,
    variation: Variation,
    benchmark: Benchmark,
    target: ReplayTarget,
    traffic: Traffic,
    names: tuple[str, ...],
) -> SweepPoint:
    at_point, configuration, traffic = _loaded(target, configuration, traffic, variation.speedup)
    with tempfile.TemporaryDirectory(prefix="dynamo-bench-sweep-") as directory:
        planned = PlannedRun(benchmark, configuration, traffic, Path(directory))
        run = at_point.measure(planned, Unwatched())
    metrics = Metrics(run, benchmark.goodput)
    failed = sum(not record.succeeded for record in run.records)
    values = {name: float(metrics.value(name)) for name in names}
    return SweepPoint(
        configuration.name, variation, configuration.gpus, values, len(run.records), failed
    )


def _loaded(
    target: ReplayTarget, configuration: Configuration, traffic: Traffic, speedup: float
) -> tuple[ReplayTarget, Configuration, Traffic]:
    """Target, configuration and traffic at another load.

    In a closed loop the times between arrivals follow from the sessions in flight, so that
    these are what sets the load.
    """
    if not isinstance(traffic.schedule, Concurrency):
        return (
            dataclasses.replace(target, speedup=target.speedup * speedup), configuration, traffic,
        )  # fmt: skip
    schedule = Concurrency(max(1, round(traffic.schedule.sessions * speedup)))
    own = configuration.concurrency
    if own is not None:
        configuration = configuration.but(concurrency=max(1, round(own * speedup)))
    return target, configuration, dataclasses.replace(traffic, schedule=schedule)


def pareto_front(
    points: Iterable[SweepPoint],
    across: str = "output_token_throughput_per_user.mean",
    up: str = "output_token_throughput_per_gpu",
) -> tuple[SweepPoint, ...]:
    """The points that no other point beats on both metrics, from left to right.

    Points with failed requests don't count: what they have dropped made the others faster.
    """
    usable = sorted(
        (point for point in points if not point.failed),
        key=lambda point: (-point.metrics[across], -point.metrics[up]),
    )
    front: list[SweepPoint] = []
    for point in usable:
        if not front or point.metrics[up] > front[-1].metrics[up]:
            front.append(point)
    return tuple(reversed(front))
