"""What an author of a benchmark writes: plain data, checked when the module is imported.

A :class:`Benchmark` is a question with its model, hardware, traffic, configurations and
claims. It is independent of targets, which read this data.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pytest_dynamo_bench.dynamo_options import (
    ENGINE_FIELDS,
    FRONTEND_FIELDS,
    checked_options,
    checked_variables,
    shown_variables,
)
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.features import session_header, used_features
from pytest_dynamo_bench.metric_definitions import full_name, metric_of
from pytest_dynamo_bench.traffic import Concurrency, Traffic, TrafficSource, beginning

RouterMode = Literal[
    "round-robin", "random", "power-of-two", "least-loaded", "device-aware-weighted", "direct", "kv"
]
WorkerMode = Literal["aggregated", "prefill", "decode"]
Role = Literal["baseline", "treatment", "promoted"]
ClaimKind = Literal["effect", "mechanism", "control"]
Engine = Literal["vllm", "sglang", "trtllm"]
ScaleName = Literal["smoke", "standard", "full"]
SCALES: tuple[ScaleName, ...] = get_args(ScaleName)

_OLD_PROMOTED = "winner"
# Fields that describe a configuration without changing it.
LABELS = ("name", "role", "published", "note")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def _fail(owner: str, problem: str) -> None:
    raise BenchmarkError(f"{owner}: {problem}")


def _check_choice(owner: str, name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        _fail(owner, f"{name}: {value!r} is not one of {', '.join(map(repr, choices))}")


def _check_positive(owner: str, name: str, value: float | None) -> None:
    if value is not None and (isinstance(value, bool) or not value > 0):
        _fail(owner, f"{name}: must be greater than 0, got {value!r}")


def _check_whole(owner: str, name: str, value: float | None) -> None:
    if value is not None and not isinstance(value, int):
        _fail(owner, f"{name}: must be a whole number, got {value!r}")
    _check_positive(owner, name, value)


def _check_dynamo(owner: str, value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        _fail(owner, f"dynamo: must be a release such as '1.6.1', or a path; got {value!r}")


def _check_name(owner: str, value: object) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        _fail(
            owner,
            f"name: {value!r} must be lower-case letters, digits, '.', '_' or '-'; it is used as a "
            "directory and a test id",
        )


@dataclass(frozen=True)
class Goodput:
    """The SLOs that a request must meet to count as good.

    A request is good if it succeeded and meets every given limit. Goodput is good requests per
    second (AIPerf's ``--goodput``). Limits are in milliseconds.
    """

    time_to_first_token_ms: float | None = None
    inter_token_latency_ms: float | None = None
    request_latency_ms: float | None = None

    def __post_init__(self) -> None:
        limits = dataclasses.asdict(self)
        if all(value is None for value in limits.values()):
            _fail("Goodput", f"give at least one limit: {', '.join(limits)}")
        for name, value in limits.items():
            _check_positive("Goodput", name, value)

    @property
    def limits(self) -> Mapping[str, float]:
        """The limits that are given, by metric, in milliseconds."""
        given = dataclasses.asdict(self).items()
        return {name.removesuffix("_ms"): limit for name, limit in given if limit is not None}


@dataclass(frozen=True)
class Hardware:
    """The hardware that the benchmark is about; simulations take their timing from it.

    ``kv_transfer_gb_per_second`` is the bandwidth of KV transfers between two workers, in 10^9
    bytes per second.
    """

    gpu: str
    count: int
    nodes: int = 1
    kv_transfer_gb_per_second: float | None = None

    def __post_init__(self) -> None:
        _check_positive("Hardware", "count", self.count)
        _check_positive("Hardware", "nodes", self.nodes)
        _check_positive("Hardware", "kv_transfer_gb_per_second", self.kv_transfer_gb_per_second)


@dataclass(frozen=True)
class Size:
    """How much of its traffic a benchmark sends on ``local`` at one scale.

    Traffic with a fixed schedule is cut to ``seconds``. In a closed loop, the first ``turns`` of
    ``sessions`` sessions are sent, with the published concurrency. ``seconds`` is then how long
    that takes approximately, and ``--dynamo-seconds`` scales the number of sessions.

    Attributes:
        seconds: duration of a configuration's traffic in real time; None sends all of it.
        traffic: smaller traffic instead of the published one, for traffic that cannot be cut,
            such as images for a real encoder.
        sessions: closed loop: number of sessions; None leaves it to the scale.
        turns: closed loop: first turns of each session; None sends whole sessions.
        fast_forward: factor by which modelled time (steps, pauses, transfers) runs faster than
            real time. Times are reported in modelled time; what is real (HTTP, routing,
            tokenizing) weighs more by this factor.
        ramp_seconds: closed loop: modelled time over which the first sessions start one by one,
            like AIPerf's ``--concurrency-ramp-duration``; 0 starts them all at once.
        configurations: names of those to measure; claims about others are skipped. None is all.
    """

    seconds: float | None = None
    traffic: TrafficSource | None = None
    sessions: int | None = None
    turns: int | None = None
    fast_forward: float = 1.0
    ramp_seconds: float = 0.0
    configurations: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.traffic is not None and not isinstance(self.traffic, TrafficSource):
            _fail("Size", f"traffic: must be a traffic source, got {self.traffic!r}")
        for name in ("seconds", "fast_forward"):
            _check_positive("Size", name, getattr(self, name))
        for name in ("sessions", "turns"):
            _check_whole("Size", name, getattr(self, name))
        if not self.ramp_seconds >= 0:
            _fail("Size", f"ramp_seconds: must be 0 or more, got {self.ramp_seconds!r}")
        if self.configurations is not None:
            object.__setattr__(self, "configurations", tuple(self.configurations))

    def lasting(self, seconds: float | None) -> Size:
        """This size with another duration; sessions of closed loops scale with it."""
        if seconds is None or self.seconds is None:
            return self if seconds is None else dataclasses.replace(self, seconds=seconds)
        sessions = self.sessions and max(1, round(self.sessions * seconds / self.seconds))
        return dataclasses.replace(self, seconds=seconds, sessions=sessions)


DEFAULT_SIZES: Mapping[ScaleName, Size] = {
    "smoke": Size(seconds=10),
    "standard": Size(seconds=35),
    "full": Size(),
}


@dataclass(frozen=True)
class SpeculativeDecoding:
    """A draft proposes tokens that the model verifies in one step.

    Attributes:
        draft_tokens: tokens proposed per step, 1 to 5.
        acceptance_rates: for each proposed token, the probability that it is accepted if all
            before it were. Simulations need them; real engines measure them.
        method: the engine's name of the method, such as ``Eagle3`` or ``MTP``.
        draft_model: model id of the draft head, if it is a separate model.
    """

    draft_tokens: int
    acceptance_rates: Sequence[float] = ()
    method: str = "MTP"
    draft_model: str = ""

    def __post_init__(self) -> None:
        owner = "SpeculativeDecoding"
        if isinstance(self.draft_tokens, bool) or self.draft_tokens not in range(1, 6):
            _fail(owner, f"draft_tokens: must be 1 to 5, got {self.draft_tokens!r}")
        object.__setattr__(self, "acceptance_rates", tuple(self.acceptance_rates))
        rates = self.acceptance_rates
        if rates and len(rates) != self.draft_tokens:
            _fail(
                owner,
                f"acceptance_rates: must have one rate for each of the {self.draft_tokens} draft "
                f"tokens, got {len(rates)}",
            )
        for rate in rates:
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
                _fail(owner, f"acceptance_rates: must be between 0 and 1, got {rate!r}")


@dataclass(frozen=True)
class KvOffload:
    """KV offload of cold blocks to host memory.

    Attributes:
        host_gib: host memory for KV blocks, GiB (2^30 bytes) per replica.
        to_host_gb_per_second, to_gpu_gb_per_second: bandwidth of the link in each direction, 10^9
            bytes per second per replica, or per rank with attention data parallelism, where the
            link is modelled; None is a link without transfer time.
    """

    host_gib: float
    to_host_gb_per_second: float | None = None
    to_gpu_gb_per_second: float | None = None

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            _check_positive("KvOffload", item.name, getattr(self, item.name))


@dataclass(frozen=True)
class Worker:
    """Workers of one mode: their number, parallelism and KV cache.

    A replica uses ``tp * attention_dp`` GPUs. TEP8 in TensorRT-LLM's recipes is
    ``tp=8, moe_ep=8``; DEP8 is ``attention_dp=8, moe_ep=8``.

    Attributes:
        replicas: number of workers.
        mode: ``aggregated``, or ``prefill`` or ``decode`` for disaggregated serving.
        tp: tensor parallelism of the attention, GPUs.
        attention_dp: attention data parallelism: ranks that each hold all attention weights and
            a separate KV cache; 1 is off.
        moe_ep: expert parallelism: GPUs over which experts are spread; None for dense models.
            If ``moe_ep`` is smaller than the replica, each expert is divided over several GPUs.
        wideep: use the engine's wide expert parallelism (TensorRT-LLM's WIDEEP).
        nodes: nodes that one replica spans.
        prefix_caching: keep finished blocks for later prompts.
        kv_blocks: KV cache in blocks of ``Configuration.block_size`` tokens, per replica, or per
            rank with attention data parallelism; None leaves it to the target.
        memory_fraction: share of GPU memory as the engine defines it (vLLM and SGLang: of all
            memory; TensorRT-LLM: of what the weights leave free for the KV cache).
        max_num_seqs: maximum number of requests per step.
        max_num_batched_tokens: maximum number of tokens per step.
        speculative: speculative decoding; None for off.
        kv_offload: KV offload to host memory; None for off.
        frontend_decoding: the frontend decodes images, and workers get pixels.
        embedding_cache_gib: memory of the embedding cache, which keeps the vision encoder's
            results, GiB (2^30 bytes) per replica; None for off.
        engine_args: other options of the workers' program, by its own names:
            ``{"max-model-len": 8192}``. See ``Configuration.frontend_args``.
        env: environment variables of these workers; they override the configuration's.
        dynamo: another Dynamo for these workers than for their frontend, as in ``Configuration``.
    """

    replicas: int
    mode: WorkerMode = "aggregated"
    tp: int = 1
    prefix_caching: bool = True
    kv_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    attention_dp: int = 1
    moe_ep: int | None = None
    wideep: bool = False
    nodes: int = 1
    memory_fraction: float | None = None
    speculative: SpeculativeDecoding | None = None
    kv_offload: KvOffload | None = None
    frontend_decoding: bool = False
    embedding_cache_gib: float | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    env: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    dynamo: str | None = None

    def __post_init__(self) -> None:
        owner = f"Worker(mode={self.mode!r})"
        _check_dynamo(owner, self.dynamo)
        _check_choice(owner, "mode", self.mode, get_args(WorkerMode))
        for name in (
            "replicas", "tp", "kv_blocks", "max_num_seqs", "max_num_batched_tokens",
            "attention_dp", "moe_ep", "nodes",
        ):  # fmt: skip
            _check_whole(owner, name, getattr(self, name))
        options = checked_options(owner, "engine_args", self.engine_args, ENGINE_FIELDS)
        object.__setattr__(self, "engine_args", options)
        object.__setattr__(self, "env", checked_variables(owner, self.env))
        _check_positive(owner, "memory_fraction", self.memory_fraction)
        _check_positive(owner, "embedding_cache_gib", self.embedding_cache_gib)
        if self.memory_fraction is not None and self.memory_fraction > 1:
            _fail(owner, f"memory_fraction: must be at most 1, got {self.memory_fraction!r}")
        per_replica = self.gpus_per_replica
        for name in ("moe_ep", "nodes"):
            value = getattr(self, name)
            if value is not None and per_replica % value:
                _fail(
                    owner,
                    f"{name}: {value} does not divide the {per_replica} GPUs of a replica "
                    f"(tp {self.tp} x attention_dp {self.attention_dp})",
                )
        if self.wideep and (self.moe_ep or 1) < 2:
            _fail(owner, "wideep: needs moe_ep of 2 or more")
        for name, kind in (("speculative", SpeculativeDecoding), ("kv_offload", KvOffload)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                _fail(owner, f"{name}: must be a {kind.__name__}, got {value!r}")

    @property
    def gpus_per_replica(self) -> int:
        """GPUs of one replica."""
        return self.tp * self.attention_dp

    @property
    def gpus(self) -> int:
        """GPUs of all replicas together."""
        return self.replicas * self.gpus_per_replica


@dataclass(frozen=True)
class Configuration:
    """A deployable Dynamo graph: a frontend with its router mode, and workers.

    The ``promoted`` one is what the benchmark's recipe deploys.

    Derive one configuration from another with :meth:`but`, which shows the difference in the
    source::

        KV = ROUND_ROBIN.but(name="agg-kv", role="treatment", router="kv")

    ``nodes`` is the number of nodes that the workers are placed on, if placement is part of the
    question. ``Worker.nodes`` is the number of nodes that one replica spans.

    If configurations get different load, ``concurrency`` replaces that of the benchmark's
    traffic, and ``requests`` limits the traffic to its first requests (in proportion, if the
    traffic is cut); :func:`traffic_for` applies both. Differences in them are confounders.

    Dynamo options and variables that have no field here are passed by their own names:
    ``frontend_args`` are options of the frontend and its router, ``{"router-temperature": 0.5}``;
    ``env`` are environment variables of frontend and workers. True is an option without a value,
    False its ``--no-`` form, a list several values. Reports and attributions show each by its
    name. Values of variables named like secrets are not shown.

    ``dynamo`` is the Dynamo to run: a release installed by ``install-dynamo`` (``"1.6.1"``), wheels
    installed by it (a directory, or wheels separated by commas), or the Python of an environment
    (``"../dynamo/.venv/bin/python"``). None is that of ``--dynamo-version``, or else of the
    environment that tests run in.
    """

    name: str
    role: Role
    workers: Sequence[Worker]
    router: RouterMode = "round-robin"
    block_size: int = 64
    published: bool = True
    note: str = ""
    nodes: int = 1
    concurrency: int | None = None
    requests: int | None = None
    frontend_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    env: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    dynamo: str | None = None

    def __post_init__(self) -> None:
        _check_name("Configuration", self.name)
        owner = f"Configuration {self.name!r}"
        _check_dynamo(owner, self.dynamo)
        if self.role == _OLD_PROMOTED:
            warnings.warn(
                f"{owner}: role={_OLD_PROMOTED!r} is now role='promoted'",
                DeprecationWarning, stacklevel=3,
            )  # fmt: skip
            object.__setattr__(self, "role", "promoted")
        options = checked_options(owner, "frontend_args", self.frontend_args, FRONTEND_FIELDS)
        object.__setattr__(self, "frontend_args", options)
        object.__setattr__(self, "env", checked_variables(owner, self.env))
        _check_choice(owner, "role", self.role, get_args(Role))
        _check_choice(owner, "router", self.router, get_args(RouterMode))
        _check_positive(owner, "block_size", self.block_size)
        _check_positive(owner, "nodes", self.nodes)
        for name in ("concurrency", "requests"):
            _check_whole(owner, name, getattr(self, name))
        object.__setattr__(self, "workers", tuple(self.workers))
        if not self.workers:
            _fail(owner, "workers: give at least one Worker")
        for worker in self.workers:
            if not isinstance(worker, Worker):
                _fail(owner, f"workers: must be Worker objects, got {worker!r}")
        modes = [worker.mode for worker in self.workers]
        if sorted(modes) not in (["aggregated"], ["decode", "prefill"]):
            _fail(
                owner,
                f"workers: give either one aggregated Worker, or one prefill and one decode "
                f"Worker; got {', '.join(modes)}",
            )

    def but(self, **changes: Any) -> Configuration:
        """This configuration with some fields changed.

        Raises:
            BenchmarkError: a field does not exist, or its value is not allowed.
        """
        known = [item.name for item in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                _fail(
                    f"Configuration {self.name!r}",
                    f"has no field {name!r}; fields: {', '.join(known)}",
                )
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain data for reports, without the values of secrets."""
        found = dataclasses.asdict(self)
        for part in (found, *found["workers"]):
            part["env"] = shown_variables(part["env"])
            if part["dynamo"] is None:
                del part["dynamo"]
            if offload := part.get("kv_offload"):
                part["kv_offload"] = {k: v for k, v in offload.items() if v is not None}
        return found

    @property
    def dynamos(self) -> dict[str, str | None]:
        """Which Dynamo runs its frontend, and which the workers of each role."""
        found: dict[str, str | None] = {"frontend": self.dynamo}
        return found | {worker.mode: worker.dynamo or self.dynamo for worker in self.workers}

    @property
    def gives_options(self) -> bool:
        """Whether it passes Dynamo options or variables that are not fields."""
        return bool(self.frontend_args or self.env) or any(
            worker.engine_args or worker.env for worker in self.workers
        )

    @property
    def disaggregated(self) -> bool:
        """Whether prefill and decode run on separate workers."""
        return any(worker.mode != "aggregated" for worker in self.workers)

    @property
    def gpus(self) -> int:
        """GPUs of all workers."""
        return sum(worker.gpus for worker in self.workers)

    @property
    def replicas(self) -> int:
        """Number of all workers."""
        return sum(worker.replicas for worker in self.workers)

    @property
    def prefill_replicas(self) -> int:
        """Number of workers that process prompts: all, or the prefill workers."""
        return sum(worker.replicas for worker in self.workers if worker.mode != "decode")

    @property
    def features(self) -> frozenset[str]:
        """The Dynamo features that this configuration uses, derived from its data."""
        return used_features(self)


