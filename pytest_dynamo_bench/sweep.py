"""The same comparison over a range of load, KV capacity or worker split: a simulation a point."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, Worker
from pytest_dynamo_bench.engines import kv_capacity_tokens
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.metric_definitions import full_name, headings, metric_of
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.targets.base import sent_traffic
from pytest_dynamo_bench.targets.replay.simulation import Simulation
from pytest_dynamo_bench.targets.replay.target import ReplayTarget, plain_run
from pytest_dynamo_bench.traffic import Concurrency, Traffic

METRICS_OF_A_POINT = tuple(name for name, _ in headings("point"))


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
        cached: whether its simulation was read from the cache.
    """

    configuration: str
    variation: Variation
    gpus: int
    metrics: Mapping[str, float]
    requests: int
    failed: int
    cached: bool = False


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
            # 1 and 1.0 are the same point.
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
        self, on_point: Callable[[int, int, SweepPoint], None] | None = None
    ) -> tuple[SweepPoint, ...]:
        """Simulate all points, as the target's runner does.

        Args:
            on_point: called after each point with how many are done, of how many, and the point.

        Returns:
            The points, by configuration and then in the order of the ranges.

        Raises:
            TargetError: a configuration cannot be simulated; found out before any is.
            DeploymentError: a simulation failed. Points that were done are in the runner's cache.
        """
        self.target.check(self.benchmark)
        traffic = self.traffic
        if traffic is None:
            traffic = sent_traffic(self.target, self.benchmark)
        jobs: dict[int, Simulation] = {}
        for number, (configuration, variation) in enumerate(self.points):
            target, configuration, sent = _loaded(
                self.target, configuration, traffic, variation.speedup
            )
            jobs[number] = target.simulation(self.benchmark, configuration, sent)
        done: dict[int, SweepPoint] = {}
        for number, simulated, known in self.target.runner.simulated(jobs):
            configuration, variation = self.points[number]
            run = plain_run(self.benchmark, configuration, jobs[number], simulated)
            metrics = Metrics(run, self.benchmark.goodput)
            done[number] = SweepPoint(
                configuration.name,
                variation,
                configuration.gpus,
                {name: float(metrics.value(name)) for name in self.metrics},
                len(run.records),
                sum(not record.succeeded for record in run.records),
                known,
            )
            if on_point is not None:
                on_point(len(done), len(jobs), done[number])
        return tuple(done[number] for number in jobs)


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
