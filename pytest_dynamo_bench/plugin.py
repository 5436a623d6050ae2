"""The pytest side: options, fixtures, collection, terminal summary, JUnit properties.

This is the only module that imports pytest. It is loaded in every pytest session of an
environment that has it, so what measures and judges is imported when a benchmark needs it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_dynamo_bench.benchmark import Benchmark, Claim
from pytest_dynamo_bench.errors import (
    DynamoBenchError,
    InvalidRunError,
    NotMeasuredError,
    ResultsError,
    UnavailableError,
)
from pytest_dynamo_bench.features import feature_markers, markers_of
from pytest_dynamo_bench.metric_definitions import forget_metrics, register_metric
from pytest_dynamo_bench.options import OPTIONS
from pytest_dynamo_bench.plain_text import printable
from pytest_dynamo_bench.reports import junit
from pytest_dynamo_bench.session import BenchSession
from pytest_dynamo_bench.targets.endpoint import ENDPOINT
from pytest_dynamo_bench.targets.options import OptionGroup, without_secrets
from pytest_dynamo_bench.targets.registry import OURS, TargetRegistry, listed
from pytest_dynamo_bench.termination import sigterm_interrupts

if TYPE_CHECKING:
    from pytest_dynamo_bench.comparison import Comparison
    from pytest_dynamo_bench.metric import Metric
    from pytest_dynamo_bench.metrics import Metrics, RepeatedMetrics
    from pytest_dynamo_bench.reports.store import StoredResults
    from pytest_dynamo_bench.reports.stored_types import Ended
    from pytest_dynamo_bench.targets.base import Progress, Target
    from pytest_dynamo_bench.verdicts import Verdict
    from pytest_dynamo_bench.verdicts.regression import Tolerance

_FIXTURES = "dynamo_bench_fixtures"
_GROUP = "NVIDIA Dynamo benchmarks"
_SLUG = re.compile(r"[^a-z0-9]+")
_TARGETS = "dynamo_bench_targets"
_LONGEST_MESSAGE = 20_000
_LONGEST_REASON = 1000


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the hooks that a conftest.py can implement."""
    from pytest_dynamo_bench import hookspec

    pluginmanager.add_hookspecs(hookspec)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """The options of the plugin and of all targets, in groups.

    A target that a conftest.py or another plugin registers brings its own when that is loaded,
    which for an initial conftest.py is before the command line is read for good.
    """
    targets = TargetRegistry(OPTIONS)

    def declare(groups: Iterable[OptionGroup]) -> None:
        for each in groups:
            group = parser.getgroup(f"dynamo: {each.title}", f"{_GROUP}: {each.title}")
            for option in each.options:
                group.addoption(option.flag, **option.settings)

    def register(found: object) -> None:
        try:
            for definition in listed(found):
                declare(targets.add(definition))
        except DynamoBenchError as error:
            raise pytest.UsageError(str(error)) from None

    declare(OPTIONS)
    register(OURS)
    pluginmanager.register(targets, _TARGETS)
    pluginmanager.hook.pytest_dynamo_bench_targets.call_historic(result_callback=register)
    parser.addini("dynamo_target", "default of --dynamo-target", default="local")
    parser.addini("dynamo_reports", "default of --dynamo-reports", default="reports")
    parser.addini(
        "dynamo_junit_properties",
        "where to put a claim's properties in a JUnit file: 'case' (default) is its test case, "
        "'suite' the test suite, for tools that validate against junit-10.xsd",
        default="case",
    )


_SESSION = pytest.StashKey[BenchSession]()
# Of a test: whether it judged something; whether its outcome follows from what reports show.
_CHECKED, _EXPLAINED = pytest.StashKey[bool](), pytest.StashKey[bool]()


