"""What is in stored results, defined once: written, read, described as JSON Schema, and reported.

A file of version 1 stays readable. What every writer of it had is required, a field that came later
has a default, one that this release does not know is ignored, and what is of another type is an
error that names it. Null stands for a number that JSON does not have, such as infinity.

Targets say what they want of a deployment, and a configuration has whatever options Dynamo has:
such parts are kept as plain data, of which :class:`Deployment`, :class:`Traffic` and
:class:`Observed` are what reports read.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from pytest_dynamo_bench import attribution_runs
from pytest_dynamo_bench.benchmark import Bound, ClaimKind, Goodput, Hardware, PublishedResults
from pytest_dynamo_bench.metric_definitions import metric_of, parse_metric
from pytest_dynamo_bench.outside import Amount, Count
from pytest_dynamo_bench.reports.features import FeatureAtWork
from pytest_dynamo_bench.sweep import SweepPoint
from pytest_dynamo_bench.verdicts import GateResult, verdict
from pytest_dynamo_bench.verdicts import regression as gate
from pytest_dynamo_bench.verdicts.effect import Scale

VERSION: Literal[1] = 1
Number = float | None
Threshold = dict[str, float] | float | None
Ended = Literal["passed", "failed", "error", "skipped", "xfailed", "xpassed", "not run"]
S = TypeVar("S", bound=msgspec.Struct)


class Stored(msgspec.Struct, frozen=True):
    """A part of a file."""


def taken(kind: type[S], value: object, **changes: Any) -> S:
    """The stored form of an object of the package that has the same fields."""
    kept = (name for name in kind.__struct_fields__ if name not in changes)
    return kind(**{name: getattr(value, name) for name in kept}, **changes)


def _check_metric(name: str) -> None:
    """ValueError where there is no such metric."""
    try:
        parse_metric(name)
    except ValueError as error:
        raise ValueError(
            f"{error}; a metric of your own has to be registered: by the hook "
            "pytest_dynamo_bench_metrics, or for a command with --metrics FILE.py"
        ) from None


# ---------------------------------------------------------------------------------------
# Plain data, as far as it is shown or judged
# ---------------------------------------------------------------------------------------


class Speculative(Stored, frozen=True):
    """Speculative decoding of a worker."""

    method: str = "speculative decoding"


class Worker(Stored, frozen=True):
    """The workers of one role."""

    replicas: Count = 1
    mode: str = ""
    tp: Count = 1
    attention_dp: Count | None = None
    moe_ep: Count | None = None
    nodes: Count | None = None
    prefix_caching: bool = True
    wideep: bool = False
    speculative: Speculative | None = None
    kv_offload: dict[str, Any] | None = None
    engine_args: dict[str, Any] = {}

    @property
    def in_words(self) -> str:
        """Layout and what is unusual, in one line."""
        layout = [f"TP{self.tp}"]
        layout += [
            f"{short}{ranks}"
            for short, ranks in (("DP", self.attention_dp), ("EP", self.moe_ep))
            if (ranks or 1) > 1
        ]
        text = f"{self.replicas} {self.mode} × {' '.join(layout)}"
        extras = ["no prefix caching"] * (not self.prefix_caching) + ["wide EP"] * self.wideep
        extras += [self.speculative.method] if self.speculative else []
        extras += ["KV offload"] * (self.kv_offload is not None)
        extras += [f"--{option} {value}" for option, value in self.engine_args.items()]
        extras += [f"{self.nodes} nodes each"] * ((self.nodes or 1) > 1)
        return text + (f" ({', '.join(extras)})" if extras else "")


class Deployment(Stored, frozen=True):
    """A configuration as its author wrote it."""

    name: str
    role: str = ""
    workers: Sequence[Worker] = ()
    router: str | None = None
    published: bool = True
    note: str = ""
    concurrency: Count | None = None
    frontend_args: dict[str, Any] = {}
    env: dict[str, Any] = {}

    @property
    def in_words(self) -> str:
        """Workers and router in one line."""
        parts = [worker.in_words for worker in self.workers]
        parts += [f"{self.router} router"] if self.router else []
        parts += [f"frontend --{option} {value}" for option, value in self.frontend_args.items()]
        parts += [f"{name} {value}" for name, value in self.env.items()]
        parts += [f"concurrency {self.concurrency}"] if self.concurrency else []
        return "; ".join(parts)


class Traffic(Stored, frozen=True):
    """What a run says of its traffic."""

    history: Sequence[str] = ()
    schedule: str = ""
    scaling: str = ""
    reusable_share: Number = None
    images: Count | None = None
    distinct_images: Count | None = None


class Observed(Stored, frozen=True):
    """What a deployment said of itself, in so far as it is judged."""

    load_generator: dict[str, Any] = {}
    processor_use: Sequence[Amount] = ()
    evicted_blocks: Count | None = None
    encoder_cache: dict[str, Any] | None = None
    embedding_cache: dict[str, Any] | None = None


# ---------------------------------------------------------------------------------------
# summary.json
# ---------------------------------------------------------------------------------------


class Claim(Stored, frozen=True):
    """What was claimed; a threshold is one number, or one for each target.

    Attributes:
        evidence: where the threshold comes from.
        assumes: the simplification without which it is not made by simulation.
    """

    name: str
    metric: str
    treatment: str
    baseline: str
    lower_by: Threshold = None
    higher_by: Threshold = None
    not_higher_by: Threshold = None
    not_lower_by: Threshold = None
    within: Threshold = None
    kind: ClaimKind = "effect"
    evidence: str = ""
    assumes: str = ""

    def __post_init__(self) -> None:
        _check_metric(self.metric)


class Effect(Stored, frozen=True):
    """The change of a metric from a baseline to a treatment.

    Attributes:
        change: relative (-0.2 is 20 % lower); for shares the plain difference.
        low: lower end of the interval; null where there is none.
        high: upper end.
        scale: of ``estimate``, ``standard_error`` and ``traffic_error``.
        traffic_error: the part of ``standard_error`` that is of the traffic.
    """

    metric: str
    treatment_value: Number
    baseline_value: Number
    change: Number
    low: Number
    high: Number
    confidence: Number
    method: str
    scale: Scale | None = None
    estimate: Number = None
    standard_error: Number = None
    degrees_of_freedom: Number = None
    block_length: Count | None = None
    n_requests: Count | None = None
    repeats: Count | None = None
    resamples: Count | None = None
    paired: bool | None = None
    traffic_error: Number = None


class Verdict(Stored, frozen=True):
    """What the measurement said of a claim.

    Attributes:
        effect: null when no run could be evaluated.
        statement: the claim in words, with the target's threshold.
        sentence: values, change, interval and outcome in one sentence.
        more_requests: about how many more would decide it.
        more_repeats: likewise.
        gates: every validity gate, passed or not.
        confounds: what else differs between the configurations.
        not_measured: which uncertainty the interval lacks, so that what holds is provisional.
    """

    claim: Claim
    target: str
    outcome: verdict.Outcome
    effect: Effect | None
    bound: Bound
    statement: str
    sentence: str
    more_requests: Count | None = None
    more_repeats: Count | None = None
    gates: Sequence[GateResult] = ()
    confounds: Sequence[str] = ()
    not_measured: str = ""

    @property
    def is_share(self) -> bool:
        """Whether the change is in points instead of percent."""
        return metric_of(self.claim.metric).is_share

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """Change, lower and upper end; None where one of them is not known."""
        effect = self.effect
        if effect is None or effect.change is None or effect.low is None or effect.high is None:
            return None
        return effect.change, effect.low, effect.high

    @property
    def failed_gates(self) -> list[GateResult]:
        """The validity gates that were not passed."""
        return [item for item in self.gates if not item.passed]


class Tolerance(Stored, frozen=True):
    """How much worse a metric may be."""

    metric: str
    share: float

    def __post_init__(self) -> None:
        _check_metric(self.metric)


class Regression(Stored, frozen=True):
    """A metric of a configuration against a stored measurement of it."""

    outcome: gate.Change
    sentence: str
    tolerance: Tolerance | None = None
    effect: Effect | None = None


class Test(Stored, frozen=True):
    """How a test of a benchmark ended.

    Attributes:
        message: why, where it did not pass.
        explained: whether it follows from a verdict, a regression or an error that is in this file.
    """

    outcome: Ended = "not run"
    message: str = ""
    explained: bool = False


class Configuration(Stored, frozen=True):
    """A configuration of a benchmark.

    Attributes:
        deployment: the configuration as its author wrote it, with all defaults.
    """

    role: Literal["baseline", "treatment", "promoted", "winner"]
    gpus: Count
    features: Sequence[str]
    deployment: dict[str, Any]

    def __post_init__(self) -> None:
        msgspec.convert(self.deployment, Deployment)


class Distribution(Stored, frozen=True):
    """Statistics of a metric over the requests of a run."""

    mean: Number
    min: Number
    max: Number
    p50: Number
    p90: Number
    p95: Number
    p99: Number


class RunEntry(Stored, frozen=True):
    """A run.

    Attributes:
        dynamo: the version of Dynamo that it ran on, as the servers' own Python says; empty where
            it is not known.
        problems: what makes it invalid, beyond single requests.
        metrics: by AIPerf's names; statistics of a distribution, or one number for the run.
        invalid: the validity gates that it did not pass, in words; an invalid run is no result.
            Null in older files, where that is in ``errors``.
    """

    gpus: Count
    simulated: bool
    requests: Count
    failed: Count
    problems: Sequence[str]
    duration_seconds: Number
    metrics: dict[str, Distribution | Number]
    invalid: Sequence[str] | None = None
    dynamo: str = ""


class Benchmark(Stored, frozen=True):
    """A benchmark on the target.

    Attributes:
        traffic: the benchmark's traffic at its published size.
        published: what somebody else measured on other hardware; never compared with the runs.
        runs: by configuration; the first item is the first run, the others are its repeats.
        errors: by configuration, why it has no result.
        verdicts: by the claim's name; where other claims of the benchmark have that name too, with
            a number. The name itself is in ``claim``.
        how_judged: how the claims were decided together.
        regressions: by configuration and metric.
        tests: how the tests of the benchmark ended, by their ids.
    """

    question: str
    model: str
    hardware: Hardware
    traffic: str
    runs: dict[str, Sequence[RunEntry]]
    verdicts: dict[str, Verdict]
    engine: str = ""
    held_constant: str = ""
    goodput: Goodput | None = None
    recipe: str = ""
    notes: Sequence[str] = ()
    published: PublishedResults | None = None
    configurations: dict[str, Configuration] = {}
    errors: dict[str, str] = {}
    how_judged: str = ""
    regressions: dict[str, dict[str, Regression]] = {}
    tests: dict[str, Test] = {}


class Summary(Stored, frozen=True):
    """The results of one session; times are milliseconds unless a name says otherwise.

    Within a version fields are added, never removed or changed. Null stands for a number that JSON
    does not have.

    Attributes:
        target: where everything in this file was measured.
        command: how the session was started.
        started_at: ISO 8601, UTC.
        benchmarks: by name.
    """

    version: Literal[1]
    target: str
    command: Sequence[str]
    started_at: str
    benchmarks: dict[str, Benchmark]


# ---------------------------------------------------------------------------------------
# The other files
# ---------------------------------------------------------------------------------------


class Run(Stored, frozen=True):
    """One run of a configuration.

    Attributes:
        configuration: as its author wrote it, with all defaults.
        dynamo: the version of Dynamo that it ran on; empty where it is not known.
        stand_in_engines: whether requests went to engines that only take the time of real ones.
        notes: what is missing from the run, though it is valid.
        limitations: what the target models, simplifies or leaves out.
        features: what each did in this run.
        traffic: what was sent.
        deployed: the configuration as it was brought up.
        observed: what the deployment said of itself.
    """

    version: Literal[1]
    benchmark: str
    configuration: dict[str, Any]
    target: str
    simulated: bool
    gpus: Count
    started_at: str
    duration_seconds: Number
    requests: Count
    failed: Count
    problems: Sequence[str]
    traffic: dict[str, Any]
    deployed: dict[str, Any]
    observed: dict[str, Any]
    metrics: dict[str, Distribution | Number]
    dynamo: str = ""
    stand_in_engines: bool = False
    notes: Sequence[str] = ()
    limitations: Sequence[str] = ()
    features: Sequence[FeatureAtWork] = ()

    def __post_init__(self) -> None:
        msgspec.convert(self.configuration, Deployment)
        msgspec.convert(self.traffic, Traffic)
        msgspec.convert(self.observed, Observed)


class Environment(Stored, frozen=True):
    """The machine and the versions that results are from.

    Attributes:
        packages: versions of what matters; null where it is not installed.
    """

    version: Literal[1] = 1
    python: str | None = None
    implementation: str | None = None
    system: str | None = None
    release: str | None = None
    machine: str | None = None
    processor: str | None = None
    cores: Count | None = None
    memory_gib: Amount | None = None
    packages: dict[str, str | None] = {}


class Estimate(Stored, frozen=True):
    """A number with its 95 % interval."""

    value: float
    low: Number = None
    high: Number = None

    @property
    def in_percent(self) -> str:
        """As tables write it."""
        text = f"{100 * self.value:+.1f}"
        if self.low is not None and self.high is not None:
            text += f" ({100 * self.low:+.1f} … {100 * self.high:+.1f})"
        return text


class Row(Stored, frozen=True):
    """What a feature brings; ``total`` is the whole difference, and has an average only.

    Attributes:
        alone: added to the baseline.
        on_top: added to everything else of the treatment.
        average: averaged over all orders of adding features (Shapley value).
    """

    feature: str
    alone: Estimate | None = None
    on_top: Estimate | None = None
    average: Estimate | None = None


class Combination(Stored, frozen=True):
    """What the baseline with some features of the treatment measured.

    Attributes:
        features: taken from the treatment.
        values: of the metric, one for each seed.
    """

    features: Sequence[str]
    configuration: str
    seeds: Sequence[int]
    values: Sequence[Number]
    estimate: Estimate


class Attribution(Stored, frozen=True):
    """Which feature brings what of the difference between two configurations, simulated.

    Attributes:
        relative: whether effects are shares of the baseline's value.
        level: of the intervals.
        block_requests: consecutive requests that were resampled together.
        requests: that the combinations have in common.
        limitations: by configuration, what the simulation leaves out or simplifies.
    """

    metric: str
    treatment: str
    baseline: str
    rows: Sequence[Row]
    version: Literal[1] = 1
    benchmark: str = ""
    target: str = "replay"
    simulated: bool = True
    relative: bool = True
    level: float = 0.95
    combinations: Sequence[Combination] = ()
    block_requests: Count | None = None
    requests: Count | None = None
    resamples: Count | None = None
    limitations: Mapping[str, Sequence[str]] = {}


def attribution(
    study: attribution_runs.AttributionStudy, limitations: Mapping[str, Sequence[str]] | None = None
) -> Attribution:
    """The stored form of an attribution."""
    found = study.attribution
    return taken(
        Attribution, study,
        version=VERSION, target="replay", simulated=True,
        relative=found.relative, level=found.level, limitations=limitations or {},
        rows=msgspec.convert(found.as_rows(), list[Row]),
        combinations=[
            taken(Combination, run, estimate=taken(Estimate, estimate))
            for run, (_, estimate) in zip(study.runs, found.combinations, strict=True)
        ],
    )  # fmt: skip


class Point(Stored, frozen=True):
    """What a configuration did at one point of a sweep.

    Attributes:
        speedup: of the load.
        kv_scale: KV blocks, relative to the configuration's own.
        split: prefill and decode workers, where they are varied.
        failed: requests that did not succeed.
        cached: whether it was simulated before.
        on_front: whether no other point beats it in tokens/s per GPU and per user.
    """

    configuration: str
    gpus: Count
    metrics: dict[str, Number]
    requests: Count
    failed: Count
    cached: bool
    speedup: float
    kv_scale: float
    split: tuple[int, int] | None
    on_front: bool


def point(found: SweepPoint, *, on_front: bool) -> Point:
    """The stored form of a point of a sweep."""
    varied = found.variation
    return taken(
        Point, found, speedup=varied.speedup, kv_scale=varied.kv_scale, split=varied.split,
        on_front=on_front,
    )  # fmt: skip


class Best(Stored, frozen=True):
    """The best configuration at a value of an axis.

    Attributes:
        label: its name; ``none`` where even the best is of no use.
        y: its value of the metric.
        lead: how far the next one is behind, relative to it.
    """

    x: float
    label: str
    y: Number
    lead: Number


class Finding(Stored, frozen=True):
    """Who is best along one axis.

    Attributes:
        held: what of the other axes is held.
    """

    axis: str
    held: str
    metric: str
    winners: Sequence[Best]
    sentence: str


class Points(Stored, frozen=True):
    """The points of a sweep, simulated.

    Attributes:
        limitations: by configuration, what the simulation leaves out or simplifies.
    """

    benchmark: str
    metric: str
    points: Sequence[Point]
    findings: Sequence[Finding]
    limitations: Mapping[str, Sequence[str]]
    version: Literal[1] = 1
    target: str = "replay"
    simulated: bool = True


FILES: Mapping[str, type[Stored]] = {
    "summary.json": Summary, "run.json": Run, "environment.json": Environment,
    "attribution.json": Attribution, "points.json": Points,
}  # fmt: skip


def schema(file: str) -> dict[str, Any]:
    """The JSON Schema of a file, by its name; docstrings are its descriptions."""
    found = msgspec.json.schema(FILES[file])
    for part in found["$defs"].values():
        text, _, attributes = inspect.cleandoc(part["description"]).partition("\n\nAttributes:\n")
        part["description"] = " ".join(text.split())
        for name, said in _attributes(attributes):
            if name in part["properties"]:
                part["properties"][name]["description"] = said
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:pytest-dynamo-bench:{file.removesuffix('.json')}:{VERSION}",
        **found,
    }


def _attributes(text: str) -> Iterator[tuple[str, str]]:
    """Names and descriptions of an ``Attributes:`` section."""
    for entry in re.split(r"\n(?=    \S)", text):
        names, _, said = entry.partition(": ")
        for name in names.split(","):
            yield name.strip(), " ".join(said.split())


def number(value: Number, otherwise: float = math.nan) -> float:
    """A stored number; what null stands for, where it is null."""
    return otherwise if value is None else value
