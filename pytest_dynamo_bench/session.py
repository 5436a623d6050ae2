"""What lives as long as one session of tests: its target, its results, its comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_dynamo_bench.benchmark import Benchmark, Claim
from pytest_dynamo_bench.errors import BenchmarkError, ReportError, ResultsError
from pytest_dynamo_bench.traffic import trial_requests

if TYPE_CHECKING:
    from pytest_dynamo_bench.attribution_runs import AttributionStudy
    from pytest_dynamo_bench.comparison import Comparison, MeasuringPlan
    from pytest_dynamo_bench.reports.model import SessionReport
    from pytest_dynamo_bench.reports.store import ResultStore, StoredResults
    from pytest_dynamo_bench.reports.stored_types import Ended, Test
    from pytest_dynamo_bench.targets.base import Progress, Target
    from pytest_dynamo_bench.targets.registry import TargetRegistry


_MANY_REQUESTS = 10_000


class ShowAnyProgress(Protocol):
    """Opens a display for whatever is counted by ``noun``."""

    def __call__(
        self, benchmark: str, configuration: str, noun: str = "requests"
    ) -> AbstractContextManager[Progress]:
        """The display; closed when the work has ended."""


class BenchSession:
    """The target, the results and the comparisons of one session.

    What measures and judges is imported when the first benchmark needs it, since a session of
    other tests makes one of these too.

    Args:
        target_name: as in ``--dynamo-target``.
        targets: those that are registered.
        make_target: called once, when the target is first needed.
        reports: the directory that the session's directory of results is made in.
        command: how the session was started, for reports.
        option: the value of an option by its name, such as ``dynamo_repeats``.
        show: opens the display of a measurement.
    """

    def __init__(
        self,
        *,
        target_name: str,
        targets: TargetRegistry,
        make_target: Callable[[], Target],
        reports: Path,
        command: list[str],
        option: Callable[[str], Any],
        show: ShowAnyProgress,
    ) -> None:
        self.target_name = target_name
        self.targets = targets
        self.show = show
        self.comparisons: dict[str, Comparison] = {}
        self.claims: dict[str, list[Claim]] = {}
        self.studies: list[AttributionStudy] = []
        self.stored: StoredResults | None = None
        self.written: list[Path] = []
        self.remarks: list[str] = []
        self.errors: list[str] = []
        self.tests: dict[str, dict[str, Test]] = {}
        self._loaded: SessionReport | None = None
        self._make_target = make_target
        self._reports = reports
        self._command = command
        self._option = option
        self._benchmarks: dict[str, Benchmark] = {}
        self._target: Target | None = None
        self._store: ResultStore | None = None

    @property
    def target(self) -> Target:
        """The target; made when it is first asked for."""
        if self._target is None:
            self._target = self._make_target()
        return self._target

    @property
    def like(self) -> Sequence[str]:
        """The targets that the target is like, whose claims are made on it too.

        Raises:
            TargetError: one of them is not registered.
        """
        return self.targets.claimed_on(self.target.name)[1:]

    @property
    def store(self) -> ResultStore:
        """The results; their directory is made when they are first asked for."""
        from pytest_dynamo_bench.reports.store import ResultStore

        if self._store is None:
            directory = _new_directory(self._reports, self.target.name)
            self._store = ResultStore(directory, self.target.name, self._command)
        return self._store

    @property
    def report_directory(self) -> Path | None:
        """Where results are, if there are any."""
        return self._store.directory if self._store else None

    def as_asked(self, benchmark: Benchmark) -> Benchmark:
        """The benchmark with the user's own traffic and Dynamo, where there are any.

        Raises:
            TrafficError: the file cannot be used.
        """
        benchmark = benchmark.with_dynamo(self._option("dynamo_version"))
        path = self._option("dynamo_traffic")
        if path is None:
            return benchmark
        from pytest_dynamo_bench.traffic.own import TraceFile

        schedule = benchmark.traffic.load().schedule
        return benchmark.with_traffic(TraceFile(path, schedule))

    def why_not_judged(self, benchmark: Benchmark, claim: Claim) -> str:
        """Why a claim is neither measured nor judged in this session; empty when it is."""
        if claim.bound(self.target.name, *self.like) is None:
            why = getattr(self.target, "why_not_claimed", None)
            reason = why(benchmark) if why is not None else ""
            return f"not claimed on {self.target.name}" + (f": {reason}" if reason else "")
        assumed = getattr(self.target, "why_not_assumed", None)
        if claim.assumes and assumed is not None:
            reason = assumed(self.as_asked(benchmark), claim)
            if reason:
                return f"not claimed on {self.target.name}: {reason}"
        from pytest_dynamo_bench.targets.base import ScalingTarget

        if not isinstance(self.target, ScalingTarget):
            return ""
        return self.target.not_measured(benchmark, (claim.baseline, claim.treatment))

    @property
    def trial(self) -> str:
        """That only the first requests are sent, where that is so; else empty."""
        count = None if self._option("dynamo_aiperf_results") else trial_requests()
        return f"in a trial with {count:,} requests" if count is not None else ""

    @property
    def little(self) -> str:
        """Why too little is measured to decide what is claimed; empty where it is enough."""
        definition = self.targets.get(self.target_name)
        return self.trial or (definition.too_little(self._option) if definition else "")

    def comparison(self, benchmark: Benchmark) -> Comparison:
        """The comparison of a benchmark; always the same one.

        Raises:
            BenchmarkError: another benchmark has this one's name.
            TrafficError: the user's own traffic cannot be used.
        """
        from pytest_dynamo_bench.comparison import Comparison

        if benchmark.name not in self.comparisons:
            self.comparisons[benchmark.name] = Comparison(
                self.as_asked(benchmark),
                self.target,
                self.store,
                self.show,
                claims=self.claims.get(benchmark.name, ()),
                plan=self._plan(),
                like=self.like,
            )
        if self._benchmarks.setdefault(benchmark.name, benchmark) != benchmark:
            raise BenchmarkError(f"two benchmarks are named {benchmark.name!r}")
        return self.comparisons[benchmark.name]

    @property
    def has_much_to_report(self) -> bool:
        """Whether making the reports will take more than a moment."""
        runs = [
            metrics.run
            for comparison in self.comparisons.values()
            for repeats in comparison.all_runs.values()
            for metrics in repeats
        ]
        return sum(len(run.records) for run in runs) > _MANY_REQUESTS

    def write_reports(self, environment: Mapping[str, str]) -> None:
        """Write the reports of what was measured.

        Raises:
            ResultsError, ReportError: a file cannot be read or written.
        """
        from pytest_dynamo_bench.reports.write import write_reports

        self._save_tests()
        report = self._report()
        self.written = write_reports(report, environment)
        self.errors += report.problems
        self.errors += [text for item in report.comparisons for text in item.problems]

    def note_test(
        self,
        benchmark: Benchmark,
        test: str,
        outcome: Ended = "not run",
        message: str = "",
        *,
        explained: bool = False,
    ) -> None:
        """Keep how a test of a benchmark ended; a later note of the same test takes its place.

        The arguments are those of :class:`~pytest_dynamo_bench.reports.stored_types.Test`.
        """
        from pytest_dynamo_bench.reports.stored_types import Test

        self._benchmarks.setdefault(benchmark.name, benchmark)
        tests = self.tests.setdefault(benchmark.name, {})
        tests[test] = Test(outcome=outcome, message=message, explained=explained)

    def _save_tests(self) -> None:
        """Store how the tests ended, of all benchmarks of which that says something."""
        for name, tests in self.tests.items():
            said = {test.outcome for test in tests.values()}
            if name in self.comparisons or said & {"failed", "error"}:
                self.store.save_tests(self._benchmarks[name], tests)

    def save_baseline(self, directory: Path, *, passed: bool) -> None:
        """Copy the results to a directory that a later session can compare with.

        Raises:
            ResultsError: nothing was measured, or the directory holds something else or cannot be
                written.
        """
        from pytest_dynamo_bench.reports.store import StoredResults

        if not passed:
            self.remarks.append("baseline: not saved, because not all tests passed")
            return
        if not any(comparison.all_runs for comparison in self.comparisons.values()):
            raise ResultsError(f"{directory}: not saved, because nothing was measured")
        assert self.report_directory is not None
        StoredResults(self.report_directory).copy_to(directory)
        self.remarks.append(f"baseline: {directory}")

    @property
    def judged_regressions(self) -> int:
        """How many metrics were compared with the stored baseline."""
        return sum(len(comparison.regressions) for comparison in self.comparisons.values())

    def render(self, width: int, color: bool) -> Iterator[str]:
        """A text for each comparison and each attribution, for a terminal."""
        from pytest_dynamo_bench.reports.terminal import render_attribution, render_comparison

        for report in self._report().comparisons:
            if report.measured or report.without_result or report.unexplained:
                yield render_comparison(report, width, color)
        for study in self.studies:
            yield render_attribution(study, width, color)

    def _report(self) -> SessionReport:
        from pytest_dynamo_bench.reports.model import load_session
        from pytest_dynamo_bench.reports.store import StoredResults

        if self._loaded is None:
            assert self.report_directory is not None
            measured = {name: item.all_runs for name, item in self.comparisons.items()}
            self._loaded = load_session(StoredResults(self.report_directory), measured)
        return self._loaded

    def _plan(self) -> MeasuringPlan:
        from pytest_dynamo_bench.comparison import MeasuringPlan
        from pytest_dynamo_bench.verdicts import GateThresholds

        given: dict[str, Any] = dict(self._option("dynamo_gate"))
        defaults = GateThresholds()
        gates = {name: type(getattr(defaults, name))(value) for name, value in given.items()}
        return MeasuringPlan(
            repeats=self._option("dynamo_repeats"),
            budget_seconds=self._option("dynamo_budget"),
            false_discovery_rate=self._option("dynamo_false_discovery_rate"),
            thresholds=GateThresholds(**gates),
        )


def _new_directory(parent: Path, target: str) -> Path:
    """A directory name that sorts by time and does not exist yet."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    for number in range(1, 1000):
        directory = parent / (f"{stamp}-{target}" + (f"-{number}" if number > 1 else ""))
        if not directory.exists():
            return directory
    raise ReportError(f"cannot make a new directory in {parent}")