class _Display:
    """Shows the progress of measurements on pytest's terminal."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @contextmanager
    def __call__(
        self, benchmark: str, configuration: str, noun: str = "requests"
    ) -> Iterator[Progress]:
        from pytest_dynamo_bench.reports.progress import show_progress

        label = f"{benchmark}: {configuration}"
        with self._terminal() as terminal:
            live = terminal is not None and terminal.isatty and not os.environ.get("CI")
            with show_progress(
                label,
                terminal.write_line if terminal else None,
                live_on=terminal._tw._file if terminal and live else None,
                noun=noun,
            ) as progress:
                yield progress

    @contextmanager
    def _terminal(self) -> Iterator[pytest.TerminalReporter | None]:
        """The terminal with output capturing out of the way; None under -p no:terminal or -q."""
        manager = self._config.pluginmanager
        terminal: pytest.TerminalReporter | None = manager.get_plugin("terminalreporter")
        if terminal is None or terminal.verbosity < 0:
            yield None
            return
        capture: Any = manager.get_plugin("capturemanager")
        free: AbstractContextManager[Any] = (
            capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
        )
        with free:
            terminal.ensure_newline()
            yield terminal


def _new_session(config: pytest.Config) -> BenchSession:
    recorded = config.getoption("dynamo_aiperf_results")
    default = ENDPOINT.name if recorded else config.getini("dynamo_target")
    name = config.getoption("dynamo_target") or default
    targets: Any = config.pluginmanager.get_plugin(_TARGETS)

    def make_target() -> Target:
        if recorded:
            return _recorded_target(name, recorded)
        from pytest_dynamo_bench.targets.base import check_target

        own: Target | None = config.hook.pytest_dynamo_bench_make_target(config=config, name=name)
        try:
            target = targets.make(name, config.getoption) if own is None else own
            targets.claimed_on(target.name)
            check_target(target)
        except DynamoBenchError as error:
            raise pytest.UsageError(str(error)) from None
        return target

    arguments = map(str, config.invocation_params.args)
    return BenchSession(
        target_name=name,
        targets=targets,
        make_target=make_target,
        reports=config.rootpath
        / (config.getoption("dynamo_reports") or config.getini("dynamo_reports")),
        command=["pytest", *without_secrets(arguments, targets.options.values())],
        option=config.getoption,
        show=_Display(config),
    )


def _recorded_target(name: str, results: Sequence[tuple[str, Path]]) -> Target:
    from pytest_dynamo_bench.targets.recorded import RecordedTarget

    by_configuration: dict[str, list[Path]] = {}
    for configuration, directory in results:
        by_configuration.setdefault(configuration, []).append(directory)
    try:
        return RecordedTarget(name, by_configuration)
    except DynamoBenchError as error:
        raise pytest.UsageError(f"--dynamo-aiperf-results: {error}") from None


def pytest_configure(config: pytest.Config) -> None:
    """Start a session. Nothing else is done before a module with a benchmark is collected."""
    config.stash[_SESSION] = _new_session(config)

    def register(metrics: Sequence[Metric]) -> None:
        try:
            for metric in metrics:
                register_metric(metric)
                config.add_cleanup(partial(forget_metrics, [metric.name]))
        except DynamoBenchError as error:
            raise pytest.UsageError(f"pytest_dynamo_bench_metrics: {error}") from None

    config.hook.pytest_dynamo_bench_metrics.call_historic(register)


# ---------------------------------------------------------------------------------------
# Collection: claims become test items, features become markers, mistakes become messages.
# ---------------------------------------------------------------------------------------


def _benchmark_of(module: object) -> Benchmark | None:
    # Whatever else a module calls so is not asked for attributes, which may do anything.
    found = getattr(module, "__dict__", {}).get("benchmark")
    return found if issubclass(type(found), Benchmark) else None


def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, obj: object) -> None:
    """Register markers and fixtures when the first module with a benchmark is collected.

    Sessions without benchmarks keep these names free. Claims about unregistered targets are errors.
    """
    manager = collector.config.pluginmanager
    benchmark = _benchmark_of(collector.module)
    if benchmark is not None and obj is benchmark:
        collector.config.stash[_SESSION].targets.check_claims(benchmark)
    has_one = issubclass(type(obj), Benchmark) or benchmark is not None
    if not has_one or manager.has_plugin(_FIXTURES):
        return
    for marker in feature_markers():
        collector.config.addinivalue_line("markers", f"{marker}: a claim about this feature")
    manager.register(BenchmarkFixtures(), _FIXTURES)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``claim`` runs once for every claim of its module's benchmark."""
    benchmark = _benchmark_of(metafunc.module)
    if benchmark is not None and "claim" in metafunc.fixturenames and not _has_own_claims(metafunc):
        ids = [_SLUG.sub("-", claim.name.lower()).strip("-") for claim in benchmark.claims]
        metafunc.parametrize("claim", benchmark.claims, ids=ids)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the regression tests; mark all tests of a benchmark with the features they are about.

    Those of a claim are what its two configurations use, those of any other test what all do.
    """
    if any(map(_measures, items)):
        dynamo = config.stash[_SESSION]
        try:
            dynamo.targets.check_options(dynamo.target_name, config.getoption)
        except DynamoBenchError as error:
            raise pytest.UsageError(str(error)) from None
    items.extend([*_regression_items(config, items), *_attribution_items(config, items)])
    for item in items:
        benchmark = _benchmark_of(getattr(item, "module", None))
        if benchmark is None or not _measures(item):
            continue
        claim = _claim_of(item)
        used = {
            marker
            for configuration in benchmark.configurations
            if claim is None or configuration.name in (claim.treatment, claim.baseline)
            for marker in markers_of(configuration)
        }
        for marker in sorted(used):
            item.add_marker(marker)


def _claim_of(item: pytest.Item) -> Claim | None:
    callspec = getattr(item, "callspec", None)
    claim = callspec.params.get("claim") if callspec is not None else None
    return claim if isinstance(claim, Claim) else None


def _has_own_claims(metafunc: pytest.Metafunc) -> bool:
    """Whether the test's author has said what its ``claim`` is."""
    marks = metafunc.definition.iter_markers("parametrize")
    given = [mark.args[0] if mark.args else mark.kwargs["argnames"] for mark in marks]
    return any("claim" in re.findall(r"\w+", str(names)) for names in given)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Find all mistakes before anything is started."""
    config = session.config
    if config.option.collectonly or hasattr(config, "workerinput"):
        return
    dynamo = config.stash[_SESSION]
    benchmarks = {}
    needed: dict[str, set[str]] = {}
    for item in session.items:
        benchmark = _benchmark_of(getattr(item, "module", None))
        if benchmark is None or not _measures(item):
            continue
        claim = _claim_of(item)
        names = {configuration.name for configuration in benchmark.configurations}
        if claim is not None:
            if dynamo.why_not_judged(benchmark, claim):
                continue
            dynamo.claims.setdefault(benchmark.name, []).append(claim)
            names = {claim.treatment, claim.baseline}
        benchmarks[benchmark.name] = benchmark
        needed.setdefault(benchmark.name, set()).update(names)
    for item in filter(_measures, session.items):
        if (benchmark := _benchmark_of(getattr(item, "module", None))) is not None:
            dynamo.note_test(benchmark, item.nodeid)
    if benchmarks:
        from pytest_dynamo_bench.targets.base import sent_traffic
    known = {item.name for benchmark in benchmarks.values() for item in benchmark.configurations}
    known |= {f"{b.name}/{item.name}" for b in benchmarks.values() for item in b.configurations}
    named = {"--dynamo-version": [name for name, _ in config.getoption("dynamo_version")]}
    named |= getattr(dynamo.target, "named_configurations", {}) if benchmarks else {}
    for flag, name in ((flag, name) for flag, names in named.items() for name in names if name):
        if benchmarks and name not in known:
            raise pytest.UsageError(
                f"{flag}: there is no configuration {name!r} in the selected benchmarks; "
                f"there are {', '.join(sorted(name for name in known if '/' not in name))}"
            )
    for benchmark in benchmarks.values():
        try:
            benchmark = dynamo.as_asked(benchmark)
            dynamo.target.check(benchmark.only(needed[benchmark.name]))
            sent_traffic(dynamo.target, benchmark)
        except DynamoBenchError as error:
            raise pytest.UsageError(f"{benchmark.name}: {error}") from None
    if config.getoption("dynamo_dry_run"):
        for item in filter(_measures, session.items):
            item.add_marker(pytest.mark.skip(reason="--dynamo-dry-run: nothing was started"))
    if dynamo.stored is not None:
        _check_that_something_is_compared(session, dynamo.stored)
    saved = config.getoption("dynamo_save_baseline")
    if benchmarks and saved:
        from pytest_dynamo_bench.reports.store import check_replaceable

        try:
            check_replaceable(Path(saved))
        except DynamoBenchError as error:
            raise pytest.UsageError(f"--dynamo-save-baseline: {error}") from None


def _measures(item: pytest.Item) -> bool:
    return isinstance(item, _BenchmarkItem) or (
        "comparison" in getattr(item, "fixturenames", ())
        and _benchmark_of(getattr(item, "module", None)) is not None
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Treat SIGTERM like Ctrl-C while a test measures, so that a summary is still printed."""
    config = item.config
    measures = _measures(item) and not config.getoption("dynamo_dry_run")
    with sigterm_interrupts() if measures else contextlib.nullcontext():
        return (yield)