def traffic_for(traffic: Traffic, configuration: Configuration) -> Traffic:
    """The traffic for one configuration: with its concurrency and length, and with session ids if
    it routes by them.

    Every target sends this traffic, and every check of a run compares with it. The function is
    idempotent.

    Requests of a shortened traffic get different ids, see
    :func:`~pytest_dynamo_bench.traffic.beginning`.

    Raises:
        BenchmarkError: ``concurrency`` is given but the traffic has a fixed schedule.
    """
    schedule = traffic.schedule
    if configuration.concurrency is not None:
        if not isinstance(schedule, Concurrency):
            _fail(
                f"Configuration {configuration.name!r}",
                f"concurrency: {configuration.concurrency} has no effect on traffic with a "
                f"{schedule.description}",
            )
        schedule = Concurrency(configuration.concurrency)
    header = session_header(configuration)
    if (schedule, header) != (traffic.schedule, traffic.session_header):
        traffic = dataclasses.replace(traffic, schedule=schedule, session_header=header)
    if configuration.requests is None:
        return traffic
    return beginning(traffic, max(1, round(configuration.requests * traffic.share)))


def claimed_as(target: str) -> str:
    """The name of a target as claims write it, where it may be the name of an argument."""
    return target.replace("-", "_")


Direction = Literal["at most", "at least", "within"]


