"""One benchmark on one target: its runs, made once and when needed, and its verdicts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from pytest_dynamo_bench.benchmark import Benchmark, Claim
from pytest_dynamo_bench.errors import BenchmarkError, DynamoBenchError, InvalidRunError
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.reports.store import ResultStore
from pytest_dynamo_bench.targets.base import Progress, Target
from pytest_dynamo_bench.traffic import Traffic
from pytest_dynamo_bench.verdicts import (
    GateResult,
    Verdict,
    check_pair,
    check_run,
    confounds,
    estimate_effect,
)
from pytest_dynamo_bench.verdicts import judge as judge_claim

# Gates of a run that hold for every claim are checked with a metric that asks for no percentile.
_ANY_METRIC = "time_to_first_token.mean"


class ShowProgress(Protocol):
    """Opens a display for the measurement of one configuration."""

    def __call__(self, benchmark: str, configuration: str) -> AbstractContextManager[Progress]:
        """The display; closed when the measurement has ended."""


class Comparison:
    """The configurations of a benchmark, measured on a target, and judged.

    ``comparison["agg-kv"]`` is the :class:`~pytest_dynamo_bench.metrics.Metrics` of a
    configuration. A configuration is brought up when it is first asked for, and once; if
    that failed, asking again gives the same error without another attempt.
    """

    def __init__(
        self, benchmark: Benchmark, target: Target, store: ResultStore, show: ShowProgress
    ) -> None:
        self.benchmark = benchmark
        self.target = target
        self.store = store
        self._show = show
        self._traffic: Traffic | None = None
        self._metrics: dict[str, Metrics] = {}
        self._errors: dict[str, DynamoBenchError] = {}
        self._verdicts: dict[str, Verdict] = {}

    def __repr__(self) -> str:
        return f"<Comparison {self.benchmark.name} on {self.target.name}>"

    @property
    def traffic(self) -> Traffic:
        """The traffic as it is sent on this target."""
        if self._traffic is None:
            self._traffic = self.target.traffic(self.benchmark)
        return self._traffic

    @property
    def measured(self) -> dict[str, Metrics]:
        """What has been measured so far, by configuration."""
        return dict(self._metrics)

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdicts so far, in the order of the benchmark's claims."""
        names = [claim.name for claim in self.benchmark.claims]
        return sorted(self._verdicts.values(), key=lambda verdict: names.index(verdict.claim.name))

    def __getitem__(self, configuration: str) -> Metrics:
        """The metrics of a configuration.

        Raises:
            DeploymentError: it did not come up.
            InvalidRunError: it was measured, but the run cannot carry a result.
            BenchmarkError: the benchmark has no such configuration.
        """
        known = [item.name for item in self.benchmark.configurations]
        if configuration not in known:
            close = difflib.get_close_matches(configuration, known, n=1)
            raise BenchmarkError(
                f"benchmark {self.benchmark.name!r} has no configuration {configuration!r}; "
                + (f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}")
            )
        if configuration in self._errors:
            raise self._errors[configuration]
        if configuration not in self._metrics:
            try:
                self._metrics[configuration] = self._measure(configuration)
            except DynamoBenchError as error:
                self._errors[configuration] = error
                raise
        return self._metrics[configuration]

    def ensure(self, configurations: Iterable[str]) -> None:
        """Measure whichever of these configurations has not been measured yet.

        Raises:
            DeploymentError, InvalidRunError: as for item access.
        """
        for configuration in configurations:
            self[configuration]

    def verdict(self, claim: Claim) -> Verdict:
        """What the measurement says of a claim; measures what it needs.

        Raises:
            DeploymentError, InvalidRunError: as for item access.
            ValueError: the claim is not made on this target.
        """
        if claim.name not in self._verdicts:
            if claim.bound(self.target.name) is None:
                raise ValueError(f"claim {claim.name!r} is not made on {self.target.name}")
            treatment, baseline = self[claim.treatment], self[claim.baseline]
            gates = (
                *self._gates(treatment, claim.metric),
                *self._gates(baseline, claim.metric),
                *check_pair(treatment.run, baseline.run),
            )
            effect = estimate_effect(
                [treatment.sample(claim.metric)], [baseline.sample(claim.metric)]
            )
            differences = confounds(
                self.benchmark.configuration(claim.treatment),
                self.benchmark.configuration(claim.baseline),
            )
            verdict = judge_claim(
                claim, self.target.name, effect, gates, [str(item) for item in differences]
            )
            self._verdicts[claim.name] = verdict
            self.store.save_verdict(self.benchmark, verdict)
        return self._verdicts[claim.name]

    def _gates(self, metrics: Metrics, metric: str) -> tuple[GateResult, ...]:
        return check_run(metrics.run, self.traffic.schedule, metric, traffic=self.traffic)

    def _measure(self, name: str) -> Metrics:
        configuration = self.benchmark.configuration(name)
        directory = self.store.run_directory(self.benchmark.name, name)
        with self._show(self.benchmark.name, name) as progress:
            run = self.target.measure(
                self.benchmark, configuration, self.traffic, directory, progress
            )
        metrics = Metrics(run, self.benchmark.goodput)
        limitations = self.target.limitations(self.benchmark, configuration)
        self.store.save_run(self.benchmark, metrics, limitations)
        failed = [gate for gate in self._gates(metrics, _ANY_METRIC) if not gate.passed]
        if failed:
            reasons = "\n".join(f"- {gate.sentence}" for gate in failed)
            raise InvalidRunError(
                f"the run of {name} is invalid, so nothing is concluded from it:\n{reasons}\n"
                f"records and logs: {directory}"
            )
        return metrics