def _regression_items(config: pytest.Config, items: list[pytest.Item]) -> list[pytest.Item]:
    """A test for every configuration and metric that a stored baseline has."""
    directory = config.getoption("dynamo_baseline")
    if not directory:
        if config.getoption("dynamo_tolerance"):
            raise pytest.UsageError("--dynamo-tolerance needs --dynamo-baseline")
        return []
    from pytest_dynamo_bench.reports.store import StoredResults
    from pytest_dynamo_bench.verdicts.regression import DEFAULT_TOLERANCES, parse_tolerances

    try:
        stored = StoredResults(Path(directory))
        given = config.getoption("dynamo_tolerance")
        tolerances = parse_tolerances(given) if given else DEFAULT_TOLERANCES
    except (DynamoBenchError, ValueError) as error:
        raise pytest.UsageError(f"--dynamo-baseline: {error}") from None
    dynamo = config.stash[_SESSION]
    dynamo.stored = stored
    return [
        RegressionItem.from_parent(
            module,
            name=f"regression[{configuration}-{tolerance.metric}]",
            benchmark=benchmark,
            configuration=configuration,
            tolerance=tolerance,
        )
        for module, benchmark in _modules(items).items()
        for configuration in dict.fromkeys(
            [*_needed(dynamo, module, benchmark, items), *stored.configurations(benchmark.name)]
        )
        for tolerance in tolerances
    ]


