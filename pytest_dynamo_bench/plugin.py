"""The pytest side: options, fixtures, collection, terminal summary, JUnit properties.

This is the only module that imports pytest. It is loaded in every pytest session of an
environment that has it, so what measures and judges is imported when a benchmark needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import signal
import threading
import traceback
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_dynamo_bench.benchmark import Benchmark, Claim
from pytest_dynamo_bench.errors import DynamoBenchError, InvalidRunError
from pytest_dynamo_bench.metric_names import METRICS
from pytest_dynamo_bench.server_options import (
    add_server_options,
    endpoint_target,
    without_secrets,
)

if TYPE_CHECKING:
    from pytest_dynamo_bench.attribution_runs import AttributionStudy
    from pytest_dynamo_bench.comparison import Comparison, MeasuringPlan
    from pytest_dynamo_bench.metrics import Metrics
    from pytest_dynamo_bench.reports.store import ResultStore, StoredResults
    from pytest_dynamo_bench.targets.base import Progress, Target
    from pytest_dynamo_bench.verdicts import Verdict
    from pytest_dynamo_bench.verdicts.regression import Tolerance

_SLUG = re.compile(r"[^a-z0-9]+")
_TARGETS = ("local", "replay", "endpoint")
_DEFAULT_SECONDS = 35.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")
_GATES = (
    "failed_share, rejected_share, token_mismatch_share, token_tolerance, schedule_delay_ms, "
    "schedule_delay_share, fewest_requests, fewest_beyond_percentile, warm_cache_share, "
    "queue_growth, queue_growth_factor, queue_growth_p_value"
)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the hooks that a conftest.py can implement."""
    from pytest_dynamo_bench import hookspec

    pluginmanager.add_hookspecs(hookspec)


def pytest_addoption(parser: pytest.Parser) -> None:
    """All options of the plugin, in one group."""
    group = parser.getgroup("dynamo", "NVIDIA Dynamo benchmarks")
    group.addoption(
        "--dynamo-target", metavar="TARGET", default=None,
        help="where configurations are brought up: "
        "'local' is the real Dynamo with mocker engines on this machine (default), 'replay' its "
        "discrete-event simulation of the full traffic, 'endpoint' servers that are already up",
    )  # fmt: skip
    group.addoption(
        "--dynamo-traffic", metavar="FILE", default=None,
        help="send the requests of this file instead of the benchmark's: a Mooncake trace, a "
        "request trace of Dynamo, or inputs of AIPerf; its content tells which",
    )  # fmt: skip
    group.addoption(
        "--dynamo-reports", metavar="DIR", default=None,
        help="directory that a directory of results is made in (default: reports)",
    )  # fmt: skip
    group.addoption(
        "--dynamo-seconds", metavar="SECONDS", type=_positive_seconds, default=None,
        help="length of the traffic that is cut from the benchmark's, for each configuration "
        f"(default: {_DEFAULT_SECONDS:g} on local, elsewhere all of it); longer runs give narrower "
        "intervals",
    )  # fmt: skip
    group.addoption(
        "--dynamo-cut-seed", metavar="N", type=int, default=0,
        help="choose another, equally representative cut (default: %(default)s)",
    )  # fmt: skip
    group.addoption(
        "--dynamo-frontend-port", metavar="PORT", type=int, default=None,
        help="local: port of Dynamo's frontend on 127.0.0.1 (default: a free one)",
    )  # fmt: skip
    group.addoption(
        "--dynamo-inconclusive", choices=("fail", "skip", "xfail"), default="fail",
        help="outcome of a claim that the measurement neither confirms nor refutes "
        "(default: %(default)s)",
    )  # fmt: skip
    group.addoption(
        "--dynamo-invalid", choices=("error", "skip", "xfail"), default="error",
        help="outcome where a run is invalid, so that nothing can be concluded from it "
        "(default: %(default)s)",
    )  # fmt: skip
    group.addoption(
        "--dynamo-attribution", action="store_true",
        help="replay: simulate all combinations of the features in which the winner differs from "
        "the baseline, and say what each of them brings",
    )  # fmt: skip
    group.addoption(
        "--dynamo-repeats", metavar="N", type=_count, default=1,
        help="runs of each configuration, in interleaved order; their differences widen or "
        "narrow the intervals as they should (default: %(default)s)",
    )  # fmt: skip
    group.addoption(
        "--dynamo-budget", metavar="DURATION", type=_duration_seconds, default=None,
        help="instead of a fixed number of repeats, add some until every claim is decided, for "
        "so long at most for each benchmark, such as 90s, 10m or 2h",
    )  # fmt: skip
    group.addoption(
        "--dynamo-false-discovery-rate", metavar="SHARE", type=_share, default=0.05,
        help="share of wrong verdicts among the decided claims of a benchmark "
        "(default: %(default)s)",
    )  # fmt: skip
    group.addoption(
        "--dynamo-gate", metavar="NAME=VALUE", type=_gate, action="append", default=[],
        help="another threshold of a validity gate, such as failed_share=0.01; docs/verdicts.md "
        "lists them; can be given several times",
    )  # fmt: skip
    group.addoption(
        "--dynamo-baseline", metavar="DIR", default=None,
        help="results of an earlier session; every configuration that it has gets tests that "
        "fail when a metric got worse by more than is tolerated",
    )  # fmt: skip
    group.addoption(
        "--dynamo-tolerance", metavar="METRIC:SHARE", action="append", default=[],
        help="with --dynamo-baseline: how much worse a metric may be, such as ttft:5%% or "
        "itl.p99:0.1; several separated by commas (default: 5%% for the medians of TTFT and ITL, "
        "and for throughput)",
    )  # fmt: skip
    group.addoption(
        "--dynamo-baseline-any", action="store_true",
        help="with --dynamo-baseline: compare although environment, configuration or traffic "
        "differ",
    )  # fmt: skip
    group.addoption(
        "--dynamo-save-baseline", metavar="DIR", default=None,
        help="copy the results to a directory that --dynamo-baseline can name later",
    )  # fmt: skip
    add_server_options(group)
    parser.addini("dynamo_target", "default of --dynamo-target", default="local")
    parser.addini("dynamo_reports", "default of --dynamo-reports", default="reports")


