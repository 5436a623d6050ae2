"""What is in stored results, by its type: what reads them need not look at each value again.

A field that an older file lacks has a default; what is of another type is an error that names it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pytest_dynamo_bench.benchmark import Direction
from pytest_dynamo_bench.metric_definitions import parse_metric
from pytest_dynamo_bench.outside import Amount, Count, Finite

Number = Finite | None


def _check_metric(name: str) -> None:
    """ValueError where there is no such metric."""
    try:
        parse_metric(name)
    except ValueError as error:
        raise ValueError(
            f"{error}; a metric of your own has to be registered: by the hook "
            "pytest_dynamo_bench_metrics, or for a command with --metrics FILE.py"
        ) from None


class Claim(msgspec.Struct):
    """What was claimed."""

    name: str = ""
    metric: str = "time_to_first_token.mean"
    treatment: str = ""
    baseline: str = ""
    kind: str = "effect"
    evidence: str = ""

    def __post_init__(self) -> None:
        _check_metric(self.metric)


class Bound(msgspec.Struct):
    """The limits of a claim."""

    direction: Direction = "at most"
    limit: Number = None


class Effect(msgspec.Struct):
    """A change with its interval."""

    change: Number = None
    low: Number = None
    high: Number = None
    confidence: Number = None
    method: str = ""


class Gate(msgspec.Struct):
    """What a validity gate saw."""

    name: str = ""
    passed: bool = True
    saw: str = ""
    threshold: str = ""
    what_to_do: str = ""
    configuration: str = ""


class Verdict(msgspec.Struct):
    """What a measurement said of a claim."""

    claim: Claim | None = None
    effect: Effect | None = None
    bound: Bound | None = None
    outcome: str = ""
    statement: str = ""
    sentence: str = ""
    confounds: list[str] = []
    gates: list[Gate] = []


class Tolerance(msgspec.Struct):
    """What a regression test tolerates."""

    metric: str
    share: Finite = 0.0

    def __post_init__(self) -> None:
        _check_metric(self.metric)


class Regression(msgspec.Struct):
    """A metric against a stored measurement of it."""

    tolerance: Tolerance | None = None
    effect: Effect | None = None
    outcome: str = ""
    sentence: str = ""


class Test(msgspec.Struct):
    """A test that was not about a claim."""

    outcome: str = ""
    message: str = ""
    explained: bool = False


class Speculative(msgspec.Struct):
    """Speculative decoding of a worker."""

    method: str = "speculative decoding"


class Worker(msgspec.Struct):
    """A role of a deployment."""

    replicas: Count = 1
    mode: str = ""
    tp: Count = 1
    attention_dp: Count | None = None
    moe_ep: Count | None = None
    nodes: Count | None = None
    speculative: Speculative | None = None
    engine_args: dict[str, Any] = {}


class Deployment(msgspec.Struct):
    """A configuration as the author wrote it."""

    name: str
    role: str = ""
    workers: list[Worker] = []
    router: str | None = None
    concurrency: Count | None = None
    frontend_args: dict[str, Any] = {}
    env: dict[str, Any] = {}


class Configuration(msgspec.Struct):
    """A configuration in a summary."""

    role: str = ""
    gpus: Count = 0
    features: list[str] = []
    deployment: Deployment | None = None


class RunEntry(msgspec.Struct):
    """A run in a summary."""

    gpus: Count = 0
    simulated: bool = False
    requests: Count = 0
    failed: Count = 0
    problems: list[str] = []
    invalid: list[str] = []


class Hardware(msgspec.Struct):
    """The machines that a benchmark is about."""

    gpu: str = "?"
    count: Count = 0
    nodes: Count | None = None
    kv_transfer_gb_per_second: Amount | None = None


class Limits(msgspec.Struct):
    """Service-level objectives, ms; at least one."""

    time_to_first_token_ms: Amount | None = None
    inter_token_latency_ms: Amount | None = None
    request_latency_ms: Amount | None = None

    def __post_init__(self) -> None:
        given = (self.time_to_first_token_ms, self.inter_token_latency_ms, self.request_latency_ms)
        if not any(given) or 0 in given:
            raise ValueError("give at least one limit, greater than 0")


class Published(msgspec.Struct):
    """What somebody else measured."""

    source: str = ""
    hardware: str = ""
    note: str = ""
    values: dict[str, dict[str, Finite]] = {}


class Benchmark(msgspec.Struct):
    """A benchmark in a summary."""

    question: str = ""
    model: str = ""
    engine: str = ""
    traffic: str = ""
    held_constant: str = ""
    recipe: str = ""
    how_judged: str = ""
    notes: list[str] = []
    hardware: Hardware | None = None
    goodput: Limits | None = None
    published: Published | None = None
    configurations: dict[str, Configuration] = {}
    runs: dict[str, list[RunEntry]] = {}
    errors: dict[str, str] = {}
    verdicts: dict[str, Verdict] = {}
    regressions: dict[str, dict[str, Regression]] = {}
    tests: dict[str, Test] = {}


class Summary(msgspec.Struct):
    """``summary.json``."""

    target: str
    started_at: str
    command: list[str]
    benchmarks: dict[str, Benchmark]


class Feature(msgspec.Struct):
    """What of a feature was seen at work."""

    feature: str = ""
    saw: str = ""
    modelled: str | None = None


class Traffic(msgspec.Struct):
    """What a run says of its traffic."""

    history: list[str] = []
    schedule: str = ""
    scaling: str = ""
    reusable_share: Number = None
    images: Count | None = None
    distinct_images: Count | None = None


class Observed(msgspec.Struct):
    """What a deployment said of itself, in so far as it is judged."""

    load_generator: dict[str, Any] = {}
    processor_use: list[Amount] = []
    evicted_blocks: Count | None = None
    encoder_cache: dict[str, Any] | None = None
    embedding_cache: dict[str, Any] | None = None


class Run(msgspec.Struct):
    """``run.json``."""

    benchmark: str
    configuration: Deployment
    target: str
    gpus: Count
    requests: Count
    started_at: str
    simulated: bool
    deployed: dict[str, Any]
    observed: dict[str, Any]
    traffic: dict[str, Any]
    problems: list[str]
    notes: list[str] = []
    limitations: list[str] = []
    features: list[Feature] = []
    stand_in_engines: bool = False

    def __post_init__(self) -> None:
        msgspec.convert(self.traffic, Traffic)
        msgspec.convert(self.observed, Observed)


class Environment(msgspec.Struct):
    """``environment.json``."""

    python: str | None = None
    system: str | None = None
    machine: str | None = None
    processor: str | None = None
    cores: Count | None = None
    memory_gib: Amount | None = None
    packages: dict[str, str | None] = {}


class Estimate(msgspec.Struct):
    """What a feature brings, a share of the baseline's value."""

    value: Number = None
    low: Number = None
    high: Number = None


class Row(msgspec.Struct):
    """A feature in an attribution."""

    feature: str = ""
    alone: Estimate | None = None
    on_top: Estimate | None = None
    average: Estimate | None = None


class Attribution(msgspec.Struct):
    """``attribution.json``."""

    metric: str = ""
    treatment: str = ""
    baseline: str = ""
    rows: list[Row] = []