def _needed(
    dynamo: BenchSession, module: pytest.Module, benchmark: Benchmark, items: list[pytest.Item]
) -> list[str]:
    """The configurations that the tests of a module measure."""
    needed: set[str] = set()
    for item in items:
        if item.getparent(pytest.Module) is not module or not _measures(item):
            continue
        claim = _claim_of(item)
        if claim is None:
            return [configuration.name for configuration in benchmark.configurations]
        if not dynamo.why_not_judged(benchmark, claim):
            needed |= {claim.treatment, claim.baseline}
    return [item.name for item in benchmark.configurations if item.name in needed]


def _check_that_something_is_compared(session: pytest.Session, stored: StoredResults) -> None:
    """A gate with nothing to compare is found out before anything is measured."""
    selected = [item for item in session.items if isinstance(item, RegressionItem)]
    reasons = [item.why_missing for item in selected]
    if session.testsfailed or (reasons and not all(reasons)):
        return
    lines = "".join(f"\n- {reason}" for reason in dict.fromkeys(reasons))
    raise pytest.UsageError(
        f"--dynamo-baseline: nothing would be compared with {stored.directory}"
        + (f":{lines}" if lines else ", because no regression test is selected")
    )


def _modules(items: list[pytest.Item]) -> dict[pytest.Module, Benchmark]:
    """The modules that have a benchmark, with it."""
    return {
        module: benchmark
        for item in items
        if (module := item.getparent(pytest.Module)) is not None
        and (benchmark := _benchmark_of(getattr(item, "module", None))) is not None
        and _measures(item)
    }