def _positive_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"must be between 1 and 86400 seconds, got {text!r}")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 1000, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, such as 0.05; got {text!r}")
    return share


def _duration_seconds(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None or float(match.group(1)) <= 0:
        raise argparse.ArgumentTypeError(f"must be a duration such as 90s, 10m or 2h; got {text!r}")
    return float(match.group(1)) * {"s": 1, "m": 60, "h": 3600}[match.group(2) or "s"]


def _gate(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in _GATES.split(", "):
        raise argparse.ArgumentTypeError(f"{name!r} is not a threshold; there are {_GATES}")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{name}: must be a number, got {value!r}") from None


class _Session:
    """What lives as long as the pytest session: the target, the results, the comparisons."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.comparisons: dict[str, Comparison] = {}
        self.claims: dict[str, list[Claim]] = {}
        self.studies: list[AttributionStudy] = []
        self._benchmarks: dict[str, Benchmark] = {}
        self.stored: StoredResults | None = None
        self._target: Target | None = None
        self._store: ResultStore | None = None
        self.target_name = config.getoption("dynamo_target") or config.getini("dynamo_target")

    @property
    def target(self) -> Target:
        if self._target is None:
            target = self.config.hook.pytest_dynamo_bench_make_target(
                config=self.config, name=self.target_name
            )
            if target is None:
                raise pytest.UsageError(
                    f"--dynamo-target: {self.target_name!r} is not a target; "
                    f"targets: {', '.join(_TARGETS)}"
                )
            self._target = target
        assert self._target is not None
        return self._target

    @property
    def store(self) -> ResultStore:
        from pytest_dynamo_bench.reports.store import ResultStore

        if self._store is None:
            parent = self.config.getoption("dynamo_reports") or self.config.getini("dynamo_reports")
            directory = _new_directory(self.config.rootpath / parent, self.target.name)
            arguments = [str(argument) for argument in self.config.invocation_params.args]
            command = ["pytest", *without_secrets(arguments)]
            self._store = ResultStore(directory, self.target.name, command)
        return self._store

    @property
    def report_directory(self) -> Path | None:
        return self._store.directory if self._store else None

    def with_own_traffic(self, benchmark: Benchmark) -> Benchmark:
        """The benchmark with the user's own traffic, where there is any.

        Raises:
            TrafficError: the file cannot be used.
        """
        path = self.config.getoption("dynamo_traffic")
        if path is None:
            return benchmark
        from pytest_dynamo_bench.traffic.own import TraceFile

        schedule = benchmark.traffic.load().schedule
        return dataclasses.replace(benchmark, traffic=TraceFile(path, schedule))

    def comparison(self, benchmark: Benchmark) -> Comparison:
        from pytest_dynamo_bench.comparison import Comparison

        if benchmark.name not in self.comparisons:
            self.comparisons[benchmark.name] = Comparison(
                self.with_own_traffic(benchmark),
                self.target,
                self.store,
                self.show_progress,
                claims=self.claims.get(benchmark.name, ()),
                plan=self._plan(),
            )
            self._benchmarks[benchmark.name] = benchmark
        if self._benchmarks[benchmark.name] != benchmark:
            raise pytest.UsageError(f"two benchmarks are called {benchmark.name!r}")
        return self.comparisons[benchmark.name]

    def _plan(self) -> MeasuringPlan:
        from pytest_dynamo_bench.comparison import MeasuringPlan
        from pytest_dynamo_bench.verdicts import GateThresholds

        option = self.config.getoption
        given: dict[str, Any] = dict(option("dynamo_gate"))
        defaults = GateThresholds()
        gates = {name: type(getattr(defaults, name))(value) for name, value in given.items()}
        return MeasuringPlan(
            repeats=option("dynamo_repeats"),
            budget_seconds=option("dynamo_budget"),
            false_discovery_rate=option("dynamo_false_discovery_rate"),
            thresholds=GateThresholds(**gates),
        )

    @contextmanager
    def show_progress(
        self, benchmark: str, configuration: str, noun: str = "requests"
    ) -> Iterator[Progress]:
        from rich.console import Console

        from pytest_dynamo_bench.reports.terminal import LineProgress, live_progress

        label = f"{benchmark}: {configuration}"
        with self._terminal() as terminal:
            if terminal is None:
                yield LineProgress(label, lambda line: None)
            elif terminal.isatty and not os.environ.get("CI"):
                console = Console(file=terminal._tw._file, force_terminal=True)
                with live_progress(label, console) as live:
                    yield live
            else:
                yield LineProgress(label, terminal.write_line, noun)

    @contextmanager
    def _terminal(self) -> Iterator[pytest.TerminalReporter | None]:
        """The terminal with output capturing out of the way; None under -p no:terminal or -q."""
        manager = self.config.pluginmanager
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


_SESSION = pytest.StashKey[_Session]()
_PREVIOUS_HANDLER = pytest.StashKey[Any]()


def _new_directory(parent: Path, target: str) -> Path:
    """A directory name that sorts by time and does not exist yet."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    for number in range(1, 1000):
        directory = parent / (f"{stamp}-{target}" + (f"-{number}" if number > 1 else ""))
        if not directory.exists():
            return directory
    raise pytest.UsageError(f"cannot make a new directory in {parent}")


def pytest_configure(config: pytest.Config) -> None:
    """Start a session; treat SIGTERM like Ctrl-C, so that a summary is still printed."""
    config.stash[_SESSION] = _Session(config)
    for feature in ("kv_routing", "pd_split", "wideep", "embedding_cache", "spec_decode",
                    "kv_offload", "frontend_decoding", "multi_node"):  # fmt: skip
        config.addinivalue_line("markers", f"{feature}: a benchmark of this Dynamo feature")
    if threading.current_thread() is threading.main_thread():
        config.stash[_PREVIOUS_HANDLER] = signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    """End the session as Ctrl-C does.

    Not by raising SIGINT: a shell's background jobs and many CI runners ignore that.
    """
    raise KeyboardInterrupt("SIGTERM")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give SIGTERM back."""
    previous = config.stash.get(_PREVIOUS_HANDLER, None)
    if previous is not None:
        signal.signal(signal.SIGTERM, previous)


@pytest.hookimpl(trylast=True)
def pytest_dynamo_bench_make_target(config: pytest.Config, name: str) -> Target | None:
    """The targets that come with the plugin."""
    from pytest_dynamo_bench.targets.local import LocalOptions, LocalTarget

    if name == "local":
        return LocalTarget(
            LocalOptions(
                seconds=config.getoption("dynamo_seconds") or _DEFAULT_SECONDS,
                frontend_port=config.getoption("dynamo_frontend_port"),
                seed=config.getoption("dynamo_cut_seed"),
            )
        )
    if name == "replay":
        from pytest_dynamo_bench.targets.replay import ReplayTarget

        return ReplayTarget()
    try:
        if name == "endpoint":
            return endpoint_target(config.getoption)
    except DynamoBenchError as error:
        raise pytest.UsageError(str(error)) from None
    return None


# ---------------------------------------------------------------------------------------
# Collection: claims become test items, features become markers, mistakes become messages.
# ---------------------------------------------------------------------------------------


def _benchmark_of(module: object) -> Benchmark | None:
    found = getattr(module, "benchmark", None)
    return found if isinstance(found, Benchmark) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``claim`` runs once for every claim of its module's benchmark."""
    benchmark = _benchmark_of(metafunc.module)
    if benchmark is not None and "claim" in metafunc.fixturenames:
        ids = [_SLUG.sub("-", claim.name.lower()).strip("-") for claim in benchmark.claims]
        metafunc.parametrize("claim", benchmark.claims, ids=ids)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the regression tests; mark all tests of a benchmark with the features it uses."""
    items.extend([*_regression_items(config, items), *_attribution_items(config, items)])
    for item in items:
        benchmark = _benchmark_of(getattr(item, "module", None))
        if benchmark is not None and _measures(item):
            used = {name for item_ in benchmark.configurations for name in item_.features}
            for feature in sorted(used):
                item.add_marker(feature)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Everything that can be found wrong is found before anything is brought up."""
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
        callspec = getattr(item, "callspec", None)
        claim = callspec.params.get("claim") if callspec is not None else None
        names = {configuration.name for configuration in benchmark.configurations}
        if claim is not None:
            if claim.bound(dynamo.target.name) is None:
                continue
            dynamo.claims.setdefault(benchmark.name, []).append(claim)
            names = {claim.treatment, claim.baseline}
        benchmarks[benchmark.name] = benchmark
        needed.setdefault(benchmark.name, set()).update(names)
    for benchmark in benchmarks.values():
        try:
            benchmark = dynamo.with_own_traffic(benchmark)
            dynamo.target.check(_only(benchmark, needed[benchmark.name]))
            dynamo.target.traffic(benchmark)
        except DynamoBenchError as error:
            raise pytest.UsageError(f"{benchmark.name}: {error}") from None
    saved = config.getoption("dynamo_save_baseline")
    if benchmarks and saved:
        from pytest_dynamo_bench.reports.store import check_replaceable

        try:
            check_replaceable(Path(saved))
        except DynamoBenchError as error:
            raise pytest.UsageError(f"--dynamo-save-baseline: {error}") from None


def _only(benchmark: Benchmark, names: set[str]) -> Benchmark:
    """The benchmark with those configurations only that the selected tests will measure."""
    kept = [item for item in benchmark.configurations if item.name in names]
    claims = [c for c in benchmark.claims if {c.treatment, c.baseline} <= names]
    return dataclasses.replace(benchmark, configurations=kept, claims=claims, published=None)


def _measures(item: pytest.Item) -> bool:
    return isinstance(item, RegressionItem | AttributionItem) or "comparison" in getattr(
        item, "fixturenames", ()
    )


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
    config.stash[_SESSION].stored = stored
    return [
        RegressionItem.from_parent(
            module,
            name=f"regression[{configuration.name}-{tolerance.metric}]",
            benchmark=benchmark,
            configuration=configuration.name,
            tolerance=tolerance,
        )
        for module, benchmark in _modules(items).items()
        for configuration in benchmark.configurations
        for tolerance in tolerances
    ]


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
    """A test for every benchmark whose winner differs from its baseline in several features."""
    if not config.getoption("dynamo_attribution"):
        return []
    if config.stash[_SESSION].target_name != "replay":
        raise pytest.UsageError(
            "--dynamo-attribution needs --dynamo-target=replay: it takes all combinations of the "
            "features, many times over"
        )
    found: list[pytest.Item] = []
    for module, benchmark in _modules(items).items():
        roles = {item.role: item for item in reversed(benchmark.configurations)}
        baseline, winner = roles.get("baseline"), roles.get("winner") or roles.get("treatment")
        if baseline and winner and len(baseline.features ^ winner.features) > 1:
            found.append(
                AttributionItem.from_parent(
                    module,
                    name=f"attribution[{winner.name}-against-{baseline.name}]",
                    benchmark=benchmark,
                    baseline=baseline.name,
                    treatment=winner.name,
                )
            )
    return found


class AttributionItem(pytest.Item):
    """What each feature brings of the difference between two configurations."""

    def __init__(
        self, *, benchmark: Benchmark, baseline: str, treatment: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.module = getattr(self.parent, "obj", None)
        self._benchmark = benchmark
        self._pair = baseline, treatment

    def runtest(self) -> None:
        """Simulate all combinations; it passes when they could be simulated."""
        from pytest_dynamo_bench.attribution_runs import run_attribution

        _refuse_xdist(self.config)
        dynamo = self.config.stash[_SESSION]
        benchmark = dynamo.with_own_traffic(self._benchmark)
        with dynamo.show_progress(benchmark.name, "attribution", "simulations") as progress:
            progress.stage("simulating all combinations")
            try:
                study = run_attribution(
                    benchmark,
                    *self._pair,
                    metric="goodput" if benchmark.goodput else "time_to_first_token.mean",
                    cache=self.config.rootpath / ".dynamo-bench-cache",
                    on_run=lambda done, total, *_: progress.requests(done, 0, total),
                )
            except DynamoBenchError as error:
                raise _told(error) from None
        dynamo.studies.append(study)
        dynamo.store.save_attribution(study)
        for row in study.attribution.as_rows():
            self.user_properties += [
                (f"dynamo.attribution.{row['feature']}.{key}", value)
                for key, value in row.items()
                if key != "feature"
            ]

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where the test is: the module of its benchmark."""
        return self.path, None, self.name


class RegressionItem(pytest.Item):
    """A configuration's metric against a stored measurement of it."""

    def __init__(
        self, *, benchmark: Benchmark, configuration: str, tolerance: Tolerance, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.module = getattr(self.parent, "obj", None)
        self._benchmark = benchmark
        self._configuration = configuration
        self._tolerance = tolerance

    def setup(self) -> None:
        """Measure, so that what does not come up is an error and not a regression."""
        _refuse_xdist(self.config)
        dynamo = self.config.stash[_SESSION]
        assert dynamo.stored is not None
        if self._configuration not in dynamo.stored.configurations(self._benchmark.name):
            pytest.skip(
                f"the baseline has no runs of {self._configuration}: {dynamo.stored.directory}"
            )
        try:
            self._regression = dynamo.comparison(self._benchmark).regression(
                self._configuration,
                self._tolerance,
                dynamo.stored,
                allow_mismatches=self.config.getoption("dynamo_baseline_any"),
            )
        except DynamoBenchError as error:
            raise _told(error) from None

    def runtest(self) -> None:
        """Fail on a regression; an undecided one is the user's choice."""
        found = self._regression
        self.user_properties += [
            ("dynamo.benchmark", self._benchmark.name),
            ("dynamo.configuration", self._configuration),
            ("dynamo.metric", found.tolerance.metric),
            ("dynamo.regression", found.outcome),
            ("dynamo.tolerance", found.tolerance.share),
            ("dynamo.value", found.effect.treatment_value),
            ("dynamo.stored_value", found.effect.baseline_value),
            ("dynamo.change", found.effect.change),
            ("dynamo.change_low", found.effect.low),
            ("dynamo.change_high", found.effect.high),
        ]
        message = f"{found.outcome}: {self._configuration}: {found.sentence}"
        if found.outcome == "regression":
            pytest.fail(message, pytrace=False)
        if found.outcome == "inconclusive":
            _end_inconclusive(self.config, message)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where the test is: the module of its benchmark."""
        return self.path, None, self.name


def _end_inconclusive(config: pytest.Config, message: str) -> NoReturn:
    """Give a test the outcome that the user chose for what is undecided."""
    __tracebackhide__ = True
    outcome = config.getoption("dynamo_inconclusive")
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
            "benchmarks cannot run under xdist: workers would bring up the same configurations "
            "side by side and disturb each other; run them without -n",
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
    use; ``comparison.check(claim)`` lets the measurement decide.
    """

    def __init__(self, comparison: Comparison, request: pytest.FixtureRequest) -> None:
        self._comparison = comparison
        self._request = request

    def __repr__(self) -> str:
        return repr(self._comparison)

    def __getitem__(self, configuration: str) -> Metrics:
        """The metrics of a configuration; brought up if it has not been yet."""
        __tracebackhide__ = True
        try:
            return self._comparison[configuration]
        except DynamoBenchError as error:
            raise _told(error) from None

    def check(self, claim: Claim) -> Verdict:
        """Judge a claim, and give the test the outcome that follows.

        Returns:
            The verdict, when the claim holds.
        """
        __tracebackhide__ = True
        target = self._comparison.target.name
        if claim.bound(target) is None:
            pytest.skip(f"not claimed on {target}")
        try:
            verdict = self._comparison.verdict(claim)
        except DynamoBenchError as error:
            raise _told(error) from None
        self._request.node.user_properties.extend(_properties(self._comparison, verdict))
        if verdict.outcome == "holds":
            return verdict
        message = self.explain(verdict)
        if verdict.outcome == "inconclusive":
            _end_inconclusive(self._request.config, message)
        pytest.fail(message, pytrace=False)

    def explain(self, verdict: Verdict) -> str:
        """Why a verdict is what it is, in a message that stands alone."""
        lines = [f"{verdict.outcome}: {verdict.claim.name}", verdict.sentence]
        lines += [f"- {gate.sentence}" for gate in verdict.gates if not gate.passed]
        if verdict.confounds:
            lines.append(f"what differs: {'; '.join(map(str, verdict.confounds))}")
        lines.append(f"records and logs: {self._comparison.store.directory}")
        return "\n".join(lines)


def _told(error: DynamoBenchError) -> BaseException:
    """The error as pytest shows it without a traceback."""
    return pytest.fail.Exception(str(error), pytrace=False)


def _properties(comparison: Comparison, verdict: Verdict) -> list[tuple[str, object]]:
    """What JUnit carries of a verdict."""
    claim, effect = verdict.claim, verdict.effect
    found: list[tuple[str, object]] = [
        ("dynamo.benchmark", comparison.benchmark.name),
        ("dynamo.target", verdict.target),
        ("dynamo.claim", claim.name),
        ("dynamo.kind", claim.kind),
        ("dynamo.statement", verdict.statement),
        ("dynamo.metric", claim.metric),
        ("dynamo.treatment", claim.treatment),
        ("dynamo.baseline", claim.baseline),
        ("dynamo.verdict", verdict.outcome),
        ("dynamo.report", str(comparison.store.directory)),
        ("dynamo.confounds", "; ".join(map(str, verdict.confounds))),
    ]
    if effect is not None:
        found += [
            ("dynamo.treatment_value", effect.treatment_value),
            ("dynamo.baseline_value", effect.baseline_value),
            ("dynamo.change", effect.change),
            ("dynamo.change_low", effect.low),
            ("dynamo.change_high", effect.high),
            ("dynamo.threshold", verdict.bound.limit),
        ]
    for configuration in (claim.treatment, claim.baseline):
        metrics = comparison[configuration]
        for name, definition in METRICS.items():
            if name.startswith("goodput") and comparison.benchmark.goodput is None:
                continue
            for statistic in (".mean", ".p50", ".p99") if definition.distribution else ("",):
                value = metrics.value(name + statistic)
                found.append((f"dynamo.{configuration}.{name}{statistic}", value))
    return found


@pytest.fixture
def comparison(request: pytest.FixtureRequest) -> MeasuredComparison:
    """The configurations of the module's ``benchmark``, measured on the target.

    Measuring happens while this fixture is set up, so that a deployment that does not come
    up, or a run that is invalid, is an error of the test and never a result: for a test
    with a ``claim`` its two configurations, for any other test all of them.
    """
    _refuse_xdist(request.config)
    benchmark = _benchmark_of(request.module)
    if benchmark is None:
        raise pytest.UsageError(
            f"{request.node.nodeid}: the fixture 'comparison' needs a Benchmark called "
            "'benchmark' in the module"
        )
    dynamo = request.config.stash[_SESSION]
    callspec = getattr(request.node, "callspec", None)
    claim = callspec.params.get("claim") if callspec is not None else None
    if claim is not None and claim.bound(dynamo.target.name) is None:
        pytest.skip(f"not claimed on {dynamo.target.name}")
    wanted = (
        [claim.baseline, claim.treatment]
        if claim is not None
        else [configuration.name for configuration in benchmark.configurations]
    )
    measured = dynamo.comparison(benchmark)
    result = MeasuredComparison(measured, request)
    try:
        verdict = measured.verdict(claim) if claim is not None else None
        for configuration in wanted:
            measured.runs(configuration)
    except InvalidRunError as error:
        _end_invalid(request.config, str(error))
    except DynamoBenchError as error:
        raise _told(error) from None
    if verdict is not None and verdict.outcome == "invalid":
        request.node.user_properties.extend(_properties(measured, verdict))
        _end_invalid(request.config, result.explain(verdict))
    return result


# ---------------------------------------------------------------------------------------
# Reporting
# ---------------------------------------------------------------------------------------


def pytest_report_header(config: pytest.Config) -> str | None:
    """Name the target, where somebody asked for one."""
    if config.getoption("dynamo_target"):
        return f"dynamo target: {config.stash[_SESSION].target_name}"
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """A table per comparison, a line per verdict, and where the results are."""
    dynamo = terminalreporter.config.stash.get(_SESSION, None)
    if dynamo is None or dynamo.report_directory is None:
        return
    from pytest_dynamo_bench.reports.terminal import render_attribution, render_comparison

    terminalreporter.section("dynamo benchmarks")
    for item in dynamo.comparisons.values():
        if item.measured:
            text = render_comparison(
                item, terminalreporter._tw.fullwidth, terminalreporter._tw.hasmarkup
            )
            for line in text.splitlines():
                terminalreporter.write_line(line)
            terminalreporter.write_line("")
    for study in dynamo.studies:
        text = render_attribution(
            study, terminalreporter._tw.fullwidth, terminalreporter._tw.hasmarkup
        )
        for line in text.splitlines():
            terminalreporter.write_line(line)
        terminalreporter.write_line("")
    terminalreporter.write_line(f"results: {_relative(dynamo.report_directory)}")
    saved = terminalreporter.config.getoption("dynamo_save_baseline")
    if saved and dynamo.report_directory is not None:
        from pytest_dynamo_bench.reports.store import StoredResults

        if exitstatus == pytest.ExitCode.OK:
            StoredResults(dynamo.report_directory).copy_to(Path(saved))
            terminalreporter.write_line(f"baseline: {saved}")
        else:
            terminalreporter.write_line("baseline: not saved, since not all tests passed")


def _relative(path: Path | None) -> str:
    if path is None:
        return "-"
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