@dataclass(frozen=True)
class Bound:
    """The limit of a claimed change: ``change <= limit``, ``change >= limit``, or both.

    The change is relative (``-0.2`` is 20 % lower), except for shares such as ``kv_hit_rate``,
    where it is the difference (``0.1`` is 10 points). ``within`` is ``-limit <= change <= limit``.
    """

    direction: Direction
    limit: float

    @property
    def lowest(self) -> float:
        """The smallest change with which the claim is true; -inf where any is small enough."""
        if self.direction == "at most":
            return -math.inf
        return -self.limit if self.direction == "within" else self.limit

    @property
    def highest(self) -> float:
        """The largest change with which the claim is true; inf where any is large enough."""
        return math.inf if self.direction == "at least" else self.limit

    @property
    def limits(self) -> tuple[float, ...]:
        """The ends of what is claimed, ascending: one, or two for ``within``."""
        return tuple(end for end in (self.lowest, self.highest) if math.isfinite(end))


_BOUND_FIELDS: Mapping[str, tuple[Direction, int]] = {
    "lower_by": ("at most", -1),
    "higher_by": ("at least", +1),
    "not_higher_by": ("at most", +1),
    "not_lower_by": ("at least", -1),
    "within": ("within", +1),
}


@dataclass(frozen=True)
class Claim:
    """A statement about two configurations that a measurement confirms or refutes.

    Give exactly one of ``lower_by``, ``higher_by``, ``not_higher_by``, ``not_lower_by`` and
    ``within`` (neither higher nor lower by more), as one number for every target or as
    ``{"local": 0.1, "replay": 0.05}``. The claim is not made on targets that are not listed, except
    for targets that are like a listed one, as ``endpoint`` is like ``kubernetes``. Write ``_`` for
    ``-`` in the name of a target. Numbers are relative (0.2 is 20 %); for shares such as
    ``kv_hit_rate`` they are differences (0.1 is 10 points).

    ``kind`` is ``effect``, ``mechanism`` (the cause of an effect) or ``control`` (no effect).
    ``evidence`` says where the threshold comes from. ``assumes`` is the id of a simplification (see
    :meth:`assuming`).

    Two claims are equal only if all fields are equal; the name is only for readers.
    """

    name: str
    metric: str
    treatment: str
    baseline: str
    lower_by: float | Mapping[str, float] | None = None
    higher_by: float | Mapping[str, float] | None = None
    not_higher_by: float | Mapping[str, float] | None = None
    not_lower_by: float | Mapping[str, float] | None = None
    within: float | Mapping[str, float] | None = None
    kind: ClaimKind = "effect"
    evidence: str = ""
    assumes: str = ""

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            _fail("Claim", f"name: must be a sentence, got {self.name!r}")
        owner = f"Claim {self.name!r}"
        _check_choice(owner, "kind", self.kind, get_args(ClaimKind))
        try:
            object.__setattr__(self, "metric", full_name(self.metric))
        except ValueError as error:
            _fail(owner, f"metric: {error}")
        given = [name for name in _BOUND_FIELDS if getattr(self, name) is not None]
        if len(given) != 1:
            _fail(owner, f"give exactly one of {', '.join(_BOUND_FIELDS)}; got {given or 'none'}")
        thresholds = getattr(self, given[0])
        if isinstance(thresholds, Mapping):
            # Its own copy: a claim that has been judged must not become another one.
            thresholds = self._by_name(owner, given[0], thresholds)
            object.__setattr__(self, given[0], thresholds)
        for value in thresholds.values() if isinstance(thresholds, dict) else [thresholds]:
            self._check_threshold(given[0], value)
        if self.treatment == self.baseline:
            _fail(owner, f"treatment and baseline are the same configuration: {self.baseline!r}")

    def __hash__(self) -> int:
        """A hash that agrees with equality, also where thresholds are given by target."""
        return hash((self.name, self.metric, self.treatment, self.baseline, self.kind))

    @staticmethod
    def _by_name(owner: str, bound: str, thresholds: Mapping[str, float]) -> dict[str, float]:
        if not thresholds:
            _fail(owner, f"{bound}: give at least one target, such as local")
        found: dict[str, float] = {}
        for target, value in thresholds.items():
            if not isinstance(target, str) or not (name := claimed_as(target)).isidentifier():
                _fail(owner, f"{bound}: {target!r} is not a valid name of a target")
            if name in found:
                _fail(owner, f"{bound}: duplicate target {name!r}")
            found[name] = value
        return found

    @property
    def _claimed(self) -> tuple[str, float | Mapping[str, float]]:
        """The field of its bound, with the threshold or those of the targets."""
        given = ((name, getattr(self, name)) for name in _BOUND_FIELDS)
        return next((name, value) for name, value in given if value is not None)

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that it lists, as written in claims; empty for one number for all."""
        _, thresholds = self._claimed
        return tuple(thresholds) if isinstance(thresholds, Mapping) else ()

    def _check_threshold(self, bound: str, value: object) -> None:
        owner = f"Claim {self.name!r}"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:  # type: ignore[operator]
            _fail(owner, f"{bound}: must be 0 or more, such as 0.2 for 20 %; got {value!r}")
        if bound in ("lower_by", "within") and value >= 1:  # type: ignore[operator]
            _fail(owner, f"{bound}: {value!r} would be 100 % lower or more; write 0.2 for 20 %")
        if bound == "within":
            _check_positive(owner, bound, value)  # type: ignore[arg-type]

    @classmethod
    def lower(
        cls,
        name: str,
        metric: str,
        treatment: Configuration,
        baseline: Configuration,
        *,
        kind: ClaimKind = "effect",
        **targets: tuple[float, str],
    ) -> Claim:
        """A claim that the metric is lower, with threshold and evidence for each target.

        ::

            Claim.lower("KV routing lowers TTFT", TTFT, AGG_KV, AGG,
                        local=(0, "29 % lower, at least 2"), replay=(0.1, "17 %, at least 15"))

        Args:
            targets: for each target, how much lower at least, and the evidence.

        Raises:
            BenchmarkError: as for :class:`Claim`.
        """
        return cls._by_target("lower_by", name, metric, treatment, baseline, kind, targets)

    @classmethod
    def higher(
        cls,
        name: str,
        metric: str,
        treatment: Configuration,
        baseline: Configuration,
        *,
        kind: ClaimKind = "effect",
        **targets: tuple[float, str],
    ) -> Claim:
        """A claim that the metric is higher; otherwise as :meth:`lower`."""
        return cls._by_target("higher_by", name, metric, treatment, baseline, kind, targets)

    @classmethod
    def not_higher(
        cls,
        name: str,
        metric: str,
        treatment: Configuration,
        baseline: Configuration,
        *,
        kind: ClaimKind = "effect",
        **targets: tuple[float, str],
    ) -> Claim:
        """A claim that the metric is at most this much higher; otherwise as :meth:`lower`."""
        return cls._by_target("not_higher_by", name, metric, treatment, baseline, kind, targets)

    @classmethod
    def unchanged(
        cls,
        name: str,
        metric: str,
        treatment: Configuration,
        baseline: Configuration,
        *,
        kind: ClaimKind = "control",
        **targets: tuple[float, str],
    ) -> Claim:
        """A claim that the metric changes by at most this much in either direction.

        It holds if the whole interval of the change is within the margin, so noise makes it
        harder to hold (equivalence, Schuirmann 1987); otherwise as :meth:`lower`.
        """
        return cls._by_target("within", name, metric, treatment, baseline, kind, targets)

    @classmethod
    def _by_target(
        cls,
        bound: str,
        name: str,
        metric: str,
        treatment: Configuration,
        baseline: Configuration,
        kind: ClaimKind,
        targets: Mapping[str, tuple[float, str]],
    ) -> Claim:
        for target, given in targets.items():
            if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str)):
                _fail(
                    f"Claim {name!r}",
                    f"{target}: must be a threshold with its evidence, such as "
                    f'(0.1, "17 % in a run of …"), got {given!r}',
                )
        evidence = "; ".join(f"{target}: {text}" for target, (_, text) in targets.items())
        limits: dict[str, Any] = {bound: {target: limit for target, (limit, _) in targets.items()}}
        return cls(
            name, metric, treatment.name, baseline.name, kind=kind, evidence=evidence, **limits
        )

    def assuming(self, simplification: str) -> Claim:
        """This claim, made by simulation only where that has a simplification.

        What one release of Dynamo simulates another may have to simplify, and a claim can depend on
        that. Targets that simulate nothing make the claim as before.

        Args:
            simplification: its id, such as ``ranks-as-workers``; ``run.json`` of a simulated run
                lists those that apply, as ``caveats``.
        """
        return dataclasses.replace(self, assumes=simplification)

    def bound(self, *targets: str) -> Bound | None:
        """The limit on a target, or None if the claim is not made there.

        Args:
            targets: the target's name, then those of targets that it is like; the first one that
                the claim lists is used.
        """
        field_name, thresholds = self._claimed
        direction, sign = _BOUND_FIELDS[field_name]
        if isinstance(thresholds, Mapping):
            named = [name for name in map(claimed_as, targets) if name in thresholds]
            if not named:
                return None
            thresholds = thresholds[named[0]]
        return Bound(direction, sign * float(thresholds))

    def statement(self, *targets: str) -> str:
        """The claim in words, for example ``time_to_first_token.mean lower by at least 20 %``.

        Args:
            targets: as for :meth:`bound`.
        """
        bound = self.bound(*targets)
        if bound is None:
            return f"not claimed on {targets[0]}"
        size = abs(bound.limit) * 100
        unit = "points" if metric_of(self.metric).is_share else "%"
        words = {
            "lower_by": (f"lower by at least {size:g} {unit}", "lower"),
            "higher_by": (f"higher by at least {size:g} {unit}", "higher"),
            "not_higher_by": (f"at most {size:g} {unit} higher", "not higher"),
            "not_lower_by": (f"at most {size:g} {unit} lower", "not lower"),
            "within": (f"at most {size:g} {unit} higher or lower", "unchanged"),
        }
        field_name, _ = self._claimed
        return f"{self.metric} {words[field_name][size == 0]}"


@dataclass(frozen=True)
class PublishedResults:
    """Published results, shown next to a measurement and never mixed with it.

    Attributes:
        source: who published them and where.
        hardware: what they were measured on.
        values: for each configuration, values by metric, named as in the source.
        note: how to read them: number of runs, units that the source does not state.
    """

    source: str
    hardware: str
    values: Mapping[str, Mapping[str, float]]
    note: str = ""

    @property
    def columns(self) -> list[str]:
        """Every metric that a configuration has a value of."""
        return list(dict.fromkeys(what for row in self.values.values() for what in row))

    def __post_init__(self) -> None:
        for configuration, measured in self.values.items():
            for what, value in measured.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    _fail(
                        "PublishedResults",
                        f"values: {configuration}: {what}: must be a number, got {value!r}",
                    )


@dataclass(frozen=True)
class Benchmark:
    """A question with everything needed to answer it.

    ``sizes`` sets how much of the traffic ``local`` sends at each scale, if the default
    (:data:`DEFAULT_SIZES`: 10 s, 35 s, all) does not fit.

    Raises:
        BenchmarkError: a field is invalid; the message names it.
    """

    name: str
    question: str
    model: str
    hardware: Hardware
    traffic: TrafficSource
    configurations: Sequence[Configuration]
    claims: Sequence[Claim]
    engine: Engine = "vllm"
    goodput: Goodput | None = None
    held_constant: str = ""
    recipe: str = ""
    notes: Sequence[str] = field(default=())
    published: PublishedResults | None = None
    sizes: Mapping[ScaleName, Size] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name("Benchmark", self.name)
        owner = f"Benchmark {self.name!r}"
        _check_choice(owner, "engine", self.engine, get_args(Engine))
        for name in ("configurations", "claims", "notes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not isinstance(self.traffic, TrafficSource):
            _fail(
                owner,
                f"traffic: must be a traffic source such as MooncakeTrace, got {self.traffic!r}",
            )
        names = [configuration.name for configuration in self.configurations]
        for what, values in (("configurations", names), ("claims", [c.name for c in self.claims])):
            doubled = sorted({value for value in values if values.count(value) > 1})
            if doubled:
                _fail(owner, f"{what}: the name {doubled[0]!r} is used more than once")
        if not names:
            _fail(owner, "configurations: give at least one Configuration")
        for name in self.published.values if self.published else ():
            _check_choice(owner, "published: configuration", name, names)
        for scale, size in self.sizes.items():
            _check_choice(owner, "sizes", scale, SCALES)
            for name in size.configurations or ():
                _check_choice(owner, f"sizes: {scale}: configuration", name, names)
        fixed = not isinstance(getattr(self.traffic, "schedule", None), Concurrency)
        for configuration in self.configurations:
            if fixed and configuration.concurrency is not None:
                _fail(
                    f"Configuration {configuration.name!r}",
                    "concurrency: has no effect, because the benchmark's traffic has a fixed "
                    "schedule",
                )
        for claim in self.claims:
            for name in ("treatment", "baseline"):
                _check_choice(f"Claim {claim.name!r}", name, getattr(claim, name), names)
            if metric_of(claim.metric).needs_limits and self.goodput is None:
                _fail(
                    f"Claim {claim.name!r}",
                    "metric: goodput needs SLOs; give the Benchmark goodput=Goodput(...)",
                )

    def size(self, scale: ScaleName) -> Size:
        """How much of the traffic is sent on ``local`` at a scale."""
        return self.sizes.get(scale, DEFAULT_SIZES[scale])

    def configuration(self, name: str) -> Configuration:
        """The configuration with this name.

        Raises:
            BenchmarkError: there is none; the message lists the existing ones.
        """
        for configuration in self.configurations:
            if configuration.name == name:
                return configuration
        known = ", ".join(configuration.name for configuration in self.configurations)
        raise BenchmarkError(
            f"Benchmark {self.name!r} has no configuration {name!r}; it has {known}"
        )

    def only(self, names: Collection[str]) -> Benchmark:
        """This benchmark with some of its configurations, in their order.

        Raises:
            BenchmarkError: a name is not of any configuration, or there is none.
        """
        wanted = {self.configuration(name).name for name in names}
        return self.with_configurations(c for c in self.configurations if c.name in wanted)

    def with_configurations(self, configurations: Iterable[Configuration]) -> Benchmark:
        """This benchmark with other configurations.

        Claims are kept if both of their configurations are, published results if their
        configuration is unchanged. ``sizes`` keep their selection and add new configurations.

        Raises:
            BenchmarkError: as for :class:`Benchmark`: none is given, or names are duplicates.
        """
        made = tuple(configurations)
        names = [configuration.name for configuration in made]
        own = {configuration.name for configuration in self.configurations}
        published = self.published
        if published is not None:
            kept = {c.name for c in made if c in self.configurations} & set(published.values)
            published = dataclasses.replace(
                published, values={name: published.values[name] for name in sorted(kept)}
            )
        return dataclasses.replace(
            self,
            configurations=made,
            claims=[c for c in self.claims if {c.treatment, c.baseline} <= set(names)],
            published=published if published is not None and published.values else None,
            sizes={
                scale: size
                if size.configurations is None
                else dataclasses.replace(
                    size,
                    configurations=[
                        name for name in names if name in size.configurations or name not in own
                    ],
                )
                for scale, size in self.sizes.items()
            },
        )

    def with_dynamo(self, given: Iterable[tuple[str, str]]) -> Benchmark:
        """This benchmark with a Dynamo for the configurations that name none.

        Args:
            given: names of configurations with a Dynamo for each; the one of the empty name is
                for all others. A name of another benchmark's is none of this one's.
        """
        named = dict(given)
        configurations = [
            dataclasses.replace(item, dynamo=item.dynamo or named.get(item.name, named.get("")))
            for item in self.configurations
        ]
        return dataclasses.replace(self, configurations=configurations)

    def with_traffic(self, traffic: TrafficSource) -> Benchmark:
        """This benchmark with other traffic, at every size."""
        return dataclasses.replace(
            self,
            traffic=traffic,
            sizes={
                scale: dataclasses.replace(size, traffic=None) for scale, size in self.sizes.items()
            },
        )
