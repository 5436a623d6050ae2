"""One benchmark on one target: its runs, made when they are needed, and its verdicts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

from pytest_dynamo_bench.benchmark import Benchmark, Bound, Claim, traffic_for
from pytest_dynamo_bench.errors import (
    BenchmarkError,
    DynamoBenchError,
    InvalidRunError,
    ResultsError,
)
from pytest_dynamo_bench.metrics import Metrics, RepeatedMetrics
from pytest_dynamo_bench.plain_text import did_you_mean
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.reports.store import ResultStore, StoredResults
from pytest_dynamo_bench.targets.aftermath import unexpected
from pytest_dynamo_bench.targets.base import (
    PlannedRun,
    Progress,
    SideBySideTarget,
    Target,
    sent_traffic,
)
from pytest_dynamo_bench.targets.caveats import of_arrivals
from pytest_dynamo_bench.traffic import Traffic
from pytest_dynamo_bench.verdicts import (
    Effect,
    GateResult,
    GateThresholds,
    Verdict,
    check_pair,
    check_run,
    confounds,
    control_false_discoveries,
    estimate_effect,
)
from pytest_dynamo_bench.verdicts import judge as judge_claim
from pytest_dynamo_bench.verdicts.gates import for_metric
from pytest_dynamo_bench.verdicts.regression import (
    Regression,
    Tolerance,
    compare_with_stored,
    mismatches,
)
from pytest_dynamo_bench.verdicts.sequential import Looks, SequentialPlan
from pytest_dynamo_bench.verdicts.verdict import repeats_are_futile

# Gates of a run that hold for every claim are checked with a metric that asks for no percentile.
_ANY_METRIC = "time_to_first_token.mean"
_FIRST_LOOK = 2
_MOST_REPEATS = 100
_SINGLE_RUNS = "run-to-run variation was not measured; --dynamo-repeats=3 measures it"


class ShowProgress(Protocol):
    """Opens a display for the measurement of one configuration."""

    def __call__(self, benchmark: str, configuration: str) -> AbstractContextManager[Progress]:
        """The display; closed when the measurement has ended."""


@dataclass(frozen=True)
class MeasuringPlan:
    """How often to measure, and how strict to be.

    Attributes:
        repeats: runs of each configuration. Their order is interleaved (A B, B A, …), so that
            a machine that gets slower does so for all of them.
        budget_seconds: add repeats until every claim is decided, for so long at most; None is
            off, and then ``repeats`` runs are made.
        false_discovery_rate: over the claims of a benchmark together.
        thresholds: of the validity gates.
    """

    repeats: int = 1
    budget_seconds: float | None = None
    false_discovery_rate: float = 0.05
    thresholds: GateThresholds = field(default_factory=GateThresholds)


class Comparison:
    """The configurations of a benchmark, measured on a target, and judged.

    ``comparison["agg-kv"]`` is the :class:`~pytest_dynamo_bench.metrics.RepeatedMetrics` of all
    runs of a configuration. A configuration is measured when it is first needed; if
    that failed, asking again gives the same error without another attempt.

    Args:
        claims: the claims that will be asked about. They are measured and judged together,
            since judging several claims one by one finds too many. Any other claim is judged
            alone when it is asked about, and :attr:`how_judged` says so.
        like: the targets that ``target`` is like, whose claims are made on it too.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        target: Target,
        store: ResultStore,
        show: ShowProgress,
        *,
        claims: Sequence[Claim] = (),
        plan: MeasuringPlan | None = None,
        like: Sequence[str] = (),
    ) -> None:
        self.benchmark = benchmark
        self.target = target
        self.store = store
        self.plan = plan or MeasuringPlan()
        self._like = tuple(like)
        made = [claim for claim in claims if self.bound(claim) is not None]
        self._family = list(dict.fromkeys(made))
        self._show = show
        self._traffic: Traffic | None = None
        self._runs: dict[str, list[Metrics]] = {}
        self._errors: dict[str, DynamoBenchError] = {}
        self._verdicts: dict[Claim, Verdict] = {}
        self._how_together = ""
        self._gates_of: WeakKeyDictionary[Metrics, tuple[GateResult, ...]] = WeakKeyDictionary()
        self._gates_of_pairs: dict[tuple[Metrics, Metrics], tuple[GateResult, ...]] = {}
        self._seconds: list[float] = []
        self.regressions: dict[tuple[str, str], Regression] = {}

    def __repr__(self) -> str:
        return f"<Comparison {self.benchmark.name} on {self.target.name}>"

    @property
    def traffic(self) -> Traffic:
        """The traffic as it is sent on this target."""
        if self._traffic is None:
            self._traffic = sent_traffic(self.target, self.benchmark)
        return self._traffic

    @property
    def all_runs(self) -> dict[str, list[Metrics]]:
        """All runs of each configuration that has been measured so far."""
        return {name: list(runs) for name, runs in self._runs.items() if runs}

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdicts so far, in the order in which they were asked for."""
        return list(self._verdicts.values())

    @property
    def how_judged(self) -> str:
        """How the claims were decided, in a sentence for reports; empty for a claim by itself."""
        level = 1 - self.plan.false_discovery_rate
        alone = sum(
            verdict.outcome != "invalid"
            for claim, verdict in self._verdicts.items()
            if claim not in self._family or not self._how_together
        )
        if not alone or (alone == 1 and not self._how_together):
            return self._how_together
        judged_alone = (
            f"{alone} claim{'s' * (alone != 1)} judged individually at {100 * level:g} %"
            f"{' each' * (alone != 1)}, not corrected for multiple claims"
        )
        return f"{self._how_together}; {judged_alone}" if self._how_together else judged_alone

    def __getitem__(self, configuration: str) -> RepeatedMetrics:
        """The metrics of a configuration over all of its runs.

        Raises:
            DeploymentError: it failed to start.
            InvalidRunError: it was measured, but the run cannot carry a result.
            BenchmarkError: the benchmark has no such configuration.
        """
        return RepeatedMetrics(self.runs(configuration))

    def runs(self, configuration: str) -> list[Metrics]:
        """The metrics of each run of a configuration; measured when it has not been.

        Raises:
            As for item access.
        """
        known = [item.name for item in self.benchmark.configurations]
        if configuration not in known:
            meant = did_you_mean(configuration, known)
            raise BenchmarkError(
                f"benchmark {self.benchmark.name!r} has no configuration {configuration!r}; "
                + (meant or f"it has {', '.join(known)}")
            )
        self.ensure([configuration])
        if configuration in self._errors:
            raise self._errors[configuration]
        return self._runs[configuration]

    def ensure(self, configurations: Iterable[str]) -> None:
        """Measure whichever of these configurations has not been tried yet.

        With repeats they are measured in rounds, every other one in reverse order.
        """
        missing = [
            name for name in configurations if name not in self._runs and name not in self._errors
        ]
        self._rounds(missing, range(self.plan.repeats))

    def bound(self, claim: Claim) -> Bound | None:
        """What a claim says on this target; None where it is not made."""
        return claim.bound(self.target.name, *self._like)

    def verdict(self, claim: Claim) -> Verdict:
        """What the measurement says of a claim; measures what it and its family need.

        Raises:
            DeploymentError, InvalidRunError: as for item access.
            ValueError: the claim is not made on this target.
        """
        if self.bound(claim) is None:
            raise ValueError(f"claim {claim.name!r} is not made on {self.target.name}")
        if claim not in self._verdicts:
            self._judge(self._family if claim in self._family else [claim])
        if claim not in self._verdicts:
            for configuration in (claim.baseline, claim.treatment):
                self.runs(configuration)
        return self._verdicts[claim]

    def regression(
        self,
        configuration: str,
        tolerance: Tolerance,
        stored: StoredResults,
        *,
        allow_mismatches: bool = False,
    ) -> Regression:
        """A configuration's metric now against a stored measurement of it.

        Raises:
            DeploymentError, InvalidRunError: as for item access.
            ResultsError: nothing can be concluded from what is stored, or one of the two has no
                value of the metric.
            BenchmarkError: the stored runs are of something else, and that was not allowed.
        """
        before = [
            Metrics(run, self.benchmark.goodput)
            for run in stored.usable_runs(self.benchmark.name, configuration)
        ]
        current = self.runs(configuration)
        differences = mismatches(current[0].run, before[0].run)
        if differences and not allow_mismatches:
            raise BenchmarkError(
                f"{configuration}: not comparable with the stored measurement in "
                f"{stored.directory}: " + "; ".join(differences)
            )
        new, old = (
            [metrics.sample(tolerance.metric) for metrics in runs] for runs in (current, before)
        )
        for samples, where in ((new, "this session"), (old, stored.directory)):
            if not all(len(sample.values) for sample in samples):
                raise ResultsError(f"{configuration}: {where} has no value of {tolerance.metric}")
        result = compare_with_stored(new, old, tolerance)
        self.regressions[configuration, tolerance.metric] = result
        self.store.save_regression(self.benchmark, configuration, result)
        return result

    # -- measuring ------------------------------------------------------------------------

    def _rounds(self, names: Sequence[str], repeats: Iterable[int]) -> None:
        """Measure each configuration once a round; one that fails is left out from then on.

        Repeats that there are already are not made again.
        """
        order = [
            (name, repeat)
            for repeat in repeats
            for name in (names if repeat % 2 == 0 else reversed(names))
            if name not in self._errors and repeat >= len(self._runs.get(name, ()))
        ]
        started = time.monotonic()
        with closing(self._made(order)) as made:
            for (name, repeat), outcome in made:
                if name in self._errors:
                    continue
                kept = self._kept(name, repeat, outcome) if isinstance(outcome, Run) else outcome
                if isinstance(kept, DynamoBenchError):
                    self._errors[name] = kept
                    self._runs.pop(name, None)
                    self.store.save_error(self.benchmark, name, str(kept))
                else:
                    self._runs.setdefault(name, []).append(kept)
        if order:
            self._seconds += [(time.monotonic() - started) / len(order)] * len(order)

    def _made(
        self, order: Sequence[tuple[str, int]]
    ) -> Generator[tuple[tuple[str, int], Run | DynamoBenchError], None, None]:
        """Make runs, one after the other unless the target can make several at a time."""
        target = self.target
        if isinstance(target, SideBySideTarget) and min(target.at_a_time, len(order)) > 1:
            names = {name for name, _ in order}
            label = order[0][0] if len(names) == 1 else f"{len(names)} configurations"
            with self._show(self.benchmark.name, label) as progress:
                planned = []
                for name, repeat in order:
                    try:
                        planned.append(self._planned(name, repeat))
                    except Exception as error:
                        yield (name, repeat), self._foreseen(error, name, repeat)
                for run, outcome in target.measure_all(planned, progress):
                    yield (run.configuration.name, run.repeat), outcome
            return
        for name, repeat in order:
            if name not in self._errors:
                with self._show(self.benchmark.name, _label(name, repeat)) as progress:
                    outcome = self._outcome(name, repeat, progress)
                yield (name, repeat), outcome

    def _outcome(self, name: str, repeat: int, progress: Progress) -> Run | DynamoBenchError:
        try:
            return self.target.measure(self._planned(name, repeat), progress)
        except Exception as error:
            return self._foreseen(error, name, repeat)

    def _foreseen(self, error: Exception, name: str, repeat: int) -> DynamoBenchError:
        """Why a configuration has no result, so that it is not measured again to say it again."""
        directory = self.store.run_directory(self.benchmark.name, name, repeat)
        return unexpected(error, directory, f"measuring {_label(name, repeat)}")

    def _planned(self, name: str, repeat: int) -> PlannedRun:
        configuration = self.benchmark.configuration(name)
        traffic = traffic_for(self.traffic, configuration)
        directory = self.store.run_directory(self.benchmark.name, name, repeat)
        return PlannedRun(self.benchmark, configuration, traffic, directory, repeat)

    def _kept(self, name: str, repeat: int, run: Run) -> Metrics | DynamoBenchError:
        try:
            return self._stored(name, repeat, run)
        except Exception as error:
            return self._foreseen(error, name, repeat)

    def _stored(self, name: str, repeat: int, run: Run) -> Metrics:
        """Store a run, then judge whether it can carry a result."""
        run = self.store.save_records(run, repeat)
        metrics = Metrics(run, self.benchmark.goodput)
        configuration = self.benchmark.configuration(name)
        whole = traffic_for(self.benchmark.traffic.load(), configuration)
        limitations = (
            *map(str, of_arrivals(whole, traffic_for(self.traffic, configuration))),
            *self.target.limitations(self.benchmark, configuration),
        )
        self.store.save_run(self.benchmark, metrics, limitations, repeat)
        failed = [gate for gate in self._gates(metrics, _ANY_METRIC) if not gate.passed]
        if failed:
            self.store.save_invalid(
                self.benchmark, name, [gate.sentence for gate in failed], repeat
            )
            directory = self.store.run_directory(self.benchmark.name, name, repeat)
            reasons = "\n".join(f"- {gate.sentence}" for gate in failed)
            raise InvalidRunError(
                f"the run of {_label(name, repeat)} is invalid:\n{reasons}\n"
                f"records and logs: {directory}"
            )
        return metrics

    def _gates(self, metrics: Metrics, metric: str) -> tuple[GateResult, ...]:
        if metrics not in self._gates_of:
            configuration = self.benchmark.configuration(metrics.run.configuration)
            traffic = traffic_for(self.traffic, configuration)
            self._gates_of[metrics] = check_run(
                metrics.run,
                traffic.schedule,
                metric,
                traffic=traffic,
                thresholds=self.plan.thresholds,
            )
        return for_metric(self._gates_of[metrics], metrics.run, metric, self.plan.thresholds)

    def _gates_of_pair(self, treatment: Metrics, baseline: Metrics) -> tuple[GateResult, ...]:
        pair = treatment, baseline
        if pair not in self._gates_of_pairs:
            self._gates_of_pairs[pair] = check_pair(
                treatment.run, baseline.run, thresholds=self.plan.thresholds
            )
        return self._gates_of_pairs[pair]

    # -- judging --------------------------------------------------------------------------

    def _judge(self, claims: Sequence[Claim]) -> None:
        """Measure what the claims need, and judge those whose configurations started."""
        wanted = list(dict.fromkeys(n for c in claims for n in (c.baseline, c.treatment)))
        if self.plan.budget_seconds is not None:
            verdicts, how = self._look_until_decided(claims, wanted, self.plan.budget_seconds)
        else:
            self.ensure(wanted)
            verdicts = control_false_discoveries(
                [self._verdict(claim) for claim in self._possible(claims)],
                self.plan.false_discovery_rate,
            )
            count = sum(verdict.outcome != "invalid" for verdict in verdicts)
            how = (
                f"{count} claims judged together; false discovery rate controlled at "
                f"{self.plan.false_discovery_rate * 100:g} % (Benjamini-Hochberg)"
                if count > 1
                else ""
            )
        if claims is self._family:
            self._how_together = how
        self._verdicts |= {verdict.claim: verdict for verdict in verdicts}
        self.store.save_verdicts(self.benchmark, verdicts, self.how_judged)

    def _possible(self, claims: Iterable[Claim]) -> list[Claim]:
        return [c for c in claims if c.baseline in self._runs and c.treatment in self._runs]

    def _effect(self, claim: Claim) -> Effect:
        treatment, baseline = (
            [metrics.sample(claim.metric) for metrics in self._runs[name]]
            for name in (claim.treatment, claim.baseline)
        )
        return estimate_effect(treatment, baseline)

    def _verdict(self, claim: Claim, effect: Effect | None = None) -> Verdict:
        treatment, baseline = self._runs[claim.treatment], self._runs[claim.baseline]
        gates = [
            gate
            for pair in zip(treatment, baseline, strict=False)
            for gate in (
                *self._gates(pair[0], claim.metric),
                *self._gates(pair[1], claim.metric),
                *self._gates_of_pair(*pair),
            )
        ]
        differences = confounds(
            self.benchmark.configuration(claim.treatment),
            self.benchmark.configuration(claim.baseline),
            treatment_dynamo=treatment[0].run.dynamo,
            baseline_dynamo=baseline[0].run.dynamo,
        )
        return judge_claim(
            claim,
            self.target.name,
            effect or self._effect(claim),
            gates,
            [str(item) for item in differences],
            self._like,
            _not_measured(treatment, baseline),
        )

    def _look_until_decided(
        self, claims: Sequence[Claim], wanted: Sequence[str], budget_seconds: float
    ) -> tuple[list[Verdict], str]:
        """Add rounds of repeats until all is decided or the budget is spent.

        The number of looks has to be known beforehand; it follows from how long the first
        rounds took. Fewer are valid: when rounds take longer than that, or when more repeats
        of the same traffic would decide nothing. Runs that there are already, since another
        claim asked for them, are looked at together first.

        Returns:
            The verdicts, and how they came about.
        """
        started = time.monotonic()
        repeats = max([_FIRST_LOOK, *(len(self._runs.get(name, ())) for name in wanted)])
        self._rounds(wanted, range(repeats))
        first_look, ended_early = repeats, ""
        most = int(budget_seconds / max(self._seconds_of_a_round(wanted), 1e-3))
        possible = self._possible(claims)
        looks: Looks[Claim] = Looks(
            SequentialPlan(
                most_repeats=min(max(most, first_look), max(_MOST_REPEATS, first_look)),
                confidence=1 - self.plan.false_discovery_rate / max(len(possible), 1),
                first_look=first_look,
            )
        )
        while True:
            evidence = {
                claim: (self._effect(claim), bound)
                for claim in self._possible(claims)
                if (bound := self.bound(claim)) is not None
            }
            looks = looks.look(repeats, evidence)
            if looks.done:
                break
            per_round = self._seconds_of_a_round(wanted)
            if time.monotonic() - started + per_round > budget_seconds:
                ended_early = ", then the budget was used up"
                break
            if repeats > _FIRST_LOOK and all(
                repeats_are_futile(*evidence[claim], looks.plan.confidence)
                for claim in looks.undecided
            ):
                ended_early = ", because more repeats of the same traffic would not decide more"
                break
            self._rounds(wanted, [repeats])
            repeats += 1
        verdicts = []
        for claim, (effect, _) in evidence.items():
            decision = looks.decided.get(claim)
            if decision is not None:
                changes = (decision.low, decision.high, decision.confidence)
            else:
                confidence = looks.plan.confidence_at(repeats)
                changes = (*effect.interval(confidence), confidence)
            low, high, confidence = changes
            effect = dataclasses.replace(effect, low=low, high=high, confidence=confidence)
            verdicts.append(self._verdict(claim, effect))
        if not (count := len(evidence)):
            return verdicts, ""
        how = (
            f"{count} claim{'s' * (count != 1)} checked after every repeat, "
            f"{looks.repeats} of at most {looks.plan.most_repeats}{ended_early}; false claims over "
            f"all checks and claims controlled at {self.plan.false_discovery_rate * 100:g} % "
            "(alpha spending, Bonferroni)"
        )
        return verdicts, how

    def _seconds_of_a_round(self, wanted: Sequence[str]) -> float:
        """How long one run of each configuration takes, as far as runs have been made."""
        return len(wanted) * sum(self._seconds) / max(len(self._seconds), 1)


def _not_measured(treatment: Sequence[Metrics], baseline: Sequence[Metrics]) -> str:
    """Why no claim about two configurations can do more than hold provisionally, or empty.

    Two real runs of the same differ by more than a single run of each can show. Simulated runs have
    no machine that could be busy.
    """
    single = min(len(treatment), len(baseline)) < 2
    real = not all(metrics.run.simulated for metrics in (*treatment, *baseline))
    return _SINGLE_RUNS if single and real else ""


def _label(name: str, repeat: int) -> str:
    return f"{name}, repeat {repeat + 1}" if repeat else name