def _attribution_items(config: pytest.Config, items: list[pytest.Item]) -> list[pytest.Item]:
    """A test for each benchmark whose promoted configuration adds several features."""
    if not config.getoption("dynamo_attribution"):
        return []
    from pytest_dynamo_bench.attribution import plan

    found: list[pytest.Item] = []
    for module, benchmark in _modules(items).items():
        roles = {item.role: item for item in reversed(benchmark.configurations)}
        baseline, promoted = roles.get("baseline"), roles.get("promoted") or roles.get("treatment")
        if baseline and promoted and len(baseline.features ^ promoted.features) > 1:
            item = AttributionItem.from_parent(
                module,
                name=f"attribution[{promoted.name}-against-{baseline.name}]",
                benchmark=benchmark,
                baseline=baseline.name,
                treatment=promoted.name,
            )
            found.append(item)
            try:
                plan(baseline, promoted)
            except DynamoBenchError as error:
                reason = (
                    f"{error}: python -m pytest_dynamo_bench attribution --together A+B does so"
                )
                item.add_marker(pytest.mark.skip(reason=reason))
                config.stash[_SESSION].remarks.append(reason)
    return found


class _BenchmarkItem(pytest.Item):
    """A test of a benchmark that no function stands for."""

    def __init__(self, *, benchmark: Benchmark, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.module = getattr(self.parent, "obj", None)
        self._benchmark = benchmark

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where the test is: the module of its benchmark, since pytest needs a line to skip."""
        return self.path, 0, self.name


class AttributionItem(_BenchmarkItem):
    """What each feature brings of the difference between two configurations."""

    def __init__(self, *, baseline: str, treatment: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._pair = baseline, treatment

    def runtest(self) -> None:
        """Simulate all combinations; it passes when they could be simulated."""
        from pytest_dynamo_bench.attribution_runs import run_attribution
        from pytest_dynamo_bench.targets.replay.target import ReplayTarget

        _refuse_xdist(self.config)
        dynamo = self.config.stash[_SESSION]
        # The option is refused where another target is chosen.
        assert isinstance(dynamo.target, ReplayTarget)
        target = dynamo.target.keeping(self.config.rootpath / ".dynamo-bench-cache")
        benchmark = dynamo.as_asked(self._benchmark)
        with dynamo.show(benchmark.name, "attribution", "simulations") as progress:
            progress.stage("simulating all combinations")
            try:
                study = run_attribution(
                    benchmark,
                    *self._pair,
                    metric="goodput" if benchmark.goodput else "time_to_first_token.mean",
                    target=target,
                    on_run=lambda done, total, *_: progress.requests(done, 0, total),
                )
            except DynamoBenchError as error:
                raise _as_outcome(error) from None
        dynamo.studies.append(study)
        dynamo.store.save_attribution(study)
        _record(self, junit.attribution_properties(study))


class RegressionItem(_BenchmarkItem):
    """A configuration's metric against a stored measurement of it."""

    def __init__(self, *, configuration: str, tolerance: Tolerance, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._configuration = configuration
        self._tolerance = tolerance

    @cached_property
    def why_missing(self) -> str:
        """Why there is nothing to compare, as far as it is known before measuring."""
        stored = self.config.stash[_SESSION].stored
        assert stored is not None
        names = [item.name for item in self._benchmark.configurations]
        if self._configuration not in names:
            return (
                f"{stored.directory}: has runs of configuration {self._configuration!r}, which "
                f"benchmark {self._benchmark.name!r} does not have"
            )
        try:
            stored.check_usable(self._benchmark.name, self._configuration)
        except ResultsError as error:
            return str(error)
        return ""

    def setup(self) -> None:
        """Measure; a failure to start is an error, not a regression."""
        _refuse_xdist(self.config)
        dynamo = self.config.stash[_SESSION]
        assert dynamo.stored is not None
        if self.why_missing:
            self._end_missing(self.why_missing)
        try:
            self._regression = dynamo.comparison(self._benchmark).regression(
                self._configuration,
                self._tolerance,
                dynamo.stored,
                allow_mismatches=self.config.getoption("dynamo_baseline_any"),
            )
        except (NotMeasuredError, ResultsError, UnavailableError) as error:
            self._end_missing(str(error))
        except DynamoBenchError as error:
            raise _as_outcome(error) from None

    def _end_missing(self, reason: str) -> NoReturn:
        """One side has nothing to compare: an error, unless the user said otherwise."""
        message = printable(f"not compared: {reason}", _LONGEST_MESSAGE)
        if self.config.getoption("dynamo_allow_missing"):
            pytest.skip(message)
        raise pytest.fail.Exception(
            f"{message}; to skip this, use --dynamo-allow-missing", pytrace=False
        ) from None

    def runtest(self) -> None:
        """Fail on a regression; an undecided one is the user's choice."""
        found = self._regression
        _record(
            self,
            junit.regression_properties(self._benchmark.name, self._configuration, found),
        )
        self.stash[_CHECKED] = self.stash[_EXPLAINED] = True
        message = f"{found.outcome}: {self._configuration}: {found.sentence}"
        if found.outcome == "regression":
            pytest.fail(message, pytrace=False)
        if found.outcome == "inconclusive":
            # A gate must decide, also at scale smoke.
            _end_inconclusive(self.config, message, soften=False)


def _record(item: pytest.Item, properties: junit.Properties) -> None:
    """Give the JUnit file properties, where the schema of its readers allows them."""
    if item.config.getini("dynamo_junit_properties") != "suite":
        item.user_properties += properties
        return
    plugins: Any = item.config.pluginmanager.get_plugins()
    for plugin in plugins:
        if hasattr(plugin, "add_global_property"):
            for name, value in properties:
                plugin.add_global_property(f"{item.name}.{name}", str(value))


def _end_inconclusive(config: pytest.Config, message: str, *, soften: bool = True) -> NoReturn:
    """Give a test the outcome that the user chose for what is undecided."""
    __tracebackhide__ = True
    little = config.stash[_SESSION].little if soften else ""
    outcome = config.getoption("dynamo_inconclusive") or ("skip" if little else "fail")
    if little:
        message = f"{little} {message}"
    if outcome == "skip":
        pytest.skip(message)
    if outcome == "xfail":
        pytest.xfail(message)
    pytest.fail(message, pytrace=False)


def _end_invalid(config: pytest.Config, message: str) -> NoReturn:
    """Give a test the outcome that the user chose for what was not measured well enough.

    Called while a test is set up, where a failure is an error.
    """
    __tracebackhide__ = True
    outcome = config.getoption("dynamo_invalid")
    if outcome == "skip":
        pytest.skip(message)
    if outcome == "xfail":
        pytest.xfail(message)
    raise pytest.fail.Exception(message, pytrace=False) from None


def _refuse_xdist(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        pytest.fail(
            "benchmarks cannot run under xdist: its workers would start the same configurations at "
            "the same time and disturb each other; run without -n",
            pytrace=False,
        )


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Show a mistake in a benchmark as file, line and message, not as a traceback."""
    report = yield
    call = getattr(report, "call", None)
    error = call.excinfo.value if call is not None and call.excinfo is not None else None
    if isinstance(error, DynamoBenchError):
        frames = traceback.extract_tb(error.__traceback__)
        path = str(getattr(collector, "path", ""))
        lines = [frame.lineno for frame in frames if frame.filename == path]
        where = f"{collector.nodeid}, line {lines[-1]}" if lines else collector.nodeid
        report.longrepr = f"{where}: {error}"
    return report


# ---------------------------------------------------------------------------------------
# Fixtures
# ---------------------------------------------------------------------------------------


class MeasuredComparison:
    """What a test gets: measured configurations, and the judgement of claims.

    ``comparison["agg-kv"].time_to_first_token.p50`` is a number that a plain ``assert`` can
    use, the mean over all runs of the configuration; ``comparison.runs("agg-kv")`` has them one by
    one. ``comparison.check(claim)`` lets the measurement decide.
    """

    def __init__(self, comparison: Comparison, request: pytest.FixtureRequest) -> None:
        self._comparison = comparison
        self._request = request
        self._checked: list[Claim] = []

    def __repr__(self) -> str:
        return repr(self._comparison)

    def __getitem__(self, configuration: str) -> RepeatedMetrics:
        """The metrics of a configuration over its runs, measured if necessary."""
        __tracebackhide__ = True
        try:
            return self._comparison[configuration]
        except DynamoBenchError as error:
            raise _as_outcome(error) from None

    def runs(self, configuration: str) -> list[Metrics]:
        """The metrics of each run of a configuration, which is measured if necessary."""
        __tracebackhide__ = True
        try:
            return self._comparison.runs(configuration)
        except DynamoBenchError as error:
            raise _as_outcome(error) from None

    def check(self, claim: Claim) -> Verdict:
        """Judge a claim and set the outcome of the test.

        Returns:
            The verdict, if the claim holds, provisionally or not.
        """
        __tracebackhide__ = True
        if self._comparison.bound(claim) is None:
            pytest.skip(f"not claimed on {self._comparison.target.name}")
        self._request.node.stash[_CHECKED] = True
        try:
            verdict = self._comparison.verdict(claim)
        except DynamoBenchError as error:
            raise _as_outcome(error) from None
        results = _relative(self._comparison.store.directory)
        if claim not in self._checked:
            self._checked.append(claim)
            found = junit.verdict_properties(self._comparison, verdict, results, len(self._checked))
            _record(self._request.node, found)
        if verdict.outcome in ("holds", "provisional"):
            return verdict
        message = junit.explain(verdict, results)
        self._request.node.stash[_EXPLAINED] = True
        config = self._request.config
        if verdict.outcome == "inconclusive" or config.stash[_SESSION].trial:
            _end_inconclusive(config, message)
        pytest.fail(message, pytrace=False)


def _as_outcome(error: DynamoBenchError) -> BaseException:
    """The error as pytest shows it without a traceback."""
    message = printable(str(error), _LONGEST_MESSAGE)
    if isinstance(error, UnavailableError):
        return pytest.skip.Exception(message)
    return pytest.fail.Exception(message, pytrace=False)


class BenchmarkFixtures:
    """The plugin's fixtures, in sessions that have a benchmark."""

    @pytest.fixture
    def comparison(self, request: pytest.FixtureRequest) -> MeasuredComparison:
        """The configurations of the module's ``benchmark``, measured on the target.

        Measures while the fixture is set up: the two configurations of a ``claim``, or all
        configurations for any other test. A failed deployment or an invalid run is therefore an
        error of the test and never a result.
        """
        return _measured(request)


def _measured(request: pytest.FixtureRequest) -> MeasuredComparison:
    _refuse_xdist(request.config)
    benchmark = _benchmark_of(request.module)
    if benchmark is None:
        raise pytest.UsageError(
            f"{request.node.nodeid}: the fixture 'comparison' needs a Benchmark named "
            "'benchmark' in the module"
        )
    dynamo = request.config.stash[_SESSION]
    claim = _claim_of(request.node)
    if claim is not None and (reason := dynamo.why_not_judged(benchmark, claim)):
        pytest.skip(reason)
    wanted = (
        [claim.baseline, claim.treatment]
        if claim is not None
        else [configuration.name for configuration in benchmark.configurations]
    )
    try:
        measured = dynamo.comparison(benchmark)
        # From here on an error is one of a configuration, which reports show as such.
        request.node.stash[_EXPLAINED] = True
        verdict = measured.verdict(claim) if claim is not None else None
        for configuration in wanted:
            measured.runs(configuration)
    except InvalidRunError as error:
        _end_invalid(request.config, printable(str(error), _LONGEST_MESSAGE))
    except NotMeasuredError as error:
        pytest.skip(str(error))
    except DynamoBenchError as error:
        raise _as_outcome(error) from None
    if verdict is not None and verdict.outcome == "invalid":
        results = _relative(measured.store.directory)
        _record(request.node, junit.verdict_properties(measured, verdict, results))
        _end_invalid(request.config, junit.explain(verdict, results))
    request.node.stash[_EXPLAINED] = False
    return MeasuredComparison(measured, request)


# ---------------------------------------------------------------------------------------
# Reporting
# ---------------------------------------------------------------------------------------


def pytest_report_header(config: pytest.Config) -> str | None:
    """Name the target if one was given."""
    if config.getoption("dynamo_target"):
        return f"dynamo target: {config.stash[_SESSION].target_name}"
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep how a test that measures ended, for the reports."""
    report = yield
    benchmark = _benchmark_of(getattr(item, "module", None))
    if benchmark is not None and _measures(item) and (outcome := _outcome_of(report)):
        passed = outcome == "passed"
        item.config.stash[_SESSION].note_test(
            benchmark,
            item.nodeid,
            outcome,
            "" if passed else _message_of(report),
            explained=item.stash.get(_CHECKED if passed else _EXPLAINED, False),
        )
    return report


def _outcome_of(report: pytest.TestReport) -> Ended | None:
    """What a phase says of the whole test; nothing, where another phase does."""
    expected = hasattr(report, "wasxfail")
    if report.skipped:
        return "xfailed" if expected else "skipped"
    if report.failed:
        return "failed" if report.when == "call" else "error"
    if report.when != "call":
        return None
    return "xpassed" if expected else "passed"


def _message_of(report: pytest.TestReport) -> str:
    """Why a test did not pass, without the traceback."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash is not None else report.longreprtext
    return printable(message.removeprefix("Failed: "), _LONGEST_REASON)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(
    session: pytest.Session, exitstatus: int
) -> Generator[None, object, object]:
    """Write the reports, and the baseline; also without a terminal, and after Ctrl-C.

    What could not be written makes the exit code non-zero, and is said after everything else.
    """
    config = session.config
    dynamo = config.stash.get(_SESSION, None)
    if dynamo is None or config.option.collectonly or hasattr(config, "workerinput"):
        return (yield)
    passed = exitstatus == pytest.ExitCode.OK
    if dynamo.report_directory is not None:
        _announce_reports(config, dynamo)
        with _as_error(dynamo, "reports"):
            dynamo.write_reports(os.environ)
    if not config.getoption("dynamo_dry_run"):
        if saved := config.getoption("dynamo_save_baseline"):
            with _as_error(dynamo, "--dynamo-save-baseline"):
                dynamo.save_baseline(Path(saved), passed=passed)
        if passed and config.getoption("dynamo_baseline") and not dynamo.judged_regressions:
            dynamo.errors.append("--dynamo-baseline: nothing was compared; everything was skipped")
    result = yield
    if dynamo.errors:
        if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        _say_last(config, [f"ERROR: {printable(e, _LONGEST_MESSAGE)}" for e in dynamo.errors])
    return result


def _announce_reports(config: pytest.Config, dynamo: BenchSession) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and dynamo.has_much_to_report:
        if terminal._tw.width_of_current_line:
            terminal._tw.line()
        terminal.write_line("writing the reports")


@contextmanager
def _as_error(dynamo: BenchSession, what: str) -> Iterator[None]:
    """Keep an error for the end of the session, so that what comes after it is still done."""
    try:
        yield
    except DynamoBenchError as error:
        dynamo.errors.append(f"{what}: {error}")
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        dynamo.errors.append(f"{what}: {named}{error.strerror or error}")


def _say_last(config: pytest.Config, lines: Sequence[str]) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        for line in lines:
            terminal.write_line(line, red=True)
        return
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        sys.stderr.write("".join(f"{line}\n" for line in lines))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tables and verdicts of each comparison, and where the results are."""
    dynamo = terminalreporter.config.stash.get(_SESSION, None)
    if dynamo is None or dynamo.report_directory is None:
        return
    terminalreporter.section("dynamo benchmarks")
    writer = terminalreporter._tw
    with _as_error(dynamo, "summary"):
        for text in dynamo.render(writer.fullwidth, writer.hasmarkup):
            for line in [*text.splitlines(), ""]:
                terminalreporter.write_line(line)
    for written in dynamo.written:
        terminalreporter.write_line(f"report: {_relative(written)}")
    terminalreporter.write_line(f"results: {_relative(dynamo.report_directory)}")
    for remark in dynamo.remarks:
        terminalreporter.write_line(remark)


def _relative(path: Path | None) -> str:
    if path is None:
        return "-"
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
